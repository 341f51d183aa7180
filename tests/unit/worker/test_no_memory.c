/* When memory runs out (no_memory.h): a worker's engine started, the stage with it; journals. */
#include "unit/no_memory.h"

#include <stdio.h>
#include <unistd.h>

#include "slice/slice.h"
#include "worker/journal.h"
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

/* Steps of 3 rows, each byte of which is the row's position. A journal without memory fails nobody:
 * it holds less. */
static int keep(void *folder, struct nk_error *err)
{
    const struct nk__journal_limits limits = { 2200, 10000, 10000, 64, folder };
    struct nk__journals js;
    nk__journal *j;
    int rc;

    nk__journals_init(&js, &limits);
    rc = nk__journal_new(&j, &js, 16, err);
    assert_true(!rc == !!j);
    for (int pos = 0; !rc && pos < 120; pos += 3) {
        uint8_t rows[3][16], got[16];
        int begin, end;

        for (int i = 0; i < 3; i++)
            memset(rows[i], pos + i, sizeof rows[i]);
        nk__journal_append(j, pos, 3, rows);
        begin = nk__journal_begin(j);
        end = nk__journal_end(j);
        assert_true(end == pos + 3 || (!end && !begin));
        for (int p = begin; p < end; p++) {
            assert_int_equal(nk__journal_read(j, p, 1, got, err), 0);
            assert_true(got[0] == p && got[15] == p);
            assert_int_equal(nk__journal_step_at(j, p, NULL, NULL), p % 3 == 0);
        }
    }
    if (!rc && !no_memory_refused) /* with all memory: all of it */
        assert_true(nk__journal_begin(j) == 0 && nk__journal_end(j) == 120);
    nk__journal_free(j);
    assert_int_equal(atomic_load(&js.memory_bytes), 0);
    assert_int_equal(atomic_load(&js.spilled_bytes), 0);
    /* What each_allocation_refused wants to hear of a refusal that ended well. */
    return !rc && no_memory_refused ? nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory") : rc;
}

static void test_journal__holds_less(void **state)
{
    char folder[] = "nk-no-memory-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(folder));
    each_allocation_refused(keep, folder, 60);
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_engine__of_the_first_stage),
        cmocka_unit_test(test_engine__of_the_last_stage),
        cmocka_unit_test(test_journal__holds_less),
    };

    nk_stage_global_init(NULL);
    return cmocka_run_group_tests_name("no_memory", tests, NULL, NULL);
}
