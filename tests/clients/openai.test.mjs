// The official OpenAI SDK against a gateway over two workers. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import Ajv from "ajv";
import OpenAI from "openai";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const client = new OpenAI({ baseURL: NK_URL + "/v1", apiKey: NK_KEY, maxRetries: 0, timeout: 900_000 });
const messages = [{ role: "user", content: "And God said" }];
const chat = (more) => client.chat.completions.create({ model: NK_MODEL, messages, max_tokens: 16, ...more });
const completion = (more) => client.completions.create({ model: NK_MODEL, prompt: "And it came to pass", max_tokens: 16, ...more });
const odd = "one\ntwo \u00e9\u4e2d\u6587 \u{1F600}\u{1F468}\u200D\u{1F469}";
const grammar = (text) => `root ::= ${JSON.stringify(text)}`;

const tools = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string", maxLength: 8 }, unit: { enum: ["C", "F"] } },
      required: ["city", "unit"],
      additionalProperties: false,
    },
  },
}];
const ajv = new Ajv();

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

test("lists the model", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, [NK_MODEL]);
  assert.equal((await client.models.retrieve(NK_MODEL)).id, NK_MODEL);
});

test("chat, whole and streamed, is the same text", async () => {
  const { data: whole, response } = await chat({ seed: 5, temperature: 1, cache_prompt: false }).withResponse();
  assert.equal(whole.choices[0].message.role, "assistant");
  assert.equal(whole.usage.completion_tokens, 16);
  assert.equal(response.headers.get("content-type"), "application/json");
  let text = "", usage = null, finish = null;
  for await (const chunk of await chat({ seed: 5, temperature: 1, cache_prompt: false, stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
    usage = chunk.usage ?? usage;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(finish, whole.choices[0].finish_reason);
  assert.deepEqual({ ...usage, prompt_tokens_details: 0 }, { ...whole.usage, prompt_tokens_details: 0 });
});

test("the SDK's own stream helper puts the chunks together", async () => {
  const stream = client.chat.completions.stream({ model: NK_MODEL, messages, max_tokens: 100, grammar: grammar(odd) });
  let deltas = "";
  stream.on("content", (delta) => { deltas += delta; });
  assert.equal(await stream.finalContent(), odd);
  assert.equal(deltas, odd);
  assert.equal((await stream.finalChatCompletion()).choices[0].finish_reason, "stop");
});

test("completion, whole and streamed", async () => {
  const whole = await completion({ temperature: 0 });
  let text = "";
  for await (const chunk of await completion({ temperature: 0, stream: true })) text += chunk.choices[0].text;
  assert.equal(text, whole.choices[0].text);
  assert.equal(whole.choices[0].finish_reason, "length");
});

test("stop strings", async () => {
  const whole = (await completion({ temperature: 0, max_tokens: 40 })).choices[0].text;
  const stop = whole.slice(9, 13);
  const reply = (await completion({ temperature: 0, max_tokens: 40, stop })).choices[0];
  assert.equal(reply.text, whole.slice(0, whole.indexOf(stop)));
  assert.equal(reply.finish_reason, "stop");
  let text = "";
  for await (const chunk of await completion({ temperature: 0, max_tokens: 40, stop: [stop], stream: true })) text += chunk.choices[0].text;
  assert.equal(text, reply.text);
});

test("two choices, each its own", async () => {
  const reply = await chat({ n: 2, temperature: 1.5, seed: 1 });
  assert.deepEqual(reply.choices.map((c) => c.index), [0, 1]);
  assert.notEqual(reply.choices[0].message.content, reply.choices[1].message.content);
  const texts = ["", ""];
  for await (const chunk of await chat({ n: 2, temperature: 1.5, seed: 1, stream: true }))
    for (const c of chunk.choices) texts[c.index] += c.delta.content ?? "";
  assert.ok(texts[0] && texts[1]);
  assert.equal(reply.usage.completion_tokens, 32);
});

test("the same seed gives the same text", async () => {
  const body = { seed: 42, temperature: 1, max_tokens: 32 };
  const [a, b] = [await chat(body), await chat(body)];
  assert.equal(a.choices[0].message.content, b.choices[0].message.content);
  assert.equal(a.system_fingerprint, b.system_fingerprint);
  const c = await chat({ ...body, seed: 43 });
  assert.notEqual(a.choices[0].message.content, c.choices[0].message.content);
});

test("log-probabilities", async () => {
  const { choices: [choice] } = await chat({ logprobs: true, top_logprobs: 2, temperature: 0 });
  assert.equal(choice.logprobs.content.length, 16);
  for (const entry of choice.logprobs.content) {
    assert.equal(entry.top_logprobs.length, 2);
    assert.ok(entry.logprob <= 0 && entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob);
  }
  const bytes = choice.logprobs.content.flatMap((e) => e.bytes);
  assert.equal(Buffer.from(bytes).toString(), choice.message.content);
});

test("an answer by a JSON schema parses and validates", async () => {
  const schema = {
    type: "object",
    properties: {
      name: { type: "string", minLength: 1, maxLength: 10 },
      age: { type: "integer", minimum: 0, maximum: 150 },
      tags: { type: "array", items: { enum: ["a", "b"] }, minItems: 1, maxItems: 3 },
    },
    required: ["name", "age", "tags"],
    additionalProperties: false,
  };
  const validate = ajv.compile(schema);
  for (const seed of [1, 2, 3]) {
    const reply = await chat({ seed, max_tokens: 200, response_format: { type: "json_schema", json_schema: { name: "person", schema, strict: true } } });
    assert.equal(reply.choices[0].finish_reason, "stop");
    assert.ok(validate(JSON.parse(reply.choices[0].message.content)), ajv.errorsText(validate.errors));
  }
});

test("schemas of many kinds are kept to", async () => {
  const place = { type: "object", properties: { x: { type: "integer", minimum: -9, maximum: 9 }, y: { $ref: "#/$defs/y" } }, required: ["x", "y"], additionalProperties: false };
  const schemas = [
    { type: "object", properties: { a: { type: "boolean" }, b: { type: ["string", "null"], maxLength: 5 }, c: { const: "x \u4e2d" } }, required: ["a", "b", "c"], additionalProperties: false },
    { type: "array", minItems: 2, maxItems: 3, items: { type: "object", properties: { id: { type: "integer", minimum: 3, maximum: 120 }, kind: { enum: ["a", "b", 3, null] } }, required: ["id", "kind"], additionalProperties: false } },
    { $defs: { place, y: { enum: [1, 2] } }, type: "object", properties: { from: { $ref: "#/$defs/place" }, to: { $ref: "#/$defs/place" } }, required: ["from", "to"], additionalProperties: false },
    { anyOf: [{ type: "string", pattern: "^[A-Z]{2}-[0-9]{3}$" }, { type: "integer", minimum: 0, maximum: 9 }] },
    { oneOf: [{ type: "object", properties: { t: { const: "n" }, v: { type: "integer", minimum: 0, maximum: 99 } }, required: ["t", "v"], additionalProperties: false },
              { type: "object", properties: { t: { const: "s" }, v: { type: "string", minLength: 2, maxLength: 4 } }, required: ["t", "v"], additionalProperties: false }] },
    { type: "object", properties: { a: { type: "string", maxLength: 3 }, b: { type: "boolean" } }, required: ["b"], additionalProperties: false },
  ];
  for (const schema of schemas) {
    const validate = new Ajv({ strict: false }).compile(schema);
    for (const seed of [1, 2]) {
      const form = { type: "json_schema", json_schema: { name: "s", schema, strict: true } };
      const { choices: [choice] } = await chat({ seed, temperature: 1.5, max_tokens: 400, response_format: form });
      assert.equal(choice.finish_reason, "stop", JSON.stringify(schema));
      assert.ok(validate(JSON.parse(choice.message.content)), choice.message.content + JSON.stringify(schema) + JSON.stringify(validate.errors));
    }
  }
});

test("a tool call and its answer", async () => {
  const reply = await chat({ tools, tool_choice: "required", max_tokens: 120, seed: 2 });
  const { message, finish_reason } = reply.choices[0];
  assert.equal(finish_reason, "tool_calls");
  const [call] = message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  const validate = ajv.compile(tools[0].function.parameters);
  assert.ok(validate(JSON.parse(call.function.arguments)), ajv.errorsText(validate.errors));
  const answer = await chat({ tools, messages: [...messages, message, { role: "tool", tool_call_id: call.id, content: "9 degrees" }] });
  assert.equal(answer.choices[0].message.role, "assistant");

  const stream = client.chat.completions.stream({ model: NK_MODEL, messages, tools, tool_choice: { type: "function", function: { name: "get_weather" } }, max_tokens: 120, seed: 2 });
  const { choices: [streamed] } = await stream.finalChatCompletion();
  assert.equal(streamed.finish_reason, "tool_calls");
  assert.ok(validate(JSON.parse(streamed.message.tool_calls[0].function.arguments)));
});

test("reasoning is apart from the answer", async () => {
  const { choices: [{ message }] } = await chat({ max_tokens: 100, grammar: grammar("<think>\nwell \u4e2d\n</think>\n\nyes") });
  assert.equal(message.reasoning_content, "well \u4e2d");
  assert.equal(message.content, "yes");
});

test("an aborted stream ends the generation", async () => {
  const before = await cancelled();
  const stream = await completion({ max_tokens: 8000, ignore_eos: true, stream: true });
  let n = 0;
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    if (++n === 5) break; // the SDK aborts the request
  }
  await until(async () => await running() === 0);
  await until(async () => await cancelled() === before + 1); // it did not end by itself
  const controller = new AbortController();
  const waiting = client.completions.create({ model: NK_MODEL, prompt: "x", max_tokens: 8000, ignore_eos: true }, { signal: controller.signal });
  const rejected = assert.rejects(waiting, OpenAI.APIUserAbortError);
  await until(async () => await running() === 1);
  controller.abort();
  await rejected;
  await until(async () => await running() === 0);
  await until(async () => await cancelled() === before + 2);
});

test("errors are the SDK's own", async () => {
  await assert.rejects(chat({ model: "nobody" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found" && e.param === "model");
  const stranger = new OpenAI({ baseURL: NK_URL + "/v1", apiKey: "wrong-key", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), (e) => e instanceof OpenAI.AuthenticationError && e.code === "invalid_api_key");
  await assert.rejects(completion({ prompt: "And it came to pass ".repeat(3000) }), (e) => e instanceof OpenAI.BadRequestError && e.code === "context_length_exceeded");
  await assert.rejects(chat({ functions: [] }), (e) => e instanceof OpenAI.BadRequestError && e.param === "functions");
  await assert.rejects(chat({ temperature: 1000 }), OpenAI.BadRequestError);
  await assert.rejects(chat({ stream: true, grammar: "root ::= (" }), (e) => e instanceof OpenAI.BadRequestError && e.code === "bad_grammar");
});

test("32 requests at one time", async () => {
  const replies = await Promise.all(Array.from({ length: 32 }, async (_, i) => {
    if (i % 2) return (await completion({ prompt: `${i} And`, seed: i })).usage.completion_tokens;
    let n = 0;
    for await (const chunk of await chat({ seed: i, stream: true, stream_options: { include_usage: true } })) n = chunk.usage?.completion_tokens ?? n;
    return n;
  }));
  assert.deepEqual(replies, Array(32).fill(16));
});

test("embeddings, of an embedding model and of one that is none", async () => {
  const embedder = new OpenAI({ baseURL: process.env.NK_EMBED_URL + "/v1", apiKey: "none", maxRetries: 0, timeout: 900_000 });
  const input = ["the king said", "let there be light"];
  const packed = await embedder.embeddings.create({ model: "small.gguf", input }); // the SDK asks for base64
  const plain = await embedder.embeddings.create({ model: "small.gguf", input, encoding_format: "float", dimensions: 64 });
  assert.deepEqual(packed.data.map((d) => d.index), [0, 1]);
  for (const [i, { embedding }] of packed.data.entries()) {
    assert.equal(embedding.length, 64);
    assert.deepEqual(Array.from(embedding, Math.fround), plain.data[i].embedding.map(Math.fround));
    assert.ok(Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-5);
  }
  assert.deepEqual(plain.usage, { prompt_tokens: 11, total_tokens: 11 });
  await assert.rejects(embedder.embeddings.create({ model: "small.gguf", input, dimensions: 8 }), (e) => e.status === 400 && e.param === "dimensions");
  await assert.rejects(embedder.chat.completions.create({ model: "small.gguf", messages }), (e) => e.status === 400 && /generates no text/.test(e.message));
  await assert.rejects(client.embeddings.create({ model: NK_MODEL, input }), (e) => e.status === 400 && /not embeddings/.test(e.message));
});
