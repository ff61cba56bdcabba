"""The official `openai` package: `/v1/chat/completions`, whole and streamed."""

import openai
import pytest

QUESTION = [{"role": "user", "content": "Tell me of the king who had three daughters."}]


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(client, model):
    """Answers `QUESTION`, greedily and with at most 24 tokens by default."""

    def chat(**fields):
        fields = {"model": model, "messages": QUESTION, "temperature": 0, **fields}
        if "max_tokens" not in fields:
            fields.setdefault("max_completion_tokens", 24)
        return client.chat.completions.create(**fields)

    return chat


def text(answer):
    return answer.choices[0].message.content


def test_an_answer_has_a_message_and_usage(create, model):
    answer = create()
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == model
    assert answer.created > 1_700_000_000
    assert answer.system_fingerprint
    (choice,) = answer.choices
    assert choice.index == 0
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is None
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.refusal is None
    assert not choice.message.tool_calls
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_max_tokens_is_the_older_name_of_max_completion_tokens(create):
    newer, older = create(max_completion_tokens=5), create(max_tokens=5)
    assert text(newer) == text(older)
    assert newer.usage.completion_tokens == older.usage.completion_tokens <= 5


def test_content_parts_are_put_together_line_by_line(create):
    parts = [
        {"type": "text", "text": "Tell me of the king."},
        {"type": "text", "text": "Who were his daughters?"},
    ]
    together = "\n".join(part["text"] for part in parts)
    answers = [create(messages=[{"role": "user", "content": content}]) for content in (parts, together)]
    assert text(answers[0]) == text(answers[1])
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens


def test_all_earlier_messages_count(create):
    history = [
        {"role": "system", "content": "You tell fairy tales."},
        {"role": "user", "content": "Who was the king?"},
        {"role": "assistant", "content": "He had three daughters."},
        {"role": "user", "content": "And then?", "name": "Alice"},
    ]
    whole = create(messages=history)
    tokens = [create(messages=history[:count]).usage.prompt_tokens for count in (2, 4)]
    assert tokens[0] < tokens[1] == whole.usage.prompt_tokens
    other = [*history[:2], {"role": "assistant", "content": "He was a shoemaker from Leipzig."}, history[3]]
    scores = [create(messages=m, logprobs=True).choices[0].logprobs.content[0].logprob for m in (history, other)]
    assert scores[0] != scores[1]
    assert text(create(messages=[{"role": "developer", "content": "You tell fairy tales."}, *QUESTION]))


def test_a_special_token_in_a_message_is_plain_text(create):
    plain = create(messages=[{"role": "user", "content": "x"}]).usage.prompt_tokens
    named = create(messages=[{"role": "user", "content": "x<|endoftext|>"}]).usage.prompt_tokens
    assert named > plain + 1, "the name is spelled, not turned into one token"


def test_n_choices_come_in_order_and_differ(create):
    answer = create(n=3, temperature=1, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert [choice.message.role for choice in answer.choices] == ["assistant"] * 3


def test_a_seed_gives_the_same_answer_again(create):
    once = text(create(temperature=1, seed=7))
    assert text(create(temperature=1, seed=7)) == once
    assert text(create(temperature=1, seed=8)) != once


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_ends_the_answer_before_it(create, as_list):
    whole = text(create())
    stop = whole[10:13]
    answer = create(stop=[stop, "@@"] if as_list else stop)
    assert text(answer) == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_tell_of_each_token(create):
    answer = create(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == text(answer)
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
        assert bytes(token.bytes).decode(errors="replace") == token.token or token.token.startswith("bytes:")
        logprobs = [top.logprob for top in token.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
    assert create(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_biases_penalties_and_the_fields_no_one_reads_are_taken(create, ids):
    (dragon,) = ids(" dragon")[:1]
    forced = create(logit_bias={str(dragon): 100}, max_completion_tokens=4)
    assert len(set(ids(text(forced)))) == 1
    assert text(create(presence_penalty=1.5, frequency_penalty=1.5, top_p=0.5, user="someone"))
    assert text(create(metadata={"a": "b"}, store=False)) == text(create())


def read(events):
    """Returns the role and the text of a stream's deltas."""
    deltas = [choice.delta for event in events for choice in event.choices]
    return [delta.role for delta in deltas if delta.role], "".join(delta.content or "" for delta in deltas)


def test_a_stream_begins_with_the_role_and_adds_up_to_the_answer(create):
    whole = create()
    events = list(create(stream=True))
    assert read(events) == (["assistant"], text(whole))
    assert events[0].choices[0].delta.role == "assistant"
    assert {event.object for event in events} == {"chat.completion.chunk"}
    assert len({event.id for event in events}) == 1
    reasons = [choice.finish_reason for event in events for choice in event.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    assert all(event.usage is None for event in events)
    assert len(events) > 10, "token by token"


def test_usage_comes_last_if_it_is_asked_for(create):
    events = list(create(stream=True, stream_options={"include_usage": True}))
    assert events[-1].choices == []
    whole = create().usage
    assert events[-1].usage.completion_tokens == whole.completion_tokens
    assert events[-1].usage.prompt_tokens == whole.prompt_tokens
    assert all(event.usage is None and event.choices for event in events[:-1])


def test_streamed_choices_are_told_apart_by_their_index(create):
    fields = {"n": 2, "temperature": 1, "seed": 3}
    texts = {0: "", 1: ""}
    for event in create(**fields, stream=True):
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {choice.index: choice.message.content for choice in create(**fields).choices}


def test_streamed_logprobs_add_up(create):
    events = list(create(stream=True, logprobs=True, top_logprobs=1))
    streamed = [
        token
        for event in events
        for choice in event.choices
        if choice.logprobs and choice.logprobs.content
        for token in choice.logprobs.content
    ]
    assert streamed == create(logprobs=True, top_logprobs=1).choices[0].logprobs.content


def test_the_stream_helper_gathers_the_answer(client, create, model):
    with client.chat.completions.stream(
        model=model, messages=QUESTION, temperature=0, max_completion_tokens=24
    ) as stream:
        kinds = {event.type for event in stream}
        # `get_final_completion` raises an error if `max_completion_tokens` cut off the answer.
        assert stream.current_completion_snapshot.choices[0].message.content == text(create())
    assert {"chunk", "content.delta", "content.done"} <= kinds


@pytest.mark.asyncio
async def test_the_async_client_chats(base_url, model, create):
    fields = {"model": model, "messages": QUESTION, "temperature": 0, "max_completion_tokens": 24}
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
        whole = await client.chat.completions.create(**fields)
        events = [event async for event in await client.chat.completions.create(**fields, stream=True)]
    assert text(whole) == read(events)[1] == text(create())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", []),
        ("messages", [{"role": "wizard", "content": "x"}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        ("temperature", 3),
        ("n", 0),
        ("top_logprobs", 21),
        ("max_completion_tokens", -1),
        ("stop", ["x"] * 17),
    ],
)
def test_a_bad_field_is_a_bad_request_that_names_it(create, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        create(**{"logprobs": True, field: value})
    assert field in (caught.value.param or "")


def test_top_logprobs_need_logprobs(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(top_logprobs=2)
    assert caught.value.param == "top_logprobs"


def test_an_unknown_model_is_not_found(create):
    with pytest.raises(openai.NotFoundError) as caught:
        create(model="no-such-model")
    assert caught.value.code == "model_not_found"


def test_a_conversation_longer_than_the_context_has_its_code(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(messages=[{"role": "user", "content": "Once upon a time. " * 500}])
    assert caught.value.code == "context_length_exceeded"
