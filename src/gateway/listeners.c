#include "gateway/listeners.h"

#include <stdlib.h>
#include <string.h>

#include "gateway/exchange.h"

enum { EVENT_BYTES_MAX = 4 << 20 };

void nk__event_blob_unref(struct nk_event_blob *b)
{
    if (!b || atomic_fetch_sub(&b->refs, 1) != 1)
        return;
    free(b->data);
    free(b);
}

static ssize_t read_events(void *cls, uint64_t pos, char *out, size_t max)
{
    nk_exchange *x = cls;
    nk_gateway *g = x->g;

    (void)pos;
    for (;;) {
        nk__exchange_forget_wake(x);
        if (atomic_load(&g->stopping))
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (!x->sending) {
            pthread_mutex_lock(&g->mutex);
            x->sending = x->latest;
            x->latest = NULL;
            pthread_mutex_unlock(&g->mutex);
            x->n_sent = 0;
        }
        if (x->sending) {
            size_t n = x->sending->size - x->n_sent;

            n = n < max ? n : max;
            memcpy(out, x->sending->data + x->n_sent, n);
            x->n_sent += n;
            if (x->n_sent == x->sending->size) {
                nk__event_blob_unref(x->sending);
                x->sending = NULL;
            }
            return (ssize_t)n;
        }
        if (nk__exchange_suspend(x))
            return 0;
    }
}

static struct nk_event_blob *make_blob(nk_gateway *g, const struct nk_snapshot *s, bool trusted)
{
    struct nk_buf b = NK_BUF_INIT(EVENT_BYTES_MAX);
    struct nk_event_blob *blob = calloc(1, sizeof *blob);

    if (!blob || nk_buf_adds(&b, "event: cluster\ndata: ", NULL) ||
        nk__cluster_json(g, s, trusted, &b, NULL) || nk_buf_adds(&b, "\n\n", NULL)) {
        nk_buf_release(&b);
        free(blob);
        return NULL;
    }
    atomic_init(&blob->refs, 1);
    blob->data = nk_buf_take(&b, &blob->size);
    if (!blob->data) {
        free(blob);
        return NULL;
    }
    return blob;
}

/* Under the gateway's mutex. A listener that did not read the one before gets only the newest. */
static void give(nk_exchange *x, struct nk_event_blob *b)
{
    nk__event_blob_unref(x->latest);
    x->latest = b;
    if (b)
        atomic_fetch_add(&b->refs, 1);
}

void nk__listeners_wake(nk_gateway *g)
{
    nk_exchange *x;

    pthread_mutex_lock(&g->mutex);
    LIST_FOREACH(x, &g->listeners, link)
    {
        nk__exchange_wake(x);
    }
    pthread_mutex_unlock(&g->mutex);
}

void nk__listeners_publish(nk_gateway *g, const struct nk_snapshot *s)
{
    struct nk_event_blob *blobs[2]; /* without and with the join line */
    bool wanted[2] = { false, false };
    nk_exchange *x;

    pthread_mutex_lock(&g->mutex);
    LIST_FOREACH(x, &g->listeners, link)
    {
        wanted[x->trusted] = true;
    }
    pthread_mutex_unlock(&g->mutex);
    for (int i = 0; i < 2; i++)
        blobs[i] = wanted[i] ? make_blob(g, s, i) : NULL;
    pthread_mutex_lock(&g->mutex);
    LIST_FOREACH(x, &g->listeners, link)
    {
        if (blobs[x->trusted])
            give(x, blobs[x->trusted]);
    }
    pthread_mutex_unlock(&g->mutex);
    nk__event_blob_unref(blobs[0]);
    nk__event_blob_unref(blobs[1]);
    if (wanted[0] || wanted[1])
        nk__listeners_wake(g);
}

enum MHD_Result nk__listener_answer(nk_exchange *x)
{
    nk_gateway *g = x->g;
    struct nk_snapshot *s = nk__monitor_peek(g->monitor);
    struct nk_event_blob *b =
        make_blob(g, s, x->trusted); /* the first one at once, with what is known */
    struct MHD_Response *r;

    nk__snapshot_unref(s);
    pthread_mutex_lock(&g->mutex);
    x->listens = true;
    LIST_INSERT_HEAD(&g->listeners, x, link);
    g->n_listeners++;
    give(x, b);
    pthread_mutex_unlock(&g->mutex);
    nk__event_blob_unref(b);
    nk__monitor_listen(g->monitor, 1);
    nk__watch_request(x->watched, x);
    r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, NK_BLOCK_BYTES, read_events, x, NULL);
    if (r)
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
    return nk__exchange_answer(x, 200, "text/event-stream", r);
}

void nk__listener_stop(nk_exchange *x)
{
    nk_gateway *g = x->g;

    pthread_mutex_lock(&g->mutex);
    LIST_REMOVE(x, link);
    g->n_listeners--;
    pthread_mutex_unlock(&g->mutex);
    nk__monitor_listen(g->monitor, -1);
}
