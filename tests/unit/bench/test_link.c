/* When a packet arrives at the other end of a slow link, to the nanosecond. */
#include "bench/link.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { MS = 1000000 };

static void test_link__a_packet_takes_its_time_on_the_line_and_half_the_round_trip(void **state)
{
    struct nk_wan_shape shape = { .round_trip_ms = 40, .mbit = 8 }; /* 1 us a byte */
    struct nk_link l;

    (void)state;
    nk_link_init(&l, &shape, 1);
    assert_int_equal(nk_link_due(&l, 1000 * MS, 1000), 1000 * MS + 1 * MS + 20 * MS);
    /* Two more while the line is busy: one after the other. */
    assert_int_equal(nk_link_due(&l, 1000 * MS, 1500), 1000 * MS + 2500000 + 20 * MS);
    assert_int_equal(nk_link_due(&l, 1001 * MS, 500), 1000 * MS + 3 * MS + 20 * MS);
    /* And one when it is idle again. */
    assert_int_equal(nk_link_due(&l, 1100 * MS, 1000), 1100 * MS + 1 * MS + 20 * MS);
}

static void test_link__bulk_arrives_at_the_rate_of_the_line(void **state)
{
    struct nk_wan_shape shape = { .round_trip_ms = 40, .mbit = 8 };
    uint64_t last = 0;
    struct nk_link l;

    (void)state;
    nk_link_init(&l, &shape, 1);
    for (int i = 0; i < 500; i++)
        last = nk_link_due(&l, 1000 * MS, 1000);
    assert_int_equal(last, 1000 * MS + 500 * MS + 20 * MS);
}

static void test_link__jitter_is_a_bursts_own_and_keeps_the_order(void **state)
{
    struct nk_wan_shape shape = { .round_trip_ms = 75, .jitter_ms = 30, .mbit = 1000 };
    uint64_t now = 1000 * MS, before = 0, least = UINT64_MAX, most = 0;
    struct nk_link l;

    (void)state;
    nk_link_init(&l, &shape, 1);
    for (int i = 0; i < 10000; i++, now += 50 * MS) {
        uint64_t a = nk_link_due(&l, now, 100), b = nk_link_due(&l, now + MS, 100), took = a - now;

        assert_true(a >= before);
        assert_int_equal(b - a, MS); /* one burst */
        before = b;
        least = took < least ? took : least;
        most = took > most ? took : most;
    }
    /* 37.5 ms and 800 ns on the line, 15 ms more or less; and nearly all of that is drawn. */
    assert_in_range(least, 22500800, 22800000);
    assert_in_range(most, 52200000, 52500800);
    /* A packet of the next burst never overtakes one that was held up. */
    nk_link_init(&l, &shape, 1);
    for (int i = 0; i < 10000; i++, before = least) {
        least = nk_link_due(&l, now + (uint64_t)i * 3 * MS, 100);
        assert_true(i == 0 || least >= before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link__a_packet_takes_its_time_on_the_line_and_half_the_round_trip),
        cmocka_unit_test(test_link__bulk_arrives_at_the_rate_of_the_line),
        cmocka_unit_test(test_link__jitter_is_a_bursts_own_and_keeps_the_order),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
