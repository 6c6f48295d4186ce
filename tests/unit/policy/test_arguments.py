# SPDX-License-Identifier: Apache-2.0
"""Patterns over the arguments of a program: what they mean, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.cli.main import main
from agentmon.errors import PolicyError
from agentmon.policy.bind import bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.load import load_text
from agentmon.policy.situation import Situation
from agentmon.policy.walk import argument_facts
from tests.support.policies import variables


def text_of(*patterns: Sequence[str]) -> str:
    rules = [
        {"id": f"r{i}", "on": "exec", "exe": "/opt/git", "argv": list(words), "action": "deny"}
        for i, words in enumerate(patterns)
    ]
    return json.dumps({"policy": "p", "default": {"exec": "allow"}, "rules": rules})


def meant(words: Sequence[str], arguments: Sequence[str]) -> bool:
    """The same by trying: `**` is any number of arguments, another word one."""
    if not words:
        return not arguments
    if words[0] == "**":
        return any(meant(words[1:], arguments[n:]) for n in range(len(arguments) + 1))
    return bool(arguments) and fnmatchcase(arguments[0], words[0]) and meant(words[1:], arguments[1:])


_WORDS = st.lists(
    st.sampled_from(["**", "*", "a", "a*", "*/b", "?", "[!a]", "[!/]*", "[.-9]*", "-x", "", "a/b"]), max_size=4
)
_ARGUMENTS = st.lists(st.sampled_from(["a", "a/b", "/b", "-x", "", "ab", "/", "é"]), max_size=5)


@settings(max_examples=300, deadline=None)
@given(st.lists(_WORDS, min_size=1, max_size=4, unique_by=tuple), _ARGUMENTS, st.booleans())
def test_the_tables_and_the_evaluator_mean_the_same(
    patterns: list[list[str]], arguments: list[str], split: bool
) -> None:
    bound = bind_policy(load_text(text_of(*patterns), "p.yaml"), variables())
    raw = tuple(a.encode() for a in arguments)
    facts = Evaluator(bound).facts(Situation(arguments=raw))
    assert argument_facts(compile_policy(bound, split=split), raw) == facts
    if "é" not in arguments:  # `?` is one byte here
        told = [bool(facts & rule.need) for rule in bound.rules]
        assert told == [meant(words, arguments) for words in patterns]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("on: read, paths: /x, argv: [a]", "`argv` is of a program that starts, it does not apply to `read`"),
        ("on: exec, argv: ['a**']", "`**` stands alone, for any number of arguments; within one, `*` is any text"),
        ("on: exec, argv: ['{a,b**}']", "`**` stands alone"),
        ("on: exec, argv: ['\\\\**']", "`**` stands alone"),
        ("on: exec, argv: ['[']", "`[` is never closed"),
        ("on: exec, argv: ['{nope}']", "unknown variable `{nope}`"),
        ("on: [exec, read], argv: [a]", "does not apply to `read`"),
        ("on: exec, except: {argv: ['**x']}", "`**` stands alone"),
        (f"on: exec, argv: [{', '.join('a' * 65)}]", "65 arguments, 64 fit; end in `**`"),
    ],
)
def test_what_is_refused(rule: str, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_text(f"policy: p\nrules: [{{id: x, action: deny, {rule}}}]\n", "p.yaml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.yaml:2:")


def test_an_empty_argv_says_how_to_ask_for_no_arguments() -> None:
    with pytest.raises(
        PolicyError, match="`argv` is empty; leave it out for whatever arguments, or write `\\[\\]` for"
    ):
        load_text("policy: p\nrules:\n  - id: x\n    on: exec\n    action: deny\n    argv:\n", "p.yaml")


def test_a_star_itself_may_stand_beside_a_wild_one() -> None:
    bound = bind_policy(load_text(text_of(["*\\**"]), "p.yaml"), variables())
    told = [bool(Evaluator(bound).facts(Situation(arguments=(word,)))) for word in (b"a*b", b"ab")]
    assert told == [True, False]


def test_too_many_alternatives_are_refused() -> None:
    words = ["{a,b,c,d,e,f,g,h,i,j}"] * 4
    policy = load_text(text_of(words), "p.yaml")
    with pytest.raises(PolicyError, match="`argv` has more than 1000 alternatives; write several rules"):
        bind_policy(policy, variables())


def test_arguments_that_need_too_many_states_name_their_rules() -> None:
    words = ["**", "a", *["*"] * 20, "**"]
    policy = load_text(text_of(words, ["**", "b", *["*"] * 20, "x"]), "p.yaml")
    with pytest.raises(PolicyError, match=r"the `argv` of `r\d`.* need more than \d+ states; begin them with an arg"):
        compile_policy(bind_policy(policy, variables()))


CASES = """\
cases:
  - {op: exec, object: /opt/git, argv: [push, origin], expect: deny, rule: r0}
  - {op: exec, object: /opt/git, argv: [pull], expect: allow}
  - {op: exec, object: /opt/git, expect: allow}
"""


def test_cases_say_the_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.yaml").write_text(text_of(["push", "**"]))
    (tmp_path / "p.test.yaml").write_text(CASES)
    assert main(["policy", "test", str(tmp_path / "p.yaml")]) == 0
    (tmp_path / "p.test.yaml").write_text(CASES.replace("[pull]", "[push]"))
    assert main(["policy", "test", str(tmp_path / "p.yaml")]) == 2
    assert "p.test.yaml:3:5" in capsys.readouterr().out


def test_explain_says_which_arguments_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(text_of(["push", "**"]))
    assert main(["policy", "explain", "exec", "/opt/git", "-p", str(file), "--argv", "push"]) == 0
    assert 'with ["push", "**"]' in capsys.readouterr().out
    assert main(["policy", "explain", "exec", "/opt/git", "-p", str(file)]) == 0
    assert "not applied: r0 (deny, " in (said := capsys.readouterr().out)
    assert 'needs argv ["push", "**"]' in said


def test_show_and_diff_tell_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(text_of(["push", "**"]))
    new.write_text(text_of([]))
    assert main(["policy", "show", str(new)]) == 0
    assert "argv: []" in capsys.readouterr().out
    assert main(["policy", "diff", str(old), str(new)]) in (0, 1, 2)
    said = capsys.readouterr().out
    assert "(no arguments)" in said
    assert "arguments `push" in said


def test_diff_knows_which_patterns_are_met_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(text_of(["push", "**"]))
    new.write_text(text_of(["{push,send-pack}", "**"]))
    main(["policy", "diff", str(old), str(new)])
    rows = [line for line in capsys.readouterr().out.splitlines() if "/opt/git" in line]
    assert len(rows) == 1
    assert rows[0].split()[-4:] == ["allow", "deny", "default", "r0"]
