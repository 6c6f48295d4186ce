# SPDX-License-Identifier: Apache-2.0
"""A coding agent without a model: it looks around, edits, tests and commits in a small project, each time otherwise.

``python3 work.py SEED MODEL DIRECTORY``, an empty one. Like published agents it asks its model (here: a connection to
MODEL, port 443) before each command, and runs that in a shell. Only for recording what such agents usually do.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

WORDS = ("mean", "median", "parse", "store", "report", "merge", "split", "total", "index", "route", "queue", "shape")


class Agent:
    """One session."""

    def __init__(self, seed: int, model: str) -> None:
        self.chance = random.Random(seed)
        self.model = model
        self.names = self.chance.sample(WORDS, 5)
        self.state = Path(os.path.expanduser(f"~/.config/mini-swe-agent/{seed}.json"))

    def one(self, *choices: str) -> str:
        """One of them."""
        return self.chance.choice(choices)

    def asks(self) -> None:
        """A turn of the model."""
        try:
            with socket.create_connection((self.model, 443), timeout=5) as link:
                link.sendall(b"x")
                link.recv(1)
        except OSError as error:
            print(f"work: {error}", file=sys.stderr)

    def runs(self, command: str) -> None:
        """A command in a shell, after a turn."""
        self.asks()
        subprocess.run(
            ["bash", "-c", command], timeout=60, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def edits(self, path: str, text: str) -> None:
        """What edit tools do: by the agent's own hand."""
        self.asks()
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            file.read_text()
        file.write_text(text)

    def remembers(self) -> None:
        """Its own state."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        self.state.write_text(json.dumps({"turns": self.chance.randrange(99)}))

    # -- what any of them does

    def looks(self, times: int) -> None:
        """Around."""
        name = self.chance.choice(self.names)
        ways = (
            "ls -la", "ls", "git status --short", "git log --oneline | head -5", "cat README.md", "git diff --stat",
            f"grep -rn {name} . | head -20", "find . -type f -not -path './.git/*' | head -50", "pwd && ls src",
            "wc -l src/* | sort -n | tail -5", f"sed -n 1,40p src/{name}*", f"head -20 src/{name}*", "git show --stat",
            f"cat src/{name}* | head -60", "git branch -a", "du -sh . && df -h . | tail -1", "which python3 gcc node",
            f"git grep -n {name} | cut -d: -f1 | uniq -c", "find . -name '*.md' | xargs head -5", "stat README.md",
            "uname -a; id -un; date", "env | sort | head -3", "tail -5 README.md; file src/*", "cat .gitignore",
        )  # fmt: skip
        for command in self.chance.sample(ways, times):
            self.runs(command)

    def keeps(self) -> None:
        """Under version control."""
        self.runs("git add -A && git commit -qm 'work in progress'")
        if self.chance.random() < 0.3:
            self.runs(self.one("git log -p -1 | head -50", "git checkout -qb topic", "git stash; git stash pop",
                               "git blame README.md", "git diff HEAD~1 --stat", "git tag v0"))  # fmt: skip

    def begins(self) -> None:
        """A project."""
        self.runs("git init -q --template= . && git config user.name agent && git config user.email agent@example.com")
        self.edits("README.md", f"# {self.names[0]}\n\nAbout {', '.join(self.names)}.\n")
        self.edits(".gitignore", "__pycache__/\nbuild/\n*.o\n")

    def side(self) -> None:
        """Now and then."""
        name = self.chance.choice(self.names)
        self.runs(self.one(
            f"mkdir -p notes && echo '{name}' >> notes/todo.txt", f"sed -i 's/{name}/{name}/g' README.md",
            "tar czf /tmp/work-$$.tgz . && tar tzf /tmp/work-$$.tgz | wc -l; rm -f /tmp/work-$$.tgz",
            f"cp README.md notes-{name}.md && mv notes-{name}.md notes-{name}.txt && rm notes-{name}.txt",
            f"echo '{{\"{name}\": [3, 1, 2]}}' > data.json && jq '.{name} | sort' data.json",
            "python3 -m http.server 18080 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 0.5; curl -s"
            " http://127.0.0.1:18080/README.md | head -2; kill %1",
            "python3 -m venv --without-pip .venv && .venv/bin/python -c 'print(1)'; rm -rf .venv",
            "sqlite3 build.db 'create table if not exists t (a); insert into t values (1); select count(*) from t'",
            "pytest -q", "diff -u README.md .gitignore | head -5",
            f"touch {name}.tmp; chmod 600 {name}.tmp; rm {name}.tmp",
            "awk '{ n += NF } END { print n }' README.md; sort README.md | uniq -c | sort -rn | head -3",
            f"cat > /tmp/try-$$.py <<'END'\nprint('{name}')\nEND\npython3 /tmp/try-$$.py; rm -f /tmp/try-$$.py",
        ))  # fmt: skip

    # -- kinds of project

    def python(self) -> None:
        """A module with tests."""
        for name in self.names[: self.chance.randrange(2, 4)]:
            self.edits(f"src/{name}.py", f"def {name}(values):\n    return sorted(values)\n")
            self.edits(
                f"tests/test_{name}.py",
                f"import sys, unittest\nsys.path.insert(0, 'src')\nfrom {name} import {name}\n\n\n"
                f"class T(unittest.TestCase):\n    def test(self):\n"
                f"        self.assertEqual({name}([2, 1]), {self.one('[1, 2]', '[2, 1]')})\n",
            )
            self.runs(self.one("python3 -m unittest discover -q tests", f"python3 tests/test_{name}.py"))
            if self.chance.random() < 0.5:
                self.runs(f"python3 -c 'import sys; sys.path.insert(0, \"src\"); import {name}; print({name})'")
            self.runs(f"sed -i 's/\\[2, 1\\])$/[1, 2])/' tests/test_{name}.py && python3 -m unittest discover -q tests")

    def compiled(self) -> None:
        """A program in C."""
        name = self.names[0]
        self.edits(
            "Makefile",
            f"build/{name}: src/{name}.c\n\tmkdir -p build && gcc -O1 -o $@ $<\ntest: build/{name}\n\t./$<\n",
        )
        wrong = self.chance.random() < 0.4
        self.edits(f"src/{name}.c", f'#include <stdio.h>\nint main(void) {{ puts("{name}"){"" if wrong else ";"} }}\n')
        self.runs("make")
        if wrong:
            self.edits(f"src/{name}.c", f'#include <stdio.h>\nint main(void) {{ puts("{name}"); }}\n')
        self.runs(self.one("make test", "make && ./build/*", "gcc -Wall -c -o /dev/null src/*.c && make test"))
        if self.chance.random() < 0.5:
            self.runs(self.one("nm build/* | head -5", "objdump -d build/* | head -20", "strip build/* && ls -l build"))

    def scripts(self) -> None:
        """Shell and JavaScript."""
        name = self.names[0]
        self.edits(f"src/{name}.sh", f'#!/bin/sh\nset -e\nfor f in *.md; do wc -w "$f"; done\necho {name}\n')
        self.runs(f"chmod +x src/{name}.sh && ./src/{name}.sh")
        self.edits(f"src/{name}.js", f"console.log([3, 1, 2].sort().join('{name}'))\n")
        self.runs(f"node src/{name}.js")
        self.runs(f"sh -n src/{name}.sh; bash -x src/{name}.sh 2>&1 | tail -3")

    def data(self) -> None:
        """Tables."""
        rows = "\n".join(f"{self.chance.choice(self.names)},{self.chance.randrange(99)}" for _ in range(30))
        self.edits("data/in.csv", rows + "\n")
        self.runs("cut -d, -f1 data/in.csv | sort | uniq -c | sort -rn")
        self.runs(
            "awk -F, '{ s[$1] += $2 } END { for (k in s) print k, s[k] }' data/in.csv > data/out.txt; cat data/out.txt"
        )
        self.edits(
            "src/load.py",
            "import csv, json\nrows = list(csv.reader(open('data/in.csv')))\n"
            "json.dump(rows, open('data/out.json', 'w'))\nprint(len(rows))\n",
        )
        self.runs("python3 src/load.py && jq length data/out.json")

    def works(self) -> None:
        """From beginning to end."""
        self.begins()
        kinds = (self.python, self.python, self.compiled, self.scripts, self.data)
        for kind in self.chance.sample(kinds, self.chance.randrange(1, 4)):
            self.looks(self.chance.randrange(2, 6))
            kind()
            if self.chance.random() < 0.7:
                self.keeps()
            for _ in range(self.chance.randrange(3)):
                self.side()
            self.remembers()
        self.looks(self.chance.randrange(1, 3))


if __name__ == "__main__":
    os.chdir(sys.argv[3])  # first of all: everything else is done where it stands
    Agent(int(sys.argv[1]), sys.argv[2]).works()
