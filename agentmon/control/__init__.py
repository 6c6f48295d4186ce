# SPDX-License-Identifier: Apache-2.0
"""The daemon's control socket: one JSON object a line over a unix stream socket."""
