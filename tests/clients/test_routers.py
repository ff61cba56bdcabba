"""Replicas behind routers, set up as in docs/scale-out.md: nothing is lost when one is drained and another
killed.

Three servers share their sessions. `skald bench` puts a load on the router, and storytellers continue
their sessions turn by turn; both retry failures once, as official clients do. Meanwhile one server gets
SIGTERM and another SIGKILL, and both are restarted.
"""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

import replicas as harness
from storyteller import Storyteller

HERE = pathlib.Path(__file__).parent
GUIDE = HERE.parents[1] / "docs/scale-out.md"
#: Concurrent sessions.
SESSIONS = 8
#: Turns of each session before, between and after the restarts.
TURNS = 2
#: Time between failing readiness and refusing requests; the guide's routers check readiness every second.
DRAIN_DELAY = "3s"


def flags_of(program):
    """Returns the flags of a router in the guide, without those that the tests set."""
    lines = "".join(harness.blocks(GUIDE, "console")).replace("\\\n", " ").splitlines()
    commands = [line.split()[2:] for line in lines if line.startswith(f"$ {program} ")]
    assert len(commands) == 1, f"the guide starts {program} once"
    given, flags = commands[0], []
    while given:
        flag = given.pop(0)
        values = []
        while given and not given[0].startswith("--"):
            values.append(given.pop(0))
        if flag not in ("launch", "--host", "--port", "--policy", "--worker-urls"):
            flags += [flag, *values]
    return flags


@pytest.fixture(scope="module")
def binary(request):
    return request.config.getoption("--skald")


@pytest.fixture(scope="module")
def environment(request):
    return pathlib.Path(request.config.getoption("--environments")).resolve() / "routers/bin"


@pytest.fixture
def store(tmp_path):
    """Returns the flags with which replicas share their sessions."""
    return ["--session-dir", str(tmp_path / "sessions")]


def behind_vllm_router(policy):
    def start(environment, directory, servers):
        command = str(environment / "vllm-router")
        return harness.vllm_router(command, directory / "router.log", flags_of("vllm-router"), policy, servers)

    return start


def behind_nginx(_, directory, servers):
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert nginx, "nginx is missing: apt-get install nginx-light"
    (site,) = harness.blocks(GUIDE, "nginx")
    return harness.nginx(nginx, directory, site, servers)


ROUTERS = {
    "vllm-router, consistent_hash": behind_vllm_router("consistent_hash"),
    "vllm-router, cache_aware": behind_vllm_router("cache_aware"),
    "nginx": behind_nginx,
}


@contextlib.contextmanager
def load(binary, url, directory):
    """Runs storytellers and `skald bench` until the end of the block. Returns both."""
    stop = threading.Event()
    tellers = [Storyteller(url, f"tale-{number}", stop) for number in range(SESSIONS)]
    bench = harness.Bench(binary, url, directory)
    failures = []

    def guarded(run):
        def body():
            try:
                run()
            except BaseException as failure:
                failures.append(failure)

        return threading.Thread(target=body)

    threads = [guarded(teller.run) for teller in tellers] + [guarded(lambda: bench.run_until(stop))]
    for thread in threads:
        thread.start()
    try:
        yield tellers, bench
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def more_turns(tellers):
    """Waits until every session has made more turns."""
    goal = [len(teller.turns) + TURNS for teller in tellers]

    def gone_on():
        errors = [error for teller in tellers for error in teller.errors]
        assert not errors, errors
        return all(len(teller.turns) >= turns for teller, turns in zip(tellers, goal, strict=True))

    harness.until("every session has made more turns", gone_on, 120)


def busy(servers):
    """Returns a server on which a session's turn runs, or `None`."""
    return next((server for server in servers if server.busy_sessions()), None)


@pytest.mark.parametrize("router", ROUTERS)
def test_nothing_is_lost_when_one_replica_is_drained_and_one_killed(router, binary, environment, store, tmp_path):
    began = time.monotonic()

    def until_used(restarted):
        # `cache_aware` stays with its replica, and returns to another one only when its own is busier.
        if "cache_aware" not in router:
            harness.until("the restarted replica is used again", restarted.steps)

    flags = [*store, "--drain-delay", DRAIN_DELAY]
    with (
        harness.replicas(binary, tmp_path, 3, *flags) as servers,
        ROUTERS[router](environment, tmp_path, servers) as url,
        load(binary, url, tmp_path) as (tellers, bench),
    ):
        more_turns(tellers)
        drained = harness.until("a replica has a session", lambda: busy(servers))
        drained.drain()
        more_turns(tellers)
        drained.start()
        until_used(drained)
        more_turns(tellers)
        others = [server for server in servers if server is not drained]
        killed = harness.until("another replica has a session", lambda: busy(others))
        killed.kill()
        more_turns(tellers)
        killed.start()
        until_used(killed)
        more_turns(tellers)
    with harness.replicas(binary, tmp_path, 1, *store) as (server,):
        kept = {teller.session: harness.get(f"{server.url}/v1/sessions/{teller.session}")["text"] for teller in tellers}

    turns = sum(len(teller.turns) for teller in tellers)
    counts = {
        "router": router,
        "requests_of_bench": bench.counts["completed"],
        "retries_of_bench": bench.counts["retries"],
        "turns": turns,
        "turns_kept": sum(
            1 for teller in tellers for turn in teller.turns if turn.prompt + turn.text in kept[teller.session]
        ),
        "requests_of_sessions": sum(teller.requests for teller in tellers),
        "retries_of_sessions": sum(teller.retries for teller in tellers),
        "streams_cut": sum(teller.cut for teller in tellers),
        "streams_resumed": sum(teller.resumed for teller in tellers),
        "turns_saved_though_cut": sum(teller.saved for teller in tellers),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(counts))
    assert bench.counts["completed"] > 0
    assert bench.counts["failed"] == bench.counts["rejected"] == bench.counts["cancelled"] == 0, bench.errors
    assert counts["turns_kept"] == turns
    for teller in tellers:
        # Each turn is stored once and in order.
        assert kept[teller.session] == teller.told(), teller.session


@pytest.mark.parametrize("router", ROUTERS)
def test_the_client_of_the_guide_resumes_when_its_replica_is_killed(router, binary, environment, store, tmp_path):
    (client,) = harness.blocks(GUIDE, "python")
    assert "http://localhost:8080" in client
    with (
        harness.replicas(binary, tmp_path, 3, *store) as servers,
        ROUTERS[router](environment, tmp_path, servers) as url,
    ):
        code = client.replace("http://localhost:8080", url)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as running:
            told = running.stdout.read(1)
            killed = harness.until("a replica has the session", lambda: busy(servers))
            killed.kill()
            told += running.stdout.read()
            assert running.wait(timeout=60) == 0
        survivor = next(server for server in servers if server is not killed)
        kept = harness.get(f"{survivor.url}/v1/sessions/tale")["text"]
        assert kept == "Once upon a time" + told
        # Another server generated it again from the beginning.
        assert any(server.steps() for server in servers if server is not killed)


@pytest.mark.parametrize("policy", ["consistent_hash", "nginx"])
def test_a_session_stays_where_its_header_is_hashed_to(policy, binary, environment, store, tmp_path):
    start = behind_nginx if policy == "nginx" else behind_vllm_router(policy)
    with (
        harness.replicas(binary, tmp_path, 3, *store) as servers,
        start(environment, tmp_path, servers) as url,
    ):
        used = set()
        for number in range(9):
            before = [server.steps() for server in servers]
            teller = Storyteller(url, f"home-{number}", threading.Event())
            for _ in range(3):
                teller.turn()
            (home,) = [at for at, server in enumerate(servers) if server.steps() > before[at]]
            used.add(home)
        assert len(used) > 1, "nine sessions, and all on one server"


def test_cache_aware_asks_servers_to_tokenize_and_is_answered(binary, environment, store, tmp_path):
    with (
        harness.replicas(binary, tmp_path, 2, *store, "--log", "info,skald::http=debug") as servers,
        behind_vllm_router("cache_aware")(environment, tmp_path, servers) as url,
    ):
        for path, body in [
            ("/v1/completions", {"prompt": "Long ago", "max_tokens": 2}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}),
        ]:
            request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as response:
                assert response.status == 200
        entries = [json.loads(line) for server in servers for line in server.log.read_text().splitlines()]
        asked = [
            entry["status"]
            for entry in entries
            if entry["message"] == "request answered" and entry["span"]["path"] == "/tokenize"
        ]
        assert asked and set(asked) == {200}, asked


def test_sglang_router_knows_the_model(binary, environment, store, tmp_path):
    with (
        harness.replicas(binary, tmp_path, 2, *store) as servers,
        harness.sglang_router(
            str(environment / "sglang-router"), tmp_path / "router.log", flags_of("sglang-router"), "cache_aware", servers
        ) as url,
    ):
        model = harness.get(f"{servers[0].url}/info")["model_id"]
        assert [listed["id"] for listed in harness.get(f"{url}/v1/models")["data"]] == [model]
        workers = harness.get(f"{url}/workers")["workers"]
        assert {worker["model_id"] for worker in workers} == {model}
        assert {worker["metadata"]["model_type"] for worker in workers} == {"gpt2"}
        loads = harness.get(f"{url}/get_loads")["workers"]
        assert [worker["load"] for worker in loads] == [0, 0]
        teller = Storyteller(url, "through-sglang", threading.Event())
        for _ in range(3):
            teller.turn()
        kept = harness.get(f"{servers[0].url}/v1/sessions/through-sglang")
        assert (teller.retries, kept["text"]) == (0, teller.told())
