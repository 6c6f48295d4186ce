# SPDX-License-Identifier: Apache-2.0
"""One plan of several times that the same task was done, and how much wider than what was seen it is to be.

Which `Fit` denies how much wrongly, and stops how much that is foreign, is measured by ``./dev bench plan``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from agentmon.plan.infer.commands import WITH_COMMANDS
from agentmon.plan.infer.draft import Draft, Drafts, Way
from agentmon.plan.infer.programs import READERS
from agentmon.plan.infer.words import literal

#: What programs are made of, and read wherever they are used.
SYSTEM_READS: Final = (
    "/{usr,lib,lib32,lib64,bin,sbin,opt}/**",
    "/etc/{ld.so.*,localtime,locale*,nsswitch.conf,passwd,group,hosts,host.conf,gai.conf,resolv.conf,protocols,services}",
    "/etc/{ssl,ca-certificates,alternatives,terminfo}/**",
    "/etc/{profile,bash.bashrc,inputrc,gitconfig,os-release,mime.types,timezone}",
    "/proc/{[0-9]*/**,meminfo,cpuinfo,stat,filesystems,mounts,uptime,loadavg,version}",
    "/proc/sys/{kernel,vm}/**",
    "/sys/{devices/system,fs/cgroup}/**",
    "/dev/**",
)
_HERE: Final = ("{workspace}/**", "{tmp}/**")

_COMMAND: Final = re.compile(r"[a-z][a-z-]*")


class Width(enum.StrEnum):
    """Which arguments a step may be started with."""

    EXACT = "exact"  # those that were seen
    COMMAND = "command"  # any, but for the command of a program that has some: `git push **`
    ANY = "any"


class Fit(enum.StrEnum):
    """How closely a plan follows what was seen."""

    EXACT = "exact"  # its arguments, files and order
    ORDER = "order"  # its programs and hosts in their order, any number of times, in the workspace; and looking around
    TASK = "task"  # the same in any order


def fitted(several: Sequence[Drafts], fit: Fit) -> Drafts:
    """One plan of what was done, once or several times."""
    if fit is Fit.EXACT:
        return together(several) if len(several) > 1 else several[0]
    width = Width.COMMAND if fit is Fit.ORDER else Width.ANY
    drafts = together([widen(each, width) for each in several])
    read = [path for step in drafts.steps for path in step.reads if path.startswith(("/", "{home}"))]
    looks = list(dict.fromkeys((*_HERE, *SYSTEM_READS, *read)))
    for step in drafts.steps:
        step.repeat, step.looks = True, looks
        if step.writes or not step.files_known:
            step.writes, step.files_known = list(dict.fromkeys((*_HERE, *step.writes))), True
        if fit is Fit.TASK:
            step.needs, step.after = set(), set()
    programs = tuple(f"**/{literal(name)}" for name in sorted(READERS - {"["}))
    looking = Draft("look", [(programs, None)], told=["looking around, by programs that only read"], looks=looks)
    looking.repeat = looking.files_known = looking.execs_known = looking.no_exec = looking.no_network = True
    drafts.steps.append(looking)
    drafts.outside_writes = list(dict.fromkeys((*_HERE, *drafts.outside_writes)))
    drafts.holes.append("what programs read of their own in the home; name it in the rules `reads`")
    return drafts


def widen(drafts: Drafts, width: Width) -> Drafts:
    """Steps that start with more arguments than were seen. Alike ones are still apart: see `together`."""
    if width is Width.EXACT:
        return drafts
    steps = [replace(step, ways=[_wider(way, width) for way in step.ways]) for step in drafts.steps]
    return Drafts(steps, drafts.shells, drafts.outside_writes, drafts.holes)


def _wider(way: Way, width: Width) -> Way:
    exe, argv = way
    name = exe[0].rpartition("/")[2]
    if width is Width.COMMAND and argv and name in WITH_COMMANDS and _COMMAND.fullmatch(argv[0]):
        return exe, argv if argv[1:] == ("**",) else (argv[0], "**")
    return exe, None


def together(several: Sequence[Drafts]) -> Drafts:
    """Steps that start alike are one. One comes after another if it did in each of those that have both.

    What was done more than once in one of them may be repeated; `needs` stays where it always was one.
    """
    keys: dict[object, int] = {}
    seen: list[list[Draft]] = []
    first: list[list[dict[int, bool]]] = []  # by step: of each drafts that has it, what came before, and whether needed
    sources: list[set[int]] = []
    for number, drafts in enumerate(several):
        at: list[int] = []
        met: dict[int, Draft] = {}
        for step in drafts.steps:
            target = keys.setdefault(step.key, len(keys))
            at.append(target)
            if target == len(seen):
                seen.append([])
                first.append([])
                sources.append(set())
            again = target in met
            met[target] = step
            seen[target].append(replace(step, repeat=step.repeat or again, data=[]))
            if again:
                continue
            sources[target].add(number)
            first[target].append(_before(drafts.steps, at))
    steps: list[Draft] = []
    for target, found in enumerate(seen):
        before = {
            other: all(each.get(other, False) for each in first[target] if other in each)
            for other in set().union(*first[target])
            if other < target and sum(other in each for each in first[target]) == len(sources[target] & sources[other])
        }
        steps.append(_one(found, before))
    return Drafts(
        _reduced(steps),
        list(dict.fromkeys(shell for drafts in several for shell in drafts.shells)),
        list(dict.fromkeys(path for drafts in several for path in drafts.outside_writes)),
        list(dict.fromkeys(hole for drafts in several for hole in drafts.holes)),
    )


def _before(steps: Sequence[Draft], at: Sequence[int]) -> dict[int, bool]:
    """What comes before the last of some steps, as far as one can follow; whether it has to be done."""
    found: dict[int, bool] = {}
    left = [(len(at) - 1, True)]
    met: set[tuple[int, bool]] = set()
    while left:
        number, needed = left.pop()
        if (number, needed) in met:
            continue
        met.add((number, needed))
        for other in steps[number].needs | steps[number].after:
            sure = other in steps[number].needs
            found[at[other]] = found.get(at[other], False) or sure
            left.append((other, sure))
    found.pop(at[-1], None)
    return found


def _one(found: Sequence[Draft], before: dict[int, bool]) -> Draft:
    one = replace(found[0])
    one.needs = {other for other, needed in before.items() if needed}
    one.after = set(before) - one.needs
    one.repeat = any(step.repeat for step in found)
    for name in ("told", "reads", "writes", "hosts", "addresses", "execs", "holes"):
        setattr(one, name, list(dict.fromkeys(text for step in found for text in getattr(step, name))))
    for name in ("no_exec", "no_network", "files_known", "execs_known"):
        setattr(one, name, all(getattr(step, name) for step in found))
    return one


def _reduced(steps: list[Draft]) -> list[Draft]:
    """Without what others wait for anyway."""
    done: list[set[int]] = []
    ended: list[set[int]] = []
    for step in steps:
        waits = step.needs | step.after
        needs = {n for n in step.needs if not any(n in done[other] for other in waits if other != n)}
        after = {n for n in step.after if not any(n in ended[other] for other in waits if other != n)}
        done.append(set(step.needs).union(*(done[other] for other in waits)))
        ended.append(waits.union(*(ended[other] for other in waits)))
        step.needs, step.after = needs, after
    return steps
