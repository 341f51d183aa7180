// The cluster on the page: what /cluster/events says, once a second. Here is what must be told at once, whether the cluster is
// ready and what is wrong; the rest of the panel is fetched when the page has been painted.
import { afterPaint, byId, el, setText, stylesheet } from "./dom.js";
import { workerAdvice } from "./explain.js";
import { count, known, plural } from "./format.js";

export class ClusterPanel {
    constructor() {
        this.panel = null;
        this.last = null;
        this.#fetch();
    }

    show(c) {
        this.last = c;
        byId("cluster").classList.remove("stale");
        setState(c.ready ? "ready" : "down", c.ready ? "ready" : "not ready");
        setText(byId("model-name"), c.model.id);
        const facts = [c.model.architecture, c.model.quantisation, known(c.model.layers) && plural(c.model.layers, "layer"), c.model.context && `context ${count(c.model.context)}`];
        setText(byId("model-facts"), facts.filter((fact) => fact).join(" · "));
        this.#showProblem(c);
        if (this.panel)
            this.panel.show(c);
        else if (!this.fetching)
            this.#fetch();
    }

    /** The gateway is gone: what is shown is old. */
    lost(problem) {
        setState("lost", "no connection");
        byId("cluster").classList.add("stale");
        showProblem(problem.title, problem.message, problem.advice);
    }

    async #fetch() {
        this.fetching = true;
        try {
            await afterPaint();
            const [{ Panel }] = await Promise.all([import("./panel.js"), stylesheet("map.css")]);
            this.panel = new Panel();
            if (this.last)
                this.panel.show(this.last);
        } catch {
            // It is tried again with the next event: without a gateway there is none.
        }
        this.fetching = false;
    }

    #showProblem(c) {
        const down = c.stages.filter((stage) => !stage.ok);
        if (c.ready)
            showProblem(null);
        else if (!c.error)
            showProblem("The cluster is not ready", "The workers have not answered yet.", "This takes a moment after the start.");
        else if (down.length)
            showProblem(`${down.map((stage) => stage.id).join(", ")}: ${down.length === 1 ? "this worker does" : "these workers do"} not answer`,
                `Layers ${down.map((stage) => `${stage.layer_begin}–${stage.layer_end}`).join(", ")} are missing; ${c.recovery?.pending
                    ? `${plural(c.recovery.pending, "generation")} ${c.recovery.pending === 1 ? "waits" : "wait"} to go on when they are back.`
                    : "requests are refused until they are back."}`,
                down.length === 1 ? workerAdvice(down[0]) : "What to do stands at each stage. This panel returns to normal by itself.");
        else
            showProblem("The cluster is not ready", c.error.message, "This panel returns to normal by itself.");
    }
}

function setState(state, text) {
    byId("state").dataset.state = state;
    setText(byId("state-text"), text);
}

function showProblem(title, message, advice) {
    const box = byId("cluster-problem"), text = title && [title, message, advice].join("\n");
    box.hidden = !title;
    if (title && box.dataset.text !== text)
        box.replaceChildren(el("strong", {}, title), el("p", {}, message), el("p", { class: "advice" }, advice));
    box.dataset.text = text ?? "";
}
