// The cluster as a map: machines as boxes with their layers, in the order in which a token goes through them, and the links
// between them. The picture is for who sees it; a list behind it says the same.
import { el, setText, svg } from "./dom.js";
import { known, milliseconds, percent, rate } from "./format.js";
import { ago } from "./history.js";

const GUTTER = 16, GAP = 74, ROW_GAP = 38, BOX = 66, TOP = 34, BOX_MIN = 118;
const NAME_MAX = 22; // characters of a name in a box; the list has all of it

/** What the map shows of /cluster's object: { gateway, chains: [[box, ...], ...], others: [box, ...] }. lossOf(id, address): a
 *  loss of the last minutes; now: ms. */
export function mapOf(c, lossOf, now) {
    const members = c.cluster?.members ?? [], used = new Set(), chains = [];
    const running = c.gateway.running > 0;
    for (const [i, stage] of c.stages.entries()) {
        const member = members.find((m) => m.address && m.address === stage.address), before = chains[stage.chain]?.at(-1);
        if (member)
            used.add(member.id);
        const link = c.links[i] ?? {}, wire = before?.member && member ? linkOf(c.cluster.links ?? [], before.member, member.id) : null;
        const loss = lossOf(stage.id, stage.address), rtt = stage.ok ? link.rtt_ms ?? wire?.rtt_ms ?? null : null;
        (chains[stage.chain] ??= []).push({
            key: `${stage.chain} ${stage.id} ${stage.address}`, name: member?.name ?? stage.id, member: member?.id,
            layers: `layers ${stage.layer_begin}–${stage.layer_end}`, hue: i, ok: stage.ok, busy: stage.ok && known(stage.busy) ? stage.busy : null,
            share: known(c.model.layers) && c.model.layers > 0 ? [stage.layer_begin / c.model.layers, stage.layer_end / c.model.layers] : [0, 0],
            note: !stage.ok ? loss ? `lost ${ago(now - loss.at)}` : "missing" : loss ? "back, was lost" : known(stage.busy) ? `${percent(stage.busy)} busy` : stage.state ?? "",
            said: stage.ok && loss ? `lost ${ago(now - loss.at)}, back` : "", // the list has room for more
            troubled: !!loss,
            link: { ok: stage.ok && rtt !== null, live: running && stage.ok, rtt: rtt === null ? "no answer" : milliseconds(rtt), rate: stage.ok ? bits(wire?.rate) : "" },
        });
    }
    const others = members.filter((m) => !used.has(m.id)).map((m) => ({
        key: `member ${m.id}`, name: m.name, layers: m.holds ? `layers ${m.holds.begin}–${m.holds.end}` : "no layers", hue: -1, ok: !/^(gone|lost|failed)$/.test(m.state),
        busy: m.progress?.of > 0 ? Math.min(1, m.progress.bytes / m.progress.of) : null, share: [0, 0],
        said: "", note: [m.state, m.progress?.of > 0 && percent(Math.min(1, m.progress.bytes / m.progress.of))].filter((part) => part).join(" "), troubled: false, link: null,
    }));
    const g = c.gateway;
    return { gateway: `Gateway · ${g.running} running · ${g.waiting} waiting`, chains: chains.filter((chain) => chain), others };
}

const linkOf = (links, a, b) => links.find((l) => !l.no_way && ((l.a === a && l.b === b) || (l.a === b && l.b === a))) ?? null;
const bits = (bytesPerSecond) => known(bytesPerSecond) ? bytesPerSecond >= 1.25e8 ? `${rate(bytesPerSecond * 8 / 1e9)} Gbit/s` : `${rate(bytesPerSecond * 8 / 1e6)} Mbit/s` : "";

/** Where everything stands for a width in pixels: each chain goes to and fro in rows, so that neighbours are side by side. */
export function layout(map, width) {
    const inner = Math.max(BOX_MIN, width - GUTTER), columns = Math.max(1, Math.min(4, Math.floor((inner + GAP) / (BOX_MIN + GAP))));
    const box = (inner - (columns - 1) * GAP) / columns, places = [], links = [];
    let y = TOP + ROW_GAP;
    const at = (i) => {
        const row = Math.floor(i / columns), column = i % columns;
        return { x: GUTTER + (row % 2 ? columns - 1 - column : column) * (box + GAP), y: y + row * (BOX + ROW_GAP), row };
    };
    for (const chain of map.chains) {
        let before = null;
        for (let i = 0; i < chain.length; i++) {
            const here = at(i), middle = here.y + BOX / 2;
            if (!before)
                links.push({ d: `M${GUTTER / 2} ${TOP}V${middle}H${here.x}`, x: here.x + 4, y: here.y - 9, anchor: "start", wide: true });
            else if (before.row === here.row) {
                const [from, to] = here.x > before.x ? [before.x + box, here.x] : [before.x, here.x + box];
                links.push({ d: `M${from} ${middle}H${to}`, x: (from + to) / 2, y: middle - 8, anchor: "middle", wide: false });
            } else {
                const x = here.x + box / 2, left = x > width / 2; // the words stay within the picture
                links.push({ d: `M${x} ${before.y + BOX}V${here.y}`, x: x + (left ? -8 : 8), y: here.y - ROW_GAP / 2 + 4, anchor: left ? "end" : "start", wide: true });
            }
            places.push(here);
            before = here;
        }
        y = before.y + BOX + ROW_GAP;
    }
    if (map.others.length)
        y -= ROW_GAP - 12;
    for (let i = 0; i < map.others.length; i++) {
        const row = Math.floor(i / columns);
        places.push({ x: GUTTER + i % columns * (box + GAP), y: y + row * (BOX + 12) });
    }
    const last = places.at(-1);
    return { box, columns, places, links, height: (last ? last.y + BOX : TOP) + 4 };
}

export class MapView {
    constructor() {
        this.picture = svg("svg", { class: "map", "aria-hidden": "true" });
        this.list = el("ul", { class: "hidden", "aria-label": "Map" });
        this.frame = el("div", {}, this.picture);
        this.node = el("div", {}, this.frame, this.list);
        this.map = null;
        this.shape = "";
        new ResizeObserver(() => this.map && this.#draw()).observe(this.frame);
    }

    show(map) {
        this.map = map;
        this.#draw();
        const said = [`${map.gateway}.`, ...map.chains.flatMap((chain, k) => chain.map((box, i) => sentence(box, map.chains.length > 1 ? `Chain ${k + 1}: ` : "", i ? chain[i - 1].name : "the gateway"))),
            ...map.others.map((box) => sentence(box, "In no chain: "))];
        while (this.list.children.length > said.length)
            this.list.lastChild.remove();
        while (this.list.children.length < said.length)
            this.list.append(el("li"));
        for (const [i, text] of said.entries())
            setText(this.list.children[i], text);
    }

    #draw() {
        const { map } = this, width = this.frame.clientWidth, boxes = [...map.chains.flat(), ...map.others];
        if (!width) // not shown now
            return;
        const shape = JSON.stringify([width, map.chains.map((chain) => chain.map((box) => box.key)), map.others.map((box) => box.key)]);
        if (shape !== this.shape) {
            this.shape = shape;
            this.#build(layout(map, width), width, boxes);
        }
        setText(this.gateway, map.gateway);
        for (const [i, box] of boxes.entries())
            this.boxes[i].show(box);
        for (const [i, box] of map.chains.flat().entries())
            this.links[i].show(box.link);
    }

    #build(where, width, boxes) {
        this.gateway = svg("text", { class: "map-name", x: 12, y: TOP / 2 + 4 });
        this.boxes = boxes.map((box, i) => new Box(where.places[i], where.box));
        this.links = where.links.map((link) => new Link(link));
        for (const [name, value] of Object.entries({ width, height: where.height, viewBox: `0 0 ${width} ${where.height}` }))
            this.picture.setAttribute(name, value);
        this.picture.replaceChildren(svg("rect", { class: "map-gateway", x: .5, y: .5, width: width - 1, height: TOP - 1, rx: 8 }), this.gateway,
            ...this.links.map((link) => link.node), ...this.boxes.map((box) => box.node));
    }
}

function sentence(box, before, from = null) {
    const link = box.link ? `; from ${from} ${box.link.ok ? [`${box.link.rtt} round trip`, box.link.rate].filter((part) => part).join(", ") : "no answer"}` : "";
    return `${before}${box.name}, ${box.layers}: ${box.said || box.note}${link}.`;
}

const short = (name, pixels) => {
    const room = Math.min(NAME_MAX, Math.floor(pixels / 7.6));
    return [...name].length > room ? `${[...name].slice(0, room - 1).join("")}…` : name;
};

class Box {
    constructor({ x, y }, width) {
        this.width = width;
        this.name = svg("text", { class: "map-name", x: 12, y: 20 });
        this.layers = svg("text", { class: "map-text", x: 12, y: 37 });
        this.note = svg("text", { class: "map-text map-note", x: 12, y: 53 });
        this.whole = svg("rect", { class: "map-layers", x: 12, y: 59, width: width - 24, height: 3, rx: 1.5 });
        this.part = svg("rect", { class: "map-part", y: 59, height: 3, rx: 1.5 });
        this.busy = svg("rect", { class: "map-busy", x: 0, y: 0, height: BOX, rx: 9 });
        this.title = svg("title");
        this.node = svg("g", { transform: `translate(${x} ${y})` }, this.title, svg("rect", { class: "map-box", width, height: BOX, rx: 9 }), this.busy,
            this.whole, this.part, this.name, this.layers, this.note);
    }

    show(box) {
        set(this.node, "class", `map-machine ${box.hue < 0 ? "map-other" : `hue-${box.hue % 6}`}${box.ok ? "" : " gone"}${box.troubled ? " troubled" : ""}`);
        setText(this.name, short(box.name, this.width - 24));
        setText(this.layers, box.layers);
        setText(this.note, box.note);
        setText(this.title, `${box.name}, ${box.layers}`);
        set(this.busy, "width", ((box.busy ?? 0) * this.width).toFixed(1));
        const room = this.width - 24, [begin, end] = box.share;
        set(this.part, "x", (12 + begin * room).toFixed(1));
        set(this.part, "width", ((end - begin) * room).toFixed(1));
        set(this.whole, "visibility", end ? "visible" : "hidden");
    }
}

class Link {
    constructor({ d, x, y, anchor, wide }) {
        this.wide = wide;
        this.first = svg("text", { class: "map-text", x, y, "text-anchor": anchor });
        this.second = wide ? null : svg("text", { class: "map-text", x, y: y + 24, "text-anchor": anchor });
        this.node = svg("g", {}, svg("path", { class: "map-wire", d }), this.first, this.second);
    }

    show(link) {
        set(this.node, "class", `map-link${link.live ? " live" : ""}${link.ok ? "" : " gone"}`);
        setText(this.first, this.wide ? [link.rtt, link.rate].filter((part) => part).join(", ") : link.rtt);
        if (this.second)
            setText(this.second, link.rate);
    }
}

function set(node, name, value) {
    if (node.getAttribute(name) !== String(value))
        node.setAttribute(name, value);
}

/** Small charts of the last ten minutes (history.js). */
export class HistoryView {
    constructor() {
        this.speed = new Chart("Tokens per second", "speed", rate);
        this.waiting = new Chart("Waiting", "waiting", String);
        this.said = el("p", { class: "hidden" });
        this.node = el("div", { class: "history" }, this.speed.node, this.waiting.node,
            el("p", { class: "note history-axis", "aria-hidden": "true" }, el("span", {}, "10 min ago"), el("span", {}, "5 min"), el("span", {}, "now")), this.said);
    }

    show(history, now) {
        const marks = history.marksAt(now);
        this.speed.show(history, now, marks);
        this.waiting.show(history, now, marks);
        const losses = marks.length ? ` ${marks.length === 1 ? "1 loss" : `${marks.length} losses`}: ${marks.map((mark) => `${mark.text} ${ago(now - mark.at)}`).join(", ")}.` : " No losses.";
        setText(this.said, `Tokens per second, at most: ${rate(history.most("speed"))}. Waiting, at most: ${history.most("waiting")}.${losses}`);
    }
}

const CHART = { width: 600, height: 40 };

class Chart {
    constructor(label, name, write) {
        this.name = name;
        this.write = write;
        this.value = el("span");
        this.line = svg("path", { class: "spark-line" });
        this.area = svg("path", { class: "spark-area" });
        this.marks = svg("g");
        this.node = el("div", { class: `chart chart-${name}` }, el("p", { class: "note" }, el("span", { class: "label" }, label), this.value),
            svg("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line, this.marks));
    }

    show(history, now, marks) {
        const most = history.most(this.name), last = history.samples.at(-1)?.[this.name] ?? 0;
        const point = ([x, value]) => `${(x * CHART.width).toFixed(1)} ${(CHART.height - 1.5 - value / Math.max(most, 1e-9) * (CHART.height - 6)).toFixed(1)}`;
        const runs = history.runs(this.name, now).map((run) => run.length > 1 ? run : [run[0], run[0]]);
        this.line.setAttribute("d", runs.map((run) => `M${run.map(point).join("L")}`).join(""));
        this.area.setAttribute("d", runs.map((run) => `M${(run[0][0] * CHART.width).toFixed(1)} ${CHART.height}L${run.map(point).join("L")}L${(run.at(-1)[0] * CHART.width).toFixed(1)} ${CHART.height}Z`).join(""));
        setText(this.value, `${this.write(last)} now, ${this.write(most)} at most`);
        while (this.marks.childNodes.length > marks.length)
            this.marks.lastChild.remove();
        for (const [i, mark] of marks.entries()) {
            const line = this.marks.childNodes[i] ?? this.marks.appendChild(svg("path", { class: "chart-mark" }, svg("title")));
            line.setAttribute("d", `M${(mark.x * CHART.width).toFixed(1)} 0V${CHART.height}`);
            setText(line.firstChild, `${mark.text} ${ago(now - mark.at)}`);
        }
    }
}
