/* cluster.yaml, over libyaml's event interface.
 *
 * The file comes from a person, perhaps by way of a stranger, so nothing in it can grow: it has at
 * most CLUSTER_BYTES_MAX bytes, anchors, aliases and tags are refused where they stand (an alias is
 * never expanded, so there is nothing to explode), and each place of the form below takes exactly
 * one kind of event, so that deep nesting ends at the first bracket too many. Every message names
 * the line. */
#include "chain/cluster.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>

#include "base/file.h"

/* 64 workers of at most 512 bytes each and as much again for comments, four times over. */
enum { CLUSTER_BYTES_MAX = 256 * 1024, LAYERS_MAX = 1024 };

struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; owned */
    bool has_event;
    const char *name;
    struct nk_error *err;
    struct nk_cluster *c;
};

static int line_of(const struct reader *r)
{
    return (int)r->event.start_mark.line + 1;
}

#define bad(r, line, ...)                                                                          \
    nk_wrap(nk_fail((r)->err, NK_E_INVALID, "bad_cluster", __VA_ARGS__), (r)->err, "%s:%d",        \
            (r)->name, line)

/* Moves to the next event, refusing what no place of the form takes. */
static int next(struct reader *r)
{
    const yaml_char_t *anchor = NULL, *tag = NULL;

    if (r->has_event)
        yaml_event_delete(&r->event);
    r->has_event = false;
    if (!yaml_parser_parse(&r->parser, &r->event)) {
        if (r->parser.error == YAML_MEMORY_ERROR)
            return nk_fail(r->err, NK_E_EXHAUSTED, "no_memory", "no memory");
        return bad(
            r, (int)(r->parser.error == YAML_READER_ERROR ? 0 : r->parser.problem_mark.line) + 1,
            "not YAML: %s%s%s%s", r->parser.problem ? r->parser.problem : "cannot be read",
            r->parser.context ? " (" : "", r->parser.context ? r->parser.context : "",
            r->parser.context ? ")" : "");
    }
    r->has_event = true;
    switch (r->event.type) {
    case YAML_ALIAS_EVENT:
        return bad(r, line_of(r), "an alias (*%.40s) is not taken here; write the value itself",
                   (const char *)r->event.data.alias.anchor);
    case YAML_SCALAR_EVENT:
        anchor = r->event.data.scalar.anchor;
        tag = r->event.data.scalar.tag;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = r->event.data.sequence_start.anchor;
        tag = r->event.data.sequence_start.tag;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = r->event.data.mapping_start.anchor;
        tag = r->event.data.mapping_start.tag;
        break;
    default:
        break;
    }
    if (anchor)
        return bad(r, line_of(r), "an anchor (&%.40s) is not taken here", (const char *)anchor);
    if (tag)
        return bad(r, line_of(r), "a tag (%.40s) is not taken here", (const char *)tag);
    return 0;
}

static const char *kind_of(const struct reader *r)
{
    switch (r->event.type) {
    case YAML_SCALAR_EVENT:
        return r->event.data.scalar.length ? "a value" : "nothing";
    case YAML_SEQUENCE_START_EVENT:
        return "a list";
    case YAML_MAPPING_START_EVENT:
        return "keys with values";
    default:
        return "nothing";
    }
}

/* The current event must be of this type; what says what would be right. */
static int expect(struct reader *r, yaml_event_type_t type, const char *what)
{
    if (r->event.type == type)
        return 0;
    return bad(r, line_of(r), "expected %s, found %s", what, kind_of(r));
}

/* The current event as a text of 1 to size - 1 bytes without control characters, into out. */
static int take_text(struct reader *r, const char *key, char *out, size_t size)
{
    const yaml_char_t *s;
    size_t n;

    if (r->event.type != YAML_SCALAR_EVENT || !r->event.data.scalar.length)
        return bad(r, line_of(r), "%s: expected a value, found %s", key, kind_of(r));
    s = r->event.data.scalar.value;
    n = r->event.data.scalar.length;
    if (n >= size)
        return bad(r, line_of(r), "%s: %zu bytes are too long; at most %zu", key, n, size - 1);
    for (size_t i = 0; i < n; i++)
        if (s[i] < 0x20 || s[i] == 0x7f)
            return bad(r, line_of(r), "%s: has a control character (0x%02x)", key, s[i]);
    memcpy(out, s, n);
    out[n] = '\0';
    return 0;
}

/* The same, of the next event. */
static int read_text(struct reader *r, const char *key, char *out, size_t size)
{
    int rc = next(r);

    return rc ? rc : take_text(r, key, out, size);
}

/* The name of a key in out. *end: there are no more. seen has one bit per name of names. */
static int read_key(struct reader *r, const char *where, const char *const *names, unsigned *seen,
                    int *key, bool *end)
{
    char list[128] = "";
    int rc = next(r);

    *end = false;
    *key = -1;
    if (rc)
        return rc;
    if (r->event.type == YAML_MAPPING_END_EVENT) {
        *end = true;
        return 0;
    }
    rc = expect(r, YAML_SCALAR_EVENT, "a key");
    if (rc)
        return rc;
    for (int i = 0; names[i]; i++) {
        size_t used = strlen(list);

        if (strlen(names[i]) == r->event.data.scalar.length &&
            !memcmp(r->event.data.scalar.value, names[i], r->event.data.scalar.length))
            *key = i;
        snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", names[i]);
    }
    if (*key < 0)
        return bad(r, line_of(r), "'%.60s' is no key of %s; the keys are %s",
                   (const char *)r->event.data.scalar.value, where, list);
    if (*seen & (1u << *key))
        return bad(r, line_of(r), "%s: '%s' is given twice", where, names[*key]);
    *seen |= 1u << *key;
    return 0;
}

static int check_seen(struct reader *r, int line, const char *where, const char *const *names,
                      unsigned seen, unsigned needed)
{
    for (int i = 0; names[i]; i++)
        if ((needed & ~seen) & (1u << i))
            return bad(r, line, "%s: '%s' is missing", where, names[i]);
    return 0;
}

/* The next event as a path; a relative one is relative to the file's folder. */
static int read_path(struct reader *r, const char *key, char *out, size_t size)
{
    const char *slash = strrchr(r->c->path, '/');
    size_t folder = slash ? (size_t)(slash - r->c->path) + 1 : 0;
    char text[PATH_MAX];
    int rc = read_text(r, key, text, sizeof text);

    if (rc)
        return rc;
    if (text[0] == '/')
        folder = 0;
    if (folder + strlen(text) >= size)
        return bad(r, line_of(r), "%s: the path is too long", key);
    memcpy(out, r->c->path, folder);
    strcpy(out + folder, text);
    return 0;
}

static int read_model(struct reader *r)
{
    static const char *const keys[] = { "id", "sha256", "vocab", NULL };
    struct nk_cluster *c = r->c;
    unsigned seen = 0;
    bool end;
    int key, line, rc = next(r);

    if (!rc)
        rc = expect(r, YAML_MAPPING_START_EVENT, "model: keys (id, sha256, vocab)");
    if (rc)
        return rc;
    line = line_of(r);
    while (!(rc = read_key(r, "model", keys, &seen, &key, &end)) && !end) {
        if (key == 0) {
            rc = read_text(r, "model id", c->model_id, sizeof c->model_id);
        } else if (key == 1) {
            char text[128];

            rc = read_text(r, "model sha256", text, sizeof text);
            if (!rc && (strlen(text) != 64 || strspn(text, "0123456789abcdefABCDEF") != 64))
                rc = bad(r, line_of(r), "model sha256: '%.70s' is not 64 hexadecimal digits", text);
            for (int i = 0; !rc && i < 65; i++)
                c->model_sha256[i] =
                    text[i] >= 'A' && text[i] <= 'F' ? (char)(text[i] - 'A' + 'a') : text[i];
        } else {
            rc = read_path(r, "model vocab", c->vocab_path, sizeof c->vocab_path);
        }
        if (rc)
            return rc;
    }
    return rc ? rc : check_seen(r, line, "model", keys, seen, 3);
}

static int read_tls(struct reader *r)
{
    static const char *const keys[] = { "ca", "certificate", "key", NULL };
    struct nk_cluster *c = r->c;
    unsigned seen = 0;
    bool end;
    int key, line, rc = next(r);

    if (!rc)
        rc = expect(r, YAML_MAPPING_START_EVENT, "tls: keys (ca, certificate, key)");
    if (rc)
        return rc;
    line = line_of(r);
    while (!(rc = read_key(r, "tls", keys, &seen, &key, &end)) && !end) {
        rc = key == 0 ? read_path(r, "tls ca", c->tls_ca, sizeof c->tls_ca)
             : key == 1
                 ? read_path(r, "tls certificate", c->tls_certificate, sizeof c->tls_certificate)
                 : read_path(r, "tls key", c->tls_key, sizeof c->tls_key);
        if (rc)
            return rc;
    }
    return rc ? rc : check_seen(r, line, "tls", keys, seen, 7);
}

static int read_epoch(struct reader *r)
{
    char text[32];
    int rc = read_text(r, "epoch", text, sizeof text);

    if (rc)
        return rc;
    if (strspn(text, "0123456789") != strlen(text) || strlen(text) > 19)
        return bad(r, line_of(r), "epoch: '%s' is no number of at most 19 digits", text);
    r->c->epoch = strtoull(text, NULL, 10);
    return 0;
}

static int read_dtype(struct reader *r)
{
    char text[16];
    int rc = read_text(r, "dtype", text, sizeof text);

    if (rc)
        return rc;
    r->c->f16 = !strcmp(text, "f16");
    if (!r->c->f16 && strcmp(text, "f32"))
        return bad(r, line_of(r), "dtype: '%s' is not known; f32 and f16 are", text);
    return 0;
}

/* "host:port" or "[v6 address]:port". */
static bool address_is_good(const char *address)
{
    const char *colon = strrchr(address, ':');
    char *end;
    long port;

    if (!colon || colon == address || colon[1] < '0' || colon[1] > '9')
        return false;
    port = strtol(colon + 1, &end, 10);
    if (*end || port < 1 || port > 65535)
        return false;
    if (address[0] == '[')
        return colon[-1] == ']' && colon - address > 2 &&
               strspn(address + 1, "0123456789abcdefABCDEF:.%") == (size_t)(colon - address - 2);
    /* What a host name or an IPv4 address is made of, and no scheme, path or second port. */
    return strspn(address, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") ==
           (size_t)(colon - address);
}

static int take_address(struct reader *r, const char *key, char *out, size_t size)
{
    int rc = take_text(r, key, out, size);

    if (!rc && !address_is_good(out))
        rc = bad(r, line_of(r),
                 "%s '%.100s': HOST:PORT was expected, like 10.0.0.3:5530 or [::1]:5530", key, out);
    return rc;
}

/* "0-14" */
static bool layers_are_good(const char *text, int *begin, int *end)
{
    char *p;
    long a, b;

    if (text[0] < '0' || text[0] > '9')
        return false;
    a = strtol(text, &p, 10);
    if (*p != '-' || p[1] < '0' || p[1] > '9')
        return false;
    b = strtol(p + 1, &p, 10);
    if (*p || a >= b || b > LAYERS_MAX)
        return false;
    *begin = (int)a;
    *end = (int)b;
    return true;
}

static int read_worker(struct reader *r)
{
    static const char *const keys[] = { "id", "address", "layers", NULL };
    struct nk_cluster_worker *w;
    unsigned seen = 0;
    bool end;
    int key, rc = expect(r, YAML_MAPPING_START_EVENT, "a worker's keys (id, address, layers)");

    if (rc)
        return rc;
    if (r->c->n_workers == NK_CLUSTER_WORKERS_MAX)
        return bad(r, line_of(r), "more than %d workers", NK_CLUSTER_WORKERS_MAX);
    w = &r->c->workers[r->c->n_workers];
    w->line = line_of(r);
    while (!(rc = read_key(r, "a worker", keys, &seen, &key, &end)) && !end) {
        if (key == 0) {
            rc = read_text(r, "worker id", w->id, sizeof w->id);
            if (!rc && strpbrk(w->id, " =\"'\\"))
                rc =
                    bad(r, line_of(r),
                        "worker id '%s': spaces, quotes, backslashes and = are not allowed", w->id);
        } else if (key == 1) {
            rc = next(r);
            if (!rc)
                rc = take_address(r, "worker address", w->address, sizeof w->address);
        } else {
            char text[32];

            rc = read_text(r, "worker layers", text, sizeof text);
            if (!rc && !layers_are_good(text, &w->layer_begin, &w->layer_end))
                rc = bad(r, line_of(r),
                         "worker layers '%s': BEGIN-END was expected, END not included and at most "
                         "%d, like 0-14",
                         text, LAYERS_MAX);
        }
        if (rc)
            return rc;
    }
    if (rc)
        return rc;
    r->c->n_workers++;
    return check_seen(r, w->line, "this worker", keys, seen, 7);
}

static int compare_workers(const void *a, const void *b)
{
    const struct nk_cluster_worker *x = a, *y = b;

    if (x->layer_begin != y->layer_begin)
        return x->layer_begin < y->layer_begin ? -1 : 1;
    return x->line < y->line ? -1 : 1;
}

/* The workers as a chain: each id and address once, ranges from 0 without gap or overlap. Sorts
 * them. */
static int check_workers(struct reader *r, int line)
{
    struct nk_cluster *c = r->c;

    if (!c->n_workers)
        return bad(r, line, "workers: the list is empty");
    qsort(c->workers, (size_t)c->n_workers, sizeof c->workers[0], compare_workers);
    for (int i = 0; i < c->n_workers; i++) {
        const struct nk_cluster_worker *w = &c->workers[i], *before = i ? w - 1 : NULL;

        for (int j = 0; j < i; j++) {
            const struct nk_cluster_worker *o = &c->workers[j];
            const struct nk_cluster_worker *first = o->line <= w->line ? o : w;
            const struct nk_cluster_worker *second = first == o ? w : o;

            if (!strcmp(w->id, o->id))
                return bad(r, second->line, "the worker id '%s' is given twice (first in line %d)",
                           w->id, first->line);
            if (!strcmp(w->address, o->address))
                return bad(r, second->line,
                           "worker %s has the address of worker %s (line %d), %.100s", second->id,
                           first->id, first->line, w->address);
        }
        if (!before && w->layer_begin != 0)
            return bad(r, w->line,
                       "the first layers are those of worker %s, %d-%d; nobody has layers 0-%d",
                       w->id, w->layer_begin, w->layer_end, w->layer_begin);
        if (before && w->layer_begin < before->layer_end)
            return bad(r, w->line,
                       "worker %s has layers %d-%d, which overlap those of worker %s, %d-%d", w->id,
                       w->layer_begin, w->layer_end, before->id, before->layer_begin,
                       before->layer_end);
        if (before && w->layer_begin > before->layer_end)
            return bad(r, w->line,
                       "nobody has layers %d-%d: worker %s ends at %d and worker %s begins at %d",
                       before->layer_end, w->layer_begin, before->id, before->layer_end, w->id,
                       w->layer_begin);
    }
    return 0;
}

/* After the list's first event. lines: of each spare. */
static int read_spares(struct reader *r, int lines[NK_CLUSTER_SPARES_MAX])
{
    struct nk_cluster *c = r->c;
    int rc = expect(r, YAML_SEQUENCE_START_EVENT, "a list of addresses (- HOST:PORT)");

    while (!rc && !(rc = next(r)) && r->event.type != YAML_SEQUENCE_END_EVENT) {
        if (c->n_spares == NK_CLUSTER_SPARES_MAX)
            return bad(r, line_of(r), "more than %d spares", NK_CLUSTER_SPARES_MAX);
        lines[c->n_spares] = line_of(r);
        rc = take_address(r, "spare", c->spares[c->n_spares++], sizeof c->spares[0]);
    }
    return rc;
}

/* A spare is a worker of its own: each address once. */
static int check_spares(struct reader *r, const int lines[NK_CLUSTER_SPARES_MAX])
{
    const struct nk_cluster *c = r->c;

    for (int i = 0; i < c->n_spares; i++) {
        for (int j = 0; j < i; j++)
            if (!strcmp(c->spares[i], c->spares[j]))
                return bad(r, lines[i], "the spare %.100s is given twice (first in line %d)",
                           c->spares[i], lines[j]);
        for (int j = 0; j < c->n_workers; j++)
            if (!strcmp(c->spares[i], c->workers[j].address))
                return bad(r, lines[i],
                           "the spare %.100s has the address of worker %s (line %d); a spare is "
                           "another worker, with the same layers",
                           c->spares[i], c->workers[j].id, c->workers[j].line);
    }
    return 0;
}

static int read_document(struct reader *r)
{
    static const char *const keys[] = { "model",    "tls",   "dtype",  "workers",
                                        "identity", "epoch", "spares", NULL };
    int spare_lines[NK_CLUSTER_SPARES_MAX];
    unsigned seen = 0;
    bool end;
    int key, line, workers_line = 1, rc = next(r); /* stream start */

    if (!rc)
        rc = next(r);
    if (!rc && r->event.type == YAML_STREAM_END_EVENT)
        rc = bad(r, 1, "the file is empty; model, dtype and workers were expected");
    if (!rc)
        rc = expect(r, YAML_DOCUMENT_START_EVENT, "a document");
    if (!rc)
        rc = next(r);
    if (!rc)
        rc = expect(r, YAML_MAPPING_START_EVENT, "keys (model, tls, dtype, workers)");
    if (rc)
        return rc;
    line = line_of(r);
    while (!(rc = read_key(r, "the file", keys, &seen, &key, &end)) && !end) {
        if (key == 0) {
            rc = read_model(r);
        } else if (key == 1) {
            rc = read_tls(r);
        } else if (key == 2) {
            rc = read_dtype(r);
        } else if (key == 4) {
            rc = read_path(r, "identity", r->c->identity, sizeof r->c->identity);
        } else if (key == 5) {
            rc = read_epoch(r);
        } else if (key == 6) {
            rc = next(r);
            if (!rc)
                rc = read_spares(r, spare_lines);
        } else {
            rc = next(r);
            workers_line = line_of(r);
            if (!rc)
                rc = expect(r, YAML_SEQUENCE_START_EVENT, "a list of workers (- id: ...)");
            while (!rc && !(rc = next(r)) && r->event.type != YAML_SEQUENCE_END_EVENT)
                rc = read_worker(r);
        }
        if (rc)
            return rc;
    }
    if (!rc)
        rc = check_seen(r, line, "the file", keys, seen, 1 | 8);
    if (!rc && r->c->identity[0] && r->c->tls_ca[0])
        rc = bad(r, line, "the file: 'tls' and 'identity' are both given; one of them is right");
    if (!rc)
        rc = check_workers(r, workers_line);
    if (!rc)
        rc = check_spares(r, spare_lines);
    if (!rc)
        rc = next(r); /* document end */
    if (!rc)
        rc = next(r);
    if (!rc && r->event.type != YAML_STREAM_END_EVENT)
        rc = bad(r, line_of(r), "a second document begins here; there may be one");
    return rc;
}

int nk_cluster_parse(struct nk_cluster **out, struct nk_bytes text, const char *name,
                     struct nk_error *err)
{
    struct reader r = { .name = name, .err = err };
    int rc;

    *out = NULL;
    if (text.size > CLUSTER_BYTES_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_cluster", "%s: %zu bytes are too many; at most %d",
                       name, text.size, CLUSTER_BYTES_MAX);
    r.c = calloc(1, sizeof *r.c);
    if (!r.c || !yaml_parser_initialize(&r.parser)) {
        free(r.c);
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    }
    if (strlen(name) >= sizeof r.c->path) {
        rc = nk_fail(err, NK_E_INVALID, "bad_cluster", "the path of the cluster file is too long");
        goto out;
    }
    strcpy(r.c->path, name);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&r.parser, text.data, text.size);
    rc = read_document(&r);
    if (!rc) {
        *out = r.c;
        r.c = NULL;
    }
out:
    if (r.has_event)
        yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    free(r.c);
    return rc;
}

int nk_cluster_read(struct nk_cluster **out, const char *path, struct nk_error *err)
{
    struct nk_error e;
    struct nk_buf text;
    int rc;

    *out = NULL;
    rc = nk_file_read(path, CLUSTER_BYTES_MAX, &text, &e);
    if (rc == NK_E_EXHAUSTED && !strcmp(e.reason, "too_large"))
        return nk_fail(err, NK_E_INVALID, "bad_cluster",
                       "%s: is larger than %d bytes; no cluster file is", path, CLUSTER_BYTES_MAX);
    if (rc && err)
        *err = e;
    if (rc)
        return rc;
    rc = nk_cluster_parse(out, (struct nk_bytes){ (const uint8_t *)nk_buf_str(&text), text.size },
                          path, err);
    nk_buf_release(&text);
    return rc;
}

/* ---- writing ---- */

struct writer {
    yaml_emitter_t emitter;
    struct nk_buf *out;
    struct nk_error *err;
    int rc;
};

static int write_some(void *data, unsigned char *bytes, size_t size)
{
    struct writer *w = data;

    w->rc = nk_buf_add(w->out, bytes, size, w->err);
    return w->rc == 0;
}

/* Hands over an event whose making succeeded (made); after a failure nothing more is done. */
static void emit(struct writer *w, int made, yaml_event_t *e)
{
    if (!made) {
        w->rc = w->rc ? w->rc : nk_fail(w->err, NK_E_EXHAUSTED, "no_memory", "no memory");
    } else if (w->rc) {
        yaml_event_delete(e);
    } else if (!yaml_emitter_emit(&w->emitter, e) && !w->rc) {
        w->rc = nk_fail(w->err, NK_E_INVALID, "bad_cluster", "cannot be written as YAML: %s",
                        w->emitter.problem ? w->emitter.problem : "no memory");
    }
}

static void emit_text(struct writer *w, const char *text)
{
    yaml_event_t e;

    emit(w,
         yaml_scalar_event_initialize(&e, NULL, NULL, (const yaml_char_t *)text, (int)strlen(text),
                                      1, 1, YAML_ANY_SCALAR_STYLE),
         &e);
}

static void emit_pair(struct writer *w, const char *key, const char *value)
{
    emit_text(w, key);
    emit_text(w, value);
}

static void emit_mapping(struct writer *w, bool begin)
{
    yaml_event_t e;

    emit(w,
         begin ? yaml_mapping_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_MAPPING_STYLE)
               : yaml_mapping_end_event_initialize(&e),
         &e);
}

static void emit_path(struct writer *w, const char *key, const char *path)
{
    struct nk_buf b = NK_BUF_INIT(2 * PATH_MAX);
    char folder[PATH_MAX];

    if (path[0] == '/') {
        emit_pair(w, key, path);
    } else if (!getcwd(folder, sizeof folder)) {
        w->rc = nk_fail(w->err, NK_E_PRECONDITION, "no_folder",
                        "the current folder's path cannot be read");
    } else {
        if (!w->rc)
            w->rc = nk_buf_addf(&b, w->err, "%s/%s", folder, path);
        emit_pair(w, key, nk_buf_str(&b));
        nk_buf_release(&b);
    }
}

int nk_cluster_format(const struct nk_cluster *c, struct nk_buf *out, struct nk_error *err)
{
    struct writer w = { .out = out, .err = err };
    yaml_event_t e;

    if (!yaml_emitter_initialize(&w.emitter))
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    yaml_emitter_set_output(&w.emitter, write_some, &w);
    yaml_emitter_set_unicode(&w.emitter, 1);
    yaml_emitter_set_width(&w.emitter, -1);
    emit(&w, yaml_stream_start_event_initialize(&e, YAML_UTF8_ENCODING), &e);
    emit(&w, yaml_document_start_event_initialize(&e, NULL, NULL, NULL, 1), &e);
    emit_mapping(&w, true);
    emit_text(&w, "model");
    emit_mapping(&w, true);
    emit_pair(&w, "id", c->model_id);
    emit_pair(&w, "sha256", c->model_sha256);
    if (c->vocab_path[0])
        emit_path(&w, "vocab", c->vocab_path);
    emit_mapping(&w, false);
    if (c->tls_ca[0]) {
        emit_text(&w, "tls");
        emit_mapping(&w, true);
        emit_path(&w, "ca", c->tls_ca);
        emit_path(&w, "certificate", c->tls_certificate);
        emit_path(&w, "key", c->tls_key);
        emit_mapping(&w, false);
    }
    if (c->identity[0])
        emit_path(&w, "identity", c->identity);
    if (c->epoch) {
        char epoch[24];

        snprintf(epoch, sizeof epoch, "%llu", (unsigned long long)c->epoch);
        emit_pair(&w, "epoch", epoch);
    }
    emit_pair(&w, "dtype", c->f16 ? "f16" : "f32");
    emit_text(&w, "workers");
    emit(&w, yaml_sequence_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_SEQUENCE_STYLE),
         &e);
    for (int i = 0; i < c->n_workers; i++) {
        char layers[32];

        snprintf(layers, sizeof layers, "%d-%d", c->workers[i].layer_begin,
                 c->workers[i].layer_end);
        emit_mapping(&w, true);
        emit_pair(&w, "id", c->workers[i].id);
        emit_pair(&w, "address", c->workers[i].address);
        emit_pair(&w, "layers", layers);
        emit_mapping(&w, false);
    }
    emit(&w, yaml_sequence_end_event_initialize(&e), &e);
    if (c->n_spares) {
        emit_text(&w, "spares");
        emit(&w, yaml_sequence_start_event_initialize(&e, NULL, NULL, 1, YAML_BLOCK_SEQUENCE_STYLE),
             &e);
        for (int i = 0; i < c->n_spares; i++)
            emit_text(&w, c->spares[i]);
        emit(&w, yaml_sequence_end_event_initialize(&e), &e);
    }
    emit_mapping(&w, false);
    emit(&w, yaml_document_end_event_initialize(&e, 1), &e);
    emit(&w, yaml_stream_end_event_initialize(&e), &e);
    yaml_emitter_delete(&w.emitter);
    return w.rc;
}
