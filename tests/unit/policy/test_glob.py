# SPDX-License-Identifier: Apache-2.0
"""What patterns match, and how malformed ones are refused."""

from __future__ import annotations

import re

import pytest

from agentmon.policy.glob import GlobError, bind, parse

VALUES = {"workspace": b"/w/[x]*", "home": b"/home/me", "tmp": b"/tmp", "user": b"me"}


def matches(pattern: str, path: str) -> bool:
    globs = [bind(t, VALUES) for t in parse(pattern)]
    return any(re.fullmatch(g.regex(), path.encode("utf-8", "surrogateescape"), re.DOTALL) for g in globs)


@pytest.mark.parametrize(
    "pattern,yes,no",
    [
        ("/a/*", ["/a/b", "/a/b c", "/a/\n"], ["/a", "/a/b/c", "/b/a"]),
        ("/a/?", ["/a/b"], ["/a/bc", "/a/é"]),  # é is two bytes
        ("/a/[a-c]x", ["/a/ax", "/a/cx"], ["/a/dx", "/a//x"]),
        ("/a/[!a-c]", ["/a/d", "/a/-"], ["/a/a", "/a/"]),
        ("/a/[]x]", ["/a/]", "/a/x"], ["/a/["]),
        ("/a/**", ["/a", "/a/b", "/a/b/c"], ["/ab", "/"]),
        ("/a/**/b", ["/a/b", "/a/x/b", "/a/x/y/b"], ["/a/xb", "/ab", "/a"]),
        ("**/b", ["/b", "/a/b", "/a/c/b"], ["/ab", "/b/c"]),
        ("**/.x/**", ["/.x", "/.x/a", "/a/.x/b/c"], ["/a/.xy", "/a.x"]),
        ("/a**", ["/a", "/ab", "/a/b"], ["/b"]),
        ("/a/**x", ["/a/x", "/a/b/x", "/a/bx"], ["/ax"]),
        ("**", ["/", "/a", "/a/b"], []),
        ("/**", ["/", "/a", "/a/b"], []),
        ("/", ["/"], ["/a"]),
        ("/{a,b{c,d}}/e", ["/a/e", "/bc/e", "/bd/e"], ["/b/e", "/bcd/e"]),
        ("/a{,b}", ["/a", "/ab"], ["/b"]),
        ("~/x", ["/home/me/x"], ["~/x", "/x"]),
        ("~", ["/home/me"], ["/home"]),
        ("{~,/root}/x", ["/home/me/x", "/root/x"], ["/x"]),
        ("{workspace}/**", ["/w/[x]*", "/w/[x]*/a"], ["/w/xa", "/w/x"]),
        ("/run/{user}.pid", ["/run/me.pid"], ["/run/user.pid"]),
        ("/a/\\*", ["/a/*"], ["/a/b"]),
        ("/a/\\{b\\}", ["/a/{b}"], ["/a/b"]),
        ("/é", ["/é"], ["/e"]),
        ("/a/**/**", ["/a", "/a/b"], ["/ab"]),
        ("/a/***", ["/a/b/c"], ["/b"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [p for p in yes if not matches(pattern, p)] == []
    assert [p for p in no if matches(pattern, p)] == []


def test_a_root_as_variable_leaves_no_double_slash() -> None:
    (template,) = parse("{workspace}/x")
    assert bind(template, VALUES | {"workspace": b"/"}).exact == b"/x"


@pytest.mark.parametrize(
    "pattern,words",
    [
        ("", "empty"),
        ("a/b", "starts with"),
        ("./a", "starts with"),
        ("/a//b", "one slash"),
        ("/a/./b", "`.`"),
        ("/a/../b", "`..`"),
        ("/a/", "drop it"),
        ("~bob/x", "home"),
        ("/a/{workspace}", "only start"),
        ("{workspace}x", "comes `/`"),
        ("{worspace}/x", "did you mean `workspace`"),
        ("/a/{b", "never closed"),
        ("/a/b}", "without `{`"),
        ("/a/{b c}", "neither"),
        ("/a/[b", "never closed"),
        ("/a/[/]", "cannot match `/`"),
        ("/a/[b-a]", "empty"),
        ("/a/[é]", "ASCII"),
        ("/a/[[:alpha:]]", "not supported"),
        ("/a\\", "escapes nothing"),
        ("/a\0", "NUL"),
        ("/" + "{a,b}" * 12, "alternatives"),
        ("/" + "a" * 4096, "longer"),
    ],
)
def test_a_malformed_pattern_is_refused_with_a_remedy(pattern: str, words: str) -> None:
    with pytest.raises(GlobError, match=re.escape(words)):
        parse(pattern)
