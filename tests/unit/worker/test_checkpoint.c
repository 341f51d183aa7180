/* Checkpoints: where they are made, and which go when there is no room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "unit/seed.h"
#include "worker/checkpoint.h"

enum { SIZE = 100, CHUNK = 64, EVERY = 256 };

static struct nk__checkpoints_all all;

static void set_up(uint64_t n_session, uint64_t n_all)
{
    struct nk__checkpoint_limits limits = { n_session * SIZE, n_all * SIZE, EVERY };

    nk__checkpoints_all_init(&all, &limits);
}

/* Nothing may be left when all sessions are over. */
static void tear_down(void)
{
    assert_true(TAILQ_EMPTY(&all.sets));
    assert_int_equal(atomic_load(&all.n), 0);
    assert_int_equal(atomic_load(&all.bytes), 0);
    nk__checkpoints_all_release(&all);
}

static nk__checkpoints *new_set(void)
{
    struct nk_error err;
    nk__checkpoints *c;

    assert_int_equal(nk__checkpoints_new(&c, &all, &err), 0);
    return c;
}

static void put(nk__checkpoints *c, int pos, enum nk_checkpoint_kind kind)
{
    nk__state *s = nk__state_new(SIZE);

    assert_non_null(s);
    memset(nk__state_data(s), pos, SIZE);
    nk__checkpoints_put(c, pos, kind, s);
    assert_true(atomic_load(&all.bytes) <= all.limits.all_bytes);
    assert_int_equal(atomic_load(&all.bytes), atomic_load(&all.n) * SIZE);
}

static int count(nk__checkpoints *c, int end)
{
    int n = 0;

    for (int pos = 1; pos <= end; pos++)
        n += nk__checkpoints_kind_at(c, pos) != NK_CHECKPOINT_NONE;
    return n;
}

static bool has(nk__checkpoints *c, int pos)
{
    return nk__checkpoints_kind_at(c, pos) != NK_CHECKPOINT_NONE;
}

/* ---- where ---- */

/* Of a prompt and an answer of 600, from `begin` on: the positions. */
static int positions(int *out, int begin, int n_prompt, int chunk, int every)
{
    int n = 0;

    for (int pos = begin, end; pos < n_prompt + 600; pos = end) {
        end = pos >= n_prompt ? pos + 1 : pos + chunk < n_prompt ? pos + chunk : n_prompt;
        if (nk__checkpoint_kind(pos, end, n_prompt, chunk, every))
            out[n++] = end;
    }
    return n;
}

static void assert_positions(int begin, int n_prompt, int every, int n, const int *expected)
{
    int found[64];

    assert_int_equal(positions(found, begin, n_prompt, CHUNK, every), n);
    assert_memory_equal(found, expected, (size_t)n * sizeof *found);
}

static void kind__the_prompts_end_and_before_it_and_multiples(void **state)
{
    (void)state;
    assert_positions(0, 275, EVERY, 4, (int[]){ 256, 275, 512, 768 });
    assert_positions(0, 275, 0, 2, (int[]){ 256, 275 });
    assert_positions(0, 700, EVERY, 7, (int[]){ 256, 512, 640, 700, 768, 1024, 1280 });
    /* Its last chunk is what a next turn may leave out: the end before that one. */
    assert_positions(0, 260, 0, 2, (int[]){ 192, 260 });
    assert_positions(0, 264, 0, 2, (int[]){ 256, 264 });
    assert_positions(0, 40, 0, 1, (int[]){ 40 });
    /* One that went back to the middle of a chunk. */
    assert_positions(150, 400, EVERY, 5, (int[]){ 278, 342, 400, 512, 768 });
}

static void kind__the_last_words_can_always_differ(void **state)
{
    (void)state;
    for (int n_prompt = CHUNK + NK_CHECKPOINT_TAIL; n_prompt < 600; n_prompt++)
        for (int chunk = 1; chunk <= CHUNK; chunk += 9) {
            bool found = false;

            for (int pos = 0, end; pos < n_prompt; pos = end) {
                end = pos + chunk < n_prompt ? pos + chunk : n_prompt;
                found |= nk__checkpoint_kind(pos, end, n_prompt, chunk, 0) &&
                         end <= n_prompt - NK_CHECKPOINT_TAIL &&
                         end > n_prompt - NK_CHECKPOINT_TAIL - chunk;
            }
            assert_true(found);
        }
}

/* ---- what is there ---- */

static void set__positions(void **state)
{
    nk__checkpoints *c;
    nk__state *s;

    (void)state;
    set_up(16, 64);
    c = new_set();
    assert_int_equal(nk__checkpoints_floor(c, 1000), 0);
    put(c, 64, NK_CHECKPOINT_REGULAR);
    put(c, 128, NK_CHECKPOINT_PROMPT);
    assert_int_equal(nk__checkpoints_floor(c, 63), 0);
    assert_int_equal(nk__checkpoints_floor(c, 64), 64);
    assert_int_equal(nk__checkpoints_floor(c, 127), 64);
    assert_int_equal(nk__checkpoints_floor(c, 5000), 128);
    assert_int_equal(nk__checkpoints_kind_at(c, 128), NK_CHECKPOINT_PROMPT);
    assert_int_equal(nk__checkpoints_kind_at(c, 127), NK_CHECKPOINT_NONE);
    assert_null(nk__checkpoints_get(c, 100));
    assert_false(nk__checkpoints_pin(c, 100));
    assert_true(nk__checkpoints_pin(c, 64));
    s = nk__checkpoints_get(c, 64);
    assert_int_equal(nk__state_size(s), SIZE);
    assert_int_equal(*(uint8_t *)nk__state_data(s), 64);
    nk__checkpoints_truncate(c, 64);
    assert_false(has(c, 128));
    nk__checkpoints_truncate(c, 10); /* s stays whole: it is being read */
    assert_int_equal(*(uint8_t *)nk__state_data(s), 64);
    assert_int_equal(atomic_load(&all.n), 1);
    nk__checkpoints_release(c, s);
    put(c, 70, NK_CHECKPOINT_REGULAR);
    put(c, 65, NK_CHECKPOINT_REGULAR); /* goes on from before: what was after it is gone */
    assert_int_equal(count(c, 100), 1);
    nk__checkpoints_free(c);
    tear_down();
}

static void set__none(void **state)
{
    (void)state;
    set_up(1, 1);
    nk__checkpoints_put(NULL, 5, NK_CHECKPOINT_PROMPT, nk__state_new(SIZE));
    assert_false(nk__checkpoints_could(NULL, SIZE));
    assert_int_equal(nk__checkpoints_floor(NULL, 5), 0);
    assert_false(nk__checkpoints_pin(NULL, 5));
    assert_null(nk__checkpoints_get(NULL, 5));
    nk__checkpoints_truncate(NULL, 5);
    nk__checkpoints_share(NULL, NULL, 5);
    nk__checkpoints_free(NULL);
    tear_down();
}

/* A session that began in another one has its states, not copies of them. */
static void share__is_no_copy(void **state)
{
    nk__checkpoints *a, *b;

    (void)state;
    set_up(16, 64);
    a = new_set(), b = new_set();
    put(a, 64, NK_CHECKPOINT_REGULAR);
    put(a, 128, NK_CHECKPOINT_PROMPT);
    put(a, 140, NK_CHECKPOINT_PROMPT);
    nk__checkpoints_share(b, a, 128);
    assert_int_equal(count(b, 200), 2);
    assert_int_equal(atomic_load(&all.n), 3);
    nk__checkpoints_free(a);
    assert_int_equal(atomic_load(&all.n), 2);
    assert_true(has(b, 128));
    nk__checkpoints_free(b);
    tear_down();
}

/* ---- ceilings ---- */

static void ceiling__a_long_session_thins_out_with_the_distance(void **state)
{
    nk__checkpoints *c;

    (void)state;
    set_up(16, 64);
    c = new_set();
    for (int pos = 256; pos <= 256 * 400; pos += 256) {
        put(c, pos, NK_CHECKPOINT_REGULAR);
        assert_true(count(c, pos) <= NK_CHECKPOINTS_MAX);
        assert_true(has(c, pos));
        /* Whoever goes back by some tokens computes a few times as many again, not all. */
        for (int back = 256; back < pos; back += 256)
            assert_true(pos - back - nk__checkpoints_floor(c, pos - back) <= 4 * back);
    }
    nk__checkpoints_free(c);
    tear_down();
}

static void ceiling__the_prompts_end_goes_last(void **state)
{
    nk__checkpoints *c;

    (void)state;
    set_up(4, 64);
    c = new_set();
    put(c, 256, NK_CHECKPOINT_PROMPT);
    put(c, 275, NK_CHECKPOINT_PROMPT);
    for (int pos = 512; pos < 10000; pos += 256)
        put(c, pos, NK_CHECKPOINT_REGULAR);
    assert_true(has(c, 256) && has(c, 275));
    assert_int_equal(count(c, 10000), 4);
    /* The next turn's is more than the last one's. */
    put(c, 10010, NK_CHECKPOINT_PROMPT);
    put(c, 10040, NK_CHECKPOINT_PROMPT);
    for (int pos = 10240; pos < 40000; pos += 256)
        put(c, pos, NK_CHECKPOINT_REGULAR);
    assert_true(has(c, 10010) && has(c, 10040));
    assert_false(has(c, 256));
    nk__checkpoints_free(c);
    tear_down();
}

static void ceiling__of_all(void **state)
{
    nk__checkpoints *a, *b;

    (void)state;
    set_up(4, 4);
    a = new_set(), b = new_set();
    put(a, 64, NK_CHECKPOINT_PROMPT);
    put(a, 80, NK_CHECKPOINT_PROMPT);
    put(a, 256, NK_CHECKPOINT_REGULAR);
    put(a, 512, NK_CHECKPOINT_REGULAR);
    put(b, 64, NK_CHECKPOINT_PROMPT); /* the other's regular ones go first */
    put(b, 80, NK_CHECKPOINT_PROMPT);
    assert_true(has(a, 64) && has(a, 80) && has(b, 64) && has(b, 80));
    put(b, 256, NK_CHECKPOINT_REGULAR); /* and it pushes out nobody's prompt */
    assert_false(has(b, 256));
    assert_true(has(a, 64) && has(a, 80) && has(b, 64) && has(b, 80));
    assert_true(nk__checkpoints_pin(a, 64)); /* somebody is on the way back to it */
    nk__checkpoints_pin(b, 64);              /* b was used later */
    put(b, 300, NK_CHECKPOINT_PROMPT);
    put(b, 400, NK_CHECKPOINT_PROMPT);
    assert_true(has(a, 64));
    assert_false(has(a, 80));
    nk__checkpoints_free(a);
    nk__checkpoints_free(b);
    tear_down();
}

static void ceiling__one_that_never_fits_is_not_copied(void **state)
{
    nk__checkpoints *c;

    (void)state;
    set_up(2, 4);
    c = new_set();
    put(c, 64, NK_CHECKPOINT_PROMPT);
    assert_true(nk__checkpoints_could(c, 2 * SIZE));
    assert_false(nk__checkpoints_could(c, 2 * SIZE + 1));
    assert_false(nk__checkpoints_could(c, 0));
    nk__checkpoints_put(c, 70, NK_CHECKPOINT_PROMPT, nk__state_new(2 * SIZE + 1));
    assert_true(has(c, 64)); /* nothing went for what is not kept either */
    nk__checkpoints_free(c);
    tear_down();
}

/* Whatever comes: never over a ceiling, in order, and all of it is gone at the end. */
static void ceiling__a_walk(void **state)
{
    uint64_t seed = seed_begin();
    nk__checkpoints *c[5];
    int at[5] = { 0 };

    (void)state;
    set_up(6, 14);
    for (int i = 0; i < 5; i++)
        c[i] = new_set();
    for (int step = 0; step < 20000; step++) {
        int i = (int)(seed_next(&seed) % 5), back;

        switch (seed_next(&seed) % 16) {
        case 0:
            nk__checkpoints_free(c[i]);
            c[i] = new_set();
            at[i] = 0;
            break;
        case 1:
            back = at[i] ? (int)(seed_next(&seed) % (unsigned)at[i]) : 0;
            back = nk__checkpoints_floor(c[i], back);
            if (back && nk__checkpoints_pin(c[i], back)) {
                nk__state *s;

                for (int k = 0; k < 5; k++)
                    if (k != i)
                        put(c[k], at[k] += 7, NK_CHECKPOINT_PROMPT);
                s = nk__checkpoints_get(c[i], back);
                assert_non_null(s);
                nk__checkpoints_release(c[i], s);
                nk__checkpoints_truncate(c[i], back);
                at[i] = back;
            }
            break;
        default:
            at[i] += 1 + (int)(seed_next(&seed) % 100);
            put(c[i], at[i], seed_next(&seed) % 4 ? NK_CHECKPOINT_REGULAR : NK_CHECKPOINT_PROMPT);
        }
        assert_true(nk__checkpoints_floor(c[i], at[i]) <= at[i]);
    }
    for (int i = 0; i < 5; i++)
        nk__checkpoints_free(c[i]);
    tear_down();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kind__the_prompts_end_and_before_it_and_multiples),
        cmocka_unit_test(kind__the_last_words_can_always_differ),
        cmocka_unit_test(set__positions),
        cmocka_unit_test(set__none),
        cmocka_unit_test(share__is_no_copy),
        cmocka_unit_test(ceiling__a_long_session_thins_out_with_the_distance),
        cmocka_unit_test(ceiling__the_prompts_end_goes_last),
        cmocka_unit_test(ceiling__of_all),
        cmocka_unit_test(ceiling__one_that_never_fits_is_not_copied),
        cmocka_unit_test(ceiling__a_walk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
