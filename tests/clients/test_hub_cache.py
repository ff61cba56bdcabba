"""Skald and Python's huggingface_hub share a cache of models: each reads offline what the other has
fetched, and they wait for each other."""

import os
import pathlib
import subprocess
import sys
import time

import filelock
import huggingface_hub
import pytest

import hub as stand_in

#: Maximum time of a process on a busy machine, in seconds.
PATIENCE = 180
#: The files that Skald needs of the model, and one that it does not.
NAMES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"]


@pytest.fixture
def hub(root):
    files = {name: (root / "assets/fairy-tales" / name).read_bytes() for name in NAMES}
    with stand_in.serving(files) as hub:
        yield hub


@pytest.fixture
def environment(hub, tmp_path):
    """Returns the variables that both programs read, without those of this machine."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return inherited | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1,localhost"}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "hub"


@pytest.fixture
def pull(request, environment):
    """Starts `skald pull`."""
    binary = request.config.getoption("--skald")

    def start(**more):
        return subprocess.Popen(
            [binary, "pull", stand_in.MODEL],
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished(process):
    """Returns the directory that `skald pull` prints."""
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, stderr
    return pathlib.Path(stdout.strip())


def test_huggingface_hub_reads_what_skald_has_fetched(hub, pull, cache):
    directory = finished(pull())
    # It accepts any directory as a snapshot, so the files that Skald needs are checked by name.
    found = huggingface_hub.snapshot_download(stand_in.MODEL, cache_dir=cache, local_files_only=True)
    assert pathlib.Path(found) == directory
    for name in NAMES[:-1]:
        path = huggingface_hub.hf_hub_download(
            stand_in.MODEL, name, cache_dir=cache, local_files_only=True
        )
        assert pathlib.Path(path).read_bytes() == hub.files[name]
    info = huggingface_hub.scan_cache_dir(cache)
    assert not info.warnings
    (repository,) = info.repos
    assert (repository.repo_id, repository.nb_files) == (stand_in.MODEL, len(NAMES) - 1)
    assert [str(name) for name in repository.refs] == ["main"]


def test_skald_reads_what_huggingface_hub_has_fetched(hub, environment, pull, cache):
    # In a process of its own, because the library reads its variables on import.
    script = "import sys, huggingface_hub as hub\nfor name in sys.argv[2:]: hub.hf_hub_download(sys.argv[1], name)"
    subprocess.run(
        [sys.executable, "-c", script, stand_in.MODEL, *NAMES], env=environment, check=True, timeout=PATIENCE
    )
    hub.requests.clear()
    directory = finished(pull(HF_HUB_OFFLINE="1"))
    assert directory == cache / "models--org--tales" / "snapshots" / stand_in.COMMIT
    assert not hub.requests
    # Online, it requests the commit and finds everything in the cache.
    assert finished(pull()) == directory
    assert not hub.downloads()


def test_skald_waits_for_huggingface_hub_to_finish_a_file(hub, pull, cache):
    locks = cache / ".locks" / "models--org--tales"
    locks.mkdir(parents=True)
    weights = "model.safetensors"
    with filelock.FileLock(locks / f"{hub.etag(weights)}.lock"):
        process = pull()
        deadline = time.monotonic() + PATIENCE
        while ("HEAD", f"/{stand_in.MODEL}/resolve/{stand_in.COMMIT}/{weights}") not in hub.requests:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        # A file that the other has fetched meanwhile is not fetched again.
        blob = cache / "models--org--tales" / "blobs" / hub.etag(weights)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(hub.files[weights])
    directory = finished(process)
    assert (directory / weights).read_bytes() == hub.files[weights]
    assert not [path for path in hub.downloads() if path.endswith(weights)]
