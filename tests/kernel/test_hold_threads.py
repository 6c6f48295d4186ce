# SPDX-License-Identifier: Apache-2.0
"""`action: hold`: a thread beside, or a process, changes the program or the receiver that was shown; it is asked again.

A thread of who is held is frozen with it. What is left to it is the moment before that, and the one after an approval;
and the open of a file that a rule names exactly, in which the react tier lets one thread wait alone.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.held import agent, agent_in_wait, another, approvals, asked, finish, frozen, go, received
from tests.support.hosts import PATIENCE_S, Host, wait_for

# ---- a program

#: One thread starts `argv[1]`, another one changes it once there is `argv[2]`, or, without that, half a second after a
#: line. `os.execv` would keep the other from running (the GIL).
THREAD = """
    import ctypes, errno, os, sys, threading, time
    libc = ctypes.CDLL(None, use_errno=True)
    what, *mark = sys.argv[1:]
    os.chdir(os.path.dirname(what))
    def change():
        while mark and not os.path.exists(mark[0]):
            time.sleep(0.001)
        if not mark:
            time.sleep(0.5)
        while True:
            try:
                {change}
                break
            except OSError:  # ETXTBSY
                pass
        if mark:
            os.mkdir(mark[0] + "-done")
        else:
            os.write(1, b"changed\\n")
    if not mark:
        sys.stdin.readline()
    threading.Thread(target=change, daemon=True).start()
    arguments = (ctypes.c_char_p * 2)(b"shown", None)
    while libc.execv(what.encode(), arguments) and ctypes.get_errno() == errno.ETXTBSY:
        pass  # it is being written this moment
    os.write(1, b"errno %d\\n" % ctypes.get_errno())
    os._exit(3)
"""
CHANGES = {
    "rewritten": "open('program', 'wb').write(open('hidden', 'rb').read())",
    "replaced": "os.rename('hidden', 'program')",
    "linked": "os.symlink('hidden', 'new'), os.rename('new', 'program')",
}
#: How `false`, which is what is hidden, ends.
HIDDEN = 1


@pytest.fixture
def program(kept: Path) -> Path:
    shutil.copy("/bin/true", kept / "program")
    shutil.copy("/bin/false", kept / "hidden")
    return kept / "program"


def rule(kept: Path, named: str) -> str:
    names = ["*"] if named == "*" else ["program", "hidden", "shown"]
    return f"  - {{id: kept, on: exec, paths: {[f'{kept}/{name}' for name in names]}, action: hold}}"


@pytest.mark.tier("react")
@pytest.mark.parametrize("last", ["approve", "deny"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_program_that_a_thread_changes_while_it_is_held_is_asked_again(
    served: Host, kept: Path, program: Path, tmp_path: Path, change: str, last: str
) -> None:
    script = THREAD.format(change=CHANGES[change])
    running = agent(served, served.policy(rule(kept, "exactly"), "threads"), script, program, tmp_path / "go")
    first = asked(served)[0]
    (tmp_path / "go").touch()
    wait_for((tmp_path / "go-done").exists, "it to be changed")
    done = served.agentmon("approve", first["id"])
    assert (done.returncode, "changed while it was held" in done.stderr) == (1, True), done.stderr
    again = another(served, first)
    assert again["changed"]
    time.sleep(0.3)
    assert running.poll() is None
    assert served.agentmon(last, again["id"]).returncode == 0
    if last == "deny":
        assert finish(running)[1].startswith("errno 1\n")
    elif change == "rewritten":
        assert finish(running)[0] == HIDDEN  # as it is shown by now
    else:
        status, out = finish(running)  # what it waits to open is the file that was there, which has no name any more
        assert (status, "anon_exec" in out) == (128 + signal.SIGKILL, True), out
    assert approvals(served) == []


@pytest.mark.tier("lsm")
@pytest.mark.parametrize("last", ["approve", "deny"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_program_that_a_thread_changes_before_it_is_frozen_is_asked_again(
    patient: Host, tmp_path: Path, change: str, last: str
) -> None:
    """While the daemon is stopped nobody is frozen."""
    kept = patient.directory / "kept"
    kept.mkdir()
    shutil.copy("/bin/true", kept / "program")
    shutil.copy("/bin/false", kept / "hidden")
    daemon = patient.start()
    running = agent_in_wait(
        patient, patient.policy(rule(kept, "*"), "threads"), THREAD.format(change=CHANGES[change]), kept / "program"
    )
    daemon.send_signal(signal.SIGSTOP)
    go(running)
    assert running.stdout is not None
    assert running.stdout.readline() == "changed\n"
    time.sleep(0.5)
    daemon.send_signal(signal.SIGCONT)
    now = kept / ("hidden" if change == "linked" else "program")
    wait_for(lambda: settled(patient, now), "to be asked for what is there now")
    question = frozen(patient)
    assert question["changed"] == (change != "linked")  # a link leads to another file, which is asked for by its name
    assert running.poll() is None
    assert patient.agentmon(last, question["id"]).returncode == 0
    out, _ = running.communicate(timeout=PATIENCE_S)
    assert (running.returncode, out) == ((HIDDEN, "") if last == "approve" else (3, "errno 1\n"))
    assert approvals(patient) == []


def settled(host: Host, path: Path) -> bool:
    return [question["object"] for question in approvals(host)] == [str(path)]


@pytest.mark.parametrize("named", ["*", "exactly"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_program_that_a_thread_changes_once_it_is_approved_does_not_run_as_changed(
    served: Host, kept: Path, program: Path, tmp_path: Path, change: str, named: str
) -> None:
    """What was shown runs, or it is asked again; the thread has the moment between the approval and the start."""
    script = THREAD.format(change=CHANGES[change])
    running = agent(served, served.policy(rule(kept, named), "threads"), script, program, tmp_path / "go")
    first = asked(served)[0]
    with served.client() as client:
        client.call("approve", approval=first["id"], scope="once")
        (tmp_path / "go").touch()
    deny_all(served, running)
    status, out = finish(running)
    assert status == 0 or (status, "errno 1\n" in out) in ((3, True), (128 + signal.SIGKILL, False)), (status, out)


@pytest.mark.parametrize("named", ["*", "exactly"])
def test_a_link_that_a_thread_moves_all_the_time_leads_to_what_was_approved(
    served: Host, kept: Path, program: Path, named: str
) -> None:
    change = """
                os.symlink("program", "one"), os.symlink("hidden", "two")
                while True:
                    os.symlink("hidden", "new"), os.rename("new", "shown")
                    os.symlink("program", "new"), os.rename("new", "shown")
    """
    (kept / "shown").symlink_to("program")
    script = THREAD.format(change=change.strip())
    (kept / "go").touch()
    running = agent(served, served.policy(rule(kept, named), "moved"), script, kept / "shown", kept / "go")
    deny_all(served, running, but=str(program))
    status, out = finish(running)
    assert status == 0 or (status, "errno 1\n" in out) in ((3, True), (128 + signal.SIGKILL, False)), (status, out)


def deny_all(host: Host, running: subprocess.Popen[str], but: str = "") -> None:
    """Until it ends, whatever is asked but about this object."""
    seen: set[str] = set()
    while running.poll() is None:
        for question in approvals(host):
            if question["id"] not in seen:
                seen.add(question["id"])
                host.agentmon("approve" if question["object"] == but else "deny", question["id"])
        time.sleep(0.02)


# ---- where a message goes

#: An address in memory, and a message to it by the call `argv[3]`; `write(port)` changes it: where it is in memory that
#: both processes have, by writing there; in the parent's own memory, by process_vm_writev(2).
SENDS = """
    import ctypes, mmap, os, socket, struct, sys, threading, time
    libc = ctypes.CDLL(None, use_errno=True)
    first, second = map(int, sys.argv[1:3])
    call, memory = sys.argv[3:5]
    page = mmap.mmap(-1, 4096, mmap.MAP_SHARED if memory == "shared" else mmap.MAP_PRIVATE)
    at, parent = ctypes.addressof(ctypes.c_char.from_buffer(page)), os.getpid()
    def write(port):
        to = struct.pack("=H", socket.AF_INET) + struct.pack(">H4B8x", port, 127, 0, 0, 1)
        if os.getpid() == parent or memory == "shared":
            page[:16] = to
            return
        here = (ctypes.c_uint64 * 2)(ctypes.addressof(bytes_ := ctypes.create_string_buffer(to, 16)), 16)
        there = (ctypes.c_uint64 * 2)(at, 16)
        assert libc.process_vm_writev(parent, here, 1, there, 1, 0) == 16, ctypes.get_errno()
    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            if call == "sendto":
                sent = libc.sendto(s.fileno(), b"hello", 5, 0, ctypes.c_void_p(at), 16)
            else:
                text = ctypes.create_string_buffer(b"hello", 5)
                vector = (ctypes.c_uint64 * 2)(ctypes.addressof(text), 5)
                header = (ctypes.c_uint64 * 7)(at, 16, ctypes.addressof(vector), 1, 0, 0, 0)
                sent = libc.sendmsg(s.fileno(), header, 0)
            print("sent" if sent == 5 else ctypes.get_errno(), flush=True)
    write(first)
"""
CALLS = ("sendto", "sendmsg")


@pytest.fixture
def ears() -> Any:
    opened = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for ear in opened:
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
    yield opened
    for ear in opened:
        ear.close()


def ports_of(ears: list[socket.socket]) -> list[int]:
    return [ear.getsockname()[1] for ear in ears]


def to_ears(host: Host, ears: list[socket.socket]) -> Path:
    ports = sorted(ports_of(ears))
    return host.policy(
        f"  - {{id: out, on: [connect, send], cidrs: [127.0.0.1/32], ports: {ports}, action: hold}}", "ears"
    )


@pytest.mark.parametrize("last", ["approve", "deny"])
@pytest.mark.parametrize("memory", ["shared", "own"])
@pytest.mark.parametrize("call", CALLS)
def test_where_a_message_goes_is_changed_by_another_process_and_asked_again(
    served: Host, ears: list[socket.socket], tmp_path: Path, call: str, memory: str, last: str
) -> None:
    mark, ports = tmp_path / "go", ports_of(ears)
    script = f"""{SENDS}
    if not os.fork():
        while not os.path.exists("{mark}"):
            time.sleep(0.01)
        write(second)
        os.mkdir("{mark}-done")
        os._exit(0)
    send()
    """
    running = agent(served, to_ears(served, ears), script, *ports, call, memory)
    first = frozen(served)
    assert (first["operation"], first["object"]) == ("send", f"127.0.0.1:{ports[0]}")
    mark.touch()
    wait_for((tmp_path / "go-done").exists, "the address to be changed")
    assert served.agentmon("approve", first["id"]).returncode == 0
    again = another(served, first)
    assert (again["operation"], again["object"], again["changed"]) == ("send", f"127.0.0.1:{ports[1]}", True)
    time.sleep(0.7)
    assert running.poll() is None
    assert [received(ear) for ear in ears] == [[], []]
    assert served.agentmon(last, again["id"]).returncode == 0
    assert finish(running)[1].startswith("sent\n" if last == "approve" else "1\n")
    assert [received(ear) for ear in ears] == [[], [b"hello"] if last == "approve" else []]
    assert approvals(served) == []


@pytest.mark.parametrize("call", CALLS)
def test_where_a_message_goes_is_changed_by_a_thread_before_it_is_frozen_and_asked_again(
    patient: Host, ears: list[socket.socket], call: str
) -> None:
    """While the daemon is stopped nobody is frozen."""
    script = f"""{SENDS}
    def change():
        time.sleep(0.5)
        write(second)
        print("changed", flush=True)
    sys.stdin.readline()
    threading.Thread(target=change).start()
    send()
    """
    daemon, ports = patient.start(), ports_of(ears)
    running = agent_in_wait(patient, to_ears(patient, ears), script, *ports, call, "own")
    daemon.send_signal(signal.SIGSTOP)
    go(running)
    assert running.stdout is not None
    assert running.stdout.readline() == "changed\n"
    time.sleep(0.5)
    daemon.send_signal(signal.SIGCONT)
    place = f"127.0.0.1:{ports[1]}"
    wait_for(lambda: [q["object"] for q in approvals(patient)] == [place], "to be asked for the other")
    (question,) = approvals(patient)
    assert question["changed"]
    assert [received(ear) for ear in ears] == [[], []]
    assert patient.agentmon("deny", question["id"]).returncode == 0
    assert running.stdout.readline() == "1\n"
    running.communicate(timeout=PATIENCE_S)
    assert [received(ear) for ear in ears] == [[], []]


@pytest.mark.parametrize("call", CALLS)
def test_where_a_message_goes_is_changed_by_a_thread_all_the_time_and_it_goes_where_that_was_approved(
    served: Host, ears: list[socket.socket], call: str
) -> None:
    """One of them never is; the other hears the message, or nobody does."""
    script = f"""{SENDS}
    def change():
        while True:
            write(second)
            write(first)
    threading.Thread(target=change, daemon=True).start()
    send()
    """
    ports = ports_of(ears)
    running = agent(served, to_ears(served, ears), script, *ports, call, "own")
    deny_all(served, running, but=f"127.0.0.1:{ports[0]}")
    said = finish(running)[1]
    assert said.startswith(("sent\n", "1\n")), said
    assert [received(ear) for ear in ears] == [[b"hello"] if said.startswith("sent") else [], []]
