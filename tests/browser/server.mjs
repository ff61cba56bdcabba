// The server under test: started, stopped and killed.

import { spawn } from 'node:child_process';
import { mkdtempSync, openSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const binary = process.env.SKALD;
if (!binary) {
  throw new Error('SKALD must name the binary; see run.sh');
}

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.on('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}

export class Server {
  /** Starts a server on a port of its own. */
  static async start(...options) {
    const server = new Server(await freePort(), options);
    await server.run();
    return server;
  }

  constructor(port, options) {
    this.port = port;
    this.options = options;
    this.url = `http://127.0.0.1:${port}`;
  }

  /** Starts the process, and waits until it is ready. */
  async run() {
    const log = openSync(join(tmpdir(), `skald-page-${this.port}.log`), 'a');
    // A group of its own, so that all of it can be killed.
    this.process = spawn(binary, ['serve', '--listen', `127.0.0.1:${this.port}`, ...this.options], {
      stdio: ['ignore', log, log],
      detached: true,
    });
    for (let tries = 0; tries < 300; tries++) {
      const ready = await fetch(`${this.url}/readyz`).then((answer) => answer.ok, () => false);
      if (ready) {
        return;
      }
      await new Promise((done) => setTimeout(done, 100));
    }
    throw new Error('the server did not become ready');
  }

  /** Kills the process, as a crash would. */
  async kill() {
    const { process: running } = this;
    if (running && running.exitCode === null && running.signalCode === null) {
      const ended = new Promise((done) => running.once('exit', done));
      process.kill(-running.pid, 'SIGKILL');
      await ended;
    }
  }

  /** Kills the process and starts another one in its place. */
  async restart() {
    await this.kill();
    await this.run();
  }

  async json(path, body) {
    const answer = await fetch(`${this.url}${path}`, body ? { method: 'POST', body: JSON.stringify(body) } : {});
    if (!answer.ok) {
      throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    }
    return answer.json();
  }
}

/** Returns a folder that is removed at the end of the test. */
export function folder(t) {
  const path = mkdtempSync(join(tmpdir(), 'skald-page-'));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}
