import ThalwegCore

/// The learning rate as a function of the batch size.
///
///     value = min(lr·B/B₀, max_lr)  (linear, for SGD);   min(lr·√(B/B₀), max_lr)  (sqrt, for Adam)
///
/// State    B₀, the batch size that was observed first, and B, the present one. It watches `batch_size`.
/// Differs  `lr` is the rate at B₀. The cap is the host's: 2/λ_max of the Hessian for SGD.
/// Source   Granziol, Zohren and Roberts, 2020, arXiv:2006.09092.
struct BatchLRScaling: Schedule {
  static let method = Method(
    "batch_lr_scaling", .schedule, "The learning rate as a function of the observed batch size.",
    rule: """
      B0: the first batch size, B: the present one
      linear: min(lr*B/B0, max_lr);  sqrt: min(lr*sqrt(B/B0), max_lr);  none: min(lr, max_lr)
      """,
    source: "Granziol, Zohren, Roberts, 2020, arXiv:2006.09092",
    parameters: [
      .choice("rule", ["linear", "sqrt", "none"], "linear for SGD, sqrt for Adam"),
      .number("max_lr", .infinity, .above(0), "cap"),
      .lr(1),
    ])
  private let lr, most: Double
  private let linear, root: Bool
  /// B₀ and B; 0 until one is observed.
  var memory = [0.0, 0.0]
  init(_ h: Hyper) { (lr, most, linear, root) = (h.lr, h.max_lr, h.is("rule", "linear"), h.is("rule", "sqrt")) }

  func value(_ k: Double) -> Double {
    guard memory.count == 2, memory[0] > 0 else { return min(lr, most) }
    let ratio = memory[1] / memory[0]
    return min(lr * (linear ? ratio : root ? ratio.squareRoot() : 1), most)
  }

  mutating func observe(_ what: String, _ value: Double) throws(Failure) -> Bool {
    guard what == "batch_size" else { return false }
    guard value > 0, value.isFinite else {
      throw Failure(Status.range, "batch_lr_scaling: a batch size must be positive, got \(text(value))")
    }
    memory = [memory.first.flatMap { $0 > 0 ? $0 : nil } ?? value, value]
    return true
  }
}
