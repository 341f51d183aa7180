/* One file after the other: its lock, what is there already, and tries until it is here. */
#include "hub/hub.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/visible.h"
#include "hub/get_int.h"

enum {
    WAIT_MS = 100,        /* between two looks at a lock, or at `interrupted` */
    SMALL_STEP = 1 << 20, /* a try that brought less counts as one that failed */
    BUSY_STALLS = 5,      /* stall_s until another process counts as stuck */
};

void nk__hub_say(struct nk__hub_file *g, const char *fmt, ...)
{
    char text[1024], line[1024];
    va_list ap;

    if (!g->opts->say)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (g->bar_on)
        nk_progress_end(&g->bar); /* off the line; it is drawn again below it */
    g->opts->say(g->opts->arg, nk_visible_line(line, sizeof line, text));
}

int nk__hub_alive(struct nk__hub_file *g, struct nk_error *err)
{
    uint64_t now = nk_clock_now_ns(g->opts->clock);

    if (g->opts->interrupted && g->opts->interrupted(g->opts->arg))
        return nk_fail(err, NK_E_CANCELLED, "interrupted", "%s: interrupted", g->source.shown);
    if (g->lock_fd >= 0 && now - g->touched_ns >= 1000000000) {
        g->touched_ns = now;
        futimens(g->lock_fd, NULL); /* others that wait see that this one goes on */
    }
    return 0;
}

static int pause_ms(struct nk__hub_file *g, int ms, struct nk_error *err)
{
    int rc = 0;

    while (!rc && ms > 0) {
        int step = ms < WAIT_MS ? ms : WAIT_MS;

        nk_sleep_ms((unsigned)step);
        ms -= step;
        rc = nk__hub_alive(g, err);
    }
    return rc;
}

/* ---- tries ---- */

/* Milliseconds until the next try: what the server asks for, if that is longer, up to a ceiling. */
static int next_pause(const struct nk__hub_file *g, int ms)
{
    int64_t asked_s = g->head.retry_after_s, max_ms = g->opts->pause_ms_max;

    if (asked_s > max_ms / 1000)
        return (int)max_ms;
    return asked_s * 1000 > ms ? (int)(asked_s * 1000) : ms;
}

static int get_all(struct nk__hub_file *g, struct nk_error *err)
{
    const struct nk_hub_opts *o = g->opts;
    bool from_start = false;
    int failed = 0, rc = nk__hub_part_open(g, err), pause = o->pause_ms;

    if (!rc && g->fd >= 0 && g->at == g->part.size)
        return nk__hub_part_end(g, err);
    while (!rc) {
        uint64_t before = g->at;
        struct nk_error e;
        bool again;

        rc = nk__hub_ask(g, from_start, &again, &e);
        nk__hub_progress_stop(g);
        if (!rc && g->kept) {
            nk__hub_part_remove(g);
            return 0;
        }
        if (!rc && g->again) {
            nk__hub_say(g, "%s: it is not what it was when its download began; beginning anew",
                        g->source.shown);
            from_start = true;
            continue;
        }
        if (!rc)
            return nk__hub_part_end(g, err);
        /* A copy is compared once: what is there is good enough to go on with now. */
        failed = g->at >= before + SMALL_STEP ? 1 : failed + 1;
        if (failed == 1)
            pause = o->pause_ms;
        if (!again || failed >= o->tries || (g->has && !g->told)) {
            if (err)
                *err = e;
            return again && !(g->has && !g->told) ? nk_wrap(rc, err, "after %d tries", failed) : rc;
        }
        if (g->fd >= 0 && g->at > 0)
            from_start = false;
        pause = next_pause(g, pause);
        nk__hub_say(g, "%s; try %d of %d in %.3g s", e.msg, failed + 1, o->tries, pause / 1e3);
        rc = pause_ms(g, pause, err);
        pause = pause > o->pause_ms_max / 2 ? o->pause_ms_max : 2 * pause;
    }
    return rc;
}

/* ---- one file ---- */

/* Takes the lock, and waits for another process while that goes on. */
static int lock(struct nk__hub_file *g, struct nk_error *err)
{
    struct timespec seen = { 0 };
    uint64_t seen_ns = 0;
    bool told = false;

    g->lock_fd = open(g->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (g->lock_fd < 0)
        return nk__hub_fail_sys(err, g->lock_path, "creating");
    while (flock(g->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        struct stat st;
        uint64_t now = nk_clock_now_ns(g->opts->clock);

        if (errno != EWOULDBLOCK && errno != EINTR)
            return nk__hub_fail_sys(err, g->lock_path, "locking");
        if (!told)
            nk__hub_say(g, "%s: another process is downloading it; waiting for that",
                        g->source.shown);
        told = true;
        if (!fstat(g->lock_fd, &st) &&
            (!seen_ns || st.st_mtim.tv_sec != seen.tv_sec || st.st_mtim.tv_nsec != seen.tv_nsec)) {
            seen = st.st_mtim;
            seen_ns = now;
        }
        if (now - seen_ns > (uint64_t)g->opts->stall_s * BUSY_STALLS * 1000000000)
            return nk_fail(err, NK_E_UNAVAILABLE, "busy",
                           "%s: another process holds %s and has not gone on for %d s",
                           g->source.shown, g->lock_path, g->opts->stall_s * BUSY_STALLS);
        if (g->opts->interrupted && g->opts->interrupted(g->opts->arg))
            return nk_fail(err, NK_E_CANCELLED, "interrupted", "%s: interrupted", g->source.shown);
        nk_sleep_ms(WAIT_MS);
    }
    return 0;
}

static int set_paths(struct nk__hub_file *g, struct nk_error *err)
{
    static const char *const ends[] = { "", ".json", ".part", ".part.json", ".lock" };
    char **const out[] = { &g->path, &g->state_path, &g->part_path, &g->part_state_path,
                           &g->lock_path };
    char sub[256], *dir;
    int rc;

    snprintf(sub, sizeof sub, "models/%s/%s", g->source.host, g->source.key);
    rc = nk_cache_dir(&dir, sub, err);
    for (int i = 0; !rc && i < 5; i++)
        if (asprintf(out[i], "%s/%s%s", dir, g->source.name, ends[i]) < 0) {
            *out[i] = NULL;
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
        }
    free(dir);
    return rc;
}

/* The copy is what the source has: of this commit, too. */
static int note_kept(struct nk__hub_file *g, struct nk_error *err)
{
    if (!g->commit[0] || !strcmp(g->commit, g->have.commit))
        return 0;
    memcpy(g->have.commit, g->commit, sizeof g->have.commit);
    return nk__hub_state_write(g, &g->have, g->state_path, err);
}

/* commit: that the file is of; "" nobody said. */
static int get_file(const struct nk__hub_source *source, const char *token,
                    const struct nk_hub_opts *opts, char **path, char commit[41],
                    struct nk_error *err)
{
    struct nk__hub_file g = {
        .opts = opts, .source = *source, .token = token, .lock_fd = -1, .fd = -1
    };
    struct nk_error e = { 0 };
    struct stat st;
    int rc = set_paths(&g, &e);

    if (!rc)
        rc = lock(&g, &e);
    if (!rc) {
        g.has = nk__hub_state_read(&g.have, g.state_path) && !stat(g.path, &st) &&
                S_ISREG(st.st_mode) && (uint64_t)st.st_size == g.have.size;
        g.curl = curl_easy_init();
        rc = g.curl ? get_all(&g, &e) : nk_fail(&e, NK_E_EXHAUSTED, "no_memory", "no memory");
        if (rc && rc != NK_E_CANCELLED && g.has) {
            nk__hub_say(&g, "%s; the copy from earlier is used, %s", e.msg, g.path);
            rc = 0;
            g.kept = true;
            g.commit[0] = '\0'; /* the one that it had */
        }
        if (!rc && g.kept)
            rc = note_kept(&g, &e);
        memcpy(commit, g.have.commit, sizeof g.have.commit);
    }
    curl_easy_cleanup(g.curl);
    nk__hub_part_forget(&g);
    if (g.lock_fd >= 0)
        close(g.lock_fd);
    if (!rc) {
        *path = g.path;
        g.path = NULL;
    } else if (err) {
        *err = e;
    }
    free(g.path);
    free(g.state_path);
    free(g.part_path);
    free(g.part_state_path);
    free(g.lock_path);
    return rc;
}

/* The token, NULL for none. */
static int token_of(const char **out, char text[512], struct nk_error *err)
{
    static const char *const variables[] = { "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN" };

    *out = NULL;
    for (int i = 0; i < 2; i++) {
        const char *value = getenv(variables[i]);
        size_t n = value ? strlen(value) : 0;

        while (n && strchr(" \t\r\n", value[n - 1])) /* from a file, for example */
            n--;
        for (; n && strchr(" \t", *value); n--)
            value++;
        if (!n)
            continue;
        for (size_t k = 0; k < n; k++)
            if (n >= 512 || value[k] <= ' ' || value[k] > '~')
                return nk_fail(err, NK_E_INVALID, "bad_token",
                               "%s is no token: at most 511 characters are one, without spaces and "
                               "line ends",
                               variables[i]);
        memcpy(text, value, n);
        text[n] = '\0';
        *out = text;
        return 0;
    }
    return 0;
}

/* All shards of a source, of one commit: a branch may move while they come, and shards of two
 * revisions load as one model that answers nonsense. */
static int get_shards(struct nk__hub_source *s, const char *token, const struct nk_hub_opts *o,
                      char **path, struct nk_error *err)
{
    char first[41] = "";
    int rc = 0, of = 0;

    /* The first shard last: its path is the model's, and it is there when all are. */
    for (int i = s->n_shards; !rc && i >= 1; i--) {
        char *one = NULL, commit[41] = "";

        nk__hub_source_shard(s, i);
        rc = get_file(s, token, o, &one, commit, err);
        if (!rc && commit[0] && !first[0]) {
            memcpy(first, commit, sizeof first);
            of = i;
            if (i > 1)
                nk__hub_source_pin(s, commit);
        } else if (!rc && commit[0] && strcmp(commit, first) != 0) {
            rc = nk_fail(err, NK_E_DATA_LOSS, "mixed_revisions",
                         "%s: shard %d of %d is of commit %s, shard %d of commit %s; all of one "
                         "are needed: @COMMIT behind the name asks for one, once the hub can be "
                         "reached",
                         s->shown, i, s->n_shards, commit, of, first);
        }
        if (!rc && i == 1)
            *path = one;
        else
            free(one);
    }
    return rc;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static CURLcode curl_ready;

static void init_curl(void)
{
    curl_ready = curl_global_init(CURL_GLOBAL_DEFAULT);
}

int nk_hub_get(char **path, const char *source, const struct nk_hub_opts *opts,
               struct nk_error *err)
{
    struct nk_hub_opts o = opts ? *opts : (struct nk_hub_opts){ 0 };
    struct nk__hub_source *s = malloc(sizeof *s);
    char endpoint[512], token_text[512];
    const char *token = NULL;
    int rc;

    *path = NULL;
    o.clock = o.clock ? o.clock : nk_clock_system();
    o.connect_ms = o.connect_ms ? o.connect_ms : 15000;
    o.stall_s = o.stall_s ? o.stall_s : 60;
    o.tries = o.tries ? o.tries : 6;
    o.pause_ms = o.pause_ms ? o.pause_ms : 1000;
    o.pause_ms_max = o.pause_ms_max ? o.pause_ms_max : 60000;
    pthread_once(&once, init_curl);
    if (!s || curl_ready)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    else
        rc = nk__hub_endpoint(endpoint, err);
    if (!rc)
        rc = nk__hub_source_parse(s, source, endpoint, err);
    if (!rc && s->hub)
        rc = token_of(&token, token_text, err);
    if (!rc)
        rc = get_shards(s, token, &o, path, err);
    explicit_bzero(token_text, sizeof token_text);
    free(s);
    return rc;
}
