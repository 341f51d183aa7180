/* A catalogue from another machine. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "pieces/fetch.h"
#include "pieces/service.h"
#include "rpc/proto.h"

struct fetching {
    pthread_mutex_t mu;
    pthread_cond_t changed;
    struct nk_buf bytes; /* the net thread's until the end */
    nk_sha256 *hash;
    bool failed, ended;
    int rc;
    struct nk_error err;
};

static void message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct fetching *g = user;
    Nakshatra__V1__CatalogueReply *r =
        nakshatra__v1__catalogue_reply__unpack(NULL, msg.size, msg.data);

    if (!r || nk_buf_add(&g->bytes, r->data.data, r->data.len, NULL)) {
        g->failed = true;
        nk_call_cancel(c);
    } else {
        nk_sha256_add(g->hash, r->data.data, r->data.len);
    }
    if (r)
        nakshatra__v1__catalogue_reply__free_unpacked(r, NULL);
}

static void end(nk_call *c, void *user, const struct nk_error *status)
{
    struct fetching *g = user;

    (void)c;
    pthread_mutex_lock(&g->mu);
    g->rc = status ? status->code : 0;
    if (status)
        g->err = *status;
    g->ended = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->mu);
}

static int receive(struct fetching *g, const char *id, nk_channel *ch, uint32_t timeout_ms,
                   struct nk_error *err)
{
    static const struct nk_call_handlers handlers = { message, NULL, end };
    Nakshatra__V1__CatalogueRequest q = NAKSHATRA__V1__CATALOGUE_REQUEST__INIT;
    nk_call *c;
    int rc;

    pthread_mutex_lock(&g->mu);
    rc = nk_call_start(&c, ch, NK_PIECES_CATALOGUE, timeout_ms, &handlers, g, err);
    if (!rc) {
        nk_call_ref(c);
        q.id = (char *)id;
        nk_call_send_pb(c, &q.base, NULL); /* a call that has ended says so by itself */
        nk_call_send_done(c);
        while (!g->ended)
            pthread_cond_wait(&g->changed, &g->mu);
        nk_call_unref(c);
        rc = g->rc;
        if (rc && err)
            *err = g->err;
    }
    pthread_mutex_unlock(&g->mu);
    return rc;
}

int nk_catalogue_fetch(nk_catalogue **out, const char *id, nk_net *net, const char *address,
                       const struct nk_credentials *credentials, uint32_t timeout_ms,
                       struct nk_error *err)
{
    struct fetching g = { .bytes = NK_BUF_INIT(NK_CATALOGUE_BYTES_MAX) };
    char found[NK_SHA256_HEX];
    nk_channel *ch = NULL;
    int rc;

    if (!nk_catalogue_find(out, id, NULL))
        return 0;
    g.hash = nk_sha256_new();
    if (!g.hash)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    pthread_mutex_init(&g.mu, NULL);
    pthread_cond_init(&g.changed, NULL);
    rc = nk_channel_open(&ch, net, address, credentials, err);
    if (!rc)
        rc = receive(&g, id, ch, timeout_ms, err);
    if (rc && g.failed)
        rc = nk_fail(err, NK_E_DATA_LOSS, "wrong_bytes", "what it sends is no catalogue");
    nk_sha256_finish(g.hash, found);
    if (!rc && strcmp(found, id) != 0)
        rc = nk_fail(err, NK_E_DATA_LOSS, "wrong_bytes",
                     "it sent another catalogue than %.64s (its SHA-256 is %s)", id, found);
    if (!rc)
        rc = nk_catalogue_parse(out, nk_buf_str(&g.bytes), g.bytes.size, err);
    if (!rc)
        nk_catalogue_keep(*out);
    else
        nk_wrap(rc, err, "the model's catalogue from %s", address);
    nk_channel_close(ch);
    nk_buf_release(&g.bytes);
    pthread_cond_destroy(&g.changed);
    pthread_mutex_destroy(&g.mu);
    return rc;
}
