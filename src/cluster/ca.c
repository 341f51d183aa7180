#include "cluster/ca.h"

#include <errno.h>
#include <openssl/bio.h>
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "cluster/cluster_int.h"
#include "cluster/identity.h"

/* A CA's begin is fixed, so that a machine whose clock is behind believes in it all the same. */
#define CA_BEGIN_S    1577836800LL /* 2020-01-01 */
#define CLOCK_MIN_S   1672531200LL /* 2023-01-01: a clock before it was never set */
#define CA_LIFETIME_S (20 * 31556952LL)

struct nk_ca {
    EVP_PKEY *key;
    X509 *x;
    char cluster[NK_CA_CLUSTER_SIZE];
    struct nk_buf pem;
};

/* ---- small things ---- */
const char *nk__ssl_reason(void)
{
    unsigned long code = ERR_peek_last_error();
    const char *text = code ? ERR_reason_error_string(code) : NULL;

    ERR_clear_error();
    return text ? text : "no reason given";
}

void nk__hex(char *out, const uint8_t *bytes, size_t size)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < size; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * size] = '\0';
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool nk__unhex(uint8_t *out, size_t size, const char *hex)
{
    if (strnlen(hex, 2 * size + 1) != 2 * size)
        return false;
    for (size_t i = 0; i < size; i++) {
        int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

void nk__forget(struct nk_buf *b)
{
    if (b->data)
        explicit_bzero(b->data, b->capacity);
    nk_buf_release(b);
}

bool nk_member_id_is(const char *text)
{
    uint8_t bytes[8];

    return nk__unhex(bytes, sizeof bytes, text);
}

int nk_member_id_make(char id[NK_MEMBER_ID_SIZE], struct nk_chance *chance, struct nk_error *err)
{
    uint8_t bytes[8];
    int rc = nk_chance_fill(chance, bytes, sizeof bytes, err);

    if (!rc)
        nk__hex(id, bytes, sizeof bytes);
    return rc;
}

static int failed(struct nk_error *err, const char *what)
{
    return nk_fail(err, NK_E_INTERNAL, "crypto_failed", "%s: %s", what, nk__ssl_reason());
}

/* ---- PEM ---- */
static int no_passphrase(char *buf, int size, int writing, void *arg)
{
    (void)buf, (void)size, (void)writing, (void)arg;
    return -1;
}

/* NULL: too large, or no memory. */
static BIO *open_pem(struct nk_bytes pem)
{
    return pem.size && pem.size <= NK_PEM_BYTES_MAX ? BIO_new_mem_buf(pem.data, (int)pem.size)
                                                    : NULL;
}

/* Takes bio: what was written to it is appended to out, if ok. */
static int close_pem(BIO *bio, bool ok, struct nk_buf *out, struct nk_error *err)
{
    char *data = NULL;
    long size;
    int rc = 0;

    if (!ok || (size = BIO_get_mem_data(bio, &data)) <= 0)
        rc = failed(err, "PEM cannot be written");
    else
        rc = nk_buf_add(out, data, (size_t)size, err);
    if (data && ok)
        explicit_bzero(data, (size_t)size); /* it may be a key */
    BIO_free(bio);
    return rc;
}

static bool is_p256(const EVP_PKEY *key)
{
    char name[32] = "", encoding[32] = "";

    return EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, name, sizeof name, NULL) &&
           !strcmp(name, SN_X9_62_prime256v1) &&
           EVP_PKEY_get_utf8_string_param(key, OSSL_PKEY_PARAM_EC_ENCODING, encoding,
                                          sizeof encoding, NULL) &&
           !strcmp(encoding, OSSL_PKEY_EC_ENCODING_GROUP);
}

EVP_PKEY *nk__key_read(struct nk_bytes pem, struct nk_error *err)
{
    BIO *bio = open_pem(pem);
    EVP_PKEY *key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;

    if (!key)
        nk_fail(err, NK_E_INVALID, "bad_key", "not a private key in PEM (%s)", nk__ssl_reason());
    if (key && !is_p256(key)) {
        EVP_PKEY_free(key);
        key = NULL;
        nk_fail(err, NK_E_INVALID, "bad_key", "the key is not one of the curve P-256");
    }
    BIO_free(bio);
    return key;
}

X509 *nk__certificate_read(struct nk_bytes pem, struct nk_error *err)
{
    BIO *bio = open_pem(pem);
    X509 *x = bio ? PEM_read_bio_X509(bio, NULL, no_passphrase, NULL) : NULL;

    if (!x)
        nk_fail(err, NK_E_INVALID, "bad_certificate", "not a certificate in PEM (%s)",
                nk__ssl_reason());
    BIO_free(bio);
    return x;
}

static X509_REQ *read_request(struct nk_bytes pem, struct nk_error *err)
{
    BIO *bio = open_pem(pem);
    X509_REQ *req = bio ? PEM_read_bio_X509_REQ(bio, NULL, no_passphrase, NULL) : NULL;
    EVP_PKEY *key = req ? X509_REQ_get0_pubkey(req) : NULL;
    const char *wrong = NULL;

    if (!req)
        wrong = "it is not PKCS#10 in PEM, or larger than 8 KiB";
    else if (!key || !is_p256(key))
        wrong = "its key is not one of the curve P-256";
    else if (X509_REQ_verify(req, key) != 1)
        wrong = "its signature is not by its key";
    if (wrong) {
        nk_fail(err, NK_E_INVALID, "bad_request", "not a good request for a certificate: %s",
                wrong);
        ERR_clear_error();
        X509_REQ_free(req);
        req = NULL;
    }
    BIO_free(bio);
    return req;
}

int nk__request_key(char hex[NK_SHA256_HEX], struct nk_bytes request, struct nk_error *err)
{
    X509_REQ *req = read_request(request, err);
    unsigned char *der = NULL;
    nk_sha256 *h;
    int size;

    if (!req)
        return NK_E_INVALID;
    size = i2d_X509_PUBKEY(X509_REQ_get_X509_PUBKEY(req), &der);
    h = size > 0 ? nk_sha256_new() : NULL;
    if (h) {
        nk_sha256_add(h, der, (size_t)size);
        nk_sha256_finish(h, hex);
    }
    OPENSSL_free(der);
    X509_REQ_free(req);
    return h ? 0 : failed(err, "the key of a request");
}

/* ---- keys and requests ---- */
int nk_key_make(struct nk_buf *out, struct nk_error *err)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    BIO *bio = key ? BIO_new(BIO_s_mem()) : NULL;
    int rc;

    if (!bio)
        rc = failed(err, "a new key");
    else
        rc = close_pem(bio, PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL), out,
                       err);
    EVP_PKEY_free(key);
    return rc;
}

int nk_request_make(struct nk_bytes key_pem, struct nk_buf *out, struct nk_error *err)
{
    EVP_PKEY *key = nk__key_read(key_pem, err);
    X509_REQ *req;
    BIO *bio;
    int rc;

    if (!key)
        return NK_E_INVALID;
    req = X509_REQ_new();
    bio = BIO_new(BIO_s_mem());
    if (!req || !bio || !X509_REQ_set_version(req, X509_REQ_VERSION_1) ||
        !X509_REQ_set_pubkey(req, key) || X509_REQ_sign(req, key, EVP_sha256()) <= 0) {
        rc = failed(err, "a request for a certificate");
        BIO_free(bio);
    } else {
        rc = close_pem(bio, PEM_write_bio_X509_REQ(bio, req), out, err);
    }
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    return rc;
}

int nk_key_sign(struct nk_bytes key_pem, struct nk_bytes message, struct nk_buf *signature,
                struct nk_error *err)
{
    EVP_PKEY *key = nk__key_read(key_pem, err);
    EVP_MD_CTX *ctx;
    unsigned char der[128];
    size_t size = sizeof der;
    int rc;

    if (!key)
        return NK_E_INVALID;
    ctx = EVP_MD_CTX_new();
    if (!ctx || EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key) != 1 ||
        EVP_DigestSign(ctx, der, &size, message.data, message.size) != 1)
        rc = failed(err, "a signature");
    else
        rc = nk_buf_add(signature, der, size, err);
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    return rc;
}

/* ---- certificates ---- */
bool nk__cluster_of(char cluster[NK_CA_CLUSTER_SIZE], X509 *ca)
{
    unsigned char *der = NULL, digest[EVP_MAX_MD_SIZE];
    int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(ca), &der);
    bool ok = size > 0 && EVP_Digest(der, (size_t)size, digest, NULL, EVP_sha256(), NULL) == 1;

    OPENSSL_free(der);
    if (ok)
        nk__hex(cluster, digest, (NK_CA_CLUSTER_SIZE - 1) / 2);
    return ok;
}

int nk_certificate_cluster(char cluster[NK_CA_CLUSTER_SIZE], struct nk_bytes ca,
                           struct nk_error *err)
{
    X509 *x = nk__certificate_read(ca, err);
    int rc = 0;

    if (!x)
        return NK_E_INVALID;
    if (!nk__cluster_of(cluster, x))
        rc = failed(err, "the key of a certificate");
    X509_free(x);
    return rc;
}

static int64_t unix_time(const ASN1_TIME *t)
{
    ASN1_TIME *epoch = ASN1_TIME_set(NULL, 0);
    int days = 0, seconds = 0;

    if (!epoch || !ASN1_TIME_diff(&days, &seconds, epoch, t))
        days = seconds = 0;
    ASN1_TIME_free(epoch);
    return (int64_t)days * 86400 + seconds;
}

/* "spiffe://CLUSTER/member/ID" or "spiffe://CLUSTER/enrolment" */
static bool read_uri(struct nk_certificate *out, const char *uri, size_t size)
{
    static const char scheme[] = "spiffe://", member[] = "/member/", enrolment[] = "/enrolment";
    enum { CLUSTER = NK_CA_CLUSTER_SIZE - 1, ID = NK_MEMBER_ID_SIZE - 1 };
    size_t head = sizeof scheme - 1 + CLUSTER;
    uint8_t bytes[CLUSTER / 2];

    if (size < head || memcmp(uri, scheme, sizeof scheme - 1) != 0)
        return false;
    memcpy(out->cluster, uri + sizeof scheme - 1, CLUSTER);
    out->cluster[CLUSTER] = '\0';
    uri += head;
    size -= head;
    if (!nk__unhex(bytes, sizeof bytes, out->cluster))
        return false;
    if (size == sizeof enrolment - 1 && !memcmp(uri, enrolment, size)) {
        out->member[0] = '\0';
        return true;
    }
    if (size != sizeof member - 1 + ID || memcmp(uri, member, sizeof member - 1) != 0)
        return false;
    memcpy(out->member, uri + sizeof member - 1, ID);
    out->member[ID] = '\0';
    return nk_member_id_is(out->member);
}

int nk__certificate_about(struct nk_certificate *out, X509 *x, struct nk_error *err)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
    const GENERAL_NAME *name =
        sk_GENERAL_NAME_num(names) == 1 ? sk_GENERAL_NAME_value(names, 0) : NULL;
    struct nk_certificate about = { 0 };
    bool ok = false;

    if (name && name->type == GEN_URI) {
        const ASN1_IA5STRING *uri = name->d.uniformResourceIdentifier;

        ok = read_uri(&about, (const char *)ASN1_STRING_get0_data(uri),
                      (size_t)ASN1_STRING_length(uri));
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    if (!ok)
        return nk_fail(err, NK_E_INVALID, "bad_certificate",
                       "the certificate names no member of a cluster (spiffe://CLUSTER/member/ID, "
                       "and no other name)");
    about.not_before_s = unix_time(X509_get0_notBefore(x));
    about.not_after_s = unix_time(X509_get0_notAfter(x));
    *out = about;
    return 0;
}

int nk_certificate_parse(struct nk_certificate *out, struct nk_bytes pem, struct nk_error *err)
{
    X509 *x = nk__certificate_read(pem, err);
    int rc;

    if (!x)
        return NK_E_INVALID;
    rc = nk__certificate_about(out, x, err);
    X509_free(x);
    return rc;
}

int nk__certificate_issued(struct nk_certificate *out, X509 *x, X509 *ca, struct nk_error *err)
{
    struct nk_certificate about;
    char cluster[NK_CA_CLUSTER_SIZE];
    int rc = nk__certificate_about(&about, x, err);

    if (rc)
        return rc;
    if (!nk__cluster_of(cluster, ca))
        return failed(err, "the key of a CA");
    if (strcmp(cluster, about.cluster) != 0)
        return nk_fail(err, NK_E_UNAUTHENTICATED, "wrong_cluster",
                       "the certificate is of cluster %s, not of %s", about.cluster, cluster);
    if (X509_check_ca(ca) != 1 || X509_verify(x, X509_get0_pubkey(ca)) != 1) {
        ERR_clear_error();
        return nk_fail(err, NK_E_INVALID, "bad_certificate",
                       "the certificate was not signed by the CA of cluster %s", cluster);
    }
    *out = about;
    return 0;
}

int nk_certificate_check(struct nk_certificate *out, struct nk_bytes pem, struct nk_bytes ca_pem,
                         struct nk_error *err)
{
    X509 *x = nk__certificate_read(pem, err), *ca = x ? nk__certificate_read(ca_pem, err) : NULL;
    int rc = ca ? nk__certificate_issued(out, x, ca, err) : NK_E_INVALID;

    X509_free(x);
    X509_free(ca);
    return rc;
}

int nk_certificate_verify(struct nk_bytes pem, struct nk_bytes message, struct nk_bytes signature,
                          struct nk_error *err)
{
    X509 *x = nk__certificate_read(pem, err);
    EVP_MD_CTX *ctx;
    int rc = 0;

    if (!x)
        return NK_E_INVALID;
    ctx = EVP_MD_CTX_new();
    if (!ctx || EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, X509_get0_pubkey(x)) != 1 ||
        EVP_DigestVerify(ctx, signature.data, signature.size, message.data, message.size) != 1) {
        ERR_clear_error();
        rc = nk_fail(err, NK_E_UNAUTHENTICATED, "bad_signature",
                     "the signature is not by the certificate's key");
    }
    EVP_MD_CTX_free(ctx);
    X509_free(x);
    return rc;
}

int nk_certificate_fits_key(struct nk_bytes pem, struct nk_bytes key_pem, struct nk_error *err)
{
    X509 *x = nk__certificate_read(pem, err);
    EVP_PKEY *key = x ? nk__key_read(key_pem, err) : NULL;
    int rc = key ? 0 : NK_E_INVALID;

    if (key && X509_check_private_key(x, key) != 1) {
        ERR_clear_error();
        rc = nk_fail(err, NK_E_INVALID, "bad_key", "the key is not the certificate's");
    }
    X509_free(x);
    EVP_PKEY_free(key);
    return rc;
}

int64_t nk_certificate_renew_s(const struct nk_certificate *c)
{
    return c->not_after_s - (c->not_after_s - c->not_before_s) / 3;
}

/* ---- issuing ---- */
static bool set_serial(X509 *x)
{
    BIGNUM *n = BN_new(); /* 127 bits at random, never negative */
    bool ok = n && BN_rand(n, 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) &&
              BN_to_ASN1_INTEGER(n, X509_get_serialNumber(x));

    BN_free(n);
    return ok;
}

static bool add_extension(X509 *x, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *e;
    bool ok;

    X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
    e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ok = e && X509_add_ext(x, e, -1);
    X509_EXTENSION_free(e);
    return ok;
}

static bool set_name(X509_NAME *name, const char *common)
{
    return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)common, -1,
                                      -1, 0);
}

static X509 *begin_certificate(EVP_PKEY *key, const char *common, int64_t begin_s, int64_t end_s)
{
    X509 *x = X509_new();

    if (x && X509_set_version(x, X509_VERSION_3) && set_serial(x) &&
        ASN1_TIME_set(X509_getm_notBefore(x), (time_t)begin_s) &&
        ASN1_TIME_set(X509_getm_notAfter(x), (time_t)end_s) && X509_set_pubkey(x, key) &&
        (!common || set_name(X509_get_subject_name(x), common)))
        return x;
    X509_free(x);
    return NULL;
}

static X509 *make_ca(EVP_PKEY *key, int64_t now_s)
{
    char cluster[NK_CA_CLUSTER_SIZE], common[64];
    X509 *x = begin_certificate(key, NULL, CA_BEGIN_S, now_s + CA_LIFETIME_S);
    X509_NAME *name = X509_NAME_new();
    bool ok = false;

    if (x && name && nk__cluster_of(cluster, x)) {
        snprintf(common, sizeof common, "Nakshatra cluster %s", cluster);
        ok = set_name(name, common) && X509_set_subject_name(x, name) &&
             X509_set_issuer_name(x, name) &&
             add_extension(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
             add_extension(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") &&
             add_extension(x, x, NID_subject_key_identifier, "hash") &&
             X509_sign(x, key, EVP_sha256()) > 0;
    }
    X509_NAME_free(name);
    if (!ok) {
        X509_free(x);
        x = NULL;
    }
    return x;
}

int nk_ca_issue(const nk_ca *ca, struct nk_bytes request, const char *member, int64_t now_s,
                int64_t lifetime_s, struct nk_buf *out, struct nk_error *err)
{
    X509_REQ *req;
    X509 *x;
    BIO *bio;
    char uri[96];
    bool ok;
    int rc;

    if (member && !nk_member_id_is(member))
        return nk_fail(err, NK_E_INVALID, "bad_member", "a member's id is 16 hex digits");
    req = read_request(request, err);
    if (!req)
        return NK_E_INVALID;
    if (member)
        snprintf(uri, sizeof uri, "URI:spiffe://%s/member/%s", ca->cluster, member);
    else
        snprintf(uri, sizeof uri, "URI:spiffe://%s/enrolment", ca->cluster);
    x = begin_certificate(X509_REQ_get0_pubkey(req), member ? member : "enrolment",
                          now_s - NK_CLOCK_TOLERANCE_S, now_s + lifetime_s);
    ok = x && X509_set_issuer_name(x, X509_get_subject_name(ca->x)) &&
         add_extension(x, ca->x, NID_basic_constraints, "critical,CA:FALSE") &&
         add_extension(x, ca->x, NID_key_usage, "critical,digitalSignature") &&
         add_extension(x, ca->x, NID_ext_key_usage, "serverAuth,clientAuth") &&
         add_extension(x, ca->x, NID_subject_alt_name, uri) &&
         add_extension(x, ca->x, NID_subject_key_identifier, "hash") &&
         add_extension(x, ca->x, NID_authority_key_identifier, "keyid") &&
         X509_sign(x, ca->key, EVP_sha256()) > 0;
    bio = ok ? BIO_new(BIO_s_mem()) : NULL;
    if (bio)
        rc = close_pem(bio, PEM_write_bio_X509(bio, x), out, err);
    else
        rc = failed(err, "a certificate");
    X509_free(x);
    X509_REQ_free(req);
    return rc;
}

/* ---- the CA's folder ---- */
static struct nk_bytes bytes_of(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)b->data, b->size };
}

static int damaged(const char *path, struct nk_error *err)
{
    struct nk_error why = *err;

    return nk_fail(err, NK_E_DATA_LOSS, "ca_damaged", "%s: %s; put back a copy of it", path,
                   why.msg);
}

static int load_key(nk_ca *ca, const char *path, struct nk_error *err)
{
    struct nk_buf pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    int rc = nk_file_read_secret(path, NK_PEM_BYTES_MAX, &pem, err);

    if (!rc) {
        ca->key = nk__key_read(bytes_of(&pem), err);
        if (!ca->key)
            rc = damaged(path, err);
    }
    nk__forget(&pem);
    return rc;
}

static int make_key(nk_ca *ca, const char *path, struct nk_error *err)
{
    struct nk_buf pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    int rc = nk_key_make(&pem, err);

    if (!rc)
        rc = nk_secret_write(path, bytes_of(&pem), err);
    if (!rc)
        rc = load_key(ca, path, err);
    nk__forget(&pem);
    return rc;
}

static int make_certificate(nk_ca *ca, const char *path, int64_t now_s, struct nk_error *err)
{
    BIO *bio;
    int rc;

    if (now_s < CLOCK_MIN_S)
        return nk_fail(err, NK_E_PRECONDITION, "clock_off",
                       "this machine's clock was never set (it says that it is before 2023), and "
                       "certificates go by it: set it first");
    ca->x = make_ca(ca->key, now_s);
    bio = ca->x ? BIO_new(BIO_s_mem()) : NULL;
    if (!bio)
        return failed(err, "a CA's certificate");
    rc = close_pem(bio, PEM_write_bio_X509(bio, ca->x), &ca->pem, err);
    return rc ? rc : nk_file_write(path, ca->pem.data, ca->pem.size, err);
}

/* ca.pem was read. */
static int load_certificate(nk_ca *ca, const char *path, struct nk_error *err)
{
    ca->x = nk__certificate_read(bytes_of(&ca->pem), err);
    if (!ca->x)
        return damaged(path, err);
    if (X509_check_ca(ca->x) != 1)
        return nk_fail(err, NK_E_DATA_LOSS, "ca_damaged",
                       "%s is a certificate, but not a CA's; put back a copy of it", path);
    if (X509_check_private_key(ca->x, ca->key) != 1) {
        ERR_clear_error();
        return nk_fail(err, NK_E_DATA_LOSS, "ca_damaged",
                       "%s is not the certificate of the key beside it (ca.key.pem); put back a "
                       "copy of the one that is wrong",
                       path);
    }
    return 0;
}

static int open_at(nk_ca *ca, const char *key_path, const char *path, int64_t now_s,
                   struct nk_error *err)
{
    struct nk_error key_err, ca_err;
    int key_rc = load_key(ca, key_path, &key_err);
    int ca_rc = nk_file_read(path, NK_PEM_BYTES_MAX, &ca->pem, &ca_err);

    if (key_rc && key_rc != NK_E_NOT_FOUND) {
        *err = key_err;
        return key_rc;
    }
    if (ca_rc && ca_rc != NK_E_NOT_FOUND) {
        *err = ca_err;
        return ca_rc;
    }
    if (key_rc && !ca_rc)
        return nk_fail(err, NK_E_DATA_LOSS, "ca_damaged",
                       "%s is there, but not its key, %s; put back a copy of it, or move the "
                       "folder away and begin a new cluster",
                       path, key_path);
    if (!key_rc && !ca_rc)
        return load_certificate(ca, path, err);
    if (now_s >= CLOCK_MIN_S && key_rc) {
        int rc = make_key(ca, key_path, err);

        if (rc)
            return rc;
    }
    return make_certificate(ca, path, now_s, err);
}

int nk_ca_open(nk_ca **out, const char *dir, int64_t now_s, struct nk_error *err)
{
    nk_ca *ca = calloc(1, sizeof *ca);
    char *path = NULL, *key_path = NULL;
    struct nk_error ignored;
    int rc;

    *out = NULL;
    if (!ca || asprintf(&path, "%s/ca.pem", dir) < 0 ||
        asprintf(&key_path, "%s/ca.key.pem", dir) < 0) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
        goto out;
    }
    nk_buf_init(&ca->pem, NK_PEM_BYTES_MAX);
    rc = nk__private_dir_make(dir, err);
    if (!rc)
        rc = open_at(ca, key_path, path, now_s, err ? err : &ignored);
    if (!rc && !nk__cluster_of(ca->cluster, ca->x))
        rc = failed(err, "the key of a CA");
    if (!rc) {
        *out = ca;
        ca = NULL;
    }
out:
    free(path);
    free(key_path);
    nk_ca_close(ca);
    return rc;
}

void nk_ca_close(nk_ca *ca)
{
    if (!ca)
        return;
    EVP_PKEY_free(ca->key);
    X509_free(ca->x);
    nk_buf_release(&ca->pem);
    free(ca);
}

const char *nk_ca_cluster(const nk_ca *ca)
{
    return ca->cluster;
}

const char *nk_ca_certificate(const nk_ca *ca)
{
    return nk_buf_str(&ca->pem);
}
