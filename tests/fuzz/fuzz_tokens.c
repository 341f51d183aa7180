/* layer: text. Text to tokens and back, over every kind of tokenizer.
 *
 * First byte: the vocabulary (low bits) and special tokens (bit 7); second: the length of a stop
 * string; then that and the text. Whatever tokenizes comes back: the pieces are the text
 * (byte-level vocabularies), streamed is what is whole, nothing half a character. The bytes are
 * also taken as ids, of which many do not exist. */
#include "base/utf8.h"
#include "fuzz/fuzz.h"
#include "fuzz/text_fuzz.h"
#include "text/detok.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* Streams the ids (those that do not exist are refused), with and without the stop string. */
static void stream(const nk_vocab *v, const int32_t *ids, size_t n, bool special, const char *stop,
                   struct nk_buf *out)
{
    nk_detok *d;
    bool stopped = false;
    size_t at;

    if (nk_detok_new(&d, v, &stop, stop ? 1 : 0, special, NULL))
        return;
    for (size_t i = 0; i < n && !stopped; i++) {
        int rc = nk_detok_add(d, ids[i], out, &stopped, NULL);

        check(!rc || ids[i] < 0 || ids[i] >= nk_vocab_size(v));
        check(nk_utf8_valid(nk_buf_str(out), out->size, &at));
    }
    check(nk_detok_finish(d, out, NULL) == 0);
    check(nk_utf8_valid(nk_buf_str(out), out->size, &at));
    check(stopped == (nk_detok_stop(d) != NULL));
    if (stop)
        check(!out->data || !memmem(out->data, out->size, stop, strlen(stop)));
    nk_detok_free(d);
}

const struct fuzz_ceiling fuzz_ceiling = { .base = 200000, .per_byte = 5000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    const nk_vocab *v;
    struct nk_buf whole = NK_BUF_INIT(1 << 24), stopped = NK_BUF_INIT(1 << 24);
    struct nk_tokens t;
    char stop[256];
    size_t n_stop, at;
    bool special;
    int rc;

    if (size < 2 || size > 20000)
        return;
    v = fuzz_vocab((enum vocab_kind)(data[0] % VOCAB_STUB));
    special = data[0] & 0x80;
    n_stop = data[1] < size - 2 ? data[1] : size - 2;
    memcpy(stop, data + 2, n_stop);
    stop[n_stop] = '\0';
    data += 2 + n_stop;
    size -= 2 + n_stop;
    rc = nk_vocab_tokenize(v, (const char *)data, size, special, special, 100000, NULL, &t, NULL);
    check(rc || nk_utf8_valid(data, size, &at));
    if (!rc) {
        struct nk_buf pieces = NK_BUF_INIT(1 << 24);

        for (size_t i = 0; i < t.n; i++)
            check(nk_vocab_piece(v, t.ids[i], special, &pieces, NULL) == 0);
        stream(v, t.ids, t.n, special, NULL, &whole);
        if (llama_vocab_type(nk_vocab_llama(v)) == LLAMA_VOCAB_TYPE_BPE && !special) {
            check(pieces.size == size && (!size || !memcmp(pieces.data, data, size)));
            check(whole.size == size && (!size || !memcmp(whole.data, data, size)));
        }
        stream(v, t.ids, t.n, special, stop, &stopped);
        nk_buf_release(&pieces);
        free(t.ids);
    }
    {
        int32_t *ids = malloc((size + 1) * sizeof *ids);

        check(ids != NULL);
        for (size_t i = 0; i < size; i++) /* bytes mostly; now and then something far out */
            ids[i] = data[i] == 0xFF   ? INT32_MIN
                     : data[i] == 0xFE ? nk_vocab_size(v) - 1 - (int32_t)(i % 10)
                                       : data[i];
        nk_buf_reset(&whole);
        nk_buf_reset(&stopped);
        stream(v, ids, size, special, NULL, &whole);
        stream(v, ids, size, special, stop, &stopped);
        check(stopped.size <= whole.size &&
              (!stopped.size || !memcmp(stopped.data, whole.data, stopped.size)));
        free(ids);
    }
    nk_buf_release(&whole);
    nk_buf_release(&stopped);
}
