# SPDX-License-Identifier: Apache-2.0
"""The behaviour tests of ``tests/kernel`` on the supported kernels, most of them in the LSM tier.

Each guest is booted once; each of its tests is one test here.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.vm import harness, image


@dataclass(frozen=True, slots=True)
class Guest:
    """How a kernel is booted, and what runs there: the tests whose names begin so, or all, without some files."""

    kernel: str
    cmdline: str = ""
    tier: str = "lsm"
    only: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def runs(self, name: str) -> bool:
        """Whether a test, by its node id, runs there."""
        return name.startswith(self.only or ("",)) and not name.startswith(self.left_out)


def _files(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/kernel/test_{name}.py" for name in names)


X32 = "tests/kernel/test_operations.py::test_no_other_system_call_table_reads_it[open_x32]"
# Preemption is what breaks scratch memory; Debian's 7.2 preempts as it comes.
PREEMPT = "preempt=full"
OTHER = {
    # where BPF is not among the security modules: docs/design/0006
    "6.12-by-function": Guest("6.12", "lsm=landlock,yama preempt=voluntary", only=_files("doctor", "exec", "tracking")),
    "x32": Guest("6.12-generic", "syscall.x32=y", only=(X32,)),
    "x32-react": Guest("6.12-generic", "syscall.x32=y", "react", (X32,)),
}
#: What a kernel does may differ from the next one's: all of it on the oldest, whose verifier is the strictest.
HOOKS = _files(
    "arguments", "bypasses_files", "bypasses_network", "deputies", "exec", "guarded", "limits", "names", "network",
    "operations", "parking", "plan", "sockets", "stress", "tracking",
)  # fmt: skip
#: And on the newest the calls themselves: who is followed, each operation, each kind of socket.
CALLS = _files("arguments", "exec", "network", "operations", "sockets", "stress", "tracking")
#: What docs/bypasses.md claims for the LSM tier by tests of other files (tests/unit/test_bypasses.py has it so).
WAYS = (
    "tests/kernel/test_attacks.py::test_a_detached_copy_of_a_mount_has_no_paths",
    "tests/kernel/test_attacks.py::test_a_file_system_that_is_mounted_nowhere_has_no_paths",
    "tests/kernel/test_attacks.py::test_a_place_for_pins_that_somebody_else_made_is_not_used",
    "tests/kernel/test_attacks.py::test_a_root_agent_cannot_pass_for_another_process",
    "tests/kernel/test_attacks.py::test_udp_lite_has_no_connect_hook",
    "tests/kernel/test_bypasses_terminal.py::test_no_key_of_the_user_is_read[native]",
    "tests/kernel/test_bypasses_terminal.py::test_nothing_is_typed_into_a_terminal[native]",
    "tests/kernel/test_bypasses_terminal.py::test_typing_into_a_terminal_is_ptrace",
    "tests/kernel/test_conditions.py::test_no_push_unless_the_tests_passed",
    "tests/kernel/test_conditions.py::test_who_starts_a_program_is_its_ancestor",
    "tests/kernel/test_enroll.py::test_what_is_held_already_is_refused_until_accepted",
    "tests/kernel/test_other_resolvers.py::test_another_name_for_the_socket_leads_nowhere",
    "tests/kernel/test_resolver.py::test_a_name_server_of_the_agents_own_is_not_reached",
    "tests/kernel/test_run.py::test_a_fenced_process_may_not_release_or_enrol",
    "tests/kernel/test_run.py::test_descriptors_that_the_policy_denies_are_closed",
    "tests/kernel/test_told.py::test_root_in_a_session_cannot_pass_for_another_session",
)
#: The daemon and the command line are the same in both tiers, and are tested natively: here it is that they meet.
MEET = (
    *WAYS,
    *_files("agreement", "bypasses_processes", "names", "parking"),
    "tests/kernel/test_enroll.py::test_a_running_tree_is_fenced_and_released",
    "tests/kernel/test_hold.py::test_a_connection_waits_and_goes_on_once_approved",
    "tests/kernel/test_hold.py::test_what_is_held_when_its_session_is_released_was_not_approved",
    "tests/kernel/test_hold_arguments.py::test_a_program_is_held_by_its_arguments",
    "tests/kernel/test_hold_arguments.py::test_what_arguments_forbid_is_forbidden_whatever_else_is_held",
    "tests/kernel/test_hold_arguments.py::test_who_is_made_to_go_on_before_there_is_an_answer_is_killed[a flood of it]",
    "tests/kernel/test_hold_files.py::test_an_action_on_a_file_waits_and_goes_on[exec]",
    "tests/kernel/test_hold_files.py::test_an_action_on_a_file_waits_and_goes_on[overwrite]",
    "tests/kernel/test_hold_files.py::test_an_action_on_a_file_waits_and_goes_on[rename]",
    "tests/kernel/test_hold_files.py::test_an_action_on_a_file_waits_and_goes_on[vfork]",
    "tests/kernel/test_hold_files.py::test_what_changed_while_held_is_asked_again[linked]",
    "tests/kernel/test_hold_files.py::test_what_changed_while_held_is_asked_again[replaced]",
    "tests/kernel/test_hold_files.py::test_what_changed_while_held_is_asked_again[rewritten]",
    "tests/kernel/test_hold_files.py::test_what_is_denied_has_not_happened",
    "tests/kernel/test_missing_programs.py::test_a_missing_program_makes_its_operations_blind[lsm-open_check]",
    "tests/kernel/test_missing_programs.py::test_every_program_is_known_here",
    "tests/kernel/test_plan_run.py::test_a_run_follows_its_plan_and_is_told_why_not",
    "tests/kernel/test_resolver.py::test_an_address_is_denied_until_its_name_was_asked_for",
    "tests/kernel/test_run.py::test_a_denied_command_is_126_and_names_the_rule",
    "tests/kernel/test_run.py::test_a_denied_connect_is_eperm",
    "tests/kernel/test_run.py::test_a_forbidden_read_is_stopped_and_summed_up",
    "tests/kernel/test_run.py::test_an_ordinary_user_runs_a_command_without_new_privileges",
    "tests/kernel/test_told.py::test_an_agent_sees_its_own_session_only",
)
OTHER_TIER = "tests/kernel/test_doctor.py::test_the_other_tier_loads_as_well"
#: In each run of the tests. An emulated guest is ten times slower than the host: the longest first.
SHORT = {
    "6.12": Guest("6.12", PREEMPT, only=MEET),
    "6.1": Guest("6.1", PREEMPT, only=(*HOOKS, OTHER_TIER)),
    "7.2": Guest("7.2", only=CALLS),
    **OTHER,
}
# With AGENTMON_GUESTS=all, before a release: all of it on each kernel, in hours. But what needs more packages.
NATIVE = _files("fingerprint", "plan_examples")
WAITING = (
    "hold",
    "hold_waiting",
    "hold_siblings",
    "hold_threads",
    "hold_full",
    "hold_ends",
    "hold_answers",
    "hold_units",
)
AGENTS = _files("run", "plan_hook", "enroll", "told", "top", *WAITING, "approvals", "parking", "fence_survives")
DAEMONS = _files("missing_programs", "resolver", "other_resolvers", "reload_daemon")
REACT = _files("exec", *WAITING, "hold_arguments", "hold_exec", "hold_open", "network", "operations", "tracking")
ALL = {
    "6.12-agents": Guest("6.12", PREEMPT, only=AGENTS),
    "6.1": Guest("6.1", PREEMPT, left_out=AGENTS + DAEMONS + NATIVE),
    "6.12-daemons": Guest("6.12", PREEMPT, only=DAEMONS),
    "7.2": Guest("7.2", left_out=AGENTS + DAEMONS + NATIVE),
    "6.12": Guest("6.12", PREEMPT, left_out=AGENTS + DAEMONS + NATIVE),
    "6.1-react": Guest("6.1", f"lsm=landlock,yama {PREEMPT}", "react", REACT),
    "7.2-react": Guest("7.2", "lsm=landlock,yama", "react", REACT),
    **OTHER,
}
GUESTS = {"": SHORT, "short": SHORT, "all": ALL}[os.environ.get("AGENTMON_GUESTS", "")]
#: What a guest has, and other hosts may lack: here it is no reason to skip. Beginnings of names, and where.
SHOWN = {
    X32: ("x32", "x32-react"),
    "tests/kernel/test_operations.py::test_no_other_system_call_table_reads_it[open_int80]": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_network.py::test_a_socket_that_no_rule_can_judge_is_denied[": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_attacks.py::test_udp_lite_has_no_connect_hook[": ("6.1", "6.12"),
    "tests/kernel/test_bypasses_files.py::test_a_file_named_exactly_stays_denied_when_": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_bypasses_files.py::test_no_ordinary_user_mounts_a_denied_directory_": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_bypasses_files.py::test_no_program_reads_what_is_denied[": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_bypasses_files.py::test_no_raw_device_is_read[": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_arguments.py::test_arguments_rewritten_during_the_call_": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_attacks.py::test_a_file_system_that_is_mounted_nowhere_": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_guarded.py::test_no_module_is_loaded[": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_bypasses_network.py::": ("6.12", "7.2"),
    "tests/kernel/test_bypasses_network.py::test_a_ring_opens_": ("6.1",),
    "tests/kernel/test_bypasses_network.py::test_a_ring_reaches_": ("6.1",),
    "tests/kernel/test_bypasses_network.py::test_a_ring_sends_": ("6.1",),
    "tests/kernel/test_operations.py::test_a_ring_": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_plan.py::test_a_ring_": ("6.1", "6.12", "7.2"),
    "tests/kernel/test_hold_ends.py::test_a_ring_has_done_nothing_": ("6.12-agents",),
}
OPTIONAL = {"7.2"}  # Debian's sid moves on
TIMEOUT_SECONDS = 2700.0 if GUESTS is SHORT else 6 * 3600.0
# Natively 34 random instants of each kind; under emulation each takes ten seconds.
ENVIRONMENT = f"AGENTMON_INSTANTS={os.environ.get('AGENTMON_INSTANTS', '4')}"
INNER = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One test of a guest: ``passed``, ``failed``, ``error`` or ``skipped``, with how long it took and its report."""

    word: str
    seconds: float
    text: str = ""


@functools.cache
def names(tier: str) -> list[str]:
    """The node ids of the behaviour tests, as a guest in that tier would collect them."""
    environment = os.environ | {"AGENTMON_TEST_TIER": tier, "AGENTMON_REQUIRE": ""}
    words = [sys.executable, *INNER, "--collect-only", "tests/kernel"]
    done = subprocess.run(words, cwd=image.CHECKOUT, env=environment, check=False, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("tests/kernel/") and "::" in line]
    return found or [f"tests/kernel: nothing collected\n{done.stdout[-2000:]}"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each kernel with each behaviour test, kernel by kernel."""
    if "name" in metafunc.fixturenames:
        pairs = [(k, n) for k, guest in GUESTS.items() for n in names(guest.tier) if guest.runs(n)]
        metafunc.parametrize("kernel,name", pairs)


def boot(kernel: str) -> dict[str, Outcome] | str:
    """Boots a kernel and runs all behaviour tests there: outcome by junit name, or why there is no such kernel.

    Raises VmError if the guest died.
    """
    guest = GUESTS[kernel]
    words = [*INNER, "--junit-xml=/mnt/out/junit.xml", *(guest.only or ["tests/kernel"])]
    words += [f"--ignore={left}" for left in guest.left_out]
    command = f"AGENTMON_TEST_TIER={guest.tier} {ENVIRONMENT} python3 {shlex.join(words)}"
    try:
        image.kernel(guest.kernel)
    except image.VmError as error:
        prefix = "not required: " if kernel in OPTIONAL else ""
        return f"{prefix}{error}"
    with harness.run(guest.kernel, command, cmdline=guest.cmdline, timeout_seconds=TIMEOUT_SECONDS) as result:
        report = result.out / "junit.xml"
        if not report.exists():
            raise image.VmError(f"guest {kernel} left no report:\n{result.output[-4000:]}\n{result.console[-4000:]}")
        return _parse(report.read_text())


def took(results: dict[str, Outcome]) -> str:
    """How long a guest's tests took, in seconds, and which files most of it."""
    files = Counter[str]()
    for name, outcome in results.items():
        files[name.split(".")[2].removeprefix("test_")] += round(outcome.seconds)
    slowest = ", ".join(f"{file} {seconds}" for file, seconds in files.most_common(8))
    return f"{len(results)} tests in {files.total()} s: {slowest}"


def _parse(junit: str) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for case in ET.fromstring(junit).iter("testcase"):
        seconds = float(case.get("time", 0))
        outcome = Outcome("passed", seconds)
        for child in case:
            if child.tag in {"failure", "error", "skipped"}:
                word = {"failure": "failed"}.get(child.tag, child.tag)
                outcome = Outcome(word, seconds, f"{child.get('message', '')}\n{child.text or ''}")
        found[f"{case.get('classname')}.{case.get('name')}"] = outcome
    return found


def _junit_name(node: str) -> str:
    """The name under which junit reports a node id: ``a/b.py::C::t[x]`` is ``a.b.C.t[x]``."""
    path, _, rest = node.partition("::")
    base, bracket, parameters = rest.partition("[")
    return f"{path.removesuffix('.py').replace('/', '.')}.{base.replace('::', '.')}{bracket}{parameters}"


def test_in_guest(booted: Callable[[str], dict[str, Outcome] | str], kernel: str, name: str) -> None:
    """One behaviour test on one kernel."""
    try:
        results = booted(kernel)
    except image.VmError as error:
        pytest.fail(str(error), pytrace=False)
    if isinstance(results, str):
        pytest.skip(results)
    outcome = results.get(_junit_name(name))
    if outcome is None:
        pytest.fail(f"the guest did not run `{name}`: do its parameters depend on the host?", pytrace=False)
    if outcome.word == "skipped":
        if any(name.startswith(begin) and kernel in where for begin, where in SHOWN.items()):
            pytest.fail(f"to be shown in this guest, but skipped: {outcome.text.strip()}", pytrace=False)
        pytest.skip(outcome.text.strip())
    if outcome.word != "passed":
        pytest.fail(outcome.text, pytrace=False)
