#include "pieces/fetch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include "pieces/fetch_int.h"

const char *nk_fetch_state_text(enum nk_fetch_state s)
{
    static const char *const texts[] = { "starting", "running", "sealing", "done", "failed" };

    return texts[s];
}

const char *nk_fetch_source_state_text(enum nk_fetch_source_state s)
{
    static const char *const texts[] = { "asking", "ready", "paused", "dropped" };

    return texts[s];
}

bool nk__fetch_ended(const nk_fetch *f)
{
    return f->state == NK_FETCH_DONE || f->state == NK_FETCH_FAILED;
}

void nk__fetch_end(nk_fetch *f, int rc, const struct nk_error *err)
{
    if (nk__fetch_ended(f))
        return;
    f->state = rc ? NK_FETCH_FAILED : NK_FETCH_DONE;
    f->rc = rc;
    f->ended_ns = nk_clock_now_ns(f->clock);
    if (rc) {
        f->err = *err;
        snprintf(f->last_error, sizeof f->last_error, "%.255s", err->msg);
    }
    nk__sources_give_up(f, -1);
    pthread_cond_broadcast(&f->changed);
}

/* ---- room ---- */

static uint64_t system_free_bytes(const char *folder, void *user)
{
    struct statvfs v;

    (void)user;
    return statvfs(folder, &v) ? UINT64_MAX : (uint64_t)v.f_bavail * v.f_frsize;
}

/* Free bytes where the slice will be. */
static uint64_t free_bytes(const nk_fetch *f)
{
    char folder[4096];
    char *slash;

    snprintf(folder, sizeof folder, "%s", f->path);
    slash = strrchr(folder, '/');
    if (slash)
        *slash = '\0';
    return f->opts.free_bytes ? f->opts.free_bytes(folder, f->opts.user)
                              : system_free_bytes(folder, NULL);
}

static int no_space(const nk_fetch *f, uint64_t needed, struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_space",
                   "%s: %llu MiB are needed there, and %llu MiB are free; free some, or set "
                   "XDG_CACHE_HOME to a larger file system",
                   f->path, (unsigned long long)((needed >> 20) + 1),
                   (unsigned long long)(free_bytes(f) >> 20));
}

/* What the file will take beyond what it takes already. */
static uint64_t needed_bytes(const nk_fetch *f)
{
    uint64_t needed = f->layout->header.size, n_seal = 4;
    struct stat st;

    for (int i = 0; i < f->layout->n_tensors; i++) {
        needed += f->layout->tensors[i].copy_bytes;
        n_seal += 1 + (f->layout->tensors[i].copy_bytes >> 26);
    }
    needed += n_seal * 200;
    if (!fstat(f->file->fd, &st)) {
        uint64_t there = (uint64_t)st.st_blocks * 512;

        needed = needed > there ? needed - there : 0;
    }
    return needed;
}

/* ---- parts ---- */

/* The mutex is held. */
static void count_done(nk_fetch *f, int part, uint64_t *of_whom)
{
    uint64_t now = nk_clock_now_ns(f->clock), dt;
    uint32_t size = f->c->parts[part].size_bytes;

    f->parts[part] = NK__PART_DONE;
    f->n_left--;
    f->bytes_done += size;
    if (of_whom)
        *of_whom += size;
    f->progress_ns = now;
    if (of_whom == &f->bytes_kept)
        return;
    f->window_bytes += size;
    dt = now - f->window_ns;
    if (dt >= 1000000000u) {
        uint64_t rate = (uint64_t)((double)f->window_bytes * 1e9 / (double)dt);

        f->rate_bps = f->rate_bps ? (f->rate_bps + rate) / 2 : rate;
        f->window_ns = now;
        f->window_bytes = 0;
    }
}

/* The part's bytes are right: into the file, and the journal. No lock. */
static int store(nk_fetch *f, int part, const uint8_t *buf, struct nk_error *err)
{
    bool whole = nk__places_whole(f->file, part);
    char digest[NK_SHA256_HEX] = "";
    int rc = nk__places_write(f->file, part, buf, err);

    if (!rc && !whole)
        rc = nk__places_digest(f->file, part, buf, digest, err);
    if (!rc)
        rc = nk__journal_add(f, part, digest, err);
    if (!rc && whole)
        atomic_store(&f->file->has[part], 1); /* from now on others may have it from here */
    if (rc == NK_E_EXHAUSTED && err && !strcmp(err->reason, "no_space"))
        return no_space(f, needed_bytes(f), err);
    return rc;
}

/* Does the file hold what the journal says? No lock. */
static bool is_kept(nk_fetch *f, int part, const char *claim, uint8_t *buf)
{
    bool whole = nk__places_whole(f->file, part), ok = false;
    char digest[NK_SHA256_HEX];

    if (whole != !strcmp(claim, "-") || nk__places_read(f->file, part, buf, NULL))
        return false;
    if (!whole)
        return !nk__places_digest(f->file, part, buf, digest, NULL) && !strcmp(digest, claim);
    return !nk__part_check(f->c, part, buf, &ok, NULL) && ok;
}

/* A part that the journal claims; false: there is none (left). The mutex is held, but not
 * meanwhile; so it is in the functions below that get `buf`. */
static bool do_claim(nk_fetch *f, uint8_t *buf)
{
    int i = f->next_claim, part;
    bool kept;

    while (i < f->n_order && f->parts[f->order[i]] != NK__PART_CLAIMED)
        i++;
    f->next_claim = i + 1;
    if (i >= f->n_order)
        return false;
    part = f->order[i];
    f->n_claims_busy++;
    pthread_mutex_unlock(&f->mu);
    kept = is_kept(f, part, f->claims[i], buf);
    if (kept && nk__places_whole(f->file, part))
        atomic_store(&f->file->has[part], 1);
    pthread_mutex_lock(&f->mu);
    f->n_claims_busy--;
    if (kept)
        count_done(f, part, &f->bytes_kept);
    else
        f->parts[part] = NK__PART_WANTED;
    pthread_cond_broadcast(&f->changed);
    return true;
}

/* ---- files of this machine ---- */

static bool local_has(const nk_fetch *f, int part)
{
    for (int i = 0; i < f->n_locals; i++)
        if (nk__places_has(f->locals[i].places, part))
            return true;
    return false;
}

/* All claims are looked at: who else has what is missing? */
static void begin_running(nk_fetch *f)
{
    for (int i = 0; i < f->n_order; i++) {
        int part = f->order[i];

        if (f->parts[part] == NK__PART_WANTED && local_has(f, part))
            f->parts[part] = NK__PART_LOCAL;
    }
    f->state = NK_FETCH_RUNNING;
    f->window_ns = f->progress_ns = nk_clock_now_ns(f->clock);
    nk__sources_schedule(f);
    pthread_cond_broadcast(&f->changed);
}

/* A file that does not have one part of a piece as the catalogue wants it has another piece. */
static void forget_piece(const nk_fetch *f, nk__places *p, int part)
{
    const struct nk_piece *piece = &f->c->pieces[f->c->parts[part].piece];

    for (int i = 0; i < piece->n_parts; i++)
        atomic_store(&p->has[piece->first_part + i], 0);
}

static int take_local(nk_fetch *f, int part, uint8_t *buf, struct nk__local **from, bool *stored,
                      struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; i < f->n_locals && !rc; i++) {
        struct nk__local *l = &f->locals[i];
        bool ok = false;

        if (!nk__places_has(l->places, part))
            continue;
        if (!nk__places_read(l->places, part, buf, NULL))
            rc = nk__part_check(f->c, part, buf, &ok, err);
        if (!rc && ok) {
            *from = l;
            *stored = true;
            return store(f, part, buf, err);
        }
        if (!rc)
            forget_piece(f, l->places, part);
    }
    return rc;
}

static bool do_local(nk_fetch *f, uint8_t *buf)
{
    struct nk__local *from = NULL;
    struct nk_error err;
    bool stored = false;
    int part = -1, rc;

    for (int i = f->next_local; i < f->n_order && part < 0; i++) {
        f->next_local = i + 1;
        if (f->parts[f->order[i]] == NK__PART_LOCAL)
            part = f->order[i];
    }
    if (part < 0 || f->state != NK_FETCH_RUNNING)
        return false;
    f->parts[part] = NK__PART_BUSY;
    pthread_mutex_unlock(&f->mu);
    rc = take_local(f, part, buf, &from, &stored, &err);
    pthread_mutex_lock(&f->mu);
    if (rc) {
        nk__fetch_end(f, rc, &err);
    } else if (stored) {
        from->n_bytes += f->c->parts[part].size_bytes;
        count_done(f, part, &f->bytes_local);
    } else {
        f->parts[part] = NK__PART_WANTED;
        nk__sources_schedule(f);
    }
    return true;
}

/* ---- what has arrived ---- */

static bool do_arrived(nk_fetch *f)
{
    struct nk__flight *fl = TAILQ_FIRST(&f->arrived);
    struct nk__source *s;
    struct nk_error err;
    bool ok = false;
    int part, rc;

    if (!fl)
        return false;
    TAILQ_REMOVE(&f->arrived, fl, link);
    s = fl->s;
    part = fl->part;
    pthread_mutex_unlock(&f->mu);
    rc = nk__part_check(f->c, part, fl->data, &ok, &err);
    if (!rc && ok)
        rc = store(f, part, fl->data, &err);
    pthread_mutex_lock(&f->mu);
    nk__flight_free(fl);
    if (rc) {
        nk__fetch_end(f, rc, &err);
    } else if (ok) {
        nk__source_credit(s, f->c->parts[part].size_bytes);
        count_done(f, part, NULL);
        nk__sources_give_up(f, part);
    } else {
        f->parts[part] = NK__PART_WANTED;
        nk__source_drop(s, part);
    }
    nk__sources_schedule(f);
    nk__source_release(s);
    return true;
}

/* ---- the end ---- */

static void seal(nk_fetch *f)
{
    struct nk_error err;
    int rc;

    f->sealing = true;
    f->state = NK_FETCH_SEALING;
    pthread_mutex_unlock(&f->mu);
    rc = nk_slice_layout_seal(f->layout, f->file->fd, &f->cancelled, &err);
    if (rc == NK_E_EXHAUSTED && !strcmp(err.reason, "no_space"))
        rc = no_space(f, needed_bytes(f), &err);
    if (!rc)
        rc = nk__journal_commit(f, &err);
    pthread_mutex_lock(&f->mu);
    nk__fetch_end(f, rc, &err);
}

static void tell(nk_fetch *f)
{
    uint64_t now = nk_clock_now_ns(f->clock);

    if (!f->opts.changed || now - f->told_ns < (uint64_t)NK__CHANGED_MS * 1000000u)
        return;
    f->told_ns = now;
    pthread_mutex_unlock(&f->mu);
    f->opts.changed(f, f->opts.user);
    pthread_mutex_lock(&f->mu);
}

/* Until something happens, or is due. */
static void wait_for_more(nk_fetch *f)
{
    uint64_t next, now;
    struct nk_error err;

    nk__sources_tick(f, &next);
    if (f->opts.give_up_ms && f->state == NK_FETCH_RUNNING && !f->n_claims_busy) {
        uint64_t at = f->progress_ns + (uint64_t)f->opts.give_up_ms * 1000000u;

        now = nk_clock_now_ns(f->clock);
        if (now >= at) {
            nk__fetch_end(f,
                          nk_fail(&err, NK_E_UNAVAILABLE, "no_source",
                                  "%s: nothing came for %u s from %d sources%s%.200s", f->path,
                                  f->opts.give_up_ms / 1000, f->n_sources,
                                  f->last_error[0] ? "; " : "", f->last_error),
                          &err);
            return;
        }
        next = at < next ? at : next;
    }
    /* What was due has run, and may have made work. */
    if (!TAILQ_EMPTY(&f->arrived) || nk__fetch_ended(f))
        return;
    if (next == UINT64_MAX)
        pthread_cond_wait(&f->changed, &f->mu);
    else
        nk_clock_wait_until(f->clock, &f->changed, &f->mu, next);
}

static void *work(void *arg)
{
    nk_fetch *f = arg;
    uint8_t *buf = malloc(NK_PART_BYTES);
    struct nk_error err;

    pthread_mutex_lock(&f->mu);
    if (!buf)
        nk__fetch_end(f, nk_fail(&err, NK_E_EXHAUSTED, "no_memory", "no memory"), &err);
    while (!nk__fetch_ended(f)) {
        if (atomic_load(&f->cancelled) && !f->sealing) {
            nk__fetch_end(f, nk_fail(&err, NK_E_CANCELLED, "cancelled", "cancelled"), &err);
            break;
        }
        tell(f);
        if (f->state == NK_FETCH_STARTING && do_claim(f, buf))
            continue;
        if (f->state == NK_FETCH_STARTING && !f->n_claims_busy)
            begin_running(f);
        if (do_arrived(f) || do_local(f, buf))
            continue;
        if (f->state == NK_FETCH_RUNNING && !f->n_left)
            seal(f);
        else if (!nk__fetch_ended(f))
            wait_for_more(f);
    }
    if (f->opts.changed && !f->told_end) {
        f->told_end = true;
        pthread_mutex_unlock(&f->mu);
        f->opts.changed(f, f->opts.user);
        pthread_mutex_lock(&f->mu);
    }
    pthread_mutex_unlock(&f->mu);
    free(buf);
    return NULL;
}

/* ---- life ---- */

static int make_paths(nk_fetch *f, struct nk_error *err)
{
    struct nk_buf tmp = NK_BUF_INIT(8192), journal = NK_BUF_INIT(8192);
    const char *slash;
    int rc = nk_slice_cache_path(f->c->model, f->range, &f->path, err);

    if (rc)
        return rc;
    slash = strrchr(f->path, '/');
    rc = nk_buf_addf(&tmp, err, "%.*s/.%s.part", (int)(slash - f->path), f->path, slash + 1);
    if (!rc)
        rc = nk_buf_addf(&journal, err, "%.*s/.%s.journal", (int)(slash - f->path), f->path,
                         slash + 1);
    f->tmp_path = nk_buf_take(&tmp, NULL);
    f->journal_path = nk_buf_take(&journal, NULL);
    return rc;
}

/* What the slice needs, and what of it an earlier run left. */
static int list_parts(nk_fetch *f, struct nk_error *err)
{
    size_t n = (size_t)f->c->n_parts + 1;
    uint64_t *wants = nk__layout_wants(f->c, f->layout);

    f->parts = calloc(n, 1);
    f->part_flights = calloc(n, 1);
    f->order = calloc(n, sizeof *f->order);
    if (wants && f->parts && f->part_flights && f->order)
        for (int i = 0; i < f->c->n_parts; i++)
            if (nk__part_is_wanted(f->c, i, wants)) {
                f->order[f->n_order++] = i;
                f->parts[i] = NK__PART_WANTED;
                f->bytes_total += f->c->parts[i].size_bytes;
            }
    f->n_left = f->n_order;
    f->claims = calloc((size_t)f->n_order + 1, sizeof *f->claims);
    free(wants);
    return f->parts && f->part_flights && f->order && f->claims
               ? 0
               : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

static int open_file(nk_fetch *f, struct nk_error *err)
{
    uint64_t needed;
    int fd, rc = nk__journal_open(f, &fd, err);

    if (!rc)
        rc = nk__places_of_slice(&f->file, f->c, f->layout, fd, f->tmp_path, false, err);
    if (rc)
        return rc;
    needed = needed_bytes(f);
    if (needed > free_bytes(f))
        return no_space(f, needed, err);
    for (int i = 0; i < f->n_order; i++)
        if (f->claims[i][0])
            f->parts[f->order[i]] = NK__PART_CLAIMED;
    /* Its length, too: it may end in a hole. */
    if (ftruncate(fd, (off_t)f->layout->seal_at) < 0 ||
        pwrite(fd, f->layout->header.data, f->layout->header.size, 0) !=
            (ssize_t)f->layout->header.size) {
        if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
            return no_space(f, needed, err);
        return nk_fail(err, NK_E_DATA_LOSS, "write_failed", "%s: %s", f->tmp_path, strerror(errno));
    }
    return 0;
}

static void find_locals(nk_fetch *f, const struct nk_fetch_opts *opts)
{
    nk__places *found[NK__LOCALS_MAX];
    char folder[4096];
    int n;

    snprintf(folder, sizeof folder, "%s", f->path);
    *strrchr(folder, '/') = '\0';
    n = nk__places_find(found, NK__LOCALS_MAX, f->c, folder, f->path);
    for (int i = 0; i < opts->n_folders; i++)
        n += nk__places_find(found + n, NK__LOCALS_MAX - n, f->c, opts->folders[i], f->path);
    for (int i = 0; i < n; i++)
        f->locals[f->n_locals++] = (struct nk__local){ .places = found[i] };
}

static void release(nk_fetch *f)
{
    nk__sources_free(f);
    for (int i = 0; i < f->n_locals; i++)
        nk__places_unref(f->locals[i].places);
    for (int i = 0; i < f->n_buffers; i++)
        free(f->buffers[i]);
    /* Whoever serves from the file keeps it open, and the lock would live as long. */
    if (f->file)
        flock(f->file->fd, LOCK_UN);
    nk__places_unref(f->file);
    if (f->journal_fd >= 0)
        close(f->journal_fd);
    nk_slice_layout_free(f->layout);
    free(f->path);
    free(f->tmp_path);
    free(f->journal_path);
    free(f->parts);
    free(f->part_flights);
    free(f->order);
    free(f->claims);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->mu);
    nk_catalogue_unref(f->c);
    free(f);
}

static void set_options(nk_fetch *f, const struct nk_fetch_opts *opts)
{
    f->opts = *opts;
    f->opts.folders = NULL;
    if (opts->credentials)
        f->credentials = *opts->credentials;
    f->clock = opts->clock ? opts->clock : nk_clock_system();
    if (f->opts.parts_max <= 0)
        f->opts.parts_max = 16;
    if (f->opts.source_parts_max <= 0)
        f->opts.source_parts_max = 3;
    if (!f->opts.part_ms)
        f->opts.part_ms = 30000;
}

/* The slice is there; or everything that is needed to fetch it. */
static int prepare(nk_fetch *f, const struct nk_fetch_opts *opts, bool *there, struct nk_error *err)
{
    char *found;
    int rc = nk_slice_layout_new(&f->layout, f->c->model, f->range, err);

    *there = false;
    if (!rc)
        rc = make_paths(f, err);
    if (!rc)
        rc = list_parts(f, err);
    if (!rc)
        rc = nk_slice_cache_find(f->c->model, f->range, NK_VERIFY_ONCE, &found, err);
    if (!rc && found) {
        free(found);
        *there = true;
        f->state = NK_FETCH_DONE;
        f->n_left = 0;
        f->bytes_done = f->bytes_kept = f->bytes_total;
        return 0;
    }
    if (!rc)
        rc = open_file(f, err);
    if (!rc)
        find_locals(f, opts);
    return rc;
}

int nk_fetch_start(nk_fetch **out, nk_catalogue *c, struct nk_range range,
                   const struct nk_fetch_opts *opts, struct nk_error *err)
{
    nk_fetch *f = calloc(1, sizeof *f);
    bool there;
    int rc;

    *out = NULL;
    if (!f)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    f->c = nk_catalogue_ref(c);
    f->range = range;
    f->journal_fd = -1;
    pthread_mutex_init(&f->mu, NULL);
    nk_cond_init(&f->changed);
    TAILQ_INIT(&f->flights);
    TAILQ_INIT(&f->arrived);
    set_options(f, opts);
    f->began_ns = f->ended_ns = f->progress_ns = nk_clock_now_ns(f->clock);
    rc = prepare(f, opts, &there, err);
    while (!rc && !there && f->n_threads < NK__FETCH_THREADS &&
           !nk_thread_start(&f->threads[f->n_threads], work, f))
        f->n_threads++;
    if (!rc && !there && !f->n_threads)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_thread", "no thread to fetch with");
    if (rc)
        release(f);
    else
        *out = f;
    return rc;
}

void nk_fetch_cancel(nk_fetch *f)
{
    atomic_store(&f->cancelled, true);
    pthread_mutex_lock(&f->mu);
    pthread_cond_broadcast(&f->changed);
    pthread_mutex_unlock(&f->mu);
}

int nk_fetch_wait(nk_fetch *f, char **path, struct nk_error *err)
{
    int rc;

    *path = NULL;
    pthread_mutex_lock(&f->mu);
    while (!nk__fetch_ended(f))
        pthread_cond_wait(&f->changed, &f->mu);
    rc = f->rc;
    if (rc && err)
        *err = f->err;
    pthread_mutex_unlock(&f->mu);
    if (!rc && !(*path = strdup(f->path)))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    return rc;
}

void nk_fetch_free(nk_fetch *f)
{
    struct nk__flight *fl;

    if (!f)
        return;
    nk_fetch_cancel(f);
    for (int i = 0; i < f->n_threads; i++)
        pthread_join(f->threads[i], NULL);
    pthread_mutex_lock(&f->mu);
    nk__sources_stop(f);
    while ((fl = TAILQ_FIRST(&f->arrived))) {
        struct nk__source *s = fl->s;

        TAILQ_REMOVE(&f->arrived, fl, link);
        nk__flight_free(fl);
        nk__source_release(s);
    }
    while (f->n_calls)
        pthread_cond_wait(&f->changed, &f->mu);
    pthread_mutex_unlock(&f->mu);
    release(f);
}

/* ---- progress ---- */

static void add_source(struct nk_fetch_progress *out, const struct nk__source *s, uint64_t now)
{
    struct nk_fetch_source *o = &out->sources[out->n_sources++];
    uint64_t busy = s->busy_ns + (s->n_flights ? now - s->busy_since_ns : 0);

    snprintf(o->name, sizeof o->name, "%s", s->name);
    o->state = s->state;
    o->bytes = s->n_bytes;
    o->rate_bps = busy ? (uint64_t)((double)s->n_bytes * 1e9 / (double)busy) : 0;
    o->parts_in_flight = s->n_flights;
}

void nk_fetch_progress(nk_fetch *f, struct nk_fetch_progress *out)
{
    uint64_t now = nk_clock_now_ns(f->clock), end;
    const struct nk__source *s;

    memset(out, 0, sizeof *out);
    pthread_mutex_lock(&f->mu);
    end = nk__fetch_ended(f) ? f->ended_ns : now;
    out->state = f->state;
    out->bytes_total = f->bytes_total;
    out->bytes_done = f->bytes_done;
    out->bytes_kept = f->bytes_kept;
    out->bytes_local = f->bytes_local;
    out->running_ms = (end - f->began_ns) / 1000000u;
    out->rate_bps = f->rate_bps;
    if (end - f->window_ns >= 3000000000u) /* nothing was counted for a while */
        out->rate_bps = (uint64_t)((double)f->window_bytes * 1e9 / (double)(end - f->window_ns));
    memcpy(out->last_error, f->last_error, sizeof out->last_error);
    memcpy(out->dropped, f->dropped, sizeof out->dropped);
    LIST_FOREACH(s, &f->sources, link)
    {
        if (!s->removed && out->n_sources < NK_FETCH_SOURCES_MAX)
            add_source(out, s, now);
    }
    for (int i = 0; i < f->n_locals && out->n_sources < NK_FETCH_SOURCES_MAX; i++) {
        struct nk_fetch_source *o = &out->sources[out->n_sources++];
        const char *path = f->locals[i].places->path;
        size_t n = strlen(path);

        snprintf(o->name, sizeof o->name, "%.127s",
                 n < sizeof o->name ? path : path + n - sizeof o->name + 1);
        o->is_file = true;
        o->state = NK_SOURCE_READY;
        o->bytes = f->locals[i].n_bytes;
    }
    pthread_mutex_unlock(&f->mu);
}
