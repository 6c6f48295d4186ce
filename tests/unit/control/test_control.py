# SPDX-License-Identifier: Apache-2.0
"""The control socket: framing, senders, limits."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentmon.control.client import Client, reachable
from agentmon.control.protocol import MAX_LINE_BYTES, Peer, RefusedError, UnreachableError, decode, encode
from agentmon.control.server import Connection, Server
from agentmon.errors import ControlError
from tests.support.served import Loop


def handle(connection: Connection, peer: Peer, verb: str, fields: dict[str, Any]) -> dict[str, Any]:
    if verb == "who":
        return {"ok": True, "pid": peer.pid, "uid": peer.uid}
    if verb == "watch":
        connection.watching = lambda _: True
        return {"ok": True}
    return {"ok": False, "error": f"unknown `{verb}`", "code": "denied", "fields": fields}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loop]:
    loop = Loop(tmp_path / "control.sock", handle)
    yield loop
    loop.stop()
    assert not loop.server.path.exists()


@pytest.fixture
def raw(served: Loop) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(served.server.path))
        yield sock


def answer(sock: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        chunk = sock.recv(65536)
        assert chunk, "closed"
        data += chunk
    found: dict[str, Any] = json.loads(data)
    return found


def test_each_message_has_its_own_sender(served: Loop) -> None:
    with Client(served.server.path) as client:
        assert client.call("who")["pid"] == os.getpid()
        child = os.fork()
        if child == 0:  # the same connection, another process
            reply = client.call("who")
            os._exit(0 if reply["pid"] == os.getpid() else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_credentials_cannot_be_forged(raw: socket.socket) -> None:
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:  # root may claim any identity
                os.setresuid(65534, 65534, 65534)
            forged = array.array("i", struct.unpack("3i", struct.pack("iII", 1, 0, 0)))
            raw.sendmsg([encode({"verb": "who"})], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)])
        except PermissionError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_refusal_keeps_its_code_and_fields(served: Loop) -> None:
    with Client(served.server.path) as client, pytest.raises(RefusedError, match="unknown `fly`") as caught:
        client.call("fly", high=True)
    assert (caught.value.exit_code, caught.value.reply["fields"]) == (2, {"high": True})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{oops\n", "not JSON: column 2"),
        (b"[1]\n", "a message is a JSON object, not `list`"),
        (b'{"verb":"who"}\n', "protocol version `None` is not known"),
        (b'{"v":2,"verb":"who"}\n', "protocol version `2`"),
        (b'{"v":1}\n', "the field `verb` is missing"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"x" * (MAX_LINE_BYTES + 1), "at most"),
    ],
)
def test_bad_messages_are_told_what_is_wrong(raw: socket.socket, line: bytes, words: str) -> None:
    raw.sendall(line)
    reply = answer(raw)
    assert reply["ok"] is False
    assert words in reply["error"]


def test_messages_in_pieces_and_in_bunches(raw: socket.socket) -> None:
    line = encode({"id": 1, "verb": "who"})
    raw.sendall(line[:5])
    raw.sendall(line[5:] + encode({"id": 2, "verb": "who"}))
    with raw.makefile("rb") as replies:
        assert [json.loads(replies.readline())["id"] for _ in range(2)] == [1, 2]


def test_a_line_of_two_senders_is_refused(served: Loop, raw: socket.socket) -> None:
    raw.sendall(b'{"v":1,')
    served.call(lambda: None)
    child = os.fork()
    if child == 0:
        raw.sendall(b'"verb":"who"}\n')
        os._exit(0)
    os.waitpid(child, 0)
    assert "two different senders" in answer(raw)["error"]


def test_a_slow_watcher_loses_records_and_is_told_how_many(served: Loop) -> None:
    with Client(served.server.path) as client:
        stream = client.stream("watch")
        assert next(stream)["ok"]
        line = encode({"event": {"n": 0, "pad": "x" * 10_000}})

        def publish() -> None:
            for _ in range(1000):
                served.server.publish(None, lambda: line)

        served.call(publish)
        dropped = served.server.dropped
        assert dropped > 0
        received = 0
        told = 0
        while received + told < 1000:
            if received == 1000 - dropped:
                served.call(lambda: served.server.publish(None, lambda: line))
            message = next(stream)
            told += message.get("dropped", 0)
            received += "event" in message
        assert told == dropped


def test_nobody_there_is_said_with_the_remedy(tmp_path: Path) -> None:
    assert not reachable(tmp_path / "none.sock")
    with pytest.raises(UnreachableError, match="systemctl start agentmon"):
        Client(tmp_path / "none.sock")


def test_a_second_server_is_refused_and_a_stale_socket_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = Loop(path, handle)

    async def second() -> None:
        Server(path, handle).start()

    with pytest.raises(ControlError, match="another daemon answers"):
        asyncio.run(second())
    first.stop()
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    third = Loop(path, handle)
    with Client(path) as client:
        client.call("who")
    third.stop()


def test_decode_names_the_place() -> None:
    with pytest.raises(ControlError, match="column 10"):
        decode(b'{"v": 1, x}')
