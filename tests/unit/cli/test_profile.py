# SPDX-License-Identifier: Apache-2.0
"""``agentmon profile``: output, JSON, exit status, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agentmon.audit.store import AuditLog
from agentmon.cli.main import main
from agentmon.errors import AgentmonError
from agentmon.fingerprint.baseline import Baseline
from agentmon.fingerprint.store import Store, shipped_directory
from tests.support.behaviour import made

pytest.importorskip("sklearn", reason="training needs scikit-learn")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen ordinary sessions, and the last one a theft."""
    audit = AuditLog(tmp_path_factory.mktemp("log") / "audit.db")
    for seed in range(16):
        audit.append(made(seed, tasks=8).records)
    thief = made(99, tasks=4)
    thief.steals()
    audit.append(thief.records)
    audit.close()
    return audit.path


GOOD = [f"s-{seed:04x}" for seed in range(16)]


def profile(log: Path, directory: Path, *words: str, file: bool = True) -> int:
    return main(["profile", *words, "--directory", str(directory), *(("--file", str(log)) if file else ())])


@pytest.fixture(scope="module")
def trained(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a baseline `work` of the first fifteen sessions."""
    directory = tmp_path_factory.mktemp("trained") / "p"
    assert profile(log, directory, "train", "work", *GOOD[:15]) == 0
    return directory


@pytest.fixture
def store(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "p")


def test_training_says_what_was_learnt_and_what_can_be_promised(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(log, tmp_path / "p", "train", "work", *GOOD) == 0
    out, err = capsys.readouterr()
    assert out.startswith("baseline work, revision 1: 16 sessions, ")
    assert "16 sessions promise at best one false alert in 17; 99 make it 100" in err
    assert profile(log, tmp_path / "p", "train", "work", *GOOD) == 1
    assert "there is a baseline `work` already" in capsys.readouterr().err
    assert profile(log, tmp_path / "p", "train", "work", *GOOD, "--replace", "--json") == 0
    assert json.loads(capsys.readouterr().out)["revision"] == 2


def test_too_few_sessions_are_refused_with_the_number_that_it_takes(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(log, tmp_path / "p", "train", "work", "s-0001", "s-0002", "--json") == 1
    out, err = capsys.readouterr()
    assert "2 sessions of 8 or more acts are too few to learn from: it takes 10" in err
    assert json.loads(out)["exit"] == 1
    assert profile(log, tmp_path / "p", "train", "work", "s-none") == 1
    assert "there is no session `s-none`" in capsys.readouterr().err
    assert profile(log, tmp_path / "p", "train", "../work", *GOOD) == 1
    assert "is no name of a baseline" in capsys.readouterr().err


def test_scoring_tells_a_theft_from_work(log: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(log, store, "score", "work", "last") == 2
    out, err = capsys.readouterr()
    assert out.startswith("s-0063 OVER: score ")
    assert "read home/keys (cat): the baseline has no `read home/keys` at all" in out
    assert "15 sessions can promise no less than one false alert in 16" in err
    profile(log, store, "score", "work", GOOD[15], "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["session"] == GOOD[15]
    assert found["promised"] == 1 / 16
    assert found["over"] == (found["score"] > found["threshold"])


def test_names_that_an_agent_chose_are_learnt_and_shown_without_harm(
    log: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = made(40, tasks=8)
    odd.did("exec", "/opt/\udcff\x1b]0;owned\x07", pid=7)
    odd.did("read", f"/var/\x1b[31m{'a' * 250}/x", comm="\x1b[2J\udcfe", pid=7)
    odd.did("connect", "203.0.113.9:443", detail=f"name ev\x1b[31mil.{'b' * 300}")
    audit = AuditLog(tmp_path / "odd.db")
    for seed in range(16):
        audit.append(made(seed, tasks=8).records)
    audit.append(odd.records)
    audit.close()
    assert profile(audit.path, store, "score", "work", odd.id) == 2
    told = capsys.readouterr().out
    assert r"exec other (\udcff\x1b]0;owned\x07): the baseline has no `exec other` at all" in told
    assert "\x1b" not in told
    assert (
        profile(audit.path, store, "train", "odd", "all", "--no-check") == 0
    )  # nobody keeps an agent from being learnt
    assert profile(audit.path, store, "show", "odd", file=False) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_show_list_export_and_import(
    log: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile(log, store, "show", "work", file=False) == 0
    out = capsys.readouterr().out
    for word in ("programs", "python", "read workspace", "model.example", "rhythm:", "variety (bits)"):
        assert word in out
    assert profile(log, store, "list", "--json", file=False) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["sessions"]) == ("work", 15)
    copy = tmp_path / "copy.json"
    assert profile(log, store, "export", "work", str(copy), file=False) == 0
    assert profile(log, store, "export", "work", str(copy), file=False) == 1
    capsys.readouterr()
    other = tmp_path / "other"
    assert profile(log, other, "import", str(copy), "--sha256", "0" * 64, file=False) == 1
    assert "it is another baseline" in capsys.readouterr().err
    assert profile(log, other, "import", str(copy), "--sha256", listed["sha256"], file=False) == 0
    assert profile(log, other, "score", "work", "last") == 2
    capsys.readouterr()
    copy.write_text(copy.read_text().replace('"revision": 1', '"revision": 7'))
    assert profile(log, other, "import", str(copy), "--replace", file=False) == 1
    assert "does not match its hash" in capsys.readouterr().err


def test_a_broken_baseline_is_told_by_list_and_the_others_are_listed(
    log: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "broken").mkdir()
    (store / "broken" / "000001.json").write_text("{")
    assert profile(log, store, "list", file=False) == 1
    out, err = capsys.readouterr()
    assert "work" in out
    assert "000001.json:1:2: this is no baseline: it is not JSON" in err


def test_learning_on_and_a_changed_agent(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, agent = tmp_path / "p", tmp_path / "agent"
    agent.write_text("one")
    assert profile(log, directory, "train", "work", *GOOD[:15], "--agent", str(agent), "--no-check") == 0
    assert profile(log, directory, "train", "work", GOOD[15], "--add", "--agent", str(agent)) == 0
    assert "revision 2" in capsys.readouterr().out
    assert profile(log, directory, "train", "work", "last", "--add") == 0
    assert "session `s-0063` was not learnt: it is too far from the baseline" in capsys.readouterr().err
    agent.write_text("two")
    assert profile(log, directory, "train", "work", GOOD[14], "--add", "--agent", str(agent)) == 1
    assert "train the baseline again" in capsys.readouterr().err


def test_plots(log: Path, store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert profile(log, store, "show", "work", "--plot", str(tmp_path / "plots"), file=False) == 0
    assert (tmp_path / "plots" / "work.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "plots" / "work.svg").read_text()


def test_a_shipped_baseline_is_used_by_name_until_there_is_another(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    assert main(["profile", "export", "work", str(shipped / "work.json"), "--directory", str(store)]) == 0
    own = Store(tmp_path / "own", shipped)
    assert own.names() == ["work"]
    first = own.load("work")
    own.save(Baseline.of(first.body.model_copy(update={"revision": 2, "anchor": first.sha256})))
    assert own.path("work") == tmp_path / "own/work/000002.json"
    assert own.load("work").body.anchor == first.sha256
    with pytest.raises(AgentmonError, match=r"there is no baseline `other` in `.*` \(work\)"):
        own.load("other")
    capsys.readouterr()


def test_the_baseline_of_this_installation_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert "coding-agent" in Store(Path("/nonexistent"), shipped_directory()).names()
    assert main(["--config", "/dev/null", "profile", "show", "coding-agent", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["name"] == "coding-agent"
    assert facts["sessions"] >= 99  # else it could not promise one false alert in 100
