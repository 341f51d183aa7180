/* nakshatra plan: who would get which layers, before anything is loaded. */
#include "cli/cli.h"
#include "cli/model_source.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/memory.h"
#include "base/visible.h"
#include "plan/plan.h"
#include "slice/slice.h"

/* A file of members: 2048 with many of their links, measured, take no more. */
enum { FILE_BYTES_MAX = 64 << 20 };

int nk_cmd_plan(int argc, char **argv);

/* ---- the file of members (docs/planning.md) ---- */

struct members {
    struct nk_plan_member *members;
    int n_members;
    struct nk_plan_link *links;
    int n_links;
    double default_rtt_ms, default_bytes_per_s;
};

enum field_kind { TEXT, BYTES, MS, COUNT, FLAG };

struct field {
    const char *name;
    enum field_kind kind;
    size_t at;
    bool needed;
};

#define FIELD(type, name, kind, needed)                                                            \
    {                                                                                              \
#name, kind, offsetof(struct type, name), needed                                           \
    }
/* clang-format off */
static const struct field member_fields[] = {
    FIELD(nk_plan_member, id, TEXT, true),
    FIELD(nk_plan_member, name, TEXT, false),
    FIELD(nk_plan_member, memory_bytes, BYTES, true),
    FIELD(nk_plan_member, overhead_bytes, BYTES, false),
    FIELD(nk_plan_member, overhead_last_bytes, BYTES, false),
    FIELD(nk_plan_member, step_ms, MS, false),
    FIELD(nk_plan_member, layer_ms_1, MS, false),
    FIELD(nk_plan_member, layer_ms_8, MS, false),
    FIELD(nk_plan_member, layer_ms_chunk, MS, false),
    FIELD(nk_plan_member, chunk_rows, COUNT, false),
    FIELD(nk_plan_member, head_ms_1, MS, false),
    FIELD(nk_plan_member, head_ms_8, MS, false),
    FIELD(nk_plan_member, embd_ms, MS, false),
    FIELD(nk_plan_member, gateway_rtt_ms, MS, false),
    FIELD(nk_plan_member, no_layers, FLAG, false),
    FIELD(nk_plan_member, stage_layers, COUNT, false),
    FIELD(nk_plan_member, stage_rows, COUNT, false),
    FIELD(nk_plan_member, stage_last, FLAG, false),
    FIELD(nk_plan_member, stage_ms, MS, false),
};
static const struct field link_fields[] = {
    FIELD(nk_plan_link, from, TEXT, true),
    FIELD(nk_plan_link, to, TEXT, true),
    FIELD(nk_plan_link, rtt_ms, MS, false),
    FIELD(nk_plan_link, bytes_per_s, MS, false),
    FIELD(nk_plan_link, no_way, FLAG, false),
};
static const struct field default_fields[] = {
    { "rtt_ms", MS, offsetof(struct members, default_rtt_ms), false },
    { "bytes_per_s", MS, offsetof(struct members, default_bytes_per_s), false },
};
/* clang-format on */
#define N_FIELDS(table) (int)(sizeof(table) / sizeof *(table))

static const char *kind_of(const json_t *v)
{
    static const char *const names[] = { "an object", "a list", "a text", "a number",
                                         "a number",  "a flag", "a flag", "null" };

    return names[json_typeof(v)];
}

#define bad(err, ...) nk_fail(err, NK_E_INVALID, "bad_members", __VA_ARGS__)

/* "24 GiB", or a number of bytes. */
static bool read_bytes(const json_t *v, uint64_t *out)
{
    static const struct {
        const char *unit;
        double bytes;
    } units[] = { { "B", 1 },
                  { "KiB", 1024 },
                  { "MiB", 1048576 },
                  { "GiB", 1073741824 },
                  { "TiB", 1099511627776 } };
    double n = json_number_value(v);
    char *end;

    if (json_is_string(v)) {
        const char *text = json_string_value(v);
        double by = 0;

        n = strtod(text, &end);
        while (end != text && *end == ' ')
            end++;
        for (size_t i = 0; i < sizeof units / sizeof *units; i++)
            if (!strcmp(end, units[i].unit))
                by = units[i].bytes;
        n = end == text || !by ? -1 : n * by;
    }
    if (!(n >= 0 && n < 72057594037927936.0)) /* 2^56 */
        return false;
    *out = (uint64_t)n;
    return true;
}

static int read_field(const char *where, const struct field *f, const json_t *v, void *to,
                      struct nk_error *err)
{
    void *at = (char *)to + f->at;
    double n = json_number_value(v);

    switch (f->kind) {
    case TEXT:
        if (!json_is_string(v) || !json_string_length(v))
            return bad(err, "%s: %s: expected a text, found %s", where, f->name,
                       json_is_string(v) ? "an empty one" : kind_of(v));
        if (json_string_length(v) >= NK_PLAN_ID_MAX)
            return bad(err, "%s: %s: %zu bytes are too long; at most %d", where, f->name,
                       json_string_length(v), NK_PLAN_ID_MAX - 1);
        memcpy(at, json_string_value(v), json_string_length(v) + 1);
        return 0;
    case BYTES:
        if ((!json_is_number(v) && !json_is_string(v)) || !read_bytes(v, at))
            return bad(err, "%s: %s: expected bytes, as 25769803776 or \"24 GiB\", below 2^56",
                       where, f->name);
        return 0;
    case MS:
        if (!json_is_number(v) || !(n >= 0 && n <= 1e15))
            return bad(err, "%s: %s: expected a number of at least 0", where, f->name);
        *(double *)at = n;
        return 0;
    case COUNT:
        if (!json_is_integer(v) || n < 0 || n > 1 << 20)
            return bad(err, "%s: %s: expected a whole number from 0 to %d", where, f->name,
                       1 << 20);
        *(int *)at = (int)n;
        return 0;
    case FLAG:
        break;
    }
    if (!json_is_boolean(v))
        return bad(err, "%s: %s: expected true or false, found %s", where, f->name, kind_of(v));
    *(bool *)at = json_is_true(v);
    return 0;
}

static int read_object(const char *where, const struct field *fields, int n, json_t *o, void *to,
                       struct nk_error *err)
{
    const char *key;
    json_t *v;

    if (!json_is_object(o))
        return bad(err, "%s: expected an object, found %s", where, kind_of(o));
    json_object_foreach(o, key, v)
    {
        const char *near = NULL;
        int i = 0, rc;

        while (i < n && strcmp(fields[i].name, key) != 0)
            near = nk_word_nearer(key, near, fields[i++].name);
        if (i == n)
            return bad(err, "%s: '%.60s' is no key of it%s%s", where, key,
                       near ? "; did you mean " : "", near ? near : "");
        rc = read_field(where, &fields[i], v, to, err);
        if (rc)
            return rc;
    }
    for (int i = 0; i < n; i++)
        if (fields[i].needed && !json_object_get(o, fields[i].name))
            return bad(err, "%s: '%s' is missing", where, fields[i].name);
    return 0;
}

/* A list of objects: *out owned by the caller. */
static int read_list(const char *what, const struct field *fields, int n_fields, json_t *list,
                     size_t size, int max, void **out, int *n, struct nk_error *err)
{
    char *items;

    *n = 0;
    if (!json_is_array(list))
        return bad(err, "%s: expected a list, found %s", what, kind_of(list));
    if (json_array_size(list) > (size_t)max)
        return bad(err, "%s: %zu are too many; at most %d", what, json_array_size(list), max);
    *out = items = calloc(json_array_size(list) + 1, size);
    if (!items)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    for (size_t i = 0; i < json_array_size(list); i++) {
        char where[32];
        int rc;

        snprintf(where, sizeof where, "%s[%zu]", what, i);
        rc = read_object(where, fields, n_fields, json_array_get(list, i), items + i * size, err);
        if (rc)
            return rc;
        (*n)++;
    }
    return 0;
}

static int read_top(json_t *top, struct members *m, struct nk_error *err)
{
    const char *key;
    bool seen = false;
    json_t *v;
    int rc = 0;

    if (!json_is_object(top))
        return bad(err, "expected an object with members, links and default_link, found %s",
                   kind_of(top));
    json_object_foreach(top, key, v)
    {
        if (!strcmp(key, "members")) {
            seen = true;
            rc = read_list(key, member_fields, N_FIELDS(member_fields), v, sizeof *m->members,
                           NK_PLAN_MEMBERS_MAX, (void **)&m->members, &m->n_members, err);
        } else if (!strcmp(key, "links")) {
            rc = read_list(key, link_fields, N_FIELDS(link_fields), v, sizeof *m->links,
                           NK_PLAN_LINKS_MAX, (void **)&m->links, &m->n_links, err);
            for (int i = 0; !rc && i < m->n_links; i++)
                if (!m->links[i].no_way && !json_object_get(json_array_get(v, (size_t)i), "rtt_ms"))
                    rc = bad(err, "links[%d]: 'rtt_ms' is missing", i);
        } else if (!strcmp(key, "default_link")) {
            rc = read_object(key, default_fields, N_FIELDS(default_fields), v, m, err);
        } else {
            rc = bad(err, "'%.60s' is no key here; the keys are members, links and default_link",
                     key);
        }
        if (rc)
            return rc;
    }
    if (!seen || !m->n_members)
        return bad(err, "'members' is missing or empty");
    return 0;
}

static void members_release(struct members *m)
{
    free(m->members);
    free(m->links);
}

static int members_read(struct members *m, const char *path, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(FILE_BYTES_MAX);
    json_error_t where;
    json_t *top = NULL;
    int rc = nk_file_read(path, FILE_BYTES_MAX, &text, err);

    if (rc)
        goto out;
    top = json_loadb(nk_buf_str(&text), text.size, JSON_REJECT_DUPLICATES, &where);
    rc = top ? read_top(top, m, err) : bad(err, "line %d: not JSON: %s", where.line, where.text);
    if (rc)
        nk_wrap(rc, err, "%s", path);
out:
    json_decref(top);
    nk_buf_release(&text);
    return rc;
}

/* This machine, of which only the memory is known. */
static int members_here(struct members *m, const struct nk_model_info *in, struct nk_error *err)
{
    m->members = calloc(1, sizeof *m->members);
    if (!m->members)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    m->n_members = 1;
    m->members[0] = (struct nk_plan_member){
        .id = "here",
        .name = "this machine",
        .memory_bytes = nk_memory_available(),
        /* Rough: the program and its libraries, and buffers of 64 rows and of their logits. */
        .overhead_bytes = (64u << 20) + (uint64_t)in->n_embd * 64 * 4 * 16,
        .overhead_last_bytes =
            (64u << 20) + (uint64_t)in->n_embd * 64 * 4 * 16 + (uint64_t)in->n_vocab * 64 * 4,
    };
    return 0;
}

/* ---- what is printed ---- */

static const char *name_of(const struct members *m, const char *id, char out[160])
{
    const char *name = id;

    for (int i = 0; i < m->n_members; i++)
        if (!strcmp(m->members[i].id, id) && m->members[i].name[0])
            name = m->members[i].name;
    return nk_visible_line(out, 160, name);
}

/* In so many significant digits as say something. */
static const char *number(char out[24], double x)
{
    snprintf(out, 24, "%.*f", x < 10 ? 2 : x < 100 ? 1 : 0, x);
    return out;
}

static const char *rates_text(char out[160], bool known, const struct nk_plan_opts *o, double ms,
                              double rate, double ttft)
{
    char one[24], all[24], first[24], streams[64] = "";

    if (!known) {
        snprintf(out, 160, "rates are not known");
        return out;
    }
    if (o->streams > 1)
        snprintf(streams, sizeof streams, ", %s for %d streams together", number(all, rate),
                 o->streams);
    snprintf(out, 160, "%s tokens/s for one stream%s; first token after %s s",
             number(one, 1e3 / ms), streams, number(first, ttft / 1e3));
    return out;
}

static void print_chain(const struct nk_plan *p, const struct nk_plan_chain *c,
                        const struct members *m)
{
    int width = 7;

    for (int i = 0; i < c->n_stages; i++) {
        char name[160];
        int n = (int)strlen(name_of(m, c->stages[i].id, name));

        width = n > width ? n : width;
    }
    printf("\n  %-*s  %-9s  %10s  %10s  %10s  %10s  %9s  %9s\n", width, "machine", "layers",
           "weights", "KV", "overhead", "left free", "ms", "hop ms");
    for (int i = 0; i < c->n_stages; i++) {
        const struct nk_plan_stage *s = &c->stages[i];
        char name[160], layers[32], weights[24], kv[24], overhead[24], left[24], ms[24] = "-",
                                                                                 hop[24] = "-";

        snprintf(layers, sizeof layers, "%d-%d", s->begin, s->end);
        if (p->rates_known)
            number(ms, s->ms);
        if (i < c->n_stages - 1)
            number(hop, s->hop_ms);
        printf("  %-*s  %-9s  %10s  %10s  %10s  %10s  %9s  %9s\n", width, name_of(m, s->id, name),
               layers, nk_size_format(weights, s->weight_bytes), nk_size_format(kv, s->kv_bytes),
               nk_size_format(overhead, s->overhead_bytes), nk_size_format(left, s->free_bytes), ms,
               hop);
    }
}

static void print_table(const struct nk_plan *p, const struct members *m,
                        const struct nk_plan_opts *o, const struct nk_model_info *in, bool here)
{
    static const char *const kinds[] = { "one machine", "a chain", "several chains side by side",
                                         "does not fit" };
    char text[160], needs[24], gap[24];

    printf("model  %s, %d layers, %s with %d KV tokens\n", nk_visible_line(text, 160, in->name),
           in->n_layer, nk_size_format(needs, p->needed_bytes), o->n_ctx);
    printf("plan   %s", kinds[p->kind]);
    if (p->kind == NK_PLAN_CHAIN)
        printf(" of %d machines", p->chains[0].n_stages);
    if (p->n_chains)
        printf(": %s",
               rates_text(text, p->rates_known, o, p->ms_per_token, p->tokens_per_s, p->ttft_ms));
    printf("\n");
    for (int i = 0; i < p->n_chains; i++)
        print_chain(p, &p->chains[i], m);
    if (here)
        printf("\nMemory is what is free here now, less a rough estimate for buffers. How fast "
               "this machine is\nis not known until it was measured (nakshatra measure).\n");
    else if (p->n_chains && !p->rates_known)
        printf("\nNo machine's speed is known: layers are placed by memory alone.\n");
    else if (p->n_chains && p->exact)
        printf("\nThere is no better plan for %s.\n",
               o->objective == NK_PLAN_RATE ? "all streams together" : "one stream");
    else if (p->n_chains)
        printf("\nNo plan can be more than %s %% better for %s; this is the best that was found.\n",
               number(gap, p->gap * 100),
               o->objective == NK_PLAN_RATE ? "all streams together" : "one stream");
    if (p->n_spares)
        printf("\nspare:\n");
    for (int i = 0; i < p->n_spares; i++)
        printf("  %s: %s\n", name_of(m, p->spares[i].id, text), p->spares[i].why);
    if (p->n_alternatives)
        printf("\nconsidered:\n");
    for (int i = 0; i < p->n_alternatives; i++) {
        const struct nk_plan_alternative *a = &p->alternatives[i];

        printf("  %-32s %s\n", a->what,
               a->kind == NK_PLAN_DOES_NOT_FIT
                   ? "does not fit"
                   : rates_text(text, p->rates_known, o, a->ms_per_token, a->tokens_per_s,
                                a->ttft_ms));
    }
}

static json_t *rate(const struct nk_plan *p, double value)
{
    return p->rates_known && isfinite(value) ? json_real(value) : json_null();
}

static json_t *chain_json(const struct nk_plan *p, const struct nk_plan_chain *c)
{
    json_t *stages = json_array();

    for (int i = 0; i < c->n_stages; i++) {
        const struct nk_plan_stage *s = &c->stages[i];

        json_array_append_new(stages, json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:o, s:f}",
                                                "id", s->id, "begin", s->begin, "end", s->end,
                                                "weight_bytes", (json_int_t)s->weight_bytes,
                                                "kv_bytes", (json_int_t)s->kv_bytes,
                                                "overhead_bytes", (json_int_t)s->overhead_bytes,
                                                "free_bytes", (json_int_t)s->free_bytes, "ms",
                                                rate(p, s->ms), "hop_ms", s->hop_ms));
    }
    return json_pack("{s:o, s:i, s:o, s:o, s:o}", "stages", stages, "streams", c->streams,
                     "ms_per_token", rate(p, c->ms_per_token), "tokens_per_s",
                     rate(p, c->tokens_per_s), "ttft_ms", rate(p, c->ttft_ms));
}

static int print_json(const struct nk_plan *p, const struct nk_plan_opts *o, struct nk_error *err)
{
    bool fits = p->n_chains > 0;
    json_t *top = json_object(), *chains = json_array(), *spares = json_array(),
           *others = json_array();
    int rc = 0;

    for (int i = 0; i < p->n_chains; i++)
        json_array_append_new(chains, chain_json(p, &p->chains[i]));
    for (int i = 0; i < p->n_spares; i++)
        json_array_append_new(
            spares, json_pack("{s:s, s:s}", "id", p->spares[i].id, "why", p->spares[i].why));
    for (int i = 0; i < p->n_alternatives; i++) {
        const struct nk_plan_alternative *a = &p->alternatives[i];
        bool ok = a->kind != NK_PLAN_DOES_NOT_FIT;

        json_array_append_new(others,
                              json_pack("{s:s, s:s, s:i, s:o, s:o, s:o}", "what", a->what, "kind",
                                        nk_plan_kind_text(a->kind), "machines", a->n_machines,
                                        "ms_per_token", ok ? rate(p, a->ms_per_token) : json_null(),
                                        "tokens_per_s", ok ? rate(p, a->tokens_per_s) : json_null(),
                                        "ttft_ms", ok ? rate(p, a->ttft_ms) : json_null()));
    }
    json_object_set_new(top, "kind", json_string(nk_plan_kind_text(p->kind)));
    json_object_set_new(top, "objective",
                        json_string(o->objective == NK_PLAN_RATE ? "rate" : "stream"));
    json_object_set_new(top, "ctx", json_integer(o->n_ctx));
    json_object_set_new(top, "sequences", json_integer(o->sequences));
    json_object_set_new(top, "streams", json_integer(o->streams));
    json_object_set_new(top, "chains", chains);
    json_object_set_new(top, "ms_per_token", fits ? rate(p, p->ms_per_token) : json_null());
    json_object_set_new(top, "tokens_per_s", fits ? rate(p, p->tokens_per_s) : json_null());
    json_object_set_new(top, "ttft_ms", fits ? rate(p, p->ttft_ms) : json_null());
    json_object_set_new(top, "rates_known", json_boolean(p->rates_known));
    json_object_set_new(top, "exact", json_boolean(p->exact));
    json_object_set_new(top, "bound", fits ? rate(p, p->bound) : json_null());
    json_object_set_new(top, "gap", fits ? rate(p, p->gap) : json_null());
    json_object_set_new(top, "needed_bytes", json_integer((json_int_t)p->needed_bytes));
    json_object_set_new(top, "available_bytes", json_integer((json_int_t)p->available_bytes));
    json_object_set_new(top, "short_bytes", json_integer((json_int_t)p->short_bytes));
    json_object_set_new(top, "why", p->why[0] ? json_string(p->why) : json_null());
    json_object_set_new(top, "spares", spares);
    json_object_set_new(top, "alternatives", others);
    if (json_dumpf(top, stdout, JSON_INDENT(2) | nk_cli_json_flags()))
        rc = nk_fail(err, NK_E_DATA_LOSS, "write_failed", "standard output cannot be written");
    else
        printf("\n");
    json_decref(top);
    return rc;
}

/* ---- the command ---- */

/* What a plan has to know of a model. cut has room for n_layer. */
static struct nk_plan_model model_of(const nk_model *m, bool *cut)
{
    const struct nk_model_info *in = nk_model_info(m);

    for (int i = 0; i < in->n_layer; i++)
        cut[i] = !i || !nk_model_cut_check(m, i, NULL);
    return (struct nk_plan_model){
        .n_layer = in->n_layer,
        .layer_bytes = in->layer_bytes,
        .kv_bytes_per_token = in->kv_bytes_per_token,
        .state_bytes = in->state_bytes,
        .legal_cut = cut,
        .embd_bytes = in->embd_bytes,
        .head_bytes = in->head_bytes,
        .tied = in->tied_embeddings,
        .other_bytes = in->other_bytes,
        .row_bytes = (uint64_t)in->n_embd * 4,
    };
}

static int make(struct nk_plan **out, const nk_model *m, struct members *members, const char *path,
                const struct nk_plan_opts *opts, struct nk_error *err)
{
    bool cut[NK_LAYERS_MAX];
    struct nk_plan_model model = model_of(m, cut);
    struct nk_plan_facts facts = { .model = &model };
    int rc;

    *out = NULL;
    rc = path ? members_read(members, path, err) : members_here(members, nk_model_info(m), err);
    if (rc)
        return rc;
    facts.members = members->members;
    facts.n_members = members->n_members;
    facts.links = members->links;
    facts.n_links = members->n_links;
    facts.default_rtt_ms = members->default_rtt_ms;
    facts.default_bytes_per_s = members->default_bytes_per_s;
    rc = nk_plan_make(out, &facts, opts, err);
    return rc && path ? nk_wrap(rc, err, "%s", path) : rc;
}

int nk_cmd_plan(int argc, char **argv)
{
    struct nk_plan_opts opts = nk_plan_opts_default();
    struct members members = { .default_rtt_ms = 0.5, .default_bytes_per_s = 117e6 };
    int64_t ctx = opts.n_ctx, sequences = opts.sequences, streams = opts.streams, spread = 1;
    const char *path = NULL, *objective = "stream";
    bool json = false;
    const struct nk_arg args[] = {
        NK_OPT_STRING("members", 'm', &path, "FILE",
                      "JSON: the machines, how fast they are and how much memory they have, and "
                      "the links between them (docs/planning.md); without it: this machine alone"),
        NK_OPT_INT("ctx", 'c', &ctx, "N", 0, 1 << 24,
                   "KV tokens, shared by all sequences; 0: the model's context"),
        NK_OPT_INT("sequences", 's', &sequences, "N", 1, 256, "sessions at once"),
        NK_OPT_INT("streams", 0, &streams, "N", 1, NK_PLAN_STREAMS_MAX,
                   "requests at a time, for the rate of all together"),
        NK_OPT_STRING("objective", 0, &objective, "stream|rate",
                      "what is to be good: one stream's time per token, or the tokens per second "
                      "of all together"),
        NK_OPT_INT("spread", 0, &spread, "N", 1, NK_PLAN_MEMBERS_MAX,
                   "at least so many machines, whatever is faster"),
        NK_OPT_FLAG("json", 'j', &json, "print JSON"),
        { 0 },
    };
    const struct nk_command cmd = {
        .usage = "plan MODEL.gguf [--members FILE] [--ctx N] [--json]",
        .summary = "Tells, before anything is loaded, which machine would get which layers of a "
                   "model: memory, predicted tokens per second and time to the first token of a "
                   "prompt of 512, what else was considered, and which machines are spare and why. "
                   "Exit code 1 when the model does not fit, with how much memory is missing.",
        .args = args,
        .n_min = 1,
        .n_max = 1,
    };
    struct nk_plan *plan = NULL;
    char *file = NULL;
    nk_model *m = NULL;
    struct nk_error err;
    int first, exit_code, rc;

    if (nk_cli_parse(argc, argv, &cmd, &first, &exit_code))
        return exit_code;
    rc = nk_model_source(&file, argv[first], &err);
    if (!rc)
        rc = nk_model_open(&m, file, &err);
    if (!rc && nk_model_info(m)->is_slice)
        rc = nk_fail(&err, NK_E_INVALID, "not_a_model", "%s is a slice; give the whole model",
                     argv[first]);
    if (!rc && strcmp(objective, "stream") && strcmp(objective, "rate"))
        rc = nk_fail(&err, NK_E_INVALID, "bad_argument", "--objective: '%s' is not stream or rate",
                     objective);
    if (!rc) {
        opts.objective = strcmp(objective, "rate") ? NK_PLAN_ONE_STREAM : NK_PLAN_RATE;
        opts.n_ctx = (int)(ctx ? ctx : nk_model_info(m)->n_ctx_train);
        opts.sequences = (int)sequences;
        opts.streams = (int)streams;
        opts.spread = (int)spread;
        rc = make(&plan, m, &members, path, &opts, &err);
    }
    if (!rc && json)
        rc = print_json(plan, &opts, &err);
    else if (!rc)
        print_table(plan, &members, &opts, nk_model_info(m), !path);
    exit_code = rc ? nk_cli_report(&err) : NK_EXIT_OK;
    if (!rc && plan->kind == NK_PLAN_DOES_NOT_FIT) {
        nk_cli_flush(NK_EXIT_OK);
        nk_fail(&err, NK_E_EXHAUSTED, "does_not_fit", "%s does not fit: %s", argv[first],
                plan->why);
        exit_code = nk_cli_report(&err);
    }
    nk_plan_free(plan);
    members_release(&members);
    nk_model_close(m);
    free(file);
    return exit_code ? exit_code : nk_cli_flush(NK_EXIT_OK);
}
