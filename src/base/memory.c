#include "base/memory_int.h"

#include <inttypes.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#ifdef __linux__
#include <sys/sysmacros.h>
#endif
#include <unistd.h>

static uint64_t pages(int name)
{
    long n = sysconf(name), size = sysconf(_SC_PAGESIZE);

    return n > 0 && size > 0 ? (uint64_t)n * (uint64_t)size : 0;
}

uint64_t nk_memory_total(void)
{
    return pages(_SC_PHYS_PAGES);
}

static bool read_number(const char *folder, const char *name, uint64_t *out)
{
    char path[PATH_MAX + 64];
    FILE *f;
    bool ok;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    f = fopen(path, "re");
    ok = f && fscanf(f, "%" SCNu64, out) == 1; /* "max" is none */
    if (f)
        fclose(f);
    return ok;
}

/* Linux's Documentation/admin-guide/cgroup-v2.rst: a group's limit holds for all below it. */
static uint64_t group_available(const char *folder)
{
    uint64_t max, used, cached = 0, bytes;
    char path[PATH_MAX + 64], line[128];
    FILE *f;

    if (!read_number(folder, "memory.max", &max) || !read_number(folder, "memory.current", &used))
        return UINT64_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "active_file %" SCNu64, &bytes) == 1 ||
            sscanf(line, "inactive_file %" SCNu64, &bytes) == 1)
            cached += bytes;
    if (f)
        fclose(f);
    used -= cached < used ? cached : used;
    return used < max ? max - used : 0;
}

uint64_t nk__memory_groups_available(const char *groups, const char *root)
{
    uint64_t least = UINT64_MAX, one;
    char folder[PATH_MAX], line[PATH_MAX];
    FILE *f = fopen(groups, "re");

    folder[0] = '\0';
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "0::/", 4)) {
            line[strcspn(line, "\n")] = '\0';
            if (snprintf(folder, sizeof folder, "%s%s", root, line + 3) >= (int)sizeof folder)
                folder[0] = '\0';
        }
    if (f)
        fclose(f);
    while (strlen(folder) >= strlen(root) && *folder) {
        one = group_available(folder);
        least = one < least ? one : least;
        *strrchr(folder, '/') = '\0';
    }
    return least;
}

/* The address space that a limit (ulimit -v) leaves; UINT64_MAX: there is none. */
static uint64_t address_space_left(void)
{
    unsigned long long used = 0;
    struct rlimit limit;
    FILE *f;

    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%llu", &used) != 1)
            used = 0;
        fclose(f);
    }
    used *= (unsigned long long)sysconf(_SC_PAGESIZE);
    return used < limit.rlim_cur ? limit.rlim_cur - used : 1;
}

uint64_t nk_memory_available(void)
{
    uint64_t space = address_space_left();
    unsigned long long kib = 0;
    uint64_t groups = nk__memory_groups_available("/proc/self/cgroup", "/sys/fs/cgroup");
    char line[128];
    FILE *f = fopen("/proc/meminfo", "re");

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
#ifdef _SC_AVPHYS_PAGES
    if (!kib)
        kib = pages(_SC_AVPHYS_PAGES) / 1024;
#endif
    if (groups < space)
        space = groups;
    return kib * 1024 < space ? kib * 1024 : space;
}

#ifdef __linux__
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* glibc 2.37 */
#endif
enum {
    HUGE_PAGE = 2 << 20,
    /* What is replaced in one go. Each is a mapping of its own, of which a process can have some
     * 65,000. */
    REPLACED_AT_ONCE = 32 << 20,
};

static uintptr_t huge_page_up(uintptr_t at)
{
    return (at + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
}

uint64_t nk_memory_use_huge_pages(void *memory, size_t size, const atomic_bool *stop)
{
    uintptr_t at = huge_page_up((uintptr_t)memory), end = (uintptr_t)memory + size;
    uint64_t total = 0;

    /* One at a time: a call cannot be interrupted, and one that fails (no free huge page, say) says
     * nothing of the next. */
    for (; at + HUGE_PAGE <= end && !atomic_load_explicit(stop, memory_order_relaxed);
         at += HUGE_PAGE)
        if (!madvise((void *)at, HUGE_PAGE, MADV_COLLAPSE))
            total += HUGE_PAGE;
    return total;
}

/* One part of whole huge pages. Only a copy that is in huge pages is worth its memory. mremap
 * (mremap(2)) takes the old mapping away and puts the copy there with the lock held that a reader's
 * page fault waits for; it checks beforehand that the number of mappings allows it. */
static bool replace(uintptr_t at, size_t size, const atomic_bool *stop)
{
    uint8_t *room = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    uint8_t *copy = (uint8_t *)huge_page_up((uintptr_t)room);
    bool done;

    if (room == MAP_FAILED)
        return false;
    madvise(copy, size, MADV_HUGEPAGE);
    done = true;
    for (size_t i = 0; done && i < size; i += HUGE_PAGE) {
        memcpy(copy + i, (const uint8_t *)at + i, HUGE_PAGE);
        done = !atomic_load_explicit(stop, memory_order_relaxed) &&
               !madvise(copy + i, HUGE_PAGE, MADV_COLLAPSE);
    }
    done = done && !mprotect(copy, size, PROT_READ) &&
           mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)at) != MAP_FAILED;
    if (!done) {
        munmap(room, size + HUGE_PAGE);
        return false;
    }
    if (copy > room)
        munmap(room, (size_t)(copy - room));
    munmap(copy + size, HUGE_PAGE - (size_t)(copy - room));
    return true;
}

uint64_t nk_memory_replace_mapping(void *mapping, size_t size, const atomic_bool *stop)
{
    uintptr_t at = huge_page_up((uintptr_t)mapping), end = (uintptr_t)mapping + size;
    uint64_t total = 0;

    while (at + HUGE_PAGE <= end && !atomic_load_explicit(stop, memory_order_relaxed)) {
        size_t n = end - at < REPLACED_AT_ONCE ? (end - at) / HUGE_PAGE * HUGE_PAGE
                                               : (size_t)REPLACED_AT_ONCE;

        if (replace(at, n, stop))
            total += n;
        at += n;
    }
    return total;
}

uint64_t nk_memory_release_file(const char *path)
{
    uint64_t total = 0;
    struct stat st;
    size_t size = 0;
    char *line = NULL;
    FILE *f = stat(path, &st) ? NULL : fopen("/proc/self/maps", "re");

    /* proc_pid_maps(5): address range, permissions, offset, device, inode, path */
    while (f && getline(&line, &size, f) > 0) {
        unsigned major_no, minor_no;
        uintptr_t begin, end;
        uint64_t inode;
        char perms[5];

        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*x %x:%x %" SCNu64, &begin, &end, perms,
                   &major_no, &minor_no, &inode) != 6 ||
            inode != st.st_ino || makedev(major_no, minor_no) != st.st_dev || perms[1] == 'w')
            continue;
        /* What was never written to is the file's: dropping it loses nothing. */
        if (!madvise((void *)begin, end - begin, MADV_DONTNEED))
            total += end - begin;
    }
    free(line);
    if (f)
        fclose(f);
    return total;
}
#else
uint64_t nk_memory_use_huge_pages(void *memory, size_t size, const atomic_bool *stop)
{
    (void)memory;
    (void)size;
    (void)stop;
    return 0;
}

uint64_t nk_memory_replace_mapping(void *mapping, size_t size, const atomic_bool *stop)
{
    return nk_memory_use_huge_pages(mapping, size, stop);
}

uint64_t nk_memory_release_file(const char *path)
{
    (void)path;
    return 0;
}
#endif
