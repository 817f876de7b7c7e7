import Glibc
import ThalwegCore

/// The Sobolev gradient: the gradient in the inner product of H^s, which is the plain one smoothed for s > 0.
///
///     g ← IFFT(FFT(g)/m),   m as of `sobolev`
///
/// The mean of g stays as it is, or goes with zero_mode=false.
/// Errors   TW_ERROR_SHAPE where an axis does not exist.
/// Differs  homogeneous, where m(0) = 0: the mean stays too.
/// Source   Neuberger, 1985; Zhu, Hu, Lou and Yang, 2021, arXiv:2109.06255.
struct SobolevGradient: WholeRule {
  static let method = Method(
    "sobolev_gradient", .transform, "The gradient in the inner product of H^s: smoothed for s > 0.",
    rule: "g <- IFFT(FFT(g)/m),  m(xi) = (1 + |scale*xi|^2)^s, or |scale*xi|^(2s) if homogeneous",
    source: "Neuberger, 1985; Zhu, Hu, Lou, Yang, 2021, arXiv:2109.06255",
    parameters: Sobolev.symbolParameters + [.flag("zero_mode", true, "keep the mean")],
    needsFinite: true, validate: { (h) throws(Failure) in try Sobolev.check(h, "sobolev_gradient") })
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try Sobolev.axesExist(h, shape, "sobolev_gradient")
  }

  let metric: Sobolev, keepsMean: Bool
  init(_ h: Hyper, _ c: StepContext) { (metric, keepsMean) = (Sobolev(h), h.zero_mode) }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let g = try doubles(t.v, t.count, "sobolev_gradient"), keeps = keepsMean
    let out = try metric.filtered(g, t.shape) { m, isMean in isMean ? (keeps ? 1 : 0) : 1 / m }
    for i in out.indices { t.v[i] = T(out[i]) }
  }
}
