# SPDX-License-Identifier: Apache-2.0
"""The agents' DNS: forwards only names that a session's policy can allow, and has the answer's addresses put in force
before it answers.

`core` decides, without a socket or a clock; `upstream` asks the host's name servers; `service` listens. Design:
``docs/design/0003-names.md``.
"""
