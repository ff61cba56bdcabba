"""The official `openai` package: `/v1/embeddings`, as floats and in base64 (the client's own choice)."""

import base64
import math
import struct

import openai
import pytest

TALE = "Once upon a time there was a king who had three daughters."
SIMILAR = "Once upon a time there was a queen who had three sons."
DIFFERENT = "\"Who are you?\" asked the prince."


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def embed(client, model):
    """Returns the vectors of an input, with the client's default encoding."""

    def create(text, **fields):
        return [entry.embedding for entry in client.embeddings.create(model=model, input=text, **fields).data]

    return create


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def test_an_embedding_is_a_vector_of_the_models_width(client, model, info, ids):
    answer = client.embeddings.create(model=model, input=TALE)
    assert answer.object == "list"
    assert answer.model == model
    (entry,) = answer.data
    assert (entry.object, entry.index) == ("embedding", 0)
    assert len(entry.embedding) == info["model"]["n_embd"]
    assert all(math.isfinite(value) for value in entry.embedding)
    assert math.hypot(*entry.embedding) == pytest.approx(1, abs=1e-4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(ids(TALE))


def test_floats_and_base64_are_the_same_numbers(client, model, embed):
    floats = client.embeddings.create(model=model, input=TALE, encoding_format="float").data[0].embedding
    assert isinstance(floats, list)
    assert [struct.unpack("f", struct.pack("f", value))[0] for value in floats] == embed(TALE)[0]
    encoded = client.embeddings.create(model=model, input=TALE, encoding_format="base64").data[0].embedding
    raw = base64.b64decode(encoded, validate=True)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == embed(TALE)[0]


def test_all_four_forms_of_an_input_mean_the_same(embed, ids):
    one, other = embed(TALE)[0], embed(DIFFERENT)[0]
    assert embed([TALE, DIFFERENT]) == [one, other]
    assert embed(ids(TALE)) == [one]
    assert embed([ids(TALE), ids(DIFFERENT)]) == [one, other]


def test_similar_texts_are_closer_than_different_ones(embed):
    tale, similar, different = embed([TALE, SIMILAR, DIFFERENT])
    assert cosine(tale, similar) > cosine(tale, different)
    assert cosine(tale, tale) == pytest.approx(1)


def test_the_same_text_has_the_same_vector_in_any_company(embed):
    alone = embed(TALE)[0]
    together = embed([DIFFERENT, TALE, SIMILAR, TALE])
    assert together[1] == together[3] == alone


def test_user_is_taken(embed):
    assert embed(TALE, user="someone") == embed(TALE)


@pytest.mark.asyncio
async def test_the_async_client_embeds(base_url, model, embed):
    async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none") as client:
        answer = await client.embeddings.create(model=model, input=[TALE, SIMILAR])
    assert [entry.embedding for entry in answer.data] == embed([TALE, SIMILAR])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", []),
        ("input", [10**6]),
        ("input", "Once upon a time. " * 500),
        ("encoding_format", "hex"),
        ("dimensions", 0),
    ],
)
def test_a_bad_field_is_a_bad_request_that_names_it(client, model, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(**{"model": model, "input": TALE, field: value})
    assert caught.value.param.split(".")[0].split("[")[0] == field


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="no-such-model", input=TALE)
    assert caught.value.code == "model_not_found"
