// Small helpers to make elements. Text only ever becomes a text node: nothing here parses markup.

/** el("p", { class: "note", hidden: true, onclick: f }, "text", child, ...) */
export function el(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on"))
            node.addEventListener(name.slice(2), value);
        else if (value === true)
            node.setAttribute(name, "");
        else if (value !== false && value !== null && value !== undefined)
            node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
}

/** Sets a node's text only when it differs, so that nothing is laid out or read out anew for nothing. */
export function setText(node, text) {
    if (node.textContent !== text)
        node.textContent = text;
}

export const byId = (id) => document.getElementById(id);

/** Puts the text into the clipboard, and says on the button how that went. */
export async function copy(text, button) {
    const before = button.textContent;
    try {
        await navigator.clipboard.writeText(text);
        setText(button, "Copied");
        announce("Copied.");
    } catch {
        setText(button, "Not allowed"); // by the browser: without TLS only localhost may
    }
    setTimeout(() => setText(button, before), 1500);
}

/** Tells a screen reader. */
export function announce(text) {
    setText(byId("announcer"), text);
}

/** When a frame has been painted: what the first one does not need is fetched after it. */
export const afterPaint = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

/** Puts a style sheet to the page, once; done when it holds (or cannot be had). */
export function stylesheet(href) {
    const id = `css-${href.replace(".css", "")}`;
    if (byId(id))
        return Promise.resolve();
    return new Promise((resolve) => document.head.append(el("link", { id, rel: "stylesheet", href, onload: resolve, onerror: resolve })));
}
