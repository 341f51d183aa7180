/* layer: text. Grammars as clients send them: compiled, and walked through a few tokens.
 *
 * First byte: how to choose among the allowed tokens; the rest is GBNF. The mask of all tokens is
 * what each token alone is told, and what is allowed can be accepted. */
#include "fuzz/fuzz.h"
#include "fuzz/text_fuzz.h"
#include "text/grammar.h"

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* The base is what a grammar may cost until it is too complex. */
const struct fuzz_ceiling fuzz_ceiling = { .base = 100000000, .per_byte = 10000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    const nk_vocab *v = fuzz_vocab(VOCAB_BPE);
    struct nk_error err = { 0 };
    nk_grammar *g;
    char *text;
    int rc;

    if (size < 2 || size > 65536 || memchr(data, 0, size))
        return;
    text = strndup((const char *)data + 1, size - 1);
    check(text != NULL);
    rc = nk_grammar_new(&g, nk_vocab_llama(v), text, &err);
    free(text);
    if (rc) {
        check(!strcmp(err.reason, "bad_grammar") || !strcmp(err.reason, "grammar_too_complex"));
        return;
    }
    for (int step = 0; step < 8 && !rc; step++) {
        const uint8_t *mask;
        int n_allowed = 0, pick = 0;

        rc = nk_grammar_mask(g, &mask, &err);
        if (rc)
            break;
        for (int32_t id = 0; id < nk_vocab_size(v); id++)
            n_allowed += mask[id] && !nk_vocab_is_eog(v, id);
        if (!n_allowed)
            break;
        pick = (data[0] * (step + 1)) % n_allowed;
        for (int32_t id = 0, i = 0; id < nk_vocab_size(v); id++) {
            bool allowed;

            if (id % 16 == step || mask[id]) { /* not all each time: it is slow */
                rc = nk_grammar_allows(g, id, &allowed, &err);
                check(rc || allowed == mask[id]);
                if (rc)
                    break;
            }
            if (mask[id] && !nk_vocab_is_eog(v, id) && i++ == pick)
                pick = -1 - id;
        }
        if (!rc && pick < 0)
            rc = nk_grammar_accept(g, -1 - pick, &err);
    }
    check(!rc || !strcmp(err.reason, "grammar_too_complex"));
    nk_grammar_free(g);
}
