"""The official `openai` package: answers in a requested form, by `response_format`."""

import json
import typing

import openai
import pydantic
import pytest

QUESTION = [{"role": "user", "content": "Who was the king?"}]


class King(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    daughters: typing.Literal[1, 2, 3]
    kind: bool


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(client, model):
    def chat(**fields):
        return client.chat.completions.create(
            **{"model": model, "messages": QUESTION, "max_completion_tokens": 200, "seed": 1, **fields}
        )

    return chat


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "tale", "strict": True, "schema": schema}}


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_follows_its_schema(create, seed):
    schema = {
        "type": "object",
        "properties": {
            "hero": {"type": "string", "maxLength": 12},
            "animal": {"enum": ["fox", "bear", "wolf"]},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
        },
        "required": ["hero", "animal", "age"],
        "additionalProperties": False,
    }
    answer = create(response_format=json_schema(schema), seed=seed)
    assert answer.choices[0].finish_reason == "stop"
    tale = json.loads(answer.choices[0].message.content)
    assert set(tale) == {"hero", "animal", "age"}
    assert isinstance(tale["hero"], str) and len(tale["hero"]) <= 12
    assert tale["animal"] in ("fox", "bear", "wolf")
    assert isinstance(tale["age"], int) and 1 <= tale["age"] <= 99


def test_parse_gives_an_object_of_the_callers_class(client, model):
    answer = client.chat.completions.parse(
        model=model, messages=QUESTION, response_format=King, max_completion_tokens=200, seed=2
    )
    king = answer.choices[0].message.parsed
    assert isinstance(king, King)
    assert king.daughters in (1, 2, 3)


def test_a_streamed_answer_follows_its_schema_too(client, model):
    with client.chat.completions.stream(
        model=model, messages=QUESTION, response_format=King, max_completion_tokens=200, seed=3
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, King)


def test_json_object_gives_some_json_object(create):
    answer = create(response_format={"type": "json_object"}, max_completion_tokens=400, logit_bias={})
    content = answer.choices[0].message.content
    assert content.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(content), dict)


def test_text_is_what_comes_anyway(create):
    fields = {"temperature": 0, "max_completion_tokens": 16}
    assert create(response_format={"type": "text"}, **fields).choices == create(**fields).choices


def test_several_choices_follow_the_schema_each(create):
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    answer = create(response_format=json_schema(schema), n=3)
    assert all(type(json.loads(choice.message.content)["a"]) is bool for choice in answer.choices)


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}},
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(create, response_format):
    with pytest.raises(openai.BadRequestError) as caught:
        create(response_format=response_format)
    assert caught.value.param.startswith("response_format")
