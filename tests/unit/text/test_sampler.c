#include "text/sampler.h"

#include <math.h>

#include "unit/seed.h"
#include "unit/text/text_test.h"

enum { N_STEPS = 200, N_CTX = 512 };

/* Logits as models make them: most near zero, some large; different at each step. */
static void make_logits(struct test_random *r, float *logits, int n)
{
    for (int i = 0; i < n; i++)
        logits[i] = (float)test_below(r, 1000) / 200.0f + (test_below(r, 50) == 0 ? 6.0f : 0.0f);
}

/* Where seeds are drawn from, the same each time. */
static struct seeded chance = {
    .chance = { .fill = seeded_fill },
    .mutex = PTHREAD_MUTEX_INITIALIZER,
};

static nk_sampler *new_sampler(const nk_vocab *v, const struct nk_sampling *p)
{
    struct nk_error err = { 0 };
    nk_sampler *s = NULL;

    if (nk_sampler_new(&s, nk_vocab_llama(v), p, N_CTX, &chance.chance, &err))
        fail_msg("%s", err.msg);
    return s;
}

static void add(struct llama_sampler *chain, struct llama_sampler *part)
{
    llama_sampler_chain_add(chain, part);
}

/* libllama's own chain, written out by hand in the order that the header promises. */
static struct llama_sampler *reference_chain(const nk_vocab *v, const struct nk_sampling *p)
{
    static const char *breakers[] = { "\n", ":", "\"", "*" };
    const struct llama_vocab *vocab = nk_vocab_llama(v);
    int n = llama_vocab_n_tokens(vocab), n_bias = 0;
    struct llama_sampler *c = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_logit_bias bias[64];

    for (int i = 0; i < p->n_logit_bias; i++)
        bias[n_bias++] = (llama_logit_bias){ p->logit_bias[i].id, p->logit_bias[i].bias };
    if (p->ignore_eos)
        for (int i = 0; i < n; i++)
            if (llama_vocab_is_eog(vocab, i))
                bias[n_bias++] = (llama_logit_bias){ i, -INFINITY };
    add(c, llama_sampler_init_logit_bias(n, n_bias, bias));
    add(c,
        llama_sampler_init_penalties(n, p->penalty_last_n < 0 ? N_CTX : p->penalty_last_n,
                                     p->repeat_penalty, p->frequency_penalty, p->presence_penalty));
    add(c, llama_sampler_init_dry(vocab, p->dry_multiplier, p->dry_base, p->dry_allowed_length,
                                  p->dry_penalty_last_n < 0 ? N_CTX : p->dry_penalty_last_n,
                                  breakers, 4));
    if (p->temperature == 0) {
        add(c, llama_sampler_init_greedy());
    } else if (p->mirostat) {
        add(c, llama_sampler_init_temp(p->temperature));
        add(c, p->mirostat == 1
                   ? llama_sampler_init_mirostat(n, p->seed, p->mirostat_tau, p->mirostat_eta, 100)
                   : llama_sampler_init_mirostat_v2(p->seed, p->mirostat_tau, p->mirostat_eta));
    } else {
        if (p->top_n_sigma > 0)
            add(c, llama_sampler_init_top_n_sigma(p->top_n_sigma));
        add(c, llama_sampler_init_top_k(p->top_k));
        add(c, llama_sampler_init_typical(p->typical_p, 0));
        add(c, llama_sampler_init_top_p(p->top_p, 0));
        add(c, llama_sampler_init_min_p(p->min_p, 0));
        if (p->xtc_probability > 0)
            add(c, llama_sampler_init_xtc(p->xtc_probability, p->xtc_threshold, 0, p->seed));
        add(c,
            llama_sampler_init_temp_ext(p->temperature, p->dynatemp_range, p->dynatemp_exponent));
        add(c, llama_sampler_init_dist(p->seed));
    }
    return c;
}

/* One step as llama.cpp's tools do it. */
static int32_t reference_sample(struct llama_sampler *chain, struct llama_sampler *grammar,
                                const float *logits, int n)
{
    llama_token_data *data = malloc((size_t)n * sizeof *data);
    llama_token_data_array c;
    int32_t id = -1;

    for (int attempt = 0; attempt < 2; attempt++) {
        for (int i = 0; i < n; i++)
            data[i] = (llama_token_data){ i, logits[i], 0 };
        c = (llama_token_data_array){ data, (size_t)n, -1, false };
        if (attempt)
            llama_sampler_apply(grammar, &c);
        llama_sampler_apply(chain, &c);
        assert_true(c.selected >= 0);
        id = c.data[c.selected].id;
        if (!grammar)
            break;
        data[0] = (llama_token_data){ id, 1, 0 };
        c = (llama_token_data_array){ data, 1, -1, false };
        if (attempt == 0) {
            llama_sampler_apply(grammar, &c);
            if (data[0].logit != -INFINITY)
                break;
        }
    }
    if (grammar)
        llama_sampler_accept(grammar, id);
    llama_sampler_accept(chain, id);
    free(data);
    return id;
}

static const struct nk_logit_bias biases[] = {
    { 5, 4.5f }, { 17, -INFINITY }, { 300, 3.0f }, { 301, -100.0f }
};
static struct nk_logit_bias lowering[40]; /* ids 0, 6, 12, ...; filled by settings() */
static const char abc_grammar[] =
    "root ::= word (\" \" word)*\nword ::= [a-f]+ | \"the\" | \"in\"\n";

/* Each setting alone and some together. */
static int settings(struct nk_sampling *out)
{
    const struct nk_sampling d = nk_sampling_default();
    struct nk_sampling off = d;
    int n = 0;

    for (int i = 0; i < 40; i++)
        lowering[i] = (struct nk_logit_bias){ i * 6, i % 3 ? -1.5f : -INFINITY };
    off.temperature = 1;
    off.top_k = 0;
    off.top_p = 1;
    off.min_p = 0;
    off.seed = 1234;
#define WITH(base, ...)                                                                            \
    do {                                                                                           \
        struct nk_sampling s = base;                                                               \
        s.seed = 1234;                                                                             \
        __VA_ARGS__;                                                                               \
        out[n++] = s;                                                                              \
    } while (0)
    WITH(d, (void)s);
    WITH(off, (void)s);
    WITH(off, s.temperature = 0);
    WITH(off, s.temperature = 0.3f);
    WITH(off, s.temperature = 2.5f);
    WITH(off, s.top_k = 1);
    WITH(off, s.top_k = 7);
    WITH(off, s.top_k = 100000);
    WITH(off, s.top_p = 0.5f);
    WITH(off, s.top_p = 0);
    WITH(off, s.min_p = 0.2f);
    WITH(off, s.min_p = 1);
    WITH(off, s.typical_p = 0.4f);
    WITH(off, s.typical_p = 0);
    WITH(off, s.top_n_sigma = 0.7f);
    WITH(d, s.xtc_probability = 0.7f; s.xtc_threshold = 0.02f);
    WITH(off, s.dynatemp_range = 0.6f);
    WITH(d, s.dynatemp_range = 0.7f; s.dynatemp_exponent = 2; s.xtc_probability = 0.4f;
         s.top_n_sigma = 2);
    WITH(off, s.repeat_penalty = 1.3f);
    WITH(off, s.presence_penalty = 1.5f);
    WITH(off, s.frequency_penalty = -0.7f);
    WITH(off, s.repeat_penalty = 1.3f; s.penalty_last_n = -1);
    WITH(off, s.repeat_penalty = 1.3f; s.penalty_last_n = 3);
    WITH(off, s.repeat_penalty = 1.3f; s.penalty_last_n = 0);
    WITH(off, s.dry_multiplier = 0.8f);
    WITH(off, s.dry_multiplier = 2; s.dry_base = 1.2f; s.dry_allowed_length = 1;
         s.dry_penalty_last_n = 20);
    WITH(off, s.mirostat = 1);
    WITH(off, s.mirostat = 2; s.mirostat_tau = 3; s.mirostat_eta = 0.3f);
    WITH(off, s.logit_bias = biases; s.n_logit_bias = 4);
    WITH(off, s.ignore_eos = true);
    WITH(off, s.temperature = 0; s.ignore_eos = true);
    WITH(off, s.temperature = 0; s.logit_bias = lowering; s.n_logit_bias = 40);
    WITH(off, s.temperature = 0; s.logit_bias = biases; s.n_logit_bias = 4);
    WITH(off, s.temperature = 0; s.logit_bias = lowering; s.n_logit_bias = 40;
         s.repeat_penalty = 1.5f);
    WITH(off, s.logit_bias = lowering; s.n_logit_bias = 40; s.ignore_eos = true);
    WITH(off, s.temperature = 0; s.logit_bias = lowering; s.n_logit_bias = 40;
         s.grammar = abc_grammar);
    WITH(off, s.grammar = abc_grammar);
    WITH(off, s.grammar = abc_grammar; s.temperature = 0);
    WITH(d, s.grammar = abc_grammar; s.repeat_penalty = 1.2f);
    WITH(off, s.temperature = 0; s.repeat_penalty = 1.5f; s.logit_bias = biases;
         s.n_logit_bias = 4);
    WITH(d, s.typical_p = 0.9f; s.repeat_penalty = 1.1f; s.presence_penalty = 0.2f;
         s.frequency_penalty = 0.1f; s.dry_multiplier = 0.5f; s.logit_bias = biases;
         s.n_logit_bias = 4; s.ignore_eos = true);
#undef WITH
    return n;
}

static void test_sampler__every_setting_is_libllamas_own_chain(void **state)
{
    static const int kinds[] = { VOCAB_BPE, VOCAB_KJV };
    struct nk_sampling all[64];
    int n_all = settings(all);

    (void)state;
    for (int k = 0; k < 2; k++) {
        nk_vocab *v = test_vocab(kinds[k]);
        int n = nk_vocab_size(v);
        float *logits = malloc((size_t)n * sizeof *logits);

        for (int i = 0; i < n_all; i++) {
            struct nk_sampling p = all[i];
            struct llama_sampler *chain, *grammar = NULL;
            struct test_random r = { 77 + (uint64_t)i };
            nk_sampler *s;

            while (p.n_logit_bias && p.logit_bias[p.n_logit_bias - 1].id >= n)
                p.n_logit_bias--; /* those are not in it */
            s = new_sampler(v, &p);
            chain = reference_chain(v, &p);
            if (p.grammar)
                grammar = llama_sampler_init_grammar(nk_vocab_llama(v), p.grammar, "root");
            for (int32_t id = 10; id < 40; id++) { /* a prompt */
                nk_sampler_prompt(s, id);
                llama_sampler_accept(chain, id);
            }
            for (int step = 0; step < N_STEPS; step++) {
                struct nk_sampled got;
                struct nk_error err = { 0 };
                int32_t expected;

                make_logits(&r, logits, n);
                expected = reference_sample(chain, grammar, logits, n);
                if (nk_sampler_sample(s, logits, -1, &got, &err))
                    fail_msg("setting %d, step %d: %s", i, step, err.msg);
                if (got.id != expected)
                    fail_msg("setting %d, step %d: token %d, libllama chooses %d", i, step, got.id,
                             expected);
                if (p.grammar && nk_vocab_is_eog(v, got.id))
                    break;
            }
            nk_sampler_free(s);
            llama_sampler_free(chain);
            if (grammar)
                llama_sampler_free(grammar);
        }
        free(logits);
        nk_vocab_close(v);
    }
}

/* What a sampler in a hurry leaves for later it chooses as if it had never been in one: nothing is
 * drawn twice. */
static void test_sampler__what_is_left_for_later_becomes_what_it_would_have_been(void **state)
{
    /* The second one takes long for every token: it can be read in hundreds of ways. */
    static const char *const grammars[] = { "root ::= [a-z ]+ [A-Z ]+",
                                            "root ::= ([a-zA-Z ]?){400}" };
    nk_vocab *v = test_vocab(VOCAB_KJV);
    int n = nk_vocab_size(v), n_later[2] = { 0 };
    float *logits = malloc((size_t)n * sizeof *logits);

    (void)state;
    for (int k = 0; k < 2; k++)
        for (int forced = 0; forced < 2; forced++) {
            struct nk_sampling p = nk_sampling_default();
            struct test_random r = { 5 + (uint64_t)k };
            nk_sampler *a, *b;

            p.grammar = grammars[k];
            p.seed = 9;
            a = new_sampler(v, &p);
            b = new_sampler(v, &p);
            for (int step = 0; step < 12; step++) {
                struct nk_sampled one, other;
                struct nk_error err = { 0 };
                bool same = true;
                int rc;

                make_logits(&r, logits, n);
                assert_int_equal(nk_sampler_sample(a, logits, 2, &one, &err), 0);
                nk_sampler_hurry(b, true);
                rc = forced ? nk_sampler_force(b, logits, one.id, &same, &err)
                            : nk_sampler_sample(b, logits, 2, &other, &err);
                if (rc) {
                    assert_int_equal(rc, NK_E_DEADLINE);
                    assert_string_equal(err.reason, "later");
                    n_later[k]++;
                    nk_sampler_hurry(b, false);
                    rc = forced ? nk_sampler_force(b, logits, one.id, &same, &err)
                                : nk_sampler_sample(b, logits, 2, &other, &err);
                }
                assert_int_equal(rc, 0);
                assert_true(same);
                if (!forced) {
                    assert_int_equal(one.id, other.id);
                    assert_memory_equal(&one.logprob, &other.logprob, sizeof one.logprob);
                }
                if (nk_vocab_is_eog(v, one.id))
                    break;
            }
            nk_sampler_free(a);
            nk_sampler_free(b);
        }
    assert_true(n_later[1] > 0);
    free(logits);
    nk_vocab_close(v);
}

static void test_sampler__the_same_seed_gives_the_same_tokens(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    float logits[1024];
    struct nk_sampling p = nk_sampling_default();
    int n_different = 0;

    (void)state;
    p.seed = 42;
    for (int with = 0; with < 2; with++) {
        nk_sampler *a, *b;
        struct test_random r = { 5 };

        a = new_sampler(v, &p);
        p.seed += (uint32_t)with;
        b = new_sampler(v, &p);
        assert_int_equal(nk_sampler_seed(a), 42);
        for (int step = 0; step < N_STEPS; step++) {
            struct nk_sampled x, y;

            make_logits(&r, logits, 1024);
            assert_int_equal(nk_sampler_sample(a, logits, -1, &x, NULL), 0);
            assert_int_equal(nk_sampler_sample(b, logits, -1, &y, NULL), 0);
            if (with == 0)
                assert_int_equal(x.id, y.id);
            n_different += x.id != y.id;
        }
        nk_sampler_free(a);
        nk_sampler_free(b);
    }
    assert_true(n_different > N_STEPS / 2);
    nk_vocab_close(v);
}

/* A sampler that follows another one by what that has chosen is then the same: its draws, what the
 * penalties and the grammar have seen, mirostat's state. */
static void test_sampler__forced_to_what_was_chosen_it_goes_on_the_same_way(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    float logits[1024];

    (void)state;
    for (int kind = 0; kind < 5; kind++) {
        struct nk_sampling p = nk_sampling_default();
        struct test_random r = { 11 }, again = { 11 };
        int32_t chosen[N_STEPS];
        nk_sampler *a, *b;
        bool same;

        p.seed = 42;
        p.temperature = kind == 0 ? 0 : 0.9f;
        p.mirostat = kind == 1 || kind == 2 ? kind : 0;
        p.repeat_penalty = kind == 3 ? 1.5f : 1;
        p.grammar = kind == 4 ? "root ::= [a-z ]+ [A-Z ]+" : NULL;
        a = new_sampler(v, &p);
        b = new_sampler(v, &p);
        for (int step = 0; step < N_STEPS; step++) {
            struct nk_sampled x, y;

            make_logits(&r, logits, 1024);
            assert_int_equal(nk_sampler_sample(a, logits, -1, &x, NULL), 0);
            chosen[step] = x.id;
            make_logits(&again, logits, 1024);
            if (step < N_STEPS / 2) {
                assert_int_equal(nk_sampler_force(b, logits, x.id, &same, NULL), 0);
                assert_true(same);
            } else {
                assert_int_equal(nk_sampler_sample(b, logits, -1, &y, NULL), 0);
                assert_int_equal(y.id, chosen[step]);
            }
        }
        nk_sampler_free(a);
        nk_sampler_free(b);
    }
    nk_vocab_close(v);
}

/* It is told so where it would have chosen another one, and one that the grammar forbids is an
 * error. */
static void test_sampler__forced_to_what_it_would_not_choose_it_says_so(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_sampling p = nk_sampling_default();
    struct test_random r = { 3 };
    struct nk_sampled first;
    struct nk_error err;
    float logits[1024];
    nk_sampler *s;
    bool same = true;

    (void)state;
    p.temperature = 0;
    s = new_sampler(v, &p);
    make_logits(&r, logits, 1024);
    assert_int_equal(nk_sampler_sample(s, logits, -1, &first, NULL), 0);
    assert_int_equal(nk_sampler_force(s, logits, first.id == 300 ? 301 : 300, &same, NULL), 0);
    assert_false(same);
    nk_sampler_free(s);
    p.grammar = "root ::= [a-z]+";
    s = new_sampler(v, &p);
    assert_int_equal(nk_sampler_sample(s, logits, -1, &first, NULL), 0);
    for (int32_t id = 259; id < 1024; id++) { /* one of them has a capital or a digit */
        int rc = nk_sampler_force(s, logits, id, &same, &err);

        if (rc) {
            assert_int_equal(rc, NK_E_INTERNAL);
            assert_string_equal(err.reason, "bad_logits");
            nk_sampler_free(s);
            nk_vocab_close(v);
            return;
        }
    }
    fail();
}

static void test_sampler__a_random_seed_is_told_and_reproduces(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_sampling p = nk_sampling_default();
    float logits[1024];
    struct test_random r = { 5 };
    nk_sampler *a, *b;

    (void)state;
    a = new_sampler(v, &p);
    b = new_sampler(v, &p);
    assert_int_not_equal(nk_sampler_seed(a), nk_sampler_seed(b));
    nk_sampler_free(b);
    p.seed = nk_sampler_seed(a);
    b = new_sampler(v, &p);
    for (int step = 0; step < N_STEPS; step++) {
        struct nk_sampled x, y;

        make_logits(&r, logits, 1024);
        assert_int_equal(nk_sampler_sample(a, logits, -1, &x, NULL), 0);
        assert_int_equal(nk_sampler_sample(b, logits, -1, &y, NULL), 0);
        assert_int_equal(x.id, y.id);
    }
    nk_sampler_free(a);
    nk_sampler_free(b);
    nk_vocab_close(v);
}

static int fill_with_ones(struct nk_chance *c, void *out, size_t size, struct nk_error *err)
{
    (void)c, (void)err;
    memset(out, 0xFF, size);
    return 0;
}

static int fill_nothing(struct nk_chance *c, void *out, size_t size, struct nk_error *err)
{
    (void)c, (void)out, (void)size;
    return nk_fail(err, NK_E_UNAVAILABLE, "no_entropy", "there is none");
}

static void
test_sampler__a_seed_is_drawn_from_what_it_is_given_and_is_never_the_random_one(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_sampling p = nk_sampling_default();
    struct nk_chance ones = { fill_with_ones }, none = { fill_nothing };
    struct nk_error err = { 0 };
    nk_sampler *s;

    (void)state;
    assert_int_equal(nk_sampler_new(&s, nk_vocab_llama(v), &p, N_CTX, &ones, &err), 0);
    assert_int_equal(nk_sampler_seed(s), 0);
    nk_sampler_free(s);
    assert_int_equal(nk_sampler_new(&s, nk_vocab_llama(v), &p, N_CTX, &none, &err),
                     NK_E_UNAVAILABLE);
    assert_string_equal(err.reason, "no_entropy");
    assert_null(s);
    p.seed = 7; /* a seed that is given is taken, and nothing drawn */
    assert_int_equal(nk_sampler_new(&s, nk_vocab_llama(v), &p, N_CTX, &none, &err), 0);
    assert_int_equal(nk_sampler_seed(s), 7);
    nk_sampler_free(s);
    nk_vocab_close(v);
}

static void test_sampler__greedy_takes_the_first_of_the_largest_wherever_it_is(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE); /* 273 tokens: not a multiple of any vector's width */
    struct nk_sampling p = nk_sampling_default();
    int n = nk_vocab_size(v);
    float *logits = malloc((size_t)n * sizeof *logits);
    nk_sampler *s;

    (void)state;
    p.temperature = 0;
    s = new_sampler(v, &p);
    for (int at = 0; at < n; at++) {
        struct nk_sampled got;

        for (int i = 0; i < n; i++)
            logits[i] = at % 3 == 0 ? -INFINITY : -50.0f - (float)i;
        logits[at] = -1.5f;
        logits[n - 1] = -1.5f; /* a tie */
        assert_int_equal(nk_sampler_sample(s, logits, -1, &got, NULL), 0);
        assert_int_equal(got.id, at);
        assert_true(isnan(got.logprob));
        assert_int_equal(got.n_top, 0);
    }
    nk_sampler_free(s);
    free(logits);
    nk_vocab_close(v);
}

static void test_sampler__log_probabilities_are_those_of_the_unmodified_logits(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_sampling p = nk_sampling_default();
    struct test_random r = { 11 };
    float logits[1024], before[1024];

    (void)state;
    p.seed = 3;
    p.logit_bias = biases;
    p.n_logit_bias = 4;
    p.temperature = 1.7f;
    for (int n_top = 0; n_top <= NK_LOGPROBS_MAX; n_top++) {
        nk_sampler *s = new_sampler(v, &p);

        for (int step = 0; step < 20; step++) {
            struct nk_sampled got;
            double sum = 0;

            make_logits(&r, logits, 1024);
            if (step == 19)
                for (int i = 10; i < 1024;
                     i++) /* fewer possible tokens than alternatives asked for */
                    logits[i] = -INFINITY;
            memcpy(before, logits, sizeof logits);
            assert_int_equal(nk_sampler_sample(s, logits, n_top, &got, NULL), 0);
            assert_memory_equal(before, logits, sizeof logits);
            for (int i = 0; i < 1024; i++)
                sum += exp((double)logits[i]);
            assert_float_equal(got.logprob, (double)logits[got.id] - log(sum), 1e-4);
            assert_int_equal(got.n_top, n_top);
            for (int i = 0; i < n_top; i++) {
                int n_larger = 0;

                for (int j = 0; j < 1024; j++)
                    n_larger += logits[j] > logits[got.top[i].id] ||
                                (logits[j] == logits[got.top[i].id] && j < got.top[i].id);
                assert_int_equal(n_larger,
                                 i); /* the i-th largest, smaller ids first among equals */
                if (isinf(logits[got.top[i].id]))
                    assert_true(isinf(got.top[i].logprob));
                else
                    assert_float_equal(got.top[i].logprob, (double)logits[got.top[i].id] - log(sum),
                                       1e-4);
            }
        }
        nk_sampler_free(s);
    }
    {
        nk_sampler *s = new_sampler(v, &p);
        struct nk_sampled got;
        struct nk_error err = { 0 };

        assert_int_equal(nk_sampler_sample(s, logits, NK_LOGPROBS_MAX + 1, &got, &err),
                         NK_E_INVALID);
        assert_string_equal(err.reason, "bad_sampling");
        nk_sampler_free(s);
    }
    nk_vocab_close(v);
}

static void test_sampler__broken_logits_are_an_error_and_no_token(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    float logits[1024];

    (void)state;
    for (int setting = 0; setting < 2; setting++) {
        struct nk_sampling p = nk_sampling_default();
        nk_sampler *s;

        p.temperature = setting ? 0.8f : 0;
        s = new_sampler(v, &p);
        for (int what = 0; what < 4; what++) {
            struct test_random r = { 5 };
            struct nk_error err = { 0 };
            struct nk_sampled got;

            make_logits(&r, logits, 1024);
            if (what == 0)
                logits[1023] = NAN;
            else if (what == 1)
                logits[3] = INFINITY;
            else
                for (int i = 0; i < 1024; i++)
                    logits[i] = what == 2 ? NAN : -INFINITY;
            assert_int_equal(nk_sampler_sample(s, logits, -1, &got, &err), NK_E_INTERNAL);
            assert_string_equal(err.reason, "bad_logits");
        }
        nk_sampler_free(s);
    }
    nk_vocab_close(v);
}

static void test_sampler__nothing_to_choose_from_is_an_error(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    int n = nk_vocab_size(v);
    struct nk_logit_bias none[512];
    float logits[512];
    struct nk_sampling p = nk_sampling_default();

    (void)state;
    assert_true(n <= 512);
    for (int i = 0; i < n; i++) {
        none[i] = (struct nk_logit_bias){ i, -INFINITY };
        logits[i] = (float)i / 100;
    }
    p.logit_bias = none;
    p.n_logit_bias = n;
    for (int variant = 0; variant < 4; variant++) {
        struct nk_error err = { 0 };
        struct nk_sampled got;
        nk_sampler *s;

        p.temperature = variant & 1 ? 0 : 0.8f;
        if (variant == 2) { /* a grammar that wants what is forbidden */
            p.n_logit_bias = 1;
            none[0].id = 'z';
            p.grammar = "root ::= \"z\"";
        }
        s = new_sampler(v, &p);
        assert_int_equal(nk_sampler_sample(s, logits, -1, &got, &err), NK_E_INTERNAL);
        assert_string_equal(err.reason, "bad_logits");
        nk_sampler_free(s);
    }
    nk_vocab_close(v);
}

static void test_sampler__a_grammar_is_obeyed_whatever_the_logits(void **state)
{
    static const int kinds[] = { VOCAB_BPE, VOCAB_KJV };

    (void)state;
    for (int k = 0; k < 2; k++) {
        nk_vocab *v = test_vocab(kinds[k]);
        int n = nk_vocab_size(v);
        float *logits = malloc((size_t)n * sizeof *logits);

        for (uint32_t seed = 0; seed < 20; seed++) {
            struct nk_sampling p = nk_sampling_default();
            struct nk_buf text = NK_BUF_INIT(1 << 16);
            struct test_random r = { seed + 1 };
            struct nk_sampled got = { 0 };
            nk_sampler *s;
            int step;

            p.seed = seed;
            p.temperature = seed & 1 ? 0 : 1.5f;
            p.grammar = "root ::= \"{\" [0-9]{1,3} (\",\" [0-9]{1,3})? \"}\"";
            s = new_sampler(v, &p);
            for (step = 0; step < 20; step++) {
                make_logits(&r, logits, n);
                assert_int_equal(nk_sampler_sample(s, logits, -1, &got, NULL), 0);
                if (nk_vocab_is_eog(v, got.id))
                    break;
                assert_int_equal(nk_vocab_piece(v, got.id, false, &text, NULL), 0);
            }
            assert_true(step < 20);
            assert_true(text.size >= 3 && text.size <= 9);
            assert_int_equal(text.data[0], '{');
            assert_int_equal(text.data[text.size - 1], '}');
            nk_buf_release(&text);
            nk_sampler_free(s);
        }
        free(logits);
        nk_vocab_close(v);
    }
}

static void test_sampler__ignore_eos_never_ends(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_BPE);
    int n = nk_vocab_size(v);
    float logits[512] = { 0 };
    struct nk_sampling p = nk_sampling_default();

    (void)state;
    for (int i = 0; i < n; i++)
        if (nk_vocab_is_eog(v, i))
            logits[i] = 20;
    p.ignore_eos = true;
    for (int greedy = 0; greedy < 2; greedy++) {
        nk_sampler *s;

        p.temperature = greedy ? 0 : 1;
        s = new_sampler(v, &p);
        for (int step = 0; step < 100; step++) {
            struct nk_sampled got;

            assert_int_equal(nk_sampler_sample(s, logits, -1, &got, NULL), 0);
            assert_false(nk_vocab_is_eog(v, got.id));
        }
        nk_sampler_free(s);
    }
    nk_vocab_close(v);
}

static void assert_refused(const nk_vocab *v, const struct nk_sampling *p, const char *reason,
                           const char *named)
{
    struct nk_error err = { 0 };
    nk_sampler *s = (nk_sampler *)&err;

    assert_int_equal(nk_sampler_new(&s, nk_vocab_llama(v), p, N_CTX, &chance.chance, &err),
                     NK_E_INVALID);
    assert_string_equal(err.reason, reason);
    if (!strstr(err.msg, named))
        fail_msg("\"%s\" does not name %s", err.msg, named);
    assert_null(s);
}

static void test_sampler__bad_settings_are_refused_by_name(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    static const float bad_floats[] = { NAN, INFINITY, -INFINITY, -1e9f, 1e9f };
    char long_grammar[NK_GRAMMAR_BYTES_MAX + 2];
    struct nk_logit_bias b = { 0, 0 };
    struct nk_sampling p;

    (void)state;
#define FLOAT(field)                                                                               \
    for (size_t i = 0; i < sizeof bad_floats / sizeof bad_floats[0]; i++) {                        \
        p = nk_sampling_default();                                                                 \
        p.field = bad_floats[i];                                                                   \
        assert_refused(v, &p, "bad_sampling", #field);                                             \
    }
    FLOAT(temperature)
    FLOAT(top_p)
    FLOAT(min_p)
    FLOAT(typical_p)
    FLOAT(top_n_sigma)
    FLOAT(xtc_probability)
    FLOAT(xtc_threshold)
    FLOAT(dynatemp_range)
    FLOAT(dynatemp_exponent)
    FLOAT(repeat_penalty)
    FLOAT(presence_penalty)
    FLOAT(frequency_penalty)
    FLOAT(dry_multiplier)
    FLOAT(dry_base)
    FLOAT(mirostat_tau)
    FLOAT(mirostat_eta)
#undef FLOAT
#define INT(field, value)                                                                          \
    p = nk_sampling_default();                                                                     \
    p.field = value;                                                                               \
    assert_refused(v, &p, "bad_sampling", strcmp(#field, "n_logit_bias") ? #field : "logit_bias")
    INT(top_k, -1);
    INT(penalty_last_n, -2);
    INT(dry_allowed_length, -1);
    INT(dry_penalty_last_n, -2);
    INT(mirostat, 3);
    INT(mirostat, -1);
    INT(repeat_penalty, 0);
    INT(n_logit_bias, -1);
#undef INT
    p = nk_sampling_default();
    p.logit_bias = &b;
    p.n_logit_bias = 1;
    b.bias = NAN;
    assert_refused(v, &p, "bad_sampling", "logit_bias of token 0");
    b.bias = INFINITY;
    assert_refused(v, &p, "bad_sampling", "logit_bias of token 0");
    b = (struct nk_logit_bias){ -1, 0 };
    assert_refused(v, &p, "bad_sampling", "token -1");
    b.id = 1024;
    assert_refused(v, &p, "bad_sampling", "token 1024");
    p.n_logit_bias = NK_LOGIT_BIAS_MAX + 1;
    assert_refused(v, &p, "bad_sampling", "1025 entries");
    p = nk_sampling_default();
    p.grammar = "";
    assert_refused(v, &p, "bad_sampling", "empty");
    p.grammar = "root ::= \"\xFF\"";
    assert_refused(v, &p, "bad_sampling", "UTF-8 at byte 10");
    memset(long_grammar, ' ', sizeof long_grammar - 1);
    long_grammar[sizeof long_grammar - 1] = '\0';
    p.grammar = long_grammar;
    assert_refused(v, &p, "bad_sampling", "65536 bytes");
    nk_vocab_close(v);
}

static void test_sampler__huge_windows_cost_no_more_than_the_context(void **state)
{
    nk_vocab *v = test_vocab(VOCAB_KJV);
    struct nk_sampling p = nk_sampling_default();
    nk_sampler *s;

    (void)state;
    p.repeat_penalty = 1.1f;
    p.dry_multiplier = 1;
    p.penalty_last_n = p.dry_penalty_last_n = p.top_k = p.dry_allowed_length = INT32_MAX;
    s = new_sampler(v, &p); /* 16 GiB if it took the numbers at their word */
    for (int step = 0; step < 50; step++) {
        struct test_random r = { (uint64_t)step + 1 };
        struct nk_sampled got;
        float logits[1024];

        make_logits(&r, logits, 1024);
        assert_int_equal(nk_sampler_sample(s, logits, -1, &got, NULL), 0);
    }
    nk_sampler_prompt(s, -1); /* ids that do not exist change nothing */
    nk_sampler_prompt(s, INT32_MAX);
    nk_sampler_free(s);
    nk_vocab_close(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampler__every_setting_is_libllamas_own_chain),
        cmocka_unit_test(test_sampler__what_is_left_for_later_becomes_what_it_would_have_been),
        cmocka_unit_test(test_sampler__the_same_seed_gives_the_same_tokens),
        cmocka_unit_test(test_sampler__forced_to_what_was_chosen_it_goes_on_the_same_way),
        cmocka_unit_test(test_sampler__forced_to_what_it_would_not_choose_it_says_so),
        cmocka_unit_test(test_sampler__a_random_seed_is_told_and_reproduces),
        cmocka_unit_test(
            test_sampler__a_seed_is_drawn_from_what_it_is_given_and_is_never_the_random_one),
        cmocka_unit_test(test_sampler__greedy_takes_the_first_of_the_largest_wherever_it_is),
        cmocka_unit_test(test_sampler__log_probabilities_are_those_of_the_unmodified_logits),
        cmocka_unit_test(test_sampler__broken_logits_are_an_error_and_no_token),
        cmocka_unit_test(test_sampler__nothing_to_choose_from_is_an_error),
        cmocka_unit_test(test_sampler__a_grammar_is_obeyed_whatever_the_logits),
        cmocka_unit_test(test_sampler__ignore_eos_never_ends),
        cmocka_unit_test(test_sampler__bad_settings_are_refused_by_name),
        cmocka_unit_test(test_sampler__huge_windows_cost_no_more_than_the_context),
    };

    return cmocka_run_group_tests(tests, test_setup, test_teardown);
}
