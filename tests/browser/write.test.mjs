// Writing: a tale streams, stops, is branched, and is there again after a reload.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { finished, launch, open, textOf, write } from './browser.mjs';
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

test('a tale streams, and is what the API gives for the same text, settings and seed', async () => {
  const { page, assertClean } = await open(browser, server.url);
  const prompt = 'Once upon a time there was a king who had three';
  await write(page, { text: prompt, seed: '7' });
  const { choices } = await server.json('/v1/completions', { prompt, seed: 7, max_tokens: 110 });
  assert.equal((await textOf(page)).replaceAll('↵', '\n'), prompt + choices[0].text);
  assert.match(await page.textContent('.speed'), /tokens a second · first after/);
  assert.match(await page.textContent('.deskhead'), /121 of 1,024 tokens/);
  assert.equal(await page.textContent('#say'), '110 tokens, finished: length');
  assertClean();
});

test('a tale stops where it is told to, and goes on from there', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.fill('#first', 'In the deep snow a wolf knocked at the door, and');
  // A seed with which the tale is longer than that.
  await page.fill('#seed', '2');
  await page.locator('input[type=range]').nth(2).fill('1000');
  await page.click('.bar .pri');
  await page.waitForSelector('.tk:nth-child(20)');
  await page.keyboard.press('Escape');
  await finished(page);
  const stopped = await textOf(page);
  const tokens = await page.locator('.tk').count();
  assert.ok(tokens < 900, `${tokens} tokens`);
  await page.locator('input[type=range]').nth(2).fill('20');
  await page.click('.bar .pri');
  await page.waitForFunction((n) => document.querySelectorAll('.tk').length > n, tokens);
  await finished(page);
  assert.ok((await textOf(page)).startsWith(stopped));
  // The server has what the page shows: nothing was lost, nothing twice.
  const id = await page.textContent('.deskhead .name');
  const { text, token_count: count } = await server.json(`/v1/sessions/${id}`);
  assert.equal((await textOf(page)).replaceAll('↵', '\n'), text);
  assert.equal(count, await page.locator('.tk').count());
  assert.ok(count <= tokens + 20);
  assertClean();
});

test('another token makes a branch, which the tree shows and leads back from', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  const original = await textOf(page);
  await page.hover('.tk[data-i="18"]');
  await page.waitForSelector('.pop');
  const rows = page.locator('.pop .alt:not(.rest)');
  const chosen = await page.locator('.pop .alt.is .w').textContent();
  const other = rows.filter({ hasNot: page.locator(`.w:text-is("${chosen}")`) }).first();
  const word = await other.locator('.w').textContent();
  await other.click();
  await page.waitForSelector('.bar .pri:has-text("Stop"), .tree .row:nth-child(2)');
  await finished(page);
  const branched = await textOf(page);
  assert.notEqual(branched, original);
  assert.equal((await page.textContent('.tk[data-i="18"]')).trim(), word);
  assert.ok(await page.locator('.tk[data-i="17"].knot').count());
  await page.waitForFunction((name) => document.querySelector('.tree')?.textContent.includes(name), word);
  assert.match(await page.textContent('.side'), /2 branches/);
  await page.locator('.tree .row').first().click();
  await page.waitForFunction((text) => [...document.querySelectorAll('.tk')].map((t) => t.textContent).join('') === text, original);
  assertClean();
});

test('a reload shows the same text with its probabilities, branches and settings', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page, { seed: '11' });
  await page.click('.tk[data-i="15"]');
  await page.click('.pop .alt:not(.is):not(.rest)');
  await page.waitForSelector('.tree .row:nth-child(2)');
  await finished(page);
  await page.locator('input[type=range]').first().fill('1.2');
  const [text, id] = [await textOf(page), await page.textContent('.deskhead .name')];
  const surprises = () => page.$$eval('.tk', (all) => all.map((each) => each.style.getPropertyValue('--e')).join());
  const before = await surprises();
  await page.reload();
  await page.waitForSelector('.tree .row:nth-child(2)');
  await finished(page);
  assert.equal(await textOf(page), text);
  assert.equal(await page.textContent('.deskhead .name'), id);
  assert.equal(await surprises(), before);
  assert.equal(await page.locator('.tk.pr').count(), 11);
  assert.equal(await page.locator('.set output').first().textContent(), '1.20');
  assertClean();
});

test('a link gives the same result in another browser', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page, { seed: '4711' });
  const text = await textOf(page);
  await page.click('button:has-text("Copy link")');
  await page.waitForSelector('.toast');
  const link = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(link.startsWith(`${server.url}/#t=`), link);
  const other = await open(browser, server.url, { path: link.slice(server.url.length) });
  await other.page.waitForSelector('text=Begin gives the same result');
  await other.page.click('.bar .pri');
  await finished(other.page);
  assert.equal(await textOf(other.page), text);
  assertClean();
  other.assertClean();
});

test('a new seed writes another end and keeps the first one as a branch', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  const original = await textOf(page);
  await page.click('button:has-text("Retry with new seed")');
  await page.waitForSelector('.tree .row:nth-child(2)');
  await finished(page);
  assert.notEqual(await textOf(page), original);
  assertClean();
});

test('what the server refuses is said in its own words', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.route('**/v1/completions', async (route) => {
    const body = { ...route.request().postDataJSON(), temperature: 7 };
    await route.continue({ postData: JSON.stringify(body) });
  });
  await page.fill('#first', 'Once');
  await page.click('.bar .pri');
  await page.waitForSelector('.refusal:has-text("temperature")');
  assertClean();
});
