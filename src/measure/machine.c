/* What the machine is. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "measure/measure_int.h"

enum { CACHE_BYTES = 32 << 20 }; /* where the system does not tell */

void nk__cpu_name(char *out, size_t size)
{
    FILE *f = fopen("/proc/cpuinfo", "re");
    char line[256];

    out[0] = '\0';
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strstr(line, ": ");

        if (!colon || (strncmp(line, "model name", 10) != 0 && strncmp(line, "Model", 5) != 0 &&
                       strncmp(line, "CPU part", 8) != 0))
            continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(out, size, "%s", colon + 2);
        break;
    }
    if (f)
        fclose(f);
}

/* sysconf(_SC_LEVEL3_CACHE_SIZE) counts that of all sockets of a virtual machine's host; the
 * kernel's tables are what this one has (Linux, Documentation/ABI/testing/sysfs-devices-system-cpu,
 * index*). */
uint64_t nk__cpu_cache_bytes(void)
{
    uint64_t most = 0;

    for (int i = 0; i < 8; i++) {
        unsigned long long n = 0;
        char path[96], unit = 0;
        FILE *f;

        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        f = fopen(path, "re");
        if (!f)
            break;
        if (fscanf(f, "%llu%c", &n, &unit) == 2)
            n <<= unit == 'M' ? 20 : unit == 'K' ? 10 : 0;
        fclose(f);
        if (n > most)
            most = n;
    }
    return most ? most : CACHE_BYTES;
}

uint64_t nk__disk_free_bytes(const char *dir)
{
    struct statvfs s;

    return dir && !statvfs(dir, &s) ? (uint64_t)s.f_bavail * s.f_frsize : 0;
}

/* proc_pid_status(5). */
uint64_t nk__process_bytes(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    unsigned long long kib = 0;
    char line[128];

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib << 10;
}

int nk__memory_file_open(struct nk__memory_file *f, struct nk_error *err)
{
    *f = (struct nk__memory_file){ .fd = -1 };
#ifdef __linux__
    f->fd = memfd_create("nakshatra-measure", MFD_CLOEXEC);
    snprintf(f->path, sizeof f->path, "/proc/self/fd/%d", f->fd);
#else
    const char *tmp = getenv("TMPDIR");

    snprintf(f->path, sizeof f->path, "%s/nakshatra-measure.XXXXXX", tmp ? tmp : "/tmp");
    f->fd = mkstemp(f->path);
    f->has_name = f->fd >= 0;
#endif
    if (f->fd < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "a file in memory could not be made: %s",
                       strerror(errno));
    return 0;
}

void nk__memory_file_close(struct nk__memory_file *f)
{
    if (f->has_name)
        unlink(f->path);
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
    f->has_name = false;
}
