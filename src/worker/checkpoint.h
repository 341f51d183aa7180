/* Checkpoints: what a sequence's state was at a few positions, of models that cannot go back.
 *
 * A cache can be cut at any position; the state of a recurrent layer is that of the last one. So a
 * stage of a recurrent or hybrid model copies it now and then, and a session goes back to one of
 * these positions: a chat's next turn, whose prompt leaves what was generated before its end (its
 * thinking is stripped), and a session that is resumed behind where this stage is.
 *
 * Where: at ends of runs only, so that no run has another shape than it would have without, and
 * going on from there gives the bits of a run that was never anywhere else. At the prompt's end, at
 * the last end of a chunk before it that is far enough away for a turn that begins otherwise
 * (templates put words there that they take out afterwards), and at about each multiple of `every`.
 * The first stage decides and says so in each step, so that all stages have them at the same
 * positions, as long as they have the room.
 *
 * How many: ceilings of a session, in number and bytes, and of all together. Those that are far
 * from the session's end thin out first, and those of the last prompt's end go last.
 *
 * Safety: any thread. All of a worker's have one lock, which is held for no copy. */
#ifndef NK_WORKER_CHECKPOINT_H
#define NK_WORKER_CHECKPOINT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/error.h"

enum {
    NK_CHECKPOINTS_MAX = 16, /* of one session */
    /* A prompt's last tokens, which the next turn may not have ("<think>", a line's end). */
    NK_CHECKPOINT_TAIL = 8,
};

/* What one is for; as in Step.checkpoint. */
enum nk_checkpoint_kind {
    NK_CHECKPOINT_NONE,
    NK_CHECKPOINT_REGULAR,
    NK_CHECKPOINT_PROMPT, /* about the prompt's end: dropped last */
};

struct nk__checkpoint_limits {
    uint64_t session_bytes; /* of one session; 0: none are made */
    uint64_t all_bytes;     /* of all */
    int every;              /* tokens; 0: only about the prompt's end */
};

/* A copied state. Counted: sessions that began alike share it. */
typedef struct nk__state nk__state;
/* Room for size bytes, for the caller to fill; NULL: no memory. Its one reference is the
 * caller's. */
nk__state *nk__state_new(size_t size);
void *nk__state_data(nk__state *s);
size_t nk__state_size(const nk__state *s);

/* Of a session. */
typedef struct nk__checkpoints nk__checkpoints;

/* What those of a worker share; it outlives them. */
struct nk__checkpoints_all {
    struct nk__checkpoint_limits limits;
    pthread_mutex_t mutex;
    TAILQ_HEAD(nk__checkpoints_list, nk__checkpoints) sets; /* the least recently used one first */
    /* For any thread to read: states that are there, and their bytes, never above the ceiling; how
     * many were ever made, and how often a session went back to one. */
    atomic_ullong n, bytes, n_made, n_used;
};

void nk__checkpoints_all_init(struct nk__checkpoints_all *all,
                              const struct nk__checkpoint_limits *limits);
void nk__checkpoints_all_release(struct nk__checkpoints_all *all);

/* Whether the state at the end of a run of the positions [begin, end) is to be kept, of a session
 * with a prompt of n_prompt that is computed in chunks. */
enum nk_checkpoint_kind nk__checkpoint_kind(int begin, int end, int n_prompt, int chunk, int every);

/* EXHAUSTED no_memory. *out is owned by the caller. */
int nk__checkpoints_new(nk__checkpoints **out, struct nk__checkpoints_all *all,
                        struct nk_error *err);
/* NULL is harmless here; in all that follows it is one that never holds anything. */
void nk__checkpoints_free(nk__checkpoints *c);

/* Whether one of so many bytes could be kept at all: else it need not be copied. */
bool nk__checkpoints_could(const nk__checkpoints *c, size_t size);
/* Takes s, the state at pos, which is kept where that can be; others are dropped for it. What was
 * at the same position is replaced. */
void nk__checkpoints_put(nk__checkpoints *c, int pos, enum nk_checkpoint_kind kind, nk__state *s);
/* The last one at most at pos; 0: none (at 0 every sequence can begin). */
int nk__checkpoints_floor(nk__checkpoints *c, int pos);
/* What the one at pos is for; NONE: there is none. */
enum nk_checkpoint_kind nk__checkpoints_kind_at(nk__checkpoints *c, int pos);
/* Somebody will go back to the one at pos: nothing drops it before it was got. False: there is
 * none. */
bool nk__checkpoints_pin(nk__checkpoints *c, int pos);
/* The one at pos, for nk__checkpoints_release, or NULL. */
nk__state *nk__checkpoints_get(nk__checkpoints *c, int pos);
void nk__checkpoints_release(nk__checkpoints *c, nk__state *s);
/* The sequence goes on from pos with something else: drops what is after it. */
void nk__checkpoints_truncate(nk__checkpoints *c, int pos);
/* `to`, which is empty, gets what `from` has up to pos: the states are not copied. */
void nk__checkpoints_share(nk__checkpoints *to, nk__checkpoints *from, int pos);

#endif
