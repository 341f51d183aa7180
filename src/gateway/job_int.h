/* Inside of a request for text: what its files share.
 *
 *   job.c            its life, its end, and all requests of a gateway
 *   job_prepare.c    from its body to its tickets
 *   choice.c         the generations of a choice: begun, lost, gone on with, over
 *   choice_events.c  what the chain says of one
 *   job_read.c       its reply, for HTTP */
#ifndef NK_GATEWAY_JOB_INT_H
#define NK_GATEWAY_JOB_INT_H

#include "gateway/embed.h"
#include "gateway/job.h"
#include "gateway/reply.h"

/* One of the texts that a request asks for: `n` of each prompt. */
struct nk_choice {
    nk_job *j;
    int index;
    struct nk_ticket ticket;
    struct nk_place place;       /* where it runs, from its start to its end */
    nk_gen *handle;              /* from its start to its end; its handlers' */
    nk_gen *gen;                 /* the same, once others may know it */
    struct nk_recovery recovery; /* whoever's the ticket is */
    uint64_t waiting_us;         /* before it first ran */
    bool done;                   /* no token comes any more */
    bool opened;                 /* it has its place on every stage */
    bool waited;                 /* how long it did was counted */
    bool paused;                 /* it was lost, and waits to go on */
    bool over;  /* the generation that was begun last is; set back when the next one begins */
    int n_lost; /* generations that were lost with a worker, without a token */
    bool ended; /* was ended because its one tool call is complete: the cancellation is no error */
    int n_generated;
    uint64_t started_ns; /* under the job's mutex, as gen to n_generated */
    uint64_t opened_ns;  /* its handlers', as what follows */
    uint64_t first_ns;   /* its first token */
    bool has_text;       /* of its prompt's tokens some had text, as far as they were told */
    int n_reused;        /* with `progress` asked for */
    int n_progress;      /* of its prompt, as the reader was told; -1: nothing yet */
    uint64_t last_token_ns;
    int32_t *ids; /* Ollama's context: what was generated; owned */
    size_t n_ids, ids_capacity;
};

/* What came from the chain and waits to be written. One block of memory each: texts behind the
 * struct. */
struct nk_job_event {
    STAILQ_ENTRY(nk_job_event) link;
    int choice;
    size_t bytes;
    enum nk_event_kind { NK_EVENT_PROMPT, NK_EVENT_PROGRESS, NK_EVENT_TOKEN, NK_EVENT_DONE } kind;
    struct nk_gen_token token; /* or one of the prompt */
    struct nk_reply_progress progress;
    struct nk_reply_timings timings;
    struct nk_reply_done done;
    struct nk_error err; /* of `done`; code 0: none */
};

struct nk_job {
    atomic_int refs;
    nk_gateway *g;
    TAILQ_ENTRY(nk_job) link; /* the gateway's, under its mutex */
    void (*wake)(void *user);
    void (*drop)(void *user);
    void *user;
    enum nk_api api;
    char id[40];
    char key[NK_SHA256_HEX];        /* the API key's digest; "": none */
    char reuse_salt[NK_SHA256_HEX]; /* "": none */
    uint64_t begin_ns;
    struct nk_task task;
    atomic_bool unwanted; /* cancelled: the helper thread stops where it is */
    struct nk_buf body;   /* until it is parsed */
    size_t held_body;     /* of g->bodies, with it */
    size_t held;          /* of g->parsed; the helper's, then the last reference's */
    /* set by the helper thread before the first ticket, constant then */
    struct nk_request request; /* shrunk: what it was made of is gone */
    const char *grammar_param; /* where the grammar came from */
    struct nk_prepared prepared;
    struct nk_choice *choices;
    int n_choices, n_prompt;
    bool stored;             /* Responses: the store knows that it has begun */
    nk_embedding *embedding; /* a request for vectors: instead of choices */

    pthread_mutex_t mutex; /* what follows */
    bool ending;           /* nk__job_end: nobody reads any more */
    bool prepared_ok, failed, overflowed, cancelled;
    bool embedded; /* the embedding is over */
    bool broken;   /* a choice's error is among the events: the stream ends with it */
    struct nk_error err;
    char param[128];
    /* Streamed: the HTTP thread's alone once events come; whole: under the mutex. */
    nk_reply *reply;
    STAILQ_HEAD(, nk_job_event) events;
    size_t n_bytes; /* of events */
    int n_done, n_generated;
    uint64_t first_token_ns;

    /* the HTTP thread's alone */
    struct nk_buf out;
    size_t n_out;  /* of out, given away */
    int n_written; /* choices whose end was written */
    bool out_ended, cut_off;
    atomic_ullong last_read_ns; /* others look at it */
    atomic_bool keepalive;      /* others set it */
    atomic_bool began;          /* its status has been sent; others look at it */
};

/* ---- job.c ---- */

/* Tells who reads that there is something new. The mutex is not held, as for the next two. */
void nk__job_wake(nk_job *j);
/* It ends with err; the first one counts. param: the field to blame, or "". */
void nk__job_fail(nk_job *j, const struct nk_error *err, const char *param);
/* Ends what waits and what runs. */
void nk__job_cancel_choices(nk_job *j);
/* Its name in the store of responses. Returns out. */
const char *nk__job_response_id(const nk_job *j, char out[64]);
/* The body is not needed any more: its bytes are others'. */
void nk__job_release_body(nk_job *j);
enum nk_dialect nk__job_dialect(const nk_job *j);

/* ---- job_prepare.c ---- */

/* nk_task.run: the helper's part. Takes a reference. [helper thread] */
void nk__job_prepare(struct nk_task *task);
/* No generation is needed for it. */
bool nk__job_answered_at_once(const nk_job *j);
/* The reply's last bytes; what it says is stored before anybody can have read them. */
int nk__job_end_reply(nk_job *j, struct nk_error *err);

/* ---- choice.c ---- */

/* nk_ticket.start and .expire. */
void nk__choice_start(struct nk_ticket *t);
void nk__choice_expire(struct nk_ticket *t, const struct nk_error *err);
/* Its one tool call is complete: if it waits to go on, it need not. The mutex is not held. */
void nk__choice_end_paused(struct nk_choice *c);

/* ---- choice_events.c ---- */

/* With room for n_text bytes behind it; of kind TOKEN, without an error. NULL: no memory. */
struct nk_job_event *nk__job_event_new(int choice, size_t n_text);
/* Under the mutex. False: its reader is too slow. */
bool nk__job_push(nk_job *j, struct nk_job_event *e);
/* What was generated is told as ids, too: Ollama's context. */
bool nk__job_keeps_ids(const nk_job *j);
/* The log-probabilities of the prompt are asked for. */
bool nk__job_wants_prompt(const nk_job *j);
/* nk_gen_handlers; user: the choice. [chain's net thread] */
void nk__choice_opened(void *user);
void nk__choice_prefilled(void *user, int n_done, int n_reused);
void nk__choice_prompted(void *user, const struct nk_gen_token *t);
void nk__choice_token(void *user, const struct nk_gen_token *t);
void nk__choice_replaying(void *user, const char *worker_id, int done, int total);

/* ---- job_read.c ---- */

/* It is prepared, and its reply is a stream. */
bool nk__job_streams(nk_job *j);

#endif
