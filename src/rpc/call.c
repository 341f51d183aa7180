/* A call. Sends are queued under c->mu and started by whoever finds none outstanding: usually the
 * thread that sends, so that a row goes to the socket without a detour over the net thread.
 * Reading, handlers and the end are the net thread's. */
#include "rpc/rpc_int.h"

#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>

#include "base/log.h"

/* Messages waiting on one call, whatever their size: small ones cost memory too. */
#define SEND_QUEUE_MESSAGES_MAX 65536u

enum { LEAVE_MS = 1000 }; /* of nk_call_cancel_with */

static void op_send_done(struct nk__op *op, bool ok);
static void op_recv_done(struct nk__op *op, bool ok);
static void op_headers_done(struct nk__op *op, bool ok);
static void op_status_done(struct nk__op *op, bool ok);

nk_call *nk__call_new(nk_net *net, bool is_client)
{
    nk_call *c = nk__alloc(1, sizeof *c);

    c->net = net;
    atomic_fetch_add(&net->refs, 1);
    c->is_client = is_client;
    atomic_init(&c->refs, 1);
    atomic_init(&c->g_refs, 1);
    pthread_mutex_init(&c->mu, NULL);
    c->op_send.done = op_send_done;
    c->op_recv.done = op_recv_done;
    c->op_headers.done = op_headers_done;
    c->op_status.done = op_status_done;
    grpc_metadata_array_init(&c->headers);
    grpc_metadata_array_init(&c->trailers);
    c->details = grpc_empty_slice();
    return c;
}

bool nk__call_link(nk_call *c, bool always)
{
    nk_net *net = c->net;
    bool ok;

    pthread_mutex_lock(&net->mu);
    ok = always || !net->stopping;
    if (ok) {
        LIST_INSERT_HEAD(&net->calls, c, link);
        net->n_calls++;
    }
    pthread_mutex_unlock(&net->mu);
    return ok;
}

nk_call *nk_call_ref(nk_call *c)
{
    atomic_fetch_add(&c->refs, 1);
    return c;
}

void nk_call_unref(nk_call *c)
{
    nk_net *net;

    if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    net = c->net;
    free(c->out.items);
    pthread_mutex_destroy(&c->mu);
    free(c);
    nk__net_unref(net);
}

/* mu held. Keeps g alive while this thread is inside gRPC with it; false when it is gone. */
static bool pin(nk_call *c)
{
    if (c->ended)
        return false;
    atomic_fetch_add(&c->g_refs, 1);
    return true;
}

void nk__call_unpin(nk_call *c)
{
    if (atomic_fetch_sub(&c->g_refs, 1) != 1)
        return;
    grpc_call_unref(c->g);
    c->g = NULL;
    if (c->channel)
        nk__channel_unref(c->channel);
    nk__net_call_gone(c->net, c);
}

void nk__call_batch(nk_call *c, const grpc_op *ops, size_t n, struct nk__op *tag)
{
    grpc_call_error e;

    nk__op_started(tag);
    e = grpc_call_start_batch(c->g, ops, n, tag, NULL);
    NK_ASSERT(e == GRPC_CALL_OK);
}

/* ---- sending ---- */

static bool out_push(struct nk__call_out *o, grpc_byte_buffer *m)
{
    if (o->n == o->capacity) {
        size_t capacity = o->capacity ? o->capacity * 2 : 8;
        grpc_byte_buffer **items = malloc(capacity * sizeof *items);

        if (!items)
            return false;
        for (size_t i = 0; i < o->n; i++)
            items[i] = o->items[(o->head + i) % o->capacity];
        free(o->items);
        o->items = items;
        o->head = 0;
        o->capacity = capacity;
    }
    o->items[(o->head + o->n++) % o->capacity] = m;
    return true;
}

static grpc_byte_buffer *out_pop(struct nk__call_out *o)
{
    grpc_byte_buffer *m = o->items[o->head];

    o->head = (o->head + 1) % o->capacity;
    o->n--;
    return m;
}

static void out_drop(nk_call *c)
{
    while (c->out.n)
        grpc_byte_buffer_destroy(out_pop(&c->out));
    c->out.bytes = c->sending_bytes;
}

/* Starts the next batch of sends, if there is anything to send and none is outstanding. [any] */
static void pump(nk_call *c)
{
    grpc_op ops[3] = { 0 };
    grpc_slice details = grpc_empty_slice();
    size_t n = 0, size = 0;

    pthread_mutex_lock(&c->mu);
    if (c->sending || c->closed || c->last_sent || !pin(c)) {
        pthread_mutex_unlock(&c->mu);
        return;
    }
    if (!c->is_client && !c->headers_sent && (c->out.n || c->last_wanted)) {
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
        c->headers_sent = true;
    }
    if (c->out.n) {
        c->sending_message = out_pop(&c->out);
        size = grpc_byte_buffer_length(c->sending_message); /* gRPC empties it */
        c->sending_bytes = size;
        c->sending_since_ns = nk_clock_now_ns(c->net->clock);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = c->sending_message;
    }
    if (c->last_wanted && !c->out.n) {
        c->last_sent = true;
        if (c->is_client) {
            ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        } else {
            struct grpc_op_send_status_from_server *s = &ops[n].data.send_status_from_server;

            ops[n++].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
            if (c->has_status) {
                s->status = (grpc_status_code)-c->status.code;
                details = grpc_slice_from_copied_string(c->status.msg);
                s->status_details = &details;
                c->trailer_out.key = grpc_slice_from_static_string("nk-reason");
                c->trailer_out.value = grpc_slice_from_copied_string(c->status.reason);
                s->trailing_metadata = &c->trailer_out;
                s->trailing_metadata_count = 1;
            }
        }
    }
    if (n) {
        c->sending = true;
        c->n_ops++;
    }
    pthread_mutex_unlock(&c->mu);
    if (size)
        nk__beat_sends(c, size);
    if (n)
        nk__call_batch(c, ops, n, &c->op_send);
    grpc_slice_unref(details);
    nk__call_unpin(c);
}

static void op_send_done(struct nk__op *op, bool ok)
{
    nk_call *c = nk__container(op, nk_call, op_send);

    pthread_mutex_lock(&c->mu);
    nk__beat_sent(c, c->sending_bytes);
    c->sending = false;
    c->n_ops--;
    if (c->sending_message) {
        grpc_byte_buffer_destroy(c->sending_message);
        c->sending_message = NULL;
        c->out.bytes -= c->sending_bytes;
        c->sending_bytes = 0;
        c->sending_since_ns = 0;
    }
    if (!ok) { /* the call is broken; its status says why */
        c->closed = true;
        out_drop(c);
    }
    pthread_mutex_unlock(&c->mu);
    if (c->is_client && ok && !c->on_wire) {
        c->on_wire = true;
        if (c->is_beat)
            c->channel->beat.heard_ns = nk_clock_now_ns(c->net->clock);
    }
    if (c->membership && c->is_client && !c->member[0] && ok)
        nk__call_identify(c);
    pump(c);
    nk__call_maybe_end(c);
}

static int check_size(size_t size, struct nk_error *err)
{
    if (size > NK_RPC_MESSAGE_BYTES_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "message_too_large",
                       "a message of %zu bytes; at most %u can be sent", size,
                       NK_RPC_MESSAGE_BYTES_MAX);
    return 0;
}

/* Takes the slice. */
static int enqueue(nk_call *c, grpc_slice slice, struct nk_error *err)
{
    size_t size = GRPC_SLICE_LENGTH(slice);
    grpc_byte_buffer *m = grpc_raw_byte_buffer_create(&slice, 1);
    int rc = 0;

    grpc_slice_unref(slice);
    pthread_mutex_lock(&c->mu);
    if (c->closed || c->last_wanted || c->cancelled)
        rc = nk_fail(err, NK_E_UNAVAILABLE, "call_ended", "the call has ended, or is ending");
    else if (size > NK_RPC_SEND_QUEUE_BYTES_MAX - c->out.bytes ||
             c->out.n >= SEND_QUEUE_MESSAGES_MAX)
        rc = nk_fail(err, NK_E_EXHAUSTED, "send_queue_full",
                     "%zu messages (%zu bytes) wait to be sent already; at most %u bytes and %u "
                     "messages may",
                     c->out.n, c->out.bytes, NK_RPC_SEND_QUEUE_BYTES_MAX, SEND_QUEUE_MESSAGES_MAX);
    else if (!out_push(&c->out, m))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a queue of %zu messages",
                     c->out.n);
    else
        c->out.bytes += size;
    pthread_mutex_unlock(&c->mu);
    if (rc) {
        grpc_byte_buffer_destroy(m);
        return rc;
    }
    pump(c);
    return 0;
}

int nk_call_send(nk_call *c, const void *data, size_t size, struct nk_error *err)
{
    int rc = check_size(size, err);

    if (rc)
        return rc;
    return enqueue(c, grpc_slice_from_copied_buffer(data, size), err);
}

int nk_call_send_pb(nk_call *c, const ProtobufCMessage *msg, struct nk_error *err)
{
    size_t size = protobuf_c_message_get_packed_size(msg);
    int rc = check_size(size, err);
    grpc_slice slice;

    if (rc)
        return rc;
    slice = grpc_slice_malloc(size);
    protobuf_c_message_pack(msg, GRPC_SLICE_START_PTR(slice));
    return enqueue(c, slice, err);
}

void nk_call_send_done(nk_call *c)
{
    NK_ASSERT(c->is_client);
    pthread_mutex_lock(&c->mu);
    c->last_wanted = true;
    pthread_mutex_unlock(&c->mu);
    pump(c);
}

void nk_call_finish(nk_call *c, const struct nk_error *status)
{
    bool first;

    NK_ASSERT(!c->is_client);
    pthread_mutex_lock(&c->mu);
    first = !c->last_wanted && !c->closed;
    if (first) {
        c->last_wanted = true;
        if (status && status->code) {
            c->has_status = true;
            c->status = *status;
            if (c->status.code > 0 || c->status.code < NK_E_UNAUTHENTICATED)
                c->status.code = NK_E_UNKNOWN;
            if (!nk__reason_ok(c->status.reason, strlen(c->status.reason)))
                memcpy(c->status.reason, "unknown", sizeof "unknown");
        }
    }
    pthread_mutex_unlock(&c->mu);
    if (first)
        pump(c);
}

void nk_call_cancel(nk_call *c)
{
    bool go;

    pthread_mutex_lock(&c->mu);
    go = !c->cancelled && pin(c);
    if (go) {
        c->cancelled = true;
        out_drop(c);
    }
    pthread_mutex_unlock(&c->mu);
    if (go) {
        grpc_call_cancel(c->g, NULL);
        nk__call_unpin(c);
    }
}

static void leave_over(void *arg)
{
    nk_call *c = arg;

    c->leave_timer = NULL;
    nk_call_cancel(c);
}

/* Takes a reference. Net thread. What still comes is read, so that the end comes behind it. */
static void leave(void *arg)
{
    nk_call *c = arg;

    if (!c->status_done) {
        c->leave_timer = nk_timer_start(c->net, LEAVE_MS, leave_over, c);
        c->paused = false;
        if (c->held)
            grpc_byte_buffer_destroy(c->held);
        c->held = NULL;
        nk__call_read(c);
    } else {
        nk__call_maybe_end(c);
    }
    nk_call_unref(c);
}

void nk_call_cancel_with(nk_call *c, const ProtobufCMessage *last)
{
    size_t size = protobuf_c_message_get_packed_size(last);
    grpc_slice slice = grpc_slice_malloc(size);
    grpc_byte_buffer *m;
    bool goes, gone;

    NK_ASSERT(c->is_client);
    protobuf_c_message_pack(last, GRPC_SLICE_START_PTR(slice));
    m = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    pthread_mutex_lock(&c->mu);
    gone = c->leaving;
    goes = !c->last_wanted && !c->closed && !c->cancelled;
    if (goes) {
        out_drop(c);
        goes = out_push(&c->out, m);
    }
    if (goes) {
        c->out.bytes += size;
        c->last_wanted = c->leaving = true;
    }
    pthread_mutex_unlock(&c->mu);
    if (!goes) {
        grpc_byte_buffer_destroy(m);
        if (!gone)
            nk_call_cancel(c);
        return;
    }
    pump(c);
    nk_net_post(c->net, leave, nk_call_ref(c));
}

/* ---- receiving ---- */

void nk__call_lose(nk_call *c, const struct nk_error *e)
{
    pthread_mutex_lock(&c->mu);
    if (!c->cancelled && !c->leaving && !c->ended) {
        c->lost = c->has_status = true;
        c->status = *e;
    }
    pthread_mutex_unlock(&c->mu);
    nk_call_cancel(c);
}

void nk__call_give_up(nk_call *c, const struct nk_error *e)
{
    pthread_mutex_lock(&c->mu);
    if (!c->has_status && !c->cancelled) {
        c->has_status = true;
        c->status = *e;
    }
    pthread_mutex_unlock(&c->mu);
    nk_call_cancel(c);
}

/* Ends the call from this side because of what the other side sent. */
static void refuse(nk_call *c, int code, const char *reason, size_t size)
{
    struct nk_error e = { 0 };

    nk_fail(&e, code, reason, "a message of %zu bytes arrived; at most %u are taken, uncompressed",
            size, NK_RPC_MESSAGE_BYTES_MAX);
    if (c->is_client)
        nk__call_give_up(c, &e);
    else
        nk_call_finish(c, &e);
}

/* Takes the buffer. */
static void deliver(nk_call *c, grpc_byte_buffer *buf)
{
    size_t size = grpc_byte_buffer_length(buf);
    grpc_byte_buffer_reader reader;
    grpc_slice slice;

    if (size > NK_RPC_MESSAGE_BYTES_MAX || buf->data.raw.compression != GRPC_COMPRESS_NONE) {
        refuse(c, size > NK_RPC_MESSAGE_BYTES_MAX ? NK_E_EXHAUSTED : NK_E_UNIMPLEMENTED,
               size > NK_RPC_MESSAGE_BYTES_MAX ? "message_too_large" : "compressed", size);
        grpc_byte_buffer_destroy(buf);
        return;
    }
    if (!grpc_byte_buffer_reader_init(&reader, buf))
        NK_ASSERT(!"a byte buffer that cannot be read");
    /* One slice: as it is. Several: made contiguous. */
    if (!grpc_byte_buffer_reader_next(&reader, &slice)) {
        slice = grpc_empty_slice();
    } else if (GRPC_SLICE_LENGTH(slice) != size) {
        grpc_slice_unref(slice);
        grpc_byte_buffer_reader_destroy(&reader);
        grpc_byte_buffer_reader_init(&reader, buf);
        slice = grpc_byte_buffer_reader_readall(&reader);
    }
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(buf);
    c->in_message = true;
    c->handlers.message(c, c->user, (struct nk_bytes){ GRPC_SLICE_START_PTR(slice), size });
    c->in_message = false;
    grpc_slice_unref(slice);
}

static void deliver_eof(nk_call *c)
{
    if (!c->is_client && c->handlers.half_closed)
        c->handlers.half_closed(c, c->user);
}

void nk__call_read(nk_call *c)
{
    grpc_op op = { .op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->incoming };

    if (c->reading || c->paused || c->in_message || c->held || c->eof || c->status_done)
        return;
    pthread_mutex_lock(&c->mu);
    c->n_ops++;
    pthread_mutex_unlock(&c->mu);
    c->reading = true;
    nk__call_batch(c, &op, 1, &c->op_recv);
}

/* Whether nobody wants to hear of what arrives any more. */
static bool deaf(nk_call *c)
{
    bool yes;

    pthread_mutex_lock(&c->mu);
    yes = c->cancelled || c->leaving || (!c->is_client && c->last_wanted);
    pthread_mutex_unlock(&c->mu);
    return yes;
}

static void op_recv_done(struct nk__op *op, bool ok)
{
    nk_call *c = nk__container(op, nk_call, op_recv);
    grpc_byte_buffer *buf = c->incoming;

    c->incoming = NULL;
    c->reading = false;
    pthread_mutex_lock(&c->mu);
    c->n_ops--;
    pthread_mutex_unlock(&c->mu);
    if (!buf)
        c->eof = true;
    else if (c->is_client && c->channel->beat.silence_ms)
        c->channel->beat.heard_ns = nk_clock_now_ns(c->net->clock);
    if (deaf(c)) {
        if (buf)
            grpc_byte_buffer_destroy(buf);
        c->eof = c->eof || !c->leaving; /* no more reading */
        nk__call_read(c);
    } else if (buf && c->paused) {
        c->held = buf;
    } else if (buf) {
        deliver(c, buf);
        nk__call_read(c);
    } else if (ok && !grpc_call_failed_before_recv_message(c->g)) {
        if (c->paused)
            c->held_eof = true;
        else
            deliver_eof(c);
    }
    nk__call_maybe_end(c);
}

void nk_call_pause(nk_call *c)
{
    NK_ASSERT(nk_net_is_current(c->net));
    c->paused = true;
}

static void resume_held(void *arg)
{
    nk_call *c = arg;

    c->resume_posted = false;
    if (!c->end_done && !c->paused) {
        grpc_byte_buffer *buf = c->held;
        bool eof = c->held_eof;

        c->held = NULL;
        c->held_eof = false;
        if (deaf(c)) {
            if (buf)
                grpc_byte_buffer_destroy(buf);
        } else if (buf) {
            deliver(c, buf);
        } else if (eof) {
            deliver_eof(c);
        }
        nk__call_read(c);
        nk__call_maybe_end(c);
    }
    nk_call_unref(c);
}

void nk_call_resume(nk_call *c)
{
    NK_ASSERT(nk_net_is_current(c->net));
    c->paused = false;
    if (!c->held && !c->held_eof) {
        nk__call_read(c);
    } else if (!c->resume_posted) { /* handlers never run from inside a function called here */
        c->resume_posted = true;
        nk_net_post(c->net, resume_held, nk_call_ref(c));
    }
}

/* ---- the end ---- */

static void op_headers_done(struct nk__op *op, bool ok)
{
    nk_call *c = nk__container(op, nk_call, op_headers);

    pthread_mutex_lock(&c->mu);
    c->n_ops--;
    pthread_mutex_unlock(&c->mu);
    if (ok)
        nk__call_read(c);
    nk__call_maybe_end(c);
}

static void op_status_done(struct nk__op *op, bool ok)
{
    nk_call *c = nk__container(op, nk_call, op_status);

    (void)ok; /* these operations always succeed */
    pthread_mutex_lock(&c->mu);
    c->n_ops--;
    c->closed = true;
    out_drop(c);
    pthread_mutex_unlock(&c->mu);
    c->status_done = true;
    nk_timer_cancel(c->deadline_timer);
    nk_timer_cancel(c->leave_timer);
    c->deadline_timer = c->leave_timer = NULL;
    nk__call_maybe_end(c);
}

/* A message that a paused reader has not taken yet: worth waiting for only when the call ended in
 * good order. */
static bool held_is_void(const nk_call *c)
{
    return !c->is_client || c->cancelled || c->leaving || c->code == GRPC_STATUS_CANCELLED ||
           c->code == GRPC_STATUS_DEADLINE_EXCEEDED || c->code == GRPC_STATUS_UNAVAILABLE;
}

void nk__call_maybe_end(nk_call *c)
{
    struct nk_error status = { 0 };
    bool busy, failed;

    if (c->end_done || !c->status_done)
        return;
    pthread_mutex_lock(&c->mu);
    busy = c->n_ops > 0 || ((c->held || c->held_eof) && !held_is_void(c));
    if (!busy)
        c->ended = true;
    pthread_mutex_unlock(&c->mu);
    if (busy)
        return;
    c->end_done = true;
    if (c->held)
        grpc_byte_buffer_destroy(c->held);
    c->held = NULL;
    failed = c->is_client ? nk__client_status(c, &status) : nk__server_status(c, &status);
    nk_log(NK_LOG_RPC, NK_LOG_DEBUG, "call=end side=%s peer=%s code=%d reason=%s",
           c->is_client ? "client" : "server", nk_call_peer(c), -status.code,
           failed ? status.reason : "ok");
    if (c->handlers.end)
        c->handlers.end(c, c->user, failed ? &status : NULL);

    gpr_free(c->peer);
    c->peer = NULL;
    grpc_metadata_array_destroy(&c->headers);
    grpc_metadata_array_destroy(&c->trailers);
    grpc_slice_unref(c->details);
    grpc_slice_unref(c->trailer_out.value);
    if (c->server)
        nk__server_call_gone(c->server, c);
    if (c->channel)
        nk__beat_call_ends(c);
    nk__call_unpin(c);
    nk_call_unref(c);
}

enum nk_ending nk_call_ending(const nk_call *c)
{
    NK_ASSERT(nk_net_is_current(c->net) && c->end_done);
    return c->ending;
}

const char *nk_call_identity(const nk_call *c)
{
    NK_ASSERT(nk_net_is_current(c->net));
    return c->member;
}

enum nk_role nk_call_role(const nk_call *c)
{
    NK_ASSERT(nk_net_is_current(c->net));
    return c->member[0] ? nk_identity_find(c->membership->identity, c->member, NULL) : NK_ROLE_NONE;
}

const char *nk_call_peer(const nk_call *call)
{
    nk_call *c = (nk_call *)call; /* fills the cache */

    NK_ASSERT(nk_net_is_current(c->net) && !(c->end_done && !c->g));
    if (!c->peer)
        c->peer = grpc_call_get_peer(c->g);
    return c->peer;
}

bool nk__reason_ok(const char *reason, size_t size)
{
    if (size == 0 || size >= sizeof((struct nk_error *)0)->reason)
        return false;
    for (size_t i = 0; i < size; i++)
        if (!((reason[i] >= 'a' && reason[i] <= 'z') || (reason[i] >= '0' && reason[i] <= '9') ||
              reason[i] == '_'))
            return false;
    return true;
}
