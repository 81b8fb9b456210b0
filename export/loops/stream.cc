// Read a stream with a .tflite file, in C++ on TensorFlow Lite or LiteRT.
//
// `prefill` reads whole chunks, and `step` reads the remaining steps. Both take the input `x` and
// the state, and return the output `y` and the new state under the same names. The file needs both
// signatures, state="tensors", a fixed batch size and a fixed `prefill_chunk`.
//
//   auto model = tflite::FlatBufferModel::VerifyAndBuildFromFile("model.tflite");  // null: damaged
//   tflite::ops::builtin::BuiltinOpResolver ops;
//   std::unique_ptr<tflite::Interpreter> interpreter;
//   tflite::InterpreterBuilder(*model, ops)(&interpreter);
//   State state = Start(*interpreter);  // one for each stream; a new one begins a new stream
//   if (Read(*interpreter, x, steps, y, kMaxSteps, state) != Result::kOk) ...

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "tensorflow/lite/interpreter.h"
#include "tensorflow/lite/kernels/register.h"
#include "tensorflow/lite/model.h"
#include "tensorflow/lite/signature_runner.h"

struct State {
  std::map<std::string, std::vector<char>> tensors;
  int64_t steps = 0;  // that the stream has read
};

enum class Result { kOk, kTooLong, kFailed };

constexpr int64_t kNoLimit = -1;

// The state of a new stream: zeros.
inline State Start(tflite::Interpreter& interpreter) {
  State state;
  tflite::SignatureRunner* step = interpreter.GetSignatureRunner("step");
  step->AllocateTensors();
  for (const std::string name : step->input_names())
    if (name != "x") state.tensors[name].resize(step->input_tensor(name.c_str())->bytes);
  return state;
}

// Run one signature on as many steps as it takes.
inline bool Run(tflite::SignatureRunner& run, const char* x, char* y, State& state) {
  std::memcpy(run.input_tensor("x")->data.raw, x, run.input_tensor("x")->bytes);
  for (const auto& [name, bytes] : state.tensors)
    std::memcpy(run.input_tensor(name.c_str())->data.raw, bytes.data(), bytes.size());
  if (run.Invoke() != kTfLiteOk) return false;
  std::memcpy(y, run.output_tensor("y")->data.raw, run.output_tensor("y")->bytes);
  for (auto& [name, bytes] : state.tensors)
    std::memcpy(bytes.data(), run.output_tensor(name.c_str())->data.raw, bytes.size());
  return true;
}

// Read the next `steps` of a stream. `max_steps` is the entry of that name in the file's metadata,
// or `kNoLimit` for null. After kTooLong the state is unchanged.
inline Result Read(tflite::Interpreter& interpreter, const float* x, int64_t steps, float* y,
                   int64_t max_steps, State& state) {
  if (max_steps != kNoLimit && state.steps + steps > max_steps) return Result::kTooLong;
  tflite::SignatureRunner* prefill = interpreter.GetSignatureRunner("prefill");
  tflite::SignatureRunner* step = interpreter.GetSignatureRunner("step");
  if (prefill == nullptr || prefill->AllocateTensors() != kTfLiteOk) return Result::kFailed;
  if (step == nullptr || step->AllocateTensors() != kTfLiteOk) return Result::kFailed;
  const size_t x_bytes = step->input_tensor("x")->bytes, y_bytes = step->output_tensor("y")->bytes;
  const int64_t chunk = prefill->input_tensor("x")->bytes / x_bytes;
  auto from = reinterpret_cast<const char*>(x);
  auto to = reinterpret_cast<char*>(y);
  while (steps > 0) {
    const bool whole = steps >= chunk;
    const int64_t size = whole ? chunk : 1;
    if (!Run(whole ? *prefill : *step, from, to, state)) return Result::kFailed;
    from += size * x_bytes, to += size * y_bytes;
    steps -= size, state.steps += size;
  }
  return Result::kOk;
}
