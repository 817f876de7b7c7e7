import ThalwegCore

/// The total variation of a displacement field.
///
///     weight·(mean|f_{y+1,x} − f_{y,x}| + mean|f_{y,x+1} − f_{y,x}|),  each mean over its own differences
///
/// Shapes   (N, H, W, C). One row or column has no differences; the subgradient of |0| is 0. No prox.
/// Errors   TW_ERROR_SHAPE for tensors of another rank.
/// Differs  nothing from SD-VITON, which has one such term for each of two groups of fields.
/// Source   Shim, Chung and Heo, 2023, arXiv:2312.15861.
struct FlowTV: WholeRegularizer {
  static let method = Method(
    "flow_tv", .regularizer, "The total variation of a displacement field.",
    rule: "weight*(mean|f[:, 1:] - f[:, :-1]| + mean|f[:, :, 1:] - f[:, :, :-1]|) of f (N, H, W, C)",
    source: "Shim, Chung, Heo, 2023, arXiv:2312.15861", parameters: [.weight(2)])
  static var hasProx: Bool { false }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard shape.ndim == 4 else {
      throw Failure(Status.shape, "flow_tv needs a field of shape (N, H, W, C), got shape \(shape.text)")
    }
  }
  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  /// Calls `body` with both elements of every difference, and what each counts.
  private func each(_ shape: Shape, _ body: (Int, Int, Double) -> Void) {
    let d = shape.dimensions
    guard d.count == 4, shape.count > 0 else { return }
    let (n, H, W, C) = (d[0], d[1], d[2], d[3])
    for (rows, columns, step) in [(H - 1, W, W * C), (H, W - 1, C)] where rows > 0 && columns > 0 {
      let share = weight / (Double(n) * Double(rows) * Double(columns) * Double(C))
      for b in 0..<n {
        for y in 0..<rows {
          let first = (b * H + y) * W * C
          for k in first..<(first + columns * C) { body(k, k + step, share) }
        }
      }
    }
  }

  func value<T: Real>(_ w: Whole<T>) -> Double {
    var sum = 0.0
    each(w.shape) { a, b, share in sum += share * abs(Double(w.w[b]) - Double(w.w[a])) }
    return sum
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ scale: Double) {
    each(w.shape) { a, b, share in
      let g = T(scale * share * signOf(Double(w.w[b]) - Double(w.w[a])))
      w.v[b] += g
      w.v[a] -= g
    }
  }
  func prox<T: Real>(_ w: Whole<T>, _ t: Double) {}
}
