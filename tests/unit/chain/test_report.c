#include "unit/chain/fake_worker.h"

static struct nk_chain_report *check(uint32_t timeout_ms)
{
    struct nk_chain_report *r = NULL;
    struct nk_error err;
    nk_chain *c = fake_chain();

    if (nk_chain_check(c, timeout_ms, &r, &err))
        fail_msg("%s", err.msg);
    nk_chain_close(c);
    fake_turn();
    return r;
}

static void test_report__workers_that_fit_are_ok_and_told_as_they_are(void **state)
{
    struct nk_chain_report *r = check(PATIENCE_MS);

    (void)state;
    assert_true(r->ok);
    assert_int_equal(r->n_workers, 2);
    assert_int_equal(r->n_ctx, 512); /* the least */
    assert_int_equal(r->n_vocab, 100);
    assert_string_equal(r->workers[0].id, "attic");
    assert_string_equal(r->workers[1].worker_id, "me");
    assert_int_equal(r->workers[1].has_begin, 4);
    assert_int_equal(r->workers[1].n_ctx, 513);
    assert_true(r->workers[0].answered && !r->workers[0].rc);
    assert_int_equal(fakes[0].n_infos, 5);
    /* As an older worker, which does not say. */
    assert_string_equal(r->workers[0].cache_type_k, "f16");
    assert_string_equal(r->workers[0].verified, "unknown"); /* an older worker's silence */
    free(r);
    fakes[0].info.cache_type_k = fakes[0].info.cache_type_v = (char[]){ "q8_0" };
    r = check(PATIENCE_MS);
    assert_string_equal(r->workers[0].cache_type_v, "q8_0");
    free(r);
}

static void test_report__the_context_is_what_one_session_can_have(void **state)
{
    struct nk_chain_report *r;

    (void)state;
    fakes[1].info.n_ctx_seq = 128; /* in deterministic mode each session has a share */
    r = check(PATIENCE_MS);
    assert_true(r->ok);
    assert_int_equal(r->n_ctx, 128);
    assert_int_equal(r->workers[1].n_ctx, 513);
    free(r);
}

/* The second worker does not fit; both values are in the message. */
static void misfits(const char *reason, const char *says)
{
    struct nk_chain_report *r = check(PATIENCE_MS);

    assert_false(r->ok);
    assert_int_equal(r->workers[0].rc, 0);
    assert_true(r->workers[1].rc < 0);
    if (strcmp(r->err.reason, reason) || !strstr(r->err.msg, says) ||
        !strstr(r->err.msg, "worker cellar (127.0.0.1:"))
        fail_msg("%s '%s' where %s '%s' was expected", r->err.reason, r->err.msg, reason, says);
    assert_string_equal(r->workers[1].err.msg, r->err.msg);
    free(r);
    fake_reset();
}

#define TEXT(s) ((char *)(uintptr_t)(s))

static void test_report__what_does_not_fit_is_named_with_both_values(void **state)
{
    Nakshatra__V1__InfoReply *i = &fakes[1].info;
    Nakshatra__V1__Fact factor = NAKSHATRA__V1__FACT__INIT, *factors[] = { &factor };

    (void)state;
    factor.name = TEXT("rope_factors");
    factor.value = TEXT("long");
    factor.note = TEXT("2048 tokens");
    i->protocol = 2;
    misfits("protocol_mismatch", "speaks protocol 2, this program speaks 1");
    i->model_sha256 = TEXT("0123");
    i->model_id = TEXT("other");
    misfits("model_mismatch", "the model 0123 (other), the cluster file wants " SHA " (tiny)");
    i->layer_begin = 5;
    misfits("layers_mismatch", "has layers 5-8, the cluster file says 4-8");
    i->layer_count = 12;
    misfits("layers_mismatch", "has 12 layers, the cluster file's ranges end at 8");
    i->n_embd = 65;
    misfits("width_mismatch", "rows have 65 floats, those of worker attic have 64");
    i->n_vocab = 101;
    misfits("vocab_mismatch", "101 tokens, that of worker attic has 100");
    i->architecture = TEXT("gemma");
    misfits("model_mismatch", "gemma, that of worker attic is llama");
    i->n_dtypes = 0;
    misfits("dtype_mismatch", "f32");
    i->llama_version = TEXT("0.8.0");
    misfits("llama_mismatch", "its llama.cpp: 0.8.0; worker attic's: 0.7.0");
    i->computed = factors;
    i->n_computed = 1;
    misfits("rope_mismatch", "its RoPE factors: long (2048 tokens); worker attic's: not told");
    i->n_ctx = 1;
    misfits("no_context", "1 tokens");
    i->state = TEXT("asleep");
    misfits("not_serving", "it is asleep, not serving");
}

static void test_report__deterministic_requests_need_workers_that_are(void **state)
{
    struct nk_chain_report *r;

    (void)state;
    fakes[0].info.deterministic = true;
    r = check(PATIENCE_MS);
    assert_true(r->ok);
    nk_chain_report_want_deterministic(r);
    assert_false(r->ok);
    assert_true(!r->workers[0].rc && r->workers[1].rc == NK_E_PRECONDITION);
    assert_string_equal(r->err.reason, "not_deterministic");
    assert_non_null(strstr(r->err.msg, "worker cellar (127.0.0.1:"));
    assert_non_null(strstr(r->err.msg, "--deterministic"));
    free(r);
    fakes[1].info.deterministic = true;
    r = check(PATIENCE_MS);
    nk_chain_report_want_deterministic(r);
    assert_true(r->ok && !r->workers[1].rc);
    free(r);
}

static void test_report__f16_rows_need_workers_that_take_them(void **state)
{
    struct nk_cluster cluster = *fake_cluster();
    struct nk_chain_report *r;
    struct nk_error err;
    nk_chain *c;

    (void)state;
    cluster.f16 = true;
    fakes[1].info.n_dtypes = 1;
    c = fake_chain_of(&cluster);
    assert_int_equal(nk_chain_check(c, PATIENCE_MS, &r, &err), 0);
    assert_false(r->ok);
    assert_string_equal(r->err.reason, "dtype_mismatch");
    free(r);
    fakes[1].info.n_dtypes = 2;
    assert_int_equal(nk_chain_check(c, PATIENCE_MS, &r, &err), 0);
    assert_true(r->ok);
    free(r);
    nk_chain_close(c);
}

static void test_report__an_answer_that_is_none_is_a_bad_peer(void **state)
{
    (void)state;
    fakes[1].info_bytes = "\xff\xff\xff";
    misfits("bad_peer", "no InfoReply");
}

static void test_report__a_peers_text_and_counts_are_bounded(void **state)
{
    char *name = malloc(5001);
    struct nk_chain_report *r;

    (void)state;
    memset(name, 'x', 5000);
    name[5000] = '\0';
    memcpy(name, "a\x1b[31m\xff\xc3\xa4\n", 10);
    fakes[1].info.worker_id = name;
    fakes[1].info.n_seq_max = UINT32_MAX;
    r = check(PATIENCE_MS);
    assert_true(r->ok);
    assert_memory_equal(r->workers[1].worker_id, "a^[[31m\xef\xbf\xbd\xc3\xa4^Jxxx", 17);
    assert_int_equal(strlen(r->workers[1].worker_id), sizeof r->workers[1].worker_id - 1);
    assert_int_equal(r->workers[1].n_seq_max, INT32_MAX);
    free(r);
    free(name);
}

static void test_report__the_round_trip_is_the_best_but_for_the_first(void **state)
{
    struct nk_cluster cluster = *fake_cluster();
    struct nk_chain_report *r;
    struct nk_error err;
    nk_chain *c;

    (void)state;
    cluster.n_workers = 1;
    fakes[0].info.layer_count = 4;
    fakes[0].info_first_ms = 50; /* the connection is in it */
    fakes[0].info_ms = 3;
    c = fake_chain_of(&cluster);
    assert_int_equal(nk_chain_check(c, PATIENCE_MS, &r, &err), 0);
    nk_chain_close(c);
    fake_turn();
    assert_true(r->ok);
    assert_true(r->workers[0].rtt_us == 3000);
    free(r);
}

/* Another thread that asks, while the test moves the clock. */
struct asker {
    nk_chain *c;
    pthread_t thread;
    uint32_t timeout_ms;
    struct nk_chain_report *report;
    double us;
    bool no_err;
    struct nk_error err;
    int rc;
};

static void *ask_check(void *arg)
{
    struct asker *a = arg;

    a->rc = nk_chain_check(a->c, a->timeout_ms, &a->report, &a->err);
    return NULL;
}

static void *ask_probe(void *arg)
{
    struct asker *a = arg;

    a->rc = nk_chain_probe(a->c, a->timeout_ms, &a->us, a->no_err ? NULL : &a->err);
    return NULL;
}

static void ask(struct asker *a, void *(*fn)(void *))
{
    fake_turn();
    assert_int_equal(pthread_create(&a->thread, NULL, fn, a), 0);
}

static void asked(struct asker *a)
{
    pthread_join(a->thread, NULL);
    fake_turn();
}

static void test_report__a_worker_is_waited_for_as_long_as_said_and_no_longer(void **state)
{
    struct asker a = { .c = fake_chain(), .timeout_ms = 300 };

    (void)state;
    fakes[1].info_silent = true;
    ask(&a, ask_check);
    fake_wait(&fakes[0].n_infos, 5);
    fake_wait(&fakes[1].n_infos, 1);
    fake_pass_ms(a.c, 299);
    fake_answer_info(&fakes[1]);
    asked(&a);
    assert_true(a.report->ok);
    assert_true(a.report->workers[1].answered);
    free(a.report);

    fake_reset();
    fakes[1].info_silent = true;
    ask(&a, ask_check);
    fake_wait(&fakes[0].n_infos, 5);
    fake_wait(&fakes[1].n_infos, 1);
    fake_pass_ms(a.c, 300);
    asked(&a);
    assert_false(a.report->ok);
    assert_true(a.report->workers[0].answered && !a.report->workers[1].answered);
    assert_int_equal(a.report->workers[1].rc, NK_E_DEADLINE);
    assert_non_null(strstr(a.report->err.msg, "worker cellar"));
    assert_non_null(strstr(a.report->err.msg, "300 ms"));
    free(a.report);
    nk_chain_close(a.c);
}

static void one_token(struct fake *f, nk_call *c)
{
    send_opened(f, c, NULL);
    virtual_clock_advance_ms(&fake_clock, 4);
    send_token(c, 0, "a");
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

static void one_token_at_once(struct fake *f, nk_call *c)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "a");
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

static void no_room(struct fake *f, nk_call *c)
{
    struct nk_error e;

    (void)f;
    nk_fail(&e, NK_E_EXHAUSTED, "kv_full", "no room");
    nk_call_finish(c, &e);
}

static void test_report__the_probe_times_one_token_or_says_what_is_in_the_way(void **state)
{
    struct asker a = { .c = fake_chain(), .timeout_ms = 100 };

    (void)state;
    fakes[0].script = one_token;
    ask(&a, ask_probe);
    asked(&a);
    assert_int_equal(a.rc, 0);
    assert_true(a.us == 4000);
    assert_int_equal(fakes[0].request->open->limits->n_predict, 1);
    assert_false(fakes[0].request->open->reuse);
    fakes[0].script = no_room;
    ask(&a, ask_probe);
    asked(&a);
    assert_int_equal(a.rc, NK_E_EXHAUSTED);
    assert_string_equal(a.err.reason, "kv_full");
    nk_chain_close(a.c);
}

static void test_report__the_probe_waits_as_long_as_said_and_no_longer(void **state)
{
    struct asker a = { .c = fake_chain(), .timeout_ms = 100 };

    (void)state;
    fakes[0].script = fake_hold;
    ask(&a, ask_probe);
    fake_wait(&fakes[0].n_held, 1);
    fake_pass_ms(a.c, 99);
    fake_say(&fakes[0], one_token_at_once);
    asked(&a);
    assert_int_equal(a.rc, 0);
    for (int i = 0; i < 2; i++) {
        a.no_err = i == 1;
        ask(&a, ask_probe);
        fake_wait(&fakes[0].n_held, 2 + i);
        fake_pass_ms(a.c, 100);
        asked(&a);
        assert_int_equal(a.rc, NK_E_DEADLINE);
    }
    nk_chain_close(a.c);
}

static int reset(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_report__workers_that_fit_are_ok_and_told_as_they_are, reset),
        cmocka_unit_test_setup(test_report__the_context_is_what_one_session_can_have, reset),
        cmocka_unit_test_setup(test_report__what_does_not_fit_is_named_with_both_values, reset),
        cmocka_unit_test_setup(test_report__deterministic_requests_need_workers_that_are, reset),
        cmocka_unit_test_setup(test_report__f16_rows_need_workers_that_take_them, reset),
        cmocka_unit_test_setup(test_report__an_answer_that_is_none_is_a_bad_peer, reset),
        cmocka_unit_test_setup(test_report__a_peers_text_and_counts_are_bounded, reset),
        cmocka_unit_test_setup(test_report__the_round_trip_is_the_best_but_for_the_first, reset),
        cmocka_unit_test_setup(test_report__a_worker_is_waited_for_as_long_as_said_and_no_longer,
                               reset),
        cmocka_unit_test_setup(test_report__the_probe_times_one_token_or_says_what_is_in_the_way,
                               reset),
        cmocka_unit_test_setup(test_report__the_probe_waits_as_long_as_said_and_no_longer, reset),
    };

    return cmocka_run_group_tests(tests, fake_start, fake_stop);
}
