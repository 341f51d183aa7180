#include "worker/checkpoint.h"

#include <stdlib.h>
#include <string.h>

struct nk__state {
    size_t size;
    int refs;     /* under the mutex of the sets that it is in */
    bool counted; /* in their bytes */
    max_align_t data[];
};

struct checkpoint {
    int pos;
    enum nk_checkpoint_kind kind;
    nk__state *state;
};

struct nk__checkpoints {
    struct nk__checkpoints_all *all;
    TAILQ_ENTRY(nk__checkpoints) link;
    /* under all->mutex; by position */
    struct checkpoint at[NK_CHECKPOINTS_MAX];
    int n, pinned; /* a position; 0: none */
};

nk__state *nk__state_new(size_t size)
{
    nk__state *s = malloc(sizeof *s + size);

    if (s)
        *s = (nk__state){ .size = size, .refs = 1 };
    return s;
}

void *nk__state_data(nk__state *s)
{
    return s->data;
}

size_t nk__state_size(const nk__state *s)
{
    return s->size;
}

/* With the mutex. */
static void unref(struct nk__checkpoints_all *all, nk__state *s)
{
    if (--s->refs)
        return;
    if (s->counted) {
        atomic_fetch_sub(&all->bytes, s->size);
        atomic_fetch_sub(&all->n, 1);
    }
    free(s);
}

void nk__checkpoints_release(nk__checkpoints *c, nk__state *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&c->all->mutex);
    unref(c->all, s);
    pthread_mutex_unlock(&c->all->mutex);
}

void nk__checkpoints_all_init(struct nk__checkpoints_all *all,
                              const struct nk__checkpoint_limits *limits)
{
    all->limits = *limits;
    pthread_mutex_init(&all->mutex, NULL);
    TAILQ_INIT(&all->sets);
    atomic_store(&all->n, 0);
    atomic_store(&all->bytes, 0);
    atomic_store(&all->n_made, 0);
    atomic_store(&all->n_used, 0);
}

void nk__checkpoints_all_release(struct nk__checkpoints_all *all)
{
    pthread_mutex_destroy(&all->mutex);
}

enum nk_checkpoint_kind nk__checkpoint_kind(int begin, int end, int n_prompt, int chunk, int every)
{
    if (begin < n_prompt) {
        int last = n_prompt - NK_CHECKPOINT_TAIL;

        if (end == n_prompt || (end <= last && last - end < chunk))
            return NK_CHECKPOINT_PROMPT;
    }
    return every > 0 && end / every > begin / every ? NK_CHECKPOINT_REGULAR : NK_CHECKPOINT_NONE;
}

int nk__checkpoints_new(nk__checkpoints **out, struct nk__checkpoints_all *all,
                        struct nk_error *err)
{
    nk__checkpoints *c = calloc(1, sizeof *c);

    *out = NULL;
    if (!c)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a session's checkpoints");
    c->all = all;
    pthread_mutex_lock(&all->mutex);
    TAILQ_INSERT_TAIL(&all->sets, c, link);
    pthread_mutex_unlock(&all->mutex);
    *out = c;
    return 0;
}

static void drop(nk__checkpoints *c, int i)
{
    unref(c->all, c->at[i].state);
    c->n--;
    memmove(c->at + i, c->at + i + 1, (size_t)(c->n - i) * sizeof c->at[0]);
}

void nk__checkpoints_free(nk__checkpoints *c)
{
    struct nk__checkpoints_all *all;

    if (!c)
        return;
    all = c->all;
    pthread_mutex_lock(&all->mutex);
    while (c->n)
        drop(c, c->n - 1);
    TAILQ_REMOVE(&all->sets, c, link);
    pthread_mutex_unlock(&all->mutex);
    free(c);
}

/* ---- which one goes ---- */

/* What is lost with the i-th: how much more is to be computed again where it would be wanted, times
 * how probable that is. It is wanted less the farther it is from where the session is. */
static double worth(const nk__checkpoints *c, int i, int end)
{
    int pos = c->at[i].pos, before = i ? c->at[i - 1].pos : 0;
    int after = i + 1 < c->n ? c->at[i + 1].pos : end;

    return (double)(pos - before) * (after - pos + 1) / (end - pos + 1);
}

/* The least useful of this session for the sake of one at `end` of this kind; -1: none is worth
 * less. Of those about a prompt's end the oldest. */
static int least_useful(const nk__checkpoints *c, int end, enum nk_checkpoint_kind kind)
{
    int best = -1;

    for (int i = 0; i < c->n; i++) {
        if (c->at[i].pos == c->pinned || c->at[i].kind == NK_CHECKPOINT_PROMPT)
            continue;
        if (best < 0 || worth(c, i, end) < worth(c, best, end))
            best = i;
    }
    for (int i = 0; i < c->n && best < 0 && kind == NK_CHECKPOINT_PROMPT; i++)
        if (c->at[i].pos != c->pinned)
            best = i;
    return best;
}

/* Drops one of any session: the least recently used one gives first, and what is about a prompt's
 * end only for another of these. */
static bool drop_of_any(nk__checkpoints *for_whom, int end, enum nk_checkpoint_kind kind)
{
    nk__checkpoints *c;

    for (int k = NK_CHECKPOINT_REGULAR; k <= (int)kind; k++)
        TAILQ_FOREACH(c, &for_whom->all->sets, link)
        {
            int last = c == for_whom ? end : c->n ? c->at[c->n - 1].pos : 0;
            int i = least_useful(c, last, (enum nk_checkpoint_kind)k);

            if (i >= 0) {
                drop(c, i);
                return true;
            }
        }
    return false;
}

static uint64_t session_bytes(const nk__checkpoints *c)
{
    uint64_t n = 0;

    for (int i = 0; i < c->n; i++)
        n += c->at[i].state->size;
    return n;
}

static bool make_room(nk__checkpoints *c, int pos, enum nk_checkpoint_kind kind, size_t size)
{
    const struct nk__checkpoint_limits *l = &c->all->limits;

    while (c->n == NK_CHECKPOINTS_MAX || session_bytes(c) + size > l->session_bytes) {
        int i = least_useful(c, pos, kind);

        if (i < 0)
            return false;
        drop(c, i);
    }
    while (atomic_load(&c->all->bytes) + size > l->all_bytes)
        if (!drop_of_any(c, pos, kind))
            return false;
    return true;
}

static void touch(nk__checkpoints *c)
{
    TAILQ_REMOVE(&c->all->sets, c, link);
    TAILQ_INSERT_TAIL(&c->all->sets, c, link);
}

bool nk__checkpoints_could(const nk__checkpoints *c, size_t size)
{
    return c && size && size <= c->all->limits.session_bytes && size <= c->all->limits.all_bytes;
}

static void truncate_after(nk__checkpoints *c, int pos)
{
    while (c->n && c->at[c->n - 1].pos > pos)
        drop(c, c->n - 1);
}

/* Of the last prompts' ends only the newest one is special. */
static void demote(nk__checkpoints *c)
{
    bool newest = true;

    for (int i = c->n - 1; i >= 0; i--) {
        if (c->at[i].kind != NK_CHECKPOINT_PROMPT)
            continue;
        if (!newest)
            c->at[i].kind = NK_CHECKPOINT_REGULAR;
        newest = false;
    }
}

void nk__checkpoints_put(nk__checkpoints *c, int pos, enum nk_checkpoint_kind kind, nk__state *s)
{
    struct nk__checkpoints_all *all;

    if (!c) {
        free(s);
        return;
    }
    all = c->all;
    pthread_mutex_lock(&all->mutex);
    truncate_after(c, pos - 1);
    touch(c);
    if (kind == NK_CHECKPOINT_PROMPT)
        demote(c);
    if (nk__checkpoints_could(c, s->size) && make_room(c, pos, kind, s->size)) {
        s->counted = true;
        atomic_fetch_add(&all->bytes, s->size);
        atomic_fetch_add(&all->n, 1);
        atomic_fetch_add(&all->n_made, 1);
        c->at[c->n++] = (struct checkpoint){ pos, kind, s };
    } else {
        unref(all, s);
    }
    pthread_mutex_unlock(&all->mutex);
}

/* ---- looking ---- */

static int find(const nk__checkpoints *c, int pos)
{
    for (int i = 0; i < c->n; i++)
        if (c->at[i].pos == pos)
            return i;
    return -1;
}

int nk__checkpoints_floor(nk__checkpoints *c, int pos)
{
    int at = 0;

    if (!c)
        return 0;
    pthread_mutex_lock(&c->all->mutex);
    for (int i = 0; i < c->n && c->at[i].pos <= pos; i++)
        at = c->at[i].pos;
    pthread_mutex_unlock(&c->all->mutex);
    return at;
}

enum nk_checkpoint_kind nk__checkpoints_kind_at(nk__checkpoints *c, int pos)
{
    enum nk_checkpoint_kind kind = NK_CHECKPOINT_NONE;
    int i;

    if (!c)
        return kind;
    pthread_mutex_lock(&c->all->mutex);
    i = find(c, pos);
    if (i >= 0)
        kind = c->at[i].kind;
    pthread_mutex_unlock(&c->all->mutex);
    return kind;
}

bool nk__checkpoints_pin(nk__checkpoints *c, int pos)
{
    bool there;

    if (!c)
        return false;
    pthread_mutex_lock(&c->all->mutex);
    there = find(c, pos) >= 0;
    c->pinned = there ? pos : 0;
    touch(c);
    pthread_mutex_unlock(&c->all->mutex);
    return there;
}

nk__state *nk__checkpoints_get(nk__checkpoints *c, int pos)
{
    nk__state *s = NULL;
    int i;

    if (!c)
        return NULL;
    pthread_mutex_lock(&c->all->mutex);
    i = find(c, pos);
    if (i >= 0) {
        s = c->at[i].state;
        s->refs++;
        c->pinned = 0;
        atomic_fetch_add(&c->all->n_used, 1);
    }
    pthread_mutex_unlock(&c->all->mutex);
    return s;
}

void nk__checkpoints_truncate(nk__checkpoints *c, int pos)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->all->mutex);
    truncate_after(c, pos);
    pthread_mutex_unlock(&c->all->mutex);
}

void nk__checkpoints_share(nk__checkpoints *to, nk__checkpoints *from, int pos)
{
    if (!to || !from)
        return;
    pthread_mutex_lock(&to->all->mutex);
    for (int i = 0; i < from->n && from->at[i].pos <= pos; i++) {
        to->at[to->n] = from->at[i];
        to->at[to->n++].state->refs++;
    }
    pthread_mutex_unlock(&to->all->mutex);
}
