/* One machine's member of a cluster: attends at the coordinator, measures the machine, fetches what
 * it is given, and supervises `nakshatra worker` processes.
 *
 * The engine runs in those processes only, so that an abort in it, or the kernel's memory killer,
 * ends a worker and nothing else. They end with the agent, however it ends. */
#ifndef NK_AGENT_AGENT_H
#define NK_AGENT_AGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/error.h"

enum { NK_AGENT_MODELS_MAX = 16 };

struct nk_agent_progress {
    uint64_t epoch;
    int layer_begin, layer_end;
    uint64_t bytes_done, bytes_total, rate_bps;
};

struct nk_agent_opts { /* all borrowed until nk_agent_run has returned */
    /* The member's state folder: identity/ and joined.json are there, from joining. */
    const char *state;
    const char *program;                     /* this program's path: workers are started with it */
    const char *models[NK_AGENT_MODELS_MAX]; /* folders with GGUF files, and such files */
    int n_models;
    const char *device; /* of workers; NULL: their own choice */
    int n_threads;      /* of workers; 0: all cores */
    uint32_t drain_ms;  /* when it leaves, what runs has so long to be taken over or to end */
    struct nk_clock *clock;
    struct nk_chance *chance;
    /* A sentence for people: what has changed. Any thread. */
    void (*say)(void *user, const char *sentence);
    /* Once a second while something is fetched, and at its end (bytes_done == bytes_total). */
    void (*progress)(void *user, const struct nk_agent_progress *p);
    void *user;
};

/* Runs until stop_fd is readable: then it leaves the cluster's work, and returns 0; the machine
 * stays a member. A second byte on stop_fd ends it without waiting. Losing the coordinator is no
 * reason to return: it is looked for again, for ever. On the main thread.
 *   DENIED        removed              the machine was removed from the cluster
 *   PRECONDITION  expired_certificate  it was away for too long
 *   and what is wrong with the state folder, ports, threads */
int nk_agent_run(const struct nk_agent_opts *opts, int stop_fd, struct nk_error *err);

#endif
