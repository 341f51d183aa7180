/* The journal: what a stage sent to the next one, so that it can be sent again after a loss.
 *
 * A session's journal holds rows as they were sent (f32 or f16, row-major, row_bytes each), by
 * position, and which of them were sent as one step: a replay in the original shapes gives the
 * original bits. It covers the positions [begin, end) without a gap. It never fails its session:
 * where there is no room it forgets its oldest steps, or everything, and the rows are computed
 * again when they are needed.
 *
 * Rows lie in blocks of some 256 KiB, in memory first. Where a ceiling of the memory is reached,
 * the journal that appends gives up memory of its own: its oldest rows go to a file, which has no
 * name, so that nothing stays behind whatever ends the process. It is not the largest journal's
 * turn: as many bytes would be written either way, and no journal ever waits for another's lock or
 * disk. One that has no memory to give up writes its rows straight to its file. Where the files'
 * ceiling is reached as well, or the disk is full, the journal that appends forgets its oldest
 * steps. Each journal that has spilled has a file, and so a descriptor, of its own until it is
 * freed: what it had then goes back to the disk at once.
 *
 * What is written goes into the system's page cache (there is no sync, a crash ends the session
 * anyway), a block at a time; so a slow disk is noticed only when the system has no more pages to
 * give for it.
 *
 * Safety. All of it may be called from any thread: each journal has its lock, which is held while
 * its file is read or written, and what the journals share are atomics. So appending to one does
 * not wait for another. nk__journal_free needs, as ever, that nobody else uses that journal. */
#ifndef NK_WORKER_JOURNAL_H
#define NK_WORKER_JOURNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

typedef struct nk__journal nk__journal;

/* The ceilings. A 64th of those of the memory is for the books of what is in the files. */
struct nk__journal_limits {
    uint64_t session_bytes; /* in memory, of one journal; 0: nothing is kept, in files neither */
    uint64_t memory_bytes;  /* in memory, of all; likewise */
    uint64_t spill_bytes;   /* in files, of all; 0: no files */
    size_t block_bytes;     /* about the size of a block; a block has at least one row */
    /* Where the files lie, without names; borrowed. NULL: the program's cache folder. */
    const char *folder;
};
#define NK_JOURNAL_LIMITS_DEFAULT                                                                  \
    {                                                                                              \
        .session_bytes = 64ull << 20, .memory_bytes = 256ull << 20, .spill_bytes = 1ull << 30,     \
        .block_bytes = 256u << 10, .folder = NULL                                                  \
    }

/* Why rows went. Each is logged once for a worker, not for each step. */
enum nk_journal_cause {
    NK_JOURNAL_FULL,      /* no room: the ceilings are reached, or for one of the causes below */
    NK_JOURNAL_NO_FILE,   /* the file cannot be made */
    NK_JOURNAL_NO_WRITE,  /* it cannot be written to: the disk is full, say */
    NK_JOURNAL_NO_READ,   /* it cannot be read back */
    NK_JOURNAL_NO_MEMORY, /* the system has no more memory to give */
    NK_JOURNAL_CAUSES
};

/* What the journals of a worker share; it outlives them. The counts are for any thread to read, are
 * never above their ceilings, and are 0 when all journals are freed. */
struct nk__journals {
    struct nk__journal_limits limits;
    atomic_ullong memory_bytes;  /* rows, and the books of all rows */
    atomic_ullong spilled_bytes; /* the files' sizes, in whole blocks */
    atomic_bool told[NK_JOURNAL_CAUSES];
};

/* There is nothing to release. */
void nk__journals_init(struct nk__journals *js, const struct nk__journal_limits *limits);

/* An empty journal of rows of row_bytes (above 0). js is borrowed until it is freed. *out is owned
 * by the caller. Opens no file and counts for nothing before the first step.
 *   EXHAUSTED  no_memory */
int nk__journal_new(nk__journal **out, struct nk__journals *js, size_t row_bytes,
                    struct nk_error *err);
/* NULL is harmless here. In all that follows it is a journal which never holds anything. */
void nk__journal_free(nk__journal *j);

/* A step was sent: n_rows (above 0) from position pos on; rows is borrowed. Positions are
 * authoritative: what the journal had from pos on is forgotten first, and when pos is past its end,
 * all that it had. Afterwards end is pos + n_rows, or the journal is empty. */
void nk__journal_append(nk__journal *j, int pos, int n_rows, const void *rows);

/* It covers [begin, end). Both are 0 when it is empty. A step begins at begin. */
int nk__journal_begin(nk__journal *j);
int nk__journal_end(nk__journal *j);

/* Does a step begin at pos? Then *n_rows is how many rows of it are there. *whole: are these all
 * that it had? Not when it was cut at a position inside it, by a later step or by
 * nk__journal_truncate: then its rows were computed in a shape that the journal does not know, and
 * a replay gives no promise of the same bits. n_rows and whole may be NULL; both stay as they are
 * when it is false. */
bool nk__journal_step_at(nk__journal *j, int pos, int *n_rows, bool *whole);

/* Copies the rows [pos, pos + n_rows), of any steps, to out, which has room for n_rows * row_bytes.
 *   OUT_OF_RANGE  not_in_journal  some of them are not in it
 *   DATA_LOSS     journal_lost    the file cannot be read back; what was in this part of it and
 *                                 before it is forgotten, so that begin and end are true again */
int nk__journal_read(nk__journal *j, int pos, int n_rows, void *out, struct nk_error *err);

/* Forgets what is at `end` and after it. Harmless when there is nothing. */
void nk__journal_truncate(nk__journal *j, int end);

#endif
