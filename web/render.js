// A model's text on the page. What reads Markdown is fetched when it is first needed; until it is here the text is shown as it is.
//
//   const view = new TextView(container, copy);
//   view.add(piece); ...      shown at the next frame; finished blocks stay the nodes that they are
//   view.end();               the text is complete: links and footnotes that were defined late are put in
//
//   view.show(text, ended)    the same for who has the whole text each time: what is new is added; another text begins anew
//
// copy(text, button) is called by the copy button of a block of code.
import { afterPaint, el, setText, stylesheet } from "./dom.js";

let reader = null, fetching = null;

/** Fetches what reads Markdown. True: it is here. A failure is tried again at the next call. */
export function prepare() {
    fetching ??= afterPaint().then(() => Promise.all([import("./markdownview.js"), stylesheet("markdown.css")])).then(([module]) => {
        reader = module;
        return true;
    }, () => {
        fetching = null;
        return false;
    });
    return fetching;
}

export class TextView {
    constructor(container, copy) {
        this.container = container;
        this.copy = copy;
        this.#clear();
        if (!reader)
            prepare().then(() => this.#draw());
    }

    add(piece) {
        this.text += piece;
        this.frame ||= requestAnimationFrame(() => this.#draw());
    }

    end() {
        this.ended = true;
        this.#draw();
    }

    show(text, ended = false) {
        if (this.given.length > text.length || this.given !== text.slice(0, this.given.length) || (this.ended && text.length > this.given.length))
            this.#clear();
        this.text = text;
        this.ended ||= ended;
        this.#draw();
    }

    #clear() {
        this.container.replaceChildren();
        this.text = this.given = ""; // all of it; what the view was given
        this.view = null;
        this.ended = false;
        this.closed = false;
        cancelAnimationFrame(this.frame);
        this.frame = 0;
    }

    #draw() {
        cancelAnimationFrame(this.frame);
        this.frame = 0;
        if (!reader) {
            if (!this.container.firstChild && this.text)
                this.container.append(el("p", { class: "plain" }));
            if (this.container.firstChild)
                setText(this.container.firstChild, this.text);
            if (!fetching)
                prepare().then((here) => here && this.#draw());
            return;
        }
        if (!this.view) {
            this.container.replaceChildren();
            this.view = new reader.MarkdownView(this.container, this.copy);
        }
        if (this.closed)
            return;
        if (this.text.length > this.given.length)
            this.view.add(this.text.slice(this.given.length));
        this.given = this.text;
        if (this.ended) {
            this.closed = true;
            this.view.end();
        } else
            this.view.update();
    }
}
