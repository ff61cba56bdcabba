/** What the browser keeps: for this tab, or for this browser. Storage may be forbidden; then nothing is kept. */

type Place = 'tab' | 'browser';

function store(place: Place): Storage {
  return place === 'tab' ? sessionStorage : localStorage;
}

export function recall(place: Place, name: string): string | null {
  try {
    return store(place).getItem(name);
  } catch {
    return null;
  }
}

export function remember(place: Place, name: string, value: string): void {
  try {
    store(place).setItem(name, value);
  } catch {
    // Forbidden, or full.
  }
}

export function forget(place: Place, name: string): void {
  try {
    store(place).removeItem(name);
  } catch {
    // Forbidden.
  }
}
