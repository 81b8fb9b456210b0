// What all stand-ins share: a running sum over steps of one number.
#pragma once

#include <cstddef>
#include <vector>

enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };

union TfLitePtrUnion {
  char* raw;
  float* f;
};

struct TfLiteTensor {
  TfLitePtrUnion data;
  size_t bytes;
};

struct RunningSum {
  explicit RunningSum(int steps) : x(steps), y(steps) {}

  static TfLiteTensor Tensor(std::vector<float>& values) {
    TfLiteTensor tensor;
    tensor.data.f = values.data();
    tensor.bytes = values.size() * sizeof(float);
    return tensor;
  }

  void Run() {
    float total = sum[0];
    for (size_t i = 0; i < x.size(); ++i) y[i] = total += x[i];
    new_sum[0] = total;
  }

  std::vector<float> x, y, sum{0}, new_sum{0};
};
