#include "bench/steps.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "bench/stats.h"

enum { TRACE_BYTES_MAX = 256 << 20, LINE_BYTES_MAX = 512, STEPS_MIN = 16 };

static const char *const kind_names[NK_STEP_KINDS] = { "received", "computing", "computed", "sent",
                                                       "answered" };

static bool parse_line(const char *line, struct nk_step_event *e)
{
    char kind[16];

    if (sscanf(line,
               "{\"t\":%" SCNu64 ",\"ev\":\"%15[a-z]\",\"worker\":\"%*[^\"]\",\"session\":"
               "\"%15[0-9a-f]\",\"step\":%" SCNu64 ",\"pos\":%d,\"rows\":%d}",
               &e->t_ns, kind, e->session, &e->step, &e->pos, &e->n_rows) != 6)
        return false;
    for (int i = 0; i < NK_STEP_KINDS; i++)
        if (!strcmp(kind, kind_names[i])) {
            e->kind = (enum nk_step_kind)i;
            return true;
        }
    return false;
}

int nk_steps_parse(struct nk_steps *out, struct nk_bytes text, const char *name,
                   struct nk_error *err)
{
    const char *p = (const char *)text.data, *end = p + text.size;
    size_t n_lines = 0;

    *out = (struct nk_steps){ NULL, 0 };
    for (const char *q = p; q < end; q++)
        n_lines += *q == '\n';
    out->events = malloc((n_lines + 1) * sizeof *out->events);
    if (!out->events)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for %zu events", n_lines);
    while (p < end) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        size_t n = newline ? (size_t)(newline - p) : (size_t)(end - p);
        char line[LINE_BYTES_MAX];

        if (newline && n < sizeof line) {
            memcpy(line, p, n);
            line[n] = 0;
        }
        if (!newline || n >= sizeof line || !parse_line(line, &out->events[out->n])) {
            size_t at = out->n + 1;

            nk_steps_release(out);
            return nk_fail(err, NK_E_INVALID, "bad_trace", "%s:%zu: no line of a step trace", name,
                           at);
        }
        out->n++;
        p = newline + 1;
    }
    return 0;
}

int nk_steps_read(struct nk_steps *out, const char *path, struct nk_error *err)
{
    struct nk_buf b = NK_BUF_INIT(TRACE_BYTES_MAX);
    int rc = nk_file_read(path, TRACE_BYTES_MAX, &b, err);

    *out = (struct nk_steps){ NULL, 0 };
    if (!rc)
        rc = nk_steps_parse(out, (struct nk_bytes){ (const uint8_t *)nk_buf_str(&b), b.size }, path,
                            err);
    nk_buf_release(&b);
    return rc;
}

void nk_steps_release(struct nk_steps *s)
{
    free(s->events);
    *s = (struct nk_steps){ NULL, 0 };
}

/* When an event of a step happened; 0: it did not. The search goes on where the last one ended,
 * since steps come in order. */
static uint64_t when(const struct nk_steps *s, size_t *from, enum nk_step_kind kind, uint64_t step)
{
    for (size_t i = *from; i < s->n; i++)
        if (s->events[i].kind == kind && s->events[i].step == step) {
            *from = i;
            return s->events[i].t_ns;
        }
    return 0;
}

int nk_steps_hop(const struct nk_steps *first, const struct nk_steps *last, int n_skip,
                 struct nk_hop_times *out, struct nk_error *err)
{
    double *times = malloc((3 * first->n + 1) * sizeof *times);
    double *both = times, *there = both ? both + first->n : NULL,
           *back = there ? there + first->n : NULL;
    size_t n = 0, at_run = 0, at_answer = 0, at_next = 0;

    if (!times)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (size_t i = 0; i < first->n; i++) {
        const struct nk_step_event *e = &first->events[i];
        uint64_t run, answer, next;

        if (e->kind != NK_STEP_COMPUTED || e->n_rows != 1 || n_skip-- > 0)
            continue;
        run = when(last, &at_run, NK_STEP_COMPUTING, e->step);
        answer = when(last, &at_answer, NK_STEP_ANSWERED, e->step);
        next = when(first, &at_next, NK_STEP_COMPUTING, e->step + 1);
        if (!run || !answer || !next || run < e->t_ns ||
            next < answer) /* the last one has no next */
            continue;
        there[n] = (double)(run - e->t_ns) / 1e3;
        back[n] = (double)(next - answer) / 1e3;
        both[n] = there[n] + back[n];
        n++;
    }
    if (n >= STEPS_MIN) {
        out->both_median = nk_median(both, n); /* sorts them */
        out->both_p99 = nk_percentile(both, n, 0.99);
        out->there_median = nk_median(there, n);
        out->back_median = nk_median(back, n);
    }
    free(times);
    return n >= STEPS_MIN ? 0
                          : nk_fail(err, NK_E_UNKNOWN, "not_run",
                                    "the traces hold %zu whole steps of one row; %d are the least",
                                    n, STEPS_MIN);
}

double nk_steps_longest_chunk_ms(const struct nk_steps *s)
{
    uint64_t longest = 0, begin_ns = 0;

    /* One thread computes: an end belongs to the latest beginning. */
    for (size_t i = 0; i < s->n; i++) {
        const struct nk_step_event *e = &s->events[i];

        if (e->kind == NK_STEP_COMPUTING)
            begin_ns = e->t_ns;
        else if (e->kind == NK_STEP_COMPUTED && e->n_rows > 1 && e->t_ns - begin_ns > longest)
            longest = e->t_ns - begin_ns;
    }
    return (double)longest / 1e6;
}
