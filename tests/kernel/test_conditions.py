# SPDX-License-Identifier: Apache-2.0
"""Rules that ask who acts: the kernel knows, whatever the process does to hide it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.conditions import During, Risk
from agentmon.model.operations import Tier
from agentmon.policy.hours import DAYS
from agentmon.policy.load import load_text
from tests.support.fence import ALLOW_ALL, Fence, attempt, blocked, in_child

Program = Callable[[str], Path]
SECRET = b"the content\n"
NOBODY = 65534


@pytest.fixture
def secret(ground: Path) -> Path:
    path = ground / "secret"
    path.write_bytes(SECRET)
    ground.chmod(0o755)
    for above in ground.parents:
        if above.stat().st_mode & 0o777 == 0o700:
            above.chmod(0o711)  # others are to get there
    return path


def read_once(path: Path) -> Callable[[], object]:
    """Opens it to read, in a child."""
    return lambda: os.close(os.open(path, os.O_RDONLY))


def act_as(uid: int, path: Path) -> Callable[[], object]:
    """Opens it to read with the rights of a user."""

    def body() -> None:
        os.seteuid(uid)
        read_once(path)()

    return body


@pytest.mark.parametrize("how", ["fork", "vfork", "thread", "clone3"])
def test_an_ancestor_is_known_whatever_the_fork(
    fence: Fence, tier: Tier, program: Program, secret: Path, how: str
) -> None:
    words = [program("spawn"), how, program("show"), secret]
    rule = f'  - {{id: under, on: read, paths: ["{secret}"], parent: ["{program("spawn")}"], action: deny}}\n'
    outcome = fence.run(rule, words)
    assert SECRET not in outcome.value
    assert outcome.told() == [("read", "deny", "under")]
    assert fence.run(rule, words[2:]).value == SECRET


def test_the_own_program_is_no_ancestor(fence: Fence, program: Program, secret: Path) -> None:
    show = program("show")
    assert fence.run(
        f'  - {{id: x, on: read, paths: ["{secret}"], parent: ["{show}"], action: deny}}\n', [show, secret]
    ).value


def test_what_it_ran_before_is_an_ancestor(fence: Fence, program: Program, secret: Path) -> None:
    """Else `exec` would be a way round."""
    shell = Path("/bin/sh").resolve()
    rule = f'  - {{id: under, on: read, paths: ["{secret}"], parent: ["{shell}"], action: deny}}\n'
    outcome = fence.run(rule, [shell, "-c", f"exec {program('show')} {secret}"])
    assert SECRET not in outcome.value
    assert outcome.told() == [("read", "deny", "under")]


def test_an_orphan_keeps_its_ancestors(fence: Fence, tier: Tier, secret: Path) -> None:
    shell = Path("/bin/sh").resolve()
    rule = f'  - {{id: under, on: read, paths: ["{secret}"], parent: ["{shell}"], action: deny}}\n'
    words = [shell, "-c", f"(setsid sh -c 'sleep 0.2; read line < {secret}; echo $line' &); exit 0"]
    outcome = fence.run(rule, words)
    assert SECRET.strip() not in outcome.value
    assert ("read", "deny", "under") in outcome.told()


def test_who_starts_a_program_is_its_ancestor(fence: Fence, tier: Tier, program: Program, secret: Path) -> None:
    """Also without a fork: `exec` names the program that is started."""
    show, shell = program("show"), Path("/bin/sh").resolve()
    rule = f'  - {{id: start, on: exec, paths: ["{show}"], parent: ["{shell}"], action: deny}}\n'
    outcome = fence.run(rule, [shell, "-c", f"exec {show} {secret}"])
    assert SECRET not in outcome.value
    assert outcome.told() == [("exec", "deny", "start")]
    assert fence.run(rule, [show, secret]).value == SECRET


def test_an_exception_for_what_a_program_starts(fence: Fence, program: Program, secret: Path) -> None:
    spawn = program("spawn")
    rule = f'  - {{id: x, on: read, paths: ["{secret}"], except: {{parent: ["{spawn}"]}}, action: deny}}\n'
    assert fence.run(rule, [spawn, "fork", program("show"), secret]).value == SECRET
    assert fence.run(rule, [program("show"), secret]).told() == [("read", "deny", "x")]


def test_a_user(fence: Fence, tier: Tier, secret: Path) -> None:
    """The effective one; what was allowed to one is not remembered for another."""
    rule = f'  - {{id: nobody, on: read, paths: ["{secret}"], user: [{NOBODY}], action: deny}}\n'

    def body() -> list[object]:
        return [in_child(act_as(uid, secret)) for uid in (0, NOBODY, 0, 1, NOBODY)]

    outcome = fence.run(rule, body)
    assert outcome.value == [(0, 0), blocked(tier), (0, 0), (0, 0), blocked(tier)]
    assert set(outcome.told()) == {("read", "deny", "nobody")}


def test_everybody_but_a_user(fence: Fence, tier: Tier, secret: Path) -> None:
    rule = f'  - {{id: others, on: read, paths: ["{secret}"], except: {{user: [root]}}, action: deny}}\n'
    outcome = fence.run(rule, lambda: [in_child(act_as(uid, secret)) for uid in (0, 1)])
    assert outcome.value == [(0, 0), blocked(tier)]


def test_a_file_system_user_is_the_one_that_counts(fence: Fence, tier: Tier, secret: Path) -> None:
    """setfsuid(2): by its rights the file is opened."""
    libc = ctypes.CDLL(None)

    def act() -> None:
        libc.setfsuid(NOBODY)
        read_once(secret)()

    rule = f'  - {{id: nobody, on: read, paths: ["{secret}"], user: [{NOBODY}], action: deny}}\n'
    assert fence.run(rule, lambda: in_child(act)).value == blocked(tier)


def test_an_address_for_one_user(fence: Fence) -> None:
    """And for what a program starts; both must be so."""
    shell = Path("/bin/sh").resolve()
    rules = (
        f"  - {{id: nobody, on: connect, cidrs: [127.0.0.2], user: [{NOBODY}], action: deny}}\n"
        f'  - {{id: shell, on: connect, cidrs: [127.0.0.3], parent: ["{shell}"], action: deny}}\n'
    )

    def reach(uid: int, address: str) -> tuple[int, int]:
        def body() -> None:
            os.seteuid(uid)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((address, 9))

        return in_child(body)

    outcome = fence.run(
        rules, lambda: [reach(0, "127.0.0.2"), reach(NOBODY, "127.0.0.2"), reach(0, "127.0.0.2"), reach(0, "127.0.0.3")]
    )
    assert outcome.value == [(0, 0), (errno.EPERM, 0), (0, 0), (0, 0)]


@pytest.mark.tier("lsm")
def test_a_guarded_operation_for_one_user(fence: Fence) -> None:
    outcome = fence.run(
        f"  - {{id: nobody, on: chroot, user: [{NOBODY}], action: kill}}\n"
        "  - {id: root, on: chroot, user: [root], action: audit}\n",
        lambda: in_child(lambda: os.chroot("/")),
    )
    assert outcome.value == (0, 0)
    assert outcome.told() == [("chroot", "audit", "root")]


@pytest.mark.tier("lsm")
def test_a_directory_stays_whoever_moves_it(fence: Fence, ground: Path) -> None:
    """What one user may not read stays where that user may not."""
    inside = ground / "closed" / "x"
    inside.mkdir(parents=True)
    rule = f'  - {{id: closed, on: read, paths: ["{ground}/closed/**"], user: [{NOBODY}], action: deny}}\n'

    def body() -> list[int]:
        return [
            attempt(lambda: os.rename(inside, ground / "open")),
            attempt(lambda: os.rename(inside, ground / "closed/y")),
        ]

    outcome = fence.run(rule, body)
    assert outcome.value == [errno.EPERM, 0]


def test_without_conditions_nothing_is_gathered(fence: Fence, program: Program, secret: Path) -> None:
    with fence.session("  []\n") as session:
        outcome = session.run([program("spawn"), "fork", program("show"), secret])
    assert outcome.value == SECRET
    assert {d.facts for d in outcome.decisions} == {0}


def test_a_denied_user_is_killed_where_that_is_asked(fence: Fence, secret: Path) -> None:
    rule = f'  - {{id: nobody, on: read, paths: ["{secret}"], user: [{NOBODY}], action: kill}}\n'
    assert fence.run(rule, lambda: in_child(act_as(NOBODY, secret))).value == (0, signal.SIGKILL)


def test_the_risk_of_the_session(fence: Fence, tier: Tier, secret: Path) -> None:
    """It counts from the next operation on; what was allowed before is not remembered for it."""
    rule = f'  - {{id: risky, on: read, paths: ["{secret}"], when: {{risk: elevated}}, action: deny}}\n'
    with fence.session(rule) as session:
        step, stepped = os.pipe()
        told, tell = os.pipe()

        def body() -> list[tuple[int, int]]:
            found = []
            for _ in range(4):
                os.read(step, 1)
                found.append(in_child(read_once(secret)))
                os.write(tell, b".")
            return found

        child = session.start(body)
        for risk in (Risk.NORMAL, Risk.ELEVATED, Risk.HIGH, Risk.NORMAL):
            session.monitor.set_risk(session.slot, risk)
            assert session.monitor.risk(session.slot) is risk
            os.write(stepped, b".")
            os.read(told, 1)
        outcome = session.finish(child)
        for fd in (step, stepped, told, tell):
            os.close(fd)
    assert outcome.value == [(0, 0), blocked(tier), blocked(tier), (0, 0)]


def test_hours_begin_and_end_without_anybody_saying_so(fence: Fence, tier: Tier, secret: Path, ground: Path) -> None:
    """Then nobody knows any more: what allows does not hold, what blocks does."""
    other = ground / "other"
    other.touch()
    rules = (
        f'  - {{id: closed, on: read, paths: ["{secret}"], when: {{time: ["Mon 09:00-10:00 UTC"]}}, action: deny}}\n'
        f'  - {{id: open, on: read, paths: ["{other}"], except: {{time: ["Mon 09:00-10:00 UTC"]}}, action: deny}}\n'
    )
    with fence.session(rules) as session:
        assert len(session.compiled.conditions) == 2
        facts = {c.unknown: 1 << i for i, c in enumerate(session.compiled.conditions) if isinstance(c, During)}
        during = facts[True] | facts[False]
        span_s = 2.0 if tier is Tier.REACT else 7.0
        start = time.clock_gettime(time.CLOCK_BOOTTIME)
        ends = [int((start + i * span_s) * 1e9) for i in (1, 2, 3)]
        session.monitor.set_clock(session.policy_slot, [(ends[0], 0), (ends[1], during), (ends[2], 0)])

        def span() -> int:
            return min(3, int((time.clock_gettime(time.CLOCK_BOOTTIME) - start) / span_s))

        def body() -> list[tuple[int, int, list[tuple[int, int]]]]:
            found = []
            while not found or found[-1][0] < 3:
                found.append((span(), [in_child(read_once(path)) for path in (secret, other)], span()))
                time.sleep(span_s / 20)
            return [(before, after, came) for before, came, after in found]

        outcome = session.run(body)
    no, yes = blocked(tier), (0, 0)
    wanted = [[yes, no], [no, yes], [yes, no], [no, no]]
    told = [(before, came) for before, after, came in outcome.value if before == after]  # else it was in between
    assert all(came == wanted[before] for before, came in told)
    assert {before for before, _ in told} == {0, 1, 2, 3}


def test_the_hours_are_those_of_the_wall_clock(fence: Fence, tier: Tier, secret: Path) -> None:
    always, never = "00:00-24:00 UTC", f"{DAYS[(time.gmtime().tm_wday + 3) % 7]} 12:00-12:01 UTC"
    for hours, wanted in ((always, blocked(tier)), (never, (0, 0))):
        rule = f'  - {{id: closed, on: read, paths: ["{secret}"], when: {{time: ["{hours}"]}}, action: deny}}\n'
        assert fence.run(rule, lambda: in_child(read_once(secret))).value == wanted


class Bench:
    """What a session may do, with the marks that it sets."""

    def __init__(self, ground: Path) -> None:
        self.ground = ground
        for name in ("test", "work", "secret", "both", "plain"):
            (ground / name).write_bytes(b"x")

    def rules(self, requires: str) -> str:
        ground = self.ground
        return (
            f'  - {{id: edit, on: [write, create], paths: ["{ground}/**"], action: allow, marks: [edited]}}\n'
            f'  - {{id: test, on: read, paths: ["{ground}/test", "{ground}/both"], action: allow, marks: [tested]}}\n'
            "  - {id: sent, on: connect, cidrs: [127.0.0.9], action: audit, marks: [sent]}\n"
            f'  - {{id: gate, on: read, paths: ["{ground}/secret"], action: deny,'
            f" except: {{requires: [{requires}]}}}}\n"
        )

    def run(self, fence: Fence, requires: str, steps: str) -> str:
        """One letter a step: t test, e edit, b both at once, s send; g asks the gate, `+` or `-` in its place."""
        modes = {"t": ("test", os.O_RDONLY), "e": ("work", os.O_WRONLY), "b": ("both", os.O_RDWR)}

        def act(step: str) -> Callable[[], object]:
            if step == "s":
                return send
            name, mode = modes.get(step, ("secret", os.O_RDONLY))
            return lambda: os.close(os.open(self.ground / name, mode))

        def body() -> str:
            return "".join("+" if in_child(act(step)) == (0, 0) else "-" for step in steps)

        return str(fence.run(self.rules(requires), body).value)


def send() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.9", 9))


def test_marks_open_a_gate(fence: Fence, ground: Path) -> None:
    bench = Bench(ground)
    assert bench.run(fence, "tested", "gtgeg") == "-++++"
    assert bench.run(fence, "sent", "gtgsg") == "-+-++"
    assert bench.run(fence, "edited, sent", "gsg") == "-++"  # any one


def test_a_mark_is_older_than_another(fence: Fence, ground: Path) -> None:
    """What was allowed before sets its mark again: it is never remembered."""
    bench = Bench(ground)
    assert bench.run(fence, "tested since edited", "gtgegtgttgeeg") == "-+++-++++++" + "+-"
    assert bench.run(fence, "edited since tested", "gegtgeg") == "-+++-++"


def test_of_one_open_both_operations_set_their_marks(fence: Fence, ground: Path) -> None:
    bench = Bench(ground)
    assert bench.run(fence, "tested", "gbg") == "-++"
    assert bench.run(fence, "edited", "gbg") == "-++"
    assert bench.run(fence, "tested since edited", "tgbg") == "+++-"  # at once is not since


def test_what_is_denied_sets_no_mark(fence: Fence, tier: Tier, ground: Path, secret: Path) -> None:
    rules = (
        f'  - {{id: tested, on: read, paths: ["{ground}/**"], action: allow, marks: [tested]}}\n'
        f'  - {{id: closed, on: write, paths: ["{ground}/**"], action: deny}}\n'
        f"  - {{id: gate, on: connect, cidrs: [127.0.0.9], except: {{requires: tested}}, action: deny}}\n"
    )

    def both() -> None:
        os.close(os.open(secret, os.O_RDWR))

    outcome = fence.run(rules, lambda: [in_child(act) for act in (both, send, read_once(secret), send)])
    assert outcome.value == [blocked(tier), (errno.EPERM, 0), (0, 0), (0, 0)]


def test_no_push_unless_the_tests_passed(fence: Fence, tier: Tier, program: Program, ground: Path) -> None:
    """The operator's wrapper writes a file when all went well; nobody else does, also not the tests that it runs."""
    wrapper, file = program("passed"), ground / "passed"
    file.touch()
    sh = os.path.realpath("/bin/sh")
    with socket.create_server(("127.0.0.1", 0)) as ear:
        ear.setblocking(False)
        port = ear.getsockname()[1]

        def tests(script: str) -> Callable[[], object]:
            words = [os.fspath(w) for w in (wrapper, file, sh, "-c", script)]
            return lambda: os.execv(words[0], words)

        def push() -> None:
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.send(b"commits")

        def pushed() -> bool:
            with contextlib.suppress(BlockingIOError), ear.accept()[0] as sock:
                return sock.recv(10) == b"commits"
            return False

        def body(*steps: Callable[[], object]) -> Callable[[], list[tuple[int, int]]]:
            return lambda: [in_child(step) for step in (*steps, push)]

        rules = (
            f'  - {{id: passed, on: [write, create], paths: ["{file}"], exe: ["{wrapper}"], action: allow,'
            " marks: [passed]}\n"
            f'  - {{id: nobody-else, on: [write, create, delete, rename], paths: ["{file}"],'
            f' except: {{exe: ["{wrapper}"]}}, action: deny}}\n'
            f"  - {{id: push, on: [connect, send], cidrs: ['127.0.0.1:{port}'], except: {{requires: [passed]}},"
            " action: deny}\n"
        )

        def write() -> None:
            os.write(os.open(file, os.O_WRONLY), b"+")

        ways = {
            "nothing": (),
            "failure": (tests("exit 1"),),
            "death": (tests("kill -9 $$"),),
            "written by the agent": (write,),
            "written by tests that fail": (tests(f"(echo + >{file}); exit 1"),),
        }
        for way, steps in ways.items():
            assert fence.run("  []\n", body(*steps)).value[-1] == (0, 0), way
            assert pushed(), way
            file.write_bytes(b"")
            assert fence.run(rules, body(*steps)).value[-1] == (errno.EPERM, 0), way
            assert not pushed(), way
            # react: the shell's O_TRUNC has happened when it dies
            assert file.read_bytes() == b"", way
        assert fence.run(rules, body(tests("exit 0"))).value == [(0, 0), (0, 0)]
        assert pushed()
        assert file.read_bytes() == b"+"


def test_marks_are_of_one_session(fence: Fence, ground: Path) -> None:
    bench = Bench(ground)
    with fence.session(bench.rules("tested")) as other:
        assert other.run(lambda: in_child(lambda: os.close(os.open(ground / "test", os.O_RDONLY)))).value == (0, 0)
        assert bench.run(fence, "tested", "g") == "-"
        assert other.run(lambda: in_child(read_once(ground / "secret"))).value == (0, 0)
    assert bench.run(fence, "tested", "g") == "-"


@pytest.mark.tier("lsm")
def test_a_guarded_operation_sets_a_mark(fence: Fence, secret: Path) -> None:
    rules = (
        "  - {id: jail, on: chroot, action: allow, marks: [jailed]}\n"
        f'  - {{id: gate, on: read, paths: ["{secret}"], except: {{requires: jailed}}, action: deny}}\n'
    )
    outcome = fence.run(
        rules, lambda: [in_child(act) for act in (read_once(secret), lambda: os.chroot("/"), read_once(secret))]
    )
    assert outcome.value == [(errno.EPERM, 0), (0, 0), (0, 0)]


def rated(secret: Path, rate: str) -> str:
    """Nothing may be written but one file, so often."""
    default = ALLOW_ALL.replace("write: allow", "write: deny")
    rule = f'{{id: some, on: write, paths: ["{secret}"], when: {{rate: {rate}}}, action: allow}}'
    return f"policy: t\n{default}rules:\n  - {rule}\n"


def append(path: Path) -> Callable[[], object]:
    """Opens it to write, in a child."""
    return lambda: os.close(os.open(path, os.O_WRONLY))


def test_a_rule_lets_through_so_many_and_no_more(fence: Fence, tier: Tier, secret: Path) -> None:
    outcome = fence.run(rated(secret, "3/day"), lambda: [in_child(append(secret)) for _ in range(5)])
    assert outcome.value == [(0, 0)] * 3 + [blocked(tier)] * 2
    assert outcome.told() == [("write", "deny", "")] * 2


def test_each_session_has_its_own_rate(fence: Fence, tier: Tier, secret: Path) -> None:
    with fence.session(rated(secret, "1/day")) as first, fence.session(rated(secret, "1/day")) as second:
        for session in (first, second):
            assert session.run(lambda: in_child(append(secret))).value == (0, 0)
        assert first.run(lambda: in_child(append(secret))).value == blocked(tier)


def test_what_is_used_up_comes_back_with_time(fence: Fence, tier: Tier, secret: Path) -> None:
    def body() -> tuple[float, set[tuple[int, int]]]:
        start, passed, others = time.monotonic(), 0, set()
        while passed < 3:
            came = in_child(append(secret))
            passed += came == (0, 0)
            others |= {came} - {(0, 0)}
        return time.monotonic() - start, others

    took_s, others = fence.run(rated(secret, "1/s"), body).value
    assert took_s >= 2
    assert others <= {blocked(tier)}


def test_connections_have_a_rate(fence: Fence) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        default = ALLOW_ALL.replace("connect: allow", "connect: deny")
        rule = f'{{id: some, on: connect, cidrs: ["{host}:{port}"], when: {{rate: 2/h}}, action: allow}}'

        def connect() -> None:
            socket.create_connection((host, port)).close()

        outcome = fence.run(f"policy: t\n{default}rules:\n  - {rule}\n", lambda: [attempt(connect) for _ in range(4)])
    assert outcome.value == [0, 0, errno.EPERM, errno.EPERM]


def test_what_goes_out_on_a_connection_uses_no_rate(fence: Fence) -> None:
    """It takes no rule on `send` either."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        default = ALLOW_ALL.replace("connect: allow", "connect: deny").replace("send: allow", "send: deny")
        rule = f'{{id: some, on: connect, cidrs: ["{host}:{port}"], when: {{rate: 1/h}}, action: allow}}'

        def talk() -> int:
            with socket.create_connection((host, port)) as sock:
                return sum(sock.send(b"x") for _ in range(5))

        outcome = fence.run(f"policy: t\n{default}rules:\n  - {rule}\n", lambda: [talk(), attempt(talk)])
    assert outcome.value == [5, errno.EPERM]


@pytest.mark.parametrize("linked", [False, True])
def test_a_script_uses_its_rate_once(fence: Fence, tier: Tier, ground: Path, linked: bool) -> None:
    script = ground / "deploy"
    script.write_text("#!/bin/sh\necho done\n")
    script.chmod(0o755)
    name = script
    if linked:
        name = ground / "link"
        name.symlink_to(script)
    shell = os.path.realpath("/bin/sh")
    text = (
        f"policy: t\n{ALLOW_ALL.replace('exec: allow', 'exec: deny')}rules:\n"
        f'  - {{id: shell, on: exec, paths: ["{shell}"], action: allow}}\n'
        f'  - {{id: link, on: exec, paths: ["{ground}/link"], action: allow}}\n'
        f'  - {{id: some, on: exec, paths: ["{script}"], when: {{rate: 2/day}}, action: allow}}\n'
    )
    with fence.session(text) as session:
        assert [session.run([name]).value for _ in range(3)] == [b"done\n", b"done\n", b""]


def test_a_name_that_leads_elsewhere_sets_no_mark(fence: Fence, ground: Path) -> None:
    """The script that is run is judged, not the name that it goes by."""
    trusted = ground / "trusted"
    trusted.mkdir()
    evil, secret = ground / "evil", ground / "secret"
    evil.write_text("#!/bin/sh\n")
    evil.chmod(0o755)
    secret.write_bytes(SECRET)
    text = (
        f'  - {{id: tests, on: exec, paths: ["{trusted}/**"], action: allow, marks: [tested]}}\n'
        f'  - {{id: evil, on: exec, paths: ["{evil}"], action: deny}}\n'
        f'  - {{id: gate, on: read, paths: ["{secret}"], except: {{requires: [tested]}}, action: deny}}\n'
    )

    def body() -> list[tuple[int, int]]:
        name = f"{trusted}/../evil"
        return [in_child(lambda: os.execv(name, [name])), in_child(read_once(secret))]

    assert all(outcome != (0, 0) for outcome in fence.run(text, body).value)


def test_under_another_policy_the_rate_begins_anew(fence: Fence, tier: Tier, secret: Path) -> None:
    with fence.session(rated(secret, "1/day")) as session:
        tries = [session.run(lambda: in_child(append(secret))).value for _ in range(2)]
        session.swap(load_text(rated(secret, "2/day"), "t.yaml"))
        tries += [session.run(lambda: in_child(append(secret))).value for _ in range(3)]
    assert tries == [(0, 0), blocked(tier), (0, 0), (0, 0), blocked(tier)]
