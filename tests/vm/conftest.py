# SPDX-License-Identifier: Apache-2.0
"""Boots what the selected tests need, as many guests at a time as `AGENTMON_VM_JOBS` says, each once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

Boots = Callable[[str], Any]
#: What each guest took, to be told at the end: that is where the time of all tests goes.
_TOOK = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def _boots(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[Any]]]:
    """What each module's ``boot(name)`` returns, by module and name; the name is the parameter ``kernel``."""
    if os.geteuid():
        pytest.skip("guests are built and run as root")
    running: dict[tuple[str, str], Future[Any]] = {}
    # one after the other in their order, the longest first; the harness counts the guests of others too
    with ThreadPoolExecutor(max_workers=max(1, int(os.environ.get("AGENTMON_VM_JOBS") or 1))) as pool:
        for item in request.session.items:
            module = getattr(item, "module", None)
            if hasattr(module, "boot") and isinstance(item, pytest.Function):
                name = item.callspec.params.get("kernel", "") if hasattr(item, "callspec") else ""
                key = (module.__name__, name)
                if key not in running:
                    running[key] = pool.submit(module.boot, name)
        yield running


@pytest.fixture
def booted(request: pytest.FixtureRequest, _boots: dict[tuple[str, str], Future[Any]]) -> Boots:
    """The result of this module's ``boot``; its exceptions are raised here."""

    def result(name: str = "") -> Any:
        found = _boots[request.module.__name__, name].result()
        if hasattr(request.module, "took") and not isinstance(found, str):
            request.config.stash.setdefault(_TOOK, {})[name] = request.module.took(found)
        return found

    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How long the tests took inside of each guest."""
    for name, line in config.stash.get(_TOOK, {}).items():
        terminalreporter.write_line(f"guest {name}: {line}")
