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
    const element = card.current;
    if (element && !phone.value) {
      const { left, top, bottom, width } = chosen.place;
      const height = element.offsetHeight;
      const x = Math.min(innerWidth - WIDTH - EDGE, Math.max(EDGE, left + width / 2 - WIDTH / 2));
      const below = bottom + GAP;
      element.style.left = `${x}px`;
      element.style.top = `${below + height > innerHeight - EDGE ? Math.max(EDGE, top - height - GAP) : below}px`;
    }
  }, [chosen]);
  const isGiven = chosen.token < given.value;
  const rows = rowsOf(token);
  const others = 1 - rows.reduce((total, row) => total + row.probability, 0);
  const most = rows[0]?.probability ?? 1;
  const pick = (alternative: Alternative): void => {
    unselect();
    document.querySelector<HTMLElement>('.ms')?.focus();
    void branch(chosen.token, alternative);
  };
  const key = (event: KeyboardEvent): void => {
    const buttons = [...(card.current?.querySelectorAll<HTMLElement>('button:enabled, a') ?? [])];
    const at = buttons.findIndex((button) => button === document.activeElement);
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
    if (step !== 0) {
      event.preventDefault();
      buttons[(at + step + buttons.length) % buttons.length]?.focus();
    } else if (event.key === 'Escape') {
      event.stopPropagation();
      unselect();
      document.querySelector<HTMLElement>('.ms')?.focus();
    } else if (/^[1-5]$/.test(event.key) && !isGiven) {
      const alternative = rows[Number(event.key) - 1]?.alternative;
      if (alternative) {
        pick(alternative);
      }
    }
  };
  const leave = (): void => {
    if (chosen.kind === 'hover') {
      unselect();
    }
  };
  const look = (event: Event): void => {
    event.preventDefault();
    unselect();
    lookInto({
      text: textBefore(chosen.token + 1),
      tokens: allTokens()
        .slice(0, chosen.token + 1)
        .map(({ id }) => id),
    });
    go('inside');
  };
  return (
    <div class="pop" role="dialog" aria-label="Alternatives" ref={card} onKeyDown={key} onPointerLeave={leave}>
      <Head token={token} />
      {rows.map(({ alternative, key: name, probability }) => {
        const text = shown(textOf(alternative.bytes));
        const isChosen = alternative.id === token.id;
        return (
          <button
            key={alternative.id}
            class={`alt${isChosen ? ' is' : ''}`}
            disabled={isGiven}
            onClick={() => pick(alternative)}
          >
            <span class="k">{name}</span>
            <span class="w">{text}</span>
            <span class="g">
              <i style={{ '--v': `${(100 * probability) / most}%` }} />
            </span>
            <span class="v">{percent(probability)}</span>
            {isChosen && <span class="vh">in the text</span>}
          </button>
        );
      })}
      {rows.length > 0 && (
        <div class="alt rest">
          <span class="k" />
          <span class="w">all others</span>
          <span class="g">
            <i style={{ '--v': `${Math.min(100, (100 * others) / most)}%` }} />
          </span>
          <span class="v">{percent(Math.max(0, others))}</span>
        </div>
      )}
      <div class="pf">
        <span>{isGiven ? 'From the prompt' : 'Choose a token to branch here'}</span>
        <a class="a" href="#inside" onClick={look}>
          Look inside
        </a>
      </div>
    </div>
  );
}

function Head({ token }: { token: Token }) {
  const bits = bitsOf(token.logprob);
  const rank = token.top.findIndex((alternative) => alternative.id === token.id);
  const vocabulary = info.value?.model.vocab_size ?? 0;
  return (
    <>
      <div class="ph">
        <span class="w">{shown(textOf(token.bytes))}</span>
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
            <b>{bits.toFixed(1)} bits</b>, {surprise(bits)}.{' '}
            {rank >= 0 && rank < 5 ? `Choice ${rank + 1} of ${count(vocabulary)}.` : 'Not among the first five.'}
          </>
        )}
      </div>
    </>
  );
}
