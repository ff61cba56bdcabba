import { phone } from '../shell/phone';
import { geometry, layers } from './geometry';
import { STAGES } from './stages';
import { choose, stage } from './state';

/** The stages, each above what it has in the grid. Sampling has a panel of its own where there is room. */
export function StageTabs() {
  const of = geometry.value;
  const third = (Math.min(6, layers.value) * (of.gutter + of.cell)) / 3 - 4;
  const widths = [of.token + of.merge - 4, of.numbers - 4, third, third, third];
  const shown = STAGES.filter(({ id }) => phone.value || id !== 'sampling');
  const key = (event: KeyboardEvent): void => {
    const by = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
    if (by !== 0) {
      // Not for the grid.
      event.stopPropagation();
      event.preventDefault();
      const at = shown.findIndex(({ id }) => id === stage.peek());
      const next = shown[(at + by + shown.length) % shown.length];
      if (next) {
        choose({ stage: next.id });
        document.getElementById(`tab-${next.id}`)?.focus();
      }
    }
  };
  return (
    <div class="stages" role="tablist" aria-label="Stages" onKeyDown={key}>
      {shown.map(({ id, name, short }) => {
        const i = STAGES.findIndex((each) => each.id === id);
        const isChosen = stage.value === id;
        return (
          <button
            key={id}
            role="tab"
            id={`tab-${id}`}
            aria-selected={isChosen}
            aria-controls="stage"
            tabIndex={isChosen || (i === 0 && !shown.some((each) => each.id === stage.value)) ? 0 : -1}
            style={phone.value || widths[i] === undefined ? {} : { width: `${widths[i]}px` }}
            onClick={() => choose({ stage: id })}
          >
            <b>
              {i + 1} {name}
            </b>
            {!phone.value && short && <span class="short">{short}</span>}
          </button>
        );
      })}
    </div>
  );
}
