# SPDX-License-Identifier: Apache-2.0
"""libbpf by ctypes: nothing of it is called by guessed types."""

from __future__ import annotations

import pytest

from agentmon.kernel.libbpf import library


def test_a_function_without_types_is_refused() -> None:
    # ctypes takes each argument for an `int` then: a pointer above 4 GiB would crash the daemon
    with pytest.raises(AttributeError, match=r"`bpf_object__name` of libbpf has no types"):
        library().bpf_object__name  # noqa: B018
    assert library().libbpf_version_string().startswith(b"v")
