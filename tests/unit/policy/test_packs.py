# SPDX-License-Identifier: Apache-2.0
"""The shipped packs say what their cases say, and never fire in ordinary work."""

from __future__ import annotations

import os
import sys

import pytest

from agentmon.model.operations import Operation
from agentmon.policy.bind import bind_policy
from agentmon.policy.cases import cases_file, run_cases
from agentmon.policy.check import warnings
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.load import load, packs, shipped_directory
from agentmon.policy.rules import Variables

SHIPPED = packs([shipped_directory()])
TO_INCLUDE = {"secrets", "persistence", "escape"}  # they only forbid: what is not said stays closed
READ, WRITE, CREATE, EXEC = Operation.READ, Operation.WRITE, Operation.CREATE, Operation.EXEC


@pytest.mark.parametrize("name", SHIPPED)
def test_the_cases_beside_a_pack_pass(name: str) -> None:
    results = run_cases(cases_file(str(SHIPPED[name])))
    assert results
    assert [f"{r.place}: {r.failure}" for r in results if r.failure] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_pack_has_no_warnings_and_a_reason_for_each_rule(name: str) -> None:
    policy = load(name)
    bound = bind_policy(policy, Variables.of(workspace="/home/me/w", home="/home/me", user="me"))
    expected = ("write this file", *(["no default for"] if name in TO_INCLUDE else []))
    assert [w for w in warnings(bound, compile_policy(bound)) if not any(e in w for e in expected)] == []
    assert [r.id for r in policy.rules if not r.reason] == []


@pytest.mark.parametrize(
    "workspace,home", [("/home/me/w", "/home/me"), ("/root/w", "/root"), ("/tmp/w", "/root"), ("/root", "/root")]
)
def test_the_fence_holds_wherever_the_workspace_is(workspace: str, home: str) -> None:
    evaluator = Evaluator(load("coding-agent"), Variables.of(workspace=workspace, home=home, user="me"))

    def says(operation: Operation, path: str) -> bool:
        return not evaluator.path(operation, os.fsencode(path)).action.blocks

    assert says(WRITE, f"{workspace}/a.py")
    assert says(EXEC, f"{workspace}/build/a.out")
    assert not says(CREATE, f"{workspace}/.git/hooks/post-commit")
    assert not says(READ, f"{home}/.ssh/id_rsa")
    assert not says(WRITE, f"{home}/.bashrc")
    assert not says(READ, "/etc/shadow")
    assert not says(READ, "/home/other/x")


@pytest.mark.parametrize("name", sorted(TO_INCLUDE))
def test_a_pack_to_include_only_forbids(name: str) -> None:
    policy = load(name)
    assert not policy.defaults
    assert all(r.action.blocks for r in policy.rules)


@pytest.mark.parametrize("workspace", ["/home/me/w", "/tmp/w", "/home/me"])
def test_a_read_only_agent_changes_nothing_wherever_the_workspace_is(workspace: str) -> None:
    evaluator = Evaluator(load("read-only"), Variables.of(workspace=workspace, home="/home/me", user="me"))
    for operation in (WRITE, CREATE, Operation.DELETE, Operation.RENAME, Operation.LINK, Operation.ATTR):
        assert evaluator.path(operation, os.fsencode(f"{workspace}/a.py")).action.blocks
    assert not evaluator.path(READ, os.fsencode(f"{workspace}/a.py")).action.blocks


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - TO_INCLUDE - {"base"}))
def test_every_whole_policy_keeps_what_coding_agent_forbids(name: str) -> None:
    """The packs differ in what they add: none leaves out what keeps secrets in, and the agent inside."""
    forbidding = {r.id for r in load("coding-agent").rules if r.action.blocks} - {"names"}
    assert forbidding <= {r.id for r in load(name).rules}


def test_no_loaded_module_of_this_python_would_be_refused() -> None:
    """Importing is what every test run does: reading modules, and writing byte code in the workspace and caches."""
    home = os.path.realpath(os.path.expanduser("~"))
    evaluator = Evaluator(load("coding-agent"), Variables.of(workspace=os.path.realpath("."), home=home, user="me"))
    files = {os.path.realpath(f) for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    files |= {"/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/passwd", "/proc/self/status", "/sys/fs/cgroup/cpu.max"}
    refused = [f for f in files if evaluator.path(READ, os.fsencode(f)).action.blocks]
    assert refused == []
