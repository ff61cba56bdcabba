"""A client that continues a session turn by turn, and retries once after a failure.

It knows a single address and nothing about routers and servers. After an interrupted stream it follows
the advice of docs/scale-out.md.
"""

import dataclasses
import http.client
import json
import threading
import time
import urllib.error
import urllib.request

#: Status codes after which official clients retry.
RETRIED = {408, 409, 429, 500, 502, 503, 504}
#: Pause before a retry without a hint of the server, in seconds.
PAUSE = 0.5
#: Maximum time of an answer, in seconds.
TIMEOUT = 60
#: Tokens per turn.
TOKENS = 48


class Failed(Exception):
    """A failed attempt that can be retried."""

    def __init__(self, why, pause=PAUSE):
        super().__init__(why)
        self.pause = pause


@dataclasses.dataclass
class Turn:
    """A completed turn."""

    prompt: str
    text: str


@dataclasses.dataclass
class Storyteller:
    """A session and its client."""

    url: str
    session: str
    stop: threading.Event
    turns: list[Turn] = dataclasses.field(default_factory=list)
    requests: int = 0
    retries: int = 0
    cut: int = 0
    #: Turns that were stored although the end of their answer was lost.
    saved: int = 0
    #: Turns whose retry began with the text that was already received.
    resumed: int = 0
    #: Requests that failed twice.
    errors: list[str] = dataclasses.field(default_factory=list)

    def run(self):
        """Runs turns until the event is set. It is checked between turns, so every turn is completed."""
        try:
            while not self.stop.is_set():
                self.turn()
        except Failed as failed:
            self.errors.append(f"{self.session}, turn {len(self.turns) + 1}: {failed}")

    def turn(self):
        """Runs one turn, with at most two requests."""
        prompt = f" [{self.session}, {len(self.turns) + 1}] The king said,"
        shown = []
        try:
            self.stream(prompt, shown)
        except Failed as failed:
            shown = self.again(prompt, shown, failed)
        self.turns.append(Turn(prompt, "".join(shown)))

    def again(self, prompt, before, failed):
        """Checks after a failure whether the turn was stored, and retries it if not."""
        time.sleep(failed.pause)
        self.retries += 1
        if before:
            self.cut += 1
            told = self.told()
            if (kept := self.kept()).startswith(told + prompt):
                self.saved += 1
                return [kept.removeprefix(told + prompt)]
            if kept != told:
                raise Failed(f"the session is neither before nor after the turn: {kept!r}")
        shown = []
        self.stream(prompt, shown)
        if before:
            assert "".join(shown).startswith("".join(before)), (before, shown)
            self.resumed += 1
        return shown

    def told(self):
        """Returns the text of all completed turns."""
        return "".join(turn.prompt + turn.text for turn in self.turns)

    def kept(self):
        """Returns the text of the session, with at most one retry."""
        for last in (False, True):
            self.requests += 1
            try:
                with self.open(f"/v1/sessions/{self.session}", None) as response:
                    return json.load(response)["text"]
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return ""
                failed = Failed(f"GET: {error.code}", pause_of(error))
            except OSError as error:
                failed = Failed(f"GET: {error}")
            if last:
                raise failed
            self.retries += 1
            time.sleep(failed.pause)
        raise AssertionError

    def stream(self, prompt, shown):
        """Requests a turn once, and appends the received text to `shown`."""
        self.requests += 1
        body = {
            "model": "builtin",
            "prompt": prompt,
            "session_id": self.session,
            "max_tokens": TOKENS,
            "seed": len(self.turns),
            "overflow": "slide",
            "stream": True,
        }
        try:
            with self.open("/v1/completions", body) as response:
                for line in response:
                    data = line.decode().strip().removeprefix("data: ")
                    if data == "[DONE]":
                        return
                    if not data or data.startswith(":"):
                        continue
                    event = json.loads(data)
                    if "error" in event:
                        raise Failed(f"error event: {event['error']['message']}")
                    shown.extend(choice["text"] for choice in event["choices"] if choice["text"])
        except urllib.error.HTTPError as error:
            said = f"{error.code}: {error.read().decode(errors='replace')[:200]}"
            if error.code not in RETRIED:
                raise AssertionError(said) from error
            raise Failed(said, pause_of(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise Failed(repr(error)) from error
        raise Failed("the stream ended without [DONE]")

    def open(self, path, body):
        headers = {"Content-Type": "application/json", "X-Session-Id": self.session}
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=TIMEOUT)


def pause_of(error):
    """Returns the retry hint of an answer, in seconds."""
    return min(float(error.headers.get("Retry-After") or PAUSE), 60)
