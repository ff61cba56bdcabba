"""Every example of docs/clients.md, docs/sessions.md and docs/adapters.md runs unchanged, except for addresses.

The examples of docs/clients.md must print text. Their `console` blocks (installation) are compared with
the requirements in this directory instead.

The examples of a chapter of the other two run one after the other, and must print the block that
follows them. Their `console` blocks start a server, which replaces the one at that address.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import typing

import pytest

HERE = pathlib.Path(__file__).parent
GUIDE = HERE.parents[1] / "docs/clients.md"
SESSIONS = HERE.parents[1] / "docs/sessions.md"
#: Address in the guide.
ADDRESS = "http://localhost:8080"
#: Files of requirements/ by chapter, if not `openai`.
ENVIRONMENTS = {"LlamaIndex": "llama-index", "lm-eval": "lm-eval"}
#: Maximum time of an example, in seconds.
LIMIT = 600


class Example(typing.NamedTuple):
    chapter: str
    language: str
    code: str
    line: int

    @property
    def environment(self):
        return ENVIRONMENTS.get(self.chapter, "openai")


def examples(guide):
    """Returns all fenced blocks with their chapters."""
    chapter, language, code, start = "", None, [], 0
    for number, line in enumerate(guide.read_text().splitlines(), 1):
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


EXAMPLES = list(examples(GUIDE))
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
    """Returns the command that runs an example from its standard input."""
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
    # Examples expect the built-in model's tokenizer and Node's packages in the working directory.
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
    """Returns a user's environment, without keys of OpenAI and without access to the network."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")}
    return {
        **mine,
        "PATH": f"{programs}{os.pathsep}{mine['PATH']}",
        # Nothing listens there.
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


OF_SESSIONS = list(examples(SESSIONS))
CHAPTERS = re.findall(r"^## (.+)$", SESSIONS.read_text(), re.MULTILINE)
#: Starts the server of a chapter that does not start one itself.
INTRODUCTION = next(example for example in OF_SESSIONS if not example.chapter)
#: Matches anything in expected output.
ANYTHING = "…"


def test_every_chapter_on_sessions_has_examples():
    assert CHAPTERS and {example.chapter for example in OF_SESSIONS} == {"", *CHAPTERS}
    assert {example.language for example in OF_SESSIONS} == {"bash", "console", "json", "text"}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_on_sessions_holds_what_it_promises(chapter, start_server, tmp_path):
    blocks = [example for example in OF_SESSIONS if example.chapter == chapter]
    with Machine(start_server, tmp_path) as machine:
        if blocks[0].language != "console":
            machine.start(INTRODUCTION)
        machine.hold_to(blocks)


ADAPTERS = list(examples(HERE.parents[1] / "docs/adapters.md"))


def test_the_guide_to_adapters_holds_what_it_promises(start_server, request, root, tmp_path):
    for seed, name in enumerate(["pirate", "poet"]):
        write_adapter(tmp_path / name, root / "assets/fairy-tales/config.json", seed)
    with Machine(start_server, tmp_path) as machine:
        machine.hold_to([example for example in ADAPTERS if example.chapter == "Serving adapters"])
    keys = tmp_path / "keys.toml"
    create = [request.config.getoption("--skald"), "keys", "create", "admin", "--scope", "admin", "--keys", str(keys)]
    key = subprocess.run(create, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    start = next(example for example in ADAPTERS if example.language == "console")
    start = start._replace(code=start.code.replace("serve", f"serve --keys {keys}"))
    with Machine(start_server, tmp_path, ADMIN_KEY=key) as machine:
        machine.start(start)
        machine.hold_to([example for example in ADAPTERS if example.chapter.startswith("Loading")])


def write_adapter(directory, config, seed):
    """Writes a small adapter of random weights for all attention layers, as peft does."""
    directory.mkdir()
    config = json.loads(config.read_text())
    generator = random.Random(seed)
    header, data = {}, b""
    for layer in range(config["n_layer"]):
        width = config["n_embd"]
        for part, shape in [("A", [2, width]), ("B", [3 * width, 2])]:
            values = [generator.uniform(-0.1, 0.1) for _ in range(shape[0] * shape[1])]
            start, data = len(data), data + struct.pack(f"<{len(values)}f", *values)
            name = f"base_model.model.transformer.h.{layer}.attn.c_attn.lora_{part}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    head = json.dumps(header).encode()
    weights = struct.pack("<Q", len(head)) + head + data
    (directory / "adapter_model.safetensors").write_bytes(weights)
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["c_attn"]}
    (directory / "adapter_config.json").write_text(json.dumps(fields))


class Machine:
    """The machine of a user: servers at addresses, and a directory."""

    def __init__(self, start_server, directory, **variables):
        self.start_server, self.directory, self.variables = start_server, directory, variables
        self.servers = {}
        self.urls = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers.values():
            server.close()

    def hold_to(self, blocks):
        """Runs blocks, and compares what they print with the blocks that follow them."""
        said = None
        for block, after in zip(blocks, [*blocks[1:], None]):
            told = f"line {block.line}:\n{block.code}\n{said}"
            match block.language:
                case "console":
                    self.start(block)
                case "bash":
                    said = self.run(block)
                    promised = after and after.language in ("json", "text")
                    assert promised or '"error"' not in said, f"line {block.line}:\n{said}"
                case "json":
                    assert is_as_promised(json.loads(block.code), json.loads(said)), told
                case "text":
                    assert said.startswith(block.code.rstrip("\n")), told

    def start(self, block):
        """Runs each `$ skald serve …` of a block."""
        commands = re.findall(r"^\$ skald serve ?(.*)$", block.code, re.MULTILINE)
        assert commands, f"line {block.line} starts no server"
        for flags in commands:
            address, flags = ADDRESS, flags.split()
            if "--listen" in flags:
                at = flags.index("--listen")
                address = "http://localhost:" + flags[at + 1].split(":")[1]
                del flags[at : at + 2]
            if "--session-dir" in flags:
                at = flags.index("--session-dir") + 1
                flags[at] = str(self.directory / flags[at])
            if before := self.servers.pop(address, None):
                before.close()
            server = contextlib.ExitStack()
            # Paths in flags are relative to it.
            started = self.start_server(*flags, directory=self.directory)
            self.urls[address] = server.enter_context(started)
            self.servers[address] = server

    def run(self, block):
        """Returns the output of a `bash` block."""
        code = re.sub(r"http://localhost:\d+", lambda address: self.urls[address[0]], block.code)
        run = subprocess.run(
            ["bash", "-euo", "pipefail"],
            input=code,
            cwd=self.directory,
            env={**os.environ, **self.variables},
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        assert run.returncode == 0, f"line {block.line}:\n{run.stdout}\n{run.stderr}"
        return run.stdout


def is_as_promised(promised, said):
    """Returns whether the output has all expected values; it can have others."""
    match promised, said:
        case dict(), dict():
            return all(key in said and is_as_promised(value, said[key]) for key, value in promised.items())
        case list(), list():
            return len(promised) == len(said) and all(map(is_as_promised, promised, said))
    return promised == ANYTHING or promised == said
