/* The gateway: an HTTP server in front of one or more chains of one model (replicas). It speaks
 * OpenAI's and Ollama's dialects, serves the page, metrics and the state of the cluster
 * (docs/api.md). The chains come, change and go while it serves: what is new goes to the set of
 * chains in force, what runs ends on the chain that it began on.
 *
 * Threads. One HTTP thread (libmicrohttpd over epoll) parses HTTP and writes replies; it never
 * computes anything long. Helper threads parse, render and tokenise requests. A watch thread sees
 * clients that went away. A monitor thread asks the workers how they are, only when somebody wants
 * to know. An admission thread starts generations when there is room. Handlers of generations run
 * on their chain's net thread and only append to the request's bounded queue. A reaper thread
 * closes chains that nobody uses any more. */
#ifndef NK_GATEWAY_GATEWAY_H
#define NK_GATEWAY_GATEWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/chance.h"
#include "base/clock.h"
#include "base/error.h"
#include "chain/chain.h"
#include "text/vocab.h"

enum { NK_GATEWAY_NAMES_MAX = 16, NK_GATEWAY_ORIGINS_MAX = 16, NK_GATEWAY_HOSTS_MAX = 16 };
enum { NK_GATEWAY_CHAINS_MAX = 32 };                                    /* replicas */
enum { NK_GATEWAY_LAST_WORDS_MS = 2000, NK_GATEWAY_GIVE_UP_MS = 3000 }; /* nk_gateway_stop's */

enum { NK_GATEWAY_HOLD_MS_MAX = 3600000 };

struct nk_gateway_limits {
    size_t body_bytes_max; /* of a request; 413 over it */
    size_t
        requests_bytes_max;  /* of all requests together, as they are read and parsed (budget.h) */
    size_t header_bytes_max; /* of a request's line and headers; at least 1,024 */
    /* What may wait for a slow reader before its generation is cancelled; at least 4,096. */
    size_t output_bytes_max;
    size_t reply_bytes_max; /* of a reply that is not streamed */
    int messages_max;       /* of a chat */
    int n_max;              /* choices of one request */
    int connections_max;    /* open at one time; a few more for probes */
    /* Of one address (door.h); 0: half of them. */
    int connections_per_address;
    int running_max;       /* generations at one time; 0: as many as the workers have sequences */
    int waiting_max;       /* generations that wait for a sequence; 429 over it */
    uint32_t waiting_ms;   /* a generation waits for so long; then 429 */
    uint32_t header_ms;    /* a new connection sends its first request's headers within this ... */
    uint32_t body_ms;      /* ... and each body within this; then 408 */
    uint32_t idle_ms;      /* a connection between requests, or a reader that reads nothing */
    uint32_t keepalive_ms; /* a stream that has nothing to say for so long sends a comment */
    /* A generation that lost a worker waits for so long for a chain to go on with; at most
     * NK_GATEWAY_HOLD_MS_MAX; 0: it fails, unless it can begin anew. */
    uint32_t hold_ms;
    /* A worker that does not answer a step for so long is given up; 0: 30,000 for the first one,
     * and between workers their own. */
    uint32_t stall_ms;
    /* A stored response is kept for so long (responses_store.h); 0: none is. */
    uint64_t responses_ms;
    size_t responses_bytes_max; /* and all of them together take no more */
};

/* Tools: in the chat template's form (where it has none that is understood, as GENERIC); explained
 * in the system's message; or refused. */
enum nk_gateway_tools {
    NK_GATEWAY_TOOLS_NATIVE,
    NK_GATEWAY_TOOLS_GENERIC,
    NK_GATEWAY_TOOLS_OFF,
};
/* Thinking, where a request says nothing of it: as the template does by itself, on, off. */
enum nk_gateway_reasoning {
    NK_GATEWAY_REASONING_AUTO,
    NK_GATEWAY_REASONING_ON,
    NK_GATEWAY_REASONING_OFF,
};

struct nk_gateway_opts {
    const char *listen; /* "127.0.0.1:8080", "[::1]:0"; port 0: a free one */
    /* The first chain, as by nk_gateway_set_chains with epoch 0: the gateway's own from when
     * nk_gateway_start has returned 0. NULL: it starts without any, and model_id and model_sha256
     * say what it will serve. */
    nk_chain *chain;
    const char *model_id, *model_sha256; /* else the chain's; NULL with a chain */
    const nk_vocab *vocab;    /* of the model; borrowed until nk_gateway_stop, as the next two */
    struct nk_clock *clock;   /* who is late is so by this one; NULL: the system's */
    struct nk_chance *chance; /* the ids of replies are drawn from it; NULL: the system's */
    /* More names of the model; the cluster's model id is always one. */
    const char *names[NK_GATEWAY_NAMES_MAX];
    int n_names;
    const char *chat_template; /* Jinja text or the name of a built-in one; NULL: the model's own */
    enum nk_gateway_tools tools;
    enum nk_gateway_reasoning reasoning;
    /* The path of this program: children of it render chat templates (text/template.h). NULL: they
     * are rendered in this process, which a hostile template can then end. */
    const char *program;
    const char *api_keys; /* one per line; '#' begins a comment; NULL: no key is needed */
    const char *tls_certificate, *tls_key;       /* PEM texts; both or none */
    const char *origins[NK_GATEWAY_ORIGINS_MAX]; /* pages from there may call (CORS); "*": all */
    int n_origins;
    const char *hosts[NK_GATEWAY_HOSTS_MAX]; /* it may be called by these, too (origin.h) */
    int n_hosts;
    bool insecure;      /* listen beyond this machine although there is no TLS or no key */
    bool deterministic; /* every request is; workers that cannot do it are not ready */
    /* What was lost is computed again in the original shapes, also where that is slower and
     * sessions share KV cells (docs/recovery.md). */
    bool exact_recovery;
    bool no_page; /* "/" answers one line of text */
    /* JSON: what requests get that do not say it (request.h); NULL: nothing. */
    const char *defaults;
    int n_predict_max; /* the most tokens of a choice; 0: as its request says */
    bool any_model;    /* whatever model a request names, it is this one */
    bool verbose;      /* OpenAI's replies tell all that the model wrote (__verbose) */
    bool strict;       /* a request with a field that has no effect here is refused */
    /* What /cluster and the page tell beyond the chains in force: one JSON object, appended to out
     * (docs/api.md, "cluster"). Not 0: there is none now. NULL: there is none at all. [the HTTP
     * thread and the monitor's, without any lock of the gateway's; it must not block] */
    int (*cluster_json)(void *user, struct nk_buf *out);
    /* The line that lets a machine join, appended to out as plain text; else as cluster_json. It is
     * told only to who asks from this machine, or has an API key. */
    int (*join_line)(void *user, struct nk_buf *out);
    void *cluster_user; /* theirs */
    struct nk_gateway_limits limits;
};

typedef struct nk_gateway nk_gateway;

/* 127.0.0.1:8080 and the limits; chain (or model) and vocab are the caller's to fill in. */
struct nk_gateway_opts nk_gateway_opts_default(void);

/* What nk_gateway_start would refuse of the options and of the address as it is now, before the
 * time is spent on what it needs: chain, model, vocab and chat_template are not looked at. Errors:
 * nk_gateway_start's. */
int nk_gateway_check(const struct nk_gateway_opts *opts, struct nk_error *err);
/* Listens. Strings are copied. *out owned by the caller. The workers need not be there yet: until
 * they are, requests are answered with 503 and /readyz says why.
 *   INVALID       bad_listen, bad_limit, bad_certificate, bad_key_file, bad_template, bad_model
 *   PRECONDITION  insecure        beyond loopback without TLS and key, and without opts->insecure
 *   UNAVAILABLE   cannot_listen
 *   EXHAUSTED     no_memory, no_thread, no_resources */
int nk_gateway_start(nk_gateway **out, const struct nk_gateway_opts *opts, struct nk_error *err);
/* Accepts nothing more, lets what runs end for at most grace_ms, cancels the rest. Who still reads
 * is told so, and has NK_GATEWAY_LAST_WORDS_MS for it; then the connections are shut down.
 *
 * True: all have come back, and g is freed. False: NK_GATEWAY_GIVE_UP_MS later somebody still has
 * not (a library that a helper thread has called does not return). Then g and what it borrows are
 * still in use: the process must end (_exit) without freeing them, or this be called again.
 *
 * nk_gateway_set_chains and the like must have returned before, and are not called any more. The
 * chains are closed. */
bool nk_gateway_stop(nk_gateway *g, uint32_t grace_ms);

/* ---- chains that come, change and go [any thread; none of these waits for a worker] ---- */

/* From now on these n chains (0: none) are the set in force, and the gateway's own. Requests that
 * begin now are spread over them by free places; one that continues an earlier one goes to the
 * chain that keeps it, where that has room. Generations that run end on the chain they began on;
 * those that have no token yet and fail there since a worker is gone begin again on the new set
 * (three losses at most, as ever). A chain is closed when the last that uses it has ended.
 *
 * While the new set's workers are asked for the first time, requests wait their time, as they do
 * while workers are away (limits.waiting_ms); after a gateway that never had a set that was ready
 * they are answered with 503. Without any chain likewise, with the sentence of
 * nk_gateway_set_waiting.
 *
 * On an error nothing has changed, and the chains are still the caller's.
 *   INVALID       bad_chains   n out of range, a chain twice
 *   PRECONDITION  wrong_model  a chain of another model; both hashes are named
 *                 stale_epoch  epoch is less than that of the set in force; both are named
 *   EXHAUSTED     no_memory */
int nk_gateway_set_chains(nk_gateway *g, nk_chain *const *chains, int n, uint64_t epoch,
                          struct nk_error *err);
/* What is waited for while there is no chain, a sentence for people ("waiting for 2 more machines:
 * ..."); copied. NULL: words of the gateway's own. */
void nk_gateway_set_waiting(nk_gateway *g, const char *text);

enum {
    NK_GATEWAY_STAGES_MAX = 64,
    NK_GATEWAY_TOKENS_MIN = 16, /* of fewer the mean says little */
};
struct nk_gateway_measured {
    uint64_t epoch;           /* of the set that all of this is of; 0: there is none */
    int running, waiting;     /* generations, on the set in force; that wait for a place */
    int ending;               /* on the sets of before */
    double tokens_per_second; /* of all together, over the last seconds */
    /* Between two tokens of a generation that ran alone: a mean in which the last 64 count most,
     * since the set is in force; NaN: there were fewer than NK_GATEWAY_TOKENS_MIN. */
    double ms_per_token;
    /* Of stages that ran for one stream alone when they were looked at: computing, per token. Each
     * look is told once. */
    int n_stages;
    struct nk_gateway_stage {
        char id[64]; /* the worker's in its nk_cluster */
        int layer_begin, layer_end;
        double ms;
    } stages[NK_GATEWAY_STAGES_MAX];
};
/* What the set in force really does. While one generation runs alone the workers are asked for it
 * every five seconds. One thread at a time. */
void nk_gateway_measured(nk_gateway *g, struct nk_gateway_measured *out);

/* What is known of lost workers and of the generations that went on after them: one JSON object,
 * appended to out (docs/api.md, "recovery"). EXHAUSTED too_large. */
int nk_gateway_recovery_json(nk_gateway *g, struct nk_buf *out, struct nk_error *err);

/* "http://127.0.0.1:8080"; borrowed until stop. */
const char *nk_gateway_url(const nk_gateway *g);
int nk_gateway_port(const nk_gateway *g);

#endif
