# SPDX-License-Identifier: Apache-2.0
"""`docs/bypasses.md`: what claims to be covered names tests that run in that tier and show the effect."""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.vm.test_guests import SHORT

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "bypasses.md"
TIERS = ("lsm", "react")
STATES = ("covered", "partly", "open")
POSTURES = ("prevents", "stops")
#: Where a test shows the effect without a fence: `Fence.without`, or a remark if that will not do.
BASELINES = (".without(", "# without a fence")
#: Where there is no agentmon there is no such way: what is filled, or taken, is its own.
MONITORS_OWN = {
    "PID reuse", "Full process table", "Squatting the place of pins", "Speaking to the daemon as somebody else",
}  # fmt: skip


#: Tests that are listed beside others which show the effect, and why these do not.
NO_EFFECT = {
    "test_agreement.py": "the kernel says what the evaluator says, of thousands of paths",
    "test_agreement_moves.py": "the kernel says what the tables say, of random moves",
    "test_operations.py::test_looking_at_a_name_is_no_read": "what is allowed",
    "test_resolver.py": "in a network of its own: what its services hear is shown by the tests beside it",
    "test_other_resolvers.py": "shown by test_without_the_rule_they_hear_any_name",
    "test_implied.py": "what `policy check` says",
    "test_fence_survives.py": "shown by test_the_loop_would_leak_without_a_fence",
    "test_plan.py": "outside of the step, or before it is used up, the same call works",
    "test_attacks.py::test_a_root_agent_cannot_pass_for_another_process": "who is not fenced need not pass for one",
    "test_bypasses_processes.py::test_what_forks_through_the_release_of_its_session_is_in_none": "who reads after it",
    "test_tracking.py::test_a_reused_pid_inherits_nothing": "the one that has the PID then is not fenced, and reads",
}


@dataclass
class Entry:
    """One way around: per tier the state with what is said of it, and the tests."""

    title: str
    says: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)

    def state(self, tier: str) -> str:
        return re.split(r"\W", self.says[tier], maxsplit=1)[0]


def entries(text: str) -> list[Entry]:
    """The entries of the document. A line that begins like a field and is none is an error."""
    found: list[Entry] = []
    for line in re.sub(r"\n  +", " ", text).splitlines():
        if line.startswith("### "):
            found.append(Entry(line[4:]))
        elif found and line.startswith("- "):
            key, _, value = line[2:].partition(": ")
            entry = found[-1]
            if key == "test":
                entry.tests.append(value.strip("`"))
            else:
                assert key in TIERS, f"{entry.title}: unknown field `{key}`"
                assert key not in entry.says, f"{entry.title}: `{key}` twice"
                entry.says[key] = value
    return found


@functools.cache
def functions_in(file: str) -> dict[str, frozenset[str]]:
    """Test functions of a file by name, with the tiers in which they run. Nothing is imported or run."""
    module = ast.parse((ROOT / file).read_text())
    everywhere = frozenset(TIERS)
    whole = everywhere
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
            whole = _tiers(node.value) or whole
    return {
        node.name: functools.reduce(lambda a, d: a & (_tiers(d) or everywhere), node.decorator_list, whole)
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def _tiers(mark: ast.expr) -> frozenset[str]:
    """The arguments of `pytest.mark.tier(...)`, if this is it."""
    if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "tier":
        return frozenset(a.value for a in mark.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
    return frozenset()


@functools.cache
def baselines_in(file: str) -> frozenset[str]:
    """Test functions of a file that show the effect without a fence, by themselves or by a function that they use."""
    text = (ROOT / file).read_text()
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    found = {n for n, f in functions.items() if any(b in (ast.get_source_segment(text, f) or "") for b in BASELINES)}
    users = {
        name
        for name, function in functions.items()
        if any(isinstance(node, ast.Name) and node.id in found for node in ast.walk(function))
    }
    return frozenset(found | users)


def tiers_of(test: str) -> frozenset[str]:
    """Where a test, by its node id without parameters, runs."""
    file, _, name = test.partition("::")
    return functions_in(file)[name]


def problems(entry: Entry) -> list[str]:
    """What is wrong with an entry."""
    found = [f"says nothing of {tier}" for tier in TIERS if tier not in entry.says]
    runs: set[str] = set()
    shown: set[str] = set()
    for test in entry.tests:
        file, _, name = test.partition("::")
        if not (ROOT / file).is_file() or name not in functions_in(file):
            found.append(f"there is no test `{test}`")
        else:
            runs |= functions_in(file)[name]
            if name in baselines_in(file):
                shown |= functions_in(file)[name]
    for tier in entry.says:
        if entry.state(tier) not in STATES:
            found.append(f"`{entry.state(tier)}` is no state")
        elif entry.state(tier) == "covered":
            if not re.match(rf"covered, ({'|'.join(POSTURES)})(\.|$)", entry.says[tier]):
                found.append(f"says no posture for {tier}")
            if tier not in runs:
                found.append(f"claims to be covered in {tier}, and no test of it runs there")
            elif tier not in shown and entry.title not in MONITORS_OWN:
                found.append(
                    f"claims to be covered in {tier}, and no test of it there shows the effect without a fence"
                )
        elif ": " not in entry.says[tier]:
            found.append(f"does not say why it is {entry.state(tier)} in {tier}")
    return found


ENTRIES = entries(DOCUMENT.read_text())


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.title)
def test_an_entry_claims_what_is_tested(entry: Entry) -> None:
    assert problems(entry) == []


def test_each_way_is_listed_once() -> None:
    titles = [e.title for e in ENTRIES]
    assert len(titles) > 60
    assert sorted(set(titles)) == sorted(titles)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.state("lsm") != "open"], ids=lambda e: e.title)
def test_each_run_of_the_guests_shows_it(entry: Entry) -> None:
    """This host may not have the LSM tier: a claim about it is seen in the guests of every run, not before releases."""
    kernel = [t for t in entry.tests if t.startswith("tests/kernel/") and "lsm" in tiers_of(t)]
    guests = [guest for guest in SHORT.values() if guest.tier == "lsm"]
    names = {name.partition("[")[0] for guest in guests for name in guest.only}
    shown = [t for t in kernel if t in names or any(guest.runs(t) for guest in guests)]
    assert shown or not kernel, f"no short guest runs any of {kernel}: add one to WAYS in tests/vm/test_guests.py"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.title)
def test_each_test_of_a_way_shows_its_effect_first(entry: Entry) -> None:
    for test in entry.tests:
        file, _, name = test.partition("::")
        known = {Path(file).name, f"{Path(file).name}::{name}"} & NO_EFFECT.keys()
        if entry.title not in MONITORS_OWN and not known:
            assert name in baselines_in(file), f"`{test}` shows nothing without a fence, or say why in NO_EFFECT"


OPERATIONS = "tests/kernel/test_operations.py"
MOVES = "tests/kernel/test_agreement_moves.py"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- lsm: covered, prevents\n- react: open: no", "claims to be covered in lsm, and no test of it runs there"),
        ("- lsm: open: no", "says nothing of react"),
        ("- lsm: open\n- react: open: no", "does not say why it is open in lsm"),
        ("- lsm: closed\n- react: open: no", "`closed` is no state"),
        (
            "- lsm: open: no\n- react: open: no\n- test: `tests/kernel/test_operations.py::test_x`",
            f"there is no test `{OPERATIONS}::test_x`",
        ),
        (
            f"- lsm: open: no\n- react: covered, stops\n- test: `{MOVES}::test_random_moves`",
            "claims to be covered in react, and no test of it runs there",
        ),
        (
            f"- lsm: covered, prevents\n- react: open: no\n- test: `{OPERATIONS}::test_a_default_can_deny`",
            "claims to be covered in lsm, and no test of it there shows the effect without a fence",
        ),
        (
            f"- lsm: covered\n- react: open: no\n- test: `{OPERATIONS}::test_a_denied_read_gives_nothing`",
            "says no posture for lsm",
        ),
    ],
)
def test_what_is_wrong_is_found(text: str, problem: str) -> None:
    assert [p for e in entries(f"### Way\nText.\n{text}\n") for p in problems(e)] == [problem]
