# SPDX-License-Identifier: Apache-2.0
"""agentmon: a host runtime monitor that keeps AI agents inside a fence, decided in the kernel."""

__version__ = "0.1.0"
