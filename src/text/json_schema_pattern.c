/* A regular expression's tree as a grammar's text, part for part. Where ^ or $ is missing, anything
 * may come before or after, as JSON Schema has it. */
#include "text/json_schema_int.h"

#include <string.h>

static bool has(const struct nk__range *r, size_t n, uint32_t cp)
{
    for (size_t i = 0; i < n; i++)
        if (cp >= r[i].low && cp <= r[i].high)
            return true;
    return false;
}

/* A character of a class: as short as it can be, as grammars have a largest size. */
static int add_char(struct nk_buf *b, uint32_t cp, struct nk_error *err)
{
    if (cp < 0x7F)
        return nk_buf_addf(b, err, strchr("[]\\^-\"", (int)cp) ? "\\x%02X" : "%c", (int)cp);
    return nk_buf_addf(b, err, cp > 0xFFFF ? "\\U%08X" : "\\u%04X", cp);
}

/* Those that stand in a string as they are, as a class. *any: there are such. */
static int add_plain(struct nk_buf *b, const struct nk__range *r, size_t n, bool *any,
                     struct nk_error *err)
{
    int rc = 0;

    *any = false;
    for (size_t i = 0; !rc && i < n; i++) { /* without what must be escaped, without surrogates */
        static const uint32_t keep[][2] = {
            { 0x20, 0x21 }, { 0x23, 0x5B }, { 0x5D, 0xD7FF }, { 0xE000, 0x10FFFF }
        };

        for (int k = 0; !rc && k < 4; k++) {
            uint32_t low = r[i].low > keep[k][0] ? r[i].low : keep[k][0];
            uint32_t high = r[i].high < keep[k][1] ? r[i].high : keep[k][1];

            if (low > high)
                continue;
            if (!*any)
                rc = nk_buf_adds(b, "[", err);
            *any = true;
            if (!rc)
                rc = add_char(b, low, err);
            if (!rc && high > low + 1)
                rc = nk_buf_adds(b, "-", err);
            if (!rc && high > low)
                rc = add_char(b, high, err);
        }
    }
    return rc || !*any ? rc : nk_buf_adds(b, "]", err);
}

int nk__schema_add_chars(struct nk_buf *b, const struct nk__range *r, size_t n,
                         struct nk_error *err)
{
    struct nk_buf plain = NK_BUF_INIT(1 << 16), escaped = NK_BUF_INIT(1 << 16);
    int n_escaped = 0, rc;
    bool any;

    rc = add_plain(&plain, r, n, &any, err);
    for (uint32_t cp = 0; !rc && cp < 0x80; cp++) {
        static const char shorts[] = "\bb\ff\nn\rr\tt\"\"\\\\";
        const char *pair = shorts;

        if ((cp >= 0x20 && cp != '"' && cp != '\\') || !has(r, n, cp))
            continue;
        while (*pair && (uint32_t)*pair != cp)
            pair += 2;
        if (n_escaped++)
            rc = nk_buf_adds(&escaped, "|", err);
        if (!rc && cp && *pair)
            rc = nk_buf_addf(&escaped, err,
                             pair[1] == '"' || pair[1] == '\\' ? "\"\\\\\\%c\"" : "\"\\\\%c\"",
                             pair[1]);
        else if (!rc)
            rc = nk_buf_addf(&escaped, err, "\"\\\\u%04x\"", cp);
    }
    if (!rc && !any && !n_escaped)
        rc = nk_fail(err, NK_E_INVALID, "unsupported_schema",
                     "a class of a pattern has nothing but halves of characters");
    if (!rc && !n_escaped)
        rc = nk_buf_addf(b, err, "%s ", nk_buf_str(&plain));
    else if (!rc && !any && n_escaped == 1)
        rc = nk_buf_addf(b, err, "%s ", nk_buf_str(&escaped));
    else if (!rc && n_escaped == 34) /* all that are escaped: the short name for them */
        rc = nk_buf_addf(b, err, "(%s%sescaped) ", nk_buf_str(&plain), any ? "|" : "");
    else if (!rc)
        rc = nk_buf_addf(b, err, "(%s%s%s) ", nk_buf_str(&plain), any ? "|" : "",
                         nk_buf_str(&escaped));
    nk_buf_release(&plain);
    nk_buf_release(&escaped);
    return rc;
}

static int add(struct nk__conversion *c, struct nk_buf *b, const struct nk__regex *re, uint32_t at)
{
    const struct nk__regex_node *n = &re->nodes[at];
    int rc = nk__schema_spend(c, 2);

    switch (n->type) {
    case NK__REGEX_SET:
        return rc ? rc : nk__schema_add_chars(b, re->ranges + n->child, n->n, c->err);
    case NK__REGEX_REPEAT:
        rc = rc ? rc : add(c, b, re, n->child);
        return rc ? rc : nk__schema_add_counts(b, n->min, n->max, c->err);
    case NK__REGEX_SEQUENCE:
        if (!rc && !n->child)
            rc = nk_buf_adds(b, "\"\" ", c->err);
        for (uint32_t i = n->child; !rc && i; i = re->nodes[i].next)
            rc = add(c, b, re, i);
        return rc;
    case NK__REGEX_ALTERNATIVES:
        rc = rc ? rc : nk_buf_adds(b, "(", c->err);
        for (uint32_t i = n->child; !rc && i; i = re->nodes[i].next) {
            if (i != n->child)
                rc = nk_buf_adds(b, "| ", c->err);
            if (!rc)
                rc = add(c, b, re, i);
        }
        return rc ? rc : nk_buf_adds(b, ") ", c->err);
    case NK__REGEX_BEGIN:
    case NK__REGEX_END:
        break;
    }
    return rc; /* the ends are the caller's */
}

int nk__schema_add_pattern(struct nk__conversion *c, struct nk_buf *b, const struct nk__regex *re)
{
    int rc = nk_buf_adds(b, "(", c->err);

    NK_ASSERT(!re->has_inner_anchor && !re->n_looks);
    for (uint32_t i = re->nodes[re->root].child; !rc && i; i = re->nodes[i].next) {
        bool begin = false, end = false;

        for (uint32_t k = re->nodes[i].child; k; k = re->nodes[k].next) {
            begin |= re->nodes[k].type == NK__REGEX_BEGIN;
            end |= re->nodes[k].type == NK__REGEX_END;
        }
        if (i != re->nodes[re->root].child)
            rc = nk_buf_adds(b, "| ", c->err);
        if (!rc && !begin)
            rc = nk_buf_adds(b, "char* ", c->err);
        if (!rc)
            rc = add(c, b, re, i);
        if (!rc && !end)
            rc = nk_buf_adds(b, "char* ", c->err);
    }
    return rc ? rc : nk_buf_adds(b, ") ", c->err);
}
