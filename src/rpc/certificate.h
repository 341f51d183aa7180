/* X.509 certificates: read, held against a CA and a time, and looked at for their end.
 *
 * All peers of this layer are judged here and not by gRPC, whose own answer to a bad certificate is
 * "Socket closed" on one side and a line of OpenSSL's on the other: whoever sits before either
 * machine must be told which certificate it is and what is wrong with it. Thread-safe. */
#ifndef NK_RPC_CERTIFICATE_H
#define NK_RPC_CERTIFICATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <openssl/x509.h>

#include "base/error.h"

/* For PEM_read_...: never ask for a password on the terminal. */
int nk__no_password(char *buf, int size, int writing, void *user);

/* The first one of a PEM text; NULL: none can be read. The caller's. */
X509 *nk__certificate_parse(const char *pem);
/* All of a PEM text, to be trusted; the caller's.
 *   INVALID  reason  there is none */
int nk__certificate_store(X509_STORE **out, const char *pem, const char *reason,
                          struct nk_error *err);

/* The caller's reference; NULL: it is empty. */
X509 *nk__certificate_first_to_end(X509_STORE *store);

enum { NK__CERTIFICATE_NO_TIME = -1 }; /* whatever the time is */
struct nk__certificate_question {
    X509_STORE *store;
    const char *chain; /* PEM: what the other side showed; NULL: no more than its own */
    int purpose;       /* X509_PURPOSE_... */
    int64_t now_s;     /* since 1970, or NK__CERTIFICATE_NO_TIME */
    const char *ca;    /* what the CA is called in the sentence */
    /* Whatever is in the store is trusted, also an intermediate CA and a certificate by itself. */
    bool partial;
};
/* 0, or
 *   DENIED     wrong_ca, expired, not_yet_valid, bad_certificate
 *   EXHAUSTED  no_memory */
int nk__certificate_verify(const struct nk__certificate_question *q, X509 *x, struct nk_error *err);
/* Whether it names the host of "host:port" (a name, or an address).
 *   DENIED  wrong_host  with the names that it has */
int nk__certificate_check_host(X509 *x, const char *address, struct nk_error *err);

/* Its end, in seconds since 1970; 0: it has none that can be read. */
int64_t nk__certificate_end_s(X509 *x);
/* Whether whoever runs this machine should be told of its dates: it is not good yet, or no more, or
 * its end is near: less than 30 days away, and less than a sixth of its whole life. (A cluster's
 * own, of 7 days, is renewed when a third is left: that is then overdue.) *reason is "expired",
 * "not_yet_valid" or "ends_soon"; out: the sentence, which `what` begins. */
bool nk__certificate_warning(X509 *x, const char *what, int64_t now_s, const char **reason,
                             char *out, size_t size);

#endif
