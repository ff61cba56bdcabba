import { useEffect, useRef } from 'preact/hooks';
import { isCommand } from '../shell/keyboard';
import { info, link, served } from '../shell/connection';
import { allTokens, textBefore } from '../write/story';
import { Detail } from './Detail';
import { heads, layers } from './geometry';
import { Loom } from './Loom';
import { SamplingPanel } from './SamplingPanel';
import { StageTabs } from './StageTabs';
import {
  choose,
  field,
  head,
  layer,
  look,
  lookAgain,
  lookAtText,
  lookAtTokens,
  row,
  sampled,
  step,
  takeWanted,
  trouble,
  wide,
} from './state';

const EXAMPLE = 'Once upon a time there was a king who had three';

/** How long typing rests before the text is looked at, in milliseconds. */
const REST = 350;

function key(event: KeyboardEvent): void {
  const now = look.peek();
  const slides = event.target instanceof HTMLInputElement;
  if (!now || !isCommand(event) || (slides && event.key.startsWith('Arrow'))) {
    return;
  }
  const clamp = (value: number, end: number): number => Math.max(0, Math.min(end - 1, value));
  const down = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
  const right = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
  if (down !== 0) {
    event.preventDefault();
    choose({ row: Math.max(now.from, clamp(row.peek() + down, now.to)) });
    document.querySelector('.tokb[aria-selected=true]')?.scrollIntoView({ block: 'nearest' });
  } else if (right !== 0) {
    event.preventDefault();
    choose({ layer: clamp(layer.peek() + right, layers.peek()) });
  } else if (event.key === '0') {
    choose({ head: null });
  } else if (/^[1-9]$/.test(event.key) && Number(event.key) <= heads.peek()) {
    choose({ head: Number(event.key) - 1 });
  } else if (event.key === '.') {
    step();
  }
}

/** The view that shows what the model computes. */
export function Inside() {
  useEffect(() => {
    addEventListener('keydown', key);
    return () => {
      removeEventListener('keydown', key);
      wide.value = false;
    };
  }, []);
  const isKnown = info.value !== null && link.value !== 'lost';
  const model = served.value;
  useEffect(() => {
    if (!isKnown) {
      return;
    }
    const wanted = takeWanted();
    if (!look.peek()) {
      layer.value = Math.max(0, layers.peek() - 2);
      head.value = null;
    }
    if (wanted) {
      lookAtTokens(wanted.text, wanted.tokens);
    } else if (look.peek()) {
      lookAgain();
    } else {
      const tokens = allTokens();
      if (tokens.length > 0) {
        lookAtTokens(
          textBefore(tokens.length),
          tokens.map(({ id }) => id),
        );
      } else {
        lookAtText(EXAMPLE);
      }
    }
  }, [isKnown, model]);
  const now = look.value;
  return (
    <section class="view inside" aria-label="Look inside">
      <h1 class="vh">Look inside</h1>
      <div class="work">
        <Ask />
        <Guide />
        {trouble.value && <p class="refusal">{trouble.value}</p>}
        <StageTabs />
        {now && (
          <>
            <Loom look={now} />
            <Detail look={now} />
          </>
        )}
      </div>
      <SamplingPanel look={now} />
    </section>
  );
}

let timer: ReturnType<typeof setTimeout> | undefined;

/** How the grid is read. */
function Guide() {
  const count = layers.value;
  return (
    <p class="note guide">
      Each row is a token, a word or a piece of one: it becomes numbers, then passes through {count > 0 ? count : 'all'}{' '}
      layers; each blue cell is what the model would write next.
    </p>
  );
}

/** The text that is looked into. */
function Ask() {
  const edit = (text: string): void => {
    field.value = text;
    clearTimeout(timer);
    timer = setTimeout(() => lookAtText(text), REST);
  };
  const element = useRef<HTMLTextAreaElement>(null);
  const text = field.value;
  useEffect(() => {
    // The end is where tokens are added.
    const area = element.current;
    if (area && area !== document.activeElement) {
      area.scrollLeft = sampled.peek() > 0 ? area.scrollWidth : 0;
    }
  }, [text]);
  return (
    <div class="ask">
      <textarea
        ref={element}
        class="field"
        rows={1}
        spellcheck={false}
        dir="auto"
        aria-label="Text to look into"
        value={text}
        onInput={(event) => edit(event.currentTarget.value)}
      />
      <button class="btn" onClick={step}>
        <span>
          Step<span class="wide"> one token</span>
        </span>{' '}
        <kbd>.</kbd>
      </button>
    </div>
  );
}
