#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs agentmon as a service: systemd/install.sh WHEEL. Run as root; run it again to upgrade.
set -eu
wheel=${1:?usage: systemd/install.sh WHEEL}
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || {
	echo 'install.sh: run as root' >&2
	exit 1
}

# The system's own Python packages serve where they are good enough.
[ -x /opt/agentmon/bin/python ] || python3 -m venv --system-site-packages /opt/agentmon
/opt/agentmon/bin/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps "$wheel"
/opt/agentmon/bin/python -m pip install -q --disable-pip-version-check "$wheel"
ln -sf /opt/agentmon/bin/agentmon /usr/local/bin/agentmon

# Members may release and loosen.
getent group agentmon >/dev/null || groupadd --system agentmon

mkdir -p /etc/agentmon/policies.d
install -m 0644 "$here/agentmon.service" /etc/systemd/system/agentmon.service
install -m 0644 "$here/agentmon-let-go.service" /etc/systemd/system/agentmon-let-go.service
systemctl daemon-reload
systemctl enable -q agentmon.service
systemctl restart agentmon.service
systemctl --no-pager status agentmon.service | head -n 3
