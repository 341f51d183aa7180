// The dialog to export and import conversations; loaded when it is opened.
import { announce, byId, el, setText } from "./dom.js";
import { IMPORT_MAX, fileName, fromJson, toJson, toMarkdown } from "./exchange.js";
import { bytes, plural } from "./format.js";

let now = null; // what the dialog is open for

function download(name, type, text) {
    const url = URL.createObjectURL(new Blob([text], { type })), link = el("a", { href: url, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    announce(`Saved ${name}.`);
}

function say(text, bad = false) {
    setText(byId("exchange-note"), text);
    byId("exchange-note").classList.toggle("bad", bad);
}

async function exported() {
    const one = byId("exchange-one").checked, markdown = byId("exchange-markdown").checked;
    const all = one ? [await now.store.load(now.current.id)].filter((found) => found) : await now.store.all();
    if (!all.length)
        return say("There is nothing to export.");
    const name = fileName(one ? all[0].head.title : "nakshatra conversations", markdown ? "md" : "json");
    download(name, markdown ? "text/markdown" : "application/json", markdown ? toMarkdown(all) : toJson(all));
    say(`${plural(all.length, "chat")} exported as ${name}.`);
}

async function imported(file) {
    try {
        if (file.size > IMPORT_MAX)
            throw new Error(`The file has ${bytes(file.size)}; ${bytes(IMPORT_MAX)} are taken at most.`);
        const all = fromJson(await file.text());
        if (!all.length)
            return say("The file has no chats in it.");
        await now.store.create(all);
        byId("exchange-dialog").close();
        announce(`Imported ${plural(all.length, "chat")}.`);
        now.imported(all.map(({ head }) => head));
    } catch (error) {
        say(`“${file.name}” was not imported. ${error.message}`, true);
    }
}

const picker = byId("import-picker");
byId("export").addEventListener("click", exported);
byId("import").addEventListener("click", () => picker.click());
byId("exchange-close").addEventListener("click", () => byId("exchange-dialog").close());
picker.addEventListener("change", () => {
    const [file] = picker.files;
    if (file)
        imported(file);
    picker.value = "";
});

/** what: { store, current: a head or null, imported(heads) }. */
export function openExchange(what) {
    now = what;
    byId("exchange-one").disabled = !what.current;
    byId(what.current ? "exchange-one" : "exchange-all").checked = true;
    say("");
    byId("exchange-dialog").showModal();
}
