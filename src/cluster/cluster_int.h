/* What the files of this layer share of OpenSSL's types. Everything that is read from PEM here may
 * come from a stranger: its size is bounded before it is parsed, and nothing asks a terminal for a
 * passphrase. */
#ifndef NK_CLUSTER_INT_H
#define NK_CLUSTER_INT_H

#include <jansson.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/sha256.h"
#include "cluster/ca.h"

/* Why OpenSSL's last call on this thread has failed; empties its queue. */
const char *nk__ssl_reason(void);

/* A P-256 key; NULL is INVALID bad_key. The caller frees. */
EVP_PKEY *nk__key_read(struct nk_bytes pem, struct nk_error *err);
/* NULL is INVALID bad_certificate. The caller frees. */
X509 *nk__certificate_read(struct nk_bytes pem, struct nk_error *err);
/* INVALID bad_certificate */
int nk__certificate_about(struct nk_certificate *out, X509 *x, struct nk_error *err);
/* As nk_certificate_check. */
int nk__certificate_issued(struct nk_certificate *out, X509 *x, X509 *ca, struct nk_error *err);
/* The id of the cluster whose CA has this key; false: out of memory. */
bool nk__cluster_of(char cluster[NK_CA_CLUSTER_SIZE], X509 *ca);
/* SHA-256 over the key in a request, whose signature was looked at. INVALID bad_request. */
int nk__request_key(char hex[NK_SHA256_HEX], struct nk_bytes request, struct nk_error *err);
/* A folder that only its owner may enter, and those above it. Where it is there it stays as it
 * is. */
int nk__private_dir_make(const char *path, struct nk_error *err);
void nk__hex(char *out, const uint8_t *bytes, size_t size); /* 2 * size digits and a NUL */
bool nk__unhex(uint8_t *out, size_t size, const char *hex); /* exactly 2 * size lower-case digits */
/* The string under key, without control characters, into size bytes: false if it is not there, or
 * is not so. */
bool nk__json_text(const json_t *object, const char *key, char *out, size_t size);
/* A whole number from min to max under key. */
bool nk__json_number(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out);
/* Strings that are addresses, at most NK_TOKEN_ADDRESSES_MAX; -1: it is something else. */
int nk__json_addresses(const json_t *object, const char *key, char out[][46]);
json_t *nk__json_of_addresses(const char (*addresses)[46], int n);
/* The 4 or 16 bytes of an address; 0: it is none. */
int nk__address_bytes(uint8_t out[16], const char *text);
/* A length of time for a sentence: "45 s", "12 min", "26 h", "3 days". Its sign does not count. */
void nk__span_format(char out[32], int64_t s);
/* Overwrites what was a secret. */
void nk__forget(struct nk_buf *b);

#endif
