/* What the rest of this layer asks of an identity. Thread-safe. */
#ifndef NK_RPC_IDENTITY_INT_H
#define NK_RPC_IDENTITY_INT_H

#include <openssl/x509.h>

#include "rpc/identity.h"

/* The files that gRPC watches; borrowed as long as the identity. */
const char *nk__identity_ca_path(const nk_identity *i);
const char *nk__identity_certificate_path(const nk_identity *i);
const char *nk__identity_key_path(const nk_identity *i);

/* The roster is read again if it has changed; its number, which is another one after every reading.
 * False: it cannot be read. */
bool nk__identity_generation(nk_identity *i, uint64_t *generation);
/* Looks up in the roster as it was read last. */
enum nk_role nk__identity_role(nk_identity *i, const char *id);

/* Whether to let in the machine that has shown this certificate (and proven to have its key): the
 * cluster's CA, the time now_s (since 1970), its use as a client or a server, the cluster, the
 * roster. id is the member's, "" when it is refused.
 *   DENIED  no_certificate, wrong_ca, expired, not_yet_valid, bad_certificate, wrong_cluster,
 *           not_a_member, or the roster's error: a sentence that says who, what was found and what
 *           would be right */
int nk__identity_judge(nk_identity *i, const char *pem, bool is_client, int64_t now_s,
                       char id[NK_MEMBER_ID_CHARS + 1], struct nk_error *err);
/* This machine's own certificate as it is now, and the CA's; a reference for the caller. The store
 * is NULL where it cannot be read. */
X509 *nk__identity_own(nk_identity *i);
X509_STORE *nk__identity_store(nk_identity *i);

#endif
