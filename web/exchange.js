// Conversations as files: JSON with all branches, to be read again, and Markdown of what is shown. Pure. A file that is read
// may come from anywhere: its size and every member are checked, and what is wrong is said.
import { fenced } from "./attachments.js";
import { Tree, newId, shortTitle } from "./tree.js";

export const IMPORT_MAX = 64 << 20; // bytes
const FORMAT = "nakshatra-conversations", VERSION = 1;
const CONVERSATIONS_MAX = 10000, MESSAGES_MAX = 200000, TEXT_MAX = 16 << 20, FILES_MAX = 100;
const STATES = ["done", "stopped", "cut", "interrupted", "failed"];
const KEPT = ["id", "parent", "role", "mode", "text", "thought", "files", "created", "state", "stats", "error"];

/** all: [{ head, messages }]. */
export function toJson(all) {
    return JSON.stringify({
        format: FORMAT, version: VERSION, exported: new Date().toISOString(),
        conversations: all.map(({ head, messages }) => ({
            title: head.title, named: head.named, created: head.created, changed: head.changed, system: head.system, chosen: head.chosen,
            messages: new Tree(head, messages).all().map((message) => Object.fromEntries(KEPT.map((name) => [name, message[name]]))),
        })),
    }, null, 1);
}

/** The branch that is shown of each conversation. */
export function toMarkdown(all) {
    return all.map(({ head, messages }) => {
        const tree = new Tree(head, messages), path = tree.path(), parts = [`# ${head.title}`];
        if (head.system)
            parts.push("## System prompt", head.system);
        for (const message of path) {
            parts.push(message.role === "user" ? "## You" : "## Answer");
            parts.push(...message.files.map((file) => fenced(file.name, file.text)));
            if (message.text)
                parts.push(message.text);
        }
        if (messages.length > path.length)
            parts.push(`_${messages.length - path.length} messages of other branches are not in this file._`);
        return `${parts.join("\n\n")}\n`;
    }).join("\n---\n\n");
}

/** A name for a file that every system takes. */
export const fileName = (title, end) => `${title.replace(/[^\p{L}\p{N} ._-]/gu, "").trim().replace(/^\.+/, "").slice(0, 60).trim() || "conversation"}.${end}`;

const say = (value) => {
    const text = value === undefined ? "nothing" : JSON.stringify(value);
    return text.length > 40 ? `${text.slice(0, 39)}…` : text;
};

function want(ok, where, value, right) {
    if (!ok)
        throw new Error(`${where} is ${say(value)}; ${right} would be right.`);
    return value;
}
const text = (value, where, max = TEXT_MAX) => want(typeof value === "string" && value.length <= max, where, value, `a text of at most ${max.toLocaleString("en")} characters`);
const time = (value, where) => want(Number.isFinite(value) && value >= 0 && value < 8.64e15, where, value, "a time in milliseconds");
const one = (value, of, where) => want(of.includes(value), where, value, of.map((name) => `"${name}"`).join(" or "));
const list = (value, max, where) => want(Array.isArray(value) && value.length <= max, where, value, `a list of at most ${max.toLocaleString("en")}`);
const object = (value, where) => want(typeof value === "object" && value !== null && !Array.isArray(value), where, value, "an object");

function readMessage(given, where, id, parent, conversation) {
    const error = given.error === null || given.error === undefined ? null : object(given.error, `${where}.error`);
    return {
        conversation, id, parent, revision: 0,
        role: one(given.role, ["user", "assistant"], `${where}.role`),
        mode: one(given.mode ?? "chat", ["chat", "completion"], `${where}.mode`),
        text: text(given.text, `${where}.text`),
        thought: text(given.thought ?? "", `${where}.thought`),
        files: list(given.files ?? [], FILES_MAX, `${where}.files`).map((file, i) => ({
            name: text(object(file, `${where}.files[${i}]`).name, `${where}.files[${i}].name`, 300),
            text: text(file.text, `${where}.files[${i}].text`),
        })),
        created: time(given.created, `${where}.created`),
        state: one(given.state ?? "done", STATES, `${where}.state`),
        stats: text(given.stats ?? "", `${where}.stats`, 300),
        error: error && { title: text(error.title, `${where}.error.title`, 300), message: text(error.message, `${where}.error.message`, 3000), advice: text(error.advice, `${where}.error.advice`, 1000) },
    };
}

function readConversation(given, where) {
    object(given, where);
    const id = newId(), ids = new Map([["", ""]]), messages = [];
    const chosen = object(given.chosen ?? {}, `${where}.chosen`);
    for (const [i, message] of list(given.messages, MESSAGES_MAX, `${where}.messages`).entries()) {
        const at = `${where}.messages[${i}]`, name = text(object(message, at).id, `${at}.id`, 100);
        want(name && !ids.has(name), `${at}.id`, name, "a name that no other message of the conversation has");
        const parent = want(ids.has(message.parent), `${at}.parent`, message.parent, 'the id of an earlier message, or ""');
        ids.set(name, newId());
        messages.push(readMessage(message, at, ids.get(name), ids.get(parent), id));
    }
    const head = {
        id,
        title: text(given.title ?? "", `${where}.title`, 1000) || shortTitle(messages[0]?.text ?? ""),
        named: one(given.named ?? false, [true, false], `${where}.named`),
        created: time(given.created, `${where}.created`),
        changed: time(given.changed, `${where}.changed`),
        system: given.system === null || given.system === undefined ? null : text(given.system, `${where}.system`),
        chosen: Object.fromEntries(Object.entries(chosen).filter(([parent, child]) => ids.has(parent) && ids.has(child)).map(([parent, child]) => [ids.get(parent), ids.get(child)])),
    };
    return { head, messages };
}

/** The conversations of an exported file, with new ids. Throws an Error whose message is a sentence for people. */
export function fromJson(source) {
    let file;
    try {
        file = JSON.parse(source);
    } catch (error) {
        throw new Error(`This is no JSON (${error.message}). Choose a file that this page exported as JSON.`);
    }
    if (typeof file !== "object" || file === null || file.format !== FORMAT)
        throw new Error(`This JSON is no export of this page: its format is ${say(file?.format)}; "${FORMAT}" would be right.`);
    want(file.version === VERSION, "version", file.version, String(VERSION));
    return list(file.conversations, CONVERSATIONS_MAX, "conversations").map((given, i) => readConversation(given, `conversations[${i}]`));
}
