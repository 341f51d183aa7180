/* Which workers make a chain after some were lost: the choice from reports that are written here,
 * and the asking of fake workers until there is one, in virtual time. */
#include "chain/repair.h"

#include "unit/chain/fake_worker.h"

/* ---- the choice ---- */

enum { WORKERS = 3, LAYERS = 12 };

struct given {
    struct nk_cluster *cluster;
    struct nk_chain_report *report;
    struct nk_known known[NK_CLUSTER_WORKERS_MAX];
    struct nk_repair_wish wish;
};

static void answers(struct nk_worker_report *w, int begin, int end, const char *id)
{
    w->answered = true;
    w->rc = 0;
    w->protocol = 1;
    w->has_begin = begin;
    w->has_end = end;
    w->layer_count = LAYERS;
    w->n_embd = 64;
    w->n_vocab = 100;
    w->n_ctx_seq = 512;
    w->n_batch = 64;
    w->n_seq_max = 4;
    w->takes_f32 = true;
    w->deterministic = true;
    snprintf(w->model_sha256, sizeof w->model_sha256, "%s", SHA);
    strcpy(w->architecture, "llama");
    strcpy(w->state, "serving");
    snprintf(w->worker_id, sizeof w->worker_id, "%s", id);
    nk_computed_set(&w->computed, NK_FACT_LLAMA, "0.7.0", "%s", "");
    nk_computed_set(&w->computed, NK_FACT_BACKEND, "CPU", "%s", "");
    nk_computed_set(&w->computed, NK_FACT_GGML, "1", "%s", "");
}

static void is_gone(struct nk_worker_report *w)
{
    w->answered = false;
    w->rc =
        nk_fail(&w->err, NK_E_UNAVAILABLE, "unreachable",
                "worker %s (%s): %s cannot be reached (refused)", w->id, w->address, w->address);
}

/* Three workers that are there, and two spares that are not. */
static void given_init(struct given *g)
{
    static const char *const ids[] = { "a", "b", "c" };

    memset(g, 0, sizeof *g);
    g->cluster = calloc(1, sizeof *g->cluster);
    g->report = calloc(1, sizeof *g->report);
    g->wish.lost = -1;
    strcpy(g->cluster->model_sha256, SHA);
    g->cluster->n_workers = g->report->n_workers = WORKERS;
    g->cluster->n_spares = g->report->n_spares = 2;
    for (int i = 0; i < WORKERS; i++) {
        struct nk_cluster_worker *w = &g->cluster->workers[i];
        struct nk_worker_report *r = &g->report->workers[i];

        strcpy(w->id, ids[i]);
        snprintf(w->address, sizeof w->address, "h:%d", i + 1);
        w->layer_begin = 4 * i;
        w->layer_end = 4 * i + 4;
        memcpy(r->id, w->id, sizeof r->id);
        memcpy(r->address, w->address, sizeof r->address);
        answers(r, 4 * i, 4 * i + 4, ids[i]);
        g->known[i] = (struct nk_known){ r->computed, r->n_ctx_seq, r->n_batch, r->n_seq_max };
    }
    for (int i = 0; i < 2; i++) {
        struct nk_worker_report *r = &g->report->spares[i];

        snprintf(g->cluster->spares[i], sizeof g->cluster->spares[i], "s:%d", i + 1);
        memcpy(r->address, g->cluster->spares[i], sizeof r->address);
        is_gone(r);
    }
}

static void given_release(struct given *g)
{
    free(g->cluster);
    free(g->report);
}

static struct nk_repaired *chosen(const struct given *g)
{
    struct nk_repaired *to;
    struct nk_error err;

    if (nk_repair_choose(&to, g->cluster, g->report, g->known, &g->wish, &err))
        fail_msg("%s", err.msg);
    return to;
}

static void not_chosen(const struct given *g, const char *says)
{
    struct nk_repaired *to;
    struct nk_error err;

    assert_int_equal(nk_repair_choose(&to, g->cluster, g->report, g->known, &g->wish, &err),
                     NK_E_UNAVAILABLE);
    assert_null(to);
    assert_string_equal(err.reason, "worker_lost");
    if (!strstr(err.msg, says))
        fail_msg("'%s' where '%s' was expected", err.msg, says);
}

static void test_repair__workers_that_are_there_stay(void **state)
{
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    answers(&g.report->spares[0], 4, 8, "s");
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 0);
    assert_memory_equal(&to->cluster, g.cluster, sizeof to->cluster);
    free(to);
    given_release(&g);
}

static void
test_repair__a_spare_takes_the_place_of_who_is_lost_and_the_other_way_round(void **state)
{
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    is_gone(&g.report->workers[1]);
    answers(&g.report->spares[1], 4, 8, "stand-in");
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 1);
    assert_int_equal(to->replaced[0].idx, 1);
    assert_string_equal(to->replaced[0].was, "worker b (h:2)");
    assert_string_equal(to->replaced[0].now, "spare s:2");
    assert_string_equal(to->replaced[0].unlike, "");
    assert_string_equal(to->cluster.workers[1].address, "s:2");
    assert_string_equal(to->cluster.workers[1].id, "stand-in");
    assert_string_equal(to->cluster.spares[1], "h:2");
    assert_string_equal(to->cluster.spares[0], "s:1");
    assert_string_equal(to->cluster.workers[0].address, "h:1");
    free(to);
    strcpy(g.report->spares[1].worker_id, "c"); /* a name that another one has */
    to = chosen(&g);
    assert_string_equal(to->cluster.workers[1].id, "b");
    free(to);
    strcpy(g.report->spares[1].worker_id, "a b"); /* one that a cluster file cannot have */
    to = chosen(&g);
    assert_string_equal(to->cluster.workers[1].id, "b");
    free(to);
    is_gone(&g.report->workers[2]);
    answers(&g.report->spares[0], 8, 12, "t");
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 2);
    assert_string_equal(to->cluster.workers[1].address, "s:2");
    assert_string_equal(to->cluster.workers[2].address, "s:1");
    free(to);
    given_release(&g);
}

static void test_repair__a_spare_that_does_not_fit_is_none(void **state)
{
    struct given g;
    struct nk_worker_report *s;

    (void)state;
    given_init(&g);
    s = &g.report->spares[0];
    is_gone(&g.report->workers[1]);
    not_chosen(&g, "worker b (h:2, layers 4-8) is lost, and none of the 2 spares stands in: h:2 "
                   "cannot be reached (refused)");
    answers(s, 4, 9, "s");
    not_chosen(&g, "none of the 2 spares");
    answers(s, 0, 4, "s");
    not_chosen(&g, "none of the 2 spares");
    answers(s, 4, 8, "s");
    s->model_sha256[0] ^= 1;
    not_chosen(&g, "none of the 2 spares");
    answers(s, 4, 8, "s");
    strcpy(s->state, "asleep");
    not_chosen(&g, "none of the 2 spares");
    answers(s, 4, 8, "s");
    nk_computed_set(&s->computed, NK_FACT_LLAMA, "0.8.0", "%s", "");
    not_chosen(&g, "none of the 2 spares");
    answers(s, 4, 8, "s");
    s->deterministic = false;
    g.wish.deterministic = true;
    not_chosen(&g, "none of the 2 spares");
    g.wish.deterministic = false;
    free(chosen(&g));
    g.report->n_spares = g.cluster->n_spares = 0;
    not_chosen(&g, "worker b (h:2, layers 4-8) is lost, and the cluster file has no spares: ");
    given_release(&g);
}

static void
test_repair__a_worker_that_comes_back_otherwise_is_not_the_one_that_was_lost(void **state)
{
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    answers(&g.report->workers[1], 4, 9, "b");
    not_chosen(&g, "worker b (h:2, layers 4-8) is lost, and none of the 2 spares stands in: it has "
                   "layers 4-9, the cluster file says 4-8");
    answers(&g.report->spares[0], 4, 8, "s");
    to = chosen(&g);
    assert_string_equal(to->cluster.workers[1].address, "s:1");
    free(to);
    given_release(&g);
}

static void test_repair__whoever_leaves_most_where_they_are_says_what_is_agreed(void **state)
{
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    /* The first one was started again, by another llama.cpp. */
    nk_computed_set(&g.report->workers[0].computed, NK_FACT_LLAMA, "0.8.0", "%s", "");
    not_chosen(&g, "worker a (h:1, layers 0-4) is lost, and none of the 2 spares stands in: its "
                   "llama.cpp: 0.8.0");
    answers(&g.report->spares[0], 0, 4, "s");
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 1);
    assert_int_equal(to->replaced[0].idx, 0);
    free(to);
    given_release(&g);
}

static void test_repair__a_spare_like_the_lost_one_comes_first_and_another_is_named(void **state)
{
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    is_gone(&g.report->workers[1]);
    answers(&g.report->spares[0], 4, 8, "s");
    nk_computed_set(&g.report->spares[0].computed, NK_FACT_BACKEND, "CUDA", "%s", "");
    nk_computed_set(&g.report->spares[0].computed, NK_FACT_GGML, "2", "%s", "");
    to = chosen(&g);
    assert_string_equal(to->cluster.workers[1].address, "s:1");
    if (!strstr(to->replaced[0].unlike, "CUDA instead of CPU, ") ||
        !strstr(to->replaced[0].unlike, "2 instead of 1"))
        fail_msg("'%s'", to->replaced[0].unlike);
    free(to);
    answers(&g.report->spares[1], 4, 8, "t");
    to = chosen(&g);
    assert_string_equal(to->cluster.workers[1].address, "s:2");
    assert_string_equal(to->replaced[0].unlike, "");
    free(to);
    memset(&g.known[1], 0, sizeof g.known[1]); /* never heard: nothing to be like */
    to = chosen(&g);
    assert_string_equal(to->cluster.workers[1].address, "s:1");
    assert_string_equal(to->replaced[0].unlike, "");
    free(to);
    given_release(&g);
}

static void test_repair__a_spare_with_less_room_comes_last_and_is_named(void **state)
{
    static const char *const said[] = { "a context of 511 tokens instead of 512",
                                        "batches of 63 rows instead of 64",
                                        "at once 3 sessions instead of 4" };
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    is_gone(&g.report->workers[1]);
    for (int i = 0; i < 3; i++) {
        struct nk_worker_report *s = &g.report->spares[0];

        answers(s, 4, 8, "s");
        *(i == 0 ? &s->n_ctx_seq : i == 1 ? &s->n_batch : &s->n_seq_max) -= 1;
        to = chosen(&g);
        assert_string_equal(to->cluster.workers[1].address, "s:1");
        assert_string_equal(to->replaced[0].unlike, said[i]);
        free(to);
        answers(&g.report->spares[1], 4, 8, "t"); /* with more it is as good */
        g.report->spares[1].n_ctx_seq = g.report->spares[1].n_batch = 1024;
        to = chosen(&g);
        assert_string_equal(to->cluster.workers[1].address, "s:2");
        assert_string_equal(to->replaced[0].unlike, "");
        free(to);
        is_gone(&g.report->spares[1]);
    }
    given_release(&g);
}

static void test_repair__who_was_lost_again_is_left_for_a_spare_if_there_is_one(void **state)
{
    struct given g;
    struct nk_repaired *to;

    (void)state;
    given_init(&g);
    g.wish = (struct nk_repair_wish){ .lost = 1, .avoid_lost = true };
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 0);
    free(to);
    answers(&g.report->spares[0], 4, 8, "s");
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 1);
    assert_string_equal(to->cluster.workers[1].address, "s:1");
    free(to);
    g.wish.avoid_lost = false;
    to = chosen(&g);
    assert_int_equal(to->n_replaced, 0);
    free(to);
    given_release(&g);
}

static void test_repair__nobody_at_all_is_an_error_like_another(void **state)
{
    struct given g;

    (void)state;
    given_init(&g);
    for (int i = 0; i < WORKERS; i++)
        is_gone(&g.report->workers[i]);
    not_chosen(&g, "worker a (h:1, layers 0-4) is lost");
    given_release(&g);
}

/* ---- the asking ---- */

struct heard {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    nk_repair *r;
    int n_waiting, n_done;
    struct nk_repaired *to;
    struct nk_error why, err;
};

static void heard_waiting(void *user, const struct nk_error *why)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    h->n_waiting++;
    h->why = *why;
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

static void heard_done(void *user, struct nk_repaired *to, const struct nk_error *err)
{
    struct heard *h = user;

    pthread_mutex_lock(&h->mutex);
    h->n_done++;
    h->to = to;
    if (err)
        h->err = *err;
    pthread_cond_broadcast(&h->cond);
    pthread_mutex_unlock(&h->mutex);
}

/* Until so many looks were in vain, or the end. */
static void heard_wait(struct heard *h, int n_waiting, bool done)
{
    struct nk_clock *clock = nk_clock_system();
    uint64_t until = nk_clock_now_ns(clock) + PATIENCE_MS * 1000000ull;
    bool ok = true;

    pthread_mutex_lock(&h->mutex);
    while (ok && !h->n_done && (done || h->n_waiting < n_waiting))
        ok = nk_clock_wait_until(clock, &h->cond, &h->mutex, until);
    ok = done ? h->n_done == 1 : h->n_waiting == n_waiting && !h->n_done;
    pthread_mutex_unlock(&h->mutex);
    if (!ok)
        fail_msg("%d looks in vain, %d ends: %s", h->n_waiting, h->n_done, h->err.msg);
    fake_turn();
}

static void start(struct heard *h, nk_chain *c, const struct nk_repair_opts *o)
{
    static const struct nk_repair_handlers handlers = { .waiting = heard_waiting,
                                                        .done = heard_done };
    struct nk_error err;

    fake_turn();
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->mutex, NULL);
    nk_cond_init(&h->cond);
    if (nk_repair_start(&h->r, c, o, &handlers, h, &err))
        fail_msg("%s", err.msg);
}

static void ended_on(struct heard *h, int spare)
{
    char address[256];

    heard_wait(h, 0, true);
    if (!h->to)
        fail_msg("%s", h->err.msg);
    fake_address(address, spare < 0 ? 1 : spare);
    assert_int_equal(h->to->n_replaced, spare >= 0);
    assert_string_equal(h->to->cluster.workers[1].address, address);
    free(h->to);
    nk_repair_free(h->r);
}

static void ended_with(struct heard *h, int code, const char *reason)
{
    heard_wait(h, 0, true);
    assert_null(h->to);
    assert_int_equal(h->err.code, code);
    assert_string_equal(h->err.reason, reason);
    nk_repair_free(h->r);
}

static nk_chain *chain_with_spare(void)
{
    struct nk_cluster cluster = *fake_cluster();

    cluster.n_spares = 1;
    fake_address(cluster.spares[0], SPARE);
    return fake_chain_of(&cluster);
}

/* An Info of the test's own, by the chain's connection to who is asked as idx: when its answer is
 * here, so are those to what was asked before. */
struct own_info {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool ended;
};

static void own_message(nk_call *c, void *user, struct nk_bytes msg)
{
    (void)c, (void)user, (void)msg;
}

static void own_ended(nk_call *c, void *user, const struct nk_error *status)
{
    struct own_info *own = user;

    (void)c, (void)status;
    pthread_mutex_lock(&own->mutex);
    own->ended = true;
    pthread_cond_signal(&own->cond);
    pthread_mutex_unlock(&own->mutex);
}

struct own_asking {
    nk_chain *c;
    int idx;
    struct own_info *own;
};

static void own_ask(void *arg)
{
    static const struct nk_call_handlers handlers = { .message = own_message, .end = own_ended };
    struct own_asking *a = arg;
    Nakshatra__V1__InfoRequest request = NAKSHATRA__V1__INFO_REQUEST__INIT;
    nk_call *call;

    nk_call_start(&call, a->c->channels[a->idx], NK__PATH_INFO, 0, &handlers, a->own, NULL);
    nk_call_send_pb(call, &request.base, NULL);
    nk_call_send_done(call);
}

static void has_answered(nk_chain *c, int idx)
{
    struct own_info own = { .ended = false };
    struct own_asking a = { c, idx, &own };

    pthread_mutex_init(&own.mutex, NULL);
    pthread_cond_init(&own.cond, NULL);
    run_on(c->net, own_ask, &a);
    pthread_mutex_lock(&own.mutex);
    while (!own.ended)
        pthread_cond_wait(&own.cond, &own.mutex);
    pthread_mutex_unlock(&own.mutex);
    fake_turn();
}

static const struct nk_repair_opts second_is_lost = { .wish = { .lost = 1 }, .wait_ms = 60000 };

static void test_repair__a_chain_that_is_there_is_found_at_once(void **state)
{
    nk_chain *c = chain_with_spare();
    struct nk_repair_opts o = second_is_lost;
    struct heard h;

    (void)state;
    o.wait_ms = 0;
    o.wish.lost = -1; /* or the spare might answer before the one that is said to be lost */
    start(&h, c, &o);
    ended_on(&h, -1);
    assert_int_equal(fakes[0].n_infos, 1); /* one question each */
    nk_chain_close(c);
}

static void test_repair__who_is_lost_is_not_waited_for_where_a_spare_has_answered(void **state)
{
    nk_chain *c = chain_with_spare();
    struct heard h;

    (void)state;
    fakes[1].info_silent = true;
    start(&h, c, &second_is_lost);
    ended_on(&h, SPARE); /* the clock stands still: nothing ran into a limit */
    nk_chain_close(c);
}

static void test_repair__a_live_worker_has_its_time_to_answer(void **state)
{
    nk_chain *c = chain_with_spare();
    struct nk_repair_opts o = second_is_lost;
    struct heard h;

    (void)state;
    o.wish.lost = 0; /* another one */
    fakes[1].info_silent = true;
    start(&h, c, &o);
    fake_wait(&fakes[1].n_infos, 1);
    has_answered(c, 0);
    has_answered(c, SPARE);
    fake_pass_ms(c, 1999);
    assert_int_equal(h.n_done, 0);
    fake_answer_info(&fakes[1]);
    ended_on(&h, -1);
    fakes[1].info_silent = true;
    start(&h, c, &o);
    fake_wait(&fakes[1].n_infos, 2);
    has_answered(c, 0);
    has_answered(c, SPARE);
    fake_pass_ms(c, 2000);
    ended_on(&h, SPARE);
    nk_chain_close(c);
}

static void test_repair__it_looks_again_until_somebody_comes(void **state)
{
    nk_chain *c = chain_with_spare();
    struct heard h;
    int pauses_ms[] = { 100, 200, 400, 800, 1000, 1000 };

    (void)state;
    fakes[1].info.state = fakes[SPARE].info.state = (char *)(uintptr_t) "draining";
    start(&h, c, &second_is_lost);
    heard_wait(&h, 1, false);
    assert_string_equal(h.why.reason, "worker_lost");
    assert_non_null(strstr(h.why.msg, "worker cellar (127.0.0.1:"));
    assert_non_null(strstr(h.why.msg, "draining"));
    for (int i = 0; i < 6; i++) {
        fake_pass_ms(c, (uint64_t)pauses_ms[i] - 1);
        assert_int_equal(fakes[0].n_infos, i + 1);
        fake_pass_ms(c, 1);
        heard_wait(&h, i + 2, false);
    }
    fakes[1].info.state = (char *)(uintptr_t) "serving"; /* it is back itself */
    fake_turn();
    fake_pass_ms(c, 1000);
    ended_on(&h, -1);
    nk_chain_close(c);
}

static void test_repair__it_gives_up_exactly_when_it_has_waited_so_long(void **state)
{
    nk_chain *c = chain_with_spare();
    struct nk_repair_opts o = second_is_lost;
    struct heard h;

    (void)state;
    o.wait_ms = 250;
    fakes[1].info.state = fakes[SPARE].info.state = (char *)(uintptr_t) "draining";
    start(&h, c, &o);
    heard_wait(&h, 1, false);
    fake_pass_ms(c, 100);
    heard_wait(&h, 2, false);
    fake_pass_ms(c, 149);
    heard_wait(&h, 2, false);
    fake_pass_ms(c, 1);
    ended_with(&h, NK_E_UNAVAILABLE, "worker_lost");
    assert_non_null(strstr(h.err.msg, "none of the 1 spares stands in"));
    o.wait_ms = 0;
    start(&h, c, &o);
    ended_with(&h, NK_E_UNAVAILABLE, "worker_lost");
    assert_int_equal(h.n_waiting, 0);
    nk_chain_close(c);
}

static void test_repair__after_repairs_in_vain_it_waits_first(void **state)
{
    nk_chain *c = chain_with_spare();
    struct nk_repair_opts o = second_is_lost;
    struct heard h;

    (void)state;
    o.wish.lost = -1;
    for (int n = 1; n < 9; n++) {
        uint64_t ms = 100u << (n < 6 ? n : 6);
        int infos = fakes[0].n_infos;

        o.n_in_vain = n;
        start(&h, c, &o);
        settle(c->net);
        fake_pass_ms(c, ms - 1);
        assert_int_equal(fakes[0].n_infos, infos);
        fake_pass_ms(c, 1);
        ended_on(&h, -1);
    }
    nk_chain_close(c);
}

static void test_repair__cancelled_it_ends_once_whatever_it_does(void **state)
{
    nk_chain *c = chain_with_spare();
    struct nk_repair_opts o = second_is_lost;
    struct heard h;
    int n;

    (void)state;
    start(&h, c, &o); /* perhaps before it has begun */
    nk_repair_cancel(h.r);
    heard_wait(&h, 0, true);
    free(h.to);
    nk_repair_cancel(h.r); /* after the end: nothing happens */
    nk_repair_free(h.r);
    fakes[0].info_silent = true; /* while it asks */
    n = fakes[0].n_infos;
    start(&h, c, &o);
    fake_wait(&fakes[0].n_infos, n + 1);
    nk_repair_cancel(h.r);
    nk_repair_cancel(h.r);
    ended_with(&h, NK_E_CANCELLED, "cancelled");
    fakes[0].info_silent = false;
    fakes[0].info.state = (char *)(uintptr_t) "draining"; /* in a pause */
    start(&h, c, &o);
    heard_wait(&h, 1, false);
    nk_repair_cancel(h.r);
    ended_with(&h, NK_E_CANCELLED, "cancelled");
    start(&h, c, &o); /* by the chain's end */
    heard_wait(&h, 1, false);
    nk_chain_close(c);
    ended_with(&h, NK_E_CANCELLED, "cancelled");
}

static int reset(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

#define T(name) cmocka_unit_test_setup(name, reset)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_repair__workers_that_are_there_stay),
        T(test_repair__a_spare_takes_the_place_of_who_is_lost_and_the_other_way_round),
        T(test_repair__a_spare_that_does_not_fit_is_none),
        T(test_repair__a_worker_that_comes_back_otherwise_is_not_the_one_that_was_lost),
        T(test_repair__whoever_leaves_most_where_they_are_says_what_is_agreed),
        T(test_repair__a_spare_like_the_lost_one_comes_first_and_another_is_named),
        T(test_repair__a_spare_with_less_room_comes_last_and_is_named),
        T(test_repair__who_was_lost_again_is_left_for_a_spare_if_there_is_one),
        T(test_repair__nobody_at_all_is_an_error_like_another),
        T(test_repair__a_chain_that_is_there_is_found_at_once),
        T(test_repair__who_is_lost_is_not_waited_for_where_a_spare_has_answered),
        T(test_repair__a_live_worker_has_its_time_to_answer),
        T(test_repair__it_looks_again_until_somebody_comes),
        T(test_repair__it_gives_up_exactly_when_it_has_waited_so_long),
        T(test_repair__after_repairs_in_vain_it_waits_first),
        T(test_repair__cancelled_it_ends_once_whatever_it_does),
    };

    return cmocka_run_group_tests(tests, fake_start, fake_stop);
}
