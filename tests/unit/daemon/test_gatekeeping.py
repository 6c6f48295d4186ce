# SPDX-License-Identifier: Apache-2.0
"""What a daemon leaves for the next one, and what systemd hands back."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from agentmon.daemon.gatekeeping import Left, left_in, reopened, still_waits
from agentmon.daemon.notify import listened, notify
from agentmon.host import process
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Operation


def left(**other: object) -> Left:
    what: dict[str, object] = {
        "process": ProcessKey(12, 1 << 62),
        "tid": 13,
        "held": (1 << 64) - 1,
        "gate": "gate-0",
        "number": 40,
        "to_run": False,
        "operations": frozenset((Operation.READ, Operation.WRITE)),
        "file": (1, 2),
        "path": b"/not/\xff/text",
        "call": ("257", "0x1"),
    }
    return Left(**{**what, **other})  # type: ignore[arg-type]


def test_what_is_written_down_is_what_is_read(tmp_path: Path) -> None:
    both = [left(), left(to_run=True, operations=frozenset(), number=41)]
    (tmp_path / "held.json").write_text(json.dumps({"opens": [one.row() for one in both]}))
    assert left_in(tmp_path) == both


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"opens": 1}', '{"opens": [[1]]}', '{"opens": [{}]}', "\udcff"])
def test_what_cannot_be_read_leaves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "held.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert left_in(tmp_path) == []


def test_who_is_gone_or_does_something_else_waits_no_more() -> None:
    own = ProcessKey(os.getpid(), process.stat(os.getpid()).start_ticks * (10**9 // os.sysconf("SC_CLK_TCK")))
    assert process.is_alive(own)
    assert not still_waits(left(process=own, tid=own.pid))
    assert not still_waits(left(process=own, tid=1))
    assert not still_waits(left())


def test_a_file_is_found_again_by_its_name_if_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("as shown")
    found = path.stat()
    one = left(path=os.fsencode(path), file=(found.st_dev, found.st_ino))
    opening = reopened(one)
    assert opening is not None
    assert (os.read(opening.fd, 99), opening.name, opening.tid) == (b"as shown", 40, 13)
    os.close(opening.fd)
    os.link(path, tmp_path / "kept")  # so that its number is not given away
    path.unlink()
    assert reopened(one) is None
    path.write_text("another")
    assert reopened(one) is None


def test_systemd_is_handed_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, open(tmp_path / "file", "w") as file:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("FDSTORE=1\nFDNAME=x", [file.fileno()])
        text, fds, _, _ = socket.recv_fds(systemd, 100, 2)
        assert (text, os.path.samestat(os.fstat(fds[0]), os.fstat(file.fileno()))) == (b"FDSTORE=1\nFDNAME=x", True)
        os.close(fds[0])


def test_what_systemd_gives_is_taken_once_and_only_by_whom_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(pid: int) -> None:
        for name, value in {"PID": str(pid), "FDS": "2", "FDNAMES": "gate-1:gate-2"}.items():
            monkeypatch.setenv(f"LISTEN_{name}", value)

    monkeypatch.setattr("agentmon.daemon.notify._FIRST", 1000)  # they are not there, and that is no error
    given(os.getpid())
    assert listened() == [("gate-1", 1000), ("gate-2", 1001)]
    assert listened() == []
    given(1)
    assert listened() == []
    assert "LISTEN_PID" not in os.environ
