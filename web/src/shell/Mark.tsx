/** The sign: threads over and under. */
export function Mark() {
  return (
    <div class="mark">
      <svg
        width="22"
        height="22"
        viewBox="0 0 22 22"
        fill="none"
        stroke="currentColor"
        stroke-width="2"
        aria-hidden="true"
      >
        <path d="M5 1v8m0 4v8M11 1v2m0 4v8m0 4v2M17 1v8m0 4v8" />
        <path d="M1 5h2m4 0h14M1 17h2m4 0h8m4 0h2M1 11h8m4 0h8" />
      </svg>
      Skald
    </div>
  );
}
