/* Opening and closing a chain: one net thread, a channel to each worker, and the list of what is
 * running. */
#include "chain/chain_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/chance.h"
#include "base/clock.h"
#include "base/file.h"

enum { PEM_BYTES_MAX = 1 << 20 };

const struct nk_cluster *nk_chain_cluster(const nk_chain *c)
{
    return &c->cluster;
}

static void release(nk_chain *c)
{
    for (int i = 0; i < NK__ASKED_MAX; i++)
        if (c->channels[i])
            nk_channel_close(c->channels[i]);
    if (c->net)
        nk_net_stop(c->net);
    nk_arena_free(c->arena);
    pthread_cond_destroy(&c->idle);
    pthread_mutex_destroy(&c->mutex);
    free(c);
}

/* What the cluster file names: an identity folder, or PEM texts; all NULL where it names none. */
struct pem {
    struct nk_buf ca, certificate, key;
    struct nk_credentials credentials; /* borrows from the buffers */
};

static int read_pem(struct pem *p, const struct nk_cluster *c, struct nk_error *err)
{
    int rc;

    *p = (struct pem){ 0 };
    if (c->identity[0])
        p->credentials.identity = c->identity;
    if (!c->tls_ca[0])
        return 0;
    rc = nk_file_read(c->tls_ca, PEM_BYTES_MAX, &p->ca, err);
    if (!rc)
        rc = nk_file_read(c->tls_certificate, PEM_BYTES_MAX, &p->certificate, err);
    if (!rc)
        rc = nk_file_read_secret(c->tls_key, PEM_BYTES_MAX, &p->key, err);
    p->credentials.ca = nk_buf_str(&p->ca);
    p->credentials.certificate = nk_buf_str(&p->certificate);
    p->credentials.key = nk_buf_str(&p->key);
    return rc ? nk_wrap(rc, err, "%s: tls", c->path) : 0;
}

static void release_pem(struct pem *p)
{
    /* A private key does not stay in freed memory. */
    if (p->key.data)
        explicit_bzero(p->key.data, p->key.capacity);
    nk_buf_release(&p->ca);
    nk_buf_release(&p->certificate);
    nk_buf_release(&p->key);
}

int nk_chain_open(nk_chain **out, const struct nk_cluster *cluster,
                  const struct nk_chain_opts *opts, struct nk_error *err)
{
    nk_chain *c = calloc(1, sizeof *c);
    struct pem pem;
    int rc;

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    rc = read_pem(&pem, cluster, err);
    if (rc) {
        release_pem(&pem);
        free(c);
        return rc;
    }
    c->cluster = *cluster;
    c->clock = opts && opts->clock ? opts->clock : nk_clock_system();
    c->chance = opts && opts->chance ? opts->chance : nk_chance_system();
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->idle, NULL);
    c->arena = nk_arena_new(NK__ARENA_BYTES_MAX);
    rc = c->arena ? nk_net_start(&c->net, c->clock, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (int i = 0; !rc && i < c->cluster.n_workers; i++) {
        rc = nk_channel_open(&c->channels[i], c->net, c->cluster.workers[i].address,
                             &pem.credentials, err);
        if (rc)
            nk__wrap_worker(rc, err, &c->cluster.workers[i]);
        else
            nk_channel_watch(c->channels[i], opts ? opts->silence_ms : NK_RPC_SILENCE_MS);
    }
    for (int i = 0; !rc && i < c->cluster.n_spares; i++) {
        rc = nk_channel_open(&c->channels[c->cluster.n_workers + i], c->net, c->cluster.spares[i],
                             &pem.credentials, err);
        if (rc)
            nk_wrap(rc, err, "spare %s", c->cluster.spares[i]);
    }
    release_pem(&pem);
    if (rc) {
        release(c);
        return rc;
    }
    *out = c;
    return 0;
}

static void cancel_all(void *arg)
{
    nk__gens_cancel(arg);
    nk__repairs_cancel(arg);
    nk__embeds_cancel(arg);
}

static void pass_barrier(void *arg)
{
    nk_chain *c = arg;

    pthread_mutex_lock(&c->mutex);
    c->barrier = true;
    pthread_cond_broadcast(&c->idle);
    pthread_mutex_unlock(&c->mutex);
}

void nk_chain_close(nk_chain *c)
{
    if (!c)
        return;
    nk_net_post(c->net, cancel_all, c);
    pthread_mutex_lock(&c->mutex);
    while (c->n_running)
        pthread_cond_wait(&c->idle, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    /* Cancellations that were posted meanwhile hold references: the last of them runs before this
     * does. */
    nk_net_post(c->net, pass_barrier, c);
    pthread_mutex_lock(&c->mutex);
    while (!c->barrier)
        pthread_cond_wait(&c->idle, &c->mutex);
    pthread_mutex_unlock(&c->mutex);
    release(c);
}
