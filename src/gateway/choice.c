#include "gateway/job_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* Losses of a worker that a request without a token may be in: it may be what they die of. */
enum { LOST_MAX = 3 };

static void note_stages(nk_gateway *g, const struct nk_cluster *cluster,
                        const struct nk_gen_stats *stats)
{
    for (int i = 0; i < stats->n_stages && i < cluster->n_workers; i++) {
        const struct nk_stage_timing *t = &stats->stages[i];
        double runs = (double)t->runs;
        const char *id = cluster->workers[i].id;

        if (!t->runs)
            continue;
        nk__metrics_observe(g->metrics, NK_METRIC_COMPUTE, id, (double)t->compute_us / 1e6 / runs,
                            t->runs);
        nk__metrics_observe(g->metrics, NK_METRIC_STAGE_WAIT, id, (double)t->queue_us / 1e6 / runs,
                            t->runs);
        /* wire_us is of the way to the next stage and back; the last one has none. */
        if (i + 1 < stats->n_stages)
            nk__metrics_observe(g->metrics, NK_METRIC_HOP, cluster->workers[i + 1].id,
                                (double)t->wire_us / 1e6 / runs, t->runs);
    }
}

/* Says of the workers, rather than of this request. */
static bool is_workers_fault(int code)
{
    return code == NK_E_UNAVAILABLE || code == NK_E_DEADLINE || code == NK_E_DATA_LOSS ||
           code == NK_E_INTERNAL;
}

static void end_choice(struct nk_choice *c, bool runs, const struct nk_gen_stats *stats,
                       const struct nk_error *err);

/* What is known of one that waits to go on. */
static struct nk_gen_stats stats_of_paused(const struct nk_choice *c)
{
    return (struct nk_gen_stats){ .finish = NK_FINISH_NONE,
                                  .tail = "",
                                  .n_prompt = c->recovery.n_prompt,
                                  .n_reused = c->recovery.n_reused };
}

void nk__choice_end_paused(struct nk_choice *c)
{
    struct nk_gen_stats known;

    if (!nk__admission_withdraw(c->j->g->admission, &c->ticket))
        return;
    known = stats_of_paused(c);
    end_choice(c, false, &known, NULL);
}

/* Its ticket waits again, before all others, until late_ns (0: for what is left of its wait).
 * False: the gateway ends, and it still counts as running. The job may be gone after true. */
static bool go_back(struct nk_choice *c, uint64_t late_ns)
{
    nk_job *j = c->j;
    bool again, ended, enough;

    nk__job_ref(j);
    nk__readiness_give_back(&j->g->readiness, &c->place);
    again = nk__admission_return(j->g->admission, &c->ticket, late_ns);
    pthread_mutex_lock(&j->mutex);
    ended = j->failed || j->ending || j->cancelled;
    enough = c->ended;
    pthread_mutex_unlock(&j->mutex);
    if (again && enough && !ended)
        nk__choice_end_paused(c);
    if (again && ended) /* meanwhile: who ended it saw no ticket in the queue */
        nk__job_cancel_choices(j);
    nk__job_unref(j);
    return again;
}

/* The worker may well answer us, and not be reached by the one before it: another one is better. */
static bool is_cut_off(const struct nk_error *err)
{
    return !strcmp(err->reason, "unreachable") || !strcmp(err->reason, "peer_not_allowed");
}

/* It was for a chain that is no more. */
static bool is_outdated(const struct nk_error *err)
{
    return !strcmp(err->reason, "stale_epoch") || !strcmp(err->reason, "removed");
}

/* Nothing starts on its chain until it is there again, or another one. */
static void lost_worker(struct nk_choice *c, const struct nk_error *err, bool again)
{
    nk_gateway *g = c->j->g;

    nk__readiness_lost(&g->readiness, &c->place, err);
    nk__repairer_lost(&g->repairer, &c->place, c->handle ? nk_gen_blamed(c->handle) : -1,
                      again || is_cut_off(err));
}

/* It was lost, and is not gone on with: what workers hold of it is of no use. */
static void let_go(const struct nk_choice *c)
{
    struct nk_gen_name name;

    if (!c->place.set || !c->handle || !nk_gen_resumable(c->handle))
        return;
    name = nk_gen_name(c->handle);
    nk_chain_let_go(c->place.set->chains[c->place.idx], &name, NULL);
}

/* A worker went away before the first token, and it is not this request's fault as far as is known:
 * nobody has seen anything of it, so it begins anew when the worker is back. False: it ends with
 * err. The job may be gone after true. */
static bool try_again(struct nk_choice *c, const struct nk_error *err)
{
    nk_job *j = c->j;
    bool unreached = !strcmp(err->reason, "unreachable"), again;

    if (err->code != NK_E_UNAVAILABLE && strcmp(err->reason, "stalled") != 0 && !is_cut_off(err) &&
        !is_outdated(err))
        return false;
    if (!strcmp(err->reason, "asleep")) /* somebody wanted that, and it may last */
        return false;
    pthread_mutex_lock(&j->mutex);
    again = !c->n_generated && !j->failed && !j->broken && !j->ending && !j->cancelled &&
            (unreached || ++c->n_lost < LOST_MAX);
    if (again) {
        c->gen = NULL;
        c->over = true;
        c->opened = false;
        c->started_ns = 0;
    }
    pthread_mutex_unlock(&j->mutex);
    if (!again)
        return false;
    lost_worker(c, err, false);
    nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG, "request=%s choice=%d msg=\"tried again\" reason=%s",
           j->id, c->index, err->reason);
    let_go(c);
    nk_gen_free(c->handle); /* before its chain may be closed */
    c->handle = NULL;
    nk__recovery_anew(&c->recovery);
    return go_back(c, 0);
}

/* A worker was lost that had something of it, or the reader has: it waits, and goes on where it
 * stopped when there is a chain. False: it ends with err, or begins anew. The job may be gone after
 * true. */
static bool go_on_later(struct nk_choice *c, const struct nk_gen_stats *stats,
                        const struct nk_error *err)
{
    nk_job *j = c->j;
    nk_gateway *g = j->g;
    nk_gen *lost = c->handle;
    bool unreached = !strcmp(err->reason, "unreachable");
    bool may = c->place.set && nk__recovery_may(&g->recoveries, &c->recovery, lost, err);

    pthread_mutex_lock(&j->mutex);
    may = may && (c->opened || c->n_generated || c->recovery.pending) && !c->ended && !j->failed &&
          !j->broken && !j->ending && !j->cancelled &&
          (c->n_generated || unreached || ++c->n_lost < LOST_MAX);
    if (may) {
        c->gen = NULL;
        c->over = true;
        c->paused = true;
    }
    pthread_mutex_unlock(&j->mutex);
    if (!may)
        return false;
    lost_worker(c, err, c->recovery.pending);
    nk__recovery_lost(&g->recoveries, &c->recovery, lost, c->place.set, c->place.idx, stats, err);
    c->handle = NULL;
    c->last_token_ns = 0; /* the pause is no time of a token's */
    return go_back(c, c->recovery.until_ns);
}

/* It had no more room: neither the request's limit nor the operator's was what ended it. */
static bool is_truncated(const struct nk_choice *c, const struct nk_gen_stats *stats)
{
    const struct nk_request *r = &c->j->request;
    int limit = r->n_predict > 0 ? r->n_predict : c->j->g->opts.n_predict_max;

    return stats->finish == NK_FINISH_LENGTH && !r->only_prompt &&
           (!limit || c->n_generated < limit);
}

/* Its ticket is out of the queue, or (runs) has its place: which it leaves. */
static void end_choice(struct nk_choice *c, bool runs, const struct nk_gen_stats *stats,
                       const struct nk_error *err)
{
    nk_job *j = c->j;
    nk_gateway *g = j->g;
    struct nk_job_event *e = nk__job_event_new(c->index, stats->tail_size);
    struct nk_error none = { .code = 0 };
    struct nk_error ours;
    bool aborted;

    if (err) {
        ours = *err;
        /* Whose fault it is is not known to gRPC's codes: a worker that does not fit is not this
         * request's. */
        if (ours.code == NK_E_PRECONDITION || ours.code == NK_E_NOT_FOUND ||
            ours.code == NK_E_DENIED || ours.code == NK_E_UNAUTHENTICATED ||
            ours.code == NK_E_UNIMPLEMENTED || ours.code == NK_E_ABORTED ||
            (g->opts.deterministic && !strcmp(ours.reason, "not_deterministic")))
            ours.code = NK_E_UNAVAILABLE;
        err = &ours;
    }
    /* Before there is room: the next one would be lost as well. INTERNAL may be of this request
     * alone, which must not keep the others waiting. */
    if (err && is_workers_fault(err->code)) {
        if (err->code == NK_E_INTERNAL)
            nk__monitor_doubt(g->monitor);
        else
            lost_worker(c, err, false);
    }
    /* All that is counted and doubted is so before anybody can see that it is over. */
    let_go(c);
    if (c->place.set)
        note_stages(g, nk_chain_cluster(c->place.set->chains[c->place.idx]), stats);
    nk__readiness_give_back(&g->readiness, &c->place);
    if (runs)
        nk__admission_leave(g->admission, &c->ticket);
    nk__recovery_ended(&g->recoveries, &c->recovery,
                       !err                          ? NK_RECOVERY_DONE
                       : err->code == NK_E_CANCELLED ? NK_RECOVERY_CANCELLED
                                                     : NK_RECOVERY_GIVEN_UP,
                       err);
    nk__metrics_add(g->metrics, NK_METRIC_PROMPT, NULL, stats->n_prompt);
    nk__metrics_add(g->metrics, NK_METRIC_REUSED, NULL, stats->n_reused);
    pthread_mutex_lock(&j->mutex);
    c->gen = NULL;
    c->done = c->over = true;
    c->paused = false;
    j->n_done++;
    if (err && c->ended && (err->code == NK_E_CANCELLED || is_workers_fault(err->code)))
        err = NULL; /* we had enough, whatever became of it since */
    nk__metrics_add(g->metrics, NK_METRIC_GENERATIONS,
                    err        ? err->code == NK_E_CANCELLED ? "cancelled" : "error"
                    : c->ended ? "tool_calls"
                               : nk_finish_name(stats->finish == NK_FINISH_EOG ? NK_FINISH_STOP
                                                                               : stats->finish),
                    1);
    if (e) {
        struct nk_reply_done *d = &e->done;
        int n_per_prompt = j->request.n;

        e->kind = NK_EVENT_DONE;
        e->err = err ? *err : none;
        *d = (struct nk_reply_done){
            .finish = j->request.only_prompt            ? NK_FINISH_LENGTH
                      : stats->finish == NK_FINISH_NONE ? NK_FINISH_EOG
                                                        : stats->finish,
            .stop_string = "",
            .n_prompt = (int)j->prepared.prompts[c->index / n_per_prompt].n,
            .n_reused = stats->n_reused,
            .n_generated = j->request.only_prompt ? 0 : c->n_generated,
            .truncated = is_truncated(c, stats),
            .prefill_us = stats->prefill_us,
            .decode_us = stats->decode_us,
            .total_us = (nk_clock_now_ns(g->clock) - j->begin_ns) / 1000,
            .waiting_us = c->waiting_us,
            .n_recovered = c->recovery.n_resumed,
            .recovery_us = c->recovery.pause_us,
            .n_replayed = stats->n_replayed,
            .counts_prompt = c->index % n_per_prompt == 0,
        };
        snprintf(d->stop_string, sizeof d->stop_string, "%s", stats->stop_string);
        d->tail = memcpy(e + 1, c->ended ? "" : stats->tail, c->ended ? 0 : stats->tail_size);
        d->tail_size = c->ended ? 0 : stats->tail_size;
        if (nk__job_keeps_ids(j)) {
            const struct nk_tokens *p = &j->prepared.prompts[0];

            int32_t *ids = malloc((p->n + c->n_ids + 1) * sizeof *ids);

            /* The ids of prompt and reply: they stay as long as the job. */
            if (ids) {
                memcpy(ids, p->ids, p->n * sizeof *ids);
                if (c->n_ids)
                    memcpy(ids + p->n, c->ids, c->n_ids * sizeof *ids);
                free(c->ids);
                c->ids = ids;
                d->context = ids;
                d->n_context = p->n + c->n_ids;
            }
        }
    }
    aborted = j->failed || j->ending || j->cancelled;
    if (!e && !aborted) {
        j->failed = true;
        nk_fail(&j->err, NK_E_EXHAUSTED, "no_memory", "no memory for the reply's end");
    } else if (e && (aborted || (!j->request.stream && err)))
        free(e);
    else if (e && j->request.stream) {
        j->broken = j->broken || err;
        nk__job_push(j, e);
    } else if (e) {
        int rc = nk__reply_done(j->reply, c->index, &e->done, &j->out, &j->err);

        j->failed = rc != 0;
        free(e);
    }
    if (err && !j->failed && !j->request.stream) {
        j->failed = true;
        j->err = *err;
    }
    pthread_mutex_unlock(&j->mutex);
    nk_gen_free(c->handle); /* once nobody knows it */
    c->handle = NULL;
    if (err && err->code != NK_E_CANCELLED && !aborted)
        nk__job_cancel_choices(j); /* the others of the same request: its reply is an error now */
    nk_log(NK_LOG_GATEWAY, NK_LOG_DEBUG,
           "request=%s choice=%d finish=%s n_prompt=%d n_generated=%d reason=%s", j->id, c->index,
           nk_finish_name(stats->finish), stats->n_prompt, stats->n_generated,
           err ? err->reason : "none");
    nk__job_wake(j);
    nk__job_unref(j);
}

static void on_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct nk_choice *c = user;

    if (!err || (!go_on_later(c, stats, err) && !try_again(c, err)))
        end_choice(c, true, stats, err);
}

/* ---- beginning ---- */

static const struct nk_gen_handlers handlers = {
    .opened = nk__choice_opened,
    .prefilled = nk__choice_prefilled,
    .prompted = nk__choice_prompted,
    .token = nk__choice_token,
    .replaying = nk__choice_replaying,
    .done = on_done,
};

/* The most tokens of a choice with this prompt; left: as many as the context holds. 0 is a
 * session's share of the workers' context: a session reserves what it may come to need, and one
 * that may need everything would let no other run beside it. */
static int n_predict_of(const struct nk_choice *c, int n_prompt, int left)
{
    const struct nk_request *r = &c->j->request;
    int max = c->j->g->opts.n_predict_max, share = c->place.n_share, its = left;

    if (r->n_predict > 0 && r->n_predict < left)
        return r->n_predict;
    if (!max)
        return r->n_predict || r->num_ctx ? left : 0;
    /* As the first stage would have it (worker/open.c). */
    if (!r->n_predict && !r->num_ctx && share > 0)
        its = share - n_prompt > share / 2 ? share - n_prompt : share / 2 ? share / 2 : 1;
    its = its < left ? its : left;
    return its < max ? its : max;
}

/* On the chain of its place. */
static int begin_generation(struct nk_choice *c, struct nk_error *err)
{
    nk_job *j = c->j;
    const struct nk_request *r = &j->request;
    const struct nk_tokens *prompt = &j->prepared.prompts[c->index / r->n];
    struct nk_gen_opts o = nk_gen_opts_default();
    int n_ctx = c->place.n_ctx, left;

    n_ctx = r->num_ctx && r->num_ctx < n_ctx ? r->num_ctx : n_ctx;
    left = n_ctx - (int)prompt->n;
    o.ids = prompt->ids;
    o.n_ids = prompt->n;
    left = left > 0 ? left : 1;
    o.n_predict = n_predict_of(c, (int)prompt->n, left);
    o.sampling = r->sampling;
    o.sampling.grammar = j->prepared.grammar;
    o.sampling.logit_bias = j->prepared.logit_bias;
    o.sampling.n_logit_bias = j->prepared.n_logit_bias;
    /* The choices of one prompt have seeds of their own, or they would all be the same. */
    if (r->sampling.seed != NK_SEED_RANDOM)
        o.sampling.seed = (r->sampling.seed + (uint32_t)(c->index % r->n)) % NK_SEED_RANDOM;
    o.stop = r->stop;
    o.n_stop = r->n_stop;
    o.n_logprobs = r->n_logprobs;
    o.n_prompt_logprobs = nk__job_wants_prompt(j) ? r->n_logprobs : -1;
    o.deterministic = r->deterministic || j->g->opts.deterministic;
    o.no_reuse = r->no_reuse;
    o.reuse_salt = j->reuse_salt;
    o.special = j->prepared.special;
    o.hold_ms = j->g->opts.limits.hold_ms;
    o.stall_ms = j->g->opts.limits.stall_ms;
    o.exact = j->g->opts.exact_recovery;
    o.progress = (r->progress || r->timings_per_token) && r->stream;
    return nk_gen_start(&c->handle, c->place.set->chains[c->place.idx], &o, &handlers, c, err);
}

static int resume_generation(struct nk_choice *c, struct nk_error *err)
{
    const struct nk_replicas *set = c->place.set;
    nk_chain *chain = set->chains[c->place.idx];
    nk_gen *lost = nk__recovery_chosen(&c->j->g->recoveries, &c->recovery, nk_chain_cluster(chain),
                                       set->epoch);
    int rc = nk_gen_resume(&c->handle, chain, lost, &handlers, c, err);

    nk_gen_free(lost);
    return rc;
}

/* [admission's thread] */
static void begin(struct nk_ticket *t)
{
    struct nk_choice *c = t->user;
    nk_job *j = c->j;
    const struct nk_tokens *prompt = &j->prepared.prompts[c->index / j->request.n];
    struct nk_gen_stats none = { .finish = NK_FINISH_NONE, .tail = "" };
    struct nk_replicas *set;
    struct nk_prefixes prefixes;
    struct nk_error err;
    bool resumes = c->recovery.lost;

    nk__prefixes_of(&prefixes, j->reuse_salt, prompt->ids, prompt->n);
    if (nk__readiness_take(&j->g->readiness, &prefixes, &c->place, &err)) {
        /* The chains went just now, and admission is paused: it waits for others. */
        if (!go_back(c, resumes ? c->recovery.until_ns : 0))
            end_choice(c, true, &none, &err);
        return;
    }
    if (!c->waited)
        nk__metrics_observe(j->g->metrics, NK_METRIC_WAIT, NULL,
                            (double)(t->started_ns - t->entered_ns) / 1e9, 1);
    c->waited = true;
    pthread_mutex_lock(&j->mutex);
    if (!resumes) {
        c->started_ns = nk_clock_now_ns(j->g->clock);
        c->waiting_us = (t->started_ns - t->entered_ns) / 1000;
    }
    c->over = c->paused = false;
    pthread_mutex_unlock(&j->mutex);
    set = nk__replicas_ref(c->place.set); /* `done` gives up the choice's own */
    if (resumes ? resume_generation(c, &err) : begin_generation(c, &err)) {
        nk__replicas_unref(set);
        end_choice(c, true, &none, &err);
        return;
    }
    /* `done` may have come already, and has freed the handle. The choice is alive: the caller's
     * reference is only given up by `done`, so the job is kept here. */
    pthread_mutex_lock(&j->mutex);
    if (!c->over) {
        c->gen = c->handle;
        if (j->cancelled || j->failed || c->ended)
            nk_gen_cancel(c->gen);
    }
    pthread_mutex_unlock(&j->mutex);
    nk__replicas_unref(set);
}

void nk__choice_start(struct nk_ticket *t)
{
    nk_job *j = ((struct nk_choice *)t->user)->j;

    nk__job_ref(j);
    begin(t);
    nk__job_unref(j);
}

/* Nothing came to go on with: the reader is told what was lost, after all that there was. */
static void give_up(struct nk_choice *c, const struct nk_error *in_the_way)
{
    struct nk_gen_stats known = stats_of_paused(c);
    struct nk_error err;

    nk__recovery_too_late(&c->j->g->recoveries, &c->recovery, in_the_way, &err);
    end_choice(c, false, &known, &err);
}

void nk__choice_expire(struct nk_ticket *t, const struct nk_error *err)
{
    struct nk_choice *c = t->user;
    nk_job *j = c->j;

    if (c->recovery.lost) {
        give_up(c, err);
        return;
    }
    /* It may have begun anew after a loss. */
    nk__recovery_ended(&j->g->recoveries, &c->recovery, NK_RECOVERY_GIVEN_UP, err);
    pthread_mutex_lock(&j->mutex);
    c->done = true;
    j->n_done++;
    pthread_mutex_unlock(&j->mutex);
    nk__job_cancel_choices(j);
    nk__job_fail(j, err, "");
    nk__job_unref(j);
}
