import Glibc
import ThalwegCore

/// A quadratic pull towards an anchor: pre-trained weights, initial weights, or those of the task before.
///
///     value = λ/2·Σ p·(w − a)²     gradient = λp·(w − a)
///
/// a is `anchor`, p is `precision` (a Fisher diagonal, say), all ones where it is not given; both have the shape of w.
/// Errors   TW_ERROR_RANGE where a precision is negative or NaN.
/// Differs  the host keeps the anchor and passes it in every call; a prox and a place in a pipeline would need an
///          anchor that the penalty keeps.
/// Source   Li, Grandvalet and Davoine, 2018, arXiv:1802.01483; Kumar, Marklund and Van Roy, 2023, arXiv:2308.11958.
struct L2Init: Objective {
  static let method = Method(
    "l2_init", .regularizer, "A quadratic pull towards an anchor: pre-trained, initial or former weights.",
    rule: "value = weight/2*sum precision*(w - anchor)^2;  gradient = weight*precision*(w - anchor)",
    source: "Li, Grandvalet, Davoine, 2018, arXiv:1802.01483; Kumar, Marklund, Van Roy, 2023, arXiv:2308.11958",
    parameters: [.weight()],
    inputs: [
      .variable("w", "...", "weights").orEmpty, .constant("anchor", "...", "what they are pulled to").orEmpty,
      .constant("precision", "...", "weight of every entry, at least 0", optional: true).orEmpty,
    ])

  let weight: Double
  init(_ h: Hyper) { weight = h.weight }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], a = try x["anchor"], p = x.optional("precision"), n = x.sizes.samples
    if let p { try notNegative(p, n, "precision") }
    let g = try cache?.keep("w", n, T.self)
    return Rows.sum(n, work: 4) { i in
      let d = Double(w[i]) - Double(a[i]), c = weight * (p.map { Double($0[i]) } ?? 1)
      g?[i] = T(c * d)
      return c / 2 * d * d
    }
  }
}

/// A pull of the distribution of the weights towards that of the initial ones: the squared Wasserstein distance.
///
///     m: the sorted initial values in the order of w     value = c·Σ(w − m)²     gradient = 2c·(w − m)
///     c = λ, or λ/n with reduction=mean
///
/// `initial` may stand in any order. Equal entries of w keep their order.
/// Differs  whether the paper sums or averages is not verified. The host keeps the initial values and passes them in
///          every call, and the match is made anew each time; a prox and a place in a pipeline would need values that
///          the penalty keeps.
/// Source   Lewandowski et al., 2024, arXiv:2406.06811 (first version).
struct WassersteinInit: Objective {
  static let method = Method(
    "wasserstein_init", .regularizer, "A pull of the distribution of the weights towards that of the initial ones.",
    rule: """
      m: the sorted initial values in the order of w, c = weight, or weight/n with reduction=mean
      value = c*sum (w - m)^2;  gradient = 2*c*(w - m)
      """,
    source: "Lewandowski et al., 2024, arXiv:2406.06811",
    parameters: [.weight(), .choice("reduction", ["sum", "mean"], "over the entries")],
    inputs: [
      .variable("w", "...", "weights").orEmpty, .constant("initial", "...", "initial weights, in any order").orEmpty,
    ])

  let weight: Double, mean: Bool
  init(_ h: Hyper) { (weight, mean) = (h.weight, h.is("reduction", "mean")) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes.samples
    let w = try doubles(try x["w"], n, "w"), initial = try doubles(try x["initial"], n, "initial").sorted()
    let order = w.indices.sorted { w[$0] != w[$1] ? w[$0] < w[$1] : $0 < $1 }
    let c = mean ? weight / Double(n) : weight, g = try cache?.keep("w", n, T.self)
    var sum = 0.0
    for (rank, i) in order.enumerated() {
      let d = w[i] - initial[rank]
      g?[i] = T(2 * c * d)
      sum += c * d * d
    }
    return sum
  }
}

/// Weights that matter little to the loss decay most, and may be pruned.
///
///     value = γ·Σ exp(−|g|/α)·w²     gradient = 2γ·exp(−|g|/α)·w, with g, the gradient of the loss, held constant
///
/// Differs  the authors take a second backward pass for the same numbers. The decay of γ between two prunings, and the
///          pruning by magnitude, are the host's.
/// Source   Bonetta, Ribero and Cancelliere, 2022, arXiv:2204.04977.
struct RelevanceReg: Objective {
  static let method = Method(
    "relevance_reg", .regularizer, "Weights that matter little to the loss decay most, and may be pruned.",
    rule: "value = gamma*sum exp(-|grad|/alpha)*w^2;  gradient = 2*gamma*exp(-|grad|/alpha)*w, grad held constant",
    source: "Bonetta, Ribero, Cancelliere, 2022, arXiv:2204.04977",
    parameters: [
      .number("gamma", 1e-5, .atLeast(0), "coefficient"), .number("alpha", 1, .above(0), "scale of the exponent"),
    ],
    inputs: [
      .variable("w", "...", "weights").orEmpty, .constant("grad", "...", "gradient of the loss alone").orEmpty,
    ])

  let gamma, alpha: Double
  init(_ h: Hyper) { (gamma, alpha) = (h.gamma, h.alpha) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], grad = try x["grad"], n = x.sizes.samples
    let g = try cache?.keep("w", n, T.self)
    return Rows.sum(n, work: 16) { i in
      let a = Double(w[i]), c = gamma * exp(-abs(Double(grad[i])) / alpha)
      g?[i] = T(2 * c * a)
      return c * a * a
    }
  }
}

/// For inputs that must be ≥ 0.
func notNegative<T: Real>(_ p: UnsafePointer<T>, _ n: Int, _ name: String) throws(Failure) {
  for i in 0..<n where !(p[i] >= 0) {
    throw Failure(Status.range, "`\(name)` must be at least 0, got \(text(Double(p[i]))) at element \(i)")
  }
}
