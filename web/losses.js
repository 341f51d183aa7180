// Workers that were lost while generations ran, and what became of these: /cluster's "recovery".
import { byId, el } from "./dom.js";
import { count, known, milliseconds, percent, plural } from "./format.js";

/** r: /cluster's recovery. */
export function showLosses(r) {
    const events = r?.events ?? [], said = JSON.stringify(events), list = byId("losses");
    byId("losses-part").hidden = !events.length;
    if (list.dataset.said !== said)
        list.replaceChildren(...events.map((e) => el("li", {}, el("strong", {}, `${e.lost}: ${e.cause === "silent" ? "silent" : "lost"}`),
            ` ${[what(e), how(e)].flat().filter((part) => part).join(" · ")}`)));
    list.dataset.said = said;
}

/** A stage that is lost, in a few words; "": it is not. */
export function lossOf(r, stage) {
    const e = (r?.events ?? []).find((event) => event.pending && event.lost === stage.id && event.address === stage.address);
    return e ? `${plural(e.pending, "generation")} ${e.pending === 1 ? "waits" : "wait"} to go on.` : "";
}

function what(e) {
    return [new Date(e.time).toLocaleTimeString(), `layers ${e.layer_begin}–${e.layer_end}`,
        e.chosen ? `goes on with ${e.chosen}` : e.pending ? "nothing to go on with yet" : "nothing came to go on with"];
}

function how(e) {
    const ends = [["resumed", e.resumed], ["given up", e.given_up], ["ended", e.ended], ["waiting", e.pending]].filter(([, n]) => n);
    return [plural(e.generations, "generation"), ...ends.map(([name, n]) => `${count(n)} ${name}`),
        e.replay_total > 0 && (e.pending ? `${percent(e.replayed / e.replay_total)} of ${plural(e.replay_total, "position")} replayed to ${e.replay_to}`
            : `${plural(e.replayed, "position")} replayed`),
        known(e.chosen_ms) && `chosen after ${milliseconds(e.chosen_ms)}`, known(e.opened_ms) && `open after ${milliseconds(e.opened_ms)}`,
        known(e.pause_ms) && `longest pause ${milliseconds(e.pause_ms)}`];
}
