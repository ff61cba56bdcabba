// The view of the server: its programs run and give what the page gives, and its charts follow the load.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { after, before, test } from 'node:test';
import { launch, open, textOf, write } from './browser.mjs';
import { Server } from './server.mjs';

let server;
let browser;

before(async () => {
  [server, browser] = await Promise.all([Server.start(), launch()]);
});

after(async () => {
  await browser?.close();
  await server?.kill();
});

/** Returns the program in a language, as it is copied. */
async function program(page, language) {
  await page.click(`.facts button:has-text("${language}")`);
  await page.click('.facts button:has-text("Copy")');
  await page.waitForSelector('.toast');
  return page.evaluate(() => navigator.clipboard.readText());
}

test('programs give the text that the page gave', async () => {
  const { page, assertClean } = await open(browser, server.url);
  const prompt = `"It's a tale," said the king.`;
  await page.locator('input[type=range]').first().fill('0.9');
  await write(page, { text: prompt, seed: '12' });
  const text = (await textOf(page)).replaceAll('↵', '\n').slice(prompt.length);
  await page.click('a[href="#server"]');
  const javascript = await program(page, 'JavaScript');
  const said = execFileSync('node', ['--input-type=module', '-e', javascript], { encoding: 'utf8' });
  assert.equal(said.slice(0, -1), text);
  const curl = await program(page, 'curl');
  const events = execFileSync('bash', ['-c', curl], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const pieces = events.split('\n').filter((line) => line.startsWith('data: {'));
  assert.equal(pieces.map((line) => JSON.parse(line.slice(6)).choices[0]?.text ?? '').join(''), text);
  const python = await program(page, 'Python');
  execFileSync('python3', ['-c', 'import ast, sys; ast.parse(sys.stdin.read())'], { input: python });
  assertClean();
});

test('charts follow the load, and say when the server is away', async () => {
  const { page, assertClean } = await open(browser, server.url, { path: '/#server' });
  const value = (chart) => page.locator(`.ch:has(h3:text-is("${chart}")) .big`).textContent();
  await page.waitForFunction(() => document.querySelector('.ch .big')?.textContent.includes('running'));
  for (let i = 0; i < 4; i++) {
    await server.json('/v1/completions', { prompt: 'Once upon a time', max_tokens: 50, seed: i });
    await page.waitForTimeout(300);
  }
  await page.waitForTimeout(700);
  assert.match(await value('Throughput'), /^[1-9][\d,]*tokens\/s$/);
  assert.match(await value('Time to first token'), /^\d+\.\dms median, \d/);
  assert.match(await value('Prefix cache'), /^\d+% of prompt tokens$/);
  await page.click('button:has-text("Pause")');
  await page.click('button:has-text("10 min")');
  assert.equal(await page.locator('.chead h2').textContent(), 'The last ten minutes');
  await page.click('button:has-text("Go on")');
  await server.restart();
  await page.waitForSelector('.live:has-text("ready")');
  await page.waitForTimeout(1200);
  assert.match(await value('Requests'), /^0running, 0 waiting$/);
  assertClean();
});
