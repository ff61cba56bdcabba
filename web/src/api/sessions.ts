/** `/v1/sessions`: texts that the server remembers. */

import { get, post, send } from './client';
import type { Session, SessionList, SessionSummary } from './types';

function path(id: string): string {
  return `/v1/sessions/${encodeURIComponent(id)}`;
}

export async function listSessions(limit: number): Promise<SessionSummary[]> {
  return (await get<SessionList>(`/v1/sessions?limit=${limit}`)).data;
}

export function getSession(id: string): Promise<Session> {
  return get<Session>(path(id));
}

/** Makes a session of the first `at` tokens of another. */
export function forkSession(from: string, id: string, at: number): Promise<SessionSummary> {
  return post<SessionSummary>(`${path(from)}/fork`, { id, at });
}

/** Removes tokens from the end of a session. */
export function rewindSession(id: string, tokens: number): Promise<SessionSummary> {
  return post<SessionSummary>(`${path(id)}/rewind`, { tokens });
}

export async function deleteSession(id: string): Promise<void> {
  await send('DELETE', path(id));
}
