# SPDX-License-Identifier: Apache-2.0
"""Writing the audit log.

A batch of records is one row: a JSON array (one element a record, the fields of `Record` in order) and
``hash = sha256(previous hash || first second third … of the row)``. So 50,000 records a second cost one statement
a batch, the chain is over the exact bytes, and the view ``records`` still gives SQL one row a record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import sqlite3
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from agentmon.errors import AgentmonError
from agentmon.model.records import Record

SCHEMA_VERSION = 1
#: Batches waiting for the disk. When full, the caller waits: the kernel's ring then fills, and counts its losses.
QUEUE_BATCHES = 256
GENESIS = b"\0" * 32

_FIELDS = ", ".join(f"json_extract(j.value, '$[{index}]') AS {name}" for index, name in enumerate(Record._fields))
_SCHEMA = f"""
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    count INTEGER NOT NULL,
    first_ns INTEGER NOT NULL,
    last_ns INTEGER NOT NULL,
    body TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE VIEW records AS SELECT b.seq AS batch, {_FIELDS} FROM batches b, json_each(b.body) j;
CREATE TRIGGER append_only_update BEFORE UPDATE ON batches
    BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER append_only_delete BEFORE DELETE ON batches
    BEGIN SELECT raise(ABORT, 'the audit log is append-only'); END;
PRAGMA user_version = {SCHEMA_VERSION};
"""  # noqa: S608  # made of field names, once

_encode = json.JSONEncoder(separators=(",", ":")).encode


def chain(previous: bytes, seq: int, version: int, count: int, body: bytes) -> bytes:
    """Hash of a batch: sha256 over the hash before it, its own numbers, and its bytes."""
    digest = hashlib.sha256(previous)
    digest.update(struct.pack("<qqq", seq, version, count))
    digest.update(body)
    return digest.digest()


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the database file. Raises `sqlite3.Error`."""
    if read_only:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5, check_same_thread=False)
    database = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    # In WAL mode NORMAL loses at most the last batches on a power cut, and never tears the chain.
    database.execute("PRAGMA synchronous=NORMAL")
    return database


class AuditLog:
    """The open log. `append` is cheap and never blocks on the disk, unless the queue is full.

    A database that is corrupt or of another schema is moved aside, never deleted; `notice` then says so.
    Raises `AgentmonError` when the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice = ""
        self.error = ""
        self.written = 0
        self.lost = 0  # records that the disk refused
        self._seq = 0
        self._hash = GENESIS
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._database = self._open()
        except (OSError, sqlite3.Error) as error:
            raise AgentmonError(
                f"cannot open the audit log `{path}`: {getattr(error, 'strerror', None) or error}; check the directory "
                "and the disk"
            ) from error
        self._queue: queue.Queue[Sequence[Record] | threading.Event | None] = queue.Queue(QUEUE_BATCHES)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def append(self, records: Sequence[Record]) -> None:
        """Queue one batch (the records of one drain of the ring). Do not change the list afterwards."""
        if records:
            self._queue.put(records)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was appended is in the file. False when it took too long."""
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout_s)

    def close(self) -> None:
        """Write what is queued and close the file."""
        self._queue.put(None)
        self._thread.join(10)
        with contextlib.suppress(sqlite3.Error):
            self._database.close()

    # -- inside -----------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            return self._open_once()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise  # locked, read-only, no space: the file itself is not at fault
            self._set_aside(str(error))
            return self._open_once()

    def _open_once(self) -> sqlite3.Connection:
        fresh = not self.path.exists()
        if fresh:
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o640))
        database = connect(self.path)
        try:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version == 0 and tables == 0:
                database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            elif version != SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"schema version {version}, not {SCHEMA_VERSION}")
            result = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if result != "ok":
                raise sqlite3.DatabaseError(str(result))
            row = database.execute("SELECT seq, hash FROM batches ORDER BY seq DESC LIMIT 1").fetchone()
        except sqlite3.Error:
            database.close()
            raise
        self._seq, self._hash = (row[0], bytes(row[1])) if row else (0, GENESIS)
        return database

    def _set_aside(self, why: str) -> None:
        kept = self.path.with_name(f"{self.path.name}.broken-{time.time_ns()}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{suffix}", f"{kept}{suffix}")
        self.notice = (
            f"the audit log `{self.path}` could not be used ({why}); it was kept as `{kept}` and a new one begun"
        )

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self._write(item)
                self.error = ""
            except (sqlite3.Error, ValueError) as error:
                self.lost += len(item)
                self.error = f"the audit log refused {len(item)} records: {error}"

    def _write(self, records: Sequence[Record]) -> None:
        body = _encode(records)
        seq = self._seq + 1
        digest = chain(self._hash, seq, SCHEMA_VERSION, len(records), body.encode("ascii"))
        self._database.execute(
            "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?)",
            (seq, SCHEMA_VERSION, len(records), records[0].time_ns, records[-1].time_ns, body, digest),
        )
        self._seq, self._hash = seq, digest
        self.written += len(records)
