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
        .body_kib = (int64_t)(o.limits.body_bytes_max >> 10),
        .requests_mib = (int64_t)(o.limits.requests_bytes_max >> 20),
        .output_kib = (int64_t)(o.limits.output_bytes_max >> 10),
        .header_ms = o.limits.header_ms,
        .body_ms = o.limits.body_ms,
        .idle_ms = o.limits.idle_ms,
        .connections = o.limits.connections_max,
        .per_address = o.limits.connections_per_address,
        .drain_ms = 30000,
    };
}

int nk_serve_start(nk_gateway **out, const struct nk_serve *s, nk_chain *c, const nk_vocab *v,
                   bool deterministic, struct nk_error *err)
{
    struct nk_buf keys = NK_BUF_INIT(FILE_BYTES_MAX), cert = NK_BUF_INIT(FILE_BYTES_MAX),
                  key = NK_BUF_INIT(FILE_BYTES_MAX), tmpl = NK_BUF_INIT(FILE_BYTES_MAX);
    struct nk_gateway_opts o = nk_gateway_opts_default();
    char *self = NULL;
    int rc;

    *out = NULL;
    o.listen = s->listen;
    o.chain = c;
    o.vocab = v;
    o.insecure = s->insecure;
    o.deterministic = deterministic;
    o.no_page = s->no_page;
    o.limits.running_max = (int)s->running;
    o.limits.waiting_max = (int)s->waiting;
    o.limits.waiting_ms = (uint32_t)s->waiting_ms;
    o.limits.body_bytes_max = (size_t)s->body_kib << 10;
    o.limits.requests_bytes_max = (size_t)s->requests_mib << 20;
    o.limits.output_bytes_max = (size_t)s->output_kib << 10;
    o.limits.header_ms = (uint32_t)s->header_ms;
    o.limits.body_ms = (uint32_t)s->body_ms;
    o.limits.idle_ms = (uint32_t)s->idle_ms;
    o.limits.connections_max = (int)s->connections;
    o.limits.connections_per_address = (int)s->per_address;
    if (s->names.n > NK_GATEWAY_NAMES_MAX || s->origins.n > NK_GATEWAY_ORIGINS_MAX ||
        s->hosts.n > NK_GATEWAY_HOSTS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_argument",
                       "--name, --cors-origin and --allowed-host can be given %d times each",
                       NK_GATEWAY_NAMES_MAX);
    for (int i = 0; i < s->names.n; i++)
        o.names[o.n_names++] = s->names.items[i];
    for (int i = 0; i < s->origins.n; i++)
        o.origins[o.n_origins++] = s->origins.items[i];
    for (int i = 0; i < s->hosts.n; i++)
        o.hosts[o.n_hosts++] = s->hosts.items[i];
    rc = nk_process_self(&self, err);
    o.program = self;
    if (!rc)
        rc = read_file(nk_file_read_secret, s->api_key_file, &keys, &o.api_keys, err);
    if (!rc)
        rc = read_file(nk_file_read, s->tls_cert, &cert, &o.tls_certificate, err);
    if (!rc)
        rc = read_file(nk_file_read_secret, s->tls_key, &key, &o.tls_key, err);
    if (!rc)
        rc = nk_chat_template_read(s->chat_template, &tmpl, &o.chat_template, err);
    if (!rc)
        rc = nk_gateway_start(out, &o, err);
    if (rc && !strcmp(err->reason, "bad_key_file"))
        nk_wrap(rc, err, "%s", s->api_key_file);
    /* A private key does not stay in freed memory. */
    if (key.data)
        explicit_bzero(key.data, key.size);
    nk_buf_release(&keys);
    nk_buf_release(&cert);
    nk_buf_release(&key);
    nk_buf_release(&tmpl);
    free(self);
    return rc;
}

void nk_serve_stop(nk_gateway *g, uint32_t grace_ms, void (*last)(void *arg), void *arg)
{
    if (nk_gateway_stop(g, grace_ms))
        return;
    if (last)
        last(arg);
    fflush(NULL);
    _exit(NK_EXIT_OK);
}

void nk_serve_print_url(const nk_gateway *g)
{
    printf("listening on %s\n", nk_gateway_url(g));
    fflush(stdout);
}
