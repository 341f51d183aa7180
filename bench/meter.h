/* Counts what goes over a connection: listens on a free port of 127.0.0.1 and passes everything on
 * to another address.
 *
 * What it counts is what the sockets carry, HTTP/2's and gRPC's framing included, TCP's and IP's
 * headers not. */
#ifndef NK_BENCH_METER_H
#define NK_BENCH_METER_H

#include <stdint.h>

#include "base/error.h"

typedef struct nk_meter nk_meter;

/* target: "127.0.0.1:PORT". EXHAUSTED no_memory; UNAVAILABLE cannot_listen. */
int nk_meter_open(nk_meter **out, const char *target, struct nk_error *err);
void nk_meter_close(nk_meter *m); /* ends its connections; NULL is fine */
const char *nk_meter_address(const nk_meter *m);
/* Bytes so far, towards the target and back. Any thread. */
void nk_meter_read(nk_meter *m, uint64_t *there, uint64_t *back);

#endif
