"""Prometheus's and Grafana's files: read by promtool, each alert set off and held back, each name one that there is."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import LEAVES
from tests.conftest import StartGateway
from tests.support.clients import ask
from tests.support.recipes import CONFIG, command_of, dashboard_queries

HERE = Path(__file__).resolve().parent
RULES = CONFIG / "prometheus" / "alerts.yml"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in ALERTS]
TRIED = yaml.safe_load((HERE / "alerts_test.yml").read_text("utf-8"))["tests"]
DASHBOARD = json.loads((CONFIG / "grafana" / "dashboards" / "gateway.json").read_text("utf-8"))
GRAFANA = CONFIG / "grafana" / "provisioning"
NOT_OURS = {"busy", "draining", "unsupported-transfer-coding", "loop-detected"}
"""Errors of 500 and more that say nothing of what fails here."""


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [command_of("promtool"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def provisioned(path: str) -> dict[str, Any]:
    (one,) = (
        value for value in yaml.safe_load((GRAFANA / path).read_text("utf-8")).values() if isinstance(value, list)
    )
    (found,) = one
    return dict(found)


@pytest.mark.sockets
class TestPromtool:
    def test_takes_the_configuration_and_the_alerts(self) -> None:
        done = promtool("check", "config", "--lint-fatal", CONFIG / "prometheus" / "prometheus.yml")
        assert done.returncode == 0, done.stderr
        assert f"{len(ALERTS)} rules found" in done.stdout

    def test_finds_each_alert_where_it_should_be_and_nowhere_else(self) -> None:
        done = promtool("test", "rules", HERE / "alerts_test.yml")
        assert done.returncode == 0, done.stdout + done.stderr

    def test_would_tell_of_an_alert_that_is_never_there_and_of_one_that_always_is(self, tmp_path: Path) -> None:
        for expression, least in (("vector(1) > 1", len(NAMES)), ("vector(1)", len(NAMES))):
            rules = yaml.safe_load(RULES.read_text("utf-8"))
            for rule in rules["groups"][0]["rules"]:
                rule["expr"] = expression
                rule.pop("for", None)
            (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
            tests = (
                (HERE / "alerts_test.yml")
                .read_text("utf-8")
                .replace("../../config/prometheus/alerts.yml", "alerts.yml")
            )
            (tmp_path / "test.yml").write_text(tests)
            said = promtool("test", "rules", tmp_path / "test.yml")
            assert said.returncode == 1
            assert len(set(re.findall(r"alertname: (\w+)", said.stdout + said.stderr))) == least

    def test_understands_each_query_of_the_dashboard(self, tmp_path: Path) -> None:
        rules = [{"record": f"panel_{number}", "expr": query} for number, (_, query) in enumerate(dashboard_queries())]
        path = tmp_path / "queries.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
        done = promtool("check", "rules", path)
        assert done.returncode == 0, done.stderr
        assert f"{len(rules)} rules found" in done.stdout


class TestAlerts:
    def test_each_is_tried_where_it_has_to_be_and_where_it_must_not(self) -> None:
        cases = [case for test in TRIED for case in test["alert_rule_test"]]
        assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(NAMES)
        assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(NAMES)

    def test_each_says_how_urgent_it_is_and_what_it_is_about(self) -> None:
        assert len(set(NAMES)) == len(NAMES)
        for rule in ALERTS:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"].keys() == {"summary", "description"}

    def test_each_has_a_section_that_says_what_to_do(self) -> None:
        page = (CONFIG.parent / "docs" / "alerts.md").read_text("utf-8")
        assert re.findall(r"^## (Gateway\w+)$", page, re.MULTILINE) == NAMES

    def test_uploads_that_fail_are_those_that_no_client_is_to_blame_for(self) -> None:
        (rule,) = (rule for rule in ALERTS if rule["alert"] == "GatewayUploadsFail")
        (outcomes,) = re.findall(r'outcome=~"([^"]+)"', rule["expr"])
        ours = {leaf.slug() for leaf in LEAVES if leaf.status >= 500} - NOT_OURS
        assert outcomes.split("|") == sorted(ours)

    def test_what_is_named_in_a_label_is_the_name_of_an_error(self) -> None:
        slugs = {leaf.slug() for leaf in LEAVES}
        named = [name for rule in ALERTS for name in re.findall(r'(?:reason|outcome)!?="([^"]+)"', rule["expr"])]
        assert named
        assert set(named) <= slugs


class TestTheDashboard:
    def test_has_a_query_and_a_reason_in_each_panel(self) -> None:
        panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
        assert len(panels) > 20
        for panel in panels:
            assert panel["targets"]
            assert panel["description"]
            assert panel["datasource"]["uid"] == provisioned("datasources/prometheus.yml")["uid"]
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
        assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(set(places)) == len(places)

    def test_lies_where_grafana_looks_for_it(self) -> None:
        folder = provisioned("dashboards/gateway.yml")["options"]["path"]
        compose = yaml.safe_load((CONFIG.parent / "docker-compose.yml").read_text("utf-8"))["services"]["grafana"]
        assert f"./config/grafana/dashboards:{folder}:ro" in compose["volumes"]
        assert compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == f"{folder}/gateway.json"

    def test_asks_for_rates_over_no_less_than_grafana_knows_to_have_samples(self) -> None:
        scraped = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text("utf-8"))
        interval = provisioned("datasources/prometheus.yml")["jsonData"]["timeInterval"]
        assert interval == scraped["global"]["scrape_interval"]
        queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
        assert {found for query in queries for found in re.findall(r"\[(.*?)\]", query)} == {"$__rate_interval"}


async def test_what_alerts_and_panels_name_is_what_the_gateway_tells_and_all_of_it_is_shown(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    told = (await ask(gateway.port, "/metrics")).body.decode()
    families = {family.name: family.type for family in text_string_to_metric_families(told)}
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    names = {f"{name}{suffix}" for name, kind in families.items() for suffix in suffixes[kind]}
    shown = set(re.findall(r"\bgateway_\w+", " ".join(query for _, query in dashboard_queries())))
    watched = set(re.findall(r"\bgateway_\w+", " ".join(rule["expr"] for rule in ALERTS)))
    assert shown | watched <= names
    per_family = {name: {f"{name}{suffix}" for suffix in suffixes[kind]} for name, kind in families.items()}
    assert [name for name, series in per_family.items() if not series & shown] == []
