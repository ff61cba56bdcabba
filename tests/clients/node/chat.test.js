// The official `openai` package for Node: chats and embeddings.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { client, model, prompt } from "./server.js";

const question = {
  model,
  messages: [{ role: "user", content: "Tell me of the king who had three daughters." }],
  max_completion_tokens: 24,
  temperature: 0,
};

test("a chat has a message and usage", async () => {
  const answer = await client.chat.completions.create(question);
  assert.equal(answer.object, "chat.completion");
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.completion_tokens <= 24);
});

test("a chat is the same streamed", async () => {
  const whole = await client.chat.completions.create(question);
  const events = await Array.fromAsync(await client.chat.completions.create({ ...question, stream: true }));
  assert.equal(events[0].choices[0].delta.role, "assistant");
  const text = events.map((event) => event.choices[0].delta.content ?? "").join("");
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(events.at(-1).choices[0].finish_reason, whole.choices[0].finish_reason);
});

test("the stream helper gathers the answer", async () => {
  const whole = await client.chat.completions.create(question);
  const stream = client.chat.completions.stream(question);
  assert.equal(await stream.finalContent(), whole.choices[0].message.content);
});

test("an answer follows its schema", async () => {
  const schema = {
    type: "object",
    properties: { animal: { enum: ["fox", "bear"] } },
    required: ["animal"],
    additionalProperties: false,
  };
  const response_format = { type: "json_schema", json_schema: { name: "tale", strict: true, schema } };
  const answer = await client.chat.completions.create({ ...question, response_format });
  assert.ok(["fox", "bear"].includes(JSON.parse(answer.choices[0].message.content).animal));
});

test("a bad message is a bad request", async () => {
  await assert.rejects(client.chat.completions.create({ ...question, messages: [] }), OpenAI.BadRequestError);
});

test("embeddings are the same as floats and in base64", async () => {
  const chosen = await client.embeddings.create({ model, input: prompt });
  const floats = await client.embeddings.create({ model, input: prompt, encoding_format: "float" });
  assert.ok(chosen.data[0].embedding.length > 0);
  assert.deepEqual(Array.from(chosen.data[0].embedding), floats.data[0].embedding.map(Math.fround));
});

test("embeddings of several texts come in order", async () => {
  const { data } = await client.embeddings.create({ model, input: [prompt, "The dragon"] });
  assert.deepEqual(data.map((entry) => entry.index), [0, 1]);
  assert.notDeepEqual(data[0].embedding, data[1].embedding);
});
