import { deflateRawSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';

import { EventParser } from '../src/api/sse';
import { bytesOf, tokensOf } from '../src/api/token';
import { roleOf } from '../src/inside/roles';
import { numbers } from '../src/inside/values';
import { inWords, percent, shown, surprise, textOf } from '../src/lib/format';
import { decode, encode } from '../src/lib/share';
import { branchName, sessionName } from '../src/lib/slug';
import { fma } from '../src/sampler/float32';
import { roundUp } from '../src/server/scale';
import { parseMetrics } from '../src/server/prometheus';
import { line, quantile, rate } from '../src/server/series';

describe('events', () => {
  it('come out whole whatever pieces they arrive in', () => {
    const stream = 'data: {"a":1}\n\n: comment\ndata: {"b":"ü"}\n\ndata: [DONE]\n\n';
    for (const size of [1, 2, 7, 1000]) {
      const seen: string[] = [];
      const parser = new EventParser((data) => seen.push(data));
      for (let i = 0; i < stream.length; i += size) {
        parser.push(stream.slice(i, i + size));
      }
      expect(seen).toEqual(['{"a":1}', '{"b":"ü"}', '[DONE]']);
    }
  });
});

describe('tokens', () => {
  it('may be part of a character', () => {
    expect([...bytesOf('bytes:\\xe2\\x80')]).toEqual([0xe2, 0x80]);
    expect([...bytesOf('bytes:')]).toEqual([...new TextEncoder().encode('bytes:')]);
    expect(textOf(bytesOf('bytes:\\xe2\\x80'))).toBe('‹E2 80›');
    expect(textOf(bytesOf('—'))).toBe('—');
  });

  it('keep their ids where their texts are numbers', () => {
    const [token] = tokensOf({
      tokens: [' a'],
      token_ids: [258],
      token_logprobs: [-2],
      // An engine puts the key that is a number first.
      top_logprobs: [{ ' b': -0.5, '7': -1, ' a': -2 }],
      top_token_ids: [[275, 23, 258]],
    });
    expect(token?.top.map(({ id, bytes }) => [id, textOf(bytes)])).toEqual([
      [275, ' b'],
      [23, '7'],
      [258, ' a'],
    ]);
  });
});

describe('numbers', () => {
  it('are written with the digits that tell something', () => {
    expect([0.9999, 0.955, 0.34, 0.055, 0.0004].map(percent).map((text) => text.replace('\u00a0', ' '))).toEqual([
      '100 %',
      '95.5 %',
      '34 %',
      '5.5 %',
      '<0.1 %',
    ]);
    expect([inWords(10_347_520, 1), inWords(1_557_611_200, 0)]).toEqual(['10.3 million', '1.6 billion']);
    expect([0.5, 2, 4.7, 9].map(surprise)).toEqual(['expected', 'not unlikely', 'surprising', 'very surprising']);
    expect([shown(' king'), shown('\n'), shown(' ')]).toEqual(['king', '↵', '␣']);
  });

  it('are decoded from halves and singles', () => {
    expect([...numbers({ f16: btoa('\x00\x3c\x00\xc0\x01\x00') })]).toEqual([1, -2, 2 ** -24]);
    expect([...numbers({ f32: btoa('\x00\x00\x80\x3f') })]).toEqual([1]);
    expect([...numbers({ values: [0.5] })]).toEqual([0.5]);
  });

  it('are multiplied and added with one rounding', () => {
    // In the middle between two f32 but for the last bit of the product.
    const a = Math.fround(1 + 2 ** -12);
    expect(fma(a, a, 2 ** -60)).toBe(1 + 2 ** -11 + 2 ** -23);
    expect(fma(a, a, -(2 ** -60))).toBe(1 + 2 ** -11);
    expect(fma(2, 3, 4)).toBe(10);
  });
});

describe('links', () => {
  it('hold what they were made of', async () => {
    const shared = { prompt: 'Once upon — “☃”\n', settings: { temperature: 0.5, seed: '7' }, fingerprint: 'skald-x' };
    const fragment = await encode(shared);
    expect(fragment).toMatch(/^t=[\w-]+$/);
    expect(await decode(`#${fragment}`)).toEqual(shared);
  });

  it('are told from other fragments, and whole ones from broken ones', async () => {
    for (const fragment of ['', '#write', '#server']) {
      expect(await decode(fragment)).toBeUndefined();
    }
    for (const fragment of ['#t=', '#t=AAAA', '#t=!', '#t=%F0']) {
      expect(await decode(fragment)).toBe('unreadable');
    }
  });

  it('hold long texts, but none without measure', async () => {
    const link = (length: number) => {
      const prompt = Array.from({ length }, (_, i) => String.fromCharCode(33 + ((i * i) % 89))).join('');
      return encode({ prompt, settings: {}, fingerprint: '' });
    };
    expect(await decode(await link(400_000))).toHaveProperty('prompt.length', 400_000);
    expect(await decode(await encode({ prompt: 'a'.repeat(3 << 20), settings: {}, fingerprint: '' }))).not.toBe('unreadable');
    const bomb = deflateRawSync(JSON.stringify({ prompt: 'a'.repeat(64 << 20) })).toString('base64url');
    expect(await decode(`#t=${bomb}`)).toBe('unreadable');
  });
});

describe('names of sessions', () => {
  it('are of characters that the server takes', () => {
    for (const text of ['Once upon a time there was a king who had three', '“Who are you?”', '☃', 'Ärger']) {
      expect(sessionName(text)).toMatch(/^[A-Za-z0-9_.:@-]{1,128}$/);
    }
    expect(sessionName('Once upon a time there was a king who had three')).toMatch(/^king-three-[0-9a-f]{6}$/);
    expect(sessionName('שלום')).toMatch(/^text-[0-9a-f]{6}$/);
    expect(branchName('a', (name) => name === 'a.2')).toBe('a.3');
  });
});

describe('heads', () => {
  it('are called by what they do most', () => {
    const rows = (weights: number[][]) => new Map(weights.map((row, i) => [i, Float32Array.from(row)]));
    const start = [[1], [0.5, 0.5]];
    expect(roleOf(rows([...start, [0.8, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]))).toBe('rests');
    expect(roleOf(rows([...start, [0.1, 0.8, 0.1], [0.1, 0, 0.8, 0.1]]))).toBe('one back');
    expect(roleOf(rows([...start, [0.1, 0.1, 0.8], [0.1, 0.1, 0, 0.8]]))).toBe('itself');
    expect(roleOf(rows(start))).toBe('');
  });
});

describe('metrics', () => {
  const text = `# HELP skald_requests_running Sequences in the batch.
skald_requests_running 3
skald_requests_total{endpoint="/",outcome="success"} 9
skald_time_to_first_token_seconds_bucket{le="0.001"} 1
skald_time_to_first_token_seconds_bucket{le="+Inf"} 2
vllm:num_requests_running 3
`;

  it('are read from the text format', () => {
    const { values, histograms } = parseMetrics(text);
    expect([...values]).toEqual([['skald_requests_running', 3]]);
    expect(histograms.get('skald_time_to_first_token_seconds')).toEqual([
      [0.001, 1],
      [Infinity, 2],
    ]);
  });

  const sample = (time: number, generated: number) => ({
    time,
    running: 0,
    waiting: 0,
    used: 0,
    cached: 0,
    blocks: 1,
    generated,
    asked: 0,
    hit: 0,
    first: [{ low: 0.001, high: 0.002, count: 1 }],
    between: [],
  });

  it('become rates that do not reach over a gap or a restart', () => {
    const samples = [sample(0, 0), sample(0.5, 50), sample(1, 100), sample(9, 900), sample(9.5, 950), sample(10, 10)];
    const perSecond = rate(
      samples,
      ({ generated }) => generated,
      ({ time }) => time,
      4,
    );
    expect(samples.map((each, i) => perSecond(each, i))).toEqual([NaN, 100, 100, NaN, 100, NaN]);
    expect(line(samples, ({ generated }) => generated).map(({ value }) => value)).toEqual([
      0,
      50,
      100,
      NaN,
      900,
      950,
      10,
    ]);
    expect(quantile(samples, ({ first }) => first, 0.5)).toBeCloseTo(Math.SQRT2, 5);
    expect(quantile(samples, ({ between }) => between, 0.5)).toBeNaN();
  });

  it('have scales that end in round numbers', () => {
    expect([3, 41, 905, 1000].map((most) => roundUp(most, 4))).toEqual([4, 50, 1000, 1000]);
  });
});
