# SPDX-License-Identifier: Apache-2.0
"""``agentmon profile``."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmon.cli.common import Parser, add_json, add_verb, audit_path, fingerprint_settings, print_json, say
from agentmon.cli.recorded import SESSION_HELP, add_log
from agentmon.errors import AgentmonError

if TYPE_CHECKING:
    from agentmon.fingerprint.baseline import Baseline
    from agentmon.fingerprint.document import Agent
    from agentmon.fingerprint.store import Store
    from agentmon.fingerprint.training import Recorded, Tier

DIRECTORY = Path("/var/lib/agentmon/profiles")
NAME_HELP = "the baseline's name"


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "profile",
        "learn what is normal for an agent, and how far a session is from it",
        """
        A baseline is what sessions of one agent have in common: which acts, in which order, on
        which classes of objects, by which programs and hosts. It says how far another session is
        from that, with a promise: at most so many false alerts in so many sessions, if the agent
        behaves as in its baseline. It decides nothing: rules may ask for the risk (`when: {risk: …}`).

        Training needs scikit-learn: pip install 'agentmon[fingerprint]'. No daemon is needed, only
        the audit log.
        """,
        """
        sudo agentmon profile train my-agent all
        sudo agentmon profile score my-agent last
        agentmon profile show my-agent --plot plots/
        sudo agentmon profile train my-agent s-7f3a --add
        agentmon profile export my-agent my-agent.json
        sudo agentmon profile import my-agent.json

        exit status: 0 ok, 1 failure or too little data, 2 a session is over the threshold, or drifts
        """,
    )
    verbs = parser.add_subparsers(
        dest="profile_verb", metavar="train|score|show|list|export|import", required=True, parser_class=Parser
    )
    _train(verbs)
    score = verbs.add_parser(
        "score", help="how far sessions are from a baseline; exit status 2 if one is over the threshold"
    )
    score.add_argument("name", metavar="NAME", help=NAME_HELP)
    score.add_argument("sessions", nargs="+", metavar="SESSION", help=SESSION_HELP)
    score.add_argument(
        "--rate", type=_rate, default=0.01, help="false alerts per session to accept (default: %(default)s)"
    )
    _agent(score)
    add_log(score)
    score.set_defaults(func=handle_score)
    show = verbs.add_parser("show", help="what is normal: programs, places, hosts, rhythm")
    show.add_argument("name", metavar="NAME", help=NAME_HELP)
    show.add_argument("--plot", type=Path, metavar="DIR", help="write plots there, as PNG and SVG (needs matplotlib)")
    show.set_defaults(func=handle_show)
    verbs.add_parser("list", help="all baselines").set_defaults(func=handle_list)
    export = verbs.add_parser("export", help="write a baseline to a file that others can import")
    export.add_argument("name", metavar="NAME", help=NAME_HELP)
    export.add_argument("output", type=Path, metavar="FILE", help="a new file")
    export.set_defaults(func=handle_export)
    bring = verbs.add_parser("import", help="take over a baseline from a file, after checking it")
    bring.add_argument("input", type=Path, metavar="FILE")
    bring.add_argument("--replace", action="store_true", help="put it over a baseline of the same name")
    bring.add_argument("--sha256", metavar="HASH", help="refuse any other content than that of this hash")
    bring.set_defaults(func=handle_import)
    for verb in verbs.choices.values():
        verb.add_argument("--directory", type=Path, metavar="DIR", help=f"where baselines are (default: {DIRECTORY})")
        add_json(verb)


def _train(verbs: Any) -> None:
    train = verbs.add_parser("train", help="make a baseline from recorded sessions, or add sessions to one")
    train.add_argument("name", metavar="NAME", help=NAME_HELP)
    train.add_argument("sessions", nargs="+", metavar="SESSION", help=SESSION_HELP)
    train.add_argument("--add", action="store_true", help="learn on: add these sessions, within bounds, if none drifts")
    train.add_argument("--replace", action="store_true", help="put it over a baseline of the same name")
    train.add_argument(
        "--network", action="store_true", help="with a neural network of sequences, too; scoring needs numpy then"
    )
    train.add_argument(
        "--no-check", action="store_true", help="do not hold sessions out once more to check the promise"
    )
    _agent(train)
    add_log(train)
    train.set_defaults(func=handle_train)


def _agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agent", type=Path, metavar="FILE", help="the agent's program: a changed one is told")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is no rate: a number between 0 and 1, such as 0.01")
    return value


def _store(args: argparse.Namespace) -> Store:
    from agentmon.fingerprint.store import Store, shipped_directory

    if args.directory is not None:
        return Store(args.directory)
    return Store(Path(str(fingerprint_settings(args).get("directory", DIRECTORY))), shipped_directory())


def sessions(args: argparse.Namespace) -> list[Recorded]:
    """The sessions that were asked for, as tokens, oldest first. Raises `AgentmonError`."""
    return _sessions(args)[0]


def _sessions(args: argparse.Namespace) -> tuple[list[Recorded], Tier]:
    """The same, and the tier that all daemons of the log were in; empty if they were in several."""
    from agentmon.audit.read import read
    from agentmon.fingerprint.tokens import Tokens
    from agentmon.fingerprint.training import Recorded

    path = args.file or audit_path(args)
    named = not {"all", "last"} & set(args.sessions)
    found: dict[str, tuple[Tokens, Recorded]] = {}
    ended: set[str] = set()
    tiers: set[str] = set()
    for record in read(path):
        name = record.session
        if record.kind == "daemon" and record.operation == "started":
            tiers.add(record.detail.removeprefix("tier "))
        if not name or name.startswith("slot-") or (named and name not in args.sessions):
            continue
        if record.kind == "session" and record.operation == "enrolled" and name in ended:
            found.pop(name)  # another session of the same id: the later one counts
            ended.discard(name)
        if record.kind == "session" and record.operation in ("ended", "released"):
            ended.add(name)
        reader, session = found.setdefault(name, (Tokens(), Recorded(name, [])))
        token = reader.read(record)
        if token is not None:
            session.tokens.append(token)
    every = {name: session for name, (_, session) in found.items()}
    for name in args.sessions:
        if name not in ("all", "last") and name not in every:
            raise AgentmonError(f"there is no session `{name}` in the audit log `{path}`; see `agentmon audit log`")
    if not every:
        raise AgentmonError(f"the audit log `{path}` has no session; run one with `agentmon run`")
    tier: Tier = "lsm" if tiers == {"lsm"} else "react" if tiers == {"react"} else ""
    if "all" in args.sessions:
        return list(every.values()), tier
    wanted = {next(reversed(every)) if name == "last" else name for name in args.sessions}
    return [session for name, session in every.items() if name in wanted], tier


def hashed(path: Path | None) -> Agent | None:
    """The agent's program with the hash of its content. Raises `AgentmonError`."""
    from agentmon.fingerprint.document import Agent

    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return Agent(path=str(path.resolve()), sha256=hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise AgentmonError(
            f"cannot read the agent's program `{path}`: {(error.strerror or str(error)).lower()}"
        ) from error


def handle_train(args: argparse.Namespace) -> int:
    """Make a baseline, or the next revision of one. 2 if the sessions drift."""
    from agentmon.fingerprint.drift import DriftError, accept, changed_agent
    from agentmon.fingerprint.store import check_name
    from agentmon.fingerprint.training import train

    store = _store(args)
    check_name(args.name)
    agent = hashed(args.agent)
    if args.add:
        old = store.load(args.name)
        if agent is not None and (changed := changed_agent(old, agent.sha256)):
            raise AgentmonError(changed)
        try:
            baseline, refused = accept(old, sessions(args))
        except DriftError as error:
            if error.noted is not None:
                store.save(error.noted)
            _complain(args, error)
            return 2
        for one in refused:
            say(f"session `{one.id}` was not learnt: {one.why}")
        baseline = store.save(baseline)
    else:
        if not args.replace and args.name in store.names():
            raise AgentmonError(f"there is a baseline `{args.name}` already: --add to it, or --replace it")
        found, tier = _sessions(args)
        baseline = train(
            args.name, found, agent=agent, tier=tier, network=args.network, check=not args.no_check, say=say
        )
        baseline = store.save(baseline, replace=args.replace)
    _report(args, baseline)
    return 0


def _complain(args: argparse.Namespace, error: AgentmonError) -> None:
    if args.json:
        print_json({"error": str(error), "exit": 2, "drift": True})
    say(str(error))


def _report(args: argparse.Namespace, baseline: Baseline) -> None:
    least = baseline.calibration.least
    if args.json:
        print_json(_facts(baseline))
    else:
        print(
            f"baseline {baseline.name}, revision {baseline.body.revision}: {len(baseline.body.sessions)} sessions,"
            f" {sum(len(s.groups) for s in baseline.body.sessions):,} acts, sha256 {baseline.sha256}",
            flush=True,
        )
    for checked in baseline.body.checked:
        say(
            f"promised at most {checked.promised:.0%} of sessions with a false alert:"
            f" {checked.alerts} of {checked.sessions} held out had one ({checked.low:.1%} to {checked.high:.1%})"
        )
    if least > 0.0100001:
        best = round(1 / least)
        say(f"{len(baseline.calibration)} sessions promise at best one false alert in {best}; 99 make it 100")


def _facts(baseline: Baseline) -> dict[str, Any]:
    body = baseline.body
    return {
        "name": body.name,
        "revision": body.revision,
        "created": body.created,
        "sha256": baseline.sha256,
        "sessions": len(body.sessions),
        "anchored": body.anchored,
        "acts": sum(len(s.groups) for s in body.sessions),
        "agent": body.agent.model_dump() if body.agent else None,
        "tier": body.tier or None,
        "network": body.network is not None,
        "least_rate": baseline.calibration.least,
        "checked": [c.model_dump() for c in body.checked],
    }


def handle_score(args: argparse.Namespace) -> int:
    """Score sessions. 2 if one is over the threshold."""
    from agentmon.fingerprint.drift import changed_agent
    from agentmon.fingerprint.watching import odds, retold
    from agentmon.model.text import clean

    baseline = _store(args).load(args.name)
    agent = hashed(args.agent)
    if agent is not None and (changed := changed_agent(baseline, agent.sha256)):
        say(changed)
    calibration = baseline.calibration
    threshold = calibration.threshold(args.rate)
    promised = max(args.rate, calibration.least)
    if promised > args.rate * 1.0001:
        best = round(1 / promised)
        say(f"{len(calibration)} sessions can promise no less than one false alert in {best}: taking that")
    code = 0
    for session in sessions(args):
        told = retold(baseline, session.tokens)
        over = told.score > threshold
        code = 2 if over else code
        p = calibration.p(told.score)
        if args.json:
            print_json(
                {
                    "session": session.id, "baseline": baseline.name, "revision": baseline.body.revision,
                    "score": told.score, "threshold": threshold, "promised": promised, "over": over, "p": p,
                    "acts": told.acts, "first_over": told.first_over(threshold), "statistics": told.highest,
                    "reasons": told.reasons,
                }
            )  # fmt: skip
            continue
        word = "OVER" if over else "ok"
        verdict = f"score {told.score:.2f}, threshold {threshold:.2f} (p {p:.3g}: {odds(p)})"
        print(f"{session.id} {word}: {verdict}, {told.acts} acts")
        for reason in told.reasons if over else ():
            print(f"  {clean(reason)}")
    return code


def handle_show(args: argparse.Namespace) -> int:
    """Say what is normal."""
    from agentmon.fingerprint.summary import Normal, shown
    from agentmon.fingerprint.window import NAMES
    from agentmon.model.text import clean

    baseline = _store(args).load(args.name)
    normal = Normal.of(baseline)
    if args.plot:
        from agentmon.fingerprint.plots import plots

        for path in plots(baseline, normal, args.plot):
            say(f"wrote `{path}`")
    if args.json:
        print_json(normal.as_json(baseline))
        return 0
    print(
        f"{baseline.name}, revision {baseline.body.revision}, of {baseline.body.created}: {len(normal.acts)} sessions"
        f"{f', recorded in the {baseline.body.tier} tier' if baseline.body.tier else ''}"
    )
    total = sum(normal.acts) or 1
    listed = {"programs": normal.programs, "places": normal.places, "hosts": normal.hosts, "other acts": normal.others}
    for title, counts in listed.items():
        print(f"\n{title}" + ("" if counts else ": none"))
        for name, count in counts.most_common(12):
            print(f"  {count / total:6.1%}  {clean(name)}")
    print("\nwhat follows what")
    for (before, after), count in normal.follows.most_common(8):
        print(f"  {count / total:6.1%}  {clean(before)} -> {clean(after)}")
    print(f"\nrhythm: {sorted(normal.acts)[len(normal.acts) // 2]} acts a session, {normal.pace} a second")
    print("64 acts, as usual")
    for name, feature in zip(NAMES, baseline.shape.middle, strict=True):
        print(f"  {shown(name, feature):>7}  {name}")
    calibration = baseline.calibration
    least = calibration.least
    print(
        f"\nat best one false alert in {round(1 / least)} sessions; threshold then {calibration.threshold(least):.2f}"
    )
    for row in baseline.body.checked:
        print(f"promised {row.promised:.0%}: {row.alerts} of {row.sessions} held out ({row.low:.1%} to {row.high:.1%})")
    return 0


def handle_list(args: argparse.Namespace) -> int:
    """All baselines. 1 if one of them cannot be used."""
    from agentmon.cli import render

    rows, code = [], 0
    for found in _store(args).all():
        if isinstance(found, AgentmonError):
            code = 1
            say(str(found))
            continue
        facts = _facts(found)
        if args.json:
            print_json(facts)
        rows.append((*(facts[k] for k in ("name", "revision", "sessions", "acts", "created")), facts["sha256"][:12]))
    if not args.json and rows:
        render.console().print(render.table(("NAME", "REVISION", "SESSIONS", "ACTS", "CREATED", "SHA256"), rows))
    return code


def handle_export(args: argparse.Namespace) -> int:
    """Write one file."""
    from agentmon.fingerprint import document

    baseline = _store(args).load(args.name)
    try:
        with args.output.open("x", encoding="utf-8") as file:
            file.write(document.write(baseline.body))
    except FileExistsError:
        raise AgentmonError(f"`{args.output}` exists already; give another name, or remove it") from None
    except OSError as error:
        raise AgentmonError(f"cannot write `{args.output}`: {(error.strerror or str(error)).lower()}") from error
    _report(args, baseline)
    return 0


def handle_import(args: argparse.Namespace) -> int:
    """Check a file and keep it."""
    from agentmon.fingerprint import document
    from agentmon.fingerprint.baseline import Baseline

    body, sha256 = document.read(args.input)
    if args.sha256 and args.sha256.lower() != sha256:
        raise AgentmonError(f"`{args.input}` has the hash {sha256}, not {args.sha256}: it is another baseline")
    baseline = _store(args).save(Baseline.of(body, sha256), replace=args.replace)
    _report(args, baseline)
    return 0
