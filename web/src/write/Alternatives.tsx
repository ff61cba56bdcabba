import { useLayoutEffect, useRef } from 'preact/hooks';
import type { Alternative, Token } from '../api/token';
import { bitsOf, count, percent, shown, surprise, textOf } from '../lib/format';
import { info } from '../shell/connection';
import { phone } from '../shell/phone';
import { go } from '../shell/route';
import { lookInto } from '../inside/state';
import { selection, unselect, type Selection } from './selection';
import { allTokens, branch, given, textBefore } from './story';

/** Width of the card, and its distance from the token and the edges of the window, in pixels. */
const WIDTH = 296;
const GAP = 9;
const EDGE = 12;

/** Gives the focus to the first alternative. */
export function focusAlternatives(): void {
  document.querySelector<HTMLElement>('.pop button:enabled, .pop a')?.focus();
}

/** What the model could have written in the place of a token. */
export function Alternatives() {
  const chosen = selection.value;
  const token = chosen ? allTokens()[chosen.token] : undefined;
  return chosen && token ? <Card chosen={chosen} token={token} /> : null;
}

interface Row {
  alternative: Alternative;
  key: string;
  probability: number;
}

function rowsOf(token: Token): Row[] {
  // The token itself is the sixth where it is not among the first five.
  return token.top.slice(0, 6).map((alternative, i) => ({
    alternative,
    key: i < 5 ? String(i + 1) : '·',
    probability: Math.exp(alternative.logprob),
  }));
}

function Card({ chosen, token }: { chosen: Selection; token: Token }) {
  const card = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    if (card.current && !phone.value) {
      place(card.current, chosen.place);
    }
  }, [chosen]);
  const isGiven = chosen.token < given.value;
  const rows = rowsOf(token);
  const others = Math.max(0, 1 - rows.reduce((total, row) => total + row.probability, 0));
  const most = rows[0]?.probability ?? 1;
  const pick = (alternative: Alternative): void => {
    close();
    void branch(chosen.token, alternative);
  };
  const key = (event: KeyboardEvent): void => {
    const number = /^[1-5]$/.test(event.key) && !isGiven ? Number(event.key) : 0;
    const alternative = rows[number - 1]?.alternative;
    if (alternative) {
      pick(alternative);
    } else {
      move(event, card.current);
    }
  };
  const leave = (): void => {
    if (chosen.kind === 'hover') {
      unselect();
    }
  };
  return (
    <div class="pop" role="dialog" aria-label="Alternatives" ref={card} onKeyDown={key} onPointerLeave={leave}>
      <Head token={token} />
      {rows.map(({ alternative, key: name, probability }) => (
        <button
          key={alternative.id}
          class={`alt${alternative.id === token.id ? ' is' : ''}`}
          disabled={isGiven}
          onClick={() => pick(alternative)}
        >
          <span class="k">{name}</span>
          <Bar name={shown(textOf(alternative.bytes))} probability={probability} most={most} />
          {alternative.id === token.id && <span class="vh">in the text</span>}
        </button>
      ))}
      {rows.length > 0 && (
        <div class="alt rest">
          <span class="k" />
          <Bar name="all others" probability={others} most={most} />
        </div>
      )}
      <div class="pf">
        <span>{isGiven ? 'From the prompt' : 'Choose a token to branch here'}</span>
        <a class="a" href="#inside" onClick={(event) => look(event, chosen.token)}>
          Look inside
        </a>
      </div>
    </div>
  );
}

/** Puts the card below its token, or above it where there is no room below. */
function place(card: HTMLElement, { left, top, bottom, width }: Selection['place']): void {
  const height = card.offsetHeight;
  const x = Math.min(innerWidth - WIDTH - EDGE, Math.max(EDGE, left + width / 2 - WIDTH / 2));
  const below = bottom + GAP;
  card.style.left = `${x}px`;
  card.style.top = `${below + height > innerHeight - EDGE ? Math.max(EDGE, top - height - GAP) : below}px`;
}

/** Closes the card; the text gets the focus back. */
function close(): void {
  unselect();
  document.querySelector<HTMLElement>('.ms')?.focus();
}

/** Keys in the card: up and down, and out. */
function move(event: KeyboardEvent, card: HTMLElement | null): void {
  const buttons = [...(card?.querySelectorAll<HTMLElement>('button:enabled, a') ?? [])];
  const at = buttons.findIndex((button) => button === document.activeElement);
  const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
  if (step !== 0) {
    event.preventDefault();
    buttons[(at + step + buttons.length) % buttons.length]?.focus();
  } else if (event.key === 'Escape') {
    event.stopPropagation();
    close();
  }
}

/** Looks into the text up to a token. */
function look(event: Event, token: number): void {
  event.preventDefault();
  unselect();
  const tokens = allTokens().slice(0, token + 1);
  lookInto({ text: textBefore(token + 1), tokens: tokens.map(({ id }) => id) });
  go('inside');
}

function Bar({ name, probability, most }: { name: string; probability: number; most: number }) {
  return (
    <>
      <span class="w">{name}</span>
      <span class="g">
        <i style={{ '--v': `${Math.min(100, (100 * probability) / most)}%` }} />
      </span>
      <span class="v">{percent(probability)}</span>
    </>
  );
}

function Head({ token }: { token: Token }) {
  const bits = bitsOf(token.logprob);
  const rank = token.top.findIndex((alternative) => alternative.id === token.id);
  const vocabulary = info.value?.model.vocab_size ?? 0;
  return (
    <>
      <div class="ph">
        <bdi class="w">{shown(textOf(token.bytes))}</bdi>
        {token.logprob !== undefined && (
          <span class="r" title="The model’s own probability, before temperature and the other settings.">
            <b>{percent(Math.exp(token.logprob))}</b>
          </span>
        )}
      </div>
      <div class="why">
        {token.logprob === undefined ? (
          'The first token of a text has no probability.'
        ) : (
          <>
            <b title="Surprise in bits: 0 for what is certain, one more each time the probability is half of that.">
              {bits.toFixed(1)} bits
            </b>, {surprise(bits)}.{' '}
            {rank >= 0 && rank < 5 ? `Choice ${rank + 1} of ${count(vocabulary)}.` : 'Not among the first five.'}
          </>
        )}
      </div>
    </>
  );
}
