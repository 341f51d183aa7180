/* What a command that generates needs besides the chain: the prompt's text, and the vocabulary that fits the cluster. */
#ifndef NK_CLI_REQUEST_H
#define NK_CLI_REQUEST_H

#include "base/buf.h"
#include "chain/cluster.h"
#include "text/vocab.h"

/* The prompt from --prompt, from --file ("-": standard input) or, with neither, from standard input when that is no
 * terminal. One newline at the end of a file is not part of the prompt (editors and echo put it there).
 *   INVALID    bad_argument   both given, or none and standard input is a terminal
 *   NOT_FOUND  no_file; EXHAUSTED too_large (over NK_TEXT_BYTES_MAX); DATA_LOSS read_failed */
int nk_prompt_read(const char *prompt, const char *file, struct nk_buf *out, struct nk_error *err);

/* The cluster's vocabulary file, which must be of the cluster's model: ids of another vocabulary would give wrong text
 * without anybody noticing. *out owned by the caller.
 *   INVALID       no_vocab        the cluster file names none
 *   PRECONDITION  model_mismatch  it was cut from another model; both hashes are named
 * and nk_vocab_open's, nk_model_open's. */
int nk_cluster_vocab_open(nk_vocab **out, const struct nk_cluster *c, struct nk_error *err);

#endif
