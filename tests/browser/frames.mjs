// Measures frames, by the browser's own trace, while text streams and while a long text is looked into:
// SKALD=BINARY node frames.mjs

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
  console.log(`${name}: ${times.length} frames, p50 ${at(0.5)} ms, p95 ${at(0.95)} ms; tasks over 50 ms: ${long.length}, longest ${longest} ms`);
}

const [server, browser] = await Promise.all([Server.start(), launch()]);
try {
  const { page } = await open(browser, server.url);
  const lengthen = () => page.locator('input[type=range]').nth(2).fill('1000');
  await page.fill('#first', 'Once upon a time there was a king who had three');
  await lengthen();
  report(
    'a text of 1,000 tokens streams',
    await frames(browser, page, async () => {
      await page.click('.bar .pri');
      await page.waitForFunction(() => document.querySelectorAll('.tk').length >= 300);
      await finished(page);
    }),
  );
  const id = await page.textContent('.deskhead .name');
  const { text } = await server.json(`/v1/sessions/${id}`);
  const { tokens } = await server.json('/tokenize', { content: text });
  const { content } = await server.json('/detokenize', { tokens: tokens.slice(0, 512) });
  await page.click('a[href="#inside"]');
  await page.fill('.field', content);
  await page.waitForSelector('.threads path');
  await page.waitForTimeout(1500);
  report(
    'a text of 512 tokens is looked into, a row a frame',
    await frames(browser, page, async () => {
      await page.locator('.tokb[aria-pressed=true]').focus();
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
