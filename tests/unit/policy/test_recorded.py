# SPDX-License-Identifier: Apache-2.0
"""What is made of the records of a session: distinct actions, and the programs that took them."""

from __future__ import annotations

from agentmon.model.records import BY_CONTENTS
from agentmon.policy.recorded import RecordedAction, sessions
from tests.support.recorded import Log


def actions(log: Log) -> list[RecordedAction]:
    return list(sessions(log.records)[log.session].actions)


def program(log: Log) -> bytes | None:
    """The program of the last action."""
    return actions(log)[-1].exe


def test_variables_come_from_the_enrolment() -> None:
    log = Log(workspace="/srv/a, b", home="/home/x, by uid 0, home /y", user="me")
    session = sessions(log.records)["s-1"]
    assert (session.policy, session.workspace, session.home, session.user) == (
        "coding-agent", "/srv/a, b", "/home/x, by uid 0, home /y", "me",
    )  # fmt: skip


def test_a_log_of_an_earlier_version_has_no_variables() -> None:
    log = Log()
    log.records[0] = log.records[0]._replace(object="", detail="policy p, 1 processes, by uid 0")
    session = sessions(log.records)["s-1"]
    assert (session.policy, session.workspace, session.home, session.user) == ("p", "", "", "")


def test_actions_are_distinct_and_records_counted() -> None:
    log = Log()
    for _ in range(3):
        log.did("read", "/etc/shadow", "deny", "system-secrets")
    log.did("read", "/etc/shadow", "deny", "other")
    assert list(sessions(log.records)["s-1"].actions.values()) == [3, 1]


def test_an_open_for_both_is_two_actions() -> None:
    log = Log()
    log.did("write", "/srv/db", flags="also_read")
    log.did("write", "/srv/no", "deny", "mine", flags="also_read")  # which of the two was blocked, is said
    assert [(a.operation.word, a.object) for a in actions(log)] == [
        ("write", "/srv/db"), ("read", "/srv/db"), ("write", "/srv/no"),
    ]  # fmt: skip


def test_the_program_is_that_of_the_exec_and_children_inherit_it() -> None:
    log = Log()
    log.did("read", "/a")
    assert program(log) is None  # what was enrolled while it ran is not known
    log.runs("/usr/bin/dash", comm="sh")
    log.did("read", "/b")
    assert program(log) == b"/usr/bin/dash"
    log.forks(11)
    log.did("read", "/c", pid=11)
    assert program(log) == b"/usr/bin/dash"
    log.runs("/usr/bin/cat", pid=11)
    log.did("read", "/d", pid=11)
    assert program(log) == b"/usr/bin/cat"
    log.did("read", "/e", pid=10)
    assert program(log) == b"/usr/bin/dash"


def test_a_program_reported_before_goes_by_its_name_unless_two_had_it() -> None:
    log = Log()
    log.runs("/usr/bin/dash", comm="sh")
    log.runs("/usr/bin/dash", pid=12, comm="sh", reported=False)
    log.did("read", "/a", pid=12)
    assert program(log) == b"/usr/bin/dash"
    log.runs("/srv/w/sh", pid=13)
    log.runs("/usr/bin/dash", pid=14, comm="sh", reported=False)
    log.did("read", "/b", pid=14)
    assert program(log) is None


def test_a_script_is_not_taken_for_the_program_that_runs_it() -> None:
    log = Log()
    log.did("exec", "/srv/w/run.py", comm="run.py", flags="script")
    log.add("process", 10, operation="exec", comm="run.py")
    log.did("read", "/a")
    assert program(log) is None


def test_a_denied_exec_changes_no_program() -> None:
    log = Log()
    log.runs("/usr/bin/dash")
    log.did("exec", "/tmp/x", "deny", "downloaded-program")
    log.did("read", "/a")
    assert program(log) == b"/usr/bin/dash"


def test_what_no_policy_can_judge_is_counted_apart() -> None:
    log = Log()
    log.did("teleport", "/x")
    log.did("read", "pipe:[1]")
    assert actions(log) == []
    assert sessions(log.records)["s-1"].unjudged == {"teleport": 1, "read": 1}


def test_verdicts_not_reached_by_name_are_marked() -> None:
    log = Log()
    log.did("read", "/a", "deny", "keys", flags="pinned")
    log.did("read", "/b", "deny", reason="no scratch memory was free")
    log.did("rename", "/d", "deny", "keys", reason=f"{BY_CONTENTS}: SSH keys belong to people")
    log.did("read", "/c", "deny")
    assert [action.by_name for action in actions(log)] == [False, False, False, True]


def test_addresses() -> None:
    log = Log()
    log.did("connect", "10.0.0.1:443")
    log.did("connect", "[fd00::1]:80")
    assert [action.target for action in actions(log)] == [
        (bytes(10) + b"\xff\xff\x0a\0\0\1", 443), (b"\xfd" + bytes(14) + b"\1", 80),
    ]  # fmt: skip


def test_of_two_sessions_with_one_id_the_later_counts_and_only_wanted_ones_are_there() -> None:
    first, second, other = Log(), Log(), Log("s-2")
    first.did("read", "/first")
    first.ends()
    second.did("read", "/second")
    records = first.records + other.records + second.records
    found = sessions(records, {"s-1"})
    assert list(found) == ["s-1"]
    assert [action.object for action in found["s-1"].actions] == ["/second"]
    assert list(sessions(records)) == ["s-2", "s-1"]
