// A server that goes away in the middle is told clearly, and work goes on.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { finished, launch, open, textOf } from './browser.mjs';
import { Server, folder } from './server.mjs';

let browser;

before(async () => {
  browser = await launch();
});

after(async () => {
  await browser?.close();
});

/** Begins a long text and kills the server in the middle of it. */
async function cutOff(t, ...options) {
  const server = await Server.start(...options);
  t.after(() => server.kill());
  const opened = await open(browser, server.url);
  const { page } = opened;
  await page.fill('#first', 'Once upon a time there was a king who had three');
  await page.locator('input[type=range]').nth(2).fill('1000');
  await page.click('.bar .pri');
  await page.waitForSelector('.tk:nth-child(30)');
  await server.kill();
  await page.waitForSelector('.banner:has-text("The server stopped answering.")');
  await page.waitForSelector('.cutoff:has-text("connection lost here")');
  assert.equal(await page.textContent('.live'), 'no answer');
  assert.ok(await page.isDisabled('.bar .pri'));
  return { server, text: await textOf(page), ...opened };
}

test('a server without sessions on disk comes back without the session, and the text goes on', async (t) => {
  const { server, page, text, assertClean } = await cutOff(t);
  await server.run();
  await page.click('button:has-text("Try now")').catch(() => undefined);
  await page.waitForSelector('.banner:has-text("The server restarted and no longer has this session.")');
  assert.equal(await textOf(page), text);
  await page.locator('input[type=range]').nth(2).fill('30');
  await page.click('.bar .pri');
  await finished(page);
  const whole = await textOf(page);
  assert.ok(whole.startsWith(text) && whole.length > text.length);
  assert.equal(await page.locator('.banner').count(), 0);
  const id = await page.textContent('.deskhead .name');
  assert.equal((await server.json(`/v1/sessions/${id}`)).text, whole.replaceAll('↵', '\n'));
  assertClean();
});

test('a server with sessions on disk comes back with the text', async (t) => {
  const { server, page, text, assertClean } = await cutOff(t, '--session-dir', folder(t));
  await server.run();
  await page.click('button:has-text("Try now")').catch(() => undefined);
  await page.waitForSelector('.banner button:has-text("Go on from here")');
  await page.locator('input[type=range]').nth(2).fill('30');
  await page.click('.banner button');
  await finished(page);
  const whole = await textOf(page);
  assert.ok(whole.startsWith(text) && whole.length > text.length);
  const id = await page.textContent('.deskhead .name');
  assert.equal((await server.json(`/v1/sessions/${id}`)).text, whole.replaceAll('↵', '\n'));
  assertClean();
});
