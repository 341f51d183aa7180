#include "slice/seal_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "slice/hash_int.h"

static const char first_line[] = "nakshatra seal 1\n";

/* "seal 0000001234 SHA256\n" */
enum { SEAL_END = 5 + 10 + 1 + 64 + 1 };

static void hash_text(const char *text, size_t size, nk_sha256 *h, char hex[NK_SHA256_HEX])
{
    nk_sha256_add(h, text, size);
    nk_sha256_finish(h, hex);
}

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
}

int nk__seal_format(const struct nk__seal_part *parts, int n, struct nk_buf *out,
                    struct nk_error *err)
{
    nk_sha256 *h = nk_sha256_new();
    size_t begin = out->size;
    char hex[NK_SHA256_HEX];
    int rc = h ? nk_buf_adds(out, first_line, err) : no_memory(err);

    for (int i = 0; i < n && !rc; i++)
        rc = nk_buf_addf(out, err, "%" PRIu64 " %" PRIu64 " %s %s\n", parts[i].begin, parts[i].size,
                         parts[i].is_hole ? "-" : parts[i].sha256, parts[i].name);
    if (rc) {
        nk_sha256_free(h);
        return rc;
    }
    hash_text(out->data + begin, out->size - begin, h, hex);
    return nk_buf_addf(out, err, "seal %010zu %s\n", out->size - begin, hex);
}

/* ---- reading ---- */

static int damaged(struct nk_error *err, const char *what)
{
    return nk_fail(err, NK_E_DATA_LOSS, "damaged", "it is damaged: %s", what);
}

/* A decimal number and the space behind it; NULL when there is none. */
static char *take_number(char *at, uint64_t *out)
{
    char *end;

    if (*at < '0' || *at > '9')
        return NULL;
    errno = 0;
    *out = strtoull(at, &end, 10);
    return errno || *end != ' ' ? NULL : end + 1;
}

/* "BEGIN SIZE SHA256 NAME", which it cuts into its words. */
static bool parse_part(char *line, struct nk__seal_part *p)
{
    char *at = take_number(line, &p->begin), *space;

    at = at ? take_number(at, &p->size) : NULL;
    space = at ? strchr(at, ' ') : NULL;
    if (!space || !space[1])
        return false;
    *space = '\0';
    p->name = space + 1;
    p->is_hole = !strcmp(at, "-");
    if (!p->is_hole && !nk__is_sha256(at))
        return false;
    snprintf(p->sha256, sizeof p->sha256, "%s", p->is_hole ? "" : at);
    return true;
}

/* text: NUL-terminated lines. The parts must cover the file from its first byte to the seal. */
static int parse(struct nk__seal *s, char *text, struct nk_error *err)
{
    uint64_t at = 0;
    int n_lines = 0;

    for (const char *p = text; (p = strchr(p, '\n')); p++)
        n_lines++;
    s->parts = calloc((size_t)n_lines + 1, sizeof *s->parts);
    if (!s->parts)
        return no_memory(err);
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        struct nk__seal_part *p = &s->parts[s->n_parts++];

        *end = '\0';
        if (!parse_part(line, p) || p->begin != at || p->size > s->begin - at)
            return damaged(err, "its seal, the list of digests at its end, cannot be read");
        at += p->size;
    }
    if (at != s->begin || !s->n_parts)
        return damaged(err, "its seal, the list of digests at its end, is not of this file");
    return 0;
}

/* The last line: how long what is before it is, and its digest. False: there is none. */
static bool parse_end(const char end[SEAL_END], uint64_t *size, char sha256[NK_SHA256_HEX])
{
    char text[SEAL_END + 1], *digits;

    memcpy(text, end, SEAL_END);
    text[SEAL_END] = '\0';
    if (strncmp(text, "seal ", 5) != 0 || text[SEAL_END - 1] != '\n')
        return false;
    text[SEAL_END - 1] = '\0';
    digits = take_number(text + 5, size);
    if (digits != text + 16 || !nk__is_sha256(digits))
        return false;
    memcpy(sha256, digits, NK_SHA256_HEX);
    return true;
}

static int read_text(struct nk__seal *s, const struct nk__source *source, uint64_t size,
                     struct nk_error *err)
{
    nk_sha256 *h = nk_sha256_new();
    char hex[NK_SHA256_HEX];
    int rc;

    s->text = h ? malloc((size_t)size + 1) : NULL;
    if (!s->text) {
        nk_sha256_free(h);
        return no_memory(err);
    }
    rc = nk__source_read(source, s->begin, s->text, (size_t)size, err);
    if (rc) {
        nk_sha256_free(h);
        return rc;
    }
    s->text[size] = '\0';
    hash_text(s->text, (size_t)size, h, hex);
    if (strcmp(hex, s->sha256) != 0 || strncmp(s->text, first_line, sizeof first_line - 1) != 0 ||
        strlen(s->text) != size)
        return damaged(err, "its seal, the list of digests at its end, is not what was written");
    return parse(s, s->text + sizeof first_line - 1, err);
}

int nk__seal_read(struct nk__seal *s, const struct nk__source *source, bool expected,
                  struct nk_error *err)
{
    char end[SEAL_END];
    uint64_t size;
    int rc;

    *s = (struct nk__seal){ 0 };
    rc = source->size < SEAL_END
             ? 0
             : nk__source_read(source, source->size - SEAL_END, end, SEAL_END, err);
    if (rc)
        return rc;
    if (source->size < SEAL_END || !parse_end(end, &size, s->sha256))
        return expected
                   ? damaged(err,
                             "its seal, the list of digests at its end, is missing; it was cut off")
                   : 0;
    if (size > NK__SEAL_MAX || size > source->size - SEAL_END)
        return damaged(err, "its seal, the list of digests at its end, is longer than can be");
    s->begin = source->size - SEAL_END - size;
    rc = read_text(s, source, size, err);
    if (rc)
        nk__seal_release(s);
    return rc;
}

void nk__seal_release(struct nk__seal *s)
{
    free(s->parts);
    free(s->text);
    *s = (struct nk__seal){ 0 };
}
