/** A parser of server-sent events: text in pieces of any size, out comes the data of each event. */

export class EventParser {
  private rest = '';

  constructor(private readonly onData: (data: string) => void) {}

  /** Takes the next piece of the stream. */
  push(text: string): void {
    const lines = (this.rest + text).split('\n');
    this.rest = lines.pop() ?? '';
    for (const line of lines) {
      // Skald writes one `data` line per event; comments and other fields carry nothing.
      if (line.startsWith('data:')) {
        this.onData(line.slice('data:'.length).trim());
      }
    }
  }
}
