/* The protocol's generated messages, and the services' descriptors for reflection. */
#ifndef NK_RPC_PROTO_H
#define NK_RPC_PROTO_H

#include "base/buf.h"
#include "nakshatra.pb-c.h"

/* A serialised FileDescriptorSet of proto/nakshatra.proto and of the health and reflection
 * services: what nk_server_opts.descriptors takes. Lives as long as the program. */
struct nk_bytes nk_proto_descriptors(void);

#endif
