"""Dashboard and alerts query metrics that a real server has, through a real Prometheus."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml

import queries
from conftest import DOCKER, generate, program

DASHBOARD = queries.of_dashboard(DOCKER / "grafana/dashboards/skald.json")
ALERTS = queries.of_rules(DOCKER / "prometheus/alerts.yml")
#: Series that Prometheus adds.
BUILT_IN = {"up": {"job", "instance"}}
#: Maximum time for Prometheus to start and to scrape twice, in seconds.
DEADLINE = 60


@pytest.fixture(scope="module")
def text(server):
    """Returns the answer of /metrics in the default format."""
    with urllib.request.urlopen(f"{server}/metrics", timeout=5) as response:
        return response.read().decode()


@pytest.fixture(scope="module")
def exposed(text):
    """Returns the name of every series, with the names of all its labels."""
    found = {}
    for line in text.splitlines():
        if series := re.match(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ", line):
            labels = re.findall(r'([a-zA-Z_]\w*)="(?:[^"\\]|\\.)*"', series[2] or "")
            found.setdefault(series[1], set()).update(labels)
    return found


def test_promtool_finds_no_fault_with_the_metrics(promtool, text):
    """vLLM's metrics have colons in their names, so tests/http/metrics.rs checks them instead."""
    own = "".join(line for line in text.splitlines(keepends=True) if "vllm:" not in line)
    outcome = promtool("check", "metrics", input=own)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("query", DASHBOARD + ALERTS, ids=lambda query: query.where)
def test_a_running_server_has_the_metrics_and_labels_of(query, exposed):
    known = exposed | BUILT_IN
    asked = query.metrics()
    assert asked, f"{query.text!r} selects no metric"
    for metric, labels in asked.items():
        assert metric in known, f"no metric {metric}"
        missing = labels - known[metric] - queries.TARGET_LABELS
        assert not missing, f"{metric} has no label {missing}"
    for metric, labels in query.grouped():
        missing = labels - known[metric] - queries.TARGET_LABELS
        assert not missing, f"{metric} has no label {missing} to group by"


def test_a_metric_or_label_that_is_not_there_is_found():
    query = queries.Query("here", 'sum by (a) (rate(x_total{b="1"}[5m])) / on (instance) y')
    assert query.metrics() == {"x_total": {"b"}, "y": set()}
    assert query.grouped() == [("x_total", {"a"})]


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory):
    """Starts Prometheus with the configuration of docker/prometheus; it scrapes the server each second."""
    path = program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [server.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        path,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield wait_until_scraped_twice(process, folder / "log", server)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_scraped_twice(process, log, server):
    """Waits for two scrapes, between which the server generates, so that rates are not zero."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        listening = re.search(r"Listening on.*address=(127\.0\.0\.1:\d+)", log.read_text())
        if listening:
            url = f"http://{listening[1]}"
            if scrapes(url) == 1:
                generate(server)
            if scrapes(url) >= 4:
                return url
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def scrapes(url):
    try:
        answer = ask(url, 'count_over_time(up{job="skald"}[1h])')
    except OSError:
        return 0
    return int(answer[0]["value"][1]) if answer else 0


def ask(url, query):
    """Returns the vector that is Prometheus' answer to a query."""
    parameters = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/api/v1/query?{parameters}", timeout=10) as response:
        return json.load(response)["data"]["result"]


@pytest.mark.parametrize("query", DASHBOARD, ids=lambda query: query.where)
def test_prometheus_answers(query, prometheus):
    assert ask(prometheus, query.text), f"no series for {query.text}"


def test_prometheus_evaluates_every_alert_and_none_of_them_fires(prometheus):
    deadline = time.monotonic() + DEADLINE
    rules = []
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=10) as response:
            groups = json.load(response)["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        if all(rule["health"] != "unknown" for rule in rules):
            break
        time.sleep(0.1)
    assert len(rules) == len(ALERTS)
    for rule in rules:
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
        assert rule["state"] == "inactive", f"{rule['name']} is {rule['state']} on a healthy server"
