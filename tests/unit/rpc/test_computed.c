/* What workers of a chain must agree in, and what not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "rpc/computed.h"

/* A worker's facts, all told. */
static struct nk_computed some(void)
{
    struct nk_computed c = { 0 };

    for (enum nk_fact f = 0; f < NK_FACTS; f++)
        nk_computed_set(&c, f, "this", "from %s", "here");
    return c;
}

static void test_computed__only_what_makes_another_model_is_refused(void **state)
{
    int n_must = 0;

    (void)state;
    for (enum nk_fact f = 0; f < NK_FACTS; f++) {
        const struct nk_fact_row *row = nk_fact_row(f);
        struct nk_computed a = some(), b = some();
        struct nk_error err = { 0 };
        int rc;

        assert_true(row->name && row->title && row->why);
        assert_int_equal(nk_computed_compare(&a, &b, "attic", &err), 0);
        nk_computed_set(&b, f, "that", "%d of %d", 1, 2);
        rc = nk_computed_compare(&a, &b, "attic", &err);
        if (!row->reason) {
            assert_int_equal(rc, 0);
            continue;
        }
        n_must++;
        assert_int_equal(rc, NK_E_PRECONDITION);
        assert_string_equal(err.reason, row->reason);
        assert_non_null(strstr(err.msg, row->title));
        assert_non_null(strstr(err.msg, ": this (from here); worker attic's: that (1 of 2)"));
        assert_non_null(strstr(err.msg, row->mend));
    }
    assert_int_equal(n_must, 3);
}

static void test_computed__who_does_not_tell_what_the_other_does_is_refused(void **state)
{
    struct nk_computed a = some(), b = some();
    struct nk_error err;

    (void)state;
    b.facts[NK_FACT_ROPE_FACTORS].value[0] = b.facts[NK_FACT_ROPE_FACTORS].note[0] = '\0';
    assert_int_equal(nk_computed_compare(&a, &b, "attic", &err), NK_E_PRECONDITION);
    assert_non_null(strstr(err.msg, "worker attic's: not told, as by an older version"));
    assert_int_equal(nk_computed_compare(&b, &a, "attic", &err), NK_E_PRECONDITION);
    a.facts[NK_FACT_ROPE_FACTORS] = b.facts[NK_FACT_ROPE_FACTORS]; /* the model has none */
    assert_int_equal(nk_computed_compare(&a, &b, "attic", &err), 0);
}

static void test_computed__comes_out_of_messages_as_it_went_in(void **state)
{
    struct nk_computed a = some(), b;
    Nakshatra__V1__Fact messages[NK_FACTS], *list[NK_FACTS];
    size_t n;

    (void)state;
    a.facts[NK_FACT_ROPE_FACTORS].value[0] = a.facts[NK_FACT_ROPE_FACTORS].note[0] = '\0';
    n = nk_computed_pack(&a, messages, list);
    assert_int_equal(n, NK_FACTS - 1);
    nk_computed_unpack(&b, list, n, "0.7.0");
    for (int f = 0; f < NK_FACTS; f++) {
        assert_string_equal(a.facts[f].value, b.facts[f].value);
        assert_string_equal(a.facts[f].note, b.facts[f].note);
    }
    nk_computed_unpack(&b, NULL, 0, "0.7.0"); /* an older worker */
    assert_string_equal(b.facts[NK_FACT_LLAMA].value, "0.7.0");
    assert_string_equal(b.facts[NK_FACT_GGML].value, "");
}

static void test_computed__a_peers_text_is_cut_and_cleaned(void **state)
{
    Nakshatra__V1__Fact messages[2], *list[2] = { &messages[0], &messages[1] };
    struct nk_computed c;
    char text[1000];

    (void)state;
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    memcpy(text, "\x1b[31m\xff\n", 7);
    nakshatra__v1__fact__init(&messages[0]);
    nakshatra__v1__fact__init(&messages[1]);
    messages[0].name = (char *)(uintptr_t)nk_fact_row(NK_FACT_BACKEND)->name;
    messages[0].value = messages[0].note = text;
    messages[1].name = messages[1].value = text; /* a newer worker's: left out */
    nk_computed_unpack(&c, list, 2, "");
    assert_memory_equal(c.facts[NK_FACT_BACKEND].value, "?[31m??xxx", 10);
    assert_int_equal(strlen(c.facts[NK_FACT_BACKEND].value), sizeof c.facts[0].value - 1);
    assert_int_equal(strlen(c.facts[NK_FACT_BACKEND].note), sizeof c.facts[0].note - 1);
    for (int f = 0; f < NK_FACTS; f++)
        assert_true(f == NK_FACT_BACKEND || !c.facts[f].value[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_computed__only_what_makes_another_model_is_refused),
        cmocka_unit_test(test_computed__who_does_not_tell_what_the_other_does_is_refused),
        cmocka_unit_test(test_computed__comes_out_of_messages_as_it_went_in),
        cmocka_unit_test(test_computed__a_peers_text_is_cut_and_cleaned),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
