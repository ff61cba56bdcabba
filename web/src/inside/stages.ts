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

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
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
      'The model reads neither letters nor words but tokens: pieces of text that are common enough to have a number. They were made by joining the most frequent pair of neighbours, again and again, beginning with single letters.',
  },
  {
    id: 'embed',
    name: 'Embed',
    short: '',
    title: 'Tokens become lists of numbers',
    sentences: (model) =>
      `A model can only calculate, so each token is looked up in a table that turns it into ${count(model.n_embd)} numbers; tokens used in similar ways have similar numbers. A second list of numbers, for its place in the text, is added, because otherwise the model could not tell first from last.`,
  },
  {
    id: 'attention',
    name: 'Attention',
    short: 'tokens look back',
    title: 'Tokens look back',
    sentences: (model) =>
      `A word alone says little, so in every layer each token looks back at those before it and takes over something from the ones that matter to it: the thicker the thread, the more. ${capital(inWords(model.n_head))} heads look for different things, side by side; one that finds nothing rests on the first token.`,
  },
  {
    id: 'feedforward',
    name: 'Feed-forward',
    short: 'neurons fire',
    title: 'Neurons fire',
    sentences: (model) =>
      `After looking back, each token is worked on alone: in every layer, ${count(innerOf(model))} small detectors called neurons check its numbers for patterns that they have learned. Most stay quiet; those that fire push the guess towards certain tokens.`,
  },
  {
    id: 'lens',
    name: 'Logit lens',
    short: 'its guess so far',
    title: 'Its guess so far',
    sentences: () =>
      'After each layer the page asks: if the model had to answer now, which token would come next? Read a row from left to right and watch the model make up its mind.',
  },
  {
    id: 'sampling',
    name: 'Sampling',
    short: '',
    title: 'One token is sampled',
    sentences: (model) =>
      `What the last layer has made of the last token becomes a score for each of the ${count(model.vocab_size)} tokens that the model knows. The settings remove unlikely tokens, and a random number, fixed by the seed, picks one of the rest.`,
  },
];

export function stageText(id: Stage): StageText {
  const found = STAGES.find((each) => each.id === id);
  if (!found) {
    throw new Error(`no stage ${id}`);
  }
  return found;
}
