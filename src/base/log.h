/* The operator's log: one line per event on standard error, key=value, UTC with milliseconds.
 *
 *   2026-03-02T10:15:04.211Z warn  rpc    peer=10.0.0.3:5562 reason=peer_gone msg="stream reset"
 *
 * Levels are per component: NK_LOG=info,rpc=trace,llama=warn (or nk_log_configure()). error: a
 * person should act; warn: we coped; info: life cycle; debug: decisions; trace: bytes. At info and
 * above there is no prompt and no generated text. Thread-safe: a line is one write(2). */
#ifndef NK_BASE_LOG_H
#define NK_BASE_LOG_H

#include <stdbool.h>

#include "base/error.h"

enum nk_log_level { NK_LOG_ERROR, NK_LOG_WARN, NK_LOG_INFO, NK_LOG_DEBUG, NK_LOG_TRACE };

/* clang-format off */
#define NK_LOG_COMPONENT_MAP(XX) \
    XX(BASE, "base") XX(SLICE, "slice") XX(STAGE, "stage") XX(TEXT, "text") XX(RPC, "rpc")  \
    XX(PIECES, "pieces") XX(CLUSTER, "cluster") XX(AGENT, "agent") XX(WORKER, "worker")     \
    XX(CHAIN, "chain") XX(GATEWAY, "gateway") XX(CLI, "cli") XX(LLAMA, "llama")
/* clang-format on */
enum nk_log_component {
#define XX(name, text) NK_LOG_##name,
    NK_LOG_COMPONENT_MAP(XX)
#undef XX
        NK_LOG_COMPONENT_COUNT
};

/* spec: "LEVEL" or "COMPONENT=LEVEL", comma-separated. Call before threads start.
 *   INVALID  bad_log_spec   an unknown level or component, named */
int nk_log_configure(const char *spec, struct nk_error *err);
/* Reads NK_LOG; a bad value is reported on standard error and ignored. The default is info,
 * llama=error. */
void nk_log_init(void);

bool nk_log_enabled(enum nk_log_component c, enum nk_log_level l);
/* fmt gives the key=value part. Quote free text with nk_log_quote(). */
#define nk_log(c, l, ...)                                                                          \
    do {                                                                                           \
        if (nk_log_enabled(c, l))                                                                  \
            nk_log_write(c, l, __VA_ARGS__);                                                       \
    } while (0)
void nk_log_write(enum nk_log_component c, enum nk_log_level l, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Text as a quoted value: "…" with quotes, backslashes and control characters escaped, cut at the
 * buffer's size. Returns out. */
const char *nk_log_quote(char *out, unsigned long size, const char *text);

/* For events that a peer can repeat: true at most once per second per limiter; *n_suppressed says
 * how many were dropped since the last true. Zero-initialised; thread-safe. */
struct nk_log_limit {
    _Atomic unsigned long long last_ns;
    _Atomic unsigned long n_dropped;
};
bool nk_log_allow(struct nk_log_limit *limit, unsigned long *n_suppressed);

#endif
