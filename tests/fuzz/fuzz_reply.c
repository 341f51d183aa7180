/* layer: chain
 * wraps: nk_call_start nk_call_send nk_call_send_pb nk_call_send_done nk_call_cancel
 * wraps: nk_call_cancel_with nk_call_ending nk_call_is_heard
 *
 * What workers answer to the chain: to a generation (resumed where it was lost), to a look at all
 * workers, to texts that become vectors. The chain is the real one with its net thread; only the
 * calls end here, and their messages come from the input.
 *
 * First byte: what is asked. Then events: one byte that says what happens to the oldest call, and
 * of a message two bytes of size (the low one first) and its bytes. Calls that are left over end
 * well. Whatever workers say, what is asked for is answered exactly once, with what keeps to the
 * rules of chain.h or with an error that names a worker. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "chain/chain_int.h"
#include "chain/embed.h"
#include "fuzz/fuzz.h"
#include "unit/settle.h"
#include "unit/virtual_clock.h"

const struct fuzz_ceiling fuzz_ceiling = { .base = 60000, .per_byte = 300 };

#define SHA "1f0e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0"

/* ---- calls ---- */

struct fake_call {
    const struct nk_call_handlers *handlers;
    void *user;
    enum nk_ending ending;
    bool cancelled;
    STAILQ_ENTRY(fake_call) link;
};

/* Of the net thread, but while it stands still. */
static STAILQ_HEAD(, fake_call) calls = STAILQ_HEAD_INITIALIZER(calls);
static const uint8_t *at, *end;

int __wrap_nk_call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                         const struct nk_call_handlers *handlers, void *user, struct nk_error *err);
int __wrap_nk_call_send(nk_call *c, const void *data, size_t size, struct nk_error *err);
int __wrap_nk_call_send_pb(nk_call *c, const ProtobufCMessage *msg, struct nk_error *err);
void __wrap_nk_call_send_done(nk_call *c);
void __wrap_nk_call_cancel(nk_call *c);
void __wrap_nk_call_cancel_with(nk_call *c, const ProtobufCMessage *msg);
enum nk_ending __wrap_nk_call_ending(const nk_call *c);
bool __wrap_nk_call_is_heard(const nk_call *c);

int __wrap_nk_call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                         const struct nk_call_handlers *handlers, void *user, struct nk_error *err)
{
    struct fake_call *c = calloc(1, sizeof *c);

    (void)path, (void)deadline_ms, (void)err;
    NK_ASSERT(c && ch);
    c->handlers = handlers;
    c->user = user;
    STAILQ_INSERT_TAIL(&calls, c, link);
    *out = (nk_call *)(void *)c;
    return 0;
}

int __wrap_nk_call_send(nk_call *c, const void *data, size_t size, struct nk_error *err)
{
    (void)c, (void)data, (void)size, (void)err;
    return 0;
}

int __wrap_nk_call_send_pb(nk_call *c, const ProtobufCMessage *msg, struct nk_error *err)
{
    (void)c, (void)msg, (void)err;
    return 0;
}

void __wrap_nk_call_send_done(nk_call *c)
{
    (void)c;
}

void __wrap_nk_call_cancel(nk_call *c)
{
    ((struct fake_call *)(void *)c)->cancelled = true;
}

void __wrap_nk_call_cancel_with(nk_call *c, const ProtobufCMessage *msg)
{
    (void)msg;
    __wrap_nk_call_cancel(c);
}

enum nk_ending __wrap_nk_call_ending(const nk_call *c)
{
    return ((const struct fake_call *)(const void *)c)->ending;
}

bool __wrap_nk_call_is_heard(const nk_call *c)
{
    (void)c;
    return false;
}

static void end_call(struct fake_call *c, enum nk_ending ending, const struct nk_error *status)
{
    STAILQ_REMOVE(&calls, c, fake_call, link);
    c->ending = ending;
    if (c->handlers->end)
        c->handlers->end((nk_call *)(void *)c, c->user, status);
    free(c);
}

/* A message as large as it is allocated. */
static void say(struct fake_call *c, const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);

    NK_ASSERT(copy);
    if (size)
        memcpy(copy, data, size);
    c->handlers->message((nk_call *)(void *)c, c->user, (struct nk_bytes){ copy, size });
    free(copy);
}

static void happen(struct fake_call *c)
{
    struct nk_error e;
    uint8_t what = *at++;
    size_t size = end - at >= 2 ? (size_t)(at[0] | at[1] << 8) : 0;

    switch (what % 8) {
    case 5:
        nk_fail(&e, NK_E_UNAVAILABLE, "peer_gone", "the connection broke");
        end_call(c, NK_ENDING_LOST, &e);
        return;
    case 6:
        nk_fail(&e, NK_E_PRECONDITION, "gap", "127.0.0.1:5532 has a gap");
        end_call(c, NK_ENDING_STATUS, &e);
        return;
    case 7:
        end_call(c, NK_ENDING_OK, NULL);
        return;
    default:
        at += end - at >= 2 ? 2 : end - at;
        size = size < (size_t)(end - at) ? size : (size_t)(end - at);
        at += size;
        say(c, at - size, size);
    }
}

/* [net thread] All that happens until no call is left. */
static void run_calls(void *arg)
{
    (void)arg;
    while (!STAILQ_EMPTY(&calls)) {
        struct fake_call *c = STAILQ_FIRST(&calls);
        struct nk_error e;

        if (c->cancelled) {
            nk_fail(&e, NK_E_CANCELLED, "cancelled", "it was cancelled");
            end_call(c, NK_ENDING_HERE, &e);
        } else if (at < end) {
            happen(c);
        } else {
            end_call(c, NK_ENDING_OK, NULL);
        }
    }
}

/* ---- the chain ---- */

static struct virtual_clock stands_still;

static nk_chain *chain(void)
{
    static nk_chain *c;
    struct nk_chain_opts opts = { .clock = &stands_still.clock };
    struct nk_cluster *cluster;
    struct nk_error err;

    if (c)
        return c;
    virtual_clock_init(&stands_still);
    cluster = calloc(1, sizeof *cluster);
    NK_ASSERT(cluster);
    memcpy(cluster->model_id, "tiny", 5);
    memcpy(cluster->model_sha256, SHA, sizeof SHA);
    cluster->n_workers = 2;
    for (int i = 0; i < 2; i++) {
        struct nk_cluster_worker *w = &cluster->workers[i];

        memcpy(w->id, i ? "cellar" : "attic\0", 7);
        memcpy(w->address, i ? "127.0.0.1:5532" : "127.0.0.1:5531", 15);
        w->layer_begin = 4 * i;
        w->layer_end = 4 * i + 4;
    }
    NK_ASSERT(!nk_chain_open(&c, cluster, &opts, &err));
    free(cluster);
    fuzz_prepared();
    return c;
}

static void names_worker(const struct nk_error *e)
{
    NK_ASSERT(e->code && e->reason[0] && (strstr(e->msg, "attic") || strstr(e->msg, "cellar")));
}

/* ---- a generation ---- */

static const int32_t prompt[] = { 1, 2, 3 };
enum { N_PROMPT = 3, N_PREDICT = 4, N_TOP = 2, LOSSES_MAX = 3 };

struct heard {
    int n_tokens, n_prompted, n_prefilled, n_opened, n_done;
    bool ok, lost;
    nk_gen *g;
};

static void on_opened(void *user)
{
    struct heard *h = user;

    h->n_opened++;
    NK_ASSERT(!h->n_done);
}

static void on_token(void *user, const struct nk_gen_token *t)
{
    struct heard *h = user;
    size_t bad;

    NK_ASSERT(h->n_opened && !h->n_done && t->index == h->n_tokens && t->id >= 0);
    NK_ASSERT(t->index < N_PREDICT && t->n_top <= N_TOP && t->text);
    NK_ASSERT(nk_utf8_valid(t->text, t->text_size, &bad));
    h->n_tokens++;
}

static void on_prompted(void *user, const struct nk_gen_token *t)
{
    struct heard *h = user;

    NK_ASSERT(!h->n_tokens && t->index == ++h->n_prompted && t->index < N_PROMPT);
    NK_ASSERT(t->id == prompt[t->index] && t->n_top <= N_TOP);
}

static void on_prefilled(void *user, int n_done, int n_reused)
{
    struct heard *h = user;

    NK_ASSERT(!h->n_tokens && n_done >= h->n_prefilled && n_done <= N_PROMPT && n_reused >= 0);
    h->n_prefilled = n_done;
}

static void on_replaying(void *user, const char *id, int done, int total)
{
    (void)user;
    NK_ASSERT(strlen(id) < 64 && done >= 0 && done <= total);
}

static void on_done(void *user, const struct nk_gen_stats *s, const struct nk_error *err)
{
    struct heard *h = user;
    size_t bad;

    NK_ASSERT(++h->n_done == 1 && s->n_generated == h->n_tokens);
    NK_ASSERT(s->n_stages >= 0 && s->n_stages <= 2 &&
              strlen(s->stop_string) < sizeof s->stop_string);
    NK_ASSERT(nk_utf8_valid(s->tail, s->tail_size, &bad));
    for (int i = 0; i < s->n_stages; i++)
        NK_ASSERT(nk_utf8_valid(s->stages[i].worker_id, strlen(s->stages[i].worker_id), &bad));
    if (err)
        names_worker(err);
    else
        NK_ASSERT(s->finish != NK_FINISH_NONE);
    h->ok = !err;
}

static void generate(uint8_t options)
{
    static const struct nk_gen_handlers handlers = { .opened = on_opened,
                                                     .token = on_token,
                                                     .prompted = on_prompted,
                                                     .prefilled = on_prefilled,
                                                     .replaying = on_replaying,
                                                     .done = on_done };
    struct nk_gen_opts o = nk_gen_opts_default();
    struct heard h = { 0 };
    nk_chain *c = chain();
    struct nk_error err;

    o.ids = prompt;
    o.n_ids = N_PROMPT;
    o.n_predict = N_PREDICT;
    o.n_logprobs = options & 4 ? N_TOP : -1;
    o.n_prompt_logprobs = options & 8 ? N_TOP : -1;
    o.progress = options & 16;
    o.deterministic = options & 32;
    if (options & 64)
        o.hold_ms = 0;
    NK_ASSERT(!nk_gen_start(&h.g, c, &o, &handlers, &h, &err));
    for (int losses = 0;; losses++) {
        nk_gen *next;

        run_on(c->net, run_calls, NULL);
        NK_ASSERT(h.n_done == 1);
        if (h.ok || !nk_gen_resumable(h.g) || losses == LOSSES_MAX)
            break;
        NK_ASSERT(nk_gen_blamed(h.g) >= 0 && nk_gen_blamed(h.g) < 2);
        h.n_done = 0;
        if (nk_gen_resume(&next, c, h.g, &handlers, &h, &err)) {
            h.n_done = 1;
            break;
        }
        nk_gen_free(h.g);
        h.g = next;
    }
    nk_gen_free(h.g);
}

/* ---- a look ---- */

static void on_looked(void *user, struct nk_chain_report *r)
{
    int *n = user;
    size_t bad;

    ++*n;
    NK_ASSERT(r->n_workers == 2 && r->ok == !r->err.code);
    if (!r->ok)
        names_worker(&r->err);
    for (int i = 0; i < 2; i++) {
        const struct nk_worker_report *w = &r->workers[i];
        const char *const texts[] = { w->worker_id, w->model_id,      w->architecture,
                                      w->device,    w->llama_version, w->device_description };

        NK_ASSERT(w->rc == w->err.code && (w->answered || w->rc));
        NK_ASSERT(!r->ok || !w->rc);
        NK_ASSERT(w->n_ctx >= 0 && w->n_embd >= 0 && w->n_vocab >= 0);
        for (size_t k = 0; k < sizeof texts / sizeof texts[0]; k++) {
            NK_ASSERT(nk_utf8_valid(texts[k], strlen(texts[k]), &bad));
            for (const char *t = texts[k]; *t; t++)
                NK_ASSERT((unsigned char)*t >= 32);
        }
    }
    nk_chain_report_want_deterministic(r);
    NK_ASSERT(r->ok == !r->err.code);
    free(r);
}

static void look(void)
{
    nk_chain *c = chain();
    int n = 0;
    struct nk__look_opts o = { .timeout_ms = 1000, .n_rounds = 2, .done = on_looked, .user = &n };
    struct nk__look *k;
    struct nk_error err;

    NK_ASSERT(!nk__look_start(&k, c, &o, &err));
    run_on(c->net, run_calls, NULL);
    NK_ASSERT(n == 1);
}

/* ---- vectors ---- */

struct vectors {
    int n, n_done;
    bool came[2], ok;
};

static void on_vector(void *user, size_t text, const float *data, size_t n)
{
    struct vectors *v = user;

    NK_ASSERT(text < 2 && !v->came[text] && n && !v->n_done);
    v->came[text] = true;
    v->n++;
    for (size_t i = 0; i < n; i++)
        NK_ASSERT(isfinite(data[i]));
}

static void on_embedded(void *user, const struct nk_error *err)
{
    struct vectors *v = user;

    NK_ASSERT(++v->n_done == 1);
    if (err)
        names_worker(err);
    else
        NK_ASSERT(v->n == 2);
}

static void embed(void)
{
    static const struct nk_embed_handlers handlers = { .vector = on_vector, .done = on_embedded };
    static const struct nk_embed_text texts[] = { { prompt, 2 }, { prompt, 3 } };
    struct nk_embed_opts o = { .texts = texts, .n_texts = 2, .pooling = "mean" };
    struct vectors v = { 0 };
    nk_chain *c = chain();
    struct nk_error err;
    nk_embed *e;

    NK_ASSERT(!nk_embed_start(&e, c, &o, &handlers, &v, &err));
    run_on(c->net, run_calls, NULL);
    NK_ASSERT(v.n_done == 1);
    nk_embed_free(e);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    if (!size || size > 60000)
        return;
    chain();
    at = data + 1;
    end = data + size;
    switch (data[0] % 4) {
    case 2:
        look();
        break;
    case 3:
        embed();
        break;
    default:
        generate(data[0]);
    }
}
