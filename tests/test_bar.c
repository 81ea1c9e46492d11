#include "bar.h"

#include <criterion/criterion.h>
#include <math.h>

static double ratio_of(double ours, double exact, double low, double noise)
{
    return bar_check(ATTN_FP16, 2, 1, &ours, &exact, &low, &noise).ratio;
}

Test(bar, allows_a_multiple_of_the_low_precision_error)
{
    /* 1 and 1.3 lie on no finer grid than 2^-10: (1 + 0.3) - 0.3 in fp16 is off by at most that. */
    double grid =
        2 * fabs(dtype_round(ATTN_FP16, dtype_round(ATTN_FP16, 1 + dtype_round(ATTN_FP16, 0.3)) -
                                            dtype_round(ATTN_FP16, 0.3)) -
                 1);
    double limit = 2 * 0.25 + grid;
    cr_expect(ratio_of(1, 1, 1, 0) == 0);
    cr_expect(ratio_of(1 + 0.9 * limit, 1, 1.25, 0) < 1);
    cr_expect(ratio_of(1 + 1.1 * limit, 1, 1.25, 0) > 1);
    cr_expect(ratio_of(1 - 1.1 * limit, 1, 1.25, 0) > 1);
    cr_expect(ratio_of(1 + 0.9 * limit, 1, 1, 0.25) < 1, "noise counts like low's error");
}

Test(bar, not_a_number_never_passes)
{
    cr_expect(ratio_of(NAN, 1, 1, 0) > 1);
    cr_expect(ratio_of(NAN, 1, NAN, 0) > 1);
    cr_expect(ratio_of(NAN, -INFINITY, -INFINITY, 0) > 1);
    cr_expect(ratio_of(NAN, NAN, NAN, 0) > 1);
}

Test(bar, infinities_must_match)
{
    cr_expect(ratio_of(-INFINITY, -INFINITY, -INFINITY, 0) == 0);
    cr_expect(ratio_of(-INFINITY, -INFINITY, -3, 0) == 0);
    cr_expect(ratio_of(INFINITY, -INFINITY, -INFINITY, 0) > 1);
    cr_expect(ratio_of(-60000, -INFINITY, -INFINITY, 0) > 1);
    cr_expect(ratio_of(-INFINITY, -60000, -INFINITY, 0) > 1);
    cr_expect(ratio_of(INFINITY, 70000, INFINITY, 0) == 0, "beyond the dtype's range");
    cr_expect(ratio_of(-INFINITY, 70000, INFINITY, 0) > 1, "beyond it on the other side");
    cr_expect(ratio_of(INFINITY, 65500, 65480, 0) <= 1, "65520 is infinite, and within the bar");
    cr_expect(ratio_of(INFINITY, 65000, 65000, 0) > 1);
}

Test(bar, one_bad_element_among_many_is_found)
{
    double ours[100];
    double exact[100];
    double noise[100] = {0};
    for (int i = 0; i < 100; i++) {
        exact[i] = i / 7.0;
        ours[i] = dtype_round(ATTN_FP16, exact[i]);
    }
    struct bar good = bar_check(ATTN_FP16, 2, 100, ours, exact, ours, noise);
    cr_expect(good.ratio <= 1);
    double low[100];
    for (int i = 0; i < 100; i++) {
        low[i] = ours[i];
    }
    ours[42] += 0.125;
    struct bar bad = bar_check(ATTN_FP16, 2, 100, ours, exact, low, noise);
    cr_expect(bad.ratio > 1 && bad.worst == 42);
}

/* The second of two elements may be far off: that is no excuse for the first. */
Test(bar, noise_of_another_element_is_no_excuse)
{
    const double exact[] = {1, 1};
    const double low[] = {1, 1};
    const double noise[] = {0.01, 1000};
    double ours[] = {1.05, 900};
    cr_expect(bar_check(ATTN_FP32, 2, 2, ours, exact, low, noise).ratio <= 1);
    ours[0] = 1.1;
    struct bar bar = bar_check(ATTN_FP32, 2, 2, ours, exact, low, noise);
    cr_expect(bar.ratio > 1 && bar.worst == 0, "ratio %g of number %d", bar.ratio, (int)bar.worst);
}

Test(bar, endless_noise_is_no_excuse_for_nan)
{
    const double exact = 1;
    const double ours = NAN;
    const double noise = INFINITY;
    cr_expect(bar_check(ATTN_FP32, 2, 1, &ours, &exact, &exact, &noise).ratio > 1);
}
