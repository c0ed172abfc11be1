"""What an administrator copies for Prometheus and Grafana: valid, and of metrics that exist.

The scrape configuration and the alert rules are in tlsmgrctl(1), the dashboard is a file.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkout import CHECKOUT
from support.status_samples import FARM, busy

from tlsmgr.ctl.metrics_families import registry
from tlsmgr.stats import COUNTERS

DASHBOARD = CHECKOUT / "scripts/monitoring/grafana-dashboard.json"
need_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool of the package prometheus is not installed"
)
NAME = re.compile(r"\bpostfix_tlsmgr_\w+")


def example(path: str) -> str:
    """The example in the manual page that begins with the name of this file."""
    page = (CHECKOUT / "man/tlsmgrctl.1").read_text()
    (text,) = re.findall(rf"^# {re.escape(path)}\n(.*?)^\.Ed$", page, re.MULTILINE | re.DOTALL)
    return str(text)


def promtool(*arguments: str | Path) -> None:
    run = subprocess.run(
        ["promtool", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
    )
    assert run.returncode == 0, run.stdout.decode()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "tlsmgr.rules.yml"
    path.write_text(example("/etc/prometheus/tlsmgr.rules.yml"))
    return path


@need_promtool
def test_the_configuration_and_the_rules_are_valid(tmp_path: Path, rules: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text(example("/etc/prometheus/prometheus.yml"))
    promtool("check", "config", config)  # it reads the rules as well


HEALTHY = {
    'up{instance="a"}': "1x900",
    'degraded{instance="a"}': "0x900",
    'cache_hits_total{instance="a",cache="smtp"}': "0+180x900",
    'requests_total{instance="a",cache="smtp",request="lookup"}': "0+200x900",
    'requests_total{instance="a",request="tktkey"}': "0+20x900",
    'unknown_keys_total{instance="a"}': "0+0x900",
    'ticket_key_age_seconds{instance="a",serves="new"}': "900x900",
    'farm_key_fingerprint{instance="a"}': "19114957x900",
}
FAULTS = [
    ("TlsmgrDown", 'up{instance="a"}', "0x900"),
    ("TlsmgrDegraded", 'degraded{instance="a"}', "1x900"),
    ("TlsmgrHitRateFell", 'cache_hits_total{instance="a",cache="smtp"}', "0+180x800 144000x100"),
    ("TlsmgrTicketKeyTooOld", 'ticket_key_age_seconds{instance="a",serves="new"}', "2200x900"),
    ("TlsmgrUnknownTicketKeys", 'unknown_keys_total{instance="a"}', "0+2x900"),
    ("TlsmgrFarmKeysDiffer", 'farm_key_fingerprint{instance="b"}', "19114958x900"),
]  # series of one value in two minutes, for 30 hours


def alert_case(alert: str, name: str, values: str) -> dict[str, Any]:
    """A case of promtool: of a healthy host with one other series, that alert fires, or none."""
    series = {**HEALTHY, **({name: values} if name else {})}
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else []
    after_a_day = alert in ("", "TlsmgrHitRateFell")
    expected = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "1700m" if after_a_day else "120m",
        "exp_samples": firing,
    }
    return {
        "interval": "2m",
        "input_series": [
            {"series": f"postfix_tlsmgr_{key}", "values": value} for key, value in series.items()
        ],
        "promql_expr_test": [expected],
    }


@need_promtool
def test_an_alert_fires_for_its_fault_alone(tmp_path: Path, rules: Path) -> None:
    cases = [alert_case(*fault) for fault in (("", "", ""), *FAULTS)]
    test = tmp_path / "test.yml"  # YAML has JSON in it
    whole = {"rule_files": [str(rules)], "evaluation_interval": "2m", "tests": cases}
    test.write_text(json.dumps(whole))
    promtool("test", "rules", test)


def test_each_alert_has_a_fault() -> None:
    alerts = re.findall(r"- alert: (\w+)", example("/etc/prometheus/tlsmgr.rules.yml"))
    assert sorted(alerts) == sorted(alert for alert, *_ in FAULTS)


# The dashboard


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def metric_names() -> set[str]:
    """The names of all metrics, as Prometheus stores them."""
    names = {f"postfix_tlsmgr_{counter.name}_total" for counter in COUNTERS}
    for family in registry(replace(busy(60), farm=FARM), 1e9).collect():
        names |= {sample.name for sample in family.samples}
    return names


def test_all_metrics_exist() -> None:
    rules = example("/etc/prometheus/tlsmgr.rules.yml")
    used = {name for text in (*expressions(), rules) for name in NAME.findall(text)}
    assert used
    assert used - metric_names() == set()


@need_promtool
def test_the_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    rules = [
        {"record": f"x:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "x", "rules": rules}]}))
    promtool("check", "rules", path)


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in dashboard()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
