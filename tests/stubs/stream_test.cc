// Two streams in turn, of 7 steps each, with chunks of 4 steps; then a stream that is full.
#include "stream.cc"

#include <cstdio>

int main() {
  auto model = tflite::FlatBufferModel::VerifyAndBuildFromFile("model.tflite");
  tflite::ops::builtin::BuiltinOpResolver ops;
  std::unique_ptr<tflite::Interpreter> interpreter;
  tflite::InterpreterBuilder(*model, ops)(&interpreter);
  const float ones[] = {1, 1, 1, 1, 1, 1, 1}, twos[] = {2, 2, 2, 2, 2, 2, 2};
  float y[7];
  State first = Start(*interpreter), second = Start(*interpreter);
  if (Read(*interpreter, ones, 5, y, 8, first) != Result::kOk || y[4] != 5) return 1;
  if (Read(*interpreter, twos, 7, y, kNoLimit, second) != Result::kOk || y[6] != 14) return 2;
  if (Read(*interpreter, ones, 4, y, 8, first) != Result::kTooLong || first.steps != 5) return 3;
  if (Read(*interpreter, ones, 3, y, 8, first) != Result::kOk || y[2] != 8) return 4;
  std::puts("passed");
}
