# SPDX-License-Identifier: Apache-2.0
"""Reference evaluator, automaton and kernel say the same: verdict and rule, record by record."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from agentmon.model.events import Decision
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.policy import walk
from agentmon.policy.load import load_text
from agentmon.policy.rules import Policy, Variables
from tests.support import policies
from tests.support.fence import PATIENCE_S, Fence, Session, object_path

Program = Callable[[str], Path]
Request = tuple[Operation, bytes]
LETTER = {Operation.READ: b"r", Operation.WRITE: b"w", Operation.CREATE: b"c", Operation.EXEC: b"x"}

#: A program that ends at once, 120 bytes (x86-64 ELF): every path can have its own copy.
TINY = bytes.fromhex(
    "7f454c46020101000000000000000000"
    "02003e0001000000780040000000000040000000000000000000000000000000"
    "00000000400038000100000000000000"
    "010000000500000000000000000000000000400000000000000040000000000084000000000000008400000000000000"
    "0010000000000000"
    "31ffb83c0000000f05000000"
)


@pytest.fixture
def base(ground: Path) -> Iterator[bytes]:
    """A short directory: some paths below it are as long as paths can be."""
    path = os.fsencode(ground)
    yield path
    remove_deep(path)


def remove_deep(path: bytes) -> None:
    """Removes a tree whose paths are longer than a system call takes."""
    subprocess.run(["rm", "-rf", path], check=True)


def plant(paths: Iterable[Request], base: bytes) -> list[Request]:
    """Makes what the requests need below `base`; returns those that can be tried."""
    files: dict[bytes, Operation] = {}
    parents: set[bytes] = set()
    wanted = sorted({r for r in paths if r[1].startswith(base + b"/")}, key=lambda r: (len(r[1]), r))
    for _, path in wanted:
        while (path := os.path.dirname(path)) not in parents and len(path) >= len(base):
            parents.add(path)
    possible = []
    for operation, path in wanted:
        name = os.path.basename(path)
        if path in parents:  # a directory can be read, nothing else
            if operation is Operation.READ:
                possible.append((operation, path))
            continue
        if name in (b"", b".", b"..") or len(name) > 255 or len(path) > 4095:
            continue
        if operation is Operation.CREATE:
            if path in files:
                continue
            files[path] = operation
        elif files.get(path) is Operation.CREATE:
            continue
        else:
            files[path] = operation
        possible.append((operation, path))
    for path in sorted(parents, key=len):  # os.makedirs recurses
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
    for path, operation in files.items():
        if operation is not Operation.CREATE:
            with open(path, "wb") as file:
                file.write(TINY)
            os.chmod(path, 0o755)
    return possible


class Opener:
    """The program that opens what it is told, waiting to be told."""

    def __init__(self, path: Path, *options: str) -> None:
        self.process = subprocess.Popen([path, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def open(
        self, session: Session, requests: list[Request], exe: bytes, letter: bytes | None = None
    ) -> list[Decision]:
        """Enrols it, has it open everything, and returns the decisions on those requests."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        (key,) = session.enroll(self.process.pid)
        # as the daemon does for what already runs
        session.monitor.set_exe_tags(key, session.evaluator.exe_tags(exe))
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join((letter or LETTER[o]) + p + b"\0" for o, p in requests))
        self.process.stdin.close()
        found: list[Decision] = []
        for _ in range(int(PATIENCE_S / 0.01)):
            done = self.process.poll() is not None
            found += [e for e in session.drain() if isinstance(e, Decision)]
            if done:
                break
            try:
                self.process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
        assert self.process.wait(1) == 0
        assert int(self.process.stdout.read()) == len(requests)
        self.process.stdout.close()
        return found


def agree(session: Session, requests: list[Request], decisions: list[Decision], exe: bytes | None = None) -> None:
    """Each request was decided once, as the evaluator and the automaton say."""
    asked = set(requests)
    told: dict[Request, Decision] = {}
    for decision in decisions:
        request = (decision.operation, object_path(decision))
        if request in asked:
            assert request not in told, f"told twice: {request}"
            told[request] = decision
    missing = asked - told.keys()
    assert not missing, f"{len(missing)} of {len(asked)} not told, such as {sorted(missing)[:3]}"
    for (operation, path), decision in told.items():
        compare(session, operation, path, decision)
        if exe is not None:
            assert decision.exe_tags == session.evaluator.exe_tags(exe) == walk.exe_tags(session.compiled, exe)


def compare(session: Session, operation: Operation, path: bytes, decision: Decision) -> None:
    tags = decision.exe_tags
    wanted = session.evaluator.path_by_tags(operation, path, tags)
    assert walk.run_automaton(session.compiled, operation, path, tags) == wanted, path
    assert (decision.verdict, decision.rule, decision.reason) == (wanted.action, wanted.rule, wanted.reason), path


def copy_of(program: Path, path: bytes) -> Path:
    """The opener under another name; hard links would share an inode with a rule's pin."""
    where = Path(os.fsdecode(path))
    where.parent.mkdir(parents=True, exist_ok=True)
    where.unlink(missing_ok=True)
    shutil.copy(program, where)
    return where


def counts(tier: Tier, native: int, guest: int) -> int:
    """Emulation is forty times slower."""
    return native if tier is Tier.REACT else guest


def judged(
    fence: Fence,
    program: Program,
    policy: Policy,
    variables: Variables,
    requests: list[Request],
    exe: bytes,
    *options: str,
) -> int:
    """All requests, by a process that runs `exe`. Returns how many."""
    opener = Opener(copy_of(program("opener"), exe), *options)
    with fence.session(policy, variables) as session:
        agree(session, requests, opener.open(session, requests, exe), exe)
    return len(requests)


def test_golden_cases(fence: Fence, program: Program, base: bytes) -> None:
    policy, variables, cases = policies.golden(os.fsdecode(base))
    programs: dict[bytes, list[policies.Case]] = {}
    for case in cases:
        programs.setdefault(case.exe or base + b"/opener", []).append(case)
    possible = set(plant([(c.operation, c.path) for c in cases], base))
    assert len(possible) > 0.8 * len({(c.operation, c.path) for c in cases})
    for exe, some in programs.items():
        with fence.session(policy, variables) as session:
            requests = [r for c in some if (r := (c.operation, c.path)) in possible]
            decisions = Opener(copy_of(program("opener"), exe), "-f").open(session, requests, exe)
            agree(session, requests, decisions, exe)
            told = {(d.operation, d.object): d for d in decisions}
            for case in some:
                if (case.operation, case.path) in possible:
                    decision = told[case.operation, case.path]
                    assert decision.verdict is case.action, case
                    if case.rule:
                        assert session.compiled.rules[decision.rule].id == case.rule


def test_random_policies(fence: Fence, tier: Tier, program: Program, base: bytes) -> None:
    """Blocking ones too: each request is made by a process of its own."""
    done = 0
    for seed in range(counts(tier, 40, 4)):
        policy, variables, questions = policies.random_case(seed, counts(tier, 80, 40), os.fsdecode(base))
        requests = plant([(o, p) for o, p, _ in questions], base)
        if requests:
            exe = base + random.Random(seed).choice([b"/bin/a", b"/bin/c", b"/x/b", b"/opt/t"]) + b"-exe"
            done += judged(fence, program, policy, variables, requests, exe, "-f")
        remove_deep(base)
        os.mkdir(base)
    assert done > counts(tier, 1500, 60)


def test_opening_for_both_takes_the_more_severe_verdict(
    fence: Fence, tier: Tier, program: Program, base: bytes
) -> None:
    """Of equal ones, that of writing."""
    for seed in range(500, 500 + counts(tier, 10, 2)):
        policy, variables, questions = policies.random_case(seed, counts(tier, 60, 40), os.fsdecode(base))
        requests = plant([(Operation.WRITE, p) for _, p, _ in questions], base)
        exe = base + b"/bin/a-exe"
        opener = Opener(copy_of(program("opener"), exe), "-f")
        with fence.session(policy, variables) as session:
            told = {d.object: d for d in opener.open(session, requests, exe, b"b")}
            for _, path in requests:
                decision = told[path]
                both = [(o, session.evaluator.path(o, path, exe)) for o in (Operation.READ, Operation.WRITE)]
                operation, wanted = max(both, key=lambda pair: (pair[1].action, pair[0]))
                assert (decision.operation, decision.verdict, decision.rule) == (operation, wanted.action, wanted.rule)
        remove_deep(base)
        os.mkdir(base)


def lenient(text: str) -> str:
    """The same policy, but nothing of it blocks."""
    for word in ("deny", "kill"):
        text = text.replace(f'"action": "{word}"', '"action": "audit"').replace(f'": "{word}"', '": "allow"')
    return text


@pytest.mark.parametrize("threads", [1, 8])
def test_thousands_of_odd_paths(fence: Fence, tier: Tier, program: Program, base: bytes, threads: int) -> None:
    """Any byte in a name, names of 255 bytes, deep trees; by one thread and by several."""
    rng = random.Random(threads)
    done = 0
    for seed in range(counts(tier, 4, 2)):
        text = lenient(policies.random_text(1000 * threads + seed, os.fsdecode(base)))
        policy = load_text(text, "odd.yaml")
        paths = policies.random_paths(seed, counts(tier, 500, 100), os.fsdecode(base))
        for _ in range(counts(tier, 700, 100)):
            paths.append(base + b"".join(b"/" + odd_name(rng) for _ in range(rng.choice([1, 2, 3, 10, 40]))))
        operations = [Operation.READ, Operation.WRITE, Operation.CREATE]
        requests = plant([(rng.choice(operations), p) for p in paths], base)
        variables = policies.variables(os.fsdecode(base))
        done += judged(fence, program, policy, variables, requests, base + b"/bin/a-exe", "-t", str(threads))
        remove_deep(base)
        os.mkdir(base)
    assert done > counts(tier, 2000, 150)


def odd_name(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(
            [b"a", b"b", b"ab", b".x", b"x.pem", b"aa", b"\xff", b" ", b"\n", b"*", b"[a]", b"{b}", b"?", b"\\"]
        )
    if kind < 0.35:
        return bytes(rng.choice(b"ab.") for _ in range(255))
    name = bytes(rng.choice(range(1, 256)) for _ in range(rng.randint(1, 12))).replace(b"/", b"")
    return name if name not in (b"", b".", b"..") else b"_"


def test_paths_of_full_length(fence: Fence, program: Program, base: bytes) -> None:
    """4,094 and 4,095 bytes, of few long names and of many short ones."""
    paths = []
    for length in (4093, 4094, 4095):
        for name in (b"a" * 250, b"ab", b"a"):
            path = base
            while len(path) + 1 + len(name) + 2 <= length:
                path += b"/" + name
            paths.append(path + b"/" + b"z" * (length - len(path) - 1))
    assert {len(p) for p in paths} == {4093, 4094, 4095}
    text = (
        "policy: long\ndefault: {exec: allow, read: allow, write: allow, create: allow, connect: allow}\nrules:\n"
        '  - {id: ab, on: read, paths: ["**/ab/z*"], action: audit}\n'
        '  - {id: a, on: [read, write], paths: ["**/a/a/z**"], action: audit}\n'
        '  - {id: long, on: [read, write], paths: ["/**/aaaaa*/?*"], except: {paths: ["**/zzzz"]}, action: audit}\n'
    )
    requests = plant([(o, p) for p in paths for o in (Operation.READ, Operation.WRITE)], base)
    assert len(requests) == 2 * len(paths)
    done = judged(fence, program, load_text(text, "long.yaml"), policies.variables(), requests, base + b"/exe")
    assert done == len(requests)


def test_paths_that_are_renamed_meanwhile(fence: Fence, tier: Tier, program: Program, ground: Path) -> None:
    """A record names a path that was true at some moment, and its verdict is that path's."""
    near, far = ground / "aa", ground / "b" / "cc" / "dddd"
    far.mkdir(parents=True)
    inside = near / "moved" / "x"
    inside.mkdir(parents=True)
    (inside / "file").write_bytes(b"")
    text = (
        f'  - {{id: near, on: read, paths: ["{near}/**"], action: audit}}\n'
        f'  - {{id: far, on: read, paths: ["{far}/moved/*/file"], action: audit}}\n'
    )
    true = {os.fsencode(where / "moved" / "x" / "file") for where in (near, far)}
    opens = counts(tier, 4000, 300)
    cwd = os.open(inside, os.O_RDONLY)

    def body() -> None:
        os.fchdir(cwd)
        for _ in range(opens):
            os.close(os.open("file", os.O_RDONLY))

    before = fence.monitor.counters()
    with moved_to_and_fro(near / "moved", far / "moved"), fence.session(text) as session:
        for _ in range(counts(tier, 20, 2)):
            outcome = session.run(body)
            after = fence.monitor.counters()
            about = [d for d in outcome.decisions if d.operation is Operation.READ and d.verdict is Action.AUDIT]
            stable = [d for d in about if d.reason is not Reason.PATH_UNSTABLE]
            assert len(about) == opens
            # severest verdict of read, no path, and rare
            unstable = [d for d in about if d.reason is Reason.PATH_UNSTABLE]
            assert {d.object for d in unstable} <= {b""}
            assert len(unstable) <= opens / 20
            assert after["path_unstable"] - before["path_unstable"] >= len(unstable)
            assert {object_path(d) for d in stable} <= true
            for decision in stable:
                compare(session, Operation.READ, object_path(decision), decision)
            if after["path_retried"] > before["path_retried"]:
                break  # the race did take place
        else:
            assert tier is Tier.LSM, "no rename ever met an open"
    os.close(cwd)


@contextlib.contextmanager
def moved_to_and_fro(one: Path, other: Path) -> Iterator[None]:
    """A process, not enrolled, renames a directory all the time."""
    stop_read, stop_write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(stop_write)
        os.set_blocking(stop_read, False)
        with contextlib.suppress(BaseException):
            while True:
                os.rename(one, other)
                os.rename(other, one)
                with contextlib.suppress(BlockingIOError):
                    os.read(stop_read, 1)
                    break
        os._exit(0)
    os.close(stop_read)
    try:
        yield
    finally:
        os.close(stop_write)
        os.waitpid(pid, 0)
