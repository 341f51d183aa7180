/* What the fuzz targets of the text layer share: tiny vocabularies, opened once. */
#ifndef NK_TESTS_TEXT_FUZZ_H
#define NK_TESTS_TEXT_FUZZ_H

#include <llama.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "text/vocab.h"
#include "unit/text/vocab_file.h"

static inline void fuzz_quiet(enum ggml_log_level level, const char *text, void *user)
{
    (void)level, (void)text, (void)user;
}

/* NULL for the stub. The file is removed at once; the vocabulary lives as long as the process. */
static inline const nk_vocab *fuzz_vocab(enum vocab_kind kind)
{
    static nk_vocab *vocabs[VOCAB_KINDS];

    if (!vocabs[kind] && kind != VOCAB_STUB) {
        char path[] = "/tmp/nk-fuzz-XXXXXX";
        int fd = mkstemp(path);

        llama_log_set(fuzz_quiet, NULL);
        if (fd < 0 || !vocab_file_write(path, kind) || nk_vocab_open(&vocabs[kind], path, NULL))
            abort();
        close(fd);
        unlink(path);
        fuzz_prepared();
    }
    return vocabs[kind];
}

#endif
