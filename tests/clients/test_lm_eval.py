"""EleutherAI's `lm-eval` with its `local-completions`: its results through Skald equal those of the same
model in Python. torch is not needed, and nothing is stubbed."""

import importlib.util
import json

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

#: Context length of the built-in model.
WINDOW = 1024


@pytest.fixture(scope="module")
def reference(root):
    """Returns prompts with the log-probabilities and the greedy text of the model in Python."""
    return json.loads((root / "tests/fixtures/fairy-tales/reference.json").read_text())


@pytest.fixture(scope="module")
def exact(start_server):
    """Starts a server in f32 and without the generation config, as the reference was computed."""
    with start_server("--dtype", "f32", "--generation-config", "none") as url:
        yield url


@pytest.fixture(scope="module", params=[{}, {"batch_size": 8}, {"num_concurrent": 4}, {"tokenized_requests": False}])
def lm(request, exact, model, root):
    """Returns a client for each way to send requests: one by one, in batches, concurrently, and as text."""
    return LocalCompletionsAPI(
        model=model,
        base_url=f"{exact}/v1/completions",
        tokenizer=str(root / "assets/fairy-tales"),
        tokenizer_backend="huggingface",
        max_length=WINDOW,
        **request.param,
    )


def asked(kind, *arguments):
    return [Instance(request_type=kind, doc={}, arguments=args, idx=i) for i, args in enumerate(arguments)]


def test_torch_is_not_installed():
    assert importlib.util.find_spec("torch") is None


def test_its_tokenizer_is_the_models(lm, reference, end_of_text):
    for case in reference:
        assert lm.tok_encode(case["prompt"]) == case["ids"]
    assert lm.eot_token_id == lm.prefix_token_id == end_of_text


def test_loglikelihoods_are_those_of_the_reference(lm, reference):
    requests = []
    for case in reference:
        first = lm.decode_batch([case["ids"][:1]])[0]
        requests.append((first, case["prompt"].removeprefix(first)))
    results = lm.loglikelihood(asked("loglikelihood", *requests), disable_tqdm=True)
    for case, (logprob, _) in zip(reference, results, strict=True):
        expected = sum(case["prompt_logprobs"][1:])
        assert logprob == pytest.approx(expected, abs=4e-4 * (len(case["ids"]) - 1)), case["prompt"]


def test_the_greedy_text_is_known_as_such(lm, reference):
    cases = [case for case in reference if len(lm.tok_encode(case["prompt"] + case["greedy_text"])) == len(case["ids"]) + len(case["greedy_ids"])]
    assert len(cases) >= 10
    results = lm.loglikelihood(
        asked("loglikelihood", *[(case["prompt"], case["greedy_text"]) for case in cases]), disable_tqdm=True
    )
    assert all(greedy for _, greedy in results)
    (_, greedy), = lm.loglikelihood(asked("loglikelihood", ("The dragon", " the the the")), disable_tqdm=True)
    assert not greedy


def test_rolling_loglikelihoods_begin_with_the_end_of_text(lm, reference):
    texts = [(case["prompt"],) for case in reference[:5]]
    rolling = lm.loglikelihood_rolling(asked("loglikelihood_rolling", *texts), disable_tqdm=True)
    plain = lm.loglikelihood(asked("loglikelihood", *[("", text) for (text,) in texts]), disable_tqdm=True)
    assert rolling == pytest.approx([logprob for logprob, _ in plain], abs=4e-4)
    assert all(total < 0 for total in rolling)


def test_rolling_over_a_text_longer_than_the_window(lm, root):
    text = (root / "assets/fairy-tales/validation.txt").read_text()[:12_000]
    tokens = len(lm.tok_encode(text))
    assert tokens > 2 * WINDOW
    (total,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert -5 < total / tokens < -1, "nats per token"


def test_generated_texts_are_those_of_the_reference(lm, reference):
    length = len(reference[0]["greedy_ids"])
    fields = {"until": ["@@"], "max_gen_toks": length, "do_sample": False, "temperature": 0}
    texts = lm.generate_until(
        asked("generate_until", *[(case["prompt"], fields) for case in reference]), disable_tqdm=True
    )
    assert texts == [case["greedy_text"] for case in reference]


def test_a_generated_text_ends_before_its_stop_string(lm, reference):
    case = reference[0]
    stop = case["greedy_text"][8:12]
    fields = {"until": [stop], "max_gen_toks": 24, "temperature": 0}
    (text,) = lm.generate_until(asked("generate_until", (case["prompt"], fields)), disable_tqdm=True)
    assert text == case["greedy_text"].split(stop)[0]
