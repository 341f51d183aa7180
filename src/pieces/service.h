/* What this machine can give to others: the gRPC service Pieces (proto/nakshatra.proto).
 *
 * A service holds catalogues, and for each what there is of it on this machine: the whole model,
 * slices in the cache folder, fetches that are under way (part by part). Reading from the disk is
 * done by threads of its own, never on the net's.
 *
 * The methods are rows of a server's table which calls them with its own `user`, so whoever builds
 * the server writes a function of one line for each, where it also decides who may call:
 *
 *   static void open_part(nk_call *c, void *user)
 *   {
 *       struct server *s = user;
 *
 *       nk_pieces_service_part(s->pieces, c);
 *   }
 *   ... { NK_PIECES_PART, open_part }
 *
 * Limits: what is read and not yet sent is at most NK_PIECES_STREAMS_MAX parts (128 MiB), of one
 * peer NK_PIECES_PEER_STREAMS_MAX of them; over it a call ends with EXHAUSTED `busy`, and the peer
 * comes again. A peer that has not taken a part after NK_PIECES_PART_MS has its call ended. */
#ifndef NK_PIECES_SERVICE_H
#define NK_PIECES_SERVICE_H

#include "pieces/catalogue.h"
#include "pieces/fetch.h"
#include "rpc/rpc.h"

#define NK_PIECES_CATALOGUE "/nakshatra.v1.Pieces/Catalogue"
#define NK_PIECES_HAVE      "/nakshatra.v1.Pieces/Have"
#define NK_PIECES_PART      "/nakshatra.v1.Pieces/Part"

enum {
    NK_PIECES_STREAMS_MAX = 32,
    NK_PIECES_PEER_STREAMS_MAX = 12,
    NK_PIECES_PART_MS = 600000,
    NK_PIECES_CATALOGUES_MAX = 64,
};

typedef struct nk_pieces_service nk_pieces_service;

/* [any thread] net: where the server runs that its methods are put into; borrowed until the free.
 *   EXHAUSTED  no_memory, no_thread */
int nk_pieces_service_new(nk_pieces_service **out, nk_net *net, struct nk_error *err);
/* After the server has stopped (no call is left) and before the net stops. Not on the net thread.
 * NULL: does nothing. */
void nk_pieces_service_free(nk_pieces_service *s);

/* ---- what it holds: any thread but the net's ---- */
/* The catalogue itself, and what there is of its model in the cache folder: slices that are whole
 * (nk_slice_check_file, once). Again for a catalogue that it has: looks again.
 *   EXHAUSTED  too_many_catalogues, no_memory */
int nk_pieces_service_add(nk_pieces_service *s, nk_catalogue *c, struct nk_error *err);
/* The model's own file, which c was made of.
 *   PRECONDITION  wrong_model   the file's hash is another
 *   and nk_model_open's */
int nk_pieces_service_add_model(nk_pieces_service *s, nk_catalogue *c, const char *path,
                                struct nk_error *err);
/* A fetch of one of its catalogues, from now on, and the slice that it becomes: the file stays when
 * the fetch is freed. */
int nk_pieces_service_add_fetch(nk_pieces_service *s, nk_fetch *f, struct nk_error *err);
/* Forgets the catalogue and everything of it. */
void nk_pieces_service_remove(nk_pieces_service *s, const char *id);

struct nk_pieces_figures {
    int streams;                     /* parts that are being sent */
    uint64_t parts_sent, bytes_sent; /* in all */
    uint64_t refused;                /* EXHAUSTED busy */
};
void nk_pieces_service_figures(nk_pieces_service *s, struct nk_pieces_figures *out);

/* ---- its methods: inside nk_method.open, on the net thread ---- */
void nk_pieces_service_catalogue(nk_pieces_service *s, nk_call *c);
void nk_pieces_service_have(nk_pieces_service *s, nk_call *c);
void nk_pieces_service_part(nk_pieces_service *s, nk_call *c);

#endif
