// The last ten minutes, as the page has seen them: one sample a second, and what was lost. Nothing here knows of elements.

export const SPAN_MS = 600000;
const STEP_MS = 1000;
const GAP_MS = 15000; // events come every second, or every few: a longer silence is a hole in the line

export class History {
    constructor() {
        this.samples = []; // { at, speed, waiting, running }
        this.marks = [];   // { at, id, text }
        this.seen = null;  // of losses: their keys; null before the first look
    }

    /** c: /cluster's object, as it is at the time now (ms). */
    push(c, now) {
        const g = c.gateway, sample = { at: now, speed: g.tokens_per_second ?? 0, waiting: g.waiting ?? 0, running: g.running ?? 0 };
        const last = this.samples.at(-1);
        if (last && now < last.at)
            this.samples = []; // somebody set the clock back
        if (this.samples.length && Math.floor(now / STEP_MS) === Math.floor(this.samples.at(-1).at / STEP_MS))
            this.samples.pop();
        this.samples.push(sample);
        this.#losses(c.recovery?.events ?? [], now);
        const begin = now - SPAN_MS;
        if (this.samples[0].at < begin)
            this.samples = this.samples.filter(({ at }) => at >= begin);
        this.marks = this.marks.filter(({ at }) => at >= begin);
    }

    // What is lost while the page looks on is marked by the page's clock, which need not be the gateway's.
    #losses(events, now) {
        const keys = events.map((e) => `${e.time} ${e.lost} ${e.address}`);
        for (const [i, e] of events.entries())
            if (!this.seen?.has(keys[i])) {
                const at = this.seen ? now : Date.parse(e.time);
                if (Number.isFinite(at) && at <= now)
                    this.marks.push({ at, id: e.lost, address: e.address, text: `${e.lost} ${e.cause === "silent" ? "silent" : "lost"}` });
            }
        this.seen = new Set(keys);
    }

    /** Runs of samples without a hole, each [[x, value], ...]; x from 0 (ten minutes ago) to 1 (now). */
    runs(name, now) {
        const runs = [];
        let before = -Infinity;
        for (const sample of this.samples) {
            if (sample.at - before > GAP_MS)
                runs.push([]);
            runs.at(-1).push([place(sample.at, now), sample[name]]);
            before = sample.at;
        }
        return runs;
    }

    most(name) {
        return this.samples.reduce((most, sample) => Math.max(most, sample[name]), 0);
    }

    marksAt(now) {
        return this.marks.map((mark) => ({ ...mark, x: place(mark.at, now) }));
    }

    /** The last loss of a stage within the ten minutes; undefined: none. */
    lossOf(id, address) {
        return this.marks.findLast((mark) => mark.id === id && mark.address === address);
    }
}

const place = (at, now) => Math.max(0, 1 - (now - at) / SPAN_MS);

/** "now", "40 s ago", "3 min ago". */
export function ago(ms) {
    if (ms < 2000)
        return "now";
    return ms < 60000 ? `${Math.round(ms / 1000)} s ago` : `${Math.round(ms / 60000)} min ago`;
}
