/* Generations over the fake workers, and what their handlers were told. */
#ifndef NK_TESTS_HEARD_H
#define NK_TESTS_HEARD_H

#include "unit/chain/fake_worker.h"

/* What a generation's handlers were told. */
struct heard {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    nk_gen *g;
    int n_tokens, n_done, n_opened, last_index;
    int n_replaying, replayed, to_replay; /* calls, and what the last one said */
    char replayed_to[64];
    int n_prompted; /* calls; the position that was told last */
    float prompt_logprob;
    int n_prefilled, prefilled[16], n_reused; /* calls, and what they said */
    char text[4096];
    bool ok, free_in_done, cancel_in_token;
    struct nk_gen_token token; /* the last; pointers are dead */
    struct nk_gen_stats stats;
    char tail[256];
    struct nk_error err;
};

static inline void heard_token(void *user, const struct nk_gen_token *t)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    h->n_tokens++;
    h->last_index = t->index;
    h->token = *t;
    strncat(h->text, t->text, t->text_size);
    if (h->cancel_in_token)
        nk_gen_cancel(h->g);
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

static inline void heard_done(void *user, const struct nk_gen_stats *stats,
                              const struct nk_error *err)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    h->n_done++;
    h->stats = *stats;
    snprintf(h->tail, sizeof h->tail, "%.*s", (int)stats->tail_size, stats->tail);
    h->ok = !err;
    if (err)
        h->err = *err;
    if (h->free_in_done) {
        nk_gen_free(h->g);
        h->g = NULL;
    }
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

static inline void heard_opened(void *user)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    h->n_opened++;
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

static inline void heard_prefilled(void *user, int n_done, int n_reused)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    assert_int_equal(h->n_tokens, 0);
    h->n_reused = n_reused;
    h->prefilled[h->n_prefilled++ % 16] = n_done;
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

static inline void heard_prompted(void *user, const struct nk_gen_token *t)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    assert_int_equal(t->index, ++h->n_prompted);
    h->prompt_logprob = t->logprob;
    pthread_mutex_unlock(&h->mutex);
}

static inline void heard_replaying(void *user, const char *worker_id, int done, int total)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    h->n_replaying++;
    h->replayed = done;
    h->to_replay = total;
    snprintf(h->replayed_to, sizeof h->replayed_to, "%s", worker_id);
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

static const struct nk_gen_handlers handlers = {
    .opened = heard_opened,
    .prefilled = heard_prefilled,
    .prompted = heard_prompted,
    .replaying = heard_replaying,
    .token = heard_token,
    .done = heard_done,
};

static inline void heard_init(struct heard *h)
{
    fake_turn();
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->mutex, NULL);
    nk_cond_init(&h->cond);
}

/* Until n tokens came and (if done) the end. An end before them fails at once. */
static inline void heard_wait(struct heard *h, int n, bool done)
{
    struct nk_clock *clock = nk_clock_system();
    uint64_t until = nk_clock_now_ns(clock) + PATIENCE_MS * 1000000ull;
    bool ok = true;

    pthread_mutex_lock(&h->mutex);
    while (ok && !h->n_done && (done || h->n_tokens < n))
        ok = nk_clock_wait_until(clock, &h->cond, &h->mutex, until);
    ok = h->n_tokens >= n && (h->n_done || !done);
    pthread_mutex_unlock(&h->mutex);
    if (!ok)
        fail_msg("%d tokens and %d ends came: %s", h->n_tokens, h->n_done, h->err.msg);
    fake_turn();
}

static const int32_t prompt[] = { 1, 2, 3 };

static inline struct nk_gen_opts options(void)
{
    struct nk_gen_opts o = nk_gen_opts_default();

    o.ids = prompt;
    o.n_ids = 3;
    o.n_predict = 8;
    return o;
}

static inline void start(nk_chain *c, struct heard *h, const struct nk_gen_opts *o)
{
    struct nk_error err;

    heard_init(h);
    if (nk_gen_start(&h->g, c, o, &handlers, h, &err))
        fail_msg("%s", err.msg);
}

static inline void finish(struct heard *h)
{
    heard_wait(h, 0, true);
    assert_int_equal(h->n_done, 1);
    nk_gen_free(h->g);
}

#endif
