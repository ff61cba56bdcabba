"""docker/compose.yaml: a valid project whose services fit together and are closed by default."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import DOCKER, ROOT

COMPOSE = DOCKER / "compose.yaml"


def test_it_keeps_to_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("profiles", "services"),
    [
        ([], ["skald"]),
        (["monitoring"], ["grafana", "prometheus", "skald"]),
        (["postgres"], ["postgres", "skald"]),
    ],
)
def test_docker_starts_the_services_of(profiles, services):
    """Docker's own parser, if the client has the plugin; the engine is not needed."""
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=30).returncode:
        pytest.skip("docker compose is not installed")
    flags = [flag for profile in profiles for flag in ("--profile", profile)]
    command = [docker, "compose", "-f", str(COMPOSE), *flags, "config", "--services"]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert sorted(outcome.stdout.split()) == services


def test_without_a_profile_there_is_skald_alone(compose):
    alone = [name for name, service in compose["services"].items() if "profiles" not in service]
    assert alone == ["skald"]
    assert "depends_on" not in compose["services"]["skald"]


def test_images_are_pinned_and_ports_are_local(compose):
    for name, service in compose["services"].items():
        image = re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"])
        assert re.fullmatch(r".+:v?\d+\.\d+(\.\d+)?", image), f"{name}: {image}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to the network"


def test_skald_has_no_more_than_it_needs(compose, version):
    skald = compose["services"]["skald"]
    assert skald["image"] == f"${{SKALD_IMAGE:-skald:{version}}}"
    assert skald["build"]["args"]["VERSION"] == version
    assert skald["read_only"] is True
    assert skald["cap_drop"] == ["ALL"]
    assert skald["security_opt"] == ["no-new-privileges:true"]
    assert skald["mem_limit"]
    mounted = dict(volume.split(":") for volume in skald["volumes"])
    assert mounted["sessions"] == skald["environment"]["SKALD_SESSION_DIR"]
    assert set(mounted) <= set(compose["volumes"])


def test_a_container_has_the_time_to_drain(compose):
    settings = (ROOT / "config/skald.toml").read_text()
    drain = int(re.search(r'^drain-timeout = "(\d+)s"$', settings, re.MULTILINE)[1])
    assert int(compose["services"]["skald"]["stop_grace_period"].removesuffix("s")) > drain


def test_prometheus_scrapes_the_service_of_skald(compose):
    services = compose["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["prometheus"]["volumes"])
    for source in mounts:
        if source.startswith("./"):
            assert (DOCKER / source).is_file(), source
    prometheus = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["job_name"] == "skald"
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in services
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    loaded = {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]}
    assert loaded <= set(mounts.values())
