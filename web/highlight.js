// Colours for code: CodeMirror's stream modes (vendor/codemirror), which read a line and keep a state for the next one. So code
// is coloured as it streams, each line once. A mode is fetched when its language is first met.

const LINE_MAX = 2000; // longer ones stay plain: they are data or minified, and reading them would hold the page up

// module, and the mode's name in it
const MODES = {
    c: ["clike", "c"], cpp: ["clike", "cpp"], java: ["clike", "java"], csharp: ["clike", "csharp"], scala: ["clike", "scala"],
    kotlin: ["clike", "kotlin"], objectivec: ["clike", "objectiveC"], dart: ["clike", "dart"], glsl: ["clike", "shader"],
    cmake: ["cmake"], css: ["css"], scss: ["css", "sCSS"], less: ["css", "less"], diff: ["diff"], dockerfile: ["dockerfile", "dockerFile"],
    go: ["go"], haskell: ["haskell"], html: ["xml", "html"], javascript: ["javascript"], json: ["javascript", "json"],
    typescript: ["javascript", "typescript"], julia: ["julia"], latex: ["stex"], lua: ["lua"], nginx: ["nginx"], perl: ["perl"],
    powershell: ["powershell", "powerShell"], ini: ["properties"], protobuf: ["protobuf"], python: ["python"], r: ["r"], ruby: ["ruby"],
    rust: ["rust"], shell: ["shell"], sql: ["sql", "standardSQL"], postgresql: ["sql", "pgSQL"], mysql: ["sql", "mySQL"], sqlite: ["sql", "sqlite"],
    swift: ["swift"], toml: ["toml"], xml: ["xml"], yaml: ["yaml"],
};
const ALIASES = {
    "c++": "cpp", cc: "cpp", cxx: "cpp", h: "c", hpp: "cpp", cuda: "cpp", cu: "cpp", "c#": "csharp", cs: "csharp", kt: "kotlin", objc: "objectivec", "objective-c": "objectivec",
    js: "javascript", jsx: "javascript", mjs: "javascript", node: "javascript", ts: "typescript", tsx: "typescript", json5: "json", jsonc: "json", jsonl: "json",
    py: "python", python3: "python", rb: "ruby", rs: "rust", golang: "go", hs: "haskell", jl: "julia", pl: "perl", ps1: "powershell", pwsh: "powershell",
    sh: "shell", bash: "shell", zsh: "shell", fish: "shell", console: "shell", "shell-session": "shell", yml: "yaml", htm: "html", svg: "xml", vue: "html", svelte: "html",
    docker: "dockerfile", patch: "diff", tex: "latex", proto: "protobuf", conf: "ini", cfg: "ini", properties: "ini", env: "ini", postgres: "postgresql", psql: "postgresql", plsql: "sql",
};

/** The mode of a language, as it stands after a fence; null: there is none. */
export async function modeOf(language) {
    const name = language.toLowerCase(), known = Object.hasOwn(ALIASES, name) ? ALIASES[name] : name;
    if (!Object.hasOwn(MODES, known))
        return null;
    const [file, mode = file] = MODES[known];
    return (await import(`./vendor/codemirror/${file}.js`))[mode];
}

/** Reads lines one after the other. */
export class Colours {
    constructor(mode) {
        this.mode = mode;
        this.state = mode.startState ? mode.startState(4) : true;
    }

    /** The line's pieces, [class or "", text]; the next call goes on after it. */
    line(text) {
        return this.#read(text, this.state);
    }

    /** The same for a line that is not complete: nothing is kept. */
    part(text) {
        return this.#read(text, this.mode.copyState ? this.mode.copyState(this.state) : copy(this.state));
    }

    #read(text, state) {
        if (text.length > LINE_MAX)
            return [["", text]];
        if (!text) {
            this.mode.blankLine?.(state, 4);
            return [];
        }
        const stream = new Line(text), pieces = [];
        while (!stream.eol()) {
            const style = classOf(this.#token(stream, state)), piece = stream.current(), last = pieces.at(-1);
            stream.start = stream.pos;
            if (last && last[0] === style)
                last[1] += piece;
            else
                pieces.push([style, piece]);
        }
        return pieces;
    }

    #token(stream, state) {
        for (let i = 0; i < 10; i++) {
            const style = this.mode.token(stream, state);
            if (stream.pos > stream.start)
                return style;
        }
        stream.skipToEnd(); // a mode that does not go on shall not hang the page
        return null;
    }
}

function copy(state) {
    if (typeof state !== "object" || !state)
        return state;
    return Object.fromEntries(Object.entries(state).map(([name, value]) => [name, Array.isArray(value) ? value.slice() : value]));
}

const CLASSES = [
    [/^comment|^quote/, "comment"], [/^(keyword|controlKeyword|operatorKeyword|definitionKeyword|moduleKeyword|modifier|qualifier|self)/, "keyword"],
    [/^(string|regexp|character|attributeValue|url|inserted)/, "string"], [/^(number|atom|bool|null|literal|integer|float|unit|color)/, "number"],
    [/^(type|class|namespace|builtin|tag)|\.standard/, "type"], [/definition|^function|^def\b/, "name"],
    [/^(propertyName|attributeName|property|attribute|variableName\.special|labelName)/, "property"], [/^(meta|annotation|processingInstruction|macroName|documentMeta|head)/, "meta"],
    [/^(deleted|invalid|error)/, "bad"],
];

function classOf(style) {
    if (!style)
        return "";
    for (const word of style.split(" "))
        for (const [pattern, name] of CLASSES)
            if (pattern.test(word))
                return `hl-${name}`;
    return "";
}

/** What a mode reads a line with: the interface of CodeMirror's StringStream. */
class Line {
    constructor(string) {
        this.string = string;
        this.pos = this.start = 0;
        this.indentUnit = 4;
    }

    eol() {
        return this.pos >= this.string.length;
    }

    sol() {
        return this.pos === 0;
    }

    peek() {
        return this.string.charAt(this.pos) || undefined;
    }

    next() {
        return this.pos < this.string.length ? this.string.charAt(this.pos++) : undefined;
    }

    eat(match) {
        const c = this.string.charAt(this.pos);
        const ok = typeof match === "string" ? c === match : c && (match instanceof RegExp ? match.test(c) : match(c));
        return ok ? (this.pos++, c) : undefined;
    }

    eatWhile(match) {
        const start = this.pos;
        while (this.eat(match))
            ;
        return this.pos > start;
    }

    eatSpace() {
        const start = this.pos;
        while (/[\s\u00a0]/.test(this.string.charAt(this.pos)))
            this.pos++;
        return this.pos > start;
    }

    skipToEnd() {
        this.pos = this.string.length;
    }

    skipTo(text) {
        const found = this.string.indexOf(text, this.pos);
        if (found < 0)
            return undefined;
        this.pos = found;
        return true;
    }

    backUp(n) {
        this.pos -= n;
    }

    column() {
        return columns(this.string, this.start);
    }

    indentation() {
        return columns(this.string, /^\s*/.exec(this.string)[0].length);
    }

    match(pattern, consume = true, caseInsensitive = false) {
        if (typeof pattern === "string") {
            const fold = (text) => caseInsensitive ? text.toLowerCase() : text;
            if (fold(this.string.slice(this.pos, this.pos + pattern.length)) !== fold(pattern))
                return null;
            if (consume)
                this.pos += pattern.length;
            return true;
        }
        const found = this.string.slice(this.pos).match(pattern);
        if (found && found.index > 0)
            return null;
        if (found && consume)
            this.pos += found[0].length;
        return found;
    }

    current() {
        return this.string.slice(this.start, this.pos);
    }
}

function columns(text, end) {
    let n = 0;
    for (let i = 0; i < end; i++)
        n = text[i] === "\t" ? n + 4 - n % 4 : n + 1;
    return n;
}
