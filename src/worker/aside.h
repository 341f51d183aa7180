/* What takes long and is one session's own (a grammar that is made, tokens that are slow to choose
 * by it), off the threads that all sessions share: others do not wait for it. A session with such
 * steps has a thread of its own while there are any; it does them in their order. All threads here
 * yield to whoever computes. */
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
/* Runs work(arg) on a thread of its own; where none can be had, at once. [net thread] */
void nk__aside_do(struct nk_aside *a, void (*work)(void *arg), void *arg);
/* Until nothing of this session is aside. [compute thread] */
void nk__aside_wait_for(struct nk_aside *a, struct nk_session *s);
/* Until nothing is aside. Sessions that were dropped end within a step of their grammar's work;
 * others do all that they have there. */
void nk__aside_wait(struct nk_aside *a);

#endif
