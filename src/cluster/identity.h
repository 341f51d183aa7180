/* What a machine keeps on its disk of who it is: state folders, identity folders, joined.json.
 *
 * An identity folder (0700):
 *
 *   current -> 0001/              a link, swung in one step on each renewal
 *   current/ca.pem                whom to trust
 *   current/certificate.pem       own certificate
 *   current/key.pem               its key, 0600
 *   ca.pem -> current/ca.pem      where others look for it
 *   members                       the roster (roster.h), replaced in one step
 *
 * All three files change together or not at all: they are written into a new folder, and then one
 * link is swung. gRPC's file watcher would otherwise read a key that does not fit its certificate.
 * What an interrupted write has left behind is removed by the next one. One writer at a time. */
#ifndef NK_CLUSTER_IDENTITY_H
#define NK_CLUSTER_IDENTITY_H

#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "cluster/ca.h"
#include "cluster/roster.h"
#include "cluster/token.h"

/* Where state is kept: `state` (--state DIR) if given, else $XDG_STATE_HOME/nakshatra, else
 * ~/.local/state/nakshatra; followed by "/sub" where sub is not NULL. Made if missing, 0700. *path
 * is the caller's: free().
 *   PRECONDITION  no_home
 *   and nk_dir_make's */
int nk_state_dir(char **path, const char *state, const char *sub, struct nk_error *err);

/* Writes a file that only its owner may read (0600), in one step. */
int nk_secret_write(const char *path, struct nk_bytes text, struct nk_error *err);

/* Writes ca, certificate and key (PEM) into the identity folder dir, made if missing, after having
 * looked whether they fit together. Whoever reads the folder at any moment, or after a power cut,
 * finds the old three or the new three.
 *   INVALID  bad_certificate, bad_key
 *   UNAUTHENTICATED wrong_cluster  the certificate is not of that CA
 *   and those of writing files */
int nk_identity_write(const char *dir, struct nk_bytes ca, struct nk_bytes certificate,
                      struct nk_bytes key, struct nk_error *err);

struct nk_identity_files {
    struct nk_certificate about;
    struct nk_buf ca, certificate, key; /* PEM */
};
/* The identity in a folder; *out is the caller's: nk_identity_release(). On failure it is empty.
 * Whether it has expired is not looked at.
 *   NOT_FOUND  no_identity   there is none (yet)
 *   DATA_LOSS  bad_identity  it is damaged: the file, and what is wrong with it */
int nk_identity_read(struct nk_identity_files *out, const char *dir, struct nk_error *err);
void nk_identity_release(struct nk_identity_files *id);
/* Forgets who this machine was: the whole folder goes. Harmless where there is none. */
int nk_identity_remove(const char *dir, struct nk_error *err);

/* The roster of an identity folder, written in one step, and read.
 *   NOT_FOUND  no_file
 *   INVALID    bad_roster */
int nk_members_write(const char *dir, const struct nk_roster *r, struct nk_error *err);
int nk_members_read(struct nk_roster *out, const char *dir, struct nk_error *err);

/* joined.json: where a member finds its cluster again. */
struct nk_joined {
    char cluster[NK_CA_CLUSTER_SIZE];
    char member[NK_MEMBER_ID_SIZE];
    char name[NK_MEMBER_NAME_SIZE];
    int port;           /* the coordinator's (gRPC) */
    int enrolment_port; /* for renewals */
    int n_addresses;
    char addresses[NK_TOKEN_ADDRESSES_MAX][46]; /* the one that answered last comes first */
};
int nk_joined_write(const char *path, const struct nk_joined *j, struct nk_error *err);
/*   NOT_FOUND  no_file
 *   DATA_LOSS  bad_joined  with what is wrong */
int nk_joined_read(struct nk_joined *out, const char *path, struct nk_error *err);

#endif
