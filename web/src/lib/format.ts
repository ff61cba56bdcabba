/** Numbers and tokens as the page writes them. */

/** A percent sign that stays with its number. */
const UNIT = '\u00a0%';

/** Returns a probability as a percentage with as many digits as tell something. */
export function percent(p: number): string {
  if (p >= 0.9995) {
    return `100${UNIT}`;
  }
  if (p < 0.0005) {
    return `<0.1${UNIT}`;
  }
  return `${(100 * p).toFixed(p < 0.0995 || p >= 0.9 ? 1 : 0)}${UNIT}`;
}

/** Returns a whole number with separators. */
export function count(n: number): string {
  return n.toLocaleString('en');
}

/** Returns `1 token`, `2 tokens`. */
export function counted(n: number, noun: string, plural = `${noun}s`): string {
  return `${count(n)} ${n === 1 ? noun : plural}`;
}

/** Returns a large number in words: `10.3 million`, `1.6 billion`. */
export function inWords(n: number, digits: number): string {
  return n >= 1e9 ? `${(n / 1e9).toFixed(1)} billion` : `${(n / 1e6).toFixed(digits)} million`;
}

/** Returns a large number in short: `10.3 M`, `1.6 B`. */
export function inShort(n: number): string {
  return n >= 1e9 ? `${(n / 1e9).toFixed(1)} B` : `${(n / 1e6).toFixed(1)} M`;
}

/** Returns the surprise of a token in bits. */
export function bitsOf(logprob: number | undefined): number {
  return logprob === undefined ? 0 : -logprob / Math.LN2;
}

/** Returns what a surprise is called. */
export function surprise(bits: number): string {
  return bits < 1 ? 'expected' : bits < 3 ? 'not unlikely' : bits < 5 ? 'surprising' : 'very surprising';
}

const strict = new TextDecoder('utf-8', { fatal: true });

/** Returns bytes that are not text by themselves as `‹E2 80›`, others as text. */
export function textOf(bytes: Uint8Array<ArrayBuffer>): string {
  try {
    return strict.decode(bytes);
  } catch {
    return `‹${[...bytes].map((byte) => byte.toString(16).toUpperCase().padStart(2, '0')).join(' ')}›`;
  }
}

/** Returns a token as lists show it: without its leading space, with newlines visible. */
export function shown(text: string): string {
  return text.replace(/\n/g, '↵').replace(/^ /, '') || '␣';
}

/** Returns a token with its spaces visible. */
export function spaced(text: string): string {
  return text.replace(/\n/g, '↵').replace(/ /g, '␣');
}
