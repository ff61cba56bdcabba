"""`llama-index-llms-openai-like` and its embeddings against Skald (with an older `openai` below it)."""

import asyncio

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

PROMPT = "The wolf said to the little girl,"


@pytest.fixture(scope="module")
def served(base_url, model):
    return {"api_base": f"{base_url}/v1", "api_key": "none", "max_retries": 0}


@pytest.fixture(scope="module")
def llm(served, model, info):
    window = info["limits"]["max_context_tokens"]
    return OpenAILike(model=model, context_window=window, max_tokens=16, temperature=0.0, **served)


@pytest.fixture(scope="module")
def chat(served, model, info):
    window = info["limits"]["max_context_tokens"]
    return OpenAILike(
        model=model, is_chat_model=True, context_window=window, max_tokens=16, temperature=0.0, **served
    )


def test_a_completion_is_the_same_streamed(llm):
    whole = llm.complete(PROMPT)
    assert whole.text
    pieces = list(llm.stream_complete(PROMPT))
    assert pieces[-1].text == "".join(piece.delta for piece in pieces) == whole.text
    assert len(pieces) > 5
    assert whole.raw.usage.completion_tokens == 16


def test_further_fields_are_passed_on(llm):
    whole = llm.complete(PROMPT).text
    stop = whole[4:8]
    assert llm.complete(PROMPT, stop=[stop]).text == whole.split(stop)[0]
    assert llm.complete(PROMPT, temperature=1, extra_body={"top_k": 1}).text == whole


def test_asynchronously_it_is_the_same(llm):
    async def read():
        stream = await llm.astream_complete(PROMPT)
        return (await llm.acomplete(PROMPT)).text, "".join([piece.delta async for piece in stream])

    assert asyncio.run(read()) == (llm.complete(PROMPT).text,) * 2


def test_a_chat_of_a_model_that_only_completes(llm):
    answer = llm.chat([ChatMessage(role="user", content=PROMPT)])
    assert answer.message.content


def test_a_chat_is_the_same_streamed(chat):
    messages = [ChatMessage(role="system", content="You tell fairy tales."), ChatMessage(role="user", content=PROMPT)]
    whole = chat.chat(messages)
    assert whole.message.role == "assistant" and whole.message.content
    pieces = list(chat.stream_chat(messages))
    assert "".join(piece.delta or "" for piece in pieces) == whole.message.content


def test_embeddings_of_texts_and_queries(served, model, info):
    embedding = OpenAILikeEmbedding(model_name=model, embed_batch_size=10, **served)
    texts = embedding.get_text_embedding_batch([PROMPT, "The dragon"])
    assert [len(vector) for vector in texts] == [info["model"]["n_embd"]] * 2
    assert embedding.get_query_embedding(PROMPT) == texts[0] != texts[1]
