# SPDX-License-Identifier: Apache-2.0
"""Kernels and the root image of the test guests, built once and kept.

They live in ``$AGENTMON_CACHE`` (``~/.cache/agentmon``). Everything comes from the Debian mirror that the
host's own apt uses, or Debian's default mirror on other distributions.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import inspect
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).parent / "guest"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

SUITE = "bookworm"
PACKAGES = (
    "bpftool",  # for people who look into a guest by hand
    "busybox",
    "dbus",  # systemd-run and busctl in the systemd guest
    "git",
    "iproute2",
    "kmod",
    "libbpf1",
    "procps",
    "python3",
    "python3-venv",
    "strace",
    "sudo",
    "systemd-sysv",
)
# Of the project's extras, what tests need inside a guest.
TEST_REQUIREMENTS = ("pytest", "hypothesis")
# Modules worth having in a guest; all else that tests need is built into the cloud kernels.
MODULES = (
    "af_packet_diag",
    "autofs4",
    "inet_diag",
    "ip6_udp_tunnel",  # of sctp
    "libcrc32c",  # of sctp
    "netlink_diag",
    "overlay",
    "raw_diag",
    "sctp",
    "tcp_diag",
    "udp_diag",
    "udp_tunnel",  # of sctp
    "unix_diag",
    "vmw_vsock_virtio_transport_common",
    "vsock",
    "vsock_diag",
    "vsock_loopback",
)
# What a kernel that is not made for clouds needs to find its root, in the order of loading.
BOOT_MODULES = ("crc32c_generic", "nvme-auth", "nvme-core", "nvme", "crc16", "mbcache", "jbd2", "ext4")
# Files of guest/ that the image carries, and where; the others come with each run.
IN_IMAGE = {
    "agentmon": "usr/local/bin/agentmon",
    "agentmon-vm.service": "etc/systemd/system/agentmon-vm.service",
    "boot": "usr/local/lib/agentmon-vm/boot",
}
ROOT_BYTES = 1 << 30
PARTITION_BYTES = 1 << 20
DISK_SIGNATURE = 0xA6E27001  # any: the kernel finds root=PARTUUID=<signature>-01 by it


class VmError(Exception):
    """An image or a guest cannot be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A Debian kernel, unpacked. ``boot``: the modules of its initial RAM disk, if it needs one."""

    name: str
    release: str
    vmlinuz: Path
    modules: Path
    boot: Path | None


# Cloud kernels, and one as it comes: only that one knows x32.
KERNELS = {"6.1": "bookworm", "6.12": "trixie", "7.2": "sid", "6.12-generic": "trixie"}


def cache() -> Path:
    """The folder of images and kernels; made if it is not there."""
    path = Path(os.environ.get("AGENTMON_CACHE") or Path.home() / ".cache" / "agentmon")
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One user at a time, over all processes of the host."""
    with (cache() / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that holds `{file.name}`")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def guest_slot() -> Iterator[None]:
    """Keeps to ``AGENTMON_VM_JOBS`` guests at a time on this host (1): each keeps a processor busy."""
    jobs = max(1, int(os.environ.get("AGENTMON_VM_JOBS") or 1))
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((cache() / f"guest-{n}.lock").open("w")) for n in range(jobs)]
        while not any(_try_lock(file) for file in files):
            time.sleep(0.5)
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def say(message: str) -> None:
    """Progress goes to stderr."""
    print(f"vm: {message}", file=sys.stderr, flush=True)


def command(*argv: str | Path, **options: object) -> str:
    """Runs a program and returns its output.

    Raises VmError with the output's end if it fails or is not installed.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
        )
    except FileNotFoundError:
        raise VmError(f"`{words[0]}` is not installed: run `./dev test vm` as root once") from None
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise VmError(f"`{' '.join(words[:6])}` ended with {done.returncode}:\n{tail}")
    return str(done.stdout)


def mirror() -> str:
    """The Debian mirror of the host's apt, else Debian's default."""
    with contextlib.suppress(VmError):
        lines = command("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)")
        for line in lines.splitlines():
            origin, label, uri = line.split("|", 2)
            if origin == label == "Debian":
                return uri.rstrip("/")
    # not on Debian: debootstrap knows its project's own mirror
    script = shutil.which("debootstrap")
    default = re.search(r'^DEF_MIRROR="(.+)"$', Path(script).read_text(), re.MULTILINE) if script else None
    if default is None:
        raise VmError("no Debian mirror is known here: add one to apt's sources")
    return default[1]


def kernel(name: str) -> Kernel:
    """An unpacked kernel, fetched at its first use.

    Raises VmError if the suite that carries it does not offer this version (any more).
    """
    if name not in KERNELS:
        raise VmError(f"no kernel `{name}`: choose one of {', '.join(KERNELS)}")
    with locked("kernels"):
        folder = cache() / "kernels" / name
        ingredients = folder / "ingredients"
        if not ingredients.exists() or ingredients.read_text() != _INGREDIENTS:
            _fetch_kernel(name, folder)
        release = (folder / "release").read_text()
        boot = folder / "boot"
        return Kernel(name, release, folder / "vmlinuz", folder / "modules", boot if boot.exists() else None)


_INGREDIENTS = "\n".join((*MODULES, *BOOT_MODULES))


def _fetch_kernel(name: str, folder: Path) -> None:
    suite = KERNELS[name]
    say(f"fetching Debian's kernel {name} from {suite}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work = Path(temporary)
        work.chmod(0o755)
        for part in ("state/lists/partial", "cache/archives/partial", "tree", "new/modules"):
            (work / part).mkdir(parents=True)
        (work / "status").touch()
        (work / "list").write_text(f"deb [arch=amd64 signed-by={KEYRING}] {mirror()} {suite} main\n")
        apt = [
            f"-oDir::State={work}/state",
            f"-oDir::State::status={work}/status",
            f"-oDir::Cache={work}/cache",
            f"-oDir::Etc::sourcelist={work}/list",
            "-oDir::Etc::sourceparts=/dev/null",
            "-oAPT::Architecture=amd64",
            "-oAPT::Sandbox::User=root",
        ]
        command("apt-get", *apt, "-q", "update")
        names = command("apt-cache", *apt, "pkgnames", "linux-").split()
        version, _, generic = name.partition("-")
        pattern = rf"linux-image-({re.escape(version)}\.[^-]+{'' if generic else '.*-cloud'}-amd64)"
        found = {m[1] for n in names if (m := re.fullmatch(pattern, n))}
        if not found:
            raise VmError(
                f"{suite} offers no kernel {name} any more: see `apt-cache search linux-image` for what it has"
            )
        release = max(found, key=lambda r: [int(n) for n in re.findall(r"\d+", r)])
        # From 7.x on the image package is empty and depends on the two others.
        packages = [p for p in (f"linux-{kind}-{release}" for kind in ("image", "binary", "modules")) if p in names]
        command("apt-get", *apt, "-q", "download", *packages, cwd=work)
        for deb in work.glob("*.deb"):
            command("dpkg-deb", "-x", deb, work / "tree")
        shutil.move(next((work / "tree").rglob("vmlinuz*")), work / "new" / "vmlinuz")
        target = work / "new" / "modules" / release
        target.mkdir()
        for file in (work / "tree").rglob("*.ko*"):
            if file.name.split(".")[0] in MODULES:
                shutil.copy(file, target)
        for file in (work / "tree").rglob("modules.builtin*"):
            shutil.copy(file, target)
        (target / "modules.order").touch()
        if generic:
            (work / "new" / "boot").mkdir()
            for index, module in enumerate(BOOT_MODULES):
                file = next((work / "tree").rglob(f"{module}.ko*"))
                data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
                (work / "new" / "boot" / f"{index}.ko").write_bytes(data)
        (work / "new" / "release").write_text(release)
        (work / "new" / "ingredients").write_text(_INGREDIENTS)
        shutil.rmtree(folder, ignore_errors=True)
        (work / "new").rename(folder)


def requirements() -> list[str]:
    """What agentmon and its tests need of the package index, from pyproject.toml."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = [r for r in project["optional-dependencies"]["dev"] if re.match(r"[\w-]+", r)[0] in TEST_REQUIREMENTS]  # type: ignore[index]
    return [*project["dependencies"], *extras]


def wheels(target: Path, wanted: list[str]) -> None:
    """Unpacks wheels for Debian bookworm's Python 3.11 below ``target``, whatever Python the host runs."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in (36, 34, 31, 28, 27, 24, 17, 12, 5)]
    command(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile",
        "--target", target, "--only-binary=:all:", "--implementation=cp", "--python-version=3.11",
        *(f"--platform={p}" for p in (*platforms, "manylinux2014_x86_64", "manylinux1_x86_64")), *wanted,
    )  # fmt: skip


def root() -> Path:
    """The root image of every guest, built at its first use and whenever its ingredients change."""
    key = hashlib.sha256(json.dumps([SUITE, PACKAGES, requirements(), ROOT_BYTES]).encode())
    key.update(inspect.getsource(_build_root).encode())
    for name in IN_IMAGE:
        key.update((GUEST / name).read_bytes())
    image = cache() / f"root-{key.hexdigest()[:12]}.img"
    with locked("root"):
        if not image.exists():
            _build_root(image)
            for old in fnmatch.filter(os.listdir(cache()), "root-*.img"):
                if old != image.name:
                    (cache() / old).unlink()
    return image


def _build_root(image: Path) -> None:
    say("building the root image of the guests; once, about two minutes")
    with tempfile.TemporaryDirectory(dir=cache()) as temporary:
        tree = Path(temporary) / "tree"
        command(
            "debootstrap", "--variant=minbase", f"--keyring={KEYRING}", f"--include={','.join(PACKAGES)}",
            SUITE, tree, mirror(),
        )  # fmt: skip
        site = tree / "usr/local/lib/python3.11/dist-packages"
        wheels(site, requirements())
        # The checkout comes with each run, on the work disk.
        (site / "agentmon-checkout.pth").write_text("/mnt/agentmon\n")
        for name, place in IN_IMAGE.items():
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(GUEST / name, tree / place)
        warm = tree / "tmp/test_warm.py"
        warm.write_text(
            "from hypothesis import given, strategies as st\n\n@given(st.integers())\ndef test_warm(x): pass\n"
        )
        for words in (
            ("useradd", "--create-home", "--uid=1000", "--shell=/bin/bash", "alice"),
            ("systemctl", "enable", "agentmon-vm.service"),
            # nothing will ever answer on the serial lines
            ("systemctl", "mask", "getty@.service", "serial-getty@.service", "apt-daily.timer", "e2scrub_all.timer"),
            ("python3", "-m", "compileall", "-q", "/usr/local/lib/python3.11/dist-packages"),
            # pytest keeps its own bytecode of its plugins: ten seconds in a guest
            ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "/tmp/test_warm.py"),
        ):
            command("chroot", tree, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *words)
        warm.unlink()
        (tree / "etc/sudoers.d/alice").write_text("alice ALL=(ALL) NOPASSWD: ALL\n")
        (tree / "etc/hostname").write_text("guest\n")
        (tree / "etc/hosts").write_text("127.0.0.1 localhost guest\n::1 localhost\n")
        (tree / "etc/fstab").write_text("")
        (tree / "etc/machine-id").write_text("a6e27001a6e27001a6e27001a6e27001\n")
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(tree / waste, ignore_errors=True)
        new = Path(temporary) / "root.img"
        disk(new, tree, ROOT_BYTES, label="agentmon-root", partition=True)
        new.rename(image)


def disk(image: Path, tree: Path, size_bytes: int, *, label: str, partition: bool = False) -> None:
    """Makes an ext4 disk from a folder; with ``partition``, as the first of an MBR table with a known signature."""
    offset = PARTITION_BYTES if partition else 0
    with image.open("wb") as file:
        file.truncate(offset + size_bytes)
        if partition:
            # MBR: signature at 440, first entry at 446 (type 0x83, LBA start and count at +8), magic at 510.
            file.seek(440)
            file.write(DISK_SIGNATURE.to_bytes(4, "little") + bytes(2))
            entry = bytes(4) + b"\x83" + bytes(3)
            file.write(entry + (offset // 512).to_bytes(4, "little") + (size_bytes // 512).to_bytes(4, "little"))
            file.seek(510)
            file.write(b"\x55\xaa")
    command(
        "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-L", label, "-d", tree, "-E", f"offset={offset}",
        image, f"{size_bytes // 1024}k",
    )  # fmt: skip


def initrd(archive: Path, modules: Path, init: Path) -> None:
    """Makes an initial RAM disk: ``init``, and the modules that it loads."""
    entries = [("init", 0o100755, init.read_bytes())]
    entries += [(name, 0o40755, b"") for name in ("dev", "modules", "root")]
    entries += [(f"modules/{file.name}", 0o100644, file.read_bytes()) for file in sorted(modules.iterdir())]
    with archive.open("wb") as file:
        for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
            # Documentation/driver-api/early-userspace/buffer-format.rst
            fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
            head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
            for part in (head, data):
                file.write(part + bytes(-len(part) % 4))
