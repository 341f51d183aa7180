/* A method with one message in and one out, on the server. */
#ifndef NK_RPC_UNARY_H
#define NK_RPC_UNARY_H

#include "rpc/rpc.h"

/* For the `open` of such a method: accepts the call and waits for its message, at most
 * deadline_ms. Then handle(user, c, msg) answers with nk_unary_reply or nk_call_finish, once,
 * there or later on the net thread, as long as the call has not ended. Without a message the call
 * is finished here.
 *   INVALID   bad_message   the client sent none
 *   DEADLINE  no_request */
void nk_unary_open(nk_call *c, nk_net *net, uint32_t deadline_ms,
                   void (*handle)(void *user, nk_call *c, struct nk_bytes msg), void *user);
/* The answer, and the end with OK. */
void nk_unary_reply(nk_call *c, const ProtobufCMessage *msg);

#endif
