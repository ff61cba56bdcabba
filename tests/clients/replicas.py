"""Several servers that share their sessions, which can be drained and killed one by one."""

import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import time
import urllib.request

from servers import STOP_SECONDS, wait_until_ready

#: Interval between checks of an awaited state, in seconds.
LOOK_SECONDS = 0.02


def free_port():
    """Returns a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url, timeout=10):
    """Returns the JSON at an address."""
    with urllib.request.urlopen(url, timeout=timeout) as response:
        return json.load(response)


def until(what, holds, seconds=60):
    """Waits until `holds` returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(LOOK_SECONDS)
    return found


class Replica:
    """A server that keeps its address when it is restarted."""

    def __init__(self, binary, log, flags):
        self.port = free_port()
        self.log = log
        self.command = [binary, "serve", "--listen", f"127.0.0.1:{self.port}", "--log-format", "json", *flags]
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        """Starts the server and waits until it is ready."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        wait_until_ready(self.process, self.log)

    def drain(self):
        """Asks the server to stop, and waits for its graceful exit."""
        self.process.terminate()
        code = self.process.wait(timeout=STOP_SECONDS)
        assert code == 0, f"a graceful stop ends with exit code 0, not {code}: {self.log.read_text()}"

    def kill(self):
        """Kills the server."""
        self.process.kill()
        assert self.process.wait(timeout=STOP_SECONDS) == -signal.SIGKILL

    def steps(self):
        """Returns the number of forward passes since the start."""
        return get(f"{self.url}/info")["engine"]["steps"]

    def busy_sessions(self):
        """Returns the ids of the sessions that this server generates for."""
        return [session["id"] for session in get(f"{self.url}/v1/sessions")["data"] if session["busy"]]


@contextlib.contextmanager
def replicas(binary, directory, count, *flags):
    """Starts `count` servers of the built-in model, one compute thread each, until the end of the block."""
    common = ["--threads", "1", "--kv-memory", "128MiB", *flags]
    started = []
    try:
        for number in range(count):
            started.append(Replica(binary, directory / f"replica-{number}.log", common))
        yield started
    finally:
        for replica in started:
            if replica.process.poll() is None:
                replica.process.kill()
                replica.process.wait(timeout=STOP_SECONDS)


@contextlib.contextmanager
def program(command, log, is_up):
    """Runs a router until the end of the block."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        def up():
            assert process.poll() is None, log.read_text()
            return is_up()

        until(f"{command[0]} is up", up)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url):
    """Returns whether an address answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def vllm_router(command, log, flags, policy, servers):
    """Runs vLLM's router in front of servers. Returns its address."""
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    urls = ["--worker-urls", *(server.url for server in servers)]
    with program([command, *arguments, "--policy", policy, *flags, *urls], log, lambda: answers(f"http://127.0.0.1:{port}/health")):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def sglang_router(command, log, flags, policy, servers):
    """Runs SGLang's router in front of servers. Returns its address."""
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    urls = ["--worker-urls", *(server.url for server in servers)]
    workers = lambda: answers(f"http://127.0.0.1:{port}/workers") and get(f"http://127.0.0.1:{port}/workers")["total"] == len(servers)
    with program([command, "launch", *arguments, "--policy", policy, *flags, *urls], log, workers):
        yield f"http://127.0.0.1:{port}"


#: Debian's configuration around that of a site, in a directory of its own.
NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    scgi_temp_path {directory}/scgi;
    uwsgi_temp_path {directory}/uwsgi;
    include {directory}/site.conf;
}}
"""


@contextlib.contextmanager
def nginx(command, directory, site, servers):
    """Runs nginx with a site of the guide in front of servers. Returns its address.

    Only the addresses in the site are replaced: `listen`, and as many `server` lines as there are servers.
    """
    port = free_port()
    places = [f"127.0.0.1:{8081 + number}" for number in range(len(servers))]
    for place, server in zip(places, servers, strict=True):
        assert place in site, f"the guide's site has no {place}"
        site = site.replace(place, f"127.0.0.1:{server.port}")
    assert "listen 8080;" in site
    (directory / "site.conf").write_text(site.replace("listen 8080;", f"listen 127.0.0.1:{port};"))
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(directory=directory))
    url = f"http://127.0.0.1:{port}"
    start = [command, "-p", str(directory), "-c", str(configuration), "-e", str(directory / "error.log")]
    with program(start, directory / "nginx.log", lambda: answers(f"{url}/health")):
        yield url


class Bench:
    """Runs `skald bench` repeatedly until it is asked to stop; each run is completed."""

    def __init__(self, binary, url, directory):
        self.report = directory / "bench.json"
        self.command = [
            binary, "bench", url, "--concurrency", "3", "--requests", "24", "--retries", "1",
            "--prompt-tokens", "8..32", "--output-tokens", "8..32", "--json",
        ]  # fmt: skip
        self.counts = {"completed": 0, "failed": 0, "rejected": 0, "cancelled": 0, "retries": 0}
        self.errors = []

    def run_until(self, stopped):
        """Runs until an event is set, and counts the outcomes of requests."""
        while not stopped.is_set():
            done = subprocess.run(self.command, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
            report = json.loads(done.stdout)
            for kind in self.counts:
                self.counts[kind] += report["requests"][kind]
            self.errors += report["errors"]


def blocks(guide: pathlib.Path, language):
    """Returns the fenced blocks of a language in a guide."""
    found, inside = [], None
    for line in guide.read_text().splitlines():
        if inside is None and line == f"```{language}":
            inside = []
        elif inside is not None and line == "```":
            found.append("\n".join(inside) + "\n")
            inside = None
        elif inside is not None:
            inside.append(line)
    return found
