"""What all client tests share: the server, its facts, and its tokenizer."""

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
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def start_server(request, tmp_path_factory):
    """Starts further servers, with flags of their own: `with start_server("--max-queue", "1") as url`."""
    binary = request.config.getoption("--skald")
    return lambda *flags: serving(binary, tmp_path_factory.mktemp("skald") / "log", *flags)


@pytest.fixture(scope="session")
def base_url(start_server):
    """The server nearly all tests share."""
    with start_server() as url:
        yield url


@pytest.fixture(scope="session")
def info(base_url):
    """What the server says of itself."""
    with urllib.request.urlopen(f"{base_url}/info", timeout=START_SECONDS) as response:
        return json.load(response)


@pytest.fixture(scope="session")
def model(info):
    """The name of the served model."""
    return info["model_id"]


@pytest.fixture(scope="session")
def end_of_text(info):
    """The id of the token that ends a text."""
    return info["model"]["end_of_text"][0]


@pytest.fixture(scope="session")
def ids(base_url):
    """Turns a text into token ids."""

    def tokenize(text):
        request = urllib.request.Request(f"{base_url}/tokenize", json.dumps({"content": text}).encode())
        with urllib.request.urlopen(request, timeout=START_SECONDS) as response:
            return json.load(response)["tokens"]

    return tokenize


@pytest.fixture(scope="session")
def running(base_url):
    """How many requests the engine has at this moment, running or waiting."""

    def count():
        with urllib.request.urlopen(f"{base_url}/info", timeout=START_SECONDS) as response:
            engine = json.load(response)["engine"]
        return engine["running"] + engine["waiting"]

    return count


@pytest.fixture(scope="session")
def node():
    """The Node that came with the packages of `node/`: the client wants a newer one than Debian has."""
    found = sorted((ROOT / "tests/clients/node/node_modules").glob("node-linux-*/bin/node"))
    assert found, "run `npm ci` in tests/clients/node first"
    return str(found[0])
