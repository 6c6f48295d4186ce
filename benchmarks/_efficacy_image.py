# SPDX-License-Identifier: Apache-2.0
"""The guest of `efficacy`: the tests' image, and the programs that agents and one-liners call."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.vm import image

IMAGE_BYTES = 3 << 30  # sparse
#: Ordinary programs of Debian; what a guest lacks fails the same with and without agentmon, and is not counted.
PACKAGES = (
    "apache2-bin", "aria2", "at", "bc", "binutils", "bsdextrautils", "busybox", "ca-certificates", "cmake", "cron",
    "curl", "dmidecode", "dos2unix", "ed", "expect", "file", "fping", "gawk", "gcc", "gdb", "genisoimage", "gettext",
    "groff", "highlight", "iptables", "jq", "ksh", "less", "libc6-dev", "libimage-exiftool-perl", "libwww-perl",
    "links", "logrotate", "ltrace", "m4", "make", "man-db", "minicom", "mosquitto", "mutt", "nano", "nasm", "ncal",
    "net-tools", "netcat-openbsd", "nftables", "nginx-light", "nmap", "ntpdate", "openssh-client", "openssl",
    "openvpn", "perl", "psmisc", "python-is-python3", "python3-bs4", "python3-flask", "python3-jsonschema",
    "python3-numpy", "python3-pip", "python3-psutil", "python3-pygments", "python3-requests", "qpdf", "rake",
    "rlwrap", "rsync", "sharutils", "socat", "tcpdump", "tcsh", "tmux", "tree", "unzip", "vim", "wget", "whiptail",
    "xxd", "xz-utils", "zip", "zsh",
)  # fmt: skip
_QUIET = "#!/bin/sh\nexit 101\n"  # policy-rc.d: no service is started while packages are installed


def root() -> Path:
    """The image, built at its first use and whenever its ingredients change."""
    base = image.root()
    text = "\n".join((base.name, *PACKAGES, str(IMAGE_BYTES)))
    target = image.cache() / f"efficacy-{hashlib.sha256(text.encode()).hexdigest()[:12]}.img"
    with image.locked("efficacy"):
        if not target.exists():
            _build(base, target)
            for old in image.cache().glob("efficacy-*.img"):
                if old != target:
                    old.unlink()
    return target


def _build(base: Path, target: Path) -> None:
    image.say("building the guests' image of `bench efficacy`; once, about five minutes")
    with tempfile.TemporaryDirectory(dir=image.cache()) as temporary:
        tree, seen = Path(temporary) / "tree", Path(temporary) / "base"
        with _mounted(base, seen):
            image.command("cp", "-a", seen, tree)
        resolver = tree / "etc/resolv.conf"
        shutil.copy("/etc/resolv.conf", resolver)
        quiet = tree / "usr/sbin/policy-rc.d"
        quiet.write_text(_QUIET)
        quiet.chmod(0o755)
        proxies = [f"{k}={v}" for k, v in os.environ.items() if k.lower().endswith("_proxy")]
        inside = ["chroot", tree, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]
        image.command(*inside, *proxies, "apt-get", "-qy", "update")
        image.command(*inside, *proxies, "apt-get", "-qy", "install", "--no-install-recommends", *PACKAGES)
        quiet.unlink()
        resolver.unlink()
        for waste in ("var/cache/apt", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(tree / waste, ignore_errors=True)
        new = Path(temporary) / "new.img"
        image.disk(new, tree, IMAGE_BYTES, label="agentmon-root", partition=True)
        new.rename(target)


@contextlib.contextmanager
def _mounted(disk: Path, place: Path) -> Iterator[None]:
    place.mkdir()
    image.command("mount", "-o", f"loop,ro,noload,offset={image.PARTITION_BYTES}", disk, place)
    try:
        yield
    finally:
        image.command("umount", place)
