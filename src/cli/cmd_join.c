/* nakshatra join: this machine works in somebody's cluster. */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "agent/agent.h"
#include "base/file.h"
#include "base/process.h"
#include "base/thread.h"
#include "cli/interrupt.h"
#include "cluster/enrol.h"
#include "cluster/identity.h"

int nk_cmd_join(int argc, char **argv);

enum {
    TOKEN_FILE_MAX = 4096,
    LINE_MS = 10000,
    LOCK_MS = 3000, /* who has the folder may be about to end */
    LOCK_POLL_MS = 50,
};

struct options {
    const char *token_file, *state, *name, *device;
    struct nk_arg_list models;
    int64_t threads, drain_ms, parent_fd;
    bool quiet;
};

/* ---- the token ---- */

/* Whoever lists processes does not see it. */
static void hide(char *text)
{
    memset(text, '-', strlen(text));
}

static int read_stdin(char *out, size_t size, struct nk_error *err)
{
    size_t n = fread(out, 1, size - 1, stdin);

    out[n] = '\0';
    return n ? 0
             : nk_fail(err, NK_E_INVALID, "bad_token",
                       "--token-file -: nothing came on standard input");
}

/* Where the token is: the argument, a file, the environment. *has: there is one. */
static int find_token(const struct options *o, char *argument, struct nk_token *out, bool *has,
                      struct nk_error *err)
{
    const char *environment = getenv("NAKSHATRA_TOKEN");
    struct nk_buf file = NK_BUF_INIT(TOKEN_FILE_MAX);
    char text[TOKEN_FILE_MAX] = "";
    int rc = 0;

    *has = false;
    if (argument && o->token_file)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "a token and --token-file were both given; one of them says which");
    if (argument) {
        snprintf(text, sizeof text, "%s", argument);
        hide(argument);
    } else if (o->token_file && !strcmp(o->token_file, "-")) {
        rc = read_stdin(text, sizeof text, err);
    } else if (o->token_file) {
        rc = nk_file_read_secret(o->token_file, TOKEN_FILE_MAX - 1, &file, err);
        if (!rc)
            snprintf(text, sizeof text, "%s", nk_buf_str(&file));
    } else if (environment) {
        snprintf(text, sizeof text, "%s", environment);
    }
    unsetenv("NAKSHATRA_TOKEN"); /* not for children */
    nk_buf_release(&file);
    if (rc || !text[0])
        return rc;
    *has = true;
    return nk_token_decode(out, text, err);
}

/* ---- joining ---- */

static struct nk_bytes bytes_of(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)nk_buf_str(b), b->size };
}

/* What was learnt into the state folder. */
static int keep(const char *dir, const struct nk_enrolled *e, int enrolment_port,
                struct nk_error *err)
{
    struct nk_joined j = { .port = e->port,
                           .enrolment_port = enrolment_port,
                           .n_addresses = e->n_addresses };
    char identity[4200], path[4200];
    int rc;

    snprintf(identity, sizeof identity, "%.4000s/identity", dir);
    snprintf(path, sizeof path, "%.4000s/joined.json", dir);
    strcpy(j.cluster, e->about.cluster);
    strcpy(j.member, e->about.member);
    strcpy(j.name, e->name);
    memcpy(j.addresses, e->addresses, sizeof j.addresses);
    rc = nk_identity_write(identity, bytes_of(&e->ca), bytes_of(&e->certificate), bytes_of(&e->key),
                           err);
    if (!rc)
        rc = nk_members_write(identity, &e->roster, err);
    return rc ? rc : nk_joined_write(path, &j, err);
}

static int enrol(const char *dir, const struct nk_token *t, const char *name,
                 const struct nk_identity_files *old, struct nk_error *err)
{
    struct nk_enrolled e;
    char key[4200];
    int rc;

    snprintf(key, sizeof key, "%.4000s/joining.key.pem", dir);
    rc = nk_enrol_join(&(struct nk_enrol_join_opts){ .token = t,
                                                     .name = name,
                                                     .version = NK_VERSION,
                                                     .key_path = key,
                                                     .old = old,
                                                     .clock = nk_clock_system() },
                       &e, err);
    if (!rc)
        rc = keep(dir, &e, t->port, err);
    if (!rc) {
        unlink(key);
        printf("joined cluster %.8s as %s\n", e.about.cluster, e.name);
        fflush(stdout);
    }
    nk_enrolled_release(&e);
    return rc;
}

/* Is this machine a member of that cluster still? The endpoint is asked, by renewing; where it
 * cannot be reached, a certificate that is good has to do. */
static bool is_member(const char *dir, const struct nk_identity_files *id)
{
    struct nk_enrolled e;
    struct nk_joined j;
    struct nk_error err;
    char path[4200];
    int rc;

    snprintf(path, sizeof path, "%.4000s/joined.json", dir);
    if (nk_joined_read(&j, path, &err))
        return false;
    rc = nk_enrol_renew(
        &(struct nk_enrol_renew_opts){
            .identity = id, .joined = &j, .version = NK_VERSION, .clock = nk_clock_system() },
        &e, &err);
    if (!rc)
        rc = keep(dir, &e, j.enrolment_port, &err);
    nk_enrolled_release(&e);
    return rc == 0 ||
           (rc == NK_E_UNAVAILABLE && nk_clock_unix_s(nk_clock_system()) < id->about.not_after_s);
}

/* After this the state folder is a member's. */
static int become_member(const struct options *o, const char *dir, const struct nk_token *t,
                         bool has_token, struct nk_error *err)
{
    struct nk_identity_files id;
    char identity[4200], name[NK_MEMBER_NAME_SIZE], host[256] = "";
    bool has_old;
    int rc;

    if (o->name && !nk_member_name_is(o->name))
        return nk_fail(err, NK_E_INVALID, "bad_name",
                       "--name %.70s: up to 63 letters, digits, '-', '_' and '.', beginning with "
                       "a letter or digit",
                       o->name);
    snprintf(identity, sizeof identity, "%.4000s/identity", dir);
    rc = nk_identity_read(&id, identity, err);
    has_old = !rc;
    if (rc && rc != NK_E_NOT_FOUND && !has_token)
        return rc;
    if (!has_token && !has_old)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "this machine is no member of a cluster yet: the first time, nakshatra "
                       "join needs the token that nakshatra serve prints on the other machine");
    if (has_token && has_old && !strcmp(id.about.cluster, t->cluster) && is_member(dir, &id))
        has_token = false; /* the token of the first time, given again: not used up for nothing */
    if (has_token) {
        if (o->name)
            snprintf(name, sizeof name, "%s", o->name);
        else if (!gethostname(host, sizeof host - 1))
            nk_member_name_make(name, host);
        else
            strcpy(name, "machine");
        rc =
            enrol(dir, t, name, has_old && !strcmp(id.about.cluster, t->cluster) ? &id : NULL, err);
    } else {
        rc = 0;
    }
    if (has_old)
        nk_identity_release(&id);
    return rc;
}

/* One process for a state folder: two would take each other's place at the coordinator, by turns
 * and for ever. *fd: holds it until it is closed, or the process ends. */
static int lock(const char *dir, int *fd, struct nk_error *err)
{
    uint64_t end = nk_clock_now_ns(nk_clock_system()) + (uint64_t)LOCK_MS * 1000000;
    char path[4200], pid[32] = "";
    ssize_t n;

    snprintf(path, sizeof path, "%.4000s/lock", dir);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*fd < 0)
        return nk_fail(err, NK_E_DENIED, "cannot_create", "%s: %s", path, strerror(errno));
    while (flock(*fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return nk_fail(err, NK_E_UNAVAILABLE, "cannot_lock", "%s: %s", path, strerror(errno));
        if (nk_clock_now_ns(nk_clock_system()) < end) {
            (void)poll(NULL, 0, LOCK_POLL_MS);
            continue;
        }
        n = read(*fd, pid, sizeof pid - 1);
        pid[n > 0 ? strspn(pid, "0123456789") : 0] = '\0';
        return nk_fail(err, NK_E_PRECONDITION, "already_joined",
                       "nakshatra join runs already with the state folder %.200s%s%s; end that "
                       "one first, or give this one a --state of its own",
                       dir, *pid ? ", as pid " : "", pid);
    }
    n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(*fd, 0) < 0 || write(*fd, pid, (size_t)n) != n)
        return 0; /* it holds all the same; only that sentence is poorer */
    return 0;
}

/* ---- running ---- */

struct view {
    pthread_mutex_t mutex;
    bool quiet, tty, drawn;
    uint64_t line_ns; /* when the last line about a fetch was written */
};

static void clear_bar(struct view *v)
{
    if (v->drawn)
        fprintf(stderr, "\r\033[K");
    v->drawn = false;
}

static void say(void *user, const char *sentence)
{
    struct view *v = user;

    if (v->quiet)
        return;
    pthread_mutex_lock(&v->mutex);
    clear_bar(v);
    printf("%s\n", sentence);
    fflush(stdout);
    pthread_mutex_unlock(&v->mutex);
}

/* A bar on a terminal; in a pipe a line now and then. */
static void progress(void *user, const struct nk_agent_progress *p)
{
    struct view *v = user;
    char done[24], total[24], rate[24], left[32] = "";
    uint64_t now = nk_clock_now_ns(nk_clock_system());
    bool end = p->bytes_done == p->bytes_total;

    if (v->quiet || !p->bytes_total)
        return;
    if (p->rate_bps && !end)
        snprintf(left, sizeof left, ", %llu s left",
                 (unsigned long long)((p->bytes_total - p->bytes_done) / p->rate_bps));
    pthread_mutex_lock(&v->mutex);
    if (v->tty) {
        clear_bar(v);
        if (!end) {
            fprintf(stderr, "layers %d-%d: %s of %s, %s/s%s", p->layer_begin, p->layer_end,
                    nk_size_format(done, p->bytes_done), nk_size_format(total, p->bytes_total),
                    nk_size_format(rate, p->rate_bps), left);
            v->drawn = true;
        }
    } else if (!end && now - v->line_ns >= (uint64_t)LINE_MS * 1000000) {
        printf("fetching layers %d-%d: %s of %s, %s/s%s\n", p->layer_begin, p->layer_end,
               nk_size_format(done, p->bytes_done), nk_size_format(total, p->bytes_total),
               nk_size_format(rate, p->rate_bps), left);
        fflush(stdout);
        v->line_ns = now;
    }
    pthread_mutex_unlock(&v->mutex);
}

/* Writes a byte into a pipe for each signal, and when whoever started this is gone. */
struct watch {
    int out, parent_fd;
    int end[2];
};

static void *watch(void *arg)
{
    struct watch *w = arg;
    bool parent = w->parent_fd >= 0;

    for (;;) {
        struct pollfd fds[3] = { { w->end[0], POLLIN, 0 },
                                 { nk_interrupt_fd(), POLLIN, 0 },
                                 { parent ? w->parent_fd : -1, POLLIN, 0 } };
        char c;

        if (poll(fds, 3, -1) < 0)
            continue;
        if (fds[0].revents)
            return NULL;
        if (fds[1].revents && nk_interrupt_signal()) {
            if (write(w->out, "s", 1) < 0)
                return NULL;
            nk_interrupt_clear();
        }
        if (parent && fds[2].revents && read(w->parent_fd, &c, 1) <= 0) {
            parent = false;
            if (write(w->out, "p", 1) < 0)
                return NULL;
        }
    }
}

static int run(const struct options *o, const char *dir, struct nk_error *err)
{
    struct view v = { .quiet = o->quiet, .tty = isatty(2) };
    struct nk_agent_opts opts = { .state = dir,
                                  .device = o->device,
                                  .n_threads = (int)o->threads,
                                  .drain_ms = (uint32_t)o->drain_ms,
                                  .clock = nk_clock_system(),
                                  .chance = nk_chance_system(),
                                  .say = say,
                                  .progress = progress,
                                  .user = &v };
    struct watch w = { .parent_fd = (int)o->parent_fd };
    char *self = NULL;
    pthread_t thread;
    int stop[2], rc = nk_process_self(&self, err);

    if (rc)
        return rc;
    opts.program = self;
    for (int i = 0; i < o->models.n && i < NK_AGENT_MODELS_MAX; i++)
        opts.models[opts.n_models++] = o->models.items[i];
    if (pipe2(stop, O_CLOEXEC) < 0 || pipe2(w.end, O_CLOEXEC) < 0) {
        free(self);
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "a pipe could not be made");
    }
    pthread_mutex_init(&v.mutex, NULL);
    w.out = stop[1];
    if (nk_thread_start(&thread, watch, &w)) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_thread", "a thread could not be started");
    } else {
        rc = nk_agent_run(&opts, stop[0], err);
        if (write(w.end[1], "", 1) == 1)
            pthread_join(thread, NULL);
    }
    clear_bar(&v);
    for (int i = 0; i < 2; i++) {
        close(stop[i]);
        close(w.end[i]);
    }
    pthread_mutex_destroy(&v.mutex);
    free(self);
    return rc;
}

/* Will it be the same however often it is tried? */
static bool is_final(const struct nk_error *err)
{
    static const char *const reasons[] = { "expired_token",      "used_token",    "revoked_token",
                                           "unknown_token",      "wrong_cluster", "removed",
                                           "expired_certificate" };

    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (!strcmp(err->reason, reasons[i]))
            return true;
    return false;
}

int nk_cmd_join(int argc, char **argv)
{
    struct options o = { .drain_ms = 30000, .parent_fd = -1 };
    const struct nk_arg args[] = {
        NK_OPT_STRING("token-file", 0, &o.token_file, "FILE",
                      "the token is in that file; -: on standard input"),
        NK_OPT_STRING("name", 0, &o.name, "NAME", "of this machine; else the host's"),
        NK_OPT_LIST("models", 0, &o.models, "DIR|FILE",
                    "GGUF files to take layers from instead of the network; repeatable"),
        NK_OPT_STRING("device", 'd', &o.device, "NAME",
                      "CPU, Vulkan0, CUDA0, ...; else the first GPU, or the CPU where there is "
                      "none"),
        NK_OPT_INT("threads", 't', &o.threads, "N", 1, 1024, "of its worker; else all cores"),
        NK_OPT_INT("drain-ms", 0, &o.drain_ms, "N", 0, 3600000,
                   "after a signal others have so many ms to take over what it holds"),
        NK_OPT_STRING("state", 0, &o.state, "DIR",
                      "where it is kept who this machine is; else $XDG_STATE_HOME/nakshatra or "
                      "~/.local/state/nakshatra"),
        NK_OPT_FLAG("quiet", 'q', &o.quiet, "says nothing but errors"),
        NK_OPT_INT("parent-fd", 0, &o.parent_fd, "N", 0, 1 << 20,
                   "end when this file descriptor reads end-of-file"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "join [TOKEN] [options]",
        .summary = "Makes this machine a member of a cluster and works for it until a signal "
                   "comes: measures itself, fetches the layers that it is given and serves them. "
                   "The token (an argument, --token-file, or NAKSHATRA_TOKEN in the environment) "
                   "is needed the first time only.",
        .args = args,
        .n_max = 1,
    };
    struct nk_token token;
    struct nk_error err;
    bool has_token;
    char *dir = NULL;
    int first, exit_code, lock_fd = -1, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    if (o.parent_fd >= 0) /* not for its own children */
        (void)fcntl((int)o.parent_fd, F_SETFD, FD_CLOEXEC);
    rc = find_token(&o, first < argc ? argv[first] : NULL, &token, &has_token, &err);
    if (!rc)
        rc = nk_state_dir(&dir, o.state, "member", &err);
    if (!rc)
        rc = lock(dir, &lock_fd, &err);
    if (!rc)
        rc = become_member(&o, dir, &token, has_token, &err);
    if (!rc) {
        nk_interrupt_init();
        rc = run(&o, dir, &err);
    }
    if (lock_fd >= 0)
        close(lock_fd);
    free(dir);
    if (!rc)
        return NK_EXIT_OK;
    exit_code = nk_cli_report(&err);
    return is_final(&err) ? NK_EXIT_REFUSED : exit_code;
}
