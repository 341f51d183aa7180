/* Workers on this machine: a model cut into slices in the cache, one `nakshatra worker` process per
 * slice on a free port, and the cluster they make. One that dies is started again on its port, as
 * long as somebody tends them (nk_local_tend). They end with nk_local_stop, and with this process
 * however it ends. Main thread. */
#ifndef NK_CLI_LOCAL_H
#define NK_CLI_LOCAL_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/process.h"
#include "chain/cluster.h"
#include "cli/cache_args.h"
#include "cli/restart.h"
#include "slice/slice.h"

struct nk_local_opts {
    const char *model_path;
    int n_workers;          /* with layers NULL */
    const char *layers;     /* "0-14,14-28"; NULL: balanced over n_workers */
    const char *device;     /* NULL: each worker's own choice */
    int n_ctx, n_sequences; /* 0: the worker's default */
    int n_threads;          /* of each worker; 0: all cores */
    struct nk_cache_args cache;
    enum nk_slice_verify verify; /* the slices in the cache, and the workers' */
    bool f16, deterministic;
    bool mmap;              /* weights stay in the files' mapping, as far as their types allow */
    struct nk_clock *clock; /* for the pauses between starts; NULL: the system's */
};

struct nk_local_files;
struct nk_local {
    struct nk_cluster *cluster; /* owned; its path is a file that lives until nk_local_stop */
    struct nk_process processes[NK_CLUSTER_WORKERS_MAX]; /* in the order of their layers */
    struct nk_local_worker {
        enum { NK_LOCAL_STARTING, NK_LOCAL_READY, NK_LOCAL_PAUSING } state;
        uint64_t due_ns; /* STARTING: it has to be ready; PAUSING: it is started again */
        struct nk_restart restart;
    } workers[NK_CLUSTER_WORKERS_MAX];
    int n;
    struct nk_local_opts opts;
    const struct nk_local_files *files; /* borrowed */
    char *self;                         /* this program's path; owned */
    int life, life_read; /* the ends of the workers' life line; they have copies of the second */
    char dir[256];
    int dir_fd; /* holds its lock: others see that it is in use */
    pthread_t tender;
    bool is_tended;     /* the thread runs */
    int tender_stop[2]; /* a pipe; closed by its writing end: it is to end */
};

/* The files: opens the model, sees whether the workers will have the memory and the slices the room
 * that they need, cuts the slices that are not in the cache, and its vocabulary. Takes
 * as long as copying the model the first time (a progress bar shows it). On success *out is owned
 * by the caller.
 *   EXHAUSTED  no_memory, no_space  before anything is cut, with what is needed and what is free
 *   and nk_model_open's, nk_ranges_*'s, nk_slice_cached's. */
struct nk_local_files {
    char *slices[NK_CLUSTER_WORKERS_MAX], *vocab;
    struct nk_cluster *cluster; /* without addresses */
    int hold;                   /* keeps others from removing them (pieces/shelf.h); -1: nothing */
};
int nk_local_files_make(struct nk_local_files **out, const struct nk_local_opts *opts,
                        struct nk_error *err);
void nk_local_files_free(struct nk_local_files *f);

/* Starts a worker per slice, the last one first since each may dial the next, and waits until all
 * are ready. Takes files->cluster, and borrows files and the strings of opts until the stop. On
 * failure nothing is left. What one that was killed has left is
 * removed.
 *   UNAVAILABLE  worker_ended    with its exit code (its own messages went to standard error)
 *   DEADLINE     worker_silent   not ready in ten minutes
 *   CANCELLED    interrupted     a signal came (cli/interrupt.h) */
int nk_local_start(struct nk_local **out, struct nk_local_files *files,
                   const struct nk_local_opts *opts, struct nk_error *err);
/* Is this line a worker's "ready HOST:PORT layers A-B of N device NAME", for these layers? address:
 * HOST:PORT. */
bool nk_local_ready(const char *line, int layer_begin, int layer_end, char address[256]);
/* ---- keeping them alive ---- */
/* What nk_local_tend waits for: descriptors, at most NK_CLUSTER_WORKERS_MAX (returns how many), and
 * for how long at most (-1: no limit). */
int nk_local_poll(const struct nk_local *l, struct pollfd *fds, int *timeout_ms);
/* Does what is due, without waiting: a worker that has ended is started again on its port, after a
 * pause if it does not last (cli/restart.h); one that comes back is ready.
 *   UNAVAILABLE  worker_ended  one that ended, again and again; says how */
int nk_local_tend(struct nk_local *l, struct nk_error *err);
/* Tends them until a signal comes; 0 then, else nk_local_tend's error. */
int nk_local_wait(struct nk_local *l, struct nk_error *err);
/* The same on a thread of its own, for a main thread that waits for something else, signals or not:
 * until nk_local_tend_stop, or until one cannot be kept alive. In between nobody else calls
 * anything here. What is returned by nk_local_tend is logged.
 *   EXHAUSTED  no_thread */
int nk_local_tend_start(struct nk_local *l, struct nk_error *err);
void nk_local_tend_stop(struct nk_local *l); /* harmless when it was not started */
/* SIGTERM to all, SIGKILL to those that are still there after a grace period; removes the cluster
 * file and its folder. For a process that ends while somebody still uses l->cluster. */
void nk_local_end(struct nk_local *l);
/* The same, and frees. */
void nk_local_stop(struct nk_local *l);

#endif
