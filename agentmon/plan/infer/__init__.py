# SPDX-License-Identifier: Apache-2.0
"""From what is intended to a plan: shell scripts and commands, tool calls, recorded sessions. No model, no guess.

`shell`, `calls` and `sessions` each read one kind of text and give `draft.Draft` steps; `programs` knows what common
programs do with their arguments; `draft` makes them fit the limits; `write` makes YAML of them. What cannot be known
stays a hole: as narrow as the text allows, and with a comment that says what is missing.
"""
