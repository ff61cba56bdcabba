import { change, newSeed, SEED_DIGITS, settings } from '../lib/settings';
import { copyLink } from './shared';

/** The seed, and a link that holds all that a result depends on. */
export function SeedShare() {
  const edit = (event: InputEvent): void => {
    const field = event.currentTarget as HTMLInputElement;
    field.value = field.value.replace(/\D/g, '').slice(0, SEED_DIGITS);
    change({ seed: field.value });
  };
  const leave = (): void => {
    if (settings.peek().seed === '') {
      change({ seed: newSeed() });
    }
  };
  return (
    <section>
      <div class="hd">
        <h2 class="h">Seed</h2>
      </div>
      <div class="seed">
        <label class="vh" for="seed">
          Seed
        </label>
        <input
          id="seed"
          inputMode="numeric"
          autocomplete="off"
          value={settings.value.seed}
          onInput={edit}
          onBlur={leave}
        />
        <button class="btn sm" onClick={() => change({ seed: newSeed() })}>
          New seed
        </button>
        <button class="btn sm" onClick={() => void copyLink()}>
          Copy link
        </button>
      </div>
      <p class="note why">
        The same seed, text and settings give the same result, token for token. The link holds all three.
      </p>
    </section>
  );
}
