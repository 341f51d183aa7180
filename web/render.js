// A model's text as elements: fenced code, paragraphs, inline code and bold; everything else stays as it was written.
// The text is not trusted: it only becomes text nodes, and no link or image is ever made of it.
import { el } from "./dom.js";

/** Cuts text into blocks: { code: bool, text, language }. An open fence (the text still streams) runs to the end. */
export function blocks(text) {
    const found = [];
    let lines = [], fence = null;
    const flush = (code, language = "") => {
        const joined = lines.join("\n");
        lines = [];
        if (code || joined.trim())
            found.push({ code, language, text: code ? joined : joined.replace(/^\n+|\s+$/g, "") });
    };
    for (const line of text.split("\n")) {
        const mark = /^\s{0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(line);
        if (fence && mark && mark[1].startsWith(fence.mark) && !mark[2]) {
            flush(true, fence.language);
            fence = null;
        } else if (!fence && mark) {
            flush(false);
            fence = { mark: mark[1], language: mark[2] };
        } else if (!fence && !line.trim())
            flush(false);
        else
            lines.push(line);
    }
    flush(!!fence, fence?.language);
    return found;
}

function inline(text) {
    const nodes = [];
    let at = 0;
    for (const m of text.matchAll(/`([^`\n]+)`|\*\*(?=\S)([^*\n]+?)(?<=\S)\*\*/g)) {
        nodes.push(text.slice(at, m.index), m[1] !== undefined ? el("code", {}, m[1]) : el("strong", {}, m[2]));
        at = m.index + m[0].length;
    }
    nodes.push(text.slice(at));
    return nodes;
}

function toElement(block, copy) {
    if (!block.code)
        return el("p", {}, ...inline(block.text));
    const button = el("button", { type: "button", class: "quiet", onclick: () => copy(block.text, button) }, "Copy code");
    return el("div", { class: "code" },
        el("div", { class: "code-head" }, el("span", {}, block.language || "code"), button),
        el("pre", { tabindex: "0", role: "group", "aria-label": "Code" }, el("code", {}, block.text)));
}

/** Shows text in a container; while it streams only the blocks that changed are made anew. */
export class TextView {
    constructor(container, copy) {
        this.container = container;
        this.copy = copy;
        this.shown = [];
    }

    show(text) {
        const next = blocks(text);
        let same = 0;
        while (same < next.length && same < this.shown.length && equal(next[same], this.shown[same]))
            same++;
        while (this.container.childNodes.length > same)
            this.container.lastChild.remove();
        this.container.append(...next.slice(same).map((block) => toElement(block, this.copy)));
        this.shown = next;
    }
}

const equal = (a, b) => a.code === b.code && a.text === b.text && a.language === b.language;
