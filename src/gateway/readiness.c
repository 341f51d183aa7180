#include "gateway/readiness.h"

#include <string.h>

void nk__readiness_init(struct nk_readiness *r)
{
    r->paused = r->unfit = false;
    r->paused_ns = r->away_ns = 0;
    r->n_ctx = 0;
    r->why.code = 0;
    pthread_mutex_init(&r->mutex, NULL);
}

void nk__readiness_release(struct nk_readiness *r)
{
    pthread_mutex_destroy(&r->mutex);
}

/* Under the mutex, so that a pause and its end come to admission in their order. */
static void pause_for(struct nk_readiness *r, const struct nk_error *why)
{
    if (!r->away_ns)
        r->away_ns = nk_clock_now_ns(r->clock);
    r->why = *why;
    nk__admission_pause(r->admission, why);
    if (!r->paused)
        nk__monitor_listen(r->monitor, 1);
    r->paused = true;
}

static int capacity(const struct nk_readiness *r, const struct nk_chain_report *report)
{
    int least = r->running_max;

    for (int i = 0; i < report->n_workers && !r->running_max; i++)
        if (!least || report->workers[i].n_seq_max < least)
            least = report->workers[i].n_seq_max;
    return least;
}

/* It may come back by itself. */
static bool is_away(const struct nk_error *e)
{
    return (e->code == NK_E_UNAVAILABLE || e->code == NK_E_DEADLINE) &&
           strcmp(e->reason, "asleep") != 0;
}

void nk__readiness_seen(struct nk_readiness *r, const struct nk_snapshot *s)
{
    const struct nk_chain_report *report = s->report;

    pthread_mutex_lock(&r->mutex);
    r->unfit = !report->ok && !is_away(&report->err);
    if (!report->ok) {
        if (r->n_ctx)
            pause_for(r, &report->err);
        else
            r->why = report->err;
    } else if (!r->paused || s->begun_ns > r->paused_ns) {
        r->away_ns = 0;
        r->n_ctx = report->n_ctx;
        nk__admission_set_capacity(r->admission, capacity(r, report));
        if (r->paused)
            nk__monitor_listen(r->monitor, -1);
        r->paused = false;
    }
    pthread_mutex_unlock(&r->mutex);
}

void nk__readiness_lost(struct nk_readiness *r, const struct nk_error *why)
{
    pthread_mutex_lock(&r->mutex);
    r->paused_ns = nk_clock_now_ns(r->clock);
    pause_for(r, why);
    pthread_mutex_unlock(&r->mutex);
    nk__monitor_doubt(r->monitor);
}

int nk__readiness_n_ctx(struct nk_readiness *r, int *n_ctx, struct nk_error *err)
{
    int rc = 0;

    pthread_mutex_lock(&r->mutex);
    *n_ctx = r->n_ctx;
    if (!r->n_ctx && !r->why.code)
        rc = nk_fail(err, NK_E_UNAVAILABLE, "not_ready", "the workers were not asked yet");
    else if (!r->n_ctx || r->unfit ||
             (r->away_ns && nk_clock_now_ns(r->clock) - r->away_ns >= r->waiting_ms * 1000000ull))
        rc = nk_fail(err, nk_code_http(r->why.code) >= 500 ? r->why.code : NK_E_UNAVAILABLE,
                     r->why.reason, "%s", r->why.msg);
    pthread_mutex_unlock(&r->mutex);
    return rc;
}

bool nk__readiness_paused(struct nk_readiness *r, struct nk_error *err)
{
    bool paused;

    pthread_mutex_lock(&r->mutex);
    paused = r->paused;
    if (paused)
        nk_fail(err, NK_E_UNAVAILABLE, r->why.reason, "%s", r->why.msg);
    pthread_mutex_unlock(&r->mutex);
    return paused;
}
