# SPDX-License-Identifier: Apache-2.0
"""Reading, writing and creating what a policy forbids has no effect, and is told with its object and rule."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentmon.model.events import Flag
from agentmon.model.operations import Action, Operation, Reason, Tier
from tests.support.fence import ALLOW_ALL, Fence, attempt, blocked, closed, in_child, object_path

Program = Callable[[str], Path]
SECRET = b"the content\n"
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def secret(ground: Path) -> Path:
    path = ground / "secret"
    path.write_bytes(SECRET)
    return path


def deny(path: Path | str, *operations: str, action: str = "deny") -> str:
    """One rule."""
    return f'  - {{id: fence, on: [{", ".join(operations)}], paths: ["{path}"], action: {action}}}\n'


def read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    return os.read(fd, 100)


# ---- read, write, create


def test_a_denied_read_gives_nothing(fence: Fence, tier: Tier, secret: Path) -> None:
    assert fence.without(lambda: read(secret)).value == SECRET
    outcome = fence.run(deny(secret, "read"), lambda: read(secret))
    assert outcome.stopped(tier)
    assert outcome.value is None
    assert outcome.told() == [("read", "deny", "fence")]
    decision = outcome.decisions[-1]
    facts = secret.stat()
    assert object_path(decision) == os.fsencode(secret)
    assert decision.inode[:2] == (os.major(facts.st_dev) << 20 | os.minor(facts.st_dev), facts.st_ino)
    assert decision.tier is tier
    assert decision.reason is Reason.RULE
    assert decision.uid == os.getuid()
    assert decision.ppid == os.getpid()


def test_what_is_not_named_is_allowed_and_told_once(fence: Fence, secret: Path) -> None:
    outcome = fence.run(deny("/nonexistent", "read"), lambda: [read(secret) for _ in range(3)])
    assert outcome.value == [SECRET] * 3
    about = [d for d in outcome.decisions if d.object == os.fsencode(secret)]
    assert [(d.operation, d.verdict) for d in about] == [(Operation.READ, Action.ALLOW)]


MOVES = {
    "the file": ("open/sub/file", "closed/sub/file"),
    "its directory": ("open/sub", "closed/sub2"),
    "the directory above": ("open", "closed2"),
}


@pytest.mark.parametrize("moved", MOVES)
def test_what_was_allowed_is_judged_anew_where_it_was_moved(fence: Fence, tier: Tier, ground: Path, moved: str) -> None:
    for directory in ("open/sub", "closed/sub"):
        (ground / directory).mkdir(parents=True)
    (ground / "open/sub/file").write_bytes(SECRET)
    old, new = (ground / name for name in MOVES[moved])
    path = Path(str(ground / "open/sub/file").replace(str(old), str(new)))

    def body() -> tuple[list[bytes], tuple[int, int]]:
        before = [read(ground / "open/sub/file") for _ in range(3)]
        os.rename(old, new)
        return before, in_child(lambda: read(path))

    assert fence.without(body).value == ([SECRET] * 3, (0, 0))
    os.rename(new, old)
    outcome = fence.run(deny(f"{ground}/closed{{,2}}/**", "read"), body)
    assert outcome.value == ([SECRET] * 3, blocked(tier))


def test_another_name_of_an_allowed_file_is_judged_by_itself(fence: Fence, tier: Tier, ground: Path) -> None:
    (ground / "closed").mkdir()
    (ground / "file").write_bytes(SECRET)
    os.link(ground / "file", ground / "closed/file")

    def body() -> tuple[int, int]:
        for _ in range(3):
            read(ground / "file")
        return in_child(lambda: read(ground / "closed/file"))

    assert fence.run(deny(f"{ground}/closed/**", "read"), body).value == blocked(tier)


def test_an_allowed_object_is_judged_anew_for_another_operation(fence: Fence, tier: Tier, secret: Path) -> None:
    def body() -> tuple[int, int]:
        for _ in range(3):
            read(secret)
        return in_child(lambda: os.open(secret, os.O_RDWR))

    assert fence.run(deny(secret, "write"), body).value == blocked(tier)


def test_audit_lets_it_happen_and_tells_it_each_time(fence: Fence, secret: Path) -> None:
    outcome = fence.run(deny(secret, "read", action="audit"), lambda: [read(secret) for _ in range(3)])
    assert outcome.value == [SECRET] * 3
    assert outcome.told() == [("read", "audit", "fence")] * 3


def test_kill_ends_the_process_in_both_tiers(fence: Fence, secret: Path) -> None:
    outcome = fence.run(deny(secret, "read", action="kill"), lambda: read(secret))
    assert outcome.status == -signal.SIGKILL
    assert outcome.told() == [("read", "kill", "fence")]
    assert outcome.decisions[-1].flags & Flag.KILLED


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (os.O_WRONLY, "write"),
        (os.O_RDWR, "write"),
        (os.O_WRONLY | os.O_APPEND, "write"),
        (os.O_WRONLY | os.O_TRUNC, "write"),
        (os.O_RDONLY | os.O_TRUNC, "write"),
        (os.O_WRONLY | os.O_CREAT, "write"),  # the file is there: nothing is created
    ],
)
def test_every_way_to_open_for_writing_is_write(fence: Fence, tier: Tier, secret: Path, flags: int, told: str) -> None:
    def body() -> None:
        fd = os.open(secret, flags, 0o600)
        os.write(fd, b"changed")

    fence.without(body)
    assert secret.read_bytes() != SECRET
    secret.write_bytes(SECRET)
    outcome = fence.run(deny(secret, "write"), body)
    assert outcome.stopped(tier)
    assert outcome.told() == [(told, "deny", "fence")]
    # react: O_TRUNC has done its work when the process dies; nothing was written
    assert secret.read_bytes() == (b"" if tier is Tier.REACT and flags & os.O_TRUNC else SECRET)


def test_reading_and_writing_are_told_apart(fence: Fence, tier: Tier, secret: Path) -> None:
    def body() -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        both = in_child(lambda: os.open(secret, os.O_RDWR))
        return read(secret), in_child(lambda: os.open(secret, os.O_WRONLY)), both

    assert fence.run(deny(secret, "write"), body).value == (SECRET, blocked(tier), blocked(tier))

    def other() -> tuple[tuple[int, int], ...]:
        ways = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
        return tuple(in_child(lambda way=way: os.open(secret, way)) for way in ways)

    assert fence.run(deny(secret, "read"), other).value == (blocked(tier), (0, 0), blocked(tier))


def test_of_two_operations_at_once_the_more_severe_is_told(fence: Fence, tier: Tier, secret: Path) -> None:
    policy = deny(secret, "read", action="kill").replace("fence", "first") + deny(secret, "write")
    outcome = fence.run(policy, lambda: os.open(secret, os.O_RDWR))
    assert outcome.status == -signal.SIGKILL
    assert outcome.told() == [("read", "kill", "first")]
    policy = deny(secret, "read").replace("fence", "first") + deny(secret, "write")
    assert fence.run(policy, lambda: os.open(secret, os.O_RDWR)).told() == [("write", "deny", "fence")]


@pytest.mark.parametrize("extra", [os.O_EXCL, os.O_TRUNC, 0])
def test_a_denied_creation_leaves_nothing_written(fence: Fence, tier: Tier, ground: Path, extra: int) -> None:
    new = ground / "new"

    def body() -> None:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | extra, 0o600)
        os.write(fd, b"content")

    fence.without(body)
    assert new.read_bytes() == b"content"
    new.unlink()
    outcome = fence.run(deny(new, "create"), body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("create", "deny", "fence")]
    assert object_path(outcome.decisions[-1]) == os.fsencode(new)
    if tier is Tier.LSM:
        assert not new.exists()
    else:
        assert new.read_bytes() == b""


def test_creating_is_neither_reading_nor_writing(fence: Fence, ground: Path) -> None:
    new = ground / "new"
    policy = f'  - {{id: fence, on: [read, write], paths: ["{ground}/**"], action: deny}}\n'
    assert fence.run(policy, lambda: os.open(new, os.O_RDWR | os.O_CREAT, 0o600)).status == 0
    assert new.exists()


def test_a_file_without_a_name_is_created_too(fence: Fence, tier: Tier, ground: Path) -> None:
    policy = f'  - {{id: fence, on: create, paths: ["{ground}/**"], action: deny}}\n'

    def body() -> int:
        return os.write(os.open(ground, os.O_TMPFILE | os.O_RDWR, 0o600), SECRET)

    assert fence.without(body).value == len(SECRET)
    outcome = fence.run(policy, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("create", "deny", "fence")]


#: Ways to make a name that no open is, from a file.
MAKING: dict[str, Callable[[Path, Path], object]] = {
    "mkdir": lambda _, new: os.mkdir(new),
    "fifo": lambda _, new: os.mknod(new, stat.S_IFIFO | 0o600),
    "mknod": lambda _, new: os.mknod(new, stat.S_IFREG | 0o600),
    "symlink": lambda _, new: os.symlink("target", new),
    "link": os.link,
    "rename": os.rename,
}


@pytest.mark.parametrize("way", MAKING)
def test_no_other_way_to_make_a_name_is_open(fence: Fence, tier: Tier, ground: Path, way: str) -> None:
    file, below = ground / "file", ground / "fenced"
    below.mkdir()
    file.write_bytes(SECRET)
    assert fence.without(lambda: MAKING[way](file, below / "x")).errno == 0
    assert list(below.iterdir()) == [below / "x"]
    subprocess.run(["rm", "-r", below / "x"], check=True)
    file.write_bytes(SECRET)
    outcome = fence.run(deny(f"{below}/**", "create"), lambda: MAKING[way](file, below / "x"))
    assert outcome.stopped(tier)
    assert outcome.told() == [("create", "deny", "fence")]
    assert object_path(outcome.decisions[-1]) == os.fsencode(below / "x")
    if tier is Tier.LSM:
        assert list(below.iterdir()) == []
        assert file.exists()


@pytest.mark.parametrize("way", ["link", "rename", "rename its directory"])
@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_fenced_file_gets_no_other_name(fence: Fence, tier: Tier, ground: Path, operation: str, way: str) -> None:
    fenced, other = ground / "fenced", ground / "other"
    old = fenced if way == "rename its directory" else fenced / "f"

    def body() -> None:
        (os.link if way == "link" else os.rename)(old, other)

    fenced.mkdir()
    (fenced / "f").write_bytes(SECRET)
    assert fence.without(body).errno == 0
    assert (other / "f" if other.is_dir() else other).read_bytes() == SECRET
    subprocess.run(["rm", "-r", other], check=True)
    fenced.mkdir(exist_ok=True)
    (fenced / "f").write_bytes(SECRET)
    outcome = fence.run(deny(f"{fenced}/**", operation), body)
    assert outcome.stopped(tier)
    assert outcome.told()[-1][1:] == ("deny", "fence")
    assert object_path(outcome.decisions[-1]) == os.fsencode(old)
    if tier is Tier.LSM:
        assert not other.exists()
        assert (fenced / "f").exists()


#: include/uapi/linux/fs.h, and the flag that keeps `dump` from a file
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, NODUMP, XFLAG_NODUMP = (
    0x80086601, 0x40086602, 0x401C5820, 0x40, 0x80,
)  # fmt: skip
ACL = "system.posix_acl_access"
#: User 1 may read as well: tag, permissions and number of each entry (include/uapi/linux/posix_acl_xattr.h)
OPEN_TO_1 = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, mode, number)
    for tag, mode, number in ((1, 6, 2**32 - 1), (2, 4, 1), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1))
)


def set_flags(path: Path, command: int, argument: bytes) -> None:
    fcntl.ioctl(os.open(path, os.O_RDONLY), command, argument)


def chattr(path: Path) -> None:
    """One flag more: without those that it has, ext4 may have to move the file's blocks, and sometimes refuses."""
    flags = int.from_bytes(fcntl.ioctl(os.open(path, os.O_RDONLY), FS_IOC_GETFLAGS, bytes(8)), sys.byteorder)
    set_flags(path, FS_IOC_SETFLAGS, struct.pack("=Q", flags | NODUMP))


def file_setattr(path: Path) -> None:
    """file_setattr(2), since Linux 6.17."""
    if LIBC.syscall(469, -100, os.fsencode(path), struct.pack("=Q4I", XFLAG_NODUMP, 0, 0, 0, 0), 24, 0):
        raise OSError(ctypes.get_errno(), "file_setattr")


CHANGES: dict[str, Callable[[Path], object]] = {
    "unlink": lambda f: os.unlink(f / "file"),
    "rmdir": lambda f: os.rmdir(f / "directory"),
    "rename": lambda f: os.rename(f / "file", f.parent / "renamed"),
    "rename a directory": lambda f: os.rename(f / "directory", f.parent / "renamed"),
    "replace": lambda f: os.rename(f.parent / "other", f / "file"),
    "link": lambda f: os.link(f / "file", f.parent / "linked"),
    "chmod": lambda f: os.chmod(f / "file", 0o777),
    "fchmod": lambda f: os.fchmod(os.open(f / "file", os.O_RDONLY), 0o777),
    "chown": lambda f: os.chown(f / "file", 1, 1),
    "lchown": lambda f: os.lchown(f / "symlink", 1, 1),
    "utime": lambda f: os.utime(f / "file", (1, 1)),
    "touch": lambda f: os.utime(f / "file"),
    "futime": lambda f: os.utime(os.open(f / "file", os.O_RDONLY), (1, 1)),
    "utime of a symlink": lambda f: os.utime(f / "symlink", (1, 1), follow_symlinks=False),
    "utime of a directory": lambda f: os.utime(f / "directory", (1, 1)),
    "setxattr": lambda f: os.setxattr(f / "file", "trusted.new", b"1"),
    "fsetxattr": lambda f: os.setxattr(os.open(f / "file", os.O_RDONLY), "trusted.new", b"1"),
    "lsetxattr": lambda f: os.setxattr(f / "symlink", "trusted.new", b"1", follow_symlinks=False),
    "removexattr": lambda f: os.removexattr(f / "file", "trusted.old"),
    "set an ACL": lambda f: os.setxattr(f / "file", ACL, OPEN_TO_1),
    "remove an ACL": lambda f: os.removexattr(f / "opened", ACL),
    "chattr": lambda f: chattr(f / "file"),
    "chattr by xfs's call": lambda f: set_flags(
        f / "file", FS_IOC_FSSETXATTR, struct.pack("=5I8x", XFLAG_NODUMP, 0, 0, 0, 0)
    ),
    "file_setattr": lambda f: file_setattr(f / "file"),
}


def changeable(ground: Path) -> Path:
    fenced = ground / "fenced"
    (fenced / "directory").mkdir(parents=True)
    for path in (fenced / "file", ground / "other"):
        path.write_bytes(SECRET)
    (fenced / "symlink").symlink_to("nowhere")
    (fenced / "opened").touch()
    with contextlib.suppress(OSError):  # a file system without them: the changes say so
        os.setxattr(fenced / "file", "trusted.old", b"1")
        os.setxattr(fenced / "opened", ACL, OPEN_TO_1)
    return fenced


def flags_of(path: Path) -> bytes:
    if not path.is_file():
        return b""
    fd = os.open(path, os.O_RDONLY)
    try:
        return fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return b""
    finally:
        os.close(fd)


@pytest.mark.parametrize("change", CHANGES)
def test_what_may_not_be_written_may_not_be_changed_otherwise(
    fence: Fence, tier: Tier, ground: Path, change: str
) -> None:
    def tree() -> dict[Path, object]:
        found = {p: p.lstat() for p in ground.rglob("*")}
        more = {
            p: {n: os.getxattr(p, n, follow_symlinks=False) for n in os.listxattr(p, follow_symlinks=False)}
            for p in found
        }
        return {
            p: (s.st_ino, s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns, more[p], flags_of(p))
            for p, s in found.items()
        }

    free, fenced = changeable(ground / "free"), changeable(ground / "guarded")
    before = tree()
    plain = fence.without(lambda: CHANGES[change](free)).errno
    if plain in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY):
        pytest.skip(f"not required: this kernel or file system has no {change}")
    assert plain == 0
    changed = tree()
    assert changed != before
    outcome = fence.run(deny(f"{fenced}/**", "write"), lambda: CHANGES[change](fenced))
    assert outcome.stopped(tier)
    assert outcome.told()[-1][1:] == ("deny", "fence")
    if tier is Tier.LSM:
        assert tree() == changed


@pytest.mark.parametrize("operation", ["delete", "rename", "link", "attr"])
def test_one_kind_of_change_alone_can_be_denied(fence: Fence, tier: Tier, ground: Path, operation: str) -> None:
    fenced = changeable(ground)
    kinds = {
        "unlink": "delete",
        "rmdir": "delete",
        "rename": "rename",
        "link": "link",
        "chmod": "attr",
        "chown": "attr",
        "utime": "attr",
        "setxattr": "attr",
        "chattr": "attr",
    }
    order = sorted(
        kinds, key=["chmod", "chown", "utime", "setxattr", "chattr", "link", "rename", "unlink", "rmdir"].index
    )
    if attempt(lambda: CHANGES["chattr"](fenced)):
        order.remove("chattr")  # this file system has none

    def body(at: Path) -> list[tuple[int, int]]:
        results = []
        for change in order:
            results.append(in_child(lambda change=change: CHANGES[change](at)))  # type: ignore[misc]
            if (at.parent / "renamed").exists():
                os.rename(at.parent / "renamed", at / "file")
        return results

    free = changeable(ground / "free")
    assert fence.without(lambda: body(free)).value == [(0, 0)] * len(order)
    kinds_denied = {operation, "rename"} if operation == "delete" else {operation}  # moved away is gone as well
    outcome = fence.run(deny(f"{fenced}/**", operation), lambda: body(fenced))
    assert outcome.value == [blocked(tier) if kinds[change] in kinds_denied else (0, 0) for change in order]
    assert (operation, "deny", "fence") in outcome.told()


def test_what_reading_and_writing_do_to_attributes_by_the_way_is_theirs(fence: Fence, ground: Path) -> None:
    file = ground / "file"
    file.write_bytes(SECRET)

    def body() -> None:
        read(file)
        file.write_bytes(SECRET)  # takes away its set-user-ID bit
        with open(file, "ab") as opened:
            opened.write(SECRET)
        os.truncate(file, 1)
        os.listdir(ground)
        (ground / "new").mkdir()
        os.rename(file, ground / "new/file")
        subprocess.run(["true"], check=True)

    for path in (ground, file):
        path.chmod(0o4777)
        os.chown(path, 1, 1)
    outcome = fence.run(deny("/**", "attr"), body)
    assert (outcome.errno, outcome.told()) == (0, [])
    assert not (ground / "new/file").stat().st_mode & stat.S_ISUID


def test_where_writing_is_allowed_attributes_are_kept(fence: Fence, ground: Path) -> None:
    """What copies and unpacks sets times, and ACLs where there are some."""
    (ground / "mine").mkdir()
    policy = (
        "policy: closed\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: deny}\n"
        f'rules:\n  - {{id: here, on: [write, create], paths: ["{ground}/mine/**", /dev/null], action: allow}}\n'
    )
    script = (
        "set -e; touch a; touch -d 2001-01-01 a; cp -a a b; mkdir d; mv b d; tar cf t d; rm -r d; tar xpf t; "
        "install -p -m 755 a c; ! touch ../other; stat -c %Y a d/b c"
    )
    (ground / "other").touch()
    words = ["/bin/sh", "-c", f"cd {ground}/mine; {script}"]
    times = b"978307200\n" * 3
    assert fence.run(policy, words).value == times


def exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python does not have."""
    if LIBC.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


AWAY: dict[str, Callable[[Path, Path, Path], object]] = {
    "rename": lambda keep, _, gone: os.rename(keep / "file", gone),
    "replace": lambda keep, other, _: os.rename(keep / "file", other / "file"),
    "exchange": lambda keep, other, _: exchange(keep / "file", other / "file"),
    "exchanged": lambda keep, other, _: exchange(other / "file", keep / "file"),
    "directory": lambda keep, _, gone: os.rename(keep / "directory", gone),
    "above": lambda keep, _, gone: os.rename(keep.parent, gone),
}


@pytest.mark.parametrize("way", [*[*AWAY][:-1], pytest.param("above", marks=pytest.mark.tier("lsm"))])
def test_what_may_not_be_deleted_is_not_moved_away(fence: Fence, tier: Tier, ground: Path, way: str) -> None:
    def tree() -> dict[Path, int]:
        return {p: p.lstat().st_ino for p in ground.rglob("*")}

    def at(place: str) -> tuple[Path, Path, Path]:
        keep, other = ground / place / "a/keep", ground / place / "other"
        for path in (keep / "file", keep / "directory/file", other / "file", other / "directory/file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(SECRET)
        return keep, other, ground / place / "gone"

    free, fenced = at("free"), at("fenced")
    before = tree()
    assert fence.without(lambda: AWAY[way](*free)).errno == 0
    changed = tree()
    assert changed != before
    outcome = fence.run(deny(f"{fenced[0]}/**", "delete"), lambda: AWAY[way](*fenced))
    assert outcome.stopped(tier)
    assert outcome.told()[-1] == ("rename" if way == "above" else "delete", "deny", "fence")
    if tier is Tier.LSM:
        assert tree() == changed


@pytest.mark.parametrize("by", ["rule", "default"])
def test_where_nothing_may_be_deleted_files_are_saved_by_renaming(
    fence: Fence, tier: Tier, ground: Path, by: str
) -> None:
    (ground / "file").write_bytes(b"old")
    (ground / "directory").mkdir()
    policy = deny(f"{ground}/**", "delete")
    if by == "default":
        policy = f"policy: test\n{ALLOW_ALL.replace('}', ', delete: deny}')}"

    def body() -> tuple[list[int], bytes, tuple[int, int]]:
        (ground / "file.tmp").write_bytes(b"new")
        renamed = [
            attempt(lambda: os.rename(ground / "file.tmp", ground / "file")),
            attempt(lambda: os.rename(ground / "directory", ground / "renamed")),
        ]
        return renamed, read(ground / "file"), in_child((ground / "file").unlink)

    assert fence.run(policy, body).value == ([0, 0], b"new", blocked(tier))


def test_where_only_new_files_may_be_made_they_are_made_by_renaming(fence: Fence, ground: Path) -> None:
    policy = (
        "policy: closed\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: deny}\nrules:\n"
        f'  - {{id: mine, on: [write, create], paths: ["{ground}/mine/**"], action: allow}}\n'
        f'  - {{id: new, on: create, paths: ["{ground}/new/*"], action: audit}}\n'
    )
    for name in ("mine", "new"):
        (ground / name).mkdir()

    def body() -> None:
        (ground / "mine/file").write_bytes(SECRET)
        os.rename(ground / "mine/file", ground / "new/file")

    outcome = fence.run(policy, body)
    assert (outcome.status, outcome.errno) == (0, 0)
    assert outcome.told() == [("create", "audit", "new")]
    assert (ground / "new/file").read_bytes() == SECRET


@pytest.mark.parametrize("order", [0, 1])
def test_an_exchange_moves_both_names(fence: Fence, tier: Tier, ground: Path, order: int) -> None:
    (ground / "fenced").mkdir()
    names = [ground / "fenced/secret", ground / "mine"]
    names[0].write_bytes(SECRET)
    names[1].write_bytes(b"mine")
    pair = names[order], names[1 - order]
    assert fence.without(lambda: exchange(*pair)).errno == 0
    assert names[1].read_bytes() == SECRET
    exchange(*pair)
    outcome = fence.run(deny(f"{ground}/fenced/**", "read"), lambda: exchange(*pair))
    assert outcome.stopped(tier)
    assert outcome.told()[-1][1:] == ("deny", "fence")
    if tier is Tier.LSM:
        assert names[0].read_bytes() == SECRET


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("way", ["rename", "exchange"])
@pytest.mark.parametrize("depth", ["a", "a/b"])
def test_nothing_fenced_is_carried_away_with_its_directory(fence: Fence, ground: Path, way: str, depth: str) -> None:
    (ground / "a/b/c").mkdir(parents=True)
    (ground / "else").mkdir()
    (ground / "a/b/c/secret").write_bytes(SECRET)
    new = ground / ("else" if way == "exchange" else "else/x")
    move = exchange if way == "exchange" else os.rename

    def body() -> tuple[int, int]:
        return attempt(lambda: move(ground / depth, new)), attempt(lambda: move(ground / "a/b/c/d", ground / "e"))

    (ground / "a/b/c/d").mkdir()
    if way == "exchange":
        (ground / "e").mkdir()
    assert fence.without(lambda: move(ground / depth, new)).errno == 0
    assert (new / Path("a/b/c/secret").relative_to(depth)).read_bytes() == SECRET
    move(new, ground / depth)
    outcome = fence.run(deny(f"{ground}/a/b/*/secret", "read"), body)
    assert outcome.value == (errno.EPERM, 0)  # below d is nothing that the rule could mean
    assert ("rename", "deny", "fence") in outcome.told()
    assert (ground / "a/b/c/secret").read_bytes() == SECRET


@pytest.mark.tier("lsm")
def test_nothing_is_planted_with_a_directory(fence: Fence, ground: Path) -> None:
    (ground / "mine/hooks").mkdir(parents=True)
    (ground / "mine/hooks/x").write_bytes(b"#!")

    def body() -> None:
        os.rename(ground / "mine", ground / "repository")

    assert fence.without(body).errno == 0
    assert (ground / "repository/hooks/x").exists()
    os.rename(ground / "repository", ground / "mine")
    assert fence.run(deny(f"{ground}/repository/hooks/*", "create"), body).errno == errno.EPERM
    assert not (ground / "repository").exists()


def test_an_ordinary_directory_moves(fence: Fence, ground: Path) -> None:
    (ground / "src/deep").mkdir(parents=True)
    rules = deny(f"{ground}/**/.git/hooks/*", "write") + deny(f"{ground}/vault/**", "read").replace("fence", "vault")
    outcome = fence.run(rules, lambda: attempt(lambda: os.rename(ground / "src", ground / "lib")))
    assert outcome.value == 0
    assert (ground / "lib/deep").is_dir()


def test_truncation_by_name_is_a_write(fence: Fence, tier: Tier, secret: Path) -> None:
    assert fence.without(lambda: os.truncate(secret, 0)).errno == 0
    assert secret.read_bytes() == b""
    secret.write_bytes(SECRET)
    outcome = fence.run(deny(secret, "write"), lambda: os.truncate(secret, 0))
    assert outcome.stopped(tier)
    assert outcome.told() == [("write", "deny", "fence")]
    assert secret.read_bytes() == (SECRET if tier is Tier.LSM else b"")


# ---- names, where no hook tells what they lead to


NAMES: dict[str, Callable[[Path], object]] = {
    "absolute": os.unlink,
    "dots": lambda f: os.unlink(f"/{f.parent}//sub/.././/sub/../{f.name}"),
    "from the root": lambda f: os.unlink(f"/../..{f}"),
    "relative": lambda f: (os.chdir(f.parent), os.unlink(f"./{f.name}")),
    "from below": lambda f: (os.chdir(f.parent / "sub"), os.unlink(f"../{f.name}")),
    "descriptor": lambda f: os.unlink(f.name, dir_fd=os.open(f.parent, os.O_RDONLY)),
    "descriptor by a link": lambda f: os.unlink(f.name, dir_fd=os.open(f.parent.parent / "link", os.O_RDONLY)),
    "below a link": lambda f: (os.chdir(f.parent.parent / "link"), os.unlink(f.name)),
    "chroot": lambda f: (os.chroot(f.parent), os.unlink(f"/{f.name}")),
    "long": lambda f: os.unlink(f"{f.parent}/{'./' * 1500}{f.name}"),
}


@pytest.mark.parametrize("way", [*NAMES, pytest.param("link", marks=pytest.mark.tier("lsm"))])
def test_whatever_name_it_is_deleted_by_it_is_the_same_file(fence: Fence, tier: Tier, ground: Path, way: str) -> None:
    file = ground / "fenced/file"
    (file.parent / "sub").mkdir(parents=True)
    (ground / "link").symlink_to(file.parent)
    file.write_bytes(SECRET)
    delete = NAMES.get(way, lambda _: os.unlink(ground / "link/file"))
    assert fence.without(lambda: delete(file)).errno == 0
    assert not file.exists()
    file.write_bytes(SECRET)
    outcome = fence.run(deny(f"{ground}/fenced/*", "delete"), lambda: delete(file))
    assert outcome.stopped(tier)
    assert outcome.told() == [("delete", "deny", "fence")]
    assert object_path(outcome.decisions[-1]) == os.fsencode(file)


def test_a_link_to_where_it_may_be_changed_kills_nobody(fence: Fence, ground: Path) -> None:
    """Of such a name nobody can tell in the react tier where it leads."""
    (ground / "mine/sub").mkdir(parents=True)
    (ground / "link").symlink_to("mine")
    (ground / "mine/file").touch()
    rules = deny(f"{ground}/mine/**", "write", "create", action="allow").replace("fence", "mine")
    policy = f"policy: closed\ndefault: {{read: allow, write: deny, create: deny}}\nrules:\n{rules}"

    def body() -> None:
        os.chmod(ground / "link/file", 0o600)
        os.rename(ground / "link/sub/../file", ground / "mine/sub/file")
        os.mkdir(ground / "mine/../link/directory")
        os.unlink(ground / "link/sub/file")

    outcome = fence.run(policy, body)
    assert (outcome.status, outcome.errno, outcome.told()) == (0, 0, [])
    assert sorted(os.listdir(ground / "mine")) == ["directory", "sub"]


#: By the 32-bit table: calls, and what they are (`calls32`).
CALLS32: dict[str, tuple[str, str]] = {
    "unlink": ("delete", "10:@{f}"),
    "unlinkat": ("delete", "301:-100,@{f},0"),
    "rename": ("rename", "38:@{f},@{f}2"),
    "renameat": ("rename", "302:-100,@{f},-100,@{f}2"),
    "renameat2": ("rename", "353:-100,@{f},-100,@{f}2,0"),
    "link": ("link", "9:@{f},@{f}2"),
    "linkat": ("link", "303:-100,@{f},-100,@{f}2,0"),
    "chmod": ("attr", "15:@{f},0777"),
    "chown": ("attr", "212:@{f},1,1"),
    "fchownat": ("attr", "298:-100,@{f},1,1,0"),
    "utimensat": ("attr", "320:-100,@{f},#,0"),
    "mkdir": ("create", "39:@{f}2,0700"),
    "mknodat": ("create", "297:-100,@{f}2,0010600,0"),
    "symlinkat": ("create", "304:@x,-100,@{f}2"),
    "truncate": ("write", "92:@{f},0"),
}


@pytest.mark.parametrize("name", CALLS32)
def test_32_bit_calls_change_nothing_more(fence: Fence, tier: Tier, program: Program, secret: Path, name: str) -> None:
    operation, call = CALLS32[name]
    words = [program("calls32"), call.format(f=secret)]
    plain = fence.without(words)
    if plain.value != b"ok\n":
        pytest.skip(f"not required: this host does not do it ({plain.value!r}, {plain.status})")
    subprocess.run(["rm", "-rf", f"{secret}2"], check=True)
    secret.write_bytes(SECRET)
    outcome = fence.run(deny(f"{secret}*", operation), words)
    assert outcome.status == (1 if tier is Tier.LSM else -signal.SIGKILL)
    assert outcome.told() == [(operation, "deny", "fence")]


def test_looking_at_a_name_is_no_read(fence: Fence, secret: Path) -> None:
    outcome = fence.run(deny(secret, "read"), lambda: (os.stat(secret).st_size, os.open(secret, os.O_PATH)))
    assert outcome.value[0] == len(SECRET)
    assert outcome.told() == []


@pytest.mark.parametrize("way", ["symlink", "hardlink", "dots", "proc", "chroot", "openat2", "handle", "descriptor"])
def test_another_name_for_the_same_file_is_no_way_round(
    fence: Fence, tier: Tier, secret: Path, ground: Path, way: str
) -> None:
    other = ground / "other"
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), way)
        return result

    def body() -> bytes:
        if way == "dots":
            return read(Path(f"{ground}/./../{ground.name}//secret"))
        if way == "proc":
            return read(Path(f"/proc/self/root/{secret}"))
        if way == "chroot":
            os.chroot(ground)
            return read(Path("/secret"))
        if way == "openat2":
            how = struct.pack("=QQQ", 0, 0, 0)
            return os.read(checked(libc.syscall(437, -100, os.fsencode(secret), how, len(how))), 100)
        if way == "handle":
            handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 8 + 128)
            mount = ctypes.c_int()
            checked(libc.name_to_handle_at(-100, os.fsencode(secret), handle, ctypes.byref(mount), 0))
            return os.read(checked(libc.open_by_handle_at(os.open(ground, os.O_RDONLY), handle, os.O_RDONLY)), 100)
        if way == "descriptor":
            return read(Path(f"/proc/self/fd/{os.open(secret, os.O_PATH)}"))
        return read(other)

    if way == "symlink":
        other.symlink_to(secret)
    elif way == "hardlink":
        other.hardlink_to(secret)
    assert fence.without(body).value == SECRET
    outcome = fence.run(deny(secret, "read"), body)
    assert outcome.stopped(tier)
    assert object_path(outcome.decisions[-1]) == os.fsencode(other if way == "hardlink" else secret)


# ---- other system call interfaces


@pytest.mark.parametrize("name", ["open_int80", "open_x32", "open_high"])
def test_no_other_system_call_table_reads_it(
    fence: Fence, tier: Tier, program: Program, secret: Path, name: str
) -> None:
    words = [program(name), secret]
    plain = fence.without(words)
    if plain.value != SECRET:
        # -ENOSYS, or death by a filter of system calls: the way is closed to everybody
        assert plain.value in (b"errno 38\n", b"") or plain.status < 0
        pytest.skip(f"not required: this kernel has no {name.removeprefix('open_')}")
    outcome = fence.run(deny(secret, "read"), words)
    assert SECRET not in outcome.value
    assert outcome.status == (1 if tier is Tier.LSM else -signal.SIGKILL)
    assert outcome.told() == [("read", "deny", "fence")]


@pytest.mark.parametrize("more", [(), ("async",)], ids=["inline", "async"])
def test_a_ring_reads_nothing_that_is_denied(
    fence: Fence, tier: Tier, program: Program, secret: Path, more: tuple[str, ...]
) -> None:
    words = [program("open_ring"), secret, *more]
    plain = fence.without(words)
    if plain.value.startswith(b"no ring"):
        pytest.skip(closed(plain))
    assert plain.value == SECRET
    outcome = fence.run(deny(secret, "read"), words)
    assert SECRET not in outcome.value
    if tier is Tier.LSM:
        assert outcome.value == b"errno 1\n"
        assert outcome.told() == [("read", "deny", "fence")]
    else:
        assert outcome.status == -signal.SIGKILL
        assert outcome.decisions[-1].reason is Reason.RING_OPEN


# ---- conditions


def test_a_rule_for_one_program_is_for_that_program(fence: Fence, tier: Tier, program: Program, ground: Path) -> None:
    secret = ground / "secret"
    secret.write_bytes(SECRET)
    good, bad = ground / "good", ground / "bad"
    for path in (good, bad):
        path.write_bytes(program("show").read_bytes())
        path.chmod(0o755)
    policy = f'  - {{id: fence, on: read, paths: ["{secret}"], exe: ["{bad}"], action: deny}}\n'
    assert fence.run(policy, [good, secret]).value == SECRET
    outcome = fence.run(policy, [bad, secret])
    assert SECRET not in outcome.value
    assert outcome.told() == [("read", "deny", "fence")]
    assert outcome.decisions[-1].exe_tags
    # what a process runs now counts, not what it ran before
    assert fence.run(policy, [program("spawn"), "fork", good, secret]).value == SECRET
    outcome = fence.run(policy, [program("spawn"), "vfork", bad, secret])
    assert SECRET not in outcome.value
    everyone_else = f'  - {{id: fence, on: read, paths: ["{secret}"], except: {{exe: ["{good}"]}}, action: deny}}\n'
    assert fence.run(everyone_else, [good, secret]).value == SECRET
    assert SECRET not in fence.run(everyone_else, [bad, secret]).value


def test_except_is_a_hole_in_its_own_rule_only(fence: Fence, tier: Tier, ground: Path) -> None:
    for name in ("a.key", "a.pub", "b.pub"):
        (ground / name).write_bytes(SECRET)
    policy = (
        f'  - {{id: keys, on: read, paths: ["{ground}/**"], except: {{paths: ["{ground}/*.pub"]}}, action: deny}}\n'
        f'  - {{id: one, on: read, paths: ["{ground}/b*"], action: deny}}\n'
    )

    def body() -> list[tuple[int, int]]:
        return [in_child(lambda name=name: read(ground / name)) for name in ("a.key", "a.pub", "b.pub")]

    outcome = fence.run(policy, body)
    assert outcome.value == [blocked(tier), (0, 0), blocked(tier)]
    assert outcome.told() == [("read", "deny", "keys"), ("read", "deny", "one")]


def test_a_default_can_deny(fence: Fence, tier: Tier, secret: Path) -> None:
    policy = (
        "policy: closed\ndefault: {exec: allow, read: allow, write: deny, create: deny, connect: allow}\n"
        f'rules:\n  - {{id: here, on: [write], paths: ["{secret}"], action: allow}}\n'
    )
    other = secret.with_name("other")
    other.write_bytes(SECRET)

    def body() -> list[tuple[int, int]]:
        return [in_child(lambda path=path: os.open(path, os.O_WRONLY)) for path in (secret, other)]

    outcome = fence.run(policy, body)
    assert outcome.value == [(0, 0), blocked(tier)]
    assert outcome.told() == [("write", "deny", "")]
    assert outcome.decisions[-1].reason is Reason.DEFAULT


def test_two_sessions_do_not_mix(fence: Fence, tier: Tier, secret: Path, ground: Path) -> None:
    other = ground / "other"
    other.write_bytes(SECRET)
    with fence.session(deny(secret, "read")) as first, fence.session(deny(other, "read")) as second:
        assert first.run(lambda: read(other)).value == SECRET
        assert second.run(lambda: read(secret)).value == SECRET
        assert first.run(lambda: read(secret)).stopped(tier)
        assert second.run(lambda: read(other)).stopped(tier)


def test_a_process_that_is_not_enrolled_is_left_alone(fence: Fence, secret: Path) -> None:
    with fence.session(deny(secret, "read", action="kill")) as session:
        assert read(secret) == SECRET
        assert session.drain() == []
