/**
 * What the browser keeps: for this tab, or for this browser. Storage may be forbidden or full; then the page keeps it
 * itself, until it is closed.
 */

type Place = 'tab' | 'browser';

/** What storage did not take. */
const unstored: Record<Place, Map<string, string>> = { tab: new Map(), browser: new Map() };

function store(place: Place): Storage {
  return place === 'tab' ? sessionStorage : localStorage;
}

export function recall(place: Place, name: string): string | null {
  const value = unstored[place].get(name);
  if (value !== undefined) {
    return value;
  }
  try {
    return store(place).getItem(name);
  } catch {
    return null;
  }
}

export function remember(place: Place, name: string, value: string): void {
  try {
    store(place).setItem(name, value);
    unstored[place].delete(name);
  } catch {
    unstored[place].set(name, value);
  }
}

export function forget(place: Place, name: string): void {
  unstored[place].delete(name);
  try {
    store(place).removeItem(name);
  } catch {
    // Forbidden.
  }
}
