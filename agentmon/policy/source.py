# SPDX-License-Identifier: Apache-2.0
"""A policy file that has the shape of one: what is in it, and where."""

from __future__ import annotations

from agentmon.policy import schema
from agentmon.policy.document import Document
from agentmon.policy.rules import Complaints
from agentmon.policy.schema import PolicyModel


class Source(Document):
    """One policy file: its model, and where each part of it stands."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text, file)
        model, errors = schema.validate(self.data)
        complaints = Complaints()
        for location, is_key, message in errors:
            complaints.add(self.place(location, key=is_key), message)
        complaints.raise_if_any()
        assert model is not None
        self.model: PolicyModel = model
        self.elements = 0  # that braces add to the patterns
