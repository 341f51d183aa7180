/* Generations that lose a worker and go on: over fake workers, which lose the connection at any
 * message and say what they like when the session comes back. */
#include "unit/chain/heard.h"

#define SCRIPT(name) static void name(struct fake *f, nk_call *c)
#define NONE         NAKSHATRA__V1__FINISH_REASON__FINISH_NONE

/* The whole story: Opened, six tokens of which the last one ends it at a stop string, Done. */
enum { STORY_TOKENS = 6, STORY_MESSAGES = STORY_TOKENS + 2 };
static const char story_text[] = "abcdef";

/* How the n-th Open is answered: that many messages of the story, then the loss. */
struct chapter {
    int n_messages;
    int code; /* the status that tells of the loss; 0: the stream is cut */
    const char *reason;
};
static const struct chapter *chapters;

/* What the Opens said, each after the other. */
enum { OPENS_MAX = 8 };
static struct open_said {
    uint8_t session[16];
    uint32_t attempt, seed, n_predict, chunk, hold_ms, deadline_ms;
    bool has_seed, forget_held, exact;
    size_t n_prompt, n_generated;
    int32_t generated[STORY_TOKENS];
} opens[OPENS_MAX];
static int n_opens;

static void note_open(const struct fake *f)
{
    const Nakshatra__V1__Open *o = f->request->open;
    struct open_said *s = &opens[n_opens++ % OPENS_MAX];

    *s = (struct open_said){ .attempt = o->attempt,
                             .n_predict = o->limits->n_predict,
                             .deadline_ms = o->limits->deadline_ms,
                             .chunk = o->chunk,
                             .hold_ms = o->hold_ms,
                             .forget_held = o->forget_held,
                             .exact = o->exact,
                             .n_prompt = o->n_prompt_ids,
                             .n_generated = o->n_generated_ids };
    memcpy(s->session, o->session.data, sizeof s->session);
    s->has_seed = o->sampling->seed_given_case == NAKSHATRA__V1__SAMPLING__SEED_GIVEN_SEED;
    s->seed = s->has_seed ? o->sampling->seed : 0;
    for (size_t i = 0; i < o->n_generated_ids && i < STORY_TOKENS; i++)
        s->generated[i] = o->generated_ids[i];
    fake_turn(); /* what follows may end the call, and then the test goes on */
}

static void opened_as_asked(Nakshatra__V1__Opened *o)
{
    o->n_predict = 8;
    o->chunk = 32;
    for (size_t i = 0; i < o->n_stages; i++)
        o->stages[i]->held = 2;
}

static void done_at_stop(Nakshatra__V1__Done *d)
{
    d->finish = NAKSHATRA__V1__FINISH_REASON__FINISH_STOP;
    d->stop_string = (ProtobufCBinaryData){ 3, (uint8_t *)(uintptr_t) "end" };
}

static void send_story_token(nk_call *c, uint32_t i)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Token t = NAKSHATRA__V1__TOKEN__INIT;

    t.index = i;
    t.id = (int32_t)i + 10;
    t.text = (ProtobufCBinaryData){ 1, (uint8_t *)(uintptr_t)&story_text[i] };
    if (i == STORY_TOKENS - 1) {
        t.finish = NAKSHATRA__V1__FINISH_REASON__FINISH_STOP;
        t.stop_string = (ProtobufCBinaryData){ 3, (uint8_t *)(uintptr_t) "end" };
    }
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_TOKEN;
    r.token = &t;
    send_reply(c, &r);
}

static void lose(nk_call *c, int code, const char *reason)
{
    struct nk_error e;

    fake_turn();
    if (!code) {
        nk_call_cancel(c);
        return;
    }
    nk_fail(&e, code, reason, "%s: so it is", fake_cluster()->workers[1].address);
    nk_call_finish(c, &e);
}

/* Tells the story from where the Open says that it is, up to where the chapter ends. */
SCRIPT(tell)
{
    struct chapter now = chapters[n_opens];
    uint32_t next = (uint32_t)f->request->open->n_generated_ids;

    note_open(f);
    for (int i = 0; i < now.n_messages; i++) {
        if (i == 0) {
            send_opened(f, c, opened_as_asked);
        } else if (next < STORY_TOKENS) {
            send_story_token(c, next++);
        } else {
            send_done(c, next, done_at_stop);
            nk_call_finish(c, NULL);
            return;
        }
    }
    lose(c, now.code, now.reason);
}

/* The one that h has ended with goes on, on c. */
static void resume(nk_chain *c, struct heard *h)
{
    struct nk_error err;
    nk_gen *lost = h->g;

    fake_turn();
    h->n_done = 0;
    if (nk_gen_resume(&h->g, c, lost, &handlers, h, &err))
        fail_msg("%s", err.msg);
    nk_gen_free(lost);
}

/* Tells the story of these chapters, as often resumed as they say; the last one is whole. */
static void hear(const struct chapter *told, int n, struct heard *h)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();

    chapters = told;
    n_opens = 0;
    fakes[0].script = tell;
    start(c, h, &o);
    for (int i = 1; i < n; i++) {
        heard_wait(h, 0, true);
        assert_false(h->ok);
        if (!nk_gen_resumable(h->g))
            fail_msg("not resumable: %s", h->err.msg);
        resume(c, h);
    }
    heard_wait(h, 0, true);
    if (!h->ok)
        fail_msg("%s", h->err.msg);
    nk_gen_free(h->g);
    nk_chain_close(c);
    fake_wait(&fakes[0].n_ended, fakes[0].n_calls);
    fake_turn();
}

static void is_whole(const struct heard *h)
{
    assert_string_equal(h->text, story_text);
    assert_int_equal(h->n_tokens, STORY_TOKENS);
    assert_int_equal(h->last_index, STORY_TOKENS - 1);
    assert_int_equal(h->stats.n_generated, STORY_TOKENS);
    assert_int_equal(h->stats.finish, NK_FINISH_STOP);
    assert_string_equal(h->stats.stop_string, "end");
    assert_int_equal(h->stats.n_prompt, 3);
    assert_int_equal(h->stats.seed, 5);
}

/* ---- going on ---- */

static void test_resume__a_loss_at_any_message_leaves_the_text_whole(void **state)
{
    struct chapter told[2] = { { 0, 0, NULL }, { STORY_MESSAGES, 0, NULL } };
    struct heard h;

    (void)state;
    for (int n = 0; n <= STORY_TOKENS; n++) {
        told[0] = (struct chapter){ n, NK_E_UNAVAILABLE, "peer_gone" };
        hear(told, 2, &h);
        is_whole(&h);
        assert_int_equal(n_opens, 2);
        assert_int_equal(h.stats.n_recovered, 1);
        assert_int_equal(opens[0].attempt, 0);
        assert_int_equal(opens[0].hold_ms, 60000);
        assert_int_equal(opens[0].n_generated, 0);
        assert_int_equal(opens[1].attempt, 1);
        assert_int_equal(opens[1].hold_ms, 60000);
        assert_int_equal(opens[1].n_prompt, 3);
        assert_memory_equal(opens[1].session, opens[0].session, 16);
        assert_int_equal(opens[1].n_generated, n ? n - 1 : 0);
        for (size_t i = 0; i < opens[1].n_generated; i++)
            assert_int_equal(opens[1].generated[i], 10 + (int)i);
        /* What the first attempt was told is kept, once it was. */
        assert_int_equal(opens[1].has_seed, n > 0);
        assert_int_equal(opens[1].seed, n > 0 ? 5 : 0);
        assert_int_equal(opens[1].chunk, n > 0 ? 32 : 0);
        assert_int_equal(opens[1].n_predict, 8);
        assert_int_equal(h.stats.n_stages, 2);
    }
}

static void test_resume__a_stream_that_is_cut_is_a_loss_too(void **state)
{
    struct chapter told[2] = { { 3, 0, NULL }, { STORY_MESSAGES, 0, NULL } };
    struct heard h;

    (void)state;
    hear(told, 2, &h);
    is_whole(&h);
}

static void test_resume__a_stream_that_is_cut_was_not_cancelled(void **state)
{
    static const struct chapter told = { 3, 0, NULL };
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    chapters = &told;
    n_opens = 0;
    fakes[0].script = tell;
    start(c, &h, &o);
    heard_wait(&h, 0, true);
    assert_int_equal(h.err.code, NK_E_UNAVAILABLE);
    assert_string_equal(h.err.reason, "peer_gone");
    assert_true(nk_gen_resumable(h.g));
    nk_gen_free(h.g);
    nk_chain_close(c);
}

static void test_resume__whoever_has_said_the_last_token_is_done(void **state)
{
    struct chapter told = { STORY_TOKENS + 1, NK_E_UNAVAILABLE, "peer_gone" };
    struct heard h;

    (void)state;
    hear(&told, 1, &h);
    is_whole(&h);
    assert_int_equal(h.stats.n_recovered, 0);
    assert_int_equal(h.stats.n_stages, 0);
}

static void test_resume__several_losses_have_rising_attempts(void **state)
{
    static const struct chapter told[] = {
        { 2, NK_E_UNAVAILABLE, "peer_gone" }, { 0, NK_E_UNAVAILABLE, "unreachable" },
        { 1, NK_E_DEADLINE, "stalled" },      { 3, NK_E_UNAVAILABLE, "draining" },
        { STORY_MESSAGES, 0, NULL },
    };
    struct heard h;

    (void)state;
    hear(told, 5, &h);
    is_whole(&h);
    assert_int_equal(n_opens, 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(opens[i].attempt, i);
    assert_int_equal(opens[4].n_generated, 3);
    assert_int_equal(h.stats.n_recovered, 3); /* the second attempt was never open */
    /* Each stage held 2 positions: of 3 + 1 - 1 twice, and of 3 + 3 - 1. */
    assert_int_equal(h.stats.n_replayed, 2 * (1 + 1 + 3));
}

/* ---- what is a loss ---- */

static void ended_with(int n_messages, int code, const char *reason, bool resumable)
{
    struct chapter told = { n_messages, code, reason };
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;
    struct nk_error err;
    nk_gen *again;

    chapters = &told;
    n_opens = 0;
    fakes[0].script = tell;
    start(c, &h, &o);
    heard_wait(&h, 0, true);
    assert_string_equal(h.err.reason, reason);
    if (nk_gen_resumable(h.g) != resumable)
        fail_msg("%s after %d messages is %sresumable", reason, n_messages,
                 resumable ? "not " : "");
    if (!resumable) {
        assert_int_equal(nk_gen_resume(&again, c, h.g, &handlers, &h, &err), NK_E_PRECONDITION);
        assert_string_equal(err.reason, "not_resumable");
        assert_null(again);
    } else if (n_messages) {
        assert_int_equal(nk_gen_blamed(h.g), 1); /* whose address the message has */
    }
    nk_gen_free(h.g);
    nk_chain_close(c);
}

static void test_resume__only_the_loss_of_a_worker_is_resumable(void **state)
{
    static const struct {
        int code;
        const char *reason;
        bool at_open, later;
    } cases[] = {
        { NK_E_UNAVAILABLE, "peer_gone", true, true },
        { NK_E_UNAVAILABLE, "unreachable", true, true },
        { NK_E_UNAVAILABLE, "shutting_down", true, true },
        { NK_E_UNAVAILABLE, "draining", true, true },
        { NK_E_UNAVAILABLE, "asleep", true, true },
        { NK_E_UNAVAILABLE, "not_serving", true, true },
        { NK_E_DEADLINE, "stalled", true, true },
        { NK_E_DEADLINE, "idle", false, true },
        { NK_E_EXHAUSTED, "no_memory", false, true },
        { NK_E_EXHAUSTED, "send_queue_full", false, true },
        { NK_E_DENIED, "removed", false, true },
        { NK_E_PRECONDITION, "stale_epoch", false, true },
        /* Refused, over, or broken for good. */
        { NK_E_EXHAUSTED, "kv_full", false, false },
        { NK_E_EXHAUSTED, "queue_full", false, false },
        { NK_E_EXHAUSTED, "queue_timeout", false, false },
        { NK_E_INVALID, "context_length_exceeded", false, false },
        { NK_E_INVALID, "not_deterministic", false, false },
        { NK_E_PRECONDITION, "model_mismatch", false, false },
        { NK_E_PRECONDITION, "range_mismatch", false, false },
        { NK_E_PRECONDITION, "stale_attempt", false, false },
        { NK_E_DENIED, "peer_not_allowed", false, true },
        { NK_E_DEADLINE, "deadline", false, false },
        { NK_E_INTERNAL, "bad_logits", false, false },
        { NK_E_DATA_LOSS, "bad_peer", false, false },
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ended_with(0, cases[i].code, cases[i].reason, cases[i].at_open);
        ended_with(2, cases[i].code, cases[i].reason, cases[i].later);
    }
}

static void test_resume__without_hold_or_after_a_cancel_nothing_is_resumable(void **state)
{
    struct chapter told = { 2, NK_E_UNAVAILABLE, "peer_gone" };
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    chapters = &told;
    n_opens = 0;
    o.hold_ms = 0;
    fakes[0].script = tell;
    start(c, &h, &o);
    heard_wait(&h, 0, true);
    assert_int_equal(opens[0].hold_ms, 0);
    assert_false(nk_gen_resumable(h.g));
    nk_gen_free(h.g);
    o.hold_ms = 7000;
    o.exact = true;
    n_opens = 0;
    fakes[0].script = fake_hold;
    start(c, &h, &o);
    fake_wait(&fakes[0].n_held, 1);
    note_open(&fakes[0]);
    assert_int_equal(opens[0].hold_ms, 7000);
    assert_true(opens[0].exact);
    nk_gen_cancel(h.g);
    heard_wait(&h, 0, true);
    assert_int_equal(h.err.code, NK_E_CANCELLED);
    assert_false(nk_gen_resumable(h.g));
    assert_int_equal(fakes[0].n_cancels, 1); /* the stages know that nobody comes back */
    nk_gen_free(h.g);
    nk_chain_close(c);
}

/* ---- the peer in a resumption ---- */

static void opened_with_other_seed(Nakshatra__V1__Opened *o)
{
    o->seed = 6;
}

static void opened_with_other_limit(Nakshatra__V1__Opened *o)
{
    o->n_predict = 2;
}

static void opened_with_half_the_prompt(Nakshatra__V1__Opened *o)
{
    o->n_prompt = 2;
}

static void (*opened_change)(Nakshatra__V1__Opened *o);

SCRIPT(lose_then_open_otherwise)
{
    note_open(f);
    send_opened(f, c, f->request->open->attempt ? opened_change : opened_as_asked);
    if (f->request->open->attempt) {
        send_story_token(c, (uint32_t)f->request->open->n_generated_ids);
    } else {
        send_story_token(c, 0);
        send_story_token(c, 1);
        lose(c, NK_E_UNAVAILABLE, "peer_gone");
    }
}

static void test_resume__what_was_said_before_binds_the_peer(void **state)
{
    static const struct {
        void (*change)(Nakshatra__V1__Opened *o);
        const char *says;
    } cases[] = {
        { opened_with_other_seed, "with seed 6; the session has 5" },
        { opened_with_other_limit, "a limit of 2 tokens; 2 came already" },
        { opened_with_half_the_prompt, "took 2 ids" },
    };
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    fakes[0].script = lose_then_open_otherwise;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        opened_change = cases[i].change;
        n_opens = 0;
        start(c, &h, &o);
        heard_wait(&h, 2, true);
        resume(c, &h);
        heard_wait(&h, 0, true);
        assert_string_equal(h.err.reason, "bad_peer");
        if (!strstr(h.err.msg, cases[i].says))
            fail_msg("'%s' where '%s' was expected", h.err.msg, cases[i].says);
        assert_false(nk_gen_resumable(h.g));
        assert_string_equal(h.text, "ab");
        nk_gen_free(h.g);
    }
    nk_chain_close(c);
}

static void opened_over_the_limit(Nakshatra__V1__Opened *o)
{
    o->n_predict = 9;
}

static void opened_under_the_limit(Nakshatra__V1__Opened *o)
{
    o->n_predict = 3;
}

SCRIPT(open_otherwise_and_tell_all)
{
    send_opened(f, c, opened_change);
    for (uint32_t i = 0; i < STORY_TOKENS; i++)
        send_story_token(c, i);
}

static void test_resume__the_limit_in_use_is_the_workers_within_what_was_asked(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    fakes[0].script = open_otherwise_and_tell_all;
    opened_change = opened_over_the_limit;
    start(c, &h, &o);
    finish(&h);
    assert_non_null(strstr(h.err.msg, "a limit of 9 tokens; 8 were asked for"));
    opened_change = opened_under_the_limit;
    start(c, &h, &o);
    finish(&h);
    assert_non_null(strstr(h.err.msg, "a token over the limit of 3"));
    assert_int_equal(h.n_tokens, 3);
    nk_chain_close(c);
}

static const char *misfit_reason;
static int n_misfits;

SCRIPT(lose_then_misfit)
{
    struct nk_error e;

    note_open(f);
    if (f->request->open->attempt == 0) {
        send_opened(f, c, opened_as_asked);
        send_story_token(c, 0);
        lose(c, NK_E_UNAVAILABLE, "peer_gone");
    } else if (n_misfits) {
        n_misfits--;
        fake_turn();
        nk_fail(&e, NK_E_PRECONDITION, misfit_reason, "it does not fit");
        nk_call_finish(c, &e);
    } else {
        send_opened(f, c, opened_as_asked);
        for (uint32_t i = 1; i < STORY_TOKENS; i++)
            send_story_token(c, i);
        send_done(c, STORY_TOKENS, done_at_stop);
        nk_call_finish(c, NULL);
    }
}

static void test_resume__what_does_not_fit_is_forgotten_and_tried_once_more(void **state)
{
    static const char *const reasons[] = { "no_rollback", "gap", "bad_resume" };
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    fakes[0].script = lose_then_misfit;
    for (size_t i = 0; i < 3; i++) {
        misfit_reason = reasons[i];
        n_misfits = 1;
        n_opens = 0;
        start(c, &h, &o);
        heard_wait(&h, 1, true);
        resume(c, &h);
        heard_wait(&h, 0, true);
        if (!h.ok)
            fail_msg("%s", h.err.msg);
        is_whole(&h);
        assert_int_equal(n_opens, 3);
        assert_int_equal(opens[1].attempt, 1);
        assert_false(opens[1].forget_held);
        assert_int_equal(opens[2].attempt, 2);
        assert_true(opens[2].forget_held);
        assert_int_equal(opens[2].n_generated, 1);
        assert_int_equal(h.stats.n_recovered, 1);
        nk_gen_free(h.g);
    }
    n_misfits = 2; /* and not for ever */
    n_opens = 0;
    start(c, &h, &o);
    heard_wait(&h, 1, true);
    resume(c, &h);
    heard_wait(&h, 0, true);
    assert_string_equal(h.err.reason, "bad_resume");
    assert_false(nk_gen_resumable(h.g));
    assert_int_equal(n_opens, 3);
    nk_gen_free(h.g);
    nk_chain_close(c);
}

static void replaying(nk_call *c, const char *worker, uint32_t n, uint32_t of)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__Replaying m = NAKSHATRA__V1__REPLAYING__INIT;

    m.done = n;
    m.total = of;
    m.worker_id = (char *)(uintptr_t)worker;
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_REPLAYING;
    r.replaying = &m;
    send_reply(c, &r);
}

SCRIPT(replays_what_was_not_lost)
{
    (void)f;
    replaying(c, "b", 1, 2);
}

SCRIPT(replays_more_than_there_is)
{
    if (f->request->open->attempt)
        replaying(c, "b", 3, 2);
    else
        lose(c, NK_E_UNAVAILABLE, "peer_gone");
}

static void test_resume__a_replay_is_believed_of_resumptions_only(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    fakes[0].script = replays_what_was_not_lost;
    start(c, &h, &o);
    finish(&h);
    assert_string_equal(h.err.reason, "bad_peer");
    assert_int_equal(h.n_replaying, 0);
    fakes[0].script = replays_more_than_there_is;
    start(c, &h, &o);
    heard_wait(&h, 0, true);
    resume(c, &h);
    finish(&h);
    assert_string_equal(h.err.reason, "bad_peer");
    assert_int_equal(h.n_replaying, 0);
    nk_chain_close(c);
}

/* ---- times ---- */

static uint32_t next_token; /* on the call that is held */

static void say_opened(struct fake *f, nk_call *c)
{
    next_token = (uint32_t)f->request->open->n_generated_ids;
    send_opened(f, c, opened_as_asked);
}

static void say_token(struct fake *f, nk_call *c)
{
    (void)f;
    send_story_token(c, next_token++);
}

static void say_done(struct fake *f, nk_call *c)
{
    (void)f;
    send_done(c, next_token, done_at_stop);
    nk_call_finish(c, NULL);
}

static void say_gone(struct fake *f, nk_call *c)
{
    (void)f;
    lose(c, NK_E_UNAVAILABLE, "peer_gone");
}

static void say_replaying(struct fake *f, nk_call *c)
{
    (void)f;
    replaying(c, "cellar\x1b[2J", 64, 100);
}

static void heard_replays(struct heard *h, int n)
{
    pthread_mutex_lock(&h->mutex);
    while (h->n_replaying < n && !h->n_done)
        pthread_cond_wait(&h->cond, &h->mutex);
    pthread_mutex_unlock(&h->mutex);
    assert_int_equal(h->n_done, 0);
    fake_turn();
}

static void test_resume__the_pause_is_from_the_loss_to_the_next_token(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.deadline_ms = 10000;
    fakes[0].script = fake_hold;
    start(c, &h, &o);
    fake_wait(&fakes[0].n_held, 1);
    fake_say(&fakes[0], say_opened);
    fake_pass_ms(c, 7);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false);
    fake_pass_ms(c, 100);
    fake_say(&fakes[0], say_gone);
    heard_wait(&h, 1, true);
    fake_pass_ms(c, 1000); /* while a worker is looked for */
    resume(c, &h);
    fake_wait(&fakes[0].n_held, 2);
    n_opens = 0;
    note_open(&fakes[0]);
    assert_int_equal(opens[0].deadline_ms, 10000 - 1107); /* what is left of it */
    fake_pass_ms(c, 10);
    fake_say(&fakes[0], say_gone); /* during the recovery */
    heard_wait(&h, 1, true);
    fake_pass_ms(c, 2000);
    resume(c, &h);
    fake_wait(&fakes[0].n_held, 3);
    fake_say(&fakes[0], say_replaying);
    heard_replays(&h, 1);
    fake_pass_ms(c, 5);
    fake_say(&fakes[0], say_opened);
    for (int i = 1; i < STORY_TOKENS; i++)
        fake_say(&fakes[0], say_token);
    heard_wait(&h, STORY_TOKENS, false);
    fake_pass_ms(c, 1);
    fake_say(&fakes[0], say_done);
    heard_wait(&h, 0, true);
    assert_true(h.ok);
    is_whole(&h);
    assert_int_equal(h.n_replaying, 1);
    assert_int_equal(h.replayed, 64);
    assert_int_equal(h.to_replay, 100);
    assert_string_equal(h.replayed_to, "cellar^[[2J"); /* a peer's name for somebody */
    assert_int_equal(h.stats.ttft_us, 7000);
    assert_int_equal(h.stats.prefill_us, 7000);
    assert_int_equal(h.stats.decode_us, 100000); /* without the pauses */
    assert_int_equal(h.stats.recovery_us, (1000 + 10 + 2000 + 5) * 1000);
    assert_int_equal(h.stats.total_us, (7 + 100 + 1000 + 10 + 2000 + 5 + 1) * 1000);
    assert_int_equal(h.stats.n_recovered, 1);
    nk_gen_free(h.g);
    nk_chain_close(c);
}

static void test_resume__a_deadline_goes_on_through_losses(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.deadline_ms = 1000;
    fakes[0].script = fake_hold;
    start(c, &h, &o);
    fake_wait(&fakes[0].n_held, 1);
    fake_say(&fakes[0], say_gone);
    heard_wait(&h, 0, true);
    fake_pass_ms(c, 400);
    resume(c, &h);
    fake_wait(&fakes[0].n_held, 2);
    fake_pass_ms(c, 599);
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false); /* it lives */
    fake_pass_ms(c, 1);
    finish(&h);
    assert_string_equal(h.err.reason, "deadline");
    nk_chain_close(c);
}

enum { STALL_MS = 1000, LIMIT_MS = STALL_MS + 2000 };

static void
test_resume__silence_before_the_next_token_is_no_stall_and_replaying_none_at_all(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct heard h;

    (void)state;
    o.stall_ms = STALL_MS;
    fakes[0].script = fake_hold;
    start(c, &h, &o);
    fake_wait(&fakes[0].n_held, 1);
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 1, false);
    fake_pass_ms(c, LIMIT_MS);
    heard_wait(&h, 1, true);
    assert_string_equal(h.err.reason, "stalled");
    assert_true(nk_gen_resumable(h.g));
    assert_int_equal(fakes[0].n_cancels, 0); /* they are to hold the session */
    assert_int_equal(nk_gen_blamed(h.g), 0);
    resume(c, &h);
    fake_wait(&fakes[0].n_held, 2);
    for (int i = 0; i < 3; i++) {
        fake_pass_ms(c, LIMIT_MS - 1);
        fake_say(&fakes[0], say_replaying);
        heard_replays(&h, i + 1);
        assert_int_equal(fakes[0].n_infos, 0); /* it was heard */
    }
    fake_pass_ms(c, LIMIT_MS);
    fake_wait(&fakes[0].n_infos, 1); /* it is asked, and answers */
    fake_say(&fakes[0], say_opened);
    fake_say(&fakes[0], say_token);
    heard_wait(&h, 2, false);
    nk_gen_cancel(h.g);
    finish(&h);
    assert_int_equal(h.err.code, NK_E_CANCELLED);
    nk_chain_close(c);
}

/* ---- where and when ---- */

struct again { /* resumes inside `done` */
    struct heard h;
    nk_chain *c;
};

static void done_and_again(void *user, const struct nk_gen_stats *stats, const struct nk_error *err)
{
    struct again *a = user;
    nk_gen *lost = a->h.g;
    struct nk_gen_handlers on = handlers;

    on.done = done_and_again;
    if (err && nk_gen_resumable(lost)) {
        if (nk_gen_resume(&a->h.g, a->c, lost, &on, a, NULL))
            heard_done(user, stats, err);
        nk_gen_free(lost);
    } else {
        heard_done(user, stats, err);
    }
}

static void test_resume__it_may_be_resumed_inside_done(void **state)
{
    static const struct chapter told[] = { { 2, NK_E_UNAVAILABLE, "peer_gone" },
                                           { 2, NK_E_UNAVAILABLE, "peer_gone" },
                                           { STORY_MESSAGES, 0, NULL } };
    struct nk_gen_opts o = options();
    struct nk_gen_handlers on = handlers;
    struct again a;

    (void)state;
    chapters = told;
    n_opens = 0;
    on.done = done_and_again;
    a.c = fake_chain();
    heard_init(&a.h);
    fakes[0].script = tell;
    fake_turn();
    assert_int_equal(nk_gen_start(&a.h.g, a.c, &o, &on, &a, NULL), 0);
    heard_wait(&a.h, 0, true);
    assert_true(a.h.ok);
    is_whole(&a.h);
    assert_int_equal(a.h.stats.n_recovered, 2);
    nk_gen_free(a.h.g);
    nk_chain_close(a.c);
}

static void test_resume__it_goes_on_on_another_chain_of_the_same_model(void **state)
{
    static const struct chapter told[] = { { 3, NK_E_UNAVAILABLE, "peer_gone" },
                                           { STORY_MESSAGES, 0, NULL } };
    static const char *const stop[] = { "end", "stop" };
    static const struct nk_logit_bias bias[] = { { 7, 1.5f } };
    struct nk_cluster cluster = *fake_cluster();
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain(), *other;
    struct nk_error err;
    struct heard h;
    nk_gen *again;
    char salt[] = "salt", grammar[] = "root ::= [a-z]+";
    const Nakshatra__V1__Open *said;

    (void)state;
    chapters = told;
    n_opens = 0;
    o.stop = stop;
    o.n_stop = 2;
    o.sampling.logit_bias = bias;
    o.sampling.n_logit_bias = 1;
    o.sampling.grammar = grammar;
    o.reuse_salt = salt;
    fakes[0].script = tell;
    start(c, &h, &o);
    memset(salt, 'x', 4); /* they were borrowed for the start only */
    memset(grammar, 'x', 4);
    heard_wait(&h, 2, true);
    nk_chain_close(c);
    memset(cluster.model_sha256, 'a', 64);
    other = fake_chain_of(&cluster);
    assert_int_equal(nk_gen_resume(&again, other, h.g, &handlers, &h, &err), NK_E_INVALID);
    assert_string_equal(err.reason, "bad_request");
    nk_chain_close(other);
    other = fake_chain();
    resume(other, &h);
    heard_wait(&h, 0, true);
    assert_true(h.ok);
    is_whole(&h);
    fake_turn();
    said = fakes[0].request->open;
    assert_int_equal(said->n_stop, 2);
    assert_memory_equal(said->stop[1].data, "stop", 4);
    assert_int_equal(said->reuse_salt.len, 4);
    assert_memory_equal(said->reuse_salt.data, "salt", 4);
    assert_string_equal(said->sampling->grammar, "root ::= [a-z]+");
    assert_int_equal(said->sampling->n_logit_bias, 1);
    assert_int_equal(said->sampling->logit_bias[0]->id, 7);
    nk_gen_free(h.g);
    nk_chain_close(other);
}

/* ---- let go ---- */

/* Each worker was told once, of this session; the chain was closed right after, so that whatever
 * comes without being waited for did not come. */
static void were_told(const struct open_said *said, uint32_t attempt)
{
    fake_turn();
    for (int i = 0; i < FAKES; i++) {
        assert_int_equal(fakes[i].n_cancels, 1);
        assert_memory_equal(fakes[i].cancelled, said->session, 16);
        assert_int_equal(fakes[i].cancelled_attempt, attempt);
    }
}

static void test_resume__let_go_while_its_open_is_on_the_way(void **state)
{
    struct nk_gen_opts o = options();
    nk_chain *c = fake_chain();
    struct nk_gen_name name;
    struct heard h;

    (void)state;
    fakes[0].script = fake_hold;
    start(c, &h, &o);
    fake_wait(&fakes[0].n_held, 1);
    fake_say(&fakes[0], say_gone);
    heard_wait(&h, 0, true);
    resume(c, &h);
    fake_wait(&fakes[0].n_held, 2); /* its Open came, and has no answer */
    note_open(&fakes[0]);
    name = nk_gen_name(h.g);
    assert_int_equal(name.attempt, 1);
    nk_chain_let_go(c, &name, NULL);
    for (int i = 0; i < FAKES; i++)
        fake_wait(&fakes[i].n_cancels, 1);
    were_told(&opens[0], 1);
    fake_say(&fakes[0], say_gone); /* as a worker ends what was let go */
    heard_wait(&h, 0, true);
    nk_gen_free(h.g);
    nk_chain_close(c);
}

static void test_resume__let_go_and_closed_at_once_all_are_told(void **state)
{
    static const struct chapter told = { 3, NK_E_UNAVAILABLE, "peer_gone" };
    struct nk_gen_opts o = options();
    struct nk_gen_name name;
    struct heard h;

    (void)state;
    for (int round = 0; round < 20; round++) {
        nk_chain *c = fake_chain();

        fake_reset();
        n_opens = 0;
        chapters = &told;
        fakes[0].script = tell;
        start(c, &h, &o);
        heard_wait(&h, 0, true);
        name = nk_gen_name(h.g);
        nk_chain_let_go(c, &name, NULL);
        nk_gen_free(h.g);
        nk_chain_close(c);
        were_told(&opens[0], 0);
    }
}

static void test_resume__whose_end_is_lost_is_let_go_by_all(void **state)
{
    static const struct chapter told = { STORY_TOKENS + 1, NK_E_UNAVAILABLE, "peer_gone" };
    struct heard h;

    (void)state;
    hear(&told, 1, &h); /* closes the chain as soon as the end is heard */
    is_whole(&h);
    were_told(&opens[0], 0);
}

static int reset(void **state)
{
    (void)state;
    fake_reset();
    n_opens = 0;
    return 0;
}

#define T(name) cmocka_unit_test_setup(name, reset)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(test_resume__a_loss_at_any_message_leaves_the_text_whole),
        T(test_resume__a_stream_that_is_cut_is_a_loss_too),
        T(test_resume__a_stream_that_is_cut_was_not_cancelled),
        T(test_resume__whoever_has_said_the_last_token_is_done),
        T(test_resume__several_losses_have_rising_attempts),
        T(test_resume__only_the_loss_of_a_worker_is_resumable),
        T(test_resume__without_hold_or_after_a_cancel_nothing_is_resumable),
        T(test_resume__what_was_said_before_binds_the_peer),
        T(test_resume__the_limit_in_use_is_the_workers_within_what_was_asked),
        T(test_resume__what_does_not_fit_is_forgotten_and_tried_once_more),
        T(test_resume__a_replay_is_believed_of_resumptions_only),
        T(test_resume__the_pause_is_from_the_loss_to_the_next_token),
        T(test_resume__a_deadline_goes_on_through_losses),
        T(test_resume__silence_before_the_next_token_is_no_stall_and_replaying_none_at_all),
        T(test_resume__it_may_be_resumed_inside_done),
        T(test_resume__it_goes_on_on_another_chain_of_the_same_model),
        T(test_resume__let_go_while_its_open_is_on_the_way),
        T(test_resume__let_go_and_closed_at_once_all_are_told),
        T(test_resume__whose_end_is_lost_is_let_go_by_all),
    };

    return cmocka_run_group_tests(tests, fake_start, fake_stop);
}
