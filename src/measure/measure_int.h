/* What the measure layer's own files share. */
#ifndef NK_MEASURE_MEASURE_INT_H
#define NK_MEASURE_MEASURE_INT_H

#include "measure/measure.h"

/* ---- shapes.c: which layers are alike, and which ranges tell their times apart ---- */

enum { NK__SHAPES_MAX = 64, NK__RANGES_MAX = 8 };

struct nk__shapes {
    int n_layer,
        n; /* n: shapes, at most NK__SHAPES_MAX; what comes after them counts as the last */
    int of[NK_LAYERS_MAX];                /* the shape of each layer */
    int n_layers[NK__SHAPES_MAX];         /* how many layers have it */
    double bytes_per_row[NK__SHAPES_MAX]; /* of weights that a row reads */
};
/* EXHAUSTED no_memory. */
int nk__shapes_find(const nk_model *m, struct nk__shapes *out, struct nk_error *err);

/* Chooses ranges that are legal slices: for each of the most frequent shapes one with as many
 * layers as it takes for target_bytes of weights, a short one, and one with the head. Each takes at
 * most max_bytes of weights and caches where that is possible. cost[i]: bytes of layer i, weights
 * and cache; head_cost. Returns how many; 0: there is no legal slice, with *err.
 *   UNIMPLEMENTED  cannot_split */
int nk__ranges_choose(const nk_model *m, const struct nk__shapes *s, const uint64_t *cost,
                      uint64_t target_bytes, uint64_t max_bytes, struct nk_range *ranges,
                      struct nk_error *err);

/* From the times of ranges: what is spent in every run, in the head, and in a layer of each shape.
 * All are positive, and they add up to the times as far as these agree. */
struct nk__shares {
    double fixed, head, layer[NK__SHAPES_MAX];
};
void nk__shares_solve(const struct nk__shapes *s, double head_bytes, const struct nk_range *ranges,
                      const double *ms, int n, struct nk__shares *out);

/* ---- timing.c: runs of a stage against the clock ---- */

/* Something to be timed. */
struct nk__timed {
    int (*run)(void *arg, struct nk_error *err);
    void *arg;
};
/* Runs it at least n_min times and then until it is end_ns, at most NK__RUNS_MAX times; *ms is the
 * median. The first run only warms up, unless it took until end_ns. */
enum { NK__RUNS_MAX = 64 };
int nk__time(struct nk_clock *clock, const struct nk__timed *t, int n_min, uint64_t end_ns,
             double *ms, struct nk_error *err);
/* Times the three kinds of runs of a stage within about the time until end_ns. rows: of each
 * kind. */
int nk__time_stage(nk_stage *s, const int rows[NK_RUN_KINDS], struct nk_clock *clock,
                   uint64_t end_ns, double ms[NK_RUN_KINDS], struct nk_error *err);
/* The look-up of one embedding row. */
int nk__time_embd(const nk_model *m, struct nk_clock *clock, double *ms, struct nk_error *err);

/* ---- machine.c ---- */

/* What the processor calls itself; "" where it is not known. */
void nk__cpu_name(char *out, size_t size);
/* The largest of its caches. */
uint64_t nk__cpu_cache_bytes(void);
uint64_t nk__disk_free_bytes(const char *dir);
/* Of this process, without files that are mapped. */
uint64_t nk__process_bytes(void);
/* A file without a name, or with one that is removed when it is closed, that can be opened by
 * path. EXHAUSTED no_files. */
struct nk__memory_file {
    int fd;
    char path[256];
    bool has_name;
};
int nk__memory_file_open(struct nk__memory_file *f, struct nk_error *err);
void nk__memory_file_close(struct nk__memory_file *f);

/* ---- keep.c: what was measured before ---- */

/* The key by which r is kept: of all that decides about its times. Its fields that do not come of
 * measuring are filled in; opts says the rest. */
int nk__measured_key(const struct nk_measured *r, const struct nk_measure_opts *opts,
                     char key[NK_SHA256_HEX], struct nk_error *err);
/* False: there is none, or it is damaged. */
bool nk__measured_load(const char *dir, const char *key, struct nk_measured *out);
void nk__measured_save(const char *dir, const struct nk_measured *r);

#endif
