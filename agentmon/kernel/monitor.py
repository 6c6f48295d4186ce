# SPDX-License-Identifier: Apache-2.0
"""The kernel side as one object: policies, sessions, enrolled processes, records, counters."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from agentmon.errors import KernelError
from agentmon.kernel import fanotify, host, objects, wire
from agentmon.kernel.answers import HALTS, MAPS, Answers
from agentmon.kernel.grants import Grants
from agentmon.kernel.libbpf import missed_runs, run_pinned
from agentmon.kernel.ring import Ring
from agentmon.kernel.tables import MARKED_KEY, STEP, STEPS_BYTES, STEPS_HEAD, U32, U64, Tables, open_maps
from agentmon.model.conditions import MAX_MARKS, MAX_RATES, Risk
from agentmon.model.events import Event, ProcessKey
from agentmon.model.operations import HELD, Operation, Reason, Tier
from agentmon.model.plans import OUTSIDE, StepState
from agentmon.model.tables import CompiledPolicy

PIN_ROOT = host.BPFFS / "agentmon"
MAX_SESSIONS = 1024
MAX_PROCS = 16_384
EVENTS_BYTES = 4 << 20
LIVE, DOOMED = 1, 2

#: Readings of the process tables before `census` gives up.
CENSUS_TRIES = 5

SESSION = struct.Struct("=IIQII")
PROC_KEY = struct.Struct("=QII")
FILE_KEY = struct.Struct("=QQIII4x")
MARK = struct.Struct("=QIIII")
#: In `am_proc.stepping`.
COMMAND = 8
JOINED = struct.Struct("=QI4xQ")
PROC = struct.Struct("=HBBIQQIIQQII")

COUNTERS = (
    "decisions", "blocked", "ring_lost", "scratch_exhausted", "path_too_long", "path_unreachable", "path_unstable",
    "path_retried", "fork_refused", "fork_lost", "no_state", "signal_failed", "read_failed", "fork_repaired",
    "joined",
)  # fmt: skip

_MAPS = (
    "arena", "policies", "accepts", "lists", "net", "pins", "users", "clocks", "wants", "effects", "marked",
    "lineages", "plans", "parts", "steps", "step_files", "granted", "doors", "sessions", "procs", "marks", "events",
    "counters", *MAPS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProcessState:
    """What the kernel keeps of an enrolled process (``struct am_proc``)."""

    session: int
    exe_tags: int
    parents: int
    serial: int
    #: Of the session's plan; `OUTSIDE`: none.
    step: int = OUTSIDE


class _SessionValue(NamedTuple):
    """``struct am_session``"""

    policy: int
    flags: int
    serial: int
    dns_port: int
    risk: int


@dataclass(frozen=True, slots=True)
class Census:
    """Who is enrolled, as of one moment."""

    processes: dict[ProcessKey, ProcessState]
    #: Slots of sessions with a child whose fork is under way or was missed (LSM tier).
    newborn: frozenset[int]


class Monitor:
    """The loaded programs and their maps.

    Closing it, or the death of this process, changes nothing in the kernel: pins go on enforcing until ``detach``.
    """

    def __init__(self, pins: objects.Pins, *, adopted: bool, why_react: str, states: dict[str, str] | None) -> None:
        self.tier = pins.tier
        self.adopted = adopted
        self.why_react = why_react
        self.malformed = 0
        self._pins = pins
        self._states = states
        self._maps = open_maps(pins.maps, _MAPS)
        self._maps["counters"].value_size = 8 * _possible_cpus()
        own = "newborn" if self.tier is Tier.LSM else "rights"
        self._maps |= open_maps(pins.maps, (own, *HALTS))
        self._newborn = self._maps.get("newborn")
        self.tables = Tables(self._maps)
        self.grants = Grants(self._maps["granted"])
        self.answers = Answers(*(self._maps[name] for name in (*MAPS, *HALTS) if name in self._maps))
        self._stops = self._can_stop()
        self._unwanted = False  # what stops programs would be detached, if nobody were stopped
        self._ring = Ring(self._maps["events"].fd, EVENTS_BYTES)
        self._serial = max((s.serial for s in self._session_values().values()), default=0)

    @classmethod
    def open(
        cls,
        *,
        pin_dir: Path = PIN_ROOT,
        tier: Tier | None = None,
        skip: Collection[str] = (),
        arena_bytes: int = 16 << 20,
        procs_max: int = MAX_PROCS,
        park_ms: int = objects.PARK_MS,
    ) -> Monitor:
        """Takes over what is pinned under ``pin_dir``, or loads, attaches and pins the programs.

        ``tier`` forces one; ``skip`` leaves programs out (for tests of ``doctor``);
        ``procs_max``: how many processes can be enrolled at once; ``park_ms``: what is held and not frozen by then is
        denied (what is pinned already keeps its own).
        Raises NotSupportedError with the remedy, VerifierError, AttachError, or KernelError when another build of
        agentmon still guards live sessions there.
        """
        host.require_root()
        host.require_btf()
        host.mount_if_absent("bpf", host.BPFFS)
        host.require_own(pin_dir)
        why_react = ""
        if tier is None:
            tier, why_react = objects.choose_tier()
        pins = objects.pins_of(pin_dir, tier)
        for other in objects.foreign(pin_dir, pins):
            if _live_sessions(other):
                raise KernelError(
                    f"another build of agentmon guards live sessions (pins in `{other}`): end them, or run"
                    " `agentmon release --all` with that build"
                )
            objects.remove(other)
        if objects.is_complete(pins) and not skip:
            missing = [
                n for n, s in objects.status(pins).items() if s.startswith("missing") and n not in objects.OPTIONAL
            ]
            if _live_sessions(pins.directory) or not missing:
                return cls(pins, adopted=True, why_react=why_react, states=None)
        objects.remove(pins.directory)
        states = objects.load(pins, arena_bytes=arena_bytes, procs_max=procs_max, skip=skip, park_ms=park_ms)
        return cls(pins, adopted=False, why_react=why_react, states=states)

    def programs(self) -> dict[str, str]:
        """Program name -> ``attached``, ``missing: reason`` or ``not needed: reason``."""
        states = objects.status(self._pins)
        for name, state in (self._states or {}).items():
            if state != "attached" and name not in objects.on_demand(self.tier):
                states[name] = state
        return states

    @property
    def refuses_unix(self) -> bool:
        """Whether programs that ask name services over unix sockets can be refused, and not only killed for it."""
        return self.tier is Tier.LSM or self.programs().get(objects.CONNECT_UNIX) == "attached"

    @cached_property
    def holds(self) -> frozenset[Operation]:
        """What can wait for an answer here; in the react tier a read or write only of a file that is named exactly."""
        found = set(HELD[self.tier])
        if self.tier is Tier.REACT and not (self._pins.links / objects.RESUMES).exists():
            found.discard(Operation.EXEC)
        if self.tier is Tier.REACT and not fanotify.supported():
            found -= {Operation.READ, Operation.WRITE}
        return frozenset(found)

    @cached_property
    def holds_starts(self) -> bool:
        """Whether a program can wait once it has been started: any (react tier), or by its arguments (LSM tier)."""
        if self.tier is Tier.LSM:
            return objects.can_attach(self._pins, objects.HOLD_STARTS)
        return Operation.EXEC in self.holds

    def _can_stop(self) -> bool:
        """Whether nobody lets one run that waits, as of now."""
        wanted = objects.HOLD_STARTS if self.tier is Tier.LSM else {objects.RESUMES}
        return objects.is_attached(self._pins, wanted)

    def beat(self) -> None:
        """Say that somebody is there to freeze programs that are to wait: else none is made to wait."""
        if self._stops:
            self.answers.beat()
        if self._unwanted:
            self._attach_wanted()

    @property
    def pin_directory(self) -> Path:
        """Where links and maps of this build are pinned."""
        return self._pins.directory

    # ---- policies and sessions

    def install_policy(self, policy: CompiledPolicy) -> tuple[int, int]:
        """Writes a policy; returns (slot, generation). Raises KernelError if it does not fit."""
        place = self.tables.install(policy)
        try:
            self._attach_wanted()
        except KernelError:
            self.tables.remove(place[0])
            raise
        return place

    def set_clock(self, slot: int, spans: Sequence[tuple[int, int]]) -> None:
        """What the time says of an installed policy: (until when of the boot clock in ns, the facts until then)."""
        self.tables.set_clock(slot, spans)

    def remove_policy(self, slot: int) -> None:
        """Frees a policy slot. Raises KernelError while a session uses it."""
        users = [s for s, (policy, flags, _) in self.sessions().items() if policy == slot and flags & LIVE]
        if users:
            raise KernelError(f"policy slot {slot} is in use by session slots {users}")
        self.tables.remove(slot)
        self._attach_wanted()

    def _attach_wanted(self) -> None:
        """What all of the host pays for is attached while a policy asks for it."""
        objects.set_attached(self._pins, objects.COUNT_WRITES, wanted=self.tables.counts_bytes())
        if self.tier is not Tier.LSM:
            return
        wanted = self.holds_starts and self.tables.holds_by_arguments()
        self._unwanted = self._stops and not wanted
        if wanted == self._stops or (self._unwanted and any(self.answers.halted())):
            return  # who waits is not let run by this
        if not wanted:
            self._stops = False
            self.answers.beat(alive=False)
            self.tables.settle()
        objects.set_attached(self._pins, objects.HOLD_STARTS, wanted=wanted)
        self._stops, self._unwanted = wanted, False
        self.beat()

    def open_session(self, policy_slot: int) -> tuple[int, int]:
        """A new live session under an installed policy; returns (slot, serial).

        Raises KernelError when all slots are in use.
        """
        values = self._session_values()
        busy = {state.session for state in self.processes().values()}
        for slot in range(MAX_SESSIONS):
            if slot not in busy and not (slot in values and values[slot].flags & LIVE):
                self._serial += 1
                self._forget_marks(slot)
                self._start_marks(slot, policy_slot)
                self._start_steps(self._serial, policy_slot)
                self._maps["sessions"].update(U32.pack(slot), SESSION.pack(policy_slot, LIVE, self._serial, 0, 0))
                return slot, self._serial
        raise KernelError(f"all {MAX_SESSIONS} session slots are in use: release sessions that are not needed")

    def close_session(self, slot: int) -> None:
        """Ends a session: what is left of it runs on unfenced, and is no longer tracked."""
        was = self._session_values()[slot]
        self._set_session(slot, was._replace(flags=0, dns_port=0))
        if was.dns_port:
            self._maps["doors"].delete(U32.pack(was.dns_port))
        self.grants.forget(was.serial)
        self.answers.forget_session(was.serial)
        self._forget_marks(slot)
        self._forget_steps(was.serial)
        for _ in range(20):
            if not any(state.session == slot for _, state in self._process_items()):
                return
            self._enumerate()
        # The end of a process was missed (`process_exit` is not attached): no iterator visits what is left of it.
        for key, state in self._process_items():
            if state.session == slot:
                name = PROC_KEY.pack(key.start_ns, key.pid, 0)
                self._maps["procs"].delete(name)
                if self.tier is Tier.REACT:
                    self._maps["rights"].delete(name)

    def change_policy(self, slot: int, policy_slot: int) -> None:
        """Puts a live session under another installed policy: one decision sees the one or the other, never both.

        Decisions that began before may still end under the old one: `settle` waits for them.
        """
        value = self._maps["sessions"].lookup(U32.pack(slot))
        if not value:
            raise KernelError(f"there is no session slot {slot}")
        self._start_marks(slot, policy_slot)  # another policy's marks are others
        self._start_steps(_session(value).serial, policy_slot)
        self._set_session(slot, _session(value)._replace(policy=policy_slot))

    def settle(self) -> None:
        """Returns once every decision is over that was under way, and its record is in the ring."""
        self.tables.settle()

    def serve_names(self, slot: int, port: int) -> None:
        """From now on the questions of a session, whatever server they are for, go to this port of 127.0.0.1 and ::1.

        No session reaches that port otherwise. What it was led to before is forgotten.
        """
        was = self._session_values()[slot]
        self._maps["doors"].update(U32.pack(port), U32.pack(slot))
        self._set_session(slot, was._replace(dns_port=port))
        if was.dns_port not in (0, port):
            self._maps["doors"].delete(U32.pack(was.dns_port))

    def set_risk(self, slot: int, risk: Risk) -> None:
        """How far a session is from what is usual: rules may go by that."""
        self._set_session(slot, self._session_values()[slot]._replace(risk=int(risk)))

    def risk(self, slot: int) -> Risk:
        """What was set last."""
        return Risk(self._session_values()[slot].risk)

    def doom_session(self, slot: int) -> None:
        """Denies everything to a session; each of its processes is killed at its next operation."""
        was = self._session_values()[slot]
        self._set_session(slot, was._replace(flags=was.flags | DOOMED))

    def sessions(self) -> dict[int, tuple[int, int, int]]:
        """Live session slots -> (policy slot, flags, serial)."""
        return {slot: value[:3] for slot, value in self._session_values().items() if value.flags & LIVE}

    def _start_marks(self, slot: int, policy_slot: int) -> None:
        key = MARKED_KEY.pack(slot, self.tables.slots()[policy_slot])
        empty = bytes(U64.size * (MAX_MARKS + 1 + MAX_RATES))
        self._maps["marked"].update(key, empty + self.tables.intervals(policy_slot))

    def _start_steps(self, serial: int, policy_slot: int) -> None:
        """Where the steps of a plan are; where they are already is kept."""
        key = U64.pack(serial)
        if self.tables.has_plan(policy_slot) and not self._maps["steps"].lookup(key):
            self._maps["steps"].update(key, bytes(STEPS_BYTES))

    def _forget_steps(self, serial: int) -> None:
        if self._maps["steps"].delete(U64.pack(serial)):
            for key in list(self._maps["step_files"].keys(FILE_KEY.size)):
                if FILE_KEY.unpack(key)[0] == serial:
                    self._maps["step_files"].delete(key)

    def steps(self, slot: int, count: int) -> tuple[StepState, ...]:
        """Where the first ``count`` steps of a session's plan are. Empty: it has none."""
        serial = self._session_values()[slot].serial
        value = self._maps["steps"].lookup(U64.pack(serial))
        if not value:
            return ()
        done, ended, begun, *_ = STEPS_HEAD.unpack_from(value)
        found = []
        for i in range(count):
            alive, bad, began_ns, written, files = STEP.unpack_from(value, STEPS_HEAD.size + i * STEP.size)
            is_done, has_ended, has_begun = (bool(mask >> i & 1) for mask in (done, ended, begun))
            status = bad - 1 if bad else 0
            found.append(StepState(is_done, has_ended, has_begun, alive & 0x7FFFFFFF, status, began_ns, written, files))
        return tuple(found)

    def mark_step(self, key: ProcessKey, step: int, *, ends: bool = False, status: int = 0) -> Reason | None:
        """A process says that it begins (or ends) a step of its session's plan. Returns why it may not; None: done.

        ``status``: of one that ends, as a shell has it.
        """
        context = MARK.pack(key.start_ns, key.pid, step, ends, status)
        said = run_pinned(str(self._pins.links / objects.MARK_STEP), context)
        return Reason(said) if said else None

    def expect_command(self, key: ProcessKey) -> None:
        """The next program of an enrolled process is the agent itself, which no plan is asked about."""
        raw = PROC_KEY.pack(key.start_ns, key.pid, 0)
        value = self._maps["procs"].lookup(raw)
        if value:
            session, step, stepping, *rest = PROC.unpack(value)
            self._maps["procs"].update(raw, PROC.pack(session, step, stepping | COMMAND, *rest), 2)  # BPF_EXIST

    def _forget_marks(self, slot: int) -> None:
        for key in list(self._maps["marked"].keys(MARKED_KEY.size)):
            if MARKED_KEY.unpack(key)[0] == slot:
                self._maps["marked"].delete(key)

    def _set_session(self, slot: int, value: _SessionValue) -> None:
        self._maps["sessions"].update(U32.pack(slot), SESSION.pack(*value))

    def _session_values(self) -> dict[int, _SessionValue]:
        found: dict[int, _SessionValue] = {}
        for slot in range(MAX_SESSIONS):
            value = self._maps["sessions"].lookup(U32.pack(slot))
            if value and any(value):
                found[slot] = _session(value)
        return found

    # ---- processes

    def enroll(self, pids: Collection[int], session: int) -> list[ProcessKey]:
        """Marks processes and, to a fixpoint, all their descendants. What they fork from here on inherits.

        Returns what was added to this session. A PID that is gone or already enrolled adds nothing. Raises KernelError
        if the process table fills up.
        """
        before = self.counters()["fork_lost"]
        added: list[ProcessKey] = []
        with self._marked(pids, session):
            while fresh := [key for key, slot in self._enumerate() if slot == session]:
                added += fresh
        if self.counters()["fork_lost"] != before:
            raise KernelError("the kernel's process table is full: end sessions, then enrol again")
        return added

    @contextmanager
    def _marked(self, pids: Collection[int], session: int) -> Iterator[None]:
        for pid in pids:
            self._maps["marks"].update(U32.pack(pid), U32.pack(session))
        try:
            yield
        finally:
            for pid in pids:
                self._maps["marks"].delete(U32.pack(pid))

    def _enumerate(self) -> list[tuple[ProcessKey, int]]:
        """What was added, and to which slot: it may be a child of any session, met before its fork was told of."""
        data = b""
        fd = os.open(self._pins.enumerator, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while chunk := os.read(fd, 1 << 16):
                data += chunk
        finally:
            os.close(fd)
        return [(ProcessKey(pid, start_ns), slot) for start_ns, pid, slot in JOINED.iter_unpack(data)]

    def processes(self) -> dict[ProcessKey, ProcessState]:
        """Every enrolled process."""
        return dict(self._process_items())

    def census(self) -> Census | None:
        """Every enrolled process and newborn child; None if forks went on faster than the tables can be read.

        Reading a hash takes many calls, and a child may land where was read already while its parent ends where was not
        yet. Each addition by fork is counted before its parent can end: no addition during the reading, nobody missed.
        """
        for _ in range(CENSUS_TRIES):
            before = self._count("joined")
            newborn = frozenset(self._newborn_slots())
            processes = self.processes()
            if self._count("joined") == before:
                return Census(processes, newborn)
        return None

    def _newborn_slots(self) -> Iterator[int]:
        table = self._newborn
        if table is None:
            return
        for key in table.keys(U64.size):
            if value := table.lookup(key):
                yield PROC.unpack(value)[0]

    def listed(self) -> Iterator[ProcessKey]:
        """Every enrolled process, without what is known of it. Any thread may call this."""
        for key in self._maps["procs"].keys(PROC_KEY.size):
            start_ns, pid, _ = PROC_KEY.unpack(key)
            yield ProcessKey(pid, start_ns)

    def process(self, key: ProcessKey) -> ProcessState | None:
        """One enrolled process, or None."""
        value = self._maps["procs"].lookup(PROC_KEY.pack(key.start_ns, key.pid, 0))
        return _state(value) if value else None

    def _process_items(self) -> Iterator[tuple[ProcessKey, ProcessState]]:
        procs = self._maps["procs"]
        for raw in procs.keys(PROC_KEY.size):
            value = procs.lookup(raw)
            if value:
                start_ns, pid, _ = PROC_KEY.unpack(raw)
                yield ProcessKey(pid, start_ns), _state(value)

    def set_exe_tags(self, key: ProcessKey, tags: int | None, parents: int = 0) -> None:
        """Sets what a process runs that was enrolled while it ran, until it runs another program or its policy changes.

        None: the kernel is to find out. ``parents``: the tags of its ancestors in the session, added to what is known.
        """
        raw = PROC_KEY.pack(key.start_ns, key.pid, 0)
        value = self._maps["procs"].lookup(raw)
        if value:
            session, step, stepping, _, _, known, kin, unsure, *rest = PROC.unpack(value)
            generation = self.tables.slots()[self.sessions()[session][0]]
            if kin != generation:
                known, unsure = 0, 0 if kin == 0 else 0xFFFFFFFF
            found = 0 if tags is None else generation
            value = PROC.pack(session, step, stepping, found, tags or 0, known | parents, generation, unsure, *rest)
            self._maps["procs"].update(raw, value, 2)  # BPF_EXIST

    # ---- records and counters

    def fileno(self) -> int:
        """A descriptor that polls readable when a record waits that should not wait longer."""
        return self._ring.fd

    def read(self, limit: int = 10_000) -> list[Event]:
        """Decoded records, oldest first. A malformed one is counted in ``malformed`` and dropped."""
        events: list[Event] = []
        for record in self._ring.read(limit):
            try:
                events.append(wire.decode(record))
            except KernelError:
                self.malformed += 1
        return events

    def counters(self) -> dict[str, int]:
        """``enum am_counter``, summed over CPUs; and ``program_missed``, where that would be a gap.

        Since Linux 7.0 tracepoints are preemptible, and a program preempted in one makes others on its CPU miss theirs.
        LSM hooks make up for that; the react tier has nothing but tracepoints. See also `objects.by_function`.
        """
        totals = {name: self._count(name) for name in COUNTERS}
        if self.tier is Tier.REACT or objects.by_function():
            totals["program_missed"] = sum(
                missed_runs(str(link)) for link in self._pins.links.iterdir() if link.name != objects.MARK_STEP
            )
        return totals

    def _count(self, name: str) -> int:
        value = self._maps["counters"].lookup(U32.pack(COUNTERS.index(name))) or b""
        return sum(v for (v,) in struct.iter_unpack("=Q", value))

    def memory_bytes(self) -> int:
        """Kernel memory of the maps, as the kernel accounts it."""
        total = 0
        for path in self._pins.maps.iterdir():
            try:
                total += _memlock(path)
            except (KernelError, OSError):
                continue
        return total

    # ---- end

    def detach(self) -> None:
        """Unpins and detaches everything: no session is guarded any more."""
        self.close()
        objects.remove(self._pins.directory)
        if self._pins.root.is_dir() and not any(self._pins.root.iterdir()):
            self._pins.root.rmdir()

    def close(self) -> None:
        """Forgets descriptors and mappings. The pins go on enforcing."""
        self._ring.close()
        self.tables.close()
        for item in self._maps.values():
            item.close()
        self._maps.clear()


def _session(value: bytes) -> _SessionValue:
    return _SessionValue(*SESSION.unpack(value))


def _state(value: bytes) -> ProcessState:
    session, step, _, _, tags, parents, _, _, serial, *_ = PROC.unpack(value)
    return ProcessState(session, tags, parents, serial, step - 1 if step else OUTSIDE)


def _possible_cpus() -> int:
    from agentmon.kernel.libbpf import library

    return int(library().libbpf_num_possible_cpus())


def _memlock(path: Path) -> int:
    from agentmon.kernel.libbpf import open_pinned_map

    item = open_pinned_map(str(path))
    try:
        for line in Path(f"/proc/self/fdinfo/{item.fd}").read_text().splitlines():
            if line.startswith("memlock:"):
                return int(line.split()[1])
        return 0
    finally:
        item.close()


def _live_sessions(directory: Path) -> bool:
    """Whether pins under ``directory`` guard enrolled processes."""
    try:
        maps = open_maps(directory / "maps", ("procs", "sessions"))
    except KernelError:
        return False
    try:
        live = {
            slot
            for slot in range(MAX_SESSIONS)
            if (value := maps["sessions"].lookup(U32.pack(slot))) and SESSION.unpack(value)[1] & LIVE
        }
        for raw in maps["procs"].keys(PROC_KEY.size):
            value = maps["procs"].lookup(raw)
            if value and PROC.unpack(value)[0] in live:
                return True
        return False
    finally:
        for item in maps.values():
            item.close()
