// Looking inside: the page shows what the server computed, and its sampler names the server's tokens.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, open, write } from './browser.mjs';
import { Server } from './server.mjs';

const PROMPT = 'Once upon a time there was a king who had three';

let server;
let browser;

before(async () => {
  [server, browser] = await Promise.all([Server.start(), launch()]);
});

after(async () => {
  await browser?.close();
  await server?.kill();
});

async function inside() {
  const opened = await open(browser, server.url, { path: '/#inside' });
  await opened.page.waitForSelector('.threads path');
  return opened;
}

/** Copies a stage's numbers as JSON. */
async function copied(page, stage) {
  await page.click(`#tab-${stage}`);
  await page.waitForSelector(`#tab-${stage}[aria-selected=true]`);
  await page.waitForTimeout(300);
  await page.click('.why2 button:has-text("Copy as JSON")');
  await page.waitForSelector('.toast');
  return JSON.parse(await page.evaluate(() => navigator.clipboard.readText()));
}

function close(actual, expected, what) {
  assert.ok(Math.abs(actual - expected) <= 1e-3 * Math.max(1, Math.abs(expected)), `${what}: ${actual}, not ${expected}`);
}

test('every stage shows what the server computed', async () => {
  const { page, assertClean } = await inside();
  const position = 10;
  const answer = await server.json('/v1/inspect', {
    text: PROMPT,
    positions: { from: position, to: position + 1 },
    attention: { layers: [4], form: 'rows' },
    mlp: { layers: [4], top: 8 },
    lens: { top: 8 },
    encoding: 'json',
  });
  const attention = await copied(page, 'attention');
  for (const { layer, head, key: other, weight } of attention) {
    const expected = answer.attention.find((each) => each.layer === layer && each.head === head).values[other];
    close(weight, expected, `weight of head ${head} on ${other}`);
  }
  assert.equal(attention.length, 5 * 11);
  const lens = await copied(page, 'lens');
  assert.equal(lens.length, 7 * 8);
  for (const { layers: layer, rank, token, probability } of lens) {
    const [id, expected] = answer.lens.top[layer][0][rank];
    assert.equal(token, id);
    close(probability, expected, `${token} after ${layer}`);
  }
  const neurons = await copied(page, 'feedforward');
  assert.deepEqual(
    neurons.map(({ neuron }) => neuron),
    answer.mlp[0].top[0].map(({ neuron }) => neuron),
  );
  const embedding = await copied(page, 'embed');
  embedding.forEach(({ token, position_value: place }, i) => {
    close(token, answer.embedding.wte.values[i], `wte ${i}`);
    close(place, answer.embedding.wpe.values[i], `wpe ${i}`);
  });
  assert.equal(embedding.length, 320);
  const merges = (await copied(page, 'tokenize')).filter(({ position: at }) => at === position);
  assert.deepEqual(
    merges.map(({ merge_rank: rank }) => rank),
    answer.tokens[0].merges.map(({ rank }) => rank),
  );
  assertClean();
});

test('what is copied as SQL runs', async () => {
  const { page, assertClean } = await inside();
  await page.click('.why2 button:has-text("Copy as SQL")');
  await page.waitForSelector('.toast');
  const sql = await page.evaluate(() => navigator.clipboard.readText());
  const { execFileSync } = await import('node:child_process');
  const query = `import sqlite3, sys
db = sqlite3.connect(":memory:")
db.executescript(sys.stdin.read())
print(db.execute("select count(*), round(sum(weight), 2) from attention where head = 0").fetchone())`;
  assert.equal(execFileSync('python3', ['-c', query], { input: sql, encoding: 'utf8' }).trim(), '(11, 1.0)');
  assertClean();
});

test('stepping adds the tokens that the server generates', async () => {
  const { page, assertClean } = await open(browser, server.url);
  // Settings are shared between the views.
  await page.fill('#seed', '7');
  await page.click('a[href="#inside"]');
  await page.waitForSelector('.threads path');
  const { choices } = await server.json('/v1/completions', { prompt: PROMPT, seed: 7, max_tokens: 8 });
  for (let n = 1; n <= 8; n++) {
    await page.click('.take');
    await page.waitForFunction((rows) => document.querySelectorAll('.tokb').length === rows, 11 + n);
  }
  assert.equal(await page.inputValue('.field'), PROMPT + choices[0].text);
  assertClean();
});

test('a long text is shown page by page', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  await page.click('a[href="#inside"]');
  await page.waitForSelector('.threads path');
  assert.equal(await page.locator('.tokb').count(), 64);
  await page.click('button:has-text("Show the tokens before these")');
  await page.waitForSelector('.tokb:has-text("Once")');
  assert.match(await page.textContent('.draw'), /The next token follows the last one/);
  await page.click('button:has-text("Show the tokens after these")');
  await page.waitForSelector('.take');
  assertClean();
});

test('a token of the text leads to its inside', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  await page.click('.tk[data-i="14"]');
  await page.click('.pop a:has-text("Look inside")');
  await page.waitForSelector('.threads path');
  assert.equal(await page.locator('.tokb').count(), 15);
  assertClean();
});

test('the layers of what is new appear one after the other, unless motion is unwanted', async () => {
  const { page, context, assertClean } = await open(browser, server.url, { path: '/#inside', reducedMotion: 'no-preference' });
  await page.waitForSelector('.threads path');
  const moving = () =>
    page.$$eval('.veil', (veils) =>
      veils.map(getComputedStyle).map(({ animationName, animationDelay }) => `${animationName} ${animationDelay}`),
    );
  await page.fill('.field', 'A wolf');
  await page.waitForSelector('.tokb:has-text("wolf")');
  await page.waitForSelector('.veil', { state: 'attached' });
  assert.deepEqual(await moving(), ['0s', '0.06s', '0.12s', '0.18s', '0.24s', '0.3s'].map((delay) => `unveil ${delay}`));
  const heights = () => page.$$eval('.veil', (veils) => veils.map((veil) => parseFloat(veil.style.height)));
  // A step adds one row, and only that one is new.
  await page.click('.take');
  await page.waitForSelector('.tokb[data-row="2"]');
  assert.deepEqual(new Set(await heights()), new Set([33]));
  await page.emulateMedia({ reducedMotion: 'reduce' });
  await page.fill('.field', 'A fox and a hare');
  await page.waitForSelector('.tokb:has-text("hare")');
  assert.match((await moving())[5], /^none /);
  assert.equal(await page.$eval('.veil', (veil) => getComputedStyle(veil).opacity), '0');
  assertClean();
  await context.close();
});

test('tokens are there before a slow model has computed their inside', async () => {
  const { page, assertClean } = await open(browser, server.url, { path: '/#server' });
  let release;
  const held = new Promise((done) => (release = done));
  await page.route('**/v1/inspect', async (route) => {
    await held;
    await route.continue();
  });
  await page.click('a[href="#inside"]');
  await page.waitForSelector('.tokb:has-text("three")');
  assert.equal(await page.locator('.cell').count(), 0);
  assert.equal(await page.getAttribute('.loom', 'aria-busy'), 'true');
  assert.match(await page.textContent('.draw'), /The model is reading the text/);
  await page.click('#tab-lens');
  await page.keyboard.press('ArrowUp');
  release();
  await page.waitForSelector('.cell');
  assert.equal(await page.getAttribute('.loom', 'aria-busy'), 'false');
  await page.click('#tab-attention');
  await page.waitForSelector('.reading');
  assertClean();
});

test('each picture is read aloud in a sentence', async () => {
  const { page, assertClean } = await inside();
  const reading = async (stage) => {
    await page.click(`#tab-${stage}`);
    await page.waitForSelector(`#tab-${stage}[aria-selected=true]`);
    await page.waitForSelector('.pic .reading');
    return (await page.textContent('.pic .reading')).replaceAll('\u00a0', ' ');
  };
  assert.match(
    await reading('attention'),
    /^Of all that “three” takes over in layer 5, 34 % comes from “king”, 30 % from “had” and 11 % from itself\.$/,
  );
  assert.match(await reading('embed'), /^The numbers of “three” are most like those of “four”, “two” and “\w+”: /);
  assert.match(await reading('feedforward'), /^Strongest here is neuron \d+: it makes “.*” more likely\.$/);
  assert.match(
    await reading('lens'),
    /^After layer 1 its guess is “hundred” with [\d.]+ %; from layer 4 on it is “sons”, at the end with 5\d %\.$/,
  );
  assertClean();
});
