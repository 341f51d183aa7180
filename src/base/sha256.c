#include "base/sha256.h"

#include <openssl/evp.h>
#include <stdio.h>

/* An nk_sha256 is OpenSSL's own context under our name. */
nk_sha256 *nk_sha256_new(void)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();

    if (ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) != 1) {
        EVP_MD_CTX_free(ctx);
        ctx = NULL;
    }
    return (nk_sha256 *)ctx;
}

void nk_sha256_add(nk_sha256 *h, const void *data, size_t size)
{
    int ok = EVP_DigestUpdate((EVP_MD_CTX *)h, data, size);

    NK_ASSERT(ok == 1);
}

void nk_sha256_finish(nk_sha256 *h, char hex[NK_SHA256_HEX])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    int ok = EVP_DigestFinal_ex((EVP_MD_CTX *)h, digest, &n);

    NK_ASSERT(ok == 1 && n == 32);
    for (unsigned i = 0; i < n; i++)
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    nk_sha256_free(h);
}

void nk_sha256_free(nk_sha256 *h)
{
    EVP_MD_CTX_free((EVP_MD_CTX *)h);
}
