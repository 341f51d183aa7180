/* The fleet (cluster/fleet.h): who holds what, and what happens when machines come, go, die, fail
 * and wake up. Times are handed in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "cluster/fleet.h"
#include "cluster/store.h"

#define S(n)      ((uint64_t)(n)*1000000000)
#define MS(n)     ((uint64_t)(n)*1000000)
#define GIB       ((uint64_t)1 << 30)
#define CATALOGUE "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

enum { LAYERS = 8, MEMBERS = 8, OWN = 7 /* the member of this machine */ };

struct world {
    char dir[64], path[128], own[NK_MEMBER_ID_SIZE];
    nk_store *store;
    nk_fleet *f;
    uint64_t layer_bytes[LAYERS], now;
    struct nk_plan_model model;
    struct {
        char id[NK_MEMBER_ID_SIZE];
        struct nk_want w;
        int n_told;
    } wants[MEMBERS];
    int n_wants;
    struct nk_deployment d; /* the last; chains owned */
    int n_deployed;
    char events[8192];
    char gone[256];          /* ids, one after the other */
    struct nk_plan *by_hand; /* owned */
};

static void on_want(void *user, const char *id, const struct nk_want *want)
{
    struct world *w = user;
    int i = 0;

    while (i < w->n_wants && strcmp(w->wants[i].id, id) != 0)
        i++;
    assert_true(i < MEMBERS);
    if (i == w->n_wants)
        strcpy(w->wants[w->n_wants++].id, id);
    w->wants[i].w = *want;
    w->wants[i].n_told++;
}

static void on_deploy(void *user, const struct nk_deployment *d)
{
    struct world *w = user;

    free(w->d.chains);
    w->d = *d;
    w->d.chains = calloc((size_t)d->n_chains + 1, sizeof *d->chains);
    memcpy(w->d.chains, d->chains, (size_t)d->n_chains * sizeof *d->chains);
    w->n_deployed++;
}

static void on_event(void *user, const char *sentence)
{
    struct world *w = user;
    size_t n = strlen(w->events);

    snprintf(w->events + n, sizeof w->events - n, "%s\n", sentence);
}

static void on_gone(void *user, const char *id)
{
    struct world *w = user;
    size_t n = strlen(w->gone);

    snprintf(w->gone + n, sizeof w->gone - n, "%s ", id);
}

static void open_fleet(struct world *w)
{
    struct nk_fleet_opts o = { .beat_ms = 2000,
                               .beats_missed_max = 3,
                               .settle_ms = 2000,
                               .store = w->store,
                               .catalogue = CATALOGUE,
                               .model = &w->model,
                               .plan = nk_plan_opts_default(),
                               .own = w->own,
                               .want = on_want,
                               .deploy = on_deploy,
                               .gone = on_gone,
                               .event = on_event,
                               .by_hand = w->by_hand,
                               .user = w };
    struct nk_error err;

    assert_int_equal(nk_fleet_open(&w->f, &o, w->now, &err), 0);
}

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof *w);
    struct nk_error err;

    strcpy(w->dir, "/tmp/nk-fleet-XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    snprintf(w->path, sizeof w->path, "%s/store.db", w->dir);
    assert_int_equal(nk_store_open(&w->store, w->path, nk_clock_system(), &err), 0);
    for (int i = 0; i < LAYERS; i++)
        w->layer_bytes[i] = GIB;
    w->model = (struct nk_plan_model){ .n_layer = LAYERS,
                                       .layer_bytes = w->layer_bytes,
                                       .row_bytes = 4096 };
    w->now = S(1000);
    snprintf(w->own, sizeof w->own, "%016x", OWN);
    open_fleet(w);
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    char command[128];

    nk_fleet_close(w->f);
    nk_store_close(w->store);
    free(w->d.chains);
    nk_plan_free(w->by_hand);
    snprintf(command, sizeof command, "rm -rf %s", w->dir);
    assert_int_equal(system(command), 0);
    free(w);
    return 0;
}

/* ---- what the world does ---- */

static const char *id_of(int i)
{
    static char ids[4][NK_MEMBER_ID_SIZE];
    static int next;
    char *id = ids[next++ % 4];

    snprintf(id, NK_MEMBER_ID_SIZE, "%016x", i);
    return id;
}

/* Until the time: every step that is due meanwhile. */
static void advance(struct world *w, uint64_t ns)
{
    uint64_t end = w->now + ns;

    for (;;) {
        uint64_t next = nk_fleet_step(w->f, w->now);

        if (next > end) {
            w->now = end;
            nk_fleet_step(w->f, w->now);
            return;
        }
        w->now = next > w->now ? next : w->now + 1;
    }
}

static void beat(struct world *w, int i, const struct nk_holding *h, int n)
{
    nk_fleet_beat(w->f, id_of(i), h, n, w->now);
    nk_fleet_step(w->f, w->now);
}

static void attend(struct world *w, int i, uint64_t boot)
{
    char host[32];
    struct nk_error err;

    snprintf(host, sizeof host, "10.0.0.%d", i);
    assert_int_equal(nk_fleet_attend(w->f, id_of(i), boot, "0.4.0", i == 1 ? "" : host,
                                     i == 1 ? "127.0.0.1" : "10.0.0.1", 7000 + i, w->now, &err),
                     0);
    nk_fleet_step(w->f, w->now);
}

static void admit(struct world *w, int i, const char *name)
{
    char text[NK_MEMBER_NAME_SIZE];
    struct nk_error err;

    strcpy(text, name);
    assert_int_equal(nk_fleet_admit(w->f, id_of(i), false, text, w->now, &err), 0);
    assert_string_equal(text, name);
}

static void facts(struct world *w, int i, double layer_ms, uint64_t memory)
{
    struct nk_plan_member m = { .memory_bytes = memory,
                                .layer_ms_1 = layer_ms,
                                .layer_ms_8 = layer_ms * 2,
                                .layer_ms_chunk = layer_ms * 8,
                                .chunk_rows = 64 };

    nk_fleet_facts(w->f, id_of(i), &m, NULL, w->now);
    nk_fleet_step(w->f, w->now);
}

static void join(struct world *w, int i, const char *name, double layer_ms, uint64_t memory)
{
    admit(w, i, name);
    attend(w, i, 100 + (uint64_t)i);
    facts(w, i, layer_ms, memory);
}

static const struct nk_want *want_of(struct world *w, int i)
{
    for (int k = 0; k < w->n_wants; k++)
        if (!strcmp(w->wants[k].id, id_of(i)))
            return &w->wants[k].w;
    fail_msg("member %d was told nothing", i);
    return NULL;
}

/* The member says of everything that it shall have: state. */
static void hold_all(struct world *w, int i, enum nk_holding_state state)
{
    const struct nk_want *want = want_of(w, i);
    struct nk_holding h[NK_FLEET_HOLDINGS_MAX] = { { 0 } };

    for (int k = 0; k < want->n_assignments; k++) {
        h[k] = (struct nk_holding){ .epoch = want->assignments[k].epoch,
                                    .layer_begin = want->assignments[k].layer_begin,
                                    .layer_end = want->assignments[k].layer_end,
                                    .state = state,
                                    .port = state == NK_HOLDING_READY ? 9000 + i : 0,
                                    .failures = state == NK_HOLDING_FAILED ? 3 : 0 };
        strcpy(h[k].catalogue, CATALOGUE);
        strcpy(h[k].error, state == NK_HOLDING_FAILED ? "its worker was killed" : "");
    }
    beat(w, i, h, want->n_assignments);
}

/* ns pass in which these members go on to beat. */
static void live(struct world *w, uint64_t ns, const int *members, int n)
{
    for (uint64_t end = w->now + ns; w->now < end;) {
        advance(w, MS(500));
        for (int k = 0; k < n; k++)
            hold_all(w, members[k], NK_HOLDING_READY);
    }
}

/* Two machines of 6 GiB for a model of 8: a chain of both, which serves. */
static void two(struct world *w)
{
    join(w, 1, "attic", 1, 6 * GIB + GIB / 2);
    join(w, 2, "cellar", 2, 6 * GIB);
    advance(w, S(3));
    hold_all(w, 1, NK_HOLDING_READY);
    hold_all(w, 2, NK_HOLDING_READY);
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.chains[0].n_stages, 2);
}

/* ---- tests ---- */

static void test_fleet__one_machine_is_planned_when_it_has_measured_itself(void **state)
{
    struct world *w = *state;

    admit(w, 1, "attic");
    attend(w, 1, 1);
    advance(w, S(5));
    assert_int_equal(want_of(w, 1)->n_assignments, 0);
    facts(w, 1, 1, 16 * GIB);
    advance(w, MS(1999));
    assert_int_equal(want_of(w, 1)->n_assignments, 0); /* perhaps another one comes */
    advance(w, MS(1));
    assert_int_equal(want_of(w, 1)->n_assignments, 1);
    assert_int_equal(want_of(w, 1)->assignments[0].epoch, 1);
    assert_int_equal(want_of(w, 1)->assignments[0].layer_begin, 0);
    assert_int_equal(want_of(w, 1)->assignments[0].layer_end, LAYERS);
    assert_int_equal(w->d.n_chains, 0);
    assert_non_null(strstr(w->d.waiting, "attic"));
    hold_all(w, 1, NK_HOLDING_FETCHING);
    assert_int_equal(w->d.n_chains, 0);
    assert_non_null(strstr(w->d.waiting, "fetching"));
    hold_all(w, 1, NK_HOLDING_READY);
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.epoch, 1);
    /* Nobody else is there: by loopback. */
    assert_string_equal(w->d.chains[0].stages[0].address, "127.0.0.1:9001");
}

static void test_fleet__a_chain_is_deployed_when_all_of_it_is_ready(void **state)
{
    struct world *w = *state;

    join(w, 1, "attic", 1, 6 * GIB + GIB / 2);
    join(w, 2, "cellar", 2, 6 * GIB);
    advance(w, S(3));
    hold_all(w, 1, NK_HOLDING_READY);
    assert_int_equal(w->d.n_chains, 0);
    hold_all(w, 2, NK_HOLDING_LOADING);
    assert_int_equal(w->d.n_chains, 0);
    hold_all(w, 2, NK_HOLDING_READY);
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.chains[0].n_stages, 2);
    assert_int_equal(w->d.chains[0].stages[0].layer_begin, 0);
    assert_int_equal(w->d.chains[0].stages[1].layer_end, LAYERS);
    /* This machine's worker by the address that the others use. */
    for (int k = 0; k < 2; k++)
        assert_string_equal(w->d.chains[0].stages[k].address,
                            !strcmp(w->d.chains[0].stages[k].name, "attic") ? "10.0.0.1:9001"
                                                                            : "10.0.0.2:9002");
}

static void test_fleet__three_missed_beats_are_a_death_and_not_one(void **state)
{
    struct world *w = *state;
    const int one[] = { 1 };

    two(w);
    live(w, MS(5500), one, 1); /* cellar is silent */
    assert_int_equal(w->d.n_chains, 1);
    live(w, MS(1000), one, 1);
    assert_non_null(strstr(w->events, "cellar is not heard of any more"));
    assert_int_equal(w->d.n_chains, 0);
    assert_true(w->d.waiting[0] != '\0');
    assert_int_equal(want_of(w, 1)->n_assignments, 0); /* the model does not fit on it */
}

static void test_fleet__a_broken_call_within_the_lease_changes_nothing(void **state)
{
    struct world *w = *state;
    const int one[] = { 1 }, both[] = { 1, 2 };
    int deployed;

    two(w);
    deployed = w->n_deployed;
    nk_fleet_lost(w->f, id_of(2), w->now);
    live(w, S(4), one, 1);
    attend(w, 2, 102); /* the same agent, again */
    hold_all(w, 2, NK_HOLDING_READY);
    live(w, S(10), both, 2);
    assert_int_equal(w->n_deployed, deployed);
    assert_int_equal(w->d.epoch, 1);
}

static void test_fleet__an_agent_started_anew_is_the_same_member_and_loads_again(void **state)
{
    struct world *w = *state;
    const int both[] = { 1, 2 };

    two(w);
    nk_fleet_lost(w->f, id_of(2), w->now);
    attend(w, 2, 999);
    assert_int_equal(w->d.n_chains, 0); /* it holds nothing now */
    assert_int_equal(want_of(w, 2)->n_assignments, 1);
    assert_int_equal(want_of(w, 2)->assignments[0].epoch, 1);
    hold_all(w, 2, NK_HOLDING_READY);
    live(w, S(5), both, 2);
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.epoch, 1);
}

static void test_fleet__what_wakes_up_is_told_that_it_holds_nothing(void **state)
{
    struct world *w = *state;
    const int others[] = { 1, 3 };
    struct nk_holding old = {
        .epoch = 1, .layer_begin = 4, .layer_end = 8, .state = NK_HOLDING_READY, .port = 9002
    };

    two(w);
    strcpy(old.catalogue, CATALOGUE);
    join(w, 3, "loft", 1, 6 * GIB);
    live(w, S(20), others, 2); /* cellar sleeps; the others have taken over */
    assert_int_equal(w->d.n_chains, 1);
    assert_true(w->d.epoch > 1);
    assert_false(nk_fleet_beat(w->f, id_of(2), &old, 1, w->now)); /* by the call that it had */
    attend(w, 2, 102);
    assert_int_equal(want_of(w, 2)->n_assignments, 0);
    assert_true(nk_fleet_beat(w->f, id_of(2), &old, 1, w->now));
    nk_fleet_step(w->f, w->now);
    for (int k = 0; k < w->d.chains[0].n_stages; k++)
        assert_string_not_equal(w->d.chains[0].stages[k].name, "cellar");
}

static void test_fleet__a_fetch_is_not_cut_off_for_a_better_plan(void **state)
{
    struct world *w = *state;

    join(w, 1, "attic", 10, 6 * GIB + GIB / 2);
    join(w, 2, "cellar", 10, 6 * GIB);
    advance(w, S(3));
    assert_int_equal(want_of(w, 1)->assignments[0].epoch, 1);
    hold_all(w, 1, NK_HOLDING_FETCHING);
    hold_all(w, 2, NK_HOLDING_FETCHING);
    join(w, 3, "rack", 1, 64 * GIB); /* ten times as fast, alone */
    for (int k = 0; k < 20; k++) {
        advance(w, S(1));
        hold_all(w, 1, NK_HOLDING_FETCHING);
        hold_all(w, 2, NK_HOLDING_FETCHING);
        hold_all(w, 3, NK_HOLDING_FETCHING);
    }
    assert_int_equal(want_of(w, 3)->n_assignments, 0);
    hold_all(w, 1, NK_HOLDING_READY);
    hold_all(w, 2, NK_HOLDING_READY);
    assert_int_equal(w->d.epoch, 1);
    for (int k = 0; k < 5; k++) {
        advance(w, S(1));
        hold_all(w, 1, NK_HOLDING_READY);
        hold_all(w, 2, NK_HOLDING_READY);
        hold_all(w, 3, NK_HOLDING_FETCHING);
    }
    assert_int_equal(want_of(w, 3)->n_assignments, 1); /* now it is time */
    assert_int_equal(want_of(w, 3)->assignments[0].epoch, 2);
    assert_int_equal(w->d.epoch, 1); /* and the old one serves until it is there */
    assert_int_equal(w->d.n_chains, 1);
    hold_all(w, 3, NK_HOLDING_READY);
    assert_int_equal(w->d.epoch, 2);
    assert_int_equal(want_of(w, 1)->n_assignments, 0);
}

static void test_fleet__a_coordinator_that_comes_back_goes_on_with_the_plan(void **state)
{
    struct world *w = *state;
    struct nk_want before[2];

    two(w);
    before[0] = *want_of(w, 1);
    before[1] = *want_of(w, 2);
    nk_fleet_close(w->f);
    w->n_wants = 0;
    w->now += S(30);
    open_fleet(w);
    advance(w, S(2));
    assert_int_equal(w->d.n_chains, 0);
    attend(w, 1, 101);
    facts(w, 1, 1, 6 * GIB + GIB / 2);
    advance(w, S(3)); /* longer than what settles */
    attend(w, 2, 102);
    assert_memory_equal(want_of(w, 1), &before[0], sizeof before[0]);
    assert_memory_equal(want_of(w, 2), &before[1], sizeof before[1]);
    hold_all(w, 1, NK_HOLDING_READY);
    hold_all(w, 2, NK_HOLDING_READY); /* it has kept its worker */
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.epoch, 1);
}

static void
test_fleet__a_coordinator_does_not_wait_for_ever_for_who_does_not_come_back(void **state)
{
    struct world *w = *state;
    const int others[] = { 1, 3 };

    two(w);
    nk_fleet_close(w->f);
    w->n_wants = 0;
    w->now += S(30);
    open_fleet(w);
    attend(w, 1, 101);
    facts(w, 1, 1, 6 * GIB + GIB / 2);
    join(w, 3, "loft", 1, 6 * GIB);
    advance(w, S(1));
    live(w, S(35), others, 2);
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.epoch, 2); /* never a number again that was used */
}

/* Its first try was before anybody answered, its longest pause came, and then the other address. */
static void test_fleet__a_coordinator_waits_as_long_as_an_agent_may_take_to_come_back(void **state)
{
    struct world *w = *state;
    const int one[] = { 1 }, both[] = { 1, 2 };

    two(w);
    nk_fleet_close(w->f);
    w->n_wants = 0;
    w->now += S(30);
    open_fleet(w);
    attend(w, 1, 101);
    facts(w, 1, 1, 6 * GIB + GIB / 2);
    live(w, MS(4 * NK_ATTEND_WELCOME_MS + NK_ATTEND_PAUSE_MAX_MS), one, 1);
    attend(w, 2, 102);
    facts(w, 2, 2, 6 * GIB);
    hold_all(w, 2, NK_HOLDING_READY);
    live(w, S(5), both, 2);
    assert_int_equal(w->d.n_chains, 1);
    assert_int_equal(w->d.epoch, 1);
}

static void test_fleet__who_leaves_is_planned_without_at_once(void **state)
{
    struct world *w = *state;
    const int all[] = { 1, 2, 3 };

    two(w);
    join(w, 3, "loft", 2, 6 * GIB);
    live(w, S(5), all, 3);
    nk_fleet_leaving(w->f, id_of(2), w->now);
    nk_fleet_step(w->f, w->now);
    advance(w, MS(1));
    assert_int_equal(want_of(w, 3)->n_assignments, 1);
    assert_int_equal(w->d.epoch, 1); /* it serves until the others are ready */
    /* The layers that attic has it has in the new plan, too: it goes on with them. */
    assert_int_equal(want_of(w, 1)->n_assignments, 1);
    assert_int_equal(want_of(w, 1)->assignments[0].epoch, 1);
    hold_all(w, 2, NK_HOLDING_READY);
    hold_all(w, 1, NK_HOLDING_READY);
    hold_all(w, 3, NK_HOLDING_READY);
    assert_int_equal(w->d.epoch, 2);
    assert_int_equal(w->d.n_chains, 1);
    for (int k = 0; k < 2; k++)
        assert_int_equal(w->d.chains[0].stages[k].epoch,
                         strcmp(w->d.chains[0].stages[k].name, "attic") ? 2 : 1);
    assert_int_equal(want_of(w, 2)->n_assignments, 0);
}

static void test_fleet__who_fails_again_and_again_is_left_out_for_a_while(void **state)
{
    struct world *w = *state;
    const int others[] = { 1, 3 };

    join(w, 1, "attic", 1, 6 * GIB + GIB / 2);
    join(w, 2, "cellar", 1, 6 * GIB + GIB / 4);
    join(w, 3, "loft", 9, 6 * GIB);
    advance(w, S(3));
    assert_int_equal(want_of(w, 2)->n_assignments, 1);
    assert_int_equal(want_of(w, 3)->n_assignments, 0);
    hold_all(w, 2, NK_HOLDING_FAILED);
    advance(w, MS(1));
    assert_non_null(strstr(w->events, "left out"));
    assert_int_equal(want_of(w, 2)->n_assignments, 0);
    assert_int_equal(want_of(w, 3)->n_assignments, 1);
    live(w, S(3), others, 2);
    assert_int_equal(w->d.n_chains, 1);
    /* Whoever has started it anew may have mended it: it is given what it had at once. */
    attend(w, 2, 999);
    facts(w, 2, 1, 6 * GIB + GIB / 4);
    live(w, S(3), others, 2);
    assert_int_equal(want_of(w, 2)->n_assignments, 1);
}

static void test_fleet__a_removed_member_is_none(void **state)
{
    struct world *w = *state;
    char id[NK_MEMBER_ID_SIZE], name[NK_MEMBER_NAME_SIZE] = "cellar";
    struct nk_roster r;
    struct nk_error err;

    two(w);
    assert_int_equal(nk_fleet_remove(w->f, "nobody", id, w->now, &err), NK_E_NOT_FOUND);
    assert_int_equal(nk_fleet_remove(w->f, "cellar", id, w->now, &err), 0);
    assert_string_equal(id, id_of(2));
    nk_fleet_step(w->f, w->now);
    assert_int_equal(w->d.n_chains, 0);
    assert_false(nk_fleet_has(w->f, id_of(2)));
    assert_int_equal(nk_fleet_attend(w->f, id_of(2), 1, "0.4.0", "10.0.0.2", "", 0, w->now, &err),
                     NK_E_DENIED);
    assert_int_equal(nk_fleet_roster(w->f, &r, &err), 0);
    assert_null(nk_roster_find(&r, id_of(2)));
    assert_non_null(nk_roster_find(&r, id_of(1)));
    nk_roster_release(&r);
    /* By its old certificate it does not come back; with a new key it does, under its name. */
    assert_int_equal(nk_fleet_admit(w->f, id_of(2), false, name, w->now, &err), NK_E_DENIED);
    assert_string_equal(err.reason, "removed");
    assert_int_equal(nk_fleet_admit(w->f, id_of(5), false, name, w->now, &err), 0);
    assert_string_equal(name, "cellar");
    /* All that is remembered. */
    nk_fleet_close(w->f);
    open_fleet(w);
    assert_false(nk_fleet_has(w->f, id_of(2)));
    assert_true(nk_fleet_has(w->f, id_of(5)));
    /* Not the one on the machine that serves. */
    admit(w, OWN, "here");
    assert_int_equal(nk_fleet_remove(w->f, "here", id, w->now, &err), NK_E_PRECONDITION);
    assert_string_equal(err.reason, "is_coordinator");
    assert_true(nk_fleet_has(w->f, id_of(OWN)));
}

static void test_fleet__two_of_one_name_are_two_and_one_that_was_installed_anew_is_one(void **state)
{
    struct world *w = *state;
    char name[NK_MEMBER_NAME_SIZE] = "attic";
    struct nk_error err;

    join(w, 1, "attic", 1, 16 * GIB);
    assert_int_equal(nk_fleet_admit(w->f, id_of(2), false, name, w->now, &err), 0);
    assert_string_equal(name, "attic-2");
    nk_fleet_lost(w->f, id_of(1), w->now);
    advance(w, S(7)); /* its lease is over */
    strcpy(name, "attic");
    assert_int_equal(nk_fleet_admit(w->f, id_of(3), false, name, w->now, &err), 0);
    assert_string_equal(name, "attic");
    assert_false(nk_fleet_has(w->f, id_of(1)));
}

static void test_fleet__who_is_about_to_attend_is_not_taken_for_gone(void **state)
{
    struct world *w = *state;
    char name[NK_MEMBER_NAME_SIZE] = "node";
    struct nk_error err;

    /* Two of one image that join at once. */
    admit(w, 1, "node");
    assert_int_equal(nk_fleet_admit(w->f, id_of(2), false, name, w->now, &err), 0);
    assert_string_equal(name, "node-2");
    assert_true(nk_fleet_has(w->f, id_of(1)));
    /* All are known and nobody attends yet: the coordinator has just been started. */
    nk_fleet_close(w->f);
    w->now += S(60);
    open_fleet(w);
    strcpy(name, "node");
    assert_int_equal(nk_fleet_admit(w->f, id_of(3), false, name, w->now, &err), 0);
    assert_string_equal(name, "node-3");
    assert_true(nk_fleet_has(w->f, id_of(1)));
    advance(w, S(40));
    strcpy(name, "node");
    assert_int_equal(nk_fleet_admit(w->f, id_of(4), false, name, w->now, &err), 0);
    assert_string_equal(name, "node");
    assert_false(nk_fleet_has(w->f, id_of(1)));
}

static void test_fleet__a_record_that_is_damaged_is_named(void **state)
{
    struct world *w = *state;
    static const char *const values[] = { "", "[]",
                                          "{\"name\":\"x y\",\"gateway\":false,"
                                          "\"removed\":false}" };
    nk_fleet *f = NULL;
    struct nk_fleet_opts o = { .store = w->store, .catalogue = CATALOGUE, .model = &w->model };
    struct nk_error err;

    for (int i = 0; i < 3; i++) {
        assert_int_equal(
            nk_store_put(w->store, "members/00000000000000aa",
                         (struct nk_bytes){ (const uint8_t *)values[i], strlen(values[i]) }, 0,
                         NULL, &err),
            0);
        assert_int_equal(nk_fleet_open(&f, &o, w->now, &err), NK_E_DATA_LOSS);
        assert_string_equal(err.reason, "bad_store");
        assert_non_null(strstr(err.msg, "members/00000000000000aa"));
        assert_null(f);
    }
}

static void test_fleet__who_slept_throws_nobody_out(void **state)
{
    struct world *w = *state;
    const int both[] = { 1, 2 };
    int deployed;

    two(w);
    live(w, S(3), both, 2);
    deployed = w->n_deployed;
    w->now += S(60);                       /* the process stood still: no step, no beat */
    nk_fleet_lost(w->f, id_of(2), w->now); /* whose call broke meanwhile */
    nk_fleet_step(w->f, w->now);
    live(w, S(14), both, 1);
    attend(w, 2, 102);
    hold_all(w, 2, NK_HOLDING_READY);
    live(w, S(10), both, 2);
    assert_int_equal(w->n_deployed, deployed);
    assert_int_equal(w->d.epoch, 1);
    assert_string_equal(w->gone, "");
    /* Once: a machine that is dead is found out all the same. */
    live(w, S(30), both, 1);
    assert_non_null(strstr(w->gone, id_of(2)));
}

static void test_fleet__a_lease_that_is_over_is_said_once(void **state)
{
    struct world *w = *state;
    const int one[] = { 1 };
    char expected[32];

    two(w);
    live(w, S(20), one, 1);
    snprintf(expected, sizeof expected, "%s ", id_of(2));
    assert_string_equal(w->gone, expected);
}

static void test_fleet__a_machine_that_gets_no_further_is_planned_without(void **state)
{
    struct world *w = *state;

    join(w, 1, "attic", 10, 16 * GIB);
    advance(w, S(3));
    hold_all(w, 1, NK_HOLDING_READY);
    assert_int_equal(w->d.epoch, 1);
    join(w, 2, "rack", 1, 64 * GIB); /* it says that it fetches, for ever */
    for (int minute = 0; minute < 16; minute++)
        for (int k = 0; k < 30; k++) {
            advance(w, S(2));
            hold_all(w, 1, NK_HOLDING_READY);
            hold_all(w, 2, NK_HOLDING_FETCHING);
            assert_int_equal(w->d.epoch, 1); /* meanwhile attic serves */
        }
    assert_non_null(strstr(w->events, "rack has not got any further"));
    assert_int_equal(want_of(w, 2)->n_assignments, 0);
}

static void test_fleet__a_plan_by_hand_waits_for_its_machines(void **state)
{
    struct world *w = *state;
    const int both[] = { 1, 2 };
    struct nk_plan_stage stages[2] = { { .id = "cellar", .begin = 0, .end = 3 },
                                       { .id = "attic", .begin = 3, .end = LAYERS } };
    struct nk_error err;

    nk_fleet_close(w->f);
    assert_int_equal(nk_plan_new(&w->by_hand, &err), 0);
    assert_int_equal(nk_plan_chain_add(w->by_hand, stages, 2, &err), 0);
    open_fleet(w);
    join(w, 1, "attic", 1, 16 * GIB); /* would do it alone */
    advance(w, S(3));
    hold_all(w, 1, NK_HOLDING_READY);
    assert_int_equal(want_of(w, 1)->n_assignments, 0);
    assert_non_null(strstr(w->d.waiting, "cellar"));
    join(w, 2, "cellar", 100, 16 * GIB);
    live(w, S(3), both, 2);
    assert_int_equal(want_of(w, 2)->n_assignments, 1);
    assert_int_equal(want_of(w, 2)->assignments[0].layer_begin, 0);
    assert_int_equal(want_of(w, 2)->assignments[0].layer_end, 3);
    assert_int_equal(want_of(w, 1)->assignments[0].layer_begin, 3);
    live(w, S(3), both, 2);
    assert_int_equal(w->d.n_chains, 1);
    assert_string_equal(w->d.chains[0].stages[0].name, "cellar");
    /* Without one of them there is nothing, and it is said who is missing. */
    live(w, S(10), both, 1);
    assert_int_equal(w->d.n_chains, 0);
    assert_non_null(strstr(w->d.waiting, "cellar"));
    attend(w, 2, 102);
    live(w, S(10), both, 2);
    assert_int_equal(w->d.n_chains, 1);
}

/* No file can grow: a disk that is full. */
static void disk_full(bool full)
{
    struct rlimit l;

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = full ? 0 : l.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static void test_fleet__nothing_is_told_that_could_not_be_kept(void **state)
{
    struct world *w = *state;
    char id[NK_MEMBER_ID_SIZE], name[NK_MEMBER_NAME_SIZE] = "loft";
    struct nk_error err;

    admit(w, 1, "attic");
    attend(w, 1, 1);
    facts(w, 1, 1, 16 * GIB);
    disk_full(true);
    advance(w, S(5));
    assert_int_equal(want_of(w, 1)->n_assignments, 0);
    assert_int_not_equal(nk_fleet_admit(w->f, id_of(2), false, name, w->now, &err), 0);
    assert_true(strlen(err.msg) > 10);
    assert_false(nk_fleet_has(w->f, id_of(2)));
    assert_int_not_equal(nk_fleet_remove(w->f, "attic", id, w->now, &err), 0);
    assert_true(nk_fleet_has(w->f, id_of(1)));
    disk_full(false);
    assert_non_null(strstr(w->events, "tried again"));
    beat(w, 1, NULL, 0);
    advance(w, S(5));
    assert_int_equal(want_of(w, 1)->n_assignments, 1);
    assert_int_equal(want_of(w, 1)->assignments[0].epoch, 1);
    nk_fleet_close(w->f);
    open_fleet(w);
    assert_true(nk_fleet_has(w->f, id_of(1)));
    assert_false(nk_fleet_has(w->f, id_of(2)));
}

static void test_fleet__what_is_far_from_its_prediction_is_said_once(void **state)
{
    struct world *w = *state;
    const char *said;
    double predicted;
    json_t *j, *plan;

    two(w);
    j = nk_fleet_json(w->f, w->now);
    plan = json_object_get(j, "plan");
    predicted = json_number_value(json_object_get(plan, "predicted"));
    json_decref(j);
    w->events[0] = '\0';
    nk_fleet_measured(w->f, w->d.epoch, 1100 / predicted);
    assert_string_equal(w->events, "");
    for (int i = 0; i < 4; i++) /* to and fro */
        nk_fleet_measured(w->f, w->d.epoch, (i % 2 ? 1300 : 2000) / predicted);
    nk_fleet_measured(w->f, w->d.epoch, 2000 / predicted);
    said = strstr(w->events, "were predicted");
    assert_true(said && !strstr(said + 1, "were predicted"));
    j = nk_fleet_json(w->f, w->now);
    plan = json_object_get(j, "plan");
    assert_string_equal(json_string_value(json_object_get(plan, "warning")),
                        "one stream gets 0.50 of the tokens/s that were predicted");
    json_decref(j);
    /* What is of a plan that is in force no more says nothing of this one. */
    nk_fleet_measured(w->f, w->d.epoch - 1, 1000 / predicted);
    j = nk_fleet_json(w->f, w->now);
    assert_non_null(json_object_get(json_object_get(j, "plan"), "warning"));
    json_decref(j);
    /* All was well, and is not any more. */
    w->events[0] = '\0';
    nk_fleet_measured(w->f, w->d.epoch, 1000 / predicted);
    assert_string_equal(w->events, "");
    nk_fleet_measured(w->f, w->d.epoch, 2000 / predicted);
    assert_non_null(strstr(w->events, "were predicted"));
}

static void test_fleet__a_way_that_there_is_not_is_planned_around(void **state)
{
    struct world *w = *state;
    const int all[] = { 1, 2 };
    char first[NK_MEMBER_ID_SIZE], second[NK_MEMBER_ID_SIZE];
    json_t *j;

    two(w);
    strcpy(first, w->d.chains[0].stages[0].member);
    strcpy(second, w->d.chains[0].stages[1].member);
    /* Tokens go there: a measurement that did not get through says nothing. */
    nk_fleet_measured(w->f, w->d.epoch, 20);
    w->events[0] = '\0';
    nk_fleet_no_way(w->f, first, second, "no route", w->now);
    live(w, S(10), all, 2);
    assert_string_equal(w->events, "");
    assert_int_equal(w->d.epoch, 1);
    /* None has gone there yet. The other way round there is one, and from there this one was
     * measured, too. */
    nk_fleet_measured(w->f, w->d.epoch, 0);
    nk_fleet_link(w->f, second, first, 1, 1e9, w->now);
    nk_fleet_no_way(w->f, first, second, "no route", w->now);
    assert_non_null(strstr(w->events, "cannot connect to"));
    assert_non_null(strstr(w->events, "no route"));
    live(w, S(10), all, 2);
    assert_int_equal(w->d.epoch, 2);
    assert_string_equal(w->d.chains[0].stages[1].member, first);
    /* Nor there: nothing is better than what serves, and it says why. */
    nk_fleet_no_way(w->f, second, first, "no route either", w->now);
    live(w, S(10), all, 2);
    j = nk_fleet_json(w->f, w->now);
    assert_non_null(strstr(json_string_value(json_object_get(j, "waiting")), "does not reach"));
    assert_true(
        json_is_true(json_object_get(json_array_get(json_object_get(j, "links"), 0), "no_way")));
    json_decref(j);
    /* It is there after all. */
    nk_fleet_link(w->f, first, second, 1, 1e9, w->now);
    live(w, S(10), all, 2);
    assert_int_equal(w->d.n_chains, 1);
    assert_string_equal(w->d.chains[0].stages[0].member, first);
    /* Of nobody that is there. */
    nk_fleet_no_way(w->f, first, first, "itself", w->now);
    nk_fleet_no_way(w->f, first, "nobody", "nobody", w->now);
    live(w, S(10), all, 2);
    assert_int_equal(w->d.n_chains, 1);
}

static void test_fleet__a_stage_that_is_slow_for_long_is_planned_with_what_it_takes(void **state)
{
    static const int both[] = { 1, 2 }, all[] = { 1, 2, 3 };
    struct world *w = *state;
    const struct nk_deployed_stage *s;
    char name[NK_MEMBER_NAME_SIZE];
    int begin, end;

    two(w);
    s = &w->d.chains[0].stages[1];
    strcpy(name, s->name);
    begin = s->layer_begin;
    end = s->layer_end;
    w->events[0] = '\0';
    for (int i = 0; i < 10; i++) { /* now and then: nobody is slow for a minute */
        nk_fleet_stage_measured(w->f, w->d.epoch, name, begin, end, 1000, w->now);
        live(w, S(10), both, 2);
        nk_fleet_stage_measured(w->f, w->d.epoch, name, begin, end, 1000, w->now);
        live(w, S(30), both, 2);
    }
    for (int i = 0; i < 10; i++) { /* of the plan before */
        nk_fleet_stage_measured(w->f, w->d.epoch - 1, name, begin, end, 1000, w->now);
        live(w, S(10), both, 2);
    }
    assert_null(strstr(w->events, "planned with"));
    /* Another one that would be better is there already: nobody knew. */
    join(w, 3, "garage", 4, 6 * GIB);
    live(w, S(5), all, 3);
    assert_int_equal(want_of(w, 3)->n_assignments, 0);
    for (int i = 0; i < 8; i++) {
        nk_fleet_stage_measured(w->f, w->d.epoch, name, begin, end, 1000, w->now);
        live(w, S(10), all, 3);
    }
    assert_non_null(strstr(w->events, "ms for a token with layers"));
    live(w, S(5), all, 3);
    assert_int_equal(want_of(w, 3)->n_assignments, 1);
    assert_int_equal(want_of(w, !strcmp(name, "attic") ? 1 : 2)->n_assignments, 0);
    /* Half an hour later it is what it says of itself. */
    live(w, S(1810), all, 3);
    assert_int_equal(want_of(w, 3)->n_assignments, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_fleet__one_machine_is_planned_when_it_has_measured_itself),
        TEST(test_fleet__a_chain_is_deployed_when_all_of_it_is_ready),
        TEST(test_fleet__three_missed_beats_are_a_death_and_not_one),
        TEST(test_fleet__a_broken_call_within_the_lease_changes_nothing),
        TEST(test_fleet__an_agent_started_anew_is_the_same_member_and_loads_again),
        TEST(test_fleet__what_wakes_up_is_told_that_it_holds_nothing),
        TEST(test_fleet__a_fetch_is_not_cut_off_for_a_better_plan),
        TEST(test_fleet__a_coordinator_that_comes_back_goes_on_with_the_plan),
        TEST(test_fleet__a_coordinator_does_not_wait_for_ever_for_who_does_not_come_back),
        TEST(test_fleet__a_coordinator_waits_as_long_as_an_agent_may_take_to_come_back),
        TEST(test_fleet__who_leaves_is_planned_without_at_once),
        TEST(test_fleet__who_fails_again_and_again_is_left_out_for_a_while),
        TEST(test_fleet__a_removed_member_is_none),
        TEST(test_fleet__two_of_one_name_are_two_and_one_that_was_installed_anew_is_one),
        TEST(test_fleet__who_is_about_to_attend_is_not_taken_for_gone),
        TEST(test_fleet__a_record_that_is_damaged_is_named),
        TEST(test_fleet__who_slept_throws_nobody_out),
        TEST(test_fleet__a_lease_that_is_over_is_said_once),
        TEST(test_fleet__a_machine_that_gets_no_further_is_planned_without),
        TEST(test_fleet__a_plan_by_hand_waits_for_its_machines),
        TEST(test_fleet__nothing_is_told_that_could_not_be_kept),
        TEST(test_fleet__what_is_far_from_its_prediction_is_said_once),
        TEST(test_fleet__a_way_that_there_is_not_is_planned_around),
        TEST(test_fleet__a_stage_that_is_slow_for_long_is_planned_with_what_it_takes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
