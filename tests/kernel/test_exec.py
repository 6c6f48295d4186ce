# SPDX-License-Identifier: Apache-2.0
"""A program that a policy forbids does not run, however it is started."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.events import Flag
from agentmon.model.operations import Action, Operation, Reason, Tier
from tests.support.fence import Fence, Outcome, attempt, blocked, in_child, object_path

Program = Callable[[str], Path]
SECRET = b"the content\n"


@pytest.fixture
def secret(ground: Path) -> Path:
    path = ground / "secret"
    path.write_bytes(SECRET)
    return path


def deny(path: Path | str) -> str:
    """One rule."""
    return f'  - {{id: fence, on: exec, paths: ["{path}"], action: deny}}\n'


@pytest.fixture
def tool(ground: Path, program: Program) -> Path:
    """A program that prints the secret."""
    path = ground / "tool"
    path.write_bytes(program("show").read_bytes())
    path.chmod(0o755)
    return path


def refused(outcome: Outcome, tier: Tier) -> bool:
    """A run inside `spawn` or `exec_thread` that did not happen: 126 is its answer to EPERM."""
    return SECRET not in outcome.value and (
        outcome.status in (1, 126) if tier is Tier.LSM else outcome.status in (128 + signal.SIGKILL, -signal.SIGKILL)
    )


@pytest.mark.parametrize("how", ["fork", "vfork", "thread", "clone3"])
def test_a_denied_program_does_not_run(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path, how: str
) -> None:
    words = [program("spawn"), how, tool, secret]
    assert fence.without(words).value == SECRET
    outcome = fence.run(deny(tool), words)
    assert refused(outcome, tier)
    assert outcome.told() == [("exec", "deny", "fence")]
    assert object_path(outcome.decisions[-1]) == os.fsencode(tool)


def test_a_denied_program_does_not_run_from_another_thread(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path
) -> None:
    words = [program("exec_thread"), tool, secret]
    assert fence.without(words).value == SECRET
    outcome = fence.run(deny(tool), words)
    assert refused(outcome, tier)
    assert outcome.told() == [("exec", "deny", "fence")]


def test_a_symlink_does_not_hide_a_program(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path
) -> None:
    link = tool.with_name("harmless")
    link.symlink_to(tool)
    words = [program("spawn"), "fork", link, secret]
    assert fence.without(words).value == SECRET
    outcome = fence.run(deny(tool), words)
    assert refused(outcome, tier)
    assert object_path(outcome.decisions[-1]) == os.fsencode(tool)


def test_a_hard_link_does_not_hide_a_program_named_exactly(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path
) -> None:
    link = tool.with_name("harmless")
    link.hardlink_to(tool)
    words = [program("spawn"), "fork", link, secret]
    assert fence.without(words).value == SECRET
    outcome = fence.run(deny(tool), words)
    assert refused(outcome, tier)
    assert outcome.decisions[-1].flags & Flag.PINNED


def shown(start: Callable[[], object]) -> tuple[bytes, int]:
    """What the program printed that `start` made of a child, and how that ended: its status, or minus a signal."""
    end, begin = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(begin, 1)
        os._exit(attempt(start))
    os.close(begin)
    return os.read(end, 100), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def nothing_shown(tier: Tier) -> tuple[bytes, int]:
    """What `shown` returns of a denied program."""
    return b"", errno.EPERM if tier is Tier.LSM else -signal.SIGKILL


def test_execveat_of_a_descriptor_is_judged(fence: Fence, tier: Tier, tool: Path, secret: Path) -> None:
    fd = os.open(tool, os.O_RDONLY)

    def body() -> tuple[bytes, int]:
        return shown(lambda: os.execve(fd, [tool, secret], {}))

    try:
        assert fence.without(body).value == (SECRET, 0)
        outcome = fence.run(deny(tool), body)
    finally:
        os.close(fd)
    assert outcome.value == nothing_shown(tier)
    assert outcome.told() == [("exec", "deny", "fence")]


def test_a_script_is_judged_by_its_own_path(fence: Fence, tier: Tier, program: Program, ground: Path) -> None:
    script = ground / "script"
    script.write_text(f"#!{program('show')}\n{SECRET.decode()}")
    script.chmod(0o755)
    words = [program("spawn"), "fork", script]
    assert SECRET in fence.without(words).value
    outcome = fence.run(deny(script), words)
    assert refused(outcome, tier)
    assert outcome.told()[0] == ("exec", "deny", "fence")
    outcome = fence.run(deny(program("show")), words)  # and by its interpreter's
    assert refused(outcome, tier)
    assert object_path(outcome.decisions[-1]) == os.fsencode(program("show"))


@pytest.mark.parametrize("way", ["symlink", "dots", "slashes", "env"])
def test_a_script_by_another_name_does_not_run(fence: Fence, tier: Tier, ground: Path, way: str) -> None:
    script, other, proof = ground / "script", ground / "other", ground / "proof"
    script.write_text(f"#!{'/usr/bin/env sh' if way == 'env' else '/bin/sh'}\n: > {proof}\n")
    script.chmod(0o755)
    other.symlink_to(script)
    (ground / "sub").mkdir()
    names = {"dots": f"{ground}/sub/../script", "slashes": f"{ground}//script"}

    def body() -> tuple[int, int]:
        return in_child(lambda: os.execv(names.get(way, str(other)), ["script"]))

    assert fence.without(body).value == (0, 0)
    assert proof.exists()
    proof.unlink()
    outcome = fence.run(deny(script), body)
    assert outcome.value != (0, 0)
    assert not proof.exists()
    assert any(d.verdict is Action.DENY and d.object == os.fsencode(script) for d in outcome.decisions)


@pytest.mark.tier("lsm")
def test_a_script_without_an_interpreter_is_judged_before_the_kernel_refuses_it(fence: Fence, ground: Path) -> None:
    """The shell reads such a file itself, but only after ENOEXEC. In the react tier there is no such moment."""
    script, proof = ground / "script", ground / "proof"
    script.write_text(f": > {proof}\n")
    script.chmod(0o755)
    words = ["/bin/sh", "-c", f"{script}; :"]
    fence.without(words)
    assert proof.exists()
    proof.unlink()
    outcome = fence.run(deny(script), words)
    assert ("exec", "deny", "fence") in outcome.told()
    assert not proof.exists()


def test_a_script_named_relative_to_its_directory_is_judged(
    fence: Fence, tier: Tier, program: Program, ground: Path
) -> None:
    script = ground / "script"
    script.write_text(f"#!{program('show')}\n{SECRET.decode()}")
    script.chmod(0o755)

    def body() -> tuple[int, int]:
        os.chdir(ground)
        return in_child(lambda: os.execv("./script", ["script"]))

    outcome = fence.run(deny(script), body)
    assert outcome.value == blocked(tier)
    assert object_path(outcome.decisions[-1 if tier is Tier.LSM else -2]) == os.fsencode(script)


def test_a_program_without_a_path_is_refused(fence: Fence, tier: Tier, tool: Path, secret: Path) -> None:
    """A memfd has no place in the tree: `anon_exec`."""

    def body() -> tuple[bytes, int]:
        fd = os.memfd_create("x")
        os.write(fd, tool.read_bytes())
        return shown(lambda: os.execve(fd, ["x", str(secret)], {}))

    assert fence.without(body).value == (SECRET, 0)
    anonymous = "  - {id: anonymous, on: anon_exec, action: deny}\n"
    outcome = fence.run(deny("/nonexistent") + anonymous, body)
    assert outcome.value == nothing_shown(tier)
    last = outcome.decisions[-1]
    assert (last.operation, last.verdict, last.reason) == (Operation.ANON_EXEC, Action.DENY, Reason.RULE)
