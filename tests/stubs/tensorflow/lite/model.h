#pragma once

#include <memory>

#include "tensorflow/lite/interpreter.h"

namespace tflite {

class FlatBufferModel {
 public:
  static std::unique_ptr<FlatBufferModel> VerifyAndBuildFromFile(const char*) {
    return std::make_unique<FlatBufferModel>();
  }
};

class OpResolver {};

class InterpreterBuilder {
 public:
  InterpreterBuilder(const FlatBufferModel&, const OpResolver&) {}
  TfLiteStatus operator()(std::unique_ptr<Interpreter>* interpreter) {
    *interpreter = std::make_unique<Interpreter>();
    return kTfLiteOk;
  }
};

}  // namespace tflite
