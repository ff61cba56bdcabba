// axe finds nothing in any state, in both themes and both sizes; nothing scrolls sideways, nothing is asked for
// elsewhere, and nothing goes wrong. With SCREENSHOTS, a picture of each is written there.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { assertAccessible, launch, open, SIZES, THEMES } from './browser.mjs';
import { Server } from './server.mjs';
import { STATES } from './states.mjs';

let server;
let browser;

before(async () => {
  [server, browser] = await Promise.all([Server.start(), launch()]);
});

after(async () => {
  await browser?.close();
  await server?.kill();
});

const pictures = process.env.SCREENSHOTS;
if (pictures) {
  mkdirSync(pictures, { recursive: true });
}

for (const [name, { path = '/', go, only }] of Object.entries(STATES)) {
  for (const size of Object.keys(SIZES).filter((each) => !only || each === only)) {
    for (const theme of THEMES) {
      test(`${name}, ${size}, ${theme}`, async () => {
        const { page, context, assertClean } = await open(browser, server.url, { theme, size, path, bypassCSP: true });
        await page.waitForSelector('.live:has-text("ready")');
        await go(page, { server });
        await page.evaluate(() => document.fonts.ready);
        if (pictures) {
          await page.screenshot({ path: join(pictures, `${name}-${size}-${theme}.png`) });
        }
        await assertAccessible(page, name);
        assertClean();
        await context.close();
      });
    }
  }
}
