# SPDX-License-Identifier: Apache-2.0
"""The daemon's parts that need no kernel."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentmon.control.protocol import Peer, RefusedError
from agentmon.daemon import config, enrolment
from agentmon.daemon.baselines import Baselines
from agentmon.daemon.notify import notify, watchdog_interval_s
from agentmon.daemon.policies import PolicyBook, Source, digest
from agentmon.daemon.requests import VERBS, Enroll, PolicyRef, parse
from agentmon.daemon.state import SessionState, StateDirectory
from agentmon.engine import Question
from agentmon.errors import AgentmonError, ConfigError, PolicyError
from agentmon.model.events import ProcessKey
from agentmon.model.operations import Action
from agentmon.model.tables import CompiledPolicy, RuleInfo

POLICY = "policy: p\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: deny}\nrules: []\n"


def test_a_missing_configuration_is_the_default(tmp_path: Path) -> None:
    assert config.load(tmp_path / "none.toml") == config.Config()
    with pytest.raises(ConfigError, match="there is no configuration"):
        config.load(tmp_path / "none.toml", required=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[daemon]\nsokcet = "/x"\n', ":2:1: unknown key `sokcet`, did you mean `socket`?"),
        ("[deamon]\n", ":1:1: unknown key `deamon`, did you mean `daemon`?"),
        ("[daemon]\nsessions_per_user = 0\n", ":2:1: `sessions_per_user`: input should be greater"),
        ("[hold]\nopen_per_sesion = 3\n", ":2:1: unknown key `open_per_sesion`, did you mean `open_per_session`?"),
        ("[hold]\nexpire_s = 0\n", ":2:1: `expire_s`: input should be greater"),
        ("[daemon\n", ":1:8: "),
        ("[fingerprint]\nrat = 0.1\n", ":2:1: unknown key `rat`, did you mean `rate`?"),
        ("[fingerprint]\nrate = 0.1\nelevated_rate = 0.05\n", ":1:1: `fingerprint`: `elevated_rate` must not be below"),
    ],
)
def test_mistakes_name_their_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "agentmon.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert f"{path}{words}" in str(caught.value)
    assert caught.value.exit_code == 3


def test_state_survives_and_broken_files_are_named(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    state = SessionState(
        "s-0001", 1, 2, "p", 3, 4, "d", POLICY, "p.yaml", "/w", "/h", "u", 1000, "cmd", 5,
        [RuleInfo("r", "p", Action.DENY, "p.yaml:1", "why", True)], [ProcessKey(1, 2)],
    )  # fmt: skip
    directory.save(state)
    assert list(directory.load()) == [state]
    (directory.path / "s-0002.json").write_text("{")
    (broken,) = [found for found in directory.load() if isinstance(found, str)]
    assert "s-0002.json" in broken
    directory.remove("s-0001")
    directory.remove("s-0001")
    assert directory.path.stat().st_mode & 0o077 == 0


def test_questions_survive_and_a_broken_file_is_none(tmp_path: Path) -> None:
    directory = StateDirectory(tmp_path)
    assert directory.load_questions() == []
    questions = [Question("q-1", "s-1", 7, "may\nI?", 5), Question("q-2", "s-1", 7, "\udcff", 6, "no", 9, 0, True)]
    directory.save_questions(questions)
    assert directory.load_questions() == questions
    assert (tmp_path / "questions.json").stat().st_mode & 0o077 == 0
    for broken in ("{", "[]", '{"version": 1, "questions": [{"id": 1}]}', '{"version": 0, "questions": []}'):
        (tmp_path / "questions.json").write_text(broken)
        assert directory.load_questions() == []


class Maps:
    def __init__(self) -> None:
        self.installed: list[CompiledPolicy] = []
        self.removed: list[int] = []

    def install_policy(self, policy: CompiledPolicy) -> tuple[int, int]:
        self.installed.append(policy)
        return len(self.installed) - 1, 7

    def remove_policy(self, slot: int) -> None:
        self.removed.append(slot)


def test_equal_policies_share_a_slot_until_the_last_session_ends() -> None:
    book, maps = PolicyBook(), Maps()
    first = book.prepare(Source("p.yaml", POLICY), workspace="/w", home="/h", user="u")
    assert book.prepare(Source("p.yaml", POLICY), workspace="/w", home="/h", user="u") is first
    assert book.acquire(maps, first) == (0, 7)
    assert book.acquire(maps, first) == (0, 7)
    book.release(maps, 0)
    assert maps.removed == []
    book.release(maps, 0)
    assert maps.removed == [0]
    assert book.acquire(maps, first) == (1, 7)
    assert digest(first.compiled) == first.digest


def test_a_bad_policy_or_workspace_is_a_policy_error() -> None:
    book = PolicyBook()
    with pytest.raises(PolicyError, match=r"p\.yaml:1:1"):
        book.prepare(Source("p.yaml", "polciy: p\n"), workspace="/w", home="/h", user="u")
    with pytest.raises(PolicyError, match="workspace"):
        book.prepare(Source("p.yaml", POLICY), workspace="w", home="/h", user="u")
    with pytest.raises(PolicyError, match="coding-agent"):
        book.prepare(Source("coding-agnet"), workspace="/w", home="/h", user="u")


def test_the_shipped_packs_compile() -> None:
    prepared = PolicyBook().prepare(Source("coding-agent"), workspace="/home/u/w", home="/home/u", user="u")
    assert prepared.compiled.rules


@pytest.mark.parametrize(
    ("verb", "fields", "words"),
    [
        ("fly", {}, "unknown verb `fly`; known: answer, approvals"),
        ("ping", {"x": 1}, "`x`: extra inputs"),
        ("enroll", {"pid": 1, "policy": {"name": "p"}, "workspace": "/"}, "`pid`: input should be greater than 1"),
        ("enroll", {"pid": "7", "policy": {"name": "p"}, "workspace": "/"}, "`pid`: input should be a valid integer"),
        ("enroll", {"pid": 7, "policy": {"nmae": "p"}, "workspace": "/"}, "`policy.nmae`: extra"),
        ("release", {}, "`session`: field required"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(verb: str, fields: dict[str, object], words: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(verb, fields)
    assert words in str(caught.value)
    assert caught.value.exit_code == 64


def test_only_harmless_verbs_are_for_the_fenced() -> None:
    assert {verb for verb, (_, harmless, _) in VERBS.items() if harmless} == {
        "ping", "ps", "summary", "why", "bookmark", "ask", "asked", "step", "toolstep",
    }  # fmt: skip
    assert {verb for verb, (*_, operators) in VERBS.items() if operators} == {"release", "reload", "risk"}
    parsed = parse("enroll", {"pid": 7, "policy": {"name": "p"}, "workspace": "/"})
    assert isinstance(parsed, Enroll)


def test_only_operators_have_a_baseline_learn(tmp_path: Path) -> None:
    found = config.Config(fingerprint=config.FingerprintConfig(directory=tmp_path, profiles={"p": "usual"}))
    daemon: Any = SimpleNamespace(config=found, baselines=Baselines(tmp_path))

    def profile(uid: int, **fields: str) -> str:
        request = Enroll(pid=7, policy=PolicyRef(name="p"), workspace="/w", **fields)
        return enrolment._profile(daemon, Peer(7, uid, uid), request, "p")

    assert profile(65534) == "usual"
    assert profile(65534, profile="mine") == "mine"
    assert profile(0, learn="young") == ""  # there is none yet
    with pytest.raises(RefusedError, match="only root and members of the group `agentmon` may have a baseline learn"):
        profile(65534, learn="young")
    with pytest.raises(RefusedError, match="either it is watched"):
        profile(0, learn="young", profile="mine")
    with pytest.raises(AgentmonError, match="is no name of a baseline"):
        profile(0, learn="../young")


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert sock.recv(100) == b"READY=1"
    notify("STOPPING=1")  # nobody listens: no error
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    assert watchdog_interval_s() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_interval_s() is None


def test_nothing_of_a_test_reaches_the_real_state() -> None:
    assert sys.version_info >= (3, 11)
    assert str(config.Config().daemon.state) == "/run/agentmon"


@pytest.mark.parametrize("name", ["/etc/shadow", "../secret.yaml", "secret.yaml"])
def test_the_daemon_opens_no_file_that_a_request_names(name: str) -> None:
    with pytest.raises(PolicyError, match="send its text"):
        PolicyBook().prepare(Source(name), workspace="/w", home="/h", user="u")


def test_a_workspace_that_is_no_file_name_is_refused() -> None:
    with pytest.raises(PolicyError, match="workspace"):
        PolicyBook().prepare(Source("p.yaml", POLICY), workspace="/w\ud800", home="/h", user="u")
