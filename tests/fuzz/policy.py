# SPDX-License-Identifier: Apache-2.0
"""Fuzz the policy loader and compiler with atheris: ``./dev fuzz policy --seconds 600``.

Starts from the shipped packs and the corpus of malformed policies. What breaks is left in ``build/fuzz``
(``policy-crash-…``): add it to ``tests/corpus/policies`` with a title.
"""

from __future__ import annotations

import atheris

with atheris.instrument_imports(include=["agentmon.policy", "agentmon.model"]):
    from tests.support.fuzzing import judge

from agentmon.policy.load import packs, shipped_directory
from agentmon.policy.schema import ACTION_WORDS, MODE_WORDS, OPERATION_WORDS, PolicyModel, RuleModel
from tests.fuzz._run import run
from tests.support.corpus import corpus

WORDS = (
    *OPERATION_WORDS, *ACTION_WORDS, *MODE_WORDS, *PolicyModel.model_fields, *RuleModel.model_fields,
    "except", "pack", "without", "base",
    "{workspace}", "{home}", "{tmp}", "{user}", "~", "**", "/**", "[!a-z]", "{a,b}",
    "10.0.0.0/8", "[::1]:80", "fd00::/8", "8000-9000", "*.example.org:443", "- ", ": ", "&a ", "*a", "!!", "<<",
    "|\\x0a", "---\\x0a", "\\xef\\xbb\\xbf", "\\xff",
)  # fmt: skip

if __name__ == "__main__":
    texts = [path.read_bytes() for path in packs([shipped_directory()]).values()] + [case.text for case in corpus()]
    run("policy", judge, texts, WORDS)
