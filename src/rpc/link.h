/* What the way to another machine is worth: round trip and rate, measured with calls that travel as
 * tokens and rows do (gRPC, and TLS where there are credentials).
 *
 * The other machine serves two methods. Echo: one small message comes back. Flow: a message with a
 * number of bytes (u32, little endian), answered with so many in messages of 256 KiB; the receiver
 * takes the time, from the first message to the last. */
#ifndef NK_RPC_LINK_H
#define NK_RPC_LINK_H

#include "rpc/rpc.h"

#define NK_LINK_ECHO "/nakshatra.v1.Link/Echo"
#define NK_LINK_FLOW "/nakshatra.v1.Link/Flow"

enum {
    NK_LINK_ECHOES = 16,
    NK_LINK_ECHO_BYTES_MAX = 64,
    NK_LINK_FLOW_BYTES_MAX = 16 << 20,
    NK_LINK_FLOWS_MAX = 4, /* at one time on one net: over it EXHAUSTED `busy` */
};

/* Inside nk_method.open, on the net thread. *flows: how many run; the owner's, 0 at first, and
 * there until the server has stopped. */
void nk_link_echo(nk_call *c, nk_net *net);
void nk_link_flow(nk_call *c, nk_net *net, int *flows);

struct nk_link {
    double rtt_ms;      /* the median of NK_LINK_ECHOES, without the first */
    double bytes_per_s; /* 0: what came was too quick to be timed */
};
/* Measures; blocks, at most timeout_ms. Not on the net thread. Time is taken from the net's
 * clock.
 *   UNAVAILABLE, DEADLINE, DENIED  as a call's end
 *   EXHAUSTED  busy                it is being measured by too many others */
int nk_link_measure(struct nk_link *out, nk_net *net, const char *address,
                    const struct nk_credentials *credentials, uint32_t timeout_ms,
                    struct nk_error *err);

#endif
