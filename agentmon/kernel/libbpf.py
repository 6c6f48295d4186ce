# SPDX-License-Identifier: Apache-2.0
"""ctypes binding of the distribution's ``libbpf.so.1``: one symbol table, and thin objects over it.

Works with libbpf 1.1 (Debian 12) and later. Every failure becomes a :class:`~agentmon.errors.KernelError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from agentmon.errors import AttachError, KernelError, NotSupportedError, VerifierError

_PTR, _INT, _STR, _U32, _U64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint64

#: name -> (result, arguments); bpf/libbpf.h and bpf.h of libbpf 1.1
_SYMBOLS: dict[str, tuple[Any, list[Any]]] = {
    "libbpf_version_string": (_STR, []),
    "libbpf_set_print": (_PTR, [_PTR]),
    "bpf_object__open_file": (_PTR, [_STR, _PTR]),
    "bpf_object__load": (_INT, [_PTR]),
    "bpf_object__close": (None, [_PTR]),
    "bpf_object__next_program": (_PTR, [_PTR, _PTR]),
    "bpf_object__next_map": (_PTR, [_PTR, _PTR]),
    "bpf_program__name": (_STR, [_PTR]),
    "bpf_program__section_name": (_STR, [_PTR]),
    "bpf_program__fd": (_INT, [_PTR]),
    "bpf_program__set_autoload": (_INT, [_PTR, ctypes.c_bool]),
    "bpf_program__set_type": (_INT, [_PTR, _INT]),
    "bpf_program__set_expected_attach_type": (_INT, [_PTR, _INT]),
    "bpf_program__set_attach_target": (_INT, [_PTR, _INT, _STR]),
    "bpf_program__attach": (_PTR, [_PTR]),
    "bpf_program__attach_cgroup": (_PTR, [_PTR, _INT]),
    "bpf_program__attach_iter": (_PTR, [_PTR, _PTR]),
    "bpf_program__pin": (_INT, [_PTR, _STR]),
    "bpf_link__pin": (_INT, [_PTR, _STR]),
    "bpf_link__destroy": (_INT, [_PTR]),
    "bpf_map__name": (_STR, [_PTR]),
    "bpf_map__fd": (_INT, [_PTR]),
    "bpf_map__pin": (_INT, [_PTR, _STR]),
    "bpf_map__set_value_size": (_INT, [_PTR, _U32]),
    "bpf_map__set_max_entries": (_INT, [_PTR, _U32]),
    "bpf_map__initial_value": (_PTR, [_PTR, ctypes.POINTER(ctypes.c_size_t)]),
    "bpf_obj_get": (_INT, [_STR]),
    "bpf_obj_pin": (_INT, [_INT, _STR]),
    "bpf_raw_tracepoint_open": (_INT, [_STR, _INT]),
    "bpf_prog_get_fd_by_id": (_INT, [_U32]),
    "bpf_obj_get_info_by_fd": (_INT, [_INT, _PTR, ctypes.POINTER(_U32)]),
    "bpf_map_update_elem": (_INT, [_INT, _PTR, _PTR, _U64]),
    "bpf_map_lookup_elem": (_INT, [_INT, _PTR, _PTR]),
    "bpf_map_delete_elem": (_INT, [_INT, _PTR]),
    "bpf_map_get_next_key": (_INT, [_INT, _PTR, _PTR]),
    "bpf_map_create": (_INT, [_INT, _STR, _U32, _U32, _U32, _PTR]),
    "bpf_prog_test_run_opts": (_INT, [_INT, _PTR]),
    "bpf_enable_stats": (_INT, [_INT]),
    "libbpf_num_possible_cpus": (_INT, []),
    "btf__load_vmlinux_btf": (_PTR, []),
    "btf__find_by_name_kind": (_INT, [_PTR, _STR, _U32]),
    "btf__free": (None, [_PTR]),
}

_PRINT = ctypes.CFUNCTYPE(_INT, _INT, _STR, _PTR)
_LOG_LINE_BYTES = 1 << 20
#: BTF_KIND_TYPEDEF and BTF_KIND_FUNC, include/uapi/linux/btf.h
_BTF_TYPEDEF, _BTF_FUNC = 8, 12
#: Sections that libbpf 1.1 does not know: their program and attach type, include/uapi/linux/bpf.h
_LATER_SECTIONS = {"cgroup/connect_unix": (18, 49)}
#: BPF_PROG_TYPE_TRACING, BPF_TRACE_FENTRY and BPF_MODIFY_RETURN, the same header
_TRACING, _FENTRY, _MODIFY_RETURN = 26, 24, 26
#: Hooks that are not called by a function of their own name, and those whose function returns nothing (security.c).
_CALLED_BY = {"bprm_check_security": "bprm_check", "userns_create": "create_user_ns"}
_VOID = frozenset({"task_free", "bprm_committed_creds"})
_log: list[str] = []


class _Library(ctypes.CDLL):
    """Only functions whose types are told: ctypes would cut a pointer that it takes for an `int` to 32 bits."""

    def __getattr__(self, name: str) -> Any:
        if name not in _SYMBOLS:
            raise AttributeError(f"`{name}` of libbpf has no types here: add it to _SYMBOLS")
        return super().__getattr__(name)


@cache
def library() -> ctypes.CDLL:
    """libbpf, with typed functions and its messages collected instead of printed.

    Raises NotSupportedError if the library is not installed.
    """
    try:
        lib = _Library("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise NotSupportedError(
            "`libbpf.so.1` is not installed: install the package `libbpf1` (Debian, Ubuntu) or `libbpf` (Fedora)"
        ) from error
    for name, (result, arguments) in _SYMBOLS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(ctypes.cast(_COLLECT, ctypes.c_void_p))
    return lib


_libc = ctypes.CDLL(None)


def _collect(level: int, fmt: bytes, arguments: int) -> int:
    if level < 2:  # warnings and information, not debugging
        line = ctypes.create_string_buffer(_LOG_LINE_BYTES)
        _libc.vsnprintf(line, ctypes.c_size_t(_LOG_LINE_BYTES), fmt, ctypes.c_void_p(arguments))
        _log.append(line.value.decode(errors="replace"))
    return 0


_COLLECT = _PRINT(_collect)  # kept: libbpf calls it for as long as it is loaded


def _drain_log() -> str:
    text = "".join(_log)
    _log.clear()
    return text


def missing_tracepoints(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that the running kernel has no typed tracepoint for (``btf_trace_NAME`` in its BTF)."""
    return _absent(names, "btf_trace_", _BTF_TYPEDEF)


def missing_functions(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are no functions of the running kernel, by its BTF."""
    return _absent(names, "", _BTF_FUNC)


def missing_hooks(names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are no security hooks of the running kernel (``security_NAME`` in its BTF)."""
    return _absent(names, "security_", _BTF_FUNC)


def _absent(names: Iterable[str], prefix: str, kind: int) -> list[str]:
    lib = library()
    btf = lib.btf__load_vmlinux_btf()
    if not btf:
        raise NotSupportedError(f"cannot read this kernel's BTF: {_reason()}")
    try:
        return [n for n in names if lib.btf__find_by_name_kind(btf, f"{prefix}{n}".encode(), kind) < 0]
    finally:
        lib.btf__free(btf)


def version() -> str:
    """The library's own version, such as ``v1.1``."""
    text: bytes = library().libbpf_version_string()
    return text.decode()


class Map:
    """A BPF map by file descriptor. Keys and values are bytes of the map's own sizes."""

    def __init__(self, fd: int, value_size: int) -> None:
        self.fd = fd
        self.value_size = value_size
        self._lib = library()

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Sets one element. Raises KernelError (for instance when the map is full)."""
        if self._lib.bpf_map_update_elem(self.fd, key, value, flags):
            code = ctypes.get_errno()
            why = "it is full" if code == errno.E2BIG else os.strerror(code)
            raise KernelError(f"cannot write a BPF map element: {why}")

    def lookup(self, key: bytes) -> bytes | None:
        """The element's value, or None."""
        value = ctypes.create_string_buffer(self.value_size)
        if self._lib.bpf_map_lookup_elem(self.fd, key, value):
            return None
        return value.raw

    def delete(self, key: bytes) -> bool:
        """Removes one element; False if it was not there."""
        return bool(self._lib.bpf_map_delete_elem(self.fd, key) == 0)

    def keys(self, size_bytes: int) -> Iterator[bytes]:
        """Every key that is there when its turn comes; safe against removal of the one just given."""
        following = ctypes.create_string_buffer(size_bytes)
        key: bytes | None = None
        while self._lib.bpf_map_get_next_key(self.fd, key, following) == 0:
            key, after = following.raw, following
            yield key
            following = after

    def close(self) -> None:
        """Closes the descriptor; the map lives on while it is pinned or used."""
        os.close(self.fd)


class _MapCreate(ctypes.Structure):
    """``struct bpf_map_create_opts``, as far as it is needed."""

    _fields_ = [("sz", ctypes.c_size_t)] + [
        (n, _U32) for n in ("btf", "key_btf", "value_btf", "vmlinux_btf", "inner_fd")
    ]


#: enum bpf_map_type, include/uapi/linux/bpf.h
_ARRAY, _ARRAY_OF_MAPS = 2, 12


class Barrier:
    """Waits until every program that runs now has ended: the kernel does that for whoever replaces a map in a map."""

    def __init__(self) -> None:
        self._inner = _create_map(_ARRAY, 4, None)
        try:
            options = _MapCreate(sz=ctypes.sizeof(_MapCreate), inner_fd=self._inner)
            self._outer = Map(_create_map(_ARRAY_OF_MAPS, 4, ctypes.byref(options)), 4)
        except BaseException:
            os.close(self._inner)
            raise

    def wait(self) -> None:
        """Returns after an RCU grace period (``maybe_wait_bpf_programs`` in kernel/bpf/syscall.c)."""
        self._outer.update(bytes(4), self._inner.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        """Closes its maps."""
        self._outer.close()
        os.close(self._inner)


def _create_map(kind: int, value_size: int, options: Any) -> int:
    fd = library().bpf_map_create(kind, b"agentmon_wait", 4, value_size, 1, options)
    if fd < 0:
        raise KernelError(f"cannot make a BPF map: {os.strerror(-fd)}")
    return int(fd)


class Program:
    """A program of an open object."""

    def __init__(self, pointer: int) -> None:
        lib = library()
        self.pointer = pointer
        self.name: str = lib.bpf_program__name(pointer).decode()
        self.section: str = lib.bpf_program__section_name(pointer).decode()
        if self.section in _LATER_SECTIONS:
            kind, attach = _LATER_SECTIONS[self.section]
            lib.bpf_program__set_type(pointer, kind)
            lib.bpf_program__set_expected_attach_type(pointer, attach)

    def modify_return(self) -> None:
        """Attach an LSM program to the function that calls its hook (``security_…``), not to the hook.

        Such a program goes before all security modules, and what it returns, if not 0, is the answer:
        ``BPF_MODIFY_RETURN``, for which the kernel admits those functions (``check_attach_modify_return``).
        """
        hook = self.section.removeprefix("lsm/")
        lib = library()
        lib.bpf_program__set_type(self.pointer, _TRACING)
        lib.bpf_program__set_expected_attach_type(self.pointer, _FENTRY if hook in _VOID else _MODIFY_RETURN)
        function = f"security_{_CALLED_BY.get(hook, hook)}"
        if lib.bpf_program__set_attach_target(self.pointer, 0, function.encode()):
            raise NotSupportedError(f"this kernel has no function `{function}` to attach to: {_reason()}")

    def set_autoload(self, wanted: bool) -> None:
        """Whether loading the object loads this program."""
        library().bpf_program__set_autoload(self.pointer, wanted)

    @property
    def fd(self) -> int:
        """File descriptor of the loaded program."""
        return int(library().bpf_program__fd(self.pointer))

    def attach_and_pin(self, path: str, cgroup_fd: int) -> None:
        """Attaches the program to what its section names and pins the link.

        A program that is only called (`run_pinned`) is pinned itself. Raises AttachError with the kernel's reason.
        """
        lib = library()
        _drain_log()
        if self.section == "syscall":
            self.pin(path)
            return
        if self.section.startswith("cgroup/"):
            link = lib.bpf_program__attach_cgroup(self.pointer, cgroup_fd)
        elif self.section.startswith("iter/"):
            link = lib.bpf_program__attach_iter(self.pointer, None)
        else:
            link = lib.bpf_program__attach(self.pointer)
        if not link:
            raise AttachError(f"cannot attach `{self.name}` ({self.section}): {_reason()}")
        failed = lib.bpf_link__pin(link, path.encode())
        reason = _reason() if failed else ""
        lib.bpf_link__destroy(link)  # the pin keeps it attached
        if failed:
            raise AttachError(f"cannot pin the link of `{self.name}` at `{path}`: {reason}")

    def pin(self, path: str) -> None:
        """Pins the program, attached or not. Raises AttachError."""
        if library().bpf_program__pin(self.pointer, path.encode()):
            raise AttachError(f"cannot pin `{self.name}` at `{path}`: {_reason()}")


class Object:
    """A BPF object file: open it, adjust it, load it. Spec before privilege: opening needs no rights."""

    def __init__(self, path: str) -> None:
        lib = library()
        _drain_log()
        self.pointer = lib.bpf_object__open_file(path.encode(), None)
        if not self.pointer:
            raise KernelError(f"cannot open the BPF object `{path}`: {_reason()}")
        self.programs = {p.name: p for p in map(Program, self._walk(lib.bpf_object__next_program))}
        self._maps: dict[str, int] = {lib.bpf_map__name(m).decode(): m for m in self._walk(lib.bpf_object__next_map)}

    def _walk(self, following: Any) -> Iterator[int]:
        item = None
        while item := following(self.pointer, item):
            yield item

    def set_value_size(self, map_name: str, size_bytes: int) -> None:
        """Changes a map's value size before load."""
        if library().bpf_map__set_value_size(self._maps[map_name], size_bytes):
            raise KernelError(f"cannot resize the BPF map `{map_name}`: {_reason()}")

    def set_max_entries(self, map_name: str, entries: int) -> None:
        """Changes how much a map can hold before load."""
        if library().bpf_map__set_max_entries(self._maps[map_name], entries):
            raise KernelError(f"cannot resize the BPF map `{map_name}`: {_reason()}")

    def set_initial(self, map_name: str, data: bytes) -> None:
        """Sets the start of a global-data section before load."""
        size = ctypes.c_size_t()
        at = library().bpf_map__initial_value(self._maps[map_name], ctypes.byref(size))
        if not at or size.value < len(data):
            raise KernelError(f"the BPF section `{map_name}` is missing or too small")
        ctypes.memmove(at, data, len(data))

    def load(self) -> None:
        """Creates the maps and loads the programs.

        Raises VerifierError with the last lines of the verifier's log, or NotSupportedError when the
        kernel refuses the program type.
        """
        _drain_log()
        ctypes.set_errno(0)
        failed = library().bpf_object__load(self.pointer)
        if not failed:
            return
        log = _drain_log()
        tail = "\n".join(log.splitlines()[-6:])
        if -failed in (1, 22) and "BEGIN PROG LOAD LOG" not in log:
            raise NotSupportedError(f"the kernel refuses to load these BPF programs: {os.strerror(-failed)}\n{tail}")
        raise VerifierError(f"cannot load BPF programs: {os.strerror(-failed)}\n{tail}", log)

    def pin_maps(self, directory: str) -> None:
        """Pins every map under ``directory`` by its name (a leading dot, which bpffs forbids, becomes ``_``)."""
        lib = library()
        for name, pointer in self._maps.items():
            if lib.bpf_map__pin(pointer, f"{directory}/{name.replace('.', '_')}".encode()):
                raise KernelError(f"cannot pin the BPF map `{name}` in `{directory}`: {_reason()}")

    def close(self) -> None:
        """Drops the object; what is pinned lives on."""
        if self.pointer:
            library().bpf_object__close(self.pointer)
            self.pointer = 0


def _reason() -> str:
    code = ctypes.get_errno()
    log = " ".join(_drain_log().split())
    return f"{os.strerror(code)}" + (f" ({log[-400:]})" if log else "")


class _MapInfo(ctypes.Structure):
    _fields_ = [(n, _U32) for n in ("type", "id", "key_size", "value_size", "max_entries", "map_flags")] + [
        ("name", ctypes.c_char * 16)
    ]


def open_pinned_map(path: str) -> Map:
    """A map that was pinned. Raises KernelError if it is not there."""
    lib = library()
    fd = lib.bpf_obj_get(path.encode())
    if fd < 0:
        raise KernelError(f"cannot open the pinned BPF map `{path}`: {os.strerror(ctypes.get_errno())}")
    info = _MapInfo()
    size = _U32(ctypes.sizeof(info))
    if lib.bpf_obj_get_info_by_fd(fd, ctypes.byref(info), ctypes.byref(size)):
        raise KernelError(f"cannot query the pinned BPF map `{path}`: {os.strerror(ctypes.get_errno())}")
    return Map(fd, info.value_size)


#: Offsets in ``struct bpf_link_info`` and ``struct bpf_prog_info`` (include/uapi/linux/bpf.h), and the latter's size
_LINK_PROG_ID, _PROG_MISSES, _PROG_INFO_BYTES = 8, 208, 232


def missed_runs(pinned_link: str) -> int:
    """How often the kernel did not run the program of a pinned link although its event came (``recursion_misses``)."""
    lib = library()
    link = lib.bpf_obj_get(pinned_link.encode())
    if link < 0:
        return 0
    program = -1
    try:
        info = _info(link)
        program = lib.bpf_prog_get_fd_by_id(int.from_bytes(info[_LINK_PROG_ID : _LINK_PROG_ID + 4], sys.byteorder))
        return int.from_bytes(_info(program)[_PROG_MISSES : _PROG_MISSES + 8], sys.byteorder) if program >= 0 else 0
    finally:
        os.close(link)
        if program >= 0:
            os.close(program)


def attach_pinned(program: str, link: str) -> None:
    """Attaches a pinned program (LSM, or of a BTF tracepoint) to what it was loaded for, and pins the link.

    Raises AttachError.
    """
    lib = library()
    fds: list[int] = []
    try:
        fds.append(lib.bpf_obj_get(program.encode()))
        if fds[0] >= 0:
            fds.append(lib.bpf_raw_tracepoint_open(None, fds[0]))
        if fds[-1] < 0 or lib.bpf_obj_pin(fds[-1], link.encode()):
            raise AttachError(f"cannot attach the pinned program `{program}`: {os.strerror(ctypes.get_errno())}")
    finally:
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class _TestRun(ctypes.Structure):
    """``struct bpf_test_run_opts``."""

    _fields_ = [
        ("sz", ctypes.c_size_t), ("data_in", ctypes.c_char_p), ("data_out", ctypes.c_char_p),
        ("data_size_in", _U32), ("data_size_out", _U32), ("ctx_in", ctypes.c_char_p), ("ctx_out", ctypes.c_char_p),
        ("ctx_size_in", _U32), ("ctx_size_out", _U32), ("retval", _U32), ("repeat", ctypes.c_int),
        ("duration", _U32), ("flags", _U32), ("cpu", _U32), ("batch_size", _U32),
    ]  # fmt: skip


def run_pinned(path: str, context: bytes) -> int:
    """Calls a pinned program of the section ``syscall``; returns what it returns. Raises KernelError."""
    lib = library()
    fd = lib.bpf_obj_get(path.encode())
    if fd < 0:
        raise KernelError(f"cannot open the pinned BPF program `{path}`: {os.strerror(ctypes.get_errno())}")
    try:
        given = ctypes.create_string_buffer(context, len(context))
        options = _TestRun(
            sz=ctypes.sizeof(_TestRun), ctx_in=ctypes.cast(given, ctypes.c_char_p), ctx_size_in=len(context)
        )
        if lib.bpf_prog_test_run_opts(fd, ctypes.byref(options)):
            raise KernelError(f"cannot call the BPF program `{path}`: {os.strerror(ctypes.get_errno())}")
        return int(options.retval)
    finally:
        os.close(fd)


def _info(fd: int) -> bytes:
    info = ctypes.create_string_buffer(_PROG_INFO_BYTES)
    size = _U32(_PROG_INFO_BYTES)
    library().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size))
    return info.raw
