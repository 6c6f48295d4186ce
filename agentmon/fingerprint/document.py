# SPDX-License-Identifier: Apache-2.0
"""A baseline as a file: JSON, versioned, with the hash of its content. Data only: nothing in it is ever run.

Sessions are kept as their tokens, so tables are counted again when it is loaded: a file cannot claim counts that no
session had, and a later version may count otherwise.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentmon.errors import AgentmonError
from agentmon.fingerprint.progress import STATISTICS
from agentmon.fingerprint.sequence import BUCKETS, ORDERS
from agentmon.fingerprint.window import NAMES

FORMAT = "agentmon-baseline"
#: Version of the file's form. Another one is refused.
VERSION = 3
#: A file larger than that is no baseline.
MAX_BYTES = 64 << 20

Text = Annotated[str, Field(max_length=256)]
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Features = Annotated[list[Number], Field(min_length=len(NAMES), max_length=len(NAMES))]
#: What a feature may be: a root of a share, or a logarithm.
Usual = Annotated[float, Field(allow_inf_nan=False, ge=-64, le=64)]
#: What is divided by.
Scale = Annotated[float, Field(ge=1e-6, le=1e9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SessionData(_Strict):
    """A session: its tokens by number, the highest of each statistic by a model that never saw it."""

    id: Text
    groups: list[Annotated[int, Field(ge=1, lt=1 << 20)]]
    details: list[Annotated[int, Field(ge=0, lt=1 << 20)]]
    highest: Annotated[list[Number], Field(min_length=len(STATISTICS), max_length=len(STATISTICS))]
    seconds: Annotated[float, Field(ge=0, le=1e9)]


class Agent(_Strict):
    """The program that the baseline is of."""

    path: Annotated[str, Field(max_length=4096)]
    sha256: Hash


class Checked(_Strict):
    """What was promised, and what sessions that were held out showed."""

    promised: Annotated[float, Field(gt=0, lt=1)]
    sessions: Annotated[int, Field(ge=1)]
    alerts: Annotated[int, Field(ge=0)]
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]


class ArrayData(_Strict):
    """One array of a network: little-endian floats of 32 bits, in base64."""

    shape: Annotated[list[Annotated[int, Field(ge=1, le=1 << 24)]], Field(min_length=1, max_length=2)]
    data: str


class NetworkData(_Strict):
    """A network."""

    kinds: Annotated[int, Field(ge=2, lt=1 << 20)]
    arrays: Annotated[list[ArrayData], Field(min_length=4, max_length=4)]


class Body(_Strict):
    """The content that is hashed. ``anchored``: how many sessions, the first ones, are those first accepted."""

    name: Name
    revision: Annotated[int, Field(ge=1)]
    created: Text
    agentmon: Text
    agent: Agent | None
    tier: Literal["", "lsm", "react"]  # that all sessions were recorded in
    groups: list[Text]
    details: list[Text]
    sessions: Annotated[list[SessionData], Field(min_length=1)]
    anchored: Annotated[int, Field(ge=1)]
    anchor: Hash | None  # of the file first accepted; None: this one
    later: list[Number]  # scores of the sessions accepted since, by the anchor's model
    weights: Annotated[
        list[Annotated[list[Annotated[float, Field(ge=0, le=1e9)]], Field(min_length=BUCKETS, max_length=BUCKETS)]],
        Field(min_length=len(ORDERS), max_length=len(ORDERS)),
    ]
    mean: Number
    usual: Annotated[list[tuple[Number, Number]], Field(min_length=3, max_length=3)]
    middle: Annotated[list[Usual], Field(min_length=len(NAMES), max_length=len(NAMES))]
    scale: Annotated[list[Scale], Field(min_length=len(NAMES), max_length=len(NAMES))]
    precision: Annotated[list[Features], Field(min_length=len(NAMES), max_length=len(NAMES))]
    network: NetworkData | None
    checked: list[Checked]


class _File(_Strict):
    format: Literal["agentmon-baseline"]
    version: int
    sha256: Hash
    body: dict[str, Any]


def digest(body: dict[str, Any]) -> str:
    """The hash of a body, over one form of JSON: sorted keys, no spaces."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(body: Body) -> str:
    """The whole file as text."""
    data = body.model_dump(mode="json")
    return (
        json.dumps({"format": FORMAT, "version": VERSION, "sha256": digest(data), "body": data}, sort_keys=True) + "\n"
    )


def read(path: Path) -> tuple[Body, str]:
    """The content of a file, and its hash. Raises `AgentmonError` with what is wrong and what helps."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise AgentmonError(f"`{path}` has {size:,} bytes; a baseline has at most {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise AgentmonError(f"there is no baseline at `{path}`; see `agentmon profile list`") from None
    except UnicodeDecodeError:
        raise AgentmonError(f"`{path}` is no baseline: it is not text; export it again") from None
    except OSError as error:
        raise AgentmonError(f"cannot read the baseline `{path}`: {(error.strerror or str(error)).lower()}") from error
    return parse(text, str(path))


def parse(text: str, where: str) -> tuple[Body, str]:
    """The same from text. Raises `AgentmonError`."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise AgentmonError(f"{where}{place}: this is no baseline: it is not JSON; export it again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise AgentmonError(f"{where}:1:1: this is no baseline of agentmon; `agentmon profile export` writes one")
    if data.get("version") != VERSION:
        raise AgentmonError(
            f"{where}:1:1: version `{data.get('version')!s:.20}` of the form; this agentmon reads {VERSION}:"
            " train it again"
        )
    try:
        file = _File.model_validate(data)
        known = digest(file.body)
        if known != file.sha256:
            raise AgentmonError(
                f"{where}:1:1: the content does not match its hash: it was changed or cut; export it again"
            )
        body = Body.model_validate(file.body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise AgentmonError(f"{where}:1:1: `{place}`: {first['msg'].lower()}; export it again") from None
    except ValueError:
        raise AgentmonError(f"{where}:1:1: it has a number that is none; export it again") from None
    _check(body, where)
    return body, known


def _check(body: Body, where: str) -> None:
    """What the parts say of each other."""
    for session in body.sessions:
        if len(session.groups) != len(session.details):
            raise AgentmonError(
                f"{where}:1:1: session `{session.id}` has not as many details as groups; export it again"
            )
        if max(session.groups, default=0) > len(body.groups) or max(session.details, default=0) > len(body.details):
            raise AgentmonError(f"{where}:1:1: session `{session.id}` has a token that is not listed; export it again")
    for what, names in (("group", body.groups), ("detail", body.details)):
        if len(set(names)) < len(names):
            raise AgentmonError(f"{where}:1:1: a {what} is listed twice; export it again")
    if not body.weights[0][0] or any(0 != spread < 1e-6 for _, spread in body.usual):
        raise AgentmonError(f"{where}:1:1: it would divide by nothing; export it again")
    if body.anchored > len(body.sessions):
        raise AgentmonError(f"{where}:1:1: more sessions are anchored than there are; export it again")
    if any(
        not math.isclose(body.precision[i][j], body.precision[j][i], abs_tol=1e-5)
        for i in range(len(NAMES))
        for j in range(i)
    ):
        raise AgentmonError(f"{where}:1:1: the precision is not symmetric; export it again")
