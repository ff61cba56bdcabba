/** `POST /v1/completions`: text as it is generated, and the probabilities of text that is there. */

import { ApiError, ConnectionLost, post, read, send } from './client';
import { EventParser } from './sse';
import { tokensOf, type Token } from './token';
import type { Completion, ErrorBody } from './types';

/** Alternatives reported for each token. */
const ALTERNATIVES = 5;

export interface Ending {
  reason: string;
}

/**
 * Generates. `onTokens` gets the tokens of each event as it arrives.
 *
 * Rejects with `ConnectionLost` if the answer breaks off, and with an `AbortError` after `abort`.
 */
export async function generate(body: object, abort: AbortSignal, onTokens: (tokens: Token[]) => void): Promise<Ending> {
  const request = { ...body, stream: true, logprobs: ALTERNATIVES };
  const answer = await send('POST', '/v1/completions', request, abort);
  let reason: string | undefined;
  let failed: ApiError | undefined;
  const parser = new EventParser((data) => {
    if (data === '[DONE]') {
      return;
    }
    const event = JSON.parse(data) as Completion & ErrorBody;
    if (typeof event.error === 'object') {
      failed = new ApiError(200, event.error.message ?? 'The generation failed.', event.error.code ?? '');
      return;
    }
    for (const choice of event.choices) {
      if (choice.logprobs) {
        onTokens(tokensOf(choice.logprobs));
      }
      reason = choice.finish_reason ?? reason;
    }
  });
  await read(answer, abort, (text) => parser.push(text));
  if (failed) {
    throw failed;
  }
  if (reason === undefined) {
    throw new ConnectionLost();
  }
  return { reason };
}

/** Returns tokens with the probabilities that the model gives them. */
export async function score(ids: readonly number[], abort?: AbortSignal): Promise<Token[]> {
  const body = { prompt: ids, max_tokens: 0, echo: true, logprobs: ALTERNATIVES };
  const answer = await post<Completion>('/v1/completions', body, abort);
  const logprobs = answer.choices[0]?.logprobs;
  return logprobs ? tokensOf(logprobs) : [];
}
