/* Is a slice what was written? Its seal, what is found with it, and what is remembered of that. */
#include "slice/slice.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "slice/check_int.h"
#include "slice/mark_int.h"
#include "slice/seal_int.h"
#include "slice/write_int.h"

static char dir[64];
static const char model_sha256[NK_SHA256_HEX] =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static const char *in_dir(const char *name)
{
    static char path[256];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* 0-0: the vocabulary file. */
static const char *write_slice(int begin, int end)
{
    static char path[256];
    const char *models = getenv("NK_MODELS");
    struct nk_error err = { 0 };
    char model_path[4096];
    nk_model *m;

    snprintf(path, sizeof path, "%s/%d-%d.gguf", dir, begin, end);
    snprintf(model_path, sizeof model_path, "%s/kjv-tiny.gguf", models ? models : "models");
    if (nk_model_open(&m, model_path, &err) ||
        nk__slice_write(m, (struct nk_range){ begin, end }, model_sha256, path, NULL, NULL, NULL,
                        NULL, &err))
        fail_msg("%s", err.msg);
    nk_model_close(m);
    return path;
}

/* The seal of a good file; released by the caller. */
static struct nk__seal seal_of(const char *path)
{
    struct nk_error err = { 0 };
    struct nk__seal s;
    struct nk__gguf g;

    assert_int_equal(nk__gguf_open(&g, path, &err), 0);
    if (nk__seal_read(&s, &g.source, true, &err))
        fail_msg("%s", err.msg);
    nk__gguf_close(&g);
    return s;
}

static uint64_t size_of(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

/* Changes one bit, or changes it back. */
static void flip(const char *path, uint64_t at)
{
    int fd = open(path, O_RDWR);
    char c;

    assert_int_equal(pread(fd, &c, 1, (off_t)at), 1);
    c ^= 4;
    assert_int_equal(pwrite(fd, &c, 1, (off_t)at), 1);
    close(fd);
}

static int check(const char *path, struct nk_slice_checked *out, struct nk_error *err)
{
    return nk_slice_check_file(path, NK_VERIFY_ALWAYS, out, err);
}

static void test_check__a_good_file_is_whole(void **state)
{
    const int ranges[][2] = { { 0, 3 }, { 3, 8 }, { 0, 8 }, { 0, 0 } };

    (void)state;
    for (int i = 0; i < 4; i++) {
        const char *path = write_slice(ranges[i][0], ranges[i][1]);
        struct nk__seal s = seal_of(path);
        struct nk_slice_checked c;
        struct nk_error err = { 0 };
        uint64_t at = 0;

        assert_int_equal(check(path, &c, &err), 0);
        assert_int_equal(c.verified, NK_VERIFIED_NOW);
        assert_int_equal(c.n_parts, s.n_parts);
        assert_int_equal(c.n_damaged, 0);
        assert_string_equal(s.parts[0].name, "header");
        for (int k = 0; k < s.n_parts; k++) {
            assert_int_equal(s.parts[k].begin, at);
            at += s.parts[k].size;
        }
        assert_int_equal(at, s.begin);
        assert_true(s.begin < size_of(path));
        nk__seal_release(&s);
    }
}

/* So that one can be taken from the other. */
static void test_check__a_tensor_has_one_digest_in_whatever_slice_it_is(void **state)
{
    struct nk__seal a, b;
    int n = 0;

    (void)state;
    a = seal_of(write_slice(2, 5));
    b = seal_of(write_slice(4, 8));
    for (int i = 0; i < a.n_parts; i++)
        for (int k = 0; k < b.n_parts; k++)
            if (!strncmp(a.parts[i].name, "blk.4.", 6) &&
                !strcmp(a.parts[i].name, b.parts[k].name)) {
                assert_string_equal(a.parts[i].sha256, b.parts[k].sha256);
                n++;
            }
    assert_true(n >= 9);
    nk__seal_release(&a);
    nk__seal_release(&b);
}

/* Every part in three places, the seal in every byte of some of its lines. */
static void test_check__a_changed_bit_is_found_wherever_it_is(void **state)
{
    const char *path = write_slice(0, 3);
    uint64_t size = size_of(path);
    struct nk__seal s = seal_of(path);
    struct nk_slice_checked c;
    struct nk_error err;

    (void)state;
    for (int i = 0; i < s.n_parts; i++) {
        const struct nk__seal_part *p = &s.parts[i];
        const uint64_t places[] = { p->begin, p->begin + p->size / 2, p->begin + p->size - 1 };

        for (int k = i ? 0 : 1; k < 3; k++) { /* the first byte of the header is GGUF's G */
            flip(path, places[k]);
            if (check(path, &c, &err) == 0)
                fail_msg("byte %llu of %s was changed, and nobody saw it",
                         (unsigned long long)(places[k] - p->begin), p->name);
            if (i) {
                assert_string_equal(err.reason, "damaged");
                assert_int_equal(c.n_damaged, 1);
                assert_string_equal(c.damaged[0].name, p->name);
                assert_int_equal(c.damaged[0].begin, p->begin);
                assert_int_equal(c.damaged[0].size, p->size);
                assert_non_null(strstr(err.msg, p->name));
                assert_non_null(strstr(err.msg, path));
            }
            flip(path, places[k]);
        }
    }
    for (uint64_t at = s.begin; at < s.begin + 300; at++) {
        flip(path, at);
        assert_int_equal(check(path, NULL, &err), NK_E_DATA_LOSS);
        assert_string_equal(err.reason, "damaged");
        flip(path, at);
    }
    for (uint64_t at = size - 300; at < size; at++) {
        flip(path, at);
        assert_int_equal(check(path, NULL, &err), NK_E_DATA_LOSS);
        flip(path, at);
    }
    assert_int_equal(check(path, &c, &err), 0);
    nk__seal_release(&s);
}

/* What a key says, such as a RoPE base, is in no tensor. */
static void
test_check__a_changed_number_in_the_metadata_is_found_before_anything_is_read(void **state)
{
    const char *path = write_slice(3, 8);
    struct nk_slice_checked c;
    nk_slice_check *k = NULL;
    struct nk_error err;
    char head[65536], *at;
    nk_model *m;
    int fd = open(path, O_RDONLY);
    ssize_t n = pread(fd, head, sizeof head, 0);

    (void)state;
    close(fd);
    at = memmem(head, (size_t)n, "llama.rope.dimension_count", 26);
    assert_non_null(at);
    flip(path, (uint64_t)(at - head) + 26 + 4);
    assert_int_equal(check(path, &c, &err), NK_E_DATA_LOSS);
    assert_string_equal(c.damaged[0].name, "header");
    assert_int_equal(nk_model_open(&m, path, &err), 0);
    assert_int_equal(nk_slice_check_start(&k, m, NK_VERIFY_ALWAYS, &err), NK_E_DATA_LOSS);
    assert_string_equal(err.reason, "damaged");
    assert_null(k);
    nk_model_close(m);
}

static void test_check__all_that_is_damaged_is_named(void **state)
{
    const char *path = write_slice(3, 8);
    struct nk__seal s = seal_of(path);
    struct nk_slice_checked c;
    struct nk_error err;

    (void)state;
    for (int i = 1; i < s.n_parts; i++)
        flip(path, s.parts[i].begin + 1);
    assert_int_equal(check(path, &c, &err), NK_E_DATA_LOSS);
    assert_int_equal(c.n_damaged, s.n_parts - 1);
    for (int i = 0; i < NK_DAMAGED_MAX; i++)
        assert_string_equal(c.damaged[i].name, s.parts[i + 1].name);
    nk__seal_release(&s);
}

/* An earlier version's: the same without seal and with another number. One that has lost its seal
 * is not taken for that. */
static void test_check__a_file_without_digests_is_not_called_whole(void **state)
{
    const char *path = write_slice(0, 3), key[] = "nakshatra.slice_format";
    struct nk__seal s = seal_of(path);
    struct nk_slice_checked c;
    struct nk_error err;
    char head[65536], *at;
    int fd = open(path, O_RDWR);
    ssize_t n = pread(fd, head, sizeof head, 0);

    (void)state;
    assert_int_equal(ftruncate(fd, (off_t)s.begin), 0);
    assert_int_equal(check(path, NULL, &err), NK_E_DATA_LOSS);
    assert_string_equal(err.reason, "damaged");
    at = memmem(head, (size_t)n, key, sizeof key - 1);
    assert_non_null(at);
    assert_int_equal(at[sizeof key - 1 + 4], NK__SLICE_FORMAT_SEALED); /* behind the type */
    assert_int_equal(pwrite(fd, "\1", 1, at - head + (off_t)sizeof key - 1 + 4), 1);
    assert_int_equal(check(path, &c, &err), 0);
    assert_int_equal(c.verified, NK_VERIFIED_NO_DIGESTS);
    close(fd);
    nk__seal_release(&s);
}

/* Whoever wrote it has digested it right, and it is nonsense all the same. */
static void test_check__a_seal_that_contradicts_itself_is_damage(void **state)
{
    static const struct {
        struct nk__seal_part parts[3];
        int n;
    } wrong[] = {
        { { { .begin = 0, .size = 99, .name = "a" } }, 1 },
        { { { .begin = 0, .size = 101, .name = "a" } }, 1 },
        { { { .begin = 0, .size = UINT64_MAX, .name = "a" } }, 1 },
        { { { .begin = 1, .size = 99, .name = "a" } }, 1 },
        { { { .begin = 0, .size = 50, .name = "a" }, { .begin = 49, .size = 51, .name = "b" } },
          2 },
        { { { .begin = 0, .size = 50, .name = "a" }, { .begin = 51, .size = 49, .name = "b" } },
          2 },
        { { { .begin = 0, .size = 50, .name = "a" },
            { .begin = 50, .size = UINT64_MAX - 49, .name = "b" },
            { .begin = 0, .size = 100, .name = "c" } },
          3 },
        { { { .begin = 0, .size = 100, .name = "" } }, 1 },
        { { { .begin = 0, .size = 100, .name = "a\nb" } }, 1 },
        { { { .begin = 0, .size = 100, .name = "a", .is_hole = true } },
          1 }, /* this one is right */
        { .n = 0 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct nk_buf b = NK_BUF_INIT(4096);
        struct nk__seal_part parts[3];
        struct nk__source source = { .fd = -1 };
        struct nk_error err = { 0 };
        struct nk__seal s;
        int rc;

        memcpy(parts, wrong[i].parts, sizeof parts);
        for (int k = 0; k < 3; k++)
            memcpy(parts[k].sha256, model_sha256, sizeof model_sha256);
        assert_int_equal(nk_buf_add(&b, (char[100]){ 0 }, 100, &err), 0);
        assert_int_equal(nk__seal_format(parts, wrong[i].n, &b, &err), 0);
        source.data = (const uint8_t *)b.data;
        source.size = b.size;
        rc = nk__seal_read(&s, &source, true, &err);
        if (parts[0].is_hole) {
            assert_int_equal(rc, 0);
            assert_int_equal(s.n_parts, 1);
            assert_true(s.parts[0].is_hole);
        } else {
            assert_int_equal(rc, NK_E_DATA_LOSS);
            assert_string_equal(err.reason, "damaged");
            assert_int_equal(s.n_parts, 0);
        }
        nk__seal_release(&s);
        nk_buf_release(&b);
    }
}

static int n_marks(void)
{
    DIR *d = opendir(in_dir("nakshatra/verified"));
    struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d)))
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

/* Checked so many seconds after the file was changed. */
static enum nk_slice_verified check_later(const char *path, enum nk_slice_verify how, int64_t later,
                                          int want)
{
    struct nk_slice_checked c = { 0 };
    struct nk_error err = { 0 };
    nk_slice_check *k;
    struct nk__gguf g;
    int rc;

    assert_int_equal(nk__gguf_open(&g, path, &err), 0);
    rc = nk__slice_check_start(&k, &g, how, g.id.ctime_s + later, &c, &err);
    if (!rc)
        rc = nk_slice_check_wait(k, &c, &err);
    assert_int_equal(rc, want);
    nk__gguf_close(&g);
    return c.verified;
}

static void test_check__what_was_whole_is_not_read_again_until_it_is_changed(void **state)
{
    const char *path = write_slice(0, 3);
    uint64_t middle = size_of(path) / 2;
    struct timespec times[2] = { { .tv_nsec = UTIME_OMIT } };
    struct stat st;
    int before = n_marks();
    bool moved;

    (void)state;
    assert_int_equal(check_later(path, NK_VERIFY_NEVER, 9, 0), NK_VERIFIED_NO);
    assert_int_equal(check_later(path, NK_VERIFY_ALWAYS, 9, 0), NK_VERIFIED_NOW);
    assert_int_equal(check_later(path, NK_VERIFY_ONCE, 1, 0), NK_VERIFIED_NOW);
    assert_int_equal(n_marks(), before); /* could still be changed within the same second */
    assert_int_equal(check_later(path, NK_VERIFY_ONCE, 9, 0), NK_VERIFIED_NOW);
    assert_int_equal(n_marks(), before + 1);
    assert_int_equal(check_later(path, NK_VERIFY_ONCE, 9, 0), NK_VERIFIED_EARLIER);
    assert_int_equal(check_later(path, NK_VERIFY_ALWAYS, 9, 0), NK_VERIFIED_NOW);
    /* Changed, and the time of that put back: when the inode was changed nobody can put back. It
     * moves on in ticks of some milliseconds. */
    assert_int_equal(stat(path, &st), 0);
    times[1] = st.st_mtim;
    flip(path, middle);
    do {
        struct stat now;

        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
        assert_int_equal(stat(path, &now), 0);
        assert_int_equal(now.st_mtim.tv_nsec, st.st_mtim.tv_nsec);
        moved = now.st_ctim.tv_nsec != st.st_ctim.tv_nsec;
    } while (!moved);
    assert_int_equal(check_later(path, NK_VERIFY_ONCE, 9, NK_E_DATA_LOSS), NK_VERIFIED_NOW);
    assert_int_equal(n_marks(), before + 1);
}

static void test_check__marks_do_not_grow_without_bound(void **state)
{
    struct nk_file_id id = { .dev = 1 };
    struct nk_file_id first = { .dev = 1, .ino = 1 };

    (void)state;
    for (int i = 1; i <= NK__MARKS_MAX + 20; i++) {
        id.ino = (uint64_t)i;
        nk__mark_set(&id, model_sha256, "somewhere", 1000);
        assert_true(nk__mark_find(&id, model_sha256));
        assert_true(nk__mark_find(&first, model_sha256)); /* in use: it stays */
    }
    assert_int_equal(n_marks(), NK__MARKS_MAX);
    id.ino = 9999;
    assert_false(nk__mark_find(&id, model_sha256));
    nk__mark_set(&id, model_sha256, "somewhere", NK__RACY_S - 1);
    assert_false(nk__mark_find(&id, model_sha256));
}

static void test_check__words(void **state)
{
    enum nk_slice_verify how;
    struct nk_error err;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(
            nk_slice_verify_parse(nk_slice_verify_text((enum nk_slice_verify)i), &how, &err), 0);
        assert_int_equal(how, i);
    }
    assert_int_equal(nk_slice_verify_parse("sometimes", &how, &err), NK_E_INVALID);
    assert_string_equal(nk_slice_verified_text(NK_VERIFIED_NOW), "yes");
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/nk-check-XXXXXX");
    return !mkdtemp(dir) || setenv("XDG_CACHE_HOME", dir, 1);
}

static int teardown(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check__a_good_file_is_whole),
        cmocka_unit_test(test_check__a_tensor_has_one_digest_in_whatever_slice_it_is),
        cmocka_unit_test(test_check__a_changed_bit_is_found_wherever_it_is),
        cmocka_unit_test(
            test_check__a_changed_number_in_the_metadata_is_found_before_anything_is_read),
        cmocka_unit_test(test_check__all_that_is_damaged_is_named),
        cmocka_unit_test(test_check__a_file_without_digests_is_not_called_whole),
        cmocka_unit_test(test_check__a_seal_that_contradicts_itself_is_damage),
        cmocka_unit_test(test_check__what_was_whole_is_not_read_again_until_it_is_changed),
        cmocka_unit_test(test_check__marks_do_not_grow_without_bound),
        cmocka_unit_test(test_check__words),
    };

    return cmocka_run_group_tests_name("check", tests, setup, teardown);
}
