#include "cluster/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#define MEMBERS "members/"
#define PLAN    "plan"

enum { PLAN_BYTES_MAX = 1 << 20 };

static int bad(const char *key, const char *what, struct nk_error *err)
{
    return nk_fail(err, NK_E_DATA_LOSS, "bad_store", "the store's %s is not what was written: %s",
                   key, what);
}

static int put_json(nk_store *s, const char *key, json_t *j, uint64_t *revision,
                    struct nk_error *err)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    int rc = text ? nk_store_put(s, key, (struct nk_bytes){ (uint8_t *)text, strlen(text) }, 0,
                                 revision, err)
                  : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    free(text);
    json_decref(j);
    return rc;
}

int nk_record_put_member(nk_store *s, const struct nk_member_record *r, uint64_t *revision,
                         struct nk_error *err)
{
    char key[sizeof MEMBERS + NK_MEMBER_ID_SIZE];

    snprintf(key, sizeof key, MEMBERS "%s", r->id);
    return put_json(s, key,
                    json_pack("{s:s,s:b,s:b}", "name", r->name, "gateway", (int)r->gateway,
                              "removed", (int)r->removed),
                    revision, err);
}

int nk_record_delete_member(nk_store *s, const char *id, struct nk_error *err)
{
    char key[sizeof MEMBERS + NK_MEMBER_ID_SIZE];
    int rc;

    snprintf(key, sizeof key, MEMBERS "%s", id);
    rc = nk_store_delete(s, key, 0, err);
    return rc == NK_E_NOT_FOUND ? 0 : rc;
}

static int read_member(const struct nk_store_entry *e, struct nk_member_record *out,
                       struct nk_error *err)
{
    const char *id = e->key + strlen(MEMBERS), *name;
    json_t *j = json_loadb((const char *)e->value.data, e->value.size, 0, NULL);
    int gateway, removed, rc = 0;

    if (!j ||
        json_unpack(j, "{s:s,s:b,s:b}", "name", &name, "gateway", &gateway, "removed", &removed))
        rc = bad(e->key, "not a member's record", err);
    else if (!nk_member_id_is(id) || !nk_member_name_is(name))
        rc = bad(e->key, "no member has such an id or name", err);
    if (!rc) {
        snprintf(out->id, sizeof out->id, "%s", id);
        snprintf(out->name, sizeof out->name, "%s", name);
        out->gateway = gateway;
        out->removed = removed;
    }
    json_decref(j);
    return rc;
}

int nk_record_members(nk_store *s, struct nk_member_record **out, size_t *n, uint64_t *revision,
                      struct nk_error *err)
{
    struct nk_store_list list;
    int rc = nk_store_list(s, MEMBERS, &list, err);

    *out = NULL;
    *n = 0;
    if (rc)
        return rc;
    *revision = list.revision;
    *out = calloc(list.n + 1, sizeof **out);
    if (!*out)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (size_t i = 0; !rc && i < list.n; i++)
        rc = read_member(&list.entries[i], &(*out)[(*n)++], err);
    nk_store_list_release(&list);
    if (rc) {
        free(*out);
        *out = NULL;
    }
    return rc;
}

int nk_record_put_plan(nk_store *s, const char *catalogue, uint64_t epoch,
                       const struct nk_plan *plan, const uint64_t *stage_epochs,
                       struct nk_error *err)
{
    json_t *chains = json_array();
    bool whole = chains != NULL;
    int n = 0;

    for (int i = 0; i < plan->n_chains; i++) {
        json_t *stages = json_array();

        for (int k = 0; k < plan->chains[i].n_stages; k++) {
            const struct nk_plan_stage *p = &plan->chains[i].stages[k];

            whole &= !json_array_append_new(stages, json_pack("[s,i,i,I]", p->id, p->begin, p->end,
                                                              (json_int_t)stage_epochs[n++]));
        }
        whole &= !json_array_append_new(chains, stages);
    }
    if (!whole) { /* half a plan would be read as one */
        json_decref(chains);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    return put_json(s, PLAN,
                    json_pack("{s:I,s:s,s:o}", "epoch", (json_int_t)epoch, "catalogue", catalogue,
                              "chains", chains),
                    NULL, err);
}

/* Adds a chain to the plan, and the epochs of its stages to *epochs. */
static int read_chain(const json_t *stages, struct nk_plan *plan, uint64_t **epochs,
                      size_t *n_epochs, struct nk_error *err)
{
    size_t n = json_array_size(stages);
    struct nk_plan_stage *list;
    uint64_t *more;
    int rc = 0;

    if (n < 1 || n > NK_FLEET_STAGES_MAX)
        return bad(PLAN, "a chain without stages, or with too many", err);
    more = realloc(*epochs, (*n_epochs + n) * sizeof *more);
    if (more)
        *epochs = more;
    list = calloc(n, sizeof *list);
    if (!more || !list)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (size_t i = 0; !rc && i < n; i++) {
        json_int_t epoch;
        const char *id;

        if (json_unpack(json_array_get(stages, i), "[s,i,i,I]", &id, &list[i].begin, &list[i].end,
                        &epoch) ||
            !nk_member_id_is(id) || list[i].begin < 0 || list[i].end <= list[i].begin ||
            epoch < 1) {
            rc = bad(PLAN, "a stage is not [ID, BEGIN, END, EPOCH]", err);
        } else {
            snprintf(list[i].id, sizeof list[i].id, "%s", id);
            (*epochs)[(*n_epochs)++] = (uint64_t)epoch;
        }
    }
    if (!rc)
        rc = nk_plan_chain_add(plan, list, (int)n, err);
    free(list);
    return rc;
}

static int read_plan(const struct nk_buf *text, const char *catalogue, uint64_t *epoch,
                     struct nk_plan **out, uint64_t **epochs, struct nk_error *err)
{
    json_t *j = json_loadb(nk_buf_str(text), text->size, 0, NULL), *chains;
    size_t n_epochs = 0;
    const char *of;
    json_int_t number;
    int rc = 0;

    if (!j ||
        json_unpack(j, "{s:I,s:s,s:o}", "epoch", &number, "catalogue", &of, "chains", &chains) ||
        number < 1 || json_array_size(chains) < 1) {
        rc = bad(PLAN, "not a plan's record", err);
    } else {
        *epoch = (uint64_t)number;
        if (!strcmp(of, catalogue))
            rc = nk_plan_new(out, err);
        for (size_t i = 0; !rc && *out && i < json_array_size(chains); i++)
            rc = read_chain(json_array_get(chains, i), *out, epochs, &n_epochs, err);
    }
    json_decref(j);
    if (rc) {
        nk_plan_free(*out);
        free(*epochs);
        *out = NULL;
        *epochs = NULL;
    }
    return rc;
}

int nk_record_plan(nk_store *s, const char *catalogue, uint64_t *epoch, struct nk_plan **out,
                   uint64_t **stage_epochs, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(PLAN_BYTES_MAX);
    int rc = nk_store_get(s, PLAN, &text, NULL, err);

    *out = NULL;
    *stage_epochs = NULL;
    *epoch = 0;
    if (rc == NK_E_NOT_FOUND)
        rc = 0;
    else if (!rc)
        rc = read_plan(&text, catalogue, epoch, out, stage_epochs, err);
    nk_buf_release(&text);
    return rc;
}
