#include "cli/local.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/thread.h"
#include "cli/interrupt.h"
#include "pieces/shelf.h"
#include "slice/layout.h"
#include "slice/slice.h"
#include "stage/stage.h"
#include "stage/trial.h"

enum {
    READY_MS = 600000, /* a large slice from a slow disk */
    STOP_MS = 5000,
    DEVICE_MS = 20000, /* the drivers' answer which device there is */
    POLL_MS = 200,     /* how soon a signal is seen while waiting for a worker */
};

#define DIR_PREFIX "nakshatra-up-"

/* ---- files ---- */

void nk_local_files_free(struct nk_local_files *f)
{
    if (!f)
        return;
    for (int i = 0; i < NK_CLUSTER_WORKERS_MAX; i++)
        free(f->slices[i]);
    free(f->vocab);
    if (f->hold >= 0)
        close(f->hold);
    free(f->cluster);
    free(f);
}

/* "models/kjv-tiny.gguf" is the model kjv-tiny. */
static void set_model_id(struct nk_cluster *c, const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t n;

    snprintf(c->model_id, sizeof c->model_id, "%.120s", slash ? slash + 1 : path);
    n = strlen(c->model_id);
    if (n > 5 && !strcmp(c->model_id + n - 5, ".gguf"))
        c->model_id[n - 5] = '\0';
}

static int choose_ranges(nk_model *m, const struct nk_local_opts *o, struct nk_range *ranges,
                         int *n, struct nk_error *err)
{
    int rc;

    if (o->layers) {
        rc = nk_ranges_parse(o->layers, ranges, NK_CLUSTER_WORKERS_MAX, n, err);
        return rc ? rc : nk_ranges_check(m, ranges, *n, true, err);
    }
    *n = o->n_workers;
    return nk_ranges_balance(m, o->n_workers, ranges, err);
}

static bool is_readable(int fd, uint32_t wait_ms)
{
    uint64_t end_ns = nk_clock_now_ns(nk_clock_system()) + (uint64_t)wait_ms * 1000000, now;
    struct pollfd p = { .fd = fd, .events = POLLIN };
    int n = -1;

    while (n < 0 && (now = nk_clock_now_ns(nk_clock_system())) < end_ns)
        if ((n = poll(&p, 1, (int)((end_ns - now) / 1000000 + 1))) < 0 && errno != EINTR)
            return false;
    return n > 0;
}

/* The memory that the workers will have, all together: of the device that each of them will choose.
 * Drivers take time and memory, so they are loaded by a child process; one that hangs keeps nobody.
 * 0: unknown. */
static uint64_t find_free_memory(const char *device, char name[64])
{
    struct nk_device d = { .name = "" };
    int fds[2];
    bool answered;
    pid_t pid;

    snprintf(name, 64, "CPU");
    if (device && !strcasecmp(device, "CPU"))
        return nk_memory_available();
    if (pipe2(fds, O_CLOEXEC) < 0)
        return 0;
    pid = fork();
    if (pid == 0) {
        struct nk_error err;
        bool found;

        setenv("NK_LOG", "error", 1);
        nk_stage_global_init(device);
        found = !nk_device_find(&d, device, &err);
        _exit(found && write(fds[1], &d, sizeof d) == (ssize_t)sizeof d ? 0 : 1);
    }
    close(fds[1]);
    answered = pid > 0 && is_readable(fds[0], DEVICE_MS);
    if (!answered || read(fds[0], &d, sizeof d) != (ssize_t)sizeof d)
        d.name[0] = '\0';
    close(fds[0]);
    if (pid > 0 && !answered)
        kill(pid, SIGKILL);
    if (pid > 0) /* what hangs in a driver may not even end when it is killed */
        waitpid(pid, NULL, answered ? 0 : WNOHANG);
    if (!d.name[0])
        return 0; /* there is no such device, which the workers say better */
    if (!d.is_gpu)
        return nk_memory_available();
    memcpy(name, d.name, 64);
    return d.memory_free_bytes;
}

/* Each worker sees for itself, but not what the others are about to take. */
static int check_memory(const nk_model *m, const struct nk_local_opts *o,
                        const struct nk_range *ranges, int n, struct nk_error *err)
{
    struct nk_stage_opts stage = nk_stage_opts_default();
    struct nk_need all = { 0 }, one;
    struct nk_need_opts need;
    char name[64];
    uint64_t free_bytes = find_free_memory(o->device, name);
    int rc = 0;

    stage.n_ctx = o->n_ctx;
    stage.n_seq_max = o->n_sequences ? o->n_sequences : NK_SEQUENCES;
    stage.cache_type_k = o->cache.type_k;
    stage.cache_type_v = o->cache.type_v;
    for (int i = 0; !rc && i < n; i++) {
        rc = nk_stage_memory(m, ranges[i], &stage, &need, &one, err);
        if (rc)
            return rc;
        all.weights_bytes += o->mmap && !strcmp(name, "CPU") ? 0 : one.weights_bytes;
        all.cache_bytes += one.cache_bytes;
        all.batch_bytes += one.batch_bytes;
    }
    return nk_need_check(&all, &need, free_bytes, o->model_path, name, err);
}

int nk_local_files_make(struct nk_local_files **out, const struct nk_local_opts *o,
                        struct nk_error *err)
{
    struct nk_local_files *f = calloc(1, sizeof *f);
    struct nk_range ranges[NK_CLUSTER_WORKERS_MAX];
    nk_model *m = NULL;
    int n = 0, rc;

    *out = NULL;
    if (!f || !(f->cluster = calloc(1, sizeof *f->cluster))) {
        free(f);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    f->hold = -1;
    rc = nk_model_open(&m, o->model_path, err);
    if (!rc)
        rc = choose_ranges(m, o, ranges, &n, err);
    if (!rc)
        rc = check_memory(m, o, ranges, n, err);
    if (!rc)
        rc = nk_model_hash(m, f->cluster->model_sha256, err);
    if (!rc)
        rc = nk_wrap(nk_trial_uncached(m, ranges, n, err), err, "%s", o->model_path);
    if (!rc) {
        f->hold = nk_shelf_make_room(m, ranges, n);
        rc = nk_slice_cache_room(m, ranges, n, err);
    }
    if (!rc)
        rc = nk_vocab_cached(m, o->verify, &f->vocab, err);
    for (int i = 0; !rc && i < n; i++) {
        struct nk_cluster_worker *w = &f->cluster->workers[i];

        rc = nk_slice_cached(m, ranges[i], o->verify, &f->slices[i], err);
        snprintf(w->id, sizeof w->id, "w%d", i);
        w->layer_begin = ranges[i].begin;
        w->layer_end = ranges[i].end;
    }
    nk_model_close(m);
    if (!rc && strlen(f->vocab) >= sizeof f->cluster->vocab_path)
        rc = nk_fail(err, NK_E_INVALID, "bad_argument", "the cache folder's path is too long");
    if (rc) {
        nk_local_files_free(f);
        return rc;
    }
    strcpy(f->cluster->vocab_path, f->vocab);
    set_model_id(f->cluster, o->model_path);
    f->cluster->f16 = o->f16;
    f->cluster->n_workers = n;
    *out = f;
    return 0;
}

/* ---- processes ---- */

static uint64_t now_ns(const struct nk_local *l)
{
    return nk_clock_now_ns(l->opts.clock ? l->opts.clock : nk_clock_system());
}

/* How a worker has ended whose output has. */
static const char *how_ended(struct nk_local *l, int i, char *how, size_t size)
{
    snprintf(how, size, "closed its output");
    if (nk_process_wait(&l->processes[i], 5000))
        nk_process_status_format(how, size, l->processes[i].status);
    return how;
}

static int worker_ended(struct nk_local *l, int i, struct nk_error *err)
{
    char how[96];

    return nk_fail(err, NK_E_UNAVAILABLE, "worker_ended", "worker %s %s", l->cluster->workers[i].id,
                   how_ended(l, i, how, sizeof how));
}

bool nk_local_ready(const char *line, int layer_begin, int layer_end, char address[256])
{
    int begin, end, n, used = 0;

    address[0] = '\0';
    return sscanf(line, "ready %255s layers %d-%d of %d device %n", address, &begin, &end, &n,
                  &used) == 4 &&
           used && begin == layer_begin && end == layer_end && strchr(address, ':');
}

/* Waits for the worker's ready line and takes the address from it. What else it prints, which is
 * what a library says before the process dies, is no answer: how it ended is. */
static int wait_ready(struct nk_local *l, int i, struct nk_error *err)
{
    struct nk_cluster_worker *w = &l->cluster->workers[i];
    uint64_t end = nk_clock_now_ns(nk_clock_system()) + (uint64_t)READY_MS * 1000000;
    struct nk_error e;
    char line[512], address[256] = "";
    int rc;

    do {
        if (nk_interrupt_signal())
            return nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted");
        rc = nk_process_read_line(&l->processes[i], line, sizeof line, POLL_MS, &e);
    } while (((!rc && !nk_local_ready(line, w->layer_begin, w->layer_end, address)) ||
              rc == NK_E_EXHAUSTED || rc == NK_E_DEADLINE) &&
             nk_clock_now_ns(nk_clock_system()) < end);
    if (rc == NK_E_UNAVAILABLE)
        return nk_interrupt_signal() ? nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted")
                                     : worker_ended(l, i, err);
    if (rc)
        return nk_fail(err, rc == NK_E_DEADLINE ? NK_E_DEADLINE : NK_E_INTERNAL, "worker_silent",
                       "worker %s is not ready after %d s: %s", w->id, READY_MS / 1000, e.msg);
    if (!address[0] || !nk_local_ready(line, w->layer_begin, w->layer_end, address))
        return nk_fail(err, NK_E_DEADLINE, "worker_silent",
                       "worker %s says other things than that it is ready, for %d s", w->id,
                       READY_MS / 1000);
    memcpy(w->address, address, sizeof w->address);
    l->workers[i].state = NK_LOCAL_READY;
    nk_restart_ready(&l->workers[i].restart, now_ns(l));
    return 0;
}

/* On a free port, or the one that it had. */
static int start_worker(struct nk_local *l, int i, struct nk_error *err)
{
    const struct nk_local_opts *o = &l->opts;
    struct nk_cluster_worker *w = &l->cluster->workers[i];
    char numbers[4][16];
    const char *argv[32], *env[2] = { NULL };
    int n = 0;

#define ADD(...)                                                                                   \
    do {                                                                                           \
        const char *const more[] = { __VA_ARGS__ };                                                \
        for (size_t k = 0; k < sizeof more / sizeof more[0]; k++)                                  \
            argv[n++] = more[k];                                                                   \
    } while (0)
#define NUMBER(k, v) (snprintf(numbers[k], sizeof numbers[k], "%d", v), numbers[k])
    ADD(l->self, "worker", "--slice", l->files->slices[i], "--listen",
        w->address[0] ? w->address : "127.0.0.1:0", "--id", w->id, "--parent-fd",
        NUMBER(0, l->life_read), "--verify", nk_slice_verify_text(o->verify));
    if (o->n_ctx)
        ADD("--ctx", NUMBER(1, o->n_ctx));
    if (o->n_sequences)
        ADD("--sequences", NUMBER(2, o->n_sequences));
    if (o->n_threads)
        ADD("--threads", NUMBER(3, o->n_threads));
    if (l->n > 1 && l->n * (o->n_threads ? o->n_threads : nk_cpu_count()) > nk_cpu_count())
        ADD("--shared-cores");
    if (o->device)
        ADD("--device", o->device);
    if (o->cache.type_k)
        ADD("--cache-type-k", o->cache.type_k);
    if (o->cache.type_v)
        ADD("--cache-type-v", o->cache.type_v);
    if (o->cache.no_flash_attn)
        ADD("--no-flash-attn");
    if (o->mmap)
        ADD("--mmap");
    if (o->deterministic)
        ADD("--deterministic");
    if (i + 1 < l->n)
        ADD("--allow-peer", l->cluster->workers[i + 1].address);
    argv[n] = NULL;
#undef ADD
#undef NUMBER
    if (!getenv("NK_LOG"))
        env[0] = "NK_LOG=warn"; /* the worker's own messages are in the way of the text */
    return nk_process_start(
        &l->processes[i],
        &(struct nk_process_opts){ .argv = argv,
                                   .keep_fds = &l->life_read,
                                   .n_keep_fds = 1,
                                   .capture_out = true,
                                   .env = env[0] ? (const char *const[]){ env[0], NULL } : NULL },
        err);
}

/* The folder's lock; -1: somebody has it, or it is none of ours. */
static int lock_dir(int base_fd, const char *path)
{
    int fd = openat(base_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return -1;
    if (!fstat(fd, &st) && st.st_uid == getuid() && !flock(fd, LOCK_EX | LOCK_NB))
        return fd;
    close(fd);
    return -1;
}

/* Removes the folders of runs that were killed: nobody holds their locks. */
static void sweep(const char *base)
{
    DIR *d = opendir(base);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        int fd;

        if (strncmp(e->d_name, DIR_PREFIX, strlen(DIR_PREFIX)) != 0)
            continue;
        fd = lock_dir(dirfd(d), e->d_name);
        if (fd < 0)
            continue;
        unlinkat(fd, "cluster.yaml", 0);
        unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
        close(fd);
    }
    if (d)
        closedir(d);
}

/* Makes it, with its lock held. */
static int make_dir(struct nk_local *l, const char *base, struct nk_error *err)
{
    char dir[sizeof l->dir];
    struct stat st;

    /* Another run may sweep it away before it is locked. */
    for (int attempt = 0; attempt < 10; attempt++) {
        if (snprintf(dir, sizeof dir, "%s/" DIR_PREFIX "XXXXXX", base) >= (int)sizeof dir ||
            !mkdtemp(dir))
            break;
        l->dir_fd = lock_dir(AT_FDCWD, dir);
        if (l->dir_fd >= 0 && !stat(dir, &st)) {
            strcpy(l->dir, dir);
            return 0;
        }
        if (l->dir_fd >= 0)
            close(l->dir_fd);
        l->dir_fd = -1;
    }
    return nk_fail(err, NK_E_DENIED, "cannot_create", "%s: no folder can be made there: %s", base,
                   strerror(errno));
}

/* A folder of its own with cluster.yaml in it, for as long as the workers live. */
static int write_cluster(struct nk_local *l, struct nk_error *err)
{
    const char *runtime = getenv("XDG_RUNTIME_DIR"), *tmp = getenv("TMPDIR");
    const char *base = runtime && runtime[0] == '/' ? runtime : tmp && tmp[0] == '/' ? tmp : "/tmp";
    struct nk_buf text = NK_BUF_INIT(1 << 20);
    int rc;

    sweep(base);
    rc = make_dir(l, base, err);
    if (rc)
        return rc;
    snprintf(l->cluster->path, sizeof l->cluster->path, "%s/cluster.yaml", l->dir);
    rc = nk_cluster_format(l->cluster, &text, err);
    if (!rc)
        rc = nk_file_write(l->cluster->path, nk_buf_str(&text), text.size, err);
    nk_buf_release(&text);
    return rc;
}

int nk_local_start(struct nk_local **out, struct nk_local_files *files,
                   const struct nk_local_opts *o, struct nk_error *err)
{
    struct nk_local *l = calloc(1, sizeof *l);
    int life[2] = { -1, -1 }, rc;

    *out = NULL;
    if (!l)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    l->life = l->life_read = l->dir_fd = -1;
    l->opts = *o;
    l->files = files;
    l->cluster = files->cluster;
    files->cluster = NULL;
    l->n = l->cluster->n_workers;
    for (int i = 0; i < l->n; i++)
        l->processes[i] = (struct nk_process)NK_PROCESS_INIT;
    rc = nk_process_self(&l->self, err);
    if (!rc && pipe(life) < 0)
        rc = nk_fail(err, NK_E_UNAVAILABLE, "no_pipe", "no pipe: %s", strerror(errno));
    if (!rc) {
        fcntl(life[0], F_SETFD, FD_CLOEXEC); /* the workers' copies are made by nk_process_start */
        fcntl(life[1], F_SETFD, FD_CLOEXEC);
        l->life_read = life[0];
        l->life = life[1];
    }
    for (int i = l->n - 1; !rc && i >= 0; i--) {
        rc = start_worker(l, i, err);
        if (!rc)
            rc = wait_ready(l, i, err);
    }
    if (!rc)
        rc = write_cluster(l, err);
    if (rc) {
        nk_local_stop(l);
        return rc;
    }
    *out = l;
    return 0;
}

/* ---- keeping them alive ---- */

/* It has ended, or could not be started: why says how. */
static int ended(struct nk_local *l, int i, const char *why, struct nk_error *err)
{
    struct nk_local_worker *k = &l->workers[i];
    const char *id = l->cluster->workers[i].id;
    uint64_t now = now_ns(l);
    int pause_ms = nk_restart_pause_ms(&k->restart, now);
    char quoted[300];

    nk_process_stop(&l->processes[i], 0); /* what closed its output and lives would keep the port */
    l->processes[i] = (struct nk_process)NK_PROCESS_INIT;
    if (pause_ms < 0)
        return nk_fail(err, NK_E_UNAVAILABLE, "worker_ended",
                       "worker %s %s, the %dth time in a row; it is not started again", id, why,
                       k->restart.n_in_a_row);
    nk_log(NK_LOG_CLI, NK_LOG_WARN, "event=worker_ended worker=%s how=%s again_in_ms=%d", id,
           nk_log_quote(quoted, sizeof quoted, why), pause_ms);
    k->state = NK_LOCAL_PAUSING;
    k->due_ns = now + (uint64_t)pause_ms * 1000000;
    return 0;
}

static int begin_again(struct nk_local *l, int i, struct nk_error *err)
{
    struct nk_error e;

    if (start_worker(l, i, &e))
        return ended(l, i, e.msg, err);
    l->workers[i].state = NK_LOCAL_STARTING;
    l->workers[i].due_ns = now_ns(l) + READY_MS * 1000000ull;
    return 0;
}

/* What it says while it starts, as far as it is there. */
static int read_start(struct nk_local *l, int i, struct nk_error *err)
{
    const struct nk_cluster_worker *w = &l->cluster->workers[i];
    struct nk_local_worker *k = &l->workers[i];
    struct nk_error e;
    char line[512], address[256], how[96];
    int rc;

    do
        rc = nk_process_read_line(&l->processes[i], line, sizeof line, 0, &e);
    while ((!rc && !nk_local_ready(line, w->layer_begin, w->layer_end, address)) ||
           rc == NK_E_EXHAUSTED);
    if (rc == NK_E_DEADLINE && now_ns(l) < k->due_ns)
        return 0;
    if (rc)
        return ended(l, i,
                     rc == NK_E_UNAVAILABLE ? how_ended(l, i, how, sizeof how)
                                            : "does not become ready",
                     err);
    k->state = NK_LOCAL_READY;
    nk_restart_ready(&k->restart, now_ns(l));
    nk_log(NK_LOG_CLI, NK_LOG_INFO, "event=worker_ready worker=%s address=%s", w->id, address);
    return 0;
}

int nk_local_poll(const struct nk_local *l, struct pollfd *fds, int *timeout_ms)
{
    uint64_t now = now_ns(l), due = UINT64_MAX;
    int n = 0;

    for (int i = 0; i < l->n; i++) {
        const struct nk_local_worker *k = &l->workers[i];

        if (k->state != NK_LOCAL_PAUSING)
            fds[n++] = (struct pollfd){ .fd = l->processes[i].out_fd, .events = POLLIN };
        if (k->state != NK_LOCAL_READY && k->due_ns < due)
            due = k->due_ns;
    }
    *timeout_ms = due == UINT64_MAX ? -1 : due <= now ? 0 : (int)((due - now + 999999) / 1000000);
    return n;
}

int nk_local_tend(struct nk_local *l, struct nk_error *err)
{
    int rc = 0;

    for (int i = l->n - 1; !rc && i >= 0; i--) {
        struct nk_local_worker *k = &l->workers[i];
        struct pollfd fd = { .fd = l->processes[i].out_fd, .events = POLLIN };
        char rest[256], how[96];

        switch (k->state) {
        case NK_LOCAL_READY:
            /* A ready worker says no more: its output ends with it. */
            if (poll(&fd, 1, 0) == 1 && read(fd.fd, rest, sizeof rest) <= 0)
                rc = ended(l, i, how_ended(l, i, how, sizeof how), err);
            break;
        case NK_LOCAL_PAUSING:
            if (now_ns(l) >= k->due_ns)
                rc = begin_again(l, i, err);
            break;
        case NK_LOCAL_STARTING:
            rc = read_start(l, i, err);
            break;
        }
    }
    return rc;
}

int nk_local_wait(struct nk_local *l, struct nk_error *err)
{
    for (;;) {
        struct pollfd fds[NK_CLUSTER_WORKERS_MAX + 1];
        int timeout_ms, rc, n = nk_local_poll(l, fds, &timeout_ms);

        fds[n] = (struct pollfd){ .fd = nk_interrupt_fd(), .events = POLLIN };
        if (nk_interrupt_signal())
            return 0;
        poll(fds, (nfds_t)n + 1, timeout_ms); /* what came of it is looked at below */
        if (nk_interrupt_signal())
            return 0;
        rc = nk_local_tend(l, err);
        if (rc)
            return rc;
    }
}

static void *tender_main(void *arg)
{
    struct nk_local *l = arg;
    struct nk_error err;
    bool given_up = false;
    char quoted[300];

    /* Not left before it is told to: the workers that this thread has started end with it
     * (PR_SET_PDEATHSIG is of the thread). */
    for (;;) {
        struct pollfd fds[NK_CLUSTER_WORKERS_MAX + 1];
        int timeout_ms = -1, n = given_up ? 0 : nk_local_poll(l, fds, &timeout_ms);

        fds[n] = (struct pollfd){ .fd = l->tender_stop[0], .events = POLLIN };
        poll(fds, (nfds_t)n + 1, timeout_ms);
        if (fds[n].revents)
            return NULL;
        if (given_up || !nk_local_tend(l, &err))
            continue;
        given_up = true;
        nk_log(NK_LOG_CLI, NK_LOG_ERROR, "reason=%s msg=%s", err.reason,
               nk_log_quote(quoted, sizeof quoted, err.msg));
    }
}

int nk_local_tend_start(struct nk_local *l, struct nk_error *err)
{
    /* At once: other threads start processes. */
    if (pipe2(l->tender_stop, O_CLOEXEC) < 0)
        return nk_fail(err, NK_E_UNAVAILABLE, "no_pipe", "no pipe: %s", strerror(errno));
    l->is_tended = !nk_thread_start(&l->tender, tender_main, l);
    if (l->is_tended)
        return 0;
    close(l->tender_stop[0]);
    close(l->tender_stop[1]);
    return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "the workers are not tended any more");
}

void nk_local_tend_stop(struct nk_local *l)
{
    if (!l->is_tended)
        return;
    close(l->tender_stop[1]);
    pthread_join(l->tender, NULL);
    close(l->tender_stop[0]);
    l->is_tended = false;
}

void nk_local_end(struct nk_local *l)
{
    nk_local_tend_stop(l);
    for (int i = 0; i < l->n; i++)
        nk_process_terminate(&l->processes[i]);
    if (l->life >= 0)
        close(l->life);
    if (l->life_read >= 0)
        close(l->life_read);
    l->life = l->life_read = -1;
    for (int i = 0; i < l->n; i++)
        nk_process_stop(&l->processes[i], STOP_MS);
    if (l->dir[0]) {
        unlink(l->cluster->path);
        rmdir(l->dir);
    }
    l->dir[0] = '\0';
    if (l->dir_fd >= 0)
        close(l->dir_fd);
    l->dir_fd = -1;
}

void nk_local_stop(struct nk_local *l)
{
    if (!l)
        return;
    nk_local_end(l);
    free(l->cluster);
    free(l->self);
    free(l);
}
