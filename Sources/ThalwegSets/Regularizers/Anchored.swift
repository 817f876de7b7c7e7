import Glibc
import ThalwegCore

/// A quadratic pull towards an anchor: pre-trained weights, initial weights, or those of the task before.
///
///     value = λ/2·Σ p·(w − a)²     gradient = λp·(w − a)
///
///     prox = (w + k·a)/(1 + k), k = step·λ
///
/// a is `anchor`, p is `precision` (a Fisher diagonal, say), all ones where it is not given; both have the shape of w.
/// In a pipeline (`penalty(l2_init)`, `prox`, `decoupled`) a are the weights before the first step, which the stage
/// keeps and saves, and p is 1.
/// Errors   TW_ERROR_RANGE where a precision is negative or NaN.
/// Differs  called on its own it keeps no anchor: the host passes one in every call. A later anchor for a pipeline is a
///          new optimizer, or a state with other numbers in `anchor`.
/// Source   Li, Grandvalet and Davoine, 2018, arXiv:1802.01483; Kumar, Marklund and Van Roy, 2023, arXiv:2308.11958.
struct L2Init: Objective {
  static let method = Method(
    "l2_init", .regularizer, "A quadratic pull towards an anchor: pre-trained, initial or former weights.",
    rule: """
      value = weight/2*sum precision*(w - anchor)^2;  gradient = weight*precision*(w - anchor)
      prox = (w + k*anchor)/(1 + k), k = step*weight;  in a pipeline: anchor = w before the first step, precision = 1
      """,
    source: "Li, Grandvalet, Davoine, 2018, arXiv:1802.01483; Kumar, Marklund, Van Roy, 2023, arXiv:2308.11958",
    parameters: [.weight()],
    inputs: [
      .variable("w", "...", "weights").orEmpty, .constant("anchor", "...", "what they are pulled to").orEmpty,
      .constant("precision", "...", "weight of every entry, at least 0", optional: true).orEmpty,
    ])

  static var inPipelines: RegularizerStages {
    RegularizerStages(
      penalty: { (kernels(Pull.self).binding($0), nil) }, proximal: { (kernels(Prox.self).binding($0), nil) },
      decoupled: { (kernels(Step.self).binding($0), nil) })
  }
  private struct Pull: Anchored {
    let weight: Double
    init(_ h: Hyper, _ c: StepContext) { weight = h.weight }
    @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v + weight * (w - s[0]) }
  }
  private struct Prox: Anchored {
    let share: Double
    init(_ h: Hyper, _ c: StepContext) { share = nearer(c.lr * h.weight) }
    @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v - share * (v - s[0]) }
  }
  private struct Step: Anchored {
    let share: Double
    init(_ h: Hyper, _ c: StepContext) { share = c.lr * h.weight }
    @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L { v - share * (v - s[0]) }
  }

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

/// A stage that keeps the anchor of `l2_init`.
private protocol Anchored: ElementRule {}
extension Anchored {
  static var method: Method { L2Init.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    [Slot("anchor", "the weights before the first step", start: .parameters)]
  }
}

/// The share of its way that w goes to a in argmin_u ½(u − w)² + k/2·(u − a)².
private func nearer(_ k: Double) -> Double { k < .infinity ? k / (1 + k) : 1 }

/// A pull of the distribution of the weights towards that of the initial ones: the squared Wasserstein distance.
///
///     m: the sorted initial values in the order of w     value = c·Σ(w − m)²     gradient = 2c·(w − m)
///     c = λ, or λ/n with reduction=mean     prox = (w + k·m)/(1 + k), k = 2·step·c
///
/// `initial` may stand in any order. Equal entries of w keep their order. In a pipeline (`penalty(wasserstein_init)`,
/// `prox`, `decoupled`) the initial values are the weights before the first step, which the stage keeps and saves.
/// With `every` above 1 a stage of a pipeline keeps its match for so many steps: no sorting between.
/// State    the initial values; with `every` above 1 the match.
/// Differs  whether the paper sums or averages is not verified. Called on its own it keeps nothing: the host passes the
///          initial values in every call, and the match is made anew each time.
/// Source   Lewandowski et al., 2024, arXiv:2406.06811 (first version).
struct WassersteinInit: Objective {
  static let method = Method(
    "wasserstein_init", .regularizer, "A pull of the distribution of the weights towards that of the initial ones.",
    rule: """
      m: the sorted initial values in the order of w, c = weight, or weight/n with reduction=mean
      value = c*sum (w - m)^2;  gradient = 2*c*(w - m);  prox = (w + k*m)/(1 + k), k = 2*step*c
      in a pipeline: the initial values are those of w before the first step
      """,
    source: "Lewandowski et al., 2024, arXiv:2406.06811",
    parameters: [
      .weight(), .choice("reduction", ["sum", "mean"], "over the entries"),
      .integer("every", 1, .atLeast(1), "steps of a pipeline between two matches", live: false),
    ],
    inputs: [
      .variable("w", "...", "weights").orEmpty, .constant("initial", "...", "initial weights, in any order").orEmpty,
    ])

  static var inPipelines: RegularizerStages {
    RegularizerStages(
      penalty: { (nil, kernels(Pull.self).binding($0)) }, proximal: { (nil, kernels(Prox.self).binding($0)) },
      decoupled: { (nil, kernels(Step.self).binding($0)) })
  }
  private struct Pull: Matched {
    let h: Hyper, step: Int
    init(_ h: Hyper, _ c: StepContext) { (self.h, step) = (h, c.t) }
    func apply<T: Real>(_ t: Whole<T>) {
      let c = T(2 * WassersteinInit(h).factor(t.count))
      match(t, t.w) { i, m in t.v[i] += c * (t.w[i] - m) }
    }
  }
  private struct Prox: Matched {
    let h: Hyper, step: Int, lr: Double
    init(_ h: Hyper, _ c: StepContext) { (self.h, step, lr) = (h, c.t, c.lr) }
    func apply<T: Real>(_ t: Whole<T>) {
      let share = T(nearer(2 * lr * WassersteinInit(h).factor(t.count)))
      match(t, t.v) { i, m in t.v[i] -= share * (t.v[i] - m) }
    }
  }
  private struct Step: Matched {
    let h: Hyper, step: Int, lr: Double
    init(_ h: Hyper, _ c: StepContext) { (self.h, step, lr) = (h, c.t, c.lr) }
    func apply<T: Real>(_ t: Whole<T>) {
      let share = T(2 * lr * WassersteinInit(h).factor(t.count))
      match(t, t.v) { i, m in t.v[i] -= share * (t.v[i] - m) }
    }
  }

  let weight: Double, mean: Bool
  init(_ h: Hyper) { (weight, mean) = (h.weight, h.is("reduction", "mean")) }
  private func factor(_ n: Int) -> Double { mean ? weight / Double(n) : weight }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let n = x.sizes.samples
    let w = try doubles(try x["w"], n, "w"), initial = try doubles(try x["initial"], n, "initial").sorted()
    let order = w.indices.sorted { w[$0] != w[$1] ? w[$0] < w[$1] : $0 < $1 }
    let c = factor(n), g = try cache?.keep("w", n, T.self)
    var sum = 0.0
    for (rank, i) in order.enumerated() {
      let d = w[i] - initial[rank]
      g?[i] = T(2 * c * d)
      sum += c * d * d
    }
    return sum
  }
}

/// A stage that keeps the values of `wasserstein_init`, sorted.
private protocol Matched: WholeRule {
  var h: Hyper { get }
  /// Of its tensor, from 1.
  var step: Int { get }
}
extension Matched {
  static var method: Method { WassersteinInit.method }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let initial = Slot("initial", "the weights before the first step, in ascending order", start: .parameters)
    return h.integer("every") == 1 ? [initial] : [initial, Slot("match", "the initial weight of each entry")]
  }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    shape.count.multipliedReportingOverflow(by: MemoryLayout<Int>.stride).partialValue
  }
  /// `body` of every entry of w and what it is matched with.
  func match<T: Real>(_ t: Whole<T>, _ w: UnsafeMutablePointer<T>, _ body: (Int, T) -> Void) {
    let n = t.count, every = h.integer("every")
    guard every == 1 || (step - 1) % every == 0 else {
      for i in 0..<n { body(i, t.slots[1][i]) }
      return
    }
    var initial = UnsafeMutableBufferPointer(start: t.slots[0], count: n)
    // or it was written
    if step == 1 || !zip(initial, initial.dropFirst()).allSatisfy({ $0 <= $1 }) { initial.sort() }
    var order = UnsafeMutableBufferPointer(start: t.workspace.bindMemory(to: Int.self, capacity: n), count: n)
    for i in 0..<n { order.initializeElement(at: i, to: i) }
    order.sort { w[$0] != w[$1] ? w[$0] < w[$1] : $0 < $1 }
    for (rank, i) in order.enumerated() {
      if every > 1 { t.slots[1][i] = initial[rank] }
      body(i, initial[rank])
    }
  }
}

/// Weights that matter little to the loss decay most, and may be pruned.
///
///     value = γ·Σ exp(−|g|/α)·w²     gradient = 2γ·exp(−|g|/α)·w, with g, the gradient of the loss, held constant
///
/// In a pipeline `penalty(relevance_reg)` takes g as it comes there; the loss has no gradient after the step, so that
/// there is neither prox nor decoupled form.
/// Differs  the authors take a second backward pass for the same numbers. When to prune depends on a score of the
///          host's (`score_floor`): `magnitude_pruning(sparsity=s)` behind the rule prunes where the host raises s by
///          its `prune_fraction`; γ decays by a schedule for `decay_steps`, `relevance_reg(linear(1e-5, total=100))`.
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

  static var inPipelines: RegularizerStages { RegularizerStages(penalty: { (kernels(Pull.self).binding($0), nil) }) }
  private struct Pull: ElementRule {
    static let method = RelevanceReg.method
    static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
    let weight, alpha: Double
    init(_ h: Hyper, _ c: StepContext) { (weight, alpha) = (2 * h.gamma, h.alpha) }
    @inline(__always) func direction<L: Lane>(_ v: L, _ w: L, _ s: Slots<L>) -> L {
      v + weight * (L.exp(-1 * (v.magnitude / L(alpha))) * w)
    }
  }

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
