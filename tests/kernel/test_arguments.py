# SPDX-License-Identifier: Apache-2.0
"""Rules on the arguments of a program: read where the program will read them, before it does."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agentmon.model.events import Flag
from tests.support.fence import ALLOW_ALL, Fence, Outcome, attempt, in_child

LONG = "x" * 100_000


@pytest.fixture
def git(ground: Path) -> Path:
    """A program that prints its arguments."""
    return Path(shutil.copy("/bin/echo", ground / "git"))


def script(path: Path, first_line: str) -> Path:
    """A script that prints its arguments, which is opened and read like any."""
    path.write_text(f'{first_line}\necho "$@"\n')
    path.chmod(0o755)
    return path


def rule(program: Path | str, argv: Sequence[str], action: str = "deny") -> str:
    words = ", ".join(f"'{word}'" for word in argv)
    return f'  - {{id: argv, on: exec, exe: ["{program}"], argv: [{words}], action: {action}}}\n'


def stopped(outcome: Outcome) -> bool:
    """Whether it was killed before it did anything, and that was told with its rule."""
    blocked = outcome.status == -signal.SIGKILL and outcome.value == b""
    assert blocked == (outcome.told() == [("exec", "deny", "argv")])
    return blocked


@pytest.mark.parametrize(
    ("pattern", "argv", "matches"),
    [
        (["push", "**"], ["push"], True),
        (["push", "**"], ["push", "origin", "main"], True),
        (["push", "**"], ["push", LONG], True),
        (["push", "**"], ["pull"], False),
        (["push", "**"], ["pushy"], False),
        (["push", "**"], ["-C", "elsewhere", "push"], False),
        (["push", "**"], [], False),
        (["**", "--force", "**"], ["push", "--force"], True),
        (["**", "--force", "**"], ["--force", "x"], True),
        (["**", "--force", "**"], [LONG, LONG, "--force"], True),
        (["**", "--force", "**"], [LONG, LONG], False),
        (["**", "--force", "**"], ["--force=yes", "x--force"], False),
        ([], [], True),
        ([], ["x"], False),
        (["*"], [""], True),
        (["*"], ["a/b"], True),
        (["*"], ["a", "b"], False),
        (["a/b"], ["a/b"], True),
        (["a/b"], ["a", "b"], False),
        (["--to={/etc,/usr}/*"], ["--to=/usr/lib/x"], True),
        (["--to={/etc,/usr}/*"], ["--to=/home/lib/x"], False),
        (["?[!x]"], ["a/"], True),
        (["?[!x]"], ["ax"], False),
        (["[!a]*"], ["/etc/passwd"], True),
        (["[!/]*"], ["/etc/passwd"], False),
        (["[.-9]x"], ["/x"], True),
        (["x" * 2047], ["x" * 2047], True),
        (["x" * 2048], ["x" * 2048], True),
        (["x" * 2048], ["x" * 2047], False),
    ],
    ids=lambda value: None if isinstance(value, bool) else " ".join(value)[:20],
)
def test_a_program_is_stopped_by_its_arguments(
    fence: Fence, git: Path, pattern: list[str], argv: list[str], matches: bool
) -> None:
    printed = " ".join(argv).encode() + b"\n"
    assert fence.without([git, *argv]).value == printed
    outcome = fence.run(rule(git, pattern), [git, *argv])
    assert stopped(outcome) == matches
    if not matches:
        assert outcome.value == printed


def test_what_is_not_allowed_with_its_arguments_is_stopped(fence: Fence, git: Path) -> None:
    policy = (
        f"policy: t\n{ALLOW_ALL.replace('exec: allow', 'exec: deny')}rules:\n{rule(git, ['status', '**'], 'allow')}"
    )
    assert fence.run(policy, [git, "status", "-s"]).value == b"status -s\n"
    outcome = fence.run(policy, [git, "push"])
    assert (outcome.status, outcome.value) == (-signal.SIGKILL, b"")
    assert outcome.told() == [("exec", "deny", "")]


def test_a_hole_for_some_arguments(fence: Fence, git: Path) -> None:
    text = f'  - {{id: argv, on: exec, exe: ["{git}"], action: deny, except: {{argv: ["status"]}}}}\n'
    assert not stopped(fence.run(text, [git, "status"]))
    assert stopped(fence.run(text, [git, "status", "-s"]))


def test_more_than_can_be_looked_at_counts_as_what_is_forbidden(fence: Fence, git: Path) -> None:
    words = [git, LONG, LONG, LONG]
    assert len(fence.without(words).value) == 3 * (len(LONG) + 1)
    outcome = fence.run(rule(git, ["**", "--force"]), words)
    assert stopped(outcome)
    assert [d.flags & Flag.UNSURE for d in outcome.decisions if d.verdict.blocks] == [Flag.UNSURE]


def test_the_name_that_a_program_is_given_is_no_argument(fence: Fence, git: Path) -> None:
    def body() -> tuple[int, int]:
        return in_child(lambda: os.execv(git, ["push", "pull"]))

    assert fence.without(body).value == (0, 0)
    assert fence.run(rule(git, ["push", "**"]), body).value == (0, 0)


@pytest.mark.parametrize("first_line", ["#!/bin/sh", "#!/bin/sh -e"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_script_is_stopped_by_its_own_arguments(fence: Fence, ground: Path, first_line: str, linked: bool) -> None:
    deploy = script(ground / "deploy", first_line)
    name = deploy
    if linked:
        name = ground / "link"
        name.symlink_to(deploy)
    policy = rule(deploy, ["push", "**"])
    assert stopped(fence.run(policy, [name, "push", "x"]))
    assert fence.run(policy, [name, "pull", "push"]).value == b"pull push\n"
    assert fence.run(policy, [name]).value == b"\n"


def test_a_script_of_a_script_is_stopped_by_its_own_arguments(fence: Fence, ground: Path) -> None:
    outer = script(ground / "outer", "#!/bin/sh")
    outer.write_text('#!/bin/sh\nshift\necho "$@"\n')
    inner = script(ground / "inner", f"#!{outer}")
    policy = rule(inner, ["push"])
    assert stopped(fence.run(policy, [inner, "push"]))
    assert fence.run(policy, [inner, "pull"]).value == b"pull\n"


def test_an_interpreter_is_stopped_by_the_script_that_it_is_given(fence: Fence, ground: Path) -> None:
    deploy = script(ground / "deploy", "#!/bin/sh")
    policy = rule(os.path.realpath("/bin/sh"), ["*/deploy", "push"])
    assert stopped(fence.run(policy, [deploy, "push"]))
    assert stopped(fence.run(policy, [Path("/bin/sh"), deploy, "push"]))
    assert fence.run(policy, [deploy, "pull"]).value == b"pull\n"


@pytest.mark.parametrize("what", ["text", "pointer"])
def test_arguments_rewritten_during_the_call_are_judged_as_the_program_gets_them(
    fence: Fence, program: Callable[[str], Path], git: Path, what: str
) -> None:
    """`push` is there when the kernel reads them: not when they are handed over, or not any more when that is done."""
    words = [program("rewriter"), f"exec_{what}", git, "pull", "push"]
    plain = fence.without(words)
    if plain.value.startswith(b"no userfaultfd"):
        pytest.skip("not required: this kernel has no userfaultfd(2)")
    assert plain.value == b"push\n" * 2
    outcome = fence.run(rule(git, ["push", "**"]), words)
    assert (outcome.status, outcome.value) == (0, b"")
    assert outcome.told() == [("exec", "deny", "argv")] * 2
    assert fence.run(rule(git, ["pull", "**"]), words).value == b"push\n" * 2


def test_threads_that_start_programs_at_once_are_not_taken_for_each_other(fence: Fence, git: Path) -> None:
    """Of two threads that exec, one wins: it is judged by what it starts, not by what the other would have."""
    count = 30

    def contest(first: str, second: str) -> None:
        ready = threading.Barrier(2)

        def start(word: str) -> None:
            ready.wait()
            os.execv(git, [git, word])

        threading.Thread(target=start, args=(first,)).start()
        start(second)

    def body() -> list[bytes]:
        seen = []
        for i in range(count):
            out, into = os.pipe()
            if not (pid := os.fork()):
                os.dup2(into, 1)
                contest(*(("push", "pull") if i % 2 else ("pull", "push")))
            os.close(into)
            seen.append(os.read(out, 100))
            os.close(out)
            os.waitpid(pid, 0)
        return seen

    assert {b"push\n"} <= set(fence.without(body).value)
    assert set(fence.run(rule(git, ["push", "**"]), body).value) <= {b"pull\n", b""}


def test_a_rule_that_is_only_observed_is_told_the_arguments(fence: Fence, git: Path) -> None:
    """Also after the same program ran with others."""
    text = rule(git, ["push", "**"]).replace("action: deny", "action: deny, mode: observe")
    with fence.session(text) as session:
        facts = []
        for word in ("status", "push", "status", "push"):
            outcome = session.run([git, word])
            assert outcome.value == f"{word}\n".encode()
            facts += [d.facts for d in outcome.decisions if d.object == os.fsencode(git)]
    assert facts == [0, 1]


def test_a_session_whose_programs_fail_half_way_takes_no_place_from_others(
    fence: Fence, ground: Path, git: Path
) -> None:
    broken = ground / "broken"
    broken.write_bytes(b"no program\n")
    broken.chmod(0o755)

    def fail(count: int) -> list[int]:
        """So many threads that all tried, and live."""
        told: list[int] = []
        done = threading.Event()

        def start() -> None:
            told.append(attempt(lambda: os.execv(broken, [broken, "push"])))
            done.wait()

        threads = [threading.Thread(target=start) for _ in range(count)]
        for thread in threads:
            thread.start()
        while len(told) < count:
            time.sleep(0.01)
        os.write(begun[1], b"!")
        os.read(over[0], 1)
        done.set()
        return sorted(set(told))

    begun, over = os.pipe(), os.pipe()
    with fence.session(rule("**", ["push", "**"])) as greedy, fence.session(rule(git, ["push", "**"])) as other:
        child = greedy.start(lambda: fail(300))
        os.read(begun[0], 1)
        try:
            assert other.run([git, "status"]).value == b"status\n"
            assert other.run([git, "push"]).status == -signal.SIGKILL
        finally:
            os.write(over[1], b"!")
        assert set(greedy.finish(child).value) <= {errno.ENOEXEC, errno.EPERM}
