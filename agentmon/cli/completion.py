# SPDX-License-Identifier: Apache-2.0
"""``agentmon completion``: written from the parser itself."""

from __future__ import annotations

import argparse
from typing import Any

from agentmon.cli.common import add_verb


def register(subparsers: Any) -> None:
    """Add the verb."""
    parser = add_verb(
        subparsers,
        "completion",
        "print a completion script for a shell",
        "Print a script that completes verbs and options.",
        """
        agentmon completion bash > /etc/bash_completion.d/agentmon
        agentmon completion zsh > "${fpath[1]}/_agentmon"
        """,
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.set_defaults(func=handle)


def handle(args: argparse.Namespace) -> int:
    """Print the script."""
    words, values = _words()
    if args.shell == "zsh":
        print("#compdef agentmon\nautoload -U +X bashcompinit && bashcompinit")
    cases = "\n".join(f"  '{verb}') words='{' '.join(w)}' ;;" for verb, w in words.items())
    print(_SCRIPT.replace("@CASES@", cases).replace("@VALUES@", "|".join(sorted(values))))
    return 0


def _words() -> tuple[dict[str, list[str]], set[str]]:
    """Verb (with its own verb), or that and an option -> what may follow it; the options that take a value.

    The words `POLICY`, `PACK`, `PLAN`, `SESSION`, `RECORDED`, `PROFILE`, `APPROVAL` and `QUESTION` stand for all that
    there are when somebody asks.
    """
    from agentmon.cli.main import build_parser

    found: dict[str, list[str]] = {}
    values: set[str] = set()

    def visit(parser: argparse.ArgumentParser, name: str) -> None:
        words: list[str] = []
        for action in parser._actions:  # noqa: SLF001  # no other way
            words += action.option_strings if action.help != argparse.SUPPRESS else []
            if action.option_strings and action.nargs != 0:
                values.update(action.option_strings)
                found.update({f"{name} {option}".lstrip(): _values(action) for option in action.option_strings})
            elif isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # same
                words += list(action.choices)
                for verb, sub in action.choices.items():
                    visit(sub, f"{name} {verb}".lstrip())
            elif not action.option_strings:
                words += _values(action)
        found[name] = words

    visit(build_parser(), "")
    return found, values


def _values(action: argparse.Action) -> list[str]:
    """What an argument may be, by its choices or by what help calls it."""
    from agentmon.cli.approvals import ASKED_HELP, HELD_HELP
    from agentmon.cli.profile import NAME_HELP
    from agentmon.cli.recorded import SESSION_HELP
    from agentmon.cli.watched import LEARN_HELP, PROFILE_HELP
    from agentmon.model.conditions import Risk
    from agentmon.model.operations import OPERATIONS

    if action.choices:
        return [str(choice) for choice in action.choices]
    if action.help == SESSION_HELP:
        return ["RECORDED"]
    if action.help in (NAME_HELP, PROFILE_HELP, LEARN_HELP):
        return ["PROFILE"]
    if action.help == HELD_HELP:
        return ["APPROVAL"]
    if action.help == ASKED_HELP:
        return ["QUESTION"]
    if action.dest == "policy":
        return ["POLICY"]
    known = {
        "OPERATION": [o.word for o in OPERATIONS],
        "LEVEL": [risk.word for risk in Risk],
        "ID": ["all"],
        "OLD": ["POLICY"],
        "NEW": ["POLICY"],
    } | {word: [word] for word in ("POLICY", "PACK", "SESSION", "PLAN")}
    return known.get(str(action.metavar or ""), [])


# A verb's own verb is looked for first; where nothing fits, bash offers files.
_SCRIPT = r"""_agentmon() {
  local cur=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD-1]} verb= word= words= i skip=
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $skip ]]; then skip=; continue; fi
    case $word in
    --) COMPREPLY=(); return ;;
    @VALUES@) skip=1 ;;
    -*) ;;
    *) _agentmon_words "${verb:+$verb }$word" && verb="${verb:+$verb }$word" ;;
    esac
  done
  words=
  if [[ $skip ]]; then _agentmon_words "${verb:+$verb }$last"; else _agentmon_words "$verb"; fi
  COMPREPLY=()
  case " $words " in
  *' POLICY '*)
    words="${words//POLICY/} $(_agentmon_packs)"
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -X '!*.yaml' -- "$cur") $(compgen -f -X '!*.yml' -- "$cur") $(compgen -d -- "$cur")) ;;
  *' PLAN '*)
    words="${words//PLAN/}"
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -X '!*.yaml' -- "$cur") $(compgen -f -X '!*.yml' -- "$cur") $(compgen -d -- "$cur")) ;;
  *' PACK '*) words=$(_agentmon_packs) ;;
  *' SESSION '*) words="${words/SESSION/} $(_agentmon_sessions)" ;;
  *' RECORDED '*) words="${words/RECORDED/} last all $(_agentmon_sessions)" ;;
  *' PROFILE '*) words="${words/PROFILE/} $(_agentmon_profiles)" ;;
  *' APPROVAL '*) words="${words/APPROVAL/} $(_agentmon_approvals)" ;;
  *' QUESTION '*) words="${words/QUESTION/} $(_agentmon_questions)" ;;
  esac
  COMPREPLY+=($(compgen -W "$words" -- "$cur"))
}
_agentmon_packs() {
  "${COMP_WORDS[0]}" policy list 2>/dev/null | cut -d ' ' -f 1
}
_agentmon_sessions() {
  "${COMP_WORDS[0]}" ps --json 2>/dev/null | grep -o '"s-[^"]*"' | tr -d '"'
}
_agentmon_profiles() {
  "${COMP_WORDS[0]}" profile list --json 2>/dev/null | grep -o '"name":"[^"]*"' | cut -d '"' -f 4
}
_agentmon_approvals() {
  "${COMP_WORDS[0]}" approvals --json 2>/dev/null | grep -o '"id":"a-[^"]*"' | cut -d '"' -f 4
}
_agentmon_questions() {
  "${COMP_WORDS[0]}" approvals --json 2>/dev/null | grep -o '"question":"q-[^"]*"' | cut -d '"' -f 4
}
_agentmon_words() {
  case $1 in
@CASES@
  *) return 1 ;;
  esac
}
complete -o default -F _agentmon agentmon"""
