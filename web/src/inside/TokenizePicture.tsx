import { count, shown, spaced } from '../lib/format';
import { info } from '../shell/connection';
import type { Look } from './inspection';
import { row } from './state';

/** The merges that made the token, as a stair. */
export function TokenizePicture({ look }: { look: Look }) {
  const token = look.tokens[row.value - look.from];
  if (!token) {
    return null;
  }
  return (
    <>
      <div class="cap">
        <span>
          How <b class="tokn">{shown(token.text)}</b> came together. ␣ is the space before a word.
        </span>
      </div>
      {token.merges.map(({ parts, rank }, i) => {
        const before = token.merges[i - 1]?.parts;
        const joined = before ? parts.findIndex((part, k) => part !== before[k]) : -1;
        return (
          <div key={i} class="step">
            {parts.map((part, k) => (
              <u key={k} class={k === joined ? 'new' : ''}>
                {spaced(part)}
              </u>
            ))}
            <span>{rank === null ? 'single letters' : `pair number ${count(rank + 1)}`}</span>
          </div>
        );
      })}
      <div class="step">
        <span class="first">
          is token number <b>{token.id}</b> of {count(info.value?.model.vocab_size ?? 0)}
        </span>
      </div>
    </>
  );
}
