# SPDX-License-Identifier: Apache-2.0
"""Ways out of the fence that were open once. Each went through before it was closed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.errors import KernelError
from agentmon.kernel.host import BPFFS
from agentmon.kernel.monitor import Monitor
from agentmon.model.operations import Reason, Tier
from tests.support.fence import Fence
from tests.support.hosts import PATIENCE_S, Host, wait_for

SECRET = b"the content\n"
LOOPBACK = "  - {id: fence, on: [connect, send], cidrs: ['127.0.0.0/8', '::/0'], action: deny}\n"
IPPROTO_UDPLITE = 136
SYS_OPEN_TREE = 428
OPEN_TREE_CLONE = 1
AT_RECURSIVE = 0x8000


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_udp_lite_has_no_connect_hook(fence: Fence, family: socket.AddressFamily, host: str) -> None:
    try:
        ear = socket.socket(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE)
    except OSError:
        pytest.skip("not required: this kernel has no UDP-Lite (any more)")
    ear.bind((host, 0))
    ear.setblocking(False)

    def send() -> None:
        with socket.socket(family, socket.SOCK_DGRAM, IPPROTO_UDPLITE) as mouth:
            mouth.connect(ear.getsockname())
            mouth.send(b"secret")

    with ear:
        assert fence.without(send).errno == 0
        assert ear.recv(100) == b"secret"
        assert fence.run(LOOPBACK, send).errno == errno.EPERM
        with pytest.raises(BlockingIOError):
            ear.recv(100)


@pytest.mark.parametrize("flags", [OPEN_TREE_CLONE, OPEN_TREE_CLONE | AT_RECURSIVE])
def test_a_detached_copy_of_a_mount_has_no_paths(fence: Fence, tier: Tier, ground: Path, flags: int) -> None:
    (ground / "secret").write_bytes(SECRET)

    def read() -> bytes:
        libc = ctypes.CDLL(None, use_errno=True)
        tree = libc.syscall(SYS_OPEN_TREE, -100, os.fsencode(ground), flags)
        if tree < 0:
            raise OSError(ctypes.get_errno(), "open_tree")
        return os.read(os.open("secret", os.O_RDONLY, dir_fd=tree), 100)

    assert fence.without(read).value == SECRET
    outcome = fence.run(f'  - {{id: fence, on: read, paths: ["{ground}/**"], action: deny}}\n', read)
    assert outcome.value is None
    assert outcome.stopped(tier)


SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6


def call(number: int, *arguments: int | bytes | None) -> int:
    """A system call. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def mounted_nowhere(kind: bytes, **options: bytes) -> int:
    """A descriptor of a file system that is mounted without a place in any tree."""
    context = call(SYS_FSOPEN, kind, 0)
    for key, value in options.items():
        call(SYS_FSCONFIG, context, FSCONFIG_SET_STRING, key.encode(), value, 0)
    call(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
    return call(SYS_FSMOUNT, context, 0, 0)


def test_a_file_system_that_is_mounted_nowhere_has_no_paths(fence: Fence, tier: Tier, ground: Path) -> None:
    """An overlay shows a denied directory, and is no mount that a rule on `mount` is asked about."""
    if "\toverlay\n" not in Path("/proc/filesystems").read_text() and subprocess.call(["modprobe", "-q", "overlay"]):
        pytest.skip("not required: this kernel has no overlay")
    closed, other = ground / "closed", ground / "other"
    closed.mkdir()
    other.mkdir()
    (closed / "secret").write_bytes(SECRET)

    def read() -> bytes:
        tree = mounted_nowhere(b"overlay", lowerdir=os.fsencode(f"{closed}:{other}"))
        return os.read(os.open("secret", os.O_RDONLY, dir_fd=tree), 100)

    assert fence.without(read).value == SECRET
    outcome = fence.run(f'  - {{id: fence, on: read, paths: ["{closed}/**"], action: deny}}\n', read)
    assert outcome.value is None
    assert outcome.stopped(tier)
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.PATH_UNREACHABLE]


@pytest.fixture(scope="module")
def small(tier: Tier) -> Iterator[Fence]:
    """Programs with room for a few processes."""
    where = BPFFS / f"agentmon-test-{os.getpid()}-attacks"
    room = 32 + (512 if tier is Tier.LSM else 0)
    monitor = Monitor.open(pin_dir=where, tier=tier, arena_bytes=1 << 20, procs_max=room)
    try:
        yield Fence(monitor)
    finally:
        monitor.detach()


@pytest.mark.tier("react")
def test_more_lost_children_than_can_be_remembered(small: Fence, program: Callable[[str], Path]) -> None:
    """Children that found no room in the process table once pushed each other out of the list of those to be killed."""
    policy = '  - {id: fence, on: read, paths: ["/nonexistent/**"], action: deny}\n'
    outcome = small.run(policy, [program("flood"), "40", "12000"])
    assert outcome.value == b""


NOBODY = 65534
#: Says one thing to the socket argv[1] under the PID argv[2], and prints the answer.
SPEAK = """
import array, os, socket, struct, sys
path, pid, text = sys.argv[1:]
with socket.socket(socket.AF_UNIX) as s:
    s.connect(path)
    who = struct.pack("3i", int(pid) or os.getpid(), os.getuid(), os.getgid())
    s.sendmsg([text.encode() + b"\\n"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
    s.settimeout(30)
    print(s.recv(1 << 16).decode())
"""


def asked(served: Host, verb: str, **fields: object) -> dict[str, object]:
    """The daemon's answer to an ordinary user."""
    text = json.dumps({"v": 1, "id": 1, "verb": verb, **fields})
    words = [sys.executable, "-c", SPEAK, str(served.socket), "0", text]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, user=NOBODY, check=True)
    reply: dict[str, object] = json.loads(done.stdout)
    return reply


@pytest.mark.parametrize(
    ("policy", "workspace"),
    [
        ({"name": "/etc/shadow"}, "/tmp"),
        ({"name": "x.yaml", "text": "{" * 100_000}, "/"),
        ({"name": "coding-agent"}, "/\ud800"),
    ],
)
def test_no_request_opens_files_or_ends_the_daemon(served: Host, policy: dict[str, str], workspace: str) -> None:
    words = ["setpriv", "--no-new-privs", "/bin/sleep", "60"]
    with subprocess.Popen(words, user=NOBODY, group=NOBODY, extra_groups=[]) as target:
        try:
            reply = asked(served, "enroll", pid=target.pid, policy=policy, workspace=workspace)
        finally:
            target.kill()
    assert not reply["ok"]
    assert "root:" not in str(reply["error"])
    assert asked(served, "ping")["ok"]


def test_a_root_agent_cannot_pass_for_another_process(served: Host) -> None:
    """Root may put any PID into SCM_CREDENTIALS, but not into who connected."""
    policy = served.policy("  []")
    text = json.dumps({"v": 1, "id": 1, "verb": "watch"})
    done = served.agentmon("run", "-p", policy, "--", sys.executable, "-c", SPEAK, served.socket, "1", text)
    assert json.loads(done.stdout)["code"] == "forbidden", done.stderr


#: Connects to the socket argv[1] and ends; its child says argv[2] under PID 1 once nobody remembers its parent.
SPEAK_LATER = """
import array, os, socket, struct, sys, time
path, text, answer = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
s.connect(path)
if os.fork():
    os._exit(0)
time.sleep(6)  # engine.core.RECENT_NS
who = struct.pack("3i", 1, 0, 0)
s.sendmsg([text.encode() + b"\\n"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, who)])
s.settimeout(30)
open(answer + ".new", "wb").write(s.recv(1 << 16))
os.rename(answer + ".new", answer)
"""


def test_a_root_agent_cannot_speak_over_a_connection_whose_maker_is_gone(served: Host, tmp_path: Path) -> None:
    policy = served.policy("  []")
    text = json.dumps({"v": 1, "id": 1, "verb": "watch"})
    answer = tmp_path / "answer"
    words = [sys.executable, "-c", SPEAK_LATER, served.socket, text, answer]
    served.agentmon("run", "-p", policy, "--", *words)
    wait_for(answer.exists, "the answer")
    assert json.loads(answer.read_text())["code"] == "forbidden"


def test_names_do_not_reach_the_terminal_raw(served: Host, tmp_path: Path) -> None:
    policy = served.policy(f"  - {{id: fence, on: read, paths: ['{os.path.realpath(tmp_path)}/**'], action: deny}}")
    name = os.path.realpath(tmp_path) + "/a\x1b]0;owned\x07\nb"
    Path(name).touch()
    done = served.agentmon("run", "-p", policy, "--", "cat", name, stdin=subprocess.DEVNULL)
    ours = done.stderr[done.stderr.index("agentmon: session") :]
    assert "\\x1b]0;owned\\x07\\nb: fence" in ours
    assert "\x1b" not in ours


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_place_for_pins_that_somebody_else_made_is_not_used(kind: str, tmp_path: Path) -> None:
    """Everyone may write in the root of a bpffs, and whoever owns a directory may rename what is in it."""
    place = BPFFS / f"agentmon-test-{os.getpid()}-squatted"
    words = ["mkdir", str(place)] if kind == "directory" else ["ln", "-s", str(tmp_path), str(place)]
    subprocess.run(words, user=NOBODY, group=NOBODY, extra_groups=[], check=True)
    try:
        with pytest.raises(KernelError, match=f"made by uid {NOBODY}"):
            Monitor.open(pin_dir=place, arena_bytes=1 << 20)
    finally:
        place.rmdir() if kind == "directory" else place.unlink()
