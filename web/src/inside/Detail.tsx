import type { ComponentChild } from 'preact';
import { useState } from 'preact/hooks';
import { copy } from '../lib/say';
import { info } from '../shell/connection';
import { Dialog } from '../shell/Dialog';
import { AttentionPicture } from './AttentionPicture';
import { EmbedPicture } from './EmbedPicture';
import { FeedForwardPicture } from './FeedForwardPicture';
import type { Look } from './inspection';
import { LensPicture } from './LensPicture';
import { SamplingPicture } from './SamplingPicture';
import { stageText } from './stages';
import { more, stage, wide, type Stage } from './state';
import { tableOf, toJson, toSql } from './table';
import { TokenizePicture } from './TokenizePicture';

const PICTURES: Record<Stage, (props: { look: Look; wide?: boolean }) => ComponentChild> = {
  tokenize: TokenizePicture,
  embed: EmbedPicture,
  attention: AttentionPicture,
  feedforward: FeedForwardPicture,
  lens: LensPicture,
  sampling: SamplingPicture,
};

/** The selected stage: a title, two sentences, a picture, and its numbers to take away. */
export function Detail({ look }: { look: Look }) {
  const model = info.value?.model;
  const text = stageText(stage.value);
  const Picture = PICTURES[stage.value];
  return (
    <div class="detail" role="tabpanel" id="stage" aria-label={text.title} tabIndex={0}>
      <div class="why2">
        <h2>{text.title}</h2>
        <p>{model && text.sentences(model)}</p>
        <Copies look={look} stage={stage.value} />
      </div>
      <div class="pic">
        <button class="btn sm open" aria-haspopup="dialog" onClick={() => (wide.value = true)}>
          Full width
        </button>
        {wide.value ? null : <Picture look={look} />}
        <AsTable key={stage.value} look={look} />
      </div>
      {wide.value && (
        <Dialog class="full" title={text.title} onClose={() => (wide.value = false)}>
          <div class="pic">
            <Picture look={look} wide />
          </div>
        </Dialog>
      )}
    </div>
  );
}

/** Buttons that copy a stage's numbers. */
export function Copies({ look, stage: of, short = false }: { look: Look; stage: Stage; short?: boolean }) {
  return (
    <div class="cp">
      <button class="btn sm" onClick={() => void copy(toJson(tableOf(of, look)))}>
        Copy as JSON
      </button>
      <button class="btn sm" aria-label="Copy as SQL" onClick={() => void copy(toSql(tableOf(of, look)))}>
        {short ? 'SQL' : 'Copy as SQL'}
      </button>
    </div>
  );
}

function AsTable({ look }: { look: Look }) {
  const [isOpen, open] = useState(false);
  return (
    <details class="more astable" onToggle={(event) => open(event.currentTarget.open)}>
      <summary>Show as table</summary>
      {isOpen && <Rows look={look} />}
    </details>
  );
}

function Rows({ look }: { look: Look }) {
  void more.value;
  const { name, columns, rows } = tableOf(stage.value, look);
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Table">
      <table>
        <caption class="vh">{name}</caption>
        <thead>
          <tr>
            {columns.map((column) => (
              <th key={column} scope="col">
                {column.replace(/_/g, ' ')}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((cells, i) => (
            <tr key={i}>
              {cells.map((cell, k) => (
                <td key={k}>{cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
