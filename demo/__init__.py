# SPDX-License-Identifier: Apache-2.0
"""A real agent behind a real fence: ``sudo ./dev demo``. See docs/demo.md."""
