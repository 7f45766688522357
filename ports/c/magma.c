/* SkipUpdate and Magma in plain C, bit for bit: a port of docs/spec.md that answers the questions of docs/porting.md.

       cc -O2 -std=c11 -ffp-contract=off -Wall -Wextra -Werror -pedantic -o magma magma.c -lm
       ./magma REQUEST ANSWER

   It is meant to be read. Sections stand in the order of the specification and carry its numbers; names are those of the
   specification and of section 1 of the porting guide. Where a compiler or a library would change a bit, a comment says so.

   -ffp-contract=off is part of the program. Without it clang, and GCC in its default mode (-std=gnu17), make one rounding
   out of the two in `a * b + c` wherever the machine has a fused multiply-add: always on aarch64, on x86-64 with -mfma or
   -march=native. The pragma that the C standard has for it, STDC FP_CONTRACT OFF, is unknown to GCC: hence the flag. */

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where FLT_EVAL_METHOD is not 0 (x87: 2), `a * b + c` in float is evaluated in a wider format and rounded once at the end:
   other bits. For the same reason no temporary below is a double unless the specification says binary64. */
_Static_assert(FLT_EVAL_METHOD == 0, "float expressions must be evaluated in float");
_Static_assert(FLT_RADIX == 2 && FLT_MANT_DIG == 24 && FLT_MAX_EXP == 128 && sizeof(float) == 4, "float must be binary32");
_Static_assert(DBL_MANT_DIG == 53 && DBL_MAX_EXP == 1024 && sizeof(double) == 8, "double must be binary64");
_Static_assert(SIZE_MAX == UINT64_MAX, "counts are kept in 64 bits");
#ifdef __FAST_MATH__
#error "-ffast-math reassociates, multiplies by reciprocals and takes NaN for impossible"
#endif

/* ---------------------------------------------------------------------------------------------------------------- Memory */

_Noreturn static void die(const char *why) {
    fprintf(stderr, "magma: %s\n", why);
    exit(2);
}

/* All memory of one question hangs on one list, and is given back when the question is answered. */
typedef struct chunk {
    struct chunk *next;
    max_align_t data[];
} chunk;

typedef struct {
    chunk *first;
} arena;

/* Zeroed memory for `count` things of `size` bytes. */
static void *take(arena *memory, size_t count, size_t size) {
    if (count > (SIZE_MAX - sizeof(chunk)) / size) die("out of memory");
    chunk *c = calloc(1, sizeof(chunk) + count * size);
    if (c == NULL) die("out of memory");
    c->next = memory->first;
    memory->first = c;
    return c->data;
}

/* Room for one more thing in a list of `count`: lists double when their length is a power of two. */
static void *grow(arena *memory, void *list, size_t count, size_t size) {
    if ((count & (count - 1)) != 0) return list;
    if (count > SIZE_MAX / 2) die("out of memory");
    void *longer = take(memory, count == 0 ? 1 : 2 * count, size);
    if (count > 0) memcpy(longer, list, count * size);
    return longer;
}

static void give_back(arena *memory) {
    while (memory->first != NULL) {
        chunk *c = memory->first;
        memory->first = c->next;
        free(c);
    }
}

/* --------------------------------------------------------------------------------------------------------- 1. Arithmetic

   1.1  + - * / on float and sqrtf are single correctly rounded operations: IEEE 754 (Annex F of C11) asks it of sqrt, and
   every libm and processor gives it. It asks it of no other function: powf, expf, logf differ between libraries in the last
   place, so none is used here. rintf is rounding to the nearest integer, ties to even, as long as nobody calls fesetround;
   roundf and lroundf take ties away from zero. */

/* Bits are moved with memcpy: a pointer cast would break aliasing rules, and compilers make one move of it. */
static uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static double double_of_bits(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* 1.2. Written so that NaN, for which every comparison is false, is returned as it is. */
static float flush(float x) {
    return fabsf(x) < 0x1p-100f ? 0.0f : x;
}

/* 1.3. [x]. The conversion rounds to nearest even; beyond the range it gives an infinity (Annex F; plain C leaves it open). */
static float bracket(double x) {
    return flush((float)x);
}

/* 1.4. Formats. The numbers are also indices into DTYPES below. */
typedef enum { FLOAT32, BFLOAT16, FLOAT16, FLOAT64, INT32, INT64, UINT8, UINT32, UINT64, BOOL, OTHER } dtype;

/* float16: 1 bit of sign, 5 of exponent (bias 15), 10 of fraction. */
static float widen_float16(uint32_t bits) {
    uint32_t sign = (bits & 0x8000) << 16, exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 0x1f) return float_of_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float subnormal = (float)fraction * 0x1p-24f; /* or zero; exact */
    return sign ? -subnormal : subnormal;
}

static float widen(dtype format, uint32_t bits) {
    if (format == FLOAT16) return widen_float16(bits);
    return float_of_bits(format == BFLOAT16 ? bits << 16 : bits);
}

/* The nearest float16, ties to even. Not by way of another format: two roundings are not one. */
static uint32_t narrow_float16(float x) {
    uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;  /* NaN: cutting its payload could make an infinity of it */
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* 65520 lies half way between the greatest number and 2^16 */
    if (magnitude < 0x38800000)                        /* below 2^-14: a multiple of 2^-24, and 1024 of them is normal */
        return sign | (uint32_t)rintf(fabsf(x) * 0x1p24f);
    magnitude -= 112u << 23;
    return sign | (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13; /* a carry goes into the exponent, as it should */
}

static uint32_t narrow_bfloat16(float x) {
    uint32_t bits = bits_of_float(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16; /* half a unit, less a bit where the last place is even */
}

static uint32_t narrow(dtype format, float x) {
    if (format == FLOAT16) return narrow_float16(x);
    return format == BFLOAT16 ? narrow_bfloat16(x) : bits_of_float(x);
}

/* --------------------------------------------------------------------------------------------------- 2. Inputs and state */

typedef enum { SGD, RMSPROP, ADAM, ADAMW, LAPROP } base_kind;

/* Numbers as they were given, in binary64. `beta1` is β under SGD and β₁ elsewhere, `weight_decay` is λ. */
typedef struct {
    const char *name;
    base_kind kind;
    bool nesterov;
    double beta1, beta2, eps, weight_decay;
} base;

typedef enum { ONE, INVERSE_P, SCORE } weight;

typedef struct {
    bool score_survives;
    weight weight;
    double p, tau, ema, initial_score;
    bool before, dense_decay;
} rule;

/* The defaults of section 4; a base that has no β₂, ε or λ gets values there that section 9 lets pass. */
static const base BASES[] = {
    {"sgd", SGD, false, 0.9, 0.0, 1e-8, 0.0},
    {"rmsprop", RMSPROP, false, 0.9, 0.99, 1e-8, 0.0},
    {"adam", ADAM, false, 0.9, 0.999, 1e-8, 0.0},
    {"adamw", ADAMW, false, 0.9, 0.999, 1e-8, 0.01},
    {"laprop", LAPROP, false, 0.9, 0.999, 1e-8, 0.0},
};

static const rule MAGMA = {false, SCORE, 0.5, 2.0, 0.9, 0.5, false, false};

static bool uses_scores(const rule *r) {
    return r->score_survives || r->weight == SCORE;
}

typedef struct {
    /* as given */
    const uint8_t *name;
    size_t name_length;
    bool masked;
    size_t axis_count;
    const size_t *axes;
    dtype format;
    size_t rank;
    const size_t *shape;
    size_t count; /* of elements */
    rule rule;    /* of the question, or dense for a parameter that is not masked */
    /* section 3 */
    size_t block_count;
    size_t *sums_shape, *block_shape; /* (3, block shape …), and the same from its second extent on */
    uint32_t *block;                  /* of each element, its b */
    /* state */
    uint32_t *theta; /* bits in the parameter's format */
    float *mu, *nu, mu_power, nu_power, *score;
    /* of the last step: inputs, what is shown, what is passed on from section to section */
    float *g, *delta, *cosine, *scale;
    int64_t *sums; /* S_xy of all blocks, then S_xx, then S_yy */
    uint8_t *keep;
    uint32_t key[2];
} parameter;

/* What a parameter keeps, in the order of the table of section 2. */
typedef struct {
    const char *field;
    bool kept;
    float **values; /* NULL for a scalar, then: */
    float *scalar;
    size_t rank, count;
    const size_t *shape;
} slot;

enum { SLOTS = 5 };

static void state_of(parameter *p, const base *b, slot slots[SLOTS]) {
    bool powers = b->kind == ADAM || b->kind == ADAMW || b->kind == LAPROP, scores = uses_scores(&p->rule);
    slots[0] = (slot){"mu", b->kind != RMSPROP || scores, &p->mu, NULL, p->rank, p->count, p->shape};
    slots[1] = (slot){"nu", b->kind != SGD, &p->nu, NULL, p->rank, p->count, p->shape};
    slots[2] = (slot){"mu_power", powers, NULL, &p->mu_power, 0, 1, NULL};
    slots[3] = (slot){"nu_power", powers, NULL, &p->nu_power, 0, 1, NULL};
    slots[4] = (slot){"score", scores, &p->score, NULL, p->axis_count, p->block_count, p->block_shape};
}

/* -------------------------------------------------------------------------------------------------------------- 3. Blocks */

/* The product of the extents, or SIZE_MAX where it is greater: a 0 anywhere makes it 0, whatever the others are. */
static size_t product(size_t rank, const size_t *extents) {
    size_t n = 1;
    for (size_t i = 0; i < rank; i++)
        if (extents[i] == 0) return 0;
    for (size_t i = 0; i < rank; i++) n = n > SIZE_MAX / extents[i] ? SIZE_MAX : n * extents[i];
    return n;
}

/* Block index of every element, in row-major order of the elements: an odometer whose wheels are the axes, and b moves by
   the stride of the axis in the block shape (0 for an axis that does not index) when a wheel moves. Wheels of one position
   are left out; so a wheel turns over at most every other time, and the whole is O(elements) for any number of blocks. */
static void index_blocks(parameter *p, arena *memory) {
    if (p->count == 0) return;
    size_t *stride_of = take(memory, p->rank, sizeof(size_t)), *stride = take(memory, p->rank, sizeof(size_t));
    size_t *extent = take(memory, p->rank, sizeof(size_t)), *at = take(memory, p->rank, sizeof(size_t));
    for (size_t i = p->axis_count, n = 1; i > 0; n *= p->block_shape[i - 1], i--) stride_of[p->axes[i - 1]] = n;
    size_t wheels = 0;
    for (size_t axis = 0; axis < p->rank; axis++) {
        if (p->shape[axis] == 1) continue;
        extent[wheels] = p->shape[axis];
        stride[wheels++] = stride_of[axis];
    }
    size_t b = 0;
    for (size_t i = 0; i < p->count; i++) {
        p->block[i] = (uint32_t)b;
        for (size_t w = wheels; w > 0; w--) {
            b += stride[w - 1];
            if (++at[w - 1] < extent[w - 1]) break;
            b -= stride[w - 1] * extent[w - 1];
            at[w - 1] = 0;
        }
    }
}

/* ------------------------------------------------------------------------------------- 4. Bases: moments and direction

   Parentheses stand where the specification has them; C keeps them (and evaluates `a * b + c * d` without them the same),
   but may contract: see the top. `1 − β` is a binary64 difference rounded to binary32 once; 1.0f − [β] has other bits. */

/* 4.1 */
static void sgd(parameter *p, const base *b) {
    const float beta = bracket(b->beta1);
    for (size_t i = 0; i < p->count; i++) {
        p->mu[i] = flush((beta * p->mu[i]) + p->g[i]);
        p->delta[i] = b->nesterov ? p->g[i] + (beta * p->mu[i]) : p->mu[i];
    }
}

/* 4.2. `g / (√ν + ε)` is a quotient: reciprocal instructions (rsqrtps), which -ffast-math uses, have 12 bits. */
static void rmsprop(parameter *p, const base *b) {
    const float beta1 = bracket(b->beta1), rest1 = bracket(1.0 - b->beta1);
    const float beta2 = bracket(b->beta2), rest2 = bracket(1.0 - b->beta2), eps = bracket(b->eps);
    for (size_t i = 0; i < p->count; i++) {
        float g = p->g[i];
        p->nu[i] = flush((beta2 * p->nu[i]) + (rest2 * (g * g)));
        if (uses_scores(&p->rule)) p->mu[i] = flush((beta1 * p->mu[i]) + (rest1 * g));
        p->delta[i] = g / (sqrtf(p->nu[i]) + eps);
    }
}

/* P = flush(P ⊗ [β]); returns C. A power is a product a step: powf(beta, t) would round differently, and by library. */
static float correction(float *power, double beta) {
    *power = flush(*power * bracket(beta));
    return 1.0f / (1.0f - *power);
}

/* 4.3, Adam and AdamW */
static void adam(parameter *p, const base *b) {
    const float beta1 = bracket(b->beta1), rest1 = bracket(1.0 - b->beta1);
    const float beta2 = bracket(b->beta2), rest2 = bracket(1.0 - b->beta2), eps = bracket(b->eps);
    const float c1 = correction(&p->mu_power, b->beta1), c2 = correction(&p->nu_power, b->beta2);
    for (size_t i = 0; i < p->count; i++) {
        float g = p->g[i];
        p->mu[i] = flush((beta1 * p->mu[i]) + (rest1 * g));
        p->nu[i] = flush((beta2 * p->nu[i]) + (rest2 * (g * g)));
        p->delta[i] = (p->mu[i] * c1) / (sqrtf(p->nu[i] * c2) + eps);
    }
}

/* 4.4 */
static void laprop(parameter *p, const base *b) {
    const float beta1 = bracket(b->beta1), rest1 = bracket(1.0 - b->beta1);
    const float beta2 = bracket(b->beta2), rest2 = bracket(1.0 - b->beta2), eps = bracket(b->eps);
    const float c1 = correction(&p->mu_power, b->beta1), c2 = correction(&p->nu_power, b->beta2);
    for (size_t i = 0; i < p->count; i++) {
        float g = p->g[i];
        p->nu[i] = flush((beta2 * p->nu[i]) + (rest2 * (g * g)));
        float normalized = g / (sqrtf(p->nu[i] * c2) + eps);
        p->mu[i] = flush((beta1 * p->mu[i]) + (rest1 * normalized));
        p->delta[i] = p->mu[i] * c1;
    }
}

/* 4.5, Δ from Δ₀ */
static void masked_decay(parameter *p, const base *b) {
    const float lambda = bracket(b->weight_decay);
    bool decays = lambda != 0.0f && !p->rule.dense_decay;
    for (size_t i = 0; i < p->count; i++) {
        float delta = p->delta[i];
        if (decays) delta = delta + (lambda * flush(widen(p->format, p->theta[i])));
        p->delta[i] = flush(delta);
    }
}

static void direction(parameter *p, const base *b) {
    switch (b->kind) {
    case SGD: sgd(p, b); break;
    case RMSPROP: rmsprop(p, b); break;
    case ADAM: case ADAMW: adam(p, b); break;
    case LAPROP: laprop(p, b); break;
    }
    masked_decay(p, b);
}

/* ----------------------------------------------------------------------------------------------------------- 5. Alignment */

/* 5.1. Magnitudes are compared as integers: without the sign, the bits of floats are in the order of their values, above
   them the infinity and above that the NaNs. (fmaxf would lose a NaN, and `x > max` would, too.) Operands are flushed
   already, unless they came from a state that no step has written; flush keeps the power of two below within range. */
static uint32_t magnitude(float x) {
    return bits_of_float(flush(x)) & 0x7fffffff;
}

/* 2^(15−e) from the greatest magnitude in the block, or 0 for a block where X = 0. The greatest |x| is f × 2^(E−127) with
   the exponent field E and 1 ≤ f < 2, so e = E − 126, and the field of 2^(15−e) is 15 − e + 127. logf and log2f would be
   off by one near powers of two. */
static float quantum(uint32_t greatest) {
    if (greatest == 0 || greatest >= 0x7f800000) return 0.0f;
    return float_of_bits((268 - (greatest >> 23)) << 23);
}

/* X. The test comes first: 0 × ∞ is NaN, and NaN as an integer is undefined in C. */
static int32_t quantise(float x, float power) {
    return power == 0.0f ? 0 : (int32_t)rintf(flush(x) * power);
}

/* 5.2. Sums of integers are the same in any order, of floats they are not. |XY| ≤ 2^30 and a block has up to 2^32 elements:
   sums need 63 bits and the sign. `work` is room for two words a block; it holds 2^(15−e) of m and of g at the end. */
static void alignment_sums(size_t count, const uint32_t *block, size_t blocks, const float *m, const float *g, float *work,
                           int64_t *sums) {
    float *power_m = work, *power_g = work + blocks;
    for (size_t b = 0; b < 2 * blocks; b++) work[b] = 0.0f;
    for (size_t b = 0; b < 3 * blocks; b++) sums[b] = 0;
    for (size_t i = 0; i < count; i++) { /* the greatest magnitude of each block */
        size_t b = block[i];
        if (magnitude(m[i]) > bits_of_float(power_m[b])) power_m[b] = float_of_bits(magnitude(m[i]));
        if (magnitude(g[i]) > bits_of_float(power_g[b])) power_g[b] = float_of_bits(magnitude(g[i]));
    }
    for (size_t b = 0; b < 2 * blocks; b++) work[b] = quantum(bits_of_float(work[b]));
    for (size_t i = 0; i < count; i++) {
        size_t b = block[i];
        int64_t x = quantise(m[i], power_m[b]), y = quantise(g[i], power_g[b]);
        sums[b] += x * y;
        sums[blocks + b] += x * x;
        sums[2 * blocks + b] += y * y;
    }
}

/* 5.3. (float)S would round once where this rounds up to twice: not always the same bits. */
static float real(int64_t s) {
    uint64_t m = s < 0 ? 0 - (uint64_t)s : (uint64_t)s;
    float high = (float)(m >> 38), middle = (float)(m >> 14 & 0xffffff), low = (float)(m & 0x3fff);
    float sum = ((0x1p38f * high) + (0x1p14f * middle)) + low;
    return s < 0 ? -sum : sum;
}

/* The product of two roots, not the root of a product, which would overflow nowhere but round differently. */
static float cosine(int64_t xy, int64_t xx, int64_t yy) {
    if (xx == 0 || yy == 0) return 0.0f;
    float c = real(xy) / (sqrtf(real(xx)) * sqrtf(real(yy)));
    return c > 1.0f ? 1.0f : c < -1.0f ? -1.0f : c;
}

/* 5.4. Quotients of integers in brackets are binary64, hence 1.0 and not 1.0f. The polynomial is where contraction does
   most: every line of it is a fused multiply-add to the compiler. */
static float sigmoid(float c, double tau) {
    static const double K[] = {1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0};
    const float A = bracket(1.4426950408889634), B = bracket(0.693145751953125), C = bracket(1.4286068203094173e-06);
    float z = c * bracket(1.0 / tau);
    float x = fabsf(z) < 64.0f ? fabsf(z) : 64.0f; /* never NaN, so n is in range whatever a request says */
    float n = rintf(x * A);
    float r = ((B * n) - x) + (C * n);
    float q = bracket(1.0 / 5040);
    for (size_t k = 0; k < sizeof K / sizeof K[0]; k++) q = (q * r) + bracket(K[k]);
    float e = q * float_of_bits((uint32_t)(127 - (int)n) << 23); /* 2^(−n) from its bits: exact */
    return (z < 0.0f ? e : 1.0f) / (1.0f + e);
}

/* 5.5 */
static float next_score(float score, float sigma, double ema) {
    return flush((bracket(ema) * score) + (bracket(1.0 - ema) * sigma));
}

static void align(parameter *p) {
    alignment_sums(p->count, p->block, p->block_count, p->mu, p->g, p->scale, p->sums);
}

static void score_blocks(parameter *p) {
    const int64_t *xy = p->sums, *xx = xy + p->block_count, *yy = xx + p->block_count;
    for (size_t b = 0; b < p->block_count; b++) {
        p->cosine[b] = cosine(xy[b], xx[b], yy[b]);
        p->score[b] = next_score(p->score[b], sigmoid(p->cosine[b], p->rule.tau), p->rule.ema);
    }
}

/* --------------------------------------------------------------------------------------------------------------- 6. Rules */

/* T of a probability: round(p·2^24), at most 2^24, so it is exact in binary32. */
static float threshold_of_p(double p) {
    return (float)rint(p * 0x1p24);
}

/* What a parameter that is not masked takes: everything survives with weight 1. The kind of decay stays as given. */
static rule dense(rule r) {
    r.score_survives = false;
    r.weight = ONE;
    r.p = 1.0;
    return r;
}

static float scale_of(const rule *r, float lr, const float *score) {
    float w = 1.0f;
    if (r->weight == SCORE) w = *score;
    if (r->weight == INVERSE_P && threshold_of_p(r->p) != 0.0f) w = bracket(1.0 / r->p);
    return flush(lr * w);
}

/* ---------------------------------------------------------------------------------------------------------- 7. Keep masks */

static uint32_t rotl(uint32_t x, unsigned by) {
    return x << by | x >> (32 - by);
}

/* 7.1. Unsigned integers wrap in C; signed ones must not be used here. */
static void threefry(const uint32_t key[2], uint32_t x0, uint32_t x1, uint32_t out[2]) {
    static const unsigned R[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    const uint32_t k[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA};
    x0 += k[0];
    x1 += k[1];
    for (uint32_t i = 0; i < 5; i++) {
        for (int j = 0; j < 4; j++) {
            x0 += x1;
            x1 = rotl(x1, R[i % 2][j]) ^ x0;
        }
        x0 += k[(i + 1) % 3];
        x1 += k[(i + 2) % 3] + i + 1;
    }
    out[0] = x0;
    out[1] = x1;
}

/* SHA-256 (FIPS 180-4), one block of 64 bytes. */
static void sha256_block(uint32_t h[8], const uint8_t *bytes) {
    static const uint32_t K[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++, bytes += 4)
        w[i] = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotl(a, 25) ^ rotl(a, 14) ^ a >> 3) + w[i - 7] + (rotl(b, 15) ^ rotl(b, 13) ^ b >> 10);
    }
    memcpy(s, h, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t e = s[4], a = s[0];
        uint32_t t1 = s[7] + (rotl(e, 26) ^ rotl(e, 21) ^ rotl(e, 7)) + ((e & s[5]) ^ (~e & s[6])) + K[i] + w[i];
        uint32_t t2 = (rotl(a, 30) ^ rotl(a, 19) ^ rotl(a, 10)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[0] = t1 + t2;
        s[4] += t1;
    }
    for (int i = 0; i < 8; i++) h[i] += s[i];
}

static void sha256(const uint8_t *bytes, size_t length, uint32_t h[8]) {
    static const uint32_t START[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t tail[128] = {0};
    size_t whole = length / 64 * 64, rest = length - whole, padded = rest < 56 ? 64 : 128;
    memcpy(h, START, sizeof START);
    for (size_t at = 0; at < whole; at += 64) sha256_block(h, bytes + at);
    if (rest > 0) memcpy(tail, bytes + whole, rest);
    tail[rest] = 0x80;
    for (size_t i = 0; i < 8; i++) tail[padded - 1 - i] = (uint8_t)((uint64_t)length * 8 >> 8 * i);
    for (size_t at = 0; at < padded; at += 64) sha256_block(h, tail + at);
}

/* 7.2. SHA-256's words are big-endian already. */
static void parameter_key(uint64_t seed, const uint8_t *name, size_t length, uint32_t key[2]) {
    const uint32_t seed_words[2] = {(uint32_t)(seed >> 32), (uint32_t)seed};
    uint32_t h[8];
    sha256(name, length, h);
    threefry(seed_words, h[0], h[1], key);
}

static uint32_t coin(const uint32_t key[2], uint32_t t, uint32_t b) {
    uint32_t out[2];
    threefry(key, t, b, out);
    return out[0];
}

static float threshold_of_score(float score) {
    return rintf(score * 0x1p24f);
}

/* 7.3. The low 8 bits of the coin are dropped: what is left is exact in binary32, and T = 2^24, which keeps everything, is
   one more than the greatest. (u < p·2^32 with 32 bits cannot say "everything".) Compared as floats, since a state may hold a
   score that no integer holds; with NaN nothing is kept. */
static bool kept(uint32_t u, float threshold) {
    return (float)(u >> 8) < threshold;
}

static void keep_blocks(parameter *p, uint32_t t, float lr) {
    const float fixed = threshold_of_p(p->rule.p);
    for (size_t b = 0; b < p->block_count; b++) {
        float threshold = p->rule.score_survives ? threshold_of_score(p->score[b]) : fixed;
        p->keep[b] = kept(coin(p->key, t, (uint32_t)b), threshold);
        p->scale[b] = scale_of(&p->rule, lr, p->score != NULL ? &p->score[b] : NULL);
    }
}

/* ------------------------------------------------------------------------------------------------------------- 8. Writing */

/* A block that is not kept and does not decay keeps its bits; widening and narrowing would change none but those of NaNs. */
static void write_parameter(parameter *p, const base *b, float lr) {
    const float lambda = bracket(b->weight_decay), shrink = 1.0f - (lr * lambda);
    bool decays = lambda != 0.0f && p->rule.dense_decay;
    for (size_t i = 0; i < p->count; i++) {
        bool keep = p->keep[p->block[i]];
        if (!keep && !decays) continue;
        float theta = widen(p->format, p->theta[i]);
        if (decays) theta = flush(flush(theta) * shrink);
        if (keep) theta = flush(theta - (p->scale[p->block[i]] * p->delta[i]));
        p->theta[i] = narrow(p->format, theta);
    }
}

/* One step of one parameter, in the order of section 2. A parameter that is not masked is one block under the rule dense.
   `before` aligns the μ that came in, which section 4 overwrites: so the sums are made before it. */
static void take_step(parameter *p, const base *b, uint32_t t, double learning_rate, const uint64_t *gradient) {
    const float lr = bracket(learning_rate);
    bool scores = uses_scores(&p->rule);
    for (size_t i = 0; i < p->count; i++) p->g[i] = flush(widen(p->format, (uint32_t)gradient[i]));
    if (scores && p->rule.before) align(p);
    direction(p, b);
    if (scores && !p->rule.before) align(p);
    if (scores) score_blocks(p);
    keep_blocks(p, t, lr);
    write_parameter(p, b, lr);
}

/* -------------------------------------------------------------------------------------------------------------- 9. Errors

   Conditions are written as what must hold, so that NaN fails them. Numbers are compared as given, in binary64. */

static bool finite_in_float(double x) {
    return isfinite((float)x);
}

static bool good_beta(double beta) {
    return beta >= 0.0 && beta <= 1.0 - 0x1p-24;
}

static bool good_tiny(double x) { /* ε and τ */
    return x >= 0x1p-100 && finite_in_float(x);
}

static bool good_rate(double x) { /* λ and lr */
    return x >= 0.0 && finite_in_float(x);
}

static bool good_probability(double x) {
    return x >= 0.0 && x <= 1.0;
}

static const char *refuse_base(const base *b) {
    if (!good_beta(b->beta1) || !good_beta(b->beta2)) return "beta outside [0, 1 - 2^-24]";
    if (!good_tiny(b->eps)) return "eps below 2^-100 or not finite";
    if (!good_rate(b->weight_decay)) return "weight_decay negative or not finite";
    return NULL;
}

static const char *refuse_rule(const rule *r) {
    if (!good_probability(r->p)) return "p outside [0, 1]";
    if (!good_tiny(r->tau)) return "tau below 2^-100 or not finite";
    if (!good_beta(r->ema)) return "ema outside [0, 1 - 2^-24]";
    if (!good_probability(r->initial_score)) return "initial_score outside [0, 1]";
    return NULL;
}

/* Block axes, and the sizes that follow from them; block shape and count are set here. Section 3 wants both counts within
   2^32 even where their product is 0. */
static const char *refuse_blocks(parameter *p, arena *memory) {
    bool *indexes = take(memory, p->rank, sizeof(bool));
    size_t *others = take(memory, p->rank, sizeof(size_t)), other_count = 0;
    if (p->axis_count > p->rank) return "a block axis out of range or repeated";
    p->sums_shape = take(memory, p->axis_count + 1, sizeof(size_t));
    p->sums_shape[0] = 3;
    p->block_shape = p->sums_shape + 1;
    for (size_t i = 0; i < p->axis_count; i++) {
        size_t axis = p->axes[i];
        if (axis >= p->rank) return "a block axis out of range";
        if (indexes[axis]) return "a block axis twice";
        indexes[axis] = true;
        p->block_shape[i] = p->shape[axis];
    }
    for (size_t axis = 0; axis < p->rank; axis++)
        if (!indexes[axis]) others[other_count++] = p->shape[axis];
    p->block_count = product(p->axis_count, p->block_shape);
    if (!p->masked) return NULL;
    if (p->block_count > (size_t)1 << 32) return "more than 2^32 blocks";
    if (product(other_count, others) > (size_t)1 << 32) return "a block of more than 2^32 elements";
    return NULL;
}

/* Names are compared as bytes; sorted, equal ones are neighbours. */
static int compare_names(const void *left, const void *right) {
    const parameter *a = *(parameter *const *)left, *b = *(parameter *const *)right;
    if (a->name_length != b->name_length) return a->name_length < b->name_length ? -1 : 1;
    return a->name_length == 0 ? 0 : memcmp(a->name, b->name, a->name_length);
}

static const char *refuse_names(parameter *parameters, size_t count, arena *memory) {
    parameter **sorted = take(memory, count, sizeof *sorted);
    for (size_t i = 0; i < count; i++) sorted[i] = &parameters[i];
    qsort(sorted, count, sizeof *sorted, compare_names);
    for (size_t i = 1; i < count; i++)
        if (compare_names(&sorted[i - 1], &sorted[i]) == 0) return "two parameters of one name";
    return NULL;
}

/* ------------------------------------------------------------------------- Requests: section 3 of docs/porting.md, reading

   The request is in memory as a whole, with a zero byte after its end, at which every scan below stops. What is not a
   request ends the program; what a request says too much of ends the question ("refused" or "unsupported"). No count is
   believed before it is known that the file is long enough for it. */

typedef struct {
    const char *begin, *at, *end;
    arena *memory;
} reader;

typedef struct {
    const char *at;
    size_t length;
} word;

_Noreturn static void malformed(const reader *r, const char *why) {
    fprintf(stderr, "magma: byte %zu of the request: %s\n", (size_t)(r->at - r->begin), why);
    exit(2);
}

static bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* Goes to the next word; false at the end. */
static bool more(reader *r) {
    while (is_space(*r->at)) r->at++;
    return r->at < r->end;
}

static word next_word(reader *r) {
    if (!more(r)) malformed(r, "ends too early");
    word w = {r->at, 0};
    while (r->at < r->end && !is_space(*r->at)) r->at++;
    w.length = (size_t)(r->at - w.at);
    return w;
}

static bool is(word w, const char *text) {
    return w.length == strlen(text) && memcmp(w.at, text, w.length) == 0;
}

static bool next_is(const reader *r, const char *text) {
    reader ahead = *r;
    return more(&ahead) && is(next_word(&ahead), text);
}

static void expect(reader *r, const char *text) {
    if (next_is(r, text)) {
        next_word(r);
        return;
    }
    more(r);
    fprintf(stderr, "magma: byte %zu of the request: \"%s\" expected\n", (size_t)(r->at - r->begin), text);
    exit(2);
}

/* An integer of any length; `fits` says whether it is within 0 … 2^64 − 1. */
typedef struct {
    bool fits;
    uint64_t value;
} integer;

static integer read_integer(reader *r) {
    word w = next_word(r);
    integer n = {true, 0};
    bool negative = w.at[0] == '-';
    size_t i = negative || w.at[0] == '+';
    if (i == w.length) malformed(r, "not an integer");
    for (; i < w.length; i++) {
        unsigned digit = (unsigned)w.at[i] - '0';
        if (digit > 9) malformed(r, "not an integer");
        if (n.value > (UINT64_MAX - digit) / 10) n.fits = false;
        n.value = n.value * 10 + digit;
    }
    if (negative && n.value != 0) n.fits = false;
    return n;
}

static size_t read_size(reader *r) {
    integer n = read_integer(r);
    if (!n.fits) malformed(r, "a size below 0 or beyond 2^64 - 1");
    return n.value;
}

/* A count of things of at least `characters` characters each, and a space between. */
static void check_room(const reader *r, size_t count, size_t characters) {
    if (count > ((size_t)(r->end - r->at) + 1) / (characters + 1)) malformed(r, "more is announced than the file holds");
}

static size_t read_count(reader *r) {
    size_t count = read_size(r);
    check_room(r, count, 1);
    return count;
}

/* strtod rounds to the nearest binary64 (glibc, musl, Apple, Microsoft do; C itself promises less) and takes "." for the
   point in the "C" locale, in which a program starts: so no setlocale here. It stops at the space or zero byte behind. */
static bool to_number(word w, double *number) {
    char *end;
    *number = strtod(w.at, &end);
    return w.length > 0 && end == w.at + w.length;
}

/* One more than the value of a hexadecimal digit, 0 for all other characters (the zero byte at the end among them). */
static const uint8_t HEX[256] = {['0'] = 1, ['1'] = 2, ['2'] = 3, ['3'] = 4, ['4'] = 5, ['5'] = 6, ['6'] = 7, ['7'] = 8,
                                 ['8'] = 9, ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15,
                                 ['f'] = 16, ['A'] = 11, ['B'] = 12, ['C'] = 13, ['D'] = 14, ['E'] = 15, ['F'] = 16};

/* Exactly that many hexadecimal digits from here on. */
static uint64_t read_digits(reader *r, int digits) {
    uint64_t value = 0;
    for (; digits > 0; digits--) {
        unsigned digit = HEX[(unsigned char)*r->at];
        if (digit == 0) malformed(r, "a hexadecimal digit expected");
        value = value << 4 | (digit - 1);
        r->at++;
    }
    return value;
}

static uint64_t read_hex(reader *r, int digits) {
    more(r);
    uint64_t value = read_digits(r, digits);
    if (r->at < r->end && !is_space(*r->at)) malformed(r, "too many hexadecimal digits");
    return value;
}

static const struct {
    const char *name;
    int digits;
} DTYPES[] = {{"float32", 8}, {"bfloat16", 4}, {"float16", 4}, {"float64", 16}, {"int32", 8},
              {"int64", 16},  {"uint8", 2},    {"uint32", 8},  {"uint64", 16},  {"bool", 2}};

/* Bits of any dtype in 64. Arrays of a dtype that is none of ours have no words; their shape is known. */
typedef struct {
    word field;
    dtype dtype;
    size_t rank, count;
    const size_t *shape;
    const uint64_t *words;
} array;

static array read_array(reader *r) {
    array a = {.field = next_word(r)};
    word name = next_word(r);
    while (a.dtype < OTHER && !is(name, DTYPES[a.dtype].name)) a.dtype++;
    a.rank = read_count(r);
    size_t *shape = take(r->memory, a.rank, sizeof(size_t));
    for (size_t i = 0; i < a.rank; i++) shape[i] = read_size(r);
    a.shape = shape;
    a.count = product(a.rank, shape);
    if (a.dtype == OTHER) {
        check_room(r, a.count, 1);
        for (size_t i = 0; i < a.count; i++) next_word(r);
        return a;
    }
    check_room(r, a.count, (size_t)DTYPES[a.dtype].digits);
    uint64_t *words = take(r->memory, a.count, sizeof(uint64_t));
    for (size_t i = 0; i < a.count; i++) words[i] = read_hex(r, DTYPES[a.dtype].digits);
    a.words = words;
    return a;
}

typedef struct {
    size_t count;
    array *items;
} arrays;

/* Arrays up to the word that begins what follows. */
static arrays read_arrays(reader *r) {
    arrays list = {0, NULL};
    while (!next_is(r, "parameter") && !next_is(r, "step") && !next_is(r, "end")) {
        list.items = grow(r->memory, list.items, list.count, sizeof(array));
        list.items[list.count++] = read_array(r);
    }
    return list;
}

static bool same_shape(const array *a, size_t rank, const size_t *shape) {
    if (a->rank != rank) return false;
    for (size_t i = 0; i < rank; i++)
        if (a->shape[i] != shape[i]) return false;
    return true;
}

/* The array of that name, dtype and rank; NULL if there is none. */
static const array *find(const arrays *list, const char *field, dtype type, size_t rank) {
    for (size_t i = 0; i < list->count; i++) {
        const array *a = &list->items[i];
        if (is(a->field, field)) return a->dtype == type && a->rank == rank ? a : NULL;
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------ Answers: writing */

typedef struct {
    FILE *file;
    size_t used;
    char text[1 << 16];
} writer;

static void drain(writer *w) {
    if (fwrite(w->text, 1, w->used, w->file) != w->used || fflush(w->file) != 0) die("cannot write the answer");
    w->used = 0;
}

static void put(writer *w, const char *text) {
    for (; *text != '\0'; text++) {
        if (w->used == sizeof w->text) drain(w);
        w->text[w->used++] = *text;
    }
}

static void put_number(writer *w, uint64_t number) {
    char text[21], *at = text + sizeof text;
    *--at = '\0';
    do *--at = (char)('0' + number % 10);
    while ((number /= 10) != 0);
    put(w, at);
}

/* A space and the bits of one element. */
static void put_bits(writer *w, uint64_t bits, int digits) {
    if (sizeof w->text - w->used < 17) drain(w);
    char *at = w->text + w->used;
    *at++ = ' ';
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) *at++ = "0123456789abcdef"[bits >> shift & 15];
    w->used = (size_t)(at - w->text);
}

static void put_header(writer *w, const char *field, dtype type, size_t rank, const size_t *shape) {
    put(w, field);
    put(w, " ");
    put(w, DTYPES[type].name);
    put(w, " ");
    put_number(w, rank);
    for (size_t i = 0; i < rank; i++) {
        put(w, " ");
        put_number(w, shape[i]);
    }
}

static void put_floats(writer *w, const char *field, size_t rank, const size_t *shape, size_t count, const float *values) {
    put_header(w, field, FLOAT32, rank, shape);
    for (size_t i = 0; i < count; i++) put_bits(w, bits_of_float(values[i]), 8);
    put(w, "\n");
}

static void put_int64s(writer *w, const char *field, size_t rank, const size_t *shape, size_t count, const int64_t *values) {
    put_header(w, field, INT64, rank, shape);
    for (size_t i = 0; i < count; i++) put_bits(w, (uint64_t)values[i], 16);
    put(w, "\n");
}

static void put_bools(writer *w, const char *field, size_t rank, const size_t *shape, size_t count, const uint8_t *values) {
    put_header(w, field, BOOL, rank, shape);
    for (size_t i = 0; i < count; i++) put_bits(w, values[i], 2);
    put(w, "\n");
}

static void put_words(writer *w, const char *field, dtype type, size_t rank, const size_t *shape, size_t count,
                      const uint32_t *values) {
    put_header(w, field, type, rank, shape);
    for (size_t i = 0; i < count; i++) put_bits(w, values[i], DTYPES[type].digits);
    put(w, "\n");
}

static void begin_answer(writer *w, uint64_t number, const char *outcome) {
    put(w, "answer ");
    put_number(w, number);
    put(w, " ");
    put(w, outcome);
}

static void give(writer *w, uint64_t number) {
    begin_answer(w, number, "given\n");
}

/* ------------------------------------------------------------------------------- Parts of a step: docs/porting.md, section 2

   Each function answers one question, or writes nothing and says why it refuses. */

static float *to_floats(const array *a, arena *memory) {
    float *values = take(memory, a->count, sizeof(float));
    for (size_t i = 0; i < a->count; i++) values[i] = float_of_bits((uint32_t)a->words[i]);
    return values;
}

static const char *answer_threefry(const arrays *given, writer *w, uint64_t number) {
    const size_t two[1] = {2};
    const array *key = find(given, "key", UINT32, 1), *counter = find(given, "counter", UINT32, 1);
    if (key == NULL || counter == NULL || key->count != 2 || counter->count != 2) return "key and counter: two uint32 each";
    const uint32_t words[2] = {(uint32_t)key->words[0], (uint32_t)key->words[1]};
    uint32_t out[2];
    threefry(words, (uint32_t)counter->words[0], (uint32_t)counter->words[1], out);
    give(w, number);
    put_words(w, "words", UINT32, 1, two, 2, out);
    return NULL;
}

static const char *answer_coins(const arrays *given, arena *memory, writer *w, uint64_t number) {
    const array *name = find(given, "name", UINT8, 1), *seed = find(given, "seed", UINT64, 0);
    const array *step = find(given, "step", UINT32, 0), *block = find(given, "block", UINT32, 1);
    const array *p = find(given, "p", FLOAT64, 0), *score = find(given, "score", FLOAT32, 1);
    if (name == NULL || seed == NULL || step == NULL || block == NULL) return "name, seed, step or block does not fit";
    if ((p == NULL) == (score == NULL)) return "either p or score is wanted";
    if (score != NULL && score->count != block->count) return "score does not fit block";
    if (p != NULL && !good_probability(double_of_bits(p->words[0]))) return "p outside [0, 1]";
    if (step->words[0] == 0) return "step below 1";

    uint32_t key[2], *coins = take(memory, block->count, sizeof(uint32_t));
    uint8_t *bytes = take(memory, name->count, 1), *keep = take(memory, block->count, 1);
    for (size_t i = 0; i < name->count; i++) bytes[i] = (uint8_t)name->words[i];
    parameter_key(seed->words[0], bytes, name->count, key);
    for (size_t i = 0; i < block->count; i++) {
        coins[i] = coin(key, (uint32_t)step->words[0], (uint32_t)block->words[i]);
        keep[i] = kept(coins[i], p != NULL ? threshold_of_p(double_of_bits(p->words[0]))
                                           : threshold_of_score(float_of_bits((uint32_t)score->words[i])));
    }
    give(w, number);
    put_words(w, "coins", UINT32, 1, block->shape, block->count, coins);
    put_bools(w, "keep", 1, block->shape, block->count, keep);
    return NULL;
}

static const char *answer_sums(const arrays *given, arena *memory, writer *w, uint64_t number) {
    const size_t three[1] = {3};
    if (given->count != 2) return "mu and gradient are wanted";
    const array *mu = find(given, "mu", FLOAT32, given->items[0].rank);
    const array *gradient = find(given, "gradient", FLOAT32, given->items[0].rank);
    if (mu == NULL || gradient == NULL || !same_shape(mu, gradient->rank, gradient->shape)) return "mu or gradient does not fit";

    const float *m = to_floats(mu, memory), *g = to_floats(gradient, memory);
    uint32_t *x = take(memory, mu->count, sizeof(uint32_t)), *y = take(memory, mu->count, sizeof(uint32_t));
    float power[2];
    int64_t sums[3];
    alignment_sums(mu->count, x /* all 0: one block */, 1, m, g, power, sums);
    for (size_t i = 0; i < mu->count; i++) {
        x[i] = (uint32_t)quantise(m[i], power[0]);
        y[i] = (uint32_t)quantise(g[i], power[1]);
    }
    give(w, number);
    put_words(w, "x", INT32, mu->rank, mu->shape, mu->count, x);
    put_words(w, "y", INT32, mu->rank, mu->shape, mu->count, y);
    put_int64s(w, "sums", 1, three, 3, sums);
    return NULL;
}

static int64_t to_int64(uint64_t bits) {
    int64_t value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static const char *answer_score(const arrays *given, arena *memory, writer *w, uint64_t number) {
    const array *sums = find(given, "sums", INT64, 2), *score = find(given, "score", FLOAT32, 1);
    const array *tau = find(given, "tau", FLOAT64, 0), *ema = find(given, "ema", FLOAT64, 0);
    if (sums == NULL || score == NULL || tau == NULL || ema == NULL) return "sums, score, tau or ema does not fit";
    if (sums->shape[0] != 3 || sums->shape[1] != score->count) return "sums does not fit score";
    rule r = MAGMA;
    r.tau = double_of_bits(tau->words[0]);
    r.ema = double_of_bits(ema->words[0]);
    if (refuse_rule(&r) != NULL) return refuse_rule(&r);

    size_t n = score->count;
    float *c = take(memory, n, sizeof(float)), *sigma = take(memory, n, sizeof(float)), *s = to_floats(score, memory);
    for (size_t i = 0; i < n; i++) {
        const uint64_t *S = sums->words;
        c[i] = cosine(to_int64(S[i]), to_int64(S[n + i]), to_int64(S[2 * n + i]));
        sigma[i] = sigmoid(c[i], r.tau);
        s[i] = next_score(s[i], sigma[i], r.ema);
    }
    give(w, number);
    put_floats(w, "cosine", 1, score->shape, n, c);
    put_floats(w, "sigmoid", 1, score->shape, n, sigma);
    put_floats(w, "score", 1, score->shape, n, s);
    return NULL;
}

/* -------------------------------------------------------------------------------------- Whole steps: reading the question */

typedef struct {
    word name, value;
} option;

typedef struct {
    size_t count;
    option *items;
} options;

static options read_options(reader *r, const char *which) {
    expect(r, which);
    options list = {read_count(r), NULL};
    check_room(r, list.count, 3); /* two words and the space between */
    list.items = take(r->memory, list.count, sizeof(option));
    for (size_t i = 0; i < list.count; i++) {
        list.items[i].name = next_word(r);
        list.items[i].value = next_word(r);
    }
    return list;
}

/* The index of a word among choices, or false. */
static bool choose(word w, const char *const *choices, size_t count, size_t *choice) {
    for (size_t i = 0; i < count; i++)
        if (is(w, choices[i])) {
            *choice = i;
            return true;
        }
    return false;
}

static bool choose_flag(word w, const char *no, const char *yes, bool *flag) {
    const char *const choices[2] = {no, yes};
    size_t choice = 0;
    bool known = choose(w, choices, 2, &choice);
    *flag = choice == 1;
    return known;
}

static bool set_base_option(base *b, word name, word value) {
    if (is(name, "kind")) return true;
    if (is(name, "nesterov")) return b->kind == SGD && choose_flag(value, "false", "true", &b->nesterov);
    if (is(name, "momentum")) return (b->kind == SGD || b->kind == RMSPROP) && to_number(value, &b->beta1);
    if (is(name, "beta1")) return b->kind != SGD && b->kind != RMSPROP && to_number(value, &b->beta1);
    if (is(name, "beta2")) return b->kind != SGD && to_number(value, &b->beta2);
    if (is(name, "eps")) return b->kind != SGD && to_number(value, &b->eps);
    if (is(name, "weight_decay")) return b->kind != ADAM && to_number(value, &b->weight_decay);
    return false;
}

/* Returns what is not understood, or NULL. What is not written has the default of the specification. */
static const char *to_base(const options *list, base *b) {
    bool known = false;
    for (size_t i = 0; i < list->count && !known; i++)
        for (size_t k = 0; is(list->items[i].name, "kind") && k < sizeof BASES / sizeof BASES[0]; k++)
            if (is(list->items[i].value, BASES[k].name)) {
                *b = BASES[k];
                known = true;
            }
    if (!known) return "a base of unknown kind";
    for (size_t i = 0; i < list->count; i++)
        if (!set_base_option(b, list->items[i].name, list->items[i].value)) return "an option or value of the base";
    return NULL;
}

static bool set_rule_option(rule *r, word name, word value) {
    static const char *const WEIGHTS[] = {"one", "inverse_p", "score"};
    size_t choice = 0;
    if (is(name, "survival")) return choose_flag(value, "p", "score", &r->score_survives);
    if (is(name, "weight")) {
        bool known = choose(value, WEIGHTS, 3, &choice);
        r->weight = (weight)choice;
        return known;
    }
    if (is(name, "p")) return to_number(value, &r->p);
    if (is(name, "tau")) return to_number(value, &r->tau);
    if (is(name, "ema")) return to_number(value, &r->ema);
    if (is(name, "initial_score")) return to_number(value, &r->initial_score);
    if (is(name, "momentum")) return choose_flag(value, "after", "before", &r->before);
    if (is(name, "decay")) return choose_flag(value, "masked", "dense", &r->dense_decay);
    return false;
}

static const char *to_rule(const options *list, rule *r) {
    *r = MAGMA;
    for (size_t i = 0; i < list->count; i++)
        if (!set_rule_option(r, list->items[i].name, list->items[i].value)) return "an option or value of the rule";
    return NULL;
}

/* A parameter as it stands in the request. */
typedef struct {
    const uint8_t *name;
    size_t name_length, axis_count;
    bool masked, axes_fit;
    const size_t *axes;
    arrays given;
} parameter_text;

static const uint8_t *read_name(reader *r, size_t *length) {
    word w = next_word(r);
    *length = 0;
    if (is(w, "-")) return NULL;
    if (w.length % 2 != 0) malformed(r, "half a byte in a name");
    uint8_t *name = take(r->memory, w.length / 2, 1);
    r->at = w.at;
    while (*length < w.length / 2) name[(*length)++] = (uint8_t)read_digits(r, 2);
    return name;
}

static parameter_text read_parameter(reader *r) {
    parameter_text p = {.axes_fit = true};
    p.name = read_name(r, &p.name_length);
    word masked = next_word(r);
    p.masked = is(masked, "masked");
    if (!p.masked && !is(masked, "unmasked")) malformed(r, "masked or unmasked expected");
    if (p.masked) p.axis_count = read_count(r);
    size_t *axes = take(r->memory, p.axis_count, sizeof(size_t));
    for (size_t i = 0; i < p.axis_count; i++) {
        integer axis = read_integer(r);
        axes[i] = axis.value;
        if (!axis.fits) p.axes_fit = false;
    }
    p.axes = axes;
    p.given = read_arrays(r);
    return p;
}

typedef struct {
    double lr;
    arrays gradients;
} step_text;

typedef struct {
    options base, rule;
    integer seed, first_step;
    size_t parameter_count, step_count;
    parameter_text *parameters;
    step_text *steps;
} steps_text;

static steps_text read_steps(reader *r) {
    steps_text q = {.base = read_options(r, "base"), .rule = read_options(r, "rule")};
    expect(r, "seed");
    q.seed = read_integer(r);
    expect(r, "first_step");
    q.first_step = read_integer(r);
    while (next_is(r, "parameter")) {
        next_word(r);
        q.parameters = grow(r->memory, q.parameters, q.parameter_count, sizeof(parameter_text));
        q.parameters[q.parameter_count++] = read_parameter(r);
    }
    while (next_is(r, "step")) {
        next_word(r);
        q.steps = grow(r->memory, q.steps, q.step_count, sizeof(step_text));
        step_text *s = &q.steps[q.step_count++];
        if (!to_number(next_word(r), &s->lr)) malformed(r, "a learning rate expected");
        s->gradients = read_arrays(r);
    }
    return q;
}

/* ---------------------------------------------------------------------------------------- Whole steps: checks and answers */

/* Blocks without elements take no room in a request but some in memory and in the answer: this port has a limit for their
   number, so that a request of a hundred bytes does not get an answer of a hundred gigabytes. */
enum { MOST_EMPTY_BLOCKS = 1 << 20 };

/* Finds what section 9 has against a parameter, and sets its sizes and state: all but what each step fills. */
static const char *prepare_parameter(parameter *p, const parameter_text *text, const base *b, arena *memory) {
    slot slots[SLOTS];
    size_t found = 0, wanted = 0;
    if (text->given.count == 0 || !is(text->given.items[0].field, "param")) return "a parameter without param";
    const array *param = &text->given.items[0];
    if (param->dtype > FLOAT16) return "param must be float32, bfloat16 or float16";
    if (!text->axes_fit) return "a block axis out of range";
    p->format = param->dtype;
    p->rank = param->rank;
    p->shape = param->shape;
    p->count = param->count;
    const char *why = refuse_blocks(p, memory);
    if (why != NULL) return why;

    p->theta = take(memory, p->count, sizeof(uint32_t));
    for (size_t i = 0; i < p->count; i++) p->theta[i] = (uint32_t)param->words[i];
    p->mu_power = p->nu_power = 1.0f;
    state_of(p, b, slots);
    for (size_t k = 0; k < SLOTS; k++) {
        const array *a = NULL;
        if (!slots[k].kept) continue;
        wanted++;
        for (size_t i = 1; i < text->given.count && a == NULL; i++)
            if (is(text->given.items[i].field, slots[k].field)) a = &text->given.items[i];
        if (a == NULL) continue;
        found++;
        if (a->dtype != FLOAT32 || !same_shape(a, slots[k].rank, slots[k].shape)) return "a state that does not fit";
        if (slots[k].values != NULL) *slots[k].values = to_floats(a, memory);
        else *slots[k].scalar = float_of_bits((uint32_t)a->words[0]);
    }
    if (found != text->given.count - 1 || (found != 0 && found != wanted)) return "not the state of this base and rule";
    return NULL;
}

/* The rest of a parameter's memory, and the state before the first step where none was given. */
static void start_parameter(parameter *p, const base *b, uint64_t seed, arena *memory) {
    slot slots[SLOTS];
    size_t blocks = p->block_count;
    state_of(p, b, slots);
    for (size_t k = 0; k < SLOTS; k++)
        if (slots[k].kept && slots[k].values != NULL && *slots[k].values == NULL) {
            *slots[k].values = take(memory, slots[k].count, sizeof(float));
            for (size_t i = 0; k == SLOTS - 1 && i < blocks; i++) p->score[i] = bracket(p->rule.initial_score);
        }
    p->block = take(memory, p->count, sizeof(uint32_t));
    p->g = take(memory, p->count, sizeof(float));
    p->delta = take(memory, p->count, sizeof(float));
    p->cosine = take(memory, blocks, sizeof(float));
    p->scale = take(memory, blocks, 2 * sizeof(float)); /* also the room that alignment_sums works in */
    p->sums = take(memory, blocks, 3 * sizeof(int64_t));
    p->keep = take(memory, blocks, 1);
    index_blocks(p, memory);
    parameter_key(seed, p->name, p->name_length, p->key);
}

static const char *refuse_steps(const steps_text *q, const parameter *parameters) {
    if (!q->seed.fits) return "seed outside [0, 2^64)";
    if (!q->first_step.fits || q->first_step.value < 1 || q->first_step.value > UINT32_MAX) return "step outside [1, 2^32)";
    if (q->step_count > 0 && q->first_step.value + (q->step_count - 1) > UINT32_MAX) return "a step beyond 2^32 - 1";
    for (size_t i = 0; i < q->step_count; i++) {
        const arrays *gradients = &q->steps[i].gradients;
        if (!good_rate(q->steps[i].lr)) return "lr negative or not finite";
        if (gradients->count != q->parameter_count) return "not one gradient for each parameter";
        for (size_t k = 0; k < gradients->count; k++) {
            const array *a = &gradients->items[k];
            if (!is(a->field, "gradient")) return "an array that is not a gradient";
            if (a->dtype != parameters[k].format || !same_shape(a, parameters[k].rank, parameters[k].shape))
                return "a gradient that does not fit";
        }
    }
    return NULL;
}

static void put_parameter(writer *w, parameter *p, const base *b) {
    slot slots[SLOTS];
    size_t rank = p->axis_count, blocks = p->block_count;
    put(w, "parameter\n");
    put_words(w, "param", p->format, p->rank, p->shape, p->count, p->theta);
    state_of(p, b, slots);
    for (size_t k = 0; k < SLOTS; k++) {
        const slot *s = &slots[k];
        if (s->kept) put_floats(w, s->field, s->rank, s->shape, s->count, s->values != NULL ? *s->values : s->scalar);
    }
    if (uses_scores(&p->rule)) {
        put_int64s(w, "sums", rank + 1, p->sums_shape, 3 * blocks, p->sums);
        put_floats(w, "cosine", rank, p->block_shape, blocks, p->cosine);
    }
    if (p->masked) put_bools(w, "keep", rank, p->block_shape, blocks, p->keep);
}

/* Answers, or writes nothing and says why it refuses or (with `*unsupported` set) does not understand. */
static const char *answer_steps(const steps_text *q, arena *memory, writer *w, uint64_t number, bool *unsupported) {
    base b;
    rule r;
    const char *why;
    size_t empty_blocks = 0;
    *unsupported = true;
    if ((why = to_base(&q->base, &b)) != NULL || (why = to_rule(&q->rule, &r)) != NULL) return why;

    *unsupported = false;
    if ((why = refuse_base(&b)) != NULL || (why = refuse_rule(&r)) != NULL) return why;
    parameter *parameters = take(memory, q->parameter_count, sizeof(parameter));
    for (size_t k = 0; k < q->parameter_count; k++) {
        const parameter_text *text = &q->parameters[k];
        parameters[k] = (parameter){.name = text->name, .name_length = text->name_length, .masked = text->masked,
                                    .axis_count = text->axis_count, .axes = text->axes, .rule = text->masked ? r : dense(r)};
        if ((why = prepare_parameter(&parameters[k], text, &b, memory)) != NULL) return why;
        if (parameters[k].count == 0 && parameters[k].block_count < SIZE_MAX / 2 - empty_blocks)
            empty_blocks += parameters[k].block_count;
    }
    if ((why = refuse_names(parameters, q->parameter_count, memory)) != NULL) return why;
    if ((why = refuse_steps(q, parameters)) != NULL) return why;
    *unsupported = empty_blocks > MOST_EMPTY_BLOCKS;
    if (*unsupported) return "so many blocks without elements";

    for (size_t k = 0; k < q->parameter_count; k++) start_parameter(&parameters[k], &b, q->seed.value, memory);
    give(w, number);
    for (size_t i = 0; i < q->step_count; i++) {
        put(w, "step\n");
        for (size_t k = 0; k < q->parameter_count; k++) {
            take_step(&parameters[k], &b, (uint32_t)(q->first_step.value + i), q->steps[i].lr,
                      q->steps[i].gradients.items[k].words);
            put_parameter(w, &parameters[k], &b);
        }
    }
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------------- Program */

static void answer_question(reader *r, writer *w) {
    expect(r, "question");
    uint64_t number = read_size(r);
    word kind = next_word(r);
    const char *why = NULL;
    bool unsupported = false;
    if (is(kind, "steps")) {
        steps_text q = read_steps(r);
        expect(r, "end");
        why = answer_steps(&q, r->memory, w, number, &unsupported);
    } else if (is(kind, "threefry") || is(kind, "coins") || is(kind, "sums") || is(kind, "score")) {
        arrays given = {0, NULL};
        while (!next_is(r, "end")) { /* not read_arrays: "step" is the name of an array here */
            given.items = grow(r->memory, given.items, given.count, sizeof(array));
            given.items[given.count++] = read_array(r);
        }
        expect(r, "end");
        if (is(kind, "threefry")) why = answer_threefry(&given, w, number);
        if (is(kind, "coins")) why = answer_coins(&given, r->memory, w, number);
        if (is(kind, "sums")) why = answer_sums(&given, r->memory, w, number);
        if (is(kind, "score")) why = answer_score(&given, r->memory, w, number);
    } else {
        while (!is(next_word(r), "end")) continue;
        why = "a question of unknown kind";
        unsupported = true;
    }
    if (why != NULL) {
        begin_answer(w, number, unsupported ? "unsupported " : "refused ");
        put(w, why);
        put(w, "\n");
    }
    put(w, "end\n");
    drain(w); /* so that answers are there even if a later question ends the program */
    give_back(r->memory);
}

/* The whole file and a zero byte behind it. */
static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) die("cannot open the request");
    size_t room = 1 << 16, used = 0;
    char *text = malloc(room);
    while (text != NULL) {
        used += fread(text + used, 1, room - used - 1, file);
        if (used < room - 1) break;
        if (room > SIZE_MAX / 2) die("out of memory");
        room *= 2;
        char *longer = realloc(text, room);
        if (longer == NULL) free(text);
        text = longer;
    }
    if (text == NULL) die("out of memory");
    if (ferror(file)) die("cannot read the request");
    fclose(file);
    text[used] = '\0';
    *length = used;
    return text;
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage: magma REQUEST ANSWER");
    size_t length;
    char *text = read_file(argv[1], &length);
    arena memory = {NULL};
    reader r = {text, text, text + length, &memory};
    writer w = {.file = fopen(argv[2], "wb")};
    if (w.file == NULL) die("cannot open the answer");
    expect(&r, "magma-request");
    expect(&r, "1");
    put(&w, "magma-answer 1\n");
    while (more(&r)) answer_question(&r, &w);
    drain(&w);
    if (fclose(w.file) != 0) die("cannot write the answer");
    free(text);
    return 0;
}
