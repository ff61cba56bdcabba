"""schemathesis: every answer is one that openapi.yaml describes, and never a 5xx."""

import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent / "contract"
#: Maximum time on a busy machine, in seconds; it takes a few minutes on an idle one.
LIMIT = 1200


def test_the_server_keeps_to_its_contract(base_url, running):
    run = subprocess.run(
        [
            str(pathlib.Path(sys.executable).parent / "schemathesis"),
            "--config-file",
            "schemathesis.toml",
            "run",
            f"{base_url}/openapi.json",
        ],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    print(run.stdout, run.stderr)
    assert run.returncode == 0, run.stdout[-20_000:]
    assert int(re.search(r"(\d+) generated", run.stdout)[1]) > 500, "most requests were not sent"
    assert running() == 0
