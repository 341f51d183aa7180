#include "bench/peer.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <jansson.h>

#include "base/clock.h"
#include "base/file.h"
#include "bench/stats.h"

enum { OUTPUT_BYTES_MAX = 4 << 20, ARGV_MAX = 80, SAMPLES_MAX = 256 };
/* Measured: 0.001 to 0.002 s to say how much memory there is, 0.05 s for half of 32 tokens of the
 * smallest model tested. */
#define RPC_CPU_S_MIN 0.01

/* clang-format off */
static const struct {
    const char *names[3]; /* as distributions call it */
    const char *package;  /* Debian's */
} tools[NK_PEER_TOOL_COUNT] = {
    [NK_PEER_BENCH]   = { { "llama-bench" }, "llama.cpp-tools" },
    [NK_PEER_BATCHED] = { { "llama-batched-bench" }, "llama.cpp-tools-extra" },
    [NK_PEER_SERVER]  = { { "llama-server" }, "llama.cpp-tools" },
    [NK_PEER_RPC]     = { { "ggml-rpc-server", "rpc-server" }, "libggml0-backend-rpc" },
};
/* clang-format on */

struct nk_peers {
    char tool[NK_PEER_TOOL_COUNT][PATH_MAX];
    char loader[PATH_MAX], library_path[2 * PATH_MAX]; /* of the private copy; "" elsewhere */
    char cwd[PATH_MAX + 16]; /* the folder of links to backends; "" when the system's are used */
    char log[PATH_MAX + 16];
};

static const char *setting(const char *name, const char *fallback)
{
    const char *value = getenv(name);

    return value && *value ? value : fallback;
}

static bool find_in(const char *dir, const char *name, char out[PATH_MAX])
{
    return snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX && access(out, X_OK) == 0;
}

/* Debian keeps ggml-rpc-server in /usr/libexec/TRIPLET/llama/bin, the others in /usr/bin; the
 * private copy is the same tree elsewhere. */
static bool find_tool(const char *bin, const char *name, char out[PATH_MAX])
{
    char libexec[PATH_MAX], dir[PATH_MAX + 300];
    struct dirent *e;
    bool found = find_in(bin, name, out);
    DIR *d;

    if (found || snprintf(libexec, sizeof libexec, "%s/../libexec", bin) >= (int)sizeof libexec ||
        !(d = opendir(libexec)))
        return found;
    while (!found && (e = readdir(d))) {
        snprintf(dir, sizeof dir, "%s/%s/llama/bin", libexec, e->d_name);
        found = e->d_name[0] != '.' && find_in(dir, name, out);
    }
    closedir(d);
    return found;
}

/* Links to the CPU's backends and RPC's, in a folder of their own. */
static int link_backends(nk_peers *p, const char *backend_dir, const char *work_dir,
                         struct nk_error *err)
{
    char from[PATH_MAX + 300], to[PATH_MAX + 400];
    struct dirent *e;
    DIR *d;
    int rc, n = 0;

    snprintf(p->cwd, sizeof p->cwd, "%s/backends", work_dir);
    rc = nk_dir_make(p->cwd, err);
    if (rc)
        return rc;
    d = opendir(backend_dir);
    while (d && (e = readdir(d))) {
        if (strncmp(e->d_name, "libggml-cpu", 11) && strncmp(e->d_name, "libggml-rpc", 11))
            continue;
        snprintf(from, sizeof from, "%s/%s", backend_dir, e->d_name);
        snprintf(to, sizeof to, "%s/%s", p->cwd, e->d_name);
        unlink(to);
        n += symlink(from, to) == 0;
    }
    if (d)
        closedir(d);
    if (!n)
        return nk_fail(err, NK_E_NOT_FOUND, "no_peer",
                       "%s: llama.cpp's backends are not there; `make deps` unpacks them",
                       backend_dir);
    return 0;
}

int nk_peers_open(nk_peers **out, const char *work_dir, struct nk_error *err)
{
    const char *bin = setting("NK_LLAMA_BIN", NK_LLAMA_BIN),
               *lib = setting("NK_LLAMA_LIB", NK_LLAMA_LIB);
    nk_peers *p = calloc(1, sizeof *p);
    char dir[PATH_MAX], backends[PATH_MAX];
    int rc = 0;

    *out = NULL;
    if (!p || !realpath(work_dir, dir)) {
        rc = nk_fail(err, p ? NK_E_NOT_FOUND : NK_E_EXHAUSTED, p ? "no_folder" : "no_memory",
                     "%s: %s", work_dir, strerror(errno));
        goto out;
    }
    for (int t = 0; t < NK_PEER_TOOL_COUNT; t++) {
        bool found = false;

        for (int i = 0; i < 3 && tools[t].names[i] && !found; i++)
            found = find_tool(bin, tools[t].names[i], p->tool[t]);
        if (!found) {
            rc = nk_fail(err, NK_E_NOT_FOUND, "no_peer",
                         "%s was not found under %s: `make deps` unpacks it, or install the "
                         "package %s, or name its folder "
                         "in NK_LLAMA_BIN",
                         tools[t].names[0], bin, tools[t].package);
            goto out;
        }
    }
    snprintf(p->log, sizeof p->log, "%s/peers.log", dir);
    if (*setting("NK_LLAMA_LOADER", NK_LLAMA_LOADER)) {
        snprintf(p->loader, sizeof p->loader, "%s", setting("NK_LLAMA_LOADER", NK_LLAMA_LOADER));
        snprintf(p->library_path, sizeof p->library_path, "%s:%s/llama", lib, lib);
        snprintf(backends, sizeof backends, "%s/ggml/backends0", lib);
        rc = link_backends(p, backends, dir, err);
    }
    if (!rc) {
        *out = p;
        p = NULL;
    }
out:
    free(p);
    return rc;
}

void nk_peers_close(nk_peers *p)
{
    free(p);
}

void nk_peer_arg(struct nk_peer_args *a, const char *fmt, ...)
{
    va_list ap;
    int n;

    NK_ASSERT(a->n < 64);
    va_start(ap, fmt);
    n = vsnprintf(a->text[a->n], sizeof a->text[0], fmt, ap);
    va_end(ap);
    NK_ASSERT(n >= 0 && n < (int)sizeof a->text[0]);
    a->n++;
}

static int start(nk_peers *p, enum nk_peer_tool tool, const struct nk_peer_args *args,
                 struct nk_process_opts opts, struct nk_process *process, struct nk_error *err)
{
    const char *argv[ARGV_MAX],
        *env[] = { "GGML_VK_VISIBLE_DEVICES=", "CUDA_VISIBLE_DEVICES=", NULL };
    int n = 0;

    if (p->loader[0]) {
        argv[n++] = p->loader;
        argv[n++] = "--library-path";
        argv[n++] = p->library_path;
    }
    argv[n++] = p->tool[tool];
    for (int i = 0; i < args->n; i++)
        argv[n++] = args->text[i];
    argv[n] = NULL;
    opts.argv = argv;
    opts.env = env;
    opts.cwd = p->cwd[0] ? p->cwd : NULL;
    opts.err_path = p->log;
    return nk_process_start(process, &opts, err);
}

int nk_peer_run(nk_peers *p, enum nk_peer_tool tool, const struct nk_peer_args *args,
                uint32_t timeout_ms, struct nk_buf *out, struct nk_error *err)
{
    char path[PATH_MAX + 32], how[96], last[300];
    struct nk_process_opts opts = { .out_path = path };
    struct nk_process process;
    int rc;

    snprintf(path, sizeof path, "%s.stdout", p->log);
    unlink(path);
    unlink(p->log);
    rc = start(p, tool, args, opts, &process, err);
    if (rc)
        return rc;
    if (!nk_process_wait(&process, timeout_ms))
        rc = nk_fail(err, NK_E_DEADLINE, "timeout", "%s did not end within %u s",
                     tools[tool].names[0], timeout_ms / 1000);
    nk_process_stop(&process, 1000);
    if (!rc && process.status) {
        nk_peer_last_words(p, last, sizeof last);
        rc = nk_fail(err, NK_E_UNKNOWN, "failed", "%s %s%s%s", tools[tool].names[0],
                     nk_process_status_format(how, sizeof how, process.status), last[0] ? ": " : "",
                     last);
    }
    if (!rc)
        rc = nk_file_read(path, OUTPUT_BYTES_MAX, out, err);
    unlink(path);
    return rc;
}

int nk_peer_start(nk_peers *p, enum nk_peer_tool tool, const struct nk_peer_args *args,
                  struct nk_process *process, struct nk_error *err)
{
    struct nk_process_opts opts = { .out_path = p->log };

    return start(p, tool, args, opts, process, err);
}

void nk_peer_last_words(nk_peers *p, char *out, size_t size)
{
    struct nk_buf b = NK_BUF_INIT(OUTPUT_BYTES_MAX);
    const char *begin, *end;

    out[0] = 0;
    if (nk_file_read(p->log, OUTPUT_BYTES_MAX, &b, NULL) == 0 && b.size) {
        for (end = b.data + b.size; end > b.data && strchr("\r\n ", end[-1]); end--)
            ;
        for (begin = end; begin > b.data && begin[-1] != '\n'; begin--)
            ;
        snprintf(out, size, "%.*s", (int)(end - begin), begin);
    }
    nk_buf_release(&b);
}

int nk_port_find(int *port, struct nk_error *err)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM, 0), rc = 0;

    if (fd < 0 || bind(fd, (struct sockaddr *)&a, size) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &size) < 0)
        rc = nk_fail(err, NK_E_UNAVAILABLE, "no_port", "no free port on 127.0.0.1: %s",
                     strerror(errno));
    else
        *port = ntohs(a.sin_port);
    if (fd >= 0)
        close(fd);
    return rc;
}

int nk_port_wait(const char *host, int port, struct nk_process *process, uint32_t timeout_ms,
                 struct nk_error *err)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    uint64_t end = nk_now_ns() + (uint64_t)timeout_ms * 1000000;
    char how[96];

    if (inet_pton(AF_INET, host, &a.sin_addr) != 1)
        return nk_fail(err, NK_E_INVALID, "bad_address", "'%s' is no IPv4 address", host);
    for (;;) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), ok;

        if (fd < 0)
            return nk_fail(err, NK_E_UNAVAILABLE, "no_port", "socket: %s", strerror(errno));
        ok = connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
        close(fd);
        if (ok)
            return 0;
        if (nk_process_wait(process, 1))
            return nk_fail(err, NK_E_UNAVAILABLE, "process_ended", "the server for port %d %s",
                           port, nk_process_status_format(how, sizeof how, process->status));
        if (nk_now_ns() >= end)
            return nk_fail(err, NK_E_DEADLINE, "not_listening",
                           "nothing listens on %s:%d after %u ms", host, port, timeout_ms);
        nk_sleep_ms(2);
    }
}

/* ---- what they print ---- */

/* Calls visit for each line that is a JSON object until it returns true. */
static bool each_json(const char *text, bool (*visit)(json_t *line, void *arg), void *arg)
{
    bool found = false;

    while (*text && !found) {
        size_t len = strcspn(text, "\n");
        json_t *line = *text == '{' ? json_loadb(text, len, 0, NULL) : NULL;

        found = line && visit(line, arg);
        json_decref(line);
        text += len + (text[len] == '\n');
    }
    return found;
}

static bool is_int(json_t *object, const char *key, int value)
{
    json_t *v = json_object_get(object, key);

    return json_is_integer(v) && json_integer_value(v) == value;
}

struct bench_query {
    int n_prompt, n_gen, n_depth, n_lines;
    const char *backend;
    char found_backend[64];
    double tok_s;
};

static bool visit_llama_bench(json_t *line, void *arg)
{
    struct bench_query *q = arg;
    const char *backend = json_string_value(json_object_get(line, "backends"));
    json_t *samples = json_object_get(line, "samples_ts");
    double values[SAMPLES_MAX];
    size_t n = 0;

    q->n_lines++;
    if (!is_int(line, "n_prompt", q->n_prompt) || !is_int(line, "n_gen", q->n_gen) ||
        !is_int(line, "n_depth", q->n_depth))
        return false;
    snprintf(q->found_backend, sizeof q->found_backend, "%s", backend ? backend : "none");
    for (size_t i = 0; i < json_array_size(samples) && n < SAMPLES_MAX; i++)
        if (json_number_value(json_array_get(samples, i)) > 0)
            values[n++] = json_number_value(json_array_get(samples, i));
    q->tok_s = nk_median(values, n);
    return true;
}

int nk_llama_bench_parse(const char *text, int n_prompt, int n_gen, int n_depth,
                         const char *backend, double *tok_s, struct nk_error *err)
{
    struct bench_query q = { n_prompt, n_gen, n_depth, 0, backend, "", 0 };

    if (!each_json(text, visit_llama_bench, &q))
        return nk_fail(err, NK_E_UNKNOWN, "not_run",
                       "llama-bench printed %d results, none for %d prompt and %d generated tokens "
                       "at depth %d",
                       q.n_lines, n_prompt, n_gen, n_depth);
    if (strcmp(q.found_backend, backend))
        return nk_fail(err, NK_E_UNKNOWN, "not_run", "llama-bench computed on '%s' instead of '%s'",
                       q.found_backend, backend);
    if (q.tok_s <= 0)
        return nk_fail(err, NK_E_UNKNOWN, "not_run", "llama-bench printed no samples");
    *tok_s = q.tok_s;
    return 0;
}

struct batched_query {
    int n_streams, n_prompt, n_gen, n_lines;
    double decode, prefill;
};

static bool visit_batched(json_t *line, void *arg)
{
    struct batched_query *q = arg;

    q->n_lines++;
    if (!is_int(line, "pl", q->n_streams) || !is_int(line, "pp", q->n_prompt) ||
        !is_int(line, "tg", q->n_gen))
        return false;
    q->decode = json_number_value(json_object_get(line, "speed_tg"));
    q->prefill = json_number_value(json_object_get(line, "speed_pp"));
    return true;
}

int nk_batched_bench_parse(const char *text, int n_streams, int n_prompt, int n_gen,
                           double *decode_tok_s, double *prefill_tok_s, struct nk_error *err)
{
    struct batched_query q = { n_streams, n_prompt, n_gen, 0, 0, 0 };

    if (!each_json(text, visit_batched, &q))
        return nk_fail(err, NK_E_UNKNOWN, "not_run",
                       "llama-batched-bench printed %d results, none for %d streams of %d prompt "
                       "and %d generated tokens",
                       q.n_lines, n_streams, n_prompt, n_gen);
    if (q.decode <= 0 || q.prefill <= 0)
        return nk_fail(err, NK_E_UNKNOWN, "not_run", "llama-batched-bench printed a speed of 0");
    *decode_tok_s = q.decode;
    *prefill_tok_s = q.prefill;
    return 0;
}

int nk_server_event_parse(const char *text, struct nk_server_event *out, struct nk_error *err)
{
    json_t *root = json_loads(text, 0, NULL), *error = json_object_get(root, "error");
    json_t *tokens = json_object_get(root, "tokens");
    const char *message = json_string_value(json_object_get(error, "message"));
    int rc = 0;

    *out = (struct nk_server_event){ 0 };
    if (!json_is_object(root) || error || !json_is_boolean(json_object_get(root, "stop")))
        rc = nk_fail(err, NK_E_UNKNOWN, "bad_event", "llama-server sent %s%.200s",
                     message ? "an error: " : "", message ? message : text);
    if (!rc) {
        out->stop = json_is_true(json_object_get(root, "stop"));
        out->n_tokens = out->stop ? 0 : json_is_array(tokens) ? (int)json_array_size(tokens) : 1;
        out->n_predicted = (int)json_integer_value(json_object_get(root, "tokens_predicted"));
        out->n_prompt = (int)json_integer_value(json_object_get(root, "tokens_evaluated"));
    }
    json_decref(root);
    return rc;
}

int nk_rpc_part_check(const double *cpu_s, int n, struct nk_error *err)
{
    for (int i = 0; i < n; i++)
        if (cpu_s[i] < RPC_CPU_S_MIN)
            return nk_fail(err, NK_E_UNKNOWN, "not_run",
                           "RPC server %d of %d had no part: it computed for %.4f s, and the least "
                           "part takes %.3f s",
                           i + 1, n, cpu_s[i], RPC_CPU_S_MIN);
    return 0;
}
