# SPDX-License-Identifier: Apache-2.0
"""Build hook: a wheel carries the built BPF objects, which belong to one machine architecture."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ObjectsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Refuses a wheel without objects and tags it for this architecture."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Editable installs find the objects in the checkout, when they are built."""
        if version == "editable":
            return
        if not (Path(self.root) / "agentmon" / "kernel" / "objects" / "manifest.json").exists():
            raise SystemExit("no BPF objects to put into the wheel: run `./dev build`")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{platform.machine()}"
