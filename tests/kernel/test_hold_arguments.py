# SPDX-License-Identifier: Apache-2.0
"""`action: hold` by the arguments of a program: it waits before its first instruction, in both tiers."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.held import agent, approvals, asked, finish, frozen
from tests.support.hosts import Host, wait_for
from tests.support.starts import GO, WAKES, first


@pytest.fixture
def tools(served: Host) -> Path:
    """A directory of programs."""
    directory = served.directory / f"tools-{time.monotonic_ns()}"
    directory.mkdir()
    shutil.copy("/bin/echo", directory / "echo")
    first(directory / "first")
    return directory


def pushes(host: Host, tools: Path, also: str = "") -> Path:
    """A policy that holds whatever is told to push."""
    rule = f"  - {{id: push, on: exec, exe: ['{tools}/*'], argv: [push, '**'], action: hold, reason: ask first}}"
    return host.policy(f"{rule}\n{also}", "push")


def test_a_program_is_held_by_its_arguments(served: Host, tools: Path) -> None:
    body = f"""
        import subprocess
        for words in (["pull"], ["push", "now"], ["push", "then"]):
            print(subprocess.run(["{tools}/echo", *words]).returncode, flush=True)
    """
    running = agent(served, pushes(served, tools), body)
    question = asked(served)[0]
    assert (question["command"][1:], question["program"]) == (["push", "now"], f"{tools}/echo")
    assert (question["object"], question["rule"], question["reason"]) == (f"{tools}/echo", "push", "ask first")
    assert "push now" in served.agentmon("approvals").stdout
    served.agentmon("approve", question["id"])
    wait_for(lambda: [q for q in approvals(served) if q["id"] != question["id"]], "the second question")
    served.agentmon("deny", approvals(served)[0]["id"], "--reason", "not today")
    said = finish(running)[1]
    assert "pull\n0\npush now\n0\n-9\n" in said
    assert "not today" in said
    assert "note: this host" not in said


def test_other_arguments_are_another_question(served: Host, tools: Path) -> None:
    body = f"""
        import subprocess
        started = [subprocess.Popen(["{tools}/echo", "push", word], stdout=-1, text=True) for word in ("a", "b", "a")]
        print([one.communicate()[0] for one in started])
    """
    running = agent(served, pushes(served, tools), body)

    def told() -> dict[str, dict[str, Any]]:
        return {question["command"][-1]: question for question in approvals(served)}

    wait_for(lambda: {word: q["processes"] for word, q in told().items()} == {"a": 2, "b": 1}, "both")
    served.agentmon("approve", told()["a"]["id"])
    wait_for(lambda: list(told()) == ["b"], "one question to be left")
    served.agentmon("deny", told()["b"]["id"])
    assert "['push a\\n', '', 'push a\\n']" in finish(running)[1]


def test_an_approval_for_the_session_is_for_what_the_rule_names(served: Host, tools: Path) -> None:
    body = f"""
        import subprocess
        for word in "abc":
            print(subprocess.run(["{tools}/echo", "push", word]).returncode, flush=True)
    """
    running = agent(served, pushes(served, tools), body)
    served.agentmon("approve", asked(served)[0]["id"], "--session")
    assert "push a\n0\npush b\n0\npush c\n0\n" in finish(running)[1]


def test_what_arguments_forbid_is_forbidden_whatever_else_is_held(served: Host, tools: Path) -> None:
    """Who lets a program run has not let it do what another rule denies."""
    both = pushes(
        served, tools,
        f"  - {{id: any, on: exec, exe: ['{tools}/*'], action: hold}}\n"
        f"  - {{id: force, on: exec, exe: ['{tools}/*'], argv: ['**', '--force', '**'], action: deny}}",
    )  # fmt: skip
    body = f"""
        import subprocess
        for words in (["pull"], ["pull", "--force"], ["push"]):
            print(subprocess.run(["{tools}/echo", *words]).returncode, flush=True)
    """
    running = agent(served, both, body)
    rules = []
    for _ in range(2):
        question = asked(served)[0]
        rules.append(question["rule"])
        served.agentmon("approve", question["id"])
        wait_for(lambda: not any(q["id"] == question["id"] for q in approvals(served)), "it to be answered")  # noqa: B023
    said = finish(running)[1]
    assert ("pull\n0\n-9\npush\n0\n" in said, rules) == (True, ["any", "push"]), said


def test_of_a_program_that_is_held_by_its_name_the_arguments_are_shown(served: Host, tools: Path) -> None:
    """It was not started yet, and may come with others: that is said."""
    policy = served.policy(f"  - {{id: any, on: exec, paths: ['{tools}/echo'], action: hold}}", "name")
    body = f"""
        import subprocess
        for words in (["push", "now it"], []):
            print(subprocess.run(["{tools}/echo", *words]).returncode, flush=True)
    """
    running = agent(served, policy, body)
    for words, said in ((["push", "now it"], "push 'now it'"), ([], "none")):
        wait_for(lambda: [q["arguments"] for q in approvals(served)] == [words], f"{words}")  # noqa: B023
        told = served.agentmon("approvals").stdout
        assert f"with the arguments: {said} (as of now: you approve the program, with any)" in told, told
        served.agentmon("approve", approvals(served)[0]["id"])
    assert "push now it\n0\n\n0\n" in finish(running)[1]


@pytest.mark.parametrize("by", WAKES)
def test_who_is_made_to_go_on_before_there_is_an_answer_is_killed(tmp_path: Path, by: str) -> None:
    """While its daemon does nothing, nobody is frozen."""
    program, mark = first(tmp_path / "first"), tmp_path / "mark"
    before, after = WAKES[by]
    with Host(tmp_path) as host:
        policy = host.policy(
            f"  - {{id: kept, on: exec, exe: ['{program}'], argv: ['{mark}', push], action: hold}}\n"
            "  - {id: trace, on: [ptrace, signal], action: allow}"
        )
        daemon = host.start()
        script = GO.format(before=before, after=after)
        running = host.spawn(
            "run", "-p", policy, "--", sys.executable, "-c", script, str(program), str(mark), "push",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_for(lambda: host.json("ps")["sessions"], "the session")
        daemon.send_signal(signal.SIGSTOP)
        assert running.stdin is not None
        assert running.stdout is not None
        running.stdin.write("go\n")
        running.stdin.flush()
        assert running.stdout.readline() == "9\n"
        assert not mark.exists()
        daemon.send_signal(signal.SIGCONT)
        assert "made to go on before there was an answer" in finish(running)[1]
        assert not mark.exists()


def test_it_waits_for_the_next_daemon(tmp_path: Path) -> None:
    program, mark = first(tmp_path / "first"), tmp_path / "mark"
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: exec, exe: ['{program}'], argv: ['*', push], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, f"import os\nos.execv('{program}', ['first', '{mark}', 'push'])")
        question = frozen(host)
        daemon.kill()
        daemon.wait()
        time.sleep(1)
        assert not mark.exists()
        host.start()
        assert [q["id"] for q in asked(host)] == [question["id"]]
        assert host.agentmon("approve", question["id"]).returncode == 0
        wait_for(mark.exists, "the program to run")
        finish(running)


def test_a_script_is_held_by_its_arguments(served: Host, tools: Path) -> None:
    script = tools / "deploy"
    script.write_text('#!/bin/sh\necho as shown "$@"\n')
    script.chmod(0o755)
    body = f"""
        import subprocess
        for words in (["pull"], ["push", "a"], ["push", "b"], ["push", "c"]):
            print(subprocess.run(["{script}", *words]).returncode, flush=True)
    """
    running = agent(served, pushes(served, tools), body)
    question = asked(served)[0]
    assert (question["object"], question["rule"], question["command"][2:]) == (str(script), "push", ["push", "a"])
    served.agentmon("approve", question["id"])
    wait_for(lambda: [q["command"][3:] for q in approvals(served)] == [["b"]], "the second question")
    question = approvals(served)[0]
    script.write_text("#!/bin/sh\necho another\n")
    done = served.agentmon("approve", question["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    (again,) = approvals(served)
    assert again["changed"]
    served.agentmon("deny", again["id"])
    wait_for(lambda: [q["command"][3:] for q in approvals(served)] == [["c"]], "the last question")
    served.agentmon("deny", approvals(served)[0]["id"])
    said = finish(running)[1]
    assert "as shown pull\n0\nas shown push a\n0\n-9\n-9\n" in said, said


@pytest.mark.tier("lsm")
def test_nobody_else_pays_for_it(served: Host, tools: Path) -> None:
    """What the host pays for is attached only while a policy in force asks for it."""
    links = served.pins

    def attached() -> set[str]:
        return {path.name for path in links.glob("*/links/*")} & {"resumes", "halts"}

    def attached_under(policy: Path) -> set[str]:
        go = tools / f"go-{policy.stem}"
        running = agent(served, policy, f"import os, time\nwhile not os.path.exists('{go}'): time.sleep(0.1)")
        wait_for(lambda: served.json("ps")["sessions"], "the session")
        found = attached()
        go.touch()
        finish(running)
        return found

    assert attached() == set()
    other = served.policy(f"  - {{id: any, on: exec, exe: ['{tools}/echo'], action: hold}}", "other")
    assert attached_under(other) == set()
    assert attached_under(pushes(served, tools)) == {"resumes", "halts"}
    wait_for(lambda: attached() == set(), "it to be detached")
