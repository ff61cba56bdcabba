/** Tokens with their probabilities, as completions tell them. */

import type { Logprobs } from './types';

/** A token that the model could have chosen. */
export interface Alternative {
  id: number;
  bytes: Uint8Array<ArrayBuffer>;
  logprob: number;
}

export interface Token {
  id: number;
  bytes: Uint8Array<ArrayBuffer>;
  /** Under the model's own distribution; undefined for the first token of a text. */
  logprob: number | undefined;
  /** The likeliest tokens in its place, the likeliest first; the token itself is among them or last. */
  top: Alternative[];
}

const encoder = new TextEncoder();

/** Returns the bytes of a token as completions write it: text, or `bytes:\xe2\x80`. */
export function bytesOf(text: string): Uint8Array<ArrayBuffer> {
  if (/^bytes:(\\x[0-9a-f]{2})+$/.test(text)) {
    const codes = text.slice('bytes:'.length).split('\\x').slice(1);
    return Uint8Array.from(codes, (code) => parseInt(code, 16));
  }
  return encoder.encode(text);
}

/** Returns the tokens of an answer. */
export function tokensOf(logprobs: Logprobs): Token[] {
  return logprobs.tokens.map((text, i) => {
    // An object whose keys are numbers does not keep their order; the ids are in that of the probabilities.
    const likeliest = Object.entries(logprobs.top_logprobs[i] ?? {}).sort((a, b) => b[1] - a[1]);
    const ids = logprobs.top_token_ids[i] ?? [];
    return {
      id: logprobs.token_ids[i] ?? 0,
      bytes: bytesOf(text),
      logprob: logprobs.token_logprobs[i] ?? undefined,
      top: likeliest.map(([name, logprob], k) => ({ id: ids[k] ?? 0, bytes: bytesOf(name), logprob })),
    };
  });
}
