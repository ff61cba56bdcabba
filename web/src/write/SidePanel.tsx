import type { ComponentChildren } from 'preact';
import { useEffect, useRef } from 'preact/hooks';
import { sheet, type Sheet } from '../shell/phone';

interface Props {
  class?: string;
  name: string;
  as: Sheet;
  children: ComponentChildren;
}

/** A part of the side: beside the text where there is room, else a sheet that comes up from below. */
export function SidePanel({ class: extra = '', name, as, children }: Props) {
  const element = useRef<HTMLDivElement>(null);
  const isOpen = sheet.value === as;
  useEffect(() => {
    if (!isOpen) {
      return undefined;
    }
    const before = document.activeElement;
    element.current?.focus();
    return () => {
      if (before instanceof HTMLElement) {
        before.focus();
      }
    };
  }, [isOpen]);
  return (
    <>
      {isOpen && <div class="shade" onClick={() => (sheet.value = null)} />}
      <div
        ref={element}
        class={`panel ${extra}${isOpen ? ' open' : ''}`}
        role={isOpen ? 'dialog' : extra ? 'navigation' : undefined}
        aria-label={isOpen || extra ? name : undefined}
        tabIndex={-1}
      >
        <button class="btn sm close" onClick={() => (sheet.value = null)}>
          Close
        </button>
        {children}
      </div>
    </>
  );
}
