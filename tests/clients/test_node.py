"""Runs the tests of `node/` (the official `openai` package for Node) against the same server.

Node is one of their packages, because the client needs a newer one than Debian's.
"""

import os
import pathlib
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent / "node"


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.js")))
def test_the_node_client(node, base_url, name):
    run = subprocess.run(
        [node, "--test", "--test-reporter=spec", name],
        cwd=HERE,
        env={**os.environ, "SKALD_URL": base_url},
        capture_output=True,
        text=True,
        timeout=600,
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0, run.stdout
    assert "pass 0" not in run.stdout
