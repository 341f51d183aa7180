/* JSON schema to GBNF: what response_format (OpenAI) and format (Ollama) ask for becomes a grammar for nk_sampling.
 *
 * Understood (JSON Schema draft 2020-12, as far as OpenAI's structured outputs and a bit further): true and {}; type, also
 * a list of types; properties, required, additionalProperties (false, true, a schema); items, prefixItems, minItems,
 * maxItems; enum, const; anyOf, oneOf (as anyOf); allOf of objects; $ref to "#" and to anything below it, recursive ones
 * too; minLength, maxLength, pattern (anchored at both ends, see json_schema.c for the subset); integer minimum, maximum,
 * exclusiveMinimum, exclusiveMaximum; format date, time, date-time, uuid. Annotations ($schema, $id at the root, title,
 * description, default, examples, deprecated, readOnly, writeOnly, $comment, $defs, definitions) change nothing.
 *
 * What it cannot express is refused by name and never ignored. Properties come in the schema's order; the text has no
 * needless white space but a space after ":" and ",". additionalProperties defaults to false, as OpenAI's strict mode
 * demands: a model that may invent properties does. */
#ifndef NK_TEXT_JSON_SCHEMA_H
#define NK_TEXT_JSON_SCHEMA_H

#include <jansson.h>

#include "base/buf.h"
#include "base/error.h"

/* Appends the grammar to out; its root rule is "root".
 *   INVALID    unsupported_schema   a keyword, type or value that is not understood, with its place ("#/properties/a")
 *   EXHAUSTED  too_large            the grammar is larger than out may grow, or the schema too deep */
int nk_json_schema_to_grammar(const json_t *schema, struct nk_buf *out, struct nk_error *err);

/* The grammar of any JSON object: response_format {"type": "json_object"}, Ollama's "json". */
const char *nk_json_object_grammar(void);

#endif
