# SPDX-License-Identifier: Apache-2.0
"""Every malformed policy of ``tests/corpus`` gets one clear error, quickly; the command line shows it as it is."""

from __future__ import annotations

import os
import re
import resource
import time
from pathlib import Path

import pytest

from agentmon.cli.common import policy_reference
from agentmon.cli.main import main
from agentmon.errors import PolicyError
from agentmon.policy.load import load, load_text
from tests.support.corpus import POLICIES, Case, corpus

CASES = corpus()
#: Processor time: other processes of the machine do not count. The slowest takes a quarter of it.
SECONDS = 10
#: Lines of what is said of very many mistakes.
MOST_LINES = 21


def test_the_corpus_is_large_and_no_case_is_there_twice() -> None:
    assert len({(case.text, *case.packs.values(), *case.odd.values()) for case in CASES}) >= 500
    assert len({(case.kind, case.title) for case in CASES}) == len(CASES)
    assert [case.title for case in CASES if not case.expected] == []


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}: {c.title}")
def test_one_clear_error(case: Case, tmp_path: Path) -> None:
    before = time.process_time()
    told = case.complaint(tmp_path)
    assert time.process_time() - before < SECONDS
    first, *more = told.split("\n")
    expected = case.expected if ".yaml:" in case.expected.partition(" ")[0] else f"{case.file}:{case.expected}"
    assert first.startswith(expected)
    assert re.match(r"[\w.-]+\.yaml:[1-9]\d*:[1-9]\d*: .*; ", first), "no place, or no remedy"
    assert all(line.isprintable() and len(line) < 1_000 for line in (first, *more))
    assert len(more) < MOST_LINES if case.title.startswith("a flood") else not more


@pytest.mark.parametrize("path", sorted(POLICIES.glob("*.txt")), ids=lambda p: p.stem)
def test_the_command_line_shows_it(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_file = [c for c in CASES if c.kind == path.stem and not (c.packs or c.odd or c.title.startswith("a flood"))]
    monkeypatch.chdir(tmp_path)
    for number, case in enumerate(of_file[:: len(of_file) // 8 or 1]):
        directory = tmp_path / str(number)
        directory.mkdir()
        file = case.write(directory).relative_to(tmp_path)
        assert main(["policy", "test" if case.kind == "cases" else "check", str(file)]) == 3
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        assert said.err.removeprefix("agentmon: ").startswith(f"{number}/{case.file}:{case.expected}")


def test_what_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, words in (
        (fifo, "the file is empty"),
        (tmp_path, "is a directory"),
        (tmp_path / "x.yaml", "no such file"),
        (Path("/dev/null"), "the file is empty"),
        (Path("/dev/zero"), "larger than 1 MiB"),
    ):
        with pytest.raises(PolicyError, match=words):
            load(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    with pytest.raises(PolicyError, match="larger than 1 MiB"):
        policy_reference("/dev/zero")
    with pytest.raises(PolicyError, match="embedded null"):
        load("a\0.yaml")


def test_a_policy_may_come_through_a_pipe() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"policy: p\n")
    os.close(theirs)
    try:
        assert load(f"/dev/fd/{ours}").name == "p"
    finally:
        os.close(ours)


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistakes() -> None:
    assert load_text("\ufeffpolicy: p\r\nrules: []\r\n", "p.yaml").name == "p"
