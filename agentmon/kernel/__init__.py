# SPDX-License-Identifier: Apache-2.0
"""The only package that talks to BPF: libbpf, the built objects, maps, the ring buffer, probes and canaries.

Knows ``agentmon.model`` and ``agentmon.errors``, nothing else of agentmon.
"""
