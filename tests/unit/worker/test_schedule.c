/* The schedule keeps what its header promises: single cases, and thousands of runs over sessions
 * that come, wait, answer late and die. A run has a seed; one that fails prints it, and
 * NK_TEST_SEED=that does the same run again, first. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "unit/seed.h"
#include "worker/schedule.h"

enum { MS = 1000000, RUNS = 2000, BATCH_MAX = 512 };
#define WAIT_NS ((uint64_t)NK_GROUP_WAIT_MS * MS)

typedef struct nk_schedule schedule;
typedef struct nk_schedule_job job;
typedef struct nk_schedule_lane lane;

/* ---- single cases ---- */

static job *run[BATCH_MAX];
static uint64_t wait_until;

static void start_first_stage(schedule *s, int n_sessions, int n_at_once)
{
    struct nk_schedule_opts opts = { .is_first = true, .n_batch = BATCH_MAX, .group = 100 };

    nk__schedule_init(s, &opts);
    nk__schedule_set_decoding(s, n_sessions, n_at_once);
}

static void start_later_stage(schedule *s)
{
    struct nk_schedule_opts opts = { .n_batch = BATCH_MAX };

    nk__schedule_init(s, &opts);
}

static job row(lane *l)
{
    return (job){ .lane = l, .n = 1, .sample = true };
}

static job chunk(lane *l)
{
    return (job){ .lane = l, .n = 64 };
}

static job grouped(lane *l, uint64_t group, uint32_t size)
{
    return (job){ .lane = l, .n = 1, .sample = true, .group = group, .group_size = size };
}

/* What pick answers at `now` is exactly these jobs, in this order (NULL ends them). */
static void picks(schedule *s, uint64_t now, ...)
{
    va_list args;
    int n = nk__schedule_pick(s, now, run, &wait_until), i = 0;
    const job *want;

    va_start(args, now);
    while ((want = va_arg(args, const job *))) {
        assert_true(i < n);
        assert_ptr_equal(run[i++], want);
    }
    va_end(args);
    assert_int_equal(n, i);
}

static void add(schedule *s, job *j)
{
    nk__schedule_add(s, j, 0);
}

static void test_schedule__control_goes_first_in_its_order(void **state)
{
    schedule s;
    lane a = { 0 };
    job r = row(&a), c1 = { 0 }, c2 = { 0 };

    (void)state;
    start_first_stage(&s, 1, 1);
    add(&s, &r);
    add(&s, &c1);
    add(&s, &c2);
    picks(&s, 0, &c1, NULL);
    picks(&s, 0, &c2, NULL);
    picks(&s, 0, &r, NULL);
    picks(&s, 0, NULL);
    assert_int_equal(s.n_jobs, 0);
}

static void test_schedule__as_many_groups_as_stages_and_no_more(void **state)
{
    schedule s;
    lane l[5] = { 0 };
    job r[5];

    (void)state;
    start_first_stage(&s, 4, 2);
    for (int i = 0; i < 5; i++) {
        r[i] = row(&l[i]);
        add(&s, &r[i]);
    }
    picks(&s, 0, &r[0], &r[1], NULL);
    picks(&s, 0, &r[2], &r[3], NULL);
    assert_int_equal(r[0].group, r[1].group);
    assert_int_equal(r[0].group_size, 2);
    assert_true(r[0].group != r[2].group);
    picks(&s, 0, NULL); /* the fifth waits: two groups are in flight */
    assert_int_equal(wait_until, 0);
    nk__schedule_leave_group(&s, &l[0]);
    picks(&s, 0, NULL); /* half of one is still under way */
    nk__schedule_leave_group(&s, &l[1]);
    picks(&s, 0, &r[4], NULL);
}

static void test_schedule__a_group_that_comes_back_leaves_again_together(void **state)
{
    schedule s;
    lane l[4] = { 0 };
    job r[4];

    (void)state;
    start_first_stage(&s, 4, 2);
    for (int i = 0; i < 4; i++) {
        r[i] = row(&l[i]);
        add(&s, &r[i]);
    }
    picks(&s, 0, &r[0], &r[1], NULL);
    picks(&s, 0, &r[2], &r[3], NULL);
    add(&s, &r[1]);
    picks(&s, 0, NULL);
    add(&s, &r[0]);
    picks(&s, 0, &r[1], &r[0], NULL);
}

static void test_schedule__who_ends_leaves_its_group_and_takes_its_jobs(void **state)
{
    struct nk_schedule_list out = TAILQ_HEAD_INITIALIZER(out);
    schedule s;
    lane l[3] = { 0 };
    job r[3], more = chunk(&l[2]);

    (void)state;
    start_first_stage(&s, 2, 1);
    for (int i = 0; i < 3; i++) {
        r[i] = row(&l[i]);
        add(&s, &r[i]);
    }
    add(&s, &more);
    picks(&s, 0, &r[0], &r[1], NULL);
    nk__schedule_remove(&s, &l[2], &out);
    assert_ptr_equal(TAILQ_FIRST(&out), &r[2]);
    assert_ptr_equal(TAILQ_NEXT(&r[2], link), &more);
    assert_null(TAILQ_NEXT(&more, link));
    assert_int_equal(s.n_jobs, 0);
    add(&s, &r[0]);
    picks(&s, 0, NULL); /* one row of the group is still under way */
    nk__schedule_remove(&s, &l[1], &out);
    picks(&s, 0, &r[0], NULL);
    nk__schedule_remove(&s, &l[1], &out); /* harmless */
    assert_int_equal(s.n_groups, 1);
}

static void test_schedule__sizes(void **state)
{
    static const struct {
        int n_sessions, n_at_once;
        bool on_cpu;
        int n_batch, size;
    } cases[] = {
        { 1, 1, false, 512, 1 },   { 0, 1, false, 512, 1 },     { 4, 2, false, 512, 2 },
        { 5, 2, false, 512, 3 },   { 5, 0, false, 512, 5 },     { 10, 2, false, 512, 5 },
        { 64, 2, false, 8, 8 },    { 200, 1, false, 512, 200 }, { 8, 2, true, 512, 4 },
        { 3, 1, true, 512, 3 },    { 10, 2, true, 512, 4 },     { 30, 2, true, 512, 4 },
        { 32, 2, true, 512, 16 },  { 126, 2, true, 512, 63 },   { 128, 2, true, 512, 32 },
        { 127, 1, true, 512, 43 }, { 128, 1, true, 12, 4 },
    };

    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct nk_schedule_opts opts = { .is_first = true,
                                         .on_cpu = cases[c].on_cpu,
                                         .n_batch = cases[c].n_batch };
        static lane l[256];
        static job r[256];
        schedule s;

        memset(l, 0, sizeof l);
        nk__schedule_init(&s, &opts);
        nk__schedule_set_decoding(&s, cases[c].n_sessions, cases[c].n_at_once);
        for (int i = 0; i < 256; i++) {
            r[i] = row(&l[i]);
            add(&s, &r[i]);
        }
        assert_int_equal(nk__schedule_pick(&s, 0, run, &wait_until), cases[c].size);
    }
}

static void test_schedule__decode_and_prefill_take_turns(void **state)
{
    schedule s;
    lane l[2] = { 0 }, p = { 0 };
    job r[2], c[3];

    (void)state;
    start_first_stage(&s, 2, 1);
    for (int i = 0; i < 2; i++) {
        r[i] = row(&l[i]);
        add(&s, &r[i]);
    }
    for (int i = 0; i < 3; i++) {
        c[i] = chunk(&p);
        add(&s, &c[i]);
    }
    for (int i = 0; i < 3; i++) {
        picks(&s, 0, &r[0], &r[1], NULL);
        add(&s, &r[0]);
        add(&s, &r[1]);
        picks(&s, 0, &c[i], NULL);
    }
    picks(&s, 0, &r[0], &r[1], NULL);
    picks(&s, 0, NULL);
}

static void test_schedule__the_last_chunk_does_not_overtake_those_before_it(void **state)
{
    schedule s;
    lane a = { 0 };
    job c = chunk(&a), last = row(&a), next = row(&a);

    (void)state;
    start_later_stage(&s);
    add(&s, &c);
    add(&s, &last);
    add(&s, &next);
    picks(&s, 0, &c, NULL);
    picks(&s, 0, &last, NULL);
    picks(&s, 0, &next, NULL);
}

static void
test_schedule__a_row_that_waits_for_its_group_is_not_overtaken_by_its_session(void **state)
{
    schedule s;
    lane a = { 0 }, b = { 0 };
    job r1 = grouped(&a, 7, 2), r2 = row(&a), c = chunk(&a), other = row(&b);

    (void)state;
    start_later_stage(&s);
    add(&s, &r1);
    add(&s, &r2);
    add(&s, &c);
    add(&s, &other);
    picks(&s, 0, &other, NULL);
    picks(&s, 0, NULL);
    picks(&s, WAIT_NS, &r1, NULL);
    picks(&s, WAIT_NS, &r2, NULL);
    picks(&s, WAIT_NS, &c, NULL);
}

static void test_schedule__a_group_is_run_as_it_was_formed(void **state)
{
    schedule s;
    lane l[5] = { 0 };
    job r[5] = { grouped(&l[0], 7, 2), grouped(&l[1], 8, 2), grouped(&l[2], 9, 1),
                 grouped(&l[3], 8, 2), grouped(&l[4], 7, 2) };

    (void)state;
    start_later_stage(&s);
    for (int i = 0; i < 4; i++)
        add(&s, &r[i]);
    picks(&s, 0, &r[1], &r[3], NULL); /* which is complete first */
    picks(&s, 0, &r[2], NULL);
    picks(&s, 0, NULL);
    add(&s, &r[4]);
    picks(&s, 0, &r[0], &r[4], NULL);
}

static void test_schedule__a_group_waits_for_its_rows_so_long_and_no_longer(void **state)
{
    schedule s;
    lane a = { 0 }, b = { 0 }, c = { 0 };
    job r1 = grouped(&a, 7, 3), r2 = grouped(&b, 7, 3), r3 = grouped(&c, 8, 2);

    (void)state;
    start_later_stage(&s);
    nk__schedule_add(&s, &r1, 1000);
    nk__schedule_add(&s, &r3, 3000);
    nk__schedule_add(&s, &r2, 2000 + WAIT_NS / 2);
    picks(&s, 1000 + WAIT_NS / 2, NULL);
    assert_int_equal(wait_until, 1000 + WAIT_NS);
    picks(&s, 1000 + WAIT_NS - 1, NULL);
    assert_int_equal(wait_until, 1000 + WAIT_NS);
    picks(&s, 1000 + WAIT_NS, &r1, &r2, NULL);
    picks(&s, 3000 + WAIT_NS - 1, NULL);
    assert_int_equal(wait_until, 3000 + WAIT_NS);
    picks(&s, 3000 + WAIT_NS, &r3, NULL);
}

static void test_schedule__rows_of_no_group_are_merged_as_they_come(void **state)
{
    schedule s;
    lane l[3] = { 0 };
    job r[3];

    (void)state;
    start_later_stage(&s);
    for (int i = 0; i < 3; i++) {
        r[i] = row(&l[i]);
        add(&s, &r[i]);
    }
    picks(&s, 0, &r[0], &r[1], &r[2], NULL);
}

static void test_schedule__deterministic_sessions_run_alone(void **state)
{
    (void)state;
    for (int first = 0; first < 2; first++) {
        schedule s;
        lane l[4] = { 0 };
        job r[4];

        if (first)
            start_first_stage(&s, 4, 1);
        else
            start_later_stage(&s);
        for (int i = 0; i < 4; i++) {
            r[i] = row(&l[i]);
            r[i].solo = i % 2;
            add(&s, &r[i]);
        }
        picks(&s, 0, &r[0], &r[2], NULL);
        picks(&s, 0, &r[1], NULL); /* also while the only group is in flight */
        picks(&s, 0, &r[3], NULL);
        assert_int_equal(l[1].group, 0);
        add(&s, &r[1]);
        picks(&s, 0, &r[1], NULL);
    }
}

static void test_schedule__deterministic_sessions_do_not_starve_others(void **state)
{
    schedule s;
    lane l[3] = { 0 };
    job r[3];

    (void)state;
    start_first_stage(&s, 3, 1);
    for (int i = 0; i < 3; i++) {
        r[i] = row(&l[i]);
        r[i].solo = i < 2;
        add(&s, &r[i]);
    }
    picks(&s, 0, &r[0], NULL);
    add(&s, &r[0]);
    picks(&s, 0, &r[1], NULL);
    add(&s, &r[1]);
    picks(&s, 0, &r[2], NULL);
}

static void test_schedule__no_group_has_the_id_that_means_none(void **state)
{
    struct nk_schedule_opts opts = { .is_first = true, .n_batch = 1, .group = UINT64_MAX };
    schedule s;
    lane l[2] = { 0 };
    job r[2] = { row(&l[0]), row(&l[1]) };

    (void)state;
    nk__schedule_init(&s, &opts);
    nk__schedule_set_decoding(&s, 2, 2);
    add(&s, &r[0]);
    add(&s, &r[1]);
    picks(&s, 0, &r[0], NULL);
    picks(&s, 0, &r[1], NULL);
    assert_true(r[0].group == UINT64_MAX && r[1].group == 1);
}

static void test_schedule__everything_can_be_taken_out_at_the_end(void **state)
{
    schedule s;
    lane a = { 0 };
    job r = row(&a), c = chunk(&a), control = { 0 };

    (void)state;
    start_first_stage(&s, 1, 1);
    add(&s, &r);
    add(&s, &c);
    add(&s, &control);
    for (int i = 0; i < 3; i++)
        assert_non_null(nk__schedule_pop(&s));
    assert_null(nk__schedule_pop(&s));
    assert_int_equal(s.n_jobs, 0);
}

/* ---- seeded runs ---- */

/* A stage computes, answers come back after a while, sessions begin and end. The test keeps books
 * of its own about what waits (in the order of arrival) and what is in flight, and holds every
 * choice against them. */

enum { SESSIONS_MAX = 40, STEPS_OUT_MAX = 4, WAITING_MAX = SESSIONS_MAX * STEPS_OUT_MAX };

struct sim_job {
    job sched; /* first */
    struct sim_session *session;
    uint64_t step;
    bool is_out;      /* the schedule or the route has it */
    bool among_rows;  /* waits among the decode rows; else among the chunks */
    int n_passed;     /* choices that could have been it */
    uint64_t back_ns; /* its answer; 0: it is not run yet */
};

struct sim_session {
    lane lane;
    struct sim_job jobs[STEPS_OUT_MAX];
    bool alive, solo, decoding;
    int n_chunks, n_tokens; /* still to come */
    uint64_t last_step, run_step;
    uint64_t group; /* in flight, as the test counts */
};

struct sim {
    uint64_t seed, random, now, free_ns;
    struct nk_schedule_opts opts;
    schedule s;
    int n_at_once, n_decoding, n_sessions;
    struct sim_session sessions[SESSIONS_MAX];
    /* What waits, in the order of arrival. */
    struct sim_job *rows[WAITING_MAX], *chunks[WAITING_MAX];
    int n_rows, n_chunks;
    enum { NOTHING, ROWS, CHUNK } last;
    /* later stage: the sender's groups */
    uint64_t next_group;
    int n_runs, n_merged, n_cut;
};

static struct sim sim;

static void sim_failed(const char *what, int line)
{
    fail_msg("NK_TEST_SEED=%llu: line %d: %s", (unsigned long long)sim.seed, line, what);
}
#define SIM_ASSERT(cond) ((cond) ? (void)0 : sim_failed(#cond, __LINE__))

static uint64_t draw(uint64_t n)
{
    return seed_below(&sim.random, n);
}

static void forget(struct sim_job **list, int *n, const struct sim_job *j)
{
    int i = 0;

    while (i < *n && list[i] != j)
        i++;
    SIM_ASSERT(i < *n);
    memmove(list + i, list + i + 1, (size_t)(--*n - i) * sizeof *list);
}

static bool has_waiting(const struct sim_session *p, bool among_rows)
{
    for (int i = 0; i < STEPS_OUT_MAX; i++)
        if (p->jobs[i].is_out && !p->jobs[i].back_ns && p->jobs[i].among_rows == among_rows)
            return true;
    return false;
}

static void sim_add(struct sim_session *p, int n, bool sample, uint64_t group, uint32_t group_size)
{
    struct sim_job *j = p->jobs;

    while (j->is_out)
        j++;
    *j = (struct sim_job){ .sched = { .lane = &p->lane,
                                      .n = n,
                                      .sample = sample,
                                      .solo = p->solo,
                                      .group = group,
                                      .group_size = group_size },
                           .session = p,
                           .step = ++p->last_step,
                           .among_rows = n == 1 && sample && !has_waiting(p, true) &&
                                         !has_waiting(p, false) };
    j->is_out = true;
    if (j->among_rows)
        sim.rows[sim.n_rows++] = j;
    else
        sim.chunks[sim.n_chunks++] = j;
    p->group = 0;
    nk__schedule_add(&sim.s, &j->sched, sim.now);
}

static void set_decoding(struct sim_session *p, bool decoding)
{
    sim.n_decoding += decoding - p->decoding;
    p->decoding = decoding;
    nk__schedule_set_decoding(&sim.s, sim.n_decoding, sim.n_at_once);
}

static void sim_end(struct sim_session *p)
{
    struct nk_schedule_list out = TAILQ_HEAD_INITIALIZER(out);
    int n_waiting = 0;
    job *j;

    set_decoding(p, false);
    nk__schedule_remove(&sim.s, &p->lane, &out);
    TAILQ_FOREACH(j, &out, link)
    {
        struct sim_job *sj = (struct sim_job *)j;

        SIM_ASSERT(sj->session == p && !sj->back_ns);
        if (sj->among_rows)
            forget(sim.rows, &sim.n_rows, sj);
        else
            forget(sim.chunks, &sim.n_chunks, sj);
        sj->is_out = false;
        n_waiting++;
    }
    SIM_ASSERT(!has_waiting(p, true) && !has_waiting(p, false)); /* all of it came out */
    SIM_ASSERT(!p->lane.n_decode_queued && !p->lane.n_prefill_queued && !p->lane.group);
    for (int i = 0; i < STEPS_OUT_MAX; i++)
        p->jobs[i].is_out = false;
    p->group = 0;
    p->alive = false;
}

/* Groups in flight: ids that a session is still in. */
static int groups_in_flight(void)
{
    int n = 0;

    for (int i = 0; i < sim.n_sessions; i++) {
        bool seen = false;

        for (int k = 0; k < i; k++)
            seen |= sim.sessions[k].group == sim.sessions[i].group;
        n += sim.sessions[i].group && !seen;
    }
    return n;
}

/* How large a group may be, as the header says it. */
static int size_limit(void)
{
    int size = 1, parts = 1;

    while (size * sim.n_at_once < sim.n_decoding)
        size++;
    if (size > sim.opts.n_batch)
        size = sim.opts.n_batch;
    if (!sim.opts.on_cpu)
        return size;
    if (size > 4 && size < 16)
        return 4;
    while ((size + parts - 1) / parts >= 64)
        parts++;
    return (size + parts - 1) / parts;
}

/* The rows that should be run now: their number; want[] in order. */
static int rows_due(struct sim_job **want)
{
    bool may_form = groups_in_flight() < sim.n_at_once;
    int n = 0;

    for (int i = 0; i < sim.n_rows; i++) {
        struct sim_job *j = sim.rows[i];
        bool complete = true;

        if (j->sched.solo) {
            want[0] = j;
            return 1;
        }
        if (sim.opts.is_first) {
            if (!may_form)
                continue;
        } else if (j->sched.group && j->sched.group_size > 1) {
            uint32_t here = 0;

            for (int k = 0; k < sim.n_rows; k++)
                here += sim.rows[k]->sched.group == j->sched.group && !sim.rows[k]->sched.solo;
            complete = here >= j->sched.group_size || sim.now >= j->sched.queued_ns + WAIT_NS;
        }
        if (!complete)
            continue;
        for (int k = 0; k < sim.n_rows && n < (sim.opts.is_first ? size_limit() : sim.opts.n_batch);
             k++)
            if (!sim.rows[k]->sched.solo &&
                (sim.opts.is_first || sim.rows[k]->sched.group == j->sched.group))
                want[n++] = sim.rows[k];
        return n;
    }
    return 0;
}

static struct sim_job *chunk_due(void)
{
    return sim.n_chunks && !has_waiting(sim.chunks[0]->session, true) ? sim.chunks[0] : NULL;
}

/* When the first of the groups that wait is to be run as it is. */
static uint64_t first_wait(void)
{
    uint64_t first = 0;

    for (int i = 0; !sim.opts.is_first && i < sim.n_rows; i++) {
        uint64_t until = sim.rows[i]->sched.queued_ns + WAIT_NS;

        if (!first || until < first)
            first = until;
    }
    return first;
}

static void run_one(struct sim_job *j, uint64_t end_ns, uint64_t id, int n)
{
    struct sim_session *p = j->session;

    SIM_ASSERT(p->alive);
    SIM_ASSERT(j->step == p->run_step + 1); /* in order, and none left out */
    p->run_step = j->step;
    if (j->among_rows)
        forget(sim.rows, &sim.n_rows, j);
    else
        forget(sim.chunks, &sim.n_chunks, j);
    if (sim.opts.is_first && j->among_rows && !j->sched.solo) {
        SIM_ASSERT(id && j->sched.group == id && j->sched.group_size == (uint32_t)n);
        SIM_ASSERT(p->lane.group == id);
        p->group = id;
    }
    j->back_ns = end_ns + (draw(4) ? draw(8 * MS) : draw(100 * MS));
}

/* The engine's part: asks what to run, and holds it against what should be. */
static void sim_pick(void)
{
    struct sim_job *want[WAITING_MAX], *due_chunk = chunk_due();
    int n_want = rows_due(want), n = nk__schedule_pick(&sim.s, sim.now, run, &wait_until);
    bool is_chunk = n == 1 && !((struct sim_job *)run[0])->among_rows;
    int n_groups;

    if (!n) {
        /* As many groups in flight as may be, or nothing that waits. */
        SIM_ASSERT(!n_want && !due_chunk);
        SIM_ASSERT(wait_until == first_wait());
        sim.last = NOTHING;
        if (wait_until)
            sim.free_ns = wait_until;
        return;
    }
    if (is_chunk) {
        SIM_ASSERT((struct sim_job *)run[0] == due_chunk);
        SIM_ASSERT(!(sim.last == CHUNK && n_want)); /* it is the rows' turn */
    } else {
        SIM_ASSERT(n == n_want);
        SIM_ASSERT(!(sim.last == ROWS && due_chunk)); /* it is the chunk's turn */
        for (int i = 0; i < n; i++)
            SIM_ASSERT((struct sim_job *)run[i] == want[i]);
        SIM_ASSERT(n == 1 || !run[0]->solo);
    }
    sim.last = is_chunk ? CHUNK : ROWS;
    sim.n_runs++;
    sim.n_merged += n > 1;
    sim.n_cut += !sim.opts.is_first && run[0]->group && (uint32_t)n < run[0]->group_size;
    sim.free_ns = sim.now + 1 + draw(5 * MS);
    for (int i = 0; i < n; i++)
        run_one((struct sim_job *)run[i], sim.free_ns, is_chunk ? 0 : run[0]->group, n);
    n_groups = groups_in_flight();
    SIM_ASSERT(n_groups <= sim.n_at_once);
    SIM_ASSERT(sim.s.n_jobs == sim.n_rows + sim.n_chunks);
    /* Nobody starves: each choice takes the first of its queue that may run, so everybody moves
     * up. */
    for (int i = 0; i < sim.n_chunks; i++)
        SIM_ASSERT(++sim.chunks[i]->n_passed <= 4 * WAITING_MAX);
    for (int i = 0; i < sim.n_rows; i++)
        if (n_want && (sim.rows[i]->sched.solo || n_groups < sim.n_at_once))
            SIM_ASSERT(++sim.rows[i]->n_passed <= 2 * SESSIONS_MAX);
}

/* First stage: what a session does when an answer is back. */
static void next_step(struct sim_session *p)
{
    if (p->n_chunks > 0) {
        p->n_chunks--;
        if (p->n_chunks > 0)
            sim_add(p, 2 + (int)draw(63), false, 0, 0);
        else /* the last chunk asks for the first token, and may be one row */
            sim_add(p, 1 + (int)draw(3), true, 0, 0);
        return;
    }
    for (int i = 0; i < STEPS_OUT_MAX; i++)
        if (p->jobs[i].is_out) /* the other chunk under way */
            return;
    if (p->n_tokens-- > 0) {
        set_decoding(p, true);
        sim_add(p, 1, true, 0, 0);
    } else {
        sim_end(p);
    }
}

static void begin_session(struct sim_session *p)
{
    *p = (struct sim_session){
        .alive = true, .solo = draw(6) == 0, .n_chunks = 1 + (int)draw(6), .n_tokens = (int)draw(20)
    };
    next_step(p);
    if (p->n_chunks)
        next_step(p); /* two chunks under way */
}

static void answers(void)
{
    for (int i = 0; i < sim.n_sessions; i++)
        for (int k = 0; k < STEPS_OUT_MAX; k++) {
            struct sim_session *p = &sim.sessions[i];
            struct sim_job *j = &p->jobs[k];

            if (!p->alive || !j->is_out || !j->back_ns || j->back_ns > sim.now)
                continue;
            j->is_out = false;
            if (sim.opts.is_first)
                next_step(p);
        }
}

/* Later stage: the sender forms a group of sessions that have nothing under way; some of its rows
 * never come, some late. */
static void send_group(void)
{
    struct sim_session *members[SESSIONS_MAX];
    uint32_t n = 0, want = 1 + (uint32_t)draw(6);
    uint64_t id = draw(5) ? ++sim.next_group : 0;

    for (int i = 0; i < sim.n_sessions && n < want; i++) {
        struct sim_session *p = &sim.sessions[i];
        bool busy = false;

        for (int k = 0; k < STEPS_OUT_MAX; k++)
            busy |= p->jobs[k].is_out;
        if (p->alive && !busy && draw(2))
            members[n++] = p;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (draw(20) == 0) /* cancelled at the sender */
            continue;
        if (draw(4) == 0)
            sim.now += draw(3 * MS);
        sim_add(members[i], 1, true, id, id ? n : 0);
    }
}

/* Later stage: a chunk, or a client that has several steps under way. */
static void send_steps(void)
{
    struct sim_session *p = &sim.sessions[draw((uint64_t)sim.n_sessions)];
    int n = 1 + (int)draw(3);

    for (int k = 0; k < STEPS_OUT_MAX; k++)
        if (!p->alive || p->jobs[k].is_out)
            return;
    for (int i = 0; i < n; i++)
        if (draw(2))
            sim_add(p, 2 + (int)draw(63), draw(2), 0, 0);
        else
            sim_add(p, 1, true, draw(2) ? ++sim.next_group : 0, 1 + (uint32_t)draw(2));
}

static uint64_t next_event(void)
{
    uint64_t next = sim.free_ns;

    for (int i = 0; i < sim.n_sessions; i++)
        for (int k = 0; k < STEPS_OUT_MAX; k++) {
            const struct sim_job *j = &sim.sessions[i].jobs[k];

            if (j->is_out && j->back_ns > sim.now && (next <= sim.now || j->back_ns < next))
                next = j->back_ns;
        }
    return next;
}

static void sim_begin(uint64_t seed, bool is_first)
{
    static const int batches[] = { 2, 7, BATCH_MAX };

    sim = (struct sim){ .seed = seed, .random = seed, .now = 1000 };
    sim.opts = (struct nk_schedule_opts){ .is_first = is_first,
                                          .on_cpu = draw(2),
                                          .n_batch = batches[draw(3)],
                                          .group = draw(2) ? seed_next(&sim.random) : 0 };
    sim.n_at_once = 1 + (int)draw(4);
    sim.n_sessions = 1 + (int)draw(draw(2) ? 6 : SESSIONS_MAX);
    nk__schedule_init(&sim.s, &sim.opts);
    nk__schedule_set_decoding(&sim.s, 0, sim.n_at_once);
}

/* Until nothing is left to do; a session that waits for ever does not let it end. */
static void sim_finish(void)
{
    for (int i = 0; i < sim.n_sessions; i++)
        if (sim.sessions[i].alive && !sim.opts.is_first)
            for (int k = 0; k < STEPS_OUT_MAX; k++)
                SIM_ASSERT(!sim.sessions[i].jobs[k].is_out || sim.sessions[i].jobs[k].back_ns);
    SIM_ASSERT(sim.n_rows == 0 && sim.n_chunks == 0 && sim.s.n_jobs == 0);
    for (int i = 0; i < sim.n_sessions; i++)
        if (sim.sessions[i].alive)
            sim_end(&sim.sessions[i]);
    SIM_ASSERT(sim.s.n_groups == 0);
}

static void run_first_stage(uint64_t seed)
{
    int n_begun = 0, n_turns = 0;

    sim_begin(seed, true);
    for (;; SIM_ASSERT(++n_turns < 100000)) {
        uint64_t next;

        answers();
        for (int i = 0; i < sim.n_sessions; i++) {
            struct sim_session *p = &sim.sessions[i];

            if (!p->alive && n_begun < 2 * sim.n_sessions && draw(3) == 0) {
                n_begun++;
                begin_session(p);
            } else if (p->alive && draw(400) == 0) {
                sim_end(p);
            }
        }
        if (sim.now >= sim.free_ns)
            sim_pick();
        next = next_event();
        if (next > sim.now)
            sim.now = next;
        else if (n_begun < 2 * sim.n_sessions)
            sim.now++;
        else
            break;
    }
    sim_finish();
}

static void run_later_stage(uint64_t seed)
{
    int n_sent = 0, n_turns = 0;

    sim_begin(seed, false);
    for (int i = 0; i < sim.n_sessions; i++)
        sim.sessions[i] = (struct sim_session){ .alive = true, .solo = draw(6) == 0 };
    for (;; SIM_ASSERT(++n_turns < 100000)) {
        uint64_t next;

        answers();
        if (n_sent < 60) {
            n_sent++;
            if (draw(3))
                send_group();
            else
                send_steps();
        }
        for (int i = 0; i < sim.n_sessions; i++)
            if (sim.sessions[i].alive && draw(400) == 0)
                sim_end(&sim.sessions[i]);
        if (sim.now >= sim.free_ns)
            sim_pick();
        next = next_event();
        if (next > sim.now)
            sim.now = next;
        else if (n_sent < 60)
            sim.now++;
        else
            break;
    }
    sim_finish();
}

static void test_schedule__keeps_its_promises_on_the_first_stage(void **state)
{
    uint64_t seed = *(uint64_t *)*state;
    int n_runs = 0, n_merged = 0;

    for (int i = 0; i < RUNS; i++) {
        run_first_stage(seed + (uint64_t)i);
        n_runs += sim.n_runs;
        n_merged += sim.n_merged;
    }
    printf("first stage: %d choices, %d of several rows\n", n_runs, n_merged);
    assert_true(n_runs > 10 * RUNS && n_merged > RUNS);
}

static void test_schedule__keeps_its_promises_on_later_stages(void **state)
{
    uint64_t seed = *(uint64_t *)*state;
    int n_runs = 0, n_merged = 0, n_cut = 0;

    for (int i = 0; i < RUNS; i++) {
        run_later_stage(seed + (uint64_t)i);
        n_runs += sim.n_runs;
        n_merged += sim.n_merged;
        n_cut += sim.n_cut;
    }
    printf("later stages: %d choices, %d of several rows, %d groups with rows missing\n", n_runs,
           n_merged, n_cut);
    assert_true(n_runs > 10 * RUNS && n_merged > RUNS && n_cut > RUNS / 10);
}

int main(void)
{
    static uint64_t seed;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedule__control_goes_first_in_its_order),
        cmocka_unit_test(test_schedule__as_many_groups_as_stages_and_no_more),
        cmocka_unit_test(test_schedule__a_group_that_comes_back_leaves_again_together),
        cmocka_unit_test(test_schedule__who_ends_leaves_its_group_and_takes_its_jobs),
        cmocka_unit_test(test_schedule__sizes),
        cmocka_unit_test(test_schedule__decode_and_prefill_take_turns),
        cmocka_unit_test(test_schedule__the_last_chunk_does_not_overtake_those_before_it),
        cmocka_unit_test(
            test_schedule__a_row_that_waits_for_its_group_is_not_overtaken_by_its_session),
        cmocka_unit_test(test_schedule__a_group_is_run_as_it_was_formed),
        cmocka_unit_test(test_schedule__a_group_waits_for_its_rows_so_long_and_no_longer),
        cmocka_unit_test(test_schedule__rows_of_no_group_are_merged_as_they_come),
        cmocka_unit_test(test_schedule__deterministic_sessions_run_alone),
        cmocka_unit_test(test_schedule__deterministic_sessions_do_not_starve_others),
        cmocka_unit_test(test_schedule__no_group_has_the_id_that_means_none),
        cmocka_unit_test(test_schedule__everything_can_be_taken_out_at_the_end),
        cmocka_unit_test_prestate(test_schedule__keeps_its_promises_on_the_first_stage, &seed),
        cmocka_unit_test_prestate(test_schedule__keeps_its_promises_on_later_stages, &seed),
    };

    seed = seed_begin();
    return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
