// Settings of requests: what is set, kept in localStorage, and what of it goes into a request. The form is settings_panel.js,
// which is loaded when it is opened.
import { byId, setText } from "./dom.js";

const STORE = "nakshatra.settings";

// The names are the API's; the defaults shown are the gateway's (docs/api.md). An empty field is not sent.
const number = (name, label, min, max, placeholder, help, step = "any") => ({ name, label, kind: "number", min, max, step, placeholder, help });
const MANY = 2147483647;
export const GROUPS = [
    { title: null, fields: [
        { name: "system", label: "System prompt", kind: "text", rows: 3, placeholder: "none", help: "Said to the model before every chat." },
        { name: "system_here", label: "System prompt of this chat", kind: "chat", rows: 2, placeholder: "the one above", help: "Kept with this chat, in place of the one above." },
        number("temperature", "Temperature", 0, 100, "0.8", "0: always the likeliest token"),
        number("top_p", "Top p", 0, 1, "0.95", "1: off"),
        number("top_k", "Top k", 0, 1000000, "40", "0: off", 1),
        number("min_p", "Min p", 0, 1, "0.05", "0: off"),
        number("repeat_penalty", "Repeat penalty", 0.01, 100, "1", "1: off"),
        number("max_tokens", "Most tokens", 1, 10000000, "a share of the context", "of one answer", 1),
        number("seed", "Seed", 0, 4294967295, "random", "same seed, same text", 1),
        { name: "reasoning_effort", label: "Effort of thinking", kind: "choice", choices: ["", "low", "medium", "high"], help: "For models that have levels." },
        { name: "stop", label: "Stop at", kind: "text", rows: 2, placeholder: "nothing", help: "One text per line, up to 16; \\n stands for a new line." },
    ] },
    { title: "Form of the answer", fields: [
        { name: "json_schema", label: "JSON schema", kind: "schema", rows: 4, placeholder: "none", help: "The answer is JSON that the schema allows." },
        { name: "grammar", label: "Grammar", kind: "grammar", rows: 4, placeholder: 'root ::= "yes" | "no"', help: "GBNF with the rule root; not together with a schema." },
    ] },
    { title: "More ways to choose tokens", fields: [
        number("typical_p", "Typical p", 0, 1, "1", "1: off"),
        number("top_n_sigma", "Top n sigma", -1, 100, "-1", "0 and less: off"),
        number("presence_penalty", "Presence penalty", -100, 100, "0", "0: off"),
        number("frequency_penalty", "Frequency penalty", -100, 100, "0", "0: off"),
        number("repeat_last_n", "Penalties look at", -1, MANY, "64", "tokens; -1: all", 1),
        number("dry_multiplier", "DRY multiplier", 0, 100, "0", "0: off"),
        number("dry_base", "DRY base", 1, 100, "1.75", "how fast it grows"),
        number("dry_allowed_length", "DRY allowed length", 0, MANY, "2", "tokens", 1),
        number("dry_penalty_last_n", "DRY looks at", -1, MANY, "-1", "tokens; -1: all", 1),
        number("xtc_probability", "XTC probability", 0, 1, "0", "0: off; not with temperature 0"),
        number("xtc_threshold", "XTC threshold", 0, 1, "0.1", "above 0.5: off"),
        number("dynatemp_range", "Dynamic temperature range", 0, 100, "0", "0: off; not with temperature 0"),
        number("dynatemp_exponent", "Dynamic temperature exponent", 0, 100, "1", "how entropy becomes temperature"),
        number("mirostat", "Mirostat", 0, 2, "0", "0: off, 1 or 2", 1),
        number("mirostat_tau", "Mirostat tau", 0, 100, "5", "surprise that is aimed at"),
        number("mirostat_eta", "Mirostat eta", 0, 1, "0.1", "how fast it learns"),
        { name: "samplers", label: "Samplers", kind: "list", rows: 1, placeholder: "all, in the usual order", help: "penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature: these alone, in this order." },
        { name: "logit_bias", label: "Bias of tokens", kind: "bias", rows: 1, placeholder: '{"1234": -5}', help: "JSON: a token's id and what is added, from -100 to 100." },
    ] },
];
const FIELDS = GROUPS.flatMap(({ fields }) => fields);
const SAMPLERS = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"];

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

function json(text) {
    try {
        return { value: JSON.parse(text) };
    } catch (error) {
        return { wrong: `This is no JSON: ${error.message}.` };
    }
}

/** What is wrong with the text of a field, as a sentence; "" when nothing is. others: the values of all fields. */
export function wrong({ kind }, text, others = {}) {
    if (!text.trim())
        return "";
    if (kind === "schema") {
        const { value, wrong: sentence } = json(text);
        return sentence ?? (isObject(value) ? others.grammar?.trim() ? "There is a grammar, too: only one of them can say what the answer may be." : "" : "A schema is a JSON object, like {\"type\": \"object\"}.");
    }
    if (kind === "grammar")
        return /^\s*root\s*::=/m.test(text) ? "" : "The grammar has no rule named root: root ::= … would be right.";
    if (kind === "bias") {
        const { value, wrong: sentence } = json(text);
        return sentence ?? (isObject(value) && Object.entries(value).every(([id, bias]) => /^\d+$/.test(id) && Math.abs(bias) <= 100 && typeof bias === "number") ? "" : 'An object of token ids and numbers from -100 to 100 would be right, like {"1234": -5}.');
    }
    if (kind === "list") {
        const unknown = names(text).find((name) => !SAMPLERS.includes(name));
        return unknown === undefined ? "" : `There is no sampler “${unknown}”; one of ${SAMPLERS.join(", ")} would be right.`;
    }
    return "";
}

const names = (text) => text.split(/[\s,;]+/).filter((name) => name);

/** The members of a request's body. */
export function body(values, mode = "chat") {
    const members = {};
    for (const { name, kind } of FIELDS) {
        const value = values[name];
        if (value === undefined || (typeof value === "string" && !value.trim()))
            continue;
        if (kind === "number" || kind === "grammar")
            members[name] = value;
        else if (kind === "schema" || kind === "bias")
            members[name] = JSON.parse(value);
        else if (kind === "list")
            members[name] = names(value);
    }
    if (mode === "chat" && values.thinking)
        members.enable_thinking = values.thinking === "on";
    if (mode === "chat" && values.reasoning_effort && values.thinking !== "off")
        members.reasoning_effort = values.reasoning_effort;
    const stop = (values.stop ?? "").split("\n").filter((line) => line).map((line) => line.replaceAll("\\n", "\n"));
    if (stop.length)
        members.stop = stop;
    return members;
}

export class Settings {
    constructor() {
        this.listeners = []; // called after every change that was taken
        this.chat = null;    // { get(), set(text) }: the system prompt of the chat that is shown
        this.values = {};
        try {
            const kept = JSON.parse(localStorage.getItem(STORE));
            for (const field of FIELDS)
                if (isObject(kept) && (field.kind === "number" ? Number.isFinite(kept[field.name]) : typeof kept[field.name] === "string" && !wrong(field, kept[field.name])))
                    this.values[field.name] = kept[field.name];
            if (kept?.thinking === "on" || kept?.thinking === "off")
                this.values.thinking = kept.thinking;
        } catch {
            // Nothing kept, or it is not ours: begin with the defaults.
        }
        byId("settings-button").addEventListener("click", async () => {
            const { SettingsPanel } = await import("./settings_panel.js");
            this.panel ??= new SettingsPanel(this);
            this.panel.open();
        });
        byId("thinking").value = this.values.thinking ?? "";
        byId("thinking").addEventListener("change", (event) => this.set("thinking", event.target.value));
        this.#show();
    }

    set(name, value) {
        if (value === "" || value === undefined)
            delete this.values[name];
        else
            this.values[name] = value;
        this.#keep();
    }

    reset() {
        this.values = {};
        byId("thinking").value = "";
        this.chat?.set("");
        this.#keep();
    }

    get system() {
        return this.values.system ?? "";
    }

    body(mode) {
        return body(this.values, mode);
    }

    /** What differs from the defaults, in a few words. */
    summary() {
        const words = FIELDS.filter(({ name }) => this.values[name] !== undefined)
            .map(({ name, label, kind }) => (kind === "number" || kind === "choice" ? `${label.toLowerCase()} ${this.values[name]}` : label.toLowerCase()));
        return words.length ? `Set: ${words.join(", ")}.` : "";
    }

    #show() {
        setText(byId("settings-summary"), this.summary());
    }

    #keep() {
        try {
            localStorage.setItem(STORE, JSON.stringify(this.values));
        } catch {
            // Storage is full or forbidden: the settings then hold until the page is left.
        }
        this.#show();
        for (const listener of this.listeners)
            listener();
    }
}
