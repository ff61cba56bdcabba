"""schemathesis: whatever it is asked, the server answers as openapi.yaml says, and never with a 5xx."""

import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).parent / "contract"
#: A few minutes on a quiet machine; the limit is for one that is not, in seconds.
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
    assert int(re.search(r"(\d+) generated", run.stdout)[1]) > 500, "most questions were not asked"
    assert running() == 0
