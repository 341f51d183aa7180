#include "cluster_test.h"

#include <sys/stat.h>

#include "cluster/ca.h"
#include "cluster/identity.h"
#include "unit/seed.h"

static const int64_t now_s = 1800000000;
static const char member[] = "0123456789abcdef";

static nk_ca *open_ca(const char *name)
{
    struct nk_error err;
    nk_ca *ca;

    assert_ok(nk_ca_open(&ca, in_dir(name), now_s, &err), err);
    return ca;
}

static void make_request(struct nk_buf *key, struct nk_buf *request)
{
    struct nk_error err;

    nk_buf_init(key, NK_PEM_BYTES_MAX);
    nk_buf_init(request, NK_PEM_BYTES_MAX);
    assert_ok(nk_key_make(key, &err), err);
    assert_ok(nk_request_make(buf_bytes(key), request, &err), err);
}

static int mode_of(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return st.st_mode & 0777;
}

static void test_ca__is_made_once_and_opened_from_then_on(void **state)
{
    char cluster[NK_CA_CLUSTER_SIZE];
    struct nk_error err;
    nk_ca *ca = open_ca("a/ca"), *other = open_ca("b/ca");

    (void)state;
    assert_int_equal(strlen(nk_ca_cluster(ca)), 32);
    assert_string_not_equal(nk_ca_cluster(ca), nk_ca_cluster(other));
    assert_ok(nk_certificate_cluster(cluster, text_bytes(nk_ca_certificate(ca)), &err), err);
    assert_string_equal(cluster, nk_ca_cluster(ca));
    nk_ca_close(ca);
    nk_ca_close(other);
    ca = open_ca("a/ca");
    assert_string_equal(cluster, nk_ca_cluster(ca));
    nk_ca_close(ca);
    assert_int_equal(mode_of(in_dir("a/ca")), 0700);
    assert_int_equal(mode_of(in_dir("a/ca/ca.key.pem")), 0600);
}

/* An independent implementation of what the id is. */
static void test_ca__its_id_is_what_openssl_says_of_its_key(void **state)
{
    char cmd[256], line[64] = "";
    nk_ca *ca = open_ca("ca");
    FILE *f;

    (void)state;
    snprintf(cmd, sizeof cmd,
             "openssl pkey -in %s/ca/ca.key.pem -pubout -outform DER | openssl dgst -sha256 -r",
             test_dir);
    f = popen(cmd, "r");
    assert_non_null(fgets(line, sizeof line, f));
    pclose(f);
    assert_memory_equal(line, nk_ca_cluster(ca), 32);
    nk_ca_close(ca);
}

static void test_ca__openssl_believes_its_certificates(void **state)
{
    struct nk_buf key, request, pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    char cmd[512], text[8192];
    nk_ca *ca = open_ca("ca");
    struct nk_error err;
    FILE *f;
    size_t n;

    (void)state;
    make_request(&key, &request);
    assert_ok(nk_ca_issue(ca, buf_bytes(&request), member, now_s, 7 * 86400, &pem, &err), err);
    assert_int_equal(nk_file_write(in_dir("x.pem"), pem.data, pem.size, &err), 0);
    snprintf(cmd, sizeof cmd,
             "openssl verify -x509_strict -attime %lld -purpose sslserver -CAfile %s/ca/ca.pem "
             "%s/x.pem && openssl x509 -in %s/x.pem -noout -text",
             (long long)now_s, test_dir, test_dir, test_dir);
    f = popen(cmd, "r");
    n = fread(text, 1, sizeof text - 1, f);
    text[n] = '\0';
    assert_int_equal(pclose(f), 0);
    snprintf(cmd, sizeof cmd, "URI:spiffe://%s/member/%s\n", nk_ca_cluster(ca), member);
    assert_non_null(strstr(text, cmd));
    assert_non_null(strstr(text, "CA:FALSE"));
    assert_non_null(strstr(text, "prime256v1"));
    nk_ca_close(ca);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&pem);
}

static void test_ca__a_half_made_one_is_finished_or_refused(void **state)
{
    struct nk_error err;
    char cluster[NK_CA_CLUSTER_SIZE];
    nk_ca *ca = open_ca("ca"), *other;

    (void)state;
    snprintf(cluster, sizeof cluster, "%s", nk_ca_cluster(ca));
    nk_ca_close(ca);
    /* Stopped between the key and the certificate: the same cluster. */
    unlink(in_dir("ca/ca.pem"));
    ca = open_ca("ca");
    assert_string_equal(nk_ca_cluster(ca), cluster);
    nk_ca_close(ca);
    /* A temporary file that was cut off is nobody's key. */
    assert_int_equal(nk_file_write(in_dir("ca/.ca.key.pem.1.tmp"), "-----BEGIN", 10, &err), 0);
    nk_ca_close(open_ca("ca"));
    /* The key is gone: nothing is made over it. */
    rename(in_dir("ca/ca.key.pem"), in_dir("key"));
    assert_reason(nk_ca_open(&ca, in_dir("ca"), now_s, &err), err, NK_E_DATA_LOSS, "ca_damaged");
    assert_null(ca);
    /* Cut off in the middle. */
    assert_int_equal(nk_secret_write(in_dir("ca/ca.key.pem"), text_bytes("-----BEGIN PRIV"), &err),
                     0);
    assert_reason(nk_ca_open(&ca, in_dir("ca"), now_s, &err), err, NK_E_DATA_LOSS, "ca_damaged");
    assert_non_null(strstr(err.msg, "ca.key.pem"));
    /* Of two clusters. */
    other = open_ca("other");
    nk_ca_close(other);
    rename(in_dir("other/ca.key.pem"), in_dir("ca/ca.key.pem"));
    assert_reason(nk_ca_open(&ca, in_dir("ca"), now_s, &err), err, NK_E_DATA_LOSS, "ca_damaged");
    rename(in_dir("key"), in_dir("ca/ca.key.pem"));
    nk_ca_close(open_ca("ca"));
    chmod(in_dir("ca/ca.key.pem"), 0644);
    assert_reason(nk_ca_open(&ca, in_dir("ca"), now_s, &err), err, NK_E_DENIED, "open_to_others");
}

static void test_ca__is_not_made_by_a_clock_that_was_never_set(void **state)
{
    struct nk_error err;
    nk_ca *ca;

    (void)state;
    assert_reason(nk_ca_open(&ca, in_dir("ca"), 0, &err), err, NK_E_PRECONDITION, "clock_off");
    assert_int_not_equal(access(in_dir("ca/ca.key.pem"), F_OK), 0);
    nk_ca_close(open_ca("ca"));
    assert_ok(nk_ca_open(&ca, in_dir("ca"), 0, &err), err); /* one that is there is opened */
    nk_ca_close(ca);
}

static void test_ca__a_certificate_says_who_when_and_of_which_cluster(void **state)
{
    struct nk_buf key, request, pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    nk_ca *ca = open_ca("ca"), *other = open_ca("other");
    struct nk_bytes ca_pem = text_bytes(nk_ca_certificate(ca));
    struct nk_certificate c;
    struct nk_error err;

    (void)state;
    make_request(&key, &request);
    assert_ok(nk_ca_issue(ca, buf_bytes(&request), member, now_s, 6000, &pem, &err), err);
    assert_ok(nk_certificate_check(&c, buf_bytes(&pem), ca_pem, &err), err);
    assert_string_equal(c.cluster, nk_ca_cluster(ca));
    assert_string_equal(c.member, member);
    assert_int_equal(c.not_before_s, now_s - NK_CLOCK_TOLERANCE_S);
    assert_int_equal(c.not_after_s, now_s + 6000);
    assert_int_equal(nk_certificate_renew_s(&c), now_s + 6000 - 6300 / 3);
    assert_ok(nk_certificate_fits_key(buf_bytes(&pem), buf_bytes(&key), &err), err);
    assert_reason(
        nk_certificate_check(&c, buf_bytes(&pem), text_bytes(nk_ca_certificate(other)), &err), err,
        NK_E_UNAUTHENTICATED, "wrong_cluster");
    assert_non_null(strstr(err.msg, nk_ca_cluster(ca)));
    assert_non_null(strstr(err.msg, nk_ca_cluster(other)));
    /* The CA's own is no member's. */
    assert_reason(nk_certificate_parse(&c, ca_pem, &err), err, NK_E_INVALID, "bad_certificate");
    nk_buf_reset(&pem);
    assert_ok(nk_ca_issue(ca, buf_bytes(&request), NULL, now_s, 6000, &pem, &err), err);
    assert_ok(nk_certificate_check(&c, buf_bytes(&pem), ca_pem, &err), err);
    assert_string_equal(c.member, "");
    nk_ca_close(ca);
    nk_ca_close(other);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&pem);
}

/* Every byte of a certificate matters: a changed one is no certificate, or not of this CA. */
static void test_ca__a_changed_certificate_is_not_believed(void **state)
{
    struct nk_buf key, request, pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    nk_ca *ca = open_ca("ca");
    struct nk_bytes ca_pem = text_bytes(nk_ca_certificate(ca));
    struct nk_certificate c;
    struct nk_error err;
    int n_changed = 0;

    (void)state;
    make_request(&key, &request);
    assert_ok(nk_ca_issue(ca, buf_bytes(&request), member, now_s, 6000, &pem, &err), err);
    for (size_t i = 30; i + 40 < pem.size; i += 7) {
        char old = pem.data[i];

        if (old == '\n' || old == '=')
            continue;
        pem.data[i] = old == 'A' ? 'B' : 'A';
        assert_int_not_equal(nk_certificate_check(&c, buf_bytes(&pem), ca_pem, &err), 0);
        pem.data[i] = old;
        n_changed++;
    }
    assert_true(n_changed > 50);
    assert_ok(nk_certificate_check(&c, buf_bytes(&pem), ca_pem, &err), err);
    nk_ca_close(ca);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&pem);
}

/* What openssl makes with these arguments, given in place of a request. */
static void refuse(nk_ca *ca, const char *cmd, const char *says)
{
    struct nk_buf out = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    char request[16384];
    struct nk_error err;
    FILE *f = popen(cmd, "r");
    size_t n = fread(request, 1, sizeof request - 1, f);

    pclose(f);
    request[n] = '\0';
    assert_true(n > 100);
    assert_reason(nk_ca_issue(ca, text_bytes(request), member, now_s, 6000, &out, &err), err,
                  NK_E_INVALID, "bad_request");
    assert_non_null(strstr(err.msg, says));
    assert_int_equal(out.size, 0);
    nk_buf_release(&out);
}

static void test_ca__refuses_requests_that_are_not_good(void **state)
{
    struct nk_buf key, request, out = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    nk_ca *ca = open_ca("ca");
    struct nk_error err;
    char *at;

    (void)state;
    refuse(ca, "openssl req -new -newkey rsa:2048 -nodes -keyout /dev/null -subj /CN=x 2>&1",
           "P-256");
    refuse(ca,
           "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:secp384r1 -nodes -keyout "
           "/dev/null -subj /CN=x 2>&1",
           "P-256");
    refuse(ca,
           "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt "
           "ec_param_enc:explicit -nodes -keyout /dev/null -subj /CN=x 2>&1",
           "P-256");
    refuse(ca,
           "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -aes128 -pass pass:x "
           "2>&1",
           "PKCS#10");
    make_request(&key, &request);
    at = strstr(request.data, "MI") + 150; /* in the signature */
    *at = *at == 'A' ? 'B' : 'A';
    assert_reason(nk_ca_issue(ca, buf_bytes(&request), member, now_s, 6000, &out, &err), err,
                  NK_E_INVALID, "bad_request");
    assert_reason(nk_ca_issue(ca, text_bytes(""), member, now_s, 6000, &out, &err), err,
                  NK_E_INVALID, "bad_request");
    assert_reason(nk_ca_issue(ca, buf_bytes(&request), "../etc", now_s, 6000, &out, &err), err,
                  NK_E_INVALID, "bad_member");
    nk_ca_close(ca);
    nk_buf_release(&key);
    nk_buf_release(&request);
}

static void test_ca__a_signature_is_by_the_key_over_the_message(void **state)
{
    struct nk_buf key, request, other_key, other_request, signature = NK_BUF_INIT(256);
    struct nk_buf pem = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    nk_ca *ca = open_ca("ca");
    struct nk_error err;

    (void)state;
    make_request(&key, &request);
    make_request(&other_key, &other_request);
    assert_ok(nk_ca_issue(ca, buf_bytes(&request), member, now_s, 6000, &pem, &err), err);
    assert_ok(nk_key_sign(buf_bytes(&key), text_bytes("this"), &signature, &err), err);
    assert_ok(
        nk_certificate_verify(buf_bytes(&pem), text_bytes("this"), buf_bytes(&signature), &err),
        err);
    assert_reason(
        nk_certificate_verify(buf_bytes(&pem), text_bytes("that"), buf_bytes(&signature), &err),
        err, NK_E_UNAUTHENTICATED, "bad_signature");
    nk_buf_reset(&signature);
    assert_ok(nk_key_sign(buf_bytes(&other_key), text_bytes("this"), &signature, &err), err);
    assert_reason(
        nk_certificate_verify(buf_bytes(&pem), text_bytes("this"), buf_bytes(&signature), &err),
        err, NK_E_UNAUTHENTICATED, "bad_signature");
    assert_reason(nk_certificate_fits_key(buf_bytes(&pem), buf_bytes(&other_key), &err), err,
                  NK_E_INVALID, "bad_key");
    nk_ca_close(ca);
    nk_buf_release(&key);
    nk_buf_release(&request);
    nk_buf_release(&other_key);
    nk_buf_release(&other_request);
    nk_buf_release(&signature);
    nk_buf_release(&pem);
}

static void test_ca__a_member_id_is_16_hex_digits(void **state)
{
    char a[NK_MEMBER_ID_SIZE], b[NK_MEMBER_ID_SIZE];

    (void)state;
    assert_int_equal(nk_member_id_make(a, nk_chance_system(), NULL), 0);
    assert_int_equal(nk_member_id_make(b, nk_chance_system(), NULL), 0);
    assert_true(nk_member_id_is(a));
    assert_string_not_equal(a, b);
    assert_false(nk_member_id_is(""));
    assert_false(nk_member_id_is("0123456789abcdeF"));
    assert_false(nk_member_id_is("0123456789abcdef0"));
    assert_false(nk_member_id_is("0123456789abcde"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, dir_setup, dir_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_ca__is_made_once_and_opened_from_then_on),
        TEST(test_ca__its_id_is_what_openssl_says_of_its_key),
        TEST(test_ca__openssl_believes_its_certificates),
        TEST(test_ca__a_half_made_one_is_finished_or_refused),
        TEST(test_ca__is_not_made_by_a_clock_that_was_never_set),
        TEST(test_ca__a_certificate_says_who_when_and_of_which_cluster),
        TEST(test_ca__a_changed_certificate_is_not_believed),
        TEST(test_ca__refuses_requests_that_are_not_good),
        TEST(test_ca__a_signature_is_by_the_key_over_the_message),
        TEST(test_ca__a_member_id_is_16_hex_digits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
