# SPDX-License-Identifier: Apache-2.0
"""The few errors that callers tell apart. Messages are lower case, quote the input in backticks, say the next step."""

from __future__ import annotations


class AgentmonError(Exception):
    """Base of agentmon's own errors. ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ConfigError(AgentmonError):
    """A configuration or policy test file cannot be used."""

    exit_code = 3


class PolicyError(AgentmonError):
    """A policy or a plan is invalid. ``str()`` has one ``file:line:column: message`` a line."""

    exit_code = 3


class NoPolicyError(PolicyError):
    """There is no such policy, or it cannot be read: no place in a file is to blame."""


class KernelError(AgentmonError):
    """The kernel, or libbpf, refused something that agentmon needs."""


class NotSupportedError(KernelError):
    """This kernel or host lacks a facility; the message names the remedy."""


class VerifierError(KernelError):
    """The BPF verifier rejected a program. ``log`` is the whole log."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class AttachError(KernelError):
    """A program loaded but could not be attached."""


class ControlError(AgentmonError):
    """The daemon refused a request, or could not be reached."""
