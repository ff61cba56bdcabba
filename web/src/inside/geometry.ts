/** Sizes of the grid. They are constants, so threads are computed and the layout is never measured. */

import { computed } from '@preact/signals';
import { info } from '../shell/connection';
import { phone } from '../shell/phone';

export interface Geometry {
  token: number;
  merge: number;
  numbers: number;
  /** Between two layers, where the threads are. */
  gutter: number;
  cell: number;
  row: number;
  head: number;
}

const DESKTOP: Geometry = { token: 112, merge: 104, numbers: 108, gutter: 48, cell: 73, row: 33, head: 30 };
const PHONE: Geometry = { token: 92, merge: 0, numbers: 0, gutter: 30, cell: 78, row: 34, head: 30 };

export const geometry = computed(() => (phone.value ? PHONE : DESKTOP));

export const layers = computed(() => info.value?.model.n_layer ?? 0);
export const heads = computed(() => info.value?.model.n_head ?? 0);

/** Returns where a layer begins, from the end of the token column. */
export function layerX(of: Geometry, layer: number): number {
  return of.merge + of.numbers + layer * (of.gutter + of.cell);
}

/** Returns where a row begins; `i` counts from the first row shown. */
export function rowY(of: Geometry, i: number): number {
  return of.head + i * of.row;
}
