/* layer: text
 * wraps: nk_process_start __sanitizer_cov_8bit_counters_init
 *
 * A model's chat template, and what clients give it: parsed and rendered as a server does it, by a
 * child with limits. Bytes up to the first NUL are the template, up to the next one the variables
 * of the template ("{}" where there are none), and then messages.
 *
 * The child is this process, forked: it starts sooner than a program, and what it runs through is
 * seen by libFuzzer, whose counters are shared memory. Whatever a template makes of its child is an
 * error of the request; but AddressSanitizer's word in the child is a finding, unless it is about
 * what a template may do: overflow the stack, divide by zero, ask for too much memory. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/process.h"
#include "fuzz/fuzz.h"
#include "text/template.h"

/* Of this side, which passes texts on and waits; the child's limits are its own. */
const struct fuzz_ceiling fuzz_ceiling = { .base = 100000, .per_byte = 100 };

enum { FOUND = 99, CPU_S_MAX = 1, MEMORY_MIB_MAX = 512 };

/* AddressSanitizer calls this when it has found something. */
void __asan_on_error(void);
__attribute__((weak)) const char *__asan_get_report_description(void);
static bool is_child;

void __asan_on_error(void)
{
    static const char *const may_be[] = { "stack-overflow",          "FPE",
                                          "allocation-size-too-big", "out-of-memory",
                                          "rss-limit-exceeded",      "calloc-overflow" };
    const char *what = __asan_get_report_description ? __asan_get_report_description() : "";

    if (!is_child)
        return;
    for (size_t i = 0; i < sizeof may_be / sizeof may_be[0]; i++)
        if (!strcmp(what, may_be[i]))
            _exit(1);
    _exit(FOUND);
}

/* A sanitized process cannot be held to an address space, so the child counts what it has. */
const char *__asan_default_options(void);
__attribute__((weak)) int
__sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                          void (*on_free)(const volatile void *));
__attribute__((weak)) size_t __sanitizer_get_allocated_size(const volatile void *at);
static int64_t n_bytes; /* this process's, less what it had when it was forked */

const char *__asan_default_options(void)
{
    return "max_allocation_size_mb=256:exitcode=99"; /* FOUND: UBSan ends the child with it */
}

static void on_malloc(const volatile void *at, size_t size)
{
    (void)at;
    n_bytes += (int64_t)size;
    if (is_child && n_bytes >> 20 > MEMORY_MIB_MAX)
        _exit(1);
}

static void on_free(const volatile void *at)
{
    n_bytes -= at ? (int64_t)__sanitizer_get_allocated_size(at) : 0;
}

/* The counters of what was run, in memory that forked processes have in common. */
static char *counters, *counters_end;

void __wrap___sanitizer_cov_8bit_counters_init(char *begin, char *end);
__attribute__((weak)) void __real___sanitizer_cov_8bit_counters_init(char *begin, char *end);

/* libFuzzer is told of them. */
void __wrap___sanitizer_cov_8bit_counters_init(char *begin, char *end)
{
    counters = begin;
    counters_end = end;
    __real___sanitizer_cov_8bit_counters_init(begin, end);
}

static void share_counters(void)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)counters + page - 1) / page * page;
    uintptr_t end = (uintptr_t)counters_end / page * page;

    if (begin >= end)
        return;
    if (mmap((void *)begin, end - begin, PROT_READ | PROT_WRITE,
             MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        abort();
}

int __wrap_nk_process_start(struct nk_process *p, const struct nk_process_opts *opts,
                            struct nk_error *err);
int __wrap_nk_process_start(struct nk_process *p, const struct nk_process_opts *opts,
                            struct nk_error *err)
{
    struct rlimit cpu = { CPU_S_MAX, CPU_S_MAX };

    *p = (struct nk_process)NK_PROCESS_INIT;
    p->pid = fork();
    if (p->pid < 0)
        return nk_fail(err, NK_E_UNAVAILABLE, "cannot_start", "no process");
    if (p->pid)
        return 0;
    is_child = true;
    n_bytes = 0;
    setrlimit(RLIMIT_CPU, &cpu);
    /* libFuzzer's own handlers would write a report for each. */
    for (int s = 1; s < 32; s++)
        if (s != SIGSEGV && s != SIGBUS)
            signal(s, SIG_DFL);
    if (!freopen("/dev/null", "w", stderr))
        _exit(1);
    _exit(nk_template_serve(opts->keep_fds[0]));
}

static int check(int rc, const struct nk_error *err)
{
    char found[64];

    snprintf(found, sizeof found, "exit code %d", FOUND);
    if (rc)
        NK_ASSERT(err->code == rc && err->reason[0] && err->msg[0] && !strstr(err->msg, found));
    return rc;
}

void fuzz_one(const uint8_t *data, size_t size)
{
    static const char none[] = "[{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": "
                               "\"assistant\", \"content\": \"Yes?\"}]";
    static bool shared;
    struct nk_jinja_input in = { .messages = none, .add_generation_prompt = true };
    struct nk_buf out = NK_BUF_INIT(1 << 20);
    struct nk_error err = { 0 };
    const char *tmpl, *at;
    nk_template *t;
    char *text;

    if (size > 20000)
        return;
    if (!shared) {
        share_counters();
        if (__sanitizer_install_malloc_and_free_hooks)
            __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
        shared = true;
    }
    fuzz_prepared();
    text = malloc(size + 3);
    NK_ASSERT(text);
    memcpy(text, data, size);
    memset(text + size, 0, 3);
    tmpl = text;
    at = tmpl + strlen(tmpl) + 1;
    if (at < text + size && *at)
        in.extra = at;
    if (at < text + size)
        at += strlen(at) + 1;
    if (at < text + size)
        in.messages = at;
    if (!check(nk_template_open(&t, "this one", tmpl, "<s>", "</s>", &err), &err)) {
        for (int i = 0; i < 2; i++) { /* the second time by the same child, if it is there */
            nk_buf_reset(&out);
            NK_ASSERT(!check(nk_template_render(t, &in, NULL, &out, &err), &err) || !out.size);
        }
        nk_template_close(t);
    }
    nk_buf_release(&out);
    free(text);
}
