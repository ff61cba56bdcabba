"""Starts the release binary with the built-in model, and stops it gracefully."""

import contextlib
import re
import subprocess
import time
import urllib.request

#: Maximum time to load the model or to answer, in seconds, on a busy machine.
START_SECONDS = 180
#: Maximum time for a graceful stop, in seconds.
STOP_SECONDS = 180


@contextlib.contextmanager
def serving(binary, log, *flags, directory=None):
    """Runs a server with these flags on a free port, in a directory. Returns its address."""
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--log-format", "json", *flags]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr, cwd=directory)
    try:
        yield wait_until_ready(process, log)
    finally:
        process.terminate()
        code = process.wait(timeout=STOP_SECONDS)
    assert code == 0, f"a graceful stop ends with exit code 0, not {code}: {log.read_text()}"


def wait_until_ready(process, log):
    """Returns the address, which is in the log because the system chose the port."""
    deadline = time.monotonic() + START_SECONDS
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
