import { sheet } from '../shell/phone';

/** Opens the list of sessions where there is no room for it beside the text. */
export function SessionsButton() {
  return (
    <button
      class="icon only-phone"
      aria-label="Sessions"
      aria-haspopup="dialog"
      onClick={() => (sheet.value = 'sessions')}
    >
      <svg width="18" height="18" fill="none" stroke="currentColor" stroke-width="1.8" aria-hidden="true">
        <path d="M2 4h14M2 9h14M2 14h9" />
      </svg>
    </button>
  );
}
