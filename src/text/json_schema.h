/* JSON schema to GBNF: what response_format (OpenAI) and format (Ollama) ask for becomes a grammar
 * for nk_sampling.
 *
 * Understood, of JSON Schema 2020-12: true and {}; type, also a list of types; properties,
 * required, additionalProperties; items, prefixItems, minItems, maxItems; enum, const; anyOf, and
 * oneOf as if it were anyOf; allOf of objects; $ref to "#" and to anything below it, recursive ones
 * too; minLength, maxLength, pattern (json_schema_pattern.c says which regular expressions);
 * minimum, maximum, exclusiveMinimum, exclusiveMaximum when they are whole numbers; format date,
 * time, date-time, duration, email, hostname, ipv4, ipv6, uuid. Annotations ($schema, $id, title,
 * description, default, examples and the like) change nothing. What it cannot express is refused by
 * name and never ignored.
 *
 * Properties come in the schema's order. Where properties are listed and additionalProperties is
 * not, there are no others: a model that may invent some does. Between tokens of JSON stands
 * nothing, a space, or a newline and spaces. */
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

#endif
