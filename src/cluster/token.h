/* The join token: all that a machine needs to know to join, on one line.
 *
 *   nk1-0a3h...                        in Crockford's base32 (no i, l, o, u; case does not count, o
 *                                      is read as 0, i and l as 1; white space and - are skipped)
 *
 *   bytes  16  cluster id, the hash of the CA's public key (ca.h): whom to believe
 *           5  token id
 *          16  secret
 *           4  expiry, seconds since 1970, big endian
 *           2  the enrolment endpoint's port, big endian
 *       5, 17  an address: 4 and four bytes, or 6 and sixteen; one or more, the best first
 *           3  CRC-24 (RFC 9580, 6.1) over all of that: one wrong character, two swapped ones, and
 *              any other fault within 24 bits is certain to be found, the rest but for 1 in 2^24
 *
 * Crockford's and not base58, because it may have to be typed, and read out over the phone.
 *
 * A token is good for a number of joins (one) and for a time (an hour). The serving side keeps a
 * record of each in its store, under tokens/ID: a hash of the secret, never the secret. Records
 * stay for 30 days after their token has expired, so that its holder is told why it is refused
 * (unless there are too many, nk_token_create). */
#ifndef NK_CLUSTER_TOKEN_H
#define NK_CLUSTER_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/chance.h"
#include "base/error.h"
#include "cluster/ca.h"
#include "cluster/store.h"

enum {
    NK_TOKEN_TEXT_SIZE = 160, /* with its NUL */
    NK_TOKEN_ID_SIZE = 11,    /* 10 hex digits and a NUL */
    NK_TOKEN_SECRET_BYTES = 16,
    NK_TOKEN_ADDRESSES_MAX = 10,
    NK_TOKEN_PROOF_BYTES = 32,
    NK_TOKEN_USES_MAX = 1000,
    NK_TOKEN_TTL_S_MAX = 365 * 86400,
    NK_TOKEN_RECORDS_MAX = 256, /* that are remembered */
};

struct nk_token {
    char cluster[NK_CA_CLUSTER_SIZE];
    char id[NK_TOKEN_ID_SIZE];
    uint8_t secret[NK_TOKEN_SECRET_BYTES];
    int64_t expires_s;
    int port;
    int n_addresses;
    char addresses[NK_TOKEN_ADDRESSES_MAX][46]; /* as inet_ntop writes them */
};

/* The token's text. An address that does not fit any more is left out; the first one always fits.
 *   INVALID  bad_address  not an IPv4 or IPv6 address, or none at all */
int nk_token_encode(const struct nk_token *t, char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err);
/* Reads what a person has typed or pasted. Each failure is INVALID `bad_token`, and the sentence
 * says what is wrong: not a token, a character (which one, where), too short, of a newer version,
 * the check characters do not fit (one is wrong or missing). No message holds the token's text. */
int nk_token_decode(struct nk_token *out, const char *text, struct nk_error *err);

/* The proof that the holder of a secret makes for a message (enrol.h says which): HMAC-SHA256,
 * keyed with the secret's hash, because that is what the other side keeps. (Who can read the store
 * could make proofs; the CA's key lies beside it.) */
int nk_token_prove(const uint8_t secret[NK_TOKEN_SECRET_BYTES], struct nk_bytes message,
                   uint8_t proof[NK_TOKEN_PROOF_BYTES], struct nk_error *err);

/* ---- the serving side ---- */
struct nk_token_opts {
    const char *cluster;
    int64_t ttl_s; /* 0: an hour; at most NK_TOKEN_TTL_S_MAX */
    int uses;      /* 0: one; at most NK_TOKEN_USES_MAX */
    int port;
    int n_addresses;
    const char *const *addresses; /* the best first (reach.h) */
};
/* Makes a token and its record. Also forgets records of tokens that expired 30 days ago, and where
 * there are too many the oldest of those that are expired, revoked or used.
 *   EXHAUSTED  too_many_tokens  that can be used */
int nk_token_create(nk_store *store, struct nk_chance *chance, int64_t now_s,
                    const struct nk_token_opts *opts, struct nk_token *out, struct nk_error *err);

struct nk_token_record {
    char id[NK_TOKEN_ID_SIZE];
    int64_t created_s, expires_s;
    int uses, uses_left;
    bool revoked;
};
/* All tokens that are remembered, by id. *out is the caller's: free(). */
int nk_token_list(nk_store *store, struct nk_token_record **out, size_t *n, struct nk_error *err);
/* From here on it is refused.
 *   NOT_FOUND  unknown_token */
int nk_token_revoke(nk_store *store, const char *id, struct nk_error *err);

struct nk_token_claim {
    const char *id;          /* as a stranger gave it */
    struct nk_bytes message; /* what the proof is over */
    const uint8_t *proof;    /* NK_TOKEN_PROOF_BYTES */
    const char *key_sha256;  /* 64 hex digits: the key that wants to join */
    const char *member;      /* the id it will have, if the token was not used for this key yet */
};
/* Takes one use, atomically: of two machines that race for the last one, exactly one gets it. A key
 * for which a use was taken already costs none and gets the same id: an answer may have been lost
 * on its way. member: the id that goes with the key. Nobody learns anything of a token without its
 * secret.
 *   UNAUTHENTICATED  unknown_token   no such token, or a wrong proof
 *   DENIED           revoked_token
 *   DENIED           expired_token   since when
 *   DENIED           used_token */
int nk_token_consume(nk_store *store, int64_t now_s, const struct nk_token_claim *claim,
                     char member[NK_MEMBER_ID_SIZE], struct nk_error *err);

#endif
