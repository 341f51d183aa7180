/* How far two computations of the same logits are apart: rows compared and counted. Pure. */
#ifndef NK_STAGE_DIFFERENCE_H
#define NK_STAGE_DIFFERENCE_H

struct nk_difference {
    long n_rows;
    long n_identical;  /* to the last bit */
    long n_top1;       /* with the same most probable token */
    long n_not_finite; /* the wanted ones hold NaN or infinity: a comparison that proves nothing */
    /* The worst row's normalised mean square error: squared difference over the wanted ones' square
     * (where these are all zero, the squared difference). NaN as soon as a row's is. */
    double worst_nmse;
};

/* Counts one row of n logits. Begin with { 0 }. */
void nk_difference_add(struct nk_difference *d, const float *want, const float *got, int n);

/* The most probable token: the largest of n logits, of equals the first. */
int nk_logits_top1(const float *logits, int n);

#endif
