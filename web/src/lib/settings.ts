/** What text is generated with. */

import { computed, effect, signal } from '@preact/signals';
import type { Info } from '../api/types';
import type { SamplingSettings } from '../sampler/sampler';
import { recall, remember } from './storage';

export interface Settings {
  temperature: number;
  topP: number;
  topK: number;
  minP: number;
  typicalP: number;
  repetitionPenalty: number;
  length: number;
  seed: string;
}

export type Name = Exclude<keyof Settings, 'seed'>;

interface Setting {
  name: Name;
  label: string;
  min: number;
  max: number;
  step: number;
  sentence: string;
  shown: (value: number) => string;
}

const decimals = (value: number): string => value.toFixed(2);

export const SETTINGS: readonly Setting[] = [
  {
    name: 'temperature',
    label: 'Temperature',
    min: 0,
    max: 2,
    step: 0.05,
    sentence: 'Low stays with the likeliest tokens; high takes more risks.',
    shown: decimals,
  },
  {
    name: 'topP',
    label: 'Top-p',
    min: 0.05,
    max: 1,
    step: 0.01,
    sentence: 'Keeps the likeliest tokens that add up to this probability.',
    shown: (value) => (value >= 1 ? 'off' : decimals(value)),
  },
  {
    name: 'length',
    label: 'Length',
    min: 1,
    max: 1000,
    step: 1,
    sentence: 'Stops after this many tokens, or at the end of the tale.',
    shown: (value) => (value === 1 ? '1 token' : `${value} tokens`),
  },
  {
    name: 'topK',
    label: 'Top-k',
    min: 0,
    max: 100,
    step: 1,
    sentence: 'Keeps only this many of the likeliest tokens.',
    shown: (value) => (value > 0 ? String(value) : 'off'),
  },
  {
    name: 'minP',
    label: 'Min-p',
    min: 0,
    max: 0.5,
    step: 0.01,
    sentence: 'Drops tokens below this fraction of the likeliest one.',
    shown: (value) => (value > 0 ? decimals(value) : 'off'),
  },
  {
    name: 'typicalP',
    label: 'Typical-p',
    min: 0.05,
    max: 1,
    step: 0.01,
    sentence: 'Keeps tokens about as surprising as the average one.',
    shown: (value) => (value >= 1 ? 'off' : decimals(value)),
  },
  {
    name: 'repetitionPenalty',
    label: 'Repetition penalty',
    min: 1,
    max: 2,
    step: 0.01,
    sentence: 'Makes tokens that are already in the text less likely.',
    shown: (value) => (value === 1 ? 'off' : decimals(value)),
  },
];

export function settingOf(name: Name): Setting {
  const setting = SETTINGS.find((each) => each.name === name);
  if (!setting) {
    throw new Error(`no setting ${name}`);
  }
  return setting;
}

const KEPT = 'skald.settings';

/** Returns a new seed, short enough to be read out. */
export function newSeed(): string {
  return String(1 + Math.floor(Math.random() * 9999));
}

/** The model's own settings. */
export const defaults = signal<Settings>({
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  typicalP: 1,
  repetitionPenalty: 1,
  length: 110,
  seed: '',
});

/** Longest seed, in digits: a number of JavaScript has no more. */
export const SEED_DIGITS = 15;

/** Returns those settings of a link or a store that can be settings, each within its range. */
function valid(values: Partial<Record<keyof Settings, unknown>>): Partial<Settings> {
  const checked: Partial<Settings> = {};
  for (const { name, min, max, step } of SETTINGS) {
    const value = values[name];
    if (typeof value === 'number' && Number.isFinite(value)) {
      // Those that count something are whole.
      checked[name] = Math.min(max, Math.max(min, step === 1 ? Math.round(value) : value));
    }
  }
  const { seed } = values;
  if (typeof seed === 'string' && /^\d+$/.test(seed) && seed.length <= SEED_DIGITS) {
    checked.seed = seed;
  }
  return checked;
}

function kept(): Partial<Settings> {
  try {
    return valid((JSON.parse(recall('tab', KEPT) ?? '{}') ?? {}) as Partial<Settings>);
  } catch {
    return {};
  }
}

const chosen = signal<Partial<Settings>>({ seed: newSeed(), ...kept() });
effect(() => remember('tab', KEPT, JSON.stringify(chosen.value)));

export const settings = computed<Settings>(() => ({ ...defaults.value, ...chosen.value }));

/** Settings other than the model's own. */
export const changed = computed(() => SETTINGS.some(({ name }) => settings.value[name] !== defaults.value[name]));

export function change(values: Partial<Settings>): void {
  chosen.value = { ...chosen.value, ...values };
}

/** Takes over what a link holds. */
export function changeTo(values: Partial<Settings>): void {
  chosen.value = { seed: settings.value.seed, ...valid(values) };
}

/** Goes back to the model's own settings; the seed stays. */
export function reset(): void {
  chosen.value = { seed: settings.value.seed };
}

/** Takes over the defaults of the model that is served. */
export function adopt(info: Info): void {
  const given = info.sampling_defaults;
  defaults.value = {
    ...defaults.value,
    temperature: given.temperature ?? 1,
    topP: given.top_p ?? 1,
    topK: given.top_k ?? 0,
    minP: given.min_p ?? 0,
    typicalP: given.typical_p ?? 1,
    repetitionPenalty: given.repetition_penalty ?? 1,
    length: given.max_new_tokens ?? defaults.value.length,
  };
}

/** Returns the sampling fields of a request, without the length. */
export function samplingFields(from: Settings): Record<string, number> {
  return {
    temperature: from.temperature,
    top_p: from.topP,
    top_k: from.topK,
    min_p: from.minP,
    typical_p: from.typicalP,
    repetition_penalty: from.repetitionPenalty,
    presence_penalty: 0,
    frequency_penalty: 0,
    seed: Number(from.seed),
  };
}

/** Returns what the page's own sampler draws with. */
export function samplerSettings(from: Settings): SamplingSettings {
  return { ...from, seed: BigInt(from.seed || '0'), presencePenalty: 0, frequencyPenalty: 0 };
}
