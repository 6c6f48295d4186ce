# SPDX-License-Identifier: Apache-2.0
"""The behavioural fingerprint: what is normal for an agent, and how far a session is from it.

``places`` and ``tokens`` turn records into abstract tokens; ``sequence`` says how surprising each one is, ``window``
how unusual a stretch of them; ``conformal`` turns scores into promises; ``baseline`` is all of it for one agent;
``watching`` judges a session as it runs. Training needs scikit-learn, watching nothing but Python.
"""
