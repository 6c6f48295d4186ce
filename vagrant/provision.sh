#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes agentmon a running service on a bare machine: vagrant/provision.sh [WHEEL]. Without a wheel, builds one.
set -eu
cd "$(dirname "$0")/.."
wheel=${1:-}
if [ -z "$wheel" ]; then
	./dev build --wheel
	wheel=$(echo dist/*.whl)
fi
systemd/install.sh "$wheel"
agentmon doctor
