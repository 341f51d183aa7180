/* The state of a cluster, for a terminal. */
#ifndef NK_CLI_CLUSTER_VIEW_H
#define NK_CLI_CLUSTER_VIEW_H

#include <stdio.h>

#include <jansson.h>

#include "base/error.h"

/* Asks for it (cli/ask.h's errors). *out is owned by the caller: json_decref(). */
int nk_cluster_view_get(const char *state, json_t **out, struct nk_error *err);
void nk_cluster_view_members(FILE *out, const json_t *j); /* a line each */
/* Members, plan, what is on its way, spares, links. */
void nk_cluster_view_print(FILE *out, const json_t *j);

#endif
