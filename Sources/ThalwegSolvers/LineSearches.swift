import Glibc
import ThalwegCore

extension RequestKind {
  /// φ(a) = f(x + a·d), where anything may come out.
  static let lineValue = RequestKind(
    "value", "the function at the step", given: [.given("alpha", "", "step along the direction")],
    wanted: [.wanted("phi", "", "value there")], takesNonfinite: true)
  static let lineSlope = RequestKind(
    "slope", "the derivative at the step", given: [.given("alpha", "", "step along the direction")],
    wanted: [.wanted("dphi", "", "derivative there, along the direction")], takesNonfinite: true)
}

/// Backtracking until the value has fallen enough.
///
///     a = alpha0; while φ(a) > φ(0) + c1·a·φ'(0): a ← shrink·a, or the minimiser of the parabola through
///     φ(0), φ'(0) and φ(a), kept in [0.1·a, 0.5·a]
///
/// A value that is infinite or NaN counts as too large, and is not interpolated. `alpha` is 0 where the search fails.
/// Ends     converged; line_search_failed: φ'(0) ≥ 0 (no request then), or after max_iter trials.
/// Source   Armijo, 1966.
struct Armijo: Driver {
  static let method = Method.solver(
    "armijo", "Backtracking line search with Armijo's condition.",
    rule: "a = alpha0;  while phi(a) > phi0 + c1 a dphi0: a <- shrink a",
    source: "Armijo, 1966",
    parameters: [
      .number("c1", 1e-4, .between(0, 0.5, lowOpen: true, highOpen: true), "sufficient decrease"),
      .number("alpha0", 1, .above(0), "first trial"),
      .number("shrink", 0.5, .between(0, 1, lowOpen: true, highOpen: true), "factor of a trial that failed"),
      .flag("interpolate", false, "the minimiser of a parabola in place of the factor"),
      .integer("max_iter", 50, .atLeast(1), "most trials"),
    ],
    inputs: [
      .constant("phi0", "", "value at 0"), .constant("dphi0", "", "derivative at 0"),
      .result("alpha", "", "the step; 0: none was found"), .result("phi", "", "value there"),
      .result("iterations", "", "trials"),
    ], asks: [.lineValue])

  let c1: Double, first: Double, shrink: Double, interpolate: Bool, limit: Int
  init(_ h: Hyper) {
    (c1, first, shrink) = (h.c1, h.alpha0, h.shrink)
    (interpolate, limit) = (h.interpolate, h.integer("max_iter"))
  }

  enum Phase: Int { case start, value }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    switch phase {
    case .start:
      (io.alpha, io.phi) = (0, io.phi0)
      guard io.dphi0 < 0, io.phi0.isFinite else { return .done(.lineSearchFailed) }
      io.alpha = first
    case .value:
      io.iterations += 1
      let a = io.alpha, phi = io.phi, slope = io.dphi0
      if phi.isFinite, phi <= io.phi0 + c1 * a * slope { return .done(.converged) }
      if interpolate, phi.isFinite {
        io.alpha = min(max(-slope * a * a / (2 * (phi - io.phi0 - a * slope)), 0.1 * a), 0.5 * a)
      } else {
        io.alpha = a * shrink
      }
      if try io.count("iterations") >= limit {
        (io.alpha, io.phi) = (0, io.phi0)
        return .done(.lineSearchFailed)
      }
    }
    return .ask("value", then: .value)
  }
}

/// A step with sufficient decrease and a small slope: bracketing, then zooming in by cubic and quadratic interpolation.
///
///     φ(a) ≤ φ(0) + c1·a·φ'(0)     |φ'(a)| ≤ c2·|φ'(0)|
///
/// The first trial is 1, or min(1, 2.02·(φ(0) − phi_previous)/φ'(0)) where the value before is known; trials double up
/// to `amax`. A value that is NaN counts as too large.
/// Ends     converged; max_iter: the bracketing came to no end: the last trial, its slope being unknown, or the one
///          before where the last has not fallen enough; line_search_failed: φ'(0) ≥ 0, zoom_iter + 1 trials in the
///          bracket, or a trial of 0 (`alpha` is 0 then); nonfinite: a slope is (`alpha` is 0 then).
/// Differs  scipy's scalar_search_wolfe2 measures the distance from the ends of the bracket with its sign, and leaves
///          the last trial unlooked at when its iterations end.
/// Source   Nocedal, Wright, 2006, algorithms 3.5 and 3.6.
struct StrongWolfe: Driver {
  static let method = Method.solver(
    "strong_wolfe", "Line search for the strong Wolfe conditions.",
    rule: """
      phi(a) <= phi0 + c1 a dphi0  and  |dphi(a)| <= c2 |dphi0|
      bracket by doubling; zoom by cubic, then quadratic interpolation, then halving
      """,
    source: "Nocedal, Wright, 2006, algorithms 3.5 and 3.6",
    parameters: [
      .number("c1", 1e-4, .between(0, 0.5, lowOpen: true, highOpen: true), "sufficient decrease"),
      .number("c2", 0.9, .between(0, 1, lowOpen: true, highOpen: true), "what may be left of the slope; above c1"),
      .maybe("amax", .above(0), "largest step"),
      .integer("max_iter", 10, .atLeast(1), "most trials of the bracketing"),
      .integer("zoom_iter", 10, .atLeast(0), "most further trials in the bracket"),
    ],
    inputs: [
      .constant("phi0", "", "value at 0"), .constant("dphi0", "", "derivative at 0"),
      .constant("phi_previous", "", "value before, at the last iterate", optional: true),
      .result("alpha", "", "the step; 0: none was found"), .result("phi", "", "value there"),
      .result("dphi", "", "derivative there"), .result("iterations", "", "trials"),
    ], asks: [.lineValue, .lineSlope],
    kept: [
      .kept("last", "", "trial before"), .kept("phi_last", "", "value there"), .kept("dphi_last", "", "slope there"),
      .kept("low", "", "better end of the bracket"), .kept("phi_low", "", "value there"),
      .kept("dphi_low", "", "slope there"), .kept("high", "", "other end"), .kept("phi_high", "", "value there"),
      .kept("recent", "", "end that was left last"), .kept("phi_recent", "", "value there"),
      .kept("zooms", "", "trials in the bracket"),
    ],
    validate: { (h) throws(Failure) in
      guard h.c1 < h.c2 else {
        throw Failure(Status.range, "strong_wolfe: `c2` must be above `c1`, got \(text(h.c2)) and \(text(h.c1))")
      }
    })

  let c1: Double, c2: Double, most: Double, limit: Int, zooms: Int
  init(_ h: Hyper) {
    (c1, c2, most) = (h.c1, h.c2, h.has("amax") ? h.amax : .infinity)
    (limit, zooms) = (h.integer("max_iter"), h.integer("zoom_iter"))
  }

  enum Phase: Int { case start, value, slope, trial, zoomed, zoomedSlope }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let slope0 = io.dphi0
    func falls() -> Bool { io.phi <= io.phi0 + c1 * io.alpha * slope0 }
    switch phase {
    case .start:
      (io.phi_last, io.dphi_last) = (io.phi0, slope0)
      guard slope0 < 0, io.phi0.isFinite else { return fail(io) }
      let guess = 2.02 * (io.phi0 - io.phi_previous) / slope0
      io.alpha = guess.isNaN ? 1 : min(1, guess)
      if io.alpha < 0 { io.alpha = 1 }
      io.alpha = min(io.alpha, most)
      return .ask("value", then: .value)
    case .value:
      guard io.alpha > 0, io.last <= most else { return fail(io) }
      if !falls() || (io.iterations > 0 && io.phi >= io.phi_last) {
        (io.low, io.phi_low, io.dphi_low) = (io.last, io.phi_last, io.dphi_last)
        (io.high, io.phi_high) = (io.alpha, io.phi)
        return zoom(io)
      }
      return .ask("slope", then: .slope)
    case .slope:
      guard io.dphi.isFinite else { return fail(io, .nonfinite) }
      if abs(io.dphi) <= -c2 * slope0 { return .done(.converged) }
      if io.dphi >= 0 {
        (io.low, io.phi_low, io.dphi_low) = (io.alpha, io.phi, io.dphi)
        (io.high, io.phi_high) = (io.last, io.phi_last)
        return zoom(io)
      }
      (io.last, io.phi_last, io.dphi_last) = (io.alpha, io.phi, io.dphi)
      io.alpha = min(2 * io.alpha, most)
      io.iterations += 1
      return .ask("value", then: io.iterations >= Double(limit) ? .trial : .value)
    case .trial:
      if falls() {
        io.dphi = .nan
      } else {
        (io.alpha, io.phi, io.dphi) = (io.last, io.phi_last, io.dphi_last)
      }
      return .done(.maxIter)
    case .zoomed:
      if !falls() || !(io.phi < io.phi_low) {
        (io.recent, io.phi_recent) = (io.high, io.phi_high)
        (io.high, io.phi_high) = (io.alpha, io.phi)
        return again(io)
      }
      return .ask("slope", then: .zoomedSlope)
    case .zoomedSlope:
      guard io.dphi.isFinite else { return fail(io, .nonfinite) }
      if abs(io.dphi) <= -c2 * slope0 { return .done(.converged) }
      if io.dphi * (io.high - io.low) >= 0 {
        (io.recent, io.phi_recent) = (io.high, io.phi_high)
        (io.high, io.phi_high) = (io.low, io.phi_low)
      } else {
        (io.recent, io.phi_recent) = (io.low, io.phi_low)
      }
      (io.low, io.phi_low, io.dphi_low) = (io.alpha, io.phi, io.dphi)
      return again(io)
    }
  }

  private func fail<T: Real>(_ io: DriverIO<T>, _ end: Ending = .lineSearchFailed) -> Verdict<Phase> {
    (io.alpha, io.phi, io.dphi) = (0, io.phi0, io.dphi0)
    return .done(end)
  }
  private func zoom<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    (io.recent, io.phi_recent, io.zooms) = (0, io.phi0, 0)
    return trial(io)
  }
  private func again<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    io.zooms += 1
    return io.zooms > Double(zooms) ? fail(io) : trial(io)
  }

  /// The next trial in the bracket.
  private func trial<T: Real>(_ io: DriverIO<T>) -> Verdict<Phase> {
    let low = io.low, width = io.high - low, left = min(low, io.high), right = max(low, io.high)
    func inside(_ a: Double, by share: Double) -> Bool {
      a <= right - share * abs(width) && a >= left + share * abs(width)
    }
    var a = Double.nan
    if io.zooms > 0 {
      a = cubic(low, io.phi_low, io.dphi_low, io.high, io.phi_high, io.recent, io.phi_recent)
      if !inside(a, by: 0.2) { a = .nan }
    }
    if a.isNaN {
      a = low - io.dphi_low / (2 * (io.phi_high - io.phi_low - io.dphi_low * width) / (width * width))
      if !a.isFinite || !inside(a, by: 0.1) { a = low + 0.5 * width }
    }
    io.alpha = a
    io.iterations += 1
    return .ask("value", then: .zoomed)
  }

  /// The minimiser of the cubic with value f and slope s at a, and the values g at b and h at c; NaN where there is
  /// none.
  private func cubic(_ a: Double, _ f: Double, _ s: Double, _ b: Double, _ g: Double, _ c: Double, _ h: Double)
    -> Double
  {
    let db = b - a, dc = c - a, denominator = (db * dc) * (db * dc) * (db - dc)
    let u = g - f - s * db, v = h - f - s * dc
    let p = (dc * dc * u - db * db * v) / denominator, q = (db * db * db * v - dc * dc * dc * u) / denominator
    let root = a + (-q + (q * q - 3 * p * s).squareRoot()) / (3 * p)
    return root.isFinite ? root : .nan
  }
}

/// The minimum of a function of one variable in a bracket, one value a step.
///
///     r = (√5 − 1)/2;  c = b − r·(b − a), d = a + r·(b − a);  keep [a, d] where φ(c) ≤ φ(d), else [c, b]
///
/// The result is the better of the two points inside. A value that is NaN counts as infinite.
/// Ends     converged: b − a ≤ tol; max_iter.
/// Source   Kiefer, 1953.
struct GoldenSection: Driver {
  static let method = Method.solver(
    "golden_section", "Golden-section search for a minimum in a bracket.",
    rule: """
      r = (sqrt(5) - 1)/2;  c = b - r (b - a), d = a + r (b - a);  keep [a, d] if phi(c) <= phi(d), else [c, b]
      NaN counts as +inf
      """,
    source: "Kiefer, 1953",
    parameters: [
      .number("tol", 1e-8, .atLeast(0), "length of the bracket that ends it"),
      .integer("max_iter", 100, .atLeast(0), "most values after the first two"),
    ],
    inputs: [
      .constant("low", "", "left end of the bracket"), .constant("high", "", "right end"),
      .result("alpha", "", "where the least value was found"), .result("phi", "", "the value there"),
      .result("iterations", "", "values after the first two"), .result("width", "", "length of the bracket"),
    ], asks: [.lineValue],
    kept: [
      .kept("a", "", "left end"), .kept("b", "", "right end"), .kept("c", "", "left point inside"),
      .kept("d", "", "right point inside"), .kept("phi_c", "", "value at c"), .kept("phi_d", "", "value at d"),
    ])

  let tolerance: Double, limit: Int
  init(_ h: Hyper) { (tolerance, limit) = (h.tol, h.integer("max_iter")) }

  enum Phase: Int { case start, first, left, right }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let r = (5.0.squareRoot() - 1) / 2
    let phi = io.phi.isNaN ? Double.infinity : io.phi
    switch phase {
    case .start:
      guard io.low.isFinite, io.high.isFinite, io.low <= io.high else {
        throw Failure(
          Status.range, "`low` and `high` must be finite and in order, got \(text(io.low)) and \(text(io.high))")
      }
      (io.a, io.b) = (io.low, io.high)
      (io.c, io.d) = (io.b - r * (io.b - io.a), io.a + r * (io.b - io.a))
      io.alpha = io.c
      return .ask("value", then: .first)
    case .first:
      io.phi_c = phi
      io.alpha = io.d
      return .ask("value", then: .right)
    case .left: io.phi_c = phi
    case .right: io.phi_d = phi
    }
    io.width = io.b - io.a
    let left = io.phi_c <= io.phi_d
    if io.width <= tolerance || io.iterations >= Double(limit) {
      (io.alpha, io.phi) = left ? (io.c, io.phi_c) : (io.d, io.phi_d)
      guard io.phi < .infinity else { return .done(.nonfinite) }
      return .done(io.width <= tolerance ? .converged : .maxIter)
    }
    io.iterations += 1
    if left {
      (io.b, io.d, io.phi_d) = (io.d, io.c, io.phi_c)
      io.c = io.b - r * (io.b - io.a)
      io.alpha = io.c
      return .ask("value", then: .left)
    }
    (io.a, io.c, io.phi_c) = (io.c, io.d, io.phi_d)
    io.d = io.a + r * (io.b - io.a)
    io.alpha = io.d
    return .ask("value", then: .right)
  }
}
