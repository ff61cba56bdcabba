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


def test_the_best_beam_is_at_least_as_likely_as_the_greedy_text(create, reference):
    for case in reference[:4]:
        greedy = create(None, prompt=case["ids"], logprobs=0)
        beam = create({"use_beam_search": True}, prompt=case["ids"], n=4, logprobs=0)
        assert [choice.index for choice in beam.choices] == [0, 1, 2, 3]

        def mean(choice):
            logprobs = choice.logprobs.token_logprobs
            return sum(logprobs) / len(logprobs)

        means = [mean(choice) for choice in beam.choices]
        assert means == sorted(means, reverse=True)
        assert means[0] >= mean(greedy.choices[0]) - 1e-4
        assert len({choice.text for choice in beam.choices}) == 4


def test_prompt_logprobs_are_those_of_the_reference(create, reference):
    for case in reference[:6]:
        answer = create({"prompt_logprobs": 1}, prompt=case["ids"], max_tokens=1)
        reported = answer.choices[0].prompt_logprobs
        assert reported[0] is None
        for token, place, expected in zip(case["ids"][1:], reported[1:], case["prompt_logprobs"][1:], strict=True):
            assert place[str(token)]["logprob"] == pytest.approx(expected, abs=1e-3)
            assert place[str(token)]["rank"] >= 1
            assert len(place) in (1, 2)


def test_a_truncated_prompt_is_its_last_tokens(create, reference):
    prompt = reference[0]["ids"]
    cut = create({"truncate_prompt_tokens": 4}, prompt=prompt)
    assert cut.usage.prompt_tokens == 4
    assert cut.choices[0].text == create(None, prompt=prompt[-4:]).choices[0].text
    assert create({"truncate_prompt_tokens": 4}, prompt=prompt[:3]).usage.prompt_tokens == 3


def test_beam_search_cannot_be_streamed(create, reference):
    with pytest.raises(openai.BadRequestError):
        list(create({"use_beam_search": True}, prompt=reference[0]["ids"], n=2, stream=True))


@pytest.mark.parametrize(
    ("field", "value"), [("truncate_prompt_tokens", 0), ("prompt_logprobs", -5), ("use_beam_search", "yes")]
)
def test_a_value_out_of_range_is_refused_by_name(create, field, value):
    with pytest.raises(openai.BadRequestError) as caught:
        create({field: value}, prompt="The dragon")
    assert caught.value.param == field
