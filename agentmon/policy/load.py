# SPDX-License-Identifier: Apache-2.0
"""From YAML to a checked `Policy`: every error with file, line and column, all of them at once."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agentmon.errors import NoPolicyError, PolicyError
from agentmon.model.operations import HOLDABLE, Action, Operation
from agentmon.model.text import clean
from agentmon.policy import schema
from agentmon.policy.glob import did_you_mean
from agentmon.policy.implied import OTHER_RESOLVERS, other_resolvers
from agentmon.policy.load_rules import rules_of
from agentmon.policy.rules import Complaints, Place, Policy, Rule
from agentmon.policy.source import Source
from agentmon.policy.text import read_text

#: Packs that one policy may merge, and how far down they may include each other.
MAX_PACKS: Final = 100
MAX_PACK_DEPTH: Final = 16

OPERATOR_DIRECTORY: Final = Path("/etc/agentmon/policies.d")


def shipped_directory() -> Path:
    """Where the packs of this installation are: in the wheel, or in the checkout."""
    inside = Path(__file__).parent / "packs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "policies"


def pack_directories() -> tuple[Path, ...]:
    """Where packs are looked for: the operator's own first, so that they may replace shipped ones."""
    return (OPERATOR_DIRECTORY, shipped_directory())


def packs(directories: Sequence[Path] | None = None) -> dict[str, Path]:
    """The installed packs by name."""
    found: dict[str, Path] = {}
    for directory in pack_directories() if directories is None else directories:
        for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else ():
            if not path.name.endswith(".test.yaml"):
                found.setdefault(path.stem, path)
    return found


def load(name_or_path: str, *, directories: Sequence[Path] | None = None) -> Policy:
    """Load an installed pack by its name, or any file by its path.

    Raises:
        PolicyError: nothing of that name, or it is invalid.
    """
    if "/" not in name_or_path and not name_or_path.endswith((".yaml", ".yml")):
        known = packs(directories)
        if name_or_path not in known:
            raise NoPolicyError(
                clean(
                    f"no policy `{name_or_path}`{did_you_mean(name_or_path, sorted(known))}"
                    " (for a file, give a path with `/` or `.yaml`)"
                )
            )
        name_or_path = str(known[name_or_path])
    return load_text(read_text(name_or_path), name_or_path, directories=directories)


def load_text(text: str, file: str, *, directories: Sequence[Path] | None = None) -> Policy:
    """Load a policy from its text; ``file`` is only named in messages. Includes are installed packs.

    Raises:
        PolicyError: it is invalid.
    """
    return _Merger(packs(directories)).policy(Source(text, file))


_Merged = tuple[list[Rule], dict[Operation, Action], list[str], list[str]]


class _Merger:
    """Reads includes and merges them; each pack once, or two that include the next two would take 2^n steps."""

    def __init__(self, known: dict[str, Path]) -> None:
        self.known = known
        self.merged: dict[str, _Merged] = {}
        self.whole = True  # nothing had to be left out for its errors

    def policy(self, source: Source) -> Policy:
        complaints = Complaints()
        observe = schema.observes(source.model.mode)
        if isinstance(observe, str):
            complaints.add(source.place(("mode",)), observe)
        rules, defaults, names, files = self._merge(source, complaints, ())
        seen: dict[str, Rule] = {}
        for rule in rules:
            first = seen.setdefault(rule.id, rule)
            if first is not rule:
                _same_id(first, rule, complaints)
        if self.whole:  # else a mark may be set by what is missing
            _check_marks(rules, complaints)
        complaints.raise_if_any()
        if OTHER_RESOLVERS not in seen:
            rules += other_resolvers(rules)
        return Policy(
            source.model.policy,
            source.model.description,
            source.file,
            tuple(rules),
            defaults,
            tuple(names),
            tuple(files),
            observe is True,
        )

    def _merge(self, source: Source, complaints: Complaints, above: tuple[str, ...]) -> _Merged:
        model = source.model
        complaints.found += source.complaints.found
        self.whole &= not source.complaints.found
        rules = list(rules_of(source, complaints))
        said = _defaults(source, complaints)
        names, files = [model.policy], [source.file]
        inherited: dict[Operation, Action] = {}
        included: set[str] = set()
        left_out: dict[Place, tuple[int, Rule]] = {}
        places = {r.place for r in rules}
        for i, include in enumerate(model.include):
            place = source.include_place(i, "pack")
            if include.pack in included:
                complaints.add(place, f"pack `{include.pack}` is included twice; keep one, with all of its `without`")
                continue
            included.add(include.pack)
            inner = self._pack(include.pack, place, complaints, (*above, model.policy))
            if inner is None:
                self.whole = False
                continue
            theirs, their_defaults, their_names, their_files = inner
            known_ids = [r.id for r in theirs]
            for j, name in enumerate(include.without):
                if name not in known_ids:
                    complaints.add(
                        source.include_place(i, "without", j),
                        f"pack `{include.pack}` has no rule `{name}`{did_you_mean(name, known_ids)}",
                    )
            left_out_ids = set(include.without)
            new = [r for r in theirs if r.id not in left_out_ids and r.place not in places]
            rules += new
            places |= {r.place for r in new}
            left_out |= {r.place: (i, r) for r in theirs if r.id in left_out_ids}
            for operation, action in their_defaults.items():
                inherited[operation] = max(action, inherited.get(operation, action))
            names += [n for n in their_names if n not in names]
            files += [f for f in their_files if f not in files]
        for place in left_out.keys() & places:
            i, rule = left_out[place]
            complaints.add(
                source.include_place(i, "without"),
                f"`{rule.id}` still comes by another include; leave it out there too, or include `{rule.pack}` once",
            )
        return rules, inherited | said, names, files

    def _pack(self, name: str, place: Place, complaints: Complaints, above: tuple[str, ...]) -> _Merged | None:
        """What an installed pack comes to with its own packs; None if it cannot be included here."""
        if name in above:
            circle = " → ".join((*above, name))
            complaints.add(place, f"packs include each other: {circle}; take one `include` out")
            return None
        if name not in self.known:
            complaints.add(place, f"no pack `{name}`{did_you_mean(name, sorted(self.known))}")
            return None
        if name in self.merged:
            return self.merged[name]
        if len(above) > MAX_PACK_DEPTH:
            complaints.stop(
                place, f"packs include each other more than {MAX_PACK_DEPTH} deep; include them here instead"
            )
        if len(self.merged) >= MAX_PACKS:
            complaints.stop(place, f"more than {MAX_PACKS} packs; put their rules into fewer")
        path = str(self.known[name])
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                complaints.add(place, f"pack `{name}` is no file: `{path}`; put a policy file there, or take it away")
                return None
            inner = _cached_source(path, status.st_mtime_ns)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            complaints.add(place, f"pack `{name}` cannot be read from `{path}`: {why}; mend that, or take it out")
            return None
        except NoPolicyError as error:
            complaints.add(place, str(error))
            return None
        except PolicyError as error:  # it is no YAML, or nothing like a policy
            complaints.adopt(error)
            return None
        if inner.model.policy != name and inner.named:
            complaints.add(
                inner.place(("policy",)),
                f"pack `{name}` calls itself `{inner.model.policy}`; rename one of them",
            )
        if inner.model.mode != "enforce":
            complaints.add(
                inner.place(("mode",)),
                f"`mode` of pack `{name}` would not count here; give its rules `mode: observe`",
            )
        merged = self.merged[name] = self._merge(inner, complaints, above)
        return merged


@functools.lru_cache(maxsize=64)
def _cached_source(path: str, _mtime_ns: int) -> Source:
    return Source(read_text(path), path)


def _check_marks(rules: Sequence[Rule], complaints: Complaints) -> None:
    """A mark that nobody sets is a mistake: what requires it would never hold."""
    known = sorted({mark for rule in rules for mark in rule.marks})
    for rule in rules:
        for required in (*rule.requires, *rule.except_requires):
            for mark in filter(None, (required.mark, required.since)):
                if mark not in known:
                    complaints.add(required.place, f"no rule sets the mark `{mark}`{did_you_mean(mark, known)}")


def _same_id(first: Rule, second: Rule, complaints: Complaints) -> None:
    if first.pack == second.pack and first.place.file == second.place.file:
        complaints.add(second.place, f"rule id `{second.id}` is already used at {first.place}; rename one")
    else:
        complaints.add(
            first.place,
            f"rule id `{first.id}` is already used in pack `{second.pack}` at {second.place}; rename this one,"
            f" or leave that one out with `include: [{{pack: {second.pack}, without: [{second.id}]}}]`",
        )


def _defaults(source: Source, complaints: Complaints) -> dict[Operation, Action]:
    said: dict[Operation, Action] = {}
    for word, action_word in source.model.default.items():
        operation = schema.operation(word)
        action = schema.action(action_word)
        if isinstance(operation, str):
            complaints.add(source.place(("default", word), key=True), operation)
        if isinstance(action, str):
            complaints.add(source.place(("default", word)), action)
        if not isinstance(operation, str) and not isinstance(action, str):
            said[operation] = action
            if action is Action.HOLD and operation not in HOLDABLE:
                complaints.add(source.place(("default", word)), f"`{operation.word}` cannot be held; deny it")
    if Operation.CONNECT in said:
        said.setdefault(Operation.SEND, said[Operation.CONNECT])
    return said
