# SPDX-License-Identifier: Apache-2.0
"""Baselines on disk: one directory for each name, one file for each revision. The highest is in force."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from agentmon.errors import AgentmonError
from agentmon.fingerprint import document
from agentmon.fingerprint.baseline import Baseline

#: Revisions kept besides the one in force. The first is kept for ever: it is the anchor.
KEPT = 10
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FILE = re.compile(r"(\d{1,6})\.json")


def check_name(name: str) -> str:
    """The name itself. Raises `AgentmonError`: it becomes a directory."""
    if not _NAME.fullmatch(name):
        raise AgentmonError(f"`{name}` is no name of a baseline: lower-case letters, digits, `.`, `_`, `-`, at most 64")
    return name


def shipped_directory() -> Path:
    """Where the baselines of this installation are: in the wheel, or in the checkout."""
    inside = Path(__file__).parent / "profiles"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "profiles"


class Store:
    """The baselines in a directory. ``shipped``: a directory with files of those that have none there."""

    def __init__(self, directory: Path, shipped: Path | None = None) -> None:
        self.directory = directory
        self._shipped = shipped

    def names(self) -> list[str]:
        """All baselines, sorted. Raises `AgentmonError` if the directory cannot be read."""
        found = {p.stem for p in self._shipped.glob("*.json")} if self._shipped is not None else set()
        try:
            found |= {p.name for p in self.directory.iterdir() if _NAME.fullmatch(p.name) and self._revisions(p.name)}
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _failed("read", self.directory, error) from error
        return sorted(found)

    def _revisions(self, name: str) -> list[int]:
        try:
            found = [_FILE.fullmatch(entry) for entry in os.listdir(self.directory / name)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _failed("read", self.directory / name, error) from error
        return sorted(int(match[1]) for match in found if match)

    def path(self, name: str) -> Path:
        """The file in force. Raises `AgentmonError` if there is none."""
        revisions = self._revisions(check_name(name))
        if not revisions:
            if self._shipped is not None and (shipped := self._shipped / f"{name}.json").exists():
                return shipped
            known = ", ".join(self.names()) or "none yet; `agentmon profile train` makes one"
            raise AgentmonError(f"there is no baseline `{name}` in `{self.directory}` ({known})")
        return self.directory / name / f"{revisions[-1]:06}.json"

    def load(self, name: str) -> Baseline:
        """The baseline in force. Raises `AgentmonError`."""
        path = self.path(name)
        body, sha256 = document.read(path)
        if body.name != name:
            raise AgentmonError(f"`{path}` holds baseline `{body.name}`, not `{name}`: import it again")
        return Baseline.of(body, sha256)

    def all(self) -> Iterator[Baseline | AgentmonError]:
        """Each baseline, or what is wrong with it."""
        for name in self.names():
            try:
                yield self.load(name)
            except AgentmonError as error:
                yield error

    def save(self, baseline: Baseline, *, replace: bool = False) -> Baseline:
        """Writes a revision, and returns it as it was written. Raises `AgentmonError`.

        ``replace``: a new baseline goes over whatever there is, as its next revision.
        """
        name = check_name(baseline.name)
        revisions = self._revisions(name)
        body = baseline.body
        if revisions and body.revision <= revisions[-1]:
            if not replace:
                raise AgentmonError(f"there is a baseline `{name}` already: give another name, or --replace")
            body = body.model_copy(update={"revision": revisions[-1] + 1})
            baseline = Baseline.of(body)
        directory = self.directory / name
        path = directory / f"{body.revision:06}.json"
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640), "w") as file:
                file.write(document.write(body))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, path)
            for old in revisions[1 : max(1, len(revisions) - KEPT)]:
                with contextlib.suppress(FileNotFoundError):
                    (directory / f"{old:06}.json").unlink()
        except OSError as error:
            raise _failed("write", path, error) from error
        return baseline


def _failed(what: str, path: Path, error: OSError) -> AgentmonError:
    remedy = "; use sudo, or --directory" if isinstance(error, PermissionError) else ""
    return AgentmonError(f"cannot {what} `{path}`: {(error.strerror or str(error)).lower()}{remedy}")
