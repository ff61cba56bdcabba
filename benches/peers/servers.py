"""Starts and stops the measured servers, one at a time."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 120
STOP_SECONDS = 40


def skald(binary, checkpoint, dtype, threads, *more):
    """Returns the command for `skald serve` with its defaults and further arguments."""
    return lambda port: [
        str(binary),
        "serve",
        f"--listen=127.0.0.1:{port}",
        f"--model={checkpoint}",
        f"--dtype={dtype}",
        f"--threads={threads}",
        "--log=warn",
        *more,
    ]


def llama_server(binary, gguf, slots, context, threads):
    """`llama-server` with `slots` sequences of `context` tokens each.

    Its cache of idle sequences' KV is off: no prompt comes twice, so it could only cost.
    """
    options = {
        "host": "127.0.0.1",
        "model": gguf,
        "threads": threads,
        "threads-batch": threads,
        "parallel": slots,
        "ctx-size": slots * context,
        "cache-ram": 0,
    }
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return lambda port: [str(binary), *flags, "--port", str(port)]


@contextlib.contextmanager
def running(command, log, ready):
    """Runs a server, waits for a 200 from `ready`, yields its URL and process id, and stops it afterwards."""
    port = free_port()
    with Path(log).open("w") as output:
        process = subprocess.Popen(command(port), stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(process, url + ready, log)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_ready(process, url, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}; see {log}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            with urllib.request.urlopen(url, timeout=1):
                return
        time.sleep(0.1)
    sys.exit(f"the server was not ready after {START_SECONDS} s; see {log}")


def post(url, body):
    """Sends JSON and returns JSON."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
