#include "bench/run.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <llama.h>

#include "base/clock.h"
#include "base/file.h"
#include "bench/figure.h"
#include "bench/http.h"
#include "bench/machine.h"
#include "bench/ours.h"
#include "bench/stats.h"
#include "bench/system.h"
#include "slice/slice.h"

/* A run counts as noisy when others took more than this share of the cores, or the calibration was
 * slower by this. */
#define FOREIGN_MAX  0.03
#define SLOWDOWN_MAX 1.10

static const struct nk_system_ops *const all_systems[] = { &nk_system_ours,  &nk_system_whole,
                                                           &nk_system_rpc,   &nk_system_ping,
                                                           &nk_system_cold,  &nk_system_serve,
                                                           &nk_system_chain, &nk_system_alone };
enum { N_SYSTEMS = sizeof all_systems / sizeof all_systems[0], WARM_UP_TOKENS = 128 };

struct bench {
    const struct nk_bench_opts *opts;
    char *model; /* absolute: peers run in another folder */
    struct nk_table *table;
    nk_peers *peers;
    int n_vocab, n_embd;
    char *slice; /* of the last layers */
    char machine[160], llama[48];
    double calibration_best;
    FILE *csv;
};

/* One figure at one place: what is asked, and the systems that answer. */
struct place {
    const struct nk_figure *figure;
    double x;
    int n_streams, n_prompt, n_predict, n_depth, n_workers, n_threads;
    struct nk_wan_shape wan;
    nk_system *systems[N_SYSTEMS];
    bool asked[N_SYSTEMS];
};

static bool listed(const char *list, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = list; p && *p;) {
        size_t len = strcspn(p, ", ");

        if (len == n && !strncmp(p, word, n))
            return true;
        p += len + (p[len] != 0);
    }
    return false;
}

static bool is_wanted(const struct nk_bench_opts *o, const struct nk_figure *f)
{
    if (f->question == NK_ASK_NOTHING)
        return false;
    for (int i = 0; i < NK_PARTS_MAX; i++)
        if (f->parts[i].figure && listed(o->figures, f->parts[i].figure))
            return true;
    return listed(o->figures, "all") || listed(o->figures, f->group) || listed(o->figures, f->name);
}

static bool is_wanted_place(const struct nk_bench_opts *o, int place)
{
    char text[16];

    snprintf(text, sizeof text, "%d", place);
    return !o->places || listed(o->places, text);
}

/* Whether a system is asked for one of the wanted figures. */
static bool is_needed(const struct nk_bench_opts *o, const char *system)
{
    for (const struct nk_figure *f = nk_figures; f->name; f++)
        if (is_wanted(o, f) && listed(f->systems, system) && listed(o->systems, system))
            return true;
    return false;
}

static int no_system(const char *word, struct nk_error *err)
{
    char list[160] = "";

    for (int i = 0; i < N_SYSTEMS; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), " %s", all_systems[i]->name);
    return nk_fail(err, NK_E_NOT_FOUND, "no_figure", "'%s' is no system; there are%s", word, list);
}

static int check_places(const struct nk_bench_opts *o, struct nk_error *err)
{
    for (const char *p = o->places; p && *p;) {
        size_t len = strcspn(p, ",");
        char word[64], list[256] = "";
        bool known = false;

        snprintf(word, sizeof word, "%.*s", (int)len, p);
        for (const struct nk_figure *f = nk_figures; f->name; f++)
            for (const int *place = is_wanted(o, f) ? f->places : NULL; place && *place >= 0;
                 place++) {
                char text[16];

                snprintf(text, sizeof text, "%d", *place);
                known |= !strcmp(word, text);
                if (!listed(list, text))
                    snprintf(list + strlen(list), sizeof list - strlen(list), " %s", text);
            }
        if (!known)
            return nk_fail(err, NK_E_NOT_FOUND, "no_figure",
                           "'%s' is no place on a curve of --figures %s; there are%s", word,
                           o->figures, *list ? list : " none");
        p += len + (p[len] != 0);
    }
    return 0;
}

static int check_names(const struct nk_bench_opts *o, struct nk_error *err)
{
    for (const char *p = o->figures; *p;) {
        size_t len = strcspn(p, ",");
        char word[64];
        bool known;

        snprintf(word, sizeof word, "%.*s", (int)len, p);
        known = !strcmp(word, "all");
        for (const struct nk_figure *f = nk_figures; f->name; f++)
            known |= !strcmp(word, f->name) || !strcmp(word, f->group);
        if (!known) {
            char list[1024] = "";

            for (const struct nk_group *g = nk_groups; g->name; g++)
                snprintf(list + strlen(list), sizeof list - strlen(list), " %s", g->name);
            for (const struct nk_figure *f = nk_figures; f->name; f++)
                snprintf(list + strlen(list), sizeof list - strlen(list), " %s", f->name);
            return nk_fail(err, NK_E_NOT_FOUND, "no_figure", "'%s' is no figure; there are all%s",
                           word, list);
        }
        p += len + (p[len] != 0);
    }
    for (const char *p = o->systems; *p;) {
        size_t len = strcspn(p, ",");
        char word[64];
        bool known = false;

        snprintf(word, sizeof word, "%.*s", (int)len, p);
        for (int i = 0; i < N_SYSTEMS; i++)
            known |= !strcmp(word, all_systems[i]->name);
        if (!known)
            return no_system(word, err);
        p += len + (p[len] != 0);
    }
    return check_places(o, err);
}

/* ---- rows ---- */

static int keep(struct bench *b, const struct nk_row *row, struct nk_error *err)
{
    struct nk_buf line = NK_BUF_INIT(8192);
    int rc = nk_table_add(b->table, row, err);

    if (!rc)
        rc = nk_table_format_row(row, &line, err);
    if (!rc && (fputs(nk_buf_str(&line), b->csv) < 0 || fflush(b->csv)))
        rc = nk_fail(err, NK_E_DATA_LOSS, "write_failed", "%s: %s", b->opts->csv, strerror(errno));
    nk_buf_release(&line);
    return rc;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static void begin_row(const struct bench *b, const struct place *p, int system, int run,
                      struct nk_row *row)
{
    const struct nk_figure *f = p->figure;

    *row = (struct nk_row){ .x = p->x, .run = run, .slowdown = 1 };
    snprintf(row->figure, sizeof row->figure, "%s", f->name);
    snprintf(row->system, sizeof row->system, "%s", all_systems[system]->name);
    snprintf(row->unit, sizeof row->unit, "%s", f->unit);
    snprintf(row->params, sizeof row->params,
             "streams=%d prompt=%d predict=%d depth=%d workers=%d threads=%d device=%s",
             p->n_streams, p->n_prompt, p->n_predict, p->n_depth,
             all_systems[system] == &nk_system_whole ? 1 : p->n_workers,
             all_systems[system] == &nk_system_whole ? b->opts->n_threads : p->n_threads,
             all_systems[system] == &nk_system_ours ? b->opts->device : "CPU");
    if (p->wan.mbit > 0)
        snprintf(row->params + strlen(row->params), sizeof row->params - strlen(row->params),
                 " rtt=%gms jitter=%gms mbit=%g", p->wan.round_trip_ms, p->wan.jitter_ms,
                 p->wan.mbit);
    if (f->cache)
        snprintf(row->params + strlen(row->params), sizeof row->params - strlen(row->params),
                 " cache=%s flash_attn=%s", f->cache, f->no_flash_attn ? "off" : "on");
    snprintf(row->model, sizeof row->model, "%s",
             f->real_model ? file_name(b->opts->real_model) : b->opts->model_name);
    snprintf(row->commit, sizeof row->commit, "%s", b->opts->commit);
    snprintf(row->version, sizeof row->version, "%s", NK_VERSION);
    snprintf(row->llama, sizeof row->llama, "%s", b->llama);
    snprintf(row->machine, sizeof row->machine, "%s", b->machine);
    nk_utc_format(row->time, sizeof row->time);
}

static void show(const struct nk_row *r)
{
    char place[24] = "";

    if (r->x != 0)
        snprintf(place, sizeof place, " at %g", r->x);
    if (r->status == NK_ROW_FAILED)
        fprintf(stderr, "%-12s%-9s %-6s run %d: failed: %s\n", r->figure, place, r->system, r->run,
                r->note);
    else
        fprintf(stderr, "%-12s%-9s %-6s run %d: %.4g %s%s\n", r->figure, place, r->system, r->run,
                r->value, r->unit, r->status == NK_ROW_NOISY ? " (noisy)" : "");
}

/* ---- asking ---- */

static int ask(const struct place *p, int i, double value[NK_VALUES_MAX], struct nk_error *err)
{
    const struct nk_system_ops *ops = all_systems[i];
    nk_system *s = p->systems[i];

    switch (p->figure->question) {
    case NK_ASK_DECODE:
        return ops->decode(s, p->n_streams, p->n_depth, p->n_predict, value, err);
    case NK_ASK_PREFILL:
        return ops->prefill(s, p->n_prompt, value, err);
    case NK_ASK_TTFT:
        return ops->ttft(s, p->n_prompt, value, err);
    case NK_ASK_GAP:
        return ops->gap(s, p->n_prompt, value, err);
    case NK_ASK_MEMORY:
        return ops->memory(s, value, err);
    case NK_ASK_STARTUP:
        return ops->startup(s, value, err);
    case NK_ASK_HOP:
        return ops->hop(s, p->n_predict, value, err);
    case NK_ASK_TOKEN:
        return ops->token(s, p->figure->n_clients, p->n_predict, value, err);
    case NK_ASK_CROWD:
        return ops->crowd(s, p->figure->n_clients, p->n_predict, value, err);
    case NK_ASK_NETWORK:
        return ops->network(s, p->n_predict, value, err);
    case NK_ASK_WIRE:
        return ops->wire(s, p->n_predict, value, err);
    case NK_ASK_QUALITY:
        return ops->quality(s, p->figure->real_model, p->n_predict, value, err);
    case NK_ASK_AFTER_PROMPT:
        return ops->after_prompt(s, p->n_prompt, p->n_predict, value, err);
    case NK_ASK_NOTHING:
        break;
    }
    return nk_fail(err, NK_E_INTERNAL, "no_question", "no such question");
}

static bool can_answer(const struct nk_system_ops *ops, enum nk_question q)
{
    switch (q) {
    case NK_ASK_DECODE:
        return ops->decode != NULL;
    case NK_ASK_PREFILL:
        return ops->prefill != NULL;
    case NK_ASK_TTFT:
        return ops->ttft != NULL;
    case NK_ASK_GAP:
        return ops->gap != NULL;
    case NK_ASK_MEMORY:
        return ops->memory != NULL;
    case NK_ASK_STARTUP:
        return ops->startup != NULL;
    case NK_ASK_HOP:
        return ops->hop != NULL;
    case NK_ASK_TOKEN:
        return ops->token != NULL;
    case NK_ASK_CROWD:
        return ops->crowd != NULL;
    case NK_ASK_NETWORK:
        return ops->network != NULL;
    case NK_ASK_WIRE:
        return ops->wire != NULL;
    case NK_ASK_QUALITY:
        return ops->quality != NULL;
    case NK_ASK_AFTER_PROMPT:
        return ops->after_prompt != NULL;
    case NK_ASK_NOTHING:
        break;
    }
    return false;
}

static bool is_noisy(const struct nk_row *row)
{
    return row->foreign > FOREIGN_MAX || row->slowdown > SLOWDOWN_MAX;
}

/* The rows of what an answer tells besides its first value. */
static int keep_parts(struct bench *b, const struct place *p, const struct nk_row *first,
                      const double values[NK_VALUES_MAX], bool noisy, struct nk_error *err)
{
    int rc = 0;

    for (int k = 0; !rc && k < NK_PARTS_MAX && p->figure->parts[k].figure; k++) {
        const struct nk_part *part = &p->figure->parts[k];
        const struct nk_figure *f = nk_figure_find(part->figure);
        struct nk_row row = *first;

        if (isnan(values[1 + k]))
            continue;
        row.value = values[1 + k];
        row.status = noisy && !f->is_count ? NK_ROW_NOISY : NK_ROW_OK;
        snprintf(row.figure, sizeof row.figure, "%s", part->figure);
        snprintf(row.unit, sizeof row.unit, "%s", f->unit);
        if (part->system)
            snprintf(row.system, sizeof row.system, "%s", part->system);
        show(&row);
        rc = keep(b, &row, err);
    }
    return rc;
}

/* One attempt at one run: what each system answered, and how the machine was meanwhile. */
struct attempt {
    double calibration, values[N_SYSTEMS][NK_VALUES_MAX];
    struct nk_row rows[N_SYSTEMS];
    struct nk_machine_load before;
};

static void begin_attempt(struct bench *b, struct attempt *a)
{
    a->calibration = nk_machine_calibrate();
    if (a->calibration < b->calibration_best)
        b->calibration_best = a->calibration;
    for (int i = 0; i < N_SYSTEMS; i++)
        for (int k = 0; k < NK_VALUES_MAX; k++)
            a->values[i][k] = NAN; /* not every system knows all of them */
    a->before = nk_machine_load_now();
}

static void ask_once(struct place *p, int i, struct attempt *a)
{
    struct nk_error why;

    if (ask(p, i, a->values[i], &why)) {
        a->rows[i].status = NK_ROW_FAILED;
        snprintf(a->rows[i].note, sizeof a->rows[i].note, "%.199s", why.msg);
        p->asked[i] = false;
    }
}

/* Judges and keeps the rows of the systems in `answered`; *noisy: one of them does not count. */
static int end_attempt(struct bench *b, const struct place *p, struct attempt *a,
                       const bool answered[N_SYSTEMS], bool *noisy, struct nk_error *err)
{
    struct nk_machine_load after = nk_machine_load_now();
    int rc = 0;

    *noisy = false;
    for (int i = 0; !rc && i < N_SYSTEMS; i++) {
        struct nk_row *row = &a->rows[i];
        bool disturbed;

        if (!answered[i])
            continue;
        row->value = row->status == NK_ROW_FAILED ? 0 : a->values[i][0];
        row->foreign = nk_machine_foreign(&a->before, &after);
        row->slowdown = b->calibration_best > 0 ? a->calibration / b->calibration_best : 1;
        disturbed = row->status == NK_ROW_OK && is_noisy(row);
        if (disturbed && !p->figure->is_count)
            row->status = NK_ROW_NOISY;
        show(row);
        rc = keep(b, row, err);
        if (!rc && row->status != NK_ROW_FAILED)
            rc = keep_parts(b, p, row, a->values[i], disturbed, err);
        *noisy |= row->status == NK_ROW_NOISY;
    }
    return rc;
}

/* One run of one system, repeated while the machine is busy otherwise. */
static int measure(struct bench *b, struct place *p, int i, int run, struct nk_error *err)
{
    bool only[N_SYSTEMS] = { false }, noisy = true;
    struct attempt a;
    int rc = 0;

    only[i] = true;
    for (int attempt = 0; !rc && noisy && attempt <= b->opts->n_retries; attempt++) {
        begin_row(b, p, i, run, &a.rows[i]);
        begin_attempt(b, &a);
        ask_once(p, i, &a);
        rc = end_attempt(b, p, &a, only, &noisy, err);
    }
    return rc;
}

static int order(int turn, int k)
{
    return turn % 2 ? k : N_SYSTEMS - 1 - k;
}

/* One run of all systems, which are asked in turn; what a system answers is the median of its
 * turns. */
static int measure_in_turns(struct bench *b, struct place *p, int run, struct nk_error *err)
{
    double turns[N_SYSTEMS][NK_TURNS_MAX];
    bool noisy = true, answered[N_SYSTEMS];
    struct attempt a;
    int rc = 0;

    for (int attempt = 0; !rc && noisy && attempt <= b->opts->n_retries; attempt++) {
        memcpy(answered, p->asked, sizeof answered);
        for (int i = 0; i < N_SYSTEMS; i++)
            begin_row(b, p, i, run, &a.rows[i]);
        begin_attempt(b, &a);
        for (int turn = 0; turn < p->figure->n_turns; turn++)
            for (int k = 0; k < N_SYSTEMS; k++) {
                int i = order(run + turn, k);

                if (!p->asked[i])
                    continue;
                ask_once(p, i, &a);
                turns[i][turn] = a.values[i][0];
            }
        for (int i = 0; i < N_SYSTEMS; i++)
            if (p->asked[i])
                a.values[i][0] = nk_median(turns[i], (size_t)p->figure->n_turns);
        rc = end_attempt(b, p, &a, answered, &noisy, err);
    }
    return rc;
}

static int fail_system(struct bench *b, struct place *p, int i, const struct nk_error *why,
                       struct nk_error *err)
{
    struct nk_row row;

    p->asked[i] = false;
    begin_row(b, p, i, 0, &row);
    row.status = NK_ROW_FAILED;
    snprintf(row.note, sizeof row.note, "%.199s", why->msg);
    show(&row);
    return keep(b, &row, err);
}

/* The figure's own question, which it is not counted for. Where that is slow a short one; a slow
 * count needs none. */
static int warm_up(const struct place *p, int i, struct nk_error *err)
{
    struct place brief = *p;
    double ignored[NK_VALUES_MAX];

    if (p->figure->n_runs_max && p->figure->is_count)
        return 0;
    if (p->figure->n_runs_max && brief.n_depth > WARM_UP_TOKENS)
        brief.n_depth = WARM_UP_TOKENS;
    if (p->figure->n_runs_max && brief.n_prompt > WARM_UP_TOKENS)
        brief.n_prompt = WARM_UP_TOKENS;
    return ask(&brief, i, ignored, err);
}

static int start_systems(struct bench *b, struct place *p, struct nk_error *err)
{
    int n_each = p->n_prompt + p->n_depth + p->n_predict + 16;
    struct nk_system_opts o = {
        .model = b->model,
        .slice = b->slice,
        .device = b->opts->device,
        .work_dir = b->opts->work_dir,
        .self = b->opts->self,
        .nakshatra = b->opts->nakshatra,
        .peers = b->peers,
        .n_workers = p->figure->question == NK_ASK_STARTUP || p->figure->question == NK_ASK_QUALITY
                         ? 0
                         : p->n_workers,
        .n_embd = b->n_embd,
        .trace = p->figure->question == NK_ASK_HOP ||
                 (p->figure->question == NK_ASK_GAP && p->n_prompt > 0),
        .f16 = p->figure->f16,
        .cache = p->figure->cache,
        .no_flash_attn = p->figure->no_flash_attn,
        .wan = p->wan.mbit > 0 ? &p->wan : NULL,
        .meter = p->figure->question == NK_ASK_WIRE,
        .real_model = b->opts->real_model,
        .n_threads = p->n_threads,
        .n_threads_whole = b->opts->n_threads,
        .n_streams_max = p->n_streams,
        .n_vocab = b->n_vocab,
    };
    const nk_system *beside = NULL;
    int rc = 0;

    if (p->figure->question == NK_ASK_DECODE)
        n_each += nk_ours_decode_tokens(p->n_streams, p->n_predict) - p->n_predict;
    if (p->figure->question == NK_ASK_GAP)
        n_each += 256; /* what the measured session generates meanwhile */
    if (p->figure->question == NK_ASK_WIRE)
        n_each += p->n_predict; /* twice as many the second time */
    if (p->figure->question == NK_ASK_MEMORY || p->figure->question == NK_ASK_STARTUP)
        n_each = 4096;
    o.n_ctx = (p->n_streams * n_each + 255) / 256 * 256;
    for (int i = 0; !rc && i < N_SYSTEMS; i++) {
        struct nk_error why;

        p->asked[i] = listed(p->figure->systems, all_systems[i]->name) &&
                      listed(b->opts->systems, all_systems[i]->name) &&
                      can_answer(all_systems[i], p->figure->question);
        if (!p->asked[i])
            continue;
        if (all_systems[i] == &nk_system_chain || all_systems[i] == &nk_system_alone)
            o.beside = beside;
        if (all_systems[i]->start(&p->systems[i], &o, &why) || warm_up(p, i, &why))
            rc = fail_system(b, p, i, &why, err);
        if (all_systems[i] == &nk_system_serve)
            beside = p->systems[i];
    }
    return rc;
}

static int run_place(struct bench *b, struct place *p, struct nk_error *err)
{
    int rc = start_systems(b, p, err), n_runs = b->opts->n_runs;

    if (p->figure->n_runs_max && n_runs > p->figure->n_runs_max)
        n_runs = p->figure->n_runs_max;
    for (int run = 1; !rc && run <= n_runs; run++) {
        if (p->figure->n_turns)
            rc = measure_in_turns(b, p, run, err);
        for (int k = 0; !rc && !p->figure->n_turns && k < N_SYSTEMS; k++) {
            int i = order(run, k);

            if (p->asked[i])
                rc = measure(b, p, i, run, err);
        }
    }
    for (int i = N_SYSTEMS - 1; i >= 0; i--) /* later ones may lean on earlier ones */
        if (p->systems[i])
            all_systems[i]->stop(p->systems[i]);
    return rc;
}

static int shorten(const struct bench *b, int n)
{
    return !b->opts->quick || n <= 8 ? n : n / 4 < 8 ? 8 : n / 4;
}

static int run_figure(struct bench *b, const struct nk_figure *f, struct nk_error *err)
{
    int rc = 0;

    for (int k = 0; !rc && (k == 0 || f->places); k++) {
        struct place p = { .figure = f,
                           .n_streams = f->n_streams,
                           .n_prompt = shorten(b, f->n_prompt),
                           .n_predict = shorten(b, f->n_predict),
                           .n_depth = f->n_depth,
                           .n_workers = f->n_workers,
                           .wan = f->wan };

        if (f->places) {
            if (f->places[k] < 0 || (b->opts->quick && k == 3))
                break;
            if (!is_wanted_place(b->opts, f->places[k]))
                continue;
            p.x = f->places[k];
            if (f->x == NK_X_STREAMS)
                p.n_streams = f->places[k];
            else if (f->x == NK_X_DEPTH)
                p.n_depth = f->places[k];
            else if (f->x == NK_X_WORKERS)
                p.n_workers = f->places[k];
            else if (f->x == NK_X_ROUND_TRIP)
                p.wan.round_trip_ms = f->places[k];
        }
        p.n_threads = f->split_threads ? b->opts->n_threads / p.n_workers : b->opts->n_threads;
        if (p.n_threads < 1)
            p.n_threads = 1;
        rc = run_place(b, &p, err);
    }
    return rc;
}

/* ---- set-up ---- */

static int open_csv(struct bench *b, struct nk_error *err)
{
    struct nk_buf header = NK_BUF_INIT(4096);
    int rc = nk_table_format_header(&header, err);

    b->csv = rc ? NULL : fopen(b->opts->csv, "ae");
    if (!rc && !b->csv)
        rc = nk_fail(err, NK_E_DENIED, "cannot_create", "%s: %s", b->opts->csv, strerror(errno));
    if (!rc && ftell(b->csv) == 0 && fputs(nk_buf_str(&header), b->csv) < 0)
        rc = nk_fail(err, NK_E_DATA_LOSS, "write_failed", "%s: %s", b->opts->csv, strerror(errno));
    nk_buf_release(&header);
    return rc;
}

static int look_at_model(struct bench *b, struct nk_error *err)
{
    struct nk_range ranges[2];
    nk_model *m;
    int rc = nk_model_open(&m, b->opts->model, err);

    if (rc)
        return rc;
    b->model = realpath(b->opts->model, NULL);
    b->n_vocab = nk_model_info(m)->n_vocab;
    b->n_embd = nk_model_info(m)->n_embd;
    if (!b->model)
        rc = nk_fail(err, NK_E_NOT_FOUND, "no_file", "%s: %s", b->opts->model, strerror(errno));
    else if (b->n_vocab < 1024)
        rc = nk_fail(err, NK_E_INVALID, "bad_model",
                     "%s: a vocabulary of %d is too small to draw prompts from (1024)",
                     b->opts->model, b->n_vocab);
    if (!rc)
        rc = nk_ranges_balance(m, 2, ranges, err);
    if (!rc)
        rc = nk_slice_cached(m, ranges[1], NK_VERIFY_ONCE, &b->slice, err);
    nk_model_close(m);
    return rc;
}

int nk_bench_run(const struct nk_bench_opts *opts, struct nk_table *t, struct nk_error *err)
{
    struct bench b = { .opts = opts, .table = t, .calibration_best = INFINITY };
    int rc = check_names(opts, err);

    if (rc)
        return rc;
    nk_http_init();
    nk_machine_describe(b.machine, sizeof b.machine);
    snprintf(b.llama, sizeof b.llama, "%s", llama_version());
    rc = nk_dir_make(opts->work_dir, err);
    if (!rc)
        rc = look_at_model(&b, err);
    if (!rc && (is_needed(opts, "whole") || is_needed(opts, "rpc")))
        rc = nk_peers_open(&b.peers, opts->work_dir, err);
    if (!rc)
        rc = open_csv(&b, err);
    for (int i = 0; i < 3; i++) {
        double calibration = nk_machine_calibrate();

        if (calibration < b.calibration_best)
            b.calibration_best = calibration;
    }
    for (const struct nk_figure *f = nk_figures; !rc && f->name; f++)
        if (is_wanted(opts, f))
            rc = run_figure(&b, f, err);
    if (b.csv && fclose(b.csv) && !rc)
        rc = nk_fail(err, NK_E_DATA_LOSS, "write_failed", "%s: %s", opts->csv, strerror(errno));
    nk_peers_close(b.peers);
    free(b.slice);
    free(b.model);
    return rc;
}
