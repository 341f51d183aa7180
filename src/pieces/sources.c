/* The other machines of a fetch: what each has, which part is asked of whom, what arrives. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pieces/fetch_int.h"
#include "pieces/service.h"
#include "rpc/proto.h"

static uint64_t ms_from(uint64_t now, uint64_t ms)
{
    return now + ms * 1000000u;
}

static bool has_part(const struct nk__source *s, int part)
{
    return s->has && s->has[part / 8] >> part % 8 & 1;
}

/* ---- life ---- */

static void source_free(struct nk__source *s)
{
    LIST_REMOVE(s, link);
    nk_channel_close(s->channel);
    free(s->has);
    free(s);
}

void nk__source_release(struct nk__source *s)
{
    nk_fetch *f = s->f;

    s->n_calls--;
    f->n_calls--;
    if (s->removed && !s->n_calls)
        source_free(s);
    pthread_cond_broadcast(&f->changed);
}

void nk__flight_free(struct nk__flight *fl)
{
    struct nk__source *s = fl->s;
    nk_fetch *f = fl->f;

    f->n_flights--;
    /* Only now: no source is asked for more parts than may be lost when this process dies. */
    if (!--s->n_flights)
        s->busy_ns += nk_clock_now_ns(f->clock) - s->busy_since_ns;
    if (f->n_buffers < (int)(sizeof f->buffers / sizeof f->buffers[0]))
        f->buffers[f->n_buffers++] = fl->data;
    else
        free(fl->data);
    nk_call_unref(fl->call);
    free(fl);
}

void nk__sources_give_up(nk_fetch *f, int part)
{
    struct nk__flight *fl;

    TAILQ_FOREACH(fl, &f->flights, link)
    {
        if ((part < 0 || fl->part == part) && !fl->given_up) {
            fl->given_up = true;
            nk_call_cancel(fl->call);
        }
    }
}

static void give_up_source(struct nk__source *s)
{
    struct nk__flight *fl;

    TAILQ_FOREACH(fl, &s->f->flights, link)
    {
        if (fl->s == s && !fl->given_up) {
            fl->given_up = true;
            nk_call_cancel(fl->call);
        }
    }
    if (s->ask)
        nk_call_cancel(s->ask);
}

static void note_error(nk_fetch *f, const struct nk__source *s, const char *what)
{
    snprintf(f->last_error, sizeof f->last_error, "%.100s: %.150s", s->name, what);
}

/* Is tried again after a while that grows. */
static void pause_source(struct nk__source *s, uint64_t ms, const char *why)
{
    char quoted[512];

    if (s->state == NK_SOURCE_DROPPED || s->removed)
        return;
    s->state = NK_SOURCE_PAUSED;
    s->at_ns = ms_from(nk_clock_now_ns(s->f->clock), ms);
    if (!why)
        return;
    note_error(s->f, s, why);
    nk_log(NK_LOG_PIECES, NK_LOG_INFO, "event=source_paused source=%s ms=%llu msg=%s", s->name,
           (unsigned long long)ms, nk_log_quote(quoted, sizeof quoted, why));
}

static void pause_longer(struct nk__source *s, const char *why)
{
    uint64_t ms = (uint64_t)NK__PAUSE_MS << (s->pauses < 5 ? s->pauses : 5);

    if (s->state == NK_SOURCE_PAUSED)
        return; /* calls that were under way together fail together */
    s->pauses++;
    pause_source(s, ms < NK__PAUSE_MS_MAX ? ms : NK__PAUSE_MS_MAX, why);
}

void nk__source_drop(struct nk__source *s, int part)
{
    nk_fetch *f = s->f;
    const struct nk_part *p = &f->c->parts[part];
    char why[200], quoted[512];

    if (s->state == NK_SOURCE_DROPPED)
        return;
    s->state = NK_SOURCE_DROPPED;
    s->at_ns = 0;
    snprintf(
        why, sizeof why,
        "it sent wrong bytes of %s (part %d, not what its SHA-256 says); it is not asked again",
        f->c->names[p->piece], part);
    note_error(f, s, why);
    snprintf(f->dropped, sizeof f->dropped, "%s", s->name);
    nk_log(NK_LOG_PIECES, NK_LOG_WARN, "event=source_dropped source=%s address=%s msg=%s", s->name,
           s->address, nk_log_quote(quoted, sizeof quoted, why));
    give_up_source(s);
}

void nk__source_credit(struct nk__source *s, uint32_t bytes)
{
    s->n_bytes += bytes;
    s->pauses = 0;
    if (!s->late && s->flights_max < s->f->opts.source_parts_max)
        s->flights_max++;
}

/* ---- what it has ---- */

static void learn(struct nk__source *s, const uint8_t *bits, size_t n)
{
    nk_fetch *f = s->f;
    size_t size = ((size_t)f->c->n_parts + 7) / 8;

    if (!s->has)
        s->has = malloc(size + 1);
    if (!s->has)
        return;
    memset(s->has, 0, size);
    memcpy(s->has, bits, n < size ? n : size);
    s->has_all = true;
    for (int i = 0; i < f->n_order && s->has_all; i++)
        s->has_all = has_part(s, f->order[i]);
    s->asked = true;
}

static void ask_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk__source *s = user;
    Nakshatra__V1__HaveReply *r = nakshatra__v1__have_reply__unpack(NULL, msg.size, msg.data);

    if (!r) {
        nk_call_cancel(c);
        return;
    }
    pthread_mutex_lock(&s->f->mu);
    learn(s, r->parts.data, r->parts.len);
    pthread_mutex_unlock(&s->f->mu);
    nakshatra__v1__have_reply__free_unpacked(r, NULL);
}

static void ask_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct nk__source *s = user;
    nk_fetch *f = s->f;

    (void)c;
    pthread_mutex_lock(&f->mu);
    nk_call_unref(s->ask);
    s->ask = NULL;
    if (s->state != NK_SOURCE_DROPPED && !s->removed) {
        if (status || !s->asked) {
            pause_longer(s, status ? status->msg : "it does not say what it has");
        } else {
            s->state = NK_SOURCE_READY;
            s->at_ns = s->has_all ? 0 : ms_from(nk_clock_now_ns(f->clock), NK__ASK_AGAIN_MS);
        }
    }
    nk__sources_schedule(f);
    nk__source_release(s);
    pthread_mutex_unlock(&f->mu);
}

static void ask(struct nk__source *s)
{
    static const struct nk_call_handlers handlers = { ask_message, NULL, ask_end };
    nk_fetch *f = s->f;
    Nakshatra__V1__HaveRequest q = NAKSHATRA__V1__HAVE_REQUEST__INIT;
    struct nk_error err;

    s->at_ns = 0;
    if (s->ask)
        return;
    if (nk_call_start(&s->ask, s->channel, NK_PIECES_HAVE, NK__ASK_MS, &handlers, s, &err)) {
        s->ask = NULL;
        pause_longer(s, err.msg);
        return;
    }
    nk_call_ref(s->ask);
    s->n_calls++;
    f->n_calls++;
    q.catalogue = f->c->id;
    nk_call_send_pb(s->ask, &q.base, NULL); /* a call that has ended says so by itself */
    nk_call_send_done(s->ask);
}

/* ---- a part ---- */

/* PartReply.data of a message that has nothing but that, where it lies: unpacking copies it, which
 * for all bytes of a model is a tenth of the work. False: it has more; it is to be unpacked. */
static bool only_data(struct nk_bytes msg, struct nk_bytes *out)
{
    enum { TAG = 1 << 3 | 2 }; /* field 1, of a length */
    uint64_t length = 0;
    size_t at = 1;
    bool more = true;

    if (!msg.size || msg.data[0] != TAG)
        return false;
    for (int shift = 0; more && shift < 35 && at < msg.size; shift += 7) {
        length |= (uint64_t)(msg.data[at] & 0x7f) << shift;
        more = msg.data[at++] & 0x80;
    }
    *out = (struct nk_bytes){ msg.data + at, msg.size - at };
    return !more && length == out->size;
}

static void part_message(nk_call *c, void *user, struct nk_bytes msg)
{
    struct nk__flight *fl = user;
    uint32_t size = fl->f->c->parts[fl->part].size_bytes;
    Nakshatra__V1__PartReply *r = NULL;
    struct nk_bytes data;
    bool good = only_data(msg, &data);

    if (!good) {
        r = nakshatra__v1__part_reply__unpack(NULL, msg.size, msg.data);
        good = r != NULL;
        if (r)
            data = (struct nk_bytes){ r->data.data, r->data.len };
    }
    if (!good || data.size > size - fl->size) {
        fl->too_much = true;
        nk_call_cancel(c);
    } else {
        if (data.size)
            memcpy(fl->data + fl->size, data.data, data.size);
        fl->size += (uint32_t)data.size;
    }
    if (r)
        nakshatra__v1__part_reply__free_unpacked(r, NULL);
}

/* The call has failed: what does that say of the source? */
static void part_failed(struct nk__flight *fl, const struct nk_error *status)
{
    struct nk__source *s = fl->s;
    nk_fetch *f = fl->f;
    char why[160];

    if (status->code == NK_E_DEADLINE) {
        if (s->late < NK__LATE_MAX)
            s->late++;
        s->flights_max = 1;
        snprintf(why, sizeof why, "%u of %u bytes of a part came in %llu ms; others are asked",
                 fl->size, f->c->parts[fl->part].size_bytes,
                 (unsigned long long)((nk_clock_now_ns(f->clock) - fl->began_ns) / 1000000u));
        pause_longer(s, why);
    } else if (status->code == NK_E_EXHAUSTED) {
        s->flights_max = s->n_flights > 2 ? s->n_flights - 1 : 1;
        pause_source(s, NK__BUSY_MS, NULL);
    } else if (status->code == NK_E_NOT_FOUND) {
        if (s->has)
            s->has[fl->part / 8] &= (uint8_t) ~(1u << fl->part % 8);
        s->has_all = false;
        pause_source(s, NK__ASK_AGAIN_MS, status->msg);
    } else {
        pause_longer(s, status->msg);
    }
}

static void part_end(nk_call *c, void *user, const struct nk_error *status)
{
    struct nk__flight *fl = user;
    struct nk__source *s = fl->s;
    nk_fetch *f = fl->f;
    uint64_t now;

    (void)c;
    pthread_mutex_lock(&f->mu);
    now = nk_clock_now_ns(f->clock);
    TAILQ_REMOVE(&f->flights, fl, link);
    f->part_flights[fl->part]--;
    if (fl->too_much || (!status && fl->size != f->c->parts[fl->part].size_bytes)) {
        nk__source_drop(s, fl->part);
        nk__flight_free(fl);
    } else if (status) {
        if (!fl->given_up)
            part_failed(fl, status);
        nk__flight_free(fl);
    } else if (f->parts[fl->part] != NK__PART_WANTED || nk__fetch_ended(f)) {
        nk__flight_free(fl); /* somebody else was quicker */
    } else {
        f->parts[fl->part] = NK__PART_BUSY;
        s->n_calls++; /* stays until the part is looked at */
        f->n_calls++;
        TAILQ_INSERT_TAIL(&f->arrived, fl, link);
        f->progress_ns = now;
    }
    nk__sources_schedule(f);
    nk__source_release(s);
    pthread_mutex_unlock(&f->mu);
}

/* False: it cannot be. */
static bool fly(struct nk__source *s, int part)
{
    static const struct nk_call_handlers handlers = { part_message, NULL, part_end };
    nk_fetch *f = s->f;
    Nakshatra__V1__PartRequest q = NAKSHATRA__V1__PART_REQUEST__INIT;
    struct nk__flight *fl = calloc(1, sizeof *fl);
    struct nk_error err;
    int rc;

    if (fl)
        fl->data = f->n_buffers ? f->buffers[--f->n_buffers] : malloc(NK_PART_BYTES);
    if (!fl || !fl->data) {
        free(fl);
        return false;
    }
    fl->f = f;
    fl->s = s;
    fl->part = part;
    fl->began_ns = nk_clock_now_ns(f->clock);
    f->n_flights++;
    if (!s->n_flights++)
        s->busy_since_ns = fl->began_ns;
    rc = nk_call_start(&fl->call, s->channel, NK_PIECES_PART, f->opts.part_ms << s->late, &handlers,
                       fl, &err);
    if (rc) {
        fl->call = NULL;
        nk__flight_free(fl);
        pause_longer(s, err.msg);
        return false;
    }
    nk_call_ref(fl->call);
    TAILQ_INSERT_TAIL(&f->flights, fl, link);
    f->part_flights[part]++;
    s->n_calls++;
    f->n_calls++;
    q.catalogue = f->c->id;
    q.part = (uint32_t)part;
    nk_call_send_pb(fl->call, &q.base, NULL); /* a call that has ended says so by itself */
    nk_call_send_done(fl->call);
    return true;
}

/* ---- who does what ---- */

/* May s take a part that another one is at? When that one is slow with it. */
static bool is_slow(const nk_fetch *f, const struct nk__source *s, int part, uint64_t now)
{
    const struct nk__flight *fl;

    TAILQ_FOREACH(fl, &f->flights, link)
    {
        if (fl->part == part)
            return fl->s != s && now >= ms_from(fl->began_ns, NK__SLOW_MS);
    }
    return false;
}

/* -1: none. */
static int choose(struct nk__source *s, uint64_t now)
{
    nk_fetch *f = s->f;
    int slow = -1;

    for (int i = 0; i < f->n_order; i++) {
        int at = (s->cursor + i) % f->n_order, part = f->order[at];

        if (f->parts[part] != NK__PART_WANTED || !has_part(s, part))
            continue;
        if (!f->part_flights[part]) {
            s->cursor = at;
            return part;
        }
        if (slow < 0 && f->part_flights[part] == 1 && is_slow(f, s, part, now))
            slow = part;
    }
    return slow;
}

void nk__sources_schedule(nk_fetch *f)
{
    uint64_t now = nk_clock_now_ns(f->clock);
    bool any = f->state == NK_FETCH_RUNNING && !atomic_load(&f->cancelled);

    while (any && f->n_flights < f->opts.parts_max) {
        struct nk__source *s;

        any = false;
        LIST_FOREACH(s, &f->sources, link)
        {
            int part;

            if (s->removed || s->state != NK_SOURCE_READY || s->n_flights >= s->flights_max ||
                f->n_flights >= f->opts.parts_max)
                continue;
            part = choose(s, now);
            if (part >= 0 && fly(s, part))
                any = true;
        }
    }
}

void nk__sources_tick(nk_fetch *f, uint64_t *next_ns)
{
    uint64_t now = nk_clock_now_ns(f->clock);
    const struct nk__flight *fl;
    struct nk__source *s;

    *next_ns = UINT64_MAX;
    if (nk__fetch_ended(f) || f->sealing)
        return;
    LIST_FOREACH(s, &f->sources, link)
    {
        if (s->removed || s->state == NK_SOURCE_DROPPED)
            continue;
        if (s->at_ns && s->at_ns <= now) {
            if (s->state == NK_SOURCE_PAUSED)
                s->state = NK_SOURCE_ASKING;
            ask(s);
        }
    }
    nk__sources_schedule(f);
    LIST_FOREACH(s, &f->sources, link)
    {
        if (s->at_ns && s->at_ns < *next_ns)
            *next_ns = s->at_ns;
    }
    if (f->n_sources > 1)
        TAILQ_FOREACH(fl, &f->flights, link)
        {
            uint64_t slow = ms_from(fl->began_ns, NK__SLOW_MS);

            if (slow > now && slow < *next_ns)
                *next_ns = slow;
        }
}

void nk__sources_stop(nk_fetch *f)
{
    struct nk__source *s;

    LIST_FOREACH(s, &f->sources, link)
    {
        give_up_source(s);
    }
}

void nk__sources_free(nk_fetch *f)
{
    while (!LIST_EMPTY(&f->sources))
        source_free(LIST_FIRST(&f->sources));
}

/* ---- from outside ---- */

static struct nk__source *find(nk_fetch *f, const char *name)
{
    struct nk__source *s;

    LIST_FOREACH(s, &f->sources, link)
    {
        if (!s->removed && !strcmp(s->name, name))
            return s;
    }
    return NULL;
}

static void remove_source(struct nk__source *s)
{
    s->f->n_sources--;
    s->removed = true;
    s->at_ns = 0; /* or it would be due for ever */
    give_up_source(s);
    if (!s->n_calls)
        source_free(s);
}

int nk_fetch_source_add(nk_fetch *f, const char *name, const char *address, struct nk_error *err)
{
    struct nk__source *s, *old;
    int rc = 0;

    if (!f->opts.net)
        return nk_fail(err, NK_E_PRECONDITION, "no_net", "this fetch has no network");
    s = calloc(1, sizeof *s);
    if (!s)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    s->f = f;
    s->flights_max = f->opts.source_parts_max;
    snprintf(s->name, sizeof s->name, "%s", name);
    snprintf(s->address, sizeof s->address, "%s", address);
    pthread_mutex_lock(&f->mu);
    old = find(f, s->name);
    if (old && (!strcmp(old->address, s->address) || old->state == NK_SOURCE_DROPPED)) {
        free(s);
        goto out;
    }
    if (!old && f->n_sources + f->n_locals >= NK_FETCH_SOURCES_MAX)
        rc = nk_fail(err, NK_E_EXHAUSTED, "too_many_sources",
                     "a fetch has at most %d sources, files among them", NK_FETCH_SOURCES_MAX);
    if (!rc)
        rc = nk_channel_open(&s->channel, f->opts.net, address,
                             f->opts.credentials ? &f->credentials : NULL, err);
    if (rc) {
        free(s);
        goto out;
    }
    if (old)
        remove_source(old);
    /* Each begins elsewhere, so that machines which fetch the same have parts for each other. */
    s->cursor =
        f->n_order
            ? (int)((f->began_ns / 1000u + (uint64_t)f->n_sources * 7919u) % (uint64_t)f->n_order)
            : 0;
    LIST_INSERT_HEAD(&f->sources, s, link);
    f->n_sources++;
    s->state = NK_SOURCE_ASKING;
    if (!nk__fetch_ended(f))
        ask(s);
    pthread_cond_broadcast(&f->changed);
out:
    pthread_mutex_unlock(&f->mu);
    return rc;
}

void nk_fetch_source_remove(nk_fetch *f, const char *name)
{
    struct nk__source *s;

    pthread_mutex_lock(&f->mu);
    s = find(f, name);
    if (s)
        remove_source(s);
    nk__sources_schedule(f);
    pthread_mutex_unlock(&f->mu);
}
