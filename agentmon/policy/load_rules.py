# SPDX-License-Identifier: Apache-2.0
"""From the rules of a file, as they are written, to checked ones: every error of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from agentmon.model.conditions import Risk
from agentmon.model.operations import HOLDABLE, Action, Operation
from agentmon.policy import schema
from agentmon.policy.arguments import MAX_WORDS, parse_argument
from agentmon.policy.glob import GlobError, parse
from agentmon.policy.hosts import parse_host
from agentmon.policy.hours import parse_hours
from agentmon.policy.network import parse_network, parse_ports
from agentmon.policy.rules import Complaints, Host, Network, Pattern, Rate, Requirement, Rule, Time, User
from agentmon.policy.schema import Location, RuleModel
from agentmon.policy.source import RuleSource, Source

#: The number that no user has: (uid_t) -1.
NOBODY_AT_ALL: Final = 0xFFFFFFFF

#: What braces may add to the patterns of a file, in bytes and wildcards: 400 bytes of them can stand for 200,000, and
#: an ordinary user's text must not keep the daemon busy.
MAX_ELEMENTS: Final = 250_000
#: As useradd(8) lets accounts be called, or a number, or the session's user.
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]*\$?|[0-9]{1,10}|\{user\}")

_MARK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_REQUIREMENT: Final = re.compile(rf"({_MARK.pattern})(?: +since +({_MARK.pattern}))?")
_RATE: Final = re.compile(r"([0-9]{1,6}) */ *(s|min|h|day)")
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "day": 86_400}
#: The largest number of a rate.
MOST_OFTEN: Final = 100_000


def rules_of(source: Source, complaints: Complaints) -> Iterator[Rule]:
    """Each rule of a file, packs apart; of one that has errors, what is without."""
    source.elements = 0  # packs are cached, and read again by each policy that includes them
    for i, model in enumerate(source.model.rules):
        yield rule_of(source, model, source.rule_location(i), complaints)


def rule_of(source: RuleSource, model: RuleModel, location: Location, complaints: Complaints) -> Rule:
    """One rule that stands at a place of a file; if it has errors, what is without."""
    return _RuleBuilder(source, model, location, complaints).rule()


class _RuleBuilder:
    def __init__(self, source: RuleSource, model: RuleModel, location: Location, complaints: Complaints) -> None:
        self.source = source
        self.model = model
        self.location = location
        self.complaints = complaints

    def rule(self) -> Rule:
        model = self.model
        operations = self._operations()
        action = schema.action(model.action)
        if isinstance(action, str):
            self._complain(action, "action")
        observe = schema.observes(model.mode)
        if isinstance(observe, str):
            self._complain(observe, "mode")
        elif observe and not isinstance(action, str) and not action.blocks:
            self._complain(f"`mode: observe` is for rules that block; `{model.action}` does not; leave it out", "mode")
        self._check_objects(operations)
        paths, exe = self._patterns("paths"), self._patterns("exe")
        except_paths, except_exe = self._patterns("except", "paths"), self._patterns("except", "exe")
        if operations == (Operation.EXEC,):
            paths, exe = paths + exe, ()
            except_paths, except_exe = except_paths + except_exe, ()
        argv, except_argv = self._argv("argv"), self._argv("except", "argv")
        if action is Action.HOLD:
            self._check_holdable(operations)
        parent, except_parent = self._patterns("parent"), self._patterns("except", "parent")
        users, except_users = self._users("user"), self._users("except", "user")
        risk, except_risk = self._risk("when"), self._risk("except")
        times, except_times = self._times("when", "time"), self._times("except", "time")
        requires, except_requires = self._requires("when"), self._requires("except")
        marks, rate = self._marks(action), self._rate(action)
        networks, except_networks = self._networks("cidrs"), self._networks("except", "cidrs")
        hosts, ports = self._hosts(), self._ports()
        return Rule(
            id=model.id,
            pack=self.source.pack,
            place=self.source.place((*self.location, "id")),
            operations=operations,
            action=Action.ALLOW if isinstance(action, str) else action,
            reason=" ".join(model.reason.split()),
            quiet=model.quiet,
            observe=observe is True,
            paths=paths,
            exe=exe,
            argv=argv,
            parent=parent,
            users=users,
            risk=risk,
            times=times,
            requires=requires,
            rate=rate,
            marks=marks,
            networks=networks,
            hosts=hosts,
            ports=ports,
            except_paths=except_paths,
            except_exe=except_exe,
            except_argv=except_argv,
            except_parent=except_parent,
            except_users=except_users,
            except_risk=except_risk,
            except_times=except_times,
            except_requires=except_requires,
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

    def _check_holdable(self, operations: Iterable[Operation]) -> None:
        if other := next((o for o in operations if o not in HOLDABLE), None):
            self._complain(f"`{other.word}` cannot be held; deny it, or write a rule of its own", "action")

    def _check_objects(self, operations: Iterable[Operation]) -> None:
        """Each kind of object needs operations that have it: a key that never applies is a mistake."""
        model = self.model
        nets = [o.word for o in operations if o.is_net]
        bare = [o.word for o in operations if o.is_bare]
        objects = [k for k in ("paths", "cidrs", "hosts", "ports") if getattr(model, k) is not None]
        objects += [k for k in ("paths", "cidrs") if getattr(model.carve, k)]
        if bare and objects:
            self._complain(f"`{bare[0]}` has no object; take `{objects[0]}` out, or write a rule of its own", "on")
            return
        files = [o.word for o in operations if o.is_path]
        for path, value in ((("paths",), model.paths), (("except", "paths"), model.carve.paths)):
            if value is not None and nets and (value or path == ("paths",)):
                self._complain(f"`paths` does not apply to `{nets[0]}`; write a rule of its own", *path, key=True)
        for net, values in (
            (("cidrs",), model.cidrs),
            (("hosts",), model.hosts),
            (("ports",), model.ports),
            (("except", "cidrs"), model.carve.cidrs),
        ):
            if values is not None and files and (values or net[0] != "except"):
                self._complain(f"`{net[-1]}` does not apply to `{files[0]}`; write a rule of its own", *net, key=True)
        for key in ("paths", "exe", "parent", "user", "marks", "cidrs", "hosts", "ports"):
            if getattr(model, key) == []:
                self._complain(f"`{key}` is empty; leave it out to match every object", key, key=True)
        if "carve" in model.model_fields_set:
            empty = [k for k in model.carve.model_fields_set if getattr(model.carve, k) == []]
            for key in sorted(empty):
                self._complain(f"`{key}` is empty; leave it out, or name what to except", "except", key, key=True)
            if not model.carve.model_fields_set:
                self._complain("`except` is empty; leave it out, or name what to except", "except", key=True)
        if model.hosts and not files:
            self._check_hosts(operations)
        if "exec" not in files:
            return
        programs = model.exe is not None or bool(model.carve.exe)
        if len(files) + len(nets) > 1 and programs:
            self._complain(
                "`exe` is the program to start on `exec`, but the running program elsewhere; write two rules",
                *(("except", "exe") if model.exe is None else ("exe",)),
                key=True,
            )
        if model.exe and model.paths:
            self._complain("`exe` and `paths` mean the same on `exec`; keep one", "exe", key=True)

    def _check_hosts(self, operations: Iterable[Operation]) -> None:
        """A name opens what the default closes. It closes nothing: its addresses have other names as well."""
        other = next((o for o in operations if o.is_net and o not in (Operation.CONNECT, Operation.SEND)), None)
        if other is not None:
            self._complain(f"`hosts` does not apply to `{other.word}`; write a rule of its own", "hosts", key=True)
        if self.model.action in ("deny", "kill"):
            self._complain(
                f"`{self.model.action}` by name stops nobody, who may use another name of the same address;"
                " let the default of `connect` deny, or use `cidrs`",
                "action",
            )
        if self.model.carve.cidrs:
            self._complain("a hole in `hosts` cannot be `cidrs`; deny those addresses in a rule", "except", "cidrs")

    def _texts(self, *at: str) -> list[str]:
        holder: Any = {"except": self.model.carve, "when": self.model.when}.get(at[0], self.model)
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
            if text.startswith("@") and (at[-1] in ("exe", "parent") or set(self._operations()) != {Operation.UNIX}):
                self.complaints.add(
                    pattern.place, f"`{text}` is the name of an abstract socket, which only `unix` has; start with `/`"
                )
                continue
            self.source.elements += max(0, sum(map(len, pattern.alternatives)) - len(text))
            if self.source.elements > MAX_ELEMENTS:
                self.complaints.stop(
                    pattern.place, "braces stand for too many or too long patterns here; name directories with `/**`"
                )
            found.append(pattern)
        return tuple(found)

    def _argv(self, *at: str) -> tuple[Pattern, ...] | None:
        model = self.model.carve if len(at) > 1 else self.model
        if model.argv is None:
            return None
        other = next((o for o in self._operations() if o is not Operation.EXEC), None)
        if other is not None:
            self._complain(
                f"`argv` is of a program that starts, it does not apply to `{other.word}`; write a rule on `exec`",
                *at, key=True,
            )  # fmt: skip
        if len(model.argv) > MAX_WORDS:
            self._complain(f"{len(model.argv)} arguments, {MAX_WORDS} fit; end in `**`", *at, key=True)
        found: list[Pattern] = []
        for i, text in enumerate(model.argv):
            location = self._item(i, *at)
            try:
                found.append(Pattern(text, self.source.place(location), parse_argument(text)))
            except GlobError as error:
                self.complaints.add(self.source.within(location, error.offset), f"in `{text}`: {error}")
        return tuple(found)

    def _users(self, *at: str) -> tuple[User, ...]:
        found: list[User] = []
        for i, text in enumerate(self._texts(*at)):
            place = self.source.place(self._item(i, *at))
            if _USER.fullmatch(text) and not (text.isdecimal() and int(text) >= NOBODY_AT_ALL):
                found.append(User(text, place))
            else:
                self.complaints.add(place, f"`{text}` is not a user; write a name, a number, or `{{user}}`")
        return tuple(found)

    def _risk(self, holder: str) -> Risk | None:
        word = (self.model.carve if holder == "except" else self.model.when).risk
        level = schema.risk(word) if word is not None else None
        if isinstance(level, str):
            self._complain(level, holder, "risk")
            return None
        return level

    def _times(self, *at: str) -> tuple[Time, ...]:
        found: list[Time] = []
        for i, text in enumerate(self._texts(*at)):
            place = self.source.place(self._item(i, *at))
            try:
                found.append(Time(text, place, parse_hours(text)))
            except ValueError as error:
                self.complaints.add(place, str(error))
        return tuple(found)

    def _requires(self, holder: str) -> tuple[Requirement, ...]:
        found: list[Requirement] = []
        for i, text in enumerate(self._texts(holder, "requires")):
            place = self.source.place(self._item(i, holder, "requires"))
            form = _REQUIREMENT.fullmatch(text)
            if form and form[1] != form[2]:
                found.append(Requirement(text, place, form[1], form[2] or ""))
            else:
                self.complaints.add(place, f"`{text}` names no mark; write such as `tested`, or `tested since edited`")
        return tuple(found)

    def _rate(self, action: Action | str) -> Rate | None:
        text = self.model.when.rate
        if text is None:
            return None
        if isinstance(action, Action) and action.blocks:
            self._complain(
                "a rate is of what a rule lets through; write `allow`, and let the default block the rest",
                "when", "rate",
            )  # fmt: skip
        form = _RATE.fullmatch(text)
        if not form or not 0 < int(form[1]) <= MOST_OFTEN:
            self._complain(
                f"`{text}` is not a rate; write such as `10/min` (or `/s`, `/h`, `/day`), from 1 to {MOST_OFTEN}",
                "when", "rate",
            )  # fmt: skip
            return None
        count = int(form[1])
        return Rate(text, self.source.place((*self.location, "when", "rate")), count, _SECONDS[form[2]] / count)

    def _marks(self, action: Action | str) -> tuple[str, ...]:
        marks = self._texts("marks")
        for i, mark in enumerate(marks):
            if not _MARK.fullmatch(mark):
                self.complaints.add(
                    self.source.place(self._item(i, "marks")), f"`{mark}` is not a name; use letters, digits and `-`"
                )
        if marks and isinstance(action, Action) and action.blocks:
            self._complain(f"a rule that blocks sets no marks; take them out, or `{action.word}`", "marks", key=True)
        return tuple(dict.fromkeys(marks))

    def _networks(self, *at: str) -> tuple[Network, ...]:
        found: list[Network] = []
        for i, text in enumerate(self._texts(*at)):
            place = self.source.place(self._item(i, *at))
            try:
                found.append(parse_network(text, place))
            except ValueError as error:
                self.complaints.add(place, str(error))
        return tuple(found)

    def _hosts(self) -> tuple[Host, ...]:
        found: list[Host] = []
        for i, text in enumerate(self._texts("hosts")):
            place = self.source.place(self._item(i, "hosts"))
            try:
                found.append(parse_host(text, place))
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
