/* gRPC's questions about certificates, answered: by an identity folder, or by a CA. */
#include "rpc/rpc_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/x509v3.h>

#include "base/clock.h"
#include "base/log.h"
#include "rpc/certificate.h"

struct nk__verifier {
    grpc_tls_certificate_verifier_external external;
    nk_identity *identity; /* or else the two below */
    X509_STORE *store;
    X509 *own; /* NULL: none is shown */
    struct nk_clock *clock;
    char *target; /* client: the server's address */
    struct nk_log_limit refusals;
    pthread_mutex_t mu;
    char last[NK_MEMBER_ID_CHARS + 1]; /* client: who was let in last */
    X509 *peer;                        /* client: of whom was let in last */
};

/* ---- who is let in ---- */

static int judge_pem(struct nk__verifier *v, const char *pem, const char *chain, int64_t now_s,
                     struct nk_error *err)
{
    struct nk__certificate_question q = {
        .store = v->store,
        .chain = chain,
        .purpose = v->target ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT,
        .now_s = now_s,
        .ca = "the CA that this machine trusts",
        .partial = true,
    };
    char subject[160];
    X509 *x;
    int rc;

    if (!pem[0])
        return nk_fail(err, NK_E_DENIED, "no_certificate",
                       "it has shown no certificate, and one of the CA that this machine trusts "
                       "was expected");
    x = nk__certificate_parse(pem);
    if (!x)
        return nk_fail(err, NK_E_DENIED, "bad_certificate", "the certificate cannot be read");
    rc = nk__certificate_verify(&q, x, err);
    if (!rc && v->target)
        rc = nk__certificate_check_host(x, v->target, err);
    if (rc)
        nk_wrap(rc, err, "%s", /* escapes what is no text */
                X509_NAME_oneline(X509_get_subject_name(x), subject, sizeof subject) ? subject
                                                                                     : "somebody");
    X509_free(x);
    return rc;
}

/* One line for the operator, at most one a second. */
static void log_refusal(struct nk__verifier *v, const struct nk_error *e)
{
    char quoted[sizeof e->msg + 64];
    unsigned long n_suppressed;

    if (nk_log_allow(&v->refusals, &n_suppressed))
        nk_log(NK_LOG_RPC, NK_LOG_WARN, "event=refused side=%s%s%s reason=%s msg=%s suppressed=%lu",
               v->target ? "client" : "server", v->target ? " peer=" : "",
               v->target ? v->target : "", e->reason, nk_log_quote(quoted, sizeof quoted, e->msg),
               n_suppressed);
}

static void let_in(struct nk__verifier *v, const char *pem, const char *id)
{
    X509 *x = v->target ? nk__certificate_parse(pem) : NULL, *old;

    pthread_mutex_lock(&v->mu);
    memcpy(v->last, id, sizeof v->last);
    old = v->peer;
    v->peer = x;
    pthread_mutex_unlock(&v->mu);
    X509_free(old);
}

/* On a thread of gRPC's; which of ours has made the verifier ThreadSanitizer is told. */
static int verify(void *user, grpc_tls_custom_verification_check_request *request,
                  grpc_tls_on_custom_verification_check_done_cb callback, void *callback_arg,
                  grpc_status_code *status, char **details)
{
    const char *pem = request->peer_info.peer_cert ? request->peer_info.peer_cert : "";
    struct nk__verifier *v = user;
    char id[NK_MEMBER_ID_CHARS + 1] = "";
    struct nk_error e = { 0 };
    int64_t now_s;
    int rc;

    (void)callback;
    (void)callback_arg;
    nk__op_completed(v);
    now_s = nk_clock_unix_s(v->clock);
    rc = v->identity ? nk__identity_judge(v->identity, pem, !v->target, now_s, id, &e)
                     : judge_pem(v, pem, request->peer_info.peer_cert_full_chain, now_s, &e);
    if (rc) {
        log_refusal(v, &e);
        *status = GRPC_STATUS_UNAUTHENTICATED;
        *details = gpr_malloc(strlen(e.msg) + 1); /* gRPC frees it */
        strcpy(*details, e.msg);
    } else {
        let_in(v, pem, id);
        *status = GRPC_STATUS_OK;
    }
    return 1; /* answered */
}

/* There is nothing to cancel: verify() answers at once. */
static void cancel(void *user, grpc_tls_custom_verification_check_request *request)
{
    (void)user;
    (void)request;
}

static void destruct(void *user)
{
    struct nk__verifier *v = user;

    nk__op_completed(v);
    nk_identity_unref(v->identity);
    X509_STORE_free(v->store);
    X509_free(v->own);
    X509_free(v->peer);
    pthread_mutex_destroy(&v->mu);
    free(v->target);
    free(v);
}

/* ---- dates ---- */

/* References; NULL where there is none. */
static X509 *own_of(struct nk__verifier *v)
{
    if (v->identity)
        return nk__identity_own(v->identity);
    if (v->own)
        X509_up_ref(v->own);
    return v->own;
}

static X509 *ca_of(struct nk__verifier *v)
{
    X509_STORE *store = v->identity ? nk__identity_store(v->identity) : NULL;
    X509 *x = NULL;

    if (store || v->store)
        x = nk__certificate_first_to_end(store ? store : v->store);
    X509_STORE_free(store);
    return x;
}

/* Every channel of a net has the same certificates, mostly: they are told of once. */
static void warn(nk_net *net, int which, const char *what, X509 *x, int64_t now_s)
{
    char text[200], quoted[300];
    const char *reason;
    bool is_new;
    int64_t end_s;

    if (!x || !nk__certificate_warning(x, what, now_s, &reason, text, sizeof text))
        return;
    end_s = nk__certificate_end_s(x);
    pthread_mutex_lock(&net->mu);
    is_new = net->warned_ends[which] != end_s;
    net->warned_ends[which] = end_s;
    pthread_mutex_unlock(&net->mu);
    if (is_new)
        nk_log(NK_LOG_RPC, NK_LOG_WARN, "event=certificate of=%s reason=%s msg=%s",
               which ? "ca" : "self", reason, nk_log_quote(quoted, sizeof quoted, text));
}

static void check_dates(struct nk__verifier *v, nk_net *net)
{
    int64_t now_s = nk_clock_unix_s(net->clock);
    X509 *own = own_of(v), *ca = ca_of(v);

    warn(net, 0, "this machine's certificate", own, now_s);
    warn(net, 1, "the CA's certificate", ca, now_s);
    X509_free(own);
    X509_free(ca);
}

void nk__verifier_own_fault(struct nk__verifier *v, char *out, size_t size)
{
    X509 *own = own_of(v);
    const char *reason;
    char text[200];

    out[0] = '\0';
    if (!own)
        snprintf(out, size, "this machine has no certificate to show");
    else if (nk__certificate_warning(own, "this machine's certificate", nk_clock_unix_s(v->clock),
                                     &reason, text, sizeof text) &&
             strcmp(reason, "ends_soon") != 0)
        snprintf(out, size, "%s", text);
    X509_free(own);
}

void nk__verifier_ends(struct nk__verifier *v, struct nk_certificate_ends *out)
{
    X509 *own = own_of(v), *ca = ca_of(v);
    const char *reason;
    char text[8];

    out->own = own ? nk__certificate_end_s(own) : 0;
    out->ca = ca ? nk__certificate_end_s(ca) : 0;
    pthread_mutex_lock(&v->mu);
    if (v->peer) {
        out->peer = nk__certificate_end_s(v->peer);
        out->peer_is_near = nk__certificate_warning(v->peer, "", nk_clock_unix_s(v->clock), &reason,
                                                    text, sizeof text);
    }
    pthread_mutex_unlock(&v->mu);
    X509_free(own);
    X509_free(ca);
}

/* ---- making ---- */

static struct nk__verifier *verifier_new(nk_net *net, const char *target)
{
    struct nk__verifier *v = nk__alloc(1, sizeof *v);

    v->external = (grpc_tls_certificate_verifier_external){
        .user_data = v, .verify = verify, .cancel = cancel, .destruct = destruct
    };
    v->clock = net->clock;
    if (target) {
        v->target = strdup(target);
        NK_ASSERT(v->target);
    }
    pthread_mutex_init(&v->mu, NULL);
    return v;
}

struct nk__verifier *nk__verifier_new(struct nk__membership *m, const char *target)
{
    struct nk__verifier *v = verifier_new(m->net, target);

    v->identity = nk_identity_ref(m->identity);
    check_dates(v, m->net);
    nk__op_started(v);
    return v;
}

int nk__verifier_new_pem(struct nk__verifier **out, nk_net *net, const char *ca, const char *own,
                         const char *target, struct nk_error *err)
{
    X509_STORE *store;
    int rc = nk__certificate_store(&store, ca, "bad_credentials", err);

    *out = NULL;
    if (rc)
        return nk_wrap(rc, err, "the CA");
    *out = verifier_new(net, target);
    (*out)->store = store;
    (*out)->own = own ? nk__certificate_parse(own) : NULL;
    check_dates(*out, net);
    nk__op_started(*out);
    return 0;
}

void nk__verifier_set(struct nk__verifier *v, grpc_tls_credentials_options *options)
{
    grpc_tls_certificate_verifier *g = grpc_tls_certificate_verifier_external_create(&v->external);

    grpc_tls_credentials_options_set_certificate_verifier(options, g);
    grpc_tls_certificate_verifier_release(g);
}

bool nk__verifier_is_stale(struct nk__verifier *v)
{
    bool stale;

    pthread_mutex_lock(&v->mu);
    stale = v->last[0] && !nk_identity_find(v->identity, v->last, NULL);
    if (stale)
        v->last[0] = '\0';
    pthread_mutex_unlock(&v->mu);
    return stale;
}
