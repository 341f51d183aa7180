/* One question to the source. Redirects are followed here and not by curl, since the token is for
 * the hub alone, the hub says in its redirect what the file's SHA-256 is, and where it leads is
 * checked. The body's first bytes are looked at before anything on the disk is changed: a page to
 * log in must not cost a half-downloaded model. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/visible.h"
#include "hub/get_int.h"

enum {
    REDIRECTS_MAX = 8,
    IGNORED_MAX = 65536, /* of a redirect's body */
};

/* ---- one answer ---- */

static const char *status_says(int status)
{
    switch (status) {
    case 429:
        return " (too many requests)";
    case 500:
    case 502:
    case 503:
    case 504:
        return " (it cannot serve now)";
    case 416:
        return " (no such range)";
    default:
        return "";
    }
}

static int fail_status(struct nk__hub_file *g, struct nk_error *err)
{
    const char *shown = g->source.shown;
    int status = g->head.status;

    if (status == 404 || status == 410)
        return nk_fail(err, NK_E_NOT_FOUND, "not_there",
                       "%s is not there (the server answers %d); look for a slip in its %s", shown,
                       status, g->source.hub ? "ORG, REPO, FILE or REVISION" : "address");
    if ((status == 401 || status == 403) && !g->source.hub)
        return nk_fail(err, NK_E_DENIED, "refused",
                       "%s is not given to everybody (the server answers %d), and no login is "
                       "known here for that server; download the file by hand and give its path",
                       shown, status);
    if (status == 401 || status == 403)
        return nk_fail(err, NK_E_DENIED, "refused", "%s is refused (the hub answers %d); %s", shown,
                       status,
                       g->token ? "the token in HF_TOKEN does not reach it: is it still valid, and "
                                  "were the model's terms accepted on its page?"
                                : "there is no such model, or it is private or gated: then set "
                                  "HF_TOKEN to a token that may read it");
    if (status >= 500 || status == 429 || status == 408)
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "%s: the server answers %d%s", shown,
                       status, status_says(status));
    if (!status)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer", "%s: this is no HTTP server", shown);
    return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                   "%s: the server answers %d%s, which is no answer to what was asked", shown,
                   status, status_says(status));
}

static int fail_magic(struct nk__hub_file *g, struct nk_error *err)
{
    const char *m = g->magic, *slash = strstr(g->source.url, "/blob/");
    bool html = g->head.html || m[0] == '<';

    if (html && slash)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s is a page about a file; the file itself has /resolve/ in its address "
                       "instead of /blob/",
                       g->source.shown);
    if (html)
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s sends a page of HTML (one to log in, perhaps) and no GGUF file",
                       g->source.shown);
    if (!memcmp(m, "vers", NK__HUB_MAGIC))
        return nk_fail(err, NK_E_INVALID, "not_a_model",
                       "%s begins with 'vers': this is git's pointer to a large file, not the file",
                       g->source.shown);
    return nk_fail(err, NK_E_INVALID, "not_a_model",
                   "%s begins with %02x %02x %02x %02x; a GGUF file begins with 47 47 55 46 (GGUF)",
                   g->source.shown, (unsigned char)m[0], (unsigned char)m[1], (unsigned char)m[2],
                   (unsigned char)m[3]);
}

/* Has the hub just said that it is the file of which a part is here? Then the tags of where it
 * redirects to say nothing more, and may differ from one of its machines to the next. */
static bool is_certain(const struct nk__hub_file *g)
{
    return g->part.sha256[0] && !strcmp(g->linked_etag, g->part.linked_etag);
}

/* 206: is it what was asked for, and of the same file? *same false: begin anew. */
static int check_range(struct nk__hub_file *g, bool *same, struct nk_error *err)
{
    const struct nk__hub_head *h = &g->head;

    *same = false;
    if (!g->resume)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the server answers with a part of it (206), and all was asked for",
                       g->source.shown);
    if (h->range_total != (int64_t)g->part.size ||
        (!is_certain(g) && strcmp(h->etag, g->part.etag) != 0))
        return 0; /* another file by now */
    if (h->range_begin != (int64_t)g->at ||
        (h->length >= 0 && h->length != h->range_end - h->range_begin + 1))
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: asked for the bytes from %llu on, the server sends those from %lld to "
                       "%lld and says that these are %lld",
                       g->source.shown, (unsigned long long)g->at, (long long)h->range_begin,
                       (long long)h->range_end, (long long)h->length);
    *same = true;
    return 0;
}

/* 200: how much there is. */
static int check_size(struct nk__hub_file *g, uint64_t *size, struct nk_error *err)
{
    int64_t length = g->head.length >= 0 ? g->head.length : g->linked_size;

    if (length < 0)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the server does not say how long it is, so that half of it could not "
                       "be told from the whole",
                       g->source.shown);
    if (g->linked_size >= 0 && g->linked_size != length)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the hub says that it has %lld bytes, and what is sent %lld",
                       g->source.shown, (long long)g->linked_size, (long long)length);
    if (length < NK__HUB_MAGIC || length > NK__HUB_SIZE_MAX)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer", "%s: %lld bytes are no model",
                       g->source.shown, (long long)length);
    *size = (uint64_t)length;
    return 0;
}

/* The hub alone says what its files are, in its redirect or with the file. False: it does not. */
static bool take_linked(struct nk__hub_file *g)
{
    if (!g->at_source || !g->head.linked_etag[0])
        return false;
    snprintf(g->linked_etag, sizeof g->linked_etag, "%s", g->head.linked_etag);
    g->linked_size = g->head.linked_size;
    return true;
}

/* So does it say of which commit they are. */
static void take_commit(struct nk__hub_file *g)
{
    if (g->source.hub && g->at_source && g->head.commit[0])
        memcpy(g->commit, g->head.commit, sizeof g->commit);
}

/* The first bytes are here (magic): may they go to the disk? */
static int body_begin(struct nk__hub_file *g, struct nk_error *err)
{
    uint64_t size = 0;
    bool same;
    int rc;

    take_commit(g);
    if (g->head.status == 206) {
        rc = check_range(g, &same, err);
        g->again = !rc && !same;
        if (!rc && same)
            memcpy(g->part.commit, g->commit, sizeof g->part.commit);
        if (!rc && same)
            nk__hub_progress_start(g);
        return rc;
    }
    if (memcmp(g->magic, "GGUF", NK__HUB_MAGIC) != 0)
        return fail_magic(g, err);
    take_linked(g);
    rc = check_size(g, &size, err);
    if (!rc)
        rc = nk__hub_part_begin(g, size, err);
    if (!rc) {
        nk__hub_progress_start(g);
        rc = nk__hub_part_write(g, g->magic, g->n_magic, err);
    }
    return rc;
}

static bool is_redirect(int status)
{
    return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

static size_t on_body(char *data, size_t one, size_t size, void *arg)
{
    struct nk__hub_file *g = arg;
    size_t all = size;

    (void)one;
    /* A redirect's body is let by, for curl says only at its end where it leads. */
    if (!g->rc && is_redirect(g->head.status)) {
        g->n_ignored += size;
        return g->n_ignored > IGNORED_MAX ? 0 : size;
    }
    if (g->rc || (g->head.status != 200 && g->head.status != 206))
        return 0; /* ends it: what a refusal has to say is not read */
    g->rc = nk__hub_alive(g, &g->err);
    if (!g->rc && !g->body) {
        if (g->head.status == 200) {
            size_t n = NK__HUB_MAGIC - g->n_magic < size ? NK__HUB_MAGIC - g->n_magic : size;

            memcpy(g->magic + g->n_magic, data, n);
            g->n_magic += n;
            data += n;
            size -= n;
            if (g->n_magic < NK__HUB_MAGIC)
                return all;
        }
        g->rc = body_begin(g, &g->err);
        g->body = !g->rc && !g->again;
        if (!g->body)
            return 0;
    }
    if (!g->rc)
        g->rc = nk__hub_part_write(g, data, size, &g->err);
    return g->rc ? 0 : all;
}

static size_t on_head(char *data, size_t one, size_t size, void *arg)
{
    struct nk__hub_file *g = arg;

    (void)one;
    nk__hub_head_add(&g->head, data, size);
    return size;
}

static int on_time(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    struct nk__hub_file *g = arg;

    (void)a;
    (void)b;
    (void)c;
    (void)d;
    if (!g->rc)
        g->rc = nk__hub_alive(g, &g->err);
    return g->rc != 0;
}

/* ---- one question ---- */

/* Whom to trust: what the environment says, else curl's default, else where other distributions
 * have it (a program from a tarball was built on another one). */
static int set_authorities(CURL *c, struct nk_error *err)
{
    static const char *const usual[] = {
        "/etc/ssl/certs/ca-certificates.crt",                /* Debian, Arch, Alpine, Gentoo */
        "/etc/pki/tls/certs/ca-bundle.crt",                  /* Fedora */
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", /* newer ones of it */
        "/etc/ssl/ca-bundle.pem",                            /* SUSE */
        "/var/lib/ca-certificates/ca-bundle.pem",            /* newer ones of it */
        "/etc/ssl/cert.pem",                                 /* Alpine, BSD, macOS */
        "/usr/local/share/certs/ca-root-nss.crt",            /* FreeBSD */
    };
    static const char *const variables[] = { "CURL_CA_BUNDLE", "SSL_CERT_FILE" };
    const char *dir = getenv("SSL_CERT_DIR");
    curl_version_info_data *v = curl_version_info(CURLVERSION_NOW);
    const char *file = NULL, *capath = NULL;

    for (int i = 0; i < 2; i++) {
        file = getenv(variables[i]);
        if (!file || !*file)
            continue;
        if (access(file, R_OK) < 0)
            return nk_fail(err, NK_E_UNAVAILABLE, "bad_certificate",
                           "%s names %s, which cannot be read: %s", variables[i], file,
                           strerror(errno));
        curl_easy_setopt(c, CURLOPT_CAINFO, file);
        return 0;
    }
    if (dir && *dir) {
        curl_easy_setopt(c, CURLOPT_CAPATH, dir);
        return 0;
    }
    if (v->age >= CURLVERSION_SEVENTH) {
        file = v->cainfo;
        capath = v->capath;
    }
    if ((!file && !capath) || (file && !access(file, R_OK)))
        return 0; /* curl's default; without one it asks the system's own store */
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++)
        if (!access(usual[i], R_OK)) {
            curl_easy_setopt(c, CURLOPT_CAINFO, usual[i]);
            return 0;
        }
    if (capath && !access(capath, R_OK | X_OK))
        return 0;
    return nk_fail(err, NK_E_UNAVAILABLE, "bad_certificate",
                   "no certificates of authorities were found on this machine (the package "
                   "ca-certificates has them); SSL_CERT_FILE can name a file with some");
}

/* Appends a header. */
static int add_header(struct curl_slist **list, struct nk_error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static int add_header(struct curl_slist **list, struct nk_error *err, const char *fmt, ...)
{
    struct curl_slist *more;
    char text[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    more = curl_slist_append(*list, text);
    explicit_bzero(text, sizeof text);
    if (!more)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    *list = more;
    return 0;
}

static int make_headers(struct nk__hub_file *g, const char *url, struct curl_slist **list,
                        struct nk_error *err)
{
    int rc = 0;

    g->at_source = nk__hub_same_origin(url, g->source.url);
    if (g->token && g->at_source)
        rc = add_header(list, err, "Authorization: Bearer %s", g->token);
    if (!rc && g->resume) {
        rc = add_header(list, err, "Range: bytes=%llu-", (unsigned long long)g->at);
        if (!rc && nk__hub_etag_is_strong(g->part.etag) && !is_certain(g))
            rc = add_header(list, err, "If-Range: %s", g->part.etag);
    }
    if (!rc && !g->resume && g->has && g->have.etag[0])
        rc = add_header(list, err, "If-None-Match: %s", g->have.etag);
    return rc;
}

static int set_options(struct nk__hub_file *g, const char *url, struct curl_slist *headers,
                       struct nk_error *err)
{
    CURL *c = g->curl;
    bool https = !strncasecmp(url, "https:", 6);

    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, url);
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, https ? "https" : "http");
#else
    curl_easy_setopt(c, CURLOPT_PROTOCOLS, (long)(https ? CURLPROTO_HTTPS : CURLPROTO_HTTP));
#endif
    if (!https) /* only within this machine */
        curl_easy_setopt(c, CURLOPT_PROXY, "");
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_HEADEROPT, (long)CURLHEADER_SEPARATE); /* none to a proxy */
    curl_easy_setopt(c, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "nakshatra/" NK_VERSION);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)g->opts->connect_ms);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)g->opts->stall_s);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 512L * 1024);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, g->curl_error);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, g);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_head);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, g);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_time);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, g);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    return https ? set_authorities(c, err) : 0;
}

/* What curl could not do. *again: another try may help. */
static int fail_curl(struct nk__hub_file *g, const char *url, CURLcode code, bool *again,
                     struct nk_error *err)
{
    char shown[256], why[160];

    nk__hub_shown(shown, sizeof shown, url);
    nk_visible_line(why, sizeof why, g->curl_error[0] ? g->curl_error : curl_easy_strerror(code));
    *again = true;
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
        *again = g->answered;
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable",
                       "%s: its host's name is not known to this machine's network: %s", shown,
                       why);
    case CURLE_SSL_CONNECT_ERROR: /* for example, nobody there speaks TLS */
        *again = g->answered;
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "%s: no TLS connection: %s", shown,
                       why);
    case CURLE_COULDNT_CONNECT:
        *again = g->answered;
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "%s: nobody answers there: %s", shown,
                       why);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
        *again = false;
        return nk_fail(err, NK_E_UNAVAILABLE, "bad_certificate",
                       "%s: the server cannot prove who it is: %s (SSL_CERT_FILE can name a file "
                       "with the authorities to trust; a wrong clock makes good certificates bad)",
                       shown, why);
    case CURLE_OPERATION_TIMEDOUT:
        if (!g->answered && !g->head.status)
            *again = false;
        return nk_fail(err, NK_E_DEADLINE, "too_slow", "%s: it came to a stand: %s", shown, why);
    case CURLE_OUT_OF_MEMORY:
        *again = false;
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
        *again = false;
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer", "%s: %s", shown, why);
    default:
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable", "%s: it broke off: %s", shown, why);
    }
}

/* Follows one redirect: *url is owned. */
static int redirect(struct nk__hub_file *g, char **url, int hop, struct nk_error *err)
{
    char shown[128], *to = NULL;

    take_commit(g);
    if (take_linked(g)) {
        if (g->has && !strcmp(g->linked_etag, g->have.linked_etag)) {
            g->kept = true;
            return 0;
        }
        if (strcmp(g->linked_etag, g->part.linked_etag) != 0)
            g->resume = false; /* another file by now */
    }
    if (hop == REDIRECTS_MAX)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the server has redirected %d times and not sent it", g->source.shown,
                       hop);
    curl_easy_getinfo(g->curl, CURLINFO_REDIRECT_URL, &to);
    if (!to)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the server answers %d and does not say where it is", g->source.shown,
                       g->head.status);
    if (!nk__hub_may_redirect(g->source.url, to))
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the server redirects to %s; only https:// is followed", g->source.shown,
                       nk__hub_shown(shown, sizeof shown, to));
    to = strdup(to);
    if (!to)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    free(*url);
    *url = to;
    return 0;
}

/* The answer to the last question is here (or broke off, code). */
static int judge(struct nk__hub_file *g, const char *url, CURLcode code, bool *again,
                 struct nk_error *err)
{
    int status = g->head.status;

    *again = false;
    if (g->rc) {
        if (err)
            *err = g->err;
        return g->rc;
    }
    if (status)
        g->answered = true;
    if (g->again || (status == 416 && g->resume)) {
        g->again = true;
        return 0;
    }
    /* A body that was not read (on_body) ends in CURLE_WRITE_ERROR. */
    if (status == 304 && g->has && !g->resume && (!code || code == CURLE_WRITE_ERROR)) {
        take_commit(g);
        g->kept = true;
        return 0;
    }
    if (status && status != 200 && status != 206 && (!code || code == CURLE_WRITE_ERROR)) {
        *again = status >= 500 || status == 429 || status == 408;
        return fail_status(g, err);
    }
    if (code)
        return fail_curl(g, url, code, again, err);
    if (!g->body)
        return nk_fail(err, NK_E_DATA_LOSS, "wrong_answer",
                       "%s: the server sends %zu bytes, which are no model", g->source.shown,
                       g->n_magic);
    if (g->at < g->part.size) {
        *again = true;
        return nk_fail(err, NK_E_UNAVAILABLE, "unreachable",
                       "%s: it broke off: %llu of %llu bytes came", g->source.shown,
                       (unsigned long long)g->at, (unsigned long long)g->part.size);
    }
    return 0;
}

int nk__hub_ask(struct nk__hub_file *g, bool from_start, bool *again, struct nk_error *err)
{
    char *url = strdup(g->source.url);
    int rc = url ? 0 : nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");

    g->resume = !from_start && g->fd >= 0 && g->at > 0 && nk__hub_can_resume(&g->part);
    g->linked_etag[0] = '\0';
    g->linked_size = -1;
    g->commit[0] = '\0';
    g->again = g->kept = false;
    *again = false;
    for (int hop = 0; !rc; hop++) {
        struct curl_slist *headers = NULL;
        CURLcode code;

        nk__hub_head_init(&g->head);
        g->body = false;
        g->n_magic = g->n_ignored = 0;
        g->rc = 0;
        g->curl_error[0] = '\0';
        rc = make_headers(g, url, &headers, err);
        if (!rc)
            rc = set_options(g, url, headers, err);
        if (!rc) {
            code = curl_easy_perform(g->curl);
            if (!g->rc && !code && is_redirect(g->head.status)) {
                g->answered = true;
                rc = redirect(g, &url, hop, err);
            } else {
                rc = judge(g, url, code, again, err);
                hop = REDIRECTS_MAX + 1;
            }
        }
        curl_slist_free_all(headers);
        if (g->kept || hop > REDIRECTS_MAX)
            break;
    }
    free(url);
    return rc;
}
