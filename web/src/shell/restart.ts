/** What is to be done when another process answers than before: it may not have the session. */

import { effect, signal } from '@preact/signals';
import { ApiError, ConnectionLost } from '../api/client';
import { getSession } from '../api/sessions';
import { refreshSessions } from '../write/branches';
import { doubt, phase, session } from '../write/story';
import { restarts } from './connection';

/** Whether the server no longer has the session at hand. */
export const forgotten = signal(false);

async function check(): Promise<void> {
  doubt();
  const id = session.peek();
  if (id !== null) {
    try {
      await getSession(id);
      forgotten.value = false;
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) {
        forgotten.value = true;
      } else if (!(error instanceof ApiError || error instanceof ConnectionLost)) {
        throw error;
      }
    }
  }
  await refreshSessions();
}

/** Begins to watch for restarts. */
export function watchRestarts(): void {
  effect(() => {
    if (restarts.value > 0) {
      void check();
    }
  });
  effect(() => {
    // Once the text goes on, the server has it again.
    if (phase.value === 'streaming' || session.value === null) {
      forgotten.value = false;
    }
  });
}
