/* A world in one thread and virtual time: processes, the network between them, and what can go
 * wrong with both. It takes the place of rpc's net threads, servers, channels and calls when the
 * program is linked (world.c defines their functions), so that the worker's, the chain's and the
 * gateway's own code runs in it. What happens is a function of one seed.
 *
 * A process is one incarnation: one that is started again at its address is another process. */
#ifndef NK_TESTS_SIMULATION_WORLD_H
#define NK_TESTS_SIMULATION_WORLD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/queue.h>

#include "base/chance.h"
#include "base/clock.h"
#include "rpc/rpc.h"
#include "seed.h"

#define MS 1000000ull
enum { SILENCE_MS = 3000 };

struct process {
    char address[32];
    bool dead;    /* nothing of it reaches anybody, nothing reaches it */
    bool ending;  /* its owner ends it just now, in one go */
    bool stopped; /* it does not run; what comes waits */
    nk_net *net;
    nk_server *server;
    LIST_HEAD(, nk_call) calls;
    /* After each thing that happened to it; NULL: nothing. */
    void (*after)(struct process *p);
    void *user;
    LIST_ENTRY(process) link;
};

/* How much goes wrong by itself, in thousandths. */
struct world_weather {
    int slow;  /* of the messages: on their way for up to 200 ms more */
    int ghost; /* of the calls: come twice, the second time late, with nobody behind it */
};

void world_begin(uint64_t seed, const struct world_weather *weather);
void world_end(void);
uint64_t world_now_ns(void);
uint64_t world_below(uint64_t n); /* a draw, 0 to n - 1 */
bool world_chance(int thousandths);
struct nk_clock *world_clock(void);
struct nk_chance *world_randomness(void);

/* It was not as it must be: prints what, and the seed, and ends the program. */
_Noreturn void world_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define world_check(truth, ...)                                                                    \
    do {                                                                                           \
        if (!(truth))                                                                              \
            world_fail(__VA_ARGS__);                                                               \
    } while (0)

/* fn(arg) in ms, of process p (which must live and run) or, NULL, of the world itself. */
void world_later(struct process *p, uint64_t us, void (*fn)(void *arg), void *arg);
/* The next thing happens. False: nothing is left that would. */
bool world_step(void);
/* All calls of p, which is dead, end for it, and what that leads to happens at once. For who frees
 * what it had. */
void world_run_out(struct process *p);

/* What rpc's functions make from here on (nets, servers) belongs to p. */
struct process *world_process(const char *address);
void world_current(struct process *p);
struct process *world_find(const char *address); /* who listens there; NULL: nobody */

/* Faults. */
void world_kill(struct process *p, bool silently); /* then its owner frees what it had */
void world_stop(struct process *p);                /* SIGSTOP */
void world_continue(struct process *p);
/* All connections between the two are cut, and no new ones come for ms. */
void world_cut(const char *a, const char *b, uint64_t ms);
void world_reset_one(void); /* one call, of anybody */
int world_n_calls(const struct process *p);

#endif
