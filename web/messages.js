// A turn on the page: a question with its files, and the answer to it, each with the arrows of its branches.
import { label } from "./attachments.js";
import { copy, el, setText } from "./dom.js";
import { count, plural, seconds } from "./format.js";
import { TextView } from "./render.js";

const STATES = { stopped: "stopped", interrupted: "interrupted", cut: "cut off at the token limit" };

/** What is known of a prompt that is being read: llama-server's { total, cache, processed, time_ms }. */
export function prefill({ total, cache = 0, processed, time_ms: ms }) {
    const done = processed - cache, left = total - processed;
    const time = done > 0 && ms > 0 && left > 0 ? ` · about ${seconds(left * ms / done / 1000)} left` : "";
    return { share: total > 0 ? processed / total : 0, text: `reading the prompt: ${count(processed)} of ${count(total)} tokens${time}` };
}

/** "2 of 3" with arrows. */
class Branches {
    constructor(name, choose) {
        this.text = el("span", {});
        const arrow = (word, sign, step) => el("button", { type: "button", class: "quiet", "aria-label": `${word} version of the ${name}`, onclick: () => {
            const next = this.at + step;
            if (next >= 0 && next < this.all.length)
                choose(this.all[next], word);
        } }, sign);
        this.previous = arrow("Previous", "‹", -1);
        this.next = arrow("Next", "›", 1);
        this.node = el("span", { class: "branches", role: "group", "aria-label": `Versions of the ${name}`, hidden: true }, this.previous, this.text, this.next);
    }

    show(all, message) {
        this.all = all;
        this.at = all.indexOf(message);
        this.node.hidden = all.length < 2;
        setText(this.text, `${this.at + 1} of ${all.length}`);
        this.previous.setAttribute("aria-disabled", String(this.at === 0));
        this.next.setAttribute("aria-disabled", String(this.at === all.length - 1));
    }

    focus(word) {
        (word === "Next" ? this.next : this.previous).focus();
    }
}

export class TurnView {
    /** question, answer: messages (tree.js), one of them may be null. on: { retry, again, more, edit, remove, choose(message, word) }. */
    constructor(question, answer, on) {
        const chat = (question ?? answer).mode === "chat", name = chat ? "message" : "text";
        Object.assign(this, { question, message: answer, chat, frame: 0, on });
        const button = (text, title, onclick) => el("button", { type: "button", class: "quiet", "aria-label": title, onclick }, text);
        this.asked = new Branches(name, on.choose);
        this.answered = new Branches("answer", on.choose);
        this.answer = el("div", { class: "text" });
        this.text = chat ? new TextView(this.answer, copy) : null;
        this.thought = el("div", { class: "text" });
        this.thoughtTitle = el("summary", {}, "Thoughts");
        this.reasoning = el("details", { class: "reasoning", hidden: true }, this.thoughtTitle, this.thought);
        this.error = el("div", { class: "problem", role: "alert", hidden: true });
        this.bar = el("progress", { max: 1, value: 0, "aria-label": "How much of the prompt is read" });
        this.prefill = el("p", { class: "prefill", hidden: true }, this.bar, this.prefillText = el("span", { class: "note" }));
        this.stats = el("span", { class: "stats" });
        this.copyButton = button("Copy", "Copy answer", () => copy(this.message.text, this.copyButton));
        this.againButton = button("Regenerate", "Regenerate answer", on.again);
        this.moreButton = button("Continue", chat ? "Continue this answer" : "Continue this text", on.more);
        this.editButton = button("Edit", `Edit ${name}`, on.edit);
        this.deleteButton = button("Delete", "Delete message and answer", on.remove);
        this.article = el("article", { class: "answered", "aria-label": chat ? "Answer" : "Continuation", hidden: !answer },
            this.reasoning, this.answer, this.prefill, this.error,
            el("div", { class: "actions" }, this.answered.node, this.stats, this.copyButton, this.againButton, this.moreButton));
        this.node = el("li", { class: `turn ${chat ? "chat" : "completion"}` },
            question && el("article", { class: "asked", "aria-label": chat ? "You" : "Your text" },
                question.files.length ? el("div", { class: "sent-files" }, ...question.files.map(sentFile)) : null,
                question.text ? el("div", { class: "text" }, question.text) : null,
                el("div", { class: "actions" }, this.asked.node, answer ? null : button("Answer", "Ask for an answer", on.again), this.editButton, this.deleteButton)),
            this.article);
        this.show();
        this.#showError();
    }

    get writing() {
        return this.article.classList.contains("writing");
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
        this.progress = null;
        this.#showError();
        this.show();
    }

    /** Shows it in the next frame; a hidden tab has none and catches up when it is shown. */
    later() {
        this.frame ||= requestAnimationFrame(() => {
            this.frame = 0;
            this.show();
        });
    }

    show() {
        const { message, writing } = this;
        if (!message)
            return;
        if (this.text)
            this.text.show(message.text, !writing);
        else
            setText(this.answer, message.text);
        this.reasoning.hidden = !message.thought;
        setText(this.thought, message.thought);
        setText(this.thoughtTitle, writing && !message.text ? "Thinking …" : "Thoughts");
        const state = writing || !STATES[message.state] || message.stats.includes(STATES[message.state]) ? "" : STATES[message.state];
        const reading = writing && this.progress ? prefill(this.progress) : null;
        setText(this.stats, [state, message.stats].filter((part) => part).join(" · ") || (writing && !reading ? "waiting for the first token" : ""));
        this.prefill.hidden = !reading;
        if (reading) {
            this.bar.value = reading.share;
            setText(this.prefillText, reading.text);
        }
    }

    /** What can be done with it now. branches: tree.siblings(). */
    allow(free, isLast, branches) {
        const { message, writing } = this, whole = message?.state === "done" && this.chat;
        if (this.question)
            this.asked.show(branches(this.question), this.question);
        if (message)
            this.answered.show(branches(message), message);
        this.editButton.disabled = !free;
        this.againButton.hidden = !isLast || writing || !!message?.error;
        this.moreButton.hidden = !isLast || writing || whole || (!message?.text && !message?.thought && this.chat) || (!this.chat && !!message?.error && !message.text);
        this.againButton.disabled = this.moreButton.disabled = !free;
        this.copyButton.hidden = writing || !message?.text;
        for (const each of this.error.querySelectorAll("button"))
            each.disabled = !free;
    }

    #showError() {
        const e = this.message?.error;
        this.error.hidden = !e;
        this.error.replaceChildren(...(e ? [
            el("strong", {}, e.title), el("p", {}, e.message), el("p", { class: "advice" }, e.advice),
            el("button", { type: "button", onclick: this.on.retry }, "Try again"),
        ] : []));
    }
}

// A file of a message that was sent: folded, and its text is only put into the page when it is opened.
function sentFile(file) {
    const text = el("pre", { tabindex: "0", role: "group", "aria-label": file.name });
    return el("details", { class: "chip", ontoggle: () => setText(text, file.text) }, el("summary", {}, label(file)), text);
}

export const stopped = (pieces, ms) => (pieces ? `stopped · about ${plural(pieces, "token")} in ${seconds(ms / 1000)}` : "stopped");
