import { Dialog } from './Dialog';
import { help, letters } from './keyboard';

const KEYS = [
  ['g then w, i, s', 'anywhere', 'Write, Look inside, Server'],
  ['Ctrl ↵', 'Write', 'continue'],
  ['Esc', 'Write', 'stop, or close what is open'],
  ['← →', 'in the text', 'previous, next token with its alternatives'],
  ['↵ then ↑ ↓ ↵, or 1 to 5', 'on a token', 'into the alternatives, branch'],
  ['↑ ↓, ← →', 'Look inside', 'token, layer'],
  ['Home, End, Page ↑ ↓', 'in the grid', 'first, last layer; ten tokens up, down'],
  ['0, 1 to 9', 'Look inside', 'all heads, one head'],
  ['.', 'Look inside', 'step one token'],
  ['?', 'anywhere', 'this table'],
] as const;

/** The table of keys. */
export function Help() {
  if (!help.value) {
    return null;
  }
  return (
    <Dialog title="Keyboard" onClose={() => (help.value = false)}>
      <table class="keys">
        <thead>
          <tr>
            <th scope="col">Key</th>
            <th scope="col">Where</th>
            <th scope="col">What it does</th>
          </tr>
        </thead>
        <tbody>
          {KEYS.map(([key, where, what]) => (
            <tr key={key}>
              <th scope="row">{key}</th>
              <td>{where}</td>
              <td>{what}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <label class="check">
        <input
          type="checkbox"
          checked={letters.value}
          onChange={(event) => (letters.value = event.currentTarget.checked)}
        />
        Single letters are commands
      </label>
    </Dialog>
  );
}
