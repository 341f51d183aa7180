#include "bench/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/process.h"
#include "bench/figure.h"

enum { PLACES_MAX = 64, GNUPLOT_MS_MAX = 60000, SCRIPT_BYTES_MAX = 1 << 20 };

static const char *const systems[] = { "ours", "whole", "rpc" };
static const char *const system_titles[] = { "Nakshatra", "whole model, one process",
                                             "llama.cpp RPC" };
enum { N_SYSTEMS = 3 };

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

/* "17.1 (16.9-17.3)", or why there is none. */
static int add_cell(const struct nk_summary *s, struct nk_buf *out, struct nk_error *err)
{
    char median[24], min[24], max[24];

    if (s->n_ok)
        return nk_buf_addf(out, err, " %s (%s to %s) |", format_value(median, s->median),
                           format_value(min, s->min), format_value(max, s->max));
    return nk_buf_adds(out, s->n_noisy ? " too noisy |" : s->n_failed ? " failed |" : " |", err);
}

static const char *verdict_text(enum nk_verdict v)
{
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

static int add_bars(const struct nk_table *t, const struct nk_figure *f,
                    const struct nk_summary *ours, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; !rc && i < 2 && f->bars[i].against; i++) {
        struct nk_summary theirs = nk_table_summarise(t, f->name, 0, f->bars[i].against);
        double ratio;
        enum nk_verdict v =
            nk_verdict_of(ours, &theirs, f->bars[i].ratio, f->lower_is_better, &ratio);

        rc = nk_buf_addf(out, err, "%s %s: ", i ? "<br>" : "", f->bars[i].against);
        if (!rc && ratio > 0)
            rc = nk_buf_addf(out, err, "%.2f of %s %.2f, ", ratio,
                             f->lower_is_better ? "at most" : "at least", f->bars[i].ratio);
        if (!rc)
            rc = nk_buf_adds(out, verdict_text(v), err);
    }
    return rc ? rc : nk_buf_adds(out, " |\n", err);
}

static bool has_rows(const struct nk_table *t, const char *figure)
{
    for (size_t i = 0; i < t->n; i++)
        if (!strcmp(t->rows[i].figure, figure))
            return true;
    return false;
}

static int add_table(const struct nk_table *t, struct nk_buf *out, struct nk_error *err)
{
    int rc =
        nk_buf_adds(out,
                    "\n| figure | unit | ours | whole model | llama.cpp RPC | ours over theirs |\n"
                    "|---|---|---|---|---|---|\n",
                    err);

    for (const struct nk_figure *f = nk_figures; !rc && f->name; f++) {
        struct nk_summary s[N_SYSTEMS];

        if (f->places || !has_rows(t, f->name))
            continue;
        rc = nk_buf_addf(out, err, "| %s | %s |", f->title, f->unit);
        for (int i = 0; !rc && i < N_SYSTEMS; i++) {
            s[i] = nk_table_summarise(t, f->name, 0, systems[i]);
            rc = add_cell(&s[i], out, err);
        }
        if (!rc)
            rc = add_bars(t, f, &s[0], out, err);
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
    int rc = nk_buf_addf(
        out, err,
        "\n### %c%s\n\n%s\n\n| %s | ours, %s | whole model | llama.cpp RPC |\n|---|---|---|---|\n",
        f->title[0] - ('a' <= f->title[0] && f->title[0] <= 'z' ? 32 : 0), f->title + 1,
        f->expected, f->x_title, f->unit);

    for (int k = 0; !rc && k < n; k++) {
        rc = nk_buf_addf(out, err, "| %g |", places[k]);
        for (int i = 0; !rc && i < N_SYSTEMS; i++) {
            struct nk_summary s = nk_table_summarise(t, f->name, places[k], systems[i]);

            rc = add_cell(&s, out, err);
        }
        if (!rc)
            rc = nk_buf_adds(out, "\n", err);
    }
    return rc;
}

/* gnuplot's script with the data in it: one block per system, lines with the range of the runs as bars. */
static int format_script(const struct nk_table *t, const struct nk_figure *f, const double *places,
                         int n, const char *path, struct nk_buf *out, struct nk_error *err)
{
    int n_drawn = 0, rc = 0;
    bool drawn[N_SYSTEMS] = { false };

    for (int i = 0; !rc && i < N_SYSTEMS; i++) {
        struct nk_buf data = NK_BUF_INIT(SCRIPT_BYTES_MAX);

        for (int k = 0; !rc && k < n; k++) {
            struct nk_summary s = nk_table_summarise(t, f->name, places[k], systems[i]);

            if (s.n_ok)
                rc = nk_buf_addf(&data, err, "%g %g %g %g\n", places[k], s.median, s.min, s.max);
        }
        if (!rc && data.size) {
            drawn[i] = true;
            rc = nk_buf_addf(out, err, "$%s << EOD\n%sEOD\n", systems[i], data.data);
        }
        nk_buf_release(&data);
    }
    if (!rc)
        rc = nk_buf_addf(
            out, err,
            "set terminal svg size 720,420 font 'sans-serif,13' background rgb 'white'\n"
            "set output '%s'\nset title '%s' noenhanced\nset xlabel '%s'\nset ylabel '%s'\n"
            "set yrange [0:*]\nset grid lc rgb '#dddddd'\nset key outside bottom center "
            "horizontal\n"
            "set border 3\nset tics nomirror\nset offsets graph 0.02, graph 0.02, graph 0.05, 0\n",
            path, f->title, f->x_title, f->unit);
    if (!rc && n > 3 && places[n - 1] > 8 * places[0])
        rc = nk_buf_adds(out, "set logscale x 2\n", err);
    for (int i = 0; !rc && i < N_SYSTEMS; i++) {
        static const char *const colours[] = { "#0060ad", "#444444", "#c0392b" };

        if (drawn[i])
            rc = nk_buf_addf(out, err,
                             "%s $%s with yerrorlines lw 2 pt 7 ps 0.6 lc rgb '%s' title '%s'",
                             n_drawn++ ? "," : "plot", systems[i], colours[i], system_titles[i]);
    }
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
                         "gnuplot could not draw %s (is it installed? `scripts/deps --bench`)",
                         path);
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

static int add_head(const struct nk_table *t, struct nk_buf *out, struct nk_error *err)
{
    const struct nk_row *first = &t->rows[0], *last = &t->rows[t->n - 1];
    int n_noisy = 0, n_failed = 0;

    for (size_t i = 0; i < t->n; i++) {
        n_noisy += t->rows[i].status == NK_ROW_NOISY;
        n_failed += t->rows[i].status == NK_ROW_FAILED;
    }
    return nk_buf_addf(
        out, err,
        "# Benchmarks\n\n"
        "Made by `make bench` (`nakshatra bench run`, `nakshatra bench report`); do not edit.\n\n"
        "- machine: %s\n- model: %s. Its weights are random: speed and memory do not depend on "
        "their values.\n"
        "- Nakshatra %s, commit %s; llama.cpp %s, the same library under ours and under the peers\n"
        "- measured %.10s to %.10s; %zu runs, of which %d were set aside because the machine was "
        "busy otherwise and %d failed\n"
        "\nEvery figure is the median of the runs with the least and the greatest. Ours and the "
        "peers are asked in turn, in "
        "alternating order, after one run for warming up. Prompts are random ids of the exact "
        "length, end-of-generation tokens "
        "are never chosen, sampling is greedy. *Whole model* is llama.cpp with the whole model in "
        "one process on the same cores "
        "(llama-bench, llama-batched-bench, llama-server): the limit. *llama.cpp RPC* is the same "
        "tools over ggml-rpc-server, "
        "one server per worker of ours with as many threads. *Cores shared out*: each of two "
        "workers or servers has half of the "
        "threads; otherwise each may use all cores. A verdict is only given when the spread of the "
        "runs allows one.\n",
        first->machine, first->model, first->version, first->commit, first->llama, first->time,
        last->time, t->n, n_noisy, n_failed);
}

int nk_report_format(const struct nk_table *t, const struct nk_report_opts *opts,
                     struct nk_buf *out, struct nk_error *err)
{
    bool any_curve = false;
    int rc;

    if (!t->n)
        return nk_fail(err, NK_E_INVALID, "no_rows", "there are no rows to report");
    rc = add_head(t, out, err);
    if (!rc && opts->plot_dir)
        rc = nk_dir_make(opts->plot_dir, err);
    if (!rc)
        rc = add_table(t, out, err);
    for (const struct nk_figure *f = nk_figures; !rc && f->name; f++) {
        double places[PLACES_MAX];
        int n = f->places ? find_places(t, f->name, places) : 0;

        if (!n)
            continue;
        if (!any_curve)
            rc = nk_buf_adds(out, "\n## Curves\n", err);
        any_curve = true;
        if (!rc)
            rc = add_curve(t, f, places, n, out, err);
        if (!rc && opts->plot_dir)
            rc = plot(t, f, places, n, opts, out, err);
    }
    return rc ? rc : add_failures(t, out, err);
}
