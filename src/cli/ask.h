/* One question to the coordinator of the cluster that this machine serves or is a member of. */
#ifndef NK_CLI_ASK_H
#define NK_CLI_ASK_H

#include <protobuf-c/protobuf-c.h>

#include "base/buf.h"
#include "base/error.h"

enum nk_ask_as {
    NK_ASK_COORDINATOR, /* as the machine that serves: may do everything */
    NK_ASK_ANY,         /* as that one or, where there is none, as a member */
};
/* Calls a method ("/nakshatra.v1.Cluster/Status") and waits, at most 10 s. state: --state or NULL.
 * The reply's bytes go to out.
 *   PRECONDITION  no_cluster   this machine serves none (and is no member of one)
 *   UNAVAILABLE   unreachable  nothing answers at the addresses that are known
 *   and what the coordinator says */
int nk_ask(const char *state, enum nk_ask_as as, const char *method,
           const ProtobufCMessage *request, struct nk_buf *out, struct nk_error *err);

#endif
