"""Starts the release binary with the built-in model, once for all client tests."""

import json
import re
import subprocess
import time
import urllib.request

import pytest


def pytest_addoption(parser):
    parser.addoption("--skald", default="target/release/skald", help="the binary to test")


@pytest.fixture(scope="session")
def base_url(request, tmp_path_factory):
    log = tmp_path_factory.mktemp("skald") / "log"
    command = [request.config.getoption("--skald"), "serve", "--listen", "127.0.0.1:0", "--log-format", "json"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr)
    try:
        yield wait_until_ready(process, log)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, "a graceful stop ends with exit code 0"


def wait_until_ready(process, log):
    """The address is in the log, since the system chose the port."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found and is_ready(found.group()):
            return found.group()
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


def is_ready(url):
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def info(base_url):
    with urllib.request.urlopen(f"{base_url}/info", timeout=5) as response:
        return json.load(response)
