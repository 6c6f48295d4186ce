# SPDX-License-Identifier: Apache-2.0
"""What ``policy check`` says of rules that do nothing: rule, line and remedy; and nothing of others."""

from __future__ import annotations

import re

import pytest

from agentmon.policy.bind import bind_policy
from agentmon.policy.check_rules import MOST_RULES, in_vain
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load, load_text, packs, shipped_directory
from agentmon.policy.rules import Variables

HEAD = "policy: p\ndescription: of a test\ndefault: {exec: allow, read: allow, create: deny}\nrules:\n"
MARKS = "  - {id: sets, on: exec, paths: /usr/bin/make, action: allow, marks: [tested]}\n"
MARKS += "  - {id: also, on: exec, paths: /usr/bin/cc, action: allow, marks: [edited]}\n"
BOTH = "  - {id: sets, on: exec, paths: /usr/bin/make, action: allow, marks: [tested, edited]}\n"


def warnings(rules: str, *, workspace: str = "/home/me/w", user: str = "root") -> list[str]:
    bound = bind_policy(
        load_text(HEAD + rules, "p.yaml"), Variables.of(workspace=workspace, home="/home/me", user=user)
    )
    return list(in_vain(bound.observed or bound, compile_policy(bound.observed or bound)))


def rule(body: str, name: str = "one") -> str:
    return f"  - {{id: {name}, {body}, action: deny}}\n"


NEVER = [
    ('on: read, paths: ["/a/*.c", /a/b], except: {paths: "/a/**"}', "covers all of its paths; narrow"),
    ("on: exec, exe: '**/git', except: {exe: '/**'}", "covers all of its paths; narrow"),
    ('on: unix, paths: "@x*", except: {paths: "@*"}', "covers all of its paths; narrow"),
    ("on: connect, cidrs: [192.0.2.0/24], except: {cidrs: [192.0.2.0/25, 192.0.2.128/25]}", "all of its addresses"),
    ('on: connect, cidrs: "192.0.2.1:80-90", except: {cidrs: ["192.0.2.1:80-89", "0.0.0.0/0:90"]}', "its addresses"),
    ('on: connect, except: {cidrs: ["0.0.0.0/0", "::/0"]}', "all of its addresses"),
    ('on: read, paths: /q, exe: /usr/bin/cat, except: {exe: "/usr/bin/*"}', "all programs of its `exe`"),
    ('on: read, paths: /q, parent: /usr/bin/cat, except: {parent: "/usr/bin/*"}', "all programs of its `parent`"),
    ("on: read, paths: /q, user: root, except: {user: [root, 1000]}", "(user 0 or 1000) is true whenever"),
    ("on: read, paths: /q, when: {risk: high}, except: {risk: elevated}", "(risk elevated) is true whenever"),
    ("on: read, paths: /q, except: {risk: normal}", "its `except` (risk normal) is true always; take it out"),
    (
        'on: read, when: {time: "Mon-Fri 09:00-18:00 UTC"}, except: {time: ["08:00-12:00 UTC", "12:00-20:00 UTC"]}',
        "all hours at which it would apply",
    ),
    ('on: read, paths: /q, when: {time: "22:00-06:00 UTC"}, except: {time: "21:00-07:00 UTC"}', "all hours"),
    ('on: read, paths: /q, except: {time: ["08:00-12:00 UTC", "12:00-08:00 UTC"]}', "all hours"),
    ("on: read, paths: /q, when: {requires: tested}, except: {requires: tested}", "(mark tested) is true whenever"),
    ("on: read, paths: /q, when: {requires: tested since edited}, except: {requires: tested}", "(mark tested) is"),
    (
        "on: read, paths: /q, when: {requires: [tested since edited, edited since tested]}",
        "never true at once; ask for",
    ),
    ('on: exec, paths: /q, argv: [push, "**"], except: {argv: ["{push,pull}", "**"]}', "(arguments `push **` or"),
]
SOUND = [
    'on: read, paths: ["/a/*.c", /b], except: {paths: "/a/**"}',
    "on: exec, exe: '**/git', except: {exe: '/usr/**'}",
    'on: read, paths: "{workspace}/x", except: {paths: "~/**"}',  # it happens that the workspace is below the home
    "on: connect, cidrs: [192.0.2.0/24], except: {cidrs: [192.0.2.0/25]}",
    'on: connect, cidrs: "192.0.2.1:80-90", except: {cidrs: ["192.0.2.1:80-89", "198.51.100.0/24:90"]}',
    'on: connect, except: {cidrs: ["0.0.0.0/0"]}',
    'on: read, paths: /q, exe: "/usr/bin/*", except: {exe: /usr/bin/cat}',
    'on: read, paths: /q, parent: "/usr/bin/*", except: {parent: /usr/bin/cat}',
    "on: read, paths: /q, user: '{user}', except: {user: root}",  # it happens to be root who asks
    "on: read, paths: /q, user: [root, 1000], except: {user: root}",
    "on: read, paths: /q, when: {risk: elevated}, except: {risk: high}",
    'on: read, paths: /q, when: {time: "Mon-Fri 09:00-18:00 UTC"}, except: {time: "Mon 08:00-20:00 UTC"}',
    'on: read, paths: /q, when: {time: "09:00-18:00 UTC"}, except: {time: "09:00-18:00 Europe/Berlin"}',
    'on: read, paths: /q, when: {risk: high, time: "09:00-18:00 UTC"}, except: {user: root, parent: /bin/sh}',
    "on: read, paths: /q, when: {requires: tested}, except: {requires: tested since edited}",
    "on: read, paths: /q, when: {requires: [tested, edited]}, except: {requires: edited since tested}",
    'on: exec, paths: /q, argv: [push, "**"], except: {argv: [push]}',
]


@pytest.mark.parametrize(("body", "why"), NEVER, ids=[body for body, _ in NEVER])
def test_what_never_applies_is_said(body: str, why: str) -> None:
    (said,) = warnings(MARKS + rule(body))
    assert re.match(r"p\.yaml:7:10: rule `one` never applies: ", said)
    assert why in said
    # as it is where it blocks nothing yet
    (said,) = warnings(MARKS + rule(f"{body}, mode: observe"))
    assert why in said


@pytest.mark.parametrize("body", SOUND)
def test_what_may_apply_is_not(body: str) -> None:
    assert warnings(MARKS + rule(body)) == []


def test_marks_set_at_one_moment_are_neither_since_the_other() -> None:
    body = "on: read, paths: /q, when: {requires: [tested, edited]}"
    body += ", except: {requires: [tested since edited, edited since tested]}"
    assert warnings(BOTH + rule(body)) == []
    assert len(warnings(MARKS + rule(body))) == 1


def test_who_decides_first_is_named() -> None:
    def said(*rules: str) -> str:
        (found,) = warnings("".join(f"  - {{id: r{i}, {body}}}\n" for i, body in enumerate(rules)))
        return found

    one = said('on: attr, paths: ["/s/a*", /t/x], action: allow', 'on: attr, paths: ["/s/**", "/t/**"], action: deny')
    assert one == (
        "p.yaml:5:10: rule `r0` can never decide: whatever it matches, `r1` (deny, p.yaml:6) decides first;"
        " drop it, or carve a hole with `except` in the other"
    )
    two = said(
        'on: attr, paths: ["/s/a*", /t/x], action: allow', 'on: attr, paths: "/s/**", action: deny',
        'on: attr, paths: "/t/**", action: deny', 'on: attr, paths: "/u/**", action: deny',
    )  # fmt: skip
    assert "whatever it matches, `r1` (deny, p.yaml:6), `r2` (deny, p.yaml:7) decide first" in two
    # under the same conditions
    both = "on: link, paths: PATH, exe: /usr/bin/x, when: {risk: high}, action: "
    assert "`r1` (deny" in said(both.replace("PATH", "/s/a") + "allow", both.replace("PATH", '"/s/**"') + "deny")
    net = said("on: bind, cidrs: [192.0.2.0/25], action: allow", "on: bind, cidrs: [192.0.2.0/24], action: deny")
    assert "`r1` (deny, p.yaml:6) decides first" in net
    bare = said("on: mount, exe: /usr/bin/mount, action: allow", "on: mount, action: kill")
    assert "`r1` (kill, p.yaml:6) decides first" in bare
    mixed = said("on: [exec, chroot], user: root, action: allow", "on: [exec, chroot], action: deny")
    assert "`r1` (deny, p.yaml:6) decides first" in mixed


def test_others_conditions_let_a_rule_decide() -> None:
    for condition in ("exe: /usr/bin/y", "exe: /usr/bin/x, when: {risk: high}", "except: {paths: /s/a}"):
        rules = "  - {id: r0, on: link, paths: '/s/a', exe: /usr/bin/x, action: allow}\n"
        rules += f"  - {{id: r1, on: link, paths: '/s/**', {condition}, action: deny}}\n"
        assert warnings(rules) == []


def test_of_many_rules_what_is_plain_is_named_too() -> None:
    many = "".join(f"  - {{id: m{i}, on: read, paths: /many/{i}, action: deny}}\n" for i in range(MOST_RULES))
    lost = (
        "  - {id: lost, on: read, paths: /s/a/b, action: audit}\n  - {id: all, on: read, paths: '/s/**', action: deny}"
    )
    (said,) = warnings(many + lost)
    assert "rule `lost` can never decide: whatever it matches, `all` (deny, p.yaml:" in said


@pytest.mark.parametrize("name", sorted(packs([shipped_directory()])))
def test_no_shipped_pack_has_such_a_rule(name: str) -> None:
    # that is where `sandbox-agent` lets its agent write all the same
    bound = bind_policy(load(name), Variables.of(workspace="/srv/w", home="/root", user="root"))
    assert list(in_vain(bound, compile_policy(bound))) == []
