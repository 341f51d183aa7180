#include "rpc_test.h"

static void test_call__echoes_messages_of_all_sizes_in_order(void **state)
{
    const size_t sizes[] = { 0, 1, 23, 24, 64, 16384, 65536, 1 << 20, 5 << 20 };
    struct fixture *f = *state;
    struct record r;
    char *data = malloc(5 << 20);

    for (size_t i = 0; i < 5 << 20; i++)
        data[i] = (char)(i * 2654435761u >> 13);
    record_init(&r);
    assert_int_equal(record_start(&r, f->channel, "/t.T/Echo", 0), 0);
    for (int i = 0; i < (int)(sizeof sizes / sizeof sizes[0]); i++) {
        assert_int_equal(nk_call_send(r.call, data, sizes[i], NULL), 0);
        assert_true(record_wait(&r, &r.n_messages, i + 1));
        assert_int_equal(r.last.size, sizes[i]);
        if (sizes[i])
            assert_memory_equal(r.last.data, data, sizes[i]);
    }
    nk_call_send_done(r.call);
    assert_ended(&r, 0, "");
    record_release(&r);
    free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_call__echoes_messages_of_all_sizes_in_order,
                                        fixture_setup, fixture_teardown),
    };

    return cmocka_run_group_tests_name("call", tests, NULL, NULL);
}
