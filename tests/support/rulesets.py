# SPDX-License-Identifier: Apache-2.0
"""Policies of any number of rules, each kind of pattern among them: for tests and benchmarks of scale."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

WORDS = (  # noqa: SIM905  # a list of words
    "core util api model view data config parse token index cache store client server proto build tool main base"
    " common stream buffer event queue graph node edge table schema query plan rule match path glob secret vault"
).split()
SUFFIXES = (  # noqa: SIM905
    "pem key crt p12 kdbx jks gpg asc ovpn env bak old orig swp sqlite db dump sql csv parquet pkl npy h5 log"
    " tfstate tfvars keytab pgpass netrc htpasswd"
).split()
OPERATIONS = ("read", ["write", "create"], ["read", "write", "create"])
ACTIONS = ("deny", "deny", "audit", "kill", "allow")
LENIENT = ("audit", "allow")

#: Of a hundred rules: exact paths, directories, wildcards below one, suffixes, names anywhere, programs, addresses.
MIX = (
    ["exact"] * 40 + ["below"] * 22 + ["wild"] * 10 + ["suffix"] * 6 + ["anywhere"] * 10 + ["exe"] * 4 + ["net"] * 8
)  # fmt: skip


def mixed(count: int, base: str = "/srv", seed: int = 1, actions: Sequence[str] = ACTIONS) -> str:
    """A policy (JSON, so YAML too) of ``count`` rules of all kinds, most of them below ``base``."""
    rng = random.Random(seed)
    kinds = MIX * (count // len(MIX)) + rng.sample(MIX, count % len(MIX))
    rng.shuffle(kinds)
    return _policy([_rule(rng, i, kind, base, actions) for i, kind in enumerate(kinds)])


def everywhere(count: int, seed: int = 1) -> str:
    """A policy of ``count`` rules ``**/NAME/**``, each of another name."""
    rng = random.Random(seed)
    names = rng.sample([f".{a}-{b}{n}" for a in WORDS for b in WORDS for n in range(8)], count)
    rules = [
        {"id": f"r{i}", "on": "read", "action": rng.choice(ACTIONS), "paths": f"**/{n}/**"} for i, n in enumerate(names)
    ]
    return _policy(list(rules))


def _policy(rules: list[dict[str, object]]) -> str:
    default = dict.fromkeys(("exec", "read", "write", "create", "connect"), "allow")
    return json.dumps({"policy": f"rules-{len(rules)}", "default": default, "rules": rules}, separators=(",", ":"))


def _rule(rng: random.Random, number: int, kind: str, base: str, actions: Sequence[str]) -> dict[str, object]:
    rule: dict[str, object] = {"id": f"r{number}", "on": rng.choice(OPERATIONS), "action": rng.choice(actions)}
    where = rng.choice([base, "/home/dev", "/opt/app", "/var/lib"]) if rng.random() < 0.5 else base
    for _ in range(rng.randint(1, 3)):
        where += f"/{rng.choice(WORDS)}{rng.randint(0, 30)}"
    name = f"{rng.choice(WORDS)}_{rng.choice(WORDS)}{number}"
    match kind:
        case "exact":
            rule["paths"] = f"{where}/{name}.{rng.choice(SUFFIXES)}"
        case "below":
            rule["paths"] = f"{where}/{name}/**"
        case "wild":
            rule["paths"] = rng.choice([f"{where}/{name}*", f"{where}/*/{name}", f"{where}/**/{name}.*"])
        case "suffix":
            rule["paths"] = f"**/*.{rng.choice(SUFFIXES)}"
        case "anywhere":
            rule["paths"] = f"**/.{name}/**"
        case "exe":
            rule["paths"] = f"{where}/{name}/**"
            rule["exe"] = f"/usr/bin/{rng.choice(WORDS)}"
        case _:
            rule["on"] = ["connect", "send"]
            rule["cidrs"] = f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.0/24:{rng.randint(1, 9999)}"
    return rule


def paths(count: int, text: str, workspace: str = "", seed: int = 2) -> list[bytes]:
    """Paths that such a policy has much to say about: its own, a little changed."""
    rng = random.Random(seed)
    patterns = [
        rule["paths"].replace("{workspace}", workspace) for rule in json.loads(text)["rules"] if "paths" in rule
    ]
    found = []
    for _ in range(count):
        path = rng.choice(patterns)
        while "*" in path:
            into = rng.choice(["", "/x", f"/{rng.choice(WORDS)}3"]) if "**" in path else ""
            path = path.replace("/**", into, 1) if "/**" in path else path.replace("**", "/srv" + into, 1)
            if "**" not in path:
                path = path.replace("*", rng.choice(["", "a", "core_util1"]), 1)
        match rng.randint(0, 5):
            case 0:
                path += rng.choice(["x", "/y", "/.core_util3/z", ".pem"])
            case 1:
                path = path[: rng.randint(1, len(path))]
            case 2:
                path = rng.choice(patterns).split("*")[0].rstrip("/") + path
        found.append(path.replace("//", "/").rstrip("/").encode() or b"/")
    return found
