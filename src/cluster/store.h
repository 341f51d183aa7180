/* What a cluster must remember: a small map from keys to values with revisions, watches and leases.
 * The calls are those that etcd has too (KV, Txn on one key, Watch, Lease), so that it can come
 * behind this header later: nothing above may assume a file, a process, or that a write is quick.
 *
 * Every write gets a revision, one number for the whole store that only grows; a key has the
 * revision of its last write. Compare-and-swap by it is how two writers agree: read, decide, swap,
 * and begin again when somebody was faster.
 *
 * Keys are 1 to NK_STORE_KEY_BYTES_MAX printable ASCII characters without space, by convention
 * noun/id ("members/0123456789abcdef"). A write that has returned 0 is on the disk: neither a
 * killed process nor a power cut takes it back, and a write that was cut off has not happened.
 *
 * Embedded: SQLite, one file, of which this process is the only user while it is open.
 *
 * Safety: every function may be called on any thread; one mutex guards the file. What a watch calls
 * runs on the store's own thread, without that mutex. Failures of all functions besides their own:
 *   EXHAUSTED  no_space       the disk is full
 *   EXHAUSTED  store_full     NK_STORE_BYTES_MAX or NK_STORE_KEYS_MAX
 *   DATA_LOSS  store_damaged  the file is no store any more: named, with SQLite's sentence
 *   INVALID    bad_key        not such a key (or prefix)
 *   UNAVAILABLE store_failed  the system's or SQLite's sentence */
#ifndef NK_CLUSTER_STORE_H
#define NK_CLUSTER_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/error.h"

enum { NK_STORE_KEY_BYTES_MAX = 255, NK_STORE_KEYS_MAX = 200000 };
#define NK_STORE_VALUE_BYTES_MAX ((size_t)1 << 20)
#define NK_STORE_BYTES_MAX       ((uint64_t)1 << 30) /* the whole file */

typedef struct nk_store nk_store;
typedef struct nk_store_watch nk_store_watch;

/* Opens the store in the file at path, made (0600) where there is none; its folder is there.
 * Leases go by `clock`, which is borrowed until the store is closed. Leases that were there when
 * the store was closed begin anew in full: nobody could keep them in between.
 *   PRECONDITION store_in_use   another process has it; its pid, if known
 *   PRECONDITION store_newer    made by a newer version of this program
 *   DATA_LOSS    store_damaged */
int nk_store_open(nk_store **out, const char *path, struct nk_clock *clock, struct nk_error *err);
/* After every watch was ended. NULL is fine. */
void nk_store_close(nk_store *s);

/* The value of key replaces what is in `value` (a buffer of the caller's, whose ceiling holds);
 * *revision (may be NULL) is the key's.
 *   NOT_FOUND  no_key */
int nk_store_get(nk_store *s, const char *key, struct nk_buf *value, uint64_t *revision,
                 struct nk_error *err);

/* Writes, whatever was there. lease 0: until it is deleted; else until that lease ends. *revision
 * (may be NULL) is the new one.
 *   EXHAUSTED  too_large  over NK_STORE_VALUE_BYTES_MAX
 *   NOT_FOUND  no_lease */
int nk_store_put(nk_store *s, const char *key, struct nk_bytes value, uint64_t lease,
                 uint64_t *revision, struct nk_error *err);
/* Writes only if the key's revision is `expected`; 0: only if there is no such key.
 *   ABORTED  changed  it is another: read it again, decide again */
int nk_store_swap(nk_store *s, const char *key, uint64_t expected, struct nk_bytes value,
                  uint64_t lease, uint64_t *revision, struct nk_error *err);
/* Deletes; expected 0: whatever its revision.
 *   NOT_FOUND  no_key
 *   ABORTED    changed */
int nk_store_delete(nk_store *s, const char *key, uint64_t expected, struct nk_error *err);

struct nk_store_entry {
    char *key;
    struct nk_bytes value; /* followed by a NUL that does not count */
    uint64_t revision;
    uint64_t lease; /* 0: none */
};
struct nk_store_list {
    struct nk_store_entry *entries; /* ordered by key */
    size_t n;
    uint64_t revision; /* of the store when it was read: a watch from here misses nothing */
};
/* All entries whose keys begin with prefix ("": all). On success *out is the caller's:
 * nk_store_list_release(). On failure it is empty. */
int nk_store_list(nk_store *s, const char *prefix, struct nk_store_list *out, struct nk_error *err);
void nk_store_list_release(struct nk_store_list *list); /* harmless on an empty one */

/* ---- watches ---- */
struct nk_store_event {
    const char *key;
    bool deleted;
    struct nk_bytes value; /* empty when deleted; followed by a NUL that does not count */
    uint64_t revision;     /* of this write or deletion */
};
/* fn(arg, event) is called on the store's thread for every key under prefix whose last write or
 * deletion is newer than revision `after`, now and from now on, in the order of the revisions. A
 * key that was written several times before the thread came to it is told once, as it is then: who
 * watches learns the state, not the history, and a slow one costs nothing. (Deletions from before
 * the watch began may be missing: begin with a list, then watch from its revision.) What the event
 * points to is borrowed for the call; fn may use the store, but not end its watch. */
int nk_store_watch_start(nk_store_watch **out, nk_store *s, const char *prefix, uint64_t after,
                         void (*fn)(void *arg, const struct nk_store_event *event), void *arg,
                         struct nk_error *err);
/* After this returns fn is not called any more (waits for a call on its way). NULL is fine. */
void nk_store_watch_end(nk_store_watch *w);

/* ---- leases ---- */
/* A lease of ttl_ms (1 to a day). When it was neither kept nor revoked for so long, its keys are
 * deleted, each with a revision of its own; watches tell. Keeping one costs no write. */
int nk_store_lease_grant(nk_store *s, uint64_t ttl_ms, uint64_t *lease, struct nk_error *err);
/* Its time begins anew.
 *   NOT_FOUND  no_lease  it has ended */
int nk_store_lease_keep(nk_store *s, uint64_t lease, struct nk_error *err);
/* Ends it now.
 *   NOT_FOUND  no_lease */
int nk_store_lease_revoke(nk_store *s, uint64_t lease, struct nk_error *err);

#endif
