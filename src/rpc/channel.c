#include "rpc/rpc_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/* A limit of gRPC's own where the net's clock stands still (see nk__args_common). */
enum { NEVER_MS = 24 * 3600 * 1000 };

/* ---- channels ---- */

/* "dns:///" and the address, so that no host's name is taken for a scheme; a URI has no room for
 * bare brackets. */
static void target_format(char *out, const char *address)
{
    out += sprintf(out, "dns:///");
    for (const char *p = address; *p; p++)
        if (*p == '[' || *p == ']')
            out += sprintf(out, "%%%02X", (unsigned)*p);
        else
            *out++ = *p;
    *out = '\0';
}

static grpc_channel *channel_create(const nk_channel *ch)
{
    struct nk__args args = { 0 };
    const nk_net *net = ch->net;
    char target[8 + 3 * NK__ADDRESS_MAX];

    nk__args_common(&args, net, net->channel_quota);
    /* A worker that comes back is reached within a second; one that drops packets is given up after
     * five (the third is so called; it is the time limit of one attempt). */
    nk__args_int(&args, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    nk__args_int(&args, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    nk__args_int(&args, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                 nk_clock_runs(net->clock) ? 5000 : NEVER_MS);
    /* A connection of its own, with its own idea of whether the peer is there. */
    nk__args_int(&args, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    /* Whether a step is sent again is the chain's decision. */
    nk__args_int(&args, GRPC_ARG_ENABLE_RETRIES, 0);
    nk__args_int(&args, GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
    /* A proxy for the web has no part between the machines of a cluster. */
    nk__args_int(&args, GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    target_format(target, ch->address);
    return grpc_channel_create(target, ch->credentials, &args.args);
}

void nk__channel_renew(nk_channel *ch)
{
    pthread_mutex_lock(&ch->mu);
    grpc_channel_destroy(ch->g); /* calls on it keep what they need of it */
    ch->g = channel_create(ch);
    pthread_mutex_unlock(&ch->mu);
}

int nk_channel_open(nk_channel **out, nk_net *net, const char *address,
                    const struct nk_credentials *credentials, struct nk_error *err)
{
    struct nk_credentials plain = { 0 };
    nk_channel *ch;
    int rc;

    *out = NULL;
    rc = nk_address_check(address, 1, err);
    if (rc)
        return rc;
    ch = nk__alloc(1, sizeof *ch);
    rc = nk__channel_credentials(&ch->credentials, &ch->membership, &ch->verifier, net, address,
                                 credentials ? credentials : &plain, err);
    if (rc) {
        free(ch);
        return rc;
    }
    ch->net = net;
    atomic_init(&ch->refs, 1);
    pthread_mutex_init(&ch->mu, NULL);
    ch->address = strdup(address);
    NK_ASSERT(ch->address);
    ch->g = channel_create(ch);
    pthread_mutex_lock(&net->mu);
    LIST_INSERT_HEAD(&net->channels, ch, link);
    pthread_mutex_unlock(&net->mu);
    *out = ch;
    return 0;
}

/* Calls keep the channel; the last one to let go destroys it. All of them have ended when the net
 * stops. */
void nk__channel_unref(nk_channel *ch)
{
    if (atomic_fetch_sub(&ch->refs, 1) != 1)
        return;
    grpc_channel_destroy(ch->g);
    grpc_channel_credentials_release(ch->credentials);
    pthread_mutex_destroy(&ch->mu);
    free(ch->address);
    free(ch);
}

void nk_channel_close(nk_channel *ch)
{
    nk_net *net;

    if (!ch)
        return;
    net = ch->net;
    pthread_mutex_lock(&net->mu);
    LIST_REMOVE(ch, link);
    pthread_mutex_unlock(&net->mu);
    nk__channel_unref(ch);
}

void nk_channel_ends(nk_channel *ch, struct nk_certificate_ends *out)
{
    *out = (struct nk_certificate_ends){ 0 };
    if (ch->verifier)
        nk__verifier_ends(ch->verifier, out);
}

/* ---- calls ---- */

static void deadline_error(const nk_call *c, struct nk_error *out)
{
    nk_fail(out, NK_E_DEADLINE, "deadline", "%s: no answer within the deadline of %u ms",
            c->channel->address, c->deadline_ms);
}

/* The deadline goes by the net's clock. gRPC is told of it too, so that the server knows. */
static void deadline_passed(void *arg)
{
    nk_call *c = arg;
    struct nk_error e = { 0 };

    c->deadline_timer = NULL;
    deadline_error(c, &e);
    nk__call_give_up(c, &e);
}

/* Takes a reference. Net thread. */
static void call_begun(void *arg)
{
    nk_call *c = arg;

    if (!c->status_done && c->deadline_ns)
        c->deadline_timer = nk__timer_at(c->net, c->deadline_ns, deadline_passed, c);
    if (!c->end_done)
        nk__beat_call_begins(c);
    nk_call_unref(c);
}

static grpc_call *call_create(nk_channel *ch, const char *path, gpr_timespec deadline)
{
    grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *g;

    pthread_mutex_lock(&ch->mu);
    /* The connection is to somebody who was taken off the roster: whoever is at that address now
     * has to show who it is. */
    if (ch->membership && nk__verifier_is_stale(ch->verifier)) {
        grpc_channel_destroy(ch->g);
        ch->g = channel_create(ch);
    }
    g = grpc_channel_create_call(ch->g, NULL, GRPC_PROPAGATE_DEFAULTS, ch->net->cq, method, NULL,
                                 deadline, NULL);
    pthread_mutex_unlock(&ch->mu);
    grpc_slice_unref(method);
    return g;
}

int nk_call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                  const struct nk_call_handlers *handlers, void *user, struct nk_error *err)
{
    return nk__call_start(out, ch, path, deadline_ms, handlers, user, false, err);
}

int nk__call_start(nk_call **out, nk_channel *ch, const char *path, uint32_t deadline_ms,
                   const struct nk_call_handlers *handlers, void *user, bool is_beat,
                   struct nk_error *err)
{
    nk_call *c = nk__call_new(ch->net, true);
    grpc_op status = { .op = GRPC_OP_RECV_STATUS_ON_CLIENT };
    grpc_op send_headers = { .op = GRPC_OP_SEND_INITIAL_METADATA };
    grpc_op recv_headers = { .op = GRPC_OP_RECV_INITIAL_METADATA };

    *out = NULL;
    c->membership = ch->membership; /* before it is on the list */
    if (!nk__call_link(c, false)) {
        nk_call_unref(c);
        return nk_fail(err, NK_E_UNAVAILABLE, "net_stopped", "%s: this process is stopping",
                       ch->address);
    }
    atomic_fetch_add(&ch->refs, 1);
    c->channel = ch;
    c->is_beat = is_beat;
    c->handlers = *handlers;
    c->user = user;
    c->deadline_ms = deadline_ms;
    if (deadline_ms)
        c->deadline_ns = nk_clock_now_ns(ch->net->clock) + (uint64_t)deadline_ms * 1000000u;
    c->g = call_create(ch, path,
                       deadline_ms ? nk__deadline(ch->net, c->deadline_ns)
                                   : gpr_inf_future(GPR_CLOCK_MONOTONIC));
    status.data.recv_status_on_client.trailing_metadata = &c->trailers;
    status.data.recv_status_on_client.status = &c->code;
    status.data.recv_status_on_client.status_details = &c->details;
    recv_headers.data.recv_initial_metadata.recv_initial_metadata = &c->headers;

    /* All three are counted before the first can complete, so that the call does not end in
     * between. */
    pthread_mutex_lock(&c->mu);
    c->n_ops = 3;
    c->sending = true;
    atomic_fetch_add(&c->g_refs, 1);
    pthread_mutex_unlock(&c->mu);
    *out = c;
    /* From the first batch on the call may end, and with it the reference that it was made with. */
    nk_call_ref(c);
    nk__call_batch(c, &status, 1, &c->op_status);
    nk__call_batch(c, &recv_headers, 1, &c->op_headers);
    nk__call_batch(c, &send_headers, 1, &c->op_send);
    if (deadline_ms || (ch->beat.silence_ms && !is_beat))
        nk_net_post(ch->net, call_begun, nk_call_ref(c));
    nk__call_unpin(c);
    nk_call_unref(c);
    return 0;
}

/* gRPC names the peer "ipv4:..." once the call is on a connection, and the channel's target
 * before. */
static bool is_connected(nk_call *c)
{
    const char *peer = nk_call_peer(c);

    return peer &&
           (!strncmp(peer, "ipv4:", 5) || !strncmp(peer, "ipv6:", 5) || !strncmp(peer, "unix:", 5));
}

/* Connecting failed: what gRPC says of it, or what our verifier has said, without gRPC's frame. A
 * server that does not take this side's certificate hangs up without a word, as does one that wants
 * TLS of a client that speaks none. */
static void unreachable_error(nk_call *c, const char *text, struct nk_error *out)
{
    static const char frame[] = "Custom verification check failed with error: UNAUTHENTICATED: ";
    const char *address = c->channel->address, *ours = strstr(text, frame);
    bool closed = strstr(text, "Socket closed") || strstr(text, "Connection reset by peer") ||
                  strstr(text, "Broken pipe");
    char fault[300] = "";

    if (!c->channel->verifier) {
        nk_fail(out, NK_E_UNAVAILABLE, "unreachable", "%s cannot be reached (%s%s)", address, text,
                closed ? "; it may want TLS, and this side was given no certificates" : "");
    } else if (ours) {
        nk_fail(out, NK_E_UNAVAILABLE, "unreachable", "%s cannot be reached (TLS: %s)", address,
                ours + strlen(frame));
    } else if (closed) {
        nk__verifier_own_fault(c->channel->verifier, fault, sizeof fault);
        nk_fail(out, NK_E_UNAVAILABLE, "unreachable",
                "%s cannot be reached (TLS: %s; that machine may have refused this one, and says "
                "why in its log%s%s)",
                address, text, fault[0] ? "; " : "", fault);
    } else if (strstr(text, "andshake")) {
        nk_fail(out, NK_E_UNAVAILABLE, "unreachable",
                "%s cannot be reached (TLS: %s; does it speak TLS?)", address, text);
    } else {
        nk_fail(out, NK_E_UNAVAILABLE, "unreachable", "%s cannot be reached (%s)", address, text);
    }
}

bool nk__client_status(nk_call *c, struct nk_error *out)
{
    char text[400];
    size_t size = GRPC_SLICE_LENGTH(c->details);
    int code = -(int)c->code;

    if (c->has_status) { /* this side's own verdict */
        *out = c->status;
        c->ending = c->lost ? NK_ENDING_LOST : NK_ENDING_HERE;
        return true;
    }
    if (c->leaving) { /* whatever the server answered */
        c->ending = NK_ENDING_HERE;
        nk_fail(out, NK_E_CANCELLED, "cancelled", "%s: the call was cancelled",
                c->channel->address);
        return true;
    }
    c->ending = NK_ENDING_OK;
    if (c->code == GRPC_STATUS_OK)
        return false;
    c->ending = NK_ENDING_STATUS;
    if (code > 0 || code < NK_E_UNAUTHENTICATED)
        code = NK_E_UNKNOWN;
    snprintf(text, sizeof text, "%.*s", (int)(size < sizeof text ? size : sizeof text - 1),
             size ? (const char *)GRPC_SLICE_START_PTR(c->details) : "");
    for (size_t i = 0; i < c->trailers.count; i++) {
        const grpc_metadata *m = &c->trailers.metadata[i];
        const char *reason = (const char *)GRPC_SLICE_START_PTR(m->value);
        size_t reason_size = GRPC_SLICE_LENGTH(m->value);

        if (grpc_slice_str_cmp(m->key, "nk-reason") == 0 && nk__reason_ok(reason, reason_size)) {
            nk_fail(out, code, "", "%.*s",
                    (int)(size < sizeof out->msg ? size : sizeof out->msg - 1),
                    size ? (const char *)GRPC_SLICE_START_PTR(c->details) : "");
            memcpy(out->reason, reason, reason_size);
            out->reason[reason_size] = '\0';
            return true;
        }
    }
    /* No reason: gRPC's own verdict, on this side or the other, or a server that is none of
     * ours. */
    switch (code) {
    case NK_E_DEADLINE:
        c->ending = NK_ENDING_HERE;
        deadline_error(c, out);
        break;
    case NK_E_UNAVAILABLE:
        c->ending = NK_ENDING_LOST;
        if (is_connected(c))
            nk_fail(out, code, "peer_gone", "%s: the connection was lost (%s)", c->channel->address,
                    text);
        else
            unreachable_error(c, text, out);
        break;
    case NK_E_CANCELLED: /* a server of ours that ends a call says why, unless it lost the client */
        c->ending = c->cancelled ? NK_ENDING_HERE : NK_ENDING_LOST;
        nk_fail(out, code, "cancelled", "%s: the call was cancelled", c->channel->address);
        break;
    default:
        nk_fail(out, code, "", "%s: %s", c->channel->address, size ? text : nk_code_text(code));
        snprintf(out->reason, sizeof out->reason, "%s", nk_code_text(code));
        for (char *p = out->reason; *p; p++)
            if (*p == ' ')
                *p = '_';
    }
    return true;
}
