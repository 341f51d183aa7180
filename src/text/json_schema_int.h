/* From a JSON schema to the rules of a grammar: what the files json_schema*.c have in common. Each
 * calls only those below it.
 *
 *     json_schema.c            schemas: types, lists, alternatives
 *     json_schema_object.c     an object's members, and the names of others
 *     json_schema_string.c     lengths, formats and patterns
 *     json_schema_number.c     numbers in a range, and multiples
 *     json_schema_value.c      whether a value that is there keeps to a schema
 *     json_schema_set.c        schemas that hold of one value at once: $ref, allOf and the like
 *     json_schema_logic.c      not, oneOf, if and the like as anyOf and allOf
 *     json_schema_automaton.c  several conditions on one text at once
 *     json_schema_pattern.c    a regular expression as a grammar's text
 *     json_schema_regex.c      regular expressions, parsed
 *     json_schema_keyword.c    which keywords there are, counts among them, where a $ref leads
 *     json_schema_rule.c       rules, literals and repetitions as GBNF text; refusals
 *
 * Functions without a word about it return 0, INVALID `unsupported_schema` or `too_much_work`,
 * CANCELLED, EXHAUSTED `too_large` (`no_memory`), or NK__SCHEMA_NOTHING. What is done over and over
 * because the schema says so is spent from the conversion's work. What they add ends with a space;
 * after an error, or nothing, it is unfinished and thrown away. */
#ifndef NK_TEXT_JSON_SCHEMA_INT_H
#define NK_TEXT_JSON_SCHEMA_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/json_schema.h"

enum {
    NK__SCHEMA_DEPTH_MAX = 64,   /* schemas within schemas, groups within groups of a pattern */
    NK__SCHEMA_NESTED_MAX = 200, /* the same, and alternatives and values within one another */
    NK__SCHEMA_RULES_MAX = 20000,
    NK__SCHEMA_BODY_MAX = 1 << 20, /* bytes of one rule */
    NK__SCHEMA_REPEAT_MAX = 65536,
    NK__SCHEMA_SET_MAX = 512,       /* schemas that hold of one value at once */
    NK__SCHEMA_PARTS_MAX = 1 << 20, /* in all sets together; 16 bytes each */
};

/* No value keeps to this part of the schema: an alternative that drops out, a property that cannot
 * be there. For the whole schema it is a refusal, with the words of nk__schema_nothing. */
enum { NK__SCHEMA_NOTHING = 1 };

struct nk__schema_rule {
    char text[16]; /* its name */
};

/* Schemas that hold of one value, all of them at once. */
struct nk__part {
    const json_t *schema;
    int parent;  /* the one that names this one; -1: none */
    bool chosen; /* one of its anyOf is in the set as well */
};
struct nk__set {
    struct nk__part *parts;
    size_t n, capacity;
};

/* One call of nk_json_schema_to_grammar. */
struct nk__conversion {
    const json_t *root;
    struct nk_work *work;
    struct nk_buf *out;
    struct nk_error *err;
    int n_rules, depth, nested;
    char path[256];    /* of the present schema, for messages */
    char nothing[400]; /* why nothing was valid, the first time */
    /* Sets that became rules, or are about to. */
    struct nk__target {
        struct nk__set set;
        struct nk__schema_rule rule;
        bool done, nothing, used;
        uint32_t next; /* in the list of its hash: + 1 */
    } * targets;
    size_t n_targets, targets_capacity, n_parts;
    uint32_t buckets[1024]; /* the first target of a hash: + 1 */
    /* What json_schema_logic.c made, so that it is made once for each schema. */
    struct nk__made {
        const json_t *source;
        const char *what;
        json_t *schema;
    } * made;
    size_t n_made, made_capacity;
    /* Each $ref of the schema and what its "#" is, by their addresses, once one was followed. */
    struct nk__ref {
        const json_t *ref, *resource;
    } * refs;
    size_t n_refs, refs_capacity;
    bool has_resources; /* other than the root */
    /* What nk__value_keeps is about to find out, the innermost first. */
    const struct nk__keeping {
        const json_t *schema, *v;
        const struct nk__keeping *outer;
    } * keeping;
};

/* ---- json_schema_rule.c ---- */

/* Steps of work: a key or an element looked at is one or a few. INVALID too_much_work,
 * CANCELLED. */
int nk__schema_spend(struct nk__conversion *c, size_t n_steps);
/* One for each value within v, and for each 16 bytes of its strings. */
int nk__schema_spend_value(struct nk__conversion *c, const json_t *v);

/* Fails: "PLACE of the JSON schema: WHAT: WHY". why may be NULL. */
int nk__schema_refuse(struct nk__conversion *c, const char *what, const char *why);
/* NK__SCHEMA_NOTHING; the words are kept if they are the first ones. */
int nk__schema_nothing(struct nk__conversion *c, const char *what, const char *why);
int nk__schema_no_memory(struct nk__conversion *c);

/* The place goes on with "/KEY" or "/KEY/SUB" until nk__schema_leave, which gets what enter
 * returned. */
size_t nk__schema_enter(struct nk__conversion *c, const char *key, const char *sub);
size_t nk__schema_enter_element(struct nk__conversion *c, const char *key, size_t i);
void nk__schema_leave(struct nk__conversion *c, size_t path_size);

/* A new rule's name, and a line of the grammar for it. An empty body matches the empty text. */
int nk__schema_new_rule(struct nk__conversion *c, struct nk__schema_rule *rule);
int nk__schema_add_rule(struct nk__conversion *c, const struct nk__schema_rule *rule,
                        const struct nk_buf *body);

/* Bytes of text, in quotes. */
int nk__schema_add_literal(struct nk_buf *b, const char *text, size_t size, struct nk_error *err);
/* A value as a literal, as models write JSON: a space after ":" and ",". */
int nk__schema_add_value(struct nk_buf *b, const json_t *v, struct nk_error *err);
/* "{min,max}" after something that was added; max < 0: no end. */
int nk__schema_add_counts(struct nk_buf *b, int64_t min, int64_t max, struct nk_error *err);

/* ---- json_schema_keyword.c ---- */

enum {
    NK__SCHEMA_NULL = 1,
    NK__SCHEMA_BOOLEAN = 2,
    NK__SCHEMA_OBJECT = 4,
    NK__SCHEMA_ARRAY = 8,
    NK__SCHEMA_STRING = 16,
    NK__SCHEMA_INTEGER = 32,
    NK__SCHEMA_FRACTION = 64, /* numbers that are not whole */
    NK__SCHEMA_NUMBER = 96,
    NK__SCHEMA_ANY = 127,
};

/* Refuses keywords of JSON Schema that are not supported, by name. What is no keyword is no matter,
 * as for every validator. */
int nk__schema_check_keywords(struct nk__conversion *c, const json_t *schema);
/* The types that its keywords belong to; 0 when there are only such as belong to none. */
int nk__schema_types(const json_t *schema);
/* The types that its type lets through, with OpenAPI's nullable. */
int nk__schema_get_type(struct nk__conversion *c, const json_t *schema, int *types);
int nk__schema_type_of(const json_t *v);
/* Narrows two counts, at first 0 and -1 (no end), to what the schema says. */
int nk__schema_get_range(struct nk__conversion *c, const json_t *schema, const char *min_key,
                         const char *max_key, int64_t *min, int64_t *max);
/* The list, or NULL where there is none; refuses all but a list, empty ones if some. */
int nk__schema_get_list(struct nk__conversion *c, const json_t *schema, const char *key, bool some,
                        const json_t **list);
/* What a $ref leads to. */
int nk__schema_resolve(struct nk__conversion *c, const json_t *ref, const json_t **target);

/* ---- json_schema_regex.c ---- */

enum {
    NK__CHARS_MAX = 256,
    NK__REGEX_NODES_MAX = 65536,
    NK__REGEX_LOOKS_MAX = 8,
};

struct nk__range {
    uint32_t low, high; /* characters, inclusive */
};

struct nk__chars {
    struct nk__range r[NK__CHARS_MAX];
    int n;
    bool overflow;
};

enum nk__regex_type {
    NK__REGEX_SEQUENCE,     /* of its children: none is the empty text */
    NK__REGEX_ALTERNATIVES, /* its children */
    NK__REGEX_REPEAT,       /* its child, min to max times; max < 0: no end */
    NK__REGEX_SET,          /* one of n ranges from child on */
    NK__REGEX_BEGIN,        /* ^ */
    NK__REGEX_END,          /* $ */
};

struct nk__regex_node {
    enum nk__regex_type type;
    uint32_t child, next, n; /* the first child; the next one of the same parent; 0: none */
    int32_t min, max;
};

struct nk__regex {
    struct nk__regex_node *nodes;
    struct nk__range *ranges;
    uint32_t n_nodes, n_ranges, root;
    size_t nodes_capacity, ranges_capacity;
    struct {
        uint32_t node;
        bool negated;
    } looks[NK__REGEX_LOOKS_MAX]; /* look-ahead from where the text begins */
    int n_looks;
    bool has_inner_anchor; /* ^ or $ elsewhere than at the ends of topmost alternatives */
};

/* On failure re is empty. */
int nk__regex_parse(struct nk__conversion *c, struct nk__regex *re, const char *pattern);
/* Whether all its alternatives begin with ^ and, where asked, end with $. */
bool nk__regex_is_anchored(const struct nk__regex *re, bool both);
void nk__regex_release(struct nk__regex *re);

/* ---- json_schema_pattern.c ---- */

/* Characters as they stand in a JSON string: most as they are, quotes, backslashes and control
 * characters escaped. */
int nk__schema_add_chars(struct nk_buf *b, const struct nk__range *r, size_t n,
                         struct nk_error *err);
/* Text with a match of the regular expression, which has neither look-ahead nor inner anchors. */
int nk__schema_add_pattern(struct nk__conversion *c, struct nk_buf *b, const struct nk__regex *re);

/* ---- json_schema_automaton.c ---- */

enum { NK__LANGUAGE_PARTS_MAX = 32 };

/* What a text must be, all of it at once. */
struct nk__language {
    struct {
        struct nk__regex *regex; /* owned */
        bool negated;            /* it has no match in the text */
    } parts[NK__LANGUAGE_PARTS_MAX];
    size_t n;
    int64_t min, max; /* its characters; max < 0: no end */
    /* Other than 0: a number, which in units of its n_places-th place is a multiple of this. */
    int64_t modulus;
    int n_places;
};
#define NK__LANGUAGE_INIT                                                                          \
    {                                                                                              \
        .max = -1                                                                                  \
    }

int nk__language_add(struct nk__conversion *c, struct nk__language *lang, const char *pattern,
                     bool negated);
void nk__language_release(struct nk__language *lang);
/* Such a text, as in a JSON string, without its quotes. */
int nk__schema_add_language(struct nk__conversion *c, struct nk_buf *b,
                            const struct nk__language *lang);
/* Without modulus. */
int nk__language_takes(struct nk__conversion *c, const struct nk__language *lang, const char *text,
                       size_t size, bool *takes);

/* ---- json_schema_logic.c ---- */

/* Schemas that say the same as a keyword of the given one, or less: as anyOf and allOf. NULL:
 * nothing to say. They live as long as the conversion; the same is returned for the same schema. */
int nk__logic_one_of(struct nk__conversion *c, const json_t *schema, const json_t **made);
int nk__logic_if(struct nk__conversion *c, const json_t *schema, const json_t **made);
int nk__logic_dependent(struct nk__conversion *c, const json_t *schema, const char *key,
                        const json_t **made);
int nk__logic_not(struct nk__conversion *c, const json_t *schema, const json_t **made);
/* Whether {"not": negated} is one of those that are left for the end: not one of these values, not
 * that property, not that pattern. */
bool nk__logic_is_plain_not(const json_t *negated);

/* ---- json_schema_set.c ---- */

/* Adds a schema, what it refers to and what its allOf and the like join to it. parent: -1, or the
 * part that names it. NK__SCHEMA_NOTHING for false, or when it leads back to itself. */
int nk__set_add(struct nk__conversion *c, struct nk__set *set, const json_t *schema, int parent);
int nk__set_copy(struct nk__conversion *c, struct nk__set *to, const struct nk__set *from);
void nk__set_release(struct nk__set *set);
/* The types that all of them let through. */
int nk__set_types(struct nk__conversion *c, const struct nk__set *set, int *types);

/* ---- json_schema_value.c ---- */

bool nk__value_is_same(const json_t *a, const json_t *b);
int nk__value_keeps(struct nk__conversion *c, const json_t *schema, const json_t *v, bool *keeps);
/* To all of them. */
int nk__value_keeps_set(struct nk__conversion *c, const struct nk__set *set, const json_t *v,
                        bool *keeps);

/* ---- json_schema_number.c, json_schema_string.c ---- */

/* whole: integers only. */
int nk__schema_add_number(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                          bool whole);
/* Adds to lang what the set says of a string. */
int nk__schema_get_language(struct nk__conversion *c, const struct nk__set *set,
                            struct nk__language *lang);
/* The text is none of the list's strings. */
int nk__language_exclude(struct nk__conversion *c, struct nk__language *lang, const json_t *values);
/* Such a text in its quotes, in the form that makes the smallest grammar; lang loses limits that
 * change nothing. */
int nk__schema_add_text(struct nk__conversion *c, struct nk_buf *b, struct nk__language *lang);
int nk__schema_add_string(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set);

/* ---- json_schema_object.c ---- */

/* Makes a rule of what holds of a part of the value. */
typedef int nk__schema_convert(struct nk__conversion *c, const struct nk__set *set,
                               struct nk__schema_rule *rule);
int nk__schema_add_object(struct nk__conversion *c, struct nk_buf *b, const struct nk__set *set,
                          nk__schema_convert *convert);

/* Things one after the other, each of which is there or not: an object's members, or an array's
 * items. Rules for each of them and for how many were written are made from the last one
 * backwards, so that what may follow is known. */
struct nk__row {
    int64_t min, max; /* of all things; max < 0: no end */
    size_t n_counted; /* it is told apart whether 0, 1 ... n_counted - 1 or more were written */
    struct nk__schema_rule *rules; /* of n_counted + 1; an empty name: nothing can follow */
};

/* n: things at most. other: the rule of things that may follow, any number of them; NULL: none. */
int nk__row_begin(struct nk__conversion *c, struct nk__row *row, size_t n,
                  const struct nk__schema_rule *other);
/* One more before those that are there. */
int nk__row_add(struct nk__conversion *c, struct nk__row *row, const struct nk__schema_rule *thing,
                bool required);
/* All of them between two brackets. */
int nk__row_end(struct nk__conversion *c, struct nk_buf *b, const struct nk__row *row,
                const char *open, const char *close);
void nk__row_release(struct nk__row *row);

#endif
