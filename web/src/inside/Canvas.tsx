import { useEffect, useRef } from 'preact/hooks';
import { theme } from '../shell/theme';

interface Props {
  width: number;
  height: number;
  class?: string;
  /** Drawn anew when these change, and with the theme. */
  of: readonly unknown[];
  draw: (canvas: HTMLCanvasElement) => void;
}

/** A drawing beside which the same is in a table: hidden from screen readers. */
export function Canvas({ width, height, class: name, of, draw }: Props) {
  const element = useRef<HTMLCanvasElement>(null);
  const now = theme.value;
  useEffect(() => {
    if (element.current) {
      draw(element.current);
    }
  }, [...of, now, width, height]);
  return <canvas ref={element} width={width} height={height} class={name} aria-hidden="true" />;
}
