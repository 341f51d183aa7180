// The AI SDK (`ai`) through its providers against a gateway over two workers: OpenAI's default one (Responses), OpenAI's
// chat, openai-compatible, Anthropic's. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const at = { baseURL: NK_URL + "/v1", apiKey: NK_KEY };
const openai = createOpenAI(at), anthropic = createAnthropic(at), compatible = createOpenAICompatible({ name: "nakshatra", includeUsage: true, ...at });
const models = {
  "@ai-sdk/openai, default": openai(NK_MODEL),
  "@ai-sdk/openai, chat": openai.chat(NK_MODEL),
  "@ai-sdk/openai-compatible": compatible(NK_MODEL),
  "@ai-sdk/anthropic": anthropic(NK_MODEL),
};
const schema = { type: "object", properties: { city: { enum: ["Ur", "Tyre"] } }, required: ["city"], additionalProperties: false };

for (const [name, model] of Object.entries(models)) {
  const ask = { model, prompt: "And God said", maxOutputTokens: 16, maxRetries: 0, temperature: 0 };

  test(`${name}: text, whole and streamed`, async () => {
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

  test(`${name}: a tool is called, and its result read`, async () => {
    const called = [];
    const get_weather = tool({ description: "The weather", inputSchema: jsonSchema(schema), execute: (input) => { called.push(input); return "9 degrees"; } });
    // Forced in the first step; in the second the model may only answer.
    const { steps, text } = await generateText({ ...ask, maxOutputTokens: 100, tools: { get_weather }, toolChoice: "required", stopWhen: stepCountIs(2),
      prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "none" } : {}) });
    assert.equal(steps.length, 2);
    assert.ok(["Ur", "Tyre"].includes(called[0].city));
    assert.equal(typeof text, "string");
  });

  test(`${name}: a streamed tool call`, async () => {
    const get_weather = tool({ description: "The weather", inputSchema: jsonSchema(schema) });
    const stream = streamText({ ...ask, maxOutputTokens: 100, tools: { get_weather }, toolChoice: "required", onError: ({ error }) => { throw error; } });
    const [call] = await stream.toolCalls;
    assert.ok(["Ur", "Tyre"].includes(call.input.city));
    assert.equal(await stream.finishReason, "tool-calls");
  });
}

test("an object by its schema", async () => {
  const { object } = await generateObject({ model: openai(NK_MODEL), prompt: "And God said", maxOutputTokens: 60, maxRetries: 0, schema: jsonSchema(schema) });
  assert.ok(["Ur", "Tyre"].includes(object.city));
});
