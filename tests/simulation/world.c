#include "simulation/world.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* ---- what happens when ---- */

struct event {
    uint64_t at, n;
    struct process *p; /* NULL: of the world */
    void (*fn)(void *arg);
    void *arg;
    bool posted;             /* nk_net_post's */
    bool cancelled;          /* a timer's */
    void (*drop)(void *arg); /* instead of fn, where it never happens; may be NULL */
};

struct nk_net {
    struct process *p;
};
struct nk_server {
    struct process *p;
    const struct nk_method *methods;
    int n_methods;
    void *user;
};
struct nk_channel {
    struct process *p;
    char address[32];
};

struct cut {
    char a[32], b[32];
    uint64_t until;
};

static struct {
    uint64_t seed, rng, now, n_events;
    struct world_weather weather;
    struct event **heap;
    int n, capacity;
    struct event **parked; /* of processes that are stopped, in their order */
    int n_parked, parked_capacity;
    LIST_HEAD(, process) processes;
    struct process *current;
    struct cut cuts[8];
    int n_cuts;
    int n_call_structs;
} w;

void world_fail(const char *format, ...)
{
    va_list args;

    printf("seed %llu, at %.3f ms: ", (unsigned long long)w.seed,
           (double)(w.now - 1000000 * MS) / 1e6);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\nonce more: test_simulation --from %llu --seeds 1 (--log: with the program's log)\n",
           (unsigned long long)w.seed);
    exit(1);
}

static uint64_t clock_now(struct nk_clock *c)
{
    (void)c;
    return w.now;
}

static int64_t clock_unix(struct nk_clock *c)
{
    (void)c;
    return 1700000000 + (int64_t)(w.now / 1000000000u);
}

/* Nobody waits here: there is one thread, and it is this. */
static bool clock_wait(struct nk_clock *c, pthread_cond_t *cond, pthread_mutex_t *mutex,
                       uint64_t ns)
{
    (void)c, (void)cond, (void)mutex;
    world_check(w.now >= ns, "somebody waits for a time in the simulation's only thread");
    return false;
}

static struct nk_clock the_clock = { .now_ns = clock_now,
                                     .unix_s = clock_unix,
                                     .wait_until = clock_wait };

struct nk_clock *world_clock(void)
{
    return &the_clock;
}

static int chance_fill(struct nk_chance *c, void *out, size_t size, struct nk_error *err)
{
    (void)c, (void)err;
    for (size_t i = 0; i < size; i++)
        ((unsigned char *)out)[i] = (unsigned char)seed_next(&w.rng);
    return 0;
}

static struct nk_chance the_chance = { .fill = chance_fill };

struct nk_chance *world_randomness(void)
{
    return &the_chance;
}

uint64_t world_now_ns(void)
{
    return w.now;
}

uint64_t world_below(uint64_t n)
{
    return seed_below(&w.rng, n);
}

bool world_chance(int thousandths)
{
    return (int)world_below(1000) < thousandths;
}

static bool before(const struct event *a, const struct event *b)
{
    return a->at < b->at || (a->at == b->at && a->n < b->n);
}

static void heap_push(struct event *e)
{
    int i = w.n++;

    if (w.n > w.capacity) {
        w.capacity = w.capacity ? 2 * w.capacity : 1024;
        w.heap = realloc(w.heap, (size_t)w.capacity * sizeof *w.heap);
        NK_ASSERT(w.heap);
    }
    for (; i && before(e, w.heap[(i - 1) / 2]); i = (i - 1) / 2)
        w.heap[i] = w.heap[(i - 1) / 2];
    w.heap[i] = e;
}

static struct event *heap_pop(void)
{
    struct event *top = w.heap[0], *last = w.heap[--w.n];
    int i = 0, child;

    while ((child = 2 * i + 1) < w.n) {
        if (child + 1 < w.n && before(w.heap[child + 1], w.heap[child]))
            child++;
        if (before(last, w.heap[child]))
            break;
        w.heap[i] = w.heap[child];
        i = child;
    }
    w.heap[i] = last;
    return top;
}

static struct event *event_at(struct process *p, uint64_t at, void (*fn)(void *arg), void *arg)
{
    struct event *e = calloc(1, sizeof *e);

    NK_ASSERT(e);
    *e = (struct event){ .at = at, .n = w.n_events++, .p = p, .fn = fn, .arg = arg };
    heap_push(e);
    return e;
}

void world_later(struct process *p, uint64_t us, void (*fn)(void *arg), void *arg)
{
    event_at(p, w.now + us * 1000, fn, arg);
}

/* It happens, or, to the dead, does not. */
static void happen(struct event *e)
{
    struct process *p = e->p;

    if (e->cancelled || (p && p->dead && !p->ending)) {
        if (e->drop)
            e->drop(e->arg);
    } else {
        e->fn(e->arg);
        if (p && !p->dead && p->after)
            p->after(p);
    }
    free(e);
}

bool world_step(void)
{
    struct event *e;

    if (!w.n)
        return false;
    e = heap_pop();
    if (e->at > w.now)
        w.now = e->at;
    if (e->p && e->p->stopped && !e->p->dead) {
        if (w.n_parked == w.parked_capacity) {
            w.parked_capacity = w.parked_capacity ? 2 * w.parked_capacity : 256;
            w.parked = realloc(w.parked, (size_t)w.parked_capacity * sizeof *w.parked);
            NK_ASSERT(w.parked);
        }
        w.parked[w.n_parked++] = e;
        return true;
    }
    happen(e);
    return true;
}

/* Those of p that pass `which`, in their order, out of the heap; NULL: there is none. */
static struct event *take_one(const struct process *p, bool posted_only)
{
    struct event *first = NULL;
    int at = -1;

    for (int i = 0; i < w.n; i++) {
        struct event *e = w.heap[i];

        if (e->p == p && (posted_only ? e->posted : e->at <= w.now) &&
            (!first || before(e, first))) {
            first = e;
            at = i;
        }
    }
    if (!first)
        return NULL;
    /* To the top, as if it were before all others, and off. */
    for (; at; at = (at - 1) / 2)
        w.heap[at] = w.heap[(at - 1) / 2];
    w.heap[0] = first;
    return heap_pop();
}

/* ---- processes ---- */

void world_begin(uint64_t seed, const struct world_weather *weather)
{
    w.seed = seed;
    w.rng = seed * 0x9e3779b97f4a7c15u + 1;
    w.now = 1000000 * MS;
    w.n_events = 0;
    w.weather = *weather;
    w.n_cuts = 0;
    LIST_INIT(&w.processes);
}

void world_end(void)
{
    struct process *p;

    for (int i = 0; i < w.n_parked; i++)
        heap_push(w.parked[i]);
    w.n_parked = 0;
    while (w.n) {
        struct event *e = heap_pop();

        if (e->drop)
            e->drop(e->arg);
        free(e);
    }
    while ((p = LIST_FIRST(&w.processes))) {
        LIST_REMOVE(p, link);
        free(p);
    }
    free(w.heap);
    free(w.parked);
    w.heap = w.parked = NULL;
    w.capacity = w.parked_capacity = 0;
    world_check(!w.n_call_structs, "%d handles of calls are left", w.n_call_structs);
}

struct process *world_process(const char *address)
{
    struct process *p = calloc(1, sizeof *p);

    NK_ASSERT(p);
    snprintf(p->address, sizeof p->address, "%s", address);
    LIST_INSERT_HEAD(&w.processes, p, link);
    w.current = p;
    return p;
}

void world_current(struct process *p)
{
    w.current = p;
}

struct process *world_find(const char *address)
{
    struct process *p;

    LIST_FOREACH(p, &w.processes, link)
    {
        if (p->server && !p->dead && !strcmp(p->address, address))
            return p;
    }
    return NULL;
}

/* ---- calls ---- */

struct nk_call {
    int refs; /* one until `end`, one for each event that is on its way to it */
    struct process *p;
    nk_call *peer; /* a reference; NULL: there never was one */
    const struct nk_call_handlers *handlers;
    void *user;
    bool is_client;
    bool quiet;       /* this side wants no more messages: it has finished or cancelled */
    bool ended;       /* `end` was called */
    bool half_closed; /* client: it has sent all */
    bool cut;         /* the network swallows what is on its way */
    bool said;        /* it has sent a message */
    enum nk_ending ending;
    bool ok;
    struct nk_error status; /* of the end that comes, unless ok */
    uint64_t last_at;       /* when the last message that it sent arrives */
    struct nk_server *server;
    char path[64];
    LIST_ENTRY(nk_call) link; /* the process's, until it has ended */
};

nk_call *nk_call_ref(nk_call *c)
{
    c->refs++;
    return c;
}

void nk_call_unref(nk_call *c)
{
    if (--c->refs)
        return;
    w.n_call_structs--;
    free(c);
}

static void drop_call(void *c)
{
    nk_call_unref(c);
}

static nk_call *new_call(struct process *p, bool is_client)
{
    nk_call *c = calloc(1, sizeof *c);

    NK_ASSERT(c);
    w.n_call_structs++;
    c->refs = 1;
    c->p = p;
    c->is_client = is_client;
    LIST_INSERT_HEAD(&p->calls, c, link);
    return c;
}

/* On its way to c; takes a reference for the time. */
static void to_call(nk_call *c, uint64_t at, void (*fn)(void *call))
{
    event_at(c->p, at, fn, nk_call_ref(c))->drop = drop_call;
}

static void end_call(nk_call *c)
{
    nk_call *peer = c->peer;

    if (c->ended)
        return;
    c->ended = c->quiet = true;
    LIST_REMOVE(c, link);
    if (c->handlers)
        c->handlers->end(c, c->user, c->ok ? NULL : &c->status);
    c->peer = NULL;
    if (peer)
        nk_call_unref(peer);
    nk_call_unref(c);
}

struct ending {
    nk_call *c; /* a reference */
    enum nk_ending ending;
    bool ok;
    bool by_wire; /* the other side says so: swallowed where the line is cut */
    struct nk_error status;
};

static void ending_drop(void *arg)
{
    struct ending *e = arg;

    nk_call_unref(e->c);
    free(e);
}

static void ending_come(void *arg)
{
    struct ending *e = arg;
    nk_call *c = e->c;

    if (!c->ended && !(e->by_wire && c->cut)) {
        c->ending = e->ending;
        c->ok = e->ok;
        c->status = e->status;
        end_call(c);
    }
    ending_drop(e);
}

/* Its end comes at that time, unless another one does before. */
static struct ending *end_at(nk_call *c, uint64_t at, enum nk_ending ending,
                             const struct nk_error *status)
{
    struct ending *e = calloc(1, sizeof *e);

    NK_ASSERT(e);
    e->c = nk_call_ref(c);
    e->ending = ending;
    e->ok = !status;
    if (status)
        e->status = *status;
    event_at(c->p, at, ending_come, e)->drop = ending_drop;
    return e;
}

static struct ending *lose_at(nk_call *c, uint64_t at, bool silently)
{
    struct nk_error err = { 0 };

    if (c->is_client)
        nk_fail(&err, NK_E_UNAVAILABLE, "peer_gone", "%s",
                silently ? "silent for 3000 ms" : "the connection is gone");
    else if (silently)
        nk_fail(&err, NK_E_UNAVAILABLE, "peer_gone", "silent for 3000 ms");
    else
        nk_fail(&err, NK_E_CANCELLED, "cancelled", "the call was cancelled");
    return end_at(c, at, NK_ENDING_LOST, &err);
}

static uint64_t delay_ns(void)
{
    uint64_t us = 100 + world_below(2000);

    if (world_chance(w.weather.slow))
        us += world_below(200000);
    return us * 1000;
}

/* When what is sent now arrives: in the order of sending. */
static uint64_t arrival(nk_call *c)
{
    uint64_t at = w.now + delay_ns();

    if (at <= c->last_at)
        at = c->last_at + 1;
    c->last_at = at;
    return at;
}

struct message {
    nk_call *c; /* whom it goes to; a reference */
    size_t size;
    uint8_t data[];
};

static void message_drop(void *arg)
{
    struct message *m = arg;

    nk_call_unref(m->c);
    free(m);
}

static void message_come(void *arg)
{
    struct message *m = arg;
    nk_call *c = m->c;

    if (!c->cut && !c->quiet && c->handlers)
        c->handlers->message(c, c->user, (struct nk_bytes){ m->data, m->size });
    message_drop(m);
}

static struct message *message_new(nk_call *to, const void *data, size_t size)
{
    struct message *m = malloc(sizeof *m + size);

    NK_ASSERT(m);
    m->c = nk_call_ref(to);
    m->size = size;
    if (data)
        memcpy(m->data, data, size);
    return m;
}

static void take_call(void *arg)
{
    nk_call *c = arg;
    const struct nk_server *s = c->server;
    struct nk_error err;

    if (!c->ended && !c->cut) {
        for (int i = 0; i < s->n_methods; i++)
            if (!strcmp(s->methods[i].path, c->path)) {
                s->methods[i].open(c, s->user);
                nk_call_unref(c);
                return;
            }
        nk_fail(&err, NK_E_UNIMPLEMENTED, "unknown_method", "%s", c->path);
        nk_call_finish(c, &err);
    }
    nk_call_unref(c);
}

void world_run_out(struct process *p)
{
    struct event *e;

    p->ending = true;
    do {
        nk_call *c;

        LIST_FOREACH(c, &p->calls, link)
        {
            lose_at(c, w.now, false);
        }
        while ((e = take_one(p, false)))
            happen(e);
    } while (!LIST_EMPTY(&p->calls));
    p->ending = false;
}

/* ---- a call that comes twice ---- */

static void ghost_message(nk_call *c, void *user, struct nk_bytes msg)
{
    (void)c, (void)user, (void)msg;
}

static void ghost_end(nk_call *c, void *user, const struct nk_error *status)
{
    (void)c, (void)user, (void)status;
}

static const struct nk_call_handlers ghost_handlers = { .message = ghost_message,
                                                        .end = ghost_end };

static void ghost_gone(void *arg)
{
    nk_call *c = arg;

    if (!c->ended)
        nk_call_cancel(c);
    nk_call_unref(c);
}

static nk_call *server_side(nk_call *c, struct process *p)
{
    nk_call *s = new_call(p, false);

    s->server = p->server;
    s->cut = c->cut;
    memcpy(s->path, c->path, sizeof s->path);
    s->peer = nk_call_ref(c);
    c->peer = nk_call_ref(s);
    return s;
}

/* The first message of c once more, later than it. */
static void haunt(nk_call *c, const void *data, size_t size)
{
    nk_call *g = new_call(c->p, true);
    uint64_t at = c->last_at + (1 + world_below(800)) * MS;
    nk_call *s;

    g->handlers = &ghost_handlers;
    memcpy(g->path, c->path, sizeof g->path);
    s = server_side(g, c->peer->p);
    to_call(s, at, take_call);
    event_at(s->p, at + 1, message_come, message_new(s, data, size))->drop = message_drop;
    g->last_at = at + 1;
    to_call(g, at + world_below(2000) * MS, ghost_gone);
}

/* ---- rpc.h: calls ---- */

static int send(nk_call *c, struct message *m, struct nk_error *err)
{
    bool is_first = c->is_client && !c->said;
    uint64_t at;

    if (c->p->dead || c->cut) { /* it does not know yet */
        message_drop(m);
        return 0;
    }
    c->said = true;
    at = arrival(c);
    if (is_first && strstr(c->path, "Inference") && world_chance(w.weather.ghost))
        haunt(c, m->data, m->size);
    event_at(c->peer->p, at, message_come, m)->drop = message_drop;
    (void)err;
    return 0;
}

static bool takes_no_more(nk_call *c, struct nk_error *err)
{
    if (!c->ended && !c->quiet)
        return false;
    nk_fail(err, NK_E_UNAVAILABLE, "call_ended", "the call has ended");
    return true;
}

int nk_call_send(nk_call *c, const void *data, size_t size, struct nk_error *err)
{
    if (takes_no_more(c, err))
        return NK_E_UNAVAILABLE;
    if (!c->peer) /* it is not connected, and will not be */
        return 0;
    return send(c, message_new(c->peer, data, size), err);
}

int nk_call_send_pb(nk_call *c, const ProtobufCMessage *msg, struct nk_error *err)
{
    struct message *m;

    if (takes_no_more(c, err))
        return NK_E_UNAVAILABLE;
    if (!c->peer)
        return 0;
    m = message_new(c->peer, NULL, protobuf_c_message_get_packed_size(msg));
    protobuf_c_message_pack(msg, m->data);
    return send(c, m, err);
}

static void half_close(void *arg)
{
    nk_call *c = arg;

    if (!c->cut && !c->quiet && c->handlers && c->handlers->half_closed)
        c->handlers->half_closed(c, c->user);
    nk_call_unref(c);
}

void nk_call_send_done(nk_call *c)
{
    c->half_closed = true;
    if (!c->ended && !c->quiet && c->peer && !c->p->dead && !c->cut)
        to_call(c->peer, arrival(c), half_close);
}

void nk_call_finish(nk_call *c, const struct nk_error *status)
{
    enum nk_ending ending = status ? NK_ENDING_STATUS : NK_ENDING_OK;
    uint64_t at;

    if (c->ended || c->quiet)
        return;
    c->quiet = true;
    at = arrival(c);
    if (!c->p->dead && !c->cut && c->peer)
        end_at(c->peer, at, ending, status)->by_wire = true;
    end_at(c, w.now + 1, ending, status);
}

void nk_call_cancel(nk_call *c)
{
    struct nk_error err = { 0 };

    if (c->ended)
        return;
    c->quiet = true;
    /* It may overtake what was sent before. */
    if (c->peer && !c->p->dead && !c->cut) {
        bool overtakes = world_chance(500);
        uint64_t at = overtakes ? w.now + delay_ns() : arrival(c);

        lose_at(c->peer, at, false)->by_wire = true;
    }
    nk_fail(&err, NK_E_CANCELLED, "cancelled", "the call was cancelled");
    end_at(c, w.now, NK_ENDING_HERE, &err);
}

static void cancel_at_last(void *arg)
{
    nk_call *c = arg;

    if (!c->ended)
        nk_call_cancel(c);
    nk_call_unref(c);
}

void nk_call_cancel_with(nk_call *c, const ProtobufCMessage *last)
{
    if (c->ended || c->quiet)
        return;
    if (c->half_closed || !c->peer) {
        nk_call_cancel(c);
        return;
    }
    nk_call_send_pb(c, last, NULL);
    c->quiet = true;
    to_call(c, w.now + 1000 * MS, cancel_at_last);
}

enum nk_ending nk_call_ending(const nk_call *c)
{
    return c->ending;
}

/* Its other end is there and runs, and so does the line. */
bool nk_call_is_heard(const nk_call *c)
{
    return c->peer && !c->cut && !c->peer->p->dead && !c->peer->p->stopped;
}

const char *nk_call_peer(const nk_call *c)
{
    return c->peer ? c->peer->p->address : "";
}

const char *nk_call_identity(const nk_call *c)
{
    (void)c;
    return "";
}

enum nk_role nk_call_role(const nk_call *c)
{
    (void)c;
    return NK_ROLE_NONE;
}

void nk_call_accept(nk_call *c, const struct nk_call_handlers *handlers, void *user)
{
    c->handlers = handlers;
    c->user = user;
}

/* Both ends of a connection learn of its end, each when it does. */
static void cut_call(nk_call *c, bool silently)
{
    uint64_t most = silently ? SILENCE_MS * MS : 20 * MS;

    if (c->cut || !c->peer)
        return;
    c->cut = c->peer->cut = true;
    lose_at(c, w.now + world_below(most), silently);
    lose_at(c->peer, w.now + world_below(most), silently);
}

struct silence {
    struct process *p;
    nk_call *c; /* the other's; a reference */
};

static void silence_drop(void *arg)
{
    struct silence *s = arg;

    nk_call_unref(s->c);
    free(s);
}

static void silence_heard(void *arg)
{
    struct silence *s = arg;

    if (s->p->stopped && !s->p->dead && !s->c->ended && s->c->peer && !s->c->cut)
        cut_call(s->c, false);
    silence_drop(s);
}

/* p stands still: unless it goes on in time, c, whose other end is there, is given up. */
static void watch_silence(struct process *p, nk_call *c)
{
    struct silence *s = calloc(1, sizeof *s);

    NK_ASSERT(s);
    s->p = p;
    s->c = nk_call_ref(c);
    event_at(NULL, w.now + SILENCE_MS * MS, silence_heard, s)->drop = silence_drop;
}

static bool is_cut(const char *a, const char *b)
{
    for (int i = 0; i < w.n_cuts; i++)
        if (w.cuts[i].until > w.now && ((!strcmp(w.cuts[i].a, a) && !strcmp(w.cuts[i].b, b)) ||
                                        (!strcmp(w.cuts[i].a, b) && !strcmp(w.cuts[i].b, a))))
            return true;
    return false;
}

int nk_call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                  const struct nk_call_handlers *handlers, void *user, struct nk_error *err)
{
    struct process *to = world_find(ch->address);
    nk_call *c = new_call(ch->p, true), *s;
    struct nk_error none = { 0 };

    (void)err;
    *out = c;
    c->handlers = handlers;
    c->user = user;
    snprintf(c->path, sizeof c->path, "%s", path);
    if (deadline_ms) {
        nk_fail(&none, NK_E_DEADLINE, "deadline", "the deadline has passed");
        end_at(c, w.now + deadline_ms * MS, NK_ENDING_HERE, &none);
    }
    if (ch->p->dead)
        return 0;
    if (!to || is_cut(ch->p->address, ch->address)) {
        nk_fail(&none, NK_E_UNAVAILABLE, "unreachable", "%s: connection refused", ch->address);
        end_at(c, w.now + (to ? (1 + world_below(SILENCE_MS)) * MS : delay_ns()), NK_ENDING_LOST,
               &none);
        return 0;
    }
    s = server_side(c, to);
    if (to->stopped)
        watch_silence(to, c);
    to_call(s, arrival(c), take_call);
    return 0;
}

/* ---- rpc.h: the rest ---- */

int nk_net_start(nk_net **out, struct nk_clock *clock, struct nk_error *err)
{
    (void)clock, (void)err;
    *out = calloc(1, sizeof **out);
    NK_ASSERT(*out);
    (*out)->p = w.current;
    w.current->net = *out;
    return 0;
}

/* As nk_net_stop has it: what was posted is still done, and every call ends. */
void nk_net_stop(nk_net *net)
{
    struct process *p = net->p;
    struct event *e;
    nk_call *c;

    p->ending = true;
    for (;;) {
        while ((e = take_one(p, true)))
            happen(e);
        if (!(c = LIST_FIRST(&p->calls)))
            break;
        c->ok = false;
        c->ending = NK_ENDING_HERE;
        nk_fail(&c->status, NK_E_CANCELLED, "cancelled", "the net has stopped");
        if (c->peer && !p->dead)
            lose_at(c->peer, w.now + delay_ns(), false);
        end_call(c);
    }
    p->dead = true;
    p->ending = false;
    free(net);
}

void nk_net_post(nk_net *net, void (*fn)(void *arg), void *arg)
{
    /* Whoever ends the process waits for what it posts. */
    if (net->p->ending)
        fn(arg);
    else
        event_at(net->p, w.now, fn, arg)->posted = true;
}

bool nk_net_is_current(const nk_net *net)
{
    (void)net;
    return true;
}

struct nk_timer {
    struct event *event;
    void (*fn)(void *arg);
    void *arg;
};

static void timer_due(void *arg)
{
    nk_timer *t = arg;
    nk_timer copy = *t;

    free(t);
    copy.fn(copy.arg);
}

nk_timer *nk_timer_start(nk_net *net, uint32_t ms, void (*fn)(void *arg), void *arg)
{
    nk_timer *t = calloc(1, sizeof *t);

    NK_ASSERT(t);
    *t = (nk_timer){ .fn = fn, .arg = arg };
    t->event = event_at(net->p, w.now + ms * MS, timer_due, t);
    t->event->drop = free;
    return t;
}

void nk_timer_cancel(nk_timer *t)
{
    if (t)
        t->event->cancelled = true;
}

int nk_server_start(nk_server **out, nk_net *net, const struct nk_server_opts *opts,
                    struct nk_error *err)
{
    (void)err;
    *out = calloc(1, sizeof **out);
    NK_ASSERT(*out);
    **out = (nk_server){ net->p, opts->methods, opts->n_methods, opts->user };
    net->p->server = *out;
    return 0;
}

int nk_server_port(const nk_server *s)
{
    (void)s;
    return 0;
}

void nk_server_set_serving(nk_server *s, bool serving)
{
    (void)s, (void)serving;
}

/* What is on its way out goes out; the calls that are left are ended. */
void nk_server_stop(nk_server *s, uint32_t grace_ms)
{
    struct process *p = s->p;
    nk_call *c, *next;

    (void)grace_ms;
    p->server = NULL;
    for (c = LIST_FIRST(&p->calls); c; c = next) {
        struct nk_error err;

        next = LIST_NEXT(c, link);
        if (c->is_client)
            continue;
        nk_fail(&err, NK_E_UNAVAILABLE, "shutting_down", "the server shuts down");
        nk_call_finish(c, &err);
        c->ok = false;
        c->status = err;
        c->ending = NK_ENDING_STATUS;
        end_call(c);
        next = LIST_FIRST(&p->calls); /* ending one may have begun or ended others */
    }
    free(s);
}

int nk_channel_open(nk_channel **out, nk_net *net, const char *address,
                    const struct nk_credentials *credentials, struct nk_error *err)
{
    (void)credentials, (void)err;
    *out = calloc(1, sizeof **out);
    NK_ASSERT(*out);
    (*out)->p = net->p;
    snprintf((*out)->address, sizeof(*out)->address, "%s", address);
    return 0;
}

void nk_channel_close(nk_channel *ch)
{
    free(ch);
}

void nk_channel_watch(nk_channel *ch, uint32_t silence_ms)
{
    (void)ch, (void)silence_ms;
}

void nk_channel_ends(nk_channel *ch, struct nk_certificate_ends *out)
{
    (void)ch; /* plain text */
    *out = (struct nk_certificate_ends){ 0 };
}

/* ---- faults ---- */

int world_n_calls(const struct process *p)
{
    const nk_call *c;
    int n = 0;

    LIST_FOREACH(c, &p->calls, link)
    {
        n++;
    }
    return n;
}

void world_kill(struct process *p, bool silently)
{
    nk_call *c;
    int n = 0;

    p->dead = true;
    LIST_FOREACH(c, &p->calls, link)
    {
        if (c->peer)
            lose_at(c->peer, w.now + (silently ? world_below(SILENCE_MS) * MS : delay_ns()),
                    silently);
    }
    for (int i = 0; i < w.n_parked; i++) { /* nothing comes back of what it did not take */
        struct event *e = w.parked[i];

        if (e->p == p)
            heap_push(e);
        else
            w.parked[n++] = e;
    }
    w.n_parked = n;
}

void world_stop(struct process *p)
{
    nk_call *c;

    p->stopped = true;
    LIST_FOREACH(c, &p->calls, link)
    {
        if (c->peer)
            watch_silence(p, c->peer);
    }
}

void world_continue(struct process *p)
{
    int n = 0;

    p->stopped = false;
    for (int i = 0; i < w.n_parked; i++) {
        struct event *e = w.parked[i];

        if (e->p == p) {
            e->at = w.now;
            e->n = w.n_events++;
            heap_push(e);
        } else {
            w.parked[n++] = e;
        }
    }
    w.n_parked = n;
}

void world_cut(const char *a, const char *b, uint64_t ms)
{
    struct process *p;
    struct cut *cut = &w.cuts[w.n_cuts++ % 8];

    snprintf(cut->a, sizeof cut->a, "%s", a);
    snprintf(cut->b, sizeof cut->b, "%s", b);
    cut->until = w.now + ms * MS;
    if (w.n_cuts > 8)
        w.n_cuts = 8;
    LIST_FOREACH(p, &w.processes, link)
    {
        nk_call *c;

        if (p->dead || strcmp(p->address, a) != 0)
            continue;
        LIST_FOREACH(c, &p->calls, link)
        {
            if (c->peer && !strcmp(c->peer->p->address, b))
                cut_call(c, true);
        }
    }
}

void world_reset_one(void)
{
    struct process *p;
    nk_call *c, *chosen = NULL;
    int n = 0;

    LIST_FOREACH(p, &w.processes, link)
    {
        LIST_FOREACH(c, &p->calls, link)
        {
            if (!p->dead && c->is_client && c->peer && world_below((uint64_t)++n) == 0)
                chosen = c;
        }
    }
    if (chosen)
        cut_call(chosen, false);
}
