// magma_step as a custom call of XLA. loops.py's library is above this; nothing of the rule is here.
//
// Operands: the numbers of the group, then (step, limit), then (rows, columns, key) of each tensor, then the powers, then
// the arrays of each tensor, in the order of GIVEN. Results: the powers, then for each tensor RETURNED, all or the first
// few of them. Results that have an operand's name are in its memory.

#include <sched.h>
#include <stddef.h>
#include "xla/ffi/api/c_api.h"

enum { NUMBERS_OPERAND, STEP_OPERAND, LAYOUT_OPERAND, OPERANDS };
enum { POWERS = /*@POWERS@*/, GIVEN_COUNT = /*@GIVEN_COUNT@*/ };
static const size_t GIVEN[] = {/*@GIVEN@*/}, RETURNED[] = {/*@RETURNED@*/};  // where a Tensor has the address

static void *operand(const XLA_FFI_CallFrame *call, int64_t i) { return ((XLA_FFI_Buffer *)call->args.args[i])->data; }
static void *result(const XLA_FFI_CallFrame *call, int64_t i) { return ((XLA_FFI_Buffer *)call->rets.rets[i])->data; }
static void **place(Tensor *t, size_t offset) { return (void **)((char *)t + offset); }

static XLA_FFI_Error *failed(const XLA_FFI_CallFrame *call, XLA_FFI_Error_Code code, const char *message) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, 0, message, code};
  return call->api->XLA_FFI_Error_Create(&args);
}

// Whether XLA asks for the version of its interface that this was compiled for; the answer is given.
static int asked_for_version(const XLA_FFI_CallFrame *call) {
  XLA_FFI_Extension_Base *extension = call->extension_start;
  while (extension && extension->type != XLA_FFI_Extension_Metadata) extension = extension->next;
  if (!extension) return 0;
  XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  metadata->traits = 0;
  return 1;
}

static _Thread_local const XLA_FFI_CallFrame *current;  // the call that this thread is in

static int is_error(XLA_FFI_Error *error) {
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, 0, error};
  if (error) current->api->XLA_FFI_Error_Destroy(&args);
  return error != 0;
}

static int threads(void) {
  int64_t count = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, 0, current->ctx, &count};
  return is_error(current->api->XLA_FFI_ThreadPool_NumThreads(&args)) ? 1 : (int)count;
}

typedef struct {
  void (*body)(void *, int64_t);
  void *data;
  int64_t count, next, done;
  int users;  // threads that will look at this; the last one frees it
} Job;

static void take_part(void *data) {
  Job *job = data;
  for (int64_t i; (i = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->count;) {
    job->body(job->data, i);
    __atomic_fetch_add(&job->done, 1, __ATOMIC_RELEASE);
  }
}

static void leave(Job *job) {
  if (!__atomic_sub_fetch(&job->users, 1, __ATOMIC_ACQ_REL)) free(job);
}

static void help(void *data) {
  take_part(data);
  leave(data);
}

// On XLA's threads. None may ever come to help, since all may be waiting: this thread does whatever is left.
static void each(int64_t count, int threads, void body(void *, int64_t), void *data) {
  threads = (int)smaller(threads, count);
  Job *job = threads > 1 ? malloc(sizeof(Job)) : 0;
  if (!job) {
    for (int64_t i = 0; i < count; i++) body(data, i);
    return;
  }
  *job = (Job){body, data, count, 0, 0, threads};
  for (int n = 1; n < threads; n++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, 0, current->ctx, help, job};
    if (is_error(current->api->XLA_FFI_ThreadPool_Schedule(&args))) leave(job);
  }
  take_part(job);
  while (__atomic_load_n(&job->done, __ATOMIC_ACQUIRE) < count) sched_yield();
  leave(job);
}

XLA_FFI_Error *magma_call(XLA_FFI_CallFrame *call) {
  if (asked_for_version(call)) return 0;
  current = call;
  const int64_t count = (call->args.size - OPERANDS - POWERS) / GIVEN_COUNT;
  const int64_t returned = count ? (call->rets.size - POWERS) / count : 0;
  if (call->args.size != OPERANDS + POWERS + count * GIVEN_COUNT || call->rets.size != POWERS + count * returned) {
    return failed(call, XLA_FFI_Error_Code_INTERNAL, "operands or results are missing");
  }
  const int64_t *step = operand(call, STEP_OPERAND), *layout = operand(call, LAYOUT_OPERAND);
  Settings settings = {.step = step[0], .limit = step[1]};
  memcpy((char *)&settings + offsetof(Settings, /*@FIRST@*/), operand(call, NUMBERS_OPERAND), /*@NUMBERS_SIZE@*/);
  Tensor *tensors = calloc((size_t)count, sizeof(Tensor));
  float *powers = malloc(sizeof(float) * (size_t)(POWERS * count + 1));  // each tensor advances its own
  XLA_FFI_Error *error = 0;
  if (!tensors || !powers) error = failed(call, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory to begin a step");
  for (int64_t i = 0; i < count && !error; i++, layout += 4) {
    Tensor *t = tensors + i;
    *t = (Tensor){.rows = layout[0], .columns = layout[1], .stride = layout[0], .key_high = layout[2], .key_low = layout[3]};
    t->settings = &settings;
    for (int64_t j = 0; j < GIVEN_COUNT; j++) *place(t, GIVEN[j]) = operand(call, OPERANDS + POWERS + i * GIVEN_COUNT + j);
    for (int64_t j = 0; j < returned; j++) {
      void **own = place(t, RETURNED[j]), *given = result(call, POWERS + i * returned + j);
      if (*own && *own != given) error = failed(call, XLA_FFI_Error_Code_INTERNAL, "XLA did not alias a result");
      *own = given;
    }
    for (int64_t j = 0; j < POWERS; j++) powers[POWERS * i + j] = *(float *)operand(call, OPERANDS + j);
    if (POWERS) t->mu_power = powers + POWERS * i, t->nu_power = powers + POWERS * i + POWERS - 1;
  }
  if (!error && magma_step(tensors, count, threads())) {
    error = failed(call, XLA_FFI_Error_Code_RESOURCE_EXHAUSTED, "no memory to begin a step");
  }
  for (int64_t j = 0; j < POWERS && !error; j++) *(float *)result(call, j) = powers[j];
  free(tensors), free(powers);
  return error;
}
