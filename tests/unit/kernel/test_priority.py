# SPDX-License-Identifier: Apache-2.0
"""The daemon's place among those who want the processor: as the kernel tells it, of a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

from agentmon.kernel.priority import NICE, SLICE_NS

PROGRAM = """
import ctypes, json, os, struct, sys, threading
from agentmon.kernel.priority import hasten
hasten()
def tell():
    attributes = ctypes.create_string_buffer(56)
    ctypes.CDLL(None).syscall(315, 0, attributes, 56, 0)  # sched_getattr
    fields = struct.unpack("=IIQiIQQQII", attributes.raw)
    told = {"policy": fields[1], "nice": fields[3], "slice_ns": fields[5], "switch_s": sys.getswitchinterval()}
    print(json.dumps(told))
thread = threading.Thread(target=tell)
thread.start()
thread.join()
"""


def test_the_threads_that_it_starts_are_soon_let_in() -> None:
    found = json.loads(subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True).stdout)
    assert found["policy"] == os.SCHED_OTHER  # never real-time: a loop of ours must not take a processor from the host
    assert found["switch_s"] < 0.001
    if os.geteuid() == 0:
        assert found["nice"] == NICE
    if tuple(int(number) for number in platform.release().split(".")[:2]) >= (6, 12):
        assert found["slice_ns"] == SLICE_NS
