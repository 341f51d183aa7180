#include "cli/host_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chain/chain.h"

enum {
    CHECK_MS = 5000, /* a worker that is there answers sooner, on a busy machine, too */
    DEPLOY_AGAIN_MS = 2000,
};

void nk__host_deploy(void *user, const struct nk_deployment *d)
{
    nk_host *h = user;
    struct nk_deployed_chain *chains = calloc((size_t)d->n_chains + 1, sizeof *chains);

    if (!chains)
        return; /* said again at the next change */
    memcpy(chains, d->chains, (size_t)d->n_chains * sizeof *chains);
    pthread_mutex_lock(&h->mutex);
    free(h->deployed.d.chains);
    h->deployed.d = *d;
    h->deployed.d.chains = chains;
    h->deployed.is_new = true;
    pthread_mutex_unlock(&h->mutex);
    if (write(h->wake[1], "", 1) < 0)
        return; /* full: it is awake */
}

void nk__host_event(void *user, const char *sentence)
{
    (void)user;
    fprintf(stderr, "nakshatra: %s\n", sentence);
}

json_t *nk__host_recovery(void *user)
{
    enum { BYTES_MAX = 1 << 18 };
    nk_host *h = user;
    struct nk_buf text = NK_BUF_INIT(BYTES_MAX);
    json_t *j = NULL;

    pthread_mutex_lock(&h->mutex);
    if (h->gateway && !nk_gateway_recovery_json(h->gateway, &text, NULL))
        j = json_loadb(text.data, text.size, 0, NULL);
    pthread_mutex_unlock(&h->mutex);
    nk_buf_release(&text);
    return j;
}

/* ---- chains for the gateway ---- */

static int open_chain(nk_host *h, const struct nk_deployed_chain *dc, uint64_t epoch,
                      nk_chain **out, struct nk_error *err)
{
    struct nk_cluster *c = calloc(1, sizeof *c);
    int rc;

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    strcpy(c->path, "the cluster");
    strcpy(c->model_id, h->model_id);
    strcpy(c->model_sha256, nk_catalogue_model_sha256(h->catalogue));
    snprintf(c->identity, sizeof c->identity, "%s", h->identity);
    c->epoch = epoch;
    for (int i = 0; i < dc->n_stages && i < NK_CLUSTER_WORKERS_MAX; i++) {
        struct nk_cluster_worker *w = &c->workers[c->n_workers++];

        snprintf(w->id, sizeof w->id, "%s", dc->stages[i].name);
        strcpy(w->address, dc->stages[i].address);
        w->layer_begin = dc->stages[i].layer_begin;
        w->layer_end = dc->stages[i].layer_end;
        w->epoch = dc->stages[i].epoch;
    }
    rc = nk_chain_open(out, c, NULL, err);
    free(c);
    return rc;
}

/* Which of a chain's workers does not answer, asked twice: -1: all do. Its sentence to why. */
static int find_unreached(nk_chain *c, char why[256])
{
    struct nk_chain_report *report;
    struct nk_error err;
    int found = -1;

    for (int tries = 0; tries < 2; tries++) {
        found = -1;
        if (nk_chain_check(c, CHECK_MS, &report, &err))
            return -1;
        for (int i = 0; i < report->n_workers && found < 0; i++)
            if (!report->workers[i].answered) {
                found = i;
                snprintf(why, 256, "%.200s (a firewall there?)", report->workers[i].err.msg);
            }
        free(report);
        if (found < 0)
            break;
    }
    return found;
}

/* A worker that says it is ready and cannot be reached would keep everybody waiting for ever. */
static void tell_unreached(nk_host *h, const struct nk_deployment *d, nk_chain *const *chains,
                           int n)
{
    char why[256];

    for (int i = 0; i < n; i++) {
        int k = find_unreached(chains[i], why);

        if (k >= 0 && k < d->chains[i].n_stages)
            nk_coordinator_unreachable(h->coordinator, d->chains[i].stages[k].member, why);
    }
}

void nk__host_take_deployment(nk_host *h)
{
    nk_chain *chains[NK_GATEWAY_CHAINS_MAX] = { NULL };
    struct nk_deployment d = { 0 };
    struct nk_error err;
    int n = 0, rc = 0;
    bool is_new;

    pthread_mutex_lock(&h->mutex);
    is_new = h->deployed.is_new && h->gateway &&
             nk_clock_now_ns(nk_clock_system()) >= h->deploy_again_ns;
    if (is_new) {
        d = h->deployed.d;
        h->deployed = (struct deployed){ 0 };
    }
    pthread_mutex_unlock(&h->mutex);
    if (!is_new)
        return;
    for (int i = 0; !rc && i < d.n_chains && n < NK_GATEWAY_CHAINS_MAX; i++) {
        rc = open_chain(h, &d.chains[i], d.epoch, &chains[n], &err);
        n += !rc;
    }
    if (!n)
        nk_gateway_set_waiting(h->gateway, d.waiting);
    if (!rc)
        tell_unreached(h, &d, chains, n);
    if (!rc && (n || h->has_chains))
        rc = nk_gateway_set_chains(h->gateway, chains, n, n ? d.epoch : h->epoch, &err);
    if (rc) {
        for (int i = 0; i < n; i++)
            nk_chain_close(chains[i]);
        nk__host_event(h, err.msg);
        /* It is not said again: the coordinator knows nothing of it. */
        h->deploy_again_ns =
            nk_clock_now_ns(nk_clock_system()) + (uint64_t)DEPLOY_AGAIN_MS * 1000000;
        pthread_mutex_lock(&h->mutex);
        if (!h->deployed.is_new) {
            h->deployed = (struct deployed){ .d = d, .is_new = true };
            d.chains = NULL;
        }
        pthread_mutex_unlock(&h->mutex);
    } else {
        h->deploy_again_ns = 0;
        h->has_chains = n > 0;
        h->epoch = n ? d.epoch : h->epoch;
    }
    free(d.chains);
}

void nk__host_tell_measured(nk_host *h)
{
    struct nk_gateway_measured m;

    if (!h->gateway || !h->has_chains)
        return;
    nk_gateway_measured(h->gateway, &m);
    if (m.ms_per_token > 0)
        nk_coordinator_measured(h->coordinator, m.epoch, m.ms_per_token);
    for (int i = 0; i < m.n_stages; i++)
        nk_coordinator_stage_measured(h->coordinator, m.epoch, m.stages[i].id,
                                      m.stages[i].layer_begin, m.stages[i].layer_end,
                                      m.stages[i].ms);
}
