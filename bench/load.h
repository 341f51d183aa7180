/* Loads a GGUF with stock llama.cpp the way its own programs do, for comparing a worker's start
 * with. */
#ifndef NK_BENCH_LOAD_H
#define NK_BENCH_LOAD_H

#include "base/error.h"

/* Model and context on the CPU, then frees both. Calls ready(arg) in between.
 *   INVALID  bad_gguf    llama.cpp cannot load it
 *   EXHAUSTED no_memory  no context */
int nk_load_plain(const char *path, int n_ctx, int n_threads, void (*ready)(void *arg), void *arg,
                  struct nk_error *err);

#endif
