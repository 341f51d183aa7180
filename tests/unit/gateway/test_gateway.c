/* The gateway over HTTP, with workers that do what the test says, in the test's time: what is said
 * when nothing is said, who is cut off, how it ends. */
#include "unit/gateway/talk.h"

static void test_gateway__ids_and_times_are_what_was_handed_in(void **state)
{
    struct nk_gateway_opts o = options(2);
    uint64_t seed = seed_begin();
    struct seeded chance, again;
    unsigned char bytes[12];
    char id[64] = "\"id\":\"cmpl-", created[64];
    struct client c;

    (void)state;
    seeded_init(&chance, seed);
    seeded_init(&again, seed);
    nk_chance_fill(&again.chance, bytes, sizeof bytes, NULL);
    for (size_t i = 0; i < sizeof bytes; i++)
        sprintf(id + strlen(id), "%02x", bytes[i]);
    snprintf(created, sizeof created, "\"created\":%lld,", (long long)nk_clock_unix_s(&v.clock));
    o.chance = &chance.chance;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, id);
    read_to(&c, created);
    read_to(&c, "one");
    end_call(wait_for_call(0), 1);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* Of a choice, where the request says nothing. n_ctx: of workers with four sequences. */
static uint32_t asks_for(uint32_t n_ctx, int most, const char *body)
{
    struct nk_gateway_opts o = options(4);
    struct client c;
    uint32_t n;

    for (int i = 0; i < FAKES; i++)
        fakes[i].info.n_ctx = n_ctx;
    o.n_predict_max = most;
    begin(&o);
    c = stream(body);
    wait_for_call(0);
    fake_turn();
    n = fakes[0].request->open->limits->n_predict;
    end_call(wait_for_call(0), 0);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
    return n;
}

/* A session reserves what it may come to need: the most tokens of a reply are no more than its
 * share because of --max-tokens. */
static void test_gateway__the_most_tokens_make_no_session_larger(void **state)
{
    static const char silent[] = "{" PROMPT ",\"stream\":true}";

    (void)state;
    assert_int_equal(asks_for(80, 0, silent), 0);
    assert_int_equal(asks_for(80, 60, silent), 20 - 3); /* as the worker would have it */
    assert_int_equal(asks_for(80, 5, silent), 5);
    assert_int_equal(asks_for(8, 60, silent), 1);
    assert_int_equal(asks_for(80, 60, "{" PROMPT ",\"stream\":true,\"max_tokens\":-1}"), 60);
    assert_int_equal(asks_for(80, 60, STREAM), 60);
}

static void test_gateway__a_silent_stream_gets_a_keepalive_at_the_limit_and_not_before(void **state)
{
    struct nk_gateway_opts o = options(2);
    struct client c;
    nk_call *call;

    (void)state;
    o.limits.keepalive_ms = 3 * TICK_MS;
    begin(&o);
    c = stream(STREAM);
    call = wait_for_call(0);
    say(call, 0, "first");
    read_to(&c, "first");
    http_turn(); /* and was asked for more, at this time */
    tick();
    tick();
    /* Had a keepalive been due, it would stand before this. */
    say(call, 1, "second");
    assert_false(has_keepalive(read_to(&c, "second")));
    http_turn();
    tick();
    tick();
    say(call, 2, "third");
    assert_false(has_keepalive(read_to(&c, "third")));
    http_turn();
    tick();
    tick();
    tick();
    read_to(&c, ":\n\n");
    http_turn();
    /* One silence, one keepalive; the next after as long a silence again. */
    tick();
    tick();
    say(call, 3, "fourth");
    assert_false(has_keepalive(read_to(&c, "fourth")));
    end_call(call, 4);
    assert_false(has_keepalive(read_to(&c, "data: [DONE]\n\n")));
    close_client(&c);
    end();
}

/* Ollama's programs take each line for JSON, so that what says nothing is one, too: a piece with no
 * text in it, that is not the last. */
static void test_gateway__ollamas_stream_begins_in_time_when_a_prompt_takes_long(void **state)
{
    struct nk_gateway_opts o = options(2);
    struct client c;
    nk_call *call;
    const char *line;

    (void)state;
    o.limits.keepalive_ms = 3 * TICK_MS;
    begin(&o);
    c = open_client();
    ask(&c, "POST", "/api/generate", "{\"prompt\":\"a\",\"raw\":true}");
    call = wait_for_call(0);
    /* As soon as the gateway has heard that it runs, and the prompt takes its time. */
    while (recv(c.fd, (char[1]){ 0 }, 1, MSG_DONTWAIT | MSG_PEEK) < 0) {
        tick();
        http_turn();
    }
    read_to(&c, "HTTP/1.1 200 OK\r\n");
    read_to(&c, "\r\n\r\n");
    line = read_to(&c, "}\n");
    assert_non_null(strstr(line, "\"response\":\"\",\"done\":false"));
    say(call, 0, "its own");
    line = read_to(&c, "}\n");
    assert_non_null(strstr(line, "\"response\":\"its own\",\"done\":false"));
    end_call(call, 1);
    assert_non_null(strstr(read_to(&c, "}\n"), "\"done\":true"));
    close_client(&c);
    end();
}

/* It may still get a 429, or a 503. */
static void test_gateway__a_stream_that_waits_for_a_place_has_no_status_yet(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client first, second;

    (void)state;
    o.limits.keepalive_ms = 3 * TICK_MS;
    begin(&o);
    first = stream(STREAM);
    wait_for_call(0);
    second = stream(STREAM);
    wait_until_one_waits();
    for (int i = 0; i < 8; i++)
        tick();
    http_turn();
    assert_int_equal(recv(second.fd, (char[1]){ 0 }, 1, MSG_DONTWAIT), -1);
    end_call(wait_for_call(0), 0);
    wait_for_call(1);
    /* It has its place as soon as the gateway has heard of it; from then on there is no token for
     * long. */
    while (recv(second.fd, (char[1]){ 0 }, 1, MSG_DONTWAIT | MSG_PEEK) < 0) {
        tick();
        http_turn();
    }
    read_to(&second, "HTTP/1.1 200 OK\r\n");
    read_to(&second, ":\n\n");
    say(wait_for_call(1), 0, "its own");
    read_to(&second, "its own");
    end_call(wait_for_call(1), 1);
    read_to(&second, "data: [DONE]\n\n");
    close_client(&first);
    close_client(&second);
    end();
}

/* ---- how far the prompt is ---- */

static void say_prefilled(nk_call *c, uint32_t n_done)
{
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__StepDone s = NAKSHATRA__V1__STEP_DONE__INIT;

    s.n_done = n_done;
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_STEP_DONE;
    r.step_done = &s;
    fake_turn();
    send_reply(c, &r);
}

/* As many as there are, but no more than a reader can want of a prompt of a thousand chunks. */
static void test_gateway__a_stream_tells_how_far_its_prompt_is(void **state)
{
    enum { N = 2000 };
    struct nk_gateway_opts o = options(1);
    struct nk_buf body = NK_BUF_INIT(1 << 20);
    struct client c;
    nk_call *call;
    const char *at;
    int n = 0;

    (void)state;
    begin(&o);
    nk_buf_adds(&body, "{\"stream\":true,\"return_progress\":true,\"prompt\":[1", NULL);
    for (int i = 1; i < N; i++)
        nk_buf_adds(&body, ",2", NULL);
    nk_buf_adds(&body, "]}", NULL);
    c = stream(nk_buf_str(&body));
    call = wait_for_call(0);
    read_to(&c, "{\"total\":2000,\"cache\":0,\"processed\":0,\"time_ms\":0}");
    tick();
    for (uint32_t i = 2; i < N; i += 2)
        say_prefilled(call, i);
    read_to(&c, "{\"total\":2000,\"cache\":0,\"processed\":20,\"time_ms\":1000}");
    say(call, 0, "first");
    read_to(&c, "\"text\":\"first\"");
    end_call(call, 1);
    read_to(&c, "data: [DONE]\n\n");
    for (at = nk_buf_str(&c.got); (at = strstr(at, "prompt_progress")); at++)
        n++;
    assert_int_equal(n, 101);
    assert_non_null(strstr(c.got.data, "\"processed\":2000,"));
    close_client(&c);

    /* Who does not ask is told nothing. */
    c = stream(STREAM);
    call = wait_for_call(1);
    say_prefilled(call, 2);
    say(call, 0, "first");
    end_call(call, 1);
    read_to(&c, "data: [DONE]\n\n");
    assert_null(strstr(c.got.data, "prompt_progress"));
    close_client(&c);
    nk_buf_release(&body);
    end();
}

/* ---- a worker that goes and returns ---- */

static void set_state(const char *state)
{
    fake_turn();
    fakes[1].info.state = (char *)(uintptr_t)state;
    fake_turn();
}

/* The workers are asked again, a quarter of a second after the loss. */
static void look_again(void)
{
    virtual_clock_wait_for_waiter(&v, 250);
    virtual_clock_advance_ms(&v, 250);
}

static void
test_gateway__a_request_without_a_token_begins_again_when_its_worker_is_back(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client c;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    for (int i = 0; i < 2; i++) {
        lose(wait_for_call(i));
        look_again();
    }
    say(wait_for_call(2), 0, "at last");
    assert_non_null(strstr(read_to(&c, "at last"), "HTTP/1.1 200 "));
    end_call(wait_for_call(2), 1);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    end();
}

/* It may be what they die of. */
static void test_gateway__the_third_loss_is_the_requests_own(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client c;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    for (int i = 0; i < 3; i++) {
        lose(wait_for_call(i));
        if (i < 2)
            look_again();
    }
    read_to(&c, "HTTP/1.1 503 ");
    read_to(&c, "\"code\":\"peer_gone\"");
    close_client(&c);
    end();
}

static void test_gateway__who_waits_outlasts_a_worker_that_goes_and_returns(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client runs, waits, comes, late;

    (void)state;
    o.limits.waiting_ms = 3600 * TICK_MS;
    o.limits.hold_ms = 0; /* what has a token does not wait */
    begin(&o);
    runs = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&runs, "one");
    waits = stream(STREAM);
    wait_until_one_waits();
    set_state("loading");
    lose(wait_for_call(0));
    read_to(&runs, "\"code\":\"peer_gone\""); /* it had a token */
    comes = stream(STREAM); /* it is known that it is away: waits with the other */
    for (int i = 0; i < 20; i++) {
        virtual_clock_advance_ms(&v, TICK_MS);
        http_turn();
    }
    assert_int_equal(n_begun(), 1);
    set_state("serving");
    while (n_begun() < 2) { /* until the next look */
        virtual_clock_advance_ms(&v, 250);
        http_turn();
    }
    say(wait_for_call(1), 0, "two");
    read_to(&waits, "two");
    end_call(wait_for_call(1), 1);
    read_to(&waits, "data: [DONE]\n\n");
    say(wait_for_call(2), 0, "three");
    read_to(&comes, "three");
    /* Away for longer than a request may wait: who comes then is told at once. */
    set_state("loading");
    lose(wait_for_call(2));
    read_to(&comes, "\"code\":\"peer_gone\"");
    virtual_clock_advance_ms(&v, 3600 * TICK_MS);
    late = stream(STREAM);
    read_to(&late, "HTTP/1.1 503 ");
    close_client(&runs);
    close_client(&waits);
    close_client(&comes);
    close_client(&late);
    end();
}

static void test_gateway__waiting_ends_with_429_at_the_limit(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client first, second;

    (void)state;
    o.limits.waiting_ms = 1500;
    begin(&o);
    first = stream(STREAM);
    wait_for_call(0);
    second = stream(STREAM);
    wait_until_one_waits();
    virtual_clock_wait_for_waiter(&v, TICK_MS);
    virtual_clock_advance_ms(&v, 1000);
    virtual_clock_wait_for_waiter(&v, 500);
    virtual_clock_advance_ms(&v, 499);
    virtual_clock_wait_for_waiter(&v, 1);
    wait_until_one_waits();
    virtual_clock_advance_ms(&v, 1);
    read_to(&second, "HTTP/1.1 429 ");
    read_to(&second, "\r\nRetry-After: ");
    read_to(&second, "\"code\":\"queue_timeout\"");
    say(wait_for_call(0), 0, "the other goes on");
    read_to(&first, "the other goes on");
    close_client(&first);
    close_client(&second);
    end();
}

/* Tokens come until the gateway has had enough: a reader that does not read is cut off, and nobody
 * else. */
/* All log-probabilities of a prompt come at once, more than what may wait for a reader. */
static void test_gateway__a_prompts_probabilities_are_no_slow_readers(void **state)
{
    enum { TOKENS = 1000 };
    Nakshatra__V1__InferenceReply r = NAKSHATRA__V1__INFERENCE_REPLY__INIT;
    Nakshatra__V1__PromptProbs m = NAKSHATRA__V1__PROMPT_PROBS__INIT;
    Nakshatra__V1__TokenProb prob = NAKSHATRA__V1__TOKEN_PROB__INIT;
    Nakshatra__V1__PromptProb one = NAKSHATRA__V1__PROMPT_PROB__INIT, *all[TOKENS - 1];
    struct nk_gateway_opts o = options(2);
    struct nk_buf body = NK_BUF_INIT(1 << 16);
    struct client c;

    (void)state;
    o.limits.output_bytes_max = 16384;
    nk_buf_adds(&body, "{\"model\":\"tiny\",\"prompt\":[1", NULL);
    for (int i = 1; i < TOKENS; i++)
        nk_buf_adds(&body, ",1", NULL);
    nk_buf_adds(&body, "],\"max_tokens\":4,\"echo\":true,\"logprobs\":0,\"stream\":true}", NULL);
    begin(&o);
    c = stream(nk_buf_str(&body));
    prob.id = 1;
    prob.logprob = -1;
    one.prob = &prob;
    for (int i = 0; i < TOKENS - 1; i++)
        all[i] = &one;
    m.pos = 1;
    m.probs = all;
    m.n_probs = TOKENS - 1;
    r.kind_case = NAKSHATRA__V1__INFERENCE_REPLY__KIND_PROMPT_PROBS;
    r.prompt_probs = &m;
    wait_for_call(0);
    fake_turn();
    send_reply(wait_for_call(0), &r);
    prob.id = 10;
    send_token_with(wait_for_call(0), 0, 10, "one", 3, NAKSHATRA__V1__FINISH_REASON__FINISH_NONE,
                    &prob, 0);
    end_call(wait_for_call(0), 1);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    nk_buf_release(&body);
    end();
}

static void test_gateway__a_client_that_does_not_read_ends_its_own_generation_only(void **state)
{
    struct nk_gateway_opts o = options(2);
    struct client reads, sleeps;
    const char *rest;
    char text[1000];
    uint32_t n = 0;

    (void)state;
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    o.limits.output_bytes_max = 16384;
    begin(&o);
    reads = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&reads, "one");
    sleeps = stream("{" PROMPT ",\"max_tokens\":1000000,\"stream\":true}");
    wait_for_call(1);
    while (!atomic_load(&fakes[0].n_ended))
        say(wait_for_call(1), n++, text);
    rest = read_to_end(&sleeps); /* what was on its way, and then neither an end nor an error */
    assert_null(strstr(rest, "[DONE]"));
    assert_null(strstr(rest, "\"error\""));
    say(wait_for_call(0), 1, "two");
    read_to(&reads, "two");
    end_call(wait_for_call(0), 2);
    read_to(&reads, "data: [DONE]\n\n");
    close_client(&reads);
    close_client(&sleeps);
    end();
}

/* ---- the end ---- */

static void test_gateway__what_ends_within_the_grace_is_whole_and_nobody_waits_longer(void **state)
{
    struct nk_gateway_opts o = options(2);
    uint32_t grace_ms = 7500;
    struct client c, late;
    pthread_t thread;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&c, "one");
    late = open_client();
    ask(&late, "GET", "/healthz", "");
    read_to(&late, "{\"status\":\"ok\"}");
    thread = stop_within(&grace_ms);
    /* What is new is refused, on a connection that is there. */
    ask(&late, "GET", "/healthz", "");
    read_to(&late, "HTTP/1.1 503 ");
    read_to(&late, "\"code\":\"shutting_down\"");
    end_call(wait_for_call(0), 1);
    read_to(&c, "data: [DONE]\n\n");
    pthread_join(thread, NULL); /* no time has passed */
    read_to_end(&c);
    close_client(&c);
    close_client(&late);
    release();
}

static void test_gateway__what_outlasts_the_grace_ends_then_and_is_told_why(void **state)
{
    struct nk_gateway_opts o = options(1);
    uint32_t grace_ms = 7500;
    struct client runs, waits, listens;
    pthread_t thread;

    (void)state;
    begin(&o);
    runs = stream(STREAM);
    say(wait_for_call(0), 0, "one");
    read_to(&runs, "one");
    waits = stream(STREAM);
    wait_until_one_waits();
    listens = open_client();
    ask(&listens, "GET", "/cluster/events", "");
    read_to(&listens, "event: cluster\ndata: {");
    http_turn();
    thread = stop_within(&grace_ms);
    virtual_clock_advance_ms(&v, grace_ms - 1);
    virtual_clock_wait_for_waiter(&v, 1);
    say(wait_for_call(0), 1, "two");
    read_to(&runs, "two");
    virtual_clock_advance_ms(&v, 1);
    read_to(&runs, "\"code\":\"shutting_down\"");
    read_to(&waits, "HTTP/1.1 503 ");
    read_to(&waits, "\"code\":\"shutting_down\"");
    pthread_join(thread, NULL);
    assert_null(strstr(read_to_end(&runs), "[DONE]"));
    read_to_end(&listens);
    while (!atomic_load(&fakes[0].n_ended)) /* the worker is told */
        sched_yield();
    assert_int_equal(n_begun(), 1);
    close_client(&runs);
    close_client(&waits);
    close_client(&listens);
    release();
}

/* Nobody waits for a worker that is there and does not fit. */
static void test_gateway__a_worker_that_does_not_fit_is_told_at_once(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client c;

    (void)state;
    begin(&o);
    c = stream(STREAM);
    end_call(wait_for_call(0), 0);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    fake_turn();
    fakes[1].info.model_id = (char *)(uintptr_t) "another";
    fakes[1].info.n_embd = 128;
    fake_turn();
    virtual_clock_advance_ms(&v, 10 * TICK_MS);
    c = open_client();
    ask(&c, "GET", "/readyz", "");
    read_to(&c, "HTTP/1.1 503 ");
    close_client(&c);
    c = stream(STREAM);
    read_to(&c, "HTTP/1.1 503 ");
    read_to(&c, "\"code\":\"width_mismatch\"");
    close_client(&c);
    assert_int_equal(n_begun(), 1);
    end();
}

/* ---- requests that can be read in two ways ---- */

#define SECOND "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
#define HEALTH "GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
#define POSTED "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
/* A text with the length that sizeof knows: some have a NUL in them. */
#define RAW(text, reason)                                                                          \
    {                                                                                              \
        text, sizeof(text) - 1, reason                                                             \
    }

static void test_gateway__a_head_that_can_be_read_in_two_ways_is_400_and_the_end(void **state)
{
    static const struct {
        const char *text;
        size_t size;
        const char *reason; /* NULL: it is libmicrohttpd that refuses, in words of its own */
    } all[] = {
        RAW(POSTED "Content-Length: 2\r\nContent-Length: 51\r\n\r\n{}" SECOND, "bad_length"),
        RAW(POSTED "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}" SECOND, "bad_length"),
        RAW(POSTED "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            "bad_length"),
        RAW(POSTED "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}" SECOND,
            "bad_length"),
        RAW(POSTED "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "bad_length"),
        RAW(POSTED "Transfer-Encoding: identity\r\n\r\n{}" SECOND, "bad_length"),
        RAW(POSTED "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" SECOND, "bad_length"),
        RAW(POSTED "Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n" SECOND, "bad_length"),
        RAW("POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" SECOND,
            "bad_length"),
        RAW(POSTED "Content-Length : 51\r\n\r\n" SECOND, "bad_header"),
        RAW(POSTED "Content-Length\t: 51\r\n\r\n" SECOND, "bad_header"),
        RAW(POSTED "Content-Length: 1\r\n 0\r\n\r\n1234567890", "bad_header"),
        RAW(POSTED "Content-Length: 1\r\n\t0\r\nX-A: b\r\n\r\n1234567890", "bad_header"),
        RAW(POSTED "X-A:\r\n Content-Length: 51\r\n\r\n" SECOND, "bad_header"),
        RAW("GET /healthz HTTP/1.1\r\n Host: localhost\r\n\r\n", NULL),
        RAW("GET /healthz\0/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW("GET /healthz\0HTTP/1.1 HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW("GET /healthz?a=b\0&c HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW("GET /healthz%00/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW(HEALTH "X-A: b\nX-B: c\r\n\r\n", "bad_header"),
        RAW(HEALTH "X-A: b\r\n\n", "bad_header"),
        RAW(HEALTH "X-A: b\n\n", "bad_header"),
        RAW("GET /healthz HTTP/1.1\nHost: localhost\n\n", "bad_header"),
        RAW(HEALTH "X-A: b\rContent-Length: 51\r\n\r\n" SECOND, "bad_header"),
        RAW(HEALTH "X-A: b\0c\r\n\r\n", "bad_header"),
        RAW(HEALTH "X-A: b\0\r\n\r\n", "bad_header"),
        RAW(HEALTH "X-A: b\x01\r\n\r\n", "bad_header"),
        RAW(HEALTH "X-A: b\x7f\r\n\r\n", "bad_header"),
        RAW(HEALTH "X\0A: b\r\n\r\n", NULL),
        RAW(HEALTH "X A: b\r\n\r\n", "bad_header"),
        RAW(HEALTH "X\xc3\xa4: b\r\n\r\n", "bad_header"),
        RAW(HEALTH ": b\r\n\r\n", "bad_header"),
        RAW(HEALTH "no colon\r\n\r\n", NULL),
        RAW(HEALTH "Host: evil.example\r\n\r\n", "bad_host"),
        RAW(HEALTH "Host: localhost\r\n\r\n", "bad_host"),
        RAW("GET /healthz HTTP/1.1\r\n\r\n", "bad_host"),
        RAW("GET /healthz HTTP/1.1\r\nHost:\r\n\r\n", "bad_host"),
        RAW("GET /healthz HTTP/1.1\r\nHost: localhost, evil.example\r\n\r\n", "bad_host"),
        RAW("GET /healthz HTTP/1.1\r\nHost: evil.example@localhost\r\n\r\n", "bad_host"),
        RAW("GET /healthz HTTP/1.1\r\nHost: localhost/\r\n\r\n", "bad_host"),
        RAW("GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW("GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW("GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW("GET /healthz HTTP/1.1 \r\nHost: localhost\r\n\r\n", NULL),
        RAW("G(T /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_header"),
        RAW(POSTED "Content-Length: +2\r\n\r\n{}" SECOND, NULL),
        RAW(POSTED "Content-Length: -2\r\n\r\n{}" SECOND, NULL),
        RAW(POSTED "Content-Length: 2,2\r\n\r\n{}" SECOND, NULL),
        RAW(POSTED "Content-Length: 0x2\r\n\r\n{}" SECOND, NULL),
        RAW(POSTED "Content-Length: 2 \r\n\r\n{}" SECOND, NULL),
        RAW(POSTED "Content-Length:\r\n\r\n{}" SECOND, NULL),
        RAW(POSTED "Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n" SECOND, NULL),
    };
    struct nk_gateway_opts o = options(1);

    (void)state;
    begin(&o);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct client c = open_client();
        char code[64];
        const char *got;

        send_all(&c, all[i].text, all[i].size);
        got = read_to_end(&c);
        snprintf(code, sizeof code, "\"code\":\"%s\"", all[i].reason ? all[i].reason : "");
        /* libmicrohttpd says 400 twice to a length that is no number, and then it is silent. */
        if (strncmp(got, "HTTP/1.1 400 ", 13) || (all[i].reason && !strstr(got, code)) ||
            (all[i].reason && strstr(got + 1, "HTTP/1.1 ")) || strstr(got, " 200 ") ||
            strstr(got, " 403 ") || strstr(got, " 404 "))
            fail_msg("%zu: %s\n%s", i, all[i].text, got);
        close_client(&c);
    }
    end();
}

static void test_gateway__a_head_that_is_only_unusual_is_answered(void **state)
{
    static const char *const all[] = {
        SECOND,
        HEALTH "X-A:b\r\n\r\n",
        HEALTH "X-A: \t b \t \r\nX-B:\r\n\r\n",
        HEALTH "X-A: b\tc \xc3\xa4\r\n\r\n",
        "GET /healthz HTTP/1.0\r\n\r\n",
        "GET /healthz HTTP/1.0\r\nhost: localhost\r\n\r\n",
        "\r\n" HEALTH "\r\n",
        "GET /healthz?a=%20b&c HTTP/1.1\r\nHOST:localhost:1\r\n\r\n",
        "GET /%68ealthz HTTP/1.1\r\nHost: [::1]:80\r\nCookie: a=b; c=\"d\"\r\nX-B: c\r\n\r\n",
        "OPTIONS /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    };
    struct nk_gateway_opts o = options(1);

    (void)state;
    begin(&o);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct client c = open_client();

        send_all(&c, all[i], strlen(all[i]));
        read_to(&c, "HTTP/1.1 20");
        read_to(&c, "\r\n\r\n");
        close_client(&c);
    }
    /* One after the other on one connection; byte by byte; and a body with its length. */
    for (int byte_by_byte = 0; byte_by_byte < 2; byte_by_byte++) {
        static const char text[] = SECOND POSTED
            "Content-Length: 15\r\n\r\n{\"content\":\"a\"}" HEALTH "Connection: close\r\n\r\n";
        struct client c = open_client();

        for (size_t at = 0, n; at < sizeof text - 1; at += n) {
            n = byte_by_byte ? 1 : sizeof text - 1;
            send_all(&c, text + at, n);
        }
        read_to(&c, "\"data\":[");
        read_to(&c, "{\"tokens\":[");
        read_to(&c, "{\"status\":\"ok\"}");
        read_to_end(&c);
        close_client(&c);
    }
    end();
}

static void test_gateway__what_follows_a_body_in_chunks_is_not_read(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client c;
    const char *rest;

    (void)state;
    begin(&o);
    c = open_client();
    send_all(&c,
             POSTED "Transfer-Encoding: chunked\r\n\r\n"
                    "f;a=\nb\r\n{\"content\":\"a\"}\r\n0\r\n\r\n" SECOND,
             sizeof(POSTED "Transfer-Encoding: chunked\r\n\r\n"
                           "f;a=\nb\r\n{\"content\":\"a\"}\r\n0\r\n\r\n" SECOND) -
                 1);
    rest = read_to_end(&c);
    assert_null(strstr(rest, "\"data\""));
    close_client(&c);
    c = open_client();
    send_all(&c, POSTED "Transfer-Encoding: chunked\r\n\r\nf\r\n{\"content\":\"a\"}\r\n0\r\n\r\n",
             sizeof(POSTED "Transfer-Encoding: chunked\r\n\r\n"
                           "f\r\n{\"content\":\"a\"}\r\n0\r\n\r\n") -
                 1);
    read_to(&c, "HTTP/1.1 200 OK\r\n");
    read_to(&c, "Connection: close\r\n");
    read_to(&c, "{\"tokens\":[");
    read_to_end(&c);
    close_client(&c);
    end();
}

/* ---- connections ---- */

static void test_gateway__half_requests_keep_nobody_out(void **state)
{
    struct nk_gateway_opts o = options(1);
    struct client half[20];

    (void)state;
    o.limits.connections_max = 8;
    begin(&o);
    for (int i = 0; i < 20; i++) {
        static const char head[] = "GET / HTTP/1.1\r\n",
                          body[] = POSTED "Content-Length: 9\r\n\r\n{";

        half[i] = open_client();
        if (i % 2)
            send_all(&half[i], head, sizeof head - 1);
        else
            send_all(&half[i], body, sizeof body - 1);
    }
    for (int i = 0; i < 20; i++)
        http_turn();
    for (int i = 0; i < 20; i++) {
        if (i < 16) /* had to yield: one address has 4 */
            read_to_end(&half[i]);
        close_client(&half[i]);
    }
    end();
}

/* Reads the head and the body of a refusal, and that the connection ends. */
static void refused(struct client *c, const char *status, const char *words)
{
    read_to(c, status);
    read_to(c, "Connection: close\r\n");
    read_to(c, words);
    read_to(c, "\"code\":\"too_many_connections\"");
    read_to_end(c);
    close_client(c);
}

static void test_gateway__when_all_places_are_busy_probes_are_answered(void **state)
{
    static const char probe[] = HEALTH "\r\n";
    struct nk_gateway_opts o = options(4);
    struct client busy[3], c;

    (void)state;
    o.limits.connections_max = 3;
    o.limits.connections_per_address = 2;
    begin(&o);
    for (int i = 0; i < 3; i++) {
        busy[i] = open_client_at(INADDR_LOOPBACK + (uint32_t)(i == 2));
        ask(&busy[i], "POST", "/v1/completions", STREAM);
        wait_for_call(i);
    }
    c = open_client();
    ask(&c, "POST", "/v1/completions", STREAM);
    refused(&c, "HTTP/1.1 429 ", "this address has all 2 connections");
    c = open_client_at(INADDR_LOOPBACK + 2);
    ask(&c, "GET", "/v1/models", "");
    refused(&c, "HTTP/1.1 503 ", "all 3 connections are taken");
    for (uint32_t i = 0; i < 40; i++) { /* more than there are spare places */
        c = open_client_at(INADDR_LOOPBACK + i % 2);
        send_all(&c, probe, sizeof probe - 1);
        read_to(&c, "{\"status\":\"ok\"}");
        read_to_end(&c);
        close_client(&c);
    }
    for (int i = 0; i < 3; i++) {
        say(wait_for_call(i), 0, "a");
        end_call(wait_for_call(i), 1);
        read_to(&busy[i], "data: [DONE]\n\n");
    }
    /* And it is as before. */
    c = stream(STREAM);
    end_call(wait_for_call(3), 0);
    read_to(&c, "data: [DONE]\n\n");
    close_client(&c);
    for (int i = 0; i < 3; i++)
        close_client(&busy[i]);
    end();
}

/* ---- the memory of requests ---- */

/* A generation whose schema has so many empty lists in an annotation. */
static struct client ask_with_lists(int n)
{
    struct nk_buf body = NK_BUF_INIT(8 << 20);
    struct client c = open_client();

    nk_buf_adds(&body,
                "{\"model\":\"tiny\",\"prompt\":\"a\",\"options\":{\"num_predict\":9},\"format\":{"
                "\"type\":\"string\",\"maxLength\":4,\"examples\":[1",
                NULL);
    for (int i = 0; i < n; i++)
        nk_buf_adds(&body, ",[]", NULL);
    nk_buf_adds(&body, "]}}", NULL);
    ask(&c, "POST", "/api/generate", nk_buf_str(&body));
    nk_buf_release(&body);
    return c;
}

static void test_gateway__what_waits_holds_no_json_and_what_has_no_room_is_told(void **state)
{
    enum { WAITING = 20, LISTS = 8000 }; /* that cost 1.3 MiB */
    struct nk_gateway_opts o = options(1);
    struct client first, waiting[WAITING], c;
    char text[64];

    (void)state;
    o.limits.requests_bytes_max = 4 << 20; /* a half of it for what is parsed */
    begin(&o);
    first = stream(STREAM);
    wait_for_call(0);
    for (int i = 0; i < WAITING; i++) {
        waiting[i] = ask_with_lists(LISTS);
        snprintf(text, sizeof text, "\"waiting\":%d,", i + 1);
        for (bool waits = false; !waits;) {
            c = open_client();
            ask(&c, "GET", "/cluster", "");
            read_to(&c, "\"sessions\":");
            waits = strstr(c.got.data, text) != NULL;
            close_client(&c);
            assert_int_equal(recv(waiting[i].fd, text, 1, MSG_DONTWAIT | MSG_PEEK),
                             -1); /* not refused */
        }
    }
    c = ask_with_lists(2 * LISTS);
    read_to(&c, "HTTP/1.1 413 ");
    read_to(&c, "--requests-mib");
    close_client(&c);
    /* Larger than all bodies together may be, while they come. */
    c = ask_with_lists(400000);
    read_to(&c, "HTTP/1.1 429 ");
    read_to(&c, "Retry-After: ");
    read_to(&c, "--requests-mib");
    close_client(&c);
    for (int i = 0; i < WAITING; i++)
        close_client(&waiting[i]);
    end_call(wait_for_call(0), 0);
    read_to(&first, "data: [DONE]\n\n");
    close_client(&first);
    end();
}

/* ---- names ---- */

static void host_is(const char *host, const char *status)
{
    struct client c = open_client();
    char text[300];
    int n = snprintf(text, sizeof text, "GET /v1/models HTTP/1.1\r\nHost: %s\r\n\r\n", host);

    send_all(&c, text, (size_t)n);
    read_to(&c, status);
    close_client(&c);
}

static void test_gateway__beyond_loopback_a_rebound_name_is_foreign_too(void **state)
{
    struct nk_gateway_opts o = options(1);

    (void)state;
    o.listen = "0.0.0.0:0";
    o.insecure = true;
    o.hosts[o.n_hosts++] = "gpu.lan";
    begin(&o);
    host_is("evil.example:8080", "HTTP/1.1 403 ");
    host_is("nas.local", "HTTP/1.1 403 ");
    host_is("gpu.lan:8080", "HTTP/1.1 200 ");
    host_is("192.0.2.1:8080", "HTTP/1.1 200 ");
    end();
}

static void test_gateway__who_does_not_read_does_not_keep_it_from_ending(void **state)
{
    enum { CHARACTERS = 200000 }; /* a reply of 15 MB, more than sockets hold */
    struct nk_gateway_opts o = options(1);
    uint32_t grace_ms = 7500;
    struct nk_buf body = NK_BUF_INIT(1 << 20);
    struct client c;
    pthread_t thread;
    void *stopped;

    (void)state;
    begin(&o);
    nk_buf_adds(&body, "{\"with_pieces\":true,\"content\":\"", NULL);
    for (int i = 0; i < CHARACTERS; i++)
        nk_buf_adds(&body, "\xE4\xB8\xAD", NULL);
    nk_buf_adds(&body, "\"}", NULL);
    c = open_client();
    ask(&c, "POST", "/tokenize", nk_buf_str(&body));
    read_to(&c, "HTTP/1.1 200 ");
    thread = stop_within(&grace_ms);
    virtual_clock_advance_ms(&v, grace_ms);
    virtual_clock_wait_for_waiter(&v, NK_GATEWAY_LAST_WORDS_MS);
    virtual_clock_advance_ms(&v, NK_GATEWAY_LAST_WORDS_MS);
    pthread_join(thread, &stopped);
    assert_ptr_equal(stopped, gateway); /* and no more time has passed */
    close_client(&c);
    nk_buf_release(&body);
    release();
}

/* ---- helper threads that do not come back ---- */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_begun;
    bool over;
} stuck = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void be_stuck(struct nk_task *t)
{
    (void)t;
    pthread_mutex_lock(&stuck.mutex);
    stuck.n_begun++;
    pthread_cond_broadcast(&stuck.changed);
    while (!stuck.over)
        pthread_cond_wait(&stuck.changed, &stuck.mutex);
    pthread_mutex_unlock(&stuck.mutex);
}

static void test_gateway__threads_that_do_not_come_back_are_told_of_and_not_waited_for(void **state)
{
    enum { HELPERS = 3 };
    struct nk_gateway_opts o = options(1);
    struct nk_task tasks[HELPERS];
    uint32_t grace_ms = 7500;
    struct client c, runs;
    pthread_t thread;
    void *stopped;

    (void)state;
    begin(&o);
    runs = stream(STREAM); /* so that no probe is needed */
    say(wait_for_call(0), 0, "one");
    read_to(&runs, "one");
    for (int i = 0; i < HELPERS; i++) {
        tasks[i].run = be_stuck;
        nk__pool_post(gateway->pool, &tasks[i]);
    }
    pthread_mutex_lock(&stuck.mutex);
    while (stuck.n_begun < HELPERS)
        pthread_cond_wait(&stuck.changed, &stuck.mutex);
    pthread_mutex_unlock(&stuck.mutex);
    virtual_clock_advance_ms(&v, 4999);
    c = open_client();
    ask(&c, "GET", "/readyz", "");
    read_to(&c, "HTTP/1.1 200 ");
    virtual_clock_advance_ms(&v, 1);
    ask(&c, "GET", "/readyz", "");
    read_to(&c, "HTTP/1.1 503 ");
    read_to(&c, "for 5 s no thread has been free");
    read_to(&c, "\"code\":\"helpers_stuck\"");
    thread = stop_within(&grace_ms);
    virtual_clock_advance_ms(&v, grace_ms);
    virtual_clock_wait_for_waiter(&v, NK_GATEWAY_GIVE_UP_MS);
    virtual_clock_advance_ms(&v, NK_GATEWAY_GIVE_UP_MS);
    pthread_join(thread, &stopped);
    assert_null(stopped);
    pthread_mutex_lock(&stuck.mutex);
    stuck.over = true;
    pthread_cond_broadcast(&stuck.changed);
    pthread_mutex_unlock(&stuck.mutex);
    assert_true(nk_gateway_stop(gateway, 0));
    close_client(&c);
    close_client(&runs);
    release();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gateway__ids_and_times_are_what_was_handed_in),
        cmocka_unit_test(test_gateway__the_most_tokens_make_no_session_larger),
        cmocka_unit_test(
            test_gateway__a_silent_stream_gets_a_keepalive_at_the_limit_and_not_before),
        cmocka_unit_test(test_gateway__ollamas_stream_begins_in_time_when_a_prompt_takes_long),
        cmocka_unit_test(test_gateway__a_stream_that_waits_for_a_place_has_no_status_yet),
        cmocka_unit_test(
            test_gateway__a_request_without_a_token_begins_again_when_its_worker_is_back),
        cmocka_unit_test(test_gateway__a_stream_tells_how_far_its_prompt_is),
        cmocka_unit_test(test_gateway__the_third_loss_is_the_requests_own),
        cmocka_unit_test(test_gateway__who_waits_outlasts_a_worker_that_goes_and_returns),
        cmocka_unit_test(test_gateway__a_worker_that_does_not_fit_is_told_at_once),
        cmocka_unit_test(test_gateway__waiting_ends_with_429_at_the_limit),
        cmocka_unit_test(test_gateway__a_prompts_probabilities_are_no_slow_readers),
        cmocka_unit_test(test_gateway__a_client_that_does_not_read_ends_its_own_generation_only),
        cmocka_unit_test(test_gateway__what_ends_within_the_grace_is_whole_and_nobody_waits_longer),
        cmocka_unit_test(test_gateway__what_outlasts_the_grace_ends_then_and_is_told_why),
        cmocka_unit_test(test_gateway__a_head_that_can_be_read_in_two_ways_is_400_and_the_end),
        cmocka_unit_test(test_gateway__a_head_that_is_only_unusual_is_answered),
        cmocka_unit_test(test_gateway__what_follows_a_body_in_chunks_is_not_read),
        cmocka_unit_test(test_gateway__half_requests_keep_nobody_out),
        cmocka_unit_test(test_gateway__when_all_places_are_busy_probes_are_answered),
        cmocka_unit_test(test_gateway__what_waits_holds_no_json_and_what_has_no_room_is_told),
        cmocka_unit_test(test_gateway__beyond_loopback_a_rebound_name_is_foreign_too),
        cmocka_unit_test(test_gateway__who_does_not_read_does_not_keep_it_from_ending),
        cmocka_unit_test(
            test_gateway__threads_that_do_not_come_back_are_told_of_and_not_waited_for),
    };

    return cmocka_run_group_tests(tests, open_all, close_all);
}
