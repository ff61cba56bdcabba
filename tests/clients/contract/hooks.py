"""Adapts schemathesis to this server."""

import itertools
import json
import re

import schemathesis

#: Maximum tokens per request, so that thousands of requests take minutes.
MOST_TOKENS = 24
#: Numbers for session names: a session shared by all requests would soon be full.
sessions = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    """Corrects values that a schema can't exclude, so that not every request is refused. Wrong types and
    values out of a documented range are left unchanged: they must be refused."""
    header = (case.headers or {}).get("X-Session-Id")
    if header is not None:
        case.headers["X-Session-Id"] = own_session(header)
    if isinstance(case.body, dict):
        body = mended(case.body)
        if header is not None and is_session(body.get("session_id")):
            # The server would ignore the header.
            del body["session_id"]
        if isinstance(body.get("parameters"), dict):
            body["parameters"] = mended(body["parameters"])
        case.body = body


def mended(fields):
    fields = {name: MENDED.get(name, whole)(value) for name, value in fields.items()}
    if "messages" in fields and fields.get("max_tokens") is None:
        # Otherwise an answer can fill the context.
        fields.setdefault("max_completion_tokens", MOST_TOKENS)
    if isinstance(fields.get("stream_options"), dict) and fields.get("stream") in (None, False):
        fields["stream"] = True
    return fields


def whole(value):
    """Returns integers for floats such as 1.0, which JSON Schema accepts as integers and the server does not."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [whole(element) for element in value]
    return value


def at_most(most):
    def cut(value):
        value = whole(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return type(value)(most) if is_number and value > most else value

    return cut


def in_place_of(kind, other):
    return lambda value: other if isinstance(value, kind) else value


def is_session(value):
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.:@-]{1,128}", value) is not None


def own_session(value):
    return f"{value[:100]}-{next(sessions)}" if is_session(value) else value


MENDED = {
    "max_tokens": at_most(MOST_TOKENS),
    "max_completion_tokens": at_most(MOST_TOKENS),
    "max_new_tokens": at_most(MOST_TOKENS),
    "min_tokens": at_most(2),
    "n": at_most(3),
    "best_of": at_most(3),
    # Always refused.
    "suffix": in_place_of(str, ""),
    "adapter_id": in_place_of(str, None),
    "watermark": in_place_of(bool, False),
    # The only model.
    "model": in_place_of(str, "builtin"),
    # Any object matches the schema, but few are valid grammars.
    "grammar": in_place_of(dict, None),
    "session_id": own_session,
}


@schemathesis.deserializer("text/event-stream")
def events(context, response):
    """Returns the `data` of the events, which the contract describes."""
    lines = response.content.decode("utf-8").split("\n")
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data, "a stream without an event"
    return [json.loads(event) for event in data if event != "[DONE]"]
