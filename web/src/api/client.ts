/** Requests to the server, with the API key of this tab. */

import { signal } from '@preact/signals';
import { forget, remember, recall } from '../lib/storage';
import type { ErrorBody } from './types';

/** An answer that is an error. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code: string,
  ) {
    super(message);
  }
}

/** No answer, or one that broke off. */
export class ConnectionLost extends Error {
  constructor() {
    super('The server did not answer.');
  }
}

/** Lets requests fail that only add to the page: the state of the connection says why. */
export function quietly(work: Promise<unknown>): void {
  work.catch((error: unknown) => {
    if (!(error instanceof ApiError || error instanceof ConnectionLost)) {
      throw error;
    }
  });
}

const KEY = 'skald.key';

/** What is known of this tab's key. */
export const keyState = signal<'accepted' | 'needed' | 'refused'>('accepted');

/** Told of every request that got no answer. */
let onLost = (): void => undefined;

export function whenLost(listener: () => void): void {
  onLost = listener;
}

export function setKey(key: string): void {
  remember('tab', KEY, key);
}

function headers(): Record<string, string> {
  const key = recall('tab', KEY);
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

async function failure(answer: Response): Promise<ApiError> {
  let body: ErrorBody = {};
  try {
    body = (await answer.json()) as ErrorBody;
  } catch {
    // Not JSON: the status has to do.
  }
  const { error } = body;
  if (typeof error === 'string') {
    return new ApiError(answer.status, error, body.error_type ?? '');
  }
  return new ApiError(answer.status, error?.message ?? `HTTP status ${answer.status}`, error?.code ?? '');
}

/** Sends a request; resolves with an answer that is a success. */
export async function send(
  method: 'GET' | 'POST' | 'DELETE',
  path: string,
  body?: object,
  abort?: AbortSignal,
): Promise<Response> {
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? headers() : { ...headers(), 'content-type': 'application/json' },
      cache: 'no-store',
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(abort === undefined ? {} : { signal: abort }),
    });
  } catch (error) {
    if (abort?.aborted) {
      throw error;
    }
    onLost();
    throw new ConnectionLost();
  }
  if (answer.status === 401) {
    keyState.value = recall('tab', KEY) === null ? 'needed' : 'refused';
    forget('tab', KEY);
  }
  if (!answer.ok) {
    throw await failure(answer);
  }
  return answer;
}

async function json<T>(answer: Response): Promise<T> {
  try {
    return (await answer.json()) as T;
  } catch {
    onLost();
    throw new ConnectionLost();
  }
}

export async function get<T>(path: string, abort?: AbortSignal): Promise<T> {
  return json<T>(await send('GET', path, undefined, abort));
}

export async function post<T>(path: string, body: object, abort?: AbortSignal): Promise<T> {
  return json<T>(await send('POST', path, body, abort));
}

/** Reads a body piece by piece; a break is a lost connection. */
export async function read(answer: Response, abort: AbortSignal, onText: (text: string) => void): Promise<void> {
  const reader = answer.body?.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const piece = await reader?.read();
      if (!piece || piece.done) {
        return;
      }
      onText(decoder.decode(piece.value, { stream: true }));
    }
  } catch (error) {
    if (abort.aborted) {
      throw error;
    }
    onLost();
    throw new ConnectionLost();
  }
}

/** Returns whether this tab has a key. */
export function hasKey(): boolean {
  return recall('tab', KEY) !== null;
}
