// Math in a text: $..$, $$..$$, \(..\) and \[..\] as rules for markdown-it, so that nothing in it is taken for emphasis, and
// TeX as MathML, which browsers draw by themselves. What the small reader below does not know stays as it was written.

const FORMULA_MAX = 2000; // characters of a formula within a line of text; bounds the search for its end

/** Adds the rules to a markdown-it. Tokens: math_inline and math_block; content: the TeX; markup: what opened it. */
export function mathRules(md) {
    md.inline.ruler.before("escape", "math_inline", mathInline);
    md.block.ruler.before("fence", "math_block", mathBlock, { alt: ["paragraph", "reference", "blockquote", "list"] });
}

function mathInline(state, silent) {
    const { src, pos } = state, end = Math.min(state.posMax, pos + FORMULA_MAX);
    let open, close;
    if (src.startsWith("$$", pos))
        [open, close] = ["$$", "$$"];
    else if (src[pos] === "$")
        [open, close] = ["$", "$"];
    else if (src.startsWith("\\(", pos))
        [open, close] = ["\\(", "\\)"];
    else if (src.startsWith("\\[", pos))
        [open, close] = ["\\[", "\\]"];
    else
        return false;
    const from = pos + open.length;
    for (let at = from; at < end; at++) {
        if (src.startsWith(close, at) && at + close.length <= end && at > from) {
            const tex = src.slice(from, at);
            // One dollar is also money: as pandoc has it, no space stands within the signs and no digit after them.
            if (open === "$" && (/^\s|\s$/.test(tex) || /^\d/.test(src.slice(at + 1, at + 2)))) {
                if (/^\s/.test(tex))
                    return false;
                continue;
            }
            if (!tex.trim())
                return false;
            if (!silent) {
                const token = state.push("math_inline", "", 0);
                token.content = tex;
                token.markup = open;
            }
            state.pos = at + close.length;
            return true;
        }
        if (src[at] === "\\") // an escaped sign closes nothing
            at++;
    }
    return false;
}

/** A line that is only $$ or \[ opens it. It ends with its close, or where an empty line or its container ends it: what a text
 *  that still streams will bring can so never turn finished blocks into math. */
function mathBlock(state, begin, end, silent) {
    const line = (n) => state.src.slice(state.bMarks[n] + state.tShift[n], state.eMarks[n]).trim(), first = line(begin);
    if (state.sCount[begin] - state.blkIndent >= 4 || (first !== "$$" && first !== "\\["))
        return false;
    if (silent)
        return true;
    const close = first === "$$" ? "$$" : "\\]", lines = [];
    let next = begin + 1;
    for (; next < end; next++) {
        if (state.isEmpty(next) || state.sCount[next] < state.blkIndent)
            break;
        const text = line(next);
        if (text.endsWith(close)) {
            lines.push(text.slice(0, -2));
            next++;
            break;
        }
        lines.push(text);
    }
    state.line = next;
    const token = state.push("math_block", "", 0);
    token.block = true;
    token.content = lines.join("\n").trim();
    token.markup = first;
    token.map = [begin, next];
    return true;
}

// ---- TeX ----

const letters = (names, text) => Object.fromEntries(names.split(" ").map((name, i) => [name, [...text][i]]));
const table = (entries) => Object.assign(Object.create(null), entries); // \\constructor is no name of ours
const IDENTIFIERS = table({
    ...letters("alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi varpi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega",
        "αβγδϵεζηθϑικλμνξπϖρϱσςτυϕφχψω"),
    ...letters("Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega", "ΓΔΘΛΞΠΣΥΦΨΩ"),
    ...letters("infty partial nabla hbar ell emptyset varnothing aleph Re Im imath jmath dots ldots cdots vdots ddots prime degree top bot", "∞∂∇ℏℓ∅∅ℵℜℑıȷ……⋯⋮⋱′°⊤⊥"),
});
const OPERATORS = table({
    ...letters("times div cdot pm mp ast star circ bullet oplus ominus otimes odot wedge vee cap cup setminus", "×÷⋅±∓∗⋆∘∙⊕⊖⊗⊙∧∨∩∪∖"),
    ...letters("le leq ge geq ne neq ll gg approx equiv sim simeq cong propto in notin ni subset supset subseteq supseteq mid parallel perp models vdash prec succ", "≤≤≥≥≠≠≪≫≈≡∼≃≅∝∈∉∋⊂⊃⊆⊇∣∥⟂⊨⊢≺≻"),
    ...letters("to rightarrow leftarrow leftrightarrow Rightarrow Leftarrow Leftrightarrow implies iff mapsto uparrow downarrow longrightarrow gets", "→→←↔⇒⇐⇔⟹⟺↦↑↓⟶←"),
    ...letters("forall exists nexists neg lnot land lor therefore because angle triangle colon", "∀∃∄¬¬∧∨∴∵∠△:"),
    ...letters("lbrace rbrace langle rangle lfloor rfloor lceil rceil lvert rvert vert lVert rVert Vert backslash", "{}⟨⟩⌊⌋⌈⌉|||‖‖‖\\"),
});
const LARGE = table(letters("sum prod coprod int iint iiint oint bigcup bigcap bigoplus bigotimes bigvee bigwedge", "∑∏∐∫∬∭∮⋃⋂⨁⨂⋁⋀"));
const LIMITS = /^(sum|prod|coprod|big.*|lim|max|min|sup|inf|argmax|argmin|limsup|liminf|det|gcd|Pr)$/; // what stands under and over them, in a display
const FUNCTIONS = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf det dim ker gcd arg deg hom Pr argmax argmin limsup liminf".split(" ");
const ACCENTS = table({ hat: "^", widehat: "^", bar: "¯", overline: "¯", tilde: "~", widetilde: "~", vec: "→", dot: "˙", ddot: "¨", overrightarrow: "→" });
const SPACES = table({ ",": ".17em", ":": ".22em", ">": ".22em", ";": ".28em", " ": ".25em", quad: "1em", qquad: "2em", "!": "0" });
const STYLES = table({ mathbf: "bold", boldsymbol: "bold", bm: "bold", mathbb: "double-struck", mathcal: "script", mathscr: "script", mathfrak: "fraktur", mathrm: "normal", mathsf: "normal", mathit: "italic", operatorname: "normal" });
const IGNORED = new Set("displaystyle textstyle scriptstyle limits nolimits nonumber notag big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr middle hline".split(" "));
const FENCES = table({ matrix: ["", ""], pmatrix: ["(", ")"], bmatrix: ["[", "]"], Bmatrix: ["{", "}"], vmatrix: ["|", "|"], Vmatrix: ["‖", "‖"], cases: ["{", ""], smallmatrix: ["", ""] });
const DEPTH_MAX = 60;

/** A formula as a tree: [tag, attributes, ...children], children being trees or strings. null: it is not understood. */
export function readTex(tex, display) {
    const reader = new Reader(tex, display);
    try {
        const row = reader.row(() => reader.at >= reader.parts.length);
        return ["math", display ? { display: "block" } : {}, ["mrow", {}, ...row]];
    } catch (error) {
        if (error instanceof NotUnderstood)
            return null;
        throw error;
    }
}

class NotUnderstood extends Error {}

const plainLetter = (text) => ["mi", {}, text];
/** Mathematical alphabets are characters of their own: browsers do not draw mathvariant of MathML 3. */
function styled(text, style) {
    const bases = { bold: [0x1d400, 0x1d41a, 0x1d7ce], "double-struck": [0x1d538, 0x1d552, 0x1d7d8], script: [0x1d49c, 0x1d4b6], fraktur: [0x1d504, 0x1d51e] }[style];
    const holes = { "double-struck": letters("C H N P Q R Z", "ℂℍℕℙℚℝℤ"), script: letters("B E F H I L M R e g o", "ℬℰℱℋℐℒℳℛℯℊℴ"), fraktur: letters("C H I R Z", "ℭℌℑℜℨ") }[style] ?? {};
    if (!bases)
        return text;
    return [...text].map((c) => {
        const [big, small, digit] = bases;
        if (holes[c])
            return holes[c];
        if (/[A-Z]/.test(c))
            return String.fromCodePoint(big + c.charCodeAt(0) - 65);
        if (/[a-z]/.test(c))
            return String.fromCodePoint(small + c.charCodeAt(0) - 97);
        return digit && /\d/.test(c) ? String.fromCodePoint(digit + Number(c)) : c;
    }).join("");
}

class Reader {
    constructor(tex, display) {
        this.parts = tex.match(/\\(?:[a-zA-Z]+\*?|[^])|%[^\n]*|\d+(?:\.\d+)?|\s+|[^]/gu) ?? [];
        this.at = 0;
        this.depth = 0;
        this.display = display;
    }

    peek() {
        while (this.at < this.parts.length && /^(\s|%)/.test(this.parts[this.at]))
            this.at++;
        return this.parts[this.at];
    }

    next() {
        const part = this.peek();
        if (part === undefined)
            throw new NotUnderstood();
        this.at++;
        return part;
    }

    /** Trees until done() is true; what done() saw is left. */
    row(done) {
        if (++this.depth > DEPTH_MAX)
            throw new NotUnderstood();
        const row = [];
        for (;;) {
            const part = this.peek();
            if (done(part)) {
                this.depth--;
                return row;
            }
            if (part === undefined || part === "}" || part === "\\right" || part === "\\end" || part === "&" || part === "\\\\")
                throw new NotUnderstood();
            const tree = this.scripts();
            if (tree)
                row.push(tree);
        }
    }

    group(close) {
        const row = this.row((part) => part === close);
        this.at++;
        return row.length === 1 ? row[0] : ["mrow", {}, ...row];
    }

    /** An argument: a group or one thing. */
    argument() {
        if (this.peek() === "{") {
            this.at++;
            return this.group("}");
        }
        const part = this.peek();
        if (/^\d./.test(part ?? "")) { // one digit, as TeX has it
            this.parts[this.at] = part.slice(1);
            return ["mn", {}, part[0]];
        }
        return this.atom() ?? ["mrow", {}];
    }

    /** An argument that is text, as it is written. */
    text() {
        if (this.next() !== "{")
            throw new NotUnderstood();
        let text = "", open = 1;
        while (this.at < this.parts.length) {
            const part = this.parts[this.at++];
            open += part === "{" ? 1 : part === "}" ? -1 : 0;
            if (!open)
                return text;
            text += part.replace(/^\\(?=[^a-zA-Z])/, "");
        }
        throw new NotUnderstood();
    }

    scripts() {
        const name = this.peek().replace(/^\\/, "");
        const base = this.peek() === "^" || this.peek() === "_" ? ["mrow", {}] : this.atom();
        if (!base)
            return null;
        let sub = null, sup = null;
        for (;;) {
            const part = this.peek();
            if (part === "\\limits" || part === "\\nolimits")
                this.at++;
            else if (part === "_" && !sub) {
                this.at++;
                sub = this.argument();
            } else if (part === "^" && !sup) {
                this.at++;
                sup = this.argument();
            } else if (part === "'") {
                this.at++;
                sup = ["mrow", {}, ...(sup ? [sup] : []), ["mo", {}, "′"]];
            } else if (part === "_" || part === "^")
                throw new NotUnderstood(); // twice
            else
                break;
        }
        const over = this.display && LIMITS.test(name);
        if (sub && sup)
            return [over ? "munderover" : "msubsup", {}, base, sub, sup];
        return sub ? [over ? "munder" : "msub", {}, base, sub] : sup ? [over ? "mover" : "msup", {}, base, sup] : base;
    }

    atom() {
        const part = this.next();
        if (part === "{")
            return this.group("}");
        if (/^\d/.test(part))
            return ["mn", {}, part];
        if (/^\p{L}$/u.test(part))
            return plainLetter(part);
        if (part === "~")
            return ["mspace", { width: ".25em" }];
        if (part[0] !== "\\")
            return ["mo", "()[]|".includes(part) ? { stretchy: "false" } : {}, part === "-" ? "−" : part === "*" ? "∗" : part];
        return this.command(part.slice(1));
    }

    command(name) {
        if (IDENTIFIERS[name])
            return plainLetter(IDENTIFIERS[name]);
        if (OPERATORS[name])
            return ["mo", "lr|".includes(name[0]) ? { stretchy: "false" } : {}, OPERATORS[name]];
        if (LARGE[name])
            return ["mo", {}, LARGE[name]];
        if (FUNCTIONS.includes(name))
            return ["mi", {}, name.replace(/^arg(?=m)|^lim(?=[si])/, "$& ")];
        if (SPACES[name] !== undefined)
            return ["mspace", { width: SPACES[name] }];
        if (name && "{}$%&#_|".includes(name))
            return ["mo", { stretchy: "false" }, name === "|" ? "‖" : name];
        if (IGNORED.has(name))
            return null;
        if (/^[dt]?frac$/.test(name))
            return ["mfrac", {}, this.argument(), this.argument()];
        if (/^[dt]?binom$/.test(name))
            return ["mrow", {}, ["mo", {}, "("], ["mfrac", { linethickness: "0" }, this.argument(), this.argument()], ["mo", {}, ")"]];
        if (name === "sqrt") {
            if (this.peek() !== "[")
                return ["msqrt", {}, this.argument()];
            this.at++;
            const index = this.group("]");
            return ["mroot", {}, this.argument(), index];
        }
        if (/^(text(rm|bf|it|tt|sf)?|mbox)$/.test(name))
            return ["mtext", {}, this.text().replace(/ /g, "\u00a0")];
        if (STYLES[name.replace("*", "")]) {
            const style = STYLES[name.replace("*", "")];
            if (this.peek() !== "{")
                return plainLetter(styled(this.next(), style));
            const mark = this.at, text = this.text();
            if (/^[\p{L}\d\s]+$/u.test(text))
                return style === "normal" && text.length === 1 ? ["mi", { mathvariant: "normal" }, text] : ["mi", {}, styled(text, style)];
            this.at = mark;
            return this.argument();
        }
        if (ACCENTS[name])
            return ["mover", { accent: "true" }, this.argument(), ["mo", { stretchy: String(/^(over|wide)/.test(name)) }, ACCENTS[name]]];
        if (name === "underline")
            return ["munder", {}, this.argument(), ["mo", {}, "_"]];
        if (name === "underbrace" || name === "overbrace")
            return [name[0] === "u" ? "munder" : "mover", {}, this.argument(), ["mo", {}, name[0] === "u" ? "⏟" : "⏞"]];
        if (name === "overset" || name === "underset" || name === "stackrel") {
            const script = this.argument(), base = this.argument();
            return [name === "underset" ? "munder" : "mover", {}, base, script];
        }
        if (name === "boxed")
            return ["mrow", { class: "boxed" }, this.argument()];
        if (name === "pmod")
            return ["mrow", {}, ["mo", {}, "("], ["mtext", {}, "mod\u00a0"], this.argument(), ["mo", {}, ")"]];
        if (name === "bmod" || name === "mod")
            return ["mo", {}, "mod"];
        if (name === "not") {
            const [tag, attributes, text] = this.atom() ?? [];
            if (tag !== "mo")
                throw new NotUnderstood();
            return ["mo", attributes, `${text}\u0338`];
        }
        if (name === "left") {
            const open = this.delimiter(), row = this.row((part) => part === "\\right");
            this.at++;
            const close = this.delimiter();
            return ["mrow", {}, ...(open ? [["mo", { fence: "true", stretchy: "true" }, open]] : []), ...row,
                ...(close ? [["mo", { fence: "true", stretchy: "true" }, close]] : [])];
        }
        if (name === "begin")
            return this.environment(this.text());
        throw new NotUnderstood();
    }

    delimiter() {
        const part = this.next(), name = part.slice(1);
        if (part[0] !== "\\")
            return part === "." ? "" : part;
        const text = name === "|" ? "‖" : "{}".includes(name) ? name : OPERATORS[name];
        if (!text)
            throw new NotUnderstood();
        return text;
    }

    environment(name) {
        const plain = name.replace("*", "");
        if (plain === "array")
            this.text(); // of columns
        else if (!FENCES[plain] && !/^(aligned|align|equation|gathered|gather|split|alignedat)$/.test(plain))
            throw new NotUnderstood();
        const rows = [[]];
        for (;;) {
            rows.at(-1).push(["mtd", {}, ...this.row((part) => part === "&" || part === "\\\\" || part === "\\end")]);
            const part = this.next();
            if (part === "\\end") {
                if (this.text() !== name)
                    throw new NotUnderstood();
                break;
            }
            if (part === "\\\\")
                rows.push([]);
        }
        const last = rows.at(-1); // after a final line break
        if (rows.length > 1 && last.length === 1 && last[0].length === 2)
            rows.pop();
        const [open, close] = FENCES[plain] ?? ["", ""];
        const table = ["mtable", { class: /^(align|aligned|split)/.test(plain) ? "aligned" : plain === "cases" ? "cases" : null }, ...rows.map((row) => ["mtr", {}, ...row])];
        return ["mrow", {}, ...(open ? [["mo", { fence: "true", stretchy: "true" }, open]] : []), table,
            ...(close ? [["mo", { fence: "true", stretchy: "true" }, close]] : [])];
    }
}
