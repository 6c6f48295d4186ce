# SPDX-License-Identifier: Apache-2.0
"""Plans as a user sees them: `run --plan`, what is told, marks, a daemon that comes back."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentmon.model.operations import Tier
from tests.support.hosts import REPOSITORY, Host, wait_for

PLAN = """
plan: release
agent:
  rules:
    - {id: tools, on: exec, paths: ["**/{sh,python*,sleep,env}", "TOOLS/agent"], action: allow}
    - {id: notes, on: [write, create], paths: ["TOOLS/**", "/dev/null"], action: allow}
steps:
  - {id: fetch, starts: {exe: "TOOLS/fetch"}}
  - {id: build, needs: fetch, starts: [mark, {exe: "TOOLS/build"}], read-only: true, repeat: true}
  - {id: push, needs: build, starts: {exe: "TOOLS/push"}}
"""


@pytest.fixture
def tools(served: Host, tmp_path: Path) -> Path:
    directory = served.directory / tmp_path.name
    directory.mkdir()
    for name in ("fetch", "build", "push", "agent"):
        shutil.copy("/bin/sh", directory / name)
    (directory / "plan.yaml").write_text(PLAN.replace("TOOLS", str(directory)))
    return directory


@pytest.fixture
def policy(served: Host) -> Path:
    return served.policy("  []\n", "open")


def run(host: Host, policy: Path, tools: Path, script: str) -> subprocess.CompletedProcess[str]:
    """The agent is a shell that runs this; `$T` are the tools."""
    words = ["run", "-p", policy, "--plan", tools / "plan.yaml", "--", tools / "agent", "-c", f"T={tools}; {script}"]
    return host.agentmon(*words)


def records(host: Host, session: str) -> list[dict[str, str]]:
    done = host.agentmon("audit", "log", "--session", session, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def last_session(host: Host) -> str:
    done = host.agentmon("audit", "log", "--json")
    return [r for r in map(json.loads, done.stdout.splitlines()) if r["operation"] == "enrolled"][-1]["session"]


def test_a_run_follows_its_plan_and_is_told_why_not(served: Host, policy: Path, tools: Path, tier: Tier) -> None:
    done = run(served, policy, tools, "$T/build -c 'exit 0'; $T/fetch -c 'exit 0'; $T/build -c 'exit 0'; echo end")
    assert done.stdout == "end\n"
    assert "step build may not begin yet: it comes after fetch" in done.stderr
    found = records(served, last_session(served))
    assert [(r["operation"], r["object"]) for r in found if r["kind"] == "step"] == [
        ("began", "fetch"), ("done", "fetch"), ("began", "build"), ("done", "build"),
    ]  # fmt: skip
    [(operation, reason)] = [(r["operation"], r["reason"]) for r in found if r["verdict"] in ("deny", "kill")]
    assert (operation, reason) == ("exec", "step build may not begin yet: it comes after fetch")
    assert not [r for r in found if r["kind"] == "mismatch"]


def test_what_a_step_forbids_names_step_and_rule(served: Host, policy: Path, tools: Path, tier: Tier) -> None:
    done = run(
        served, policy, tools, "$T/fetch -c 'exit 0'; $T/build -c 'echo x > $0' $T/out; cat $T/out; /bin/cat /dev/null"
    )
    assert "read-only (step build forbids this: the step changes nothing)" in done.stderr
    assert "it is of no step of the plan, and outside of them it is not allowed" in done.stderr  # cat
    assert not [r for r in records(served, last_session(served)) if r["kind"] == "mismatch"]


def test_a_fork_too_many_is_told_of_with_step_and_reason(served: Host, policy: Path, tools: Path) -> None:
    plan = (tools / "plan.yaml").read_text().replace('fetch"}}', 'fetch"}, max-procs: 1, exit: any}')
    (tools / "plan.yaml").write_text(plan)
    done = run(served, policy, tools, "$T/fetch -c '(exit 0); exit 0'; echo end")
    assert "1 operation(s) blocked" in done.stderr
    assert "refused fetch: the plan (step fetch has as many processes as it may)" in done.stderr


def test_ps_shows_where_the_plan_is(served: Host, policy: Path, tools: Path) -> None:
    words = ["run", "-p", policy, "--plan", tools / "plan.yaml", "--", tools / "agent", "-c"]
    script = f"{tools}/fetch -c 'exit 0'; {tools}/build -c 'read line'; read line"
    agent = served.spawn(*words, script, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def states() -> list[tuple[str, str]]:
        sessions = [s for s in served.json("ps")["sessions"] if s.get("plan") == "release"]
        return [(s["step"], s["state"]) for session in sessions for s in session["steps"]]

    wait_for(
        lambda: states() == [("fetch", "done"), ("build", "active"), ("push", "waiting")], "the second step to begin"
    )
    shown = served.agentmon("ps").stdout
    assert "plan release" in shown
    assert "active: build; done: fetch; waiting: push" in shown
    [name] = [s["session"] for s in served.json("ps")["sessions"] if s.get("plan") == "release"]
    assert f"session `{name}` is not paused" in served.agentmon("resume", name).stderr
    assert agent.stdin
    agent.stdin.write("\n")
    agent.stdin.flush()
    wait_for(lambda: states() == [("fetch", "done"), ("build", "done"), ("push", "enabled")], "the second step to end")
    agent.stdin.write("\n")
    agent.stdin.close()
    assert agent.wait() == 0


MARKS = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
import agentmon
from agentmon.errors import AgentmonError

def attempt():
    try:
        with agentmon.step(sys.argv[1]):
            return "in it"
    except AgentmonError as error:
        return str(error)

print(attempt(), attempt(), sep=chr(10))
"""


def test_python_marks_a_step_in_its_turn(served: Host, policy: Path, tools: Path) -> None:
    (tools / "mark.py").write_text(MARKS)
    python = Path(sys.executable).resolve()
    plan = (tools / "plan.yaml").read_text().replace("**/{sh,", f'{python}", "**/{{sh,')
    (tools / "plan.yaml").write_text(plan)
    done = run(
        served, policy, tools,
        f"{python} $T/mark.py build; $T/fetch -c 'exit 0'; {python} $T/mark.py build; {python} $T/mark.py push;"
        f" {python} $T/mark.py nothing",
    )  # fmt: skip
    assert "2x refused build: the plan (step build may not begin yet: it comes after fetch)" in done.stderr
    assert done.stdout.splitlines() == [
        *["step build may not begin yet: it comes after fetch"] * 2,
        *["in it"] * 2,
        *["step push starts with a program, not with a mark"] * 2,
        *["the plan has no step `nothing`; it has fetch, build, push"] * 2,
    ], done.stderr


def test_a_shell_marks_a_step_by_a_command(served: Host, policy: Path, tools: Path, tier: Tier) -> None:
    """It is the shell that is in it: what it does from then on is of the step."""
    python = Path(sys.executable).resolve()
    plan = (tools / "plan.yaml").read_text().replace("**/{sh,", f'{python}", "**/{{sh,')
    (tools / "plan.yaml").write_text(plan)
    words = " ".join(served.command("step"))
    done = run(
        served, policy, tools,
        f"$T/fetch -c 'exit 0'; export PYTHONPATH={REPOSITORY}; {words} begin build && echo x > $T/out; echo $?;"
        f" {words} end build; echo $?; echo x > $T/out; echo $?",
    )  # fmt: skip
    if tier is Tier.LSM:
        assert done.stdout == "2\n0\n0\n", done.stderr
    else:
        assert done.returncode == 128 + signal.SIGKILL
    assert "read-only (step build forbids this" in done.stderr


def test_a_daemon_that_comes_back_knows_the_plan(served: Host, policy: Path, tools: Path, tier: Tier) -> None:
    words = ["run", "-p", policy, "--plan", tools / "plan.yaml", "--", tools / "agent", "-c"]
    script = (
        f"{tools}/fetch -c 'exit 0'; echo ready; read line; {tools}/push -c 'exit 0'; {tools}/build -c 'exit 0';"
        f" {tools}/push -c 'exit 0'; echo $?"
    )
    agent = served.spawn(*words, script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert agent.stdout
    assert agent.stdin
    assert agent.stdout.readline() == "ready\n"
    served.daemons[-1].kill()
    served.daemons[-1].wait()
    served.start()
    [session] = [s for s in served.json("ps")["sessions"] if s.get("plan") == "release"]
    assert [s["state"] for s in session["steps"]] == ["done", "enabled", "waiting"]
    agent.stdin.write("\n")
    agent.stdin.close()
    assert agent.stdout.read() == "0\n"
    agent.wait()
    found = records(served, session["session"])
    refused = [r["reason"] for r in found if r["verdict"] in ("deny", "kill")]
    assert refused == ["step push may not begin yet: it comes after build"]
    assert [r["object"] for r in found if r["kind"] == "step" and r["operation"] == "done"] == [
        "fetch",
        "build",
        "push",
    ]


def test_a_bad_plan_is_refused_with_its_place(served: Host, policy: Path, tools: Path) -> None:
    (tools / "plan.yaml").write_text("plan: p\nsteps:\n  - {id: one, needs: two, starts: mark}\n")
    done = run(served, policy, tools, "echo on")
    assert done.returncode == 3
    assert f"{tools}/plan.yaml:3:" in done.stderr
    assert "on" not in done.stdout
    missing = served.agentmon("run", "-p", policy, "--plan", "nothing", "--", "echo", "on")
    assert missing.returncode == 3
    assert "nothing: there is no such file" in missing.stderr


def test_a_violation_pauses_the_session_until_it_is_let_go_on(served: Host, policy: Path, tools: Path) -> None:
    file = tools / "plan.yaml"
    file.write_text(file.read_text().replace("plan: release", "plan: release\non-violation: pause"))
    words = ["run", "-p", policy, "--plan", file, "--", tools / "agent", "-c"]
    agent = served.spawn(
        *words, f"echo one; {tools}/push -c 'exit 0'; sleep 1; echo two", stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert agent.stdout

    def paused() -> list[dict[str, str]]:
        return [s for s in served.json("ps")["sessions"] if s.get("paused")]

    def told(name: str) -> list[str]:
        return [r["operation"] for r in records(served, name) if r["kind"] == "session"]

    wait_for(paused, "the session to be paused")
    [session] = paused()
    assert session["paused"] == "step push may not begin yet: it comes after build"
    wait_for(lambda: told(session["session"])[-1] == "paused", "it to be written down")
    served.daemons[-1].kill()
    served.daemons[-1].wait()
    served.start()
    assert "PAUSED" in served.agentmon("ps").stdout  # the next daemon knows
    done = served.agentmon("resume", session["session"])
    assert done.returncode == 0, done.stderr
    assert agent.stdout.read() == "one\ntwo\n"
    agent.wait()
    wait_for(lambda: told(session["session"])[-1] == "ended", "the end to be written down")
    assert told(session["session"]) == ["enrolled", "paused", "resumed", "ended"]


def test_what_a_plan_paused_runs_on_when_its_session_is_released(served: Host, policy: Path, tools: Path) -> None:
    file = tools / "plan.yaml"
    file.write_text(file.read_text().replace("plan: release", "plan: release\non-violation: pause"))
    words = [
        "run",
        "-p",
        policy,
        "--plan",
        file,
        "--",
        tools / "agent",
        "-c",
        f"{tools}/push -c 'exit 0'; sleep 2; echo on",
    ]
    agent = served.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert agent.stdout
    wait_for(lambda: [s for s in served.json("ps")["sessions"] if s.get("paused")], "the session to be paused")
    [session] = [s["session"] for s in served.json("ps")["sessions"] if s.get("paused")]
    assert served.agentmon("release", session).returncode == 0
    assert agent.stdout.read() == "on\n"
    agent.wait()


def test_why_tells_the_agent(served: Host, policy: Path, tools: Path) -> None:
    python = Path(sys.executable).resolve()
    plan = (tools / "plan.yaml").read_text().replace("**/{sh,", f'{python}", "**/{{sh,')
    (tools / "plan.yaml").write_text(plan)
    done = run(
        served, policy, tools, f"$T/push -c 'exit 0'; export PYTHONPATH={REPOSITORY}; {' '.join(served.command('why'))}"
    )
    assert "step push may not begin yet: it comes after build" in done.stdout
    assert "allowed instead" not in done.stdout


def test_a_step_that_holds_waits_for_an_answer(served: Host, policy: Path, tools: Path) -> None:
    """A program that comes too early is asked for; let go on, it begins its step."""
    file = tools / "plan.yaml"
    file.write_text(file.read_text().replace("plan: release", "plan: release\non-violation: hold"))
    words = ["run", "-p", policy, "--plan", file, "--", tools / "agent", "-c", f"{tools}/push -c 'exit 0'; echo $?"]
    agent = served.spawn(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)

    def held() -> list[dict[str, str]]:
        done = served.agentmon("approvals", "--json")
        return [a for a in map(json.loads, done.stdout.splitlines()) if a.get("object") == str(tools / "push")]

    wait_for(held, "somebody to be asked")
    [asked] = held()
    assert asked["reason"] == "step push may not begin yet: it comes after build"
    done = served.agentmon("approve", asked["id"])
    assert done.returncode == 0, done.stderr
    assert agent.stdout
    assert agent.stdout.read() == "0\n"
    agent.wait()
    steps = [(r["operation"], r["object"]) for r in records(served, asked["session"]) if r["kind"] == "step"]
    assert steps == [("began", "push"), ("done", "push")]
