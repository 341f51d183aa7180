/* The journal against a plain array: what was sent, by position, in which steps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unit/missing.h"
#include "unit/seed.h"
#include "worker/journal.h"

enum {
    ROW = 100,       /* bytes */
    BLOCK_ROWS = 10, /* of blocks of 1000 bytes */
    STEP_ROWS_MAX = 64,
    POSITIONS = 2000, /* of a walk */
    ROW_MAX = 700,    /* bytes of a row of a walk */
    WALKERS = 3,
    STEPS = 4000,
};

static char dir[] = "nk-journal-XXXXXX";

static struct nk__journal_limits limits(uint64_t session, uint64_t memory, uint64_t spill)
{
    return (struct nk__journal_limits){ session, memory, spill, ROW * BLOCK_ROWS, dir };
}

static nk__journal *new_journal(struct nk__journals *js, size_t row_bytes)
{
    struct nk_error err;
    nk__journal *j;

    assert_int_equal(nk__journal_new(&j, js, row_bytes, &err), 0);
    return j;
}

/* Bytes that follow from the row's number alone. */
static void fill(uint8_t *row, size_t size, uint64_t number)
{
    for (size_t i = 0; i < size; i += 8) {
        uint64_t bytes = seed_next(&number);

        memcpy(row + i, &bytes, size - i < 8 ? size - i : 8);
    }
}

/* Rows numbered by their positions and `from`. */
static void append(nk__journal *j, int pos, int n, uint64_t from)
{
    uint8_t rows[STEP_ROWS_MAX * ROW];

    assert_true(n <= STEP_ROWS_MAX);
    for (int i = 0; i < n; i++)
        fill(rows + i * ROW, ROW, from + (uint64_t)(pos + i));
    nk__journal_append(j, pos, n, rows);
}

static void has_row(nk__journal *j, int pos, uint64_t number)
{
    uint8_t wanted[ROW], got[ROW];
    struct nk_error err;

    fill(wanted, ROW, number);
    if (nk__journal_read(j, pos, 1, got, &err))
        fail_msg("row %d: %s", pos, err.msg);
    assert_memory_equal(got, wanted, ROW);
}

static void covers(nk__journal *j, int begin, int end)
{
    assert_int_equal(nk__journal_begin(j), begin);
    assert_int_equal(nk__journal_end(j), end);
}

static void has_step(nk__journal *j, int pos, int n_rows, bool whole)
{
    bool got_whole = !whole;
    int n = -1;

    assert_true(nk__journal_step_at(j, pos, &n, &got_whole));
    assert_int_equal(n, n_rows);
    assert_int_equal(got_whole, whole);
}

static void at_zero(struct nk__journals *js)
{
    assert_int_equal(atomic_load(&js->memory_bytes), 0);
    assert_int_equal(atomic_load(&js->spilled_bytes), 0);
}

static int n_files(void)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int n = 0;

    assert_non_null(d);
    while ((e = readdir(d)))
        n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    closedir(d);
    return n;
}

/* ---- by hand ---- */

static void test_journal__knows_the_steps_shapes(void **state)
{
    struct nk__journal_limits l = NK_JOURNAL_LIMITS_DEFAULT;
    struct nk__journals js;
    nk__journal *j;
    int n = 7;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    covers(j, 0, 0);
    at_zero(&js);
    assert_false(nk__journal_step_at(j, 0, &n, NULL));
    append(j, 0, 16, 0);
    append(j, 16, 5, 0);
    for (int i = 21; i < 30; i++)
        append(j, i, 1, 0);
    covers(j, 0, 30);
    has_step(j, 0, 16, true);
    has_step(j, 16, 5, true);
    for (int i = 21; i < 30; i++)
        has_step(j, i, 1, true);
    assert_false(nk__journal_step_at(j, -1, &n, NULL));
    assert_false(nk__journal_step_at(j, 1, &n, NULL));
    assert_false(nk__journal_step_at(j, 20, &n, NULL));
    assert_false(nk__journal_step_at(j, 30, &n, NULL));
    assert_int_equal(n, 7);
    assert_true(nk__journal_step_at(j, 16, NULL, NULL));
    for (int i = 0; i < 30; i++)
        has_row(j, i, (uint64_t)i);
    assert_true(atomic_load(&js.memory_bytes) >= 30 * ROW);
    nk__journal_free(j);
    at_zero(&js);
}

static void test_journal__positions_are_authoritative(void **state)
{
    struct nk__journal_limits l = limits(1 << 20, 1 << 20, 0);
    struct nk__journals js;
    nk__journal *j;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    append(j, 0, 16, 0);
    append(j, 16, 8, 0);
    append(j, 24, 1, 0);
    append(j, 16, 1, 1000); /* where a step began */
    covers(j, 0, 17);
    has_step(j, 0, 16, true);
    has_step(j, 16, 1, true);
    has_row(j, 15, 15);
    has_row(j, 16, 1016);
    append(j, 10, 4, 2000); /* inside a step: what is left of it is not what was computed */
    covers(j, 0, 14);
    has_step(j, 0, 10, false);
    has_step(j, 10, 4, true);
    append(j, 14, 30, 2000);
    has_step(j, 0, 10, false);
    has_step(j, 14, 30, true);
    nk__journal_truncate(j, 44);
    nk__journal_truncate(j, 100);
    covers(j, 0, 44);
    nk__journal_truncate(j, 5); /* and again */
    covers(j, 0, 5);
    has_step(j, 0, 5, false);
    append(j, 5, 1, 3000);
    nk__journal_truncate(j, 5); /* where a step began: the one before was cut all the same */
    has_step(j, 0, 5, false);
    append(j, 0, 5, 4000); /* all of it */
    covers(j, 0, 5);
    has_step(j, 0, 5, true);
    has_row(j, 0, 4000);
    nk__journal_truncate(j, 0);
    covers(j, 0, 0);
    at_zero(&js);
    nk__journal_free(j);
}

static void test_journal__a_gap_empties_it(void **state)
{
    struct nk__journal_limits l = limits(1 << 20, 1 << 20, 0);
    struct nk__journals js;
    nk__journal *j;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    append(j, 33, 3, 0); /* a session that reuses a prefix */
    covers(j, 33, 36);
    append(j, 37, 2, 0);
    covers(j, 37, 39);
    has_step(j, 37, 2, true);
    append(j, 35, 1, 0); /* before its beginning: likewise */
    covers(j, 35, 36);
    nk__journal_truncate(j, 20);
    covers(j, 0, 0);
    nk__journal_free(j);
    at_zero(&js);
}

static void test_journal__reads_only_what_it_has(void **state)
{
    struct nk__journal_limits l = limits(1 << 20, 1 << 20, 0);
    uint8_t out[8 * ROW], wanted[ROW];
    struct nk__journals js;
    struct nk_error err;
    nk__journal *j;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    append(j, 20, 25, 0);
    assert_int_equal(nk__journal_read(j, 37, 8, out, &err), 0); /* over a block's end */
    for (int i = 0; i < 8; i++) {
        fill(wanted, ROW, 37 + (uint64_t)i);
        assert_memory_equal(out + i * ROW, wanted, ROW);
    }
    assert_int_equal(nk__journal_read(j, 20, 0, out, &err), 0);
    assert_int_equal(nk__journal_read(j, 19, 2, out, &err), NK_E_OUT_OF_RANGE);
    assert_string_equal(err.reason, "not_in_journal");
    assert_non_null(strstr(err.msg, "20 to 45"));
    assert_int_equal(nk__journal_read(j, 44, 2, out, &err), NK_E_OUT_OF_RANGE);
    assert_int_equal(nk__journal_read(j, -3, 1, out, &err), NK_E_OUT_OF_RANGE);
    assert_int_equal(nk__journal_read(j, 25, -1, out, NULL), NK_E_OUT_OF_RANGE);
    assert_int_equal(nk__journal_read(j, 25, INT32_MAX, out, NULL), NK_E_OUT_OF_RANGE);
    nk__journal_free(j);
}

static void test_journal__none_holds_nothing(void **state)
{
    uint8_t row[ROW] = { 0 };

    (void)state;
    nk__journal_append(NULL, 0, 1, row);
    covers(NULL, 0, 0);
    assert_false(nk__journal_step_at(NULL, 0, NULL, NULL));
    assert_int_equal(nk__journal_read(NULL, 0, 0, row, NULL), NK_E_OUT_OF_RANGE);
    nk__journal_truncate(NULL, 0);
    nk__journal_free(NULL);
}

static void test_journal__no_memory_allowed_is_no_journal(void **state)
{
    struct nk__journal_limits l = limits(0, 1 << 20, 1 << 20);
    struct nk__journals js;
    nk__journal *j;

    (void)state;
    for (int i = 0; i < 2; i++) {
        nk__journals_init(&js, &l);
        j = new_journal(&js, ROW);
        append(j, 0, 20, 0);
        covers(j, 0, 0);
        at_zero(&js);
        assert_false(atomic_load(&js.told[NK_JOURNAL_FULL])); /* it is what was asked for */
        nk__journal_free(j);
        l = limits(1 << 20, 0, 1 << 20);
    }
}

/* ---- ceilings ---- */

static void test_journal__forgets_its_oldest_steps_at_the_sessions_ceiling(void **state)
{
    struct nk__journal_limits l = limits(16 << 10, 1 << 20, 0);
    struct nk__journals js;
    nk__journal *j, *other;
    int begin;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    other = new_journal(&js, ROW);
    append(other, 0, 50, 9000);
    nk__journal_truncate(other, 5);
    for (int i = 0; i < 1000; i++) {
        append(j, 4 * i, 4, 0);
        begin = nk__journal_begin(j);
        assert_int_equal(nk__journal_end(j), 4 * i + 4);
        assert_int_equal(begin % 4, 0);
        has_step(j, begin, 4, true);
        has_row(j, begin, (uint64_t)begin);
    }
    /* 16 KiB less a 64th are 16 blocks, or one less for their books; a step that lost its first
     * rows with a block went with it. */
    assert_in_range(4000 - begin, 14 * BLOCK_ROWS - 4, 16 * BLOCK_ROWS);
    assert_true(atomic_load(&js.told[NK_JOURNAL_FULL]));
    for (int i = begin; i < 4000; i++)
        has_row(j, i, (uint64_t)i);
    covers(other, 0, 5);
    nk__journal_free(j);
    nk__journal_free(other);
    at_zero(&js);
}

static void test_journal__the_ceiling_of_all_is_kept(void **state)
{
    struct nk__journal_limits l = limits(1 << 20, 40 << 10, 20 << 10);
    nk__journal *j[5];
    struct nk__journals js;
    unsigned long long memory_max = 0, spilled_max = 0;

    (void)state;
    nk__journals_init(&js, &l);
    for (int i = 0; i < 5; i++)
        j[i] = new_journal(&js, ROW);
    for (int pos = 0; pos < 500; pos++)
        for (int i = 0; i < 5; i++) {
            unsigned long long memory, spilled;

            append(j[i], pos, 1, (uint64_t)i << 32);
            memory = atomic_load(&js.memory_bytes);
            spilled = atomic_load(&js.spilled_bytes);
            assert_true(memory <= l.memory_bytes);
            assert_true(spilled <= l.spill_bytes);
            memory_max = memory > memory_max ? memory : memory_max;
            spilled_max = spilled > spilled_max ? spilled : spilled_max;
            assert_int_equal(nk__journal_end(j[i]), pos + 1);
        }
    /* And used: but for less than a block, and what is for books alone. */
    assert_true(memory_max > l.memory_bytes - l.memory_bytes / 64 - 1200);
    assert_int_equal(spilled_max, 20000);
    for (int i = 0; i < 5; i++) {
        int begin = nk__journal_begin(j[i]);

        assert_true(begin < 480); /* each has some */
        for (int pos = begin; pos < 500; pos++)
            has_row(j[i], pos, ((uint64_t)i << 32) + (uint64_t)pos);
    }
    for (int i = 0; i < 5; i++)
        nk__journal_free(j[i]);
    at_zero(&js);
}

static void test_journal__a_step_that_is_larger_than_all_room_is_not_kept(void **state)
{
    struct nk__journal_limits l = limits(3 << 10, 3 << 10, 2 << 10);
    struct nk__journals js;
    nk__journal *j;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    append(j, 0, 8, 0);
    covers(j, 0, 8);
    append(j, 8, 60, 0);
    covers(j, 0, 0);
    at_zero(&js);
    append(j, 68, 8, 0);
    covers(j, 68, 76);
    has_row(j, 70, 70);
    nk__journal_free(j);
    at_zero(&js);
}

/* ---- files ---- */

static void test_journal__spills_to_a_file_without_a_name(void **state)
{
    struct nk__journal_limits l = limits(4 << 10, 4 << 10, 1 << 20);
    struct nk__journals js;
    nk__journal *j;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    append(j, 0, 20, 0);
    assert_int_equal(atomic_load(&js.spilled_bytes), 0);
    for (int pos = 20; pos < 300; pos += 7)
        append(j, pos, 7, 0);
    assert_int_equal(n_files(), 0);
    assert_in_range(atomic_load(&js.spilled_bytes), 300 * ROW - (4 << 10), 300 * ROW);
    assert_int_equal(atomic_load(&js.spilled_bytes) % (ROW * BLOCK_ROWS), 0);
    assert_false(atomic_load(&js.told[NK_JOURNAL_FULL]));
    assert_int_equal(nk__journal_begin(j), 0);
    has_step(j, 0, 20, true);
    for (int pos = 20; pos < 300; pos += 7)
        has_step(j, pos, 7, true);
    for (int pos = 0; pos < 300; pos++)
        has_row(j, pos, (uint64_t)pos);
    append(j, 55, 30, 5000); /* rows in the file are replaced, too */
    covers(j, 0, 85);
    has_step(j, 48, 7, true);
    has_step(j, 55, 30, true);
    for (int pos = 0; pos < 85; pos++)
        has_row(j, pos, (uint64_t)pos + (pos < 55 ? 0 : 5000));
    nk__journal_free(j);
    at_zero(&js);
    assert_int_equal(n_files(), 0);
}

/* The others' rows are not given up for it: it has no memory, but a file. */
static void test_journal__without_memory_it_writes_to_its_file(void **state)
{
    struct nk__journal_limits l = limits(4 << 20, 1 << 20, 1 << 20);
    struct nk__journals js;
    nk__journal *first, *second;
    unsigned long long spilled;

    (void)state;
    nk__journals_init(&js, &l);
    first = new_journal(&js, ROW);
    second = new_journal(&js, ROW);
    for (int pos = 0; pos < 12000; pos += 50)
        append(first, pos, 50, 0);
    spilled = atomic_load(&js.spilled_bytes);
    assert_true(spilled > 0);
    for (int pos = 0; pos < 2000; pos++)
        append(second, pos, 1, 8000);
    assert_int_equal(atomic_load(&js.spilled_bytes), spilled + 2000 * ROW);
    covers(first, 0, 12000);
    covers(second, 0, 2000);
    assert_false(atomic_load(&js.told[NK_JOURNAL_FULL]));
    for (int pos = 0; pos < 2000; pos++)
        has_row(second, pos, 8000 + (uint64_t)pos);
    for (int pos = 0; pos < 12000; pos++)
        has_row(first, pos, (uint64_t)pos);
    nk__journal_free(first);
    assert_int_equal(atomic_load(&js.spilled_bytes), 2000 * ROW);
    for (int pos = 2000; pos < 2100; pos++) /* now there is memory */
        append(second, pos, 1, 8000);
    assert_int_equal(atomic_load(&js.spilled_bytes), 2000 * ROW);
    for (int pos = 0; pos < 2100; pos++)
        has_row(second, pos, 8000 + (uint64_t)pos);
    nk__journal_free(second);
    at_zero(&js);
}

static void test_journal__the_file_has_a_ceiling(void **state)
{
    struct nk__journal_limits l = limits(4 << 10, 1 << 20, 7500);
    struct nk__journals js;
    nk__journal *j;
    int begin = 0;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    for (int pos = 0; pos < 1000; pos++) {
        append(j, pos, 1, 0);
        assert_true(atomic_load(&js.spilled_bytes) <= 7500);
        assert_int_equal(nk__journal_end(j), pos + 1);
        begin = nk__journal_begin(j);
        has_row(j, begin, (uint64_t)begin);
    }
    assert_int_equal(atomic_load(&js.spilled_bytes), 7000);
    assert_true(atomic_load(&js.told[NK_JOURNAL_FULL]));
    assert_in_range(1000 - begin, 90, 110); /* seven blocks there, two or three here, one begun */
    for (int pos = begin; pos < 1000; pos++)
        has_row(j, pos, (uint64_t)pos);
    nk__journal_free(j);
    at_zero(&js);
}

static void test_journal__without_a_folder_it_keeps_what_memory_has(void **state)
{
    struct nk__journal_limits l = limits(4 << 10, 1 << 20, 1 << 20);
    struct nk__journals js;
    nk__journal *j;
    int begin;

    (void)state;
    l.folder = "/dev/null/journal";
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    for (int pos = 0; pos < 500; pos++)
        append(j, pos, 1, 0);
    assert_true(atomic_load(&js.told[NK_JOURNAL_NO_FILE]));
    assert_false(atomic_load(&js.told[NK_JOURNAL_NO_WRITE]));
    assert_int_equal(atomic_load(&js.spilled_bytes), 0);
    begin = nk__journal_begin(j);
    assert_int_equal(nk__journal_end(j), 500);
    assert_in_range(500 - begin, 20, 40);
    for (int pos = begin; pos < 500; pos++)
        has_row(j, pos, (uint64_t)pos);
    nk__journal_free(j);
    at_zero(&js);
}

/* Files that may not get longer are what this can have of a full disk everywhere: the write stops
 * in the middle of a block, the next one fails. */
static void limit_files(rlim_t bytes)
{
    struct rlimit r;

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &r), 0);
    r.rlim_cur = bytes;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
}

static void test_journal__a_full_disk_ends_no_session(void **state)
{
    struct nk__journal_limits l = limits(4 << 10, 1 << 20, 1 << 20);
    void (*before)(int) = signal(SIGXFSZ, SIG_IGN);
    struct nk__journals js;
    nk__journal *j;
    int begin;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    limit_files(4500);
    for (int pos = 0; pos < 500; pos++)
        append(j, pos, 1, 0);
    begin = nk__journal_begin(j);
    limit_files(RLIM_INFINITY);
    assert_true(atomic_load(&js.told[NK_JOURNAL_NO_WRITE]));
    assert_int_equal(nk__journal_end(j), 500);
    assert_in_range(500 - begin, 20, 80); /* what the disk has is used over again */
    assert_int_equal(atomic_load(&js.spilled_bytes), 4000);
    for (int pos = begin; pos < 500; pos++)
        has_row(j, pos, (uint64_t)pos);
    for (int pos = 500; pos < 1000; pos++) /* there is room again */
        append(j, pos, 1, 0);
    assert_int_equal(nk__journal_begin(j), begin);
    for (int pos = begin; pos < 1000; pos++)
        has_row(j, pos, (uint64_t)pos);
    nk__journal_free(j);
    at_zero(&js);
    signal(SIGXFSZ, before);
}

/* The disk is full, and the others have all memory. */
static void test_journal__a_full_disk_where_no_memory_is_left(void **state)
{
    struct nk__journal_limits l = limits(1 << 20, 8 << 10, 1 << 20);
    void (*before)(int) = signal(SIGXFSZ, SIG_IGN);
    struct nk__journals js;
    nk__journal *first, *second;

    (void)state;
    nk__journals_init(&js, &l);
    first = new_journal(&js, ROW);
    second = new_journal(&js, ROW);
    append(first, 0, 60, 0);
    limit_files(1550);
    for (int pos = 60; pos < 80; pos++)
        append(first, pos, 1, 0);
    for (int pos = 0; pos < 100; pos++) {
        append(second, pos, 1, 0);
        if (nk__journal_end(second)) {
            assert_int_equal(nk__journal_end(second), pos + 1);
            has_row(second, pos, (uint64_t)pos);
            has_row(second, nk__journal_begin(second), (uint64_t)nk__journal_begin(second));
        }
    }
    limit_files(RLIM_INFINITY);
    for (int pos = nk__journal_begin(first); pos < 80; pos++)
        has_row(first, pos, (uint64_t)pos);
    nk__journal_free(first);
    nk__journal_free(second);
    at_zero(&js);
    signal(SIGXFSZ, before);
}

/* This process's descriptor of a file in dir, or -1: the system does not tell. */
static int file_of_journal(void)
{
    char path[64], target[4096], folder[4096];
    int found = -1;

    assert_non_null(realpath(dir, folder));
    for (int fd = 3; fd < 1024; fd++) {
        ssize_t n;

        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = '\0';
        if (!strncmp(target, folder, strlen(folder)))
            found = fd;
    }
    return found;
}

static void test_journal__what_cannot_be_read_back_is_lost_and_no_more(void **state)
{
    struct nk__journal_limits l = limits(4 << 10, 1 << 20, 1 << 20);
    uint8_t out[STEP_ROWS_MAX * ROW];
    struct nk__journals js;
    struct nk_error err;
    nk__journal *j;
    int fd;

    (void)state;
    nk__journals_init(&js, &l);
    j = new_journal(&js, ROW);
    for (int pos = 0; pos < 200; pos += 4)
        append(j, pos, 4, 0);
    fd = file_of_journal();
    if (fd < 0) {
        nk__journal_free(j);
        missing("the open files of a process are not listed in /proc/self/fd");
    }
    assert_int_equal(ftruncate(fd, 4500), 0); /* 45 rows are left of it */
    has_row(j, 44, 44);
    assert_int_equal(nk__journal_read(j, 30, 20, out, &err), NK_E_DATA_LOSS);
    assert_string_equal(err.reason, "journal_lost");
    assert_true(atomic_load(&js.told[NK_JOURNAL_NO_READ]));
    covers(j, 52, 200); /* the block ends at 50, inside a step */
    assert_int_equal(nk__journal_read(j, 52, 4, out, NULL), NK_E_DATA_LOSS);
    covers(j, 60, 200);
    while (nk__journal_read(j, nk__journal_begin(j), 4, out, &err))
        assert_int_equal(err.code, NK_E_DATA_LOSS);
    assert_in_range(200 - nk__journal_begin(j), 20, 40); /* what is in memory */
    for (int pos = nk__journal_begin(j); pos < 200; pos++)
        has_row(j, pos, (uint64_t)pos);
    nk__journal_free(j);
    at_zero(&js);
}

/* ---- random walks ---- */

/* The plain array: what the session sent and has not taken back, [begin, end). */
struct walker {
    nk__journal *j;
    size_t row_bytes;
    int begin, end;
    uint64_t number[POSITIONS]; /* of the row */
    int step_begin[POSITIONS];  /* of the row's step */
    bool cut[POSITIONS];        /* by the step's beginning */
};

static void walker_begin(struct walker *w, struct nk__journals *js, size_t row_bytes)
{
    w->row_bytes = row_bytes;
    w->begin = w->end = 0;
    w->j = new_journal(js, w->row_bytes);
}

static void walker_cut(struct walker *w, int end)
{
    if (end >= w->end)
        return;
    if (end <= w->begin) {
        w->begin = w->end = 0;
        return;
    }
    if (w->step_begin[end] != end)
        w->cut[w->step_begin[end]] = true;
    w->end = end;
}

static void walker_append(struct walker *w, int pos, int n, uint64_t *number)
{
    static uint8_t rows[STEP_ROWS_MAX * ROW_MAX];

    if (pos > w->end || pos <= w->begin)
        w->begin = w->end = pos;
    walker_cut(w, pos);
    for (int i = 0; i < n; i++) {
        w->number[pos + i] = ++*number;
        w->step_begin[pos + i] = pos;
        fill(rows + (size_t)i * w->row_bytes, w->row_bytes, *number);
    }
    w->cut[pos] = false;
    if (w->begin == w->end)
        w->begin = pos;
    w->end = pos + n;
    nk__journal_append(w->j, pos, n, rows);
}

/* all: nothing may be missing. */
static void walker_check(struct walker *w, bool all, uint64_t *chance)
{
    static uint8_t got[STEP_ROWS_MAX * ROW_MAX], wanted[ROW_MAX];
    int begin = nk__journal_begin(w->j), end = nk__journal_end(w->j), pos, n;
    struct nk_error err;

    if (begin == end && !all) {
        assert_int_equal(begin, 0);
        return;
    }
    assert_true(begin >= w->begin);
    assert_int_equal(end, w->end);
    if (all)
        assert_int_equal(begin, w->begin);
    if (begin == end)
        return;
    assert_true(nk__journal_step_at(w->j, begin, NULL, NULL));
    pos = begin + (int)seed_below(chance, (uint64_t)(end - begin));
    n = 1 + (int)seed_below(chance, STEP_ROWS_MAX);
    n = n > end - pos ? end - pos : n;
    if (nk__journal_read(w->j, pos, n, got, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < n; i++) {
        bool begins = w->step_begin[pos + i] == pos + i, whole = false;
        int n_rows = 0, n_wanted = 1;

        fill(wanted, w->row_bytes, w->number[pos + i]);
        assert_memory_equal(got + (size_t)i * w->row_bytes, wanted, w->row_bytes);
        assert_int_equal(nk__journal_step_at(w->j, pos + i, &n_rows, &whole), begins);
        if (!begins)
            continue;
        while (pos + i + n_wanted < end && w->step_begin[pos + i + n_wanted] == pos + i)
            n_wanted++;
        assert_int_equal(n_rows, n_wanted);
        assert_int_equal(whole, !w->cut[pos + i]);
    }
}

static void walker_step(struct walker *w, struct nk__journals *js, uint64_t *chance,
                        uint64_t *number)
{
    int n = seed_below(chance, 4) ? 1 : 1 + (int)seed_below(chance, STEP_ROWS_MAX);
    uint64_t what = seed_below(chance, 1000);

    if (what < 5) {
        nk__journal_free(w->j);
        walker_begin(w, js, 1 + seed_below(chance, ROW_MAX));
    } else if (what < 15) {
        int end = (int)seed_below(chance, (uint64_t)w->end + 2);

        nk__journal_truncate(w->j, end);
        walker_cut(w, end);
    } else if (what < 25) {
        walker_append(w, (int)seed_below(chance, (uint64_t)w->end + 1), n, number); /* back */
    } else if (what < 28 || w->end + n > POSITIONS) {
        walker_append(w, (int)seed_below(chance, POSITIONS / 2), n, number); /* anywhere */
    } else {
        walker_append(w, w->end, n, number);
    }
}

struct walk {
    struct nk__journal_limits limits;
    bool all; /* the limits are such that nothing may be missing */
};

static void walk(const struct walk *one, uint64_t seed)
{
    static struct walker walkers[WALKERS];
    uint64_t number = 0, chance = seed;
    struct nk__journals js;
    int n_held = 0;

    nk__journals_init(&js, &one->limits);
    for (int i = 0; i < WALKERS; i++)
        walker_begin(&walkers[i], &js, 1 + seed_below(&chance, ROW_MAX));
    for (int step = 0; step < STEPS; step++) {
        uint64_t moved = seed_below(&chance, WALKERS), looked_at = seed_below(&chance, WALKERS);

        walker_step(&walkers[moved], &js, &chance, &number);
        assert_true(atomic_load(&js.memory_bytes) <= one->limits.memory_bytes);
        assert_true(atomic_load(&js.spilled_bytes) <= one->limits.spill_bytes);
        walker_check(&walkers[looked_at], one->all, &chance);
        n_held += nk__journal_end(walkers[looked_at].j) == walkers[looked_at].end;
    }
    assert_true(n_held > STEPS / 3); /* mostly there was something to compare */
    nk__journal_free(walkers[0].j);  /* whatever the seed: one that does not fit into memory */
    walker_begin(&walkers[0], &js, ROW_MAX);
    while (walkers[0].end < POSITIONS) {
        walker_append(&walkers[0], walkers[0].end, 1, &number);
        walker_check(&walkers[0], one->all, &chance);
    }
    assert_int_equal(atomic_load(&js.spilled_bytes) > 0, one->limits.spill_bytes > 0);
    for (int i = 0; i < WALKERS; i++)
        nk__journal_free(walkers[i].j);
    at_zero(&js);
    assert_int_equal(n_files(), 0);
}

static void test_journal__random_walks_agree_with_a_plain_array(void **state)
{
    const struct walk walks[] = {
        { limits(64 << 20, 64 << 20, 0), true },         /* memory for all */
        { limits(120 << 10, 64 << 20, 20 << 20), true }, /* a file for all */
        { limits(64 << 20, 600 << 10, 20 << 20), false },
        { limits(100 << 10, 200 << 10, 0), false },
        { limits(20 << 10, 200 << 10, 100 << 10), false },
        { limits(64 << 20, 100 << 10, 300 << 10), false },
    };
    uint64_t seed = seed_begin();

    (void)state;
    for (size_t i = 0; i < sizeof walks / sizeof *walks; i++)
        walk(&walks[i], seed + i);
}

/* ---- threads ---- */

enum { SHARED = 3, TURNS = 3000 };

struct crowd {
    struct nk__journals js;
    nk__journal *shared[SHARED];
    atomic_int n_read;
    atomic_bool over;
};

static void *append_to_shared(void *arg)
{
    struct crowd *c = arg;

    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < SHARED; i++)
            append(c->shared[i], turn % 600, 1, (uint64_t)i << 32);
    return NULL;
}

static void *append_to_own(void *arg)
{
    struct crowd *c = arg;

    for (int turn = 0; turn < TURNS / 300; turn++) {
        nk__journal *j = new_journal(&c->js, ROW);

        for (int pos = 0; pos < 300; pos += 3)
            append(j, pos, 3, 0);
        for (int pos = nk__journal_begin(j); pos < nk__journal_end(j); pos++)
            has_row(j, pos, (uint64_t)pos);
        nk__journal_free(j);
    }
    return NULL;
}

/* A row's bytes follow from its position, whoever forgets it meanwhile. */
static void *read_shared(void *arg)
{
    struct crowd *c = arg;

    for (int turn = 0; !atomic_load(&c->over); turn++)
        for (int i = 0; i < SHARED; i++) {
            int begin = nk__journal_begin(c->shared[i]), end = nk__journal_end(c->shared[i]);
            int pos = begin < end ? begin + turn % (end - begin) : begin, n;
            uint8_t got[ROW], wanted[ROW];
            struct nk_error err;
            int rc = nk__journal_read(c->shared[i], pos, 1, got, &err);

            assert_true(!rc || rc == NK_E_OUT_OF_RANGE);
            fill(wanted, ROW, ((uint64_t)i << 32) + (uint64_t)pos);
            if (!rc)
                assert_memory_equal(got, wanted, ROW);
            if (!rc)
                atomic_fetch_add(&c->n_read, 1);
            if (nk__journal_step_at(c->shared[i], pos, &n, NULL))
                assert_int_equal(n, 1);
            if (turn % 100 == 0)
                nk__journal_truncate(c->shared[i], pos);
            assert_true(atomic_load(&c->js.memory_bytes) <= c->js.limits.memory_bytes);
            assert_true(atomic_load(&c->js.spilled_bytes) <= c->js.limits.spill_bytes);
        }
    return NULL;
}

static void test_journal__threads_share_the_room(void **state)
{
    static struct crowd c;
    struct nk__journal_limits l = limits(20 << 10, 40 << 10, 60 << 10);
    pthread_t compute, own, net;

    (void)state;
    nk__journals_init(&c.js, &l);
    for (int i = 0; i < SHARED; i++)
        c.shared[i] = new_journal(&c.js, ROW);
    append_to_shared(&c); /* so that there is something to read */
    assert_int_equal(pthread_create(&net, NULL, read_shared, &c), 0);
    assert_int_equal(pthread_create(&compute, NULL, append_to_shared, &c), 0);
    assert_int_equal(pthread_create(&own, NULL, append_to_own, &c), 0);
    pthread_join(compute, NULL);
    pthread_join(own, NULL);
    append_to_shared(&c);
    atomic_store(&c.over, true);
    pthread_join(net, NULL);
    for (int i = 0; i < SHARED; i++)
        nk__journal_free(c.shared[i]);
    at_zero(&c.js);
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir); /* nothing is left in it */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_journal__knows_the_steps_shapes),
        cmocka_unit_test(test_journal__positions_are_authoritative),
        cmocka_unit_test(test_journal__a_gap_empties_it),
        cmocka_unit_test(test_journal__reads_only_what_it_has),
        cmocka_unit_test(test_journal__none_holds_nothing),
        cmocka_unit_test(test_journal__no_memory_allowed_is_no_journal),
        cmocka_unit_test(test_journal__forgets_its_oldest_steps_at_the_sessions_ceiling),
        cmocka_unit_test(test_journal__the_ceiling_of_all_is_kept),
        cmocka_unit_test(test_journal__a_step_that_is_larger_than_all_room_is_not_kept),
        cmocka_unit_test(test_journal__spills_to_a_file_without_a_name),
        cmocka_unit_test(test_journal__without_memory_it_writes_to_its_file),
        cmocka_unit_test(test_journal__the_file_has_a_ceiling),
        cmocka_unit_test(test_journal__without_a_folder_it_keeps_what_memory_has),
        cmocka_unit_test(test_journal__a_full_disk_ends_no_session),
        cmocka_unit_test(test_journal__a_full_disk_where_no_memory_is_left),
        cmocka_unit_test(test_journal__what_cannot_be_read_back_is_lost_and_no_more),
        cmocka_unit_test(test_journal__random_walks_agree_with_a_plain_array),
        cmocka_unit_test(test_journal__threads_share_the_room),
    };

    return cmocka_run_group_tests_name("journal", tests, setup, teardown);
}
