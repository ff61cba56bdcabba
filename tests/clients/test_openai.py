"""The official `openai` package against Skald."""

import openai
import pytest

PROMPT = "Once upon a time there was a king who had three daughters,"


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model(client):
    return client.models.list().data[0].id


def test_a_completion_has_text_and_usage(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.object == "text_completion"
    assert len(answer.choices) == 1
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_gives_the_same_text_and_usage_at_its_end(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=24, seed=7)
    stream = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=24, seed=7, stream=True, stream_options={"include_usage": True}
    )
    events = list(stream)
    text = "".join(choice.text for event in events for choice in event.choices)
    assert text == whole.choices[0].text
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(event.usage is None for event in events[:-1])
    assert len({event.id for event in events}) == 1
    reasons = [choice.finish_reason for event in events for choice in event.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])


def test_several_prompts_and_choices_come_in_order(client, model):
    answer = client.completions.create(model=model, prompt=[PROMPT, "The dragon"], n=2, max_tokens=4, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_logprobs_and_echo(client, model):
    answer = client.completions.create(model=model, prompt="The dragon", max_tokens=3, echo=True, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("The dragon")
    assert logprobs.token_logprobs[0] is None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.text_offset[0] == 0
    assert all(len(top) >= 2 for top in logprobs.top_logprobs[1:])


def test_a_stop_string_ends_the_text_before_it(client, model):
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=40, seed=3).choices[0].text
    stop = whole[20:24]
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=40, seed=3, stop=stop)
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_errors_have_their_classes(client, model):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, temperature=3)
    assert "temperature" in caught.value.message and "2" in caught.value.message
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="no-such-model", prompt=PROMPT)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=model, prompt=PROMPT, max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.asyncio
async def test_the_async_client_streams(base_url, model):
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
        stream = await client.completions.create(model=model, prompt=PROMPT, max_tokens=8, stream=True)
        assert "".join([event.choices[0].text async for event in stream])
