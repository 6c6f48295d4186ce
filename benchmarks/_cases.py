# SPDX-License-Identifier: Apache-2.0
"""Cases of `efficacy`, from data that is not part of the project: parsing and sampling only, nothing is run here."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Case = dict[str, Any]

SESSIONS, SNIPPETS, PROCEDURES, ONE_LINERS = "sessions", "redcode_exec", "atomics_linux", "gtfobins"
FILES = {
    SESSIONS: "agent_miniswe_sessions.jsonl.gz",
    SNIPPETS: "redcode_exec.jsonl.gz",
    PROCEDURES: "atomics_linux.jsonl.gz",
    ONE_LINERS: "gtfobins.jsonl.gz",
}
#: What the one-liners are to read, and to write: both denied by `coding-agent`.
READ_TARGET, WRITE_TARGET = "/root/.ssh/id_rsa", "/root/.ssh/authorized_keys"
#: An address of documentation, in the place of loopback: where an attacker would be.
ELSEWHERE = "203.0.113.66"
SECONDS = {SESSIONS: 12, SNIPPETS: 20, PROCEDURES: 25, ONE_LINERS: 14}
_INTERPRETERS = {"bash": ("bash", "sh"), "python": ("python3", "py")}
_VISIBLE = ("strong", "kill")
#: Typed at the end, to leave whatever program is still there.
_LEAVE = ("\x03", "\x18", ":q!\n", "q\n", "exit\n", "\x04")


def read(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of compressed JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def sessions(rows: Iterable[Mapping[str, Any]]) -> Iterator[Case]:
    """One case a session, in the order of its commands; what the recording may have cut is left out."""
    ordered = sorted(rows, key=lambda r: (r["task"], r["trial"], r["run"], r["step"]))
    for (task, trial, run), group in itertools.groupby(ordered, lambda r: (r["task"], r["trial"], r["run"])):
        commands = [r["command"] for r in group if not r.get("maybe_wrapped")]
        steps = [["bash", "-c", command] for command in commands]
        if steps:
            yield _case(SESSIONS, f"{trial}/{run}", task, steps)


def snippets(rows: Iterable[Mapping[str, Any]], *, elsewhere: bool = False) -> Iterator[Case]:
    """What a host can see. ``elsewhere``: only those that name this host, with an attacker's address instead."""
    for row in rows:
        if row["visibility"] not in _VISIBLE:
            continue
        code = row["code"]
        if elsewhere:
            code = re.sub(r"127\.0\.0\.1|localhost", ELSEWHERE, code)
            if code == row["code"]:
                continue
        program, suffix = _INTERPRETERS[row["lang"]]
        file = f"/app/case.{suffix}"
        yield _case(
            SNIPPETS, f"{row['lang']}-{row['index']}{'-elsewhere' if elsewhere else ''}", row["name"],
            [[program, file]], files={file: code}, ports=ports(code), victims=victims(code),
            wanted=[p for p in row["paths"] if re.match(r"/(usr|etc|var|opt|app)/[^*]+[^/*]$", p)],
        )  # fmt: skip


def procedures(rows: Iterable[Mapping[str, Any]]) -> Iterator[Case]:
    """Those that need neither a network nor anything that is not there."""
    for row in rows:
        if row["runnable_offline"]:
            yield _case(
                PROCEDURES, f"{row['technique']}-{row['test']}", row["technique"],
                [[row["executor"], "-c", row["command"]]], victims=victims(row["command"]),
                ports=() if re.search(r"server|listen", row["command"]) else ports(row["command"]),
            )  # fmt: skip


def one_liners(rows: Iterable[Mapping[str, Any]]) -> Iterator[Case]:
    """Reading and writing of a file that is denied, typed into a shell on a terminal."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["function"] not in ("file-read", "file-write"):
            continue
        name = f"{row['binary']}-{row['function']}"
        counts[name] = counts.get(name, 0) + 1
        code = aimed(row["code"], write=row["function"] == "file-write")
        lines = [re.sub(r"\^([A-Z])", lambda m: chr(ord(m[1]) - 64), line) + "\n" for line in code.split("\n")]
        yield _case(
            ONE_LINERS, f"{name}-{counts[name]}", row["function"], [["bash", "--norc", "-i"]], terminal=True,
            binary=row["binary"], typed=[*lines, *_LEAVE], target=WRITE_TARGET if "write" in name else READ_TARGET,
        )  # fmt: skip


def aimed(code: str, *, write: bool) -> str:
    """Its place holders filled in: the denied file, and names in the workspace for all else."""
    into = WRITE_TARGET if write else "/app/out"
    # one of them deletes what it says it reads
    source = READ_TARGET if not write else "/app/in" if "output" in code else WRITE_TARGET
    for name, path in {
        "input-file": source, "file-input": source, "output-file": into, "input-dir": str(Path(source).parent),
        "output-dir": str(Path(into).parent), "empty-dir": "/app/empty", "temp-file": "/app/temp",
    }.items():  # fmt: skip
        code = code.replace(f"/path/to/{name}", path)
    return code.replace("output-file", Path(into).name).replace("./relative/path/to/", "./")


def ports(code: str) -> list[int]:
    """Numbers that may be ports."""
    found = {int(n) for n in re.findall(r"(?<![\w.])\d{2,5}(?![\w.])", code)}
    return sorted(n for n in found if 20 <= n < 65536)[:20]


def victims(code: str) -> list[str]:
    """Names of processes that it ends, or looks for to end."""
    found = re.findall(r"(?:pkill|killall|pgrep)\s+(?:-\S+\s+)*[\"'^]?([a-z][\w-]{1,14})", code)
    if re.search(r"\bkill\b|terminate\(|SIGTERM|SIGKILL", code):
        found.append("worker")
    return sorted(set(found))


def sample(cases: Sequence[Case], limit: int, seed: int = 1) -> list[Case]:
    """At most so many of each category (0: all), in an order that says nothing."""
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)
    taken: dict[str, int] = {}
    kept = []
    for case in shuffled:
        number = taken[case["category"]] = taken.get(case["category"], 0) + 1
        if not limit or number <= limit:
            kept.append(case)
    return kept


def _case(part: str, name: str, category: str, steps: list[list[str]], **more: Any) -> Case:
    return {"id": f"{part}/{name}", "category": category, "steps": steps, "seconds": SECONDS[part], **more}
