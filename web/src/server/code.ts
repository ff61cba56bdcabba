/** Programs that ask for the same as the page does. */

import { defaults, type Settings } from '../lib/settings';

export type Language = 'curl' | 'python' | 'javascript';

export const LANGUAGES: readonly { id: Language; name: string }[] = [
  { id: 'curl', name: 'curl' },
  { id: 'python', name: 'Python' },
  { id: 'javascript', name: 'JavaScript' },
];

interface Request {
  model: string;
  prompt: string;
  settings: Settings;
  needsKey: boolean;
}

/** Fields that OpenAI's own library knows by name. */
const OPENAI: readonly string[] = ['max_tokens', 'seed', 'temperature', 'top_p'];

/** Returns the settings as fields of a request; those that are off are left out, unless the model's own are on. */
function fields({ settings }: Request): [string, number][] {
  const own = defaults.value;
  const all: [string, number, boolean][] = [
    ['max_tokens', settings.length, true],
    ['seed', Number(settings.seed), true],
    ['temperature', settings.temperature, true],
    ['top_p', settings.topP, settings.topP < 1 || own.topP < 1],
    ['top_k', settings.topK, settings.topK > 0 || own.topK > 0],
    ['min_p', settings.minP, settings.minP > 0 || own.minP > 0],
    ['typical_p', settings.typicalP, settings.typicalP < 1 || own.typicalP < 1],
    ['repetition_penalty', settings.repetitionPenalty, settings.repetitionPenalty !== 1 || own.repetitionPenalty !== 1],
  ];
  return all.filter(([, , isNeeded]) => isNeeded).map(([name, value]) => [name, value]);
}

/** Returns lines of `name: value` pairs, a few in each. */
function wrapped(pairs: string[], indent: string): string {
  const lines: string[] = [];
  let now = '';
  for (const pair of pairs) {
    if (now && now.length + pair.length > 44) {
      lines.push(now);
      now = '';
    }
    now += `${now && ' '}${pair},`;
  }
  return [...lines, now].map((line) => `${indent}${line}`).join('\n');
}

function curl(request: Request): string {
  const prompt = JSON.stringify(request.prompt).replace(/'/g, "'\\''");
  const pairs = [...fields(request).map(([name, value]) => `"${name}": ${value}`), '"stream": true'];
  const key = request.needsKey ? ' \\\n  -H "Authorization: Bearer $SKALD_KEY"' : '';
  const body = wrapped(pairs, '  ').replace(/,$/, '');
  return `curl -N ${location.origin}/v1/completions${key} -d '{\n  "prompt": ${prompt},\n${body}\n}'`;
}

function python(request: Request): string {
  const known = fields(request).filter(([name]) => OPENAI.includes(name));
  const others = fields(request).filter(([name]) => !OPENAI.includes(name));
  const extra = others.map(([name, value]) => `"${name}": ${value}`).join(', ');
  const key = request.needsKey ? 'os.environ["SKALD_KEY"]' : '"none"';
  return `${request.needsKey ? 'import os\n' : ''}from openai import OpenAI

client = OpenAI(base_url="${location.origin}/v1", api_key=${key})
for event in client.completions.create(
    model="${request.model}",
    prompt=${JSON.stringify(request.prompt)},
${wrapped([...known.map(([name, value]) => `${name}=${value}`), 'stream=True'], '    ')}${
    extra && `\n    extra_body={${extra}},`
  }
):
    print(event.choices[0].text, end="", flush=True)`;
}

function javascript(request: Request): string {
  const pairs = fields(request).map(([name, value]) => `${name}: ${value}`);
  const key = request.needsKey ? '\n  headers: { authorization: `Bearer ${process.env.SKALD_KEY}` },' : '';
  return `const answer = await fetch("${location.origin}/v1/completions", {
  method: "POST",${key}
  body: JSON.stringify({
    prompt: ${JSON.stringify(request.prompt)},
${wrapped(pairs, '    ')}
  }),
});
console.log((await answer.json()).choices[0].text);`;
}

export function program(language: Language, request: Request): string {
  return { curl, python, javascript }[language](request);
}
