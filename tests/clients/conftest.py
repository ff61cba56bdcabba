"""Fixtures of all client tests: the server, its description, and its tokenizer."""

import json
import pathlib
import urllib.request

import pytest

from servers import START_SECONDS, serving

ROOT = pathlib.Path(__file__).parents[2]


def pytest_addoption(parser):
    parser.addoption("--skald", default=str(ROOT / "target/release/skald"), help="the binary to test")
    parser.addoption(
        "--environments",
        default=str(ROOT / "target/clients"),
        help="where .ci/clients has put one Python environment for each file of requirements/",
    )


@pytest.fixture(scope="session")
def root():
    """Returns the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def start_server(request, tmp_path_factory):
    """Starts further servers with other flags: `with start_server("--max-queue", "1") as url`."""
    binary = str(pathlib.Path(request.config.getoption("--skald")).resolve())

    def start(*flags, directory=None):
        return serving(binary, tmp_path_factory.mktemp("skald") / "log", *flags, directory=directory)

    return start


@pytest.fixture(scope="session")
def base_url(start_server):
    """Returns the address of the server that most tests share."""
    with start_server() as url:
        yield url


@pytest.fixture(scope="session")
def info(base_url):
    """Returns the server's description of itself."""
    with urllib.request.urlopen(f"{base_url}/info", timeout=START_SECONDS) as response:
        return json.load(response)


@pytest.fixture(scope="session")
def model(info):
    """Returns the name of the served model."""
    return info["model_id"]


@pytest.fixture(scope="session")
def end_of_text(info):
    """Returns the id of the end-of-text token."""
    return info["model"]["end_of_text"][0]


@pytest.fixture(scope="session")
def ids(base_url):
    """Returns a function that tokenizes a text."""

    def tokenize(text):
        request = urllib.request.Request(f"{base_url}/tokenize", json.dumps({"content": text}).encode())
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            return json.load(response)["tokens"]

    return tokenize


@pytest.fixture(scope="session")
def running(base_url):
    """Returns a function that counts the running and waiting requests of the engine."""

    def count():
        with urllib.request.urlopen(f"{base_url}/info", timeout=START_SECONDS) as response:
            engine = json.load(response)["engine"]
        return engine["running"] + engine["waiting"]

    return count


@pytest.fixture(scope="session")
def node():
    """Returns the Node among the packages of `node/`: the client needs a newer one than Debian's."""
    found = sorted((ROOT / "tests/clients/node/node_modules").glob("node-linux-*/bin/node"))
    assert found, "run `npm ci` in tests/clients/node first"
    return str(found[0])
