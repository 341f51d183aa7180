/* The chain calls `token` and `done` on its own thread, and may have called both before
 * nk_gen_start returns. Here it always has: --wrap=nk_gen_start (tests/CMakeLists.txt) waits for
 * the end of the generation before it lets the caller go on. */
#include "unit/chain/fake_worker.h"

#include <semaphore.h>

#include "cli/answer.h"
#include "cli/cli.h"

int __real_nk_gen_start(nk_gen **out, nk_chain *c, const struct nk_gen_opts *opts,
                        const struct nk_gen_handlers *handlers, void *user, struct nk_error *err);
int __wrap_nk_gen_start(nk_gen **out, nk_chain *c, const struct nk_gen_opts *opts,
                        const struct nk_gen_handlers *handlers, void *user, struct nk_error *err);

/* The handlers and their argument as nk_answer_run gave them. */
static const struct nk_gen_handlers *real_handlers;
static void *real_user;
static sem_t is_over;

static void pass_token(void *user, const struct nk_gen_token *t)
{
    (void)user;
    real_handlers->token(real_user, t);
}

static void pass_done(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    (void)user;
    real_handlers->done(real_user, stats, err);
    sem_post(&is_over);
}

int __wrap_nk_gen_start(nk_gen **out, nk_chain *c, const struct nk_gen_opts *opts,
                        const struct nk_gen_handlers *handlers, void *user, struct nk_error *err)
{
    static const struct nk_gen_handlers passing = { .token = pass_token, .done = pass_done };
    int rc;

    real_handlers = handlers;
    real_user = user;
    rc = __real_nk_gen_start(out, c, opts, &passing, NULL, err);
    while (!rc && sem_wait(&is_over))
        ;
    return rc;
}

static const int32_t prompt[] = { 1, 2, 3 };

/* One generation that the first worker answers with script, to its end. */
static void answer(fake_script script, size_t n_ids, struct nk_answer *a)
{
    struct nk_gen_opts o = nk_gen_opts_default();
    struct nk_route r = { .chain = NULL };

    fakes[0].script = script; /* before fake_chain: the fakes' turn begins there */
    r.chain = fake_chain();
    o.ids = prompt;
    o.n_ids = n_ids;
    o.n_predict = 8;
    nk_answer_run(a, &r, &o, -1);
    nk_route_close(&r);
    fake_turn();
}

static void refuse(struct fake *f, nk_call *c)
{
    struct nk_error err;

    (void)f;
    nk_fail(&err, NK_E_EXHAUSTED, "queue_full", "64 sessions wait already");
    nk_call_finish(c, &err);
}

static void break_off(struct fake *f, nk_call *c)
{
    struct nk_error err;

    send_opened(f, c, NULL);
    send_token(c, 0, "In");
    nk_fail(&err, NK_E_INTERNAL, "decode_failed", "a made up failure");
    nk_call_finish(c, &err);
}

static void two_tokens(struct fake *f, nk_call *c)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "In");
    send_token(c, 1, " the");
    send_done(c, 2, NULL);
    nk_call_finish(c, NULL);
}

static void test_answer__a_failure_before_the_start_has_returned_is_a_failure(void **state)
{
    struct nk_answer a;

    (void)state;
    answer(refuse, 3, &a);
    assert_int_equal(a.rc, NK_E_EXHAUSTED);
    assert_string_equal(a.err.reason, "queue_full");
    assert_non_null(strstr(a.err.msg, "64 sessions wait already"));
    assert_int_equal(nk_answer_exit(&a), NK_EXIT_FAILED);
    nk_answer_release(&a);
}

static void test_answer__what_came_before_a_failure_is_kept_beside_it(void **state)
{
    struct nk_answer a;

    (void)state;
    answer(break_off, 3, &a);
    assert_int_equal(a.rc, NK_E_INTERNAL);
    assert_string_equal(a.err.reason, "decode_failed");
    assert_string_equal(nk_buf_str(&a.text), "In");
    assert_int_equal(a.n_ids, 1);
    assert_int_equal(nk_answer_exit(&a), NK_EXIT_FAILED);
    nk_answer_release(&a);
}

static void test_answer__a_whole_one_is_whole(void **state)
{
    struct nk_answer a;

    (void)state;
    answer(two_tokens, 3, &a);
    assert_int_equal(a.rc, 0);
    assert_string_equal(nk_buf_str(&a.text), "In the");
    assert_int_equal(a.n_ids, 2);
    assert_int_equal(a.stats.n_generated, 2);
    assert_int_equal(nk_answer_exit(&a), NK_EXIT_OK);
    nk_answer_release(&a);
}

static void test_answer__what_cannot_start_is_a_failure(void **state)
{
    struct nk_answer a;

    (void)state;
    answer(NULL, 0, &a);
    assert_int_equal(a.rc, NK_E_INVALID);
    assert_non_null(strstr(a.err.msg, "no tokens"));
    assert_int_equal(nk_answer_exit(&a), NK_EXIT_USAGE);
    nk_answer_release(&a);
}

static int reset(void **state)
{
    (void)state;
    fake_reset();
    return 0;
}

static int start(void **state)
{
    return sem_init(&is_over, 0, 0) || fake_start(state) ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_answer__a_failure_before_the_start_has_returned_is_a_failure,
                               reset),
        cmocka_unit_test_setup(test_answer__what_came_before_a_failure_is_kept_beside_it, reset),
        cmocka_unit_test_setup(test_answer__a_whole_one_is_whole, reset),
        cmocka_unit_test_setup(test_answer__what_cannot_start_is_a_failure, reset),
    };

    return cmocka_run_group_tests_name("answer", tests, start, fake_stop);
}
