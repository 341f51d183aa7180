/* The gateway as a system ("serve"): `nakshatra serve` over workers of ours, asked over HTTP.
 * Beside it, over the very same workers, what it is compared with: the chain's own client
 * ("chain"), and the gateway with nobody else there ("alone"). */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/process.h"
#include "base/thread.h"
#include "bench/draw.h"
#include "bench/http.h"
#include "bench/ours.h"
#include "bench/stats.h"
#include "bench/system.h"
#include "slice/slice.h"

enum {
    READY_MS_MAX = 300000,
    RUN_MS_MAX = 600000,
    BODY_BYTES_MAX = 1 << 20,
    CLUSTER_BYTES_MAX = 1 << 20,
    CLIENTS_MAX = 256,
    TTFT_ASKED = 15,
    LISTEN_MS_MAX = 300000, /* until a listener has its first event */
    PROMPT_CROWD = 16,
};

struct nk_system {
    struct nk_system_opts opts;
    nk_system *ours;
    bool is_borrowed; /* ours and the gateway are another system's */
    struct nk_process gateway;
    int port;
    uint64_t rng;
};

/* ---- start ---- */

static int write_cluster(nk_system *s, char *path, size_t size, struct nk_error *err)
{
    struct nk_cluster *c = malloc(sizeof *c);
    struct nk_buf text = NK_BUF_INIT(CLUSTER_BYTES_MAX);
    char *vocab = NULL;
    nk_model *m = NULL;
    int rc;

    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    *c = *nk_chain_cluster(nk_ours_chain(s->ours));
    rc = nk_model_open(&m, s->opts.model, err);
    if (!rc)
        rc = nk_vocab_cached(m, NK_VERIFY_ONCE, &vocab, err);
    if (!rc) {
        snprintf(c->vocab_path, sizeof c->vocab_path, "%s", vocab);
        rc = nk_cluster_format(c, &text, err);
    }
    snprintf(path, size, "%s/cluster.yaml", s->opts.work_dir);
    if (!rc)
        rc = nk_file_write(path, nk_buf_str(&text), text.size, err);
    if (m)
        nk_model_close(m);
    nk_buf_release(&text);
    free(vocab);
    free(c);
    return rc;
}

static int start_gateway(nk_system *s, struct nk_error *err)
{
    char cluster[4200], log[4200], line[512];
    /* All clients are of one address, and those of the last turn may be there for a second more. */
    const char *argv[] = { s->opts.nakshatra, "serve",         "--cluster", cluster, "--listen",
                           "127.0.0.1:0",     "--connections", "4000",      NULL };
    struct nk_process_opts opts = { .argv = argv, .capture_out = true, .err_path = log };
    const char *colon;
    int rc = write_cluster(s, cluster, sizeof cluster, err);

    snprintf(log, sizeof log, "%s/workers.log", s->opts.work_dir);
    if (!rc)
        rc = nk_process_start(&s->gateway, &opts, err);
    if (!rc)
        rc = nk_process_read_line(&s->gateway, line, sizeof line, READY_MS_MAX, err);
    if (rc)
        return nk_wrap(rc, err, "nakshatra serve (%s has more)", log);
    colon = strrchr(line, ':');
    s->port = colon ? atoi(colon + 1) : 0;
    return s->port > 0 ? 0
                       : nk_fail(err, NK_E_UNKNOWN, "not_run",
                                 "nakshatra serve said '%s' instead of 'listening on URL'", line);
}

static void stop(nk_system *s)
{
    if (!s)
        return;
    if (!s->is_borrowed) {
        nk_process_stop(&s->gateway, 5000);
        nk_system_ours.stop(s->ours);
    }
    free(s);
}

static int start(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    nk_system *s = calloc(1, sizeof *s);
    int rc;

    *out = NULL;
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    s->opts = *opts;
    s->rng = 1;
    s->gateway = (struct nk_process)NK_PROCESS_INIT;
    rc = nk_system_ours.start(&s->ours, opts, err);
    if (!rc)
        rc = start_gateway(s, err);
    if (rc)
        stop(s);
    else
        *out = s;
    return rc;
}

static int borrow(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    nk_system *s;

    *out = NULL;
    if (!opts->beside)
        return nk_fail(err, NK_E_INVALID, "not_run",
                       "it is asked over the workers of 'serve', which are not there");
    s = calloc(1, sizeof *s);
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    *s = *opts->beside;
    s->is_borrowed = true;
    *out = s;
    return 0;
}

/* ---- one request ---- */

struct request {
    const nk_system *s;
    uint64_t rng;
    int n_prompt, n_predict;
    /* filled */
    uint64_t begin_ns, first_ns, end_ns;
    int n_generated, n_prompt_counted, rc;
    bool done;
    struct nk_error err;
};

/* The counts come in the event before the last one; only they are looked for. */
static int find_count(const char *line, const char *key)
{
    const char *at = strstr(line, key);

    return at ? atoi(at + strlen(key)) : 0;
}

static void take_line(void *user, const char *line, uint64_t at_ns)
{
    struct request *r = user;

    if (strncmp(line, "data: ", 6))
        return;
    if (!r->first_ns)
        r->first_ns = at_ns;
    if (!strcmp(line, "data: [DONE]")) {
        r->done = true;
        return;
    }
    if (strstr(line, "\"finish_reason\":\"length\""))
        r->end_ns = at_ns;
    if (strstr(line, "\"usage\":{")) {
        r->n_generated = find_count(line, "\"completion_tokens\":");
        r->n_prompt_counted = find_count(line, "\"prompt_tokens\":");
    }
}

/* From beginning to end; a thread's function too. */
static void *request(void *arg)
{
    struct request *r = arg;
    struct nk_buf body = NK_BUF_INIT(BODY_BYTES_MAX);
    int32_t *ids = malloc((size_t)r->n_prompt * sizeof *ids);
    char url[96];
    int rc = ids ? nk_buf_adds(&body, "{\"model\":\"bench\",\"prompt\":[", &r->err)
                 : nk_fail(&r->err, NK_E_EXHAUSTED, "no_memory", "no memory");

    if (ids)
        nk_draw_ids(&r->rng, r->s->opts.n_vocab, ids, r->n_prompt);
    for (int i = 0; !rc && i < r->n_prompt; i++)
        rc = nk_buf_addf(&body, &r->err, "%s%d", i ? "," : "", ids[i]);
    if (!rc)
        rc =
            nk_buf_addf(&body, &r->err,
                        "],\"max_tokens\":%d,\"stream\":true,\"stream_options\":{\"include_usage\":"
                        "true},\"temperature\":0,\"ignore_eos\":true,\"cache_prompt\":false}",
                        r->n_predict);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/v1/completions", r->s->port);
    r->begin_ns = nk_now_ns();
    if (!rc)
        rc = nk_http_lines(url, nk_buf_str(&body), RUN_MS_MAX, take_line, r, &r->err);
    if (!rc && (!r->done || !r->end_ns || r->n_generated != r->n_predict ||
                r->n_prompt_counted != r->n_prompt))
        rc = nk_fail(
            &r->err, NK_E_UNKNOWN, "not_run",
            "the gateway took %d prompt tokens and generated %d%s; %d and %d were asked for",
            r->n_prompt_counted, r->n_generated, r->done ? "" : " without an end", r->n_prompt,
            r->n_predict);
    r->rc = rc;
    free(ids);
    nk_buf_release(&body);
    return NULL;
}

static int ask(nk_system *s, struct request *r, struct nk_error *err)
{
    r->s = s;
    r->rng = s->rng++;
    request(r);
    if (r->rc)
        *err = r->err;
    return r->rc;
}

/* ---- listeners ---- */

struct listeners {
    struct pollfd fds[CLIENTS_MAX + 1]; /* the last one: a pipe that ends the thread */
    int n, n_gone, end[2];
    bool has_event[CLIENTS_MAX];
    pthread_t thread;
};

static int connect_listener(const nk_system *s, struct nk_error *err)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)s->port) };
    char text[160];
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    snprintf(text, sizeof text, "GET /cluster/events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n",
             s->port);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0 ||
        write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        int sys = errno;

        if (fd >= 0)
            close(fd);
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "a listener cannot connect: %s",
                       strerror(sys));
    }
    return fd;
}

/* Reads what has come; false: nothing within timeout_ms. */
static bool drain(struct listeners *l, int timeout_ms)
{
    char rest[16384];

    if (poll(l->fds, (nfds_t)l->n + 1, timeout_ms) <= 0)
        return false;
    for (int i = 0; i < l->n; i++) {
        ssize_t n = l->fds[i].revents ? read(l->fds[i].fd, rest, sizeof rest - 1) : 1;

        if (!l->fds[i].revents)
            continue;
        if (n <= 0) {
            l->n_gone++;
            close(l->fds[i].fd);
            l->fds[i].fd = -1;
            continue;
        }
        rest[n] = 0;
        l->has_event[i] |= strstr(rest, "data:") != NULL;
    }
    return true;
}

static void *listen_on(void *arg)
{
    struct listeners *l = arg;

    while (!l->fds[l->n].revents)
        drain(l, 1000);
    return NULL;
}

static int n_listening(const struct listeners *l)
{
    int n = 0;

    for (int i = 0; i < l->n; i++)
        n += l->has_event[i];
    return n;
}

/* Each has had an event when this returns. */
static int listeners_start(struct listeners *l, const nk_system *s, int n, struct nk_error *err)
{
    uint64_t end_ns = nk_now_ns() + (uint64_t)LISTEN_MS_MAX * 1000000;
    int rc = 0;

    memset(l, 0, sizeof *l);
    if (n == 0)
        return 0;
    if (n > CLIENTS_MAX || pipe2(l->end, O_CLOEXEC) < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%d listeners are too many", n);
    while (!rc && l->n < n) {
        int fd = connect_listener(s, err);

        if (fd < 0)
            rc = fd;
        else
            l->fds[l->n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
    }
    l->fds[l->n] = (struct pollfd){ .fd = l->end[0], .events = POLLIN };
    while (!rc && n_listening(l) < n && nk_now_ns() < end_ns)
        drain(l, 100);
    if (!rc && n_listening(l) < n)
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run", "%d of %d listeners had an event within %d s",
                     n_listening(l), n, LISTEN_MS_MAX / 1000);
    if (!rc && nk_thread_start(&l->thread, listen_on, l))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no thread");
    if (rc) {
        for (int i = 0; i < l->n; i++)
            close(l->fds[i].fd);
        close(l->end[0]);
        close(l->end[1]);
        l->n = 0;
    }
    return rc;
}

/* How many were cut off meanwhile. */
static int listeners_stop(struct listeners *l)
{
    if (!l->n)
        return 0;
    close(l->end[1]); /* the other end reads as ended */
    pthread_join(l->thread, NULL);
    close(l->end[0]);
    for (int i = 0; i < l->n; i++)
        if (l->fds[i].fd >= 0)
            close(l->fds[i].fd);
    return l->n_gone;
}

/* ---- questions ---- */

static int ttft_once(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    struct request r = { .n_prompt = n_prompt, .n_predict = 2 };
    int rc = ask(s, &r, err);

    *ms = (double)(r.first_ns - r.begin_ns) / 1e6;
    return rc;
}

/* The median of several: what is looked for is a fraction of one's own spread. */
static int ttft_median(int (*once)(nk_system *, int, double *, struct nk_error *), nk_system *s,
                       int n_prompt, double *ms, struct nk_error *err)
{
    double all[TTFT_ASKED];
    int rc = 0;

    for (int i = 0; !rc && i < TTFT_ASKED; i++)
        rc = once(s, n_prompt, &all[i], err);
    if (!rc)
        *ms = nk_median(all, TTFT_ASKED);
    return rc;
}

static int ttft(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    return ttft_median(ttft_once, s, n_prompt, ms, err);
}

static int token(nk_system *s, int n_listeners, int n_predict, double *ms, struct nk_error *err)
{
    struct request r = { .n_prompt = 1, .n_predict = n_predict };
    struct listeners l;
    int rc = listeners_start(&l, s, n_listeners, err), n_gone;

    if (rc)
        return rc;
    rc = ask(s, &r, err);
    n_gone = listeners_stop(&l);
    if (!rc && n_gone)
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run", "%d of %d listeners were cut off", n_gone,
                     n_listeners);
    *ms = (double)(r.end_ns - r.begin_ns) / 1e6 / n_predict;
    return rc;
}

static int token_alone(nk_system *s, int n_listeners, int n_predict, double *ms,
                       struct nk_error *err)
{
    (void)n_listeners;
    return token(s, 0, n_predict, ms, err);
}

static int chain_ttft(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    return ttft_median(nk_system_ours.ttft, s->ours, n_prompt, ms, err);
}

static int chain_token(nk_system *s, int n_listeners, int n_predict, double *ms,
                       struct nk_error *err)
{
    return nk_system_ours.token(s->ours, n_listeners, n_predict, ms, err);
}

static int crowd(nk_system *s, int n_clients, int n_predict, double value[2], struct nk_error *err)
{
    struct request *r = calloc((size_t)n_clients, sizeof *r);
    pthread_t *threads = calloc((size_t)n_clients, sizeof *threads);
    uint64_t begin_ns = nk_now_ns();
    int n = 0, rc = 0, n_tokens = 0;

    if (!r || !threads)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (; !rc && n < n_clients; n++) {
        r[n] = (struct request){
            .s = s, .rng = s->rng++, .n_prompt = PROMPT_CROWD, .n_predict = n_predict
        };
        if (nk_thread_start(&threads[n], request, &r[n])) {
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no thread");
            break;
        }
    }
    value[0] = 0;
    for (int i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        value[0] += r[i].rc == 0;
        n_tokens += r[i].n_generated;
    }
    value[1] = n_tokens / ((double)(nk_now_ns() - begin_ns) / 1e9);
    if (!rc && value[0] == 0) {
        *err = r[0].err;
        rc = r[0].rc;
    }
    free(threads);
    free(r);
    return rc;
}

const struct nk_system_ops nk_system_serve = {
    .name = "serve",
    .start = start,
    .stop = stop,
    .ttft = ttft,
    .token = token,
    .crowd = crowd,
};
const struct nk_system_ops nk_system_chain = {
    .name = "chain",
    .start = borrow,
    .stop = stop,
    .ttft = chain_ttft,
    .token = chain_token,
};
const struct nk_system_ops nk_system_alone = {
    .name = "alone",
    .start = borrow,
    .stop = stop,
    .token = token_alone,
};
