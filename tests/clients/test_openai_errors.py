"""Errors become the classes of the official `openai` package, which retries the transient ones."""

import socket
import threading
import time

import httpx
import openai
import pytest

PROMPT = "Once upon a time there was a king who had three daughters,"


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 3),
        ("temperature", -0.5),
        ("top_p", 0),
        ("top_p", 2),
        ("n", 0),
        ("n", 129),
        ("best_of", 21),
        ("max_tokens", -1),
        ("logprobs", 21),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -3),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"100000": 1}),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("prompt", []),
        ("prompt", [10**6]),
        ("seed", "one"),
    ],
)
def test_a_bad_field_is_a_bad_request_that_names_it(client, model, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": model, "prompt": PROMPT, field: value})
    error = caught.value
    assert error.status_code == 400
    assert error.type == "invalid_request_error"
    assert error.param.split(".")[0] == field
    assert field in error.message
    assert error.request_id


def test_an_unknown_model_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="no-such-model", prompt=PROMPT)
    assert caught.value.code == "model_not_found"
    assert "no-such-model" in caught.value.message and model in caught.value.message
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


def test_a_path_that_is_not_there_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.post("/no-such-path", cast_to=object, body={})
    assert caught.value.code == "not_found"


def test_a_text_longer_than_the_context_has_its_code(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT * 200)
    assert caught.value.code == "context_length_exceeded"


def test_a_body_that_is_too_large_is_refused(client, model, info):
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(model=model, prompt="x" * (info["limits"]["max_body_bytes"] + 1))
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


def test_an_error_in_place_of_a_stream_has_its_class(client, model):
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=model, prompt=PROMPT, temperature=3, stream=True)


def test_a_server_that_is_not_there_is_a_connection_error(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(openai.APIConnectionError):
            unreachable = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            unreachable.completions.create(model=model, prompt=PROMPT)


def test_a_client_that_gives_up_leaves_nothing_running(client, model, running):
    endless = {"overflow": "slide", "ignore_eos": True}
    with pytest.raises(openai.APITimeoutError):
        client.completions.create(model=model, prompt=PROMPT, max_tokens=100_000, timeout=0.3, extra_body=endless)
    deadline = time.monotonic() + 180
    while running() > 0:
        assert time.monotonic() < deadline, "the generation continues without a client"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def busy(start_server):
    """Starts a server that runs one request at a time and queues one."""
    with start_server("--max-batch", "1", "--max-queue", "1") as url:
        yield f"{url}/v1"


@pytest.fixture
def crowd(busy, model):
    """Starts two endless streams: one runs and one waits, so the queue is full."""
    clients = openai.OpenAI(base_url=busy, api_key="none", max_retries=0)
    fields = {"model": model, "prompt": PROMPT, "max_tokens": 500_000, "stream": True}
    endless = {"overflow": "slide", "ignore_eos": True}
    begun, dispersed = threading.Event(), threading.Event()

    def read():
        # A stream that is not read would be set aside.
        with clients.completions.create(**fields, extra_body=endless) as first:
            for _ in first:
                begun.set()
                if dispersed.is_set():
                    break

    first = threading.Thread(target=read)
    first.start()
    assert begun.wait(180), "the first stream has not begun"

    def wait():
        # Its answer begins when it runs, after the first one is closed.
        clients.completions.create(**fields, extra_body=endless).close()

    second = threading.Thread(target=wait)
    second.start()
    while httpx.get(f"{busy.removesuffix('/v1')}/info").json()["engine"]["waiting"] == 0:
        time.sleep(0.01)

    def disperse():
        dispersed.set()
        first.join()
        second.join()

    yield disperse
    disperse()


def test_one_too_many_is_told_when_to_come_back(busy, crowd, model):
    client = openai.OpenAI(base_url=busy, api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError) as caught:
        client.completions.create(model=model, prompt=PROMPT, max_tokens=4)
    error = caught.value
    assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_exceeded")
    assert float(error.response.headers["retry-after"]) >= 1
    assert float(error.response.headers["retry-after-ms"]) >= 1000


def test_a_client_tries_again_when_it_was_told_to(busy, crowd, model):
    client = openai.OpenAI(base_url=busy, api_key="none", max_retries=5)
    threading.Timer(1.5, crowd).start()
    start = time.monotonic()
    raw = client.completions.with_raw_response.create(model=model, prompt=PROMPT, max_tokens=4)
    waited = time.monotonic() - start
    assert raw.retries_taken >= 1, "at first there was no place"
    assert waited >= raw.retries_taken, "each time it waited the second it was told to wait"
    assert raw.parse().usage.completion_tokens == 4


def test_a_client_that_may_not_try_again_gives_up(busy, crowd, model):
    client = openai.OpenAI(base_url=busy, api_key="none", max_retries=1)
    start = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model=model, prompt=PROMPT, max_tokens=4)
    assert time.monotonic() - start >= 1
