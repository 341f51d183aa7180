// A conversation as a tree of messages: an edited question and an answer asked for again are branches. Pure: no page, no storage.
//
//   head     { id, title, named, created, changed, system, chosen }
//            named: a person gave the title; system: its own system prompt or null; chosen: { parent id: child id }, where
//            there is more than one child
//   message  { conversation, id, parent, role, mode, text, thought, files, created, revision, state, stats, error }
//            parent: "" at the beginning; role: "user" | "assistant"; mode: "chat" | "completion"; files: [{ name, text }];
//            state: "done" | "stopped" | "cut" | "interrupted" | "failed"

const TITLE_MAX = 60; // characters

/** A name that no other tab gives. (randomUUID is only there with TLS or on localhost.) */
export function newId() {
    return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export const newHead = () => ({ id: newId(), title: "", named: false, created: Date.now(), changed: Date.now(), system: null, chosen: {} });

/** The first words of a text, for a title. */
export function shortTitle(text) {
    const line = text.trim().split("\n", 1)[0].trim().replace(/\s+/g, " ");
    return line.length > TITLE_MAX ? `${line.slice(0, TITLE_MAX - 1).trimEnd()}…` : line || "Untitled";
}

export class Tree {
    constructor(head = newHead(), messages = []) {
        this.head = head;
        this.messages = new Map();
        this.below = new Map(); // parent's id: its children, the oldest first
        for (const message of [...messages].sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1)))
            this.#put(message);
    }

    get id() {
        return this.head.id;
    }

    #put(message) {
        this.messages.set(message.id, message);
        if (!this.below.has(message.parent))
            this.below.set(message.parent, []);
        this.below.get(message.parent).push(message);
    }

    /** Adds a message below another ("": at the beginning) and chooses it. */
    add(parent, members) {
        const message = { conversation: this.id, id: newId(), parent, role: "user", mode: "chat", text: "", thought: "", files: [], created: this.#time(parent),
            revision: 0, state: "done", stats: "", error: null, ...members };
        this.#put(message);
        this.choose(message);
        if (!this.head.title)
            this.head.title = shortTitle(message.text || message.files[0]?.name || "");
        return message;
    }

    // Later than every sibling, also where a clock was set back.
    #time(parent) {
        return Math.max(Date.now(), 1 + (this.below.get(parent)?.at(-1)?.created ?? 0));
    }

    /** The message and the other ones in its place, the oldest first. */
    siblings(message) {
        return this.below.get(message.parent);
    }

    choose(message) {
        if (this.siblings(message).length > 1)
            this.head.chosen[message.parent] = message.id;
    }

    child(id) {
        const children = this.below.get(id);
        return children?.find((message) => message.id === this.head.chosen[id]) ?? children?.at(-1) ?? null;
    }

    /** The messages that are shown, from the first to the last. */
    path() {
        const path = [];
        for (let message = this.child(""); message; message = this.child(message.id))
            path.push(message);
        return path;
    }

    /** The messages before one, the first one first. */
    before(message) {
        const found = [];
        for (let at = this.messages.get(message.parent); at; at = this.messages.get(at.parent))
            found.unshift(at);
        return found;
    }

    /** All messages that can be reached, each one after the one that it stands below. */
    all() {
        return this.#with([...(this.below.get("") ?? [])]);
    }

    #with(found) {
        for (let i = 0; i < found.length; i++)
            found.push(...(this.below.get(found[i].id) ?? []));
        return found;
    }

    /** Takes a message and all below it out; returns them. */
    remove(message) {
        const gone = this.#with([message]);
        const siblings = this.siblings(message), at = siblings.indexOf(message);
        siblings.splice(at, 1);
        for (const each of gone) {
            this.messages.delete(each.id);
            this.below.delete(each.id);
            delete this.head.chosen[each.id];
        }
        if (siblings.length > 1)
            this.head.chosen[message.parent] = siblings[Math.max(0, at - 1)].id;
        else {
            delete this.head.chosen[message.parent];
            if (!siblings.length)
                this.below.delete(message.parent);
        }
        return gone;
    }

    /** Puts back what remove() returned. */
    restore(messages) {
        for (const message of messages) {
            this.#put(message);
            this.below.get(message.parent).sort((a, b) => a.created - b.created);
        }
        if (messages.length)
            this.choose(messages[0]);
    }

    /** Another tab wrote the same message: this one becomes a branch of its own beside it. */
    rename(message) {
        this.messages.delete(message.id);
        const siblings = this.siblings(message);
        siblings.splice(siblings.indexOf(message), 1);
        Object.assign(message, { id: newId(), revision: 0, created: this.#time(message.parent) });
        this.#put(message);
        this.head.chosen[message.parent] = message.id; // the other one comes when it is read
    }

    /** What is kept now, perhaps by another tab. busy: the ids of messages that are being written here. */
    refresh(head, messages, busy = new Set()) {
        const chosen = this.head.chosen, mine = [...this.messages.values()].filter((message) => busy.has(message.id));
        const theirs = messages.filter((message) => !busy.has(message.id)).map((message) => {
            const known = this.messages.get(message.id);
            return known && known.revision >= message.revision ? known : message;
        });
        const next = new Tree({ ...head, chosen: { ...head.chosen, ...chosen } }, [...theirs, ...mine]);
        Object.assign(this, { head: next.head, messages: next.messages, below: next.below });
    }
}
