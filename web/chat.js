// The chat: the conversation that is shown, what is asked of the gateway for it, and what becomes of the answers.
//
//   chat         the messages so far and the system prompt go to /v1/chat/completions
//   completion   the text alone goes to /v1/completions
//
// One answer at a time is written in a conversation; another conversation may be looked at meanwhile. The pieces of an answer are
// collected and shown once per frame; a screen reader hears that writing has begun, and the text when it is complete, instead of
// every piece.
import { generate } from "./api.js";
import { spoken } from "./attachments.js";
import { Composer } from "./composer.js";
import { announce, byId, el, setText } from "./dom.js";
import { explain } from "./explain.js";
import { count, milliseconds, plural, rate } from "./format.js";
import { ConversationList } from "./list.js";
import { TurnView, stopped } from "./messages.js";
import { dismiss, notice } from "./notice.js";
import { Store } from "./store.js";
import { TokenCount } from "./tokens.js";
import { Tree, newHead } from "./tree.js";

const OPEN = "nakshatra.open";  // which conversation a tab shows
const ANNOUNCED_MAX = 1500;     // characters of an answer that are read out
const NEAR_BOTTOM = 60;         // pixels within which new text keeps the view at the end
const SAVE_MS = 1000;           // an answer that is written is kept that often
const DRAFT_MS = 400;           // so long after the last key a draft is kept

const EXAMPLES = {
    chat: ["Explain pipeline parallelism in two sentences.", "Write a haiku about the night sky.", "What is a nakshatra?"],
    completion: ["In the beginning", "And it came to pass", "Once upon a time"],
};

export class Chat {
    /** settings: settings.js; unauthorized(error): a key is needed. */
    constructor(settings, unauthorized) {
        this.settings = settings;
        this.unauthorized = unauthorized;
        this.model = null;
        this.tree = new Tree();
        this.tree.kept = false; // in the store
        this.runs = new Map();  // conversation's id: { tree, message, controller }
        this.views = new Map(); // "question's id/answer's id": TurnView
        this.editing = null;    // the question whose next version is written
        this.aside = null;      // what was being written before that
        this.opening = 0;       // counts, so that only the last one that is asked for is shown
        this.listNode = byId("turns");
        this.scroll = byId("scroll");
        this.follow = true; // the view stays at the end, until somebody scrolls away from it
        this.composer = new Composer({ send: (value) => this.send(value), stop: () => this.stop(), change: () => this.#changed() });
        this.tokens = new TokenCount(() => this.#question(), () => this.model?.context ?? null);
        this.store = new Store({ problem: (sentence) => notice("storage", sentence), changed: (event) => this.#elsewhere(event) });
        this.list = new ConversationList({
            open: (id) => this.open(id),
            rename: (id, title) => this.#rename(id, title),
            remove: (id) => this.remove(id),
            search: (text) => this.store.search(text),
            exchange: () => this.#exchange(),
        });
        settings.chat = { get: () => this.tree.head.system, set: (text) => this.#setSystem(text) };
        settings.listeners.push(() => this.tokens.later());
        this.#listen();
        this.#showMode();
        this.#start();
    }

    get mode() {
        return document.querySelector("#mode input:checked").value;
    }

    get running() {
        return this.runs.get(this.tree.id) ?? null;
    }

    /** What the cluster says of its model; a model that cannot chat leaves only completion. */
    setModel(model) {
        const first = !this.model || this.model.id !== model.id || this.model.chat !== model.chat || this.model.context !== model.context;
        this.model = model;
        if (!first)
            return;
        const [chat, completion] = document.querySelectorAll("#mode input");
        chat.disabled = !model.chat;
        if (!model.chat)
            completion.checked = true;
        byId("no-template").hidden = model.chat;
        setText(byId("no-template"), `${model.id} has no chat template, so it cannot chat: here it continues the text you give it. ` +
            "To chat, start the gateway with --chat-template NAME or FILE.");
        this.#showMode();
    }

    /** Asks; in place of the question that is edited, if one is. */
    send({ text, files = [] }) {
        if (this.running || (!text.trim() && !files.length))
            return;
        const { tree, mode } = this, parent = this.editing ? this.editing.parent : tree.path().at(-1)?.id ?? "";
        const question = tree.add(parent, { role: "user", mode, text, files });
        const answer = tree.add(question.id, { role: "assistant", mode, state: "interrupted" });
        const next = this.aside ?? {};
        this.#showEditing(null);
        this.composer.value = next;
        this.#keepDraft();
        dismiss("files");
        this.#show();
        this.#save(tree, [question, answer]);
        this.#run(tree, answer);
    }

    stop() {
        this.running?.controller.abort();
    }

    // ---- conversations ----

    /** Another conversation, empty; a draft for it that has begun stays. */
    clear() {
        if (this.tree.messages.size) {
            this.#leave(new Tree());
            this.composer.value = {};
        }
        this.#focus();
    }

    async open(id) {
        const asked = ++this.opening;
        if (id !== this.tree.id) {
            this.#keepDraft();
            const tree = this.runs.get(id)?.tree ?? await this.#load(id), draft = await this.store.draft(id);
            if (asked !== this.opening)
                return;
            if (!tree)
                return notice("elsewhere", "This chat is not here any more: another tab deleted it."), this.#refreshList();
            this.#leave(tree);
            this.#showDraft(draft);
            announce(`Opened ${tree.head.title}.`);
        }
        this.#focus();
    }

    async remove(id) {
        const run = this.runs.get(id);
        if (run) {
            run.dropped = true;
            run.controller.abort();
        }
        const gone = await this.store.remove(id);
        if (id === this.tree.id) {
            this.#leave(new Tree(), false);
            this.composer.value = {};
        }
        this.#refreshList();
        this.#focus();
        if (gone)
            notice("deleted", `Deleted “${gone.head.title}”.`, { label: "Undo", run: async () => {
                await this.store.create([gone]);
                this.#refreshList();
                this.open(id);
            } });
    }

    async #load(id) {
        const data = await this.store.load(id);
        if (!data)
            return null;
        const tree = new Tree(data.head, data.messages);
        tree.kept = true;
        return tree;
    }

    // Shows another tree. keep: the draft of the one that is left.
    #leave(tree, keep = true) {
        if (keep)
            this.#keepDraft();
        clearTimeout(this.drafting);
        this.opening++;
        this.tree = tree;
        this.#showEditing(null);
        for (const view of this.views.values())
            view.node.remove();
        this.views.clear();
        const mode = tree.path().at(-1)?.mode, [chat, completion] = document.querySelectorAll("#mode input");
        if (mode && !(mode === "chat" && chat.disabled))
            (mode === "chat" ? chat : completion).checked = true;
        dismiss("elsewhere");
        this.follow = true;
        this.#showMode();
        this.#show();
        this.#refreshList();
        try {
            sessionStorage.setItem(OPEN, tree.id);
        } catch {
            // A reload then begins with an empty chat.
        }
    }

    async #start() {
        let id = null;
        try {
            id = sessionStorage.getItem(OPEN);
        } catch {
            // Storage is forbidden.
        }
        const asked = ++this.opening;
        const tree = id && await this.#load(id), draft = id && await this.store.draft(id);
        if (asked === this.opening && !this.tree.messages.size) {
            const typed = this.composer.value;
            this.#leave(tree || new Tree(id ? { ...newHead(), id } : newHead()), false);
            if (this.composer.empty)
                this.#showDraft(draft);
            else
                this.composer.value = typed; // faster than the store
        }
        this.#refreshList();
    }

    async #rename(id, title) {
        if (id === this.tree.id)
            Object.assign(this.tree.head, { title, named: true });
        await this.store.update(id, { title, named: true });
        this.#refreshList();
    }

    async #setSystem(text) {
        this.tree.head.system = text || null;
        this.tokens.later();
        if (this.tree.kept)
            await this.store.update(this.tree.id, { system: text || null });
    }

    async #exchange() {
        const { openExchange } = await import("./exchange_panel.js");
        openExchange({ store: this.store, current: this.tree.kept ? this.tree.head : null, imported: (heads) => {
            this.#refreshList();
            this.open(heads[0].id);
        } });
    }

    async #refreshList() {
        const heads = await this.store.heads();
        this.list.show(heads, this.tree.id, new Set(this.runs.keys()));
    }

    // Another tab wrote or deleted.
    async #elsewhere({ kind, id }) {
        this.#refreshList();
        if (id !== this.tree.id)
            return;
        if (kind === "removed" && !this.running) {
            const { title } = this.tree.head;
            this.#leave(new Tree(), false);
            return notice("elsewhere", `Another tab deleted “${title}”.`);
        }
        const { tree } = this, data = await this.store.load(id);
        if (!data || tree !== this.tree)
            return;
        tree.refresh(data.head, data.messages, new Set(this.running ? [this.running.message.id] : []));
        tree.kept = true;
        this.#show();
    }

    // Puts messages into the store; says what another tab did with them.
    async #save(tree, messages) {
        if (!tree.kept) {
            tree.kept = true;
            tree.head.changed = Date.now();
            await this.store.create([{ head: tree.head, messages: [...tree.messages.values()] }]);
            return this.#refreshList();
        }
        const { gone, conflicts } = await this.store.save(tree.head, messages);
        if (gone)
            notice("elsewhere", `Another tab deleted “${tree.head.title}”, or a part of it. What is written here is no longer kept.`, { label: "Keep it", run: async () => {
                await this.store.create([{ head: tree.head, messages: [...tree.messages.values()] }]);
                this.#refreshList();
            } });
        for (const message of messages.filter(({ id }) => conflicts.includes(id))) {
            tree.rename(message);
            await this.#save(tree, [message]);
            const data = await this.store.load(tree.id);
            if (data)
                tree.refresh(data.head, data.messages, new Set([message.id]));
            if (tree === this.tree)
                this.#show();
        }
        this.#refreshList();
    }

    // ---- drafts ----

    #changed() {
        this.tokens?.later();
        clearTimeout(this.drafting);
        this.drafting = setTimeout(() => this.#keepDraft(), DRAFT_MS);
    }

    get #draft() {
        return { ...this.composer.value, conversation: this.tree.id, editing: this.editing?.id ?? null, aside: this.aside };
    }

    #keepDraft() {
        clearTimeout(this.drafting);
        return this.store.keepDraft(this.tree.id, this.#draft);
    }

    #showDraft(draft) {
        const question = draft?.editing && this.tree.messages.get(draft.editing);
        this.#showEditing(question || null, draft?.aside);
        this.composer.value = draft ?? {};
    }

    // ---- one generation ----

    #request(tree, answer) {
        const { mode } = answer, before = tree.before(answer), question = before.at(-1);
        const common = { ...this.settings.body(mode), model: this.model?.id };
        if (mode === "completion")
            return ["/v1/completions", { ...common, prompt: (question ? spoken(question) : "") + answer.text }];
        const messages = this.#history(tree, before.slice(0, -1));
        if (question)
            messages.push({ role: question.role, content: question.role === "user" ? spoken(question) : question.text });
        if (!answer.text && !answer.thought)
            return ["/v1/chat/completions", { ...common, messages }];
        messages.push({ role: "assistant", content: answer.text, ...(answer.thought ? { reasoning_content: answer.thought } : {}) });
        return ["/v1/chat/completions", { ...common, messages, continue_final_message: true }];
    }

    // Questions that were answered, with their answers, after the system prompt.
    #history(tree, list) {
        const system = tree.head.system ?? this.settings.system, messages = system ? [{ role: "system", content: system }] : [];
        let question = null;
        for (const message of list.filter(({ mode }) => mode === "chat"))
            if (message.role === "user")
                question = message;
            else if (message.text) {
                if (question)
                    messages.push({ role: "user", content: spoken(question) });
                messages.push({ role: "assistant", content: message.text });
                question = null;
            }
        return messages;
    }

    // What sending now would ask, for the count of its tokens.
    #question() {
        if (this.composer.empty || this.running)
            return null;
        const text = spoken(this.composer.value);
        if (this.mode === "completion")
            return { path: "/tokenize", body: { content: text, add_special: true } };
        const { tree } = this, before = this.editing ? tree.before(this.editing) : tree.path();
        const [first, ...rest] = this.#history(tree, before), system = first?.role === "system" ? first : null;
        const messages = [...(first && !system ? [first] : []), ...rest, { role: "user", content: text }];
        return { path: "/v1/messages/count_tokens", body: { messages, ...(system ? { system: system.content } : {}) } };
    }

    /** Writes an answer, or goes on with what it has. */
    async #run(tree, answer) {
        const controller = new AbortController(), begin = performance.now(), run = { tree, message: answer, controller, dropped: false };
        const before = answer.text;
        let pieces = 0, first = 0, last = 0, saved = begin, usage = null, finish = null, error = null;
        Object.assign(answer, { error: null, stats: "", state: "interrupted" });
        this.runs.set(tree.id, run);
        this.#view(answer)?.begin();
        this.#showRunning();
        this.#refreshList();
        this.follow = true;
        this.#toEnd();
        announce("Writing an answer.");
        try {
            for await (const chunk of generate(...this.#request(tree, answer), controller.signal)) {
                const choice = chunk.choices?.[0], view = this.#view(answer);
                usage = chunk.usage ?? usage;
                if (chunk.prompt_progress && view) {
                    view.progress = chunk.prompt_progress;
                    view.later();
                }
                if (!choice)
                    continue;
                finish = choice.finish_reason ?? finish;
                const text = choice.text ?? choice.delta?.content ?? "", thought = choice.delta?.reasoning_content ?? "";
                if (!text && !thought)
                    continue;
                last = performance.now();
                first ||= last;
                pieces++;
                answer.text += text;
                answer.thought += thought;
                answer.stats = `${plural(pieces, "token")} · first token after ${milliseconds(first - begin)}`;
                if (view) {
                    view.progress = null;
                    view.later();
                }
                if (last - saved >= SAVE_MS) {
                    saved = last;
                    this.#save(tree, [answer]);
                }
            }
            Object.assign(answer, { state: finish === "length" ? "cut" : "done", stats: summary(usage, finish, begin, first, last) });
        } catch (thrown) {
            error = thrown;
            if (error.name === "AbortError")
                Object.assign(answer, { state: "stopped", stats: stopped(pieces, performance.now() - begin) });
            else
                Object.assign(answer, { state: "failed", error: explain(error) });
        }
        this.runs.delete(tree.id);
        this.#view(answer)?.end();
        this.#showRunning();
        if (run.dropped || !tree.messages.has(answer.id)) // deleted meanwhile
            return this.#refreshList();
        this.#save(tree, [answer]);
        if (error?.status === 401)
            this.unauthorized(error);
        if (tree !== this.tree)
            announce(`The answer in ${tree.head.title} has ended.`);
        else if (!answer.error) // an error is an alert, which is read by itself
            announce(answer.text.length - before.length > ANNOUNCED_MAX ? `The answer is complete: ${answer.stats}.` : answer.text.slice(before.length) || "The answer is empty.");
        if (error && error.name !== "AbortError" && error.status === undefined)
            throw error; // the page's own fault: it shall be seen in the console, too
    }

    // Another answer to the same question, as a branch; one that has nothing is replaced.
    #again(question, answer) {
        if (this.running)
            return;
        const { tree } = this;
        if (answer && !answer.text && !answer.thought)
            return this.#run(tree, answer);
        const next = tree.add(answer ? answer.parent : question.id, { role: "assistant", mode: (answer ?? question).mode, state: "interrupted" });
        this.#show();
        this.#save(tree, [next]);
        this.#run(tree, next);
    }

    // ---- what is shown ----

    #view(answer) {
        return [...this.views.values()].find((view) => view.message === answer) ?? null;
    }

    /** Shows the path through the tree; turns that are the same keep their elements. */
    #show() {
        const turns = [];
        for (const message of this.tree.path())
            if (message.role === "assistant" && turns.at(-1) && !turns.at(-1).answer)
                turns.at(-1).answer = message;
            else
                turns.push(message.role === "user" ? { question: message, answer: null } : { question: null, answer: message });
        const next = new Map();
        for (const { question, answer } of turns) {
            const key = `${question?.id ?? ""}/${answer?.id ?? ""}`, known = this.views.get(key);
            const same = known && known.question === question && known.message === answer;
            next.set(key, same ? known : this.#makeView(question, answer));
        }
        for (const [key, view] of this.views)
            if (next.get(key) !== view)
                view.node.remove();
        this.views = next;
        let at = this.listNode.firstChild;
        for (const { node } of next.values())
            if (node === at)
                at = at.nextSibling;
            else
                this.listNode.insertBefore(node, at);
        this.#showRunning();
        this.tokens.later();
    }

    #makeView(question, answer) {
        const view = new TurnView(question, answer, {
            retry: () => this.#again(question, answer),
            again: () => this.#again(question, answer),
            more: () => this.running || this.#run(this.tree, answer),
            edit: () => this.running || this.#edit(question),
            remove: () => this.#removeTurn(question, answer),
            choose: (message, word) => this.#choose(message, word),
        });
        if (this.running?.message === answer && answer)
            view.begin();
        return view;
    }

    #choose(message, word) {
        this.tree.choose(message);
        this.follow = false;
        this.#show();
        const siblings = this.tree.siblings(message);
        const view = [...this.views.values()].find(({ question, message: answer }) => question === message || answer === message);
        (view?.question === message ? view.asked : view?.answered)?.focus(word);
        announce(`Version ${siblings.indexOf(message) + 1} of ${siblings.length}.`);
        if (this.tree.kept)
            this.store.update(this.tree.id, { chosen: { ...this.tree.head.chosen } });
    }

    async #removeTurn(question, answer) {
        const { tree } = this;
        if (this.running) {
            this.running.dropped = true;
            this.stop();
        }
        const chosen = { ...tree.head.chosen }, gone = tree.remove(question ?? answer);
        if (gone.includes(this.editing))
            this.#showEditing(null);
        this.#show();
        this.#focus();
        notice("deleted", "Deleted the message and what followed it.", { label: "Undo", run: async () => {
            if (tree.messages.size)
                tree.restore(gone);
            else
                Object.assign(tree, new Tree(tree.head, gone));
            Object.assign(tree.head.chosen, chosen);
            tree.kept = true;
            if (tree === this.tree)
                this.#show();
            await this.store.create([{ head: tree.head, messages: gone }]);
            this.#refreshList();
        } });
        if (tree.messages.size)
            await this.store.removeMessages(tree.head, gone.map(({ id }) => id));
        else {
            tree.kept = false;
            await this.store.remove(tree.id);
        }
        this.#refreshList();
    }

    #edit(question) {
        const aside = this.editing ? this.aside : this.composer.value;
        this.#showEditing(question, aside);
        this.composer.value = question;
        this.composer.prompt.focus();
    }

    #showEditing(question, aside = null) {
        this.editing = question;
        this.aside = question ? aside : null;
        byId("editing").hidden = !question;
        for (const view of this.views.values())
            view.node.classList.toggle("edited", !!question && view.question === question);
    }

    #showRunning() {
        const running = !!this.running;
        this.composer.show(running, this.mode === "chat" ? "Send" : "Continue text");
        byId("empty").hidden = this.tree.messages.size > 0;
        const all = [...this.views.values()];
        for (const view of all)
            view.allow(!running, view === all.at(-1), (message) => this.tree.siblings(message) ?? [message]);
    }

    #showMode() {
        const chat = this.mode === "chat";
        setText(byId("prompt-label"), chat ? "Message" : "Text to continue");
        byId("thinking-field").hidden = !chat;
        this.composer.prompt.placeholder = chat ? "Ask something" : "Write the beginning of a text";
        byId("examples").replaceChildren(...EXAMPLES[this.mode].map((text) => el("button", { type: "button", onclick: () => this.send({ text }) }, text)));
        this.#showRunning();
        this.tokens.later();
    }

    #focus() {
        this.composer.prompt.focus();
    }

    #toEnd() {
        this.scroll.scrollTop = this.scroll.scrollHeight;
    }

    #listen() {
        document.addEventListener("keydown", (event) => {
            if (event.key === "Escape" && this.running && !document.querySelector("dialog[open]"))
                this.stop();
        });
        let before = 0;
        this.scroll.addEventListener("scroll", () => {
            // Only a way upwards is somebody's own: the end also moves away when text is added.
            const top = this.scroll.scrollTop;
            if (this.scroll.scrollHeight - top - this.scroll.clientHeight < NEAR_BOTTOM)
                this.follow = true;
            else if (top < before)
                this.follow = false;
            before = top;
        });
        const resized = new ResizeObserver(() => this.follow && this.#toEnd());
        resized.observe(this.scroll);
        resized.observe(this.listNode);
        byId("new-chat").addEventListener("click", () => this.clear());
        byId("cancel-edit").addEventListener("click", () => {
            const next = this.aside ?? {};
            this.#showEditing(null);
            this.composer.value = next;
            this.#focus();
        });
        byId("mode").addEventListener("change", () => this.#showMode());
        // The page ends or is put away: what was not kept yet is kept at once.
        addEventListener("pagehide", () => {
            const messages = [...this.runs.values()].map(({ message }) => message);
            this.store.rescue({ draft: this.#draft, messages });
            this.#keepDraft();
            for (const { tree, message } of this.runs.values())
                this.#save(tree, [message]);
        });
        addEventListener("pageshow", (event) => event.persisted && this.store.rescue(null));
    }
}

function summary(usage, finish, begin, first, last) {
    const words = [];
    if (usage) {
        words.push(plural(usage.completion_tokens, "token"));
        if (usage.completion_tokens > 1 && last > first)
            words.push(`${rate((usage.completion_tokens - 1) * 1000 / (last - first))} tokens/s`);
    }
    if (first)
        words.push(`first token after ${milliseconds(first - begin)}`);
    if (usage)
        words.push(`prompt ${count(usage.prompt_tokens)}`);
    if (finish === "length")
        words.push("cut off at the token limit");
    return words.join(" · ");
}
