# SPDX-License-Identifier: Apache-2.0
"""The policy language: load, bind, compile, judge, explain.

``load(name)`` or ``load_text(text, file)`` give a `Policy`; ``bind_policy(policy, Variables.of(…))`` makes it concrete
for one session; ``compile_policy`` makes the kernel's tables of it. `Evaluator` is the reference semantics,
`FastEvaluator` the daemon's. Import from the modules: this one stays empty, so that a client starts without pydantic.
"""
