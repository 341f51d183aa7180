/* Fetching a slice: the parts of its layers, from whoever has them, straight into the slice's file.
 *
 * The file lies in the cache folder under a temporary name with the layout that it will have, so
 * the bytes exist once; a journal beside it says which parts are there. Each part is verified by
 * its SHA-256 before it is written. When all are there the file is sealed and renamed to what
 * nk_slice_cached would have called it, and is byte for byte what that would have written: complete
 * or not at all. A fetch that was interrupted (cancelled, killed, switched off) goes on where it
 * was: what the journal claims is verified by hash first.
 *
 * Sources are other machines (service Pieces, pieces/service.h) and files of this one: every whole
 * GGUF or slice of the same model in the cache folder and the given folders, found when the fetch
 * starts. Files come first. All sources work at once, each on parts that nobody else is at; towards
 * the end an idle source takes a part that another one is slow with. A source
 *
 *   - that sends wrong bytes is dropped for the rest of the fetch, and named (state, log);
 *   - that has not sent a part in time (stalled or trickling) loses it to others, is asked for
 *     fewer at once and given twice the time at its next try;
 *   - that cannot be reached or ends its calls is tried again with a growing pause, 1 s to 30 s;
 *   - that is still fetching itself is asked again every 2 s for what it has by now.
 *
 * Threads: two of the fetch's own (disk, hashing, local files), and the net's for what arrives. All
 * functions may be called on any thread but the net's (nk_fetch_progress and nk_fetch_cancel: on
 * any). */
#ifndef NK_PIECES_FETCH_H
#define NK_PIECES_FETCH_H

#include "base/clock.h"
#include "pieces/catalogue.h"
#include "rpc/rpc.h"

enum { NK_FETCH_SOURCES_MAX = 64 };

typedef struct nk_fetch nk_fetch;

struct nk_fetch_opts {
    nk_net *net;            /* borrowed; NULL: there will be no source but files */
    struct nk_clock *clock; /* borrowed; NULL: the system's */
    /* How sources are spoken to; borrowed until nk_fetch_free, with what it points to. NULL: plain
     * text. */
    const struct nk_credentials *credentials;
    /* Folders with GGUF files, besides the cache folder; borrowed for nk_fetch_start. */
    const char *const *folders;
    int n_folders;
    int parts_max;        /* in flight, over all sources (4 MiB of memory each); 0: 16 */
    int source_parts_max; /* in flight or not yet written, of one source; 0: 3 */
    uint32_t part_ms;     /* a part that takes longer is late; 0: 30 s */
    /* No byte from anywhere for so long, nor a source to ask: UNAVAILABLE `no_source`. 0: never. */
    uint32_t give_up_ms;
    /* Free bytes of the file system of `folder`; NULL: asks the system. */
    uint64_t (*free_bytes)(const char *folder, void *user);
    /* Something in the progress has changed, a few times a second at most, and the end: on a thread
     * of the fetch, with no lock held. May be NULL. */
    void (*changed)(nk_fetch *f, void *user);
    void *user;
};

enum nk_fetch_state {
    NK_FETCH_STARTING, /* verifying what an earlier run left, looking for files */
    NK_FETCH_RUNNING,
    NK_FETCH_SEALING,
    NK_FETCH_DONE,
    NK_FETCH_FAILED, /* cancelled, too */
};
const char *nk_fetch_state_text(enum nk_fetch_state s); /* "starting", "running", ... */

enum nk_fetch_source_state {
    NK_SOURCE_ASKING, /* what it has */
    NK_SOURCE_READY,
    NK_SOURCE_PAUSED, /* could not be reached, or broke off; is tried again */
    NK_SOURCE_DROPPED /* sent wrong bytes */
};
const char *nk_fetch_source_state_text(enum nk_fetch_source_state s);

struct nk_fetch_progress {
    enum nk_fetch_state state;
    uint64_t bytes_total; /* that the slice needs, in whole parts */
    uint64_t bytes_done;  /* of them verified and in the file */
    uint64_t bytes_kept;  /* of bytes_done: were there from an earlier run */
    uint64_t bytes_local; /* of bytes_done: from files of this machine */
    uint64_t rate_bps;    /* bytes per second of the last few seconds, from everywhere */
    uint64_t running_ms;  /* since the start; stands still at the end */
    char last_error[256]; /* of any source, or what it failed by; "" */
    char dropped[128];    /* the last source that sent wrong bytes; "" */
    int n_sources;
    struct nk_fetch_source {
        char name[128]; /* as added; of a file: its path's end */
        bool is_file;
        enum nk_fetch_source_state state;
        uint64_t bytes; /* that came from it, verified */
        uint64_t rate_bps;
        int parts_in_flight;
    } sources[NK_FETCH_SOURCES_MAX];
};

/* Starts to fetch what c's slice of this range (0-0: the vocabulary file) needs and the cache does
 * not have. A slice that is there, whole, is the result at once. c is referenced. *out is owned by
 * the caller (nk_fetch_free).
 *   EXHAUSTED  no_space    with what is needed and what is free
 *   ABORTED    busy        another fetch of this slice is under way, here or in another process
 *   and those of nk_ranges_check, and of files that cannot be made */
int nk_fetch_start(nk_fetch **out, nk_catalogue *c, struct nk_range range,
                   const struct nk_fetch_opts *opts, struct nk_error *err);

/* name: how the source is called in progress and log (a member's id, or its name); adding a name
 * again changes its address, and does nothing when it is the same. One that was dropped stays so.
 *   INVALID    bad_address, bad_credentials
 *   EXHAUSTED  too_many_sources */
int nk_fetch_source_add(nk_fetch *f, const char *name, const char *address, struct nk_error *err);
/* What is on its way from it is given up. An unknown name: nothing. */
void nk_fetch_source_remove(nk_fetch *f, const char *name);

void nk_fetch_progress(nk_fetch *f, struct nk_fetch_progress *out);
/* It ends soon, with CANCELLED `cancelled`; what it has is kept for the next one. */
void nk_fetch_cancel(nk_fetch *f);
/* Waits for the end. *path: of the slice, owned by the caller.
 *   CANCELLED    cancelled
 *   EXHAUSTED    no_space     the disk filled up meanwhile; needed and free bytes
 *   UNAVAILABLE  no_source    see give_up_ms
 *   DATA_LOSS    bad_catalogue   the parts are right and the slice is not: the catalogue lies
 *   and write errors */
int nk_fetch_wait(nk_fetch *f, char **path, struct nk_error *err);
/* Cancels it if it runs, waits, frees. NULL: does nothing. The net still runs. */
void nk_fetch_free(nk_fetch *f);

/* The catalogue with this id from one machine, verified by the id; kept in the cache folder, and
 * taken from there when it is there. Blocks for timeout_ms at most.
 *   NOT_FOUND    no_catalogue    it does not have it
 *   DATA_LOSS    wrong_bytes     what it sent is another one
 *   UNAVAILABLE, DEADLINE, and nk_catalogue_parse's errors */
int nk_catalogue_fetch(nk_catalogue **out, const char *id, nk_net *net, const char *address,
                       const struct nk_credentials *credentials, uint32_t timeout_ms,
                       struct nk_error *err);

#endif
