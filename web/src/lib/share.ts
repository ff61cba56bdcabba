/** A text, its settings and seed as a link: deflated, in the fragment, which browsers don't send to servers. */

import type { Settings } from './settings';

export interface Shared {
  prompt: string;
  settings: Partial<Settings>;
  fingerprint: string;
}

/** Longest text of a link, in bytes: a short link can hold any number of equal letters. */
const MOST_BYTES = 4 << 20;

async function through(bytes: Uint8Array<ArrayBuffer>, transform: TransformStream): Promise<Uint8Array<ArrayBuffer>> {
  let total = 0;
  const limit = new TransformStream<Uint8Array, Uint8Array>({
    transform: (piece, to) => {
      total += piece.length;
      if (total > MOST_BYTES) {
        throw new RangeError('The text of the link is too long.');
      }
      to.enqueue(piece);
    },
  });
  const transformed = transform as ReadableWritablePair<Uint8Array, Uint8Array>;
  const stream = new Blob([bytes]).stream().pipeThrough(transformed).pipeThrough(limit);
  return new Uint8Array(await new Response(stream as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer());
}

/** Returns the fragment of the link, `t=…`. */
export async function encode(shared: Shared): Promise<string> {
  const bytes = new TextEncoder().encode(JSON.stringify(shared));
  const deflated = await through(bytes, new CompressionStream('deflate-raw'));
  const base64 = btoa(Array.from(deflated, (byte) => String.fromCharCode(byte)).join(''));
  return `t=${base64.replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '')}`;
}

/** Returns what a fragment holds: undefined if it is not such a link, `unreadable` if it is a broken one. */
export async function decode(fragment: string): Promise<Shared | 'unreadable' | undefined> {
  const base64 = /^#?t=(.*)$/s.exec(fragment)?.[1];
  if (base64 === undefined) {
    return undefined;
  }
  try {
    const binary = atob(base64.replace(/-/g, '+').replace(/_/g, '/'));
    const bytes = Uint8Array.from(binary, (char) => char.charCodeAt(0));
    const inflated = await through(bytes, new DecompressionStream('deflate-raw'));
    const shared = JSON.parse(new TextDecoder().decode(inflated)) as Partial<Shared>;
    return typeof shared.prompt === 'string'
      ? { prompt: shared.prompt, settings: shared.settings ?? {}, fingerprint: shared.fingerprint ?? '' }
      : 'unreadable';
  } catch {
    return 'unreadable';
  }
}
