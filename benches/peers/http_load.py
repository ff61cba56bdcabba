#!/usr/bin/env python3
"""Loads a server with OpenAI's streaming completions and reports the client's measurements.

    http_load.py --url http://127.0.0.1:8080 --streams 16 [--requests 32] [--pid SERVER_PID]

Each stream sends one request after the other (a closed loop), each on a new connection, until all
are answered. Prompts are random token ids, from a seed, so every server gets the same ones. Prints
one JSON object.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import aiohttp

import workload

WARM_UP_TOKENS = 8


class Record:
    """The measurements of all requests, in seconds."""

    def __init__(self):
        self.first = []
        self.between = []
        self.tokens = 0


async def request(session, url, prompt, new, record):
    """Runs one streamed completion."""
    body = {
        "prompt": prompt,
        "max_tokens": new,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, last, completion_tokens = time.perf_counter(), None, None
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {await answer.text()}")
        async for line in answer.content:
            now = time.perf_counter()
            if not line.startswith(b"data:"):
                continue
            data = line[len(b"data:") :].strip()
            if data == b"[DONE]":
                break
            event = json.loads(data)
            if "error" in event:
                raise RuntimeError(event["error"])
            if event.get("usage"):
                completion_tokens = event["usage"]["completion_tokens"]
            choices = event.get("choices")
            # The last event has only the finish reason.
            if not choices or (choices[0].get("finish_reason") and not choices[0].get("text")):
                continue
            if last is None:
                record.first.append(now - started)
            else:
                record.between.append(now - last)
            last = now
    if completion_tokens != new:
        raise RuntimeError(f"{completion_tokens} tokens instead of {new}")
    record.tokens += completion_tokens


async def load(arguments):
    count = arguments.requests or max(4, 2 * arguments.streams)
    prompts = workload.prompts(count + 1, arguments.prompt_tokens, arguments.seed)
    record = Record()
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=1 << 20) as session:
        await request(session, arguments.url, prompts.pop(), WARM_UP_TOKENS, Record())

        async def stream():
            while prompts:
                await request(session, arguments.url, prompts.pop(), arguments.new_tokens, record)

        started = time.perf_counter()
        await asyncio.gather(*(stream() for _ in range(arguments.streams)))
        return record, time.perf_counter() - started


def percentile(values, share):
    values = sorted(values)
    place = (len(values) - 1) * share
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def peak_memory(pid):
    """Returns the peak resident memory of the process, including mapped files, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--requests", type=int, help="[default: 2 per stream, at least 4]")
    parser.add_argument("--prompt-tokens", type=int, default=workload.PROMPT)
    parser.add_argument("--new-tokens", type=int, default=workload.NEW)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pid", type=int, help="also report the peak memory of this process")
    arguments = parser.parse_args()
    record, seconds = asyncio.run(load(arguments))
    figures = {
        "streams": arguments.streams,
        "tokens_per_second": record.tokens / seconds,
        "first_token_p50": percentile(record.first, 0.5),
        "between_p50": percentile(record.between, 0.5),
        "between_p99": percentile(record.between, 0.99),
    }
    if arguments.pid:
        figures["peak_memory"] = peak_memory(arguments.pid)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
