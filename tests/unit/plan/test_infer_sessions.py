# SPDX-License-Identifier: Apache-2.0
"""Plans from recorded sessions."""

from __future__ import annotations

from agentmon.plan.infer.sessions import Sessions
from agentmon.plan.infer.write import to_yaml
from agentmon.plan.load import load_text
from agentmon.plan.plan import Plan
from agentmon.policy.rules import Variables
from tests.support.recorded import Log

HERE = Variables.of(workspace="/srv/w", home="/home/me", user="me")


class Session(Log):
    """An agent that starts programs, one after the other."""

    def __init__(self, name: str = "s-1", agent: str = "/opt/agent") -> None:
        super().__init__(name)
        self.next = 20
        self.runs(agent, 10)

    def starts(self, program: str, parent: int = 10) -> int:
        self.next += 1
        self.forks(self.next, parent)
        self.runs(program, self.next)
        return self.next

    def exits(self, pid: int, how: str = "status 0") -> None:
        self.add("process", pid, operation="exit", detail=how)

    def step(self, program: str, how: str = "status 0") -> None:
        self.exits(self.starts(program), how)


def infer(*logs: Log) -> tuple[Plan, str]:
    sessions = Sessions()
    for log in logs:
        sessions.read(log.session, log.records, HERE)
    text = to_yaml(sessions.drafts(), name="p", source="a test")
    return load_text(text, "p.yaml"), text


def test_programs_of_the_agent_become_steps_in_their_order() -> None:
    log = Session()
    pid = log.starts("/usr/bin/git")
    log.forks(30, pid)
    log.runs("/usr/lib/git-core/git-remote-https", 30)
    log.did("connect", "192.0.2.7:443", pid=30, detail="name git.example.com")
    for name in "abc":
        log.did("create", f"/srv/w/src/{name}", pid=pid)
    log.exits(30)
    log.exits(pid)
    log.step("/usr/bin/make")
    plan, text = infer(log)
    git, make = plan.steps
    assert (git.id, [s.text for s in git.starts]) == ("git", ["/usr/bin/git"])
    assert [host.text for host in git.part.hosts] == ["git.example.com:443"]
    rules = {rule.id: [p.text for p in rule.paths] for rule in git.part.rules}
    assert rules == {"files": ["{workspace}/src/*"], "programs": ["/usr/lib/git-core/git-remote-https"]}
    assert (make.after, make.part.read_only, make.part.no_network, make.part.no_exec) == (("git",), True, True, True)
    assert "# not known: with which arguments `git` is started" in text


def test_what_was_under_way_is_not_waited_for() -> None:
    log = Session()
    server = log.starts("/usr/bin/server")
    log.step("/usr/bin/client")
    log.exits(server)
    plan, _ = infer(log)
    assert [(step.id, step.after) for step in plan.steps] == [("server", ()), ("client", ())]


def test_a_shell_is_outside_of_the_steps() -> None:
    log = Session()
    shell = log.starts("/bin/bash")
    log.did("create", "/srv/w/log", pid=shell)
    log.exits(log.starts("/usr/bin/make", shell))
    plan, _ = infer(log)
    assert [step.id for step in plan.steps] == ["make"]
    assert {rule.id: [p.text for p in rule.paths] for rule in plan.agent.rules} == {
        "shell": ["/bin/bash"], "redirections": ["{workspace}/log"],
    }  # fmt: skip


def test_of_several_sessions_an_order_is_kept_that_always_held() -> None:
    one, two = Session("s-1"), Session("s-2")
    for program in ("/a/fetch", "/a/lint", "/a/test", "/a/push"):
        one.step(program)
    for program in ("/a/fetch", "/a/test", "/a/lint", "/a/test", "/a/push"):
        two.step(program)
    plan, text = infer(one, two)
    assert {step.id: (set(step.after), step.repeat) for step in plan.steps} == {
        "fetch": (set(), False), "lint": ({"fetch"}, False), "test": ({"fetch"}, True),
        "push": ({"lint", "test"}, False),
    }  # fmt: skip
    assert "# /a/test, run 3 times in 2 of 2 sessions" in text


def test_orders_of_sessions_that_contradict_each_other_give_no_circle() -> None:
    logs = []
    for number, pair in enumerate(("ab", "bc", "ca")):
        log = Session(f"s-{number}")
        for name in pair:
            log.step(f"/x/{name}")
        logs.append(log)
    plan, _ = infer(*logs)
    assert {step.id for step in plan.steps} == {"a", "b", "c"}


def test_what_was_blocked_or_failed_is_said_and_not_allowed() -> None:
    log = Session()
    pid = log.starts("/usr/bin/make")
    log.did("create", "/etc/x", "deny", "no", pid=pid)
    log.exits(pid, "status 2")
    plan, text = infer(log)
    assert plan.steps[0].part.read_only
    assert "# not known: what 1 actions would have led to that were blocked" in text
    assert "# not known: whether it counts as done when it ends with status 2" in text


def test_a_program_that_was_killed_as_it_began_has_not_been_run() -> None:
    """The react tier ends a refused program when the one before is gone: the log has its exec, and its end."""
    log = Session()
    log.step("/usr/bin/make")
    pid = log.starts("/usr/bin/make")
    refused = log.records[-2]
    assert (refused.kind, refused.operation) == ("decision", "exec")
    log.records[-2] = refused._replace(verdict="deny", flags="killed,plan")
    log.exits(pid, "signal 9")
    plan, text = infer(log)
    [make] = plan.steps
    assert not make.repeat
    assert "run once" in text
    assert "signal 9" not in text
