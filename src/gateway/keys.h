/* API keys. Compared in constant time: every key is hashed, and every hash is compared whole. */
#ifndef NK_GATEWAY_KEYS_H
#define NK_GATEWAY_KEYS_H

#include <stdbool.h>

#include "base/error.h"
#include "base/sha256.h"

typedef struct nk_keys nk_keys;

/* From text: one key per line, white space around it dropped, empty lines and lines that begin with
 * '#' skipped. *out owned by the caller.
 *   INVALID  bad_key_file   no key, more than 4096, or one shorter than 8 or longer than 512
 *                           characters, or with spaces */
int nk__keys_new(nk_keys **out, const char *text, struct nk_error *err);
void nk__keys_free(nk_keys *k);
/* authorization: the value of the header ("Bearer KEY"); api_key: that of X-Api-Key (the key alone,
 * as Anthropic's clients send it); NULL where there was none. Either may hold the key. digest: of
 * the key, set if it is one of them. */
bool nk__keys_allow(const nk_keys *k, const char *authorization, const char *api_key,
                    char digest[NK_SHA256_HEX]);

#endif
