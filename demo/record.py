# SPDX-License-Identifier: Apache-2.0
"""``./dev profile``: records sessions of `demo/work.py` here, and trains `profiles/coding-agent.json` of them.

In a network namespace without any other: the agent's model is a port of it, asked for by a name, and each few sessions
by another one, so that the baseline knows that there is a host, and not which.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from agentmon.kernel.host import BPFFS, mount_if_absent
from tests.support.island import Island, IslandHost

CHECKOUT = Path(__file__).resolve().parents[1]
NAME = "coding-agent"
OUTPUT = CHECKOUT / "profiles" / f"{NAME}.json"
#: Under what it is recorded: the pack, and a model.
POLICY = """\
policy: recording
include: [coding-agent]
rules:
  - {id: model, on: [connect, send], hosts: [@MODELS@], action: allow}
"""
MODELS = 40


def main() -> int:
    """Record, then train."""
    parser = argparse.ArgumentParser(prog="./dev profile", description="Record and train the shipped baseline anew.")
    parser.add_argument("--sessions", type=int, default=120, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the first session (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep the audit log of it")
    options = parser.parse_args()
    mount_if_absent("bpf", BPFFS)
    own = Path(os.path.expanduser("~/.config/mini-swe-agent"))
    had = own.exists()
    with (
        tempfile.TemporaryDirectory(prefix="agentmon-record-") as name,
        Island(Path(name)) as island,
        IslandHost(Path(name), island) as host,
    ):
        try:
            host.directory.chmod(0o755)
            policy = host.directory / "recording.yaml"
            policy.write_text(POLICY.replace("@MODELS@", ", ".join(f'"{_model(n)}:443"' for n in range(MODELS))))
            host.start()
            for seed in range(options.seed, options.seed + options.sessions):
                _record(host, policy, seed)
        finally:
            if not had:
                shutil.rmtree(own, ignore_errors=True)
        if options.log:
            host.daemons[-1].terminate()
            host.daemons[-1].wait()
            shutil.copy(host.audit, options.log)
        profiles = host.directory / "profiles"
        where = ("--directory", str(profiles))
        _must(host, "profile", "train", NAME, "all", "--file", host.audit, *where)
        options.output.unlink(missing_ok=True)
        _must(host, "profile", "export", NAME, options.output.resolve(), *where)
    return 0


def _record(host: IslandHost, policy: Path, seed: int) -> None:
    workspace = host.directory / f"project-{seed}"
    workspace.mkdir()
    environment = {
        **host.environment(), "PATH": "/usr/bin:/bin", "HOME": os.path.expanduser("~"), "LANG": "C.UTF-8",
    }  # fmt: skip
    del environment["PYTHONPATH"]  # which would be the agent's as well
    program = host.directory / "agent.py"
    if not program.exists():
        shutil.copy(CHECKOUT / "demo" / "work.py", program)  # not below the checkout, which is none of its business
    done = host.agentmon(
        "run", "-p", policy, "--workspace", workspace, "--quiet", "--",
        "/usr/bin/python3", program, str(seed), _model(seed % MODELS), workspace, env=environment,
    )  # fmt: skip
    if done.returncode:
        print(f"record: session {seed} ended with {done.returncode}: {done.stderr.strip()[-400:]}", file=sys.stderr)
    elif done.stderr.strip():
        print(f"record: session {seed}: {done.stderr.strip()[-400:]}", file=sys.stderr)
    shutil.rmtree(workspace, ignore_errors=True)
    if seed % 10 == 0:
        print(f"record: {seed} recorded", file=sys.stderr, flush=True)


def _model(number: int) -> str:
    return f"api.model{number:02}.example"


def _must(host: IslandHost, *words: str | Path) -> None:
    done = host.agentmon(*words, timeout=900)
    print((done.stdout + done.stderr).strip(), file=sys.stderr)
    if done.returncode:
        raise SystemExit(f"record: `{' '.join(map(str, words[:2]))}` failed")


if __name__ == "__main__":
    sys.exit(main())
