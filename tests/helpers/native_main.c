// A step in a process of its own: reads a table and the arrays that it points to, calls magma_step, writes them back.
//
// The file: count, bytes of an entry, pointers at the head of an entry, threads, bytes of all arrays (int64 each); the
// table, whose pointers are offsets into the arrays, plus 1, or 0; the arrays.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int magma_step(void *tensors, int64_t count, int threads);

static int fail(const char *what) {
  fprintf(stderr, "native_main: %s\n", what);
  return 1;
}

int main(int argc, char **argv) {
  int64_t head[5];
  FILE *file = argc == 2 ? fopen(argv[1], "r+b") : 0;
  if (!file || fread(head, sizeof head, 1, file) != 1) return fail("there is no request");
  const size_t entry = (size_t)head[1], table = (size_t)head[0] * entry, arrays = (size_t)head[4];
  char *tensors = malloc(table), *memory = aligned_alloc(64, (arrays + 63) / 64 * 64);
  if (fread(tensors, 1, table, file) != table || fread(memory, 1, arrays, file) != arrays) return fail("it is cut short");
  for (int64_t i = 0; i < head[0]; i++) {
    for (int64_t k = 0; k < head[2]; k++) {
      uint64_t *pointer = (uint64_t *)(tensors + (size_t)i * entry) + k;
      if (*pointer) *pointer = (uint64_t)(uintptr_t)(memory + *pointer - 1);
    }
  }
  if (magma_step(tensors, head[0], (int)head[3])) return fail("there is no memory");
  if (fseek(file, (long)(sizeof head + table), SEEK_SET) || fwrite(memory, 1, arrays, file) != arrays || fclose(file))
    return fail("it cannot be written");
  return 0;
}
