/* Bytes go through two filters. The first makes characters of them: what is complete goes on, what
 * can still be completed waits (three bytes at most), what never can becomes U+FFFD. The second
 * looks for stop strings with one Knuth-Morris-Pratt automaton each: its state is how much of the
 * stop string the text's end already matches, so the largest state is exactly what must be held
 * back. Both see one byte or character after the other, so that the result does not depend on where
 * tokens begin and end. */
#include "text/detok.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

struct stop {
    size_t size, matched;
    char text[NK_STOP_BYTES_MAX + 1];
    /* [i]: the longest proper prefix that ends text[0..i] too. */
    uint16_t fallback[NK_STOP_BYTES_MAX];
};

struct nk_detok {
    const nk_vocab *vocab;
    bool special;
    /* Of tokens, not yet characters; between calls: the beginning of one character. */
    struct nk_buf bytes;
    /* Characters that may be the beginning of a stop string. */
    struct nk_buf held;
    const struct stop *stopped_by;
    size_t n_stop;
    struct stop stops[];
};

/* A token's text: the longest pieces in use are runs of 128 spaces; 1 MiB stands for "whatever a
 * vocabulary may hold". */
enum { PIECE_BYTES_MAX = 1 << 20 };
static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

static int stop_init(struct stop *s, const char *text, struct nk_error *err)
{
    size_t at, k = 0;

    s->size = strnlen(text, NK_STOP_BYTES_MAX + 1);
    if (s->size == 0)
        return nk_fail(err, NK_E_INVALID, "bad_stop", "a stop string is empty");
    if (s->size > NK_STOP_BYTES_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_stop", "a stop string is longer than %d bytes",
                       NK_STOP_BYTES_MAX);
    if (!nk_utf8_valid(text, s->size, &at))
        return nk_fail(err, NK_E_INVALID, "bad_stop", "a stop string is not UTF-8 at byte %zu", at);
    memcpy(s->text, text, s->size + 1);
    for (size_t i = 1; i < s->size; i++) {
        while (k && s->text[i] != s->text[k])
            k = s->fallback[k - 1];
        k += s->text[i] == s->text[k];
        s->fallback[i] = (uint16_t)k;
    }
    return 0;
}

int nk_detok_new(nk_detok **out, const nk_vocab *v, const char *const *stops, size_t n_stop,
                 bool special, struct nk_error *err)
{
    nk_detok *d;

    *out = NULL;
    if (n_stop > NK_STOP_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_stop", "%zu stop strings; at most %d are taken",
                       n_stop, NK_STOP_MAX);
    d = calloc(1, sizeof *d + n_stop * sizeof d->stops[0]);
    if (!d)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    d->vocab = v;
    d->special = special;
    d->n_stop = n_stop;
    nk_buf_init(&d->bytes, PIECE_BYTES_MAX);
    nk_buf_init(&d->held, 3 * PIECE_BYTES_MAX + NK_STOP_BYTES_MAX); /* a lone byte becomes three */
    for (size_t i = 0; i < n_stop; i++) {
        int rc = stop_init(&d->stops[i], stops[i], err);

        if (rc) {
            nk_detok_free(d);
            return rc;
        }
    }
    *out = d;
    return 0;
}

void nk_detok_free(nk_detok *d)
{
    if (!d)
        return;
    nk_buf_release(&d->bytes);
    nk_buf_release(&d->held);
    free(d);
}

/* Moves every stop string's automaton on by one byte. The longest of those that end here, or
 * NULL. */
static const struct stop *stops_advance(nk_detok *d, char byte)
{
    const struct stop *done = NULL;

    for (size_t i = 0; i < d->n_stop; i++) {
        struct stop *s = &d->stops[i];

        while (s->matched && s->text[s->matched] != byte)
            s->matched = s->fallback[s->matched - 1];
        s->matched += s->text[s->matched] == byte;
        if (s->matched == s->size) {
            s->matched = s->fallback[s->size - 1];
            if (!done || s->size > done->size)
                done = s;
        }
    }
    return done;
}

/* Takes whole characters. *stopped as in nk_detok_add. */
static int add_characters(nk_detok *d, const char *text, size_t size, struct nk_buf *out,
                          bool *stopped, struct nk_error *err)
{
    size_t n_keep = 0;
    int rc;

    if (!d->n_stop)
        return nk_buf_add(out, text, size, err);
    for (size_t i = 0; i < size; i++) {
        rc = nk_buf_add(&d->held, text + i, 1, err);
        if (rc)
            return rc;
        d->stopped_by = stops_advance(d, text[i]);
        if (d->stopped_by) {
            *stopped = true;
            rc = nk_buf_add(out, d->held.data, d->held.size - d->stopped_by->size, err);
            nk_buf_reset(&d->held);
            nk_buf_reset(&d->bytes);
            return rc;
        }
    }
    for (size_t i = 0; i < d->n_stop; i++)
        if (d->stops[i].matched > n_keep)
            n_keep = d->stops[i].matched;
    rc = nk_buf_add(out, d->held.data, d->held.size - n_keep, err);
    if (!rc)
        nk_buf_consume(&d->held, d->held.size - n_keep);
    return rc;
}

/* Makes characters of d->bytes and passes them on. at_end: nothing follows, what waits for more
 * never gets it. */
static int pass_on(nk_detok *d, bool at_end, struct nk_buf *out, bool *stopped,
                   struct nk_error *err)
{
    size_t pos = 0;
    int rc = 0;

    while (!rc && !*stopped && pos < d->bytes.size) {
        const char *p = d->bytes.data + pos;
        int n = nk_utf8_next(p, d->bytes.size - pos, NULL);

        if (n == 0 && !at_end)
            break;
        if (n > 0) {
            size_t size = (size_t)n; /* with all valid ones that follow, at once */

            while (pos + size < d->bytes.size &&
                   (n = nk_utf8_next(p + size, d->bytes.size - pos - size, NULL)) > 0)
                size += (size_t)n;
            rc = add_characters(d, p, size, out, stopped, err);
            pos += size;
        } else {
            rc = add_characters(d, replacement, sizeof replacement - 1, out, stopped, err);
            pos += n ? (size_t)-n : d->bytes.size - pos;
        }
    }
    if (!*stopped)
        nk_buf_consume(&d->bytes, pos);
    return rc;
}

int nk_detok_add(nk_detok *d, int32_t id, struct nk_buf *out, bool *stopped, struct nk_error *err)
{
    int rc;

    *stopped = d->stopped_by != NULL;
    if (*stopped)
        return 0;
    rc = nk_vocab_piece(d->vocab, id, d->special, &d->bytes, err);
    return rc ? rc : pass_on(d, false, out, stopped, err);
}

int nk_detok_finish(nk_detok *d, struct nk_buf *out, struct nk_error *err)
{
    bool stopped = false;
    int rc;

    if (d->stopped_by)
        return 0;
    rc = pass_on(d, true, out, &stopped, err);
    if (!rc && !stopped && d->held.size) {
        rc = nk_buf_add(out, d->held.data, d->held.size, err);
        nk_buf_reset(&d->held);
    }
    return rc;
}

const char *nk_detok_stop(const nk_detok *d)
{
    return d->stopped_by ? d->stopped_by->text : NULL;
}
