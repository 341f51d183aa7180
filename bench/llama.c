/* llama.cpp as a system: the whole model in one process, and its RPC backend over several.
 *
 * decode and prefill are llama-bench's and llama-batched-bench's own figures (which include no
 * sampling); time to first token, gaps and memory are llama-server's, asked over HTTP on a warm
 * connection's loopback. */
#include "bench/system.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/thread.h"
#include "bench/draw.h"
#include "bench/http.h"
#include "bench/machine.h"

enum {
    SERVERS_MAX = 16,
    TOOL_MS_MAX = 600000,
    READY_MS_MAX = 300000,
    BODY_BYTES_MAX = 4 << 20,
    /* How often one place is asked for at most, for its answer to be printed. */
    SILENT_TIMES_MAX = 16,
    PORTS_TRIED = 5,
    GAP_TOKENS = 192, /* of the measured session: the other one's prompt comes meanwhile */
};

struct nk_system {
    struct nk_system_opts opts;
    bool is_rpc;
    struct nk_process servers[SERVERS_MAX]; /* RPC's */
    int ports[SERVERS_MAX], n_servers;
    struct nk_process llama_server;
    int http_port; /* 0: not started */
    uint64_t rng;
};

static int new_system(nk_system **out, const struct nk_system_opts *opts, bool is_rpc,
                      struct nk_error *err)
{
    nk_system *s = calloc(1, sizeof *s);

    *out = NULL;
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    s->opts = *opts;
    s->is_rpc = is_rpc;
    s->rng = 1;
    s->llama_server = (struct nk_process)NK_PROCESS_INIT;
    for (int i = 0; i < SERVERS_MAX; i++)
        s->servers[i] = (struct nk_process)NK_PROCESS_INIT;
    *out = s;
    return 0;
}

static void stop(nk_system *s)
{
    if (!s)
        return;
    nk_process_stop(&s->llama_server, 5000);
    for (int i = 0; i < s->n_servers; i++)
        nk_process_terminate(&s->servers[i]);
    for (int i = 0; i < s->n_servers; i++)
        nk_process_stop(&s->servers[i], 2000);
    free(s);
}

static int start_whole(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    return new_system(out, opts, false, err);
}

/* A port that was free a moment ago may be another program's when a server binds it. Then the
 * server ends, and is started again on another one. *attempt counts. */
static bool is_port_taken(int rc, const struct nk_error *err, struct nk_process *process,
                          int *attempt)
{
    if (!rc || strcmp(err->reason, "process_ended") != 0 || ++*attempt == PORTS_TRIED)
        return false;
    nk_process_stop(process, 0);
    *process = (struct nk_process)NK_PROCESS_INIT;
    return true;
}

static int start_rpc_server(nk_system *s, int i, struct nk_error *err)
{
    struct nk_peer_args args = { .n = 0 };
    int rc = nk_port_find(&s->ports[i], err);

    if (rc)
        return rc;
    nk_peer_arg(&args, "--threads");
    nk_peer_arg(&args, "%d", s->opts.n_threads);
    nk_peer_arg(&args, "--host");
    nk_peer_arg(&args, "127.0.0.1");
    nk_peer_arg(&args, "--port");
    nk_peer_arg(&args, "%d", s->ports[i]);
    rc = nk_peer_start(s->opts.peers, NK_PEER_RPC, &args, &s->servers[i], err);
    return rc ? rc : nk_port_wait("127.0.0.1", s->ports[i], &s->servers[i], READY_MS_MAX, err);
}

static int start_rpc(nk_system **out, const struct nk_system_opts *opts, struct nk_error *err)
{
    nk_system *s;
    int rc = new_system(&s, opts, true, err);

    *out = NULL;
    for (int i = 0; !rc && i < opts->n_workers && i < SERVERS_MAX; i++) {
        int attempt = 0;

        s->n_servers = i + 1;
        do
            rc = start_rpc_server(s, i, err);
        while (is_port_taken(rc, err, &s->servers[i], &attempt));
    }
    if (rc)
        stop(s);
    else
        *out = s;
    return rc;
}

/* What every tool is told: the model, the threads, where to compute. */
static void add_common(const nk_system *s, struct nk_peer_args *args)
{
    nk_peer_arg(args, "--model");
    nk_peer_arg(args, "%s", s->opts.model);
    nk_peer_arg(args, "--threads");
    nk_peer_arg(args, "%d", s->is_rpc ? s->opts.n_threads : s->opts.n_threads_whole);
    nk_peer_arg(args, "--n-gpu-layers");
    nk_peer_arg(args, "%d", s->is_rpc ? 999 : 0);
    if (s->is_rpc) {
        char list[SERVERS_MAX * 24] = "";

        for (int i = 0; i < s->n_servers; i++)
            snprintf(list + strlen(list), sizeof list - strlen(list), "%s127.0.0.1:%d",
                     i ? "," : "", s->ports[i]);
        nk_peer_arg(args, "--rpc");
        nk_peer_arg(args, "%s", list);
    } else {
        nk_peer_arg(args, "--device");
        nk_peer_arg(args, "none");
    }
}

/* Runs a tool; over RPC every server must have had a part. */
static int run_tool(nk_system *s, enum nk_peer_tool tool, const struct nk_peer_args *args,
                    struct nk_buf *out, struct nk_error *err)
{
    double cpu_s[SERVERS_MAX];
    int rc;

    for (int i = 0; i < s->n_servers; i++)
        cpu_s[i] = -nk_machine_process_cpu_s(s->servers[i].pid);
    rc = nk_peer_run(s->opts.peers, tool, args, TOOL_MS_MAX, out, err);
    for (int i = 0; i < s->n_servers; i++)
        cpu_s[i] += nk_machine_process_cpu_s(s->servers[i].pid);
    return rc ? rc : nk_rpc_part_check(cpu_s, s->n_servers, err);
}

static int llama_bench(nk_system *s, int n_prompt, int n_gen, int n_depth, double *tok_s,
                       struct nk_error *err)
{
    struct nk_buf out = NK_BUF_INIT(BODY_BYTES_MAX);
    struct nk_peer_args args = { .n = 0 };
    const char *names[] = { "--n-prompt", "--n-gen", "--n-depth", "--repetitions" };
    int values[] = { n_prompt, n_gen, n_depth, 1 }, rc;

    add_common(s, &args);
    for (int i = 0; i < 4; i++) {
        nk_peer_arg(&args, "%s", names[i]);
        nk_peer_arg(&args, "%d", values[i]);
    }
    nk_peer_arg(&args, "--output");
    nk_peer_arg(&args, "jsonl");
    rc = run_tool(s, NK_PEER_BENCH, &args, &out, err);
    if (!rc)
        rc = nk_llama_bench_parse(nk_buf_str(&out), n_prompt, n_gen, n_depth,
                                  s->is_rpc ? "RPC" : "CPU", tok_s, err);
    nk_buf_release(&out);
    return rc;
}

/* Asks llama-batched-bench for the same place n_times; the first answer counts. */
static int run_batched_bench(nk_system *s, int n_streams, int n_prompt, int n_predict, int n_times,
                             struct nk_buf *out, struct nk_error *err)
{
    struct nk_peer_args args = { .n = 0 };
    const char *names[] = { "-npp", "-ntg", "--ctx-size" };
    int values[] = { n_prompt, n_predict, n_streams * (n_prompt + n_predict) + 64 };
    char list[SILENT_TIMES_MAX * 8] = "";

    add_common(s, &args);
    if (s->opts.cache) {
        nk_peer_arg(&args, "--cache-type-k");
        nk_peer_arg(&args, "%s", s->opts.cache);
        nk_peer_arg(&args, "--cache-type-v");
        nk_peer_arg(&args, "%s", s->opts.cache);
        nk_peer_arg(&args, "--flash-attn");
        nk_peer_arg(&args, s->opts.no_flash_attn ? "off" : "on");
    }
    for (int i = 0; i < 3; i++) {
        nk_peer_arg(&args, "%s", names[i]);
        nk_peer_arg(&args, "%d", values[i]);
    }
    for (int i = 0; i < n_times; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d", i ? "," : "", n_streams);
    nk_peer_arg(&args, "-npl");
    nk_peer_arg(&args, "%s", list);
    nk_peer_arg(&args, "--output-format");
    nk_peer_arg(&args, "jsonl");
    return run_tool(s, NK_PEER_BATCHED, &args, out, err);
}

/* llama-batched-bench prints through a thread of its own and does not wait for it at its end
 * (ggml-org/llama.cpp, pull request 22273): of runs of milliseconds, four and more in ten end with
 * nothing printed and exit code 0. Such a one is run again, with the same place asked for more
 * often: while the tool computes the later ones it prints the first. */
static int batched_bench(nk_system *s, int n_streams, int n_prompt, int n_predict,
                         double *decode_tok_s, double *prefill_tok_s, struct nk_error *err)
{
    struct nk_buf out = NK_BUF_INIT(BODY_BYTES_MAX);
    int rc = 0;

    for (int n = 1; !rc && n <= SILENT_TIMES_MAX && !strchr(nk_buf_str(&out), '{'); n *= 2)
        rc = run_batched_bench(s, n_streams, n_prompt, n_predict, n, &out, err);
    if (!rc)
        rc = nk_batched_bench_parse(nk_buf_str(&out), n_streams, n_prompt, n_predict, decode_tok_s,
                                    prefill_tok_s, err);
    nk_buf_release(&out);
    return rc;
}

static int decode(nk_system *s, int n_streams, int n_depth, int n_predict, double *tok_s,
                  struct nk_error *err)
{
    double prefill_tok_s;

    return n_streams == 1
               ? llama_bench(s, 0, n_predict, n_depth, tok_s, err)
               : batched_bench(s, n_streams, n_depth, n_predict, tok_s, &prefill_tok_s, err);
}

static int after_prompt(nk_system *s, int n_prompt, int n_predict, double tok_s[2],
                        struct nk_error *err)
{
    return batched_bench(s, 1, n_prompt, n_predict, &tok_s[0], &tok_s[1], err);
}

static int prefill(nk_system *s, int n_prompt, double *tok_s, struct nk_error *err)
{
    return llama_bench(s, n_prompt, 0, 0, tok_s, err);
}

/* ---- llama-server ---- */

static void ignore_line(void *user, const char *line, uint64_t at_ns)
{
    (void)user, (void)line, (void)at_ns;
}

/* Starts llama-server and waits until it takes requests. */
static int start_server(nk_system *s, struct nk_process *process, int *port, struct nk_error *err)
{
    struct nk_peer_args args = { .n = 0 };
    uint64_t end_ns = nk_now_ns() + (uint64_t)READY_MS_MAX * 1000000;
    char url[96], how[96];
    int rc = nk_port_find(port, err);

    if (rc)
        return rc;
    add_common(s, &args);
    nk_peer_arg(&args, "--ctx-size");
    nk_peer_arg(&args, "%d", s->opts.n_ctx);
    nk_peer_arg(&args, "--parallel");
    nk_peer_arg(&args, "%d", s->opts.n_streams_max);
    nk_peer_arg(&args, "--kv-unified");
    nk_peer_arg(&args, "--host");
    nk_peer_arg(&args, "127.0.0.1");
    nk_peer_arg(&args, "--port");
    nk_peer_arg(&args, "%d", *port);
    nk_peer_arg(&args, "--no-ui");
    nk_peer_arg(&args, "--cache-ram"); /* no copies of KV kept: it would count as memory */
    nk_peer_arg(&args, "0");
    rc = nk_peer_start(s->opts.peers, NK_PEER_SERVER, &args, process, err);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/health", *port);
    while (!rc && nk_http_lines(url, NULL, 10000, ignore_line, NULL, err)) {
        if (nk_process_wait(process, 5))
            return nk_fail(err, NK_E_UNAVAILABLE, "process_ended", "llama-server %s",
                           nk_process_status_format(how, sizeof how, process->status));
        if (nk_now_ns() >= end_ns)
            rc = nk_fail(err, NK_E_DEADLINE, "not_ready", "llama-server is not ready after %d s",
                         READY_MS_MAX / 1000);
    }
    return rc;
}

static int need_server(nk_system *s, struct nk_error *err)
{
    int port, attempt = 0, rc;

    if (s->http_port)
        return 0;
    do
        rc = start_server(s, &s->llama_server, &port, err);
    while (is_port_taken(rc, err, &s->llama_server, &attempt));
    s->http_port = rc ? 0 : port;
    return rc;
}

struct completion {
    nk_system *s;
    int n_prompt, n_predict;
    uint64_t rng;
    /* filled */
    uint64_t begin_ns, first_ns, last_ns, gap_ns;
    int n_tokens, n_counted, n_prompt_counted, rc;
    bool stopped;
    struct nk_error err;
    int begun_fd; /* of a pipe: closed with the first token, or at the end; -1: nobody waits */
};

/* Whoever reads at the other end goes on. */
static void tell_begun(struct completion *c)
{
    if (c->begun_fd >= 0)
        close(c->begun_fd);
    c->begun_fd = -1;
}

static void take_event(void *user, const char *line, uint64_t at_ns)
{
    struct completion *c = user;
    struct nk_server_event e;

    if (strncmp(line, "data: ", 6) || c->rc)
        return;
    c->rc = nk_server_event_parse(line + 6, &e, &c->err);
    if (c->rc)
        return;
    if (e.stop) {
        c->stopped = true;
        c->n_counted = e.n_predicted;
        c->n_prompt_counted = e.n_prompt;
        return;
    }
    if (!c->n_tokens)
        c->first_ns = at_ns;
    else if (at_ns - c->last_ns > c->gap_ns)
        c->gap_ns = at_ns - c->last_ns;
    c->last_ns = at_ns;
    c->n_tokens += e.n_tokens;
    tell_begun(c);
}

/* One completion from beginning to end; a thread's function too. */
static void *complete(void *arg)
{
    struct completion *c = arg;
    struct nk_buf body = NK_BUF_INIT(BODY_BYTES_MAX);
    int32_t *ids = malloc((size_t)c->n_prompt * sizeof *ids);
    struct nk_error err;
    char url[96];
    int rc;

    if (!ids) {
        c->rc = nk_fail(&c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
        tell_begun(c);
        return NULL;
    }
    nk_draw_ids(&c->rng, c->s->opts.n_vocab, ids, c->n_prompt);
    rc = nk_buf_adds(&body, "{\"prompt\":[", &err);
    for (int i = 0; !rc && i < c->n_prompt; i++)
        rc = nk_buf_addf(&body, &err, "%s%d", i ? "," : "", ids[i]);
    if (!rc)
        rc = nk_buf_addf(&body, &err,
                         "],\"n_predict\":%d,\"stream\":true,\"temperature\":0,\"ignore_eos\":true,"
                         "\"cache_prompt\":false,"
                         "\"return_tokens\":true}",
                         c->n_predict);
    snprintf(url, sizeof url, "http://127.0.0.1:%d/completion", c->s->http_port);
    c->begin_ns = nk_now_ns();
    if (!rc)
        rc = nk_http_lines(url, nk_buf_str(&body), TOOL_MS_MAX, take_event, c, &err);
    if (rc && !c->rc) {
        c->rc = rc;
        c->err = err;
    }
    if (!c->rc &&
        (!c->stopped || c->n_counted != c->n_predict || c->n_prompt_counted != c->n_prompt))
        c->rc =
            nk_fail(&c->err, NK_E_UNKNOWN, "not_run",
                    "llama-server took %d prompt tokens and generated %d; %d and %d were asked for",
                    c->n_prompt_counted, c->n_counted, c->n_prompt, c->n_predict);
    tell_begun(c);
    free(ids);
    nk_buf_release(&body);
    return NULL;
}

static int ttft(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    struct completion c = {
        .s = s, .n_prompt = n_prompt, .n_predict = 2, .rng = s->rng++, .begun_fd = -1
    };
    int rc = need_server(s, err);

    if (rc)
        return rc;
    complete(&c);
    if (c.rc) {
        *err = c.err;
        return c.rc;
    }
    *ms = (double)(c.first_ns - c.begin_ns) / 1e6;
    return 0;
}

static int gap_once(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    struct completion mine = { .s = s, .n_prompt = 16, .n_predict = GAP_TOKENS, .rng = s->rng++ };
    struct completion other = {
        .s = s, .n_prompt = n_prompt, .n_predict = 2, .rng = s->rng++, .begun_fd = -1
    };
    pthread_t thread;
    int rc = 0, fds[2];
    char byte;

    if (pipe2(fds, O_CLOEXEC) < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no pipe");
    mine.begun_fd = fds[1];
    if (nk_thread_start(&thread, complete, &mine)) {
        close(fds[0]);
        close(fds[1]);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no thread");
    }
    while (read(fds[0], &byte, 1) < 0 && errno == EINTR) /* until it has a token, or has ended */
        ;
    close(fds[0]);
    if (n_prompt)
        complete(&other);
    pthread_join(thread, NULL);
    rc = mine.rc ? mine.rc : other.rc;
    if (rc)
        *err = mine.rc ? mine.err : other.err;
    else if (n_prompt && other.first_ns > mine.last_ns)
        rc = nk_fail(err, NK_E_UNKNOWN, NK_TOO_LATE,
                     "the prompt of %d tokens was not prefilled while the other session ran",
                     n_prompt);
    else
        *ms = (double)mine.gap_ns / 1e6;
    return rc;
}

static int gap(nk_system *s, int n_prompt, double *ms, struct nk_error *err)
{
    uint64_t begin_ns = nk_now_ns();
    int rc = need_server(s, err);

    if (rc)
        return rc;
    do
        rc = gap_once(s, n_prompt, ms, err);
    while (nk_ask_again(rc, err, begin_ns));
    return rc;
}

static int memory(nk_system *s, double *mib, struct nk_error *err)
{
    double ms;
    int rc = ttft(s, 128, &ms, err);

    if (rc)
        return rc;
    *mib = (double)nk_machine_process_pss(s->llama_server.pid) / (1 << 20);
    return *mib > 0 ? 0
                    : nk_fail(err, NK_E_UNIMPLEMENTED, "not_run",
                              "the kernel does not tell a process's memory");
}

/* A process that does with the slice what a worker does, and nothing else: loads it with stock
 * llama.cpp (bench/load.h). */
static int startup(nk_system *s, double *seconds, struct nk_error *err)
{
    char threads[16], ctx[16], line[256], log[4200];
    const char *argv[] = { s->opts.self, "load", "--threads",   threads,
                           "--ctx",      ctx,    s->opts.slice, NULL };
    struct nk_process_opts opts = { .argv = argv, .capture_out = true, .err_path = log };
    struct nk_process process;
    uint64_t begin_ns = nk_now_ns();
    int rc;

    snprintf(threads, sizeof threads, "%d", s->opts.n_threads);
    snprintf(ctx, sizeof ctx, "%d", s->opts.n_ctx);
    snprintf(log, sizeof log, "%s/workers.log", s->opts.work_dir);
    rc = nk_process_start(&process, &opts, err);
    if (rc)
        return rc;
    rc = nk_process_read_line(&process, line, sizeof line, READY_MS_MAX, err);
    *seconds = (double)(nk_now_ns() - begin_ns) / 1e9;
    if (!rc && strcmp(line, "ready"))
        rc = nk_fail(err, NK_E_UNKNOWN, "not_run",
                     "nakshatra-bench load said '%s' instead of 'ready'", line);
    nk_process_stop(&process, 5000);
    return rc;
}

const struct nk_system_ops nk_system_whole = {
    .name = "whole",
    .start = start_whole,
    .stop = stop,
    .decode = decode,
    .prefill = prefill,
    .after_prompt = after_prompt,
    .ttft = ttft,
    .gap = gap,
    .memory = memory,
    .startup = startup,
};
const struct nk_system_ops nk_system_rpc = {
    .name = "rpc",
    .start = start_rpc,
    .stop = stop,
    .decode = decode,
    .prefill = prefill,
};
