# SPDX-License-Identifier: Apache-2.0
"""`action: hold` on `exec` in the react tier: a program that was started waits before its first instruction.

Those that a rule names exactly wait earlier: `test_hold_open`; of rules on arguments see `test_hold_arguments`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentmon.daemon import holding
from agentmon.kernel.answers import KEY
from agentmon.kernel.libbpf import open_pinned_map
from tests.support.held import (
    MAPPER,
    agent,
    agent_in_wait,
    agree,
    another,
    approvals,
    asked,
    finish,
    frozen,
    go,
    tell,
)
from tests.support.hosts import PATIENCE_S, Host, wait_for
from tests.support.starts import GO, WAKES, first

pytestmark = pytest.mark.tier("react")


@pytest.fixture
def kept(served: Host) -> Path:
    """A directory whose programs are asked for."""
    directory = served.directory / f"kept-{time.monotonic_ns()}"
    directory.mkdir()
    shutil.copy("/bin/echo", directory / "echo")
    first(directory / "first")
    (directory / "script").write_text("#!/bin/sh\necho as shown\n")
    (directory / "script").chmod(0o755)
    return directory


@pytest.fixture
def asks(served: Host, kept: Path) -> Path:
    return served.policy(f"  - {{id: kept, on: exec, paths: ['{kept}/**'], action: hold, reason: ask first}}", "exec")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


RUNS = {
    "fork": "print(subprocess.run(['./echo', 'hello'], capture_output=True, text=True).stdout)",
    "vfork": "print(os.waitpid(os.posix_spawn('./echo', ['x', 'hello'], {}), 0)[1])",
    "its own process": "os.execv('./echo', ['x', 'hello'])",
    "a thread": "threading.Thread(target=os.execv, args=('./echo', ['x', 'hello'])).start(); time.sleep(99)",
}


@pytest.mark.parametrize("how", RUNS)
def test_a_program_waits_and_goes_on_once_approved(served: Host, kept: Path, asks: Path, how: str) -> None:
    running = agent(served, asks, f"import os, subprocess, threading, time\nos.chdir('{kept}')\n{RUNS[how]}")
    question = asked(served)[0]
    assert (question["operation"], question["object"]) == ("exec", f"{kept}/echo")
    assert (question["rule"], question["reason"]) == ("kept", "ask first")
    assert question["command"][1:] == ["hello"]
    time.sleep(0.7)
    assert running.poll() is None
    assert state(question["pid"]) != "T"  # the stop is over: it is frozen
    assert served.agentmon("approve", question["id"]).returncode == 0
    status, said = finish(running)
    assert (status, "hello" in said) == (0, True), said
    assert approvals(served) == []


def test_a_program_that_is_denied_has_not_run(served: Host, kept: Path, asks: Path) -> None:
    mark = kept / "mark"
    running = agent(served, asks, f"import subprocess\nprint(subprocess.run(['{kept}/first', '{mark}']).returncode)")
    question = asked(served)[0]
    assert served.agentmon("deny", question["id"], "--reason", "not today").returncode == 0
    status, said = finish(running)
    assert (status, "-9\n" in said) == (0, True), said
    assert "not today" in said  # in the summary of `run`
    assert f"{kept}/first" in said
    assert not mark.exists()


def test_an_approval_is_for_once_or_for_the_session(served: Host, kept: Path, asks: Path) -> None:
    body = f"print(subprocess.run(['{kept}/echo', 'hello']).returncode)\n"
    running = agent(served, asks, "import subprocess\n" + 4 * body)
    served.agentmon("approve", asked(served)[0]["id"])
    wait_for(lambda: [q for q in approvals(served) if q["id"] != "a-1"], "the second question")
    served.agentmon("approve", asked(served)[0]["id"], "--session")
    status, said = finish(running)
    assert (status, said.count("hello\n"), said.count("0\n")) == (0, 4, 4), said


def test_programs_with_other_arguments_are_asked_for_apart(served: Host, kept: Path, asks: Path) -> None:
    """Who was shown the one does not let the other run; the same three times is one question."""
    body = f"""
        import subprocess
        words = ["shown", "hidden", "shown", "shown"]
        started = [subprocess.Popen(["{kept}/echo", word], stdout=subprocess.PIPE, text=True) for word in words]
        print(sorted(one.communicate()[0] for one in started))
    """
    running = agent(served, asks, body)

    def told() -> dict[str, dict[str, Any]]:
        return {question["command"][1]: question for question in approvals(served)}

    wait_for(lambda: {word: q["processes"] for word, q in told().items()} == {"shown": 3, "hidden": 1}, "both")
    text = served.agentmon("approvals").stdout
    assert text.count(f"({kept}/echo) in ") == 2, text
    assert text.count("  and by ") == 2, text
    served.agentmon("approve", told()["shown"]["id"])
    wait_for(lambda: list(told()) == ["hidden"], "one question to be left")
    served.agentmon("deny", told()["hidden"]["id"])
    assert "['', 'shown\\n', 'shown\\n', 'shown\\n']" in finish(running)[1]


def test_long_arguments_do_not_keep_people_from_seeing_what_is_asked(served: Host, kept: Path, asks: Path) -> None:
    body = f"""
        import subprocess, sys
        words = 15 * ["x" * 100_000]
        started = [subprocess.Popen(["{kept}/echo", str(n), *words]) for n in range(14)]
        print([one.wait() for one in started])
    """
    running = agent(served, asks, body)
    wait_for(lambda: len(approvals(served)) == 14, "all to be asked")
    done = served.agentmon("approvals")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) < 100_000
    for question in approvals(served):
        served.agentmon("deny", question["id"])
    finish(running)


def test_a_script_is_asked_for_by_its_name(served: Host, kept: Path, asks: Path) -> None:
    running = agent(served, asks, f"import subprocess\nprint(subprocess.run(['{kept}/script']).returncode)")
    assert agree(served, running) == ["exec script"]
    status, said = finish(running)
    assert (status, "as shown\n0\n" in said) == (0, True), said


def test_a_script_and_its_interpreter_are_asked_for_together(served: Host, kept: Path) -> None:
    shell = os.path.realpath("/bin/sh")
    policy = served.policy(
        f"  - {{id: kept, on: exec, paths: ['{kept}/**'], action: hold}}\n"
        f"  - {{id: shells, on: exec, paths: ['{shell}*'], action: hold}}",
        "both",
    )
    script = f"import subprocess\nprint(subprocess.run(['{kept}/script']).returncode)"
    running = agent(served, policy, script)
    both = asked(served, 2)
    assert {q["object"] for q in both} == {f"{kept}/script", shell}
    served.agentmon("approve", both[0]["id"])
    time.sleep(0.3)
    assert running.poll() is None
    served.agentmon("approve", both[1]["id"])
    assert "as shown\n0\n" in finish(running)[1]

    running = agent(served, policy, script)
    served.agentmon("deny", asked(served, 2)[0]["id"])
    assert "-9\n" in finish(running)[1]
    wait_for(lambda: not approvals(served), "the other question to end")


def test_a_script_by_another_name_is_asked_for_and_runs(served: Host, kept: Path, asks: Path) -> None:
    (kept / "link").symlink_to("script")
    running = agent(served, asks, f"import subprocess\nprint(subprocess.run(['{kept}/link']).returncode)")
    assert agree(served, running) == ["exec link"]
    assert "as shown\n0\n" in finish(running)[1]


def test_a_link_is_approved_for_where_it_leads_alone(served: Host, kept: Path) -> None:
    """Who may move it would choose what was approved."""
    (kept / "other").write_text("#!/bin/sh\necho not shown\n")
    (kept / "other").chmod(0o755)
    (kept / "link").symlink_to("script")
    policy = served.policy(
        f"  - {{id: links, on: exec, paths: ['{kept}/link'], action: hold}}\n"
        f"  - {{id: others, on: exec, paths: ['{kept}/*'], action: hold}}",
        "links",
    )
    body = f"""
        import os, subprocess
        for number in range(4):
            if number == 2:
                os.unlink("{kept}/link"), os.symlink("other", "{kept}/link")
            print(subprocess.run(["{kept}/link"]).returncode, flush=True)
    """
    running = agent(served, policy, body)
    question = asked(served)[0]
    assert (question["object"], question["file"]) == (f"{kept}/link", f"{kept}/script")
    assert f"leads to {kept}/script" in served.agentmon("approvals").stdout
    served.agentmon("approve", question["id"], "--session")
    wait_for(lambda: [q for q in approvals(served) if q["file"] == f"{kept}/other"], "to be asked again")
    served.agentmon("deny", asked(served)[0]["id"])
    said = finish(running)[1]
    assert (said.count("as shown\n0\n"), said.count("-9\n"), "not shown" in said) == (2, 2, False), said


def test_a_script_runs_however_long_its_interpreter_takes_to_open_it(served: Host, kept: Path, asks: Path) -> None:
    """By then the kernel's tables are cleared of what was used."""
    (kept / "sitecustomize.py").write_text("import os, time\nwhile not os.path.exists('go'): time.sleep(0.1)\n")
    (kept / "slow").write_text(f"#!{sys.executable}\nprint('as shown')\n")
    (kept / "slow").chmod(0o755)
    body = f"""
        import os, subprocess
        os.chdir("{kept}")
        print(subprocess.run(["{kept}/slow"], env=os.environ | {{"PYTHONPATH": "{kept}"}}).returncode)
    """
    running = agent(served, asks, body)
    served.agentmon("approve", asked(served)[0]["id"])
    time.sleep(holding.KEPT_S + 2)
    (kept / "go").touch()
    assert "as shown\n0\n" in finish(running)[1]


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": lambda file: file.write_text("#!/bin/sh\necho another\n"),
    "replaced": lambda file: (
        (file.parent / "x").write_text("#!/bin/sh\necho another\n"),
        (file.parent / "x").chmod(0o755),
        (file.parent / "x").rename(file),
    ),
    "linked": lambda file: ((file.parent / "x").symlink_to("hidden"), (file.parent / "x").rename(file)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_script_that_changed_while_held_is_asked_again(served: Host, kept: Path, asks: Path, change: str) -> None:
    (kept / "hidden").write_text("#!/bin/sh\necho another\n")
    (kept / "hidden").chmod(0o755)
    running = agent(served, asks, f"import subprocess\nprint(subprocess.run(['{kept}/script']).returncode)")
    question = asked(served)[0]
    CHANGES[change](kept / "script")
    done = served.agentmon("approve", question["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    (again,) = approvals(served)
    assert again["id"] != question["id"]
    assert again["changed"]
    served.agentmon("approve", again["id"])
    assert "another\n0\n" in finish(running)[1]


def test_a_script_that_is_mapped_for_writing_is_not_approved(served: Host, kept: Path, asks: Path) -> None:
    """What is written through a mapping does not change the file's times."""
    running = agent_in_wait(served, asks, MAPPER, kept / "script")
    tell(running, "exec")
    first = asked(served)[0]
    tell(running, "map")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "is open for writing" in done.stderr) == (1, True), done.stderr
    assert [question["id"] for question in approvals(served)] == [first["id"]]
    tell(running, "write", "unmap")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    served.agentmon("deny", another(served, first)["id"])
    said = running.communicate(timeout=PATIENCE_S)[0]
    assert ("ended with -9" in said, "another!" in said) == (True, False), said


def test_a_script_that_changes_after_its_approval_does_not_run(served: Host, kept: Path) -> None:
    """Its interpreter is held as well, so there is time between the approval and the open."""
    shell = os.path.realpath("/bin/sh")
    policy = served.policy(f"  - {{id: all, on: exec, paths: ['{kept}/**', '{shell}*'], action: hold}}", "later")
    running = agent(served, policy, f"import subprocess\nprint(subprocess.run(['{kept}/script']).returncode)")
    by_object = {os.path.basename(q["object"]): q["id"] for q in asked(served, 2)}
    served.agentmon("approve", by_object.pop("script"))
    (kept / "script").write_text("#!/bin/sh\necho another\n")
    served.agentmon("approve", *by_object.values())
    said = finish(running)[1]
    assert "-9\n" in said
    assert "another" not in said


# ---- whoever lets it run without an answer ends it


@pytest.mark.parametrize("by", WAKES)
def test_who_is_made_to_go_on_before_there_is_an_answer_is_killed(tmp_path: Path, by: str) -> None:
    """While its daemon does nothing, nobody is frozen."""
    program, mark = first(tmp_path / "first"), tmp_path / "mark"
    before, after = WAKES[by]
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: exec, paths: ['{program}*'], action: hold}}")
        daemon = host.start()
        script = GO.format(before=before, after=after)
        running = host.spawn(
            "run", "-p", policy, "--", sys.executable, "-c", script, str(program), str(mark),
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


def test_a_flood_of_sigcont_lets_nothing_run(served: Host, kept: Path, asks: Path) -> None:
    """Started again and again under it: each is killed, or frozen first; nothing was approved, so nothing ever ran."""
    subprocess.run([kept / "first", kept / "mark"], check=False)  # without a fence
    assert (kept / "mark").exists()
    (kept / "mark").unlink()
    script = f"""
        import os, signal, time
        children = []
        for i in range(40):
            child = os.fork()
            if not child:
                os.execv("{kept}/first", ["first", "{kept}/mark"])
            children.append(child)
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                os.kill(child, signal.SIGCONT)
        for child in children:
            os.kill(child, signal.SIGKILL)
        print("killed", {{os.waitpid(child, 0)[1] for child in children}})
    """
    running = agent(served, asks, script)
    status, said = finish(running)
    assert (status, "killed {9}" in said) == (0, True), said
    assert not (kept / "mark").exists()
    wait_for(lambda: not approvals(served), "the questions to end")


def test_who_is_thawed_without_an_answer_is_killed(served: Host, kept: Path, asks: Path) -> None:
    mark = kept / "mark"
    running = agent(served, asks, f"import subprocess\nprint(subprocess.run(['{kept}/first', '{mark}']).returncode)")
    question = frozen(served)
    where = Path(f"/proc/{question['pid']}/cgroup").read_text().partition("0::")[2].strip()
    from agentmon.kernel.host import cgroup2_root

    lot = cgroup2_root() / where.lstrip("/")
    wait_for(lambda: (lot / "cgroup.events").read_text().split()[-1] == "1", "its cgroup to be frozen")
    (lot.parent / "cgroup.procs").write_text(str(question["pid"]))
    assert "-9\n" in finish(running)[1]
    assert not mark.exists()


# ---- daemons that die


@pytest.mark.parametrize("dies", ["later", "before it told the kernel"])
def test_a_program_waits_for_the_next_daemon(tmp_path: Path, dies: str) -> None:
    program, mark = first(tmp_path / "first"), tmp_path / "mark"
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: exec, paths: ['{program}*'], action: hold}}")
        daemon = host.start()
        running = agent(host, policy, f"import os\nos.execv('{program}', ['first', '{mark}'])")
        question = frozen(host)
        daemon.kill()
        daemon.wait()
        if dies != "later":
            forget_all(host, "answers")
        time.sleep(1)
        assert not mark.exists()
        host.start()
        assert [q["id"] for q in asked(host)] == [question["id"]]
        assert host.agentmon("approve", question["id"]).returncode == 0
        wait_for(mark.exists, "the program to run")
        running.kill()
        running.communicate()


def forget_all(host: Host, table: str) -> None:
    (pin,) = host.pins.rglob(table)
    pinned = open_pinned_map(str(pin))
    for key in list(pinned.keys(KEY.size)):
        pinned.delete(key)
    pinned.close()


LATER = """
    import subprocess, sys
    sys.stdin.readline()
    print(subprocess.run(sys.argv[1:]).returncode, flush=True)
"""


@pytest.mark.parametrize("meanwhile", ["before", "while it is stopped"])
def test_a_program_that_nobody_will_be_asked_for_is_killed(tmp_path: Path, meanwhile: str) -> None:
    """The daemon is gone before it is started; or dies when it is stopped, and not frozen."""
    program, mark = first(tmp_path / "first"), tmp_path / "mark"
    with Host(tmp_path) as host:
        policy = host.policy(f"  - {{id: kept, on: exec, paths: ['{program}*'], action: hold}}")
        daemon = host.start()
        running = agent_in_wait(host, policy, LATER, program, mark)
        if meanwhile == "before":
            daemon.kill()
            daemon.wait()
            time.sleep(2.5)  # so long it may still come
            go(running)
        else:
            daemon.send_signal(signal.SIGSTOP)
            go(running)
            time.sleep(0.3)
            daemon.kill()
            daemon.wait()
        assert running.stdout is not None
        assert running.stdout.readline() == "-9\n"
        assert not mark.exists()
        running.kill()
        running.communicate()
