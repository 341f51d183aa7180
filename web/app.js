// The page: puts its parts together, and keeps the connection to the gateway.
import { ApiError, clusterEvents, key } from "./api.js";
import { Chat } from "./chat.js";
import { ClusterPanel } from "./cluster.js";
import { byId, setText } from "./dom.js";
import { explain } from "./explain.js";
import { Settings } from "./settings.js";

const SILENT_MS = 10000;               // events come every second, and every few while a worker does not answer
const RETRY_MS = [500, 1000, 2000, 4000]; // then every 4 s

// ---- theme ----

const THEMES = ["auto", "light", "dark"];

function showTheme(theme) {
    if (theme === "auto")
        delete document.documentElement.dataset.theme;
    else
        document.documentElement.dataset.theme = theme;
    const name = theme[0].toUpperCase() + theme.slice(1);
    setText(byId("theme"), name);
    byId("theme").setAttribute("aria-label", `${name} theme. Change`);
}

byId("theme").addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto", next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    showTheme(next);
    try {
        localStorage.setItem("nakshatra.theme", next);
    } catch {
        // It then holds until the page is left.
    }
});
showTheme(document.documentElement.dataset.theme ?? "auto");

// ---- the key ----

const keyDialog = byId("key-dialog");

function askKey(error) {
    setText(byId("key-text"), error && key.get() ? "This key is not known to the gateway. Enter another." : "This gateway answers only with one of its keys (--api-key-file).");
    byId("key-button").hidden = false;
    byId("key-forget").hidden = !key.get();
    if (!keyDialog.open)
        keyDialog.showModal();
}

function useKey(value) {
    key.set(value);
    byId("key").value = "";
    keyDialog.close();
    restart();
}

byId("key-button").addEventListener("click", () => askKey(null));
byId("key-cancel").addEventListener("click", () => keyDialog.close());
byId("key-forget").addEventListener("click", () => useKey(""));
keyDialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
});
byId("key-button").hidden = !key.get();

// ---- parts ----

const settings = new Settings();
const chat = new Chat(settings, askKey);
const panel = new ClusterPanel();

// On a narrow window the panel takes the chat's place.
byId("show-cluster").addEventListener("click", () => {
    const shown = document.body.classList.toggle("with-cluster");
    byId("show-cluster").setAttribute("aria-expanded", String(shown));
    setText(byId("show-cluster"), shown ? "Chat" : "Cluster");
});

// ---- the connection ----

let connection = null; // of the events; aborted to begin anew

/** Silence, a connection that broke and one that cannot be made are one thing to the panel: the gateway is gone. */
function asGone(error) {
    if (error.name === "AbortError")
        return new ApiError(0, "no_connection", "the gateway has been silent for long");
    return error.status === 0 ? new ApiError(0, "no_connection", error.message) : error;
}

/** Follows the cluster until the connection is aborted; begins again after whatever ends it. */
async function follow(controller) {
    let failures = 0;
    while (!controller.signal.aborted) {
        const attempt = new AbortController();
        const abort = () => attempt.abort();
        let watchdog = setTimeout(abort, SILENT_MS);
        controller.signal.addEventListener("abort", abort);
        try {
            for await (const cluster of clusterEvents(attempt.signal)) {
                clearTimeout(watchdog);
                watchdog = setTimeout(abort, SILENT_MS);
                failures = 0;
                chat.setModel(cluster.model);
                panel.show(cluster);
            }
        } catch (error) {
            if (controller.signal.aborted)
                return;
            panel.lost(explain(asGone(error)));
            if (error.status === 401) {
                askKey(error);
                return; // until a key is entered
            }
            if (error.name !== "AbortError" && !(error instanceof ApiError))
                throw error; // the page's own fault: it shall be seen in the console
        } finally {
            clearTimeout(watchdog);
            controller.signal.removeEventListener("abort", abort);
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]));
    }
}

function restart() {
    connection?.abort();
    connection = null;
    if (document.hidden)
        return;
    connection = new AbortController();
    follow(connection);
}

// A hidden tab listens to nothing: browsers allow six connections to a host, and tabs kept open would take them all.
document.addEventListener("visibilitychange", restart);
restart();
byId("prompt").focus();
