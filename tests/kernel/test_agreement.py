# SPDX-License-Identifier: Apache-2.0
"""Reference evaluator, automaton and kernel say the same: verdict and rule, record by record."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from agentmon.model.conditions import Marked, Over, Risk
from agentmon.model.events import Decision
from agentmon.model.operations import Action, Operation, Reason, Tier
from agentmon.policy import walk
from agentmon.policy.load import load_text
from agentmon.policy.rules import Policy, Variables
from agentmon.policy.situation import Situation
from tests.support import policies, rulesets
from tests.support.fence import PATIENCE_S, Fence, Session, attempt, in_child, object_path

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
    tags, facts = decision.exe_tags, decision.facts
    wanted = session.evaluator.path_by_tags(operation, path, tags, facts)
    assert walk.run_automaton(session.compiled, operation, path, tags, facts) == wanted, path
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
    split: bool | None = None,
) -> int:
    """All requests, by a process that runs `exe`. Returns how many."""
    opener = Opener(copy_of(program("opener"), exe), *options)
    with fence.session(policy, variables, split=split) as session:
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
    """Blocking ones too: each request is made by a process of its own. Half of the policies are split."""
    done = 0
    for seed in range(counts(tier, 40, 4)):
        policy, variables, questions = policies.random_case(seed, counts(tier, 80, 40), os.fsdecode(base))
        requests = plant([(o, p) for o, p, _ in questions], base)
        if requests:
            exe = base + random.Random(seed).choice([b"/bin/a", b"/bin/c", b"/x/b", b"/opt/t"]) + b"-exe"
            split = None if seed % 2 else True
            done += judged(fence, program, policy, variables, requests, exe, "-f", split=split)
        remove_deep(base)
        os.mkdir(base)
    assert done > counts(tier, 1500, 60)


def test_random_policies_with_conditions(fence: Fence, tier: Tier, program: Program, base: bytes) -> None:
    """As before; whoever opens is a child of the opener, and root; by the hour that it is."""
    done = 0
    for seed in range(1000, 1000 + counts(tier, 40, 4)):
        policy, variables, questions = policies.random_case(
            seed, counts(tier, 80, 40), os.fsdecode(base), conditions=True
        )
        requests = plant([(o, p) for o, p, _ in questions], base)
        if requests:
            exe = base + random.Random(seed).choice([b"/bin/a", b"/bin/c", b"/x/b", b"/opt/t"])
            opener = Opener(copy_of(program("opener"), exe + b"-exe"), "-f")
            with fence.session(policy, variables, split=None if seed % 2 else True) as session:
                # the tags of a name that policies know; the file there may be one of the requests
                risk = Risk(seed % 3)
                session.monitor.set_risk(session.slot, risk)
                possible = [session.evaluator.facts(Situation((exe,), 0, risk, time.time()))]
                decisions = opener.open(session, requests, exe)
                agree(session, requests, decisions)
                possible.append(session.evaluator.facts(Situation((exe,), 0, risk, time.time())))
                steady = ~sum(
                    1 << i for i, c in enumerate(session.compiled.conditions) if isinstance(c, (Marked, Over))
                )
                told = {d.facts & steady for d in decisions if object_path(d) != exe + b"-exe"}
                assert told <= {facts & steady for facts in possible}
                done += len(requests)
        remove_deep(base)
        os.mkdir(base)
    assert done > counts(tier, 1500, 60)


def test_many_rules(fence: Fence, tier: Tier, program: Program, base: bytes) -> None:
    """Of all kinds; half of them below the directory that the paths are in."""
    text = rulesets.mixed(counts(tier, 6_000, 500), "{workspace}", actions=rulesets.LENIENT)
    variables = policies.variables(os.fsdecode(base))
    rng = random.Random(7)
    paths = [
        p for p in rulesets.paths(counts(tier, 4000, 300), text, os.fsdecode(variables.workspace)) if len(p) < 3000
    ]
    requests = plant([(rng.choice([Operation.READ, Operation.WRITE]), p) for p in paths], base)
    done = judged(fence, program, load_text(text, "many.yaml"), variables, requests, base + b"/exe")
    assert done > counts(tier, 800, 50)


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


def test_no_read_is_allowed_by_a_path_that_was_never_true(fence: Fence, tier: Tier, base: bytes) -> None:
    """Two directories above it move. Denied wherever it ever is; not where one has its old name, the other its new."""
    near, far = Path(os.fsdecode(base)) / "near", Path(os.fsdecode(base)) / "far"
    far.mkdir()
    between = (near / "moved").joinpath(*"d" * 1500)  # a walk takes longer than both renames
    subprocess.run(["mkdir", "-p", between / "in"], check=True)
    (between / "in" / "file").write_bytes(b"secret")
    text = (
        f'  - {{id: near, on: read, paths: ["{near}/moved/**"], action: deny}}\n'
        f'  - {{id: far, on: read, paths: ["{far}/moved/**/out/file"], action: deny}}\n'
    )
    opens = counts(tier, 500, 200)
    at, cwd = os.open(between, os.O_RDONLY), os.open(between / "in", os.O_RDONLY)
    steps = (
        lambda: os.rename("in", "out", src_dir_fd=at, dst_dir_fd=at),
        lambda: os.rename(near / "moved", far / "moved"),
        lambda: time.sleep(0.0003),
        lambda: os.rename(far / "moved", near / "moved"),
        lambda: os.rename("out", "in", src_dir_fd=at, dst_dir_fd=at),
        lambda: time.sleep(0.0003),
    )

    def body() -> int:
        os.fchdir(cwd)
        # react: each attempt ends a process
        tried = in_child if tier is Tier.REACT else attempt
        ends = [tried(lambda: os.read(os.open("file", os.O_RDONLY), 100)) for _ in range(opens)]
        return sum(end in (0, (0, 0)) for end in ends)

    before = fence.monitor.counters()
    with again_and_again(*steps), fence.session(text) as session:
        assert fence.without(body).value == opens
        for _ in range(counts(tier, 20, 2)):
            outcome = session.run(body)
            assert outcome.value == 0
            by = {rule for _, _, rule in outcome.told()}
            if {"near", "far"} <= by and fence.monitor.counters()["path_retried"] > before["path_retried"]:
                break  # the race did take place
        else:
            assert tier is Tier.LSM, "no rename ever met an open"
    os.close(at)
    os.close(cwd)


def moved_to_and_fro(one: Path, other: Path) -> contextlib.AbstractContextManager[None]:
    """A process, not enrolled, renames a directory all the time."""
    return again_and_again(lambda: os.rename(one, other), lambda: os.rename(other, one))


@contextlib.contextmanager
def again_and_again(*steps: Callable[[], object]) -> Iterator[None]:
    """A process, not enrolled, does these in turn all the time."""
    stop_read, stop_write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(stop_write)
        os.set_blocking(stop_read, False)
        with contextlib.suppress(BaseException):
            while True:
                for step in steps:
                    step()
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
