/* Where on this machine a catalogue's bytes are: one model's files, a slice, or a slice that is
 * being fetched. Counted; any thread. */
#ifndef NK_PIECES_PLACES_H
#define NK_PIECES_PLACES_H

#include "pieces/catalogue_int.h"

struct nk__place {
    int shard;
    uint64_t offset, size; /* the tensor's first `size` bytes; 0: not here */
};

typedef struct nk__places {
    atomic_int refs;
    nk_catalogue *c; /* referenced */
    nk_model *model; /* a whole one; NULL: a slice */
    int fd;          /* of a slice */
    char path[4096];
    struct nk__place *tensors;
    atomic_uchar *has; /* of each part: it is here, all of it */
} nk__places;

/* m's tensors that are named, typed and shaped as the catalogue's; whether they have the bytes is
 * for the reader to find out. Takes m, also when it fails.
 *   NOT_FOUND  no_part   there is none */
int nk__places_of_model(nk__places **out, nk_catalogue *c, nk_model *m, struct nk_error *err);
/* Takes fd, also when it fails. complete: everything of the layout is in the file; else nothing is,
 * yet. */
int nk__places_of_slice(nk__places **out, nk_catalogue *c, const struct nk_slice_layout *l, int fd,
                        const char *path, bool complete, struct nk_error *err);
nk__places *nk__places_ref(nk__places *p);
void nk__places_unref(nk__places *p); /* NULL: does nothing */

static inline bool nk__places_has(const nk__places *p, int part)
{
    return atomic_load(&p->has[part]) != 0;
}
/* Is there a place for all of the part's bytes? For any of them? */
bool nk__places_whole(const nk__places *p, int part);
bool nk__places_any(const nk__places *p, int part);
/* Those of the part's bytes that have a place, to and from buf (NK_PART_BYTES). Not of a model:
 * _write. EXHAUSTED no_space, DATA_LOSS write_failed, read_failed, truncated. */
int nk__places_read(const nk__places *p, int part, uint8_t *buf, struct nk_error *err);
int nk__places_write(const nk__places *p, int part, const uint8_t *buf, struct nk_error *err);
/* The digest of those bytes, in buf. */
int nk__places_digest(const nk__places *p, int part, const uint8_t *buf, char hex[NK_SHA256_HEX],
                      struct nk_error *err);
/* Is this what the catalogue says of the part? */
int nk__part_check(const nk_catalogue *c, int part, const uint8_t *buf, bool *ok,
                   struct nk_error *err);

/* What may be a source: the slice or whole model at path, if it is of c's model. NOT_FOUND
 * `no_part` when it is not. */
int nk__places_open(nk__places **out, nk_catalogue *c, const char *path, struct nk_error *err);
/* All of those in a folder (of shards: the first stands for all), in the order of their names. Not
 * `but` (a path; may be NULL). Fills up to max, returns how many. */
int nk__places_find(nk__places **out, int max, nk_catalogue *c, const char *folder,
                    const char *but);

#endif
