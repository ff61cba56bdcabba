/** Each stage's numbers as a table: what "Show as table" shows, and what is copied as JSON and as SQL. */

import { tokenText } from '../lib/vocabulary';
import { samplerSettings, settings } from '../lib/settings';
import { attentionOf, type Look } from './inspection';
import { drawn, layer, row, sampled, type Stage } from './state';

type Cell = string | number | null;

export interface Table {
  name: string;
  columns: readonly string[];
  rows: Cell[][];
}

/** Returns the table of a stage. Layers and heads count from 0, as in the API; positions too. */
export function tableOf(stage: Stage, look: Look): Table {
  return TABLES[stage](look);
}

/** Returns a number with the digits that an f32 has. */
function digits(x: number): number {
  return Number(x.toPrecision(7));
}

const TABLES: Record<Stage, (look: Look) => Table> = {
  tokenize: (look) => ({
    name: 'merges',
    columns: ['position', 'token', 'text', 'step', 'parts', 'rank'],
    rows: look.tokens.flatMap(({ id, text, merges }, i) =>
      merges.map(({ parts, rank }, step): Cell[] => [look.from + i, id, text, step, parts.join(' + '), rank]),
    ),
  }),
  embed: (look) => {
    const { wte, wpe, width } = look.embedding;
    const i = row.value - look.from;
    return {
      name: 'embeddings',
      columns: ['position', 'token', 'text', 'dimension', 'wte', 'wpe', 'sum'],
      rows: Array.from({ length: wte.length > 0 ? width : 0 }, (_, k): Cell[] => {
        const [token, place] = [wte[i * width + k] ?? 0, wpe[i * width + k] ?? 0];
        const { id, text } = look.tokens[i] ?? { id: 0, text: '' };
        return [row.value, id, text, k, digits(token), digits(place), digits(token + place)];
      }),
    };
  },
  attention: (look) => ({
    name: 'attention',
    columns: ['layer', 'head', 'position', 'token', 'text', 'weight'],
    rows: [...(look.attention.get(layer.value)?.keys() ?? [])].flatMap((head) => {
      const weights = attentionOf(look, layer.value, head, row.value) ?? new Float32Array();
      return [...weights].map((weight, i): Cell[] => {
        const id = look.ids[i] ?? 0;
        return [layer.value, head, i, id, tokenText(id), digits(weight)];
      });
    }),
  }),
  feedforward: (look) => ({
    name: 'mlp',
    columns: ['layer', 'position', 'neuron', 'activation', 'write', 'promotes'],
    rows: (look.neurons.get(layer.value)?.top.get(row.value) ?? []).map((neuron): Cell[] => [
      layer.value,
      row.value,
      neuron.neuron,
      digits(neuron.activation),
      digits(neuron.write),
      neuron.promotes.map(tokenText).join(' · '),
    ]),
  }),
  lens: (look) => ({
    name: 'lens',
    columns: ['position', 'text', 'after_layer', 'rank', 'token', 'token_text', 'probability'],
    rows: look.lens.flatMap((state, after) =>
      (state[row.value - look.from] ?? []).map(([id, probability], rank): Cell[] => [
        row.value,
        look.tokens[row.value - look.from]?.text ?? '',
        after,
        rank,
        id,
        tokenText(id),
        digits(probability),
      ]),
    ),
  }),
  sampling: () => {
    const now = drawn.value;
    const { seed } = samplerSettings(settings.value);
    return {
      name: 'sampling',
      columns: ['seed', 'n', 'u', 'token', 'text', 'model_probability', 'probability', 'removed_by', 'sampled'],
      rows: (now?.order ?? []).map((id): Cell[] => [
        seed.toString(),
        sampled.value,
        now?.u ?? null,
        id,
        tokenText(id),
        digits(now?.model[id] ?? 0),
        digits(now?.left.get(id) ?? 0),
        now?.removedBy(id) ?? null,
        id === now?.token ? 1 : 0,
      ]),
    };
  },
};

/** Returns the table as JSON: a list of objects. */
export function toJson({ columns, rows }: Table): string {
  const objects = rows.map((cells) => JSON.stringify(Object.fromEntries(columns.map((name, i) => [name, cells[i]]))));
  return `[\n  ${objects.join(',\n  ')}\n]`;
}

function literal(cell: Cell): string {
  return cell === null ? 'NULL' : typeof cell === 'number' ? String(cell) : `'${cell.replace(/'/g, "''")}'`;
}

/** Returns the table as SQL that makes it: in the terms of `skald trace`. */
export function toSql({ name, columns, rows }: Table): string {
  const values = rows.map((cells) => `  (${cells.map(literal).join(', ')})`);
  return `CREATE TABLE ${name} (${columns.join(', ')});\nINSERT INTO ${name} VALUES\n${values.join(',\n')};\n`;
}
