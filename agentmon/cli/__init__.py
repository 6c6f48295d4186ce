# SPDX-License-Identifier: Apache-2.0
"""The command line: one verb a file. Heavy imports happen inside the handlers."""

import os
import sys

# Inside a fence no byte code is kept: it may not be written there, and the agent would be told that of every `why`.
if "AGENTMON_SOCKET" in os.environ:
    sys.dont_write_bytecode = True
