# SPDX-License-Identifier: Apache-2.0
"""Who is told that something is held: each channel by what it delivers, and that nobody waits for one."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pwd
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon import channels, config
from agentmon.daemon.channels import Desktop, Hook, Message, UndeliveredError, Webhook
from agentmon.daemon.notifications import QUEUED, Notifications, as_message, open_channels, warning
from agentmon.engine import Approval
from agentmon.errors import ConfigError
from agentmon.model.records import Record
from tests.support.hosts import wait_for


def approval(number: int = 1, object_: str = "192.0.2.7:22") -> Approval:
    return Approval(f"a-{number}", "s-1", 1, "connect", object_, "push", "ask", "git", 1000, 5, 6, 7)


def message(event: str = "asked", object_: str = "192.0.2.7:22") -> dict[str, Any]:
    return as_message(event, approval(object_=object_), os.getuid(), ["git", "push"])


class Server:
    """Answers with the next of its statuses (then 200), and keeps what it got."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append((self.path, dict(self.headers), body))
                self.send_response(outer.statuses.pop(0) if outer.statuses else 200)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/hook?x=1"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_webhook_gets_the_message_signed(server: Server) -> None:
    Webhook(server.url, b"word").send(message())
    ((path, headers, body),) = server.got
    assert path == "/hook?x=1"
    assert headers["X-Agentmon-Signature"] == "sha256=" + hmac.new(b"word", body, hashlib.sha256).hexdigest()
    told = json.loads(body)
    assert (told["event"], told["id"], told["object"], told["command"]) == ("asked", "a-1", "192.0.2.7:22", "git push")


@pytest.mark.parametrize(
    ("statuses", "tries", "delivered"),
    [([500, 503], 3, True), ([500, 500, 500], 3, False), ([429], 2, True), ([404], 1, False), ([302], 1, False)],
)
def test_a_webhook_is_tried_thrice_where_that_may_help(
    server: Server, statuses: list[int], tries: int, delivered: bool
) -> None:
    server.statuses = list(statuses)
    webhook = Webhook(server.url, b"word", (0, 0))
    if delivered:
        webhook.send(message())
    else:
        with pytest.raises(UndeliveredError, match=f"status {statuses[-1]}"):
            webhook.send(message())
    assert len(server.got) == tries
    assert len({body for _, _, body in server.got}) == 1


def test_a_server_that_is_not_there_is_no_disaster(server: Server) -> None:
    server.http.server_close()
    with pytest.raises(UndeliveredError, match=r"127\.0\.0\.1"):
        Webhook(server.url, b"word", (0, 0)).send(message())


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_command_gets_the_message_on_its_standard_input(tmp_path: Path) -> None:
    hook = script(tmp_path / "hook", f'cat > {tmp_path}/got; echo "$1" >> {tmp_path}/got')
    Hook([str(hook), "one argument"]).send(message())
    told, argument = (tmp_path / "got").read_text().splitlines()
    assert json.loads(told)["rule"] == "push"
    assert argument == "one argument"


def test_a_command_that_fails_or_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UndeliveredError, match="failed with status 3"):
        Hook([str(script(tmp_path / "hook", "exit 3"))]).send(message())
    with pytest.raises(UndeliveredError, match="cannot run"):
        Hook([str(tmp_path / "none")]).send(message())


def test_a_command_that_does_not_end_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "LIMIT_S", 0.5)
    hook = script(tmp_path / "hook", f"sleep 1000 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(UndeliveredError, match="did not end within"):
        Hook([str(hook)]).send(message())
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text(), "its end")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_command_runs_as_the_user_who_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    hook = script(tmp_path / "hook", f"(id -u; id -g; cat) > {tmp_path}/got")
    Hook([str(hook)], "nobody").send(message())
    nobody = pwd.getpwnam("nobody")
    assert (tmp_path / "got").read_text().splitlines()[:2] == [str(nobody.pw_uid), str(nobody.pw_gid)]


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user who is logged in, and a notify-send that writes down what it was told."""
    script(tmp_path / "notify-send", f'printf "%s\\n" "$DBUS_SESSION_BUS_ADDRESS" "$@" >> {tmp_path}/shown')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / str(os.getuid())).mkdir()
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / str(os.getuid()) / "bus"))
        yield tmp_path


def test_a_desktop_shows_what_is_held(desktop: Path) -> None:
    Desktop(desktop).send(message("changed", "/tmp/<b>\x1b[2J"))
    lines = (desktop / "shown").read_text().splitlines()
    assert lines[0] == f"unix:path={desktop}/{os.getuid()}/bus"
    assert "a-1 of s-1 changed while it was held" in " ".join(lines)
    assert "connect /tmp/&lt;b&gt;\\x1b[2J" in lines
    assert "agentmon approve a-1" in lines


def test_a_rise_of_the_risk_is_told_with_its_reasons() -> None:
    record = Record(
        5,
        "session",
        "s-1",
        uid=1000,
        operation="risk",
        detail="high, was normal",
        reason="read etc/keys (cat): none; b",
    )
    title, text = channels.told(warning(record, "claude"))
    assert title == "agentmon: the risk of s-1 rose"
    assert text.splitlines() == ["high, was normal", "read etc/keys (cat): none", "b", "by claude", "agentmon ps"]
    title, _ = channels.told(warning(record._replace(operation="drift", object="mine"), ""))
    assert title == "agentmon: baseline mine drifts"


def test_who_has_no_desktop_is_not_told_there(desktop: Path) -> None:
    (desktop / str(os.getuid()) / "bus").unlink()
    Desktop(desktop).send(message())
    assert not (desktop / "shown").exists()


def test_a_bus_that_is_no_socket_is_not_used(desktop: Path) -> None:
    bus = desktop / str(os.getuid()) / "bus"
    bus.unlink()
    bus.write_text("")
    with pytest.raises(UndeliveredError, match="no socket"):
        Desktop(desktop).send(message())


class Slow:
    """A channel that holds its thread until it is told to go on."""

    name = "slow"

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()
        self.got: list[Message] = []

    def send(self, message: Message) -> None:
        self.begun.set()
        self.go.wait()
        self.got.append(message)
        if message["id"] == "a-2":
            raise UndeliveredError("not today")


def test_nobody_waits_for_a_channel_and_what_is_too_much_is_counted() -> None:
    slow, said = Slow(), list[str]()
    notifications = Notifications([slow], said.append)
    notifications.tell("asked", approval(1), 0, ["x"])
    assert slow.begun.wait(60)
    for number in range(2, QUEUED + 4):
        notifications.tell("asked", approval(number), 0, ["x"])
    assert notifications.dropped == 2
    slow.go.set()
    wait_for(lambda: notifications.sent + notifications.failed == QUEUED + 1, "all that was queued")
    assert notifications.failed == 1
    assert [m["id"] for m in slow.got] == [f"a-{n}" for n in range(1, QUEUED + 2)]
    assert "notify: slow: not today" in said
    assert any("a-66 is not told" in line for line in said)


def test_what_an_agent_chose_is_made_fit_to_be_shown() -> None:
    told = as_message("asked", approval(object_="/x\x1b]0;\n\udcff" + "y" * 5000), 0, ["sh", "-c", "a\nb"])
    assert told["object"].startswith("/x\\x1b]0;\\n\\udcffyyy")
    assert len(told["object"]) < 1100
    assert told["command"] == "sh -c 'a\\nb'"
    json.dumps(told).encode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("desktp = true\n", ":4:1: unknown key `desktp`, did you mean `desktop`?"),
        ("desktop = 7\n", ":4:1: `desktop`: "),
        ('webhook = "https://h/x"\n', ":3:1: `notify`: `webhook` needs a `secret_file`"),
        ('secret_file = "/s"\nwebhook = "ftp://h/x"\n', ":5:1: `webhook`: is no address of a web server"),
        ('secret_file = "/s"\nwebhook = "https://me:word@h/x"\n', ":5:1: `webhook`: is no address of a web server"),
        ('command = "/bin/x"\n', ":4:1: `command`: "),
        ('command = ["x"]\n', ":4:1: `command`: must start with the absolute path"),
        ('command = ["/x", 7]\n', ":4:1: `command`: "),
        ('command_user = "no-such-user"\n', ":4:1: `command_user`: there is no user `no-such-user`"),
    ],
)
def test_mistakes_in_the_configuration_name_their_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "agentmon.toml"
    path.write_text(f"[daemon]\nsessions_per_user = 5\n[notify]\n{text}")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert f"{path}{words}" in str(caught.value)


def test_channels_are_those_that_are_configured(tmp_path: Path) -> None:
    assert open_channels(config.NotifyConfig()) == []
    secret = tmp_path / "secret"
    found = config.NotifyConfig(desktop=True, webhook="https://h/x", secret_file=secret, command=("/x",))
    with pytest.raises(ConfigError, match="cannot read"):
        open_channels(found)
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        open_channels(found)
    secret.write_text("word\n")
    assert [channel.name for channel in open_channels(found)] == ["desktop", "webhook", "command"]
