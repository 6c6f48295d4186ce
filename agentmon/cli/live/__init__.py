# SPDX-License-Identifier: Apache-2.0
"""The live view: `inbox` and `feed` bring what the daemon says, `state` and its parts know it, `lines` say it in text.

None of these knows Textual; `panes`, `screens` and `app` do, and nothing else.
"""
