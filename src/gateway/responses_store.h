/* Responses that are kept, so that the next request need not send again what was said
 * (previous_response_id), and so that they can be asked for by their id. In memory, for a time, and
 * no more bytes of them than a ceiling: the oldest go first.
 *
 * What was said is a chain: each response has its request's items, its own, and the response that
 * it followed. A response that goes, or is deleted, stays a part of the chains of those that
 * followed it.
 *
 * owner: the digest of an API key, or "". Others' responses are not there. Any thread. */
#ifndef NK_GATEWAY_RESPONSES_STORE_H
#define NK_GATEWAY_RESPONSES_STORE_H

#include <jansson.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/work.h"

typedef struct nk_responses nk_responses;

struct nk_responses_opts {
    struct nk_clock *clock;   /* borrowed until nk__responses_free */
    uint64_t ttl_ms;          /* from its beginning; 0: nothing is kept */
    size_t bytes_max;         /* of all together */
    size_t history_bytes_max; /* of what one request may go on from */
};
nk_responses *nk__responses_new(const struct nk_responses_opts *opts); /* NULL: no memory */
void nk__responses_free(nk_responses *s);
bool nk__responses_keeps(const nk_responses *s); /* anything at all */

/* A response has begun. previous: NULL for none. input: its request's items, a list; object: the
 * response as it is now; JSON texts, copied. Where the ceiling is too low for it nothing is kept.
 *   NOT_FOUND  previous_response_not_found
 *   EXHAUSTED  no_memory */
int nk__responses_begin(nk_responses *s, const char *owner, const char *id, const char *previous,
                        const char *input, const char *object, struct nk_error *err);
/* It is over: its last state, and the items that it has said (a list). Nothing happens where it
 * went meanwhile. */
void nk__responses_finish(nk_responses *s, const char *id, const char *object, const char *output);
/* It ends without having been finished: its status becomes that word; a request cannot follow it.
 * Nothing happens to one that is over. */
void nk__responses_end(nk_responses *s, const char *id, const char *status);

/* What one request takes out of the store. Its body may be short and name the same long item many
 * times, so what is parsed for it is counted. Zeroed: nothing yet, and no more is asked. */
struct nk_responses_use {
    size_t bytes;         /* that were taken so far, as JSON */
    struct nk_work *work; /* of the request; NULL: nothing is counted */
    /* Memory for JSON text that is about to be kept parsed; its error is passed on. NULL: there is
     * as much as is wanted. */
    int (*hold)(void *user, const char *json, size_t size, struct nk_error *err);
    void *user;
};

/* Appends all that was said up to this response to `into`, the oldest first.
 *   NOT_FOUND     previous_response_not_found
 *   PRECONDITION  response_not_finished
 *   EXHAUSTED     too_large: the request has more bytes than it may go on from
 *   EXHAUSTED     no_memory
 *   and the errors of nk_work_spend and of use->hold */
int nk__responses_history(nk_responses *s, const char *owner, const char *id,
                          struct nk_responses_use *use, json_t *into, struct nk_error *err);
/* One item that a response has said, by the item's id. *out owned by the caller. NOT_FOUND
 * item_not_found; and too_large and what follows it above. */
int nk__responses_item(nk_responses *s, const char *owner, const char *id,
                       struct nk_responses_use *use, json_t **out, struct nk_error *err);
/* Appends the response, or its request's items. NOT_FOUND response_not_found; EXHAUSTED. */
int nk__responses_get(nk_responses *s, const char *owner, const char *id, struct nk_buf *out,
                      struct nk_error *err);
int nk__responses_input(nk_responses *s, const char *owner, const char *id, struct nk_buf *out,
                        struct nk_error *err);
/* NOT_FOUND response_not_found. */
int nk__responses_delete(nk_responses *s, const char *owner, const char *id, struct nk_error *err);
/* NOT_FOUND response_not_found; PRECONDITION response_not_running: it is over. */
int nk__responses_running(nk_responses *s, const char *owner, const char *id, struct nk_error *err);
/* Lets those go whose time is over; so does each of the above. */
void nk__responses_expire(nk_responses *s);
size_t nk__responses_bytes(nk_responses *s); /* that all take together */

#endif
