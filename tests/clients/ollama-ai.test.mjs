// The AI SDK through ollama-ai-provider-v2 against a gateway over two workers. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import { generateObject, generateText, jsonSchema, streamText } from "ai";
import { createOllama } from "ollama-ai-provider-v2";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const ollama = createOllama({ baseURL: NK_URL + "/api", headers: { Authorization: `Bearer ${NK_KEY}` } });
const ask = { model: ollama(NK_MODEL), prompt: "And God said", maxOutputTokens: 16, maxRetries: 0, temperature: 0 };
const schema = { type: "object", properties: { city: { enum: ["Ur", "Tyre"] } }, required: ["city"], additionalProperties: false };

test("text, whole and streamed", async () => {
  const whole = await generateText(ask);
  assert.ok(whole.text);
  assert.equal(whole.finishReason, "length");
  assert.equal(whole.usage.outputTokens, 16);
  const stream = streamText({ ...ask, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const delta of stream.textStream) text += delta;
  assert.equal(text, whole.text);
  assert.equal((await stream.usage).outputTokens, 16);
});

test("an object by its schema", async () => {
  const { object } = await generateObject({ ...ask, maxOutputTokens: 60, schema: jsonSchema(schema) });
  assert.ok(["Ur", "Tyre"].includes(object.city));
});

test("a history with a call and its result", async () => {
  const { text } = await generateText({ ...ask, prompt: undefined, messages: [
    { role: "user", content: "And God said" },
    { role: "assistant", content: [{ type: "tool-call", toolCallId: "abc123def", toolName: "get_weather", input: { city: "Ur" } }] },
    { role: "tool", content: [{ type: "tool-result", toolCallId: "abc123def", toolName: "get_weather", output: { type: "text", value: "9 degrees" } }] }] });
  assert.ok(text);
});

test("a model that is not there is an error", async () => {
  await assert.rejects(generateText({ ...ask, model: ollama("nobody") }), /nobody|Not Found/i);
});
