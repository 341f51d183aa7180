#include "simulation/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/chance.h"
#include "text/detok.h"
#include "text/sampler.h"
#include "text/vocab.h"

struct model_kind model_kind;
int model_n_unlike;

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* ---- rows: six floats of ten bits, which f16 holds, too ---- */

static void row_write(float *row, uint64_t x)
{
    for (int i = 0; i < MODEL_WIDTH; i++)
        row[i] = (float)(x >> 10 * i & 1023);
}

static uint64_t row_read(const float *row)
{
    uint64_t x = 0;

    for (int i = 0; i < MODEL_WIDTH; i++)
        x |= (uint64_t)row[i] << 10 * i;
    return x;
}

/* ---- layers ---- */

struct sequence {
    int n;
    uint64_t kv[MODEL_LAYERS][MODEL_SEQ_MAX + 1];
};

/* One position through layers [begin, end); it was computed with so many others. */
static uint64_t through(struct sequence *s, int begin, int end, int pos, uint64_t x, int n_together)
{
    uint64_t shape = model_kind.shapes ? (uint64_t)n_together << 48 : 0;

    for (int l = begin; l < end; l++) {
        uint64_t before = pos ? s->kv[l][pos - 1] : 0;

        s->kv[l][pos] = mix(before * 3 + (x << 1) + shape + (uint64_t)l);
        x = mix(s->kv[l][pos] + 77) & ((1ull << 60) - 1);
    }
    s->n = pos + 1;
    return x;
}

static uint64_t embed(int32_t id)
{
    return mix((uint64_t)id + 1000) & ((1ull << 60) - 1);
}

/* ---- stage.h ---- */

struct nk_stage {
    struct nk_stage_info info;
    struct sequence seqs[MODEL_SEQS];
    float rows[MODEL_BATCH * MODEL_SEQS][MODEL_VOCAB];
    float packed[MODEL_BATCH * MODEL_SEQS * MODEL_WIDTH];
};

struct nk_stage_opts nk_stage_opts_default(void)
{
    return (struct nk_stage_opts){ .n_ctx = MODEL_CTX,
                                   .n_seq_max = MODEL_SEQS,
                                   .n_batch = MODEL_BATCH };
}

int nk_stage_open(nk_stage **out, const char *path, const struct nk_stage_opts *opts,
                  struct nk_error *err)
{
    nk_stage *s = calloc(1, sizeof *s);
    struct nk_stage_info *i = &s->info;

    (void)err;
    NK_ASSERT(s && sscanf(path, "%d-%d", &i->layer_begin, &i->layer_end) == 2);
    strcpy(i->model_sha256, MODEL_SHA256);
    strcpy(i->model_name, "hash");
    strcpy(i->device, "CPU");
    strcpy(i->backend, "CPU");
    strcpy(i->llama_version, "1");
    strcpy(i->ggml_version, "1");
    strcpy(i->cache_type_k, "f16");
    strcpy(i->cache_type_v, "f16");
    i->layer_count = MODEL_LAYERS;
    i->is_first = i->layer_begin == 0;
    i->is_last = i->layer_end == MODEL_LAYERS;
    i->n_embd = MODEL_WIDTH;
    i->n_vocab = MODEL_VOCAB;
    i->n_ctx = i->n_ctx_train = MODEL_CTX;
    i->n_seq_max = MODEL_SEQS;
    i->n_batch = MODEL_BATCH;
    i->n_ctx_seq = MODEL_SEQ_MAX;
    i->can_rollback = !model_kind.no_rollback;
    i->one_sequence_per_run = opts->separate_kv;
    i->n_threads = 1;
    *out = s;
    return 0;
}

void nk_stage_close(nk_stage *s)
{
    free(s);
}

const struct nk_stage_info *nk_stage_info(const nk_stage *s)
{
    return &s->info;
}

const struct llama_vocab *nk_stage_vocab(const nk_stage *s)
{
    return (const struct llama_vocab *)s; /* nothing looks into it */
}

int nk_stage_run(nk_stage *s, const struct nk_stage_batch *b, struct nk_error *err)
{
    int together[MODEL_SEQS] = { 0 };

    for (int i = 0; i < b->n_tokens; i++) {
        struct sequence *q = &s->seqs[b->seq[i]];

        if (!together[b->seq[i]]++) {
            if (b->pos[i] > q->n)
                return nk_fail(err, NK_E_OUT_OF_RANGE, "gap", "position %d after %d", b->pos[i],
                               q->n);
            if (b->pos[i] < q->n && b->pos[i] && model_kind.no_rollback)
                return nk_fail(err, NK_E_OUT_OF_RANGE, "no_rollback", "position %d after %d",
                               b->pos[i], q->n);
        }
    }
    for (int i = 0; i < b->n_tokens; i++) {
        uint64_t x = b->rows ? row_read(b->rows + (size_t)i * MODEL_WIDTH) : embed(b->ids[i]);

        x = through(&s->seqs[b->seq[i]], s->info.layer_begin, s->info.layer_end, b->pos[i], x,
                    together[b->seq[i]]);
        row_write(s->rows[i], x);
        row_write(s->packed + i * MODEL_WIDTH, x);
    }
    return 0;
}

const float *nk_stage_rows(const nk_stage *s)
{
    return s->packed;
}

float *nk_stage_logits(nk_stage *s, int token_idx)
{
    return s->rows[token_idx];
}

int nk_stage_seq_copy(nk_stage *s, int seq_src, int seq_dst, struct nk_error *err)
{
    (void)err;
    s->seqs[seq_dst] = s->seqs[seq_src];
    return 0;
}

void nk_stage_seq_clear(nk_stage *s, int seq)
{
    s->seqs[seq].n = 0;
}

int nk_stage_seq_length(const nk_stage *s, int seq)
{
    return s->seqs[seq].n;
}

size_t nk_stage_state_size(nk_stage *s, int seq)
{
    (void)seq;
    return s->info.can_rollback ? 0 : sizeof(struct sequence);
}

int nk_stage_state_save(nk_stage *s, int seq, void *out, size_t size, struct nk_error *err)
{
    (void)err;
    memcpy(out, &s->seqs[seq], size);
    return 0;
}

int nk_stage_state_restore(nk_stage *s, int seq, int length, const void *data, size_t size,
                           struct nk_error *err)
{
    (void)err;
    memcpy(&s->seqs[seq], data, size);
    NK_ASSERT(s->seqs[seq].n == length);
    return 0;
}

const float *nk_stage_pooled(nk_stage *s, int seq)
{
    (void)s, (void)seq;
    return NULL;
}

int nk_stage_file_check(const nk_stage *s, struct nk_error *err)
{
    (void)s, (void)err;
    return 0;
}

void nk_stage_cancel(nk_stage *s)
{
    (void)s;
}

void nk_stage_place_threads(const nk_stage *s)
{
    (void)s;
}

uint64_t nk_stage_use_huge_pages(const nk_stage *s, const atomic_bool *stop)
{
    (void)s, (void)stop;
    return 0;
}

int nk_device_list(struct nk_device *out, int max)
{
    (void)out, (void)max;
    return 0;
}

/* ---- vocab.h: id 0 ends a generation, the others are a letter each, some of two bytes ---- */

nk_vocab *nk_vocab_borrow(const struct llama_vocab *vocab)
{
    return (nk_vocab *)(uintptr_t)vocab;
}

void nk_vocab_close(nk_vocab *v)
{
    (void)v;
}

const struct llama_vocab *nk_vocab_llama(const nk_vocab *v)
{
    return (const struct llama_vocab *)v;
}

bool nk_vocab_is_eog(const nk_vocab *v, int32_t id)
{
    (void)v;
    return id == 0;
}

/* Two of them are halves of a character, which the detokenizer holds back until it is whole. */
int nk_vocab_piece(const nk_vocab *v, int32_t id, bool special, struct nk_buf *out,
                   struct nk_error *err)
{
    char c = (char)('a' + id);

    (void)v, (void)special;
    if (id == 1)
        c = (char)0xc3;
    if (id == 2)
        c = (char)0xa4;
    return id ? nk_buf_add(out, &c, 1, err) : 0;
}

/* ---- sampler.h ---- */

struct nk_sampler {
    uint32_t seed;
    uint64_t state; /* of all that it was shown and has drawn */
};

int nk_sampler_new(nk_sampler **out, const struct llama_vocab *vocab,
                   const struct nk_sampling *sampling, int n_ctx, struct nk_chance *chance,
                   struct nk_error *err)
{
    nk_sampler *s = calloc(1, sizeof *s);

    (void)vocab, (void)n_ctx;
    NK_ASSERT(s);
    s->seed = sampling->seed;
    while (s->seed == NK_SEED_RANDOM)
        nk_chance_fill(chance, &s->seed, sizeof s->seed, err);
    s->state = mix(s->seed);
    *out = s;
    return 0;
}

void nk_sampler_free(nk_sampler *s)
{
    free(s);
}

uint32_t nk_sampler_seed(const nk_sampler *s)
{
    return s->seed;
}

void nk_sampler_prompt(nk_sampler *s, int32_t id)
{
    s->state = mix(s->state + (uint64_t)id + 5);
}

static int32_t chosen(const nk_sampler *s, const float *logits)
{
    uint64_t h = mix(s->state ^ row_read(logits));

    return h % 41 == 0 ? 0 : 1 + (int32_t)(h / 41 % (MODEL_VOCAB - 1));
}

static void accept_id(nk_sampler *s, int32_t id)
{
    s->state = mix(s->state * 5 + (uint64_t)id);
}

void nk_sampler_hurry(nk_sampler *s, bool hurry)
{
    (void)s, (void)hurry;
}

void nk_sampler_cancel_by(nk_sampler *s, const atomic_bool *cancelled)
{
    (void)s, (void)cancelled;
}

int nk_logits_look(const float *logits, int n_vocab, int n_top, struct nk_sampled *out,
                   struct nk_error *err)
{
    (void)logits, (void)n_vocab, (void)n_top, (void)out, (void)err;
    NK_ASSERT(!"nobody asks for the prompt's log-probabilities");
    return 0;
}

int nk_sampler_sample(nk_sampler *s, const float *logits, int n_logprobs, struct nk_sampled *out,
                      struct nk_error *err)
{
    (void)n_logprobs, (void)err;
    *out = (struct nk_sampled){ .id = chosen(s, logits) };
    accept_id(s, out->id);
    return 0;
}

int nk_sampler_force(nk_sampler *s, const float *logits, int32_t id, bool *same,
                     struct nk_error *err)
{
    (void)err;
    *same = chosen(s, logits) == id;
    model_n_unlike += !*same;
    accept_id(s, id);
    return 0;
}

/* ---- undisturbed ---- */

static void say(struct model_said *out, struct nk_buf *text)
{
    NK_ASSERT(out->text_size + text->size < sizeof out->text);
    if (text->size)
        memcpy(out->text + out->text_size, text->data, text->size);
    out->text_size += text->size;
    nk_buf_reset(text);
}

void model_undisturbed(struct model_said *out, const struct model_asked *a)
{
    static struct sequence q;
    struct nk_sampling sampling = { .seed = a->seed };
    struct nk_sampler *sampler;
    struct nk_buf text;
    nk_detok *detok;
    bool stopped = false;
    int pos = 0, n = a->n_ids;
    uint64_t x = 0;

    *out = (struct model_said){ .n = 0 };
    q.n = 0;
    nk_buf_init(&text, MODEL_TEXT_MAX);
    nk_sampler_new(&sampler, NULL, &sampling, 0, NULL, NULL);
    NK_ASSERT(!nk_detok_new(&detok, NULL, &a->stop, a->stop != NULL, false, NULL));
    for (int i = 0; i < a->n_ids; i++)
        nk_sampler_prompt(sampler, a->ids[i]);
    while (pos < n) {
        int rows = n - pos < a->chunk ? n - pos : a->chunk;

        for (int i = 0; i < rows; i++)
            x = through(&q, 0, MODEL_LAYERS, pos + i, embed(a->ids[pos + i]), rows);
        pos += rows;
    }
    for (;;) {
        float row[MODEL_WIDTH];
        struct nk_sampled t;

        row_write(row, x);
        nk_sampler_sample(sampler, row, -1, &t, NULL);
        if (t.id == 0) {
            nk_detok_finish(detok, &text, NULL);
            break;
        }
        nk_detok_add(detok, t.id, &text, &stopped, NULL);
        out->ids[out->n++] = t.id;
        if (stopped)
            break;
        if (out->n == a->n_predict) {
            nk_detok_finish(detok, &text, NULL);
            break;
        }
        x = through(&q, 0, MODEL_LAYERS, pos++, embed(t.id), 1);
    }
    say(out, &text);
    nk_buf_release(&text);
    nk_detok_free(detok);
    nk_sampler_free(sampler);
}
