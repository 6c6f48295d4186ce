# SPDX-License-Identifier: Apache-2.0
"""Facts about the host that `doctor` shows, each with its remedy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of `doctor`. `ok` False: agentmon cannot work fully without it."""

    name: str
    ok: bool
    value: str
    remedy: str = ""


def collect() -> list[Fact]:
    """Look, change nothing."""
    from agentmon.kernel import host

    system = os.uname()
    mounts = host.mounts()
    kinds = {kind: where for where, kind in reversed(mounts)}  # the first of a kind is the usual place
    found = [Fact("kernel", True, f"{system.release} {system.machine}")]
    btf = Path("/sys/kernel/btf/vmlinux").exists()
    found.append(
        Fact(
            "btf",
            btf,
            "/sys/kernel/btf/vmlinux" if btf else "missing",
            "" if btf else "use a kernel with CONFIG_DEBUG_INFO_BTF=y",
        )
    )
    found.append(_lsm())
    for name, kind, where in (("bpffs", "bpf", "/sys/fs/bpf"), ("cgroup2", "cgroup2", "/sys/fs/cgroup")):
        there = kind in kinds
        found.append(Fact(name, there, kinds.get(kind, "not mounted"), "" if there else _remedy(kind, where)))
    # Not needed: the programs attach to tracepoints by BTF. Named because other tools need it.
    found.append(Fact("tracefs", True, kinds.get("tracefs", "not mounted (not needed)")))
    found.append(_libbpf())
    return found


def _remedy(kind: str, where: str) -> str:
    if kind == "bpf":
        return f"the daemon mounts it; by hand: mount -t bpf bpf {where}"
    return f"mount -t {kind} none {where}"


def _lsm() -> Fact:
    try:
        active = Path("/sys/kernel/security/lsm").read_text(encoding="ascii").strip()
    except OSError:
        return Fact("lsm", True, "unknown (securityfs is not mounted); the tier is found by trying")
    if "bpf" in active.split(","):
        return Fact("lsm", True, active)
    from agentmon.kernel import host

    if not host.preempts():
        return Fact("lsm", True, f"{active}; BPF goes before them")
    return Fact("lsm", True, active, f"for the stronger tier boot with lsm={active},bpf or preempt=voluntary")


def _libbpf() -> Fact:
    from agentmon.errors import AgentmonError
    from agentmon.kernel import libbpf

    try:
        library = libbpf.library()
    except (AgentmonError, OSError) as error:
        return Fact("libbpf", False, str(error), "apt install libbpf1, or dnf install libbpf")
    try:
        version = f"{library.libbpf_major_version()}.{library.libbpf_minor_version()}"
    except AttributeError:
        version = "older than 0.6"
    return Fact("libbpf", True, version)
