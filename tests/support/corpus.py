# SPDX-License-Identifier: Apache-2.0
"""Malformed policies and what must be said of them; ``tests/corpus/README.md`` has the format.

As a program it fills in the expectations that are still empty.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agentmon.errors import PolicyError
from agentmon.policy.bind import bind_policy
from agentmon.policy.cases import run_cases
from agentmon.policy.compile import compile_policy
from agentmon.policy.load import load, shipped_directory
from agentmon.policy.rules import Variables

POLICIES = Path(__file__).parents[1] / "corpus" / "policies"
VARIABLES = Variables.of(workspace="/srv/w", home="/home/me", user="me")
#: What the cases of `cases.txt` are about.
SOUND = b"policy: p\nrules:\n- {id: r, on: read, action: deny, paths: /secret}\n"

_MACRO = re.compile("«(.*?)(?: × ([0-9]+))?»", re.DOTALL)  # noqa: RUF001  # a sign of its own
_PACK = re.compile(rb"^\+\+\+ (\S+)(?: is (.*))?\n", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One malformed document. ``packs`` are the texts of those that it may include; ``odd`` says what others are."""

    kind: str
    title: str
    expected: str
    text: bytes
    packs: dict[str, bytes] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """What the document is called."""
        return "p.test.yaml" if self.kind == "cases" else "p.yaml"

    def write(self, directory: Path) -> Path:
        """Put it, and its packs, into an empty directory. Returns the document's path."""
        packs = directory / "packs"
        packs.mkdir()
        for name, text in self.packs.items():
            (packs / f"{name}.yaml").write_bytes(text)
        for name, what in self.odd.items():
            path = packs / f"{name}.yaml"
            if what == "a directory":
                path.mkdir()
            elif what == "a FIFO":
                os.mkfifo(path)
            else:
                path.symlink_to(what.removeprefix("a link to "))
        if self.kind == "cases":
            (directory / "p.yaml").write_bytes(SOUND)
        (directory / self.file).write_bytes(self.text)
        return directory / self.file

    def complaint(self, directory: Path) -> str:
        """What is said of it, without the directory; nothing if it passes."""
        path = self.write(directory)
        found = [directory / "packs", shipped_directory()]
        try:
            if self.kind == "cases":
                run_cases(str(path), directories=found)
            else:
                compile_policy(bind_policy(load(str(path), directories=found), VARIABLES))
        except PolicyError as error:
            return str(error).replace(f"{directory}/packs/", "").replace(f"{directory}/", "")
        return ""


def corpus() -> list[Case]:
    """All of them."""
    return [case for path in sorted(POLICIES.glob("*.txt")) for case in parse(path)]


def parse(path: Path) -> Iterator[Case]:
    """The documents of one file."""
    for document in path.read_text("utf-8").split("=== ")[1:]:
        title, expected, text = document.split("\n", 2)
        assert expected.startswith("=> "), f"{path.name}: `{title}` does not say what is expected: `=> LINE:COLUMN: …`"
        parts = _PACK.split(_expanded(text))
        packs, odd = {}, {}
        for name, what, content in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            if what is None:
                packs[name.decode()] = content
            else:
                odd[name.decode()] = what.decode()
        yield Case(path.stem, title, expected[3:], parts[0], packs, odd)


def _expanded(text: str) -> bytes:
    result, at = b"", 0
    for macro in _MACRO.finditer(text):
        result += text[at : macro.start()].encode()
        # escapes give bytes, whatever they mean; letters beyond ASCII are themselves
        content, _ = codecs.escape_decode(macro[1].encode())  # type: ignore[attr-defined]  # not in typeshed
        if macro[2] is None:
            result += content
        elif b"#" in content:
            copies = range(int(macro[2]))
            result += b"".join(content.replace(b"#+1", b"%d" % (i + 1)).replace(b"#", b"%d" % i) for i in copies)
        else:
            result += content * int(macro[2])
        at = macro.end()
    return result + text[at:].encode()


def _fill(path: Path) -> None:
    text = path.read_text("utf-8")
    for case in parse(path):
        if not case.expected:
            with tempfile.TemporaryDirectory() as directory:
                said = case.complaint(Path(directory)).partition("\n")[0].removeprefix(f"{case.file}:")
            print(f"{case.title}\n    {said or 'NOTHING'}")
            text = text.replace(f"=== {case.title}\n=> \n", f"=== {case.title}\n=> {said}\n")
    path.write_text(text, "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        _fill(Path(name))
