# SPDX-License-Identifier: Apache-2.0
"""Another policy for a live session: at each moment one of the two, whole, whatever its processes do meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.events import Decision
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.policy.hosts import PolicyNames
from agentmon.policy.load import load_text
from agentmon.policy.rules import Policy
from tests.kernel.test_conditions import NOBODY, SECRET, Program, act_as, read_once, secret
from tests.kernel.test_names import POLICY as NAMES
from tests.kernel.test_names import connect, grant, packed
from tests.support.fence import ALLOW_ALL, PATIENCE_S, Child, Fence, Session, attempt, blocked, in_child

SWAPS = 100

__all__ = ["secret"]  # a fixture

#: Run by two programs, `one` and `two`. What exe bits mean differs between the policies, what each may do does not.
AGENT = """
import errno, json, os, signal, socket, sys, time
me, ground, tier = sys.argv[1:]
wrong, seen, rounds = [], {"3": set(), "4": set()}, 0
other = {"one": "two", "two": "one"}[me]
mine, theirs = {"one": ("127.1.1.1", "127.2.2.2"), "two": ("127.2.2.2", "127.1.1.1")}[me]

def attempt(function):
    try:
        function()
    except OSError as error:
        return error.errno
    return 0

def connect(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return attempt(lambda: sock.connect((address, 9)))

def read(name):
    with open(f"{ground}/{name}") as file:
        return file.read()

def child(function):
    pid = os.fork()
    if not pid:
        try:
            os._exit(attempt(function))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def expect(what, got, *wanted):
    if got not in wanted and len(wrong) < 20:
        wrong.append([rounds, what, got])

refused = errno.EPERM if tier == "LSM" else -signal.SIGKILL
print("begun", flush=True)
while not os.path.exists(f"{ground}/stop-{me}"):
    rounds += 1
    for _ in range(10):
        expect("mine", connect(mine), errno.EPERM)
        expect("theirs", connect(theirs), 0)
        expect("both", attempt(lambda: read("both")), 0)
        for last in seen:
            got = connect(f"127.{last}.{last}.{last}")
            expect(last, got, 0, errno.EPERM)
            seen[last].add(got)
    expect("neither", child(lambda: read("neither")), refused)
    expect("for the other", child(lambda: read(f"for-{other}")), refused)
    expect("for me", child(lambda: read(f"for-{me}")), 0)
    expect("exec of neither", child(lambda: os.execv(f"{ground}/no", ["no"])), refused)
    # another program: what it may do is its own, from its first instruction on
    expect("as cat", child(lambda: os.execv(f"{ground}/cat", ["cat", f"{ground}/for-cat"])), 0)
    expect("not as cat", child(lambda: read("for-cat")), refused)
print(json.dumps({"wrong": wrong, "rounds": rounds, "seen": {k: sorted(v) for k, v in seen.items()}}), flush=True)
"""


def policies(ground: Path) -> tuple[Policy, Policy]:
    """Two that agree on what the agent tests, in other words: rules and exe bits have other numbers."""
    g = ground
    one, two, cat = (f"exe: ['{g}/{name}']" for name in ("one", "two", "cat"))
    common = [
        f"{{id: one-1, on: connect, cidrs: [127.1.1.1], {one}, action: deny}}",
        f"{{id: two-2, on: connect, cidrs: [127.2.2.2], {two}, action: deny}}",
        f"{{id: for-one, on: read, paths: ['{g}/for-one'], except: {{{one}}}, action: deny}}",
        f"{{id: for-two, on: read, paths: ['{g}/for-two'], except: {{{two}}}, action: deny}}",
        f"{{id: for-cat, on: read, paths: ['{g}/for-cat'], except: {{{cat}}}, action: deny}}",
        f"{{id: neither, on: read, paths: ['{g}/neither'], action: deny}}",
        f"{{id: no, on: exec, paths: ['{g}/no'], action: deny}}",
    ]
    texts = [*common, "{id: a, on: connect, cidrs: [127.3.3.3], action: deny}"]
    other = [
        f"{{id: more, on: connect, cidrs: [127.9.9.9], exe: ['/nonexistent/**', '{g}/o*x'], action: deny}}",
        "{id: b, on: connect, cidrs: [127.4.4.4], action: deny}",
        *reversed(common),
    ]
    found = [
        load_text("policy: p\n" + ALLOW_ALL + "rules:\n" + "".join(f"  - {rule}\n" for rule in rules), "p.yaml")
        for rules in (texts, other)
    ]
    return found[0], found[1]


@pytest.fixture
def busy(ground: Path) -> Path:
    """The ground that the agent works on."""
    python = os.path.realpath(sys.executable)
    for name in ("one", "two"):
        shutil.copy(python, ground / name)
    shutil.copy(shutil.which("cat") or "/bin/cat", ground / "cat")
    shutil.copy("/bin/true", ground / "no")
    for name in ("both", "neither", "for-one", "for-two", "for-cat"):
        (ground / name).write_text("text\n")
    (ground / "agent.py").write_text(AGENT)
    return ground


def start(session: Session, ground: Path, name: str, tier: Tier) -> Child:
    def body() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.environ["PYTHONHOME"] = sys.base_prefix
        words = [name, "-I", "-S", str(ground / "agent.py"), name, str(ground), tier.name]
        words.remove("-I")  # it would ignore PYTHONHOME
        os.dup2(int(os.environ["RESULT"]), 1)
        os.dup2(null, 2)
        os.execv(ground / name, words)

    read, write = os.pipe()
    os.set_inheritable(write, True)
    os.environ["RESULT"] = str(write)
    child = session.start(body)
    os.close(write)
    os.close(child.result)
    child.result, child.is_program = read, True
    return child


def test_a_busy_agent_is_under_one_policy_or_the_other(fence: Fence, tier: Tier, busy: Path) -> None:
    first, second = policies(busy)
    with fence.session(first) as session:
        children = {name: start(session, busy, name, tier) for name in ("one", "two")}
        for child in children.values():
            assert os.read(child.result, 5) == b"begun"
        lost = fence.monitor.counters()["ring_lost"]
        slots = len(session.monitor.tables.slots())
        longest = 0.0
        swaps = SWAPS if tier is Tier.REACT else SWAPS // 4  # emulation is slow
        for number in range(swaps):
            began = time.monotonic()
            session.swap(first if number % 2 else second)
            longest = max(longest, time.monotonic() - began)
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                session.drain()
        assert len(session.monitor.tables.slots()) == slots
        for name in children:
            (busy / f"stop-{name}").touch()
        told = [session.finish(child, PATIENCE_S * 2) for child in children.values()]
        found = [json.loads(outcome.value.splitlines()[-1]) for outcome in told]
        assert [f["wrong"] for f in found] == [[], []]
        assert all(f["seen"] == {"3": [0, errno.EPERM], "4": [0, errno.EPERM]} for f in found), found
        decisions = [d for outcome in told for d in outcome.decisions]
        print(f"{swaps} swaps, the longest {longest * 1000:.1f} ms; rounds {[f['rounds'] for f in found]};", end=" ")
        print(f"{len(decisions)} decisions of {len({d.generation for d in decisions})} generations", end=" ")
        print(f"records lost: {fence.monitor.counters()['ring_lost'] - lost}")
        assert len({d.generation for d in decisions}) > swaps // 2
        for decision in decisions:
            assert_judged(session, decision)


def assert_judged(session: Session, decision: Decision) -> None:
    """The verdict is that of the policy of this generation, for this program's tags under that policy."""
    if decision.reason > Reason.DEFAULT or decision.flags:
        return
    evaluator = session.evaluators[decision.generation]
    object_ = decision.object
    if isinstance(object_, bytes):
        verdict = evaluator.path_by_tags(decision.operation, object_, decision.exe_tags)
    elif decision.operation is Operation.CONNECT:
        verdict = evaluator.net_by_tags(decision.operation, object_.packed, object_.port, decision.exe_tags)
    else:
        return
    assert (verdict.action, verdict.rule) == (decision.verdict, decision.rule), decision


def test_a_program_that_ran_before_keeps_its_rules(fence: Fence, tier: Tier, busy: Path) -> None:
    """Threads, a process that was enrolled while it ran, and one whose file is gone."""
    first, second = policies(busy)
    program = (
        "import socket, sys, threading\n"
        "def attempt(a):\n"
        " with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
        "  try: s.connect((a, 9))\n"
        "  except OSError as e: return e.errno\n"
        "  return 0\n"
        "print('begun', flush=True)\n"
        "for line in sys.stdin:\n"
        " found = []\n"
        " ask = lambda: found.append((attempt('127.1.1.1'), attempt('127.2.2.2')))\n"
        " ts = [threading.Thread(target=ask) for _ in range(8)]\n"
        " [t.start() for t in ts]; [t.join() for t in ts]\n"
        " print(sorted(set(found)), flush=True)\n"
    )
    import subprocess

    wanted = f"[({errno.EPERM}, 0)]\n"
    with (
        fence.session(first) as session,
        subprocess.Popen(
            [busy / "one", "-S", "-u", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PYTHONHOME": sys.base_prefix},
        ) as agent,
    ):  # fmt: skip
        assert agent.stdin is not None
        assert agent.stdout is not None
        assert agent.stdout.readline() == "begun\n"
        session.enroll(agent.pid)
        for policy in (None, second, first, second):
            if policy is not None:
                session.swap(policy)
            agent.stdin.write("go\n")
            agent.stdin.flush()
            assert agent.stdout.readline() == wanted
            if policy is first:
                (busy / "one").unlink()
        agent.stdin.close()


def test_what_was_allowed_before_is_judged_anew(fence: Fence, tier: Tier, ground: Path) -> None:
    """Neither the cache of allowed decisions nor that of reported objects outlives its policy."""
    (ground / "file").write_text("x")
    free = load_text(f"policy: p\n{ALLOW_ALL}rules: []\n", "p.yaml")
    closed = load_text(
        f"policy: p\n{ALLOW_ALL}rules: [{{id: no, on: read, paths: ['{ground}/file'], action: deny}}]\n", "p.yaml"
    )
    read, write = os.pipe()

    def body() -> list[tuple[int, int]]:
        found = []
        while os.read(read, 1) == b"!":
            found.append(in_child((ground / "file").read_text))
            (ground / "done").touch()
        return found

    with fence.session(free) as session:
        child = session.start(body)
        for policy in (None, closed, free, closed):
            if policy is not None:
                session.swap(policy)
            os.write(write, b"!")
            deadline = time.monotonic() + PATIENCE_S
            while not (ground / "done").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            (ground / "done").unlink()
        os.write(write, b".")
        outcome = session.finish(child)
    assert outcome.value == [(0, 0), blocked(tier), (0, 0), blocked(tier)]
    path = os.fsencode(ground / "file")
    told = [(d.generation, d.verdict) for d in outcome.decisions if d.object == path and d.operation is Operation.READ]
    assert [verdict for _, verdict in told] == [Action.ALLOW, Action.DENY, Action.ALLOW, Action.DENY]
    assert len({generation for generation, _ in told}) == 4


def test_addresses_of_names_stay_reachable(fence: Fence, tier: Tier) -> None:
    other = load_text(NAMES.replace("rules:", "rules:\n  - {id: new, on: send, cidrs: [127.5.5.5], action: deny}"), "p")
    none = load_text(NAMES.replace("api.test:443", "elsewhere.test:443").replace("api.test", "elsewhere.test"), "p")
    stop, stopped = os.pipe()
    os.set_blocking(stop, False)

    def body() -> tuple[int, int]:
        rounds = failed = 0
        while attempt(lambda: os.read(stop, 1)):
            rounds += 1
            failed += connect("127.1.1.1", 443) != 0
        return rounds, failed

    with fence.session(NAMES) as session:

        def ready() -> None:
            entries = PolicyNames(session.compiled).entries("api.test")
            session.monitor.grants.grant(session.serial, session.generation, [packed("127.1.1.1")], entries, 600)

        grant(session, "api.test", "127.1.1.1")
        child = session.start(body)
        under = load_text(NAMES, "test.yaml")
        deadline = time.monotonic() + PATIENCE_S
        while not any(isinstance(event, Decision) for event in session.events):
            assert time.monotonic() < deadline
            session.drain()
        for number in range(20):
            old = session.generation
            session.swap(under if number % 2 else other, ready)
            session.monitor.grants.forget(session.serial, old)
            time.sleep(0.01)
            session.drain()
        os.write(stopped, b"!")
        rounds, failed = session.finish(child).value
        assert rounds > 0
        assert failed == 0
        session.swap(none)
        assert session.run(lambda: connect("127.1.1.1", 443)).value == errno.EPERM


def test_generations_are_never_given_again(fence: Fence, ground: Path) -> None:
    """Not by the next daemon either: what the kernel remembers of one would count for the other."""
    from agentmon.kernel.tables import Tables

    first, second = policies(ground)
    with fence.session(first) as session:
        session.swap(second)
        highest = session.generation
        session.swap(first)
        session.swap(second)
        session.monitor.change_policy(session.slot, session.policy_slot)
        newest = session.generation
        assert newest > highest
    tables = Tables(fence.monitor.tables._maps)
    try:
        slot, generation = tables.install(session.compiled)
        tables.remove(slot)
        assert generation == newest + 1
    finally:
        tables.close()
        fence.monitor.tables._generation = generation


SHELL = Path("/bin/sh").resolve()
#: Conditions that come first in the other policy: all others have other numbers there.
MORE = (
    "{id: more, on: read, paths: [/nonexistent/x], parent: [/nonexistent/y], action: deny}",
    "{id: risk, on: read, paths: [/nonexistent/x], when: {risk: high}, action: deny}",
)


def policy(*rules: str) -> Policy:
    listed = "".join(f"  - {rule}\n" for rule in rules)
    return load_text(f"policy: p\n{ALLOW_ALL}rules:\n{listed or '  []'}", "p.yaml")


class Idle:
    """A shell that waits in a read, with nothing to decide, until its session is under another policy."""

    def __init__(self, ground: Path) -> None:
        self.ready, self.go = ground / "ready", ground / "go"
        for fifo in (self.ready, self.go):
            os.mkfifo(fifo)

    def words(self, then: str, *, orphan: bool = False) -> list[str | Path]:
        script = f"exec 3<>{self.go}; echo > {self.ready}; read x <&3; {then}"
        if orphan:
            (self.go.parent / "script").write_text(script)
            script = f"(setsid {SHELL} {self.go.parent}/script &); exit 0"
        return [SHELL, "-c", script]

    def run(self, session: Session, words: list[str | Path], *policies: Policy) -> bytes:
        """What it shows, under the last of the policies."""
        child = session.start(words)
        assert self.ready.read_bytes() == b"\n"
        for other in policies:
            session.swap(other)
        fd = os.open(self.go, os.O_WRONLY)
        os.write(fd, b"\n")
        value = session.finish(child).value
        os.close(fd)
        assert isinstance(value, bytes)
        return value


def under(secret: Path, *programs: Path | str) -> str:
    return f"{{id: under, on: read, paths: ['{secret}'], parent: [{', '.join(map(str, programs))}], action: deny}}"


def unless(secret: Path, *programs: Path | str) -> str:
    parents = ", ".join(map(str, programs))
    return f"{{id: unless, on: read, paths: ['{secret}'], except: {{parent: [{parents}]}}, action: deny}}"


@pytest.mark.parametrize("orphan", [False, True])
def test_known_ancestors_stay_known(fence: Fence, program: Program, secret: Path, orphan: bool) -> None:
    """Also those that have ended, by other numbers, and through a policy that came and went meanwhile."""
    idle = Idle(secret.parent)
    script = f"exec {program('show')} {secret}"
    for rule, seen in ((under, False), (unless, True)):
        first = policy(rule(secret, SHELL))
        with fence.session(first) as session:
            shown = idle.run(session, idle.words(script, orphan=orphan), policy(*MORE, rule(secret, SHELL)))
            assert (SECRET in shown) is seen
        with fence.session(first) as session:
            words = idle.words(script, orphan=orphan)
            shown = idle.run(session, words, policy(rule(secret, SHELL), *MORE), policy(*MORE, rule(secret, SHELL)))
            assert (SECRET in shown) is seen
        other = rule(secret, "/nonexistent/z")
        with fence.session(policy(other)) as session:
            shown = idle.run(session, idle.words(script, orphan=orphan), policy(*MORE, other))
            assert (SECRET in shown) is not seen


def test_of_ancestors_that_nobody_asked_for_the_worst_is_assumed(fence: Fence, program: Program, secret: Path) -> None:
    """What blocks holds for whoever was there, and the exception does not; for what begins later all is known."""
    idle = Idle(secret.parent)
    show = program("show")
    for other in (under(secret, "/nonexistent/z"), unless(secret, "/nonexistent/z")):
        with fence.session(policy()) as session:
            assert SECRET not in idle.run(session, idle.words(f"exec {show} {secret}"), policy(*MORE, other))
    with fence.session(policy()) as session:
        # the shell is known to be one: it was asked what it runs before it started another program
        words = idle.words(f"{show} {secret}; exit 0")
        assert SECRET in idle.run(session, words, policy(*MORE, unless(secret, SHELL)))


def test_who_starts_a_program_first_thing_is_its_ancestor(fence: Fence, program: Program, secret: Path) -> None:
    idle = Idle(secret.parent)
    show = program("show")
    start = f"{{id: start, on: exec, paths: ['{show}'], parent: ['{SHELL}'], action: deny}}"
    with fence.session(policy(start)) as session:
        assert SECRET not in idle.run(session, idle.words(f"exec {show} {secret}"), policy(*MORE, start))
    with fence.session(policy(start)) as session:
        assert SECRET not in idle.run(session, idle.words(f"{show} {secret}; exit 0"), policy(*MORE, start))


class Steps:
    """A child that does one thing at a time, when told to."""

    def __init__(self, session: Session, act: Callable[[int], object]) -> None:
        self.session = session
        self.step, self.stepped = os.pipe()
        self.told, self.tell = os.pipe()

        def body() -> list[object]:
            found = []
            for number in iter(lambda: os.read(self.step, 1)[0], 255):
                found.append(act(number))
                os.write(self.tell, b".")
            return found

        self.child = session.start(body)

    def do(self, *numbers: int) -> None:
        for number in numbers:
            os.write(self.stepped, bytes([number]))
            os.read(self.told, 1)

    def end(self) -> object:
        os.write(self.stepped, b"\xff")
        value = self.session.finish(self.child).value
        for fd in (self.step, self.stepped, self.told, self.tell):
            os.close(fd)
        return value


def test_marks_of_another_policy_are_others(fence: Fence, tier: Tier, ground: Path, secret: Path) -> None:
    for name in ("a", "b"):
        (ground / name).touch()
    marks = [f"{{id: {name}, on: read, paths: ['{ground}/{name}'], action: allow, marks: [{name}]}}" for name in "ab"]
    gate = f"{{id: gate, on: read, paths: ['{secret}'], except: {{requires: a}}, action: deny}}"
    files = [ground / "a", ground / "b", secret]
    with fence.session(policy(*marks, gate)) as session:
        steps = Steps(session, lambda number: in_child(read_once(files[number])))
        steps.do(2, 0, 2)
        session.swap(policy(*MORE, *reversed(marks), gate))
        steps.do(2, 1, 2, 0, 2)
        session.swap(policy(*marks, gate))
        steps.do(2)
        found = steps.end()
    no, yes = blocked(tier), (0, 0)
    assert found == [no, yes, yes, no, yes, no, yes, yes, no]


def test_users_and_hours_of_another_policy(fence: Fence, tier: Tier, ground: Path, secret: Path) -> None:
    (ground / "other").touch()
    user = f"{{id: nobody, on: read, paths: ['{secret}'], user: [{NOBODY}], action: deny}}"
    hours = f"{{id: hours, on: read, paths: ['{ground}/other'], when: {{time: ['00:00-24:00 UTC']}}, action: deny}}"
    acts = [act_as(NOBODY, secret), act_as(0, secret), read_once(ground / "other")]
    with fence.session(policy(user)) as session:
        steps = Steps(session, lambda number: in_child(acts[number]))
        for other in (None, policy(*MORE, hours, user), policy(user), policy(hours)):
            if other is not None:
                session.swap(other)
            steps.do(0, 1, 2)
        found = steps.end()
    no, yes = blocked(tier), (0, 0)
    assert found == [no, yes, yes, no, yes, no, no, yes, yes, yes, yes, no]
