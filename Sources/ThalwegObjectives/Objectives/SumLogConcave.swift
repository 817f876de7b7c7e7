import Glibc
import ThalwegCore

/// The negative logarithm of a sum of log-concave functions p_s = exp(−f_s), from the values of its convex parts f_s.
///
///     F = −log Σ_s exp(−f_s)     w_s = exp(F − f_s)     ∂F/∂f = w     ∇F = Σ_s w_s·∇f_s
///
/// f is (S,); with the gradients of the parts, grads (S, n), the pull-back gives ∇F as `x` (n,). The smallest f_s is
/// taken out of the sum.
/// Errors   a value that is infinite (every f_s = ∞) or NaN has no weights: it is returned, and its pull-back refused.
/// Differs  −scipy.special.logsumexp(−f) is the value. A part of weight 0 adds nothing to ∇F, whatever its gradient.
/// Source   Achab, 2023, arXiv:2309.15298.
struct SumLogConcave: Objective {
  static let method = Method(
    "sum_log_concave", .objective,
    "The negative logarithm of a sum of log-concave functions, from the values of its convex parts.",
    rule: """
      F = -log sum_s exp(-f_s);  w_s = exp(F - f_s)
      gradient for f: w;  gradient at the point (x): sum_s w_s*grads_s
      """,
    source: "Achab, 2023, arXiv:2309.15298",
    inputs: [
      .variable("f", "S", "values of the convex parts, -log of the log-concave functions"),
      .constant("grads", "S, n", "gradients of the parts", optional: true),
      .result("x", "n", "gradient at the point where the parts were taken; needs grads"),
    ])
  init(_ h: Hyper) {}

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let f = try x["f"], parts = x.sizes["S"], n = x.sizes["n"]
    var least = Double.infinity, total = 0.0
    for s in 0..<parts where !(Double(f[s]) >= least) { least = least.isNaN ? least : Double(f[s]) }
    guard least.isFinite else { return least }
    for s in 0..<parts { total += exp(least - Double(f[s])) }
    let value = least - log(total)
    guard let cache else { return value }
    let w = try cache.keep("f", parts, T.self)
    for s in 0..<parts { w[s] = T(exp(value - Double(f[s]))) }
    guard let grads = x.optional("grads") else { return value }
    let sum = try cache.keep("x", n, T.self)
    for s in 0..<parts where w[s] > 0 { Flat.add(grads + s * n, times: Double(w[s]), into: sum, n) }
    return value
  }
}
