// The form of the settings. A value that is wrong is not taken, and the field says why.
import { byId, el, setText } from "./dom.js";
import { GROUPS, wrong } from "./settings.js";

export class SettingsPanel {
    constructor(settings) {
        this.settings = settings;
        this.dialog = byId("settings");
        this.inputs = new Map(); // field: { input, help }
        byId("settings-fields").append(...GROUPS.flatMap(({ title, fields }) => {
            const nodes = fields.map((field) => this.#make(field));
            return title ? [el("details", { class: "wide" }, el("summary", {}, title), el("div", { class: "settings-grid" }, ...nodes))] : nodes;
        }));
        byId("settings-reset").addEventListener("click", () => {
            settings.reset();
            this.#fill();
        });
        this.dialog.querySelector("form").addEventListener("submit", (event) => this.#done(event));
    }

    open() {
        this.#fill();
        for (const part of this.dialog.querySelectorAll("details"))
            part.open = [...this.inputs].some(([, { input }]) => part.contains(input) && input.value);
        if (!this.dialog.open)
            this.dialog.showModal();
        this.inputs.values().next().value.input.focus();
    }

    #make(field) {
        const id = `set-${field.name}`, { kind } = field;
        const input = kind === "number"
            ? el("input", { id, type: "number", inputmode: "decimal", min: field.min, max: field.max, step: field.step, placeholder: field.placeholder })
            : kind === "choice" ? el("select", { id }, ...field.choices.map((value) => el("option", { value }, value || "the model's own")))
                : el("textarea", { id, rows: field.rows, placeholder: field.placeholder, spellcheck: "false", class: kind === "text" || kind === "chat" ? "" : "mono" });
        const help = el("span", { class: "note", id: `${id}-help` }, field.help);
        input.setAttribute("aria-describedby", help.id);
        input.addEventListener("input", () => this.#take(field));
        this.inputs.set(field, { input, help });
        return el("div", { class: kind === "number" || kind === "choice" ? "" : "wide" }, el("label", { for: id }, field.label), input, help);
    }

    #wrong(field) {
        const { input } = this.inputs.get(field);
        return input.checkValidity() ? wrong(field, input.value, this.settings.values) : input.validationMessage;
    }

    #take(field) {
        const { input, help } = this.inputs.get(field), sentence = this.#wrong(field);
        input.setAttribute("aria-invalid", String(!!sentence));
        setText(help, sentence || field.help);
        if (sentence)
            return;
        if (field.kind === "chat")
            this.settings.chat.set(input.value);
        else
            this.settings.set(field.name, input.value === "" ? "" : field.kind === "number" ? input.valueAsNumber : input.value);
        if (field.kind === "grammar") // what a schema may be depends on it
            for (const other of this.inputs.keys())
                if (other.kind === "schema" && this.inputs.get(other).input.value)
                    this.#take(other);
    }

    #fill() {
        for (const [field, { input, help }] of this.inputs) {
            input.value = (field.kind === "chat" ? this.settings.chat.get() : this.settings.values[field.name]) ?? "";
            input.setAttribute("aria-invalid", "false");
            setText(help, field.help);
        }
    }

    // A wrong value keeps the dialog open, with the cursor in it.
    #done(event) {
        event.preventDefault();
        const bad = [...this.inputs].find(([field]) => this.#wrong(field));
        if (!bad)
            return this.dialog.close();
        const part = bad[1].input.closest("details");
        if (part)
            part.open = true;
        bad[1].input.focus();
    }
}
