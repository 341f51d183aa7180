/* Steps whose tokens take long to choose (a slow grammar), off the compute thread: the next run of
 * others does not wait for them. A session with such steps has a thread of its own while there are
 * any; it does them in their order, and yields to whoever computes. */
#ifndef NK_WORKER_ASIDE_H
#define NK_WORKER_ASIDE_H

#include <pthread.h>

#include "worker/worker_int.h"

struct nk_aside {
    /* Takes the job. On a thread of the session, which touches its compute part meanwhile. */
    void (*run)(void *user, struct nk_compute_job *j);
    void *user;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int n_threads;
};

void nk__aside_init(struct nk_aside *a, void (*run)(void *user, struct nk_compute_job *j),
                    void *user);
void nk__aside_release(struct nk_aside *a); /* nothing runs any more */
/* Is anything of this session aside? Then what follows of it has to be, too. [compute thread] */
bool nk__aside_has(struct nk_aside *a, struct nk_session *s);
/* Takes j, of this session. Where no thread can be had it is run at once. [compute thread] */
void nk__aside_add(struct nk_aside *a, struct nk_session *s, struct nk_compute_job *j);
/* Until nothing of this session is aside. [compute thread] */
void nk__aside_wait_for(struct nk_aside *a, struct nk_session *s);
/* Until nothing is aside. Of sessions that were dropped that is as long as the one token takes that
 * is being chosen for each; of others, all of their steps. */
void nk__aside_wait(struct nk_aside *a);

#endif
