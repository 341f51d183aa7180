/* Telling workers that nobody comes for what they hold: a call to each, whose only message is
 * Cancel with the session's name. It counts as running until all are over, so that a chain that is
 * closed right after is closed when they have been told; each has a second. */
#include "chain/chain_int.h"

#include <stdlib.h>
#include <string.h>

enum { LET_GO_MS = 1000 };

struct letting {
    nk_chain *c;
    struct nk_gen_name lost;
    bool told[NK_CLUSTER_WORKERS_MAX];
    int n_left; /* calls that have not ended, and one for the telling itself */
};

static void unref(struct letting *l)
{
    nk_chain *c = l->c;

    if (--l->n_left)
        return;
    free(l);
    pthread_mutex_lock(&c->mutex);
    if (--c->n_running == 0)
        pthread_cond_broadcast(&c->idle);
    pthread_mutex_unlock(&c->mutex);
}

static void message(nk_call *call, void *user, struct nk_bytes msg)
{
    (void)call, (void)user, (void)msg;
}

static void end(nk_call *call, void *user, const struct nk_error *status)
{
    (void)call, (void)status;
    unref(user);
}

static void tell(struct letting *l, int i)
{
    static const struct nk_call_handlers handlers = { .message = message, .end = end };
    Nakshatra__V1__InferenceRequest request = NAKSHATRA__V1__INFERENCE_REQUEST__INIT;
    Nakshatra__V1__Cancel cancel = NAKSHATRA__V1__CANCEL__INIT;
    nk_call *call;

    cancel.session.data = l->lost.session;
    cancel.session.len = sizeof l->lost.session;
    cancel.attempt = l->lost.attempt;
    request.kind_case = NAKSHATRA__V1__INFERENCE_REQUEST__KIND_CANCEL;
    request.cancel = &cancel;
    if (nk_call_start(&call, l->c->channels[i], NK__PATH_INFERENCE, LET_GO_MS, &handlers, l, NULL))
        return;
    l->n_left++;
    nk_call_send_pb(call, &request.base, NULL);
    nk_call_send_done(call);
}

static void begin(void *arg)
{
    struct letting *l = arg;

    for (int i = 0; i < l->c->cluster.n_workers; i++)
        if (l->told[i])
            tell(l, i);
    unref(l);
}

static bool has_worker(const struct nk_cluster *c, const char *address)
{
    for (int i = 0; c && i < c->n_workers; i++)
        if (!strcmp(c->workers[i].address, address))
            return true;
    return false;
}

void nk_chain_let_go(nk_chain *c, const struct nk_gen_name *lost, const struct nk_cluster *but)
{
    struct letting *l = calloc(1, sizeof *l);
    bool any = false;

    for (int i = 0; l && i < c->cluster.n_workers; i++)
        any |= l->told[i] = !has_worker(but, c->cluster.workers[i].address);
    if (!any) {
        free(l);
        return;
    }
    l->c = c;
    l->lost = *lost;
    l->n_left = 1;
    pthread_mutex_lock(&c->mutex);
    c->n_running++;
    pthread_mutex_unlock(&c->mutex);
    nk_net_post(c->net, begin, l);
}
