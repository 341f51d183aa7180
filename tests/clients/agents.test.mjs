// OpenAI's Agents SDK in its default mode (Responses) against a gateway over two workers: an agent that calls a tool and
// reads its result. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Agent, OpenAIProvider, Runner, tool } from "@openai/agents";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const runner = new Runner({ modelProvider: new OpenAIProvider({ apiKey: NK_KEY, baseURL: NK_URL + "/v1", useResponses: true }), tracingDisabled: true });

// The SDK takes a response that reaches its limit for an error, so it ends before.
const providerData = { stop: [".", " the", " of", " and"] };

/** An agent that must call its tool first; the SDK itself lets it answer freely after that (resetToolChoice). */
function agent() {
  const called = [];
  const weather = tool({ name: "get_weather", description: "The weather", strict: true,
    parameters: { type: "object", properties: { city: { type: "string", enum: ["Ur", "Tyre"] } }, required: ["city"], additionalProperties: false },
    execute: (input) => { called.push(input); return "9 degrees"; } });
  return [new Agent({ name: "Scribe", instructions: "Tell of the weather.", model: NK_MODEL, tools: [weather], modelSettings: { toolChoice: "required", maxTokens: 300, temperature: 0, providerData } }), called];
}

test("an agent runs: a tool is called, its result read", async () => {
  const [scribe, called] = agent();
  const result = await runner.run(scribe, "And God said");
  assert.ok(["Ur", "Tyre"].includes(called[0].city));
  assert.equal(typeof result.finalOutput, "string");
  assert.ok(result.lastResponseId.startsWith("resp_"));
  // The next turn follows the stored response.
  const next = await runner.run(scribe, "and?", { previousResponseId: result.lastResponseId });
  assert.equal(typeof next.finalOutput, "string");
});

test("the same, streamed", async () => {
  const [scribe, called] = agent();
  const stream = await runner.run(scribe, "And God said", { stream: true });
  let text = "";
  for await (const part of stream.toTextStream()) text += part;
  await stream.completed;
  assert.equal(called.length, 1);
  assert.equal(text, stream.finalOutput);
});
