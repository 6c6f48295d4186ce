# SPDX-License-Identifier: Apache-2.0
"""``./dev bench plan``: what a plan adds to a decision; time to infer and to load one; how well it fits other sessions.

For each task of real agents' sessions, a plan is inferred from half of the sessions, and the commands of the others are
put to the tracker: what it denies is denied wrongly. Then commands that are foreign to the task are put in at random
places: what it denies of these is stopped. All of it is judged from the text of the commands, by what is known of them;
nothing is run. The data is not part of the project: without it, only times are measured.
"""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from agentmon.model.operations import Operation
from agentmon.plan.bind import bind_plan, compile_plan
from agentmon.plan.infer.draft import Draft, Drafts, Way
from agentmon.plan.infer.several import Fit, Width, fitted, together, widen
from agentmon.plan.infer.shell import Shell
from agentmon.plan.infer.write import to_yaml
from agentmon.plan.load import load_text
from agentmon.plan.track import Tracker
from agentmon.policy.rules import Variables
from benchmarks import _cases, _plan_cost
from benchmarks._common import Goal, Report, arguments, finish, host, summary

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
COUNTS = (10, 100, 1_000)
ROUNDS = 10
FOREIGN = 6  # put into each session
GOAL_MS = 100
HERE = Variables.of(workspace="/work", home="/home/user", user="user")
AGENT = 1
#: What commands are made of where there is no data.
_MADE = (
    "cd src{0} && make -j4 target{0} 2>&1 | tee build{0}.log",
    "cat file{0}.txt | grep -n 'word {0}' | head -20",
    'for f in a{0} b{0}; do cp "$f" "dist/$f"; done',
    "git commit -m 'change {0}' && git push origin branch{0}",
    "cat > script{0}.py <<'EOF'\nprint({0})\nEOF\npython3 script{0}.py",
    "curl -sSL -o out{0}.tgz https://host{0}.example.com/x",
)


Curve = dict[str, Callable[[Sequence[Drafts]], Drafts]]


def inferred(commands: Sequence[str]) -> Drafts:
    """One session."""
    shell = Shell(each=True, workspace="/app")
    shell.drafts.shells.append("/bin/sh")
    for number, command in enumerate(commands, 1):
        shell.read(command, f"command {number}")
    return shell.drafts


# ---- times


def times(report: Report, commands: Sequence[str], rounds: int) -> None:
    """Inference, and from text to what the kernel would be given."""
    inferred(commands[:10])
    for count in COUNTS:
        some = [commands[i % len(commands)] for i in range(count)]
        infer_ms, load_ms = [], []
        for _ in range(rounds):
            start = time.process_time()
            text = to_yaml(inferred(some), name="p", source="a benchmark")
            middle = time.process_time()
            compile_plan(bind_plan(load_text(text, "p.yaml"), HERE))
            infer_ms.append((middle - start) * 1e3)
            load_ms.append((time.process_time() - middle) * 1e3)
        report.results[f"{count} commands"] = {"infer, ms": summary(infer_ms), "load and compile, ms": summary(load_ms)}
        if count == 100:
            both = sorted(map(sum, zip(infer_ms, load_ms, strict=True)))[rounds // 2]
            report.goals.append(Goal("plan of 100 commands, loaded", round(both, 1), "ms (processor)", GOAL_MS))


# ---- sessions


def in_any_order(drafts: Drafts) -> Drafts:
    """Each step at any time, any number of times."""
    for step in drafts.steps:
        step.needs, step.after, step.repeat = set(), set(), True
    return drafts


def anywhere(drafts: Drafts) -> Drafts:
    """Any files and hosts."""
    drafts.steps = [replace(s, writes=["/**"], files_known=True, no_network=False, hosts=[], looks=[],
                            addresses=["0.0.0.0/0"]) for s in drafts.steps]  # fmt: skip
    drafts.outside_writes = ["/**"]
    return drafts


def without_look(drafts: Drafts) -> Drafts:
    """Without the step for looking around."""
    drafts.steps = [step for step in drafts.steps if step.name != "look"]
    return drafts


def programs_only(sessions: Sequence[Drafts]) -> Drafts:
    """What is to be beaten: the set of programs seen."""
    exes = sorted({exe for each in sessions for step in each.steps for exes, _ in step.ways for exe in exes})
    one = Draft("any", [(tuple(exes), None)], repeat=True, writes=["/**"], files_known=True, addresses=["0.0.0.0/0"])
    return Drafts([one], ["/bin/sh"], ["/**"])


def _wide(several: Sequence[Drafts], width: Width) -> Drafts:
    return together([widen(each, width) for each in several])


PROGRAMS = "the set of programs seen"
#: From narrow to generous.
CURVE: Curve = {
    "fit exact: arguments, files, order": lambda s: fitted(s, Fit.EXACT),
    "exact, in any order": lambda s: in_any_order(fitted(s, Fit.EXACT)),
    "any arguments, in order": lambda s: _wide(s, Width.COMMAND),
    "fit order, without `look`": lambda s: without_look(fitted(s, Fit.ORDER)),
    "fit order": lambda s: fitted(s, Fit.ORDER),
    "any arguments, in any order": lambda s: in_any_order(_wide(s, Width.ANY)),
    "fit task, without `look`": lambda s: without_look(fitted(s, Fit.TASK)),
    "fit task": lambda s: fitted(s, Fit.TASK),
    "fit task, any files and hosts": lambda s: anywhere(fitted(s, Fit.TASK)),
    PROGRAMS: programs_only,
}


class Replay:
    """One session under a plan."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._next = AGENT
        tracker.enrol(AGENT, b"/opt/agent")

    def denies(self, command: Drafts) -> bool:
        """Whether anything of a command is denied; what is not, happens."""
        t = self._tracker
        denied = any(not t.attempt(AGENT, Operation.WRITE, _path(path)).passes for path in command.outside_writes)
        for step in command.steps:
            for way in step.ways:
                self._next += 1
                t.fork(AGENT, self._next)
                path, argv = _concrete(way)
                ruling = t.exec(self._next, path, argv)
                denied |= not ruling.passes
                if ruling.passes:
                    denied |= any(not t.attempt(self._next, Operation.READ, _path(each)).passes for each in step.reads)
                    denied |= any(
                        not t.attempt(self._next, Operation.WRITE, _path(each)).passes for each in step.writes
                    )
                    for target in step.hosts:
                        name, _, port = target.rpartition(":")
                        denied |= not t.attempt(self._next, Operation.CONNECT, (name, int(port))).passes
                t.exit(self._next, 0)
        return denied


def _concrete(way: Way) -> tuple[bytes, list[bytes]]:
    (exe, *_), argv = way
    path = _path(exe.replace("**/", "/usr/bin/", 1) if exe.startswith("**/") else exe)
    return path, [_text(word).encode() for word in argv or () if word != "**"]


def _path(pattern: str) -> bytes:
    text = pattern.replace("{workspace}", "/work").replace("{home}", "/home/user").replace("{tmp}", "/tmp")  # a name
    return _text(text.removesuffix("/**").replace("**", "any") or "/any").encode()


def _text(pattern: str) -> str:
    """Some text that a pattern matches."""
    pattern = re.sub(r"(?<!\\)\{([^{},]*),[^{}]*\}", r"\1", pattern)
    pattern = re.sub(r"(?<!\\)[*?]", "x", pattern)
    return re.sub(r"\\(.)", r"\1", pattern)


def sessions(report: Report, data: Path) -> None:
    """The trade-off, from narrow plans to wide ones."""
    rng = random.Random(1)
    tasks: dict[str, list[list[Drafts]]] = {}
    for case in _cases.sessions(_cases.read(data / _cases.FILES[_cases.SESSIONS])):
        each = [inferred([step[2]]) for step in case["steps"]]
        tasks.setdefault(case["category"], []).append(each)
    tasks = {name: found for name, found in tasks.items() if len(found) > 1}
    outside = [
        inferred([row["code"]]) for row in _cases.read(data / _cases.FILES[_cases.SNIPPETS]) if row["lang"] == "bash"
    ]
    outside = [each for each in outside if each.steps or each.outside_writes]
    counts = {label: [0, 0, 0, 0] for label in CURVE}
    for name, found in tasks.items():
        rng.shuffle(found)
        half = len(found) // 2
        learnt = [_whole(each) for each in found[:half]]
        others = [c for task, them in tasks.items() if task != name for session in them for c in session if c.steps]
        trials = []
        for session in found[half:]:
            foreign = [rng.choice(others if i % 2 else outside) for i in range(FOREIGN)]
            trials.append((session, [(rng.randrange(len(session) + 1), each) for each in foreign]))
        for label, make in CURVE.items():
            text = to_yaml(make(learnt), name="p", source="a benchmark")
            tracker = Tracker(bind_plan(load_text(text, "p.yaml"), HERE))
            for session, foreign in trials:
                counts[label] = [a + b for a, b in zip(counts[label], _try(tracker, session, foreign), strict=True)]
    shares = {
        label: (100 * wrong / max(commands, 1), 100 * stopped / max(tried, 1))
        for label, (wrong, commands, stopped, tried) in counts.items()
    }
    _, commands, _, tried = counts[PROGRAMS]
    report.results["sessions"] = {
        "tasks": len(tasks), "commands replayed": commands, "foreign commands": tried,
        **{label: {"wrongly denied, %": round(wrong, 2), "foreign stopped, %": round(stopped, 2)}
           for label, (wrong, stopped) in shares.items()},
    }  # fmt: skip
    wrong, stopped = (round(share, 2) for share in shares["fit task"])
    beaten = [round(share, 2) for share in shares[PROGRAMS]]
    note = "the set of programs seen"
    report.goals.append(Goal("wrongly denied, fit task", wrong, "%", beaten[0], note=note))
    report.goals.append(Goal("foreign stopped, fit task", stopped, "%", beaten[1], at_most=False, note=note))


def _whole(commands: Sequence[Drafts]) -> Drafts:
    """Commands one after the other, as one session."""
    steps: list[Draft] = []
    before: set[int] = set()
    for command in commands:
        base = len(steps)
        for step in command.steps:
            needs = {n + base for n in step.needs}
            steps.append(
                replace(
                    step, needs=needs, after={n + base for n in step.after} or (set() if needs else before), data=[]
                )
            )
        if len(steps) > base:
            before = {len(steps) - 1}
    writes = list(dict.fromkeys(path for command in commands for path in command.outside_writes))
    return Drafts(steps, ["/bin/sh"], writes)


def _try(tracker: Tracker, session: Sequence[Drafts], foreign: Sequence[tuple[int, Drafts]]) -> list[int]:
    """[commands denied, commands, foreign denied, foreign]: one replay as it was, one with each foreign command."""
    plain = Replay(tracker.fresh())
    wrong = sum(plain.denies(command) for command in session if command.steps)
    stopped = 0
    for at, command in foreign:
        replay = Replay(tracker.fresh())
        for each in session[:at]:
            replay.denies(each)
        stopped += replay.denies(command)
    return [wrong, sum(bool(command.steps) for command in session), stopped, len(foreign)]


def made() -> Iterator[str]:
    """Commands without data."""
    for number in range(max(COUNTS)):
        yield _MADE[number % len(_MADE)].format(number)


def main() -> int:
    """Measure."""
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the data (default: ../shared/data)")
    options = parser.parse_args()
    report, facts = Report("plan"), host()
    parts = {"decision": partial(_plan_cost.decision, rounds=options.rounds)}
    parts |= {"times": partial(times, commands=list(made()), rounds=options.rounds or ROUNDS)}
    if all((options.data / _cases.FILES[name]).exists() for name in (_cases.SESSIONS, _cases.SNIPPETS)):
        parts["sessions"] = partial(sessions, data=options.data)
    else:
        report.results["data"] = f"`{options.data}` has none: only times are measured (name the folder with --data)"
    for name, part in parts.items():
        if not options.only or name in options.only:
            report.attempt(name, part)
    return finish(report, facts, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
