#include "unit/chain/heard.h"

#include <math.h>

/* One generation answered by script, to its end. */
static void generate(fake_script script, const struct nk_gen_opts *o, struct heard *h)
{
    nk_chain *c = fake_chain();

    fakes[0].script = script;
    start(c, h, o);
    finish(h);
    nk_chain_close(c);
    assert_int_equal(h->n_done, 1);
    fake_wait(&fakes[0].n_ended, fakes[0].n_calls);
}

/* It fails with this code and reason, and the message names the worker. */
static void refuse_opts(fake_script script, const struct nk_gen_opts *o, int code,
                        const char *reason, const char *says)
{
    struct heard h;

    generate(script, o, &h);
    if (h.ok)
        fail_msg("succeeded where %s was expected", reason);
    if (h.err.code != code || strcmp(h.err.reason, reason) || !strstr(h.err.msg, says))
        fail_msg("%d %s '%s' where %d %s '%s' was expected", h.err.code, h.err.reason, h.err.msg,
                 code, reason, says);
    if (code != NK_E_CANCELLED && !strstr(h.err.msg, "worker attic") &&
        !strstr(h.err.msg, "worker cellar"))
        fail_msg("'%s' names no worker", h.err.msg);
}

static void refuse(fake_script script, int code, const char *reason, const char *says)
{
    struct nk_gen_opts o = options();

    refuse_opts(script, &o, code, reason, says);
}

#define SCRIPT(name) static void name(struct fake *f, nk_call *c)
#define NONE         NAKSHATRA__V1__FINISH_REASON__FINISH_NONE

/* ---- what goes well ---- */

static void done_with_tail(Nakshatra__V1__Done *d)
{
    d->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_STOP;
    d->stop_string = (ProtobufCBinaryData){ 3, (uint8_t *)(uintptr_t) "end" };
    d->text = (ProtobufCBinaryData){ 5, (uint8_t *)(uintptr_t) " tail" };
}

SCRIPT(three_tokens)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone s = NAKSHATRA__V1__STEP_DONE__INIT;

    send_opened(f, c, NULL);
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE; /* a sign of life */
    r.step_done = &s;
    send_reply(c, &r);
    send_token(c, 0, "a");
    send_token(c, 1, "");
    send_token(c, 2, "b\xc3\xa4");
    send_done(c, 3, done_with_tail);
    nk_call_finish(c, NULL);
}

static void test_gen__hands_out_tokens_then_the_stats_once(void **state)
{
    struct nk_gen_opts o = options();
    struct heard h;

    (void)state;
    generate(three_tokens, &o, &h);
    assert_true(h.ok);
    assert_int_equal(h.n_tokens, 3);
    assert_int_equal(h.last_index, 2);
    assert_int_equal(h.token.id, 12);
    assert_true(isnan(h.token.logprob));
    assert_string_equal(h.text, "ab\xc3\xa4");
    assert_string_equal(h.tail, " tail");
    assert_int_equal(h.stats.finish, NK_FINISH_STOP);
    assert_string_equal(h.stats.stop_string, "end");
    assert_int_equal(h.stats.n_generated, 3);
    assert_int_equal(h.stats.n_prompt, 3);
    assert_int_equal(h.stats.seed, 5);
    assert_int_equal(h.stats.n_stages, 2);
    assert_int_equal(h.stats.prefill_us, 1000);
    /* A peer's name for itself does not reach the terminal as it is. */
    assert_string_equal(h.stats.stages[0].worker_id, "attic^[[2J");
    assert_int_equal(h.stats.stages[1].compute_us, 7);
}

/* ---- how far the prompt is ---- */

static void say_prefilled(nk_call *c, uint32_t n_done)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone s = NAKSHATRA__V1__STEP_DONE__INIT;

    s.n_done = n_done;
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    r.step_done = &s;
    send_reply(c, &r);
}

static void reused_one(Nakshatra__V1__Opened *o)
{
    o->n_reused = 1;
}

SCRIPT(prefills)
{
    send_opened(f, c, reused_one);
    say_prefilled(c, 0); /* a worker that does not count */
    say_prefilled(c, 2);
    say_prefilled(c, 2);
    send_token(c, 0, "a");
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

SCRIPT(prefills_too_much)
{
    send_opened(f, c, NULL);
    say_prefilled(c, 4);
}

SCRIPT(prefills_unopened)
{
    (void)f;
    say_prefilled(c, 1);
}

SCRIPT(prefills_late)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "a");
    say_prefilled(c, 2);
    say_prefilled(c, 3);
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

static void test_gen__progress_of_the_prompt_is_what_the_stages_have_answered(void **state)
{
    struct nk_gen_opts o = options();
    struct heard h;

    (void)state;
    o.progress = true;
    generate(prefills, &o, &h);
    assert_true(h.ok);
    assert_true(fakes[0].request->open->progress);
    assert_int_equal(h.n_prefilled, 3);
    assert_int_equal(h.prefilled[0], 1);
    assert_int_equal(h.prefilled[1], 2);
    assert_int_equal(h.prefilled[2], 3); /* with the first token */
    assert_int_equal(h.n_reused, 1);
    o.progress = false;
    generate(prefills, &o, &h);
    assert_false(fakes[0].request->open->progress);
    assert_int_equal(h.n_prefilled, 0);
    refuse(prefills_too_much, NK_E_DATA_LOSS, "bad_peer", "with 4 of the prompt's 3 tokens");
    refuse(prefills_unopened, NK_E_DATA_LOSS, "bad_peer", "before the session was open");
    o.progress = true;
    generate(prefills_late, &o, &h);
    assert_int_equal(h.n_prefilled, 2); /* with the token, which overtook it */
}

/* ---- log-probabilities of the prompt, whose ids are 1, 2 and 3 ---- */

/* ids: one letter each, its distance to '0'. */
static void say_prompt_probs(nk_call *c, uint32_t pos, const char *ids, size_t n_top)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__PromptProbs m = NAKSHATRA__V1__PROMPT_PROBS__INIT;
    Nakshatra__V1__PromptProb rows[8], *ptrs[8];
    Nakshatra__V1__TokenProb probs[8], *top[8];

    for (size_t i = 0; ids[i]; i++) {
        nakshatra__v1__prompt_prob__init(&rows[i]);
        nakshatra__v1__token_prob__init(&probs[i]);
        probs[i].id = ids[i] - '0';
        probs[i].logprob = -0.25f;
        rows[i].prob = &probs[i];
        rows[i].top = top;
        rows[i].n_top = n_top;
        ptrs[i] = &rows[i];
    }
    for (size_t i = 0; i < n_top; i++)
        top[i] = &probs[0];
    m.pos = pos;
    m.probs = ptrs;
    m.n_probs = strlen(ids);
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_PROMPT_PROBS;
    r.prompt_probs = &m;
    send_reply(c, &r);
}

/* What it says of the prompt, before it goes on as if that were right. */
static struct {
    uint32_t pos;
    const char *ids;
    size_t n_top;
} said_of_prompt[2];

SCRIPT(tells_prompt)
{
    send_opened(f, c, NULL);
    for (int i = 0; i < 2; i++)
        if (said_of_prompt[i].ids)
            say_prompt_probs(c, said_of_prompt[i].pos, said_of_prompt[i].ids,
                             said_of_prompt[i].n_top);
    send_token(c, 0, "a");
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

static void test_gen__log_probabilities_of_the_prompt_are_held_against_its_ids(void **state)
{
    static const struct {
        uint32_t pos;
        const char *ids;
        size_t n_top;
        const char *says;
    } wrong[] = {
        { 0, "1", 1, "from token 0 on" }, { 2, "3", 1, "from token 2 on" },
        { 1, "234", 1, "tells 3" },       { 1, "24", 1, "token 2, which is not that" },
        { 1, "23", 2, "is not that" },
    };
    struct nk_gen_opts o = options();
    struct heard h;

    (void)state;
    o.n_prompt_logprobs = 1;
    said_of_prompt[0].pos = 1, said_of_prompt[0].ids = "2", said_of_prompt[0].n_top = 1;
    said_of_prompt[1].pos = 2, said_of_prompt[1].ids = "3", said_of_prompt[1].n_top = 0;
    generate(tells_prompt, &o, &h);
    if (!h.ok)
        fail_msg("%s", h.err.msg);
    assert_int_equal(h.n_prompted, 2);
    assert_true(h.prompt_logprob == -0.25f);
    assert_int_equal(fakes[0].request->open->prompt_logprobs, 2);
    assert_int_equal(fakes[0].request->open->hold_ms, 0); /* it cannot go on after a loss */
    /* An older worker says nothing of it. */
    said_of_prompt[1].ids = NULL;
    refuse_opts(tells_prompt, &o, NK_E_UNIMPLEMENTED, "no_prompt_logprobs", "1 of the prompt's 3");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        said_of_prompt[0].pos = wrong[i].pos;
        said_of_prompt[0].ids = wrong[i].ids;
        said_of_prompt[0].n_top = wrong[i].n_top;
        refuse_opts(tells_prompt, &o, NK_E_DATA_LOSS, "bad_peer", wrong[i].says);
    }
    said_of_prompt[0].pos = 1, said_of_prompt[0].ids = "2", said_of_prompt[0].n_top = 0;
    refuse(tells_prompt, NK_E_DATA_LOSS, "bad_peer", "none were asked for");
}

static void say_opened(struct fake *f, nk_call *c)
{
    send_opened(f, c, NULL);
}

static void say_step_done(struct fake *f, nk_call *c)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone s = NAKSHATRA__V1__STEP_DONE__INIT;

    (void)f;
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    r.step_done = &s;
    send_reply(c, &r);
}

static uint32_t said; /* tokens, on the call that is held */

static void say_token(struct fake *f, nk_call *c)
{
    (void)f;
    send_token(c, said++, "a");
}

static void say_done(struct fake *f, nk_call *c)
{
    (void)f;
    send_done(c, said, NULL);
    nk_call_finish(c, NULL);
}

/* A generation whose worker says what the test lets it say. */
static void start_held(nk_chain *c, struct heard *h, const struct nk_gen_opts *o)
{
    int n = fakes[0].n_held;

    said = 0;
    fakes[0].script = fake_hold;
    start(c, h, o);
    fake_wait(&fakes[0].n_held, n + 1);
}

static void test_gen__times_are_those_of_the_clock(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    start_held(c, &h, &o);
    fake_say(&fakes[0], say_opened);
    fake_pass_ms(c, 7);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false);
    fake_pass_ms(c, 5);
    fake_say(&fakes[0], say_done);
    finish(&h);
    assert_true(h.ok);
    assert_int_equal(h.stats.ttft_us, 7000);
    assert_int_equal(h.stats.total_us, 12000);
    nk_chain_close(c);
}

static void done_eog(Nakshatra__V1__Done *d)
{
    d->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_EOG;
}

SCRIPT(end_of_generation)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "a");
    send_token_with(c, 1, 2, " held", 5, NAKSHATRA__V1__FINISH_REASON__FINISH_EOG, NULL, 0);
    send_done(c, 1, done_eog);
    nk_call_finish(c, NULL);
}

static void test_gen__the_end_of_generation_token_is_not_handed_out_but_its_text_is(void **state)
{
    struct nk_gen_opts o = options();
    struct heard h;

    (void)state;
    generate(end_of_generation, &o, &h);
    assert_true(h.ok);
    assert_int_equal(h.n_tokens, 1);
    assert_int_equal(h.stats.n_generated, 1);
    assert_int_equal(h.stats.finish, NK_FINISH_EOG);
    assert_string_equal(h.tail, " held");
}

SCRIPT(broken_after_done)
{
    struct nk_error e;

    send_opened(f, c, NULL);
    send_done(c, 0, done_eog);
    nk_fail(&e, NK_E_INTERNAL, "whatever", "too late");
    nk_call_finish(c, &e);
}

static void test_gen__what_was_done_stays_done_however_the_stream_ends(void **state)
{
    struct nk_gen_opts o = options();
    struct heard h;

    (void)state;
    generate(broken_after_done, &o, &h);
    assert_true(h.ok);
}

SCRIPT(with_logprobs)
{
    Nakshatra__V1__TokenProb p = NAKSHATRA__V1__TOKEN_PROB__INIT;

    p.id = 10;
    p.logprob = -0.5f;
    p.text = (ProtobufCBinaryData){ 1, (uint8_t *)(uintptr_t) "\xc3" };
    send_opened(f, c, NULL);
    send_token_with(c, 0, 10, "", 0, NONE, &p, 2);
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

static void test_gen__log_probabilities_come_when_asked_for(void **state)
{
    struct nk_gen_opts o = options();
    struct heard h;

    (void)state;
    o.n_logprobs = 2;
    generate(with_logprobs, &o, &h);
    assert_true(h.ok);
    assert_true(h.token.logprob == -0.5f);
    assert_int_equal(h.token.piece_size, 1);
    assert_int_equal(h.token.n_top, 2);
    assert_int_equal(h.token.top[1].id, 10);
    assert_int_equal(fakes[0].request->open->n_logprobs, 3);
    o.n_logprobs = 1;
    refuse_opts(with_logprobs, &o, NK_E_DATA_LOSS, "bad_peer", "2 alternatives; 1 were asked for");
    o.n_logprobs = -1;
    refuse_opts(with_logprobs, &o, NK_E_DATA_LOSS, "bad_peer", "a log-probability");
    o.n_logprobs = 0;
    refuse_opts(three_tokens, &o, NK_E_DATA_LOSS, "bad_peer", "no log-probability");
}

/* ---- what is asked for ---- */

static void test_gen__open_says_what_was_asked_for(void **state)
{
    static const struct nk_logit_bias bias[] = { { 7, -1.5f }, { 8, -INFINITY } };
    static const char *const stops[] = { "one", "two" };
    struct nk_gen_opts o = options();
    const Nakshatra__V1__Open *m;
    const Nakshatra__V1__Sampling *s;
    struct heard h;
    uint8_t first_session[16];

    (void)state;
    generate(three_tokens, &o, &h);
    m = fakes[0].request->open;
    s = m->sampling;
    assert_int_equal(m->session.len, 16);
    memcpy(first_session, m->session.data, 16);
    assert_int_equal(m->n_route, 2);
    assert_string_equal(m->route[1]->address, fake_cluster()->workers[1].address);
    assert_int_equal(m->route[1]->layer_begin, 4);
    assert_int_equal(m->route[1]->layer_end, 8);
    assert_int_equal(m->stage_idx, 0);
    assert_string_equal(m->model_sha256, SHA);
    assert_int_equal(m->n_prompt_ids, 3);
    assert_int_equal(m->prompt_ids[2], 3);
    assert_int_equal(m->limits->n_predict, 8);
    assert_int_equal(m->dtype, NAKSHATRA__V1__DTYPE__DTYPE_F32);
    assert_true(m->reuse && !m->deterministic && !m->special && m->n_logprobs == 0);
    /* The defaults, of which 1 means off for two and goes as 0. */
    assert_true(s->temperature == 0.8f && s->top_k == 40 && s->top_p == 0.95f && s->min_p == 0.05f);
    assert_true(s->typical_p == 0 && s->repeat_penalty == 0 && s->dry_multiplier == 0 &&
                s->mirostat == 0);
    assert_int_equal(s->penalty_last_n, 64);
    assert_int_equal(s->dry_penalty_last_n, 0);
    assert_int_equal(s->seed_given_case, NAKSHATRA__V1__SAMPLING__SEED_GIVEN__NOT_SET);

    o.sampling.seed = 0;
    o.sampling.top_p = 0;
    o.sampling.typical_p = 0.5f;
    o.sampling.top_n_sigma = 2;
    o.sampling.xtc_probability = 0.5f;
    o.sampling.dynatemp_range = 0.25f;
    o.sampling.repeat_penalty = 1.5f;
    o.sampling.penalty_last_n = -1;
    o.sampling.dry_multiplier = 0.5f;
    o.sampling.dry_penalty_last_n = 32;
    o.sampling.logit_bias = bias;
    o.sampling.n_logit_bias = 2;
    o.sampling.grammar = "root ::= \"a\"";
    o.sampling.ignore_eos = true;
    o.stop = stops;
    o.n_stop = 2;
    o.deterministic = true;
    o.special = true;
    o.stall_ms = 123;
    generate(three_tokens, &o, &h);
    m = fakes[0].request->open;
    s = m->sampling;
    assert_memory_not_equal(m->session.data, first_session, 16);
    assert_int_equal(s->seed_given_case, NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED);
    assert_int_equal(s->seed, 0);
    assert_true(s->top_p > 0 && s->top_p < 1e-30f); /* a 0 that is meant is not "off" */
    assert_true(s->typical_p == 0.5f && s->repeat_penalty == 1.5f && s->dry_multiplier == 0.5f);
    assert_true(s->top_n_sigma == 2 && s->xtc_probability == 0.5f && s->xtc_threshold == 0.1f &&
                s->dynatemp_range == 0.25f && s->dynatemp_exponent == 1);
    assert_int_equal(s->penalty_last_n, -1);
    assert_int_equal(s->dry_penalty_last_n, 32);
    assert_int_equal(s->n_logit_bias, 2);
    assert_int_equal(s->logit_bias[0]->id, 7);
    assert_true(s->logit_bias[1]->bias == -INFINITY);
    assert_string_equal(s->grammar, "root ::= \"a\"");
    assert_true(s->ignore_eos && m->special && m->deterministic);
    assert_false(m->reuse); /* a kept session's KV may have other low bits */
    assert_int_equal(m->n_stop, 2);
    assert_memory_equal(m->stop[1].data, "two", 3);
    assert_int_equal(m->limits->stall_ms, 123);

    o.sampling.penalty_last_n = 0; /* penalties and DRY that look at nothing are off */
    o.sampling.dry_penalty_last_n = 0;
    generate(three_tokens, &o, &h);
    s = fakes[0].request->open->sampling;
    assert_true(s->repeat_penalty == 0 && s->dry_multiplier == 0);
}

static void test_gen__refuses_options_out_of_range(void **state)
{
    static const int32_t negative[] = { 1, -2 };
    const char *const empty_stop[] = { "" };
    const char *many[17];
    nk_chain *c = fake_chain();
    struct nk_gen_opts good = options(), o;
    struct heard h;
    struct nk_error err;
    nk_gen *g = (void *)1;

    (void)state;
    heard_init(&h);
    for (int i = 0; i < 17; i++)
        many[i] = "x";
#define REFUSED(reason_, change)                                                                   \
    do {                                                                                           \
        o = good;                                                                                  \
        change;                                                                                    \
        assert_int_equal(nk_gen_start(&g, c, &o, &handlers, &h, &err), NK_E_INVALID);              \
        assert_string_equal(err.reason, reason_);                                                  \
        assert_null(g);                                                                            \
    } while (0)
    REFUSED("bad_request", o.n_ids = 0);
    REFUSED("bad_request", (o.ids = negative, o.n_ids = 2));
    REFUSED("bad_request", o.n_predict = -1);
    REFUSED("bad_request", o.n_logprobs = -2);
    REFUSED("bad_request", o.n_logprobs = NK_LOGPROBS_MAX + 1);
    REFUSED("bad_request", (o.stop = empty_stop, o.n_stop = 1));
    REFUSED("bad_request", (o.stop = many, o.n_stop = 17));
    REFUSED("bad_sampling", o.sampling.top_p = 2);
    REFUSED("bad_sampling", o.sampling.temperature = NAN);
    REFUSED("bad_sampling", (o.sampling.dry_multiplier = 1, o.sampling.dry_allowed_length = 0));
#undef REFUSED
    nk_chain_close(c);
    /* What was refused never began: no handler was called. */
    assert_int_equal(h.n_done + h.n_tokens, 0);
}

static void test_gen__once_started_done_alone_tells_how_it_ends(void **state)
{
    struct nk_cluster cluster = *fake_cluster();
    struct nk_error err = { .code = 1, .msg = "as it was" };
    struct nk_gen_opts o = options();
    struct heard h;
    nk_chain *c;

    (void)state;
    strcpy(cluster.workers[0].address, "127.0.0.1:1"); /* it fails at once */
    c = fake_chain_of(&cluster);
    heard_init(&h);
    assert_int_equal(nk_gen_start(&h.g, c, &o, &handlers, &h, &err), 0);
    finish(&h);
    assert_false(h.ok);
    assert_int_equal(h.err.code, NK_E_UNAVAILABLE);
    assert_int_equal(err.code, 1);
    assert_string_equal(err.msg, "as it was");
    nk_chain_close(c);
    assert_int_equal(h.n_done, 1);
}

static void test_gen__a_sessions_name_is_drawn_from_the_chance_that_was_given(void **state)
{
    struct nk_gen_opts o = options();
    uint64_t seed = fake_chance.state;
    uint8_t names[2][16];
    struct heard h;

    (void)state;
    for (int i = 0; i < 2; i++) {
        generate(three_tokens, &o, &h);
        memcpy(names[i], fakes[0].request->open->session.data, 16);
    }
    assert_memory_not_equal(names[0], names[1], 16);
    fake_chance.state = seed;
    generate(three_tokens, &o, &h);
    assert_memory_equal(fakes[0].request->open->session.data, names[0], 16);
}

/* ---- peers that do not keep to the protocol ---- */

SCRIPT(token_first)
{
    (void)f;
    send_token(c, 0, "a");
}

SCRIPT(done_first)
{
    (void)f;
    send_done(c, 0, NULL);
}

SCRIPT(opened_twice)
{
    send_opened(f, c, NULL);
    send_opened(f, c, NULL);
}

SCRIPT(garbage)
{
    (void)f;
    nk_call_send(c, "\xff\xff\xff\xff garbage", 12, NULL);
}

SCRIPT(empty_message)
{
    (void)f;
    nk_call_send(c, "", 0, NULL);
}

SCRIPT(ends_at_once)
{
    (void)f;
    nk_call_finish(c, NULL);
}

SCRIPT(ends_without_done)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "a");
    nk_call_finish(c, NULL);
}

SCRIPT(talks_after_done)
{
    send_opened(f, c, NULL);
    send_done(c, 0, NULL);
    send_token(c, 0, "a");
}

SCRIPT(wrong_index)
{
    send_opened(f, c, NULL);
    send_token(c, 1, "a");
}

SCRIPT(negative_id)
{
    send_opened(f, c, NULL);
    send_token_with(c, 0, -5, "a", 1, NONE, NULL, 0);
}

SCRIPT(over_the_limit)
{
    send_opened(f, c, NULL);
    for (uint32_t i = 0; i < 9; i++)
        send_token(c, i, "a");
}

SCRIPT(after_the_last)
{
    send_opened(f, c, NULL);
    send_token_with(c, 0, 1, "a", 1, NAKSHATRA__V1__FINISH_REASON__FINISH_LENGTH, NULL, 0);
    send_token(c, 1, "b");
}

SCRIPT(half_a_character)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "\xc3");
}

SCRIPT(endless_text)
{
    char *text = malloc(70000);

    memset(text, 'a', 70000);
    send_opened(f, c, NULL);
    send_token_with(c, 0, 1, text, 70000, NONE, NULL, 0);
    free(text);
}

SCRIPT(huge_message)
{
    char *text = malloc(30 << 20);

    memset(text, 'a', 30 << 20);
    send_opened(f, c, NULL);
    send_token_with(c, 0, 1, text, 30 << 20, NONE, NULL, 0);
    free(text);
}

SCRIPT(miscounted)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "a");
    send_done(c, 2, NULL);
}

static void done_none(Nakshatra__V1__Done *d)
{
    d->finish = NONE;
}

SCRIPT(done_without_reason)
{
    send_opened(f, c, NULL);
    send_done(c, 0, done_none);
}

static void done_three_stages(Nakshatra__V1__Done *d)
{
    d->n_stages = 3;
}

SCRIPT(done_with_too_many_stages)
{
    send_opened(f, c, NULL);
    send_done(c, 0, done_three_stages);
}

static void done_long_stop(Nakshatra__V1__Done *d)
{
    static uint8_t text[300];

    d->stop_string = (ProtobufCBinaryData){ sizeof text, text };
}

SCRIPT(done_with_a_long_stop_string)
{
    send_opened(f, c, NULL);
    send_done(c, 0, done_long_stop);
}

static void done_bad_text(Nakshatra__V1__Done *d)
{
    d->text = (ProtobufCBinaryData){ 1, (uint8_t *)(uintptr_t) "\xe2" };
}

SCRIPT(done_with_half_a_character)
{
    send_opened(f, c, NULL);
    send_done(c, 0, done_bad_text);
}

static void test_gen__a_peer_that_breaks_the_protocol_is_given_up(void **state)
{
    (void)state;
    refuse(token_first, NK_E_DATA_LOSS, "bad_peer", "a token before the session was open");
    refuse(done_first, NK_E_DATA_LOSS, "bad_peer", "done before the session was open");
    refuse(opened_twice, NK_E_DATA_LOSS, "bad_peer", "opened the session twice");
    refuse(garbage, NK_E_DATA_LOSS, "bad_peer", "no InferenceReply");
    refuse(empty_message, NK_E_DATA_LOSS, "bad_peer", "no InferenceReply");
    refuse(ends_at_once, NK_E_DATA_LOSS, "bad_peer", "without being done");
    refuse(ends_without_done, NK_E_DATA_LOSS, "bad_peer", "without being done");
    refuse(talks_after_done, NK_E_DATA_LOSS, "bad_peer", "went on after being done");
    refuse(wrong_index, NK_E_DATA_LOSS, "bad_peer", "index 0 comes next");
    refuse(negative_id, NK_E_DATA_LOSS, "bad_peer", "token -5");
    refuse(over_the_limit, NK_E_DATA_LOSS, "bad_peer", "over the limit of 8");
    refuse(after_the_last, NK_E_DATA_LOSS, "bad_peer", "after the last one");
    refuse(half_a_character, NK_E_DATA_LOSS, "bad_peer", "not UTF-8");
    refuse(endless_text, NK_E_DATA_LOSS, "bad_peer", "70000 bytes");
    refuse(huge_message, NK_E_DATA_LOSS, "bad_peer", "no InferenceReply");
    refuse(miscounted, NK_E_DATA_LOSS, "bad_peer", "2 tokens");
    refuse(done_without_reason, NK_E_DATA_LOSS, "bad_peer", "finish reason 0");
    refuse(done_with_too_many_stages, NK_E_DATA_LOSS, "bad_peer", "3 stages");
    refuse(done_with_a_long_stop_string, NK_E_DATA_LOSS, "bad_peer", "stop string (300 bytes)");
    refuse(done_with_half_a_character, NK_E_DATA_LOSS, "bad_peer", "not UTF-8");
}

/* ---- chains that are not what the file says ---- */

static void (*opened_change)(Nakshatra__V1__Opened *o);

SCRIPT(opened_otherwise)
{
    send_opened(f, c, opened_change);
    send_token(c, 0, "never shown");
    send_done(c, 1, NULL);
    nk_call_finish(c, NULL);
}

static void one_stage(Nakshatra__V1__Opened *o)
{
    o->n_stages = 1;
}

static void no_stage(Nakshatra__V1__Opened *o)
{
    o->n_stages = 0;
}

static void three_stages(Nakshatra__V1__Opened *o)
{
    o->n_stages = 3;
}

static void other_model(Nakshatra__V1__Opened *o)
{
    o->stages[1]->model_sha256 = (char *)(uintptr_t) "0f";
}

static void other_layers(Nakshatra__V1__Opened *o)
{
    o->stages[1]->layer_begin = 3;
}

static void other_count(Nakshatra__V1__Opened *o)
{
    o->stages[0]->layer_count = 9;
}

static void other_width(Nakshatra__V1__Opened *o)
{
    o->stages[1]->n_embd = 128;
}

static void other_llama(Nakshatra__V1__Opened *o)
{
    o->stages[1]->llama_version = (char *)(uintptr_t) "0.8.0";
}

static Nakshatra__V1__Fact long_factors = NAKSHATRA__V1__FACT__INIT, *long_list = &long_factors;

static void other_factors(Nakshatra__V1__Opened *o)
{
    long_factors.name = (char *)(uintptr_t) "rope_factors";
    long_factors.value = (char *)(uintptr_t) "long";
    long_factors.note = (char *)(uintptr_t) "2048 tokens";
    o->stages[1]->computed = &long_list;
}

static void shared_sessions(Nakshatra__V1__Opened *o)
{
    o->stages[1]->n_computed = 0;
}

static void other_prompt(Nakshatra__V1__Opened *o)
{
    o->n_prompt = 2;
}

static void reused_more_than_sent(Nakshatra__V1__Opened *o)
{
    o->n_reused = 4;
}

static void test_gen__a_chain_that_is_not_the_files_is_refused_before_the_first_token(void **state)
{
    static const struct {
        void (*change)(Nakshatra__V1__Opened *o);
        int code;
        const char *reason, *says;
    } cases[] = {
        { one_stage, NK_E_DATA_LOSS, "bad_peer", "1 stages; the cluster file has 2" },
        { no_stage, NK_E_DATA_LOSS, "bad_peer", "0 stages; the cluster file has 2" },
        { three_stages, NK_E_DATA_LOSS, "bad_peer", "3 stages; the cluster file has 2" },
        { other_model, NK_E_PRECONDITION, "model_mismatch",
          "it has the model 0f, the cluster file wants " SHA },
        { other_layers, NK_E_PRECONDITION, "layers_mismatch",
          "it has layers 3-8, the cluster file says 4-8" },
        { other_count, NK_E_PRECONDITION, "layers_mismatch",
          "9 layers, the cluster file's ranges end at 8" },
        { other_width, NK_E_PRECONDITION, "width_mismatch",
          "128 floats, those of worker attic have 64" },
        { other_llama, NK_E_PRECONDITION, "llama_mismatch",
          "its llama.cpp: 0.8.0; worker attic's: 0.7.0" },
        { other_factors, NK_E_PRECONDITION, "rope_mismatch",
          "its RoPE factors: long (2048 tokens); worker attic's: not told" },
        { other_prompt, NK_E_DATA_LOSS, "bad_peer", "took 2 ids" },
        { reused_more_than_sent, NK_E_DATA_LOSS, "bad_peer", "reused 4; 3 were sent" },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        opened_change = cases[i].change;
        refuse(opened_otherwise, cases[i].code, cases[i].reason, cases[i].says);
    }
}

/* The first stage took the session; one behind it is too old to refuse it. */
static void test_gen__deterministic_means_that_every_worker_says_it_is(void **state)
{
    struct nk_gen_opts o = options();

    (void)state;
    opened_change = shared_sessions;
    o.deterministic = true;
    refuse_opts(opened_otherwise, &o, NK_E_INVALID, "not_deterministic", "worker cellar (");
    refuse_opts(opened_otherwise, &o, NK_E_INVALID, "not_deterministic", "--deterministic");
}

/* ---- errors and ends ---- */

SCRIPT(kv_is_full)
{
    struct nk_error e;

    (void)f;
    nk_fail(&e, NK_E_EXHAUSTED, "kv_full", "no room");
    nk_call_finish(c, &e);
}

SCRIPT(neighbour_is_gone)
{
    struct nk_error e;

    (void)f;
    nk_fail(&e, NK_E_UNAVAILABLE, "peer_gone", "%s does not answer",
            fake_cluster()->workers[1].address);
    nk_call_finish(c, &e);
}

static void test_gen__a_workers_status_comes_through_and_the_right_worker_is_named(void **state)
{
    (void)state;
    refuse(kv_is_full, NK_E_EXHAUSTED, "kv_full", "worker attic (");
    refuse(neighbour_is_gone, NK_E_UNAVAILABLE, "peer_gone", "worker cellar: ");
}

SCRIPT(longer_neighbour_is_gone)
{
    struct nk_error e;

    (void)f;
    nk_fail(&e, NK_E_UNAVAILABLE, "peer_gone", "inside.%s does not answer",
            fake_cluster()->workers[0].address);
    nk_call_finish(c, &e);
}

static void test_gen__an_address_within_a_longer_one_blames_nobody(void **state)
{
    struct nk_cluster cluster = *fake_cluster();
    struct nk_gen_opts o = options();
    struct heard h;
    nk_chain *c;

    (void)state;
    snprintf(cluster.workers[1].address, sizeof cluster.workers[1].address, "inside.%.200s",
             cluster.workers[0].address);
    fakes[0].script = longer_neighbour_is_gone;
    c = fake_chain_of(&cluster);
    start(c, &h, &o);
    finish(&h);
    assert_string_equal(h.err.reason, "peer_gone");
    assert_non_null(strstr(h.err.msg, "worker cellar"));
    assert_null(strstr(h.err.msg, "worker attic"));
    nk_chain_close(c);
}

static void test_gen__a_worker_that_is_not_there_is_unavailable_and_named(void **state)
{
    struct nk_cluster cluster = *fake_cluster();
    struct nk_gen_opts o = options();
    struct heard h;
    nk_chain *c;

    (void)state;
    strcpy(cluster.workers[0].address, "127.0.0.1:1");
    c = fake_chain_of(&cluster);
    start(c, &h, &o);
    finish(&h);
    assert_int_equal(h.err.code, NK_E_UNAVAILABLE);
    assert_non_null(strstr(h.err.msg, "worker attic"));
    nk_chain_close(c);
}

SCRIPT(two_tokens_and_no_more)
{
    send_opened(f, c, NULL);
    send_token(c, 0, "a");
    send_token(c, 1, "b");
}

static void test_gen__cancelled_it_ends_once_with_cancelled_and_the_stream_is_gone(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    fakes[0].script = two_tokens_and_no_more;
    start(c, &h, &o);
    heard_wait(&h, 2, false);
    nk_gen_cancel(h.g);
    nk_gen_cancel(h.g);
    heard_wait(&h, 2, true);
    assert_int_equal(h.err.code, NK_E_CANCELLED);
    assert_int_equal(h.stats.n_generated, 2);
    nk_gen_cancel(h.g); /* after the end: nothing happens */
    nk_gen_free(h.g);
    fake_wait(&fakes[0].n_ended, 1);
    /* Cancelled at once, perhaps before it began. */
    start(c, &h, &o);
    nk_gen_cancel(h.g);
    finish(&h);
    assert_int_equal(h.err.code, NK_E_CANCELLED);
    nk_chain_close(c);
}

static void test_gen__handlers_may_cancel_and_free(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    fakes[0].script = two_tokens_and_no_more;
    heard_init(&h);
    h.free_in_done = h.cancel_in_token = true;
    assert_int_equal(nk_gen_start(&h.g, c, &o, &handlers, &h, NULL), 0);
    heard_wait(&h, 1, true);
    assert_int_equal(h.err.code, NK_E_CANCELLED);
    nk_chain_close(c);
    assert_int_equal(h.n_done, 1);
}

static void test_gen__closing_the_chain_cancels_what_runs(void **state)
{
    enum { MANY = 50 };
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard *h = calloc(MANY, sizeof *h);

    (void)state;
    fakes[0].script = two_tokens_and_no_more;
    for (int i = 0; i < MANY; i++)
        start(c, &h[i], &o);
    heard_wait(&h[MANY / 2], 1, false);
    nk_chain_close(c);
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(h[i].n_done, 1);
        assert_int_equal(h[i].err.code, NK_E_CANCELLED);
        nk_gen_cancel(h[i].g); /* also without a chain */
        nk_gen_free(h[i].g);
    }
    free(h);
}

/* ---- deadlines and silence ---- */

/* It ends with DEADLINE and this reason and sentence. */
static void times_out(struct heard *h, const char *reason, const char *says)
{
    finish(h);
    assert_int_equal(h->err.code, NK_E_DEADLINE);
    if (strcmp(h->err.reason, reason) || !strstr(h->err.msg, says) ||
        !strstr(h->err.msg, "worker attic"))
        fail_msg("%s '%s' where %s '%s' was expected", h->err.reason, h->err.msg, reason, says);
}

static void test_gen__a_deadline_ends_it_exactly_then(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.deadline_ms = 1000;
    start_held(c, &h, &o);
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false);
    fake_pass_ms(c, 999);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 2, false); /* it lives */
    fake_pass_ms(c, 1);
    times_out(&h, "deadline", "within 1000 ms; 2 tokens");
    assert_int_equal(h.stats.n_generated, 2);
    assert_int_equal(h.stats.total_us, 1000000);
    nk_chain_close(c);
}

enum {
    STALL_MS = 1000,
    LIMIT_MS = STALL_MS + 2000
}; /* what is asked for, and what is waited for */

/* How many Infos the first worker was asked for by now: what was asked before a check has come
 * when the check's own have. */
static int infos_of_checks;

static int infos(nk_chain *c)
{
    struct nk_chain_report *r;

    fake_turn();
    assert_int_equal(nk_chain_check(c, PATIENCE_MS, &r, NULL), 0);
    free(r);
    infos_of_checks += 5;
    return fakes[0].n_infos - infos_of_checks;
}

static void test_gen__silence_after_tokens_is_a_stall_exactly_at_its_limit(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.stall_ms = STALL_MS;
    start_held(c, &h, &o);
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false);
    for (int i = 0; i < 3; i++) { /* a millisecond before it, each time */
        fake_pass_ms(c, LIMIT_MS - 1);
        fake_say(&fakes[0], say_token);
        heard_wait(&h, i + 2, false);
    }
    fake_pass_ms(c, LIMIT_MS - 1);
    assert_int_equal(infos(c), 0); /* after tokens nobody is asked */
    fake_pass_ms(c, 1);
    times_out(&h, "stalled", "silent for 3000 ms after 4 tokens");
    nk_chain_close(c);
}

static void test_gen__silence_before_tokens_may_be_a_queue_and_the_stage_is_asked(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.stall_ms = STALL_MS;
    start_held(c, &h, &o);
    for (int i = 0; i < 5; i++) { /* it answers each time, and is not given up */
        fake_pass_ms(c, LIMIT_MS - 1);
        assert_int_equal(infos(c), i);
        fake_pass_ms(c, 1);
        assert_int_equal(infos(c), i + 1);
    }
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    fake_say(&fakes[0], say_done);
    finish(&h);
    assert_true(h.ok);
    nk_chain_close(c);
}

static void test_gen__a_step_that_was_done_is_a_sign_of_life(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.stall_ms = STALL_MS;
    start_held(c, &h, &o);
    fake_say(&fakes[0], say_opened);
    for (int i = 0; i < 3; i++) {
        fake_pass_ms(c, LIMIT_MS - 1);
        fake_say(&fakes[0], say_step_done);
        assert_int_equal(infos(c), 0); /* whose answers came after it */
    }
    fake_pass_ms(c, LIMIT_MS - 1);
    assert_int_equal(infos(c), 0);
    fake_pass_ms(c, 1);
    assert_int_equal(infos(c), 1);
    nk_gen_cancel(h.g);
    finish(&h);
    nk_chain_close(c);
}

static void test_gen__a_stage_that_answers_is_given_up_when_no_queue_can_be_that_long(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.stall_ms = 598000; /* with the margin 600 s: a room's wait, and two of these for the prompt */
    start_held(c, &h, &o);
    fake_pass_ms(c, 600000);
    assert_int_equal(infos(c), 1);
    fake_pass_ms(c, 600000);
    assert_int_equal(infos(c), 2);
    fake_pass_ms(c, 599999);
    assert_int_equal(infos(c), 2);
    fake_pass_ms(c, 1);
    times_out(&h, "stalled", "silent for 1800000 ms after 0 tokens");
    nk_chain_close(c);
}

static void test_gen__a_stage_that_does_not_answer_info_is_given_up(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.stall_ms = STALL_MS;
    fakes[0].info_silent = true;
    start_held(c, &h, &o);
    fake_pass_ms(c, LIMIT_MS);
    fake_wait(&fakes[0].n_infos, 1);
    fake_pass_ms(c, 5000);
    times_out(&h, "stalled", "silent for 8000 ms, and it does not answer Info: ");
    /* A token that comes a millisecond before that counts more than the answer. */
    start_held(c, &h, &o);
    fake_pass_ms(c, LIMIT_MS);
    fake_wait(&fakes[0].n_infos, 2);
    fake_pass_ms(c, 4999);
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false);
    fake_pass_ms(c, 1);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 2, false);
    fake_say(&fakes[0], say_done);
    finish(&h);
    assert_true(h.ok);
    nk_chain_close(c);
}

static int reset(void **state)
{
    (void)state;
    fake_reset();
    infos_of_checks = 0;
    return 0;
}

#define T(name) cmocka_unit_test_setup(name, reset)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_gen__hands_out_tokens_then_the_stats_once),
        T(test_gen__progress_of_the_prompt_is_what_the_stages_have_answered),
        T(test_gen__log_probabilities_of_the_prompt_are_held_against_its_ids),
        T(test_gen__times_are_those_of_the_clock),
        T(test_gen__the_end_of_generation_token_is_not_handed_out_but_its_text_is),
        T(test_gen__what_was_done_stays_done_however_the_stream_ends),
        T(test_gen__log_probabilities_come_when_asked_for),
        T(test_gen__open_says_what_was_asked_for),
        T(test_gen__refuses_options_out_of_range),
        T(test_gen__once_started_done_alone_tells_how_it_ends),
        T(test_gen__a_sessions_name_is_drawn_from_the_chance_that_was_given),
        T(test_gen__a_peer_that_breaks_the_protocol_is_given_up),
        T(test_gen__a_chain_that_is_not_the_files_is_refused_before_the_first_token),
        T(test_gen__deterministic_means_that_every_worker_says_it_is),
        T(test_gen__a_workers_status_comes_through_and_the_right_worker_is_named),
        T(test_gen__an_address_within_a_longer_one_blames_nobody),
        T(test_gen__a_worker_that_is_not_there_is_unavailable_and_named),
        T(test_gen__cancelled_it_ends_once_with_cancelled_and_the_stream_is_gone),
        T(test_gen__handlers_may_cancel_and_free),
        T(test_gen__closing_the_chain_cancels_what_runs),
        T(test_gen__a_deadline_ends_it_exactly_then),
        T(test_gen__silence_after_tokens_is_a_stall_exactly_at_its_limit),
        T(test_gen__silence_before_tokens_may_be_a_queue_and_the_stage_is_asked),
        T(test_gen__a_step_that_was_done_is_a_sign_of_life),
        T(test_gen__a_stage_that_answers_is_given_up_when_no_queue_can_be_that_long),
        T(test_gen__a_stage_that_does_not_answer_info_is_given_up),
    };

    return cmocka_run_group_tests(tests, fake_start, fake_stop);
}
