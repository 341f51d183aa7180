/* JSON schema to GBNF: what response_format (OpenAI) and format (Ollama) ask for becomes a grammar
 * for nk_sampling. What the grammar lets through is always valid.
 *
 * Understood, of JSON Schema 2020-12 and of what older drafts and OpenAPI write instead: true and
 * false; type, also a list of types, and nullable; enum, const; properties, required,
 * additionalProperties, patternProperties, propertyNames, minProperties, maxProperties,
 * unevaluatedProperties as true or false; items, prefixItems (and a list as items, with
 * additionalItems), minItems, maxItems; uniqueItems where the items are of enum, const, boolean or
 * null, or one at most; minLength, maxLength, pattern (json_schema_regex.c says which regular
 * expressions), format, contentEncoding base64, and any of them together; minimum, maximum,
 * exclusiveMinimum, exclusiveMaximum, multipleOf; anyOf, oneOf, allOf, not, if, then, else,
 * dependentRequired, dependentSchemas and dependencies beside other keywords and within one
 * another; $ref to "#", to anything below it, and to an $anchor or $id there, recursive ones too.
 *
 * contains and what else cannot be expressed is refused by name. Words that are no keywords,
 * formats that the standard does not know and annotations (title, default, examples) say nothing of
 * a value and change nothing.
 *
 * Less than is valid is let through where a grammar cannot say it all. Properties come in the
 * schema's order. Where properties are listed and additionalProperties is not, there are no others:
 * a model that may invent some does. A part of oneOf leaves out what would make another part hold.
 * Items that must differ come in their enum's order. Between tokens of JSON stands nothing, a
 * space, or a newline and spaces. */
#ifndef NK_TEXT_JSON_SCHEMA_H
#define NK_TEXT_JSON_SCHEMA_H

#include <jansson.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/work.h"

/* Appends the grammar to out; its root rule is "root". work: what it may cost; NULL: anything.
 *   INVALID    unsupported_schema   a keyword, type or value that is not understood, with its
 *                                   place ("#/properties/a")
 *   INVALID    too_much_work        nk_work_spend's: allOf and $ref can ask for work that doubles
 *                                   with each line
 *   CANCELLED  cancelled
 *   EXHAUSTED  too_large            the grammar is larger than out may grow, or the schema too deep
 *   EXHAUSTED  no_memory
 * On failure out is as it was. */
int nk_json_schema_to_grammar(const json_t *schema, struct nk_work *work, struct nk_buf *out,
                              struct nk_error *err);

/* The grammar of any JSON object: response_format {"type": "json_object"}, Ollama's "json". */
const char *nk_json_object_grammar(void);
/* The rules that both of the above have in them, as this text: several grammars in one need them
 * only once. */
const char *nk_json_base_rules(void);

#endif
