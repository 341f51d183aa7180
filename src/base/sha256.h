/* SHA-256 over OpenSSL's EVP interface. Not thread-safe per object. */
#ifndef NK_BASE_SHA256_H
#define NK_BASE_SHA256_H

#include <stddef.h>

#include "base/error.h"

#define NK_SHA256_HEX 65 /* 64 hex digits and a NUL */

typedef struct nk_sha256 nk_sha256;

nk_sha256 *nk_sha256_new(void); /* NULL when out of memory */
void nk_sha256_add(nk_sha256 *h, const void *data, size_t size);
/* Writes the hex digest and frees h (takes it). */
void nk_sha256_finish(nk_sha256 *h, char hex[NK_SHA256_HEX]);
void nk_sha256_free(nk_sha256 *h);

#endif
