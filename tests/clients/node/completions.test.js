// The official `openai` package for Node: completions, streams and errors.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { client, model, prompt, running } from "./server.js";

const greedy = { model, prompt, max_tokens: 24, temperature: 0 };

test("a completion has text and usage", async () => {
  const answer = await client.completions.create(greedy);
  assert.equal(answer.object, "text_completion");
  assert.equal(answer.choices.length, 1);
  assert.ok(answer.choices[0].text);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 24);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 24);
  assert.ok(answer._request_id);
});

test("the model is listed and can be retrieved", async () => {
  const names = [];
  for await (const entry of client.models.list()) names.push(entry.id);
  assert.deepEqual(names, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("several prompts and choices come in order", async () => {
  const answer = await client.completions.create({ ...greedy, temperature: 1, prompt: [prompt, "The dragon"], n: 2 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2, 3]);
});

test("logprobs and echo tell of the prompt too", async () => {
  const { choices } = await client.completions.create({ ...greedy, echo: true, logprobs: 2 });
  assert.ok(choices[0].text.startsWith(prompt));
  assert.equal(choices[0].logprobs.tokens.join(""), choices[0].text);
  assert.equal(choices[0].logprobs.token_logprobs[0], null);
  assert.equal(choices[0].logprobs.text_offset[0], 0);
});

test("fields OpenAI does not have are passed on", async () => {
  const plain = await client.completions.create(greedy);
  const narrow = await client.completions.create({ ...greedy, temperature: 1, top_k: 1 });
  assert.equal(narrow.choices[0].text, plain.choices[0].text);
});

test("a stream gives the same text, and usage at its end", async () => {
  const whole = await client.completions.create(greedy);
  const stream = await client.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } });
  const events = await Array.fromAsync(stream);
  const last = events.pop();
  assert.equal(events.map((event) => event.choices[0].text).join(""), whole.choices[0].text);
  assert.equal(events.at(-1).choices[0].finish_reason, "length");
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, 24);
  assert.ok(events.length > 10, "token by token");
});

test("a stream that is left stops the generation", async () => {
  const endless = { ...greedy, max_tokens: 100_000, stream: true, overflow: "slide", ignore_eos: true };
  for await (const event of await client.completions.create(endless)) {
    assert.equal(event.choices[0].index, 0);
    assert.ok((await running()) >= 1);
    break;
  }
  const deadline = Date.now() + 5000;
  while ((await running()) > 0) assert.ok(Date.now() < deadline, "the generation continues without a client");
});

test("errors have their classes", async () => {
  await assert.rejects(client.completions.create({ ...greedy, temperature: 3 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    assert.match(error.message, /temperature.*3/);
    assert.ok(error.requestID);
    return true;
  });
  await assert.rejects(client.completions.create({ ...greedy, model: "no-such-model" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
  await assert.rejects(client.completions.create({ ...greedy, max_tokens: 5000 }), { code: "context_length_exceeded" });
  await assert.rejects(client.completions.create({ ...greedy, suffix: "The End" }), { param: "suffix" });
  const unreachable = new OpenAI({ baseURL: "http://127.0.0.1:9/v1", apiKey: "none", maxRetries: 0 });
  await assert.rejects(unreachable.completions.create(greedy), OpenAI.APIConnectionError);
});
