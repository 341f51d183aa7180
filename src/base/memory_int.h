/* What memory.c shows its test. */
#ifndef NK_BASE_MEMORY_INT_H
#define NK_BASE_MEMORY_INT_H

#include "base/memory.h"

/* What the control groups (version 2) that `groups` names, in the form of /proc/self/cgroup, and
 * all above them up to `root` leave, in bytes; UINT64_MAX: no limit. An absolute root without a
 * slash at its end. */
uint64_t nk__memory_groups_available(const char *groups, const char *root);

#endif
