// Numbers as people read them. Unknown (null, NaN) is a dash everywhere.

const DASH = "–";
export const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function bytes(value) {
    if (!known(value))
        return DASH;
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    while (value >= 1024 && i < units.length - 1) {
        value /= 1024;
        i++;
    }
    return `${value >= 100 || i === 0 ? Math.round(value) : value.toFixed(1)} ${units[i]}`;
}

export function milliseconds(value) {
    if (!known(value))
        return DASH;
    if (value >= 1000)
        return `${(value / 1000).toFixed(1)} s`;
    return `${value >= 100 ? Math.round(value) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

export function seconds(value) {
    if (!known(value))
        return DASH;
    if (value < 60)
        return `${value.toFixed(1)} s`;
    const minutes = Math.floor(value / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function rate(value) {
    if (!known(value))
        return DASH;
    return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}

export const count = (value) => (known(value) ? value.toLocaleString("en") : DASH);
export const percent = (value) => (known(value) ? `${Math.round(value * 100)} %` : DASH);
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
