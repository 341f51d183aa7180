/* Generations that go on after the loss of a worker, and what is seen of it. */
#include "unit/gateway/talk.h"

#define WITH_USAGE                                                                                 \
    "{" PROMPT ",\"max_tokens\":400,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"

/* Time runs while it is waited for what real threads do, and shall not end a pause. */
static struct nk_gateway_opts patient(int n_seq)
{
    struct nk_gateway_opts o = options(n_seq);

    o.limits.hold_ms = NK_GATEWAY_HOLD_MS_MAX;
    return o;
}

static void state_of(int fake, const char *state)
{
    fake_turn();
    fakes[fake].info.state = (char *)(uintptr_t)state;
    fake_turn();
}

/* /cluster or /metrics as it is now; borrowed until the next. */
static const char *get(const char *path, const char *end)
{
    static char text[65536];
    struct client c = open_client();

    ask(&c, "GET", path, "");
    read_to(&c, end);
    snprintf(text, sizeof text, "%s", nk_buf_str(&c.got));
    close_client(&c);
    return text;
}

static const char *cluster(void)
{
    return get("/cluster", "]}\n");
}

static void has(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("no %s in %s", part, text);
}

static void wait_for_cluster(const char *text)
{
    while (!strstr(cluster(), text))
        ;
}

static void counts(const char *outcome, int n)
{
    char line[120];

    snprintf(line, sizeof line, "nakshatra_recoveries_total{cause=\"gone\",outcome=\"%s\"} %d\n",
             outcome, n);
    has(get("/metrics", "process_start_time_seconds "), line);
}

/* Time goes on until so many generations have begun: with the next look there is a chain. */
static void wait_until_begun(int n)
{
    while (n_begun() < n) {
        virtual_clock_advance_ms(&v, 250);
        http_turn();
    }
}

/* The last Open: a session that goes on after these many tokens. */
static void is_resumed(const struct fake *f, uint32_t attempt, size_t n)
{
    const Nakshatra__V1__Open *o;

    fake_turn();
    o = f->request->open;
    assert_int_equal(o->attempt, attempt);
    assert_int_equal(o->n_prompt_ids, 3);
    assert_int_equal(o->n_generated_ids, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(o->generated_ids[i], 10 + i);
    fake_turn();
}

static void test_recover__the_same_text_goes_on_after_a_pause(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c;
    const char *text;

    (void)state;
    begin(&o);
    c = stream(WITH_USAGE);
    say(wait_for_call(0), 0, "one");
    say(wait_for_call(0), 1, "two");
    read_to(&c, "two");
    fake_turn();
    assert_int_equal(fakes[0].request->open->hold_ms, NK_GATEWAY_HOLD_MS_MAX);
    assert_false(fakes[0].request->open->exact);
    state_of(1, "loading");
    lose(wait_for_call(0));
    wait_for_cluster("\"state\":\"recovering\"");
    text = cluster();
    has(text, "\"recovery\":{\"hold_ms\":3600000,\"pending\":1,\"events\":[{\"time\":\"");
    has(text, "\"lost\":\"attic\",");
    has(text, "\"layer_begin\":0,\"layer_end\":4,\"cause\":\"gone\",\"message\":\"worker attic");
    has(text, "\"chosen\":null,\"pending\":1,\"generations\":1,\"resumed\":0,\"given_up\":0,");
    /* Whoever is on the way hears that the stream is alive. */
    for (uint32_t ms = 0; ms < o.limits.keepalive_ms; ms += TICK_MS)
        tick();
    read_to(&c, ":\n\n");
    assert_int_equal(n_begun(), 1);
    state_of(1, "serving");
    wait_until_begun(2);
    is_resumed(&fakes[0], 1, 2);
    say(wait_for_call(1), 2, "three");
    end_call(wait_for_call(1), 3);
    assert_null(strstr(read_to(&c, "three"), "error"));
    read_to(&c, "\"completion_tokens\":3,");
    read_to(&c, "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"recovered\":1,"
                "\"recovery_ms\":");
    read_to(&c, ",\"replayed_tokens\":8}}"); /* the fakes hold nothing: four positions each */
    read_to(&c, "data: [DONE]\n\n");
    text = cluster();
    has(text, "\"pending\":0,\"events\":[{");
    has(text, "\"generations\":1,\"resumed\":1,\"given_up\":0,\"ended\":0,");
    has(text, ", which is there again\"");
    counts("resumed", 1);
    has(get("/metrics", "process_start_time_seconds "),
        "nakshatra_recovery_seconds_count{part=\"pause\"} 1\n");
    close_client(&c);
    end();
}

static void test_recover__a_reply_that_is_not_streamed_is_whole(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c;

    (void)state;
    o.exact_recovery = true;
    begin(&o);
    c = stream("{" PROMPT ",\"max_tokens\":400}");
    say(wait_for_call(0), 0, "one ");
    lose(wait_for_call(0));
    wait_until_begun(2);
    is_resumed(&fakes[0], 1, 1);
    assert_true(fakes[0].request->open->exact);
    say(wait_for_call(1), 1, "two");
    end_call(wait_for_call(1), 2);
    read_to(&c, "HTTP/1.1 200 ");
    read_to(&c, "\"text\":\"one two\"");
    read_to(&c, "\"completion_tokens\":2,");
    read_to(&c, "\"recovered\":1,");
    close_client(&c);
    end();
}

static void replays(struct fake *f, nk_call *c)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Replaying p = NAKSHATRA__V1__REPLAYING__INIT;

    (void)f;
    p.done = 3;
    p.total = 10;
    p.worker_id = (char *)(uintptr_t) "cellar";
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_REPLAYING;
    r.replaying = &p;
    send_reply(c, &r);
}

static void test_recover__the_replay_is_seen_and_why_it_is_needed(void **state)
{
    const struct nk_error silent = { .code = NK_E_UNAVAILABLE,
                                     .reason = "peer_gone",
                                     .msg = "127.0.0.1:1: silent for 3000 ms" };
    struct nk_gateway_opts o = patient(1);
    struct client c;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    fake_turn();
    fakes[0].script = fake_hold;
    fake_turn();
    nk_call_finish(wait_for_call(0), &silent);
    while (!fakes[0].n_held) {
        virtual_clock_advance_ms(&v, 250);
        http_turn();
    }
    has(cluster(), "\"cause\":\"silent\",");
    has(cluster(), "\"replay_to\":null,\"replayed\":0,\"replay_total\":0,");
    fake_say(&fakes[0], replays);
    wait_for_cluster("\"replay_to\":\"cellar\",\"replayed\":3,\"replay_total\":10,");
    has(cluster(), "\"pending\":1,\"generations\":1,");
    fake_say(&fakes[0], opens);
    say(wait_for_call(1), 1, "two");
    read_to(&c, "two");
    has(cluster(), "\"pending\":0,\"generations\":1,\"resumed\":1,");
    has(cluster(), "\"replayed\":10,\"replay_total\":10,");
    end_call(wait_for_call(1), 2);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* It has its place on every stage, which may have computed a part of it. */
static void test_recover__a_prompt_that_was_begun_goes_on(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    wait_for_call(0);
    wait_for_cluster("\"state\":\"running\"");
    lose(wait_for_call(0));
    wait_until_begun(2);
    is_resumed(&fakes[0], 1, 0);
    say(wait_for_call(1), 0, "one");
    end_call(wait_for_call(1), 1);
    read_to(&c, "one");
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

static void test_recover__after_the_grace_time_the_reader_is_told(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c;

    (void)state;
    o.limits.hold_ms = 5000;
    o.limits.waiting_ms = 1000; /* which is another matter */
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    state_of(1, "loading");
    lose(wait_for_call(0));
    wait_for_cluster("\"state\":\"recovering\"");
    virtual_clock_advance_ms(&v, 4999);
    virtual_clock_wait_for_waiter(&v, 1);
    http_turn();
    has(cluster(), "\"state\":\"recovering\"");
    virtual_clock_advance_ms(&v, 1);
    read_to(&c, "{\"error\":{\"message\":\"worker attic");
    read_to(&c, "gone; nothing to go on with came within 5000 ms (--hold-ms): ");
    read_to(&c, "\"code\":\"peer_gone\"");
    assert_null(strstr(nk_buf_str(&c.got), "within 1000 ms"));
    close_client(&c);
    wait_for_cluster("\"sessions\":[]");
    has(cluster(), "\"pending\":0,\"events\":[{");
    has(cluster(), "\"resumed\":0,\"given_up\":1,");
    counts("given_up", 1);
    end();
}

static void test_recover__who_goes_away_in_the_pause_ends_it(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c, next;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    state_of(1, "loading");
    lose(wait_for_call(0));
    wait_for_cluster("\"state\":\"recovering\"");
    close_client(&c);
    wait_for_cluster("\"sessions\":[]");
    has(cluster(), "\"waiting\":0,");
    has(cluster(), "\"pending\":0,\"events\":[{");
    counts("cancelled", 1);
    state_of(1, "serving");
    next = stream(STREAM);
    wait_until_begun(2);
    fake_turn();
    assert_int_equal(fakes[0].request->open->attempt, 0);
    say(wait_for_call(1), 0, "two");
    end_call(wait_for_call(1), 1);
    read_to(&next, "data: [DONE]\n\n");
    close_client(&next);
    end();
}

static void test_recover__each_choice_goes_on_by_itself(void **state)
{
    struct nk_gateway_opts o = patient(2);
    struct client c;

    (void)state;
    begin(&o);
    c = stream("{" PROMPT ",\"max_tokens\":400,\"stream\":true,\"n\":2}");
    say(wait_for_call(0), 0, "one");
    read_to(&c, "\"index\":0,\"text\":\"one\"");
    say(wait_for_call(1), 0, "uno");
    read_to(&c, "\"index\":1,\"text\":\"uno\"");
    lose(wait_for_call(0));
    wait_for_cluster("\"state\":\"recovering\"");
    say(wait_for_call(1), 1, "due"); /* its own connection may be another one */
    read_to(&c, "\"index\":1,\"text\":\"due\"");
    wait_until_begun(3);
    is_resumed(&fakes[0], 1, 1);
    say(wait_for_call(2), 1, "two");
    read_to(&c, "\"index\":0,\"text\":\"two\"");
    end_call(wait_for_call(1), 2);
    end_call(wait_for_call(2), 2);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* Before the next token or after it: it may be what they die of. */
static void test_recover__it_is_lost_again_and_again_but_not_for_ever(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c;
    uint32_t n = 1;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "token");
    read_to(&c, "token");
    for (int i = 0; i < NK_GEN_LOSSES_MAX; i++) {
        lose(wait_for_call(i));
        wait_until_begun(i + 2);
        is_resumed(&fakes[0], (uint32_t)i + 1, n);
        if (i % 2) {
            say(wait_for_call(i + 1), n++, "token");
            read_to(&c, "token");
        }
    }
    lose(wait_for_call(NK_GEN_LOSSES_MAX));
    read_to(&c, "\"code\":\"peer_gone\"");
    close_client(&c);
    wait_for_cluster("\"sessions\":[]");
    counts("resumed", 1);
    counts("given_up", 1);
    end();
}

static void test_recover__it_ends_with_the_gateway(void **state)
{
    struct nk_gateway_opts o = patient(1);
    struct client c;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    state_of(1, "loading");
    lose(wait_for_call(0));
    wait_for_cluster("\"state\":\"recovering\"");
    assert_true(nk_gateway_stop(gateway, 0));
    read_to(&c, "\"code\":\"shutting_down\"");
    close_client(&c);
    release();
}

/* ---- spares: each fake has the whole model, and the chain is of one ---- */

static void whole(Nakshatra__V1__Opened *o)
{
    o->n_stages = 1;
    o->stages[0]->layer_end = 4 * FAKES;
}

static void one_timing(Nakshatra__V1__Done *d)
{
    d->n_stages = 1;
}

static int where[CALLS];

static void opens_whole(struct fake *f, nk_call *c)
{
    send_opened(f, c, whole);
    pthread_mutex_lock(&begun.mutex);
    where[begun.n] = (int)(f - fakes);
    begun.calls[begun.n++] = nk_call_ref(c);
    pthread_cond_broadcast(&begun.changed);
    pthread_mutex_unlock(&begun.mutex);
}

static void end_whole(int idx, uint32_t n)
{
    nk_call *c = wait_for_call(idx);

    fake_turn();
    send_done(c, n, one_timing);
    nk_call_finish(c, NULL);
}

static struct nk_gateway_opts with_a_spare(int n_seq)
{
    struct nk_gateway_opts o = options(n_seq);
    struct nk_cluster c = *fake_cluster();

    for (int i = 0; i < FAKES; i++) {
        fakes[i].info.layer_begin = 0;
        fakes[i].info.layer_end = 4 * FAKES;
        fakes[i].script = opens_whole;
    }
    nk_chain_close(o.chain);
    c.n_workers = c.n_spares = 1;
    c.workers[0].layer_end = 4 * FAKES;
    strcpy(c.spares[0], c.workers[1].address);
    o.chain = fake_chain_of(&c);
    return o;
}

/* At once: nobody looks first whether the lost one is still away. And it stays there. */
static void test_recover__a_spare_takes_the_place(void **state)
{
    struct nk_gateway_opts o = with_a_spare(2);
    struct client c, before, next;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    before = stream(STREAM);
    wait_for_call(1);
    wait_for_cluster("\"running\":2,");
    state_of(0, "loading");
    lose(wait_for_call(0));
    say(wait_for_call(2), 1, "two");
    assert_int_equal(where[2], 1);
    is_resumed(&fakes[1], 1, 1);
    read_to(&c, "two");
    lose(wait_for_call(1)); /* it was on the old chain still */
    say(wait_for_call(3), 0, "three");
    assert_int_equal(where[3], 1);
    read_to(&before, "three");
    state_of(0, "serving");
    next = stream(STREAM);
    end_whole(2, 2);
    say(wait_for_call(4), 0, "four");
    assert_int_equal(where[4], 1);
    read_to(&next, "four");
    end_whole(3, 1);
    end_whole(4, 1);
    read_to(&c, "data: [DONE]\n\n");
    read_to(&before, "data: [DONE]\n\n");
    read_to(&next, "data: [DONE]\n\n");
    has(cluster(), "\"generations\":1,\"resumed\":1,");
    /* And back, when that one is lost. */
    state_of(1, "loading");
    close_client(&next);
    next = stream(STREAM);
    wait_for_call(5);
    lose(wait_for_call(5));
    say(wait_for_call(6), 0, "five");
    assert_int_equal(where[6], 0);
    end_whole(6, 1);
    read_to(&next, "data: [DONE]\n\n");
    close_client(&c);
    close_client(&before);
    close_client(&next);
    end();
}

/* Without anybody who generates. */
static void test_recover__a_spare_takes_the_place_of_one_that_is_seen_to_be_away(void **state)
{
    struct nk_gateway_opts o = with_a_spare(1);
    char address[60];
    struct client c;

    (void)state;
    begin(&o);
    wait_for_cluster("\"ready\":true");
    state_of(0, "loading");
    snprintf(address, sizeof address, "\"address\":\"127.0.0.1:%d\"",
             nk_server_port(fakes[1].server));
    while (!strstr(cluster(), address))
        virtual_clock_advance_ms(&v, 250);
    has(cluster(), "\"ready\":true");
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    assert_int_equal(where[0], 1);
    end_whole(0, 1);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recover__the_same_text_goes_on_after_a_pause),
        cmocka_unit_test(test_recover__a_reply_that_is_not_streamed_is_whole),
        cmocka_unit_test(test_recover__the_replay_is_seen_and_why_it_is_needed),
        cmocka_unit_test(test_recover__a_prompt_that_was_begun_goes_on),
        cmocka_unit_test(test_recover__after_the_grace_time_the_reader_is_told),
        cmocka_unit_test(test_recover__who_goes_away_in_the_pause_ends_it),
        cmocka_unit_test(test_recover__each_choice_goes_on_by_itself),
        cmocka_unit_test(test_recover__it_is_lost_again_and_again_but_not_for_ever),
        cmocka_unit_test(test_recover__it_ends_with_the_gateway),
        cmocka_unit_test(test_recover__a_spare_takes_the_place),
        cmocka_unit_test(test_recover__a_spare_takes_the_place_of_one_that_is_seen_to_be_away),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
