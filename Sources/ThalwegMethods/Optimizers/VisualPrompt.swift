import ThalwegCore

/// Steps of a visual prompt: the border of an image moves along its gradient, divided by its norm.
///
///     θ ← θ − lr·mask·g/(‖g‖ + ε),   ‖g‖ of the whole tensor, before the mask
///     mask: 1 in the `pad` outermost rows and columns, else 0
///
/// Shapes   (..., height, width); rank 2 or more. A pad of half a side or more is all of the tensor.
/// State    none.
/// Errors   TW_ERROR_SHAPE for tensors of rank below 2.
/// Differs  nothing from the authors' code. The gradient is the mean over the batch; images are shrunk into the hole,
///          and varied, by the host. lr = 0 is a value too, where a schedule ends.
/// Source   Wu et al., 2022, arXiv:2212.10556.
struct VisualPrompt: WholeRule {
  static let method = Method(
    "visual_prompt", .optimizer,
    "Steps of a visual prompt: the border of an image moves along its gradient, divided by its norm.",
    rule: """
      theta <- theta - lr * mask * g/(|g| + eps),  |g| of the whole tensor, before the mask
      mask: 1 in the pad outermost rows and columns of (..., height, width), else 0
      """,
    source: "Wu et al., 2022, arXiv:2212.10556",
    parameters: [
      .lr(nil), .eps(1e-10, "added to the norm"), .integer("pad", 30, .atLeast(0), "width of the border that moves"),
    ])

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard shape.ndim >= 2 else {
      throw Failure(
        Status.shape, "visual_prompt needs a tensor of rank 2 or more, (..., height, width), got shape \(shape.text)")
    }
  }

  let eps: Double
  let pad: Int

  init(_ h: Hyper, _ c: StepContext) { (eps, pad) = (h.eps, h.integer("pad")) }

  func apply<T: Real>(_ t: Whole<T>) {
    let d = t.shape.dimensions.suffix(2), n = t.count
    guard n > 0, d.count == 2 else { return }
    let height = d[d.startIndex], width = d[d.startIndex + 1]
    let length = Flat.norm(t.v, n) + eps
    guard length != 0 else { return }  // g = 0
    t.change(Divide(length: length))
    guard pad < height - pad, pad < width - pad else { return }
    for image in 0..<(n / (height * width)) {
      for y in pad..<(height - pad) {
        (t.v + ((image * height + y) * width + pad)).update(repeating: 0, count: width - 2 * pad)
      }
    }
  }

  /// In double: the norm may be beyond the largest float.
  struct Divide: ElementOperation {
    let length: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      let v = x.wide
      x = L(wide: v.low / length, v.high / length)
    }
  }
}
