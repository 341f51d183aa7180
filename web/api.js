// The gateway's API as the page uses it: requests with the key, and errors as one kind of thing.
import { events } from "./sse.js";

const KEY = "nakshatra.key";

/** status 0: nothing was answered. code: the gateway's stable word (docs/api.md), or one of ours. */
export class ApiError extends Error {
    constructor(status, code, message, retryAfter = null) {
        super(message);
        this.status = status;
        this.code = code;
        this.retryAfter = retryAfter;
    }
}

/** The key lives as long as the tab: nothing secret stays in the browser after it. */
export const key = {
    get: () => sessionStorage.getItem(KEY) || "",
    set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

async function request(path, options = {}) {
    const headers = { ...options.headers };
    if (key.get())
        headers.Authorization = `Bearer ${key.get()}`;
    let response;
    try {
        response = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
        if (error.name === "AbortError")
            throw error;
        throw new ApiError(0, "no_connection", "the gateway does not answer");
    }
    if (!response.ok)
        throw await toError(response);
    return response;
}

async function toError(response) {
    let error = {};
    try {
        error = (await response.json()).error ?? {};
    } catch {
        // Not the gateway's own words (a proxy's page, say): the status has to do.
    }
    return new ApiError(response.status, error.code ?? `http_${response.status}`,
        error.message ?? `the server answered ${response.status} ${response.statusText}`,
        Number(response.headers.get("Retry-After")) || null);
}

/** The parsed chunks of a streamed generation. Ends after [DONE]; a stream that ends without it throws. */
export async function* generate(path, body, signal) {
    const response = await request(path, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true }, return_progress: true }),
        signal,
    });
    try {
        for await (const { data } of events(response)) {
            if (data === "[DONE]")
                return;
            const chunk = JSON.parse(data);
            if (chunk.error)
                throw new ApiError(response.status, chunk.error.code, chunk.error.message);
            yield chunk;
        }
    } catch (error) {
        if (error.name === "AbortError" || error instanceof ApiError)
            throw error;
        throw new ApiError(0, "connection_lost", "the connection broke while the answer was being written");
    }
    throw new ApiError(0, "connection_lost", "the connection ended before the answer did");
}

/** How many tokens a question has: of a chat by /v1/messages/count_tokens, of a text by /tokenize. */
export async function countTokens(path, body, signal) {
    const response = await request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
    const { input_tokens: n, tokens } = await response.json();
    return n ?? tokens.length;
}

/** The states of the cluster as the gateway sends them; ends only with the signal or by throwing. */
export async function* clusterEvents(signal) {
    const response = await request("/cluster/events", { signal });
    try {
        for await (const { event, data } of events(response))
            if (event === "cluster")
                yield JSON.parse(data);
    } catch (error) {
        if (error.name === "AbortError")
            throw error;
        throw new ApiError(0, "connection_lost", "the connection to the gateway broke");
    }
    throw new ApiError(0, "connection_lost", "the gateway closed the connection");
}
