// The conversation: turns of a question and an answer, in one of two modes.
//
//   chat         the turns so far and the system prompt go to /v1/chat/completions
//   completion   the text alone goes to /v1/completions; an answer can be continued
//
// One answer is written at a time. Its pieces are collected and shown once per frame; a screen reader hears that writing has
// begun, and the text when it is complete, instead of every piece.
import { generate } from "./api.js";
import { announce, byId, copy, el, setText } from "./dom.js";
import { explain } from "./explain.js";
import { count, milliseconds, plural, rate, seconds } from "./format.js";
import { TextView } from "./render.js";

const STORE = "nakshatra.chat";
const ANNOUNCED_MAX = 1500; // characters of an answer that are read out
const NEAR_BOTTOM = 60;     // pixels within which new text keeps the view at the end

const EXAMPLES = {
    chat: ["Explain pipeline parallelism in two sentences.", "Write a haiku about the night sky.", "What is a nakshatra?"],
    completion: ["In the beginning", "And it came to pass", "Once upon a time"],
};

export class Chat {
    /** settings: settings.js; unauthorized(error): a key is needed. */
    constructor(settings, unauthorized) {
        this.settings = settings;
        this.unauthorized = unauthorized;
        this.model = null;
        this.turns = load();
        this.views = new Map();
        this.running = null; // { turn, controller }
        this.editing = null;
        this.list = byId("turns");
        this.scroll = byId("scroll");
        this.follow = true; // the view stays at the end, until somebody scrolls away from it
        this.prompt = byId("prompt");
        byId("composer").addEventListener("submit", (event) => {
            event.preventDefault();
            if (this.running)
                this.stop();
            else
                this.send();
        });
        this.prompt.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing)
                return;
            event.preventDefault();
            this.send();
        });
        document.addEventListener("keydown", (event) => {
            if (event.key === "Escape" && this.running && !document.querySelector("dialog[open]"))
                this.stop();
        });
        let before = 0;
        this.scroll.addEventListener("scroll", () => {
            // Only a way upwards is somebody's own: the end also moves away when text is added.
            const top = this.scroll.scrollTop;
            if (this.scroll.scrollHeight - top - this.scroll.clientHeight < NEAR_BOTTOM)
                this.follow = true;
            else if (top < before)
                this.follow = false;
            before = top;
        });
        const resized = new ResizeObserver(() => this.follow && this.#toEnd());
        resized.observe(this.scroll);
        resized.observe(this.list);
        byId("new-chat").addEventListener("click", () => this.clear());
        byId("cancel-edit").addEventListener("click", () => this.#edit(null));
        byId("mode").addEventListener("change", () => this.#showMode());
        for (const turn of this.turns)
            this.#add(turn);
        this.#showMode();
    }

    get mode() {
        return document.querySelector("#mode input:checked").value;
    }

    /** What the cluster says of its model; a model that cannot chat leaves only completion. */
    setModel(model) {
        const first = !this.model || this.model.id !== model.id || this.model.chat !== model.chat;
        this.model = model;
        if (!first)
            return;
        const [chat, completion] = document.querySelectorAll("#mode input");
        chat.disabled = !model.chat;
        if (!model.chat)
            completion.checked = true;
        byId("no-template").hidden = model.chat;
        setText(byId("no-template"), `${model.id} has no chat template, so it cannot chat: here it continues the text you give it. ` +
            "To chat, start the gateway with --chat-template NAME or FILE.");
        this.#showMode();
    }

    send(text = this.prompt.value) {
        if (this.running || !text.trim())
            return;
        if (this.editing) {
            for (const turn of this.turns.slice(this.turns.indexOf(this.editing)))
                this.#remove(turn);
            this.#edit(null);
        }
        const turn = { mode: this.mode, prompt: text, answer: "", reasoning: "" };
        this.turns.push(turn);
        this.#add(turn);
        this.prompt.value = "";
        this.#run(turn, "");
    }

    stop() {
        this.running?.controller.abort();
    }

    clear() {
        this.stop();
        for (const turn of [...this.turns])
            this.#remove(turn);
        this.#edit(null);
        this.prompt.focus();
    }

    // ---- one generation ----

    #request(turn, before) {
        const common = { ...this.settings.body(), model: this.model?.id };
        if (turn.mode === "completion")
            return ["/v1/completions", { ...common, prompt: turn.prompt + before }];
        const messages = this.settings.system ? [{ role: "system", content: this.settings.system }] : [];
        for (const other of this.turns.slice(0, this.turns.indexOf(turn)))
            if (other.mode === "chat" && other.answer)
                messages.push({ role: "user", content: other.prompt }, { role: "assistant", content: other.answer });
        messages.push({ role: "user", content: turn.prompt });
        return ["/v1/chat/completions", { ...common, messages }];
    }

    /** before: the answer so far, which is continued. */
    async #run(turn, before) {
        const view = this.views.get(turn), controller = new AbortController(), begin = performance.now();
        let pieces = 0, first = 0, last = 0, usage = null, finish = null;
        Object.assign(turn, { answer: before, reasoning: "", error: null, stats: "" });
        this.running = { turn, controller };
        view.begin();
        this.#showRunning();
        this.follow = true;
        this.#toEnd();
        announce("Writing an answer.");
        try {
            for await (const chunk of generate(...this.#request(turn, before), controller.signal)) {
                const choice = chunk.choices[0];
                usage = chunk.usage ?? usage;
                if (!choice)
                    continue;
                finish = choice.finish_reason ?? finish;
                const text = choice.text ?? choice.delta.content ?? "", thought = choice.delta?.reasoning_content ?? "";
                if (!text && !thought)
                    continue;
                last = performance.now();
                first ||= last;
                pieces++;
                turn.answer += text;
                turn.reasoning += thought;
                turn.stats = `${plural(pieces, "token")} · first token after ${milliseconds(first - begin)}`;
                this.#later(view);
            }
            turn.stats = summary(usage, finish, begin, first, last);
        } catch (error) {
            if (error.name === "AbortError")
                turn.stats = pieces ? `stopped · about ${plural(pieces, "token")} in ${seconds((performance.now() - begin) / 1000)}` : "stopped";
            else {
                turn.error = explain(error);
                if (error.status === 401)
                    this.unauthorized(error);
            }
        }
        if (this.running?.controller === controller)
            this.running = null;
        if (!this.views.has(turn)) // deleted meanwhile
            return this.#showRunning();
        view.end();
        this.#showRunning();
        save(this.turns);
        if (!turn.error) // an error is an alert, which is read by itself
            announce(turn.answer.length - before.length > ANNOUNCED_MAX ? `The answer is complete: ${turn.stats}.` : turn.answer.slice(before.length) || "The answer is empty.");
    }

    // At most once per frame; a hidden tab has none and catches up when it is shown.
    #later(view) {
        if (view.frame)
            return;
        view.frame = requestAnimationFrame(() => {
            view.frame = 0;
            view.show();
        });
    }

    // ---- what is shown ----

    #add(turn) {
        const view = new TurnView(turn, {
            retry: () => this.#free() && this.#run(turn, ""),
            more: () => this.#free() && this.#run(turn, turn.answer),
            edit: () => this.#free() && this.#edit(turn),
            remove: () => {
                if (this.running?.turn === turn)
                    this.stop();
                this.#remove(turn);
                this.prompt.focus();
            },
        });
        this.views.set(turn, view);
        this.list.append(view.node);
        this.#showRunning();
    }

    #remove(turn) {
        if (this.editing === turn)
            this.#edit(null);
        this.turns = this.turns.filter((other) => other !== turn);
        this.views.get(turn)?.node.remove();
        this.views.delete(turn);
        save(this.turns);
        this.#showRunning();
    }

    #free() {
        return !this.running;
    }

    #edit(turn) {
        this.editing = turn;
        byId("editing").hidden = !turn;
        for (const [other, view] of this.views)
            view.node.classList.toggle("edited", other === turn);
        if (!turn)
            return;
        this.prompt.value = turn.prompt;
        this.prompt.focus();
    }

    #showRunning() {
        const button = byId("send"), running = !!this.running;
        setText(button, running ? "Stop" : this.mode === "chat" ? "Send" : "Continue text");
        button.classList.toggle("stop", running);
        byId("empty").hidden = this.turns.length > 0;
        const lastTurn = this.turns.at(-1);
        for (const [turn, view] of this.views)
            view.allow(!running, turn === lastTurn);
    }

    #showMode() {
        const chat = this.mode === "chat";
        setText(byId("prompt-label"), chat ? "Message" : "Text to continue");
        this.prompt.placeholder = chat ? "Ask something" : "Write the beginning of a text";
        byId("examples").replaceChildren(...EXAMPLES[this.mode].map((text) => el("button", { type: "button", onclick: () => this.send(text) }, text)));
        this.#showRunning();
    }

    #toEnd() {
        this.scroll.scrollTop = this.scroll.scrollHeight;
    }
}

/** One turn on the page. */
class TurnView {
    constructor(turn, actions) {
        const chat = turn.mode === "chat";
        this.turn = turn;
        this.frame = 0;
        this.answer = el("div", { class: "text" });
        this.text = chat ? new TextView(this.answer, copy) : null;
        this.thought = el("div", { class: "text" });
        this.thoughtTitle = el("summary", {}, "Thoughts");
        this.reasoning = el("details", { class: "reasoning", hidden: true }, this.thoughtTitle, this.thought);
        this.error = el("div", { class: "problem", role: "alert", hidden: true });
        this.stats = el("span", { class: "stats" });
        const button = (label, name, onclick) => el("button", { type: "button", class: "quiet", "aria-label": name, onclick }, label);
        this.copyButton = button("Copy", "Copy answer", () => copy(turn.answer, this.copyButton));
        this.retryButton = button("Regenerate", "Regenerate answer", actions.retry);
        this.moreButton = button("Continue", "Continue this text", actions.more);
        this.editButton = button("Edit", chat ? "Edit message" : "Edit text", actions.edit);
        this.deleteButton = button("Delete", "Delete message and answer", actions.remove);
        this.retry = actions.retry;
        this.node = el("li", { class: `turn ${turn.mode}` },
            el("article", { class: "asked", "aria-label": chat ? "You" : "Your text" },
                el("div", { class: "text" }, turn.prompt),
                el("div", { class: "actions" }, this.editButton, this.deleteButton)),
            this.article = el("article", { class: "answered", "aria-label": chat ? "Answer" : "Continuation" },
                this.reasoning, this.answer, this.error,
                el("div", { class: "actions" }, this.stats, this.copyButton, this.retryButton, chat ? null : this.moreButton)));
        this.show();
        this.#showError();
    }

    begin() {
        this.article.setAttribute("aria-busy", "true");
        this.article.classList.add("writing");
        this.reasoning.open = false;
        this.#showError();
        this.show();
    }

    end() {
        cancelAnimationFrame(this.frame);
        this.frame = 0;
        this.article.removeAttribute("aria-busy");
        this.article.classList.remove("writing");
        this.#showError();
        this.show();
    }

    show() {
        const { turn } = this, writing = this.article.classList.contains("writing");
        if (this.text)
            this.text.show(turn.answer, !writing);
        else
            setText(this.answer, turn.answer);
        this.reasoning.hidden = !turn.reasoning;
        setText(this.thought, turn.reasoning);
        setText(this.thoughtTitle, writing && !turn.answer ? "Thinking …" : "Thoughts");
        setText(this.stats, turn.stats || (writing ? "waiting for the first token" : ""));
    }

    allow(free, isLast) {
        const writing = this.article.classList.contains("writing");
        this.editButton.disabled = !free;
        this.retryButton.hidden = this.moreButton.hidden = !isLast || writing || !!this.turn.error;
        this.retryButton.disabled = this.moreButton.disabled = !free;
        this.copyButton.hidden = writing || !this.turn.answer;
        for (const again of this.error.querySelectorAll("button"))
            again.disabled = !free;
    }

    #showError() {
        const e = this.turn.error;
        this.error.hidden = !e;
        this.error.replaceChildren(...(e ? [
            el("strong", {}, e.title), el("p", {}, e.message), el("p", { class: "advice" }, e.advice),
            el("button", { type: "button", onclick: this.retry }, "Try again"),
        ] : []));
    }
}

function summary(usage, finish, begin, first, last) {
    const words = [];
    if (usage) {
        words.push(plural(usage.completion_tokens, "token"));
        if (usage.completion_tokens > 1 && last > first)
            words.push(`${rate((usage.completion_tokens - 1) * 1000 / (last - first))} tokens/s`);
    }
    if (first)
        words.push(`first token after ${milliseconds(first - begin)}`);
    if (usage)
        words.push(`prompt ${count(usage.prompt_tokens)}`);
    if (finish === "length")
        words.push("cut off at the token limit");
    return words.join(" · ");
}

// The conversation outlives a reload, not the tab.
function load() {
    try {
        return JSON.parse(sessionStorage.getItem(STORE)) ?? [];
    } catch {
        return [];
    }
}

function save(turns) {
    try {
        sessionStorage.setItem(STORE, JSON.stringify(turns));
    } catch {
        // Full or forbidden: a reload then begins anew.
    }
}
