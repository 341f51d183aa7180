#include "gateway/truncate.h"

#include <stdlib.h>
#include <string.h>

static bool has_role(const json_t *message, const char *role)
{
    return !strcmp(json_string_value(json_object_get(message, "role")), role);
}

/* The messages from `first` on, after the system's before it. NULL: no memory. */
static json_t *from(const json_t *all, size_t first)
{
    json_t *some = json_array(), *m;
    size_t i;

    json_array_foreach((json_t *)all, i, m)
    {
        if (some && (i >= first || has_role(m, "system")) && json_array_append(some, m)) {
            json_decref(some);
            some = NULL;
        }
    }
    return some;
}

static bool is_too_long(int rc, const struct nk_request_error *e)
{
    return rc && !strcmp(e->err.reason, "context_length_exceeded");
}

static int try_from(struct nk_prepared *out, const nk_prompter *p, struct nk_request *r,
                    json_t *all, size_t first, int n_ctx, struct nk_work *work,
                    struct nk_request_error *e)
{
    int rc;

    r->messages = from(all, first);
    if (r->messages) {
        rc = nk__prepare(out, p, r, n_ctx, work, e);
    } else {
        e->param[0] = '\0';
        rc = nk_fail(&e->err, NK_E_EXHAUSTED, "no_memory", "no memory for the messages");
    }
    json_decref(r->messages);
    r->messages = all;
    return rc;
}

/* Where a turn begins, and the last message; not a call's result without its call. */
static size_t list_starts(const json_t *all, size_t *starts)
{
    size_t n = json_array_size(all), n_starts = 0;

    for (size_t i = 1; i < n; i++)
        if (has_role(json_array_get(all, i), "user") ||
            (i + 1 == n && !has_role(json_array_get(all, i), "tool")))
            starts[n_starts++] = i;
    return n_starts;
}

int nk__prepare_truncated(struct nk_prepared *out, const nk_prompter *p, struct nk_request *r,
                          int n_ctx, struct nk_work *work, size_t *n_dropped,
                          struct nk_request_error *e)
{
    int rc = nk__prepare(out, p, r, n_ctx, work, e);
    size_t n = json_array_size(r->messages), *starts, lo = 0, hi, n_starts;
    json_t *all = r->messages;

    *n_dropped = 0;
    if (!is_too_long(rc, e) || !r->truncate || !all || n < 2)
        return rc;
    starts = calloc(n, sizeof *starts);
    if (!starts)
        return rc;
    hi = n_starts = list_starts(all, starts);
    /* The first start that fits is in lo..hi; hi: none does. */
    while (lo < hi) {
        size_t middle = lo + (hi - lo) / 2;

        rc = try_from(out, p, r, all, starts[middle], n_ctx, work, e);
        if (!rc) {
            nk__prepared_release(out);
            hi = middle;
        } else if (is_too_long(rc, e))
            lo = middle + 1;
        else
            break;
    }
    if (lo == hi && lo < n_starts) {
        for (size_t i = 0; i < starts[lo]; i++)
            *n_dropped += !has_role(json_array_get(all, i), "system");
        rc = try_from(out, p, r, all, starts[lo], n_ctx, work, e);
    }
    free(starts);
    return rc;
}
