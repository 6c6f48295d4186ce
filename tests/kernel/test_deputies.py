# SPDX-License-Identifier: Apache-2.0
"""The pack `escape` at work: services outside of the session, at the names that they really have."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.model.operations import Action, Tier
from agentmon.policy.load import load
from agentmon.policy.rules import Variables
from tests.support.fence import ALLOW_ALL, Fence, blocked, in_child
from tests.support.hosts import PATIENCE_S

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC_PRIVATE = 0x44000
SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1

Name = str | tuple[str, int]
#: Each with the rule that denies it.
DENIED: dict[Name, str] = {
    "/run/docker.sock": "container-sockets",
    "/run/containerd/containerd.sock": "container-sockets",
    "/run/podman/podman.sock": "container-sockets",
    "/run/user/1000/podman/podman.sock": "container-sockets",
    "/run/dbus/system_bus_socket": "service-managers",
    "/run/user/1000/bus": "service-managers",
    "/run/user/1000/systemd/private": "service-managers",
    "/run/systemd/private": "service-managers",
    "/tmp/ssh-X/agent.1": "key-agents",
    "/run/user/1000/gnupg/S.gpg-agent": "key-agents",
    "\0/tmp/.X11-unix/X0": "displays",
    "/tmp/.X11-unix/X0": "displays",
    "/run/user/1000/wayland-0": "displays",
    "/tmp/tmux-1000/default": "terminals",
    "/run/screen/S-me/1.pts-0.host": "terminals",
    "/run/user/1000/vscode-ipc-1.sock": "terminals",
    ("127.0.0.1", 2375): "container-control",
    ("::1", 2375): "container-control",
    ("127.0.0.1", 2376): "container-control",
    ("127.0.0.1", 6000): "forwarded-display",
    ("127.0.0.1", 9222): "debug-ports",
    ("127.0.0.1", 9229): "debug-ports",
    ("169.254.169.254", 80): "cloud-metadata",
    ("fd00:ec2::254", 80): "cloud-metadata",
}
FREE: list[Name] = ["/run/mine/socket", "\0/tmp/mine", ("127.0.0.1", 8888)]
NAMES = [*DENIED, *FREE]


def family(name: Name) -> socket.AddressFamily:
    if isinstance(name, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in name[0] else socket.AF_INET


def checked(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def bind(ear: socket.socket, name: Name) -> None:
    """An IPv6 address may be bound a moment after it was added: the kernel checks it first, for loopback too."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ear.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def serve(ask: int, answer: int) -> None:
    """Serves all names, with mounts and a network of its own; for each byte tells which of them heard something."""
    checked(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    checked(LIBC.mount(b"none", b"/", None, MS_REC_PRIVATE, None), "mount")
    for place in (b"/run", b"/tmp"):
        checked(LIBC.mount(b"tmpfs", place, b"tmpfs", 0, b"mode=755"), "mount")
    with socket.socket() as sock, socket.socket(socket.AF_INET6) as sock6:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        metadata = socket.inet_aton("169.254.169.254")
        fcntl.ioctl(sock, SIOCSIFADDR, struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, metadata))
        metadata = socket.inet_pton(socket.AF_INET6, "fd00:ec2::254")
        fcntl.ioctl(sock6, SIOCSIFADDR, struct.pack("=16sIi", metadata, 128, socket.if_nametoindex("lo")))
    ears = []
    for name in NAMES:
        if isinstance(name, str) and name[0] == "/":
            Path(name).parent.mkdir(parents=True, exist_ok=True)
        ear = socket.socket(family(name))
        bind(ear, name)
        ear.listen()
        ear.setblocking(False)
        ears.append(ear)
    os.write(answer, b"!")
    while os.read(ask, 1):
        os.write(answer, bytes(hears(ear) for ear in ears))


def hears(ear: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError), ear.accept()[0] as talk:
        return talk.recv(10) == b"hello"
    return False


class Deputies:
    """The services, and how to get to them."""

    def __init__(self) -> None:
        asked, self._ask = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            with contextlib.suppress(BaseException):
                os.close(self._ask)
                serve(asked, answer)
            os._exit(1)
        os.close(asked)
        os.close(answer)
        assert os.read(self._answer, 1) == b"!"
        self._spaces = [os.open(f"/proc/{self._pid}/ns/{kind}", os.O_RDONLY) for kind in ("mnt", "net")]

    def heard(self) -> list[Name]:
        """Which of them heard something since it was asked last."""
        os.write(self._ask, b"?")
        return [name for name, came in zip(NAMES, os.read(self._answer, 100), strict=True) if came]

    def reach_all(self) -> list[tuple[int, int]]:
        """How it goes to talk to each, for a child that may go where they are."""
        for space in self._spaces:
            checked(LIBC.setns(space, 0), "setns")
        return [in_child(lambda name=name: reach(name)) for name in NAMES]

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        for fd in (self._ask, self._answer, *self._spaces):
            os.close(fd)


def reach(name: Name) -> None:
    with socket.socket(family(name)) as sock:
        sock.settimeout(20)
        sock.connect(name)
        sock.send(b"hello")


@pytest.fixture
def deputies() -> Iterator[Deputies]:
    served = Deputies()
    yield served
    served.close()


def test_no_confused_deputy_is_told_anything(fence: Fence, tier: Tier, deputies: Deputies) -> None:
    plain = fence.without(deputies.reach_all)
    assert plain.value == [(0, 0)] * len(NAMES)
    assert deputies.heard() == NAMES
    outcome = fence.run(f"policy: open\ninclude: [escape]\n{ALLOW_ALL}", deputies.reach_all)
    denied = [blocked(tier) if isinstance(name, str) else (errno.EPERM, 0) for name in DENIED]
    assert outcome.value == [*denied, *[(0, 0)] * len(FREE)]
    assert deputies.heard() == FREE
    assert [(verdict, rule) for _, verdict, rule in outcome.told()] == [("deny", rule) for rule in DENIED.values()]


# ---- what the owner's own tools run in the workspace

ESCAPE = f"policy: open\ninclude: [escape]\n{ALLOW_ALL}"


@pytest.fixture
def workspace(ground: Path) -> Path:
    made = ground / "workspace"
    (made / ".git").mkdir(parents=True)
    (ground / "home").mkdir()
    return made


@pytest.fixture
def variables(workspace: Path) -> Variables:
    return Variables.of(workspace=str(workspace), home=str(workspace.with_name("home")), user="root")


@pytest.fixture
def repository(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that git made, in a home without configuration."""
    if shutil.which("git") is None:
        pytest.skip("not required: this host has no `git`")
    monkeypatch.setenv("HOME", str(workspace.with_name("home")))
    (workspace / ".git").rmdir()
    subprocess.run(["git", "init", "-q", "-b", "main", workspace], check=True)
    return workspace


@pytest.mark.parametrize(
    ("name", "rule"),
    [(".git/config", "git-config-edited"), (".git/config.worktree", "git-config-edited"), (".envrc", "envrc")],
)
@pytest.mark.parametrize("there", [True, False], ids=["changed", "made"])
def test_no_file_whose_programs_others_run_is_written(
    fence: Fence, tier: Tier, workspace: Path, variables: Variables, name: str, rule: str, there: bool
) -> None:
    path, beside = workspace / name, workspace / "beside"

    def reset() -> None:
        path.unlink(missing_ok=True)
        if there:
            path.write_text("as it was\n")

    def body() -> None:
        beside.write_text("the agent's own\n")
        with path.open("a") as file:
            file.write("run this\n")

    reset()
    assert fence.without(body).errno == 0
    assert path.read_text().endswith("run this\n")
    reset()
    with fence.session(ESCAPE, variables) as session:
        outcome = session.run(body)
    assert outcome.stopped(tier)
    assert beside.exists()
    # react: an empty file is there when the process dies for it
    assert (path.read_text() if path.exists() else "") == ("as it was\n" if there else "")
    assert outcome.told() == [("write" if there else "create", "deny", rule)]


#: What writes `.git/config`, and what is asked of it, day by day.
WORK = """
set -e
git config user.name me
git config user.email me@example.org
git commit -q --allow-empty -m one
git checkout -q -b feature
git remote add origin "$1"
git push -q -u origin feature main
git branch -q -u origin/main
git branch -q -m feature other
git remote set-url origin "$1"
git fetch -q
git config core.pager cat
git config --get core.hooksPath || true
git -c core.editor=true commit -q --allow-empty --amend
git clone -q "$1" copy
echo >> copy/.git/config
cp -r copy another
git worktree add -q ../tree main
git config --unset core.pager
git remote remove origin
rm .git/config
git init -q .
echo done
"""


def test_ordinary_work_with_git_goes_on(fence: Fence, repository: Path, variables: Variables) -> None:
    """Under the whole of `coding-agent`: nothing is denied, and what git writes is recorded."""
    remote = repository.with_name("remote.git")
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", remote], check=True)
    words = ["/bin/sh", "-c", f"cd {repository}\n{WORK}", "work", remote]
    with fence.session(load("coding-agent"), variables) as session:
        outcome = session.run(words)
    assert (outcome.status, outcome.value) == (0, b"done\n")
    assert outcome.told(Action.HOLD) == []
    assert {rule for _, _, rule in outcome.told()} == {"git-config"}
