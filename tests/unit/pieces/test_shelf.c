#include <fcntl.h>
#include <sys/mman.h>

#include "pieces/shelf.h"
#include "unit/pieces/pieces_test.h"

static const struct nk_shelf_file *find(const struct nk_shelf_file *files, int n, int begin,
                                        int end)
{
    for (int i = 0; i < n; i++)
        if (files[i].range.begin == begin && files[i].range.end == end)
            return &files[i];
    return NULL;
}

static bool is_there(int begin, int end)
{
    struct nk_shelf_file *files;
    bool found;
    int n;

    ok(nk_shelf_list(&files, &n, NULL, err));
    found = find(files, n, begin, end) != NULL;
    free(files);
    return found;
}

static char *cut(nk_model *m, int begin, int end, int64_t used_s)
{
    struct timespec at[2] = { { .tv_sec = used_s }, { .tv_sec = used_s } };
    char *path;

    ok(nk_slice_cached(m, (struct nk_range){ begin, end }, NK_VERIFY_NEVER, &path, err));
    assert_int_equal(utimensat(AT_FDCWD, path, at, 0), 0);
    return path;
}

static void test_shelf__lists_what_there_is_last_used_first(void **state)
{
    char *model = make_model("listed", true, 1), *a, *b, *folder, part[4096], journal[4096];
    nk_model *m = open_model(model);
    struct nk_shelf_file *files;
    int n, fd;

    (void)state;
    use_cache("list");
    a = cut(m, 0, 2, 1000);
    b = cut(m, 2, 4, 2000);
    snprintf(part, sizeof part, "%.*s.listed.001-003.gguf.part", (int)(strrchr(a, '/') + 1 - a), a);
    snprintf(journal, sizeof journal, "%.*s.journal", (int)strlen(part) - 5, part);
    ok(nk_file_write(part, "x", 1, err));
    ok(nk_file_write(journal, "x", 1, err));
    ok(nk_shelf_list(&files, &n, &folder, err));
    assert_int_equal(n, 3);
    assert_true(files[0].is_partial);
    assert_string_equal(files[1].path, b);
    assert_string_equal(files[2].path, a);
    assert_string_equal(files[2].model, "listed");
    assert_int_equal(files[2].range.end, 2);
    assert_int_equal(strncmp(a, folder, strlen(folder)), 0);
    /* What is mapped is in use, though its descriptor is closed. */
    fd = open(b, O_RDONLY);
    assert_ptr_not_equal(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0), MAP_FAILED);
    close(fd);
    assert_false(nk_shelf_remove(&files[1]));
    assert_true(nk_shelf_remove(&files[2]));
    assert_true(nk_shelf_remove(&files[0]));
    assert_int_equal(access(a, F_OK), -1);
    assert_int_equal(access(b, F_OK), 0);
    assert_int_equal(access(part, F_OK), -1);
    assert_int_equal(access(journal, F_OK), -1);
    nk_model_close(m);
    free(files);
    free(folder);
    free(a);
    free(b);
    free(model);
}

static void test_shelf__makes_room_with_what_was_not_used_for_longest(void **state)
{
    struct nk_range thirds[] = { { 0, 1 }, { 1, 2 }, { 2, 4 } };
    char *model = make_model("room", true, 2), *path;
    nk_model *m = open_model(model);
    int fd;

    (void)state;
    use_cache("room");
    free(cut(m, 0, 2, 2000));
    free(cut(m, 1, 3, 1000));
    free(cut(m, 2, 4, 500));
    /* Beside a whole model that is to come there is room for one of them. */
    close(nk_shelf_make_room(m, thirds, 3));
    assert_true(is_there(0, 2));
    assert_false(is_there(1, 3));
    assert_true(is_there(2, 4)); /* it is one of the thirds */
    path = cut(m, 1, 3, 1000);
    fd = open(path, O_RDONLY);
    close(nk_shelf_make_room(m, thirds, 3));
    assert_true(is_there(1, 3)); /* in use, and counts before what was used later but is not */
    assert_false(is_there(0, 2));
    close(fd);
    free(cut(m, 0, 2, 2000));
    close(nk_shelf_make_room(m, thirds, 3));
    assert_false(is_there(1, 3));
    assert_true(is_there(0, 2));
    free(path);
    nk_model_close(m);
    free(model);
}

/* Between being found and being open a slice is in nobody's use. */
static void test_shelf__removes_nothing_while_somebody_holds_what_he_has_found(void **state)
{
    struct nk_range first = { 0, 2 }, thirds[] = { { 0, 1 }, { 1, 2 }, { 2, 4 } };
    char *model = make_model("hold", true, 2);
    nk_model *m = open_model(model);
    int hold;

    (void)state;
    use_cache("hold");
    free(cut(m, 0, 2, 2000));
    hold = nk_shelf_make_room(m, &first, 1);
    assert_true(hold >= 0);
    free(cut(m, 1, 3, 2500));
    close(nk_shelf_make_room(m, thirds, 3));
    assert_true(is_there(0, 2));
    assert_true(is_there(1, 3));
    close(hold);
    close(nk_shelf_make_room(m, thirds, 3));
    assert_false(is_there(0, 2));
    assert_true(is_there(1, 3));
    nk_model_close(m);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shelf__lists_what_there_is_last_used_first),
        cmocka_unit_test(test_shelf__makes_room_with_what_was_not_used_for_longest),
        cmocka_unit_test(test_shelf__removes_nothing_while_somebody_holds_what_he_has_found),
    };

    test_dir_make(NULL);
    use_cache("cache");
    return cmocka_run_group_tests(tests, NULL, test_dir_remove);
}
