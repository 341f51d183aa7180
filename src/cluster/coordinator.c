#include "cluster/coordinator_int.h"

#include <stdlib.h>
#include <string.h>

enum {
    /* Of what a member's message becomes when it is unpacked: empty submessages of two bytes each
     * become a hundred each. */
    UNPACKED_BYTES_MAX = 4 << 20,
};

/* ---- on the net thread, from others ---- */

struct errand {
    nk_coordinator *c;
    int (*run)(nk_coordinator *c, void *arg, struct nk_error *err);
    void *arg;
    struct nk_error *err;
    int rc;
    pthread_mutex_t mutex;
    pthread_cond_t done_cond;
    bool done;
};

static void run_errand(void *arg)
{
    struct errand *e = arg;
    int rc = e->run(e->c, e->arg, e->err);

    pthread_mutex_lock(&e->mutex);
    e->rc = rc;
    e->done = true;
    pthread_cond_signal(&e->done_cond);
    pthread_mutex_unlock(&e->mutex);
}

static int on_net(nk_coordinator *c, int (*run)(nk_coordinator *c, void *arg, struct nk_error *err),
                  void *arg, struct nk_error *err)
{
    struct errand e = { .c = c, .run = run, .arg = arg, .err = err };

    if (nk_net_is_current(c->o.net))
        return run(c, arg, err);
    pthread_mutex_init(&e.mutex, NULL);
    pthread_cond_init(&e.done_cond, NULL);
    nk_net_post(c->o.net, run_errand, &e);
    pthread_mutex_lock(&e.mutex);
    while (!e.done)
        pthread_cond_wait(&e.done_cond, &e.mutex);
    pthread_mutex_unlock(&e.mutex);
    pthread_cond_destroy(&e.done_cond);
    pthread_mutex_destroy(&e.mutex);
    return e.rc;
}

/* ---- steps of the fleet ---- */

static void step(nk_coordinator *c);

static void on_timer(void *arg)
{
    nk_coordinator *c = arg;

    c->timer = NULL;
    step(c);
}

/* A new snapshot, twice a second at most while somebody asks for them, else now and then. */
static void take_snapshot(nk_coordinator *c, uint64_t now)
{
    enum { EVERY_MS = 500, IDLE_MS = 2000, ASKED_MS = 30000 };
    struct nk_buf text = NK_BUF_INIT(NK__STATUS_BYTES_MAX);
    struct nk_error err;
    uint64_t ms;
    bool due;

    pthread_mutex_lock(&c->mutex);
    ms = now - c->asked_ns < ASKED_MS * UINT64_C(1000000) ? EVERY_MS : IDLE_MS;
    due = !c->snapshot_ns || now - c->snapshot_ns >= ms * 1000000;
    pthread_mutex_unlock(&c->mutex);
    if (!due || nk__coordinator_status_text(c, &text, &err)) {
        nk_buf_release(&text);
        return;
    }
    pthread_mutex_lock(&c->mutex);
    nk_buf_release(&c->snapshot);
    c->snapshot = text;
    c->snapshot_ns = now;
    pthread_mutex_unlock(&c->mutex);
}

static void step(nk_coordinator *c)
{
    struct nk_error err;
    uint64_t now = nk_clock_now_ns(c->o.clock), next = nk_fleet_step(c->fleet, now);
    uint64_t ms = next > now ? (next - now + 999999) / 1000000 : 1;

    if (c->roster_due)
        (void)nk__coordinator_publish_roster(c, &err); /* that it fails was said the first time */
    take_snapshot(c, now);
    if (ms > c->o.beat_ms)
        ms = c->o.beat_ms; /* the snapshot's sake */

    nk_timer_cancel(c->timer);
    c->timer = nk_timer_start(c->o.net, (uint32_t)ms, on_timer, c);
}

static void posted_step(void *arg)
{
    nk_coordinator *c = arg;

    c->step_posted = false;
    if (!c->stopping)
        step(c);
}

void nk__coordinator_step_soon(nk_coordinator *c)
{
    if (c->step_posted)
        return;
    c->step_posted = true;
    nk_net_post(c->o.net, posted_step, c);
}

/* ---- from other threads ---- */

struct admission {
    const char *id;
    bool gateway;
    char *name;
    struct nk_roster *roster;
};

static int admit(nk_coordinator *c, void *arg, struct nk_error *err)
{
    struct admission *a = arg;
    int rc = nk_fleet_admit(c->fleet, a->id, a->gateway, a->name, nk_clock_now_ns(c->o.clock), err);

    if (!rc)
        rc = nk__coordinator_publish_roster(c, err);
    return rc || !a->roster ? rc : nk_fleet_roster(c->fleet, a->roster, err);
}

int nk_coordinator_admit(nk_coordinator *c, const char *id, bool gateway,
                         char name[NK_MEMBER_NAME_SIZE], struct nk_roster *roster,
                         struct nk_error *err)
{
    return on_net(c, admit, &(struct admission){ id, gateway, name, roster }, err);
}

struct question {
    const char *id;
    bool answer;
};

static int is_removed(nk_coordinator *c, void *arg, struct nk_error *err)
{
    struct question *q = arg;

    (void)err;
    q->answer = !nk_fleet_has(c->fleet, q->id);
    return 0;
}

bool nk_coordinator_is_removed(nk_coordinator *c, const char *id)
{
    struct question q = { .id = id };

    on_net(c, is_removed, &q, NULL);
    return q.answer;
}

struct unreached {
    const char *id, *why;
};

static int unreachable(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct unreached *u = arg;

    (void)err;
    nk_fleet_unreachable(c->fleet, u->id, u->why, nk_clock_now_ns(c->o.clock));
    nk__coordinator_step_soon(c);
    return 0;
}

void nk_coordinator_unreachable(nk_coordinator *c, const char *id, const char *why)
{
    on_net(c, unreachable, &(struct unreached){ id, why }, NULL);
}

struct hosts {
    const char *const *addresses;
    int n;
};

static int set_addresses(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct hosts *h = arg;

    (void)err;
    c->n_addresses = 0;
    for (int i = 0; i < h->n && c->n_addresses < NK_COORDINATOR_ADDRESSES_MAX; i++)
        if (strlen(h->addresses[i]) < sizeof c->addresses[0])
            strcpy(c->addresses[c->n_addresses++], h->addresses[i]);
    if (c->fleet) {
        nk_fleet_want_again(c->fleet);
        nk__coordinator_step_soon(c);
    }
    return 0;
}

void nk_coordinator_set_addresses(nk_coordinator *c, const char *const *addresses, int n)
{
    on_net(c, set_addresses, &(struct hosts){ addresses, n }, NULL);
}

struct token_time {
    uint64_t epoch;
    double ms;
};

static int measured(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct token_time *t = arg;

    (void)err;
    nk_fleet_measured(c->fleet, t->epoch, t->ms);
    return 0;
}

void nk_coordinator_measured(nk_coordinator *c, uint64_t epoch, double ms_per_token)
{
    on_net(c, measured, &(struct token_time){ epoch, ms_per_token }, NULL);
}

struct stage_time {
    uint64_t epoch;
    const char *name;
    int begin, end;
    double ms;
};

static int stage_measured(nk_coordinator *c, void *arg, struct nk_error *err)
{
    const struct stage_time *s = arg;

    (void)err;
    nk_fleet_stage_measured(c->fleet, s->epoch, s->name, s->begin, s->end, s->ms,
                            nk_clock_now_ns(c->o.clock));
    return 0;
}

void nk_coordinator_stage_measured(nk_coordinator *c, uint64_t epoch, const char *name,
                                   int layer_begin, int layer_end, double ms)
{
    on_net(c, stage_measured, &(struct stage_time){ epoch, name, layer_begin, layer_end, ms },
           NULL);
}

int nk_coordinator_json(nk_coordinator *c, struct nk_buf *out, struct nk_error *err)
{
    int rc;

    pthread_mutex_lock(&c->mutex);
    c->asked_ns = nk_clock_now_ns(c->o.clock);
    rc = nk_buf_add(out, nk_buf_str(&c->snapshot), c->snapshot.size, err);
    pthread_mutex_unlock(&c->mutex);
    return rc;
}

/* ---- life ---- */

static int start(nk_coordinator *c, void *arg, struct nk_error *err)
{
    struct nk_fleet_opts fo = { .beat_ms = c->o.beat_ms,
                                .beats_missed_max = c->o.beats_missed_max,
                                .settle_ms = c->o.settle_ms,
                                .store = c->o.store,
                                .catalogue = c->o.catalogue,
                                .model = c->o.model,
                                .plan = c->o.plan,
                                .by_hand = c->o.by_hand,
                                .own = c->o.own,
                                .want = nk__coordinator_want,
                                .deploy = nk__coordinator_deploy,
                                .gone = nk__coordinator_gone,
                                .event = nk__coordinator_event,
                                .user = c };
    int rc = nk_fleet_open(&c->fleet, &fo, nk_clock_now_ns(c->o.clock), err);

    (void)arg;
    if (!rc)
        rc = nk__coordinator_publish_roster(c, err);
    if (!rc)
        take_snapshot(c, nk_clock_now_ns(c->o.clock)); /* there is one from the beginning on */
    if (!rc)
        nk__coordinator_step_soon(c);
    return rc;
}

int nk_coordinator_start(nk_coordinator **out, const struct nk_coordinator_opts *opts,
                         struct nk_error *err)
{
    nk_coordinator *c = calloc(1, sizeof *c);
    int rc;

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    c->o = *opts;
    if (!c->o.beat_ms)
        c->o.beat_ms = 2000;
    if (!c->o.beats_missed_max)
        c->o.beats_missed_max = 3;
    if (!c->o.settle_ms)
        c->o.settle_ms = 2000;
    set_addresses(c, &(struct hosts){ opts->addresses, opts->n_addresses }, NULL);
    LIST_INIT(&c->attendees);
    nk_buf_init(&c->snapshot, NK__STATUS_BYTES_MAX);
    pthread_mutex_init(&c->mutex, NULL);
    c->arena = nk_arena_new(UNPACKED_BYTES_MAX);
    rc = c->arena ? on_net(c, start, NULL, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (rc) {
        nk_coordinator_stop(c);
        return rc;
    }
    *out = c;
    return 0;
}

static int stop(nk_coordinator *c, void *arg, struct nk_error *err)
{
    (void)arg, (void)err;
    c->stopping = true;
    nk_timer_cancel(c->timer);
    c->timer = NULL;
    return 0;
}

static int nothing(nk_coordinator *c, void *arg, struct nk_error *err)
{
    (void)c, (void)arg, (void)err;
    return 0;
}

void nk_coordinator_stop(nk_coordinator *c)
{
    if (!c)
        return;
    on_net(c, stop, NULL, NULL);
    on_net(c, nothing, NULL, NULL); /* behind a step that was posted */
    nk_fleet_close(c->fleet);
    nk_buf_release(&c->snapshot);
    nk_arena_free(c->arena);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}
