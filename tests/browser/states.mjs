// Every view in its states: what axe looks at and what is photographed. Each goes to its state from a page that was
// just opened.

import { finished, write } from './browser.mjs';

async function look(page) {
  await page.waitForSelector('.cell');
  await page.waitForSelector('.threads path');
}

async function stage(page, id) {
  await look(page);
  await page.click(`#tab-${id}`);
  await page.waitForSelector(`#tab-${id}[aria-selected=true]`);
  await page.waitForTimeout(300);
}

async function branched(page) {
  await write(page);
  for (const token of [40, 24, 16]) {
    await page.click(`.tk[data-i="${token}"]`);
    await page.click('.pop .alt:not(.is):not(.rest)');
    await finished(page);
    await page.waitForTimeout(200);
  }
}

/** By name: where the page is opened, and how it gets to the state. `only` names the size that has it. */
export const STATES = {
  'write-empty': { go: async () => undefined },
  'write': { go: branched },
  'write-scripts': {
    go: async (page) => {
      await write(page, { text: '<b>שלום</b> مرحبا 👩‍👩‍👧 夜' });
    },
  },
  'write-alternatives': {
    go: async (page) => {
      await write(page);
      await page.click('.tk[data-i="18"]');
      await page.waitForSelector('.pop');
    },
  },
  'write-colour': {
    only: 'desktop',
    go: async (page) => {
      await write(page);
      await page.click('button:has-text("Colour")');
    },
  },
  'write-streaming': {
    // The answer is held back in its middle, as if the model were slow.
    go: async (page, { server }) => {
      await page.fill('#first', 'Once upon a time there was a king who had three');
      const { choices } = await server.json('/v1/completions', {
        prompt: 'Once upon a time there was a king who had three',
        seed: 7,
        max_tokens: 40,
        echo: true,
        logprobs: 5,
      });
      const event = (choice) => `data: ${JSON.stringify({ choices: [choice] })}\n\n`;
      await page.addInitScript((body) => {
        const original = globalThis.fetch;
        globalThis.fetch = (path, options) => {
          if (path !== '/v1/completions' || !String(options?.body).includes('"stream":true')) {
            return original(path, options);
          }
          const stream = new ReadableStream({
            start: (controller) => controller.enqueue(new TextEncoder().encode(body)),
          });
          return Promise.resolve(new Response(stream, { status: 200 }));
        };
      }, event({ text: choices[0].text, logprobs: choices[0].logprobs, finish_reason: null }));
      await page.reload();
      await page.fill('#first', 'Once upon a time there was a king who had three');
      await page.click('.bar .pri');
      await page.waitForSelector('.caret');
      await page.waitForSelector('.tk:nth-child(40)');
    },
  },
  'write-settings': {
    only: 'phone',
    go: async (page) => {
      await write(page);
      await page.click('.bar button:has-text("Settings")');
      await page.waitForSelector('.panel.open');
    },
  },
  'write-branches': {
    only: 'phone',
    go: async (page) => {
      await branched(page);
      await page.click('.bar button:has-text("Branches")');
      await page.waitForSelector('.panel.open .tree');
    },
  },
  'write-sessions': {
    only: 'phone',
    go: async (page) => {
      await write(page);
      await page.click('button[aria-label="Sessions"]');
      await page.waitForSelector('.panel.open .ses');
    },
  },
  'write-lost': {
    go: async (page) => {
      await write(page);
      await page.route('**/*', (route) => route.abort('connectionrefused'));
      // Unless the page has noticed by itself.
      await page.click('.bar .pri', { timeout: 2000 }).catch(() => undefined);
      await page.waitForSelector('.banner.lost');
    },
  },
  'key': {
    go: async (page) => {
      await page.route('**/info', (route) => route.fulfill({ status: 401, json: { error: 'no key' } }));
      await page.reload();
      await page.waitForSelector('dialog');
    },
  },
  'help': {
    only: 'desktop',
    path: '/#server',
    go: async (page) => {
      await page.keyboard.press('?');
      await page.waitForSelector('dialog');
    },
  },
  'inside-tokenize': { path: '/#inside', go: (page) => stage(page, 'tokenize') },
  'inside-embed': { path: '/#inside', go: (page) => stage(page, 'embed') },
  'inside-attention': { path: '/#inside', go: look },
  'inside-map': {
    path: '/#inside',
    go: async (page) => {
      await look(page);
      await page.click('.map >> nth=3');
      await page.click('button:has-text("Full width")');
      await page.waitForSelector('.mapgrid');
    },
  },
  'inside-wide': {
    only: 'desktop',
    path: '/#inside',
    go: async (page) => {
      await stage(page, 'lens');
      await page.click('button:has-text("Full width")');
      await page.waitForSelector('dialog.full');
    },
  },
  'inside-feedforward': {
    path: '/#inside',
    go: async (page) => {
      await stage(page, 'feedforward');
      await page.waitForSelector('.nrn');
    },
  },
  'inside-lens': { path: '/#inside', go: (page) => stage(page, 'lens') },
  'inside-sampling': {
    path: '/#inside',
    go: async (page) => {
      await look(page);
      await page.click('button:has-text("Step by step")');
      await page.waitForSelector('.fun');
    },
  },
  'inside-table': {
    path: '/#inside',
    go: async (page) => {
      await look(page);
      await page.click('summary:has-text("Show as table")');
      await page.waitForSelector('.astable td');
    },
  },
  'server': {
    path: '/#server',
    go: async (page, { server }) => {
      for (let i = 0; i < 24; i++) {
        const prompt = `Once upon a time there was a king who had ${i % 5}`;
        const load = Array.from({ length: 1 + (i % 6) }, (_, k) =>
          server.json('/v1/completions', { prompt: prompt + ' sons'.repeat(k), max_tokens: 60, seed: i }),
        );
        await Promise.all(load);
        await page.waitForTimeout(150);
      }
      await page.waitForTimeout(700);
    },
  },
};
