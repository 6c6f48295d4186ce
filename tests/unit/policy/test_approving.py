# SPDX-License-Identifier: Apache-2.0
"""`approve --always`: the edit changes the verdict on what was approved, and no other; comments stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agentmon.model.operations import OPERATIONS, Action, Operation
from agentmon.policy import load
from agentmon.policy.approving import ByHandError, Edit, Held, approve_always, stub
from agentmon.policy.bind import bind_policy
from agentmon.policy.cases import run_cases
from agentmon.policy.evaluate import Evaluator, Target
from agentmon.policy.rules import Variables

VARIABLES = Variables.of(workspace="/w", home="/home/me", user="me")
FILE = "/nonexistent/p.yaml"
DEFAULTS = (
    "exec: allow, read: allow, write: allow, create: allow, connect: deny, bind: allow, listen: allow, unix: allow"
)
HEAD = f"policy: p\ndefault: {{{DEFAULTS}}}\n"
HOST = (b"\0" * 10 + b"\xff\xff\x7f\0\0\1", 80)


def approve(text: str, operation: Operation, object_: str, rule: str, file: str = FILE) -> Edit:
    return approve_always(text, file, VARIABLES, Held(operation, object_, rule), "ann", "2026-01-02")


def judge(text: str, operation: Operation, target: Target, exe: bytes | None = None) -> tuple[Action, str]:
    bound = bind_policy(load.load_text(text, FILE), VARIABLES)
    verdict = Evaluator(bound).judge(operation, target, exe)
    return verdict.action, bound.rules[verdict.rule].rule.id if verdict.rule < len(bound.rules) else ""


#: Ways to write a rule that holds connections to 127.0.0.1, and what has to be in the text afterwards.
WRITTEN = {
    "flow": (
        "rules:\n  # why\n  - {id: out, on: connect, cidrs: [127.0.0.1/32], action: hold, reason: x} # c\n",
        ["  # why\n", 'action: hold, except: {cidrs: ["127.0.0.1:80"]}, reason: x} # c\n'],
    ),
    "block": (
        "rules:\n- id: out\n  on: connect\n  action: hold # c\n  reason: é\n",
        ['action: hold # c\n  except: {cidrs: ["127.0.0.1:80"]}\n  reason: é\n'],
    ),
    "no newline at the end": (
        "rules:\n- id: out\n  on: connect\n  action: hold",
        ['action: hold\n  except: {cidrs: ["127.0.0.1:80"]}\n- id: approved'],
    ),
    "a hole in one word": (
        "rules:\n  - {id: out, on: connect, action: hold, except: {cidrs: 127.0.0.1:7}}\n",
        ['except: {cidrs: ["127.0.0.1:7", "127.0.0.1:80"]}}'],
    ),
    "a hole in a list": (
        "rules:\n  - {id: out, on: connect, action: hold, except: {cidrs: ['127.0.0.1:7' ]}}\n",
        ["['127.0.0.1:7', \"127.0.0.1:80\" ]"],
    ),
    "a hole in lines": (
        "rules:\n- id: out\n  on: connect\n  action: hold\n  except:\n    cidrs:\n      # c\n      - 10.0.0.0/8\n",
        ['      # c\n      - "127.0.0.1:80"\n      - 10.0.0.0/8\n'],
    ),
    "another hole in lines": (
        "rules:\n  - id: out\n    on: connect\n    action: hold\n    except:\n      user: root\n",
        ['    except:\n      cidrs: ["127.0.0.1:80"]\n      user: root\n'],
    ),
    "another hole": (
        "rules:\n  - {id: out, on: connect, action: hold, except: {user: root}}\n",
        ['except: {cidrs: ["127.0.0.1:80"], user: root}'],
    ),
    "rules first": (
        "rules:\n  - id: out\n    on: connect\n    action: hold\ndescription: last\n",
        ["description: last\n"],
    ),
    "rules in one line": ("rules: [{id: out, on: connect, action: hold}]\n", ["hold, except: {"]),
    "lines of DOS": ("rules:\r\n  - id: out\r\n    on: connect\r\n    action: hold\r\n", ["hold\r\n    except:"]),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_rule_gets_a_hole_and_the_hole_a_rule(name: str) -> None:
    rules, kept = WRITTEN[name]
    edit = approve(HEAD + rules, Operation.CONNECT, "127.0.0.1:80", "out")
    for words in kept:
        assert words in edit.text
    assert edit.text.count("\r\n") in (0, edit.text.count("\n") - HEAD.count("\n"))
    assert judge(edit.text, Operation.CONNECT, HOST) == (Action.ALLOW, "approved-2026-01-02-1")
    assert judge(edit.text, Operation.CONNECT, (HOST[0], 81)) == judge(HEAD + rules, Operation.CONNECT, (HOST[0], 81))
    (added,) = [rule for rule in yaml.safe_load(edit.text)["rules"] if rule["id"] == edit.rule]
    assert added["reason"] == "approved by ann on 2026-01-02"


def test_other_operations_of_the_rule_stay_held() -> None:
    text = HEAD + "rules:\n  - {id: out, on: [write, create], paths: /w/**, action: hold, reason: ask}\n"
    new = approve(text, Operation.WRITE, "/w/a[1]", "out").text
    assert judge(new, Operation.WRITE, b"/w/a[1]")[0] is Action.ALLOW
    for operation in OPERATIONS:
        if operation.is_path and operation is not Operation.WRITE:
            assert judge(new, operation, b"/w/a[1]")[0] == judge(text, operation, b"/w/a[1]")[0], operation
    assert judge(new, Operation.WRITE, b"/w/a1")[0] is Action.HOLD


def test_a_rule_on_arguments_is_approved_for_these_alone(tmp_path: Path) -> None:
    text = (
        "policy: p\ndefault: {exec: deny}\n"
        "rules:\n  - {id: push, on: exec, paths: /bin/git, argv: [push, '**'], action: hold}\n"
    )
    file = tmp_path / "p.yaml"
    file.write_text(approve(text, Operation.EXEC, "/bin/git", "push").text)
    cases = tmp_path / "p.test.yaml"
    cases.write_text(
        "cases:\n"
        "  - {op: exec, object: /bin/git, argv: [push, there], expect: allow}\n"
        "  - {op: exec, object: /bin/git, argv: [gc], expect: deny}\n"
    )
    assert [result.failure for result in run_cases(str(cases))] == ["", ""]


def test_the_second_approval_has_the_next_number() -> None:
    text = HEAD + "rules:\n  - {id: out, on: read, paths: /w/**, action: hold}\n"
    first = approve(text, Operation.READ, "/w/a", "out")
    second = approve(first.text, Operation.READ, "/w/b", "out")
    assert second.rule == "approved-2026-01-02-2"
    for path in (b"/w/a", b"/w/b"):
        assert judge(second.text, Operation.READ, path)[0] is Action.ALLOW
    assert judge(second.text, Operation.READ, b"/w/c")[0] is Action.HOLD


def test_a_default_that_holds_needs_no_hole() -> None:
    text = HEAD.replace("write: allow", "write: hold")
    new = approve(text, Operation.WRITE, "/etc/x", "").text
    assert new.startswith(text)
    assert judge(new, Operation.WRITE, b"/etc/x")[0] is Action.ALLOW
    assert judge(new, Operation.DELETE, b"/etc/x")[0] is Action.HOLD
    assert judge(new, Operation.WRITE, b"/etc/y")[0] is Action.HOLD


def test_a_program_that_the_rule_names_is_named() -> None:
    text = HEAD + "rules:\n  - {id: out, on: connect, exe: /usr/bin/git, action: hold}\n"
    new = approve(text, Operation.CONNECT, "127.0.0.1:80", "out").text
    assert judge(new, Operation.CONNECT, HOST, b"/usr/bin/git")[0] is Action.ALLOW
    assert judge(new, Operation.CONNECT, HOST, b"/usr/bin/curl")[0] is Action.DENY


def test_each_rule_that_holds_it_gets_a_hole() -> None:
    text = HEAD + "rules:\n  - {id: a, on: read, action: hold}\n  - {id: b, on: read, paths: /w/**, action: hold}\n"
    new = approve(text, Operation.READ, "/w/x", "a").text
    assert judge(new, Operation.READ, b"/w/x")[0] is Action.ALLOW
    assert judge(new, Operation.READ, b"/w/y") == (Action.HOLD, "a")


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed pack that holds, and one that includes it."""
    inner = tmp_path / "asks.yaml"
    inner.write_text(
        HEAD.replace("policy: p", "policy: asks")
        + "rules:\n  - id: out\n    on: connect\n    except:\n      cidrs: 10.0.0.0/8\n"
        + "    action: hold\n    reason: 'a: b'\n"
        + "  - {id: other, on: read, paths: /secret, action: deny}\n"
    )
    (tmp_path / "outer.yaml").write_text("policy: outer\ninclude: asks\n")
    monkeypatch.setattr(load, "OPERATOR_DIRECTORY", tmp_path)
    return tmp_path


INCLUDES = ["asks", "[asks]", "\n  - asks # c", "{pack: asks, without: other}", "[{pack: asks}]", "\n  - pack: asks"]


@pytest.mark.parametrize("include", [*INCLUDES, "outer", "[{pack: outer, without: [other]}]"])
def test_a_rule_of_a_pack_is_replaced_by_a_copy_with_a_hole(pack: Path, include: str) -> None:
    text = f"policy: mine\ninclude: {include}\n# the end\n"
    new = approve(text, Operation.CONNECT, "127.0.0.1:80", "out").text
    assert "# the end" in new
    assert judge(new, Operation.CONNECT, HOST)[0] is Action.ALLOW
    assert judge(new, Operation.CONNECT, (HOST[0], 81)) == (Action.HOLD, "out")
    assert judge(new, Operation.READ, b"/secret") == judge(text, Operation.READ, b"/secret")


def test_an_installed_pack_gets_a_file_that_includes_it(pack: Path) -> None:
    name, text = stub("outer")
    new = approve(text, Operation.CONNECT, "127.0.0.1:80", "out", f"/nonexistent/{name}.yaml").text
    assert yaml.safe_load(new)["policy"] == "outer-local"
    assert judge(new, Operation.CONNECT, HOST)[0] is Action.ALLOW
    assert judge(new, Operation.CONNECT, (HOST[0], 81)) == (Action.HOLD, "out")


#: Two rules with one list of what they except: a hole in one is a hole in the other.
SHARED = (
    "rules:\n  - {{id: no, on: {on}, exe: /usr/bin/git, action: deny, except: &holes {{paths: [/w/y]}}}}\n"
    "  - {{id: out, on: read, action: hold, except: *holes}}\n"
)

BY_HAND = {
    "names of hosts": (
        "rules:\n  - {id: out, on: connect, hosts: [h.example:80], action: hold}\n",
        Operation.CONNECT, "127.0.0.1:80", "names `hosts`",
    ),
    "elsewhere": (
        "rules:\n  - {id: out, on: read, paths: /elsewhere, action: hold}\n",
        Operation.READ, "/w/x", "no rule `out` that holds this (any more)",
    ),
    "renamed": (
        "rules:\n  - {id: other, on: read, paths: /w/x, action: hold}\n",
        Operation.READ, "/w/x", "no rule `out` that holds this (any more)",
    ),
    "unseen": ("rules:\n  - {id: out, on: read, action: hold}\n", Operation.READ, "/w/\x1b", "a policy cannot hold"),
    "other operations": (
        SHARED.format(on="create"), Operation.READ, "/w/x", "it would also turn create of `/w/x` from allow to deny",
    ),
    "other programs": (
        SHARED.format(on="read"), Operation.READ, "/w/x", "it would allow this also where it is not held",
    ),
    "blocks of text": (
        "rules:\n  - id: out\n    on: read\n    action: |-\n      hold\n", Operation.READ, "/w/x", "is a block of text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_what_cannot_be_done_alone_is_said(name: str) -> None:
    rules, operation, object_, words = BY_HAND[name]
    with pytest.raises(ByHandError) as caught:
        approve(HEAD + rules, operation, object_, "out")
    assert words in str(caught.value)


def test_how_to_edit_it_by_hand_is_said() -> None:
    with pytest.raises(ByHandError) as caught:
        approve(HEAD + SHARED.format(on="read"), Operation.READ, "/w/x", "out")
    assert f"give rule `out` ({FILE}:5:10) the hole `except: {{paths: [/w/x]}}`" in str(caught.value)


BOTH = {
    "one rule": "  - {id: r, on: [read, write], paths: [/w/x], action: hold}\n",
    "a rule each": (
        "  - {id: reads, on: read, paths: [/w/x], action: hold}\n  - {id: r, on: write, paths: [/w/x], action: hold}\n"
    ),
    "the default": "  - {id: r, on: write, paths: [/w/x], action: hold}\n",
    "writing alone": "  - {id: r, on: write, paths: [/w/x], action: hold}\n",
}


@pytest.mark.parametrize("how", BOTH)
def test_what_is_opened_to_be_read_and_written_is_allowed_both(how: str) -> None:
    head = HEAD.replace("read: allow", "read: hold") if how == "the default" else HEAD
    held = Held(Operation.WRITE, "/w/x", "r", also_read=True)
    text = approve_always(f"{head}rules:\n{BOTH[how]}", FILE, VARIABLES, held, "ann", "2026-01-02").text
    assert [judge(text, operation, b"/w/x")[0] for operation in (Operation.READ, Operation.WRITE)] == [Action.ALLOW] * 2
    allow = load.load_text(text, FILE).rules[-1]
    assert (Operation.READ in allow.operations) is (how != "writing alone")


def test_what_was_written_alone_is_not_allowed_to_be_read() -> None:
    text = approve(f"{HEAD}rules:\n{BOTH['one rule']}", Operation.WRITE, "/w/x", "r").text
    assert judge(text, Operation.READ, b"/w/x")[0] is Action.HOLD
