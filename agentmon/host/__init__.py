# SPDX-License-Identifier: Apache-2.0
"""Facts about processes, and what they hold."""
