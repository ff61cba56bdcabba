import { describe, expect, it } from 'vitest';
import { numbers } from '../src/inside/values';
import { draw, type SamplingSettings } from '../src/sampler/sampler';

/** A running server; without one there is nothing to compare with. */
const server = process.env['SKALD_URL'];

const PROMPTS = [
  'Once upon a time there was a king who had three',
  'In the deep snow a wolf knocked at the door, and',
  '“Who are you?” said the moon to the little tailor.',
  'The',
];
/** Tokens of each completion, and completions: 1,000 draws. */
const LENGTH = 20;
const COMPLETIONS = 50;

async function post<T>(path: string, body: object): Promise<T> {
  const answer = await fetch(`${server}${path}`, { method: 'POST', body: JSON.stringify(body) });
  expect(answer.status, await answer.clone().text()).toBe(200);
  return (await answer.json()) as T;
}

/** Returns settings that use each filter alone and with others. */
function settingsOf(i: number): SamplingSettings {
  const of = (values: number[], every: number): number => values[Math.floor(i / every) % values.length] ?? 0;
  return {
    seed: BigInt(1000 + i),
    temperature: of([0.75, 1, 1.5, 0.4], 1),
    topP: of([0.92, 1, 0.5], 1),
    topK: of([0, 40, 0, 5], 2),
    minP: of([0, 0, 0.05], 3),
    typicalP: of([1, 0.9, 1], 5),
    repetitionPenalty: of([1.15, 1, 1.4], 2),
    presencePenalty: of([0, 0.5], 3),
    frequencyPenalty: of([0, 0.3], 4),
  };
}

describe.skipIf(!server)('the page and the server', () => {
  it('draw the same tokens, 1,000 of 1,000', { timeout: 300_000 }, async () => {
    let wrong = 0;
    let draws = 0;
    for (let i = 0; i < COMPLETIONS; i++) {
      const settings = settingsOf(i);
      const fields = {
        seed: Number(settings.seed),
        temperature: settings.temperature,
        top_p: settings.topP,
        top_k: settings.topK,
        min_p: settings.minP,
        typical_p: settings.typicalP,
        repetition_penalty: settings.repetitionPenalty,
        presence_penalty: settings.presencePenalty,
        frequency_penalty: settings.frequencyPenalty,
      };
      const { tokens: prompt } = await post<{ tokens: number[] }>('/tokenize', {
        content: PROMPTS[i % PROMPTS.length],
      });
      const id = `draws-${Date.now()}-${i}`;
      await post('/v1/completions', { prompt, session_id: id, max_tokens: LENGTH, ignore_eos: true, ...fields });
      const history = await (await fetch(`${server}/v1/sessions/${id}`)).json();
      const { tokens } = history as { tokens: number[] };
      for (let n = 0; n < tokens.length - prompt.length; n++) {
        const context = tokens.slice(0, prompt.length + n);
        const { logits } = await post<{ logits: { f32: string } }>('/v1/inspect', {
          tokens: context,
          positions: { from: context.length - 1, to: context.length },
          stages: ['logits'],
        });
        const drawn = draw(numbers(logits), context, context.slice(prompt.length), settings, n);
        wrong += drawn.token === tokens[context.length] ? 0 : 1;
        draws++;
      }
    }
    expect(draws).toBe(LENGTH * COMPLETIONS);
    expect(wrong).toBe(0);
  });
});
