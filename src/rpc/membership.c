/* Identities in use on a net, and what becomes of the calls of a member that is taken off the
 * roster. gRPC has no way to close a connection: its calls are ended and no new ones are taken on
 * it, which leaves nothing of it but a socket. */
#include "rpc/rpc_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"

enum {
    FILES_S = 1,      /* how often gRPC looks whether certificate, key and CA are others */
    ROSTER_MS = 1000, /* how often we look at the roster for the sake of open calls */
};

/* ---- calls ---- */

static void removed_error(const nk_call *c, struct nk_error *e)
{
    nk_fail(e, NK_E_DENIED, "removed", "%s%smember %s was taken off this cluster's roster",
            c->is_client ? c->channel->address : "", c->is_client ? ": " : "", c->member);
}

static void expel(nk_call *c, const struct nk_error *e)
{
    c->expelled = true;
    if (c->is_client)
        nk__call_give_up(c, e);
    else
        nk_call_finish(c, e);
}

static void find_out(nk_call *c)
{
    grpc_auth_context *ctx = grpc_call_auth_context(c->g);
    grpc_auth_property_iterator it;
    const grpc_auth_property *p;
    char cluster[NK_CLUSTER_ID_CHARS + 1];

    if (!ctx)
        return;
    it = grpc_auth_context_find_properties_by_name(ctx, "peer_spiffe_id");
    p = grpc_auth_property_iterator_next(&it);
    if (p && p->value)
        nk_member_uri_parse(p->value, cluster,
                            c->member); /* of this cluster, or it was not let in */
    grpc_auth_context_release(ctx);
}

bool nk__call_identify(nk_call *c)
{
    struct nk_error e = { 0 };

    find_out(c);
    if (!c->member[0] || nk_call_role(c))
        return true;
    removed_error(c, &e);
    expel(c, &e);
    return false;
}

static int not_allowed(const nk_call *c, enum nk_role role, unsigned roles, const char *path,
                       struct nk_error *err)
{
    return nk_fail(err, NK_E_DENIED, "not_allowed",
                   "%s: member %s may not call it: its role is %s, and %s is needed", path,
                   c->member, nk_role_text(role),
                   roles == NK_ROLES_GATEWAY  ? "gateway"
                   : roles == NK_ROLES_MEMBER ? "member"
                                              : "another");
}

int nk__call_check_role(nk_call *c, const struct nk_method *m, const char *path,
                        struct nk_error *err)
{
    enum nk_role role;

    find_out(c);
    c->roles = m ? m->roles : 0;
    role = nk_call_role(c);
    if (role && (!c->roles || (c->roles & 1u << role)))
        return 0;
    if (role)
        return not_allowed(c, role, c->roles, path, err);
    if (!c->member[0])
        return nk_fail(err, NK_E_DENIED, "not_a_member", "%s: nobody has proven who calls", path);
    if (nk_identity_roster(c->membership->identity, NULL, NULL))
        return nk_fail(err, NK_E_DENIED, "not_a_member",
                       "%s: member %s cannot be let in: this machine's roster cannot be read, see "
                       "its log",
                       path, c->member);
    removed_error(c, err);
    return nk_wrap(err->code, err, "%s", path);
}

/* Holds a call against a roster that has changed. Net thread, net->mu held. */
static void check_call(struct nk__membership *m, nk_call *c)
{
    struct nk_error e = { 0 };
    enum nk_role role;

    if (c->membership != m || !c->member[0] || c->end_done)
        return;
    if (c->expelled) { /* a second ago: what it was told it has not read */
        nk_call_cancel(c);
        return;
    }
    role = nk__identity_role(m->identity, c->member);
    if (!role)
        removed_error(c, &e);
    else if (c->roles && !(c->roles & 1u << role))
        not_allowed(c, role, c->roles, "this method", &e);
    else
        return;
    nk_log(NK_LOG_RPC, NK_LOG_INFO, "event=expelled side=%s peer=%s member=%s reason=%s",
           c->is_client ? "client" : "server", nk_call_peer(c), c->member, e.reason);
    expel(c, &e);
    m->cutting = true;
}

static void roster_tick(void *arg)
{
    struct nk__membership *m = arg;
    bool cutting = m->cutting, readable;
    uint64_t generation;
    nk_call *c;

    readable = nk__identity_generation(m->identity, &generation);
    m->cutting = false;
    /* A roster that cannot be read takes nobody off. */
    if ((readable && generation != m->generation) || cutting) {
        if (readable)
            m->generation = generation;
        pthread_mutex_lock(&m->net->mu);
        LIST_FOREACH(c, &m->net->calls, link)
        {
            if (readable || c->expelled)
                check_call(m, c);
        }
        pthread_mutex_unlock(&m->net->mu);
    }
    if (!m->net->stop_begun)
        nk_timer_start(m->net, ROSTER_MS, roster_tick, m);
}

/* ---- the net's ---- */

int nk__membership_get(struct nk__membership **out, nk_net *net, const char *folder,
                       struct nk_error *err)
{
    struct nk__membership *m;
    nk_identity *i;
    sigset_t old;
    bool is_new;
    int rc = nk_identity_open(&i, folder, err);

    *out = NULL;
    if (rc)
        return rc;
    pthread_mutex_lock(&net->mu);
    LIST_FOREACH(m, &net->memberships, link)
    {
        if (!strcmp(nk_identity_folder(m->identity), folder) &&
            !strcmp(nk_identity_cluster(m->identity), nk_identity_cluster(i)) &&
            !strcmp(nk_identity_id(m->identity), nk_identity_id(i)))
            break;
    }
    is_new = !m;
    if (!is_new) {
        nk_identity_unref(i);
    } else {
        m = nk__alloc(1, sizeof *m);
        m->net = net;
        m->identity = i;
        nk_signals_hold(&old); /* the watcher is a thread */
        m->provider = grpc_tls_certificate_provider_file_watcher_create(
            nk__identity_key_path(i), nk__identity_certificate_path(i), nk__identity_ca_path(i),
            FILES_S);
        nk_signals_release(&old);
        LIST_INSERT_HEAD(&net->memberships, m, link);
    }
    pthread_mutex_unlock(&net->mu);
    if (is_new)
        nk_net_post(net, roster_tick, m);
    *out = m;
    return 0;
}

void nk__membership_free(struct nk__membership *m)
{
    grpc_tls_certificate_provider_release(m->provider);
    nk_identity_unref(m->identity);
    free(m);
}
