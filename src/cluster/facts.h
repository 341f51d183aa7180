/* What is known of a model and of machines, as the planner's facts. */
#ifndef NK_CLUSTER_FACTS_H
#define NK_CLUSTER_FACTS_H

#include "base/error.h"
#include "measure/measure.h"
#include "plan/plan.h"
#include "slice/slice.h"

/* A model's. plan points into the rest. */
struct nk_facts_model {
    struct nk_plan_model plan;
    uint64_t *layer_bytes, *kv_bytes_per_token, *state_bytes;
    bool *legal_cut;
};
/* On success *out is the caller's: nk_facts_model_release(). EXHAUSTED no_memory. */
int nk_facts_model(const nk_model *m, struct nk_facts_model *out, struct nk_error *err);
void nk_facts_model_release(struct nk_facts_model *m);

/* A machine's; out's id and name stay empty.
 *   INVALID  bad_measurement  it was made for another model */
int nk_facts_member(const struct nk_measured *r, const struct nk_plan_model *model,
                    struct nk_plan_member *out, struct nk_error *err);
/* The same of the text that `nakshatra measure --json` prints, which another machine sent. Also
 * nk_measured_parse's errors. */
int nk_facts_parse(const char *json, const struct nk_plan_model *model, struct nk_plan_member *out,
                   struct nk_error *err);

#endif
