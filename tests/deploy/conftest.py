"""Fixtures of the tests of compose file, dashboards, alerts and manifests."""

import json
import os
import pathlib
import shutil
import subprocess
import urllib.error
import urllib.request

import pytest
import yaml

from servers import serving

ROOT = pathlib.Path(__file__).parents[2]
DOCKER = ROOT / "docker"
#: Variable that makes a missing program a failure instead of a reason to skip.
REQUIRED = "SKALD_TEST_DEPLOY"
#: Name of the served model.
MODEL = "tales"


def pytest_addoption(parser):
    parser.addoption("--skald", default=str(ROOT / "target/release/skald"), help="the binary to test")


def program(name, *, also=None):
    """Returns the path of a program, or of the copy in `also`."""
    found = shutil.which(name) or (str(also) if also and also.exists() else None)
    if found is None and os.environ.get(REQUIRED):
        pytest.fail(f"{name} is not installed, and {REQUIRED} requires it")
    return found or pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session")
def promtool():
    """Returns a function that runs promtool."""
    path = program("promtool")

    def run(*arguments, **options):
        return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)

    return run


@pytest.fixture(scope="session")
def compose():
    """Returns the content of the compose file."""
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


@pytest.fixture(scope="session")
def version():
    """Returns the version of Skald, from its manifest."""
    for line in (ROOT / "Cargo.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise AssertionError("Cargo.toml has no version")


@pytest.fixture(scope="session")
def server(request, tmp_path_factory):
    """Starts a server and sends requests with several outcomes, so that every metric has its labels."""
    folder = tmp_path_factory.mktemp("skald")
    with serving(
        request.config.getoption("--skald"),
        folder / "log",
        "--served-model-name",
        MODEL,
        "--session-dir",
        str(folder / "sessions"),
    ) as url:
        generate(url)
        yield url


def generate(url):
    """Sends requests that use the prefix cache and speculation, and one that is refused."""
    post(f"{url}/generate", {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 24}})
    repetitive = {"prompt": "the cat and " * 12, "max_tokens": 32, "temperature": 0}
    for _ in range(2):
        post(f"{url}/v1/completions", {"model": MODEL, **repetitive})
    post(f"{url}/v1/completions", {"model": "another", **repetitive}, accept=404)


def post(url, body, accept=200):
    """Posts JSON, and checks the status of the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()
            status = response.status
    except urllib.error.HTTPError as error:
        status = error.code
    assert status == accept, f"{url} answered {status}"
