/* Errors: a code for the program, a reason for tests and clients, a sentence for a person.
 *
 * A failing function returns a negative code and fills the caller's `struct nk_error` (its last
 * parameter; NULL is fine). On success it returns 0 and does not touch it. The struct lives on the
 * caller's stack and has a fixed size, so failing costs no allocation and cannot itself fail.
 *
 * The codes are gRPC's status numbers, negated
 * (https://grpc.github.io/grpc/core/md_doc_statuscodes.html): nothing is translated at the rpc
 * boundary. The reason is one stable snake_case word: tests compare it, the worker sends it in the
 * trailer, the gateway passes it on. The message says what was found and what would have been
 * right; it is never parsed. */
#ifndef NK_BASE_ERROR_H
#define NK_BASE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

/* clang-format off */
/*     name             value HTTP  text */
#define NK_CODE_MAP(XX)                                     \
    XX(OK,                 0,  200, "ok")                   \
    XX(CANCELLED,         -1,  499, "cancelled")            \
    XX(UNKNOWN,           -2,  500, "unknown")              \
    XX(INVALID,           -3,  400, "invalid argument")     \
    XX(DEADLINE,          -4,  504, "deadline exceeded")    \
    XX(NOT_FOUND,         -5,  404, "not found")            \
    XX(EXISTS,            -6,  409, "already exists")       \
    XX(DENIED,            -7,  403, "permission denied")    \
    XX(EXHAUSTED,         -8,  429, "resource exhausted")   \
    XX(PRECONDITION,      -9,  400, "failed precondition")  \
    XX(ABORTED,          -10,  409, "aborted")              \
    XX(OUT_OF_RANGE,     -11,  400, "out of range")         \
    XX(UNIMPLEMENTED,    -12,  501, "unimplemented")        \
    XX(INTERNAL,         -13,  500, "internal error")       \
    XX(UNAVAILABLE,      -14,  503, "unavailable")          \
    XX(DATA_LOSS,        -15,  500, "data loss")            \
    XX(UNAUTHENTICATED,  -16,  401, "unauthenticated")
/* clang-format on */

enum nk_code {
#define XX(name, value, http, text) NK_E_##name = value,
    NK_CODE_MAP(XX)
#undef XX
};

struct nk_error {
    int code;         /* enum nk_code */
    int sys;          /* errno as found, or 0 */
    const char *file; /* where nk_fail() was called */
    int line;
    char reason[32];
    char msg[512];
    /* Of what there is too much of, where a client gets the figures beside the sentence: so many
     * were found, and so many are possible. 0: not said. */
    long n_found, n_max;
};

/* Fills err (if not NULL) and returns code. errno is kept in err->sys. Use as `return
 * nk_fail(...)`. */
#define nk_fail(err, code, reason, ...)                                                            \
    nk_fail_at(err, code, __FILE__, __LINE__, reason, __VA_ARGS__)
int nk_fail_at(struct nk_error *err, int code, const char *file, int line, const char *reason,
               const char *fmt, ...) __attribute__((format(printf, 6, 7)));

/* Puts what the callee could not know before its message ("context: message"); returns code
 * unchanged. */
int nk_wrap(int code, struct nk_error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The code's text ("deadline exceeded") and HTTP status. Any int is accepted. */
const char *nk_code_text(int code);
int nk_code_http(int code);

/* For our own mistakes, also in release builds; never for input. */
#define NK_ASSERT(cond)                                                                            \
    do {                                                                                           \
        if (!(cond))                                                                               \
            nk_assert_failed(#cond, __FILE__, __LINE__);                                           \
    } while (0)
void nk_assert_failed(const char *cond, const char *file, int line) __attribute__((noreturn));

#endif
