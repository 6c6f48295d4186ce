# SPDX-License-Identifier: Apache-2.0
"""What could take the fence away, or have somebody outside of it act, is denied unless the policy allows it.

In the react tier the process dies for it: before it could make use of what it got, or when it has happened.
"""

from __future__ import annotations

import ctypes
import errno
import lzma
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentmon.host import process
from agentmon.kernel import guarded, objects
from agentmon.kernel.host import BPFFS
from agentmon.kernel.monitor import PROC_KEY, Monitor
from agentmon.model.operations import Action, Operation, Reason, Tier
from tests.support.fence import PATIENCE_S, Fence, attempt, blocked, in_child

Program = Callable[[str], Path]
ATTEMPTS: dict[str, tuple[str, Callable[[guarded.Grounds], None]]] = {
    "ptrace": ("ptrace", guarded.ptrace),
    "TIOCSTI": ("ptrace", guarded.type_into_terminal),
    "kill": ("signal", guarded.signal_outside),
    "mount": ("mount", guarded.mount),
    "umount": ("mount", guarded.umount),
    "move_mount": ("mount", guarded.move_mount),
    "remount": ("mount", guarded.remount),
    "pivot_root": ("mount", guarded.pivot_root),
    "prlimit": ("signal", guarded.limit_outside),
    "setfsuid": ("setid", lambda _: regain_files()),
    "unshare": ("namespace", guarded.unshare),
    "clone": ("namespace", guarded.clone_namespace),
    "chroot": ("chroot", guarded.chroot),
    "bpf": ("bpf", guarded.bpf),
    "io_uring": ("io_uring", guarded.io_uring),
    "setresuid": ("setid", guarded.regain_root),
    "init_module": ("module", guarded.init_module),
    "finit_module": ("module", guarded.finit_module),
}
#: Of which the react tier sees nothing.
UNSEEN = {"TIOCSTI"}


def regain_files() -> None:
    """The rights to root's files again, by setfsuid(2) from the saved ID: it says what was in force before."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.setresuid(1, 1, 0)
    libc.setfsuid(0)
    if libc.setfsuid(0):
        raise PermissionError(errno.EPERM, "setfsuid")


#: Modules that need no other; a guest's folder of modules has some of them.
MODULES = ("netlink_diag", "af_packet_diag", "autofs4")
SYS_INIT_MODULE, SYS_DELETE_MODULE, SYS_KEXEC_LOAD, SYS_KEXEC_FILE_LOAD, SYS_FINIT_MODULE = 175, 176, 246, 320, 313
SYS_BPF, BPF_MAP_CREATE = 321, 0
PTRACE_ATTACH = 16


def call(number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call. Raises `OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


PROGRAMS = {"setuid": ("setid", guarded.run_setuid), "memfd": ("anon_exec", guarded.run_memfd)}
DEFAULTS = "exec: allow, read: allow, write: allow, create: allow, connect: allow"
#: Says nothing of what is guarded.
SILENT = f"policy: p\ndefault: {{{DEFAULTS}}}\n"


@dataclass
class Grounds:
    directory: Path


@pytest.fixture
def grounds(ground: Path) -> Iterator[Grounds]:
    guarded.prepare(ground)
    subprocess.run(["mount", "-t", "tmpfs", "none", ground / "mounted"], check=True)
    (ground / "allowed").write_text("ok")
    yield Grounds(ground)
    for place in ("mounted", "unmounted"):
        while not subprocess.run(["umount", "-q", ground / place], check=False).returncode:
            pass


def policy(operation: str, action: str, more: str = "") -> str:
    return f"policy: p\ndefault: {{{DEFAULTS}}}\nrules:\n  - {{id: guard, on: {operation}, action: {action}{more}}}\n"


def by_host(name: str) -> tuple[int, ...]:
    """How the host itself may refuse what is free."""
    if name == "TIOCSTI":
        return (errno.ENOTTY,)  # no terminal
    if name in ("init_module", "finit_module"):
        return (errno.ENOEXEC, errno.ENOSYS)  # no module; no kernel that has any
    return (errno.EINVAL,) if name == "pivot_root" else ()  # the root of an initial ram file system cannot be moved


def alone() -> None:
    """Mounts of one's own, where one that is taken away stays for others."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.unshare(0x20000)  # CLONE_NEWNS
    assert not libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE


def skip_unseen(fence: Fence, tier: Tier, name: str, body: Callable[[], object]) -> None:
    """The react tier judges what has been done."""
    if tier is Tier.REACT:
        if name in UNSEEN:
            pytest.skip("not required: this tier does not see it")
        number = fence.without(lambda: attempt(lambda: (alone(), body()))).value
        if number and number != errno.ENOEXEC:
            pytest.skip(f"not required: this host does not do it ({errno.errorcode[number]})")


@pytest.mark.parametrize("name", ATTEMPTS)
def test_nothing_said_is_denied(fence: Fence, tier: Tier, grounds: Grounds, name: str) -> None:
    operation, function = ATTEMPTS[name]
    skip_unseen(fence, tier, name, lambda: function(grounds))
    outcome = fence.run(SILENT, lambda: function(grounds))
    assert outcome.stopped(tier)
    assert (operation, "deny", "") in outcome.told()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_allowed_goes_its_way(fence: Fence, grounds: Grounds, name: str) -> None:
    operation, function = ATTEMPTS[name]
    outcome = fence.run(policy(operation, "allow"), lambda: attempt(lambda: function(grounds)))
    assert outcome.value in (0, *by_host(name))
    assert outcome.told() == []


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_only_recorded_goes_its_way(fence: Fence, tier: Tier, grounds: Grounds, name: str) -> None:
    operation, function = ATTEMPTS[name]
    skip_unseen(fence, tier, name, lambda: function(grounds))
    outcome = fence.run(policy(operation, "audit"), lambda: attempt(lambda: function(grounds)))
    assert outcome.value in (0, *by_host(name))
    assert (operation, "audit", "guard") in outcome.told()


#: 32-bit calls, with what stands before each in a fence that allows it.
CALLS32 = {
    "ptrace": ("ptrace", ["26:0x4206,{outside},0,0"]),
    "kill": ("signal", ["37:{outside},23"]),
    "tgkill": ("signal", ["270:{outside},{outside},23"]),
    "prlimit64": ("signal", ["340:{outside},4,#,0"]),
    "mount": ("mount", ["21:@none,@{ground}/unmounted,@tmpfs,0,0"]),
    "umount": ("mount", ["22:@{ground}/mounted"]),
    "umount2": ("mount", ["52:@{ground}/mounted,0"]),
    "open_tree": ("mount", ["428:-100,@{ground}/mounted,1"]),
    "unshare": ("namespace", ["310:0x10000000"]),
    "chroot": ("chroot", ["61:@/"]),
    "bpf": ("bpf", ["357:11,#,64"]),
    "io_uring_setup": ("io_uring", ["425:1,#"]),
    "setresuid": ("setid", ["164:1,1,0", "164:-1,0,-1"]),
    "setresuid32": ("setid", ["208:1,1,0", "208:-1,0,-1"]),
    "setreuid32": ("setid", ["208:1,1,0", "203:-1,0"]),
    "setfsuid32": ("setid", ["215:1", "215:0"]),
}


#: In the LSM tier a mount that is not put into the tree yet is none, and setfsuid(2) does not say that it was refused.
LATE_ONLY = {"open_tree", "setfsuid32"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.tier("react")) if n in LATE_ONLY else n for n in CALLS32]
)
def test_32_bit_calls_are_no_others(fence: Fence, tier: Tier, program: Program, grounds: Grounds, name: str) -> None:
    operation, calls = CALLS32[name]
    with subprocess.Popen(["sleep", "1000"]) as outside:
        words = [program("calls32")]
        words += [c.format(outside=outside.pid, ground=grounds.directory) for c in calls]  # type: ignore[misc]
        try:
            plain = fence.without(words)
            if plain.value != b"ok\n":
                pytest.skip(f"not required: this host does not do it ({plain.value!r}, {plain.status})")
            subprocess.run(["mount", "-t", "tmpfs", "none", grounds.directory / "mounted"], check=True)
            outcome = fence.run(policy(operation, "deny"), words)
        finally:
            outside.kill()
    assert outcome.value == (b"errno 1\n" if tier is Tier.LSM else b"")
    assert outcome.status == (1 if tier is Tier.LSM else -signal.SIGKILL)
    assert outcome.told() == [(operation, "deny", "guard")]


# ---- what it would lead to, without a fence


def test_no_process_outside_is_killed(fence: Fence, tier: Tier) -> None:
    def body() -> None:
        os.kill(outside.pid, signal.SIGKILL)

    with subprocess.Popen(["sleep", "1000"]) as outside:
        assert fence.without(body).errno == 0
        assert outside.wait(PATIENCE_S) == -signal.SIGKILL
    with subprocess.Popen(["sleep", "1000"]) as outside:
        try:
            outcome = fence.run(SILENT, body)
            assert outcome.stopped(tier)
            assert outcome.told() == [("signal", "deny", "")]
            assert tier is Tier.REACT or outside.poll() is None
        finally:
            outside.kill()


def test_no_process_outside_is_traced(fence: Fence, tier: Tier) -> None:
    with subprocess.Popen(["sleep", "1000"]) as outside:

        def body() -> str:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.ptrace(PTRACE_ATTACH, outside.pid, None, None):
                raise OSError(ctypes.get_errno(), "ptrace")
            os.waitpid(outside.pid, 0)
            return process.stat(outside.pid).state

        try:
            assert fence.without(body).value == "t"
            outcome = fence.run(SILENT, body)
            assert outcome.stopped(tier)
            assert ("ptrace", "deny", "") in outcome.told()
            # let go again when its tracer died, but stopped by it once
            assert process.stat(outside.pid).state in ("S" if tier is Tier.LSM else "ST")
        finally:
            outside.kill()


SYS_PROCESS_VM_READV, SYS_RT_SIGQUEUEINFO, SYS_CLONE, SYS_UNSHARE, SYS_SETNS = 310, 129, 56, 272, 308
SYS_CAPGET, SYS_CAPSET = 125, 126
CLONE_NEWUSER = 0x10000000
CAPABILITIES = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, of oneself


def test_no_memory_of_a_process_outside_is_read(fence: Fence, tier: Tier) -> None:
    buffer, told = ctypes.create_string_buffer(b"the content"), ctypes.create_string_buffer(11)
    vectors = [struct.pack("=2Q", ctypes.addressof(b), 11) for b in (told, buffer)]
    outside = os.getpid()

    def body() -> bytes:
        call(SYS_PROCESS_VM_READV, outside, vectors[0], 1, vectors[1], 1, 0)
        return told.raw

    def own() -> bytes:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        call(SYS_PROCESS_VM_READV, pid, vectors[0], 1, vectors[1], 1, 0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return told.raw

    assert fence.without(body).value == b"the content"
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert ("ptrace", "deny", "") in outcome.told()
    outcome = fence.run(SILENT, own)
    assert outcome.value == b"the content"
    assert outcome.told() == []


def test_a_forged_signal_is_a_signal(fence: Fence, tier: Tier) -> None:
    """Its number may be that of a timer's; in the kernel's own code it may not."""

    def body() -> None:
        call(
            SYS_RT_SIGQUEUEINFO,
            outside.pid,
            signal.SIGTERM,
            struct.pack("=3i", signal.SIGTERM, 0, -2).ljust(128, b"\0"),
        )

    with subprocess.Popen(["sleep", "1000"]) as outside:
        assert fence.without(body).errno == 0
        assert outside.wait(PATIENCE_S) == -signal.SIGTERM
    with subprocess.Popen(["sleep", "1000"]) as outside:
        try:
            outcome = fence.run(SILENT, body)
            assert outcome.stopped(tier)
            assert outcome.told() == [("signal", "deny", "")]
        finally:
            outside.kill()


@pytest.mark.tier("react")
def test_a_program_may_stop_its_process_group(fence: Fence) -> None:
    """As editors do: what is outside of the session there, is `agentmon run`."""

    def body(number: int) -> int:
        os.setpgid(0, outside.pid)
        return attempt(lambda: os.kill(0, number))

    with subprocess.Popen(["sleep", "1000"], process_group=0) as outside:
        try:
            outcome = fence.run(SILENT, lambda: body(signal.SIGCONT))
            assert (outcome.value, outcome.told()) == (0, [])
            outcome = fence.run(SILENT, lambda: body(signal.SIGURG))
            assert outcome.stopped(Tier.REACT)
            assert outcome.told() == [("signal", "deny", "")]
        finally:
            outside.kill()


def test_no_other_root_is_used(fence: Fence, tier: Tier, grounds: Grounds) -> None:
    (grounds.directory / "mounted/marker").touch()

    def body() -> list[str]:
        os.chroot(grounds.directory / "mounted")
        return os.listdir("/")

    assert fence.without(body).value == ["marker"]
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("chroot", "deny", "")]


@pytest.mark.parametrize("way", ["unshare", "clone"])
def test_nobody_is_root_in_a_namespace(fence: Fence, tier: Tier, way: str) -> None:
    said, say = os.pipe()
    os.set_blocking(said, False)

    def body() -> None:
        """As an ordinary user."""
        os.setgroups([])
        os.setresgid(OWNER, OWNER, OWNER)
        os.setresuid(OWNER, OWNER, OWNER)
        if way == "unshare":
            call(SYS_UNSHARE, CLONE_NEWUSER)
        elif call(SYS_CLONE, CLONE_NEWUSER | signal.SIGCHLD, None, None, None, None):
            os.wait()
            return
        has = ctypes.create_string_buffer(24)
        call(SYS_CAPGET, CAPABILITIES, has)
        os.write(say, b"root" if any(has.raw[:4]) else b"nobody")
        if way == "clone":
            os._exit(0)

    try:
        plain = fence.without(body)
        if plain.errno:
            pytest.skip(f"not required: no user namespaces for ordinary users here ({errno.errorcode[plain.errno]})")
        assert os.read(said, 100) == b"root"
        outcome = fence.run(SILENT, body)
        assert outcome.stopped(tier)
        assert outcome.told() == [("namespace", "deny", "")]
        with pytest.raises(BlockingIOError):
            os.read(said, 100)
    finally:
        os.close(said)
        os.close(say)


def test_programs_of_a_namespace_that_is_allowed_gain_nothing(fence: Fence) -> None:
    def body() -> tuple[int, int]:
        call(SYS_UNSHARE, CLONE_NEWUSER)
        return in_child(lambda: os.execv("/bin/true", ["true"]))

    outcome = fence.run(policy("namespace", "allow"), body)
    assert outcome.value == (0, 0)
    assert outcome.told() == []


@pytest.mark.tier("react")
def test_nobody_enters_the_namespace_of_a_process_outside(fence: Fence) -> None:
    """The LSM tier has no hook for that; looking for it below /proc/PID is `ptrace` there."""
    entered, outer = os.pipe()
    pid = os.fork()
    if not pid:
        call(SYS_UNSHARE, CLONE_NEWUSER)
        os.write(outer, b"!")
        time.sleep(1000)
    try:
        assert os.read(entered, 1) == b"!"

        def body() -> str:
            call(SYS_SETNS, os.open(f"/proc/{pid}/ns/user", os.O_RDONLY), CLONE_NEWUSER)
            return os.readlink("/proc/self/ns/user")

        assert fence.without(body).value != os.readlink("/proc/self/ns/user")
        outcome = fence.run(SILENT, body)
        assert outcome.stopped(Tier.REACT)
        assert outcome.told() == [("namespace", "deny", "")]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(entered)
        os.close(outer)


def test_rights_that_were_given_up_do_not_come_back(fence: Fence, tier: Tier, ground: Path) -> None:
    secret = ground / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)

    def body() -> str:
        os.setresuid(1, 1, 0)
        with pytest.raises(PermissionError):
            secret.read_text()
        os.seteuid(0)
        return secret.read_text()

    assert fence.without(body).value == "root's"
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("setid", "deny", "")]


def test_a_program_brings_back_no_capabilities(fence: Fence, tier: Tier) -> None:
    """Root that gave some up has them again in the next program that it starts."""

    def body() -> tuple[int, int]:
        call(SYS_CAPSET, CAPABILITIES, bytes(24))
        return in_child(lambda: os.execv("/bin/grep", ["grep", "-q", "^CapEff:.*[1-9a-f]", "/proc/self/status"]))

    assert fence.without(body).value == (0, 0)
    outcome = fence.run(SILENT, body)
    assert outcome.value == blocked(tier)
    assert outcome.told() == [("setid", "deny", "")]


@pytest.mark.tier("react")
def test_where_nobody_knows_what_a_process_had_it_is_taken_for_gained(fence: Fence) -> None:
    with fence.session(policy("setid", "deny", ", when: {risk: high}")) as session:
        for body, unknown in (
            (lambda: os.execv("/bin/true", ["true"]), True),
            (lambda: os.setresuid(0, 0, 0), True),
            (lambda: os.setresuid(1, 1, 1), False),
        ):
            child = session.fork(body)
            (key,) = session.enroll(child.pid)
            assert session.monitor._maps["rights"].delete(PROC_KEY.pack(key.start_ns, key.pid, 0))
            session.begin(child)
            outcome = session.finish(child)
            assert outcome.stopped(Tier.REACT) is unknown
            blocks = [d for d in outcome.decisions if d.verdict.blocks]
            assert [(d.operation, d.reason) for d in blocks] == [(Operation.SETID, Reason.NO_STATE)] * unknown


@pytest.mark.tier("react")
def test_a_script_without_a_name_does_not_run(fence: Fence, ground: Path) -> None:
    """Nothing of it: its interpreter is killed when it opens it."""
    (ground / "tool").write_text("#!/bin/sh\necho ran > " + str(ground / "ran"))

    def body(memfd: bool) -> tuple[int, int]:
        if memfd:
            fd = os.memfd_create("script", 0)
            os.write(fd, (ground / "tool").read_bytes())
        else:
            (ground / "copy").write_bytes((ground / "tool").read_bytes())
            (ground / "copy").chmod(0o700)
            fd = os.open(ground / "copy", os.O_RDONLY)
            (ground / "copy").unlink()
        os.set_inheritable(fd, True)
        return in_child(lambda: os.execve(f"/proc/self/fd/{fd}", ["script"], {}))

    for memfd in (False, True):
        assert fence.without(lambda memfd=memfd: body(memfd)).value == (0, 0)  # type: ignore[misc]
        assert (ground / "ran").read_text() == "ran\n"
        (ground / "ran").unlink()
        outcome = fence.run(policy("anon_exec", "deny"), lambda memfd=memfd: body(memfd))  # type: ignore[misc]
        assert outcome.value == (0, signal.SIGKILL)
        assert ("anon_exec", "deny", "guard") in outcome.told()
        assert not (ground / "ran").exists()
        assert fence.run(policy("anon_exec", "allow"), lambda memfd=memfd: body(memfd)).value == (0, 0)  # type: ignore[misc]
        (ground / "ran").unlink()


def test_no_other_root_is_mounted(fence: Fence, tier: Tier, grounds: Grounds) -> None:
    (grounds.directory / "mounted/marker").touch()

    def body() -> list[str]:
        guarded.pivot_root(grounds)
        return os.listdir("/")

    skip_unseen(fence, tier, "pivot_root", body)
    assert fence.without(body).value == ["marker"]
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("mount", "deny", "")]


def test_no_bpf_map_is_made(fence: Fence, tier: Tier) -> None:
    attributes = struct.pack("=4I", 2, 4, 4, 1).ljust(64, b"\0")  # an array of one element of four bytes

    def body() -> str:
        return os.readlink(f"/proc/self/fd/{call(SYS_BPF, BPF_MAP_CREATE, attributes, 64)}")

    assert fence.without(body).value == "anon_inode:bpf-map"
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("bpf", "deny", "")]


def loaded() -> set[str]:
    """The modules of the kernel."""
    listed = Path("/proc/modules")
    return {line.split()[0] for line in listed.read_text().splitlines()} if listed.exists() else set()


@pytest.fixture
def module(ground: Path) -> Iterator[Path]:
    """One of this kernel that is not loaded, by its name."""
    files = Path("/lib/modules", os.uname().release).rglob("*.ko*")
    found = {f.name.partition(".")[0]: f for f in files if f.suffix in (".ko", ".xz")}
    name = next((m for m in MODULES if m in found and m not in loaded()), None)
    if name is None:
        pytest.skip(f"not required: of {', '.join(MODULES)}, this host has none that is not loaded")
    data = found[name].read_bytes()
    path = ground / name
    path.write_bytes(lzma.decompress(data) if found[name].suffix == ".xz" else data)
    yield path
    if name in loaded():
        call(SYS_DELETE_MODULE, name.encode(), 0)


@pytest.mark.parametrize("way", ["init_module", "finit_module"])
def test_no_module_is_loaded(fence: Fence, tier: Tier, module: Path, way: str) -> None:
    def body() -> None:
        if way == "init_module":
            data = module.read_bytes()
            call(SYS_INIT_MODULE, data, len(data), b"")
        else:
            call(SYS_FINIT_MODULE, os.open(module, os.O_RDONLY), b"", 0)

    assert fence.without(body).errno == 0
    assert module.name in loaded()
    call(SYS_DELETE_MODULE, module.name.encode(), 0)
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("module", "deny", "")]
    assert tier is Tier.REACT or module.name not in loaded()


def test_no_kernel_is_loaded_for_kexec(fence: Fence, tier: Tier) -> None:
    """One page that nobody will start: it is taken back at once."""
    state, architecture = Path("/sys/kernel/kexec_loaded"), 62 << 16
    if not state.exists():
        pytest.skip("not required: this kernel has no kexec")
    page = ctypes.create_string_buffer(4096)
    segment = struct.pack("=4Q", ctypes.addressof(page), 4096, 0x1000000, 4096)

    def body() -> str:
        call(SYS_KEXEC_LOAD, 0x1000000, 1, segment, architecture)
        now = state.read_text()
        call(SYS_KEXEC_LOAD, 0, 0, None, architecture)
        return now

    assert fence.without(body).value == "1\n"
    outcome = fence.run(SILENT, body)
    assert outcome.stopped(tier)
    assert outcome.told() == [("module", "deny", "")]
    if tier is Tier.REACT:
        call(SYS_KEXEC_LOAD, 0, 0, None, architecture)
    assert state.read_text() == "0\n"


def test_no_file_is_loaded_for_kexec(fence: Fence, tier: Tier, ground: Path) -> None:
    (ground / "file").write_bytes(bytes(4096))

    def body() -> int:
        return attempt(lambda: call(SYS_KEXEC_FILE_LOAD, os.open(ground / "file", os.O_RDONLY), -1, 1, b"", 4))

    plain = fence.without(body).value
    if plain == errno.ENOSYS:
        pytest.skip("not required: this kernel has no kexec_file_load(2)")
    assert plain == errno.ENOEXEC  # it was read, and is no kernel
    outcome = fence.run(SILENT, body)
    assert outcome.value == (errno.EPERM if tier is Tier.LSM else None)
    assert outcome.told() == [("module", "deny", "")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_gain_or_hide(fence: Fence, tier: Tier, grounds: Grounds, name: str) -> None:
    operation, function = PROGRAMS[name]

    def body() -> tuple[int, int]:
        return in_child(lambda: function(grounds))

    assert fence.without(body).value == (0, 0)
    outcome = fence.run(policy(operation, "deny"), body)
    assert outcome.value == blocked(tier)
    assert outcome.told() == [(operation, "deny", "guard")]
    assert fence.run(policy(operation, "allow"), body).value == (0, 0)


OWNER, GROUP = 1, 65500


def start_setgid(program: Path, gid: int, groups: list[int]) -> tuple[int, int]:
    """What came (`in_child`) of running a set-group-ID program of a group, as an ordinary user in other groups."""
    shutil.copy(shutil.which("true") or "/bin/true", program)
    os.chown(program, OWNER, gid)
    program.chmod(0o2755)
    fd = os.open(program, os.O_RDONLY)

    def body() -> None:
        os.setgroups(groups)
        os.setresgid(GROUP, GROUP, GROUP)
        os.setresuid(OWNER, OWNER, OWNER)
        os.execve(fd, ["program"], {})

    return in_child(body)


@pytest.mark.parametrize("groups", [[], [1, 2, 3], list(range(1000, 1064))])
def test_a_group_that_a_program_brings_is_gained(fence: Fence, tier: Tier, ground: Path, groups: list[int]) -> None:
    program = ground / "program"
    assert fence.without(lambda: start_setgid(program, 77, groups)).value == (0, 0)
    outcome = fence.run(policy("setid", "deny"), lambda: start_setgid(program, 77, groups))
    assert outcome.value == blocked(tier)
    assert outcome.told() == [("setid", "deny", "guard")]
    assert fence.run(policy("setid", "allow"), lambda: start_setgid(program, 77, groups)).value == (0, 0)


@pytest.mark.parametrize("groups", [[77], [1, 77, 78], [*range(500, 600), 77]])
def test_a_group_that_the_process_is_in_is_not_gained(fence: Fence, ground: Path, groups: list[int]) -> None:
    outcome = fence.run(policy("setid", "deny"), lambda: start_setgid(ground / "program", 77, groups))
    assert outcome.value == (0, 0)
    assert outcome.told() == []


def test_root_gains_no_group(fence: Fence, ground: Path) -> None:
    program = ground / "program"
    assert start_setgid(program, 77, []) == (0, 0)
    outcome = fence.run(policy("setid", "deny"), [program])
    assert outcome.status == 0
    assert outcome.told() == []


def test_the_group_of_the_ssh_agent_is_free(ground: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "idle_groups", lambda: (0, 77))
    where = BPFFS / f"agentmon-test-{os.getpid()}-groups"
    monitor = Monitor.open(pin_dir=where, tier=tier, arena_bytes=1 << 20)
    try:
        outcomes = [
            Fence(monitor).run(policy("setid", "deny"), lambda gid=gid: start_setgid(ground / "program", gid, []))  # type: ignore[misc]
            for gid in (77, 78, 0)
        ]
    finally:
        monitor.detach()
    assert [outcome.value for outcome in outcomes] == [(0, 0), blocked(tier), blocked(tier)]
    assert outcomes[0].told() == []


def test_a_session_may_do_to_its_own_what_it_likes(fence: Fence) -> None:
    def body() -> tuple[int, int]:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        libc = ctypes.CDLL(None, use_errno=True)
        seized = libc.ptrace(0x4206, pid, None, None)
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
        return seized, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    outcome = fence.run(f"policy: p\ndefault: {{{DEFAULTS}}}\n", body)
    assert outcome.value == (0, -signal.SIGKILL)
    assert outcome.told() == []


def test_a_signal_to_a_child_that_ended_is_free(fence: Fence) -> None:
    """It is in no session any more, and nothing happens to it; programs do that before they reap it."""

    def body() -> None:
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)

    outcome = fence.run(policy("signal", "deny"), body)
    assert outcome.errno == 0
    assert outcome.told() == []


def test_giving_up_privileges_is_free(fence: Fence) -> None:
    def body() -> int:
        os.setgroups([])
        os.setresgid(1, 1, 1)
        os.setresuid(1, 1, 1)
        assert in_child(lambda: os.execv("/bin/true", ["true"])) == (0, 0)
        return os.getuid()

    outcome = fence.run(policy("setid", "deny"), body)
    assert outcome.value == 1
    assert outcome.told() == []


def test_a_rule_can_be_for_one_program(fence: Fence, grounds: Grounds) -> None:
    """And the severest of several counts."""
    own = os.path.realpath("/proc/self/exe")
    text = policy("bpf", "audit") + '  - {id: other, on: chroot, action: kill, exe: ["/nowhere/**"]}\n'
    text += f'  - {{id: own, on: [chroot, bpf], action: allow, exe: ["{own}"]}}\n'
    with fence.session(text) as session:
        child = session.fork(lambda: [attempt(lambda: guarded.chroot(grounds)), attempt(lambda: guarded.bpf(grounds))])
        (key,) = session.enroll(child.pid)
        session.monitor.set_exe_tags(key, session.evaluator.exe_tags(own.encode()))
        session.begin(child)
        outcome = session.finish(child)
        assert session.evaluator.bare(Operation.CHROOT, own.encode()).action is Action.ALLOW
    assert outcome.value == [0, 0]
    assert outcome.told() == [("bpf", "audit", "guard")]


def test_kill_ends_the_process(fence: Fence, grounds: Grounds) -> None:
    outcome = fence.run(policy("chroot", "kill"), lambda: attempt(lambda: guarded.chroot(grounds)))
    assert outcome.status == -signal.SIGKILL
    assert outcome.told() == [("chroot", "kill", "guard")]
