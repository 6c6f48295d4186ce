# SPDX-License-Identifier: Apache-2.0
"""Errors name the place and the remedy; packs merge as the language says."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.policy.load import load, load_text
from agentmon.policy.rules import Variables

RULE = "policy: p\nrules:\n  - id: r\n    on: read\n    action: deny\n    "
CONNECT = RULE.replace("read", "connect").replace("deny", "allow")


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "p.yaml:1:1: the file is empty; a policy starts with `policy: NAME`"),
        ("policy: [\n", "p.yaml:2:1: not YAML"),
        ("- a", "p.yaml:1:1: the file must be a mapping of keys, not a list"),
        ("rules: []", "p.yaml:1:1: `policy` is missing; add `policy: …`"),
        ("policy: a b", "p.yaml:1:9: `a b` is not a name"),
        ("policy: p\npolicy: q", "p.yaml:2:1: key `policy` is given twice"),
        ("policy: p\nrulez: []", "p.yaml:2:1: unknown key `rulez`; did you mean `rules`?"),
        ("policy: p\nlabels: {}", "p.yaml:2:1: `labels` is not in this version of the language"),
        ("policy: p\ndefault: {raed: deny}", "p.yaml:2:11: unknown operation `raed`; did you mean `read`?"),
        ("policy: p\ndefault: {read: dney}", "p.yaml:2:17: unknown action `dney`; did you mean `deny`?"),
        ("policy: p\ndefault: deny", "p.yaml:2:10: `default` must be a mapping of keys, not `deny`"),
        ("policy: p\nrules: x", "p.yaml:2:8: `rules` must be a list, not `x`; start each item"),
        ("policy: p\nrules: [x]", "p.yaml:2:9: each item here must be a mapping of keys, not `x`"),
        ("policy: p\nrules:\n  - on: read\n    action: deny", "p.yaml:3:5: `id` is missing"),
        (RULE + "pahts: [/a]", "p.yaml:6:5: unknown key `pahts`; did you mean `paths`?"),
        (RULE + "hosts: [a]", "p.yaml:6:5: `hosts` does not apply to `read`; write a rule of its own"),
        (RULE + "hots: [a]", "p.yaml:6:5: unknown key `hots`; did you mean `hosts`?"),
        (CONNECT + "hosts: []", "p.yaml:6:5: `hosts` is empty; leave it out to match every object"),
        (CONNECT + "hosts: ['a.org', '*']", "p.yaml:6:22: `*`: `*` stands for whole labels at the start"),
        (CONNECT + "hosts: ['a.*.org']", "p.yaml:6:13: `a.*.org`: `*` stands for whole labels at the start"),
        (CONNECT + "hosts: ['*.com:443']", "p.yaml:6:13: `*.com:443` would be all of `com`; name a domain"),
        (CONNECT + "hosts: 10.0.0.1:443", "p.yaml:6:12: `10.0.0.1:443` is an address; put it into `cidrs`"),
        (CONNECT + "hosts: '[::1]:443'", "p.yaml:6:12: `[::1]:443` is an address; put it into `cidrs`"),
        (CONNECT + "hosts: 10.0.0.0/8", "p.yaml:6:12: `10.0.0.0/8` is an address; put it into `cidrs`"),
        (
            CONNECT + "hosts: 'https://a.org'",
            "p.yaml:6:12: `https://a.org` is not the name of a host; write it without",
        ),
        (CONNECT + "hosts: a..org", "p.yaml:6:12: `a..org` is not the name of a host; write such as `api.example.com"),
        (
            CONNECT + "hosts: localhost:80",
            "p.yaml:6:12: `localhost:80` is this host; write `cidrs: [127.0.0",
        ),
        (CONNECT + "hosts: a.org:0x", "p.yaml:6:12: `0x` is not a port; write such as `443` or `8000-9000`"),
        (CONNECT + "hosts: '☃️.example'", "p.yaml:6:12: `☃\\ufe0f.example` is not the name of a host"),
        (CONNECT + "hosts: a.org\n    except: {cidrs: '::1'}", "p.yaml:7:21: a hole in `hosts` cannot be `cidrs`"),
        (CONNECT.replace("allow", "deny") + "hosts: a.org", "p.yaml:5:13: `deny` by name stops nobody"),
        (RULE + "except: {pths: /a}", "p.yaml:6:14: unknown key `pths`; did you mean `paths`?"),
        (RULE + "quiet: maybe", "p.yaml:6:12: `quiet` must be `true` or `false`, not `maybe`"),
        (RULE + "paths: {a: b}", "p.yaml:6:12: `paths` must be one value or a list, not a mapping"),
        (RULE + "paths: [[a]]", "p.yaml:6:13: "),
        (RULE + "paths: []", "p.yaml:6:5: `paths` is empty; leave it out to match every object"),
        (RULE + "paths: ['/a', '/b//c']", "p.yaml:6:22: in `/b//c`: has `//`"),
        (RULE + "paths:\n      - /a/{worspace}", "p.yaml:7:12: in `/a/{worspace}`: unknown variable `{worspace}`"),
        (RULE + "cidrs: [10.0.0.0/8]", "p.yaml:6:5: `cidrs` does not apply to `read`; write a rule of its own"),
        (RULE + "paths: '@x'", "p.yaml:6:12: `@x` is the name of an abstract socket, which only `unix` has"),
        (RULE.replace("read", "[]"), "p.yaml:4:9: `on` names no operation"),
        (
            RULE.replace("deny", "hold").replace("read", "ptrace"),
            "p.yaml:5:13: `ptrace` cannot be held; deny it, or write a rule of its own",
        ),
        (RULE.replace("read", "connect") + "paths: /a", "p.yaml:6:5: `paths` does not apply to `connect`"),
        (RULE.replace("read", "connect") + "cidrs: [10.0.0.1/8]", "p.yaml:6:13: `10.0.0.1/8` has bits set"),
        (RULE.replace("read", "connect") + "cidrs: [a.org:443]", "p.yaml:6:13: `a.org:443` is not an address"),
        (
            RULE.replace("read", "connect") + "cidrs: ['1.2.3.4/x']",
            "p.yaml:6:13: `1.2.3.4/x`: after `/` comes the number",
        ),
        (RULE.replace("read", "connect") + "ports: 99999", "p.yaml:6:12: port `99999` is above 65535"),
        (RULE.replace("read", "connect") + "ports: [9-8]", "p.yaml:6:13: the port range `9-8` is empty"),
        (RULE.replace("read", "[exec, read]") + "exe: /a", "p.yaml:6:5: `exe` is the program to start on `exec`"),
        (
            RULE.replace("read", "exec") + "exe: /a\n    paths: /b",
            "p.yaml:6:5: `exe` and `paths` mean the same on `exec`",
        ),
        ("policy: p\ninclude: [bse]", "p.yaml:2:11: no pack `bse`; did you mean `base`?"),
        (
            "policy: p\ninclude: [{pack: base, without: [kes]}]",
            "p.yaml:2:34: pack `base` has no rule `kes`; did you mean `keys`?",
        ),
        (
            "policy: p\ninclude: [coding-agent, {pack: secrets, without: [keys]}]",
            "p.yaml:2:50: `keys` still comes by another include; leave it out there too, or include `secrets` once",
        ),
        (RULE + "parent: []", "p.yaml:6:5: `parent` is empty; leave it out to match every object"),
        (RULE + "parent: bin/a", "p.yaml:6:13: in `bin/a`: "),
        (RULE + "parent: '@x'", "p.yaml:6:13: `@x` is the name of an abstract socket"),
        (RULE + "user: [root, a b]", "p.yaml:6:18: `a b` is not a user; write a name, a number, or `{user}`"),
        (RULE + "when: {risk: hgih}", "p.yaml:6:18: unknown risk `hgih`; did you mean `high`?"),
        (RULE + "when: {tme: x}", "p.yaml:6:12: unknown key `tme`; did you mean `time`?"),
        (RULE + "when: {time: [9-18]}", "p.yaml:6:19: `9-18` is not a time; write such as `Mon-Fri 09:00-18:00"),
        (RULE + "marks: a", "p.yaml:6:5: a rule that blocks sets no marks; take them out"),
        (RULE.replace("deny", "allow") + "marks: a b", "p.yaml:6:12: `a b` is not a name"),
        (RULE + "when: {requires: a since}", "p.yaml:6:22: `a since` names no mark; write such as `tested`, or"),
        (RULE + "when: {requires: a since a}", "p.yaml:6:22: `a since a` names no mark"),
        (RULE + "when: {requires: a}", "p.yaml:6:22: no rule sets the mark `a`"),
        (RULE + "user: 4294967295", "p.yaml:6:11: `4294967295` is not a user"),
        (RULE.replace("read", "ptrace") + "paths: /a", "p.yaml:4:9: `ptrace` has no object; take `paths` out"),
        ("policy: p\nx: &a [*a]", "p.yaml:2:"),
    ],
)
def test_an_error_names_place_and_remedy(text: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_text(text, "p.yaml")
    assert str(caught.value).splitlines()[0].startswith(message)
    assert caught.value.exit_code == 3


def test_all_errors_come_at_once_in_the_order_of_the_text() -> None:
    text = "policy: p\ndefault: {a: deny}\nrules:\n  - {id: r, on: reed, action: dany}\n"
    with pytest.raises(PolicyError) as caught:
        load_text(text, "p.yaml")
    places = [line.split(": ")[0] for line in str(caught.value).splitlines()]
    assert places == ["p.yaml:2:11", "p.yaml:4:17", "p.yaml:4:31"]


@pytest.mark.parametrize(
    "text",
    [
        "policy: " + "[" * 5_000,
        "policy: p\nrules: [" + "{a: " * 30 + "b" + "}" * 30 + "]",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "policy: p\ndescription: " + "x" * (2 << 20),
        "\x00",
        "policy: p\n\trules: []",
    ],
)
def test_hostile_text_is_refused_quickly(text: str) -> None:
    with pytest.raises(PolicyError, match=r"^p\.yaml:\d+:\d+: "):
        load_text(text, "p.yaml")


def write(directory: Path, name: str, text: str) -> None:
    (directory / f"{name}.yaml").write_text(f"policy: {name}\n{text}")


def test_packs_merge_and_own_words_win(tmp_path: Path) -> None:
    write(tmp_path, "one", "default: {read: allow, exec: audit}\nrules: [{id: a, on: read, action: deny, paths: /a}]")
    write(tmp_path, "two", "default: {read: deny, exec: allow}\nrules: [{id: b, on: read, action: deny, paths: /b}]")
    policy = load_text(
        "policy: p\ninclude: [one, two]\ndefault: {exec: deny, connect: audit}\n"
        "rules: [{id: c, on: read, action: deny}]",
        "p.yaml",
        directories=[tmp_path],
    )
    assert [r.id for r in policy.rules] == ["c", "a", "b"]
    assert policy.packs == ("p", "one", "two")
    assert policy.defaults == {
        Operation.EXEC: Action.DENY,  # said here
        Operation.READ: Action.DENY,  # the most severe of the packs
        Operation.CONNECT: Action.AUDIT,
        Operation.SEND: Action.AUDIT,  # as connect
    }


def test_one_id_in_two_packs_names_the_way_out(tmp_path: Path) -> None:
    write(tmp_path, "one", "rules: [{id: a, on: read, action: deny}]")
    text = "policy: p\ninclude: [one]\nrules: [{id: a, on: read, action: allow}]"
    with pytest.raises(PolicyError, match=r"p\.yaml:3:14: .*without: \[a\]"):
        load_text(text, "p.yaml", directories=[tmp_path])
    policy = load_text(text.replace("[one]", "{pack: one, without: [a]}"), "p.yaml", directories=[tmp_path])
    assert [r.action for r in policy.rules] == [Action.ALLOW]


def test_a_pack_reached_twice_counts_once_and_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "base", "rules: [{id: a, on: read, action: deny}]")
    write(tmp_path, "left", "include: [base]")
    write(tmp_path, "right", "include: [base]")
    assert len(load_text("policy: p\ninclude: [left, right]", "p.yaml", directories=[tmp_path]).rules) == 1
    write(tmp_path, "left", "include: [right]")
    write(tmp_path, "right", "include: [left]")
    with pytest.raises(PolicyError, match="include each other"):
        load_text("policy: p\ninclude: [left]", "p.yaml", directories=[tmp_path])


def test_a_name_that_is_no_policy_suggests_one() -> None:
    with pytest.raises(PolicyError, match="did you mean `coding-agent`"):
        load("coding-agnet")
    with pytest.raises(PolicyError, match="no such file"):
        load("/nowhere/x.yaml")


@pytest.mark.parametrize("value", ["relative", "/a/../b", "/a/", "//a", "/a//b", ""])
def test_a_variable_must_be_a_true_path(value: str) -> None:
    with pytest.raises(PolicyError, match="give an absolute path"):
        Variables.of(workspace=value, home="/h", user="u")


@pytest.mark.parametrize("text", ["{" * 50_000, "[" * 50_000, "? " * 50_000, "- " * 50_000, "policy: \ud800"])
def test_text_that_breaks_parsers_is_refused(text: str) -> None:
    with pytest.raises(PolicyError, match=r"x\.yaml:1:\d+: "):
        load_text(text, "x.yaml")


def test_a_pack_is_not_too_large_only_because_it_was_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = load("base")
    elements = sum(
        len(a) for r in pack.rules for p in (*r.paths, *r.except_paths, *r.except_exe) for a in p.alternatives
    )
    monkeypatch.setattr("agentmon.policy.load_rules.MAX_ELEMENTS", elements + 1000)
    for _ in range(3):
        load("coding-agent")
