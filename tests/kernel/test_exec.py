# SPDX-License-Identifier: Apache-2.0
"""A program that a policy forbids does not run, however it is started."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.events import Flag
from agentmon.model.operations import Action, Operation, Reason, Tier
from tests.support.fence import Fence, Outcome, blocked, in_child, object_path

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
    assert fence.run("  []\n", words).value == SECRET
    outcome = fence.run(deny(tool), words)
    assert refused(outcome, tier)
    assert outcome.told() == [("exec", "deny", "fence")]
    assert object_path(outcome.decisions[-1]) == os.fsencode(tool)


def test_a_denied_program_does_not_run_from_another_thread(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path
) -> None:
    words = [program("exec_thread"), tool, secret]
    assert fence.run("  []\n", words).value == SECRET
    outcome = fence.run(deny(tool), words)
    assert refused(outcome, tier)
    assert outcome.told() == [("exec", "deny", "fence")]


def test_a_symlink_does_not_hide_a_program(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path
) -> None:
    link = tool.with_name("harmless")
    link.symlink_to(tool)
    outcome = fence.run(deny(tool), [program("spawn"), "fork", link, secret])
    assert refused(outcome, tier)
    assert object_path(outcome.decisions[-1]) == os.fsencode(tool)


def test_a_hard_link_does_not_hide_a_program_named_exactly(
    fence: Fence, tier: Tier, program: Program, tool: Path, secret: Path
) -> None:
    link = tool.with_name("harmless")
    link.hardlink_to(tool)
    outcome = fence.run(deny(tool), [program("spawn"), "fork", link, secret])
    assert refused(outcome, tier)
    assert outcome.decisions[-1].flags & Flag.PINNED


def test_execveat_of_a_descriptor_is_judged(fence: Fence, tier: Tier, tool: Path, secret: Path) -> None:
    fd = os.open(tool, os.O_RDONLY)
    try:
        words = [str(tool), str(secret)]
        outcome = fence.run(deny(tool), lambda: os.execve(fd, words, {}))
    finally:
        os.close(fd)
    assert outcome.stopped(tier)
    assert outcome.told() == [("exec", "deny", "fence")]


def test_a_script_is_judged_by_its_own_path(fence: Fence, tier: Tier, program: Program, ground: Path) -> None:
    script = ground / "script"
    script.write_text(f"#!{program('show')}\n{SECRET.decode()}")
    script.chmod(0o755)
    words = [program("spawn"), "fork", script]
    assert SECRET in fence.run("  []\n", words).value
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
    outcome = fence.run(deny(script), lambda: in_child(lambda: os.execv(names.get(way, str(other)), ["script"])))
    assert outcome.value != 0
    assert not proof.exists()
    assert any(d.verdict is Action.DENY and d.object == os.fsencode(script) for d in outcome.decisions)


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
    """A memfd has no place in the tree: the severest verdict of exec that the policy has."""

    def body() -> None:
        fd = os.memfd_create("x")
        os.write(fd, tool.read_bytes())
        os.execve(fd, ["x", str(secret)], {})

    outcome = fence.run(deny("/nonexistent"), body)
    assert outcome.stopped(tier)
    last = outcome.decisions[-1]
    assert (last.operation, last.verdict, last.reason) == (Operation.EXEC, Action.DENY, Reason.PATH_UNREACHABLE)
