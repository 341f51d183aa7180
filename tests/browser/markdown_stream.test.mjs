// Markdown's blocks as they stream (web/markdown.js), and TeX (web/math.js), without a browser. web/ is copied beside this file by
// tests/system/test_browser.py.
import assert from "node:assert/strict";
import { test } from "node:test";
import { DOCUMENTS, chance, jumble, pieces } from "./documents.mjs";
import { Colours, modeOf } from "./web/highlight.js";
import { MarkdownStream, parse } from "./web/markdown.js";
import { readTex } from "./web/math.js";

const plain = (t) => [t.type, t.tag, t.attrs, t.content, t.info, t.hidden, t.meta, (t.children ?? []).map(plain)];
const whole = (blocks) => blocks.map((block) => block.map(plain));

/** Keeps what is finished, as parse() would give it. */
class Kept {
    constructor() {
        this.stream = new MarkdownStream(this);
        this.parts = []; // sources of blocks, and fences
        this.shown = "";
    }

    blocks(finished, open, source) {
        if (finished.length || source())
            this.parts.push({ source: source(), n: finished.length });
        this.open = open;
    }

    rest() {}

    code(language) {
        this.parts.push({ language, lines: [] });
    }

    line(text) {
        this.parts.at(-1).lines.push(text);
    }

    part() {}
    closed() {}

    all() {
        return this.parts.flatMap(({ source, n, language, lines }) => {
            if (source === undefined)
                return [[["fence", "code", null, lines.map((line) => `${line}\n`).join(""), language, false, null, []]]];
            const again = whole(this.stream.again(source));
            assert.equal(again.length, n, JSON.stringify(source));
            return again;
        });
    }
}

function streamed(parts) {
    const kept = new Kept();
    for (const part of parts) {
        kept.stream.add(part);
        kept.stream.update();
    }
    kept.stream.end();
    return kept;
}

// Of a fence's info only the language is kept, and its last line has an end whether the text ends there or not.
const expected = (text) => whole(parse(text)).map((block) => block.map((t) => t[0] !== "fence" ? t
    : ["fence", "code", null, t[3] && !t[3].endsWith("\n") ? `${t[3]}\n` : t[3], t[4].trim().split(/\s+/)[0], false, null, []]));

test("however a text is cut, its finished blocks are those of the whole text", () => {
    for (const [name, text] of Object.entries(DOCUMENTS)) {
        const want = expected(text);
        for (let seed = 0; seed < 8; seed++)
            assert.deepEqual(streamed(pieces(text, chance(seed), seed === 0 ? 1 : 3 + 5 * seed)).all(), want, `${name}, seed ${seed}`);
    }
});

test("lines that do not belong together are cut as well", () => {
    for (let seed = 0; seed < 400; seed++) {
        const random = chance(seed), text = jumble(random);
        assert.deepEqual(streamed(pieces(text, random, 1 + seed % 9)).all(), expected(text), `seed ${seed}: ${JSON.stringify(text)}`);
    }
});

const LONG = {
    paragraphs: (n) => "Some words of a paragraph, with *stress* and `code`.\n\n".repeat(n / 50),
    "one paragraph": (n) => "words and **words** without an end ".repeat(n / 35),
    "one list": (n) => "- an item with `code`\n".repeat(n / 22),
    "one table": (n) => `| a | b |\n|---|---|\n${"| cell | other cell |\n".repeat(n / 22)}`,
    "one fence": (n) => `\`\`\`js\n${"let x = 1; // a line\n".repeat(n / 21)}`,
    "many fences": (n) => "```js\nlet x = 1;\n```\n".repeat(n / 19),
    definitions: (n) => Array.from({ length: n / 30 }, (_, i) => `[n${i}]: http://a.example/${i}\n`).join(""),
    "one line of code": (n) => `\`\`\`\n${"abcdefgh".repeat(n / 8)}`,
};

test("the work grows with the text: each update reads at most a bounded piece, and all that was added a bounded number of times", () => {
    for (const [name, make] of Object.entries(LONG)) {
        const text = make(20000), parts = pieces(text, chance(7), 19), { work } = streamed(parts).stream;
        assert.ok(work <= 2048 * parts.length + 70 * text.length, `${name}: ${work} characters read, of ${text.length} in ${parts.length} pieces`);
        const half = streamed(pieces(make(10000), chance(7), 19)).stream.work;
        assert.ok(work < 2.6 * half, `${name}: ${half} characters read for half the text, ${work} for all`);
    }
});

test("a block of paragraphs or code is read about once", () => {
    for (const [name, most] of [["paragraphs", 40], ["one fence", 2], ["many fences", 20]]) {
        const text = LONG[name](20000);
        const { work } = streamed(pieces(text, chance(3), 9)).stream;
        assert.ok(work < most * text.length, `${name}: ${work / text.length} times`);
    }
});

test("TeX as a tree; what is not understood is null, and nothing is left out", () => {
    const text = (tree) => typeof tree === "string" ? tree : tree.slice(2).map(text).join("");
    for (const [tex, want] of [["E = mc^2", "E=mc2"], ["\\frac{a+b}{c}", "a+bc"], ["\\sum_{i=1}^{n} i", "∑i=1ni"], ["\\sqrt[3]{x}", "x3"], ["\\alpha\\le\\beta", "α≤β"],
        ["\\text{if } x \\in \\mathbb{R}", "if\u00a0x∈ℝ"], ["\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "(1234)"], ["\\left( \\frac12 \\right]", "(12]"], ["f'(x)", "f′(x)"],
        ["\\begin{aligned} a &= b \\\\ &= c \\\\ \\end{aligned}", "a=b=c"], ["\\mathbf{v} \\cdot \\hat{w}", "𝐯⋅w^"], ["x \\ne y \\not= z", "x≠y=\u0338z"], ["\\{a, b\\}", "{a,b}"]])
        assert.equal(text(readTex(tex, false)), want, tex);
    for (const tex of ["\\unknown{x}", "\\frac{a", "a}", "\\left( a", "x^1^2", "\\begin{foo}a\\end{foo}", "{".repeat(500), "\\", "x^", "a & b", "\\constructor", "\\begin{constructor}a\\end{constructor}"])
        assert.equal(readTex(tex, true), null, tex);
});

test("every language has its mode, and colours lose no character", async () => {
    const code = "def f(x): # note\n\tif (x > 1.5) { return \"a\\\"b\"; } /* c\nd */ <a href='x'>&amp;</a>\nSELECT * FROM t WHERE a = 'b';\n- key: value\n[table]\nlet y = `t${x}`;\n\n    end\n";
    const names = "c cpp c++ java csharp c# scala kotlin objc dart glsl cmake css scss less diff dockerfile go haskell html js jsx json ts tsx julia tex lua nginx perl powershell ini protobuf py python r ruby rust sh bash sql postgres mysql sqlite swift toml xml yaml";
    for (const name of names.split(" ")) {
        const mode = await modeOf(name);
        assert.ok(mode, name);
        const colours = new Colours(mode);
        for (const line of code.split("\n")) {
            const part = colours.part(line.slice(0, 5)).map(([, text]) => text).join("");
            assert.equal(part, line.slice(0, 5), name);
            assert.equal(colours.line(line).map(([, text]) => text).join(""), line, name);
        }
    }
    assert.equal(await modeOf("constructor"), null);
    assert.equal(await modeOf("brainfuck"), null);
    const python = new Colours(await modeOf("python"));
    assert.deepEqual(python.line("def f(): # x").filter(([style]) => /keyword|comment/.test(style)), [["hl-keyword", "def"], ["hl-comment", "# x"]]);
});
