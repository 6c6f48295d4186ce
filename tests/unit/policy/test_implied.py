# SPDX-License-Identifier: Apache-2.0
"""The rule that goes with `hosts`: no name service of the host but agentmon's resolver."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agentmon.daemon.policies import PolicyBook, Source
from agentmon.model.operations import Action, Operation
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.check import warnings
from agentmon.policy.compile import compile_policy
from agentmon.policy.evaluate import Evaluator
from agentmon.policy.explain import explain
from agentmon.policy.glob import bind, parse
from agentmon.policy.implied import OTHER_RESOLVERS, SOCKETS, with_control, without_implied
from agentmon.policy.load import load_text
from agentmon.policy.rules import Variables
from agentmon.policy.walk import run

VARIABLES = Variables.of(workspace="/w", home="/h", user="u")
PLAIN = (
    "policy: p\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: deny, unix: allow}\nrules:\n"
)
SOCKET = "  - {id: socket, on: unix, paths: [/run/nscd/socket], action: ACTION}\n"
NAMES = PLAIN + '  - {id: api, on: connect, hosts: ["api.example.com:443"], action: allow}\n'

SERVICES = [
    b"/run/nscd/socket",
    b"/var/run/nscd/socket",
    b"/run/systemd/resolve/io.systemd.Resolve",
    b"/run/systemd/resolve/io.systemd.Resolve.Monitor",
    b"/run/systemd/resolve.hook/io.systemd.Network",
    b"/run/avahi-daemon/socket",
    b"/var/run/avahi-daemon/socket",
]
OTHERS = [b"/run/nscd/socket2", b"/run/systemd/notify", b"/run/systemd/resolved", b"/run/dbus/system_bus_socket"]


def bound(text: str) -> BoundPolicy:
    return bind_policy(load_text(text, "p.yaml"), VARIABLES)


def verdicts(policy: BoundPolicy, path: bytes) -> set[tuple[Action, str]]:
    """What the evaluator and the tables say."""
    evaluator, compiled = Evaluator(policy), compile_policy(policy)
    found = [evaluator.judge(Operation.UNIX, path), run(compiled, Operation.UNIX, path)]
    return {(v.action, policy.rules[v.rule].rule.id if v.rule < len(policy.rules) else "") for v in found}


@pytest.mark.parametrize("path", SERVICES)
def test_with_hosts_the_hosts_own_name_services_are_denied(path: bytes) -> None:
    assert verdicts(bound(NAMES), path) == {(Action.DENY, OTHER_RESOLVERS)}
    assert verdicts(bound(PLAIN + SOCKET.replace("ACTION", "audit")), path) <= {
        (Action.AUDIT, "socket"),
        (Action.ALLOW, ""),
    }


@pytest.mark.parametrize("path", OTHERS)
def test_nothing_else_is(path: bytes) -> None:
    assert verdicts(bound(NAMES), path) == {(Action.ALLOW, "")}


def test_the_more_severe_wins_and_what_was_written_is_named() -> None:
    for action, said in (("allow", OTHER_RESOLVERS), ("deny", "socket"), ("kill", "socket")):
        ((_, rule),) = verdicts(bound(NAMES + SOCKET.replace("ACTION", action)), b"/run/nscd/socket")
        assert rule == said


def test_a_rule_of_that_id_takes_its_place() -> None:
    own = bound(NAMES + SOCKET.replace("ACTION", "deny").replace("id: socket", f"id: {OTHER_RESOLVERS}"))
    assert verdicts(own, b"/run/nscd/socket") == {(Action.DENY, OTHER_RESOLVERS)}
    assert verdicts(own, SERVICES[2]) == {(Action.ALLOW, "")}


def test_it_is_explained_by_the_rule_that_names_hosts_and_is_no_news() -> None:
    policy = bound(NAMES)
    first = explain(policy, Operation.UNIX, b"/run/nscd/socket", None).decided_by
    assert first is not None
    assert (first.rule, first.source, first.matched) == (OTHER_RESOLVERS, "p.yaml:4", "{/run,/var/run}/nscd/socket")
    (info,) = [info for info in policy.infos() if info.id == OTHER_RESOLVERS]
    assert info.quiet
    assert "agentmon's own resolver" in info.reason


def test_observed_it_blocks_nothing() -> None:
    policy = bound("mode: observe\n" + NAMES)
    assert verdicts(policy, b"/run/nscd/socket") == {(Action.ALLOW, "")}
    assert policy.observed is not None
    assert verdicts(policy.observed, b"/run/nscd/socket") == {(Action.DENY, OTHER_RESOLVERS)}


def test_a_daemon_that_could_only_kill_leaves_it_out() -> None:
    policy = load_text(NAMES, "p.yaml")
    assert [rule.id for rule in without_implied(policy).rules] == ["api"]
    for implied in (True, False):
        book = PolicyBook(implied=implied)
        found = book.prepare(Source("p.yaml", NAMES), workspace="/w", home="/h", user="u")
        assert (OTHER_RESOLVERS in [info.id for info in found.compiled.rules]) is implied


def test_check_tells_of_the_bus_and_nothing_of_the_rule() -> None:
    def said(text: str) -> list[str]:
        policy = bound(text)
        beside = ("default", "on this host")
        return [w for w in warnings(policy, compile_policy(policy)) if not any(b in w for b in beside)]

    (warning,) = said(NAMES)
    assert warning.startswith("p.yaml:4:")
    assert "system_bus_socket" in warning
    assert said(NAMES.replace("policy: p", "policy: p\ninclude: [escape]")) == []
    denied = SOCKET.replace("ACTION", "deny").replace("/run/nscd/socket", '"/run/**", "/var/run/**"')
    assert said(NAMES + denied) == []
    assert said(PLAIN + SOCKET.replace("ACTION", "audit")) == []


#: What libc's modules do not open: it is for those who answer.
NOT_OF_LIBC = {"/run/systemd/resolve.hook/**"}


def test_the_react_tier_refuses_the_same_sockets() -> None:
    """It goes by the names that libc uses, which bpf/unix.bpf.h has a second time."""
    text = (Path(__file__).parents[3] / "bpf" / "unix.bpf.h").read_text()
    names = re.findall(r'am_is\(name, "([^"]+)"\)\)\s+return sizeof\("([^"]+)"\) - 1;', text)
    assert len(names) == text.count("am_is(name, ") - 1 > 0  # but for its definition
    assert all(compared == measured for compared, measured in names)
    (room,) = map(int, re.findall(r"#define AM_SERVICE_MAX (\d+)", text))
    assert all(len(name) < room for name, _ in names)
    refused = {name.encode() for name, _ in names}
    for name in refused:
        assert verdicts(bound(NAMES), name) == {(Action.DENY, OTHER_RESOLVERS)}, name
    for pattern in set(SOCKETS) - NOT_OF_LIBC:
        for glob in (bind(template, {}) for template in parse(pattern)):
            assert any(re.fullmatch(glob.regex(), name, re.DOTALL) for name in refused), glob.regex()
    assert set(SOCKETS) >= NOT_OF_LIBC


CONTROL_SOCKET = b"/run/agentmon/control.sock"
CLOSED = PLAIN.replace("unix: allow", "unix: deny")


@pytest.mark.parametrize(
    "text",
    [
        CLOSED + "  []\n",
        CLOSED.replace(", unix: deny", "") + "  []\n",
        PLAIN + "  - {id: all, on: unix, action: kill}\n",
        CLOSED + "  - {id: run, on: unix, paths: ['/run/**'], action: deny}\n",
        PLAIN + "  - {id: this, on: [unix, write], paths: [/run/agentmon/control.sock], action: deny}\n",
        CLOSED + "  - {id: cat, on: unix, exe: ['**/cat'], when: {risk: high}, action: deny}\n",
        PLAIN + "  - {id: home, on: unix, paths: ['~/**', '/h/**'], action: deny}\n",
        "policy: p\ninclude: [coding-agent]\nrules: []\n",
    ],
)
def test_agentmons_own_socket_is_reached_under_every_policy(text: str) -> None:
    policy = with_control(load_text(text, "p.yaml"), CONTROL_SOCKET, VARIABLES)
    full = bind_policy(policy, VARIABLES)
    assert {action for action, _ in verdicts(full, CONTROL_SOCKET)} == {Action.ALLOW}
    assert not any(r.action.blocks for r in Evaluator(full).matches(Operation.UNIX, CONTROL_SOCKET, ~0, None))
    # and nothing else is
    without = bound(text)
    for path in (b"/run/agentmon/control.sock2", b"/run/agentmon", b"/run/nscd/socket", b"/h/x", b"@x"):
        assert [a for a, _ in verdicts(full, path)] == [a for a, _ in verdicts(without, path)]
    for operation in (Operation.WRITE, Operation.DELETE, Operation.READ):
        found = [Evaluator(each).judge(operation, CONTROL_SOCKET).action for each in (full, without)]
        assert found[0] == found[1]


def test_a_policy_that_does_not_block_it_stays_as_it_is() -> None:
    text = PLAIN + "  - {id: home, on: unix, paths: ['~/**', '/run/docker*'], action: deny}\n"
    policy = load_text(text, "p.yaml")
    assert with_control(policy, CONTROL_SOCKET, VARIABLES) == policy


def test_the_daemon_leaves_its_own_socket_open(tmp_path: Path) -> None:
    (tmp_path / "true").mkdir()
    (tmp_path / "link").symlink_to("true")
    book = PolicyBook(control=tmp_path / "link" / "a*b.sock")
    policy = book.prepare(Source("p.yaml", CLOSED + "  []\n"), workspace="/w", home="/h", user="u").bound
    directory = os.fsencode(os.path.realpath(tmp_path))
    assert {a for a, _ in verdicts(policy, directory + b"/true/a*b.sock")} == {Action.ALLOW}
    assert {a for a, _ in verdicts(policy, directory + b"/true/axb.sock")} == {Action.DENY}
