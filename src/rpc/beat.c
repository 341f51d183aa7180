/* Beats: who is silent. A channel that is watched keeps one call to Link/Beat while it has others.
 * Each side says something there at its own times, a few times within the limit, and neither waits
 * for the other: what a side sends is not held up by what lies before the other's answer. (An
 * HTTP/2 ping is: its answer lies behind all that is on its way, and a chunk of a prompt on a slow
 * line is nobody's silence.)
 *
 *   client -> server   interval_ms, written, under_way
 *   server -> client   heard
 *
 * Numbers are 64 bits, little endian. written: bytes of this channel's messages that lie before
 * this beat in the connection. heard: the last `written` that the server has read, so those have
 * arrived. under_way: bytes that gRPC was given and that are not heard yet; the server's patience
 * is longer by the time that so many take at BYTES_PER_MS, and so is the client's with a message
 * that is not taken. A client says it before a message that is large. The other direction carries
 * little and has no such term.
 *
 * A server of a version before this has no such method: then nobody is given up for silence but by
 * gRPC's own pings (args.c). */
#include "rpc/rpc_int.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum {
    BEATS = 4,         /* within the limit */
    BYTES_PER_MS = 32, /* a line that is slower than this, 256 kbit/s, is none */
    LARGE_BYTES = 64 << 10,
    PAUSE_MS = 250, /* a look that comes so much too late tells of a pause of this process */
    INTERVAL_MS_MIN = 10,
    INTERVAL_MS_MAX = 600000,
};

static uint64_t ms_to_ns(uint64_t ms)
{
    return ms * 1000000;
}

static uint32_t interval_of(uint32_t silence_ms)
{
    uint32_t ms = silence_ms / BEATS;

    return ms < INTERVAL_MS_MIN ? INTERVAL_MS_MIN : ms > INTERVAL_MS_MAX ? INTERVAL_MS_MAX : ms;
}

static void put(void *out, uint64_t v)
{
    v = htole64(v);
    memcpy(out, &v, sizeof v);
}

static uint64_t get(const void *in)
{
    uint64_t v;

    memcpy(&v, in, sizeof v);
    return le64toh(v);
}

/* ---- a message that is not taken ---- */

/* Net thread. under_way: what lies before it, as far as that is known. */
static bool is_stuck(nk_call *c, uint64_t now, uint32_t silence_ms, uint64_t under_way,
                     uint64_t late_ns, struct nk_error *err)
{
    uint64_t since, bytes;

    pthread_mutex_lock(&c->mu);
    if (late_ns && c->sending_since_ns)
        c->sending_since_ns += late_ns;
    since = c->sending && !c->closed && !c->cancelled ? c->sending_since_ns : 0;
    bytes = c->sending_bytes;
    pthread_mutex_unlock(&c->mu);
    if (under_way < bytes)
        under_way = bytes;
    if (!since || now < since || now - since < ms_to_ns(silence_ms + under_way / BYTES_PER_MS))
        return false;
    nk_fail(err, NK_E_UNAVAILABLE, "peer_gone",
            "%s has not taken a message of %llu bytes for %llu ms", nk__call_other(c),
            (unsigned long long)bytes, (unsigned long long)((now - since) / 1000000));
    return true;
}

/* The other side of a call, as a sentence names it. */
const char *nk__call_other(const nk_call *c)
{
    return c->is_client ? c->channel->address : nk_call_peer(c);
}

/* ---- the client's side ---- */

static void client_look(void *channel);

static void client_arm(nk_channel *ch)
{
    struct nk__beat *b = &ch->beat;
    uint64_t limit_ns = ms_to_ns(b->silence_ms);

    b->due_ns = b->next_ns;
    if (b->call && b->call->on_wire && b->heard_ns + limit_ns < b->due_ns)
        b->due_ns = b->heard_ns + limit_ns;
    b->timer = nk__timer_at(ch->net, b->due_ns, client_look, ch);
}

/* [any] */
static uint64_t bytes_under_way(struct nk__beat *b)
{
    uint64_t heard = atomic_load(&b->heard); /* first: the other one is never less */

    return atomic_load(&b->handed) - heard;
}

/* [any] */
static void client_beat(nk_channel *ch, nk_call *call)
{
    struct nk__beat *b = &ch->beat;
    uint8_t m[24];

    put(m, interval_of(b->silence_ms));
    put(m + 8, atomic_load(&b->written));
    put(m + 16, bytes_under_way(b));
    nk_call_send(call, m, sizeof m, NULL); /* an error: it ends, and tells so */
}

static void client_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk__beat *b = &c->channel->beat;

    (void)user;
    b->n_heard++;
    if (msg.size == 8 && get(msg.data) <= atomic_load(&b->written) &&
        get(msg.data) > atomic_load(&b->heard))
        atomic_store(&b->heard, get(msg.data));
}

static void client_end(nk_call *c, void *user, const struct nk_error *status)
{
    nk_channel *ch = c->channel;

    (void)user;
    pthread_mutex_lock(&ch->mu);
    if (ch->beat.call == c)
        ch->beat.call = NULL;
    pthread_mutex_unlock(&ch->mu);
    /* A server that does not know beats, or does not want more of them. */
    if (!status || nk_call_ending(c) == NK_ENDING_STATUS)
        ch->beat.mute = true;
    nk_call_unref(c);
}

static void client_begin(nk_channel *ch)
{
    static const struct nk_call_handlers handlers = { .message = client_message,
                                                      .end = client_end };
    struct nk__beat *b = &ch->beat;
    uint64_t now = nk_clock_now_ns(ch->net->clock);
    nk_call *c;

    b->heard_ns = now;
    b->n_heard = 0;
    b->next_ns = now + ms_to_ns(interval_of(b->silence_ms));
    if (nk__call_start(&c, ch, NK_LINK_BEAT, 0, &handlers, NULL, true, NULL))
        return; /* the net stops */
    nk_call_ref(c);
    pthread_mutex_lock(&ch->mu);
    b->call = c;
    pthread_mutex_unlock(&ch->mu);
    client_beat(ch, c);
}

/* All calls of the channel, which then gets another connection: this one may be dead for long
 * before gRPC knows. */
static void client_lose(nk_channel *ch, const struct nk_error *e)
{
    nk_net *net = ch->net;
    nk_call *c;

    pthread_mutex_lock(&net->mu);
    LIST_FOREACH(c, &net->calls, link)
    {
        if (c->channel == ch)
            nk__call_lose(c, e);
    }
    pthread_mutex_unlock(&net->mu);
    nk__channel_renew(ch);
}

static void client_look(void *channel)
{
    nk_channel *ch = channel;
    struct nk__beat *b = &ch->beat;
    uint64_t now = nk_clock_now_ns(ch->net->clock), late_ns = 0;
    struct nk_error e;
    bool stuck = false;
    nk_call *c;

    b->timer = NULL;
    /* What was said meanwhile lies unread. */
    if (now - b->due_ns > ms_to_ns(PAUSE_MS))
        late_ns = now - b->due_ns;
    b->heard_ns += late_ns;
    pthread_mutex_lock(&ch->net->mu);
    LIST_FOREACH(c, &ch->net->calls, link)
    {
        if (c->channel == ch && c != b->call &&
            is_stuck(c, now, b->silence_ms, bytes_under_way(b), late_ns, &e)) {
            stuck = true;
            nk__call_lose(c, &e);
        }
    }
    pthread_mutex_unlock(&ch->net->mu);
    if (stuck)
        nk_log(NK_LOG_RPC, NK_LOG_WARN, "lost=%s why=stuck", ch->address);
    if (b->call && b->call->on_wire && now >= b->heard_ns &&
        now - b->heard_ns >= ms_to_ns(b->silence_ms)) {
        nk_fail(&e, NK_E_UNAVAILABLE, "peer_gone", "%s: silent for %llu ms", ch->address,
                (unsigned long long)((now - b->heard_ns) / 1000000));
        nk_log(NK_LOG_RPC, NK_LOG_WARN, "lost=%s why=silent silence_ms=%u", ch->address,
               b->silence_ms);
        client_lose(ch, &e);
        pthread_mutex_lock(&ch->mu);
        b->call = NULL; /* the next one is another connection's */
        pthread_mutex_unlock(&ch->mu);
        b->next_ns = now + ms_to_ns(interval_of(b->silence_ms));
    } else if (now >= b->next_ns) {
        b->next_ns = now + ms_to_ns(interval_of(b->silence_ms));
        if (b->call)
            client_beat(ch, b->call);
        else if (!b->mute)
            client_begin(ch);
    }
    client_arm(ch);
}

bool nk_call_is_heard(const nk_call *c)
{
    const struct nk__beat *b = c->channel ? &c->channel->beat : NULL;
    uint64_t now = c->channel ? nk_clock_now_ns(c->net->clock) : 0;

    return c->is_watched && b->n_heard &&
           (now < b->heard_ns || now - b->heard_ns < ms_to_ns(b->silence_ms));
}

void nk__beat_call_begins(nk_call *c)
{
    nk_channel *ch = c->channel;

    if (!ch->beat.silence_ms || c->is_beat)
        return;
    c->is_watched = true;
    if (ch->beat.n_calls++)
        return;
    ch->beat.mute = false;
    client_begin(ch);
    client_arm(ch);
}

void nk__beat_call_ends(nk_call *c)
{
    struct nk__beat *b = &c->channel->beat;
    nk_call *call;

    if (!c->is_watched || --b->n_calls)
        return;
    nk_timer_cancel(b->timer);
    b->timer = NULL;
    pthread_mutex_lock(&c->channel->mu);
    call = b->call;
    b->call = NULL;
    if (call)
        nk_call_ref(call);
    pthread_mutex_unlock(&c->channel->mu);
    if (call) {
        nk_call_cancel(call);
        nk_call_unref(call);
    }
}

void nk__beat_sends(nk_call *c, size_t size)
{
    nk_channel *ch = c->channel;
    nk_call *call = NULL;

    if (!c->is_client || c->is_beat || !ch->beat.silence_ms)
        return;
    atomic_fetch_add(&ch->beat.handed, size);
    if (size < LARGE_BYTES)
        return;
    pthread_mutex_lock(&ch->mu);
    if (ch->beat.call)
        call = nk_call_ref(ch->beat.call);
    pthread_mutex_unlock(&ch->mu);
    if (call) {
        client_beat(ch, call);
        nk_call_unref(call);
    }
}

void nk__beat_sent(nk_call *c, size_t size)
{
    if (c->is_client && !c->is_beat && c->channel->beat.silence_ms)
        atomic_fetch_add(&c->channel->beat.written, size);
}

void nk_channel_watch(nk_channel *ch, uint32_t silence_ms)
{
    ch->beat.silence_ms = silence_ms;
}

/* ---- the server's side ---- */

static void server_look(void *peer);

static void server_arm(struct nk__beat_peer *p)
{
    p->due_ns = p->next_ns;
    if (p->server->silence_ms && p->heard_ns + p->patience_ns < p->due_ns)
        p->due_ns = p->heard_ns + p->patience_ns;
    p->timer = nk__timer_at(p->server->net, p->due_ns, server_look, p);
}

static void server_lose(struct nk__beat_peer *p, const struct nk_error *e)
{
    nk_net *net = p->server->net;
    const char *peer = nk_call_peer(p->call);
    nk_call *c;

    pthread_mutex_lock(&net->mu);
    LIST_FOREACH(c, &net->calls, link)
    {
        if (c->server == p->server && !c->end_done && !strcmp(nk_call_peer(c), peer))
            nk__call_lose(c, e);
    }
    pthread_mutex_unlock(&net->mu);
}

static void server_look(void *peer)
{
    struct nk__beat_peer *p = peer;
    nk_server *s = p->server;
    uint64_t now = nk_clock_now_ns(s->net->clock), late_ns = 0;
    struct nk_error e;
    uint8_t m[8];
    nk_call *c;

    p->timer = NULL;
    if (now - p->due_ns > ms_to_ns(PAUSE_MS))
        late_ns = now - p->due_ns;
    p->heard_ns += late_ns;
    if (s->silence_ms && p == LIST_FIRST(&s->beats)) { /* one of them for all */
        pthread_mutex_lock(&s->net->mu);
        LIST_FOREACH(c, &s->net->calls, link)
        {
            if (c->server == s && !c->is_internal && !c->end_done &&
                is_stuck(c, now, s->silence_ms, 0, late_ns, &e))
                nk__call_lose(c, &e);
        }
        pthread_mutex_unlock(&s->net->mu);
    }
    if (s->silence_ms && now >= p->heard_ns && now - p->heard_ns >= p->patience_ns) {
        nk_fail(&e, NK_E_UNAVAILABLE, "peer_gone", "%s: silent for %llu ms", nk_call_peer(p->call),
                (unsigned long long)((now - p->heard_ns) / 1000000));
        nk_log(NK_LOG_RPC, NK_LOG_WARN, "lost=%s why=silent silence_ms=%u", nk_call_peer(p->call),
               s->silence_ms);
        server_lose(p, &e);
        return; /* its own call ends, too */
    }
    if (now >= p->next_ns) {
        p->next_ns = now + ms_to_ns(p->interval_ms);
        put(m, p->written);
        nk_call_send(p->call, m, sizeof m, NULL);
    }
    server_arm(p);
}

static void server_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk__beat_peer *p = user;
    uint64_t interval_ms, waiting, now = nk_clock_now_ns(p->server->net->clock);
    uint32_t silence_ms = p->server->silence_ms;

    interval_ms = msg.size == 24 ? get(msg.data) : 0;
    if (interval_ms < INTERVAL_MS_MIN || interval_ms > INTERVAL_MS_MAX) {
        struct nk_error e = { 0 };

        nk_fail(&e, NK_E_INVALID, "bad_message", "%zu bytes are no beat", msg.size);
        nk_call_finish(c, &e);
        return;
    }
    p->written = get((const uint8_t *)msg.data + 8);
    waiting = get((const uint8_t *)msg.data + 16);
    if (waiting > NK_RPC_MEMORY_BYTES_MAX)
        waiting = NK_RPC_MEMORY_BYTES_MAX;
    p->heard_ns = now;
    p->patience_ns =
        ms_to_ns((silence_ms > interval_ms * BEATS ? silence_ms : interval_ms * BEATS) +
                 waiting / BYTES_PER_MS);
    if (p->interval_ms != interval_ms) { /* the first */
        p->interval_ms = (uint32_t)interval_ms;
        p->next_ns = now;
    }
    nk_timer_cancel(p->timer);
    server_arm(p);
}

static void server_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct nk__beat_peer *p = user;

    (void)c;
    (void)status;
    nk_timer_cancel(p->timer);
    LIST_REMOVE(p, link);
    free(p);
}

static void server_open(nk_call *c, void *server)
{
    static const struct nk_call_handlers handlers = { .message = server_message,
                                                      .end = server_end };
    struct nk__beat_peer *p = nk__alloc(1, sizeof *p);

    p->server = server;
    p->call = c;
    LIST_INSERT_HEAD(&p->server->beats, p, link);
    nk_call_accept(c, &handlers, p);
}

const struct nk_method nk__beat_methods[] = { { NK_LINK_BEAT, server_open, 0 } };
