# SPDX-License-Identifier: Apache-2.0
"""Ways around who is fenced, and around the monitor itself (docs/bypasses.md): first the effect, then its absence."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.kernel.host import BPFFS
from agentmon.model.events import What
from agentmon.model.operations import Tier
from tests.support.fence import Fence, attempt, blocked, in_child
from tests.support.hosts import PATIENCE_S, Host

Program = Callable[[str], Path]
SECRET = b"the content\n"
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME = 15
SYS_CLONE, CLONE_PARENT = 56, 0x8000
WALL = 0x40000000  # __WALL: children that tell their end by no signal too
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438


@pytest.fixture
def secret(ground: Path) -> Path:
    path = ground / "secret"
    path.write_bytes(SECRET)
    return path


def deny(path: Path, more: str = "") -> str:
    """One rule."""
    return f'  - {{id: fence, on: [read, write], paths: ["{path}"], action: deny{more}}}\n'


def read(path: Path) -> bytes:
    return os.read(os.open(path, os.O_RDONLY), 100)


def test_the_name_of_a_process_is_not_its_program(fence: Fence, tier: Tier, secret: Path) -> None:
    """An exception for one program is for its file, not for what calls itself so."""

    def body() -> tuple[int, int]:
        LIBC.prctl(PR_SET_NAME, b"trusted", 0, 0, 0)
        assert Path("/proc/self/comm").read_text() == "trusted\n"
        return in_child(lambda: read(secret))

    assert fence.without(body).value == (0, 0)
    assert fence.run(deny(secret, ", except: {exe: ['**/trusted']}"), body).value == blocked(tier)


def test_a_child_of_somebody_else_is_fenced(fence: Fence, secret: Path) -> None:
    """With CLONE_PARENT the parent of the child is the caller's parent, which is not in the session."""

    def body() -> tuple[int, bytes]:
        end, begin = os.pipe()
        pid = LIBC.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if not pid:
            with contextlib.suppress(OSError):
                os.write(begin, read(secret))
            os._exit(0)
        os.close(begin)
        return pid, os.read(end, 100)

    for outcome, expected in ((fence.without(body), SECRET), (fence.run(deny(secret), body), b"")):
        pid, got = outcome.value
        os.waitpid(pid, 0)
        assert got == expected
    assert ("read", "deny", "fence") in outcome.told()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A control group of this test's own."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(words[1]) for words in mounts if words[2] == "cgroup2"), None)
    if root is None:
        pytest.skip("not required: no cgroup2 is mounted")
    made = root / f"agentmon-test-{os.getpid()}"
    made.mkdir()
    yield made
    made.rmdir()


@pytest.mark.parametrize("how", ["parent", "vm", "newpid", "into a control group"])
def test_a_child_by_clone3_is_fenced(
    fence: Fence, program: Program, secret: Path, how: str, request: pytest.FixtureRequest
) -> None:
    """CLONE_PARENT, CLONE_VM without CLONE_VFORK, CLONE_NEWPID, CLONE_INTO_CGROUP."""
    group = how == "into a control group"
    words = [program("spawn"), request.getfixturevalue("elsewhere") if group else how, program("show"), secret]
    for rules, reads in (("  []\n", True), (deny(secret), False)):
        outcome = fence.run(rules, words)  # without a fence: a policy that says nothing, to be told whose child it is
        (child,) = [c.process.pid for c in outcome.changes if c.what is What.FORK]
        if how == "parent":
            os.waitpid(child, WALL)
        assert outcome.value == SECRET if reads else SECRET not in outcome.value
    assert outcome.told() == [("read", "deny", "fence")]


def test_another_control_group_is_inside_the_fence(fence: Fence, tier: Tier, secret: Path, elsewhere: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ear:
        port = ear.getsockname()[1]

        def body() -> tuple[tuple[int, int], int]:
            (elsewhere / "cgroup.procs").write_text(str(os.getpid()))
            assert elsewhere.name in Path("/proc/self/cgroup").read_text()
            return in_child(lambda: read(secret)), attempt(lambda: socket.create_connection(("127.0.0.1", port)))

        assert fence.without(body).value == ((0, 0), 0)
        network = f"  - {{id: network, on: connect, cidrs: ['127.0.0.1:{port}'], action: deny}}\n"
        assert fence.run(deny(secret) + network, body).value == (blocked(tier), errno.EPERM)


def test_a_flood_of_continuations_wakes_nobody(fence: Fence, tier: Tier, secret: Path) -> None:
    """In react a denied process dies; nothing is left that SIGCONT could wake."""

    def body() -> list[tuple[int, int]]:
        os.setpgid(0, 0)
        return [in_child(lambda: read(secret)) for _ in range(100)]

    assert fence.without(body).value == [(0, 0)] * 100
    with fence.session(deny(secret)) as session:
        child = session.fork(body)
        session.enroll(child.pid)
        flooder = os.fork()
        if not flooder:
            while True:
                with contextlib.suppress(OSError):
                    os.killpg(child.pid, signal.SIGCONT)
        try:
            session.begin(child)
            outcome = session.finish(child)
        finally:
            os.kill(flooder, signal.SIGKILL)
            os.waitpid(flooder, 0)
    assert outcome.value == [blocked(tier)] * 100


def test_no_descriptor_is_taken_out_of_a_process_outside(fence: Fence, tier: Tier, secret: Path) -> None:
    held = os.open(secret, os.O_RDONLY)
    outside = os.getpid()

    def body() -> bytes:
        pidfd = LIBC.syscall(SYS_PIDFD_OPEN, outside, 0)
        fd = LIBC.syscall(SYS_PIDFD_GETFD, pidfd, held, 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return os.pread(fd, 100, 0)

    try:
        assert fence.without(body).value == SECRET
        outcome = fence.run(deny(secret) + "  - {id: trace, on: ptrace, action: deny}\n", body)
    finally:
        os.close(held)
    assert outcome.stopped(tier)
    assert ("ptrace", "deny", "trace") in outcome.told()


@pytest.mark.tier("lsm")
def test_no_pipe_of_a_process_outside_is_opened(fence: Fence) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    outside = os.getpid()

    def body() -> None:
        with open(f"/proc/{outside}/fd/{reader}", "wb", buffering=0) as pipe:
            pipe.write(SECRET)

    try:
        assert fence.without(body).errno == 0
        assert os.read(reader, 100) == SECRET
        outcome = fence.run("  - {id: trace, on: ptrace, action: deny}\n", body)
        assert outcome.errno in (errno.EPERM, errno.EACCES)
        assert ("ptrace", "deny", "trace") in outcome.told()
        with pytest.raises(BlockingIOError):
            os.read(reader, 100)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.tier("lsm")
def test_no_descriptor_of_a_denied_file_is_received(fence: Fence, secret: Path) -> None:
    """SCM_RIGHTS from outside; what no rule is about still arrives: a pipe, and a file that may be read."""
    free = secret.parent / "free"
    free.write_bytes(SECRET)
    reader, writer = os.pipe()
    os.write(writer, SECRET * 2)

    def gifts() -> tuple[socket.socket, Callable[[], list[bytes]]]:
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with sender, open(secret, "rb") as denied, open(free, "rb") as file:
            for fd in (denied.fileno(), file.fileno(), reader):
                socket.send_fds(sender, [b"x"], [fd])

        def body() -> list[bytes]:
            got = [socket.recv_fds(receiver, 1, 1)[1] for _ in range(3)]
            return [os.read(fds[0], len(SECRET)) if fds else b"" for fds in got]

        return receiver, body

    receiver, body = gifts()
    with receiver:
        assert fence.without(body).value == [SECRET] * 3
    receiver, body = gifts()
    with receiver:
        outcome = fence.run(deny(secret), body)
    os.close(reader)
    os.close(writer)
    assert outcome.value == [b"", SECRET, SECRET]
    assert ("read", "deny", "fence") in outcome.told()


@pytest.mark.tier("lsm")
def test_nothing_in_the_file_system_of_pins_is_removed(fence: Fence) -> None:
    pin = BPFFS / f"agentmon-test-{os.getpid()}-pin"

    def body() -> None:
        os.rmdir(pin)

    pin.mkdir()
    assert fence.without(body).errno == 0
    pin.mkdir()
    try:
        assert fence.run(deny(BPFFS / "**"), body).errno == errno.EPERM
        assert pin.is_dir()
    finally:
        pin.rmdir()


#: Connects to the socket argv[1], says so, waits for a line, sends it, prints the answer.
TALK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.settimeout(60)
    print("connected", flush=True)
    s.sendall(sys.stdin.readline().encode())
    print(s.recv(1 << 16).decode(), flush=True)
"""


@pytest.mark.parametrize("fenced", [False, True])
def test_a_control_connection_from_before_gives_no_more_than_now(tmp_path: Path, fenced: bool) -> None:
    with Host(tmp_path) as host:
        host.start()
        policy = host.policy("  []")
        words = [sys.executable, "-c", TALK, str(host.socket)]
        with (
            subprocess.Popen(["sleep", "1000"]) as victim,
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent,
        ):
            assert agent.stdin is not None
            assert agent.stdout is not None
            try:
                assert agent.stdout.readline() == "connected\n"
                session = host.json("enroll", str(victim.pid), "-p", policy, "--accept", "all")["session"]
                if fenced:
                    host.json("enroll", str(agent.pid), "-p", policy, "--accept", "all")
                agent.stdin.write(json.dumps({"v": 1, "id": 1, "verb": "release", "session": session}) + "\n")
                agent.stdin.flush()
                reply = json.loads(agent.stdout.readline())
            finally:
                victim.kill()
                agent.kill()
        assert reply["ok"] is not fenced  # without a fence: released
        if fenced:
            assert reply["code"] == "forbidden"


def test_what_forks_through_the_release_of_its_session_is_in_none(fence: Fence, tier: Tier, secret: Path) -> None:
    """Of a session that has ended nobody is fenced; nor is, what it forks meanwhile, in the session after it."""

    def body(over: int) -> str:
        """One letter for each read: `-` denied, `+` not."""
        said = ""
        while True:
            said += {blocked(tier): "-", (0, 0): "+"}[in_child(lambda: read(secret))]
            with contextlib.suppress(BlockingIOError):
                os.read(over, 1)
                return said

    words: list[str] = []
    for number in range(6):
        over, end = os.pipe()
        os.set_blocking(over, False)
        with fence.session(deny(secret)) as session:
            children = [session.start(functools.partial(body, over)) for _ in range(3)]
            time.sleep(0.05 * number)  # at another moment each time
            session.monitor.close_session(session.slot)
            assert session.live() == []
            with fence.session(deny(secret)) as other:
                assert other.slot == session.slot
                time.sleep(1)
                assert other.live() == []
                os.write(end, b"!" * len(children))
                words += [session.finish(child).value for child in children]
                assert other.live() == []
        os.close(over)
        os.close(end)
    assert all("+-" not in word and word.endswith("+") for word in words), words
    assert any(word.startswith("-") for word in words), words


def test_a_process_that_forks_through_a_release_of_another_session_stays_fenced(
    fence: Fence, tier: Tier, secret: Path
) -> None:
    """Ending one session, again and again, frees nobody of another, however fast that one forks meanwhile."""
    over, end = os.pipe()
    os.set_blocking(over, False)

    def body() -> list[tuple[int, int]]:
        found = []
        while True:
            found.append(in_child(lambda: read(secret)))
            with contextlib.suppress(BlockingIOError):
                os.read(over, 1)
                return found

    os.write(end, b"!")
    assert fence.without(body).value == [(0, 0)]
    with fence.session(deny(secret)) as session:
        child = session.start(body)
        for _ in range(20):
            with fence.session("  []\n") as other:
                other.start(lambda: time.sleep(PATIENCE_S))
        os.write(end, b"!")
        outcome = session.finish(child)
    os.close(over)
    os.close(end)
    assert set(outcome.value) == {blocked(tier)}
