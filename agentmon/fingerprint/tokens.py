# SPDX-License-Identifier: Apache-2.0
"""Records of one session as abstract tokens: what was done to what class of object, with which program or host.

A token is two words. The *group* (`read home/keys`, `exec shell`, `connect public:https`, `exit error`) is what
sequences are learnt of. The *detail* (the program, the host) is judged apart, within its group: a new program where
new programs are usual is no news, the first one ever to read keys is. What was blocked has `!` behind its operation.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from agentmon.fingerprint.places import Places, bare_name, host_class
from agentmon.model.records import Record

_HOME = re.compile(r", home (?P<home>.*)$", re.DOTALL)
_FILES = frozenset(("read", "write", "create", "delete", "rename", "link", "attr", "unix"))
_NET = frozenset(("connect", "send", "bind", "listen"))
_STOPPED = frozenset(("deny", "kill", "hold"))
#: The operation of what became of a step of a plan.
PLANNED = "step"

#: What programs are for. A program that is in no list is `other`.
_KINDS = {
    "shell": "sh bash dash zsh ash fish busybox",
    "interpreter": "python node perl ruby php java lua deno bun tclsh awk gawk mawk",
    "text": (
        "cat head tail sed grep egrep fgrep rg sort uniq cut tr wc diff tee less more nl paste join comm "
        "column fold jq xxd od strings file md5sum sha256sum base64 printf echo yes seq expr test true false "
        "sleep date basename dirname env xargs"
    ),
    "files": (
        "ls find cp mv rm mkdir rmdir ln touch chmod chown stat du df tree readlink realpath mktemp tar gzip "
        "gunzip zip unzip xz bzip2 zstd install dd truncate split rsync locate which"
    ),
    "vcs": "git hg svn gh glab git-remote-https git-remote-http",
    "build": (
        "make cmake ninja gcc g++ cc c++ cc1 cc1plus as ld ar collect2 clang clang++ rustc cargo go gofmt "
        "javac mvn gradle tsc esbuild webpack pytest tox mypy ruff black eslint prettier ldconfig objdump nm "
        "strip"
    ),
    "packages": "pip pipx uv poetry conda npm npx yarn pnpm apt apt-get dpkg dnf yum rpm apk gem brew snap",
    "network": (
        "curl wget nc ncat netcat socat ssh scp sftp telnet ftp nmap dig nslookup host ping traceroute "
        "openssl tcpdump"
    ),
    "accounts": (
        "sudo su passwd useradd usermod groupadd adduser chpasswd visudo chage newgrp doas pkexec gpg ssh- "
        "keygen"
    ),
    "system": (
        "systemctl service crontab at mount umount insmod modprobe rmmod sysctl iptables nft ip ifconfig kill "
        "pkill killall ps top lsof ss netstat dmesg journalctl hostnamectl reboot shutdown chroot unshare "
        "nsenter docker podman kubectl strace gdb ltrace bpftool auditctl setcap id whoami uname hostname who "
        "w last"
    ),
    "editor": "vi vim nano emacs ed code",
}  # fmt: skip
KINDS = {program: kind for kind, words in _KINDS.items() for program in words.split()}


class Token(NamedTuple):
    """One observation. ``program`` acts; ``place`` is empty where the operation has no object."""

    time_ns: int
    group: str
    detail: str
    operation: str
    place: str
    program: str
    stopped: bool
    pid: int
    parent: int

    def __str__(self) -> str:
        return f"{self.group} ({self.detail})" if self.detail else self.group


#: One is made for each record, and the way over the class's own constructor costs as much again.
_new = tuple.__new__


def kind_of(program: str) -> str:
    """What a program is for: a key of the list above, or `other`."""
    return KINDS.get(program, "other")


class Tokens:
    """Reads the records of one session, in order. Plain data; no clock."""

    def __init__(self, workspace: str = "", home: str = "") -> None:
        self._places = Places(workspace, home)

    def read(self, record: Record) -> Token | None:
        """The token of a record; None where it is no act of the agent."""
        if record.kind == "decision":
            return self._decision(record) if record.operation else None
        if record.kind == "process":
            return self._process(record)
        if record.kind == "step":
            return _step(record)
        if record.kind == "session" and record.operation == "enrolled":
            home = _HOME.search(record.detail)
            self._places = Places(record.object, home["home"] if home else self._places.home)
        return None

    def _decision(self, record: Record) -> Token:
        operation, comm = record.operation, bare_name(record.comm)
        stopped = record.verdict in _STOPPED
        word = operation + "!" if stopped else operation
        place, detail = "", comm
        if operation == "exec":
            place = self._places.program(record.object)
            detail = place
            kind = kind_of(place) if "/" not in place and place not in ("tmp", "elsewhere") else place
            group = f"{word} {kind}"
        elif operation in _FILES:
            place = self._places.of(record.object)
            if place == "proc/private" and record.object.startswith((f"/proc/{record.pid}/", "/proc/self/")):
                place = "proc/process"  # its own: many programs look at that
            group = f"{word} {place}"
        elif operation in _NET:
            place, host = host_class(record.object, record.host)
            group, detail = f"{word} {place}", host or comm
        else:
            group = word
        return _new(Token, (record.time_ns, group, detail, operation, place, comm, stopped, record.pid, 0))

    @staticmethod
    def _process(record: Record) -> Token | None:
        comm = bare_name(record.comm)
        parent = record.detail.removeprefix("parent ")
        number = int(parent) if parent.isdecimal() else 0
        if record.operation == "exec":
            group, detail = f"run {kind_of(comm)}", comm
        elif record.operation == "exit":
            how = (
                "ok" if record.detail in ("status 0", "") else "signal" if record.detail.startswith("sig") else "error"
            )
            group, detail = f"exit {how}", ""
        elif record.operation == "fork":
            group, detail = "fork", ""
        else:
            return None
        return _new(Token, (record.time_ns, group, detail, record.operation, "", comm, False, record.pid, number))


def _step(record: Record) -> Token:
    """What became of a step of the plan: `step began (build)`. Its name is the detail: plans differ."""
    stopped = record.verdict in _STOPPED
    group = f"{PLANNED}{'!' * stopped} {record.operation}"
    return Token(
        record.time_ns, group, bare_name(record.object), PLANNED, "", bare_name(record.comm), stopped, record.pid, 0
    )  # fmt: skip


def of_plans(group: str) -> bool:
    """Whether a group is of steps of plans."""
    return group.startswith((f"{PLANNED} ", f"{PLANNED}! "))
