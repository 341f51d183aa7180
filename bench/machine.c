#include "bench/machine.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/args.h"
#include "base/clock.h"

enum { WALK_BYTES = 64 << 20, PROCESSES_MAX = 4096 };

/* The value of "key<spaces>: value" or "key: value" in a file of such lines; "" when it is not
 * there. */
static void find_value(const char *path, const char *key, char *out, size_t size)
{
    FILE *f = fopen(path, "re");
    char line[8192];

    out[0] = 0;
    while (f && fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');

        if (strncmp(line, key, strlen(key)) || !colon)
            continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = 0;
        snprintf(out, size, "%s", colon);
        break;
    }
    if (f)
        fclose(f);
}

/* " (family 25, model 17, AVX-512)": clouds tell a name that many kinds share. "" where the kernel
 * does not say. */
static void describe_kind(char *out, size_t size)
{
    static const struct {
        const char *flag, *name;
    } vectors[] = { { " avx512f ", ", AVX-512" }, { " avx2 ", ", AVX2" }, { " avx ", ", AVX" } };
    char family[16], model[16], flags[8192];
    const char *vector = "";

    out[0] = 0;
    find_value("/proc/cpuinfo", "cpu family", family, sizeof family);
    find_value("/proc/cpuinfo", "model\t", model, sizeof model);
    find_value("/proc/cpuinfo", "flags", flags, sizeof flags);
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0] && !vector[0]; i++)
        if (strstr(flags, vectors[i].flag))
            vector = vectors[i].name;
    if (family[0] && model[0])
        snprintf(out, size, " (family %s, model %s%s)", family, model, vector);
}

void nk_machine_describe(char *out, unsigned long size)
{
    char cpu[64], kind[64], memory[24];
    struct utsname u;

    find_value("/proc/cpuinfo", "model name", cpu, sizeof cpu);
    describe_kind(kind, sizeof kind);
    nk_size_format(memory, (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE));
    if (uname(&u) < 0)
        memset(&u, 0, sizeof u);
    u.release[strcspn(u.release, "-")] = 0;
    snprintf(out, size, "%s%s, %d cores, %s, %s %s %s", cpu[0] ? cpu : "unknown processor", kind,
             nk_cpu_count(), memory, u.sysname, u.release, u.machine);
}

int nk_machine_pin(const char *cpus, struct nk_error *err)
{
#ifdef __linux__
    cpu_set_t set;
    const char *p = cpus;

    CPU_ZERO(&set);
    while (*p) {
        char *end;
        long first = strtol(p, &end, 10), last = first;

        if (end != p && *end == '-') {
            p = end + 1;
            last = strtol(p, &end, 10);
        }
        if (end == p || first < 0 || last < first || last >= CPU_SETSIZE || (*end && *end != ','))
            return nk_fail(err, NK_E_INVALID, "bad_cpus", "'%s' is no list of cores such as 0-3,6",
                           cpus);
        for (long i = first; i <= last; i++)
            CPU_SET((size_t)i, &set);
        p = *end ? end + 1 : end;
    }
    if (sched_setaffinity(0, sizeof set, &set) < 0)
        return nk_fail(err, NK_E_INVALID, "bad_cpus", "cores %s: %s", cpus, strerror(errno));
    return 0;
#else
    return nk_fail(err, NK_E_UNIMPLEMENTED, "no_affinity",
                   "cores %s: only Linux can be told which cores to use", cpus);
#endif
}

struct task {
    int pid, parent;
    uint64_t ticks; /* its own and that of children it reaped */
    bool ours;
};

/* /proc/PID/stat: "pid (name) state ppid ... utime stime cutime cstime" are fields 1, 4 and 14 to
 * 17; the name may hold anything, so fields are counted from its last parenthesis. */
static bool read_stat(int pid, struct task *p)
{
    char path[64], text[1024], *rest;
    unsigned long long user, system, child_user, child_system;
    FILE *f;
    size_t n;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    f = fopen(path, "re");
    if (!f)
        return false;
    n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    rest = strrchr(text, ')');
    if (!rest || sscanf(rest + 1, " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %llu %llu",
                        &p->parent, &user, &system, &child_user, &child_system) != 5)
        return false;
    p->pid = pid;
    p->ticks = user + system + child_user + child_system;
    return true;
}

struct nk_machine_load nk_machine_load_now(void)
{
    struct nk_machine_load load = { 0, 0, nk_now_ns() };
    struct task *all = calloc(PROCESSES_MAX, sizeof *all);
    unsigned long long user, nice, system, idle, iowait, irq, softirq, steal;
    DIR *dir = opendir("/proc");
    FILE *f = fopen("/proc/stat", "re");
    int n = 0;
    bool changed = true;

    if (f && fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle,
                    &iowait, &irq, &softirq, &steal) == 8)
        load.busy = user + nice + system + irq + softirq + steal;
    for (struct dirent *e; dir && all && n < PROCESSES_MAX && (e = readdir(dir));)
        if (isdigit((unsigned char)e->d_name[0]) && read_stat(atoi(e->d_name), &all[n]))
            all[n].ours = all[n].pid == (int)getpid(), n++;
    while (changed) {
        changed = false;
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n && !all[i].ours; j++)
                if (all[j].ours && all[j].pid == all[i].parent)
                    all[i].ours = changed = true;
    }
    for (int i = 0; i < n; i++)
        if (all[i].ours)
            load.own += all[i].ticks;
    if (dir)
        closedir(dir);
    if (f)
        fclose(f);
    free(all);
    return load;
}

double nk_machine_foreign(const struct nk_machine_load *begin, const struct nk_machine_load *end)
{
    double wall_s = (double)(end->at_ns - begin->at_ns) / 1e9, ticks = (double)sysconf(_SC_CLK_TCK);
    double foreign = (double)(end->busy - begin->busy) - (double)(end->own - begin->own);

    /* Ticks are 10 ms: under a few of them the difference is rounding. */
    if (wall_s <= 0 || foreign < 3)
        return 0;
    foreign /= ticks * wall_s * nk_cpu_count();
    return foreign > 1 ? 1 : foreign;
}

double nk_machine_process_cpu_s(int pid)
{
    unsigned long long total_ns = 0, ns;
    char path[512];
    struct dirent *e;
    DIR *dir;

    snprintf(path, sizeof path, "/proc/%d/task", pid);
    dir = opendir(path);
    while (dir && (e = readdir(dir))) {
        FILE *f;

        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, e->d_name);
        f = fopen(path, "re");
        if (f && fscanf(f, "%llu", &ns) == 1)
            total_ns += ns;
        if (f)
            fclose(f);
    }
    if (dir)
        closedir(dir);
    return (double)total_ns / 1e9;
}

uint64_t nk_machine_process_pss(int pid)
{
    char path[64], value[64];

    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    find_value(path, "Pss", value, sizeof value);
    return strtoull(value, NULL, 10) * 1024;
}

/* From the sum so far: a compiler would take two walks for one. */
static uint64_t walk(const uint64_t *memory, size_t n, uint64_t sum)
{
    for (size_t i = 0; i < n; i += 8)
        sum += (memory[i] ^ memory[i + 1]) + (memory[i + 2] ^ memory[i + 3]) +
               (memory[i + 4] ^ memory[i + 5]) + (memory[i + 6] ^ memory[i + 7]);
    return sum;
}

double nk_machine_calibrate(void)
{
    static uint64_t *memory; /* kept: the same pages every time */
    const size_t n = WALK_BYTES / sizeof *memory;
    volatile uint64_t sink;
    uint64_t sum = 0, begin, end;

    if (!memory) {
        memory = malloc(WALK_BYTES);
        if (!memory)
            return 0;
        for (size_t i = 0; i < n; i++)
            memory[i] = i;
    }
    /* Not timed: after a question of minutes the first walk alone took up to three times as long,
     * where the kernel looks for memory that nobody uses (DAMON). That is no noise of the
     * question's. */
    sum = walk(memory, n, sum);
    begin = nk_now_ns();
    for (uint32_t i = 0; i < 20000000; i++)
        sum = (sum ^ i) * 0x9e3779b97f4a7c15u;
    for (int round = 0; round < 2; round++)
        sum = walk(memory, n, sum);
    end = nk_now_ns();
    sink = sum;
    (void)sink;
    return (double)(end - begin) / 1e9;
}
