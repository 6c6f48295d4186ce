# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to the daemon: each line has one answer, which says yes or what is wrong, soon."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agentmon.daemon.requests import VERBS
from tests.support.fuzzing import REQUESTS, judge_messages

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FIELDS = sorted({name for request, _, _ in VERBS.values() for name in request.model_fields})
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["s-1"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=4)), inner)
    ),
    max_leaves=5,
)


def test_one_request_of_each_verb_is_understood() -> None:
    assert judge_messages(b"".join(REQUESTS)) == len(REQUESTS)
    assert {json.loads(request)["verb"] for request in REQUESTS} == set(VERBS)


@given(st.sampled_from(sorted(VERBS)), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5), VALUES)
@QUICK
def test_verbs_with_any_fields(verb: str, fields: dict[str, Any], number: Any) -> None:
    judge_messages(json.dumps({"v": 1, "id": number, "verb": verb, **fields}).encode() + b"\n")


@given(st.sampled_from(REQUESTS), st.data())
@QUICK
def test_requests_of_which_bytes_are_changed(request: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(request) - 1))
    new = data.draw(
        st.one_of(st.binary(max_size=4), st.sampled_from([b"\r", b"\n", b"1e999", b"\\ud800", b"[" * 2000]))
    )
    judge_messages(request[:at] + new + request[at + data.draw(st.integers(0, 4)) :] + REQUESTS[0])


@given(st.binary(max_size=200))
@example(b"\r\n\r\n")
@example(b"[" * 100_000 + b"\n")
@example(b"1" * 5_000 + b"\n")
@example(b"\xff\n\x00\n")
@QUICK
def test_any_bytes(data: bytes) -> None:
    judge_messages(data)


def test_a_line_that_does_not_end_is_cut_off() -> None:
    judge_messages(b" " * (2 << 20))
