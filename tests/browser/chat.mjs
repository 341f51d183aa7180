// What tests do with the page's chat, and what they look at.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const LONG = "30000"; // tokens: far longer than any test waits

export async function set(page, values) {
    await page.click("#settings-button");
    for (const [name, value] of Object.entries(values)) {
        await page.locator(`#set-${name}`).evaluate((node) => { (node.closest("details") ?? {}).open = true; });
        await page.fill(`#set-${name}`, value);
    }
    await page.click("#settings .primary");
    await page.locator("#settings").waitFor({ state: "hidden" });
}

export async function ask(page, text) {
    await page.fill("#prompt", text);
    await page.click("#send");
}

export const answered = (page) => page.locator(".turn:last-child .answered:not(.writing) .stats").filter({ hasText: "token" }).waitFor();
export const shown = (page) => page.locator(".answered > .text").last().textContent();
export const squeeze = (text) => text.replace(/\s+/g, " ").trim();
export const isStop = (page) => page.locator("#send.stop").waitFor();
export const isSend = (page) => page.locator("#send:not(.stop)").waitFor();

/** Adds to the body of every generation: what a model writes is then known, and it is still the model that writes it. */
export const addToRequests = (page, more) => page.route(/\/v1\/(chat\/)?completions$/, (route) =>
    route.continue({ postData: JSON.stringify({ ...route.request().postDataJSON(), ...more }) }));
/** Answers last until they are stopped: a model may end one at any time by itself. */
export async function long(page) {
    await addToRequests(page, { ignore_eos: true });
    await set(page, { max_tokens: LONG });
}
export const only = (text) => ({ grammar: `root ::= ${JSON.stringify(text)}` });

export async function noAxeViolations(page, what) {
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
    assert.deepEqual(violations.map((v) => `${what}: ${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")}`), []);
}
