/* The roster: who is a member of the cluster, and in which role. Who is not listed is refused by
 * everybody. A text that the coordinator writes, members keep in their identity folder (file
 * `members`), and rpc reads at every handshake:
 *
 *   nakshatra-members 1 REVISION
 *   0123456789abcdef gateway attic
 *   fedcba9876543210 member cellar
 *
 * REVISION only grows. ID is 16 hex digits, NAME is nk_member_name_is. */
#ifndef NK_CLUSTER_ROSTER_H
#define NK_CLUSTER_ROSTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "cluster/ca.h"

enum {
    NK_MEMBER_NAME_SIZE = 64, /* with its NUL */
    NK_ROSTER_MEMBERS_MAX = 10000,
};
#define NK_ROSTER_BYTES_MAX ((size_t)1 << 20)

struct nk_roster_member {
    char id[NK_MEMBER_ID_SIZE];
    bool gateway; /* else a member */
    char name[NK_MEMBER_NAME_SIZE];
};
struct nk_roster {
    uint64_t revision;
    struct nk_roster_member *members;
    size_t n, capacity;
};
/* {0} is an empty one. */
void nk_roster_release(struct nk_roster *r);
/* Adds one, or changes the one with that id.
 *   INVALID    bad_member, bad_name
 *   EXHAUSTED  too_large */
int nk_roster_put(struct nk_roster *r, const char *id, bool gateway, const char *name,
                  struct nk_error *err);
/* NULL: not listed. */
const struct nk_roster_member *nk_roster_find(const struct nk_roster *r, const char *id);

/* The text, appended to out. */
int nk_roster_format(const struct nk_roster *r, struct nk_buf *out, struct nk_error *err);
/* *out is the caller's (nk_roster_release), and empty on failure.
 *   INVALID  bad_roster  with the line */
int nk_roster_parse(struct nk_roster *out, struct nk_bytes text, struct nk_error *err);

/* 1 to 63 letters, digits, '-', '_' and '.', the first a letter or digit: what may stand in the
 * roster. */
bool nk_member_name_is(const char *name);
/* Makes a name of a host's name: its first label, other characters become '-'; "machine" when
 * nothing is left. */
void nk_member_name_make(char name[NK_MEMBER_NAME_SIZE], const char *host);

#endif
