/* Something that a test needs is not on this machine: it fails where CI=true, and is skipped by
 * name elsewhere. After cmocka.h and what that needs. */
#ifndef NK_TEST_MISSING_H
#define NK_TEST_MISSING_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void missing(const char *what)
{
    const char *ci = getenv("CI");

    if (ci && !strcmp(ci, "true"))
        fail_msg("%s", what);
    fprintf(stderr, "skipped: %s\n", what);
    skip();
}

#endif
