# SPDX-License-Identifier: Apache-2.0
"""Plans from shell text: steps, order, files, what is not known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentmon.plan.infer.draft import Draft
from agentmon.plan.infer.shell import Shell
from agentmon.plan.infer.write import to_yaml
from agentmon.plan.load import load_text
from agentmon.plan.plan import Plan


def infer(text: str) -> list[Draft]:
    shell = Shell()
    shell.read(text, "line {line}")
    plan_of(shell)
    return shell.drafts.steps


def plan_of(shell: Shell) -> Plan | None:
    """What is written must be a plan."""
    return load_text(to_yaml(shell.drafts, name="p", source="a test"), "p.yaml") if shell.drafts.steps else None


def only(text: str) -> Draft:
    (step,) = infer(text)
    return step


def argv(step: Draft) -> tuple[str, ...]:
    (way,) = step.ways
    assert way[1] is not None
    return way[1]


def holes(text: str) -> list[str]:
    shell = Shell()
    shell.read(text, "line {line}")
    return shell.drafts.holes


# ---- words


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("x a 'b c' \"d e\" f\\ g", ("a", "b c", "d e", "f g")),
        ("x - <<E\n1\nE", ("-",)),
        ("cd . && x - <<E\n1\nE", ("-",)),
        ("x a - \\\n > o <<E -\n1\nE", ("a", "-", "-")),
        ('V=1.2; x "v$V" ${V}x $V', ("v1.2", "1.2x", "1.2")),
        ("V='a b'; x $V \"$V\"", ("a", "b", "a b")),
        ("V=a; V+=b; x $V", ("ab",)),
        ('x "$UNSET" ${UNSET}y', ("*", "**")),
        ("x $UNSET", ("**",)),
        ('x out-"$(date)".txt', ("out-*.txt",)),
        ("x *.c a?b", ("**",)),
        ("x f.{a,b}", ("f.a", "f.b")),
        ("x {1..3}", ("1", "2", "3")),
        ("x '*' \\[ '{a}'", ("\\*", "\\[", "\\{a\\}")),
        ("x $'a\\tb'", ("a\tb",)),
        ('x "a\\"b\\$c"', ('a"b$c',)),
        ('x "a b $UNSET c"', ("a b * c",)),
        ("x -", ("-",)),
        ('x ~/a "$HOME/b"', ("{home}/a", "{home}/b")),
        ("x --p=~/a a~b", ("--p=~/a", "a~b")),
        ("x > out a b 2>&1", ("a", "b")),
        ("x <<E > out b\nE\n", ("b",)),
        ("x $((1+2))", ("*",)),
        ("for i in 1 2; do x n$i; done", ("n{1,2}",)),
        ("for i in 1; do x $i; done", ("1",)),
        ('f() { x "$1" -- "$2"; }; f a b', ("a", "--", "b")),
        ('if a; then V=1; else V=2; fi; x "$V"', ("*",)),
        ("V=1; (V=2); x $V", ("1",)),
        ('V=1; while read l; do V=2; x "$V"; done', ("*",)),
        ('read V; x "$V"', ("*",)),
        ("export V=3; x $V", ("3",)),
        ("eval 'x a'", ("a",)),
        ("V=1\nW=2\nx $V$W", ("12",)),
    ],
)  # fmt: skip
def test_arguments(text: str, arguments: tuple[str, ...]) -> None:
    step = next(step for step in infer(text) if step.name == "x")
    assert argv(step) == arguments


def test_a_long_argument_is_known_by_its_beginning() -> None:
    step = only("python3 -c 'import os\nprint(1)\n'")
    assert argv(step) == ("-c", "import os\nprint(1)\n")
    step = only(f"python3 -c 'import os\n{'#' * 500}'")
    assert argv(step)[1].startswith("import os\n###")
    assert argv(step)[1].endswith("#*")
    assert any(hole.startswith("how the argument that begins with `import os") for hole in step.holes)


def test_what_a_word_is_not_known_for_is_said() -> None:
    step = only('x "$TARGET"')
    assert "what `$TARGET` is" in step.holes
    assert "which names `*.c` stands for" in only("x *.c").holes


@pytest.mark.parametrize(
    ("text", "exe"),
    [
        ("make", "**/make"),
        ("./run.sh", "{workspace}/run.sh"),
        ("cd sub && ../run.sh", "{workspace}/run.sh"),
        ("/usr/bin/env", "/usr/bin/env"),
        ("~/bin/x", "{home}/bin/x"),
        ('"$VENV/bin/python" x', "**/bin/python"),
        ("exec make", "**/make"),
        ("command make", "**/make"),
        ("time make", "**/make"),
        ("FOO=1 make", "**/make"),
    ],
)  # fmt: skip
def test_programs(text: str, exe: str) -> None:
    assert only(text).ways[0][0] == (exe,)


def test_a_program_that_is_not_known_is_no_step() -> None:
    assert infer("$TOOL x") == []
    assert holes("$TOOL x") == ["which program `$TOOL` in line 1 is: no step is made of it"]


def test_builtins_are_no_steps() -> None:
    assert infer("cd /x; echo a; export B=1; [ -f a ]; [[ -f b ]]; printf x; true; set -e; :; ((i++)); let a=1") == []


# ---- order


def order(text: str) -> dict[str, tuple[set[str], set[str]]]:
    """By step: those that must be done, those that must have ended."""
    steps = infer(text)
    return {s.name: ({steps[n].name for n in s.needs}, {steps[n].name for n in s.after}) for s in steps}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a; b; c", {"a": ("", ""), "b": ("", "a"), "c": ("", "b")}),
        ("a\nb", {"a": ("", ""), "b": ("", "a")}),
        ("set -e\na\nb", {"a": ("", ""), "b": ("a", "")}),
        ("a && b && c", {"a": ("", ""), "b": ("a", ""), "c": ("b", "")}),
        ("set -e\na | b; c", {"a": ("", ""), "b": ("", ""), "c": ("b", "a")}),
        ("set -eo pipefail\na | b; c", {"a": ("", ""), "b": ("", ""), "c": ("ab", "")}),
        ("set -e\ncd x && a; c", {"a": ("", ""), "c": ("a", "")}),
        ("set -e\na && b; c", {"a": ("", ""), "b": ("a", ""), "c": ("", "a")}),
        ("set -e\nif a; then b; fi; c", {"a": ("", ""), "b": ("", "a"), "c": ("", "a")}),
        ("set -e\nif a; then :; elif b; then c; fi", {"a": ("", ""), "b": ("", "a"), "c": ("", "b")}),
        ("set -e\nwhile a; do b; done; c", {"a": ("", ""), "b": ("", "a"), "c": ("", "")}),
        ("set -e\nif set -e; a; then b; c; fi", {"a": ("", ""), "b": ("", "a"), "c": ("b", "")}),
        ("set -e\nif a && b; then c; fi && d", {"a": ("", ""), "b": ("a", ""), "c": ("", "a"), "d": ("", "a")}),
        ("set -e\n! a; b", {"a": ("", ""), "b": ("", "a")}),
        ("! a && b", {"a": ("", ""), "b": ("", "a")}),
        ("! a | b && c", {"a": ("", ""), "b": ("", ""), "c": ("", "ab")}),
        ("a && b; c", {"a": ("", ""), "b": ("a", ""), "c": ("", "a")}),  # b may never be run
        ("a || b; c", {"a": ("", ""), "b": ("", "a"), "c": ("", "a")}),
        ("cd x && a; b", {"a": ("", ""), "b": ("", "a")}),  # cd is taken to work
        ("[ -f x ] && a; b", {"a": ("", ""), "b": ("", "")}),
        ("a | b | c; d", {"a": ("", ""), "b": ("", ""), "c": ("", ""), "d": ("", "abc")}),
        ("a | b && c", {"a": ("", ""), "b": ("", ""), "c": ("b", "a")}),
        ("a && b 2>&1 | c; d", {"a": ("", ""), "b": ("a", ""), "c": ("a", ""), "d": ("", "a")}),
        ("a & b; wait; c", {"a": ("", ""), "b": ("", ""), "c": ("", "ab")}),
        ("if a; then b; else c; fi; d", {"a": ("", ""), "b": ("", "a"), "c": ("", "a"), "d": ("", "a")}),
        ("while a; do b; done; c", {"a": ("", ""), "b": ("", "a"), "c": ("", "")}),
        ("for i in 1 2; do b; done; c", {"b": ("", ""), "c": ("", "b")}),
        ("case $x in y) a;; z) b;; esac; c", {"a": ("", ""), "b": ("", ""), "c": ("", "")}),
        ("a $(b); c", {"b": ("", ""), "a": ("", "b"), "c": ("", "a")}),
        ("V=$(b); a $V", {"b": ("", ""), "a": ("", "b")}),
        ("a <(b)", {"b": ("", ""), "a": ("", "")}),
        ("(a; b); c", {"a": ("", ""), "b": ("", "a"), "c": ("", "b")}),
        ("f() { a; b; }; f; c", {"a": ("", ""), "b": ("", "a"), "c": ("", "b")}),
        ("cat <<E | a && b\nx\nE\nc", {"cat": ("", ""), "a": ("", ""), "b": ("a", "cat"), "c": ("", ["a", "cat"])}),
        ("a || exit 1; b", {"a": ("", ""), "b": ("", "a")}),
        ("a; exit; b", {"a": ("", "")}),
        ("! a; b", {"a": ("", ""), "b": ("", "a")}),
    ],
)  # fmt: skip
def test_order(text: str, expected: dict[str, tuple[str, str]]) -> None:
    def names(text: str | list[str]) -> set[str]:
        return {text} if text == "cat" else set(text)

    assert order(text) == {name: (names(needs), names(after)) for name, (needs, after) in expected.items()}


def test_steps_in_loops_may_be_repeated() -> None:
    assert [(s.name, s.repeat) for s in infer("a; for i in 1 2; do b; done; while c; do d; done")] == [
        ("a", False), ("b", True), ("c", True), ("d", True),
    ]  # fmt: skip


# ---- files, hosts, programs


@pytest.mark.parametrize(
    ("text", "writes"),
    [
        ("cp a b", ["{workspace}/b/**"]),
        ("cp -t d a b", ["{workspace}/d/**"]),
        ("mv a /x/b", ["/x/b/**", "{workspace}/a/**"]),
        ("rm -rf dist", ["{workspace}/dist/**"]),
        ("rm /", ["/**"]),
        ("mkdir -p -m 700 a/b", ["{workspace}/a/b/**"]),
        ("touch a", ["{workspace}/a"]),
        ("chmod 644 a", ["{workspace}/a/**"]),
        ("tee -a log", ["{workspace}/log"]),
        ("sed -i s/a/b/ f", ["{workspace}/f", "{workspace}/sed*"]),
        ("sed s/a/b/ f", []),
        ("sort -o out in", ["{tmp}/sort*", "{workspace}/out"]),
        ("uniq in out", ["{workspace}/out"]),
        ("tar czf x.tgz d", ["{workspace}/x.tgz"]),
        ("tar cf - d", []),
        ("tar -xzf x.tgz -C d", ["{workspace}/d/**"]),
        ("cd s; tar xf x.tar", ["{workspace}/s/**"]),
        ("tar tf x.tar", []),
        ("unzip x.zip -d d", ["{workspace}/d/**"]),
        ("gzip a", ["{workspace}/a", "{workspace}/a.*"]),
        ("gunzip a.gz", ["{workspace}/a.gz", "{workspace}/a"]),
        ("dd if=a of=b", ["{workspace}/b"]),
        ("curl -o f https://a.example/x", ["{workspace}/f"]),
        ("curl https://a.example/x", []),
        ("wget https://a.example/x.tgz", ["{workspace}/x.tgz"]),
        ("git clone https://a.example/b.git", ["{workspace}/b/**"]),
        ("git clone https://a.example/b.git c", ["{workspace}/c/**"]),
        ("git status", ["{workspace}/**/.git/**"]),
        ("cat a", []),
        ("cd /etc; touch a; cd -; touch b", ["/etc/a"]),
        ('cd "$X"; touch a', ["**/a"]),
        ("touch ../a", []),
        ("rm *.o", ["{workspace}/*.o/**"]),
    ],
)  # fmt: skip
def test_files(text: str, writes: list[str]) -> None:
    step = infer(text)[0]
    assert step.writes == writes
    assert step.files_known


@pytest.mark.parametrize("text", ["touch ../a", 'rm "$X"', "tee $(x)"])
def test_a_file_that_is_not_known_stays_closed(text: str) -> None:
    step = infer(text)[-1]
    assert step.writes == []
    assert any(hole.startswith("which file") for hole in step.holes)


def test_of_other_programs_the_workspace_is_left_and_the_rest_said() -> None:
    shell = Shell()
    shell.read("pytest -q", "line {line}")
    plan = plan_of(shell)
    assert plan is not None
    (rule,) = plan.steps[0].part.rules
    assert [pattern.text for pattern in rule.paths] == ["{workspace}/**", "{tmp}/**"]
    assert plan.steps[0].part.no_network
    assert shell.drafts.steps[0].holes == [
        "which files `pytest` changes", "which programs `pytest` starts", "whether `pytest` needs the network",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "hosts", "addresses"),
    [
        ("curl https://A.example/x", ["a.example:443"], []),
        ("curl -s http://a.example:8080/x", ["a.example:8080"], []),
        ("curl http://10.0.0.1/x http://localhost:9/", [], ["10.0.0.1:80", "127.0.0.1:9", "[::1]:9"]),
        ("git clone git@git.example:me/x.git", ["git.example:22"], []),
        ("pip install -i https://mirror.example/simple x", ["mirror.example:443"], []),
        ('curl "https://a.example/$X"', ["a.example:443"], []),
        ('curl "https://$H/x"', [], []),
    ],
)  # fmt: skip
def test_hosts(text: str, hosts: list[str], addresses: list[str]) -> None:
    step = only(text)
    assert (step.hosts, step.addresses) == (hosts, addresses)
    assert step.no_network == (not hosts and not addresses)


def test_whom_a_program_talks_to_is_not_guessed() -> None:
    step = only("pip install requests")
    assert "whom `pip` talks to" in step.holes
    assert step.no_network


def test_wrappers_are_looked_through() -> None:
    step = only("sudo -u me env A=b timeout -k 1 5 rm x")
    assert step.ways[0][0] == ("**/sudo",)
    assert step.execs == ["**/env", "**/timeout", "**/rm"]
    assert step.writes == ["{workspace}/x/**"]
    assert any("sudo" in hole for hole in step.holes)


def test_a_shell_in_a_shell_is_one_step() -> None:
    step = only("bash -c 'touch a && curl https://a.example/ > b'")
    assert step.writes == ["{workspace}/b", "{workspace}/a"]
    assert step.hosts == ["a.example:443"]
    assert step.execs == ["**/touch", "**/curl"]
    assert only("bash <<'E'\ntouch a\nE\n").writes == ["{workspace}/a"]
    unknown = only('bash -c "touch $X"')
    assert not unknown.files_known
    assert "what `bash` does, which `bash` runs" in unknown.holes or any("runs" in hole for hole in unknown.holes)


# ---- what one takes from another


def taken(text: str) -> list[tuple[str, str, str]]:
    steps = infer(text)
    return [(step.name, what, steps[who].name) for step in steps for who, what in step.data]


def test_data_flow() -> None:
    assert taken("a | b") == [("b", "its output", "a")]
    assert taken("touch x; cat x") == [("cat", "{workspace}/x", "touch")]
    assert taken("a > x; b < x") == [("b", "{workspace}/x", "a")]
    assert taken("git clone https://a.example/r.git && cd r && cat README") == [
        ("cat", "{workspace}/r/README", "git-clone")
    ]
    assert taken("cat <<'E' > x.py\nprint(1)\nE\npython3 x.py") == [("python3", "{workspace}/x.py", "cat")]
    assert taken("V=$(a); b $V") == [("b", "$(a)", "a")]
    assert taken("curl -o run.sh https://a.example/; ./run.sh") == [("run.sh", "{workspace}/run.sh", "curl")]
    assert taken("touch x; cat y") == []


@pytest.mark.parametrize(
    "before,writes",
    [
        ("cd b", "{workspace}/b/f"),
        ("mkdir b && cd b", "{workspace}/**/f"),  # where it is if `mkdir` failed, or below
        ("mkdir b && cd b\ntrue", "{workspace}/**/f"),
        ("mkdir b && cd /srv/x/b", "**/f"),
        ("cd /srv/x; mkdir b && cd ../y", "/srv/**/f"),
        ("cd b || exit; ls c && cd c", "{workspace}/b/**/f"),
        ("mkdir b && cd b; cd ..", "**/f"),
        ("mkdir b && cd b; cd d", "**/f"),
        ("mkdir b && cd b; cd /srv", "/srv/f"),
    ],
)
def test_a_directory_is_known_as_far_as_it_is(before: str, writes: str) -> None:
    touch = infer(f"{before}\ntouch f")[-1]
    assert touch.writes == [writes]
    assert touch.holes == (["in which directory `touch` is started"] if "**" in writes else [])


def test_what_is_above_a_directory_that_is_not_known_is_not_below_the_workspace() -> None:
    touch = infer('mkdir b && cd b\ntouch ../f "$PWD/g"')[-1]
    assert touch.writes == ["**/g"]  # `../f` stays closed


def test_redirections_are_the_shells() -> None:
    shell = Shell()
    shell.read('make > build.log 2>&1; echo hi >> notes; ls 2>/dev/null; cat > "$F"', "line {line}")
    assert shell.drafts.outside_writes == ["{workspace}/build.log", "{workspace}/notes"]
    assert shell.drafts.holes == ["which file `> $F` in line 1 is"]
    plan = plan_of(shell)
    assert plan is not None
    assert plan.agent.rules[0].id == "redirections"
    shell.read('cd "$D"\nmake > build.log', "line {line}")
    assert shell.drafts.outside_writes[-1] == "**/build.log"
    assert shell.drafts.holes[-1] == "in which directory `> build.log` in line 2 is"


# ---- several texts


def test_each_command_may_have_a_shell_of_its_own() -> None:
    texts = ["cd sub", "touch a", "V=1", 'x "$V"']

    def touched(each: bool | None) -> tuple[list[str], tuple[str, ...]]:
        shell = Shell(each=each)
        for number, text in enumerate(texts):
            shell.read(text, f"command {number}")
        return shell.drafts.steps[0].writes, argv(shell.drafts.steps[1])

    assert touched(True) == (["{workspace}/a"], ("*",))
    assert touched(False) == (["{workspace}/sub/a"], ("1",))
    assert touched(None)[0] == ["**/a"]  # nobody knows


def test_the_workspace_by_another_name() -> None:
    shell = Shell(workspace="/testbed/", home="/root")
    shell.read("cd /testbed/src && touch a /root/b /testbedx", "line {line}")
    assert shell.drafts.steps[0].writes == ["{workspace}/src/a", "{home}/b", "/testbedx"]


def test_what_is_no_shell_is_said() -> None:
    (hole,) = holes("cat 'never closed")
    assert "it is no shell command, or is cut off" in hole


# ---- many


def test_more_than_a_plan_can_have_are_joined() -> None:
    shell = Shell()
    shell.read("; ".join(f"prog{i % 100} {i}" for i in range(300)), "line {line}")
    assert len(shell.drafts.steps) == 300
    plan = plan_of(shell)
    assert plan is not None
    assert len(plan.steps) == 50
    assert all(step.repeat for step in plan.steps)


def test_the_same_command_many_times_is_one_step() -> None:
    shell = Shell()
    shell.read("; ".join(["ls", "make"] * 60), "line {line}")
    plan = plan_of(shell)
    assert plan is not None
    assert [(step.id, step.repeat) for step in plan.steps] == [("ls", True), ("make", True)]


_WORDS = r"""
a ' " $x $( ) ` | && || ; & > < <<E { } ( * if then fi do done [ ] \ ~ {a,b} $'\x' é = x=1 ../ / esac f() cd rm cp tar
sudo # ${x:- $(( )) :99999/ % curl http:// [::1] git clone -o -C
"""
_PIECES = st.sampled_from(
    [*_WORDS.split(), "\n", "E\n", "b c", "for i in ", "case x in ", "sed -i ", "bash -c ", "\x01"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES, max_size=14), st.sampled_from(["", " "]))
def test_whatever_the_text_is_there_is_a_plan_or_none(pieces: list[str], between: str) -> None:
    shell = Shell()
    shell.read(between.join(pieces), "line {line}")
    plan_of(shell)
