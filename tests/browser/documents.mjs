// Texts that are hard to cut while they stream, and chance from a seed.

export const DOCUMENTS = {
    paragraphs: "One line\nand its next.  \nA hard break, `code`, **bold *and* italic**, ~~gone~~, \\*no\\*, &amp; &copy;.\n\nTwo.\n",
    headings: "# One\n\nText\n\n### Three\n#not one\n\nSetext\n===\n\nTwo lines\nof it\n---\n\n***\n\n#\n\n## Two ##\ntext at once\n## Again\n- item\n# Top",
    nested: "- a\n  - b\n    - c\n\n      loose\n    - d\n- e\n\n  ```py\n  x = 1\n\n  y = 2\n  ```\n- f\n\n1. one\n2. two\n   - in\n\n   rest of two\n10. ten\n\ntext\n7) seven\n8) eight\n\n* other\n+ third\n",
    tight: "1. a\n2. b\n3. c\n\n4. d makes it loose\n\nend",
    lazy: "> quote\nlazy line\n> - in it\nlazy again\n\n> another\n\nafter\n> at once\n",
    table: "Before\n\n| a | b |\n|:--|--:|\n| 1 | `x|y` |\n| **2** | [l](http://a.example) |\nafter the table\n\ntext\n| not | a table |\n| a | b |\n|---|:-:|\n| c | d |\n\n| header only |\n",
    cut: "| a | b |\n|---|---",
    fences: "Text:\n```c\nint x;\n\nint y; // `` ```\n````\nrest\n~~~~ js extra\n```\nnot closed by it\n~~~\n~~~~\n\n  ```\n  indented\n    more\n ```\nend\n```py\nopen *to* the end\n\n- x\n",
    closing: "```\ncode\n```",
    empty: "```\n```\n\n```sh\n\n```\n\n    indented code\n\n    more of it\n\ntext\n",
    unclosed: "a **bold that `never ends\n\nb [link](http://a.example\n\nc ![p](x\n\n```",
    references: "See [one], [two][2] and ![three][]; [never] too.\n\n- [one] in a list\n\n# [two][2]\n\n[one]: http://one.example 'The\nfirst'\n[2]: <http://two.example>\n\n[three]: /p.png\n[one]: http://later.example\n\n[one] again\n",
    title: "[a]: /u\n'title\nstill\n\ntext [a]\n\n[b]: /u 'x\n```\ncode\n```\n[b]\n",
    late: "x [a]\n\n[a]: /u\n'title\nstill\nend'\n\nafter\n",
    almost: "text\n| a | b |\n|---|---|x\nmore\n\n# head\n| a | b |\n|---|---|x\n",
    footnotes: "First[^1] and second[^note], first again[^1], none[^none].\n\n- in a list[^late]\n\n[^1]: One\nlazy\n\n    second paragraph\n\n    ```\n    code\n    ```\n\n[^note]: Named[^late]\n\nText between.\n\n[^late]: Late\n[^unused]: Nobody\n",
    tasks: "- [ ] to do\n- [x] done\n  - [X] *nested*\n- [ ]no\n- [link](http://a.example)\n\n1. [ ] numbered\n\n   loose\n",
    math: "Energy $E = mc^2$ and $a_1*b*c_2$, \\(x*y*z\\), but $5 and $10.\n\n$$\n\\int_0^1 x^2\\,dx = \\frac13\n$$\n\ntext\n\\[\na_{1} * b_{2} *\n\\]\nmore $$ \\sum_i i $$ end\n\n$$\nopen to\n- the empty line\n\n- list $\\frac{a}{b}$\n  $$\n  y\n  $$\n",
    html: "<div onclick=\"x\">**b**</div>\n\n<script>alert(1)</script> and <b>bold</b>\n\n<!-- c -->\n\n<https://a.example> <a@b.example> https://c.example/x_y_z. main.py www.d.example\n",
    links: "[a](javascript:alert(1)) [b](/local) [c](#top) [d](data:text/html,x) [e](mailto:a@b.example \"t\") [f](HTTP://X.example) ![g](http://p.example/q.png \"pic\") ![](http://p.example) [h](vbscript:x) [![i](http://j.example)](http://k.example)\n",
    unicode: "Ünï *kursiv* 😀**fett**👍🏽 שלום\n\n- 日本語\r\n- tabs\there\r\n\r\n\tcode\rold line\r\n",
    spaces: "\n\n   \n  text  \n\t\n\n\n    \n- \n\n  x\n-\n  y\n",
    stars: "* * *\n* a\n* * *\n- - -\n- a\n\n- - -x\n\n1\n\n1. x\n\n2",
};

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
export function chance(seed) {
    let a = seed >>> 0;
    return () => {
        a = (a + 0x6d2b79f5) >>> 0;
        let t = Math.imul(a ^ (a >>> 15), a | 1);
        t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
        return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
}

/** A text in pieces of 1 to most characters. */
export function pieces(text, random, most) {
    const cut = [];
    for (let at = 0; at < text.length;) {
        const n = 1 + Math.floor(random() * most);
        cut.push(text.slice(at, at + n));
        at += n;
    }
    return cut;
}

const LINES = ["text", "more text here", "", "", "", "- item", "  - inner", "    deep", "1. one", "2. two", "> quote", "# head", "---", "===", "```", "```js", "~~~", "| a | b |", "|---|---|",
    "| 1 | 2 |", "[x]: http://x.example", "[x] and [y][x]", "'title'", "[^n]: note", "see[^n]", "$$", "\\[", "\\]", "*a* **b", "  ", "\tx", "* * *", "+ plus", "[z]: /z", "'t", "t'", "    - four", "````", "[ ]", "- [ ] task"];

/** A document of lines that do not belong together. */
export const jumble = (random) => Array.from({ length: 3 + Math.floor(random() * 18) }, () => LINES[Math.floor(random() * LINES.length)]).join("\n");
