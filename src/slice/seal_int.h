/* The seal of a file that this program wrote: the SHA-256 of each of its parts, behind the last of
 * them, so that whoever has the file can tell whether it is what was written.
 *
 * A part is the header or a tensor with its padding; of a large tensor, 64 MiB of it. The parts
 * follow each other without gaps. They are named as in the model, so a tensor's digest is the same
 * in every slice that has it, whatever the slice calls it. llama.cpp reads no further than the last
 * tensor that the header declares and does not see the seal.
 *
 * It is behind the data, not in the metadata before it, because it is known last: a slice is then
 * written in one pass, and the manifest's SHA-256 is still that of the whole file, seal included.
 * That a file must have one is in its metadata (NK__SLICE_FORMAT_SEALED), so one that has lost it
 * is not taken for one that never had it. Text, in lines:
 *
 *   nakshatra seal 1
 *   BEGIN SIZE SHA256 NAME      a part; SHA256 is "-" of zeros that nothing reads (a hole)
 *   seal BYTES SHA256           of the lines before this one; always SEAL_END bytes */
#ifndef NK_SLICE_SEAL_INT_H
#define NK_SLICE_SEAL_INT_H

#include "base/buf.h"
#include "slice/gguf_int.h"
#include "slice/slice.h"

enum { NK__SEAL_PART_MAX = 64 << 20, NK__SEAL_MAX = 1 << 25 };

struct nk__seal_part {
    uint64_t begin, size; /* in the file */
    const char *name;     /* borrowed from whoever made the part */
    bool is_hole;
    char sha256[NK_SHA256_HEX]; /* of a hole: nothing */
};

struct nk__seal {
    struct nk__seal_part *parts; /* names are in text */
    int n_parts;                 /* 0: the file has none */
    uint64_t begin;              /* where it is in the file */
    char sha256[NK_SHA256_HEX];  /* of the seal: what all of the file's content goes by */
    char *text;
};

/* Appends the seal of these parts to out. EXHAUSTED no_memory, too_large. */
int nk__seal_format(const struct nk__seal_part *parts, int n, struct nk_buf *out,
                    struct nk_error *err);

/* Reads the file's seal. Without one: 0 and n_parts 0, or, when the file must have one (expected),
 *   DATA_LOSS  damaged      so is what contradicts itself; messages do not name the file
 *   and those of nk__source_read; EXHAUSTED no_memory */
int nk__seal_read(struct nk__seal *s, const struct nk__source *source, bool expected,
                  struct nk_error *err);
void nk__seal_release(struct nk__seal *s); /* harmless on zeros */

#endif
