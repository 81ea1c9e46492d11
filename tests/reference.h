/*
 * What a problem's answer is: naive attention, forward and backward, straight from the formulas.
 *
 * Computed twice, in float64 (exact) and as a straightforward program in the problem's dtype would
 * (low: sums in fp32, scores, probabilities and results rounded to the dtype), together with how far
 * a result may be moved (noise) by rounding in fp32 and by rounding probabilities and ds to the dtype,
 * which no program on matrix units can do without: of the first the most, of the second, being many
 * and independent, the standard deviation. Shares no code with the product. Any thread.
 */
#pragma once

#include "tensor.h"

/* Indexed by tensor_id; results are in the order of tensor_at(). NULL: not a result. */
struct reference {
    int64_t count[TENSOR_COUNT];
    double *exact[TENSOR_COUNT]; /* owned, as all below */
    double *low[TENSOR_COUNT];
    double *noise[TENSOR_COUNT];
};

/*
 * Reads the inputs of the problem through its views. Forward gives out and lse; backward adds dq,
 * dk, dv and those of dbias, dslopes, dsinks whose input is there. Backward uses its own out and lse,
 * not the problem's: its gradients are the true ones.
 */
struct reference *reference_create(
    enum attn_direction direction, const struct attn_problem *problem);
/*
 * The same with another low: one that keeps scores, dout . v and ds in fp32, and rounds to the dtype only
 * what is a factor of a product or a result. Where scores are large, low errs so much by rounding them
 * that anything would pass beside it; this one does not.
 */
struct reference *reference_create_strict(
    enum attn_direction direction, const struct attn_problem *problem);
void reference_destroy(struct reference *reference);

/* The sum of weight * result over out (dout's values) and lse (dlse's, if given), in float64. */
double reference_loss(const struct attn_problem *problem);

/* d loss / d element number index of an input, by a central difference; writes the input and puts it
 * back. */
double reference_slope(
    const struct attn_problem *problem, const struct tensor *input, int64_t index);
