#include "gateway/head.h"

#include <string.h>
#include <strings.h>

#include "base/log.h"

enum { LENGTH_DIGITS_MAX = 18 }; /* a uint64_t holds them all */

static void fail(struct nk_head *h, const char *reason, const char *msg, const char *what,
                 size_t n_what)
{
    char cut[64], quoted[128];

    if (h->failed)
        return;
    h->failed = true;
    n_what = n_what < sizeof cut - 1 ? n_what : sizeof cut - 1;
    if (n_what)
        memcpy(cut, what, n_what);
    cut[n_what] = '\0';
    nk_fail(&h->err, NK_E_INVALID, reason, "%s%s", msg,
            what ? nk_log_quote(quoted, sizeof quoted, cut) : "");
}

/* RFC 9110, 5.6.2 */
static bool is_token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr("!#$%&'*+-.^_`|~0123456789"
                    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
                    s[i]) ||
            !s[i])
            return false;
    return n > 0;
}

static bool has_control(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)s[i] < 32 && s[i] != '\t') || s[i] == 127)
            return true;
    return false;
}

static bool is_name(const char *name, size_t n, const char *wanted)
{
    return n == strlen(wanted) && !strncasecmp(name, wanted, n);
}

/* HOST or HOST:PORT, with an IPv6 address in brackets. */
static bool is_host(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._~:[]%",
                    s[i]) ||
            !s[i])
            return false;
    return n > 0;
}

void nk__head_begin(struct nk_head *h, const char *method, const char *target, const char *version,
                    bool in_place)
{
    *h = (struct nk_head){ .method = method, .target = target, .version = version };
    h->in_place = in_place;
    h->end = version + strlen(version) + 2; /* CR LF */
    if (!is_token(method, strlen(method)))
        fail(h, "bad_header", "the method is not a word: ", method, strlen(method));
    /* One space on each side. How long the target was is not known any more: it was decoded. */
    if (in_place && target != method + strlen(method) + 1)
        fail(h, "bad_header", "the request's first line is not METHOD, PATH and VERSION", NULL, 0);
    /* With another authority than the Host's it would be a second host. */
    if (target[0] != '/' && strcmp(target, "*") != 0)
        fail(h, "bad_header", "the request is for a path, which begins with /, not for ", target,
             strlen(target));
}

static void add_length(struct nk_head *h, const char *value, size_t n)
{
    size_t digits = 0;

    if (h->n_length++)
        fail(h, "bad_length", "there is more than one Content-Length", NULL, 0);
    while (digits < n && value[digits] >= '0' && value[digits] <= '9')
        digits++;
    if (!n || digits < n || n > LENGTH_DIGITS_MAX)
        fail(h, "bad_length", "the Content-Length is not a number of bytes: ", value, n);
}

static void add_encoding(struct nk_head *h, const char *value, size_t n)
{
    if (h->n_encoding++)
        fail(h, "bad_length", "there is more than one Transfer-Encoding", NULL, 0);
    if (n != 7 || strncasecmp(value, "chunked", 7) != 0)
        fail(h, "bad_length", "the only Transfer-Encoding that is read is chunked, not ", value, n);
    /* Who speaks HTTP/1.0 may stand behind a proxy that does not know it. */
    if (!strcmp(h->version, "HTTP/1.0"))
        fail(h, "bad_length", "HTTP/1.0 has no Transfer-Encoding", NULL, 0);
    h->chunked = true;
}

void nk__head_add(struct nk_head *h, const char *name, size_t n_name, const char *value,
                  size_t n_value)
{
    if (!is_token(name, n_name))
        fail(h, "bad_header", "a header's name is not a word: ", name, n_name);
    if (has_control(value, n_value))
        fail(h, "bad_header", "there is a control character in the header ", name, n_name);
    if (h->in_place) {
        const char *colon = name + n_name, *at = colon + 1;

        /* Behind the colon only spaces; anything else there was cut or moved. A folded line is
         * copied elsewhere, so the order of these tests keeps to memory that was read. */
        if (name != h->end || value < at || value > at + n_name + n_value + 65536)
            h->end = NULL;
        while (h->end && at < value)
            if (*at == ' ' || *at == '\t')
                at++;
            else
                h->end = NULL;
        if (!h->end)
            fail(h, "bad_header",
                 "a line is folded, does not end with CR LF, or has a NUL in it; near the header ",
                 name, n_name);
        h->end = value + n_value + 2;
    }
    if (is_name(name, n_name, "Host")) {
        if (h->n_host++)
            fail(h, "bad_host", "there is more than one Host", NULL, 0);
        if (!is_host(value, n_value))
            fail(h, "bad_host", "the Host is not HOST or HOST:PORT: ", value, n_value);
    } else if (is_name(name, n_name, "Content-Length"))
        add_length(h, value, n_value);
    else if (is_name(name, n_name, "Transfer-Encoding"))
        add_encoding(h, value, n_value);
}

int nk__head_end(struct nk_head *h, size_t size, struct nk_error *err)
{
    /* HTTP/1.0 has no Host. */
    if (!h->n_host && strcmp(h->version, "HTTP/1.0") != 0)
        fail(h, "bad_host", "there is no Host", NULL, 0);
    if (h->n_length && h->n_encoding)
        fail(h, "bad_length", "there are a Content-Length and a Transfer-Encoding", NULL, 0);
    if (h->in_place && h->end + 2 != h->method + size)
        fail(h, "bad_header", "the last line is folded, or does not end with CR LF", NULL, 0);
    if (h->failed && err)
        *err = h->err;
    return h->failed ? h->err.code : 0;
}
