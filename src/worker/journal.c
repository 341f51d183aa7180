#include "worker/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"

enum {
    BLOCK_ROWS_MAX = 1024, /* so that the flags of a block are small beside its rows */
    BLOCKS_AT_FIRST = 16,
    BOOKS_PART = 64, /* one part of so many of the memory is for books alone */
    /* Flags of a row. */
    BEGINS = 1, /* a step begins with it */
    CUT = 2,    /* it is the last that is left of a step that had more */
};

/* So many rows, in memory or in the file. */
struct block {
    uint8_t *data;      /* NULL: they are in the file */
    int slot;           /* which place of the file, in blocks; of one in memory: nothing */
    struct block *next; /* of the spare ones */
    uint8_t flags[];    /* of each row; always in memory */
};

struct nk__journal {
    struct nk__journals *js;
    size_t row_bytes, block_rows;
    pthread_mutex_t mutex; /* for all below */
    uint64_t memory_bytes; /* what this one has of js->memory_bytes */
    int begin, end;        /* both 0 when there are no blocks */
    int base;              /* the position of the first block's first row, at most begin */
    /* Its blocks: n of them from `first` on, all full but the last. */
    struct block **blocks;
    size_t first, n, capacity;
    struct block *spare; /* places of the file that hold nothing now; data is NULL */
    int fd;              /* -1: no file yet */
    int n_slots;         /* its size; block_rows * row_bytes each */
};

void nk__journals_init(struct nk__journals *js, const struct nk__journal_limits *limits)
{
    *js = (struct nk__journals){ .limits = *limits };
}

/* ---- what is shared ---- */

/* Whether it is the first time that a worker has to say this. */
static bool is_news(nk__journal *j, enum nk_journal_cause cause)
{
    return !atomic_exchange(&j->js->told[cause], true);
}

static void tell_full(nk__journal *j)
{
    const struct nk__journals *js = j->js;

    if (is_news(j, NK_JOURNAL_FULL))
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "reason=journal_full memory_bytes=%llu memory_bytes_max=%" PRIu64
               " session_bytes=%" PRIu64 " session_bytes_max=%" PRIu64
               " spilled_bytes=%llu spilled_bytes_max=%" PRIu64
               " msg=\"the oldest steps are forgotten; they are computed again when they are "
               "needed\"",
               atomic_load(&js->memory_bytes), js->limits.memory_bytes, j->memory_bytes,
               js->limits.session_bytes, atomic_load(&js->spilled_bytes), js->limits.spill_bytes);
}

static void tell(nk__journal *j, enum nk_journal_cause cause, const char *reason, const char *text)
{
    char quoted[640];

    if (is_news(j, cause))
        nk_log(NK_LOG_WORKER, NK_LOG_WARN, "reason=%s msg=%s", reason,
               nk_log_quote(quoted, sizeof quoted, text));
}

static bool count(atomic_ullong *counter, uint64_t bytes, uint64_t max)
{
    unsigned long long now = atomic_load(counter);

    do {
        if (now > max || bytes > max - now)
            return false;
    } while (!atomic_compare_exchange_weak(counter, &now, now + bytes));
    return true;
}

/* Memory, for rows or for books. Without a part for books alone, those of what goes to the files
 * would find no room when the rows have taken all. */
static bool reserve(nk__journal *j, uint64_t bytes, bool books)
{
    const struct nk__journal_limits *l = &j->js->limits;
    uint64_t own = l->session_bytes - (books ? 0 : l->session_bytes / BOOKS_PART);
    uint64_t all = l->memory_bytes - (books ? 0 : l->memory_bytes / BOOKS_PART);

    if (j->memory_bytes > own || bytes > own - j->memory_bytes ||
        !count(&j->js->memory_bytes, bytes, all))
        return false;
    j->memory_bytes += bytes;
    return true;
}

static void give_back(nk__journal *j, uint64_t bytes)
{
    j->memory_bytes -= bytes;
    atomic_fetch_sub(&j->js->memory_bytes, bytes);
}

/* ---- the file ---- */

static size_t rows_bytes(const nk__journal *j)
{
    return j->block_rows * j->row_bytes;
}

/* Its descriptor, or the (negative) error. */
static int open_in(const char *folder, struct nk_error *err)
{
    char path[PATH_MAX];
    int fd = -1;

#ifdef O_TMPFILE
    fd = open(folder, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
#endif
    if (snprintf(path, sizeof path, "%s/.journal.XXXXXX", folder) >= (int)sizeof path)
        errno = ENAMETOOLONG;
    else
        fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return nk_fail(err, NK_E_DENIED, "cannot_create", "%s: making a file for the journal: %s",
                       folder, strerror(errno));
    unlink(path);
    return fd;
}

static bool open_file(nk__journal *j)
{
    const char *folder = j->js->limits.folder;
    struct nk_error err;
    char *cache = NULL;
    int rc = folder ? nk_dir_make(folder, &err) : nk_cache_dir(&cache, NULL, &err);

    if (!rc)
        rc = j->fd = open_in(folder ? folder : cache, &err);
    free(cache);
    if (rc >= 0)
        return true;
    j->fd = -1;
    tell(j, NK_JOURNAL_NO_FILE, "journal_no_file", err.msg);
    return false;
}

/* A new place at the file's end, or -1. */
static int slot_new(nk__journal *j)
{
    if (!count(&j->js->spilled_bytes, rows_bytes(j), j->js->limits.spill_bytes))
        return -1;
    if (j->fd < 0 && !open_file(j)) {
        atomic_fetch_sub(&j->js->spilled_bytes, rows_bytes(j));
        return -1;
    }
    return j->n_slots++;
}

/* The place at the file's end goes. */
static void slot_undo(nk__journal *j)
{
    j->n_slots--;
    /* It may have been written in part. What is not given back now is when the file is closed. */
    if (ftruncate(j->fd, (off_t)j->n_slots * (off_t)rows_bytes(j)))
        nk_log(NK_LOG_WORKER, NK_LOG_DEBUG, "msg=\"the journal's file does not get shorter\"");
    atomic_fetch_sub(&j->js->spilled_bytes, rows_bytes(j));
}

static off_t slot_at(const nk__journal *j, int slot, size_t row)
{
    return (off_t)slot * (off_t)rows_bytes(j) + (off_t)(row * j->row_bytes);
}

static bool write_rows(nk__journal *j, int slot, size_t row, const uint8_t *data, size_t n_rows)
{
    size_t size = n_rows * j->row_bytes;
    off_t at = slot_at(j, slot, row);
    char text[160];
    ssize_t got;

    for (; size; data += got, size -= (size_t)got, at += got) {
        got = pwrite(j->fd, data, size, at);
        if (got < 0 && errno == EINTR)
            got = 0;
        else if (got <= 0)
            break;
    }
    if (!size)
        return true;
    snprintf(text, sizeof text, "writing to the journal's file: %s",
             strerror(got < 0 ? errno : ENOSPC));
    tell(j, NK_JOURNAL_NO_WRITE, "journal_no_write", text);
    return false;
}

static int read_rows(nk__journal *j, int slot, size_t row, uint8_t *out, size_t n_rows,
                     struct nk_error *err)
{
    size_t size = n_rows * j->row_bytes;
    off_t at = slot_at(j, slot, row);
    struct nk_error local;
    ssize_t got;

    for (; size; out += got, size -= (size_t)got, at += got) {
        got = pread(j->fd, out, size, at);
        if (got < 0 && errno == EINTR)
            got = 0;
        else if (got <= 0)
            break;
    }
    if (!size)
        return 0;
    if (!err)
        err = &local;
    nk_fail(err, NK_E_DATA_LOSS, "journal_lost", "reading the journal's file back: %s",
            got < 0 ? strerror(errno) : "it has become shorter");
    tell(j, NK_JOURNAL_NO_READ, "journal_lost", err->msg);
    return NK_E_DATA_LOSS;
}

/* ---- blocks ---- */

static size_t books_bytes(const nk__journal *j)
{
    return sizeof(struct block) + j->block_rows;
}

static struct block *block_of(const nk__journal *j, int pos, size_t *row)
{
    size_t i = (size_t)(pos - j->base);

    *row = i % j->block_rows;
    return j->blocks[j->first + i / j->block_rows];
}

static uint8_t *flags_at(const nk__journal *j, int pos)
{
    size_t row;
    struct block *b = block_of(j, pos, &row);

    return &b->flags[row];
}

static void free_books(nk__journal *j, struct block *b)
{
    free(b);
    give_back(j, books_bytes(j));
}

static void free_data(nk__journal *j, struct block *b)
{
    free(b->data);
    b->data = NULL;
    give_back(j, rows_bytes(j));
}

/* The block is no longer one of the journal's. A place of the file waits for the next that needs
 * one, for a file does not get shorter at its beginning. */
static void block_release(nk__journal *j, struct block *b)
{
    if (b->data) {
        free_data(j, b);
        free_books(j, b);
        return;
    }
    b->next = j->spare;
    j->spare = b;
}

/* Memory for a block without data, or NULL. */
static struct block *new_books(nk__journal *j)
{
    struct block *b;

    if (!reserve(j, books_bytes(j), true))
        return NULL;
    b = malloc(books_bytes(j));
    if (!b) {
        give_back(j, books_bytes(j));
        tell(j, NK_JOURNAL_NO_MEMORY, "no_memory", "no memory for the journal");
        return NULL;
    }
    b->data = NULL;
    return b;
}

/* A block in memory, or NULL: there is no room for it. */
static struct block *block_in_memory(nk__journal *j)
{
    uint8_t *data;
    struct block *b;

    if (!reserve(j, rows_bytes(j), false))
        return NULL;
    data = malloc(rows_bytes(j));
    if (!data)
        tell(j, NK_JOURNAL_NO_MEMORY, "no_memory", "no memory for the journal");
    b = data ? new_books(j) : NULL;
    if (!b) {
        free(data);
        give_back(j, rows_bytes(j));
        return NULL;
    }
    b->data = data;
    return b;
}

/* A block in the file, or NULL. */
static struct block *block_in_file(nk__journal *j)
{
    struct block *b = j->spare;

    if (b) {
        j->spare = b->next;
        return b;
    }
    b = new_books(j);
    if (!b)
        return NULL;
    b->slot = slot_new(j);
    if (b->slot < 0) {
        free_books(j, b);
        return NULL;
    }
    return b;
}

static struct block *oldest_in_memory(const nk__journal *j)
{
    for (size_t i = 0; i < j->n; i++)
        if (j->blocks[j->first + i]->data)
            return j->blocks[j->first + i];
    return NULL;
}

/* The rows of b go to the file. */
static bool spill(nk__journal *j, struct block *b)
{
    struct block *spare = j->spare;
    int slot = spare ? spare->slot : slot_new(j);

    if (slot < 0)
        return false;
    if (!write_rows(j, slot, 0, b->data, j->block_rows)) {
        if (!spare)
            slot_undo(j);
        return false;
    }
    if (spare) {
        j->spare = spare->next;
        free_books(j, spare);
    }
    b->slot = slot;
    free_data(j, b);
    return true;
}

/* Room for one more pointer to a block. */
static bool grow(nk__journal *j)
{
    size_t capacity = j->capacity ? 2 * j->capacity : BLOCKS_AT_FIRST;
    size_t more = (capacity - j->capacity) * sizeof(struct block *);
    struct block **blocks;

    if (j->first + j->n < j->capacity)
        return true;
    if (j->first <= j->capacity / 2 && reserve(j, more, true)) {
        blocks = realloc(j->blocks, capacity * sizeof(struct block *));
        if (blocks) {
            j->blocks = blocks;
            j->capacity = capacity;
            return true;
        }
        give_back(j, more);
    }
    if (!j->first)
        return false;
    memmove(j->blocks, j->blocks + j->first, j->n * sizeof *j->blocks);
    j->first = 0;
    return true;
}

/* ---- forgetting ---- */

static void forget_all(nk__journal *j)
{
    while (j->n)
        block_release(j, j->blocks[j->first + --j->n]);
    while (j->spare) {
        struct block *b = j->spare;

        j->spare = b->next;
        free_books(j, b);
    }
    free(j->blocks);
    give_back(j, j->capacity * sizeof(struct block *));
    j->blocks = NULL;
    j->first = j->capacity = 0;
    if (j->fd >= 0 && j->n_slots && ftruncate(j->fd, 0)) {
        close(j->fd); /* then the disk has it back in this way */
        j->fd = -1;
    }
    atomic_fetch_sub(&j->js->spilled_bytes, (uint64_t)j->n_slots * rows_bytes(j));
    j->n_slots = 0;
    j->begin = j->end = j->base = 0;
}

/* It then begins with the first step that begins at pos or after it; one that begins before it is
 * forgotten with all its rows. */
static void forget_before(nk__journal *j, int pos)
{
    while (pos < j->end && !(*flags_at(j, pos) & BEGINS))
        pos++;
    if (pos >= j->end) {
        forget_all(j);
        return;
    }
    j->begin = pos;
    while ((size_t)(j->begin - j->base) >= j->block_rows) {
        block_release(j, j->blocks[j->first++]);
        j->n--;
        j->base += (int)j->block_rows;
    }
}

static void forget_from(nk__journal *j, int end)
{
    size_t n;

    if (end >= j->end)
        return;
    if (end <= j->begin) {
        forget_all(j);
        return;
    }
    if (!(*flags_at(j, end) & BEGINS))
        *flags_at(j, end - 1) |= CUT;
    j->end = end;
    n = ((size_t)(end - j->base) + j->block_rows - 1) / j->block_rows;
    while (j->n > n)
        block_release(j, j->blocks[j->first + --j->n]);
}

/* ---- the calls ---- */

int nk__journal_new(nk__journal **out, struct nk__journals *js, size_t row_bytes,
                    struct nk_error *err)
{
    nk__journal *j;

    NK_ASSERT(row_bytes);
    *out = NULL;
    j = calloc(1, sizeof *j);
    if (!j)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a journal");
    j->js = js;
    j->row_bytes = row_bytes;
    j->block_rows = js->limits.block_bytes / row_bytes;
    if (j->block_rows < 1)
        j->block_rows = 1;
    if (j->block_rows > BLOCK_ROWS_MAX)
        j->block_rows = BLOCK_ROWS_MAX;
    j->fd = -1;
    pthread_mutex_init(&j->mutex, NULL);
    *out = j;
    return 0;
}

void nk__journal_free(nk__journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0)
        close(j->fd);
    j->fd = -1;
    forget_all(j);
    pthread_mutex_destroy(&j->mutex);
    free(j);
}

/* One more block at the end, for rows of the step at pos. False: there is no room for this step at
 * all, and the journal is empty. */
static bool add_block(nk__journal *j, int pos)
{
    bool begun = j->end > pos;

    for (;;) {
        bool has_place = grow(j);
        struct block *b = has_place ? block_in_memory(j) : NULL;
        struct block *oldest = b ? NULL : oldest_in_memory(j);

        if (oldest && spill(j, oldest))
            continue; /* now there is more memory */
        if (!b && !oldest && has_place)
            b = block_in_file(j);
        if (b) {
            j->blocks[j->first + j->n++] = b;
            return true;
        }
        tell_full(j);
        if (!j->n) {
            forget_all(j);
            return false;
        }
        forget_before(j, j->base + (int)j->block_rows);
        if (begun && !j->n)
            return false;
    }
}

/* Rows at the end, as many of n_rows as fit into the last block; 0: the step at pos cannot be
 * kept. */
static int add_rows(nk__journal *j, int pos, int n_rows, const uint8_t *rows)
{
    size_t row, n;
    struct block *b;

    if ((size_t)(j->end - j->base) == j->n * j->block_rows && !add_block(j, pos))
        return 0;
    if (j->begin == j->end)
        j->begin = j->end = j->base = pos;
    b = block_of(j, j->end, &row);
    n = j->block_rows - row;
    if (n > (size_t)n_rows)
        n = (size_t)n_rows;
    if (b->data) {
        memcpy(b->data + row * j->row_bytes, rows, n * j->row_bytes);
    } else if (!write_rows(j, b->slot, row, rows, n)) {
        forget_all(j);
        return 0;
    }
    memset(b->flags + row, 0, n);
    if (j->end == pos)
        b->flags[row] = BEGINS;
    j->end += (int)n;
    return (int)n;
}

void nk__journal_append(nk__journal *j, int pos, int n_rows, const void *rows)
{
    const uint8_t *at = rows;
    int n;

    if (!j || !j->js->limits.session_bytes || !j->js->limits.memory_bytes)
        return;
    NK_ASSERT(pos >= 0 && n_rows > 0 && n_rows <= INT_MAX - BLOCK_ROWS_MAX - pos);
    pthread_mutex_lock(&j->mutex);
    if (pos > j->end)
        forget_all(j);
    forget_from(j, pos);
    for (int left = n_rows; left; left -= n, at += (size_t)n * j->row_bytes) {
        n = add_rows(j, pos, left, at);
        if (!n)
            break;
    }
    pthread_mutex_unlock(&j->mutex);
}

int nk__journal_begin(nk__journal *j)
{
    int begin;

    if (!j)
        return 0;
    pthread_mutex_lock(&j->mutex);
    begin = j->begin;
    pthread_mutex_unlock(&j->mutex);
    return begin;
}

int nk__journal_end(nk__journal *j)
{
    int end;

    if (!j)
        return 0;
    pthread_mutex_lock(&j->mutex);
    end = j->end;
    pthread_mutex_unlock(&j->mutex);
    return end;
}

bool nk__journal_step_at(nk__journal *j, int pos, int *n_rows, bool *whole)
{
    bool begins;

    if (!j)
        return false;
    pthread_mutex_lock(&j->mutex);
    begins = pos >= j->begin && pos < j->end && *flags_at(j, pos) & BEGINS;
    if (begins) {
        int end = pos + 1;

        while (end < j->end && !(*flags_at(j, end) & BEGINS))
            end++;
        if (n_rows)
            *n_rows = end - pos;
        if (whole)
            *whole = !(*flags_at(j, end - 1) & CUT);
    }
    pthread_mutex_unlock(&j->mutex);
    return begins;
}

static int read_range(nk__journal *j, int pos, int end, uint8_t *out, struct nk_error *err)
{
    int rc = 0;

    if (pos < j->begin || end > j->end)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "not_in_journal",
                       "the rows %d to %d are not all in the journal, which has %d to %d", pos, end,
                       j->begin, j->end);
    while (!rc && pos < end) {
        size_t row, n;
        struct block *b = block_of(j, pos, &row);

        n = j->block_rows - row;
        if (n > (size_t)(end - pos))
            n = (size_t)(end - pos);
        if (b->data)
            memcpy(out, b->data + row * j->row_bytes, n * j->row_bytes);
        else
            rc = read_rows(j, b->slot, row, out, n, err);
        if (rc)
            forget_before(j, pos - (int)row + (int)j->block_rows);
        out += n * j->row_bytes;
        pos += (int)n;
    }
    return rc;
}

int nk__journal_read(nk__journal *j, int pos, int n_rows, void *out, struct nk_error *err)
{
    int rc;

    if (!j || pos < 0 || n_rows < 0 || n_rows > INT_MAX - pos)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "not_in_journal",
                       "%d rows from %d on are not in the journal", n_rows, pos);
    pthread_mutex_lock(&j->mutex);
    rc = read_range(j, pos, pos + n_rows, out, err);
    pthread_mutex_unlock(&j->mutex);
    return rc;
}

void nk__journal_truncate(nk__journal *j, int end)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->mutex);
    forget_from(j, end);
    pthread_mutex_unlock(&j->mutex);
}
