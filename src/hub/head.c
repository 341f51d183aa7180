/* The head of an answer, line by line. It comes from a server that may be anybody: a field that is
 * not exactly of its form counts as not there. */
#include "hub/hub_int.h"

#include <string.h>
#include <strings.h>

void nk__hub_head_init(struct nk__hub_head *h)
{
    *h = (struct nk__hub_head){ .length = -1,
                                .range_begin = -1,
                                .range_end = -1,
                                .range_total = -1,
                                .linked_size = -1,
                                .retry_after_s = -1 };
}

/* Digits at *p, and nothing else of what strtoll takes; *p behind them. -1: none, or too many. */
static int64_t number(const char **p, const char *end)
{
    int64_t value = 0;
    int n = 0;

    for (; *p < end && **p >= '0' && **p <= '9'; (*p)++) {
        if (++n > 18) /* 10^18 - 1 fits, and is more than any disk */
            return -1;
        value = 10 * value + (**p - '0');
    }
    return n ? value : -1;
}

static int64_t whole_number(const char *p, const char *end)
{
    int64_t value = number(&p, end);

    return p == end ? value : -1;
}

/* "bytes 0-99/1234", "bytes * / 1234" without the spaces. */
static void add_range(struct nk__hub_head *h, const char *p, const char *end)
{
    int64_t begin = -1, last = -1, total;

    if (end - p < 6 || strncasecmp(p, "bytes ", 6) != 0)
        return;
    p += 6;
    if (p < end && *p == '*') {
        p++;
    } else {
        begin = number(&p, end);
        if (begin < 0 || p == end || *p++ != '-')
            return;
        last = number(&p, end);
        if (last < begin)
            return;
    }
    if (p == end || *p++ != '/')
        return;
    total = whole_number(p, end);
    if (total < 0 || last >= total)
        return;
    h->range_begin = begin;
    h->range_end = last;
    h->range_total = total;
}

/* A tag that may be sent back as it is: "..." or W/"...", of visible characters. */
static void add_etag(char out[256], const char *p, const char *end)
{
    const char *q = p;

    out[0] = '\0';
    if (end - p >= 256)
        return;
    if (end - q > 2 && q[0] == 'W' && q[1] == '/')
        q += 2;
    if (end - q < 2 || *q != '"' || end[-1] != '"')
        return;
    for (q++; q < end - 1; q++)
        if (*q < 0x21 || *q > 0x7e || *q == '"')
            return;
    memcpy(out, p, (size_t)(end - p));
    out[end - p] = '\0';
}

static void add_commit(char out[41], const char *p, const char *end)
{
    out[0] = '\0';
    if (end - p != 40)
        return;
    for (int i = 0; i < 40; i++)
        if (!((p[i] >= '0' && p[i] <= '9') || (p[i] >= 'a' && p[i] <= 'f')))
            return;
    memcpy(out, p, 40);
    out[40] = '\0';
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* "HTTP/1.1 200 OK", "HTTP/2 200" */
static bool add_status(struct nk__hub_head *h, const char *line, const char *end)
{
    const char *p = line;
    int64_t status;

    if (end - line < 5 || memcmp(line, "HTTP/", 5) != 0)
        return false;
    nk__hub_head_init(h);
    p = memchr(line, ' ', (size_t)(end - line));
    if (!p)
        return true;
    p++;
    status = number(&p, end);
    if (status >= 100 && status <= 999)
        h->status = (int)status;
    return true;
}

void nk__hub_head_add(struct nk__hub_head *h, const char *line, size_t size)
{
    const char *end = line + size, *colon, *p;
    size_t n;

    while (end > line && is_space(end[-1]))
        end--;
    if (add_status(h, line, end))
        return;
    colon = memchr(line, ':', (size_t)(end - line));
    if (!colon)
        return;
    n = (size_t)(colon - line);
    for (p = colon + 1; p < end && is_space(*p); p++)
        ;
#define IS(name) (n == sizeof name - 1 && !strncasecmp(line, name, n))
    if (IS("content-length"))
        h->length = whole_number(p, end);
    else if (IS("content-range"))
        add_range(h, p, end);
    else if (IS("etag"))
        add_etag(h->etag, p, end);
    else if (IS("x-repo-commit"))
        add_commit(h->commit, p, end);
    else if (IS("x-linked-etag"))
        add_etag(h->linked_etag, p, end);
    else if (IS("x-linked-size"))
        h->linked_size = whole_number(p, end);
    else if (IS("retry-after"))
        h->retry_after_s = whole_number(p, end);
    else if (IS("content-type"))
        h->html = end - p >= 9 && !strncasecmp(p, "text/html", 9);
#undef IS
}

bool nk__hub_etag_is_strong(const char *etag)
{
    return etag[0] == '"';
}

void nk__hub_etag_sha256(char out[NK_SHA256_HEX], const char *linked_etag)
{
    const char *p = strchr(linked_etag, '"');

    out[0] = '\0';
    if (!p || strlen(p) != 66)
        return;
    p++;
    for (int i = 0; i < 64; i++) {
        char c = p[i];

        if (c >= 'A' && c <= 'F')
            c += 'a' - 'A';
        if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) {
            out[0] = '\0';
            return;
        }
        out[i] = c;
    }
    out[64] = '\0';
}
