"""docker/prometheus: promtool accepts it, and its unit tests detect wrong alerts."""

import re
import shutil

import pytest
import yaml

from conftest import DOCKER, ROOT

PROMETHEUS = DOCKER / "prometheus"
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]


def test_promtool_accepts_the_configuration(promtool):
    outcome = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_promtool_accepts_the_rules(promtool):
    outcome = promtool("check", "rules", "--lint-fatal", PROMETHEUS / "alerts.yml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert f"{len(ALERTS)} rules found" in outcome.stdout


def test_every_alert_fires_when_it_should_and_not_otherwise(promtool):
    outcome = promtool("test", "rules", PROMETHEUS / "alerts_test.yml")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("alert", ALERTS)
@pytest.mark.parametrize("expr", ["vector(1) > 2", "vector(1)"], ids=["never", "always"])
def test_the_unit_tests_notice_an_alert_that_never_or_always_fires(promtool, tmp_path, alert, expr):
    rules = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == alert:
                rule["expr"] = expr
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(PROMETHEUS / "alerts_test.yml", tmp_path)
    outcome = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert outcome.returncode != 0, f"{alert} as {expr!r} passes its unit tests"


def test_the_guide_says_what_to_do_about_every_alert():
    guide = (ROOT / "docs/monitoring.md").read_text()
    documented = re.findall(r"^\| `(Skald\w+)` \|", guide, re.MULTILINE)
    assert documented == ALERTS
