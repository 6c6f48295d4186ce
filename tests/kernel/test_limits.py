# SPDX-License-Identifier: Apache-2.0
"""Where something is full, too long or cannot be told: the severest verdict, and a count of it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.errors import KernelError
from agentmon.kernel.host import BPFFS
from agentmon.kernel.libbpf import open_pinned_map
from agentmon.kernel.monitor import Monitor
from agentmon.kernel.tables import U32
from agentmon.model.events import What
from agentmon.model.operations import Action, Operation, Reason, Tier
from tests.support.fence import Fence, attempt, blocked, in_child

SECRET = b"the content\n"
#: Some rule of the policy denies reading and running: that is the severest verdict for what cannot be told.
STRICT = '  - {id: fence, on: [read, exec], paths: ["/nonexistent/**"], action: deny}\n'
MS_REC_PRIVATE = 0x44000
MNT_DETACH = 2
CLONE_NEWNS = 0x20000


def counted(fence: Fence, name: str) -> int:
    return fence.monitor.counters()[name]


def libc(name: str, *arguments: object) -> None:
    """A call of libc by name. Raises `OSError`."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


# ---- the process table

SLOTS = 16


@pytest.fixture(scope="module")
def small(tier: Tier) -> Iterator[Fence]:
    """Programs with room for a few processes. The LSM tier keeps 512 free for forks that are under way."""
    room = SLOTS + (512 if tier is Tier.LSM else 0)
    where = BPFFS / f"agentmon-test-{os.getpid()}-small"
    monitor = Monitor.open(pin_dir=where, tier=tier, arena_bytes=1 << 20, procs_max=room)
    try:
        yield Fence(monitor)
    finally:
        monitor.detach()


def test_a_child_that_cannot_be_tracked_does_not_run(small: Fence, tier: Tier) -> None:
    alive_read, alive_write = os.pipe()

    def body() -> tuple[int, int, int]:
        refused = 0
        pids = []
        for _ in range(3 * SLOTS):
            try:
                pid = os.fork()
            except BlockingIOError:
                refused += 1
                continue
            if not pid:
                os.write(alive_write, b"x")
                time.sleep(60)
                os._exit(0)
            pids.append(pid)
        ran = dead = 0
        while ran + dead < len(pids):
            ran += len(os.read(alive_read, 100)) if tier is Tier.LSM or ran < SLOTS - 1 else 0
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    dead += 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return refused, ran, dead

    before = small.monitor.counters()
    with small.session(STRICT) as session:
        outcome = session.run(body)
        refused, ran, dead = outcome.value
        after = small.monitor.counters()
        assert ran == SLOTS - 1  # one is the parent
        if tier is Tier.LSM:
            assert (refused, dead) == (2 * SLOTS + 1, 0)
            assert after["fork_refused"] - before["fork_refused"] == refused
        else:
            assert (refused, dead) == (0, 2 * SLOTS + 1)
            assert after["fork_lost"] - before["fork_lost"] == dead
            assert sum(c.what is What.FORK_LOST for c in outcome.changes) == dead
    os.close(alive_read)
    os.close(alive_write)
    # and there is room again
    assert small.run(STRICT, lambda: in_child(lambda: None)).value == (0, 0)


def test_enrolling_more_than_fits_is_refused(small: Fence, tier: Tier) -> None:
    many = [subprocess.Popen(["/bin/sleep", "60"]) for _ in range(SLOTS + 4)] if tier is Tier.REACT else []
    try:
        with small.session(STRICT) as session:
            if many:
                with pytest.raises(KernelError, match="process table is full: end sessions"):
                    session.enroll(*(p.pid for p in many))
    finally:
        for process in many:
            process.kill()
            process.wait()


# ---- the ring


def test_a_full_ring_changes_no_verdict_and_is_counted(fence: Fence, tier: Tier, ground: Path) -> None:
    deep = ground.joinpath(*["d" * 250] * 12)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(SECRET)
    secret = ground / "secret"
    secret.write_bytes(SECRET)
    text = (
        f'  - {{id: noise, on: read, paths: ["{deep}/**"], action: audit}}\n'
        f'  - {{id: fence, on: read, paths: ["{secret}"], action: deny}}\n'
    )
    bytes_each = 104 + 8 + len(os.fsencode(deep)) + 5
    opens = (4 << 20) // bytes_each + 50

    def body() -> tuple[int, int]:
        os.chdir(deep)
        for _ in range(opens):
            os.close(os.open("file", os.O_RDONLY))
        return in_child(lambda: os.open(secret, os.O_RDONLY))

    assert fence.without(body).value == (0, 0)
    before = counted(fence, "ring_lost")
    with fence.session(text) as session:
        outcome = session.finish(session.start(body), drain=False)
        assert outcome.value == blocked(tier)
        lost = counted(fence, "ring_lost") - before
        assert lost >= 50
        kept = [d for d in outcome.decisions if d.object == os.fsencode(deep / "file")]
        assert opens - lost <= len(kept) <= opens - 50
        # read, there is room again
        assert session.run(lambda: in_child(lambda: os.open(secret, os.O_RDONLY))).told() == [("read", "deny", "fence")]


# ---- paths that cannot be told


def below(directory: Path, levels: int, name: bytes) -> int:
    """A directory deeper than a path can say; its descriptor."""
    at = os.open(directory, os.O_PATH)
    for _ in range(levels):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=at)
        following = os.open(name, os.O_PATH, dir_fd=at)
        os.close(at)
        at = following
    return at


@pytest.mark.parametrize("name", [b"d" * 255, b"d"], ids=["long names", "short names"])
def test_a_path_that_is_too_long_gets_the_severest_verdict(fence: Fence, tier: Tier, ground: Path, name: bytes) -> None:
    at = below(ground, 4200 // (len(name) + 1), name)
    try:
        os.write(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at), SECRET)

        def body() -> bytes:
            return os.read(os.open("file", os.O_RDONLY, dir_fd=at), 100)

        assert fence.without(body).value == SECRET
        before = counted(fence, "path_too_long")
        outcome = fence.run(STRICT, body)
        assert (outcome.stopped(tier), outcome.value) == (True, None)
        last = outcome.decisions[-1]
        assert (last.operation, last.verdict, last.reason) == (Operation.READ, Action.DENY, Reason.PATH_TOO_LONG)
        assert counted(fence, "path_too_long") == before + 1
        # nothing in this policy is severe: nothing happens
        assert fence.run("  []\n", body).value == SECRET
    finally:
        os.close(at)
        subprocess.run(["rm", "-rf", ground / os.fsdecode(name)], check=True)


def test_a_mount_that_is_in_no_tree_gets_the_severest_verdict(fence: Fence, tier: Tier, ground: Path) -> None:
    where = ground / "mount"
    where.mkdir()

    def body() -> tuple[int, int]:
        libc("unshare", CLONE_NEWNS)
        libc("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
        libc("mount", b"none", os.fsencode(where), b"tmpfs", 0, None)
        (where / "file").write_bytes(SECRET)
        at = os.open(where, os.O_PATH)
        os.close(os.open("file", os.O_RDONLY, dir_fd=at))
        libc("umount2", os.fsencode(where), MNT_DETACH)
        return in_child(lambda: os.open("file", os.O_RDONLY, dir_fd=at))

    assert fence.without(body).value == (0, 0)
    before = counted(fence, "path_unreachable")
    outcome = fence.run(STRICT, body)
    assert outcome.value == blocked(tier)
    last = outcome.decisions[-1]
    assert (last.operation, last.verdict, last.reason) == (Operation.READ, Action.DENY, Reason.PATH_UNREACHABLE)
    assert counted(fence, "path_unreachable") == before + 1


def test_a_bind_mount_does_not_hide_a_file_named_exactly(fence: Fence, tier: Tier, ground: Path) -> None:
    secret, other = ground / "secret", ground / "other"
    secret.write_bytes(SECRET)
    other.touch()

    def body() -> tuple[int, int]:
        libc("unshare", CLONE_NEWNS)
        libc("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
        libc("mount", os.fsencode(secret), os.fsencode(other), None, 4096, None)  # MS_BIND
        return in_child(lambda: os.open(other, os.O_RDONLY))

    assert fence.without(body).value == (0, 0)
    outcome = fence.run(f'  - {{id: fence, on: read, paths: ["{secret}"], action: deny}}\n', body)
    assert outcome.value == blocked(tier)
    assert outcome.told() == [("read", "deny", "fence")]


@pytest.mark.parametrize("where", ["/dev/shm", "/var/tmp"])
def test_a_file_named_exactly_is_known_by_its_inode_on_other_file_systems(fence: Fence, tier: Tier, where: str) -> None:
    secret = Path(where) / f"agentmon-test-{os.getpid()}"
    link = secret.with_name(secret.name + "-link")
    try:
        secret.write_bytes(SECRET)
        link.hardlink_to(secret)
        outcome = fence.run(
            f'  - {{id: fence, on: read, paths: ["{secret}"], action: deny}}\n', lambda: os.open(link, os.O_RDONLY)
        )
        assert outcome.stopped(tier)
    finally:
        secret.unlink(missing_ok=True)
        link.unlink(missing_ok=True)


# ---- scratch memory


@contextlib.contextmanager
def no_scratch(monitor: Monitor) -> Iterator[None]:
    """Every scratch slot is claimed, as if as many hooks were preempted half way."""
    scratch = open_pinned_map(str(monitor.pin_directory / "maps" / "scratch"))

    def fill(busy: int) -> None:
        for slot in range(256):
            scratch.update(U32.pack(slot), busy.to_bytes(8, "little") + bytes(scratch.value_size - 8))

    try:
        fill(1)
        yield
    finally:
        fill(0)
        scratch.close()


def test_without_scratch_memory_the_verdict_is_the_severest(fence: Fence, tier: Tier, ground: Path) -> None:
    harmless = ground / "harmless"
    harmless.write_bytes(SECRET)
    assert fence.without(lambda: os.open(harmless, os.O_RDONLY)).errno == 0
    before = counted(fence, "scratch_exhausted")
    with fence.session(STRICT) as session:
        child = session.fork(lambda: os.open(harmless, os.O_RDONLY))
        session.enroll(child.pid)
        with no_scratch(session.monitor):
            session.begin(child)
            outcome = session.finish(child)
        assert outcome.stopped(tier)
        last = outcome.decisions[-1]
        assert (last.operation, last.verdict, last.reason) == (Operation.READ, Action.DENY, Reason.NO_SCRATCH)
        assert counted(fence, "scratch_exhausted") > before
        # nor does a program run whose rules could not be found
        child = session.fork(["/bin/true"])
        session.enroll(child.pid)
        with no_scratch(session.monitor):
            session.begin(child)
            outcome = session.finish(child)
        assert outcome.status != 0
        # and all is well again
        assert session.run(lambda: attempt(lambda: os.open(harmless, os.O_RDONLY))).value == 0


def test_a_session_that_is_gone_denies(fence: Fence, tier: Tier, ground: Path) -> None:
    """A process of a session whose slot was given to another belongs to nobody: it may do nothing."""
    harmless = ground / "harmless"
    harmless.write_bytes(SECRET)
    before = counted(fence, "no_state")
    with fence.session("  []\n") as session:
        child = session.fork(lambda: os.open(harmless, os.O_RDONLY))
        session.enroll(child.pid)
        sessions = session.monitor._maps["sessions"]
        old = sessions.lookup(U32.pack(session.slot))
        assert old is not None
        sessions.update(U32.pack(session.slot), old[:8] + (session.serial + 1_000_000).to_bytes(8, "little"))
        session.begin(child)
        outcome = session.finish(child)
        sessions.update(U32.pack(session.slot), old)
        assert outcome.stopped(tier)
        assert outcome.errno in (0, errno.EPERM)
        assert counted(fence, "no_state") > before
