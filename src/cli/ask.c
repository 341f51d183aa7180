#include "cli/ask.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cluster/identity.h"
#include "cluster/reach.h"
#include "rpc/rpc.h"

enum { ASK_MS = 10000 }; /* all addresses together */

struct question {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool done;
    struct nk_buf *out;
    int rc;
    struct nk_error *err;
};

static void on_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct question *q = user;

    (void)c;
    pthread_mutex_lock(&q->mutex);
    nk_buf_reset(q->out);
    q->rc = nk_buf_add(q->out, msg.data, msg.size, q->err);
    pthread_mutex_unlock(&q->mutex);
}

static void on_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct question *q = user;

    (void)c;
    pthread_mutex_lock(&q->mutex);
    if (status) {
        *q->err = *status;
        q->rc = status->code;
    }
    q->done = true;
    pthread_cond_signal(&q->cond);
    pthread_mutex_unlock(&q->mutex);
}

static int ask_at(nk_net *net, const char *address, const char *identity, const char *method,
                  uint32_t limit_ms, const ProtobufCMessage *request, struct nk_buf *out,
                  struct nk_error *err)
{
    static const struct nk_call_handlers handlers = { .message = on_message, .end = on_end };
    struct nk_credentials credentials = { .identity = identity };
    struct question q = { .out = out, .err = err };
    nk_channel *channel;
    struct nk_error refused;
    nk_call *call;
    int rc = nk_channel_open(&channel, net, address, &credentials, err);

    if (rc)
        return rc;
    pthread_mutex_init(&q.mutex, NULL);
    pthread_cond_init(&q.cond, NULL);
    pthread_mutex_lock(&q.mutex); /* on_end waits: the handle is good until then */
    rc = nk_call_start(&call, channel, method, limit_ms, &handlers, &q, err);
    if (!rc) {
        if (nk_call_send_pb(call, request, &refused))
            nk_call_cancel(call);
        else
            nk_call_send_done(call);
        while (!q.done)
            pthread_cond_wait(&q.cond, &q.mutex);
        rc = q.rc;
    }
    pthread_mutex_unlock(&q.mutex);
    nk_channel_close(channel);
    pthread_cond_destroy(&q.cond);
    pthread_mutex_destroy(&q.mutex);
    return rc;
}

/* The folder of this role, and what is known there. */
static int find(const char *state, const char *sub, char identity[4200], struct nk_joined *j,
                struct nk_error *err)
{
    char *dir = NULL, path[4200];
    int rc = nk_state_dir(&dir, state, sub, err);

    if (rc)
        return rc;
    snprintf(identity, 4200, "%.4000s/identity", dir);
    snprintf(path, sizeof path, "%.4000s/joined.json", dir);
    free(dir);
    return nk_joined_read(j, path, err);
}

/* By what is known in the folder `sub` of the state. *known: something is; else nobody was
 * asked. */
static int ask_by(const char *state, const char *sub, nk_net *net, const char *method,
                  const ProtobufCMessage *request, struct nk_buf *out, bool *known,
                  struct nk_error *err)
{
    char identity[4200], address[300];
    struct nk_joined j;
    int rc = find(state, sub, identity, &j, err);

    *known = rc != NK_E_NOT_FOUND;
    if (rc)
        return rc;
    rc = nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "no address of the coordinator is known");
    /* An address whose packets are dropped does not hide the next one. */
    for (int i = 0; i < j.n_addresses && (rc == NK_E_UNAVAILABLE || rc == NK_E_DEADLINE); i++) {
        nk_reach_format(address, sizeof address, j.addresses[i], j.port);
        rc = ask_at(net, address, identity, method, (uint32_t)(ASK_MS / j.n_addresses), request,
                    out, err);
    }
    return rc == NK_E_DEADLINE ? NK_E_UNAVAILABLE : rc;
}

int nk_ask(const char *state, enum nk_ask_as as, const char *method,
           const ProtobufCMessage *request, struct nk_buf *out, struct nk_error *err)
{
    struct nk_error other;
    char last[sizeof err->msg];
    bool known;
    nk_net *net;
    int rc = nk_net_start(&net, nk_clock_system(), err);

    if (rc)
        return rc;
    rc = ask_by(state, "cluster", net, method, request, out, &known, err);
    /* A machine that served once may be a member of another cluster now. */
    if ((!known || rc == NK_E_UNAVAILABLE) && as == NK_ASK_ANY) {
        bool member;
        int as_member = ask_by(state, "member", net, method, request, out, &member, &other);

        if (!known || member) {
            rc = as_member;
            *err = other;
            known = member;
        }
    }
    nk_net_stop(net);
    if (!known)
        return nk_fail(err, NK_E_PRECONDITION, "no_cluster",
                       as == NK_ASK_ANY
                           ? "this machine serves no cluster and is no member of one; nakshatra "
                             "serve MODEL makes one, nakshatra join TOKEN joins one"
                           : "this machine serves no cluster; this is for the one where nakshatra "
                             "serve MODEL runs");
    if (rc != NK_E_UNAVAILABLE)
        return rc;
    strcpy(last, err->msg); /* a sentence cannot be made of itself */
    return nk_fail(err, NK_E_UNAVAILABLE, "unreachable",
                   "the coordinator does not answer (%.150s); is nakshatra serve running?", last);
}
