#include "rpc/certificate.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "rpc/rpc.h"
enum {
    /* What OpenSSL asks of keys and signatures at its level 2: 112 bits. */
    AUTH_LEVEL = 2,
    SOON_S = 30 * 24 * 3600,
    SOON_PART = 6,
};

int nk__no_password(char *buf, int size, int writing, void *user)
{
    (void)buf;
    (void)size;
    (void)writing;
    (void)user;
    return -1;
}

X509 *nk__certificate_parse(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *x = bio ? PEM_read_bio_X509(bio, NULL, nk__no_password, NULL) : NULL;

    BIO_free(bio);
    ERR_clear_error();
    return x;
}

int nk__certificate_store(X509_STORE **out, const char *pem, const char *reason,
                          struct nk_error *err)
{
    X509_STORE *store = X509_STORE_new();
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *x;
    int n = 0;

    *out = NULL;
    while (store && bio && (x = PEM_read_bio_X509(bio, NULL, nk__no_password, NULL))) {
        n += X509_STORE_add_cert(store, x) == 1;
        X509_free(x);
    }
    BIO_free(bio);
    ERR_clear_error();
    if (!n) {
        X509_STORE_free(store);
        return nk_fail(err, NK_E_INVALID, reason, "no PEM certificate can be read");
    }
    *out = store;
    return 0;
}

X509 *nk__certificate_first_to_end(X509_STORE *store)
{
    STACK_OF(X509) *all = X509_STORE_get1_all_certs(store);
    X509 *first = NULL;

    for (int i = 0; i < sk_X509_num(all); i++) {
        X509 *x = sk_X509_value(all, i);

        if (!first || nk__certificate_end_s(x) < nk__certificate_end_s(first))
            first = x;
    }
    if (first)
        X509_up_ref(first);
    sk_X509_pop_free(all, X509_free);
    return first;
}

/* ---- dates ---- */

enum { DATE_CHARS = 32 };

static void date_format(char out[DATE_CHARS], const ASN1_TIME *t)
{
    struct tm tm;

    if (ASN1_TIME_to_tm(t, &tm) != 1 || !strftime(out, DATE_CHARS, "%Y-%m-%dT%H:%M:%SZ", &tm))
        snprintf(out, DATE_CHARS, "an unknown time");
}

static void now_format(char out[DATE_CHARS], int64_t now_s)
{
    time_t t = (time_t)now_s;
    struct tm tm;

    if (!gmtime_r(&t, &tm) || !strftime(out, DATE_CHARS, "%Y-%m-%dT%H:%M:%SZ", &tm))
        snprintf(out, DATE_CHARS, "an unknown time");
}

static int64_t seconds(const ASN1_TIME *t)
{
    struct tm tm;

    return ASN1_TIME_to_tm(t, &tm) == 1 ? (int64_t)timegm(&tm) : 0;
}

int64_t nk__certificate_end_s(X509 *x)
{
    return seconds(X509_get0_notAfter(x));
}

bool nk__certificate_warning(X509 *x, const char *what, int64_t now_s, const char **reason,
                             char *out, size_t size)
{
    int64_t begin_s = seconds(X509_get0_notBefore(x)), end_s = nk__certificate_end_s(x);
    int64_t left_s = end_s - now_s;
    char date[DATE_CHARS], now[DATE_CHARS];

    now_format(now, now_s);
    date_format(date, X509_get0_notAfter(x));
    if (left_s <= 0) {
        *reason = "expired";
        snprintf(out, size, "%s was good until %s, and this machine's clock says %s", what, date,
                 now);
    } else if (begin_s > now_s) {
        *reason = "not_yet_valid";
        date_format(date, X509_get0_notBefore(x));
        snprintf(out, size, "%s is good from %s on, and this machine's clock says %s", what, date,
                 now);
    } else if (left_s < SOON_S && left_s < (end_s - begin_s) / SOON_PART) {
        *reason = "ends_soon";
        snprintf(out, size, "%s is good until %s only: %lld %s from now", what, date,
                 (long long)(left_s >= 2 * 86400 ? left_s / 86400 : left_s / 3600),
                 left_s >= 2 * 86400 ? "days" : "hours");
    } else {
        return false;
    }
    return true;
}

/* ---- the judgement ---- */

static STACK_OF(X509) * read_chain(const char *pem)
{
    STACK_OF(X509) *chain = sk_X509_new_null();
    BIO *bio = BIO_new_mem_buf(pem, -1);
    X509 *x;

    while (chain && bio && (x = PEM_read_bio_X509(bio, NULL, nk__no_password, NULL)))
        if (!sk_X509_push(chain, x))
            X509_free(x);
    BIO_free(bio);
    return chain;
}

static int refusal(int e, X509 *x, const struct nk__certificate_question *q, struct nk_error *err)
{
    char date[DATE_CHARS], now[DATE_CHARS];

    now_format(now, q->now_s);
    switch (e) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        date_format(date, X509_get0_notAfter(x));
        return nk_fail(err, NK_E_DENIED, "expired",
                       "the certificate was good until %s, and this machine's clock says %s", date,
                       now);
    case X509_V_ERR_CERT_NOT_YET_VALID:
        date_format(date, X509_get0_notBefore(x));
        return nk_fail(err, NK_E_DENIED, "not_yet_valid",
                       "the certificate is good from %s on, and this machine's clock says %s: one "
                       "of two clocks is wrong",
                       date, now);
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return nk_fail(err, NK_E_DENIED, "wrong_ca", "the certificate is not of %s", q->ca);
    default:
        return nk_fail(err, NK_E_DENIED, "bad_certificate", "the certificate is not taken: %s",
                       X509_verify_cert_error_string(e));
    }
}

int nk__certificate_verify(const struct nk__certificate_question *q, X509 *x, struct nk_error *err)
{
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    STACK_OF(X509) *chain = q->chain ? read_chain(q->chain) : NULL;
    X509_VERIFY_PARAM *param;
    int rc = 0;

    if (!ctx || X509_STORE_CTX_init(ctx, q->store, x, chain) != 1 ||
        X509_STORE_CTX_set_purpose(ctx, q->purpose) != 1) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory to verify a certificate");
        goto out;
    }
    param = X509_STORE_CTX_get0_param(ctx);
    if (q->now_s == NK__CERTIFICATE_NO_TIME)
        X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_NO_CHECK_TIME);
    else
        X509_VERIFY_PARAM_set_time(param, (time_t)q->now_s);
    if (q->partial)
        X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_PARTIAL_CHAIN);
    X509_VERIFY_PARAM_set_auth_level(param, AUTH_LEVEL);
    if (X509_verify_cert(ctx) != 1) {
        X509 *which = X509_STORE_CTX_get_current_cert(ctx);

        rc = refusal(X509_STORE_CTX_get_error(ctx), which ? which : x, q, err);
        if (which && X509_cmp(which, x) != 0 && strcmp(err ? err->reason : "", "wrong_ca") != 0)
            nk_wrap(rc, err, "the CA that signed it");
    }
out:
    X509_STORE_CTX_free(ctx);
    sk_X509_pop_free(chain, X509_free);
    ERR_clear_error();
    return rc;
}

/* "DNS:attic, IP Address:192.0.2.7", cut where there is no more room. */
static void names_format(char *out, int size, GENERAL_NAMES *names)
{
    BIO *bio = BIO_new(BIO_s_mem());
    int n = 0;

    for (int i = 0; bio && i < sk_GENERAL_NAME_num(names); i++) {
        BIO_puts(bio, i ? ", " : "");
        GENERAL_NAME_print(bio, sk_GENERAL_NAME_value(names, i));
    }
    if (bio)
        n = BIO_read(bio, out, size - 1);
    out[n > 0 ? n : 0] = '\0';
    BIO_free(bio);
}

int nk__certificate_check_host(X509 *x, const char *address, struct nk_error *err)
{
    const char *colon = strrchr(address, ':');
    size_t size = colon ? (size_t)(colon - address) : strlen(address);
    char host[256], has[200], common[256];
    GENERAL_NAMES *names;
    bool good;

    if (size >= 2 && address[0] == '[' && address[size - 1] == ']') {
        address++;
        size -= 2;
    }
    snprintf(host, sizeof host, "%.*s", (int)size, address);
    good = X509_check_ip_asc(x, host, 0) == 1 || X509_check_host(x, host, 0, 0, NULL) == 1;
    names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
    if (X509_NAME_get_text_by_NID(X509_get_subject_name(x), NID_commonName, common, sizeof common) <
        0)
        common[0] = '\0';
    /* As gRPC has it: without alternative names the common name counts, for addresses too. */
    if (!good && !names)
        good = !strcmp(common, host);
    if (names)
        names_format(has, sizeof has, names);
    else
        snprintf(has, sizeof has, "CN:%.190s", common);
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    for (char *p = has; *p; p++) /* the other side wrote them */
        if ((unsigned char)*p < 0x20 || (unsigned char)*p >= 0x7f)
            *p = '?';
    if (good)
        return 0;
    return nk_fail(err, NK_E_DENIED, "wrong_host", "the certificate is not for %s, but for %s",
                   host, has[0] ? has : "nobody");
}

/* ---- PEM texts ---- */

int64_t nk_certificate_end_s(const char *pem)
{
    X509 *x = nk__certificate_parse(pem);
    int64_t end_s = x ? nk__certificate_end_s(x) : 0;

    X509_free(x);
    return end_s;
}

bool nk_certificate_warning(const char *pem, const char *what, int64_t now_s, char *out,
                            size_t size)
{
    X509 *x = nk__certificate_parse(pem);
    const char *reason;
    bool is_due = x && nk__certificate_warning(x, what, now_s, &reason, out, size);

    X509_free(x);
    return is_due;
}
