// API keys: asked for, kept for the tab, and forgotten with it.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { launch, open, write } from './browser.mjs';
import { folder, Server } from './server.mjs';

test('a server with keys asks for one, says when it is wrong, and works with the right one', async (t) => {
  const file = join(folder(t), 'keys.toml');
  const made = execFileSync(process.env.SKALD_CLI ?? process.env.SKALD, ['keys', 'create', 'ada'], {
    encoding: 'utf8',
    env: { ...process.env, SKALD_KEYS: file },
  });
  const key = /\bskald_\w+/.exec(made)?.[0];
  assert.ok(key, made);
  const server = await Server.start('--keys', file);
  t.after(() => server.kill());
  const browser = await launch();
  t.after(() => browser.close());
  const { page, context, assertClean } = await open(browser, server.url);
  await page.waitForSelector('dialog:has-text("This server needs an API key")');
  await page.fill('#key', 'skald_wrong');
  await page.keyboard.press('Enter');
  await page.waitForSelector('text=This key was not accepted.');
  await page.fill('#key', key);
  await page.keyboard.press('Enter');
  await page.waitForSelector('dialog', { state: 'detached' });
  await write(page);
  await page.reload();
  await page.waitForSelector('.tk:nth-child(20)');
  assert.equal(await page.evaluate(() => Object.values({ ...localStorage }).join().includes('skald_')), false);
  const other = await context.newPage();
  await other.goto(server.url);
  await other.waitForSelector('dialog:has-text("This server needs an API key")');
  assertClean();
});
