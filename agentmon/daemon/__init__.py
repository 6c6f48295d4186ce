# SPDX-License-Identifier: Apache-2.0
"""The composition root: everything meets here, nothing is decided here."""
