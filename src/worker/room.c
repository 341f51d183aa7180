/* Room: sequences, KV tokens, and who gets them. Everything here runs on the net thread.
 *
 * A session reserves the most KV tokens it may come to need before it begins, so that none runs
 * out on the way. Kept sessions hold what they hold until somebody needs it: they yield, the
 * least recently used one first. Who finds no room waits in a queue (session.c's deadlines end
 * the wait). */
#include "worker/session_int.h"

#include <string.h>

#include "base/log.h"

typedef struct nk_session session;

/* ---- sequences ---- */

static void submit_clear(nk_worker *w, int seq)
{
    struct nk_compute_job *j;
    struct nk_error err;

    if (nk__engine_job(w->engine, &j, 0, false, &err)) {
        /* Positions are authoritative: what is left in the sequence is forgotten when it is used
         * again. */
        nk_log(NK_LOG_WORKER, NK_LOG_WARN,
               "seq=%d reason=%s msg=\"its KV is freed at its next use\"", seq, err.reason);
        return;
    }
    j->kind = NK_COMPUTE_CLEAR;
    j->seq = seq;
    nk__engine_submit(w->engine, j);
}

void nk__room_free_seq(nk_worker *w, int seq)
{
    if (seq < 0)
        return;
    submit_clear(w, seq);
    w->seq_used[seq] = 0;
    w->n_seq_free++;
}

static int take_free_seq(nk_worker *w)
{
    for (int i = 0; i < nk__stage_info(w)->n_seq_max; i++)
        if (!w->seq_used[i]) {
            w->seq_used[i] = 1;
            w->n_seq_free--;
            return i;
        }
    return -1;
}

/* Out of all lists and books; the list's reference is dropped. */
void nk__room_forget_kept(session *k, bool clear)
{
    nk_worker *w = k->w;

    NK_ASSERT(k->state == NK_SESSION_KEPT);
    w->kv_kept -= k->n_ids;
    nk__session_list_remove(k);
    if (clear)
        nk__room_free_seq(w, k->seq);
    k->seq = -1;
    nk__session_unref(k);
}

static bool evict_one(nk_worker *w, const session *but)
{
    /* The longest kept is the least recently used. */
    session *k = TAILQ_FIRST(&w->sessions[NK_SESSION_KEPT].head);

    if (k && k == but)
        k = TAILQ_NEXT(k, link);
    if (!k)
        return false;
    nk_log(NK_LOG_WORKER, NK_LOG_DEBUG, "session=%s tokens=%d msg=\"kept session evicted\"",
           k->name, k->n_ids);
    nk__room_forget_kept(k, true);
    return true;
}

int nk__room_borrow_seq(nk_worker *w, int n_tokens)
{
    int seq;

    while (w->kv_reserved + w->kv_kept + n_tokens > nk__stage_info(w)->n_ctx && evict_one(w, NULL))
        ;
    seq = take_free_seq(w);
    if (seq < 0 && evict_one(w, NULL))
        seq = take_free_seq(w);
    return seq;
}

void nk__room_return_seq(nk_worker *w, int seq)
{
    w->seq_used[seq] = 0;
    w->n_seq_free++;
    nk__room_admit(w);
}

/* ---- admission ---- */

/* FNV-1a over the ids' bytes, little-endian (http://www.isthe.com/chongo/tech/comp/fnv/): both ends
 * of a resumed session must mean the same tokens. */
uint64_t nk__room_ids_hash(const int32_t *ids, int n)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (int i = 0; i < n; i++)
        for (int b = 0; b < 4; b++)
            h = (h ^ ((uint32_t)ids[i] >> (8 * b) & 0xff)) * 0x100000001b3u;
    return h;
}

/* Two prompts that differ after a few words: what they have in common is less than half a chunk and
 * spares next to nothing, but would tell how well one guesses the other. */
enum { DIVERGING_TOKENS_MIN = 32 };

static int common_prefix(const session *k, const session *s)
{
    int n = 0, max = k->n_ids < s->n_prompt ? k->n_ids : s->n_prompt;

    while (n < max && k->ids[n] == s->feed[n])
        n++;
    return n;
}

static bool can_go_back(const session *k, int pos)
{
    return nk__stage_info(k->w)->can_rollback || k->n_ids == pos ||
           nk__checkpoints_kind_at(k->checkpoints, pos) != NK_CHECKPOINT_NONE;
}

/* s begins with the first n tokens of k: so it may go back to where k might. False: what is needed
 * of it was dropped meanwhile. over: k ends with that. */
static bool take_checkpoints(session *s, session *k, int n, bool over)
{
    if (nk__stage_info(s->w)->can_rollback)
        return true;
    if (over && s->checkpoints && k->checkpoints) {
        nk__checkpoints *own = s->checkpoints;

        s->checkpoints = k->checkpoints;
        k->checkpoints = own;
    } else {
        nk__checkpoints_share(s->checkpoints, k->checkpoints, n);
    }
    return k->n_ids == n || nk__checkpoints_pin(s->checkpoints, n);
}

/* The kept session that s should continue, or NULL; *n_tokens: how many of its tokens are of
 * use. */
static session *find_kept(const session *s, int *n_tokens)
{
    session *best = NULL, *k;
    bool can_rollback = nk__stage_info(s->w)->can_rollback;

    *n_tokens = 0;
    if (!s->reuse && s->is_first)
        return NULL;
    if (s->n_prompt_logprobs >= 0) /* each of its rows is to be seen */
        return NULL;
    TAILQ_FOREACH(k, &s->w->sessions[NK_SESSION_KEPT].head, link)
    {
        int n;

        if (!s->is_first) {
            if (s->n_resume && memcmp(k->id, s->resume_id, NK_SESSION_ID_BYTES) == 0 &&
                k->n_ids >= s->n_resume && can_go_back(k, s->n_resume) &&
                nk__room_ids_hash(k->ids, s->n_resume) == s->resume_hash) {
                *n_tokens = s->n_resume;
                return k;
            }
            continue;
        }
        if (k->is_last != s->is_last || k->f16 != s->f16 || k->n_reuse_salt != s->n_reuse_salt ||
            memcmp(k->reuse_salt, s->reuse_salt, s->n_reuse_salt) != 0)
            continue;
        n = common_prefix(k, s);
        if (n < DIVERGING_TOKENS_MIN && n < k->n_prompt && n < s->n_prompt)
            continue;
        if (n == s->n_prompt) /* the last token's logits are needed: its row is computed again */
            n--;
        if (!can_rollback && n != k->n_ids)
            n = nk__checkpoints_floor(k->checkpoints, n);
        if (n > *n_tokens) {
            *n_tokens = n;
            best = k;
        }
    }
    return best;
}

static bool copy_seq(nk_worker *w, int from, int to)
{
    struct nk_compute_job *j;

    if (nk__engine_job(w->engine, &j, 0, false, NULL))
        return false;
    j->kind = NK_COMPUTE_COPY;
    j->seq = from;
    j->seq_to = to;
    nk__engine_submit(w->engine, j);
    return true;
}

/* A held session that nobody has come for in some time: its client may be gone. */
static bool evict_held(nk_worker *w)
{
    uint64_t now = nk__worker_now_ns(w);
    session *h;

    TAILQ_FOREACH(h, &w->sessions[NK_SESSION_HELD].head, link)
    {
        if (h->adopter || now < h->state_ns + NK_HOLD_FIRM_MS * 1000000ull)
            continue;
        nk_log(NK_LOG_WORKER, NK_LOG_INFO, "session=%s tokens=%d msg=\"held session evicted\"",
               h->name, h->n_ids);
        nk__resume_forget(h);
        return true;
    }
    return false;
}

static bool is_full_for(const session *s)
{
    const nk_worker *w = s->w;

    return w->kv_reserved + s->n_tokens_max > nk__stage_info(w)->n_ctx ||
           (w->n_seq_free == 0 && !w->sessions[NK_SESSION_KEPT].n);
}

/* Room for s, by evicting kept sessions if need be. A kept session with a common beginning is taken
 * over when that is most of it; else its beginning is copied (cells of a unified KV cache are
 * shared, not copied) and it stays kept. */
static bool make_room(session *s)
{
    nk_worker *w = s->w;
    int n_ctx = nk__stage_info(w)->n_ctx, n_resume;
    session *k;

    /* What runs yields to nobody; then kept sessions are not evicted in vain. */
    while (is_full_for(s))
        if (!evict_held(w))
            return false;
    n_resume = 0;
    k = s->resumed ? NULL : find_kept(s, &n_resume);
    while (w->kv_reserved + s->n_tokens_max + w->kv_kept - (k ? k->n_ids : 0) > n_ctx)
        if (!evict_one(w, k))
            return false;
    if (k && n_resume * 2 < k->n_ids && w->kv_reserved + s->n_tokens_max + w->kv_kept <= n_ctx &&
        (s->seq = take_free_seq(w)) >= 0 && !copy_seq(w, k->seq, s->seq)) {
        nk__room_return_seq(w, s->seq); /* no memory for the job: from the beginning, then */
        s->seq = -1;
        k = NULL;
        n_resume = 0;
    }
    if (k) {
        if (s->is_first)
            memcpy(s->resume_id, k->id, NK_SESSION_ID_BYTES);
        if (!take_checkpoints(s, k, n_resume, s->seq < 0))
            n_resume = 0;
        memcpy(s->ids, k->ids, (size_t)n_resume * sizeof *s->ids);
    }
    if (k && s->seq < 0) {
        s->seq = k->seq;
        nk__room_forget_kept(k, false);
    } else if (s->seq < 0) {
        s->seq = take_free_seq(w);
        if (s->seq < 0) {
            if (!evict_one(w, NULL))
                return false;
            s->seq = take_free_seq(w);
        }
    }
    s->n_resume = n_resume;
    s->n_ids = n_resume;
    w->kv_reserved += s->n_tokens_max;
    s->reserved = true;
    return true;
}

/* Who waits for a held session has its room there. */
static session *first_waiting(const nk_worker *w)
{
    session *s = TAILQ_FIRST(&w->sessions[NK_SESSION_WAITING].head);

    while (s && s->adopts)
        s = TAILQ_NEXT(s, link);
    return s;
}

void nk__room_admit(nk_worker *w)
{
    session *s;

    if (w->admitting) /* called again from below: the loop goes on anyway */
        return;
    w->admitting = true;
    while ((s = first_waiting(w)) && w->state == NK_WORKER_SERVING && make_room(s)) {
        struct nk_error err;

        nk__session_set_state(s, NK_SESSION_OPENING);
        if (nk__open_begin(s, &err))
            nk__session_fail(s, &err);
    }
    w->admitting = false;
}
