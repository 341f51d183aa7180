#include "stage/graph_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ggml-backend.h>

#include "base/array.h"

enum { NODES_MAX = 1 << 20, NONE = -1 };

/* Nodes and leaves in one array: leaves (weights, inputs, caches) have op NONE and come first, so
 * that array order is an order of computation. Views are kept but stand for what they are views of
 * (base). */
struct node {
    char name[GGML_MAX_NAME];
    enum ggml_op op;
    enum ggml_type type;
    int64_t ne[GGML_MAX_DIMS];
    int32_t params[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    int src[GGML_MAX_SRC];
    int base; /* itself, or what it is a pure view of */
    /* Whose memory the result is in: itself, or for SET_ROWS, CPY and in-place nodes what they
     * write to. */
    int storage;
    uint64_t size_bytes;
    struct ggml_backend_buffer *buffer;
    void *data;
};

struct nk__graph {
    const struct ggml_tensor **asked;
    int n_asked;
    size_t asked_capacity;
    bool failed;
    struct node *nodes;
    int n_nodes, n_leaves, n_tokens;
};

nk__graph *nk__graph_new(void)
{
    return calloc(1, sizeof(nk__graph));
}

void nk__graph_free(nk__graph *g)
{
    if (!g)
        return;
    free(g->asked);
    free(g->nodes);
    free(g);
}

void nk__graph_reset(nk__graph *g)
{
    g->n_asked = 0;
    g->failed = false;
    free(g->nodes);
    g->nodes = NULL;
    g->n_nodes = g->n_leaves = 0;
}

void nk__graph_add(nk__graph *g, const struct ggml_tensor *t)
{
    size_t n = (size_t)g->n_asked + 1;

    g->failed = g->failed || nk_array_grow(g->asked, g->asked_capacity, n, NODES_MAX, NULL);
    if (!g->failed)
        g->asked[g->n_asked++] = t;
}

static bool is_view_op(enum ggml_op op)
{
    return op == GGML_OP_RESHAPE || op == GGML_OP_VIEW || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

/* libllama names a node only where its authors did; ggml's defaults are "node_17", "leaf_3", or
 * what a view of an unnamed tensor makes of it (" (view)"). */
static bool has_name(const char *name)
{
    return name[0] && name[0] != ' ' && strncmp(name, "node_", 5) && strncmp(name, "leaf_", 5);
}

/* The scheduler copies what crosses from one backend to another to a tensor "BACKEND#NAME#COPY". */
static void plain_name(char out[GGML_MAX_NAME], const char *name)
{
    const char *first = strchr(name, '#'), *last = strrchr(name, '#');

    if (first && last && last > first)
        snprintf(out, GGML_MAX_NAME, "%.*s", (int)(last - first - 1), first + 1);
    else
        snprintf(out, GGML_MAX_NAME, "%s", name);
}

/* ---- pointers to indices ---- */
struct map {
    const void **keys;
    int *values;
    size_t size; /* a power of two */
};

static size_t map_slot(const struct map *m, const void *key)
{
    size_t i = ((uintptr_t)key >> 4) * 0x9E3779B97F4A7C15u >> 20 & (m->size - 1);

    while (m->keys[i] && m->keys[i] != key)
        i = (i + 1) & (m->size - 1);
    return i;
}

static bool map_init(struct map *m, size_t n)
{
    for (m->size = 64; m->size < n * 2; m->size *= 2)
        ;
    m->keys = calloc(m->size, sizeof *m->keys);
    m->values = malloc(m->size * sizeof *m->values);
    return m->keys && m->values;
}

static int map_get(const struct map *m, const void *key)
{
    size_t i = map_slot(m, key);

    return m->keys[i] ? m->values[i] : NONE;
}

static void map_put(struct map *m, const void *key, int value)
{
    size_t i = map_slot(m, key);

    m->keys[i] = key;
    m->values[i] = value;
}

/* ---- recording ---- */
static void fill(struct node *n, const struct ggml_tensor *t)
{
    plain_name(n->name, t->name);
    n->op = t->op;
    n->type = t->type;
    memcpy(n->ne, t->ne, sizeof n->ne);
    memcpy(n->params, t->op_params, sizeof n->params);
    n->size_bytes = ggml_nbytes(t);
    n->buffer = t->buffer;
    n->data = t->data;
    for (int i = 0; i < GGML_MAX_SRC; i++)
        n->src[i] = NONE;
}

/* A copy that the scheduler made stands for what it copies. */
static int find_copied(const struct node *nodes, int n, const char *copy_name)
{
    char name[GGML_MAX_NAME];

    if (!strchr(copy_name, '#'))
        return NONE;
    plain_name(name, copy_name);
    for (int i = n - 1; i >= 0; i--)
        if (!strcmp(nodes[i].name, name))
            return i;
    return NONE;
}

bool nk__graph_finish(nk__graph *g, int n_tokens)
{
    struct map map = { 0 };
    struct node *nodes = NULL;
    int n = 0, n_max = g->n_asked * 6 + 64; /* leaves: at most the sources, checked below */
    bool ok = false;

    g->n_tokens = n_tokens;
    if (g->failed || !map_init(&map, (size_t)n_max))
        goto out;
    nodes = calloc((size_t)n_max, sizeof *nodes);
    if (!nodes)
        goto out;
    for (int i = 0; i < g->n_asked; i++) /* marks what is a node; its index comes below */
        map_put(&map, g->asked[i], n_max);
    for (int i = 0; i < g->n_asked; i++)
        for (int k = 0; k <= GGML_MAX_SRC; k++) {
            const struct ggml_tensor *t =
                k < GGML_MAX_SRC ? g->asked[i]->src[k] : g->asked[i]->view_src;

            if (!t || map_get(&map, t) != NONE || strchr(t->name, '#'))
                continue;
            if (n + g->n_asked >= n_max)
                goto out;
            fill(&nodes[n], t);
            nodes[n].base = nodes[n].storage = n;
            map_put(&map, t, n++);
        }
    g->n_leaves = n;
    for (int i = 0; i < g->n_asked; i++) {
        const struct ggml_tensor *t = g->asked[i];
        struct node *node = &nodes[n];

        fill(node, t);
        for (int k = 0; k < GGML_MAX_SRC; k++) {
            int s = t->src[k] ? map_get(&map, t->src[k]) : NONE;

            if (t->src[k] && s == NONE)
                s = find_copied(nodes, n, t->src[k]->name);
            node->src[k] = s < n ? s : NONE;
        }
        node->base = is_view_op(t->op) && node->src[0] != NONE ? nodes[node->src[0]].base : n;
        node->storage = n;
        if (node->base != n)
            node->storage = nodes[node->base].storage;
        else if (t->view_src) {
            int s = map_get(&map, t->view_src);

            if (s != NONE && s < n)
                node->storage = nodes[s].storage;
        }
        map_put(&map, t, n++);
    }
    ok = true;
out:
    if (ok) {
        free(g->nodes);
        g->nodes = nodes;
        g->n_nodes = n;
    } else {
        free(nodes);
    }
    free(map.keys);
    free(map.values);
    return ok;
}

/* ---- finding ---- */

/* What the search needs of every node (indices as in g->nodes; views are never set). */
struct reach {
    bool *relevant; /* depends on the embedding, and the output or a cache depends on it */
    int *last_use;  /* of relevant nodes: the last relevant node that reads it */
};

static int layer_of_weight(const char *name)
{
    int layer, end = 0;

    return sscanf(name, "blk.%d.%n", &layer, &end) == 1 && end > 0 ? layer : NONE;
}

/* The layer whose weight this node reads, or NONE. */
static int layer_of(const nk__graph *g, int i)
{
    for (int k = 0; k < GGML_MAX_SRC; k++)
        if (g->nodes[i].src[k] != NONE) {
            int base = g->nodes[g->nodes[i].src[k]].base;
            int layer = base < g->n_leaves ? layer_of_weight(g->nodes[base].name) : NONE;

            if (layer != NONE)
                return layer;
        }
    return NONE;
}

static bool is_vertex(const nk__graph *g, int i)
{
    return i >= g->n_leaves && g->nodes[i].base == i;
}

static bool is_embd(const nk__graph *g, int i)
{
    const struct node *n = &g->nodes[i];

    return n->op == GGML_OP_GET_ROWS && n->src[0] != NONE &&
           !strcmp(g->nodes[g->nodes[n->src[0]].base].name, "token_embd.weight");
}

static int output_idx(const nk__graph *g)
{
    for (int i = g->n_nodes - 1; i >= g->n_leaves; i--)
        if (!strcmp(g->nodes[i].name, "result_output"))
            return g->nodes[i].base;
    return g->n_nodes ? g->nodes[g->n_nodes - 1].base : NONE;
}

/* The nodes that node i reads: its sources' bases and, where they lie in a cache or another node's
 * memory, the node that wrote there last. writer: per node, the last writer of that memory so far.
 * Returns how many. */
static int reads_of(const nk__graph *g, const int *writer, int i, int out[2 * GGML_MAX_SRC])
{
    int n = 0;

    for (int k = 0; k < GGML_MAX_SRC; k++) {
        int s = g->nodes[i].src[k];

        if (s == NONE)
            continue;
        out[n++] = g->nodes[s].base;
        s = writer[g->nodes[g->nodes[s].base].storage];
        if (s != NONE && s != i)
            out[n++] = s;
    }
    return n;
}

static bool writes_elsewhere(const nk__graph *g, int i)
{
    return g->nodes[i].storage != i;
}

static void reach_release(struct reach *r)
{
    free(r->relevant);
    free(r->last_use);
}

/* start: per node, whether it is one to start at. False when out of memory. */
static bool reach_init(struct reach *r, const nk__graph *g, const bool *start)
{
    size_t n = (size_t)g->n_nodes;
    bool *after = calloc(n, sizeof *after), *before = calloc(n, sizeof *before);
    int *writer = malloc(n * sizeof *writer), *reads = malloc(n * sizeof *reads * 2 * GGML_MAX_SRC);
    int *n_reads = calloc(n, sizeof *n_reads);
    int output = output_idx(g);
    bool ok;

    r->relevant = calloc(n, sizeof *r->relevant);
    r->last_use = malloc(n * sizeof *r->last_use);
    ok = after && before && writer && reads && n_reads && r->relevant && r->last_use;
    for (size_t i = 0; ok && i < n; i++)
        writer[i] = r->last_use[i] = NONE;
    for (int i = g->n_leaves; ok && i < g->n_nodes; i++) {
        int *in = &reads[(size_t)i * 2 * GGML_MAX_SRC];

        if (!is_vertex(g, i))
            continue;
        after[i] = start[i];
        n_reads[i] = reads_of(g, writer, i, in);
        for (int k = 0; k < n_reads[i]; k++)
            after[i] |= after[in[k]];
        if (writes_elsewhere(g, i))
            writer[g->nodes[i].storage] = i;
    }
    for (int i = g->n_nodes - 1; ok && i >= g->n_leaves; i--) {
        const int *in = &reads[(size_t)i * 2 * GGML_MAX_SRC];

        if (!is_vertex(g, i))
            continue;
        if (i == output || (writes_elsewhere(g, i) && g->nodes[i].storage < g->n_leaves))
            before[i] = true;
        r->relevant[i] = after[i] && before[i];
        if (before[i])
            for (int k = 0; k < n_reads[i]; k++)
                before[in[k]] = true;
    }
    for (int i = g->n_leaves; ok && i < g->n_nodes; i++) {
        const int *in = &reads[(size_t)i * 2 * GGML_MAX_SRC];

        if (r->relevant[i])
            for (int k = 0; k < n_reads[i]; k++)
                r->last_use[in[k]] = i;
    }
    free(after);
    free(before);
    free(writer);
    free(reads);
    free(n_reads);
    return ok;
}

/* Norms that may stand between the residual and the first weight of what follows. */
static bool is_norm(enum ggml_op op)
{
    return op == GGML_OP_NORM || op == GGML_OP_RMS_NORM || op == GGML_OP_L2_NORM ||
           op == GGML_OP_GROUP_NORM;
}

/* The last node in [begin, end) that every path runs through and that carries whole rows in f32, or
 * NONE. It is one when nothing relevant before it is read after it. A norm that only `end` reads
 * belongs to what begins there. width: elements per token, 0: any. */
static int passage(const nk__graph *g, const struct reach *r, int begin, int end, int64_t width)
{
    int reach_max = NONE, found = NONE;

    for (int i = g->n_leaves; i < end; i++) {
        const struct node *n = &g->nodes[i];
        int64_t size = (int64_t)(n->size_bytes / sizeof(float));

        if (!r->relevant[i])
            continue;
        if (i >= begin && reach_max <= i && n->type == GGML_TYPE_F32 && !writes_elsewhere(g, i) &&
            (width ? size == width * g->n_tokens : size % g->n_tokens == 0) &&
            !(is_norm(n->op) && r->last_use[i] == end))
            found = i;
        if (r->last_use[i] > reach_max)
            reach_max = r->last_use[i];
    }
    return found;
}

/* The first and the last relevant node that reads a weight of a layer. */
static bool layer_span(const nk__graph *g, const struct reach *r, int layer, int *first, int *last)
{
    *first = *last = NONE;
    for (int i = g->n_leaves; i < g->n_nodes; i++)
        if (r->relevant[i] && layer_of(g, i) == layer) {
            if (*first == NONE)
                *first = i;
            *last = i;
        }
    return *first != NONE;
}

/* The first node after i that reads a weight outside the layers. */
static int first_head_use(const nk__graph *g, const struct reach *r, int i)
{
    for (i++; i < g->n_nodes; i++) {
        if (!r->relevant[i])
            continue;
        for (int k = 0; k < GGML_MAX_SRC; k++) {
            int s = g->nodes[i].src[k] == NONE ? NONE : g->nodes[g->nodes[i].src[k]].base;
            const char *name = s == NONE ? "" : g->nodes[s].name;
            size_t size = strlen(name);

            if (s != NONE && s < g->n_leaves && layer_of_weight(name) == NONE &&
                ((size > 7 && !strcmp(name + size - 7, ".weight")) ||
                 (size > 5 && !strcmp(name + size - 5, ".bias"))))
                return i;
        }
    }
    return output_idx(g);
}

static bool same_look(const nk__graph *g, const struct nk__place *p, const struct node *n)
{
    if (n->op != p->op || (int64_t)(n->size_bytes / sizeof(float)) != p->width * g->n_tokens ||
        n->type != GGML_TYPE_F32)
        return false;
    if (p->name[0])
        return !strcmp(p->name, n->name);
    if (has_name(n->name))
        return false;
    for (int k = 0; k < 2; k++) {
        const struct node *s = n->src[k] == NONE ? NULL : &g->nodes[n->src[k]];

        if ((s ? s->op : GGML_OP_COUNT) != p->src_op[k] ||
            strcmp(s && has_name(s->name) ? s->name : "", p->src_name[k]))
            return false;
    }
    return true;
}

static int64_t width_at(const nk__graph *g, int i)
{
    return (int64_t)(g->nodes[i].size_bytes / sizeof(float)) / g->n_tokens;
}

static void place_at(const nk__graph *g, int i, struct nk__place *p)
{
    const struct node *n = &g->nodes[i];

    memset(p, 0, sizeof *p);
    p->found = true;
    p->op = n->op;
    p->width = width_at(g, i);
    snprintf(p->name, sizeof p->name, "%s", has_name(n->name) ? n->name : "");
    for (int k = 0; k < 2; k++) {
        const struct node *s = n->src[k] == NONE ? NULL : &g->nodes[n->src[k]];

        p->src_op[k] = s ? s->op : GGML_OP_COUNT;
        snprintf(p->src_name[k], sizeof p->src_name[k], "%s",
                 s && has_name(s->name) ? s->name : "");
    }
    for (int j = g->n_leaves; j < i; j++)
        p->n_before += same_look(g, p, &g->nodes[j]);
}

static int place_idx(const nk__graph *g, const struct nk__place *p)
{
    int n = p->n_before;

    for (int i = g->n_leaves; i < g->n_nodes; i++)
        if (same_look(g, p, &g->nodes[i]) && n-- == 0)
            return i;
    return NONE;
}

bool nk__place_matches(const struct nk__place *p, const struct ggml_tensor *t, int n_tokens)
{
    char name[GGML_MAX_NAME];

    if (t->op != p->op || t->type != GGML_TYPE_F32 || ggml_nelements(t) != p->width * n_tokens)
        return false;
    if (p->name[0])
        return !strcmp(p->name, t->name);
    if (has_name(t->name))
        return false;
    for (int k = 0; k < 2; k++) {
        const struct ggml_tensor *s = t->src[k];

        name[0] = '\0';
        if (s)
            plain_name(name, s->name);
        if (!s != (p->src_op[k] == GGML_OP_COUNT) ||
            strcmp(has_name(name) ? name : "", p->src_name[k]))
            return false;
        /* A scheduler's copy has lost its op. */
        if (s && s->op != p->src_op[k] && !strchr(s->name, '#'))
            return false;
    }
    return true;
}

int nk__graph_places(const nk__graph *g, int n_layer, struct nk__place *embd,
                     struct nk__place *entry, struct nk__place *leave, struct nk_error *err)
{
    struct reach r = { 0 };
    bool *start = calloc((size_t)g->n_nodes + 1, sizeof *start);
    int n_embd = 0, embd_idx = NONE, first = NONE, last = NONE, at, before_layers_end = NONE,
        rc = 0;
    int64_t width; /* of a row: what enters layer 0 is what leaves each layer */

    if (!start) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
        goto out;
    }
    for (int i = g->n_leaves; i < g->n_nodes; i++)
        start[i] = is_vertex(g, i) && is_embd(g, i);
    if (!reach_init(&r, g, start)) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
        goto out;
    }
    for (int i = g->n_leaves; i < g->n_nodes; i++)
        if (start[i] && r.relevant[i]) {
            embd_idx = i;
            n_embd++;
        }
    if (n_embd != 1) {
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                     "the graph reads rows of token_embd.weight in %d places; one is needed",
                     n_embd);
        goto out;
    }
    place_at(g, embd_idx, embd);
    if (!layer_span(g, &r, 0, &first, &last)) {
        rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                     "no node of the graph reads a weight of layer 0");
        goto out;
    }
    at = passage(g, &r, embd_idx, first, 0);
    if (at == NONE) {
        rc = nk_fail(
            err, NK_E_UNIMPLEMENTED, "unsupported",
            "the graph has no one node through which all of the embedding reaches the layers");
        goto out;
    }
    width = width_at(g, at);
    place_at(g, at, entry);
    for (int i = g->n_leaves; i < first; i++)
        if (r.relevant[i] && r.last_use[i] > before_layers_end)
            before_layers_end = r.last_use[i];
    for (int layer = 1; layer < n_layer; layer++) {
        int layer_first, layer_last;

        /* A layer for drafts is not loaded. */
        if (!layer_span(g, &r, layer, &layer_first, &layer_last))
            continue;
        if (layer_first < last || before_layers_end > layer_first) {
            rc = nk_fail(err, NK_E_UNIMPLEMENTED, "unsupported",
                         "layer %d reads more than what layer %d gives out: %s", layer, layer - 1,
                         layer_first < last
                             ? "the layers do not run once and in order"
                             : "something from before the first layer goes into it as well");
            goto out;
        }
        last = layer_last;
    }
    at = passage(g, &r, last, first_head_use(g, &r, last), width);
    /* An encoder's piece that is not the last ends with its last layer. */
    if (at == NONE && last == output_idx(g) && width_at(g, last) == width)
        at = last;
    if (at == NONE) {
        rc = nk_fail(
            err, NK_E_UNIMPLEMENTED, "unsupported",
            "the graph has no one node through which all of the last layer reaches the output");
        goto out;
    }
    place_at(g, at, leave);
out:
    reach_release(&r);
    free(start);
    return rc;
}

int nk__graph_needs_ids(const nk__graph *g, bool *needs, struct nk_error *err)
{
    struct reach r = { 0 };
    bool *start = calloc((size_t)g->n_nodes + 1, sizeof *start);
    int rc = 0;

    *needs = false;
    for (int i = g->n_leaves; i < g->n_nodes; i++)
        for (int k = 0; start && is_vertex(g, i) && !is_embd(g, i) && k < GGML_MAX_SRC; k++) {
            int s = g->nodes[i].src[k];

            if (s != NONE && !strcmp(g->nodes[g->nodes[s].base].name, "inp_tokens"))
                start[i] = true;
        }
    if (!start || !reach_init(&r, g, start))
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    for (int i = g->n_leaves; !rc && i < g->n_nodes; i++)
        *needs |= r.relevant[i];
    reach_release(&r);
    free(start);
    return rc;
}

int64_t nk__graph_max_positions(const nk__graph *g)
{
    int64_t most = 0;

    for (int i = g->n_leaves; i < g->n_nodes; i++) {
        const struct node *n = &g->nodes[i];
        int table = n->src[0] == NONE ? NONE : g->nodes[n->src[0]].base;
        int pos = n->src[1] == NONE ? NONE : g->nodes[n->src[1]].base;

        if (n->op == GGML_OP_GET_ROWS && table != NONE && table < g->n_leaves && pos != NONE &&
            !strcmp(g->nodes[pos].name, "inp_pos") && (!most || g->nodes[table].ne[1] < most))
            most = g->nodes[table].ne[1];
    }
    return most;
}

bool nk__graph_reads(const nk__graph *g, const char *name)
{
    for (int i = 0; i < g->n_leaves; i++)
        if (!strcmp(g->nodes[i].name, name))
            return true;
    return false;
}

bool nk__graph_has_op(const nk__graph *g, enum ggml_op op)
{
    for (int i = g->n_leaves; i < g->n_nodes; i++)
        if (g->nodes[i].op == op)
            return true;
    return false;
}

uint64_t nk__graph_cache_bytes(const nk__graph *g)
{
    uint64_t bytes = 0;

    for (int i = 0; i < g->n_leaves; i++)
        if (!strncmp(g->nodes[i].name, "cache_", 6))
            bytes += g->nodes[i].size_bytes;
    return bytes;
}

struct ggml_backend_buffer *nk__graph_buffer(const nk__graph *g, const struct nk__place *p)
{
    int i = place_idx(g, p);

    return i == NONE ? NULL : g->nodes[i].buffer;
}

struct ggml_backend_buffer *nk__graph_output_buffer(const nk__graph *g)
{
    int i = output_idx(g);

    return i == NONE ? NULL : g->nodes[i].buffer;
}

int nk__graph_leaf_buffers(const nk__graph *g, struct ggml_backend_buffer **out, int max)
{
    int n = 0;

    for (int i = 0; i < g->n_leaves; i++) {
        struct ggml_backend_buffer *b = g->nodes[i].buffer;
        bool known = !b || ggml_backend_buffer_get_usage(b) == GGML_BACKEND_BUFFER_USAGE_COMPUTE;

        for (int k = 0; k < n && k < max && !known; k++)
            known = out[k] == b;
        if (known)
            continue;
        if (n < max)
            out[n] = b;
        n++;
    }
    return n;
}

/* Are all of its bytes read by a run, and not only some rows of it? */
static bool is_read_whole(const nk__graph *g, int leaf)
{
    for (int i = g->n_leaves; i < g->n_nodes; i++)
        for (int k = 0; k < GGML_MAX_SRC; k++)
            if (g->nodes[i].src[k] != NONE && g->nodes[g->nodes[i].src[k]].base == leaf &&
                g->nodes[i].op != GGML_OP_GET_ROWS && is_vertex(g, i))
                return true;
    return false;
}

int nk__graph_mapped_weights(const nk__graph *g, struct nk__span *out, int max)
{
    int n = 0;

    for (int i = 0; i < g->n_leaves && n < max; i++) {
        const struct node *leaf = &g->nodes[i];

        if (leaf->buffer && leaf->data && ggml_backend_buffer_is_host(leaf->buffer) &&
            strstr(ggml_backend_buffer_name(leaf->buffer), NK__MAPPED) && is_read_whole(g, i))
            out[n++] = (struct nk__span){ leaf->data, leaf->size_bytes };
    }
    return n;
}

bool nk__graph_same_end(const nk__graph *a, const nk__graph *b)
{
    const struct node *x, *y;

    if (!a->n_nodes || !b->n_nodes)
        return a->n_nodes == b->n_nodes;
    x = &a->nodes[a->n_nodes - 1];
    y = &b->nodes[b->n_nodes - 1];
    return x->op == y->op && has_name(x->name) && !strcmp(x->name, y->name);
}

/* ---- is embd input the same? ---- */

static bool same_node(const nk__graph *ga, int a, const nk__graph *gb, int b)
{
    const struct node *x = &ga->nodes[a], *y = &gb->nodes[b];

    return x->op == y->op && x->type == y->type && !memcmp(x->ne, y->ne, sizeof x->ne) &&
           !memcmp(x->params, y->params, sizeof x->params) &&
           has_name(x->name) == has_name(y->name) &&
           (!has_name(x->name) || !strcmp(x->name, y->name));
}

int nk__graph_same_after_entry(const nk__graph *a, const struct nk__place *entry,
                               const nk__graph *b, bool *same, struct nk_error *err)
{
    int at = place_idx(a, entry), in = NONE, i, j;
    int *peer = NULL;

    *same = false;
    for (i = 0; i < b->n_leaves; i++)
        if (!strcmp(b->nodes[i].name, "embd") || !strcmp(b->nodes[i].name, "inp_embd"))
            in = in == NONE ? i : NONE;
    peer = calloc((size_t)a->n_nodes + 1, sizeof *peer);
    if (!peer)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    if (at == NONE || in == NONE || b->nodes[in].type != GGML_TYPE_F32 ||
        (int64_t)(b->nodes[in].size_bytes / sizeof(float)) != entry->width * b->n_tokens)
        goto out;
    for (i = 0; i < a->n_nodes; i++)
        peer[i] = NONE;
    /* What precedes the entry in a (embedding, scale, position, norm) has no peer, but for the bare
     * input. From there on both must be the same nodes with the same sources, in the same order.
     * Leaves are the same by name and shape. */
    peer[at] = in;
    for (i = at + 1, j = b->n_nodes - (a->n_nodes - at - 1); j >= b->n_leaves && i < a->n_nodes;
         i++, j++) {
        if (!same_node(a, i, b, j))
            goto out;
        for (int k = 0; k < GGML_MAX_SRC; k++) {
            int s = a->nodes[i].src[k], t = b->nodes[j].src[k];

            if ((s == NONE) != (t == NONE))
                goto out;
            if (s == NONE)
                continue;
            if (s < a->n_leaves ? t >= b->n_leaves || !same_node(a, s, b, t) : peer[s] != t)
                goto out;
        }
        peer[i] = j;
    }
    *same = j == b->n_nodes;
out:
    free(peer);
    return 0;
}
