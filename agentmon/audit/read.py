# SPDX-License-Identifier: Apache-2.0
"""Reading the audit log, and proving that nothing in it was changed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentmon.audit.store import GENESIS, SCHEMA_VERSION, chain, connect
from agentmon.errors import AgentmonError
from agentmon.model.records import Record

#: That are looked through for what sessions did last: a second of a busy host, hours of a quiet one.
LATEST_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class Problem:
    """The first place where the chain does not hold."""

    batch: int
    message: str


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise AgentmonError(f"there is no audit log at `{path}`; give its place with --file") from None
    except PermissionError:
        raise AgentmonError(f"the audit log `{path}` is not yours to read; use sudo") from None
    except OSError as error:
        raise AgentmonError(f"cannot read the audit log `{path}`: {(error.strerror or str(error)).lower()}") from error
    try:
        database = connect(path, read_only=True)
        version = database.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        raise AgentmonError(f"cannot read the audit log `{path}`: {error}") from error
    if version != SCHEMA_VERSION:
        database.close()
        raise AgentmonError(
            f"the audit log `{path}` has schema version {version}, this agentmon reads {SCHEMA_VERSION}"
        )
    return database


def read(path: Path, *, since_ns: int = 0) -> Iterator[Record]:
    """All records, oldest first, from batches that end at or after `since_ns`. Raises `AgentmonError`."""
    database = _open(path)
    try:
        rows = database.execute("SELECT seq, body FROM batches WHERE last_ns >= ? ORDER BY seq", (since_ns,))
        for seq, body in rows:
            try:
                records = [Record(*fields) for fields in json.loads(body)]
            except (ValueError, TypeError) as error:
                raise AgentmonError(
                    f"{path}: batch {seq} cannot be read: {error}; see `agentmon audit verify`"
                ) from error
            yield from records
    except sqlite3.Error as error:
        raise AgentmonError(f"cannot read the audit log `{path}`: {error}") from error
    finally:
        database.close()


def latest(path: Path, sessions: Collection[str]) -> list[Record]:
    """What some sessions did, oldest first, as far as the last records tell. Raises `AgentmonError`."""
    if not sessions:
        return []
    batches: list[list[Record]] = []
    seen = 0
    database = _open(path)
    try:
        for count, body in database.execute("SELECT count, body FROM batches ORDER BY seq DESC"):
            records = [Record(*fields) for fields in json.loads(body)]
            batches.append([r for r in records if r.session in sessions])
            seen += count
            if seen >= LATEST_RECORDS:
                break
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise AgentmonError(f"cannot read the audit log `{path}`: {error}") from error
    finally:
        database.close()
    return [record for batch in reversed(batches) for record in batch]


def verify(path: Path) -> tuple[int, int, bytes, Problem | None]:
    """Walk the chain. Returns batches and records that hold, the last good hash, and the first problem if any.

    The last hash, noted elsewhere, also proves that the end was not cut off. Raises `AgentmonError`.
    """
    database = _open(path)
    previous, batches, records = GENESIS, 0, 0
    try:
        for seq, version, count, body, digest in database.execute(
            "SELECT seq, version, count, body, hash FROM batches ORDER BY seq"
        ):
            if seq != batches + 1:
                return batches, records, previous, Problem(batches + 1, "the batch is missing")
            expected = chain(previous, seq, version, count, body.encode("utf-8", "surrogateescape"))
            if bytes(digest) != expected:
                return batches, records, previous, Problem(seq, "the content does not match its hash")
            previous, batches, records = expected, seq, records + count
    except sqlite3.Error as error:
        return batches, records, previous, Problem(batches + 1, f"unreadable: {error}")
    finally:
        database.close()
    return batches, records, previous, None
