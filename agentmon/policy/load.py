# SPDX-License-Identifier: Apache-2.0
"""From YAML to a checked `Policy`: every error with file, line and column, all of them at once."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agentmon.errors import PolicyError
from agentmon.model.operations import Action, Operation
from agentmon.policy import schema
from agentmon.policy.document import Document
from agentmon.policy.glob import GlobError, did_you_mean, parse
from agentmon.policy.network import parse_network, parse_ports
from agentmon.policy.rules import Complaints, Network, Pattern, Policy, Rule
from agentmon.policy.schema import Location, PolicyModel, RuleModel

#: Bytes and wildcards of all patterns of a file: beyond it no automaton fits, and an ordinary user's text costs memory.
MAX_ELEMENTS: Final = 2_000_000

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
            raise PolicyError(
                f"no policy `{name_or_path}`{did_you_mean(name_or_path, sorted(known))}"
                " (for a file, give a path with `/` or `.yaml`)"
            )
        name_or_path = str(known[name_or_path])
    return load_text(read_text(name_or_path), name_or_path, directories=directories)


def load_text(text: str, file: str, *, directories: Sequence[Path] | None = None) -> Policy:
    """Load a policy from its text; ``file`` is only named in messages. Includes are installed packs.

    Raises:
        PolicyError: it is invalid.
    """
    return _Merger(packs(directories)).policy(_Source(text, file))


def read_text(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise PolicyError(f"cannot read policy `{path}`: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}:1:1: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


class _Source(Document):
    """One policy file: its model, and where each part of it stands."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text, file)
        model, errors = schema.validate(self.data)
        complaints = Complaints()
        for location, is_key, message in errors:
            complaints.add(self.place(location, key=is_key), message)
        complaints.raise_if_any()
        assert model is not None
        self.model: PolicyModel = model
        self.elements = 0  # of all patterns, after braces


class _Merger:
    """Reads includes and merges them; each pack once."""

    def __init__(self, known: dict[str, Path]) -> None:
        self.known = known

    def policy(self, source: _Source) -> Policy:
        complaints = Complaints()
        rules, defaults, names, files = self._merge(source, complaints, ())
        seen: dict[str, Rule] = {}
        for rule in rules:
            first = seen.setdefault(rule.id, rule)
            if first is not rule:
                _same_id(first, rule, complaints)
        complaints.raise_if_any()
        return Policy(
            source.model.policy,
            source.model.description,
            source.file,
            tuple(rules),
            defaults,
            tuple(names),
            tuple(files),
        )

    def _merge(
        self, source: _Source, complaints: Complaints, above: tuple[str, ...]
    ) -> tuple[list[Rule], dict[Operation, Action], list[str], list[str]]:
        model = source.model
        rules = [r for r in _rules(source, complaints) if r]
        said = _defaults(source, complaints)
        names, files = [model.policy], [source.file]
        inherited: dict[Operation, Action] = {}
        for i, include in enumerate(model.include):
            place = source.place(("include", i, "pack"))
            if include.pack in (*above, model.policy):
                circle = " → ".join((*above, model.policy, include.pack))
                complaints.add(place, f"packs include each other: {circle}; take one `include` out")
                continue
            if include.pack not in self.known:
                complaints.add(place, f"no pack `{include.pack}`{did_you_mean(include.pack, sorted(self.known))}")
                continue
            path = str(self.known[include.pack])
            inner = _cached_source(path, os.stat(path).st_mtime_ns)
            if inner.model.policy != include.pack:
                complaints.add(
                    inner.place(("policy",)),
                    f"pack `{include.pack}` calls itself `{inner.model.policy}`; rename one of them",
                )
            theirs, their_defaults, their_names, their_files = self._merge(inner, complaints, (*above, model.policy))
            known_ids = [r.id for r in theirs]
            for j, left_out in enumerate(include.without):
                if left_out not in known_ids:
                    complaints.add(
                        source.place(("include", i, "without", j)),
                        f"pack `{include.pack}` has no rule `{left_out}`{did_you_mean(left_out, known_ids)}",
                    )
            rules += [r for r in theirs if r.id not in include.without and r not in rules]
            for operation, action in their_defaults.items():
                inherited[operation] = max(action, inherited.get(operation, action))
            names += [n for n in their_names if n not in names]
            files += [f for f in their_files if f not in files]
        return rules, inherited | said, names, files


@functools.lru_cache(maxsize=64)
def _cached_source(path: str, _mtime_ns: int) -> _Source:
    return _Source(read_text(path), path)


def _same_id(first: Rule, second: Rule, complaints: Complaints) -> None:
    if first.pack == second.pack and first.place.file == second.place.file:
        complaints.add(second.place, f"rule id `{second.id}` is already used at {first.place}; rename one")
    else:
        complaints.add(
            first.place,
            f"rule id `{first.id}` is already used in pack `{second.pack}` at {second.place}; rename this one,"
            f" or leave that one out with `include: [{{pack: {second.pack}, without: [{second.id}]}}]`",
        )


def _defaults(source: _Source, complaints: Complaints) -> dict[Operation, Action]:
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
    if Operation.CONNECT in said:
        said.setdefault(Operation.SEND, said[Operation.CONNECT])
    return said


def _rules(source: _Source, complaints: Complaints) -> Iterator[Rule | None]:
    source.elements = 0  # packs are cached, and read again by each policy that includes them
    for i, model in enumerate(source.model.rules):
        yield _RuleBuilder(source, model, ("rules", i), complaints).rule()


class _RuleBuilder:
    def __init__(self, source: _Source, model: RuleModel, location: Location, complaints: Complaints) -> None:
        self.source = source
        self.model = model
        self.location = location
        self.complaints = complaints

    def rule(self) -> Rule | None:
        before = len(self.complaints.found)
        model = self.model
        operations = self._operations()
        action = schema.action(model.action)
        if isinstance(action, str):
            self._complain(action, "action")
        self._check_objects(operations)
        paths, exe = self._patterns("paths"), self._patterns("exe")
        except_paths, except_exe = self._patterns("except", "paths"), self._patterns("except", "exe")
        if operations == (Operation.EXEC,):
            paths, exe = paths + exe, ()
            except_paths, except_exe = except_paths + except_exe, ()
        networks, except_networks = self._networks("cidrs"), self._networks("except", "cidrs")
        ports = self._ports()
        if len(self.complaints.found) > before or isinstance(action, str):
            return None
        return Rule(
            id=model.id,
            pack=self.source.model.policy,
            place=self.source.place((*self.location, "id")),
            operations=operations,
            action=action,
            reason=" ".join(model.reason.split()),
            quiet=model.quiet,
            paths=paths,
            exe=exe,
            networks=networks,
            ports=ports,
            except_paths=except_paths,
            except_exe=except_exe,
            except_networks=except_networks,
        )

    def _complain(self, message: str, *at: int | str, key: bool = False) -> None:
        self.complaints.add(self.source.place((*self.location, *at), key=key), message)

    def _operations(self) -> tuple[Operation, ...]:
        found: list[Operation] = []
        for i, word in enumerate(self.model.on):
            operation = schema.operation(word)
            if isinstance(operation, str):
                self._complain(operation, "on", i)
            elif operation not in found:
                found.append(operation)
        if not self.model.on:
            self._complain("`on` names no operation; add one, such as `on: read`", "on")
        return tuple(sorted(found))

    def _check_objects(self, operations: Iterable[Operation]) -> None:
        """Each kind of object needs operations that have it: a key that never applies is a mistake."""
        model = self.model
        nets = [o.word for o in operations if o.is_net]
        files = [o.word for o in operations if o.is_path]
        for path, value in ((("paths",), model.paths), (("except", "paths"), model.carve.paths)):
            if value is not None and nets and (value or path == ("paths",)):
                self._complain(f"`paths` does not apply to `{nets[0]}`; write a rule of its own", *path, key=True)
        for net, values in (
            (("cidrs",), model.cidrs),
            (("ports",), model.ports),
            (("except", "cidrs"), model.carve.cidrs),
        ):
            if values is not None and files and (values or net[0] != "except"):
                self._complain(f"`{net[-1]}` does not apply to `{files[0]}`; write a rule of its own", *net, key=True)
        for key in ("paths", "exe", "cidrs", "ports"):
            if getattr(model, key) == []:
                self._complain(f"`{key}` is empty; leave it out to match every object", key, key=True)
        if "exec" not in files:
            return
        programs = model.exe is not None or bool(model.carve.exe)
        if len(files) + len(nets) > 1 and programs:
            self._complain(
                "`exe` is the program to start on `exec`, but the running program elsewhere; write two rules",
                "exe",
                key=True,
            )
        if model.exe and model.paths:
            self._complain("`exe` and `paths` mean the same on `exec`; keep one", "exe", key=True)

    def _texts(self, *at: str) -> list[str]:
        holder: Any = self.model.carve if at[0] == "except" else self.model
        return getattr(holder, at[-1]) or []

    def _item(self, i: int, *at: str) -> Location:
        location = (*self.location, *at, i)
        return location if location in self.source.places else location[:-1]

    def _patterns(self, *at: str) -> tuple[Pattern, ...]:
        found: list[Pattern] = []
        for i, text in enumerate(self._texts(*at)):
            location = self._item(i, *at)
            try:
                pattern = Pattern(text, self.source.place(location), parse(text))
            except GlobError as error:
                self.complaints.add(self.source.within(location, error.offset), f"in `{text}`: {error}")
                continue
            self.source.elements += sum(map(len, pattern.alternatives))
            if self.source.elements > MAX_ELEMENTS:
                raise PolicyError(
                    f"{pattern.place}: the patterns are too many or too long; name directories with `/**`"
                )
            found.append(pattern)
        return tuple(found)

    def _networks(self, *at: str) -> tuple[Network, ...]:
        found: list[Network] = []
        for i, text in enumerate(self._texts(*at)):
            place = self.source.place(self._item(i, *at))
            try:
                found.append(parse_network(text, place))
            except ValueError as error:
                self.complaints.add(place, str(error))
        return tuple(found)

    def _ports(self) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for i, text in enumerate(self._texts("ports")):
            try:
                found.append(parse_ports(text))
            except ValueError as error:
                self.complaints.add(self.source.place(self._item(i, "ports")), str(error))
        return tuple(found)
