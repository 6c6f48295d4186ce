# SPDX-License-Identifier: Apache-2.0
"""Runs a command in a throw-away QEMU guest that has this checkout.

Emulation only (TCG): it works wherever QEMU does. The flags are those that proved stable: multi-threaded TCG
and cmpxchg16b oopsed guests at random. Guests beyond ``AGENTMON_VM_JOBS`` wait.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.programs import BUILT as PROGRAMS
from tests.programs import build as build_programs
from tests.vm import image
from tests.vm.image import CHECKOUT, VmError

IGNORED = (".git", ".venv", "__pycache__", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".vagrant")
WORK_BYTES = 512 << 20  # sparse; the checkout, and room for what a command writes


@dataclass(frozen=True, slots=True)
class Result:
    """How a guest's command ended. ``out`` is what it left in ``/mnt/out``, gone when ``run`` is left."""

    status: int
    output: str
    console: str
    out: Path
    seconds: float


@contextmanager
def run(
    kernel: str,
    command: str | Sequence[str],
    *,
    files: Mapping[str, Path] | None = None,
    cmdline: str = "",
    systemd: bool = False,
    timeout_seconds: float = 600,
    cpus: int = 2,
    memory_mib: int = 2048,
    sink: Callable[[bytes], object] | None = None,
    root: Path | None = None,
) -> Iterator[Result]:
    """Boots a kernel, runs a command (a shell string, or words) as root in the checkout, yields how it ended.

    ``files`` maps absolute guest paths to host files or folders. ``sink`` gets the output as it comes.
    ``systemd`` boots with systemd as PID 1. ``root``: another image than the tests'. Raises VmError, with the guest's
    console, if the guest dies or takes longer than ``timeout_seconds``.
    """
    booted = image.kernel(kernel)
    root = root or image.root()
    with tempfile.TemporaryDirectory(prefix="agentmon-vm-") as temporary, image.guest_slot():
        folder = Path(temporary)
        work = folder / "work.img"
        text = command if isinstance(command, str) else shlex.join(command)
        _work_disk(folder / "tree", work, booted, text, files or {})
        start = time.monotonic()
        argv = _qemu(booted, root, work, folder / "console", cmdline, systemd=systemd, cpus=cpus, memory_mib=memory_mib)
        if booted.boot:
            image.initrd(folder / "initrd", booted.boot, PROGRAMS / "initrd")
            argv += ["-initrd", str(folder / "initrd")]
        output, late = _watch(argv, timeout_seconds, sink)
        console = (folder / "console").read_text(errors="replace")
        (folder / "back").mkdir()
        image.command("debugfs", "-R", f"rdump /out {folder}/back", work)
        status = folder / "back" / "out" / "status"
        if late or not status.exists():
            why = f"took longer than {timeout_seconds:.0f} s" if late else "ended before its command"
            raise VmError(f"guest {kernel} {why}; its console:\n{console[-8000:]}\nits output:\n{output[-4000:]}")
        yield Result(int(status.read_text()), output, console, folder / "back" / "out", time.monotonic() - start)


def _work_disk(tree: Path, disk: Path, kernel: image.Kernel, command: str, files: Mapping[str, Path]) -> None:
    with image.locked("programs"):
        build_programs()
    shutil.copytree(CHECKOUT, tree / "agentmon", symlinks=True, ignore=shutil.ignore_patterns(*IGNORED))
    shutil.copytree(kernel.modules, tree / "modules")
    shutil.copytree(image.GUEST, tree / "guest")
    (tree / "out").mkdir()
    (tree / "root").mkdir()
    (tree / "command").write_text(command + "\n")
    for path, source in files.items():
        target = tree / "root" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    image.command("chown", "-R", "0:0", tree)
    image.disk(disk, tree, WORK_BYTES, label="agentmon-work")
    shutil.rmtree(tree)


def _qemu(
    kernel: image.Kernel,
    root: Path,
    work: Path,
    console: Path,
    cmdline: str,
    *,
    systemd: bool,
    cpus: int,
    memory_mib: int,
) -> list[str]:
    init = "/lib/systemd/systemd" if systemd else "/usr/local/lib/agentmon-vm/boot"
    append = (
        f"console=ttyS0 root=PARTUUID={image.DISK_SIGNATURE:08x}-01 rootwait rw quiet panic=-1 8250.nr_uarts=2 "
        f"init={init} {cmdline}"
    )
    return [
        "setpriv", "--pdeathsig", "KILL",  # no guest outlives its test
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max,-cx16",
        "-smp", str(cpus), "-m", str(memory_mib), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-kernel", str(kernel.vmlinuz), "-append", append,
        "-drive", f"file={root},if=none,id=root,format=raw,snapshot=on,cache=unsafe",
        "-device", "nvme,serial=root,drive=root",
        "-drive", f"file={work},if=none,id=work,format=raw,cache=unsafe",
        "-device", "nvme,serial=work,drive=work",
        "-serial", f"file:{console}",
        "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
    ]  # fmt: skip


def _watch(argv: list[str], timeout_seconds: float, sink: Callable[[bytes], object] | None) -> tuple[str, bool]:
    deadline = time.monotonic() + timeout_seconds
    kept = bytearray()
    late = False
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as guest:
        assert guest.stdout is not None
        try:
            while True:
                if not select.select([guest.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    late = True
                    break
                piece = os.read(guest.stdout.fileno(), 65536)
                if not piece:
                    break
                kept += piece
                if sink:
                    sink(piece)
        finally:
            guest.kill()
    return kept.decode(errors="replace"), late


def to_stdout(piece: bytes) -> None:
    """A sink that shows a guest's output as it comes."""
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
