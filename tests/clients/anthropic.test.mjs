// The official Anthropic SDK against a gateway over two workers. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const client = new Anthropic({ baseURL: NK_URL, apiKey: NK_KEY, maxRetries: 0, timeout: 900_000 });
const messages = [{ role: "user", content: "And God said" }];
const ask = (more) => client.messages.create({ model: NK_MODEL, messages, max_tokens: 16, ...more });
const grammar = (text) => `root ::= ${JSON.stringify(text)}`;
const thought = grammar("<think>\nwell \u4e2d\n</think>\n\nyes \u{1F600}");
const tools = [{
  name: "get_weather",
  description: "The weather in a city",
  input_schema: {
    type: "object",
    properties: { city: { enum: ["Ur", "Tyre"] }, unit: { enum: ["C", "F"] } },
    required: ["city", "unit"],
    additionalProperties: false,
  },
}];

test("a message, whole and streamed, is the same", async () => {
  const whole = await ask({ seed: 5, temperature: 1, system: [{ type: "text", text: "Be brief.", cache_control: { type: "ephemeral" } }] });
  assert.equal(whole.type, "message");
  assert.equal(whole.stop_reason, "max_tokens");
  assert.equal(whole.usage.output_tokens, 16);
  const stream = client.messages.stream({ model: NK_MODEL, messages, max_tokens: 16, seed: 5, temperature: 1, system: "Be brief." });
  let deltas = "";
  stream.on("text", (delta) => { deltas += delta; });
  const streamed = await stream.finalMessage();
  assert.deepEqual(streamed.content, whole.content);
  assert.equal(deltas, whole.content[0].text);
  assert.equal(streamed.stop_reason, "max_tokens");
  assert.equal(streamed.usage.output_tokens, 16);
  // The second one began from the first one's KV, and says how much of it.
  const all = (u) => u.input_tokens + u.cache_read_input_tokens;
  assert.equal(all(streamed.usage), all(whole.usage));
  assert.ok(streamed.usage.cache_read_input_tokens > 0);
});

test("tokens are counted as they are used", async () => {
  const ask_for = { model: NK_MODEL, system: "Be brief.", tools, messages: [{ role: "user", content: "And it came to pass" }] };
  const { input_tokens } = await client.messages.countTokens({ ...ask_for, stream: true }); // which changes nothing
  const { usage } = await client.messages.create({ ...ask_for, max_tokens: 1 });
  assert.equal(usage.input_tokens + usage.cache_read_input_tokens, input_tokens);
});

test("stop sequences are named", async () => {
  const whole = (await ask({ temperature: 0, max_tokens: 40 })).content[0].text;
  const stop = whole.slice(9, 13);
  const reply = await ask({ temperature: 0, max_tokens: 40, stop_sequences: ["\u{1F600}", stop] });
  assert.equal(reply.stop_reason, "stop_sequence");
  assert.equal(reply.stop_sequence, stop);
  assert.equal(reply.content[0].text, whole.slice(0, whole.indexOf(stop)));
});

test("thinking is a block of its own, and may come back", async () => {
  const reply = await ask({ max_tokens: 100, grammar: thought, thinking: { type: "enabled", budget_tokens: 1024 } });
  assert.deepEqual(reply.content.map((b) => b.type), ["thinking", "text"]);
  assert.equal(reply.content[0].thinking, "well \u4e2d");
  assert.ok(reply.content[0].signature);
  assert.equal(reply.content[1].text, "yes \u{1F600}");
  const streamed = await client.messages.stream({ model: NK_MODEL, messages, max_tokens: 100, grammar: thought }).finalMessage();
  assert.deepEqual(streamed.content, reply.content);
  const next = await ask({ messages: [...messages, { role: "assistant", content: reply.content }, { role: "user", content: "and?" }] });
  assert.equal(next.role, "assistant");
});

test("a tool call and its result", async () => {
  const reply = await ask({ tools, tool_choice: { type: "any" }, max_tokens: 120, seed: 2 });
  assert.equal(reply.stop_reason, "tool_use");
  const call = reply.content.find((b) => b.type === "tool_use");
  assert.equal(call.name, "get_weather");
  assert.ok(["Ur", "Tyre"].includes(call.input.city) && ["C", "F"].includes(call.input.unit));
  const result = { type: "tool_result", tool_use_id: call.id, content: [{ type: "text", text: "9 degrees" }] };
  const next = await ask({ tools, messages: [...messages, { role: "assistant", content: reply.content }, { role: "user", content: [result] }] });
  assert.equal(next.role, "assistant");

  const parts = [];
  const stream = client.messages.stream({ model: NK_MODEL, messages, tools, tool_choice: { type: "tool", name: "get_weather" }, max_tokens: 120, seed: 2 });
  stream.on("inputJson", (part) => parts.push(part));
  const streamed = await stream.finalMessage();
  assert.equal(streamed.stop_reason, "tool_use");
  assert.deepEqual(JSON.parse(parts.join("")), streamed.content.find((b) => b.type === "tool_use").input);
});

test("the SDK's tool loop runs", async () => {
  const called = [];
  const weather = betaTool({ name: "get_weather", description: "The weather", inputSchema: tools[0].input_schema,
    run: (input) => { called.push(input); return "9 degrees"; } });
  // The model is made to call each time, so the loop has a limit.
  const runner = client.beta.messages.toolRunner({ model: NK_MODEL, messages, max_tokens: 120, max_iterations: 2, tools: [weather], tool_choice: { type: "any" }, seed: 2 });
  const replies = [];
  for await (const message of runner) replies.push(message);
  assert.deepEqual(replies.map((m) => m.stop_reason), ["tool_use", "tool_use"]);
  assert.ok(called.length >= 1);
  assert.ok(["C", "F"].includes(called[0].unit));
});

test("an answer by a schema", async () => {
  const format = { type: "json_schema", schema: { type: "object", properties: { n: { enum: [1, 2] } }, required: ["n"], additionalProperties: false } };
  const reply = await ask({ max_tokens: 60, output_config: { format } });
  assert.ok([1, 2].includes(JSON.parse(reply.content[0].text).n));
});

test("errors are the SDK's own", async () => {
  await assert.rejects(ask({ model: "nobody" }), (e) => e instanceof Anthropic.NotFoundError && e.error.error.type === "not_found_error");
  const stranger = new Anthropic({ baseURL: NK_URL, apiKey: "wrong-key", maxRetries: 0 });
  await assert.rejects(stranger.messages.create({ model: NK_MODEL, messages, max_tokens: 1 }), Anthropic.AuthenticationError);
  const image = { type: "image", source: { type: "base64", media_type: "image/png", data: "aaaa" } };
  await assert.rejects(ask({ messages: [{ role: "user", content: [image] }] }),
    (e) => e instanceof Anthropic.BadRequestError && e.error.error.message.includes("messages[0].content[0].type"));
  await assert.rejects(ask({ messages: [{ role: "user", content: "And it came to pass ".repeat(3000) }] }), Anthropic.BadRequestError);
  await assert.rejects(ask({ stream: true, grammar: "root ::= (" }), Anthropic.BadRequestError);
});
