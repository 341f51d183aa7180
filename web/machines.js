// The machines of a cluster that plans itself: /cluster's "cluster" and "join_line". Where there are none of these, nothing of it is
// shown. Boxes are kept and changed in place.
import { byId, copy, el, setText } from "./dom.js";
import { bytes, known, milliseconds, percent, rate } from "./format.js";

const STATES = { ready: "ready", serving: "ready", gone: "down", lost: "down", failed: "down" }; // the others are on their way

export class Machines {
    constructor() {
        this.boxes = new Map(); // id -> MachineBox
        byId("join-copy").addEventListener("click", () => copy(byId("join-line").textContent, byId("join-copy")));
    }

    /** c: /cluster's object. hueOf(begin): the hue of the stage with this first layer. */
    show(c, hueOf) {
        const cluster = c.cluster;
        byId("join").hidden = !c.join_line;
        setText(byId("join-line"), c.join_line ?? "");
        byId("machines-part").hidden = !cluster;
        if (!cluster)
            return;
        const members = cluster.members ?? [], layers = c.model.layers ?? Math.max(0, ...members.map((m) => m.holds?.end ?? 0));
        setText(byId("plan"), describePlan(cluster.plan));
        setText(byId("plan-warning"), cluster.plan?.warning ?? "");
        byId("plan-warning").hidden = !cluster.plan?.warning;
        for (const m of members) {
            let box = this.boxes.get(m.id);
            if (!box)
                this.boxes.set(m.id, box = new MachineBox());
            box.show(m, layers, m.holds ? hueOf(m.holds.begin) : "");
            box.showLinks(cluster.links ?? [], members);
        }
        for (const id of this.boxes.keys())
            if (!members.some((m) => m.id === id))
                this.boxes.delete(id);
        const nodes = members.map((m) => this.boxes.get(m.id).node), list = byId("machines");
        if (nodes.length !== list.children.length || nodes.some((node, i) => node !== list.children[i]))
            list.replaceChildren(...nodes);
        const spares = (cluster.spares ?? []).map((s) => [s.name, s.reason]), said = JSON.stringify(spares);
        byId("spares-part").hidden = !spares.length;
        if (byId("spares").dataset.said !== said)
            byId("spares").replaceChildren(...spares.map(([name, reason]) => el("li", {}, el("strong", {}, name), `: ${reason}`)));
        byId("spares").dataset.said = said;
    }
}

function describePlan(p) {
    if (!p)
        return "No plan yet.";
    const rates = [["predicted", p.predicted], ["measured", p.measured]].filter(([, value]) => known(value));
    return [`Plan ${p.epoch}`, p.kind, ...rates.map(([name, value]) => `${name} ${rate(value)} tok/s`)].filter((part) => part).join(" · ");
}

const bits = (bytesPerSecond) => known(bytesPerSecond) ? `${rate(bytesPerSecond * 8 / 1e6)} Mbit/s` : null;

class MachineBox {
    constructor() {
        this.name = el("h4");
        this.address = el("span", { class: "note address" });
        this.state = el("span", { class: "pill small" }, el("span"));
        this.place = el("span", { class: "part" });
        this.layers = el("span");
        this.line = el("div", { class: "layers-line" }, el("div", { class: "layers", "aria-hidden": "true" }, this.place), this.layers);
        this.doing = el("p", { class: "note" });
        this.done = el("span", { class: "part key-used" });
        this.bar = el("div", { class: "bar-thin", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "Fetched" }, this.done);
        this.fetched = el("p", { class: "note" });
        this.facts = el("p", { class: "note" });
        this.links = el("p", { class: "note" });
        this.node = el("li", {}, el("div", { class: "stage-head" }, this.name, this.address, this.state), this.line,
            this.doing, this.bar, this.fetched, this.facts, this.links);
    }

    show(m, layers, hue) {
        const state = STATES[m.state] ?? "unknown", p = m.progress;
        this.node.className = `stage machine ${hue}${state === "down" ? " gone" : ""}`;
        setText(this.name, m.name);
        setText(this.address, m.address ?? "");
        this.state.dataset.state = state;
        setText(this.state.firstChild, m.state ?? "");
        this.line.hidden = !m.holds;
        if (m.holds && layers > 0) {
            this.place.style.marginInlineStart = `${m.holds.begin / layers * 100}%`;
            this.place.style.width = `${(m.holds.end - m.holds.begin) / layers * 100}%`;
            setText(this.layers, `layers ${m.holds.begin}–${m.holds.end} of ${layers}`);
        }
        set(this.doing, m.doing);
        this.bar.hidden = !p;
        if (p) {
            const share = p.of > 0 ? Math.min(1, p.bytes / p.of) : 0, left = p.rate > 0 ? (p.of - p.bytes) / p.rate : NaN;
            this.done.style.width = `${share * 100}%`;
            this.bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
            set(this.fetched, [`${bytes(p.bytes)} of ${bytes(p.of)}, ${percent(share)}`, known(p.rate) && `${bytes(p.rate)}/s`,
                known(left) && `${Math.ceil(left)} s left`].filter((part) => part).join(" · "));
        } else
            set(this.fetched, "");
        set(this.facts, [known(m.memory) && `${bytes(m.memory)} memory`, known(m.predicted_ms) && `${milliseconds(m.predicted_ms)} per token predicted`]
            .filter((part) => part).join(" · "));
        this.id = m.id;
    }

    showLinks(links, members) {
        const name = (id) => members.find((m) => m.id === id)?.name ?? id;
        const own = links.filter((l) => l.a === this.id).map((l) => l.no_way ? `→ ${name(l.b)}: cannot be connected to`
            : [`→ ${name(l.b)}: ${milliseconds(l.rtt_ms)} round trip`, bits(l.rate)].filter((part) => part).join(", "));
        set(this.links, own.join("; "));
    }
}

function set(node, text) {
    node.hidden = !text;
    setText(node, text || "");
}
