// What a model writes, as elements (web/markdownview.js, web/render.js), in a real browser at a real gateway.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { launch, until, withPage } from "./browser.mjs";
import { DOCUMENTS, chance, pieces } from "./documents.mjs";

const { NK_CHAT: CHAT } = process.env;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PAINT_MAX = 100000; // bytes before the first paint

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

/** A box on the page that is styled as an answer; the modules at hand. */
async function lab(page) {
    await page.evaluate(async () => {
        const view = await import("/markdownview.js"), render = await import("/render.js"), colours = await import("/highlight.js");
        await render.prepare();
        await Promise.all(["c", "js", "py", "sh"].map((name) => colours.modeOf(name)));
        const box = () => {
            const text = document.createElement("div"), turn = document.createElement("article");
            text.className = "text";
            turn.className = "answered";
            turn.append(text);
            document.getElementById("turns").append(document.createElement("li"));
            document.getElementById("turns").lastChild.append(turn);
            document.getElementById("empty").hidden = true;
            return text;
        };
        const plain = (node) => node.innerHTML.replace(/note-\d+/g, "note");
        globalThis.lab = { ...view, ...render, box, plain, none() {} };
    });
}

test("streamed, a text becomes the same elements as at once, and finished ones stay what they are", () => withPage(browser, CHAT, async (page) => {
    await lab(page);
    for (const [name, text] of Object.entries(DOCUMENTS)) {
        const runs = [2, 5, 12, 40].map((most, seed) => pieces(text, chance(seed), most));
        const { want, got, moved, most } = await page.evaluate(async ([whole, all]) => {
            const { box, plain, markdown, MarkdownView, none } = globalThis.lab, once = box(), texts = [];
            markdown(once, whole, none);
            let moved = 0, most = 0;
            for (const parts of all) {
                const text = box(), view = new MarkdownView(text, none);
                let before = [];
                for (const part of parts) {
                    view.add(part);
                    view.update();
                    // What came before the open blocks was there at the last update, too: the very node.
                    const finished = [...text.childNodes].filter((node) => !view.open.includes(node) && node !== view.fence?.node);
                    moved += before.some((node, i) => finished[i] !== node);
                    before = finished;
                    most = Math.max(most, finished.length);
                }
                view.end();
                texts.push(text);
            }
            await Promise.resolve();
            return { want: plain(once), got: texts.map(plain), moved, most };
        }, [text, runs]);
        for (const [i, one] of got.entries())
            assert.equal(one, want, `${name}, run ${i}`);
        assert.equal(moved, 0, `${name}: finished blocks were made anew`);
        if (["headings", "nested", "fences", "footnotes"].includes(name))
            assert.ok(most > 3, `${name}: ${most} nodes were finished before the end`);
    }
}));

test("while a block grows, what stands in it already stays: items, rows, words before the last ones", () => withPage(browser, CHAT, async (page) => {
    await lab(page);
    const kept = await page.evaluate(() => {
        const { box, MarkdownView, none } = globalThis.lab;
        return [["- one *a*\n- two", "\n- three\n  - in", "li"], ["| a |\n|---|\n| 1 |\n", "| 2 |\n", "td"], ["one **two** three", " four **five", "strong"],
            ["para *a*\n\nnext", " words\n\nmore\n\n", "em"], ["1. x\n   ```js\n   let a;\n", "   let b;\n", "li code"]].map(([first, more, what]) => {
            const text = box(), view = new MarkdownView(text, none);
            view.add(first);
            view.update();
            const node = text.querySelector(what).firstChild;
            for (const c of more) {
                view.add(c);
                view.update();
            }
            return text.querySelector(what).firstChild === node && view.stream.work > 0;
        });
    });
    assert.deepEqual(kept, [true, true, true, true, true]);
}));

test("no text becomes markup, and nothing is fetched for it", () => withPage(browser, CHAT, async (page, requests) => {
    await lab(page);
    const before = requests.all.length;
    const found = await page.evaluate(([html, links]) => {
        const { box, markdown, none } = globalThis.lab, text = box();
        markdown(text, html, none);
        const first = text.textContent;
        markdown(text, links, none);
        return { first, tags: [...new Set([...text.querySelectorAll("*")].map((node) => node.localName))],
            links: [...text.querySelectorAll("a")].map((a) => [a.getAttribute("href"), a.rel, a.target]),
            pictures: [...text.querySelectorAll(".picture")].map((node) => node.textContent) };
    }, [DOCUMENTS.html, DOCUMENTS.links]);
    for (const text of ["<div onclick=\"x\">", "<script>alert(1)</script>", "<b>bold</b>", "<!-- c -->", "main.py www.d.example"])
        assert.ok(found.first.includes(text), `${text} is not shown`);
    assert.deepEqual(found.tags.filter((tag) => !["p", "a", "strong", "span"].includes(tag)), []);
    assert.deepEqual(found.links.map(([href]) => href), ["https://a.example", "mailto:a@b.example", "https://c.example/x_y_z", "mailto:a@b.example", "HTTP://X.example",
        "http://p.example/q.png", "http://p.example", "http://k.example", "http://j.example"]);
    assert.ok(found.links.every(([, rel, target]) => rel === "noopener noreferrer" && target === "_blank"));
    assert.deepEqual(found.pictures, ["Picture: g (not loaded)", "Picture (not loaded)", "Picture: i (not loaded)"]);
    assert.equal(requests.all.length, before);
}));

test("lists, tables, tasks, notes, math and coloured code are what they should be", () => withPage(browser, CHAT, async (page) => {
    await lab(page);
    await page.evaluate((texts) => {
        for (const text of texts)
            globalThis.lab.markdown(globalThis.lab.box(), text, globalThis.lab.none);
    }, Object.values(DOCUMENTS));
    const answer = page.locator(".answered > .text");
    const at = (name) => answer.nth(Object.keys(DOCUMENTS).indexOf(name));
    assert.deepEqual(await at("table").locator("th").evaluateAll((cells) => cells.slice(0, 2).map((cell) => getComputedStyle(cell).textAlign)), ["left", "right"]);
    assert.deepEqual(await at("tasks").getByRole("checkbox").evaluateAll((boxes) => boxes.map((box) => [box.checked, box.disabled, box.getAttribute("aria-label")])),
        [[false, true, "To do"], [true, true, "Done"], [true, true, "Done"], [false, true, "To do"]]);
    const notes = at("footnotes");
    assert.deepEqual(await notes.locator("sup").allTextContents(), ["1", "2", "1", "3", "3"]);
    assert.deepEqual(await notes.locator(".footnotes > ol > li").evaluateAll((items) => items.map((item) => item.textContent.slice(0, 4))), ["One\n", "Name", "Late", "Nobo"]);
    assert.match(await notes.textContent(), /none\[\^none\]/);
    await notes.getByRole("link", { name: "Footnote 2" }).click();
    assert.match(await page.evaluate(() => document.activeElement.textContent), /^Named/);
    assert.equal(await page.evaluate(() => location.hash), "");
    assert.equal(await at("math").locator("math").count(), 9);
    assert.equal(await at("math").locator("em, strong").count(), 0);
    assert.ok(await at("fences").locator(".hl-type, .hl-keyword").count() > 0);
    assert.equal(await at("nested").locator("li > .code").count(), 1);
    await page.evaluate(AXE);
    for (const colorScheme of ["light", "dark"]) {
        await page.emulateMedia({ colorScheme });
        const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
        assert.deepEqual(violations.map((v) => `${colorScheme}: ${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")}`), []);
    }
    await page.setViewportSize({ width: 320, height: 700 });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth && document.getElementById("scroll").scrollWidth <= document.getElementById("scroll").clientWidth), "wider than 320");
}));

test("a code block that streams keeps its lines, and its copy button gives all of it", () => withPage(browser, CHAT, async (page) => {
    await lab(page);
    const code = "def f(x):\n    # note\n\n    return x\n";
    await page.evaluate(async (text) => {
        const { box, TextView } = globalThis.lab, { copy } = await import("/dom.js"), view = new TextView(box(), copy);
        view.add("```py\n");
        view.add(text.slice(0, 14));
        await new Promise(requestAnimationFrame);
        const first = document.querySelector(".code code").firstChild;
        view.add(`${text.slice(14)}\`\`\`\nend`);
        view.end();
        globalThis.same = first === document.querySelector(".code code").firstChild;
    }, code);
    assert.ok(await page.evaluate(() => globalThis.same));
    assert.equal(await page.locator(".code .hl-comment").textContent(), "# note");
    await page.getByRole("button", { name: "Copy code" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), code.trimEnd());
}));

test("without its reader a text is shown as it is, and as soon as the reader comes, as it should be", async () => {
    let blocked = true;
    await withPage(browser, CHAT, async (page) => {
        await page.route("**/markdownview.js*", (route) => blocked ? route.abort() : route.continue());
        await page.evaluate(async () => {
            const { TextView } = await import("/render.js"), { copy } = await import("/dom.js");
            const text = document.createElement("div");
            text.id = "late";
            document.body.append(text);
            globalThis.view = new TextView(text, copy);
            globalThis.view.show("**a** <b>");
        });
        await until(async () => await page.locator("#late").textContent() === "**a** <b>", "the text is not shown");
        blocked = false;
        await page.reload();
        await page.evaluate(async () => {
            const { TextView } = await import("/render.js"), { copy } = await import("/dom.js");
            const text = document.createElement("div");
            text.id = "late";
            document.body.append(text);
            new TextView(text, copy).show("**a** <b>", true);
        });
        await page.locator("#late strong").waitFor();
        assert.equal(await page.locator("#late").textContent(), "a <b>");
    }, { allowed: [/ERR_FAILED/] });
});

test("what the page fetches until it is painted is small; the panel and Markdown are fetched after it", () => withPage(browser, CHAT, async (page) => {
    const later = [];
    let go;
    const held = new Promise((resolve) => { go = resolve; });
    await page.route(/panel\.js|markdownview\.js/, async (route) => { // held back: all else that the page fetches is its start
        later.push(new URL(route.request().url()).pathname);
        await held;
        await route.continue();
    });
    await page.reload();
    await page.locator("#state[data-state=ready]").waitFor();
    await until(async () => later.includes("/panel.js"), "the panel is not fetched");
    const { files, painted } = await page.evaluate(() => ({
        painted: performance.getEntriesByName("first-contentful-paint").length,
        files: [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
            .filter((entry) => !["fetch", "xmlhttprequest"].includes(entry.initiatorType))
            .map((entry) => [new URL(entry.name).pathname, entry.encodedBodySize]),
    }));
    assert.equal(painted, 1);
    const sizes = new Map(files), start = [...sizes].filter(([path]) => path !== "/panel.js" && path !== "/map.css");
    const sum = start.reduce((bytes, [, size]) => bytes + size, 0);
    assert.ok(start.length > 8 && start.every(([, size]) => size > 0), JSON.stringify(start));
    assert.ok(sum < PAINT_MAX, `${sum} bytes: ${start.map((file) => file.join(" ")).join(", ")}`);
    assert.deepEqual(start.filter(([path]) => /vendor|markdown|highlight|math|machines|map/.test(path)), []);
    go();
    await page.locator(".stage").first().waitFor();
}));
