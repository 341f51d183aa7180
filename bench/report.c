#include "bench/report.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/process.h"
#include "bench/figure.h"
#include "bench/growth.h"
#include "bench/stats.h"

enum {
    PLACES_MAX = NK_CURVE_PLACES_MAX,
    GNUPLOT_MS_MAX = 300000,
    SCRIPT_BYTES_MAX = 1 << 20,
    PAGE_BYTES_MAX = 4 << 20,
    RUNS_USUAL = 5,
};

static const struct {
    const char *name, *title, *colour;
} systems[] = {
    { "ours", "Nakshatra", "#0060ad" },
    { "whole", "whole model", "#444444" },
    { "rpc", "llama.cpp RPC", "#c0392b" },
    { "ping", "gRPC ping-pong", "#444444" },
    { "cold", "gRPC ping-pong, caches cold", "#888888" },
    { "serve", "through the gateway", "#0060ad" },
    { "chain", "the chain's own client", "#444444" },
    { "alone", "nobody listening", "#444444" },
    { "limit", "limit", "#888888" },
    { "row", "the row itself", "#888888" },
};
enum { N_SYSTEMS = sizeof systems / sizeof systems[0] };

/* "17.1", "1,234", "0.00217": three significant digits and more where they are whole. */
static const char *format_value(char out[24], double v)
{
    snprintf(out, 24,
             v >= 1000  ? "%.0f"
             : v >= 100 ? "%.0f"
             : v >= 10  ? "%.1f"
             : v >= 1   ? "%.2f"
                        : "%.3g",
             v);
    return out;
}

/* "1.69", "0.979": three significant digits. */
static const char *format_ratio(char out[24], double v)
{
    snprintf(out, 24, v >= 100 ? "%.0f" : "%#.3g", v);
    return out;
}

/* "17.1", "17.1 (3 runs)", or why there is none. */
static int add_value(const struct nk_summary *s, struct nk_buf *out, struct nk_error *err)
{
    char median[24], few[24] = "";

    if (s->n_ok && s->n_ok < RUNS_USUAL)
        snprintf(few, sizeof few, " (%d run%s)", s->n_ok, s->n_ok > 1 ? "s" : "");
    if (s->n_ok)
        return nk_buf_addf(out, err, "%s%s", format_value(median, s->median), few);
    return nk_buf_adds(out, s->n_noisy ? "too noisy" : s->n_failed ? "failed" : "", err);
}

/* n: how many runs it is of. One has no spread, which matters to whatever noise can change. */
static const char *verdict_text(const struct nk_figure *f, enum nk_verdict v, int n)
{
    if (n == 1 && !f->is_count && (v == NK_VERDICT_REACHED || v == NK_VERDICT_MISSED))
        return "one run is too few to tell";
    switch (v) {
    case NK_VERDICT_REACHED:
        return "reached";
    case NK_VERDICT_MISSED:
        return "**missed**";
    case NK_VERDICT_NOISY:
        return "too noisy to tell";
    case NK_VERDICT_NONE:
        break;
    }
    return "no figure";
}

/* The system whose figure it is: the first one of the list. */
static void find_subject(const struct nk_figure *f, char out[16])
{
    snprintf(out, 16, "%.*s", (int)strcspn(f->systems, " "), f->systems);
}

/* Whether each run has ours and theirs of the same minutes: asked in turn, or in one answer. */
static bool is_paired(const struct nk_figure *f, const char *system)
{
    for (int k = 0; k < NK_PARTS_MAX && f->parts[k].figure; k++)
        if (f->parts[k].system && !strcmp(f->parts[k].system, system) &&
            !strcmp(f->parts[k].figure, f->name))
            return true;
    return f->n_turns > 0;
}

/* The cell of ours over theirs: " 1.03", or nothing. */
static int add_ratio(const struct nk_summary *ours, const struct nk_summary *theirs,
                     const struct nk_summary *ratios, bool paired, struct nk_buf *out,
                     struct nk_error *err)
{
    char text[24];

    if (paired && ratios->n_ok)
        return nk_buf_addf(out, err, " %s", format_ratio(text, ratios->median));
    if (!paired && ours->n_ok && theirs->n_ok && theirs->median > 0)
        return nk_buf_addf(out, err, " %s", format_ratio(text, ours->median / theirs->median));
    return 0;
}

/* " at least 0.97: reached". */
static int add_aim(const struct nk_figure *f, const struct nk_bar *bar,
                   const struct nk_summary *ours, const struct nk_summary *theirs,
                   const struct nk_summary *ratios, bool paired, struct nk_buf *out,
                   struct nk_error *err)
{
    int n_runs = paired ? ratios->n_ok : ours->n_ok < theirs->n_ok ? ours->n_ok : theirs->n_ok;
    double difference;
    enum nk_verdict v;
    int rc;

    if (bar->ratio > 0) {
        v = paired ? nk_verdict_pairs(ratios, bar->ratio, f->lower_is_better)
                   : nk_verdict_of(ours, theirs, bar->ratio, f->lower_is_better, &difference);
        rc =
            nk_buf_addf(out, err, " at %s %g: ", f->lower_is_better ? "most" : "least", bar->ratio);
    } else {
        v = nk_verdict_added(ours, theirs, bar->added, &difference);
        rc = nk_buf_addf(out, err, " at most %g %s more: ", bar->added, f->unit);
        if (!rc && v != NK_VERDICT_NONE)
            rc = nk_buf_addf(out, err, "%+.2f, ", difference);
    }
    return rc ? rc : nk_buf_adds(out, verdict_text(f, v, n_runs), err);
}

static bool has_aims(const struct nk_figure *f)
{
    return f->limit > 0 || f->bars[0].against;
}

/* One line: ours beside one other system. */
static int add_pair(const struct nk_table *t, const struct nk_figure *f, double x,
                    const char *subject, int system, bool aims, struct nk_buf *out,
                    struct nk_error *err)
{
    const char *name = systems[system].name;
    struct nk_summary ours = nk_table_summarise(t, f->name, x, subject);
    struct nk_summary theirs = nk_table_summarise(t, f->name, x, name);
    struct nk_summary ratios = nk_table_ratios(t, f->name, x, subject, name);
    bool paired = is_paired(f, name);
    int rc = nk_buf_addf(out, err, " %s: ", systems[system].title);

    if (!rc)
        rc = add_value(&theirs, out, err);
    if (!rc)
        rc = nk_buf_adds(out, " |", err);
    if (!rc)
        rc = add_ratio(&ours, &theirs, &ratios, paired, out, err);
    if (!rc)
        rc = nk_buf_adds(out, aims ? " |" : " |\n", err);
    for (int i = 0; !rc && aims && i < 2 && f->bars[i].against; i++)
        if (!strcmp(f->bars[i].against, name))
            rc = add_aim(f, &f->bars[i], &ours, &theirs, &ratios, paired, out, err);
    return rc || !aims ? rc : nk_buf_adds(out, " |\n", err);
}

/* The lines of a figure at one place: its limit, then one for each other system. `name`: the first
 * cells of the first line; `more`: of those after it. */
static int add_lines(const struct nk_table *t, const struct nk_figure *f, double x,
                     const char *name, const char *more, bool aims, struct nk_buf *out,
                     struct nk_error *err)
{
    struct nk_summary ours;
    char subject[16], limit[24];
    bool any = f->limit > 0;
    int rc;

    find_subject(f, subject);
    ours = nk_table_summarise(t, f->name, x, subject);
    rc = nk_buf_addf(out, err, "%s ", name);
    if (!rc)
        rc = add_value(&ours, out, err);
    if (!rc)
        rc = nk_buf_adds(out, " |", err);
    if (!rc && f->limit > 0)
        rc = nk_buf_addf(
            out, err, " | | at %s %s: %s |\n", f->lower_is_better ? "most" : "least",
            format_value(limit, f->limit),
            verdict_text(f, nk_verdict_limit(&ours, f->limit, f->lower_is_better), ours.n_ok));
    for (int i = 0; !rc && i < N_SYSTEMS; i++) {
        if (!strcmp(systems[i].name, subject) ||
            !nk_table_summarise(t, f->name, x, systems[i].name).last)
            continue;
        if (any)
            rc = nk_buf_addf(out, err, "%s |", more);
        any = true;
        if (!rc)
            rc = add_pair(t, f, x, subject, i, aims, out, err);
    }
    return rc || any ? rc : nk_buf_adds(out, aims ? " | | |\n" : " | |\n", err);
}

static bool has_rows(const struct nk_table *t, const char *figure)
{
    for (size_t i = 0; i < t->n; i++)
        if (!strcmp(t->rows[i].figure, figure))
            return true;
    return false;
}

/* A group's figures of one place. */
static int add_singles(const struct nk_table *t, const struct nk_group *g, struct nk_buf *out,
                       struct nk_error *err)
{
    bool any = false, aims = false;
    int rc = 0;

    for (const struct nk_figure *f = nk_figures; f->name; f++)
        aims |= !strcmp(f->group, g->name) && !f->places && has_rows(t, f->name) && has_aims(f);
    for (const struct nk_figure *f = nk_figures; !rc && f->name; f++) {
        char name[256];

        if (strcmp(f->group, g->name) || f->places || !has_rows(t, f->name))
            continue;
        if (!any)
            rc = nk_buf_addf(out, err,
                             "\n| figure | unit | ours | theirs | ratio |%s\n"
                             "|---|---|---|---|---|%s\n",
                             aims ? " aimed at |" : "", aims ? "---|" : "");
        any = true;
        snprintf(name, sizeof name, "| %s |%s%s |", f->title, *f->unit ? " " : "", f->unit);
        if (!rc)
            rc = add_lines(t, f, 0, name, "| | |", aims, out, err);
    }
    return rc;
}

/* ---- curves ---- */

static int find_places(const struct nk_table *t, const char *figure, double places[PLACES_MAX])
{
    int n = 0;

    for (size_t i = 0; i < t->n; i++) {
        bool known = strcmp(t->rows[i].figure, figure) != 0;

        for (int k = 0; k < n && !known; k++)
            known = places[k] == t->rows[i].x;
        if (!known && n < PLACES_MAX)
            places[n++] = t->rows[i].x;
    }
    nk_median(places, (size_t)n); /* sorts */
    return n;
}

static int add_curve(const struct nk_table *t, const struct nk_figure *f, const double *places,
                     int n, struct nk_buf *out, struct nk_error *err)
{
    const char *beside = f->x == NK_X_ROUND_TRIP ? "limit" : "whole";
    struct nk_curve curve = { .n = 0 };
    char subject[16], sentence[512];
    int rc;

    find_subject(f, subject);
    for (int k = 0; k < n; k++) {
        struct nk_summary s = nk_table_summarise(t, f->name, places[k], subject);

        if (!s.n_ok)
            continue;
        curve.at[curve.n].x = places[k];
        curve.at[curve.n].y = s;
        curve.at[curve.n].whole = nk_table_summarise(t, f->name, places[k], "whole");
        if (is_paired(f, beside))
            curve.at[curve.n].ratios = nk_table_ratios(t, f->name, places[k], subject, beside);
        curve.n++;
    }
    nk_growth_format(f, &curve, sentence, sizeof sentence);
    rc = nk_buf_addf(
        out, err,
        "\n### %c%s\n\n%s %s\n\n| %s | ours, %s | theirs | ratio |%s\n|---|---|---|---|%s\n",
        f->title[0] - ('a' <= f->title[0] && f->title[0] <= 'z' ? 32 : 0), f->title + 1,
        f->expected, sentence, f->x_title, f->unit, has_aims(f) ? " aimed at |" : "",
        has_aims(f) ? "---|" : "");
    for (int k = 0; !rc && k < n; k++) {
        char name[32];

        snprintf(name, sizeof name, "| %g |", places[k]);
        rc = add_lines(t, f, places[k], name, "| |", has_aims(f), out, err);
    }
    return rc;
}

/* gnuplot's script with the data in it: one block per system, lines with the range of the runs as
 * bars. */
static int format_script(const struct nk_table *t, const struct nk_figure *f, const double *places,
                         int n, const char *path, struct nk_buf *out, struct nk_error *err)
{
    int n_drawn = 0, rc = 0;
    bool drawn[N_SYSTEMS] = { false };

    for (int i = 0; !rc && i < N_SYSTEMS; i++) {
        struct nk_buf data = NK_BUF_INIT(SCRIPT_BYTES_MAX);

        for (int k = 0; !rc && k < n; k++) {
            struct nk_summary s = nk_table_summarise(t, f->name, places[k], systems[i].name);

            if (s.n_ok)
                rc = nk_buf_addf(&data, err, "%g %g %g %g\n", places[k], s.median, s.min, s.max);
        }
        if (!rc && data.size) {
            drawn[i] = true;
            rc = nk_buf_addf(out, err, "$%s << EOD\n%sEOD\n", systems[i].name, data.data);
        }
        nk_buf_release(&data);
    }
    if (!rc)
        rc = nk_buf_addf(
            out, err,
            "set terminal svg size 720,420 font 'sans-serif,13' background rgb 'white'\n"
            "set output '%s'\nset title '%s' noenhanced\nset xlabel '%s'\nset ylabel '%s'\n"
            "set yrange [0:*]\nset grid lc rgb '#dddddd'\nset key outside bottom center "
            "horizontal height 1\n"
            "set border 3\nset tics nomirror\nset offsets graph 0.02, graph 0.02, graph 0.05, 0\n",
            path, f->title, f->x_title, f->unit);
    for (int k = 0; !rc && k < n; k++)
        rc = nk_buf_addf(out, err, "%s%g%s", k ? ", " : "set xtics (", places[k],
                         k + 1 < n ? "" : ")\n");
    if (!rc && n > 3 && places[n - 1] > 8 * places[0])
        rc = nk_buf_adds(out, "set logscale x 2\n", err);
    for (int i = 0; !rc && i < N_SYSTEMS; i++)
        if (drawn[i])
            rc = nk_buf_addf(
                out, err, "%s $%s with yerrorlines lw 2 pt 7 ps 0.6 lc rgb '%s' title \"%s\"",
                n_drawn++ ? "," : "plot", systems[i].name, systems[i].colour, systems[i].title);
    return rc ? rc : nk_buf_adds(out, n_drawn ? "\n" : "", err);
}

static int plot(const struct nk_table *t, const struct nk_figure *f, const double *places, int n,
                const struct nk_report_opts *opts, struct nk_buf *out, struct nk_error *err)
{
    struct nk_buf script = NK_BUF_INIT(SCRIPT_BYTES_MAX);
    char path[4096], script_path[4200];
    const char *argv[] = { "/usr/bin/env", "gnuplot", script_path, NULL };
    struct nk_process_opts process_opts = { .argv = argv };
    struct nk_process process;
    int rc;

    snprintf(path, sizeof path, "%s/%s.svg", opts->plot_dir, f->name);
    snprintf(script_path, sizeof script_path, "%s/.%s.gnuplot", opts->plot_dir, f->name);
    rc = format_script(t, f, places, n, path, &script, err);
    if (!rc)
        rc = nk_file_write(script_path, nk_buf_str(&script), script.size, err);
    nk_buf_release(&script);
    if (rc)
        return rc;
    rc = nk_process_start(&process, &process_opts, err);
    if (!rc) {
        bool ended = nk_process_wait(&process, GNUPLOT_MS_MAX);

        nk_process_stop(&process, 0);
        if (!ended || process.status)
            rc = nk_fail(err, NK_E_NOT_FOUND, "no_gnuplot",
                         "gnuplot could not draw %s (is it installed? `make deps`)", path);
    }
    unlink(script_path);
    return rc ? rc
              : nk_buf_addf(out, err, "\n![%s](%s/%s.svg)\n", f->title, opts->plot_link, f->name);
}

/* ---- the page ---- */

static int add_failures(const struct nk_table *t, struct nk_buf *out, struct nk_error *err)
{
    bool any = false;
    int rc = 0;

    for (size_t i = 0; !rc && i < t->n; i++) {
        const struct nk_row *r = &t->rows[i];

        if (r->status != NK_ROW_FAILED)
            continue;
        if (!any)
            rc = nk_buf_adds(out, "\n## What gave no figure\n\n", err);
        any = true;
        if (!rc)
            rc = nk_buf_addf(out, err, "- %s, %s, %s: %s\n", r->figure, r->system, r->params,
                             r->note);
    }
    return rc;
}

/* The different values of a text column, in the order in which they appear: "a; b". */
static int add_distinct(const struct nk_table *t, size_t offset, struct nk_buf *out,
                        struct nk_error *err)
{
    int rc = 0;

    for (size_t i = 0; !rc && i < t->n; i++) {
        const char *text = (const char *)&t->rows[i] + offset;
        bool seen = false;

        for (size_t k = 0; k < i && !seen; k++)
            seen = !strcmp((const char *)&t->rows[k] + offset, text);
        if (!seen)
            rc = nk_buf_addf(out, err, "%s%s", i ? "; " : "", text);
    }
    return rc;
}

/* The argument is the table's name. */
#define HOW_TO_READ                                                                                \
    "How to read it:\n\n"                                                                          \
    "- A value is the median of five runs or more; where there were fewer, it says so. Every run " \
    "is a line of `%s`, and with them their spread.\n"                                             \
    "- *Ratio*: ours over theirs. Where both were asked in the same run it is the median of the "  \
    "runs' ratios, else the ratio of the medians. Of a time or a size, less is better.\n"          \
    "- *Aimed at*: what the ratio, or the value, should be, and whether it is. *Too noisy to "     \
    "tell*: the runs spread too much for an answer. (From nine runs on their inner ones count, "   \
    "between which the median lies as surely as between the outermost of five.)\n"                 \
    "- Ours and the others are asked in turn, in alternating order, after one question for "       \
    "warming up. *Median of N in turn*: a run asks each N times, in turn, and takes the "          \
    "medians.\n"                                                                                   \
    "- Prompts are random ids of the exact length. No end of text is ever chosen. Sampling is "    \
    "greedy. A synthetic model's weights are random: speed and memory do not depend on them.\n"

static int add_head(const struct nk_table *t, size_t n_older, const char *rows, struct nk_buf *out,
                    struct nk_error *err)
{
    static const struct {
        const char *title;
        size_t offset;
    } facts[] = {
        { "machine", offsetof(struct nk_row, machine) },
        { "model", offsetof(struct nk_row, model) },
        { "Nakshatra's commit", offsetof(struct nk_row, commit) },
        { "llama.cpp, the same library under ours and under the peers",
          offsetof(struct nk_row, llama) },
    };
    const struct nk_row *first = &t->rows[0], *last = &t->rows[t->n - 1];
    int n_noisy = 0, n_failed = 0, rc;

    for (size_t i = 0; i < t->n; i++) {
        n_noisy += t->rows[i].status == NK_ROW_NOISY;
        n_failed += t->rows[i].status == NK_ROW_FAILED;
    }
    rc = nk_buf_addf(out, err,
                     "# Benchmarks\n\nMade of `%s` by `nakshatra-bench report`; do not edit. "
                     "`make bench` measures anew.\n\n",
                     rows);
    for (size_t i = 0; !rc && i < sizeof facts / sizeof facts[0]; i++) {
        rc = nk_buf_addf(out, err, "- %s: ", facts[i].title);
        if (!rc)
            rc = add_distinct(t, facts[i].offset, out, err);
        if (!rc)
            rc = nk_buf_adds(out, "\n", err);
    }
    return rc ? rc
              : nk_buf_addf(out, err,
                            "- measured %.10s to %.10s: %zu rows, of which %d were set aside "
                            "because the machine was busy otherwise and %d failed; %zu more, of "
                            "older commits or other models, are left out\n\n" HOW_TO_READ,
                            first->time, last->time, t->n, n_noisy, n_failed, n_older, rows);
}

static int add_curves(const struct nk_table *t, const struct nk_group *g,
                      const struct nk_report_opts *opts, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    for (const struct nk_figure *f = nk_figures; !rc && f->name; f++) {
        double places[PLACES_MAX];
        int n = f->places && !strcmp(f->group, g->name) ? find_places(t, f->name, places) : 0;

        if (!n)
            continue;
        rc = add_curve(t, f, places, n, out, err);
        if (!rc && opts->plot_dir && n > 1)
            rc = plot(t, f, places, n, opts, out, err);
    }
    return rc;
}

static int add_group(const struct nk_table *t, const struct nk_group *g,
                     const struct nk_report_opts *opts, struct nk_buf *out, struct nk_error *err)
{
    bool any = false;
    int rc;

    for (const struct nk_figure *f = nk_figures; f->name; f++)
        any |= !strcmp(f->group, g->name) && has_rows(t, f->name);
    if (!any)
        return 0;
    rc = nk_buf_addf(out, err, "\n## %s\n", g->title);
    if (!rc && g->text)
        rc = nk_buf_addf(out, err, "\n%s\n", g->text);
    if (!rc)
        rc = add_singles(t, g, out, err);
    return rc ? rc : add_curves(t, g, opts, out, err);
}

/* The rows of each figure that are of the same commit and model as its last one. */
static int take_latest(const struct nk_table *all, struct nk_table *latest, struct nk_error *err)
{
    int rc = 0;

    for (size_t i = 0; !rc && i < all->n; i++) {
        const struct nk_row *r = &all->rows[i], *last = r;

        for (size_t k = all->n - 1; k > i && last == r; k--)
            if (!strcmp(all->rows[k].figure, r->figure))
                last = &all->rows[k];
        if (!strcmp(last->commit, r->commit) && !strcmp(last->model, r->model))
            rc = nk_table_add(latest, r, err);
    }
    return rc;
}

int nk_report_format(const struct nk_table *all, const struct nk_report_opts *opts,
                     struct nk_buf *out, struct nk_error *err)
{
    struct nk_table t = NK_TABLE_INIT;
    int rc;

    if (!all->n)
        return nk_fail(err, NK_E_INVALID, "no_rows", "there are no rows to report");
    rc = take_latest(all, &t, err);
    if (!rc)
        rc = add_head(&t, all->n - t.n, opts->rows, out, err);
    if (!rc && opts->plot_dir)
        rc = nk_dir_make(opts->plot_dir, err);
    for (const struct nk_group *g = nk_groups; !rc && g->name; g++)
        rc = add_group(&t, g, opts, out, err);
    if (!rc)
        rc = add_failures(&t, out, err);
    nk_table_release(&t);
    return rc;
}

int nk_report_write(const struct nk_table *t, const char *rows, const char *path,
                    struct nk_error *err)
{
    struct nk_buf page = NK_BUF_INIT(PAGE_BYTES_MAX);
    const char *slash = strrchr(path, '/');
    char dir[4096];
    struct nk_report_opts opts = { .rows = rows, .plot_dir = dir, .plot_link = "benchmarks" };
    int rc;

    snprintf(dir, sizeof dir, "%.*sbenchmarks", slash ? (int)(slash - path + 1) : 0, path);
    rc = nk_report_format(t, &opts, &page, err);
    if (!rc)
        rc = nk_file_write(path, nk_buf_str(&page), page.size, err);
    nk_buf_release(&page);
    return rc;
}
