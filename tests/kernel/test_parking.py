# SPDX-License-Identifier: Apache-2.0
"""Freezing processes one by one, and bringing them back to where they were."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from agentmon.host import process
from agentmon.host.parking import IDLE_S, Parking, ParkingError, empty, lots
from agentmon.kernel.host import cgroup2_root
from agentmon.model.events import ProcessKey
from tests.support.hosts import wait_for

NAME = "agentmon-held-test"
#: Says how often it went round; a line on standard input makes it start a child that does nothing.
SCRIPT = """
import os, select, subprocess, sys, time
n, out = 0, os.open(sys.argv[1], os.O_WRONLY)
while True:
    if select.select([0], [], [], 0.01)[0]:
        os.read(0, 1)
        print(subprocess.Popen(["sleep", "1000"]).pid, flush=True)
    n += 1
    os.pwrite(out, b"%9d" % n, 0)
"""


class Runner:
    """A process that goes round and round in a cgroup of its own."""

    def __init__(self, home: Path, counter: Path) -> None:
        self.home, self.counter = home, counter
        counter.write_text("0")
        words = [sys.executable, "-c", SCRIPT, str(counter)]
        self.popen = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        (home / "cgroup.procs").write_text(str(self.popen.pid))
        ticks = process.stat(self.popen.pid).start_ticks
        self.key = ProcessKey(self.popen.pid, ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"))
        self.goes_on()

    def child(self) -> int:
        """A child that it starts now."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(b"!")
        self.popen.stdin.flush()
        return int(self.popen.stdout.readline())

    def goes_on(self) -> None:
        """Returns once it has gone round twice more."""
        now = int(self.counter.read_text())
        wait_for(lambda: int(self.counter.read_text()) > now + 1, "it to go on")

    @property
    def where(self) -> Path:
        return cgroup_of(self.popen.pid)


def cgroup_of(pid: int) -> Path:
    return cgroup2_root() / process.cgroup(pid).lstrip("/")


def lot_of(home: Path, pid: int) -> Path:
    return home / f"{NAME}-{pid}"


def is_frozen(cgroup: Path) -> bool:
    return "frozen 1" in (cgroup / "cgroup.events").read_text()


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    home = cgroup2_root() / f"agentmon-test-{os.getpid()}"
    home.mkdir()
    runner = Runner(home, tmp_path / "counter")
    yield runner
    (home / "cgroup.kill").write_text("1")
    runner.popen.communicate()
    wait_for(lambda: "populated 0" in (home / "cgroup.events").read_text(), "all to end")
    for lot in lots(home, NAME):
        lot.rmdir()
    home.rmdir()


def alone(_key: ProcessKey, pids: Collection[int]) -> bool:
    """One more in the same unit is somebody else."""
    return len(pids) == 1


@pytest.fixture
def now() -> list[float]:
    return [100.0]


@pytest.fixture
def parking(now: list[float]) -> Parking:
    return Parking(cgroup2_root(), NAME, alone, lambda: now[0])


def test_it_is_frozen_below_its_own_cgroup_and_comes_back(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    assert runner.where == lot_of(runner.home, runner.key.pid)
    wait_for(lambda: is_frozen(runner.where), "it to freeze")
    parking.leave(runner.key)
    assert runner.where == runner.home
    runner.goes_on()
    assert lots(runner.home, NAME) == []


def test_whom_somebody_thaws_is_frozen_again(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    wait_for(lambda: is_frozen(runner.where), "it to freeze")
    (runner.where / "cgroup.freeze").write_text("0")
    runner.goes_on()
    parking.sweep()
    wait_for(lambda: is_frozen(runner.where), "it to freeze again")


def test_it_goes_on_at_once_and_is_brought_back_when_it_was_not_held_again(
    runner: Runner, parking: Parking, now: list[float]
) -> None:
    parking.park(runner.key)
    parking.unpark(runner.key)
    runner.goes_on()
    lot = runner.where
    now[0] += IDLE_S / 2
    parking.sweep()
    parking.park(runner.key)
    assert runner.where == lot
    wait_for(lambda: is_frozen(lot), "it to freeze")
    now[0] += 2 * IDLE_S
    parking.sweep()  # it is held, however long
    assert runner.where == lot
    parking.unpark(runner.key)
    now[0] += 2 * IDLE_S
    parking.sweep()
    assert runner.where == runner.home
    runner.goes_on()


def test_a_child_that_was_born_meanwhile_does_not_wait(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    parking.unpark(runner.key)
    child = runner.child()
    assert cgroup_of(child) == runner.where
    parking.park(runner.key)
    assert cgroup_of(child) == runner.home
    wait_for(lambda: is_frozen(runner.where), "it to freeze")


def test_a_child_is_frozen_on_its_own(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    parking.unpark(runner.key)
    child = runner.child()
    ticks = process.stat(child).start_ticks
    parking.park(ProcessKey(child, ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")))
    assert cgroup_of(child) == lot_of(runner.home, child)
    runner.goes_on()


def test_one_that_was_moved_away_is_frozen_where_it_is(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    parking.unpark(runner.key)
    child = runner.child()
    elsewhere = runner.home / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "cgroup.procs").write_text(str(runner.key.pid))
    parking.park(runner.key)
    assert runner.where == lot_of(elsewhere, runner.key.pid)
    assert cgroup_of(child) == runner.home  # and not frozen in its parent's
    parking.leave(runner.key)
    assert runner.where == elsewhere
    runner.goes_on()
    (runner.home / "cgroup.procs").write_text(str(runner.key.pid))
    elsewhere.rmdir()


def test_another_finds_who_is_frozen_and_lets_it_go(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    (lot,) = lots(runner.home, NAME)
    assert Parking(cgroup2_root(), NAME, alone).adopt()[runner.key.pid] == lot
    empty(lot)
    assert runner.where == runner.home
    runner.goes_on()


def test_of_one_that_ended_nothing_is_left(runner: Runner, parking: Parking) -> None:
    parking.park(runner.key)
    runner.popen.kill()
    parking.leave(runner.key)  # maybe it has not quite ended

    def gone() -> bool:
        parking.sweep()
        return not lots(runner.home, NAME)

    wait_for(gone, "its cgroup to be removed")


@pytest.fixture
def childless(runner: Runner) -> Iterator[Runner]:
    """In a unit that may have no cgroups below it."""
    (runner.home / "cgroup.max.descendants").write_text("0")
    yield runner
    (runner.home / "cgroup.freeze").write_text("0")


def test_a_unit_that_may_have_no_children_is_frozen_in_place(childless: Runner, parking: Parking) -> None:
    parking.park(childless.key)
    assert childless.where == childless.home
    wait_for(lambda: is_frozen(childless.home), "it to freeze")
    parking.sweep()
    assert is_frozen(childless.home)
    parking.unpark(childless.key)
    childless.goes_on()
    assert lots(childless.home, NAME) == []


def test_a_unit_goes_on_when_nobody_in_it_waits_any_more(childless: Runner, parking: Parking) -> None:
    parking.park(childless.key)
    wait_for(lambda: is_frozen(childless.home), "it to freeze")
    other = ProcessKey(childless.key.pid, childless.key.start_ns + 1)  # the unit is frozen already: nobody looks at it
    parking.know(other, childless.home)
    parking.unpark(childless.key)
    assert is_frozen(childless.home)
    parking.leave(other)
    childless.goes_on()


def test_a_unit_with_others_in_it_is_not_frozen(childless: Runner, parking: Parking) -> None:
    childless.child()
    with pytest.raises(ParkingError, match="others are in"):
        parking.park(childless.key)
    childless.goes_on()


def test_a_unit_that_somebody_else_froze_stays_so(childless: Runner, parking: Parking) -> None:
    (childless.home / "cgroup.freeze").write_text("1")
    with pytest.raises(ParkingError, match="somebody else froze"):
        parking.park(childless.key)
    assert (childless.home / "cgroup.freeze").read_text() == "1\n"


def test_another_finds_a_unit_that_was_frozen_in_place_and_lets_it_go(childless: Runner, parking: Parking) -> None:
    parking.park(childless.key)
    assert lots(childless.home, NAME) == [childless.home]
    assert lots(childless.home, "agentmon-held-of-another") == []
    assert Parking(cgroup2_root(), NAME, alone).adopt()[childless.key.pid] == childless.home
    assert empty(childless.home)
    assert lots(childless.home, NAME) == []
    childless.goes_on()
