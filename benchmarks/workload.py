# SPDX-License-Identifier: Apache-2.0
"""``./dev bench workload``: what ordinary work costs under the fence, with the daemon running.

Three conditions, interleaved: pristine (nothing loaded), loaded (the daemon runs, the work is not enrolled), enrolled
(under ``coding-agent``). A round runs each once, in an order that turns with the rounds; ratios are taken within it.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import _kernel, _service
from benchmarks._common import (
    NOT_TIMED,
    Goal,
    Report,
    arguments,
    compile_c,
    finish,
    host,
    say,
    signed_rank,
    spread,
    summary,
)

ROUNDS = 8
REPEATS = 3
SETTLE_S = 0.25  # in which the daemon writes what is left and closes the session: not part of the next run
CONDITIONS = ("pristine", "loaded", "enrolled")


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work: a folder, and a command run in it. ``goals``: whether the overhead goals apply."""

    name: str
    command: list[str]
    goals: bool = True


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of one run."""

    wall_s: float
    cpu_s: float  # user and system, of the work and all its children


def git_work(folder: Path) -> Work:
    """Edit, add, commit, diff, log, branch, in a small repository."""
    script = """
set -e
rm -rf repo && git init -q repo && cd repo
git config user.name bench && git config user.email bench@example.org && git config gc.auto 0
mkdir -p src && for i in $(seq 60); do seq $i $((i + 200)) >src/file$i.txt; done
git add . && git commit -qm start
for i in $(seq 12); do
	echo change $i >>src/file$i.txt
	git add . && git commit -qm "change $i"
	git status --short >/dev/null && git diff HEAD~1 >/dev/null && git log --stat -3 >/dev/null
done
git checkout -qb other HEAD~6 && git checkout -q - && git grep -q 150
"""
    return _script(folder, "git loop", script)


def pytest_work(folder: Path) -> Work:
    """pytest on a package of 20 modules with 200 tests."""
    package = folder / "package"
    package.mkdir()
    (folder / "conftest.py").write_text("")
    for number in range(20):
        body = "".join(f"def f{n}(x):\n    return sum(range(x * {n + 1} + 2000))\n\n\n" for n in range(10))
        (package / f"module{number:02}.py").write_text(body)
        calls = "".join(
            f"def test_f{n}(tmp_path):\n    (tmp_path / 'a').write_text('b')\n    assert m.f{n}(3) >= 0\n\n\n"
            for n in range(10)
        )
        (folder / f"test_module{number:02}.py").write_text(f"from package import module{number:02} as m\n\n\n{calls}")
    (package / "__init__.py").write_text("")
    python = sys.executable
    return Work("pytest run", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "--basetemp=t"])


def c_work(folder: Path) -> Work:
    """A C build of 12 files, one compiler call each, and a link."""
    for number in range(12):
        body = "".join(
            f'int f{number}_{n}(int x) {{ char b[64]; snprintf(b, sizeof b, "%d", x); return atoi(b) * {n}; }}\n'
            for n in range(40)
        )
        (folder / f"unit{number}.c").write_text(
            "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n" + body
        )
    (folder / "main.c").write_text("int main(void) { return 0; }\n")
    script = """
set -e
rm -f *.o prog
for f in *.c; do cc -O1 -c $f; done
cc -o prog *.o && ./prog
"""
    return _script(folder, "C build", script)


def storm_work(folder: Path) -> Work:
    """Nothing but system calls: open, read, close and stat of 2,000 files, again and again."""
    for number in range(2_000):
        path = folder / "files" / f"d{number % 20:02}" / f"f{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("some text\n")
    return Work(
        "system-call storm",
        ["sh", "-c", "for i in 1 2 3 4; do grep -r nothing files; find files -size +1M; done; true"],
        goals=False,
    )


def open_work(folder: Path) -> Work:
    """The worst there is: a C loop of open and close."""
    shutil.copy(compile_c(folder, "loops"), folder / "open-loop")
    (folder / "a").write_text("x\n")
    return Work("open + close loop", ["sh", "-c", "echo warm 200000 | ./open-loop -1 a"], goals=False)


def _script(folder: Path, name: str, script: str) -> Work:
    path = folder / "work.sh"
    path.write_text(script)
    return Work(name, ["sh", str(path)])


WORKS: dict[str, Callable[[Path], Work]] = {
    "git": git_work, "pytest": pytest_work, "c": c_work, "storm": storm_work, "open": open_work,
}  # fmt: skip


def run(work: Work, folder: Path, daemon: _service.Service | None = None) -> Taken:
    """Runs it once in a child that waits until it is enrolled (with a daemon) or released (without)."""
    gate_read, gate_write = os.pipe()
    errors = tempfile.TemporaryFile()  # noqa: SIM115  # outlives the fork
    pid = os.fork()
    if not pid:
        try:
            os.close(gate_write)
            os.chdir(folder)
            os.read(gate_read, 1)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            os.dup2(errors.fileno(), 2)
            os.closerange(3, 256)
            os.execvp(work.command[0], work.command)
        finally:
            os._exit(127)
    os.close(gate_read)
    if daemon is not None:
        daemon.enroll(pid, folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    os.write(gate_write, b"!")
    _, status = os.waitpid(pid, 0)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    os.close(gate_write)
    if daemon is not None:
        time.sleep(SETTLE_S)
    if status:
        errors.seek(0)
        said = errors.read()[-400:].decode(errors="replace")
        raise RuntimeError(f"`{work.name}` ended with {os.waitstatus_to_exitcode(status)}: {said}")
    errors.close()
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def measure(report: Report, name: str, rounds: int) -> None:
    """One kind of work, all conditions."""
    taken: dict[str, list[Taken]] = {c: [] for c in CONDITIONS}
    inside: list[float] = []
    with tempfile.TemporaryDirectory(prefix="agentmon-bench-", dir="/tmp") as temporary:
        folder = Path(temporary)
        work = WORKS[name](folder)
        run(work, folder)
        for number in range(rounds):
            if number % 2:
                taken["pristine"].append(_best([run(work, folder) for _ in range(REPEATS)]))
            with _service.service() as daemon:
                pairs = [(run(work, folder), run(work, folder, daemon)) for _ in range(REPEATS)]
                taken["loaded"].append(_best([loaded for loaded, _ in pairs]))
                taken["enrolled"].append(_best([enrolled for _, enrolled in pairs]))
                inside.append(_inside_percent(work, folder, daemon))
            if not number % 2:
                taken["pristine"].append(_best([run(work, folder) for _ in range(REPEATS)]))
    _conclude(report, work, taken, inside)


def _best(runs: list[Taken]) -> Taken:
    """The least of a few runs: what other processes on the host do only ever adds."""
    return Taken(min(r.wall_s for r in runs), min(r.cpu_s for r in runs))


def _inside_percent(work: Work, folder: Path, daemon: _service.Service) -> float:
    """Time inside agentmon's programs in percent of the work's CPU time, both by the kernel's own statistics.

    Not disturbed by other load, except that what other processes spend in the programs is counted too. Without the
    kernel's cost of entering a tracepoint, and with the statistics' own two readings of the clock a run.
    """
    with _kernel.statistics_on():
        cost = _kernel.Cost(daemon.pins)
        before = cost.total_ns()
        taken = run(work, folder, daemon)
        spent = cost.total_ns() - before
        cost.close()
    return spent / (taken.cpu_s * 1e9) * 100


def _conclude(report: Report, work: Work, taken: dict[str, list[Taken]], inside: list[float]) -> None:
    figures: dict[str, object] = {f"{c}, wall s": summary([t.wall_s for t in taken[c]]) for c in CONDITIONS}
    figures |= {f"{c}, CPU s": summary([t.cpu_s for t in taken[c]]) for c in CONDITIONS}
    figures["of each round"] = f"the best of {REPEATS} runs"
    for condition, limit in (("loaded", 1), ("enrolled", 3)):
        found = {}
        for clock in ("wall", "cpu"):
            base = [getattr(t, f"{clock}_s") for t in taken["pristine"]]
            with_it = [getattr(t, f"{clock}_s") for t in taken[condition]]
            percent = [(b / a - 1) * 100 for a, b in zip(base, with_it, strict=True)]
            found[clock] = spread(percent)
            figures[f"{condition}, {clock} overhead %"] = summary(percent)
            figures[f"{condition}, {clock} overhead of the least %"] = round((min(with_it) / min(base) - 1) * 100, 2)
            figures[f"{condition}, {clock} p"] = signed_rank(base, with_it)
        if work.goals:
            # the clock that makes us look worse: each is disturbed by other load in its own way
            clock, worse = max(found.items(), key=lambda item: item[1].median)
            report.goals.append(
                Goal(
                    f"{work.name}, overhead {'enrolled' if condition == 'enrolled' else 'not enrolled'}",
                    round(worse.median, 2),
                    "%",
                    limit,
                    note=f"{clock} time, 95 % interval {worse.low:.2f} to {worse.high:.2f}",
                )
            )
    figures["enrolled, inside agentmon's programs % of CPU"] = summary(inside)
    report.results[work.name] = figures


def main() -> int:
    """Run all kinds of work, or those asked for by ``--only``."""
    parser = arguments("what ordinary work costs under the fence; parts: " + ", ".join(WORKS))
    args = parser.parse_args()
    unknown = set(args.only) - set(WORKS)
    if unknown:
        parser.error(f"no part `{unknown.pop()}`: {', '.join(WORKS)}")
    for program in ("git", "cc"):
        if shutil.which(program) is None:
            say(f"`{program}` is missing; `./dev bench` installs it")
    facts = host()
    report = Report("workload")
    for name in WORKS:
        if not args.only or name in args.only:
            report.attempt(name, partial(measure, name=name, rounds=args.rounds or ROUNDS))
    if facts["tier"] != "lsm":
        report.results["LSM tier"] = NOT_TIMED
    return finish(report, facts, as_json=args.json)


if __name__ == "__main__":
    sys.exit(main())
