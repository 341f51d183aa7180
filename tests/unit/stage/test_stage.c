/* The stage against a whole model in the same process: kjv-tiny (8 layers, tied embeddings). */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "slice/slice.h"
#include "stage/stage.h"

enum { N_VOCAB = 1024, WIDTH = 128, MAX_STAGES = 4 };

static char dir[] = "/tmp/nk-test-stage-XXXXXX";
static char model_path[4096];

static struct nk_stage_opts opts(void)
{
    struct nk_stage_opts o = nk_stage_opts_default();

    o.device = "CPU";
    o.n_ctx = 512;
    o.n_seq_max = 4;
    o.n_batch = 32;
    o.n_threads = 1;
    return o;
}

static void slice_path(char out[4200], int begin, int end)
{
    snprintf(out, 4200, "%s/%d-%d.gguf", dir, begin, end);
}

static void make_slice(int begin, int end)
{
    char path[4200], sha[NK_SHA256_HEX];
    struct nk_error err;
    nk_model *m;

    slice_path(path, begin, end);
    if (!access(path, R_OK))
        return;
    memset(sha, 'a', sizeof sha - 1);
    sha[sizeof sha - 1] = '\0';
    assert_int_equal(nk_model_open(&m, model_path, &err), 0);
    assert_int_equal(nk_slice_write(m, (struct nk_range){ begin, end }, sha, path, NULL, &err), 0);
    nk_model_close(m);
}

static nk_stage *open_slice(int begin, int end)
{
    struct nk_stage_opts o = opts();
    struct nk_error err;
    char path[4200];
    nk_stage *s;
    int rc;

    make_slice(begin, end);
    slice_path(path, begin, end);
    rc = nk_stage_open(&s, path, &o, &err);
    if (rc)
        fail_msg("%s", err.msg);
    return s;
}

static nk_stage *open_whole(void)
{
    struct nk_stage_opts o = opts();
    struct nk_error err;
    nk_stage *s;
    int rc;

    o.whole_model = true;
    rc = nk_stage_open(&s, model_path, &o, &err);
    if (rc)
        fail_msg("%s", err.msg);
    return s;
}

/* A batch of n rows of one sequence from pos on; token ids from a seed. */
struct rows {
    int32_t ids[64], pos[64], seq[64];
    int n;
};

static void add(struct rows *r, int seq, int pos, int n, unsigned seed)
{
    for (int i = 0; i < n; i++, r->n++) {
        r->ids[r->n] =
            (int32_t)(((unsigned)(pos + i) * 7919u + (unsigned)seq * 104729u + seed * 31u) %
                      N_VOCAB);
        r->pos[r->n] = pos + i;
        r->seq[r->n] = seq;
    }
}

static int run(nk_stage **stages, int n, const struct rows *r, struct nk_error *err)
{
    const float *rows = NULL;

    for (int i = 0; i < n; i++) {
        struct nk_stage_batch b = {
            .n_tokens = r->n, .ids = r->ids, .pos = r->pos, .seq = r->seq, .rows = rows
        };
        int rc = nk_stage_run(stages[i], &b, err);

        if (rc)
            return rc;
        rows = nk_stage_rows(stages[i]);
    }
    return 0;
}

static void assert_same(nk_stage *whole, nk_stage **stages, int n, const struct rows *r)
{
    struct nk_error err;

    if (run(&whole, 1, r, &err) || run(stages, n, r, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < r->n; i++)
        assert_memory_equal(nk_stage_logits(whole, i), nk_stage_logits(stages[n - 1], i),
                            N_VOCAB * sizeof(float));
}

static void test_stage__any_split_gives_the_logits_of_the_whole_model(void **state)
{
    static const int splits[][MAX_STAGES + 1] = {
        { 0, 1, 8 }, { 0, 7, 8 }, { 0, 3, 5, 8 }, { 0, 1, 2, 6, 8 }
    };

    (void)state;
    for (size_t k = 0; k < sizeof splits / sizeof splits[0]; k++) {
        nk_stage *whole = open_whole(), *stages[MAX_STAGES];
        struct rows r = { .n = 0 };
        int n = 0;

        for (; splits[k][n] != 8; n++)
            stages[n] = open_slice(splits[k][n], splits[k][n + 1]);
        add(&r, 0, 0, 20, 1);
        assert_same(whole, stages, n, &r);
        for (int pos = 20; pos < 25; pos++) {
            r.n = 0;
            add(&r, 0, pos, 1, 2);
            assert_same(whole, stages, n, &r);
        }
        r.n = 0;
        add(&r, 1, 0, 7, 3);
        add(&r, 0, 10, 3, 4); /* back by 15, in the same batch */
        add(&r, 2, 0, 11, 5);
        assert_same(whole, stages, n, &r);
        for (int i = 0; i < n; i++)
            nk_stage_close(stages[i]);
        nk_stage_close(whole);
    }
}

static int setup(void **state)
{
    const char *models = getenv("NK_MODELS");

    (void)state;
    nk_stage_global_init();
    snprintf(model_path, sizeof model_path, "%s/kjv-tiny.gguf", models ? models : "../../models");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[4300];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stage__any_split_gives_the_logits_of_the_whole_model),
    };

    return cmocka_run_group_tests_name("stage", tests, setup, teardown);
}
