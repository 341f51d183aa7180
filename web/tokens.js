// How many tokens would be sent, asked of the gateway while somebody writes: when typing rests, one question at a time.
import { countTokens } from "./api.js";
import { byId, setText } from "./dom.js";
import { count } from "./format.js";

const REST_MS = 400;

/** What is said of n tokens in a context of so many (null: unknown); over: nothing can be answered any more. */
export function describe(n, context) {
    if (!context)
        return { text: `${count(n)} tokens`, over: false };
    const over = n >= context;
    return { text: `${count(n)} of ${count(context)} tokens${over ? ": more than the context holds. Shorten the text, remove a file or start a new chat." : ""}`, over };
}

export class TokenCount {
    /** ask(): { path, body } of what would be sent now, or null; context(): its size, or null. */
    constructor(ask, context) {
        this.ask = ask;
        this.context = context;
        this.node = byId("tokens");
        this.timer = 0;
        this.asked = null;
    }

    /** Something changed: what is shown is no longer true when it rests. */
    later() {
        clearTimeout(this.timer);
        if (!this.ask())
            return this.#now();
        this.timer = setTimeout(() => this.#now(), REST_MS);
    }

    async #now() {
        this.asked?.abort();
        const question = this.ask(), asked = this.asked = new AbortController();
        if (!question)
            return this.#show(null);
        try {
            const n = await countTokens(question.path, question.body, asked.signal);
            if (this.asked === asked)
                this.#show(describe(n, this.context()));
        } catch (error) {
            if (error.name !== "AbortError")
                this.#show(null); // sending will say what is wrong
        }
    }

    #show(what) {
        setText(this.node, what?.text ?? "");
        this.node.classList.toggle("over", !!what?.over);
    }
}
