import Glibc
import ThalwegCore

/// Step sizes in the space of a model's outputs, for sso_surrogate.
///
///     t = k + 1:   constant: eta0;   sqrt: eta0/√t;   exponential: eta0·T^(−t/T);   adagrad: eta0/√(Σ ‖g‖²)
///     clipped to [eta_min, eta_max];   adagrad watches "gradient_norm", and is eta0 before the first
///
/// State    adagrad: the sum of squares.
/// Differs  the paper's Armijo rule needs losses on the way: the solver `armijo` searches with them.
/// Source   Lavington, Vaswani, Babanezhad, Schmidt and Le Roux, 2023, arXiv:2302.02607.
struct SSOStepsize: Schedule {
  static let method = Method(
    "sso_stepsize", .schedule, "Step sizes in the space of a model's outputs.",
    rule: """
      t = k + 1;  constant: eta0;  sqrt: eta0/sqrt(t);  exponential: eta0*T^(-t/T);  adagrad: eta0/sqrt(sum |g|^2)
      kept in [eta_min, eta_max];  adagrad watches "gradient_norm", and is eta0 before the first
      """,
    source: "Lavington, Vaswani, Babanezhad, Schmidt, Le Roux, 2023, arXiv:2302.02607",
    parameters: [
      .choice("kind", ["constant", "sqrt", "exponential", "adagrad"], "how it falls", live: false),
      Parameter.number("eta0", 1, .above(0), "first step size").fixed,
      .steps("total", "T of exponential", 1000, from: 1),
      Parameter.number("eta_min", 1e-4, .atLeast(0), "smallest step size").fixed,
      Parameter.number("eta_max", 1e4, .above(0), "largest step size").fixed,
    ],
    validate: { (h) throws(Failure) in
      guard h.eta_min <= h.eta_max else {
        throw Failure(
          Status.range,
          "sso_stepsize: `eta_min` must not be above `eta_max`, got \(text(h.eta_min)) and \(text(h.eta_max))")
      }
    })
  let h: Hyper
  var memory: [Double]
  init(_ h: Hyper) { (self.h, memory) = (h, h.is("kind", "adagrad") ? [0] : []) }

  func value(_ k: Double) -> Double {
    let t = k + 1, sum = memory.first ?? 0
    var eta: Double = h.eta0
    if h.is("kind", "sqrt") { eta /= t.squareRoot() }
    if h.is("kind", "exponential") { eta *= pow(h.total, -t / h.total) }
    if sum > 0 { eta /= sum.squareRoot() }
    return min(max(eta, h.eta_min), h.eta_max)
  }

  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    guard what == "gradient_norm", let sum = memory.first else { return false }
    guard value >= 0, value.isFinite else {
      throw Failure(Status.range, "sso_stepsize: `gradient_norm` must be finite and at least 0, got \(text(value))")
    }
    memory[0] = sum + value * value
    return true
  }
}
