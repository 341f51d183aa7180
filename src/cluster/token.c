#include "cluster/token.h"

#include <arpa/inet.h>
#include <jansson.h>
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "cluster/cluster_int.h"

enum {
    CLUSTER_BYTES = 16,
    ID_BYTES = 5,
    HEAD_BYTES = CLUSTER_BYTES + ID_BYTES + NK_TOKEN_SECRET_BYTES + 4 + 2,
    CHECK_BYTES = 3,
    PREFIX_CHARS = 4, /* "nk1-" */
    CHARS_MAX = NK_TOKEN_TEXT_SIZE - 1 - PREFIX_CHARS,
    BYTES_MAX = CHARS_MAX * 5 / 8,
    BYTES_MIN = HEAD_BYTES + 5 + CHECK_BYTES,
    CHARS_MIN = (BYTES_MIN * 8 + 4) / 5,
    HASH_BYTES = 32,
    TTL_S = 3600,
    FORGET_S = 30 * 86400,
};

/* ---- the text ---- */
static const char alphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";

/* RFC 9580, section 6.1 */
static uint32_t crc24(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xb704ce;

    for (size_t i = 0; i < size; i++) {
        crc ^= (uint32_t)data[i] << 16;
        for (int bit = 0; bit < 8; bit++)
            crc = crc << 1 ^ (crc & 0x800000 ? 0x1864cfb : 0);
        crc &= 0xffffff;
    }
    return crc;
}

static void put_number(uint8_t *out, int n_bytes, uint64_t n)
{
    for (int i = n_bytes - 1; i >= 0; i--, n >>= 8)
        out[i] = (uint8_t)n;
}

static uint64_t get_number(const uint8_t *in, int n_bytes)
{
    uint64_t n = 0;

    for (int i = 0; i < n_bytes; i++)
        n = n << 8 | in[i];
    return n;
}

static void write_text(char *out, const uint8_t *bytes, size_t size)
{
    uint32_t bits = 0;
    int n_bits = 0;

    for (size_t i = 0; i < size; i++) {
        bits = bits << 8 | bytes[i];
        for (n_bits += 8; n_bits >= 5; n_bits -= 5)
            *out++ = alphabet[bits >> (n_bits - 5) & 31];
    }
    if (n_bits)
        *out++ = alphabet[bits << (5 - n_bits) & 31];
    *out = '\0';
}

int nk_token_encode(const struct nk_token *t, char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err)
{
    uint8_t bytes[BYTES_MAX], *p = bytes + HEAD_BYTES;
    int n = 0;

    if (!nk__unhex(bytes, CLUSTER_BYTES, t->cluster) ||
        !nk__unhex(bytes + CLUSTER_BYTES, ID_BYTES, t->id))
        return nk_fail(err, NK_E_INVALID, "bad_token",
                       "a cluster's id has 32 hex digits, a "
                       "token's 10");
    memcpy(bytes + CLUSTER_BYTES + ID_BYTES, t->secret, NK_TOKEN_SECRET_BYTES);
    put_number(bytes + HEAD_BYTES - 6, 4, (uint64_t)t->expires_s);
    put_number(bytes + HEAD_BYTES - 2, 2, (uint64_t)t->port);
    for (int i = 0; i < t->n_addresses; i++) {
        uint8_t address[16];
        int size = nk__address_bytes(address, t->addresses[i]);

        if (!size)
            return nk_fail(err, NK_E_INVALID, "bad_address",
                           "'%s' is neither an IPv4 nor an IPv6 address", t->addresses[i]);
        if (p + 1 + size + CHECK_BYTES > bytes + sizeof bytes)
            continue;
        *p++ = size == 4 ? 4 : 6;
        memcpy(p, address, (size_t)size);
        p += size;
        n++;
    }
    if (!n)
        return nk_fail(err, NK_E_INVALID, "bad_address", "a token needs an address at least");
    put_number(p, CHECK_BYTES, crc24(bytes, (size_t)(p - bytes)));
    p += CHECK_BYTES;
    memcpy(text, "nk1-", PREFIX_CHARS);
    write_text(text + PREFIX_CHARS, bytes, (size_t)(p - bytes));
    OPENSSL_cleanse(bytes, sizeof bytes);
    return 0;
}

#define bad_token(err, ...) nk_fail(err, NK_E_INVALID, "bad_token", __VA_ARGS__)

static int value_of(char c)
{
    const char *at;

    if (c >= 'A' && c <= 'Z')
        c = (char)(c - 'A' + 'a');
    if (c == 'o')
        c = '0';
    if (c == 'i' || c == 'l')
        c = '1';
    at = c ? strchr(alphabet, c) : NULL;
    return at ? (int)(at - alphabet) : -1;
}

static bool is_skipped(char c)
{
    return c == '-' || c == ' ' || (c >= '\t' && c <= '\r');
}

static int bad_character(char c, size_t at, struct nk_error *err)
{
    if (c > ' ' && c <= '~')
        return bad_token(err,
                         "character %zu of the join token is '%c', which is in no token: they "
                         "have digits and letters, without u",
                         at, c);
    return bad_token(err,
                     "character %zu of the join token is none that is in a token: they have "
                     "digits and letters",
                     at);
}

/* What comes before the first five bits. */
static int read_prefix(const char **p, const char *text, struct nk_error *err)
{
    char c[3] = "";

    *p = text;
    for (int i = 0; i < 3; i++) {
        while (is_skipped(**p))
            ++*p;
        if (!**p)
            break;
        c[i] = *(*p)++;
    }
    if ((c[0] == 'n' || c[0] == 'N') && (c[1] == 'k' || c[1] == 'K')) {
        if (value_of(c[2]) == 1)
            return 0;
        if (c[2] >= '2' && c[2] <= '9')
            return bad_token(err,
                             "the join token begins with nk%c-: it is of a newer version of "
                             "nakshatra than this one, which knows nk1-",
                             c[2]);
    }
    return bad_token(err, "that is no join token: one begins with nk1-");
}

/* The bytes of a token, into as many as there is room for. */
static int read_text(uint8_t bytes[BYTES_MAX], size_t *size, const char *text, struct nk_error *err)
{
    size_t n_chars = 0, n = 0;
    uint32_t bits = 0;
    int n_bits = 0;
    const char *p;
    int rc = read_prefix(&p, text, err);

    if (rc)
        return rc;
    for (; *p; p++) {
        int value = value_of(*p);

        if (is_skipped(*p))
            continue;
        if (value < 0)
            return bad_character(*p, (size_t)(p - text) + 1, err);
        if (++n_chars > CHARS_MAX)
            return bad_token(err,
                             "the join token is too long: there are at most %d characters "
                             "after nk1-",
                             CHARS_MAX);
        bits = bits << 5 | (uint32_t)value;
        n_bits += 5;
        if (n_bits >= 8) {
            n_bits -= 8;
            bytes[n++] = (uint8_t)(bits >> n_bits);
        }
    }
    if (n_chars < CHARS_MIN)
        return bad_token(err,
                         "the join token is too short: %zu characters after nk1-, and there are "
                         "%d at least; was it copied to its end?",
                         n_chars, CHARS_MIN);
    if (n_bits >= 5 || (bits & ((1u << n_bits) - 1)) ||
        crc24(bytes, n - CHECK_BYTES) != get_number(bytes + n - CHECK_BYTES, CHECK_BYTES))
        return bad_token(err, "the join token's check characters do not fit: a character is wrong, "
                              "missing or too many; copy it again");
    *size = n - CHECK_BYTES;
    return 0;
}

static int read_addresses(struct nk_token *t, const uint8_t *p, const uint8_t *end,
                          struct nk_error *err)
{
    while (p < end) {
        int size = *p == 4 ? 4 : *p == 6 ? 16 : 0;

        if (!size || t->n_addresses == NK_TOKEN_ADDRESSES_MAX || end - p < 1 + size)
            return bad_token(err, "the join token has an address of a kind that this version of "
                                  "nakshatra does not know");
        if (!inet_ntop(size == 4 ? AF_INET : AF_INET6, p + 1, t->addresses[t->n_addresses++],
                       sizeof t->addresses[0]))
            return bad_token(err, "the join token has an address that cannot be written");
        p += 1 + size;
    }
    return 0;
}

int nk_token_decode(struct nk_token *out, const char *text, struct nk_error *err)
{
    uint8_t bytes[BYTES_MAX];
    struct nk_token t = { 0 };
    size_t size = 0;
    int rc = read_text(bytes, &size, text, err);

    if (!rc) {
        nk__hex(t.cluster, bytes, CLUSTER_BYTES);
        nk__hex(t.id, bytes + CLUSTER_BYTES, ID_BYTES);
        memcpy(t.secret, bytes + CLUSTER_BYTES + ID_BYTES, NK_TOKEN_SECRET_BYTES);
        t.expires_s = (int64_t)get_number(bytes + HEAD_BYTES - 6, 4);
        t.port = (int)get_number(bytes + HEAD_BYTES - 2, 2);
        rc = read_addresses(&t, bytes + HEAD_BYTES, bytes + size, err);
    }
    if (!rc && !t.port)
        rc = bad_token(err, "the join token has no port");
    if (!rc)
        *out = t;
    OPENSSL_cleanse(bytes, sizeof bytes);
    OPENSSL_cleanse(&t, sizeof t);
    return rc;
}

/* ---- proofs ---- */
static int hash_secret(uint8_t hash[HASH_BYTES], const uint8_t *secret, struct nk_error *err)
{
    static const char domain[] = "nakshatra join token 1";
    uint8_t both[sizeof domain + NK_TOKEN_SECRET_BYTES];
    int ok;

    memcpy(both, domain, sizeof domain);
    memcpy(both + sizeof domain, secret, NK_TOKEN_SECRET_BYTES);
    ok = EVP_Digest(both, sizeof both, hash, NULL, EVP_sha256(), NULL);
    OPENSSL_cleanse(both, sizeof both);
    return ok ? 0 : nk_fail(err, NK_E_INTERNAL, "crypto_failed", "a hash: %s", nk__ssl_reason());
}

static int prove(const uint8_t hash[HASH_BYTES], struct nk_bytes message,
                 uint8_t proof[NK_TOKEN_PROOF_BYTES], struct nk_error *err)
{
    return HMAC(EVP_sha256(), hash, HASH_BYTES, message.data, message.size, proof, NULL)
               ? 0
               : nk_fail(err, NK_E_INTERNAL, "crypto_failed", "an HMAC: %s", nk__ssl_reason());
}

int nk_token_prove(const uint8_t secret[NK_TOKEN_SECRET_BYTES], struct nk_bytes message,
                   uint8_t proof[NK_TOKEN_PROOF_BYTES], struct nk_error *err)
{
    uint8_t hash[HASH_BYTES];
    int rc = hash_secret(hash, secret, err);

    if (!rc)
        rc = prove(hash, message, proof, err);
    OPENSSL_cleanse(hash, sizeof hash);
    return rc;
}

/* ---- records ---- */
static void key_of(char key[32], const char *id)
{
    snprintf(key, 32, "tokens/%s", id);
}

static bool is_id(const char *id)
{
    uint8_t bytes[ID_BYTES];

    return nk__unhex(bytes, sizeof bytes, id);
}

static int unknown(const char *id, struct nk_error *err)
{
    return nk_fail(err, NK_E_UNAUTHENTICATED, "unknown_token",
                   "the cluster knows no such join token (%s); ask for a new one (nakshatra token)",
                   is_id(id) ? id : "its id is none");
}

static int read_record(struct nk_token_record *out, json_t **json, struct nk_bytes value,
                       const char *id, struct nk_error *err)
{
    json_t *j = json_loadb((const char *)value.data, value.size, JSON_REJECT_DUPLICATES, NULL);
    int64_t uses, uses_left;

    *out = (struct nk_token_record){ 0 };
    if (!j || !nk__json_number(j, "created", 0, INT64_MAX, &out->created_s) ||
        !nk__json_number(j, "expires", 0, INT64_MAX, &out->expires_s) ||
        !nk__json_number(j, "uses", 1, NK_TOKEN_USES_MAX, &uses) ||
        !nk__json_number(j, "left", 0, NK_TOKEN_USES_MAX, &uses_left) ||
        !json_is_array(json_object_get(j, "keys"))) {
        json_decref(j);
        return nk_fail(err, NK_E_DATA_LOSS, "store_damaged",
                       "the store's record of token %s cannot be read", id);
    }
    snprintf(out->id, sizeof out->id, "%s", id);
    out->uses = (int)uses;
    out->uses_left = (int)uses_left;
    out->revoked = json_is_true(json_object_get(j, "revoked"));
    *json = j;
    return 0;
}

/* Reads tokens/ID: *json is the caller's. */
static int get_record(nk_store *store, struct nk_token_record *out, json_t **json,
                      uint64_t *revision, const char *id, struct nk_error *err)
{
    struct nk_buf value = NK_BUF_INIT(NK_STORE_VALUE_BYTES_MAX);
    char key[32];
    int rc;

    *json = NULL;
    if (!is_id(id))
        return unknown(id, err);
    key_of(key, id);
    rc = nk_store_get(store, key, &value, revision, err);
    if (rc == NK_E_NOT_FOUND)
        rc = unknown(id, err);
    if (!rc)
        rc =
            read_record(out, json, (struct nk_bytes){ (uint8_t *)value.data, value.size }, id, err);
    nk_buf_release(&value);
    return rc;
}

/* expected: the revision that is replaced. */
static int swap_record(nk_store *store, const char *id, uint64_t expected, const json_t *json,
                       struct nk_error *err)
{
    char *text = json_dumps(json, JSON_COMPACT), key[32];
    int rc;

    if (!text)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    key_of(key, id);
    rc = nk_store_swap(store, key, expected, (struct nk_bytes){ (uint8_t *)text, strlen(text) }, 0,
                       NULL, err);
    free(text);
    return rc;
}

/* Makes room for one more: forgets tokens that expired long ago, and of those that are of no use
 * any more the oldest, where there are too many. What cannot be deleted is tried again later.
 *   EXHAUSTED  too_many_tokens */
static int sweep(nk_store *store, int64_t now_s, struct nk_error *err)
{
    struct nk_store_list list;
    size_t n = 0;
    int rc = nk_store_list(store, "tokens/", &list, err);

    if (rc)
        return rc;
    n = list.n;
    for (;;) {
        size_t oldest = list.n;
        int64_t created_s = INT64_MAX;

        for (size_t i = 0; i < list.n; i++) {
            struct nk_store_entry *e = &list.entries[i];
            struct nk_token_record r;
            json_t *json;

            if (!e->revision || read_record(&r, &json, e->value, strchr(e->key, '/') + 1, NULL))
                continue;
            json_decref(json);
            if (r.expires_s < now_s - FORGET_S) {
                nk_store_delete(store, e->key, e->revision, NULL);
                e->revision = 0; /* looked at */
                n--;
            } else if ((r.revoked || !r.uses_left || r.expires_s <= now_s) &&
                       r.created_s < created_s) {
                created_s = r.created_s;
                oldest = i;
            }
        }
        if (n < NK_TOKEN_RECORDS_MAX || oldest == list.n)
            break;
        nk_store_delete(store, list.entries[oldest].key, list.entries[oldest].revision, NULL);
        list.entries[oldest].revision = 0;
        n--;
    }
    nk_store_list_release(&list);
    if (n >= NK_TOKEN_RECORDS_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "too_many_tokens",
                       "there are %zu join tokens that can be used, and %d are the most; nakshatra "
                       "token list shows them, token revoke ends one",
                       n, NK_TOKEN_RECORDS_MAX);
    return 0;
}

static int make_record(nk_store *store, const struct nk_token *t, int64_t now_s, int uses,
                       struct nk_error *err)
{
    uint8_t hash[HASH_BYTES];
    char hex[2 * HASH_BYTES + 1];
    json_t *json;
    int rc = hash_secret(hash, t->secret, err);

    if (rc)
        return rc;
    nk__hex(hex, hash, sizeof hash);
    json = json_pack("{s:s, s:I, s:I, s:i, s:i, s:b, s:[]}", "hash", hex, "created",
                     (json_int_t)now_s, "expires", (json_int_t)t->expires_s, "uses", uses, "left",
                     uses, "revoked", 0, "keys");
    rc = json ? swap_record(store, t->id, 0, json, err)
              : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    json_decref(json);
    return rc;
}

int nk_token_create(nk_store *store, struct nk_chance *chance, int64_t now_s,
                    const struct nk_token_opts *opts, struct nk_token *out, struct nk_error *err)
{
    int64_t ttl_s = opts->ttl_s ? opts->ttl_s : TTL_S;
    int uses = opts->uses ? opts->uses : 1, rc;
    struct nk_token t = { .port = opts->port, .expires_s = now_s + ttl_s };
    char text[NK_TOKEN_TEXT_SIZE];
    uint8_t id[ID_BYTES];

    if (ttl_s < 1 || ttl_s > NK_TOKEN_TTL_S_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_token", "a join token is good for 1 s to %d days",
                       NK_TOKEN_TTL_S_MAX / 86400);
    if (uses < 1 || uses > NK_TOKEN_USES_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_token", "a join token is good for 1 to %d machines",
                       NK_TOKEN_USES_MAX);
    if (opts->port < 1 || opts->port > 65535)
        return nk_fail(err, NK_E_INVALID, "bad_token", "%d is no port", opts->port);
    rc = sweep(store, now_s, err);
    if (rc)
        return rc;
    snprintf(t.cluster, sizeof t.cluster, "%s", opts->cluster);
    for (; t.n_addresses < opts->n_addresses && t.n_addresses < NK_TOKEN_ADDRESSES_MAX;
         t.n_addresses++)
        snprintf(t.addresses[t.n_addresses], sizeof t.addresses[0], "%s",
                 opts->addresses[t.n_addresses]);
    rc = nk_chance_fill(chance, t.secret, sizeof t.secret, err);
    do {
        if (!rc)
            rc = nk_chance_fill(chance, id, sizeof id, err);
        if (rc)
            break;
        nk__hex(t.id, id, sizeof id);
        rc = nk_token_encode(&t, text, err); /* before it is remembered: can it be told? */
        if (!rc)
            rc = make_record(store, &t, now_s, uses, err);
    } while (rc == NK_E_ABORTED); /* there is one with that id already */
    if (!rc)
        *out = t;
    OPENSSL_cleanse(&t, sizeof t);
    OPENSSL_cleanse(text, sizeof text);
    return rc;
}

int nk_token_list(nk_store *store, struct nk_token_record **out, size_t *n, struct nk_error *err)
{
    struct nk_store_list list;
    struct nk_token_record *records;
    int rc = nk_store_list(store, "tokens/", &list, err);

    *out = NULL;
    *n = 0;
    if (rc)
        return rc;
    records = calloc(list.n + 1, sizeof *records);
    if (!records)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    for (size_t i = 0; !rc && i < list.n; i++) {
        json_t *json = NULL;

        rc = read_record(&records[i], &json, list.entries[i].value,
                         strchr(list.entries[i].key, '/') + 1, err);
        json_decref(json);
    }
    if (rc) {
        free(records);
    } else {
        *out = records;
        *n = list.n;
    }
    nk_store_list_release(&list);
    return rc;
}

int nk_token_revoke(nk_store *store, const char *id, struct nk_error *err)
{
    struct nk_token_record r;
    uint64_t revision;
    json_t *json;
    int rc;

    do {
        rc = get_record(store, &r, &json, &revision, id, err);
        if (rc == NK_E_UNAUTHENTICATED)
            return nk_fail(err, NK_E_NOT_FOUND, "unknown_token",
                           "there is no join token with this id; `nakshatra token list` shows "
                           "those there are");
        if (rc)
            return rc;
        rc = r.revoked ? 0 : json_object_set_new(json, "revoked", json_true());
        rc = rc ? nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory")
                : swap_record(store, id, revision, json, err);
        json_decref(json);
    } while (rc == NK_E_ABORTED);
    return rc;
}

/* ---- a claim ---- */
static int check_proof(const json_t *json, const struct nk_token_claim *claim, struct nk_error *err)
{
    uint8_t hash[HASH_BYTES], proof[NK_TOKEN_PROOF_BYTES];
    char hex[2 * HASH_BYTES + 1];
    int rc;

    if (!nk__json_text(json, "hash", hex, sizeof hex) || !nk__unhex(hash, sizeof hash, hex))
        return nk_fail(err, NK_E_DATA_LOSS, "store_damaged",
                       "the store's record of token %s cannot be read", claim->id);
    rc = prove(hash, claim->message, proof, err);
    if (!rc && CRYPTO_memcmp(proof, claim->proof, sizeof proof) != 0)
        rc = unknown(claim->id, err);
    OPENSSL_cleanse(hash, sizeof hash);
    return rc;
}

/* The member for whose key a use was taken already; false: none was. */
static bool known_key(const json_t *json, const char *key_sha256, char member[NK_MEMBER_ID_SIZE])
{
    const json_t *row;
    size_t i;

    json_array_foreach(json_object_get(json, "keys"), i, row)
    {
        char key[NK_SHA256_HEX];

        if (nk__json_text(row, "key", key, sizeof key) && !strcmp(key, key_sha256) &&
            nk__json_text(row, "member", member, NK_MEMBER_ID_SIZE))
            return true;
    }
    return false;
}

static int take_use(nk_store *store, const struct nk_token_record *r, json_t *json,
                    uint64_t revision, const struct nk_token_claim *claim, struct nk_error *err)
{
    if (json_object_set_new(json, "left", json_integer(r->uses_left - 1)) ||
        json_array_append_new(
            json_object_get(json, "keys"),
            json_pack("{s:s, s:s}", "key", claim->key_sha256, "member", claim->member)))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    return swap_record(store, r->id, revision, json, err);
}

static int try_claim(nk_store *store, int64_t now_s, const struct nk_token_record *r, json_t *json,
                     uint64_t revision, const struct nk_token_claim *claim,
                     char member[NK_MEMBER_ID_SIZE], struct nk_error *err)
{
    char span[32];
    int rc = check_proof(json, claim, err);

    if (rc)
        return rc;
    if (r->revoked)
        return nk_fail(err, NK_E_DENIED, "revoked_token",
                       "the join token %s was revoked; ask for a new one (nakshatra token)", r->id);
    if (now_s >= r->expires_s) {
        nk__span_format(span, now_s - r->expires_s);
        return nk_fail(err, NK_E_DENIED, "expired_token",
                       "the join token %s expired %s ago; ask for a new one (nakshatra token)",
                       r->id, span);
    }
    if (known_key(json, claim->key_sha256, member))
        return 0;
    if (!r->uses_left)
        return nk_fail(err, NK_E_DENIED, "used_token",
                       "the join token %s was used already (it was good for %d); ask for a new one "
                       "(nakshatra token)",
                       r->id, r->uses);
    rc = take_use(store, r, json, revision, claim, err);
    if (!rc)
        snprintf(member, NK_MEMBER_ID_SIZE, "%s", claim->member);
    return rc;
}

int nk_token_consume(nk_store *store, int64_t now_s, const struct nk_token_claim *claim,
                     char member[NK_MEMBER_ID_SIZE], struct nk_error *err)
{
    struct nk_token_record r;
    uint64_t revision;
    json_t *json;
    int rc;

    do {
        rc = get_record(store, &r, &json, &revision, claim->id, err);
        if (!rc)
            rc = try_claim(store, now_s, &r, json, revision, claim, member, err);
        json_decref(json);
    } while (rc == NK_E_ABORTED); /* somebody else was faster: look again */
    return rc;
}
