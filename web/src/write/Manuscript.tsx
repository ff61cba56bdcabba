import { effect } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { bitsOf, percent, shown, surprise } from '../lib/format';
import { say } from '../lib/say';
import { isCommand } from '../shell/keyboard';
import { phone } from '../shell/phone';
import { knotsOf } from './branches';
import { focusAlternatives } from './Alternatives';
import { Painter } from './painter';
import { select, selection, unselect } from './selection';
import { allTokens, branch, draft, given, length, phase, revision, session, tokenTextAt } from './story';
import { mode } from './surprise';

/** How long the pointer rests on a token before its card opens, and is away before it closes. */
const OPEN_AFTER = 120;
const CLOSE_AFTER = 220;

/** The text: tokens with their surprise, a tab stop in which arrow keys go from token to token. */
export function Manuscript() {
  const scroller = useRef<HTMLDivElement>(null);
  const text = useRef<HTMLDivElement>(null);
  const sentinel = useRef<HTMLDivElement>(null);

  useEffect(() => {
    const [root, end, area] = [text.current, sentinel.current, scroller.current];
    if (!root || !end || !area) {
      return undefined;
    }
    // The field in which the text was begun had the focus and is gone.
    if (document.activeElement === document.body && draft.peek() !== '') {
      root.focus({ preventScroll: true });
    }
    const painter = new Painter(root);
    const stops = [paint(painter, area, end), listen(root, painter), keepCard(area, painter)];
    return () => {
      stops.forEach((stop) => stop());
      unselect();
    };
  }, []);

  return (
    <div class="sheet" ref={scroller}>
      <div
        class="ms"
        ref={text}
        data-mode={mode.value}
        tabIndex={0}
        role="group"
        aria-label="Text. Arrow keys move from token to token, Enter shows alternatives."
      />
      <div ref={sentinel} class="end" />
    </div>
  );
}

/** Keeps the page what the text is; returns how to stop. */
function paint(painter: Painter, area: HTMLElement, end: HTMLElement): () => void {
  let drawn = -1;
  let atEnd = true;
  // Whether the reader is at the end: text that arrives is followed only then.
  const observer = new IntersectionObserver(
    ([entry]) => {
      atEnd = entry?.isIntersecting ?? true;
    },
    { root: area, rootMargin: '0px 0px 80px 0px' },
  );
  observer.observe(end);
  const ending = (): 'caret' | 'broken' | 'nothing' =>
    phase.value === 'streaming' ? 'caret' : phase.value === 'cut' ? 'broken' : 'nothing';
  const stops = [
    effect(() => {
      const now = revision.value;
      const total = length.value;
      if (drawn !== now) {
        painter.clear();
        drawn = now;
        unselect();
        area.scrollTo(0, 0);
      }
      if (painter.painted < total) {
        painter.append(allTokens(), given.peek());
      }
      painter.end(ending());
      if (atEnd && phase.peek() === 'streaming') {
        end.scrollIntoView({ block: 'end' });
      }
    }),
    effect(() => {
      void length.value;
      painter.mark(knotsOf(session.value));
    }),
    effect(() => {
      const chosen = selection.value?.token;
      const element = chosen === undefined ? undefined : painter.at(chosen);
      element?.classList.add('hot');
      return () => element?.classList.remove('hot');
    }),
    () => observer.disconnect(),
  ];
  return () => stops.forEach((stop) => stop());
}

/** Keeps the card of a token beside it while the text scrolls; returns how to stop. */
function keepCard(area: HTMLElement, painter: Painter): () => void {
  const follow = (): void => {
    const chosen = selection.peek();
    const element = chosen && painter.at(chosen.token);
    if (element) {
      select(chosen.token, element, chosen.kind);
    }
  };
  area.addEventListener('scroll', follow, { passive: true });
  return () => area.removeEventListener('scroll', follow);
}

function tokenOf(target: EventTarget | null): [number, Element] | undefined {
  const element = target instanceof Element ? target.closest('.tk') : null;
  return element instanceof HTMLElement ? [Number(element.dataset['i']), element] : undefined;
}

/** Listens for pointer and keys on the text; returns how to stop. */
function listen(root: HTMLElement, painter: Painter): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const later = (after: number, what: () => void): void => {
    clearTimeout(timer);
    timer = setTimeout(what, after);
  };
  const over = (event: PointerEvent): void => {
    const found = tokenOf(event.target);
    const opens = event.pointerType === 'mouse' && phase.peek() !== 'streaming' && !phone.peek();
    if (found && opens && selection.peek()?.kind !== 'pinned') {
      later(OPEN_AFTER, () => select(...found, 'hover'));
    }
  };
  const leave = (): void => {
    later(CLOSE_AFTER, () => {
      if (selection.peek()?.kind === 'hover' && !document.querySelector('.pop:hover')) {
        unselect();
      }
    });
  };
  const click = (event: MouseEvent): void => {
    const found = tokenOf(event.target);
    clearTimeout(timer);
    if (found) {
      select(...found, 'pinned');
    } else {
      unselect();
    }
  };
  const press = (event: KeyboardEvent): void => key(event, painter);
  root.addEventListener('pointerover', over);
  root.addEventListener('pointerleave', leave);
  root.addEventListener('click', click);
  root.addEventListener('keydown', press);
  return () => {
    clearTimeout(timer);
    root.removeEventListener('pointerover', over);
    root.removeEventListener('pointerleave', leave);
    root.removeEventListener('click', click);
    root.removeEventListener('keydown', press);
  };
}

/** Keys in the text: from token to token, into the alternatives, and to one of them. */
function key(event: KeyboardEvent, painter: Painter): void {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  }
  const now = selection.peek()?.token;
  const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
  if (step !== 0) {
    event.preventDefault();
    move(painter, now, step);
  } else if (event.key === 'Enter') {
    // Without this the same key press would choose the first alternative.
    event.preventDefault();
    if (now === undefined) {
      move(painter, now, 1);
    }
    focusAlternatives();
  } else if (/^[1-5]$/.test(event.key) && now !== undefined && isCommand(event)) {
    const alternative = allTokens()[now]?.top[Number(event.key) - 1];
    if (alternative && now >= given.peek()) {
      unselect();
      void branch(now, alternative);
    }
  }
}

/** Goes to another token: from the one that is selected, else to the first that was generated. */
function move(painter: Painter, from: number | undefined, step: number): void {
  const last = painter.painted - 1;
  const to = from === undefined ? Math.min(given.peek(), last) : Math.max(0, Math.min(last, from + step));
  const element = painter.at(to);
  const token = allTokens()[to];
  if (element && token) {
    element.scrollIntoView({ block: 'nearest' });
    select(to, element, 'pinned');
    const bits = bitsOf(token.logprob);
    const likely = token.logprob === undefined ? '' : `, ${percent(Math.exp(token.logprob))}, ${surprise(bits)}`;
    say(`${shown(tokenTextAt(to))}${likely}`);
  }
}
