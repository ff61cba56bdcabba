#!/usr/bin/env bash
# Makes src/fonts of the two packages on npm: Latin-1, punctuation, and the signs that the page itself uses.
# Needs npm, and pyftsubset (pip install fonttools brotli).
set -euo pipefail
out=$(cd "$(dirname "$0")" && pwd)/src/fonts
packages=$(mktemp -d)
trap 'rm -r "$packages"' EXIT
npm install --prefix "$packages" --no-audit --no-fund @fontsource/vollkorn@5 @fontsource-variable/instrument-sans@5
mkdir -p "$out"

subset() {
    pyftsubset "$packages/node_modules/$1" --output-file="$out/$2" --flavor=woff2 --layout-features+=lnum,tnum,onum,pnum \
        --unicodes='U+0020-007E,U+00A0-00FF,U+0131,U+0152,U+0153,U+02C6,U+02DA,U+02DC,U+2010-2015,U+2018-201E,U+2022,U+2026,U+2039,U+203A,U+20AC,U+2122,U+2190-2193,U+21B5,U+2212,U+2215,U+2423'
}

subset @fontsource/vollkorn/files/vollkorn-latin-400-normal.woff2 vollkorn.woff2
subset @fontsource-variable/instrument-sans/files/instrument-sans-latin-wght-normal.woff2 instrument-sans.woff2
cp "$packages/node_modules/@fontsource/vollkorn/LICENSE" "$out/vollkorn.LICENSE"
cp "$packages/node_modules/@fontsource-variable/instrument-sans/LICENSE" "$out/instrument-sans.LICENSE"
