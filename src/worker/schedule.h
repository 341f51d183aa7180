/* What the compute thread runs next: queues of jobs, and groups of decode rows. Jobs and the time
 * in, a batch out; nothing here knows a stage, a thread or a clock, so that every promise below is
 * tested without them (tests/unit/worker/test_schedule.c).
 *
 * Three queues. Control jobs go first. Then decode rows and prefill chunks take turns: a long
 * prompt delays other people's tokens by one chunk at most, and tokens do not starve a prompt. Each
 * queue is first come, first served, and the steps of one session are run in their order.
 *
 * Which decode rows run together decides the speed (docs/internals/llama.md, "Rows per run"). CPU
 * kernels are worth little under four rows, and a stage that waits for rows of a half-filled
 * pipeline is idle. So the *first* stage forms groups: as many groups in flight as stages of the
 * route can compute at once (all of them, but for those that share cores: open.c) and no more, each
 * at most ceil(sessions / groups) rows, on a CPU four where that is between four and 16, and under
 * 64. A group is in flight until every one of its sessions has its token (and has queued its next
 * row) or has ended; so a group that comes back leaves again together. Later stages run a group as
 * the first one formed it: they wait until all its rows are there, for NK_GROUP_WAIT_MS at most.
 * Rows that belong to no group (clients that drive a stage themselves) are merged as they come.
 * Deterministic sessions ("solo") always run alone, and count in no group.
 *
 * One thread at a time: the engine's mutex. Nothing here allocates; jobs and lanes are the
 * caller's. */
#ifndef NK_WORKER_SCHEDULE_H
#define NK_WORKER_SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

enum {
    NK_GROUPS_MAX = 64, /* in flight: one for each stage of the longest route */
    /* A group whose rows do not all arrive (a session was cancelled) is run without them after so
     * long. */
    NK_GROUP_WAIT_MS = 20,
};

/* What the schedule knows of a session. All 0 at first. */
struct nk_schedule_lane {
    int n_decode_queued, n_prefill_queued; /* its jobs in the queues */
    uint64_t group; /* first stage: the group in flight that a row of it is in, or 0 */
};

/* What the schedule knows of a job. In a list it is the list's; else its owner's, who may use
 * `link`. */
struct nk_schedule_job {
    TAILQ_ENTRY(nk_schedule_job) link;
    struct nk_schedule_lane *lane; /* the session's whose step it is; NULL: a control job */
    int n;                         /* rows */
    bool sample; /* a token is wanted of the last row; with one row: a decode step */
    bool solo;   /* never merged with another session's */
    /* Of a decode step; 0: none. On the first stage the schedule sets them. */
    uint64_t group;
    uint32_t group_size;
    uint64_t queued_ns; /* set by nk__schedule_add */
};
TAILQ_HEAD(nk_schedule_list, nk_schedule_job);

struct nk_schedule_opts {
    bool is_first; /* the route's first stage: forms the groups */
    bool on_cpu;
    int n_batch; /* the most rows of one run */
    /* The first group's id. Those of two senders must not meet: it is drawn at random. 0 is as
     * 1. */
    uint64_t group;
};

struct nk_schedule {
    struct nk_schedule_opts opts;
    struct nk_schedule_list control, decode, prefill;
    int n_jobs; /* in all of them */
    bool prefill_next;
    struct nk_schedule_group {
        uint64_t id;
        int n_outstanding;
    } groups[NK_GROUPS_MAX]; /* in flight; first stage */
    int n_groups, n_decoding, n_at_once;
    uint64_t next_group;
};

/* Whether it continues a text, one row for one token; everything else of a session is prefill. */
static inline bool nk__schedule_is_decode(const struct nk_schedule_job *j)
{
    return j->n == 1 && j->sample;
}

void nk__schedule_init(struct nk_schedule *s, const struct nk_schedule_opts *opts);
/* Queues j; its session's row, if one was under way, no longer is. */
void nk__schedule_add(struct nk_schedule *s, struct nk_schedule_job *j, uint64_t now);
/* First stage: the session's row is no longer under way (its token was handled). */
void nk__schedule_leave_group(struct nk_schedule *s, struct nk_schedule_lane *lane);
/* The session has ended: its jobs are moved from the queues to the end of `out`, and it leaves its
 * group. */
void nk__schedule_remove(struct nk_schedule *s, struct nk_schedule_lane *lane,
                         struct nk_schedule_list *out);
/* First stage: how many sessions are in the decode phase, and how many stages of their route can
 * compute at once. */
void nk__schedule_set_decoding(struct nk_schedule *s, int n_sessions, int n_at_once);
/* Takes what is to be run now out of the queues, into run[] (n_batch of room): one control job, one
 * prefill chunk, or decode rows of one row each. Returns how many jobs; 0: nothing now. *wait_until
 * is then when to ask again though nothing was added (a group is to be run without its missing
 * rows), or 0. */
int nk__schedule_pick(struct nk_schedule *s, uint64_t now, struct nk_schedule_job **run,
                      uint64_t *wait_until);
/* Any job, out of its queue; NULL when there is none. For the end. */
struct nk_schedule_job *nk__schedule_pop(struct nk_schedule *s);

#endif
