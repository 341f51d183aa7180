/* Within the layer: what a source is, what a server's head says. */
#ifndef NK_HUB_HUB_INT_H
#define NK_HUB_HUB_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/sha256.h"

enum {
    NK__HUB_URL_MAX = 4096,
    NK__HUB_NAME_MAX = 160, /* what is appended must fit a file name of 255, too */
    NK__HUB_SHARDS_MAX = 1024,
};

/* ---- sources (source.c) ---- */

/* One file of a source. */
struct nk__hub_source {
    char url[NK__HUB_URL_MAX];
    char shown[256];                 /* the same for people: no query, and not all of a long one */
    char host[128];                  /* of its folder: "huggingface.co", "127.0.0.1_8443" */
    char key[17];                    /* of its folder */
    char name[NK__HUB_NAME_MAX + 1]; /* of its file: letters, digits, "._+-" */
    bool hub;                        /* it is the hub's: its token is for it */
    size_t revision_at;              /* of a hub's: where in url REVISION is, escaped */
    int shard, n_shards;             /* 1 of 1 where the name says nothing else */
};

/* endpoint: the hub's address (no slash at its end). Shard 1 of the source, whichever was given.
 * INVALID bad_source. */
int nk__hub_source_parse(struct nk__hub_source *out, const char *text, const char *endpoint,
                         struct nk_error *err);
/* Makes it another shard of the same, 1 to n_shards. */
void nk__hub_source_shard(struct nk__hub_source *s, int shard);
/* A hub's: its url asks for this commit (40 hex digits) from now on, whatever becomes of the
 * branch. Where it lies stays. */
void nk__hub_source_pin(struct nk__hub_source *s, const char *commit);
/* $HF_ENDPOINT, or huggingface.co. INVALID bad_source. */
int nk__hub_endpoint(char out[512], struct nk_error *err);
/* Scheme, host and port are the same. False if one of them is no URL. */
bool nk__hub_same_origin(const char *a, const char *b);
/* May a source at `from` lead there? To https; from this machine's http also to its http. */
bool nk__hub_may_redirect(const char *from, const char *to);
/* For people: without query, user and password, controls shown, not too long. */
const char *nk__hub_shown(char *out, size_t size, const char *url);

/* ---- what a server says before the body (head.c) ---- */

struct nk__hub_head {
    int status;     /* 0: nothing yet */
    int64_t length; /* of this body; -1: it does not say */
    /* Content-Range: bytes begin-end/total; each -1 where it says none. */
    int64_t range_begin, range_end, range_total;
    char etag[256];  /* with its quotes; "" when none, or nothing that may be sent back */
    char commit[41]; /* the hub's: of the repository, 40 hex digits; "" none */
    /* The hub's, of what it redirects to: */
    char linked_etag[256];
    int64_t linked_size;   /* -1 */
    int64_t retry_after_s; /* -1; a date is none */
    bool html;             /* Content-Type says so */
};

void nk__hub_head_init(struct nk__hub_head *h);
/* One line of it, with its line end or not. A status line begins a new head. */
void nk__hub_head_add(struct nk__hub_head *h, const char *line, size_t size);
/* Strong: equal tags mean equal bytes (RFC 9110, 8.8.1). */
bool nk__hub_etag_is_strong(const char *etag);
/* The SHA-256 that the hub's tag of a large file is; "" where it is another kind of tag. */
void nk__hub_etag_sha256(char out[NK_SHA256_HEX], const char *linked_etag);

#endif
