# SPDX-License-Identifier: Apache-2.0
"""A policy from recorded sessions: an included pack, and rules for what they did beyond it.

What a blocking rule of the pack forbids stays forbidden, of itself: the most severe rule wins. Files whose names look
like keys, tokens or credentials are denied by a rule of their own unless a rule of the pack allows them. What was
blocked when it was recorded is not learnt either, unless asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentmon.model.operations import OPERATIONS, PART_OF_WRITE, Action, Operation
from agentmon.model.tables import NO_RULE
from agentmon.model.text import clean
from agentmon.policy.bind import BoundPolicy, bind_policy
from agentmon.policy.generalise import Place, Source, patterns, place
from agentmon.policy.load import load_text
from agentmon.policy.recorded import RecordedAction, RecordedSession, Target
from agentmon.policy.replay import Outcome, Replay
from agentmon.policy.rules import Variables

#: Whether an open is `write` or `create` hangs on whether the file was there already: they are learnt together.
_TOGETHER = {
    Operation.WRITE: (Operation.WRITE, Operation.CREATE),
    Operation.CREATE: (Operation.WRITE, Operation.CREATE),
}

_FILE_OPERATIONS = tuple(o for o in OPERATIONS if o.is_path and o not in (Operation.EXEC, Operation.UNIX))

_SECRET = re.compile(
    r"""
      (?:^|.*[._-])(?:id_(?:rsa|dsa|ecdsa|ed25519)(?:_sk)?|secrets?|tokens?|credentials?|passwords?|passphrase
        |api[_-]?keys?|private[_-]?keys?|access[_-]?keys?|secret[_-]?keys?|htpasswd|netrc|pgpass|keyring|keystore|wallet)
        (?:[._-].*)?
    | .*\.(?:pem|key|p12|pfx|jks|kdbx?|keytab|ppk|ovpn)
    | \.env(?:\..+)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SECRET_DIRECTORIES = ("/secrets", "/.secrets", "/credentials", "/.credentials")
#: Such names that hold no secret: sources of programs, documents, templates, public keys, certificates of authorities.
_NO_SECRET = re.compile(
    r".*\.(?:py[cio]?|[jt]sx?|[cm]js|go|rs|[ch]|cc|cpp|hpp|java|class|rb|php|sh|so|md|rst|html?|css|pub|crt"
    r"|example|sample|template|dist)|.*cacert.*\.pem|ca-bundle.*|.*\.cpython-.*",
    re.IGNORECASE,
)
_ELSEWHERE = Variables.of(workspace="/srv/workspace", home="/home/user", user="user")
#: What the distribution ships is the same for everybody.
_PUBLIC = ("/usr/", "/lib", "/etc/ssl/certs/", "/etc/pki/", "/etc/ca-certificates/", "/proc/", "/sys/")


@dataclass(frozen=True, slots=True)
class LearntRule:
    """A rule to be written. ``objects``: patterns, addresses or (``named``) hosts; how many actions, and an example."""

    id: str
    operations: tuple[Operation, ...]
    action: Action
    objects: tuple[tuple[str, int, str], ...]
    reason: str = ""
    named: bool = False

    @property
    def is_net(self) -> bool:
        """Whether the objects are addresses."""
        return self.operations[0].is_net


@dataclass(frozen=True, slots=True, order=True)
class KeptOut:
    """An action that the policy does not allow, and why."""

    operation: Operation
    object: str
    why: str


@dataclass(slots=True)
class Learnt:
    """The result. ``allowed``: actions that the included pack allows already; ``unknown``: it cannot be known.

    ``undecided``: what was blocked at one moment and not at another; the policy allows it.
    """

    text: str = ""
    rules: list[LearntRule] = field(default_factory=list)
    kept_out: list[KeptOut] = field(default_factory=list)
    undecided: set[KeptOut] = field(default_factory=set)
    learnt: int = 0
    allowed: int = 0
    unknown: int = 0
    denied: dict[str, list[Outcome]] = field(default_factory=dict)  # session -> what it would still deny


Recorded = Sequence[tuple[RecordedSession, Variables]]


def looks_secret(path: str) -> bool:
    """Whether a file's name, or its directory's, looks like that of a key, a token or a credential."""
    directory, _, name = path.rpartition("/")
    looks = _SECRET.fullmatch(name) or directory.endswith(_SECRET_DIRECTORIES)
    return bool(looks) and not _NO_SECRET.fullmatch(name) and not path.startswith(_PUBLIC)


def learn(
    recorded: Recorded, *, name: str = "learnt", include: Sequence[str] = ("base",), strict: bool = False,
    blocked: bool = False, directories: Sequence[Path] | None = None,
) -> Learnt:  # fmt: skip
    """Make a policy of what these sessions did.

    ``strict``: nothing is allowed by default, so reading and running programs is learnt as well. ``blocked``: also
    learn what was blocked when it was recorded.

    Raises:
        PolicyError: the pack cannot be loaded, the name is no name, or the result is too large.
    """
    work = _Work(name, tuple(include), strict, blocked, directories)
    for session, variables in recorded:
        work.take(session, variables)
    return work.result(recorded)


class _Work:
    def __init__(
        self, name: str, include: tuple[str, ...], strict: bool, blocked: bool, directories: Sequence[Path] | None
    ) -> None:
        self.name, self.include, self.strict, self.blocked = name, include, strict, blocked
        self.directories = directories
        self.learnt = Learnt()
        self.stub = load_text(_head(name, include, {}), f"{name}.yaml", directories=directories)
        self.defaults = {o: Action.DENY if strict else self.stub.defaults.get(o, Action.DENY) for o in OPERATIONS}
        if strict:
            self.stub = load_text(_head(name, include, self.defaults), f"{name}.yaml", directories=directories)
        self.paths: dict[tuple[Operation, ...], set[tuple[Place, Source]]] = {}
        self.exact: set[tuple[Operation, str]] = set()  # what was learnt, before it was generalised
        self.addresses: dict[tuple[bool, str], set[Operation]] = {}  # whether it is the name of a host
        self.bare: set[Operation] = set()
        self.secrets: dict[str, set[Operation]] = {}  # by pattern
        self.lesser: list[tuple[RecordedAction, Variables]] = []  # part of `write`
        self.refused: list[tuple[RecordedAction, Variables]] = []  # blocked when recorded
        self.permitted: set[tuple[Operation, Target]] = set()  # not blocked when recorded

    def take(self, session: RecordedSession, variables: Variables) -> None:
        """Sort the actions of a session: allowed already, kept out, to be learnt."""
        self.permitted |= {(a.operation, a.target) for a in session.actions if not a.verdict.blocks}
        replay, elsewhere = (Replay(bind_policy(self.stub, values)) for values in (variables, _ELSEWHERE))
        for action in session.actions:
            judge, judged = replay, action
            verdict = replay.judge(action)
            moved = _moved(action, variables)
            if moved is not None and verdict is not None and not verdict.action.blocks:
                # Allowed only because the workspace is where it is, such as below /tmp? The next one may be elsewhere.
                there = elsewhere.judge(moved)
                if there is not None and there.rule == NO_RULE:
                    judge, judged, verdict = elsewhere, moved, there
            by_default = verdict is not None and verdict.rule == NO_RULE
            is_file = action.operation in _FILE_OPERATIONS
            if verdict is None:
                self.learnt.unknown += 1
            elif by_default and is_file and looks_secret(action.object):
                self._keep_out(action, "its name looks like a secret")
                self._deny(judged, judge)
            elif action.verdict.blocks and action.rule and not verdict.action.blocks and not self.blocked:
                self.refused.append((action, variables))  # a rule said so: the pack alone would allow it
            elif not verdict.action.blocks:
                self.learnt.allowed += 1
            elif not by_default:
                info = replay.bound.rules[verdict.rule].rule
                self._keep_out(action, f"{info.id} of {info.pack}: {info.reason}" if info.reason else info.id)
            elif action.verdict.blocks and not self.blocked:
                self.refused.append((action, variables))
            else:
                self._learn(action, variables)

    def _keep_out(self, action: RecordedAction, why: str) -> None:
        self.learnt.kept_out.append(KeptOut(action.operation, action.object, why))

    def _deny(self, secret: RecordedAction, judge: Replay) -> None:
        """All that can be done to a secret, but for what a rule of the pack says is right."""
        assert isinstance(secret.target, bytes)
        denied = self.secrets.setdefault(_exactly(secret.target, judge.bound.variables), set())
        for operation in _FILE_OPERATIONS:
            verdict = judge.judge(replace(secret, operation=operation))
            if verdict is not None and (verdict.rule == NO_RULE or verdict.action.blocks):
                denied.add(operation)
        if Operation.WRITE in denied:
            denied.difference_update(PART_OF_WRITE)

    def _learn(self, action: RecordedAction, variables: Variables) -> None:
        self.learnt.learnt += 1
        if action.operation in PART_OF_WRITE:
            self.lesser.append((action, variables))
        else:
            self._note(action, variables)

    def _note(self, action: RecordedAction, variables: Variables) -> None:
        if isinstance(action.target, bytes):
            operations = _TOGETHER.get(action.operation, (action.operation,))
            source = (action.object, action.operation.word)
            self.paths.setdefault(operations, set()).add((place(action.target, variables), source))
            exactly = _exactly(action.target, variables)
            self.exact |= {(operation, exactly) for operation in operations}
        elif action.target is None:
            self.bare.add(action.operation)
        else:
            text = f"{action.host}:{action.target[1]}" if action.host else action.object
            self.addresses.setdefault((bool(action.host), text), set()).add(action.operation)

    def result(self, recorded: Recorded) -> Learnt:
        """Write the policy down, and replay all sessions under it."""
        learnt = self.learnt
        learnt.rules = list(self._path_rules())
        # What may be written may also be removed, renamed and so on: only the rest needs rules of its own.
        judges = {variables: Replay(self._bind(variables)) for _, variables in self.lesser}
        for action, variables in self.lesser:
            verdict = judges[variables].judge(action)
            if verdict is None or verdict.action.blocks:
                self._note(action, variables)
        learnt.rules = [*self._path_rules(), *self._net_rules(), *self._bare_rules(), *self._secret_rules()]
        learnt.rules += self._refuse()
        for session, variables in recorded:
            outcomes = Replay(self._bind(variables)).session(session)
            denied = [o for o in outcomes if o.verdict is not None and o.verdict.blocks]
            learnt.denied[session.id] = denied
            known = {(k.operation, k.object) for k in learnt.kept_out}
            for outcome in denied:  # two sessions may disagree about what one pattern stands for
                if (outcome.action.operation, outcome.action.object) not in known:
                    self._keep_out(outcome.action, f"{outcome.rule or 'default'}: {outcome.why}")
        learnt.kept_out = sorted(set(learnt.kept_out))
        learnt.text = self._text([session.id for session, _ in recorded])
        return learnt

    def _bind(self, variables: Variables) -> BoundPolicy:
        text = self._text([])
        return bind_policy(load_text(text, f"{self.name}.yaml", directories=self.directories), variables)

    def _path_rules(self) -> Iterable[LearntRule]:
        by_pattern: dict[str, dict[Operation, frozenset[Source]]] = {}
        for operations, places in self.paths.items():
            for general in patterns(places, siblings=Operation.EXEC not in operations):
                for operation in operations:
                    by_pattern.setdefault(general.pattern, {})[operation] = general.sources
        groups: dict[tuple[tuple[Operation, ...], str], list[tuple[str, int, str]]] = {}
        for pattern, sources in sorted(by_pattern.items()):
            whole = {source for found in sources.values() for source in found}
            group = groups.setdefault((tuple(sorted(sources)), _anchor(pattern)), [])
            group.append((pattern, len(whole), max(whole)[0]))
        for (operations, anchor), objects in sorted(groups.items()):
            words = "-".join(o.word for o in operations)
            yield LearntRule(f"learnt-{words}-{anchor}", operations, Action.ALLOW, tuple(objects))

    def _net_rules(self) -> Iterable[LearntRule]:
        groups: dict[tuple[tuple[Operation, ...], bool], list[tuple[str, int, str]]] = {}
        for (named, text), on in sorted(self.addresses.items()):
            groups.setdefault((tuple(sorted(on)), named), []).append((text, len(on), ""))
        for (operations, named), objects in sorted(groups.items()):
            words = "-".join([*(o.word for o in operations), *(["hosts"] if named else [])])
            yield LearntRule(f"learnt-{words}", operations, Action.ALLOW, tuple(objects), named=named)

    def _bare_rules(self) -> Iterable[LearntRule]:
        if self.bare:
            operations = tuple(sorted(self.bare))
            yield LearntRule(f"learnt-{'-'.join(o.word for o in operations)}", operations, Action.ALLOW, ())

    def _secret_rules(self) -> Iterable[LearntRule]:
        groups: dict[tuple[Operation, ...], list[tuple[str, int, str]]] = {}
        for pattern, on in sorted(self.secrets.items()):
            groups.setdefault(tuple(sorted(on)), []).append((pattern, 1, ""))
        why = "its name looks like a secret; take it out of this rule if the agent needs it"
        for number, (operations, objects) in enumerate(sorted(groups.items()), start=1):
            name = "secrets" if number == 1 else f"secrets-{number}"
            yield LearntRule(name, operations, Action.DENY, tuple(objects), why)

    def _refuse(self) -> list[LearntRule]:
        """What was blocked stays so, also where a pattern for its neighbours, or the pack, would now allow it."""
        judges = {variables: Replay(self._bind(variables)) for _, variables in self.refused}
        denied: dict[Operation, dict[str, None]] = {}
        why = "it was blocked when it was recorded"
        for action, variables in self.refused:
            verdict = judges[variables].judge(action)
            if verdict is not None and not verdict.action.blocks:
                exactly = _exactly(action.target, variables) if isinstance(action.target, bytes) else action.object
                if (action.operation, action.target) in self.permitted or (action.operation, exactly) in self.exact:
                    # at another moment, or with other arguments: the log does not tell which
                    self.learnt.undecided.add(
                        KeptOut(action.operation, action.object, f"{action.rule or 'default'}: also blocked")
                    )
                    continue
                denied.setdefault(action.operation, {})[exactly] = None
            self._keep_out(action, why)
        return [
            LearntRule(f"blocked-{o.word}", (o,), Action.DENY, tuple((p, 1, "") for p in sorted(found) if p), why)
            for o, found in sorted(denied.items())
        ]

    def _text(self, sessions: Collection[str]) -> str:
        learnt = self.learnt
        lines = []
        if sessions:
            lines += [
                f"# Learnt from {learnt.learnt} distinct actions of {', '.join(sessions)}; {learnt.allowed} more are",
                f"# allowed by {', '.join(self.include)} or a default. Read it before you rely on it.",
                "",
            ]
        lines.append(_head(self.name, self.include, self.defaults).rstrip("\n"))
        if learnt.rules:
            lines += ["", "rules:"]
        for rule in learnt.rules:
            lines += _rule_lines(rule)
        if sessions and learnt.kept_out:
            lines.append("")
            lines += [f"# not allowed: {k.operation.word} {clean(k.object)} ({clean(k.why)})" for k in learnt.kept_out]
        if sessions and learnt.undecided:
            lines += [
                "",
                "# Allowed, though a rule blocked it at times (by arguments, hours, marks?); write that rule again:",
            ]
            lines += [f"#   {k.operation.word} {clean(k.object)} ({clean(k.why)})" for k in sorted(learnt.undecided)]
        return "\n".join(lines) + "\n"


def _head(name: str, include: Sequence[str], defaults: dict[Operation, Action]) -> str:
    lines = [f"policy: {_quoted(name)}", f"include: [{', '.join(map(_quoted, include))}]"]
    if defaults:
        said = {o: a for o, a in defaults.items() if o not in PART_OF_WRITE}  # as `write`, unless a pack says more
        lines.append("default: {" + ", ".join(f"{o.word}: {a.word}" for o, a in said.items()) + "}")
    return "\n".join(lines) + "\n"


def _rule_lines(rule: LearntRule) -> list[str]:
    actions = sum(count for _, count, _ in rule.objects) or len(rule.operations)
    lines = [
        f"  # from {actions} {'action' if rule.action is Action.ALLOW else 'object'}{'s' if actions != 1 else ''}",
        f"  - id: {rule.id}",
        f"    on: [{', '.join(o.word for o in rule.operations)}]",
    ]
    if rule.objects:
        lines.append("    hosts:" if rule.named else "    cidrs:" if rule.is_net else "    paths:")
    for text, count, example in rule.objects:
        general = text.endswith("*") and example
        note = f"  # {count}, such as {clean(example)}" if general else f"  # {count}" if count > 1 else ""
        lines.append(f"      - {_quoted(text)}{note}")
    lines.append(f"    action: {rule.action.word}")
    if rule.reason:
        lines.append(f"    reason: {rule.reason}")
    return lines


def _quoted(text: str) -> str:
    """Text as YAML reads it back: plain where that is safe."""
    if re.fullmatch(r"[A-Za-z/][A-Za-z0-9_./+-]*", text) and text != "null":
        return text
    return json.dumps(text, ensure_ascii=False)


def _moved(action: RecordedAction, variables: Variables) -> RecordedAction | None:
    """The same action in a workspace that no rule knows; None if it is not in the workspace."""
    if not isinstance(action.target, bytes) or place(action.target, variables).anchor != "{workspace}":
        return None
    return replace(action, target=_ELSEWHERE.workspace + action.target[len(variables.workspace) :])


def _exactly(path: bytes, variables: Variables) -> str:
    """The pattern of one path."""
    return place(path, variables, changing=False).pattern()


def _anchor(pattern: str) -> str:
    for start, word in (("{workspace}", "workspace"), ("~", "home"), ("{tmp}", "tmp")):
        if pattern == start or pattern.startswith(start + "/"):
            return word
    return "system"
