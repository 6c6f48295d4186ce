# SPDX-License-Identifier: Apache-2.0
"""What could take the fence away, or have somebody outside of it act, is denied unless the policy allows it."""

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
from agentmon.kernel.monitor import Monitor
from agentmon.model.operations import Action, Operation, Tier
from tests.support.fence import PATIENCE_S, Fence, attempt

pytestmark = pytest.mark.tier("lsm")

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
    "chroot": ("chroot", guarded.chroot),
    "bpf": ("bpf", guarded.bpf),
    "io_uring": ("io_uring", guarded.io_uring),
    "setresuid": ("setid", guarded.regain_root),
    "init_module": ("module", guarded.init_module),
    "finit_module": ("module", guarded.finit_module),
}


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
    subprocess.run(["umount", "-q", ground / "mounted", ground / "unmounted"], check=False)


def policy(operation: str, action: str, more: str = "") -> str:
    return f"policy: p\ndefault: {{{DEFAULTS}}}\nrules:\n  - {{id: guard, on: {operation}, action: {action}{more}}}\n"


@pytest.mark.parametrize("name", ATTEMPTS)
def test_nothing_said_is_denied(fence: Fence, grounds: Grounds, name: str) -> None:
    operation, function = ATTEMPTS[name]
    outcome = fence.run(f"policy: p\ndefault: {{{DEFAULTS}}}\n", lambda: attempt(lambda: function(grounds)))
    assert outcome.value == errno.EPERM
    assert (operation, "deny", "") in outcome.told()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_what_is_allowed_goes_its_way(fence: Fence, grounds: Grounds, name: str) -> None:
    operation, function = ATTEMPTS[name]
    outcome = fence.run(policy(operation, "allow"), lambda: attempt(lambda: function(grounds)))
    # no terminal, no kernel module; and the root of an initial ram file system cannot be moved
    usual = {"TIOCSTI": errno.ENOTTY, "init_module": errno.ENOEXEC, "finit_module": errno.ENOEXEC}
    usual["pivot_root"] = errno.EINVAL
    assert outcome.value in (0, usual.get(name, 0))
    assert outcome.told() == []


# ---- what it would lead to, without a fence


def test_no_process_outside_is_killed(fence: Fence) -> None:
    def body() -> None:
        os.kill(outside.pid, signal.SIGKILL)

    with subprocess.Popen(["sleep", "1000"]) as outside:
        assert fence.without(body).errno == 0
        assert outside.wait(PATIENCE_S) == -signal.SIGKILL
    with subprocess.Popen(["sleep", "1000"]) as outside:
        try:
            outcome = fence.run(SILENT, body)
            assert outcome.errno == errno.EPERM
            assert outcome.told() == [("signal", "deny", "")]
            assert outside.poll() is None
        finally:
            outside.kill()


def test_no_process_outside_is_traced(fence: Fence) -> None:
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
            assert outcome.errno == errno.EPERM
            assert ("ptrace", "deny", "") in outcome.told()
            assert process.stat(outside.pid).state == "S"
        finally:
            outside.kill()


def test_no_other_root_is_mounted(fence: Fence, grounds: Grounds) -> None:
    (grounds.directory / "mounted/marker").touch()

    def body() -> list[str]:
        guarded.pivot_root(grounds)
        return os.listdir("/")

    assert fence.without(body).value == ["marker"]
    outcome = fence.run(SILENT, body)
    assert outcome.errno == errno.EPERM
    assert outcome.told() == [("mount", "deny", "")]


def test_no_bpf_map_is_made(fence: Fence) -> None:
    attributes = struct.pack("=4I", 2, 4, 4, 1).ljust(64, b"\0")  # an array of one element of four bytes

    def body() -> str:
        return os.readlink(f"/proc/self/fd/{call(SYS_BPF, BPF_MAP_CREATE, attributes, 64)}")

    assert fence.without(body).value == "anon_inode:bpf-map"
    outcome = fence.run(SILENT, body)
    assert outcome.errno == errno.EPERM
    assert outcome.told() == [("bpf", "deny", "")]


def loaded() -> set[str]:
    """The modules of the kernel."""
    return {line.split()[0] for line in Path("/proc/modules").read_text().splitlines()}


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
def test_no_module_is_loaded(fence: Fence, module: Path, way: str) -> None:
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
    assert outcome.errno == errno.EPERM
    assert outcome.told() == [("module", "deny", "")]
    assert module.name not in loaded()


def test_no_kernel_is_loaded_for_kexec(fence: Fence) -> None:
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
    assert outcome.errno == errno.EPERM
    assert outcome.told() == [("module", "deny", "")]
    assert state.read_text() == "0\n"


def test_no_file_is_loaded_for_kexec(fence: Fence, ground: Path) -> None:
    (ground / "file").write_bytes(bytes(4096))

    def body() -> int:
        return attempt(lambda: call(SYS_KEXEC_FILE_LOAD, os.open(ground / "file", os.O_RDONLY), -1, 1, b"", 4))

    plain = fence.without(body).value
    if plain == errno.ENOSYS:
        pytest.skip("not required: this kernel has no kexec_file_load(2)")
    assert plain == errno.ENOEXEC  # it was read, and is no kernel
    outcome = fence.run(SILENT, body)
    assert outcome.value == errno.EPERM
    assert outcome.told() == [("module", "deny", "")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_gain_or_hide(fence: Fence, grounds: Grounds, name: str) -> None:
    operation, function = PROGRAMS[name]

    def body() -> int:
        pid = os.fork()
        if not pid:
            os._exit(attempt(lambda: function(grounds)))
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert fence.without(body).value == 0
    outcome = fence.run(policy(operation, "deny"), body)
    assert outcome.value == errno.EPERM
    assert outcome.told() == [(operation, "deny", "guard")]
    assert fence.run(policy(operation, "allow"), body).value == 0


OWNER, GROUP = 1, 65500


def start_setgid(program: Path, gid: int, groups: list[int]) -> int:
    """The errno of running a set-group-ID program of a group, as an ordinary user in other groups."""
    shutil.copy(shutil.which("true") or "/bin/true", program)
    os.chown(program, OWNER, gid)
    program.chmod(0o2755)
    fd = os.open(program, os.O_RDONLY)
    pid = os.fork()
    if not pid:
        os.setgroups(groups)
        os.setresgid(GROUP, GROUP, GROUP)
        os.setresuid(OWNER, OWNER, OWNER)
        os._exit(attempt(lambda: os.execve(fd, ["program"], {})))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("groups", [[], [1, 2, 3], list(range(1000, 1064))])
def test_a_group_that_a_program_brings_is_gained(fence: Fence, ground: Path, groups: list[int]) -> None:
    program = ground / "program"
    outcome = fence.run(policy("setid", "deny"), lambda: start_setgid(program, 77, groups))
    assert outcome.value == errno.EPERM
    assert outcome.told() == [("setid", "deny", "guard")]
    assert fence.run(policy("setid", "allow"), lambda: start_setgid(program, 77, groups)).value == 0


@pytest.mark.parametrize("groups", [[77], [1, 77, 78], [*range(500, 600), 77]])
def test_a_group_that_the_process_is_in_is_not_gained(fence: Fence, ground: Path, groups: list[int]) -> None:
    outcome = fence.run(policy("setid", "deny"), lambda: start_setgid(ground / "program", 77, groups))
    assert outcome.value == 0
    assert outcome.told() == []


def test_root_gains_no_group(fence: Fence, ground: Path) -> None:
    program = ground / "program"
    assert start_setgid(program, 77, []) == 0
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
    assert [outcome.value for outcome in outcomes] == [0, errno.EPERM, errno.EPERM]
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
