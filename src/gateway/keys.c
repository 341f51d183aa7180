#include "gateway/keys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <openssl/crypto.h>

enum { KEYS_MAX = 4096, KEY_BYTES_MIN = 8, KEY_BYTES_MAX = 512 };

struct nk_keys {
    int n;
    char (*digests)[NK_SHA256_HEX];
};

static bool hash(char out[NK_SHA256_HEX], const char *key, size_t size)
{
    nk_sha256 *h = nk_sha256_new();

    if (!h)
        return false;
    nk_sha256_add(h, key, size);
    nk_sha256_finish(h, out);
    return true;
}

int nk__keys_new(nk_keys **out, const char *text, struct nk_error *err)
{
    nk_keys *k = calloc(1, sizeof *k);
    int line = 0, rc = 0;

    *out = NULL;
    if (k)
        k->digests = calloc(KEYS_MAX, sizeof *k->digests);
    if (!k || !k->digests)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for API keys");
    while (!rc && *text) {
        size_t n = strcspn(text, "\n"), begin = strspn(text, " \t\r"), end = n;

        line++;
        begin = begin > n ? n : begin;
        while (end > begin && strchr(" \t\r", text[end - 1]))
            end--;
        if (end > begin && text[begin] != '#') {
            size_t size = end - begin;

            /* The key itself stays out of the message: messages go to logs. */
            if (size < KEY_BYTES_MIN || size > KEY_BYTES_MAX)
                rc = nk_fail(err, NK_E_INVALID, "bad_key_file",
                             "line %d: a key of %zu characters; %d to %d are possible", line, size,
                             KEY_BYTES_MIN, KEY_BYTES_MAX);
            else if (memchr(text + begin, ' ', size) || memchr(text + begin, '\t', size))
                rc = nk_fail(err, NK_E_INVALID, "bad_key_file",
                             "line %d: a key with white space in it", line);
            else if (k->n == KEYS_MAX)
                rc = nk_fail(err, NK_E_INVALID, "bad_key_file", "line %d: more than %d keys", line,
                             KEYS_MAX);
            else if (!hash(k->digests[k->n++], text + begin, size))
                rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for API keys");
        }
        text += n + (text[n] == '\n');
    }
    if (!rc && !k->n)
        rc = nk_fail(err, NK_E_INVALID, "bad_key_file",
                     "there is no key in it; one per line is needed");
    if (rc) {
        nk__keys_free(k);
        return rc;
    }
    *out = k;
    return 0;
}

void nk__keys_free(nk_keys *k)
{
    if (k)
        free(k->digests);
    free(k);
}

static bool is_known(const nk_keys *k, const char *key, char digest[NK_SHA256_HEX])
{
    char hex[NK_SHA256_HEX];
    size_t size = strlen(key);
    int equal = 0;

    if (size > KEY_BYTES_MAX || !hash(hex, key, size))
        return false;
    for (int i = 0; i < k->n; i++)
        equal |= CRYPTO_memcmp(hex, k->digests[i], sizeof hex) == 0;
    if (equal)
        memcpy(digest, hex, sizeof hex);
    return equal;
}

bool nk__keys_allow(const nk_keys *k, const char *authorization, const char *api_key,
                    char digest[NK_SHA256_HEX])
{
    if (authorization && !strncasecmp(authorization, "Bearer ", 7) &&
        is_known(k, authorization + 7 + strspn(authorization + 7, " "), digest))
        return true;
    return api_key && is_known(k, api_key, digest);
}
