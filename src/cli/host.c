#include "cli/host_int.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/interrupt.h"

enum {
    TICK_MS = 1000,
    N_CTX = 4096, /* where nobody says another */
    SERVER_GRACE_MS = 1000,
    SELF_GRACE_MS = 15000,
    /* So often it is looked whether the page's join line was used, and the addresses are others. */
    LOOK_EVERY_S = 5,
};

static struct nk_bytes bytes_of(const struct nk_buf *b)
{
    return (struct nk_bytes){ (const uint8_t *)nk_buf_str(b), b->size };
}

/* ---- identities of this machine's own, which need no enrolment ---- */

int nk__host_id(nk_host *h, const char *key, char id[NK_MEMBER_ID_SIZE], struct nk_error *err)
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

int nk__host_renew(nk_host *h, const char *dir, const char *id, struct nk_error *err)
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
        rc = nk__host_id(h, "gateway", h->gateway_id, err);
    if (!rc)
        rc = nk__host_id(h, "self", h->self_id, err);
    if (!rc)
        rc = nk__host_renew(h, h->identity, h->gateway_id, err);
    if (!rc)
        rc = nk_dir_make(h->self_dir, err);
    if (!rc)
        rc = nk_reach_list(h->addresses, NK_TOKEN_ADDRESSES_MAX, &h->n_addresses, err);
    if (!rc && h->o.listen && !nk__host_is_wildcard(h->o.listen)) { /* there, and nowhere else */
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
                                      .create_token = nk__host_create_token,
                                      .list_tokens = nk__host_list_tokens,
                                      .revoke_token = nk__host_revoke_token,
                                      .deploy = nk__host_deploy,
                                      .event = nk__host_event,
                                      .recovery = nk__host_recovery,
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
    co.n_addresses = (int)nk__host_addresses(h, addresses, co.addresses);
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
        rc = nk__host_start_servers(h, err);
    if (!rc)
        rc = nk__host_write_joined(h, err);
    if (!rc && !h->o.not_here)
        rc = nk__host_prepare_self(h, err);
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

void nk_host_gateway_opts(nk_host *h, struct nk_gateway_opts *out)
{
    out->model_id = h->model_id;
    out->model_sha256 = nk_catalogue_model_sha256(h->catalogue);
    out->vocab = h->vocab;
    out->deterministic = h->o.deterministic;
    out->cluster_json = cluster_json;
    out->join_line = h->o.no_join ? NULL : nk__host_join_line;
    out->cluster_user = h;
}

void nk_host_serve(nk_host *h, nk_gateway *g)
{
    pthread_mutex_lock(&h->mutex);
    h->gateway = g;
    pthread_mutex_unlock(&h->mutex);
    nk__host_take_deployment(h);
}

const char *nk_host_cluster(const nk_host *h)
{
    return nk_ca_cluster(h->ca);
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

        nk__host_look_after_self(h);
        nk__host_take_deployment(h);
        if (now - renewed_s >= 3600) {
            renewed_s = now;
            if (nk__host_renew(h, h->identity, h->gateway_id, err))
                nk__host_event(h, err->msg);
        }
        if (now - looked_s >= LOOK_EVERY_S) {
            looked_s = now;
            nk__host_look_at_addresses(h);
            if (!h->o.no_join)
                nk__host_refresh_token(h);
        }
        nk__host_tell_measured(h);
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
