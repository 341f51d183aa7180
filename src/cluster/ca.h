/* A cluster's certificate authority, the certificates that it issues, and the requests for them.
 *
 * A cluster is one trust domain. Its id is the first 32 hex digits of SHA-256 over the CA's public
 * key (DER, SubjectPublicKeyInfo): 128 bits, which is what a join token carries. Every certificate
 * is for a P-256 key and names its holder in one URI:
 *
 *   spiffe://CLUSTER/member/ID   a member (or a gateway: the role is in the roster, not in here)
 *   spiffe://CLUSTER/enrolment   the enrolment endpoint, which only the CA's owner can be
 *
 * Time is handed in, as seconds since 1970. A certificate begins NK_CLOCK_TOLERANCE_S before it is
 * issued, because machines' clocks differ; whose clock is off by more than that is told so when it
 * joins (enrol.h), before TLS would refuse it with words that nobody understands. The CA's own
 * certificate has a fixed begin in the past and lives 20 years.
 *
 * Thread-safe where an nk_ca is only used, not opened or closed. */
#ifndef NK_CLUSTER_CA_H
#define NK_CLUSTER_CA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/chance.h"
#include "base/error.h"

enum {
    NK_CA_CLUSTER_SIZE = 33, /* a cluster id and a NUL */
    NK_MEMBER_ID_SIZE = 17,  /* a member id, 16 hex digits, and a NUL */
    NK_CLOCK_TOLERANCE_S = 300,
    NK_CERTIFICATE_LIFETIME_S = 7 * 86400,
    NK_CERTIFICATE_GRACE_S = 30 * 86400, /* expired for so long, it can still be renewed */
    NK_PEM_BYTES_MAX = 8192,             /* of a key, a request, a certificate */
};

typedef struct nk_ca nk_ca;

/* The CA in a folder: ca.pem and ca.key.pem (0600). Made there where neither is, the folder too
 * (0700); each file appears complete or not at all, the key first. Where only the key is there
 * (the machine stopped in between), the certificate is made from it: the cluster's id is the key's.
 * now_s is the time of day, for making one. *out is the caller's.
 *   DATA_LOSS     ca_damaged      a file is not what it should be, or the two do not fit: named
 *   DENIED        open_to_others  as nk_file_read_secret
 *   PRECONDITION  clock_off       this machine's clock is before 2023: no CA is made by it
 *   and those of writing files (base/file.h) */
int nk_ca_open(nk_ca **out, const char *dir, int64_t now_s, struct nk_error *err);
void nk_ca_close(nk_ca *ca);                    /* NULL is fine */
const char *nk_ca_cluster(const nk_ca *ca);     /* its id, 32 hex digits; borrowed */
const char *nk_ca_certificate(const nk_ca *ca); /* its certificate, PEM; borrowed */

/* Issues a certificate (PEM, appended to out) for a request of a stranger (PKCS#10, PEM): the key
 * is taken from it, nothing else. member: 16 hex digits; NULL: for the enrolment endpoint. Valid
 * from now_s - NK_CLOCK_TOLERANCE_S until now_s + lifetime_s.
 *   INVALID  bad_request  not a request, too large, its key not on P-256, its signature wrong
 *   INVALID  bad_member   not a member id */
int nk_ca_issue(const nk_ca *ca, struct nk_bytes request, const char *member, int64_t now_s,
                int64_t lifetime_s, struct nk_buf *out, struct nk_error *err);

/* ---- the other side: keys and requests ---- */
/* A new P-256 key (PEM, PKCS#8), appended to key. */
int nk_key_make(struct nk_buf *key, struct nk_error *err);
/* A request (PEM, PKCS#10) with a key, appended to request.
 *   INVALID  bad_key */
int nk_request_make(struct nk_bytes key, struct nk_buf *request, struct nk_error *err);
/* ECDSA (P-256, SHA-256, DER) over message by a key; appended to signature. */
int nk_key_sign(struct nk_bytes key, struct nk_bytes message, struct nk_buf *signature,
                struct nk_error *err);

/* ---- certificates ---- */
struct nk_certificate {
    char cluster[NK_CA_CLUSTER_SIZE];
    char member[NK_MEMBER_ID_SIZE]; /* "" in the enrolment endpoint's */
    int64_t not_before_s, not_after_s;
};
/* What a certificate (PEM) says; nothing is believed yet.
 *   INVALID  bad_certificate  not PEM of an X.509 certificate with exactly one such URI */
int nk_certificate_parse(struct nk_certificate *out, struct nk_bytes pem, struct nk_error *err);
/* The same, and: ca (PEM) is the CA of the cluster that it names, and has issued it. The time is
 * not looked at.
 *   INVALID          bad_certificate
 *   UNAUTHENTICATED  wrong_cluster  of another CA: both ids */
int nk_certificate_check(struct nk_certificate *out, struct nk_bytes pem, struct nk_bytes ca,
                         struct nk_error *err);
/* The id of the cluster whose CA's certificate this is.
 *   INVALID  bad_certificate */
int nk_certificate_cluster(char cluster[NK_CA_CLUSTER_SIZE], struct nk_bytes ca,
                           struct nk_error *err);
/* Is signature nk_key_sign's over message by the certificate's key?
 *   UNAUTHENTICATED  bad_signature */
int nk_certificate_verify(struct nk_bytes pem, struct nk_bytes message, struct nk_bytes signature,
                          struct nk_error *err);
/* Is the key (PEM) the certificate's?
 *   INVALID  bad_key */
int nk_certificate_fits_key(struct nk_bytes pem, struct nk_bytes key, struct nk_error *err);
/* From when on it should be renewed: a third of its life is left. */
int64_t nk_certificate_renew_s(const struct nk_certificate *c);

/* 16 hex digits at random. */
int nk_member_id_make(char id[NK_MEMBER_ID_SIZE], struct nk_chance *chance, struct nk_error *err);
bool nk_member_id_is(const char *text); /* 16 hex digits, lower case? */

#endif
