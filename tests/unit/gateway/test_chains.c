/* Chains that come, change and go while the gateway serves. A chain here is one worker that holds
 * the whole model, so that a test can see which chain a generation runs on. */
#include "unit/gateway/talk.h"

#include <math.h>

#define WAITS "waiting for 2 more machines: 3.5 GiB are missing"

/* The fake that each generation has begun at, beside begun.calls. */
static int where[CALLS];

static void one_stage(Nakshatra__V1__Opened *o)
{
    o->n_stages = 1;
    o->stages[0]->layer_end = 4 * FAKES;
}

static void one_timing(Nakshatra__V1__Done *d)
{
    d->n_stages = 1;
}

/* Opens, and leaves the rest to the test. */
static void opens_alone(struct fake *f, nk_call *c)
{
    send_opened(f, c, one_stage);
    pthread_mutex_lock(&begun.mutex);
    assert_true(begun.n < CALLS);
    where[begun.n] = (int)(f - fakes);
    begun.calls[begun.n++] = nk_call_ref(c);
    pthread_cond_broadcast(&begun.changed);
    pthread_mutex_unlock(&begun.mutex);
}

/* Says all there is at once. */
static void serves(struct fake *f, nk_call *c)
{
    send_opened(f, c, one_stage);
    send_token(c, 0, "whole");
    send_done(c, 1, one_timing);
    nk_call_finish(c, NULL);
}

static void end_alone(int idx, uint32_t n_generated)
{
    nk_call *c = wait_for_call(idx);

    fake_turn();
    send_done(c, n_generated, one_timing);
    nk_call_finish(c, NULL);
}

static int where_is(int idx)
{
    int fake;

    wait_for_call(idx);
    pthread_mutex_lock(&begun.mutex);
    fake = where[idx];
    pthread_mutex_unlock(&begun.mutex);
    return fake;
}

/* Without any chain. n_seq: what each worker has. */
static struct nk_gateway_opts alone(int n_seq)
{
    struct nk_gateway_opts o = options(n_seq);

    nk_chain_close(o.chain);
    o.chain = NULL;
    o.model_id = "tiny";
    o.model_sha256 = SHA;
    for (int i = 0; i < FAKES; i++) {
        fakes[i].info.layer_begin = 0;
        fakes[i].info.layer_end = 4 * FAKES;
        fakes[i].script = opens_alone;
    }
    return o;
}

static nk_chain *chain_on(int fake)
{
    struct nk_cluster c = *fake_cluster();

    c.workers[0] = c.workers[fake];
    c.workers[0].layer_begin = 0;
    c.workers[0].layer_end = 4 * FAKES;
    c.n_workers = 1;
    return fake_chain_of(&c);
}

static void set(nk_chain *const *chains, int n, uint64_t epoch)
{
    struct nk_error err;

    if (nk_gateway_set_chains(gateway, chains, n, epoch, &err))
        fail_msg("%s", err.msg);
}

static void set_one(int fake, uint64_t epoch)
{
    nk_chain *c = chain_on(fake);

    set(&c, 1, epoch);
}

static void set_both(uint64_t epoch)
{
    nk_chain *c[2] = { chain_on(0), chain_on(1) };

    set(c, 2, epoch);
}

static void state_of(int fake, const char *state)
{
    fake_turn();
    fakes[fake].info.state = (char *)(uintptr_t)state;
    fake_turn();
}

/* /cluster as it is now; borrowed until the next. */
static const char *cluster(void)
{
    static char text[65536];
    struct client c = open_client();

    ask(&c, "GET", "/cluster", "");
    read_to(&c, "}\n");
    snprintf(text, sizeof text, "%s", nk_buf_str(&c.got));
    close_client(&c);
    return text;
}

/* Asks until /cluster says this. */
static void wait_for_cluster(const char *text)
{
    while (!strstr(cluster(), text))
        ;
}

static void has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("no %s in %s", part, text);
}

static void lacks(const char *text, const char *part)
{
    if (strstr(text, part))
        fail_msg("%s in %s", part, text);
}

/* Answered with 503, which says when to come back and what is waited for. */
static void is_refused(struct client *c, const char *sentence)
{
    read_to(c, "HTTP/1.1 503 ");
    read_to(c, "Retry-After: ");
    read_to(c, sentence);
    read_to(c, "\"code\":\"not_ready\"");
    close_client(c);
}

static void get(const char *path, const char *status, const char *part)
{
    struct client c = open_client();

    ask(&c, "GET", path, "");
    read_to(&c, status);
    read_to(&c, part);
    close_client(&c);
}

/* How many net threads there are: the fakes' own, and one for each chain that is not closed. */
static int n_nets(void)
{
    struct nk_clock_listener *l;
    int n = 0;

    pthread_mutex_lock(&fake_clock.moving);
    LIST_FOREACH(l, &fake_clock.listeners, link)
    {
        n++;
    }
    pthread_mutex_unlock(&fake_clock.moving);
    return n;
}

static void wait_until_open(int n_chains)
{
    while (n_nets() != 1 + n_chains)
        sched_yield();
}

/* A whole generation, on this fake, whose calls so far are n. */
static void generates(int n, int fake)
{
    struct client c = stream(STREAM);

    say(wait_for_call(n), 0, "some");
    assert_int_equal(where_is(n), fake);
    end_alone(n, 1);
    read_to(&c, "HTTP/1.1 200 ");
    read_to(&c, "some");
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
}

static void test_chains__without_any_it_says_what_it_waits_for(void **state)
{
    struct nk_gateway_opts o = alone(1);
    struct client c;
    const char *text;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    is_refused(&c, "there is no chain of workers yet");
    nk_gateway_set_waiting(gateway, WAITS);
    c = stream(STREAM);
    is_refused(&c, WAITS);
    get("/readyz", "HTTP/1.1 503 ", WAITS);
    get("/v1/models", "HTTP/1.1 200 ", "\"id\":\"tiny\"");
    get("/metrics", "HTTP/1.1 200 ", "nakshatra_ready 0\n");
    get("/api/tags", "HTTP/1.1 200 ", SHA);
    text = cluster();
    has(text, "\"ready\":false,\"error\":{\"code\":\"not_ready\",\"message\":\"" WAITS "\"}");
    has(text, "\"epoch\":null,\"chains\":0,\"stages\":[],\"links\":[]");
    set_one(1, 1);
    generates(0, 1);
    get("/readyz", "HTTP/1.1 200 ", "ready");
    text = cluster();
    has(text, "\"ready\":true,\"error\":null");
    has(text, "\"epoch\":1,\"chains\":1,");
    lacks(text, "\"cluster\":");
    lacks(text, "join_line");
    end();
    assert_int_equal(n_nets(), 1);
}

static void test_chains__what_runs_ends_on_the_old_one_and_what_is_new_is_on_the_new(void **state)
{
    struct nk_gateway_opts o = alone(1);
    struct client before, after;
    const char *text;

    (void)state;
    o.chain = chain_on(0);
    o.model_id = o.model_sha256 = NULL;
    begin(&o);
    before = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&before, "one");
    fakes[1].info.n_seq_max = 3;
    fakes[1].info.n_ctx = 600;
    fake_turn();
    set_one(1, 7);
    after = stream(STREAM); /* although the old one has no place, and still runs */
    say(wait_for_call(1), 0, "two");
    read_to(&after, "two");
    assert_int_equal(where_is(0), 0);
    assert_int_equal(where_is(1), 1);
    assert_int_equal(n_nets(), 3);
    text = cluster();
    has(text, "\"running\":1,\"running_max\":3,\"ending\":1,");
    has(text, "\"epoch\":7,\"chains\":1,\"stages\":[{\"id\":\"cellar\",");
    has(text, "\"context\":600,");
    lacks(text, "attic");
    get("/metrics", "HTTP/1.1 200 ", "nakshatra_generations_ending 1\n");
    say(wait_for_call(0), 1, "three");
    end_alone(0, 2);
    read_to(&before, "three");
    read_to(&before, "data: [DONE]\n\n");
    wait_until_open(1); /* closed with its last generation, not with the gateway */
    has(cluster(), "\"running\":1,\"running_max\":3,\"ending\":0,");
    end_alone(1, 1);
    read_to(&after, "data: [DONE]\n\n");
    close_client(&before);
    close_client(&after);
    end();
    assert_int_equal(n_nets(), 1);
}

static void test_chains__the_limits_are_those_of_the_set_in_force(void **state)
{
    struct nk_gateway_opts o = alone(3);
    struct client old[3], new[2];

    (void)state;
    begin(&o);
    set_one(0, 1);
    for (int i = 0; i < 3; i++) {
        old[i] = stream(STREAM);
        wait_for_call(i);
    }
    fakes[1].info.n_seq_max = 1;
    fake_turn();
    set_one(1, 2);
    new[0] = stream(STREAM);
    assert_int_equal(where_is(3), 1);
    new[1] = stream(STREAM); /* there is one place, whatever runs elsewhere or ends there */
    wait_until_one_waits();
    for (int i = 0; i < 3; i++) {
        end_alone(i, 0);
        read_to(&old[i], "data: [DONE]\n\n");
        close_client(&old[i]);
    }
    wait_for_cluster("\"ending\":0,\"waiting\":1,");
    assert_int_equal(n_begun(), 4);
    end_alone(3, 0);
    assert_int_equal(where_is(4), 1);
    end_alone(4, 0);
    for (int i = 0; i < 2; i++) {
        read_to(&new[i], "data: [DONE]\n\n");
        close_client(&new[i]);
    }
    end();
}

static void test_chains__who_waits_outlasts_a_time_without_any(void **state)
{
    struct nk_gateway_opts o = alone(1);
    struct client first, waits, late;

    (void)state;
    begin(&o);
    set_one(0, 1);
    first = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&first, "one");
    nk_gateway_set_waiting(gateway, WAITS);
    set(NULL, 0, 2);
    get("/readyz", "HTTP/1.1 503 ", WAITS);
    waits = stream(STREAM);
    wait_until_one_waits();
    end_alone(0, 1); /* its chain is still there for it */
    read_to(&first, "data: [DONE]\n\n");
    close_client(&first);
    wait_until_open(0);
    set_one(1, 3);
    say(wait_for_call(1), 0, "two");
    assert_int_equal(where_is(1), 1);
    end_alone(1, 1);
    read_to(&waits, "two");
    read_to(&waits, "data: [DONE]\n\n");
    close_client(&waits);
    /* But not for ever. */
    set(NULL, 0, 4);
    waits = stream(STREAM);
    wait_until_one_waits();
    virtual_clock_advance_ms(&v, o.limits.waiting_ms);
    is_refused(&waits, WAITS);
    late = stream(STREAM);
    is_refused(&late, WAITS);
    end();
}

static void test_chains__replicas_share_the_load(void **state)
{
    struct nk_gateway_opts o = alone(2);
    struct client c[5];
    int n[FAKES] = { 0, 0 }, on_second = -1;

    (void)state;
    begin(&o);
    set_both(1);
    for (int i = 0; i < 4; i++) {
        c[i] = stream(STREAM);
        n[where_is(i)]++;
        on_second = where_is(i) ? i : on_second;
    }
    assert_true(n[0] == 2 && n[1] == 2);
    c[4] = stream(STREAM);
    wait_until_one_waits();
    has(cluster(), "\"running\":4,\"running_max\":4,\"ending\":0,\"waiting\":1,");
    has(cluster(), "\"id\":\"cellar\",\"chain\":1,");
    get("/metrics", "HTTP/1.1 200 ", "nakshatra_stage_up{stage=\"cellar\",chain=\"1\"} 1\n");
    end_alone(on_second, 0);
    assert_int_equal(where_is(4), 1);
    for (int i = 0; i < 5; i++) {
        if (i != on_second)
            end_alone(i, 0);
        read_to(&c[i], "data: [DONE]\n\n");
        close_client(&c[i]);
    }
    end();
}

/* The other serves on, and takes what was lost without a token; and nobody waits for who hangs. */
static void test_chains__a_replica_that_goes_is_left_out_until_it_is_back(void **state)
{
    struct nk_gateway_opts o = alone(2);
    struct client c[4];
    int lost, hangs;

    (void)state;
    begin(&o);
    set_both(1);
    for (int i = 0; i < 4; i++) {
        c[i] = stream(STREAM);
        wait_for_call(i);
    }
    lost = where_is(0) ? 0 : where_is(1) ? 1 : 2;
    hangs = where_is(3) ? 3 : where_is(2) && lost != 2 ? 2 : 1;
    assert_true(where_is(lost) == 1 && where_is(hangs) == 1 && lost != hangs);
    state_of(1, "loading");
    lose(wait_for_call(lost)); /* waits now; the other one that is there just hangs */
    wait_for_cluster("\"waiting\":1,");
    get("/readyz", "HTTP/1.1 200 ", "ready");
    has(cluster(), "\"running_max\":2,");
    for (int i = 0; i < 4; i++) {
        if (where_is(i))
            continue;
        end_alone(i, 0);
        read_to(&c[i], "data: [DONE]\n\n");
        close_client(&c[i]);
    }
    assert_int_equal(where_is(4), 0);
    end_alone(4, 0);
    read_to(&c[lost], "data: [DONE]\n\n");
    close_client(&c[lost]);
    state_of(1, "serving");
    while (!strstr(cluster(), "\"running_max\":4,"))
        virtual_clock_advance_ms(&v, 250);
    generates(5, 0); /* two places are free there, and one here */
    end_alone(hangs, 0);
    read_to(&c[hangs], "data: [DONE]\n\n");
    close_client(&c[hangs]);
    end();
}

static struct client ask_with(const int *ids, int n)
{
    struct nk_buf body = NK_BUF_INIT(1 << 20);
    struct client c;

    nk_buf_adds(&body, "{\"model\":\"tiny\",\"max_tokens\":4,\"stream\":true,\"prompt\":[", NULL);
    for (int i = 0; i < n; i++)
        nk_buf_addf(&body, NULL, i ? ",%d" : "%d", ids[i]);
    nk_buf_adds(&body, "]}", NULL);
    c = stream(nk_buf_str(&body));
    nk_buf_release(&body);
    return c;
}

static void test_chains__a_conversation_goes_on_where_it_was(void **state)
{
    enum { FIRST = 100, LONGER = 140 };
    struct nk_gateway_opts o = alone(2);
    struct client blocks, c;
    int ids[LONGER], others[FIRST], n = 0;

    (void)state;
    for (int i = 0; i < LONGER; i++)
        ids[i] = 3 + i;
    for (int i = 0; i < FIRST; i++)
        others[i] = 200 - i;
    begin(&o);
    set_both(1);
    blocks = stream(STREAM);
    assert_int_equal(where_is(n), 0);
    c = ask_with(ids, FIRST); /* the second has more free places now */
    assert_int_equal(where_is(n + 1), 1);
    end_alone(n, 0);
    end_alone(n + 1, 0);
    read_to(&c, "data: [DONE]\n\n");
    read_to(&blocks, "data: [DONE]\n\n");
    close_client(&blocks);
    close_client(&c);
    wait_for_cluster("\"running\":0,");
    n = 2;
    c = ask_with(others, FIRST); /* without a past: the first of equals */
    assert_int_equal(where_is(n), 0);
    end_alone(n, 0);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    wait_for_cluster("\"running\":0,");
    c = ask_with(ids, LONGER);
    assert_int_equal(where_is(n + 1), 1);
    end_alone(n + 1, 0);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* Lost on one chain, and refused by the next before a token came: it begins anew on a third one.
 * The two before are let go of, and closed. */
static void test_chains__what_begins_anew_after_a_loss_keeps_no_chain(void **state)
{
    const struct nk_error refused = { .code = NK_E_UNAVAILABLE, .reason = "busy", .msg = "busy" };
    struct nk_gateway_opts o = alone(4);
    struct client c;

    (void)state;
    begin(&o);
    set_one(0, 1);
    c = stream(STREAM);
    wait_for_call(0);
    state_of(0, "loading");
    lose(wait_for_call(0));
    wait_for_cluster("\"waiting\":1,");
    set_one(1, 2);
    assert_int_equal(where_is(1), 1);
    state_of(1, "loading");
    fake_turn();
    nk_call_finish(wait_for_call(1), &refused);
    wait_for_cluster("\"waiting\":1,");
    state_of(0, "serving");
    set_one(0, 3);
    assert_int_equal(where_is(2), 0);
    wait_until_open(1);
    say(wait_for_call(2), 0, "anew");
    read_to(&c, "anew");
    end_alone(2, 1);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* What was begun goes on on the new chain, and what happens on the old one says nothing of the
 * new. */
static void test_chains__a_chain_lost_in_the_middle_is_replaced(void **state)
{
    struct nk_gateway_opts o = alone(4);
    struct client shown, lost, still, next;

    (void)state;
    begin(&o);
    set_one(0, 1);
    shown = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&shown, "one");
    lost = stream(STREAM);
    wait_for_call(1);
    still = stream(STREAM);
    wait_for_call(2);
    state_of(0, "loading");
    lose(wait_for_call(0));
    wait_for_cluster("\"waiting\":1,");
    lose(wait_for_call(1));
    wait_for_cluster("\"waiting\":2,");
    assert_int_equal(n_begun(), 3);
    set_one(1, 2);
    assert_int_equal(where_is(3), 1); /* who was lost last is first */
    say(wait_for_call(3), 0, "again");
    read_to(&lost, "again");
    assert_int_equal(where_is(4), 1);
    say(wait_for_call(4), 1, "more");
    read_to(&shown, "more");
    lose(wait_for_call(2)); /* still on the old one */
    assert_int_equal(where_is(5), 1);
    next = stream(STREAM); /* nothing is paused */
    assert_int_equal(where_is(6), 1);
    /* The old one is there until the last of them has gone on: then it is told to let go. */
    say(wait_for_call(5), 0, "on");
    read_to(&still, "on");
    wait_until_open(1);
    end_alone(3, 1);
    end_alone(4, 2);
    end_alone(5, 1);
    end_alone(6, 0);
    read_to(&shown, "data: [DONE]\n\n");
    read_to(&lost, "data: [DONE]\n\n");
    read_to(&still, "data: [DONE]\n\n");
    read_to(&next, "data: [DONE]\n\n");
    close_client(&shown);
    close_client(&lost);
    close_client(&still);
    close_client(&next);
    end();
}

static void test_chains__it_ends_while_an_old_one_drains(void **state)
{
    struct nk_gateway_opts o = alone(1);
    struct client before, after;

    (void)state;
    begin(&o);
    set_one(0, 1);
    before = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&before, "one");
    set_one(1, 2);
    after = stream(STREAM);
    say(wait_for_call(1), 0, "two");
    read_to(&after, "two");
    assert_true(nk_gateway_stop(gateway, 0));
    assert_int_equal(n_nets(), 1);
    read_to(&before, "\"code\":\"shutting_down\"");
    read_to(&after, "\"code\":\"shutting_down\"");
    close_client(&before);
    close_client(&after);
    release();
}

enum { CLIENTS = 4, SETS = 100 };
static atomic_bool enough;
static atomic_int n_whole;

/* One generation after the other, each of them whole. */
static void *generate_on(void *arg)
{
    (void)arg;
    while (!atomic_load(&enough)) {
        struct client c = stream(STREAM);

        /* Not read_to: it has one place for what it returns. */
        while (read_more(&c))
            if (strstr(nk_buf_str(&c.got), "data: [DONE]\n\n") ||
                strstr(nk_buf_str(&c.got), "HTTP/1.1 5") ||
                strstr(nk_buf_str(&c.got), "HTTP/1.1 4"))
                break;
        if (!strstr(nk_buf_str(&c.got), "whole") || !strstr(nk_buf_str(&c.got), "[DONE]"))
            fail_msg("%s", nk_buf_str(&c.got));
        atomic_fetch_add(&n_whole, 1);
        close_client(&c);
    }
    return NULL;
}

static void test_chains__a_hundred_sets_under_load_lose_nothing(void **state)
{
    struct nk_gateway_opts o = alone(2);
    pthread_t clients[CLIENTS];
    struct client held;
    int before;

    (void)state;
    begin(&o);
    set_one(0, 0);
    held = stream(STREAM); /* outlasts all sets */
    say(wait_for_call(0), 0, "one");
    read_to(&held, "one");
    fake_turn();
    fakes[0].script = fakes[1].script = serves;
    fake_turn();
    atomic_store(&enough, false);
    atomic_store(&n_whole, 0);
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(pthread_create(&clients[i], NULL, generate_on, NULL), 0);
    for (int i = 1; i <= SETS; i++) {
        if (i % 10 == 5)
            set(NULL, 0, (uint64_t)i);
        else if (i % 3)
            set_one(i % 2, (uint64_t)i);
        else
            set_both((uint64_t)i);
        if (i % 20 == 0) /* sometimes one stays long enough to be used, often none does */
            for (before = n_whole; n_whole < before + CLIENTS;)
                sched_yield();
    }
    atomic_store(&enough, true);
    for (int i = 0; i < CLIENTS; i++)
        pthread_join(clients[i], NULL);
    wait_until_open(2); /* the last, and the one that is held */
    say(wait_for_call(0), 1, "two");
    end_alone(0, 2);
    read_to(&held, "two");
    read_to(&held, "data: [DONE]\n\n");
    wait_until_open(1);
    wait_for_cluster("\"running\":0,\"running_max\":2,\"ending\":0,\"waiting\":0,");
    close_client(&held);
    end();
    assert_int_equal(n_nets(), 1);
}

static void refuses(nk_chain *const *chains, int n, uint64_t epoch, const char *reason)
{
    struct nk_error err;

    assert_true(nk_gateway_set_chains(gateway, chains, n, epoch, &err) < 0);
    assert_string_equal(err.reason, reason);
}

static void test_chains__what_cannot_be_taken_stays_its_callers(void **state)
{
    struct nk_gateway_opts o = alone(1);
    struct nk_cluster another = *fake_cluster();
    nk_chain *c = chain_on(1), *twice[2] = { c, c }, *foreign;
    struct nk_error err;
    char taken[64];

    (void)state;
    another.model_sha256[0] = 'f';
    foreign = fake_chain_of(&another);
    begin(&o);
    set_one(0, 5);
    refuses(&c, 1, 4, "stale_epoch");
    refuses(twice, 2, 6, "bad_chains");
    refuses(&c, -1, 6, "bad_chains");
    refuses(&c, NK_GATEWAY_CHAINS_MAX + 1, 6, "bad_chains");
    refuses(&foreign, 1, 6, "wrong_model");
    generates(0, 0); /* and nothing has changed */
    /* Where another listens, a gateway takes no chain either. */
    snprintf(taken, sizeof taken, "127.0.0.1:%d", nk_gateway_port(gateway));
    o.listen = taken;
    o.chain = c;
    assert_int_equal(nk_gateway_start(&(nk_gateway *){ NULL }, &o, &err), NK_E_UNAVAILABLE);
    o.chain = NULL;
    o.model_sha256 = "1234";
    assert_int_equal(nk_gateway_start(&(nk_gateway *){ NULL }, &o, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_model");
    nk_chain_close(foreign);
    nk_chain_close(c);
    end();
}

/* ---- what the coordinator tells ---- */

static int members(void *user, struct nk_buf *out)
{
    return nk_buf_adds(out, user, NULL);
}

static int line(void *user, struct nk_buf *out)
{
    (void)user;
    return nk_buf_adds(out, "nk1-\"secret\"", NULL);
}

static int nothing(void *user, struct nk_buf *out)
{
    (void)user;
    nk_buf_adds(out, "{\"half", NULL);
    return NK_E_UNAVAILABLE;
}

static void asks_with(const char *headers, const char *path, const char *expected)
{
    struct client c = open_client();
    char text[400];
    int n =
        snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", path, headers);

    send_all(&c, text, (size_t)n);
    read_to(&c, "\"cluster\":{\"members\":[ ]},");
    read_to(&c, expected);
    read_to(&c, "}\n");
    close_client(&c);
}

#define SHOWN  "\"join_line\":\"nk1-\\\"secret\\\"\""
#define HIDDEN "\"join_line\":null"

static void test_chains__the_join_line_is_for_this_machine_or_with_a_key(void **state)
{
    static const char *const paths[] = { "/cluster", "/cluster/events" };
    struct nk_gateway_opts o = alone(1);

    (void)state;
    o.cluster_json = members;
    o.cluster_user = (void *)(uintptr_t) "{\"members\":[\n]}";
    o.join_line = line;
    o.origins[o.n_origins++] = "https://friend.example";
    begin(&o);
    for (int i = 0; i < 2; i++) {
        asks_with("", paths[i], SHOWN);
        asks_with("X-Forwarded-For: 192.0.2.7\r\n", paths[i], HIDDEN);
        asks_with("Forwarded: for=192.0.2.7\r\n", paths[i], HIDDEN);
        asks_with("Via: 1.1 proxy\r\n", paths[i], HIDDEN);
        asks_with("Origin: https://friend.example\r\n", paths[i], HIDDEN);
    }
    end();
    o = alone(1);
    o.cluster_json = members;
    o.cluster_user = (void *)(uintptr_t) "{\"members\":[\n]}";
    o.join_line = line;
    o.api_keys = "a-key-of-some-length\n";
    begin(&o);
    asks_with("X-Forwarded-For: 192.0.2.7\r\nAuthorization: Bearer a-key-of-some-length\r\n",
              "/cluster", SHOWN);
    end();
    o = alone(1);
    o.cluster_json = o.join_line = nothing;
    begin(&o);
    has(cluster(), "\"cluster\":null,\"join_line\":null}\n");
    end();
}

static void test_chains__both_kinds_of_listeners_get_theirs(void **state)
{
    struct nk_gateway_opts o = alone(1);
    struct client here = { 0 }, elsewhere = { 0 };
    static const char far[] =
        "GET /cluster/events HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.7\r\n\r\n";

    (void)state;
    o.cluster_json = members;
    o.cluster_user = (void *)(uintptr_t) "{}";
    o.join_line = line;
    begin(&o);
    here = open_client();
    ask(&here, "GET", "/cluster/events", "");
    elsewhere = open_client();
    send_all(&elsewhere, far, sizeof far - 1);
    for (int i = 0; i < 2; i++) { /* at once, and when there is news */
        read_to(&here, SHOWN);
        read_to(&elsewhere, HIDDEN);
        if (!i)
            set_one(0, 1);
    }
    assert_null(strstr(elsewhere.got.data, "secret"));
    close_client(&here);
    close_client(&elsewhere);
    end();
}

static void test_chains__what_the_set_in_force_does_is_measured(void **state)
{
    struct nk_gateway_opts o = alone(2);
    struct nk_gateway_measured m;
    struct client c, other;
    char text[16];
    int n = 0;

    (void)state;
    begin(&o);
    nk_gateway_measured(gateway, &m);
    assert_int_equal(m.epoch, 0);
    set_one(0, 1);
    nk_gateway_measured(gateway, &m);
    assert_true(isnan(m.ms_per_token) && !m.running && !m.waiting && m.epoch == 1);
    c = stream(STREAM);
    say(wait_for_call(0), n++, "one");
    read_to(&c, "one");
    for (int i = 0; i < NK_GATEWAY_TOKENS_MIN; i++) {
        nk_gateway_measured(gateway, &m);
        assert_true(isnan(m.ms_per_token)); /* of a few it says nothing */
        virtual_clock_advance_ms(&v, 40);
        snprintf(text, sizeof text, "next%d.", i);
        say(wait_for_call(0), n++, text);
        read_to(&c, text);
    }
    nk_gateway_measured(gateway, &m);
    assert_true(m.ms_per_token == 40 && m.running == 1);
    other = stream(STREAM); /* two at a time say nothing of one alone */
    say(wait_for_call(1), 0, "first");
    read_to(&other, "first");
    virtual_clock_advance_ms(&v, 90);
    say(wait_for_call(0), n++, "slow");
    read_to(&c, "slow");
    nk_gateway_measured(gateway, &m);
    assert_true(m.ms_per_token == 40 && m.running == 2);
    end_alone(1, 1);
    read_to(&other, "data: [DONE]\n\n");
    close_client(&other);
    set_one(1, 2);
    for (int i = 0; i <= NK_GATEWAY_TOKENS_MIN; i++) { /* on the old one */
        virtual_clock_advance_ms(&v, 70);
        snprintf(text, sizeof text, "old%d.", i);
        say(wait_for_call(0), n++, text);
        read_to(&c, text);
    }
    nk_gateway_measured(gateway, &m);
    assert_true(isnan(m.ms_per_token) && !m.running && m.ending == 1 && m.epoch == 2);
    end_alone(0, n);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* One look is one time that was measured, however often it is asked for. */
static void test_chains__what_a_look_saw_of_a_stage_is_told_once(void **state)
{
    static Nakshatra__V1__Counters counters = NAKSHATRA__V1__COUNTERS__INIT;
    struct nk_gateway_opts o = alone(2);
    struct nk_gateway_measured m;
    struct client c;

    (void)state;
    begin(&o);
    set_one(0, 1);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    for (int i = 0; i < 2; i++) {
        do {
            fake_turn();
            counters.uptime_ms += 1000;
            counters.runs += 10; /* each of one row, and 20 ms */
            counters.rows_in_runs += 10;
            counters.tokens_decoded += 10;
            counters.compute_us += 200000;
            fakes[0].info.counters = &counters;
            fake_turn();
            virtual_clock_advance_ms(&v, 100);
            cluster(); /* which looks, where the last look is some time ago */
            nk_gateway_measured(gateway, &m);
        } while (!m.n_stages);
        assert_true(m.n_stages == 1 && m.stages[0].ms == 20);
        nk_gateway_measured(gateway, &m);
        assert_int_equal(m.n_stages, 0);
    }
    end_alone(0, 1);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chains__without_any_it_says_what_it_waits_for),
        cmocka_unit_test(test_chains__what_runs_ends_on_the_old_one_and_what_is_new_is_on_the_new),
        cmocka_unit_test(test_chains__the_limits_are_those_of_the_set_in_force),
        cmocka_unit_test(test_chains__who_waits_outlasts_a_time_without_any),
        cmocka_unit_test(test_chains__replicas_share_the_load),
        cmocka_unit_test(test_chains__a_replica_that_goes_is_left_out_until_it_is_back),
        cmocka_unit_test(test_chains__a_conversation_goes_on_where_it_was),
        cmocka_unit_test(test_chains__what_begins_anew_after_a_loss_keeps_no_chain),
        cmocka_unit_test(test_chains__a_chain_lost_in_the_middle_is_replaced),
        cmocka_unit_test(test_chains__it_ends_while_an_old_one_drains),
        cmocka_unit_test(test_chains__a_hundred_sets_under_load_lose_nothing),
        cmocka_unit_test(test_chains__what_cannot_be_taken_stays_its_callers),
        cmocka_unit_test(test_chains__the_join_line_is_for_this_machine_or_with_a_key),
        cmocka_unit_test(test_chains__both_kinds_of_listeners_get_theirs),
        cmocka_unit_test(test_chains__what_the_set_in_force_does_is_measured),
        cmocka_unit_test(test_chains__what_a_look_saw_of_a_stage_is_told_once),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
