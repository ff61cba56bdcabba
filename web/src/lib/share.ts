/** A text, its settings and seed as a link: deflated, in the fragment, which browsers don't send to servers. */

import type { Settings } from './settings';

export interface Shared {
  prompt: string;
  settings: Partial<Settings>;
  fingerprint: string;
}

async function through(bytes: Uint8Array<ArrayBuffer>, transform: TransformStream): Promise<Uint8Array<ArrayBuffer>> {
  const stream = new Blob([bytes]).stream().pipeThrough(transform as ReadableWritablePair<Uint8Array, Uint8Array>);
  return new Uint8Array(await new Response(stream as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer());
}

/** Returns the fragment of the link, `t=…`. */
export async function encode(shared: Shared): Promise<string> {
  const bytes = new TextEncoder().encode(JSON.stringify(shared));
  const deflated = await through(bytes, new CompressionStream('deflate-raw'));
  const base64 = btoa(String.fromCharCode(...deflated));
  return `t=${base64.replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '')}`;
}

/** Returns what a fragment holds, if it is such a link. */
export async function decode(fragment: string): Promise<Shared | undefined> {
  const base64 = /^#?t=([\w-]+)$/.exec(fragment)?.[1];
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
      : undefined;
  } catch {
    return undefined;
  }
}
