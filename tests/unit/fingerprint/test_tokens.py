# SPDX-License-Identifier: Apache-2.0
"""Abstract tokens: what is alike on two machines, and what is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.fingerprint.places import Places, bare_name, host_class
from agentmon.fingerprint.tokens import Tokens
from agentmon.model.records import Record
from tests.support.behaviour import MadeSession


def groups(session: MadeSession) -> list[str]:
    reader = Tokens()
    return [str(token) for record in session.records if (token := reader.read(record))]


def test_two_runs_on_two_machines_look_alike() -> None:
    here = MadeSession(3, "/srv/project", "/home/me").works(5)
    there = MadeSession(3, "/home/other/code/thing", "/root").works(5)
    assert here.records[5].object != there.records[5].object or here.workspace != there.workspace
    assert groups(here) == groups(there)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/srv/w/src/a.py", "workspace"),
        ("/srv/w/.git/index", "workspace/git"),
        ("/srv/w/.git/hooks/pre-commit", "workspace/git-hooks"),
        ("/srv/w/.env", "workspace/secret"),
        ("/srv/w/node_modules/x/y.js", "workspace/deps"),
        ("/srv/wide/a", "srv"),
        ("/home/me/.ssh/id_ed25519", "home/keys"),
        ("/home/me/.bashrc", "home/startup"),
        ("/home/me/.config/systemd/user/x.service", "home/startup"),
        ("/home/me/.bash_history", "home/history"),
        ("/home/me/.config/app/token", "home/secret"),
        ("/home/me/notes.md", "home"),
        ("/home/you/.ssh/id_rsa", "other-home/keys"),
        ("/etc/shadow", "etc/keys"),
        ("/etc/passwd", "etc/login"),
        ("/etc/cron.d/x", "etc/startup"),
        ("/etc/hosts", "etc"),
        ("/proc/12/environ", "proc/private"),
        ("/proc/12/stat", "proc/process"),
        ("/proc/meminfo", "proc"),
        ("/usr/lib/python3/x.py", "system"),
        ("/usr/bin/ls", "programs"),
        ("/tmp/x", "tmp"),
        ("/var/log/syslog", "var/log"),
        ("/nowhere", "elsewhere"),
        ("@dbus", "abstract"),
    ],
)
def test_places(path: str, place: str) -> None:
    assert Places("/srv/w", "/home/me").of(path) == place


def test_a_home_that_is_the_workspace_has_its_keys_all_the_same() -> None:
    assert Places("/home/me", "/home/me").of("/home/me/.ssh/id_rsa") == "home/keys"
    assert Places("/home/me/w", "/home/me").of("/home/me/w/.ssh/config") == "workspace"
    assert Places("/home", "/home/me").of("/home/me/.bashrc") == "home/startup"
    assert Places("/", "").of("/srv/a") == "srv"


@settings(max_examples=50)
@given(
    st.builds(
        Record, time_ns=st.integers(0, 2**62),
        kind=st.sampled_from(["decision", "process", "session", "odd"]),
        operation=st.sampled_from(["exec", "read", "connect", "fork", "exit", "enrolled", "ptrace", ""]),
        object=st.text() | st.from_regex(r"(/(tmp|etc|home|root|proc|\.ssh|x)){0,4}"),
        comm=st.text(), verdict=st.text(),
        detail=st.text() | st.just("parent 7") | st.just("signal 9"), pid=st.integers(0, 99),
    )
)  # fmt: skip
def test_no_record_is_too_odd_to_be_read(record: Record) -> None:
    token = Tokens("/w", "/home/me").read(record)
    assert token is None or token.group


def test_versions_are_no_part_of_a_programs_name() -> None:
    assert bare_name("python3.11") == bare_name("python3.12") == "python"
    assert bare_name("gcc-12") == "gcc"
    assert bare_name("7") == "7"


@pytest.mark.parametrize(
    ("address", "name", "found"),
    [
        ("127.0.0.1:8080", "", ("loopback:high", "")),
        ("169.254.169.254:80", "", ("metadata:http", "")),
        ("10.0.0.7:22", "", ("private:ssh", "")),
        ("8.8.8.8:443", "", ("public:https", "")),
        ("[2606:4700::1]:443", "files.pythonhosted.org", ("named:https", "pythonhosted.org")),
        ("garbage", "", ("unknown:low", "")),
    ],
)
def test_hosts(address: str, name: str, found: tuple[str, str]) -> None:
    assert host_class(address, name) == found


def test_what_was_blocked_is_another_act() -> None:
    def token(verdict: str) -> str:
        found = Tokens("/srv/w", "/home/me").read(
            Record(1, "decision", "s", 5, 5, 0, "cat", "read", "/etc/shadow", verdict)
        )
        assert found is not None
        return found.group

    assert token("allow") == "read etc/keys"
    assert token("deny") == token("kill") == "read! etc/keys"


def test_records_that_are_no_acts_are_no_tokens() -> None:
    reader = Tokens()
    assert reader.read(Record(1, "daemon", operation="started")) is None
    assert reader.read(Record(1, "name", "s", object="x.example")) is None
    assert reader.read(Record(1, "process", "s", operation="fork-lost")) is None


def test_steps_of_a_plan_are_tokens_with_their_names_as_detail() -> None:
    steps = [
        Record(1, "step", "s", 7, comm="make", operation="began", object="build"),
        Record(2, "step", "s", 7, comm="make", operation="done", object="build"),
        Record(3, "step", "s", 8, comm="sh", operation="refused", object="deploy", verdict="deny"),
    ]
    found = [token for step in steps if (token := Tokens().read(step))]
    assert list(map(str, found)) == ["step began (build)", "step done (build)", "step! refused (deploy)"]
    assert found[2].stopped
