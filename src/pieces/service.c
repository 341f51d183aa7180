#include "pieces/service.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/log.h"
#include "base/thread.h"
#include "pieces/fetch_int.h"
#include "rpc/proto.h"

enum {
    THREADS = 2,
    /* Small enough for the allocator to use its memory again, and for processors' caches: with
     * 1 MiB a fifth of the sender's time went into pages that were new to it. */
    MESSAGE_BYTES = 120 << 10,
    HOLDERS_MAX = 256, /* of one catalogue */
    CATALOGUE_STREAMS_MAX = 16,
    PEER_CATALOGUES_MAX = 2, /* of one peer */
};

/* A catalogue, and who has what of it. */
struct shelf {
    nk_catalogue *c;
    nk__places *holders[HOLDERS_MAX];
    int n_holders;
};

/* A call. Until its job is taken off the queue it is the net thread's; then a helper's, too, which
 * only reads the disk and sends. */
struct stream {
    nk_pieces_service *s;
    nk_call *call; /* referenced */
    enum { ASKED_CATALOGUE, ASKED_HAVE, ASKED_PART } what;
    bool answered; /* the request has come */
    bool queued;   /* a job is in the queue, or in a helper's hand */
    bool ended;
    bool counted;
    char peer[64];
    nk_timer *timer;
    nk_catalogue *c;    /* of a job; referenced */
    nk__places *places; /* referenced */
    int part;
    LIST_ENTRY(stream) link;
    TAILQ_ENTRY(stream) job;
};

struct nk_pieces_service {
    nk_net *net;
    pthread_mutex_t mu;
    pthread_cond_t changed;
    struct shelf *shelves[NK_PIECES_CATALOGUES_MAX];
    int n_shelves;
    LIST_HEAD(, stream) streams;
    TAILQ_HEAD(, stream) jobs;
    int n_parts, n_catalogues; /* streams of each kind */
    bool closing;
    pthread_t threads[THREADS];
    int n_threads;
    struct nk_pieces_figures figures;
};

/* ---- what there is; the mutex is held ---- */

static struct shelf *find_shelf(nk_pieces_service *s, const char *id)
{
    for (int i = 0; i < s->n_shelves; i++)
        if (!strcmp(s->shelves[i]->c->id, id))
            return s->shelves[i];
    return NULL;
}

static void shelf_free(struct shelf *h)
{
    for (int i = 0; i < h->n_holders; i++)
        nk__places_unref(h->holders[i]);
    nk_catalogue_unref(h->c);
    free(h);
}

/* Takes p. One of the same file is put in its place. */
static int put_holder(nk_pieces_service *s, nk_catalogue *c, nk__places *p, struct nk_error *err)
{
    struct shelf *h;
    int rc = 0, i = 0;

    pthread_mutex_lock(&s->mu);
    h = find_shelf(s, c->id);
    if (!h) {
        rc = nk_fail(err, NK_E_NOT_FOUND, "no_catalogue", "the catalogue %s was not added", c->id);
    } else {
        while (i < h->n_holders && strcmp(h->holders[i]->path, p->path) != 0)
            i++;
        if (i == HOLDERS_MAX) {
            rc = nk_fail(err, NK_E_EXHAUSTED, "too_many_files", "more than %d files of one model",
                         HOLDERS_MAX);
        } else {
            if (i == h->n_holders)
                h->n_holders++;
            else
                nk__places_unref(h->holders[i]);
            h->holders[i] = p;
            p = NULL;
        }
    }
    pthread_mutex_unlock(&s->mu);
    nk__places_unref(p);
    return rc;
}

int nk_pieces_service_add(nk_pieces_service *s, nk_catalogue *c, struct nk_error *err)
{
    nk__places *found[HOLDERS_MAX];
    char *path;
    int rc = 0, n = 0;

    pthread_mutex_lock(&s->mu);
    if (!find_shelf(s, c->id)) {
        struct shelf *h = calloc(1, sizeof *h);

        if (!h || s->n_shelves == NK_PIECES_CATALOGUES_MAX) {
            rc = nk_fail(err, NK_E_EXHAUSTED, h ? "too_many_catalogues" : "no_memory",
                         h ? "more than %d models are served" : "no memory",
                         NK_PIECES_CATALOGUES_MAX);
            free(h);
        } else {
            h->c = nk_catalogue_ref(c);
            s->shelves[s->n_shelves++] = h;
        }
    }
    pthread_mutex_unlock(&s->mu);
    if (rc)
        return rc;
    if (!nk_slice_cache_path(c->model, (struct nk_range){ 0, 0 }, &path, NULL)) {
        *strrchr(path, '/') = '\0';
        n = nk__places_find(found, HOLDERS_MAX, c, path, NULL);
        free(path);
    }
    for (int i = 0; i < n; i++) {
        char quoted[512];
        struct nk_error why;

        if (nk_slice_check_file(found[i]->path, NK_VERIFY_ONCE, NULL, &why)) {
            nk_log(NK_LOG_PIECES, NK_LOG_WARN, "event=not_served msg=%s",
                   nk_log_quote(quoted, sizeof quoted, why.msg));
            nk__places_unref(found[i]);
        } else {
            put_holder(s, c, found[i], NULL);
        }
    }
    return 0;
}

int nk_pieces_service_add_model(nk_pieces_service *s, nk_catalogue *c, const char *path,
                                struct nk_error *err)
{
    char sha256[NK_SHA256_HEX];
    nk__places *p;
    nk_model *m;
    int rc = nk_pieces_service_add(s, c, err);

    if (!rc)
        rc = nk_model_open(&m, path, err);
    if (rc)
        return rc;
    rc = nk_model_hash(m, sha256, err);
    if (!rc && strcmp(sha256, c->model_sha256) != 0)
        rc =
            nk_fail(err, NK_E_PRECONDITION, "wrong_model",
                    "%s has the SHA-256 %s; the catalogue is of %s", path, sha256, c->model_sha256);
    if (rc) {
        nk_model_close(m);
        return rc;
    }
    rc = nk__places_of_model(&p, c, m, err);
    return rc ? rc : put_holder(s, c, p, err);
}

int nk_pieces_service_add_fetch(nk_pieces_service *s, nk_fetch *f, struct nk_error *err)
{
    if (!f->file) /* it was there, and is found as a slice */
        return nk_pieces_service_add(s, f->c, err);
    return put_holder(s, f->c, nk__places_ref(f->file), err);
}

void nk_pieces_service_remove(nk_pieces_service *s, const char *id)
{
    pthread_mutex_lock(&s->mu);
    for (int i = 0; i < s->n_shelves; i++)
        if (!strcmp(s->shelves[i]->c->id, id)) {
            shelf_free(s->shelves[i]);
            s->shelves[i] = s->shelves[--s->n_shelves];
            break;
        }
    pthread_mutex_unlock(&s->mu);
}

void nk_pieces_service_figures(nk_pieces_service *s, struct nk_pieces_figures *out)
{
    pthread_mutex_lock(&s->mu);
    *out = s->figures;
    out->streams = s->n_parts;
    pthread_mutex_unlock(&s->mu);
}

/* ---- helpers ---- */

static int send_catalogue(struct stream *t, struct nk_error *err)
{
    struct nk_bytes all = nk_catalogue_bytes(t->c);
    int rc = 0;

    for (size_t at = 0; at < all.size && !rc; at += MESSAGE_BYTES) {
        Nakshatra__V1__CatalogueReply r = NAKSHATRA__V1__CATALOGUE_REPLY__INIT;

        r.data.data = (uint8_t *)all.data + at;
        r.data.len = all.size - at < MESSAGE_BYTES ? all.size - at : MESSAGE_BYTES;
        r.total_bytes = at ? 0 : all.size;
        rc = nk_call_send_pb(t->call, &r.base, err);
    }
    return rc;
}

static int send_part(struct stream *t, uint8_t *buf, struct nk_error *err)
{
    uint32_t size = t->c->parts[t->part].size_bytes;
    int rc = nk__places_read(t->places, t->part, buf, err);

    for (uint32_t at = 0; at < size && !rc; at += MESSAGE_BYTES) {
        Nakshatra__V1__PartReply r = NAKSHATRA__V1__PART_REPLY__INIT;

        r.data.data = buf + at;
        r.data.len = size - at < MESSAGE_BYTES ? size - at : MESSAGE_BYTES;
        rc = nk_call_send_pb(t->call, &r.base, err);
    }
    return rc;
}

static void stream_free(struct stream *t)
{
    nk_catalogue_unref(t->c);
    nk__places_unref(t->places);
    nk_call_unref(t->call);
    free(t);
}

static void *help(void *arg)
{
    nk_pieces_service *s = arg;
    uint8_t *buf = malloc(NK_PART_BYTES);

    pthread_mutex_lock(&s->mu);
    while (!s->closing) {
        struct stream *t = TAILQ_FIRST(&s->jobs);
        struct nk_error err;
        int rc;

        if (!t) {
            pthread_cond_wait(&s->changed, &s->mu);
            continue;
        }
        TAILQ_REMOVE(&s->jobs, t, job);
        if (t->ended) { /* nobody waits for it any more */
            stream_free(t);
            continue;
        }
        pthread_mutex_unlock(&s->mu);
        if (t->what == ASKED_CATALOGUE)
            rc = send_catalogue(t, &err);
        else
            rc = buf ? send_part(t, buf, &err)
                     : nk_fail(&err, NK_E_EXHAUSTED, "busy", "no memory for a part");
        nk_call_finish(t->call, rc ? &err : NULL);
        pthread_mutex_lock(&s->mu);
        if (!rc && t->what == ASKED_PART) {
            s->figures.parts_sent++;
            s->figures.bytes_sent += t->c->parts[t->part].size_bytes;
        }
        t->queued = false;
        if (t->ended)
            stream_free(t);
    }
    pthread_mutex_unlock(&s->mu);
    free(buf);
    return NULL;
}

int nk_pieces_service_new(nk_pieces_service **out, nk_net *net, struct nk_error *err)
{
    nk_pieces_service *s = calloc(1, sizeof *s);

    *out = NULL;
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    s->net = net;
    pthread_mutex_init(&s->mu, NULL);
    pthread_cond_init(&s->changed, NULL);
    LIST_INIT(&s->streams);
    TAILQ_INIT(&s->jobs);
    while (s->n_threads < THREADS && !nk_thread_start(&s->threads[s->n_threads], help, s))
        s->n_threads++;
    if (!s->n_threads) {
        nk_pieces_service_free(s);
        return nk_fail(err, NK_E_EXHAUSTED, "no_thread", "no thread to read parts with");
    }
    *out = s;
    return 0;
}

void nk_pieces_service_free(nk_pieces_service *s)
{
    struct stream *t;

    if (!s)
        return;
    pthread_mutex_lock(&s->mu);
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mu);
    for (int i = 0; i < s->n_threads; i++)
        pthread_join(s->threads[i], NULL);
    while ((t = TAILQ_FIRST(&s->jobs))) { /* of calls that have ended */
        TAILQ_REMOVE(&s->jobs, t, job);
        stream_free(t);
    }
    for (int i = 0; i < s->n_shelves; i++)
        shelf_free(s->shelves[i]);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->mu);
    free(s);
}

/* ---- calls; the net thread ---- */

static void refuse(nk_call *c, int code, const char *reason, const char *msg)
{
    struct nk_error e;

    nk_fail(&e, code, reason, "%s", msg);
    nk_call_finish(c, &e);
}

static void too_slow(void *arg)
{
    struct stream *t = arg;

    t->timer = NULL;
    nk_call_cancel(t->call);
}

static void stream_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct stream *t = user;
    nk_pieces_service *s = t->s;

    (void)c;
    (void)status;
    if (t->timer)
        nk_timer_cancel(t->timer);
    t->timer = NULL;
    pthread_mutex_lock(&s->mu);
    LIST_REMOVE(t, link);
    if (t->counted && t->what == ASKED_PART)
        s->n_parts--;
    else if (t->counted)
        s->n_catalogues--;
    t->ended = true;
    if (!t->queued)
        stream_free(t);
    pthread_mutex_unlock(&s->mu);
}

/* The mutex is held. */
static void queue(struct stream *t, nk_catalogue *c, nk__places *p, int part)
{
    t->c = nk_catalogue_ref(c);
    t->places = p ? nk__places_ref(p) : NULL;
    t->part = part;
    t->queued = true;
    TAILQ_INSERT_TAIL(&t->s->jobs, t, job);
    pthread_cond_signal(&t->s->changed);
}

static void no_catalogue(nk_call *c, const char *id)
{
    struct nk_error e;

    nk_fail(&e, NK_E_NOT_FOUND, "no_catalogue", "no catalogue %.64s is here", id);
    nk_call_finish(c, &e);
}

/* A helper may be about to finish one that was answered. */
static void bad_request(struct stream *t)
{
    if (t->answered)
        nk_call_cancel(t->call);
    else
        refuse(t->call, NK_E_INVALID, "bad_request", "one request is expected");
    t->answered = true;
}

static void half_closed(nk_call *c, void *user)
{
    struct stream *t = user;

    (void)c;
    if (!t->answered)
        bad_request(t);
}

static void catalogue_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct stream *t = user;
    Nakshatra__V1__CatalogueRequest *q =
        t->answered ? NULL : nakshatra__v1__catalogue_request__unpack(NULL, msg.size, msg.data);
    struct shelf *h;

    if (!q) {
        bad_request(t);
        return;
    }
    t->answered = true;
    pthread_mutex_lock(&t->s->mu);
    h = find_shelf(t->s, q->id);
    if (h)
        queue(t, h->c, NULL, 0);
    pthread_mutex_unlock(&t->s->mu);
    if (!h)
        no_catalogue(c, q->id);
    nakshatra__v1__catalogue_request__free_unpacked(q, NULL);
}

static void answer_have(nk_call *c, struct shelf *h)
{
    Nakshatra__V1__HaveReply r = NAKSHATRA__V1__HAVE_REPLY__INIT;
    size_t size = ((size_t)h->c->n_parts + 7) / 8;
    uint8_t *bits = calloc(1, size + 1);
    struct nk_error err;

    if (!bits) {
        refuse(c, NK_E_EXHAUSTED, "busy", "no memory");
        return;
    }
    for (int k = 0; k < h->n_holders; k++)
        for (int i = 0; i < h->c->n_parts; i++)
            if (nk__places_has(h->holders[k], i))
                bits[i / 8] |= (uint8_t)(1u << i % 8);
    r.parts.data = bits;
    r.parts.len = size;
    nk_call_finish(c, nk_call_send_pb(c, &r.base, &err) ? &err : NULL);
    free(bits);
}

static void have_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct stream *t = user;
    Nakshatra__V1__HaveRequest *q =
        t->answered ? NULL : nakshatra__v1__have_request__unpack(NULL, msg.size, msg.data);
    struct shelf *h;

    if (!q) {
        bad_request(t);
        return;
    }
    t->answered = true;
    pthread_mutex_lock(&t->s->mu);
    h = find_shelf(t->s, q->catalogue);
    if (h)
        answer_have(c, h);
    pthread_mutex_unlock(&t->s->mu);
    if (!h)
        no_catalogue(c, q->catalogue);
    nakshatra__v1__have_request__free_unpacked(q, NULL);
}

static void part_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct stream *t = user;
    Nakshatra__V1__PartRequest *q =
        t->answered ? NULL : nakshatra__v1__part_request__unpack(NULL, msg.size, msg.data);
    nk__places *p = NULL;
    struct shelf *h;
    struct nk_error e;

    if (!q) {
        bad_request(t);
        return;
    }
    t->answered = true;
    pthread_mutex_lock(&t->s->mu);
    h = find_shelf(t->s, q->catalogue);
    for (int i = 0; h && q->part < (uint32_t)h->c->n_parts && i < h->n_holders && !p; i++)
        if (nk__places_has(h->holders[i], (int)q->part))
            p = h->holders[i];
    if (p)
        queue(t, h->c, p, (int)q->part);
    pthread_mutex_unlock(&t->s->mu);
    if (!h) {
        no_catalogue(c, q->catalogue);
    } else if (!p) {
        nk_fail(&e, NK_E_NOT_FOUND, "no_part", "part %u of %.64s is not here", q->part,
                q->catalogue);
        nk_call_finish(c, &e);
    }
    nakshatra__v1__part_request__free_unpacked(q, NULL);
}

/* Who it is: a member of the cluster by its id, however many addresses it has; else the peer's
 * address without its port. */
static void set_peer(struct stream *t)
{
    const char *id = nk_call_identity(t->call), *peer = id[0] ? id : nk_call_peer(t->call),
               *colon = strrchr(peer, ':');
    size_t n = colon ? (size_t)(colon - peer) : strlen(peer);

    if (n >= sizeof t->peer)
        n = sizeof t->peer - 1;
    memcpy(t->peer, peer, n);
    t->peer[n] = '\0';
}

/* The mutex is held. Is there room for it? */
static bool count(struct stream *t)
{
    nk_pieces_service *s = t->s;
    const struct stream *o;
    int n = 0;

    if (t->what == ASKED_HAVE)
        return true;
    LIST_FOREACH(o, &s->streams, link)
    {
        n += o->what == t->what && o->counted && !strcmp(o->peer, t->peer);
    }
    if (t->what == ASKED_CATALOGUE) {
        if (s->n_catalogues == CATALOGUE_STREAMS_MAX || n == PEER_CATALOGUES_MAX)
            return false;
        s->n_catalogues++;
        return t->counted = true;
    }
    if (s->n_parts == NK_PIECES_STREAMS_MAX || n == NK_PIECES_PEER_STREAMS_MAX)
        return false;
    s->n_parts++;
    return t->counted = true;
}

static void open_stream(nk_pieces_service *s, nk_call *c, int what,
                        const struct nk_call_handlers *handlers)
{
    struct stream *t = calloc(1, sizeof *t);
    bool ok;

    if (!t) {
        refuse(c, NK_E_EXHAUSTED, "busy", "no memory");
        return;
    }
    t->s = s;
    t->what = what;
    t->call = nk_call_ref(c);
    set_peer(t);
    pthread_mutex_lock(&s->mu);
    ok = count(t);
    if (ok)
        LIST_INSERT_HEAD(&s->streams, t, link);
    else
        s->figures.refused++;
    pthread_mutex_unlock(&s->mu);
    if (!ok) {
        refuse(c, NK_E_EXHAUSTED, "busy", "too many parts are being sent; come again");
        stream_free(t);
        return;
    }
    t->timer = nk_timer_start(s->net, NK_PIECES_PART_MS, too_slow, t);
    nk_call_accept(c, handlers, t);
}

void nk_pieces_service_catalogue(nk_pieces_service *s, nk_call *c)
{
    static const struct nk_call_handlers handlers = { catalogue_message, half_closed, stream_end };

    open_stream(s, c, ASKED_CATALOGUE, &handlers);
}

void nk_pieces_service_have(nk_pieces_service *s, nk_call *c)
{
    static const struct nk_call_handlers handlers = { have_message, half_closed, stream_end };

    open_stream(s, c, ASKED_HAVE, &handlers);
}

void nk_pieces_service_part(nk_pieces_service *s, nk_call *c)
{
    static const struct nk_call_handlers handlers = { part_message, half_closed, stream_end };

    open_stream(s, c, ASKED_PART, &handlers);
}
