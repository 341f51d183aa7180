/* The state after some text is a set of places in the network of text/gbnf.h, each with the stack
 * of calls that it will return through. A stack is a node of a graph: "called from there, when the
 * text was so long", and its parents are the stacks that it was called with. Two calls from the
 * same place at the same time are one node; that is what keeps ambiguous grammars small.
 *
 * A rule that matches nothing is skipped at its call; therefore a return at the same length of text
 * as the call is ignored, and nodes get new parents only while they are new. So everything that is
 * tried for a token is thrown away by forgetting what was added to the ends of three arrays; and
 * what a token leaves behind for good is collected as garbage (marked, and moved together) now and
 * then. */
#include "text/grammar.h"

#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "base/array.h"
#include "text/gbnf.h"
#include "text/pieces.h"

#define NONE UINT32_MAX /* the empty stack: where "root" returns to */

/* A node of the graph. */
struct stack {
    uint32_t call;   /* the CALL in the network; its next is where it goes on */
    uint32_t length; /* of the text, in characters, when it was called */
    uint32_t edges;  /* its first edge */
};

struct edge {
    uint32_t parent, next;
};

struct place {
    uint32_t node, stack;
};

/* A character that has begun: its bits so far, how many bytes are missing, and what the next byte
 * may be. */
struct partial {
    uint32_t bits;
    uint8_t n_missing, low, high;
};

struct state {
    uint32_t begin, end; /* in places; only nodes that consume something */
    uint32_t length;
    bool complete; /* the text may end here */
    struct partial partial;
};

struct seen {
    uint64_t step;
    struct place place;
};

struct called {
    uint64_t step;
    uint32_t stack;
};

struct nk_grammar {
    struct nk_gbnf net;
    const struct nk_pieces *pieces;
    struct state now;

    struct stack *stacks;
    struct edge *edges;
    struct place *places, *todo;
    uint32_t n_stacks, n_edges, n_places, n_todo;
    size_t stacks_capacity, edges_capacity, places_capacity, todo_capacity;
    uint32_t collect_at; /* garbage is collected when there are so many stacks or edges */

    /* What the present step has seen; entries of older steps count as empty. */
    struct seen *seen;
    uint32_t seen_capacity, n_seen; /* capacity: a power of two */
    uint64_t step;
    struct called *called; /* per node of the network: the stack of a CALL in the present step */

    uint8_t *mask;
    struct state *depth; /* for nk_grammar_mask: the states after each byte of a token */
    int64_t work_left;
    int limit;                    /* of a call */
    const atomic_bool *cancelled; /* NULL: what is asked is always wanted */
    int rc;                       /* of the first failure of a call */
    struct nk_error *err;
};

/* ---- ceilings ---- */

static void too_complex(nk_grammar *g, const char *what)
{
    if (!g->rc)
        g->rc = nk_fail(g->err, NK_E_EXHAUSTED, "grammar_too_complex",
                        "the grammar is too ambiguous for this text: %s", what);
}

static void spend(nk_grammar *g, uint32_t work)
{
    if (g->cancelled && atomic_load_explicit(g->cancelled, memory_order_relaxed) && !g->rc)
        g->rc = nk_fail(g->err, NK_E_CANCELLED, "cancelled", "nobody waits for the token any more");
    g->work_left -= work;
    if (g->work_left >= 0)
        return;
    if (g->limit == NK_GRAMMAR_WORK_MAX)
        too_complex(g, "too much work for one token");
    else if (!g->rc)
        g->rc = nk_fail(g->err, NK_E_DEADLINE, "later", "more work than there is time for now");
}

static void grow_at(nk_grammar *g, void *array_at, size_t element_size, size_t *capacity,
                    uint32_t n)
{
    if (g->rc)
        return;
    if (n == 4u * NK_GRAMMAR_STATES_MAX)
        too_complex(g, "too many ways to read it");
    else
        g->rc = nk_array_grow_at(array_at, element_size, capacity, (size_t)n + 1,
                                 4u * NK_GRAMMAR_STATES_MAX, g->err);
}

/* Room for one more element; g->rc tells. */
#define grow(g, array, capacity, n) grow_at(g, &(array), sizeof *(array), &(capacity), n)

/* ---- one step ---- */

static uint32_t seen_slot(const nk_grammar *g, struct place p)
{
    uint64_t h = ((uint64_t)p.node << 32 | p.stack) * 0x9E3779B97F4A7C15ull;
    uint32_t i = (uint32_t)(h >> 32) & (g->seen_capacity - 1);

    while (g->seen[i].step == g->step &&
           (g->seen[i].place.node != p.node || g->seen[i].place.stack != p.stack))
        i = (i + 1) & (g->seen_capacity - 1);
    return i;
}

static bool seen_grow(nk_grammar *g)
{
    struct seen *old = g->seen;
    uint32_t old_capacity = g->seen_capacity, capacity = old_capacity ? old_capacity * 2 : 256;

    if (old_capacity >= NK_GRAMMAR_STATES_MAX * 2u) {
        too_complex(g, "too many ways to read it");
        return false;
    }
    g->seen = calloc(capacity, sizeof *g->seen);
    if (!g->seen) {
        g->seen = old;
        g->rc = nk_fail(g->err, NK_E_EXHAUSTED, "no_memory", "no memory for the grammar's state");
        return false;
    }
    g->seen_capacity = capacity;
    for (uint32_t i = 0; i < old_capacity; i++)
        if (old[i].step == g->step)
            g->seen[seen_slot(g, old[i].place)] = old[i];
    free(old);
    return true;
}

/* To be looked at in this step, unless it was already. */
static void visit(nk_grammar *g, uint32_t node, uint32_t stack)
{
    struct place p = { node, stack };
    uint32_t i;

    spend(g, 1);
    if (g->rc)
        return;
    if (g->n_seen * 2 >= g->seen_capacity && !seen_grow(g))
        return;
    i = seen_slot(g, p);
    if (g->seen[i].step == g->step)
        return;
    grow(g, g->todo, g->todo_capacity, g->n_todo);
    if (g->rc)
        return;
    g->seen[i] = (struct seen){ g->step, p };
    g->n_seen++;
    g->todo[g->n_todo++] = p;
}

static void begin_step(nk_grammar *g)
{
    g->step++;
    g->n_seen = 0;
    g->n_todo = 0;
}

/* A CALL that does return here, with this stack: its own stack gets one more parent. */
static void call(nk_grammar *g, uint32_t node, uint32_t stack, uint32_t length)
{
    struct called *c = &g->called[node];
    const struct nk_gbnf_node *n = &g->net.nodes[node];

    grow(g, g->edges, g->edges_capacity, g->n_edges);
    if (c->step != g->step) {
        grow(g, g->stacks, g->stacks_capacity, g->n_stacks);
        if (g->rc)
            return;
        *c = (struct called){ g->step, g->n_stacks };
        g->stacks[g->n_stacks++] = (struct stack){ node, length, NONE };
    }
    if (g->rc)
        return;
    g->edges[g->n_edges] = (struct edge){ stack, g->stacks[c->stack].edges };
    g->stacks[c->stack].edges = g->n_edges++;
    visit(g, g->net.rules[n->arg].start, c->stack);
    if (g->net.rules[n->arg].nullable)
        visit(g, n->next, stack);
}

/* Follows everything that consumes nothing; what does consume is added to the state. */
static void finish_step(nk_grammar *g, struct state *s)
{
    while (g->n_todo && !g->rc) {
        struct place p = g->todo[--g->n_todo];
        const struct nk_gbnf_node *n = &g->net.nodes[p.node];

        switch ((enum nk_gbnf_type)n->type) {
        case NK_GBNF_SPLIT:
            visit(g, n->arg, p.stack);
            visit(g, n->next, p.stack);
            break;
        case NK_GBNF_CALL:
            if (n->tail)
                visit(g, g->net.rules[n->arg].start, p.stack);
            else
                call(g, p.node, p.stack, s->length);
            break;
        case NK_GBNF_MATCH:
            if (p.stack == NONE) {
                s->complete = true;
            } else if (g->stacks[p.stack].length != s->length) {
                uint32_t next = g->net.nodes[g->stacks[p.stack].call].next;

                for (uint32_t e = g->stacks[p.stack].edges; e != NONE && !g->rc;
                     e = g->edges[e].next)
                    visit(g, next, g->edges[e].parent);
            }
            break;
        case NK_GBNF_EPS:
        case NK_GBNF_CHAR:
        case NK_GBNF_CLASS:
        case NK_GBNF_TOKEN:
        case NK_GBNF_NOT_TOKEN:
            grow(g, g->places, g->places_capacity, g->n_places);
            if (!g->rc)
                g->places[g->n_places++] = p;
        }
    }
    s->end = g->n_places;
}

static struct state empty_state(const nk_grammar *g, uint32_t length)
{
    return (struct state){ .begin = g->n_places, .end = g->n_places, .length = length };
}

static bool is_dead(const struct state *s)
{
    return s->begin == s->end && !s->complete;
}

/* The state after one more character. */
static struct state step(nk_grammar *g, const struct state *from, uint32_t cp)
{
    struct state to = empty_state(g, from->length + 1);

    begin_step(g);
    spend(g, from->end - from->begin);
    for (uint32_t i = from->begin; i < from->end && !g->rc; i++) {
        struct place p = g->places[i];
        const struct nk_gbnf_node *n = &g->net.nodes[p.node];

        if ((n->type == NK_GBNF_CHAR && n->arg == cp) ||
            (n->type == NK_GBNF_CLASS && nk__gbnf_class_has(&g->net, n->arg, cp)))
            visit(g, n->next, p.stack);
    }
    finish_step(g, &to);
    return to;
}

/* Whether any way in which the begun character can be completed is wanted. */
static bool partial_fits(nk_grammar *g, const struct state *s)
{
    const struct partial *c = &s->partial;
    int shift = 6 * (c->n_missing - 1);
    uint32_t low = (c->bits << 6 | (c->low & 0x3Fu)) << shift;
    uint32_t high = ((c->bits << 6 | (c->high & 0x3Fu)) << shift) | ((1u << shift) - 1);

    spend(g, s->end - s->begin);
    for (uint32_t i = s->begin; i < s->end; i++) {
        const struct nk_gbnf_node *n = &g->net.nodes[g->places[i].node];

        if ((n->type == NK_GBNF_CHAR && n->arg >= low && n->arg <= high) ||
            (n->type == NK_GBNF_CLASS && nk__gbnf_class_meets(&g->net, n->arg, low, high)))
            return true;
    }
    return false;
}

/* The first byte of a character of several; the bounds are those of base/utf8.c. False: it can be
 * none. */
static bool partial_begin(struct partial *c, uint8_t byte)
{
    *c = (struct partial){ 0, 0, 0x80, 0xBF };
    if (byte >= 0xC2 && byte <= 0xDF) {
        c->bits = byte & 0x1Fu;
        c->n_missing = 1;
    } else if (byte >= 0xE0 && byte <= 0xEF) {
        c->bits = byte & 0x0Fu;
        c->n_missing = 2;
        c->low = byte == 0xE0 ? 0xA0 : 0x80;
        c->high = byte == 0xED ? 0x9F : 0xBF;
    } else if (byte >= 0xF0 && byte <= 0xF4) {
        c->bits = byte & 0x07u;
        c->n_missing = 3;
        c->low = byte == 0xF0 ? 0x90 : 0x80;
        c->high = byte == 0xF4 ? 0x8F : 0xBF;
    }
    return c->n_missing > 0;
}

/* The state after one more byte; dead when it cannot follow. */
static struct state advance(nk_grammar *g, const struct state *from, uint8_t byte)
{
    struct state to = *from;

    if (!from->partial.n_missing) {
        if (byte < 0x80)
            return step(g, from, byte);
        if (!partial_begin(&to.partial, byte))
            return empty_state(g, from->length);
    } else {
        if (byte < from->partial.low || byte > from->partial.high)
            return empty_state(g, from->length);
        to.partial = (struct partial){ from->partial.bits << 6 | (byte & 0x3Fu),
                                       (uint8_t)(from->partial.n_missing - 1), 0x80, 0xBF };
        if (!to.partial.n_missing)
            return step(g, from, to.partial.bits);
    }
    to.complete = false;
    return partial_fits(g, &to) ? to : empty_state(g, from->length);
}

/* ---- tokens ---- */

/* Forgets what was tried. */
struct mark {
    uint32_t n_stacks, n_edges, n_places;
};

static struct mark mark(const nk_grammar *g)
{
    return (struct mark){ g->n_stacks, g->n_edges, g->n_places };
}

static void rewind_to(nk_grammar *g, struct mark m)
{
    g->n_stacks = m.n_stacks;
    g->n_edges = m.n_edges;
    g->n_places = m.n_places;
}

static void begin_call(nk_grammar *g, struct nk_error *err)
{
    g->work_left = g->limit;
    g->rc = 0;
    g->err = err;
}

static bool place_takes_token(const nk_grammar *g, struct place p, int32_t id)
{
    const struct nk_gbnf_node *n = &g->net.nodes[p.node];

    return (n->type == NK_GBNF_TOKEN && n->arg == (uint32_t)id) ||
           (n->type == NK_GBNF_NOT_TOKEN && n->arg != (uint32_t)id);
}

static bool wants_token(const nk_grammar *g, int32_t id)
{
    if (g->now.partial.n_missing || g->pieces->is_eog[id])
        return false;
    for (uint32_t i = g->now.begin; i < g->now.end; i++)
        if (place_takes_token(g, g->places[i], id))
            return true;
    return false;
}

static bool may_end(const nk_grammar *g)
{
    return g->now.complete && !g->now.partial.n_missing;
}

/* The state after the token's bytes; dead when it has none. */
static struct state after_bytes(nk_grammar *g, int32_t id)
{
    struct state s = g->now;
    uint32_t begin = g->pieces->offset[id], end = g->pieces->offset[id + 1];

    if (begin == end)
        return empty_state(g, s.length);
    for (uint32_t i = begin; i < end && !is_dead(&s) && !g->rc; i++)
        s = advance(g, &s, g->pieces->bytes[i]);
    return s;
}

void nk_grammar_limit(nk_grammar *g, int work)
{
    g->limit = work;
}

void nk_grammar_cancel_by(nk_grammar *g, const atomic_bool *cancelled)
{
    g->cancelled = cancelled;
}

int nk_grammar_allows(nk_grammar *g, int32_t id, bool *allowed, struct nk_error *err)
{
    struct mark m = mark(g);
    struct state s;

    begin_call(g, err);
    *allowed = false;
    if (id < 0 || id >= g->pieces->n)
        return 0;
    if (g->pieces->is_eog[id]) {
        *allowed = may_end(g);
        return 0;
    }
    if (wants_token(g, id)) {
        *allowed = true;
        return 0;
    }
    s = after_bytes(g, id);
    *allowed = !g->rc && !is_dead(&s);
    rewind_to(g, m);
    return g->rc;
}

/* Single tokens that are wanted, into the mask. */
static void add_wanted_tokens(nk_grammar *g)
{
    int64_t but = -1; /* all tokens but this one */
    bool all = false;

    if (g->now.partial.n_missing)
        return;
    for (uint32_t i = g->now.begin; i < g->now.end; i++) {
        const struct nk_gbnf_node *n = &g->net.nodes[g->places[i].node];

        if (n->type == NK_GBNF_TOKEN) {
            g->mask[n->arg] = 1;
        } else if (n->type == NK_GBNF_NOT_TOKEN) {
            all |= but >= 0 && but != n->arg;
            but = n->arg;
        }
    }
    for (int32_t id = 0; but >= 0 && id < g->pieces->n; id++)
        g->mask[id] |= all || id != but;
}

int nk_grammar_mask(nk_grammar *g, const uint8_t **allowed, struct nk_error *err)
{
    const struct nk_pieces *p = g->pieces;
    struct mark *marks = NULL;
    uint32_t n_alive = 0; /* depth[0 .. n_alive] are states of the present token's first bytes */
    struct mark m = mark(g);
    size_t longest = 0;

    *allowed = NULL;
    begin_call(g, err);
    for (int i = 0; i < p->n; i++)
        if (p->offset[i + 1] - p->offset[i] > longest)
            longest = p->offset[i + 1] - p->offset[i];
    marks = malloc((longest + 1) * sizeof *marks);
    if (!g->mask)
        g->mask = malloc((size_t)p->n);
    if (!g->depth)
        g->depth = malloc((longest + 1) * sizeof *g->depth);
    if (!marks || !g->mask || !g->depth) {
        free(marks);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the grammar's mask");
    }
    g->depth[0] = g->now;
    marks[0] = m;
    for (int i = 0; i < p->n && !g->rc; i++) {
        int32_t id = p->order[i];
        uint32_t size = p->offset[id + 1] - p->offset[id],
                 at = p->shared[i] < n_alive ? p->shared[i] : n_alive;

        /* What is shared with the token before and was dead there is dead here. */
        if (p->shared[i] > n_alive || size == 0) {
            g->mask[id] = 0;
            if (size == 0)
                n_alive = 0;
            continue;
        }
        rewind_to(g, marks[at]);
        for (n_alive = at; n_alive < size && !g->rc; n_alive++) {
            struct state s = advance(g, &g->depth[n_alive], p->bytes[p->offset[id] + n_alive]);

            if (is_dead(&s))
                break;
            g->depth[n_alive + 1] = s;
            marks[n_alive + 1] = mark(g);
        }
        g->mask[id] = n_alive == size;
    }
    rewind_to(g, m);
    free(marks);
    if (g->rc)
        return g->rc;
    add_wanted_tokens(g);
    for (int32_t id = 0; id < p->n; id++)
        if (p->is_eog[id])
            g->mask[id] = may_end(g);
    *allowed = g->mask;
    return 0;
}

/* ---- garbage ---- */

/* Keeps the stacks that the present state can return through, moved together. */
static void collect(nk_grammar *g)
{
    uint32_t *to = malloc((g->n_stacks + 1) * sizeof *to),
             *todo = malloc((g->n_stacks + 1) * sizeof *todo);
    struct edge *edges = malloc((g->n_edges + 1) * sizeof *edges);
    uint32_t n_todo = 0, n = 0, n_edges = 0;

    if (!to || !todo || !edges)
        goto out; /* another time */
    memset(to, 0xFF, (g->n_stacks + 1) * sizeof *to);
    for (uint32_t i = g->now.begin; i < g->now.end; i++) {
        uint32_t s = g->places[i].stack;

        if (s != NONE && to[s] == NONE) {
            to[s] = 0;
            todo[n_todo++] = s;
        }
    }
    while (n_todo) {
        uint32_t s = todo[--n_todo];

        for (uint32_t e = g->stacks[s].edges; e != NONE; e = g->edges[e].next) {
            uint32_t parent = g->edges[e].parent;

            if (parent != NONE && to[parent] == NONE) {
                to[parent] = 0;
                todo[n_todo++] = parent;
            }
        }
    }
    for (uint32_t s = 0; s < g->n_stacks; s++)
        if (to[s] != NONE)
            to[s] = n++;
    for (uint32_t s = 0; s < g->n_stacks; s++) {
        uint32_t first = NONE;

        if (to[s] == NONE)
            continue;
        for (uint32_t e = g->stacks[s].edges; e != NONE; e = g->edges[e].next) {
            uint32_t parent = g->edges[e].parent;

            edges[n_edges] = (struct edge){ parent == NONE ? NONE : to[parent], first };
            first = n_edges++;
        }
        g->stacks[to[s]] = g->stacks[s]; /* never moves up */
        g->stacks[to[s]].edges = first;
    }
    for (uint32_t i = g->now.begin; i < g->now.end; i++)
        if (g->places[i].stack != NONE)
            g->places[i].stack = to[g->places[i].stack];
    memcpy(g->edges, edges, n_edges * sizeof *edges);
    g->n_stacks = n;
    g->n_edges = n_edges;
out:
    g->collect_at = 2 * (g->n_stacks > g->n_edges ? g->n_stacks : g->n_edges) + 4096;
    free(to);
    free(todo);
    free(edges);
}

/* s, made from what is at the arrays' ends, is the state from now on. */
static void commit(nk_grammar *g, struct state s)
{
    memmove(g->places, g->places + s.begin, (s.end - s.begin) * sizeof *g->places);
    s.end -= s.begin;
    s.begin = 0;
    g->n_places = s.end;
    g->now = s;
    if (g->n_stacks > g->collect_at || g->n_edges > g->collect_at)
        collect(g);
}

int nk_grammar_accept(nk_grammar *g, int32_t id, struct nk_error *err)
{
    struct mark m = mark(g);
    struct state s;

    begin_call(g, err);
    if (id < 0 || id >= g->pieces->n)
        return nk_fail(err, NK_E_INTERNAL, "bad_token", "there is no token %d", id);
    if (g->pieces->is_eog[id])
        return may_end(g) ? 0
                          : nk_fail(err, NK_E_INTERNAL, "bad_token",
                                    "the grammar does not let the text end here");
    s = after_bytes(g, id);
    if (!g->rc && wants_token(g, id) && (is_dead(&s) || !s.partial.n_missing)) {
        /* In the same step as the last character, so that both ways are one state. */
        if (is_dead(&s)) {
            rewind_to(g, m);
            s = empty_state(g, g->now.length + 1);
            begin_step(g);
        } else {
            g->n_todo = 0;
        }
        for (uint32_t i = g->now.begin; i < g->now.end && !g->rc; i++)
            if (place_takes_token(g, g->places[i], id))
                visit(g, g->net.nodes[g->places[i].node].next, g->places[i].stack);
        finish_step(g, &s);
    }
    if (!g->rc && is_dead(&s))
        g->rc = nk_fail(err, NK_E_INTERNAL, "bad_token", "the grammar does not let token %d follow",
                        id);
    if (g->rc) {
        rewind_to(g, m);
        return g->rc;
    }
    commit(g, s);
    return 0;
}

/* ---- life ---- */

int nk_grammar_new(nk_grammar **out, const struct llama_vocab *vocab, const char *text,
                   struct nk_error *err)
{
    nk_grammar *g;
    struct state s;
    int rc;

    *out = NULL;
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE)
        return nk_fail(err, NK_E_INVALID, "bad_grammar",
                       "a grammar needs the text of tokens, and this vocabulary has none");
    g = calloc(1, sizeof *g);
    if (!g)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the grammar");
    rc = nk__gbnf_compile(&g->net, text, (uint32_t)strlen(text), vocab, err);
    if (!rc)
        rc = nk__pieces_acquire(&g->pieces, vocab, err);
    if (rc)
        goto out;
    g->called = calloc(g->net.n_nodes, sizeof *g->called);
    if (!g->called) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for the grammar");
        goto out;
    }
    g->limit = NK_GRAMMAR_WORK_MAX;
    begin_call(g, err);
    g->collect_at = 4096;
    s = empty_state(g, 0);
    begin_step(g);
    /* Length 0 is the beginning's: a return at length 0 from a call at length 0 is one of
     * nothing. */
    visit(g, g->net.rules[g->net.root].start, NONE);
    finish_step(g, &s);
    rc = g->rc;
    if (rc)
        goto out;
    g->now = s;
    *out = g;
    g = NULL;
out:
    nk_grammar_free(g);
    return rc;
}

void nk_grammar_free(nk_grammar *g)
{
    if (!g)
        return;
    nk__gbnf_release(&g->net);
    nk__pieces_release(g->pieces);
    free(g->stacks);
    free(g->edges);
    free(g->places);
    free(g->todo);
    free(g->seen);
    free(g->called);
    free(g->mask);
    free(g->depth);
    free(g);
}
