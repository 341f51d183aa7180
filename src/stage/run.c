/* Running a stage: a batch is checked, what it replaces is forgotten, and one llama_decode computes
 * it, while rows are put into its graph and taken out of it. */
#include "stage/stage_int.h"

#include <math.h>
#include <string.h>

#include <ggml-backend.h>

#include "stage/device_int.h"

enum { IDLE, RUNNING, CANCELLED }; /* nk_stage.state */

/* ---- the graph's callbacks ---- */

/* ask: does anybody want this node? Every yes ends one piece of the graph and starts another, so it
 * is said for exactly one node that rows enter at and one that they leave at. Then, called again
 * with the node computed. Must not return false then: that would cancel the graph. */
bool nk__stage_eval(struct ggml_tensor *t, bool ask, void *user)
{
    nk_stage *s = user;

    if (s->recording) {
        if (ask) {
            nk__graph_add(s->recording, t);
            s->in_pieces |= s->polled;
        }
        return !ask;
    }
    if (ask) {
        s->in_next = s->in.found && !s->in_done && nk__place_matches(&s->in, t, s->n_tokens) &&
                     s->n_in_seen++ == s->in.n_before;
        s->out_next = !s->in_next && s->out.found && !s->out_done &&
                      nk__place_matches(&s->out, t, s->n_tokens) &&
                      s->n_out_seen++ == s->out.n_before;
        return s->in_next || s->out_next;
    }
    if (s->in_next) {
        ggml_backend_tensor_set(t, s->in_rows, 0, ggml_nbytes(t));
        s->in_done = true;
    } else if (s->out_next) {
        ggml_backend_tensor_get(t, s->out_rows, 0, ggml_nbytes(t));
        s->out_done = true;
    }
    return true;
}

bool nk__stage_aborted(void *user)
{
    nk_stage *s = user;

    if (s->recording) {
        s->polled = true;
        return s->quick;
    }
    return atomic_load_explicit(&s->state, memory_order_relaxed) == CANCELLED;
}

/* ---- running ---- */

/* Where layers have a state, libllama puts the rows of a batch in an order of its own: the k-th
 * rows of all sequences that still have one make a graph. With the same number of rows of each, one
 * sequence after the other, that is one graph in the batch's order. */
static int check_equal_rows(const nk_stage *s, const struct nk_stage_batch *b, int n_seq,
                            struct nk_error *err)
{
    int each = b->n_tokens / n_seq;

    for (int i = 0; i < b->n_tokens; i++)
        if (b->n_tokens % n_seq || (i % each != 0 && b->seq[i] != b->seq[i - 1]))
            return nk_fail(err, NK_E_INVALID, "bad_batch",
                           "%d rows of %d sequences; a %s model takes the same number of each, one "
                           "sequence after the other",
                           b->n_tokens, n_seq, s->info.architecture);
    return 0;
}

/* Everything of a batch that libllama would abort on or answer with a bare number. Fills first_pos
 * and next_pos (-1: not in the batch). Changes nothing. */
static int check_batch(nk_stage *s, const struct nk_stage_batch *b, struct nk_error *err)
{
    int n_seq = 0;

    if (b->n_tokens < 1 || b->n_tokens > s->info.n_batch)
        return nk_fail(err, NK_E_INVALID, "bad_batch", "%d rows; 1 to %d fit in a run", b->n_tokens,
                       s->info.n_batch);
    if (!b->ids || !b->pos || !b->seq)
        return nk_fail(err, NK_E_INVALID, "bad_batch", "ids, positions or sequences are missing");
    if (!s->info.is_first && !b->rows)
        return nk_fail(err, NK_E_INVALID, "bad_batch",
                       "layers %d-%d need rows, but none were given", s->info.layer_begin,
                       s->info.layer_end);
    for (int i = 0; i < s->info.n_seq_max; i++)
        s->first_pos[i] = s->next_pos[i] = -1;
    for (int i = 0; i < b->n_tokens; i++) {
        int seq = b->seq[i], pos = b->pos[i], length;

        if (seq < 0 || seq >= s->info.n_seq_max || (seq && s->info.pooling))
            return nk_fail(err, NK_E_INVALID, "bad_batch",
                           "row %d is of sequence %d; there are 0 to %d", i, seq,
                           s->info.pooling ? 0 : s->info.n_seq_max - 1);
        if (b->ids[i] < 0 || b->ids[i] >= s->info.n_vocab)
            return nk_fail(err, NK_E_INVALID, "bad_batch",
                           "row %d has token id %d; the vocabulary has 0 to %d", i, b->ids[i],
                           s->info.n_vocab - 1);
        if (s->max_positions && (int64_t)pos >= s->max_positions)
            return nk_fail(err, NK_E_INVALID, "bad_batch",
                           "row %d is at position %d; this model knows positions 0 to %lld", i, pos,
                           (long long)s->max_positions - 1);
        if (s->next_pos[seq] >= 0) {
            if (pos != s->next_pos[seq])
                return nk_fail(err, NK_E_INVALID, "bad_batch",
                               "row %d of sequence %d is at position %d, not %d", i, seq, pos,
                               s->next_pos[seq]);
            s->next_pos[seq]++;
            continue;
        }
        length = nk_stage_seq_length(s, seq);
        if (pos < 0)
            return nk_fail(err, NK_E_INVALID, "bad_batch", "row %d is at position %d", i, pos);
        if (pos > length)
            return nk_fail(err, NK_E_OUT_OF_RANGE, "gap",
                           "sequence %d holds %d tokens; position %d is past its end", seq, length,
                           pos);
        s->first_pos[seq] = pos;
        s->next_pos[seq] = pos + 1;
        n_seq++;
    }
    if (n_seq > 1 && s->info.one_sequence_per_run)
        return nk_fail(err, NK_E_INVALID, "bad_batch",
                       "rows of %d sequences; this stage (%s) takes one sequence per run", n_seq,
                       s->info.architecture);
    return n_seq > 1 && s->info.equal_rows_per_run ? check_equal_rows(s, b, n_seq, err) : 0;
}

/* The first element that is NaN or infinite; n: there is none. */
static size_t first_not_finite(const float *rows, size_t n)
{
    uint32_t bits;
    unsigned bad = 0;
    size_t i = 0;

    for (size_t k = 0; k < n; k++) {
        memcpy(&bits, &rows[k], sizeof bits);
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    if (!bad)
        return n;
    while (i < n && isfinite(rows[i]))
        i++;
    return i;
}

static int check_finite(const nk_stage *s, const struct nk_stage_batch *b, struct nk_error *err)
{
    size_t width = (size_t)s->info.n_embd, n = (size_t)b->n_tokens * width;
    size_t i = first_not_finite(b->rows, n);

    if (i == n)
        return 0;
    return nk_fail(err, NK_E_INVALID, "not_finite",
                   "element %zu of row %zu is %f: whoever computed it should look at its slice's "
                   "file first (nakshatra inspect)",
                   i % width, i / width, (double)b->rows[i]);
}

/* What clients are told of it: the folders are nobody else's business. */
static const char *file_name(const nk_stage *s)
{
    const char *slash = strrchr(s->path, '/');

    return slash ? slash + 1 : s->path;
}

/* Here the next stage would refuse them, and be the one that is named. */
static int check_computed(const nk_stage *s, int n_rows, struct nk_error *err)
{
    size_t width = (size_t)s->info.n_embd, n = (size_t)n_rows * width, i;

    if (s->info.is_last) /* logits: the sampler looks at them */
        return 0;
    i = first_not_finite(s->out_rows, n);
    if (i == n)
        return 0;
    return nk_fail(err, NK_E_INTERNAL, "not_finite",
                   "layers %d-%d gave %f as element %zu of row %zu: the slice's file is the first "
                   "thing to look at (nakshatra inspect %s)",
                   s->info.layer_begin, s->info.layer_end, (double)s->out_rows[i], i % width,
                   i / width, file_name(s));
}

static int check_file(const nk_stage *s, const char *path, struct nk_error *err)
{
    if (!nk_file_watch_written(&s->file))
        return 0;
    return nk_fail(err, NK_E_DATA_LOSS, "slice_changed",
                   "%s was written to while it was in use, and the weights are read from it: a "
                   "file that is served is replaced by a new one (mv), or read into memory before "
                   "(--no-mmap)",
                   path);
}

int nk_stage_file_check(const nk_stage *s, struct nk_error *err)
{
    return check_file(s, s->path, err);
}

/* Can sequence seq be cut back to pos (0 <= pos <= its length)? */
static int check_rollback(const nk_stage *s, int seq, int pos, struct nk_error *err)
{
    int length = nk_stage_seq_length(s, seq), kept;

    if (pos == 0 || pos == length)
        return 0;
    if (!s->info.can_rollback)
        return nk_fail(err, NK_E_OUT_OF_RANGE, "no_rollback",
                       "sequence %d holds %d tokens and cannot go back to %d: a %s model has a "
                       "state, not a cache; it can go on or start at 0",
                       seq, length, pos, s->info.architecture);
    /* Cells behind the sliding window may have been taken for others when the cache ran full. */
    kept = llama_memory_seq_pos_min(llama_get_memory(s->ctx), seq);
    if (s->n_swa > 0 && kept > (pos > s->n_swa ? pos - s->n_swa : 0))
        return nk_fail(
            err, NK_E_OUT_OF_RANGE, "no_rollback",
            "sequence %d cannot go back to %d: its sliding window is only kept from position %d on",
            seq, pos, kept);
    return 0;
}

/* Forgets seq from pos on; a state that cannot be cut is forgotten whole. So a step's position is
 * what counts (docs/internals/llama.md, "Positions"). */
static void forget(nk_stage *s, int seq, int pos)
{
    if (!llama_memory_seq_rm(llama_get_memory(s->ctx), seq, pos, -1))
        llama_memory_seq_rm(llama_get_memory(s->ctx), seq, -1, -1);
}

static int decode(nk_stage *s, const struct nk_stage_batch *b, struct nk_error *err)
{
    struct llama_batch batch = { 0 };
    int answer, state;

    for (int i = 0; i < b->n_tokens; i++) /* libllama's batch is not const, but only read */
        s->seq_ptrs[i] = (llama_seq_id *)&b->seq[i];
    s->in_rows = b->rows;
    if (s->embd) {
        for (int i = 0; i < b->n_tokens; i++)
            nk_embd_row(s->embd, b->ids[i], s->embd_rows + (size_t)i * s->embd_width);
        s->in_rows = s->embd_rows;
    }
    batch.n_tokens = b->n_tokens;
    if (s->enter == NK__ENTER_EMBD)
        batch.embd = (float *)s->in_rows;
    else
        batch.token = s->real_ids ? (llama_token *)b->ids : s->zero_ids;
    batch.pos = (llama_pos *)b->pos;
    batch.n_seq_id = s->one_seq;
    batch.seq_id = s->seq_ptrs;
    /* Where rows leave, all are outputs: else the last layer keeps only the wanted ones. */
    batch.logits =
        s->info.is_last && b->want && !s->info.pooling ? (int8_t *)b->want : s->all_wanted;
    s->n_tokens = b->n_tokens;
    s->n_in_seen = s->n_out_seen = 0;
    s->in_next = s->out_next = s->in_done = s->out_done = false;
    /* To libllama two rows are prefill; here decode rows of several sessions are decode. */
    llama_set_n_threads(s->ctx, s->info.n_threads,
                        b->n_tokens > s->info.n_seq_max ? s->n_threads_batch : s->info.n_threads);
    nk__llama_error_reset();
    atomic_store(&s->state, RUNNING);
    answer = llama_decode(s->ctx, batch);
    if (!answer)
        llama_synchronize(s->ctx);
    state = atomic_exchange(&s->state, IDLE);
    if (state == CANCELLED)
        return nk_fail(err, NK_E_CANCELLED, "cancelled", "the run was cancelled");
    if (answer == 1)
        return nk_fail(err, NK_E_EXHAUSTED, "kv_full",
                       "no room for %d more tokens in a KV cache of %d", b->n_tokens,
                       s->info.n_ctx);
    if (answer)
        return nk_fail(err, NK_E_INTERNAL, "decode_failed", "llama_decode answers %d%s%s", answer,
                       *nk__llama_error() ? ": " : "", nk__llama_error());
    if (s->in.found != s->in_done || s->out.found != s->out_done)
        return nk_fail(err, NK_E_INTERNAL, "decode_failed",
                       "llama.cpp computed a batch of %d rows in another way than the one that was "
                       "seen at load",
                       b->n_tokens);
    return 0;
}

int nk_stage_run(nk_stage *s, const struct nk_stage_batch *b, struct nk_error *err)
{
    int rc = check_batch(s, b, err);

    for (int seq = 0; !rc && seq < s->info.n_seq_max; seq++)
        if (s->first_pos[seq] >= 0)
            rc = check_rollback(s, seq, s->first_pos[seq], err);
    if (!rc && !s->info.is_first)
        rc = check_finite(s, b, err);
    if (rc)
        return rc;
    for (int seq = 0; seq < s->info.n_seq_max; seq++)
        if (s->first_pos[seq] >= 0 && s->first_pos[seq] < nk_stage_seq_length(s, seq))
            forget(s, seq, s->first_pos[seq]);
    rc = decode(s, b, err);
    if (!rc)
        rc = check_file(s, file_name(s), err);
    if (!rc)
        rc = check_computed(s, b->n_tokens, err);
    if (rc)
        for (int seq = 0; seq < s->info.n_seq_max; seq++)
            if (s->first_pos[seq] >= 0 && nk_stage_seq_length(s, seq) != s->first_pos[seq])
                forget(s, seq, s->first_pos[seq]);
    return rc;
}

void nk_stage_cancel(nk_stage *s)
{
    int expected = RUNNING;

    atomic_compare_exchange_strong(&s->state, &expected, CANCELLED);
}

const float *nk_stage_rows(const nk_stage *s)
{
    return s->out_rows;
}

const float *nk_stage_pooled(nk_stage *s, int seq)
{
    return s->info.is_last && s->info.pooling ? llama_get_embeddings_seq(s->ctx, seq) : NULL;
}

float *nk_stage_logits(nk_stage *s, int token_idx)
{
    return s->info.is_last && !s->info.pooling ? llama_get_logits_ith(s->ctx, token_idx) : NULL;
}

/* ---- sequences ---- */

static int check_seq(const nk_stage *s, int seq, struct nk_error *err)
{
    if (seq >= 0 && seq < s->info.n_seq_max)
        return 0;
    return nk_fail(err, NK_E_INVALID, "bad_batch", "sequence %d; there are 0 to %d", seq,
                   s->info.n_seq_max - 1);
}

int nk_stage_seq_length(const nk_stage *s, int seq)
{
    return seq < 0 || seq >= s->info.n_seq_max
               ? 0
               : llama_memory_seq_pos_max(llama_get_memory(s->ctx), seq) + 1;
}

int nk_stage_seq_copy(nk_stage *s, int seq_src, int seq_dst, struct nk_error *err)
{
    int rc = check_seq(s, seq_src, err);

    if (!rc)
        rc = check_seq(s, seq_dst, err);
    if (rc || seq_src == seq_dst)
        return rc;
    nk_stage_seq_clear(s, seq_dst);
    if (nk_stage_seq_length(s, seq_src) > 0)
        llama_memory_seq_cp(llama_get_memory(s->ctx), seq_src, seq_dst, -1, -1);
    return 0;
}

void nk_stage_seq_clear(nk_stage *s, int seq)
{
    if (!check_seq(s, seq, NULL))
        llama_memory_seq_rm(llama_get_memory(s->ctx), seq, -1, -1);
}

/* ---- states ---- */

size_t nk_stage_state_size(nk_stage *s, int seq)
{
    if (nk_stage_seq_length(s, seq) == 0)
        return 0;
    return llama_state_seq_get_size_ext(s->ctx, seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
}

int nk_stage_state_save(nk_stage *s, int seq, void *out, size_t size, struct nk_error *err)
{
    size_t n =
        llama_state_seq_get_data_ext(s->ctx, out, size, seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);

    if (n == size)
        return 0;
    return nk_fail(err, NK_E_INTERNAL, "no_state",
                   "libllama gives %zu bytes of sequence %d's state, not %zu", n, seq, size);
}

int nk_stage_state_restore(nk_stage *s, int seq, int length, const void *data, size_t size,
                           struct nk_error *err)
{
    size_t n =
        llama_state_seq_set_data_ext(s->ctx, data, size, seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);

    if (n == size && llama_memory_seq_rm(llama_get_memory(s->ctx), seq, length, -1) &&
        nk_stage_seq_length(s, seq) == length)
        return 0;
    nk_stage_seq_clear(s, seq);
    return nk_fail(err, NK_E_INTERNAL, "no_state",
                   "sequence %d cannot go back to %d tokens: libllama takes %zu bytes of %zu", seq,
                   length, n, size);
}
