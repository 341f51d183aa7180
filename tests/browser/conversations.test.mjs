// Conversations in Chromium, over a real gateway and real workers (NK_CHAT: with a template; see page.test.mjs).
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { launch, until, withPage } from "./browser.mjs";
import { addToRequests, answered, ask, isSend, isStop, long, noAxeViolations, only, set, shown } from "./chat.mjs";

const { NK_CHAT: CHAT } = process.env;

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

const button = (page, name) => page.getByRole("button", { name, exact: true });
const titles = (page) => page.locator("#conversation-list .title").allTextContents();
const listed = (page, wanted) => until(async () => JSON.stringify(await titles(page)) === JSON.stringify(wanted), `not ${wanted}`);
const toast = (page, text) => page.locator(".toast").filter({ hasText: text });
const asked = (page) => page.locator(".asked > .text").allTextContents();
const counter = (page) => page.locator("#tokens");
const focused = (page) => page.evaluate(() => document.activeElement.getAttribute("aria-label") ?? document.activeElement.id);

/** A chat of one short answer; the gateway writes what it is told to. */
async function chat(page, text, answer = null) {
    if (answer !== null) {
        await page.unrouteAll({ behavior: "wait" });
        await addToRequests(page, only(answer));
    }
    await ask(page, text);
    await until(async () => (await asked(page)).at(-1)?.trim() === text, "it is not asked"); // from here on it runs, or has run
    await isSend(page);
    await answered(page);
}

/** Answers of the next generation, written by the test: say(chunk), end(). The page's own fetch meets them. */
async function stream(page) {
    await page.evaluate(() => {
        const real = globalThis.fetch;
        globalThis.fetch = (path, options) => path !== "/v1/chat/completions" ? real(path, options) : Promise.resolve(new Response(new ReadableStream({
            start(out) {
                globalThis.fetch = real;
                globalThis.say = (data) => out.enqueue(new TextEncoder().encode(`data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`));
                globalThis.end = () => { globalThis.say("[DONE]"); out.close(); };
                options.signal.addEventListener("abort", () => out.error(new DOMException("", "AbortError")));
                globalThis.break = () => out.error(new TypeError("network"));
            },
        })));
    });
    return { say: (chunk) => page.evaluate((data) => globalThis.say(data), chunk), end: () => page.evaluate(() => globalThis.end()), cut: () => page.evaluate(() => globalThis.break()) };
}

// ---- the list ----

test("conversations are listed, found by title and text, renamed, deleted and brought back", () => withPage(browser, CHAT, async (page) => {
    await page.getByText("Chats are kept here").waitFor();
    await chat(page, "First question", "alpha beta");
    await page.click("#new-chat");
    await chat(page, "Second question", "gamma <b>delta</b>");
    await listed(page, ["Second question", "First question"]);

    await page.fill("#conversation-search", "BETA");
    await listed(page, ["First question"]);
    assert.equal(await page.locator("#conversation-list .around").textContent(), "alpha beta");
    await page.fill("#conversation-search", "second");
    await listed(page, ["Second question"]);
    await page.fill("#conversation-search", "nowhere");
    await page.getByText("No chat has “nowhere” in its title or text.").waitFor();
    await noAxeViolations(page, "no hit");
    await page.fill("#conversation-search", "");
    await listed(page, ["Second question", "First question"]);

    await button(page, "Rename Second question").click();
    assert.equal(await focused(page), "New title of Second question");
    await page.keyboard.type("<i>Name</i>");
    await page.keyboard.press("Enter");
    await listed(page, ["<i>Name</i>", "First question"]);
    assert.equal(await focused(page), "Rename <i>Name</i>");
    await button(page, "Rename <i>Name</i>").press("Enter");
    await page.keyboard.type("not this");
    await page.keyboard.press("Escape");
    await listed(page, ["<i>Name</i>", "First question"]);

    await page.locator("#conversation-list .open").nth(1).click();
    await until(async () => (await asked(page))[0] === "First question", "it is not opened");
    await page.reload();
    await until(async () => (await asked(page))[0] === "First question", "the reload shows another");
    await button(page, "Delete First question").click();
    await toast(page, "Deleted “First question”.").waitFor();
    await listed(page, ["<i>Name</i>"]);
    assert.equal(await page.locator(".turn").count(), 0);
    await noAxeViolations(page, "deleted");
    await button(page, "Undo").click();
    await until(async () => (await asked(page))[0] === "First question", "it does not come back");
    assert.equal(await shown(page), "alpha beta");
    assert.equal((await titles(page)).length, 2);
    await page.reload();
    await until(async () => (await titles(page)).length === 2, "it is not kept");
}));

test("in a drawer where the window is narrow, by the keyboard too, in both colours", () => withPage(browser, CHAT, async (page) => {
    await set(page, { max_tokens: "4" });
    await chat(page, "One");
    for (const width of [1000, 390, 320]) {
        await page.setViewportSize({ width, height: 700 });
        await until(async () => !await page.locator("#conversations").isVisible(), "the list stays");
        await page.locator("#show-conversations").focus();
        await page.keyboard.press("Enter");
        await page.locator("#conversations").waitFor();
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
        await noAxeViolations(page, `drawer, ${width}`);
        await page.emulateMedia({ colorScheme: "dark" });
        await noAxeViolations(page, `drawer, ${width}, dark`);
        await page.emulateMedia({ colorScheme: "light" });
        await page.keyboard.press("Escape");
        await until(async () => await page.evaluate(() => document.activeElement.id) === "show-conversations", "the focus does not come back");
    }
    await page.setViewportSize({ width: 1280, height: 700 });
    await page.locator("#conversations-side #conversations").waitFor();
}));

test("an answer goes on while another chat is looked at", () => withPage(browser, CHAT, async (page) => {
    await long(page);
    await ask(page, "Long");
    await until(async () => (await shown(page)).length > 20, "nothing is written");
    await page.click("#new-chat");
    assert.equal(await page.locator(".turn").count(), 0);
    await page.locator(".around.live").waitFor();
    await isSend(page); // another one may be asked here
    await page.locator("#conversation-list .open").click();
    await isStop(page);
    const { length } = await shown(page);
    await until(async () => (await shown(page)).length > length + 20, "it does not go on");
    await page.click("#send");
    await isSend(page);
    await page.locator(".around.live").waitFor({ state: "detached" });
}));

// ---- branches ----

test("answers asked for again and edited messages are branches with arrows, which outlive a reload", () => withPage(browser, CHAT, async (page, requests) => {
    await chat(page, "Q one", "A one");
    await chat(page, "Q two", "A two");
    await page.unrouteAll();
    await addToRequests(page, only("A three"));
    await page.getByRole("button", { name: "Regenerate answer" }).last().click();
    await until(async () => await shown(page) === "A three", "no other answer");
    await isSend(page);
    const answers = page.getByRole("group", { name: "Versions of the answer" });
    assert.match(await answers.textContent(), /2 of 2/);

    await button(page, "Edit message").first().click();
    assert.equal(await page.inputValue("#prompt"), "Q one");
    await noAxeViolations(page, "editing");
    await chat(page, "Q changed", "A changed");
    assert.deepEqual(await asked(page), ["Q changed"]);
    assert.deepEqual(requests.last.body.messages, [{ role: "user", content: "Q changed" }]);
    const questions = page.getByRole("group", { name: "Versions of the message" });
    assert.match(await questions.textContent(), /2 of 2/);

    await button(page, "Previous version of the message").focus();
    await page.keyboard.press("Enter");
    await until(async () => (await asked(page)).join() === "Q one,Q two", "not the first version");
    assert.equal(await focused(page), "Previous version of the message");
    assert.match(await page.locator("#announcer").textContent(), /^Version 1 of 2/);
    assert.equal(await shown(page), "A three");
    await button(page, "Previous version of the answer").click();
    assert.equal(await shown(page), "A two");
    await noAxeViolations(page, "branches");
    await until(() => page.evaluate(() => new Promise((resolve) => {
        const open = indexedDB.open("nakshatra");
        open.onsuccess = () => {
            const read = open.result.transaction(["heads", "messages"]), heads = read.objectStore("heads").getAll(), messages = read.objectStore("messages").getAll();
            read.oncomplete = () => {
                open.result.close();
                const chosen = Object.values(heads.result[0].chosen).map((id) => messages.result.find((message) => message.id === id).text);
                resolve(chosen.includes("A two") && chosen.includes("Q one"));
            };
        };
    })), "what was chosen is not kept");
    await page.reload();
    await until(async () => (await asked(page)).join() === "Q one,Q two", "not what was shown");
    assert.equal(await shown(page), "A two");

    await page.getByRole("button", { name: "Delete message and answer" }).first().click();
    assert.deepEqual(await asked(page), ["Q changed"]);
    await button(page, "Undo").click();
    assert.deepEqual(await asked(page), ["Q one", "Q two"]);
    assert.equal(await shown(page), "A two");
}));

// ---- what outlives a reload ----

test("drafts outlive a reload, one for each conversation, with files and with what is edited", () => withPage(browser, CHAT, async (page) => {
    await page.fill("#prompt", "not begun");
    await page.reload();
    await until(async () => await page.inputValue("#prompt") === "not begun", "the draft is gone");
    await chat(page, "First", "one");
    await page.fill("#prompt", "more");
    await page.setInputFiles("#file-picker", { name: "a.txt", mimeType: "text/plain", buffer: Buffer.from("text") });
    await page.locator("#files li").waitFor();
    await page.click("#new-chat");
    assert.equal(await page.inputValue("#prompt"), "");
    assert.equal(await page.locator("#files li").count(), 0);
    await page.fill("#prompt", "other");
    await page.locator("#conversation-list .open").click();
    await until(async () => await page.inputValue("#prompt") === "more", "the draft is not here");
    await button(page, "Edit message").click();
    await page.fill("#prompt", "First, changed");
    await page.reload();
    await until(async () => await page.inputValue("#prompt") === "First, changed", "the edit is gone");
    assert.ok(await page.locator("#editing").isVisible());
    await page.click("#cancel-edit");
    assert.equal(await page.inputValue("#prompt"), "more");
    assert.match(await page.locator("#files li").textContent(), /a\.txt/);
}));

test("an answer that is written when the page is reloaded stays as far as it came, and goes on", () => withPage(browser, CHAT, async (page, requests) => {
    await long(page);
    await ask(page, "In the beginning");
    await until(async () => (await shown(page)).length > 40, "nothing is written");
    const before = await shown(page);
    await page.reload();
    await page.locator(".turn").waitFor();
    const kept = await shown(page);
    assert.ok(kept.startsWith(before), `"${before}" is not the beginning of "${kept}"`);
    assert.match(await page.locator(".stats").first().textContent(), /^interrupted/);
    await noAxeViolations(page, "interrupted");
    await set(page, { max_tokens: "6" });
    await button(page, "Continue this answer").click();
    await until(() => requests.generations.length === 2, "it does not go on");
    await isSend(page);
    const { messages, continue_final_message: on } = requests.last.body;
    assert.equal(on, true);
    assert.equal(messages.at(-1).role, "assistant");
    assert.ok((await shown(page)).startsWith(kept.trimEnd()) && (await shown(page)).length > kept.length);
    assert.equal(await page.locator(".turn").count(), 1);
}));

test("a stopped answer goes on where it ended, also within a thought; a full one does not", () => withPage(browser, CHAT, async (page, requests) => {
    const out = await stream(page);
    await ask(page, "Think");
    await out.say({ choices: [{ delta: { reasoning_content: "I thi" } }] });
    await page.locator("details.reasoning").waitFor();
    await page.keyboard.press("Escape");
    await isSend(page);
    await set(page, { max_tokens: "6" });
    await button(page, "Continue this answer").click();
    await until(() => requests.generations.length === 1, "it does not go on");
    await isSend(page);
    assert.deepEqual(requests.last.body.messages.at(-1), { role: "assistant", content: "", reasoning_content: "I thi" });
    assert.equal(await page.locator("details.reasoning").evaluate((node) => node.open), false);
    assert.match(await page.locator("details.reasoning .text").textContent(), /^I thi/);
    await page.click("#new-chat");
    await chat(page, "Whole", "x");
    assert.equal(await button(page, "Continue this answer").isVisible(), false);
}));

// ---- files ----

test("text files are attached by button, drop and paste, removed, and told to the model; others get a sentence", () => withPage(browser, CHAT, async (page, requests) => {
    await page.setInputFiles("#file-picker", [{ name: "notes.txt", mimeType: "text/plain", buffer: Buffer.from("some notes\n") }, { name: "x.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0, 255]) }]);
    await toast(page, "“x.png” is not text").waitFor();
    await page.locator("#files li").waitFor();
    await page.evaluate(() => {
        const data = new DataTransfer();
        data.items.add(new File(["int main;"], "main.c", { type: "text/x-c" }));
        for (const type of ["dragenter", "dragover", "drop"])
            document.getElementById("prompt").dispatchEvent(new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
    });
    await button(page, "Remove main.c").waitFor();
    assert.equal(await page.locator("#chat.dropping").count(), 0);

    const paste = (text) => page.evaluate((value) => {
        const data = new DataTransfer();
        data.setData("text/plain", value);
        document.getElementById("prompt").dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true }));
    }, text);
    await page.fill("#prompt", "Read: ");
    await paste("word ".repeat(1000));
    await button(page, "Remove pasted.txt").waitFor();
    await noAxeViolations(page, "files");
    await button(page, "Insert as text").click();
    assert.equal(await page.inputValue("#prompt"), `Read: ${"word ".repeat(1000)}`);
    await button(page, "Remove main.c").click();
    assert.equal(await page.locator("#files li").count(), 1);

    await set(page, { max_tokens: "3" });
    await chat(page, "What is in it?");
    assert.equal(requests.last.body.messages[0].content, "```notes.txt\nsome notes\n```\n\nWhat is in it?");
    const sent = page.locator(".asked details.chip");
    assert.equal(await sent.locator("summary").textContent(), "notes.txt · 1 KiB");
    await sent.locator("summary").click();
    await until(async () => await sent.locator("pre").textContent() === "some notes\n", "the file is not shown");
    await noAxeViolations(page, "a sent file");
    assert.equal(await page.locator("#files li").count(), 0);
}));

// ---- tokens and the prompt that is read ----

test("the tokens of what would be sent are told before, and when they are too many", () => withPage(browser, CHAT, async (page) => {
    await set(page, { max_tokens: "3", system: "Be brief." });
    await chat(page, "One");
    await page.fill("#prompt", "Two words");
    await counter(page).filter({ hasText: /^\d+ of 32,768 tokens$/ }).waitFor();
    const [n] = (await counter(page).textContent()).split(" ");
    await page.click("#send");
    await page.locator(".turn:nth-child(2) .stats").filter({ hasText: "prompt" }).waitFor();
    assert.match(await page.locator(".turn:nth-child(2) .stats").textContent(), new RegExp(`prompt ${n}\\b`));
    assert.equal(await counter(page).textContent(), "");
    await page.fill("#prompt", "word ".repeat(33000));
    await counter(page).filter({ hasText: "more than the context holds" }).waitFor();
    await noAxeViolations(page, "too many tokens");
    await page.fill("#prompt", "");
    await counter(page).filter({ hasText: /^$/ }).waitFor({ state: "attached" });
}));

test("a long prompt shows how far it is read and the time left, until the first token", () => withPage(browser, CHAT, async (page) => {
    const out = await stream(page), bar = page.getByRole("progressbar", { name: "How much of the prompt is read" });
    await ask(page, "Long");
    await isStop(page);
    assert.equal(await bar.isVisible(), false);
    await out.say({ choices: [], prompt_progress: { total: 4000, cache: 0, processed: 1000, time_ms: 5000 } });
    await page.getByText("reading the prompt: 1,000 of 4,000 tokens · about 15.0 s left").waitFor();
    assert.equal(await bar.evaluate((node) => node.value), 0.25);
    await noAxeViolations(page, "a prompt that is read");
    await out.say({ choices: [{ index: 0, delta: { content: "Done" }, finish_reason: "stop" }] });
    await until(async () => await shown(page) === "Done" && !await bar.isVisible(), "the bar stays");
    await out.end();
    await isSend(page);
}));

// ---- errors ----

test("an answer that breaks off keeps what came, and what was typed is asked again", () => withPage(browser, CHAT, async (page, requests) => {
    let refused = 0;
    await page.route(/\/v1\/chat\/completions$/, (route) => (refused++ ? route.fallback() : route.abort()));
    await ask(page, "Typed with care");
    const problem = page.locator(".turn .problem");
    await problem.filter({ hasText: "The gateway does not answer" }).waitFor();
    assert.deepEqual(await asked(page), ["Typed with care"]);
    await page.reload();
    await problem.filter({ hasText: "The gateway does not answer" }).waitFor(); // it is told still
    await set(page, { max_tokens: "3" });
    await button(page, "Try again").click();
    await answered(page);
    assert.deepEqual(requests.last.body.messages, [{ role: "user", content: "Typed with care" }]);
    assert.equal(await page.locator(".branches:visible").count(), 0); // nothing was lost, so nothing is kept beside it

    const out = await stream(page);
    await ask(page, "More");
    await out.say({ choices: [{ index: 0, delta: { content: "half" } }] });
    await out.cut();
    await page.locator(".turn:nth-child(2) .problem").filter({ hasText: "The connection was lost" }).waitFor();
    assert.equal(await shown(page), "half");
    await button(page, "Try again").click();
    await answered(page);
    assert.match(await page.locator(".turn:nth-child(2) .branches:visible").textContent(), /2 of 2/);
    await button(page, "Previous version of the answer").click();
    assert.equal(await shown(page), "half");
}, { allowed: [/ERR_FAILED/] }));

// ---- settings ----

test("every setting reaches the request; wrong ones get a sentence; a system prompt of one chat", () => withPage(browser, CHAT, async (page, requests) => {
    await page.selectOption("#thinking", "off");
    await set(page, { system: "For all.", max_tokens: "2", temperature: "0.5", typical_p: "0.9", dry_multiplier: "0.8", xtc_probability: "0.1", top_n_sigma: "2", dynatemp_range: "0.1",
        frequency_penalty: "0.2", samplers: "top_k, temperature", logit_bias: '{"300": -1}' });
    await chat(page, "Hello");
    const { model: _, stream: __, stream_options: ___, return_progress: ____, messages, ...body } = requests.last.body;
    assert.deepEqual(body, { max_tokens: 2, temperature: 0.5, typical_p: 0.9, dry_multiplier: 0.8, xtc_probability: 0.1, top_n_sigma: 2, dynatemp_range: 0.1, frequency_penalty: 0.2,
        samplers: ["top_k", "temperature"], logit_bias: { 300: -1 }, enable_thinking: false });
    assert.equal(messages[0].content, "For all.");
    await set(page, { system_here: "For this one." });
    await chat(page, "Again");
    assert.equal(requests.last.body.messages[0].content, "For this one.");
    await page.reload();
    assert.equal(await page.locator("#thinking").inputValue(), "off");
    await page.locator(".turn").first().waitFor();
    await page.click("#settings-button");
    await until(async () => await page.inputValue("#set-system_here") === "For this one.", "it is not kept");
    await page.click("#settings-reset");
    await page.click("#settings .primary");
    await page.click("#new-chat");
    assert.equal(await page.locator("#thinking").inputValue(), "");

    await page.click("#settings-button");
    await page.locator("#settings summary").first().click();
    await page.fill("#set-json_schema", '{"type": ');
    assert.match(await page.locator("#set-json_schema-help").textContent(), /^This is no JSON/);
    await page.fill("#set-grammar", "x ::= y");
    assert.match(await page.locator("#set-grammar-help").textContent(), /no rule named root/);
    await noAxeViolations(page, "wrong settings");
    await page.click("#settings .primary");
    assert.ok(await page.locator("#settings").isVisible());
    await page.fill("#set-json_schema", '{"const": "yes"}');
    await page.fill("#set-grammar", "");
    await page.click("#settings .primary");
    await chat(page, "Say it");
    assert.equal(await shown(page), '"yes"');
}));

// ---- export and import ----

test("an export is imported with its branches; a wrong file gets a sentence", () => withPage(browser, CHAT, async (page) => {
    await chat(page, "Export me", "first");
    await page.unrouteAll();
    await addToRequests(page, only("second"));
    await button(page, "Regenerate answer").click();
    await until(async () => await shown(page) === "second", "not again");
    await isSend(page);
    const saved = async (which) => {
        await page.click(which);
        const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
        return { name: download.suggestedFilename(), text: readFileSync(await download.path(), "utf8") };
    };
    await page.click("#exchange");
    await noAxeViolations(page, "export");
    const json = await saved("#exchange-one");
    assert.equal(json.name, "Export me.json");
    const markdown = await saved("#exchange-markdown");
    assert.equal(markdown.name, "Export me.md");
    assert.match(markdown.text, /^# Export me\n\n## You\n\nExport me\n\n## Answer\n\nsecond\n/);

    const give = (name, text) => page.setInputFiles("#import-picker", { name, mimeType: "application/json", buffer: Buffer.from(text) });
    await give("bad.json", json.text.replace('"role": "user"', '"role": "root"'));
    await page.getByText(/“bad.json” was not imported\. conversations\[0\]\.messages\[0\]\.role is "root"; "user" or "assistant" would be right\./).waitFor();
    await noAxeViolations(page, "a wrong file");
    await give("good.json", json.text);
    await page.locator("#exchange-dialog").waitFor({ state: "hidden" });
    await listed(page, ["Export me", "Export me"]);
    await until(async () => await shown(page) === "second", "it is not opened");
    await button(page, "Previous version of the answer").click();
    assert.equal(await shown(page), "first");
}));

// ---- storage that fails, and other tabs ----

const breaks = {
    absent: [() => Object.defineProperty(globalThis, "indexedDB", { get() { throw new DOMException("denied", "SecurityError"); } }), /keeps nothing for this page/],
    full: [() => { IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); }; }, /storage for this page is full.*Export what you want to keep/],
    failed: [() => { IDBObjectStore.prototype.put = () => { throw new DOMException("broken", "UnknownError"); }; }, /storage for this page failed/],
};
for (const [what, [init, sentence]] of Object.entries(breaks))
    test(`storage that is ${what}: a sentence, and the page goes on`, () => withPage(browser, CHAT, async (page) => {
        await page.addInitScript(init);
        await page.reload();
        await page.locator("#state[data-state=ready]").waitFor();
        await chat(page, "One", "1");
        await page.locator(".toast").filter({ hasText: sentence }).waitFor();
        await page.click("#new-chat");
        await chat(page, "Two", "2");
        await listed(page, ["Two", "One"]);
        await page.locator("#conversation-list .open").nth(1).click();
        await until(async () => await shown(page) === "1", "it is not opened");
        assert.equal(await page.locator(".toast").count(), 1);
    }));

test("what a newer page has kept is left alone, and a newer page in another tab is told", () => withPage(browser, CHAT, async (page) => {
    await chat(page, "Old", "1");
    await page.evaluate(() => new Promise((resolve, reject) => { // the page lets go of it
        const open = indexedDB.open("nakshatra", 99);
        open.onsuccess = () => { open.result.close(); resolve(); };
        open.onerror = reject;
    }));
    await toast(page, "A newer version of this page was opened in another tab").waitFor();
    await chat(page, "Goes on", "2");
    await listed(page, ["Old"]);
    await page.reload();
    await toast(page, "A newer version of this page has kept conversations").waitFor();
    await chat(page, "Again", "3");
    await listed(page, ["Again"]);
}));

test("two tabs see each other's conversations and overwrite nothing", () => withPage(browser, CHAT, async (one) => {
    await set(one, { max_tokens: "4", temperature: "0" });
    await chat(one, "Shared");
    const two = await one.context().newPage();
    await two.goto(CHAT);
    await listed(two, ["Shared"]);
    await two.locator("#conversation-list .open").click();
    await until(async () => (await asked(two))[0] === "Shared", "it is not opened");
    const before = await shown(two);

    await chat(one, "From one"); // both go on from the same answer
    await until(async () => (await asked(two)).length === 2 && await shown(two) === await shown(one), "two does not see it");
    await answered(two);
    const [outOne, outTwo] = [await stream(one), await stream(two)];
    for (const [page, out, text] of [[one, outOne, "ONE"], [two, outTwo, "TWO"]]) {
        await button(page, "Continue this answer").last().click();
        await isStop(page);
        await out.say({ choices: [{ index: 0, delta: { content: text } }] });
        await until(async () => (await shown(page)).endsWith(text), "it is not written");
    }
    await outOne.end();
    await isSend(one);
    await outTwo.end(); // the same message is another one now: two's becomes a version of its own
    await isSend(two);
    for (const page of [one, two])
        await until(async () => /of 2/.test(await page.locator(".turn:nth-child(2) .answered .branches").textContent()), "no branch");
    await two.reload();
    await two.locator(".turn:nth-child(2)").waitFor();
    const texts = [await shown(two)];
    await button(two, "Previous version of the answer").last().click();
    texts.push(await shown(two));
    assert.deepEqual(texts.map((text) => text.slice(-3)), ["TWO", "ONE"]);
    assert.equal(await two.locator(".answered > .text").first().textContent(), before);

    await button(one, "Rename Shared").click();
    await one.keyboard.type("Renamed");
    await one.keyboard.press("Enter");
    await listed(two, ["Renamed"]);
    await button(one, "Delete Renamed").click();
    await toast(two, "Another tab deleted “Renamed”.").waitFor();
    await listed(two, []);
    assert.equal(await two.locator(".turn").count(), 0);
}));

// ---- what the start costs ----

test("what the start fetches is under 100 KB", () => withPage(browser, CHAT, async (page) => {
    const parts = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
        .filter((entry) => /^(navigation|link|script|css)$/.test(entry.initiatorType) || entry.entryType === "navigation" || /\.(js|css|mjs)$/.test(entry.name))
        .map((entry) => [new URL(entry.name).pathname, entry.encodedBodySize]));
    const sum = parts.reduce((total, [, size]) => total + size, 0);
    assert.ok(parts.length > 10 && sum > 20000, `only ${JSON.stringify(parts)}`);
    assert.ok(sum < 100000, `${sum} bytes: ${JSON.stringify(parts)}`);
}));
