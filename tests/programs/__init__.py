# SPDX-License-Identifier: Apache-2.0
"""Tiny C programs that do exactly one thing; each is one ``NAME.c`` here, built statically into ``build/programs``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
BUILT = SOURCES.parents[1] / "build" / "programs"


def build() -> Path:
    """Builds what is out of date and returns the folder of the programs.

    Where there is no compiler (in a guest) those that came with the checkout are used.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return BUILT
    BUILT.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.c")):
        target = BUILT / source.stem
        if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
            continue
        new = target.with_suffix(".new")
        words = [compiler, "-static", "-O2", "-Wall", "-Werror", "-pthread", "-o", str(new), str(source)]
        subprocess.run(words, check=True)
        new.rename(target)
    return BUILT
