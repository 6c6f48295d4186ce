# SPDX-License-Identifier: Apache-2.0
"""The audit log: append-only, hash-chained, one SQLite file."""

from agentmon.audit.read import Problem, read, verify
from agentmon.audit.store import AuditLog

__all__ = ["AuditLog", "Problem", "read", "verify"]
