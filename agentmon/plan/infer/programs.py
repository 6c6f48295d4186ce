# SPDX-License-Identifier: Apache-2.0
"""What common programs do with their arguments, by their manuals: which operands they read, write, or connect to.

What is not in these tables is not known, and said so. A program that is known changes nothing and reaches nobody but
what is said here, so its step can be closed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agentmon.plan.infer.words import Word, literal
from agentmon.policy.hosts import parse_host
from agentmon.policy.rules import Place


def words_of(words: str) -> frozenset[str]:
    """A set of words, written as a text."""
    return frozenset(words.split())


#: They read their operands and standard input, and write nothing but standard output.
READERS: Final = words_of("""
    cat head tail grep egrep fgrep zcat zgrep wc cut tr diff cmp comm paste ls stat file du df date which whoami
    id uname hostname basename dirname realpath readlink sleep seq printenv md5sum sha1sum sha256sum sha512sum
    cksum base64 base32 xxd od strings hexdump nl tac rev fold fmt column jq tree ps free uptime nproc
    expr yes true false test [ join tsort groups arch locale getconf tput clear rg ag nm objdump readelf size
    ldd lscpu lsblk pgrep pidof env_print factor numfmt shuf pr expand unexpand logname tty users who w last
    dmesg getent whereis factor cal bc dc iconv
""")

#: They start the program that their operands name. Options that take a value, of each.
WRAPPERS: Final[dict[str, frozenset[str]]] = {
    "sudo": frozenset(("-u", "-g", "-C", "-D", "-h", "-p", "-r", "-t", "-T", "-U", "--user", "--group")),
    "env": frozenset(("-u", "-C", "-S", "--unset", "--chdir")),
    "timeout": frozenset(("-k", "-s", "--kill-after", "--signal")),
    "nohup": frozenset(),
    "nice": frozenset(("-n", "--adjustment")),
    "ionice": frozenset(("-c", "-n", "-p")),
    "stdbuf": frozenset(("-i", "-o", "-e")),
    "setsid": frozenset(),
    "xargs": frozenset(("-n", "-P", "-I", "-L", "-d", "-s", "-a", "-E", "--max-args", "--max-procs", "--delimiter")),
    "strace": frozenset(("-e", "-o", "-p", "-s", "-u")),
    "time": frozenset(("-f", "-o")),
    "doas": frozenset(("-u", "-C")),
}

#: Their first operands are not files: `chmod 755 f`.
_FIRST: Final = {
    **dict.fromkeys(words_of("chmod chown chgrp grep egrep fgrep rg sed jq"), 1),
    **dict.fromkeys(
        words_of("tr date sleep seq expr basename dirname which id uname hostname test [ getent bc cal"), 9
    ),
}

#: Options whose value is the next word.
_VALUES: Final = {
    "head": "-n -c", "tail": "-n -c", "cut": "-d -f -c -b", "grep": "-e -f -m -A -B -C --include --exclude",
    "ls": "-I -w", "sort": "-k -t -o -S -T", "mkdir": "-m --mode", "touch": "-d -t -r", "cp": "-t -S",
    "mv": "-t -S", "install": "-m -o -g -t", "truncate": "-s -r", "ln": "-t -S", "du": "-d",
    "tree": "-L -I -P", "nl": "-b -w -s", "split": "-b -l -n -a", "rg": "-e -g -t -A -B -C -m",
    "od": "-t -N -j -A", "xxd": "-l -s -c", "fold": "-w", "base64": "-w", "sed": "-e -f", "diff": "-U -x",
    "stat": "-c -f", "date": "-d -r", "df": "-t", "column": "-t -s", "uniq": "-f -s -w",
}  # fmt: skip

_URL: Final = re.compile(
    r"(https?|ftp|git|ssh)://(?:[^/@\s]*@)?(\[[^\]]*\]|[^/:\s?#*]+)(?::([0-9]+))?",
    re.IGNORECASE,
)
_SSH: Final = re.compile(r"(?:[A-Za-z0-9_.-]+@)([A-Za-z0-9.-]+):(?!//)")
_PORTS: Final = {"https": 443, "http": 80, "ftp": 21, "git": 9418, "ssh": 22}
#: They talk to the network; to whom, is in a URL among their arguments, or in their configuration.
NETWORKERS: Final = words_of("""
    curl wget ssh scp sftp rsync ftp nc ncat telnet ping dig host nslookup apt apt-get yum dnf apk pip pip3 npm
    npx yarn pnpm gem cargo go composer mvn gradle conda docker podman kubectl helm aws gcloud az gh
""")
_GIT_LOCAL: Final = words_of("""
    status log diff show branch rev-parse ls-files blame describe grep config remote tag cat-file shortlog
    reflog merge-base name-rev check-ignore ls-tree rev-list for-each-ref
""")
_GIT_NETWORK: Final = words_of("""
    clone fetch pull push ls-remote submodule
""")


@dataclass(slots=True)
class Effects:
    """What a command does. ``files`` and ``execs``: whether all of it is known."""

    reads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    programs: list[str] = field(default_factory=list)  # that it starts
    files: bool = False
    execs: bool = False
    network: bool = True  # whether it may talk to anybody
    holes: list[str] = field(default_factory=list)


Resolver = Callable[[Word], str | None]


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    words: Sequence[Word]
    resolve: Resolver
    cwd: str | None
    found: Effects


def effects(name: str, words: Sequence[Word], resolve: Resolver, cwd: str | None) -> Effects:
    """What a program of that name does with these arguments."""
    found = Effects()
    reach(words, found)
    special = _SPECIAL.get(name)
    if special is not None:
        special(_Call(name, words, resolve, cwd, found))
    elif name in READERS:
        found.files = found.execs = True
        found.network = False
        found.reads = _paths(operands(name, words), resolve)
    elif name in NETWORKERS:
        _networker(name, found)
        found.holes.append(f"which files `{name}` changes")
        found.holes.append(f"which programs `{name}` starts")
    else:
        found.reads = _paths([w for w in words if not w.begins.startswith("-")], resolve)
        found.network = bool(found.hosts or found.addresses)
        found.holes.append(f"which files `{name}` changes")
        found.holes.append(f"which programs `{name}` starts")
        if not found.network:
            found.holes.append(f"whether `{name}` needs the network")
    return found


def operands(name: str, words: Sequence[Word]) -> list[Word]:
    """The arguments that are not options, their values, or what comes before files."""
    valued = _VALUES.get(name, "").split()
    found: list[Word] = []
    skip = only = False
    pattern_given = False
    for word in words:
        text = word.begins
        if skip:
            skip = False
        elif only or not text.startswith("-") or text == "-":
            found.append(word)
        elif word.literal == "--":
            only = True
        else:
            skip = word.literal in valued
            pattern_given |= name in ("grep", "egrep", "fgrep", "sed", "rg") and text in ("-e", "-f", "--regexp")
    first = 0 if pattern_given else _FIRST.get(name, 0)
    return found[first:]


def _paths(words: Sequence[Word], resolve: Resolver) -> list[str]:
    return list(dict.fromkeys(path for path in map(resolve, words) if path is not None))


def reach(words: Sequence[Word], found: Effects) -> None:
    """Hosts and addresses of URLs, and of `user@host:path`."""
    for word in words:
        text = word.literal
        if text is None:  # as far as it is known
            text = word.begins
            if not re.match(r"[a-z]+://[^/]+/", text):
                continue
        for form in _URL.finditer(text):
            port = int(form[3]) if form[3] else _PORTS[form[1].lower()]
            _reach(form[2], port, found)
        if ssh := _SSH.match(text):
            _reach(ssh[1], 22, found)


def _reach(host: str, port: int, found: Effects) -> None:
    host = host.lower().rstrip(".")
    if host == "localhost":
        found.addresses += [f"127.0.0.1:{port}", f"[::1]:{port}"]
        return
    if port > 0xFFFF:
        return
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        try:
            found.hosts.append(parse_host(f"{host}:{port}", Place("", 1, 1)).text)
        except ValueError:
            return  # no name: who asks finds that nobody is known
    else:
        found.addresses.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")


def _networker(name: str, found: Effects) -> None:
    found.network = True
    if not (found.hosts or found.addresses):
        found.holes.append(f"whom `{name}` talks to")
        found.network = False


def _closed(found: Effects) -> None:
    found.files = found.execs = True
    found.network = False


def _change(call: _Call, words: Sequence[Word], *, below: bool = False) -> None:
    found = call.found
    for word in words:
        path = call.resolve(word)
        if path is None:
            found.holes.append(f"which file `{shown(word)}` is")
        else:
            found.writes.append(f"{path.rstrip('/')}/**" if below and not path.endswith("**") else path)


def shown(word: Word) -> str:
    """A word for people."""
    from agentmon.plan.infer.words import Choice, Hole, Variable, Wild

    said = []
    for part in word.parts:
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, Hole):
            said.append(part.name)
        elif isinstance(part, Wild):
            said.append(part.text)
        elif isinstance(part, Choice):
            said.append("|".join(part.texts))
        elif isinstance(part, Variable):
            said.append(f"{{{part.name}}}")
    text = "".join(said)
    return text if len(text) < 60 else text[:57] + "…"


def _changer(call: _Call) -> None:
    """All of its operands: rm, mkdir, touch, tee, chmod …"""
    found, name, words = call.found, call.name, call.words
    _closed(found)
    _change(call, operands(name, words), below=name in ("rm", "mkdir", "chmod", "chown", "chgrp"))


def _copier(call: _Call) -> None:
    """The last operand, or that of -t; it may be a directory. What is moved away is changed too."""
    found, name, words = call.found, call.name, call.words
    _closed(found)
    into = [words[i + 1] for i, word in enumerate(words[:-1]) if word.literal in ("-t", "--target-directory")]
    rest = operands(name, words)
    if not into and rest:
        into, rest = rest[-1:], rest[:-1]
    found.reads = _paths(rest, call.resolve)
    _change(call, into, below=True)
    if name == "mv":
        _change(call, rest, below=True)


def _sed(call: _Call) -> None:
    found, name, words = call.found, call.name, call.words
    _closed(found)
    files = operands(name, words)
    scripts = [w for w in words if w not in files and not w.begins.startswith("-")]
    if any(re.search(r"(^|[;{/])\s*[0-9,$]*\s*[weW]( |$)|/[gpI0-9]*[we]", w.literal or "w ") for w in scripts):
        found.files = found.execs = False  # its commands w and e write, and run
        found.holes.append("what the script of `sed` writes or runs")
    in_place = any(re.match(r"-[nErsz]*i|--in-place", w.begins) for w in words)
    if in_place:
        for path in _paths(files, call.resolve):
            # a new file beside it takes its place
            directory = path.rpartition("/")[0]
            found.writes += [path, f"{directory}/sed*"] if directory else [path]
        found.holes += [f"which file `{shown(w)}` is" for w in files if call.resolve(w) is None]
    else:
        found.reads = _paths(files, call.resolve)


def _sort(call: _Call) -> None:
    found, name, words = call.found, call.name, call.words
    _closed(found)
    found.reads = _paths(operands(name, words), call.resolve)
    found.writes.append("{tmp}/sort*")
    out = [words[i + 1] for i, word in enumerate(words[:-1]) if word.literal in ("-o", "--output")]
    _change(call, out)


def _uniq(call: _Call) -> None:
    found, name, words = call.found, call.name, call.words
    _closed(found)
    files = operands(name, words)
    found.reads = _paths(files[:1], call.resolve)
    _change(call, files[1:2])


def _find(call: _Call) -> None:
    """-exec starts programs, -delete and -fprint change files."""
    found, words = call.found, call.words
    _closed(found)
    for i, word in enumerate(words):
        text = word.literal or ""
        if text in ("-exec", "-execdir", "-ok", "-okdir"):
            program = words[i + 1].literal if i + 1 < len(words) else None
            found.files = False
            if program is None:
                found.execs = False
                found.holes.append("which program `find -exec` starts")
            else:
                found.programs.append(program)
                found.holes.append(f"which files `{program}` changes")
        elif text == "-delete" or text.startswith("-fprint") or text == "-fls":
            found.files = False
            found.holes.append(f"which files `find {text}` changes")
    start = [w for w in words if not w.begins.startswith(("-", "(", "!"))][:1]
    found.reads = _paths(start, call.resolve)


def _tar(call: _Call) -> None:
    """The archive, and where it is unpacked. It starts a compressor."""
    found, cwd, words = call.found, call.cwd, call.words
    found.files = found.execs = True
    found.network = False
    found.programs += ["gzip", "bzip2", "xz", "zstd"]
    texts = [w.literal or w.begins for w in words]
    mode = "".join(t for t in texts[:1] if not t.startswith("--")) + "".join(
        t for t in texts[1:] if re.match(r"-[a-zA-Z]", t)
    )
    creates = "c" in mode or "r" in mode or "--create" in texts
    archive: list[Word] = []
    into: list[Word] = []
    rest: list[Word] = []
    skip = ""
    for i, (word, text) in enumerate(zip(words, texts, strict=True)):
        if skip:
            (archive if skip == "f" else into if skip == "C" else []).append(word)
            skip = ""
        elif text.startswith("--file="):
            archive.append(_after(word, "--file="))
        elif text.startswith("--directory="):
            into.append(_after(word, "--directory="))
        elif text.startswith("--"):
            skip = {"--file": "f", "--directory": "C", "--exclude": "x"}.get(text, "")
        elif text.startswith("-") or i == 0:
            skip = {"f": "f", "C": "C"}.get(text[-1:], "")
        else:
            rest.append(word)
    archive = [word for word in archive if word.literal != "-"]  # a stream
    if creates:
        _change(call, archive)
        found.reads = _paths(rest, call.resolve)
        return
    found.reads = _paths(archive, call.resolve)
    if "t" in mode and "x" not in mode:
        return
    if into:
        _change(call, into, below=True)
    elif cwd:
        found.writes.append(f"{cwd}/**")
    else:
        found.files = False
        found.holes.append("where `tar` unpacks")


def _after(word: Word, prefix: str) -> Word:
    return Word((word.begins[len(prefix) :], *word.parts[1:]), word.many)


def _unzip(call: _Call) -> None:
    found, cwd, words = call.found, call.cwd, call.words
    _closed(found)
    into = [words[i + 1] for i, word in enumerate(words[:-1]) if word.literal == "-d"]
    files = [w for w in words if not w.begins.startswith("-") and w not in into]
    found.reads = _paths(files[:1], call.resolve)
    if any(w.literal in ("-l", "-p", "-t", "-v") for w in words):
        return
    if into:
        _change(call, into, below=True)
    elif cwd:
        found.writes.append(f"{cwd}/**")
    else:
        found.holes.append("where `unzip` unpacks")


def _zip(call: _Call) -> None:
    found, name, words = call.found, call.name, call.words
    _closed(found)
    files = operands(name, words)
    found.reads = _paths(files[1:], call.resolve)
    for path in _paths(files[:1], call.resolve):
        found.writes += [path, f"{path}.zip", f"{path.rpartition('/')[0]}/zi*"]


def _packer(call: _Call) -> None:
    """gzip, xz … : a file gives way to one with another ending."""
    found, name, words = call.found, call.name, call.words
    _closed(found)
    for path in _paths(operands(name, words), call.resolve):
        stem = re.sub(r"\.(gz|bz2|xz|zst|Z)$", "", path)
        found.reads.append(path)
        if not any(re.match(r"-[a-z0-9]*c|--stdout", w.begins) for w in words):
            found.writes += [path, stem if stem != path else f"{path}.*"]


def _dd(call: _Call) -> None:
    found, words = call.found, call.words
    _closed(found)
    for word in words:
        if word.begins.startswith("if="):
            found.reads += _paths([_after(word, "if=")], call.resolve)
        elif word.begins.startswith("of="):
            _change(call, [_after(word, "of=")])


def _fetch(call: _Call) -> None:
    """curl, wget: hosts of URLs, and the file that is named or like the end of the URL."""
    found, cwd, name, words = call.found, call.cwd, call.name, call.words
    _networker(name, found)
    found.files = found.execs = True
    texts = [w.literal or w.begins for w in words]
    options = ("-o", "--output") if name == "curl" else ("-O", "--output-document")
    out = [words[i + 1] for i, text in enumerate(texts[:-1])
           if text in options or (re.fullmatch(r"-[a-zA-Z]+", text) and text.endswith(options[0][1:]))]  # fmt: skip
    kept = any(text in ("-O", "--remote-name") or re.fullmatch(r"-[a-zA-Z]*O[a-zA-Z]*", text) for text in texts)
    if out:
        _change(call, [w for w in out if w.literal != "-"])
    elif (name == "curl" and kept) or (name == "wget" and "--spider" not in texts):
        ends = [text.split("?")[0].rpartition("/")[2] for text in texts if "://" in text]
        if cwd and ends and all(ends):
            found.writes += [f"{cwd}/{literal(end)}" for end in ends]
        else:
            found.files = False
            found.holes.append(f"which file `{name}` writes")
    if any(text.startswith(("-x", "--proxy", "-K", "--config")) for text in texts):
        found.holes.append(f"what the configuration or proxy of `{name}` is")
    if (
        any(text in ("-L", "--location") or re.fullmatch(r"-[a-zA-Z]*L[a-zA-Z]*", text) for text in texts)
        or name == "wget"
    ):
        found.holes.append("whether the host sends it on to another")


def _git(call: _Call) -> None:
    found, cwd, words = call.found, call.cwd, call.words
    plain = operands("git", words)
    sub = plain[0].literal if plain else None
    here = f"{cwd}/**" if cwd else "{workspace}/**"
    for i, word in enumerate(words[:-1]):
        if word.literal == "-C":
            path = call.resolve(words[i + 1])
            here = f"{path}/**" if path else here
            sub = next((w.literal for w in words[i + 2 :] if not w.begins.startswith("-")), None)
    found.holes.append("which hooks, pager or helpers `git` starts")
    found.files = True
    if sub in _GIT_LOCAL:
        found.network = False
        found.writes.append(
            here.removesuffix("/**") + "/.git/**" if not here.endswith("{workspace}/**") else "{workspace}/**/.git/**"
        )
        return
    if sub == "clone":
        into = plain[2:3]
        url = plain[1].literal if len(plain) > 1 else None
        if into:
            _change(call, into, below=True)
        elif url and cwd:
            name = re.sub(r"[.]git/?$", "", url.rstrip("/")).rpartition("/")[2]
            found.writes.append(f"{cwd}/{literal(name)}/**")
        else:
            found.files = False
            found.holes.append("where `git clone` puts it")
    elif sub is None:
        found.files = False
        found.holes.append("which command of `git` it is")
    else:
        found.writes.append(here)
        if cwd and cwd != "{workspace}":
            found.writes.append("{workspace}/**/.git/**")  # the repository may begin further up
    if sub in _GIT_NETWORK:
        _networker(f"git {sub}", found)
    else:
        found.network = False


_SPECIAL: Final[dict[str, Callable[[_Call], None]]] = {
    **dict.fromkeys(words_of("rm rmdir unlink mkdir touch tee truncate chmod chown chgrp mkfifo"), _changer),
    **dict.fromkeys(("cp", "mv", "ln", "install"), _copier),
    **dict.fromkeys(("gzip", "gunzip", "bzip2", "bunzip2", "xz", "unxz", "zstd", "unzstd"), _packer),
    "sed": _sed, "sort": _sort, "uniq": _uniq, "find": _find, "tar": _tar, "unzip": _unzip, "zip": _zip, "dd": _dd,
    "curl": _fetch, "wget": _fetch, "git": _git,
}  # fmt: skip
