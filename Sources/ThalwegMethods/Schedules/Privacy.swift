import Glibc
import ThalwegCore

/// What differential privacy costs, as a function of the number of steps.

/// The privacy spent by k steps of the subsampled Gaussian mechanism: ε at a given δ, by Rényi divergences.
///
///     a step at order a:  q = 0: 0;   σ = 0: ∞;   q = 1: a/(2σ²)
///       whole a:  log Σ_k C(a, k)·q^k·(1 − q)^(a−k)·exp((k² − k)/(2σ²))/(a − 1)
///       else:     the two series of the same with erfc, from z₀ = σ²·log(1/q − 1) + ½ on, to terms below e⁻³⁰
///     ε(k) = min over a of  k·rdp(a) − (log δ + log a)/(a − 1) + log((a − 1)/a)
///
/// State    none.
/// Differs  opacus' RDPAccountant, whose orders are the default, ends the series where its first terms are below e⁻³⁰,
///          which says 0 of a large order with a large σ; here it goes on at least to the term of the order. ε is 0
///          before the first step, and never below 0. It does not warn where the best order is the first or the last.
/// Source   Mironov, Talwar and Zhang, 2019, arXiv:1908.10530; Balle, Barthe, Gaboardi, Hsu and Sato, 2020.
struct RDPAccountant: Schedule {
  static let method = Method(
    "rdp_accountant", .schedule, "The privacy epsilon that k steps of the subsampled Gaussian mechanism spend.",
    rule: """
      rdp(a): q = 1: a/(2*sigma^2);  else log E[(1 - q + q*exp((2z - 1)/(2*sigma^2)))^a]/(a - 1), z ~ N(0, sigma^2)
      value at k = min over the orders a of k*rdp(a) - (log(delta) + log(a))/(a - 1) + log((a - 1)/a)
      """,
    source: "Mironov, Talwar, Zhang, 2019, arXiv:1908.10530",
    parameters: [
      .number("sigma", nil, .atLeast(0), "noise multiplier").fixed,
      .number("rate", nil, .within(0, 1), "share q of the samples that a step draws").fixed,
      .number("delta", nil, .between(0, 1, lowOpen: true, highOpen: true), "delta of the guarantee").fixed,
      .list("orders", nil, "orders of the divergence, 1.1 to 10.9 by tenths and 12 to 63 when none", optional: true),
    ],
    validate: { (h) throws(Failure) in
      guard h.list("orders").allSatisfy({ $0 > 1 && $0 <= 4096 }) else {
        throw Failure(Status.range, "rdp_accountant: `orders` must lie above 1 and be at most 4096")
      }
    })

  static let orders = (11...109).map { Double($0) / 10 } + (12...63).map(Double.init)
  let delta: Double
  let orders, spent: [Double]
  init(_ h: Hyper) {
    let given = h.list("orders")
    self.init(h.sigma, h.rate, h.delta, given.isEmpty ? RDPAccountant.orders : given)
  }
  init(_ sigma: Double, _ rate: Double, _ delta: Double, _ orders: [Double]) {
    (self.delta, self.orders) = (delta, orders)
    spent = orders.map { RDPAccountant.divergence(sigma, rate, $0) }
  }

  func value(_ k: Double) -> Double { k <= 0 ? 0 : max(0, bound(k)) }
  /// The conversion itself, which falls below 0 where δ alone covers the loss.
  func bound(_ k: Double) -> Double {
    var least = Double.infinity
    for (a, rdp) in zip(orders, spent) {
      least = min(least, k * rdp - (log(delta) + log(a)) / (a - 1) + log((a - 1) / a))
    }
    return least
  }

  /// The Rényi divergence of one step at order a.
  static func divergence(_ sigma: Double, _ q: Double, _ a: Double) -> Double {
    if q == 0 { return 0 }
    if sigma == 0 { return .infinity }
    if q == 1 { return a / (2 * sigma * sigma) }
    return (a == a.rounded() ? whole(sigma, q, a) : fractional(sigma, q, a)) / (a - 1)
  }

  private static func whole(_ sigma: Double, _ q: Double, _ a: Double) -> Double {
    var sum = -Double.infinity, choose = 0.0
    for i in 0...Int(a) {
      let k = Double(i)
      sum = logSum(sum, choose + k * log(q) + (a - k) * log1p(-q) + (k * k - k) / (2 * sigma * sigma))
      choose += log((a - k) / (k + 1))  // −∞ after the last
    }
    return sum
  }

  private static func fractional(_ sigma: Double, _ q: Double, _ a: Double) -> Double {
    let z = sigma * sigma * log(1 / q - 1) + 0.5, width = 2.0.squareRoot() * sigma, twice = 2 * sigma * sigma
    // both signs of terms apart: the coefficients alternate once i is above a
    var plus = -Double.infinity, minus = -Double.infinity, choose = 0.0, positive = true
    for i in 0..<100_000 {
      let k = Double(i), j = a - k
      let low = choose + k * log(q) + j * log1p(-q) + (k * k - k) / twice + logHalfErfc((k - z) / width)
      let high = choose + j * log(q) + k * log1p(-q) + (j * j - j) / twice + logHalfErfc((z - j) / width)
      if positive { plus = logSum(logSum(plus, low), high) } else { minus = logSum(logSum(minus, low), high) }
      if k > a, max(low, high) < -30 { break }  // the first ones may be small, too
      choose += log((a - k).magnitude / (k + 1))
      if a - k < 0 { positive.toggle() }
    }
    return minus < plus ? plus + log1p(-exp(minus - plus)) : plus
  }

  private static func logSum(_ x: Double, _ y: Double) -> Double {
    let top = max(x, y)
    return top == -.infinity ? top : top + log1p(exp(min(x, y) - top))
  }
  /// log(erfc(x)/2), where erfc itself is 0 too.
  private static func logHalfErfc(_ x: Double) -> Double {
    if x < 20 { return log(0.5 * erfc(x)) }
    let y = 1 / (2 * x * x)  // erfc(x) = e^(−x²)/(x√π)·(1 − y + 3y² − 15y³ + 105y⁴ ...)
    return -x * x - log(2 * x * Double.pi.squareRoot()) + log1p(y * (-1 + y * (3 + y * (-15 + y * 105))))
  }
}

/// The noise multiplier with which k steps spend a given privacy.
///
///     the smallest doubling of 10 whose ε(k) is at most epsilon;  then bisection until  epsilon − ε(k) ≤ tol
///
/// State    none.
/// Differs  nothing from opacus' get_noise_multiplier. Where 10⁶ is not enough the value is infinite.
/// Source   Mironov, Talwar and Zhang, 2019, arXiv:1908.10530.
struct DPNoise: Schedule {
  static let method = Method(
    "dp_noise_for_epsilon", .schedule, "The noise multiplier with which k steps spend a given privacy.",
    rule: "value at k = sigma with epsilon - tol <= rdp_accountant(sigma, rate, delta)(k) <= epsilon, by bisection",
    source: "Mironov, Talwar, Zhang, 2019, arXiv:1908.10530",
    parameters: [
      .number("epsilon", nil, .above(0), "privacy to spend").fixed,
      .number("rate", nil, .within(0, 1), "share q of the samples that a step draws").fixed,
      .number("delta", nil, .between(0, 1, lowOpen: true, highOpen: true), "delta of the guarantee").fixed,
      .number("tol", 0.01, .above(0), "slack under the target").fixed,
    ])

  let epsilon, rate, delta, tol: Double
  init(_ h: Hyper) { (epsilon, rate, delta, tol) = (h.epsilon, h.rate, h.delta, h.tol) }

  func value(_ k: Double) -> Double {
    func spent(_ sigma: Double) -> Double {
      k <= 0 ? 0 : RDPAccountant(sigma, rate, delta, RDPAccountant.orders).bound(k)
    }
    var high = 10.0, least = Double.infinity
    while least > epsilon {
      high *= 2
      if high > 1e6 { return .infinity }
      least = spent(high)
    }
    var low = 0.0
    for _ in 0..<200 where epsilon - least > tol {
      let sigma = (low + high) / 2, now = spent(sigma)
      if now < epsilon { (high, least) = (sigma, now) } else { low = sigma }
    }
    return high
  }
}
