// The browser: pages in both themes and two sizes, watched for errors and for requests to elsewhere.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

const axeSource = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

export const SIZES = {
  desktop: { viewport: { width: 1440, height: 900 } },
  phone: { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true },
};
export const THEMES = ['light', 'dark'];

export function launch() {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
  });
}

/** Opens the page; `watched.assertClean()` fails if anything went wrong on it. */
export async function open(browser, url, { theme = 'light', size = 'desktop', path = '/', ...options } = {}) {
  const context = await browser.newContext({
    ...SIZES[size],
    colorScheme: theme,
    reducedMotion: options.reducedMotion ?? 'reduce',
    permissions: ['clipboard-read', 'clipboard-write'],
    // axe is not the page's: the policy would refuse it.
    bypassCSP: options.bypassCSP ?? false,
  });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  const errors = [];
  const elsewhere = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('console', (message) => {
    // A request that is refused or breaks off is what some tests are about.
    if (message.type() === 'error' && !/Failed to load resource|ERR_/.test(message.text())) {
      errors.push(message.text());
    }
  });
  page.on('request', (request) => {
    if (!request.url().startsWith(`${url}/`) && !/^(data|blob):/.test(request.url())) {
      elsewhere.push(request.url());
    }
  });
  await page.goto(`${url}${path}`);
  await page.waitForSelector('.live');
  const assertClean = () => {
    assert.deepEqual(errors, [], 'errors on the page');
    assert.deepEqual(elsewhere, [], 'requests to elsewhere');
  };
  return { page, context, assertClean };
}

/** Begins a text and waits for its end. */
export async function write(page, { text = 'Once upon a time there was a king who had three', seed = '7' } = {}) {
  await page.fill('#first', text);
  if (await page.isVisible('#seed')) {
    await page.fill('#seed', seed);
  }
  await page.click('.bar .pri');
  await finished(page);
}

/** Waits until nothing is generated. */
export async function finished(page) {
  await page.waitForSelector('.bar .pri:has-text("Continue"):enabled');
}

export function textOf(page) {
  return page.$$eval('.ms .tk', (tokens) => tokens.map((token) => token.textContent).join(''));
}

/** Asserts that axe finds nothing, and that the page does not scroll sideways. */
export async function assertAccessible(page, name) {
  await page.evaluate(axeSource);
  const found = await page.evaluate(async () => {
    const { violations } = await globalThis.axe.run(document, {
      runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
    });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => `${node.html.slice(0, 160)} ${node.any[0]?.message ?? ''}`).join(' | ')}`);
  });
  assert.deepEqual(found, [], `axe on ${name}`);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wider <= 0, `${name} scrolls sideways by ${wider} pixels`);
}
