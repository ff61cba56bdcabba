// The API reference in a browser: complete, without a request to other hosts, without an error in the console,
// accessible, and able to call the server.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

const address = process.env.SKALD_URL;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const completions = "#operations-openai-completions";
let browser;

before(async () => {
  browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
  });
});
after(() => browser.close());

/** Opens the page; `faults` collects what must not happen. */
async function open(colorScheme, width = 1280) {
  const page = await browser.newPage({ colorScheme, viewport: { width, height: 900 } });
  const faults = [];
  page.on("pageerror", (error) => faults.push(error.message));
  page.on("console", (line) => {
    if (["error", "warning"].includes(line.type())) faults.push(line.text());
  });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(`${address}/`) && !url.startsWith("data:")) faults.push(url);
  });
  await page.goto(`${address}/docs`);
  await page.waitForSelector(".opblock");
  return { page, faults };
}

async function violations(page) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  return violations.map(({ id, nodes }) => `${id}: ${nodes[0].target}`);
}

async function openCompletions(page) {
  await page.click(`${completions} .opblock-summary-control`);
  await page.waitForSelector(`${completions} textarea`);
}

test("every operation is shown", async () => {
  const { page, faults } = await open("light");
  const contract = await (await fetch(`${address}/openapi.json`)).json();
  const expected = Object.entries(contract.paths).flatMap(([path, item]) =>
    Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`),
  );
  const shown = await page.$$eval(".opblock", (blocks) =>
    blocks.map((block) => {
      const text = (part) => block.querySelector(part).textContent.replaceAll("\u200b", "").trim();
      return `${text(".opblock-summary-method")} ${text(".opblock-summary-path")}`;
    }),
  );
  assert.deepEqual(shown.toSorted(), expected.toSorted());
  assert.deepEqual(faults, []);
  await page.close();
});

test("a completion can be tried, at once and as a stream", async () => {
  const { page, faults } = await open("light");
  await openCompletions(page);
  for (const stream of [false, true]) {
    const body = { prompt: "Once upon a time", max_tokens: 5, temperature: 0, stream };
    await page.fill(`${completions} textarea`, JSON.stringify(body));
    const answered = page.waitForResponse(`${address}/v1/completions`);
    await page.click(`${completions} .execute`);
    assert.equal((await answered).status(), 200);
    const sign = stream ? "[DONE]" : '"completion_tokens": 5';
    const answer = page.locator(`${completions} .live-responses-table`);
    await answer.filter({ hasText: sign }).waitFor();
  }
  assert.deepEqual(faults, []);
  await page.close();
});

test("an API key is sent with what is tried", async () => {
  const { page } = await open("light");
  await page.click(".btn.authorize");
  await page.fill(".modal-ux input >> nth=0", "sk-of-a-test");
  await page.click(".modal-ux .btn.authorize >> nth=0");
  await page.click(".modal-ux .btn-done");
  await openCompletions(page);
  await page.fill(`${completions} textarea`, JSON.stringify({ prompt: "A", max_tokens: 1 }));
  const asked = page.waitForRequest(`${address}/v1/completions`);
  await page.click(`${completions} .execute`);
  const headers = await (await asked).allHeaders();
  const shown = [headers.authorization, headers["x-api-key"]];
  assert.ok(shown.includes("Bearer sk-of-a-test") || shown.includes("sk-of-a-test"), `${shown}`);
  // Nothing of it outlives the page.
  assert.equal(await page.evaluate(() => localStorage.length + sessionStorage.length), 0);
  await page.close();
});

for (const scheme of ["light", "dark"]) {
  for (const width of [1280, 390]) {
    test(`axe finds nothing: ${scheme}, ${width} pixels`, async () => {
      const { page, faults } = await open(scheme, width);
      assert.deepEqual(await violations(page), []);
      await openCompletions(page);
      await page.fill(`${completions} textarea`, JSON.stringify({ prompt: "A", max_tokens: 1 }));
      await page.click(`${completions} .execute`);
      await page.waitForSelector(`${completions} .live-responses-table`);
      assert.deepEqual(await violations(page), []);
      // The command is wrapped, not cut off at the page's edge.
      const hidden = await page.$eval(".curl", (command) => command.scrollWidth - command.clientWidth);
      assert.equal(hidden, 0);
      assert.deepEqual(faults, []);
      await page.close();
    });
  }
}

test("an operation opens by keyboard", async () => {
  const { page } = await open("light");
  await page.focus(`${completions} .opblock-summary-control`);
  await page.keyboard.press("Enter");
  await page.waitForSelector(`${completions} textarea`);
  assert.equal(new URL(page.url()).hash, "#/openai/completions");
  await page.close();
});
