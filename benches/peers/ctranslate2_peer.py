#!/usr/bin/env python3
"""Measures CTranslate2 on a converted model; one JSON line per figure.

    ctranslate2_peer.py MODEL_DIR [--threads N] [--batch 1,8,32] [--runs 3]
"""

import json
import time
from pathlib import Path

import ctranslate2

import workload


class CTranslate2:
    """A generator. CTranslate2 uses tokens as text; the interface of this class uses ids."""

    def __init__(self, directory, threads):
        config = (Path(directory) / "vocabulary.json").read_text(encoding="utf-8")
        self.tokens = json.loads(config)
        self.generator = ctranslate2.Generator(
            str(directory), device="cpu", inter_threads=1, intra_threads=threads
        )

    def generate(self, prompts, new):
        """See `workload.measure`."""
        firsts = []

        def seen(step):
            if step.step == 0:
                firsts.append(time.perf_counter())
            return False

        texts = [[self.tokens[token] for token in prompt] for prompt in prompts]
        started = time.perf_counter()
        results = self.generator.generate_batch(
            texts,
            beam_size=1,
            sampling_topk=1,
            # The minimum equals the maximum, so the end of text is never chosen.
            min_length=new,
            max_length=new,
            include_prompt_in_result=False,
            callback=seen,
        )
        ended = time.perf_counter()
        assert len(firsts) == len(prompts)
        first = max(firsts)
        ids = [result.sequences_ids[0] for result in results]
        assert all(len(sequence) == new for sequence in ids)
        return ids, first - started, ended - first


def main():
    arguments = workload.arguments(__doc__.splitlines()[0])
    engine = CTranslate2(arguments.model, arguments.threads)
    workload.measure(lambda _batch: engine, arguments.runs, arguments.batch)


if __name__ == "__main__":
    main()
