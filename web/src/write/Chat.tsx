import { useEffect, useRef, useState } from 'preact/hooks';
import { bitsOf } from '../lib/format';
import { answering, ask, refused, stopAnswer, textOfTurn, turns, type Turn } from './chat';
import { SessionsButton } from './SessionsButton';
import { mode, scale } from './surprise';

/** A conversation. */
export function Chat() {
  const [message, edit] = useState('');
  const end = useRef<HTMLDivElement>(null);
  useEffect(() => end.current?.scrollIntoView({ block: 'end' }), [turns.value]);
  const submit = (event: Event): void => {
    event.preventDefault();
    if (message.trim() && !answering.peek()) {
      void ask(message.trim());
      edit('');
    }
  };
  const key = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && !event.shiftKey) {
      submit(event);
    } else if (event.key === 'Escape') {
      stopAnswer();
    }
  };
  return (
    <>
      <div class="deskhead">
        <span class="name">Chat</span>
        <span class="sp" />
        <SessionsButton />
      </div>
      <div class="sheet">
        <div class="ms chat" data-mode={mode.value} tabIndex={0} role="group" aria-label="Conversation">
          {turns.value.map((turn, i) => (
            <TurnText key={i} turn={turn} />
          ))}
          <div ref={end} />
        </div>
      </div>
      <form class="bar" onSubmit={submit}>
        <label class="vh" for="message">
          Message
        </label>
        <textarea
          id="message"
        dir="auto"
          rows={1}
          placeholder="Write a message"
          value={message}
          onInput={(event) => edit(event.currentTarget.value)}
          onKeyDown={key}
        />
        {answering.value ? (
          <button type="button" class="btn pri" onClick={stopAnswer}>
            Stop <kbd>Esc</kbd>
          </button>
        ) : (
          <button class="btn pri">
            Send <kbd>↵</kbd>
          </button>
        )}
        {refused.value && <span class="refusal">{refused.value}</span>}
      </form>
    </>
  );
}

function TurnText({ turn }: { turn: Turn }) {
  const isYou = turn.role === 'user';
  return (
    <div class={`turn ${isYou ? 'you' : ''}`}>
      <span class="who">{isYou ? 'You' : 'Model'}</span>
      <p>
        {isYou
          ? textOfTurn(turn)
          : turn.tokens.map(({ text, logprob }, i) => (
              <span key={i} class="tk" style={{ '--e': scale(bitsOf(logprob)).toFixed(2) }}>
                {text}
              </span>
            ))}
      </p>
    </div>
  );
}
