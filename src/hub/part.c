/* What lies on the disk of a file: what is known of it, and the part that is there. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <jansson.h>

#include "base/args.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/file.h"
#include "hub/get_int.h"

enum {
    STATE_MAX = 16384,
    LINE_EVERY_S = 10,    /* between lines of progress */
    HASH_BYTES = 1 << 20, /* of what is there, at a time */
};

/* A failed system call. */
int nk__hub_fail_sys(struct nk_error *err, const char *path, const char *doing)
{
    int e = errno;

    if (e == ENOSPC || e == EDQUOT || e == EFBIG)
        return nk_fail(err, NK_E_EXHAUSTED, "no_space",
                       "%s: %s: %s; what has come so far is kept, and it goes on from there when "
                       "there is room",
                       path, doing, strerror(e));
    return nk_fail(err, NK_E_DENIED, "cannot_create", "%s: %s: %s", path, doing, strerror(e));
}
/* ---- what is known of a file ---- */

static bool get_text(const json_t *o, const char *key, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(o, key));

    if (!text || strlen(text) >= size)
        return false;
    strcpy(out, text);
    return true;
}

/* False: there is none, or it is nothing that this program wrote. */
bool nk__hub_state_read(struct nk__hub_state *s, const char *path)
{
    struct nk_buf b = NK_BUF_INIT(STATE_MAX);
    bool ok = false;

    *s = (struct nk__hub_state){ 0 };
    if (!nk_file_read(path, STATE_MAX, &b, NULL)) {
        json_t *o = json_loadb(nk_buf_str(&b), b.size, 0, NULL);
        json_int_t size = json_integer_value(json_object_get(o, "size"));

        ok = size > 0 && size <= NK__HUB_SIZE_MAX && get_text(o, "etag", s->etag, sizeof s->etag) &&
             get_text(o, "linked_etag", s->linked_etag, sizeof s->linked_etag) &&
             get_text(o, "sha256", s->sha256, sizeof s->sha256);
        s->size = ok ? (uint64_t)size : 0;
        /* Earlier versions wrote none. */
        get_text(o, "commit", s->commit, sizeof s->commit);
        json_decref(o);
    }
    nk_buf_release(&b);
    /* Tags are sent again: not what somebody else has put there. */
    if (ok) {
        struct nk__hub_head h;
        char line[300];

        nk__hub_head_init(&h);
        snprintf(line, sizeof line, "etag: %s", s->etag);
        nk__hub_head_add(&h, line, strlen(line));
        snprintf(s->etag, sizeof s->etag, "%s", h.etag);
    }
    return ok;
}

int nk__hub_state_write(const struct nk__hub_file *g, const struct nk__hub_state *s,
                        const char *path, struct nk_error *err)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I}", "source", g->source.shown, "etag",
                          s->etag, "linked_etag", s->linked_etag, "sha256", s->sha256, "commit",
                          s->commit, "size", (json_int_t)s->size);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    int rc = text ? nk_file_write(path, text, strlen(text), err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    free(text);
    json_decref(o);
    return rc;
}

/* ---- progress ---- */

void nk__hub_progress_start(struct nk__hub_file *g)
{
    char a[24], b[24];

    g->began_ns = g->line_ns = nk_clock_now_ns(g->opts->clock);
    g->began_at = g->at;
    if (!g->told) {
        if (g->at)
            nk__hub_say(g, "%s: downloading the rest of %s (%s of it are here)", g->source.shown,
                        nk_size_format(a, g->part.size), nk_size_format(b, g->at));
        else
            nk__hub_say(g, "%s: downloading %s", g->source.shown, nk_size_format(a, g->part.size));
    }
    g->told = true;
    if (!g->opts->bar)
        return;
    nk_progress_start(&g->bar, g->source.name, g->part.size);
    g->bar.done_bytes = g->bar.earlier_bytes = g->at;
    g->bar_on = true;
}

void nk__hub_progress_stop(struct nk__hub_file *g)
{
    if (g->bar_on)
        nk_progress_end(&g->bar);
    g->bar_on = false;
}

static void progress_add(struct nk__hub_file *g, size_t bytes)
{
    uint64_t now = nk_clock_now_ns(g->opts->clock);
    char done[24], total[24], rate_text[24];
    double rate;

    if (g->bar_on)
        nk_progress_add(&g->bar, bytes);
    if ((g->bar_on && g->bar.tty) || now - g->line_ns < LINE_EVERY_S * UINT64_C(1000000000))
        return;
    g->line_ns = now;
    rate = (double)(g->at - g->began_at) / ((double)(now - g->began_ns) / 1e9);
    nk__hub_say(g, "%s: %s of %s, %s/s, %.0f s left", g->source.name, nk_size_format(done, g->at),
                nk_size_format(total, g->part.size), nk_size_format(rate_text, (uint64_t)rate),
                rate > 0 ? (double)(g->part.size - g->at) / rate : 0);
}

/* ---- the partial file ---- */

void nk__hub_part_forget(struct nk__hub_file *g)
{
    if (g->fd >= 0)
        close(g->fd);
    g->fd = -1;
    g->at = 0;
    nk_sha256_free(g->sha);
    g->sha = NULL;
    g->part = (struct nk__hub_state){ 0 };
}

void nk__hub_part_remove(struct nk__hub_file *g)
{
    nk__hub_part_forget(g);
    unlink(g->part_path);
    unlink(g->part_state_path);
}

static int sha_start(struct nk__hub_file *g, struct nk_error *err)
{
    nk_sha256_free(g->sha);
    g->sha = NULL;
    if (!g->part.sha256[0])
        return 0;
    g->sha = nk_sha256_new();
    return g->sha ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

/* Hashes what an earlier run has left. */
static int sha_catch_up(struct nk__hub_file *g, struct nk_error *err)
{
    uint64_t at = 0;
    char *chunk;
    int rc = sha_start(g, err);

    if (rc || !g->sha)
        return rc;
    chunk = malloc(HASH_BYTES);
    if (!chunk)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    while (!rc && at < g->at) {
        size_t want = g->at - at < HASH_BYTES ? (size_t)(g->at - at) : HASH_BYTES;
        ssize_t n = pread(g->fd, chunk, want, (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            rc = nk_fail(err, NK_E_DATA_LOSS, "read_failed", "%s: reading: %s", g->part_path,
                         n ? strerror(errno) : "it ends too soon");
            break;
        }
        nk_sha256_add(g->sha, chunk, (size_t)n);
        at += (uint64_t)n;
        rc = nk__hub_alive(g, err);
    }
    free(chunk);
    return rc;
}

bool nk__hub_can_resume(const struct nk__hub_state *s)
{
    return nk__hub_etag_is_strong(s->etag) || s->sha256[0];
}

int nk__hub_part_open(struct nk__hub_file *g, struct nk_error *err)
{
    struct stat st;
    int rc;

    if (!nk__hub_state_read(&g->part, g->part_state_path) || !nk__hub_can_resume(&g->part)) {
        nk__hub_part_remove(g);
        return 0;
    }
    g->fd = open(g->part_path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (g->fd < 0 || fstat(g->fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < NK__HUB_MAGIC ||
        (uint64_t)st.st_size > g->part.size) {
        nk__hub_part_remove(g);
        return 0;
    }
    g->at = (uint64_t)st.st_size;
    rc = sha_catch_up(g, err);
    if (rc != NK_E_DATA_LOSS)
        return rc;
    nk__hub_part_remove(g); /* it cannot be read back: not to be stumbled over every time */
    return 0;
}

int nk__hub_part_begin(struct nk__hub_file *g, uint64_t size, struct nk_error *err)
{
    struct statvfs fs;
    char a[24], b[24];
    int rc;

    nk__hub_part_remove(g);
    g->part.size = size;
    snprintf(g->part.etag, sizeof g->part.etag, "%s", g->head.etag);
    snprintf(g->part.linked_etag, sizeof g->part.linked_etag, "%s", g->linked_etag);
    snprintf(g->part.commit, sizeof g->part.commit, "%s", g->commit);
    nk__hub_etag_sha256(g->part.sha256, g->linked_etag);
    if (!statvfs(g->lock_path, &fs) && size > (uint64_t)fs.f_bavail * fs.f_frsize)
        return nk_fail(err, NK_E_EXHAUSTED, "no_space",
                       "%s has %s; %s are free where it would lie, %s (XDG_CACHE_HOME names "
                       "another folder)",
                       g->source.shown, nk_size_format(a, size),
                       nk_size_format(b, (uint64_t)fs.f_bavail * fs.f_frsize), g->path);
    g->fd = open(g->part_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (g->fd < 0)
        return nk__hub_fail_sys(err, g->part_path, "creating");
    rc = nk__hub_state_write(g, &g->part, g->part_state_path, err);
    return rc ? rc : sha_start(g, err);
}

int nk__hub_part_write(struct nk__hub_file *g, const char *data, size_t size, struct nk_error *err)
{
    if (size > g->part.size - g->at) {
        unsigned long long announced = g->part.size;

        nk__hub_part_remove(g);
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s sends more than the %llu bytes that it announced", g->source.shown,
                       announced);
    }
    while (size) {
        ssize_t n = pwrite(g->fd, data, size, (off_t)g->at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return nk__hub_fail_sys(err, g->part_path, "writing");
        if (g->sha)
            nk_sha256_add(g->sha, data, (size_t)n);
        g->at += (uint64_t)n;
        data += n;
        size -= (size_t)n;
        progress_add(g, (size_t)n);
    }
    return 0;
}

int nk__hub_part_end(struct nk__hub_file *g, struct nk_error *err)
{
    char hex[NK_SHA256_HEX], *slash;
    struct nk__hub_state done = g->part;
    int rc = 0, dir;

    nk__hub_progress_stop(g);
    if (g->sha) {
        nk_sha256_finish(g->sha, hex);
        g->sha = NULL;
        if (strcmp(hex, g->part.sha256) != 0) {
            rc = nk_fail(err, NK_E_DATA_LOSS, "wrong_sha256",
                         "%s: what came has SHA-256 %s, the hub says %s; it was removed",
                         g->source.shown, hex, g->part.sha256);
            nk__hub_part_remove(g);
            return rc;
        }
    }
    if (fsync(g->fd) < 0)
        return nk__hub_fail_sys(err, g->part_path, "writing");
    if (rename(g->part_path, g->path) < 0)
        return nk__hub_fail_sys(err, g->path, "renaming into place");
    slash = strrchr(g->path, '/');
    *slash = '\0';
    dir = open(g->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *slash = '/';
    if (dir >= 0) { /* or a crash could lose the rename */
        fsync(dir);
        close(dir);
    }
    rc = nk__hub_state_write(g, &done, g->state_path, err);
    g->have = done;
    nk__hub_part_forget(g);
    unlink(g->part_state_path);
    if (!rc)
        nk__hub_say(g, "%s: is in %s", g->source.shown, g->path);
    return rc;
}
