// The page's drawings, as inline SVG.
import { svg } from "./dom.js";

const POINTS = 60; // a minute of seconds

/** A line of the last minute. */
export class Sparkline {
    constructor() {
        this.values = [];
        this.area = svg("path", { class: "spark-area" });
        this.line = svg("path", { class: "spark-line" });
        this.node = svg("svg", { class: "spark", viewBox: "0 0 120 24", preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line);
    }

    push(value) {
        this.values.push(Number.isFinite(value) ? value : 0);
        if (this.values.length > POINTS)
            this.values.shift();
        const most = Math.max(1e-9, ...this.values), step = 120 / (POINTS - 1), left = 120 - (this.values.length - 1) * step;
        const points = this.values.map((v, i) => `${(left + i * step).toFixed(1)} ${(22.5 - v / most * 20).toFixed(1)}`);
        this.line.setAttribute("d", `M${points.join("L")}`);
        this.area.setAttribute("d", `M${left.toFixed(1)} 24L${points.join("L")}L120 24Z`);
    }
}

/** The stages as stars in a line: for the empty page. ok: per stage. */
export function constellation(ok) {
    const width = 320, height = 96, n = ok.length;
    const places = ok.map((_, i) => [n === 1 ? width / 2 : 28 + i * (width - 56) / (n - 1), 48 + 26 * Math.sin(i * 2.4 + 0.9)]);
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height },
        svg("path", { class: "star-line", d: `M${places.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}` }),
        ...places.map(([x, y], i) => svg("g", { class: ok[i] ? "star" : "star dim", transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})` },
            svg("circle", { class: "glow", r: 13 }),
            svg("path", { d: "M0-9C.9-2.6 2.6-.9 9 0 2.6.9.9 2.6 0 9-.9 2.6-2.6.9-9 0-2.6-.9-.9-2.6 0-9Z" }))));
}
