"""The dashboard and its provisioning name what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from service.metrics import Metrics

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "monitoring"


def test_every_metric_of_the_dashboard_is_one_of_the_service() -> None:
    text = Metrics().exposition().decode()
    known = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M):
        known |= (
            {name} if kind != "histogram" else {f"{name}_{s}" for s in ("bucket", "sum", "count")}
        )
    # Told only where a GPU answers.
    known |= {"fewshot_gpu_memory_used_bytes", "fewshot_gpu_memory_total_bytes"}
    dashboard = json.loads((MONITORING / "grafana/dashboards/fewshot.json").read_text("utf-8"))
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    used = set(re.findall(r"\bfewshot_\w+", " ".join(expressions)))
    assert used - known == set()
    assert len(used) > 20
    # And nothing that is counted is left out of sight, but the creation times of counters.
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in used}
    counted = {re.sub("_(bucket|sum|count)$", "", name) for name in known}
    assert {name for name in counted - families if not name.endswith("_created")} == set()


def test_compose_starts_the_dashboard_over_files_that_are_there() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    for name in ("prometheus", "grafana"):
        service = compose["services"][name]
        assert service["profiles"] == ["monitoring"]
        for mount in service["volumes"]:
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source[0] == "." else source in compose["volumes"]
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text("utf-8"))
    (found,) = scrape["scrape_configs"][0]["dns_sd_configs"]
    assert set(found["names"]) == {name for name in compose["services"] if "fewshot" in name}
    assert found["port"] == 8000
    sources = MONITORING / "grafana/provisioning/datasources/prometheus.yml"
    uid = yaml.safe_load(sources.read_text("utf-8"))["datasources"][0]["uid"]
    dashboard = json.loads((MONITORING / "grafana/dashboards/fewshot.json").read_text("utf-8"))
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {uid}


def test_a_rate_sees_the_first_event() -> None:
    """Which it does only where the count was there before, at 0."""
    metrics = Metrics()
    lines = metrics.exposition().decode().splitlines()
    assert "fewshot_http_server_errors_total 0.0" in lines
    assert 'fewshot_engine_restarts_total{lane="gradient"} 0.0' in lines
    assert 'fewshot_cache_lookups_total{cache="states",result="hit"} 0.0' in lines
    metrics.loaded("m", 0.1)
    for status in (200, 503):
        metrics.started()
        metrics.answered("GET", "/readyz", status, 0.1)
    lines = metrics.exposition().decode().splitlines()
    assert "fewshot_http_server_errors_total 1.0" in lines
    assert 'fewshot_dropped_requests_total{model="m",reason="gone"} 0.0' in lines
    assert 'fewshot_batches_halved_total{lane="forward",model="m"} 0.0' in lines
    assert 'fewshot_model_unloads_total{model="m"} 0.0' in lines


def test_the_settings_of_env_reach_the_containers() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    for name in ("fewshot", "fewshot-gpu"):
        assert {"path": ".env", "required": False} in services[name]["env_file"]
