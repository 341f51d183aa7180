/* A gateway in the test's time, in front of workers that do what the test says, and its clients. */
#ifndef NK_TESTS_GATEWAY_TALK_H
#define NK_TESTS_GATEWAY_TALK_H

#include "unit/chain/fake_worker.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway/gateway_int.h"
#include "unit/seed.h"
#include "unit/virtual_clock.h"

enum { TICK_MS = 1000, CALLS = 1024, GOT_BYTES_MAX = 64 << 20 };

#define PROMPT "\"model\":\"tiny\",\"prompt\":[1,2,3]"
#define STREAM "{" PROMPT ",\"max_tokens\":400,\"stream\":true}"

static nk_vocab *vocab;
static struct virtual_clock v;
static nk_gateway *gateway;

/* Generations that have begun at the first worker, in their order. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    nk_call *calls[CALLS]; /* references */
    int n;
} begun = { .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static inline void opens(struct fake *f, nk_call *c)
{
    send_opened(f, c, NULL);
    pthread_mutex_lock(&begun.mutex);
    assert_true(begun.n < CALLS);
    begun.calls[begun.n++] = nk_call_ref(c);
    pthread_cond_broadcast(&begun.changed);
    pthread_mutex_unlock(&begun.mutex);
}

static inline nk_call *wait_for_call(int idx)
{
    nk_call *c;

    pthread_mutex_lock(&begun.mutex);
    while (begun.n <= idx)
        pthread_cond_wait(&begun.changed, &begun.mutex);
    c = begun.calls[idx];
    pthread_mutex_unlock(&begun.mutex);
    return c;
}

static inline int n_begun(void)
{
    int n;

    pthread_mutex_lock(&begun.mutex);
    n = begun.n;
    pthread_mutex_unlock(&begun.mutex);
    return n;
}

static inline void say(nk_call *c, uint32_t index, const char *text)
{
    fake_turn();
    send_token(c, index, text);
}

static inline void end_call(nk_call *c, uint32_t n_generated)
{
    fake_turn();
    send_done(c, n_generated, NULL);
    nk_call_finish(c, NULL);
}

/* ---- a client ---- */

struct client {
    int fd;
    struct nk_buf got;
    size_t at; /* of got: what was looked at */
};

static inline struct client open_client_at(uint32_t address)
{
    struct sockaddr_in to = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)nk_gateway_port(gateway)),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) },
                       from = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(address) };
    struct client c = { .fd = socket(AF_INET, SOCK_STREAM, 0) };

    nk_buf_init(&c.got, GOT_BYTES_MAX);
    assert_int_equal(bind(c.fd, (struct sockaddr *)&from, sizeof from), 0);
    assert_int_equal(connect(c.fd, (struct sockaddr *)&to, sizeof to), 0);
    return c;
}

static inline struct client open_client(void)
{
    return open_client_at(INADDR_LOOPBACK);
}

static inline void close_client(struct client *c)
{
    close(c->fd);
    nk_buf_release(&c->got);
}

static inline void ask(struct client *c, const char *method, const char *path, const char *body)
{
    struct nk_buf b = NK_BUF_INIT(8 << 20);

    assert_int_equal(nk_buf_addf(&b, NULL,
                                 "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                                 "application/json\r\nContent-Length: %zu\r\n\r\n%s",
                                 method, path, strlen(body), body),
                     0);
    assert_int_equal(send(c->fd, b.data, b.size, MSG_NOSIGNAL), b.size);
    nk_buf_release(&b);
}

static inline struct client stream(const char *body)
{
    struct client c = open_client();

    ask(&c, "POST", "/v1/completions", body);
    return c;
}

/* More bytes, waiting for them. False: the connection has ended. */
static inline bool read_more(struct client *c)
{
    char *where;
    ssize_t n;

    assert_int_equal(nk_buf_reserve(&c->got, 65536, &where, NULL), 0);
    n = recv(c->fd, where, 65536, 0);
    if (n <= 0)
        return false;
    nk_buf_commit(&c->got, (size_t)n);
    return true;
}

/* Reads until the text has come. Returns what stood before it, since the last time; borrowed. */
static inline const char *read_to(struct client *c, const char *text)
{
    static char before[4096];
    char *found;

    while (!(found = strstr(nk_buf_str(&c->got) + c->at, text)))
        if (!read_more(c))
            fail_msg("the connection ended before \"%s\": %s", text, nk_buf_str(&c->got) + c->at);
    snprintf(before, sizeof before, "%.*s", (int)(found - (c->got.data + c->at)),
             c->got.data + c->at);
    c->at = (size_t)(found - c->got.data) + strlen(text);
    return before;
}

static inline const char *read_to_end(struct client *c)
{
    while (read_more(c))
        ;
    return nk_buf_str(&c->got) + c->at;
}

static inline bool has_keepalive(const char *text)
{
    return strstr(text, ":\n\n") != NULL;
}

/* ---- the gateway ---- */

static inline struct nk_gateway_opts options(int n_seq_max)
{
    struct nk_gateway_opts o = nk_gateway_opts_default();

    fake_reset();
    for (int i = 0; i < FAKES; i++) {
        fakes[i].info.n_seq_max = (uint32_t)n_seq_max;
        fakes[i].info.n_ctx = 1 << 20;
    }
    fakes[0].script = opens;
    begun.n = 0;
    virtual_clock_init(&v);
    o.listen = "127.0.0.1:0";
    o.chain = fake_chain();
    o.vocab = vocab;
    o.clock = &v.clock;
    return o;
}

static inline void begin(const struct nk_gateway_opts *o)
{
    struct nk_error err;

    if (nk_gateway_start(&gateway, o, &err))
        fail_msg("%s", err.msg);
}

/* After the gateway has stopped, and has closed its chains. */
static inline void release(void)
{
    /* One that was begun for a client which has gone may only be here now. */
    for (int i = 0; i < FAKES; i++)
        fake_wait(&fakes[i].n_ended, fakes[i].n_calls);
    pthread_mutex_lock(&begun.mutex);
    for (int i = 0; i < begun.n; i++)
        nk_call_unref(begun.calls[i]);
    begun.n = 0;
    pthread_mutex_unlock(&begun.mutex);
    virtual_clock_release(&v);
}

static inline void end(void)
{
    assert_true(nk_gateway_stop(gateway, 0));
    release();
}

/* A second passes, and all that is done once a second has been done. */
static inline void tick(void)
{
    virtual_clock_advance_ms(&v, TICK_MS);
    virtual_clock_wait_for_waiter(&v, TICK_MS);
}

/* The HTTP thread has done all that it had to do: it is one thread, and answers this after it. */
static inline void http_turn(void)
{
    struct client c = open_client();

    ask(&c, "GET", "/healthz", "");
    read_to(&c, "{\"status\":\"ok\"}");
    close_client(&c);
}

/* Waits until a request is in the queue, and all is known of it. */
static inline void wait_until_one_waits(void)
{
    for (bool waits = false; !waits;) {
        struct client c = open_client();
        const char *at;

        ask(&c, "GET", "/cluster", "");
        read_to(&c, "\"sessions\":");
        read_to(&c, "]}\n");
        at = strstr(c.got.data, "\"state\":\"waiting\"");
        waits = at && strstr(at, "\"prompt_tokens\":3") && strstr(c.got.data, "\"waiting\":1,");
        close_client(&c);
    }
}

static inline void lose(nk_call *c)
{
    const struct nk_error gone = { .code = NK_E_UNAVAILABLE, .reason = "peer_gone", .msg = "gone" };

    fake_turn();
    nk_call_finish(c, &gone);
}

static inline void *stop(void *arg)
{
    return nk_gateway_stop(gateway, *(uint32_t *)arg) ? gateway : NULL;
}

static inline pthread_t stop_within(uint32_t *grace_ms)
{
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, stop, grace_ms), 0);
    virtual_clock_wait_for_waiter(&v, *grace_ms);
    return thread;
}

static inline void send_all(struct client *c, const char *data, size_t size)
{
    assert_int_equal(send(c->fd, data, size, MSG_NOSIGNAL), size);
}

static inline int open_all(void **state)
{
    char path[500];
    struct nk_error err;

    nk_vocab_global_init();
    snprintf(path, sizeof path, "%s/kjv-tiny.gguf", getenv("NK_MODELS"));
    return nk_vocab_open(&vocab, path, &err) || fake_start(state);
}

static inline int close_all(void **state)
{
    nk_vocab_close(vocab);
    return fake_stop(state);
}

#endif
