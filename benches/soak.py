"""Soak test: hours of mixed load in all dialects, with misbehaving clients, followed by checks for leaks.

    python3 benches/soak.py target/release/skald --minutes 60

Starts the server with the built-in model and a small KV cache, and runs concurrent clients: streams, complete
responses, chats, embeddings, grammars, sessions with forks and rewinds, clients that disconnect, clients that stop
reading, invalid requests. Every ten seconds it samples the process. It fails (exit code 1) if

- a response is a 5xx or has an unexpected status,
- memory grows by more than 5 % after a warm-up of ten minutes (25 % after half the time, in a run of less than 20),
- a file descriptor, a slot in the batch or a KV block is still held after all clients have gone,
- an output differs from that of the same request alone: every tenth is repeated on a fresh server.

Needs Linux (it reads /proc) and only Python's standard library.
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import json
import pathlib
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests/clients"))

from servers import wait_until_ready  # noqa: E402

#: Time limit of a request in seconds, for a busy machine.
PATIENCE = 180
#: Interval between two samples of the process, in seconds.
INTERVAL = 10
#: Warm-up in seconds, after which memory must be flat. A run too short for it uses half its time, while caches are
#: still filling.
WARM_UP = 600
#: Permitted growth of memory after the warm-up, and in a run that is too short for it.
GROWTH, GROWTH_IN_SHORT = 0.05, 0.25
#: One in this many outputs is compared with a solo run.
COMPARED = 10
#: A small cache, so that blocks are constantly evicted and restored, and requests preempted.
FLAGS = ["--kv-memory", "48MiB", "--max-batch", "12", "--max-queue", "64", "--session-kv-size", "32MiB",
         "--max-sessions", "64"]

PROMPTS = [
    "Once upon a time", "The king said,", "In a dark wood there lived a wolf who", "Little girl,",
    "When the old soldier came to the castle gate, he", "The fisherman's wife", "A fox and a goose",
    "\u201cWhere are you going?\u201d", "\U0001f43a", " ", "It was winter, and the snow " * 20,
]
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
}
#: Requests that must be refused: path, body, status.
WRONG = [
    ("/generate", b"{", 400),
    ("/generate", b'{"inputs": 7}', 422),
    ("/generate", b'{"inputs": "a", "parameters": {"max_new_tokens": -1}}', 422),
    ("/v1/completions", b'{"prompt": "a", "temperature": "hot"}', 400),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": 99999999}', 400),
    ("/v1/completions", b'{"prompt": "a", "model": "nothing-like-it"}', 404),
    ("/v1/completions", b'{"prompt": "a", "guided_regex": "(("}', 400),
    ("/v1/chat/completions", b'{"messages": []}', 400),
    ("/v1/embeddings", b'{"input": []}', 400),
    ("/nowhere", b"{}", 404),
]


class Wrong(Exception):
    """An unexpected response."""


@dataclasses.dataclass
class Server:
    """A running server, seen from outside."""

    process: subprocess.Popen
    port: int

    def ask(self, path, body=None, method=None):
        """Sends a request and returns the status and body of its response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            headers = {} if data is None else {"Content-Type": "application/json"}
            connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def open(self, path, body, buffer=None):
        """Sends a request and returns the socket without reading from it."""
        sock = socket.socket()
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", self.port))
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return sock

    def engine(self):
        return json.loads(self.ask("/info")[1])["engine"]

    def memory(self):
        """Returns the resident memory in bytes."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def files(self):
        """Returns the number of open file descriptors."""
        return len(list(pathlib.Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextlib.contextmanager
def serving(binary, directory):
    directory.mkdir(exist_ok=True)
    log = directory / f"log-{time.monotonic_ns()}"
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--log", "warn,skald=info",
               "--session-dir", str(directory / "sessions"), *FLAGS]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr)
    try:
        yield Server(process, urllib.parse.urlsplit(wait_until_ready(process, log)).port)
    finally:
        process.terminate()
        code = process.wait(timeout=PATIENCE)
    if code != 0:
        raise Wrong(f"the server ended with {code}: {log.read_text()[-2000:]}")


# --- the visits; each returns the outputs that a solo run must reproduce ---


def parameters(rng):
    """Returns sampling parameters with OpenAI's names, and a seed."""
    return {
        "seed": rng.randrange(2**31), "max_tokens": rng.choice([1, 8, 24, 60]),
        "temperature": rng.choice([0, 0.7, 1.3]), "top_p": rng.choice([1.0, 0.9]),
    }


def accepted(status, answer):
    """Returns whether a request was served; it may be refused if the queue is full."""
    if status in (429, 503):
        return False
    if status not in (200, 201):
        raise Wrong(f"{status}: {answer[:500]!r}")
    return True


def of_whole(path, body, read):
    """Returns a visit that sends one request and reads its output with `read`."""

    def visit(server):
        status, answer = server.ask(path, body)
        return [read(answer)] if accepted(status, answer) else None

    return visit


def events(answer):
    """Returns the data of a stream's events."""
    lines = answer.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def native(rng):
    body = {"inputs": rng.choice(PROMPTS), "parameters": {
        "max_new_tokens": rng.choice([1, 20, 50]), "seed": rng.randrange(2**31), "details": True}}
    return of_whole("/generate", body, lambda answer: json.loads(answer)["generated_text"])


def native_stream(rng):
    body = {"inputs": rng.choice(PROMPTS), "parameters": {"max_new_tokens": 30, "seed": rng.randrange(2**31)}}
    return of_whole("/generate_stream", body, lambda answer: [e["token"]["id"] for e in events(answer)])


def completion(rng):
    body = {"prompt": rng.choice(PROMPTS), "logprobs": 3, "n": rng.choice([1, 1, 3]), **parameters(rng)}
    return of_whole("/v1/completions", body, lambda answer: [c["text"] for c in json.loads(answer)["choices"]])


def completion_stream(rng):
    body = {"prompt": rng.choice(PROMPTS), "stream": True, **parameters(rng)}

    def read(answer):
        if not answer.rstrip().endswith(b"data: [DONE]"):
            raise Wrong(f"incomplete stream: {answer[-300:]!r}")
        return "".join(e["choices"][0]["text"] for e in events(answer) if e["choices"])

    return of_whole("/v1/completions", body, read)


def chat(rng):
    body = {"messages": [{"role": "system", "content": "A tale told by the fire."},
                         {"role": "user", "content": rng.choice(PROMPTS)}], **parameters(rng)}
    return of_whole("/v1/chat/completions", body, lambda answer: json.loads(answer)["choices"][0]["message"]["content"])


def embedding(rng):
    body = {"input": rng.sample(PROMPTS, 3)}
    return of_whole("/v1/embeddings", body, lambda answer: [e["embedding"] for e in json.loads(answer)["data"]])


def tokens(rng):
    return of_whole("/tokenize", {"content": rng.choice(PROMPTS) * 3}, lambda answer: json.loads(answer)["tokens"])


def structured(rng):
    follow = rng.choice([
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        {"guided_regex": "[a-z]{3,9}( [a-z]{3,9}){2}"},
        {"guided_choice": ["yes", "no", "perhaps"]},
    ])
    body = {"prompt": rng.choice(PROMPTS), "seed": rng.randrange(2**31), "max_tokens": 60, **follow}
    return of_whole("/v1/completions", body, lambda answer: json.loads(answer)["choices"][0]["text"])


def beams(rng):
    body = {"prompt": rng.choice(PROMPTS), "use_beam_search": True, "n": 3, "max_tokens": 12, "temperature": 0}
    return of_whole("/v1/completions", body, lambda answer: [c["text"] for c in json.loads(answer)["choices"]])


def session(rng):
    """Runs turns on a session, forks it, rewinds it, and deletes both sessions."""
    base = [dict(parameters(rng), prompt=rng.choice(PROMPTS[:8])) for _ in range(3)]
    other = dict(parameters(rng), prompt=" But")

    def visit(server):
        name = f"soak-{random.getrandbits(64):x}"
        outputs = []
        for body in base:
            status, answer = server.ask("/v1/completions", {**body, "session_id": name})
            if not accepted(status, answer):
                return delete(server, name)
            outputs.append(json.loads(answer)["choices"][0]["text"])
        status, answer = server.ask(f"/v1/sessions/{name}/fork", {"id": f"{name}-fork"})
        if not accepted(status, answer):
            return delete(server, name)
        status, answer = server.ask(f"/v1/sessions/{name}/rewind", {"tokens": 4})
        accepted(status, answer)
        for which in (name, f"{name}-fork"):
            status, answer = server.ask("/v1/completions", {**other, "session_id": which})
            if not accepted(status, answer):
                return delete(server, name, f"{name}-fork")
            outputs.append(json.loads(answer)["choices"][0]["text"])
        delete(server, name, f"{name}-fork")
        return outputs

    return visit


def delete(server, *names):
    for name in names:
        server.ask(f"/v1/sessions/{name}", method="DELETE")


def hang_up(rng):
    """Disconnects in the middle of a stream, or before its first token."""
    pause = rng.choice([0, 0.05, 0.5])

    def visit(server):
        body = {"prompt": rng.choice(PROMPTS), "stream": True, "max_tokens": 5000, "overflow": "slide", "ignore_eos": True}
        with contextlib.closing(server.open("/v1/completions", body)) as sock:
            if pause:
                sock.recv(1000)
                time.sleep(pause)
        return []

    return visit


def stop_reading(rng):
    """Keeps the connection open without reading, then closes it."""
    pause = rng.choice([2, 5])

    def visit(server):
        body = {"inputs": rng.choice(PROMPTS), "stream": True, "parameters": {
            "max_new_tokens": 20000, "overflow": "slide", "ignore_eos": True}}
        with contextlib.closing(server.open("/generate", body, buffer=4096)):
            time.sleep(pause)
        return []

    return visit


def be_wrong(rng):
    path, body, expected = rng.choice(WRONG)

    def visit(server):
        status, answer = server.ask(path, body)
        if status != expected:
            raise Wrong(f"{path} {body!r}: {status}, not {expected}: {answer[:300]!r}")
        return []

    return visit


VISITS = {
    native: 3, native_stream: 3, completion: 3, completion_stream: 5, chat: 3, embedding: 2, tokens: 2, structured: 2,
    beams: 1, session: 3, hang_up: 3, stop_reading: 1, be_wrong: 3,
}


@dataclasses.dataclass
class Soak:
    """The load and its results."""

    server: Server
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    answered: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    refused: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    #: Visits to repeat alone: kind, seed, outputs.
    compared: list = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)

    def visitor(self, number):
        """Runs visits one after the other, chosen by a seeded generator."""
        kinds, weights = zip(*VISITS.items())
        rng = random.Random(number)
        while not self.stop.is_set():
            kind, seed = rng.choices(kinds, weights)[0], rng.randrange(2**31)
            try:
                outputs = kind(random.Random(seed))(self.server)
            except (Wrong, OSError, http.client.HTTPException, ValueError, KeyError) as fault:
                with self.lock:
                    self.faults.append(f"{kind.__name__}, seed {seed}: {fault!r}")
                continue
            with self.lock:
                if outputs is None:
                    self.refused[kind.__name__] += 1
                    continue
                self.answered[kind.__name__] += 1
                if outputs and self.answered[kind.__name__] % COMPARED == 0:
                    self.compared.append((kind, seed, outputs))


def watch(server, minutes, soak):
    """Samples the process until the time is over; returns (seconds, bytes, files) for each sample."""
    curve, begun = [], time.monotonic()
    while (passed := time.monotonic() - begun) < minutes * 60:
        if server.process.poll() is not None:
            soak.faults.append(f"the server ended with {server.process.returncode}")
            break
        curve.append((round(passed), server.memory(), server.files()))
        time.sleep(INTERVAL)
    return curve


def wait_until_idle(server, files):
    """Waits until no resource is held; returns a description of those still held after a deadline."""
    deadline = time.monotonic() + PATIENCE
    while True:
        engine = server.engine()
        held = {name: engine[name] for name in ("running", "waiting", "kv_blocks_used")}
        held["files"] = max(0, server.files() - files)
        if not any(held.values()):
            return None
        if time.monotonic() > deadline:
            return f"still held after all clients have gone: {held}"
        time.sleep(0.2)


def growth(curve, minutes):
    """Returns the relative growth of memory from the end of the warm-up to the end, each averaged over a tenth."""
    warm = min(WARM_UP, minutes * 60 / 2)
    after = [memory for seconds, memory, _ in curve if seconds >= warm]
    tenth = max(1, len(after) // 10)
    if not after:
        return 0.0
    begin, end = sum(after[:tenth]) / tenth, sum(after[-tenth:]) / tenth
    return end / begin - 1


def alone(binary, directory, compared):
    """Repeats each request alone on a fresh server; returns the differences."""
    differing = []
    with serving(binary, directory) as server:
        for kind, seed, outputs in compared:
            again = kind(random.Random(seed))(server)
            if again != outputs:
                differing.append(f"{kind.__name__}, seed {seed}: {outputs!r} under load, {again!r} alone")
    return differing


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binary", help="the release binary")
    arguments.add_argument("--minutes", type=float, default=60, help="duration of the load (default: 60)")
    arguments.add_argument("--visitors", type=int, default=20, help="concurrent clients (default: 20)")
    arguments.add_argument("--json", type=pathlib.Path, help="write the figures and the samples to this file")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        with serving(given.binary, directory) as server:
            for kind in VISITS:
                kind(random.Random(1))(server)
            soak = Soak(server)
            idle = wait_until_idle(server, 10**6)
            files = server.files()
            threads = [threading.Thread(target=soak.visitor, args=(n,), daemon=True) for n in range(given.visitors)]
            for thread in threads:
                thread.start()
            curve = watch(server, given.minutes, soak)
            soak.stop.set()
            for thread in threads:
                thread.join(PATIENCE)
            if idle := idle or wait_until_idle(server, files):
                soak.faults.append(idle)
        grown = growth(curve, given.minutes)
        is_short = given.minutes * 60 < 2 * WARM_UP
        if grown > (GROWTH_IN_SHORT if is_short else GROWTH):
            soak.faults.append(f"memory grew by {grown:.1%} after the warm-up")
        soak.faults += alone(given.binary, directory / "alone", soak.compared)
    report(given, soak, curve, grown)
    sys.exit(1 if soak.faults else 0)


def report(given, soak, curve, grown):
    total = sum(soak.answered.values())
    print(f"{given.minutes:g} minutes, {given.visitors} visitors: {total} visits, {sum(soak.refused.values())} refused (429)")
    for kind in VISITS:
        print(f"  {kind.__name__:18} {soak.answered[kind.__name__]:7} {soak.refused[kind.__name__]:5}")
    print(f"{len(soak.compared)} outputs compared with a solo run")
    memory = [bytes // 2**20 for _, bytes, _ in curve] or [0]
    print(f"memory, MiB: {memory[0]} first, {max(memory)} maximum, {memory[-1]} last; {grown:+.1%} after the warm-up")
    print(f"files: {curve[0][2] if curve else 0} first, {max((f for *_, f in curve), default=0)} maximum")
    for fault in soak.faults[:20]:
        print(f"FAULT {fault}")
    print(f"{len(soak.faults)} faults")
    if given.json:
        figures = {"minutes": given.minutes, "visits": soak.answered, "refused": soak.refused, "curve": curve,
                   "growth": grown, "compared": len(soak.compared), "faults": soak.faults}
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
