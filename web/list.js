// The list of conversations: search, open, rename, delete. Beside the chat where there is room, else in a drawer.
import { byId, el, setText, svg } from "./dom.js";

const PAGE = 100; // that many are shown, and more when asked for
const SEARCH_MS = 150;
const PEN = "M3 13l1-3.5L11.5 2 14 4.5 6.5 12z", CROSS = "M4 4l8 8M12 4l-8 8";

const icon = (path) => svg("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true" }, svg("path", { d: path }));

export class ConversationList {
    /** on: { open(id), rename(id, title), remove(id), search(text): a promise of a Map, exchange() }. */
    constructor(on) {
        this.on = on;
        this.heads = [];
        this.found = null; // Map of id: text around the place; null: nothing is searched for
        this.current = null;
        this.writing = new Set();
        this.renaming = null;
        this.limit = PAGE;
        this.panel = byId("conversations");
        this.list = byId("conversation-list");
        this.search = byId("conversation-search");
        this.drawer = byId("conversations-drawer");
        let timer = 0;
        this.search.addEventListener("input", () => {
            clearTimeout(timer);
            timer = setTimeout(() => this.#search(), SEARCH_MS);
        });
        byId("more-conversations").addEventListener("click", () => {
            this.limit += PAGE;
            this.#show();
        });
        byId("exchange").addEventListener("click", () => on.exchange());
        byId("show-conversations").addEventListener("click", () => this.drawer.showModal());
        byId("close-conversations").addEventListener("click", () => this.drawer.close());
        this.drawer.addEventListener("click", (event) => event.target === this.drawer && this.drawer.close());
        const wide = matchMedia("(min-width: 1181px)"), place = () => {
            this.drawer.close();
            (wide.matches ? byId("conversations-side") : this.drawer).append(this.panel);
        };
        wide.addEventListener("change", place);
        place();
    }

    /** writing: the ids of those in which an answer is written. */
    show(heads, current, writing) {
        this.heads = heads;
        this.current = current;
        this.writing = writing;
        if (this.search.value.trim())
            this.#search();
        else
            this.#show();
    }

    async #search() {
        const text = this.search.value.trim();
        const found = text ? await this.on.search(text) : null;
        if (this.search.value.trim() !== text)
            return; // it went on
        this.found = found;
        this.#show();
    }

    #show() {
        if (this.renaming)
            return; // it would be torn away from who types
        const shown = this.found ? this.heads.filter((head) => this.found.has(head.id)) : this.heads;
        const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
        this.list.replaceChildren(...shown.slice(0, this.limit).map((head) => this.#item(head)));
        if (focused)
            ([...this.list.querySelectorAll("[data-key]")].find((node) => node.dataset.key === focused) ?? this.search).focus();
        byId("more-conversations").hidden = shown.length <= this.limit;
        setText(byId("conversations-note"), this.found && !shown.length ? `No chat has “${this.search.value.trim()}” in its title or text.`
            : this.heads.length ? "" : "Chats are kept here, in this browser only.");
        setText(byId("conversations-count"), this.found ? `${shown.length} found` : "");
    }

    #item(head) {
        const current = head.id === this.current, around = this.found?.get(head.id);
        const button = (key, attributes, ...children) => el("button", { type: "button", "data-key": `${key} ${head.id}`, ...attributes }, ...children);
        const node = el("li", { class: `conversation${current ? " current" : ""}` },
            button("open", { class: "open", "aria-current": current ? "true" : null, onclick: () => {
                this.drawer.close();
                this.on.open(head.id);
            } }, el("span", { class: "title" }, head.title), around ? el("span", { class: "around" }, around) : null,
            this.writing.has(head.id) ? el("span", { class: "around live" }, "writing …") : null),
            el("span", { class: "tools" },
                button("rename", { class: "quiet", "aria-label": `Rename ${head.title}`, title: "Rename", onclick: () => this.#rename(head, node) }, icon(PEN)),
                button("delete", { class: "quiet", "aria-label": `Delete ${head.title}`, title: "Delete", onclick: () => {
                    this.drawer.close(); // what undoes it is behind it
                    this.on.remove(head.id);
                } }, icon(CROSS))));
        return node;
    }

    #rename(head, node) {
        const input = el("input", { type: "text", "aria-label": `New title of ${head.title}`, maxlength: 200, spellcheck: "false" });
        input.value = head.title;
        this.renaming = head.id;
        const done = (keep) => {
            if (this.renaming !== head.id)
                return;
            this.renaming = null;
            const title = input.value.trim(), focus = document.activeElement === input;
            if (keep && title && title !== head.title) {
                head.title = title;
                this.on.rename(head.id, title);
            }
            this.#show();
            if (focus)
                [...this.list.querySelectorAll("[data-key]")].find((each) => each.dataset.key === `rename ${head.id}`)?.focus();
        };
        input.addEventListener("keydown", (event) => {
            if (event.key === "Enter" && !event.isComposing || event.key === "Escape") {
                event.preventDefault();
                event.stopPropagation(); // Escape means this here, not the answer that is written
                done(event.key === "Enter");
            }
        });
        input.addEventListener("blur", () => done(true));
        node.replaceChildren(input);
        input.focus();
        input.select();
    }
}
