/* Stages opened and compared when memory runs out (no_memory.h). */
#include "unit/no_memory.h"

#include "unit/stage/models.h"

#include "stage/verify.h"

static const struct nk_script script = {
    .n_tokens = 2, .n_steps = 1, .n_sequences = 1, .n_batch = 4
};

static int open_one(void *path, struct nk_error *err)
{
    struct nk_stage_opts o = opts();
    nk_stage *s;
    int rc = nk_stage_open(&s, path, &o, err);

    assert_true(!rc == !!s);
    nk_stage_close(s);
    return rc;
}

static void test_stage__opening(void **state)
{
    static const int slices[][2] = { { 0, 3 }, { 3, 8 } };
    char path[4200];

    (void)state;
    use_kjv();
    for (int i = 0; i < 2; i++) {
        make_slice(slices[i][0], slices[i][1]);
        slice_path(path, slices[i][0], slices[i][1]);
        each_allocation_refused(open_one, path, 20);
    }
}

static int make_reference(void *whole, struct nk_error *err)
{
    nk_reference *r;
    int rc = nk_reference_new(&r, whole, &script, err);

    assert_true(!rc == !!r);
    nk_reference_free(r);
    return rc;
}

static void test_reference__the_script(void **state)
{
    nk_stage *whole;

    (void)state;
    use_kjv();
    whole = open_whole();
    each_allocation_refused(make_reference, whole, 12);
    nk_stage_close(whole);
}

struct comparison {
    nk_reference *r;
    nk_stage *whole;
};

static int compare(void *arg, struct nk_error *err)
{
    struct comparison *c = arg;
    struct nk_difference d;

    return nk_reference_compare(c->r, &c->whole, 1, &d, err);
}

/* Nothing is to be refused: a run allocates nothing. */
static void test_run__allocates_nothing(void **state)
{
    struct comparison c;

    (void)state;
    use_kjv();
    c.whole = open_whole();
    assert_int_equal(nk_reference_new(&c.r, c.whole, &script, NULL), 0);
    no_memory_refused = false;
    no_memory_left = 0;
    assert_int_equal(compare(&c, NULL), 0);
    no_memory_left = -1;
    assert_false(no_memory_refused);
    nk_reference_free(c.r);
    nk_stage_close(c.whole);
}

static int begin_verify(void *m, struct nk_error *err)
{
    static const char *const cpu[] = { "CPU" };
    struct nk_verify_opts o = {
        .script = script, .stage = nk_stage_opts_default(), .devices = cpu, .n_devices = 1
    };
    nk_verify *v;
    int rc = nk_verify_new(&v, m, &o, err);

    assert_true(!rc == !!v);
    nk_verify_free(v);
    return rc;
}

static void test_verify__beginning(void **state)
{
    nk_model *m;

    (void)state;
    use_kjv();
    assert_int_equal(nk_model_open(&m, model_path, NULL), 0);
    each_allocation_refused(begin_verify, m, 3);
    nk_model_close(m);
}

static int setup_cache(void **state)
{
    int rc = setup(state);

    return rc ? rc : setenv("XDG_CACHE_HOME", dir, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage__opening),
        cmocka_unit_test(test_reference__the_script),
        cmocka_unit_test(test_run__allocates_nothing),
        cmocka_unit_test(test_verify__beginning),
    };

    return cmocka_run_group_tests_name("no_memory", tests, setup_cache, teardown);
}
