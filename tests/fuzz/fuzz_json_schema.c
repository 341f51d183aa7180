/* layer: text. JSON schemas as clients send them: what becomes a grammar is one that compiles. */
#include "fuzz/fuzz.h"
#include "fuzz/text_fuzz.h"
#include "text/grammar.h"
#include "text/json_schema.h"

/* The base is what a grammar may cost until it is too complex. */
const struct fuzz_ceiling fuzz_ceiling = { .base = 100000000, .per_byte = 10000 };

void fuzz_one(const uint8_t *data, size_t size)
{
    const nk_vocab *v = fuzz_vocab(VOCAB_BPE);
    json_t *schema =
        size < 20000 ? json_loadb((const char *)data, size, JSON_DECODE_ANY, NULL) : NULL;
    struct nk_buf out = NK_BUF_INIT(65536);
    struct nk_error err = { 0 };
    nk_grammar *g;

    if (!schema)
        return;
    if (!nk_json_schema_to_grammar(schema, NULL, &out, &err)) {
        const uint8_t *mask;

        if (nk_grammar_new(&g, nk_vocab_llama(v), nk_buf_str(&out), &err)) {
            /* Only for its size: repetitions are written out. */
            if (!strstr(err.msg, "too large") && strcmp(err.reason, "grammar_too_complex") != 0)
                abort();
        } else {
            if (nk_grammar_mask(g, &mask, &err) && strcmp(err.reason, "grammar_too_complex") != 0)
                abort();
            nk_grammar_free(g);
        }
    } else if (out.size ||
               (strcmp(err.reason, "unsupported_schema") && strcmp(err.reason, "too_large"))) {
        abort();
    }
    nk_buf_release(&out);
    json_decref(schema);
}
