/* Metrics in Prometheus' text format (version 0.0.4): counters, gauges and histograms, a series per
 * set of label values. Names and units by https://prometheus.io/docs/practices/naming/.
 * Thread-safe: one mutex, held for a lookup and an addition. */
#ifndef NK_GATEWAY_METRICS_H
#define NK_GATEWAY_METRICS_H

#include <stdint.h>

#include "base/buf.h"

/* clang-format off */
#define NK_METRIC_MAP(XX) \
    XX(REQUESTS,     COUNTER,   "nakshatra_http_requests_total", "route,code", NONE, \
       "HTTP requests answered.") \
    XX(REQUEST_TIME, HISTOGRAM, "nakshatra_http_request_duration_seconds", "route", LONG, \
       "From a request's first line to its reply's last byte.") \
    XX(GENERATIONS,  COUNTER,   "nakshatra_generations_total", "finish", NONE, \
       "Generations that ended, by how: stop, length, tool_calls, cancelled, error.") \
    XX(ERRORS,       COUNTER,   "nakshatra_errors_total", "reason", NONE, \
       "Requests that failed, by reason.") \
    XX(PROMPT,       COUNTER,   "nakshatra_prompt_tokens_total", "", NONE, "Tokens of prompts.") \
    XX(REUSED,       COUNTER,   "nakshatra_prompt_tokens_reused_total", "", NONE, \
       "Tokens of prompts whose KV was kept from an earlier request.") \
    XX(GENERATED,    COUNTER,   "nakshatra_generated_tokens_total", "", NONE, "Tokens generated.") \
    XX(WAIT,         HISTOGRAM, "nakshatra_queue_wait_seconds", "", LONG, \
       "Time a generation waited for a free sequence.") \
    XX(FIRST_TOKEN,  HISTOGRAM, "nakshatra_time_to_first_token_seconds", "", LONG, \
       "From a request's first line to its first token, the wait included.") \
    XX(TOKEN_TIME,   HISTOGRAM, "nakshatra_time_per_token_seconds", "", SHORT, \
       "Between two tokens of a generation.") \
    XX(RECOVERIES,   COUNTER,   "nakshatra_recoveries_total", "cause,outcome", NONE, \
       "Generations that lost a worker (gone, silent), by how that ended: resumed, given_up, " \
       "cancelled.") \
    XX(RECOVERY_TIME, HISTOGRAM, "nakshatra_recovery_seconds", "part", LONG, \
       "Parts of a recovery: choose (from the loss until a chain is there), open (until its " \
       "stages have what they lack), first_token; and pause, all of them.") \
    XX(COMPUTE,      HISTOGRAM, "nakshatra_stage_compute_seconds", "stage", SHORT, \
       "A stage's time in computing per run: each generation's mean, once per run.") \
    XX(STAGE_WAIT,   HISTOGRAM, "nakshatra_stage_queue_seconds", "stage", SHORT, \
       "A stage's time in waiting per run: each generation's mean, once per run.") \
    XX(HOP,          HISTOGRAM, "nakshatra_stage_hop_seconds", "stage", SHORT, \
       "The time of the way into a stage per run: each generation's mean, once per run.")
/* clang-format on */
enum nk_metric {
#define XX(name, type, text, labels, buckets, help) NK_METRIC_##name,
    NK_METRIC_MAP(XX)
#undef XX
        NK_METRIC_COUNT
};

typedef struct nk_metrics nk_metrics;

nk_metrics *nk__metrics_new(void); /* NULL: no memory */
void nk__metrics_free(nk_metrics *m);
/* labels: the values in the family's order, joined by a comma; NULL where there are none. They come
 * from fixed sets: past 512 series of a family further ones are counted under "other". */
void nk__metrics_add(nk_metrics *m, enum nk_metric metric, const char *labels, double amount);
/* times: how many observations of this value. */
void nk__metrics_observe(nk_metrics *m, enum nk_metric metric, const char *labels, double value,
                         uint64_t times);
/* The sum of a counter's series, or how much a histogram has observed. */
double nk__metrics_total(nk_metrics *m, enum nk_metric metric);
int nk__metrics_write(nk_metrics *m, struct nk_buf *out, struct nk_error *err);

/* For values that are only known when somebody asks: the head of a family, then its lines. */
int nk__metrics_head(struct nk_buf *out, const char *name, const char *type, const char *help,
                     struct nk_error *err);
/* labels: "stage=\"a\"" or NULL. */
int nk__metrics_line(struct nk_buf *out, const char *name, const char *labels, double value,
                     struct nk_error *err);
/* A label's value with its quotes, escaped: backslash, quote and newline. */
void nk__metrics_quote(char *out, size_t size, const char *value);

#endif
