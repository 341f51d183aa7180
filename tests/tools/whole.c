/* The reference that system tests compare chains with: the whole model in this process, through
 * the stage, sampler and detokenizer, with the options of `nakshatra run`. Prints one JSON
 * object: text, ids, finish, stop, seed, logprobs.
 *
 * usage: whole MODEL.gguf --prompt TEXT [generation options] [--logprobs K] [--chunk ROWS]
 *     [--threads N] [--prompt-logprobs K]   (also of the prompt's tokens: prompt_logprobs) */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/chance.h"
#include "base/log.h"
#include "cli/gen_args.h"
#include "stage/stage.h"
#include "text/detok.h"
#include "text/vocab.h"

#define TRY(call)                                                                                  \
    do {                                                                                           \
        if (call) {                                                                                \
            fprintf(stderr, "whole: %s (%s)\n", err.msg, err.reason);                              \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static struct nk_error err;

/* What is told of ids that are fed; NULL: nothing. */
static json_t *told;
static int n_told; /* alternatives */

static nk_vocab *vocab;

static json_t *prob_json(const nk_vocab *v, int32_t id, float logprob);

static json_t *sampled_json(const nk_vocab *v, const struct nk_sampled *t)
{
    json_t *e = prob_json(v, t->id, t->logprob), *top = json_array();

    for (int i = 0; i < t->n_top; i++)
        json_array_append_new(top, prob_json(v, t->top[i].id, t->top[i].logprob));
    json_object_set_new(e, "top", top);
    return e;
}

/* ids from position pos on, in chunks as a worker makes them; the last one's logits. */
static const float *run(nk_stage *s, const int32_t *ids, int n, int pos, int chunk)
{
    for (int at = 0; at < n; at += chunk) {
        int k = n - at < chunk ? n - at : chunk;
        int32_t *position = calloc((size_t)k, sizeof *position),
                *seq = calloc((size_t)k, sizeof *seq);
        int8_t *want = calloc((size_t)k, 1);

        for (int i = 0; i < k; i++)
            position[i] = pos + at + i, want[i] = told != NULL;
        want[k - 1] = 1;
        TRY(nk_stage_run(
            s,
            &(struct nk_stage_batch){
                .n_tokens = k, .ids = ids + at, .pos = position, .seq = seq, .want = want },
            &err));
        for (int i = 0; told && i < k && at + i + 1 < n; i++) {
            struct nk_sampled t = { .id = ids[at + i + 1] };

            TRY(nk_logits_look(nk_stage_logits(s, i), nk_stage_info(s)->n_vocab, n_told, &t, &err));
            json_array_append_new(told, sampled_json(vocab, &t));
        }
        free(position);
        free(seq);
        free(want);
        if (at + k == n)
            return nk_stage_logits(s, k - 1);
    }
    return NULL;
}

static json_t *prob_json(const nk_vocab *v, int32_t id, float logprob)
{
    struct nk_buf piece = NK_BUF_INIT(1 << 16);
    json_t *bytes = json_array(), *o = json_object();

    TRY(nk_vocab_piece(v, id, true, &piece, &err));
    for (size_t i = 0; i < piece.size; i++)
        json_array_append_new(bytes, json_integer((unsigned char)piece.data[i]));
    nk_buf_release(&piece);
    json_object_set_new(o, "id", json_integer(id));
    json_object_set_new(o, "bytes", bytes);
    json_object_set_new(o, "logprob", isfinite(logprob) ? json_real((double)logprob) : json_null());
    return o;
}

int main(int argc, char **argv)
{
    struct nk_gen_args a = nk_gen_args_default();
    const char *prompt = NULL;
    int64_t chunk = 64, threads = 1, ctx = 0, prompt_logprobs = -1;
    const struct nk_arg args[] = {
        { "prompt", 'p', NK_ARG_STRING, &prompt, "TEXT", "the prompt", 0, 0 },
        { "logprobs", 0, NK_ARG_INT, &a.logprobs, "K", "alternatives", 0, NK_LOGPROBS_MAX },
        { "prompt-logprobs", 0, NK_ARG_INT, &prompt_logprobs, "K", "alternatives", 0,
          NK_LOGPROBS_MAX },
        { "chunk", 0, NK_ARG_INT, &chunk, "ROWS", "rows of a prefill chunk (64)", 1, 512 },
        { "threads", 0, NK_ARG_INT, &threads, "N", "(1)", 1, 64 },
        { "ctx", 0, NK_ARG_INT, &ctx, "N", "(the model's)", 0, 1 << 20 },
        NK_GEN_ARGS(a),
        { 0 },
    };
    const struct nk_command cmd = { "whole MODEL.gguf --prompt TEXT ...", "", args, 1, 1 };
    struct nk_gen_opts o;
    struct nk_stage_opts so = nk_stage_opts_default();
    struct nk_buf text = NK_BUF_INIT(1 << 24);
    struct nk_tokens tokens;
    json_t *result = json_object(), *ids = json_array(), *logprobs = json_array();
    const char *finish = NULL;
    const float *logits;
    nk_stage *stage;
    nk_sampler *sampler;
    nk_detok *detok;
    int first, n_ctx, pos, n_predict;

    nk_log_init();
    TRY(nk_args_parse(argc, argv, &cmd, &first, &err));
    nk_stage_global_init(NULL);
    TRY(nk_gen_args_opts(&a, &o, &err));
    so.whole_model = true;
    so.n_seq_max = 1;
    so.n_ctx = (int)ctx;
    so.n_threads = so.n_threads_batch = (int)threads;
    TRY(nk_stage_open(&stage, argv[first], &so, &err));
    vocab = nk_vocab_borrow(nk_stage_vocab(stage));
    n_ctx = nk_stage_info(stage)->n_ctx;
    TRY(nk_vocab_tokenize(vocab, prompt, strlen(prompt), true, false, 1 << 20, NULL, &tokens,
                          &err));
    TRY(nk_sampler_new(&sampler, nk_stage_vocab(stage), &o.sampling, n_ctx, nk_chance_system(),
                       &err));
    TRY(nk_detok_new(&detok, vocab, o.stop, o.n_stop, o.special, &err));
    for (size_t i = 0; i < tokens.n; i++)
        nk_sampler_prompt(sampler, tokens.ids[i]);
    n_predict =
        o.n_predict && o.n_predict < n_ctx - (int)tokens.n ? o.n_predict : n_ctx - (int)tokens.n;
    told = prompt_logprobs >= 0 ? json_array() : NULL;
    n_told = (int)prompt_logprobs;
    logits = run(stage, tokens.ids, (int)tokens.n, 0, (int)chunk);
    if (told)
        json_object_set_new(result, "prompt_logprobs", told);
    told = NULL;
    pos = (int)tokens.n;
    while (!finish) {
        struct nk_sampled t;
        bool stopped = false;

        TRY(nk_sampler_sample(sampler, logits, o.n_logprobs, &t, &err));
        if (nk_vocab_is_eog(vocab, t.id)) {
            if (o.special)
                TRY(nk_detok_add(detok, t.id, &text, &stopped, &err));
            finish = "eog";
            break;
        }
        json_array_append_new(ids, json_integer(t.id));
        if (o.n_logprobs >= 0) {
            json_array_append_new(logprobs, sampled_json(vocab, &t));
        }
        TRY(nk_detok_add(detok, t.id, &text, &stopped, &err));
        if (stopped)
            finish = "stop";
        else if ((int)json_array_size(ids) == n_predict)
            finish = "length";
        else
            logits = run(stage, &t.id, 1, pos++, 1);
    }
    if (strcmp(finish, "stop"))
        TRY(nk_detok_finish(detok, &text, &err));
    json_object_set_new(result, "text", json_stringn(nk_buf_str(&text), text.size));
    json_object_set_new(result, "ids", ids);
    json_object_set_new(result, "finish", json_string(finish));
    json_object_set_new(result, "stop",
                        nk_detok_stop(detok) ? json_string(nk_detok_stop(detok)) : json_null());
    json_object_set_new(result, "seed", json_integer(nk_sampler_seed(sampler)));
    json_object_set_new(result, "n_prompt", json_integer((json_int_t)tokens.n));
    if (o.n_logprobs >= 0)
        json_object_set(result, "logprobs", logprobs);
    json_dumpf(result, stdout, JSON_COMPACT | JSON_REAL_PRECISION(12));
    printf("\n");
    json_decref(logprobs);
    json_decref(result);
    nk_detok_free(detok);
    nk_sampler_free(sampler);
    nk_vocab_close(vocab);
    nk_stage_close(stage);
    free(tokens.ids);
    nk_buf_release(&text);
    nk_gen_args_release(&a);
    return 0;
}
