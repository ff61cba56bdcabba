import type { ComponentChildren } from 'preact';
import { useEffect, useRef } from 'preact/hooks';

interface Props {
  title: string;
  class?: string;
  /** Missing where there is nothing behind the dialog to go back to. */
  onClose?: () => void;
  children: ComponentChildren;
}

/** A modal dialog: keeps the focus, and gives it back. */
export function Dialog({ title, class: extra = '', onClose, children }: Props) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement;
    element.current?.showModal();
    return () => {
      if (before instanceof HTMLElement) {
        before.focus();
      }
    };
  }, []);
  return (
    <dialog
      ref={element}
      class={`dialog ${extra}`}
      aria-label={title}
      onCancel={(event) => {
        event.preventDefault();
        onClose?.();
      }}
    >
      <div class="hd">
        <h2>{title}</h2>
        {onClose && (
          <button class="btn sm" onClick={onClose}>
            Close
          </button>
        )}
      </div>
      {children}
    </dialog>
  );
}
