/* Files: folders made as needed, the cache folder, and files that appear complete or not at all.
 * Thread-safe. */
#ifndef NK_BASE_FILE_H
#define NK_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

/* mkdir -p. DENIED/UNAVAILABLE `cannot_create` with the path and the system's sentence. */
int nk_dir_make(const char *path, struct nk_error *err);

/* $XDG_CACHE_HOME/nakshatra or ~/.cache/nakshatra, followed by "/sub" where sub is not NULL; made
 * if missing. *path is owned by the caller. PRECONDITION `no_home` when neither variable is set. */
int nk_cache_dir(char **path, const char *sub, struct nk_error *err);

/* A whole file, at most max bytes, into out. Only a regular file: a pipe could let us wait for
 * ever, a device has no end, and reading from one can do things. NOT_FOUND/DENIED `no_file`,
 * INVALID `not_a_file`, EXHAUSTED `too_large`, DATA_LOSS `read_failed`. */
int nk_file_read(const char *path, size_t max, struct nk_buf *out, struct nk_error *err);
/* The same for keys. DENIED `open_to_others` when everybody on this machine may read or write it,
 * or the group of a file that is this user's own, as ssh has it. (A group may read what another
 * user, root for example, shares with it.) */
int nk_file_read_secret(const char *path, size_t max, struct nk_buf *out, struct nk_error *err);
/* Is there a regular file that can be opened? nk_file_read's errors, before a library opens it. */
int nk_file_check(const char *path, struct nk_error *err);

/* A file under construction: written to a temporary name in the target's folder, made durable and
 * renamed by nk_newfile_commit, removed by nk_newfile_abort (and by a second start after a crash:
 * the temporary names are ".NAME.PID.tmp"). */
struct nk_newfile {
    int fd; /* -1 when closed */
    char *path;
    char *tmp_path;
};
#define NK_NEWFILE_INIT                                                                            \
    {                                                                                              \
        -1, NULL, NULL                                                                             \
    }

/*   DENIED      cannot_create   the folder is not there or not writable
 *   EXHAUSTED   no_space */
int nk_newfile_open(struct nk_newfile *f, const char *path, struct nk_error *err);
/* All of it or an error: EXHAUSTED `no_space`, DATA_LOSS `write_failed`. */
int nk_newfile_write(struct nk_newfile *f, const void *data, size_t size, struct nk_error *err);
int nk_newfile_commit(struct nk_newfile *f,
                      struct nk_error *err); /* fsync, rename, fsync of the folder */
void nk_newfile_abort(struct nk_newfile *f); /* harmless after commit and when not open */

/* Writes a small file atomically. */
int nk_file_write(const char *path, const void *data, size_t size, struct nk_error *err);

/* Which file it is, and when it was last changed: what tells, without reading it, that a file is
 * what it was. */
struct nk_file_id {
    uint64_t dev, ino, size_bytes;
    int64_t mtime_s, mtime_ns; /* written to */
    int64_t ctime_s, ctime_ns; /* written to, renamed, linked, its mode changed */
};
/* 0, or an errno. */
int nk_file_id_get(struct nk_file_id *id, int fd);

/* An open file, to see later whether somebody has written to it. */
struct nk_file_watch {
    int fd; /* -1: none */
    struct nk_file_id id;
};
#define NK_FILE_WATCH_INIT                                                                         \
    {                                                                                              \
        .fd = -1                                                                                   \
    }
/* NOT_FOUND/DENIED `no_file`. */
int nk_file_watch_open(struct nk_file_watch *w, const char *path, struct nk_error *err);
void nk_file_watch_close(struct nk_file_watch *w); /* harmless when none is open */
/* Was it written to, or made longer or shorter, since it was opened? (Not when it was renamed or
 * removed: who has it open keeps it.) Any thread. */
bool nk_file_watch_written(const struct nk_file_watch *w);
/* Is it still the file at path? */
bool nk_file_watch_is_at(const struct nk_file_watch *w, const char *path);

#endif
