# SPDX-License-Identifier: Apache-2.0
"""Classes of objects: two runs of one agent, on two machines, meet the same ones."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from agentmon.model.text import clean

#: Below the workspace or the home: the first component that decides.
_IN_PROJECT = {
    ".git": "git", "node_modules": "deps", ".venv": "deps", "venv": "deps", "vendor": "deps", "site-packages": "deps",
    "target": "build", "build": "build", "dist": "build", "__pycache__": "cache", ".pytest_cache": "cache",
    ".mypy_cache": "cache", ".ruff_cache": "cache", ".cache": "cache", "tests": "tests", "test": "tests",
}  # fmt: skip
_IN_HOME = {
    ".cache": "cache", ".config": "config", ".local": "local", ".cargo": "deps", ".npm": "deps", ".rustup": "deps",
    ".nvm": "deps", ".pyenv": "deps",
}  # fmt: skip
#: Files that give away who may log in, or that start programs by themselves.
_KEYS = (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".netrc", ".git-credentials", ".pgpass")
_STARTUP = re.compile(
    r"\.(?:bashrc|bash_profile|bash_login|bash_logout|profile|zshrc|zprofile|zshenv|xinitrc|xprofile|xsessionrc)"
)
_AUTOSTART = ("autostart", "systemd")
_HISTORY = re.compile(r"\.[a-z_]*history|\.viminfo|\.lesshst")
_SECRET = re.compile(
    r"(?:.*[._-])?(?:id_(?:rsa|dsa|ecdsa|ed25519)|secrets?|tokens?|credentials?|passwords?|api[_-]?keys?|private[_-]?keys?"
    r"|htpasswd|keyring|wallet)(?:[._-].*)?|.*\.(?:pem|key|p12|pfx|jks|kdbx?|keytab|ppk)|\.env(?:\..+)?",
    re.IGNORECASE,
)
_SOURCE = re.compile(
    r".*\.(?:py[cio]?|[jt]sx?|[cm]js|go|rs|[ch]|cc|cpp|hpp|java|class|rb|php|sh|so|md|rst|html?|css|pub|crt)"
)
_ETC_KEYS = re.compile(
    r"/etc/(?:shadow|gshadow|sudoers)[-~]?|/etc/(?:sudoers\.d|ssl/private|security)/.*|/etc/ssh/.*_key|/var/backups/.*"
)
_ETC_LOGIN = re.compile(
    r"/etc/(?:passwd|group|subuid|subgid|pam\.d/.*|pam\.conf|login\.defs|ssh/.*|nsswitch\.conf)[-~]?"
)
_ETC_START = re.compile(
    r"/etc/(?:cron.*|anacrontab|systemd/.*|init\.d/.*|rc.*|profile.*|bash.*|environment|ld\.so\.preload|ld\.so\.conf.*"
    r"|modules.*|modprobe\.d/.*|udev/.*|xdg/autostart/.*|apt/apt\.conf\.d/.*|sysctl.*)|/var/spool/(?:cron|at).*"
)
_PROC_PRIVATE = re.compile(r"/proc/(?:\d+|self|thread-self)(?:/task/\d+)?/(?:environ|mem|maps|fd/.*|root.*|cwd.*|auxv)")
_PROC_OWN = re.compile(r"/proc/(?:\d+|self|thread-self)(?:/.*)?")
_TAIL = re.compile(r"(?:[._-]?\d+)+$|-[0-9a-f]{7,}$")
_RUNTIME = ("/usr/lib", "/lib", "/usr/share", "/usr/include", "/usr/libexec", "/usr/local/lib", "/usr/local/share")
_PROGRAMS = (
    "/usr/bin/",
    "/bin/",
    "/usr/sbin/",
    "/sbin/",
    "/usr/local/bin/",
    "/usr/lib/",
    "/lib/",
    "/usr/libexec/",
    "/opt/",
)
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  # their names; nothing is put there
_KNOWN_PORTS = {22: "ssh", 25: "mail", 53: "dns", 80: "http", 443: "https", 853: "dns", 3128: "proxy", 9418: "git"}
#: Of a name that an agent chose: it becomes a part of a baseline, and is shown.
_LONGEST_NAME = 64
#: Ranges that are not the Internet.
_LINK_LOCAL = ipaddress.ip_network("169.254.0.0/16")


class Places:
    """What paths are to one session. ``workspace`` and ``home`` are true paths, empty if not known."""

    def __init__(self, workspace: str = "", home: str = "") -> None:
        self.workspace = workspace.rstrip("/")
        self.home = home.rstrip("/")
        self._known: dict[str, str] = {}

    def of(self, path: str) -> str:
        """The class of a path, such as `workspace/git`, `home/keys`, `etc/login`, `tmp`."""
        found = self._known.get(path)
        if found is None:
            if len(self._known) > 4096:  # a session that meets more than that repeats little
                self._known.clear()
            found = self._known[path] = self._find(path)
        return found

    def program(self, path: str) -> str:
        """A program: its name without version where the system installs programs, else its place."""
        if path.startswith(_PROGRAMS):
            return bare_name(path.rpartition("/")[2])
        place = self.of(path)
        if place.endswith("/deps"):
            return f"{place}:{bare_name(path.rpartition('/')[2])}"
        return place

    def _find(self, path: str) -> str:
        if path.startswith("@"):
            return "abstract"
        in_home = bool(self.home) and _below(path, self.home)
        # who works in the whole home has its keys there all the same
        in_project = bool(self.workspace) and not (in_home and len(self.home) >= len(self.workspace))
        if in_project and _below(path, self.workspace):
            return self._project(path[len(self.workspace) + 1 :])
        return self._home(path[len(self.home) + 1 :]) if in_home else self._system(path)

    @staticmethod
    def _project(rest: str) -> str:
        parts = rest.split("/")
        if parts[0] == ".git":
            return "workspace/git-hooks" if parts[1:2] == ["hooks"] or rest == ".git/config" else "workspace/git"
        if _SECRET.fullmatch(parts[-1]) and not _SOURCE.fullmatch(parts[-1]):
            return "workspace/secret"
        return next((f"workspace/{_IN_PROJECT[p]}" for p in parts[:-1] if p in _IN_PROJECT), "workspace")

    @staticmethod
    def _home(rest: str) -> str:
        parts = rest.split("/")
        name = parts[-1]
        if parts[0] in _KEYS:
            return "home/keys"
        if _STARTUP.fullmatch(rest) or (parts[0] == ".config" and parts[1:2] and parts[1] in _AUTOSTART):
            return "home/startup"
        if _HISTORY.fullmatch(rest):
            return "home/history"
        if parts[0] not in (".cache", *(k for k, v in _IN_HOME.items() if v == "deps")):
            if _SECRET.fullmatch(name) and not _SOURCE.fullmatch(name):
                return "home/secret"
            if any(p in ("google-chrome", "chromium", ".mozilla", "BraveSoftware", "keyrings") for p in parts):
                return "home/secret"
        return f"home/{_IN_HOME[parts[0]]}" if parts[0] in _IN_HOME else "home"

    @staticmethod
    def _system(path: str) -> str:
        for test, name in ((_ETC_KEYS, "etc/keys"), (_ETC_START, "etc/startup"), (_ETC_LOGIN, "etc/login")):
            if test.fullmatch(path):
                return name
        if any(_below(path, p) for p in _TEMPORARY):
            return "tmp"
        if path.startswith(("/home/", "/root/")) or path == "/root":
            return "other-home/keys" if any(f"/{k}" in path for k in _KEYS) else "other-home"
        if path.startswith("/proc/"):
            if _PROC_PRIVATE.fullmatch(path):
                return "proc/private"
            return "proc/process" if _PROC_OWN.fullmatch(path) else "proc"
        if any(_below(path, p) for p in _RUNTIME):
            return "system"
        if path.startswith(("/usr/bin/", "/bin/", "/usr/sbin/", "/sbin/", "/usr/local/bin/")):
            return "programs"
        top, _, rest = path[1:].partition("/")
        if top in ("var", "run"):
            return f"{top}/{_name(rest.partition('/')[0])}" if "/" in rest else top
        return top if top in ("etc", "dev", "sys", "boot", "opt", "srv", "mnt", "media", "usr") else "elsewhere"


def _name(text: str) -> str:
    """Fit to be kept and shown: broken bytes and control characters are in no baseline, and none is endless."""
    return clean(text)[:_LONGEST_NAME]


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


@lru_cache(4096)
def bare_name(name: str) -> str:
    """A program's name without version: `python3.11` is `python`."""
    return _name(_TAIL.sub("", name.removesuffix(".exe")) or name)


@lru_cache(4096)
def host_class(address: str, name: str = "") -> tuple[str, str]:
    """(class of the host with the class of the port, the host by name if known) of ``address:port``.

    A known name stands for itself without its first labels (`files.pythonhosted.org` is `pythonhosted.org`).
    """
    text, _, port_text = address.rpartition(":")
    port = int(port_text) if port_text.isdecimal() else 0
    port_class = _KNOWN_PORTS.get(port, "low" if port < 1024 else "high")
    if name:
        return f"named:{port_class}", _name(".".join(name.rstrip(".").lower().split(".")[-2:]))
    try:
        ip = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return f"unknown:{port_class}", ""
    if ip.is_loopback:
        kind = "loopback"
    elif ip.version == 4 and ip in _LINK_LOCAL:
        kind = "metadata" if str(ip) == "169.254.169.254" else "link"
    else:
        kind = "private" if ip.is_private else "public"
    return f"{kind}:{port_class}", ""
