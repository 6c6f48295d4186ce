# SPDX-License-Identifier: Apache-2.0
"""A session is watched by the baseline of its agent: what is unusual raises its risk, and rules do the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from agentmon.audit.read import read
from agentmon.model.records import Record
from tests.support.hosts import Host, wait_for

pytest.importorskip("sklearn", reason="training needs scikit-learn")

LEARNT = 14
#: The agent looks at its project, changes it and tests it, each session otherwise. It stops where it is told.
AGENT = """#!@PYTHON@
import os, random, subprocess, sys
seed, ground, stops = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
chance = random.Random(seed)

def run(*words):
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

def work(tasks):
    for n in range(tasks):
        name = f"{ground}/src/part{chance.randrange(8)}.txt"
        for _ in range(chance.randrange(1, 3)):
            run(chance.choice(["cat", "head", "wc", "sort"]), name)
        if chance.random() < 0.5:
            run("ls", f"{ground}/src")
        with open(name, "a") as file:
            file.write("more\\n")
        if chance.random() < 0.4:
            with open(f"{ground}/src/new{seed}-{n}.txt", "w") as file:
                file.write("new\\n")
        run("sh", "-c", f"grep -c more {name}; exit {chance.randrange(2)}")

def wait(word):
    print(word, flush=True)
    sys.stdin.readline()

work(chance.randrange(9, 13))
if "evil" in stops:
    wait("before")
    for name in ("/etc/shadow", "/etc/gshadow", "/etc/sudoers"):
        run("cat", name)
if stops:
    wait("after")
    try:
        print(open(f"{ground}/prize").read(), flush=True)
    except OSError:
        print("denied", flush=True)
"""


class Agents:
    """A host with an agent that has a baseline."""

    def __init__(self, host: Host, home: Path) -> None:
        self.host, self.home = host, home
        self.profiles = host.directory / "profiles"
        with host.config.open("a") as file:
            file.write(f'[fingerprint]\ndirectory = "{self.profiles}"\nlearn_sessions = 10\n')
        self.ground = host.directory / "project"
        (self.ground / "src").mkdir(parents=True)
        for n in range(8):
            (self.ground / f"src/part{n}.txt").write_text("some\n")
        (self.ground / "prize").write_text("the prize")
        self.program = host.directory / "agent.py"
        self.program.write_text(AGENT.replace("@PYTHON@", sys.executable))
        self.program.chmod(0o755)
        self.policy = host.policy(
            f"  - {{id: shut, on: read, paths: ['{self.ground}/prize'], when: {{risk: high}}, action: deny}}"
        )

    def command(self, seed: int, *stops: str, profile: str = "made", how: str = "--profile") -> list[str]:
        watched = [how, profile] if profile else []
        program = [self.program, str(seed), self.ground, *stops]
        return list(map(str, ["run", "-p", self.policy, "--workspace", self.ground, *watched, "--", *program]))

    def learn(self) -> None:
        for seed in range(LEARNT):
            done = self.host.agentmon(*self.command(seed, "normal", profile=""), stdin=subprocess.DEVNULL)
            assert done.returncode == 0, done.stderr
        done = self.host.agentmon(
            "profile", "train", "made", "all", "--file", self.host.audit, "--directory", self.profiles, "--no-check"
        )
        assert done.returncode == 0, done.stderr

    def records(self, session: str) -> list[Record]:
        """What the log has of a session's risk."""
        return [r for r in read(self.host.audit) if r.session == session and r.operation in ("risk", "unwatched")]

    def lessons(self, name: str) -> list[Record]:
        """What came of learning."""
        return [r for r in read(self.host.audit) if r.object == name and r.kind == "session"]


class Running:
    """A session under way."""

    def __init__(self, agents: Agents, seed: int, *stops: str, **how: str) -> None:
        host = agents.host
        self.agents = agents
        self.process = subprocess.Popen(
            host.command(*agents.command(seed, *stops, **how)), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=host.environment(), cwd=host.directory,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.said("before" if self.evil else "after")
        (self.id,) = [s["session"] for s in self.agents.host.json("ps")["sessions"]]
        return self

    @property
    def evil(self) -> bool:
        return "evil" in self.process.args

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        wait_for(lambda: not self.agents.host.json("ps")["sessions"], "its end")

    def said(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """What came of the prize: what it said, or how it ended."""
        out, _ = self.process.communicate("\n", timeout=60)
        return str(out).strip() or f"status {self.process.returncode}"

    def seen(self) -> dict[str, Any]:
        (found,) = self.agents.host.json("ps")["sessions"]
        return dict(found)


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    home = Path(os.path.expanduser("~"))
    with Host(tmp_path_factory.mktemp("host")) as host:
        host.start()
        agents = Agents(host, home)
        restart(host)
        agents.learn()
        yield agents


def restart(host: Host) -> None:
    """Another daemon in place of the one that runs."""
    host.daemons[-1].terminate()
    host.daemons[-1].wait()
    host.start()


def test_ordinary_work_raises_nothing(agents: Agents) -> None:
    with Running(agents, 100, "normal") as run:
        wait_for(lambda: run.seen()["fingerprint"]["acts"] > 50, "judgement")
        assert run.seen()["risk"] == "normal"
        assert run.end() == "the prize"
        assert agents.records(run.id) == []


def test_what_is_unusual_raises_the_risk_and_a_rule_denies_by_it_also_after_a_restart(agents: Agents) -> None:
    host = agents.host
    with Running(agents, 101, "evil") as run:
        assert run.seen()["risk"] == "normal"
        restart(host)
        assert run.seen()["fingerprint"]["acts"] > 20  # it knows what was before
        run.go()
        run.said("after")
        wait_for(lambda: run.seen()["risk"] == "high", "the risk to rise")
        found = run.seen()["fingerprint"]
        assert found["profile"] == "made"
        assert found["level"] == "high"
        assert found["rose"]["score"] > found["thresholds"]["high"]
        assert any("the baseline has no `read etc/keys` at all" in reason for reason in found["rose"]["reasons"])
        assert "risk high, by `made`: score" in host.agentmon("ps").stdout
        assert "risk high, by `made`" in host.agentmon("why", run.id).stdout
        restart(host)
        assert run.seen()["risk"] == "high"
        assert run.seen()["fingerprint"]["level"] == "high"
        assert run.end() in ("denied", "status 137")
        rises = [r for r in agents.records(run.id) if r.reason]
        assert rises
        assert rises[-1].detail.startswith("high, was ")
        assert len({r.detail.split(",")[0] for r in rises}) == len(rises)  # one for each level


def test_run_says_at_its_end_that_the_risk_rose(agents: Agents) -> None:
    done = agents.host.agentmon(*agents.command(105, "evil"), input="\n\n")
    assert ": its risk rose: high, was " in done.stderr
    assert "the baseline has no `read etc/keys` at all" in done.stderr
    assert "risk rose" not in agents.host.agentmon(*agents.command(106, "normal"), input="\n").stderr


def test_who_is_fenced_is_not_told_how_far_it_is(agents: Agents) -> None:
    host = agents.host
    words = host.command("ps", "--json")
    done = host.agentmon("run", "-p", agents.policy, "--profile", "made", "--", *words)
    (session,) = json.loads(done.stdout)["sessions"]
    assert session["risk"] in ("normal", "elevated", "high")
    assert "fingerprint" not in session


def test_the_operators_level_is_the_least_and_his_word_settles_what_was_found(agents: Agents) -> None:
    host = agents.host
    with Running(agents, 102, "evil") as run:
        assert host.json("risk", run.id, "elevated")["risk"] == "elevated"
        run.go()
        run.said("after")
        wait_for(lambda: run.seen()["risk"] == "high", "the risk to rise")
        assert host.json("risk", run.id, "elevated") == {
            "v": 1, "session": run.id, "risk": "elevated", "was": "high",
        }  # fmt: skip
        assert run.seen()["fingerprint"]["level"] == "normal"
        restart(host)
        assert run.seen()["risk"] == "elevated"
        assert run.end() == "the prize"


def test_a_profile_that_cannot_be_used_is_refused_and_said_after_a_restart(agents: Agents) -> None:
    host = agents.host
    missing = host.agentmon(*agents.command(1, profile="nobody"))
    assert missing.returncode == 1
    assert f"there is no baseline `nobody` in `{agents.profiles}` (" in missing.stderr
    (file,) = (agents.profiles / "made").glob("*.json")
    good = file.read_text()
    with Running(agents, 103, "normal") as run:
        try:
            body = json.loads(good)
            body["body"]["mean"] += 1
            file.write_text(json.dumps(body))
            broken = host.agentmon(*agents.command(1))
            assert broken.returncode == 1
            assert "the content does not match its hash" in broken.stderr
            restart(host)
            assert "is not watched" in host.agentmon("ps").stdout
            (record,) = agents.records(run.id)
            assert record.operation == "unwatched"
            assert "does not match its hash" in record.reason
        finally:
            file.write_text(good)


def test_a_new_agent_is_learnt_and_a_changed_one_is_not(agents: Agents) -> None:
    host = agents.host

    def learns(seed: int) -> tuple[str, Record]:
        """What was noted at the beginning, and what came of it."""
        known = len(agents.lessons("young"))
        done = host.agentmon(*agents.command(seed, "normal", profile="young", how="--learn"), stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: len(agents.lessons("young")) > known, "what was learnt")
        return done.stderr, agents.lessons("young")[-1]

    note, first = learns(200)
    assert "no baseline `young` yet: it is learnt, with 10 more sessions and 20 more windows of 64 acts to go" in note
    assert first.operation == "collected"
    assert first.detail.startswith("9 more sessions")
    for seed in range(201, 208):
        learns(seed)
    with Running(agents, 208, "normal", how="--learn", profile="young") as run:
        assert run.seen()["fingerprint"]["to_go"]["sessions"] == 2
        assert "learning (2 to go)" in host.agentmon("ps").stdout
        restart(host)
        assert "learning (2 to go)" in host.agentmon("ps").stdout
        run.end()
        wait_for(lambda: agents.lessons("young")[-1].detail == "1 more session to go", "its end to be learnt")
    _, last = learns(209)
    assert last.operation == "trained"
    assert last.detail == "baseline `young` of 10 sessions: at best one false alert in 11"
    assert "young" in host.agentmon("profile", "list").stdout
    note, last = learns(210)
    assert "no baseline" not in note
    assert last.operation in ("learnt", "not-learnt")
    if last.operation == "not-learnt":
        assert "it is too far from the baseline" in last.detail
    agents.program.write_text(agents.program.read_text() + "# another version\n")
    note, last = learns(211)
    assert "note: the agent's program is another than that of `young`" in note
    assert last.operation == "not-learnt"
    assert "train the baseline again" in last.detail
