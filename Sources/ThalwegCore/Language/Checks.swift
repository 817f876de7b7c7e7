/// What methods of several families check, and hyper-parameters that they share.

/// For `accepts`: methods of matrices take tensors of rank 2 or more, and need OpenBLAS.
public func matrix(_ shape: Shape, _ method: String) throws(Failure) {
  guard shape.ndim >= 2 else {
    throw Failure(
      Status.shape,
      "\(method) needs a tensor of rank 2 or more, got shape \(shape.text); `route` sends others to another method")
  }
  try LinearAlgebra.require()
}

/// For `accepts`: a list has one number for each entry of the tensor; a list of one number stands for all.
public func fits(_ list: [Double], _ name: String, _ shape: Shape, _ method: String) throws(Failure) {
  guard list.count <= 1 || list.count == shape.count else {
    throw Failure(
      Status.shape,
      "\(method): `\(name)` has \(list.count) numbers, a tensor of shape \(shape.dimensions) has \(shape.count)")
  }
}

extension Parameter {
  /// The same, or a list of numbers.
  public func orList() -> Parameter {
    var p = self
    p.takesList = true
    return p
  }
  /// An axis of the tensor, or `none` for the whole of it.
  public static func axis(_ meaning: String) -> Parameter { .maybeInteger("axis", .within(-64, 63), meaning) }
}

/// For `accepts`: the axis, if one is given, exists.
public func axisExists(_ h: Hyper, _ shape: Shape, _ method: String) throws(Failure) {
  let axis = h.integer("axis")
  guard !h.has("axis") || (axis >= -shape.ndim && axis < shape.ndim) else {
    throw Failure(Status.shape, "\(method): a tensor of rank \(shape.ndim) has no axis \(axis)")
  }
}

/// The grain of a rule of lines along `axis`: parts along the first axis hold those along another whole. Without an
/// axis the tensor is one line.
public func lineGrain(_ h: Hyper, _ shape: Shape) -> Int? {
  let axis = h.integer("axis")
  return h.has("axis") && axis != 0 && axis != -shape.ndim ? 1 : nil
}

/// The sign of one number, 0 of 0; NaN stays.
public func signOf(_ x: Double) -> Double { x > 0 ? 1 : x < 0 ? -1 : x }
