// Texts, links, keys and circumstances that the page was not asked to be kind to.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { deflateRawSync } from 'node:zlib';
import { finished, launch, open, SIZES, textOf, write } from './browser.mjs';
import { folder, Server } from './server.mjs';

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

function linkTo(shared) {
  const json = typeof shared === 'string' ? shared : JSON.stringify(shared);
  return `/#t=${deflateRawSync(json).toString('base64url')}`;
}

/** Returns what the server has of the text that is shown. */
async function sessionOf(page) {
  return server.json(`/v1/sessions/${await page.textContent('.deskhead .name')}`);
}

const shownText = async (page) => (await textOf(page)).replaceAll('↵', '\n');

test('markup, emoji and scripts that run from right to left are text like any other', async () => {
  const { page, assertClean } = await open(browser, server.url);
  const prompt = '<img src=x onerror="document.title=1"><b>&amp;</b> 👩‍👩‍👧 שלום مرحبا 夜';
  await write(page, { text: prompt });
  assert.ok((await textOf(page)).startsWith(prompt));
  assert.equal(await page.locator('.ms img, .ms b, .rail img, .tree img').count(), 0);
  await page.click('a[href="#inside"]');
  await page.waitForSelector('.threads path');
  assert.equal(await page.locator('.view img').count(), 0);
  for (const stage of ['tokenize', 'embed', 'feedforward', 'lens', 'attention']) {
    await page.click(`#tab-${stage}`);
    await page.waitForSelector(`#tab-${stage}[aria-selected=true]`);
  }
  assertClean();
});

test('a text from right to left begins at the right, without an initial, under a name of its own', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page, { text: 'שלום עולם' });
  assert.equal(await page.$eval('.ms p', (p) => getComputedStyle(p).direction), 'rtl');
  assert.equal(await page.locator('.ms .drop').count(), 0);
  assert.match(await page.textContent('.deskhead .name'), /^text-[0-9a-f]{6}$/);
  assertClean();
});

test('a word without an end stays inside the page', async () => {
  for (const size of Object.keys(SIZES)) {
    const { page, context, assertClean } = await open(browser, server.url, { size });
    await write(page, { text: 'Ab'.repeat(400) });
    const wider = await page.$eval('.sheet', (sheet) => sheet.scrollWidth - sheet.clientWidth);
    assert.ok(wider <= 0, `${size}: wider by ${wider} pixels`);
    assertClean();
    await context.close();
  }
});

test('a text that the server can not take is refused, and stays in the field', async (t) => {
  const small = await Server.start('--max-body', '64KiB');
  t.after(() => small.kill());
  const { page, assertClean } = await open(browser, small.url);
  const huge = 'The wolf and the seven kids. '.repeat(8000);
  await page.fill('#first', huge);
  await page.click('.bar .pri');
  await page.waitForSelector('.bar .refusal');
  assert.equal(await page.inputValue('#first'), huge);
  const height = await page.$eval('.bar', (bar) => bar.clientHeight);
  assert.ok(height < 200, `the bar is ${height} pixels high`);
  await page.click('button:has-text("Copy link")');
  await page.waitForSelector('.toast:has-text("Link copied")');
  // One that is refused by the model is kept as well.
  await page.route('**/v1/completions', async (route) => {
    await route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), temperature: 7 }) });
  });
  await page.fill('#first', 'Once');
  await page.click('.bar .pri');
  await page.waitForSelector('.bar .refusal:has-text("temperature")');
  assert.equal(await page.inputValue('#first'), 'Once');
  assert.equal(await page.textContent('.deskhead .name'), 'New text');
  assertClean();
});

test('a text much longer than the context is written on from its end', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.locator('input[type=range]').nth(2).fill('20');
  const long = 'The wolf and the seven kids. '.repeat(2000);
  await write(page, { text: long });
  assert.ok((await textOf(page)).startsWith(long));
  await page.reload();
  await finished(page);
  assert.ok((await textOf(page)).startsWith(long));
  await page.click('a[href="#inside"]');
  await page.waitForSelector('.threads path');
  assert.match(await page.textContent('.tokb[aria-selected=true]'), /^1,?024/);
  assertClean();
});

test('a link with absurd settings is opened with the nearest that can be', async () => {
  const { page, assertClean } = await open(browser, server.url, {
    path: linkTo({
      prompt: PROMPT,
      settings: { temperature: 99, topP: -1, topK: 3.7, length: 10.5, minP: 'no', seed: '-5', __proto__: 1, other: {} },
      fingerprint: { not: 'text' },
    }),
  });
  await page.waitForSelector('text=This link was made with another model');
  assert.equal(await page.locator('.set output').first().textContent(), '2.00');
  await page.click('.bar .pri');
  await finished(page);
  assert.equal(await page.locator('.bar .refusal').count(), 0);
  assert.equal(await page.locator('.tk:not(.pr)').count(), 11);
  assertClean();
});

test('a link that can not be read says so', async () => {
  for (const path of ['/#t=AAAA', linkTo('{"prompt": 7}'), linkTo('null'), '/#t=%F0%9F']) {
    const { page, context, assertClean } = await open(browser, server.url, { path });
    await page.waitForSelector('text=This link can’t be read.');
    await write(page);
    assertClean();
    await context.close();
  }
});

test('a link is opened over a text that is still being read', async () => {
  const { page, context, assertClean } = await open(browser, server.url);
  await write(page);
  let release;
  const held = new Promise((done) => (release = done));
  await page.route('**/v1/sessions/*', async (route) => {
    await held;
    await route.continue();
  });
  await page.reload();
  await page.waitForSelector('.live:has-text("ready")');
  await page.evaluate((hash) => (location.hash = hash), linkTo({ prompt: 'A wolf', settings: {}, fingerprint: '' }).slice(2));
  await page.waitForSelector('#first');
  release();
  await page.waitForTimeout(500);
  assert.equal(await page.inputValue('#first'), 'A wolf');
  assertClean();
  await context.close();
});

test('a text that is left while it begins does not come back', async () => {
  const { page, assertClean } = await open(browser, server.url);
  let release;
  const held = new Promise((done) => (release = done));
  await page.route('**/tokenize', async (route) => {
    await held;
    await route.continue();
  });
  await page.fill('#first', PROMPT);
  await page.click('.bar .pri');
  await page.click('button:has-text("New text")');
  release();
  await page.waitForTimeout(500);
  assert.equal(await page.locator('.tk').count(), 0);
  assert.equal(await page.textContent('.deskhead .name'), 'New text');
  assertClean();
});

test('a key that is held down generates once', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  let asked = 0;
  page.on('request', (request) => {
    asked += request.url().endsWith('/v1/completions') && request.postData().includes('"stream":true') ? 1 : 0;
  });
  await page.evaluate(() => {
    for (let i = 0; i < 5; i++) {
      dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', ctrlKey: true }));
    }
  });
  await page.waitForFunction(() => document.querySelectorAll('.tk').length > 121);
  await finished(page);
  assert.equal(asked, 1);
  assert.equal((await sessionOf(page)).text, await shownText(page));
  assertClean();
});

test('long texts that are stopped and branched again and again are what the server has', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.fill('#first', PROMPT);
  await page.fill('#seed', '3');
  await page.locator('input[type=range]').nth(2).fill('500');
  await page.click('.bar .pri');
  for (let n = 0; n < 4; n++) {
    const from = 12 + 2 * n;
    await page.waitForSelector(`.tk[data-i="${from + 12}"]`);
    await page.keyboard.press('Escape');
    await page.click(`.tk[data-i="${from}"]`);
    await page.click('.pop .alt:not(.is):not(.rest) >> nth=1');
    await page.waitForFunction((n) => document.querySelectorAll('.tree .row').length > n, n + 1);
  }
  await page.keyboard.press('Escape');
  await finished(page);
  await page.click('.bar .pri');
  await page.keyboard.press('Escape');
  await page.locator('input[type=range]').nth(2).fill('5');
  await finished(page);
  await page.click('.bar .pri');
  await finished(page);
  const session = await sessionOf(page);
  assert.equal(session.text, await shownText(page));
  assert.equal(session.token_count, await page.locator('.tk').count());
  assertClean();
});

test('a reload in the middle of a stream shows what was written until then', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await page.fill('#first', PROMPT);
  await page.locator('input[type=range]').nth(2).fill('900');
  await page.fill('#seed', '2');
  await page.click('.bar .pri');
  await page.waitForSelector('.tk:nth-child(20)');
  await page.reload();
  await page.waitForSelector('.tk:nth-child(20)');
  await finished(page);
  assert.ok((await shownText(page)).startsWith(PROMPT));
  assert.equal((await sessionOf(page)).text, await shownText(page));
  assertClean();
});

test('a text that went on in another tab is shown as it is now, and nothing of it is lost', async () => {
  const { page, context, assertClean } = await open(browser, server.url);
  await write(page);
  const [other] = await Promise.all([context.waitForEvent('page'), page.evaluate(() => void window.open('/'))]);
  await other.waitForFunction(() => document.querySelectorAll('.tk').length === 121);
  await finished(other);
  await other.click('.bar .pri');
  await other.waitForFunction(() => document.querySelectorAll('.tk').length > 125);
  await finished(other);
  const longer = await shownText(other);
  await page.click('.bar .pri');
  await page.waitForSelector('.toast:has-text("went on elsewhere")');
  await finished(page);
  assert.equal(await shownText(page), longer);
  await page.click('.bar .pri');
  await page.waitForFunction((n) => document.querySelectorAll('.tk').length > n, await page.locator('.tk').count());
  await finished(page);
  assert.equal((await sessionOf(page)).text, await shownText(page));
  assert.ok((await shownText(page)).startsWith(longer));
  assertClean();
  await context.close();
});

test('a text that was deleted elsewhere is sent again', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  const text = await shownText(page);
  const id = await page.textContent('.deskhead .name');
  await fetch(`${server.url}/v1/sessions/${id}`, { method: 'DELETE' });
  await page.click('.bar .pri');
  await page.waitForFunction(() => document.querySelectorAll('.tk').length > 125);
  await finished(page);
  assert.ok((await shownText(page)).startsWith(text));
  assert.equal((await sessionOf(page)).text, await shownText(page));
  assertClean();
});

test('without storage, or with storage that is full, all works but the memory', async () => {
  const forbid = () => {
    for (const name of ['localStorage', 'sessionStorage']) {
      Object.defineProperty(globalThis, name, {
        get() {
          throw new DOMException('no', 'SecurityError');
        },
      });
    }
  };
  const fill = () => {
    Storage.prototype.setItem = () => {
      throw new DOMException('full', 'QuotaExceededError');
    };
  };
  for (const trouble of [forbid, fill]) {
    const { page, context, assertClean } = await open(browser, server.url);
    await page.addInitScript(trouble);
    await page.reload();
    await page.waitForSelector('.live:has-text("ready")');
    await page.click('button[title="Theme"]');
    await write(page);
    await page.click('.tk[data-i="18"]');
    await page.click('.pop .alt:not(.is):not(.rest)');
    await page.waitForSelector('.tree .row:nth-child(2)');
    await finished(page);
    assertClean();
    await context.close();
  }
});

test('keys that can not be keys are refused, and one is enough without storage', async (t) => {
  const file = join(folder(t), 'keys.toml');
  const made = execFileSync(process.env.SKALD_CLI ?? process.env.SKALD, ['keys', 'create', 'ada'], {
    encoding: 'utf8',
    env: { ...process.env, SKALD_KEYS: file },
  });
  const guarded = await Server.start('--keys', file);
  t.after(() => guarded.kill());
  const { page, assertClean } = await open(browser, guarded.url);
  await page.waitForSelector('dialog');
  for (const key of ['“skald_ключ”', 'a key with spaces', '🔑']) {
    await page.fill('#key', key);
    await page.keyboard.press('Enter');
    await page.waitForSelector('text=This key was not accepted.');
    assert.equal(await page.locator('.banner').count(), 0, key);
  }
  await page.addInitScript(() => {
    Storage.prototype.setItem = () => {
      throw new DOMException('full', 'QuotaExceededError');
    };
  });
  await page.reload();
  await page.fill('#key', /\bskald_\w+/.exec(made)[0]);
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog', { state: 'detached' });
  await write(page);
  assertClean();
});

test('back and forward go through the views, and close what is open', async () => {
  const { page, assertClean } = await open(browser, server.url, { size: 'phone' });
  await write(page);
  const text = await textOf(page);
  await page.click('.tabbar a[href="#inside"]');
  await page.waitForSelector('.threads path');
  await page.click('.tabbar a[href="#server"]');
  await page.waitForSelector('.view.server');
  await page.goBack();
  await page.waitForSelector('.threads path');
  await page.goBack();
  await finished(page);
  assert.equal(await textOf(page), text);
  await page.click('.bar button:has-text("Settings")');
  await page.waitForSelector('.panel.open');
  await page.goBack();
  await page.waitForSelector('.panel.open', { state: 'detached' });
  assert.equal(await textOf(page), text);
  // Closed by hand it is not in the way either.
  await page.click('.bar button:has-text("Settings")');
  await page.click('.panel.open .close');
  await page.waitForSelector('.panel.open', { state: 'detached' });
  await page.waitForTimeout(200);
  await page.click('.tabbar a[href="#inside"]');
  await page.waitForSelector('.threads path');
  await page.click('button:has-text("Full width")');
  await page.waitForSelector('dialog.full');
  await page.goBack();
  await page.waitForSelector('dialog', { state: 'detached' });
  await page.waitForSelector('.threads path');
  await page.goBack();
  await finished(page);
  assert.equal(await textOf(page), text);
  assertClean();
});

test('on a phone nothing that is needed hides behind the keyboard', async () => {
  const { page, assertClean } = await open(browser, server.url, { size: 'phone' });
  assert.match(await page.getAttribute('meta[name=viewport]', 'content'), /interactive-widget=resizes-content/);
  // As the keyboard leaves it.
  await page.setViewportSize({ width: 390, height: 360 });
  await page.fill('#first', PROMPT);
  await page.focus('#first');
  const inView = (selector) =>
    page.$eval(selector, (element) => {
      const { top, bottom } = element.getBoundingClientRect();
      return Math.min(bottom, innerHeight) - Math.max(0, top) >= Math.min(44, bottom - top);
    });
  assert.ok(await inView('.bar .pri'));
  const [field, bar] = await page.$$eval('#first, .bar', (all) => all.map((each) => each.getBoundingClientRect().toJSON()));
  assert.ok(Math.min(field.bottom, bar.top) - field.top >= 60, 'a line of the field can be seen');
  const size = await page.$eval('#first', (field) => parseFloat(getComputedStyle(field).fontSize));
  assert.ok(size >= 16, 'no zoom into the field');
  await page.click('.bar .pri');
  await finished(page);
  assert.ok(await inView('.bar .pri'));
  assertClean();
});

test('nothing breaks that is clicked while the server is away', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  const text = await textOf(page);
  for (const token of [30, 40]) {
    await page.click(`.tk[data-i="${token}"]`);
    await page.click('.pop .alt:not(.is):not(.rest)');
    await finished(page);
    await page.locator('.tree .row').first().click();
    await finished(page);
  }
  await page.route('**/*', (route) => route.abort('connectionrefused'));
  await page.click('.tk[data-i="18"]');
  await page.click('.pop .alt:not(.is):not(.rest)');
  await page.waitForSelector('.banner.lost');
  await page.locator('.tree .row').nth(1).click();
  await page.keyboard.press('Control+Enter');
  await page.locator('.ses').first().click();
  await page.click('button:has-text("Copy link")');
  for (const view of ['inside', 'server', 'write']) {
    await page.click(`a[href="#${view}"]`);
    await page.waitForTimeout(200);
  }
  assert.equal(await textOf(page), text);
  await page.unroute('**/*');
  await page.click('button:has-text("Try now")');
  await page.waitForSelector('.live:has-text("ready")');
  await page.click('.bar .pri:enabled');
  await page.waitForFunction(() => document.querySelectorAll('.tk').length > 125);
  await finished(page);
  assert.equal((await sessionOf(page)).text, await shownText(page));
  assertClean();
});

test('a text that was typed while the server was away is looked into when it is back', async () => {
  const { page, assertClean } = await open(browser, server.url, { path: '/#inside' });
  await page.waitForSelector('.threads path');
  await page.route('**/*', (route) => route.abort('connectionrefused'));
  await page.fill('.field', 'A wolf and a fox');
  await page.waitForSelector('.banner.lost');
  await page.unroute('**/*');
  await page.click('button:has-text("Try now")');
  await page.waitForSelector('.tokb:has-text("fox")');
  await page.waitForSelector('.cell');
  assertClean();
});

test('a text of nothing, of spaces and of one token can be looked into', async () => {
  const { page, assertClean } = await open(browser, server.url, { path: '/#inside' });
  await page.waitForSelector('.threads path');
  await page.fill('.field', '');
  await page.waitForSelector('text=Write a text to look into.');
  await page.keyboard.press('ArrowDown');
  for (const text of [' ', 'A', '👩‍👩‍👧', '\n\n\n']) {
    await page.fill('.field', text);
    await page.waitForSelector('.cell');
    for (const stage of ['tokenize', 'embed', 'feedforward', 'lens', 'attention']) {
      await page.click(`#tab-${stage}`);
      await page.waitForSelector(`#tab-${stage}[aria-selected=true]`);
      await page.waitForTimeout(60);
    }
  }
  assertClean();
});

test('at no width is a control cut off, and a low window opens at its top', async () => {
  const { page, assertClean } = await open(browser, server.url);
  await write(page);
  for (const [width, height] of [[1440, 900], [1280, 720], [1181, 800], [1180, 800], [1024, 768], [844, 390], [761, 700]]) {
    await page.setViewportSize({ width, height });
    await page.waitForTimeout(150);
    const cut = await page.$$eval('.deskhead, .bar, .top', (parts) =>
      parts.flatMap((part) => {
        const { left, right } = part.getBoundingClientRect();
        return [...part.querySelectorAll('button, a, .speed, .live')]
          .filter((each) => each.checkVisibility())
          .filter((each) => {
            const box = each.getBoundingClientRect();
            const clip = each.closest('.seg')?.getBoundingClientRect() ?? box;
            return box.left < left || box.right > right + 0.5 || box.right > clip.right + 0.5;
          })
          .map((each) => each.textContent);
      }),
    );
    assert.deepEqual(cut, [], `${width} pixels wide`);
  }
  await page.setViewportSize({ width: 844, height: 390 });
  await page.click('a[href="#inside"]');
  await page.waitForSelector('.threads path');
  const { top } = await page.$eval('.field', (field) => field.getBoundingClientRect().toJSON());
  assert.ok(top > 56, `the field is at ${top}`);
  // The last token is in view within the grid.
  const [token, grid] = await page.$$eval('.tokb[aria-selected=true], .loomwrap', (all) =>
    all.map((each) => each.getBoundingClientRect().bottom).sort((a, b) => a - b),
  );
  assert.ok(token <= grid + 1);
  assertClean();
});
