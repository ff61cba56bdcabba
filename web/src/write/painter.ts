/**
 * Writes tokens into the page as they arrive: plain elements, no framework state per token, and no reading of the
 * layout.
 */

import type { Token } from '../api/token';
import { bitsOf } from '../lib/format';
import { scale } from './surprise';

export class Painter {
  private spans: HTMLElement[] = [];
  private paragraph: HTMLParagraphElement | undefined;
  private newlines = 0;
  private decoder = new TextDecoder();
  private readonly caret = document.createElement('span');
  private readonly broken = document.createElement('span');
  private knots: ReadonlySet<number> = new Set();

  constructor(private readonly root: HTMLElement) {
    this.caret.className = 'caret';
    this.caret.setAttribute('aria-hidden', 'true');
    this.broken.className = 'cutoff';
    this.broken.textContent = 'connection lost here';
  }

  /** Tokens that are on the page. */
  get painted(): number {
    return this.spans.length;
  }

  clear(): void {
    this.root.replaceChildren();
    this.spans = [];
    this.paragraph = undefined;
    this.newlines = 0;
    this.decoder = new TextDecoder();
  }

  /** Writes the tokens that are not on the page yet; the first `given` of all were not generated. */
  append(tokens: readonly Token[], given: number): void {
    const fragment = document.createDocumentFragment();
    const last = this.paragraph;
    for (let i = this.painted; i < tokens.length; i++) {
      const token = tokens[i];
      if (!token) {
        break;
      }
      const text = this.decoder.decode(token.bytes, { stream: true });
      if (!this.paragraph || this.newlines >= 2) {
        this.paragraph = document.createElement('p');
        // Each runs as its first letter does.
        this.paragraph.dir = 'auto';
        // Letters of other scripts are joined, or as wide as they are high.
        if (this.spans.length === 0 && /^[\p{Script=Latin}\p{Script=Greek}\p{Script=Cyrillic}]/u.test(text)) {
          this.paragraph.className = 'drop';
        }
        this.newlines = 0;
        fragment.append(this.paragraph);
      }
      const span = this.span(token, text, i, i < given);
      this.newlines = text === '\n' ? this.newlines + 1 : 0;
      this.spans.push(span);
      // The paragraph that is on the page already grows at once; the others with the fragment.
      (this.paragraph === last ? last : this.paragraph).append(span);
    }
    this.root.append(fragment);
  }

  private span(token: Token, text: string, i: number, isGiven: boolean): HTMLElement {
    const span = document.createElement('span');
    span.className = `tk${isGiven ? ' pr' : ''}${text === '\n' ? ' nl' : ''}${this.knots.has(i + 1) ? ' knot' : ''}`;
    span.dataset['i'] = String(i);
    span.style.setProperty('--e', scale(bitsOf(token.logprob)).toFixed(2));
    span.textContent = text === '\n' ? '↵' : text;
    return span;
  }

  /** Shows what comes after the last token: a caret while more is to come, or where the connection was lost. */
  end(as: 'caret' | 'broken' | 'nothing'): void {
    this.caret.remove();
    this.broken.remove();
    if (as !== 'nothing') {
      (this.paragraph ?? this.root).append(as === 'caret' ? this.caret : this.broken);
    }
  }

  /** Marks the tokens before which branches leave. */
  mark(knots: ReadonlySet<number>): void {
    for (const i of this.knots) {
      this.spans[i - 1]?.classList.remove('knot');
    }
    for (const i of knots) {
      this.spans[i - 1]?.classList.add('knot');
    }
    this.knots = knots;
  }

  at(i: number): HTMLElement | undefined {
    return this.spans[i];
  }
}
