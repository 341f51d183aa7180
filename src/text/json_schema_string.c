#include "text/json_schema_int.h"

#include <string.h>

#define DATE                                                                                       \
    "[0-9]{4} \"-\" ("                                                                             \
    "(\"0\" [13578] | \"1\" [02]) \"-\" (\"0\" [1-9] | [12] [0-9] | \"3\" [01]) | "                \
    "(\"0\" [469] | \"11\") \"-\" (\"0\" [1-9] | [12] [0-9] | \"30\") | "                          \
    "\"02-\" (\"0\" [1-9] | \"1\" [0-9] | \"2\" [0-8])) "
#define TIME                                                                                       \
    "([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9] \":\" [0-5] [0-9] (\".\" [0-9]{1,9})? "          \
    "(\"Z\" | [+-] ([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9]) "
#define OCTET "(\"25\" [0-5] | \"2\" [0-4] [0-9] | \"1\" [0-9] [0-9] | [1-9]? [0-9]) "
#define LABEL "[a-zA-Z0-9] ([a-zA-Z0-9-]{0,30} [a-zA-Z0-9])? "

static const struct {
    const char *name, *grammar;
} formats[] = {
    { "date", DATE },
    { "time", TIME },
    { "date-time", DATE "\"T\" " TIME },
    { "duration", "\"P\" ([0-9]{1,4} \"D\" (\"T\" [0-9]{1,4} [HMS])? | \"T\" [0-9]{1,4} [HMS] | "
                  "[0-9]{1,4} [WMY]) " },
    { "email", "[a-zA-Z0-9_+-]{1,32} (\".\" [a-zA-Z0-9_+-]{1,32}){0,2} \"@\" (" LABEL
               "\".\"){1,3} [a-z]{2,10} " },
    { "hostname", LABEL "(\".\" " LABEL "){0,4} " },
    { "ipv4", OCTET "\".\" " OCTET "\".\" " OCTET "\".\" " OCTET },
    { "ipv6", "hex{1,4} (\":\" hex{1,4}){7} " },
    { "uuid", "hex{8} \"-\" hex{4} \"-\" hex{4} \"-\" hex{4} \"-\" hex{12} " },
};

int nk__schema_add_string(struct nk__conversion *c, struct nk_buf *b, const json_t *schema)
{
    const json_t *pattern = json_object_get(schema, "pattern"),
                 *format = json_object_get(schema, "format");
    bool has_length = json_object_get(schema, "minLength") || json_object_get(schema, "maxLength");
    int64_t min, max;
    int rc;

    if ((pattern != NULL) + (format != NULL) + has_length > 1)
        return nk__schema_refuse(c, pattern ? "pattern" : "format",
                                 "not together with other limits of the same string");
    if (pattern) {
        if (!json_is_string(pattern) ||
            strlen(json_string_value(pattern)) != json_string_length(pattern))
            return nk__schema_refuse(c, "pattern", "text without NUL is wanted");
        return nk__schema_add_pattern(c, b, json_string_value(pattern));
    }
    if (format) {
        for (size_t i = 0; json_is_string(format) && i < sizeof formats / sizeof formats[0]; i++)
            if (!strcmp(formats[i].name, json_string_value(format)))
                return nk_buf_addf(b, c->err, "\"\\\"\" %s\"\\\"\" ", formats[i].grammar);
        return nk__schema_refuse(
            c, "format",
            "known are date, time, date-time, duration, email, hostname, ipv4, ipv6, uuid");
    }
    if (!has_length)
        return nk_buf_adds(b, "string ", c->err);
    rc = nk__schema_get_range(c, schema, "minLength", "maxLength", &min, &max);
    if (!rc)
        rc = nk_buf_adds(b, "\"\\\"\" char", c->err);
    if (!rc)
        rc = nk__schema_add_counts(b, min, max, c->err);
    return rc ? rc : nk_buf_adds(b, "\"\\\"\" ", c->err);
}
