# SPDX-License-Identifier: Apache-2.0
"""`agentmon run` as a user sees it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.model.operations import Tier
from tests.support.hosts import PATIENCE_S, Host, wait_for


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


@pytest.fixture
def policy(served: Host) -> Path:
    secret = served.directory / "secret"
    secret.write_text("secret\n")
    return served.policy(
        f"  - {{id: secret, on: [read, write], paths: ['{secret}'], action: deny, reason: it is secret}}\n"
        "  - {id: no-true, on: exec, paths: ['/usr/bin/true'], action: deny, reason: nothing is true}\n"
        "  - {id: no-net, on: connect, cidrs: ['127.0.0.1:9'], action: deny, reason: no network}\n"
    )


def test_a_workspace_with_agentmon_in_it_is_warned_of(served: Host, policy: Path) -> None:
    done = served.agentmon("run", "-p", policy, "--workspace", "/", "--", "echo", "on")
    assert done.stdout == "on\n"
    assert "contains agentmon itself" in done.stderr


@pytest.mark.tier("react")
def test_a_tier_that_cannot_judge_io_uring_hides_it(served: Host, policy: Path) -> None:
    script = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True); print(c.syscall(425, 4, 0), ctypes.get_errno())"
    done = served.agentmon("run", "-p", policy, "--", sys.executable, "-c", script)
    assert done.stdout == f"-1 {errno.ENOSYS}\n"


def test_a_forbidden_read_is_stopped_and_summed_up(served: Host, policy: Path, tier: Tier) -> None:
    secret = served.directory / "secret"
    done = served.agentmon("run", "-p", policy, "--", "cat", secret)
    assert "secret" not in done.stdout
    assert done.returncode == (1 if tier is Tier.LSM else 128 + signal.SIGKILL)
    assert f"read {secret}: secret (it is secret)" in done.stderr


def test_what_is_blocked_and_what_waits_is_said_as_it_happens(served: Host) -> None:
    """While the command runs: an agent without a hook reads its terminal."""
    secret = served.directory / "secret"
    secret.write_text("secret\n")
    policy = served.policy(
        f"  - {{id: secret, on: read, paths: ['{secret}'], action: deny, reason: it is secret}}\n"
        "  - {id: ask, on: connect, cidrs: ['127.0.0.1:9'], action: hold, reason: ask first}\n"
    )
    script = f"cat {secret}; exec {sys.executable} -c 'import socket; socket.create_connection((\"127.0.0.1\", 9))'"
    words = ("run", "--tell", "--quiet", "-p", policy, "--", "sh", "-c", script)
    running = served.spawn(*words, stderr=subprocess.PIPE)
    assert running.stderr is not None
    said: list[str] = []
    while "agentmon approve a-" not in "".join(said[-1:]):
        said.append(running.stderr.readline())
        assert said[-1]
    assert any(f"read {secret}" in line and "it is secret" in line for line in said), said
    assert "connect 127.0.0.1:9 waits for an answer" in said[-1]
    assert running.poll() is None
    served.agentmon("deny", said[-1].partition("agentmon approve ")[2].partition("`")[0])
    running.communicate(timeout=PATIENCE_S)


def test_a_rate_that_is_used_up_is_named(served: Host) -> None:
    notes = served.directory / "notes"
    notes.touch()
    policy = served.policy(f"  - {{id: some, on: write, paths: ['{notes}'], when: {{rate: 2/day}}, action: allow}}\n")
    policy.write_text(policy.read_text().replace("write: allow", "write: deny"))
    script = f"for i in 1 2 3; do (echo $i >> {notes}); done; exit 0"
    done = served.agentmon("run", "-p", policy, "--", "sh", "-c", script)
    assert notes.read_text() == "1\n2\n"
    assert f"write {notes}: default (rule `some`: 2/day used up)" in done.stderr
    log = served.agentmon("audit", "log", "--blocked")
    assert f"write {notes}  default: rule `some`: 2/day used up" in log.stdout
    records = map(json.loads, served.agentmon("audit", "log", "--blocked", "--json").stdout.splitlines())
    told = [(r["operation"], r["rule"], r["reason"]) for r in records if r["object"] == str(notes)]
    assert told == [("write", "", "rule `some`: 2/day used up")]


def test_input_output_arguments_and_status_are_the_commands_own(served: Host, policy: Path) -> None:
    script = "import sys; print(sys.stdin.read(), sys.argv[1:]); print('err', file=sys.stderr); sys.exit(7)"
    done = served.agentmon("run", "-p", policy, "--", sys.executable, "-c", script, "-x", "--json", "", input="hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, "hello ['-x', '--json', '']\n", "err\n")


def test_a_missing_command_is_127(served: Host, policy: Path) -> None:
    done = served.agentmon("run", "-p", policy, "--", "no-such-command-here")
    assert done.returncode == 127
    assert "`no-such-command-here`: not found" in done.stderr


def test_a_command_that_is_not_executable_is_126(served: Host, policy: Path) -> None:
    done = served.agentmon("run", "-p", policy, "--", served.config)
    assert done.returncode == 126
    assert "permission denied" in done.stderr


def test_a_denied_command_is_126_and_names_the_rule(served: Host, policy: Path) -> None:
    done = served.agentmon("run", "-p", policy, "--", "/usr/bin/true")
    assert done.returncode == 126
    assert "denied by rule `no-true`: nothing is true" in done.stderr


def test_a_denied_connect_is_eperm(served: Host, policy: Path) -> None:
    script = "import socket; s = socket.socket(); print(s.connect_ex(('127.0.0.1', 9)))"
    done = served.agentmon("run", "-p", policy, "--", sys.executable, "-c", script)
    assert done.stdout == "1\n", done.stderr


def test_a_signal_to_run_reaches_the_command(served: Host, policy: Path) -> None:
    ready = served.directory / "ready"
    run = served.spawn(
        "run", "-p", policy, "--", "sh", "-c", f"trap 'exit 9' TERM; : > {ready}; while :; do sleep 0.05; done"
    )
    wait_for(ready.exists, "the command to start")
    run.send_signal(signal.SIGTERM)
    assert run.wait(PATIENCE_S) == 9


def test_the_command_ended_by_a_signal_gives_128_and_its_number(served: Host, policy: Path) -> None:
    assert served.agentmon("run", "-p", policy, "--", "sh", "-c", "kill -ALRM $$").returncode == 128 + signal.SIGALRM


def test_a_stopped_command_stops_run_and_goes_on_with_it(served: Host, policy: Path) -> None:
    marker = served.directory / "continued"
    # a session of its own, with a parent outside the group: an orphaned group would ignore the stop
    run = served.spawn("run", "-p", policy, "--", "sh", "-c", f"kill -TSTP $$; : > {marker}", process_group=0)
    wait_for(lambda: os.waitid(os.P_PID, run.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None, "the stop")
    assert not marker.exists()
    os.killpg(run.pid, signal.SIGCONT)
    assert run.wait(PATIENCE_S) == 0
    assert marker.exists()


def test_descriptors_that_the_policy_denies_are_closed(served: Host, policy: Path) -> None:
    secret = os.open(served.directory / "secret", os.O_RDONLY)
    other = os.open(served.config, os.O_RDONLY)
    try:
        script = f"import os; print([fd for fd in ({secret}, {other}) if os.path.exists(f'/proc/self/fd/{{fd}}')])"
        plain = subprocess.check_output([sys.executable, "-c", script], pass_fds=[secret, other], text=True)
        assert plain == f"[{secret}, {other}]\n"  # without a fence
        done = served.agentmon("run", "-p", policy, "--", sys.executable, "-c", script, pass_fds=[secret, other])
    finally:
        os.close(secret)
        os.close(other)
    assert done.stdout == f"[{other}]\n", done.stderr
    assert f"closed inherited descriptor {secret}" in done.stderr


def test_an_invalid_policy_runs_nothing(served: Host) -> None:
    bad = served.directory / "bad.yaml"
    bad.write_text("policy: bad\nrulez: []\n")
    done = served.agentmon("run", "-p", bad, "--", "touch", served.directory / "touched")
    assert done.returncode == 3
    assert f"{bad}:2:1" in done.stderr
    assert not (served.directory / "touched").exists()


def test_no_command_is_bad_usage(served: Host) -> None:
    assert served.agentmon("run").returncode == 64
    assert served.agentmon("run", "--no-such-option").returncode == 64


def test_sudo_drops_to_the_invoking_user(served: Host, policy: Path) -> None:
    user = pwd.getpwnam("nobody")
    environment = served.environment() | {"SUDO_UID": str(user.pw_uid), "SUDO_GID": str(user.pw_gid)}
    show = "import os; print(os.getresuid(), os.getresgid(), os.getgroups(), os.environ['HOME'])"
    done = served.agentmon("run", "-p", policy, "--", "/usr/bin/python3", "-c", show, env=environment, cwd="/")
    u, g = user.pw_uid, user.pw_gid
    assert done.stdout == f"({u}, {u}, {u}) ({g}, {g}, {g}) [{g}] {user.pw_dir}\n", done.stderr
    done = served.agentmon("run", "--as-root", "-p", policy, "--", "id", "-u", env=environment)
    assert done.stdout == "0\n"


AS_NOBODY = (
    "import os, sys, agentmon.cli.child, agentmon.cli.embedded, agentmon.cli.run, agentmon.cli.supervise\n"
    # imported while still root: nobody cannot read a checkout in a private place
    "import agentmon.cli.main as main, agentmon.control.client, agentmon.host.starting, tomllib\n"
    "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
    "sys.exit(main.main(sys.argv[1:]))\n"
)


def test_an_ordinary_user_runs_a_command_without_new_privileges(served: Host, policy: Path) -> None:
    show = ["grep", "NoNewPrivs", "/proc/self/status"]
    # without a fence
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "NoNewPrivs:\t0\n"
    words = ["--config", str(served.config), "run", "-p", str(policy), "--", *show]
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *words], env=served.environment(), cwd="/",
            capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "NoNewPrivs:\t1\n"), done.stderr


def test_a_fenced_process_may_not_release_or_enrol(served: Host, policy: Path) -> None:
    assert served.agentmon("release", "--all").returncode == 0  # without a fence
    for arguments in (["release", "--all"], ["enroll", str(os.getpid()), "--workspace", "/"], ["watch", "--once"]):
        done = served.agentmon("run", "-p", policy, "--", *served.command(*arguments))
        assert done.returncode == 2
        assert "do it from outside" in done.stderr
    assert served.agentmon("run", "-p", policy, "--", *served.command("ps")).returncode == 0


def test_children_and_grandchildren_are_fenced(served: Host, policy: Path) -> None:
    secret = served.directory / "secret"
    done = served.agentmon(
        "run", "-p", policy, "--", "sh", "-c", f"(setsid sh -c '(cat {secret} &) ; sleep 5'); exit 0"
    )
    assert "secret" not in done.stdout
    assert "1 operation(s) blocked" in done.stderr


@pytest.mark.parametrize("end", [subprocess.Popen.terminate, subprocess.Popen.kill])
def test_watch_shows_what_is_blocked_and_survives_a_restart(
    host: Host, end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    daemon = host.start()
    secret = host.directory / "secret"
    secret.write_text("x")
    policy = host.policy(f"  - {{id: secret, on: read, paths: ['{secret}'], action: deny, reason: it is secret}}")
    with host.spawn("watch", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        assert "watching" in watch.stderr.readline()
        host.agentmon("run", "-p", policy, "--", "cat", secret)
        records = [json.loads(watch.stdout.readline()) for _ in range(3)]
        blocked = next(r for r in records if r["kind"] == "decision")
        assert (blocked["operation"], blocked["object"], blocked["rule"]) == ("read", str(secret), "secret")
        reads = ("run", "-p", policy, "--", "sh", "-c", 'read name; cat "$name"')
        with host.spawn(*reads, stdin=subprocess.PIPE) as lives_on:
            wait_for(lambda: host.json("ps")["sessions"], "the session")
            end(daemon)
            daemon.wait()
            assert "waiting" in watch.stderr.readline()
            host.start()
            assert "back" in watch.stderr.readline()
            lives_on.communicate(f"{secret}\n", timeout=PATIENCE_S)
        while (record := json.loads(watch.stdout.readline()))["kind"] != "decision":
            pass
        assert (record["operation"], record["object"], record["rule"]) == ("read", str(secret), "secret")
        host.agentmon("run", "-p", policy, "--", "cat", secret)
        while (again := json.loads(watch.stdout.readline()))["kind"] != "decision":
            pass
        assert (again["object"], again["session"] != record["session"]) == (str(secret), True)
        watch.terminate()


def test_watching_a_session_that_does_not_exist_is_an_error(served: Host) -> None:
    done = served.agentmon("watch", "--session", "s-nope")
    assert done.returncode == 1
    assert "there is no session `s-nope`" in done.stderr


def test_what_was_blocked_while_no_daemon_ran_bears_its_session(host: Host) -> None:
    daemon = host.start()
    secret = host.directory / "secret"
    secret.write_text("x")
    policy = host.policy(f"  - {{id: secret, on: read, paths: ['{secret}'], action: deny, reason: it is secret}}")
    with subprocess.Popen(["sh", "-c", "read x; cat secret"], stdin=subprocess.PIPE, cwd=host.directory) as agent:
        session = host.json("enroll", str(agent.pid), "-p", policy, "--accept", "all")["session"]
        daemon.kill()
        daemon.wait()
        agent.communicate(b"go\n")
    host.start()
    done = host.agentmon("audit", "log", "--json", "--session", session)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["object"] for r in told if r["verdict"] == "deny"] == [str(secret)]
    assert (told[-1]["kind"], told[-1]["operation"]) == ("session", "ended")
    assert host.json("ps")["sessions"] == []


def test_the_next_daemon_knows_who_is_in_a_session(host: Host) -> None:
    daemon = host.start()
    policy = host.policy("  - {id: nothing, on: read, paths: [/nonexistent], action: deny}")
    with subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE, cwd=host.directory) as agent:
        host.json("enroll", str(agent.pid), "-p", policy, "--accept", "all")
        before = host.json("ps")["sessions"][0]["processes"]
        assert [(one["pid"], one["uid"], one["comm"]) for one in before] == [(agent.pid, os.geteuid(), "sh")]
        daemon.kill()
        daemon.wait()
        host.start()
        assert host.json("ps")["sessions"][0]["processes"] == before
        agent.communicate(b"go\n")


def test_without_a_daemon_one_is_embedded_and_leaves_nothing(host: Host, tier: Tier) -> None:
    secret = host.directory / "secret"
    secret.write_text("x")
    policy = host.policy(f"  - {{id: secret, on: read, paths: ['{secret}'], action: deny}}")
    done = host.agentmon("run", "-p", policy, "--", "sh", "-c", f"cat {secret}; exit 4")
    assert done.returncode == 4, done.stderr
    assert "1 operation(s) blocked" in done.stderr
    wait_for(host.gone, "the embedded daemon to end")
    assert host.agentmon("audit", "verify").returncode == 0
    log = host.agentmon("audit", "log", "--json", "--blocked").stdout.splitlines()
    assert [json.loads(line)["object"] for line in log] == [str(secret)]


def test_two_runs_at_once_share_one_embedded_daemon(host: Host) -> None:
    policy = host.policy("  - {id: nothing, on: read, paths: [/nonexistent], action: deny}")
    runs = [host.spawn("run", "-p", policy, "--", "sleep", "0.5") for _ in range(3)]
    wait_for(lambda: len(host.daemon_pids()) == 1 and host.socket.exists(), "the daemon")
    assert [run.wait(PATIENCE_S) for run in runs] == [0, 0, 0], host.log()
    wait_for(host.gone, "the embedded daemon to end")


@pytest.fixture
def starting() -> Iterator[tuple[Host, subprocess.Popen[str], int, Path]]:
    """A host on which a first `run` has begun to start a daemon, which is stopped half way: both of them."""
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory, Host(Path(directory)) as host:
        host.directory.chmod(0o755)
        policy = host.policy("  - {id: nothing, on: read, paths: [/nonexistent], action: deny}")
        first = host.spawn("run", "-p", policy, "--", "sleep", "3")
        wait_for((host.state / "starting").exists, "the daemon to begin")
        pid = int((host.state / "starting").read_text().split()[0])
        os.kill(pid, signal.SIGSTOP)
        assert not host.socket.exists()
        yield host, first, pid, policy
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        first.wait(PATIENCE_S)


@pytest.mark.parametrize("who", ["root", "nobody"])
def test_a_run_waits_for_a_daemon_that_is_starting(
    starting: tuple[Host, subprocess.Popen[str], int, Path], who: str
) -> None:
    host, first, daemon, policy = starting
    words = ["--config", str(host.config), "run", "-p", str(policy), "--", "echo", "done"]
    command = [sys.executable, "-c", AS_NOBODY, *words] if who == "nobody" else host.command(*words[2:])
    second = subprocess.Popen(
        command, env=host.environment(), cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(5)
    assert host.daemon_pids() == [daemon]
    os.kill(daemon, signal.SIGCONT)
    out, err = second.communicate(timeout=PATIENCE_S)
    assert (second.returncode, out) == (0, "done\n"), err
    assert f"waiting for the daemon (process `{daemon}`), which is starting" in err
    assert first.wait(PATIENCE_S) == 0
    assert not (host.state / "starting").exists()


def test_a_daemon_that_ended_while_it_started_is_not_waited_for(
    starting: tuple[Host, subprocess.Popen[str], int, Path],
) -> None:
    host, first, daemon, policy = starting
    os.kill(daemon, signal.SIGKILL)
    assert first.wait(PATIENCE_S) == 1
    assert (host.state / "starting").exists()
    done = host.agentmon("run", "-p", policy, "--", "echo", "done")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "waiting" not in done.stderr


def test_the_default_policy_lets_work_happen(served: Host) -> None:
    workspace = served.directory / "workspace"
    workspace.mkdir()
    done = served.agentmon(
        "run",
        "--workspace",
        workspace,
        "--",
        "sh",
        "-c",
        "echo work > file && cat file && cat /etc/shadow",
        cwd=workspace,
    )
    assert done.stdout == "work\n", done.stderr
    assert "/etc/shadow" in done.stderr
