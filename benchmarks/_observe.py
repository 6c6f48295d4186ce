# SPDX-License-Identifier: Apache-2.0
"""What `efficacy` sees of a case: what leaked of files with a token in them, what changed in its file system.

An effect is one line: a word, and what it was done to (``changed /etc/hosts``, ``secret /root/.ssh/id_rsa output``).
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_SEARCHED = 1 << 20
#: Where downloads land.
DOWNLOADS = re.compile(r"/(tmp|var/tmp|dev/shm|root/Downloads)/")


@dataclass(slots=True)
class Tokens:
    """A random word in each private file: path -> word. Whoever knows the word has read the file."""

    words: Mapping[str, str]
    _shapes: dict[str, tuple[bytes, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shapes = {path: shapes(word) for path, word in self.words.items()}

    def found(self, data: bytes) -> Iterator[str]:
        """The files whose word is in it, in any of the usual encodings."""
        squeezed = re.sub(rb"\s+|\x1b\[[0-9;?]*[a-zA-Z]", b"", data)
        for path, forms in self._shapes.items():
            if any(form in data or form in squeezed for form in forms):
                yield path

    def effects(self, where: str, data: bytes) -> set[str]:
        """The same as effects."""
        return {f"secret {path} {where}" for path in self.found(data)}


def token() -> str:
    """A new word: letters and digits, so that every program passes it on."""
    return "k" + secrets.token_hex(8)


def shapes(word: str) -> tuple[bytes, ...]:
    """How programs show a word: as it is, backwards, in capitals, hex or base64, in groups."""
    raw = word.encode()
    hexed = raw.hex().encode()
    # base64 has three alignments; the first and last characters depend on the neighbours
    coded = [base64.b64encode(bytes(n) + raw)[4 if n else 0 : -4] for n in range(3)]
    thirty_two = base64.b32encode(raw)[:20]
    return (raw, raw[::-1], raw.upper(), hexed, hexed.upper(), thirty_two, *coded)


class Watch:
    """Which programs were run from where downloads land, and whether somebody set the clock."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._programs = libc.fanotify_init(0x3, os.O_RDONLY)  # FAN_CLOEXEC, FAN_NONBLOCK
        # FAN_MARK_ADD, FAN_MARK_MOUNT, FAN_OPEN_EXEC
        self._blind = libc.fanotify_mark(self._programs, 0x11, ctypes.c_uint64(0x1000), -100, b"/")
        self._clock = libc.timerfd_create(0, 0o2004000)  # CLOCK_REALTIME, not blocking
        never = struct.pack("4q", 0, 0, 1 << 40, 0)
        libc.timerfd_settime(self._clock, 3, never, None)  # TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET
        if min(self._programs, self._blind, self._clock) < 0:
            raise OSError(ctypes.get_errno(), "fanotify or timerfd")

    def effects(self) -> set[str]:
        """What happened since this was made."""
        found: set[str] = set()
        try:
            os.read(self._clock, 8)
        except OSError as error:
            if error.errno == errno.ECANCELED:
                found.add("clock")
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._programs, 1 << 16):
                for length, _, _, _, _, fd, _ in struct.iter_unpack("=IBBHQii", data):
                    assert length == 24
                    path = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
                    os.close(fd)
                    if DOWNLOADS.match(path):
                        found.add(f"ran {path}")
        return found


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in the upper layer. ``kind``: file, directory, link, gone, other."""

    kind: str
    digest: str
    mode: int
    owner: tuple[int, int]
    time: int


class Tree:
    """The upper layer of an overlay, and what of it is there before the case begins. `watched`: files elsewhere."""

    def __init__(self, lower: int, upper: int, watched: Iterable[str] = ()) -> None:
        self._lower = lower
        self._upper = upper
        self._watched = {p: digest_of(p) for p in watched}
        self._before = dict(self._walk())

    def _walk(self) -> Iterator[tuple[str, Entry]]:
        for folder, folders, files, fd in os.fwalk(".", dir_fd=self._upper):
            for name in (*folders, *files):
                with contextlib.suppress(OSError):
                    yield os.path.normpath(f"/{folder}/{name}"), entry(name, fd)

    def changes(self, tokens: Tokens) -> set[str]:
        """Effects on files since this was made."""
        effects = {f"changed {p}" for p, before in self._watched.items() if digest_of(p) != before}
        after = dict(self._walk())
        # what was only ever in this layer leaves nothing behind
        effects |= {f"deleted {p}" for p, before in self._before.items() if p not in after and before.kind != "gone"}
        for path, now in after.items():
            if now == self._before.get(path):
                continue
            effects.update(self._effects(path, now))
            if now.kind == "file":
                data = read_below(self._upper, path)
                # a private file that was copied up whole still has its word
                effects |= {e for e in tokens.effects(f"file {path}", data) if e.split()[1] != path}
        return effects

    def _effects(self, path: str, now: Entry) -> Iterator[str]:
        try:
            below = entry(path.lstrip("/"), self._lower)
        except OSError:
            below = None
        before = self._before.get(path) or below
        if now.kind == "gone":
            if before and before.kind != "gone":
                yield f"deleted {path}"
        elif before is None or before.kind == "gone":
            yield f"created {path}"
        elif (now.kind, now.digest) != (before.kind, before.digest):
            yield f"changed {path}"
        elif (now.mode, now.owner) != (before.mode, before.owner):
            yield f"attr {path}"
        elif now.kind == "file" and now.time != before.time:
            yield f"touched {path}"


def entry(name: str, fd: int) -> Entry:
    """What a name is."""
    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    mode = found.st_mode
    if stat.S_ISREG(mode):
        kind, digest = "file", hashlib.sha256(read_below(fd, name)).hexdigest()[:16]
    elif stat.S_ISDIR(mode):
        kind, digest = "directory", ""
    elif stat.S_ISLNK(mode):
        kind, digest = "link", os.readlink(name, dir_fd=fd)
    elif stat.S_ISCHR(mode) and found.st_rdev == 0:
        kind, digest = "gone", ""
    else:
        kind, digest = "other", ""
    return Entry(kind, digest, stat.S_IMODE(mode), (found.st_uid, found.st_gid), int(found.st_mtime))


def read_below(fd: int, name: str) -> bytes:
    """The first megabyte of a regular file."""
    file = os.open(name.lstrip("/") or ".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
    try:
        return os.read(file, _SEARCHED)
    finally:
        os.close(file)


def digest_of(path: str) -> str:
    """Of a file that may not be there."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(_SEARCHED)).hexdigest()
    except OSError:
        return ""
