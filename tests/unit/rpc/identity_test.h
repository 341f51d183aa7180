/* For tests with identities: CAs, certificates with any names and dates, and identity folders,
 * made here and now. */
#ifndef NK_TESTS_IDENTITY_TEST_H
#define NK_TESTS_IDENTITY_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "base/file.h"
#include "rpc/identity.h"

#define CLUSTER_A "0123456789abcdef0123456789abcdef"
#define CLUSTER_B "fedcba9876543210fedcba9876543210"
#define ID_A      "00000000000000aa"
#define ID_B      "00000000000000bb"
#define ID_C      "00000000000000cc"

enum { DAY_S = 86400, FOLDER_MAX = 64, PATHS_MAX = 256 };

struct authority {
    EVP_PKEY *key;
    X509 *certificate;
};

static inline X509 *certificate_new(EVP_PKEY *key, const char *name, int64_t begin_s, int64_t end_s)
{
    static long serial;
    X509 *x = X509_new();
    X509_NAME *subject = X509_NAME_new();

    assert_non_null(x);
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), ++serial);
    ASN1_TIME_set(X509_getm_notBefore(x), begin_s);
    ASN1_TIME_set(X509_getm_notAfter(x), end_s);
    X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC, (const uint8_t *)name, -1, -1, 0);
    X509_set_subject_name(x, subject);
    X509_NAME_free(subject);
    X509_set_pubkey(x, key);
    return x;
}

static inline void certificate_extend(X509 *x, int nid, const char *value)
{
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, (char *)(uintptr_t)value);

    assert_non_null(e);
    X509_add_ext(x, e, -1);
    X509_EXTENSION_free(e);
}

static inline struct authority authority_make(int64_t now_s)
{
    struct authority a = { .key = EVP_EC_gen("P-256") };

    assert_non_null(a.key);
    a.certificate = certificate_new(a.key, "CA", now_s - DAY_S, now_s + 1000 * DAY_S);
    X509_set_issuer_name(a.certificate, X509_get_subject_name(a.certificate));
    certificate_extend(a.certificate, NID_basic_constraints, "critical,CA:TRUE");
    assert_int_not_equal(X509_sign(a.certificate, a.key, EVP_sha256()), 0);
    return a;
}

static inline void authority_release(struct authority *a)
{
    X509_free(a->certificate);
    EVP_PKEY_free(a->key);
}

/* names: of the subject, as OpenSSL writes them ("URI:spiffe://..."); NULL: none. */
static inline X509 *authority_sign(const struct authority *a, EVP_PKEY *key, const char *names,
                                   int64_t begin_s, int64_t end_s)
{
    X509 *x = certificate_new(key, "somebody", begin_s, end_s);

    X509_set_issuer_name(x, X509_get_subject_name(a->certificate));
    if (names)
        certificate_extend(x, NID_subject_alt_name, names);
    assert_int_not_equal(X509_sign(x, a->key, EVP_sha256()), 0);
    return x;
}

static inline void write_pem(const char *folder, const char *name, X509 *x, EVP_PKEY *key)
{
    char path[2 * PATHS_MAX];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = fopen(path, "w");
    assert_non_null(f);
    if (key) {
        assert_int_equal(fchmod(fileno(f), 0600), 0);
        assert_int_equal(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
    } else {
        assert_int_equal(PEM_write_X509(f, x), 1);
    }
    fclose(f);
}

/* The folder's certificate and key from now on: a new sub-folder, and the link swung to it. */
static inline void folder_renew(const char *folder, const struct authority *a, const char *names,
                                int64_t begin_s, int64_t end_s)
{
    static int number;
    char sub[64], path[PATHS_MAX], link[PATHS_MAX], current[PATHS_MAX];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = authority_sign(a, key, names, begin_s, end_s);

    snprintf(sub, sizeof sub, "%04d", ++number);
    snprintf(path, sizeof path, "%s/%s", folder, sub);
    snprintf(link, sizeof link, "%s/.current", folder);
    snprintf(current, sizeof current, "%s/current", folder);
    assert_int_equal(mkdir(path, 0700), 0);
    write_pem(path, "certificate.pem", x, NULL);
    write_pem(path, "key.pem", NULL, key);
    assert_int_equal(symlink(sub, link), 0);
    assert_int_equal(rename(link, current), 0);
    X509_free(x);
    EVP_PKEY_free(key);
}

static inline void folder_roster(const char *folder, const char *text)
{
    char path[PATHS_MAX];

    snprintf(path, sizeof path, "%s/members", folder);
    assert_int_equal(nk_file_write(path, text, strlen(text), NULL), 0);
}

/* A whole folder, good for a week. */
static inline void folder_make(char folder[FOLDER_MAX], const struct authority *a,
                               const char *names, const char *roster, int64_t now_s)
{
    snprintf(folder, FOLDER_MAX, "/tmp/nk-identity-XXXXXX");
    assert_non_null(mkdtemp(folder));
    write_pem(folder, "ca.pem", a->certificate, NULL);
    folder_renew(folder, a, names, now_s - 3600, now_s + 7 * DAY_S);
    if (roster)
        folder_roster(folder, roster);
}

static inline void folder_remove(const char *folder)
{
    char command[PATHS_MAX];

    if (folder[0]) {
        snprintf(command, sizeof command, "rm -rf '%s'", folder);
        if (system(command))
            print_error("%s was left\n", folder);
    }
}

#endif
