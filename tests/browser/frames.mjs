// Measures frames, by the browser's own trace, while text streams and while a long text is looked into:
// SKALD=BINARY node frames.mjs. Fails if half of the frames are late; what else it prints depends on the machine.

import { launch, open, finished } from './browser.mjs';
import { Server } from './server.mjs';

const CATEGORIES = ['-*', 'toplevel', 'benchmark', 'viz', 'disabled-by-default-devtools.timeline'];

/** Returns the times between frames that were drawn during some work, and the long tasks, in milliseconds. */
async function frames(browser, page, work) {
  // Something moves in every frame, so that each frame that is missed shows.
  await page.evaluate(() => {
    const dot = document.createElement('i');
    dot.style.cssText = 'position:fixed;top:0;left:0;width:1px;height:1px;background:red';
    document.body.append(dot);
    const move = (time) => {
      dot.style.transform = `translateX(${time % 20}px)`;
      requestAnimationFrame(move);
    };
    requestAnimationFrame(move);
  });
  await browser.startTracing(page, { categories: CATEGORIES });
  await work();
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString());
  const swaps = traceEvents.filter(({ name, ph }) => name === 'Graphics.Pipeline.DrawAndSwap' && /^[bBX]$/.test(ph));
  const drawn = swaps.map(({ ts }) => ts / 1000).sort((a, b) => a - b);
  const renderer = traceEvents.find(({ name, args }) => name === 'thread_name' && args?.name === 'CrRendererMain');
  const long = traceEvents
    .filter(({ name, dur, tid }) => name === 'RunTask' && dur > 50_000 && (!renderer || tid === renderer.tid))
    .map(({ dur }) => dur / 1000);
  const times = drawn.slice(1).map((time, i) => time - drawn[i]).sort((a, b) => a - b);
  return { times, long };
}

function report(name, { times, long }) {
  const at = (share) => (times[Math.floor(share * (times.length - 1))] ?? NaN).toFixed(1);
  const longest = Math.max(0, ...long).toFixed(0);
  if (at(0.5) > 20) {
    process.exitCode = 1;
  }
  console.log(`${name}: ${times.length} frames, p50 ${at(0.5)} ms, p95 ${at(0.95)} ms; tasks over 50 ms: ${long.length}, longest ${longest} ms`);
}

/** Tokens a second at which the recorded answer is played. */
const RATE = 300;
const PROMPT = 'Once upon a time there was a king who had three';

/** Lets the page's next stream be a recorded one, at a given pace: the server's own is faster and takes both cores. */
async function pace(page, events) {
  await page.evaluate(
    ([all, rate]) => {
      const original = globalThis.fetch;
      globalThis.fetch = (path, options) => {
        if (path !== '/v1/completions' || !String(options?.body).includes('"stream":true')) {
          return original(path, options);
        }
        globalThis.fetch = original;
        const encoder = new TextEncoder();
        const begun = performance.now();
        let sent = 0;
        const stream = new ReadableStream({
          async pull(controller) {
            await new Promise((done) => setTimeout(done, 5));
            const due = Math.min(all.length, Math.ceil(((performance.now() - begun) / 1000) * rate));
            for (; sent < due; sent++) {
              controller.enqueue(encoder.encode(`${all[sent]}\n\n`));
            }
            if (sent === all.length) {
              controller.close();
            }
          },
        });
        return Promise.resolve(new Response(stream, { status: 200 }));
      };
    },
    [events, RATE],
  );
}

const [server, browser] = await Promise.all([Server.start(), launch()]);
try {
  const { page } = await open(browser, server.url);
  const recorded = await fetch(`${server.url}/v1/completions`, {
    method: 'POST',
    body: JSON.stringify({ prompt: PROMPT, max_tokens: 1000, seed: 7, logprobs: 5, echo: true, stream: true, ignore_eos: true }),
  });
  const events = (await recorded.text()).split('\n\n').filter(Boolean);
  await pace(page, events);
  await page.fill('#first', PROMPT);
  report(
    `${events.length} tokens stream at ${RATE} a second`,
    await frames(browser, page, async () => {
      await page.click('.bar .pri');
      await finished(page);
    }),
  );
  const text = (await page.$$eval('.ms .tk', (all) => all.map((each) => each.textContent).join(''))).replaceAll('↵', '\n');
  const { tokens } = await server.json('/tokenize', { content: text });
  const { content } = await server.json('/detokenize', { tokens: tokens.slice(0, 512) });
  await page.click('a[href="#inside"]');
  await page.fill('.field', content);
  await page.waitForTimeout(2500);
  report(
    'a text of 512 tokens is looked into, a row a frame',
    await frames(browser, page, async () => {
      await page.locator('.tokb[aria-selected=true]').focus();
      for (let i = 0; i < 60; i++) {
        await page.keyboard.press('ArrowUp');
        await page.waitForTimeout(16);
      }
    }),
  );
} finally {
  await browser.close();
  await server.kill();
}
