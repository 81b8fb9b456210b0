#pragma once

#include <string>

#include "tensorflow/lite/signature_runner.h"

namespace tflite {

class Interpreter {
 public:
  SignatureRunner* GetSignatureRunner(const char* signature_key) {
    if (std::string(signature_key) == "prefill") return &prefill_;
    return std::string(signature_key) == "step" ? &step_ : nullptr;
  }

 private:
  SignatureRunner prefill_{4}, step_{1};
};

}  // namespace tflite
