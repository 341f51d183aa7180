#include <setjmp.h>
#include <stdarg.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory_int.h"

static uint64_t meminfo(const char *key)
{
    unsigned long long kib = 0;
    char line[128];
    FILE *f = fopen("/proc/meminfo", "r");

    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key)))
            sscanf(line + strlen(key), ": %llu", &kib);
    fclose(f);
    return kib * 1024;
}

/* The page cache holds the models that were read: MemFree alone says that a machine is full which
 * is not. */
static void test_memory__what_the_page_cache_holds_is_available(void **state)
{
    uint64_t available = nk_memory_available(), told = meminfo("MemAvailable");
    uint64_t far = told > available ? told - available : available - told;

    (void)state;
    assert_true(told > 0);
    assert_true(available > 0);
    if (access("/sys/fs/cgroup/memory.max", F_OK)) /* else a container's limit may be less */
        assert_true(far < told / 4);               /* others run meanwhile */
    else
        assert_true(available < told + told / 4);
}

static void test_memory__total_is_the_machines(void **state)
{
    (void)state;
    assert_true(nk_memory_total() >= nk_memory_available());
    assert_true(nk_memory_total() >= meminfo("MemTotal"));
}

enum { MIB = 1 << 20 };

/* Resident KiB of the mapping that holds p. */
static long resident(const void *p)
{
    unsigned long begin, end;
    bool inside = false;
    char line[512];
    long kib = -1;
    FILE *f = fopen("/proc/self/smaps", "r");

    assert_non_null(f);
    while (kib < 0 && fgets(line, sizeof line, f))
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = (unsigned long)p >= begin && (unsigned long)p < end;
        else if (inside)
            sscanf(line, "Rss: %ld", &kib);
    fclose(f);
    return kib;
}

static void test_memory__a_files_mapping_is_released_and_reads_the_same(void **state)
{
    char path[] = "/tmp/nk-test-memory-XXXXXX";
    uint8_t *shared, *changed, *bytes = malloc(4 * MIB);
    int fd = mkstemp(path);

    (void)state;
    assert_non_null(bytes);
    assert_true(fd >= 0);
    for (int i = 0; i < 4 * MIB; i++)
        bytes[i] = (uint8_t)(i * 31 >> 8);
    assert_int_equal(write(fd, bytes, 4 * MIB), 4 * MIB);
    shared = mmap(NULL, 4 * MIB, PROT_READ, MAP_SHARED, fd, 0);
    changed = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    assert_true(shared != MAP_FAILED && changed != MAP_FAILED);
    assert_memory_equal(shared, bytes, 4 * MIB);
    memset(changed, 7, 4 * MIB);
    assert_true(resident(shared) >= 4096);
    assert_int_equal(nk_memory_release_file(path), 4 * MIB); /* not what was written to */
    assert_int_equal(resident(shared), 0);
    assert_memory_equal(shared, bytes, 4 * MIB);
    memset(bytes, 7, 4 * MIB);
    assert_memory_equal(changed, bytes, 4 * MIB);
    assert_int_equal(nk_memory_release_file("/tmp/nk-test-memory-none"), 0);
    munmap(shared, 4 * MIB);
    munmap(changed, 4 * MIB);
    close(fd);
    unlink(path);
    free(bytes);
}

static void test_memory__huge_pages_hold_the_same(void **state)
{
    atomic_bool stop = true;
    size_t size = 9 * MIB;
    uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool same = true;
    uint64_t n;

    (void)state;
    assert_true(m != MAP_FAILED);
    for (size_t i = 0; i < size; i++)
        m[i] = (uint8_t)(i * 31 >> 8);
    assert_int_equal(nk_memory_use_huge_pages(m, size, &stop), 0);
    stop = false;
    n = nk_memory_use_huge_pages(m + 1, size - 1, &stop);
    assert_true(n % (2 * MIB) == 0 && n <= 8 * MIB); /* 0 where the kernel cannot do it */
    for (size_t i = 0; i < size; i++)
        same &= m[i] == (uint8_t)(i * 31 >> 8);
    assert_true(same);
    assert_int_equal(nk_memory_use_huge_pages(m + 100, 1 * MIB, &stop), 0);
    munmap(m, size);
}

static char root[] = "/tmp/nk-test-groups-XXXXXX";

static void put(const char *name, const char *text)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", root, name);
    f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    fclose(f);
}

/* Files as Linux's Documentation/admin-guide/cgroup-v2.rst has them. */
static void test_memory__what_control_groups_leave_is_the_least_of_all_above(void **state)
{
    static const char *const names[] = {
        "a/b/memory.max", "a/b/memory.current", "a/b/memory.stat",
        "a/memory.max",   "a/memory.current",   "a/memory.stat",
        "memory.max",     "memory.current",     "groups",
    };
    char groups[64], path[256];

    (void)state;
    assert_non_null(mkdtemp(root));
    snprintf(groups, sizeof groups, "%s/groups", root);
    snprintf(path, sizeof path, "%s/a", root);
    assert_int_equal(mkdir(path, 0755), 0);
    snprintf(path, sizeof path, "%s/a/b", root);
    assert_int_equal(mkdir(path, 0755), 0);
    assert_true(nk__memory_groups_available(groups, root) == UINT64_MAX); /* no such file */
    put("groups", "12:memory:/elsewhere\n0::/a/b\n");
    assert_true(nk__memory_groups_available(groups, root) == UINT64_MAX); /* nor limits */
    put("a/b/memory.max", "max\n");
    put("a/b/memory.current", "5000\n");
    assert_true(nk__memory_groups_available(groups, root) == UINT64_MAX);
    put("a/memory.max", "9000\n");
    put("a/memory.current", "8000\n");
    assert_int_equal(nk__memory_groups_available(groups, root), 1000);
    /* What the page cache holds would be given back. */
    put("a/memory.stat", "anon 1\nfile 5000\nactive_file 300\ninactive_file 200\nslab 7\n");
    assert_int_equal(nk__memory_groups_available(groups, root), 1500);
    put("a/b/memory.max", "5200\n");
    assert_int_equal(nk__memory_groups_available(groups, root), 200);
    put("a/b/memory.stat", "active_file 6000\n"); /* shared with others: more than its own */
    assert_int_equal(nk__memory_groups_available(groups, root), 1500);
    put("a/b/memory.max", "4000\n"); /* over it */
    put("a/b/memory.stat", "active_file 0\n");
    assert_int_equal(nk__memory_groups_available(groups, root), 0);
    put("memory.max", "100\n");
    put("memory.current", "1\n");
    put("groups", "0::/\n");
    assert_int_equal(nk__memory_groups_available(groups, root), 99);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", root, names[i]);
        unlink(path);
    }
    snprintf(path, sizeof path, "%s/a/b", root);
    assert_int_equal(rmdir(path), 0);
    snprintf(path, sizeof path, "%s/a", root);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(root), 0);
}

static atomic_bool differs, readers_stop;
static uint8_t *mapped;

static void *read_all(void *size)
{
    while (!atomic_load(&readers_stop))
        for (size_t i = 0; i < *(size_t *)size; i += 509)
            if (mapped[i] != (uint8_t)(i * 31 >> 8))
                atomic_store(&differs, true);
    return NULL;
}

static void test_memory__a_mapping_is_replaced_while_it_is_read(void **state)
{
    char path[] = "/tmp/nk-test-memory-XXXXXX";
    size_t size = 75 * MIB + 4096;
    uint8_t *bytes = malloc(size);
    atomic_bool stop = true;
    pthread_t reader;
    uint64_t n;
    int fd = mkstemp(path);

    (void)state;
    assert_non_null(bytes);
    assert_true(fd >= 0);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i * 31 >> 8);
    assert_int_equal(write(fd, bytes, size), size);
    mapped = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    assert_true(mapped != MAP_FAILED);
    assert_int_equal(nk_memory_replace_mapping(mapped, size, &stop), 0);
    assert_int_equal(pthread_create(&reader, NULL, read_all, &size), 0);
    stop = false;
    n = nk_memory_replace_mapping(mapped + 5000, size - 5000, &stop);
    atomic_store(&readers_stop, true);
    pthread_join(reader, NULL);
    assert_false(atomic_load(&differs));
    assert_true(n % (2 * MIB) == 0 && n <= 74 * MIB); /* 0 where the kernel cannot do it */
    assert_memory_equal(mapped, bytes, size);
    /* What took its place is not the file's any more: it must not be dropped with it. */
    assert_true(nk_memory_release_file(path) <= size - n);
    assert_memory_equal(mapped, bytes, size);
    assert_int_equal(nk_memory_replace_mapping(mapped + 100, 1 * MIB, &stop), 0);
    assert_int_equal(munmap(mapped, size), 0);
    close(fd);
    unlink(path);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory__what_the_page_cache_holds_is_available),
        cmocka_unit_test(test_memory__total_is_the_machines),
        cmocka_unit_test(test_memory__a_files_mapping_is_released_and_reads_the_same),
        cmocka_unit_test(test_memory__huge_pages_hold_the_same),
        cmocka_unit_test(test_memory__what_control_groups_leave_is_the_least_of_all_above),
        cmocka_unit_test(test_memory__a_mapping_is_replaced_while_it_is_read),
    };

    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
