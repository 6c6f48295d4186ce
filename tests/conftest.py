# SPDX-License-Identifier: Apache-2.0
"""What all tests share: required kinds, the tier under test, the C programs.

``AGENTMON_REQUIRE=kernel,vm`` turns the skips of ``tests/kernel`` and ``tests/vm`` into failures, except those
whose reason begins with ``not required:``. ``AGENTMON_TEST_TIER`` is ``lsm`` or ``react``; without it the tier
is the one that this host's kernel allows.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeVar

import pytest

from agentmon.kernel.objects import choose_tier
from agentmon.model.operations import Tier

TESTS = Path(__file__).parent
OBJECTS = TESTS.parent / "agentmon" / "kernel" / "objects"
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
REQUIRED = frozenset(filter(None, os.environ.get("AGENTMON_REQUIRE", "").split(",")))


@functools.cache
def _tier() -> Tier:
    asked = os.environ.get("AGENTMON_TEST_TIER")
    if asked:
        return Tier[asked.upper()]
    if os.geteuid() or not (OBJECTS / "manifest.json").exists():
        return Tier.REACT  # kernel tests are skipped then, with a reason
    # The list of active modules is not enough: some hosts name bpf there and refuse its programs.
    return choose_tier()[0]


def _kind(path: Path) -> str:
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    return parts[0] if parts else ""


@pytest.fixture(scope="session")
def tier() -> Tier:
    """The tier under test on this host."""
    return _tier()


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """The path of a static C program by its name in ``tests/programs``, without ``.c``."""
    from tests import programs

    folder = programs.build()

    def find(name: str) -> Path:
        path = folder / name
        assert path.exists(), f"no program `{name}`: add tests/programs/{name}.c, or install gcc"
        return path

    return find


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the other tier are left out, not skipped: nothing is missing."""
    here = _tier().name.lower()
    kept, out = [], []
    for item in items:
        mark = item.get_closest_marker("tier")
        (kept if mark is None or here in mark.args else out).append(item)
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Kernel tests say what they lack."""
    if _kind(item.path) == "kernel":
        if os.geteuid():
            pytest.skip("loading BPF programs needs root")
        if not Path("/sys/kernel/btf/vmlinux").exists():
            pytest.skip("this kernel has no BTF (/sys/kernel/btf/vmlinux)")
        if not (OBJECTS / "manifest.json").exists():
            pytest.skip("no BPF objects: run `./dev build`")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip of a required kind is a failure."""
    return _judge((yield), item.path)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """So is a skip of a whole file."""
    return _judge((yield), collector.path)


def _judge(report: Report, path: Path) -> Report:
    if report.skipped and not hasattr(report, "wasxfail") and _kind(path) in REQUIRED:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith("not required:"):
            report.outcome = "failed"
            report.longrepr = f"required by AGENTMON_REQUIRE, but skipped: {reason.removeprefix('Skipped: ')}"
    return report
