#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <cmocka.h>

#include "gateway/door.h"

enum { GUESTS = 64 };

static nk_door *door;
static nk_guest *guests[GUESTS];
static bool evicted[GUESTS];

static void on_evict(void *connection)
{
    evicted[(bool *)connection - evicted] = true;
}

static void begin(int places, int per_address, int spare)
{
    struct nk_door_opts o = { .places = places,
                              .places_per_address = per_address,
                              .spare_places = spare,
                              .evict = on_evict };

    memset(guests, 0, sizeof guests);
    memset(evicted, 0, sizeof evicted);
    assert_int_equal(nk__door_new(&door, &o, NULL), 0);
}

static void end(void)
{
    for (int i = 0; i < GUESTS; i++)
        if (guests[i])
            nk__door_leave(guests[i]);
    nk__door_free(door);
}

static enum nk_door_place enter(int i, const char *address)
{
    struct sockaddr_in6 six = { .sin6_family = AF_INET6 };
    struct sockaddr_in four = { .sin_family = AF_INET };
    bool is_six = strchr(address, ':');

    assert_int_equal(is_six ? inet_pton(AF_INET6, address, &six.sin6_addr)
                            : inet_pton(AF_INET, address, &four.sin_addr),
                     1);
    guests[i] = nk__door_enter(door, is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four,
                               &evicted[i]);
    assert_non_null(guests[i]);
    return nk__door_place(guests[i]);
}

static void leave(int i)
{
    nk__door_leave(guests[i]);
    guests[i] = NULL;
}

/* "0110": who was evicted, of the first ones. */
static void assert_evicted(const char *wanted)
{
    char is[GUESTS + 1] = "";

    for (size_t i = 0; i < strlen(wanted); i++)
        is[i] = evicted[i] ? '1' : '0';
    assert_string_equal(is, wanted);
}

static void test_door__one_address_has_its_share_and_the_longest_waiting_yields(void **state)
{
    (void)state;
    begin(4, 2, 1);
    assert_int_equal(enter(0, "10.0.0.1"), NK_DOOR_PLACE);
    assert_int_equal(enter(1, "10.0.0.1"), NK_DOOR_PLACE);
    assert_evicted("00");
    assert_int_equal(enter(2, "10.0.0.1"), NK_DOOR_PLACE);
    assert_evicted("100");
    nk__door_busy(guests[1]);
    nk__door_busy(guests[0]); /* what it sent before it was evicted: too late */
    assert_int_equal(enter(3, "10.0.0.1"), NK_DOOR_PLACE);
    assert_evicted("1010");
    nk__door_busy(guests[3]);
    /* All it has is under way: a spare place, and the next takes that. */
    assert_int_equal(enter(4, "10.0.0.1"), NK_DOOR_ADDRESS);
    assert_evicted("10100");
    assert_int_equal(enter(5, "10.0.0.1"), NK_DOOR_ADDRESS);
    assert_evicted("101010");
    nk__door_busy(guests[5]); /* a probe that is being answered keeps its place */
    assert_int_equal(enter(6, "10.0.0.1"), NK_DOOR_ADDRESS);
    assert_evicted("1010101");
    nk__door_idle(guests[5]);
    assert_int_equal(enter(7, "10.0.0.1"), NK_DOOR_ADDRESS);
    assert_evicted("10101110");
    /* Others have theirs. */
    assert_int_equal(enter(8, "10.0.0.2"), NK_DOOR_PLACE);
    assert_int_equal(enter(9, "10.0.0.2"), NK_DOOR_PLACE);
    assert_evicted("1010111000");
    end();
}

static void test_door__when_all_is_taken_the_address_with_the_most_yields(void **state)
{
    (void)state;
    begin(5, 4, 2);
    enter(0, "10.0.0.1");
    enter(1, "10.0.0.2");
    enter(2, "10.0.0.2");
    enter(3, "10.0.0.2");
    enter(4, "10.0.0.3");
    assert_int_equal(enter(5, "10.0.0.4"), NK_DOOR_PLACE);
    assert_evicted("010000");
    nk__door_busy(guests[2]);
    nk__door_busy(guests[3]);
    /* Of those with something to yield. */
    assert_int_equal(enter(6, "10.0.0.5"), NK_DOOR_PLACE);
    assert_int_equal(enter(7, "10.0.0.6"), NK_DOOR_PLACE);
    assert_evicted("11001000"); /* those that wait longest */
    for (int i = 0; i < 8; i++)
        nk__door_busy(guests[i]);
    assert_int_equal(enter(8, "10.0.0.7"), NK_DOOR_FULL);
    assert_int_equal(enter(9, "10.0.0.8"), NK_DOOR_FULL);
    assert_false(evicted[8] || evicted[9]);
    /* A place becomes free, and is the next one's. */
    leave(2);
    assert_int_equal(enter(10, "10.0.0.9"), NK_DOOR_PLACE);
    end();
}

static void test_door__an_idle_connection_waits_from_its_last_reply_on(void **state)
{
    (void)state;
    begin(2, 2, 1);
    enter(0, "10.0.0.1");
    enter(1, "10.0.0.1");
    nk__door_busy(guests[0]);
    nk__door_idle(guests[0]);
    enter(2, "10.0.0.2");
    assert_evicted("010");
    end();
}

static void test_door__an_ipv6_network_is_one_address_and_a_mapped_ipv4_its_own(void **state)
{
    (void)state;
    begin(100, 1, 1);
    enter(0, "2001:db8::1");
    enter(1, "2001:db8::ffff:1");
    assert_evicted("10");
    enter(2, "2001:db8:0:1::1");
    assert_evicted("100");
    enter(3, "::ffff:10.0.0.1");
    enter(4, "::ffff:10.0.0.2");
    assert_evicted("10000");
    enter(5, "10.0.0.1");
    assert_evicted("100100");
    end();
}

static void test_door__who_finds_not_even_a_spare_place_goes(void **state)
{
    (void)state;
    begin(1, 1, 1);
    enter(0, "10.0.0.1");
    nk__door_busy(guests[0]);
    enter(1, "10.0.0.1");
    nk__door_busy(guests[1]);
    enter(2, "10.0.0.1");
    assert_evicted("001");
    leave(1);
    assert_int_equal(enter(3, "10.0.0.1"), NK_DOOR_ADDRESS);
    assert_evicted("0010");
    end();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_door__one_address_has_its_share_and_the_longest_waiting_yields),
        cmocka_unit_test(test_door__when_all_is_taken_the_address_with_the_most_yields),
        cmocka_unit_test(test_door__an_idle_connection_waits_from_its_last_reply_on),
        cmocka_unit_test(test_door__an_ipv6_network_is_one_address_and_a_mapped_ipv4_its_own),
        cmocka_unit_test(test_door__who_finds_not_even_a_spare_place_goes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
