// Text files at a message: what is taken, and how it is said to the model. Pure but for reading a File.

export const FILE_MAX = 1 << 20; // bytes of one file
export const ALL_MAX = 4 << 20;  // bytes of all files of a message
export const FILES_MAX = 20;
export const PASTE_MAX = 4000;   // characters; a longer paste becomes a file

const size = (n) => (n < 1 << 20 ? `${Math.max(1, Math.round(n / 1024))} KiB` : `${(n / (1 << 20)).toFixed(1)} MiB`);
const bytesOf = (files) => files.reduce((sum, { text }) => sum + new Blob([text]).size, 0);

/** One line of a file: its name and size. */
export const label = (file) => `${file.name} · ${size(new Blob([file.text]).size)}`;

/** A name that no other file has: "notes.txt", "notes 2.txt". */
export function freeName(name, files) {
    const clean = name.replace(/[\p{Cc}\p{Cf}`]/gu, "").trim().slice(0, 200) || "file.txt", dot = clean.lastIndexOf(".");
    const [stem, end] = dot > 0 ? [clean.slice(0, dot), clean.slice(dot)] : [clean, ""];
    for (let i = 1; ; i++) {
        const next = i === 1 ? clean : `${stem} ${i}${end}`;
        if (!files.some((file) => file.name === next))
            return next;
    }
}

/** The text of bytes, or null where they are none. */
export function textOf(bytes) {
    const utf16 = bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : null;
    try {
        const text = new TextDecoder(utf16 ?? "utf-8", { fatal: true }).decode(bytes);
        return text.includes("\0") ? null : text;
    } catch {
        return null;
    }
}

/** Adds files (File, or what has name, size and arrayBuffer) to those at a message. Returns { files, problems }: sentences. */
export async function addFiles(present, more) {
    const files = [...present], problems = [];
    let total = bytesOf(files);
    for (const file of more) {
        const name = freeName(file.name, files);
        if (files.length >= FILES_MAX) {
            problems.push(`A message takes ${FILES_MAX} files; “${name}” and what follows is left out.`);
            break;
        }
        if (file.size > FILE_MAX) {
            problems.push(`“${name}” has ${size(file.size)}; a file may have ${size(FILE_MAX)}. Attach the part that matters.`);
            continue;
        }
        if (total + file.size > ALL_MAX) {
            problems.push(`“${name}” is left out: all files of a message may have ${size(ALL_MAX)} together.`);
            continue;
        }
        let bytes;
        try {
            bytes = new Uint8Array(await file.arrayBuffer());
        } catch {
            problems.push(`“${name}” cannot be read: it is a folder, or it is gone.`);
            continue;
        }
        const text = textOf(bytes);
        if (text === null)
            problems.push(`“${name}” is not text (neither UTF-8 nor UTF-16). Only text files can be attached.`);
        else if (!text)
            problems.push(`“${name}” is empty.`);
        else {
            files.push({ name, text });
            total += bytes.length;
        }
    }
    return { files, problems };
}

/** Backticks that no line of a text ends by accident. */
export function fence(text) {
    return "`".repeat(1 + Math.max(2, ...[...text.matchAll(/`+/g)].map(([ticks]) => ticks.length)));
}

export function fenced(name, text) {
    const ticks = fence(text);
    return `${ticks}${name}\n${text}${text.endsWith("\n") ? "" : "\n"}${ticks}`;
}

/** What the model is told of a user's message: each file in a fence with its name, then the text. */
export function spoken({ text, files }) {
    return [...(files ?? []).map((file) => fenced(file.name, file.text)), ...(text ? [text] : [])].join("\n\n");
}
