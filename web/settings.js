// Sampling settings and the system prompt: a form, kept in localStorage, and what of it goes into a request.
import { byId, el, setText } from "./dom.js";

const STORE = "nakshatra.settings";

// The names are the API's; the defaults shown are the gateway's (docs/api.md). An empty field is not sent.
const FIELDS = [
    { name: "system", label: "System prompt", kind: "text", rows: 3, placeholder: "none", help: "Said to the model before the conversation. Chat only." },
    { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 100, step: "any", placeholder: "0.8", help: "0: always the likeliest token" },
    { name: "top_p", label: "Top p", kind: "number", min: 0, max: 1, step: "any", placeholder: "0.95", help: "1: off" },
    { name: "top_k", label: "Top k", kind: "number", min: 0, max: 1000000, step: 1, placeholder: "40", help: "0: off" },
    { name: "min_p", label: "Min p", kind: "number", min: 0, max: 1, step: "any", placeholder: "0.05", help: "0: off" },
    { name: "repeat_penalty", label: "Repeat penalty", kind: "number", min: 0.01, max: 100, step: "any", placeholder: "1", help: "1: off" },
    { name: "max_tokens", label: "Most tokens", kind: "number", min: 1, max: 10000000, step: 1, placeholder: "a share of the context", help: "of one answer" },
    { name: "seed", label: "Seed", kind: "number", min: 0, max: 4294967295, step: 1, placeholder: "random", help: "same seed, same text" },
    { name: "stop", label: "Stop at", kind: "text", rows: 2, placeholder: "nothing", help: "One text per line, up to 16; \\n stands for a new line." },
];

export class Settings {
    /** changed(): called after every change that was taken. */
    constructor(changed) {
        this.changed = changed;
        this.values = {};
        try {
            this.values = JSON.parse(localStorage.getItem(STORE)) ?? {};
        } catch {
            // Nothing kept, or it is not ours: begin with the defaults.
        }
        this.dialog = byId("settings");
        this.inputs = new Map();
        byId("settings-fields").append(...FIELDS.map((field) => this.#make(field)));
        byId("settings-button").addEventListener("click", () => this.open());
        byId("settings-reset").addEventListener("click", () => this.reset());
        this.dialog.querySelector("form").addEventListener("submit", (event) => this.#done(event));
        this.#fill();
    }

    open() {
        this.#fill();
        this.dialog.showModal();
    }

    reset() {
        this.values = {};
        this.#fill();
        this.#keep();
    }

    get system() {
        return this.values.system ?? "";
    }

    /** The members of a request's body. */
    body() {
        const body = {};
        for (const { name, kind } of FIELDS)
            if (kind === "number" && this.values[name] !== undefined)
                body[name] = this.values[name];
        const stop = (this.values.stop ?? "").split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n"));
        if (stop.length)
            body.stop = stop;
        return body;
    }

    /** What differs from the defaults, in a few words. */
    summary() {
        const words = FIELDS.filter(({ name }) => this.values[name] !== undefined)
            .map(({ name, label, kind }) => (kind === "number" ? `${label.toLowerCase()} ${this.values[name]}` : label.toLowerCase()));
        return words.length ? `Set: ${words.join(", ")}.` : "";
    }

    #make(field) {
        const id = `set-${field.name}`;
        const input = field.kind === "text"
            ? el("textarea", { id, rows: field.rows, placeholder: field.placeholder, spellcheck: "false" })
            : el("input", { id, type: "number", inputmode: "decimal", min: field.min, max: field.max, step: field.step, placeholder: field.placeholder });
        const help = el("span", { class: "note", id: `${id}-help` }, field.help);
        input.setAttribute("aria-describedby", help.id);
        input.addEventListener("input", () => this.#take(field, input, help));
        this.inputs.set(field.name, input);
        return el("div", { class: field.kind === "text" ? "wide" : "" }, el("label", { for: id }, field.label), input, help);
    }

    #take(field, input, help) {
        const ok = input.checkValidity();
        input.setAttribute("aria-invalid", String(!ok));
        setText(help, ok ? field.help : input.validationMessage);
        if (!ok)
            return;
        if (input.value === "")
            delete this.values[field.name];
        else
            this.values[field.name] = field.kind === "number" ? input.valueAsNumber : input.value;
        this.#keep();
    }

    #fill() {
        for (const field of FIELDS) {
            const input = this.inputs.get(field.name);
            input.value = this.values[field.name] ?? "";
            input.setAttribute("aria-invalid", "false");
            setText(byId(`set-${field.name}-help`), field.help);
        }
    }

    #keep() {
        try {
            localStorage.setItem(STORE, JSON.stringify(this.values));
        } catch {
            // Storage is full or forbidden: the settings then hold until the page is left.
        }
        this.changed();
    }

    // A wrong value keeps the dialog open, with the cursor in it.
    #done(event) {
        event.preventDefault();
        const wrong = [...this.inputs.values()].find((input) => !input.checkValidity());
        if (wrong)
            wrong.focus();
        else
            this.dialog.close();
    }
}
