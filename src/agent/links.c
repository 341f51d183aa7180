/* The ways to the other members: measured when there are new ones, and now and then again. */
#include "agent/agent_int.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "rpc/link.h"

enum {
    MEASURE_MS = 10000, /* of one way */
    AGAIN_MS = 600000,  /* of all, though nothing has changed */
    RETRY_MS = 30000,   /* where one could not be measured */
    N_NO_WAY = 2,       /* so many tries in a row that reached nobody: there is no way */
};

static bool same_peers(const struct nk__wanted *a, const struct nk__wanted *b)
{
    if (a->n_peers != b->n_peers)
        return false;
    for (int i = 0; i < a->n_peers; i++)
        if (strcmp(a->peers[i].id, b->peers[i].id) != 0 ||
            strcmp(a->peers[i].address, b->peers[i].address) != 0)
            return false;
    return true;
}

/* Keeps a result for the coordinator. l NULL: nobody was reached, as err says. */
static void keep(nk_agent *a, const char *peer, const struct nk_link *l, const struct nk_error *err)
{
    bool news = true;
    int i = 0;

    pthread_mutex_lock(&a->mutex);
    while (i < a->n_ways && strcmp(a->ways[i].peer, peer) != 0)
        i++;
    if (i == NK_FLEET_PEERS_MAX) { /* the oldest goes: its member has, too */
        memmove(a->ways, a->ways + 1, (size_t)(i - 1) * sizeof a->ways[0]);
        i = --a->n_ways;
    }
    if (i == a->n_ways) {
        memset(&a->ways[i], 0, sizeof a->ways[i]);
        a->n_ways++;
        strcpy(a->ways[i].peer, peer);
    }
    if (l) {
        a->ways[i].link = *l;
        a->ways[i].n_failed = 0;
        a->ways[i].no_way[0] = '\0';
    } else {
        /* Once may be chance: the peer has just come, or its network was busy. */
        news = ++a->ways[i].n_failed == N_NO_WAY;
        if (news)
            snprintf(a->ways[i].no_way, sizeof a->ways[i].no_way, "%.255s", err->msg);
    }
    a->ways_changed |= news;
    pthread_mutex_unlock(&a->mutex);
    if (news)
        nk__attend_changed(a);
}

void *nk__links_run(void *arg)
{
    nk_agent *a = arg;
    struct nk__wanted done = { .n_peers = 0 };
    uint64_t due = 0;

    for (;;) {
        struct nk__wanted w;
        bool all = true;

        pthread_mutex_lock(&a->mutex);
        /* Not while this machine measures itself: both would be wrong. */
        while (!a->stopping &&
               (!a->facts_of[0] || !a->wanted.n_peers ||
                (same_peers(&a->wanted, &done) && nk_clock_now_ns(a->o.clock) < due))) {
            if (due && a->wanted.n_peers && a->facts_of[0])
                nk_clock_wait_until(a->o.clock, &a->cond, &a->mutex, due);
            else
                pthread_cond_wait(&a->cond, &a->mutex);
        }
        w = a->wanted;
        pthread_mutex_unlock(&a->mutex);
        for (int i = 0; i < w.n_peers; i++) {
            struct nk_link l;
            struct nk_error err;
            bool stopping;

            pthread_mutex_lock(&a->mutex);
            stopping = a->stopping;
            pthread_mutex_unlock(&a->mutex);
            if (stopping)
                return NULL;
            if (nk_link_measure(&l, a->net, w.peers[i].address, &a->credentials, MEASURE_MS,
                                &err)) {
                nk_log(NK_LOG_AGENT, NK_LOG_DEBUG, "peer=%s address=%s msg=\"%s\"", w.peers[i].id,
                       w.peers[i].address, err.msg);
                /* Only what says that nothing came back: who refuses was reached. */
                if (err.code == NK_E_UNAVAILABLE || err.code == NK_E_DEADLINE)
                    keep(a, w.peers[i].id, NULL, &err);
                continue;
            }
            keep(a, w.peers[i].id, &l, NULL);
        }
        pthread_mutex_lock(&a->mutex);
        if (a->stopping) {
            pthread_mutex_unlock(&a->mutex);
            return NULL;
        }
        /* Those that could not be measured are tried again soon. */
        for (int i = 0; i < w.n_peers; i++) {
            bool has = false;

            for (int k = 0; k < a->n_ways; k++)
                has |= !strcmp(a->ways[k].peer, w.peers[i].id) && !a->ways[k].n_failed;
            all &= has;
        }
        pthread_mutex_unlock(&a->mutex);
        done = w;
        due = nk_clock_now_ns(a->o.clock) + (uint64_t)(all ? AGAIN_MS : RETRY_MS) * 1000000;
    }
}
