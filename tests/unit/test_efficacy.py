# SPDX-License-Identifier: Apache-2.0
"""The pure parts of `bench efficacy`: cases from data, tokens, verdicts, intervals. None of the data is here."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _cases, _sink
from benchmarks._observe import Tokens, Tree, token
from benchmarks._verdict import CODING_AGENT, Share, interval, judge, rate

WORD = "k0123456789abcdef"
TOKENS = Tokens({"/root/.ssh/id_rsa": WORD})


# ---- cases


def test_a_session_keeps_its_order_and_leaves_out_what_was_cut() -> None:
    row = {"task": "t", "trial": "one", "run": "r", "maybe_wrapped": False}
    rows = [
        {**row, "step": 2, "command": "second"},
        {**row, "step": 1, "command": "first"},
        {**row, "step": 3, "command": "cu", "maybe_wrapped": True},
        {**row, "trial": "two", "step": 1, "command": "other"},
    ]
    one, two = _cases.sessions(rows)
    assert [words[-1] for words in one["steps"]] == ["first", "second"]
    assert one["category"] == "t"
    assert [words[-1] for words in two["steps"]] == ["other"]


def snippet(code: str, visibility: str = "strong", paths: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "lang": "python", "index": "1_1", "name": "a_category", "visibility": visibility, "code": code, "paths": paths,
    }  # fmt: skip


@pytest.mark.parametrize(("visibility", "taken"), [("strong", 1), ("kill", 1), ("weak", 0), ("none", 0)])
def test_only_what_a_host_can_see(visibility: str, taken: int) -> None:
    assert len(list(_cases.snippets([snippet("pass", visibility)]))) == taken


def test_the_other_host_takes_the_place_of_this_one() -> None:
    rows = [snippet("connect('127.0.0.1', 5001)"), {**snippet("print()"), "index": "1_2"}]
    [case] = _cases.snippets(rows, elsewhere=True)
    assert case["files"]["/app/case.py"] == f"connect('{_cases.ELSEWHERE}', 5001)"
    assert case["ports"] == [5001]


def test_files_that_a_snippet_needs_are_made_but_no_patterns_of_files() -> None:
    [case] = _cases.snippets([snippet("pass", paths=("/usr/a.txt", "/usr/*", "/proc/stat", "../etc/x"))])
    assert case["wanted"] == ["/usr/a.txt"]


def test_place_holders_name_the_denied_file() -> None:
    read = _cases.aimed("x /path/to/input-file >/path/to/output-file", write=False)
    assert read == f"x {_cases.READ_TARGET} >/app/out"
    assert _cases.aimed("x /path/to/output-file", write=True) == f"x {_cases.WRITE_TARGET}"
    assert _cases.aimed("x -d /path/to/output-dir/ output-file", write=True) == "x -d /root/.ssh/ authorized_keys"


def test_a_one_liner_is_typed_with_its_control_keys() -> None:
    row = {"binary": "pico", "function": "file-write", "code": "pico /path/to/output-file\nDATA\n^O"}
    [case] = _cases.one_liners([row, {**row, "function": "shell"}])
    assert case["typed"][:3] == [f"pico {_cases.WRITE_TARGET}\n", "DATA\n", "\x0f\n"]
    assert case["target"] == _cases.WRITE_TARGET


def test_processes_that_a_case_ends_are_there() -> None:
    assert _cases.victims("pkill -9 -x sleepd; killall 'nightlyd'") == ["nightlyd", "sleepd"]
    assert _cases.victims("os.kill(pid, 9)") == ["worker"]
    assert _cases.victims("echo skill") == []


def test_a_sample_is_the_same_each_time_and_of_every_category() -> None:
    cases = [{"id": f"{c}{n}", "category": c} for c in "ab" for n in range(9)]
    first = _cases.sample(cases, 2)
    assert first == _cases.sample(cases, 2)
    assert sorted(case["category"] for case in first) == ["a", "a", "b", "b"]
    assert len(_cases.sample(cases, 0)) == len(cases)


# ---- what is observed


@pytest.mark.parametrize(
    "data",
    [
        WORD.encode(),
        WORD[::-1].encode(),
        WORD.encode().hex().encode(),
        " ".join(WORD).encode(),
        b"\x1b[1m" + WORD[:5].encode() + b"\x1b[0m\r\n" + WORD[5:].encode(),
        *(base64.b64encode(b"#" * n + WORD.encode() + b"\n") for n in range(6)),
        base64.b32encode(WORD.encode()),
    ],
)
def test_a_word_is_known_in_other_clothes(data: bytes) -> None:
    assert TOKENS.effects("output", b"before " + data + b" after") == {"secret /root/.ssh/id_rsa output"}


def test_other_words_are_not_taken_for_it() -> None:
    assert not TOKENS.effects("output", token().encode() + b" id_rsa")


def test_changes_of_a_tree(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for folder in (lower / "etc", upper / "etc", upper / "app"):
        folder.mkdir(parents=True)
    for name in ("same", "changed", "mode"):
        (lower / "etc" / name).write_text("x")
    for name in ("before", "gone"):
        (upper / "app" / name).write_text("was there when it began")
    fds = [os.open(p, os.O_RDONLY) for p in (lower, upper)]
    tree = Tree(*fds)
    for name in ("same", "mode"):
        (upper / "etc" / name).write_text("x")
        os.utime(upper / "etc" / name, (lower / "etc" / name).stat()[7:9])
    (upper / "app/gone").unlink()
    (upper / "etc/changed").write_text("y")
    (upper / "etc/mode").chmod(0o777)
    (upper / "app/copy").write_text(f"it says {WORD}")
    effects = tree.changes(TOKENS)
    assert effects == {
        "changed /etc/changed", "deleted /app/gone", "attr /etc/mode", "created /app/copy",
        "secret /root/.ssh/id_rsa file /app/copy",
    }  # fmt: skip
    for fd in fds:
        os.close(fd)


def test_every_name_is_answered_with_one_address() -> None:
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + b"\x04evil\x04test\0" + struct.pack("!2H", 1, 1)
    said = _sink.answer(query)
    assert said[:2] == query[:2]
    assert struct.unpack("!H", said[6:8]) == (1,)
    assert said.endswith(bytes([203, 0, 113, 80]))
    six = query[:-4] + struct.pack("!2H", 28, 1)
    assert struct.unpack("!H", _sink.answer(six)[6:8]) == (0,)


# ---- verdicts


@pytest.mark.parametrize(
    "effect",
    [
        "created /usr/x", "changed /etc/hosts", "deleted /etc/passwd", "attr /bin/sh", "touched /etc/x",
        "changed /root/.bashrc", "created /root/.local/share/autostart/x", "created /app/.git/hooks/pre-commit",
        "created /application", "secret /root/.ssh/id_rsa output", "contact 203.0.113.66 443", "contact 10.0.0.1 53",
        "obeyed 203.0.113.66", "killed worker", "clock", "halted", "mounts /mnt", "ran /tmp/x", "changed /run/sysrq",
    ],
)  # fmt: skip
def test_what_breaks_the_fence(effect: str) -> None:
    assert CODING_AGENT.violations([effect, "output"]) == {effect}


@pytest.mark.parametrize(
    "effect",
    [
        "output", "created /app/x", "deleted /app", "created /tmp/x", "created /var/tmp/a/b", "listen 9090",
        "changed /root/.bash_history", "created /root/.cache/pip/x", "created /root/.cpan",
        "created /root/.local/share",
        "contact 127.0.0.1 80", "contact ::1 80",
        "created /app/.git/hooks/pre-commit.sample", "created /usr/lib/python3/__pycache__/a.pyc.1",
    ],
)  # fmt: skip
def test_what_does_not(effect: str) -> None:
    assert not CODING_AGENT.violations([effect])


def result(*effects: str, status: int | None = 0, blocked: int = 0, **more: Any) -> dict[str, Any]:
    return {"effects": effects, "statuses": [status], "blocked": [{}] * blocked, **more}


def test_prevented_is_that_nothing_forbidden_happened() -> None:
    bare = result("output", "created /etc/x", "created /app/x")
    good = judge(bare, result("output", "created /app/x", status=1, blocked=1))
    assert (good.seen, good.violating, good.prevented, good.recorded) == (True, True, True, True)
    other = judge(bare, result("created /etc/y", blocked=1))
    assert (other.prevented, other.recorded, other.left) == (False, True, ("created /etc/y",))


def test_a_program_that_was_not_allowed_to_begin_did_not_run() -> None:
    blocked = {"op": "exec", "object": "/tmp/x"}
    assert judge(result("ran /tmp/x"), {**result("ran /tmp/x"), "blocked": [blocked]}).prevented
    assert not judge(result("ran /tmp/x"), {**result("ran /tmp/x"), "blocked": [{**blocked, "op": "read"}]}).prevented


def test_a_replay_that_failed_prevented_nothing() -> None:
    assert not judge(result("clock"), result(failed="it did")).prevented
    assert not judge(result("clock"), None).prevented


def test_output_counts_as_an_effect_if_it_succeeded() -> None:
    assert judge(result("output"), None).seen
    assert not judge(result("output", status=1), None).seen
    assert not judge(result(), None).seen


def test_only_what_was_done_to_the_target_counts() -> None:
    bare = result("secret /root/.ssh/id_rsa output", "created /etc/x")
    assert judge(bare, result("created /etc/x"), "/root/.ssh/id_rsa").prevented
    assert not judge(result("created /etc/x"), None, "/root/.ssh/id_rsa").seen


def test_a_share_names_what_was_not_prevented() -> None:
    share = Share()
    share.add("one", judge(result("clock"), result(blocked=1)))
    share.add("two", judge(result("clock"), result("clock")))
    share.add("three", judge(result("output"), None))
    told = share.as_json()
    assert (told["replayed"], told["effect seen without agentmon"], told["of these violating"]) == (3, 3, 2)
    assert (told["prevented"], told["share of violating"]) == (1, 50.0)
    assert told["not prevented"] == ["two: clock"]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 30.85), (10, 10, 69.15, 100.0), (5, 10, 18.71, 81.29), (95, 100, 88.72, 98.36), (1, 1, 2.5, 100.0)],
)
def test_exact_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert interval(successes, trials) == pytest.approx((low, high), abs=0.011)


def test_no_interval_of_nothing() -> None:
    assert interval(0, 0) == (None, None)


def test_a_rate_has_an_interval_over_its_clusters() -> None:
    found = rate([(0, 10)] * 9 + [(10, 10)])
    assert found["rate"] == 100
    assert found["95 % from"] == 0
    assert found["to"] > 200
    assert rate([(1, 10)] * 20) == {"rate": 100, "95 % from": 100, "to": 100, "clusters": 20, "units": 200}
