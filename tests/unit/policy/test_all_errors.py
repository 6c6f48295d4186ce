# SPDX-License-Identifier: Apache-2.0
"""A policy with several independent mistakes is told all of them at once, and nothing that only follows from one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agentmon.cli.main import main
from agentmon.errors import PolicyError
from agentmon.policy.bind import bind_policy
from agentmon.policy.load import load_text
from tests.support.policies import variables

MANY = """\
policy: p
colour: red
mode: obsrve
include: [base, nosuch]
default: {raed: deny, write: dney, connect: [deny]}
rules:
  - {id: typo, on: raed, pahts: [/a], action: dney}
  - {id: typo, on: read, paths: ['/a['], action: allow, marks: [m]}
  - {id: half, on: read, paths: /x, except: {pths: /y}}
  - {id: late, on: read, when: {risk: hgih, time: never, requires: [m]}, action: deny}
  - {id: late2, on: read, paths: [//], quiet: maybe, action: deny}
  - {id: keys, on: read, paths: /k, action: deny}
  - x
"""
#: Line, column and words of each.
TOLD = [
    (2, 1, "unknown key `colour`"),
    (3, 7, "unknown mode `obsrve`"),
    (4, 17, "no pack `nosuch`"),
    (5, 11, "unknown operation `raed`"),
    (5, 30, "unknown action `dney`"),
    (5, 45, "`connect` must be text"),
    (7, 20, "unknown operation `raed`"),
    (7, 26, "unknown key `pahts`"),
    (7, 47, "unknown action `dney`"),
    (8, 10, "rule id `typo` is already used at p.yaml:7:10"),
    (8, 37, "in `/a[`"),
    (9, 5, "`action` is missing"),
    (9, 46, "unknown key `pths`"),
    (10, 39, "unknown risk `hgih`"),
    (10, 51, "`never` is not a time"),
    (11, 36, "in `//`"),
    (11, 47, "`quiet` must be `true` or `false`"),
    (12, 10, "rule id `keys` is already used in pack `secrets`"),
    (13, 5, "each item here must be a mapping"),
]


def errors(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        bind_policy(load_text(text, "p.yaml"), variables())
    return str(caught.value).splitlines()


def places(lines: list[str]) -> list[tuple[int, int]]:
    found = [re.match(r"p\.yaml:(\d+):(\d+): .*; |p\.yaml:(\d+):(\d+): .*did you mean", line) for line in lines]
    assert all(found), "no place, or no remedy"
    return [(int(m[1] or m[3]), int(m[2] or m[4])) for m in found if m]


def test_mistakes_of_shape_and_of_meaning_come_together() -> None:
    told = errors(MANY)
    for line, column, words in TOLD:
        assert any(t.startswith(f"p.yaml:{line}:{column}: ") and words in t for t in told), (line, column, words, told)
    assert len(told) == len(TOLD)
    assert told == sorted(told, key=lambda t: [int(n) for n in t.split(":")[1:3]])


def test_mending_one_leaves_the_others() -> None:
    """So none is only told in another's stead."""
    before = errors(MANY)
    after = errors(MANY.replace("colour: red", "description: red").replace("mode: obsrve", "mode: observe"))
    assert after == [line for line in before if not line.startswith(("p.yaml:2:", "p.yaml:3:"))]


def test_what_only_follows_is_not_told() -> None:
    head = "policy: p\nrules:\n"
    needs = "  - {id: needs, on: read, when: {requires: m}, action: deny}\n"
    # the mark is set by a rule with another mistake
    assert len(errors(head + needs + "  - {id: sets, on: read, paths: x, action: allow, marks: m}\n")) == 1
    assert len(errors(head + needs + "  - {id: sets, on: read, marks: m}\n")) == 1
    assert len(errors(head + needs + "  - {id: sets, on: read, action: allow, marks: {m: n}}\n")) == 1
    # its only condition is mistyped, so the `except` has none
    assert len(errors(head + "  - {id: a, on: read, except: {usr: root}, action: deny}\n")) == 1
    # keys that are merged are not keys that are missing
    assert len(errors(head + "  - &a {id: a, on: read, action: deny}\n  - {<<: *a, id: b}\n")) == 1
    # and nobody knows what a pack without YAML says
    assert len(errors("policy: p\ninclude: [nosuch]\nrules:\n" + needs)) == 1


def test_a_key_given_twice_does_not_hide_the_rest() -> None:
    told = errors("policy: p\npolicy: q\nrulez: []\nrules:\n  - {id: a, on: raed, action: deny}\n")
    assert places(told) == [(2, 1), (3, 1), (5, 17)]


def test_errors_of_a_pack_come_with_the_policys_own(tmp_path: Path) -> None:
    (tmp_path / "shape.yaml").write_text("policy: shape\nrulez: []\n")
    (tmp_path / "broken.yaml").write_text("policy: [\n")
    text = "policy: p\ninclude: [shape, broken]\nrules:\n  - {id: a, on: raed, action: deny}\n"
    with pytest.raises(PolicyError) as caught:
        load_text(text, "p.yaml", directories=[tmp_path])
    told = str(caught.value).splitlines()
    assert [line.rpartition("/")[2].split(": ")[0] for line in told] == [
        "shape.yaml:2:1", "p.yaml:4:17", "broken.yaml:2:1",
    ]  # fmt: skip


def test_users_that_this_host_has_not_are_told_together() -> None:
    told = errors(
        "policy: p\nrules:\n  - {id: a, on: read, user: nosuch1, except: {user: [nosuch2, root]}, action: allow}\n"
        "  - {id: b, on: read, user: [nosuch3, nosuch1], action: deny}\n"
    )
    assert places(told) == [(3, 29), (3, 54), (4, 30), (4, 39)]
    assert ["nosuch1" in t or "nosuch2" in t or "nosuch3" in t for t in told] == [True] * 4


def test_the_command_line_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(MANY)
    assert main(["policy", "check", str(path)]) == 3
    assert capsys.readouterr().err.count("p.yaml:") >= len(TOLD)
