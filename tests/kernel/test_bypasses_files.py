# SPDX-License-Identifier: Apache-2.0
"""Ways around a rule on a file or program, one test each (docs/bypasses.md): first the effect, then its absence."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentmon.model.operations import Operation, Reason, Tier
from tests.support.fence import ALLOW_ALL, Fence, attempt, blocked, in_child

Program = Callable[[str], Path]
SECRET = b"the content\n"
CHANGED = b"changed"
LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC_PRIVATE = 1, 32, 0x1000, 0x44000
MNT_DETACH = 2


@pytest.fixture
def secret(ground: Path) -> Path:
    path = ground / "closed/secret"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


def deny(path: Path | str, *operations: str) -> str:
    """One rule."""
    return f'  - {{id: fence, on: [{", ".join(operations)}], paths: ["{path}"], action: deny}}\n'


def checked(result: int, name: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def test_no_device_node_of_ones_own_is_made_where_creating_is_denied_anywhere(
    fence: Fence, tier: Tier, ground: Path
) -> None:
    node, whiteout = ground / "zero", ground / "whiteout"

    def body() -> bytes:
        os.mknod(whiteout, stat.S_IFCHR | 0o600, 0)
        os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        return os.read(os.open(node, os.O_RDONLY), 4)

    assert fence.without(body).value == bytes(4)
    node.unlink()
    whiteout.unlink()
    outcome = fence.run(deny("/somewhere/else/**", "create"), body)
    assert outcome.stopped(tier)
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.DEVICE]
    assert (whiteout.exists(), node.exists()) == (True, tier is Tier.REACT)


def test_access_mode_3_is_reading_and_writing(fence: Fence, tier: Tier, secret: Path) -> None:
    def body() -> int:
        return os.open(secret, 3)

    assert fence.without(body).errno == 0
    for operation in ("read", "write"):
        assert fence.run(deny(secret, operation), body).stopped(tier)


def runs(path: Path, text: bytes, interpreter: bytes = b"") -> Path:
    """A program of one page, without a library, that exits with the number of its text's first byte."""
    base, begin = 0x400000, 64 + 2 * 56
    code = bytes([0xB8, 60, 0, 0, 0, 0xBF, text[0], 0, 0, 0, 0x0F, 0x05])  # mov eax, 60; mov edi, n; syscall
    size = begin + len(code) + len(interpreter) + 1
    load = struct.pack("<IIQQQQQQ", 1, 7, 0, base, base, size, size, 0x1000)
    named = struct.pack("<IIQQQQQQ", 3, 4, begin + len(code), 0, 0, len(interpreter) + 1, len(interpreter) + 1, 1)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = 2 if interpreter else 1
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + begin, 64, 0, 0, 64, 56, count, 0, 0, 0)
    segments = (named + load if interpreter else load).ljust(2 * 56, b"\0")
    path.write_bytes(head + segments + code + interpreter + b"\0")
    path.chmod(0o755)
    return path


@pytest.mark.tier("lsm")
def test_a_denied_program_does_not_run_as_the_interpreter_of_another(fence: Fence, ground: Path) -> None:
    denied = runs(ground / "denied", b"\x2a")
    via = runs(ground / "via", b"\x01", os.fsencode(denied))
    # both would be loaded at one address: the interpreter is moved
    data = bytearray(denied.read_bytes())
    data[24:32] = struct.pack("<Q", 0x600000 + 64 + 2 * 56)
    data[64 + 16 : 64 + 32] = struct.pack("<QQ", 0x600000, 0x600000)
    denied.write_bytes(data)
    assert fence.without([via]).status == 42
    outcome = fence.run(deny(denied, "read", "exec"), [via])
    assert outcome.status < 0
    assert ("read", "deny", "fence") in outcome.told()


# ---- reading


def by_sendfile(secret: Path, copy: Path) -> None:
    os.sendfile(os.open(copy, os.O_WRONLY | os.O_CREAT), os.open(secret, os.O_RDONLY), 0, 100)


def by_copy_file_range(secret: Path, copy: Path) -> None:
    os.copy_file_range(os.open(secret, os.O_RDONLY), os.open(copy, os.O_WRONLY | os.O_CREAT), 100)


def by_splice(secret: Path, copy: Path) -> None:
    end, begin = os.pipe()
    os.splice(os.open(secret, os.O_RDONLY), begin, 100)
    os.splice(end, os.open(copy, os.O_WRONLY | os.O_CREAT), 100)


def by_mapping(secret: Path, copy: Path) -> None:
    with mmap.mmap(os.open(secret, os.O_RDONLY), 0, prot=mmap.PROT_READ) as mapped:
        copy.write_bytes(mapped[:])


COPIES = {"sendfile": by_sendfile, "copy_file_range": by_copy_file_range, "splice": by_splice, "mmap": by_mapping}


@pytest.mark.parametrize("way", COPIES)
def test_no_way_of_copying_reads(fence: Fence, tier: Tier, ground: Path, secret: Path, way: str) -> None:
    copy = ground / "copy"

    def body() -> None:
        COPIES[way](secret, copy)

    assert fence.without(body).errno == 0
    assert copy.read_bytes() == SECRET
    copy.unlink()
    assert fence.run(deny(secret.parent / "**", "read"), body).stopped(tier)
    assert not copy.exists() or copy.read_bytes() == b""


def words_of(way: str, name: Path, argument: Path) -> list[str]:
    """A command line that has `name argument` run by something else."""
    found = {
        "env": ["env", name, argument],
        "nice": ["nice", name, argument],
        "xargs": ["xargs", "-a", "/dev/null", name, argument],
        "find": ["find", argument, "-exec", name, "{}", ";"],
        "sh": ["sh", "-c", f"{name} {argument}"],
        "timeout": ["timeout", "60", name, argument],
        "setsid": ["setsid", "-w", name, argument],
    }[way]
    program = shutil.which(str(found[0]))
    if program is None:
        pytest.skip(f"not required: this host has no `{found[0]}`")
    return [program, *map(str, found[1:])]


@pytest.mark.parametrize("way", ["env", "nice", "xargs", "find", "sh", "timeout", "setsid"])
def test_a_wrapper_runs_and_reads_nothing_that_is_denied(
    fence: Fence, program: Program, ground: Path, secret: Path, way: str
) -> None:
    tool = ground / "tool"
    shutil.copy(program("show"), tool)
    words = words_of(way, tool, secret)
    assert fence.without(words).value == SECRET
    for rule, operation in ((deny(tool, "exec"), "exec"), (deny(secret, "read"), "read")):
        outcome = fence.run(rule, words)
        assert SECRET not in outcome.value
        assert (operation, "deny", "fence") in outcome.told()


@pytest.mark.parametrize("way", ["busybox", "perl", "python3", "dd", "ld.so"])
def test_no_program_reads_what_is_denied(fence: Fence, secret: Path, way: str) -> None:
    """Interpreters, and programs that are many: the rule is on the file, whoever opens it."""
    loader = next(iter(Path("/lib64").glob("ld-linux*.so.2")), None)
    words = {
        "busybox": ["busybox", "cat", secret],
        "perl": ["perl", "-pe", "1", secret],
        "python3": ["python3", "-S", "-c", "import sys; print(open(sys.argv[1]).read(), end='')", secret],
        "dd": ["dd", "status=none", f"if={secret}"],
        "ld.so": [loader, shutil.which("cat"), secret],
    }[way]
    found = shutil.which(str(words[0])) if words[0] else None
    if found is None:
        pytest.skip(f"not required: this host has no `{way}`")
    command = [found, *map(str, words[1:])]
    assert fence.without(command).value == SECRET
    assert SECRET not in fence.run(deny(secret, "read"), command).value


# ---- running


@pytest.mark.parametrize("way", ["copy", "ld.so"])
def test_what_a_denied_program_does_is_not_done_by_reading_it(
    fence: Fence, ground: Path, secret: Path, way: str
) -> None:
    """To keep a program's content from an agent takes a rule on `read` too: these read it, and run something else."""
    tool, other = ground / "cat", ground / "other"
    shutil.copy(shutil.which("cat") or "/bin/cat", tool)
    loader = next(iter(Path("/lib64").glob("ld-linux*.so.2")), None)
    if way == "ld.so" and loader is None:
        pytest.skip("not required: this host has no `ld.so`")

    def body() -> bytes:
        if way == "copy":
            shutil.copy(tool, other)
        words = [str(loader), str(tool), str(secret)] if way == "ld.so" else [str(other), str(secret)]
        end, begin = os.pipe()
        if not os.fork():
            os.dup2(begin, 1)
            os.execv(words[0], words)
        os.close(begin)
        return os.read(end, 100)

    assert fence.without(body).value == SECRET
    other.unlink(missing_ok=True)
    outcome = fence.run(deny(tool, "exec", "read"), body)
    assert outcome.value in (None, b"")
    assert ("read", "deny", "fence") in outcome.told()


def test_the_code_of_a_denied_program_is_not_mapped_and_called(fence: Fence, tier: Tier, ground: Path) -> None:
    tool = runs(ground / "tool", b"\x2a")

    def body() -> tuple[int, int]:
        def call() -> None:
            LIBC.mmap.restype = ctypes.c_void_p
            at = LIBC.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, os.open(tool, os.O_RDONLY), 0)
            ctypes.CFUNCTYPE(None)(at + 64 + 2 * 56)()

        return in_child(call)

    assert fence.without(body).value == (42, 0)
    outcome = fence.run(deny(tool, "exec", "read"), body)
    assert outcome.value == blocked(tier)
    assert outcome.told() == [("read", "deny", "fence")]


def test_a_deleted_program_does_not_run(fence: Fence, ground: Path, program: Program, secret: Path) -> None:
    """It keeps the path that it had; in the LSM tier it is `anon_exec` as well."""
    tool = ground / "tool"

    def body() -> bytes:
        fd = os.open(tool, os.O_RDONLY)
        tool.unlink()
        end, begin = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(begin, 1)
            os._exit(attempt(lambda: os.execve(fd, ["tool", str(secret)], {})))
        os.close(begin)
        os.waitpid(pid, 0)
        return os.read(end, 100)

    def made() -> None:
        shutil.copy(program("show"), tool)

    made()
    assert fence.without(body).value == SECRET
    made()
    outcome = fence.run(deny(ground / "to*l", "exec"), body)
    assert outcome.value == b""
    assert "deny" in [verdict for _, verdict, _ in outcome.told()]


# ---- writing


def by_creat(secret: Path) -> None:
    os.write(checked(LIBC.syscall(85, os.fsencode(secret), 0o600), "creat"), CHANGED)


def by_shared_mapping(secret: Path) -> None:
    with mmap.mmap(os.open(secret, os.O_RDWR), 0) as mapped:
        mapped[: len(CHANGED)] = CHANGED


def by_splicing(secret: Path) -> None:
    end, begin = os.pipe()
    os.write(begin, CHANGED)
    os.splice(end, os.open(secret, os.O_WRONLY), 100)


def by_ftruncate(secret: Path) -> None:
    os.ftruncate(os.open(secret, os.O_WRONLY), 1)


WRITES = {"creat": by_creat, "mmap": by_shared_mapping, "splice": by_splicing, "ftruncate": by_ftruncate}


@pytest.mark.parametrize("way", WRITES)
def test_no_way_of_writing_changes(fence: Fence, tier: Tier, secret: Path, way: str) -> None:
    def body() -> None:
        WRITES[way](secret)

    assert fence.without(body).errno == 0
    assert secret.read_bytes() != SECRET
    secret.write_bytes(SECRET)
    assert fence.run(deny(secret.parent / "**", "write"), body).stopped(tier)
    # react: creat truncates, and that has happened when the process dies
    assert secret.read_bytes() == (b"" if tier is Tier.REACT and way == "creat" else SECRET)


def test_a_file_without_a_name_gets_none_where_none_may_be(
    fence: Fence, tier: Tier, ground: Path, secret: Path
) -> None:
    new = secret.with_name("new")

    def body() -> None:
        fd = os.open(ground, os.O_TMPFILE | os.O_RDWR, 0o600)
        checked(LIBC.linkat(fd, b"", AT_FDCWD, os.fsencode(new), AT_EMPTY_PATH), "linkat")

    assert fence.without(body).errno == 0
    new.unlink()
    outcome = fence.run(deny(secret.parent / "**", "create"), body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("create", "deny", "fence")]
    assert new.exists() == (tier is Tier.REACT)


# ---- mounts


def private_mounts(flags: int = 0) -> None:
    checked(LIBC.unshare(CLONE_NEWNS | flags), "unshare")
    checked(LIBC.mount(b"none", b"/", None, MS_REC_PRIVATE, None), "mount")


def by_bind(secret: Path, other: Path) -> None:
    private_mounts()
    checked(LIBC.mount(os.fsencode(secret.parent), os.fsencode(other), None, MS_BIND, None), "mount")


def by_bind_of_an_ordinary_user(secret: Path, other: Path) -> None:
    private_mounts(CLONE_NEWUSER)
    checked(LIBC.mount(os.fsencode(secret.parent), os.fsencode(other), None, MS_BIND, None), "mount")


def by_overlay(secret: Path, other: Path) -> None:
    private_mounts()
    options = f"lowerdir={secret.parent}:{other}".encode()
    checked(LIBC.mount(b"none", os.fsencode(other), b"overlay", 0, options), "mount")


def by_new_calls(secret: Path, other: Path) -> None:
    """fsopen(2), fsconfig(2), fsmount(2), move_mount(2): what replaces mount(2)."""
    private_mounts()
    context = checked(LIBC.syscall(430, b"overlay", 0), "fsopen")
    lower = f"{secret.parent}:{other}".encode()
    checked(LIBC.syscall(431, context, 1, b"lowerdir", lower, 0), "fsconfig")
    checked(LIBC.syscall(431, context, 6, None, None, 0), "fsconfig")
    tree = checked(LIBC.syscall(432, context, 0, 0), "fsmount")
    checked(LIBC.syscall(429, tree, b"", AT_FDCWD, os.fsencode(other), 4), "move_mount")


MOUNTS = {
    "bind": by_bind,
    "user namespace": by_bind_of_an_ordinary_user,
    "overlay": by_overlay,
    "new calls": by_new_calls,
}


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("way", MOUNTS)
def test_no_mount_gives_a_denied_directory_another_name(fence: Fence, ground: Path, secret: Path, way: str) -> None:
    other = ground / "other"
    other.mkdir()

    def body() -> bytes:
        MOUNTS[way](secret, other)
        return (other / "secret").read_bytes()

    plain = fence.without(body)
    if plain.errno in (errno.ENODEV, errno.EINVAL, errno.ENOSPC):
        pytest.skip(f"not required: this kernel or file system has no {way}")
    assert plain.value == SECRET
    rules = deny(secret.parent / "**", "read") + "  - {id: mounts, on: mount, action: deny}\n"
    outcome = fence.run(rules, body)
    assert outcome.errno == errno.EPERM
    assert ("mount", "deny", "mounts") in outcome.told()


@pytest.mark.parametrize("denied", ["namespace", "mount"])
def test_no_ordinary_user_mounts_a_denied_directory_elsewhere(fence: Fence, tier: Tier, denied: str) -> None:
    """In a user namespace of its own it is root, and mounts what it likes. Of one process only: docs/bypasses.md."""
    # not below pytest's own directory, which ordinary users may not enter
    with tempfile.TemporaryDirectory(prefix="agentmon-test-") as directory:
        ground = Path(os.path.realpath(directory))
        secret, other = ground / "closed/secret", ground / "other"
        for path in (secret.parent, other):
            path.mkdir()
        for path in (ground, secret.parent, other):
            path.chmod(0o755)
        secret.write_bytes(SECRET)
        secret.chmod(0o644)

        def body() -> tuple[int, bytes]:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            before = os.getuid()
            by_bind_of_an_ordinary_user(secret, other)
            return before, (other / "secret").read_bytes()

        plain = fence.without(body)
        if plain.errno in (errno.EPERM, errno.EACCES, errno.ENOSPC):
            pytest.skip(
                "not required: this kernel gives ordinary users no user namespace to mount in "
                f"({os.strerror(plain.errno)}: user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor)"
            )
        assert plain.value == (NOBODY, SECRET)
        rules = deny(secret.parent / "**", "read") + f"  - {{id: guard, on: {denied}, action: deny}}\n"
        outcome = fence.run(rules, body)
        assert (outcome.stopped(tier), outcome.value) == (True, None)
        assert (denied, "deny", "guard") in outcome.told()
        assert not any(other.iterdir())


@pytest.mark.parametrize("pattern", ["exact", "glob"])
def test_a_deep_and_odd_path_is_denied(fence: Fence, tier: Tier, ground: Path, pattern: str) -> None:
    """Of each name, some bytes are no text: patterns are UTF-8, and say `?` for such a byte."""
    above = os.path.join(os.fsencode(ground), *[b"a\nb\xff"] * 40)
    secret, free = above + b"/s\n\xfe", above + b"/s\n\xfe\xfe"
    subprocess.run(["mkdir", "-p", above], check=True)
    for path in (secret, free):
        with open(path, "wb") as file:
            file.write(SECRET)

    def body() -> list[tuple[bytes, int, int]]:
        found = []
        for path in (secret, free):
            end, begin = os.pipe()
            ended = in_child(lambda path=path, begin=begin: os.write(begin, os.read(os.open(path, os.O_RDONLY), 100)))  # type: ignore[misc]
            os.close(begin)
            found.append((os.read(end, 100), *ended))
        return found

    assert fence.without(body).value == [(SECRET, 0, 0)] * 2
    below = "/a\\nb?" * 40 if pattern == "exact" else "/**"
    outcome = fence.run(deny(f"{ground}{below}/s\\n?", "read"), body)
    assert outcome.value == [(b"", *blocked(tier)), (SECRET, 0, 0)]
    (told,) = [d for d in outcome.decisions if d.verdict.blocks]
    assert (told.object, told.reason) == (secret, Reason.RULE)


#: Directories below one another (0: as many as it takes), and how long a name is. Paths have at most 4,095 bytes.
DEEP = {"40 directories": (40, 1), "4,000 bytes": (0, 100), "more than 4,095 bytes": (21, 200)}


@contextlib.contextmanager
def deep_file(top: Path, levels: int, length: int) -> Iterator[tuple[list[bytes], bytes]]:
    """A file with the secret, `levels` directories below another, or so many that its path has 4,000 bytes.

    Yields the directories from `top` on and the file's name.
    """
    if not levels:
        left = 4000 - len(os.fsencode(top)) - len(b"/file")
        levels, last = divmod(left, length + 1)
        names = [b"d" * length] * (levels - 1) + [b"d" * (length + last)]
    else:
        names = [b"d" * length] * levels
    at = os.open(top, os.O_PATH)
    for name in names:
        os.mkdir(name, dir_fd=at)
        above, at = at, os.open(name, os.O_PATH, dir_fd=at)
        os.close(above)
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=at), "wb") as file:
        file.write(SECRET)
    os.close(at)
    yield names, b"file"
    subprocess.run(["rm", "-rf", top / os.fsdecode(names[0])], check=True)  # pytest's own way recurses


@pytest.mark.parametrize("way", ["openat", "chdir"])
@pytest.mark.parametrize("shape", DEEP)
def test_no_way_down_a_long_path_reads_what_is_denied(
    fence: Fence, tier: Tier, ground: Path, shape: str, way: str
) -> None:
    """A directory at a time: no system call ever has the whole path, and the last one has more than any could."""
    with deep_file(ground, *DEEP[shape]) as (directories, name):

        def body() -> bytes:
            at = os.open(ground, os.O_PATH)
            for directory in directories:
                at = os.open(directory, os.O_PATH, dir_fd=at)
            return os.read(os.open(name, os.O_RDONLY, dir_fd=at), 100)

        def by_chdir() -> bytes:
            os.chdir(ground)
            for directory in directories:
                os.chdir(directory)
            return os.read(os.open(name, os.O_RDONLY), 100)

        down = body if way == "openat" else by_chdir
        path = os.fsencode(ground) + b"".join(b"/" + d for d in directories) + b"/" + name
        if shape == "4,000 bytes":
            assert len(path) == 4000
        assert fence.without(down).value == SECRET
        for pattern in (f"{ground}/**", f"{ground}/**/file"):
            outcome = fence.run(deny(pattern, "read"), down)
            assert (outcome.stopped(tier), outcome.value) == (True, None)
            (told,) = [d for d in outcome.decisions if d.verdict.blocks]
            if len(path) > 4095:
                assert told.reason is Reason.PATH_TOO_LONG
            else:
                assert (told.object, told.reason) == (path, Reason.RULE)
                # and it is that path which is denied, not whatever is deep
                assert fence.run(deny(f"{ground}/**/another", "read"), down).value == SECRET


def first_that_opens(*patterns: str) -> Path:
    """Something that can be read without a fence, of one or more byte."""
    for path in sorted(p for pattern in patterns for p in Path("/").glob(pattern)):
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            if len(file.read(1)):
                return path
    return pytest.skip(f"not required: this host has none of {', '.join(patterns)}")


#: With a rule of the pack `escape` that is about it.
RAW = {
    "disk": (("dev/nvme*n*", "dev/vd*", "dev/sd*", "dev/loop*"), "raw-devices"),
    "/dev/mem": (("dev/mem",), "raw-devices"),
    "kcore": (("proc/kcore",), "raw-devices"),
    "screen": (("dev/vcs*",), "raw-devices"),
}


@pytest.mark.parametrize("device", RAW)
def test_no_raw_device_is_read(fence: Fence, tier: Tier, device: str) -> None:
    patterns, rule = RAW[device]
    path = first_that_opens(*patterns)

    def body() -> int:
        return len(os.read(os.open(path, os.O_RDONLY), 1))

    assert fence.without(body).value == 1
    outcome = fence.run(f"policy: test\ninclude: [escape]\n{ALLOW_ALL}", body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("read", "deny", rule)]


def test_no_memory_of_a_process_outside_is_written(fence: Fence, tier: Tier) -> None:
    memory = ctypes.create_string_buffer(b"unchanged")
    path, at = f"/proc/{os.getpid()}/mem", ctypes.addressof(memory)

    def body() -> None:
        os.pwrite(os.open(path, os.O_RDWR), b"changed", at)

    assert fence.without(body).errno == 0
    assert memory.value == b"changeded"
    memory.value = b"unchanged"
    outcome = fence.run(f"policy: test\ninclude: [escape]\n{ALLOW_ALL}", body)
    assert outcome.stopped(tier)
    assert memory.value == b"unchanged"
    assert outcome.told() == [("write", "deny", "process-memory")]


# ---- during the call


def test_a_path_rewritten_during_the_call_is_judged_as_opened(
    fence: Fence, tier: Tier, program: Program, ground: Path, secret: Path
) -> None:
    good = ground / "good"
    good.write_bytes(b"nothing\n")
    words = [program("rewriter"), "open", good, secret]
    assert fence.without(words).value == SECRET
    outcome = fence.run(deny(secret, "read"), words)
    assert SECRET not in outcome.value
    assert ("read", "deny", "fence") in outcome.told()
    assert outcome.status == (1 if tier is Tier.LSM else -signal.SIGKILL)


@pytest.fixture
def merged(ground: Path) -> Iterator[Path]:
    """An overlay that is mounted already, with a file and a hard link to it in its lower layer."""
    for name in ("lower", "upper", "work", "merged"):
        (ground / name).mkdir()
    (ground / "lower/secret").write_bytes(SECRET)
    (ground / "lower/link").hardlink_to(ground / "lower/secret")
    options = f"lowerdir={ground}/lower,upperdir={ground}/upper,workdir={ground}/work".encode()
    place = os.fsencode(ground / "merged")
    if LIBC.mount(b"none", place, b"overlay", 0, options):
        pytest.skip(f"not required: no overlay here ({os.strerror(ctypes.get_errno())})")
    yield ground / "merged"
    checked(LIBC.umount2(place, MNT_DETACH), "umount2")


@pytest.mark.parametrize("name", ["secret", "link"])
def test_a_file_named_exactly_stays_denied_when_it_is_copied_up(
    fence: Fence, tier: Tier, merged: Path, name: str
) -> None:
    """A process outside writes to it: from then on it is another inode, in the upper layer."""
    asked, ask = os.pipe()
    answered, answer = os.pipe()

    def body() -> list[tuple[int, int]]:
        found = []
        for _ in range(2):
            found.append(in_child(lambda: os.open(merged / name, os.O_RDONLY)))
            os.write(answer, b".")
            os.read(asked, 1)
        return found

    upper = merged.with_name("upper") / "secret"
    os.write(ask, b"..")
    assert fence.without(body).value == [(0, 0)] * 2
    os.read(answered, 2)
    with fence.session(deny(merged / "secret", "read")) as session:  # bound before there is a copy
        child = session.start(body)
        os.read(answered, 1)
        assert not upper.exists()
        with open(merged / "secret", "ab") as file:
            file.write(SECRET)
        assert upper.exists()
        os.write(ask, b"..")
        assert session.finish(child).value == [blocked(tier)] * 2
    for fd in (asked, ask, answered, answer):
        os.close(fd)


# ---- attributes: the kernel says which file, not by which mount


def bind(what: Path, where: Path, flags: int = 0) -> None:
    where.mkdir(exist_ok=True)
    checked(LIBC.mount(os.fsencode(what), os.fsencode(where), None, MS_BIND, None), "mount")
    if flags:
        checked(LIBC.mount(None, os.fsencode(where), None, MS_REMOUNT | MS_BIND | flags, None), "mount")


def times_set(*paths: Path | int) -> list[int]:
    """The errno of setting the time of each."""
    return [attempt(lambda path=path: os.utime(path, (1, 1))) for path in paths]  # type: ignore[misc]


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("denied", ["closed", "other"])
def test_attributes_are_judged_by_each_name_that_mounts_give(
    fence: Fence, ground: Path, secret: Path, denied: str
) -> None:
    other = ground / "other"

    def body() -> list[int]:
        private_mounts()
        bind(secret.parent, other)
        return times_set(secret, other / "secret")

    assert fence.without(body).value == [0, 0]
    assert secret.stat().st_mtime == 1
    os.utime(secret)
    outcome = fence.run(deny(ground / denied / "**", "attr"), body)
    assert outcome.value == [errno.EPERM] * 2
    assert outcome.told() == [("attr", "deny", "fence")] * 2
    assert {d.object for d in outcome.decisions if d.verdict.blocks} == {os.fsencode(ground / denied / "secret")}
    assert secret.stat().st_mtime != 1


@pytest.mark.tier("lsm")
def test_a_mount_that_is_read_only_gives_no_name_to_change_attributes_by(
    fence: Fence, ground: Path, secret: Path
) -> None:
    other = ground / "other"

    def body() -> list[int]:
        private_mounts()
        bind(secret.parent, other, MS_RDONLY)
        return times_set(secret, other / "secret")

    assert fence.run(deny(other / "**", "attr"), body).value == [0, errno.EROFS]
    assert secret.stat().st_mtime == 1


@pytest.mark.tier("lsm")
def test_attributes_of_a_file_with_too_many_names_stay(fence: Fence, ground: Path, secret: Path) -> None:
    def body() -> list[int]:
        private_mounts()
        for number in range(31):
            bind(secret.parent, ground / f"other{number}")
        found = times_set(secret)
        bind(secret.parent, ground / "other")
        return found + times_set(secret)

    assert fence.without(body).value == [0, 0]
    outcome = fence.run(deny("/nonexistent/**", "attr"), body)
    assert outcome.value == [0, errno.EPERM]
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.PATH_UNREACHABLE]


@pytest.mark.tier("lsm")
def test_attributes_of_a_file_that_has_no_name_any_more_stay(fence: Fence, ground: Path) -> None:
    other = ground / "other"
    other.mkdir()

    def body() -> list[int]:
        private_mounts()
        checked(LIBC.mount(b"none", os.fsencode(other), b"tmpfs", 0, None), "mount")
        (other / "file").touch()
        fd = os.open(other / "file", os.O_RDWR)
        found = times_set(fd)
        checked(LIBC.umount2(os.fsencode(other), MNT_DETACH), "umount2")
        return found + times_set(fd)

    assert fence.without(body).value == [0, 0]
    outcome = fence.run(deny("/nonexistent/**", "attr"), body)
    assert outcome.value == [0, errno.EPERM]
    assert [d.reason for d in outcome.decisions if d.verdict.blocks] == [Reason.PATH_UNREACHABLE]


@pytest.mark.tier("lsm")
def test_an_overlay_is_judged_by_the_merged_name(fence: Fence, ground: Path, merged: Path) -> None:
    """What it does to its layers meanwhile, times and attributes of its own, is not asked about."""
    ways: list[Callable[[Path], object]] = [
        lambda at: os.utime(at / "secret", (1, 1)),
        lambda at: os.setxattr(at / "secret", "trusted.new", b"1"),
        lambda at: os.utime(at / "link", (1, 1)),
        lambda at: os.unlink(at / "link"),
        lambda at: os.utime(at, (1, 1)),
    ]

    def body() -> list[int]:
        return [attempt(lambda way=way: way(merged)) for way in ways]  # type: ignore[misc]

    assert fence.run(deny(merged / "**", "write"), body).value == [errno.EPERM] * len(ways)
    assert list((ground / "upper").iterdir()) == []
    layers = "".join(deny(ground / name / "**", "write").replace("fence", name) for name in ("lower", "upper", "work"))
    outcome = fence.run(layers, lambda: [*body(), *times_set(ground / "upper/secret", ground / "lower/secret")])
    assert outcome.value == [0] * len(ways) + [errno.EPERM] * 2
    assert (ground / "upper/secret").stat().st_mtime == 1
    assert os.getxattr(merged / "secret", "trusted.new") == b"1"


@pytest.mark.parametrize("more", [(), ("personality",)], ids=["own", "personality"])
def test_a_ring_sets_no_attribute_that_is_denied(
    fence: Fence, tier: Tier, program: Program, secret: Path, more: tuple[str, ...]
) -> None:
    words = [program("ring_xattr"), secret, *more]
    plain = fence.without(words)
    if plain.value != b"set\n":
        pytest.skip(f"not required: {plain.value.decode().strip()} on this host, for everybody")
    assert os.listxattr(secret) == ["trusted.ring"]
    os.removexattr(secret, "trusted.ring")
    outcome = fence.run(deny(secret, "attr"), words)
    if tier is Tier.LSM:
        assert outcome.value == b"errno 1\n"
        assert outcome.told() == [("attr", "deny", "fence")]
        assert os.listxattr(secret) == []
    else:
        assert outcome.status == -signal.SIGKILL
        assert [(d.operation, d.reason) for d in outcome.decisions if d.verdict.blocks] == [
            (Operation.ATTR, Reason.RING_OPEN)
        ]


# ---- during the call
