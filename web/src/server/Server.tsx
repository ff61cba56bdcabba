import { signal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { theme } from '../shell/theme';
import { CHARTS, type Described } from './charts';
import { drawChart } from './draw';
import { Facts } from './Facts';
import { allSamples, paused, sample, sampleCount, unreadable } from './samples';
import { recent } from './series';

const SPANS = [
  { seconds: 60, name: '1 min', title: 'The last minute' },
  { seconds: 600, name: '10 min', title: 'The last ten minutes' },
  { seconds: 3600, name: '1 h', title: 'The last hour' },
] as const;

const span = signal<(typeof SPANS)[number]>(SPANS[0]);

/** The view of the server: what it does now, and what it is. */
export function Server() {
  useEffect(() => sample(), []);
  return (
    <section class="view server" aria-label="Server">
      <h1 class="vh">Server</h1>
      <div class="charts">
        <div class="chead">
          <h2>{span.value.title}</h2>
          <span class="sp" />
          <span class="seg" role="group" aria-label="Span">
            {SPANS.map((each) => (
              <button key={each.name} aria-pressed={span.value === each} onClick={() => (span.value = each)}>
                {each.name}
              </button>
            ))}
          </span>
          <button class="btn sm" onClick={() => (paused.value = !paused.value)}>
            {paused.value ? 'Go on' : 'Pause'}
          </button>
        </div>
        {unreadable.value && <p class="refusal">{unreadable.value}</p>}
        {CHARTS.map((chart) => (
          <Figure key={chart.id} of={chart} />
        ))}
      </div>
      <Facts />
    </section>
  );
}

function Figure({ of }: { of: Described }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { seconds } = span.value;
  void sampleCount.value;
  const samples = recent(allSamples(), seconds);
  const [value, unit] = of.now(samples);
  const colours = theme.value;
  useEffect(() => {
    const draw = (): void => {
      if (canvas.current) {
        drawChart(canvas.current, { ...of.chart(samples), span: seconds, end: samples.at(-1)?.time ?? 0 });
      }
    };
    draw();
    addEventListener('resize', draw);
    return () => removeEventListener('resize', draw);
  }, [sampleCount.value, seconds, colours]);
  return (
    <figure class="ch">
      <div class="t">
        <h3>{of.title}</h3>
        <span class="big">
          {value}
          <small>{unit.split('**').map((part, i) => (i % 2 ? <b key={i}>{part}</b> : part))}</small>
        </span>
      </div>
      <canvas
        ref={canvas}
        role="img"
        aria-label={`${of.title}, ${span.value.title.toLowerCase()}: ${value} ${unit.replace(/\*/g, '')}`}
      />
      <figcaption class="note">{of.sentence}</figcaption>
    </figure>
  );
}
