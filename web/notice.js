// Sentences above the composer that stay until they are dismissed or acted on: nothing disappears by time.
import { byId, el } from "./dom.js";

const shown = new Map();

/** Shows a sentence; what: its kind, of which only the last one is shown. action: { label, run }, or null. */
export function notice(what, text, action = null) {
    dismiss(what);
    const close = () => {
        const within = node.contains(document.activeElement);
        dismiss(what);
        if (within)
            byId("prompt").focus();
    };
    const node = el("div", { class: "toast" }, el("p", {}, text),
        action && el("button", { type: "button", onclick: () => {
            close();
            action.run();
        } }, action.label),
        el("button", { type: "button", class: "quiet", "aria-label": "Dismiss", onclick: close }, "✕"));
    shown.set(what, node);
    byId("notices").append(node);
}

export function dismiss(what) {
    shown.get(what)?.remove();
    shown.delete(what);
}
