# SPDX-License-Identifier: Apache-2.0
"""Steps from simple commands: what each program is started with, what it does, who made what it takes."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agentmon.plan.infer.draft import Draft, Drafts
from agentmon.plan.infer.expand import Expander
from agentmon.plan.infer.flow import Made
from agentmon.plan.infer.programs import READERS, WRAPPERS, Effects, effects, operands, shown, words_of
from agentmon.plan.infer.syntax import Node
from agentmon.plan.infer.words import Hole, Word, arguments, literal

SHELLS: Final = frozenset(("sh", "bash", "dash", "zsh", "ksh"))
#: They are done by the shell itself: nothing is started.
BUILTINS: Final = words_of("""
    : . [ alias bg bind break builtin caller cd compgen complete continue declare dirs disown echo enable eval
    exit export false fc fg getopts hash help history jobs kill let local logout mapfile popd printf pushd pwd
    read readarray readonly return set shift shopt source suspend test times trap true type typeset ulimit umask
    unalias unset wait exec command
""")
#: Functions that call functions, and shells in shells.
DEEPEST: Final = 8
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
WITH_COMMANDS: Final = words_of("""
    git pip pip3 npm npx yarn pnpm cargo go docker podman kubectl apt apt-get dnf yum apk make conda gem
    systemctl poetry uv helm aws gcloud az gh brew dotnet mvn gradle
""")


@dataclass(slots=True)
class Redirect:
    kind: str  # in, out, here, text, same
    word: Word | None
    where: str
    text: str | None = None


class Commands(Expander):
    """What simple commands come to: builtins change the shell's state, programs become steps."""

    def __init__(self) -> None:
        super().__init__()
        self.drafts = Drafts()
        self.ready: dict[int, bool] = {}  # steps that come before what is next; whether they must succeed
        self.waited: set[int] = set()  # started with `&`
        self.functions: dict[str, Node] = {}
        self.made = Made()
        self.depth = 0
        self.label = ""

    @abstractmethod
    def run(self, node: Node) -> None:
        """Follow a statement."""

    @abstractmethod
    def source(self, text: str) -> None:
        """Follow the statements of a text."""

    @abstractmethod
    def inside(self, script: str) -> Drafts:
        """What another shell would do with a text, that is started here."""

    def hole(self, what: str) -> None:
        """Note what is not known of all of it."""
        if what not in self.drafts.holes:
            self.drafts.holes.append(what)

    def where(self, line: int) -> str:
        """Where something comes from, for people."""
        return self.label.replace("{line}", str(line))

    def pour(self, redirects: Iterable[Redirect], steps: set[int]) -> None:
        """Files that the shell opens for others."""
        for redirect in redirects:
            if redirect.kind != "out" or redirect.word is None:
                continue
            path = self.path(redirect.word)
            if path is None:
                self.hole(f"which file `> {shown(redirect.word)}` in {redirect.where} is")
            elif not path.startswith("/dev/"):
                if self.somewhere(path):
                    self.hole(f"in which directory `> {shown(redirect.word)}` in {redirect.where} is")
                if path not in self.drafts.outside_writes:
                    self.drafts.outside_writes.append(path)
                if steps:
                    self.made.note(path, max(steps))

    def somewhere(self, path: str) -> bool:
        """Whether a path begins where nobody knows exactly."""
        cwd = self.state.cwd or ""
        return path.startswith("**/") or (cwd.endswith("/**") and path.startswith(f"{cwd}/"))

    def command(self, node: Node, redirects: list[Redirect], piped: set[int], more: Sequence[Node | Word] = ()) -> None:
        """A simple command; ``more``: its arguments behind redirections. Those of its own are added to the others."""
        name = node.child_by_field_name("name")
        line = node.start_point[0]
        if name is not None:
            line = name.start_point[0]
        for child in node.named_children:
            if child.type != "variable_assignment":
                continue
            if name is None or child.end_point[0] < name.start_point[0]:
                self.assign(child)  # on a line of its own
            else:
                self.assign(child, keep=False)  # for the program alone
        if name is None:
            return
        words = self.words(name.named_children[0] if name.named_children else name)
        for child in (*node.children_by_field_name("argument"), *more):
            words += [child] if isinstance(child, Word) else self.words(child)
        for child in node.named_children:
            if child.type == "herestring_redirect":
                redirects.append(Redirect("text", None, self.where(line + 1)))
                for inner in child.named_children:
                    self.substitutions(inner)
            elif child.type in ("file_redirect", "heredoc_redirect"):
                redirects += self.redirects(child)
        text = node.text.decode("utf-8", "replace")
        self._simple(words, redirects, piped, line + 1, " ".join(text.split()))

    def _simple(self, words: list[Word], redirects: list[Redirect], piped: set[int], line: int, text: str) -> None:
        while (
            words and words[0].literal in ("builtin", "command", "time", "exec", "coproc", "nohup") and len(words) > 1
        ):
            if words[0].literal == "nohup" or (words[1].begins.startswith("-") and words[0].literal != "time"):
                break
            words = words[1:]
            while words and words[0].literal == "-p":
                words = words[1:]
        if not words:
            return
        name = words[0].literal
        if name is not None and name in self.functions and self.depth < DEEPEST:
            kept, self.state.arguments = self.state.arguments, words[1:]
            self.depth += 1
            self.run(self.functions[name])
            self.depth -= 1
            self.state.arguments = kept
            self.state.dead = False
            return
        if name in BUILTINS:
            self._builtin(name or "", words, line)
            return
        self.start(words, redirects, piped, line, text)

    def _builtin(self, name: str, words: list[Word], line: int) -> None:
        state = self.state
        plain = [word for word in words[1:] if not word.begins.startswith("-") or word.literal == "-"]
        if name in ("cd", "pushd"):
            state.before, state.cwd = state.cwd, self._directory(plain[0] if plain else None)
        elif name == "popd":
            state.cwd = None
        elif name in ("exit", "return", "logout"):
            state.dead = True
        elif name == "set":
            texts = [word.literal or "" for word in words[1:]]
            state.strict |= any(re.match(r"-[a-z]*e", text) for text in texts) or "errexit" in texts
            state.pipefail |= "pipefail" in texts
        elif name in ("read", "mapfile", "readarray", "getopts", "printf"):
            if name != "printf" or any(word.literal == "-v" for word in words):
                for word in words[1:]:
                    if word.literal and _NAME.fullmatch(word.literal):
                        state.variables[word.literal] = Word((Hole(f"${word.literal}"),))
        elif name == "wait":
            self.ready |= dict.fromkeys(self.waited, False)
            self.waited = set()
        elif name == "eval":
            texts = [text for word in words[1:] if (text := word.literal) is not None]
            if len(texts) == len(words) - 1 and self.depth < DEEPEST:
                self.depth += 1
                self.source(" ".join(texts))
                self.depth -= 1
            else:
                self.hole(f"what `eval` in {self.where(line)} runs")
        elif name in (".", "source"):
            self.hole(f"what `{shown(plain[0]) if plain else name}` in {self.where(line)} does, which is read there")
            state.variables = {key: Word((Hole(f"${key}"),)) for key in state.variables}
        elif name in ("trap", "alias"):
            self.hole(f"what `{name}` in {self.where(line)} leads to")
        elif name in ("export", "declare", "local", "readonly", "typeset"):
            for word in words[1:]:
                key, equals, value = word.begins.partition("=")
                if equals:
                    state.variables[key] = Word((value, *word.parts[1:]))

    def _directory(self, word: Word | None) -> str | None:
        if word is None:
            return "{home}"
        if word.literal == "-":
            return self.state.before
        path = self.path(word)
        if path is None or "*" in path:
            return None
        return path

    def start(self, words: list[Word], redirects: list[Redirect], piped: set[int], line: int, text: str) -> None:
        """A program starts: a step."""
        where = self.where(line)
        exe = self._exe(words[0])
        if exe is None:
            self.hole(f"which program `{shown(words[0])}` in {where} is: no step is made of it")
            return
        name = exe.rpartition("/")[2].replace("\\", "")
        sub = next((w.literal for w in words[1:] if w.literal and not w.begins.startswith("-")), None)
        short = f"{name}-{sub}" if name in WITH_COMMANDS and sub and re.fullmatch(r"[a-z][a-z-]*", sub) else name
        draft = Draft(short, [((exe,), arguments(words[1:]))])
        draft.told.append(f"{where}: {text if len(text) <= 100 else text[:99] + '…'}")
        draft.repeat = bool(self.loops)
        draft.needs = {n for n, needed in self.ready.items() if needed}
        draft.after = set(self.ready) - draft.needs
        done = self._effects(name, words[1:], redirects)
        self._close(draft, done)
        for hole in dict.fromkeys(h for word in words[1:] for h in word.holes):
            draft.holes.append(f"what `{hole.name}` is")
            draft.data += [(maker, hole.name) for maker in hole.makers]
        for word in words[1:]:
            if word.many and not word.holes:
                draft.holes.append(f"which names `{shown(word)}` stands for")
            if word.cut:
                draft.holes.append(f"how the argument that begins with `{shown(word)}` goes on")
        self._flow(draft, redirects, piped)
        number = len(self.drafts.steps)
        self.drafts.steps.append(draft)
        for path in draft.writes:
            self.made.note(path, number)
        self.ready = {number: False}

    def _exe(self, word: Word) -> str | None:
        """A pattern for the file of a program."""
        text = word.literal
        if text is not None and "/" not in text:
            return f"**/{literal(text)}" if text and text.isprintable() else None
        path = self.path(word)
        if path is None or word.many:
            return None
        home = path.startswith(("{workspace}", "{home}", "/", "**/"))
        return path if home and not path.endswith("/**") else None

    def _effects(self, name: str, words: list[Word], redirects: list[Redirect]) -> Effects:
        if name in WRAPPERS:
            return self._wrapped(name, words, redirects)
        if name in SHELLS:
            return self._inner_shell(name, words, redirects)
        cwd = self.state.cwd
        done = effects(name, words, self.path, None if cwd and cwd.endswith("/**") else cwd)
        if any(map(self.somewhere, done.writes)):
            done.holes.append(f"in which directory `{name}` is started")
        if name == "awk" or name in ("gawk", "mawk"):
            done.holes = [f"which files `{name}` changes, and what it runs, is in its script"]
        return done

    def _wrapped(self, name: str, words: list[Word], redirects: list[Redirect]) -> Effects:
        """A program that starts the one that its operands name."""
        valued = WRAPPERS[name]
        i = 0
        positional = 1 if name == "timeout" else 0
        while i < len(words):
            text = words[i].begins
            if text.startswith("-") and text != "-":
                i += 2 if words[i].literal in valued else 1
            elif name in ("env", "sudo") and re.match(r"[A-Za-z_][A-Za-z0-9_]*=", text):
                i += 1
            elif positional:
                positional -= 1
                i += 1
            else:
                break
        rest = words[i:]
        program = rest[0].literal if rest else None
        if rest and program is None:
            found = Effects(network=False)
            found.holes.append(f"which program `{name}` starts")
            return found
        if program is None:
            return effects("env" if name == "env" else "true", [], lambda _word: None, None)
        inner = self._effects(program.rpartition("/")[2], rest[1:], redirects)
        inner.programs = [program, *inner.programs]
        if name == "sudo":
            inner.holes.append("`sudo` gains rights, which is `setid` in a policy")
        if name == "xargs":
            inner.holes.append("which arguments `xargs` reads")
            if program not in READERS:
                inner.files = False
                inner.holes.append(f"which files `{program}` changes")
        return inner

    def _inner_shell(self, name: str, words: list[Word], redirects: list[Redirect]) -> Effects:
        """A shell as a step of its own: what it does is done in that step."""
        texts = [word.literal for word in words]
        script: str | None = None
        flag = next((i for i, t in enumerate(texts) if t and re.fullmatch(r"-[a-z]*c", t)), None)
        if flag is not None and flag + 1 < len(texts):
            script = texts[flag + 1]
        elif not operands(name, words):
            script = next((r.text for r in redirects if r.kind == "here"), None)
        found = Effects(network=False)
        if script is None or self.depth >= DEEPEST:
            known = operands(name, words)
            found.holes.append(f"what `{shown(known[0]) if known else name}` does, which `{name}` runs")
            found.holes += [f"which files `{name}` changes", f"which programs `{name}` starts"]
            return found
        inner = self.inside(script)
        steps = inner.steps
        found.files = all(step.files_known for step in steps) and not inner.holes
        found.execs = all(step.execs_known for step in steps) and not inner.holes
        found.network = any(not step.no_network for step in steps)
        found.holes = list(inner.holes)
        found.writes = list(inner.outside_writes)
        for step in steps:
            found.reads += step.reads
            found.writes += step.writes
            found.hosts += step.hosts
            found.addresses += step.addresses
            found.holes += step.holes
            found.programs += [exe for exes, _ in step.ways for exe in exes] + step.execs
        return found

    def _close(self, draft: Draft, done: Effects) -> None:
        draft.reads = list(dict.fromkeys(done.reads))
        draft.writes = list(dict.fromkeys(path for path in done.writes if not path.startswith("/dev/")))
        draft.hosts = list(dict.fromkeys(done.hosts))
        draft.addresses = list(dict.fromkeys(done.addresses))
        draft.execs = [p if "/" in p else f"**/{literal(p)}" for p in dict.fromkeys(done.programs)]
        draft.files_known, draft.execs_known = done.files, done.execs
        draft.no_exec = done.execs and not done.programs
        draft.no_network = not done.network
        draft.holes += list(dict.fromkeys(done.holes))

    def _flow(self, draft: Draft, redirects: Iterable[Redirect], piped: set[int]) -> None:
        """Who made what the step takes."""
        for number in sorted(piped):
            draft.data.append((number, "its output"))
        reads = list(draft.reads)
        for redirect in redirects:
            if redirect.kind == "in" and redirect.word is not None:
                path = self.path(redirect.word)
                reads += [path] if path else []
        for path in [*reads, draft.ways[0][0][0]]:
            draft.data += [(number, path) for number in self.made.makers(path)]
        draft.data = list(dict.fromkeys(draft.data))

    def redirects(self, node: Node) -> list[Redirect]:
        """A redirection, and what stands between a here-document's word and its text."""
        return [self.redirect(node), *(self.redirect(each) for each in node.children_by_field_name("redirect"))]

    def redirect(self, node: Node) -> Redirect:
        where = self.where(node.start_point[0] + 1)
        if node.type == "heredoc_redirect":
            body = next((c for c in node.children if c.type == "heredoc_body"), None)
            text: str | None = ""
            if body is not None:
                text = body.text.decode("utf-8", "replace")
                if any(c.type != "heredoc_content" for c in body.named_children):
                    self.substitutions(body)
                    text = None
            return Redirect("here", None, where, text)
        if node.type == "herestring_redirect":
            for inner_node in node.named_children:
                self.substitutions(inner_node)
            return Redirect("text", None, where)
        operator = next((c.type for c in node.children if not c.is_named and c.type != "file_descriptor"), ">")
        destinations = node.children_by_field_name("destination")
        words = self.words(destinations[0]) if destinations else []
        word = words[0] if words else None
        if operator in ("<&", ">&", "<&-", ">&-") and word is not None and re.fullmatch(r"[0-9-]+", word.literal or ""):
            return Redirect("same", None, where)
        kind = "in" if operator.startswith("<") else "out"
        return Redirect(kind, word, where)
