/* An identity folder, read; and the judgement of a peer's certificate by it.
 *
 * gRPC is told not to verify certificates (credentials.c), and asks nk__identity_judge instead,
 * which has OpenSSL do it. The checks are the same; but OpenSSL's answer within gRPC's handshake is
 * lost but for "certificate verify failed", on both sides, and whoever sits before a machine whose
 * clock is a day off must be told just that. The time is the net's, so that tests can choose it. */
#include "rpc/identity.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include "base/file.h"
#include "base/log.h"
#include "rpc/certificate.h"
#include "rpc/identity_int.h"

enum {
    PEM_BYTES_MAX = 1 << 20,
    /* Every member with the longest role and name, and the first line. */
    ROSTER_BYTES_MAX =
        (NK_MEMBERS_MAX + 1) * (NK_MEMBER_ID_CHARS + 9 + NK_MEMBER_NAME_BYTES_MAX + 2),
};

#define ROSTER_HEAD "nakshatra-members 1 "

struct entry { /* the texts are the roster's */
    const char *id, *name;
    enum nk_role role;
};
struct roster {
    char *text;
    struct entry *entries; /* sorted by id */
    size_t n;
    uint64_t revision;
};

/* Which file was read last, to see whether it is another one now. */
struct seen {
    int sys; /* why there is none; 0: there is one */
    struct nk_file_id id;
};

struct nk_identity {
    _Atomic int refs;
    char *folder, *ca_path, *certificate_path, *key_path, *members_path;
    char cluster[NK_CLUSTER_ID_CHARS + 1], id[NK_MEMBER_ID_CHARS + 1];

    pthread_mutex_t mu; /* all below; held while a file is read */
    struct seen roster_seen, ca_seen, own_seen;
    struct roster roster;
    int roster_rc;
    struct nk_error roster_err;
    uint64_t generation; /* counts readings of the roster */
    X509_STORE *store;
    int store_rc;
    struct nk_error store_err;
    X509 *own; /* as it was read last */
};

const char *nk_role_text(enum nk_role role)
{
    return role == NK_ROLE_GATEWAY ? "gateway" : role == NK_ROLE_MEMBER ? "member" : "none";
}

/* ---- names ---- */

/* n hexadecimal digits in lower case, copied; what follows them, or NULL. */
static const char *take_hex(const char *p, size_t n, char *out)
{
    if (strspn(p, "0123456789abcdef") != n)
        return NULL;
    if (out) {
        memcpy(out, p, n);
        out[n] = '\0';
    }
    return p + n;
}

bool nk_member_uri_parse(const char *uri, char cluster[NK_CLUSTER_ID_CHARS + 1],
                         char id[NK_MEMBER_ID_CHARS + 1])
{
    static const char scheme[] = "spiffe://", middle[] = "/member/";
    char c[NK_CLUSTER_ID_CHARS + 1], m[NK_MEMBER_ID_CHARS + 1];
    const char *p = uri;

    if (strncmp(p, scheme, strlen(scheme)) != 0)
        return false;
    p = take_hex(p + strlen(scheme), NK_CLUSTER_ID_CHARS, c);
    if (!p || strncmp(p, middle, strlen(middle)) != 0)
        return false;
    p = take_hex(p + strlen(middle), NK_MEMBER_ID_CHARS, m);
    if (!p || *p)
        return false;
    memcpy(cluster, c, sizeof c);
    memcpy(id, m, sizeof m);
    return true;
}

/* ---- the roster ---- */

static int compare_entries(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->id, ((const struct entry *)b)->id);
}

static void roster_release(struct roster *r)
{
    free(r->text);
    free(r->entries);
    *r = (struct roster){ 0 };
}

static int bad_line(struct nk_error *err, size_t line, const char *what)
{
    return nk_fail(err, NK_E_INVALID, "bad_members", "line %zu: %s", line, what);
}

/* "nakshatra-members 1 REVISION" */
static int parse_head(char *line, uint64_t *revision, struct nk_error *err)
{
    const char *digits = line + strlen(ROSTER_HEAD);
    size_t n;

    if (strncmp(line, ROSTER_HEAD, strlen(ROSTER_HEAD)) != 0)
        return bad_line(err, 1, "\"" ROSTER_HEAD "REVISION\" was expected");
    n = strspn(digits, "0123456789");
    if (n == 0 || n > 19 || digits[n])
        return bad_line(err, 1, "the revision is no number of at most 19 digits");
    *revision = strtoull(digits, NULL, 10);
    return 0;
}

/* "ID ROLE NAME", cut up in place. */
static int parse_entry(struct entry *e, char *line, size_t number, struct nk_error *err)
{
    char *role = line + NK_MEMBER_ID_CHARS + 1, *name;

    if (!take_hex(line, NK_MEMBER_ID_CHARS, NULL) || line[NK_MEMBER_ID_CHARS] != ' ')
        return bad_line(err, number, "an ID of 16 hexadecimal digits in lower case was expected");
    role[-1] = '\0';
    name = strchr(role, ' ');
    if (!name || !name[1])
        return bad_line(err, number, "\"ID ROLE NAME\" was expected");
    *name++ = '\0';
    if (!strcmp(role, "member"))
        e->role = NK_ROLE_MEMBER;
    else if (!strcmp(role, "gateway"))
        e->role = NK_ROLE_GATEWAY;
    else
        return bad_line(err, number, "the role is neither \"member\" nor \"gateway\"");
    if (strlen(name) > NK_MEMBER_NAME_BYTES_MAX)
        return bad_line(err, number, "the name has more than 255 bytes");
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            return bad_line(err, number, "the name has a control character");
    e->id = line;
    e->name = name;
    return 0;
}

/* *out is owned by the caller: roster_release(). */
static int roster_parse(struct roster *out, struct nk_bytes text, struct nk_error *err)
{
    struct roster r = { 0 };
    size_t lines = 0;
    char *p, *end;
    int rc = 0;

    *out = r;
    if (text.size == 0 || text.data[text.size - 1] != '\n')
        return nk_fail(err, NK_E_INVALID, "bad_members",
                       text.size ? "the last line has no end: the file is torn"
                                 : "the file is empty");
    if (memchr(text.data, 0, text.size))
        return nk_fail(err, NK_E_INVALID, "bad_members", "there is a NUL in the file");
    for (size_t i = 0; i < text.size; i++)
        lines += text.data[i] == '\n';
    if (lines - 1 > NK_MEMBERS_MAX)
        return nk_fail(err, NK_E_INVALID, "bad_members", "%zu members; at most %d are possible",
                       lines - 1, NK_MEMBERS_MAX);
    r.text = malloc(text.size + 1);
    r.entries = calloc(lines, sizeof *r.entries);
    if (!r.text || !r.entries) {
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory for a roster");
        goto out;
    }
    memcpy(r.text, text.data, text.size);
    r.text[text.size] = '\0';
    p = r.text;
    for (size_t i = 0; !rc && i < lines; i++, p = end + 1) {
        end = strchr(p, '\n');
        *end = '\0';
        rc = i == 0 ? parse_head(p, &r.revision, err)
                    : parse_entry(&r.entries[r.n++], p, i + 1, err);
    }
    if (rc)
        goto out;
    qsort(r.entries, r.n, sizeof *r.entries, compare_entries);
    for (size_t i = 1; i < r.n && !rc; i++)
        if (!strcmp(r.entries[i - 1].id, r.entries[i].id))
            rc = nk_fail(err, NK_E_INVALID, "bad_members", "member %s is listed twice",
                         r.entries[i].id);
out:
    if (rc)
        roster_release(&r);
    *out = r;
    return rc;
}

int nk_roster_check(struct nk_bytes text, struct nk_error *err)
{
    struct roster r;
    int rc = roster_parse(&r, text, err), n = (int)r.n;

    roster_release(&r);
    return rc ? rc : n;
}

/* Is the file at path another one than was seen? Then that is what was seen. */
static bool has_changed(struct seen *s, const char *path)
{
    struct seen now = { 0 };
    struct stat st;

    if (stat(path, &st) < 0) {
        now.sys = errno;
    } else {
        now.id.dev = (uint64_t)st.st_dev;
        now.id.ino = (uint64_t)st.st_ino;
        now.id.size_bytes = (uint64_t)st.st_size;
        now.id.mtime_s = st.st_mtim.tv_sec;
        now.id.mtime_ns = st.st_mtim.tv_nsec;
        now.id.ctime_s = st.st_ctim.tv_sec;
        now.id.ctime_ns = st.st_ctim.tv_nsec;
    }
    if (now.sys == s->sys && !memcmp(&now.id, &s->id, sizeof now.id))
        return false;
    *s = now;
    return true;
}

/* mu held. What was seen is older than what is read, if they differ: then it is read again. */
static void refresh_roster(nk_identity *i)
{
    struct nk_buf text = { 0 };
    struct nk_error *err = &i->roster_err;
    struct roster r;
    char quoted[sizeof err->msg + 64];
    int rc;

    if (!has_changed(&i->roster_seen, i->members_path))
        return;
    rc = nk_file_read(i->members_path, ROSTER_BYTES_MAX, &text, err);
    if (!rc) {
        rc = roster_parse(&r, (struct nk_bytes){ (const uint8_t *)nk_buf_str(&text), text.size },
                          err);
        if (rc)
            nk_wrap(rc, err, "%s", i->members_path);
        nk_buf_release(&text);
    }
    if (rc && rc != NK_E_INVALID && rc != NK_E_NOT_FOUND)
        i->roster_seen.sys = -1; /* no descriptor, no memory: the next one tries again */
    i->generation++;
    i->roster_rc = rc;
    roster_release(&i->roster);
    if (rc) {
        nk_log(NK_LOG_RPC, NK_LOG_ERROR,
               "event=roster reason=%s msg=%s members=none effect=\"nobody is let in\"",
               err->reason, nk_log_quote(quoted, sizeof quoted, err->msg));
        return;
    }
    i->roster = r;
    nk_log(NK_LOG_RPC, NK_LOG_DEBUG, "event=roster members=%zu revision=%llu", r.n,
           (unsigned long long)r.revision);
}

/* mu held. */
static const struct entry *find(const nk_identity *i, const char *id)
{
    struct entry key = { .id = id };

    if (!i->roster.n)
        return NULL;
    return bsearch(&key, i->roster.entries, i->roster.n, sizeof key, compare_entries);
}

enum nk_role nk_identity_find(nk_identity *i, const char *id, struct nk_member *out)
{
    enum nk_role role = NK_ROLE_NONE;
    const struct entry *e;

    pthread_mutex_lock(&i->mu);
    refresh_roster(i);
    e = find(i, id);
    if (e) {
        role = e->role;
        if (out) {
            out->role = role;
            strcpy(out->id, e->id);
            strcpy(out->name, e->name);
        }
    }
    pthread_mutex_unlock(&i->mu);
    return role;
}

int nk_identity_roster(nk_identity *i, uint64_t *revision, struct nk_error *err)
{
    int rc;

    pthread_mutex_lock(&i->mu);
    refresh_roster(i);
    rc = i->roster_rc;
    if (rc && err)
        *err = i->roster_err;
    if (revision)
        *revision = i->roster.revision;
    pthread_mutex_unlock(&i->mu);
    return rc;
}

bool nk__identity_generation(nk_identity *i, uint64_t *generation)
{
    bool ok;

    pthread_mutex_lock(&i->mu);
    refresh_roster(i);
    *generation = i->generation;
    ok = !i->roster_rc;
    pthread_mutex_unlock(&i->mu);
    return ok;
}

enum nk_role nk__identity_role(nk_identity *i, const char *id)
{
    const struct entry *e;
    enum nk_role role;

    pthread_mutex_lock(&i->mu);
    e = find(i, id);
    role = e ? e->role : NK_ROLE_NONE;
    pthread_mutex_unlock(&i->mu);
    return role;
}

/* ---- certificates ---- */

enum naming { NAMES_MEMBER, NAMES_NOBODY, NAMES_SEVERAL, NAMES_ANOTHER };

/* What the URIs among the subject alternative names say; one, of a member, is right. */
static enum naming member_of(X509 *x, char cluster[NK_CLUSTER_ID_CHARS + 1],
                             char id[NK_MEMBER_ID_CHARS + 1])
{
    GENERAL_NAMES *names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
    int n_uris = 0;
    bool ok = false;

    for (int k = 0; k < sk_GENERAL_NAME_num(names); k++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, k);
        char uri[128];
        size_t size;

        if (name->type != GEN_URI)
            continue;
        n_uris++;
        size = (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
        if (size >= sizeof uri)
            continue;
        memcpy(uri, ASN1_STRING_get0_data(name->d.uniformResourceIdentifier), size);
        uri[size] = '\0';
        ok = strlen(uri) == size && nk_member_uri_parse(uri, cluster, id);
    }
    GENERAL_NAMES_free(names);
    ERR_clear_error();
    return n_uris == 0  ? NAMES_NOBODY
           : n_uris > 1 ? NAMES_SEVERAL
           : ok         ? NAMES_MEMBER
                        : NAMES_ANOTHER;
}

static int fail_naming(enum naming naming, int code, const char *reason, struct nk_error *err)
{
    return nk_fail(err, code, reason,
                   "the certificate names no member: it has %s, and one like "
                   "spiffe://CLUSTER/member/ID was expected",
                   naming == NAMES_NOBODY    ? "no URI"
                   : naming == NAMES_SEVERAL ? "several URIs"
                                             : "another URI");
}

/* mu held. */
static void refresh_store(nk_identity *i)
{
    X509_STORE *store = NULL;
    struct nk_buf pem = { 0 };
    int rc;

    if (!has_changed(&i->ca_seen, i->ca_path))
        return;
    rc = nk_file_read(i->ca_path, PEM_BYTES_MAX, &pem, &i->store_err);
    if (!rc) {
        rc = nk__certificate_store(&store, nk_buf_str(&pem), "bad_identity", &i->store_err);
        if (rc)
            nk_wrap(rc, &i->store_err, "%s", i->ca_path);
        nk_buf_release(&pem);
    }
    X509_STORE_free(i->store);
    i->store = store;
    i->store_rc = rc;
}

static X509_STORE *get_store(nk_identity *i, struct nk_error *err)
{
    X509_STORE *store;

    pthread_mutex_lock(&i->mu);
    refresh_store(i);
    store = i->store;
    if (store)
        X509_STORE_up_ref(store);
    else if (err)
        *err = i->store_err;
    pthread_mutex_unlock(&i->mu);
    return store;
}

int nk__identity_judge(nk_identity *i, const char *pem, bool is_client, int64_t now_s,
                       char id[NK_MEMBER_ID_CHARS + 1], struct nk_error *err)
{
    char cluster[NK_CLUSTER_ID_CHARS + 1];
    X509_STORE *store = get_store(i, err);
    X509 *x = nk__certificate_parse(pem);
    struct nk__certificate_question q;
    enum naming naming;
    int rc = 0;

    id[0] = '\0';
    if (!store) {
        rc = NK_E_DENIED;
        goto out;
    }
    if (!x) {
        rc = pem[0] ? nk_fail(err, NK_E_DENIED, "bad_certificate", "the certificate cannot be read")
                    : nk_fail(err, NK_E_DENIED, "no_certificate", "it has shown no certificate");
        goto out;
    }
    /* Who it says it is comes first: with it the other sentences have a name. */
    naming = member_of(x, cluster, id);
    q = (struct nk__certificate_question){
        .store = store,
        .purpose = is_client ? X509_PURPOSE_SSL_CLIENT : X509_PURPOSE_SSL_SERVER,
        .now_s = now_s,
        .ca = "this cluster's CA",
    };
    rc = nk__certificate_verify(&q, x, err);
    if (!rc && naming != NAMES_MEMBER)
        rc = fail_naming(naming, NK_E_DENIED, "bad_certificate", err);
    if (!rc && strcmp(cluster, i->cluster) != 0)
        rc = nk_fail(err, NK_E_DENIED, "wrong_cluster",
                     "its cluster is %s, and this machine's is %s", cluster, i->cluster);
    if (!rc && !nk_identity_find(i, id, NULL)) {
        rc = nk_identity_roster(i, NULL, err);
        if (rc)
            rc = nk_wrap(NK_E_DENIED, err, "nobody is let in");
        else
            rc = nk_fail(err, NK_E_DENIED, "not_a_member",
                         "it is not on this cluster's roster (any more)");
    }
    if (rc && id[0])
        nk_wrap(rc, err, "member %s", id);
out:
    if (rc)
        id[0] = '\0';
    X509_free(x);
    X509_STORE_free(store);
    return rc;
}

X509 *nk__identity_own(nk_identity *i)
{
    struct nk_buf pem = { 0 };
    X509 *x = NULL;

    pthread_mutex_lock(&i->mu);
    if (has_changed(&i->own_seen, i->certificate_path) &&
        !nk_file_read(i->certificate_path, PEM_BYTES_MAX, &pem, NULL)) {
        x = nk__certificate_parse(nk_buf_str(&pem));
        if (x) {
            X509_free(i->own);
            i->own = x;
        }
        nk_buf_release(&pem);
    }
    x = i->own;
    X509_up_ref(x);
    pthread_mutex_unlock(&i->mu);
    return x;
}

X509_STORE *nk__identity_store(nk_identity *i)
{
    return get_store(i, NULL);
}

/* ---- the folder ---- */

static char *join(const char *folder, const char *name)
{
    char *path = malloc(strlen(folder) + strlen(name) + 2);

    if (path)
        sprintf(path, "%s/%s", folder, name);
    return path;
}

static int bad(const char *path, const char *what, struct nk_error *err)
{
    return nk_fail(err, NK_E_INVALID, "bad_identity", "%s: %s", path, what);
}

/* The certificate and its key, which are read once at first, and by gRPC from then on. */
static int read_own(nk_identity *i, struct nk_error *err)
{
    struct nk_buf certificate = { 0 }, key = { 0 };
    X509_STORE *store = get_store(i, err);
    EVP_PKEY *pkey = NULL;
    X509 *x = NULL;
    BIO *bio = NULL;
    struct nk__certificate_question q;
    struct nk_error e;
    enum naming naming;
    int rc = store ? 0 : i->store_rc;

    if (!rc)
        rc = nk_file_read(i->certificate_path, PEM_BYTES_MAX, &certificate, err);
    if (!rc)
        rc = nk_file_read_secret(i->key_path, PEM_BYTES_MAX, &key, err);
    if (rc)
        goto out;
    x = nk__certificate_parse(nk_buf_str(&certificate));
    if (!x) {
        rc = bad(i->certificate_path, "no PEM certificate can be read", err);
        goto out;
    }
    bio = BIO_new_mem_buf(nk_buf_str(&key), -1);
    pkey = bio ? PEM_read_bio_PrivateKey(bio, NULL, nk__no_password, NULL) : NULL;
    if (!pkey)
        rc = bad(i->key_path, "no unencrypted PEM private key can be read", err);
    else if (X509_check_private_key(x, pkey) != 1)
        rc = bad(i->key_path, "it does not belong to the certificate", err);
    if (rc)
        goto out;
    naming = member_of(x, i->cluster, i->id);
    if (naming != NAMES_MEMBER) {
        rc = fail_naming(naming, NK_E_INVALID, "bad_identity", err);
        nk_wrap(rc, err, "%s", i->certificate_path);
        goto out;
    }
    q = (struct nk__certificate_question){
        .store = store,
        .purpose = X509_PURPOSE_ANY,
        .now_s = NK__CERTIFICATE_NO_TIME,
        .ca = "this cluster's CA",
    };
    if (nk__certificate_verify(&q, x, &e))
        rc = bad(i->certificate_path, e.msg, err);
    if (!rc) {
        i->own = x;
        x = NULL;
    }
out:
    ERR_clear_error();
    X509_STORE_free(store);
    BIO_free(bio);
    EVP_PKEY_free(pkey);
    X509_free(x);
    if (key.data)
        explicit_bzero(key.data, key.capacity);
    nk_buf_release(&key);
    nk_buf_release(&certificate);
    return rc;
}

int nk_identity_open(nk_identity **out, const char *folder, struct nk_error *err)
{
    nk_identity *i = calloc(1, sizeof *i);
    int rc;

    *out = NULL;
    if (!i)
        return nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    atomic_init(&i->refs, 1);
    pthread_mutex_init(&i->mu, NULL);
    i->roster_seen.sys = i->ca_seen.sys = i->own_seen.sys = -1; /* nothing was seen yet */
    i->folder = strdup(folder);
    i->ca_path = join(folder, "ca.pem");
    i->certificate_path = join(folder, "current/certificate.pem");
    i->key_path = join(folder, "current/key.pem");
    i->members_path = join(folder, "members");
    if (!i->folder || !i->ca_path || !i->certificate_path || !i->key_path || !i->members_path)
        rc = nk_fail(err, NK_E_EXHAUSTED, "no_memory", "no memory");
    else
        rc = read_own(i, err);
    if (rc) {
        nk_identity_unref(i);
        return rc;
    }
    nk_identity_roster(i, NULL, NULL); /* logs what is wrong with it */
    *out = i;
    return 0;
}

nk_identity *nk_identity_ref(nk_identity *i)
{
    atomic_fetch_add(&i->refs, 1);
    return i;
}

void nk_identity_unref(nk_identity *i)
{
    if (!i || atomic_fetch_sub(&i->refs, 1) != 1)
        return;
    roster_release(&i->roster);
    X509_STORE_free(i->store);
    X509_free(i->own);
    pthread_mutex_destroy(&i->mu);
    free(i->folder);
    free(i->ca_path);
    free(i->certificate_path);
    free(i->key_path);
    free(i->members_path);
    free(i);
}

const char *nk_identity_folder(const nk_identity *i)
{
    return i->folder;
}

const char *nk_identity_cluster(const nk_identity *i)
{
    return i->cluster;
}

const char *nk_identity_id(const nk_identity *i)
{
    return i->id;
}

const char *nk__identity_ca_path(const nk_identity *i)
{
    return i->ca_path;
}

const char *nk__identity_certificate_path(const nk_identity *i)
{
    return i->certificate_path;
}

const char *nk__identity_key_path(const nk_identity *i)
{
    return i->key_path;
}
