#include "bench/table.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/file.h"
#include "bench/stats.h"

enum { CSV_BYTES_MAX = 64 << 20, FIELD_MAX = 256, ROWS_MAX = 1 << 20 };

/* clang-format off */
/*     field     kind */
#define COLUMNS(XX)                                                                     \
    XX(figure,   TEXT)   XX(system, TEXT)   XX(x,       NUMBER) XX(run,      INT)       \
    XX(status,   STATUS) XX(value,  NUMBER) XX(unit,    TEXT)   XX(params,   TEXT)      \
    XX(model,    TEXT)   XX(foreign, NUMBER) XX(slowdown, NUMBER) XX(note,   TEXT)      \
    XX(time,     TEXT)   XX(commit, TEXT)   XX(version, TEXT)   XX(llama,    TEXT)      \
    XX(machine,  TEXT)
/* clang-format on */

enum kind { TEXT, NUMBER, INT, STATUS };

static const struct column {
    const char *name;
    enum kind kind;
    size_t offset, size;
} columns[] = {
#define XX(field, kind)                                                                            \
    { #field, kind, offsetof(struct nk_row, field), sizeof(((struct nk_row *)0)->field) },
    COLUMNS(XX)
#undef XX
};
enum { N_COLUMNS = sizeof columns / sizeof columns[0] };

static const char *const status_names[] = { "ok", "noisy", "failed" };

void nk_table_release(struct nk_table *t)
{
    free(t->rows);
    *t = (struct nk_table)NK_TABLE_INIT;
}

int nk_table_add(struct nk_table *t, const struct nk_row *row, struct nk_error *err)
{
    int rc = nk_array_grow(t->rows, t->capacity, t->n + 1, ROWS_MAX, err);

    if (rc)
        return nk_wrap(rc, err, "the table of rows");
    t->rows[t->n++] = *row;
    return 0;
}

/* ---- CSV ---- */

static int add_text(struct nk_buf *out, const char *text, struct nk_error *err)
{
    int rc = 0;

    if (!strpbrk(text, ",\"\r\n"))
        return nk_buf_adds(out, text, err);
    rc = nk_buf_adds(out, "\"", err);
    for (; !rc && *text; text++)
        rc = *text == '"' ? nk_buf_adds(out, "\"\"", err) : nk_buf_add(out, text, 1, err);
    return rc ? rc : nk_buf_adds(out, "\"", err);
}

int nk_table_format_header(struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; !rc && i < N_COLUMNS; i++)
        rc = nk_buf_addf(out, err, "%s%s", columns[i].name, i + 1 < N_COLUMNS ? "," : "\n");
    return rc;
}

int nk_table_format_row(const struct nk_row *row, struct nk_buf *out, struct nk_error *err)
{
    int rc = 0;

    for (int i = 0; !rc && i < N_COLUMNS; i++) {
        const void *field = (const char *)row + columns[i].offset;

        switch (columns[i].kind) {
        case TEXT:
            rc = add_text(out, field, err);
            break;
        case NUMBER:
            rc = nk_buf_addf(out, err, "%.6g", *(const double *)field);
            break;
        case INT:
            rc = nk_buf_addf(out, err, "%d", *(const int *)field);
            break;
        case STATUS:
            rc = nk_buf_adds(out, status_names[*(const enum nk_row_status *)field], err);
            break;
        }
        if (!rc)
            rc = nk_buf_adds(out, i + 1 < N_COLUMNS ? "," : "\n", err);
    }
    return rc;
}

struct cursor {
    const char *p, *end;
    int line;
};

/* One field; *last tells that the line ends after it. false: a quote without its end, or a field
 * too long. */
static bool next_field(struct cursor *c, char field[FIELD_MAX], bool *last)
{
    bool quoted = c->p < c->end && *c->p == '"';
    size_t n = 0;

    c->p += quoted;
    for (;; c->p++) {
        if (c->p == c->end)
            break;
        if (quoted && *c->p == '"') {
            if (c->p + 1 == c->end || c->p[1] != '"') {
                quoted = false;
                continue;
            }
            c->p++;
        } else if (!quoted && (*c->p == ',' || *c->p == '\n')) {
            break;
        } else if (!quoted && *c->p == '\r') {
            continue;
        }
        if (n + 1 >= FIELD_MAX)
            return false;
        c->line += *c->p == '\n';
        field[n++] = *c->p;
    }
    field[n] = 0;
    *last = c->p == c->end || *c->p == '\n';
    if (c->p < c->end)
        c->line += *c->p++ == '\n';
    return !quoted;
}

static int set_field(struct nk_row *row, const struct column *column, const char *text,
                     const char *name, int line, struct nk_error *err)
{
    void *field = (char *)row + column->offset;
    char *end;
    double number;

    if (column->kind == TEXT) {
        if (strlen(text) >= column->size)
            return nk_fail(err, NK_E_INVALID, "bad_csv", "%s:%d: %s: at most %zu bytes, not %zu",
                           name, line, column->name, column->size - 1, strlen(text));
        strcpy(field, text); /* it fits: just checked */
        return 0;
    }
    if (column->kind == STATUS) {
        for (int i = 0; i < 3; i++)
            if (!strcmp(text, status_names[i])) {
                *(enum nk_row_status *)field = (enum nk_row_status)i;
                return 0;
            }
        return nk_fail(err, NK_E_INVALID, "bad_csv",
                       "%s:%d: status '%s' is none of ok, noisy, failed", name, line, text);
    }
    number = strtod(text, &end);
    if (end == text || *end || !isfinite(number) || fabs(number) > 1e15)
        return nk_fail(err, NK_E_INVALID, "bad_csv", "%s:%d: %s: '%s' is not a number", name, line,
                       column->name, text);
    if (column->kind == INT)
        *(int *)field = number > 1e9 || number < -1e9 ? 0 : (int)number;
    else
        *(double *)field = number;
    return 0;
}

int nk_table_parse(struct nk_table *t, struct nk_bytes text, const char *name, struct nk_error *err)
{
    struct cursor c = { (const char *)text.data, (const char *)text.data + text.size, 1 };
    char field[FIELD_MAX];

    for (bool header = true; c.p < c.end; header = false) {
        struct nk_row row = { 0 };
        int line = c.line;

        for (int i = 0; i < N_COLUMNS; i++) {
            bool last;
            int rc = 0;

            if (!next_field(&c, field, &last))
                return nk_fail(err, NK_E_INVALID, "bad_csv",
                               "%s:%d: a field of more than %d bytes, or a quote without end", name,
                               line, FIELD_MAX - 1);
            if (header && strcmp(field, columns[i].name))
                return nk_fail(err, NK_E_INVALID, "bad_csv",
                               "%s:%d: column %d is '%s'; '%s' was expected: is it a table of "
                               "this program's bench?",
                               name, line, i + 1, field, columns[i].name);
            if (!header)
                rc = set_field(&row, &columns[i], field, name, line, err);
            if (rc)
                return rc;
            if (last != (i + 1 == N_COLUMNS))
                return nk_fail(err, NK_E_INVALID, "bad_csv", "%s:%d: %s than %d fields", name, line,
                               last ? "fewer" : "more", N_COLUMNS);
        }
        if (!header) {
            int rc = nk_table_add(t, &row, err);

            if (rc)
                return rc;
        }
    }
    if (c.line == 1 && text.size == 0)
        return nk_fail(err, NK_E_INVALID, "bad_csv", "%s: empty; a header line was expected", name);
    return 0;
}

int nk_table_read(struct nk_table *t, const char *path, struct nk_error *err)
{
    struct nk_buf b = NK_BUF_INIT(CSV_BYTES_MAX);
    int rc = nk_file_read(path, CSV_BYTES_MAX, &b, err);

    if (!rc)
        rc = nk_table_parse(t, (struct nk_bytes){ (const uint8_t *)nk_buf_str(&b), b.size }, path,
                            err);
    nk_buf_release(&b);
    return rc;
}

/* ---- statistics ---- */

static bool is_same(const struct nk_row *r, const char *figure, double x, const char *system)
{
    return !strcmp(r->figure, figure) && r->x == x && !strcmp(r->system, system);
}

/* Sorts the n_ok values. */
static void take_values(struct nk_summary *s, double *values)
{
    int rank = nk_median_rank(s->n_ok);

    s->median = nk_median(values, (size_t)s->n_ok);
    if (s->n_ok) {
        s->min = values[0];
        s->max = values[s->n_ok - 1];
        s->low = values[rank];
        s->high = values[s->n_ok - 1 - rank];
    }
}

struct nk_summary nk_table_summarise(const struct nk_table *t, const char *figure, double x,
                                     const char *system)
{
    struct nk_summary s = { 0 };
    double *values = malloc((t->n + 1) * sizeof *values);

    NK_ASSERT(values);
    for (size_t i = 0; i < t->n; i++) {
        const struct nk_row *r = &t->rows[i];

        if (!is_same(r, figure, x, system))
            continue;
        s.last = r;
        if (r->status == NK_ROW_OK)
            values[s.n_ok++] = r->value;
        else if (r->status == NK_ROW_NOISY)
            s.n_noisy++;
        else
            s.n_failed++;
    }
    take_values(&s, values);
    free(values);
    return s;
}

struct nk_summary nk_table_ratios(const struct nk_table *t, const char *figure, double x,
                                  const char *ours, const char *theirs)
{
    struct nk_summary s = { 0 };
    const struct nk_row *pair[2] = { NULL, NULL };
    double *ratios = malloc((t->n + 1) * sizeof *ratios);

    NK_ASSERT(ratios);
    for (size_t i = 0; i < t->n; i++) {
        const struct nk_row *r = &t->rows[i];
        int k = is_same(r, figure, x, ours) ? 0 : is_same(r, figure, x, theirs) ? 1 : -1;

        if (k < 0)
            continue;
        s.last = r;
        s.n_noisy += k == 0 && r->status == NK_ROW_NOISY;
        s.n_failed += r->status == NK_ROW_FAILED;
        pair[k] = r->status == NK_ROW_OK ? r : NULL;
        if (pair[0] && pair[1] && pair[0]->run == pair[1]->run && pair[1]->value > 0) {
            ratios[s.n_ok++] = pair[0]->value / pair[1]->value;
            pair[0] = pair[1] = NULL;
        }
    }
    take_values(&s, ratios);
    free(ratios);
    return s;
}

static bool passes(double ratio, double bar, bool lower_is_better)
{
    return lower_is_better ? ratio <= bar : ratio >= bar;
}

enum nk_verdict nk_verdict_of(const struct nk_summary *ours, const struct nk_summary *theirs,
                              double bar, bool lower_is_better, double *ratio)
{
    bool spread;

    *ratio = 0;
    if (!ours->n_ok || !theirs->n_ok || theirs->median <= 0 || theirs->low <= 0)
        return ours->n_noisy + theirs->n_noisy && ours->n_ok + ours->n_noisy &&
                       theirs->n_ok + theirs->n_noisy
                   ? NK_VERDICT_NOISY
                   : NK_VERDICT_NONE;
    *ratio = ours->median / theirs->median;
    spread = (ours->high - ours->low) > NK_SPREAD_MAX * ours->median ||
             (theirs->high - theirs->low) > NK_SPREAD_MAX * theirs->median;
    if (spread && passes(ours->low / theirs->high, bar, lower_is_better) !=
                      passes(ours->high / theirs->low, bar, lower_is_better))
        return NK_VERDICT_NOISY;
    return passes(*ratio, bar, lower_is_better) ? NK_VERDICT_REACHED : NK_VERDICT_MISSED;
}

enum nk_verdict nk_verdict_pairs(const struct nk_summary *ratios, double bar, bool lower_is_better)
{
    if (!ratios->n_ok)
        return ratios->n_noisy ? NK_VERDICT_NOISY : NK_VERDICT_NONE;
    if (ratios->high - ratios->low > NK_SPREAD_MAX * ratios->median &&
        passes(ratios->low, bar, lower_is_better) != passes(ratios->high, bar, lower_is_better))
        return NK_VERDICT_NOISY;
    return passes(ratios->median, bar, lower_is_better) ? NK_VERDICT_REACHED : NK_VERDICT_MISSED;
}

enum nk_verdict nk_verdict_added(const struct nk_summary *ours, const struct nk_summary *theirs,
                                 double added, double *difference)
{
    *difference = ours->median - theirs->median;
    if (!ours->n_ok || !theirs->n_ok)
        return ours->n_ok + ours->n_noisy && theirs->n_ok + theirs->n_noisy ? NK_VERDICT_NOISY
                                                                            : NK_VERDICT_NONE;
    if ((ours->high - ours->low > added || theirs->high - theirs->low > added) &&
        (ours->low - theirs->high <= added) != (ours->high - theirs->low <= added))
        return NK_VERDICT_NOISY;
    return *difference <= added ? NK_VERDICT_REACHED : NK_VERDICT_MISSED;
}

enum nk_verdict nk_verdict_limit(const struct nk_summary *ours, double limit, bool lower_is_better)
{
    struct nk_summary theirs = { .n_ok = 1, .median = limit, .low = limit, .high = limit };
    double ratio;

    return nk_verdict_of(ours, &theirs, 1, lower_is_better, &ratio);
}

/* ---- comparison ---- */

static bool is_lower_better(const char *unit)
{
    return !strstr(unit, "/s") && strcmp(unit, "%") && strcmp(unit, "streams");
}

static int compare_one(const struct nk_row *key, const struct nk_summary *a,
                       const struct nk_summary *b, struct nk_buf *out, int *n_worse,
                       struct nk_error *err)
{
    bool apart = a->n_ok && b->n_ok && (a->high < b->low || b->high < a->low);
    double change = a->median > 0 ? 100 * (b->median / a->median - 1) : 0;
    const char *word = "";
    char place[24] = "";

    if (apart && fabs(change) >= 1) {
        bool worse = (change < 0) != is_lower_better(key->unit);

        word = worse ? "worse" : "better";
        *n_worse += worse;
    } else if (a->n_ok && b->n_ok) {
        word = "within noise";
    } else {
        word = a->n_ok   ? "no figure in the second"
               : b->n_ok ? "no figure in the first"
                         : "no figure in either";
    }
    if (key->x != 0)
        snprintf(place, sizeof place, " at %g", key->x);
    return nk_buf_addf(out, err, "%-16s%-9s %-6s %10.4g -> %-10.4g %-6s %+6.1f %%  %s\n",
                       key->figure, place, key->system, a->median, b->median, key->unit, change,
                       word);
}

int nk_table_compare(const struct nk_table *a, const struct nk_table *b, struct nk_buf *out,
                     int *n_worse, struct nk_error *err)
{
    const struct nk_table *both[2] = { a, b };
    int rc = 0;

    *n_worse = 0;
    if (a->n && b->n && strcmp(a->rows[0].machine, b->rows[0].machine))
        rc = nk_buf_addf(out, err, "note: different machines: %s; %s\n", a->rows[0].machine,
                         b->rows[0].machine);
    if (!rc && a->n && b->n && strcmp(a->rows[0].model, b->rows[0].model))
        rc = nk_buf_addf(out, err, "note: different models: %s; %s\n", a->rows[0].model,
                         b->rows[0].model);
    for (int which = 0; which < 2; which++)
        for (size_t i = 0; !rc && i < both[which]->n; i++) {
            const struct nk_row *key = &both[which]->rows[i];
            bool seen = false;
            struct nk_summary sa, sb;

            for (int w = 0; w <= which; w++)
                for (size_t j = 0; !seen && j < (w == which ? i : both[w]->n); j++)
                    seen = is_same(&both[w]->rows[j], key->figure, key->x, key->system);
            if (seen)
                continue;
            sa = nk_table_summarise(a, key->figure, key->x, key->system);
            sb = nk_table_summarise(b, key->figure, key->x, key->system);
            rc = compare_one(key, &sa, &sb, out, n_worse, err);
        }
    return rc;
}
