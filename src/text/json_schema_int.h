/* From a JSON schema to the rules of a grammar: what the files json_schema*.c have in common. Each
 * calls only those below it.
 *
 *     json_schema.c           schemas: types, values, lists, alternatives, references
 *     json_schema_object.c    an object's members, names of others, objects joined by allOf
 *     json_schema_string.c    lengths and formats
 *     json_schema_pattern.c   regular expressions
 *     json_schema_number.c    numbers in a range
 *     json_schema_keyword.c   which keywords there are, counts among them, where a $ref leads
 *     json_schema_rule.c      rules, literals and repetitions as GBNF text; refusals
 *
 * Functions without a word about it return 0, INVALID `unsupported_schema` or `too_much_work`,
 * CANCELLED, or EXHAUSTED `too_large` (`no_memory`). What is done over and over because the schema
 * says so is spent from the conversion's work. What they add ends with a space; after an error it
 * is unfinished, and the whole grammar is thrown away. */
#ifndef NK_TEXT_JSON_SCHEMA_INT_H
#define NK_TEXT_JSON_SCHEMA_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/json_schema.h"

enum {
    NK__SCHEMA_DEPTH_MAX = 64, /* schemas within schemas, groups within groups of a pattern */
    NK__SCHEMA_RULES_MAX = 10000,
    NK__SCHEMA_BODY_MAX = 1 << 20, /* bytes of one rule */
    NK__SCHEMA_REPEAT_MAX = 65536,
};

struct nk__schema_rule {
    char text[16]; /* its name */
};

/* One call of nk_json_schema_to_grammar. */
struct nk__conversion {
    const json_t *root;
    struct nk_work *work;
    struct nk_buf *out;
    struct nk_error *err;
    int n_rules, depth;
    char path[256]; /* of the present schema, for messages */
    /* What was referred to, and the rule that it became or is about to become. */
    struct nk__target {
        const json_t *schema;
        struct nk__schema_rule rule;
    } * targets;
    size_t n_targets, targets_capacity;
};

/* ---- json_schema_rule.c ---- */

/* Steps of work: a key or an element looked at is one or a few. INVALID too_much_work,
 * CANCELLED. */
int nk__schema_spend(struct nk__conversion *c, size_t n_steps);
/* One for each value within v, and for each 16 bytes of its strings. */
int nk__schema_spend_value(struct nk__conversion *c, const json_t *v);

/* Fails: "PLACE of the JSON schema: WHAT: WHY". why may be NULL. */
int nk__schema_refuse(struct nk__conversion *c, const char *what, const char *why);

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
    NK__SCHEMA_OBJECT = 1,
    NK__SCHEMA_ARRAY = 2,
    NK__SCHEMA_STRING = 4,
    NK__SCHEMA_NUMBER = 8,
};

/* Refuses keywords that are not known, by name. */
int nk__schema_check_keywords(struct nk__conversion *c, const json_t *schema);
/* The types that its keywords belong to; 0 when there are only such as belong to none. */
int nk__schema_types(const json_t *schema);
/* Whether one of these keywords is there; the names end with NULL. */
bool nk__schema_has(const json_t *schema, const char *const *names);
/* Two counts, 0 and -1 (no end) where they are not given. */
int nk__schema_get_range(struct nk__conversion *c, const json_t *schema, const char *min_key,
                         const char *max_key, int64_t *min, int64_t *max);
/* From $ref to $ref, to the schema that is none itself. */
int nk__schema_follow(struct nk__conversion *c, const json_t *schema, const json_t **target);

/* ---- json_schema_number.c, json_schema_pattern.c, json_schema_string.c ---- */

/* type: "integer" or "number". */
int nk__schema_add_number(struct nk__conversion *c, struct nk_buf *b, const json_t *schema,
                          const char *type);
/* A string, with its quotes, that has a match of the regular expression in it. */
int nk__schema_add_pattern(struct nk__conversion *c, struct nk_buf *b, const char *pattern);
int nk__schema_add_string(struct nk__conversion *c, struct nk_buf *b, const json_t *schema);

/* ---- json_schema_object.c ---- */

int nk__schema_check_required(struct nk__conversion *c, const json_t *properties,
                              const json_t *required);
/* A member's name, quotes included, that is none of the properties'. */
int nk__schema_add_other_name(struct nk__conversion *c, struct nk_buf *b, const json_t *properties);
/* merged gets the properties, required and additionalProperties of schema and of all that its allOf
 * joins to it; it has the first two already, empty. */
int nk__schema_join(struct nk__conversion *c, const json_t *schema, json_t *merged);

/* An object's members, written from the last one backwards, so that what may follow is known. */
struct nk__members {
    struct nk__schema_rule first,
        more; /* what may come: when nothing was written yet; after a member */
};

/* other: the rule of members that may follow the named ones; NULL: none. */
int nk__schema_begin_members(struct nk__conversion *c, struct nk__members *m,
                             const struct nk__schema_rule *other);
/* One more before those that are there. value: its rule. */
int nk__schema_add_member(struct nk__conversion *c, struct nk__members *m, const char *name,
                          const struct nk__schema_rule *value, bool required);
/* The whole object. */
int nk__schema_end_members(struct nk__conversion *c, struct nk_buf *b, const struct nk__members *m);

#endif
