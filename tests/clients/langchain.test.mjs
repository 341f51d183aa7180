// LangChain's ChatOpenAI and ChatOllama against a gateway over two workers. tests/system/test_clients.py starts them and this.
import assert from "node:assert/strict";
import { test } from "node:test";

import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOllama } from "@langchain/ollama";
import { ChatOpenAI, OpenAI } from "@langchain/openai";
import * as z from "zod";

const { NK_URL, NK_MODEL, NK_KEY } = process.env;
const configuration = { baseURL: NK_URL + "/v1" };
const openai = (more) => new ChatOpenAI({ model: NK_MODEL, apiKey: NK_KEY, configuration, temperature: 0, maxTokens: 16, maxRetries: 0, ...more });
const ollama = (more) => new ChatOllama({ model: NK_MODEL, baseUrl: NK_URL, headers: { Authorization: `Bearer ${NK_KEY}` }, temperature: 0, numPredict: 16, maxRetries: 0, ...more });
const makers = { "@langchain/openai, chat": openai, "@langchain/openai, responses": (more) => openai({ useResponsesApi: true, ...more }), "@langchain/ollama": ollama };
const said = (message) => (typeof message.content === "string" ? message.content : message.content.map((part) => part.text ?? "").join(""));
const messages = [new SystemMessage("Be brief"), new HumanMessage("And God said")];
const cities = z.object({ city: z.enum(["Ur", "Tyre"]) });

for (const [name, make] of Object.entries(makers)) {
  test(`${name}: whole and streamed are the same text`, async () => {
    const whole = await make().invoke(messages);
    assert.ok(said(whole));
    assert.equal(whole.usage_metadata.output_tokens, 16);
    let text = "";
    for await (const chunk of await make().stream(messages)) text += said(chunk);
    assert.equal(text, said(whole));
  });

  test(`${name}: an object by its schema`, async () => {
    const answer = await make({ maxTokens: 60, numPredict: 60 }).withStructuredOutput(cities, name.includes("ollama") ? { method: "jsonSchema" } : {}).invoke(messages);
    assert.ok(["Ur", "Tyre"].includes(answer.city), JSON.stringify(answer));
  });
}

for (const name of Object.keys(makers).slice(0, 2)) {
  test(`${name}: a tool is called, and its result read`, async () => {
    const weather = tool(async () => "9 degrees", { name: "get_weather", description: "The weather", schema: cities });
    const model = makers[name]({ maxTokens: 100 });
    // By its name: with Responses LangChain drops "required".
    const answer = await model.bindTools([weather], { tool_choice: "get_weather" }).invoke(messages);
    const [call] = answer.tool_calls;
    assert.equal(call.name, "get_weather");
    assert.ok(["Ur", "Tyre"].includes(call.args.city));
    const result = await weather.invoke(call);
    assert.ok(result instanceof ToolMessage);
    const last = await model.bindTools([weather], { tool_choice: "none" }).invoke([...messages, answer, result]);
    assert.ok(said(last));
    assert.ok(!last.tool_calls?.length);
  });
}

test("@langchain/openai, completions: whole and streamed are the same text", async () => {
  const model = new OpenAI({ model: NK_MODEL, apiKey: NK_KEY, configuration, temperature: 0, maxTokens: 8, maxRetries: 0 });
  const whole = await model.invoke("And it came to pass");
  let text = "";
  for await (const piece of await model.stream("And it came to pass")) text += piece;
  assert.ok(whole);
  assert.equal(text, whole);
});

test("@langchain/ollama: a model that is not there is an error with its name", async () => {
  await assert.rejects(ollama({ model: "nobody" }).invoke(messages), /nobody/);
});
