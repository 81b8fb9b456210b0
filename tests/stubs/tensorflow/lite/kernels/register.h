#pragma once

#include "tensorflow/lite/model.h"

namespace tflite {
namespace ops {
namespace builtin {

class BuiltinOpResolver : public OpResolver {};

}  // namespace builtin
}  // namespace ops
}  // namespace tflite
