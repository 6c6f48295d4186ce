# SPDX-License-Identifier: Apache-2.0
"""The built BPF objects: choosing a tier, loading, attaching, pinning, and taking over what is pinned.

Everything is pinned: programs go on enforcing when the process that loaded them is gone. The pins of one build live in
a directory named after tier and build, so that another build never mistakes them for its own.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agentmon.errors import AttachError, KernelError, NotSupportedError, VerifierError
from agentmon.kernel import host, libbpf
from agentmon.model.operations import Tier

DIRECTORY = Path(__file__).parent / "objects"
#: The tracepoint of io_uring submissions was renamed in Linux 6.3: one of the two exists.
RINGS = frozenset({"ring_submit", "ring_submit_old"})
#: Comes with Linux 6.7. Without it a unix socket that should not be reached is only known once it is.
CONNECT_UNIX = "connect_unix"
#: By it, what is held at the start of a program is kept from running; x86 has it.
RESUMES = "resumes"
OPTIONAL = RINGS | {CONNECT_UNIX, RESUMES}
#: Hooks that are not in every kernel we run on, by program, and the one that is called in their place there.
REPLACED = {
    "ioctl_compat_check": ("file_ioctl_compat", "file_ioctl"),
    "flags_compat_check": ("file_ioctl_compat", "file_ioctl"),
    "set_acl_check": ("inode_set_acl", "inode_setxattr"),  # Linux 6.2
    "remove_acl_check": ("inode_remove_acl", "inode_removexattr"),
    "file_setattr_check": ("inode_file_setattr", "file_ioctl"),  # Linux 6.17
}
#: Groups that give no rights: ssh-agent is set-group-ID to one of them so that nobody looks into its memory (Debian).
IDLE_GROUPS = ("_ssh", "ssh")
#: Milliseconds; what is held and not frozen by then is denied.
PARK_MS = 500
_ENUMERATOR = "mark_processes"
#: They see each read and write of the host: attached while a plan asks for them (``bpf/write.bpf.h``).
COUNT_WRITES = frozenset({"write_check", "map_check", "grow_check", "write_exit"})
#: LSM tier: they see each start of a program, and each switch between two. Attached while a policy asks for them.
HOLD_STARTS = frozenset({RESUMES, "halts"})
_NOT_ASKED = {
    **dict.fromkeys(COUNT_WRITES, "not needed: no plan counts what is written"),
    **dict.fromkeys(HOLD_STARTS, "not needed: no policy in force holds programs by their arguments"),
}
#: Is called, and attached to nothing.
MARK_STEP = "mark_step"
_UNPINNED = "missing: its link is not pinned"
_FILES = {Tier.LSM: "lsm.bpf.o", Tier.REACT: "react.bpf.o"}


def on_demand(tier: Tier) -> frozenset[str]:
    """Programs that are attached while a policy asks for them."""
    return COUNT_WRITES | HOLD_STARTS if tier is Tier.LSM else COUNT_WRITES


def object_path(tier: Tier) -> Path:
    """The built object of a tier, checked against the manifest.

    Raises NotSupportedError if it was not built, KernelError if it is not the one that was.
    """
    path = DIRECTORY / _FILES[tier]
    manifest = DIRECTORY / "manifest.json"
    if not path.exists() or not manifest.exists():
        raise NotSupportedError(f"the BPF object `{path.name}` is not built: run `./dev build`")
    wanted = json.dumps(json.loads(manifest.read_text()))
    if _digest(path) not in wanted:
        raise KernelError(f"`{path}` differs from its manifest: run `./dev build`")
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def choose_tier() -> tuple[Tier, str]:
    """The best tier of this host, and why it is not a better one (empty for LSM). Really loads a program."""
    lsms = host.active_lsms() or []
    remedy = f"boot with `lsm={','.join([*lsms, 'bpf'])}`"
    if by_function() and host.preempts():
        return Tier.REACT, (
            f"BPF is not among the active security modules ({','.join(lsms)}), and this kernel preempts itself:"
            f" {remedy}, or with `preempt=voluntary`"
        )
    try:
        probe = _open(Tier.LSM)
    except NotSupportedError as error:
        return Tier.REACT, str(error)
    try:
        for program in probe.programs.values():
            program.set_autoload(program.name == "fork_check")
        probe.load()
    except NotSupportedError:
        if by_function():
            return Tier.REACT, f"the kernel refuses to have its security functions changed: {remedy}"
        return Tier.REACT, "the kernel refuses BPF LSM programs: use one with CONFIG_BPF_LSM=y and `bpf` in `lsm=`"
    except VerifierError as error:
        return Tier.REACT, f"the kernel rejects the BPF LSM programs: {error}"
    finally:
        probe.close()
    return Tier.LSM, ""


@cache
def by_function() -> bool:
    """Whether LSM programs are attached to the functions that call the hooks: BPF is not among the security modules.

    The kernel skips such a program, and not a BPF LSM program, for whoever comes upon it while it is interrupted on the
    same CPU (``__bpf_prog_enter_recur``): so not where it preempts itself.
    """
    lsms = host.active_lsms()
    return lsms is not None and "bpf" not in lsms


def _open(tier: Tier) -> libbpf.Object:
    """The object of a tier, its programs set for how this host is hooked. Raises NotSupportedError."""
    obj = libbpf.Object(str(object_path(tier)))
    if tier is Tier.LSM and by_function():
        try:
            for name, program in obj.programs.items():
                if program.section.startswith("lsm/") and name not in needless():
                    program.modify_return()
        except BaseException:
            obj.close()
            raise
    return obj


@dataclass(frozen=True, slots=True)
class Pins:
    """Where one build of one tier is pinned."""

    root: Path
    tier: Tier
    build: str

    @property
    def directory(self) -> Path:
        """Directory of this build's pins."""
        return self.root / f"{self.tier.name.lower()}-{self.build[:12]}"

    @property
    def maps(self) -> Path:
        return self.directory / "maps"

    @property
    def links(self) -> Path:
        return self.directory / "links"

    @property
    def enumerator(self) -> Path:
        """The pinned iterator: reading it marks processes."""
        return self.links / _ENUMERATOR

    @property
    def programs(self) -> Path:
        """What is attached on demand."""
        return self.directory / "programs"


def pins_of(root: Path, tier: Tier) -> Pins:
    """The pins that the built object of ``tier`` would have under ``root``."""
    return Pins(root, tier, _digest(object_path(tier)))


def foreign(root: Path, own: Pins) -> list[Path]:
    """Pin directories of other builds or tiers under ``root``."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p != own.directory)


def is_complete(pins: Pins) -> bool:
    """Whether every map and the enumerator of these pins is there (links may have been taken away: see ``doctor``)."""
    return pins.enumerator.exists() and (pins.maps / "procs").exists() and (pins.maps / "events").exists()


def idle_groups() -> tuple[int, int]:
    """The numbers of `IDLE_GROUPS` on this host, 0 for those that it does not have."""
    return tuple(_group(name) for name in IDLE_GROUPS)  # type: ignore[return-value]


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return 0


@cache
def needless() -> dict[str, str]:
    """Programs whose hook this kernel does not have, as it calls another in its place: name -> ``not needed: …``."""
    lacking = libbpf.missing_hooks(hook for hook, _ in REPLACED.values())
    return {
        name: f"not needed: this kernel calls `{instead}` in place of `{hook}`"
        for name, (hook, instead) in REPLACED.items()
        if hook in lacking
    }


def load(
    pins: Pins, *, arena_bytes: int, procs_max: int, skip: Collection[str], park_ms: int = PARK_MS
) -> dict[str, str]:
    """Loads, attaches and pins the tier's programs. Nothing stays behind when it fails.

    Returns program name -> ``attached``, ``missing: reason`` (skipped ones, and optional ones that the kernel lacks) or
    ``not needed: reason``.
    Raises KernelError and its kinds.
    """
    if arena_bytes & (arena_bytes - 1) or arena_bytes < 8192:
        raise ValueError("arena_bytes must be a power of two, at least 8192")
    obj = _open(pins.tier)
    cgroup = -1
    state: dict[str, str] = {}
    try:
        obj.set_value_size("arena", arena_bytes)
        knobs = (arena_bytes // 2 - 1, procs_max, secrets.randbits(64), park_ms * 1_000_000, *idle_groups())
        obj.set_initial(".rodata.knobs", struct.pack("=QqQQ2I", *knobs))
        obj.set_max_entries("procs", procs_max)
        optional = {*RINGS, RESUMES}
        hooks = {p.section.removeprefix("tp_btf/"): name for name, p in obj.programs.items() if name in optional}
        for tracepoint in libbpf.missing_tracepoints(hooks):
            state[hooks[tracepoint]] = f"missing: this kernel has no tracepoint `{tracepoint}`"
        if CONNECT_UNIX in obj.programs and libbpf.missing_functions(["bpf_sock_addr_set_sun_path"]):
            state[CONNECT_UNIX] = "missing: this kernel cannot refuse to connect unix sockets (Linux 6.7 can)"
        state |= {name: reason for name, reason in needless().items() if name in obj.programs}
        skip = {*skip, *state}
        for name in skip:
            obj.programs[name].set_autoload(False)
        obj.load()
        pins.maps.mkdir(parents=True)
        pins.links.mkdir()
        pins.programs.mkdir()
        obj.pin_maps(str(pins.maps))
        cgroup = os.open(host.cgroup2_root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name, program in obj.programs.items():
            if name in skip:
                continue
            if name in on_demand(pins.tier):
                program.pin(str(pins.programs / name))
                state[name] = _NOT_ASKED[name]
                continue
            try:
                program.attach_and_pin(str(pins.links / name), cgroup)
                state[name] = "attached"
            except AttachError as error:
                if name not in OPTIONAL:
                    raise
                state[name] = f"missing: {error}"
    except BaseException:
        remove(pins.directory)
        raise
    finally:
        if cgroup >= 0:
            os.close(cgroup)
        obj.close()
    return state


def status(pins: Pins) -> dict[str, str]:
    """Program name -> ``attached``, ``missing: …`` or ``not needed: …``, from the pins and the kernel alone."""
    obj = libbpf.Object(str(object_path(pins.tier)))
    try:
        return {
            name: "attached"
            if (pins.links / name).exists()
            else needless().get(name, _NOT_ASKED[name] if (pins.programs / name).exists() else _UNPINNED)
            for name in obj.programs
        }
    finally:
        obj.close()


def can_attach(pins: Pins, names: Collection[str]) -> bool:
    """Whether all of these, of `on_demand`, are there to be attached."""
    return all((pins.programs / name).exists() for name in names)


def is_attached(pins: Pins, names: Collection[str]) -> bool:
    """Whether all of these are."""
    return all((pins.links / name).exists() for name in names)


def set_attached(pins: Pins, names: Collection[str], *, wanted: bool) -> None:
    """Attaches what of these, of `on_demand`, this kernel has, or detaches it. Raises AttachError."""
    for name in sorted(names):
        program, link = pins.programs / name, pins.links / name
        if wanted and program.exists() and not link.exists():
            libbpf.attach_pinned(str(program), str(link))
        elif not wanted and link.exists():
            link.unlink()


def remove(directory: Path) -> None:
    """Unpins everything below ``directory``: what is attached by these pins alone is detached."""
    if not directory.is_dir():
        return
    for here, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(os.path.join(here, name))
        for name in directories:
            os.rmdir(os.path.join(here, name))
    directory.rmdir()
