/* One HTTP request whose answer is read line by line as it comes (server-sent events), over
 * libcurl. Blocks. */
#ifndef NK_BENCH_HTTP_H
#define NK_BENCH_HTTP_H

#include <stdint.h>

#include "base/error.h"

/* Once per program, before threads start. */
void nk_http_init(void);

/* A line of the answer without its end, and when it came; borrowed for the call. */
typedef void (*nk_http_line)(void *user, const char *line, uint64_t at_ns);

/* POSTs body (JSON; NULL: GET instead) to url. Lines longer than 1 MiB end it.
 *   UNAVAILABLE  unreachable   no connection, or it broke
 *   DEADLINE     timeout
 *   UNKNOWN      http_status   an answer other than 200; the message has it */
int nk_http_lines(const char *url, const char *body, uint32_t timeout_ms, nk_http_line on_line,
                  void *user, struct nk_error *err);

#endif
