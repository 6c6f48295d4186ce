# SPDX-License-Identifier: Apache-2.0
"""What a decision costs in the kernel, and what an open costs beside other ways of watching it."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import statistics
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentmon.kernel.monitor import Monitor
from agentmon.model.tables import CompiledPolicy
from benchmarks import _kernel
from benchmarks._common import Goal, Report, compile_c, percentile, say, signed_rank, summary

#: Programs that decide on an open, per tier.
OPEN_PROGRAMS = ("open_exit", "open_check")
EVICT_BYTES = 32 << 20
LOOPS = 40_000
BATCH, BATCHES = 2_000, 20
COLD_CALLS = 250
FILES = 512
ROUNDS = 12


@contextmanager
def stage() -> Iterator[tuple[Path, Path, Path]]:
    """(folder, the loop program, a file whose path has five components)."""
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as name:
        folder = Path(name)
        program = compile_c(folder, "loops")
        target = folder / "src" / "package" / "module.py"
        target.parent.mkdir(parents=True)
        target.write_text("x = 1\n")
        yield folder, program, target


def kernel_cost(report: Report, rounds: int = 0) -> None:
    """Run-time statistics of the programs, not enrolled and enrolled, warm; then open itself, with cold caches."""
    with stage() as (folder, program, target), _kernel.loaded() as monitor:
        policy, files = _kernel.pack(folder), make_files(folder, FILES)
        idle: list[float] = []
        again: list[float] = []
        whole: list[float] = []
        with (
            _kernel.statistics_on(),
            _kernel.worker(program, [target], cpu=0) as loop,
            _kernel.worker(program, files, cpu=0) as tour,
        ):
            cost = _kernel.Cost(monitor.pin_directory)
            for _ in range(rounds or ROUNDS):
                idle.append(spare_ns(cost, loop))
                with _kernel.session(monitor, policy, [loop.pid]):
                    loop.ask("warm", 1000)
                    again.append(judged_ns(cost, loop, idle[-1]))
                whole.append(_first_ns(cost, tour, idle[-1], monitor, policy))
            cost.close()
        repeated = [a - i for a, i in zip(again, idle, strict=True)]
        first = [w - i for w, i in zip(whole, idle, strict=True)]
        report.results["kernel decision, ns (BPF run-time statistics)"] = {
            "path": str(target).replace(folder.name, "agentmon-bench-…"),
            "policy": "coding-agent",
            "states": policy.states,
            "program run, process not enrolled": summary(idle),
            "program run, enrolled, allowed before": summary(again),
            "program run, enrolled, judged anew and told": summary(whole),
            "decision allowed before (the difference)": summary(repeated),
            "decision anew, with its record (the difference)": summary(first),
        }
        report.goals.append(
            Goal(
                "kernel decision, warm, 5 components",
                round(statistics.median(repeated), 1),
                "ns",
                700,
                note="run time of the program when it decides, less its run for a process that is not enrolled",
            )
        )
        report.results["open, cold caches, ns"] = _cold(monitor, program, target, files, rounds or 4)


def _run_time(cost: _kernel.Cost) -> tuple[int, int]:
    found = cost.read()
    parts = [found[name] for name in OPEN_PROGRAMS if name in found]
    return sum(ns for ns, _ in parts), sum(n for _, n in parts)


def spare_ns(cost: _kernel.Cost, loop: _kernel.Worker) -> float:
    """Run time per call while the process is not enrolled."""
    before = _run_time(cost)
    loop.ask("warm", LOOPS)
    after = _run_time(cost)
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def judged_ns(cost: _kernel.Cost, loop: _kernel.Worker, idle_ns: float, opens: int = LOOPS) -> float:
    """Run time per judged open: the other runs (close, other processes' calls) are taken at the idle cost."""
    before = _run_time(cost)
    loop.ask("warm", opens)
    after = _run_time(cost)
    others = after[1] - before[1] - opens
    return (after[0] - before[0] - others * idle_ns) / opens


def _first_ns(
    cost: _kernel.Cost, tour: _kernel.Worker, idle_ns: float, monitor: Monitor, policy: CompiledPolicy
) -> float:
    """The same for files that the session has not opened before; their directory entries are in the caches."""
    batches: list[float] = []
    tour.ask("warm", FILES)
    for _ in range(8):
        monitor.read(1_000_000)
        with _kernel.session(monitor, policy, [tour.pid]):
            batches.append(judged_ns(cost, tour, idle_ns, FILES))
    return statistics.fmean(batches)


def _cold(monitor: Monitor, program: Path, target: Path, files: list[Path], rounds: int) -> dict[str, object]:
    plain: list[int] = []
    again: list[int] = []
    first: list[int] = []
    policy = _kernel.pack(files[0].parents[2])
    with _kernel.worker(program, [target], cpu=0) as loop, _kernel.worker(program, files, cpu=0) as tour:
        loop.ask("cold", 3, EVICT_BYTES)
        for _ in range(rounds):
            plain += loop.ask("cold", COLD_CALLS, EVICT_BYTES)
            with _kernel.session(monitor, policy, [loop.pid, tour.pid]):
                again += loop.ask("cold", COLD_CALLS, EVICT_BYTES)
                first += tour.ask("cold", COLD_CALLS, EVICT_BYTES)
            monitor.read(1_000_000)
    kinds = {"not enrolled": plain, "allowed before": again, "judged anew and told": first}
    found: dict[str, object] = {"evicted between calls, bytes": EVICT_BYTES, "calls of each": len(first)}
    for kind, taken in kinds.items():
        found |= {f"{kind}, p{p}": percentile(taken, p) for p in (50, 90, 99)}
    for kind in ("allowed before", "judged anew and told"):
        own = {p: percentile(kinds[kind], p) - percentile(plain, p) for p in (50, 90, 99)}
        found |= {f"decision {kind} (difference), p{p}": ns for p, ns in own.items()}
    return found


def open_close(report: Report, rounds: int = 0) -> None:
    """open + close: pristine, loaded, enrolled; strace and fanotify on the same loop. Interleaved."""
    times: dict[str, list[float]] = {
        n: [] for n in ("pristine", "loaded, not enrolled", "enrolled", "strace -f", "fanotify")
    }
    with stage() as (folder, program, target):
        policy = _kernel.pack(folder)
        with _kernel.worker(program, [target], cpu=0) as loop:
            _best_ns(loop)
            for number in range(rounds or ROUNDS):
                # others first in every second round: a drift of the machine hits each alike
                if number % 2:
                    times["fanotify"].append(_fanotify_ns(loop, target.parent))
                    times["strace -f"].append(_strace_ns(program, target))
                times["pristine"].append(_best_ns(loop))
                with _kernel.loaded() as monitor:
                    times["loaded, not enrolled"].append(_best_ns(loop))
                    with _kernel.session(monitor, policy, [loop.pid]):
                        times["enrolled"].append(_best_ns(loop))
    results: dict[str, object] = {"of each round": f"the best of {BATCHES} batches of {BATCH}"}
    results |= {name: summary(values) for name, values in times.items() if values}
    base, enrolled, plain = times["pristine"], times["enrolled"], times["loaded, not enrolled"]
    results["added by loaded"] = summary([a - b for a, b in zip(plain, base, strict=True)])
    results["added by enrolled"] = summary([a - b for a, b in zip(enrolled, base, strict=True)])
    results["p, enrolled against pristine"] = signed_rank(base, enrolled)
    results["p, loaded against pristine"] = signed_rank(base, plain)
    report.results["open + close, ns"] = results


def _best_ns(loop: _kernel.Worker) -> float:
    """The best of short batches: shorter than a time slice, so that some are not disturbed by other processes."""
    loop.ask("warm", BATCH)
    return min(loop.ask("warm", BATCH)[0] / BATCH for _ in range(BATCHES))


def _strace_ns(program: Path, target: Path) -> float:
    if shutil.which("strace") is None:
        raise FileNotFoundError("`strace` is not installed; `./dev bench` installs it")
    with _kernel.worker(program, [target], prefix=["strace", "-f", "-o", "/dev/null"]) as loop:
        loop.ask("warm", 50)
        return loop.ask("warm", 1000)[0] / 1000


# include/uapi/linux/fanotify.h
_FAN_CLASS_CONTENT, _FAN_CLOEXEC, _FAN_NONBLOCK = 4, 1, 2
_FAN_MARK_ADD, _FAN_OPEN_PERM, _FAN_EVENT_ON_CHILD, _FAN_ALLOW = 1, 0x10000, 0x08000000, 1
_EVENT = struct.Struct("=IBBHQii")


def _fanotify_ns(loop: _kernel.Worker, folder: Path) -> float:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
    fd = libc.fanotify_init(_FAN_CLASS_CONTENT | _FAN_CLOEXEC, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    if libc.fanotify_mark(fd, _FAN_MARK_ADD, _FAN_OPEN_PERM | _FAN_EVENT_ON_CHILD, -100, os.fsencode(folder)):
        raise OSError(ctypes.get_errno(), "fanotify_mark")
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            if not select.select([fd], [], [], 0.05)[0]:
                continue
            data, at = os.read(fd, 4096), 0
            while at < len(data):
                length, _, _, _, _, opened, _ = _EVENT.unpack_from(data, at)
                os.readlink(f"/proc/self/fd/{opened}")  # a responder must know the path to judge it
                os.write(fd, struct.pack("=iI", opened, _FAN_ALLOW))
                os.close(opened)
                at += length

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        loop.ask("warm", 50)
        taken = loop.ask("warm", 2000)[0] / 2000
    finally:
        stop.set()
        thread.join(10)
        os.close(fd)
    return taken


def throughput(report: Report, rounds: int = 0) -> None:
    """Enrolled decisions a second on one core, counted; then a flood of records, each accounted for."""
    rates: list[float] = []
    exact = True
    again = 0
    with stage() as (folder, program, target), _kernel.loaded() as monitor:
        policy = _kernel.pack(folder)
        with _kernel.worker(program, [target], cpu=0) as loop:
            for _ in range(rounds or 5):
                monitor.read(1_000_000)
                with _kernel.session(monitor, policy, [loop.pid]):
                    before = monitor.counters()
                    done, ns = loop.ask("seconds", 1)
                    after = monitor.counters()
                    rates.append(done / ns * 1e9)
                    told = sum(1 for e in monitor.read(1_000_000) if getattr(e, "object", b"") == bytes(target))
                exact &= after["decisions"] - before["decisions"] == done
                # told once; an entry of `seen` that was pushed out means once more, never once less
                exact &= told + after["ring_lost"] - before["ring_lost"] >= 1
                again += told - 1
        flood = _flood(monitor, program, folder)
    exact &= bool(flood["accounted for"])
    report.results["enrolled decisions"] = {
        "a second on one core": summary(rates),
        "every open counted and told": exact,
        "told again after an eviction": again,
        "flood, each decision a record": flood,
    }
    report.goals += [
        Goal("enrolled decisions a second per core", round(statistics.median(rates)), "1/s", 300_000, at_most=False),
        Goal(
            "losses that are not counted",
            0.0 if exact else 1.0,
            "",
            0,
            note="decisions = records + repeats + lost by counter, exactly",
        ),
    ]


def _flood(monitor: Monitor, program: Path, folder: Path) -> dict[str, object]:
    """A policy that tells every read, as fast as one core opens files, and this process as the reader."""
    files = make_files(folder, FILES)
    policy = _kernel.tell_all(folder)
    names = {bytes(f) for f in files}
    received = 0
    with _kernel.worker(program, files, cpu=0) as loop, _kernel.session(monitor, policy, [loop.pid]) as slot:
        monitor.read(1_000_000)
        before = monitor.counters()
        malformed = monitor.malformed
        finished: list[int] = []
        loop.tell("seconds", 2)
        waiter = threading.Thread(target=lambda: finished.extend(loop.answer()))
        waiter.start()
        while True:
            over = not waiter.is_alive()
            events = monitor.read(10_000)
            received += sum(1 for e in events if e.session == slot and getattr(e, "object", None) in names)
            if over and not events:
                break
        waiter.join()
        after = monitor.counters()
    done, ns = finished
    lost = after["ring_lost"] - before["ring_lost"]
    decisions = after["decisions"] - before["decisions"]
    return {
        "opens a second": round(done / ns * 1e9),
        "decisions": decisions,
        "records received": received,
        "lost, by the kernel's counter": lost,
        "malformed": monitor.malformed - malformed,
        "accounted for": decisions == done == received + lost,
    }


def make_files(folder: Path, number: int) -> list[Path]:
    """Small files in a few directories."""
    found = []
    for n in range(number):
        path = folder / "tree" / f"part{n % 16:02}" / f"item_{n:04}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")
        found.append(path)
    say(f"made {number} files")
    return found
