#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a failed system call on a path means for the caller. */
static int fail_sys(struct nk_error *err, const char *path, const char *doing, const char *reason)
{
    int e = errno;

    if (e == ENOSPC || e == EDQUOT || e == EFBIG)
        return nk_fail(err, NK_E_EXHAUSTED, "no_space", "%s: %s: %s", path, doing, strerror(e));
    return nk_fail(err, e == ENOENT ? NK_E_NOT_FOUND : NK_E_DENIED, reason, "%s: %s: %s", path,
                   doing, strerror(e));
}

int nk_dir_make(const char *path, struct nk_error *err)
{
    char *p = strdup(path);
    int rc = 0;

    if (!p)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (char *s = p + 1;; s++) {
        char c = *s;

        if (c != '/' && c != '\0')
            continue;
        *s = '\0';
        if (mkdir(p, 0777) < 0 && errno != EEXIST && errno != EISDIR) {
            rc = fail_sys(err, p, "making the folder", "cannot_create");
            break;
        }
        *s = c;
        if (!c)
            break;
    }
    if (!rc) {
        struct stat st;

        if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)) {
            errno = ENOTDIR;
            rc = fail_sys(err, path, "making the folder", "cannot_create");
        }
    }
    free(p);
    return rc;
}

int nk_cache_dir(char **path, const char *sub, struct nk_error *err)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct nk_buf b = NK_BUF_INIT(8192);
    int rc;

    *path = NULL;
    if (xdg && xdg[0] == '/')
        rc = nk_buf_addf(&b, err, "%s/nakshatra", xdg);
    else if (home && home[0] == '/')
        rc = nk_buf_addf(&b, err, "%s/.cache/nakshatra", home);
    else
        return nk_fail(err, NK_E_PRECONDITION, "no_home",
                       "neither XDG_CACHE_HOME nor HOME is set to a full path");
    if (!rc && sub)
        rc = nk_buf_addf(&b, err, "/%s", sub);
    if (!rc)
        rc = nk_dir_make(b.data, err);
    if (!rc)
        *path = nk_buf_take(&b, NULL);
    nk_buf_release(&b);
    return rc;
}

/* Returns the descriptor of a regular file, or the (negative) error. */
static int open_regular(const char *path, struct stat *st, struct nk_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc; /* NONBLOCK: nor hang on a FIFO */

    if (fd < 0)
        return fail_sys(err, path, "opening", "no_file");
    if (fstat(fd, st) < 0)
        rc = fail_sys(err, path, "opening", "no_file");
    else if (!S_ISREG(st->st_mode))
        rc = nk_fail(err, NK_E_INVALID, "not_a_file", "%s is %s; a regular file is needed", path,
                     S_ISDIR(st->st_mode)    ? "a folder"
                     : S_ISFIFO(st->st_mode) ? "a pipe"
                     : S_ISSOCK(st->st_mode) ? "a socket"
                                             : "a device");
    else
        return fd;
    close(fd);
    return rc;
}

int nk_file_check(const char *path, struct nk_error *err)
{
    struct stat st;
    int fd = open_regular(path, &st, err);

    if (fd < 0)
        return fd;
    close(fd);
    return 0;
}

static int check_secret(const char *path, const struct stat *st, struct nk_error *err)
{
    bool everybody = st->st_mode & (S_IROTH | S_IWOTH);
    bool group = (st->st_mode & (S_IRGRP | S_IWGRP)) && st->st_uid == geteuid();

    if (!everybody && !group)
        return 0;
    return nk_fail(err, NK_E_DENIED, "open_to_others",
                   "%s holds keys, but %s may read or write it (mode %04o); its owner alone may: "
                   "chmod 600",
                   path, everybody ? "everybody on this machine" : "its group",
                   (unsigned)(st->st_mode & 07777));
}

static int read_file(const char *path, bool secret, size_t max, struct nk_buf *out,
                     struct nk_error *err)
{
    struct stat st;
    int fd = open_regular(path, &st, err), rc = 0;

    if (fd < 0)
        return fd;
    nk_buf_init(out, max);
    if (secret)
        rc = check_secret(path, &st, err);
    while (!rc) {
        char chunk[65536];
        ssize_t n = read(fd, chunk, sizeof chunk);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = nk_fail(err, NK_E_DATA_LOSS, "read_failed", "%s: %s", path, strerror(errno));
        if (n <= 0)
            break;
        rc = nk_buf_add(out, chunk, (size_t)n, err);
        if (rc)
            nk_wrap(rc, err, "%s", path);
        if (secret)
            explicit_bzero(chunk, sizeof chunk);
    }
    if (rc)
        nk_buf_release(out);
    close(fd);
    return rc;
}

int nk_file_read(const char *path, size_t max, struct nk_buf *out, struct nk_error *err)
{
    return read_file(path, false, max, out, err);
}

int nk_file_read_secret(const char *path, size_t max, struct nk_buf *out, struct nk_error *err)
{
    return read_file(path, true, max, out, err);
}

/* Removes what a run that was killed left of this file: ".NAME.PID.tmp" of a process that is no
 * more. */
static void remove_stale(const char *dir, const char *base)
{
    DIR *d = opendir(dir);
    size_t n = strlen(base);
    struct dirent *e;

    while (d && (e = readdir(d))) {
        char *end;
        long pid;

        if (e->d_name[0] != '.' || strncmp(e->d_name + 1, base, n) != 0 || e->d_name[1 + n] != '.')
            continue;
        pid = strtol(e->d_name + 2 + n, &end, 10);
        if (pid > 0 && !strcmp(end, ".tmp") && kill((pid_t)pid, 0) < 0 && errno == ESRCH)
            unlinkat(dirfd(d), e->d_name, 0);
    }
    if (d)
        closedir(d);
}

int nk_newfile_open(struct nk_newfile *f, const char *path, struct nk_error *err)
{
    char *dir_copy = strdup(path), *base_copy = strdup(path);
    const char *dir, *base;
    struct nk_buf tmp = NK_BUF_INIT(16384);
    int rc;

    *f = (struct nk_newfile)NK_NEWFILE_INIT;
    if (!dir_copy || !base_copy) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    dir = dirname(dir_copy);
    base = basename(base_copy);
    remove_stale(dir, base);
    rc = nk_buf_addf(&tmp, err, "%s/.%s.%ld.tmp", dir, base, (long)getpid());
    if (rc)
        goto out;
    f->fd = open(tmp.data, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) {
        rc = fail_sys(err, path, "creating", "cannot_create");
        goto out;
    }
    f->tmp_path = nk_buf_take(&tmp, NULL);
    f->path = strdup(path);
    if (!f->path || !f->tmp_path) {
        nk_newfile_abort(f);
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
out:
    nk_buf_release(&tmp);
    free(dir_copy);
    free(base_copy);
    return rc;
}

int nk_newfile_write(struct nk_newfile *f, const void *data, size_t size, struct nk_error *err)
{
    const char *p = data;

    while (size) {
        ssize_t n = write(f->fd, p, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_sys(err, f->path, "writing", "write_failed");
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

int nk_newfile_commit(struct nk_newfile *f, struct nk_error *err)
{
    char *dir_copy = strdup(f->path);
    int rc = 0, fd;

    if (!dir_copy) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        goto out;
    }
    if (fsync(f->fd) < 0) {
        rc = fail_sys(err, f->path, "writing", "write_failed");
        goto out;
    }
    if (close(f->fd) < 0) {
        f->fd = -1;
        rc = fail_sys(err, f->path, "closing", "write_failed");
        goto out;
    }
    f->fd = -1;
    if (rename(f->tmp_path, f->path) < 0) {
        rc = fail_sys(err, f->path, "renaming into place", "cannot_create");
        goto out;
    }
    free(f->tmp_path);
    f->tmp_path = NULL;
    /* Without this the rename may be lost in a crash; a folder that cannot be synced is no reason
     * to fail. */
    fd = open(dirname(dir_copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
out:
    free(dir_copy);
    nk_newfile_abort(f);
    return rc;
}

void nk_newfile_abort(struct nk_newfile *f)
{
    if (f->fd >= 0)
        close(f->fd);
    if (f->tmp_path)
        unlink(f->tmp_path);
    free(f->tmp_path);
    free(f->path);
    *f = (struct nk_newfile)NK_NEWFILE_INIT;
}

int nk_file_write(const char *path, const void *data, size_t size, struct nk_error *err)
{
    struct nk_newfile f;
    int rc = nk_newfile_open(&f, path, err);

    if (rc)
        return rc;
    rc = nk_newfile_write(&f, data, size, err);
    if (!rc)
        rc = nk_newfile_commit(&f, err);
    nk_newfile_abort(&f);
    return rc;
}

/* ---- the same file as before? ---- */

static struct nk_file_id id_of(const struct stat *st)
{
    return (struct nk_file_id){ .dev = st->st_dev,
                                .ino = st->st_ino,
                                .size_bytes = (uint64_t)st->st_size,
                                .mtime_s = st->st_mtim.tv_sec,
                                .mtime_ns = st->st_mtim.tv_nsec,
                                .ctime_s = st->st_ctim.tv_sec,
                                .ctime_ns = st->st_ctim.tv_nsec };
}

int nk_file_id_get(struct nk_file_id *id, int fd)
{
    struct stat st;

    if (fstat(fd, &st) < 0)
        return errno;
    *id = id_of(&st);
    return 0;
}

int nk_file_watch_open(struct nk_file_watch *w, const char *path, struct nk_error *err)
{
    *w = (struct nk_file_watch)NK_FILE_WATCH_INIT;
    w->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* NONBLOCK: a FIFO must not hang us */
    if (w->fd < 0)
        return fail_sys(err, path, "opening", "no_file");
    errno = nk_file_id_get(&w->id, w->fd);
    if (errno) {
        int rc = fail_sys(err, path, "opening", "no_file");

        nk_file_watch_close(w);
        return rc;
    }
    return 0;
}

void nk_file_watch_close(struct nk_file_watch *w)
{
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

bool nk_file_watch_written(const struct nk_file_watch *w)
{
    struct nk_file_id now;

    return w->fd >= 0 && (nk_file_id_get(&now, w->fd) || now.size_bytes != w->id.size_bytes ||
                          now.mtime_s != w->id.mtime_s || now.mtime_ns != w->id.mtime_ns);
}

bool nk_file_watch_is_at(const struct nk_file_watch *w, const char *path)
{
    struct stat st;

    return !stat(path, &st) && st.st_dev == w->id.dev && st.st_ino == w->id.ino;
}
