import Glibc
import ThalwegCore

/// Every entry into [−max_value, max_value].
///
///     g ← min(max(g, −max_value), max_value)
///
/// State    none.
/// Differs  nothing from torch's clip_grad_value_ and optax.clip. NaN stays.
/// Source   folklore.
struct ClipValue: ElementRule {
  static let method = Method(
    "clip_value", .transform, "Clips every entry.", rule: "g <- min(max(g, -max_value), max_value)", source: "folklore",
    parameters: [.number("max_value", nil, .above(0), "bound")])
  let bound: Double
  init(_ h: Hyper, _ c: StepContext) { bound = h.max_value }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v.clipped(to: bound) }
  var folds: Folds? { Folds(.clip(-bound, bound)) }
}

/// Clips the norm of all tensors together, or of each.
///
///     n = ‖g‖₂, ‖g‖₁ or ‖g‖_∞;   n > max_norm:  g ← g·max_norm/(n + ε), else unchanged bit for bit
///
/// State    `norm`, the last n (before clipping).
/// Differs  optax has ε = 0, as here by default; torch's clip_grad_norm_ has ε = 1e-6 and multiplies by min(1, ·),
///          which differs only within ε below max_norm; of its two cards one has that ε, and no default for max_norm. n
///          is finite where g is, squares that leave the range of doubles included. A NaN or infinite n multiplies:
///          what else becomes of such a step (`nonfinite`) is an option of the optimizer.
/// Source   Pascanu, Mikolov and Bengio, 2012, arXiv:1211.5063.
struct ClipGlobalNorm: ElementRule {
  static let method = Method(
    "clip_global_norm", .transform, "Clips the norm of all tensors together, or of each.",
    rule: """
      n = |g| over all tensors, the norm_type-norm; of each tensor with per_tensor
      n > max_norm: g <- g * max_norm/(n + eps)
      """,
    source: "Pascanu, Mikolov, Bengio, 2012, arXiv:1211.5063",
    parameters: [
      .number("max_norm", 1, .above(0), "largest norm").forAll(unless: "per_tensor"),
      .number("norm_type", 2, .atLeast(1), "p of the norm").orInfinite().forAll(unless: "per_tensor").fixed,
      .flag("per_tensor", false, "every tensor alone", live: false),
      .eps(0, "added to the norm").forAll(unless: "per_tensor"),
    ])

  /// Other powers are those of entries over the largest, which is found first.
  static func isGeneral(_ h: Hyper) -> Bool {
    let p: Double = h.norm_type
    return p != 1 && p != 2 && p != .infinity
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("norm")] + (isGeneral(h) ? [Scalar("largest")] : []) }
  static func scope(_ h: Hyper) -> Scope { h.per_tensor ? .tensor : .global }
  static func phases(_ h: Hyper) -> Int { isGeneral(h) ? 2 : 1 }
  static func finish(_ phase: Int, _ totals: Totals, _ s: UnsafeMutablePointer<Double>, _ h: Hyper, _ c: StepContext) {
    let p: Double = h.norm_type
    if isGeneral(h) {
      if phase == 0 { s[1] = totals.maximum }
      s[0] = phase == 0 || s[1] == 0 || !s[1].isFinite ? s[1] : s[1] * pow(totals[0], 1 / p)
    } else {
      s[0] = p == 2 ? totals.root(0) : p == 1 ? totals.finite(0) : totals.maximum
    }
  }

  let factor, p, largest: Double, general: Bool
  init(_ h: Hyper, _ c: StepContext) {
    let n = c.scalars[0], most: Double = h.max_norm
    self.init(n <= most ? 1 : most / (n + h.eps), h, c)
  }
  init(_ factor: Double, _ h: Hyper, _ c: StepContext) {
    (self.factor, p, general) = (factor, h.norm_type, ClipGlobalNorm.isGeneral(h))
    largest = general ? c.scalars[1] : 1
  }

  @inline(__always) func squares(_ phase: Int) -> Bool { p == 2 }
  @inline(__always) func measure<L: Lane>(_ phase: Int, _ v: L, _ w: L, _ s: Slots<L>, _ sums: inout Sums) {
    if p == 1 {
      sums.add(0, v.magnitude)
    } else if general, phase == 1 {
      if largest != 0 { sums.add(0, L.pow(v.magnitude / largest, p)) }
    } else {
      sums.raise(v.magnitude)
    }
  }
  var multiplies: Double? { factor }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { factor == 1 ? v : v * factor }
}

/// Clips the entries at a threshold, or such that a share of each tensor's entries is cut.
///
///     threshold:  x ← clip(x, −c, c)
///     fraction f:  k = min(⌊f·n⌋, n − 1),  c = the (k + 1)-th largest |x|
///
/// State    none.
/// Differs  the share is that of each tensor (the paper leaves it open). `nonzero_floor` keeps c at the smallest
///          nonzero |x| where c would be 0.
/// Source   Pan and Li, 2023, arXiv:2306.00204.
struct CoordinateClip: ElementRule {
  static let registered = Registered(
    method: method,
    component: .chosen {
      $0.given("fraction") ? .whole(kernels(FractionClip.self)) : .element(kernels(CoordinateClip.self))
    })
  static let method = Method(
    "coordinate_clip", .transform,
    "Clips the entries at a threshold, or such that a share of each tensor's entries is cut.",
    rule: """
      threshold: x <- clip(x, -c, c)
      fraction f: k = min(floor(f*n), n - 1), c = the (k + 1)-th largest |x|
      """,
    source: "Pan, Li, 2023, arXiv:2306.00204",
    parameters: [
      .maybe("threshold", .above(0), "the bound c"), .maybe("fraction", .rate, "share of the entries to cut, instead"),
      .flag("nonzero_floor", false, "the bound stays above 0 where some entry is"),
    ],
    validate: { (h) throws(Failure) in
      guard h.given("threshold") != h.given("fraction") else {
        throw Failure(Status.range, "coordinate_clip needs `threshold` or `fraction`, and not both")
      }
    })
  let bound: Double
  init(_ h: Hyper, _ c: StepContext) { bound = h.threshold }
  @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v.clipped(to: bound) }
  var folds: Folds? { Folds(.clip(-bound, bound)) }
}

/// The form with a share.
struct FractionClip: WholeRule {
  static var method: Method { CoordinateClip.method }
  let fraction: Double
  let floor: Bool
  init(_ h: Hyper, _ c: StepContext) { (fraction, floor) = (h.fraction, h.nonzero_floor) }

  func apply<T: Real>(_ t: Whole<T>) {
    let n = t.count
    guard n > 0 else { return }
    var c = Flat.largest(t.v, n, min(Int(fraction * Double(n)), n - 1))
    if c == 0, floor {
      var least = Double.infinity
      for i in 0..<n where t.v[i] != 0 { least = min(least, Double(t.v[i]).magnitude) }
      c = least
    }
    guard !c.isNaN else { return }
    let bound = T(c)
    for i in 0..<n { t.v[i] = t.v[i] > bound ? bound : t.v[i] < -bound ? -bound : t.v[i] }
  }
}
