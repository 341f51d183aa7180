#include "cluster_test.h"

#include <ctype.h>
#include <openssl/hmac.h>
#include <pthread.h>

#include "cluster/token.h"
#include "unit/seed.h"
#include "unit/virtual_clock.h"

static const char alphabet[] = "0123456789abcdefghjkmnpqrstvwxyz";
static const char cluster[] = "00112233445566778899aabbccddeeff";
static const int64_t now_s = 1800000000;
static struct virtual_clock vclock;
static nk_store *store;

static int setup(void **state)
{
    struct nk_error err;

    virtual_clock_init(&vclock);
    return dir_setup(state) || nk_store_open(&store, in_dir("store.db"), &vclock.clock, &err);
}

static int teardown(void **state)
{
    nk_store_close(store);
    virtual_clock_release(&vclock);
    return dir_teardown(state);
}

static const char *const some[] = { "192.168.1.5", "fd00::5", "10.0.0.1" };

static struct nk_token create(int uses, int64_t ttl_s)
{
    struct nk_token_opts opts = { .cluster = cluster,
                                  .ttl_s = ttl_s,
                                  .uses = uses,
                                  .port = 5531,
                                  .n_addresses = 3,
                                  .addresses = some };
    struct nk_error err;
    struct nk_token t;

    assert_ok(nk_token_create(store, nk_chance_system(), now_s, &opts, &t, &err), err);
    return t;
}

/* ---- the text ---- */
static void assert_same(const struct nk_token *a, const struct nk_token *b)
{
    assert_string_equal(a->cluster, b->cluster);
    assert_string_equal(a->id, b->id);
    assert_memory_equal(a->secret, b->secret, sizeof a->secret);
    assert_int_equal(a->expires_s, b->expires_s);
    assert_int_equal(a->port, b->port);
    assert_int_equal(a->n_addresses, b->n_addresses);
    for (int i = 0; i < a->n_addresses; i++)
        assert_string_equal(a->addresses[i], b->addresses[i]);
}

static void test_token__reads_back_as_it_was_written(void **state)
{
    struct nk_token t = create(1, 0), read;
    char text[NK_TOKEN_TEXT_SIZE], typed[2 * NK_TOKEN_TEXT_SIZE];
    struct nk_error err;
    size_t n = 0;

    (void)state;
    assert_ok(nk_token_encode(&t, text, &err), err);
    assert_memory_equal(text, "nk1-", 4);
    assert_int_equal(strspn(text + 4, alphabet), strlen(text + 4));
    assert_true(strlen(text) < 160);
    assert_ok(nk_token_decode(&read, text, &err), err);
    assert_same(&read, &t);
    assert_int_equal(read.expires_s, now_s + 3600);
    assert_int_equal(read.n_addresses, 3);
    assert_string_equal(read.addresses[1], "fd00::5");
    /* As a person types it: capitals, look-alikes, in groups, over two lines. */
    for (size_t i = 0; text[i]; i++) {
        char c = (char)toupper((unsigned char)text[i]);

        typed[n++] = c == '0' ? 'O' : c == '1' ? (i % 2 ? 'I' : 'l') : c;
        if (i % 10 == 9)
            typed[n++] = i % 20 == 9 ? '-' : '\n';
    }
    typed[n++] = '\n';
    typed[n] = '\0';
    assert_ok(nk_token_decode(&read, typed, &err), err);
    assert_same(&read, &t);
}

static void test_token__is_always_below_160_characters(void **state)
{
    struct nk_token t = create(1, 0), read;
    char text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;

    (void)state;
    t.n_addresses = NK_TOKEN_ADDRESSES_MAX;
    for (int i = 0; i < NK_TOKEN_ADDRESSES_MAX; i++)
        snprintf(t.addresses[i], sizeof t.addresses[i], "10.0.0.%d", i);
    assert_ok(nk_token_encode(&t, text, &err), err);
    assert_true(strlen(text) < 160);
    assert_ok(nk_token_decode(&read, text, &err), err);
    assert_int_equal(read.n_addresses, NK_TOKEN_ADDRESSES_MAX);
    for (int i = 0; i < NK_TOKEN_ADDRESSES_MAX - 1; i++)
        snprintf(t.addresses[i], sizeof t.addresses[i], "2001:db8::%d", i + 1);
    assert_ok(nk_token_encode(&t, text, &err), err);
    assert_true(strlen(text) < 160);
    assert_ok(nk_token_decode(&read, text, &err), err);
    assert_int_equal(read.n_addresses, 3); /* the first two, and the last, which is small */
    assert_string_equal(read.addresses[0], "2001:db8::1");
    assert_string_equal(read.addresses[2], "10.0.0.9");
    t.n_addresses = 0;
    assert_reason(nk_token_encode(&t, text, &err), err, NK_E_INVALID, "bad_address");
    t.n_addresses = 1;
    snprintf(t.addresses[0], sizeof t.addresses[0], "attic.example");
    assert_reason(nk_token_encode(&t, text, &err), err, NK_E_INVALID, "bad_address");
}

static void test_token__every_wrong_character_at_every_place_is_found(void **state)
{
    struct nk_token t = create(1, 0), read;
    char text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;

    (void)state;
    assert_ok(nk_token_encode(&t, text, &err), err);
    for (size_t i = 0; text[i]; i++) {
        char right = text[i];

        for (const char *wrong = alphabet; *wrong; wrong++) {
            if (*wrong == right || right == '-')
                continue;
            text[i] = *wrong;
            assert_reason(nk_token_decode(&read, text, &err), err, NK_E_INVALID, "bad_token");
        }
        text[i] = right;
    }
    /* Two neighbours the wrong way round, one left out, one twice. */
    for (size_t i = 4; text[i + 1]; i++) {
        char a = text[i], b = text[i + 1], shorter[NK_TOKEN_TEXT_SIZE], longer[200];

        if (a != b) {
            text[i] = b;
            text[i + 1] = a;
            assert_reason(nk_token_decode(&read, text, &err), err, NK_E_INVALID, "bad_token");
            text[i] = a;
            text[i + 1] = b;
        }
        snprintf(shorter, sizeof shorter, "%.*s%s", (int)i, text, text + i + 1);
        assert_reason(nk_token_decode(&read, shorter, &err), err, NK_E_INVALID, "bad_token");
        snprintf(longer, sizeof longer, "%.*s%s", (int)i + 1, text, text + i);
        assert_reason(nk_token_decode(&read, longer, &err), err, NK_E_INVALID, "bad_token");
    }
    assert_ok(nk_token_decode(&read, text, &err), err);
}

static void test_token__says_what_is_wrong_and_not_what_it_was(void **state)
{
    struct nk_token t = create(1, 0), read;
    char text[NK_TOKEN_TEXT_SIZE], bad[3 * NK_TOKEN_TEXT_SIZE];
    struct nk_error err;

    (void)state;
    assert_ok(nk_token_encode(&t, text, &err), err);
    assert_reason(nk_token_decode(&read, "", &err), err, NK_E_INVALID, "bad_token");
    assert_non_null(strstr(err.msg, "begins with nk1-"));
    assert_reason(nk_token_decode(&read, "192.168.1.1:5530", &err), err, NK_E_INVALID, "bad_token");
    assert_non_null(strstr(err.msg, "begins with nk1-"));
    snprintf(bad, sizeof bad, "nk2-%s", text + 4);
    nk_token_decode(&read, bad, &err);
    assert_non_null(strstr(err.msg, "newer"));
    snprintf(bad, sizeof bad, "%.60s", text);
    nk_token_decode(&read, bad, &err);
    assert_non_null(strstr(err.msg, "too short: 56 characters"));
    snprintf(bad, sizeof bad, "%.100s%s%s", text, text, text);
    nk_token_decode(&read, bad, &err);
    assert_non_null(strstr(err.msg, "too long"));
    snprintf(bad, sizeof bad, "%s", text);
    bad[20] = 'U';
    nk_token_decode(&read, bad, &err);
    assert_non_null(strstr(err.msg, "character 21 of the join token is 'U'"));
    bad[20] = '\x1b';
    nk_token_decode(&read, bad, &err);
    assert_non_null(strstr(err.msg, "character 21 of the join token is none"));
    bad[20] = text[20] == '7' ? '8' : '7';
    nk_token_decode(&read, bad, &err);
    assert_non_null(strstr(err.msg, "check characters"));
    assert_null(strstr(err.msg, "nk1-0"));
    for (size_t i = 0; i + 12 < strlen(text); i++) {
        char part[13];

        snprintf(part, sizeof part, "%.12s", text + i);
        assert_null(strstr(err.msg, part));
    }
}

/* ---- use ---- */
struct claim {
    struct nk_token_claim claim;
    uint8_t proof[NK_TOKEN_PROOF_BYTES];
    char key[65], member[NK_MEMBER_ID_SIZE];
};

static void make_claim(struct claim *c, const struct nk_token *t, int machine)
{
    struct nk_error err;

    snprintf(c->key, sizeof c->key, "%064d", machine);
    snprintf(c->member, sizeof c->member, "%016x", machine);
    c->claim = (struct nk_token_claim){ .id = t->id,
                                        .message = text_bytes("a connection and a request"),
                                        .proof = c->proof,
                                        .key_sha256 = c->key,
                                        .member = c->member };
    assert_ok(nk_token_prove(t->secret, c->claim.message, c->proof, &err), err);
}

static int consume(const struct nk_token *t, int machine, int64_t at_s, struct nk_error *err)
{
    char member[NK_MEMBER_ID_SIZE] = "";
    struct claim c;
    int rc;

    make_claim(&c, t, machine);
    rc = nk_token_consume(store, at_s, &c.claim, member, err);
    if (!rc)
        assert_string_equal(member, c.member);
    return rc;
}

static void test_token__is_good_once(void **state)
{
    struct nk_token t = create(0, 0), other = create(0, 0);
    struct nk_error err;

    (void)state;
    assert_ok(consume(&t, 1, now_s, &err), err);
    assert_reason(consume(&t, 2, now_s, &err), err, NK_E_DENIED, "used_token");
    assert_ok(consume(&other, 2, now_s, &err), err);
}

static void test_token__is_good_as_often_as_it_was_made_for(void **state)
{
    struct nk_token t = create(3, 0);
    struct nk_token_record *records;
    struct nk_error err;
    size_t n;

    (void)state;
    for (int i = 0; i < 3; i++)
        assert_ok(consume(&t, i, now_s, &err), err);
    assert_reason(consume(&t, 3, now_s, &err), err, NK_E_DENIED, "used_token");
    assert_ok(nk_token_list(store, &records, &n, &err), err);
    assert_int_equal(n, 1);
    assert_int_equal(records[0].uses, 3);
    assert_int_equal(records[0].uses_left, 0);
    free(records);
}

/* The answer was lost on its way: the same machine asks again. */
static void test_token__the_same_key_again_costs_no_use_and_gets_the_same_id(void **state)
{
    struct nk_token t = create(1, 0);
    char member[NK_MEMBER_ID_SIZE];
    struct nk_error err;
    struct claim c;

    (void)state;
    assert_ok(consume(&t, 1, now_s, &err), err);
    make_claim(&c, &t, 1);
    c.claim.member = "ffffffffffffffff"; /* drawn anew */
    assert_ok(nk_token_consume(store, now_s, &c.claim, member, &err), err);
    assert_string_equal(member, c.member);
}

static void test_token__expires(void **state)
{
    struct nk_token t = create(1, 600);
    struct nk_error err;

    (void)state;
    assert_reason(consume(&t, 1, now_s + 600, &err), err, NK_E_DENIED, "expired_token");
    assert_reason(consume(&t, 1, now_s + 7800, &err), err, NK_E_DENIED, "expired_token");
    assert_non_null(strstr(err.msg, "2 h ago"));
    assert_ok(consume(&t, 1, now_s + 599, &err), err);
}

static void test_token__can_be_revoked(void **state)
{
    struct nk_token t = create(5, 0);
    struct nk_token_record *records;
    struct nk_error err;
    size_t n;

    (void)state;
    assert_ok(consume(&t, 1, now_s, &err), err);
    assert_ok(nk_token_revoke(store, t.id, &err), err);
    assert_ok(nk_token_revoke(store, t.id, &err), err);
    assert_reason(consume(&t, 2, now_s, &err), err, NK_E_DENIED, "revoked_token");
    assert_reason(consume(&t, 1, now_s, &err), err, NK_E_DENIED, "revoked_token");
    assert_ok(nk_token_list(store, &records, &n, &err), err);
    assert_true(n == 1 && records[0].revoked);
    free(records);
    assert_reason(nk_token_revoke(store, "0000000000", &err), err, NK_E_NOT_FOUND, "unknown_token");
    assert_reason(nk_token_revoke(store, "../members", &err), err, NK_E_NOT_FOUND, "unknown_token");
}

static void test_token__without_its_secret_nobody_learns_anything_of_it(void **state)
{
    struct nk_token t = create(1, 600), wrong = t, unknown = t;
    struct nk_error err;
    struct claim c;
    char member[NK_MEMBER_ID_SIZE];

    (void)state;
    wrong.secret[15] ^= 1;
    snprintf(unknown.id, sizeof unknown.id, "%s", "0123456789");
    assert_reason(consume(&unknown, 1, now_s, &err), err, NK_E_UNAUTHENTICATED, "unknown_token");
    assert_reason(consume(&wrong, 1, now_s, &err), err, NK_E_UNAUTHENTICATED, "unknown_token");
    assert_reason(consume(&wrong, 1, now_s + 700, &err), err, NK_E_UNAUTHENTICATED,
                  "unknown_token");
    make_claim(&c, &t, 1); /* a proof of another connection */
    c.claim.message = text_bytes("another connection");
    assert_reason(nk_token_consume(store, now_s, &c.claim, member, &err), err, NK_E_UNAUTHENTICATED,
                  "unknown_token");
    c.claim.id = "no\nid";
    assert_reason(nk_token_consume(store, now_s, &c.claim, member, &err), err, NK_E_UNAUTHENTICATED,
                  "unknown_token");
    assert_null(strchr(err.msg, '\n'));
    assert_ok(consume(&t, 1, now_s, &err), err); /* all that took no use */
}

static void test_token__the_store_does_not_hold_the_secret(void **state)
{
    struct nk_token t = create(1, 600);
    struct nk_store_list list;
    char hex[33], text[NK_TOKEN_TEXT_SIZE];
    struct nk_error err;

    (void)state;
    for (int i = 0; i < 16; i++)
        snprintf(hex + 2 * i, 3, "%02x", t.secret[i]);
    assert_ok(nk_token_encode(&t, text, &err), err);
    assert_ok(nk_store_list(store, "", &list, &err), err);
    assert_int_equal(list.n, 1);
    assert_null(strstr((const char *)list.entries[0].value.data, hex));
    assert_null(strstr((const char *)list.entries[0].value.data, text + 4));
    nk_store_list_release(&list);
}

struct racer {
    const struct nk_token *token;
    int machine, rc;
    pthread_barrier_t *start;
};

static void *race(void *arg)
{
    struct racer *r = arg;
    struct nk_error err = { 0 };
    char member[NK_MEMBER_ID_SIZE];
    struct claim c;

    make_claim(&c, r->token, r->machine);
    pthread_barrier_wait(r->start);
    r->rc = nk_token_consume(store, now_s, &c.claim, member, &err);
    return NULL;
}

static void test_token__of_two_machines_that_race_exactly_one_gets_it(void **state)
{
    enum { RACERS = 4 };
    pthread_barrier_t start;

    (void)state;
    pthread_barrier_init(&start, NULL, RACERS);
    for (int round = 0; round < 20; round++) {
        struct nk_token t = create(1, 0);
        struct racer racers[RACERS];
        pthread_t threads[RACERS];
        int n_won = 0;

        for (int i = 0; i < RACERS; i++) {
            racers[i] = (struct racer){ .token = &t, .machine = i, .start = &start };
            assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]), 0);
        }
        for (int i = 0; i < RACERS; i++) {
            pthread_join(threads[i], NULL);
            n_won += racers[i].rc == 0;
            assert_true(racers[i].rc == 0 || racers[i].rc == NK_E_DENIED);
        }
        assert_int_equal(n_won, 1);
    }
    pthread_barrier_destroy(&start);
}

static void test_token__old_ones_are_forgotten(void **state)
{
    struct nk_token_opts opts = {
        .cluster = cluster, .port = 1, .n_addresses = 1, .addresses = some
    };
    struct nk_token_record *records;
    struct nk_token t;
    struct nk_error err;
    size_t n;

    (void)state;
    create(1, 600);
    assert_ok(nk_token_create(store, nk_chance_system(), now_s + 600 + 30 * 86400, &opts, &t, &err),
              err);
    assert_ok(nk_token_list(store, &records, &n, &err), err);
    assert_int_equal(n, 2);
    free(records);
    assert_ok(nk_token_create(store, nk_chance_system(), now_s + 601 + 30 * 86400, &opts, &t, &err),
              err);
    assert_ok(nk_token_list(store, &records, &n, &err), err);
    assert_int_equal(n, 2);
    free(records);
    assert_ok(nk_token_list(store, &records, &n, &err), err);
    free(records);
}

static void test_token__there_are_so_many_and_the_oldest_that_are_of_no_use_go(void **state)
{
    struct nk_token_opts opts = {
        .cluster = cluster, .ttl_s = 600, .port = 1, .n_addresses = 1, .addresses = some
    };
    struct nk_token_record *records;
    struct nk_token first, t;
    struct nk_error err;
    size_t n;

    (void)state;
    assert_ok(nk_token_create(store, nk_chance_system(), now_s, &opts, &first, &err), err);
    for (int i = 1; i < NK_TOKEN_RECORDS_MAX; i++)
        assert_ok(nk_token_create(store, nk_chance_system(), now_s + i, &opts, &t, &err), err);
    assert_reason(nk_token_create(store, nk_chance_system(), now_s + 300, &opts, &t, &err), err,
                  NK_E_EXHAUSTED, "too_many_tokens");
    assert_ok(nk_token_revoke(store, t.id[0] ? t.id : first.id, &err), err);
    assert_ok(nk_token_create(store, nk_chance_system(), now_s + 300, &opts, &t, &err), err);
    /* Two are expired: the older one goes. */
    assert_ok(nk_token_create(store, nk_chance_system(), now_s + 601, &opts, &t, &err), err);
    assert_ok(nk_token_list(store, &records, &n, &err), err);
    assert_int_equal(n, NK_TOKEN_RECORDS_MAX);
    for (size_t i = 0; i < n; i++)
        assert_string_not_equal(records[i].id, first.id);
    free(records);
}

static void test_token__refuses_settings_that_are_none(void **state)
{
    struct nk_token_opts opts = {
        .cluster = cluster, .port = 1, .n_addresses = 1, .addresses = some
    };
    struct nk_token_opts bad;
    struct nk_token t;
    struct nk_error err;

    (void)state;
#define REFUSE(change)                                                                             \
    do {                                                                                           \
        bad = opts;                                                                                \
        change;                                                                                    \
        assert_int_equal(nk_token_create(store, nk_chance_system(), now_s, &bad, &t, &err),        \
                         NK_E_INVALID);                                                            \
    } while (0)
    REFUSE(bad.ttl_s = -1);
    REFUSE(bad.ttl_s = NK_TOKEN_TTL_S_MAX + 1);
    REFUSE(bad.uses = -1);
    REFUSE(bad.uses = NK_TOKEN_USES_MAX + 1);
    REFUSE(bad.port = 0);
    REFUSE(bad.port = 65536);
    REFUSE(bad.n_addresses = 0);
    assert_ok(nk_token_create(store, nk_chance_system(), now_s, &opts, &t, &err), err);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_token__reads_back_as_it_was_written),
        TEST(test_token__is_always_below_160_characters),
        TEST(test_token__every_wrong_character_at_every_place_is_found),
        TEST(test_token__says_what_is_wrong_and_not_what_it_was),
        TEST(test_token__is_good_once),
        TEST(test_token__is_good_as_often_as_it_was_made_for),
        TEST(test_token__the_same_key_again_costs_no_use_and_gets_the_same_id),
        TEST(test_token__expires),
        TEST(test_token__can_be_revoked),
        TEST(test_token__without_its_secret_nobody_learns_anything_of_it),
        TEST(test_token__the_store_does_not_hold_the_secret),
        TEST(test_token__of_two_machines_that_race_exactly_one_gets_it),
        TEST(test_token__old_ones_are_forgotten),
        TEST(test_token__there_are_so_many_and_the_oldest_that_are_of_no_use_go),
        TEST(test_token__refuses_settings_that_are_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
