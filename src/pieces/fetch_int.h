/* What the files of a fetch share. The shape:
 *
 *   fetch.c    starting, its threads, verifying and writing parts, the end
 *   sources.c  other machines: asking what they have, which part from whom, what arrives
 *   journal.c  the temporary file and what it says is in it
 *
 * One mutex guards everything that is not said to be otherwise; it is held for bookkeeping and for
 * starting calls, never for disk, hashing or callbacks. */
#ifndef NK_PIECES_FETCH_INT_H
#define NK_PIECES_FETCH_INT_H

#include <pthread.h>
#include <sys/queue.h>

#include "pieces/fetch.h"
#include "pieces/places.h"

enum {
    NK__FETCH_THREADS = 2,
    NK__LOCALS_MAX = 32,
    NK__ASK_MS = 10000,      /* what a source has: it answers from memory */
    NK__ASK_AGAIN_MS = 2000, /* of one that does not have everything yet */
    NK__PAUSE_MS = 1000,     /* the first; doubled up to */
    NK__PAUSE_MS_MAX = 30000,
    NK__BUSY_MS = 250,   /* it has too many others */
    NK__SLOW_MS = 2000,  /* then an idle source may take a part that another one is at */
    NK__LATE_MAX = 5,    /* doublings of the time for a part */
    NK__CHANGED_MS = 250 /* between calls of opts.changed */
};

enum nk__part_state {
    NK__PART_UNWANTED,
    NK__PART_CLAIMED, /* the journal says that it is there */
    NK__PART_LOCAL,   /* a file of this machine is said to have it */
    NK__PART_WANTED,  /* from somebody else; may be on its way */
    NK__PART_BUSY,    /* a thread has it in hand */
    NK__PART_DONE,
};

struct nk__source {
    nk_fetch *f;
    char name[128], address[300];
    nk_channel *channel;
    enum nk_fetch_source_state state;
    bool removed;
    nk_call *ask; /* on its way; referenced */
    bool asked;   /* it has answered at least once */
    uint8_t *has; /* bits */
    bool has_all; /* that is wanted */
    int n_calls, n_flights, flights_max, late, pauses;
    int cursor;     /* into order: where it goes on */
    uint64_t at_ns; /* when to ask again; 0: not */
    uint64_t n_bytes, busy_ns, busy_since_ns;
    LIST_ENTRY(nk__source) link;
};

/* A part on its way. Its bytes are the net thread's until `end`, then the thread's that takes
 * it. */
struct nk__flight {
    nk_fetch *f;
    struct nk__source *s;
    nk_call *call; /* referenced */
    int part;
    uint8_t *data;
    uint32_t size;
    bool too_much;
    bool given_up; /* nobody wants it any more */
    uint64_t began_ns;
    TAILQ_ENTRY(nk__flight) link; /* f->flights, then f->arrived */
};

struct nk__local {
    nk__places *places;
    uint64_t n_bytes;
};

struct nk_fetch {
    nk_catalogue *c;
    struct nk_range range;
    struct nk_fetch_opts opts;
    struct nk_credentials credentials;
    struct nk_clock *clock;
    struct nk_slice_layout *layout;
    nk__places *file;
    char *path, *tmp_path, *journal_path;
    int journal_fd;

    pthread_mutex_t mu;
    pthread_cond_t changed;
    pthread_t threads[NK__FETCH_THREADS];
    int n_threads;
    enum nk_fetch_state state;
    int rc;
    struct nk_error err;
    bool sealing, told_end;
    atomic_bool cancelled; /* also read without the mutex */

    uint8_t *parts;                /* enum nk__part_state */
    uint8_t *part_flights;         /* how many are on their way */
    int *order, n_order;           /* the parts that the slice needs */
    int n_left;                    /* of them not done */
    char (*claims)[NK_SHA256_HEX]; /* of order[i]: what the journal says; "" is nothing */
    int next_claim, n_claims_busy;
    int next_local;

    LIST_HEAD(, nk__source) sources; /* removed ones, too, until their last call has ended */
    int n_sources, n_calls;
    struct nk__local locals[NK__LOCALS_MAX];
    int n_locals;
    TAILQ_HEAD(nk__flights, nk__flight) flights, arrived;
    int n_flights;        /* with those that have arrived */
    uint8_t *buffers[64]; /* free ones */
    int n_buffers;

    uint64_t bytes_total, bytes_done, bytes_kept, bytes_local;
    uint64_t began_ns, ended_ns, progress_ns, told_ns;
    uint64_t window_ns, window_bytes, rate_bps;
    char last_error[256], dropped[128];
};

/* ---- journal.c ---- */
/* Opens and locks the temporary file, and reads what an earlier run said of it into claims (of
 * order). *fd is owned by the caller. ABORTED busy; DENIED, EXHAUSTED. */
int nk__journal_open(nk_fetch *f, int *fd, struct nk_error *err);
/* The part is in the file: digest "" for a whole one. */
int nk__journal_add(nk_fetch *f, int part, const char *digest, struct nk_error *err);
/* The file is complete: renames it. */
int nk__journal_commit(nk_fetch *f, struct nk_error *err);

/* ---- sources.c; the mutex is held ---- */
/* Gives sources what to do. */
void nk__sources_schedule(nk_fetch *f);
/* What is due by now; *next_ns becomes the time of what is due next (UINT64_MAX: nothing). */
void nk__sources_tick(nk_fetch *f, uint64_t *next_ns);
/* Nobody wants the part from anybody any more (-1: nor any other). */
void nk__sources_give_up(nk_fetch *f, int part);
/* The source sent wrong bytes. */
void nk__source_drop(struct nk__source *s, int part);
/* It has sent a part that is right. */
void nk__source_credit(struct nk__source *s, uint32_t bytes);
void nk__flight_free(struct nk__flight *fl);
/* A part of it that has arrived is done with. */
void nk__source_release(struct nk__source *s);
/* Ends all calls, for good. */
void nk__sources_stop(nk_fetch *f);
/* All calls have ended. */
void nk__sources_free(nk_fetch *f);

/* fetch.c: the end, if it has not come yet. The mutex is held. */
void nk__fetch_end(nk_fetch *f, int rc, const struct nk_error *err);
bool nk__fetch_ended(const nk_fetch *f);

#endif
