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
    script = _SCRIPT.replace("@CASES@", cases).replace("@VALUES@", "|".join(sorted(set().union(*values.values()))))
    for kind in ("POLICY", "SESSION"):
        script = script.replace(f"@{kind}@", "|".join(sorted(values[kind])))
    print(script)
    return 0


def _words() -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """Verb (with its own verb) -> what may follow it; kind of value -> the options that take one.

    The words `POLICY` and `SESSION` stand for all that there are when somebody asks.
    """
    from agentmon.cli.main import build_parser
    from agentmon.model.operations import OPERATIONS

    found: dict[str, list[str]] = {}
    values: dict[str, set[str]] = {"POLICY": set(), "SESSION": set(), "": set()}
    meant = {"OPERATION": [o.word for o in OPERATIONS], "POLICY": ["POLICY"], "SESSION": ["SESSION"]}

    def visit(parser: argparse.ArgumentParser, name: str) -> None:
        words: list[str] = []
        for action in parser._actions:  # noqa: SLF001  # no other way
            kind = "POLICY" if action.dest == "policy" else str(action.metavar or "").upper()
            words += action.option_strings
            if action.option_strings and action.nargs != 0:
                values[kind if kind in values else ""].update(action.option_strings)
            elif isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # same
                words += list(action.choices)
                for verb, sub in action.choices.items():
                    visit(sub, f"{name} {verb}".lstrip())
            elif not action.option_strings:
                words += [str(choice) for choice in list(action.choices or ()) or meant.get(kind, [])]
        found[name] = words

    visit(build_parser(), "")
    return found, values


# A verb's own verb is looked for first; where nothing fits, bash offers files.
_SCRIPT = r"""_agentmon() {
  local cur=${COMP_WORDS[COMP_CWORD]} verb= word words= i skip=
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
  case ${COMP_WORDS[COMP_CWORD-1]} in
  @POLICY@) words=POLICY ;;
  @SESSION@) words=SESSION ;;
  @VALUES@) ;;
  *) _agentmon_words "$verb" ;;
  esac
  COMPREPLY=()
  case " $words " in
  *' POLICY '*)
    words="${words/POLICY/} $("${COMP_WORDS[0]}" policy list 2>/dev/null | cut -d ' ' -f 1)"
    COMPREPLY=($(compgen -f -X '!*.yaml' -- "$cur")) ;;
  *' SESSION '*)
    words="${words/SESSION/} $("${COMP_WORDS[0]}" ps --json 2>/dev/null | grep -o '"s-[^"]*"' | tr -d '"')" ;;
  esac
  COMPREPLY+=($(compgen -W "$words" -- "$cur"))
}
_agentmon_words() {
  case $1 in
@CASES@
  *) return 1 ;;
  esac
}
complete -o default -F _agentmon agentmon"""
