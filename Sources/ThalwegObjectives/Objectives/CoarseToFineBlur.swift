import Glibc
import ThalwegCore

/// A Gaussian filter of planes or lines of factors, with its transpose for the gradient: from coarse to fine.
///
///     kernel_n = min(1, exp(−n²/(2s²))/(s·√(2π))), |n| ≤ size/2, s = max(sigma, 10⁻⁴)
///     along each of the last `axes` axes in turn, edges repeated     ∂x = the transpose of both on ∂y
///
/// x and dy are (..., H, W), or lines (..., W) with axes=1. sigma is in entries: an impulse at 0. The kernel is not
/// normalised: where s is above size/6 it loses energy, as the reference does. The value is Σ dy·y; without dy it is 0.
/// Errors   TW_ERROR_RANGE: an even size. TW_ERROR_SHAPE: a single line with axes=2.
/// Source   Chen et al., 2024, arXiv:2402.13252.
struct CoarseToFineBlur: Objective {
  static let method = Method(
    "coarse_to_fine_blur", .objective, "A Gaussian filter of planes or lines: a layer.",
    rule:
      "y = x filtered along each axis with min(1, exp(-n^2/(2 s^2))/(s sqrt(2 pi))), edges repeated;  value = sum dy*y",
    source: "Chen et al., 2024, arXiv:2402.13252",
    parameters: [
      .number("sigma", nil, .atLeast(0), "width, in entries"), .integer("size", 65, .within(1, 65_535), "odd length"),
      .integer("axes", 2, .within(1, 2), "2: planes, 1: lines along the last axis"),
    ],
    inputs: [
      .variable("x", "..., W", "planes (..., H, W), or lines with axes=1"),
      .constant("dy", "..., W", "derivatives by y; none: 0", optional: true),
      .result("y", "..., W", "filtered planes or lines"),
    ],
    validate: { (h) throws(Failure) in
      guard h.integer("size") % 2 == 1 else {
        throw Failure(Status.range, "coarse_to_fine_blur: `size` must be odd, got \(h.integer("size"))")
      }
    })
  let kernel: [Double], planes: Bool
  init(_ h: Hyper) {
    let s = max(h.sigma, 1e-4), half = h.integer("size") / 2
    kernel = (-half...half).map { n in
      min(1, exp(-Double(n) * Double(n) / (2 * s * s)) / (s * (2 * Double.pi).squareRoot()))
    }
    planes = h.integer("axes") == 2
  }

  /// Filters one line, `stride` apart; the transpose gathers at the edges what lies beyond them.
  private func filter(_ v: UnsafeMutablePointer<Double>, _ n: Int, _ stride: Int, transposed: Bool) {
    let half = kernel.count / 2
    var out = [Double](repeating: 0, count: n)
    for i in 0..<n {
      for k in 0..<kernel.count where kernel[k] != 0 {
        let j = min(max(i + k - half, 0), n - 1)
        if transposed { out[j] += kernel[k] * v[i * stride] } else { out[i] += kernel[k] * v[j * stride] }
      }
    }
    for i in 0..<n { v[i * stride] = out[i] }
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let input = try x["x"], dy = x.optional("dy"), width = x.sizes["W"], outer = x.sizes.leadingAxes
    guard let height = planes ? outer.last : 1 else {
      throw Failure(Status.shape, "`x` must have the shape (..., H, W), got [\(width)]; axes=1 is for lines")
    }
    let count = x.sizes.samples / height, plane = height * width, space = Workspace()
    defer { space.close() }
    func filtered(_ v: UnsafePointer<T>, transposed: Bool) throws(Failure) -> UnsafeMutablePointer<Double> {
      let wide = try widened(v, count * plane, space)
      _ = Rows.sum(count, work: 2 * plane * kernel.count) { p in
        let own = wide + p * plane
        // symmetric filters along two axes commute, and so do their transposes
        if planes { for c in 0..<width { filter(own + c, height, width, transposed: transposed) } }
        for r in 0..<height { filter(own + r * width, width, 1, transposed: transposed) }
        return 0
      }
      return wide
    }
    let y = try filtered(input, transposed: false)
    if let out = try cache?.keep("y", count * plane, T.self) { for i in 0..<(count * plane) { out[i] = T(y[i]) } }
    let g = try cache?.keep("x", count * plane, T.self)
    guard let dy else { return 0 }
    if let g {
      let back = try filtered(dy, transposed: true)
      for i in 0..<(count * plane) { g[i] = T(back[i]) }
    }
    return Rows.sum(count * plane, work: 1) { Double(dy[$0]) * y[$0] }
  }
}
