#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/log.h"
#include "identity_test.h"
#include "rpc/identity_int.h"

#define HEAD  "nakshatra-members 1 7\n"
#define URI_A "URI:spiffe://" CLUSTER_A "/member/" ID_A
#define URI_B "URI:spiffe://" CLUSTER_A "/member/" ID_B

static struct authority ca, stranger;
static char folder[FOLDER_MAX];
static int64_t now_s;

static int setup(void **state)
{
    (void)state;
    now_s = (int64_t)time(NULL);
    ca = authority_make(now_s);
    stranger = authority_make(now_s);
    folder_make(folder, &ca, URI_A, HEAD ID_A " gateway attic\n" ID_B " member my laptop\n", now_s);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    folder_remove(folder);
    authority_release(&ca);
    authority_release(&stranger);
    return 0;
}

static nk_identity *opened(void)
{
    struct nk_error e;
    nk_identity *i;

    if (nk_identity_open(&i, folder, &e))
        fail_msg("%s", e.msg);
    return i;
}

static void refuse(int code, const char *reason, const char *part)
{
    struct nk_error e = { 0 };
    nk_identity *i = NULL;
    int rc = nk_identity_open(&i, folder, &e);

    assert_null(i);
    if (rc != code || strcmp(e.reason, reason) != 0 || !strstr(e.msg, part))
        fail_msg("%d %s: %s; expected %d %s ... %s", rc, e.reason, e.msg, code, reason, part);
}

static void remove_file(const char *name)
{
    char path[PATHS_MAX];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    assert_int_equal(unlink(path), 0);
}

/* ---- the folder ---- */

static void test_identity__a_folder_tells_who_this_is_and_who_else(void **state)
{
    nk_identity *i = opened();
    struct nk_member m;
    uint64_t revision;

    (void)state;
    assert_string_equal(nk_identity_cluster(i), CLUSTER_A);
    assert_string_equal(nk_identity_id(i), ID_A);
    assert_string_equal(nk_identity_folder(i), folder);
    assert_int_equal(nk_identity_roster(i, &revision, NULL), 0);
    assert_int_equal(revision, 7);
    assert_int_equal(nk_identity_find(i, ID_A, &m), NK_ROLE_GATEWAY);
    assert_string_equal(m.name, "attic");
    assert_int_equal(nk_identity_find(i, ID_B, &m), NK_ROLE_MEMBER);
    assert_string_equal(m.id, ID_B);
    assert_string_equal(m.name, "my laptop");
    assert_int_equal(nk_identity_find(i, ID_C, &m), NK_ROLE_NONE);
    assert_int_equal(nk_identity_find(i, "", NULL), NK_ROLE_NONE);
    nk_identity_unref(i);
}

static void test_identity__a_folder_that_is_not_whole_is_refused_by_name(void **state)
{
    char path[PATHS_MAX];
    EVP_PKEY *other = EVP_EC_gen("P-256");

    (void)state;
    snprintf(path, sizeof path, "%s/current/key.pem", folder);
    assert_int_equal(chmod(path, 0644), 0);
    refuse(NK_E_DENIED, "open_to_others", "key.pem");
    write_pem(folder, "current/key.pem", NULL, other);
    EVP_PKEY_free(other);
    refuse(NK_E_INVALID, "bad_identity", "does not belong");
    assert_int_equal(truncate(path, 3), 0);
    refuse(NK_E_INVALID, "bad_identity", "no unencrypted PEM private key");
    remove_file("current/key.pem");
    refuse(NK_E_NOT_FOUND, "no_file", "key.pem");
    folder_renew(folder, &stranger, URI_A, now_s - 60, now_s + DAY_S);
    refuse(NK_E_INVALID, "bad_identity", "not of this cluster's CA");
    folder_renew(folder, &ca, NULL, now_s - 60, now_s + DAY_S);
    refuse(NK_E_INVALID, "bad_identity", "no URI");
    folder_renew(folder, &ca, URI_A "," URI_B, now_s - 60, now_s + DAY_S);
    refuse(NK_E_INVALID, "bad_identity", "several URIs");
    folder_renew(folder, &ca, "URI:spiffe://" CLUSTER_A "/member/" ID_A "/x", now_s - 60,
                 now_s + DAY_S);
    refuse(NK_E_INVALID, "bad_identity", "another URI");
    folder_renew(folder, &ca, URI_A, now_s - 60, now_s + DAY_S);
    nk_identity_unref(opened());
    snprintf(path, sizeof path, "%s/ca.pem", folder);
    assert_int_equal(truncate(path, 20), 0);
    refuse(NK_E_INVALID, "bad_identity", "ca.pem: no PEM certificate");
    remove_file("ca.pem");
    refuse(NK_E_NOT_FOUND, "no_file", "ca.pem");
    folder_remove(folder);
    refuse(NK_E_NOT_FOUND, "no_file", folder);
}

static void test_identity__an_expired_certificate_opens_since_it_can_be_renewed(void **state)
{
    (void)state;
    folder_renew(folder, &ca, URI_A, now_s - 3 * DAY_S, now_s - DAY_S);
    nk_identity_unref(opened());
}

/* ---- the roster ---- */

static void test_identity__a_roster_is_read_again_when_it_is_replaced(void **state)
{
    nk_identity *i = opened();

    (void)state;
    folder_roster(folder, HEAD ID_C " member cellar\n");
    assert_int_equal(nk_identity_find(i, ID_C, NULL), NK_ROLE_MEMBER);
    assert_int_equal(nk_identity_find(i, ID_B, NULL), NK_ROLE_NONE);
    folder_roster(folder, HEAD ID_C " gateway cellar\n"); /* the same size */
    folder_roster(folder, HEAD ID_B " gateway cellar\n");
    assert_int_equal(nk_identity_find(i, ID_C, NULL), NK_ROLE_NONE);
    assert_int_equal(nk_identity_find(i, ID_B, NULL), NK_ROLE_GATEWAY);
    nk_identity_unref(i);
}

static void
test_identity__a_roster_that_is_missing_or_torn_lists_nobody_until_it_is_whole(void **state)
{
    nk_identity *i = opened();
    struct nk_error e;

    (void)state;
    folder_roster(folder, HEAD ID_A " gateway attic\n" ID_B " member my lap");
    assert_int_equal(nk_identity_find(i, ID_A, NULL), NK_ROLE_NONE);
    assert_int_equal(nk_identity_roster(i, NULL, &e), NK_E_INVALID);
    assert_string_equal(e.reason, "bad_members");
    assert_non_null(strstr(e.msg, "torn"));
    remove_file("members");
    assert_int_equal(nk_identity_find(i, ID_A, NULL), NK_ROLE_NONE);
    assert_int_equal(nk_identity_roster(i, NULL, &e), NK_E_NOT_FOUND);
    folder_roster(folder, HEAD ID_A " gateway attic\n");
    assert_int_equal(nk_identity_find(i, ID_A, NULL), NK_ROLE_GATEWAY);
    assert_int_equal(nk_identity_roster(i, NULL, NULL), 0);
    nk_identity_unref(i);
}

static void check(const char *text, size_t size, int expected, const char *part)
{
    struct nk_error e = { 0 };
    int rc = nk_roster_check((struct nk_bytes){ (const uint8_t *)text, size }, &e);

    if (rc != expected || (rc < 0 && (strcmp(e.reason, "bad_members") || !strstr(e.msg, part))))
        fail_msg("%.60s: %d %s; expected %d %s", text, rc, e.msg, expected, part);
}

static void test_roster__takes_only_lines_of_its_form(void **state)
{
    char long_name[600];

    (void)state;
#define CHECK(text, expected, part) check(text, sizeof(text) - 1, expected, part)
    CHECK(HEAD, 0, "");
    CHECK(HEAD ID_A " member a\n" ID_B " gateway b c  d\n", 2, "");
    CHECK("", NK_E_INVALID, "empty");
    CHECK(HEAD ID_A " member a", NK_E_INVALID, "torn");
    CHECK("nakshatra-members 2 7\n", NK_E_INVALID, "line 1");
    CHECK("nakshatra-members 1 \n", NK_E_INVALID, "line 1: the revision");
    CHECK("nakshatra-members 1 -7\n", NK_E_INVALID, "line 1: the revision");
    CHECK("nakshatra-members 1 7 \n", NK_E_INVALID, "line 1: the revision");
    CHECK("nakshatra-members 1 99999999999999999999\n", NK_E_INVALID, "line 1: the revision");
    CHECK(ID_A " member a\n", NK_E_INVALID, "line 1");
    CHECK(HEAD "\n", NK_E_INVALID, "line 2");
    CHECK(HEAD ID_A "\n", NK_E_INVALID, "line 2");
    CHECK(HEAD ID_A " \n", NK_E_INVALID, "line 2");
    CHECK(HEAD ID_A " member\n", NK_E_INVALID, "line 2: \"ID ROLE NAME\"");
    CHECK(HEAD ID_A " member \n", NK_E_INVALID, "line 2: \"ID ROLE NAME\"");
    CHECK(HEAD ID_A "0 member a\n", NK_E_INVALID, "line 2: an ID");
    CHECK(HEAD "00000000000000AA member a\n", NK_E_INVALID, "line 2: an ID");
    CHECK(HEAD "0000000000000aa member a\n", NK_E_INVALID, "line 2: an ID");
    CHECK(HEAD ID_A " owner a\n", NK_E_INVALID, "line 2: the role");
    CHECK(HEAD ID_A " member a\tb\n", NK_E_INVALID, "line 2: the name");
    CHECK(HEAD ID_A " member a\0b\n", NK_E_INVALID, "NUL");
    CHECK(HEAD ID_A " member a\n" ID_B " member b\n" ID_A " gateway a\n", NK_E_INVALID,
          "listed twice");
    snprintf(long_name, sizeof long_name, HEAD ID_A " member %0256d\n", 0);
    check(long_name, strlen(long_name), NK_E_INVALID, "255 bytes");
    snprintf(long_name, sizeof long_name, HEAD ID_A " member %0255d\n", 0);
    check(long_name, strlen(long_name), 1, "");
}

static void test_roster__every_prefix_of_one_is_torn_or_ends_with_a_line(void **state)
{
    static const char text[] = HEAD ID_A " gateway attic\n" ID_B " member my laptop\n";
    struct nk_error e;

    (void)state;
    for (size_t n = 0; n < sizeof text - 1; n++) {
        char *copy = malloc(n + 1); /* of its very size, for AddressSanitizer */
        int rc;

        memcpy(copy, text, n);
        rc = nk_roster_check((struct nk_bytes){ (const uint8_t *)copy, n }, &e);
        assert_true(rc < 0 || text[n - 1] == '\n');
        free(copy);
    }
}

static void test_roster__holds_4096_members_and_no_more(void **state)
{
    struct nk_buf b = NK_BUF_INIT(1 << 20);
    nk_identity *i = opened();
    struct nk_error e;
    char id[17];

    (void)state;
    assert_int_equal(nk_buf_adds(&b, HEAD, NULL), 0);
    for (int n = 0; n < NK_MEMBERS_MAX; n++)
        assert_int_equal(nk_buf_addf(&b, NULL, "%016x member m%d\n", n * 7919 % NK_MEMBERS_MAX, n),
                         0);
    folder_roster(folder, b.data);
    for (int n = 0; n < NK_MEMBERS_MAX; n++) {
        snprintf(id, sizeof id, "%016x", n);
        assert_int_equal(nk_identity_find(i, id, NULL), NK_ROLE_MEMBER);
    }
    nk_buf_adds(&b, "ffffffffffffffff member one too many\n", NULL);
    folder_roster(folder, b.data);
    assert_int_equal(nk_identity_roster(i, NULL, &e), NK_E_INVALID);
    assert_non_null(strstr(e.msg, "4097 members"));
    nk_buf_release(&b);
    nk_identity_unref(i);
}

/* ---- URIs ---- */

static void test_member_uri__has_one_form(void **state)
{
    static const char *const bad[] = { "",
                                       "spiffe://",
                                       "https://" CLUSTER_A "/member/" ID_A,
                                       "spiffe://" CLUSTER_A "/member/",
                                       "spiffe://" CLUSTER_A "/gateway/" ID_A,
                                       "spiffe://" CLUSTER_A "0/member/" ID_A,
                                       "spiffe://" CLUSTER_A "/member/" ID_A "0",
                                       "spiffe://" CLUSTER_A "/member/" ID_A "/",
                                       "spiffe://" CLUSTER_A "/member/" ID_A " ",
                                       "spiffe://" CLUSTER_A "/member/00000000000000AA",
                                       "spiffe://" ID_A "/member/" ID_A };
    char cluster[NK_CLUSTER_ID_CHARS + 1] = "c", id[NK_MEMBER_ID_CHARS + 1] = "i";

    (void)state;
    for (size_t k = 0; k < sizeof bad / sizeof bad[0]; k++)
        if (nk_member_uri_parse(bad[k], cluster, id))
            fail_msg("%s was taken", bad[k]);
    assert_string_equal(id, "i");
    assert_true(nk_member_uri_parse("spiffe://" CLUSTER_A "/member/" ID_A, cluster, id));
    assert_string_equal(cluster, CLUSTER_A);
    assert_string_equal(id, ID_A);
}

/* ---- judging ---- */

static int judge(nk_identity *i, const struct authority *a, const char *names, int64_t begin_s,
                 int64_t end_s, struct nk_error *e)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = authority_sign(a, key, names, begin_s, end_s);
    BIO *bio = BIO_new(BIO_s_mem());
    char id[NK_MEMBER_ID_CHARS + 1], *pem;
    int rc, as_server;

    assert_int_equal(PEM_write_bio_X509(bio, x), 1);
    assert_int_equal(BIO_write(bio, "", 1), 1);
    BIO_get_mem_data(bio, &pem);
    rc = nk__identity_judge(i, pem, true, now_s, id, e);
    as_server = nk__identity_judge(i, pem, false, now_s, id, e);
    assert_int_equal(rc, as_server);
    assert_int_equal(rc == 0, id[0] != '\0');
    BIO_free(bio);
    X509_free(x);
    EVP_PKEY_free(key);
    return rc;
}

static void test_judge__lets_in_who_is_on_the_roster_and_says_why_not_the_others(void **state)
{
    const struct {
        const struct authority *a;
        const char *names;
        int64_t begin_s, end_s;
        const char *reason, *part;
    } cases[] = {
        { &stranger, URI_B, -60, 60, "wrong_ca",
          "member " ID_B ": the certificate is not of this" },
        { &ca, URI_B, -60, -1, "expired", "member " ID_B ": the certificate was good until " },
        { &ca, URI_B, DAY_S, 2 * DAY_S, "not_yet_valid", "one of two clocks is wrong" },
        { &ca, NULL, -60, 60, "bad_certificate", "no URI" },
        { &ca, "DNS:localhost", -60, 60, "bad_certificate", "no URI" },
        { &ca, URI_A "," URI_B, -60, 60, "bad_certificate", "several URIs" },
        { &ca, "URI:https://example.org", -60, 60, "bad_certificate", "another URI" },
        { &ca, "URI:spiffe://" CLUSTER_B "/member/" ID_B, -60, 60, "wrong_cluster",
          "its cluster is " CLUSTER_B ", and this machine's is " CLUSTER_A },
        { &ca, "URI:spiffe://" CLUSTER_A "/member/" ID_C, -60, 60, "not_a_member",
          "member " ID_C ": it is not on this cluster's roster" },
    };
    char id[NK_MEMBER_ID_CHARS + 1];
    nk_identity *i = opened();
    struct nk_error e = { 0 };

    (void)state;
    if (judge(i, &ca, URI_B, now_s - 60, now_s + 60, &e))
        fail_msg("%s", e.msg);
    assert_int_equal(judge(i, &ca, "DNS:laptop," URI_B, now_s - 60, now_s + 60, &e), 0);
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++)
        if (judge(i, cases[k].a, cases[k].names, now_s + cases[k].begin_s, now_s + cases[k].end_s,
                  &e) != NK_E_DENIED ||
            strcmp(e.reason, cases[k].reason) != 0 || !strstr(e.msg, cases[k].part))
            fail_msg("%s: %s; expected %s ... %s", e.reason, e.msg, cases[k].reason, cases[k].part);
    assert_int_equal(nk__identity_judge(i, "", true, now_s, id, &e), NK_E_DENIED);
    assert_string_equal(e.reason, "no_certificate");
    assert_int_equal(nk__identity_judge(i, "no PEM", true, now_s, id, &e), NK_E_DENIED);
    assert_string_equal(e.reason, "bad_certificate");
    remove_file("members");
    assert_int_equal(judge(i, &ca, URI_B, now_s - 60, now_s + 60, &e), NK_E_DENIED);
    assert_non_null(strstr(e.msg, "nobody is let in"));
    nk_identity_unref(i);
}

static void test_judge__an_intermediate_that_a_member_makes_of_itself_is_no_ca(void **state)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    struct authority member = { .key = key,
                                .certificate =
                                    authority_sign(&ca, key, URI_B, now_s - 60, now_s + 60) };
    nk_identity *i = opened();
    struct nk_error e;

    (void)state;
    assert_int_equal(judge(i, &member, URI_A, now_s - 60, now_s + 60, &e), NK_E_DENIED);
    assert_string_equal(e.reason, "wrong_ca");
    nk_identity_unref(i);
    authority_release(&member);
}

/* ---- threads ---- */

struct looking {
    nk_identity *identity;
    _Atomic bool stop;
    _Atomic int n_torn;
};

static void *look(void *arg)
{
    struct looking *l = arg;

    while (!l->stop)
        if (nk_identity_find(l->identity, ID_A, NULL) != NK_ROLE_GATEWAY)
            l->n_torn++;
    return NULL;
}

static void test_identity__lookups_on_several_threads_see_one_whole_roster_or_another(void **state)
{
    struct looking l = { .identity = opened() };
    pthread_t threads[3];

    (void)state;
    for (int t = 0; t < 3; t++)
        assert_int_equal(pthread_create(&threads[t], NULL, look, &l), 0);
    for (int n = 0; n < 50; n++)
        folder_roster(folder, n % 2 ? HEAD ID_A " gateway attic\n"
                                    : HEAD ID_B " member b\n" ID_A " gateway attic\n");
    l.stop = true;
    for (int t = 0; t < 3; t++)
        pthread_join(threads[t], NULL);
    assert_int_equal(l.n_torn, 0);
    nk_identity_unref(l.identity);
}

#define test(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_identity__a_folder_tells_who_this_is_and_who_else),
        test(test_identity__a_folder_that_is_not_whole_is_refused_by_name),
        test(test_identity__an_expired_certificate_opens_since_it_can_be_renewed),
        test(test_identity__a_roster_is_read_again_when_it_is_replaced),
        test(test_identity__a_roster_that_is_missing_or_torn_lists_nobody_until_it_is_whole),
        test(test_roster__takes_only_lines_of_its_form),
        test(test_roster__every_prefix_of_one_is_torn_or_ends_with_a_line),
        test(test_roster__holds_4096_members_and_no_more),
        test(test_member_uri__has_one_form),
        test(test_judge__lets_in_who_is_on_the_roster_and_says_why_not_the_others),
        test(test_judge__an_intermediate_that_a_member_makes_of_itself_is_no_ca),
        test(test_identity__lookups_on_several_threads_see_one_whole_roster_or_another),
    };

    nk_log_configure("warn,rpc=error", NULL);
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
