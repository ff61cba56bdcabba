"""The official `openai` package: every field of `/v1/completions` has its documented effect."""

import openai
import pytest

PROMPT = "Once upon a time there was a king who had three daughters,"
OTHER = "The wolf said to the little girl,"


@pytest.fixture(scope="module")
def client(base_url):
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def create(client, model):
    """Completes `PROMPT`, greedily and with 24 tokens by default."""

    def completion(**fields):
        return client.completions.create(
            **{"model": model, "prompt": PROMPT, "max_tokens": 24, "temperature": 0, **fields}
        )

    return completion


def text(answer):
    return answer.choices[0].text


def test_a_completion_has_text_and_usage(create, model, ids):
    answer = create()
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == model
    assert answer.created > 1_700_000_000
    assert answer.system_fingerprint
    assert [choice.index for choice in answer.choices] == [0]
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is None
    assert len(ids(text(answer))) == 24
    assert answer.usage.prompt_tokens == len(ids(PROMPT))
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_the_model_is_listed_and_can_be_retrieved(client, model):
    assert [entry.id for entry in client.models.list()] == [model]
    entry = client.models.retrieve(model)
    assert (entry.id, entry.object) == (model, "model")
    assert entry.created > 1_700_000_000
    assert entry.owned_by


def test_max_tokens_is_16_where_it_is_left_out(client, model):
    answer = client.completions.create(model=model, prompt=PROMPT, temperature=0)
    assert answer.usage.completion_tokens == 16


def test_all_four_forms_of_a_prompt_mean_the_same(create, ids):
    one, other = text(create()), text(create(prompt=OTHER))
    assert one != other
    assert [choice.text for choice in create(prompt=[PROMPT, OTHER]).choices] == [one, other]
    assert text(create(prompt=ids(PROMPT))) == one
    answer = create(prompt=[ids(PROMPT), ids(OTHER)])
    assert [choice.text for choice in answer.choices] == [one, other]
    assert answer.usage.prompt_tokens == len(ids(PROMPT)) + len(ids(OTHER))


def test_no_prompt_begins_a_new_text(create, end_of_text):
    assert text(create(prompt=None)) == text(create(prompt="")) == text(create(prompt=[end_of_text]))


def test_n_choices_of_several_prompts_come_in_order(create):
    answer = create(prompt=[PROMPT, OTHER], n=2, temperature=1, seed=1, max_tokens=8)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    alone = [
        text(create(prompt=prompt, temperature=1, seed=seed, max_tokens=8)) for prompt in (PROMPT, OTHER) for seed in (1, 2)
    ]
    assert [choice.text for choice in answer.choices] == alone
    assert answer.usage.completion_tokens == 32


def test_best_of_returns_the_likeliest(create):
    fields = {"temperature": 1, "seed": 11, "max_tokens": 12}
    everyone = create(n=4, logprobs=0, **fields)
    mean = {c.text: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs) for c in everyone.choices}
    best = create(best_of=4, n=1, **fields)
    assert [choice.text for choice in best.choices] == [max(mean, key=mean.get)]
    assert best.usage.completion_tokens == everyone.usage.completion_tokens
    two = create(best_of=4, n=2, **fields)
    assert [choice.text for choice in two.choices] == sorted(mean, key=mean.get, reverse=True)[:2]


def test_echo_puts_the_prompt_first(create, ids):
    assert text(create(echo=True)) == PROMPT + text(create())
    assert text(create(prompt=ids(PROMPT), echo=True)) == PROMPT + text(create())


def test_logprobs_tell_of_each_token(create, ids):
    answer = create(logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == text(answer)
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 24
    at = len(PROMPT)
    for token, logprob, top, offset in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset, strict=True
    ):
        assert offset == at
        at += len(token)
        assert len(top) == 3
        # Greedy: without penalties the token is the most likely one of the model's distribution.
        assert top[token] == logprob <= max(top.values()) <= 0


def test_a_prompt_can_be_scored_without_generating(create, ids):
    answer = create(max_tokens=0, echo=True, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert text(answer) == PROMPT == "".join(logprobs.tokens)
    assert answer.usage.completion_tokens == 0
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(logprob < 0 for logprob in logprobs.token_logprobs[1:])
    assert all(len(top) in (2, 3) for top in logprobs.top_logprobs[1:])
    assert [PROMPT[at : at + len(token)] for token, at in zip(logprobs.tokens, logprobs.text_offset)] == logprobs.tokens


def test_a_stop_string_ends_the_text_before_it(create):
    whole = text(create(max_tokens=40, temperature=1, seed=3))
    stop = whole[20:24]
    answer = create(max_tokens=40, temperature=1, seed=3, stop=stop)
    assert text(answer) == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_of_several_stop_strings_the_first_met_ends_the_text(create):
    whole = text(create(max_tokens=40, temperature=1, seed=3))
    early, late = whole[10:14], whole[30:34]
    assert text(create(max_tokens=40, temperature=1, seed=3, stop=[late, early, "@@"])) == whole[: whole.index(early)]


def test_a_seed_gives_the_same_text_again(create):
    once = create(temperature=1, seed=7)
    assert text(create(temperature=1, seed=7)) == text(once)
    assert text(create(temperature=1, seed=8)) != text(once)


def test_a_drawn_seed_is_told_and_can_be_used_again(create):
    drawn = create(temperature=1)
    assert text(create(temperature=1, seed=drawn.choices[0].seed)) == text(drawn)


def test_temperature_and_top_p_narrow_the_choice(create):
    greedy = text(create())
    assert text(create(temperature=1, top_p=1e-6, seed=1)) == greedy
    assert text(create(temperature=0.01, seed=1)) == greedy
    assert len({text(create(temperature=2, top_p=1, seed=seed)) for seed in range(4)}) == 4


def test_logit_bias_forbids_and_forces(create, ids):
    first = ids(text(create(max_tokens=1)))[0]
    assert ids(text(create(max_tokens=1, logit_bias={str(first): -100})))[0] != first
    (dragon,) = ids(" dragon")[:1]
    answer = create(max_tokens=4, logit_bias={str(dragon): 100})
    assert answer.usage.completion_tokens == 4
    assert len(set(ids(text(answer)))) == 1


def test_penalties_make_repetition_rare(create, ids):
    def different(**fields):
        return len(set(ids(text(create(max_tokens=96, extra_body={"repetition_penalty": 1.0}, **fields)))))

    plain = different()
    assert different(frequency_penalty=2) > plain
    assert different(presence_penalty=2) > plain
    assert different(frequency_penalty=-2) < plain


def test_user_and_unknown_fields_change_nothing(create):
    plain = text(create())
    assert text(create(user="someone", extra_body={"colour": "blue", "metadata": {"a": 1}})) == plain
    assert text(create(extra_headers={"X-Custom": "1"}, extra_query={"q": "1"})) == plain


def test_suffix_is_refused(create):
    with pytest.raises(openai.BadRequestError) as caught:
        create(suffix=" The End")
    assert caught.value.param == "suffix"
    assert "The End" in caught.value.message


def test_the_request_id_can_be_chosen_and_read(create):
    assert create(extra_headers={"X-Request-Id": "tale-1"})._request_id == "tale-1"
    assert create()._request_id not in (None, "tale-1")


def test_the_raw_answer_is_there_too(client, model):
    raw = client.completions.with_raw_response.create(model=model, prompt=PROMPT, max_tokens=3)
    assert raw.status_code == 200
    assert raw.headers["content-type"].startswith("application/json")
    assert raw.parse().usage.completion_tokens == 3
