/* SQLite behind store.h.
 *
 * One table of entries, ordered by key, with an index by revision. A watch is a place in the order
 * of revisions: the store's thread reads what is newer from the table itself, so that nothing has
 * to be queued, and a slow watcher costs no memory. A deletion must be seen there, too: while there
 * are watches it leaves a row without a value (a tombstone), which goes when all of them are past
 * it.
 *
 * WAL with synchronous=FULL: every commit is on the disk when it returns. locking_mode=EXCLUSIVE
 * keeps the WAL's index in memory and not in a mapped file. That no second process opens the store
 * is seen to by a lock file of its own, because its sentence should say who has it. */
#include "cluster/store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/queue.h>
#include <unistd.h>

#include "base/array.h"
#include "base/log.h"
#include "base/thread.h"

enum {
    APPLICATION_ID = 0x6e6b7374, /* "nkst" */
    SCHEMA_VERSION = 1,
    PAGE_BYTES = 4096,
    LEASES_MAX = 100000,
    RETRY_MS = 10000, /* where a lease's keys could not be deleted */
};
#define LEASE_MS_MAX ((uint64_t)86400 * 1000)

struct lease {
    uint64_t id, ttl_ms, end_ns;
    bool ended; /* but its keys could not be deleted yet */
};

struct nk_store_watch {
    nk_store *store;
    char *prefix;
    uint64_t seen; /* everything up to this revision was told */
    void (*fn)(void *arg, const struct nk_store_event *event);
    void *arg;
    LIST_ENTRY(nk_store_watch) link;
};

struct nk_store {
    char *path;
    int lock_fd;
    struct nk_clock *clock;
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t mutex; /* everything below */
    pthread_cond_t wake;   /* the thread: there is a write, a watch, another lease, or an end */
    pthread_cond_t told;   /* a watch's function has returned */
    bool stop;
    sqlite3 *db;
    uint64_t revision;
    size_t n_keys, n_tombstones;
    struct lease *leases;
    size_t n_leases, leases_capacity;
    LIST_HEAD(, nk_store_watch) watches;
    const nk_store_watch *telling; /* whose function is being called */
};

/* ---- SQLite ---- */
static int db_fail(nk_store *s, struct nk_error *err)
{
    int code = s->db ? sqlite3_errcode(s->db) & 0xff : SQLITE_NOMEM;
    int sys = s->db ? sqlite3_system_errno(s->db) : 0;
    const char *text = s->db ? sqlite3_errmsg(s->db) : "out of memory";

    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB)
        return nk_fail(err, NK_E_DATA_LOSS, "store_damaged",
                       "%s is damaged (%s): put back a copy of it, or move it away and begin anew",
                       s->path, text);
    if (sys == ENOSPC || sys == EDQUOT)
        return nk_fail(err, NK_E_EXHAUSTED, "no_space", "%s: %s", s->path, strerror(sys));
    if (code == SQLITE_FULL)
        return nk_fail(err, NK_E_EXHAUSTED, "store_full",
                       "%s holds %u MiB, which is all that it may", s->path,
                       (unsigned)(NK_STORE_BYTES_MAX >> 20));
    if (code == SQLITE_NOMEM)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "%s: out of memory", s->path);
    return nk_fail(err, NK_E_UNAVAILABLE, "store_failed", "%s: %s%s%s", s->path, text,
                   sys ? ": " : "", sys ? strerror(sys) : "");
}

static int prepare(nk_store *s, sqlite3_stmt **st, const char *sql, struct nk_error *err)
{
    if (sqlite3_prepare_v2(s->db, sql, -1, st, NULL) != SQLITE_OK)
        return db_fail(s, err);
    return 0;
}

static void bind_number(sqlite3_stmt *st, int at, uint64_t n)
{
    sqlite3_bind_int64(st, at, (sqlite3_int64)n);
}

static void bind_text(sqlite3_stmt *st, int at, const char *text)
{
    sqlite3_bind_text(st, at, text, -1, SQLITE_STATIC);
}

/* Takes st: a statement without rows. */
static int finish(nk_store *s, sqlite3_stmt *st, struct nk_error *err)
{
    int rc = 0, step = sqlite3_step(st);

    if (step != SQLITE_DONE && step != SQLITE_ROW)
        rc = db_fail(s, err);
    sqlite3_finalize(st);
    return rc;
}

static int execute(nk_store *s, const char *sql, struct nk_error *err)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : db_fail(s, err);
}

/* A statement with one number in it and no rows. */
static int execute_with(nk_store *s, const char *sql, uint64_t n, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc = prepare(s, &st, sql, err);

    if (rc)
        return rc;
    bind_number(st, 1, n);
    return finish(s, st, err);
}

/* A query for one number. */
static int ask(nk_store *s, const char *sql, uint64_t *n, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc = prepare(s, &st, sql, err);

    if (rc)
        return rc;
    if (sqlite3_step(st) == SQLITE_ROW)
        *n = (uint64_t)sqlite3_column_int64(st, 0);
    else
        rc = db_fail(s, err);
    sqlite3_finalize(st);
    return rc;
}

/* ---- opening ---- */
static int take_lock(nk_store *s, struct nk_error *err)
{
    char lock_path[4096 + 8], pid[32] = "";
    ssize_t n;

    snprintf(lock_path, sizeof lock_path, "%s.lock", s->path);
    s->lock_fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return nk_fail(err, errno == ENOSPC ? NK_E_EXHAUSTED : NK_E_DENIED,
                       errno == ENOSPC ? "no_space" : "cannot_create", "%s: %s", lock_path,
                       strerror(errno));
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK)
            return nk_fail(err, NK_E_UNAVAILABLE, "store_failed", "%s: %s", lock_path,
                           strerror(errno));
        n = read(s->lock_fd, pid, sizeof pid - 1);
        pid[n > 0 ? strspn(pid, "0123456789") : 0] = '\0';
        return nk_fail(err, NK_E_PRECONDITION, "store_in_use",
                       "%s is in use by another process%s%s; end that one first, or give this one "
                       "a state folder of its own",
                       s->path, *pid ? ", pid " : "", pid);
    }
    n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(s->lock_fd, 0) < 0 || write(s->lock_fd, pid, (size_t)n) != n) {
        /* The lock holds all the same; only its sentence is poorer. */
    }
    return 0;
}

static int open_file(nk_store *s, struct nk_error *err)
{
    char pages[64];
    int fd = open(s->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600), rc;

    if (fd < 0)
        return nk_fail(err, errno == ENOSPC ? NK_E_EXHAUSTED : NK_E_DENIED,
                       errno == ENOSPC ? "no_space" : "cannot_create", "%s: %s", s->path,
                       strerror(errno));
    close(fd); /* SQLite would have made it readable to others */
    if (sqlite3_open_v2(s->path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) !=
        SQLITE_OK)
        return db_fail(s, err);
    sqlite3_limit(s->db, SQLITE_LIMIT_LENGTH, (int)(2 * NK_STORE_VALUE_BYTES_MAX));
    snprintf(pages, sizeof pages, "PRAGMA max_page_count=%llu",
             (unsigned long long)(NK_STORE_BYTES_MAX / PAGE_BYTES));
    rc = execute(s, "PRAGMA locking_mode=EXCLUSIVE", err);
    if (!rc)
        rc = execute(s, "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON", err);
    if (!rc)
        rc = execute(s, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL", err);
    if (!rc)
        rc = execute(s, "PRAGMA journal_size_limit=4194304", err);
    return rc ? rc : execute(s, pages, err);
}

static int make_schema(nk_store *s, struct nk_error *err)
{
    char sql[1024];
    int rc;

    snprintf(sql, sizeof sql,
             "BEGIN IMMEDIATE;"
             "CREATE TABLE entries(key TEXT NOT NULL UNIQUE, value BLOB,"
             "  revision INTEGER NOT NULL, lease INTEGER NOT NULL);"
             "CREATE UNIQUE INDEX entries_by_revision ON entries(revision);"
             "CREATE INDEX entries_by_lease ON entries(lease) WHERE lease != 0;"
             "CREATE TABLE leases(id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL);"
             "CREATE TABLE last(revision INTEGER NOT NULL);"
             "INSERT INTO last VALUES(0);"
             "PRAGMA application_id=%d; PRAGMA user_version=%d;"
             "COMMIT",
             APPLICATION_ID, SCHEMA_VERSION);
    rc = execute(s, sql, err);
    if (rc)
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* PRAGMA quick_check: one row "ok", or rows that say what is wrong. */
static int check_file(nk_store *s, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc = prepare(s, &st, "PRAGMA quick_check(1)", err);

    if (rc)
        return rc;
    if (sqlite3_step(st) != SQLITE_ROW)
        rc = db_fail(s, err);
    else if (strcmp((const char *)sqlite3_column_text(st, 0), "ok") != 0)
        rc = nk_fail(err, NK_E_DATA_LOSS, "store_damaged",
                     "%s is damaged (%s): put back a copy of it, or move it away and begin anew",
                     s->path, (const char *)sqlite3_column_text(st, 0));
    sqlite3_finalize(st);
    return rc;
}

static int check_schema(nk_store *s, struct nk_error *err)
{
    uint64_t application = 0, version = 0, tables = 0;
    int rc = ask(s, "PRAGMA application_id", &application, err);

    if (!rc)
        rc = ask(s, "PRAGMA user_version", &version, err);
    if (!rc)
        rc = ask(s, "SELECT count(*) FROM sqlite_master", &tables, err);
    if (rc)
        return rc;
    if (!application && !version && !tables)
        return make_schema(s, err);
    if (application != APPLICATION_ID)
        return nk_fail(err, NK_E_DATA_LOSS, "store_damaged", "%s is a database of another program",
                       s->path);
    if (version > SCHEMA_VERSION)
        return nk_fail(err, NK_E_PRECONDITION, "store_newer",
                       "%s was made by a newer version of this program (format %u, this one knows "
                       "%d)",
                       s->path, (unsigned)version, SCHEMA_VERSION);
    return check_file(s, err);
}

static int load_leases(nk_store *s, struct nk_error *err)
{
    uint64_t now = nk_clock_now_ns(s->clock);
    sqlite3_stmt *st;
    int rc = prepare(s, &st, "SELECT id, ttl_ms FROM leases", err), step = SQLITE_DONE;

    if (rc)
        return rc;
    while (!rc && (step = sqlite3_step(st)) == SQLITE_ROW) {
        struct lease l = { .id = (uint64_t)sqlite3_column_int64(st, 0),
                           .ttl_ms = (uint64_t)sqlite3_column_int64(st, 1) };

        if (l.ttl_ms > LEASE_MS_MAX)
            l.ttl_ms = LEASE_MS_MAX;
        l.end_ns = now + l.ttl_ms * 1000000u;
        rc = nk_array_grow(s->leases, s->leases_capacity, s->n_leases + 1, LEASES_MAX, err);
        if (!rc)
            s->leases[s->n_leases++] = l;
    }
    if (!rc && step != SQLITE_DONE)
        rc = db_fail(s, err);
    sqlite3_finalize(st);
    return rc;
}

static int load(nk_store *s, struct nk_error *err)
{
    uint64_t n_keys = 0;
    int rc = execute(s, "DELETE FROM entries WHERE value IS NULL", err);

    if (!rc)
        rc = ask(s, "SELECT revision FROM last", &s->revision, err);
    if (!rc)
        rc = ask(s, "SELECT count(*) FROM entries", &n_keys, err);
    s->n_keys = n_keys;
    return rc ? rc : load_leases(s, err);
}

static void *run(void *arg);

int nk_store_open(nk_store **out, const char *path, struct nk_clock *clock, struct nk_error *err)
{
    nk_store *s = calloc(1, sizeof *s);
    int rc = 0, e;

    *out = NULL;
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    s->lock_fd = -1;
    s->clock = clock;
    LIST_INIT(&s->watches);
    pthread_mutex_init(&s->mutex, NULL);
    nk_cond_init(&s->wake);
    pthread_cond_init(&s->told, NULL);
    s->path = strdup(path);
    if (!s->path)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    if (!rc)
        rc = take_lock(s, err);
    if (!rc)
        rc = open_file(s, err);
    if (!rc)
        rc = check_schema(s, err);
    if (!rc)
        rc = load(s, err);
    if (!rc) {
        e = nk_thread_start(&s->thread, run, s);
        if (e)
            rc =
                nk_fail(err, NK_E_EXHAUSTED, "no_thread", "a thread of the store: %s", strerror(e));
        s->has_thread = !e;
    }
    if (rc)
        nk_store_close(s);
    else
        *out = s;
    return rc;
}

void nk_store_close(nk_store *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->mutex);
    NK_ASSERT(LIST_EMPTY(&s->watches));
    s->stop = true;
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->mutex);
    if (s->has_thread)
        pthread_join(s->thread, NULL);
    sqlite3_close(s->db);
    if (s->lock_fd >= 0)
        close(s->lock_fd); /* the file stays: removing it would let two in at once */
    pthread_cond_destroy(&s->told);
    pthread_cond_destroy(&s->wake);
    pthread_mutex_destroy(&s->mutex);
    free(s->leases);
    free(s->path);
    free(s);
}

/* ---- reading ---- */
static bool printable(const char *key, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (key[i] <= ' ' || key[i] > '~')
            return false;
    return true;
}

static int check_key(const char *key, size_t size_min, struct nk_error *err)
{
    size_t size = strnlen(key, NK_STORE_KEY_BYTES_MAX + 1);

    if (size < size_min || size > NK_STORE_KEY_BYTES_MAX || !printable(key, size))
        return nk_fail(err, NK_E_INVALID, "bad_key",
                       "a key of the store has 1 to %d printable characters and no space",
                       NK_STORE_KEY_BYTES_MAX);
    return 0;
}

/* The first key after all that begin with prefix, as keys have no character as high as this. */
static void after_prefix(char out[NK_STORE_KEY_BYTES_MAX + 2], const char *prefix)
{
    snprintf(out, NK_STORE_KEY_BYTES_MAX + 2, "%s\x7f", prefix);
}

int nk_store_get(nk_store *s, const char *key, struct nk_buf *value, uint64_t *revision,
                 struct nk_error *err)
{
    sqlite3_stmt *st = NULL;
    int rc = check_key(key, 1, err), step;

    if (rc)
        return rc;
    pthread_mutex_lock(&s->mutex);
    rc = prepare(s, &st, "SELECT value, revision FROM entries WHERE key = ?1 AND value IS NOT NULL",
                 err);
    if (rc)
        goto out;
    bind_text(st, 1, key);
    step = sqlite3_step(st);
    if (step == SQLITE_ROW) {
        const void *data = sqlite3_column_blob(st, 0);

        nk_buf_reset(value);
        rc = nk_buf_add(value, data ? data : "", (size_t)sqlite3_column_bytes(st, 0), err);
        if (!rc && revision)
            *revision = (uint64_t)sqlite3_column_int64(st, 1);
    } else {
        rc = step == SQLITE_DONE
                 ? nk_fail(err, NK_E_NOT_FOUND, "no_key", "the store has no key '%s'", key)
                 : db_fail(s, err);
    }
out:
    sqlite3_finalize(st);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* The value in column 1 of key, value, revision, lease, as a copy with a NUL after it. */
static char *copy_value(sqlite3_stmt *st, size_t *size)
{
    const void *data = sqlite3_column_blob(st, 1);
    char *copy;

    *size = (size_t)sqlite3_column_bytes(st, 1);
    copy = malloc(*size + 1);
    if (!copy)
        return NULL;
    if (*size)
        memcpy(copy, data, *size);
    copy[*size] = '\0';
    return copy;
}

static int add_entry(struct nk_store_list *list, size_t *capacity, sqlite3_stmt *st,
                     struct nk_error *err)
{
    struct nk_store_entry e = { .revision = (uint64_t)sqlite3_column_int64(st, 2),
                                .lease = (uint64_t)sqlite3_column_int64(st, 3) };
    char *value;
    int rc = nk_array_grow(list->entries, *capacity, list->n + 1, NK_STORE_KEYS_MAX, err);

    if (rc)
        return rc;
    e.key = strdup((const char *)sqlite3_column_text(st, 0));
    value = copy_value(st, &e.value.size);
    e.value.data = (const uint8_t *)value;
    if (!e.key || !value) {
        free(e.key);
        free(value);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    }
    list->entries[list->n++] = e;
    return 0;
}

int nk_store_list(nk_store *s, const char *prefix, struct nk_store_list *out, struct nk_error *err)
{
    char end[NK_STORE_KEY_BYTES_MAX + 2];
    sqlite3_stmt *st = NULL;
    size_t capacity = 0;
    int rc = check_key(prefix, 0, err), step = SQLITE_DONE;

    *out = (struct nk_store_list){ 0 };
    if (rc)
        return rc;
    after_prefix(end, prefix);
    pthread_mutex_lock(&s->mutex);
    rc = prepare(s, &st,
                 "SELECT key, value, revision, lease FROM entries"
                 " WHERE key >= ?1 AND key < ?2 AND value IS NOT NULL ORDER BY key",
                 err);
    if (!rc) {
        bind_text(st, 1, prefix);
        bind_text(st, 2, end);
        while (!rc && (step = sqlite3_step(st)) == SQLITE_ROW)
            rc = add_entry(out, &capacity, st, err);
        if (!rc && step != SQLITE_DONE)
            rc = db_fail(s, err);
    }
    out->revision = s->revision;
    sqlite3_finalize(st);
    pthread_mutex_unlock(&s->mutex);
    if (rc)
        nk_store_list_release(out);
    return rc;
}

void nk_store_list_release(struct nk_store_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        free(list->entries[i].key);
        free((void *)list->entries[i].value.data);
    }
    free(list->entries);
    *list = (struct nk_store_list){ 0 };
}

/* ---- writing: with the mutex held, each inside one transaction ---- */
struct row {
    bool there, tombstone;
    uint64_t revision;
};

static int find_row(nk_store *s, const char *key, struct row *row, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc = prepare(s, &st, "SELECT value IS NULL, revision FROM entries WHERE key = ?1", err);
    int step;

    *row = (struct row){ 0 };
    if (rc)
        return rc;
    bind_text(st, 1, key);
    step = sqlite3_step(st);
    if (step == SQLITE_ROW) {
        row->tombstone = sqlite3_column_int(st, 0);
        row->there = !row->tombstone;
        row->revision = row->there ? (uint64_t)sqlite3_column_int64(st, 1) : 0;
    } else if (step != SQLITE_DONE) {
        rc = db_fail(s, err);
    }
    sqlite3_finalize(st);
    return rc;
}

static int write_row(nk_store *s, const char *key, const struct nk_bytes *value, uint64_t lease,
                     uint64_t revision, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc = prepare(s, &st,
                     "INSERT INTO entries(key, value, revision, lease) VALUES(?1, ?2, ?3, ?4)"
                     " ON CONFLICT(key) DO UPDATE SET value = ?2, revision = ?3, lease = ?4",
                     err);

    if (rc)
        return rc;
    bind_text(st, 1, key);
    if (value) /* a NULL pointer would be a NULL, and that a tombstone */
        sqlite3_bind_blob64(st, 2, value->size ? (const void *)value->data : "", value->size,
                            SQLITE_STATIC);
    bind_number(st, 3, revision);
    bind_number(st, 4, lease);
    return finish(s, st, err);
}

static int delete_row(nk_store *s, const char *key, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc = prepare(s, &st, "DELETE FROM entries WHERE key = ?1", err);

    if (rc)
        return rc;
    bind_text(st, 1, key);
    return finish(s, st, err);
}

static int begin(nk_store *s, struct nk_error *err)
{
    return execute(s, "BEGIN IMMEDIATE", err);
}

/* The end of what begin() began, in one piece or not at all; revision is the store's from then on.
 * rc: what became of it so far. */
static int end(nk_store *s, uint64_t revision, int rc, struct nk_error *err)
{
    if (!rc)
        rc = execute_with(s, "UPDATE last SET revision = ?1", revision, err);
    if (!rc)
        rc = execute(s, "COMMIT", err);
    if (rc) {
        sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
        return rc;
    }
    s->revision = revision;
    pthread_cond_signal(&s->wake);
    return 0;
}

static struct lease *find_lease(nk_store *s, uint64_t id)
{
    for (size_t i = 0; i < s->n_leases; i++)
        if (s->leases[i].id == id && !s->leases[i].ended &&
            nk_clock_now_ns(s->clock) < s->leases[i].end_ns)
            return &s->leases[i];
    return NULL;
}

static int no_lease(uint64_t id, struct nk_error *err)
{
    return nk_fail(err, NK_E_NOT_FOUND, "no_lease", "lease %llu has ended", (unsigned long long)id);
}

/* expected NULL: whatever its revision. value NULL: delete it. */
static int change(nk_store *s, const char *key, const uint64_t *expected,
                  const struct nk_bytes *value, uint64_t lease, uint64_t *revision,
                  struct nk_error *err)
{
    bool watched = !LIST_EMPTY(&s->watches);
    struct row row;
    int rc;

    if (lease && !find_lease(s, lease))
        return no_lease(lease, err);
    rc = find_row(s, key, &row, err);
    if (rc)
        return rc;
    if (!value && !row.there)
        return nk_fail(err, NK_E_NOT_FOUND, "no_key", "the store has no key '%s'", key);
    if (expected && *expected != row.revision)
        return nk_fail(err, NK_E_ABORTED, "changed",
                       "'%s' was changed by somebody else: it has revision %llu, not %llu", key,
                       (unsigned long long)row.revision, (unsigned long long)*expected);
    if (value && !row.there && s->n_keys >= NK_STORE_KEYS_MAX)
        return nk_fail(err, NK_E_EXHAUSTED, "store_full",
                       "%s holds %d keys, which is all that it may", s->path, NK_STORE_KEYS_MAX);
    rc = begin(s, err);
    if (rc)
        return rc;
    if (value || watched)
        rc = write_row(s, key, value, lease, s->revision + 1, err);
    else
        rc = delete_row(s, key, err);
    rc = end(s, s->revision + 1, rc, err);
    if (rc)
        return rc;
    s->n_keys += value && !row.there;
    s->n_keys -= !value;
    s->n_tombstones += !value && watched;
    s->n_tombstones -= value && row.tombstone;
    if (revision)
        *revision = s->revision;
    return 0;
}

static int change_checked(nk_store *s, const char *key, const uint64_t *expected,
                          const struct nk_bytes *value, uint64_t lease, uint64_t *revision,
                          struct nk_error *err)
{
    int rc = check_key(key, 1, err);

    if (!rc && value && value->size > NK_STORE_VALUE_BYTES_MAX)
        rc = nk_fail(err, NK_E_EXHAUSTED, "too_large",
                     "the value of '%s' has %zu bytes; the store takes %zu", key, value->size,
                     NK_STORE_VALUE_BYTES_MAX);
    if (rc)
        return rc;
    pthread_mutex_lock(&s->mutex);
    rc = change(s, key, expected, value, lease, revision, err);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int nk_store_put(nk_store *s, const char *key, struct nk_bytes value, uint64_t lease,
                 uint64_t *revision, struct nk_error *err)
{
    return change_checked(s, key, NULL, &value, lease, revision, err);
}

int nk_store_swap(nk_store *s, const char *key, uint64_t expected, struct nk_bytes value,
                  uint64_t lease, uint64_t *revision, struct nk_error *err)
{
    return change_checked(s, key, &expected, &value, lease, revision, err);
}

int nk_store_delete(nk_store *s, const char *key, uint64_t expected, struct nk_error *err)
{
    return change_checked(s, key, expected ? &expected : NULL, NULL, 0, NULL, err);
}

/* ---- leases ---- */
int nk_store_lease_grant(nk_store *s, uint64_t ttl_ms, uint64_t *lease, struct nk_error *err)
{
    sqlite3_stmt *st;
    int rc;

    if (!ttl_ms || ttl_ms > LEASE_MS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_lease", "a lease lasts from 1 ms to a day");
    pthread_mutex_lock(&s->mutex);
    rc = nk_array_grow(s->leases, s->leases_capacity, s->n_leases + 1, LEASES_MAX, err);
    if (!rc)
        rc = begin(s, err);
    if (!rc) {
        rc = prepare(s, &st, "INSERT INTO leases(id, ttl_ms) VALUES(?1, ?2)", err);
        if (!rc) {
            bind_number(st, 1, s->revision + 1);
            bind_number(st, 2, ttl_ms);
            rc = finish(s, st, err);
        }
        rc = end(s, s->revision + 1, rc, err);
    }
    if (!rc) {
        *lease = s->revision; /* a revision is used once */
        s->leases[s->n_leases++] = (struct lease){
            .id = *lease, .ttl_ms = ttl_ms, .end_ns = nk_clock_now_ns(s->clock) + ttl_ms * 1000000u
        };
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int nk_store_lease_keep(nk_store *s, uint64_t lease, struct nk_error *err)
{
    struct lease *l;
    int rc = 0;

    pthread_mutex_lock(&s->mutex);
    l = find_lease(s, lease);
    if (l)
        l->end_ns = nk_clock_now_ns(s->clock) + l->ttl_ms * 1000000u;
    else
        rc = no_lease(lease, err);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* A key that lease has, or NULL (then *rc says whether it could be read). The caller frees it. */
static char *leased_key(nk_store *s, uint64_t lease, int *rc, struct nk_error *err)
{
    sqlite3_stmt *st;
    char *key = NULL;
    int step;

    *rc = prepare(s, &st, "SELECT key FROM entries WHERE lease = ?1 AND lease != 0 LIMIT 1", err);
    if (*rc)
        return NULL;
    bind_number(st, 1, lease);
    step = sqlite3_step(st);
    if (step == SQLITE_ROW) {
        key = strdup((const char *)sqlite3_column_text(st, 0));
        if (!key)
            *rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    } else if (step != SQLITE_DONE) {
        *rc = db_fail(s, err);
    }
    sqlite3_finalize(st);
    return key;
}

/* Deletes what it holds, key by key (each has a revision), then the lease. A crash in between
 * leaves a lease with fewer keys, which ends again. */
static int end_lease(nk_store *s, size_t at, struct nk_error *err)
{
    uint64_t id = s->leases[at].id;
    char *key;
    int rc;

    while ((key = leased_key(s, id, &rc, err))) {
        rc = change(s, key, NULL, NULL, 0, NULL, err);
        free(key);
        if (rc)
            return rc;
    }
    if (!rc)
        rc = execute_with(s, "DELETE FROM leases WHERE id = ?1", id, err);
    if (!rc)
        s->leases[at] = s->leases[--s->n_leases];
    return rc;
}

int nk_store_lease_revoke(nk_store *s, uint64_t lease, struct nk_error *err)
{
    struct lease *l;
    int rc;

    pthread_mutex_lock(&s->mutex);
    l = find_lease(s, lease);
    rc = l ? end_lease(s, (size_t)(l - s->leases), err) : no_lease(lease, err);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* ---- the thread: leases that end, watches that are told ---- */
static void end_leases(nk_store *s, uint64_t now)
{
    struct nk_error err;

    for (size_t i = 0; i < s->n_leases;) {
        if (now < s->leases[i].end_ns) {
            i++;
        } else if (end_lease(s, i, &err)) {
            nk_log(NK_LOG_CLUSTER, NK_LOG_ERROR, "lease=%llu reason=%s",
                   (unsigned long long)s->leases[i].id, err.reason);
            s->leases[i].ended = true;
            s->leases[i++].end_ns = now + (uint64_t)RETRY_MS * 1000000u;
        }
    }
}

/* The next thing to tell a watch: 1 and a copy of it; 0: nothing. */
static int next_event(nk_store *s, const nk_store_watch *w, struct nk_store_event *event,
                      struct nk_error *err)
{
    char last[NK_STORE_KEY_BYTES_MAX + 2], *value, *key;
    sqlite3_stmt *st;
    int rc, step;

    *event = (struct nk_store_event){ 0 };
    after_prefix(last, w->prefix);
    rc = prepare(s, &st,
                 "SELECT key, value, revision, lease FROM entries WHERE revision > ?1"
                 " AND +key >= ?2 AND +key < ?3 ORDER BY revision LIMIT 1",
                 err);
    if (rc)
        return rc;
    bind_number(st, 1, w->seen);
    bind_text(st, 2, w->prefix);
    bind_text(st, 3, last);
    step = sqlite3_step(st);
    if (step == SQLITE_ROW) {
        key = strdup((const char *)sqlite3_column_text(st, 0));
        event->deleted = sqlite3_column_type(st, 1) == SQLITE_NULL;
        event->revision = (uint64_t)sqlite3_column_int64(st, 2);
        value = copy_value(st, &event->value.size);
        event->key = key;
        event->value.data = (const uint8_t *)value;
        rc = 1;
        if (!key || !value) {
            free(key);
            free(value);
            rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
        }
    } else if (step != SQLITE_DONE) {
        rc = db_fail(s, err);
    }
    sqlite3_finalize(st);
    return rc;
}

/* Tells one watch one thing, without the mutex meanwhile. False: there is nothing to tell. */
static bool tell(nk_store *s)
{
    static struct nk_log_limit limit;
    struct nk_store_event event;
    struct nk_error err;
    nk_store_watch *w;
    unsigned long n;
    int rc;

    LIST_FOREACH(w, &s->watches, link)
    {
        if (w->seen >= s->revision)
            continue;
        rc = next_event(s, w, &event, &err);
        if (rc < 0 && nk_log_allow(&limit, &n))
            nk_log(NK_LOG_CLUSTER, NK_LOG_ERROR, "watch=%s reason=%s n_more=%lu", w->prefix,
                   err.reason, n);
        if (rc <= 0) {
            w->seen = s->revision;
            continue;
        }
        w->seen = event.revision;
        s->telling = w;
        pthread_mutex_unlock(&s->mutex);
        w->fn(w->arg, &event);
        free((void *)event.key);
        free((void *)event.value.data);
        pthread_mutex_lock(&s->mutex);
        s->telling = NULL;
        pthread_cond_broadcast(&s->told);
        return true;
    }
    return false;
}

/* Nobody has to be told of what is deleted any more. */
static void remove_tombstones(nk_store *s)
{
    struct nk_error err;

    if (!s->n_tombstones)
        return;
    if (execute(s, "DELETE FROM entries WHERE value IS NULL", &err))
        nk_log(NK_LOG_CLUSTER, NK_LOG_ERROR, "reason=%s msg=\"deleted keys stay\"", err.reason);
    s->n_tombstones = 0;
}

static void *run(void *arg)
{
    nk_store *s = arg;

    pthread_mutex_lock(&s->mutex);
    while (!s->stop) {
        uint64_t first = UINT64_MAX;

        end_leases(s, nk_clock_now_ns(s->clock));
        if (tell(s))
            continue;
        remove_tombstones(s);
        for (size_t i = 0; i < s->n_leases; i++)
            if (s->leases[i].end_ns < first)
                first = s->leases[i].end_ns;
        if (first == UINT64_MAX)
            pthread_cond_wait(&s->wake, &s->mutex);
        else
            nk_clock_wait_until(s->clock, &s->wake, &s->mutex, first);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

int nk_store_watch_start(nk_store_watch **out, nk_store *s, const char *prefix, uint64_t after,
                         void (*fn)(void *arg, const struct nk_store_event *event), void *arg,
                         struct nk_error *err)
{
    nk_store_watch *w;
    int rc = check_key(prefix, 0, err);

    *out = NULL;
    if (rc)
        return rc;
    w = calloc(1, sizeof *w);
    if (w)
        w->prefix = strdup(prefix);
    if (!w || !w->prefix) {
        free(w);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    }
    w->store = s;
    w->seen = after;
    w->fn = fn;
    w->arg = arg;
    pthread_mutex_lock(&s->mutex);
    LIST_INSERT_HEAD(&s->watches, w, link);
    *out = w;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

void nk_store_watch_end(nk_store_watch *w)
{
    nk_store *s;

    if (!w)
        return;
    s = w->store;
    NK_ASSERT(!pthread_equal(s->thread, pthread_self()));
    pthread_mutex_lock(&s->mutex);
    LIST_REMOVE(w, link);
    while (s->telling == w)
        pthread_cond_wait(&s->told, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
    free(w->prefix);
    free(w);
}
