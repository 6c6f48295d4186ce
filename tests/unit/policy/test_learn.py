# SPDX-License-Identifier: Apache-2.0
"""A policy from recorded sessions."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import bind_policy
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.generalise import patterns, place
from agentmon.policy.learn import Learnt, learn, looks_secret
from agentmon.policy.load import load_text
from agentmon.policy.recorded import RecordedSession, sessions
from agentmon.policy.replay import Change, Replay
from agentmon.policy.rules import Variables
from tests.support.recorded import Log

ME = Variables.of(workspace="/srv/w", home="/home/me", user="me")


def session(*done: tuple[str, str] | tuple[str, str, str], name: str = "s-1") -> RecordedSession:
    """A session that did these (operation, object[, verdict])."""
    log = Log(name)
    for operation, object_, *verdict in done:
        log.did(operation, object_, *verdict)
    return sessions(log.records)[name]


def learnt_from(*done: tuple[str, str] | tuple[str, str, str], strict: bool = False, blocked: bool = False) -> Learnt:
    return learn([(session(*done), ME)], strict=strict, blocked=blocked)


def allowed(learnt: Learnt) -> list[str]:
    return [text for rule in learnt.rules if rule.action is Action.ALLOW for text, _, _ in rule.objects]


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/srv/w", "{workspace}"),
        ("/srv/w/a/b", "{workspace}/a/b"),
        ("/srv/wx", "/srv/wx"),
        ("/home/me/x", "~/x"),
        ("/tmp/pip-a/b", "{tmp}/pip-a/b"),
        ("/run/me/x", "/run/{user}/x"),
        ("/", "/"),
        ("/opt/python3.11/bin", "/opt/python*/bin"),
        ("/srv/data/1.2.3.4", "/srv/data/*"),
        ("/opt/x/3fa85f64-5717-4562-b3fc-2c963f66afa6.log", "/opt/x/*.log"),
        ("/opt/objects/0a1b2c3d4e5f", "/opt/objects/*"),
        ("/opt/go-build123456/b001/x", "/opt/go-build*/b001/x"),
        ("/proc/812/task/813/comm", "/proc/[0-9]*/task/[0-9]*/comm"),
        ("/tmp/tmpab12cd_x/a", "{tmp}/tmp*/a"),
        ("/tmp/ccBxK9zn.o", "{tmp}/cc??????.o"),
        ("/tmp/ccminers.o", "{tmp}/ccminers.o"),
        ("/srv/data/x.Ab12Cd", "/srv/data/x.*"),
        ("/srv/data/decade/README", "/srv/data/decade/README"),
        ("/home/me/0a1b2c3d4e5f", "~/0a1b2c3d4e5f"),  # not all of the home
        ("/12345", "/12345"),
        ("/srv/a*b/{c}", "/srv/a\\*b/\\{c\\}"),
        ("/srv/\n/\udcff", "/srv/?/?"),
    ],
)
def test_places(path: str, pattern: str) -> None:
    assert place(path.encode("utf-8", "surrogateescape"), ME).pattern() == pattern


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/srv/d/a", "/srv/d/b"], ["/srv/d/a", "/srv/d/b"]),
        (["/srv/d/a", "/srv/d/b", "/srv/d/c"], ["/srv/d/*"]),
        (["/srv/d/a", "/srv/d/b", "/srv/d/c/x"], ["/srv/d/**"]),
        (["/srv/d", "/srv/d/a", "/srv/d/b", "/srv/d/c"], ["/srv/d/**"]),
        (["/srv/w/a", "/srv/w/b", "/srv/w/c"], ["{workspace}/*"]),
        (["/etc/a", "/etc/b", "/etc/c", "/x", "/y"], ["/etc/a", "/etc/b", "/etc/c", "/x", "/y"]),
        (["/home/me/a", "/home/me/b", "/home/me/c"], ["~/a", "~/b", "~/c"]),
        (["/home/me/.config/a/x", "/home/me/.config/b/x", "/home/me/.config/c"],
         ["~/.config/a/x", "~/.config/b/x", "~/.config/c"]),
        (["/home/you/a/1", "/home/you/b/2", "/home/you/c/3"], ["/home/you/a/1", "/home/you/b/2", "/home/you/c/3"]),
    ],
)  # fmt: skip
def test_siblings(paths: list[str], expected: list[str]) -> None:
    places = [(place(path.encode(), ME), (path, "write")) for path in paths]
    found = patterns(places)
    assert [general.pattern for general in found] == expected
    assert sum(len(general.sources) for general in found) == len(paths)


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        ("/srv/w/.env", True),
        ("/srv/w/.env.local", True),
        ("/srv/w/.env.example", False),
        ("/srv/w/deploy.pem", True),
        ("/srv/w/my-api-key.txt", True),
        ("/srv/w/credentials", True),
        ("/srv/w/aws_credentials.json", True),
        ("/srv/w/id_ed25519", True),
        ("/srv/w/id_ed25519.pub", False),
        ("/srv/w/token.py", False),
        ("/srv/w/tokenizer.json", False),
        ("/usr/lib/python3/dist-packages/certifi/cacert.pem", False),
        ("/srv/w/.venv/lib/certifi/cacert.pem", False),
        ("/srv/w/monkey", False),
        ("/srv/w/secrets/db.txt", True),
        ("/srv/w/secrets/store.py", False),
    ],
)
def test_names_that_look_like_secrets(path: str, secret: bool) -> None:
    assert looks_secret(path) is secret


def test_only_what_the_pack_does_not_allow_is_learnt() -> None:
    learnt = learnt_from(
        ("exec", "/usr/bin/git"), ("read", "/etc/passwd"), ("write", "/dev/null"), ("connect", "127.0.0.1:8000"),
        ("write", "/srv/w/a"), ("create", "/srv/w/b"), ("create", "/srv/w/src/c"), ("connect", "192.0.2.7:443"),
        ("connect", "[2001:db8::7]:443"),
    )  # fmt: skip
    assert (learnt.learnt, learnt.allowed, learnt.unknown, learnt.kept_out) == (5, 4, 0, [])
    assert allowed(learnt) == ["{workspace}/**", "192.0.2.7:443", "[2001:db8::7]:443"]
    (files, network) = learnt.rules
    assert [o.word for o in files.operations] == ["write", "create"]  # which of them depends on what was there
    assert files.objects[0][1] == 3
    assert "# from 3 actions" in learnt.text
    assert "# 3, such as /srv/w/src/c" in learnt.text
    assert network.is_net


def test_an_address_that_was_asked_for_by_name_is_learnt_by_it() -> None:
    log = Log()
    log.did("connect", "8.8.8.8:443", detail="name api.example.com")
    log.did("connect", "[2001:4860:4860::8888]:443", detail="name api.example.com")
    log.did("connect", "9.9.9.9:443")
    learnt = learn([(sessions(log.records)["s-1"], ME)])
    assert allowed(learnt) == ["9.9.9.9:443", "api.example.com:443"]
    assert 'hosts:\n      - "api.example.com:443"' in learnt.text
    assert not learnt.denied["s-1"]


def test_a_workspace_below_tmp_is_learnt_all_the_same() -> None:
    values = Variables.of(workspace="/tmp/w", home="/home/me", user="me")
    learnt = learn([(session(("write", "/tmp/w/a"), ("write", "/tmp/x")), values)])
    assert allowed(learnt) == ["{workspace}/a"]


def test_what_is_part_of_write_needs_rules_only_beyond_it() -> None:
    learnt = learnt_from(
        *(("create", f"/srv/w/{name}") for name in "abc"), ("delete", "/srv/w/a"), ("rename", "/srv/w/b"),
        ("attr", "/srv/tool"), ("delete", "/srv/tool"),
    )  # fmt: skip
    assert [([o.word for o in r.operations], [text for text, *_ in r.objects]) for r in learnt.rules] == [
        (["write", "create"], ["{workspace}/*"]), (["delete", "attr"], ["/srv/tool"]),
    ]  # fmt: skip


def test_strict_learns_programs_and_reads_too() -> None:
    learnt = learnt_from(
        *((("exec", f"/usr/bin/{name}")) for name in ("cat", "git", "ls", "sh")),
        *((("read", f"/usr/lib/x/{name}")) for name in "abc"),
        strict=True,
    )
    assert allowed(learnt) == ["/usr/bin/cat", "/usr/bin/git", "/usr/bin/ls", "/usr/bin/sh", "/usr/lib/x/*"]
    assert "exec: deny, read: deny" in learnt.text


def test_secrets_and_what_was_blocked_are_kept_out() -> None:
    done = [
        ("read", "/home/me/.ssh/id_rsa", "deny"), ("read", "/srv/w/.env"), ("write", "/srv/w/a"), ("write", "/srv/w/b"),
        ("write", "/srv/w/c"), ("write", "/srv/w/d", "deny"), ("write", "/etc/x", "deny"),
        ("connect", "203.0.113.5:443", "deny"),
    ]  # fmt: skip
    learnt = learnt_from(*done)
    kept = {k.object for k in learnt.kept_out}
    assert kept == {"/home/me/.ssh/id_rsa", "/srv/w/.env", "/srv/w/d", "/etc/x", "203.0.113.5:443"}
    assert {o.action.object for o in learnt.denied["s-1"]} == kept
    for object_ in kept:
        assert f" {object_} (" in learnt.text.partition("# not allowed: ")[2]
    assert "keys of secrets: SSH keys belong to people" in learnt.text
    learnt = learnt_from(*done, blocked=True)
    assert {k.object for k in learnt.kept_out} == {"/home/me/.ssh/id_rsa", "/srv/w/.env"}
    assert "203.0.113.5:443" in allowed(learnt)


def test_what_a_rule_blocked_stays_blocked_where_the_pack_would_allow_it() -> None:
    log = Log("s-1")
    log.did("read", "/srv/w/pub/a", "deny", "mine")
    log.did("exec", "/usr/bin/git", "deny", "no-push")
    log.did("exec", "/usr/bin/git")
    log.did("connect", "127.0.0.1:2000", "deny", "no-database")
    learnt = learn([(sessions(log.records)["s-1"], ME)], include=["coding-agent"])
    judge = Evaluator(bind_policy(load_text(learnt.text, "learnt.yaml"), ME))
    assert judge.path(Operation.READ, b"/srv/w/pub/a").action is Action.DENY
    assert judge.path(Operation.READ, b"/srv/w/pub/b").action is Action.ALLOW
    assert judge.judge(Operation.CONNECT, (bytes(10) + b"\xff\xff\x7f\0\0\1", 2000)).action is Action.DENY
    assert "# not allowed: read /srv/w/pub/a (it was blocked when it was recorded)" in learnt.text
    # the log does not tell which arguments were meant
    assert judge.path(Operation.EXEC, b"/usr/bin/git").action is Action.ALLOW
    assert "#   exec /usr/bin/git (no-push: also blocked)" in learnt.text
    learnt = learn([(sessions(log.records)["s-1"], ME)], include=["coding-agent"], blocked=True)
    assert (learnt.rules, learnt.kept_out) == ([], [])


def test_a_secret_is_denied_for_all_that_can_be_done_to_it() -> None:
    learnt = learnt_from(("read", "/srv/w/.env"), *(("create", f"/srv/w/{name}") for name in "abc"))
    bound = bind_policy(load_text(learnt.text, "learnt.yaml"), ME)
    judge = Evaluator(bound)
    for operation in (Operation.READ, Operation.WRITE, Operation.CREATE):
        assert judge.path(operation, b"/srv/w/.env").action is Action.DENY
    assert judge.path(Operation.WRITE, b"/srv/w/other").action is Action.ALLOW


def test_an_operation_without_an_object_is_learnt_by_its_name() -> None:
    done = (("ptrace", "", "deny"), ("signal", "", "deny"))
    assert [k.operation.word for k in learnt_from(*done).kept_out] == ["ptrace", "signal"]
    learnt = learnt_from(*done, blocked=True)
    (rule,) = learnt.rules
    assert (rule.id, rule.objects, learnt.kept_out) == ("learnt-ptrace-signal", (), [])
    compiled = bind_policy(load_text(learnt.text, "learnt.yaml"), ME)
    assert Evaluator(compiled).bare(Operation.PTRACE).action is Action.ALLOW
    assert Evaluator(compiled).bare(Operation.MOUNT).action is Action.DENY


def test_names_cannot_write_policy() -> None:
    odd = '/srv/w/x"\n    action: allow\n  - {id: evil, on: read, action: allow}\n# '
    learnt = learnt_from(("write", odd), ("write", odd + "secret.pem"), ("read", "/etc/shadow\n- x", "deny"))
    policy = load_text(learnt.text, "learnt.yaml")
    assert "evil" not in {rule.id for rule in policy.rules}
    assert all(
        line.startswith(("#", " ", "policy:", "include:", "default:", "rules:"))
        for line in learnt.text.splitlines()
        if line
    )


def test_several_sessions_share_their_variables() -> None:
    other = Variables.of(workspace="/srv/v", home="/home/you", user="you")
    one, two = session(("write", "/srv/w/a")), session(("write", "/srv/v/a"), name="s-2")
    learnt = learn([(one, ME), (two, other)])
    assert allowed(learnt) == ["{workspace}/a"]
    assert learnt.denied == {"s-1": [], "s-2": []}
    assert "s-1, s-2" in learnt.text


_NAMES = st.sampled_from(
    ["a", "b", "src", "x.py", ".env", "key.pem", "token", ".git", "hooks", "pre-commit", ".ssh", "id_rsa",
     "tmp12ab_xyz", "3.11.2", "12345", "0a1b2c3d4e5f", "*", "{a}", "\n", "\udcff", "é", "a b", "~", ".config", "lib",
     "'", '"', "#", "1"]
)  # fmt: skip
_ROOTS = st.sampled_from(["/srv/w", "/home/me", "/tmp", "/etc", "/usr/lib", "/home/you", "/proc", "/srv/d", "/opt"])
_PATHS = st.builds(lambda root, names: "/".join([root, *names]), _ROOTS, st.lists(_NAMES, max_size=3))
_FILES = st.tuples(st.sampled_from(["exec", "read", "write", "create", "delete", "attr"]), _PATHS)
_HOSTS = st.sampled_from(
    ["10.0.0.1:443", "10.0.0.1:80", "[fd00::1]:443", "127.0.0.1:1", "169.254.169.254:80", "1.1.1.1:53"]
)
_NET = st.tuples(st.sampled_from(["connect", "send"]), _HOSTS)
_VERDICTS = st.sampled_from(["allow", "allow", "audit", "deny"])
_DONE = st.lists(
    st.builds(lambda what, verdict: (*what, verdict), st.one_of(_FILES, _FILES, _NET), _VERDICTS), max_size=40
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    _DONE, st.sampled_from(["/srv/w", "/tmp", "/tmp/a", "/home/me", "/home/me/a", "/"]), st.booleans(), st.booleans()
)
def test_of_what_it_learnt_from_it_denies_only_what_it_kept_out(
    done: list[tuple[str, str, str]], workspace: str, strict: bool, blocked: bool
) -> None:
    recorded = session(*done)
    values = Variables.of(workspace=workspace, home="/home/me", user="me")
    learnt = learn([(recorded, values)], strict=strict, blocked=blocked)
    assert learn([(recorded, values)], strict=strict, blocked=blocked).text == learnt.text
    bound = bind_policy(load_text(learnt.text, "learnt.yaml"), values)
    compile_policy(bound)
    kept_out = {(k.operation, k.object) for k in learnt.kept_out}
    outcomes = Replay(bound).session(recorded)
    denied = {(o.action.operation, o.action.object) for o in outcomes if o.verdict is not None and o.verdict.blocks}
    assert denied == kept_out
    for outcome in outcomes:
        if outcome.change is Change.BLOCKED:
            by_pack = outcome.source and "learnt.yaml" not in outcome.source
            assert by_pack or looks_secret(outcome.action.object)
        if outcome.change is Change.ALLOWED and not blocked:
            # the pack allows it, or the very same was allowed elsewhere in the session
            assert "learnt.yaml" not in outcome.source or any(
                o.action.target == outcome.action.target and not o.action.verdict.blocks for o in outcomes
            )
