/* One request for text, from its body to the last byte of its reply.
 *
 *   helper thread    parses, renders, tokenises, enters the queue
 *   admission's      starts each choice's generation when there is room
 *   chain's net      tokens and endings are appended; never blocks
 *   HTTP             asks what there is (nk__job_poll), takes bytes (nk__job_read)
 *   watch            cancels when the client goes
 *
 * Safety: the job's mutex guards all of it but what one thread alone uses (said at the fields).
 * `wake` is called without it. Streamed: tokens wait as events, at most output_bytes_max of them; a
 * reader that lets more pile up is cut off, and only its own generation ends. Not streamed: tokens
 * go into the reply at once. */
#ifndef NK_GATEWAY_JOB_H
#define NK_GATEWAY_JOB_H

#include <sys/types.h>

#include "gateway/gateway_int.h"
#include "gateway/request.h"

enum nk_job_state {
    NK_JOB_WAIT,   /* nothing to say yet */
    NK_JOB_ERROR,  /* it failed before its reply began: nk__job_error */
    NK_JOB_STREAM, /* its reply begins: nk__job_read */
    NK_JOB_WHOLE,  /* it is over: nk__job_read gives all of it */
};

/* body is taken, and *held, its share of g->bodies. key: the digest of its API key, or "".
 * wake(user): there is something new to poll or read, on any thread; drop(user): it is called no
 * more, and what it was called with may go. begin_ns: when the request came, by the gateway's
 * clock. NULL: no memory (the body is released, nothing is dropped, *held stays the caller's). */
nk_job *nk__job_new(nk_gateway *g, enum nk_api api, struct nk_buf *body, size_t *held,
                    const char *key, uint64_t begin_ns, void (*wake)(void *user),
                    void (*drop)(void *user), void *user);
void nk__job_ref(nk_job *j);
void nk__job_unref(nk_job *j);
/* Starts the work; `wake` is called until nk__job_end. */
void nk__job_start(nk_job *j);
/* The reply is over, or given up: what still runs is cancelled, and wake is called no more. */
void nk__job_end(nk_job *j);

enum nk_job_state nk__job_poll(nk_job *j);
/* Why it failed, and the field to blame ("": none). */
void nk__job_error(nk_job *j, struct nk_error *err, char param[128]);
/* The reply's media type; after poll said STREAM or WHOLE, or when a reply must begin early. */
const char *nk__job_type(nk_job *j);
/* Bytes of the reply: > 0 so many; 0: nothing now, wait for wake; -1: the end; -2: the reply is cut
 * off. */
ssize_t nk__job_read(nk_job *j, char *out, size_t max);
/* Asks for bytes in the stream that do not matter: a comment (server-sent events) or white space.
 * Any thread; wakes. */
void nk__job_want_keepalive(nk_job *j);
/* Were they asked for? Then they are written with the next read, also when the reply did not begin
 * yet. */
bool nk__job_take_keepalive(nk_job *j);
/* Ends it. CANCELLED: nobody reads the rest; else the error is told. Any thread. */
void nk__job_cancel(nk_job *j, int code, const char *reason, const char *msg);
/* The same, because the gateway shuts down. */
void nk__job_shut_down(nk_job *j);
/* The request's identifier of its end user, quoted for the log; none: "\"\"". Returns out. */
const char *nk__job_user(nk_job *j, char *out, size_t size);
const char *nk__job_id(const nk_job *j);
/* The fields of the request that were taken without effect, for the header that says so; "": none.
 * After poll said STREAM or WHOLE, or as nk__job_type. */
const char *nk__job_ignored(nk_job *j);
/* Were the tools explained to the model instead of given to its template? After poll said STREAM or
 * WHOLE. */
bool nk__job_generic_tools(nk_job *j);
/* Was cut off because its reader was too slow: the connection is to be shut down. */
bool nk__job_overflowed(nk_job *j);

/* ---- all of a gateway [any thread] ---- */

/* For /cluster. */
struct nk_job_info {
    char id[40];
    const char *route;
    const char *state; /* "waiting", "running"; "recovering": a choice waits for a chain to go on */
    double age_s, waited_s, tokens_per_second;
    int n_prompt, n_generated;
};
/* Those that generate, the oldest first. Returns how many were written. */
int nk__jobs_info(nk_gateway *g, struct nk_job_info *out, int n_max);
/* Ends the response with this id, of this key, if it is being computed: who reads it is told. */
void nk__jobs_cancel_response(nk_gateway *g, const char *id, const char *key);
/* Every second: streams that were silent for long get a keepalive. */
void nk__jobs_tick(nk_gateway *g);
/* The gateway shuts down: ends all that there are. */
void nk__jobs_cancel(nk_gateway *g);

#endif
