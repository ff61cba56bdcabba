#!/usr/bin/env bash
# Compares Skald with llama.cpp and CTranslate2 and prints the tables of BENCHMARKS.md: engines, servers,
# Skald alone, speculation, Gemma 3.
#
#     benches/peers/run.sh [124M|355M|774M|1558M|tiny] [TURNS]
#
# Needs cargo, Python 3.10 or newer with venv, a C++ compiler, and for the first run a connection to
# the Python package index. Its files are in target/peers-venv and target/peers, and reused by the next run.
# Takes about an hour for 3 rounds of 124M on 2 cores, half an hour for Gemma 3, and half an hour to build llama.cpp
# the first time. THREADS=N sets the threads (all cores otherwise).
set -euo pipefail

shape=${1:-124M}
turns=${2:-3}
threads=${THREADS:-$(nproc)}
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
venv=$PWD/target/peers-venv
work=$PWD/target/peers
name=gpt2-$shape
python=$venv/bin/python
export PATH="$venv/bin:$PATH"
mkdir -p "$work"

# The Python packages. llama-cpp-python comes without its library, which is built below together
# with the server, so pip must neither take it from its cache nor leave it there.
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
    python3 -m venv "$venv"
    grep -v '^llama-cpp-python' "$here/requirements.txt" > "$work/requirements.txt"
    "$python" -m pip install --quiet --requirement "$work/requirements.txt"
    llama=$(grep '^llama-cpp-python' "$here/requirements.txt")
    CMAKE_ARGS=-DLLAMA_BUILD=OFF "$python" -m pip install --quiet --no-cache-dir "$llama"
    rm -rf "$work/llama-cpp-python" "$work/llama.cpp" "$work/download"
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$work/download" "$llama"
    mkdir "$work/llama-cpp-python"
    tar -xzf "$work"/download/llama_cpp_python-*.tar.gz --strip-components=1 -C "$work/llama-cpp-python"
    cp "$here/requirements.txt" "$venv/requirements.txt"
fi

# llama.cpp for this machine's processor (GGML_NATIVE is its default).
if [ ! -x "$work/llama.cpp/bin/llama-server" ]; then
    cmake -G Ninja -S "$work/llama-cpp-python/vendor/llama.cpp" -B "$work/llama.cpp" \
        -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_OPENSSL=OFF \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    ninja -C "$work/llama.cpp" llama-server
fi
library=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/llama_cpp/lib
rm -rf "$library"
ln -s "$work/llama.cpp/bin" "$library"

# The checkpoint, in the formats and precisions of all engines.
if [ ! -e "$work/$name/tokenizer.json" ]; then
    "$python" "$here/make_checkpoint.py" "$work/$name" "$shape"
fi
for dtype in f32 f16 bf16 q8_0; do
    [ -e "$work/$name-$dtype.gguf" ] || "$python" "$here/convert_gguf.py" "$work/$name" "$work/$name-$dtype.gguf" $dtype
done
for dtype in float32 int8; do
    [ -e "$work/$name-ct2-$dtype/vocabulary.json" ] || "$python" "$here/convert_ct2.py" "$work/$name" "$work/$name-ct2-$dtype" $dtype
done

cargo build --release --bin skald
cargo bench --bench engine --no-run
"$python" "$here/check.py" "$work" "$name" >&2
stamp=$(date -u +%Y%m%dT%H%M%SZ)
"$python" "$here/engine_side_by_side.py" "$work" "$name" --turns "$turns" --threads "$threads" --log "$work/engine-$stamp.jsonl"
echo
"$python" "$here/http_side_by_side.py" "$work" "$name" --turns "$turns" --threads "$threads" --log "$work/http-$stamp.jsonl"
echo
"$python" "$here/http_side_by_side.py" "$work" "$name" --turns "$turns" --threads "$threads" --precision q8 --streams 64 --slots 32
echo
"$python" "$here/skald_alone.py" "$work" "$name" --threads "$threads"
echo
cargo bench --quiet --bench speculation -- "$work/$name" --threads "$threads"

# Gemma 3, from the same GGUF file as llama.cpp.
for shape in 270M 1B; do
    for dtype in bf16 q8_0; do
        gguf=$work/gemma3-$shape-$dtype.gguf
        [ -e "$gguf" ] || "$python" "$here/make_gemma.py" "$gguf" "$shape" "$dtype"
    done
    echo
    "$python" "$here/engine_side_by_side.py" "$work" "gemma3-$shape" --gguf --precision bf16,q8 --batch 1,16 --turns "$turns" --threads "$threads" --log "$work/engine-$stamp.jsonl"
done
echo
"$python" "$here/contexts.py" target/release/skald "$work/gemma3-270M-bf16.gguf" --threads "$threads"
