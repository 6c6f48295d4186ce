# SPDX-License-Identifier: Apache-2.0
"""Facts about real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentmon.host import interfaces, process
from agentmon.host.freeze import Freezer
from agentmon.host.holdings import Holding, holdings
from agentmon.model.events import Address, ProcessKey
from agentmon.model.operations import Operation
from agentmon.resolver.names import pack

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def python(script: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that says when its script is done, then sleeps."""
    child = subprocess.Popen(
        [sys.executable, "-c", f"{script}\nprint('ready', flush=True)\nimport time\ntime.sleep(1000)"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def key(pid: int) -> ProcessKey:
    return ProcessKey(pid, process.stat(pid).start_ticks * TICK_NS + 123)


def find(found: list[Holding], where: str) -> dict[Operation, Holding]:
    return {h.operation: h for h in found if h.id == where}


def test_names_with_brackets_and_spaces(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "1000"]) as child:
        stat = process.stat(child.pid)
        child.kill()
    assert (stat.comm, stat.ppid, stat.kernel) == ("a) R (b", os.getpid(), False)


def test_signals_reach_the_right_process_or_none() -> None:
    with subprocess.Popen(["sleep", "1000"]) as child:
        right = key(child.pid)
        wrong = ProcessKey(child.pid, right.start_ns + 50 * TICK_NS)
        assert not process.send_signal(wrong, signal.SIGKILL)
        assert process.is_alive(right)
        assert process.send_signal(right, signal.SIGKILL)
        child.wait()
        assert not process.send_signal(right, signal.SIGKILL)


def test_only_what_ran_is_frozen_and_goes_on() -> None:
    with subprocess.Popen(["sleep", "1000"]) as one, subprocess.Popen(["sleep", "1000"]) as two:
        two.send_signal(signal.SIGSTOP)
        while process.stat(two.pid).state != "T":
            time.sleep(0.001)
        with Freezer() as freezer:
            assert freezer.freeze([key(one.pid), key(two.pid)]) == []
            assert freezer.frozen == [key(one.pid)]
            assert process.stat(one.pid).state == "T"
        time.sleep(0.05)
        assert process.stat(one.pid).state == "S"
        assert process.stat(two.pid).state == "T"
        one.kill()
        two.kill()


def test_what_a_process_holds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5000)
    (tmp_path / "gone").write_text("x")
    script = f"""
import mmap, os, socket
os.chdir({str(tmp_path)!r})
def at(fd, to): os.dup2(fd, to); os.close(fd)
at(os.open("file", os.O_RDONLY), 50)
at(os.open("file", os.O_WRONLY), 51)
at(os.open("gone", os.O_RDWR), 52); os.unlink("gone")
at(os.open("file", os.O_PATH), 53)
fd = os.open("file", os.O_RDWR); shared = mmap.mmap(fd, 4096); os.close(fd)
server = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(server.getsockname())
os.dup2(client.fileno(), 54)
at(socket.socket(socket.AF_UNIX).detach(), 55); at(socket.socket().detach(), 56)
try: at(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).detach(), 57)  # MPTCP
except OSError: pass
print(server.getsockname()[1], flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", f"{script}\nimport time\ntime.sleep(1000)"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        found = holdings(child.pid)
    finally:
        child.kill()
        child.wait()
    file = str(tmp_path / "file").encode()
    assert find(found, f"{child.pid}:fd50").keys() == {Operation.READ}
    assert find(found, f"{child.pid}:fd51").keys() == {Operation.WRITE}
    assert find(found, f"{child.pid}:fd52")[Operation.WRITE].object == str(tmp_path / "gone").encode()
    assert find(found, f"{child.pid}:fd53") == {}
    packed = b"\0" * 10 + b"\xff\xff\x7f\0\0\1"
    assert find(found, f"{child.pid}:fd54")[Operation.CONNECT].object == Address(socket.AF_INET, packed, port, 6)
    assert find(found, f"{child.pid}:fd55") == find(found, f"{child.pid}:fd56") == {}
    for held in find(found, f"{child.pid}:fd57").values():
        assert held.object is None
        assert held.text == "a `MPTCP` socket, which no rule can judge"
    assert any(h.operation is Operation.WRITE and h.object == file and ":map" in h.id for h in found)
    program = os.path.realpath(sys.executable).encode()
    assert find(found, f"{child.pid}:exe")[Operation.EXEC].object == program


def test_scripts_are_found_as_their_process_means_them(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("")
    (tmp_path / "link").symlink_to("x.sh")
    with python(f"import os; os.chdir({str(tmp_path)!r}); os.dup2(os.open('x.sh', 0), 60)") as child:
        wanted = str(tmp_path / "x.sh").encode()
        for name in (b"./x.sh", b"link", wanted, b"/dev/fd/60", b"/proc/self/fd/60"):
            assert process.resolve_script(child.pid, name) == wanted, name
        assert process.resolve_script(child.pid, b"none") is None
        assert process.resolve_script(child.pid, b"") is None


def test_a_missing_process_is_said() -> None:
    with pytest.raises(ProcessLookupError, match="there is no process `999999999`"):
        process.stat(999_999_999)
    with pytest.raises(ProcessLookupError):
        holdings(999_999_999)
    assert not process.is_alive(ProcessKey(999_999_999, 1))
    assert not process.is_descendant(999_999_999, 5)
    assert process.is_descendant(os.getpid(), os.getppid())


def test_addresses_of_interfaces_and_of_their_links_are_here() -> None:
    known = interfaces.Interfaces(
        lambda: [
            ("203.0.113.9", "255.255.255.240"),
            ("2001:db8:7::9%eth0", "ffff:ffff:ffff:ffff::"),
            ("2001:db8:8::9", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("198.51.100.1", None),  # the end of a tunnel
            ("198.51.100.5", "0.0.0.0"),  # all addresses are not here
            ("198.51.100.9", "255.0.255.0"),
            ("neither", "nor"),
        ]
    )
    for address in ("203.0.113.9", "203.0.113.1", "2001:db8:7::9", "2001:db8:7::1234", "2001:db8:8::9", "198.51.100.1",
                    "198.51.100.5", "198.51.100.9"):  # fmt: skip
        assert known.hold(pack(address)), address
    for address in ("203.0.113.16", "2001:db8:7:1::1", "2001:db8:8::8", "198.51.100.2", "198.51.100.8", "8.8.8.8"):
        assert not known.hold(pack(address)), address


def test_interfaces_are_listed_anew_and_what_was_known_stays_when_that_fails() -> None:
    now, found, asked = [0.0], [("203.0.113.9", "255.255.255.255")], []

    def read() -> list[interfaces.Listed]:
        asked.append(now[0])
        if not found:
            raise OSError("no descriptors")
        return list(found)

    known = interfaces.Interfaces(read, lambda: now[0])
    found[:] = [("203.0.113.10", "255.255.255.255")]
    now[0] = 9
    assert known.hold(pack("203.0.113.9"))
    now[0] = 10
    assert not known.hold(pack("203.0.113.9"))
    assert known.hold(pack("203.0.113.10"))
    found.clear()
    now[0] = 25
    assert known.hold(pack("203.0.113.10"))
    assert known.hold(pack("203.0.113.10"))
    assert asked == [0, 10, 25]


def test_this_host_has_its_loopback() -> None:
    assert interfaces.Interfaces().hold(pack("127.1.2.3"))
