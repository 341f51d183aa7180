/* llama.cpp's own programs as peers: where they are, how they are run so that they compute on the
 * CPU (or over RPC) and nowhere else, and what they print.
 *
 * They are found in the private copy that `make deps` unpacks, or in the system's folders;
 * NK_LLAMA_BIN (a folder) names another place. A program of llama.cpp finds its backends in the
 * working folder: it is started in one that has only the wanted ones, so that a GPU or a software
 * Vulkan that happens to be there takes no part. */
#ifndef NK_BENCH_PEER_H
#define NK_BENCH_PEER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/process.h"

enum nk_peer_tool {
    NK_PEER_BENCH,
    NK_PEER_BATCHED,
    NK_PEER_SERVER,
    NK_PEER_RPC,
    NK_PEER_TOOL_COUNT
};

typedef struct nk_peers nk_peers; /* where everything is */

/* work_dir: a folder for the backends' links and the programs' output; it must exist and is left in
 * place.
 *   NOT_FOUND  no_peer   a program is missing; the message says which and how to get it */
int nk_peers_open(nk_peers **out, const char *work_dir, struct nk_error *err);
void nk_peers_close(nk_peers *p);

/* Arguments of a peer's command line; owned strings. */
struct nk_peer_args {
    char text[64][512];
    int n;
};
void nk_peer_arg(struct nk_peer_args *a, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Runs a tool to its end; standard output is appended to out. nk_process_start's errors, and
 *   DEADLINE  timeout
 *   UNKNOWN   failed    the message has its last line */
int nk_peer_run(nk_peers *p, enum nk_peer_tool tool, const struct nk_peer_args *args,
                uint32_t timeout_ms, struct nk_buf *out, struct nk_error *err);
/* Starts a server; its output goes to a file of the work folder. nk_process_start's errors. */
int nk_peer_start(nk_peers *p, enum nk_peer_tool tool, const struct nk_peer_args *args,
                  struct nk_process *process, struct nk_error *err);
/* The last line that the servers' file has ("" when none), for messages. */
void nk_peer_last_words(nk_peers *p, char *out, size_t size);

/* A port of 127.0.0.1 that was free a moment ago. UNAVAILABLE no_port. */
int nk_port_find(int *port, struct nk_error *err);
/* Waits until something listens.
 *   DEADLINE     not_listening
 *   UNAVAILABLE  process_ended   the process ended meanwhile */
int nk_port_wait(const char *host, int port, struct nk_process *process, uint32_t timeout_ms,
                 struct nk_error *err);

/* ---- what they print; pure functions ---- */

/* llama-bench -o jsonl: the result for the given prompt, generation and depth, in tokens per second
 * (the median of its repetitions). A run on anything but `backend` ("CPU", "RPC") is no figure.
 *   UNKNOWN  not_run   no such line, other counts or another backend; the message says which */
int nk_llama_bench_parse(const char *text, int n_prompt, int n_gen, int n_depth,
                         const char *backend, double *tok_s, struct nk_error *err);
/* llama-batched-bench --output-format jsonl: tokens per second of all streams, decode and prefill.
 * UNKNOWN not_run. */
int nk_batched_bench_parse(const char *text, int n_streams, int n_prompt, int n_gen,
                           double *decode_tok_s, double *prefill_tok_s, struct nk_error *err);

/* One event of llama-server's /completion stream ("data: " already removed). UNKNOWN bad_event. */
struct nk_server_event {
    int n_tokens; /* in this event */
    bool stop;    /* the last one, with what the server counted: */
    int n_predicted, n_prompt;
};
int nk_server_event_parse(const char *json, struct nk_server_event *out, struct nk_error *err);

/* Whether each of n ggml-rpc-servers had a part in a run, by the processor time that it took
 * meanwhile. How much of all of it says nothing: on a machine that is busy otherwise one server may
 * spin for seconds while it waits for the other.
 *   UNKNOWN  not_run   one did no more than to say how much memory it has; the message names it */
int nk_rpc_part_check(const double *cpu_s, int n, struct nk_error *err);

#endif
