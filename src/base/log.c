#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static const char *const level_names[] = { "error", "warn", "info", "debug", "trace" };
static const char *const component_names[] = {
#define XX(name, text) text,
    NK_LOG_COMPONENT_MAP(XX)
#undef XX
};
static enum nk_log_level levels[NK_LOG_COMPONENT_COUNT] = {
#define XX(name, text) [NK_LOG_##name] = NK_LOG_##name == NK_LOG_LLAMA ? NK_LOG_ERROR : NK_LOG_INFO,
    NK_LOG_COMPONENT_MAP(XX)
#undef XX
};

static int find(const char *const *names, int n, const char *name, size_t len)
{
    for (int i = 0; i < n; i++)
        if (strlen(names[i]) == len && memcmp(names[i], name, len) == 0)
            return i;
    return -1;
}

int nk_log_configure(const char *spec, struct nk_error *err)
{
    for (const char *p = spec; *p;) {
        size_t len = strcspn(p, ",");
        const char *eq = memchr(p, '=', len);
        const char *level_name = eq ? eq + 1 : p;
        int level = find(level_names, 5, level_name, (size_t)(p + len - level_name));
        int component = eq ? find(component_names, NK_LOG_COMPONENT_COUNT, p, (size_t)(eq - p)) : 0;

        if (level < 0 || component < 0)
            return nk_fail(err, NK_E_INVALID, "bad_log_spec",
                           "log level '%.*s' is not understood: LEVEL or COMPONENT=LEVEL, with a "
                           "level of error, "
                           "warn, info, debug or trace",
                           (int)len, p);
        if (eq) {
            levels[component] = (enum nk_log_level)level;
        } else {
            for (int i = 0; i < NK_LOG_COMPONENT_COUNT; i++)
                if (i != NK_LOG_LLAMA)
                    levels[i] = (enum nk_log_level)level;
        }
        p += len;
        p += *p == ',';
    }
    return 0;
}

void nk_log_init(void)
{
    const char *spec = getenv("NK_LOG");
    struct nk_error err;

    if (spec && nk_log_configure(spec, &err))
        fprintf(stderr, "nakshatra: NK_LOG: %s\n", err.msg);
}

bool nk_log_enabled(enum nk_log_component c, enum nk_log_level l)
{
    return l <= levels[c];
}

void nk_log_write(enum nk_log_component c, enum nk_log_level l, const char *fmt, ...)
{
    char line[2048], when[32];
    va_list ap;
    int n, m;

    nk_utc_format(when, sizeof when);
    n = snprintf(line, sizeof line, "%s %-5s %-7s ", when, level_names[l], component_names[c]);
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    if (m < 0)
        return;
    n += m;
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n++] = '\n';
    /* One write: lines of several threads and processes do not mix. A log that cannot be written is
     * no reason to stop. */
    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        return;
}

const char *nk_log_quote(char *out, unsigned long size, const char *text)
{
    size_t n = 0;

    if (size < 8) {
        if (size)
            out[0] = '\0';
        return out;
    }
    out[n++] = '"';
    for (const unsigned char *p = (const unsigned char *)text; *p && n + 6 < size; p++) {
        if (*p == '"' || *p == '\\') {
            out[n++] = '\\';
            out[n++] = (char)*p;
        } else if (*p < 0x20 || *p == 0x7f || (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) ||
                   (p > (const unsigned char *)text && p[-1] == 0xc2 && *p >= 0x80 && *p < 0xa0)) {
            /* U+0080 to U+009F are controls, too; both of their bytes */
            n += (size_t)snprintf(out + n, size - n, "\\x%02x", *p);
        } else {
            out[n++] = (char)*p;
        }
    }
    out[n++] = '"';
    out[n] = '\0';
    return out;
}

bool nk_log_allow(struct nk_log_limit *limit, unsigned long *n_suppressed)
{
    unsigned long long now = nk_now_ns(), last = atomic_load(&limit->last_ns);

    if ((last && now - last < 1000000000ull) ||
        !atomic_compare_exchange_strong(&limit->last_ns, &last, now)) {
        atomic_fetch_add(&limit->n_dropped, 1);
        return false;
    }
    *n_suppressed = atomic_exchange(&limit->n_dropped, 0);
    return true;
}
