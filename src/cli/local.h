/* Workers on this machine: a model cut into slices in the cache, one `nakshatra worker` process per
 * slice on a free port, and the cluster they make. They end with nk_local_stop, and with this
 * process however it ends. Main thread. */
#ifndef NK_CLI_LOCAL_H
#define NK_CLI_LOCAL_H

#include <stdbool.h>

#include "base/process.h"
#include "chain/cluster.h"
#include "cli/cache_args.h"
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
};

struct nk_local {
    struct nk_cluster *cluster; /* owned; its path is a file that lives until nk_local_stop */
    struct nk_process processes[NK_CLUSTER_WORKERS_MAX]; /* in the order of their layers */
    int n;
    int life; /* the write end of the workers' life line */
    char dir[256];
    int dir_fd; /* holds its lock: others see that it is in use */
};

/* The files: opens the model, cuts the slices that are not in the cache, and its vocabulary. Takes
 * as long as copying the model the first time (a progress bar shows it). On success *out is owned
 * by the caller.
 * Errors: nk_model_open's, nk_ranges_*'s, nk_slice_cached's. */
struct nk_local_files {
    char *slices[NK_CLUSTER_WORKERS_MAX], *vocab;
    struct nk_cluster *cluster; /* without addresses */
    int hold;                   /* keeps others from removing them (pieces/shelf.h); -1: nothing */
};
int nk_local_files_make(struct nk_local_files **out, const struct nk_local_opts *opts,
                        struct nk_error *err);
void nk_local_files_free(struct nk_local_files *f);

/* Starts a worker per slice, the last one first since each may dial the next, and waits until all
 * are ready. Takes files->cluster. On failure nothing is left. What one that was killed has left is
 * removed.
 *   UNAVAILABLE  worker_ended    with its exit code (its own messages went to standard error)
 *   DEADLINE     worker_silent   not ready in ten minutes
 *   CANCELLED    interrupted     a signal came (cli/interrupt.h) */
int nk_local_start(struct nk_local **out, struct nk_local_files *files,
                   const struct nk_local_opts *opts, struct nk_error *err);
/* Is this line a worker's "ready HOST:PORT layers A-B of N device NAME", for these layers? address:
 * HOST:PORT. */
bool nk_local_ready(const char *line, int layer_begin, int layer_end, char address[256]);
/* Waits for a signal or the end of a worker; 0 for a signal, else
 *   UNAVAILABLE  worker_ended */
int nk_local_wait(struct nk_local *l, struct nk_error *err);
/* SIGTERM to all, SIGKILL to those that are still there after a grace period; removes the cluster
 * file and its folder. For a process that ends while somebody still uses l->cluster. */
void nk_local_end(struct nk_local *l);
/* The same, and frees. */
void nk_local_stop(struct nk_local *l);

#endif
