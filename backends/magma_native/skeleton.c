// One step over many tensors. This file rounds nothing: it holds tiles, threads, guesses, and sums of integers.
// `loops.py` traces the rule from magma_core and replaces the marks /*@ … @*/ by it.
//
// A tensor is a matrix with a row for each of its blocks. The step measures a block tile by tile: it advances moments,
// finds the largest magnitudes and, while the tile is in cache, sums its integers on the grid that was right so far.
// When larger values turn up, it sums the tiles before again. Then it decides the block, and writes it if it is kept.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

enum { TILE = 512, CHUNK = 64 * TILE, LARGE = 1 << 20 };  // elements; threads share a block that is larger
enum { DECISION = 256 };  // a decision takes as long as so many elements
enum { MASKED = /*@MASKED@*/, MEASURED = /*@MEASURED@*/, BEFORE = /*@BEFORE@*/, WRITES_ALL = /*@WRITES_ALL@*/ };
enum { ADVANCES = /*@ADVANCES@*/, WRITES = /*@WRITES@*/ };

typedef /*@PARAM@*/ param;
typedef /*@GRAD@*/ gradient;
typedef /*@MOMENT@*/ moment;
typedef struct { /*@SETTINGS@*/ } Settings;
typedef struct { /*@TENSOR@*/ } Tensor;
typedef struct { int64_t xy, xx, yy; } Sums;
typedef struct {
  int32_t mu_peak, grad_peak;  // `largest` of the elements so far
  float mu_scale, grad_scale;  // the grids of the sums
  Sums sums;
  int64_t from;  // the first element in the sums
} Measured;

static inline int32_t to_bits(float x) { int32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float from_bits(int32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int32_t nearest(float x) {
#ifdef __clang__
  return (int32_t)__builtin_rintf(x);
#else
  return (int32_t)__builtin_irintf(x);
#endif
}
static inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = (uint32_t)to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

static float grid(int32_t peak) {
  /*@GRID@*/
}
static int narrow(int32_t peak) {
  /*@NARROW@*/
}

#define ARRAYS /*@ARRAYS@*/
#define NUMBERS /*@NUMBERS@*/

static void correct(Tensor *t) {
  const Settings *s = t->settings;
  NUMBERS
  /*@CORRECT@*/
}

static void advance(const Tensor *t, int64_t at, int64_t n) {
  const Settings *s = t->settings;
  ARRAYS NUMBERS
  #pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    /*@ADVANCE@*/
  }
}

static void measure(const Tensor *t, int64_t at, int64_t n, Measured *m, int16_t *restrict x, int16_t *restrict y) {
  const Settings *s = t->settings;
  const float mu_scale = m->mu_scale, grad_scale = m->grad_scale;
  int32_t mu_peak = m->mu_peak, grad_peak = m->grad_peak;
  ARRAYS NUMBERS
  #pragma omp simd reduction(max : mu_peak, grad_peak)
  for (int64_t i = 0; i < n; i++) {
    /*@MEASURE@*/
  }
  m->mu_peak = mu_peak, m->grad_peak = grad_peak;
}

#define PROJECT(name, integer)                                                                                   \
  static void name(const Tensor *t, int64_t at, int64_t n, float mu_scale, float grad_scale, integer *restrict x, \
                   integer *restrict y) {                                                                        \
    ARRAYS                                                                                                       \
    _Pragma("omp simd") for (int64_t i = 0; i < n; i++) { /*@PROJECT@*/ }                                        \
  }
PROJECT(project, int16_t)
PROJECT(project_wide, int32_t)

static void write(const Tensor *t, int64_t at, int64_t n, float scale, int32_t keep) {
  const Settings *s = t->settings;
  ARRAYS NUMBERS
  #pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    /*@WRITE@*/
  }
}

static int32_t decide(const Tensor *t, int64_t block, int32_t mu_peak, int32_t grad_peak, const Sums *sums, float *scale) {
  const Settings *s = t->settings;
  int32_t keep = 1;
  NUMBERS
  /*@DECIDE@*/
  if (t->scale) t->scale[block] = *scale;
  return keep;
}

// Sums of products of 16-bit integers. None is ±2¹⁵, so two products fit 31 bits.
static void add(const int16_t *x, const int16_t *y, int64_t n, Sums *sums) {
  int64_t i = 0, xy = 0, xx = 0, yy = 0;
#ifdef __AVX2__
  const __m256i half = _mm256_set1_epi32(0xffff);
  __m256i low[3], high[3];
  uint32_t lows[3][8];
  int32_t highs[3][8];
  for (int k = 0; k < 3; k++) low[k] = high[k] = _mm256_setzero_si256();
  for (; i + 16 <= n; i += 16) {
    const __m256i a = _mm256_loadu_si256((const __m256i *)(x + i)), b = _mm256_loadu_si256((const __m256i *)(y + i));
    const __m256i products[3] = {_mm256_madd_epi16(a, b), _mm256_madd_epi16(a, a), _mm256_madd_epi16(b, b)};
    for (int k = 0; k < 3; k++) {
      low[k] = _mm256_add_epi32(low[k], _mm256_and_si256(products[k], half));
      high[k] = _mm256_add_epi32(high[k], _mm256_srai_epi32(products[k], 16));
    }
  }
  int64_t totals[3] = {0, 0, 0};
  for (int k = 0; k < 3; k++) {
    _mm256_storeu_si256((__m256i *)lows[k], low[k]);
    _mm256_storeu_si256((__m256i *)highs[k], high[k]);
    for (int lane = 0; lane < 8; lane++) totals[k] += (int64_t)highs[k][lane] * 65536 + lows[k][lane];
  }
  xy = totals[0], xx = totals[1], yy = totals[2];
#endif
  for (; i < n; i++) xy += x[i] * y[i], xx += x[i] * x[i], yy += y[i] * y[i];
  sums->xy += xy, sums->xx += xx, sums->yy += yy;
}

// The same for what `add` cannot take: integers of ±2¹⁵, and blocks that are not finite, whose sums do not count.
static void sum_wide(const Tensor *t, int64_t first, int64_t last, int32_t mu_peak, int32_t grad_peak, Sums *sums) {
  int32_t x[TILE], y[TILE];
  uint64_t xy = 0, xx = 0, yy = 0;
  for (int64_t at = first; at < last; at += TILE) {
    const int64_t n = smaller(TILE, last - at);
    project_wide(t, at, n, grid(mu_peak), grid(grad_peak), x, y);
    for (int64_t i = 0; i < n; i++) {
      const uint64_t a = (uint64_t)(int64_t)x[i], b = (uint64_t)(int64_t)y[i];
      xy += a * b, xx += a * a, yy += b * b;
    }
  }
  sums->xy = (int64_t)xy, sums->xx = (int64_t)xx, sums->yy = (int64_t)yy;
}

static void measure_part(const Tensor *t, int64_t first, int64_t last, float mu_scale, float grad_scale, Measured *m) {
  _Alignas(64) int16_t x[TILE], y[TILE];
  *m = (Measured){.mu_scale = mu_scale, .grad_scale = grad_scale, .from = first};
  for (int64_t at = first; at < last; at += TILE) {
    const int64_t n = smaller(TILE, last - at);
    measure(t, at, n, m, x, y);
    const float a = grid(m->mu_peak), b = grid(m->grad_peak);
    if (a < m->mu_scale || b < m->grad_scale) {  // the grid was too fine for the sums so far
      m->mu_scale = fminf(a, m->mu_scale), m->grad_scale = fminf(b, m->grad_scale);
      m->sums = (Sums){0, 0, 0}, m->from = at;
      project(t, at, n, m->mu_scale, m->grad_scale, x, y);
    }
    add(x, y, n, &m->sums);
  }
}

// Put the sums of a part on the grids of the whole block.
static void complete_part(const Tensor *t, int64_t first, int64_t last, int32_t mu_peak, int32_t grad_peak, Measured *m) {
  _Alignas(64) int16_t x[TILE], y[TILE];
  if (!narrow(mu_peak) || !narrow(grad_peak)) {
    sum_wide(t, first, last, mu_peak, grad_peak, &m->sums);
    return;
  }
  const float mu_scale = grid(mu_peak), grad_scale = grid(grad_peak);
  if (mu_scale != m->mu_scale || grad_scale != m->grad_scale) m->sums = (Sums){0, 0, 0}, m->from = last;
  for (int64_t at = first; at < m->from; at += TILE) {
    const int64_t n = smaller(TILE, m->from - at);
    project(t, at, n, mu_scale, grad_scale, x, y);
    add(x, y, n, &m->sums);
  }
}

static void go_over(const Tensor *t, int64_t first, int64_t last, int advances, int writes, float scale, int32_t keep) {
  for (int64_t at = first; at < last && (advances || writes); at += TILE) {
    if (advances) advance(t, at, smaller(TILE, last - at));
    if (writes) write(t, at, smaller(TILE, last - at), scale, keep);
  }
}

// The rest of the step, after the decision: moments that have not advanced yet, and the parameter.
static void finish(const Tensor *t, int64_t first, int64_t last, float scale, int32_t keep) {
  go_over(t, first, last, ADVANCES && !(MEASURED && !BEFORE), WRITES && (keep || WRITES_ALL), scale, keep);
}

// Guess the grids from the step before; the gradient's one finer, since gradients often shrink.
static void guess(const Tensor *t, int64_t block, float *mu_scale, float *grad_scale) {
  const int32_t *hints = t->hints ? t->hints + 2 * block : 0;
  *mu_scale = grid(hints ? hints[0] : 0), *grad_scale = grid(hints ? hints[1] - (1 << 23) : 0);
}

static void remember(const Tensor *t, int64_t block, int32_t mu_peak, int32_t grad_peak) {
  if (t->hints) t->hints[2 * block] = mu_peak, t->hints[2 * block + 1] = grad_peak;
}

static void step_block(const Tensor *t, int64_t block) {
  const int64_t first = block * t->columns, last = first + t->columns;
  float scale = t->settings->rate;
  int32_t keep = 1;
  if (MEASURED) {
    float mu_scale, grad_scale;
    Measured m;
    guess(t, block, &mu_scale, &grad_scale);
    measure_part(t, first, last, mu_scale, grad_scale, &m);
    complete_part(t, first, last, m.mu_peak, m.grad_peak, &m);
    remember(t, block, m.mu_peak, m.grad_peak);
    keep = decide(t, block, m.mu_peak, m.grad_peak, &m.sums, &scale);
  } else if (MASKED) {
    keep = decide(t, block, 0, 0, 0, &scale);
  }
  finish(t, first, last, scale, keep);
}

// Calls body(data, i) for i from 0 to count - 1 on several threads; a caller of the library may have threads of its own.
static void each(int64_t count, int threads, void body(void *data, int64_t i), void *data);
#ifndef OWN_THREADS
static void each(int64_t count, int threads, void body(void *data, int64_t i), void *data) {
  (void)threads;
  #pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t i = 0; i < count; i++) body(data, i);
}
#endif

typedef struct {
  const Tensor *tensor;
  int64_t first, last;
  Measured *parts;  // of chunks, which share the grids that they have found, so that few start on a wrong one
  float mu_scale, grad_scale, scale;
  int32_t mu_peak, grad_peak, keep;
} Shared;  // a block for all threads

static int64_t chunk_start(const Shared *s, int64_t c) { return smaller(s->first + c * CHUNK, s->last); }

static void measure_chunk(void *data, int64_t c) {
  Shared *s = data;
  Measured *part = s->parts + c;
  float a, b;
  __atomic_load(&s->mu_scale, &a, __ATOMIC_RELAXED), __atomic_load(&s->grad_scale, &b, __ATOMIC_RELAXED);
  measure_part(s->tensor, chunk_start(s, c), chunk_start(s, c + 1), a, b, part);
  if (part->mu_scale < a) __atomic_store(&s->mu_scale, &part->mu_scale, __ATOMIC_RELAXED);
  if (part->grad_scale < b) __atomic_store(&s->grad_scale, &part->grad_scale, __ATOMIC_RELAXED);
}

static void complete_chunk(void *data, int64_t c) {
  const Shared *s = data;
  complete_part(s->tensor, chunk_start(s, c), chunk_start(s, c + 1), s->mu_peak, s->grad_peak, s->parts + c);
}

static void finish_chunk(void *data, int64_t c) {
  const Shared *s = data;
  finish(s->tensor, chunk_start(s, c), chunk_start(s, c + 1), s->scale, s->keep);
}

// `step_block` with all threads.
static void share_block(const Tensor *t, int64_t block, Measured *parts, int threads) {
  const int64_t first = block * t->columns, count = (t->columns + CHUNK - 1) / CHUNK;
  Shared s = {.tensor = t, .first = first, .last = first + t->columns, .parts = parts, .scale = t->settings->rate, .keep = 1};
  if (MEASURED) {
    Sums sums = {0, 0, 0};
    guess(t, block, &s.mu_scale, &s.grad_scale);
    each(count, threads, measure_chunk, &s);
    for (int64_t c = 0; c < count; c++) {
      if (parts[c].mu_peak > s.mu_peak) s.mu_peak = parts[c].mu_peak;
      if (parts[c].grad_peak > s.grad_peak) s.grad_peak = parts[c].grad_peak;
    }
    each(count, threads, complete_chunk, &s);
    for (int64_t c = 0; c < count; c++) {
      sums.xy += parts[c].sums.xy, sums.xx += parts[c].sums.xx, sums.yy += parts[c].sums.yy;
    }
    remember(t, block, s.mu_peak, s.grad_peak);
    s.keep = decide(t, block, s.mu_peak, s.grad_peak, &sums, &s.scale);
  } else if (MASKED) {
    s.keep = decide(t, block, 0, 0, 0, &s.scale);
  }
  each(count, threads, finish_chunk, &s);
}

typedef struct { const Tensor *tensor; int64_t block, count; } Run;  // blocks for one thread, of one tensor or several

static void step_run(void *runs, int64_t i) {
  Run run = ((const Run *)runs)[i];
  for (const Tensor *t = run.tensor; run.count; t++, run.block = 0) {
    for (; run.count && t->columns <= LARGE && run.block < t->rows; run.block++, run.count--) step_block(t, run.block);
  }
}

// Returns 0, or 1 without memory, before anything has changed.
int magma_step(Tensor *tensors, int64_t count, int threads) {
  int64_t most = 1, parts = 0, last = 0, room = CHUNK;
  for (const Tensor *t = tensors; t < tensors + count; t++) {
    if (t->columns <= LARGE) most += 1 + t->rows / (1 + (CHUNK - 1) / (t->columns + DECISION));
    else if ((t->columns + CHUNK - 1) / CHUNK > parts) parts = (t->columns + CHUNK - 1) / CHUNK;
  }
  Run *runs = malloc(sizeof(Run) * (size_t)most);
  Measured *measured = malloc(sizeof(Measured) * (size_t)(parts + 1));
  if (!runs || !measured) {
    free(runs), free(measured);
    return 1;
  }
  runs[0] = (Run){tensors, 0, 0};
  for (Tensor *t = tensors; t < tensors + count; t++) {
    correct(t);
    for (int64_t block = 0; block < t->rows && t->columns <= LARGE;) {
      if (room <= 0) runs[++last] = (Run){t, block, 0}, room = CHUNK;
      const int64_t cost = t->columns + DECISION, taken = smaller(1 + (room - 1) / cost, t->rows - block);
      runs[last].count += taken, block += taken, room -= taken * cost;
    }
  }
  for (const Tensor *t = tensors; t < tensors + count; t++) {
    for (int64_t block = 0; block < t->rows && t->columns > LARGE; block++) share_block(t, block, measured, threads);
  }
  each(last + 1, last ? threads : 1, step_run, runs);
  free(runs), free(measured);
  return 0;
}

// Blocks of which this process has a part take three passes, and others decide: the first finds the peaks of the part,
// in ``hints``; the second its sums, given the peaks of whole blocks; the third writes what is in ``keep``.
enum { PEAKS, SUMS, WRITE };

static void raise_peak(int32_t *peak, int32_t x) {
  int32_t known = __atomic_load_n(peak, __ATOMIC_RELAXED);
  while (known < x && !__atomic_compare_exchange_n(peak, &known, x, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

static void pass_part(const Tensor *t, int64_t block, int64_t first, int64_t last, int pass) {
  _Alignas(64) int16_t x[TILE], y[TILE];
  Measured m = {.mu_scale = 1, .grad_scale = 1};
  if (pass == WRITE) {
    go_over(t, first, last, 0, WRITES && (t->keep[block] || WRITES_ALL), t->scale[block], t->keep[block]);
  } else if (!MEASURED) {
    go_over(t, first, last, ADVANCES && pass == PEAKS, 0, 0, 0);
  } else if (pass == PEAKS) {
    for (int64_t at = first; at < last; at += TILE) measure(t, at, smaller(TILE, last - at), &m, x, y);
    raise_peak(t->hints + 2 * block, m.mu_peak), raise_peak(t->hints + 2 * block + 1, m.grad_peak);
  } else {
    m = (Measured){.from = last};
    complete_part(t, first, last, t->hints[2 * block], t->hints[2 * block + 1], &m);
    const int64_t sums[3] = {m.sums.xy, m.sums.xx, m.sums.yy};
    for (int k = 0; k < 3; k++) __atomic_fetch_add(t->sums + k * t->stride + block, sums[k], __ATOMIC_RELAXED);
    go_over(t, first, last, ADVANCES && BEFORE, 0, 0, 0);
  }
}

void magma_pass(const Tensor *t, int threads, int pass) {
  const int64_t chunks = (t->columns + CHUNK - 1) / CHUNK, span = 1 + CHUNK / (t->columns + DECISION);
  if (t->rows * t->columns <= CHUNK) threads = 1;
  #pragma omp parallel for schedule(dynamic, span) num_threads(threads)
  for (int64_t i = 0; i < t->rows * chunks; i++) {
    const int64_t block = i / chunks, first = block * t->columns, last = first + t->columns;
    const int64_t at = first + i % chunks * CHUNK;
    pass_part(t, block, at, smaller(at + CHUNK, last), pass);
  }
}

// a·b + c, to check that the compiler did not contract it.
float magma_product_and_sum(float a, float b, float c) { return a * b + c; }
