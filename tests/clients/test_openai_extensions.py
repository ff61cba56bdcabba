"""Fields that OpenAI does not have, sent with the official `openai` package's `extra_body`."""

import openai
import pytest

PROMPT = "Once upon a time there was a king who had three daughters,"


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(client, model):
    """Completes `PROMPT`, greedily and with 24 tokens by default."""

    def completion(extra=None, **fields):
        return client.completions.create(
            **{"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields}, extra_body=extra
        )

    return completion


def text(answer):
    return answer.choices[0].text


@pytest.mark.parametrize("narrowest", [{"top_k": 1}, {"min_p": 1.0}])
def test_the_narrowest_filter_leaves_the_likeliest_token(create, narrowest):
    assert text(create(narrowest, temperature=1, seed=1)) == text(create())


def test_typical_p_narrows_to_one_token(create):
    drawn = {text(create({"typical_p": 1e-6}, temperature=1, top_p=1, seed=seed)) for seed in range(3)}
    assert len(drawn) == 1


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}, {"min_p": 0.0}, {"typical_p": 1.0}])
def test_a_filter_that_is_off_changes_nothing(create, off):
    assert text(create(off, temperature=1, seed=4)) == text(create(temperature=1, seed=4))


def test_a_repetition_penalty_leaves_fewer_repetitions(create, ids):
    def different(penalty):
        return len(set(ids(text(create({"repetition_penalty": penalty}, max_tokens=64)))))

    assert different(1.0) < different(1.3) < different(100.0)


def test_min_tokens_puts_the_end_off(create, end_of_text):
    ending = {str(end_of_text): 100}
    at_once = create(logit_bias=ending)
    assert (text(at_once), at_once.choices[0].finish_reason) == ("", "stop")
    later = create({"min_tokens": 5}, logit_bias=ending)
    assert later.choices[0].finish_reason == "stop"
    assert later.usage.completion_tokens in (5, 6), "the end-of-text token may be counted"
    assert text(later)


def test_ignore_eos_goes_on_to_the_length(create, end_of_text):
    answer = create({"ignore_eos": True}, logit_bias={str(end_of_text): 100})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 24


def test_a_stop_token_ends_the_text_before_it(create, ids):
    whole = ids(text(create()))
    stop = whole[5]
    answer = create({"stop_token_ids": [stop]})
    assert answer.choices[0].finish_reason == "stop"
    assert ids(text(answer)) == whole[: whole.index(stop)]


def test_a_session_goes_on_where_it_left_off(create, client):
    first = text(create({"session_id": "client-test"}))
    second = text(create({"session_id": "client-test"}, prompt=" The next day"))
    assert second == text(create(prompt=f"{PROMPT}{first} The next day"))
    session = client.get("/sessions/client-test", cast_to=object)
    assert session["text"] == f"{PROMPT}{first} The next day{second}"
    client.delete("/sessions/client-test", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.get("/sessions/client-test", cast_to=object)


def test_a_session_can_be_named_in_a_header(create, client):
    text(create(extra_headers={"X-Session-Id": "client-header"}))
    assert client.get("/sessions/client-header", cast_to=object)["text"].startswith(PROMPT)
    client.delete("/sessions/client-header", cast_to=object)


def test_overflow_stops_refuses_or_slides(create, ids, info):
    window = info["limits"]["max_context_tokens"]
    long = (ids(PROMPT) * window)[: window - 10]
    fields = {"prompt": long, "max_tokens": 40}
    stopped = create({"overflow": "stop", "ignore_eos": True}, **fields)
    assert (stopped.usage.completion_tokens, stopped.choices[0].finish_reason) == (10, "length")
    for refusing in ({"overflow": "error"}, None):
        with pytest.raises(openai.BadRequestError) as caught:
            create(refusing, **fields)
        assert caught.value.code == "context_length_exceeded"
    slid = create({"overflow": "slide", "ignore_eos": True}, **fields)
    assert slid.usage.completion_tokens == 40
    assert text(slid).startswith(text(stopped))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", -2),
        ("min_p", 1.5),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("min_tokens", 25),
        ("min_tokens", -1),
        ("ignore_eos", "yes"),
        ("stop_token_ids", [1_000_000]),
        ("session_id", "a name"),
        ("overflow", "wrap"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(create, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        create({field: value})
    assert caught.value.param == field
    assert field in caught.value.message
