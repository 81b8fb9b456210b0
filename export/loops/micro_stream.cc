// Read a stream step by step with a .tflite file for target="micro", in C++ on tflite-micro.
//
// tflite-micro knows tensors by number, in the order of the file's metadata: `x`, then the states;
// `y`, then the states in the same order. The first `content.bytes` bytes of the file are the
// model; the chip does not need the metadata after it.
//
//   static tflite::MicroMutableOpResolver<2> ops;  // one call for each of the file's `ops`
//   ops.AddFullyConnected();
//   ops.AddReshape();
//   alignas(16) static uint8_t arena[kArenaBytes];  // `arena_bytes` of the metadata
//   static tflite::MicroInterpreter interpreter(tflite::GetModel(model), ops, arena, kArenaBytes);
//   if (interpreter.AllocateTensors() != kTfLiteOk) return false;
//   static Stream<kStateBytes> stream;  // `state_bytes` of the metadata
//   if (!stream.Step(interpreter, x, y, kMaxSteps)) ...

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

constexpr int64_t kNoLimit = -1;

// An output may lie where an input was, so the state stays outside the arena between two steps.
template <size_t kStateBytes>
class Stream {
 public:
  // Read the next step. `max_steps` is the entry of that name in the metadata, or `kNoLimit` for
  // null. False if the stream is full, or if the model fails.
  bool Step(tflite::MicroInterpreter& interpreter, const float* x, float* y, int64_t max_steps) {
    if (max_steps != kNoLimit && steps_ >= max_steps) return false;
    std::memcpy(interpreter.input(0)->data.raw, x, interpreter.input(0)->bytes);
    const uint8_t* from = state_;
    for (size_t i = 1; i < interpreter.inputs_size(); from += interpreter.input(i++)->bytes)
      std::memcpy(interpreter.input(i)->data.raw, from, interpreter.input(i)->bytes);
    if (interpreter.Invoke() != kTfLiteOk) return false;
    std::memcpy(y, interpreter.output(0)->data.raw, interpreter.output(0)->bytes);
    uint8_t* to = state_;
    for (size_t i = 1; i < interpreter.outputs_size(); to += interpreter.output(i++)->bytes)
      std::memcpy(to, interpreter.output(i)->data.raw, interpreter.output(i)->bytes);
    ++steps_;
    return true;
  }

  // Begin a new stream.
  void Reset() {
    std::memset(state_, 0, sizeof(state_));
    steps_ = 0;
  }

 private:
  uint8_t state_[kStateBytes] = {};
  int64_t steps_ = 0;
};

// With state="variables" the state stays in the interpreter: `x` goes in, `y` comes out, and
// `interpreter.Reset()` begins a new stream. The interpreter then needs its variables, as many as
// the metadata list under `state`; count the steps yourself if `max_steps` is a number.
inline tflite::MicroResourceVariables* CreateVariables(uint8_t* arena, size_t arena_bytes,
                                                       int variables,
                                                       tflite::MicroAllocator** allocator) {
  *allocator = tflite::MicroAllocator::Create(arena, arena_bytes);
  return tflite::MicroResourceVariables::Create(*allocator, variables);
}
