/* Models, slices and batches for the stage layer's tests: kjv-tiny (8 layers, tied embeddings), and
 * of recurrent and hybrid architectures the tiny models that llama.cpp's own test-llama-archs
 * writes (2 layers). */
#ifndef NK_TEST_STAGE_MODELS_H
#define NK_TEST_STAGE_MODELS_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/missing.h"
#include "slice/slice.h"
#include "stage/stage.h"

enum { N_VOCAB_MAX = 1024, MAX_STAGES = 4, N_BATCH = 32, ROWS_MAX = 64 };

static char dir[] = "/tmp/nk-test-stage-XXXXXX";
static char model_path[4096], kjv_path[4096];
static const char *model_tag = "kjv"; /* in the names of its slices */
static bool have_generated;

static inline struct nk_stage_opts opts(void)
{
    struct nk_stage_opts o = nk_stage_opts_default();

    o.device = "CPU";
    o.n_ctx = 512;
    o.n_seq_max = 4;
    o.n_batch = N_BATCH;
    o.n_threads = 1;
    return o;
}

static inline void slice_path(char out[4200], int begin, int end)
{
    snprintf(out, 4200, "%s/%s.%d-%d.gguf", dir, model_tag, begin, end);
}

static inline void make_slice(int begin, int end)
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

static inline nk_stage *open_slice(int begin, int end)
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

static inline nk_stage *open_whole(void)
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
    int32_t ids[ROWS_MAX], pos[ROWS_MAX], seq[ROWS_MAX];
    int n;
};

static inline void add(struct rows *r, int seq, int pos, int n, unsigned seed)
{
    for (int i = 0; i < n; i++, r->n++) {
        unsigned id = (unsigned)(pos + i) * 7919u + (unsigned)seq * 104729u + seed * 31u;

        r->ids[r->n] = (int32_t)(id % 120u); /* every one of these models has these ids */
        r->pos[r->n] = pos + i;
        r->seq[r->n] = seq;
    }
}

static inline int run(nk_stage **stages, int n, const struct rows *r, struct nk_error *err)
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

static inline void assert_same(nk_stage *whole, nk_stage **stages, int n, const struct rows *r)
{
    struct nk_error err;

    if (run(&whole, 1, r, &err) || run(stages, n, r, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < r->n; i++)
        assert_memory_equal(nk_stage_logits(whole, i), nk_stage_logits(stages[n - 1], i),
                            (size_t)nk_stage_info(whole)->n_vocab * sizeof(float));
}

/* Runs one sequence's rows and keeps the last one's logits. */
static inline void run_last(nk_stage **stages, int n, const struct rows *r, float *out)
{
    struct nk_error err;

    if (run(stages, n, r, &err))
        fail_msg("%s", err.msg);
    memcpy(out, nk_stage_logits(stages[n - 1], r->n - 1),
           (size_t)nk_stage_info(stages[n - 1])->n_vocab * sizeof *out);
}

/* The same numbers, as far as another place in the cache or another batch leaves them the same. */
static inline void assert_near(const float *want, const float *got, int n)
{
    double difference = 0, power = 0;

    for (int i = 0; i < n; i++) {
        difference += ((double)want[i] - (double)got[i]) * ((double)want[i] - (double)got[i]);
        power += (double)want[i] * (double)want[i];
    }
    if (!(power > 0 && difference / power < 1e-5))
        fail_msg("nmse %g", difference / power);
}

static inline void use_kjv(void)
{
    model_tag = "kjv";
    memcpy(model_path, kjv_path, sizeof model_path);
}

/* A model that test-llama-archs wrote. */
static inline void use_generated(const char *name)
{
    model_tag = name;
    snprintf(model_path, sizeof model_path, "%s/%s.gguf", dir, name);
    if (!have_generated)
        missing("llama.cpp's test-llama-archs is needed (package llama.cpp-tests)");
    if (access(model_path, R_OK))
        fail_msg("test-llama-archs wrote no %s", name);
}

static inline void close_all(nk_stage **stages, int n)
{
    for (int i = 0; i < n; i++)
        nk_stage_close(stages[i]);
}

/* llama.cpp's own tool writes the models with a state. */
static inline void generate(void)
{
    const char *libexec = getenv("NK_LLAMA_LIBEXEC"), *loader = getenv("NK_LLAMA_LOADER"),
               *lib = getenv("NK_LLAMA_LIB");
    char tool[4096], command[16384];

    snprintf(tool, sizeof tool, "%s/test-llama-archs", libexec ? libexec : "");
    if (access(tool, X_OK))
        return;
    if (loader && *loader) /* the private llama.cpp; its tools want to be told of one backend */
        snprintf(command, sizeof command,
                 "GGML_BACKEND_PATH=$(ls %s/libggml-cpu-*x64.so %s/libggml-cpu-armv8.0*.so "
                 "2>/dev/null | head -1) '%s' --library-path '%s:%s/llama:%s/ggml' "
                 "'%s' -a '^(mamba|falcon-h1)$' -o '%s' >'%s/log' 2>&1",
                 NK_BACKEND_DIR, NK_BACKEND_DIR, loader, lib, lib, lib, tool, dir, dir);
    else
        snprintf(command, sizeof command, "'%s' -a '^(mamba|falcon-h1)$' -o '%s' >'%s/log' 2>&1",
                 tool, dir, dir);
    have_generated = system(command) == 0;
}

static inline int setup(void **state)
{
    const char *models = getenv("NK_MODELS");

    (void)state;
    nk_stage_global_init(NULL);
    snprintf(kjv_path, sizeof kjv_path, "%s/kjv-tiny.gguf", models ? models : "../../models");
    return mkdtemp(dir) ? 0 : -1;
}

/* ... for tests with use_generated(). */
static inline int setup_generated(void **state)
{
    int rc = setup(state);

    if (!rc)
        generate();
    return rc;
}

static inline int teardown(void **state)
{
    char command[4300];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

#endif
