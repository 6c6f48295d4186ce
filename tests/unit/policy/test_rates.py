# SPDX-License-Identifier: Apache-2.0
"""Rules with a rate: what the policy tool says of them. That it is kept is tested in ``tests/kernel``."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentmon.cli.main import main
from agentmon.errors import PolicyError
from agentmon.policy.bind import bind_policy
from agentmon.policy.load import load_text
from tests.support.policies import variables


def policy(rate: str, action: str = "allow") -> str:
    return (
        "policy: p\ndefault: {write: deny}\nrules:\n"
        f"  - {{id: some, on: write, paths: /srv/x, when: {{rate: {rate}}}, action: {action}}}\n"
    )


CASES = """\
cases:
  - {op: write, object: /srv/x, expect: allow, rule: some}
  - {op: write, object: /srv/x, over: some, expect: deny}
"""


def test_cases_say_that_it_is_used_up(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(policy("10/min"))
    (tmp_path / "p.test.yaml").write_text(CASES)
    assert main(["policy", "test", str(tmp_path / "p.yaml")]) == 0
    (tmp_path / "p.test.yaml").write_text(CASES.replace(" over: some,", ""))
    assert main(["policy", "test", str(tmp_path / "p.yaml")]) == 2


def test_explain_says_which_rate_is_used_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(policy("10/min"))
    assert main(["policy", "explain", "write", "/srv/x", "-p", str(file)]) == 0
    assert "allow: write /srv/x" in capsys.readouterr().out
    assert main(["policy", "explain", "write", "/srv/x", "-p", str(file), "--over", "some"]) == 0
    said = capsys.readouterr().out
    assert "deny: write /srv/x" in said
    assert "excepted by its rate, 10/min, being used up" in said


def test_show_and_diff_tell_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(policy("10/min"))
    new.write_text(policy("10/min").replace(", when: {rate: 10/min}", ""))
    assert main(["policy", "show", str(old)]) == 0
    assert 'when: {"rate": "10/min"}' in capsys.readouterr().out
    main(["policy", "diff", str(old), str(new)])
    assert "the rate of `some` used up" in capsys.readouterr().out


def test_too_many_rates_are_refused() -> None:
    rules = "".join(
        f"  - {{id: r{i}, on: write, paths: /srv/{i}, when: {{rate: 1/s}}, action: allow}}\n" for i in range(9)
    )
    with pytest.raises(PolicyError, match=r"p.yaml:\d+:.*9 rules with a `rate`, 8 fit"):
        bind_policy(load_text(f"policy: p\nrules:\n{rules}", "p.yaml"), variables())
