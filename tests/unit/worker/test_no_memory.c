/* A worker's engine started when memory runs out (no_memory.h): the stage with it. */
#include "unit/no_memory.h"

#include <stdio.h>
#include <unistd.h>

#include "slice/slice.h"
#include "worker/worker_int.h"

static int start(void *slice, struct nk_error *err)
{
    static nk_worker w;
    nk_engine *e;
    int rc;

    w = (nk_worker){ .opts = nk_worker_opts_default() };
    pthread_mutex_init(&w.mutex, NULL);
    w.opts.slice_path = slice;
    w.opts.stage.device = "CPU";
    w.opts.stage.n_threads = 1;
    w.opts.stage.n_ctx = 64;
    w.opts.stage.n_batch = 16;
    w.opts.stage.n_seq_max = 2;
    rc = nk__engine_start(&e, &w, err);
    assert_true(!rc == !!e);
    nk__engine_stop(e);
    pthread_mutex_destroy(&w.mutex);
    return rc;
}

static void starts(struct nk_range range)
{
    const char *models = getenv("NK_MODELS");
    char path[4096], slice[] = "nk-no-memory-XXXXXX";
    struct nk_error err = { 0 };
    char sha256[NK_SHA256_HEX] = "";
    nk_model *m;
    int fd = mkstemp(slice);

    assert_true(fd >= 0);
    close(fd);
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", models ? models : "models");
    memset(sha256, 'a', sizeof sha256 - 1);
    if (nk_model_open(&m, path, &err) || nk_slice_write(m, range, sha256, slice, NULL, &err))
        fail_msg("%s", err.msg);
    nk_model_close(m);
    each_allocation_refused(start, slice, 20);
    unlink(slice);
}

static void test_engine__of_the_first_stage(void **state)
{
    (void)state;
    starts((struct nk_range){ 0, 4 });
}

static void test_engine__of_the_last_stage(void **state)
{
    (void)state;
    starts((struct nk_range){ 4, 8 });
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine__of_the_first_stage),
        cmocka_unit_test(test_engine__of_the_last_stage),
    };

    nk_stage_global_init(NULL);
    return cmocka_run_group_tests_name("no_memory", tests, NULL, NULL);
}
