# SPDX-License-Identifier: Apache-2.0
"""The hook of Claude Code begins and ends steps, for the agent program that runs it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentmon.model.operations import Tier
from tests.support.hosts import REPOSITORY, Host, wait_for

PLAN = """
plan: hooked
agent:
  rules:
    - {id: tools, on: exec, paths: ["**/{sh,dash,bash,python*,env}", "TOOLS/**"], action: allow}
    - {id: notes, on: [write, create], paths: ["TOOLS/notes", "/dev/null"], action: allow}
steps:
  - id: edit
    starts: mark
    repeat: true
    rules: [{id: src, on: [write, create], paths: ["TOOLS/src/**", "/dev/null"], action: allow}]
  - {id: test, needs: edit, starts: mark, read-only: true, repeat: true}
  - {id: push, needs: test, starts: mark}
"""
STEPS = ["Bash(./check *)=test", "Bash(./push)=push", "Bash(./none)=nothing", "Edit=edit", "Write=edit"]

#: As Claude Code does it: events to a shell's standard input, commands in a shell of their own, all by one process.
AGENT = r"""
import json, os, subprocess, sys

HOOK = os.environ["HOOK"]
told = []

def hook(name, **fields):
    event = {"session_id": "x", "cwd": os.getcwd(), "hook_event_name": name, **fields}
    done = subprocess.run(["/bin/sh", "-c", HOOK], input=json.dumps(event), capture_output=True, text=True)
    reply = json.loads(done.stdout)["hookSpecificOutput"] if done.stdout else {}
    return done.returncode, reply, done.stderr

def call(tool, argument, number, after=True):
    field = "command" if tool == "Bash" else "file_path"
    more = {"tool_name": tool, "tool_input": {field: argument}, "tool_use_id": f"toolu_{number}"}
    code, reply, said = hook("PreToolUse", **more)
    found = {"code": code, "said": said, "denied": reply.get("permissionDecisionReason", "")}
    told.append(found)
    if reply.get("permissionDecision") == "deny":
        return
    if tool == "Bash":
        found["status"] = subprocess.run(["/bin/sh", "-c", argument], stderr=subprocess.DEVNULL).returncode
    else:
        try:
            with open(argument, "w") as file:
                file.write("x")
            found["status"] = 0
        except OSError as error:
            found["status"] = error.errno
    if after:
        code, reply, said = hook("PostToolUseFailure" if found["status"] else "PostToolUse", **more)
        found["after"] = reply.get("additionalContext", "") + said

exec(open(sys.argv[1]).read())
print(json.dumps(told), flush=True)
"""


@pytest.fixture
def tools(served: Host, tmp_path: Path) -> Path:
    directory = served.directory / tmp_path.name
    (directory / "src").mkdir(parents=True)
    shutil.copy("/bin/sh", directory / "tool")
    for name in ("check", "push"):
        (directory / name).write_text("#!/bin/sh\necho x > ${1:-/dev/null}\n")
        (directory / name).chmod(0o755)
    (directory / "agent.py").write_text(AGENT)
    python = Path(sys.executable).resolve()
    plan = PLAN.replace("TOOLS/**", f'TOOLS/**", "{python}').replace("TOOLS", str(directory))
    (directory / "plan.yaml").write_text(plan)
    return directory


def hook_of(host: Host, *more: str) -> dict[str, str]:
    """The agent's environment, with the hook that it runs."""
    words = [*host.command("hook"), "claude-code", *(word for step in STEPS for word in ("--step", step)), *more]
    return host.environment() | {"HOOK": shlex.join(words)}


def run(
    host: Host, tools: Path, script: str, *, plan: bool = True, wrapped: bool = False, more: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """What became of each call of the agent, which runs this script of calls."""
    (tools / "script.py").write_text(script)
    policy = host.policy("  []\n", "open")
    environment = hook_of(host, *more)
    agent = [sys.executable, str(tools / "agent.py"), str(tools / "script.py")]
    if wrapped:
        agent = ["/bin/sh", "-c", f"cd .; {shlex.join(agent)}; exit 0"]
    given = ["--plan", tools / "plan.yaml"] if plan else []
    done = host.agentmon("run", "-p", policy, *given, "--", *agent, env=environment, cwd=tools)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def stepped(host: Host) -> list[tuple[str, str]]:
    """What became of the steps of the last session."""
    done = host.agentmon("audit", "log", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    last = [r["session"] for r in found if r["operation"] == "enrolled"][-1]
    assert not [r for r in found if r["session"] == last and r["kind"] == "mismatch"]
    return [(r["operation"], r["object"]) for r in found if r["session"] == last and r["kind"] == "step"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_calls_are_steps_in_their_turn(served: Host, tools: Path, wrapped: bool) -> None:
    """Also if the agent program itself was started by a shell with `-c`."""
    found = run(
        served, tools,
        "call('Bash', './push', 1)\n"
        "call('Edit', 'src/a', 2)\n"
        "call('Bash', './check /dev/null', 3)\n"
        "call('Bash', './push', 4)\n",
        wrapped=wrapped,
    )  # fmt: skip
    first, *rest = found
    assert first["denied"].endswith(
        "this call is step push of its plan, and it cannot begin: step push may not begin yet: it comes after test"
    )
    assert "status" not in first  # it was not made
    assert [(f["denied"], f["status"], f["code"], f["after"]) for f in rest] == [("", 0, 0, "")] * 3
    names = [("refused", "push")]
    names += [(what, name) for name in ("edit", "test", "push") for what in ("began", "done")]
    assert stepped(served) == names


def test_what_a_call_does_is_judged_by_its_step(served: Host, tools: Path, tier: Tier) -> None:
    """The agent program itself, and what it starts; and outside of all steps once the call is over."""
    attempts = f"""
call('Edit', 'src/a', 1)
call('Bash', './check src/a', 2)
call('Bash', 'echo x > {tools}/notes', 3)
call('Bash', 'echo x > {tools}/src/b', 4)
"""
    if tier is Tier.LSM:  # else it would be the end of the agent program
        attempts += "call('Write', 'notes', 5)\n"
    first, second, third, fourth, *fifth = run(served, tools, attempts)
    assert (first["status"], third["status"]) == (0, 0)
    assert second["status"] != 0
    assert "read-only" in second["after"]
    assert fourth["status"] != 0
    assert "outside of them it is not allowed" in fourth["after"]
    assert [f["status"] for f in fifth] == [1] * len(fifth)
    assert ("failed", "test") in stepped(served)
    assert not (tools / "src/b").exists() or not (tools / "src/b").read_text()


def test_a_call_that_fails_leaves_its_step_undone(served: Host, tools: Path) -> None:
    found = run(
        served, tools,
        "call('Edit', 'src/a', 1)\ncall('Bash', './check x; exit 3', 2)\ncall('Bash', './push', 3)\n",
    )  # fmt: skip
    assert [bool(f["denied"]) for f in found] == [False, False, True]
    assert stepped(served) == [
        ("began", "edit"),
        ("done", "edit"),
        ("began", "test"),
        ("failed", "test"),
        ("refused", "push"),
    ]


def test_calls_at_the_same_time_share_a_step_until_the_last_has_ended(served: Host, tools: Path) -> None:
    script = """
more = {n: {"tool_name": "Edit", "tool_input": {"file_path": "src/a"}, "tool_use_id": f"toolu_{n}"} for n in (1, 2)}
hook("PreToolUse", **more[1])
hook("PreToolUse", **more[2])
hook("PostToolUse", **more[1])
with open("src/a", "w") as file:
    file.write("x")
hook("PostToolUse", **more[2])
hook("PostToolUse", **more[2])
"""
    run(served, tools, script)
    assert stepped(served) == [("began", "edit"), ("done", "edit")]
    assert (tools / "src/a").read_text() == "x"


@pytest.mark.parametrize("event", ["Stop", "UserPromptSubmit", "SessionEnd"])
def test_a_call_that_was_broken_off_ends_with_the_turn(served: Host, tools: Path, event: str) -> None:
    """Nobody knows what came of it: its step is not done."""
    run(served, tools, f"call('Edit', 'src/a', 1, after=False)\nhook({event!r})\ncall('Bash', 'echo x > notes', 2)\n")
    assert stepped(served) == [("began", "edit"), ("failed", "edit")]
    assert (tools / "notes").read_text() == "x\n"


def test_a_call_of_another_step_ends_the_one_before(served: Host, tools: Path) -> None:
    found = run(
        served, tools,
        "call('Edit', 'src/a', 1)\ncall('Edit', 'src/a', 2, after=False)\ncall('Bash', './check /dev/null', 3)\n",
    )  # fmt: skip
    assert [f["denied"] for f in found] == ["", "", ""]
    # the hook itself was started in the step, which is not over before it
    assert [pair for pair in stepped(served) if pair != ("failed", "edit")] == [
        ("began", "edit"), ("done", "edit"), ("began", "edit"), ("began", "test"), ("done", "test"),
    ]  # fmt: skip
    assert ("failed", "edit") in stepped(served)


def test_a_step_that_the_plan_has_not_forbids_the_call(served: Host, tools: Path) -> None:
    [found] = run(served, tools, "call('Bash', './none', 1)\n")
    assert "the plan has no step `nothing`; it has edit, test, push" in found["denied"]


def test_without_a_plan_the_same_settings_do_nothing(served: Host, tools: Path) -> None:
    found = run(served, tools, "call('Bash', './push', 1)\ncall('Edit', 'src/a', 2)\n", plan=False)
    assert [(f["denied"], f["status"], f["said"], f["after"]) for f in found] == [("", 0, "", "")] * 2


def test_the_agent_program_is_found_by_its_name(served: Host, tools: Path) -> None:
    """Behind a hook that is a script of its own, for instance."""
    (tools / "wrapper").write_text('#!/bin/sh\n"$@"\nexit $?\n')
    (tools / "wrapper").chmod(0o755)
    script = f"HOOK = {str(tools / 'wrapper')!r} + ' ' + HOOK\ncall('Edit', 'src/a', 1)\n"
    python = Path(sys.executable).resolve().name
    [found] = run(served, tools, script, more=("--agent", "agent.py"))
    assert "no process called `agent.py` has run this hook inside of the session" in found["denied"]
    # the hook is a Python too, and none of its own ancestors
    [found] = run(served, tools, script, more=("--agent", python))
    assert (found["denied"], found["status"], found["after"]) == ("", 0, "")
    assert stepped(served) == [("began", "edit"), ("done", "edit")]


def test_when_the_daemon_is_gone_a_step_cannot_begin(served: Host, tools: Path) -> None:
    script = f"""
import signal
os.environ["AGENTMON_SOCKET"] = {str(tools / "nobody.sock")!r}
HOOK = HOOK.replace("--config {served.config}", "")
call('Edit', 'src/a', 1)
"""
    [found] = run(served, tools, script)
    assert "step edit of its plan, and it cannot begin" in found["denied"]


def test_bad_words_are_refused_with_the_remedy() -> None:
    for word, said in {
        "Edit": "is no TOOL=STEP", "=x": "is no TOOL=STEP", "Edit=": "is no TOOL=STEP", "Bash(x=y": "is no TOOL=STEP",
        "Grep(x)=y": "leave the brackets out",
    }.items():  # fmt: skip
        words = [sys.executable, "-m", "agentmon.cli.main", "hook", "claude-code", "--step", word]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=REPOSITORY, input="{}")
        assert done.returncode == 64
        assert said in done.stderr


def test_a_daemon_that_comes_back_ends_the_step_of_a_call(served: Host, tools: Path) -> None:
    (tools / "script.py").write_text("""
more = {"tool_name": "Edit", "tool_input": {"file_path": "src/a"}, "tool_use_id": "toolu_1"}
hook("PreToolUse", **more)
print("ready", flush=True)
sys.stdin.readline()
hook("PostToolUse", **more)
call('Bash', './check /dev/null', 2)
""")
    policy = served.policy("  []\n", "open")
    words = ["run", "-p", policy, "--plan", tools / "plan.yaml", "--", sys.executable]
    agent = served.spawn(
        *words, tools / "agent.py", tools / "script.py", env=hook_of(served), cwd=tools,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert agent.stdout
    assert agent.stdin
    assert agent.stdout.readline() == "ready\n"
    served.daemons[-1].kill()
    served.daemons[-1].wait()
    served.start()
    agent.stdin.write("\n")
    agent.stdin.close()
    [found] = json.loads(agent.stdout.read())
    assert (agent.wait(), found["denied"], found["status"]) == (0, "", 0)
    # who survived its daemon does not wait for the next one to have written down all that it did
    wait_for(lambda: stepped(served)[-2:] == [("began", "test"), ("done", "test")], "the last step to be written down")
