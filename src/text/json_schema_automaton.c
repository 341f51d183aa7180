/* Several conditions on one text at once: regular expressions that have, or have not, a match in
 * it, its length, and the remainder of the number that it spells. Their automatons walk side by
 * side: a state is the set of places in all of them, and what counts besides. States become rules
 * of the grammar; those from which no end can be reached are left out, so that a model never runs
 * into them. */
#include "text/json_schema_int.h"

#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/utf8.h"

enum {
    NODES_MAX = 8192,
    STATES_MAX = 4096,
    EDGES_MAX = 1 << 16,
    CUTS_MAX = 4096,
};

enum node_type { NODE_MATCH, NODE_SET, NODE_ANY, NODE_SPLIT, NODE_BEGIN, NODE_END };

struct node {
    enum node_type type;
    uint32_t next, other; /* other: the second way of a SPLIT */
    const struct nk__range *ranges;
    uint32_t n_ranges;
};

/* One regular expression, or its look-ahead. */
struct part {
    uint32_t begin, end, start, match; /* nodes; match: the one that is its end */
    bool negated;
};

struct edge {
    uint32_t low, high, from, to;
};

struct automaton {
    struct nk__conversion *c;
    const struct nk__language *lang;
    struct node *nodes;
    size_t n_nodes, nodes_capacity;
    struct part *parts;
    size_t n_parts, parts_capacity;
    uint32_t *cuts; /* where sets begin and after they end, sorted: between two all is the same */
    size_t n_cuts, cuts_capacity;
    size_t n_words;   /* of the set of nodes in a state; after them stand length and remainder */
    uint64_t *states; /* n_states times n_words + 2 */
    size_t n_states, states_capacity;
    uint32_t *slots; /* a hash: state + 1, or 0 */
    struct edge *edges;
    size_t n_edges, edges_capacity;
    uint32_t *todo;
    bool *accepting, *alive, *inlined;
    uint32_t *first; /* of a state's edges, once they are sorted */
};

static int too_large(struct automaton *a)
{
    return nk__schema_refuse(a->c, a->lang->modulus ? "multipleOf" : "pattern",
                             "together with the other limits of the same value it is too large");
}

/* ---- nodes ---- */

static int add_node(struct automaton *a, struct node node, uint32_t *at)
{
    if (a->n_nodes == NODES_MAX)
        return too_large(a);
    if (nk_array_grow(a->nodes, a->nodes_capacity, a->n_nodes + 1, NODES_MAX, a->c->err))
        return NK_E_EXHAUSTED;
    a->nodes[a->n_nodes] = node;
    *at = (uint32_t)a->n_nodes++;
    return 0;
}

static int add_tree(struct automaton *a, const struct nk__regex *re, uint32_t tree, uint32_t next,
                    uint32_t *start);

/* From the last one backwards: each knows what follows it. */
static int add_sequence(struct automaton *a, const struct nk__regex *re, uint32_t first,
                        uint32_t next, uint32_t *start)
{
    uint32_t *list = NULL, n = 0;
    size_t capacity = 0;
    int rc = 0;

    *start = next;
    for (uint32_t i = first; !rc && i; i = re->nodes[i].next) {
        rc = n == NODES_MAX ? too_large(a)
                            : nk_array_grow(list, capacity, (size_t)n + 1, NODES_MAX, a->c->err);
        if (!rc)
            list[n++] = i;
    }
    while (!rc && n)
        rc = add_tree(a, re, list[--n], *start, start);
    free(list);
    return rc;
}

static int add_repeat(struct automaton *a, const struct nk__regex *re,
                      const struct nk__regex_node *n, uint32_t next, uint32_t *start)
{
    uint32_t at = next;
    int rc = 0;

    if (n->max < 0) {
        rc = add_node(a, (struct node){ .type = NODE_SPLIT, .other = next }, &at);
        if (!rc) {
            uint32_t body, loop = at;

            rc = add_tree(a, re, n->child, loop, &body);
            if (!rc)
                a->nodes[loop].next = body;
        }
    }
    for (int32_t i = n->min; !rc && i < n->max; i++) {
        uint32_t body;

        rc = add_tree(a, re, n->child, at, &body);
        if (!rc)
            rc = add_node(a, (struct node){ .type = NODE_SPLIT, .next = body, .other = next }, &at);
    }
    for (int32_t i = 0; !rc && i < n->min; i++)
        rc = add_tree(a, re, n->child, at, &at);
    *start = at;
    return rc;
}

static int add_tree(struct automaton *a, const struct nk__regex *re, uint32_t tree, uint32_t next,
                    uint32_t *start)
{
    const struct nk__regex_node *n = &re->nodes[tree];
    uint32_t at, way;
    int rc = nk__schema_spend(a->c, 2);

    if (rc)
        return rc;
    switch (n->type) {
    case NK__REGEX_SET:
        return add_node(
            a,
            (struct node){
                .type = NODE_SET, .next = next, .ranges = re->ranges + n->child, .n_ranges = n->n },
            start);
    case NK__REGEX_REPEAT:
        return add_repeat(a, re, n, next, start);
    case NK__REGEX_SEQUENCE:
        return add_sequence(a, re, n->child, next, start);
    case NK__REGEX_ALTERNATIVES:
        rc = add_tree(a, re, n->child, next, &at);
        for (uint32_t i = re->nodes[n->child].next; !rc && i; i = re->nodes[i].next) {
            rc = add_tree(a, re, i, next, &way);
            if (!rc)
                rc =
                    add_node(a, (struct node){ .type = NODE_SPLIT, .next = at, .other = way }, &at);
        }
        *start = at;
        return rc;
    case NK__REGEX_BEGIN:
    case NK__REGEX_END:
        break;
    }
    return add_node(
        a,
        (struct node){ .type = n->type == NK__REGEX_BEGIN ? NODE_BEGIN : NODE_END, .next = next },
        start);
}

/* Any text, then next. */
static int add_any(struct automaton *a, uint32_t next, uint32_t *start)
{
    uint32_t any;
    int rc = add_node(a, (struct node){ .type = NODE_SPLIT, .other = next }, start);

    if (!rc)
        rc = add_node(a, (struct node){ .type = NODE_ANY, .next = *start }, &any);
    if (!rc)
        a->nodes[*start].next = any;
    return rc;
}

/* A regular expression is looked for everywhere; its look-ahead stands where the text begins. */
static int add_part(struct automaton *a, const struct nk__regex *re, uint32_t tree, bool everywhere,
                    bool negated)
{
    struct part p = { .begin = (uint32_t)a->n_nodes, .negated = negated };
    uint32_t at;
    int rc = nk_array_grow(a->parts, a->parts_capacity, a->n_parts + 1, 1024, a->c->err);

    if (!rc)
        rc = add_node(a, (struct node){ .type = NODE_MATCH }, &p.match);
    if (!rc)
        rc = add_any(a, p.match, &at);
    if (!rc)
        rc = add_tree(a, re, tree, at, &at);
    if (!rc && everywhere && !nk__regex_is_anchored(re, false))
        rc = add_any(a, at, &at);
    p.start = at;
    p.end = (uint32_t)a->n_nodes;
    if (!rc)
        a->parts[a->n_parts++] = p;
    return rc;
}

/* ---- states ---- */

static uint64_t *state_at(const struct automaton *a, size_t i)
{
    return a->states + i * (a->n_words + 2);
}

static bool in_set(const uint64_t *set, uint32_t node)
{
    return set[node / 64] >> node % 64 & 1;
}

/* The node, and where it leads without a character. */
static int enter(struct automaton *a, uint64_t *set, uint32_t node, bool at_begin, bool at_end)
{
    size_t n_todo = 0, n_steps = 0;

    /* A node is put there once for each way to it, of which there are two at most. */
    a->todo[n_todo++] = node;
    while (n_todo) {
        const struct node *n;

        node = a->todo[--n_todo];
        n_steps++;
        if (in_set(set, node))
            continue;
        set[node / 64] |= 1ull << node % 64;
        n = &a->nodes[node];
        if (n->type == NODE_SPLIT || (n->type == NODE_BEGIN && at_begin) ||
            (n->type == NODE_END && at_end))
            a->todo[n_todo++] = n->next;
        if (n->type == NODE_SPLIT)
            a->todo[n_todo++] = n->other;
    }
    return nk__schema_spend(a->c, n_steps / 2);
}

static bool takes_char(const struct node *n, uint32_t cp)
{
    if (n->type == NODE_ANY)
        return true;
    for (uint32_t i = 0; n->type == NODE_SET && i < n->n_ranges; i++)
        if (cp >= n->ranges[i].low && cp <= n->ranges[i].high)
            return true;
    return false;
}

/* Remainder of the digits so far, times 32, and how many digits follow the point, plus 1 once it
 * stands there. */
static uint64_t count_digit(const struct nk__language *lang, uint64_t counted, uint32_t cp)
{
    uint64_t remainder = counted / 32, places = counted % 32;

    if (cp == '.')
        return remainder * 32 + 1;
    if (cp < '0' || cp > '9')
        return counted;
    return (remainder * 10 + (cp - '0')) % (uint64_t)lang->modulus * 32 + (places ? places + 1 : 0);
}

static bool length_counts(const struct nk__language *lang)
{
    return lang->min > 0 || lang->max >= 0;
}

/* *dead: nothing that begins so can be right. */
static int step(struct automaton *a, const uint64_t *from, uint32_t cp, uint64_t *to, bool *dead)
{
    const struct nk__language *lang = a->lang;
    size_t n_seen = 0;
    int rc = 0;

    memset(to, 0, (a->n_words + 2) * sizeof *to);
    for (size_t w = 0; !rc && w < a->n_words; w++)
        for (uint64_t bits = from[w]; !rc && bits; bits &= bits - 1) {
            uint32_t i = (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(bits);

            n_seen++;
            if (takes_char(&a->nodes[i], cp))
                rc = enter(a, to, a->nodes[i].next, false, false);
        }
    if (!rc)
        rc = nk__schema_spend(a->c, 1 + (a->n_words + n_seen) / 2);
    if (length_counts(lang)) {
        uint64_t most = (uint64_t)(lang->max >= 0 ? lang->max + 1 : lang->min);

        to[a->n_words] = from[a->n_words] < most ? from[a->n_words] + 1 : most;
    }
    if (lang->modulus)
        to[a->n_words + 1] = count_digit(lang, from[a->n_words + 1], cp);
    *dead = lang->max >= 0 && to[a->n_words] > (uint64_t)lang->max;
    for (size_t p = 0; !*dead && p < a->n_parts; p++) {
        bool any = a->parts[p].negated;

        /* A ^ that was not at the beginning leads nowhere. */
        for (uint32_t i = a->parts[p].begin; !any && i < a->parts[p].end; i++)
            any = in_set(to, i) && a->nodes[i].type != NODE_BEGIN;
        *dead = !any;
    }
    return rc;
}

static int check_end(struct automaton *a, const uint64_t *state, uint64_t *scratch, bool *accepts)
{
    const struct nk__language *lang = a->lang;
    int rc = 0;

    *accepts = !length_counts(lang) || state[a->n_words] >= (uint64_t)lang->min;
    if (lang->modulus) {
        uint64_t remainder = state[a->n_words + 1] / 32, places = state[a->n_words + 1] % 32;

        for (uint64_t k = places ? places - 1 : 0; k < (uint64_t)lang->n_places; k++)
            remainder = remainder * 10 % (uint64_t)lang->modulus;
        *accepts &= remainder == 0;
    }
    if (!*accepts)
        return 0;
    memset(scratch, 0, (a->n_words + 2) * sizeof *scratch);
    for (size_t w = 0; !rc && w < a->n_words; w++)
        for (uint64_t bits = state[w]; !rc && bits; bits &= bits - 1)
            if (a->nodes[w * 64 + (size_t)__builtin_ctzll(bits)].type == NODE_END)
                rc = enter(a, scratch, (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(bits), false,
                           true);
    for (size_t p = 0; p < a->n_parts; p++) {
        bool matched = in_set(state, a->parts[p].match) || in_set(scratch, a->parts[p].match);

        *accepts &= matched != a->parts[p].negated;
    }
    return rc;
}

/* Where the text begins; whether it may be empty needs ^ and $ at once. */
static int first_state(struct automaton *a, uint64_t *state, uint64_t *scratch, bool *accepts)
{
    uint64_t *both = calloc(a->n_words + 2, sizeof *both);
    int rc = both ? 0 : nk_fail(a->c->err, NK_E_EXHAUSTED, "no_memory", "no memory");

    memset(state, 0, (a->n_words + 2) * sizeof *state);
    for (size_t p = 0; !rc && p < a->n_parts; p++) {
        rc = enter(a, state, a->parts[p].start, true, false);
        if (!rc)
            rc = enter(a, both, a->parts[p].start, true, true);
    }
    if (!rc)
        rc = check_end(a, both, scratch, accepts);
    free(both);
    return rc;
}

/* The state's number; one more when it is new. */
static int find_state(struct automaton *a, uint64_t *state, uint32_t *at)
{
    size_t size = a->n_words + 2, i;
    uint64_t h = 0xcbf29ce484222325ull;

    for (size_t w = 0; w < size; w++)
        h = (h ^ state[w]) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    for (i = h % (2 * STATES_MAX); a->slots[i]; i = (i + 1) % (2 * STATES_MAX))
        if (!memcmp(state_at(a, a->slots[i] - 1), state, size * sizeof *state)) {
            *at = a->slots[i] - 1;
            return 0;
        }
    if (a->n_states == STATES_MAX)
        return too_large(a);
    if (nk_array_grow(a->states, a->states_capacity, (a->n_states + 1) * size,
                      (size_t)STATES_MAX * size, a->c->err))
        return NK_E_EXHAUSTED;
    memcpy(state_at(a, a->n_states), state, size * sizeof *state);
    *at = (uint32_t)a->n_states++;
    a->slots[i] = *at + 1;
    return 0;
}

static int add_cut(struct automaton *a, uint32_t cp)
{
    if (a->n_cuts == CUTS_MAX)
        return too_large(a);
    if (nk_array_grow(a->cuts, a->cuts_capacity, a->n_cuts + 1, CUTS_MAX, a->c->err))
        return NK_E_EXHAUSTED;
    a->cuts[a->n_cuts++] = cp;
    return 0;
}

static int by_value(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Sorted, each once. */
static void sort_cuts(struct automaton *a)
{
    size_t n = 0;

    qsort(a->cuts, a->n_cuts, sizeof *a->cuts, by_value);
    for (size_t i = 0; i < a->n_cuts; i++)
        if (!n || a->cuts[n - 1] != a->cuts[i])
            a->cuts[n++] = a->cuts[i];
    a->n_cuts = n;
}

static int find_cuts(struct automaton *a)
{
    int rc = add_cut(a, 0);

    if (!rc) /* halves of characters are in no text */
        rc = add_cut(a, 0xD800);
    if (!rc)
        rc = add_cut(a, 0xE000);
    for (uint32_t cp = '-'; !rc && a->lang->modulus && cp <= '9' + 1; cp++)
        rc = add_cut(a, cp);
    for (size_t i = 0; !rc && i < a->n_nodes; i++)
        for (uint32_t k = 0; !rc && k < a->nodes[i].n_ranges; k++) {
            if (a->n_cuts + 2 > CUTS_MAX)
                sort_cuts(a);
            rc = add_cut(a, a->nodes[i].ranges[k].low);
            if (!rc)
                rc = add_cut(a, a->nodes[i].ranges[k].high + 1);
        }
    if (!rc)
        rc = add_cut(a, 0x110000);
    if (!rc)
        rc = nk__schema_spend(a->c, 16 * a->n_cuts);
    sort_cuts(a);
    return rc;
}

static int add_edge(struct automaton *a, uint32_t low, uint32_t high, uint32_t from, uint32_t to)
{
    struct edge *last = a->n_edges ? &a->edges[a->n_edges - 1] : NULL;

    if (last && last->from == from && last->to == to && last->high + 1 == low) {
        last->high = high;
        return 0;
    }
    if (a->n_edges == EDGES_MAX)
        return too_large(a);
    if (nk_array_grow(a->edges, a->edges_capacity, a->n_edges + 1, EDGES_MAX, a->c->err))
        return NK_E_EXHAUSTED;
    a->edges[a->n_edges++] = (struct edge){ low, high, from, to };
    return 0;
}

static int make(struct automaton *a)
{
    const struct nk__language *lang = a->lang;
    int rc = 0;

    for (size_t i = 0; !rc && i < lang->n; i++) {
        const struct nk__regex *re = lang->parts[i].regex;

        if (re->n_looks && lang->parts[i].negated)
            return nk__schema_refuse(a->c, "pattern", "look-around is not supported within not");
        rc = add_part(a, re, re->root, true, lang->parts[i].negated);
        for (int k = 0; !rc && k < re->n_looks; k++)
            rc = add_part(a, re, re->looks[k].node, false, re->looks[k].negated);
    }
    if (rc)
        return rc;
    a->n_words = a->n_nodes / 64 + 1;
    a->todo = malloc((2 * a->n_nodes + 2) * sizeof *a->todo);
    return a->todo ? 0 : nk_fail(a->c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

static void release(struct automaton *a)
{
    free(a->nodes);
    free(a->parts);
    free(a->cuts);
    free(a->states);
    free(a->slots);
    free(a->edges);
    free(a->todo);
    free(a->accepting);
    free(a->alive);
    free(a->inlined);
    free(a->first);
}

/* ---- from states to rules ---- */

static int find_states(struct automaton *a)
{
    uint64_t *to = calloc(a->n_words + 2, sizeof *to),
             *scratch = calloc(a->n_words + 2, sizeof *scratch);
    uint32_t at;
    int rc = find_cuts(a);

    a->slots = calloc(2 * STATES_MAX, sizeof *a->slots);
    a->accepting = calloc(STATES_MAX, sizeof *a->accepting);
    a->alive = calloc(STATES_MAX, sizeof *a->alive);
    if (!rc && (!to || !scratch || !a->slots || !a->accepting || !a->alive))
        rc = nk_fail(a->c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    if (!rc)
        rc = first_state(a, to, scratch, &a->accepting[0]);
    if (!rc)
        rc = find_state(a, to, &at);
    for (size_t i = 0; !rc && i < a->n_states; i++) {
        if (i)
            rc = check_end(a, state_at(a, i), scratch, &a->accepting[i]);
        for (size_t k = 0; !rc && k + 1 < a->n_cuts; k++) {
            bool dead;

            if (a->cuts[k] >= 0xD800 && a->cuts[k] < 0xE000)
                continue;
            rc = step(a, state_at(a, i), a->cuts[k], to, &dead);
            if (rc || dead)
                continue;
            rc = find_state(a, to, &at);
            if (!rc)
                rc = add_edge(a, a->cuts[k], a->cuts[k + 1] - 1, (uint32_t)i, at);
        }
    }
    free(to);
    free(scratch);
    return rc;
}

/* From which an end can be reached. */
static int find_alive(struct automaton *a)
{
    bool changed = true;
    int rc = 0;

    memcpy(a->alive, a->accepting, a->n_states * sizeof *a->alive);
    while (changed && !rc) {
        changed = false;
        rc = nk__schema_spend(a->c, 1 + a->n_edges / 4);
        for (size_t i = a->n_edges; i-- > 0;)
            if (a->alive[a->edges[i].to] && !a->alive[a->edges[i].from])
                a->alive[a->edges[i].from] = changed = true;
    }
    return rc;
}

static int by_target(const void *a, const void *b)
{
    const struct edge *x = a, *y = b;

    if (x->from != y->from)
        return x->from < y->from ? -1 : 1;
    if (x->to != y->to)
        return x->to < y->to ? -1 : 1;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* One state that follows, or none and the text ends. */
static bool has_one_way(const struct automaton *a, size_t i)
{
    uint32_t begin = a->first[i], end = a->first[i + 1];

    return begin == end || (!a->accepting[i] && a->edges[begin].to == a->edges[end - 1].to);
}

/* Where a state's edges begin, and which states are written out where they are reached: those
 * that are reached from one only, which leads nowhere else and is no end. */
static int find_chains(struct automaton *a)
{
    uint32_t *n_from = calloc(a->n_states, sizeof *n_from);
    size_t n_live = 0;

    if (a->n_edges)
        qsort(a->edges, a->n_edges, sizeof *a->edges, by_target);
    a->first = calloc(a->n_states + 1, sizeof *a->first);
    a->inlined = calloc(a->n_states, sizeof *a->inlined);
    if (!n_from || !a->first || !a->inlined) {
        free(n_from);
        return nk__schema_no_memory(a->c);
    }
    for (size_t e = 0; e < a->n_edges; e++) /* without what leads to no end */
        if (a->alive[a->edges[e].to] && a->alive[a->edges[e].from])
            a->edges[n_live++] = a->edges[e];
    a->n_edges = n_live;
    for (size_t i = 0, e = 0; i <= a->n_states; i++) {
        while (e < a->n_edges && a->edges[e].from < i)
            e++;
        a->first[i] = (uint32_t)e;
    }
    n_from[0] = 2;
    for (size_t e = 0; e < a->n_edges; e++)
        if (e == 0 || a->edges[e - 1].from != a->edges[e].from ||
            a->edges[e - 1].to != a->edges[e].to)
            n_from[a->edges[e].to]++;
    for (size_t i = 0; i < a->n_states; i++)
        a->inlined[i] = n_from[i] == 1 && has_one_way(a, i);
    /* Nor from where there is a choice, which theirs would be taken for. */
    for (size_t i = 0; i < a->n_states; i++)
        for (uint32_t e = a->first[i]; e < a->first[i + 1] && !has_one_way(a, i); e++)
            a->inlined[a->edges[e].to] = false;
    free(n_from);
    return nk__schema_spend(a->c, a->n_edges + a->n_states);
}

/* What may follow in the state: characters, and for each the rule of the state behind them. */
static int add_state(struct automaton *a, struct nk_buf *b, size_t at,
                     const struct nk__schema_rule *rules, struct nk__range *ranges)
{
    struct nk_error *err = a->c->err;
    size_t e = a->first[at];
    bool first = true;
    int rc = 0;

    while (!rc && e < a->first[at + 1]) {
        uint32_t to = a->edges[e].to;
        size_t n = 0;

        for (; e < a->first[at + 1] && a->edges[e].to == to; e++)
            ranges[n++] = (struct nk__range){ a->edges[e].low, a->edges[e].high };
        if (!first)
            rc = nk_buf_adds(b, "| ", err);
        first = false;
        if (!rc)
            rc = nk__schema_add_chars(b, ranges, n, err);
        if (!rc && a->inlined[to]) { /* the only way: its own go on here */
            at = to;
            e = a->first[at];
            first = true;
        } else if (!rc) {
            rc = nk_buf_addf(b, err, "%s ", rules[to].text);
        }
    }
    return !rc && a->accepting[at] && !first ? nk_buf_adds(b, "| \"\" ", err) : rc;
}

static int add_rules(struct automaton *a, struct nk_buf *b)
{
    struct nk__schema_rule *rules = calloc(a->n_states, sizeof *rules);
    struct nk__range *ranges = calloc(a->n_cuts + 1, sizeof *ranges);
    struct nk_buf body = NK_BUF_INIT(NK__SCHEMA_BODY_MAX);
    struct nk_error *err = a->c->err;
    int rc = rules && ranges ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    for (size_t i = 0; !rc && i < a->n_states; i++)
        if (a->alive[i] && !(i && a->inlined[i]))
            rc = nk__schema_new_rule(a->c, &rules[i]);
    for (size_t i = 0; !rc && i < a->n_states; i++) {
        if (!a->alive[i] || (i && a->inlined[i]))
            continue;
        nk_buf_reset(&body);
        rc = add_state(a, &body, i, rules, ranges);
        if (!rc)
            rc = nk__schema_add_rule(a->c, &rules[i], &body);
    }
    if (!rc)
        rc = nk_buf_addf(b, err, "%s ", rules[0].text);
    nk_buf_release(&body);
    free(rules);
    free(ranges);
    return rc;
}

int nk__schema_add_language(struct nk__conversion *c, struct nk_buf *b,
                            const struct nk__language *lang)
{
    struct automaton a = { .c = c, .lang = lang };
    int rc = make(&a);

    if (!rc)
        rc = find_states(&a);
    if (!rc)
        rc = find_alive(&a);
    if (!rc)
        rc = find_chains(&a);
    if (!rc)
        rc = a.alive[0] ? add_rules(&a, b)
                        : nk__schema_nothing(c, lang->modulus ? "multipleOf" : "pattern",
                                             "together with the other limits of the same value "
                                             "nothing is valid");
    release(&a);
    return rc;
}

int nk__language_takes(struct nk__conversion *c, const struct nk__language *lang, const char *text,
                       size_t size, bool *takes)
{
    struct automaton a = { .c = c, .lang = lang };
    uint64_t *mem = NULL, *state, *to, *scratch;
    bool dead = false;
    int rc = make(&a);

    *takes = false;
    if (!rc) {
        mem = calloc(3 * (a.n_words + 2), sizeof *mem);
        rc = mem ? 0 : nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    if (rc)
        goto out;
    state = mem;
    to = mem + a.n_words + 2;
    scratch = to + a.n_words + 2;
    rc = first_state(&a, state, scratch, takes);
    for (size_t i = 0; !rc && !dead && i < size;) {
        uint64_t *was = state;
        uint32_t cp;
        int n = nk_utf8_next(text + i, size - i, &cp);

        NK_ASSERT(n > 0); /* jansson's strings are UTF-8 */
        i += (size_t)n;
        rc = step(&a, state, cp, to, &dead);
        state = to;
        to = was;
        if (!rc && i == size)
            rc = dead ? 0 : check_end(&a, state, scratch, takes);
    }
    if (dead)
        *takes = false;
out:
    free(mem);
    release(&a);
    return rc;
}

int nk__language_add(struct nk__conversion *c, struct nk__language *lang, const char *pattern,
                     bool negated)
{
    struct nk__regex *re;
    int rc;

    if (lang->n == NK__LANGUAGE_PARTS_MAX)
        return nk__schema_refuse(c, "pattern", "too many limits of the same value");
    re = malloc(sizeof *re);
    if (!re)
        return nk_fail(c->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    rc = nk__regex_parse(c, re, pattern);
    if (rc) {
        free(re);
        return rc;
    }
    lang->parts[lang->n].regex = re;
    lang->parts[lang->n++].negated = negated;
    return 0;
}

void nk__language_release(struct nk__language *lang)
{
    for (size_t i = 0; i < lang->n; i++) {
        nk__regex_release(lang->parts[i].regex);
        free(lang->parts[i].regex);
    }
    *lang = (struct nk__language)NK__LANGUAGE_INIT;
}
