#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "rpc/rows.h"

/* Every half there is, to float and back, is itself (NaNs stay NaNs). */
static void test_rows__every_half_survives_the_way_there_and_back(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t in = (uint16_t)h, out;
        float f;

        nk_f32_from_f16(&f, &in, 1);
        nk_f16_from_f32(&out, &f, 1);
        if ((h & 0x7fff) > 0x7c00)
            assert_true(isnan(f) && (out & 0x7fff) > 0x7c00);
        else
            assert_int_equal(out, in);
    }
}

static void test_rows__halves_have_the_values_of_ieee_754(void **state)
{
    const uint16_t in[] = {
        0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0001, 0x0400, 0x3555, 0x7c00
    };
    const float want[] = { 0.0f,     -0.0f,           1.0f,    -2.0f, 65504.0f, 0x1p-24f,
                           0x1p-14f, 0.333251953125f, INFINITY };
    float got[9];

    (void)state;
    nk_f32_from_f16(got, in, 9);
    assert_memory_equal(got, want, sizeof want);
}

/* Rounding to nearest even, checked against the two neighbours for floats all over the range. */
static void test_rows__floats_go_to_the_nearest_half(void **state)
{
    (void)state;
    for (uint32_t u = 0; u < 0x47800000; u += 9973) {
        float f, lo, hi;
        uint16_t h, down, up;

        memcpy(&f, &u, sizeof f);
        nk_f16_from_f32(&h, &f, 1);
        if (h == 0x7c00) {
            assert_true(f >= 65520.0f);
            continue;
        }
        down = h ? (uint16_t)(h - 1) : h;
        up = (uint16_t)(h + 1);
        nk_f32_from_f16(&lo, &down, 1);
        nk_f32_from_f16(&hi, &up, 1);
        {
            float at;
            nk_f32_from_f16(&at, &h, 1);
            if (up == 0x7c00)
                hi = 65536.0f;
            assert_true(fabsf(f - at) <= fabsf(f - lo) && fabsf(f - at) <= fabsf(f - hi));
            if (h != 0 && fabsf(f - at) == fabsf(f - lo))
                assert_true((h & 1) == 0);
            if (fabsf(f - at) == fabsf(f - hi))
                assert_true((h & 1) == 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows__every_half_survives_the_way_there_and_back),
        cmocka_unit_test(test_rows__halves_have_the_values_of_ieee_754),
        cmocka_unit_test(test_rows__floats_go_to_the_nearest_half),
    };

    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
