/* The gateway: an HTTP server in front of one chain. It speaks OpenAI's and Ollama's dialects,
 * serves the page, metrics and the state of the cluster (docs/api.md).
 *
 * Threads. One HTTP thread (libmicrohttpd over epoll) parses HTTP and writes replies; it never
 * computes anything long. Helper threads parse, render and tokenise requests. A watch thread sees
 * clients that went away. A monitor thread asks the workers how they are, only when somebody wants
 * to know. An admission thread starts generations when there is room. Handlers of generations run
 * on the chain's net thread and only append to the request's bounded queue. */
#ifndef NK_GATEWAY_GATEWAY_H
#define NK_GATEWAY_GATEWAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/error.h"
#include "chain/chain.h"
#include "text/vocab.h"

enum { NK_GATEWAY_NAMES_MAX = 16, NK_GATEWAY_ORIGINS_MAX = 16, NK_GATEWAY_HOSTS_MAX = 16 };
enum { NK_GATEWAY_LAST_WORDS_MS = 2000, NK_GATEWAY_GIVE_UP_MS = 3000 }; /* nk_gateway_stop's */

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
};

struct nk_gateway_opts {
    const char *listen;       /* "127.0.0.1:8080", "[::1]:0"; port 0: a free one */
    nk_chain *chain;          /* borrowed until nk_gateway_stop, as are the next three */
    const nk_vocab *vocab;    /* of the chain's model */
    struct nk_clock *clock;   /* who is late is so by this one; NULL: the system's */
    struct nk_chance *chance; /* the ids of replies are drawn from it; NULL: the system's */
    /* More names of the model; the cluster's model id is always one. */
    const char *names[NK_GATEWAY_NAMES_MAX];
    int n_names;
    const char *chat_template; /* Jinja text or the name of a built-in one; NULL: the model's own */
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
    bool no_page;       /* "/" answers one line of text */
    struct nk_gateway_limits limits;
};

typedef struct nk_gateway nk_gateway;

/* 127.0.0.1:8080 and the limits; chain and vocab are the caller's to fill in. */
struct nk_gateway_opts nk_gateway_opts_default(void);

/* What nk_gateway_start would refuse of the options and of the address as it is now, before the
 * time is spent on what it needs: chain, vocab and chat_template are not looked at. Errors:
 * nk_gateway_start's. */
int nk_gateway_check(const struct nk_gateway_opts *opts, struct nk_error *err);
/* Listens. Strings are copied. *out owned by the caller. The workers need not be there yet: until
 * they are, requests are answered with 503 and /readyz says why.
 *   INVALID       bad_listen, bad_limit, bad_certificate, bad_key_file, bad_template
 *   PRECONDITION  insecure        beyond loopback without TLS and key, and without opts->insecure
 *   UNAVAILABLE   cannot_listen
 *   EXHAUSTED     no_memory, no_thread, no_resources */
int nk_gateway_start(nk_gateway **out, const struct nk_gateway_opts *opts, struct nk_error *err);
/* Accepts nothing more, lets what runs end for at most grace_ms, cancels the rest. Who still reads
 * is told so, and has NK_GATEWAY_LAST_WORDS_MS for it; then the connections are shut down.
 *
 * True: all have come back, and g is freed. False: NK_GATEWAY_GIVE_UP_MS later somebody still has
 * not (a library that a helper thread has called does not return). Then g and what it borrows are
 * still in use: the process must end (_exit) without freeing them, or this be called again. */
bool nk_gateway_stop(nk_gateway *g, uint32_t grace_ms);
/* "http://127.0.0.1:8080"; borrowed until stop. */
const char *nk_gateway_url(const nk_gateway *g);
int nk_gateway_port(const nk_gateway *g);

#endif
