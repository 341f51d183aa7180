// What the cluster panel shows of /cluster/events, once a second. Elements are kept and changed in place, so that nothing that
// has the focus or is being read goes away. cluster.js fetches this when the page has been painted.
import { Sparkline, constellation } from "./charts.js";
import { byId, el, setText } from "./dom.js";
import { workerAdvice } from "./explain.js";
import { History } from "./history.js";
import { lossOf, showLosses } from "./losses.js";
import { Machines } from "./machines.js";
import { HistoryView, MapView, mapOf } from "./map.js";
import { bytes, count, known, milliseconds, percent, plural, rate, seconds } from "./format.js";

const HUES = 6; // stage colours in style.css
const hue = (index) => `hue-${index % HUES}`;

export class Panel {
    constructor() {
        this.stages = [];    // StageBox
        this.shape = null;   // of the stages: what they are, and in which order
        this.bar = null;     // of the layers' bar
        this.machines = new Machines();
        this.tiles = {
            speed: new Tile("Tokens per second", new Sparkline()),
            running: new Tile("Running", new Sparkline()),
            waiting: new Tile("Queue"),
            total: new Tile("Requests"),
        };
        byId("tiles").append(...Object.values(this.tiles).map((tile) => tile.node));
        this.history = new History();
        this.map = new MapView();
        this.past = new HistoryView();
        byId("tiles").after(el("h3", { class: "label" }, "Map"), this.map.node, el("h3", { class: "label" }, "The last ten minutes"), this.past.node);
    }

    show(c) {
        byId("cluster-body").hidden = false;
        const note = [plural(c.stages.length, "stage") + (c.chains > 1 ? ` in ${c.chains} chains` : ""), c.model.dtype && `rows as ${c.model.dtype}`,
            `version ${c.gateway.version}`, `up ${seconds(c.gateway.uptime_s)}`];
        setText(byId("cluster-note"), note.filter((part) => part).join(" · "));
        this.#showTiles(c.gateway);
        const now = Date.now();
        this.history.push(c, now);
        this.map.show(mapOf(c, (id, address) => this.history.lossOf(id, address), now));
        this.past.show(this.history, now);
        this.machines.show(c, (begin) => hue(Math.max(0, c.stages.findIndex((s) => s.layer_begin === begin))));
        this.#showLayers(c);
        this.#showStages(c);
        showLosses(c.recovery);
        this.#showSessions(c.sessions);
        this.#showStars(c);
    }

    #showTiles(g) {
        this.tiles.speed.show(rate(g.tokens_per_second), "all generations", g.tokens_per_second);
        this.tiles.running.show(String(g.running), `of ${g.running_max} at a time`, g.running);
        this.tiles.waiting.show(String(g.waiting), `of ${count(g.waiting_max)} places`);
        this.tiles.total.show(count(g.requests_total), `${plural(g.errors_total, "error")} · ${count(g.generated_tokens_total)} tokens`);
    }

    #showLayers(c) {
        const shape = JSON.stringify(c.stages.map((s) => [s.id, s.layer_begin, s.layer_end, s.ok]));
        if (shape === this.bar)
            return;
        this.bar = shape;
        byId("layers").replaceChildren(...c.stages.filter((s) => s.chain === 0).map((s, i) => {
            const part = el("span", { class: `part ${hue(i)}${s.ok ? "" : " gone"}` }, `${s.layer_begin}–${s.layer_end}`);
            part.style.flexGrow = s.layer_end - s.layer_begin;
            return part;
        }));
        setText(byId("layers-text"), c.stages.map((s) => `${s.id}: layers ${s.layer_begin} to ${s.layer_end} of ${c.model.layers}${s.ok ? "" : ", missing"}`).join("; "));
    }

    #showStages(c) {
        const shape = JSON.stringify(c.stages.map((s) => [s.chain, s.id, s.address, s.layer_begin, s.layer_end]));
        if (shape !== this.shape) { // other chains
            this.shape = shape;
            this.stages = c.stages.map((stage, i) => new StageBox(stage, i));
            byId("stages").replaceChildren(...this.stages.flatMap((box) => [box.link, box.node]));
        }
        for (const [i, stage] of c.stages.entries())
            this.stages[i].show(stage, c.links[i], c.model.layers, c.gateway.running > 0, lossOf(c.recovery, stage));
    }

    #showSessions(sessions) {
        byId("no-sessions").hidden = sessions.length > 0;
        byId("sessions-table").hidden = !sessions.length;
        byId("sessions").replaceChildren(...sessions.map((s) => el("tr", {},
            el("th", { scope: "row" }, s.id),
            el("td", {}, s.state), el("td", {}, seconds(s.age_s)), el("td", {}, count(s.prompt_tokens)),
            el("td", {}, count(s.generated_tokens)), el("td", {}, rate(s.tokens_per_second)))));
    }

    #showStars(c) {
        if (byId("empty").hidden)
            return;
        const ok = c.stages.map((stage) => stage.ok), shape = ok.join();
        if (byId("stars").dataset.shape !== shape) {
            byId("stars").dataset.shape = shape;
            byId("stars").replaceChildren(...(ok.length ? [constellation(ok)] : []));
        }
        setText(byId("empty-title"), !c.stages.length ? "One model, many machines" : c.stages.length === 1 ? "One model, one machine" : `One model, ${c.stages.length} stages`);
        setText(byId("empty-text"), c.stages.length ? `${c.model.id}: ${plural(c.model.layers, "layer")} over ${c.stages.map((s) => s.id).join(", ")}.` : "");
    }
}

class Tile {
    constructor(label, spark = null) {
        this.value = el("strong");
        this.note = el("span", { class: "note" });
        this.spark = spark;
        this.node = el("div", { class: "tile" }, el("span", { class: "label" }, label), this.value, this.note, spark?.node);
    }

    show(value, note, point) {
        setText(this.value, value);
        setText(this.note, note);
        this.spark?.push(point);
    }
}

/** A link and the stage that it leads to. */
class StageBox {
    constructor(stage, index) {
        this.first = stage.layer_begin === 0;
        this.linkText = el("span");
        this.link = el("li", { class: "link" }, el("span", { class: "wire", "aria-hidden": "true" }), this.linkText);
        this.state = el("span", { class: "pill small" }, el("span"));
        this.place = el("span", { class: "part" });
        this.layers = el("span");
        this.spark = new Sparkline();
        this.speed = el("strong");
        this.busy = el("span", { class: "note" });
        this.device = el("p", { class: "note" });
        this.memory = new Fact("Memory", ["weights", "kv", "other"]);
        this.kv = new Fact("Free KV", ["used"]);
        this.sessions = el("p", { class: "note" });
        // The way from the gateway to the first stage is not measured.
        this.parts = this.first ? ["compute", "queue"] : ["compute", "queue", "wire"];
        this.times = this.parts.map(() => el("dd"));
        this.timeBar = new Bar(this.parts);
        this.problem = el("div", { class: "problem", hidden: true });
        this.figures = el("div", { class: "figures" },
            el("div", { class: "flow" }, el("p", {}, this.speed, " tok/s"), this.spark.node, this.busy),
            el("dl", { class: "times" }, ...this.parts.map((name, i) => el("div", {}, el("dt", { class: `key-${name}` }, name), this.times[i]))),
            this.timeBar.node,
            el("div", { class: "facts" }, this.memory.node, this.kv.node),
            this.device, this.sessions);
        this.node = el("li", { class: `stage ${hue(index)}` },
            el("div", { class: "stage-head" }, el("h3", {}, stage.id), el("span", { class: "note address" }, stage.address), this.state),
            el("div", { class: "layers-line" }, el("div", { class: "layers", "aria-hidden": "true" }, this.place), this.layers),
            this.problem, this.figures);
    }

    show(s, link, layers, running, loss) {
        const way = [`${milliseconds(link.rtt_ms)} round trip`, ...(this.first ? [] : [`${milliseconds(link.wire_ms)} per step`])];
        setText(this.linkText, `${link.from} → ${link.to}: ${link.rtt_ms === null ? "no answer" : way.join(", ")}`);
        this.link.classList.toggle("live", running && s.ok);
        this.link.classList.toggle("gone", !s.ok);
        this.node.classList.toggle("gone", !s.ok);
        this.state.dataset.state = s.ok ? "ready" : "down";
        setText(this.state.firstChild, s.ok ? s.state : s.state && s.state !== "serving" ? s.state : s.device ? "does not fit" : "missing");
        this.place.style.marginInlineStart = `${s.layer_begin / layers * 100}%`;
        this.place.style.width = `${(s.layer_end - s.layer_begin) / layers * 100}%`;
        setText(this.layers, `layers ${s.layer_begin}–${s.layer_end} of ${layers}`);
        this.#showProblem(s, loss);
        this.figures.hidden = !s.device;
        this.spark.push(s.tokens_per_second);
        if (!s.device)
            return;
        setText(this.speed, rate(s.tokens_per_second));
        setText(this.busy, `${percent(s.busy)} busy${s.prompt_tokens_per_second >= 0.5 ? ` · prompt ${rate(s.prompt_tokens_per_second)} tok/s` : ""}`);
        const times = this.parts.map((name) => s[`${name}_ms`]);
        for (const [i, time] of times.entries())
            setText(this.times[i], milliseconds(time));
        this.timeBar.show(times);
        this.#showFacts(s);
    }

    #showFacts(s) {
        const m = s.memory, own = m.weights_bytes + m.kv_bytes;
        // The CPU has no memory of its own: ggml says that all of the machine's is free.
        const [total, free] = s.backend !== "CPU" && m.device_bytes ? [m.device_bytes, m.device_free_bytes] : [m.host_bytes, m.host_free_bytes];
        this.memory.show(`${bytes(free)} of ${bytes(total)} free`, `${bytes(m.weights_bytes)} weights, ${bytes(m.kv_bytes)} KV`,
            [m.weights_bytes, m.kv_bytes, Math.max(0, total - free - own)], total);
        this.kv.show(`${count(s.kv_tokens_free)} of ${plural(s.kv_tokens, "token")}`, `${s.sequences_free} of ${plural(s.sequences, "sequence")} free`,
            [s.kv_tokens - s.kv_tokens_free], s.kv_tokens);
        const names = [s.device, ...(s.device_description && s.device_description !== s.device ? [s.device_description] : [])];
        setText(this.device, `${names.join(", ")}${s.threads ? `, ${plural(s.threads, "thread")}` : ""} · llama.cpp ${s.llama_version}`);
        setText(this.sessions, `Sessions: ${s.sessions_open} open, ${s.sessions_kept} kept${s.sessions_held ? `, ${s.sessions_held} held` : ""} · ${plural(s.jobs_queued, "step")} queued · up ${seconds(s.uptime_s)}`);
    }

    #showProblem(s, loss) {
        this.problem.hidden = !s.error;
        const text = s.error ? [s.error.message, loss].filter((part) => part).join(" ") : "";
        if (this.problem.dataset.text !== text && text)
            this.problem.replaceChildren(el("p", {}, text), el("p", { class: "advice" }, workerAdvice(s)));
        this.problem.dataset.text = text;
    }
}

/** A name, two lines of text and a bar. */
class Fact {
    constructor(name, parts) {
        this.first = el("span");
        this.second = el("span", { class: "note" });
        this.bar = new Bar(parts);
        this.node = el("div", {}, el("span", { class: "label" }, name), this.first, this.bar.node, this.second);
    }

    show(first, second, values, total) {
        setText(this.first, first);
        setText(this.second, second);
        this.bar.show(values, total);
    }
}

/** Parts of a whole side by side; the numbers stand beside it as text. */
class Bar {
    constructor(names) {
        this.parts = names.map((name) => el("span", { class: `part key-${name}` }));
        this.node = el("div", { class: "bar-thin", "aria-hidden": "true" }, ...this.parts);
    }

    show(values, total = values.reduce((sum, v) => sum + (v || 0), 0)) {
        for (const [i, part] of this.parts.entries())
            part.style.width = `${total > 0 ? (values[i] || 0) / total * 100 : 0}%`;
    }
}
