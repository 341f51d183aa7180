#include "cluster_test.h"

#include "cluster/roster.h"

static const char text[] = "nakshatra-members 1 42\n"
                           "0123456789abcdef gateway attic\n"
                           "fedcba9876543210 member cellar-2\n";

static void test_roster__reads_back_as_it_was_written(void **state)
{
    struct nk_buf out = NK_BUF_INIT(NK_ROSTER_BYTES_MAX);
    struct nk_roster r = { .revision = 42 }, read;
    struct nk_error err;

    (void)state;
    assert_ok(nk_roster_put(&r, "0123456789abcdef", false, "attic", &err), err);
    assert_ok(nk_roster_put(&r, "fedcba9876543210", false, "cellar-2", &err), err);
    assert_ok(nk_roster_put(&r, "0123456789abcdef", true, "attic", &err), err); /* changed */
    assert_ok(nk_roster_format(&r, &out, &err), err);
    assert_string_equal(nk_buf_str(&out), text);
    assert_ok(nk_roster_parse(&read, buf_bytes(&out), &err), err);
    assert_int_equal(read.revision, 42);
    assert_int_equal(read.n, 2);
    assert_true(nk_roster_find(&read, "0123456789abcdef")->gateway);
    assert_string_equal(nk_roster_find(&read, "fedcba9876543210")->name, "cellar-2");
    assert_null(nk_roster_find(&read, "0000000000000000"));
    assert_reason(nk_roster_put(&r, "0123", false, "x", &err), err, NK_E_INVALID, "bad_member");
    assert_reason(nk_roster_put(&r, "0123456789abcdef", false, "a b", &err), err, NK_E_INVALID,
                  "bad_name");
    nk_roster_release(&r);
    nk_roster_release(&read);
    nk_buf_release(&out);
}

static void test_roster__refuses_what_is_none(void **state)
{
    static const char *const bad[] = {
        "",
        "nakshatra-members 1 42",
        "nakshatra-members 1 \n",
        "nakshatra-members 1 x\n",
        "nakshatra-members 1 4 2\n",
        "nakshatra-members 1 -1\n",
        "nakshatra-members 2 42\n",
        "members 1 42\n",
        "nakshatra-members 1 42\n0123456789abcdef gateway attic",
        "nakshatra-members 1 42\n0123456789abcdef owner attic\n",
        "nakshatra-members 1 42\n0123456789abcde gateway attic\n",
        "nakshatra-members 1 42\n0123456789abcdeF gateway attic\n",
        "nakshatra-members 1 42\n0123456789abcdef gateway \n",
        "nakshatra-members 1 42\n0123456789abcdef gateway a b\n",
        "nakshatra-members 1 42\n0123456789abcdef gateway .a\n",
        "nakshatra-members 1 42\n\n",
        "nakshatra-members 1 42\n0123456789abcdef gateway a\n0123456789abcdef member b\n",
    };
    struct nk_roster r;
    struct nk_error err;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int rc = nk_roster_parse(&r, text_bytes(bad[i]), &err);

        if (rc != NK_E_INVALID)
            fail_msg("'%s' was taken", bad[i]);
        assert_string_equal(err.reason, "bad_roster");
        assert_null(r.members);
    }
    assert_ok(nk_roster_parse(&r, text_bytes("nakshatra-members 1 0\n"), &err), err);
    assert_int_equal(r.n, 0);
}

static void test_roster__names_are_made_of_host_names(void **state)
{
    static const char *const names[][2] = {
        { "attic", "attic" },
        { "Attic.example.net", "Attic" },
        { "my host's", "my-host-s" },
        { "-a-", "a" },
        { "", "machine" },
        { "...", "machine" },
        { "\xe5\xb1\x8b", "machine" },
        { "a\xc3\xa4", "a" },
    };
    char name[NK_MEMBER_NAME_SIZE], longest[200];

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        nk_member_name_make(name, names[i][0]);
        assert_string_equal(name, names[i][1]);
        assert_true(nk_member_name_is(name));
    }
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_false(nk_member_name_is(longest));
    nk_member_name_make(name, longest);
    assert_true(nk_member_name_is(name));
    assert_int_equal(strlen(name), 63);
    assert_false(nk_member_name_is("a/b"));
    assert_false(nk_member_name_is("a\n"));
    assert_false(nk_member_name_is(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roster__reads_back_as_it_was_written),
        cmocka_unit_test(test_roster__refuses_what_is_none),
        cmocka_unit_test(test_roster__names_are_made_of_host_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
