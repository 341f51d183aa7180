// Where a message is written: its text, the files at it, and the draft of each conversation.
import { FILE_MAX, PASTE_MAX, addFiles, freeName, label, textOf } from "./attachments.js";
import { announce, byId, el, setText } from "./dom.js";
import { notice } from "./notice.js";

export class Composer {
    /** on: { send({ text, files }), stop(), change() }. */
    constructor(on) {
        this.on = on;
        this.prompt = byId("prompt");
        this.files = [];
        this.pasted = new Set(); // files that were a paste, which can be a text again
        this.running = false;
        byId("composer").addEventListener("submit", (event) => {
            event.preventDefault();
            if (this.running)
                on.stop();
            else
                this.#send();
        });
        this.prompt.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing)
                return;
            event.preventDefault();
            if (!this.running)
                this.#send();
        });
        this.prompt.addEventListener("input", () => on.change());
        this.prompt.addEventListener("paste", (event) => this.#paste(event));
        const picker = byId("file-picker");
        byId("attach").addEventListener("click", () => picker.click());
        picker.addEventListener("change", () => {
            this.attach([...picker.files]);
            picker.value = "";
        });
        this.#drops(byId("chat"));
    }

    /** { text, files } as they are now. */
    get value() {
        return { text: this.prompt.value, files: this.files };
    }

    set value({ text = "", files = [] }) {
        this.prompt.value = text;
        this.files = [...files];
        this.pasted.clear();
        this.#showFiles();
        this.on.change();
    }

    get empty() {
        return !this.prompt.value.trim() && !this.files.length;
    }

    /** Adds files; what cannot be taken is said. */
    async attach(files) {
        const before = this.files, { files: next, problems } = await addFiles(before, files);
        if (this.files !== before) // another one was added meanwhile
            return this.attach(files);
        const added = next.length - before.length;
        this.files = next;
        if (problems.length)
            notice("files", problems.join(" "));
        if (added)
            announce(`Attached ${next.slice(-added).map((file) => file.name).join(", ")}.`);
        this.#showFiles();
        this.on.change();
    }

    #send() {
        if (!this.empty)
            this.on.send(this.value);
    }

    #paste(event) {
        const files = [...(event.clipboardData?.files ?? [])], text = event.clipboardData?.getData("text/plain") ?? "";
        if (files.length && !text) {
            event.preventDefault();
            this.attach(files);
        } else if (text.length > PASTE_MAX) {
            event.preventDefault();
            const clean = textOf(new TextEncoder().encode(text));
            if (clean === null || new Blob([text]).size > FILE_MAX)
                return this.attach([new File([text], "pasted.txt")]); // says why not
            const file = { name: freeName("pasted.txt", this.files), text };
            this.files = [...this.files, file];
            this.pasted.add(file);
            announce(`The pasted text is long and became the file ${file.name}. Insert as text undoes that.`);
            this.#showFiles();
            this.on.change();
        }
    }

    #insert(file) {
        this.#remove(file);
        this.prompt.focus();
        this.prompt.setRangeText(file.text, this.prompt.selectionStart, this.prompt.selectionEnd, "end");
        this.on.change();
    }

    #remove(file) {
        this.files = this.files.filter((other) => other !== file);
        this.pasted.delete(file);
        this.#showFiles();
        this.prompt.focus();
        this.on.change();
    }

    #showFiles() {
        byId("files").hidden = !this.files.length;
        byId("files").replaceChildren(...this.files.map((file) => el("li", { class: "chip" }, el("span", {}, label(file)),
            this.pasted.has(file) ? el("button", { type: "button", class: "quiet", onclick: () => this.#insert(file) }, "Insert as text") : null,
            el("button", { type: "button", class: "quiet", "aria-label": `Remove ${file.name}`, onclick: () => this.#remove(file) }, "✕"))));
    }

    #drops(area) {
        const has = (event) => event.dataTransfer?.types.includes("Files");
        let inside = 0; // elements below the pointer that were entered and not left
        const show = (n) => {
            inside = n;
            area.classList.toggle("dropping", n > 0);
        };
        area.addEventListener("dragenter", (event) => has(event) && show(inside + 1));
        area.addEventListener("dragleave", (event) => has(event) && show(Math.max(0, inside - 1)));
        area.addEventListener("dragover", (event) => has(event) && event.preventDefault());
        area.addEventListener("drop", (event) => {
            if (!has(event))
                return;
            event.preventDefault();
            show(0);
            this.attach([...event.dataTransfer.files]);
        });
    }

    /** What the button does: it stops the answer, or sends. */
    show(running, sends) {
        this.running = running;
        setText(byId("send"), running ? "Stop" : sends);
        byId("send").classList.toggle("stop", running);
    }
}
