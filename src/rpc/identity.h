/* Who a machine is in its cluster, and who else is: an identity folder, as it lies on the disk.
 *
 *   ca.pem                    whom to trust: the cluster's CA
 *   current -> 0001/          a link, swung when the certificate is renewed
 *   current/certificate.pem   this machine's, with the one URI spiffe://CLUSTER/member/ID in its
 *                             subject alternative names
 *   current/key.pem           its key; nobody else's to read
 *   members                   the roster
 *
 * CLUSTER is 32 and ID 16 hexadecimal digits in lower case. The roster is text: a first line
 * "nakshatra-members 1 REVISION", then a line "ID ROLE NAME" for each member; ROLE is "member" or
 * "gateway", NAME the rest of the line. Who is not listed is refused. Each file is replaced as a
 * whole (rename), never written in place. This reads the folder; who makes and renews it is
 * src/cluster.
 *
 * Whom we distrust: the roster comes from another machine. It has ceilings, every line must be of
 * that form, the last one must have its end, no ID may be there twice. A roster that cannot be read
 * lists nobody. Thread-safe. */
#ifndef NK_RPC_IDENTITY_H
#define NK_RPC_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

enum {
    NK_CLUSTER_ID_CHARS = 32,
    NK_MEMBER_ID_CHARS = 16,
    NK_MEMBER_NAME_BYTES_MAX = 255,
    NK_MEMBERS_MAX = 4096,
};

enum nk_role { NK_ROLE_NONE, NK_ROLE_MEMBER, NK_ROLE_GATEWAY };
const char *nk_role_text(enum nk_role role); /* "none", "member", "gateway" */

struct nk_member {
    char id[NK_MEMBER_ID_CHARS + 1];
    enum nk_role role;
    char name[NK_MEMBER_NAME_BYTES_MAX + 1]; /* as it stands in the file */
};

typedef struct nk_identity nk_identity;

/* Reads the folder and checks that it is whole: the certificate has its URI, is signed by the CA
 * and fits the key, whose file is for its owner alone. Its dates do not matter here, since it may
 * be renewed while it is in use; a roster that cannot be read is only logged. *out is owned by the
 * caller: nk_identity_unref().
 *   NOT_FOUND, DENIED  no_file          a file is not there, or cannot be opened
 *   DENIED             open_to_others   others may read the key
 *   INVALID            bad_identity     what is wrong, and with which file
 *   EXHAUSTED          no_memory */
int nk_identity_open(nk_identity **out, const char *folder, struct nk_error *err);
nk_identity *nk_identity_ref(nk_identity *i);
void nk_identity_unref(nk_identity *i); /* NULL is fine */

/* These stay as they are, whatever is renewed. */
const char *nk_identity_folder(const nk_identity *i);
const char *nk_identity_cluster(const nk_identity *i);
const char *nk_identity_id(const nk_identity *i); /* this machine's own */

/* Looks somebody up in the roster, which is read again first if its file is another one or has
 * another size or time than before. NK_ROLE_NONE: not listed, or nobody is. *out (NULL is fine) is
 * set unless it is NK_ROLE_NONE. */
enum nk_role nk_identity_find(nk_identity *i, const char *id, struct nk_member *out);
/* 0, or why nobody is let in: no_file or bad_members. *revision (NULL is fine) is the roster's. */
int nk_identity_roster(nk_identity *i, uint64_t *revision, struct nk_error *err);

/* "spiffe://CLUSTER/member/ID" taken apart. False: it is none. */
bool nk_member_uri_parse(const char *uri, char cluster[NK_CLUSTER_ID_CHARS + 1],
                         char id[NK_MEMBER_ID_CHARS + 1]);

/* A roster from text, for whoever writes or tests one: how many members it lists, or
 *   INVALID  bad_members  which line, and what is wrong with it */
int nk_roster_check(struct nk_bytes text, struct nk_error *err);

#endif
