// Conversations in the browser's IndexedDB. Where that cannot be used, or is full, everything goes on in memory and hears a
// sentence that says so. Other tabs may write at the same time: what they add stays, and of two that write the same message
// the second is told (conflicts), because a message is only replaced in the revision that was read.
//
//   heads     by id                    what the list shows (tree.js)
//   messages  by [conversation, id]    one row each, so that an answer that grows does not write the others anew
//   drafts    by conversation          { conversation, text, files, editing, aside, changed }

const NAME = "nakshatra", VERSION = 1;
const RESCUE = "nakshatra.rescue";
const DRAFT_DAYS = 30; // of a conversation that was never begun

const SENTENCES = {
    absent: "This browser keeps nothing for this page (a private window, or its storage is switched off): conversations last until the tab is closed. Export what you want to keep.",
    full: "The browser's storage for this page is full: from here on nothing outlives this tab. Export what you want to keep, delete conversations, and reload.",
    failed: "The browser's storage for this page failed: from here on nothing outlives this tab. Export what you want to keep, and reload.",
    newer: "A newer version of this page has kept conversations here in a form that this one does not know. Until the gateway is the newer one again, conversations last until the tab is closed.",
    blocked: "Another tab of this page has an older version open. Close it, and this tab goes on.",
    replaced: "A newer version of this page was opened in another tab. Reload this one; until then nothing of it is kept.",
};

const isEmpty = (draft) => !draft.text && !draft.files.length && !draft.editing;
const wait = (request) => new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
});

/** A store of the database within one transaction. */
class Table {
    constructor(store) {
        this.store = store;
    }

    get = (key) => wait(this.store.get(key));
    all = (of) => wait(this.store.getAll(of === undefined ? undefined : range(of)));
    put = (row) => wait(this.store.put(row));
    delete = (key) => wait(this.store.delete(key));
    deleteAll = (of) => wait(this.store.delete(range(of)));
}
const range = (of) => IDBKeyRange.bound([of], [of, []]);

/** The same in memory. Rows are copied in and out, as a database does it. */
class MemoryTable {
    constructor(keyOf) {
        this.keyOf = keyOf;
        this.rows = new Map();
    }

    get = async (key) => structuredClone(this.rows.get(String(key)));
    all = async (of) => structuredClone([...this.rows.values()].filter((row) => of === undefined || row.conversation === of));
    put = async (row) => void this.rows.set(this.keyOf(row), structuredClone(row));
    delete = async (key) => void this.rows.delete(String(key));
    deleteAll = async (of) => {
        for (const [key, row] of this.rows)
            if (row.conversation === of)
                this.rows.delete(key);
    };
}

const KEYS = { heads: "id", messages: ["conversation", "id"], drafts: "conversation" };
const TABLES = Object.keys(KEYS);

export class Store {
    /** hear: { problem(sentence), changed({ kind: "saved" | "removed" | "all", id }) }, the latter of other tabs. */
    constructor(hear) {
        this.hear = hear;
        this.db = null;
        this.memory = null;
        this.queue = this.#open(); // everything runs one after the other
        try {
            this.channel = new BroadcastChannel(NAME);
            this.channel.onmessage = ({ data }) => hear.changed(data);
        } catch {
            this.channel = null; // other tabs then show it when they are reloaded
        }
    }

    /** The heads, the last changed one first. */
    heads() {
        return this.#run("readonly", async ({ heads }) => (await heads.all()).sort((a, b) => b.changed - a.changed));
    }

    /** { head, messages }, or null. */
    load(id) {
        return this.#run("readonly", async ({ heads, messages }) => {
            const head = await heads.get(id);
            return head ? { head, messages: await messages.all(id) } : null;
        });
    }

    /** Everything, for an export. */
    all() {
        return this.#run("readonly", async ({ heads, messages }) => {
            const found = [];
            for (const head of await heads.all())
                found.push({ head, messages: await messages.all(head.id) });
            return found.sort((a, b) => b.head.changed - a.head.changed);
        });
    }

    /** Puts whole conversations: new, imported, or deleted and wanted back. */
    create(conversations) {
        return this.#run("readwrite", async ({ heads, messages }) => {
            for (const each of conversations) {
                await heads.put(each.head);
                for (const message of each.messages) {
                    message.revision = 1;
                    await messages.put(message);
                }
            }
        }).then(() => this.#tell(conversations.length === 1 ? { kind: "saved", id: conversations[0].head.id } : { kind: "all" }));
    }

    /** Puts messages of a conversation, each in the revision that is known here. Returns { gone, conflicts: [id] }: gone: the
     *  conversation, or what a message stands below, was deleted in another tab; conflicts: another tab has written them. */
    save(head, list) {
        return this.#run("readwrite", async ({ heads, messages }) => {
            const kept = await heads.get(head.id), conflicts = [], written = [];
            if (!kept)
                return { gone: true, conflicts, written };
            for (const message of list) {
                const stored = await messages.get([head.id, message.id]);
                if (!stored && message.revision)
                    return { gone: true, conflicts, written };
                if (stored && stored.revision !== message.revision) {
                    conflicts.push(message.id);
                    continue;
                }
                await messages.put({ ...message, revision: message.revision + 1 });
                written.push(message);
            }
            await heads.put({ ...kept, chosen: { ...kept.chosen, ...head.chosen }, changed: Date.now() });
            return { gone: false, conflicts, written };
        }, ({ gone, conflicts, written }) => {
            for (const message of written)
                message.revision++;
            return this.#tell({ kind: "saved", id: head.id }, { gone, conflicts });
        });
    }

    /** Changes members of a head: title, named, system, chosen. */
    update(id, members) {
        return this.#run("readwrite", async ({ heads }) => {
            const kept = await heads.get(id);
            if (kept)
                await heads.put({ ...kept, ...members });
        }).then(() => this.#tell({ kind: "saved", id }));
    }

    removeMessages(head, ids) {
        return this.#run("readwrite", async ({ heads, messages }) => {
            for (const id of ids)
                await messages.delete([head.id, id]);
            const kept = await heads.get(head.id);
            if (kept)
                await heads.put({ ...kept, chosen: head.chosen });
        }).then(() => this.#tell({ kind: "saved", id: head.id }));
    }

    /** Deletes a conversation; returns what it was, for create(), or null. */
    remove(id) {
        return this.#run("readwrite", async ({ heads, messages, drafts }) => {
            const head = await heads.get(id), list = await messages.all(id);
            await heads.delete(id);
            await messages.deleteAll(id);
            await drafts.delete(id);
            return head ? { head, messages: list } : null;
        }).then((result) => {
            if (this.memory && this.db) // it is full: this makes room
                this.#inDatabase("readwrite", async ({ heads, messages, drafts }) => {
                    await heads.delete(id);
                    await messages.deleteAll(id);
                    await drafts.delete(id);
                }).catch(() => {});
            return this.#tell({ kind: "removed", id }, result);
        });
    }

    /** Which conversations have a text in their title or in a message: Map of id: the text around the first place. */
    search(text) {
        const wanted = text.trim().toLowerCase(), has = (each) => each.toLowerCase().includes(wanted);
        return this.#run("readonly", async ({ heads, messages }) => {
            const found = new Map();
            for (const head of await heads.all()) {
                const hit = has(head.title) ? "" : (await messages.all(head.id)).flatMap((message) => [message.text, ...message.files.map((file) => file.text)]).find(has);
                if (hit !== undefined)
                    found.set(head.id, around(hit, wanted));
            }
            return found;
        });
    }

    draft(id) {
        return this.#run("readonly", ({ drafts }) => drafts.get(id));
    }

    /** draft: { text, files, editing, aside }; an empty one is forgotten. */
    keepDraft(id, draft) {
        return this.#run("readwrite", ({ drafts }) => (isEmpty(draft) ? drafts.delete(id) : drafts.put({ ...draft, conversation: id, changed: Date.now() })));
    }

    /** Keeps { draft, messages } at once, for a page that ends now: what a database may not manage any more. It is read when the
     *  page is opened again. null: forgets it. */
    rescue(what) {
        for (const each of what ? [what, { ...what, draft: { ...what.draft, files: null, aside: null } }, { messages: what.messages }, null] : [null])
            try {
                return each ? sessionStorage.setItem(RESCUE, JSON.stringify(each)) : sessionStorage.removeItem(RESCUE);
            } catch {
                // Too much for it, or forbidden: less, then.
            }
    }

    async #rescued({ messages, drafts }) {
        let kept = null;
        try {
            kept = JSON.parse(sessionStorage.getItem(RESCUE));
            sessionStorage.removeItem(RESCUE);
        } catch {
            return; // forbidden, or not ours
        }
        for (const message of kept?.messages ?? []) {
            const stored = await messages.get([message.conversation, message.id]);
            const longer = stored && message.text.startsWith(stored.text) && message.thought.startsWith(stored.thought) && message.text.length + message.thought.length > stored.text.length + stored.thought.length;
            if (longer)
                await messages.put({ ...message, revision: stored.revision + 1 });
        }
        if (kept?.draft) {
            const stored = await drafts.get(kept.draft.conversation);
            const draft = { ...kept.draft, files: kept.draft.files ?? stored?.files ?? [] };
            await (isEmpty(draft) ? drafts.delete(draft.conversation) : drafts.put({ ...draft, changed: Date.now() }));
        }
    }

    // ---- how it is kept ----

    async #open() {
        try {
            const request = indexedDB.open(NAME, VERSION);
            request.onupgradeneeded = ({ oldVersion }) => {
                if (oldVersion < 1)
                    for (const name of TABLES)
                        request.result.createObjectStore(name, { keyPath: KEYS[name] });
            };
            request.onblocked = () => this.hear.problem(SENTENCES.blocked);
            this.db = await wait(request);
            this.db.onversionchange = async () => {
                await this.#leave(SENTENCES.replaced);
                this.db.close();
                this.db = null;
            };
        } catch (error) {
            this.#toMemory();
            this.hear.problem(error?.name === "VersionError" ? SENTENCES.newer : SENTENCES.absent);
        }
        try {
            await this.#once("readwrite", async (tables) => {
                await this.#rescued(tables);
                const old = Date.now() - DRAFT_DAYS * 86400000;
                for (const draft of await tables.drafts.all())
                    if (draft.changed < old && !await tables.heads.get(draft.conversation))
                        await tables.drafts.delete(draft.conversation);
            });
        } catch {
            // The first write of a person will say it.
        }
    }

    #toMemory(rows = {}) {
        this.memory = {};
        for (const name of TABLES) {
            const path = [KEYS[name]].flat();
            this.memory[name] = new MemoryTable((row) => path.map((part) => row[part]).join());
            for (const row of rows[name] ?? [])
                this.memory[name].put(row);
        }
    }

    // Goes on in memory with what can be read.
    async #leave(sentence) {
        const rows = {};
        await this.#inDatabase("readonly", async (tables) => {
            for (const name of TABLES)
                rows[name] = await tables[name].all();
        }).catch(() => {});
        this.#toMemory(rows);
        this.hear.problem(sentence);
    }

    // after: what is done with the result before anything else runs.
    #run(mode, work, after = (result) => result) {
        const result = this.queue.then(() => this.#once(mode, work)).then(after);
        this.queue = result.catch(() => {});
        return result;
    }

    async #once(mode, work) {
        if (!this.memory)
            try {
                return await this.#inDatabase(mode, work);
            } catch (error) {
                if (!(error instanceof DOMException))
                    throw error; // the page's own fault
                await this.#leave(error.name === "QuotaExceededError" ? SENTENCES.full : SENTENCES.failed);
            }
        return work(this.memory);
    }

    async #inDatabase(mode, work) {
        const transaction = this.db.transaction(TABLES, mode);
        const done = new Promise((resolve, reject) => {
            transaction.oncomplete = resolve;
            transaction.onabort = () => reject(transaction.error ?? new DOMException("the transaction was aborted", "AbortError"));
        });
        done.catch(() => {}); // it is thrown below, or what work() throws is
        let result;
        try {
            result = await work(Object.fromEntries(TABLES.map((name) => [name, new Table(transaction.objectStore(name))])));
        } catch (error) {
            try {
                transaction.abort();
            } catch {
                // It was aborted by the error itself.
            }
            throw error;
        }
        await done;
        return result;
    }

    #tell(event, result) {
        this.channel?.postMessage(event);
        return result;
    }
}

const AROUND = 40; // characters of a place that is found, on both sides

function around(text, wanted) {
    const at = text.toLowerCase().indexOf(wanted);
    if (!text || at < 0)
        return "";
    const from = Math.max(0, at - AROUND), to = at + wanted.length + AROUND;
    return `${from ? "…" : ""}${text.slice(from, to).replace(/\s+/g, " ")}${to < text.length ? "…" : ""}`;
}
