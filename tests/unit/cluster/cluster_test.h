/* What the tests of this layer share: a folder of their own, and texts as bytes. */
#ifndef NK_TESTS_CLUSTER_TEST_H
#define NK_TESTS_CLUSTER_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/file.h"

static char test_dir[64];

static inline int dir_setup(void **state)
{
    (void)state;
    snprintf(test_dir, sizeof test_dir, "nk-cluster-XXXXXX");
    return mkdtemp(test_dir) ? 0 : -1;
}

static inline int dir_teardown(void **state)
{
    char cmd[256];

    (void)state;
    snprintf(cmd, sizeof cmd, "chmod -R u+rwX '%s' && rm -rf '%s'", test_dir, test_dir);
    return system(cmd);
}

/* A path in the folder; valid until the fourth call after it. */
static inline const char *in_dir(const char *name)
{
    static _Thread_local char paths[4][256];
    static _Thread_local int next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof paths[0], "%s/%s", test_dir, name);
    return path;
}

static inline struct nk_bytes text_bytes(const char *text)
{
    return (struct nk_bytes){ (const uint8_t *)text, strlen(text) };
}

static inline struct nk_bytes buf_bytes(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)b->data, b->size };
}

/* Asserts that what failed did so for this reason, and with a sentence. */
#define assert_reason(rc, err, wanted_code, wanted_reason)                                         \
    do {                                                                                           \
        assert_int_equal((rc), (wanted_code));                                                     \
        assert_string_equal((err).reason, (wanted_reason));                                        \
        assert_true(strlen((err).msg) > 10);                                                       \
    } while (0)

static inline void assert_ok_at(int rc, const struct nk_error *err, const char *file, int line)
{
    if (rc)
        fail_msg("%s:%d: %s: %s", file, line, err->reason, err->msg);
}
#define assert_ok(rc, err) assert_ok_at((rc), &(err), __FILE__, __LINE__)

#endif
