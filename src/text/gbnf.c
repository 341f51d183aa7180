/* One pass over the text builds the network, in which a part is its first node and the node whose
 * successor is still open; then successors skip the EPS nodes, and rules that can match nothing are
 * found. Everything is linear in the network's size, and the only recursion is that of groups. */
#include "text/gbnf.h"

#include <stdlib.h>
#include <string.h>

#include <llama.h>

#include "base/array.h"
#include "base/utf8.h"
#include "text/guard.h"

#define ENDLESS UINT32_MAX

/* A piece of network under construction: entered at start; end's successor is not yet known. */
struct part {
    uint32_t start, end;
};

struct parser {
    struct nk_gbnf *g;
    const char *text, *p, *end;
    const struct llama_vocab *vocab;
    struct nk_error *err;
    int rc; /* of the first failure; parsing then unwinds */
    int depth, n_tokens;
    int64_t probes_left;              /* in names; honest ones need two for a name */
    uint32_t *names;                  /* open-addressing hash: rule + 1, or 0 */
    uint32_t n_names, names_capacity; /* a power of two */
};

static int line_of(const struct parser *ps, const char *at)
{
    int line = 1;

    for (const char *p = ps->text; p < at; p++)
        line += *p == '\n';
    return line;
}

#define bad(ps, ...)                                                                               \
    (ps)->rc = (ps)->rc ? (ps)->rc : nk_fail((ps)->err, NK_E_INVALID, "bad_grammar", __VA_ARGS__)

static void no_memory(struct parser *ps)
{
    if (!ps->rc)
        ps->rc = nk_fail(ps->err, NK_E_EXHAUSTED, "no_memory", "no memory for the grammar");
}

/* ---- the network ---- */

/* Room for one more element. The text's size bounds them all, and indices have 32 bits. */
#define grow(ps, array, capacity, n)                                                               \
    (ps)->rc = (ps)->rc ? (ps)->rc                                                                 \
                        : nk_array_grow(array, capacity, (size_t)(n) + 1, UINT32_MAX, (ps)->err)

static uint32_t add_node(struct parser *ps, enum nk_gbnf_type type, uint32_t arg)
{
    struct nk_gbnf *g = ps->g;

    if (ps->rc)
        return 0;
    if (g->n_nodes == NK_GBNF_NODES_MAX) {
        bad(ps, "the grammar is too large: more than %d elements with its repetitions written out",
            NK_GBNF_NODES_MAX);
        return 0;
    }
    grow(ps, g->nodes, g->nodes_capacity, g->n_nodes);
    if (ps->rc)
        return 0;
    g->nodes[g->n_nodes] = (struct nk_gbnf_node){ .type = (uint8_t)type, .arg = arg };
    return g->n_nodes++;
}

static struct part single(struct parser *ps, enum nk_gbnf_type type, uint32_t arg)
{
    uint32_t n = add_node(ps, type, arg);

    return (struct part){ n, n };
}

/* a, then b. */
static struct part then(struct parser *ps, struct part a, struct part b)
{
    if (!ps->rc)
        ps->g->nodes[a.end].next = b.start;
    return (struct part){ a.start, b.end };
}

static uint32_t add_rule(struct parser *ps, uint32_t name_at, uint32_t name_size)
{
    struct nk_gbnf *g = ps->g;

    grow(ps, g->rules, g->rules_capacity, g->n_rules);
    if (ps->rc)
        return 0;
    g->rules[g->n_rules] = (struct nk_gbnf_rule){ .name_at = name_at, .name_size = name_size };
    return g->n_rules++;
}

static void define(struct parser *ps, uint32_t rule, struct part body)
{
    if (ps->rc)
        return;
    ps->g->nodes[body.end].next = 0; /* MATCH */
    ps->g->rules[rule].start = body.start;
    ps->g->rules[rule].defined = true;
}

/* ---- names ---- */

static uint64_t hash(const char *p, size_t size)
{
    uint64_t h = 0xcbf29ce484222325ull; /* FNV-1a */

    for (size_t i = 0; i < size; i++)
        h = (h ^ (uint8_t)p[i]) * 0x100000001b3ull;
    return h ^ h >> 29;
}

/* The rule's place in ps->names, or the free one where it would be. */
static uint32_t *name_slot(struct parser *ps, const char *name, uint32_t size)
{
    uint32_t i = (uint32_t)hash(name, size) & (ps->names_capacity - 1);

    for (; ps->names[i]; i = (i + 1) & (ps->names_capacity - 1)) {
        const struct nk_gbnf_rule *r = &ps->g->rules[ps->names[i] - 1];

        if (--ps->probes_left < 0) {
            bad(ps, "line %d: the names of the rules are made to be looked up slowly",
                line_of(ps, name));
            break;
        }
        if (r->name_size == size && !memcmp(ps->text + r->name_at, name, size))
            break;
    }
    return &ps->names[i];
}

/* Any name may stand for a rule before that is defined. */
static uint32_t rule_named(struct parser *ps, const char *name, uint32_t size)
{
    uint32_t *slot = name_slot(ps, name, size);

    if (!*slot) {
        uint32_t rule = add_rule(ps, (uint32_t)(name - ps->text), size);

        if (ps->rc)
            return 0;
        *slot = rule + 1;
        ps->n_names++;
        return rule;
    }
    return *slot - 1;
}

/* ---- characters ---- */

static bool is_name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
}

static char peek(const struct parser *ps)
{
    return ps->p < ps->end ? *ps->p : '\0';
}

static void skip_space(struct parser *ps, bool newlines)
{
    for (; ps->p < ps->end; ps->p++) {
        if (*ps->p == '#') {
            while (ps->p + 1 < ps->end && ps->p[1] != '\n' && ps->p[1] != '\r')
                ps->p++;
        } else if (*ps->p != ' ' && *ps->p != '\t' &&
                   !(newlines && (*ps->p == '\n' || *ps->p == '\r'))) {
            return;
        }
    }
}

static uint32_t parse_hex(struct parser *ps, int n_digits)
{
    uint32_t value = 0;

    for (int i = 0; i < n_digits; i++, ps->p++) {
        char c = peek(ps);
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;

        if (digit < 0) {
            bad(ps, "line %d: %d hexadecimal digits are wanted after the backslash",
                line_of(ps, ps->p), n_digits);
            return 0;
        }
        value = value << 4 | (uint32_t)digit;
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
        bad(ps, "line %d: U+%04X is no character", line_of(ps, ps->p), value);
    return value;
}

static uint32_t parse_char(struct parser *ps)
{
    uint32_t cp = 0;
    int n;

    if (ps->p >= ps->end) {
        bad(ps, "line %d: the grammar ends within a literal or a class", line_of(ps, ps->p));
        return 0;
    }
    if (*ps->p != '\\') {
        n = nk_utf8_next(ps->p, (size_t)(ps->end - ps->p), &cp);
        if (n <= 0)
            bad(ps, "line %d: the grammar is not UTF-8", line_of(ps, ps->p));
        else
            ps->p += n;
        return cp;
    }
    ps->p++;
    n = peek(ps);
    ps->p++;
    switch (n) {
    case 'x':
        return parse_hex(ps, 2);
    case 'u':
        return parse_hex(ps, 4);
    case 'U':
        return parse_hex(ps, 8);
    case 't':
        return '\t';
    case 'r':
        return '\r';
    case 'n':
        return '\n';
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
        return (uint32_t)n;
    default:
        bad(ps, "line %d: unknown escape; known are \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\x \\u \\U",
            line_of(ps, ps->p - 1));
        return 0;
    }
}

/* ---- classes ---- */

static void add_range(struct parser *ps, uint32_t low, uint32_t high)
{
    struct nk_gbnf *g = ps->g;

    if (low > high)
        return;
    grow(ps, g->ranges, g->ranges_capacity, g->n_ranges);
    if (ps->rc)
        return;
    g->ranges[g->n_ranges++] = (struct nk_gbnf_range){ low, high };
}

static int by_low(const void *a, const void *b)
{
    const struct nk_gbnf_range *x = a, *y = b;

    return x->low < y->low ? -1 : x->low > y->low;
}

/* Sorts and joins the ranges from first on, negates them if asked to, takes the surrogates out. */
static uint32_t finish_class(struct parser *ps, uint32_t first, bool negated)
{
    struct nk_gbnf *g = ps->g;
    uint32_t n = first, count, next = 0;

    if (ps->rc)
        return 0;
    add_range(ps, 0xD800, 0xDFFF); /* in both senses: first added, then left out below */
    if (ps->rc)
        return 0;
    if (!negated)
        g->n_ranges--;
    qsort(g->ranges + first, g->n_ranges - first, sizeof *g->ranges, by_low);
    for (uint32_t i = first; i < g->n_ranges; i++) {
        struct nk_gbnf_range r = g->ranges[i];

        if (n > first && r.low <= g->ranges[n - 1].high + 1) {
            if (r.high > g->ranges[n - 1].high)
                g->ranges[n - 1].high = r.high;
        } else {
            g->ranges[n++] = r;
        }
    }
    g->n_ranges = n;
    if (negated) {
        count = n - first;
        for (uint32_t i = 0; i < count; i++) {
            struct nk_gbnf_range r = g->ranges[first + i]; /* add_range may move the array */

            if (r.low > next)
                add_range(ps, next, r.low - 1);
            next = r.high + 1;
        }
        if (next <= 0x10FFFF)
            add_range(ps, next, 0x10FFFF);
        if (ps->rc)
            return 0;
        memmove(g->ranges + first, g->ranges + first + count,
                (g->n_ranges - first - count) * sizeof *g->ranges);
        g->n_ranges -= count;
    }
    grow(ps, g->classes, g->classes_capacity, g->n_classes);
    if (ps->rc)
        return 0;
    g->classes[g->n_classes] = (struct nk_gbnf_class){ first, g->n_ranges - first };
    return g->n_classes++;
}

/* After "[". */
static struct part parse_class(struct parser *ps)
{
    const char *begin = ps->p;
    uint32_t first = ps->g->n_ranges;
    bool negated = peek(ps) == '^';

    ps->p += negated;
    while (!ps->rc && peek(ps) != ']') {
        uint32_t low = parse_char(ps), high = low;

        if (!ps->rc && peek(ps) == '-' && ps->p + 1 < ps->end && ps->p[1] != ']') {
            ps->p++;
            high = parse_char(ps);
            if (low > high)
                bad(ps, "line %d: the range U+%04X-U+%04X of a class is reversed",
                    line_of(ps, begin), low, high);
        }
        add_range(ps, low, high);
    }
    ps->p++;
    if (!ps->rc && ps->g->n_ranges == first)
        bad(ps, "line %d: a character class is empty", line_of(ps, begin));
    return single(ps, NK_GBNF_CLASS, finish_class(ps, first, negated));
}

bool nk__gbnf_class_meets(const struct nk_gbnf *g, uint32_t class_idx, uint32_t low, uint32_t high)
{
    const struct nk_gbnf_range *r = g->ranges + g->classes[class_idx].first;
    uint32_t begin = 0, end = g->classes[class_idx].n;

    while (begin < end) { /* the first range that does not end before low */
        uint32_t middle = begin + (end - begin) / 2;

        if (r[middle].high < low)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin < g->classes[class_idx].n && r[begin].low <= high;
}

bool nk__gbnf_class_has(const struct nk_gbnf *g, uint32_t class_idx, uint32_t cp)
{
    return nk__gbnf_class_meets(g, class_idx, cp, cp);
}

/* ---- sequences ---- */

/* After the opening quote. */
static struct part parse_literal(struct parser *ps)
{
    struct part all = { 0, 0 };
    bool first = true;

    while (!ps->rc && peek(ps) != '"') {
        struct part c = single(ps, NK_GBNF_CHAR, parse_char(ps));

        all = first ? c : then(ps, all, c);
        first = false;
    }
    ps->p++;
    return first ? single(ps, NK_GBNF_EPS, 0) : all;
}

/* "<text>" or "<[id]>", perhaps after "!". */
static struct part parse_token(struct parser *ps)
{
    const char *begin = ps->p, *close;
    bool negated = *ps->p == '!';
    int32_t ids[2], n = 0, n_vocab = llama_vocab_n_tokens(ps->vocab);
    uint32_t id = 0;

    ps->p += negated;
    close = ps->p < ps->end && *ps->p == '<' ? memchr(ps->p, '>', (size_t)(ps->end - ps->p)) : NULL;
    if (!close) {
        bad(ps, "line %d: a token is written <text> or <[id]>", line_of(ps, begin));
        return (struct part){ 0, 0 };
    }
    if (ps->p[1] == '[') {
        const char *p = ps->p + 2;

        for (; *p >= '0' && *p <= '9' && id < (uint32_t)n_vocab; p++)
            id = id * 10 + (uint32_t)(*p - '0');
        if (p == ps->p + 2 || p[0] != ']' || p + 1 != close || id >= (uint32_t)n_vocab)
            bad(ps, "line %d: <[id]> must hold an id from 0 to %d", line_of(ps, begin),
                n_vocab - 1);
    } else if (close + 1 - ps->p > NK_GBNF_TOKEN_BYTES_MAX) {
        bad(ps, "line %d: a token of %d bytes; none is longer than %d", line_of(ps, begin),
            (int)(close + 1 - ps->p), NK_GBNF_TOKEN_BYTES_MAX);
    } else if (++ps->n_tokens > NK_GBNF_TOKENS_MAX) {
        bad(ps, "line %d: more than %d tokens are named by their text; <[id]> names any number",
            line_of(ps, begin), NK_GBNF_TOKENS_MAX);
    } else {
        ps->rc = nk__guard_tokenize(ps->vocab, ps->p, (int32_t)(close + 1 - ps->p), ids, 2, false,
                                    true, &n, ps->err);
        if (!ps->rc && n != 1)
            bad(ps, "line %d: %.*s is not one token of this vocabulary", line_of(ps, begin),
                (int)(close + 1 - ps->p), ps->p);
        id = (uint32_t)ids[0];
    }
    ps->p = close + 1;
    return single(ps, negated ? NK_GBNF_NOT_TOKEN : NK_GBNF_TOKEN, id);
}

/* body once more each time; a body of several nodes becomes a rule of its own first. */
static struct part copy(struct parser *ps, struct part *body)
{
    const struct nk_gbnf_node *n;

    if (ps->rc)
        return *body;
    if (body->start != body->end || ps->g->nodes[body->start].type == NK_GBNF_EPS) {
        uint32_t rule = add_rule(ps, 0, 0);

        define(ps, rule, *body);
        *body = single(ps, NK_GBNF_CALL, rule);
        return *body;
    }
    n = &ps->g->nodes[body->start];
    return single(ps, (enum nk_gbnf_type)n->type, n->arg);
}

/* body{min,max} */
static struct part repeat(struct parser *ps, struct part body, uint32_t min, uint32_t max)
{
    uint32_t exit = add_node(ps, NK_GBNF_EPS, 0);
    struct part all;

    if (ps->rc || max == 0)
        return (struct part){ exit, exit };
    if (max == ENDLESS && min <= 1) { /* S* and S+: a loop */
        struct part loop = single(ps, NK_GBNF_SPLIT, exit);

        all = then(ps, then(ps, body, loop), body);
        return (struct part){ min ? all.start : loop.start, exit };
    }
    if (max == 1) {
        struct part split;

        if (min == 1)
            return body;
        split = single(ps, NK_GBNF_SPLIT, exit);
        then(ps, then(ps, split, body), (struct part){ exit, exit });
        return (struct part){ split.start, exit };
    }
    all = single(ps, NK_GBNF_EPS, 0);
    for (uint32_t i = 0; i < min && !ps->rc; i++)
        all = then(ps, all, copy(ps, &body));
    if (max == ENDLESS)
        return then(ps, all, repeat(ps, copy(ps, &body), 0, ENDLESS));
    for (uint32_t i = min; i < max && !ps->rc; i++) {
        all = then(ps, all, single(ps, NK_GBNF_SPLIT, exit));
        all = then(ps, all, copy(ps, &body));
    }
    return then(ps, all, (struct part){ exit, exit });
}

static uint32_t parse_count(struct parser *ps)
{
    uint32_t n = 0;

    if (peek(ps) < '0' || peek(ps) > '9')
        bad(ps, "line %d: a number is wanted in {}", line_of(ps, ps->p));
    for (; !ps->rc && peek(ps) >= '0' && peek(ps) <= '9'; ps->p++) {
        n = n * 10 + (uint32_t)(*ps->p - '0');
        if (n > NK_GBNF_REPEAT_MAX)
            bad(ps, "line %d: more than %d repetitions", line_of(ps, ps->p), NK_GBNF_REPEAT_MAX);
    }
    return n;
}

/* "{m}", "{m,}", "{m,n}", after "{". */
static void parse_counts(struct parser *ps, bool nested, uint32_t *min, uint32_t *max)
{
    skip_space(ps, nested);
    *min = *max = parse_count(ps);
    skip_space(ps, nested);
    if (peek(ps) == ',') {
        ps->p++;
        skip_space(ps, nested);
        *max = peek(ps) == '}' ? ENDLESS : parse_count(ps);
        skip_space(ps, nested);
    }
    if (!ps->rc && peek(ps) != '}')
        bad(ps, "line %d: } is missing", line_of(ps, ps->p));
    if (!ps->rc && *min > *max)
        bad(ps, "line %d: {%u,%u} has its smaller number last", line_of(ps, ps->p), *min, *max);
    ps->p++;
}

static struct part parse_alternatives(struct parser *ps, bool nested);

/* One element without what repeats it. False when the sequence ends here. */
static bool parse_item(struct parser *ps, bool nested, struct part *item)
{
    const char *begin = ps->p;

    switch (peek(ps)) {
    case '"':
        ps->p++;
        *item = parse_literal(ps);
        break;
    case '[':
        ps->p++;
        *item = parse_class(ps);
        break;
    case '.': {
        uint32_t first = ps->g->n_ranges;

        ps->p++;
        add_range(ps, 0xD800, 0xDFFF);
        /* All but the surrogates. */
        *item = single(ps, NK_GBNF_CLASS, finish_class(ps, first, true));
        break;
    }
    case '<':
    case '!':
        *item = parse_token(ps);
        break;
    case '(':
        if (++ps->depth > NK_GBNF_DEPTH_MAX) {
            bad(ps, "line %d: groups are nested more than %d deep", line_of(ps, ps->p),
                NK_GBNF_DEPTH_MAX);
            return false;
        }
        ps->p++;
        skip_space(ps, true);
        *item = parse_alternatives(ps, true);
        ps->depth--;
        if (!ps->rc && peek(ps) != ')')
            bad(ps, "line %d: the group that begins here is not closed", line_of(ps, begin));
        ps->p++;
        break;
    default:
        if (!is_name_char(peek(ps)))
            return false;
        while (is_name_char(peek(ps)))
            ps->p++;
        *item = single(ps, NK_GBNF_CALL, rule_named(ps, begin, (uint32_t)(ps->p - begin)));
    }
    if (!ps->rc)
        skip_space(ps, nested);
    return true;
}

static struct part parse_sequence(struct parser *ps, bool nested)
{
    struct part all = single(ps, NK_GBNF_EPS, 0), item;

    while (!ps->rc && parse_item(ps, nested, &item)) {
        while (!ps->rc && peek(ps) && strchr("*+?{", peek(ps))) {
            char op = *ps->p++;
            uint32_t min = op == '+', max = op == '?' ? 1 : ENDLESS;

            if (op == '{')
                parse_counts(ps, nested, &min, &max);
            if (!ps->rc)
                item = repeat(ps, item, min, max);
            skip_space(ps, nested);
        }
        all = then(ps, all, item);
    }
    if (!ps->rc && peek(ps) && strchr("*+?{", peek(ps)))
        bad(ps, "line %d: there is nothing that %c could repeat", line_of(ps, ps->p), peek(ps));
    return all;
}

static struct part parse_alternatives(struct parser *ps, bool nested)
{
    uint32_t exit = add_node(ps, NK_GBNF_EPS, 0), split;
    struct part first = parse_sequence(ps, nested), all = first;

    then(ps, first, (struct part){ exit, exit });
    while (!ps->rc && peek(ps) == '|') {
        struct part more;

        ps->p++;
        skip_space(ps, true);
        more = parse_sequence(ps, nested);
        split = add_node(ps, NK_GBNF_SPLIT, more.start);
        if (ps->rc)
            break;
        ps->g->nodes[split].next = all.start;
        all.start = split;
        then(ps, more, (struct part){ exit, exit });
    }
    all.end = exit;
    return all;
}

static void parse_rule(struct parser *ps)
{
    const char *begin = ps->p;
    uint32_t rule;

    while (is_name_char(peek(ps)))
        ps->p++;
    if (ps->p == begin) {
        bad(ps, "line %d: the name of a rule is wanted (letters, digits, -)", line_of(ps, begin));
        return;
    }
    rule = rule_named(ps, begin, (uint32_t)(ps->p - begin));
    skip_space(ps, false);
    if (ps->end - ps->p < 3 || memcmp(ps->p, "::=", 3) != 0) {
        bad(ps, "line %d: ::= is wanted after the name of a rule", line_of(ps, ps->p));
        return;
    }
    ps->p += 3;
    skip_space(ps, true);
    define(ps, rule, parse_alternatives(ps, false));
    if (!ps->rc && ps->p < ps->end && *ps->p != '\n' && *ps->p != '\r')
        bad(ps, "line %d: \"%c\" is not understood here", line_of(ps, ps->p),
            *ps->p >= ' ' && *ps->p < 127 ? *ps->p : '?');
    if (!ps->rc)
        skip_space(ps, true);
}

/* ---- afterwards ---- */

/* What n leads to when EPS nodes are skipped; the nodes on the way are made to point there. */
static uint32_t skip_eps(struct nk_gbnf *g, uint32_t n)
{
    uint32_t target = n;

    while (g->nodes[target].type == NK_GBNF_EPS)
        target = g->nodes[target].next;
    while (g->nodes[n].type == NK_GBNF_EPS && n != target) {
        uint32_t next = g->nodes[n].next;

        g->nodes[n].next = target;
        n = next;
    }
    return target;
}

static void remove_eps(struct nk_gbnf *g)
{
    for (uint32_t i = 1; i < g->n_nodes; i++) {
        struct nk_gbnf_node *n = &g->nodes[i];

        if (n->type == NK_GBNF_EPS)
            continue;
        n->next = skip_eps(g, n->next);
        if (n->type == NK_GBNF_SPLIT)
            n->arg = skip_eps(g, n->arg);
        n->tail = n->type == NK_GBNF_CALL && n->next == 0;
    }
    for (uint32_t i = 0; i < g->n_rules; i++)
        g->rules[i].start = skip_eps(g, g->rules[i].start);
}

/* Which rules can match nothing: from MATCH backwards over what consumes nothing. The nodes that
 * lead to a node, and the calls and the starts of rules, are lists of indices in arrays. */
static void find_nullable(struct parser *ps)
{
    struct nk_gbnf *g = ps->g;
    size_t n = g->n_nodes, n_rules = g->n_rules;
    /* Per node: its first predecessor, two entries of link, a place in todo, the first rule that
     * starts there, an entry of call_link. Per rule: an entry of start_link, its first call. In the
     * lists 0 ends, and entries are + 1; one of link is 2 * node + (which of its two
     * successors). */
    uint32_t *mem = calloc(n * 6 + n_rules * 2 + 1, sizeof *mem);
    uint32_t *pred = mem, *link = mem + n, *todo = mem + 3 * n, *starts = mem + 4 * n,
             *call_link = mem + 5 * n;
    uint32_t *start_link = mem + 6 * n, *calls = start_link + n_rules;
    bool *marked = calloc(n, sizeof *marked);
    size_t n_todo = 0;

    if (!mem || !marked) {
        no_memory(ps);
        goto out;
    }
    for (uint32_t i = 1; i < n; i++) {
        const struct nk_gbnf_node *node = &g->nodes[i];

        if (node->type != NK_GBNF_SPLIT && node->type != NK_GBNF_CALL)
            continue;
        link[2 * i] = pred[node->next];
        pred[node->next] = 2 * i + 1;
        if (node->type == NK_GBNF_SPLIT) {
            link[2 * i + 1] = pred[node->arg];
            pred[node->arg] = 2 * i + 2;
        } else {
            call_link[i] = calls[node->arg];
            calls[node->arg] = i + 1;
        }
    }
    for (uint32_t r = 0; r < n_rules; r++) {
        start_link[r] = starts[g->rules[r].start];
        starts[g->rules[r].start] = r + 1;
    }
    marked[0] = true;
    todo[n_todo++] = 0;
    while (n_todo) {
        uint32_t at = todo[--n_todo];

        for (uint32_t e = pred[at]; e; e = link[e - 1]) {
            uint32_t from = (e - 1) / 2;

            if (!marked[from] &&
                (g->nodes[from].type == NK_GBNF_SPLIT || g->rules[g->nodes[from].arg].nullable)) {
                marked[from] = true;
                todo[n_todo++] = from;
            }
        }
        for (uint32_t r = starts[at]; r; r = start_link[r - 1]) {
            g->rules[r - 1].nullable = true;
            for (uint32_t c = calls[r - 1]; c; c = call_link[c - 1])
                if (!marked[c - 1] && marked[g->nodes[c - 1].next]) {
                    marked[c - 1] = true;
                    todo[n_todo++] = c - 1;
                }
        }
    }
out:
    free(mem);
    free(marked);
}

static void check_rules(struct parser *ps)
{
    struct nk_gbnf *g = ps->g;
    const uint32_t *root = name_slot(ps, "root", 4);

    for (uint32_t i = 0; !ps->rc && i < g->n_rules; i++)
        if (!g->rules[i].defined)
            bad(ps, "line %d: the rule \"%.*s\" is not defined",
                line_of(ps, ps->text + g->rules[i].name_at),
                g->rules[i].name_size < 64 ? (int)g->rules[i].name_size : 64,
                ps->text + g->rules[i].name_at);
    if (!ps->rc && !*root)
        bad(ps, "there is no rule \"root\"");
    if (!ps->rc)
        g->root = *root - 1;
}

int nk__gbnf_compile(struct nk_gbnf *g, const char *text, uint32_t size,
                     const struct llama_vocab *vocab, struct nk_error *err)
{
    struct parser ps = {
        .g = g, .text = text, .p = text, .end = text + size, .vocab = vocab, .err = err
    };

    *g = (struct nk_gbnf){ 0 };
    ps.probes_left = 8 * (int64_t)size + 1024;
    /* A name has a byte or more and another one after it: there are never more than half as many
     * names. */
    ps.names_capacity = 64;
    while (ps.names_capacity < size)
        ps.names_capacity *= 2;
    ps.names = calloc(ps.names_capacity, sizeof *ps.names);
    if (!ps.names)
        no_memory(&ps);
    add_node(&ps, NK_GBNF_MATCH, 0);
    if (!ps.rc)
        skip_space(&ps, true);
    while (!ps.rc && ps.p < ps.end)
        parse_rule(&ps);
    if (!ps.rc)
        check_rules(&ps);
    if (!ps.rc) {
        remove_eps(g);
        find_nullable(&ps);
    }
    free(ps.names);
    if (ps.rc)
        nk__gbnf_release(g);
    return ps.rc;
}

void nk__gbnf_release(struct nk_gbnf *g)
{
    free(g->nodes);
    free(g->ranges);
    free(g->classes);
    free(g->rules);
    *g = (struct nk_gbnf){ 0 };
}
