/* nakshatra worker: one stage, served. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "chain/cluster.h"
#include "cli/cache_args.h"
#include "cli/cli.h"
#include "cli/spinning.h"
#include "pieces/shelf.h"
#include "slice/slice.h"
#include "stage/stage.h"
#include "stage/trial.h"
#include "worker/worker.h"

int nk_cmd_worker(int argc, char **argv);

enum {
    PEM_BYTES_MAX = 1 << 20,
    /* An idle worker notices so soon that somebody has written to its slice; one that computes
     * notices with each run. */
    CHECK_MS = 1000,
};

struct options {
    const char *slice, *model, *layers, *listen, *id, *device, *cluster, *trace, *tls_ca, *tls_cert,
        *tls_key, *identity, *verify;
    enum nk_slice_verify how; /* what verify says */
    int64_t ctx, sequences, batch, chunk, threads, threads_batch, drain_ms, stall_ms, idle_ms,
        silence_ms, queue, queue_ms, journal_mib, spill_mib, checkpoint_mib, checkpoint_every,
        parent_fd, epoch;
    bool deterministic, insecure, mmap, no_mmap, shared_cores;
    struct nk_cache_args cache;
    struct nk_arg_list peers;
};

/* ---- what ends it: a signal, or the death of whoever started it ---- */

static int signal_pipe[2];

static void on_signal(int sig)
{
    char c = (char)sig;

    if (write(signal_pipe[1], &c, 1) < 0)
        return;
}

/* From here on the first signal of a kind is a wish, and the second ends the process. Until then
 * both end it at once: what only loads has nothing to drain. */
static int catch_signals(struct nk_error *err)
{
    struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART | SA_RESETHAND };

    if (pipe(signal_pipe) < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "a pipe could not be made: %s",
                       strerror(errno));
    for (int i = 0; i < 2; i++) {
        fcntl(signal_pipe[i], F_SETFD, FD_CLOEXEC);
        fcntl(signal_pipe[i], F_SETFL, O_NONBLOCK);
    }
    sigemptyset(&sa.sa_mask);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    return 0;
}

/* Waits for SIGTERM or SIGINT, or for parent_fd (-1: none) to read end-of-file: *why. Or for what
 * the worker cannot go on after: nk_worker_check's error. */
static int wait_for_end(nk_worker *w, int parent_fd, const char **why, struct nk_error *err)
{
    struct pollfd fds[2] = { { signal_pipe[0], POLLIN, 0 }, { parent_fd, POLLIN, 0 } };

    for (;;) {
        char c;
        int rc;

        if (poll(fds, parent_fd >= 0 ? 2 : 1, CHECK_MS) < 0 && errno != EINTR) {
            *why = "poll failed";
            return 0;
        }
        rc = nk_worker_check(w, err);
        if (rc)
            return rc;
        if (fds[0].revents && read(signal_pipe[0], &c, 1) == 1) {
            *why = c == SIGINT ? "interrupted" : "terminated";
            return 0;
        }
        if (fds[1].revents && read(parent_fd, &c, 1) <= 0) {
            *why = "the process that started it is gone";
            return 0;
        }
    }
}

/* ---- options ---- */

static int check_options(struct options *o, struct nk_error *err)
{
    int rc;

    if (!o->slice == !o->model)
        return nk_fail(
            err, NK_E_INVALID, "bad_argument",
            o->slice ? "--slice and --model were both given; one of them says what to load"
                     : "what to load is missing: --slice FILE, or --model FILE with --layers A-B");
    if (o->model && !o->layers)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--model needs --layers A-B (0-14, for example)");
    if (o->slice && o->layers)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--layers goes with --model; a slice has its own range");
    if (o->mmap && o->no_mmap)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--mmap and --no-mmap were both given; one of them, or neither");
    if ((o->tls_cert || o->tls_key || o->tls_ca) && !(o->tls_cert && o->tls_key && o->tls_ca))
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "mutual TLS needs all of --tls-ca, --tls-cert and --tls-key");
    if (o->identity && (o->tls_ca || o->insecure))
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--identity and %s were both given; one of them says who may come in",
                       o->tls_ca ? "--tls-ca, --tls-cert and --tls-key" : "--insecure");
    rc = nk_cache_args_check(&o->cache, err);
    if (!rc)
        rc = nk_wrap(nk_slice_verify_parse(o->verify, &o->how, err), err, "--verify");
    if (rc)
        return rc;
    rc = nk_address_check(o->listen, 0, err);
    if (rc)
        return nk_wrap(rc, err, "--listen");
    for (int i = 0; i < o->peers.n; i++) {
        rc = nk_address_check(o->peers.items[i], 1, err);
        if (rc)
            return nk_wrap(rc, err, "--allow-peer");
    }
    if (o->parent_fd >= 0 && fcntl((int)o->parent_fd, F_GETFD) < 0)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "--parent-fd %d is not open",
                       (int)o->parent_fd);
    if (!nk_address_is_loopback(o->listen) && !o->tls_cert && !o->identity && !o->insecure)
        return nk_fail(
            err, NK_E_INVALID, "not_loopback",
            "--listen %s is reachable from other machines: give --identity, or --tls-ca, "
            "--tls-cert and --tls-key, or --insecure if everybody on that network may "
            "use this worker and read what passes",
            o->listen);
    return 0;
}

/* The slice's path: as given, or cut from the model into the cache, where *hold (closed by the
 * caller; -1: none) keeps it until it is open. *path owned by the caller. */
static int find_slice(const struct options *o, char **path, int *hold, struct nk_error *err)
{
    char hash[NK_SHA256_HEX];
    struct nk_range range;
    nk_model *m;
    int n, rc;

    if (o->slice) {
        *path = strdup(o->slice);
        return *path ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    rc = nk_ranges_parse(o->layers, &range, 1, &n, err);
    if (rc)
        return rc;
    rc = nk_model_open(&m, o->model, err);
    if (rc)
        return rc;
    rc = nk_ranges_check(m, &range, 1, false, err);
    if (!rc)
        rc = nk_model_hash(m, hash, err);
    if (!rc)
        rc = nk_wrap(nk_trial_uncached(m, &range, 1, err), err, "%s", o->model);
    if (!rc) {
        *hold = nk_shelf_make_room(m, &range, 1);
        rc = nk_slice_cached(m, range, o->how, path, err);
    }
    nk_model_close(m);
    return rc;
}

int nk_cmd_worker(int argc, char **argv)
{
    const struct nk_worker_opts defaults = nk_worker_opts_default();
    struct options o = { .listen = defaults.listen,
                         .ctx = defaults.stage.n_ctx,
                         .sequences = NK_SEQUENCES,
                         .batch = defaults.stage.n_batch,
                         .drain_ms = 30000,
                         .stall_ms = defaults.stall_ms,
                         .idle_ms = defaults.idle_ms,
                         .silence_ms = defaults.silence_ms,
                         .journal_mib = (int64_t)(defaults.journal_bytes >> 20),
                         .spill_mib = (int64_t)(defaults.spill_bytes >> 20),
                         .checkpoint_mib = (int64_t)(defaults.checkpoint_bytes >> 20),
                         .checkpoint_every = defaults.checkpoint_every,
                         .queue = defaults.queue_max,
                         .queue_ms = defaults.queue_ms,
                         .parent_fd = -1,
                         .verify = nk_slice_verify_text(NK_VERIFY_ONCE),
                         .cache = NK_CACHE_ARGS_INIT };
    const struct nk_arg args[] = {
        NK_OPT_STRING("slice", 0, &o.slice, "FILE", "the slice to serve (made by nakshatra split)"),
        NK_OPT_STRING("model", 0, &o.model, "FILE",
                      "a whole model to cut the slice from, into the cache"),
        NK_OPT_STRING("layers", 0, &o.layers, "A-B", "which of its layers, half open"),
        NK_OPT_STRING("listen", 'l', &o.listen, "HOST:PORT", "where to listen; port 0: a free one"),
        NK_OPT_STRING("id", 0, &o.id, "NAME", "the name in messages and reports; else HOST:PORT"),
        NK_OPT_STRING(
            "device", 'd', &o.device, "NAME",
            "CPU, Vulkan0, CUDA0, ...; else the first GPU, or the CPU where there is none"),
        NK_OPT_INT("ctx", 'c', &o.ctx, "N", 0, 1 << 24,
                   "KV tokens, shared by all sequences; 0: the model's context"),
        NK_OPT_INT("sequences", 's', &o.sequences, "N", 1, 256, "sessions at once"),
        NK_OPT_INT("batch", 'b', &o.batch, "N", 1, 8192, "most rows of one run"),
        NK_OPT_INT(
            "chunk", 0, &o.chunk, "N", 1, 8192,
            "rows of a prefill chunk; else 64 on the CPU, 128 with --shared-cores, 256 elsewhere"),
        NK_OPT_INT("threads", 't', &o.threads, "N", 1, 1024, "for decode; else all cores"),
        NK_OPT_INT("threads-batch", 0, &o.threads_batch, "N", 1, 1024,
                   "for prefill; else as --threads"),
        NK_OPT_FLAG(
            "shared-cores", 0, &o.shared_cores,
            "other workers compute on the same cores: prompts in larger chunks, decode in turns"),
        NK_OPT_LIST("allow-peer", 0, &o.peers, "HOST:PORT",
                    "a worker that routes may continue at; repeatable; not needed with "
                    "--identity"),
        NK_OPT_STRING("cluster", 0, &o.cluster, "FILE",
                      "allow the workers and spares of this cluster file"),
        NK_OPT_FLAG("deterministic", 0, &o.deterministic,
                    "sessions do not touch each other; each has a share of --ctx"),
        NK_OPT_FLAG("mmap", 0, &o.mmap,
                    "on a CPU: leave the weights in the file's mapping even where there is plenty "
                    "of memory"),
        NK_OPT_FLAG("no-mmap", 0, &o.no_mmap,
                    "on a CPU: read the whole slice before the worker is ready"),
        NK_OPT_STRING("verify", 0, &o.verify, "always|once|never",
                      "compare the slice with its own digests while it is loaded; once: only if it "
                      "was changed since"),
        NK_CACHE_ARGS(o.cache),
        NK_OPT_STRING("trace", 0, &o.trace, "FILE",
                      "write a line of JSON there for each event of a step"),
        NK_OPT_INT("drain-ms", 0, &o.drain_ms, "N", 0, 3600000,
                   "after SIGTERM running sessions have so many ms"),
        NK_OPT_INT("stall-ms", 0, &o.stall_ms, "N", 100, 3600000,
                   "a stage that does not answer for so many ms is given up"),
        NK_OPT_INT("idle-ms", 0, &o.idle_ms, "N", 100, 86400000,
                   "a session that is sent nothing for so many ms ends"),
        NK_OPT_INT("silence-ms", 0, &o.silence_ms, "N", 100, 3600000,
                   "a neighbour or client that is not heard of for so many ms, whatever it "
                   "computes, is lost"),
        NK_OPT_INT(
            "journal-mib", 0, &o.journal_mib, "N", 0, 1 << 20,
            "memory for rows that went to the next worker, to be sent again when a worker is "
            "lost; 0: they are computed again"),
        NK_OPT_INT("spill-mib", 0, &o.spill_mib, "N", 0, 1 << 24,
                   "more of them in nameless files of the cache folder; 0: none"),
        NK_OPT_INT(
            "checkpoint-mib", 0, &o.checkpoint_mib, "N", 0, 1 << 24,
            "memory for earlier states of sessions, of models that have a state; 0: a prompt "
            "that leaves what was computed is computed anew"),
        NK_OPT_INT("checkpoint-every", 0, &o.checkpoint_every, "N", 0, 1 << 24,
                   "one of them about every N tokens; 0: only about the prompt's end"),
        NK_OPT_INT("queue", 0, &o.queue, "N", 0, 10000, "sessions that may wait for room"),
        NK_OPT_INT("queue-ms", 0, &o.queue_ms, "N", 0, 3600000, "and for how many ms"),
        NK_OPT_STRING("identity", 0, &o.identity, "DIR",
                      "this machine's identity folder: TLS with the members of its cluster alone"),
        NK_OPT_INT("epoch", 0, &o.epoch, "N", 0, INT64_MAX,
                   "of the cluster's plan: sessions of another one are refused; 0: none"),
        NK_OPT_STRING("tls-ca", 0, &o.tls_ca, "FILE",
                      "PEM: the cluster's CA; peers must have its certificates"),
        NK_OPT_STRING("tls-cert", 0, &o.tls_cert, "FILE", "PEM: this worker's certificate"),
        NK_OPT_STRING("tls-key", 0, &o.tls_key, "FILE", "PEM: its key"),
        NK_OPT_FLAG("insecure", 0, &o.insecure, "listen beyond loopback without TLS"),
        NK_OPT_INT("parent-fd", 0, &o.parent_fd, "N", 0, 1 << 20,
                   "end when this file descriptor reads end-of-file"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "worker (--slice FILE | --model FILE --layers A-B) [options]",
        .summary = "Serves one stage over gRPC. Prints one line on standard output when it is "
                   "ready. SIGTERM drains: no new sessions, running ones finish, then it ends.",
        .args = args,
    };
    struct nk_worker_opts opts = defaults;
    struct nk_buf ca = NK_BUF_INIT(PEM_BYTES_MAX), cert = NK_BUF_INIT(PEM_BYTES_MAX),
                  key = NK_BUF_INIT(PEM_BYTES_MAX);
    const char *peers[NK_WORKER_PEERS_MAX];
    struct nk_cluster *cluster = NULL;
    const struct nk_stage_info *info;
    nk_worker *w = NULL;
    char *slice = NULL;
    const char *why; /* nk_log's arguments are only evaluated when it logs */
    struct nk_error err;
    int first, code, rc, hold = -1;

    if (nk_cli_parse(argc, argv, &cmd, &first, &code))
        return code;
    rc = check_options(&o, &err);
    if (rc)
        goto out;
    nk_cli_bound_spinning(argv);
    rc = find_slice(&o, &slice, &hold, &err);
    if (!rc && o.cluster)
        rc = nk_cluster_read(&cluster, o.cluster, &err);
    if (!rc && o.tls_ca) {
        rc = nk_file_read(o.tls_ca, PEM_BYTES_MAX, &ca, &err);
        if (!rc)
            rc = nk_file_read(o.tls_cert, PEM_BYTES_MAX, &cert, &err);
        if (!rc)
            rc = nk_file_read_secret(o.tls_key, PEM_BYTES_MAX, &key, &err);
        opts.credentials.ca = nk_buf_str(&ca);
        opts.credentials.certificate = nk_buf_str(&cert);
        opts.credentials.key = nk_buf_str(&key);
    }
    opts.credentials.identity = o.identity;
    opts.epoch = (uint64_t)o.epoch;
    if (rc)
        goto out;
    for (int i = 0; i < o.peers.n; i++)
        peers[opts.n_peers++] = o.peers.items[i];
    for (int i = 0; cluster && i < cluster->n_workers; i++)
        peers[opts.n_peers++] = cluster->workers[i].address;
    for (int i = 0; cluster && i < cluster->n_spares; i++)
        peers[opts.n_peers++] = cluster->spares[i];
    opts.peers = peers;
    opts.slice_path = slice;
    opts.id = o.id;
    opts.listen = o.listen;
    opts.stage.device = o.device;
    opts.stage.n_ctx = (int)o.ctx;
    opts.stage.n_seq_max = (int)o.sequences;
    opts.stage.n_batch = (int)o.batch;
    opts.stage.n_threads = (int)o.threads;
    opts.stage.n_threads_batch = (int)o.threads_batch;
    opts.stage.weights = o.no_mmap ? NK_WEIGHTS_READ : o.mmap ? NK_WEIGHTS_MAPPED : NK_WEIGHTS_AUTO;
    opts.stage.verify = o.how;
    opts.stage.cache_type_k = o.cache.type_k;
    opts.stage.cache_type_v = o.cache.type_v;
    opts.stage.no_flash_attn = o.cache.no_flash_attn;
    opts.deterministic = o.deterministic;
    opts.chunk = (int)o.chunk;
    opts.shared_cores = o.shared_cores;
    opts.queue_max = (int)o.queue;
    opts.queue_ms = (uint32_t)o.queue_ms;
    opts.stall_ms = (uint32_t)o.stall_ms;
    opts.idle_ms = (uint32_t)o.idle_ms;
    opts.silence_ms = (uint32_t)o.silence_ms;
    opts.journal_bytes = (uint64_t)o.journal_mib << 20;
    opts.spill_bytes = (uint64_t)o.spill_mib << 20;
    opts.checkpoint_bytes = (uint64_t)o.checkpoint_mib << 20;
    opts.checkpoint_every = (int)o.checkpoint_every;
    opts.trace_path = o.trace;
    nk_stage_global_init(o.device);
    rc = nk_worker_start(&w, &opts, &err);
    if (hold >= 0)
        close(hold);
    hold = -1;
    if (!rc)
        rc = catch_signals(&err);
    if (rc) {
        nk_worker_stop(w, 0);
        goto out;
    }
    if (o.insecure && !nk_address_is_loopback(o.listen))
        nk_log(NK_LOG_CLI, NK_LOG_WARN,
               "listen=%s msg=\"no encryption and no authentication: everybody who can reach this "
               "port can use the model and read what passes\"",
               o.listen);
    info = nk_worker_stage(w);
    printf("ready %.*s:%d layers %d-%d of %d device %s\n", (int)(strrchr(o.listen, ':') - o.listen),
           o.listen, nk_worker_port(w), info->layer_begin, info->layer_end, info->layer_count,
           info->device);
    fflush(stdout);
    rc = wait_for_end(w, (int)o.parent_fd, &why, &err);
    if (rc) { /* what runs has failed with the same */
        nk_worker_stop(w, 0);
        goto out;
    }
    nk_log(NK_LOG_CLI, NK_LOG_INFO, "event=drain why=\"%s\"", why);
    signal(SIGTERM, SIG_DFL); /* a second one ends it at once */
    signal(SIGINT, SIG_DFL);
    nk_worker_stop(w, (uint32_t)o.drain_ms);
out:
    if (hold >= 0)
        close(hold);
    free(slice);
    free(cluster);
    nk_buf_release(&ca);
    nk_buf_release(&cert);
    nk_buf_release(&key);
    return rc ? nk_cli_report(&err) : NK_EXIT_OK;
}
