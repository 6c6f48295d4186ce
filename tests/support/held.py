# SPDX-License-Identifier: Apache-2.0
"""An agent that is held when it connects, whom it connects to, and what people see of that."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

from agentmon.control.protocol import RefusedError
from agentmon.kernel.host import cgroup2_root
from tests.support.hosts import PATIENCE_S, Host, wait_for


class Sink:
    """A server of our own, and who connected."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.server = socket.create_server((address, 0))
        self.port = self.server.getsockname()[1]
        self.heard: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self.server.accept()[0]
            except OSError:
                return
            self.heard.append(connection.recv(100))
            connection.close()


def agent(host: Host, policy: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    """An agent of a few lines of Python, in a session of its own."""
    words = ["run", "-p", policy, "--", sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    return host.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def agent_in_wait(host: Host, policy: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    """The same, once it is fenced; what it does, it does when it reads a line: `go`."""
    words = ["run", "-p", policy, "--", sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    running = host.spawn(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    wait_for(lambda: host.json("ps")["sessions"], "the session")
    return running


def go(running: subprocess.Popen[str]) -> None:
    assert running.stdin is not None
    running.stdin.write("go\n")
    running.stdin.flush()


def approvals(host: Host) -> list[dict[str, Any]]:
    """As `agentmon approvals --json` has them; a command line each time would be slow in a guest."""
    with host.client() as client:
        found: list[dict[str, Any]] = client.call("approvals", all=False)["approvals"]
    return found


def asked(host: Host, number: int = 1) -> list[dict[str, Any]]:
    """The questions, once there are so many."""
    found: list[dict[str, Any]] = []

    def enough() -> bool:
        found[:] = approvals(host)
        return len(found) >= number

    try:
        wait_for(enough, f"{number} question(s)")
    except AssertionError as error:
        told = host.agentmon("audit", "log").stdout[-1500:]
        raise AssertionError(f"{error}; the audit log ends with:\n{told}") from None
    return found


def frozen(host: Host) -> dict[str, Any]:
    """The one question, once it is frozen and written down. Until then, a daemon that dies has it denied."""
    question = asked(host)[0]
    wait_for(lambda: stands_still(question["pid"]), "it to be frozen")
    wait_for(lambda: is_written_down(host, question["id"]), "it to be written down")
    return question


def is_written_down(host: Host, what: str, times: int = 1) -> bool:
    """Whether the daemon's next one will know of it."""
    saved = host.state / "held.json"
    return saved.exists() and saved.read_text().count(what) >= times


def another(host: Host, *seen: dict[str, Any]) -> dict[str, Any]:
    """The question that is asked after these."""
    known = {question["id"] for question in seen}
    wait_for(lambda: [q for q in approvals(host) if q["id"] not in known], "to be asked again")
    (found,) = [q for q in approvals(host) if q["id"] not in known]
    return found


def received(ear: socket.socket) -> list[bytes]:
    """The datagrams that have arrived."""
    found = []
    while True:
        try:
            found.append(ear.recv(100))
        except BlockingIOError:
            return found


def stands_still(pid: int) -> bool:
    """Whether it is in a cgroup of its own that is frozen by now, which takes a moment."""
    where = Path(f"/proc/{pid}/cgroup").read_text().rpartition("::")[2].strip()
    events = cgroup2_root() / where.lstrip("/") / "cgroup.events"
    return "agentmon-held" in where and "frozen 1" in events.read_text()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, error = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out + error


def agree(host: Host, running: subprocess.Popen[str]) -> list[str]:
    """Approve whatever is asked until it ends; what was asked."""
    seen: list[str] = []
    while running.poll() is None:
        for question in approvals(host):
            seen.append(f"{question['does']} {os.path.basename(question['object'])}")
            with contextlib.suppress(RefusedError), host.client() as client:  # it may have ended
                client.call("approve", approval=question["id"], scope="once")
        time.sleep(0.05)
    return seen


#: Threads that read one file together, each of which prints it.
READERS = """
    import sys, threading
    def read():
        print(open(sys.argv[1]).read())
    threads = [threading.Thread(target=read) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
"""

#: Runs a file (`exec`), and rewrites it through a mapping: each thing when it is told to (`tell`).
MAPPER = """
    import mmap, os, sys
    file = sys.argv[1]
    ready, start = os.pipe()
    if not (child := os.fork()):
        os.read(ready, 1)
        try:
            os.execv(file, [file, "as shown"])
        except OSError as error:
            os._exit(error.errno)
    for word in map(str.strip, sys.stdin):
        if word == "exec":
            os.write(start, b"x")
        elif word == "map":
            with open(file, "r+b") as opened:
                mapped = mmap.mmap(opened.fileno(), 0)
            place = mapped.find(b"as shown")
            mapped[place : place + 8] = b"as shown"  # its page is dirty from now on
        elif word == "write":
            mapped[place : place + 8] = b"another!"
        elif word == "unmap":
            mapped.close()
        print(word, flush=True)
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def tell(running: subprocess.Popen[str], *words: str) -> None:
    """Have it do these things, of what it does by its input, one after another."""
    assert running.stdin is not None
    assert running.stdout is not None
    for word in words:
        running.stdin.write(f"{word}\n")
        running.stdin.flush()
        while (line := running.stdout.readline()) != f"{word}\n":
            assert line, f"it ended before {word}"


#: Appends to a file, then reads and writes it.
APPENDER = """
    import sys
    open(sys.argv[1], "a").close()
    print(open(sys.argv[1], "r+").read())
"""

CONNECT = """
    import socket, sys
    try:
        s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        s.send(b"hello")
        print("sent")
    except OSError as error:
        print(error.errno)
"""
