/** The sessions of the server as trees: each a text, with branches where another token was chosen. */

import { computed, signal } from '@preact/signals';
import { ApiError, ConnectionLost } from '../api/client';
import { score } from '../api/completions';
import { getSession, listSessions } from '../api/sessions';
import type { SessionSummary } from '../api/types';
import { info } from '../shell/connection';

/** Sessions that are listed. */
const MOST = 200;
/** Texts that are read for the list. */
const MOST_TEXTS = 40;

export interface Branch {
  id: string;
  /** The branch that it leaves; null for the text itself. */
  parent: string | null;
  /** Where it leaves it, in tokens. */
  at: number;
  /** Its length with what it shares, in tokens. */
  length: number;
  used: number;
  busy: boolean;
}

/** The first token of a branch. */
export interface First {
  id: number;
  probability: number;
}

/** A text with all of its branches. */
export interface Tree {
  root: Branch;
  branches: Branch[];
  /** Tokens of all branches, those that they share counted once. */
  tokens: number;
  used: number;
}

const sessions = signal<SessionSummary[]>([]);
/** The first words of texts, by session. */
export const texts = signal<ReadonlyMap<string, string>>(new Map());
/** The first tokens of branches, by session. */
export const firsts = signal<ReadonlyMap<string, First>>(new Map());

/** All sessions as branches. One that leaves its parent before that left its own leaves the grandparent. */
const branches = computed<ReadonlyMap<string, Branch>>(() => {
  const summaries = new Map(sessions.value.map((each) => [each.id, each]));
  const made = new Map<string, Branch>();
  for (const each of sessions.value) {
    let parent = each.forked_from?.id ?? null;
    const at = each.forked_from?.at ?? 0;
    const passed = new Set([each.id]);
    while (parent !== null && !passed.has(parent)) {
      passed.add(parent);
      const above: SessionSummary | undefined = summaries.get(parent);
      if (!above) {
        parent = null;
      } else if (above.forked_from && at <= above.forked_from.at) {
        parent = above.forked_from.id;
      } else {
        break;
      }
    }
    made.set(each.id, {
      id: each.id,
      parent,
      at: parent === null ? 0 : at,
      length: each.token_count,
      used: each.last_used,
      busy: each.busy,
    });
  }
  return made;
});

/** Returns the session that a branch began as. */
export function rootOf(id: string): string {
  let root = id;
  for (let up = branches.value.get(id)?.parent; up; up = branches.value.get(up)?.parent) {
    root = up;
  }
  return root;
}

export function isTaken(id: string): boolean {
  return branches.peek().has(id);
}

/** All texts, the last used first. */
export const trees = computed<Tree[]>(() => {
  const byRoot = new Map<string, Branch[]>();
  for (const branch of branches.value.values()) {
    const root = rootOf(branch.id);
    byRoot.set(root, [...(byRoot.get(root) ?? []), branch]);
  }
  const made: Tree[] = [];
  for (const [id, all] of byRoot) {
    const root = branches.value.get(id);
    if (root) {
      made.push({
        root,
        branches: all,
        tokens: all.reduce((total, branch) => total + branch.length - branch.at, 0),
        used: Math.max(...all.map((branch) => branch.used)),
      });
    }
  }
  return made.sort((a, b) => b.used - a.used);
});

/** Returns the tree that a session is in. */
export function treeOf(id: string | null): Tree | undefined {
  return id === null ? undefined : trees.value.find((tree) => tree.branches.some((branch) => branch.id === id));
}

/** Returns branches of a tree in the order in which they are drawn: each below the one that it leaves. */
export function inOrder(tree: Tree): { branch: Branch; depth: number }[] {
  const rows: { branch: Branch; depth: number }[] = [];
  const add = (branch: Branch, depth: number): void => {
    rows.push({ branch, depth });
    const below = tree.branches.filter((each) => each.parent === branch.id);
    // The last to leave comes first, so that no line crosses another.
    below.sort((a, b) => b.at - a.at || a.used - b.used);
    below.forEach((each) => add(each, depth + 1));
  };
  add(tree.root, 0);
  return rows;
}

/** Returns the places of a branch at which others leave it. */
export function knotsOf(id: string | null): Set<number> {
  const knots = new Set<number>();
  const tree = treeOf(id);
  let end = Infinity;
  for (let up = id; up !== null;) {
    const branch = branches.value.get(up);
    for (const each of tree?.branches ?? []) {
      if (each.parent === up && each.at <= end) {
        knots.add(each.at);
      }
    }
    end = branch?.at ?? 0;
    up = branch?.parent ?? null;
  }
  return knots;
}

/** Returns the branch of a text that has a token in a place, if there is one. */
export async function branchAt(id: string | null, at: number, token: number): Promise<string | undefined> {
  const tree = treeOf(id);
  if (!tree || id === null) {
    return undefined;
  }
  // Those that leave at this place, and the one that this branch itself left here.
  const here = tree.branches.filter((branch) => branch.parent !== null && branch.at === at && branch.id !== id);
  const own = branches.value.get(id);
  const left = own?.at === at && own.parent !== null ? [own.parent] : [];
  for (const candidate of [...here.map((branch) => branch.id), ...left]) {
    const found = await getSession(candidate);
    const current = await getSession(id);
    const same = found.tokens.slice(0, at).every((each, i) => each === current.tokens[i]);
    if (same && found.tokens[at] === token) {
      return candidate;
    }
  }
  return undefined;
}

let reading = false;

/** Asks the server for its sessions. */
export async function refreshSessions(): Promise<void> {
  try {
    sessions.value = await listSessions(MOST);
    await readTexts();
  } catch (error) {
    reading = false;
    if (!(error instanceof ApiError || error instanceof ConnectionLost)) {
      throw error;
    }
  }
}

/** Asks for the sessions until one has the tokens that were read: the server keeps a turn just after its end. */
export async function refreshUntil(id: string, tokens: number): Promise<void> {
  for (let tries = 0; tries < 10; tries++) {
    await refreshSessions();
    const branch = branches.peek().get(id);
    if (branch && !branch.busy && branch.length >= tokens) {
      return;
    }
    await new Promise((done) => setTimeout(done, 150));
  }
}

async function readTexts(): Promise<void> {
  if (reading) {
    return;
  }
  reading = true;
  for (const tree of trees.peek().slice(0, MOST_TEXTS)) {
    const { id } = tree.root;
    if (!texts.peek().has(id)) {
      const { text } = await getSession(id);
      texts.value = new Map(texts.peek()).set(id, text.slice(0, 160));
    }
  }
  reading = false;
}

/** Finds out how the branches of a text begin. */
export async function readFirsts(tree: Tree): Promise<void> {
  for (const branch of tree.branches) {
    if (branch.parent !== null && !firsts.peek().has(branch.id) && branch.length > branch.at) {
      const window = info.peek()?.model.n_positions ?? 1024;
      const { tokens } = await getSession(branch.id);
      const scored = await score(tokens.slice(Math.max(0, branch.at + 1 - window), branch.at + 1));
      const first = scored.at(-1);
      if (first) {
        const probability = Math.exp(first.logprob ?? 0);
        firsts.value = new Map(firsts.peek()).set(branch.id, { id: first.id, probability });
      }
    }
  }
}
