// Chromium for the tests: one browser, a fresh profile per page, and what no page of ours may ever do.
import assert from "node:assert/strict";
import { chromium } from "playwright-core";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
export const SLOW = Number(process.env.NK_SLOW ?? 1);

export const launch = () => chromium.launch({ executablePath: process.env.NK_CHROMIUM, headless: true, args: FLAGS, timeout: 60000 * SLOW });

/** Runs f with a new page at url. Afterwards: no request went to another host, nothing was written to the console but what is
 *  allowed (Chromium itself writes a line for every answer that is an error), and no script failed. */
export async function withPage(browser, url, f, { allowed = [], ready = true, ...options } = {}) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 860 }, colorScheme: "light", permissions: ["clipboard-read", "clipboard-write"], ...options });
    context.setDefaultTimeout(20000 * SLOW);
    const wrong = [], requests = [];
    const origin = new URL(url).origin;
    context.on("request", (request) => {
        requests.push(request);
        if (new URL(request.url()).origin !== origin)
            wrong.push(`a request to ${request.url()}`);
    });
    context.on("console", (message) => {
        if (!allowed.some((pattern) => pattern.test(message.text())))
            wrong.push(`console: ${message.type()}: ${message.text()}`);
    });
    context.on("weberror", (error) => wrong.push(`script: ${error.error()}`));
    try {
        const page = await context.newPage();
        await page.goto(url);
        if (ready) {
            await page.locator("#state[data-state=ready]").waitFor();
            await page.locator("#cluster-body:not([hidden])").waitFor({ state: "attached" }); // the panel is fetched after the first paint
        }
        await f(page, new Requests(requests));
        assert.deepEqual(wrong, []);
    } finally {
        await context.close();
    }
}

/** The generations that the page asked for. */
class Requests {
    constructor(all) {
        this.all = all;
    }

    get generations() {
        return this.all.filter((request) => request.method() === "POST" && /\/v1\/(chat\/)?completions$/.test(request.url()));
    }

    get last() {
        const request = this.generations.at(-1);
        return { path: new URL(request.url()).pathname, body: request.postDataJSON(), headers: request.headers() };
    }
}

/** Waits until what() is true; fails with its last value. */
export async function until(what, message, seconds = 20) {
    const end = Date.now() + seconds * 1000 * SLOW;
    for (;;) {
        const value = await what();
        if (value)
            return value;
        assert.ok(Date.now() < end, `${message}: still ${value}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
    }
}
