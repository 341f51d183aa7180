// The page at / in Chromium, over a real gateway and real workers. tests/system/test_browser.py starts them and says where they
// are: NK_CHAT (a template), NK_PLAIN (none), NK_KEYED (a key is needed), NK_SMALL (one generation at a time, none waits), NK_GOING
// (a gateway that may be ended) and NK_CONTROL (POST /kill, /start: the second worker; /end: the gateway NK_GOING).
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { launch, until, withPage } from "./browser.mjs";
import { LONG, addToRequests, answered, ask, isSend, isStop, long, noAxeViolations, only, set, shown, squeeze } from "./chat.mjs";

const { NK_CHAT: CHAT, NK_PLAIN: PLAIN, NK_KEYED: KEYED, NK_SMALL: SMALL, NK_GOING: GOING, NK_CONTROL: CONTROL, NK_KEY: KEY } = process.env;

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

const control = async (what) => assert.equal((await fetch(`${CONTROL}/${what}`, { method: "POST" })).status, 200);
const cluster = async (url) => (await fetch(`${url}/cluster`)).json();
const idle = (url) => until(async () => (await cluster(url)).gateway.running === 0, "generations run");

/** What the API answers to the request that the page sent, asked for without a stream. */
async function again(url, { path, body }) {
    const { stream, stream_options: _, return_progress: __, ...rest } = body;
    assert.equal(stream, true);
    const reply = await fetch(url + path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(rest) });
    assert.equal(reply.status, 200);
    return reply.json();
}

// ---- the chat ----

test("a chat is shown as the API answers it, with its figures", () => withPage(browser, CHAT, async (page, requests) => {
    await set(page, { seed: "7", temperature: "0.7", max_tokens: "40" });
    await ask(page, "And God said");
    await answered(page);
    const reply = await again(CHAT, requests.last), text = reply.choices[0].message.content;
    assert.equal(squeeze(await shown(page)), squeeze(text));
    await page.getByRole("button", { name: "Copy answer" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), text);
    assert.match(await page.locator(".stats").textContent(), /^40 tokens · [\d.]+ tokens\/s · first token after [\d.]+ m?s · prompt \d+ · cut off/);

    await ask(page, "And then?");
    await answered(page);
    assert.deepEqual(requests.last.body.messages, [
        { role: "user", content: "And God said" }, { role: "assistant", content: text }, { role: "user", content: "And then?" }]);

    await page.reload(); // the conversation outlives it
    await page.locator(".turn").nth(1).waitFor();
    assert.equal(await page.locator(".turn").count(), 2);
    await page.click("#new-chat");
    assert.equal(await page.locator(".turn").count(), 0);
    assert.ok(await page.locator("#empty").isVisible());
}));

test("stop ends the answer and the generation, by button and by Escape", () => withPage(browser, CHAT, async (page) => {
    await long(page);
    for (const stop of [() => page.click("#send"), () => page.keyboard.press("Escape")]) {
        await ask(page, "In the beginning");
        await isStop(page);
        await until(async () => (await shown(page)).length > 20, "nothing is written");
        await stop();
        await isSend(page);
        const text = await shown(page);
        assert.match(await page.locator(".stats").last().textContent(), /^stopped · about [\d,]+ tokens? in/);
        assert.ok(text.length > 20);
        await idle(CHAT);
        assert.equal(await shown(page), text);
        assert.equal(await page.locator(".problem:visible").count(), 0);
    }
}));

test("regenerate asks the same again; edit makes another version, and delete deletes the one that is shown", () => withPage(browser, CHAT, async (page, requests) => {
    await set(page, { seed: "3", max_tokens: "12" });
    await ask(page, "And it came to pass");
    await answered(page);
    const text = await shown(page), first = requests.last;
    await page.getByRole("button", { name: "Regenerate answer" }).click();
    await until(() => requests.generations.length === 2, "it is not asked again");
    await isSend(page);
    assert.deepEqual(requests.last.body, first.body);
    assert.equal(await shown(page), text); // the seed is the same
    await set(page, { seed: "4" });
    await page.getByRole("button", { name: "Regenerate answer" }).click();
    await until(() => requests.generations.length === 3, "it is not asked again");
    await isSend(page);
    assert.notEqual(await shown(page), text);
    assert.equal(await page.locator(".turn").count(), 1);

    await page.getByRole("button", { name: "Edit message" }).click();
    assert.equal(await page.inputValue("#prompt"), "And it came to pass");
    await ask(page, "Another beginning");
    await answered(page);
    assert.deepEqual(requests.last.body.messages, [{ role: "user", content: "Another beginning" }]);
    assert.equal(await page.locator(".turn").count(), 1);
    await page.getByRole("button", { name: "Delete message and answer" }).click(); // the version before is there still
    assert.equal(await page.locator(".asked .text").textContent(), "And it came to pass");
    await page.getByRole("button", { name: "Delete message and answer" }).click();
    assert.equal(await page.locator(".turn").count(), 0);
}));

test("settings and the system prompt reach the request, are kept, and wrong ones are not taken", () => withPage(browser, CHAT, async (page, requests) => {
    await ask(page, "Hello");
    await isStop(page);
    await page.keyboard.press("Escape");
    assert.deepEqual(Object.keys(requests.last.body).sort(), ["messages", "model", "return_progress", "stream", "stream_options"]);
    await page.click("#new-chat");

    const numbers = { temperature: 0.5, top_p: 0.9, top_k: 20, min_p: 0.1, repeat_penalty: 1.2, max_tokens: 9, seed: 11 };
    await set(page, { ...Object.fromEntries(Object.entries(numbers).map(([k, v]) => [k, String(v)])), stop: "Amen\n\\n\\n", system: "You are old." });
    await ask(page, "Hello");
    await answered(page);
    const { model: _, stream: __, stream_options: ___, return_progress: ____, ...body } = requests.last.body;
    assert.deepEqual(body, { ...numbers, stop: ["Amen", "\n\n"], messages: [{ role: "system", content: "You are old." }, { role: "user", content: "Hello" }] });

    await page.reload();
    assert.match(await page.locator("#settings-summary").textContent(), /system prompt, temperature 0.5, top p 0.9/);
    await page.click("#settings-button");
    assert.equal(await page.inputValue("#set-top_k"), "20");
    await page.fill("#set-top_p", "7");
    assert.equal(await page.getAttribute("#set-top_p", "aria-invalid"), "true");
    await page.click("#settings .primary");
    assert.ok(await page.locator("#settings").isVisible());
    assert.equal(await page.evaluate(() => document.activeElement.id), "set-top_p");
    await page.click("#settings-reset");
    await page.click("#settings .primary");
    assert.equal(await page.locator("#settings-summary").textContent(), "");
}));

test("what a model writes stays text; code is a block; thoughts are folded", () => withPage(browser, CHAT, async (page) => {
    await addToRequests(page, only("<think>a secret</think>See <img src=x onerror=alert(1)> and `b`:\n```c\nint x;\n```\n**end**"));
    await ask(page, "<b>bold?</b>");
    await answered(page);
    const answer = page.locator(".answered > .text");
    await answer.locator("strong").waitFor(); // what reads Markdown is fetched when it is first needed
    assert.equal(await page.locator(".asked .text").textContent(), "<b>bold?</b>");
    assert.equal(await answer.locator("p").first().textContent(), "See <img src=x onerror=alert(1)> and b:");
    assert.equal(await answer.locator("pre").textContent(), "int x;");
    assert.equal(await answer.locator("strong").textContent(), "end");
    assert.equal(await page.locator("article img").count(), 0);
    const thoughts = page.locator("details.reasoning");
    assert.equal(await thoughts.evaluate((d) => d.open), false);
    await thoughts.locator("summary").click();
    assert.equal(await thoughts.locator(".text").textContent(), "a secret");
    await page.getByRole("button", { name: "Copy code" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "int x;");
    await noAxeViolations(page, "code");
}));

test("a model without a template says so, and its text goes on", () => withPage(browser, PLAIN, async (page, requests) => {
    assert.match(await page.locator("#no-template").textContent(), /no chat template.*--chat-template/);
    assert.ok(await page.locator("#mode input[value=chat]").isDisabled());
    await set(page, { temperature: "0", max_tokens: "8", repeat_penalty: "1" });
    await ask(page, "And it came to pass");
    await answered(page);
    assert.equal(requests.last.path, "/v1/completions");
    const text = (await again(PLAIN, requests.last)).choices[0].text;
    assert.equal(await shown(page), text);
    await page.getByRole("button", { name: "Continue this text" }).click();
    await until(() => requests.generations.length === 2, "it does not go on");
    await isSend(page);
    assert.equal(requests.last.body.prompt, `And it came to pass${text}`);
    assert.equal(await shown(page), text + (await again(PLAIN, requests.last)).choices[0].text);
    assert.equal(await page.locator(".turn").count(), 1);
}));

// ---- errors ----

test("a text that is too long is named, with what to do", () => withPage(browser, CHAT, async (page) => {
    await ask(page, "word ".repeat(40000));
    const problem = page.locator(".turn .problem");
    await problem.waitFor();
    assert.match(await problem.textContent(), /Too long for the context.*400\d\d tokens.*32768.*Shorten the text/);
    assert.equal(await problem.getAttribute("role"), "alert");
}, { allowed: [/status of 400/] }));

test("a busy cluster says when to come again, and trying again works", () => withPage(browser, SMALL, async (page) => {
    const held = new AbortController();
    const running = await fetch(`${SMALL}/v1/completions`, { method: "POST", signal: held.signal, headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ model: (await cluster(SMALL)).model.id, prompt: "x", max_tokens: Number(LONG), stream: true, ignore_eos: true }) });
    assert.equal(running.status, 200);
    await set(page, { max_tokens: "5" });
    await ask(page, "In the beginning");
    const problem = page.locator(".turn .problem");
    await problem.waitFor();
    assert.match(await problem.textContent(), /The cluster is busy.*Try again in a moment\. The gateway suggests \d+ s/);
    held.abort();
    await idle(SMALL);
    await problem.getByRole("button", { name: "Try again" }).click();
    await answered(page);
    assert.ok(!(await problem.isVisible()));
}, { allowed: [/status of 429/] }));

test("a key is asked for, a wrong one is refused, and it lives as long as the tab", () => withPage(browser, KEYED, async (page, requests) => {
    const dialog = page.locator("#key-dialog");
    await dialog.waitFor();
    await noAxeViolations(page, "key");
    await page.keyboard.type("wrong");
    await page.keyboard.press("Enter");
    await page.getByText("This key is not known to the gateway").waitFor();
    await page.fill("#key", KEY);
    await page.click("#key-dialog .primary");
    await page.locator("#state[data-state=ready]").waitFor();
    await set(page, { max_tokens: "4" });
    await ask(page, "In the beginning");
    await answered(page);
    assert.equal(requests.last.headers.authorization, `Bearer ${KEY}`);
    assert.ok(!requests.all.some((request) => request.url().includes(KEY)));
    await page.reload();
    await page.locator("#state[data-state=ready]").waitFor();
    assert.equal(await page.evaluate(() => Object.values(localStorage).join().includes("key-")), false);
    await page.click("#key-button");
    await page.click("#key-forget");
    await dialog.waitFor();
}, { ready: false, allowed: [/status of 401/] }));

test("a gateway that ends is told, in the panel and to who asks", () => withPage(browser, GOING, async (page) => {
    await control("end");
    await page.locator("#state[data-state=lost]").waitFor();
    assert.match(await page.locator("#cluster-problem").textContent(), /gateway.*nakshatra serve/i);
    await ask(page, "In the beginning");
    await page.locator(".turn .problem").waitFor();
    assert.match(await page.locator(".turn .problem").textContent(), /The gateway does not answer.*nakshatra serve/);
}, { allowed: [/ERR_/] }));

// ---- the cluster ----

test("the cluster is shown as it is, and lives", () => withPage(browser, CHAT, async (page) => {
    const c = await cluster(CHAT);
    assert.deepEqual(await page.locator(".stage h3").allTextContents(), c.stages.map((s) => s.id));
    assert.deepEqual(await page.locator(".address").allTextContents(), c.stages.map((s) => s.address));
    const widths = await page.locator("#layers .part").evaluateAll((parts) => parts.map((part) => part.getBoundingClientRect().width));
    assert.ok(Math.abs(widths[0] / widths[1] - 3 / 5) < 0.03, `layers 0-3 and 3-8 are ${widths} wide`);
    assert.equal(await page.locator(".link").count(), c.links.length);
    assert.match(await page.locator(".link").nth(1).textContent(), /^w0 → w1: [\d.]+ ms round trip/);
    const first = page.locator(".stage").first();
    assert.match(await first.textContent(), /MiB weights/);
    assert.match(await first.textContent(), new RegExp(`${c.stages[0].kv_tokens.toLocaleString("en")} tokens`));

    await long(page);
    await ask(page, "In the beginning");
    await until(async () => Number(await first.locator(".flow strong").textContent()) > 0, "no tokens per second");
    await page.locator("#sessions tr").filter({ hasText: "running" }).waitFor();
    await page.locator(".times").nth(1).filter({ hasText: /compute\s*[\d.]+ ms.*queue\s*[\d.]+ ms.*wire\s*[\d.]+ ms/ }).waitFor();
    await page.keyboard.press("Escape");
    await page.locator("#no-sessions").waitFor();
}));

test("a worker that goes and returns: told at once, and all is well again by itself", () => withPage(browser, CHAT, async (page) => {
    await long(page);
    await ask(page, "In the beginning");
    await until(async () => (await shown(page)).length > 20, "nothing is written");
    await control("kill");
    try {
        const problem = page.locator(".turn .problem").first();
        await problem.waitFor();
        assert.match(await problem.textContent(), /The answer broke off.*w1.*start its worker again/);
        assert.ok((await shown(page)).length > 20);
        await page.locator("#state[data-state=down]").waitFor();
        await page.locator("#losses li").filter({ hasText: /^w1: lost.*nothing came to go on with.*1 given up/ }).waitFor();
        assert.match(await page.locator("#cluster-problem").textContent(), /w1.*Layers 3–8 are missing.*nakshatra worker/);
        await page.locator(".stage.gone h3").filter({ hasText: "w1" }).waitFor();
        assert.equal(await page.locator("#layers .gone").count(), 1);
        await noAxeViolations(page, "worker gone");
        await set(page, { max_tokens: "5" });
        await ask(page, "And now?");
        await page.locator(".turn:nth-child(2) .problem").filter({ hasText: /The cluster is not ready.*w1/ }).waitFor();
    } finally {
        await control("start"); // for the tests that follow, too
    }
    await page.locator("#state[data-state=ready]").waitFor();
    assert.equal(await page.locator("#cluster-problem").isVisible(), false);
    assert.equal(await page.locator(".stage.gone").count(), 0);
    await page.locator(".turn:nth-child(2)").getByRole("button", { name: "Try again" }).click();
    await answered(page);
    assert.match(await page.locator(".stats").last().textContent(), /^5 tokens/);
}, { allowed: [/status of 503/] }));

/** The page is told this instead of what the gateway says of the cluster. */
async function tell(page, state) {
    await page.addInitScript((text) => {
        const real = globalThis.fetch;
        globalThis.fetch = (path, options) => path !== "/cluster/events" ? real(path, options) : Promise.resolve(new Response(new ReadableStream({
            start(out) {
                const say = () => out.enqueue(new TextEncoder().encode(`event: cluster\ndata: ${text}\n\n`));
                say();
                const timer = setInterval(say, 200);
                options.signal.addEventListener("abort", () => {
                    clearInterval(timer);
                    out.error(new DOMException("", "AbortError"));
                });
            },
        })));
    }, JSON.stringify(state));
    await page.reload();
    await page.locator("#cluster-body:not([hidden])").waitFor({ state: "attached" });
}

const EVIL = "<img src=x onerror=alert(1)>\"'&amp;";

test("machines are boxes with their layers, links, fetches, a join line and spares, and their names are text", () => withPage(browser, CHAT, async (page) => {
    const c = await cluster(CHAT);
    assert.equal(await page.locator("#machines-part").isVisible(), false); // there are none to tell of
    assert.equal(await page.locator("#join").isVisible(), false);
    const line = `nakshatra join nk1-${"abcdef0123456789".repeat(9)}`;
    await tell(page, { ...c, join_line: line, cluster: {
        id: "0123456789abcdef0123456789abcdef",
        members: [
            { id: "a", name: "attic", state: "ready", address: "192.0.2.1:7000", holds: { begin: 0, end: 3 }, doing: "serves", memory: 8 << 27, predicted_ms: 12.5, progress: null },
            { id: "b", name: EVIL, state: "fetching", address: EVIL, holds: { begin: 3, end: 8 }, doing: EVIL, progress: { bytes: 25 << 20, of: 100 << 20, rate: 5 << 20 } },
            { id: "d", name: "shed", state: "gone" }],
        links: [{ a: "a", b: "b", rtt_ms: 0.42, rate: 117500000 }, { a: "b", b: "x", rtt_ms: null, rate: null }],
        plan: { epoch: 3, kind: "chain", predicted: 20.25, measured: 19.5, chains: [["a", "b"]], warning: `one stream gets 0.50 ${EVIL}` },
        spares: [{ name: EVIL, reason: `too slow ${EVIL}` }],
    } });
    await page.locator(".machine").first().waitFor();
    const box = (i) => page.locator(".machine").nth(i);
    assert.deepEqual(await page.locator(".machine h4").allTextContents(), ["attic", EVIL, "shed"]);
    assert.match(await box(0).textContent(), /192\.0\.2\.1:7000.*ready.*layers 0–3 of 8.*serves.*1\.0 GiB memory.*12\.5 ms per token predicted/);
    assert.ok((await box(0).textContent()).includes(`→ ${EVIL}: 0.42 ms round trip, 940 Mbit/s`));
    assert.match(await box(1).textContent(), /25\.0 MiB of 100 MiB, 25 % · 5\.0 MiB\/s · 15 s left/);
    assert.equal(await box(1).getByRole("progressbar").getAttribute("aria-valuenow"), "25");
    assert.equal(await box(0).getByRole("progressbar").count(), 0);
    assert.ok(await box(2).evaluate((node) => node.classList.contains("gone")));
    assert.equal(await page.locator("#plan").textContent(), "Plan 3 · chain · predicted 20.3 tok/s · measured 19.5 tok/s");
    assert.equal(await page.getByText("one stream gets 0.50").textContent(), `one stream gets 0.50 ${EVIL}`);
    assert.deepEqual(await page.locator("#spares li").allTextContents(), [`${EVIL}: too slow ${EVIL}`]);
    assert.equal(await page.locator("#cluster img").count(), 0);
    const widths = await page.locator(".machine .layers").nth(1).evaluate((bar) => [bar, bar.firstChild].map((node) => node.getBoundingClientRect().width));
    assert.ok(Math.abs(widths[1] / widths[0] - 5 / 8) < 0.03, `layers 3-8 of 8 are ${widths} wide`);
    await page.click("#join-copy");
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), line);
    await noAxeViolations(page, "machines");
    await page.emulateMedia({ colorScheme: "dark" });
    await noAxeViolations(page, "machines, dark");
    await page.setViewportSize({ width: 320, height: 700 });
    await page.click("#show-cluster");
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "wider than 320");
}));

test("without any chain the page says what is waited for", () => withPage(browser, CHAT, async (page) => {
    const c = await cluster(CHAT), message = "waiting for 2 more machines: 3.5 GiB are missing";
    await tell(page, { ...c, ready: false, error: { code: "not_ready", message }, stages: [], links: [], chains: 0, epoch: null,
        model: { ...c.model, layers: null, dtype: null, context: null },
        cluster: { id: "x", members: [], links: [], plan: null, spares: [] }, join_line: null });
    await page.locator("#state[data-state=down]").waitFor();
    assert.ok((await page.locator("#cluster-problem").textContent()).includes(message));
    assert.equal(await page.locator("#plan").textContent(), "No plan yet.");
    assert.equal(await page.locator("#plan-warning").isVisible(), false);
    assert.equal(await page.locator("#join").isVisible(), false);
    await noAxeViolations(page, "no chain");
}));

test("two chains stand one after the other, and another set takes their place", () => withPage(browser, CHAT, async (page) => {
    const c = await cluster(CHAT), both = [0, 1].flatMap((chain) => c.stages.map((s) => ({ ...s, chain, address: `192.0.2.${chain}` })));
    await tell(page, { ...c, chains: 2, stages: both, links: [...c.links, ...c.links] });
    await until(async () => await page.locator(".stage").count() === 4, "not four stages");
    assert.match(await page.locator("#cluster-note").textContent(), /^4 stages in 2 chains/);
    assert.equal(await page.locator("#layers .part").count(), 2);
    await tell(page, { ...c, stages: [...c.stages].reverse().map((s) => ({ ...s })), links: c.links });
    await until(async () => await page.locator(".stage").count() === 2, "not two stages");
}));

test("a hidden tab does not listen", () => withPage(browser, CHAT, async (page) => {
    const hide = (hidden) => page.evaluate((value) => {
        Object.defineProperty(document, "hidden", { value, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }, hidden);
    await until(async () => (await cluster(CHAT)).gateway.listeners === 1, "not one listener");
    await hide(true);
    await until(async () => (await cluster(CHAT)).gateway.listeners === 0, "it still listens");
    await hide(false);
    await until(async () => (await cluster(CHAT)).gateway.listeners === 1, "it does not listen again");
}));

// ---- how it looks, and for whom ----

test("a narrow window never scrolls sideways, and the panel takes the chat's place", async () => {
    for (const width of [390, 320])
        await withPage(browser, CHAT, async (page) => {
            const fits = async (what) => assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth), `${what} is wider than ${width}`);
            await fits("the empty page");
            await addToRequests(page, only(`A${"long".repeat(40)} word\n\`\`\`\n${"code ".repeat(40)}\n\`\`\`\nend`));
            await ask(page, `${"unbroken".repeat(30)} question`);
            await answered(page);
            await fits("an answer");
            assert.ok(await page.locator("#send").isVisible());
            assert.equal(await page.locator("#cluster").isVisible(), false);
            await page.click("#show-cluster");
            assert.equal(await page.locator("#chat").isVisible(), false);
            assert.equal(await page.getAttribute("#show-cluster", "aria-expanded"), "true");
            await fits("the cluster");
            await noAxeViolations(page, `${width} pixels`);
            await page.click("#show-cluster");
            await page.click("#settings-button");
            await fits("the settings");
        }, { viewport: { width, height: 700 } });
});

test("everything can be done with the keyboard alone", () => withPage(browser, CHAT, async (page) => {
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.textContent);
    assert.equal(await focused(), "prompt");
    await long(page);
    await page.focus(".skip");
    await page.keyboard.press("Enter");
    await until(async () => await focused() === "prompt", "the skip link does not lead to the message");
    await page.focus(".skip");
    const order = [];
    for (let i = 0; i < 20 && order.at(-1) !== "send"; i++) {
        await page.keyboard.press("Tab");
        order.push(await focused());
        const outline = await page.evaluate(() => {
            const own = getComputedStyle(document.activeElement), field = document.activeElement.closest(".field");
            const label = document.activeElement.type === "radio" && getComputedStyle(document.activeElement.nextElementSibling);
            return own.outlineStyle !== "none" || (label && label.outlineStyle !== "none") || (field && getComputedStyle(field).boxShadow !== "none");
        });
        assert.ok(outline, `${order.at(-1)}: the focus is not seen`);
    }
    assert.deepEqual(order.filter((name) => /^(theme|new-chat|settings-button|scroll|prompt|send)$/.test(name)), ["theme", "new-chat", "settings-button", "scroll", "prompt", "send"]);

    await page.focus("#prompt");
    await page.keyboard.type("In the");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("beginning");
    await page.keyboard.press("Enter");
    await isStop(page);
    assert.equal(await page.locator(".asked .text").textContent(), "In the\nbeginning");
    await until(async () => (await shown(page)).length > 5, "nothing is written");
    await page.keyboard.press("Escape");
    await isSend(page);
    assert.equal(await focused(), "prompt");

    await page.focus("#settings-button");
    await page.keyboard.press("Enter");
    await until(async () => await focused() === "set-system", "the settings do not take the focus");
    await page.keyboard.press("Escape");
    assert.equal(await focused(), "settings-button");

    await page.focus("#mode input[value=chat]");
    await page.keyboard.press("ArrowRight");
    assert.ok(await page.locator("#mode input[value=completion]").isChecked());
    assert.equal(await page.locator("#send").textContent(), "Continue text");
}));

test("a screen reader hears that writing began and then the whole answer, not every piece", () => withPage(browser, CHAT, async (page) => {
    await set(page, { seed: "5", max_tokens: "30" });
    await page.evaluate(() => {
        globalThis.heard = [];
        for (const node of document.querySelectorAll("[aria-live], [role=status], [role=alert]"))
            new MutationObserver(() => globalThis.heard.push(node.textContent)).observe(node, { childList: true, characterData: true, subtree: true });
    });
    await ask(page, "In the beginning");
    assert.equal(await page.locator("#turns [aria-live], #turns [role=log]").count(), 0);
    await answered(page);
    const heard = await page.evaluate(() => globalThis.heard);
    assert.equal(heard.length, 2, JSON.stringify(heard));
    assert.equal(squeeze(heard[1]), squeeze(await shown(page)));
}));

test("light and dark follow the system and the switch, and neither has an accessibility violation", () => withPage(browser, CHAT, async (page) => {
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await ground();
    await set(page, { max_tokens: "20" });
    await ask(page, "In the beginning");
    await answered(page);
    await noAxeViolations(page, "light");
    await page.emulateMedia({ colorScheme: "dark" });
    const dark = await ground();
    assert.notEqual(dark, light);
    await noAxeViolations(page, "dark");
    await page.click("#settings-button");
    await noAxeViolations(page, "settings");
    await page.keyboard.press("Escape");
    await page.click("#theme"); // auto -> light
    assert.equal(await ground(), light);
    await page.reload();
    assert.equal(await ground(), light);
    await page.click("#theme"); // light -> dark
    assert.equal(await ground(), dark);
    await page.emulateMedia({ colorScheme: "light" });
    assert.equal(await ground(), dark);
    await page.click("#new-chat");
    await noAxeViolations(page, "empty");
}));

test("who wants less motion gets none", () => withPage(browser, CHAT, async (page) => {
    const moving = () => page.evaluate(() => document.getAnimations().filter((a) => a.playState === "running").length);
    await long(page);
    await ask(page, "In the beginning");
    await page.locator(".link.live").first().waitFor();
    assert.equal(await moving(), 0);
    await page.emulateMedia({ reducedMotion: "no-preference" });
    assert.ok(await moving() > 0);
    await page.keyboard.press("Escape");
    await isSend(page);
}, { reducedMotion: "reduce" }));
