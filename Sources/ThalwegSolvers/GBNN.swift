import Glibc
import ThalwegCore

/// Gradient boosting of hidden units: small blocks of a network are fitted to what is left, one after the other.
///
///     squared: F₀ = mean y, r = y − F, ρ = lr
///     binary (y = ±1): F₀ = ½·log((1 + m)/(1 − m)), m = mean y;  r = 2y/(1 + e^(2yF));  ρ = lr·Σ r·h/Σ r·h²·(2y − r)
///     softmax: F₀ = 0;  r = y − softmax(F);  ρ = lr·Σ h·(y − p)/Σ h²·p(1 − p), p = softmax(F), one for all classes
///     stage: a block fitted by least squares to r on a random share of the samples says h on all;  F ← F + ρ·h
///
/// y (n, C): targets, for softmax one-hot. total/units stages of `units` hidden units. The host keeps the blocks: in
/// the network the output weights of block k are ρ_k times its own (binary: twice that, for a sigmoid), and the bias
/// intercept + Σ ρ_k·bias_k; late blocks may be left out.
/// Ends     max_iter: all stages are done; converged: a denominator of ρ is 0, and so is ρ.
/// Errors   TW_ERROR_RANGE: a target that binary does not take, or all of one sign.
/// Differs  the samples of stage k are those with the ⌈subsample·n⌉ least draws of (seed, 0, k, 0).
/// Source   Emami and Martínez-Muñoz, 2019, arXiv:1909.12098.
struct GBNNStage: Driver {
  static let method = Method.solver(
    "gbnn_stage", "Gradient boosting of hidden units: blocks of a network are fitted to what is left.",
    rule: """
      r = y - F (squared), 2y/(1 + exp(2yF)) (binary), y - softmax(F);  h: a block fitted to r on a share of the samples
      F += rho h, rho = lr, lr sum r h/sum r h^2 (2y - r), lr sum h r/sum h^2 p(1 - p)
      """,
    source: "Emami, Martinez-Munoz, 2019, arXiv:1909.12098",
    parameters: [
      .integer("units", 1, .atLeast(1), "hidden units of a stage"),
      .integer("total", 100, .within(1, 0x1p20), "hidden units in all"), .number("lr", 1, .above(0), "shrinkage"),
      .number("subsample", 0.5, .between(0, 1, lowOpen: true, highOpen: false), "share of the samples of a stage"),
      .choice("loss", ["squared", "binary", "softmax"], "of the targets"), Population.seed,
    ],
    inputs: [
      .constant("y", "n, C", "targets"), .result("f", "n, C", "the output so far"),
      .result("intercept", "C", "F at first"), .result("rho", "total", "factor of every stage's block"),
      .result("iterations", "", "stages"),
    ],
    asks: [
      RequestKind(
        "fit_block", "a block of hidden units, fitted by least squares to residuals on a subset",
        given: [
          .given("residuals", "n, C", "what is left"), .given("subset", "n", "1 for the samples that are fitted"),
          .given("stage", "", "which stage, from 0"),
        ], wanted: [.wanted("block", "n, C", "what the block says on all samples")])
    ],
    kept: [
      .kept("r", "n, C", "what is left"), .kept("subset", "n", "samples of the stage"),
      .kept("h", "n, C", "what the block says"), .kept("draws", "n", "draws"),
    ],
    validate: { (h) throws(Failure) in
      guard h.total.truncatingRemainder(dividingBy: h.units) == 0 else {
        throw Failure(
          Status.range, "gbnn_stage: `units` must divide `total`, got \(text(h.units)) and \(text(h.total))")
      }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, stage, fitted }

  /// softmax(F) of a row.
  private func shares<T: Real>(_ f: UnsafePointer<T>, _ C: Int) -> [Double] {
    let top = (0..<C).reduce(-Double.infinity) { max($0, Double(f[$1])) }
    let e = (0..<C).map { exp(Double(f[$0]) - top) }, sum = e.reduce(0, +)
    return e.map { $0 / sum }
  }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let y = try io["y"], f = try io["f"], r = try io["r"], block = try io["h"], subset = try io["subset"]
    let n = y.rows, C = y.count / n, k = try io.count("iterations"), binary = h.is("loss", "binary")
    let softmax = h.is("loss", "softmax")
    switch phase {
    case .start:
      let first = try io["intercept"]
      for c in 0..<C where !softmax {
        let m = (0..<n).reduce(0.0) { $0 + Double(y.p[$1 * C + c]) } / Double(n)
        if binary {
          for i in 0..<n where abs(y.p[i * C + c]) != 1 {
            throw Failure(Status.range, "`y` must hold 1 and -1, got \(y.p[i * C + c]) at row \(i)")
          }
          guard abs(m) < 1 else { throw Failure(Status.range, "`y` must hold both 1 and -1 in column \(c)") }
        }
        first.p[c] = T(binary ? 0.5 * log((1 + m) / (1 - m)) : m)
      }
      for i in 0..<n { f.row(i).copy(first) }
      return .go(.stage)
    case .stage:
      if Double(k) >= h.total / h.units { return .done(.maxIter) }
      for i in 0..<n {
        let p = softmax ? shares(UnsafePointer(f.p + i * C), C) : []
        for c in 0..<C {
          let t = Double(y.p[i * C + c]), F = Double(f.p[i * C + c])
          r.p[i * C + c] = T(binary ? 2 * t / (1 + exp(2 * t * F)) : softmax ? t - p[c] : t - F)
        }
      }
      let draws = try io["draws"], size = min(n, max(1, Int((h.subsample * Double(n)).rounded(.up))))
      draws.draw(Population.key(h, Double(k)))
      let order = (0..<n).sorted { draws.p[$0] < draws.p[$1] || (draws.p[$0] == draws.p[$1] && $0 < $1) }
      subset.fill(0)
      for i in order.prefix(size) { subset.p[i] = 1 }
      io.stage = Double(k)
      return .ask("fit_block", [r, subset], [block], fresh: true, then: .fitted)
    case .fitted:
      var (above, below) = (0.0, 0.0)
      for i in 0..<n where binary || softmax {
        let p = softmax ? shares(UnsafePointer(f.p + i * C), C) : []
        for c in 0..<C {
          let a = Double(block.p[i * C + c]), e = Double(r.p[i * C + c]), t = Double(y.p[i * C + c])
          above += e * a
          below += binary ? e * a * a * (2 * t - e) : a * a * p[c] * (1 - p[c])
        }
      }
      let plain = !binary && !softmax, rho = plain ? h.lr : below > 0 ? h.lr * above / below : 0
      f.add(block, times: rho)
      try io["rho"].p[min(k, try io["rho"].count - 1)] = T(rho)
      io.iterations += 1
      return !plain && !(below > 0) ? .done(.converged) : .go(.stage)
    }
  }
}
