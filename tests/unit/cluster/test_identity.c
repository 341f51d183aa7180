#include "cluster_test.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "cluster/identity.h"

static const int64_t now_s = 1800000000;

struct made {
    nk_ca *ca;
    struct nk_buf key, certificate;
};

static void make(struct made *m, const char *ca_name)
{
    struct nk_buf request = NK_BUF_INIT(NK_PEM_BYTES_MAX);
    struct nk_error err;

    assert_ok(nk_ca_open(&m->ca, in_dir(ca_name), now_s, &err), err);
    nk_buf_init(&m->key, NK_PEM_BYTES_MAX);
    nk_buf_init(&m->certificate, NK_PEM_BYTES_MAX);
    assert_ok(nk_key_make(&m->key, &err), err);
    assert_ok(nk_request_make(buf_bytes(&m->key), &request, &err), err);
    assert_ok(nk_ca_issue(m->ca, buf_bytes(&request), "0123456789abcdef", now_s, 1000,
                          &m->certificate, &err),
              err);
    nk_buf_release(&request);
}

static void unmake(struct made *m)
{
    nk_ca_close(m->ca);
    nk_buf_release(&m->key);
    nk_buf_release(&m->certificate);
}

static int write_made(const struct made *m, struct nk_error *err)
{
    return nk_identity_write(in_dir("identity"), text_bytes(nk_ca_certificate(m->ca)),
                             buf_bytes(&m->certificate), buf_bytes(&m->key), err);
}

static int n_in(const char *path)
{
    DIR *d = opendir(path);
    int n = -2;

    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static void test_identity__reads_back_as_it_was_written(void **state)
{
    struct nk_identity_files id;
    struct nk_error err;
    struct made m, other;
    struct stat st;
    char link[64] = "";

    (void)state;
    make(&m, "ca");
    make(&other, "other");
    assert_reason(nk_identity_read(&id, in_dir("identity"), &err), err, NK_E_NOT_FOUND,
                  "no_identity");
    for (int i = 0; i < 3; i++) {
        assert_ok(write_made(&m, &err), err);
        assert_int_equal(n_in(in_dir("identity")), 3); /* ca.pem, current and what it points to */
    }
    assert_ok(nk_identity_read(&id, in_dir("identity"), &err), err);
    assert_string_equal(id.about.cluster, nk_ca_cluster(m.ca));
    assert_string_equal(nk_buf_str(&id.key), nk_buf_str(&m.key));
    nk_identity_release(&id);
    assert_int_equal(stat(in_dir("identity"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(stat(in_dir("identity/current/key.pem"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(in_dir("identity/ca.pem"), &st), 0);
    assert_true(readlink(in_dir("identity/current"), link, sizeof link - 1) > 0);
    assert_string_equal(link, "0003");
    /* Another cluster's replaces all three at once. */
    assert_ok(write_made(&other, &err), err);
    assert_ok(nk_identity_read(&id, in_dir("identity"), &err), err);
    assert_string_equal(id.about.cluster, nk_ca_cluster(other.ca));
    nk_identity_release(&id);
    /* What does not fit is not written. */
    assert_int_equal(nk_identity_write(in_dir("identity"), text_bytes(nk_ca_certificate(m.ca)),
                                       buf_bytes(&other.certificate), buf_bytes(&other.key), &err),
                     NK_E_UNAUTHENTICATED);
    assert_int_equal(nk_identity_write(in_dir("identity"), text_bytes(nk_ca_certificate(m.ca)),
                                       buf_bytes(&m.certificate), buf_bytes(&other.key), &err),
                     NK_E_INVALID);
    assert_int_equal(n_in(in_dir("identity")), 3);
    assert_ok(nk_identity_remove(in_dir("identity"), &err), err);
    assert_ok(nk_identity_remove(in_dir("identity"), &err), err);
    assert_int_not_equal(access(in_dir("identity"), F_OK), 0);
    unmake(&m);
    unmake(&other);
}

static void test_identity__a_damaged_one_is_a_sentence(void **state)
{
    struct nk_identity_files id;
    struct nk_error err;
    struct made m;

    (void)state;
    make(&m, "ca");
    assert_ok(write_made(&m, &err), err);
    assert_int_equal(nk_file_write(in_dir("identity/current/certificate.pem"), "x", 1, &err), 0);
    assert_reason(nk_identity_read(&id, in_dir("identity"), &err), err, NK_E_DATA_LOSS,
                  "bad_identity");
    assert_null(id.key.data);
    unlink(in_dir("identity/current/certificate.pem"));
    assert_reason(nk_identity_read(&id, in_dir("identity"), &err), err, NK_E_DATA_LOSS,
                  "bad_identity");
    assert_ok(write_made(&m, &err), err);
    chmod(in_dir("identity/current/key.pem"), 0644);
    assert_reason(nk_identity_read(&id, in_dir("identity"), &err), err, NK_E_DATA_LOSS,
                  "bad_identity");
    unmake(&m);
}

struct reader {
    atomic_bool stop;
    int n_read, n_failed;
    struct nk_error err;
};

static void *read_again_and_again(void *arg)
{
    struct reader *r = arg;

    while (!atomic_load(&r->stop) || !r->n_read) {
        struct nk_identity_files id;

        if (nk_identity_read(&id, in_dir("identity"), &r->err))
            r->n_failed++;
        nk_identity_release(&id);
        r->n_read++;
    }
    return NULL;
}

static void test_identity__who_reads_while_it_is_written_finds_a_whole_one(void **state)
{
    struct reader r = { 0 };
    struct made m[2];
    struct nk_error err;
    pthread_t thread;

    (void)state;
    make(&m[0], "ca");
    make(&m[1], "other");
    assert_ok(write_made(&m[0], &err), err);
    assert_int_equal(pthread_create(&thread, NULL, read_again_and_again, &r), 0);
    for (int i = 0; i < 40; i++)
        assert_ok(write_made(&m[i % 2], &err), err);
    atomic_store(&r.stop, true);
    pthread_join(thread, NULL);
    if (r.n_failed)
        fail_msg("%d of %d: %s", r.n_failed, r.n_read, r.err.msg);
    unmake(&m[0]);
    unmake(&m[1]);
}

static void test_identity__a_killed_writer_leaves_a_whole_one(void **state)
{
    struct made m[2];
    struct nk_identity_files id;
    struct nk_error err;
    int status;

    (void)state;
    make(&m[0], "ca");
    make(&m[1], "other");
    assert_ok(write_made(&m[0], &err), err);
    for (int round = 0; round < 10; round++) {
        int fds[2];
        char c;
        pid_t pid;

        assert_int_equal(pipe(fds), 0);
        pid = fork();
        if (!pid) {
            for (int i = 1;; i++)
                if (write_made(&m[i % 2], &err) || write(fds[1], "x", 1) != 1)
                    _exit(1);
        }
        close(fds[1]);
        for (int i = 0; i <= round; i++)
            assert_int_equal(read(fds[0], &c, 1), 1);
        kill(pid, SIGKILL);
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        close(fds[0]);
        assert_ok(nk_identity_read(&id, in_dir("identity"), &err), err);
        nk_identity_release(&id);
    }
    assert_ok(write_made(&m[0], &err), err); /* and takes away what was left */
    assert_int_equal(n_in(in_dir("identity")), 3);
    unmake(&m[0]);
    unmake(&m[1]);
}

static void test_identity__the_roster_lies_beside_it(void **state)
{
    struct nk_roster r = { .revision = 7 }, read;
    struct nk_error err;

    (void)state;
    assert_reason(nk_members_read(&read, in_dir("."), &err), err, NK_E_NOT_FOUND, "no_file");
    assert_ok(nk_roster_put(&r, "0123456789abcdef", true, "attic", &err), err);
    assert_ok(nk_members_write(in_dir("."), &r, &err), err);
    assert_ok(nk_members_read(&read, in_dir("."), &err), err);
    assert_int_equal(read.revision, 7);
    nk_roster_release(&read);
    assert_int_equal(nk_file_write(in_dir("members"), "x\n", 2, &err), 0);
    assert_reason(nk_members_read(&read, in_dir("."), &err), err, NK_E_INVALID, "bad_roster");
    assert_non_null(strstr(err.msg, "members"));
    nk_roster_release(&r);
}

static void test_identity__joined_json_reads_back(void **state)
{
    static const struct nk_joined j = { .cluster = "00112233445566778899aabbccddeeff",
                                        .member = "0123456789abcdef",
                                        .name = "attic",
                                        .port = 5530,
                                        .enrolment_port = 5531,
                                        .n_addresses = 2,
                                        .addresses = { "10.0.0.1", "fd00::1" } };
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"cluster\": 1}",
        "{\"cluster\":\"00112233445566778899aabbccddeeff\",\"member\":\"0123456789abcdef\","
        "\"name\":\"attic\",\"port\":5530,\"enrolment_port\":5531,\"addresses\":[\"a.b\"]}",
        "{\"cluster\":\"00112233445566778899aabbccddeeff\",\"member\":\"0123456789abcdef\","
        "\"name\":\"attic\",\"port\":5530,\"enrolment_port\":0,\"addresses\":[]}",
    };
    struct nk_joined read;
    struct nk_error err;

    (void)state;
    assert_int_equal(nk_joined_read(&read, in_dir("joined.json"), &err), NK_E_NOT_FOUND);
    assert_ok(nk_joined_write(in_dir("joined.json"), &j, &err), err);
    assert_ok(nk_joined_read(&read, in_dir("joined.json"), &err), err);
    assert_memory_equal(&read, &j, sizeof j);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(nk_file_write(in_dir("joined.json"), bad[i], strlen(bad[i]), &err), 0);
        assert_reason(nk_joined_read(&read, in_dir("joined.json"), &err), err, NK_E_DATA_LOSS,
                      "bad_joined");
    }
}

static void test_identity__state_is_kept_where_it_should_be(void **state)
{
    char home[256], *path, wanted[300];
    struct nk_error err;
    struct stat st;

    (void)state;
    assert_non_null(realpath(test_dir, home));
    setenv("HOME", home, 1);
    unsetenv("XDG_STATE_HOME");
    assert_ok(nk_state_dir(&path, NULL, "member", &err), err);
    snprintf(wanted, sizeof wanted, "%s/.local/state/nakshatra/member", home);
    assert_string_equal(path, wanted);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    free(path);
    setenv("XDG_STATE_HOME", home, 1);
    assert_ok(nk_state_dir(&path, NULL, NULL, &err), err);
    snprintf(wanted, sizeof wanted, "%s/nakshatra", home);
    assert_string_equal(path, wanted);
    free(path);
    assert_ok(nk_state_dir(&path, in_dir("mine"), "cluster", &err), err);
    assert_string_equal(path, in_dir("mine/cluster"));
    free(path);
    unsetenv("XDG_STATE_HOME");
    unsetenv("HOME");
    assert_reason(nk_state_dir(&path, NULL, NULL, &err), err, NK_E_PRECONDITION, "no_home");
    assert_null(path);
    assert_int_equal(nk_file_write(in_dir("file"), "x", 1, &err), 0);
    assert_int_not_equal(nk_state_dir(&path, in_dir("file"), NULL, &err), 0);
    assert_string_equal(err.reason, "cannot_create");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, dir_setup, dir_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_identity__reads_back_as_it_was_written),
        TEST(test_identity__a_damaged_one_is_a_sentence),
        TEST(test_identity__who_reads_while_it_is_written_finds_a_whole_one),
        TEST(test_identity__a_killed_writer_leaves_a_whole_one),
        TEST(test_identity__the_roster_lies_beside_it),
        TEST(test_identity__joined_json_reads_back),
        TEST(test_identity__state_is_kept_where_it_should_be),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
