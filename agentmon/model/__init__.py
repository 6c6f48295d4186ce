# SPDX-License-Identifier: Apache-2.0
"""Plain data that every other package shares. Imports nothing of agentmon."""
