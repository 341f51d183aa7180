// What went wrong, as a title, the server's own sentence, and what a person can do about it.

const ADVICE = {
    invalid_api_key: ["A key is needed", "Enter one of the keys of the file that the gateway was started with (--api-key-file)."],
    queue_full: ["The cluster is busy", "All sequences are taken and the queue is full. Try again in a moment."],
    queue_timeout: ["The cluster is busy", "The request waited its whole time for a free sequence. Try again in a moment."],
    context_length_exceeded: ["Too long for the context", "Shorten the text, delete earlier messages, ask for fewer tokens in the settings, or start a new chat."],
    no_template: ["This model cannot chat", "It has no chat template. Switch to Completion, or start the gateway with --chat-template NAME or FILE."],
    no_connection: ["The gateway does not answer", "Is nakshatra serve still running, and is this machine on its network? The page connects again by itself."],
    connection_lost: ["The connection was lost", "What had arrived is kept. Ask again when the cluster panel says ready."],
    slow_reader: ["This page read too slowly", "The gateway ended the answer. Ask again with this tab in front."],
    shutting_down: ["The gateway is shutting down", "Start it again (nakshatra serve). The page connects again by itself."],
    body_too_large: ["Too much text", "Shorten the message or start a new chat."],
    foreign_origin: ["This address is not allowed", "Open the page at the gateway's own address, or start it with --cors-origin."],
    foreign_host: ["This address is not allowed", "Open the page at the gateway's address or localhost."],
    model_not_found: ["The model is not here any more", "Reload the page: the gateway serves another model now."],
    deadline: ["A worker did not answer in time", "Look for the stage that is marked in the cluster panel; ask again when it is back."],
    stalled: ["A worker did not answer in time", "Look for the stage that is marked in the cluster panel; ask again when it is back."],
};

/** { title, message, advice } of an ApiError (or of any error: then it is the page's own fault, and says so). */
export function explain(error) {
    const known = ADVICE[error.code];
    let [title, advice] = known ?? byStatus(error.status);
    if (error.retryAfter && error.status === 429)
        advice = `${advice} The gateway suggests ${error.retryAfter} s.`;
    return { title, message: sentence(error.message), advice };
}

function byStatus(status) {
    if (status === 400)
        return ["The request was refused", "Change what the message names: the text, or a value in the settings."];
    if (status === 429)
        return ["The cluster is busy", "Try again in a moment."];
    if (status === 200)
        return ["The answer broke off", "What had arrived is kept. If a stage is marked in the cluster panel, start its worker again; then try again."];
    if (status === 503)
        return ["The cluster is not ready", "Look for the stage that is marked in the cluster panel and start its worker again; then ask again."];
    if (status === 504)
        return ["A worker did not answer in time", "Look for the stage that is marked in the cluster panel; ask again when it is back."];
    if (status >= 500)
        return ["The gateway failed", "Its log says more. Ask again; if it goes on, restart it."];
    if (status >= 400)
        return ["The request was refused", "See docs/api.md for what the gateway accepts."];
    return ["The page failed", "Reload it. If it happens again, please report the message above."];
}

/** What to do about a worker that is not well; by the reason the gateway gives. */
export function workerAdvice(stage) {
    const where = `on the machine with the address ${stage.address}`;
    if (stage.state === "asleep")
        return `Wake it: it was put to sleep ${where}.`;
    if (stage.state === "draining")
        return "It is shutting down and takes no new sessions. Start it again when it has ended.";
    if (stage.device)
        return "It answers but does not fit this cluster: compare its slice and options with cluster.yaml (nakshatra check says the same).";
    return `Start it again ${where} (nakshatra worker). This panel returns to normal by itself.`;
}

function sentence(text) {
    const first = text.charAt(0).toUpperCase() + text.slice(1);
    return /[.!?]$/.test(first) ? first : `${first}.`;
}
