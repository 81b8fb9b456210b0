// Read a stream with a .tflite file, in Swift on TensorFlow Lite.
//
// `prefill` reads whole chunks, and `step` reads single steps. Both take the input `x` and the
// state, and return the output `y` and the new state under the same names. The file needs
// state="tensors" and fixed sizes.
//
//     let interpreter = try Interpreter(modelPath: "model.tflite")
//     let prefill = try interpreter.signatureRunner(with: "prefill")
//     let step = try interpreter.signatureRunner(with: "step")
//     var stream = try Stream(step, maxSteps: nil) // one for each stream of data
//     let outputs = try stream.read(prefill, chunk)
//     let output = try stream.read(step, sample)

import Foundation
import TensorFlowLite

enum StreamError: Error {
  case tooLong(maxSteps: Int, received: Int)
}

/// A stream. `maxSteps` is `max_steps` of the file's metadata, nil for a stream without end.
struct Stream {
  let maxSteps: Int?
  private(set) var steps = 0
  private var state = [String: Data]()

  init(_ step: SignatureRunner, maxSteps: Int?) throws {
    self.maxSteps = maxSteps
    for name in step.inputs where name != "x" {
      state[name] = try Data(count: step.input(named: name).data.count)
    }
  }

  /// Reads the next steps, as many as the signature takes.
  mutating func read(_ run: SignatureRunner, _ x: Data) throws -> Data {
    let count = try run.input(named: "x").shape.dimensions[1]
    if let maxSteps = maxSteps, steps + count > maxSteps {
      throw StreamError.tooLong(maxSteps: maxSteps, received: steps + count)
    }
    try run.invoke(with: state.merging(["x": x]) { $1 })
    for name in Array(state.keys) {
      state[name] = try run.output(named: name).data
    }
    steps += count
    return try run.output(named: "y").data
  }
}
