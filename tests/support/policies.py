# SPDX-License-Identifier: Apache-2.0
"""Policies and objects for tests that hold evaluator, automaton and kernel together.

`GOLDEN` are cases written by hand, each for one trap; `random_case` makes any number more, each from one integer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from agentmon.model.conditions import Risk
from agentmon.model.operations import Action, Operation
from agentmon.policy.load import load_text
from agentmon.policy.rules import Policy, Variables
from agentmon.policy.situation import Situation

#: Where the golden and random paths live. Kernel tests may use another: `golden(base)`, `random_case(…, base)`.
BASE = "/srv/fence"

#: Lists of users that random policies name.
USERS = [["root"], ["0", "65534"], ["1"], ["65534"]]

RISKS = [risk.word for risk in Risk]
TIMES = [["00:00-24:00 UTC"], ["Mon-Fri 09:00-18:00 Europe/Berlin"], ["Sat,Sun 22:00-06:00 America/New_York"]]

MARKS = ["m", "n"]
REQUIRES = ["m", "n", "m since n", "n since m"]

PATH_OPERATIONS = (Operation.EXEC, Operation.READ, Operation.WRITE, Operation.CREATE)

_COMPONENTS = ["a", "b", "ab", ".x", "x.pem", "A-1", "é", "a b", "*", "[a]", "{b}", "\udcff", "\n", "aa"]
_PIECES = [
    "a",
    "b",
    "ab",
    ".x",
    "*",
    "a*",
    "*.pem",
    "?",
    "[ab]",
    "[!a]*",
    "{a,b}",
    "{a*,.x}",
    "**",
    "a**",
    "\\*",
    "é",
    "**b",
]


@dataclass(frozen=True, slots=True)
class Case:
    """One question: the true path and what the policy must say."""

    operation: Operation
    path: bytes
    action: Action
    rule: str | None = None  # None: the default decides
    exe: bytes | None = None


def variables(base: str = BASE) -> Variables:
    """The variables of golden and random cases."""
    return Variables.of(workspace=f"{base}/ws", home=f"{base}/home/me", user="me", tmp=f"{base}/tmp")


GOLDEN_TEXT = """
policy: golden
default: {exec: deny, read: allow, write: deny, create: deny, connect: deny}
rules:
  - {id: workspace, on: [write, create], paths: ["{workspace}/**"], action: allow}
  - {id: hooks, on: [write, create], paths: ["{workspace}/**/.git/hooks/**"], action: deny}
  - {id: keys, on: [read, write, create], paths: ["**/.ssh/**"], except: {paths: ["**/.ssh/*.pub"]}, action: deny}
  - {id: homes, on: read, paths: ["BASE/home/**"], except: {paths: ["~/**"]}, action: deny}
  - {id: pem, on: read, paths: ["**/*.pem"], except: {paths: ["BASE/ca/**"]}, action: deny}
  - {id: shadow, on: [read, write], paths: ["BASE/etc/shadow"], action: kill}
  - {id: tools, on: exec, exe: ["BASE/bin/*", "BASE/opt/**/bin/{sh,py*}"], action: allow}
  - {id: no-sh, on: exec, exe: "BASE/bin/[a-c]sh", action: deny}
  - {id: log, on: write, paths: ["BASE/log/**"], exe: ["BASE/bin/logger"], action: allow}
  - {id: log-seen, on: write, paths: ["BASE/log/?.txt"], exe: ["BASE/bin/logger"], action: audit}
  - {id: odd, on: read, paths: ["BASE/odd/\\\\*", "BASE/odd/\\\\[a\\\\]", "BASE/odd/é?"], action: deny}
  - {id: prefix, on: read, paths: ["BASE/pre**"], action: audit}
"""


def golden(base: str = BASE) -> tuple[Policy, Variables, list[Case]]:
    """The golden policy and its cases below a directory."""
    policy = load_text(GOLDEN_TEXT.replace("BASE", base), "golden.yaml")
    allow, audit, deny, kill = Action.ALLOW, Action.AUDIT, Action.DENY, Action.KILL
    exec_, read, write, create = PATH_OPERATIONS
    rows: list[tuple[Operation, str, Action, str | None, str | None]] = [
        (write, "/ws", allow, "workspace", None),  # /** is the directory itself too
        (create, "/ws/a/b", allow, "workspace", None),
        (write, "/wsx", deny, None, None),
        (write, "/ws/.git/hooks/pre-commit", deny, "hooks", None),  # /**/ is also no directory
        (create, "/ws/a/b/.git/hooks", deny, "hooks", None),
        (write, "/ws/.git/hooksx", allow, "workspace", None),
        (write, "/ws/.git/config", allow, "workspace", None),
        (read, "/home/me/.ssh/id_rsa", deny, "keys", None),
        (read, "/home/me/.ssh", deny, "keys", None),
        (read, "/home/me/.ssh/id_rsa.pub", allow, None, None),
        (read, "/home/me/.ssh/old/id_rsa.pub", deny, "keys", None),  # `*` stays in its directory
        (read, "/home/me/.sshx/id", allow, None, None),
        (write, "/ws/.ssh/x", deny, "keys", None),
        (read, "/home/you/notes", deny, "homes", None),
        (read, "/home/me/notes", allow, None, None),
        (read, "/home/me", allow, None, None),  # the hole of /** is the directory itself too
        (read, "/home/mel", deny, "homes", None),
        (read, "/home", deny, "homes", None),
        (read, "/x/server.pem", deny, "pem", None),
        (read, "/ca/root.pem", allow, None, None),
        (read, "/x/server.pem/a", allow, None, None),
        (read, "/home/you/.ssh/x.pem", deny, "keys", None),  # of equal ones, the first written
        (read, "/etc/shadow", kill, "shadow", None),
        (read, "/etc/shadow-", allow, None, None),
        (exec_, "/bin/ls", allow, "tools", None),
        (exec_, "/bin/x/ls", deny, None, None),
        (exec_, "/bin/bsh", deny, "no-sh", None),
        (exec_, "/opt/bin/py3", allow, "tools", None),
        (exec_, "/opt/a/b/bin/sh", allow, "tools", None),
        (exec_, "/opt/a/b/bin/bash", deny, None, None),
        (write, "/log/x", deny, None, None),
        (write, "/log/x", deny, None, "/bin/cat"),
        (write, "/log/x", allow, "log", "/bin/logger"),
        (write, "/log/x.txt", audit, "log-seen", "/bin/logger"),
        (read, "/odd/*", deny, "odd", None),
        (read, "/odd/b", allow, None, None),
        (read, "/odd/[a]", deny, "odd", None),
        (read, "/odd/éx", deny, "odd", None),
        (read, "/odd/é", allow, None, None),
        (read, "/pre", audit, "prefix", None),
        (read, "/prefix/a/b", audit, "prefix", None),
    ]
    cases = [
        Case(
            operation,
            (base + path).encode("utf-8", "surrogateescape"),
            action,
            rule,
            (base + exe).encode() if exe else None,
        )
        for operation, path, action, rule, exe in rows
    ]
    return policy, variables(base), cases


def _pattern(rng: random.Random, base: str) -> str:
    start = rng.choice([base, base, "{workspace}", "~", "**", base + "/**"])
    pieces = [rng.choice(_PIECES) for _ in range(rng.randint(0 if start != "**" else 1, 4))]
    if rng.random() < 0.4:
        pieces.append("**")
    return "/".join([start, *pieces])


def _ask(rng: random.Random, rule: dict[str, object], carve: dict[str, object], programs: list[list[str]]) -> None:
    """Some conditions on who acts."""
    if rng.random() < 0.4:
        rule["parent"] = rng.choice(programs)
    if rng.random() < 0.2:
        carve["parent"] = rng.choice(programs)
    if rng.random() < 0.3:
        rule["user"] = rng.choice(USERS)
    if rng.random() < 0.15:
        carve["user"] = rng.choice(USERS)
    when: dict[str, object] = {}
    if rng.random() < 0.25:
        when["risk"] = rng.choice(RISKS)
    if rng.random() < 0.2:
        when["time"] = rng.choice(TIMES)
    if rng.random() < 0.2:
        when["requires"] = rng.sample(REQUIRES, rng.randint(1, 2))
    if rule["action"] in ("allow", "audit") and rng.random() < 0.1:
        when["rate"] = rng.choice(["10/min", "1/s"])
    if when:
        rule["when"] = when
    if rng.random() < 0.1:
        carve["requires"] = rng.choice(REQUIRES)
    if rule["action"] in ("allow", "audit") and rng.random() < 0.3:
        rule["marks"] = rng.sample(MARKS, rng.randint(1, 2))
    if rng.random() < 0.1:
        carve["risk"] = rng.choice(RISKS)
    if rng.random() < 0.1:
        carve["time"] = rng.choice(TIMES)


def random_situation(rng: random.Random, base: str = BASE) -> Situation:
    """Somebody for whom the conditions of random policies hold, or not."""
    programs = [f"{base}/bin/a", f"{base}/bin/c", f"{base}/x/b", f"{base}/opt/t", f"{base}/none"]
    parents = tuple(p.encode() for p in rng.sample(programs, rng.randint(0, 2)))
    time_s = rng.choice([None, 1_774_747_800.0 + rng.randrange(7 * 86_400)])
    marks = tuple(rng.sample(MARKS, rng.randint(0, 2)))
    over = tuple(f"r{i}" for i in range(8) if rng.random() < 0.5)
    return Situation(parents, rng.choice([0, 1, 65534, 4242]), rng.choice(list(Risk)), time_s, marks, over)


def random_text(seed: int, base: str = BASE, *, conditions: bool = False) -> str:
    """A random valid policy, as YAML."""
    import json

    rng = random.Random(seed)
    words = [o.word for o in PATH_OPERATIONS]
    actions = ["allow", "audit", "deny", "kill"]
    programs = [[f"{base}/bin/a"], [f"{base}/bin/*"], [f"{base}/**/b"], [f"{base}/opt/**"]]
    rules = []
    for i in range(rng.randint(1, 7)):
        rule: dict[str, object] = {"id": f"r{i}", "action": rng.choice(actions)}
        rule["on"] = rng.sample(words, rng.randint(1, 4))
        if rng.random() < 0.9:
            rule["paths"] = [_pattern(rng, base) for _ in range(rng.randint(1, 3))]
        carve: dict[str, object] = {}
        if rng.random() < 0.4:
            carve["paths"] = [_pattern(rng, base) for _ in range(rng.randint(1, 2))]
        if "exec" not in rule["on"]:  # type: ignore[operator]  # a list of words
            if rng.random() < 0.3:
                rule["exe"] = rng.choice(programs)
            if rng.random() < 0.15:
                carve["exe"] = rng.choice(programs)
        if conditions:
            _ask(rng, rule, carve, programs)
        if carve:
            rule["except"] = carve
        rules.append(rule)
    if conditions:  # somebody sets each mark
        rules.append({"id": "marks", "on": "read", "paths": f"{base}/none", "action": "allow", "marks": MARKS})
    default = {word: rng.choice(["allow", "deny"]) for word in words}
    return json.dumps({"policy": f"random-{seed}", "default": default, "rules": rules}, ensure_ascii=False)


def random_paths(seed: int, count: int, base: str = BASE) -> list[bytes]:
    """True paths that random policies have a chance to match; odd bytes included."""
    rng = random.Random(seed ^ 0x5EED)
    starts = [base, base + "/ws", base + "/home/me", base + "/bin", base + "/opt", "/", base + "/home/you"]
    paths = []
    for _ in range(count):
        parts = [rng.choice(_COMPONENTS) for _ in range(rng.randint(0, 5))]
        path = "/".join([rng.choice(starts).rstrip("/"), *parts])
        paths.append((path or "/").encode("utf-8", "surrogateescape"))
    return paths


def random_case(
    seed: int, paths: int = 20, base: str = BASE, *, conditions: bool = False
) -> tuple[Policy, Variables, list[tuple[Operation, bytes, bytes]]]:
    """A random policy and questions to it: (operation, path, running program)."""
    rng = random.Random(seed ^ 0xCA5E)
    programs = [f"{base}/bin/a", f"{base}/bin/c", f"{base}/x/b", f"{base}/opt/t", f"{base}/none"]
    questions = [
        (rng.choice(PATH_OPERATIONS), path, rng.choice(programs).encode()) for path in random_paths(seed, paths, base)
    ]
    return load_text(random_text(seed, base, conditions=conditions), f"random-{seed}.yaml"), variables(base), questions
