/* What a source is: an address, where its file lies, and who may see the hub's token. The text
 * comes from the command line; addresses to be redirected to come from a server. */
#include "hub/hub.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <curl/curl.h>

#include "base/visible.h"
#include "hub/hub_int.h"

static const char hf[] = "hf:";
static const char gguf[] = ".gguf";

bool nk_hub_is_source(const char *text)
{
    return !strncasecmp(text, "https://", 8) || !strncasecmp(text, "http://", 7) ||
           !strncmp(text, hf, sizeof hf - 1);
}

/* ---- addresses ---- */

struct parts {
    char *scheme, *user, *password, *host, *port, *path, *query;
};

static void parts_free(struct parts *p)
{
    curl_free(p->scheme);
    curl_free(p->user);
    curl_free(p->password);
    curl_free(p->host);
    curl_free(p->port);
    curl_free(p->path);
    curl_free(p->query);
    *p = (struct parts){ 0 };
}

/* The part, or NULL when it has none. */
static char *part(CURLU *u, CURLUPart what, unsigned flags)
{
    char *out = NULL;

    return curl_url_get(u, what, &out, flags) ? NULL : out;
}

/* False: no URL (or no memory). */
static bool parts_of(struct parts *p, const char *url)
{
    CURLU *u = curl_url();
    bool ok = u && !curl_url_set(u, CURLUPART_URL, url, 0);

    *p = (struct parts){ 0 };
    if (ok) {
        p->scheme = part(u, CURLUPART_SCHEME, 0);
        p->user = part(u, CURLUPART_USER, 0);
        p->password = part(u, CURLUPART_PASSWORD, 0);
        p->host = part(u, CURLUPART_HOST, 0);
        p->port = part(u, CURLUPART_PORT, CURLU_DEFAULT_PORT);
        p->path = part(u, CURLUPART_PATH, 0);
        p->query = part(u, CURLUPART_QUERY, 0);
        ok = p->scheme && p->host && p->port && p->path;
    }
    curl_url_cleanup(u);
    if (!ok)
        parts_free(p);
    return ok;
}

static bool is_loopback(const char *host)
{
    unsigned a, b, c, d;
    int n = 0;

    return !strcasecmp(host, "localhost") || !strcmp(host, "[::1]") ||
           (sscanf(host, "%3u.%3u.%3u.%3u%n", &a, &b, &c, &d, &n) == 4 && !host[n] && a == 127);
}

static bool is_https(const struct parts *p)
{
    return !strcasecmp(p->scheme, "https");
}

static bool is_local_http(const struct parts *p)
{
    return !strcasecmp(p->scheme, "http") && is_loopback(p->host);
}

bool nk__hub_same_origin(const char *a, const char *b)
{
    struct parts x, y;
    bool ok = false;

    if (parts_of(&x, a)) {
        if (parts_of(&y, b)) {
            ok = !strcasecmp(x.scheme, y.scheme) && !strcasecmp(x.host, y.host) &&
                 !strcmp(x.port, y.port);
            parts_free(&y);
        }
        parts_free(&x);
    }
    return ok;
}

bool nk__hub_may_redirect(const char *from, const char *to)
{
    struct parts x, y;
    bool ok = false;

    if (strlen(to) >= NK__HUB_URL_MAX || !parts_of(&y, to))
        return false;
    if (parts_of(&x, from)) {
        ok = !y.user && !y.password && (is_https(&y) || (is_local_http(&x) && is_local_http(&y)));
        parts_free(&x);
    }
    parts_free(&y);
    return ok;
}

const char *nk__hub_shown(char *out, size_t size, const char *url)
{
    size_t n = strcspn(url, "?#"), cut;
    const char *rest = url[n] ? "?..." : "", *slashes = strstr(url, "://"), *at, *path;
    char text[1024];
    size_t skip_from = 0, skip_to = 0;

    /* What is before the @ of a host is a name and a password. */
    if (slashes && (size_t)(slashes - url) < n) {
        const char *host = slashes + 3 + strspn(slashes + 3, "/");

        path = host + strcspn(host, "/?#");
        at = memrchr(host, '@', (size_t)(path - host));
        if (at) {
            skip_from = (size_t)(host - url);
            skip_to = (size_t)(at + 1 - url);
        }
    }
    cut = size > 64 ? size - 32 : size;
    if (cut > sizeof text - 8)
        cut = sizeof text - 8;
    if (n - (skip_to - skip_from) > cut) {
        n = cut + (skip_to - skip_from);
        rest = "...";
    }
    snprintf(text, sizeof text, "%.*s%.*s%s", (int)skip_from, url,
             n > skip_to ? (int)(n - skip_to) : 0, url + skip_to, rest);
    return nk_visible_line(out, size, text);
}

/* ---- sources ---- */

static int bad(struct nk_error *err, const char *shown, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int bad(struct nk_error *err, const char *shown, const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return nk_fail(err, NK_E_INVALID, "bad_source", "%s: %s", shown, text);
}

static bool is_hex(char c)
{
    return isxdigit((unsigned char)c) != 0;
}

/* "...-00002-of-00003.gguf": where "00002" begins; NULL for another name. */
static const char *shard_digits(const char *name, int *shard, int *n)
{
    static const size_t length = sizeof "-00001-of-00003.gguf" - 1;
    size_t size = strlen(name);
    const char *s = name + size - length;

    if (size <= length || s[0] != '-' || strncmp(s + 6, "-of-", 4) != 0 ||
        strcmp(s + 15, gguf) != 0)
        return NULL;
    for (int i = 0; i < 5; i++)
        if (!isdigit((unsigned char)s[1 + i]) || !isdigit((unsigned char)s[10 + i]))
            return NULL;
    *shard = atoi(s + 1);
    *n = atoi(s + 10);
    return s + 1;
}

/* The file's name, of a path's last part: percent signs undone, other characters than those of
 * usual names replaced. */
static void name_of(char *out, size_t size, const char *last)
{
    size_t n = 0;

    for (const char *p = last; *p && n + 1 < size; p++) {
        char c = *p;

        if (c == '%' && is_hex(p[1]) && is_hex(p[2])) {
            char two[3] = { p[1], p[2], '\0' };

            c = (char)strtoul(two, NULL, 16);
            p += 2;
        }
        out[n++] =
            isascii((unsigned char)c) && (isalnum((unsigned char)c) || strchr("._+-", c)) && c
                ? c
                : '_';
    }
    out[n] = '\0';
    if (out[0] == '.') /* hidden, or the folder itself */
        out[0] = '_';
}

/* url is good: the rest follows from it. */
static int complete(struct nk__hub_source *out, const struct parts *p, struct nk_error *err)
{
    const char *last = strrchr(p->path, '/');
    char hex[NK_SHA256_HEX];
    nk_sha256 *h;
    size_t n;

    last = last ? last + 1 : p->path;
    if (!*last)
        return bad(err, out->shown, "names a folder; the address of a .gguf file is needed");
    if (strlen(last) > NK__HUB_NAME_MAX)
        return bad(err, out->shown, "the file's name has %zu characters; at most %d are possible",
                   strlen(last), NK__HUB_NAME_MAX);
    name_of(out->name, sizeof out->name, last);
    n = (size_t)snprintf(out->host, sizeof out->host, "%s%s%s", p->host,
                         strcmp(p->port, is_https(p) ? "443" : "80") ? "_" : "",
                         strcmp(p->port, is_https(p) ? "443" : "80") ? p->port : "");
    if (n >= sizeof out->host)
        return bad(err, out->shown, "the host's name is too long");
    for (char *c = out->host; *c; c++)
        *c = isalnum((unsigned char)*c) || strchr("._-", *c) ? (char)tolower((unsigned char)*c)
                                                             : '_';
    if (out->host[0] == '.')
        out->host[0] = '_';
    h = nk_sha256_new();
    if (!h)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    nk_sha256_add(h, out->url, strlen(out->url));
    nk_sha256_finish(h, hex);
    memcpy(out->key, hex, 16);
    out->key[16] = '\0';
    return 0;
}

/* Puts another shard's number into url; whichever it has. */
static void set_shard(char *url, int shard)
{
    char digits[8];
    size_t n = strcspn(url, "?");
    char *s = url + n - (sizeof "00001-of-00003.gguf" - 1);

    snprintf(digits, sizeof digits, "%05d", shard % 100000);
    memcpy(s, digits, 5);
}

static int from_url(struct nk__hub_source *out, const char *text, struct nk_error *err)
{
    struct parts p = { 0 };
    const char *last;
    int rc = 0, n;

    nk__hub_shown(out->shown, sizeof out->shown, text);
    if (strlen(text) >= sizeof out->url)
        return bad(err, out->shown, "an address of %zu characters; at most %d are possible",
                   strlen(text), NK__HUB_URL_MAX - 1);
    for (const char *c = text; *c; c++)
        if (*c <= ' ' || *c > '~')
            return bad(err, out->shown,
                       "an address has neither spaces nor other characters than ASCII's; write "
                       "them as %%20 and the like");
    if (!parts_of(&p, text)) /* who knows where a password is in it */
        return bad(err, strchr(text, '@') ? "the source" : out->shown,
                   "this is no address; https://HOST/PATH/FILE.gguf is one");
    if (p.user || p.password)
        rc = bad(err, out->shown,
                 "an address with a user or a password in it is not taken, since others on this "
                 "machine can read it");
    else if (!is_https(&p) && !is_local_http(&p))
        rc = bad(err, out->shown,
                 "http:// can be read and changed by everybody on the way; https:// is needed "
                 "(http:// only for 127.0.0.1, ::1 and localhost)");
    else {
        snprintf(out->url, sizeof out->url, "%.*s", (int)strcspn(text, "#"), text);
        last = strrchr(p.path, '/');
        out->shard = out->n_shards = 1;
        if (last && shard_digits(last + 1, &out->shard, &n)) {
            if (n < 1 || n > NK__HUB_SHARDS_MAX || out->shard < 1 || out->shard > n)
                rc = bad(err, out->shown, "shard %d of %d; at most %d are possible", out->shard, n,
                         NK__HUB_SHARDS_MAX);
            out->n_shards = n;
            out->shard = 1;
        }
        /* Of shards the first is the key: so they lie in one folder, where they are looked for. */
        if (!rc && out->n_shards > 1) {
            set_shard(out->url, 1);
            parts_free(&p);
            if (!parts_of(&p, out->url))
                rc = bad(err, out->shown, "this is no address");
        }
        if (!rc)
            rc = complete(out, &p, err);
        nk__hub_shown(out->shown, sizeof out->shown, out->url);
    }
    parts_free(&p);
    return rc;
}

/* Appends text to url, all but the usual characters as %XX; '/' stays where it is kept. */
static bool add_escaped(char *url, size_t size, const char *text, size_t n, bool keep_slash)
{
    size_t at = strlen(url);

    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        bool plain =
            isascii(c) && (isalnum(c) || (c && strchr("._~+-", c)) || (c == '/' && keep_slash));

        if (at + 4 > size)
            return false;
        at += (size_t)snprintf(url + at, size - at, plain ? "%c" : "%%%02X", c);
    }
    return true;
}

static bool has_control(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            return true;
    return false;
}

/* A part of ORG/REPO/FILE: not empty, no "." or "..". */
static bool is_step(const char *s, size_t n)
{
    return n && !(n == 1 && s[0] == '.') && !(n == 2 && s[0] == '.' && s[1] == '.');
}

static int from_hub(struct nk__hub_source *out, const char *text, const char *endpoint,
                    struct nk_error *err)
{
    const char *form = "hf:ORG/REPO/FILE.gguf or hf:ORG/REPO/FILE.gguf@REVISION is needed";
    const char *path = text + sizeof hf - 1, *end, *revision = "main", *at = strrchr(path, '@');
    const char *slash, *file = NULL;
    char url[NK__HUB_URL_MAX];
    size_t revision_at = 0;
    int n = 0, rc;

    nk_visible_line(out->shown, sizeof out->shown, text);
    end = at ? at : path + strlen(path);
    if (at)
        revision = at + 1;
    if (has_control(text))
        return bad(err, out->shown, "there are control characters in it; %s", form);
    for (const char *p = path; p <= end; p = slash + 1, n++) {
        slash = memchr(p, '/', (size_t)(end - p));
        if (!slash)
            slash = end;
        if (n == 2)
            file = p;
        if (!is_step(p, (size_t)(slash - p)))
            return bad(err, out->shown, "a part of it is empty, '.' or '..'; %s", form);
    }
    if (n < 3)
        return bad(err, out->shown, "%s", form);
    if (end - path < (long)sizeof gguf ||
        strncmp(end - (sizeof gguf - 1), gguf, sizeof gguf - 1) != 0)
        return bad(err, out->shown, "the file's name does not end in .gguf; %s", form);
    if (!*revision || strlen(revision) > 200 || !strcmp(revision, ".") || !strcmp(revision, ".."))
        return bad(err, out->shown, "'%.40s' is no revision; %s", revision, form);
    snprintf(url, sizeof url, "%s/", endpoint);
    if (!add_escaped(url, sizeof url - 16, path, (size_t)(file - path), true) ||
        !strcat(url, "resolve/") || !(revision_at = strlen(url)) ||
        !add_escaped(url, sizeof url - 16, revision, strlen(revision), false) ||
        !strcat(url, "/") || !add_escaped(url, sizeof url - 1, file, (size_t)(end - file), true))
        return bad(err, out->shown, "this is too long");
    rc = from_url(out, url, err);
    out->hub = true;
    out->revision_at = revision_at;
    return rc;
}

int nk__hub_source_parse(struct nk__hub_source *out, const char *text, const char *endpoint,
                         struct nk_error *err)
{
    int rc;

    *out = (struct nk__hub_source){ 0 };
    if (!strncmp(text, hf, sizeof hf - 1))
        return from_hub(out, text, endpoint, err);
    rc = from_url(out, text, err);
    if (!rc)
        out->hub = nk__hub_same_origin(out->url, endpoint);
    return rc;
}

void nk__hub_source_shard(struct nk__hub_source *s, int shard)
{
    if (s->n_shards == 1)
        return;
    s->shard = shard;
    set_shard(s->url, shard);
    set_shard(s->name, shard);
    nk__hub_shown(s->shown, sizeof s->shown, s->url);
}

void nk__hub_source_pin(struct nk__hub_source *s, const char *commit)
{
    char *at = s->url + s->revision_at;
    size_t n_old = strcspn(at, "/"), n_new = strlen(commit), n_rest = strlen(at + n_old) + 1;

    if (!s->hub || s->revision_at + n_new + n_rest > sizeof s->url)
        return;
    memmove(at + n_new, at + n_old, n_rest);
    memcpy(at, commit, n_new);
}

int nk__hub_endpoint(char out[512], struct nk_error *err)
{
    const char *text = getenv("HF_ENDPOINT");
    struct parts p;
    char shown[128];
    size_t n;
    bool ok;

    if (!text || !*text)
        text = "https://huggingface.co";
    for (n = strlen(text); n && text[n - 1] == '/'; n--)
        ;
    ok = n < 512 && !strpbrk(text, "?#@ ") && !has_control(text);
    if (ok) {
        snprintf(out, 512, "%.*s", (int)n, text);
        ok = parts_of(&p, out);
    }
    if (ok) {
        ok = is_https(&p) || is_local_http(&p);
        parts_free(&p);
    }
    if (ok)
        return 0;
    return nk_fail(err, NK_E_INVALID, "bad_source",
                   "HF_ENDPOINT is '%s'; the address of a hub is needed, https://HOST",
                   nk__hub_shown(shown, sizeof shown, text));
}
