"""What schemathesis has to be told about this server."""

import json

import schemathesis

#: The most tokens one question may ask for, so that the answers to thousands come in minutes.
MOST_TOKENS = 24
LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens")


@schemathesis.hook
def map_body(context, body):
    """Large numbers stay numbers, but smaller ones. Where none is given, few tokens are asked for."""
    if isinstance(body, dict):
        if isinstance(body.get("parameters"), dict):
            body = {**body, "parameters": shortened(body["parameters"])}
        return shortened(body)
    return body


def shortened(fields):
    return {name: least(value) if name in LENGTHS else value for name, value in fields.items()}


def least(value):
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value)(MOST_TOKENS) if is_number and value > MOST_TOKENS else value


@schemathesis.deserializer("text/event-stream")
def events(context, response):
    """The contract describes what an event's `data` is."""
    blocks = response.content.decode("utf-8").split("\n\n")
    data = [line.removeprefix("data: ") for block in blocks for line in block.splitlines() if line.startswith("data: ")]
    assert data, "a stream without an event"
    return [json.loads(event) for event in data if event != "[DONE]"]
