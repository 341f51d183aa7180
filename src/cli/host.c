#include "cli/host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/process.h"
#include "chain/chain.h"
#include "cli/interrupt.h"
#include "cluster/ca.h"
#include "cluster/coordinator.h"
#include "cluster/enrol.h"
#include "cluster/facts.h"
#include "cluster/identity.h"
#include "cluster/reach.h"
#include "cluster/store.h"
#include "pieces/service.h"
#include "rpc/link.h"

enum {
    TICK_MS = 1000,
    CHECK_MS = 5000, /* a worker that is there answers sooner, on a busy machine, too */
    N_CTX = 4096,    /* where nobody says another */
    SELF_PAUSE_MAX_S = 60,
    DEPLOY_AGAIN_MS = 2000,
    SERVER_GRACE_MS = 1000,
    SELF_GRACE_MS = 15000,
    /* So often it is looked whether the page's join line was used, and the addresses are others. */
    LOOK_EVERY_S = 5,
    TOKEN_LEFT_S = 600, /* the page's join line is made anew when less is left of it */
};

/* A deployment on its way from the coordinator's thread to the main one. */
struct deployed {
    struct nk_deployment d; /* its chains are owned */
    bool is_new;
};

struct nk_host {
    struct nk_host_opts o;
    char *dir;                                             /* of the cluster */
    char identity[4096], self_state[4096], self_dir[4200]; /* the child's --state, and its folder */
    nk_store *store;
    nk_ca *ca;
    nk_model *model;
    nk_catalogue *catalogue;
    struct nk_facts_model facts;
    char *vocab_path;
    nk_vocab *vocab;
    nk_net *net;
    nk_coordinator *coordinator;
    nk_pieces_service *pieces;
    nk_server *server;
    int flows; /* rpc/link.h's */
    nk_enrol_server *enrol;
    char gateway_id[NK_MEMBER_ID_SIZE], self_id[NK_MEMBER_ID_SIZE];
    char name[NK_MEMBER_NAME_SIZE], model_id[128];
    nk_gateway *gateway;
    int wake[2];
    pthread_mutex_t mutex; /* of the next six */
    /* Under which others reach this machine; they change while it runs. */
    struct nk_reach_address addresses[NK_TOKEN_ADDRESSES_MAX];
    size_t n_addresses;
    struct deployed deployed;
    char join_line[NK_TOKEN_TEXT_SIZE + 32];
    int64_t join_expires_s;
    char join_id[NK_TOKEN_ID_SIZE];
    char moved_id[NK_TOKEN_ID_SIZE]; /* of the last one for a change of address; "": none was */
    /* This machine's member. */
    struct nk_process self;
    int life[2];
    int64_t self_started_s, self_again_s;
    int self_failures;
    bool has_chains;          /* the gateway was given some */
    uint64_t deploy_again_ns; /* a deployment that failed is tried again then; 0: none has */
    uint64_t epoch;           /* of the last ones */
};

static struct nk_bytes bytes_of(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)nk_buf_str(b), b->size };
}

static bool is_wildcard(const char *address)
{
    return !strcmp(address, "0.0.0.0") || !strcmp(address, "::");
}

/* ---- identities of this machine's own, which need no enrolment ---- */

/* A text of the store, made where there is none. */
static int remembered_id(nk_host *h, const char *key, char id[NK_MEMBER_ID_SIZE],
                         struct nk_error *err)
{
    struct nk_buf value = NK_BUF_INIT(NK_MEMBER_ID_SIZE);
    int rc = nk_store_get(h->store, key, &value, NULL, err);

    if (!rc && nk_member_id_is(nk_buf_str(&value))) {
        strcpy(id, nk_buf_str(&value));
    } else if (!rc || rc == NK_E_NOT_FOUND) {
        rc = nk_member_id_make(id, nk_chance_system(), err);
        if (!rc)
            rc = nk_store_put(h->store, key, (struct nk_bytes){ (const uint8_t *)id, strlen(id) },
                              0, NULL, err);
    }
    nk_buf_release(&value);
    return rc;
}

/* A certificate for id into the identity folder dir. */
static int issue(nk_host *h, const char *dir, const char *id, struct nk_error *err)
{
    struct nk_buf key = NK_BUF_INIT(NK_PEM_BYTES_MAX), request = NK_BUF_INIT(NK_PEM_BYTES_MAX),
                  certificate = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    const char *ca = nk_ca_certificate(h->ca);
    int rc = nk_key_make(&key, err);

    if (!rc)
        rc = nk_request_make(bytes_of(&key), &request, err);
    if (!rc)
        rc = nk_ca_issue(h->ca, bytes_of(&request), id, nk_clock_unix_s(nk_clock_system()),
                         NK_CERTIFICATE_LIFETIME_S, &certificate, err);
    if (!rc)
        rc = nk_identity_write(dir, (struct nk_bytes){ (const uint8_t *)ca, strlen(ca) },
                               bytes_of(&certificate), bytes_of(&key), err);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&certificate);
    return rc;
}

/* The same, if there is none of this cluster and id, or it is time for another. */
static int renew(nk_host *h, const char *dir, const char *id, struct nk_error *err)
{
    struct nk_identity_files files;
    bool good;

    if (nk_identity_read(&files, dir, err))
        return issue(h, dir, id, err);
    good = !strcmp(files.about.cluster, nk_ca_cluster(h->ca)) && !strcmp(files.about.member, id) &&
           nk_clock_unix_s(nk_clock_system()) < nk_certificate_renew_s(&files.about);
    nk_identity_release(&files);
    return good ? 0 : issue(h, dir, id, err);
}

/* ---- tokens ---- */

/* Under which this machine is reached now; list points into out. */
static size_t addresses_now(nk_host *h, struct nk_reach_address out[NK_TOKEN_ADDRESSES_MAX],
                            const char *list[NK_TOKEN_ADDRESSES_MAX])
{
    size_t n;

    pthread_mutex_lock(&h->mutex);
    n = h->n_addresses;
    memcpy(out, h->addresses, sizeof h->addresses);
    pthread_mutex_unlock(&h->mutex);
    for (size_t i = 0; i < n; i++)
        list[i] = out[i].text;
    return n;
}

static int make_token(nk_host *h, int uses, int64_t ttl_s, struct nk_token *t,
                      char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err)
{
    struct nk_reach_address addresses[NK_TOKEN_ADDRESSES_MAX];
    const char *list[NK_TOKEN_ADDRESSES_MAX];
    struct nk_token_opts opts = { .cluster = nk_ca_cluster(h->ca),
                                  .ttl_s = ttl_s,
                                  .uses = uses,
                                  .port = nk_enrol_server_port(h->enrol),
                                  .n_addresses = (int)addresses_now(h, addresses, list),
                                  .addresses = list };
    int rc;

    if (!opts.n_addresses)
        return nk_fail(err, NK_E_PRECONDITION, "no_addresses",
                       "this machine has no address under which another could reach it");
    rc = nk_token_create(h->store, nk_chance_system(), nk_clock_unix_s(nk_clock_system()), &opts, t,
                         err);
    return rc ? rc : nk_token_encode(t, text, err);
}

static int create_token(void *user, int uses, uint32_t ttl_s, char out[256], struct nk_error *err)
{
    struct nk_token t;
    char text[NK_TOKEN_TEXT_SIZE];
    int rc = make_token(user, uses, ttl_s, &t, text, err);

    if (!rc)
        snprintf(out, 256, "%s", text);
    return rc;
}

static json_t *list_tokens(void *user)
{
    nk_host *h = user;
    struct nk_token_record *list;
    struct nk_error err;
    json_t *j = json_array();
    size_t n;

    if (nk_token_list(h->store, &list, &n, &err))
        return j;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(j, json_pack("{s:s,s:I,s:I,s:i,s:i,s:b}", "id", list[i].id,
                                           "created_s", (json_int_t)list[i].created_s, "expires_s",
                                           (json_int_t)list[i].expires_s, "uses", list[i].uses,
                                           "uses_left", list[i].uses_left, "revoked",
                                           (int)list[i].revoked));
    free(list);
    return j;
}

static int revoke_token(void *user, const char *id, struct nk_error *err)
{
    int rc = nk_token_revoke(((nk_host *)user)->store, id, err);

    return rc ? nk_wrap(rc, err, "%s", id) : 0;
}

int nk_host_token(nk_host *h, char text[NK_TOKEN_TEXT_SIZE], struct nk_error *err)
{
    struct nk_token t;
    int rc = make_token(h, 1, 0, &t, text, err);

    if (rc)
        return rc;
    pthread_mutex_lock(&h->mutex);
    snprintf(h->join_line, sizeof h->join_line, "nakshatra join %s", text);
    strcpy(h->join_id, t.id);
    h->join_expires_s = t.expires_s;
    pthread_mutex_unlock(&h->mutex);
    return 0;
}

/* The page's join line is good for whoever copies it: not used, and not about to expire. */
static void refresh_token(nk_host *h)
{
    struct nk_token_record *list;
    char text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;
    bool good = false;
    size_t n;

    if (!h->n_addresses || nk_token_list(h->store, &list, &n, &err))
        return; /* only this thread changes them */
    for (size_t i = 0; i < n; i++)
        good |= !strcmp(list[i].id, h->join_id) && list[i].uses_left > 0 && !list[i].revoked &&
                list[i].expires_s - TOKEN_LEFT_S > nk_clock_unix_s(nk_clock_system());
    free(list);
    if (!good)
        (void)nk_host_token(h, text, &err);
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
    out->n_addresses = (int)addresses_now(h, addresses, list);
    for (int i = 0; i < out->n_addresses; i++)
        strcpy(out->addresses[i], list[i]);
    if (!who->renews)
        nk_log(NK_LOG_CLI, NK_LOG_INFO, "event=joined member=%s name=%s peer=%s", out->id,
               out->name, who->peer);
    return 0;
}

/* ---- what the coordinator says; on its net thread ---- */

static void deploy(void *user, const struct nk_deployment *d)
{
    nk_host *h = user;
    struct nk_deployed_chain *chains = calloc((size_t)d->n_chains + 1, sizeof *chains);

    if (!chains)
        return; /* said again at the next change */
    memcpy(chains, d->chains, (size_t)d->n_chains * sizeof *chains);
    pthread_mutex_lock(&h->mutex);
    free(h->deployed.d.chains);
    h->deployed.d = *d;
    h->deployed.d.chains = chains;
    h->deployed.is_new = true;
    pthread_mutex_unlock(&h->mutex);
    if (write(h->wake[1], "", 1) < 0)
        return; /* full: it is awake */
}

static void event(void *user, const char *sentence)
{
    (void)user;
    fprintf(stderr, "nakshatra: %s\n", sentence);
}

static json_t *recovery(void *user)
{
    enum { BYTES_MAX = 1 << 18 };
    nk_host *h = user;
    struct nk_buf text = NK_BUF_INIT(BYTES_MAX);
    json_t *j = NULL;

    pthread_mutex_lock(&h->mutex);
    if (h->gateway && !nk_gateway_recovery_json(h->gateway, &text, NULL))
        j = json_loadb(text.data, text.size, 0, NULL);
    pthread_mutex_unlock(&h->mutex);
    nk_buf_release(&text);
    return j;
}

/* ---- chains for the gateway ---- */

static int open_chain(nk_host *h, const struct nk_deployed_chain *dc, uint64_t epoch,
                      nk_chain **out, struct nk_error *err)
{
    struct nk_cluster *c = calloc(1, sizeof *c);
    int rc;

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    strcpy(c->path, "the cluster");
    strcpy(c->model_id, h->model_id);
    strcpy(c->model_sha256, nk_catalogue_model_sha256(h->catalogue));
    snprintf(c->identity, sizeof c->identity, "%s", h->identity);
    c->epoch = epoch;
    for (int i = 0; i < dc->n_stages && i < NK_CLUSTER_WORKERS_MAX; i++) {
        struct nk_cluster_worker *w = &c->workers[c->n_workers++];

        snprintf(w->id, sizeof w->id, "%s", dc->stages[i].name);
        strcpy(w->address, dc->stages[i].address);
        w->layer_begin = dc->stages[i].layer_begin;
        w->layer_end = dc->stages[i].layer_end;
        w->epoch = dc->stages[i].epoch;
    }
    rc = nk_chain_open(out, c, NULL, err);
    free(c);
    return rc;
}

/* Which of a chain's workers does not answer, asked twice: -1: all do. Its sentence to why. */
static int find_unreached(nk_chain *c, char why[256])
{
    struct nk_chain_report *report;
    struct nk_error err;
    int found = -1;

    for (int tries = 0; tries < 2; tries++) {
        found = -1;
        if (nk_chain_check(c, CHECK_MS, &report, &err))
            return -1;
        for (int i = 0; i < report->n_workers && found < 0; i++)
            if (!report->workers[i].answered) {
                found = i;
                snprintf(why, 256, "%.200s (a firewall there?)", report->workers[i].err.msg);
            }
        free(report);
        if (found < 0)
            break;
    }
    return found;
}

/* A worker that says it is ready and cannot be reached would keep everybody waiting for ever. */
static void tell_unreached(nk_host *h, const struct nk_deployment *d, nk_chain *const *chains,
                           int n)
{
    char why[256];

    for (int i = 0; i < n; i++) {
        int k = find_unreached(chains[i], why);

        if (k >= 0 && k < d->chains[i].n_stages)
            nk_coordinator_unreachable(h->coordinator, d->chains[i].stages[k].member, why);
    }
}

static void take_deployment(nk_host *h)
{
    nk_chain *chains[NK_GATEWAY_CHAINS_MAX] = { NULL };
    struct nk_deployment d = { 0 };
    struct nk_error err;
    int n = 0, rc = 0;
    bool is_new;

    pthread_mutex_lock(&h->mutex);
    is_new = h->deployed.is_new && h->gateway && nk_now_ns() >= h->deploy_again_ns;
    if (is_new) {
        d = h->deployed.d;
        h->deployed = (struct deployed){ 0 };
    }
    pthread_mutex_unlock(&h->mutex);
    if (!is_new)
        return;
    for (int i = 0; !rc && i < d.n_chains && n < NK_GATEWAY_CHAINS_MAX; i++) {
        rc = open_chain(h, &d.chains[i], d.epoch, &chains[n], &err);
        n += !rc;
    }
    if (!n)
        nk_gateway_set_waiting(h->gateway, d.waiting);
    if (!rc)
        tell_unreached(h, &d, chains, n);
    if (!rc && (n || h->has_chains))
        rc = nk_gateway_set_chains(h->gateway, chains, n, n ? d.epoch : h->epoch, &err);
    if (rc) {
        for (int i = 0; i < n; i++)
            nk_chain_close(chains[i]);
        event(h, err.msg);
        /* It is not said again: the coordinator knows nothing of it. */
        h->deploy_again_ns = nk_now_ns() + (uint64_t)DEPLOY_AGAIN_MS * 1000000;
        pthread_mutex_lock(&h->mutex);
        if (!h->deployed.is_new) {
            h->deployed = (struct deployed){ .d = d, .is_new = true };
            d.chains = NULL;
        }
        pthread_mutex_unlock(&h->mutex);
    } else {
        h->deploy_again_ns = 0;
        h->has_chains = n > 0;
        h->epoch = n ? d.epoch : h->epoch;
    }
    free(d.chains);
}

/* ---- this machine's own member ---- */

static int start_self(nk_host *h, struct nk_error *err)
{
    char numbers[2][16];
    const char *argv[24];
    char *self = NULL;
    int n = 0, rc = nk_process_self(&self, err);

    if (rc)
        return rc;
    argv[n++] = self;
    argv[n++] = "join";
    argv[n++] = "--state";
    argv[n++] = h->self_state;
    argv[n++] = "--models";
    argv[n++] = h->o.model;
    argv[n++] = "--drain-ms";
    argv[n++] = "0";
    argv[n++] = "--quiet";
    argv[n++] = "--parent-fd";
    snprintf(numbers[0], sizeof numbers[0], "%d", h->life[0]);
    argv[n++] = numbers[0];
    if (h->o.device) {
        argv[n++] = "--device";
        argv[n++] = h->o.device;
    }
    if (h->o.n_threads) {
        snprintf(numbers[1], sizeof numbers[1], "%d", h->o.n_threads);
        argv[n++] = "--threads";
        argv[n++] = numbers[1];
    }
    argv[n] = NULL;
    h->self_started_s = (int64_t)(nk_now_ns() / 1000000000);
    rc = nk_process_start(
        &h->self,
        &(struct nk_process_opts){
            .argv = argv, .keep_fds = &h->life[0], .n_keep_fds = 1, .capture_out = true },
        err);
    free(self);
    return rc;
}

/* Starts it again, after a growing pause, when it has ended. */
static void look_after_self(nk_host *h)
{
    int64_t now = (int64_t)(nk_now_ns() / 1000000000); /* the time of day may be set back */
    struct nk_error err;
    char how[96];

    if (h->o.not_here)
        return;
    if (h->self.pid) {
        if (!nk_process_wait(&h->self, 0))
            return;
        nk_process_status_format(how, sizeof how, h->self.status);
        h->self_failures = now - h->self_started_s > 60 ? 1 : h->self_failures + 1;
        h->self_again_s =
            now + (h->self_failures > 6 ? SELF_PAUSE_MAX_S : (int64_t)1 << (h->self_failures - 1));
        fprintf(stderr, "nakshatra: this machine's own member %s\n", how);
        nk_process_stop(&h->self, 0);
        h->self = (struct nk_process)NK_PROCESS_INIT;
        if (nk_coordinator_is_removed(h->coordinator, h->self_id)) {
            h->o.not_here = true;
            event(h, "it was removed, and is a member again when this cluster is started anew");
            return;
        }
    }
    if (now < h->self_again_s)
        return;
    if (start_self(h, &err)) {
        h->self_again_s = now + SELF_PAUSE_MAX_S;
        event(h, err.msg);
    }
}

static int new_self_id(nk_host *h, struct nk_error *err)
{
    int rc = nk_store_delete(h->store, "self", 0, err);

    return rc ? rc : remembered_id(h, "self", h->self_id, err);
}

/* Where this machine's own processes find it. */
static const char *own_address(const nk_host *h)
{
    return h->o.listen && !is_wildcard(h->o.listen) ? h->o.listen : "127.0.0.1";
}

/* Its identity and where it finds the coordinator. */
static int prepare_self(nk_host *h, struct nk_error *err)
{
    struct nk_joined j = { .n_addresses = 1 };
    char identity[4300], path[4300];
    struct nk_roster roster;
    char name[NK_MEMBER_NAME_SIZE];
    int rc;

    strcpy(name, h->name);
    rc = nk_coordinator_admit(h->coordinator, h->self_id, false, name, &roster, err);
    if (rc ==
        NK_E_DENIED) { /* it was removed; who starts this machine as a server wants it again */
        rc = new_self_id(h, err);
        if (!rc)
            rc = nk_coordinator_admit(h->coordinator, h->self_id, false, name, &roster, err);
    }
    if (rc)
        return rc;
    snprintf(identity, sizeof identity, "%s/identity", h->self_dir);
    snprintf(path, sizeof path, "%s/joined.json", h->self_dir);
    rc = renew(h, identity, h->self_id, err);
    if (!rc)
        rc = nk_members_write(identity, &roster, err);
    nk_roster_release(&roster);
    strcpy(j.cluster, nk_ca_cluster(h->ca));
    strcpy(j.member, h->self_id);
    strcpy(j.name, name);
    j.port = nk_server_port(h->server);
    j.enrolment_port = nk_enrol_server_port(h->enrol);
    snprintf(j.addresses[0], sizeof j.addresses[0], "%.45s", own_address(h));
    return rc ? rc : nk_joined_write(path, &j, err);
}

/* ---- servers ---- */

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

static int start_servers(nk_host *h, struct nk_error *err)
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

/* For `nakshatra token` and its like on this machine. */
static int write_joined(nk_host *h, struct nk_error *err)
{
    struct nk_joined j = { .n_addresses = 1 };
    char path[4200];

    snprintf(path, sizeof path, "%s/joined.json", h->dir);
    strcpy(j.cluster, nk_ca_cluster(h->ca));
    strcpy(j.member, h->gateway_id);
    strcpy(j.name, h->name);
    j.port = nk_server_port(h->server);
    j.enrolment_port = nk_enrol_server_port(h->enrol);
    snprintf(j.addresses[0], sizeof j.addresses[0], "%.45s", own_address(h));
    return nk_joined_write(path, &j, err);
}

/* ---- start and stop ---- */

static int open_model(nk_host *h, struct nk_error *err)
{
    int rc = nk_model_open(&h->model, h->o.model, err);

    if (!rc && nk_model_info(h->model)->is_slice)
        rc = nk_fail(err, NK_E_INVALID, "not_a_model", "%s is a slice; serve needs the whole model",
                     h->o.model);
    if (!rc && !h->o.n_ctx) {
        int train = nk_model_info(h->model)->n_ctx_train;

        h->o.n_ctx = train > 0 && train < N_CTX ? train : N_CTX;
    }
    h->o.plan.n_ctx = h->o.n_ctx;
    if (!rc)
        rc = nk_catalogue_make(&h->catalogue, h->model, err);
    if (!rc)
        rc = nk_facts_model(h->model, &h->facts, err);
    if (!rc)
        rc = nk_vocab_cached(h->model, NK_VERIFY_ONCE, &h->vocab_path, err);
    if (!rc)
        rc = nk_vocab_open(&h->vocab, h->vocab_path, err);
    return rc;
}

static int open_state(nk_host *h, struct nk_error *err)
{
    char path[4200];
    char host[256] = "";
    int rc = nk_state_dir(&h->dir, h->o.state, "cluster", err);

    if (rc)
        return rc;
    if (strlen(h->dir) > 4000)
        return nk_fail(err, NK_E_INVALID, "bad_argument", "the state folder's path is too long");
    snprintf(h->identity, sizeof h->identity, "%s/identity", h->dir);
    snprintf(h->self_state, sizeof h->self_state, "%s/self", h->dir);
    snprintf(h->self_dir, sizeof h->self_dir, "%s/member", h->self_state);
    snprintf(path, sizeof path, "%s/store.db", h->dir);
    rc = nk_store_open(&h->store, path, nk_clock_system(), err);
    if (!rc)
        rc = nk_ca_open(&h->ca, h->dir, nk_clock_unix_s(nk_clock_system()), err);
    if (!rc)
        rc = remembered_id(h, "gateway", h->gateway_id, err);
    if (!rc)
        rc = remembered_id(h, "self", h->self_id, err);
    if (!rc)
        rc = renew(h, h->identity, h->gateway_id, err);
    if (!rc)
        rc = nk_dir_make(h->self_dir, err);
    if (!rc)
        rc = nk_reach_list(h->addresses, NK_TOKEN_ADDRESSES_MAX, &h->n_addresses, err);
    if (!rc && h->o.listen && !is_wildcard(h->o.listen)) { /* there, and nowhere else */
        snprintf(h->addresses[0].text, sizeof h->addresses[0].text, "%.45s", h->o.listen);
        h->n_addresses = 1;
    }
    if (h->o.name)
        snprintf(h->name, sizeof h->name, "%s", h->o.name);
    else if (!gethostname(host, sizeof host - 1))
        nk_member_name_make(h->name, host);
    else
        strcpy(h->name, "machine");
    return rc;
}

static int start(nk_host *h, struct nk_error *err)
{
    struct nk_coordinator_opts co = { .clock = nk_clock_system(),
                                      .identity = h->identity,
                                      .n_seq_max = h->o.n_seq_max,
                                      .deterministic = h->o.deterministic,
                                      .no_flash_attn = h->o.no_flash_attn,
                                      .cache_type_k = h->o.cache_type_k,
                                      .cache_type_v = h->o.cache_type_v,
                                      .create_token = create_token,
                                      .list_tokens = list_tokens,
                                      .revoke_token = revoke_token,
                                      .deploy = deploy,
                                      .event = event,
                                      .recovery = recovery,
                                      .user = h };
    struct nk_reach_address addresses[NK_TOKEN_ADDRESSES_MAX];
    char name[NK_MEMBER_NAME_SIZE];
    const char *slash;
    int rc;

    if (pipe2(h->wake, O_CLOEXEC | O_NONBLOCK) < 0 || pipe2(h->life, O_CLOEXEC) < 0)
        return nk_fail(err, NK_E_EXHAUSTED, "no_files", "a pipe could not be made: %s",
                       strerror(errno));
    rc = open_state(h, err); /* quick, and somebody may be serving here already */
    if (!rc)
        rc = open_model(h, err);
    if (rc)
        return rc;
    slash = strrchr(h->o.model, '/');
    snprintf(h->model_id, sizeof h->model_id, "%.120s", slash ? slash + 1 : h->o.model);
    if (strlen(h->model_id) > 5 && !strcmp(h->model_id + strlen(h->model_id) - 5, ".gguf"))
        h->model_id[strlen(h->model_id) - 5] = '\0';
    rc = nk_net_start(&h->net, nk_clock_system(), err);
    if (rc)
        return rc;
    co.net = h->net;
    co.cluster = nk_ca_cluster(h->ca);
    co.n_ctx = h->o.n_ctx; /* known with the model */
    co.plan = h->o.plan;
    co.by_hand = h->o.by_hand;
    co.own = h->self_id;
    co.store = h->store;
    co.catalogue = nk_catalogue_id(h->catalogue);
    co.model = &h->facts.plan;
    co.n_addresses = (int)addresses_now(h, addresses, co.addresses);
    rc = nk_coordinator_start(&h->coordinator, &co, err);
    snprintf(name, sizeof name, "%.50s-gateway", h->name);
    if (!rc)
        rc = nk_coordinator_admit(h->coordinator, h->gateway_id, true, name, NULL, err);
    if (!rc)
        rc = nk_pieces_service_new(&h->pieces, h->net, err);
    if (!rc)
        rc = nk_pieces_service_add(h->pieces, h->catalogue, err);
    if (!rc)
        rc = nk_pieces_service_add_model(h->pieces, h->catalogue, h->o.model, err);
    if (!rc)
        rc = start_servers(h, err);
    if (!rc)
        rc = write_joined(h, err);
    if (!rc && !h->o.not_here)
        rc = prepare_self(h, err);
    return rc;
}

int nk_host_start(nk_host **out, const struct nk_host_opts *opts, struct nk_error *err)
{
    nk_host *h = calloc(1, sizeof *h);
    int rc;

    *out = NULL;
    if (!h)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    h->o = *opts;
    h->wake[0] = h->wake[1] = h->life[0] = h->life[1] = -1;
    h->self = (struct nk_process)NK_PROCESS_INIT;
    pthread_mutex_init(&h->mutex, NULL);
    rc = start(h, err);
    if (rc) {
        nk_host_stop(h);
        return rc;
    }
    *out = h;
    return 0;
}

static int cluster_json(void *user, struct nk_buf *out)
{
    struct nk_error err;

    return nk_coordinator_json(((nk_host *)user)->coordinator, out, &err);
}

static int join_line(void *user, struct nk_buf *out)
{
    nk_host *h = user;
    struct nk_error err;
    int rc;

    pthread_mutex_lock(&h->mutex);
    rc = nk_buf_adds(out, h->join_line, &err);
    pthread_mutex_unlock(&h->mutex);
    return rc;
}

void nk_host_gateway_opts(nk_host *h, struct nk_gateway_opts *out)
{
    out->model_id = h->model_id;
    out->model_sha256 = nk_catalogue_model_sha256(h->catalogue);
    out->vocab = h->vocab;
    out->deterministic = h->o.deterministic;
    out->cluster_json = cluster_json;
    out->join_line = h->o.no_join ? NULL : join_line;
    out->cluster_user = h;
}

void nk_host_serve(nk_host *h, nk_gateway *g)
{
    pthread_mutex_lock(&h->mutex);
    h->gateway = g;
    pthread_mutex_unlock(&h->mutex);
    take_deployment(h);
}

const char *nk_host_cluster(const nk_host *h)
{
    return nk_ca_cluster(h->ca);
}

/* What the chains in force really do, beside what was predicted. */
static void tell_measured(nk_host *h)
{
    struct nk_gateway_measured m;

    if (!h->gateway || !h->has_chains)
        return;
    nk_gateway_measured(h->gateway, &m);
    if (m.ms_per_token > 0)
        nk_coordinator_measured(h->coordinator, m.epoch, m.ms_per_token);
    for (int i = 0; i < m.n_stages; i++)
        nk_coordinator_stage_measured(h->coordinator, m.epoch, m.stages[i].id,
                                      m.stages[i].layer_begin, m.stages[i].layer_end,
                                      m.stages[i].ms);
}

/* Machines change their addresses: another network, a lease that ended. Members are told while they
 * are connected, so that they find this one later; and the page's join line has the new ones. */
static void look_at_addresses(nk_host *h)
{
    struct nk_reach_address now[NK_TOKEN_ADDRESSES_MAX];
    const char *list[NK_TOKEN_ADDRESSES_MAX];
    char sentence[640] = "this machine is reached at", text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;
    size_t n, length;

    if ((h->o.listen && !is_wildcard(h->o.listen)) ||
        nk_reach_list(now, NK_TOKEN_ADDRESSES_MAX, &n, &err) ||
        nk_reach_same(now, n, h->addresses, h->n_addresses))
        return;
    pthread_mutex_lock(&h->mutex);
    memcpy(h->addresses, now, sizeof now);
    h->n_addresses = n;
    pthread_mutex_unlock(&h->mutex);
    n = addresses_now(h, now, list);
    nk_coordinator_set_addresses(h->coordinator, list, (int)n);
    for (size_t i = 0; i < n && (length = strlen(sentence)) < sizeof sentence; i++)
        snprintf(sentence + length, sizeof sentence - length, " %s", list[i]);
    event(h, n ? sentence : "this machine has no address by which others could reach it now");
    if (!n || h->o.no_join)
        return;
    /* Those of addresses that come and go would take the places of people's own tokens. What was
     * printed at the start stays good. */
    if (nk_host_token(h, text, &err))
        return;
    if (h->moved_id[0])
        (void)nk_token_revoke(h->store, h->moved_id, &err);
    strcpy(h->moved_id, h->join_id);
}

int nk_host_run(nk_host *h, int parent_fd, struct nk_error *err)
{
    int64_t renewed_s = nk_clock_unix_s(nk_clock_system()), looked_s = 0;

    while (!nk_interrupt_signal()) {
        struct pollfd fds[3] = { { nk_interrupt_fd(), POLLIN, 0 },
                                 { h->wake[0], POLLIN, 0 },
                                 { parent_fd, POLLIN, 0 } };
        int64_t now = nk_clock_unix_s(nk_clock_system());
        char drain[256];

        look_after_self(h);
        take_deployment(h);
        if (now - renewed_s >= 3600) {
            renewed_s = now;
            if (renew(h, h->identity, h->gateway_id, err))
                event(h, err->msg);
        }
        if (now - looked_s >= LOOK_EVERY_S) {
            looked_s = now;
            look_at_addresses(h);
            if (!h->o.no_join)
                refresh_token(h);
        }
        tell_measured(h);
        if (poll(fds, parent_fd >= 0 ? 3 : 2, TICK_MS) < 0 && errno != EINTR)
            return nk_fail(err, NK_E_INTERNAL, "poll", "poll: %s", strerror(errno));
        if (fds[1].revents && read(h->wake[0], drain, sizeof drain) < 0)
            continue;
        if (parent_fd >= 0 && fds[2].revents && read(parent_fd, drain, 1) <= 0)
            break;
    }
    return 0;
}

void nk_host_unserve(nk_host *h)
{
    pthread_mutex_lock(&h->mutex);
    h->gateway = NULL;
    pthread_mutex_unlock(&h->mutex);
}

void nk_host_stop(nk_host *h)
{
    if (!h)
        return;
    nk_enrol_server_stop(h->enrol);
    if (h->self.pid)
        nk_process_stop(&h->self, SELF_GRACE_MS);
    if (h->server)
        nk_server_stop(h->server, SERVER_GRACE_MS);
    nk_coordinator_stop(h->coordinator);
    nk_pieces_service_free(h->pieces);
    if (h->net)
        nk_net_stop(h->net);
    nk_vocab_close(h->vocab);
    free(h->vocab_path);
    nk_facts_model_release(&h->facts);
    nk_catalogue_unref(h->catalogue);
    nk_model_close(h->model);
    nk_ca_close(h->ca);
    nk_store_close(h->store);
    free(h->deployed.d.chains);
    free(h->dir);
    for (int i = 0; i < 2; i++) {
        if (h->wake[i] >= 0)
            close(h->wake[i]);
        if (h->life[i] >= 0)
            close(h->life[i]);
    }
    pthread_mutex_destroy(&h->mutex);
    free(h);
}
