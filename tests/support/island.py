# SPDX-License-Identifier: Apache-2.0
"""A network of a test's own, with a name server and hosts that listen: nothing leaves the machine."""

from __future__ import annotations

import ctypes
import ipaddress
import json
import os
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.hosts import REPOSITORY, Host, wait_for

#: Addresses of this network's hosts; public, for what is private is no honest answer.
HOSTS = ("8.8.8.8", "9.9.9.9", "2001:4860:4860::8888")  #: As public, but an interface's, with 24 bits.
HOME = "4.4.4.1"
#: What the name server says.
NAMES = {
    "api.example.com": ["8.8.8.8", "2001:4860:4860::8888"],
    "two.example.com": ["9.9.9.9"],
    "inward.example.com": ["127.0.0.1", "10.0.0.1", "::1"],
    "home.example.com": ["4.4.4.1", "4.4.4.77"],
    "evil.example.net": ["9.9.9.9"],
}
PORTS = (443, 444, 5353)
#: Hosts of models that are recorded (`demo/record.py`); by `ANY_NAME`.
MODEL = re.compile(r"api\.model\d\d\.example")
_GETAI = 14  # nscd/nscd-client.h of glibc

#: Name services of its host, which know every name by this address: sockets below /run.
ANY_NAME = "9.9.9.9"
SERVICES = ("nscd/socket", "systemd/resolve/io.systemd.Resolve", "avahi-daemon/socket")

_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_MS_PRIVATE_REC, _MS_BIND = 0x44000, 0x1000


class Island:
    """Use as a context manager. Its hosts listen on `PORTS`, its name server on port 53 of 127.0.0.1.

    With ``services`` it has a /run of its own, with the sockets of `SERVICES`.
    """

    def __init__(self, directory: Path, *, services: bool = False) -> None:
        self._asked = directory / "asked"
        self._told = directory / "told"
        self._services = [self._told] if services else []
        self._conf = directory / "resolv.conf"
        self._conf.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:1\n")

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.island", self._conf, self._asked, *self._services],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    @property
    def inside(self) -> list[str]:
        """Begins a command that runs in this network."""
        return ["nsenter", f"--target={self._process.pid}", "--net", "--mount", "--"]

    def asked(self) -> list[str]:
        """Each name that the name server was asked for."""
        return self._asked.read_text().split() if self._asked.exists() else []

    def told(self) -> str:
        """All that its name services were sent."""
        return self._told.read_text() if self._told.exists() else ""


class IslandHost(Host):
    """An agentmon in that network."""

    def __init__(self, directory: Path, island: Island) -> None:
        super().__init__(directory)
        self._island = island

    def command(self, *arguments: str | Path) -> list[str]:
        return [*self._island.inside, *super().command(*arguments)]

    def start(self) -> subprocess.Popen[bytes]:
        daemon = super().start()
        # canaries have three seconds, which is little in an emulated guest
        wait_for(lambda: self.agentmon("doctor").returncode == 0, "the canaries")
        return daemon


def _main(conf: str, asked: str, told: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) or libc.mount(b"none", b"/", None, _MS_PRIVATE_REC, None):
        raise OSError(ctypes.get_errno(), "unshare")
    if told and libc.mount(b"none", b"/run", b"tmpfs", 0, b"mode=755"):
        raise OSError(ctypes.get_errno(), "mount")
    # the file may be a link to nowhere: what it leads to must be there to be mounted over
    target = os.path.realpath("/etc/resolv.conf")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).touch()
    if libc.mount(conf.encode(), target.encode(), None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), "mount")
    _link_up()
    _listen(asked)
    if told:
        _serve_names(told)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)


def _link_up() -> None:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=1, state="up")
        route.addr("add", index=1, address=HOME, prefixlen=24)
        for host in HOSTS:
            # no address of an interface: a name must not lead to those
            ip = ipaddress.ip_address(host)
            family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
            route.route(
                "add", family=family, dst=f"{host}/{ip.max_prefixlen}", oif=1, type="local", table=255, scope=254
            )  # fmt: skip


def _listen(asked: str) -> None:
    import dns.flags
    import dns.message
    import dns.rcode
    import dns.rdatatype
    import dns.rrset

    def answer(wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        with open(asked, "a", encoding="utf-8") as file:
            file.write(name + "\n")
        response = dns.message.make_response(query)
        known = [ANY_NAME] if MODEL.fullmatch(name) else NAMES.get(name)
        if known is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
        wanted = [a for a in known or () if (":" in a) == (question.rdtype == dns.rdatatype.AAAA)]
        if wanted:
            response.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", question.rdtype, wanted))
        return response.to_wire()

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(answer(data), self.client_address)

    class Stream(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)

    class Tcp(socketserver.ThreadingTCPServer):
        allow_reuse_address = True

    answer(dns.message.make_query("api.example.com", "AAAA").to_wire())  # the first takes longest
    os.truncate(asked, 0)
    servers: list[Any] = [socketserver.ThreadingUDPServer(("127.0.0.1", 53), Datagram)]
    for family, host in ((2, "0.0.0.0"), (10, "::")):  # a network without others
        for port in PORTS:
            tcp = type("Tcp", (Tcp,), {"address_family": family})
            server = tcp((host, port), Stream, bind_and_activate=False)
            if family == 10:
                server.socket.setsockopt(41, 26, 1)  # IPPROTO_IPV6, IPV6_V6ONLY
            server.server_bind()
            server.server_activate()
            servers.append(server)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()


def _serve_names(told: str) -> None:
    """nscd's answers are for libc itself; who asks the others speaks as their modules for libc do."""

    class Service(socketserver.StreamRequestHandler):
        def hear(self, data: bytes) -> None:
            if data:  # else somebody connected and was stopped
                with open(told, "ab") as file:
                    file.write(data + b"\n")

    class Nscd(Service):
        def handle(self) -> None:
            _, kind, size = struct.unpack("=3i", self.rfile.read(12).ljust(12, b"\0"))
            key = self.rfile.read(size)
            if kind != _GETAI:
                return  # of its shared memory, and users
            self.hear(key)
            address = socket.inet_aton(ANY_NAME)
            # version, found, addresses, their bytes, those of the canonical name, error; then addresses and families
            self.wfile.write(struct.pack("=6i", 2, 1, 1, len(address), 0, 0) + address + bytes([socket.AF_INET]))

    class Varlink(Service):
        def handle(self) -> None:
            self.hear(_until(self.rfile, b"\0"))
            self.wfile.write(json.dumps({"parameters": {"addresses": [{"address": [9, 9, 9, 9]}]}}).encode() + b"\0")

    class Avahi(Service):
        def handle(self) -> None:
            self.hear(_until(self.rfile, b"\n"))
            self.wfile.write(b"+ 2 0 name " + ANY_NAME.encode() + b"\n")

    for path, handler in zip(SERVICES, (Nscd, Varlink, Avahi), strict=True):
        where = Path("/run", path)
        where.parent.mkdir(parents=True)
        server = socketserver.ThreadingUnixStreamServer(str(where), handler)
        where.chmod(0o666)
        threading.Thread(target=server.serve_forever, daemon=True).start()


def _until(file: Any, end: bytes) -> bytes:
    data = b""
    while (byte := file.read(1)) not in (b"", end):
        data += byte
    return data


def script(body: str) -> list[str]:
    """A command that runs Python statements; what they leave in `told` is printed as JSON."""
    return [sys.executable, "-c", f"{_AGENT}\ntold = []\n{body}\nprint(json.dumps(told))\n"]


#: What scripts have at hand.
_AGENT = '''
import errno, json, os, socket, struct, sys, time

def lookup(name, family=0):
    """The addresses of a name by libc, or the name of the error."""
    try:
        return sorted({a[4][0] for a in socket.getaddrinfo(name, 443, family, socket.SOCK_STREAM)})
    except socket.gaierror as error:
        return {socket.EAI_NONAME: "no name", socket.EAI_AGAIN: "again"}.get(error.errno, str(error))

def connect(host, port):
    """"" or the name of the error."""
    try:
        with socket.create_connection((host, port), timeout=10):
            return ""
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def query(name):
    """A query for an A record."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1)

def said(wire):
    """The response code and the number of answers."""
    _, flags, _, answers, _, _ = struct.unpack("!6H", wire[:12])
    return [flags & 15, answers]
'''


def told(done: subprocess.CompletedProcess[str]) -> Any:
    """What a `script` printed."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
