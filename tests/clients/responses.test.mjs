// OpenAI's SDK and its responses against a gateway over two workers. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const client = new OpenAI({ baseURL: NK_URL + "/v1", apiKey: NK_KEY, maxRetries: 0, timeout: 900_000 });
const ask = (more) => client.responses.create({ model: NK_MODEL, input: "And God said", max_output_tokens: 16, ...more });
const grammar = (text) => `root ::= ${JSON.stringify(text)}`;
const thought = { max_output_tokens: 100, grammar: grammar("<think>\nwell \u4e2d\n</think>\n\nyes \u{1F600}") };
const tools = [{
  type: "function",
  name: "get_weather",
  description: "The weather in a city",
  parameters: { type: "object", properties: { city: { enum: ["Ur", "Tyre"] }, unit: { enum: ["C", "F"] } }, required: ["city", "unit"], additionalProperties: false },
  strict: true,
}];

/** All events of a stream; their numbers must have no gap. */
async function events(more) {
  const list = [];
  for await (const event of await ask({ ...more, stream: true })) list.push(event);
  assert.deepEqual(list.map((e) => e.sequence_number), list.map((_, i) => i));
  return list;
}

test("a response, whole and streamed, is the same", async () => {
  const whole = await ask({ seed: 5, temperature: 1, instructions: "Be brief.", metadata: { a: "b" } });
  assert.equal(whole.status, "incomplete");
  assert.equal(whole.incomplete_details.reason, "max_output_tokens");
  assert.equal(whole.usage.output_tokens, 16);
  assert.equal(whole.instructions, "Be brief.");
  assert.deepEqual(whole.metadata, { a: "b" });
  const list = await events({ seed: 5, temperature: 1, instructions: "Be brief." });
  const last = list.at(-1);
  assert.equal(last.type, "response.incomplete");
  assert.equal(list.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join(""), whole.output_text);
  assert.equal(last.response.output[0].content[0].text, whole.output_text);
  assert.ok(last.response.usage.input_tokens_details.cached_tokens > 0);
  assert.deepEqual([...new Set(list.map((e) => e.type))], ["response.created", "response.in_progress", "response.output_item.added",
    "response.content_part.added", "response.output_text.delta", "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.incomplete"]);
});

test("the SDK's own stream helper puts the events together", async () => {
  const stream = client.responses.stream({ model: NK_MODEL, input: "And God said", max_output_tokens: 100, grammar: grammar("one\ntwo \u{1F600}") });
  let deltas = "";
  stream.on("response.output_text.delta", (event) => { deltas += event.delta; });
  const response = await stream.finalResponse();
  assert.equal(response.status, "completed");
  assert.equal(response.output_text, "one\ntwo \u{1F600}");
  assert.equal(deltas, response.output_text);
});

test("reasoning is an item of its own: as text, as a summary, and to be sent back", async () => {
  const plain = await ask(thought);
  assert.deepEqual(plain.output.map((o) => o.type), ["reasoning", "message"]);
  assert.equal(plain.output[0].content[0].text, "well \u4e2d");
  assert.equal(plain.output_text, "yes \u{1F600}");
  assert.ok(plain.usage.output_tokens_details.reasoning_tokens > 0);
  const list = await events({ ...thought, reasoning: { summary: "auto", effort: "medium" } });
  assert.equal(list.filter((e) => e.type === "response.reasoning_summary_text.delta").map((e) => e.delta).join(""), "well \u4e2d");
  assert.equal(list.at(-1).response.output[0].summary[0].text, "well \u4e2d");
  const stateless = await ask({ ...thought, store: false, include: ["reasoning.encrypted_content"] });
  assert.ok(stateless.output[0].encrypted_content);
  const next = await ask({ store: false, input: [{ role: "user", content: "And God said" }, ...stateless.output, { role: "user", content: "and?" }] });
  assert.equal(next.object, "response");
});

test("a tool call and its result, by previous_response_id and by items", async () => {
  const list = await events({ tools, tool_choice: "required", max_output_tokens: 120, seed: 2 });
  const response = list.at(-1).response;
  assert.equal(response.status, "completed");
  const call = response.output.find((o) => o.type === "function_call");
  assert.equal(list.filter((e) => e.type === "response.function_call_arguments.delta").map((e) => e.delta).join(""), call.arguments);
  assert.ok(["C", "F"].includes(JSON.parse(call.arguments).unit));
  const result = { type: "function_call_output", call_id: call.call_id, output: "9 degrees" };
  const next = await ask({ tools, previous_response_id: response.id, input: [result] });
  assert.equal(next.previous_response_id, response.id);
  // The same chat, said in full, and by reference to the stored item.
  const full = await ask({ tools, store: false, input: [{ role: "user", content: "And God said" }, ...response.output, result] });
  const by_reference = await ask({ tools, store: false, input: [{ role: "user", content: "And God said" }, { type: "item_reference", id: call.id }, result] });
  assert.equal(full.usage.input_tokens, next.usage.input_tokens);
  assert.equal(by_reference.usage.input_tokens, next.usage.input_tokens);
  const named = await ask({ tools, tool_choice: { type: "function", name: "get_weather" }, max_output_tokens: 120 });
  assert.equal(named.output.at(-1).type, "function_call");
});

test("responses are kept, listed, deleted", async () => {
  const first = await ask({ input: [{ role: "user", content: [{ type: "input_text", text: "And God said" }] }] });
  const again = await client.responses.retrieve(first.id);
  assert.deepEqual(again.output, first.output);
  const items = [];
  for await (const item of client.responses.inputItems.list(first.id)) items.push(item);
  assert.equal(items[0].content[0].text, "And God said");
  const second = await ask({ previous_response_id: first.id, input: "and?" });
  await client.responses.delete(first.id);
  await assert.rejects(client.responses.retrieve(first.id), OpenAI.NotFoundError);
  // What followed it goes on.
  const third = await ask({ previous_response_id: second.id, input: "and?" });
  assert.ok(third.usage.input_tokens > second.usage.input_tokens);
  const unstored = await ask({ store: false });
  await assert.rejects(client.responses.retrieve(unstored.id), OpenAI.NotFoundError);
  await assert.rejects(ask({ previous_response_id: unstored.id }), (e) => e instanceof OpenAI.NotFoundError && e.param === "previous_response_id");
});

test("one that is being computed is there, and can be cancelled", async () => {
  const stream = await ask({ max_output_tokens: 8000, ignore_eos: true, stream: true });
  let id = null, last = null;
  for await (const event of stream) {
    if (!id) {
      id = event.response.id;
      assert.equal((await client.responses.retrieve(id)).status, "in_progress");
      assert.equal((await client.responses.cancel(id)).status, "cancelled");
    }
    last = event;
  }
  assert.equal(last.type, "response.failed");
  assert.equal(last.response.status, "cancelled");
  assert.equal((await client.responses.retrieve(id)).status, "cancelled");
  await assert.rejects(client.responses.cancel(id), OpenAI.BadRequestError);
});

test("an answer by a schema, and log-probabilities", async () => {
  const schema = { type: "object", properties: { n: { enum: [1, 2] } }, required: ["n"], additionalProperties: false };
  const reply = await ask({ max_output_tokens: 60, text: { format: { type: "json_schema", name: "n", schema, strict: true } } });
  assert.ok([1, 2].includes(JSON.parse(reply.output_text).n));
  const { output: [message] } = await ask({ include: ["message.output_text.logprobs"], top_logprobs: 2, temperature: 0 });
  assert.equal(message.content[0].logprobs.length, 16);
  assert.equal(message.content[0].logprobs[0].top_logprobs.length, 2);
});

test("errors are the SDK's own", async () => {
  await assert.rejects(ask({ model: "nobody" }), OpenAI.NotFoundError);
  await assert.rejects(ask({ tools: [{ type: "web_search" }] }), (e) => e instanceof OpenAI.BadRequestError && e.param === "tools[0].type");
  await assert.rejects(ask({ input: [{ role: "user", content: [{ type: "input_image", image_url: "x" }] }] }),
    (e) => e instanceof OpenAI.BadRequestError && e.param === "input[0].content[0].type");
  await assert.rejects(ask({ background: true }), OpenAI.BadRequestError);
  await assert.rejects(ask({ input: "And it came to pass ".repeat(3000) }), (e) => e.code === "context_length_exceeded");
});
