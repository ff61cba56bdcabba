// Everything by keyboard: no pointer is used here.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { finished, launch, open, textOf } from './browser.mjs';
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

/** Presses Tab until the focus is on an element that matches. */
async function tabTo(page, selector) {
  for (let tries = 0; tries < 60; tries++) {
    await page.keyboard.press('Tab');
    if (await page.evaluate((which) => document.activeElement?.matches(which) ?? false, selector)) {
      return;
    }
  }
  assert.fail(`Tab does not reach ${selector}`);
}

const focused = (page) => page.evaluate(() => document.activeElement?.className ?? '');

test('a tale is begun, stopped, branched and continued with keys', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.waitForSelector('#first');
  await page.keyboard.type('Once upon a time there was a king who had three');
  await page.keyboard.press('Control+Enter');
  await finished(page);
  const tokens = await page.locator('.tk').count();
  await page.keyboard.press('Control+Enter');
  await page.waitForFunction((n) => document.querySelectorAll('.tk').length > n, tokens);
  await page.keyboard.press('Escape');
  await finished(page);

  await tabTo(page, '.ms');
  // The first token that was generated, then the next.
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('.tk.hot').getAttribute('data-i'), '11');
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('.tk.hot').getAttribute('data-i'), '12');
  assert.match(await page.textContent('#say'), /%, (expected|not unlikely|surprising|very surprising)/);
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('Enter');
  assert.equal(await page.locator('.pop').count(), 1, 'Enter opens and chooses nothing');
  assert.match(await focused(page), /alt/);
  await page.keyboard.press('Escape');
  assert.equal(await focused(page), 'ms');
  assert.equal(await page.locator('.pop').count(), 0);

  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('Enter');
  const [chosen, first] = await Promise.all([
    page.locator('.pop .alt.is .k').textContent(),
    page.locator('.pop .alt .k').first().textContent(),
  ]);
  await page.keyboard.press(chosen === first ? '2' : '1');
  await page.waitForSelector('.tree .row:nth-child(2)');
  await finished(page);
  const branched = await textOf(page);

  await tabTo(page, '.tree .row');
  await page.keyboard.press('ArrowUp');
  await page.keyboard.press('Enter');
  await page.waitForFunction((text) => [...document.querySelectorAll('.tk')].map((t) => t.textContent).join('') !== text, branched);
  await finished(page);
  assertClean();
});

test('letters go to the views, move through the grid, and step', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.waitForSelector('#first');
  await page.keyboard.press('g');
  assert.equal(await page.inputValue('#first'), 'g', 'letters in fields are text');
  await tabTo(page, '.bar .pri');
  await page.keyboard.press('g');
  await page.keyboard.press('i');
  await page.waitForSelector('.cell');
  const pressed = (selector) => page.locator(`${selector}[aria-pressed=true]`).first().textContent();
  assert.match(await pressed('.tokb'), /^11three/);
  await page.keyboard.press('ArrowUp');
  assert.match(await pressed('.tokb'), /^10had/);
  assert.equal(await pressed('.lay'), 'Layer 5');
  await page.keyboard.press('ArrowLeft');
  assert.equal(await pressed('.lay'), 'Layer 4');
  await page.keyboard.press('3');
  assert.match(await page.textContent('.pic .cap'), /head 3/);
  await page.keyboard.press('0');
  assert.match(await page.textContent('.pic .cap'), /all heads together/);
  await page.keyboard.press('.');
  await page.waitForSelector('.tokb:nth-of-type(12)');
  await page.keyboard.press('?');
  await page.waitForSelector('dialog:has-text("Keyboard")');
  await page.keyboard.press('Escape');
  await page.waitForSelector('dialog', { state: 'detached' });
  await page.keyboard.press('g');
  await page.keyboard.press('s');
  await page.waitForSelector('.view.server');
  await page.keyboard.press('g');
  await page.keyboard.press('w');
  await page.waitForSelector('.view.write');
  assertClean();
});

test('letters can be turned off', async () => {
  const { page } = await open(browser, server.url, { path: '/#server' });
  await page.keyboard.press('?');
  await page.waitForSelector('dialog');
  await tabTo(page, 'input[type=checkbox]');
  await page.keyboard.press('Space');
  await page.keyboard.press('Escape');
  await page.waitForSelector('dialog', { state: 'detached' });
  await page.keyboard.press('g');
  await page.keyboard.press('i');
  assert.equal(await page.locator('.view.server').count(), 1);
});

test('the first Tab is a link past the header', async () => {
  const { page } = await open(browser, server.url, { path: '/#server' });
  await page.keyboard.press('Tab');
  assert.equal(await focused(page), 'skip');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement?.id), 'view');
});
