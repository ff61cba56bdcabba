"""SmolLM2 135M Instruct, the file that `tests/real.sh` fetches, by the official client: its answers are those of
transformers' greedy decoding on the dequantized weights."""

import json
import os
import pathlib

import pytest
from openai import OpenAI

ROOT = pathlib.Path(__file__).parents[2]
REAL = pathlib.Path(os.environ.get("SKALD_TEST_REAL", ROOT / "target/real"))
EXPECTED = ROOT.parent / "shared/gemma/real/smollm2.json"


@pytest.fixture(scope="module")
def client(start_server):
    """Returns a client of a server with SmolLM2 in f32."""
    model = REAL / "smollm2-135m-instruct-q4_1.gguf"
    assert model.exists(), "run `tests/real.sh --fetch` first"
    with start_server("--model", str(model), "--dtype", "f32") as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="none")


@pytest.fixture(scope="module")
def chat():
    """Returns the question of the reference, and transformers' answer up to the end of the turn."""
    prompts = json.loads(EXPECTED.read_text())["prompts"]
    prompt = next(prompt for prompt in prompts if prompt["name"] == "chat")
    question = prompt["text"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    return [{"role": "user", "content": question}], prompt["greedy32_text"].split("<|im_end|>")[0]


def ask(client, messages, **options):
    return client.chat.completions.create(model="tgi", messages=messages, temperature=0, max_tokens=32, **options)


def test_an_answer_is_transformers(client, chat):
    messages, expected = chat
    choice = ask(client, messages).choices[0]
    assert choice.message.content == expected
    assert choice.finish_reason == "stop"


def test_a_streamed_answer_is_transformers(client, chat):
    messages, expected = chat
    chunks = list(ask(client, messages, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 3


def test_texts_go_on_as_transformers_has_them(client):
    for prompt in json.loads(EXPECTED.read_text())["prompts"]:
        answer = client.completions.create(
            model="tgi", prompt=prompt["ids"], temperature=0, max_tokens=32, extra_body={"ignore_eos": True}
        )
        expected = prompt["greedy32_text"]
        if "<|im_" not in expected and "\ufffd" not in expected:
            assert answer.choices[0].text == expected, prompt["name"]


def test_an_answer_follows_a_schema(client, chat):
    messages, _ = chat
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "is_capital": {"type": "boolean"},
        },
        "required": ["city", "is_capital"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    choice = client.chat.completions.create(
        model="tgi", messages=messages, temperature=0, max_tokens=64, response_format=format
    ).choices[0]
    answer = json.loads(choice.message.content)
    assert set(answer) == {"city", "is_capital"}
    assert isinstance(answer["city"], str) and isinstance(answer["is_capital"], bool)
    assert choice.finish_reason == "stop"
