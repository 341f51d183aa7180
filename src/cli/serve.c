#include "cli/serve.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/process.h"
#include "cli/cli.h"
#include "cli/generate.h"

enum { FILE_BYTES_MAX = 4 << 20 };

/* The file's text, or NULL in *text where there is no path. read: nk_file_read or
 * nk_file_read_secret. */
static int read_file(int (*read)(const char *, size_t, struct nk_buf *, struct nk_error *),
                     const char *path, struct nk_buf *b, const char **text, struct nk_error *err)
{
    int rc = path ? read(path, FILE_BYTES_MAX, b, err) : 0;

    *text = path && !rc ? nk_buf_str(b) : NULL;
    return rc;
}

struct nk_serve nk_serve_default(void)
{
    const struct nk_gateway_opts o = nk_gateway_opts_default();

    return (struct nk_serve){
        .listen = o.listen,
        .running = o.limits.running_max,
        .waiting = o.limits.waiting_max,
        .waiting_ms = o.limits.waiting_ms,
        .hold_ms = o.limits.hold_ms,
        .body_kib = (int64_t)(o.limits.body_bytes_max >> 10),
        .requests_mib = (int64_t)(o.limits.requests_bytes_max >> 20),
        .responses_s = (int64_t)(o.limits.responses_ms / 1000),
        .responses_mib = (int64_t)(o.limits.responses_bytes_max >> 20),
        .output_kib = (int64_t)(o.limits.output_bytes_max >> 10),
        .header_ms = o.limits.header_ms,
        .body_ms = o.limits.body_ms,
        .idle_ms = o.limits.idle_ms,
        .connections = o.limits.connections_max,
        .per_address = o.limits.connections_per_address,
        .drain_ms = 30000,
    };
}

/* The gateway's options, and the files that they name. */
struct given {
    struct nk_buf keys, cert, key, tmpl;
    char *self;               /* this program */
    struct nk_gateway_opts o; /* borrows from the others */
};

/* Which of the words it is; NULL: the first. */
static int choose(const char *option, const char *given, const char *const words[3], int *out,
                  struct nk_error *err)
{
    *out = 0;
    if (!given)
        return 0;
    for (int i = 0; i < 3; i++)
        if (!strcmp(given, words[i])) {
            *out = i;
            return 0;
        }
    return nk_fail(err, NK_E_INVALID, "bad_argument", "--%s %s; %s, %s or %s is right", option,
                   given, words[0], words[1], words[2]);
}

/* what: the options begin as these. */
static int read_given(struct given *f, const struct nk_serve *s, const struct nk_gateway_opts *what,
                      struct nk_error *err)
{
    static const char *const tools[] = { [NK_GATEWAY_TOOLS_NATIVE] = "native",
                                         [NK_GATEWAY_TOOLS_GENERIC] = "generic",
                                         [NK_GATEWAY_TOOLS_OFF] = "off" };
    static const char *const reasoning[] = { [NK_GATEWAY_REASONING_AUTO] = "auto",
                                             [NK_GATEWAY_REASONING_ON] = "on",
                                             [NK_GATEWAY_REASONING_OFF] = "off" };
    struct nk_gateway_opts *o = &f->o;
    int rc, tools_mode, reasoning_mode;

    nk_buf_init(&f->keys, FILE_BYTES_MAX);
    nk_buf_init(&f->cert, FILE_BYTES_MAX);
    nk_buf_init(&f->key, FILE_BYTES_MAX);
    nk_buf_init(&f->tmpl, FILE_BYTES_MAX);
    f->self = NULL;
    *o = *what;
    o->listen = s->listen;
    o->insecure = s->insecure;
    o->no_page = s->no_page;
    o->strict = s->strict;
    o->verbose = s->verbose;
    o->any_model = s->any_model;
    o->defaults = s->defaults;
    o->n_predict_max = (int)s->n_predict;
    o->limits.running_max = (int)s->running;
    o->limits.waiting_max = (int)s->waiting;
    o->limits.waiting_ms = (uint32_t)s->waiting_ms;
    o->limits.hold_ms = (uint32_t)s->hold_ms;
    o->limits.stall_ms = (uint32_t)s->stall_ms;
    o->exact_recovery = s->exact_recovery;
    o->limits.body_bytes_max = (size_t)s->body_kib << 10;
    o->limits.requests_bytes_max = (size_t)s->requests_mib << 20;
    o->limits.responses_ms = (uint64_t)s->responses_s * 1000;
    o->limits.responses_bytes_max = (size_t)s->responses_mib << 20;
    o->limits.output_bytes_max = (size_t)s->output_kib << 10;
    o->limits.header_ms = (uint32_t)s->header_ms;
    o->limits.body_ms = (uint32_t)s->body_ms;
    o->limits.idle_ms = (uint32_t)s->idle_ms;
    o->limits.connections_max = (int)s->connections;
    o->limits.connections_per_address = (int)s->per_address;
    if (s->names.n > NK_GATEWAY_NAMES_MAX || s->origins.n > NK_GATEWAY_ORIGINS_MAX ||
        s->hosts.n > NK_GATEWAY_HOSTS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--name, --cors-origin and --allowed-host can be given %d times each",
                       NK_GATEWAY_NAMES_MAX);
    for (int i = 0; i < s->names.n; i++)
        o->names[o->n_names++] = s->names.items[i];
    for (int i = 0; i < s->origins.n; i++)
        o->origins[o->n_origins++] = s->origins.items[i];
    for (int i = 0; i < s->hosts.n; i++)
        o->hosts[o->n_hosts++] = s->hosts.items[i];
    rc = choose("tools", s->tools, tools, &tools_mode, err);
    if (!rc)
        rc = choose("reasoning", s->reasoning, reasoning, &reasoning_mode, err);
    if (rc)
        return rc;
    o->tools = (enum nk_gateway_tools)tools_mode;
    o->reasoning = (enum nk_gateway_reasoning)reasoning_mode;
    rc = nk_process_self(&f->self, err);
    o->program = f->self;
#ifdef __linux__
    /* The running program, also after its file was replaced by another version's, or removed. */
    if (!access("/proc/self/exe", X_OK))
        o->program = "/proc/self/exe";
#endif
    if (!rc)
        rc = read_file(nk_file_read_secret, s->api_key_file, &f->keys, &o->api_keys, err);
    if (!rc)
        rc = read_file(nk_file_read, s->tls_cert, &f->cert, &o->tls_certificate, err);
    if (!rc)
        rc = read_file(nk_file_read_secret, s->tls_key, &f->key, &o->tls_key, err);
    if (!rc)
        rc = nk_chat_template_read(s->chat_template, &f->tmpl, &o->chat_template, err);
    return rc;
}

static void release_given(struct given *f)
{
    /* A private key does not stay in freed memory. */
    if (f->key.data)
        explicit_bzero(f->key.data, f->key.size);
    nk_buf_release(&f->keys);
    nk_buf_release(&f->cert);
    nk_buf_release(&f->key);
    nk_buf_release(&f->tmpl);
    free(f->self);
}

/* rc, with the key file's name before what is wrong in it. */
static int named(int rc, const struct nk_serve *s, struct nk_error *err)
{
    if (rc && !strcmp(err->reason, "bad_key_file"))
        nk_wrap(rc, err, "%s", s->api_key_file);
    return rc;
}

int nk_serve_check(const struct nk_serve *s, struct nk_error *err)
{
    const struct nk_gateway_opts what = nk_gateway_opts_default();
    struct given f;
    int rc = read_given(&f, s, &what, err);

    if (!rc)
        rc = nk_gateway_check(&f.o, err);
    release_given(&f);
    return named(rc, s, err);
}

int nk_serve_start(nk_gateway **out, const struct nk_serve *s, const struct nk_gateway_opts *what,
                   struct nk_error *err)
{
    struct given f;
    int rc = read_given(&f, s, what, err);

    *out = NULL;
    if (!rc)
        rc = nk_gateway_start(out, &f.o, err);
    release_given(&f);
    return named(rc, s, err);
}

void nk_serve_stop(nk_gateway *g, uint32_t grace_ms, int exit_code, void (*last)(void *arg),
                   void *arg)
{
    if (nk_gateway_stop(g, grace_ms))
        return;
    if (last)
        last(arg);
    fflush(NULL);
    _exit(exit_code);
}

void nk_serve_print_url(const nk_gateway *g)
{
    printf("listening on %s\n", nk_gateway_url(g));
    fflush(stdout);
}
