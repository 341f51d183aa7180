#include "gateway/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"

enum { SERIES_MAX = 512, BUCKETS_MAX = 20, LABELS_BYTES = 160 };
enum type { COUNTER, HISTOGRAM };
enum buckets { NONE, SHORT, LONG };

/* Upper bounds in seconds; a run on a fast stage takes 100 us, a slow prompt minutes. */
static const double short_bounds[] = { .0001, .0002, .0005, .001, .002, .005, .01, .02,
                                       .05,   .1,    .2,    .5,   1,    2,    5 };
static const double long_bounds[] = { .001, .002, .005, .01, .02, .05, .1,  .2, .5,
                                      1,    2,    5,    10,  20,  60,  120, 300 };

static const struct {
    const char *name, *labels, *help;
    enum type type;
    enum buckets buckets;
} families[] = {
#define XX(id, type, name, labels, buckets, help) { name, labels, help, type, buckets },
    NK_METRIC_MAP(XX)
#undef XX
};

struct series {
    char labels[LABELS_BYTES];
    double sum;
    uint64_t count;
    uint64_t buckets[BUCKETS_MAX];
};
struct family {
    struct series *series;
    size_t n, capacity;
};

struct nk_metrics {
    pthread_mutex_t mutex;
    struct family families[NK_METRIC_COUNT];
};

static const double *bounds(enum buckets b, int *n)
{
    *n = b == SHORT  ? (int)(sizeof short_bounds / sizeof short_bounds[0])
         : b == LONG ? (int)(sizeof long_bounds / sizeof long_bounds[0])
                     : 0;
    return b == SHORT ? short_bounds : long_bounds;
}

nk_metrics *nk__metrics_new(void)
{
    nk_metrics *m = calloc(1, sizeof *m);

    if (m)
        pthread_mutex_init(&m->mutex, NULL);
    return m;
}

void nk__metrics_free(nk_metrics *m)
{
    if (!m)
        return;
    for (int i = 0; i < NK_METRIC_COUNT; i++)
        free(m->families[i].series);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

/* Under the mutex. NULL: no memory; the observation is lost. */
static struct series *find(nk_metrics *m, enum nk_metric metric, const char *labels)
{
    struct family *f = &m->families[metric];
    struct series *s;

    labels = labels ? labels : "";
    for (size_t i = 0; i < f->n; i++)
        if (!strncmp(f->series[i].labels, labels, LABELS_BYTES - 1))
            return &f->series[i];
    if (f->n == SERIES_MAX)
        return strcmp(labels, "other") ? find(m, metric, "other") : &f->series[0];
    if (nk_array_grow(f->series, f->capacity, f->n + 1, SERIES_MAX, NULL))
        return NULL;
    s = &f->series[f->n++];
    *s = (struct series){ .sum = 0 };
    snprintf(s->labels, LABELS_BYTES, "%s", labels);
    return s;
}

void nk__metrics_add(nk_metrics *m, enum nk_metric metric, const char *labels, double amount)
{
    struct series *s;

    pthread_mutex_lock(&m->mutex);
    s = find(m, metric, labels);
    if (s)
        s->sum += amount;
    pthread_mutex_unlock(&m->mutex);
}

void nk__metrics_observe(nk_metrics *m, enum nk_metric metric, const char *labels, double value,
                         uint64_t times)
{
    struct series *s;
    int n;
    const double *limit = bounds(families[metric].buckets, &n);

    pthread_mutex_lock(&m->mutex);
    s = find(m, metric, labels);
    if (s) {
        s->sum += value * (double)times;
        s->count += times;
        for (int i = 0; i < n; i++)
            if (value <= limit[i])
                s->buckets[i] += times;
    }
    pthread_mutex_unlock(&m->mutex);
}

double nk__metrics_total(nk_metrics *m, enum nk_metric metric)
{
    double total = 0;

    pthread_mutex_lock(&m->mutex);
    for (size_t i = 0; i < m->families[metric].n; i++)
        total += m->families[metric].series[i].sum;
    pthread_mutex_unlock(&m->mutex);
    return total;
}

void nk__metrics_quote(char *out, size_t size, const char *value)
{
    size_t n = 0;

    out[n++] = '"';
    for (; *value && n + 3 < size; value++) {
        if (*value == '"' || *value == '\\')
            out[n++] = '\\';
        if (*value == '\n') {
            out[n++] = '\\';
            out[n++] = 'n';
        } else
            out[n++] = *value;
    }
    out[n++] = '"';
    out[n] = '\0';
}

int nk__metrics_head(struct nk_buf *out, const char *name, const char *type, const char *help,
                     struct nk_error *err)
{
    return nk_buf_addf(out, err, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

int nk__metrics_line(struct nk_buf *out, const char *name, const char *labels, double value,
                     struct nk_error *err)
{
    return nk_buf_addf(out, err, labels ? "%s{%s} %.17g\n" : "%s%s %.17g\n", name,
                       labels ? labels : "", value);
}

/* "a,b" and the names "x,y" become x="a",y="b". */
static void label_pairs(char *out, size_t size, const char *names, const char *values)
{
    size_t at = 0;

    out[0] = '\0';
    while (*names) {
        size_t n = strcspn(names, ","), v = strcspn(values, ",");
        char value[LABELS_BYTES], quoted[2 * LABELS_BYTES];

        snprintf(value, sizeof value, "%.*s", (int)v, values);
        nk__metrics_quote(quoted, sizeof quoted, value);
        at += (size_t)snprintf(out + at, size - at, "%s%.*s=%s", at ? "," : "", (int)n, names,
                               quoted);
        if (at >= size)
            return;
        names += n + (names[n] == ',');
        values += v + (values[v] == ',');
    }
}

static int write_series(enum nk_metric metric, const struct series *s, struct nk_buf *out,
                        struct nk_error *err)
{
    const char *name = families[metric].name;
    char labels[4 * LABELS_BYTES];
    const char *comma;
    int n, rc = 0;
    const double *limit = bounds(families[metric].buckets, &n);

    label_pairs(labels, sizeof labels, families[metric].labels, s->labels);
    comma = labels[0] ? "," : "";
    if (families[metric].type == COUNTER)
        return nk__metrics_line(out, name, labels[0] ? labels : NULL, s->sum, err);
    for (int i = 0; i < n && !rc; i++)
        rc = nk_buf_addf(out, err, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma, limit[i],
                         (unsigned long long)s->buckets[i]);
    if (!rc)
        rc = nk_buf_addf(out, err, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma,
                         (unsigned long long)s->count);
    if (!rc)
        rc = nk_buf_addf(out, err, labels[0] ? "%s_sum{%s} %.17g\n" : "%s_sum%s %.17g\n", name,
                         labels, s->sum);
    if (!rc)
        rc = nk_buf_addf(out, err, labels[0] ? "%s_count{%s} %llu\n" : "%s_count%s %llu\n", name,
                         labels, (unsigned long long)s->count);
    return rc;
}

int nk__metrics_write(nk_metrics *m, struct nk_buf *out, struct nk_error *err)
{
    static const struct series zero = { .labels = "" };
    int rc = 0;

    pthread_mutex_lock(&m->mutex);
    for (int i = 0; i < NK_METRIC_COUNT && !rc; i++) {
        rc = nk__metrics_head(out, families[i].name,
                              families[i].type == COUNTER ? "counter" : "histogram",
                              families[i].help, err);
        /* A family without labels is there from the beginning, with zeros. */
        if (!rc && !m->families[i].n && !families[i].labels[0])
            rc = write_series((enum nk_metric)i, &zero, out, err);
        for (size_t k = 0; k < m->families[i].n && !rc; k++)
            rc = write_series((enum nk_metric)i, &m->families[i].series[k], out, err);
    }
    pthread_mutex_unlock(&m->mutex);
    return rc;
}
