"""Streams of `/v1/completions` read with the official `openai` package, synchronously and asynchronously."""

import asyncio
import collections
import time

import openai
import pytest

PROMPT = "Once upon a time there was a king who had three daughters,"
OTHER = "The wolf said to the little girl,"


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(client, model):
    def completion(**fields):
        return client.completions.create(**{"model": model, "prompt": PROMPT, "max_tokens": 24, "seed": 7, **fields})

    return completion


def by_index(events):
    """Returns the concatenated text of each choice."""
    texts = collections.defaultdict(str)
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.text
    return dict(texts)


def test_a_stream_gives_the_same_text_and_says_why_it_ended(create):
    whole = create()
    events = list(create(stream=True))
    assert by_index(events) == {0: whole.choices[0].text}
    assert len({event.id for event in events}) == len({event.created for event in events}) == 1
    assert {event.object for event in events} == {"text_completion"}
    reasons = [choice.finish_reason for event in events for choice in event.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert all(event.usage is None for event in events)
    assert len(events) > 10, "token by token"


def test_usage_comes_last_if_it_is_asked_for(create):
    whole = create()
    events = list(create(stream=True, stream_options={"include_usage": True}))
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert events[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(event.usage is None and event.choices for event in events[:-1])


def test_several_prompts_and_choices_are_told_apart_by_their_index(create):
    fields = {"prompt": [PROMPT, OTHER], "n": 2}
    whole = create(**fields)
    assert by_index(create(**fields, stream=True)) == {choice.index: choice.text for choice in whole.choices}
    assert len({choice.text for choice in whole.choices}) == 4


def test_echo_and_logprobs_add_up_to_those_of_the_whole(create):
    fields = {"echo": True, "logprobs": 2, "max_tokens": 6}
    whole = create(**fields).choices[0]
    events = list(create(**fields, stream=True))
    assert by_index(events)[0] == whole.text
    assert whole.text.startswith(PROMPT)
    parts = [choice.logprobs for event in events for choice in event.choices if choice.logprobs]
    for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert sum((getattr(part, field) or [] for part in parts), []) == getattr(whole.logprobs, field)


def test_nothing_of_a_stop_string_is_streamed(create):
    whole = create(max_tokens=40).choices[0].text
    stop = whole[25:31]
    events = list(create(max_tokens=40, stop=stop, stream=True))
    assert by_index(events)[0] == whole[: whole.index(stop)]
    assert events[-1].choices[0].finish_reason == "stop"


def test_characters_come_whole(create, ids):
    """The grammar forces the bytes of `“` and `”`, each of which is a token."""
    assert len(ids("“")) == 3
    forced = {"max_tokens": 64, "extra_body": {"guided_regex": "(“é” ){4}"}}
    events = list(create(stream=True, **forced))
    assert by_index(events)[0] == create(**forced).choices[0].text == "“é” " * 4
    assert all("\ufffd" not in choice.text for event in events for choice in event.choices)


def test_a_stream_that_is_closed_stops_the_generation(create, running):
    stream = create(max_tokens=100_000, stream=True, extra_body={"overflow": "slide", "ignore_eos": True})
    next(iter(stream))
    assert running() >= 1
    stream.close()
    deadline = time.monotonic() + 180
    while running() > 0:
        assert time.monotonic() < deadline, "the generation goes on for nobody"
        time.sleep(0.02)


def test_stream_options_without_a_stream_are_refused(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(stream_options={"include_usage": True})
    assert caught.value.param == "stream_options"


def test_best_of_cannot_be_streamed(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(best_of=2, stream=True)
    assert caught.value.param == "best_of"


@pytest.mark.asyncio
async def test_the_async_client_completes_and_streams(base_url, model, create):
    fields = {"model": model, "prompt": PROMPT, "max_tokens": 24, "seed": 7}
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
        whole = await client.completions.create(**fields)
        stream = await client.completions.create(**fields, stream=True)
        events = [event async for event in stream]
    assert whole.choices[0].text == by_index(events)[0] == create().choices[0].text


@pytest.mark.asyncio
async def test_many_at_once_get_what_each_would_get_alone(base_url, model, create):
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as client:

        async def one(seed):
            stream = await client.completions.create(
                model=model, prompt=PROMPT, max_tokens=16, seed=seed, stream=True
            )
            return "".join([event.choices[0].text async for event in stream])

        together = await asyncio.gather(*(one(seed) for seed in range(24)))
    assert together == [create(max_tokens=16, seed=seed).choices[0].text for seed in range(24)]
