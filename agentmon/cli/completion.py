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
    cases = "\n".join(f"    {verb}) words='{' '.join(w)}' ;;" for verb, w in words.items())
    print(_SCRIPT.replace("@CASES@", cases).replace("@VALUES@", "|".join(sorted(values))))
    return 0


def _words() -> tuple[dict[str, list[str]], set[str]]:
    """Verb -> what may follow it, the key `''` for the program itself; and the options that take a value."""
    from agentmon.cli.main import build_parser

    found: dict[str, list[str]] = {}
    values: set[str] = set()

    def visit(parser: argparse.ArgumentParser, name: str) -> None:
        words = [option for action in parser._actions for option in action.option_strings]  # noqa: SLF001  # no other way
        for action in parser._actions:  # noqa: SLF001  # same
            if action.nargs != 0:
                values.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # same
                words += list(action.choices)
                if not name:
                    for verb, sub in action.choices.items():
                        visit(sub, verb)
            elif action.choices:
                words += [str(choice) for choice in action.choices]
        found[name or "''"] = words

    visit(build_parser(), "")
    return found, values


_SCRIPT = r"""_agentmon() {
  local cur=${COMP_WORDS[COMP_CWORD]} verb= word words i
  case ${COMP_WORDS[COMP_CWORD-1]} in
  @VALUES@) COMPREPLY=(); return ;;
  esac
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    case $word in
    --) COMPREPLY=(); return ;;
    -*) ;;
    *) verb=$word; break ;;
    esac
  done
  case $verb in
@CASES@
    *) words= ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _agentmon agentmon"""
