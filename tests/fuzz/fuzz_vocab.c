/* layer: text. Bytes as the GGUF of a vocabulary: what passes our checks libllama loads, and the
 * vocabulary can be used, or the answer is an error. libllama ends the process where it meets what
 * it did not expect: that is a finding. */
#include <stdlib.h>
#include <string.h>

#include "fuzz/fuzz.h"
#include "fuzz/memory_file.h"
#include "fuzz/text_fuzz.h"

/* Loading a vocabulary of a few tokens costs libllama more than our checks, and some of it depends
 * on the kind of tokenizer alone. */
const struct fuzz_ceiling fuzz_ceiling = { .base = 1000000, .per_byte = 3000 };

enum { IDS_MAX = 300 }; /* more would only be slower */

static void use(const nk_vocab *v)
{
    static const char text[] = "Hello, w\xC3\xB6rld! <s> 12 \xF0\x9F\x98\x80";
    struct nk_buf out = NK_BUF_INIT(1 << 24);
    struct nk_tokens t;
    char license[64];
    int n = nk_vocab_size(v);

    NK_ASSERT(n > 0);
    for (int i = 0; i < 4; i++)
        if (!nk_vocab_tokenize(v, text, strlen(text), i & 1, i & 2, 1000, NULL, &t, NULL)) {
            for (size_t k = 0; k < t.n; k++)
                NK_ASSERT(t.ids[k] >= 0 && t.ids[k] < n);
            free(t.ids);
        }
    for (int32_t id = -1; id <= n && id < IDS_MAX; id++) {
        NK_ASSERT(!nk_vocab_piece(v, id, true, &out, NULL) || id < 0 || id == n ||
                  out.size <= out.max);
        nk_vocab_is_eog(v, id);
        nk_vocab_is_end(v, id);
    }
    nk_vocab_fim(v);
    nk_vocab_chat_template(v);
    nk_vocab_meta(v, "general.license", license, sizeof license);
    nk_buf_release(&out);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    static bool quiet;
    struct nk_error err = { 0 };
    nk_vocab *v;

    if (!quiet) {
        setenv("GGML_NO_BACKTRACE", "1", 1);
        llama_log_set(fuzz_quiet, NULL);
    }
    quiet = true;
    if (nk_vocab_open(&v, memory_file(data, size), &err)) {
        NK_ASSERT(!v && err.code && err.reason[0] && err.msg[0]);
        return;
    }
    use(v);
    nk_vocab_close(v);
}
