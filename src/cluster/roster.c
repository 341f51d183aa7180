#include "cluster/roster.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"

static const char magic[] = "nakshatra-members";

void nk_roster_release(struct nk_roster *r)
{
    free(r->members);
    *r = (struct nk_roster){ 0 };
}

static bool letter_or_digit(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool name_character(char c)
{
    return letter_or_digit(c) || c == '-' || c == '_' || c == '.';
}

bool nk_member_name_is(const char *name)
{
    size_t size = strnlen(name, NK_MEMBER_NAME_SIZE);

    if (!size || size == NK_MEMBER_NAME_SIZE || !letter_or_digit(name[0]))
        return false;
    for (size_t i = 1; i < size; i++)
        if (!name_character(name[i]))
            return false;
    return true;
}

void nk_member_name_make(char name[NK_MEMBER_NAME_SIZE], const char *host)
{
    size_t n = 0;

    for (; *host && *host != '.' && n < NK_MEMBER_NAME_SIZE - 1; host++)
        if (n || letter_or_digit(*host))
            name[n++] = name_character(*host) ? *host : '-';
    while (n && !letter_or_digit(name[n - 1]))
        n--;
    name[n] = '\0';
    if (!n)
        snprintf(name, NK_MEMBER_NAME_SIZE, "machine");
}

static struct nk_roster_member *find(const struct nk_roster *r, const char *id)
{
    for (size_t i = 0; i < r->n; i++)
        if (!strcmp(r->members[i].id, id))
            return &r->members[i];
    return NULL;
}

const struct nk_roster_member *nk_roster_find(const struct nk_roster *r, const char *id)
{
    return find(r, id);
}

static int check_member(const char *id, const char *name, struct nk_error *err)
{
    if (!nk_member_id_is(id))
        return nk_fail(err, NK_E_INVALID, "bad_member", "a member's id is 16 hex digits");
    if (!nk_member_name_is(name))
        return nk_fail(err, NK_E_INVALID, "bad_name",
                       "a machine's name has 1 to %d letters, digits, '-', '_' or '.', and begins "
                       "with a letter or digit",
                       NK_MEMBER_NAME_SIZE - 1);
    return 0;
}

static int add(struct nk_roster *r, const char *id, bool gateway, const char *name,
               struct nk_error *err)
{
    struct nk_roster_member *m;
    int rc = nk_array_grow(r->members, r->capacity, r->n + 1, NK_ROSTER_MEMBERS_MAX, err);

    if (rc)
        return rc;
    m = &r->members[r->n++];
    *m = (struct nk_roster_member){ .gateway = gateway };
    snprintf(m->id, sizeof m->id, "%s", id);
    snprintf(m->name, sizeof m->name, "%s", name);
    return 0;
}

int nk_roster_put(struct nk_roster *r, const char *id, bool gateway, const char *name,
                  struct nk_error *err)
{
    struct nk_roster_member *m;
    int rc = check_member(id, name, err);

    if (rc)
        return rc;
    m = find(r, id);
    if (!m)
        return add(r, id, gateway, name, err);
    m->gateway = gateway;
    snprintf(m->name, sizeof m->name, "%s", name);
    return 0;
}

int nk_roster_format(const struct nk_roster *r, struct nk_buf *out, struct nk_error *err)
{
    int rc = nk_buf_addf(out, err, "%s 1 %" PRIu64 "\n", magic, r->revision);

    for (size_t i = 0; !rc && i < r->n; i++)
        rc = nk_buf_addf(out, err, "%s %s %s\n", r->members[i].id,
                         r->members[i].gateway ? "gateway" : "member", r->members[i].name);
    return rc;
}

/* ---- parsing ---- */
static int bad_line(size_t line, const char *what, struct nk_error *err)
{
    return nk_fail(err, NK_E_INVALID, "bad_roster", "line %zu of the roster is not %s", line, what);
}

static bool read_head(uint64_t *revision, const char *line)
{
    char after;

    /* %n would not say what came after the number. */
    if (strncmp(line, magic, sizeof magic - 1) != 0 ||
        strncmp(line + sizeof magic - 1, " 1 ", 3) != 0)
        return false;
    line += sizeof magic - 1 + 3;
    return *line >= '0' && *line <= '9' && strlen(line) <= 19 &&
           sscanf(line, "%" SCNu64 "%c", revision, &after) == 1;
}

/* "ID ROLE NAME" */
static int read_member(struct nk_roster *r, const char *line, size_t number, struct nk_error *err)
{
    char id[NK_MEMBER_ID_SIZE];
    const char *p = line + sizeof id;
    bool gateway;

    if (strlen(line) < sizeof id || line[sizeof id - 1] != ' ')
        return bad_line(number, "ID ROLE NAME", err);
    memcpy(id, line, sizeof id - 1);
    id[sizeof id - 1] = '\0';
    gateway = !strncmp(p, "gateway ", 8);
    if (!gateway && strncmp(p, "member ", 7) != 0)
        return bad_line(number, "ID ROLE NAME with a role that is gateway or member", err);
    p += gateway ? 8 : 7;
    if (!nk_member_id_is(id) || !nk_member_name_is(p))
        return bad_line(number, "ID ROLE NAME", err);
    return add(r, id, gateway, p, err);
}

static int by_id(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Twice the same id: two roles for one machine. */
static int check_ids(const struct nk_roster *r, struct nk_error *err)
{
    const char **ids = malloc((r->n + 1) * sizeof *ids);
    int rc = 0;

    if (!ids)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
    for (size_t i = 0; i < r->n; i++)
        ids[i] = r->members[i].id;
    qsort(ids, r->n, sizeof *ids, by_id);
    for (size_t i = 1; !rc && i < r->n; i++)
        if (!strcmp(ids[i - 1], ids[i]))
            rc = nk_fail(err, NK_E_INVALID, "bad_roster", "the roster has member %s twice", ids[i]);
    free(ids);
    return rc;
}

int nk_roster_parse(struct nk_roster *out, struct nk_bytes text, struct nk_error *err)
{
    const char *p = (const char *)text.data, *end = p + text.size;
    struct nk_roster r = { 0 };
    size_t number = 0;
    int rc = 0;

    *out = (struct nk_roster){ 0 };
    if (text.size > NK_ROSTER_BYTES_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_roster", "the roster is larger than 1 MiB");
    while (!rc && p < end) {
        const char *nl = memchr(p, '\n', (size_t)(end - p));
        size_t size = nl ? (size_t)(nl - p) : 0;
        char line[128];

        number++;
        if (!nl || size >= sizeof line || memchr(p, '\0', size)) {
            rc = bad_line(number, "a line", err);
            break;
        }
        memcpy(line, p, size);
        line[size] = '\0';
        if (number > 1)
            rc = read_member(&r, line, number, err);
        else if (!read_head(&r.revision, line))
            rc = bad_line(number, "'nakshatra-members 1 REVISION'", err);
        p = nl + 1;
    }
    if (!rc && !number)
        rc = nk_fail(err, NK_E_INVALID, "bad_roster", "the roster is empty");
    if (!rc)
        rc = check_ids(&r, err);
    if (rc)
        nk_roster_release(&r);
    else
        *out = r;
    return rc;
}
