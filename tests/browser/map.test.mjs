// The map of the cluster and its last ten minutes (web/map.js, web/history.js): what they say, without a browser, and how they look
// in one, at a real gateway.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { launch, until, withPage } from "./browser.mjs";
import { History, SPAN_MS, ago } from "./web/history.js";
import { layout, mapOf } from "./web/map.js";

const { NK_CHAT: CHAT } = process.env;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

const gateway = { running: 1, waiting: 0, tokens_per_second: 12 };
const NONE = () => undefined;

/** A cluster of n machines that plans itself. */
function machines(n, { lost = -1, chains = 1 } = {}) {
    const stages = Array.from({ length: n * chains }, (_, i) => ({ id: `w${i}`, chain: Math.floor(i / n), address: `192.0.2.${i}:7000`, layer_begin: i % n * 4, layer_end: (i % n + 1) * 4,
        ok: i !== lost, state: "serving", busy: i === lost ? null : 0.25 }));
    return {
        gateway, stages, model: { layers: 4 * n }, links: stages.map((s, i) => ({ from: i % n ? `w${i - 1}` : "gateway", to: s.id, rtt_ms: i === lost ? null : 0.5 })),
        cluster: { members: stages.map((s, i) => ({ id: `m${i}`, name: `machine ${i}`, state: i === lost ? "lost" : "serving", address: s.address, holds: { begin: s.layer_begin, end: s.layer_end } })),
            links: stages.slice(1).map((_, i) => ({ a: `m${i + 1}`, b: `m${i}`, rtt_ms: 9, rate: 117500000 })) },
    };
}

test("the map names machines, layers, links, what is busy and what is lost", () => {
    const c = machines(3, { lost: 1 });
    c.cluster.members.push({ id: "new", name: "attic", state: "fetching", holds: { begin: 0, end: 4 }, progress: { bytes: 1, of: 4 } });
    const map = mapOf(c, (id, address) => id === "w1" && address === "192.0.2.1:7000" ? { at: 1000 } : undefined, 61000), [chain] = map.chains;
    assert.equal(map.gateway, "Gateway · 1 running · 0 waiting");
    assert.deepEqual(chain.map((box) => [box.name, box.layers, box.note, box.ok]), [["machine 0", "layers 0–4", "25 % busy", true],
        ["machine 1", "layers 4–8", "lost 1 min ago", false], ["machine 2", "layers 8–12", "25 % busy", true]]);
    assert.deepEqual(chain.map(({ link }) => [link.ok, link.live, link.rtt, link.rate]),
        [[true, true, "0.50 ms", ""], [false, false, "no answer", ""], [true, true, "0.50 ms", "940 Mbit/s"]]);
    assert.deepEqual(map.others.map((box) => [box.name, box.layers, box.note, box.busy]), [["attic", "layers 0–4", "fetching 25 %", 0.25]]);

    const back = mapOf(machines(1), () => ({ at: 1000 }), 3000);
    assert.deepEqual([back.chains[0][0].note, back.chains[0][0].said], ["back, was lost", "lost 2 s ago, back"]);
    const still = machines(2);
    still.gateway = { ...gateway, running: 0 };
    delete still.cluster; // a cluster that does not plan itself: stages have only their names
    assert.deepEqual(mapOf(still, NONE, 0).chains[0].map((box) => [box.name, box.link.live]), [["w0", false], ["w1", false]]);
    assert.deepEqual(mapOf({ ...machines(1), stages: [], links: [] }, NONE, 0).chains, []);
});

test("boxes do not overlap, none leaves the picture, and who follows whom stands side by side", () => {
    for (const n of [1, 2, 3, 8, 20])
        for (const chains of [1, 2])
            for (const width of [200, 292, 392, 600, 870]) {
                const c = machines(n, { chains }), all = n * chains;
                c.cluster.members.push({ id: "spare", name: "spare", state: "ready" });
                const { places, links, box, height, columns } = layout(mapOf(c, NONE, 0), width), what = `${n} machines, ${chains} chains, ${width} wide`;
                assert.equal(places.length, all + 1, what);
                assert.equal(links.length, all, what);
                for (const [i, a] of places.entries()) {
                    assert.ok(a.x >= 0 && a.x + box <= width + 0.01 && a.y >= 34 && a.y + 66 <= height, `${what}: box ${i} leaves the picture`);
                    for (const b of places.slice(i + 1))
                        assert.ok(Math.abs(a.x - b.x) >= box || Math.abs(a.y - b.y) >= 66, `${what}: boxes overlap`);
                }
                for (let i = 1; i < all; i++)
                    if (i % n)
                        assert.ok(places[i].y === places[i - 1].y ? Math.abs(places[i].x - places[i - 1].x) < box + 75 : Math.abs(places[i].x - places[i - 1].x) < 0.01, `${what}: ${i} is not beside ${i - 1}`);
                assert.ok(columns >= 1 && (width < 300 || columns >= 2), `${what}: ${columns} columns`);
            }
});

test("the history keeps ten minutes, one sample a second, holes and losses", () => {
    const h = new History(), at = (s) => 1e12 + s * 1000;
    const push = (s, speed, events = [], waiting = 0) => h.push({ gateway: { tokens_per_second: speed, waiting, running: 1 }, recovery: { events } }, at(s));
    const old = { time: new Date(at(-300)).toISOString(), lost: "w1", address: "a:1", cause: "silent" };
    push(0, 5, [old]);
    push(0.4, 6, [old]);
    assert.deepEqual(h.samples.map(({ speed }) => speed), [6]);
    assert.deepEqual(h.marks.map(({ text, at: when }) => [text, when]), [["w1 silent", at(-300)]]);
    push(1, 7, [old], 3);
    push(30, 8, [{ time: new Date(0).toISOString(), lost: "w0", address: "b:1", cause: "lost" }, old]); // its clock is wrong: seen now
    assert.deepEqual(h.runs("speed", at(30)).map((run) => run.map(([, value]) => value)), [[6, 7], [8]]);
    assert.equal(h.most("waiting"), 3);
    assert.equal(h.lossOf("w0", "b:1").at, at(30));
    assert.equal(h.lossOf("w0", "c:1"), undefined);
    assert.ok(Math.abs(h.marksAt(at(330))[1].x - 0.5) < 0.001);
    for (let s = 31; s < 2000; s++)
        push(s, s);
    assert.equal(h.samples.length, SPAN_MS / 1000 + 1);
    assert.deepEqual(h.marks, []);
    const [[first]] = h.runs("speed", at(1999));
    assert.ok(first[0] === 0 && first[1] === 1399, String(first));
    push(5, 1); // the clock was set back
    assert.equal(h.samples.length, 1);
    assert.deepEqual([0, 5000, 59000, 61000, 600000].map(ago), ["now", "5 s ago", "59 s ago", "1 min ago", "10 min ago"]);
});

test("the map and the history live on the page, and their list says what the picture shows", () => withPage(browser, CHAT, async (page) => {
    const c = await (await fetch(`${CHAT}/cluster`)).json(), list = page.locator("[aria-label=Map] li");
    assert.deepEqual(await page.locator(".map-machine .map-name").allTextContents(), c.stages.map((s) => s.id));
    assert.match((await list.allTextContents()).join("\n"), /^Gateway · \d+ running · \d+ waiting\.\nw0, layers 0–3: \d+ % busy; from the gateway [\d.]+ m?s round trip\.\nw1, layers 3–8: \d+ % busy; from w0 [\d.]+ m?s round trip\.$/);
    assert.equal(await page.locator(".map").getAttribute("aria-hidden"), "true");
    await until(async () => (await page.locator(".chart-speed .spark-line").getAttribute("d")).split("L").length > 2, "the history does not grow");
    assert.match(await page.locator(".history .hidden").textContent(), /^Tokens per second, at most: [\d.]+\. Waiting, at most: \d+\. /);
    // The picture follows the width of its panel.
    const width = () => page.locator(".map").evaluate((node) => [node.getBoundingClientRect().width, node.parentElement.clientWidth]);
    await page.setViewportSize({ width: 880, height: 800 });
    await page.click("#show-cluster");
    await until(async () => {
        const [picture, room] = await width();
        return picture === room && room > 700;
    }, "the map is not as wide as its panel");
    await page.evaluate(AXE);
    for (const [wide, colorScheme] of [[880, "light"], [320, "dark"]]) {
        await page.setViewportSize({ width: wide, height: 800 });
        await page.emulateMedia({ colorScheme });
        const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
        assert.deepEqual(violations.map((v) => `${wide}: ${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join("; ")}`), []);
        await until(async () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `wider than ${wide}`);
    }
}));
