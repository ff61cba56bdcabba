// The server that pytest, or the caller of `node --test`, has started.

import OpenAI from "openai";

const address = process.env.SKALD_URL;
if (!address) throw new Error("SKALD_URL must be the address of a server");

export const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
export const model = (await client.models.list()).data[0].id;
export const prompt = "Once upon a time there was a king who had three daughters,";

/** Returns the number of running and waiting requests of the engine. */
export async function running() {
  const { engine } = await (await fetch(`${address}/info`)).json();
  return engine.running + engine.waiting;
}
