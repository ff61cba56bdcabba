"""`huggingface_hub.InferenceClient`, the client of text-generation-inference, against Skald."""

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "The wolf said to the little girl,"


@pytest.fixture(scope="module")
def client(base_url):
    return InferenceClient(base_url)


def test_text_generation_gives_text(client):
    assert client.text_generation(PROMPT, max_new_tokens=12)


def test_details_say_what_was_generated(client):
    answer = client.text_generation(PROMPT, max_new_tokens=12, details=True, seed=5, do_sample=True)
    assert answer.details.generated_tokens == len(answer.details.tokens) <= 12
    assert answer.details.seed == 5
    assert answer.details.finish_reason in ("length", "eos_token")
    assert "".join(token.text for token in answer.details.tokens if not token.special) == answer.generated_text


def test_a_stream_with_details_ends_with_the_whole_text(client):
    whole = client.text_generation(PROMPT, max_new_tokens=12, seed=5, do_sample=True)
    events = list(client.text_generation(PROMPT, max_new_tokens=12, seed=5, do_sample=True, stream=True, details=True))
    assert "".join(event.token.text for event in events if not event.token.special) == whole
    assert events[-1].generated_text == whole
    assert events[-1].details.generated_tokens == len(events)
    assert all(event.generated_text is None for event in events[:-1])


def test_a_stop_string_ends_the_text_with_it(client):
    whole = client.text_generation(PROMPT, max_new_tokens=40, seed=6, do_sample=True)
    stop = whole[15:18]
    text = client.text_generation(PROMPT, max_new_tokens=40, seed=6, do_sample=True, stop=[stop])
    assert text == whole[: whole.index(stop) + len(stop)]


def test_bad_parameters_are_validation_errors(client):
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation(PROMPT, temperature=-1.0)


def test_chats_are_the_same_streamed(client):
    messages = [{"role": "user", "content": PROMPT}]
    whole = client.chat_completion(messages, max_tokens=12, seed=5)
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].message.content
    events = client.chat_completion(messages, max_tokens=12, seed=5, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content
