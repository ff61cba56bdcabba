"""Short runs side by side: what pays when there is little time and little text.

    python compare.py --out DIR

Each run sees 0.8 million tokens (a fifth of an epoch) with the rate falling to zero, and differs in one
thing from another of them. Prints a table of bits per byte on the validation tales. A run that is
there already is not run again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SMALL = "--tokens 0.8e6 --looks 1 --dropout 0 --short 0 --weight-decay 0 --layers 6 --width 256 --heads 4"
BASE = f"{SMALL} --vocab 4096 --matrix-rate 0.02"
LATER = f"{SMALL} --vocab 8192 --matrix-rate 0.015 --batch 4096"

RUNS = {
    "base": f"{BASE} --batch 8192",
    "muon-0.04": f"{SMALL} --vocab 4096 --matrix-rate 0.04 --batch 8192",
    "short-windows": f"{BASE} --batch 8192 --short 0.5",
    "batch-4096": f"{BASE} --batch 4096",
    "muon-0.01": f"{SMALL} --vocab 4096 --matrix-rate 0.01 --batch 4096",
    "larger": f"{BASE} --batch 4096 --layers 8 --width 320 --heads 5",
    "vocab-8192": f"{BASE} --batch 4096 --vocab 8192",
    "later": LATER,
    "adamw": f"{LATER} --matrix-rate 0",
    "dropout": f"{LATER} --dropout 0.1",
    "average": f"{LATER} --average 0.98",
    "average-steady": f"{LATER} --average 0.98 --decay 0.1",
    "steady": f"{LATER} --decay 0.1",
}


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, required=True, help="folder of all runs")
    p.add_argument("runs", nargs="*", help="which, of: " + ", ".join(RUNS))
    a = p.parse_args()
    print("| run | arguments | bits per byte | tokens/s |\n|---|---|---|---|")
    for name in a.runs or RUNS:
        out = a.out / name
        if not (out / "train.json").exists():
            command = [sys.executable, HERE / "train.py", "--out", out, *RUNS[name].split()]
            subprocess.run(command, check=True, stdout=sys.stderr)
            (out / "checkpoint.pt").unlink()
        figures = json.loads((out / "train.json").read_text())
        speed = figures["tokens_per_second"]
        print(f"| {name} | `{RUNS[name]}` | {figures['bits_per_byte']} | {speed} |", flush=True)


if __name__ == "__main__":
    main()
