/** The six stages: their names and the two sentences that say what happens in each. */

import { count } from '../lib/format';
import type { Info } from '../api/types';
import type { Stage } from './state';

export interface StageText {
  id: Stage;
  name: string;
  /** What comes of it, in the tab. */
  short: string;
  title: string;
  sentences: (model: Info['model']) => string;
}

const WORDS = ['no', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve'];

function inWords(n: number): string {
  return WORDS[n] ?? count(n);
}

/** Returns the number of neurons in each layer. */
export function innerOf(model: Info['model']): number {
  return model.n_inner ?? 4 * model.n_embd;
}

export const STAGES: readonly StageText[] = [
  {
    id: 'tokenize',
    name: 'Tokenize',
    short: 'text to tokens',
    title: 'Text becomes tokens',
    sentences: () =>
      'The model does not read letters or words. It reads tokens: common pieces of text, built by joining the most frequent pair of neighbours again and again.',
  },
  {
    id: 'embed',
    name: 'Embed',
    short: '',
    title: 'Tokens become lists of numbers',
    sentences: (model) =>
      `Each token is looked up in a table that turns it into ${count(model.n_embd)} numbers; tokens used in similar ways have similar numbers. A second list of numbers for its position is added, because otherwise the model could not tell first from last.`,
  },
  {
    id: 'attention',
    name: 'Attention',
    short: 'tokens look back',
    title: 'Tokens look back',
    sentences: (model) =>
      `Each token looks back at the tokens before it and copies information from the ones that matter: the thicker the thread, the more. Each layer has ${inWords(model.n_head)} heads that look for different things; a head that finds nothing rests on the first token.`,
  },
  {
    id: 'feedforward',
    name: 'Feed-forward',
    short: 'neurons fire',
    title: 'Neurons fire',
    sentences: (model) =>
      `In every layer, ${count(innerOf(model))} small detectors called neurons check each token’s numbers for learned patterns. Most stay quiet; the ones that fire push the prediction towards certain tokens.`,
  },
  {
    id: 'lens',
    name: 'Logit lens',
    short: 'its guess so far',
    title: 'Its guess so far',
    sentences: () =>
      'After each layer the page asks: if the model had to answer now, which token would come next? Read a row from left to right to watch the model make up its mind.',
  },
  {
    id: 'sampling',
    name: 'Sampling',
    short: '',
    title: 'One token is sampled',
    sentences: (model) =>
      `The last token’s numbers become a score for each of the ${count(model.vocab_size)} tokens the model knows. The settings remove unlikely tokens, and a random number, fixed by the seed, picks one of the rest.`,
  },
];

export function stageText(id: Stage): StageText {
  const found = STAGES.find((each) => each.id === id);
  if (!found) {
    throw new Error(`no stage ${id}`);
  }
  return found;
}
