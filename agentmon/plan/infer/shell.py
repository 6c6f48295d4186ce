# SPDX-License-Identifier: Apache-2.0
"""Steps from shell text: each program that it starts, in which order, with which files and hosts.

It follows the text as a shell would, as far as that is known before it runs: constant variables, `cd`, functions, loops
over constants. Programs become steps; what the shell does itself (builtins, redirections) is done outside of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from agentmon.plan.infer.commands import Commands
from agentmon.plan.infer.draft import Drafts
from agentmon.plan.infer.expand import State
from agentmon.plan.infer.programs import shown
from agentmon.plan.infer.syntax import Chain, Element, Node, chain, chains, parse
from agentmon.plan.infer.words import Choice, Hole, Part, Wild, Word

#: Texts that a loop goes over, to be written as alternatives.
MOST_CHOICES: Final = 32


class Shell(Commands):
    """Reads one text after the other; `drafts` has the steps of all of them.

    ``each``: whether each text has a shell of its own (True), one has them all (False), or nobody knows (None).
    ``workspace``, ``home``: how the text calls these directories, if it does.
    """

    def __init__(self, *, each: bool | None = True, workspace: str = "", home: str = "") -> None:
        super().__init__()
        named = ((workspace, "{workspace}"), (home, "{home}"))
        self.anchors = sorted(((d.rstrip("/"), a) for d, a in named if d.strip("/")), key=lambda pair: -len(pair[0]))
        self._each = each
        self._certain = True  # what comes is done whatever happens
        self._answers: set[int] = set()  # steps that are conditions: nothing after them asks for their success

    def begin(self) -> None:
        """Forget what the shell knows: the next text has one of its own."""
        self.state, self.functions = State(), {}

    def read(self, text: str, label: str) -> list[int]:
        """Steps of one text; their numbers. ``label`` says where each comes from; ``{line}`` in it is the line."""
        first = len(self.drafts.steps)
        if self._each:
            self.begin()
        self.follow(text, label)
        if self._each is None and self.state.cwd != "{workspace}":
            self.state.cwd = None  # the next may begin there, or in the workspace
        self.state.dead = False
        return list(range(first, len(self.drafts.steps)))

    def follow(self, text: str, label: str) -> None:
        """The same with what the shell knows already."""
        self.label = label
        self.source(text)

    def simple(self, words: list[Word], label: str) -> None:
        """A program with its arguments, without a shell."""
        self.label = label
        self.start(words, [], set(), 1, " ".join(map(shown, words)))

    # ---- statements

    def run(self, node: Node) -> None:
        """Follow a statement."""
        self._chain(chain(node))

    def inside(self, script: str) -> Drafts:
        """What another shell would do with a text, that is started here."""
        inner = Shell()
        inner.anchors = self.anchors
        inner.state.cwd, inner.depth = self.state.cwd, self.depth + 1
        inner.follow(script, self.label)
        return inner.drafts

    def source(self, text: str) -> None:
        """Follow the statements of a text. What cannot be parsed is a hole."""
        root = parse(text.encode("utf-8", "surrogateescape"))
        if root.has_error:
            for node in _errors(root):
                line = node.start_point[0] + 1
                said = node.text.decode("utf-8", "replace").strip().split("\n")[0][:40]
                self.hole(f"what `{said}` in {self.where(line)} means: it is no shell command, or is cut off")
                break
        self._statements(root)

    def _statements(self, node: Node) -> None:
        for statement in chains(node):
            if self.state.dead:
                return
            self._chain(statement)

    def _chain(self, statement: Chain) -> None:
        """What `&&` and `||` join. What stands behind one of them may not be done."""
        certain, outside = self._certain, dict(self.ready)
        first = len(self.drafts.steps)
        sure: tuple[State, dict[int, bool]] | None = None  # what is so even if something failed
        operators = ["", *statement.operators, ";"]
        last, settled = len(statement.pipelines) - 1, -1
        for i, pipeline in enumerate(statement.pipelines):
            after = None
            if operators[i] == "||":  # done only if something before failed
                after = self.state
                self.state = (sure[0] if sure else after).merged(after) if not after.dead else after.copy()
                self.state.dead = False
                self.ready = dict.fromkeys(self.ready, False) | outside
            self._certain = certain and sure is None and operators[i] != "||"
            needed = operators[i + 1] == "&&" or (i == last and self.state.strict)
            self._pipeline(pipeline, needed=needed and i not in statement.negated)  # `!`: goes on where that failed
            if after is not None:
                self.state = after.merged(self.state)
            if sure is None and (len(self.drafts.steps) > first or any(_may_fail(e.node) for e in pipeline)):
                sure, settled = (self.state.copy(), dict(self.ready)), i
        self._certain = certain
        # under `set -e` the shell ends where the last one fails, and not where another does
        strict = self.state.strict and settled == last and last not in statement.negated
        if sure is not None and settled != last:
            self.state = sure[0] if self.state.dead else sure[0].merged(self.state)
            self.ready = sure[1]
        self.ready = {n: needed and (strict or n < first) for n, needed in self.ready.items()}
        if statement.background:
            self.waited |= set(range(first, len(self.drafts.steps)))
            self.ready = outside

    def _pipeline(self, pipeline: Sequence[Element], *, needed: bool) -> None:
        """Commands at the same time. ``needed``: what comes next asks for success, which is that of the last one."""
        before = dict(self.ready)
        first = len(self.drafts.steps)
        if len(pipeline) == 1:
            self._element(pipeline[0], set())
            own = {n for n in self.ready if n >= first} - self._answers
            self.ready = {n: needed if n in own else known for n, known in self.ready.items()}
            return
        piped: set[int] = set()
        state = self.state
        for element in pipeline:
            self.state, self.ready = state.copy(), dict(before)  # a process of its own
            piped = self._element(element, piped) or piped
        self.state, self.ready = state, before
        if len(self.drafts.steps) > first:
            last = set(range(first, len(self.drafts.steps))) if state.pipefail else piped
            last = last if needed else set()
            self.ready = {n: n in last for n in range(first, len(self.drafts.steps))}

    def _element(self, element: Element, piped: set[int]) -> set[int]:
        """One command with its redirections; the steps that it came to. ``piped``: whose output it reads."""
        first = len(self.drafts.steps)
        node = element.node
        redirects = [each for written in element.redirects for each in self.redirects(written)]
        if node.type == "command":
            more = [each for written in element.redirects for each in _misplaced(written)]
            self.command(node, redirects, piped, [*_dropped(node, element.redirects), *more])
        elif node.type == "redirected_statement":
            pass  # `> file` alone
        else:
            self._compound(node)
        found = set(range(first, len(self.drafts.steps)))
        self.pour(redirects, found)
        return found

    def _compound(self, node: Node) -> None:
        kind = node.type
        if kind == "variable_assignment":
            self.assign(node)
        elif kind == "variable_assignments":
            for child in node.named_children:
                self.assign(child)
        elif kind == "declaration_command":
            for child in node.named_children:
                if child.type == "variable_assignment":
                    self.assign(child)
        elif kind == "unset_command":
            for child in node.named_children:
                self.state.variables[child.text.decode()] = Word(("",))
        elif kind == "function_definition":
            name = node.child_by_field_name("name")
            body = node.child_by_field_name("body")
            if name is not None and body is not None:
                self.functions[name.text.decode("utf-8", "replace")] = body
        elif kind == "subshell":
            kept = self.state.copy()
            self._statements(node)
            self.state = kept
        elif kind in ("compound_statement", "do_group", "program"):
            self._statements(node)
        elif kind == "if_statement":
            self._if(node)
        elif kind in ("for_statement", "c_style_for_statement", "while_statement"):
            self._loop(node)
        elif kind == "case_statement":
            self._case(node)
        elif kind == "test_command":
            for child in node.named_children:
                self.substitutions(child)
        elif kind in ("list", "pipeline"):
            self._chain(chain(node))
        elif kind != "ERROR":
            self.substitutions(node)

    def _if(self, node: Node) -> None:
        """The first condition is always looked at; which branch is taken is not known."""
        conditions = self._conditions(node)
        branches: list[list[Node]] = [[]]
        asked: set[int] = set()
        for child in node.named_children:
            if any(child.id == c.id for c in conditions) or child.type == "comment":
                continue
            if child.type in ("elif_clause", "else_clause"):
                branches.append(list(child.named_children))
                then = next((part.start_byte for part in child.children if part.type == "then"), 0)
                asked |= {part.id for part in child.named_children if part.start_byte < then}
            else:
                branches[-1].append(child)
        has_else = any(child.type == "else_clause" for child in node.named_children)
        self._branches(branches, certain=has_else, asked=asked)

    def _conditions(self, node: Node) -> list[Node]:
        conditions: list[Node] = node.children_by_field_name("condition")
        self._ask(child for child in conditions if child.is_named)
        return conditions

    def _ask(self, conditions: Iterable[Node]) -> None:
        """Follow them: either answer is one, so `set -e` does not count (POSIX.1-2017, 2.14, `set`)."""
        first = len(self.drafts.steps)
        strict = self.state.strict
        for child in conditions:
            self.state.strict = False
            self._chain(chain(child))
            strict |= self.state.strict
        self.state.strict = strict
        self._answers |= set(range(first, len(self.drafts.steps)))

    def _case(self, node: Node) -> None:
        value = node.child_by_field_name("value")
        if value is not None:
            self.substitutions(value)
        items = [child for child in node.named_children if child.type == "case_item"]
        bodies = []
        for item in items:
            values = {v.id for v in item.children_by_field_name("value")}
            bodies.append([child for child in item.named_children if child.id not in values])
        self._branches(bodies, certain=False)

    def _branches(self, branches: Sequence[Sequence[Node]], *, certain: bool, asked: Collection[int] = ()) -> None:
        """One of them is taken, or (not ``certain``) none. ``asked``: what of them is a condition (`elif`)."""
        start, ready, was = self.state, dict(self.ready), self._certain
        ends: list[State] = [] if certain else [start]
        self._certain = False
        for branch in branches:
            self.state, self.ready = start.copy(), dict(ready)
            for child in branch:
                if self.state.dead:
                    break
                if child.id in asked:
                    self._ask([child])
                else:
                    self._chain(chain(child))
            ends.append(self.state)
        state = ends[0].copy()
        for end in ends[1:]:
            state = state.merged(end)
        self.state, self.ready, self._certain = state, ready, was

    def _loop(self, node: Node) -> None:
        """Its steps may be repeated. What is set inside is not known there, for it changes from round to round."""
        body = node.child_by_field_name("body")
        ready, was = dict(self.ready), self._certain
        variable = node.child_by_field_name("variable")
        values: list[Word] = []
        for child in node.children_by_field_name("value"):
            if child.is_named:
                values += self.words(child)
        ready |= self.ready
        for name in _assigned(node):
            self.state.variables[name] = Word((Hole(f"${name}"),))
        if variable is not None:
            name = variable.text.decode()
            texts = [text for word in values if (text := word.literal) is not None and text.isprintable()]
            if values and len(texts) == len(values) <= MOST_CHOICES:
                self.state.variables[name] = Word((texts[0] if len(texts) == 1 else Choice(tuple(texts)),))
            elif len(values) == 1 and values[0].many and any(isinstance(p, Wild) for p in values[0].parts):
                self.state.variables[name] = Word(values[0].parts)  # one name at a time
            else:
                makers = tuple(m for word in values for hole in word.holes for m in hole.makers)
                self.state.variables[name] = Word((Hole(f"${name}", makers),))
        self.loops += 1
        start = self.state.copy()
        self._conditions(node)
        # over words that are known, its body is done for sure
        self._certain &= bool(values) and not any(word.many for word in values)
        certain = self._certain
        if body is not None:
            self._statements(body)
        self.state.dead = False
        self.state = start.merged(self.state)
        self.loops -= 1
        self.ready, self._certain = (self.ready if certain else ready), was

    def substitution(self, node: Node) -> tuple[Part, ...]:
        """The steps inside come before the one that takes their output."""
        first = len(self.drafts.steps)
        kept, ready = self.state.copy(), dict(self.ready)
        certain, self._certain = self._certain, True
        self._statements(node)
        self.state, self._certain = kept, certain
        text = " ".join(node.text.decode("utf-8", "replace").split())
        makers = tuple(range(first, len(self.drafts.steps)))
        if node.type == "process_substitution":
            self.ready = ready  # both run at the same time
        return (Hole(text if len(text) <= 40 else text[:39] + "…", makers),)


def _misplaced(redirect: Node) -> list[Node]:
    """Arguments behind a redirection (`grep > out word file`), which the parser takes for more destinations."""
    if redirect.type == "heredoc_redirect":
        inner = [each for child in redirect.children_by_field_name("redirect") for each in _misplaced(child)]
        return [*inner, *redirect.children_by_field_name("argument")]
    found: list[Node] = redirect.children_by_field_name("destination")[1:]
    return found


def _dropped(node: Node, redirects: Sequence[Node]) -> list[Word]:
    """A lone `-` before a here-document (`python3 - <<E`), of which tree-sitter-bash makes no node."""
    whole = redirects[0].parent if redirects else None
    if whole is None or not whole.start_byte <= node.end_byte <= redirects[0].start_byte:
        return []
    between = whole.text[node.end_byte - whole.start_byte : redirects[0].start_byte - whole.start_byte]
    return [Word(("-",)) for text in between.split() if text == b"-"]


def _may_fail(node: Node) -> bool:
    """Of what starts no program, what is there to fail: tests. `cd` and `export` are taken to do what they say."""
    if node.type == "command":
        name = node.child_by_field_name("name")
        return name is not None and name.text in (
            b"[",
            b"test",
            b"false",
            b"read",
            b"type",
            b"command",
            b"hash",
            b"wait",
        )
    return node.type not in ("variable_assignment", "variable_assignments", "declaration_command", "comment")


def _errors(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        each = stack.pop()
        if each.type == "ERROR" or each.is_missing:
            yield each
        else:
            stack += reversed([child for child in each.children if child.has_error or child.is_missing])


def _assigned(node: Node) -> set[str]:
    """Variables that are set somewhere below."""
    found: set[str] = set()
    stack = [node]
    while stack:
        each = stack.pop()
        if each.type == "variable_assignment":
            name = each.child_by_field_name("name")
            if name is not None:
                found.add(name.text.decode("utf-8", "replace").partition("[")[0])
        elif each.type in ("simple_expansion", "string", "raw_string"):
            continue
        stack += each.named_children
    return found
