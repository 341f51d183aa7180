/* Going on after losses, simulated: the workers' sessions, the chain's generations and the
 * gateway's recoveries as they are, over a network that loses, delays and doubles connections, with
 * processes that die, stand still and come back. One seed is one world: some requests, some faults.
 *
 *   test_simulation [--seeds N] [--from N] [--log]
 *
 * What must be true of every seed:
 *
 *   no token comes twice, none is missing, none is another one than it would have been, and no more
 *   does the text; however a request ends
 *   a session has one writer: on each worker one call at most has it, and of an attempt that is the
 *   latest
 *   everything ends: each request, and, after the grace time, each session, hold, journal, sequence
 *   and call on every worker
 *   where there was one fault, and what it took came back or has a spare, each request is answered
 *   to its end */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chain/repair.h"
#include "gateway/recover.h"
#include "simulation/model.h"
#include "simulation/world.h"
#include "worker/worker_int.h"

enum {
    MACHINES_MAX = 12,
    USERS_MAX = 4,
    CHAINS_MAX = 64,
    BEGIN_MS = 300,       /* requests begin and faults happen within this */
    END_MS = 1800 * 1000, /* what has not ended by then does not end */
    CHUNK = 4,
};

struct machine {
    char address[32], layers[16];
    int layer_begin, layer_end;
    int replica; /* whose cluster file has it */
    struct process *p;
    nk_worker *w;     /* NULL: it does not run */
    int computing;    /* jobs that its engine runs just now */
    bool due;         /* the engine is asked later what is next */
    uint64_t stopped; /* how often it was, so that what ends a stop knows its own */
    int n_starts;
};

struct user {
    struct model_asked asked;
    int32_t prompt[24];
    char stop[4];
    struct model_said expected, got;
    uint32_t hold_ms;
    bool exact, begun, over, cancelled, failed;
    struct nk_error err;
    nk_chain *chain;
    nk_gen *gen;
    nk_repair *repair;
    int lost; /* which worker of the chain was */
    struct nk_recovery recovery;
};

/* What is different from seed to seed. */
static struct {
    bool apart, f16, with_reuse;
    uint32_t hold_ms;
    uint64_t journal_bytes;
    int n_machines, n_users, n_faults;
    struct machine machines[MACHINES_MAX];
    struct user users[USERS_MAX];
    struct process *gateway;
    /* Of the first cluster as it was repaired; the other replica's, where there is one. Each has a
     * net of its own, and so a process. */
    struct {
        nk_chain *chain;
        struct process *p;
        struct nk_replicas set; /* of this one; it is never given up */
    } chains[CHAINS_MAX];
    int n_chains;
    nk_chain *current, *other;
    struct nk_recoveries recoveries;
    nk_metrics *metrics;
    bool gateway_dead;
    int n_long;    /* so many runs take very long */
    bool has_long; /* one does, at some time: what waits for it may be over before */
    bool rough;    /* something is silent or cut, so that not everybody can be told everything */
} s;

/* Over all seeds: that the simulation goes where it is meant to. */
static struct {
    unsigned long long requests, complete, failed, cancelled, resumed, losses, replayed;
} total;

/* ---- machines ---- */

static void check_writers(const struct machine *m)
{
    const struct nk_session *a, *b;

    for (int i = 0; i < NK_SESSION_STATES; i++)
        TAILQ_FOREACH(a, &m->w->sessions[i].head, link)
        {
            if (!a->opened_ns || i == NK_SESSION_KEPT)
                continue;
            for (int k = i; k < NK_SESSION_STATES; k++)
                TAILQ_FOREACH(b, &m->w->sessions[k].head, link)
                {
                    if (a == b || !b->opened_ns || k == NK_SESSION_KEPT ||
                        memcmp(a->id, b->id, sizeof a->id) != 0)
                        continue;
                    world_check(b->state == NK_SESSION_HELD && b->adopter == a &&
                                    a->attempt > b->attempt,
                                "worker %s has session %s twice, in states %d and %d, of attempts "
                                "%u and %u",
                                m->address, a->name, i, k, a->attempt, b->attempt);
                }
        }
}

static void ask_engine(void *arg);

static void engine_through(void *arg)
{
    struct machine *m = ((struct process *)arg)->user;
    int n = m->computing;

    m->computing = 0;
    nk__engine_run(m->w->engine, n);
}

static void look_after(struct process *p)
{
    struct machine *m = p->user;
    uint64_t until;

    if (!m || m->p != p || !m->w)
        return;
    check_writers(m);
    if (m->computing)
        return;
    m->computing = nk__engine_pick(m->w->engine, &until);
    if (m->computing) {
        uint64_t us = 200 + world_below(3000);

        if (s.n_long && world_chance(30)) { /* a step that takes longer than --stall-ms */
            s.n_long--;
            us = (35 + world_below(200)) * 1000000;
        }
        world_later(p, us, engine_through, p);
    } else if (until && !m->due) {
        m->due = true;
        world_later(p, (until - world_now_ns()) / 1000 + 1, ask_engine, p);
    }
}

static void ask_engine(void *arg)
{
    ((struct machine *)((struct process *)arg)->user)->due = false; /* look_after follows */
}

static void machine_start(struct machine *m)
{
    struct nk_worker_opts o = nk_worker_opts_default();
    const char *peers[MACHINES_MAX];
    struct nk_error err;

    for (int i = 0; i < s.n_machines; i++)
        peers[i] = s.machines[i].address;
    m->p = world_process(m->address);
    m->p->user = m;
    m->p->after = look_after;
    m->computing = 0;
    m->due = false;
    m->n_starts++;
    o.slice_path = m->layers;
    o.id = m->address;
    o.listen = m->address;
    o.stage = nk_stage_opts_default();
    o.peers = peers;
    o.n_peers = s.n_machines;
    o.deterministic = s.apart;
    o.chunk = CHUNK;
    o.journal_bytes = s.journal_bytes;
    o.spill_bytes = 0;
    o.by_hand = true;
    o.clock = world_clock();
    o.chance = world_randomness();
    NK_ASSERT(!nk_worker_start(&m->w, &o, &err));
    m->w->journals.limits.block_bytes = 96; /* four rows of f32 */
}

/* What it was computing is lost with it, or, in good order, is the last that it says. */
static void machine_end(struct machine *m)
{
    nk_worker *w = m->w;

    m->w = NULL;
    m->p->ending = true;
    if (m->computing)
        nk__engine_run(w->engine, m->computing);
    m->computing = 0;
    nk_worker_stop(w, 0);
    m->p->ending = false;
}

static void machine_again(void *arg)
{
    struct machine *m = arg;

    if (!m->w)
        machine_start(m);
}

/* ---- requests ---- */

static void look_for_chain(void *arg);

static struct nk_replicas *set_of(const nk_chain *c)
{
    for (int i = 0; i < s.n_chains; i++)
        if (s.chains[i].chain == c)
            return &s.chains[i].set;
    NK_ASSERT(false);
    return NULL;
}

static void user_end(struct user *u, const struct nk_error *err)
{
    const struct model_said *e = &u->expected, *g = &u->got;

    u->over = true;
    u->failed = err != NULL;
    if (err)
        u->err = *err;
    nk__recovery_ended(&s.recoveries, &u->recovery,
                       !err           ? NK_RECOVERY_DONE
                       : u->cancelled ? NK_RECOVERY_CANCELLED
                                      : NK_RECOVERY_GIVEN_UP,
                       err);
    if (err) {
        world_check(err->code != NK_E_DATA_LOSS && strcmp(err->reason, "superseded") != 0 &&
                        strcmp(err->reason, "stale_attempt") != 0,
                    "request %d ended with %s: %s", (int)(u - s.users), err->reason, err->msg);
        return;
    }
    world_check(g->n == e->n, "request %d has %d tokens of %d", (int)(u - s.users), g->n, e->n);
    world_check(g->text_size == e->text_size && !memcmp(g->text, e->text, e->text_size),
                "request %d has the text %.*s instead of %.*s", (int)(u - s.users),
                (int)g->text_size, g->text, (int)e->text_size, e->text);
}

static void add_text(struct user *u, const char *text, size_t size)
{
    struct model_said *g = &u->got;

    world_check(g->text_size + size <= u->expected.text_size &&
                    !memcmp(u->expected.text + g->text_size, text, size),
                "request %d: after %d tokens the text goes on with '%.*s' instead of '%.*s'",
                (int)(u - s.users), g->n, (int)size, text,
                (int)(u->expected.text_size - g->text_size), u->expected.text + g->text_size);
    memcpy(g->text + g->text_size, text, size);
    g->text_size += size;
}

static void on_opened(void *user)
{
    struct user *u = user;

    nk__recovery_opened(&s.recoveries, &u->recovery);
}

static void on_token(void *user, const struct nk_gen_token *t)
{
    struct user *u = user;
    struct model_said *g = &u->got;

    world_check(t->index == g->n, "request %d: token %d came after %d", (int)(u - s.users),
                t->index, g->n);
    world_check(g->n < u->expected.n && t->id == u->expected.ids[g->n],
                "request %d: token %d is %d instead of %d (resumed %d times)", (int)(u - s.users),
                g->n, t->id, g->n < u->expected.n ? u->expected.ids[g->n] : 0,
                u->recovery.n_losses);
    g->ids[g->n++] = t->id;
    if (t->text_size)
        add_text(u, t->text, t->text_size);
    total.resumed += nk__recovery_token(&s.recoveries, &u->recovery);
}

static void on_replaying(void *user, const char *worker_id, int done, int of)
{
    struct user *u = user;

    nk__recovery_replaying(&s.recoveries, &u->recovery, worker_id, done, of);
}

static void on_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct user *u = user;
    nk_gen *gen = u->gen;

    u->gen = NULL;
    total.replayed += err ? 0 : stats->n_replayed;
    if (stats->tail_size && !err)
        add_text(u, stats->tail, stats->tail_size);
    if (!err || u->cancelled || !nk__recovery_may(&s.recoveries, &u->recovery, gen, err)) {
        if (nk_gen_resumable(gen)) {
            struct nk_gen_name name = nk_gen_name(gen);

            nk_chain_let_go(u->chain, &name, NULL);
        }
        user_end(u, err);
        nk_gen_free(gen);
        return;
    }
    total.losses++;
    u->lost = nk_gen_blamed(gen);
    nk__recovery_lost(&s.recoveries, &u->recovery, gen, set_of(u->chain), 0, stats, err);
    world_later(s.gateway, world_below(5000), look_for_chain, u);
}

static const struct nk_gen_handlers handlers = {
    .opened = on_opened, .token = on_token, .replaying = on_replaying, .done = on_done
};

static void go_on(struct user *u, nk_chain *c)
{
    nk_gen *lost = nk__recovery_chosen(&s.recoveries, &u->recovery, nk_chain_cluster(c), 0);
    struct nk_error err;

    u->chain = c;
    if (nk_gen_resume(&u->gen, c, lost, &handlers, u, &err))
        user_end(u, &err);
    nk_gen_free(lost);
}

static nk_chain *open_chain(const struct nk_cluster *c)
{
    struct nk_chain_opts o = { .clock = world_clock(), .chance = world_randomness() };
    struct nk_error err;
    nk_chain *out;

    NK_ASSERT(s.n_chains < CHAINS_MAX);
    s.chains[s.n_chains].p = world_process("gateway:1");
    NK_ASSERT(!nk_chain_open(&out, c, &o, &err));
    s.chains[s.n_chains].set.n = 1;
    s.chains[s.n_chains].set.chains[0] = out;
    atomic_init(&s.chains[s.n_chains].set.refs, 1000000);
    s.chains[s.n_chains++].chain = out;
    return out;
}

static void close_chains(void)
{
    for (int i = 0; i < s.n_chains; i++) {
        s.chains[i].p->ending = true;
        nk_chain_close(s.chains[i].chain);
    }
    s.n_chains = 0;
}

static void on_repaired(void *user, struct nk_repaired *r, const struct nk_error *err)
{
    struct user *u = user;
    struct nk_error late;

    nk_repair_free(u->repair);
    u->repair = NULL;
    if (!r || u->cancelled) {
        if (r)
            nk_fail(&late, NK_E_CANCELLED, "cancelled", "cancelled");
        else
            nk__recovery_too_late(&s.recoveries, &u->recovery, err, &late);
        user_end(u, &late);
        free(r);
        return;
    }
    if (r->n_replaced)
        s.current = open_chain(&r->cluster);
    go_on(u, r->n_replaced ? s.current : u->chain);
    free(r);
}

static void look_for_chain(void *arg)
{
    static const struct nk_repair_handlers repair_handlers = { .done = on_repaired };
    struct user *u = arg;
    uint64_t now = world_now_ns();
    struct nk_repair_opts o = { .wish = { .lost = u->lost,
                                          .avoid_lost = u->recovery.n_losses > 1,
                                          .deterministic = s.apart },
                                .n_in_vain = u->recovery.n_losses - 1,
                                .quiet = true };
    struct nk_error err;

    if (u->over)
        return;
    if (u->cancelled) {
        nk_fail(&err, NK_E_CANCELLED, "cancelled", "cancelled");
        user_end(u, &err);
    } else if (s.other && world_chance(500)) {
        go_on(u, u->chain == s.other ? s.current : s.other);
    } else {
        o.wait_ms = u->recovery.until_ns > now ? (uint32_t)((u->recovery.until_ns - now) / MS) : 0;
        if (nk_repair_start(&u->repair, u->chain, &o, &repair_handlers, u, &err))
            user_end(u, &err);
    }
}

static void user_begin(void *arg)
{
    struct user *u = arg;
    struct nk_gen_opts o = nk_gen_opts_default();
    const char *stops[] = { u->stop };
    struct nk_error err;

    if (s.gateway_dead)
        return;
    u->begun = true;
    u->chain = s.other && world_chance(300) ? s.other : s.current;
    o.ids = u->prompt;
    o.n_ids = (size_t)u->asked.n_ids;
    o.n_predict = u->asked.n_predict;
    o.sampling.seed = u->asked.seed;
    o.stop = stops;
    o.n_stop = u->stop[0] != '\0';
    o.hold_ms = s.hold_ms;
    o.exact = u->exact;
    o.no_reuse = !s.with_reuse;
    o.deterministic = s.apart;
    if (nk_gen_start(&u->gen, u->chain, &o, &handlers, u, &err))
        user_end(u, &err);
}

static void user_cancel(void *arg)
{
    struct user *u = arg;

    if (u->over || !u->begun)
        return;
    u->cancelled = true;
    if (u->gen)
        nk_gen_cancel(u->gen);
    if (u->repair)
        nk_repair_cancel(u->repair);
}

/* ---- faults ---- */

static struct machine *some_machine(void)
{
    return &s.machines[world_below((uint64_t)s.n_machines)];
}

static bool has_spare(const struct machine *m)
{
    for (int i = 0; i < s.n_machines; i++)
        if (&s.machines[i] != m && s.machines[i].w && s.machines[i].replica == m->replica &&
            !strcmp(s.machines[i].layers, m->layers))
            return true;
    return false;
}

static void machine_dies(struct machine *m, int how)
{
    bool comes_back = world_chance(700) || !has_spare(m);

    if (!m->w)
        return;
    if (m->p->stopped)
        m->p->stopped = false;
    if (how < 2)
        world_kill(m->p, how);
    machine_end(m);
    if (comes_back)
        world_later(NULL, (5 + world_below(2000)) * 1000, machine_again, m);
}

struct stop {
    struct machine *m;
    uint64_t number;
};

static void machine_wakes(void *arg)
{
    struct stop *k = arg;

    if (k->m->w && k->m->p->stopped && k->m->stopped == k->number)
        world_continue(k->m->p);
    free(k);
}

static void machine_stands_still(struct machine *m)
{
    struct stop *k;

    if (!m->w || m->p->stopped)
        return;
    k = malloc(sizeof *k);
    NK_ASSERT(k);
    *k = (struct stop){ m, ++m->stopped };
    world_stop(m->p);
    world_later(NULL, world_below(6000) * 1000, machine_wakes, k);
}

/* The gateway dies: nobody comes for what it had. */
static void gateway_dies(void)
{
    bool silently = world_chance(300);

    if (s.gateway_dead)
        return;
    s.gateway_dead = true;
    world_kill(s.gateway, silently);
    for (int i = 0; i < s.n_chains; i++)
        world_kill(s.chains[i].p, silently);
    for (int i = 0; i < s.n_users; i++) {
        struct user *u = &s.users[i];

        user_cancel(u);
        u->cancelled = true;
    }
    for (int i = 0; i < s.n_chains; i++)
        world_run_out(s.chains[i].p);
    for (int i = 0; i < s.n_users; i++) {
        struct user *u = &s.users[i];

        if (!u->over) {
            nk__recovery_ended(&s.recoveries, &u->recovery, NK_RECOVERY_CANCELLED, NULL);
            u->over = u->failed = true;
        }
    }
    for (int i = 0; i < s.n_chains; i++)
        world_run_out(s.chains[i].p);
    close_chains();
}

static void fault(void *arg)
{
    int kind = (int)world_below(12);

    (void)arg;
    s.rough |= kind >= 5 && kind != 9;
    switch (kind) {
    case 0:
    case 1:
    case 2:
        machine_dies(some_machine(), 0);
        break;
    case 3:
        s.rough = true;
        machine_dies(some_machine(), 1);
        break;
    case 4:
        machine_dies(some_machine(), 2);
        break;
    case 5:
    case 6:
        machine_stands_still(some_machine());
        break;
    case 7:
    case 8:
        world_cut(world_chance(300) ? "gateway:1" : some_machine()->address,
                  some_machine()->address, world_below(2000));
        break;
    case 9: {
        struct user *u = &s.users[world_below((uint64_t)s.n_users)];

        /* Its Cancel goes from stage to stage, and no further than to one that has died. */
        s.rough |= u->gen != NULL;
        user_cancel(u);
        break;
    }
    case 10:
        if (world_chance(200)) {
            gateway_dies();
            break;
        }
        /* falls through */
    default:
        world_reset_one();
    }
}

/* ---- one seed ---- */

static void add_machine(int replica, int begin, int end)
{
    struct machine *m = &s.machines[s.n_machines];

    *m = (struct machine){ .layer_begin = begin, .layer_end = end, .replica = replica };
    snprintf(m->address, sizeof m->address, "m%d:1", s.n_machines++);
    snprintf(m->layers, sizeof m->layers, "%d-%d", begin, end);
}

/* So many stages, and perhaps spares. */
static void add_replica(struct nk_cluster *c, int replica, int n_stages, bool with_spares)
{
    int begin = 0;

    memset(c, 0, sizeof *c);
    strcpy(c->model_sha256, MODEL_SHA256);
    c->f16 = s.f16;
    for (int i = 0; i < n_stages; i++) {
        int most = MODEL_LAYERS - begin - (n_stages - i - 1);
        int end = i == n_stages - 1 ? MODEL_LAYERS : begin + 1 + (int)world_below((uint64_t)most);
        struct nk_cluster_worker *w = &c->workers[c->n_workers++];

        snprintf(w->id, sizeof w->id, "m%d:1", s.n_machines);
        memcpy(w->address, w->id, sizeof w->id);
        w->layer_begin = begin;
        w->layer_end = end;
        add_machine(replica, begin, end);
        begin = end;
    }
    for (int i = 0; with_spares && i < n_stages; i++)
        if (world_chance(400)) {
            snprintf(c->spares[c->n_spares++], sizeof c->spares[0], "m%d:1", s.n_machines);
            add_machine(replica, c->workers[i].layer_begin, c->workers[i].layer_end);
        }
}

static void add_user(int i)
{
    struct user *u = &s.users[i];

    memset(u, 0, sizeof *u);
    u->asked.n_ids = 1 + (int)world_below(20);
    for (int k = 0; k < u->asked.n_ids; k++)
        u->prompt[k] = 1 + (int32_t)world_below(MODEL_VOCAB - 1);
    u->asked.ids = u->prompt;
    u->asked.n_predict = 1 + (int)world_below(24);
    u->asked.chunk = CHUNK;
    u->asked.seed = (uint32_t)world_below(1u << 30);
    if (world_chance(300))
        snprintf(u->stop, sizeof u->stop, "%c%c", (int)('d' + world_below(20)),
                 world_chance(500) ? (int)('d' + world_below(20)) : 0);
    u->asked.stop = u->stop[0] ? u->stop : NULL;
    u->exact = s.apart || world_chance(300);
    u->recovery = (struct nk_recovery){ .request = "request", .choice = i };
    model_undisturbed(&u->expected, &u->asked);
    world_later(NULL, world_below(BEGIN_MS / 3) * 1000, user_begin, u);
}

static bool all_over(void)
{
    for (int i = 0; i < s.n_users; i++)
        if (!s.users[i].over)
            return false;
    return true;
}

static void check_nothing_left(const struct machine *m)
{
    const nk_worker *w = m->w;
    int n_kept = w->sessions[NK_SESSION_KEPT].n;

    for (int i = 0; i < NK_SESSION_STATES; i++)
        world_check(i == NK_SESSION_KEPT || !w->sessions[i].n,
                    "worker %s has %d sessions in state %d at the end", m->address,
                    w->sessions[i].n, i);
    world_check(!w->kv_reserved, "worker %s has %d KV tokens reserved at the end", m->address,
                w->kv_reserved);
    world_check(w->n_seq_free + n_kept == MODEL_SEQS, "worker %s has %d sequences left of %d",
                m->address, w->n_seq_free + n_kept, MODEL_SEQS);
    world_check(!w->n_streams && !world_n_calls(m->p), "worker %s has %d calls at the end",
                m->address, world_n_calls(m->p));
    world_check(!atomic_load(&w->journals.memory_bytes),
                "worker %s has a journal of %llu bytes at the end", m->address,
                (unsigned long long)atomic_load(&w->journals.memory_bytes));
    world_check(!w->n_decoding && !atomic_load(&nk__engine_counters(w->engine)->jobs_queued),
                "worker %s has something to do at the end", m->address);
}

static void run_seed(uint64_t seed)
{
    struct world_weather weather = { 0 };
    struct nk_cluster *first = calloc(2, sizeof *first), *second = first + 1;
    bool has_other;
    uint64_t end;

    NK_ASSERT(first);
    world_begin(seed, &weather);
    weather.slow = (int)world_below(3) * 20;
    weather.ghost = (int)world_below(3) * 60;
    world_begin(seed, &weather);
    memset(&s, 0, sizeof s);
    s.apart = world_chance(400);
    s.f16 = world_chance(300);
    s.with_reuse = world_chance(300);
    s.has_long = world_chance(100);
    s.n_long = s.has_long;
    s.hold_ms = 5000 + (uint32_t)world_below(4000);
    s.journal_bytes = world_chance(600) ? 1 << 20 : world_below(5) * 1000;
    model_kind.shapes = s.apart;
    model_kind.no_rollback = world_chance(250);
    model_n_unlike = 0;
    add_replica(first, 0, 1 + (int)world_below(4), world_chance(600));
    has_other = world_chance(200);
    if (has_other)
        add_replica(second, 1, 1 + (int)world_below(3), false);
    for (int i = 0; i < s.n_machines; i++)
        machine_start(&s.machines[i]);
    s.gateway = world_process("gateway:1");
    s.metrics = nk__metrics_new();
    nk__recoveries_init(&s.recoveries, world_clock(), s.metrics, s.hold_ms);
    s.current = open_chain(first);
    if (has_other)
        s.other = open_chain(second);
    s.n_users = 1 + (int)world_below(USERS_MAX);
    for (int i = 0; i < s.n_users; i++)
        add_user(i);
    s.n_faults = (int)world_below(5);
    for (int i = 0; i < s.n_faults; i++)
        world_later(NULL, world_below(BEGIN_MS) * 1000, fault, NULL);
    free(first);

    end = world_now_ns() + END_MS * MS;
    while (!all_over()) {
        world_check(world_now_ns() < end && world_step(), "a request does not end");
        if (s.gateway_dead)
            break;
    }
    for (int i = 0; i < s.n_users; i++) {
        const struct user *u = &s.users[i];

        total.requests++;
        total.complete += !u->failed;
        total.cancelled += u->cancelled && u->failed;
        total.failed += u->failed && !u->cancelled;
        world_check(!u->recovery.n_losses || s.n_faults,
                    "request %d was lost, though nothing happened: %s", i, u->recovery.why.msg);
        world_check(!u->failed || u->cancelled || s.n_faults > 1 || s.has_long,
                    "request %d fails, for one fault: %s: %s", i, u->err.reason, u->err.msg);
    }
    world_check(!model_n_unlike, "computed again, %d tokens are others than were said",
                model_n_unlike);
    /* Where everybody hears everything, nothing waits for the grace time when all requests are
     * over: neither of one that was given up in its pause, nor of one that another replica took
     * over. */
    if (!s.rough && !s.has_long && !weather.ghost) {
        end = world_now_ns() + 2500 * MS;
        while (world_now_ns() < end && world_step())
            ;
        for (int i = 0; i < s.n_machines; i++)
            world_check(s.rough || /* since then */
                            !s.machines[i].w || !s.machines[i].w->sessions[NK_SESSION_HELD].n,
                        "worker %s holds %d sessions that nobody comes for", s.machines[i].address,
                        s.machines[i].w->sessions[NK_SESSION_HELD].n);
    }
    /* All that stands still goes on, and all that is held is over. */
    end = world_now_ns() + (s.hold_ms + 15000 + (s.has_long ? 300000 : 0)) * MS;
    while (world_now_ns() < end && world_step())
        ;
    for (int i = 0; i < s.n_machines; i++)
        if (s.machines[i].w)
            check_nothing_left(&s.machines[i]);
    close_chains();
    for (int i = 0; i < s.n_machines; i++)
        if (s.machines[i].w)
            machine_end(&s.machines[i]);
    nk__recoveries_release(&s.recoveries);
    nk__metrics_free(s.metrics);
    world_end();
}

int main(int argc, char **argv)
{
    uint64_t n = 3000, from = 1;
    bool log = false;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seeds") && i + 1 < argc)
            n = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--from") && i + 1 < argc)
            from = strtoull(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--log"))
            log = true;
        else {
            fprintf(stderr, "usage: test_simulation [--seeds N] [--from N] [--log]\n");
            return 2;
        }
    }
    nk_log_configure(log ? "debug" : "error", NULL);
    for (uint64_t seed = from; seed < from + n; seed++)
        run_seed(seed);
    printf("%llu seeds: %llu requests, %llu answered, %llu cancelled, %llu failed; %llu losses, "
           "%llu resumptions, %llu positions computed again\n",
           (unsigned long long)n, total.requests, total.complete, total.cancelled, total.failed,
           total.losses, total.resumed, total.replayed);
    /* Else it does not simulate what it is for. */
    if (n >= 1000 && (total.resumed < n / 5 || total.replayed < n || total.failed > n / 10)) {
        printf("too few resumptions, or too many failures, for so many seeds\n");
        return 1;
    }
    return 0;
}
