# SPDX-License-Identifier: Apache-2.0
"""A session that the kernel recorded, judged again: `replay`, `policy diff` and `policy learn` on a real log."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import Host, wait_for

DEFAULT = "default: {exec: allow, read: allow, write: allow, create: allow, connect: allow}"


@pytest.fixture
def host() -> Iterator[Host]:
    # not below pytest's own directory, which `base` lets everybody write
    with tempfile.TemporaryDirectory(prefix="agentmon-test-", dir="/srv") as directory, Host(Path(directory)) as host:
        yield host


def policy(host: Host, name: str, rules: str, default: str = DEFAULT) -> str:
    path = host.directory / f"{name}.yaml"
    path.write_text(f"policy: {name}\n{default}\nrules:\n{rules}")
    return str(path)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_real_session_is_replayed_compared_and_learnt(host: Host) -> None:
    work = host.directory / "work"
    work.mkdir()
    for name in ("notes", "db"):
        (host.directory / name).write_text("x\n")
    loose = policy(host, "loose", "  - {id: nothing, on: read, paths: [/nonexistent], action: deny}\n")
    script = "for i in 1 2 3; do echo $i > f$i; done; cat ../notes; head -1 ../notes; exec 3<>../db; echo K=1 > .env"
    done = host.agentmon("run", "-p", loose, "--", "sh", "-c", script, cwd=work)
    assert done.returncode == 0, done.stderr
    wait_for(host.gone, "the embedded daemon to end")

    # a rule for one program: which one ran is derived from the records
    cat = os.path.realpath("/usr/bin/cat")
    strict = policy(
        host, "strict",
        f"  - {{id: notes, on: read, paths: [{host.directory}/notes], exe: ['{cat}'], action: deny}}\n"
        # an open for both has one record, of the writing
        f"  - {{id: db, on: read, paths: [{host.directory}/db], action: deny}}\n"
        '  - {id: workspace, on: [write, create], paths: ["{workspace}/**"], action: allow}\n',
        DEFAULT.replace("create: allow", "create: deny"),
    )  # fmt: skip
    done = host.agentmon("replay", "last", "-p", strict, "--json")
    assert done.returncode == 2, done.stderr
    changes = [line for line in lines(done.stdout) if "object" in line]
    assert [(c["change"], c["operation"], c["object"]) for c in changes] == [
        ("newly blocked", "read", f"{host.directory}/notes"),
        ("newly blocked", "read", f"{host.directory}/db"),
    ]
    assert changes[0]["exe"] == cat
    assert host.agentmon("replay", "last", "-p", loose).returncode == 0

    compared = host.agentmon("policy", "diff", loose, strict, "--session", "last", "--json")
    assert compared.returncode == 2
    kinds = [line for line in lines(compared.stdout) if line["kind"] == "recorded"]
    assert [line["object"] for line in kinds] == [f"{host.directory}/notes", f"{host.directory}/db"]

    learnt = host.directory / "learnt.yaml"
    done = host.agentmon("policy", "learn", "last", "-o", learnt)
    assert done.returncode == 0, done.stderr
    text = learnt.read_text()
    assert "{workspace}/*" in text
    assert f"# not allowed: create {work}/.env" in text
    # and it holds: the same again, but for what looks like a secret
    done = host.agentmon("run", "-p", learnt, "--", "sh", "-c", script.partition("; echo K")[0], cwd=work)
    assert done.returncode == 0, done.stderr
    assert "blocked" not in done.stderr
    done = host.agentmon("run", "-p", learnt, "--", "sh", "-c", "echo K=2 > .env", cwd=work)
    assert done.returncode != 0
    assert f"{work}/.env" in done.stderr
