// A stream of 3 steps, which is then full, and a new one.
#include "micro_stream.cc"

#include <cstdio>

int main() {
  static uint8_t arena[16];
  tflite::MicroMutableOpResolver<2> ops;
  ops.AddFullyConnected();
  ops.AddReshape();
  tflite::MicroInterpreter interpreter(tflite::GetModel(arena), ops, arena, sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;
  Stream<sizeof(float)> stream;
  const float x = 2;
  float y = 0;
  for (int i = 1; i <= 3; ++i)
    if (!stream.Step(interpreter, &x, &y, 3) || y != 2 * i) return 2;
  if (stream.Step(interpreter, &x, &y, 3)) return 3;
  stream.Reset();
  if (!stream.Step(interpreter, &x, &y, kNoLimit) || y != 2) return 4;
  tflite::MicroAllocator* allocator;
  auto* variables = CreateVariables(arena, sizeof(arena), 1, &allocator);
  tflite::MicroInterpreter other(tflite::GetModel(arena), ops, allocator, variables);
  if (other.Reset() != kTfLiteOk) return 5;
  std::puts("passed");
}
