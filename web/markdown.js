// Markdown as blocks, while it streams. Nothing here knows of a page: tokens come out, of markdown-it.
//
// The text is cut where a block is finished for certain, whatever follows; only what is after the last cut is read again when
// more text comes. A fence that is open is read line by line and never again. What one block may cost is bounded too: when it
// is long, it is read again only when it has grown by a part of itself. So the work grows with the text, not with its square.
import MarkdownIt from "./vendor/markdown-it.esm.min.mjs";
import { mathRules } from "./math.js";

const ALWAYS = 2048; // characters after the last cut that are read at every update
const GROWTH = 32;   // beyond, when they have grown by 1/32

const md = MarkdownIt({ html: false, linkify: true });
md.linkify.set({ fuzzyLink: false, fuzzyIP: false }); // main.py is a file, not a host in Paraguay
md.disable("html_block").disable("html_inline");
md.use(mathRules);
md.block.ruler.before("reference", "footnote", footnoteBlock, { alt: ["paragraph", "reference"] });
md.inline.ruler.before("link", "footnote_ref", footnoteRef);

/** [^label] in a text: a reference, whether its note is there already or not. */
function footnoteRef(state, silent) {
    const label = /^\[\^([^\s\]]{1,200})\]/.exec(state.src.slice(state.pos, Math.min(state.posMax, state.pos + 204)));
    if (!label)
        return false;
    if (!silent)
        state.push("footnote_ref", "", 0).meta = { label: label[1] };
    state.pos += label[0].length;
    return true;
}

/** [^label]: blocks, indented by four when they are not on its line. As markdown-it-footnote reads it. */
function footnoteBlock(state, begin, end, silent) {
    const start = state.bMarks[begin] + state.tShift[begin], max = state.eMarks[begin];
    const mark = /^\[\^([^\s\]]{1,200})\]:/.exec(state.src.slice(start, Math.min(max, start + 205)));
    if (!mark || state.sCount[begin] - state.blkIndent >= 4)
        return false;
    if (silent)
        return true;
    const open = state.push("footnote_open", "", 1), after = start + mark[0].length;
    open.meta = { label: mark[1] };
    const before = [state.bMarks[begin], state.tShift[begin], state.sCount[begin], state.parentType];
    const initial = state.sCount[begin] + after - start;
    let offset = initial, pos = after;
    for (; pos < max && /[ \t]/.test(state.src[pos]); pos++)
        offset += state.src[pos] === "\t" ? 4 - offset % 4 : 1;
    state.bMarks[begin] = after;
    state.tShift[begin] = pos - after;
    state.sCount[begin] = offset - initial;
    state.parentType = "footnote";
    state.blkIndent += 4;
    if (state.sCount[begin] < state.blkIndent)
        state.sCount[begin] += state.blkIndent;
    state.md.block.tokenize(state, begin, end, true);
    state.blkIndent -= 4;
    [state.bMarks[begin], state.tShift[begin], state.sCount[begin], state.parentType] = before;
    open.map = [begin, state.line];
    state.push("footnote_close", "", -1);
    return true;
}

/** The tokens of each block at the top. */
export function groups(tokens) {
    const found = [];
    let depth = 0;
    for (const token of tokens) {
        if (depth === 0)
            found.push([]);
        found.at(-1).push(token);
        depth += token.nesting;
    }
    return found;
}

/** The blocks of a text that is complete. */
export const parse = (text) => groups(md.parse(text, {}));

/** A text that streams. out is told, in the order of the text:
 *    blocks(finished, open, source)  lists of blocks: the first are finished now; the last are shown for the time being and come
 *                                    again. source: () => the text of the finished ones
 *    rest(text)                      shown for the time being after the open blocks, not read yet
 *    code(language), line(text), part(text), closed()  a fence: begun, one more line, the line that is not complete yet, ended
 */
export class MarkdownStream {
    constructor(out) {
        this.out = out;
        this.tail = "";     // after the last cut
        this.carry = "";    // a carriage return whose line feed may follow
        this.read = 0;      // length of the tail when it was last read
        this.fence = null;  // { mark, indent }
        this.references = Object.create(null); // link definitions before the cut
        this.work = 0;      // characters that were read, again or not: for the tests
    }

    add(text) {
        const all = this.carry + text;
        this.carry = all.endsWith("\r") ? "\r" : "";
        this.tail += (this.carry ? all.slice(0, -1) : all).replace(/\r\n?/g, "\n");
    }

    /** Reads what was added. */
    update() {
        if (!this.fence)
            this.#blocks(false);
        if (this.fence)
            this.#fence(false);
    }

    /** The text is complete. */
    end() {
        if (this.carry)
            this.tail += "\n";
        this.carry = "";
        if (this.fence)
            this.#fence(true);
        if (!this.fence && this.tail)
            this.#blocks(true);
        this.fence = null;
    }

    /** Reads blocks again whose links are defined only after them. */
    again(source) {
        this.work += source.length;
        return groups(md.parse(source, { references: Object.create(this.references) }));
    }

    #blocks(whole) {
        const { tail } = this;
        if (!whole && (tail.length === this.read || (tail.length > ALWAYS && tail.length < this.read * (1 + 1 / GROWTH)))) {
            this.out.rest(tail.slice(this.read));
            return;
        }
        const env = { references: Object.create(this.references) }, found = groups(md.parse(tail, env));
        this.work += tail.length;
        if (whole) {
            Object.assign(this.references, env.references);
            this.tail = "";
            this.read = 0;
            this.out.blocks(found, [], () => tail);
            return;
        }
        this.read = tail.length;
        const lines = lineStarts(tail), last = found.at(-1)?.[0];
        const fence = last?.type === "fence" && last.map[0] + 1 < lines.length ? last : null;
        let cut = fence ? found.length - 1 : found.length;
        if (!fence)
            for (cut = found.length - 1; cut > 0 && !certain(found[cut][0], lines, tail); cut--)
                ;
        if (cut <= 0 && !fence) {
            this.out.blocks([], found, () => "");
            return;
        }
        const at = lines[found[cut][0].map[0]], source = tail.slice(0, at);
        this.#define(source, env.references, found.length - cut);
        this.tail = tail.slice(at);
        this.read = fence ? 0 : this.tail.length;
        this.out.blocks(found.slice(0, cut), fence ? [] : found.slice(cut), () => source);
        if (fence) {
            this.fence = { mark: fence.markup, indent: /^ */.exec(this.tail)[0].length };
            this.tail = this.tail.slice(this.tail.indexOf("\n") + 1);
            this.out.code(fence.info.trim().split(/\s+/)[0]);
        }
    }

    /** Keeps the definitions before the cut; those after it may still change. */
    #define(source, references) {
        if (!Object.keys(references).length)
            return;
        const env = { references: Object.create(this.references) };
        md.block.parse(source, md, env, []);
        this.work += source.length;
        Object.assign(this.references, env.references);
    }

    #fence(whole) {
        const { mark, indent } = this.fence, close = new RegExp(`^ {0,3}${mark[0]}{${mark.length},}[ \\t]*$`);
        let at = 0;
        const line = (text) => text.slice(Math.min(indent, /^ */.exec(text)[0].length));
        const done = () => {
            this.tail = this.tail.slice(at);
            this.work += at;
            this.read = 0;
            this.fence = null;
            this.out.closed();
            if (!whole)
                this.update();
        };
        for (let end; (end = this.tail.indexOf("\n", at)) >= 0;) {
            const text = this.tail.slice(at, end);
            at = end + 1;
            if (close.test(text))
                return done();
            this.out.line(line(text));
        }
        this.work += at;
        this.tail = this.tail.slice(at);
        at = 0;
        if (whole) {
            at = this.tail.length;
            if (this.tail.trim() && !close.test(this.tail))
                this.out.line(line(this.tail));
            return done();
        }
        // What may become the closing fence is not shown as code before that is known.
        this.out.part(/^ {0,3}(`+|~+)?[ \t]*$/.test(this.tail) ? "" : line(this.tail));
    }
}

function lineStarts(text) {
    const starts = [0];
    for (let at = 0; (at = text.indexOf("\n", at) + 1) > 0;)
        starts.push(at);
    return starts; // the last one is of the line that is not complete
}

/** Whether what begins with this token begins there whatever follows, so that all before it is finished. */
function certain(token, lines, text) {
    const begin = token.map?.[0] ?? 0, complete = begin + 1 < lines.length;
    if (begin === 0)
        return false;
    if (complete && (token.type === "fence" || token.type === "blockquote_open" || token.type === "hr" || token.type.endsWith("_list_open") ||
        (token.type === "heading_open" && token.markup[0] === "#")))
        return true;
    // Anything else only after an empty line: before, it may still be the rest of a paragraph or of a link's definition.
    if (text.slice(lines[begin - 1], lines[begin]).trim())
        return false;
    const line = text.slice(lines[begin], lines[begin + 1]);
    // A line that is not complete may become an item of the list before it, if it is no longer than an item's mark.
    return complete || (token.type === "paragraph_open" && /^\S/.test(line) && (line.length > 12 || /^[^\d*+-]/.test(line)));
}
