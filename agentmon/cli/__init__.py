# SPDX-License-Identifier: Apache-2.0
"""The command line: one verb a file. Heavy imports happen inside the handlers."""
