// Server-sent events read from a fetch's body: EventSource can neither POST nor send a key.

/** The events of a response, one by one: { event, data }. Ends when the body ends; throws what reading throws. */
export async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = "";
    try {
        for (;;) {
            const { value, done } = await reader.read();
            if (done)
                return;
            buffer += value;
            let end;
            while ((end = buffer.indexOf("\n\n")) >= 0) {
                const block = buffer.slice(0, end);
                buffer = buffer.slice(end + 2);
                const event = parse(block);
                if (event)
                    yield event;
            }
        }
    } finally {
        // Left early (a stop, an error): the server shall see that nobody reads any more.
        reader.cancel().catch(() => {});
    }
}

/** One block of lines; null when it holds no data (comments keep a silent connection open). */
function parse(block) {
    let event = "message";
    const data = [];
    for (const line of block.split("\n")) {
        if (line.startsWith("event:"))
            event = line.slice(6).trim();
        else if (line.startsWith("data:"))
            data.push(line.slice(line[5] === " " ? 6 : 5));
    }
    return data.length ? { event, data: data.join("\n") } : null;
}
