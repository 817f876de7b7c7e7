let constraintList: [Registered] = [
  entry(Box.self),
  entry(Simplex.self),
  entry(L2Ball.self),
  entry(Stiefel.self),
]

/// For `accepts`: methods of matrices take tensors of rank 2 or more, and need OpenBLAS.
func matrix(_ shape: Shape, _ method: String) throws(Failure) {
  guard shape.ndim >= 2 else { throw Failure(Status.shape, "\(method) needs a tensor of rank 2 or more, got rank \(shape.ndim)") }
  try LinearAlgebra.require()
}

extension Parameter {
  /// An axis of the tensor, or `none` for the whole of it.
  static func axis(_ meaning: String) -> Parameter { .maybeInteger("axis", .within(-64, 63), meaning) }
}

/// For `accepts`: the axis, if one is given, exists.
func axisExists(_ h: Hyper, _ shape: Shape, _ method: String) throws(Failure) {
  let axis = h.integer("axis")
  guard !h.has("axis") || (axis >= -shape.ndim && axis < shape.ndim) else {
    throw Failure(Status.shape, "\(method): a tensor of rank \(shape.ndim) has no axis \(axis)")
  }
}
