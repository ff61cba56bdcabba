#!/usr/bin/env bash
# Tests the page in Debian's Chromium against a binary: run.sh BINARY [FOLDER FOR PICTURES]
set -euo pipefail
binary=$(realpath "$1")
pictures=${2:+$(mkdir -p "$2" && realpath "$2")}
cd "$(dirname "$0")"
[ -d node_modules ] || npm ci --no-audit --no-fund
[ -d ../../web/node_modules ] || npm ci --prefix ../../web --no-audit --no-fund

SKALD=$binary SCREENSHOTS=$pictures node --test --test-concurrency=1 --test-reporter=spec ./*.test.mjs

SKALD=$binary node frames.mjs

# The page's sampler against the server's, 1,000 draws.
port=$((20000 + RANDOM % 20000))
"$binary" serve --listen "127.0.0.1:$port" >/dev/null 2>&1 &
server=$!
trap 'kill "$server"' EXIT
until curl -sf "http://127.0.0.1:$port/readyz" >/dev/null; do
    kill -0 "$server"
    sleep 0.2
done
SKALD_URL=http://127.0.0.1:$port npm --prefix ../../web test
