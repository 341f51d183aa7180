/* The gateway's options, and its life within a command (serve, up). */
#ifndef NK_CLI_SERVE_H
#define NK_CLI_SERVE_H

#include "base/args.h"
#include "gateway/gateway.h"

struct nk_serve { /* strings: borrowed from argv */
    const char *listen, *api_key_file, *tls_cert, *tls_key, *chat_template, *tools, *reasoning,
        *defaults;
    struct nk_arg_list names, origins, hosts;
    int64_t running, waiting, waiting_ms, hold_ms, stall_ms, body_kib, requests_mib, responses_s,
        responses_mib, output_kib, connections, per_address, drain_ms, header_ms, body_ms, idle_ms,
        n_predict;
    bool insecure, strict, any_model, verbose, no_page, exact_recovery;
};
struct nk_serve nk_serve_default(void); /* nk_gateway_opts_default()'s */

/* Rows of a command's table of arguments (struct nk_serve s). */
#define NK_SERVE_ARGS(s)                                                                           \
    NK_OPT_STRING("listen", 'l', &(s).listen, "HOST:PORT",                                         \
                  "where the gateway listens; port 0: a free one"),                                \
        NK_OPT_STRING("api-key-file", 0, &(s).api_key_file, "FILE",                                \
                      "keys that may use it, one per line"),                                       \
        NK_OPT_STRING("tls-cert", 0, &(s).tls_cert, "FILE",                                        \
                      "PEM: the gateway's certificate (https)"),                                   \
        NK_OPT_STRING("tls-key", 0, &(s).tls_key, "FILE", "PEM: its key"),                         \
        NK_OPT_FLAG("insecure", 0, &(s).insecure,                                                  \
                    "listen beyond this machine without TLS or key"),                              \
        NK_OPT_LIST("cors-origin", 0, &(s).origins, "ORIGIN",                                      \
                    "pages from there may call it; *: all; repeatable"),                           \
        NK_OPT_LIST("allowed-host", 0, &(s).hosts, "NAME",                                         \
                    "it may be called by this name, too; *: by all; repeatable"),                  \
        NK_OPT_STRING("chat-template", 0, &(s).chat_template, "NAME|FILE",                         \
                      "a built-in template, or a file with Jinja"),                                \
        NK_OPT_FLAG("strict", 0, &(s).strict,                                                      \
                    "refuse requests with fields that have no effect here"),                       \
        NK_OPT_FLAG("any-model", 0, &(s).any_model,                                                \
                    "whatever model a request names, it is this one"),                             \
        NK_OPT_STRING("defaults", 0, &(s).defaults, "JSON",                                        \
                      "fields that requests get which do not say them: {\"seed\": 42}"),           \
        NK_OPT_INT(                                                                                \
            "max-tokens", 0, &(s).n_predict, "N", 1, 1 << 24,                                      \
            "most tokens of a reply; else what its request says, or a share of the context"),      \
        NK_OPT_FLAG("verbose", 0, &(s).verbose,                                                    \
                    "OpenAI's replies tell all that the model wrote, as __verbose"),               \
        NK_OPT_STRING("tools", 0, &(s).tools, "native|generic|off",                                \
                      "tools in the template's form, or explained in the system's message"),       \
        NK_OPT_STRING("reasoning", 0, &(s).reasoning, "on|off|auto",                               \
                      "thinking where a request says nothing; auto: the template's own"),          \
        NK_OPT_LIST("name", 0, &(s).names, "NAME", "one more name of the model; repeatable"),      \
        NK_OPT_INT("running", 0, &(s).running, "N", 1, 100000,                                     \
                   "generations at once; else as many as the workers have sequences"),             \
        NK_OPT_INT("waiting", 0, &(s).waiting, "N", 0, 100000,                                     \
                   "generations that may wait; over it: 429"),                                     \
        NK_OPT_INT("waiting-ms", 0, &(s).waiting_ms, "N", 1, 3600000, "and for how many ms"),      \
        NK_OPT_INT("hold-ms", 0, &(s).hold_ms, "N", 0, 3600000,                                    \
                   "a generation that lost a worker waits so long to go on; 0: it fails"),         \
        NK_OPT_FLAG("exact-recovery", 0, &(s).exact_recovery,                                      \
                    "what was lost is computed again in its shapes, also where that is slower"),   \
        NK_OPT_INT("body-kib", 0, &(s).body_kib, "N", 1, 1 << 20,                                  \
                   "largest request in KiB; over it: 413"),                                        \
        NK_OPT_INT("requests-mib", 0, &(s).requests_mib, "N", 1, 1 << 20,                          \
                   "memory for all requests together, while they are read; over it: 429"),         \
        NK_OPT_INT("responses-ttl", 0, &(s).responses_s, "SECONDS", 0, 31536000,                   \
                   "a stored response (/v1/responses) is kept for so long; 0: none is"),           \
        NK_OPT_INT("responses-mib", 0, &(s).responses_mib, "N", 1, 1 << 20,                        \
                   "memory for all of them together; over it the oldest go"),                      \
        NK_OPT_INT("output-kib", 0, &(s).output_kib, "N", 4, 1 << 20,                              \
                   "what may wait for a reader in KiB; over it the reader is cut off"),            \
        NK_OPT_INT("header-ms", 0, &(s).header_ms, "N", 1, 3600000,                                \
                   "a new connection sends its request's headers within so many ms"),              \
        NK_OPT_INT("body-ms", 0, &(s).body_ms, "N", 1, 3600000,                                    \
                   "and its body within so many; over it: 408"),                                   \
        NK_OPT_INT(                                                                                \
            "idle-ms", 0, &(s).idle_ms, "N", 1, 3600000,                                           \
            "a connection without a request, or that reads nothing, is kept for so many ms"),      \
        NK_OPT_INT("connections", 0, &(s).connections, "N", 1, 100000, "connections at once"),     \
        NK_OPT_INT("connections-per-address", 0, &(s).per_address, "N", 0, 100000,                 \
                   "of them from one address; 0: half"),                                           \
        NK_OPT_INT("drain-ms", 0, &(s).drain_ms, "N", 0, 3600000,                                  \
                   "after a signal running requests have so many ms"),                             \
        NK_OPT_FLAG("no-page", 0, &(s).no_page, "no page at /")

/* What nk_serve_start would refuse of the options, of the files that they name, and of the address
 * as it is now: for before the time is spent on a model. */
int nk_serve_check(const struct nk_serve *s, struct nk_error *err);
/* Reads the files that the options name and starts. what: nk_gateway_opts_default() with what is
 * no option of the command: chain (or model_id and model_sha256), vocab, deterministic,
 * cluster_json and its like. The chain is the gateway's when this returns 0.
 * Errors: nk_gateway_start's, NOT_FOUND no_file. */
int nk_serve_start(nk_gateway **out, const struct nk_serve *s, const struct nk_gateway_opts *what,
                   struct nk_error *err);
/* nk_gateway_stop. When somebody in it does not come back, the process ends here with exit_code,
 * after `last` (which may be NULL) has removed what must not stay: what is borrowed cannot be
 * freed. */
void nk_serve_stop(nk_gateway *g, uint32_t grace_ms, int exit_code, void (*last)(void *arg),
                   void *arg);
/* "listening on URL" on standard output, for people and programs. */
void nk_serve_print_url(const nk_gateway *g);

#endif
