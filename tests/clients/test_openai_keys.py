"""The official `openai` package against a server that requires API keys: classes of errors, and headers."""

import subprocess

import openai
import pytest

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def keys(request, tmp_path_factory):
    """Creates keys: `keys("ada", "--requests-per-minute", "1")` returns one; `keys.file` is their file."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    binary = request.config.getoption("--skald")

    def create(*arguments):
        command = [binary, "keys", "create", *arguments, "--keys", str(file)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    create.file = file
    return create


@pytest.fixture(scope="module")
def guarded(keys, start_server):
    """Starts a server with keys. Returns its address, and the keys by name."""
    named = {
        "ada": keys("ada"),
        "few": keys("few", "--requests-per-minute", "1", "--tokens-per-minute", "50"),
        "metrics": keys("prometheus", "--scope", "metrics"),
    }
    with start_server("--keys", str(keys.file)) as url:
        yield f"{url}/v1", named


def client(guarded, key):
    url, named = guarded
    return openai.OpenAI(base_url=url, api_key=named.get(key, key), max_retries=0)


def test_a_right_key_works(guarded):
    ada = client(guarded, "ada")
    model = ada.models.list().data[0].id
    raw = ada.completions.with_raw_response.create(model=model, prompt=PROMPT, max_tokens=4)
    assert raw.parse().usage.completion_tokens <= 4
    assert "x-ratelimit-limit-requests" not in raw.headers, "it has no limits"
    stream = ada.chat.completions.create(
        model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=4, stream=True
    )
    assert list(stream)
    assert ada.embeddings.create(model=model, input=PROMPT).data


@pytest.mark.parametrize("key", ["none", "skald_000000000000_0000"])
def test_a_wrong_key_is_an_authentication_error(guarded, key):
    with pytest.raises(openai.AuthenticationError) as caught:
        client(guarded, key).models.list()
    error = caught.value
    assert (error.status_code, error.code, error.type) == (401, "invalid_api_key", "invalid_request_error")
    assert key not in error.message
    assert error.request_id


def test_a_key_without_the_scope_is_a_permission_error(guarded):
    with pytest.raises(openai.PermissionDeniedError) as caught:
        client(guarded, "metrics").models.list()
    assert caught.value.code == "insufficient_scope"
    assert "generate" in caught.value.message


def test_a_limit_is_a_rate_limit_error_with_headers(guarded):
    few = client(guarded, "few")
    raw = few.completions.with_raw_response.create(model="tgi", prompt=PROMPT, max_tokens=4)
    assert raw.headers["x-ratelimit-limit-requests"] == "1"
    assert raw.headers["x-ratelimit-remaining-requests"] == "0"
    assert raw.headers["x-ratelimit-limit-tokens"] == "50"
    with pytest.raises(openai.RateLimitError) as caught:
        few.completions.create(model="tgi", prompt=PROMPT, max_tokens=4)
    error = caught.value
    assert error.code == "rate_limit_exceeded"
    headers = error.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert float(headers["retry-after"]) >= 1
    assert 0 < float(headers["retry-after-ms"]) <= 60_000
