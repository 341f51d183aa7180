#include "cluster/identity.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "cluster/cluster_int.h"

enum { JOINED_BYTES_MAX = 16384, READ_TRIES = 100 };

static int no_memory(struct nk_error *err)
{
    return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "out of memory");
}

static int cannot_create(const char *path, struct nk_error *err)
{
    int e = errno;

    if (e == ENOSPC || e == EDQUOT)
        return nk_fail(err, NK_E_EXHAUSTED, "no_space", "%s: %s", path, strerror(e));
    return nk_fail(err, e == EACCES || e == EPERM || e == EROFS ? NK_E_DENIED : NK_E_UNAVAILABLE,
                   "cannot_create", "%s: %s", path, strerror(e));
}

/* ---- folders ---- */
int nk__private_dir_make(const char *path, struct nk_error *err)
{
    char *copy = strdup(path);
    struct stat st;
    int rc;

    if (!copy)
        return no_memory(err);
    rc = nk_dir_make(dirname(copy), err);
    free(copy);
    if (rc)
        return rc;
    if (mkdir(path, 0700) == 0)
        return 0;
    if (errno == EEXIST && (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)))
        errno = ENOTDIR;
    return errno == EEXIST ? 0 : cannot_create(path, err);
}

int nk_state_dir(char **path, const char *state, const char *sub, struct nk_error *err)
{
    const char *xdg = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *base = NULL;
    int n, rc;

    *path = NULL;
    if (state)
        n = asprintf(&base, "%s", state);
    else if (xdg && xdg[0] == '/') /* the specification: others are to be ignored */
        n = asprintf(&base, "%s/nakshatra", xdg);
    else if (home && *home)
        n = asprintf(&base, "%s/.local/state/nakshatra", home);
    else
        return nk_fail(err, NK_E_PRECONDITION, "no_home",
                       "neither HOME nor XDG_STATE_HOME is set: say where state is kept (--state "
                       "DIR)");
    if (n < 0)
        return no_memory(err);
    rc = nk__private_dir_make(base, err);
    if (!rc && sub) {
        char *whole;

        if (asprintf(&whole, "%s/%s", base, sub) < 0)
            rc = no_memory(err);
        free(base);
        base = rc ? NULL : whole;
        if (!rc)
            rc = nk__private_dir_make(base, err);
    }
    if (rc)
        free(base);
    else
        *path = base;
    return rc;
}

int nk_secret_write(const char *path, struct nk_bytes text, struct nk_error *err)
{
    struct nk_newfile f = NK_NEWFILE_INIT;
    int rc = nk_newfile_open(&f, path, err);

    if (!rc && fchmod(f.fd, 0600) < 0) /* before the first byte is in it */
        rc = cannot_create(path, err);
    if (!rc)
        rc = nk_newfile_write(&f, text.data, text.size, err);
    if (!rc)
        rc = nk_newfile_commit(&f, err);
    nk_newfile_abort(&f);
    return rc;
}

/* What was done in a folder is on the disk. */
static int settle(const char *dir, struct nk_error *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

    if (fd < 0 || fsync(fd) < 0)
        rc = nk_fail(err, NK_E_DATA_LOSS, "write_failed", "%s: %s", dir, strerror(errno));
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Path of a name in a folder; false: too long. */
static bool join(char out[4096], const char *dir, const char *name)
{
    int n = snprintf(out, 4096, "%s/%s", dir, name);

    return n > 0 && n < 4096;
}

static int too_long(const char *dir, struct nk_error *err)
{
    return nk_fail(err, NK_E_INVALID, "bad_path", "%.200s...: the path is too long", dir);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static int remove_tree(const char *path)
{
    return nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

/* ---- the identity folder ---- */
/* A folder's number: its name is only digits; 0: it has none. */
static unsigned number_of(const char *name)
{
    size_t n = strspn(name, "0123456789");

    return n >= 4 && n <= 9 && !name[n] ? (unsigned)strtoul(name, NULL, 10) : 0;
}

static unsigned last_number(const char *dir)
{
    DIR *d = opendir(dir);
    unsigned last = 0;

    for (struct dirent *e; d && (e = readdir(d));)
        if (number_of(e->d_name) > last)
            last = number_of(e->d_name);
    if (d)
        closedir(d);
    return last;
}

/* All numbered folders but `keep`. What cannot be removed is tried again next time. */
static void remove_others(const char *dir, unsigned keep)
{
    DIR *d = opendir(dir);
    char path[4096];

    for (struct dirent *e; d && (e = readdir(d));)
        if (number_of(e->d_name) && number_of(e->d_name) != keep && join(path, dir, e->d_name))
            remove_tree(path);
    if (d)
        closedir(d);
}

/* dir/name becomes a link to target, in one step. */
static int swing(const char *dir, const char *name, const char *target, struct nk_error *err)
{
    char path[4096], tmp_name[64], tmp[4096];

    snprintf(tmp_name, sizeof tmp_name, ".%s.tmp", name);
    if (!join(path, dir, name) || !join(tmp, dir, tmp_name))
        return too_long(dir, err);
    if (unlink(tmp) < 0 && errno != ENOENT)
        return cannot_create(tmp, err);
    if (symlink(target, tmp) < 0)
        return cannot_create(tmp, err);
    if (rename(tmp, path) < 0) {
        int rc = cannot_create(path, err);

        unlink(tmp);
        return rc;
    }
    return settle(dir, err);
}

/* What `current` points to; false: nothing. */
static bool current_name(char name[16], const char *dir)
{
    char path[4096];
    ssize_t n = join(path, dir, "current") ? readlink(path, name, 15) : -1;

    if (n <= 0)
        return false;
    name[n] = '\0';
    name[strcspn(name, "/")] = '\0';
    return number_of(name) != 0;
}

static int write_into(const char *dir, struct nk_bytes ca, struct nk_bytes certificate,
                      struct nk_bytes key, struct nk_error *err)
{
    char path[4096];
    int rc;

    if (!join(path, dir, "certificate.pem"))
        return too_long(dir, err);
    rc = nk_file_write(path, certificate.data, certificate.size, err);
    if (!rc && join(path, dir, "ca.pem"))
        rc = nk_file_write(path, ca.data, ca.size, err);
    if (!rc && join(path, dir, "key.pem"))
        rc = nk_secret_write(path, key, err);
    return rc;
}

int nk_identity_write(const char *dir, struct nk_bytes ca, struct nk_bytes certificate,
                      struct nk_bytes key, struct nk_error *err)
{
    struct nk_certificate about;
    char name[16], now[16], path[4096];
    unsigned number;
    int rc = nk_certificate_check(&about, certificate, ca, err);

    if (!rc)
        rc = nk_certificate_fits_key(certificate, key, err);
    if (!rc)
        rc = nk__private_dir_make(dir, err);
    if (rc)
        return rc;
    number = last_number(dir) % 999999999u + 1;
    snprintf(name, sizeof name, "%04u", number);
    if (!join(path, dir, name))
        return too_long(dir, err);
    if (mkdir(path, 0700) < 0)
        return cannot_create(path, err);
    rc = write_into(path, ca, certificate, key, err);
    if (!rc)
        rc = settle(dir, err);
    if (!rc) /* first, so that who finds `current` finds it, too */
        rc = swing(dir, "ca.pem", "current/ca.pem", err);
    if (!rc)
        rc = swing(dir, "current", name, err);
    if (!rc)
        remove_others(dir, number);
    else if (!current_name(now, dir) || strcmp(now, name) != 0)
        remove_tree(path);
    return rc;
}

/* The three files of the folder at path. */
static int read_from(struct nk_identity_files *id, const char *dir, struct nk_error *err)
{
    char path[4096];
    int rc;

    /* What an earlier try has read. */
    nk_buf_release(&id->ca);
    nk_buf_release(&id->certificate);
    nk__forget(&id->key);
    if (!join(path, dir, "certificate.pem"))
        return too_long(dir, err);
    rc = nk_file_read(path, NK_PEM_BYTES_MAX, &id->certificate, err);
    if (!rc && join(path, dir, "ca.pem"))
        rc = nk_file_read(path, NK_PEM_BYTES_MAX, &id->ca, err);
    if (!rc && join(path, dir, "key.pem"))
        rc = nk_file_read_secret(path, NK_PEM_BYTES_MAX, &id->key, err);
    return rc;
}

static int bad_identity(const char *dir, struct nk_error *err)
{
    struct nk_error why = { .msg = "" };

    if (err)
        why = *err;
    return nk_fail(err, NK_E_DATA_LOSS, "bad_identity",
                   "the identity in %s is damaged: %s; remove that folder and join again with a "
                   "new token",
                   dir, why.msg);
}

int nk_identity_read(struct nk_identity_files *out, const char *dir, struct nk_error *err)
{
    struct nk_error own;
    char name[16], again[16], path[4096];
    int rc = NK_E_NOT_FOUND;

    if (!err)
        err = &own;
    *out = (struct nk_identity_files){ 0 };
    nk_buf_init(&out->ca, NK_PEM_BYTES_MAX);
    nk_buf_init(&out->certificate, NK_PEM_BYTES_MAX);
    nk_buf_init(&out->key, NK_PEM_BYTES_MAX);
    /* A renewal may take the folder away between two files: then there is another. */
    for (int i = 0; rc && i < READ_TRIES; i++) {
        if (!current_name(name, dir))
            return nk_fail(err, NK_E_NOT_FOUND, "no_identity",
                           "%s holds no identity: this machine has joined no cluster", dir);
        if (!join(path, dir, name))
            return too_long(dir, err);
        rc = read_from(out, path, err);
        if (rc && current_name(again, dir) && !strcmp(again, name))
            break;
    }
    if (!rc)
        rc = nk_certificate_check(
            &out->about,
            (struct nk_bytes){ (uint8_t *)out->certificate.data, out->certificate.size },
            (struct nk_bytes){ (uint8_t *)out->ca.data, out->ca.size }, err);
    if (!rc)
        rc = nk_certificate_fits_key(
            (struct nk_bytes){ (uint8_t *)out->certificate.data, out->certificate.size },
            (struct nk_bytes){ (uint8_t *)out->key.data, out->key.size }, err);
    if (rc) {
        nk_identity_release(out);
        rc = bad_identity(dir, err);
    }
    return rc;
}

void nk_identity_release(struct nk_identity_files *id)
{
    nk_buf_release(&id->ca);
    nk_buf_release(&id->certificate);
    nk__forget(&id->key);
    id->about = (struct nk_certificate){ 0 };
}

int nk_identity_remove(const char *dir, struct nk_error *err)
{
    char path[4096];

    if (!join(path, dir, "current"))
        return too_long(dir, err);
    /* First, so that what is left after a crash is no identity. */
    if ((unlink(path) < 0 && errno != ENOENT && errno != ENOTDIR) ||
        (remove_tree(dir) < 0 && errno != ENOENT))
        return nk_fail(err, NK_E_UNAVAILABLE, "cannot_remove", "%s: %s", dir, strerror(errno));
    return 0;
}

/* ---- the roster ---- */
int nk_members_write(const char *dir, const struct nk_roster *r, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    char path[4096];
    int rc = join(path, dir, "members") ? nk_roster_format(r, &text, err) : too_long(dir, err);

    if (!rc)
        rc = nk_file_write(path, text.data, text.size, err);
    nk_buf_release(&text);
    return rc;
}

int nk_members_read(struct nk_roster *out, const char *dir, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    char path[4096];
    int rc;

    *out = (struct nk_roster){ 0 };
    if (!join(path, dir, "members"))
        return too_long(dir, err);
    rc = nk_file_read(path, NK_ROSTER_BYTES_MAX, &text, err);
    if (!rc) {
        rc = nk_roster_parse(out, (struct nk_bytes){ (uint8_t *)text.data, text.size }, err);
        if (rc)
            nk_wrap(rc, err, "%s", path);
    }
    nk_buf_release(&text);
    return rc;
}

/* ---- joined.json ---- */
int nk_joined_write(const char *path, const struct nk_joined *j, struct nk_error *err)
{
    json_t *json = json_pack("{s:i, s:s, s:s, s:s, s:i, s:i, s:o}", "version", 1, "cluster",
                             j->cluster, "member", j->member, "name", j->name, "port", j->port,
                             "enrolment_port", j->enrolment_port, "addresses",
                             nk__json_of_addresses(j->addresses, j->n_addresses));
    char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
    int rc = text ? nk_file_write(path, text, strlen(text), err) : no_memory(err);

    free(text);
    json_decref(json);
    return rc;
}

static int read_joined(struct nk_joined *j, const struct nk_buf *text, const char *path,
                       struct nk_error *err)
{
    json_t *json = json_loadb(nk_buf_str(text), text->size, JSON_REJECT_DUPLICATES, NULL);
    const char *wrong = NULL;
    uint8_t cluster[(NK_CA_CLUSTER_SIZE - 1) / 2];
    int64_t port = 0, enrolment_port = 0;

    if (!json_is_object(json))
        wrong = "it is not a JSON object";
    else if (!nk__json_text(json, "cluster", j->cluster, sizeof j->cluster) ||
             !nk__unhex(cluster, sizeof cluster, j->cluster))
        wrong = "\"cluster\" is not 32 hex digits";
    else if (!nk__json_text(json, "member", j->member, sizeof j->member) ||
             !nk_member_id_is(j->member))
        wrong = "\"member\" is not 16 hex digits";
    else if (!nk__json_text(json, "name", j->name, sizeof j->name) || !nk_member_name_is(j->name))
        wrong = "\"name\" is no machine's name";
    else if (!nk__json_number(json, "port", 1, 65535, &port) ||
             !nk__json_number(json, "enrolment_port", 1, 65535, &enrolment_port))
        wrong = "\"port\" or \"enrolment_port\" is no port";
    else if ((j->n_addresses = nk__json_addresses(json, "addresses", j->addresses)) < 0)
        wrong = "\"addresses\" are not at most 10 addresses";
    j->port = (int)port;
    j->enrolment_port = (int)enrolment_port;
    json_decref(json);
    return wrong ? nk_fail(err, NK_E_DATA_LOSS, "bad_joined",
                           "%s is damaged: %s; join again with a new token", path, wrong)
                 : 0;
}

int nk_joined_read(struct nk_joined *out, const char *path, struct nk_error *err)
{
    struct nk_buf text = NK_BUF_INIT(JOINED_BYTES_MAX);
    struct nk_joined j = { 0 };
    int rc = nk_file_read(path, JOINED_BYTES_MAX, &text, err);

    if (!rc)
        rc = read_joined(&j, &text, path, err);
    if (!rc)
        *out = j;
    nk_buf_release(&text);
    return rc;
}
