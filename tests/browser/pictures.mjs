// Takes the README's pictures, and the frames of its recording; see docs/page/screenshots.

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { finished, launch, open, THEMES, write } from './browser.mjs';
import { Server } from './server.mjs';

const pictures = process.env.PICTURES;
const frames = process.env.FRAMES;
const [server, browser] = await Promise.all([Server.start(), launch()]);

async function branched(page) {
  await write(page, { seed: '7' });
  for (const token of [62, 40, 11]) {
    await page.click(`.tk[data-i="${token}"]`);
    await page.click('.pop .alt:not(.is):not(.rest)');
    await finished(page);
    await page.locator('.tree .row').first().click();
    await finished(page);
    await page.waitForTimeout(200);
  }
  await page.mouse.move(0, 0);
}

try {
  for (const theme of THEMES) {
    const { page, context } = await open(browser, server.url, { theme });
    await branched(page);
    await page.click('.tk[data-i="18"]');
    await page.waitForSelector('.pop');
    await page.waitForTimeout(300);
    await page.screenshot({ path: join(pictures, `write-${theme}.png`) });
    await context.close();
    const inside = await open(browser, server.url, { theme, path: '/#inside' });
    await inside.page.waitForSelector('.threads path');
    await inside.page.waitForTimeout(300);
    await inside.page.screenshot({ path: join(pictures, `inside-${theme}.png`) });
    await inside.context.close();
  }
  const { page } = await open(browser, server.url);
  const durations = [];
  const shoot = async (milliseconds) => {
    const name = `${String(durations.length).padStart(3, '0')}.png`;
    await page.screenshot({ path: join(frames, name) });
    durations.push(milliseconds);
  };
  const prompt = 'Once upon a time there was a king who had three';
  await page.waitForSelector('#first');
  await page.fill('#seed', '7');
  await page.focus('#first');
  for (let end = 4; end <= prompt.length; end += 6) {
    await page.fill('#first', prompt.slice(0, end));
    await shoot(90);
  }
  await page.fill('#first', prompt);
  await shoot(500);
  await page.click('.bar .pri');
  await finished(page);
  await shoot(1400);
  await page.click('.tk[data-i="18"]');
  await page.waitForSelector('.pop');
  await shoot(1600);
  await page.click('.pop .alt:not(.is):not(.rest)');
  await finished(page);
  await page.waitForTimeout(400);
  await shoot(1600);
  await page.click('.tk[data-i="10"]');
  await page.click('.pop a:has-text("Look inside")');
  await page.waitForSelector('.threads path');
  await page.waitForTimeout(300);
  await shoot(1600);
  for (let n = 12; n <= 16; n++) {
    await page.click('.take');
    await page.waitForFunction((rows) => document.querySelectorAll('.tokb').length === rows, n);
    await page.waitForTimeout(150);
    await shoot(700);
  }
  await page.click('#tab-lens');
  await page.waitForTimeout(300);
  await shoot(1800);
  writeFileSync(join(frames, 'durations.json'), JSON.stringify(durations));
} finally {
  await browser.close();
  await server.kill();
}
