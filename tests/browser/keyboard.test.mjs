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
  const row = () => page.textContent('.tokb[aria-selected=true]');
  const layer = () => page.textContent('.lay.on');
  assert.match(await row(), /^11three/);
  await page.keyboard.press('ArrowUp');
  assert.match(await row(), /^10had/);
  assert.equal(await layer(), 'Layer 5');
  await page.keyboard.press('ArrowLeft');
  assert.equal(await layer(), 'Layer 4');
  await page.keyboard.press('3');
  assert.match(await page.textContent('.pic .cap'), /head 3/);
  await page.keyboard.press('0');
  assert.match(await page.textContent('.pic .cap'), /all heads together/);
  await page.keyboard.press('.');
  await page.waitForSelector('.tokb[data-row="11"]');
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

test('the grid is one tab stop, in which arrow keys go from cell to cell', async () => {
  const { page, assertClean } = await open(browser, server.url, { path: '/#inside' });
  await page.waitForSelector('.threads path');
  const at = () => page.evaluate(() => ({ ...document.activeElement.dataset, role: document.activeElement.role }));
  const press = async (...keys) => {
    for (const key of keys) {
      await page.keyboard.press(key);
    }
    return at();
  };
  await tabTo(page, '.loom [tabindex="0"]');
  assert.deepEqual(await at(), { row: '10', column: '-1', role: 'rowheader' });
  assert.equal(await page.locator('.loom [tabindex="0"]').count(), 1);
  // Into the layers, first to the first.
  assert.deepEqual(await press('ArrowRight'), { row: '10', column: '0', role: 'gridcell' });
  assert.deepEqual(await press('ArrowRight', 'ArrowUp'), { row: '9', column: '1', role: 'gridcell' });
  assert.equal(await page.textContent('.lay.on'), 'Layer 2');
  assert.match(await page.textContent('.tokb[aria-selected=true]'), /^10had/);
  assert.deepEqual(await press('End'), { row: '9', column: '5', role: 'gridcell' });
  assert.deepEqual(await press('ArrowRight', 'Control+Home'), { row: '0', column: '-1', role: 'rowheader' });
  assert.deepEqual(await press('PageDown', 'ArrowDown'), { row: '10', column: '-1', role: 'rowheader' });
  assert.deepEqual(await press('Control+End', 'Home', 'ArrowRight'), { row: '10', column: '0', role: 'gridcell' });
  assert.match(await page.evaluate(() => document.activeElement.ariaLabel), /^Layer 1, after three: /);
  assert.equal(await page.locator('.loom [tabindex="0"]').count(), 1);
  // Where the focus was it comes back to.
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.closest('.loom')), null);
  assert.deepEqual(await press('Shift+Tab'), { row: '10', column: '0', role: 'gridcell' });
  await page.click('.cell[data-row="4"][data-column="3"]');
  assert.deepEqual(await at(), { row: '4', column: '3', role: 'gridcell' });
  assertClean();
});

test('a picture opens to the full width, and the map in it is a grid', async () => {
  const { page, assertClean } = await open(browser, server.url, { path: '/#inside' });
  await page.waitForSelector('.threads path');
  await page.keyboard.press('4');
  await tabTo(page, 'button[aria-haspopup=dialog]');
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog.full .mapgrid');
  const wide = await page.locator('dialog.full').boundingBox();
  assert.ok(wide.width >= 1380, `${wide.width} pixels`);
  await tabTo(page, '.mapgrid [tabindex="0"]');
  const label = () => page.evaluate(() => document.activeElement.ariaLabel);
  assert.match(await label(), /^three takes 7\d.% from had$/);
  await page.keyboard.press('ArrowRight');
  assert.match(await label(), /^three takes \d+.% from itself$/);
  await page.keyboard.press('ArrowUp');
  assert.match(await label(), /^had takes .* from itself$/);
  await page.keyboard.press('Home');
  assert.match(await label(), /^had takes .* from Once$/);
  assert.match(await page.textContent('dialog .reading >> nth=1'), /^had, token 10, takes .* from Once, token 1\.$/);
  await page.keyboard.press('Escape');
  await page.waitForSelector('dialog', { state: 'detached' });
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Full width');
  for (const stage of ['tokenize', 'embed', 'feedforward', 'lens']) {
    await page.click(`#tab-${stage}`);
    await page.click('button:has-text("Full width")');
    await page.waitForSelector('dialog.full .pic');
    await page.keyboard.press('Escape');
    await page.waitForSelector('dialog', { state: 'detached' });
  }
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
