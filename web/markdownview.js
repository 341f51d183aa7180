// Markdown as elements, while it streams. The text is a model's and is not trusted: tokens become elements and text nodes, never
// markup. A link leads only to http, https and mail; a picture is a link that says so, and is not fetched.
import { el } from "./dom.js";
import { Colours, modeOf } from "./highlight.js";
import { MarkdownStream, parse } from "./markdown.js";
import { readTex } from "./math.js";

let views = 0; // so that footnotes of two answers do not mix

export class MarkdownView {
    /** copy(text, button): the copy buttons of code. */
    constructor(container, copy) {
        this.container = container;
        this.copy = copy;
        this.id = `note-${++views}`;
        this.stream = new MarkdownStream(this);
        this.open = [];         // nodes of what is not finished
        this.levels = [];       // of the headings so far
        this.finished = [];     // { source, nodes, levels, missing }: what later definitions of links may change
        this.fence = null;      // Code that is being written
    }

    add(text) {
        this.stream.add(text);
    }

    update() {
        this.stream.update();
    }

    end() {
        this.stream.end();
        this.#links();
        showFootnotes(this.container, this.id);
    }

    // ---- what the stream says ----

    blocks(finished, open, source) {
        const done = [], levels = [...this.levels];
        for (const block of finished)
            done.push(...this.#build(block));
        const kept = [...this.levels], rest = open.flatMap((block) => this.#build(block));
        this.levels = kept;
        const nodes = reconcile(this.container, this.open, [...done, ...rest]);
        this.open = nodes.slice(done.length);
        const missing = finished.length ? labels(source()).filter((label) => !this.stream.references[label]) : [];
        if (missing.length)
            this.finished.push({ source: source(), nodes: nodes.slice(0, done.length), levels, missing });
    }

    rest(text) {
        const last = this.open.at(-1);
        if (this.more) {
            this.more.data = text;
            if (this.more.isConnected)
                return;
        }
        this.more = document.createTextNode(text);
        if (text && last)
            deepest(last).append(this.more);
        else if (text) {
            this.open = [el("p", {}, this.more)];
            this.container.append(...this.open);
        }
    }

    code(language) {
        this.fence = new Code(language, this.copy);
        this.container.append(this.fence.node);
    }

    line(text) {
        this.fence.line(text);
    }

    part(text) {
        this.fence.part(text);
    }

    closed() {
        this.fence.part("");
        this.fence = null;
    }

    // ---- ----

    #build(block) {
        return build(block, { copy: this.copy, levels: this.levels });
    }

    /** Blocks whose links were defined only after them are made once more. */
    #links() {
        const all = this.stream.references;
        for (const { source, nodes, levels, missing } of this.finished) {
            if (!missing.some((label) => all[label]))
                continue;
            const parts = { copy: this.copy, levels };
            reconcile(this.container, nodes, this.stream.again(source).flatMap((block) => build(block, parts)));
        }
        this.finished = [];
    }
}

/** A text that is complete, as nodes in a container that has none. */
export function markdown(container, text, copy) {
    const parts = { copy, levels: [] };
    container.append(...parse(text).flatMap((block) => build(block, parts)));
    showFootnotes(container, `note-${++views}`);
}

/** What stands in brackets and could be the label of a link, as markdown-it writes labels. */
function labels(source) {
    return [...source.matchAll(/\[((?:[^\[\]\\]|\\.){1,1000})\]/g)].map((m) => m[1].trim().replace(/\s+/g, " ").toLowerCase().toUpperCase());
}

function deepest(node) {
    let at = node;
    while (at.lastElementChild && !at.matches("pre, a, code, math") && at.lastChild === at.lastElementChild)
        at = at.lastElementChild;
    return at.matches("a, code, math") ? at.parentElement : at;
}

/** Puts wanted where old is. Nodes that would be made the same again stay what they are. Returns what stands there now. */
function reconcile(parent, old, wanted) {
    const before = old.at(-1)?.nextSibling ?? null, now = [];
    for (const [i, want] of wanted.entries()) {
        const have = old[i];
        if (!have) {
            parent.insertBefore(want, before);
            now.push(want);
        } else if (have.isEqualNode(want))
            now.push(have);
        else if (sameShell(have, want)) {
            reconcile(have, [...have.childNodes], [...want.childNodes]);
            now.push(have);
        } else {
            have.replaceWith(want);
            now.push(want);
        }
    }
    for (const node of old.slice(wanted.length))
        node.remove();
    return now;
}

function sameShell(a, b) {
    return a.nodeType === Node.ELEMENT_NODE && a.nodeName === b.nodeName && a.namespaceURI === b.namespaceURI && a.attributes.length === b.attributes.length &&
        [...a.attributes].every(({ name, value }) => b.getAttribute(name) === value);
}

// ---- tokens as elements ----

/** parts: { copy, levels }. */
function build(tokens, parts) {
    const top = document.createDocumentFragment(), stack = [top];
    let at = top, task = false;
    const open = (node, inner = node) => {
        at.append(node);
        stack.push(at = inner);
    };
    const close = () => {
        stack.pop();
        at = stack.at(-1);
    };
    for (const [i, token] of tokens.entries()) {
        const { type } = token;
        if (type === "inline") {
            inline(at, token.children, task ? 4 : 0);
            task = false;
        } else if (type === "paragraph_open") {
            if (token.hidden)
                stack.push(at);
            else
                open(el("p"));
        } else if (type === "heading_open")
            open(tokens[i + 1].content ? heading(Number(token.tag.slice(1)), parts.levels) : el("p")); // one without words is none
        else if (type === "list_item_open") {
            const first = tokens[i + 1]?.type === "paragraph_open" ? tokens[i + 2] : null;
            const box = /^\[([ xX])\][ \t\n]/.exec(first?.content ?? "");
            open(el("li", { class: box ? "task" : null }));
            if (box) {
                task = true;
                at.append(el("input", { type: "checkbox", disabled: true, checked: box[1] !== " ", "aria-label": box[1] === " " ? "To do" : "Done" }), " ");
            }
        } else if (type === "ordered_list_open")
            open(el("ol", { start: token.attrGet("start") }));
        else if (type === "bullet_list_open" || type === "blockquote_open" || /^(thead|tbody|tr)_open$/.test(type))
            open(el(token.tag));
        else if (type === "table_open") {
            const table = el("table");
            open(el("div", { class: "md-table", tabindex: "0", role: "group", "aria-label": "Table" }, table), table);
        } else if (type === "th_open" || type === "td_open") {
            const side = /text-align:(\w+)/.exec(token.attrGet("style") ?? "")?.[1];
            open(el(token.tag, { scope: type === "th_open" ? "col" : null, class: side ? `to-${side}` : null }));
        } else if (type === "footnote_open")
            open(el("div", { class: "footnote", "data-note": token.meta.label }));
        else if (token.nesting < 0)
            close();
        else if (type === "hr")
            at.append(el("hr"));
        else if (type === "fence" || type === "code_block") {
            const code = new Code(token.info.trim().split(/\s+/)[0], parts.copy);
            for (const line of token.content.replace(/\n$/, "").split("\n"))
                if (token.content)
                    code.line(line);
            at.append(code.node);
        } else if (type === "math_block")
            at.append(math(token.content, true));
        else
            at.append(token.content);
    }
    return [...top.childNodes];
}

/** Headings of an answer come below the page's own; no level is left out, whatever the model leaves out. */
function heading(level, levels) {
    while (levels.length && levels.at(-1) >= level)
        levels.pop();
    levels.push(level);
    return el(`h${Math.min(6, levels.length + 1)}`, { class: `level-${level}` });
}

/** skip: characters at the begin that are shown otherwise. */
function inline(parent, tokens, skip) {
    const stack = [parent];
    let at = parent;
    const text = (content) => {
        const after = at.lastChild?.classList?.contains("display"); // a formula on lines of its own
        const shown = after ? content.slice(skip).trimStart() : content.slice(skip);
        skip = 0;
        if (at.lastChild?.nodeType === Node.TEXT_NODE)
            at.lastChild.data += shown;
        else if (shown)
            at.append(shown);
    };
    for (const token of tokens) {
        const { type } = token;
        if (type === "text")
            text(token.content);
        else if (type === "softbreak")
            text("\n");
        else if (type === "hardbreak")
            at.append(el("br"));
        else if (type === "code_inline")
            at.append(el("code", {}, token.content));
        else if (type === "math_inline")
            at.append(math(token.content, token.markup === "$$" || token.markup === "\\["));
        else if (type === "footnote_ref")
            at.append(el("sup", { class: "footnote-ref", "data-note": token.meta.label }, token.meta.label));
        else if (type === "image")
            at.append(picture(token));
        else if (type === "link_open") {
            const node = link(token.attrGet("href"), token.attrGet("title"));
            at.append(node);
            stack.push(at = node);
        } else if (/^(em|strong|s)_open$/.test(type)) {
            const node = el(token.tag);
            at.append(node);
            stack.push(at = node);
        } else if (token.nesting < 0) {
            stack.pop();
            at = stack.at(-1);
        } else
            text(token.content);
    }
}

const SAFE = /^(https?:\/\/|mailto:)/i;

function link(href, title) {
    if (!SAFE.test(href))
        return el("span", { class: "no-link", title: `not a link to the web: ${href}` });
    return el("a", { href, title, target: "_blank", rel: "noopener noreferrer" });
}

function picture(token) {
    const href = token.attrGet("src") ?? "", alt = token.content.trim();
    const node = link(href, token.attrGet("title"));
    node.classList.add("picture");
    node.append(`Picture${alt ? `: ${alt}` : ""} (not loaded)`);
    return node;
}

const MATHML = "http://www.w3.org/1998/Math/MathML";

function math(tex, display) {
    const tree = readTex(tex, display);
    const node = tree ? mathml(tree) : el("code", { class: "tex" }, tex);
    return el("span", { class: display ? "math display" : "math", ...(display ? { tabindex: "0", role: "group", "aria-label": "Formula" } : {}), "data-tex": tex }, node);
}

function mathml([tag, attributes, ...children]) {
    const node = document.createElementNS(MATHML, tag);
    for (const [name, value] of Object.entries(attributes))
        if (value !== null)
            node.setAttribute(name, value);
    node.append(...children.map((child) => typeof child === "string" ? child : mathml(child)));
    return node;
}

// ---- code ----

/** A block of code that grows by lines; each is coloured once. */
class Code {
    constructor(language, copy) {
        this.code = el("code");
        this.lines = [];
        this.partText = "";    // a line that is not complete
        this.shownPart = [];   // its nodes
        const pre = el("pre", { tabindex: "0", role: "group", "aria-label": language ? `Code, ${language}` : "Code" }, this.code);
        const button = el("button", { type: "button", class: "quiet", onclick: () => copy(pre.textContent, button) }, "Copy code");
        this.node = el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", {}, language || "code"), button), pre);
        this.colours = null;
        if (language)
            this.#colour(language);
    }

    async #colour(language) {
        const ready = known.get(language);
        const mode = ready !== undefined ? ready : await modeOf(language).catch(() => null); // without its file it stays plain
        known.set(language, mode);
        if (!mode)
            return;
        this.colours = new Colours(mode);
        // What stands there counts: a block that is made anew while the mode comes may have changed it.
        const part = this.partText, shown = this.code.textContent, lines = this.lines.length || shown ? shown.split("\n") : [];
        if (part)
            lines.pop();
        this.lines = [];
        this.shownPart = [];
        this.code.replaceChildren();
        for (const line of lines)
            this.line(line);
        this.partText = "";
        this.part(part);
    }

    line(text) {
        this.#removePart();
        this.code.append(...this.#nodes(this.colours?.line(text) ?? [["", text]]));
        this.lines.push(text);
    }

    part(text) {
        if (this.partText === text)
            return;
        this.#removePart();
        this.partText = text;
        if (!text)
            return;
        this.shownPart = this.#nodes(this.colours?.part(text) ?? [["", text]]);
        this.code.append(...this.shownPart);
    }

    #removePart() {
        for (const node of this.shownPart)
            node.remove();
        this.shownPart = [];
        this.partText = "";
    }

    #nodes(pieces) {
        const nodes = pieces.map(([style, text]) => style ? el("span", { class: style }, text) : document.createTextNode(text));
        return this.lines.length ? [document.createTextNode("\n"), ...nodes] : nodes;
    }
}

const known = new Map(); // language -> its mode, once it is here; null: there is none

// ---- footnotes ----

/** The notes go to the end, in the order in which they are named; a name without a note is text again. */
function showFootnotes(container, id) {
    const notes = new Map(), order = new Map();
    for (const note of container.querySelectorAll("div.footnote"))
        if (notes.has(note.dataset.note))
            note.remove(); // the first one counts
        else
            notes.set(note.dataset.note, note);
    for (const ref of container.querySelectorAll("sup.footnote-ref")) {
        const label = ref.dataset.note, note = notes.get(label);
        if (!note) {
            const parent = ref.parentNode;
            ref.replaceWith(`[^${label}]`);
            parent.normalize();
            continue;
        }
        let known = order.get(label);
        if (!known)
            order.set(label, known = { note, number: order.size + 1, backs: [] });
        const here = `${id}-ref-${known.number}-${known.backs.length + 1}`;
        known.backs.push(here);
        ref.replaceChildren(jump(`${id}-${known.number}`, String(known.number), `Footnote ${known.number}`, here));
    }
    for (const [label, note] of notes) {
        note.remove();
        if (!order.has(label)) // nobody names it; it is said all the same
            order.set(label, { note, number: order.size + 1, backs: [] });
    }
    if (!order.size)
        return;
    container.append(el("section", { class: "footnotes", "aria-label": "Footnotes" }, el("ol", {}, ...[...order.values()].map(({ note, number, backs }) => {
        const item = el("li", { id: `${id}-${number}`, tabindex: "-1" }, ...note.childNodes);
        const last = item.lastElementChild?.tagName === "P" ? item.lastElementChild : item;
        for (const [i, back] of backs.entries())
            last.append(" ", jump(back, "↩", `Back to the text${i ? `, place ${i + 1}` : ""}`));
        return item;
    }))));
}

/** A link within the answer. The address stays as it is: it is the page's own matter. */
function jump(target, text, label, id = null) {
    return el("a", { href: `#${target}`, id, "aria-label": label, onclick: (event) => {
        event.preventDefault();
        const node = document.getElementById(target);
        node?.scrollIntoView({ block: "nearest" });
        node?.focus({ preventScroll: true });
    } }, text);
}
