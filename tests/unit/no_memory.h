/* Memory that runs out: an operation is done again and again with its 1st, 2nd, 3rd ... allocation
 * refused, until none is left to refuse. Each time it must fail with EXHAUSTED `no_memory` (or with
 * what the test says), and give back all that it had by then. After nghttp2's failmalloc_test.
 *
 * The linker wraps the allocator for our own code (tests/CMakeLists.txt: every test_no_memory.c);
 * what shared libraries allocate is neither refused nor counted. The operation may start threads,
 * if it joins them. */
#ifndef NK_TEST_NO_MEMORY_H
#define NK_TEST_NO_MEMORY_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"

enum { NO_MEMORY_LIVE_MAX = 1 << 16 };

static long no_memory_left = -1; /* allocations until one is refused; below 0: none is */
static bool no_memory_refused;
static void *no_memory_live[NO_MEMORY_LIVE_MAX]; /* what was handed out and not given back */
static int no_memory_n_live;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void __real_free(void *p);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t size);
void __wrap_free(void *p);

static pthread_mutex_t no_memory_mutex = PTHREAD_MUTEX_INITIALIZER;

static inline void no_memory_forget(void *p)
{
    pthread_mutex_lock(&no_memory_mutex);
    for (int i = no_memory_n_live; p && i-- > 0;)
        if (no_memory_live[i] == p) {
            no_memory_live[i] = no_memory_live[--no_memory_n_live];
            break;
        }
    pthread_mutex_unlock(&no_memory_mutex);
}

static inline bool no_memory_now(void)
{
    bool refused;

    pthread_mutex_lock(&no_memory_mutex);
    refused = no_memory_left == 0;
    if (no_memory_left >= 0)
        no_memory_left--;
    no_memory_refused = no_memory_refused || refused;
    pthread_mutex_unlock(&no_memory_mutex);
    return refused;
}

static inline void *no_memory_remember(void *p)
{
    pthread_mutex_lock(&no_memory_mutex);
    if (no_memory_n_live == NO_MEMORY_LIVE_MAX)
        abort();
    if (p)
        no_memory_live[no_memory_n_live++] = p;
    pthread_mutex_unlock(&no_memory_mutex);
    return p;
}

void *__wrap_malloc(size_t size)
{
    return no_memory_now() ? NULL : no_memory_remember(__real_malloc(size));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return no_memory_now() ? NULL : no_memory_remember(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t size)
{
    if (no_memory_now())
        return NULL;
    no_memory_forget(p);
    return no_memory_remember(__real_realloc(p, size));
}

char *__wrap_strndup(const char *text, size_t size)
{
    size_t n = strnlen(text, size);
    char *copy = __wrap_malloc(n + 1);

    if (copy) {
        memcpy(copy, text, n);
        copy[n] = '\0';
    }
    return copy;
}

char *__wrap_strdup(const char *text)
{
    return __wrap_strndup(text, strlen(text));
}

void __wrap_free(void *p)
{
    no_memory_forget(p);
    __real_free(p);
}

/* Does one thing and gives back what came of it; the error, as it is returned everywhere. */
typedef int no_memory_op(void *arg, struct nk_error *err);

/* at_least: so many allocations must have been refused, one after the other. */
static inline void each_allocation_refused(no_memory_op *op, void *arg, long at_least)
{
    int before = no_memory_n_live;

    for (long n = 0;; n++) {
        struct nk_error err = { 0 };
        int rc;

        no_memory_refused = false;
        no_memory_left = n;
        rc = op(arg, &err);
        no_memory_left = -1;
        if (no_memory_n_live != before)
            fail_msg("allocation %ld refused: %d are left", n, no_memory_n_live - before);
        if (!no_memory_refused) {
            if (rc)
                fail_msg("nothing refused: %s", err.msg);
            if (n < at_least)
                fail_msg("only %ld allocations", n);
            return;
        }
        if (rc != NK_E_EXHAUSTED || strcmp(err.reason, "no_memory") != 0)
            fail_msg("allocation %ld refused: %d %s: %s", n, rc, err.reason, err.msg);
    }
}

#endif
