"""`litellm` against Skald: as OpenAI's completions and chats, and as a Hugging Face endpoint."""

import os

# Otherwise its import downloads a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pytest

PROMPT = "The wolf said to the little girl,"
MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def served(base_url):
    return {"api_base": f"{base_url}/v1", "api_key": "none", "max_retries": 0, "temperature": 0, "max_tokens": 16}


@pytest.mark.parametrize("prefix", ["text-completion-openai", "openai"])
def test_a_text_completion_is_the_same_streamed(served, model, prefix):
    fields = {"model": f"{prefix}/{model}", "prompt": PROMPT, **served}
    whole = litellm.text_completion(**fields)
    assert whole.choices[0].text
    assert whole.usage.completion_tokens == 16
    chunks = list(litellm.text_completion(**fields, stream=True))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole.choices[0].text
    assert len(chunks) > 5


def test_further_fields_are_passed_on(served, model):
    fields = {"model": f"text-completion-openai/{model}", "prompt": PROMPT, **served}
    whole = litellm.text_completion(**fields).choices[0].text
    stop = whole[4:8]
    assert litellm.text_completion(**fields, stop=[stop]).choices[0].text == whole.split(stop)[0]
    narrow = {**fields, "temperature": 1, "extra_body": {"top_k": 1}}
    assert litellm.text_completion(**narrow).choices[0].text == whole
    several = litellm.text_completion(**{**fields, "prompt": [PROMPT, "The dragon"]})
    assert [choice.index for choice in several.choices] == [0, 1]


def test_chat_messages_become_a_prompt_of_the_completions(served, model):
    answer = litellm.completion(model=f"text-completion-openai/{model}", messages=MESSAGES, **served)
    assert answer.choices[0].message.content


def test_a_chat_is_the_same_streamed(served, model):
    fields = {"model": f"openai/{model}", "messages": MESSAGES, **served}
    whole = litellm.completion(**fields)
    assert whole.choices[0].message.content
    assert 0 < whole.usage.completion_tokens <= 16
    chunks = list(litellm.completion(**fields, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content


@pytest.mark.asyncio
async def test_asynchronously_it_is_the_same(served, model):
    fields = {"model": f"text-completion-openai/{model}", "prompt": PROMPT, **served}
    answer = await litellm.atext_completion(**fields)
    assert answer.choices[0].text == litellm.text_completion(**fields).choices[0].text


def test_a_hugging_face_endpoint_chats(base_url, served, model):
    fields = {"messages": MESSAGES, **served, "api_base": base_url}
    fields.pop("max_retries")
    answer = litellm.completion(model=f"huggingface/{model}", **fields)
    plain = litellm.completion(model=f"openai/{model}", messages=MESSAGES, **served)
    assert answer.choices[0].message.content == plain.choices[0].message.content


def test_embeddings(served, model, info):
    fields = {key: served[key] for key in ("api_base", "api_key")}
    answer = litellm.embedding(model=f"openai/{model}", input=[PROMPT, "The dragon"], **fields)
    assert [len(entry["embedding"]) for entry in answer.data] == [info["model"]["n_embd"]] * 2


def test_errors_have_litellms_classes(served, model):
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.text_completion(
            model=f"text-completion-openai/{model}", prompt=PROMPT, **{**served, "temperature": 3}
        )
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.text_completion(
            model=f"text-completion-openai/{model}", prompt=PROMPT, **{**served, "max_tokens": 5000}
        )
    with pytest.raises(litellm.NotFoundError):
        litellm.text_completion(model="text-completion-openai/no-such-model", prompt=PROMPT, **served)
