# SPDX-License-Identifier: Apache-2.0
"""The ways in which people are told: a desktop, a webhook, a command. Each may block, and runs in a thread."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from agentmon.errors import AgentmonError

#: What a command, a desktop or a server may take.
LIMIT_S = 10.0
#: Before the second and the third try.
PAUSES_S = (1.0, 5.0)
#: Answers of a server that may be another one later.
_LATER = (408, 425, 429)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Message = Mapping[str, Any]


class UndeliveredError(AgentmonError):
    """Nobody was told."""


class Channel(Protocol):
    """One way."""

    name: str

    def send(self, message: Message) -> None:
        """Raises `UndeliveredError`."""


class Desktop:
    """A bubble on the desktop of the session's owner, by its own message bus: as that user, for root may not."""

    name = "desktop"

    def __init__(self, runtime: Path = Path("/run/user")) -> None:
        self._runtime = runtime

    def send(self, message: Message) -> None:
        """Show it, if that user has a desktop. Raises `UndeliveredError`."""
        program = shutil.which("notify-send")
        if program is None:
            raise UndeliveredError("there is no `notify-send`; install libnotify")
        uid = int(message["uid"])
        bus = self._runtime / str(uid) / "bus"
        try:
            status = os.lstat(bus)
        except OSError:
            return  # not logged in
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != uid:
            raise UndeliveredError(f"`{bus}` is no socket of user {uid}")
        title, body = told(message)
        # the server of the desktop may take the body for markup
        body = body.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        words = [program, "--app-name=agentmon", "--urgency=critical", "--", title, body]
        _run(words, b"", uid, {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}", "XDG_RUNTIME_DIR": str(bus.parent)})


class Hook:
    """A command of the operator, with the message as JSON on its standard input."""

    name = "command"

    def __init__(self, words: Sequence[str], user: str = "") -> None:
        self._words = words
        self._uid = pwd.getpwnam(user).pw_uid if user else None

    def send(self, message: Message) -> None:
        """Run it to its end. Raises `UndeliveredError`."""
        _run(self._words, json.dumps(message).encode() + b"\n", self._uid, {})


class Webhook:
    """A POST of the message, signed. No redirect is followed, no proxy asked."""

    name = "webhook"

    def __init__(self, url: str, secret: bytes, pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._url = urlsplit(url)
        self._secret = secret
        self._pauses_s = pauses_s

    def send(self, message: Message) -> None:
        """Try thrice. Raises `UndeliveredError`."""
        body = json.dumps(message).encode()
        for pause_s in (*self._pauses_s, None):
            why, final = self._post(body)
            if not why:
                return
            if final or pause_s is None:
                raise UndeliveredError(f"`{self._url.scheme}://{self._url.netloc}`: {why}")
            time.sleep(pause_s)

    def _post(self, body: bytes) -> tuple[str, bool]:
        """What went wrong (empty: nothing), and whether it always will."""
        url = self._url
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname or "", url.port, timeout=LIMIT_S)
        signature = hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "agentmon",
            "X-Agentmon-Signature": f"sha256={signature}",
        }
        try:
            connection.request("POST", (url.path or "/") + (f"?{url.query}" if url.query else ""), body, headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}", False
        finally:
            connection.close()
        if 200 <= status < 300:
            return "", False
        return f"status {status}", status < 500 and status not in _LATER


def told(message: Message) -> tuple[str, str]:
    """A title and a text, for people."""
    if message["event"] in ("risk", "drift"):
        by = [f"by {message['command']}"] if message["command"] else []
        what = f"the risk of {message['session']} rose"
        if message["event"] == "drift":
            what = f"baseline {message['object']} drifts"
        title = f"agentmon: {what}"
        return title, "\n".join([message["detail"], *message["reason"].split("; "), *by, "agentmon ps"])
    what = {
        "asked": "waits for your answer",
        "changed": "changed while it was held, and is asked again",
        "expired": "was denied: nobody answered",
    }[message["event"]]
    reason = f": {message['reason']}" if message["reason"] else ""
    lines = [f"{message['does']} {message['object']}", f"rule {message['rule'] or 'default'}{reason}"]
    if message.get("file"):
        lines.insert(1, f"which leads to {message['file']}")
    if message["command"]:
        lines.append(f"by {message['command']}")
    if message["event"] != "expired":
        lines.append(f"agentmon approve {message['id']}")
    return f"agentmon: {message['id']} of {message['session']} {what}", "\n".join(lines)


def _run(words: Sequence[str], data: bytes, uid: int | None, more: Mapping[str, str]) -> None:
    environment = {"PATH": _PATH, "LANG": "C.UTF-8", **more}
    rights: dict[str, Any] = {}
    if uid is not None:
        try:
            account = pwd.getpwuid(uid)
        except KeyError:
            raise UndeliveredError(f"there is no user {uid}") from None
        environment |= {"HOME": account.pw_dir, "USER": account.pw_name}
        if uid != os.geteuid():
            groups = os.getgrouplist(account.pw_name, account.pw_gid)
            rights = {"user": uid, "group": account.pw_gid, "extra_groups": groups}
    try:
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            env=environment, start_new_session=True, **rights,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise UndeliveredError(f"cannot run `{words[0]}`: {error}") from error
    with contextlib.suppress(OSError):  # the daemon's own is for the daemon
        os.setpriority(os.PRIO_PROCESS, child.pid, 0)
    try:
        child.communicate(data, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        # with what it started: it leads a group of its own, and is not reaped yet
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        raise UndeliveredError(f"`{words[0]}` did not end within {LIMIT_S:g} s, and was killed") from None
    if child.returncode:
        raise UndeliveredError(f"`{words[0]}` failed with status {child.returncode}")
