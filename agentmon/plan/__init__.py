# SPDX-License-Identifier: Apache-2.0
"""Plans: a DAG of steps, what each may do, and whether an action is of an enabled step.

``load(file)`` or ``load_text(text, file)`` give a `Plan`; ``bind_plan(plan, Variables.of(…))`` makes it concrete for
one session; ``compile_plan`` makes the masks that the kernel keeps of it. `Tracker` is the reference semantics: what it
says of a session's processes, the kernel has to say too (``docs/design/0008-plans.md``). Import from the modules.
"""
