"""Every example of docs/clients.md runs as it stands and prints something sensible.

The address is the only thing replaced. `console` blocks (how to install) are compared with the
requirements of this folder instead.
"""

import os
import pathlib
import re
import subprocess
import typing

import pytest

HERE = pathlib.Path(__file__).parent
GUIDE = HERE.parents[1] / "docs/clients.md"
#: The address in the guide.
ADDRESS = "http://localhost:8080"
#: Which of requirements/ the examples of a chapter need, where it is not `openai`.
ENVIRONMENTS = {"LlamaIndex": "llama-index", "lm-eval": "lm-eval"}
#: What an example of a chapter may take, in seconds.
LIMIT = 180


class Example(typing.NamedTuple):
    chapter: str
    language: str
    code: str
    line: int

    @property
    def environment(self):
        return ENVIRONMENTS.get(self.chapter, "openai")


def examples():
    """All fenced blocks with the chapter they are in."""
    chapter, language, code, start = "", None, [], 0
    for number, line in enumerate(GUIDE.read_text().splitlines(), 1):
        fence = re.fullmatch(r"```(\w*)", line)
        if language is None and fence:
            language, code, start = fence[1], [], number
        elif language is not None and fence:
            yield Example(chapter, language, "\n".join(code) + "\n", start)
            language = None
        elif language is not None:
            code.append(line)
        elif line.startswith("## "):
            chapter = line[3:]


EXAMPLES = list(examples())
TO_RUN = [example for example in EXAMPLES if example.language != "console"]


def test_the_guide_has_examples_of_every_client():
    chapters = {example.chapter for example in TO_RUN}
    mentioned = re.findall(r"^## (.+)$", GUIDE.read_text(), re.MULTILINE)
    assert mentioned and chapters == set(mentioned)
    assert {example.language for example in TO_RUN} == {"bash", "python", "js"}


def test_the_address_of_the_guide_is_the_only_one():
    addresses = set(re.findall(r"https?://[\w.:]+", "".join(example.code for example in TO_RUN)))
    assert addresses == {ADDRESS}


def test_what_is_to_be_installed_is_what_is_tested():
    for example in EXAMPLES:
        for package in re.findall(r"pip install (.+)", example.code):
            names = {name.split("[")[0] for name in package.replace("'", "").split()}
            required = (HERE / f"requirements/{example.environment}.txt").read_text()
            tested = set(re.findall(r"^([\w-]+)", required, re.MULTILINE))
            assert names <= tested, f"line {example.line}"


def command(example, environments, node):
    """What runs an example that is given to it on its standard input."""
    match example.language:
        case "bash":
            return ["bash", "-euo", "pipefail"]
        case "python":
            return [str(environments / example.environment / "bin/python"), "-"]
        case "js":
            return [node, "--input-type=module", "-"]
    raise AssertionError(f"line {example.line}: nothing runs {example.language!r}")


@pytest.mark.parametrize("example", TO_RUN, ids=lambda example: f"{example.chapter}, line {example.line}")
def test_an_example_runs(example, base_url, request, node, root, tmp_path):
    environments = pathlib.Path(request.config.getoption("--environments")).resolve()
    # The tokenizer of the built-in model, and the packages of Node, are found from where it runs.
    (tmp_path / "assets").symlink_to(root / "assets")
    (tmp_path / "node_modules").symlink_to(HERE / "node/node_modules")
    run = subprocess.run(
        command(example, environments, node),
        input=example.code.replace(ADDRESS, base_url),
        cwd=tmp_path,
        env=environment(environments / example.environment / "bin"),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    told = f"line {example.line}:\n{run.stdout}\n{run.stderr}"
    assert run.returncode == 0, told
    assert len(re.findall(r"[A-Za-z]{2,}", run.stdout)) >= 3, told
    assert not re.search(r'Traceback|"error"', run.stdout), told
    print(run.stdout)


def environment(programs):
    """As a user has it, without keys of OpenAI, and with nothing that asks the network."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    return {
        **mine,
        "PATH": f"{programs}{os.pathsep}{mine['PATH']}",
        # Nobody is there.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
