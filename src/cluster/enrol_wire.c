#include "cluster/enrol_int.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/visible.h"
#include "cluster/cluster_int.h"

enum { EXPORTER_BYTES = 32, LENGTH_BYTES = 4, VERSION = 1, SIGNATURE_BYTES_MAX = 128 };

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
}

/* ---- fields ---- */
/* A text that may have lines (PEM, a roster), into a buffer with a ceiling. */
static bool read_lines(struct nk_buf *out, const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    nk_buf_reset(out);
    return json_is_string(value) && json_string_length(value) &&
           !memchr(json_string_value(value), '\0', json_string_length(value)) &&
           !nk_buf_add(out, json_string_value(value), json_string_length(value), NULL);
}

static bool read_bytes(struct nk_buf *out, const json_t *object, const char *key)
{
    char hex[2 * SIGNATURE_BYTES_MAX + 1];
    uint8_t bytes[SIGNATURE_BYTES_MAX];
    size_t n;

    nk_buf_reset(out);
    if (!nk__json_text(object, key, hex, sizeof hex))
        return false;
    n = strlen(hex) / 2;
    return n && nk__unhex(bytes, n, hex) && !nk_buf_add(out, bytes, n, NULL);
}

static int set(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value); /* takes value, and fails for NULL */
}

static int set_hex(json_t *object, const char *key, const void *bytes, size_t size)
{
    char hex[2 * SIGNATURE_BYTES_MAX + 1];

    if (size > SIGNATURE_BYTES_MAX)
        return -1;
    nk__hex(hex, bytes, size);
    return set(object, key, json_string(hex));
}

/* Takes json. */
static int write_json(json_t *json, bool bad, struct nk_buf *out, struct nk_error *err)
{
    char *text = bad ? NULL : json_dumps(json, JSON_COMPACT);
    int rc = text ? nk_buf_add(out, text, strlen(text), err) : no_memory(err);

    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
    json_decref(json);
    return rc;
}

/* ---- the request ---- */
void nk__enrol_request_init(struct nk__enrol_request *r)
{
    *r = (struct nk__enrol_request){ 0 };
    nk_buf_init(&r->request, NK_PEM_BYTES_MAX);
    nk_buf_init(&r->old, NK_PEM_BYTES_MAX);
    nk_buf_init(&r->old_proof, SIGNATURE_BYTES_MAX);
}

void nk__enrol_request_release(struct nk__enrol_request *r)
{
    nk_buf_release(&r->request);
    nk_buf_release(&r->old);
    nk_buf_release(&r->old_proof);
}

int nk__enrol_request_format(const struct nk__enrol_request *r, struct nk_buf *out,
                             struct nk_error *err)
{
    json_t *json =
        json_pack("{s:i, s:s, s:s, s:I, s:s}", "v", VERSION, "name", r->name, "version", r->version,
                  "time", (json_int_t)r->time_s, "request", nk_buf_str(&r->request));
    bool bad = !json;

    if (*r->token)
        bad |= set(json, "token", json_string(r->token)) ||
               set_hex(json, "proof", r->proof, sizeof r->proof);
    if (r->old.size)
        bad |= set(json, "old", json_string(nk_buf_str(&r->old))) ||
               set_hex(json, "old_proof", r->old_proof.data, r->old_proof.size);
    return write_json(json, bad, out, err);
}

static const char *read_request(struct nk__enrol_request *r, const json_t *json)
{
    char hex[2 * NK_TOKEN_PROOF_BYTES + 1];
    int64_t v;

    if (!nk__json_number(json, "v", 1, INT64_MAX, &v))
        return "it has no version";
    if (v != VERSION)
        return "it is of a newer version of nakshatra than the cluster's";
    if (!nk__json_number(json, "time", 0, INT64_MAX / 2, &r->time_s))
        return "\"time\" is missing";
    if (!read_lines(&r->request, json, "request"))
        return "\"request\" is missing or too large";
    if (!nk__json_text(json, "version", r->version, sizeof r->version))
        return "\"version\" is missing or too long";
    if (!nk__json_text(json, "name", r->name, sizeof r->name) || !nk_member_name_is(r->name))
        r->name[0] = '\0';
    if (json_object_get(json, "token") &&
        (!nk__json_text(json, "token", r->token, sizeof r->token) || !*r->token ||
         !nk__json_text(json, "proof", hex, sizeof hex) ||
         !nk__unhex(r->proof, sizeof r->proof, hex)))
        return "\"token\" or \"proof\" is not what it should be";
    if (json_object_get(json, "old") &&
        (!read_lines(&r->old, json, "old") || !read_bytes(&r->old_proof, json, "old_proof")))
        return "\"old\" or \"old_proof\" is not what it should be";
    if (!*r->token && !r->old.size)
        return "it has neither a token nor an old certificate";
    return NULL;
}

int nk__enrol_request_parse(struct nk__enrol_request *r, struct nk_bytes text, struct nk_error *err)
{
    json_t *json =
        text.size <= NK_ENROL_REQUEST_BYTES_MAX
            ? json_loadb((const char *)text.data, text.size, JSON_REJECT_DUPLICATES, NULL)
            : NULL;
    const char *wrong = json_is_object(json) ? read_request(r, json) : "it is not a JSON object";

    json_decref(json);
    return wrong
               ? nk_fail(err, NK_E_INVALID, "bad_frame", "a request to join is not one: %s", wrong)
               : 0;
}

/* ---- the answer ---- */
void nk__enrolled_init(struct nk_enrolled *e)
{
    *e = (struct nk_enrolled){ 0 };
    nk_buf_init(&e->ca, NK_PEM_BYTES_MAX);
    nk_buf_init(&e->certificate, NK_PEM_BYTES_MAX);
    nk_buf_init(&e->key, NK_PEM_BYTES_MAX);
}

void nk_enrolled_release(struct nk_enrolled *e)
{
    nk_buf_release(&e->ca);
    nk_buf_release(&e->certificate);
    nk__forget(&e->key);
    nk_roster_release(&e->roster);
}

int nk__enrol_reply_format(const struct nk_enrolled *e, struct nk_buf *out, struct nk_error *err)
{
    struct nk_buf roster = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    int rc = nk_roster_format(&e->roster, &roster, err);
    json_t *json;

    if (!rc) {
        json = json_pack("{s:i, s:s, s:s, s:s, s:s, s:i, s:I, s:s, s:o}", "v", VERSION, "ca",
                         nk_buf_str(&e->ca), "certificate", nk_buf_str(&e->certificate), "name",
                         e->name, "roster", nk_buf_str(&roster), "port", e->port, "time",
                         (json_int_t)e->server_time_s, "version", e->server_version, "addresses",
                         nk__json_of_addresses(e->addresses, e->n_addresses));
        rc = write_json(json, !json, out, err);
    }
    nk_buf_release(&roster);
    return rc;
}

int nk__enrol_refusal_format(const struct nk_error *refusal, int64_t now_s, struct nk_buf *out,
                             struct nk_error *err)
{
    char message[sizeof refusal->msg]; /* UTF-8, and without control characters */
    json_t *json =
        json_pack("{s:i, s:I, s:{s:i, s:s, s:s}}", "v", VERSION, "time", (json_int_t)now_s, "error",
                  "code", refusal->code, "reason", refusal->reason, "message",
                  nk_visible_line(message, sizeof message, refusal->msg));

    return write_json(json, !json, out, err);
}

static bool is_reason(const char *text)
{
    return *text && text[strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_")] == '\0';
}

/* What the cluster says why not; or NULL, and *rc is that error. */
static const char *read_refusal(const json_t *refusal, int *rc, struct nk_error *err)
{
    char reason[sizeof err->reason], message[sizeof err->msg];
    int64_t code;

    if (!nk__json_number(refusal, "code", NK_E_UNAUTHENTICATED, NK_E_CANCELLED, &code) ||
        !nk__json_text(refusal, "reason", reason, sizeof reason) || !is_reason(reason) ||
        !nk__json_text(refusal, "message", message, sizeof message))
        return "its \"error\" is not what it should be";
    *rc = nk_fail(err, (int)code, reason, "%s", message);
    return NULL;
}

static const char *read_reply(struct nk_enrolled *e, const json_t *json)
{
    struct nk_buf roster = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    const char *wrong = NULL;
    int64_t port = 0;

    if (!nk__json_number(json, "time", 0, INT64_MAX / 2, &e->server_time_s))
        wrong = "\"time\" is missing";
    else if (!read_lines(&e->ca, json, "ca") || !read_lines(&e->certificate, json, "certificate"))
        wrong = "\"ca\" or \"certificate\" is missing or too large";
    else if (!nk__json_text(json, "name", e->name, sizeof e->name) || !nk_member_name_is(e->name))
        wrong = "\"name\" is no machine's name";
    else if (!nk__json_number(json, "port", 1, 65535, &port))
        wrong = "\"port\" is no port";
    else if (!nk__json_text(json, "version", e->server_version, sizeof e->server_version))
        wrong = "\"version\" is missing or too long";
    else if ((e->n_addresses = nk__json_addresses(json, "addresses", e->addresses)) < 0)
        wrong = "\"addresses\" are not at most 10 addresses";
    else if (!read_lines(&roster, json, "roster") ||
             nk_roster_parse(&e->roster, (struct nk_bytes){ (uint8_t *)roster.data, roster.size },
                             NULL))
        wrong = "\"roster\" is none";
    if (wrong)
        e->n_addresses = 0;
    e->port = (int)port;
    nk_buf_release(&roster);
    return wrong;
}

int nk__enrol_reply_parse(struct nk_enrolled *e, struct nk_bytes text, struct nk_error *err)
{
    json_t *json =
        text.size <= NK_ENROL_REPLY_BYTES_MAX
            ? json_loadb((const char *)text.data, text.size, JSON_REJECT_DUPLICATES, NULL)
            : NULL;
    const json_t *refusal = json_object_get(json, "error");
    const char *wrong;
    int64_t v;
    int rc = 0;

    if (!json_is_object(json))
        wrong = "it is not a JSON object";
    else if (!nk__json_number(json, "v", VERSION, VERSION, &v))
        wrong = "it is of another version of nakshatra";
    else
        wrong = refusal ? read_refusal(refusal, &rc, err) : read_reply(e, json);
    json_decref(json);
    return wrong ? nk_fail(err, NK_E_INVALID, "bad_reply",
                           "the cluster's answer cannot be understood: %s", wrong)
                 : rc;
}

/* ---- proofs ---- */
int nk__enrol_proof_message(struct nk_buf *out, const char *kind, SSL *ssl, struct nk_bytes request,
                            struct nk_error *err)
{
    static const char label[] = "EXPORTER-nakshatra-enrolment-1";
    uint8_t exporter[EXPORTER_BYTES];
    int rc;

    if (SSL_export_keying_material(ssl, exporter, sizeof exporter, label, sizeof label - 1, NULL, 0,
                                   0) != 1)
        return nk_fail(err, NK_E_INTERNAL, "crypto_failed", "the connection has no exporter: %s",
                       nk__ssl_reason());
    nk_buf_reset(out);
    rc = nk_buf_add(out, kind, strlen(kind) + 1, err);
    if (!rc)
        rc = nk_buf_add(out, exporter, sizeof exporter, err);
    return rc ? rc : nk_buf_add(out, request.data, request.size, err);
}

/* ---- frames ---- */
void nk__frame_init(struct nk__frame *f, size_t in_max, size_t out_max)
{
    nk_buf_init(&f->in, in_max + LENGTH_BYTES);
    nk_buf_init(&f->out, out_max + LENGTH_BYTES);
    f->n_sent = 0;
}

void nk__frame_release(struct nk__frame *f)
{
    nk_buf_release(&f->in);
    nk_buf_release(&f->out);
}

int nk__frame_begin(struct nk__frame *f, struct nk_error *err)
{
    nk_buf_reset(&f->out);
    f->n_sent = 0;
    return nk_buf_add(&f->out, "\0\0\0\0", LENGTH_BYTES, err);
}

void nk__frame_end(struct nk__frame *f)
{
    size_t n = f->out.size - LENGTH_BYTES;

    for (int i = 0; i < LENGTH_BYTES; i++)
        f->out.data[i] = (char)(n >> 8 * (LENGTH_BYTES - 1 - i));
}

int nk__ssl_wait(SSL *ssl, int answer, short *events, struct nk_error *err)
{
    int e = errno, what = SSL_get_error(ssl, answer);

    if (what == SSL_ERROR_WANT_READ || what == SSL_ERROR_WANT_WRITE) {
        *events = what == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
        return 0;
    }
    /* OpenSSL 3 calls an end without a farewell a fault of the protocol. */
    if (what == SSL_ERROR_SSL &&
        ERR_GET_REASON(ERR_peek_last_error()) != SSL_R_UNEXPECTED_EOF_WHILE_READING)
        return nk_fail(err, NK_E_UNAVAILABLE, "peer_gone", "TLS: %s", nk__ssl_reason());
    ERR_clear_error();
    return nk_fail(err, NK_E_UNAVAILABLE, "peer_gone", "%s",
                   what == SSL_ERROR_SYSCALL && e ? strerror(e)
                                                  : "the other side closed the connection");
}

int nk__frame_send(struct nk__frame *f, SSL *ssl, short *events, struct nk_error *err)
{
    while (f->n_sent < f->out.size) {
        size_t n;
        int answer;

        ERR_clear_error();
        errno = 0;
        answer = SSL_write_ex(ssl, f->out.data + f->n_sent, f->out.size - f->n_sent, &n);
        if (answer != 1)
            return nk__ssl_wait(ssl, answer, events, err);
        f->n_sent += n;
    }
    return 1;
}

/* How long the frame will be in all; 0: that is not known yet. */
static size_t length_of(const struct nk__frame *f)
{
    size_t n = 0;

    if (f->in.size < LENGTH_BYTES)
        return 0;
    for (int i = 0; i < LENGTH_BYTES; i++)
        n = n << 8 | (uint8_t)f->in.data[i];
    return n + LENGTH_BYTES;
}

int nk__frame_receive(struct nk__frame *f, SSL *ssl, short *events, struct nk_error *err)
{
    for (;;) {
        size_t length = length_of(f), n;
        char *where;
        int answer, rc;

        if (length > f->in.max || (length && length == LENGTH_BYTES))
            return nk_fail(err, NK_E_INVALID, "bad_frame",
                           "a message of %zu bytes; there are 1 to %zu", length - LENGTH_BYTES,
                           f->in.max - LENGTH_BYTES);
        if (length && f->in.size == length)
            return 1;
        length = (length ? length : LENGTH_BYTES) - f->in.size;
        if (length > 16384)
            length = 16384; /* as it comes, not as it was promised */
        rc = nk_buf_reserve(&f->in, length, &where, err);
        if (rc)
            return rc;
        ERR_clear_error();
        errno = 0;
        answer = SSL_read_ex(ssl, where, length, &n);
        if (answer != 1)
            return nk__ssl_wait(ssl, answer, events, err);
        nk_buf_commit(&f->in, n);
    }
}

struct nk_bytes nk__frame_message(const struct nk__frame *f)
{
    return (struct nk_bytes){ (const uint8_t *)f->in.data + LENGTH_BYTES,
                              f->in.size - LENGTH_BYTES };
}

/* ---- waking ---- */
void nk__waker_wake(struct nk__waker *w)
{
    ssize_t n = write(w->fds[1], "", 1); /* full: it will wake all the same */

    (void)n;
}

static void moved(void *arg)
{
    nk__waker_wake(arg);
}

int nk__waker_init(struct nk__waker *w, struct nk_clock *clock, struct nk_error *err)
{
    w->clock = clock;
    if (pipe2(w->fds, O_CLOEXEC | O_NONBLOCK) < 0) {
        w->fds[0] = w->fds[1] = -1;
        return nk_fail(err, NK_E_UNAVAILABLE, "cannot_start", "a pipe: %s", strerror(errno));
    }
    w->listener = (struct nk_clock_listener){ .moved = moved, .arg = w };
    nk_clock_listen(clock, &w->listener);
    return 0;
}

void nk__waker_release(struct nk__waker *w)
{
    if (w->fds[0] < 0)
        return;
    nk_clock_unlisten(w->clock, &w->listener);
    close(w->fds[0]);
    close(w->fds[1]);
    w->fds[0] = w->fds[1] = -1;
}

void nk__waker_read(struct nk__waker *w)
{
    char bytes[64];

    while (read(w->fds[0], bytes, sizeof bytes) > 0) {
    }
}
