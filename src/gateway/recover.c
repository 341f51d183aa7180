#include "gateway/recover.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/json.h"
#include "base/log.h"

void nk__recoveries_init(struct nk_recoveries *r, struct nk_clock *clock, nk_metrics *metrics,
                         uint32_t hold_ms)
{
    r->clock = clock;
    r->metrics = metrics;
    r->hold_ms = hold_ms;
    memset(r->events, 0, sizeof r->events);
    r->n_events = 0;
    r->stand_in[0] = r->unlike[0] = '\0';
    pthread_mutex_init(&r->mutex, NULL);
}

void nk__recoveries_release(struct nk_recoveries *r)
{
    pthread_mutex_destroy(&r->mutex);
}

static uint64_t ms_since(const struct nk_recoveries *r, uint64_t ns)
{
    return (nk_clock_now_ns(r->clock) - ns) / 1000000;
}

/* A connection that ends for silence has the reason of every lost one, and says so. */
static const char *cause_of(const struct nk_error *err)
{
    return !strcmp(err->reason, "stalled") || strstr(err->msg, "silent for ") ? "silent" : "gone";
}

/* ---- events; under the mutex ---- */

/* The generation's; NULL: it is too long ago, and others are told. */
static struct nk_recovery_event *event_of(struct nk_recoveries *r, const struct nk_recovery *g)
{
    struct nk_recovery_event *e = &r->events[g->event % NK_RECOVERY_EVENTS];

    return g->event && e->number == g->event ? e : NULL;
}

static int n_pending(const struct nk_recovery_event *e)
{
    return e->n_lost - e->n_resumed - e->n_given_up - e->n_ended;
}

/* The one to which a loss belongs: of the same worker, and not over; or a new one. */
static struct nk_recovery_event *
event_for(struct nk_recoveries *r, const struct nk_cluster_worker *w, const struct nk_error *err)
{
    struct nk_recovery_event *e;

    for (int i = 0; i < NK_RECOVERY_EVENTS; i++) {
        e = &r->events[i];
        if (e->number && n_pending(e) && !strcmp(e->lost.address, w->address) &&
            e->lost.layer_begin == w->layer_begin)
            return e;
    }
    e = &r->events[++r->n_events % NK_RECOVERY_EVENTS];
    *e = (struct nk_recovery_event){ .number = r->n_events,
                                     .time_s = nk_clock_unix_s(r->clock),
                                     .lost_ns = nk_clock_now_ns(r->clock),
                                     .lost = *w };
    snprintf(e->cause, sizeof e->cause, "%s", cause_of(err));
    snprintf(e->message, sizeof e->message, "%.299s", err->msg);
    return e;
}

/* What goes on in its place, for people. */
static void name_chosen(const struct nk_recoveries *r, struct nk_recovery_event *e,
                        const struct nk_cluster *c, uint64_t epoch)
{
    const char *unlike;
    size_t n = 0;

    for (int i = 0; i < c->n_workers; i++) {
        const struct nk_cluster_worker *w = &c->workers[i];

        if (w->layer_begin != e->lost.layer_begin || w->layer_end != e->lost.layer_end)
            continue;
        unlike = !strcmp(w->address, r->stand_in) ? r->unlike : "";
        snprintf(e->chosen, sizeof e->chosen, "%s (%s)%s%s", w->id, w->address,
                 !strcmp(w->address, e->lost.address) ? ", which is there again"
                 : unlike[0]                          ? ": "
                                                      : "",
                 unlike);
        return;
    }
    snprintf(e->chosen, sizeof e->chosen, "the chain of epoch %llu: ", (unsigned long long)epoch);
    for (int i = 0; i < c->n_workers && (n = strlen(e->chosen)) + 80 < sizeof e->chosen; i++)
        snprintf(e->chosen + n, sizeof e->chosen - n, "%s%s %d-%d", i ? ", " : "", c->workers[i].id,
                 c->workers[i].layer_begin, c->workers[i].layer_end);
}

int nk__recoveries_pending(struct nk_recoveries *r)
{
    int n = 0;

    pthread_mutex_lock(&r->mutex);
    for (int i = 0; i < NK_RECOVERY_EVENTS; i++)
        n += n_pending(&r->events[i]);
    pthread_mutex_unlock(&r->mutex);
    return n;
}

void nk__recoveries_stands_in(struct nk_recoveries *r, const char *address, const char *unlike)
{
    pthread_mutex_lock(&r->mutex);
    snprintf(r->stand_in, sizeof r->stand_in, "%s", address);
    snprintf(r->unlike, sizeof r->unlike, "%s", unlike);
    pthread_mutex_unlock(&r->mutex);
}

/* ---- one generation ---- */

bool nk__recovery_may(const struct nk_recoveries *r, const struct nk_recovery *g,
                      const nk_gen *lost, const struct nk_error *err)
{
    if (!r->hold_ms || !lost || !nk_gen_resumable(lost))
        return false;
    /* A chain that cannot even be reached has not lost it: it waits on, until its time is over. */
    return (g->pending && !strcmp(err->reason, "unreachable")) || g->n_losses < NK_GEN_LOSSES_MAX;
}

/* Nobody comes for what was lost but the workers of `but`, if that is given. */
static void let_go(struct nk_recovery *g, const struct nk_cluster *but)
{
    if (g->held_by)
        nk_chain_let_go(g->held_by->chains[g->held_idx], &g->held, but);
    nk__replicas_unref(g->held_by);
    g->held_by = NULL;
}

static void keep_held(struct nk_recovery *g, const nk_gen *lost, struct nk_replicas *set, int idx)
{
    if (g->held_by != set || g->held_idx != idx) {
        /* Lost once more, with another chain: what the one before holds is of no use there. */
        let_go(g, nk_chain_cluster(set->chains[idx]));
        g->held_by = nk__replicas_ref(set);
        g->held_idx = idx;
    }
    g->held = nk_gen_name(lost);
}

void nk__recovery_lost(struct nk_recoveries *r, struct nk_recovery *g, nk_gen *lost,
                       struct nk_replicas *set, int idx, const struct nk_gen_stats *stats,
                       const struct nk_error *err)
{
    const struct nk_cluster_worker *w =
        &nk_chain_cluster(set->chains[idx])->workers[nk_gen_blamed(lost)];
    uint64_t now = nk_clock_now_ns(r->clock);
    bool again = g->pending && !strcmp(err->reason, "unreachable");
    struct nk_recovery_event *e;
    char quoted[600];

    nk_gen_free(g->lost);
    g->lost = lost;
    if (again) {                     /* it was not lost with that chain, and waits on */
        g->held = nk_gen_name(lost); /* which is what those who were reached hold it by now */
        /* Of another chain they hold nothing that is of use. */
        if (g->held_by && (g->held_by != set || g->held_idx != idx))
            nk_chain_let_go(set->chains[idx], &g->held,
                            nk_chain_cluster(g->held_by->chains[g->held_idx]));
        return;
    }
    keep_held(g, lost, set, idx);
    g->n_losses++;
    g->until_ns = now + r->hold_ms * 1000000ull;
    g->chosen_ns = g->opened_ns = 0;
    g->replay_done = g->replay_total = 0;
    g->replay_worker[0] = '\0';
    g->n_prompt = stats->n_prompt;
    g->n_reused = stats->n_reused;
    g->why = *err;
    pthread_mutex_lock(&r->mutex);
    e = g->pending ? event_of(r, g) : NULL;
    if (!g->pending)
        g->lost_ns = now;
    if (e && e->lost.layer_begin != w->layer_begin) {
        e->n_ended++; /* lost once more while it was resumed, with another one */
        e = NULL;
    }
    if (!e) {
        e = event_for(r, w, err);
        g->event = e->number;
        e->n_lost++;
    }
    e->chosen[0] = '\0';
    pthread_mutex_unlock(&r->mutex);
    g->pending = true;
    nk_log(NK_LOG_GATEWAY, NK_LOG_WARN,
           "event=lost request=%s choice=%d worker=%s reason=%s n_generated=%d losses=%d msg=%s",
           g->request, g->choice, w->id, err->reason, stats->n_generated, g->n_losses,
           nk_log_quote(quoted, sizeof quoted, err->msg));
}

nk_gen *nk__recovery_chosen(struct nk_recoveries *r, struct nk_recovery *g,
                            const struct nk_cluster *c, uint64_t epoch)
{
    struct nk_recovery_event *e;
    nk_gen *lost = g->lost;
    char chosen[sizeof e->chosen] = "", quoted[900];
    uint64_t ms = ms_since(r, g->lost_ns);

    g->lost = NULL;
    g->chosen = c;
    g->chosen_ns = nk_clock_now_ns(r->clock);
    pthread_mutex_lock(&r->mutex);
    e = event_of(r, g);
    if (e) {
        name_chosen(r, e, c, epoch);
        e->chosen_ms = ms;
        memcpy(chosen, e->chosen, sizeof chosen);
    }
    pthread_mutex_unlock(&r->mutex);
    nk__metrics_observe(r->metrics, NK_METRIC_RECOVERY_TIME, "choose", (double)ms / 1e3, 1);
    nk_log(NK_LOG_GATEWAY, NK_LOG_INFO, "event=chosen request=%s choice=%d after_ms=%llu chosen=%s",
           g->request, g->choice, (unsigned long long)ms,
           nk_log_quote(quoted, sizeof quoted, chosen));
    return lost;
}

void nk__recovery_anew(struct nk_recovery *g)
{
    let_go(g, NULL);
    g->chosen = NULL; /* its chain may be closed before the next token */
}

void nk__recovery_replaying(struct nk_recoveries *r, struct nk_recovery *g, const char *worker_id,
                            int done, int total)
{
    struct nk_recovery_event *e;

    if (strncmp(g->replay_worker, worker_id, sizeof g->replay_worker - 1) != 0)
        g->replay_done = g->replay_total = 0; /* what the others got stays counted */
    snprintf(g->replay_worker, sizeof g->replay_worker, "%s", worker_id);
    pthread_mutex_lock(&r->mutex);
    e = event_of(r, g);
    if (e) {
        e->replay_done += done - g->replay_done;
        e->replay_total += total - g->replay_total;
        memcpy(e->replay_worker, g->replay_worker, sizeof e->replay_worker);
    }
    pthread_mutex_unlock(&r->mutex);
    g->replay_done = done;
    g->replay_total = total;
}

void nk__recovery_opened(struct nk_recoveries *r, struct nk_recovery *g)
{
    struct nk_recovery_event *e;
    uint64_t ms = ms_since(r, g->lost_ns), open_ms = ms_since(r, g->chosen_ns);
    char quoted[200];

    if (!g->pending)
        return;
    g->opened_ns = nk_clock_now_ns(r->clock);
    pthread_mutex_lock(&r->mutex);
    e = event_of(r, g);
    if (e) {
        e->opened_ms = ms;
        e->replay_done += g->replay_total - g->replay_done; /* only told now and then */
    }
    pthread_mutex_unlock(&r->mutex);
    g->replay_done = g->replay_total;
    nk__metrics_observe(r->metrics, NK_METRIC_RECOVERY_TIME, "open", (double)open_ms / 1e3, 1);
    nk_log(NK_LOG_GATEWAY, NK_LOG_INFO,
           "event=replayed request=%s choice=%d after_ms=%llu to=%s positions=%d", g->request,
           g->choice, (unsigned long long)ms, nk_log_quote(quoted, sizeof quoted, g->replay_worker),
           g->replay_done);
}

/* Its pause ends: what is counted of it. Returns how long it was, ms. */
static uint64_t leave(struct nk_recoveries *r, struct nk_recovery *g, enum nk_recovery_end end)
{
    static const char *const outcomes[] = { [NK_RECOVERY_GIVEN_UP] = "given_up",
                                            [NK_RECOVERY_CANCELLED] = "cancelled",
                                            [NK_RECOVERY_DONE] = "resumed" };
    struct nk_recovery_event *e;
    uint64_t ms = ms_since(r, g->lost_ns);
    char labels[40];

    g->pending = false;
    g->pause_us += (nk_clock_now_ns(r->clock) - g->lost_ns) / 1000;
    g->n_resumed += end == NK_RECOVERY_DONE;
    pthread_mutex_lock(&r->mutex);
    e = event_of(r, g);
    if (e) {
        e->n_resumed += end == NK_RECOVERY_DONE;
        e->n_given_up += end == NK_RECOVERY_GIVEN_UP;
        e->n_ended += end == NK_RECOVERY_CANCELLED;
        e->pause_ms = ms > e->pause_ms ? ms : e->pause_ms;
    }
    pthread_mutex_unlock(&r->mutex);
    snprintf(labels, sizeof labels, "%s,%s", cause_of(&g->why), outcomes[end]);
    nk__metrics_add(r->metrics, NK_METRIC_RECOVERIES, labels, 1);
    return ms;
}

bool nk__recovery_token(struct nk_recoveries *r, struct nk_recovery *g)
{
    uint64_t token_ms = ms_since(r, g->opened_ns), ms;

    if (!g->pending)
        return false;
    let_go(g, g->chosen);
    ms = leave(r, g, NK_RECOVERY_DONE);
    nk__metrics_observe(r->metrics, NK_METRIC_RECOVERY_TIME, "first_token", (double)token_ms / 1e3,
                        1);
    nk__metrics_observe(r->metrics, NK_METRIC_RECOVERY_TIME, "pause", (double)ms / 1e3, 1);
    nk_log(NK_LOG_GATEWAY, NK_LOG_INFO, "event=resumed request=%s choice=%d after_ms=%llu",
           g->request, g->choice, (unsigned long long)ms);
    return true;
}

void nk__recovery_ended(struct nk_recoveries *r, struct nk_recovery *g, enum nk_recovery_end end,
                        const struct nk_error *why)
{
    char quoted[600];
    uint64_t ms;

    nk_gen_free(g->lost);
    g->lost = NULL;
    let_go(g, NULL);
    if (!g->pending)
        return;
    ms = leave(r, g, end);
    if (end == NK_RECOVERY_GIVEN_UP)
        nk_log(NK_LOG_GATEWAY, NK_LOG_WARN,
               "event=given_up request=%s choice=%d after_ms=%llu reason=%s msg=%s", g->request,
               g->choice, (unsigned long long)ms, why->reason,
               nk_log_quote(quoted, sizeof quoted, why->msg));
}

void nk__recovery_too_late(const struct nk_recoveries *r, const struct nk_recovery *g,
                           const struct nk_error *in_the_way, struct nk_error *err)
{
    nk_fail(err, g->why.code, g->why.reason,
            "%s; nothing to go on with came within %u ms (--hold-ms): %s", g->why.msg, r->hold_ms,
            in_the_way->msg);
}

/* ---- JSON ---- */

struct json_out { /* a failure is found once, at the end */
    struct nk_buf *b;
    int rc;
};

static void add(struct json_out *o, const char *name, const char *value)
{
    if (!o->rc)
        o->rc = nk_buf_addf(o->b, NULL, ",\"%s\":", name);
    if (!o->rc)
        o->rc = nk_json_str(o->b, value, NULL);
}

/* 0: not yet. */
static void add_ms(struct json_out *o, const char *name, uint64_t ms, bool known)
{
    if (!o->rc && known)
        o->rc = nk_buf_addf(o->b, NULL, ",\"%s\":%llu", name, (unsigned long long)ms);
    else if (!o->rc)
        o->rc = nk_buf_addf(o->b, NULL, ",\"%s\":null", name);
}

static void write_event(struct json_out *o, const struct nk_recovery_event *e, bool first)
{
    char time[32];
    time_t t = (time_t)e->time_s;
    struct tm tm;

    gmtime_r(&t, &tm);
    strftime(time, sizeof time, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (!o->rc)
        o->rc = nk_buf_addf(o->b, NULL, "%s{\"time\":\"%s\"", first ? "" : ",", time);
    add(o, "lost", e->lost.id);
    add(o, "address", e->lost.address);
    if (!o->rc)
        o->rc = nk_buf_addf(o->b, NULL, ",\"layer_begin\":%d,\"layer_end\":%d", e->lost.layer_begin,
                            e->lost.layer_end);
    add(o, "cause", e->cause);
    add(o, "message", e->message);
    add(o, "chosen", e->chosen[0] ? e->chosen : NULL);
    if (!o->rc)
        o->rc = nk_buf_addf(
            o->b, NULL,
            ",\"pending\":%d,\"generations\":%d,\"resumed\":%d,\"given_up\":%d,\"ended\":%d",
            n_pending(e), e->n_lost, e->n_resumed, e->n_given_up, e->n_ended);
    add(o, "replay_to", e->replay_worker[0] ? e->replay_worker : NULL);
    if (!o->rc)
        o->rc = nk_buf_addf(o->b, NULL, ",\"replayed\":%d,\"replay_total\":%d", e->replay_done,
                            e->replay_total);
    add_ms(o, "chosen_ms", e->chosen_ms, e->chosen[0] != '\0');
    add_ms(o, "opened_ms", e->opened_ms, e->opened_ms || e->n_resumed);
    add_ms(o, "pause_ms", e->pause_ms, e->n_resumed || e->n_given_up);
    if (!o->rc)
        o->rc = nk_buf_adds(o->b, "}", NULL);
}

int nk__recoveries_json(struct nk_recoveries *r, struct nk_buf *out, struct nk_error *err)
{
    struct json_out o = { out, 0 };
    int pending = 0;
    bool first = true;

    pthread_mutex_lock(&r->mutex);
    for (int i = 0; i < NK_RECOVERY_EVENTS; i++)
        pending += n_pending(&r->events[i]);
    o.rc =
        nk_buf_addf(out, NULL, "{\"hold_ms\":%u,\"pending\":%d,\"events\":[", r->hold_ms, pending);
    for (uint64_t n = r->n_events; n && n + NK_RECOVERY_EVENTS > r->n_events; n--, first = false)
        write_event(&o, &r->events[n % NK_RECOVERY_EVENTS], first);
    pthread_mutex_unlock(&r->mutex);
    if (!o.rc)
        o.rc = nk_buf_adds(out, "]}", NULL);
    return o.rc ? nk_fail(err, NK_E_EXHAUSTED, "too_large", "the recoveries do not fit") : 0;
}
