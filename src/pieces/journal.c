/* The temporary file of a fetch, and its journal.
 *
 *   .NAME.014-028.gguf.part      the slice as it will be, with what is there of it
 *   .NAME.014-028.gguf.journal   text: "nakshatra fetch 1 CATALOGUE BEGIN-END", then a line for
 *                                each part that was written: "PART -", or "PART SHA256" of the
 *                                bytes of it that the slice has, where these are not all
 *
 * A line is written after the part was. Nothing is flushed to the disk for that: what a crash of
 * the machine has left untrue in the journal is found out by hash, and only that is fetched again.
 * Whoever fetches holds a lock on the .part file. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "pieces/fetch_int.h"

enum { JOURNAL_MAX = 1 << 29 };

static int fail_sys(struct nk_error *err, const char *path)
{
    bool full = errno == ENOSPC || errno == EDQUOT || errno == EFBIG;

    return nk_fail(err, full ? NK_E_EXHAUSTED : NK_E_DENIED, full ? "no_space" : "cannot_create",
                   "%s: %s", path, strerror(errno));
}

static int first_line(const nk_fetch *f, char *out, size_t size)
{
    return snprintf(out, size, "nakshatra fetch 1 %s %d-%d\n", f->c->id, f->range.begin,
                    f->range.end);
}

static int append(nk_fetch *f, const char *text, size_t n, struct nk_error *err)
{
    ssize_t done = write(f->journal_fd, text, n);

    if (done != (ssize_t)n) {
        if (done >= 0)
            errno = ENOSPC;
        return fail_sys(err, f->journal_path);
    }
    return 0;
}

/* Locks what is at tmp_path, not what was there. */
static int open_locked(nk_fetch *f, int *out, struct nk_error *err)
{
    for (int tries = 0; tries < 100; tries++) {
        int fd = open(f->tmp_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        struct stat mine, there;

        if (fd < 0)
            return fail_sys(err, f->tmp_path);
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            close(fd);
            return nk_fail(err, NK_E_ABORTED, "busy",
                           "%s: another fetch of this slice is under way", f->path);
        }
        if (!fstat(fd, &mine) && !stat(f->tmp_path, &there) && mine.st_ino == there.st_ino &&
            mine.st_dev == there.st_dev) {
            *out = fd;
            return 0;
        }
        close(fd);
    }
    return nk_fail(err, NK_E_ABORTED, "busy", "%s: another fetch of this slice is under way",
                   f->path);
}

static int compare_ints(const void *a, const void *b)
{
    return *(const int *)a < *(const int *)b ? -1 : *(const int *)a > *(const int *)b;
}

/* "PART DIGEST": what cannot be read says nothing. */
static void claim(nk_fetch *f, const char *line, size_t n)
{
    char text[NK_SHA256_HEX + 16], *end;
    const int *found;
    long part;
    int key;

    if (n >= sizeof text)
        return;
    memcpy(text, line, n);
    text[n] = '\0';
    part = strtol(text, &end, 10);
    if (end == text || *end != ' ' || part < 0 || part >= f->c->n_parts ||
        (strcmp(end + 1, "-") != 0 && !nk__is_id(end + 1)))
        return;
    key = (int)part;
    found = bsearch(&key, f->order, (size_t)f->n_order, sizeof *f->order, compare_ints);
    if (found)
        snprintf(f->claims[found - f->order], NK_SHA256_HEX, "%s", end + 1);
}

/* Reads what is there; *size: up to the end of its last whole line, 0 when it is of something
 * else. */
static void read_claims(nk_fetch *f, size_t *size)
{
    struct nk_buf b = NK_BUF_INIT(JOURNAL_MAX);
    char head[128];
    size_t n = (size_t)first_line(f, head, sizeof head);

    *size = 0;
    if (!nk_file_read(f->journal_path, JOURNAL_MAX, &b, NULL) && b.size >= n &&
        !memcmp(b.data, head, n)) {
        const char *at = b.data + n, *end = b.data + b.size, *nl;

        for (; (nl = memchr(at, '\n', (size_t)(end - at))); at = nl + 1)
            claim(f, at, (size_t)(nl - at));
        *size = (size_t)(at - b.data);
    }
    nk_buf_release(&b);
}

int nk__journal_open(nk_fetch *f, int *out, struct nk_error *err)
{
    size_t size;
    char head[128];
    int fd = -1, rc = open_locked(f, &fd, err);

    *out = -1;
    if (rc)
        return rc;
    read_claims(f, &size);
    f->journal_fd = open(f->journal_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (f->journal_fd < 0 || ftruncate(f->journal_fd, (off_t)size) < 0 ||
        (!size && ftruncate(fd, 0) < 0))
        rc = fail_sys(err, f->journal_path);
    if (!rc && !size)
        rc = append(f, head, (size_t)first_line(f, head, sizeof head), err);
    if (rc)
        close(fd);
    else
        *out = fd;
    return rc;
}

int nk__journal_add(nk_fetch *f, int part, const char *digest, struct nk_error *err)
{
    char line[NK_SHA256_HEX + 16];
    int n = snprintf(line, sizeof line, "%d %s\n", part, digest[0] ? digest : "-");

    return append(f, line, (size_t)n, err); /* one write: lines of two threads do not mix */
}

int nk__journal_commit(nk_fetch *f, struct nk_error *err)
{
    char *copy = strdup(f->path);
    int rc = 0, fd;

    if (!copy)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (fsync(f->file->fd) < 0 || rename(f->tmp_path, f->path) < 0)
        rc = fail_sys(err, f->path);
    if (!rc) {
        unlink(f->journal_path);
        fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) {
            fsync(fd);
            close(fd);
        }
    }
    free(copy);
    return rc;
}
