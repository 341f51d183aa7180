#include "cli/host_int.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "rpc/link.h"

const char *nk__host_own_address(const nk_host *h)
{
    return h->o.listen && !nk__host_is_wildcard(h->o.listen) ? h->o.listen : "127.0.0.1";
}

/* ---- enrolment ---- */

static bool is_removed(void *user, const char *id)
{
    return nk_coordinator_is_removed(((nk_host *)user)->coordinator, id);
}

static int admit(void *user, const struct nk_enrol_admission *who, struct nk_enrol_admitted *out,
                 struct nk_error *err)
{
    struct nk_reach_address addresses[NK_TOKEN_ADDRESSES_MAX];
    const char *list[NK_TOKEN_ADDRESSES_MAX];
    nk_host *h = user;
    int rc;

    rc = nk_coordinator_admit(h->coordinator, out->id, false, out->name, &out->roster, err);
    if (rc)
        return rc;
    out->port = nk_server_port(h->server);
    out->n_addresses = (int)nk__host_addresses(h, addresses, list);
    for (int i = 0; i < out->n_addresses; i++)
        strcpy(out->addresses[i], list[i]);
    if (!who->renews)
        nk_log(NK_LOG_CLI, NK_LOG_INFO, "event=joined member=%s name=%s peer=%s", out->id,
               out->name, who->peer);
    return 0;
}

/* ---- methods ---- */

static void open_attend(nk_call *c, void *host)
{
    nk_coordinator_attend(((nk_host *)host)->coordinator, c);
}

static void open_status(nk_call *c, void *host)
{
    nk_coordinator_status(((nk_host *)host)->coordinator, c);
}

static void open_token(nk_call *c, void *host)
{
    nk_coordinator_token(((nk_host *)host)->coordinator, c);
}

static void open_remove(nk_call *c, void *host)
{
    nk_coordinator_remove(((nk_host *)host)->coordinator, c);
}

static void open_catalogue(nk_call *c, void *host)
{
    nk_pieces_service_catalogue(((nk_host *)host)->pieces, c);
}

static void open_have(nk_call *c, void *host)
{
    nk_pieces_service_have(((nk_host *)host)->pieces, c);
}

static void open_part(nk_call *c, void *host)
{
    nk_pieces_service_part(((nk_host *)host)->pieces, c);
}

static void open_echo(nk_call *c, void *host)
{
    nk_link_echo(c, ((nk_host *)host)->net);
}

static void open_flow(nk_call *c, void *host)
{
    nk_link_flow(c, ((nk_host *)host)->net, &((nk_host *)host)->flows);
}

static const struct nk_method methods[] = {
    { NK_COORDINATOR_ATTEND, open_attend, NK_ROLES_MEMBER },
    { NK_COORDINATOR_STATUS, open_status, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
    { NK_COORDINATOR_TOKEN, open_token, NK_ROLES_GATEWAY },
    { NK_COORDINATOR_REMOVE, open_remove, NK_ROLES_GATEWAY },
    { NK_PIECES_CATALOGUE, open_catalogue, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
    { NK_PIECES_HAVE, open_have, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
    { NK_PIECES_PART, open_part, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
    { NK_LINK_ECHO, open_echo, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
    { NK_LINK_FLOW, open_flow, NK_ROLES_MEMBER | NK_ROLES_GATEWAY },
};

/* The ports of the last time, where members look for this machine. */
static void remembered_ports(nk_host *h, int ports[2])
{
    struct nk_buf value = NK_BUF_INIT(64);
    struct nk_error err;

    ports[0] = ports[1] = 0;
    if (!nk_store_get(h->store, "ports", &value, NULL, &err) &&
        sscanf(nk_buf_str(&value), "%d %d", &ports[0], &ports[1]) != 2)
        ports[0] = ports[1] = 0;
    nk_buf_release(&value);
    for (int i = 0; i < 2; i++)
        if (ports[i] < 0 || ports[i] > 65535)
            ports[i] = 0;
}

static void format_listen(const nk_host *h, int port, char out[280])
{
    int fd;

    if (h->o.listen) {
        snprintf(out, 280, strchr(h->o.listen, ':') ? "[%.200s]:%d" : "%.200s:%d", h->o.listen,
                 port);
        return;
    }
    fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        close(fd);
    snprintf(out, 280, fd >= 0 ? "[::]:%d" : "0.0.0.0:%d", port);
}

int nk__host_start_servers(nk_host *h, struct nk_error *err)
{
    static const struct nk_enrol_handlers handlers = { .is_removed = is_removed, .admit = admit };
    struct nk_server_opts so = { .credentials = { .identity = h->identity },
                                 .methods = methods,
                                 .n_methods = sizeof methods / sizeof methods[0],
                                 .user = h };
    struct nk_enrol_server_opts eo = { .ca = h->ca,
                                       .store = h->store,
                                       .clock = nk_clock_system(),
                                       .chance = nk_chance_system(),
                                       .handlers = &handlers,
                                       .user = h };
    char listen[280], text[64];
    int ports[2], rc;

    remembered_ports(h, ports);
    if (h->o.port)
        ports[0] = h->o.port;
    so.listen = eo.listen = listen;
    format_listen(h, ports[0], listen);
    rc = nk_server_start(&h->server, h->net, &so, err);
    if (rc == NK_E_UNAVAILABLE && ports[0] && !h->o.port) { /* somebody else has it now */
        format_listen(h, 0, listen);
        rc = nk_server_start(&h->server, h->net, &so, err);
    }
    if (rc)
        return rc;
    format_listen(h, ports[1], listen);
    rc = nk_enrol_server_start(&h->enrol, &eo, err);
    if (rc == NK_E_UNAVAILABLE && ports[1]) {
        format_listen(h, 0, listen);
        rc = nk_enrol_server_start(&h->enrol, &eo, err);
    }
    if (rc)
        return rc;
    snprintf(text, sizeof text, "%d %d", nk_server_port(h->server), nk_enrol_server_port(h->enrol));
    return nk_store_put(h->store, "ports", (struct nk_bytes){ (const uint8_t *)text, strlen(text) },
                        0, NULL, err);
}

int nk__host_write_joined(nk_host *h, struct nk_error *err)
{
    struct nk_joined j = { .n_addresses = 1 };
    char path[4200];

    snprintf(path, sizeof path, "%s/joined.json", h->dir);
    strcpy(j.cluster, nk_ca_cluster(h->ca));
    strcpy(j.member, h->gateway_id);
    strcpy(j.name, h->name);
    j.port = nk_server_port(h->server);
    j.enrolment_port = nk_enrol_server_port(h->enrol);
    snprintf(j.addresses[0], sizeof j.addresses[0], "%.45s", nk__host_own_address(h));
    return nk_joined_write(path, &j, err);
}
