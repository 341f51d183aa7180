#include "gateway/responses_store.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

enum { BUCKETS = 4096, ID_SIZE = 64, OWNER_SIZE = 72 };

/* What was said in one turn. Nothing of it changes once a turn follows it. */
struct turn {
    int refs; /* the record's, and those that follow */
    struct turn *before;
    char *input, *output; /* lists; output NULL: it is not over, or ended without */
    size_t bytes;
};

struct record {
    TAILQ_ENTRY(record) link; /* the oldest first: it is the first to expire */
    LIST_ENTRY(record) same;  /* of its bucket */
    char id[ID_SIZE], owner[OWNER_SIZE];
    char *object;
    bool running;
    struct turn *turn;
    uint64_t end_ns;
    size_t bytes;
};

struct nk_responses {
    struct nk_responses_opts opts;
    pthread_mutex_t mutex; /* what follows */
    TAILQ_HEAD(, record) records;
    LIST_HEAD(, record) buckets[BUCKETS];
    size_t bytes;
};

nk_responses *nk__responses_new(const struct nk_responses_opts *opts)
{
    nk_responses *s = calloc(1, sizeof *s);

    if (!s)
        return NULL;
    s->opts = *opts;
    TAILQ_INIT(&s->records);
    pthread_mutex_init(&s->mutex, NULL);
    return s;
}

/* A long chain ends without recursion. */
static void turn_unref(nk_responses *s, struct turn *t)
{
    while (t && --t->refs == 0) {
        struct turn *before = t->before;

        s->bytes -= t->bytes;
        free(t->input);
        free(t->output);
        free(t);
        t = before;
    }
}

static void drop(nk_responses *s, struct record *r)
{
    TAILQ_REMOVE(&s->records, r, link);
    LIST_REMOVE(r, same);
    s->bytes -= r->bytes;
    turn_unref(s, r->turn);
    free(r->object);
    free(r);
}

void nk__responses_free(nk_responses *s)
{
    if (!s)
        return;
    while (!TAILQ_EMPTY(&s->records))
        drop(s, TAILQ_FIRST(&s->records));
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

bool nk__responses_keeps(const nk_responses *s)
{
    return s->opts.ttl_ms && s->opts.bytes_max;
}

/* Under the mutex. */
static void make_room(nk_responses *s)
{
    uint64_t now = nk_clock_now_ns(s->opts.clock);
    struct record *r;

    while ((r = TAILQ_FIRST(&s->records)) && (s->bytes > s->opts.bytes_max || r->end_ns <= now))
        drop(s, r);
}

static unsigned bucket_of(const char *id)
{
    uint32_t h = 2166136261u;

    for (; *id; id++)
        h = (h ^ (unsigned char)*id) * 16777619u;
    return h % BUCKETS;
}

/* Under the mutex. owner NULL: whoever's. */
static struct record *find(nk_responses *s, const char *owner, const char *id)
{
    struct record *r;

    make_room(s);
    LIST_FOREACH(r, &s->buckets[bucket_of(id)], same)
    {
        if (!strcmp(r->id, id) && (!owner || !strcmp(r->owner, owner)))
            break;
    }
    return r;
}

static int not_found(struct nk_error *err, const char *reason, const char *id)
{
    return nk_fail(err, NK_E_NOT_FOUND, reason,
                   "there is no response \"%.60s\": it was not stored, was deleted, or its time is "
                   "over (--responses-ttl, --responses-mib)",
                   id);
}

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the response");
}

int nk__responses_begin(nk_responses *s, const char *owner, const char *id, const char *previous,
                        const char *input, const char *object, struct nk_error *err)
{
    struct record *r = calloc(1, sizeof *r), *before = NULL;
    struct turn *t = calloc(1, sizeof *t);
    int rc = 0;

    if (r)
        r->object = strdup(object);
    if (t)
        t->input = strdup(input);
    pthread_mutex_lock(&s->mutex);
    if (!r || !t || !r->object || !t->input)
        rc = no_memory(err);
    else if (previous && !(before = find(s, owner, previous)))
        rc = not_found(err, "previous_response_not_found", previous);
    if (rc) {
        free(r ? r->object : NULL);
        free(t ? t->input : NULL);
        free(r);
        free(t);
    } else {
        snprintf(r->id, sizeof r->id, "%s", id);
        snprintf(r->owner, sizeof r->owner, "%s", owner);
        r->running = true;
        r->end_ns = nk_clock_now_ns(s->opts.clock) + s->opts.ttl_ms * 1000000ull;
        r->turn = t;
        r->bytes = sizeof *r + strlen(object) + 1;
        t->refs = 1;
        t->bytes = sizeof *t + strlen(input) + 1;
        t->before = before ? before->turn : NULL;
        if (before)
            before->turn->refs++;
        s->bytes += r->bytes + t->bytes;
        TAILQ_INSERT_TAIL(&s->records, r, link);
        LIST_INSERT_HEAD(&s->buckets[bucket_of(id)], r, same);
        make_room(s);
    }
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* Takes object; under the mutex. */
static void set_object(nk_responses *s, struct record *r, char *object)
{
    s->bytes -= r->bytes;
    free(r->object);
    r->object = object;
    r->bytes = sizeof *r + strlen(object) + 1;
    s->bytes += r->bytes;
}

void nk__responses_finish(nk_responses *s, const char *id, const char *object, const char *output)
{
    char *kept = strdup(object), *said = strdup(output);
    struct record *r;

    pthread_mutex_lock(&s->mutex);
    r = kept && said ? find(s, NULL, id) : NULL;
    if (r && r->running) {
        set_object(s, r, kept);
        r->running = false;
        r->turn->output = said;
        r->turn->bytes += strlen(said) + 1;
        s->bytes += strlen(said) + 1;
        kept = said = NULL;
        make_room(s);
    }
    pthread_mutex_unlock(&s->mutex);
    free(kept);
    free(said);
}

void nk__responses_end(nk_responses *s, const char *id, const char *status)
{
    struct record *r;

    pthread_mutex_lock(&s->mutex);
    r = find(s, NULL, id);
    if (r && r->running) {
        json_t *v = json_loads(r->object, 0, NULL);
        char *object = NULL;

        r->running = false;
        if (v && !json_object_set_new(v, "status", json_string(status)))
            object = json_dumps(v, JSON_COMPACT);
        json_decref(v);
        if (object)
            set_object(s, r, object);
    }
    pthread_mutex_unlock(&s->mutex);
}

/* So much more of the store is wanted for one request. */
static int take(const nk_responses *s, struct nk_responses_use *use, size_t bytes, const char *id,
                struct nk_error *err)
{
    use->bytes += bytes;
    if (use->bytes > s->opts.history_bytes_max)
        return nk_fail(err, NK_E_EXHAUSTED, "too_large",
                       "what was stored up to \"%.60s\" has, with what else is referred to, %zu "
                       "bytes; a request may go on from %zu",
                       id, use->bytes, s->opts.history_bytes_max);
    return nk_work_spend(use->work, (int64_t)bytes, "what was stored", err);
}

static int hold(struct nk_responses_use *use, const char *json, struct nk_error *err)
{
    return use->hold ? use->hold(use->user, json, strlen(json), err) : 0;
}

/* text NULL: nothing. */
static int extend(struct nk_responses_use *use, json_t *into, const char *text,
                  struct nk_error *err)
{
    json_t *v;
    int rc = text ? hold(use, text, err) : 0;

    if (rc || !text)
        return rc;
    v = json_loads(text, 0, NULL);
    if (!v || json_array_extend(into, v))
        rc = no_memory(err);
    json_decref(v);
    return rc;
}

int nk__responses_history(nk_responses *s, const char *owner, const char *id,
                          struct nk_responses_use *use, json_t *into, struct nk_error *err)
{
    struct turn *last = NULL, *t, **turns = NULL;
    struct record *r;
    size_t n = 0, bytes = 0;
    int rc = 0;

    pthread_mutex_lock(&s->mutex);
    r = find(s, owner, id);
    if (!r)
        rc = not_found(err, "previous_response_not_found", id);
    else if (!r->turn->output)
        rc = nk_fail(err, NK_E_PRECONDITION, "response_not_finished",
                     "the response \"%.60s\" %s; only a finished one can be followed", id,
                     r->running ? "is still being computed" : "ended without an answer");
    else {
        last = r->turn;
        last->refs++; /* with it all before it */
    }
    pthread_mutex_unlock(&s->mutex);
    if (rc)
        return rc;
    for (t = last; t; t = t->before, n++)
        bytes += t->bytes;
    rc = take(s, use, bytes, id, err);
    turns = rc ? NULL : calloc(n, sizeof(struct turn *));
    if (!turns && !rc)
        rc = no_memory(err);
    t = last;
    for (size_t i = n; turns && i > 0; i--, t = t->before)
        turns[i - 1] = t;
    for (size_t i = 0; i < n && !rc; i++) {
        rc = extend(use, into, turns[i]->input, err);
        if (!rc)
            rc = extend(use, into, turns[i]->output, err);
    }
    free(turns);
    pthread_mutex_lock(&s->mutex);
    turn_unref(s, last);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* An item's id has its response's in it: "msg_" HEX "_3" is of "resp_" HEX. */
static bool response_of(const char *item, char out[ID_SIZE])
{
    const char *begin = strchr(item, '_'), *end = strrchr(item, '_');

    if (!begin || end == begin || end - begin - 1 > ID_SIZE - 6)
        return false;
    snprintf(out, ID_SIZE, "resp_%.*s", (int)(end - begin - 1), begin + 1);
    return true;
}

int nk__responses_item(nk_responses *s, const char *owner, const char *id,
                       struct nk_responses_use *use, json_t **out, struct nk_error *err)
{
    char response[ID_SIZE], *output = NULL, *text;
    struct record *r;
    json_t *items, *item;
    size_t i;
    int rc;

    *out = NULL;
    if (response_of(id, response)) {
        pthread_mutex_lock(&s->mutex);
        r = find(s, owner, response);
        if (r && r->turn->output)
            output = strdup(r->turn->output);
        pthread_mutex_unlock(&s->mutex);
    }
    /* The whole list is read for one of its items. */
    rc = output ? nk_work_spend(use->work, (int64_t)strlen(output), "what was stored", err) : 0;
    items = output && !rc ? json_loads(output, 0, NULL) : NULL;
    free(output);
    if (rc)
        return rc;
    json_array_foreach(items, i, item)
    {
        const char *its = json_string_value(json_object_get(item, "id"));

        if (its && !strcmp(its, id)) {
            *out = json_incref(item);
            break;
        }
    }
    json_decref(items);
    if (!*out)
        return nk_fail(err, NK_E_NOT_FOUND, "item_not_found",
                       "there is no item \"%.60s\": its response was not stored, was deleted, or "
                       "its time is over; send the item itself",
                       id);
    text = json_dumps(*out, JSON_COMPACT);
    rc = text ? take(s, use, strlen(text), id, err) : no_memory(err);
    if (!rc)
        rc = hold(use, text, err);
    free(text);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

int nk__responses_get(nk_responses *s, const char *owner, const char *id, struct nk_buf *out,
                      struct nk_error *err)
{
    struct record *r;
    int rc;

    pthread_mutex_lock(&s->mutex);
    r = find(s, owner, id);
    rc = r ? nk_buf_adds(out, r->object, err) : not_found(err, "response_not_found", id);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int nk__responses_input(nk_responses *s, const char *owner, const char *id, struct nk_buf *out,
                        struct nk_error *err)
{
    struct record *r;
    int rc;

    pthread_mutex_lock(&s->mutex);
    r = find(s, owner, id);
    rc = r ? nk_buf_adds(out, r->turn->input, err) : not_found(err, "response_not_found", id);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int nk__responses_delete(nk_responses *s, const char *owner, const char *id, struct nk_error *err)
{
    struct record *r;
    int rc = 0;

    pthread_mutex_lock(&s->mutex);
    r = find(s, owner, id);
    if (r)
        drop(s, r);
    else
        rc = not_found(err, "response_not_found", id);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

int nk__responses_running(nk_responses *s, const char *owner, const char *id, struct nk_error *err)
{
    struct record *r;
    int rc = 0;

    pthread_mutex_lock(&s->mutex);
    r = find(s, owner, id);
    if (!r)
        rc = not_found(err, "response_not_found", id);
    else if (!r->running)
        rc = nk_fail(err, NK_E_PRECONDITION, "response_not_running",
                     "the response \"%.60s\" is over; only one that is being computed can be "
                     "cancelled",
                     id);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

void nk__responses_expire(nk_responses *s)
{
    pthread_mutex_lock(&s->mutex);
    make_room(s);
    pthread_mutex_unlock(&s->mutex);
}

size_t nk__responses_bytes(nk_responses *s)
{
    size_t bytes;

    pthread_mutex_lock(&s->mutex);
    bytes = s->bytes;
    pthread_mutex_unlock(&s->mutex);
    return bytes;
}
