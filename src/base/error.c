#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int nk_fail_at(struct nk_error *err, int code, const char *file, int line, const char *reason,
               const char *fmt, ...)
{
    int sys = errno;
    va_list ap;

    NK_ASSERT(code < 0);
    if (!err)
        return code;
    err->code = code;
    err->sys = sys;
    err->file = file;
    err->line = line;
    err->n_found = err->n_max = 0;
    snprintf(err->reason, sizeof err->reason, "%s", reason);
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return code;
}

int nk_wrap(int code, struct nk_error *err, const char *fmt, ...)
{
    char old[sizeof err->msg];
    va_list ap;
    int n;

    if (!err || code == 0)
        return code;
    memcpy(old, err->msg, sizeof old);
    va_start(ap, fmt);
    n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof err->msg)
        snprintf(err->msg + n, sizeof err->msg - (size_t)n, ": %s", old);
    return code;
}

const char *nk_code_text(int code)
{
    switch (code) {
#define XX(name, value, http, text)                                                                \
    case value:                                                                                    \
        return text;
        NK_CODE_MAP(XX)
#undef XX
    }
    return "unknown";
}

int nk_code_http(int code)
{
    switch (code) {
#define XX(name, value, http, text)                                                                \
    case value:                                                                                    \
        return http;
        NK_CODE_MAP(XX)
#undef XX
    }
    return 500;
}

_Noreturn void nk_assert_failed(const char *cond, const char *file, int line)
{
    fprintf(stderr, "nakshatra: %s:%d: this should not happen: %s\n", file, line, cond);
    abort();
}
