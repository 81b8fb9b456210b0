import Foundation

public struct Tensor {
  public struct Shape {
    public let dimensions: [Int]
  }

  public let data: Data
  public let shape: Shape
}

public final class SignatureRunner {
  public let inputs: [String] = ["x", "sum"]
  public let outputs: [String] = ["y", "sum"]

  public func input(named name: String) throws -> Tensor {
    return Tensor(data: Data(count: 4), shape: Tensor.Shape(dimensions: [1, 1, 1]))
  }

  public func output(named name: String) throws -> Tensor {
    return try input(named: name)
  }

  public func invoke(with inputs: [String: Data]) throws {}
}

public final class Interpreter {
  public init(modelPath: String) throws {}

  public func signatureRunner(with key: String) throws -> SignatureRunner {
    return SignatureRunner()
  }
}
