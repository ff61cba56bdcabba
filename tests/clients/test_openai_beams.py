"""vLLM's additions to `/v1/completions`, sent by the official `openai` package: beam search,
log-probabilities of the prompt and its truncation. The reference is the same model in Python."""

import json

import openai
import pytest


@pytest.fixture(scope="module")
def reference(root):
    return json.loads((root / "tests/fixtures/fairy-tales/reference.json").read_text())


@pytest.fixture(scope="module")
def exact(start_server):
    """The reference was computed in f32, from the plain model without its generation config."""
    with start_server("--dtype", "f32", "--generation-config", "none") as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(exact, model):
    def completion(extra, **fields):
        fields = {"model": model, "max_tokens": 24, "temperature": 0, **fields}
        return exact.completions.create(**fields, extra_body=extra)

    return completion


def test_beams_are_those_of_the_reference(create, reference):
    for case in reference[:6]:
        expected = case["beams"]
        answer = create({"use_beam_search": True}, prompt=case["ids"], n=4, logprobs=0)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        for choice, beam in zip(answer.choices, expected, strict=True):
            logprobs = choice.logprobs.token_logprobs
            assert sum(logprobs) / len(logprobs) == pytest.approx(beam["score"], abs=4e-4), case["prompt"]
        best = create(None, prompt=expected[0]["ids"], max_tokens=0, echo=True)
        assert answer.choices[0].text == best.choices[0].text


def test_a_wider_search_returns_as_many_as_were_asked_for(create, reference):
    case = reference[0]
    wide = create({"use_beam_search": True}, prompt=case["ids"], n=4)
    best = create({"use_beam_search": True}, prompt=case["ids"], n=1, best_of=4)
    assert [choice.text for choice in best.choices] == [wide.choices[0].text]
    short = create({"use_beam_search": True, "length_penalty": -2.0, "early_stopping": True}, prompt=case["ids"], n=2)
    assert len(short.choices) == 2


def test_prompt_logprobs_are_those_of_the_reference(create, reference):
    for case in reference[:6]:
        answer = create({"prompt_logprobs": 1}, prompt=case["ids"], max_tokens=1)
        reported = answer.choices[0].prompt_logprobs
        assert reported[0] is None
        for token, place, expected in zip(case["ids"][1:], reported[1:], case["prompt_logprobs"][1:], strict=True):
            assert place[str(token)]["logprob"] == pytest.approx(expected, abs=4e-4)
            assert place[str(token)]["rank"] >= 1
            assert len(place) in (1, 2)


def test_a_truncated_prompt_is_its_last_tokens(create, reference):
    prompt = reference[0]["ids"]
    cut = create({"truncate_prompt_tokens": 4}, prompt=prompt)
    assert cut.usage.prompt_tokens == 4
    assert cut.choices[0].text == create(None, prompt=prompt[-4:]).choices[0].text
    assert create({"truncate_prompt_tokens": 4}, prompt=prompt[:3]).usage.prompt_tokens == 3


@pytest.mark.parametrize("other", [{"stream": True}, {"temperature": 0.7}, {"stop": ["x"]}])
def test_what_a_beam_search_cannot_do_is_refused_by_name(create, other):
    with pytest.raises(openai.BadRequestError) as caught:
        create({"use_beam_search": True}, prompt="The dragon", n=2, **other)
    assert [caught.value.param] == list(other)


@pytest.mark.parametrize(
    ("field", "value"), [("truncate_prompt_tokens", 0), ("prompt_logprobs", -5), ("use_beam_search", "yes")]
)
def test_a_value_out_of_range_is_refused_by_name(create, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        create({field: value}, prompt="The dragon")
    assert caught.value.param == field
