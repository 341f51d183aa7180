#include "cli/answer.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/visible.h"
#include "chain/repair.h"
#include "cli/cli.h"
#include "cli/generate.h"
#include "cli/interrupt.h"

enum {
    /* What may wait for a reader that does not read, and all that is kept of a text. */
    PENDING_BYTES_MAX = 64 << 20,
    SHOWN_BYTES_MAX = 5 * PENDING_BYTES_MAX, /* a control character becomes up to 8 */
    TEXT_BYTES_MAX = 1 << 30,
    IDS_MAX = 1 << 28,
};

/* Between the net thread, which appends, and the main thread, which writes. */
struct stream {
    pthread_mutex_t mutex; /* all until `over` */
    struct nk_buf pending;
    struct nk_answer *a;
    size_t ids_capacity;
    int rc; /* the net thread could not keep what came */
    struct nk_error err;
    /* How the generation ended, as `done` said. The answer's own rc and err are the main
     * thread's. */
    int end_rc;
    struct nk_error end_err;
    bool woken, over;
    bool opened;   /* ever */
    int n_in_vain; /* losses since the last token */
    int n_losses;  /* all; the main thread's */
    uint64_t begin_ns;
    /* The same of a repair. */
    bool waiting, repair_over;
    struct nk_repaired *repaired; /* owned */
    struct nk_error repair_err;
    int wake[2];
    bool want_logprobs;
};

void nk_route_close(struct nk_route *r)
{
    nk_chain_close(r->chain);
    r->chain = NULL;
}

/* mutex held */
static void wake(struct stream *s)
{
    if (!s->woken && write(s->wake[1], "", 1) == 1)
        s->woken = true;
}

/* A token's bytes: as text where they are UTF-8, and as numbers always. */
static void set_piece(json_t *o, const char *piece, size_t size)
{
    json_t *bytes = json_array();

    json_object_set_new(o, "text", json_stringn(piece, size)); /* null where it is not UTF-8 */
    for (size_t i = 0; i < size; i++)
        json_array_append_new(bytes, json_integer((unsigned char)piece[i]));
    json_object_set_new(o, "bytes", bytes);
    if (!json_object_get(o, "text"))
        json_object_set_new(o, "text", json_null());
}

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *logprob_json(const struct nk_gen_token *t)
{
    json_t *o = json_object(), *top = json_array();

    json_object_set_new(o, "id", json_integer(t->id));
    set_piece(o, t->piece ? t->piece : "", t->piece_size);
    json_object_set_new(o, "logprob", number((double)t->logprob));
    for (int i = 0; i < t->n_top; i++) {
        json_t *e = json_object();

        json_object_set_new(e, "id", json_integer(t->top[i].id));
        set_piece(e, t->top[i].text ? t->top[i].text : "", t->top[i].text_size);
        json_object_set_new(e, "logprob", number((double)t->top[i].logprob));
        json_array_append_new(top, e);
    }
    json_object_set_new(o, "top", top);
    return o;
}

static void keep_text(struct stream *s, const char *text, size_t size)
{
    if (s->rc || !size)
        return;
    if (nk_buf_add(&s->pending, text, size, &s->err))
        s->rc = nk_fail(&s->err, NK_E_EXHAUSTED, "reader_too_slow",
                        "%d MiB of text wait to be read by nobody", PENDING_BYTES_MAX >> 20);
    else
        s->rc = nk_buf_add(&s->a->text, text, size, &s->err);
}

static void on_opened(void *user)
{
    struct stream *s = user;

    pthread_mutex_lock(&s->mutex);
    s->opened = true;
    pthread_mutex_unlock(&s->mutex);
}

static void on_token(void *user, const struct nk_gen_token *t)
{
    struct stream *s = user;
    struct nk_answer *a = s->a;

    pthread_mutex_lock(&s->mutex);
    s->n_in_vain = 0;
    if (!s->rc)
        s->rc = nk_array_grow(a->ids, s->ids_capacity, (size_t)a->n_ids + 1, IDS_MAX, &s->err);
    if ((size_t)a->n_ids < s->ids_capacity)
        a->ids[a->n_ids++] = t->id;
    if (s->want_logprobs)
        json_array_append_new(a->logprobs, logprob_json(t));
    keep_text(s, t->text, t->text_size);
    if (s->pending.size || s->rc)
        wake(s);
    pthread_mutex_unlock(&s->mutex);
}

static void on_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct stream *s = user;

    pthread_mutex_lock(&s->mutex);
    keep_text(s, stats->tail, stats->tail_size);
    s->a->stats = *stats;
    s->a->stats.tail = NULL;
    s->a->stats.tail_size = 0;
    if (err) {
        s->end_rc = err->code;
        s->end_err = *err;
    }
    s->over = true;
    wake(s);
    pthread_mutex_unlock(&s->mutex);
}

int nk_write_all(int fd, const char *data, size_t size, struct nk_error *err)
{
    while (size) {
        ssize_t n = write(fd, data, size);

        if (n < 0 && errno == EINTR && !nk_interrupt_signal())
            continue;
        if (n < 0 && errno == EAGAIN) { /* somebody made the terminal non-blocking */
            struct pollfd pfd[2] = { { .fd = fd, .events = POLLOUT },
                                     { .fd = nk_interrupt_fd(), .events = POLLIN } };

            poll(pfd, 2, -1);
            if (!nk_interrupt_signal())
                continue;
            errno = EINTR;
        }
        if (n < 0 && errno == EINTR)
            return nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted by a signal");
        if (n < 0 && errno == EPIPE)
            return nk_fail(err, NK_E_UNAVAILABLE, "reader_gone",
                           "nobody reads the output any more");
        if (n < 0)
            return nk_fail(err, NK_E_DATA_LOSS, "write_failed", "the output cannot be written: %s",
                           strerror(errno));
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Waits for something to do: what the net thread has, a signal, the program's own workers. */
static void wait_for_news(const struct stream *s, const struct nk_route *r, bool cancelled)
{
    struct pollfd fds[NK_CLUSTER_WORKERS_MAX + 2];
    int timeout_ms = -1, n = r->local ? nk_local_poll(r->local, fds, &timeout_ms) : 0;

    fds[n++] = (struct pollfd){ .fd = s->wake[0], .events = POLLIN };
    fds[n++] = (struct pollfd){ .fd = cancelled ? -1 : nk_interrupt_fd(), .events = POLLIN };
    poll(fds, (nfds_t)n, timeout_ms); /* however it ends, the net thread has `s` until `over` */
}

/* mutex held */
static void drain_wake(struct stream *s)
{
    char c;

    if (s->woken && read(s->wake[0], &c, 1) == 1)
        s->woken = false;
}

/* The output, as far as it has come. */
struct output {
    int fd; /* -1: none */
    bool terminal;
    struct nk_buf now, shown;
    struct nk_visible visible;
};

static int put_out(struct output *o, bool over, struct nk_error *err)
{
    int rc = 0;

    if (o->fd < 0 || (!o->now.size && !over))
        return 0;
    if (!o->terminal)
        return nk_write_all(o->fd, nk_buf_str(&o->now), o->now.size, err);
    nk_buf_reset(&o->shown);
    rc = nk_visible_add(&o->visible, nk_buf_str(&o->now), o->now.size, &o->shown, err);
    if (!rc && over)
        rc = nk_visible_end(&o->visible, &o->shown, err);
    return rc ? rc : nk_write_all(o->fd, nk_buf_str(&o->shown), o->shown.size, err);
}

/* Moves what came to the output, until the generation is over. The first thing that goes wrong on
 * this side cancels it (*cancelled); its end is waited for in every case. Returns that thing, or
 * 0. */
static int pump(struct stream *s, nk_gen *g, const struct nk_route *r, struct output *o,
                bool *cancelled, struct nk_error *err)
{
    bool over = false;
    int rc = 0;

    while (!over) {
        struct nk_buf empty = o->now;

        wait_for_news(s, r, *cancelled);
        pthread_mutex_lock(&s->mutex);
        drain_wake(s);
        nk_buf_reset(&empty);
        o->now = s->pending;
        s->pending = empty;
        over = s->over;
        if (!rc && s->rc) {
            rc = s->rc;
            *err = s->err;
        }
        pthread_mutex_unlock(&s->mutex);
        if (!rc)
            rc = put_out(o, over, err);
        if (!rc && r->local)
            rc = nk_local_tend(r->local, err);
        if (!*cancelled && (rc || nk_interrupt_signal())) {
            s->a->interrupted = nk_interrupt_signal();
            nk_gen_cancel(g);
            *cancelled = true;
        }
    }
    return rc;
}

/* ---- after a loss ---- */

static void on_waiting(void *user, const struct nk_error *why)
{
    struct stream *s = user;

    (void)why;
    pthread_mutex_lock(&s->mutex);
    s->waiting = true;
    wake(s);
    pthread_mutex_unlock(&s->mutex);
}

static void on_repaired(void *user, struct nk_repaired *to, const struct nk_error *err)
{
    struct stream *s = user;

    pthread_mutex_lock(&s->mutex);
    s->repaired = to;
    if (err)
        s->repair_err = *err;
    s->repair_over = true;
    wake(s);
    pthread_mutex_unlock(&s->mutex);
}

/* A line about the worker that was lost. What was printed on a terminal has ended anywhere. */
static void say(const struct nk_route *r, const struct output *o, int lost, const char *what)
{
    const struct nk_cluster_worker *w = &nk_chain_cluster(r->chain)->workers[lost];

    fprintf(stderr, "%sworker %s (%s, layers %d-%d) is lost; %s\n", o->terminal ? "\n" : "", w->id,
            w->address, w->layer_begin, w->layer_end, what);
}

static const char *waits_for(const struct nk_route *r)
{
    if (r->local)
        return "waiting for it to start again";
    return nk_chain_cluster(r->chain)->n_spares ? "waiting for it or a spare" : "waiting for it";
}

/* Until there is a chain: s->repaired, or an error. */
static int wait_for_repair(struct stream *s, const struct nk_route *r, const struct output *o,
                           int lost, nk_repair *repair, struct nk_error *err)
{
    bool over = false, waiting = false, cancelled = false;
    int rc = 0;

    while (!over) {
        bool said = waiting;

        wait_for_news(s, r, cancelled);
        pthread_mutex_lock(&s->mutex);
        drain_wake(s);
        over = s->repair_over;
        waiting = s->waiting;
        pthread_mutex_unlock(&s->mutex);
        if (waiting && !said)
            say(r, o, lost, waits_for(r));
        if (!rc && r->local)
            rc = nk_local_tend(r->local, err);
        if (!cancelled && (rc || nk_interrupt_signal())) {
            s->a->interrupted = nk_interrupt_signal();
            nk_repair_cancel(repair);
            cancelled = true;
        }
    }
    if (cancelled && !rc)
        return nk_fail(err, NK_E_CANCELLED, "interrupted", "interrupted by a signal");
    if (!rc && !s->repaired) {
        *err = s->repair_err;
        rc = err->code;
    }
    if (!rc && !waiting && !s->repaired->n_replaced)
        say(r, o, lost, "it answers again, and goes on");
    return rc;
}

/* The chain with spares in it instead of the one that lacks somebody. */
static int take_repaired(struct nk_route *r, const struct nk_repaired *to, struct nk_error *err)
{
    nk_chain *c;
    int rc;

    if (!to->n_replaced)
        return 0;
    rc = nk_chain_open(&c, &to->cluster, NULL, err);
    if (rc)
        return rc;
    for (int i = 0; i < to->n_replaced; i++) {
        const struct nk_replaced *k = &to->replaced[i];

        fprintf(stderr, "%s takes the place of %s%s%s\n", k->now, k->was,
                k->unlike[0] ? ", and is not like it: " : "", k->unlike);
    }
    nk_chain_close(r->chain);
    r->chain = c;
    return 0;
}

/* Looks for a chain on which the lost generation can go on, for so long. */
static int repair(struct stream *s, struct nk_route *r, const struct output *o, const nk_gen *lost,
                  uint32_t wait_ms, bool deterministic, struct nk_error *err)
{
    static const struct nk_repair_handlers handlers = { .waiting = on_waiting,
                                                        .done = on_repaired };
    int blamed = nk_gen_blamed(lost), rc;
    struct nk_repair_opts opts = {
        .wish = { .lost = blamed, .avoid_lost = s->n_in_vain > 0, .deterministic = deterministic },
        .wait_ms = wait_ms,
        .n_in_vain = s->n_in_vain,
        .quiet = true
    };
    nk_repair *repair;

    s->waiting = s->repair_over = false;
    rc = nk_repair_start(&repair, r->chain, &opts, &handlers, s, err);
    if (rc)
        return rc;
    rc = wait_for_repair(s, r, o, blamed, repair, err);
    nk_repair_free(repair);
    if (!rc)
        rc = take_repaired(r, s->repaired, err);
    free(s->repaired);
    s->repaired = NULL;
    return rc;
}

static const struct nk_gen_handlers handlers = { .opened = on_opened,
                                                 .token = on_token,
                                                 .done = on_done };

static uint32_t left_ms(const struct stream *s, const struct nk_gen_opts *opts, uint64_t now)
{
    uint64_t passed_ms = (now - s->begin_ns) / 1000000;

    return passed_ms < opts->deadline_ms ? opts->deadline_ms - (uint32_t)passed_ms : 0;
}

/* The generation *g, which has ended, goes on as another one if it was lost; false: it does not,
 * and the answer has its error. */
static bool go_on(struct stream *s, nk_gen **g, struct nk_route *r, const struct output *o,
                  const struct nk_gen_opts *opts, uint64_t *since_ns)
{
    uint64_t now = nk_clock_now_ns(nk_clock_system()), passed_ms;
    uint32_t wait_ms;
    struct nk_answer *a = s->a;
    struct nk_error err;
    nk_gen *next;
    int rc;

    if (!nk_gen_resumable(*g))
        return false;
    if (!s->n_in_vain)
        *since_ns = now;
    passed_ms = (now - *since_ns) / 1000000;
    /* A chain that was never there is not waited for: who asks wants to know. */
    if (!s->opened && !r->local && s->n_in_vain)
        return false;
    if (passed_ms >= opts->hold_ms)
        return false;
    /* A chain that cannot even be reached has not lost it. */
    if (!(s->n_in_vain && !strcmp(s->end_err.reason, "unreachable")) &&
        s->n_losses++ >= NK_GEN_LOSSES_MAX)
        return false;
    wait_ms = s->opened || r->local ? opts->hold_ms - (uint32_t)passed_ms : 0;
    if (opts->deadline_ms && left_ms(s, opts, now) < wait_ms)
        wait_ms = left_ms(s, opts, now);
    rc = repair(s, r, o, *g, wait_ms, opts->deterministic, &err);
    s->n_in_vain++;
    if (rc == NK_E_UNAVAILABLE && opts->deadline_ms &&
        !left_ms(s, opts, nk_clock_now_ns(nk_clock_system())))
        rc = nk_fail(&err, NK_E_DEADLINE, "deadline",
                     "the generation was not done within %u ms; %d tokens had come",
                     opts->deadline_ms, a->n_ids);
    if (rc && !s->opened && !r->local && rc != NK_E_CANCELLED && rc != NK_E_DEADLINE)
        return false; /* its own error says more */
    if (!rc) {
        s->over = false;
        s->end_rc = 0;
        rc = nk_gen_resume(&next, r->chain, *g, &handlers, s, &err);
    }
    if (rc) {
        a->rc = rc;
        a->err = err;
        return false;
    }
    nk_gen_free(*g);
    *g = next;
    return true;
}

static void run(struct stream *s, nk_gen *g, struct nk_route *r, const struct nk_gen_opts *opts,
                int out_fd)
{
    struct output o = { .fd = out_fd,
                        .terminal = out_fd >= 0 && isatty(out_fd),
                        .now = NK_BUF_INIT(PENDING_BYTES_MAX),
                        .shown = NK_BUF_INIT(SHOWN_BYTES_MAX) };
    struct nk_answer *a = s->a;
    bool cancelled = false, on = true;
    uint64_t since_ns = 0;

    while (on) {
        struct nk_error err;
        int rc = pump(s, g, r, &o, &cancelled, &err);

        a->rc = s->end_rc;
        a->err = s->end_err;
        if (rc && !a->interrupted) {
            a->rc = rc;
            a->err = err;
            a->out_closed = !strcmp(err.reason, "reader_gone");
        }
        on = a->rc && !cancelled && go_on(s, &g, r, &o, opts, &since_ns);
    }
    if (nk_gen_resumable(g)) {
        struct nk_gen_name lost = nk_gen_name(g);

        nk_chain_let_go(r->chain, &lost, NULL);
    }
    nk_gen_free(g);
    nk_buf_release(&o.now);
    nk_buf_release(&o.shown);
}

int nk_answer_run(struct nk_answer *a, struct nk_route *r, const struct nk_gen_opts *opts,
                  int out_fd)
{
    struct stream s = { .a = a,
                        .want_logprobs = opts->n_logprobs >= 0,
                        .begin_ns = nk_clock_now_ns(nk_clock_system()) };
    nk_gen *g = NULL;

    *a = (struct nk_answer){ 0 };
    nk_buf_init(&a->text, TEXT_BYTES_MAX);
    nk_buf_init(&s.pending, PENDING_BYTES_MAX);
    if (s.want_logprobs)
        a->logprobs = json_array();
    if (pipe(s.wake) < 0) {
        a->rc = nk_fail(&a->err, NK_E_UNAVAILABLE, "no_pipe", "no pipe: %s", strerror(errno));
        return a->rc;
    }
    for (int i = 0; i < 2; i++) {
        fcntl(s.wake[i], F_SETFD, FD_CLOEXEC);
        fcntl(s.wake[i], F_SETFL, O_NONBLOCK);
    }
    pthread_mutex_init(&s.mutex, NULL);
    a->rc = nk_gen_start(&g, r->chain, opts, &handlers, &s, &a->err);
    if (!a->rc) /* `done` may have been called by now */
        run(&s, g, r, opts, out_fd);
    pthread_mutex_destroy(&s.mutex);
    nk_buf_release(&s.pending);
    close(s.wake[0]);
    close(s.wake[1]);
    return a->rc;
}

void nk_answer_release(struct nk_answer *a)
{
    nk_buf_release(&a->text);
    free(a->ids);
    json_decref(a->logprobs);
    *a = (struct nk_answer){ 0 };
}

/* Tokens per second over the steps after the first token. */
static double decode_rate(const struct nk_gen_stats *s)
{
    return s->n_generated > 1 && s->decode_us ? (s->n_generated - 1) * 1e6 / (double)s->decode_us
                                              : 0;
}

static double prefill_rate(const struct nk_gen_stats *s)
{
    return s->n_prompt > s->n_reused && s->prefill_us
               ? (s->n_prompt - s->n_reused) * 1e6 / (double)s->prefill_us
               : 0;
}

static json_t *ms(uint64_t us)
{
    return json_real((double)us / 1e3);
}

json_t *nk_answer_json(const struct nk_answer *a, const nk_chain *c)
{
    const struct nk_gen_stats *s = &a->stats;
    json_t *o = json_object(), *ids = json_array(), *stages = json_array(),
           *timings = json_object();

    json_object_set_new(o, "model", json_string(nk_chain_cluster(c)->model_id));
    json_object_set_new(o, "text", json_stringn(nk_buf_str(&a->text), a->text.size));
    for (int i = 0; i < a->n_ids; i++)
        json_array_append_new(ids, json_integer(a->ids[i]));
    json_object_set_new(o, "ids", ids);
    json_object_set_new(o, "finish", json_string(nk_finish_name(s->finish)));
    json_object_set_new(o, "stop",
                        s->finish == NK_FINISH_STOP ? json_string(s->stop_string) : json_null());
    json_object_set_new(o, "seed", json_integer(s->seed));
    json_object_set_new(o, "n_prompt", json_integer(s->n_prompt));
    json_object_set_new(o, "n_reused", json_integer(s->n_reused));
    json_object_set_new(o, "n_generated", json_integer(s->n_generated));
    json_object_set_new(o, "n_recovered", json_integer(s->n_recovered));
    json_object_set_new(o, "n_replayed", json_integer((json_int_t)s->n_replayed));
    if (a->logprobs)
        json_object_set(o, "logprobs", a->logprobs);
    json_object_set_new(timings, "first_token_ms", ms(s->ttft_us));
    json_object_set_new(timings, "prefill_ms", ms(s->prefill_us));
    json_object_set_new(timings, "decode_ms", ms(s->decode_us));
    json_object_set_new(timings, "recovery_ms", ms(s->recovery_us));
    json_object_set_new(timings, "total_ms", ms(s->total_us));
    json_object_set_new(timings, "prefill_tokens_per_second", json_real(prefill_rate(s)));
    json_object_set_new(timings, "decode_tokens_per_second", json_real(decode_rate(s)));
    json_object_set_new(o, "timings", timings);
    for (int i = 0; i < s->n_stages; i++) {
        json_t *e = json_object();

        json_object_set_new(e, "worker", json_string(s->stages[i].worker_id));
        json_object_set_new(e, "compute_ms", ms(s->stages[i].compute_us));
        json_object_set_new(e, "queue_ms", ms(s->stages[i].queue_us));
        json_object_set_new(e, "wire_ms", ms(s->stages[i].wire_us));
        json_object_set_new(e, "runs", json_integer((json_int_t)s->stages[i].runs));
        json_array_append_new(stages, e);
    }
    json_object_set_new(o, "stages", stages);
    if (a->rc) {
        json_t *e = json_object();

        json_object_set_new(e, "code", json_string(nk_code_text(a->rc)));
        json_object_set_new(e, "reason", json_string(a->err.reason));
        json_object_set_new(e, "message", json_string(a->err.msg));
        json_object_set_new(o, "error", e);
    }
    return o;
}

void nk_answer_print_stats(const struct nk_answer *a)
{
    const struct nk_gen_stats *s = &a->stats;

    fprintf(stderr,
            "prompt     %6d tokens, %d of them from a kept session, %.1f ms to the first token "
            "(%.1f tokens/s)\n",
            s->n_prompt, s->n_reused, (double)s->ttft_us / 1e3, prefill_rate(s));
    fprintf(stderr, "generated  %6d tokens in %.1f ms (%.1f tokens/s), finish %s, seed %u\n",
            s->n_generated, (double)s->decode_us / 1e3, decode_rate(s), nk_finish_name(s->finish),
            s->seed);
    if (s->n_recovered)
        fprintf(stderr,
                "recovered  %6d time%s, pauses of %.1f ms in all, %llu rows computed again\n",
                s->n_recovered, s->n_recovered > 1 ? "s" : "", (double)s->recovery_us / 1e3,
                (unsigned long long)s->n_replayed);
    if (s->n_stages)
        fprintf(stderr, "%-24s %8s %12s %12s %12s\n", "worker", "runs", "compute ms", "queue ms",
                "wire ms");
    for (int i = 0; i < s->n_stages; i++)
        fprintf(stderr, "%-24s %8llu %12.1f %12.1f %12.1f\n", s->stages[i].worker_id,
                (unsigned long long)s->stages[i].runs, (double)s->stages[i].compute_us / 1e3,
                (double)s->stages[i].queue_us / 1e3, (double)s->stages[i].wire_us / 1e3);
}

int nk_answer_exit(const struct nk_answer *a)
{
    if (a->interrupted)
        return nk_interrupt_exit_code(a->interrupted);
    if (a->out_closed)
        return NK_EXIT_CLOSED;
    return a->rc ? nk_cli_report(&a->err) : NK_EXIT_OK;
}
