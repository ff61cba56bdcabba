import { useEffect } from 'preact/hooks';
import { quietly } from '../api/client';
import { percent } from '../lib/format';
import { label, learn } from '../lib/vocabulary';
import { firsts, inOrder, readFirsts, treeOf, type Branch, type Tree } from './branches';
import { given, open, session } from './story';

/** Sizes of the drawing, in pixels. */
const WIDTH = 296;
const ROW = 50;
const TOP = 26;
const MARGIN = 6;

/** The branches of the text: each hangs below the token at which it leaves. */
export function BranchTree() {
  const tree = treeOf(session.value);
  const leaves = tree?.branches.map(({ id, length }) => `${id} ${length}`).join();
  useEffect(() => {
    if (tree && tree.branches.length > 1) {
      quietly(readFirsts(tree));
    }
  }, [leaves]);
  const ids = [...firsts.value.values()].map(({ id }) => id).join();
  useEffect(() => {
    quietly(learn([...firsts.value.values()].map(({ id }) => id)));
  }, [ids]);
  if (!tree) {
    return null;
  }
  return <Drawing tree={tree} />;
}

function Drawing({ tree }: { tree: Tree }) {
  const rows = inOrder(tree);
  const longest = Math.max(1, ...rows.map(({ branch }) => branch.length));
  const x = (tokens: number): number => MARGIN + ((WIDTH - 2 * MARGIN) * tokens) / longest;
  const y = new Map(rows.map(({ branch }, i) => [branch.id, TOP + i * ROW]));
  const height = TOP + rows.length * ROW - 18;
  const current = session.value;
  const key = (event: KeyboardEvent): void => {
    const all = [...document.querySelectorAll<SVGElement>('.tree .row')];
    const at = all.findIndex((row) => row === document.activeElement);
    const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
    if (step !== 0) {
      event.preventDefault();
      all[at + step]?.focus();
    } else if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      const id = all[at]?.dataset['id'];
      if (id !== undefined) {
        void open(id);
      }
    }
  };
  return (
    <svg
      class="tree"
      role="tree"
      aria-label="Branches of this session"
      viewBox={`0 0 ${WIDTH} ${height}`}
      height={height}
      onKeyDown={key}
    >
      {rows.map(({ branch, depth }) => (
        <Row
          key={branch.id}
          branch={branch}
          depth={depth}
          isCurrent={branch.id === current}
          y={y.get(branch.id) ?? 0}
          above={branch.parent === null ? undefined : y.get(branch.parent)}
          x={x}
        />
      ))}
    </svg>
  );
}

interface RowProps {
  branch: Branch;
  depth: number;
  isCurrent: boolean;
  y: number;
  /** Where the branch that it leaves is drawn. */
  above: number | undefined;
  x: (tokens: number) => number;
}

function Row({ branch, depth, isCurrent, y, above, x }: RowProps) {
  const first = firsts.value.get(branch.id);
  const name = branch.parent === null ? 'original' : first ? label(first.id) : '…';
  const likely = first && branch.parent !== null ? percent(first.probability) : '';
  const end = x(branch.length);
  const begin = x(branch.at);
  const textX = branch.parent === null ? x(0) : begin + 12;
  const toTheLeft = textX > 190;
  const line = isCurrent ? 'ln cur' : 'ln';
  return (
    <g
      class="row"
      role="treeitem"
      tabindex={isCurrent ? 0 : -1}
      data-id={branch.id}
      aria-level={depth + 1}
      aria-selected={isCurrent}
      aria-label={`${name}${likely && `, ${likely}`}, ${branch.length} tokens`}
      onClick={() => void open(branch.id)}
    >
      <rect class={isCurrent ? 'hit on' : 'hit'} x={-10} y={y - 25} width={WIDTH + 20} height={ROW - 8} rx={4} />
      {above === undefined ? (
        <>
          <path class={line} d={`M${x(0)} ${y}H${end}`} />
          <path class="tick" d={`M${x(0)} ${y - 5}V${y + 5}M${x(given.value)} ${y - 4}V${y + 4}`} />
        </>
      ) : (
        <>
          <path class={line} d={`M${begin} ${above}V${y - 9}q0 9 9 9H${Math.max(end, begin + 12)}`} />
          <circle class="fork" cx={begin} cy={above} r={4} />
        </>
      )}
      <circle class={isCurrent ? 'tip cur' : 'tip'} cx={Math.max(end, begin + 12)} cy={y} r={isCurrent ? 5 : 3.5} />
      <text x={toTheLeft ? end : textX} y={y - 8} text-anchor={toTheLeft ? 'end' : 'start'}>
        {name}{' '}
        {likely && (
          <tspan class="p" dx={3}>
            {likely}
          </tspan>
        )}
      </text>
    </g>
  );
}
