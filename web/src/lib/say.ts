/** What screen readers are told, and short messages for all. */

import { signal } from '@preact/signals';

/** Text of the live region. */
export const said = signal('');

/** A message that goes away by itself. */
export const toast = signal('');

let timer: ReturnType<typeof setTimeout> | undefined;

export function say(text: string): void {
  said.value = text;
}

export function show(text: string): void {
  clearTimeout(timer);
  toast.value = text;
  said.value = text;
  timer = setTimeout(() => {
    toast.value = '';
  }, 2600);
}

/** Copies text and says so. */
export async function copy(text: string, what = 'Copied'): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no clipboard but this one.
    const field = document.createElement('textarea');
    field.value = text;
    field.className = 'vh';
    document.body.append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
  }
  show(what);
}
