// A conversation is offered where the model has a template for one, and only there.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { assertAccessible, launch, open } from './browser.mjs';
import { Server } from './server.mjs';

const TEMPLATE = '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:';

let browser;

before(async () => {
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

test('a model with a template answers, and knows what was said before', async (t) => {
  const server = await Server.start('--chat-template', TEMPLATE);
  t.after(() => server.kill());
  const { page, assertClean } = await open(browser, server.url, { bypassCSP: true });
  const asked = [];
  page.on('request', (request) => {
    if (request.url().endsWith('/v1/chat/completions')) {
      asked.push(request.postDataJSON().messages.map(({ role }) => role));
    }
  });
  await page.fill('#seed', '7');
  await page.click('button:has-text("New chat")');
  for (const [message, turns] of [['Who lived in the tower?', 2], ['And then?', 4]]) {
    await page.fill('#message', message);
    await page.keyboard.press('Enter');
    await page.waitForSelector(`.turn:nth-child(${turns}) .tk`, { state: 'attached' });
    await page.waitForSelector('.bar .pri:has-text("Send")');
  }
  assert.deepEqual(asked, [['user'], ['user', 'assistant', 'user']]);
  await assertAccessible(page, 'chat');
  await page.click('button:has-text("New text")');
  await page.waitForSelector('#first');
  assertClean();
});

test('the built-in model, which has none, is not asked for a conversation', async (t) => {
  const server = await Server.start();
  t.after(() => server.kill());
  const { page } = await open(browser, server.url);
  await page.waitForSelector('.live:has-text("ready")');
  assert.equal(await page.locator('button:has-text("New chat")').count(), 0);
});
