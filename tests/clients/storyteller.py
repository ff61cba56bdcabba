"""A client that goes on with a session turn by turn, and tries once again where something fails.

It knows nothing of routers and servers but one address. What it does after a stream that was cut is what
docs/scale-out.md tells clients to do.
"""

import dataclasses
import http.client
import json
import threading
import time
import urllib.error
import urllib.request

#: What official clients try again after.
RETRIED = {408, 409, 429, 500, 502, 503, 504}
#: Pause before another try where the server does not say, in seconds.
PAUSE = 0.5
#: What an answer may take, in seconds.
TIMEOUT = 60
#: Tokens of a turn.
TOKENS = 48


class Failed(Exception):
    """An attempt that another one may cover."""

    def __init__(self, why, pause=PAUSE):
        super().__init__(why)
        self.pause = pause


@dataclasses.dataclass
class Turn:
    """A turn that has ended."""

    prompt: str
    text: str


@dataclasses.dataclass
class Storyteller:
    """One session and its client."""

    url: str
    session: str
    stop: threading.Event
    turns: list[Turn] = dataclasses.field(default_factory=list)
    requests: int = 0
    retries: int = 0
    cut: int = 0
    #: Turns that were saved though the end of their answer was lost.
    saved: int = 0
    #: Turns whose repetition began with what had been shown of them.
    resumed: int = 0
    #: Requests that failed twice.
    errors: list[str] = dataclasses.field(default_factory=list)

    def run(self):
        """Tells until told to stop. The event is looked at between turns: all that is begun ends."""
        try:
            while not self.stop.is_set():
                self.turn()
        except Failed as failed:
            self.errors.append(f"{self.session}, turn {len(self.turns) + 1}: {failed}")

    def turn(self):
        """One turn: asked for at most twice."""
        prompt = f" [{self.session}, {len(self.turns) + 1}] The king said,"
        shown = []
        try:
            self.stream(prompt, shown)
        except Failed as failed:
            shown = self.again(prompt, shown, failed)
        self.turns.append(Turn(prompt, "".join(shown)))

    def again(self, prompt, before, failed):
        """What to do after a failure: look whether the turn was saved, and ask again if not."""
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
        """All turns that have ended."""
        return "".join(turn.prompt + turn.text for turn in self.turns)

    def kept(self):
        """What the session has; one retry."""
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
        """Asks for a turn once, and adds what is said to `shown`."""
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
    """How long an answer asks to wait, in seconds."""
    return min(float(error.headers.get("Retry-After") or PAUSE), 60)
