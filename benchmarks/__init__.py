# SPDX-License-Identifier: Apache-2.0
"""Benchmarks. Modules with a leading underscore are shared; each other module is one `./dev bench NAME`."""
