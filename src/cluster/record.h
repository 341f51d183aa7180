/* What the fleet keeps in the store: its members, and the plan in force with its epoch. As JSON, a
 * key each; what cannot be read is DATA_LOSS `bad_store`, naming the key. */
#ifndef NK_CLUSTER_RECORD_H
#define NK_CLUSTER_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "cluster/fleet.h"
#include "cluster/store.h"
#include "plan/plan.h"

struct nk_member_record {
    char id[NK_MEMBER_ID_SIZE], name[NK_MEMBER_NAME_SIZE];
    bool gateway, removed;
};
/* *revision: the store's, with it. */
int nk_record_put_member(nk_store *s, const struct nk_member_record *r, uint64_t *revision,
                         struct nk_error *err);
int nk_record_delete_member(nk_store *s, const char *id, struct nk_error *err);
/* All. *out is owned by the caller: free(). *revision: the store's. */
int nk_record_members(nk_store *s, struct nk_member_record **out, size_t *n, uint64_t *revision,
                      struct nk_error *err);

/* The plan of this epoch for the model of this id, in the place of the one before. stage_epochs: of
 * each stage, one chain after the other. */
int nk_record_put_plan(nk_store *s, const char *catalogue, uint64_t epoch,
                       const struct nk_plan *plan, const uint64_t *stage_epochs,
                       struct nk_error *err);
/* The last one: *epoch is 0 when there was never any; *out is NULL then, and where it was for
 * another model. *out and *stage_epochs are owned by the caller. */
int nk_record_plan(nk_store *s, const char *catalogue, uint64_t *epoch, struct nk_plan **out,
                   uint64_t **stage_epochs, struct nk_error *err);

#endif
