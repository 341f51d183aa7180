#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/clock.h"
#include "gateway/admission.h"

struct one {
    struct nk_ticket t;
    atomic_int started, expired;
    int order;
};
static atomic_int n_started;

static void on_start(struct nk_ticket *t)
{
    struct one *o = t->user;

    o->order = atomic_fetch_add(&n_started, 1);
    atomic_store(&o->started, 1);
}

static void on_expire(struct nk_ticket *t, const struct nk_error *err)
{
    assert_string_equal(err->reason, "queue_timeout");
    atomic_store(&((struct one *)t->user)->expired, 1);
}

static void init(struct one *o, int n)
{
    for (int i = 0; i < n; i++) {
        memset(&o[i], 0, sizeof o[i]);
        o[i].t = (struct nk_ticket){ .start = on_start, .expire = on_expire, .user = &o[i] };
    }
    atomic_store(&n_started, 0);
}

static int enter(nk_admission *a, struct one *o, int n, struct nk_error *err)
{
    struct nk_ticket *list[8];

    for (int i = 0; i < n; i++)
        list[i] = &o[i].t;
    return nk__admission_enter(a, list, n, err);
}

static void wait_for(atomic_int *flag)
{
    for (int i = 0; i < 5000 && !atomic_load(flag); i++)
        nk_sleep_ms(1);
    assert_true(atomic_load(flag));
}

static void test_admission__starts_in_order_and_only_as_many_as_fit(void **state)
{
    struct one o[4];
    struct nk_error err;
    nk_admission *a;

    (void)state;
    init(o, 4);
    assert_int_equal(nk__admission_start(&a, 2, 60000, NULL, NULL, &err), 0);
    assert_int_equal(enter(a, o, 2, &err), 0); /* nothing starts before the capacity is known */
    nk_sleep_ms(20);
    assert_false(atomic_load(&o[0].started));
    nk__admission_set_capacity(a, 1);
    wait_for(&o[0].started);
    assert_int_equal(nk__admission_counts(a).waiting, 1);
    assert_int_equal(enter(a, o + 2, 2, &err), NK_E_EXHAUSTED); /* both or none */
    assert_string_equal(err.reason, "queue_full");
    assert_int_equal(enter(a, o + 2, 1, &err), 0);
    nk_sleep_ms(20);
    assert_false(atomic_load(&o[1].started));
    nk__admission_leave(a, &o[0].t);
    wait_for(&o[1].started);
    assert_false(nk__admission_withdraw(a, &o[1].t));
    assert_true(nk__admission_withdraw(a, &o[2].t));
    assert_false(nk__admission_withdraw(a, &o[2].t));
    nk__admission_leave(a, &o[1].t);
    assert_int_equal(nk__admission_counts(a).running, 0);
    assert_int_equal(o[1].order, 1);
    nk__admission_stop(a);
}

static void test_admission__waiting_has_an_end(void **state)
{
    struct one o[2];
    struct nk_error err;
    nk_admission *a;

    (void)state;
    init(o, 2);
    assert_int_equal(nk__admission_start(&a, 2, 50, NULL, NULL, &err), 0);
    nk__admission_set_capacity(a, 1);
    assert_int_equal(enter(a, o, 2, &err), 0);
    wait_for(&o[0].started);
    wait_for(&o[1].expired);
    assert_false(atomic_load(&o[0].expired));
    assert_int_equal(nk__admission_counts(a).waiting, 0);
    nk__admission_leave(a, &o[0].t);
    nk__admission_stop(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_admission__starts_in_order_and_only_as_many_as_fit),
        cmocka_unit_test(test_admission__waiting_has_an_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
