#include "worker/schedule.h"

#include <stddef.h>

enum { CPU_ROWS_SMALL = 4, CPU_ROWS_LARGE = 16, CPU_ROWS_MAX = 63 }; /* see group_size_for_cpu */

typedef struct nk_schedule schedule;
typedef struct nk_schedule_job job;

void nk__schedule_init(schedule *s, const struct nk_schedule_opts *opts)
{
    *s = (schedule){ .opts = *opts, .next_group = opts->group ? opts->group : 1 };
    TAILQ_INIT(&s->control);
    TAILQ_INIT(&s->decode);
    TAILQ_INIT(&s->prefill);
}

/* ---- groups in flight (first stage) ---- */

void nk__schedule_leave_group(schedule *s, struct nk_schedule_lane *lane)
{
    if (!lane->group)
        return;
    for (int i = 0; i < s->n_groups; i++) {
        if (s->groups[i].id != lane->group)
            continue;
        if (--s->groups[i].n_outstanding == 0)
            s->groups[i] = s->groups[--s->n_groups];
        break;
    }
    lane->group = 0;
}

void nk__schedule_set_decoding(schedule *s, int n_sessions, int n_at_once)
{
    s->n_decoding = n_sessions;
    s->n_at_once = n_at_once;
}

/* ---- into the queues ---- */

/* Steps of one session are run in their order. So it has one row at most among the decode rows,
 * whose order depends on groups, and only when nothing else of it waits (the last chunk of a prompt
 * may be a single row); what comes behind goes among the chunks, which are run in their order, and
 * not while a row of the same session waits (see pick). */
static void add_step(schedule *s, job *j)
{
    struct nk_schedule_lane *lane = j->lane;

    if (nk__schedule_is_decode(j) && !lane->n_prefill_queued && !lane->n_decode_queued) {
        TAILQ_INSERT_TAIL(&s->decode, j, link);
        lane->n_decode_queued++;
    } else {
        TAILQ_INSERT_TAIL(&s->prefill, j, link);
        lane->n_prefill_queued++;
    }
    /* In one go with queueing the next row: a group that is complete again finds all its rows
     * ready. */
    nk__schedule_leave_group(s, lane);
}

void nk__schedule_add(schedule *s, job *j, uint64_t now)
{
    j->queued_ns = now;
    s->n_jobs++;
    if (j->lane)
        add_step(s, j);
    else
        TAILQ_INSERT_TAIL(&s->control, j, link);
}

/* ---- out of them ---- */

static job *take_control(schedule *s, job *j)
{
    TAILQ_REMOVE(&s->control, j, link);
    s->n_jobs--;
    return j;
}

static job *take_decode(schedule *s, job *j)
{
    TAILQ_REMOVE(&s->decode, j, link);
    j->lane->n_decode_queued--;
    s->n_jobs--;
    return j;
}

static job *take_prefill(schedule *s, job *j)
{
    TAILQ_REMOVE(&s->prefill, j, link);
    j->lane->n_prefill_queued--;
    s->n_jobs--;
    return j;
}

void nk__schedule_remove(schedule *s, struct nk_schedule_lane *lane, struct nk_schedule_list *out)
{
    for (job *j = TAILQ_FIRST(&s->decode), *next; j && lane->n_decode_queued; j = next) {
        next = TAILQ_NEXT(j, link);
        if (j->lane != lane)
            continue;
        take_decode(s, j);
        TAILQ_INSERT_TAIL(out, j, link);
    }
    for (job *j = TAILQ_FIRST(&s->prefill), *next; j && lane->n_prefill_queued; j = next) {
        next = TAILQ_NEXT(j, link);
        if (j->lane != lane)
            continue;
        take_prefill(s, j);
        TAILQ_INSERT_TAIL(out, j, link);
    }
    nk__schedule_leave_group(s, lane);
}

job *nk__schedule_pop(schedule *s)
{
    job *j;

    if ((j = TAILQ_FIRST(&s->control)))
        return take_control(s, j);
    if ((j = TAILQ_FIRST(&s->decode)))
        return take_decode(s, j);
    return (j = TAILQ_FIRST(&s->prefill)) ? take_prefill(s, j) : NULL;
}

/* ---- choosing what to run ---- */

/* Moves up to max mergeable decode rows, in their order, to run: all, or those of one group. */
static int take_merged(schedule *s, int max, const uint64_t *group, job **run)
{
    int n = 0;

    for (job *j = TAILQ_FIRST(&s->decode), *next; j && n < max; j = next) {
        next = TAILQ_NEXT(j, link);
        if (!j->solo && (!group || j->group == *group))
            run[n++] = take_decode(s, j);
    }
    return n;
}

static int take_alone(schedule *s, job *j, job **run)
{
    run[0] = take_decode(s, j);
    return 1;
}

/* Between four and 16 rows a run on a CPU costs no less per row than with four, and with eight
 * more; from 16 on it costs much less. Measured (docs/performance.md), as if ggml's kernels of
 * repacked weights took 16 rows at once and fewer by fours. From 64 on attention is slow: as if it
 * then took all sequences' KV for each row. Larger groups are made of equal parts. */
static int group_size_for_cpu(int size)
{
    int n_parts = (size + CPU_ROWS_MAX - 1) / CPU_ROWS_MAX;

    if (size > CPU_ROWS_SMALL && size < CPU_ROWS_LARGE)
        return CPU_ROWS_SMALL;
    return n_parts > 1 ? (size + n_parts - 1) / n_parts : size;
}

static int n_at_once(const schedule *s)
{
    if (s->n_at_once < 1)
        return 1;
    return s->n_at_once < NK_GROUPS_MAX ? s->n_at_once : NK_GROUPS_MAX;
}

static int group_size(const schedule *s)
{
    int size = (s->n_decoding + n_at_once(s) - 1) / n_at_once(s);

    if (size < 1)
        size = 1;
    if (size > s->opts.n_batch)
        size = s->opts.n_batch;
    return s->opts.on_cpu ? group_size_for_cpu(size) : size;
}

static int form_group(schedule *s, job **run)
{
    uint64_t id = s->next_group;
    int n = take_merged(s, group_size(s), NULL, run);

    s->groups[s->n_groups++] = (struct nk_schedule_group){ id, n };
    for (int i = 0; i < n; i++) {
        run[i]->group = id;
        run[i]->group_size = (uint32_t)n;
        run[i]->lane->group = id;
    }
    if (!++s->next_group) /* which means "none" */
        s->next_group = 1;
    return n;
}

/* The one that has waited longest and may run. */
static int pick_decode_first_stage(schedule *s, job **run)
{
    bool may_form = s->n_groups < n_at_once(s);
    job *j;

    TAILQ_FOREACH(j, &s->decode, link)
    {
        if (j->solo)
            return take_alone(s, j, run);
        if (may_form)
            return form_group(s, run);
    }
    return 0;
}

static uint32_t count_of_group(const schedule *s, uint64_t group)
{
    uint32_t n = 0;
    job *j;

    TAILQ_FOREACH(j, &s->decode, link)
    {
        n += !j->solo && j->group == group;
    }
    return n;
}

static int pick_decode_later_stage(schedule *s, uint64_t now, job **run, uint64_t *wait_until)
{
    job *j;

    TAILQ_FOREACH(j, &s->decode, link)
    {
        uint64_t until = j->queued_ns + NK_GROUP_WAIT_MS * 1000000ull, group = j->group;

        if (j->solo)
            return take_alone(s, j, run);
        if (group && j->group_size > 1 && now < until && count_of_group(s, group) < j->group_size) {
            if (!*wait_until || until < *wait_until)
                *wait_until = until;
            continue;
        }
        return take_merged(s, s->opts.n_batch, &group, run);
    }
    return 0;
}

int nk__schedule_pick(schedule *s, uint64_t now, job **run, uint64_t *wait_until)
{
    job *chunk = TAILQ_FIRST(&s->prefill);
    int n = 0;

    *wait_until = 0;
    if (!TAILQ_EMPTY(&s->control)) {
        run[0] = take_control(s, TAILQ_FIRST(&s->control));
        return 1;
    }
    if (chunk && chunk->lane->n_decode_queued)
        chunk = NULL;
    if (!(s->prefill_next && chunk))
        n = s->opts.is_first ? pick_decode_first_stage(s, run)
                             : pick_decode_later_stage(s, now, run, wait_until);
    s->prefill_next = n > 0;
    if (n || !chunk)
        return n;
    run[0] = take_prefill(s, chunk);
    return 1;
}
