// The official Ollama client against a gateway over two workers. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import Ajv from "ajv";
import { Ollama } from "ollama";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const make = () => new Ollama({ host: NK_URL, headers: { Authorization: `Bearer ${NK_KEY}` } });
const client = make();
const messages = [{ role: "user", content: "And God said" }];
const options = { num_predict: 12, seed: 3 };

test("lists and shows the model", async () => {
  const { models } = await client.list();
  assert.deepEqual(models.map((m) => m.name), [`${NK_MODEL}:latest`]);
  const shown = await client.show({ model: models[0].name });
  assert.equal(shown.details.family, "llama");
  assert.ok(shown.capabilities.includes("completion"));
  assert.equal(shown.model_info["llama.block_count"], 8);
  assert.equal((await client.ps()).models[0].name, `${NK_MODEL}:latest`);
  assert.ok((await client.version()).version);
});

test("chat, whole and streamed, is the same text", async () => {
  const whole = await client.chat({ model: NK_MODEL, messages, options });
  assert.equal(whole.message.role, "assistant");
  assert.equal(whole.done_reason, "length");
  assert.equal(whole.eval_count, 12);
  assert.ok(whole.total_duration > whole.eval_duration && whole.eval_duration > 0 && whole.prompt_eval_duration > 0);
  let text = "", last;
  for await (const part of await client.chat({ model: NK_MODEL, messages, options, stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(text, whole.message.content);
  assert.ok(last.done);
  assert.equal(last.prompt_eval_count, whole.prompt_eval_count);
});

test("generate goes on from its context", async () => {
  const one = await client.generate({ model: NK_MODEL, prompt: "And God said", options });
  assert.ok(one.context.length > 12);
  let text = "";
  for await (const part of await client.generate({ model: NK_MODEL, prompt: "And then?", context: one.context, options, stream: true })) text += part.response;
  assert.ok(text.length > 0);
  const raw = await client.generate({ model: NK_MODEL, prompt: "And God said", raw: true, options });
  assert.ok(raw.prompt_eval_count < one.prompt_eval_count);
});

test("options have their effect", async () => {
  const greedy = { temperature: 0, num_predict: 20, repeat_penalty: 1 };
  const a = await client.generate({ model: NK_MODEL, prompt: "And it", raw: true, options: greedy });
  const b = await client.generate({ model: NK_MODEL, prompt: "And it", raw: true, options: { ...greedy, stop: [a.response.slice(5, 8)] } });
  assert.equal(b.response, a.response.slice(0, a.response.indexOf(a.response.slice(5, 8))));
  assert.equal(b.done_reason, "stop");
  const c = await client.generate({ model: NK_MODEL, prompt: "And it", raw: true, options: { ...greedy, temperature: 2, seed: 9 } });
  assert.notEqual(c.response, a.response);
  await client.generate({ model: NK_MODEL, prompt: "x", options: { num_gpu: 1, num_predict: 1 } }); // a hint
  await assert.rejects(client.generate({ model: NK_MODEL, prompt: "x", options: { temprature: 1 } }), /temperature/);
});

test("format: a schema, and any JSON object", async () => {
  const schema = { type: "object", properties: { n: { type: "integer", minimum: 1, maximum: 99 } }, required: ["n"], additionalProperties: false };
  const reply = await client.chat({ model: NK_MODEL, messages, format: schema, options: { num_predict: 100 } });
  assert.ok(new Ajv().compile(schema)(JSON.parse(reply.message.content)));
});

test("tools are taken where the template has them", async () => {
  const tools = [{ type: "function", function: { name: "f", description: "d", parameters: { type: "object", properties: {} } } }];
  const reply = await client.chat({ model: NK_MODEL, messages, tools, options: { num_predict: 5 } });
  assert.equal(reply.message.role, "assistant");
});

const get = (path) => fetch(NK_URL + path, { headers: { authorization: `Bearer ${NK_KEY}` } });
const running = async () => (await (await get("/cluster")).json()).gateway.running;

/** How many generations ended because their client went. */
async function cancelled() {
  const found = (await (await get("/metrics")).text()).match(/^nakshatra_generations_total\{finish="cancelled"\} (\d+)$/m);
  return found ? Number(found[1]) : 0;
}

/** Waits until what() is true; a machine may be slow, and what does not come at all is told after five minutes. */
async function until(what) {
  for (const end = Date.now() + 300_000; !await what(); await new Promise((done) => setTimeout(done, 20)))
    assert.ok(Date.now() < end, String(what));
}

test("an aborted stream throws and ends the generation", async () => {
  const before = await cancelled();
  const own = make();
  const stream = await own.generate({ model: NK_MODEL, prompt: "And", raw: true, stream: true, options: { num_predict: 8000 } });
  let n = 0;
  await assert.rejects(async () => {
    for await (const part of stream) {
      assert.ok(part);
      if (++n === 3) own.abort();
    }
  }, { name: "AbortError" });
  await until(async () => await running() === 0);
  await until(async () => await cancelled() === before + 1); // it did not end by itself
});

test("errors are sentences", async () => {
  await assert.rejects(client.chat({ model: "nobody", messages }), /nobody/);
  await assert.rejects(client.generate({ model: NK_MODEL, prompt: "x", suffix: "y" }), /suffix/);
});

test("embed, of an embedding model and of one that is none", async () => {
  const embedder = new Ollama({ host: process.env.NK_EMBED_URL });
  const { models } = await embedder.list();
  assert.deepEqual((await embedder.show({ model: models[0].name })).capabilities, ["embedding"]);
  const { embeddings, prompt_eval_count } = await embedder.embed({ model: models[0].name, input: ["the king said", "let there be light"] });
  assert.deepEqual(embeddings.map((v) => v.length), [64, 64]);
  assert.equal(prompt_eval_count, 11);
  const one = await embedder.embeddings({ model: models[0].name, prompt: "the king said" });
  const length = Math.hypot(...one.embedding);
  one.embedding.forEach((x, i) => assert.ok(Math.abs(x / length - embeddings[0][i]) < 1e-5));
  await assert.rejects(client.embed({ model: NK_MODEL, input: "a" }), /not embeddings/);
});
