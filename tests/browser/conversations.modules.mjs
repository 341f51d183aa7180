// The page's modules that need no page: the tree of messages, export and import, files at a message, settings, tokens, and the
// store without a database. tests/system/test_browser.py puts web/ beside this file.
import assert from "node:assert/strict";
import { test } from "node:test";
import { ALL_MAX, FILES_MAX, FILE_MAX, addFiles, fence, freeName, spoken, textOf } from "./web/attachments.js";
import { fileName, fromJson, toJson, toMarkdown } from "./web/exchange.js";
import { prefill } from "./web/messages.js";
import { GROUPS, body, wrong } from "./web/settings.js";
import { Store } from "./web/store.js";
import { describe } from "./web/tokens.js";
import { Tree, newId, shortTitle } from "./web/tree.js";

const texts = (tree) => tree.path().map(({ text }) => text);
const say = (tree, question, answer, parent = tree.path().at(-1)?.id ?? "") => {
    const asked = tree.add(parent, { role: "user", text: question });
    return [asked, tree.add(asked.id, { role: "assistant", text: answer })];
};

/** A tree with three versions of the second question, and two answers to the first version of it. */
function branched() {
    const tree = new Tree();
    const [, first] = say(tree, "a", "A");
    const [b1] = say(tree, "b1", "B1");
    tree.add(b1.id, { role: "assistant", text: "B1 again" });
    say(tree, "b2", "B2", first.id);
    const [b3] = say(tree, "b3", "B3", first.id);
    return { tree, b1, b3 };
}

// ---- the tree ----

test("the path is the newest branch until another is chosen, below it too", () => {
    const { tree, b1 } = branched();
    assert.deepEqual(texts(tree), ["a", "A", "b3", "B3"]);
    tree.choose(b1);
    assert.deepEqual(texts(tree), ["a", "A", "b1", "B1 again"]);
    tree.choose(tree.below.get(b1.id)[0]);
    assert.deepEqual(texts(tree), ["a", "A", "b1", "B1"]);
    assert.deepEqual(tree.siblings(b1).map(({ text }) => text), ["b1", "b2", "b3"]);
    assert.deepEqual(tree.before(tree.below.get(b1.id)[0]).map(({ text }) => text), ["a", "A", "b1"]);
    assert.equal(tree.head.title, "a");
});

test("a branch that is taken out takes what is below it, and comes back", () => {
    const { tree, b1, b3 } = branched();
    tree.choose(b1);
    const gone = tree.remove(b1);
    assert.deepEqual(gone.map(({ text }) => text), ["b1", "B1", "B1 again"]);
    assert.deepEqual(texts(tree), ["a", "A", "b2", "B2"]);
    tree.restore(gone);
    assert.deepEqual(texts(tree).slice(0, 3), ["a", "A", "b1"]);
    assert.deepEqual(tree.siblings(b3).map(({ text }) => text), ["b1", "b2", "b3"]);
    const all = tree.remove(tree.path()[0]);
    assert.equal(tree.messages.size, 0);
    assert.deepEqual(tree.path(), []);
    assert.equal(all.length, 9);
});

test("siblings keep their order when a clock is set back", (t) => {
    const { now } = Date, tree = new Tree();
    t.after(() => { Date.now = now; });
    Date.now = () => 5000;
    say(tree, "first", "x");
    Date.now = () => 1000;
    say(tree, "second", "x", "");
    const read = new Tree(tree.head, [...tree.messages.values()].reverse());
    assert.deepEqual(read.siblings(read.path()[0]).map(({ text }) => text), ["first", "second"]);
});

test("what another tab wrote is taken, but not over what is being written here", () => {
    const { tree, b3 } = branched(), mine = tree.path().at(-1);
    const theirs = [...tree.messages.values()].map((message) => ({ ...message, revision: 2, text: `${message.text}!` }));
    const more = { ...b3, id: newId(), text: "b4", created: b3.created + 5, revision: 1 };
    tree.refresh({ ...tree.head, title: "renamed" }, [...theirs, more], new Set([mine.id]));
    assert.equal(tree.head.title, "renamed");
    assert.equal(tree.messages.get(mine.id), mine);
    assert.equal(tree.messages.get(b3.id).text, "b3!");
    assert.deepEqual(tree.siblings(tree.messages.get(b3.id)).map(({ text }) => text), ["b1!", "b2!", "b3!", "b4"]);
});

test("a title is one line that fits", () => {
    assert.equal(shortTitle("  one\ttwo \nthree"), "one two");
    assert.equal(shortTitle("x".repeat(100)).length, 60);
    assert.equal(shortTitle(" \n"), "Untitled");
});

// ---- export and import ----

const all = () => {
    const { tree, b1 } = branched();
    tree.choose(b1);
    tree.head.system = "Be old.";
    b1.files = [{ name: "n.txt", text: "```\nx" }];
    return [{ head: tree.head, messages: [...tree.messages.values()] }];
};

test("JSON brings everything back, with its branches, under new names", () => {
    const [before] = all(), [after] = fromJson(toJson([{ ...before, messages: [...before.messages].reverse() }])); // a store has its own order
    const shape = ({ head, messages }) => {
        const tree = new Tree(head, messages), walk = (id) => (tree.below.get(id) ?? []).map((m) => [m.role, m.text, m.files, m.state, m.mode, m.created, walk(m.id)]);
        return [head.title, head.system, head.created, head.changed, walk(""), texts(tree)];
    };
    assert.deepEqual(shape(after), shape(before));
    assert.notEqual(after.head.id, before.head.id);
    const ids = new Set(before.messages.map(({ id }) => id));
    assert.ok(after.messages.every((message) => !ids.has(message.id) && message.conversation === after.head.id && message.revision === 0));
});

test("Markdown has the branch that is shown, files in fences that hold, and says what it leaves out", () => {
    const text = toMarkdown(all());
    assert.match(text, /^# a\n\n## System prompt\n\nBe old\.\n\n## You\n\na\n\n## Answer\n\nA\n\n## You\n\n````n\.txt\n```\nx\n````\n\nb1\n\n## Answer\n\nB1 again\n\n_5 messages of other branches/);
});

test("a file that is not ours, or wrong, is refused with the place and what would be right", () => {
    const [whole] = [JSON.parse(toJson(all()))];
    const bend = (f) => {
        const copy = structuredClone(whole);
        f(copy, copy.conversations[0]);
        return JSON.stringify(copy);
    };
    const cases = [
        ["{", /^This is no JSON \(.*Choose a file that this page exported/],
        ["[]", /its format is nothing; "nakshatra-conversations" would be right/],
        ["null", /its format is nothing/],
        [bend((file) => { file.version = 9; }), /^version is 9; 1 would be right/],
        [bend((file) => { file.conversations = {}; }), /^conversations is {}; a list/],
        [bend((_, c) => { c.messages[1].role = "system"; }), /^conversations\[0\]\.messages\[1\]\.role is "system"; "user" or "assistant" would be right/],
        [bend((_, c) => { c.messages[0].parent = c.messages[1].id; }), /messages\[0\]\.parent is ".*the id of an earlier message/],
        [bend((_, c) => { c.messages[0].parent = c.messages[0].id; }), /messages\[0\]\.parent is "/],
        [bend((_, c) => { c.messages[2].id = c.messages[1].id; }), /messages\[2\]\.id is ".*no other message/],
        [bend((_, c) => { c.messages[0].text = 7; }), /messages\[0\]\.text is 7; a text/],
        [bend((_, c) => { c.messages[0].text = { toString: 1 }; }), /messages\[0\]\.text is {"toString":1}/],
        [bend((_, c) => { c.messages[0].files = [null]; }), /messages\[0\]\.files\[0\] is null; an object/],
        [bend((_, c) => { c.messages[0].created = 1e300; }), /created is 1e\+300; a time/],
        [bend((_, c) => { c.messages[0] = null; }), /messages\[0\] is null; an object/],
        [bend((_, c) => { c.messages[0].error = { title: 1 }; }), /error\.title is 1/],
        [bend((_, c) => { c.named = "yes"; }), /named is "yes"; true or false|named is "yes"; "true" or "false"/],
    ];
    for (const [text, sentence] of cases)
        assert.throws(() => fromJson(text), (error) => sentence.test(error.message) || assert.fail(`${error.message} does not match ${sentence}`));
});

test("names that mean something to JavaScript are only names", () => {
    const file = JSON.stringify({ format: "nakshatra-conversations", version: 1, conversations: [{ title: "t", created: 1, changed: 1, chosen: { constructor: "__proto__" }, messages: [
        { id: "__proto__", parent: "", role: "user", text: "q", created: 1 }, { id: "constructor", parent: "__proto__", role: "assistant", text: "a", created: 2, more: 1 }] }] });
    const [{ head, messages }] = fromJson(file.replace('"chosen":{', '"chosen":{"__proto__":"constructor",'));
    assert.deepEqual(texts(new Tree(head, messages)), ["q", "a"]);
    assert.equal({}.constructor, Object);
    assert.equal("more" in messages[1], false);
});

test("a file's name is one on every system", () => {
    assert.equal(fileName("../a/b: c?", "json"), "ab c.json");
    assert.equal(fileName("…", "md"), "conversation.md");
});

// ---- files at a message ----

const file = (name, bytes) => ({ name, size: bytes.length, arrayBuffer: async () => Uint8Array.from(bytes).buffer });
const utf8 = (text) => [...new TextEncoder().encode(text)];

test("text files are taken, whatever their names; others get a sentence", async () => {
    const { files, problems } = await addFiles([], [file("a.txt", utf8("ä")), file("a.txt", utf8("b")), file("w.txt", [0xff, 0xfe, 0x41, 0]),
        file("x.png", [0x89, 0x50, 0, 1]), file("l1.txt", [0xe4, 0x62]), file("empty", []), { name: "dir", size: 0, arrayBuffer: async () => { throw new Error(); } },
        { name: "big.log", size: FILE_MAX + 1, arrayBuffer: () => assert.fail("it is read") }]);
    assert.deepEqual(files, [{ name: "a.txt", text: "ä" }, { name: "a 2.txt", text: "b" }, { name: "w.txt", text: "A" }]);
    assert.deepEqual(problems.map((sentence) => sentence.replace(/”.*/, "")), ["“x.png", "“l1.txt", "“empty", "“dir", "“big.log"]);
    assert.match(problems[4], /has 1\.0 MiB; a file may have 1\.0 MiB/);
});

test("files have ceilings together", async () => {
    const mib = utf8("x".repeat(FILE_MAX));
    const { files, problems } = await addFiles([], [1, 2, 3, 4, 5].map((n) => file(`${n}`, mib)));
    assert.equal(files.length, ALL_MAX / FILE_MAX);
    assert.match(problems[0], /“5” is left out: all files of a message may have 4\.0 MiB/);
    const many = await addFiles([], Array.from({ length: FILES_MAX + 5 }, (_, n) => file(`${n}`, [0x41])));
    assert.equal(many.files.length, FILES_MAX);
    assert.equal(many.problems.length, 1);
});

test("a file is said in a fence that its text cannot end, under a name that is one line", () => {
    assert.equal(spoken({ text: "What is it?", files: [{ name: "a.md", text: "```js\n1\n```\n" }] }), "````a.md\n```js\n1\n```\n````\n\nWhat is it?");
    assert.equal(spoken({ text: "", files: [{ name: "a", text: "x" }] }), "```a\nx\n```");
    assert.equal(fence("a `````` b"), "```````");
    assert.equal(freeName("a\n```b\u202e.txt", []), "ab.txt");
    assert.equal(textOf(Uint8Array.of(0x41, 0)), null);
});

// ---- settings ----

test("what is set goes into the request, by mode, and nothing else", () => {
    assert.deepEqual(body({}), {});
    assert.deepEqual(body({ temperature: 0, json_schema: '{"type":"object"}', samplers: "top_k, temperature", logit_bias: '{"5": -1}', stop: "a\n\\n", thinking: "on", reasoning_effort: "low", system: "s" }),
        { temperature: 0, json_schema: { type: "object" }, samplers: ["top_k", "temperature"], logit_bias: { 5: -1 }, stop: ["a", "\n"], enable_thinking: true, reasoning_effort: "low" });
    assert.deepEqual(body({ thinking: "off", reasoning_effort: "low" }), { enable_thinking: false });
    assert.deepEqual(body({ thinking: "off", grammar: "root ::= \"a\"" }, "completion"), { grammar: "root ::= \"a\"" });
});

test("a wrong text has a sentence", () => {
    const field = (name) => GROUPS.flatMap(({ fields }) => fields).find((each) => each.name === name);
    for (const [name, text, sentence] of [["json_schema", "{", /no JSON/], ["json_schema", "[]", /a JSON object/], ["grammar", "a ::= b", /no rule named root/],
        ["logit_bias", '{"x": 1}', /token ids/], ["logit_bias", '{"1": 101}', /-100 to 100/], ["samplers", "top_k magic", /no sampler “magic”/]])
        assert.match(wrong(field(name), text), sentence);
    assert.match(wrong(field("json_schema"), "{}", { grammar: "root ::= x" }), /only one of them/);
    assert.equal(wrong(field("grammar"), "x ::= \"a\"\nroot ::= x"), "");
});

// ---- tokens and the prompt that is read ----

test("tokens are told of the context, and too many as such", () => {
    assert.deepEqual(describe(1200, null), { text: "1,200 tokens", over: false });
    assert.deepEqual(describe(1200, 4096), { text: "1,200 of 4,096 tokens", over: false });
    assert.match(describe(4096, 4096).text, /^4,096 of 4,096 tokens: more than the context holds/);
});

test("a prompt that is read: how far, and the time left of what is not reused", () => {
    assert.deepEqual(prefill({ total: 4000, cache: 1000, processed: 2000, time_ms: 5000 }), { share: 0.5, text: "reading the prompt: 2,000 of 4,000 tokens · about 10.0 s left" });
    assert.deepEqual(prefill({ total: 4000, cache: 1000, processed: 1000, time_ms: 0 }), { share: 0.25, text: "reading the prompt: 1,000 of 4,000 tokens" });
    assert.equal(prefill({ total: 0, processed: 0 }).share, 0);
});

// ---- the store, without a database ----

async function withStore(f) {
    const heard = [], store = new Store({ problem: (sentence) => heard.push(sentence), changed: () => {} });
    try {
        await f(store, heard);
    } finally {
        store.channel.close();
    }
}

test("without a database the store says so once and goes on", () => withStore(async (store, heard) => {
    const [{ head, messages }] = all();
    await store.create([{ head, messages }]);
    assert.deepEqual((await store.heads()).map(({ title }) => title), ["a"]);
    assert.equal((await store.load(head.id)).messages.length, 9);
    assert.equal(heard.length, 1);
    assert.match(heard[0], /keeps nothing.*Export what you want to keep/);
    assert.deepEqual([...(await store.search("B1 AGAIN")).values()], ["B1 again"]);
    assert.equal((await store.search("nowhere")).size, 0);
    await store.keepDraft(head.id, { text: "d", files: [] });
    assert.equal((await store.draft(head.id)).text, "d");
    const gone = await store.remove(head.id);
    assert.equal(gone.messages.length, 9);
    assert.equal(await store.load(head.id), null);
    assert.equal(await store.draft(head.id), undefined);
    await store.create([gone]);
    assert.equal((await store.load(head.id)).messages.length, 9);
}));

test("of two that write the same message the second is told, and nothing is overwritten", () => withStore(async (store) => {
    const [{ head, messages }] = all();
    await store.create([{ head, messages }]);
    const tab = async () => {
        const data = await store.load(head.id);
        return { head: data.head, message: data.messages.find(({ text }) => /^B1( one.*)?$/.test(text)) };
    };
    const one = await tab(), two = await tab();
    one.message.text += " one";
    two.message.text += " two";
    assert.deepEqual(await store.save(one.head, [one.message]), { gone: false, conflicts: [] });
    assert.deepEqual(await store.save(two.head, [two.message]), { gone: false, conflicts: [two.message.id] });
    one.message.text += " more";
    assert.deepEqual(await store.save(one.head, [one.message]), { gone: false, conflicts: [] });
    assert.equal((await tab()).message.text, "B1 one more");
    await store.removeMessages(head, [one.message.id]);
    assert.equal((await store.save(one.head, [one.message])).gone, true);
    await store.remove(head.id);
    assert.equal((await store.save(two.head, [two.message])).gone, true);
    assert.equal(await store.load(head.id), null);
}));
