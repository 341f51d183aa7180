#include "cluster_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "cluster/store.h"
#include "unit/virtual_clock.h"

static struct virtual_clock vclock;

static int setup(void **state)
{
    virtual_clock_init(&vclock);
    return dir_setup(state);
}

static int teardown(void **state)
{
    virtual_clock_release(&vclock);
    return dir_teardown(state);
}

static nk_store *open_store(void)
{
    struct nk_error err;
    nk_store *s;

    assert_ok(nk_store_open(&s, in_dir("store.db"), &vclock.clock, &err), err);
    return s;
}

static uint64_t put(nk_store *s, const char *key, const char *value)
{
    struct nk_error err;
    uint64_t revision;

    assert_ok(nk_store_put(s, key, text_bytes(value), 0, &revision, &err), err);
    return revision;
}

static void assert_value(nk_store *s, const char *key, const char *wanted)
{
    struct nk_buf value = NK_BUF_INIT(NK_STORE_VALUE_BYTES_MAX);
    struct nk_error err;
    int rc = nk_store_get(s, key, &value, NULL, &err);

    if (wanted) {
        assert_ok(rc, err);
        assert_string_equal(nk_buf_str(&value), wanted);
    } else {
        assert_reason(rc, err, NK_E_NOT_FOUND, "no_key");
    }
    nk_buf_release(&value);
}

static void test_store__what_was_written_is_there_after_it_was_opened_again(void **state)
{
    nk_store *s = open_store();
    struct nk_store_list list;
    struct nk_error err;
    struct stat st;
    uint64_t last;

    (void)state;
    put(s, "members/b", "two");
    put(s, "members/a", "one");
    last = put(s, "tokens/a", "");
    nk_store_close(s);
    assert_int_equal(stat(in_dir("store.db"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    s = open_store();
    assert_value(s, "members/a", "one");
    assert_value(s, "tokens/a", "");
    assert_value(s, "members/", NULL);
    assert_ok(nk_store_list(s, "members/", &list, &err), err);
    assert_int_equal(list.n, 2);
    assert_string_equal(list.entries[0].key, "members/a");
    assert_string_equal((const char *)list.entries[1].value.data, "two");
    assert_true(list.entries[0].revision > list.entries[1].revision);
    assert_true(list.revision >= last);
    nk_store_list_release(&list);
    /* A revision is never used twice, whatever was deleted. */
    assert_ok(nk_store_delete(s, "tokens/a", 0, &err), err);
    nk_store_close(s);
    s = open_store();
    assert_true(put(s, "tokens/a", "") > last + 1);
    nk_store_close(s);
}

static void test_store__a_swap_needs_the_revision_that_was_read(void **state)
{
    nk_store *s = open_store();
    struct nk_error err;
    uint64_t first, second;

    (void)state;
    assert_ok(nk_store_swap(s, "plan", 0, text_bytes("1"), 0, &first, &err), err);
    assert_reason(nk_store_swap(s, "plan", 0, text_bytes("x"), 0, NULL, &err), err, NK_E_ABORTED,
                  "changed");
    assert_ok(nk_store_swap(s, "plan", first, text_bytes("2"), 0, &second, &err), err);
    assert_true(second > first);
    assert_reason(nk_store_swap(s, "plan", first, text_bytes("x"), 0, NULL, &err), err,
                  NK_E_ABORTED, "changed");
    assert_value(s, "plan", "2");
    assert_reason(nk_store_delete(s, "plan", first, &err), err, NK_E_ABORTED, "changed");
    assert_ok(nk_store_delete(s, "plan", second, &err), err);
    assert_reason(nk_store_delete(s, "plan", 0, &err), err, NK_E_NOT_FOUND, "no_key");
    assert_ok(nk_store_swap(s, "plan", 0, text_bytes("3"), 0, NULL, &err), err);
    nk_store_close(s);
}

enum { RACERS = 4, ROUNDS = 25 };

/* Adds one to a number, again and again, by read, swap, and again if somebody was faster. */
static void *race(void *arg)
{
    nk_store *s = arg;

    for (int i = 0; i < ROUNDS;) {
        struct nk_buf value = NK_BUF_INIT(32);
        char text[16];
        uint64_t revision;
        int rc;

        rc = nk_store_get(s, "count", &value, &revision, NULL);
        if (!rc) {
            snprintf(text, sizeof text, "%d", atoi(nk_buf_str(&value)) + 1);
            rc = nk_store_swap(s, "count", revision, text_bytes(text), 0, NULL, NULL);
        }
        nk_buf_release(&value);
        if (rc && rc != NK_E_ABORTED)
            return arg;
        i += !rc;
    }
    return NULL;
}

static void test_store__of_several_writers_none_is_lost(void **state)
{
    pthread_t threads[RACERS];
    nk_store *s = open_store();
    char wanted[16];
    void *failed;

    (void)state;
    put(s, "count", "0");
    for (int i = 0; i < RACERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, race, s), 0);
    for (int i = 0; i < RACERS; i++) {
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    snprintf(wanted, sizeof wanted, "%d", RACERS * ROUNDS);
    assert_value(s, "count", wanted);
    nk_store_close(s);
}

static void test_store__refuses_keys_and_values_that_are_none(void **state)
{
    static const char *const bad[] = { "", "with space", "with\nline", "w\xc3\xa4", "\x7f" };
    struct nk_bytes large = { calloc(1, NK_STORE_VALUE_BYTES_MAX + 1), NK_STORE_VALUE_BYTES_MAX };
    struct nk_buf value = NK_BUF_INIT(NK_STORE_VALUE_BYTES_MAX), small = NK_BUF_INIT(10);
    char key[NK_STORE_KEY_BYTES_MAX + 2];
    nk_store *s = open_store();
    struct nk_error err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_reason(nk_store_put(s, bad[i], text_bytes("x"), 0, NULL, &err), err, NK_E_INVALID,
                      "bad_key");
    memset(key, 'k', sizeof key);
    key[sizeof key - 1] = '\0';
    assert_reason(nk_store_put(s, key, text_bytes("x"), 0, NULL, &err), err, NK_E_INVALID,
                  "bad_key");
    key[sizeof key - 2] = '\0';
    put(s, key, "x");
    assert_ok(nk_store_put(s, "large", large, 0, NULL, &err), err);
    assert_ok(nk_store_get(s, "large", &value, NULL, &err), err);
    assert_int_equal(value.size, NK_STORE_VALUE_BYTES_MAX);
    assert_int_equal(nk_store_get(s, "large", &small, NULL, &err), NK_E_EXHAUSTED);
    large.size++;
    assert_reason(nk_store_put(s, "large", large, 0, NULL, &err), err, NK_E_EXHAUSTED, "too_large");
    nk_store_close(s);
    nk_buf_release(&value);
    nk_buf_release(&small);
    free((void *)large.data);
}

static void test_store__a_second_process_is_told_who_has_it(void **state)
{
    nk_store *s = open_store(), *other;
    char pid[32];
    struct nk_error err;

    (void)state;
    assert_reason(nk_store_open(&other, in_dir("store.db"), &vclock.clock, &err), err,
                  NK_E_PRECONDITION, "store_in_use");
    assert_null(other);
    snprintf(pid, sizeof pid, "pid %d;", (int)getpid());
    assert_non_null(strstr(err.msg, pid));
    nk_store_close(s);
    nk_store_close(open_store());
}

static void test_store__a_damaged_file_is_a_sentence(void **state)
{
    nk_store *s = open_store();
    struct nk_error err;
    struct stat st;
    char junk[4096];
    FILE *f;

    (void)state;
    for (int i = 0; i < 300; i++) {
        char key[32], value[600];

        snprintf(key, sizeof key, "members/%d", i);
        memset(value, 'v', sizeof value);
        value[sizeof value - 1] = '\0';
        put(s, key, value);
    }
    nk_store_close(s); /* the last one out copies everything into the file itself */
    memset(junk, 0x5a, sizeof junk);
    assert_int_equal(stat(in_dir("store.db"), &st), 0);
    for (long at = 8192; at < st.st_size; at += 16384) { /* every fourth page */
        f = fopen(in_dir("store.db"), "r+b");
        fseek(f, at, SEEK_SET);
        fwrite(junk, 1, sizeof junk, f);
        fclose(f);
    }
    assert_reason(nk_store_open(&s, in_dir("store.db"), &vclock.clock, &err), err, NK_E_DATA_LOSS,
                  "store_damaged");
    assert_non_null(strstr(err.msg, "store.db"));
    assert_int_equal(nk_file_write(in_dir("store.db"), junk, sizeof junk, &err), 0);
    assert_reason(nk_store_open(&s, in_dir("store.db"), &vclock.clock, &err), err, NK_E_DATA_LOSS,
                  "store_damaged");
    /* Not ours, but a good database. */
    unlink(in_dir("store.db"));
    f = popen("python3 -c 'import sqlite3,sys; c = sqlite3.connect(sys.stdin.readline().strip());"
              " c.execute(\"create table t(a)\"); c.commit()'",
              "w");
    fprintf(f, "%s\n", in_dir("store.db"));
    assert_int_equal(pclose(f), 0);
    assert_reason(nk_store_open(&s, in_dir("store.db"), &vclock.clock, &err), err, NK_E_DATA_LOSS,
                  "store_damaged");
    assert_non_null(strstr(err.msg, "another program"));
}

static void test_store__needs_its_folder(void **state)
{
    struct nk_error err;
    nk_store *s;

    (void)state;
    assert_reason(nk_store_open(&s, in_dir("none/store.db"), &vclock.clock, &err), err, NK_E_DENIED,
                  "cannot_create");
    assert_null(s);
}

/* ---- a process that is killed ---- */
/* Writes pairs ("a", "b") of one number, one after the other, and tells each as it is done. */
static void write_until_killed(int out)
{
    nk_store *s;
    struct nk_error err;

    if (nk_store_open(&s, in_dir("store.db"), nk_clock_system(), &err))
        _exit(2);
    for (int i = 1;; i++) {
        char text[16];

        snprintf(text, sizeof text, "%d", i);
        if (nk_store_put(s, "a", text_bytes(text), 0, NULL, &err) ||
            nk_store_put(s, "b", text_bytes(text), 0, NULL, &err) ||
            write(out, &i, sizeof i) != sizeof i)
            _exit(3);
    }
}

static int number_at(nk_store *s, const char *key)
{
    struct nk_buf value = NK_BUF_INIT(32);
    struct nk_error err;
    int n;

    assert_ok(nk_store_get(s, key, &value, NULL, &err), err);
    n = atoi(nk_buf_str(&value));
    nk_buf_release(&value);
    return n;
}

static void test_store__a_killed_process_takes_nothing_back(void **state)
{
    (void)state;
    for (int round = 0; round < 5; round++) {
        int fds[2], told = 0, i, a, b, status;
        nk_store *s;
        pid_t pid;

        assert_int_equal(pipe(fds), 0);
        pid = fork();
        if (!pid) {
            close(fds[0]);
            write_until_killed(fds[1]);
        }
        close(fds[1]);
        while (told < 7 * (round + 1) && read(fds[0], &i, sizeof i) == sizeof i)
            told = i;
        assert_int_equal(told, 7 * (round + 1));
        kill(pid, SIGKILL);
        while (read(fds[0], &i, sizeof i) == sizeof i)
            told = i;
        close(fds[0]);
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        s = open_store();
        a = number_at(s, "a");
        b = number_at(s, "b");
        assert_in_range(a, told, told + 1); /* at most one was written and not told */
        assert_in_range(b, told, a);
        nk_store_close(s);
    }
}

/* ---- watches ---- */
struct seen {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    int n;
    struct {
        char key[32], value[32];
        bool deleted;
        uint64_t revision;
    } events[64];
    bool hold; /* the next event waits until this is false */
};

static void see(void *arg, const struct nk_store_event *e)
{
    struct seen *seen = arg;

    pthread_mutex_lock(&seen->mutex);
    assert_true(seen->n < 64);
    snprintf(seen->events[seen->n].key, 32, "%s", e->key);
    snprintf(seen->events[seen->n].value, 32, "%.*s", (int)e->value.size,
             (const char *)e->value.data);
    seen->events[seen->n].deleted = e->deleted;
    seen->events[seen->n++].revision = e->revision;
    pthread_cond_broadcast(&seen->cond);
    while (seen->hold)
        pthread_cond_wait(&seen->cond, &seen->mutex);
    pthread_mutex_unlock(&seen->mutex);
}

static void seen_init(struct seen *seen)
{
    *seen = (struct seen){ 0 };
    pthread_mutex_init(&seen->mutex, NULL);
    pthread_cond_init(&seen->cond, NULL);
}

static void wait_for(struct seen *seen, int n)
{
    pthread_mutex_lock(&seen->mutex);
    while (seen->n < n)
        pthread_cond_wait(&seen->cond, &seen->mutex);
    pthread_mutex_unlock(&seen->mutex);
}

static void test_store__a_watch_is_told_of_its_prefix_in_order(void **state)
{
    nk_store *s = open_store();
    nk_store_watch *w;
    struct nk_error err;
    struct seen seen;
    uint64_t first;

    (void)state;
    seen_init(&seen);
    put(s, "members/a", "before");
    first = put(s, "members/b", "known");
    put(s, "members/c", "after");
    assert_ok(nk_store_watch_start(&w, s, "members/", first, see, &seen, &err), err);
    wait_for(&seen, 1); /* what was written since the revision that it begins after */
    put(s, "tokens/a", "not its");
    put(s, "members/a", "again");
    wait_for(&seen, 2);
    assert_ok(nk_store_delete(s, "members/b", 0, &err), err);
    wait_for(&seen, 3);
    put(s, "members/b", "new");
    wait_for(&seen, 4);
    nk_store_watch_end(w);
    put(s, "members/d", "nobody looks");
    assert_int_equal(seen.n, 4);
    assert_string_equal(seen.events[0].key, "members/c");
    assert_string_equal(seen.events[1].value, "again");
    assert_string_equal(seen.events[2].key, "members/b");
    assert_true(seen.events[2].deleted);
    assert_false(seen.events[3].deleted);
    for (int i = 1; i < 4; i++)
        assert_true(seen.events[i].revision > seen.events[i - 1].revision);
    nk_store_close(s);
}

static void test_store__who_watches_slowly_is_told_the_last_state_of_each_key(void **state)
{
    nk_store *s = open_store();
    nk_store_watch *w;
    struct nk_error err;
    struct seen seen;

    (void)state;
    seen_init(&seen);
    seen.hold = true;
    assert_ok(nk_store_watch_start(&w, s, "", 0, see, &seen, &err), err);
    put(s, "go", "");
    wait_for(&seen, 1); /* it is in there now, and waits */
    for (int i = 0; i < 20; i++) {
        char text[8];

        snprintf(text, sizeof text, "%d", i);
        put(s, "x", text);
    }
    put(s, "gone", "");
    assert_ok(nk_store_delete(s, "gone", 0, &err), err);
    put(s, "last", "");
    pthread_mutex_lock(&seen.mutex);
    seen.hold = false;
    pthread_cond_broadcast(&seen.cond);
    pthread_mutex_unlock(&seen.mutex);
    wait_for(&seen, 4);
    nk_store_watch_end(w);
    assert_int_equal(seen.n, 4);
    assert_string_equal(seen.events[1].key, "x");
    assert_string_equal(seen.events[1].value, "19");
    assert_string_equal(seen.events[2].key, "gone");
    assert_true(seen.events[2].deleted);
    assert_string_equal(seen.events[3].key, "last");
    assert_value(s, "gone", NULL);
    nk_store_close(s);
}

/* ---- leases ---- */
static void test_store__a_lease_that_is_not_kept_takes_its_keys_along(void **state)
{
    nk_store *s = open_store();
    struct nk_store_list list;
    nk_store_watch *w;
    struct nk_error err;
    struct seen seen;
    uint64_t lease;

    (void)state;
    seen_init(&seen);
    assert_ok(nk_store_lease_grant(s, 1000, &lease, &err), err);
    assert_ok(nk_store_put(s, "live/a", text_bytes("1"), lease, NULL, &err), err);
    assert_ok(nk_store_put(s, "live/b", text_bytes("2"), lease, NULL, &err), err);
    assert_ok(nk_store_put(s, "live/c", text_bytes("3"), lease, NULL, &err), err);
    put(s, "live/c", "stays: its last write had no lease");
    assert_ok(nk_store_list(s, "live/", &list, &err), err);
    assert_int_equal(list.entries[0].lease, lease);
    assert_ok(nk_store_watch_start(&w, s, "live/", list.revision, see, &seen, &err), err);
    nk_store_list_release(&list);
    virtual_clock_wait_for_waiter(&vclock, 1000);
    virtual_clock_advance_ms(&vclock, 999);
    assert_ok(nk_store_lease_keep(s, lease, &err), err);
    virtual_clock_advance_ms(&vclock, 999);
    assert_value(s, "live/a", "1");
    virtual_clock_advance_ms(&vclock, 1);
    wait_for(&seen, 2);
    assert_true(seen.events[0].deleted && seen.events[1].deleted);
    assert_reason(nk_store_lease_keep(s, lease, &err), err, NK_E_NOT_FOUND, "no_lease");
    assert_reason(nk_store_put(s, "live/a", text_bytes("1"), lease, NULL, &err), err,
                  NK_E_NOT_FOUND, "no_lease");
    assert_value(s, "live/a", NULL);
    assert_value(s, "live/b", NULL);
    assert_value(s, "live/c", "stays: its last write had no lease");
    nk_store_watch_end(w);
    nk_store_close(s);
}

static void test_store__a_lease_begins_anew_when_the_store_is_opened(void **state)
{
    nk_store *s = open_store();
    struct nk_error err;
    uint64_t lease;

    (void)state;
    assert_ok(nk_store_lease_grant(s, 1000, &lease, &err), err);
    assert_ok(nk_store_put(s, "live/a", text_bytes("1"), lease, NULL, &err), err);
    virtual_clock_advance_ms(&vclock, 900);
    nk_store_close(s);
    s = open_store();
    virtual_clock_advance_ms(&vclock, 900);
    assert_value(s, "live/a", "1");
    assert_ok(nk_store_lease_keep(s, lease, &err), err);
    assert_ok(nk_store_lease_revoke(s, lease, &err), err);
    assert_value(s, "live/a", NULL);
    assert_reason(nk_store_lease_revoke(s, lease, &err), err, NK_E_NOT_FOUND, "no_lease");
    assert_reason(nk_store_lease_grant(s, 0, &lease, &err), err, NK_E_INVALID, "bad_lease");
    nk_store_close(s);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_store__what_was_written_is_there_after_it_was_opened_again),
        TEST(test_store__a_swap_needs_the_revision_that_was_read),
        TEST(test_store__of_several_writers_none_is_lost),
        TEST(test_store__refuses_keys_and_values_that_are_none),
        TEST(test_store__a_second_process_is_told_who_has_it),
        TEST(test_store__a_damaged_file_is_a_sentence),
        TEST(test_store__needs_its_folder),
        TEST(test_store__a_killed_process_takes_nothing_back),
        TEST(test_store__a_watch_is_told_of_its_prefix_in_order),
        TEST(test_store__who_watches_slowly_is_told_the_last_state_of_each_key),
        TEST(test_store__a_lease_that_is_not_kept_takes_its_keys_along),
        TEST(test_store__a_lease_begins_anew_when_the_store_is_opened),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
