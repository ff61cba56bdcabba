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
    columns: ['position', 'step', 'left_part', 'right_part', 'merge_rank', 'token', 'text'],
    rows: look.tokens.flatMap(({ id, text, merges }, i) =>
      merges.slice(1).map(({ parts, rank }, step): Cell[] => {
        const before = merges[step]?.parts ?? [];
        const joined = parts.findIndex((part, k) => part !== before[k]);
        return [look.from + i, step, before[joined] ?? '', before[joined + 1] ?? '', rank, id, text];
      }),
    ),
  }),
  embed: (look) => {
    const { wte, wpe, width } = look.embedding;
    const i = row.value - look.from;
    return {
      name: 'embeddings',
      columns: ['position', 'dimension', 'token', 'position_value', 'sum', 'text'],
      rows: Array.from({ length: wte.length > 0 ? width : 0 }, (_, k): Cell[] => {
        const [token, place] = [wte[i * width + k] ?? 0, wpe[i * width + k] ?? 0];
        return [row.value, k, digits(token), digits(place), digits(token + place), look.tokens[i]?.text ?? ''];
      }),
    };
  },
  attention: (look) => ({
    name: 'attention',
    columns: ['layer', 'head', 'query', 'key', 'weight', 'key_text'],
    rows: [...(look.attention.get(layer.value)?.keys() ?? [])].flatMap((head) => {
      const weights = attentionOf(look, layer.value, head, row.value) ?? new Float32Array();
      return [...weights].map((weight, key): Cell[] => {
        return [layer.value, head, row.value, key, digits(weight), tokenText(look.ids[key] ?? 0)];
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
    columns: ['position', 'layers', 'rank', 'token', 'probability', 'token_text'],
    rows: look.lens.flatMap((state, layers) =>
      (state[row.value - look.from] ?? []).map(([id, probability], rank): Cell[] => [
        row.value,
        layers,
        rank,
        id,
        digits(probability),
        tokenText(id),
      ]),
    ),
  }),
  sampling: () => {
    const now = drawn.value;
    const { seed } = samplerSettings(settings.value);
    return {
      name: 'candidates',
      columns: ['seed', 'n', 'random', 'token', 'text', 'model_probability', 'probability', 'removed_by', 'drawn'],
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

/** Returns SQL that makes the table. Where `skald trace` has it too, it has the same name and columns. */
export function toSql({ name, columns, rows }: Table): string {
  const values = rows.map((cells) => `  (${cells.map(literal).join(', ')})`);
  return `CREATE TABLE ${name} (${columns.join(', ')});\nINSERT INTO ${name} VALUES\n${values.join(',\n')};\n`;
}
