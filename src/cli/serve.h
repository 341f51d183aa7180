/* The gateway's options, and its life within a command (serve, up). */
#ifndef NK_CLI_SERVE_H
#define NK_CLI_SERVE_H

#include "base/args.h"
#include "gateway/gateway.h"

struct nk_serve { /* strings: borrowed from argv */
    const char *listen, *api_key_file, *tls_cert, *tls_key, *chat_template;
    struct nk_arg_list names, origins;
    int64_t running, waiting, waiting_ms, body_kib, output_kib, connections, drain_ms, header_ms,
        body_ms, idle_ms;
    bool insecure, no_page;
};
#define NK_SERVE_INIT                                                                              \
    {                                                                                              \
        .listen = "127.0.0.1:8080", .waiting = 256, .waiting_ms = 60000, .body_kib = 8192,         \
        .output_kib = 4096, .connections = 1000, .drain_ms = 30000, .header_ms = 20000,            \
        .body_ms = 60000, .idle_ms = 120000                                                        \
    }

/* clang-format off */
/* Rows of a command's table of arguments (struct nk_serve s). */
#define NK_SERVE_ARGS(s)                                                                                                                  \
    { "listen", 'l', NK_ARG_STRING, &(s).listen, "HOST:PORT", "where the gateway listens (127.0.0.1:8080); port 0: a free one", 0, 0 },    \
    { "api-key-file", 0, NK_ARG_STRING, &(s).api_key_file, "FILE", "keys that may use it, one per line", 0, 0 },                          \
    { "tls-cert", 0, NK_ARG_STRING, &(s).tls_cert, "FILE", "PEM: the gateway's certificate (https)", 0, 0 },                              \
    { "tls-key", 0, NK_ARG_STRING, &(s).tls_key, "FILE", "PEM: its key", 0, 0 },                                                          \
    { "insecure", 0, NK_ARG_FLAG, &(s).insecure, NULL, "listen beyond this machine without TLS or key", 0, 0 },                           \
    { "cors-origin", 0, NK_ARG_LIST, &(s).origins, "ORIGIN", "pages from there may call it; *: all; repeatable", 0, 0 },                  \
    { "chat-template", 0, NK_ARG_STRING, &(s).chat_template, "NAME|FILE", "a built-in template, or a file with Jinja", 0, 0 },            \
    { "name", 0, NK_ARG_LIST, &(s).names, "NAME", "one more name of the model; repeatable", 0, 0 },                                       \
    { "running", 0, NK_ARG_INT, &(s).running, "N", "generations at once (as many as the workers have sequences)", 1, 100000 },            \
    { "waiting", 0, NK_ARG_INT, &(s).waiting, "N", "generations that may wait (256); over it: 429", 0, 100000 },                          \
    { "waiting-ms", 0, NK_ARG_INT, &(s).waiting_ms, "N", "and for how long (60000)", 1, 3600000 },                                        \
    { "body-kib", 0, NK_ARG_INT, &(s).body_kib, "N", "largest request in KiB (8192); over it: 413", 1, 1 << 20 },                         \
    { "output-kib", 0, NK_ARG_INT, &(s).output_kib, "N", "what may wait for a reader in KiB (4096); over it the reader is cut off", 4, 1 << 20 }, \
    { "header-ms", 0, NK_ARG_INT, &(s).header_ms, "N", "a new connection sends its request's headers within (20000)", 1, 3600000 },       \
    { "body-ms", 0, NK_ARG_INT, &(s).body_ms, "N", "and its body within (60000); 408", 1, 3600000 },                                      \
    { "idle-ms", 0, NK_ARG_INT, &(s).idle_ms, "N", "a connection without a request, or that reads nothing, is kept for (120000)", 1, 3600000 }, \
    { "connections", 0, NK_ARG_INT, &(s).connections, "N", "connections at once (1000)", 1, 100000 },                                     \
    { "drain-ms", 0, NK_ARG_INT, &(s).drain_ms, "N", "after a signal running requests have so long (30000)", 0, 3600000 },                \
    { "no-page", 0, NK_ARG_FLAG, &(s).no_page, NULL, "no page at /", 0, 0 }
/* clang-format on */

/* Reads the files that the options name and starts. The chain and the vocabulary are borrowed until nk_gateway_stop.
 * Errors: nk_gateway_start's, NOT_FOUND no_file. */
int nk_serve_start(nk_gateway **out, const struct nk_serve *s, nk_chain *c, const nk_vocab *v,
                   bool deterministic, struct nk_error *err);
/* "listening on URL" on standard output, for people and programs. */
void nk_serve_print_url(const nk_gateway *g);

#endif
