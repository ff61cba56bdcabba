import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { uniform } from '../src/sampler/chacha';
import { exp } from '../src/sampler/float32';
import { draw } from '../src/sampler/sampler';

interface Case {
  case: number;
  vocab_size: number;
  prompt: number[];
  generated: number[];
  n: number;
  seed: string;
  temperature: number;
  top_k: number;
  top_p: number;
  min_p: number;
  typical_p: number;
  repetition_penalty: number;
  presence_penalty: number;
  frequency_penalty: number;
  token: number;
}

/** Written by the server's own sampler: `src/engine/sampler_vectors.rs`. */
const file = new URL('../../tests/fixtures/sampler-vectors.json', import.meta.url);
const vectors = JSON.parse(readFileSync(file, 'utf8')) as { weights: number[]; cases: Case[] };

const f32 = Math.fround;

function logits(seed: number, size: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length: size }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const x = (state >>> 8) / 2 ** 24;
    const cubed = f32(f32(x * x) * x);
    return f32(f32(f32(cubed * cubed) * 18) - 6);
  });
}

describe('the sampler', () => {
  it('has the generator that RFC 7539 describes', () => {
    const bits = 0x903df1a0ade0b876n;
    expect(uniform(0n, 0)).toBe(Number(bits >> 11n) / 2 ** 53);
  });

  it("computes the server's weights bit for bit", () => {
    const view = new DataView(new ArrayBuffer(4));
    const factor = f32(1 / 0.75);
    const weights = [...logits(7, 1000)].map((logit) => {
      view.setFloat32(0, exp(f32(f32(logit - 12) * factor)));
      return view.getUint32(0);
    });
    expect(weights).toEqual(vectors.weights);
  });

  it("draws the server's token, 1,000 of 1,000", () => {
    const wrong = vectors.cases.filter((of) => {
      const settings = {
        seed: BigInt(of.seed),
        temperature: of.temperature,
        topK: of.top_k,
        topP: of.top_p,
        minP: of.min_p,
        typicalP: of.typical_p,
        repetitionPenalty: of.repetition_penalty,
        presencePenalty: of.presence_penalty,
        frequencyPenalty: of.frequency_penalty,
      };
      const seen = [...of.prompt, ...of.generated];
      const drawn = draw(logits(of.case, of.vocab_size), seen, of.generated, settings, of.n);
      return drawn.token !== of.token;
    });
    expect(vectors.cases).toHaveLength(1000);
    expect(wrong).toEqual([]);
  });
});
