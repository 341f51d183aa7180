/* What the cache folder holds of models, and its ceiling: the slices of one model take at most
 * about twice its size there. What is removed is what was not used for longest, and is not in use:
 * it can be cut, or fetched, again. Any thread. */
#ifndef NK_PIECES_SHELF_H
#define NK_PIECES_SHELF_H

#include "slice/slice.h"

enum { NK_SHELF_MAX = 4096 }; /* files that are listed */

struct nk_shelf_file {
    char path[4096];
    char model[256];                  /* the name that its slices are called after */
    char model_sha256[NK_SHA256_HEX]; /* of the source */
    struct nk_range range;            /* 0-0: the vocabulary file */
    bool is_partial;                  /* an interrupted fetch's */
    bool in_use;                      /* somebody has it open */
    uint64_t size_bytes, disk_bytes;  /* a hole takes no place on the disk */
    int64_t used_s; /* when it was last read or written; a day off on some disks */
};

/* *out: what there is, what was used last first; owned by the caller (free). *folder (may be NULL):
 * where, owned by the caller. PRECONDITION no_home, EXHAUSTED no_memory. */
int nk_shelf_list(struct nk_shelf_file **out, int *n, char **folder, struct nk_error *err);

/* Removes a file of the list, and what belongs to it. False: it is in use, or cannot be removed. */
bool nk_shelf_remove(const struct nk_shelf_file *f);

/* Before slices of m are made or looked for: removes slices of its model until these (n of them,
 * and the vocabulary file) and what is left take at most about twice its size. Those that are in
 * ranges, or in use, are not touched; where these alone are more, a line in the log says so. m's
 * hash is known. Best effort.
 *
 * Returns a descriptor that the caller closes when everything that it needs of them is open: until
 * then nothing of the model is removed by others, who would take what was just found for not in
 * use. -1: there is none. While others hold one nothing is removed here. */
int nk_shelf_make_room(const nk_model *m, const struct nk_range *ranges, int n);

#endif
