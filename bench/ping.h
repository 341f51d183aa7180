/* Raw gRPC ping-pong between two processes on loopback: what a hop cannot be faster than.
 *
 * The same rpc layer, one bidirectional stream, one message under way; the answer has the size of a
 * token's. With nothing behind it: no model, no session, no hand-over to another thread. */
#ifndef NK_BENCH_PING_H
#define NK_BENCH_PING_H

#include "base/error.h"

/* The other side (`nakshatra-bench echo`): listens on a free port of 127.0.0.1, tells it, answers
 * until the process ends. nk_server_start's errors. */
int nk_ping_serve(void (*ready)(int port, void *arg), void *arg, struct nk_error *err);

#endif
