"""Records the terminal session at the top of the README: `python docs/demo/record.py path/to/skald`.

Runs `COMMANDS` in bash against a real server on port 8080 and writes what they printed, with its timing, to
`demo.svg` beside this file. Output is played `SLOWDOWN` times slower than it arrived, so that the tokens of a
stream can be seen one by one. Viewers that do not play CSS animations show the finished session.
"""

import html
import os
import pathlib
import subprocess
import sys
import tempfile
import time

COMMANDS = [
    "skald serve 2> skald.log &",
    "until skald health; do sleep 0.1; done 2> /dev/null",
    "curl -sN localhost:8080/generate -d '{\"inputs\":\"Once upon a time\",\"stream\":true,\n"
    '    "parameters":{"seed":3,"max_new_tokens":3}}\'',
    "curl -sN localhost:8080/v1/completions -d '{\"prompt\":\"Once upon a time\",\"stream\":true,\n"
    "    \"seed\":3,\"max_tokens\":62}' | sed -un 's/^data: {/{/p' | jq -j --unbuffered '.choices[0].text'",
]
SLOWDOWN = 40
#: Characters per line, and the size of one in pixels.
COLUMNS, WIDTH, HEIGHT = 104, 8, 19
#: Seconds between two keys, and between the end of one command and the next.
KEY, PAUSE = 0.015, 1.0
MARGIN, PROMPT, OUTPUT, PAPER = 16, "#7ee787", "#d8dee9", "#11151c"


def record(skald):
    """Yields (command, [(seconds since its start, text)]) for each command."""
    path = f"{skald.resolve().parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as directory:
        shell = subprocess.Popen(
            ["bash"], cwd=directory, env={**os.environ, "PATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        end = b"\x04"
        try:
            for command in COMMANDS:
                shell.stdin.write(f"{command}\nprintf '\\004'\n".encode())
                shell.stdin.flush()
                start, chunks = time.monotonic(), []
                while not (chunks and chunks[-1][1].endswith(end)):
                    data = os.read(shell.stdout.fileno(), 65536)
                    if not data:
                        raise RuntimeError("the shell has ended")
                    chunks.append((time.monotonic() - start, data))
                yield command, [(at, data.rstrip(end).decode()) for at, data in chunks]
        finally:
            shell.communicate(b"kill %1\nwait\n")


def segments(session):
    """Yields (row, column, text, color, second) of each piece of a line, and where the session ends."""
    row, column, now = 0, 0, 0.5

    def put(text, color):
        nonlocal row, column
        for number, line in enumerate(text.split("\n")):
            if number:
                row, column = row + 1, 0
            while line:
                if column == COLUMNS:
                    row, column = row + 1, 0
                piece, line = line[: COLUMNS - column], line[COLUMNS - column :]
                yield row, column, piece, color, now
                column += len(piece)

    for command, output in session:
        if column:
            row, column = row + 1, 0
        yield from put("$ ", PROMPT)
        for start in range(0, len(command), 4):
            yield from put(command[start : start + 4], PROMPT)
            now += 4 * KEY
        yield from put("\n", PROMPT)
        entered = now
        first = output[0][0]
        for at, text in output:
            now = max(now, entered + SLOWDOWN * (at - first))
            yield from put(text, OUTPUT)
        now += PAUSE


def svg(pieces):
    rows = max(row for row, *_ in pieces) + 1
    width, height = COLUMNS * WIDTH + 2 * MARGIN, rows * HEIGHT + 2 * MARGIN
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    yield "<title>A terminal: skald serve, and two streams of tokens from it</title>"
    yield "<style>text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}"
    yield "@media (prefers-reduced-motion:no-preference){text{animation:show 1ms backwards}}"
    yield "@keyframes show{from{opacity:0}to{opacity:1}}</style>"
    yield f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>'
    for row, column, text, color, second in pieces:
        if not text.strip():
            continue
        column += len(text) - len(text.lstrip())
        text = text.strip()
        x, y = MARGIN + column * WIDTH, MARGIN + row * HEIGHT + 13
        yield (
            f'<text x="{x}" y="{y}" fill="{color}" textLength="{len(text) * WIDTH}" lengthAdjust="spacingAndGlyphs" '
            f'style="animation-delay:{second:.2f}s">{html.escape(text, quote=False)}</text>'
        )
    yield "</svg>\n"


if __name__ == "__main__":
    pieces = list(segments(record(pathlib.Path(sys.argv[1]))))
    pathlib.Path(__file__).with_name("demo.svg").write_text("\n".join(svg(pieces)))
