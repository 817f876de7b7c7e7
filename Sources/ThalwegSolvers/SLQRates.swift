import Glibc
import ThalwegCore

/// A step size and a momentum from the outermost eigenvalues that Lanczos finds of the Hessian of a batch.
///
///     L the largest Ritz value, μ the smallest one of at least floor·L
///     lr = (2/(√L + √μ))²;   momentum = ((√L − √μ)/(√L + √μ))²
///
/// `eigenvalues` (ascending) with `weights`, the squared first components, estimate the spectral density. The host asks
/// for a new pair as often as it likes.
/// Ends     converged; negative_curvature: no Ritz value is above 0, then lr and momentum are NaN: keep the old pair.
/// Errors   TW_ERROR_RANGE: a start vector of zeros.
/// Differs  the optimum of the heavy ball on a quadratic is assumed for the map (UNVERIFIED).
/// Source   Granziol, Zohren, Roberts, 2020, arXiv:2006.09092; the rates: Polyak, 1964.
struct SLQRates: Driver {
  static let method = Method.solver(
    "slq_lr_momentum", "A step size and a momentum from the outermost eigenvalues of the Hessian of a batch.",
    rule: """
      Ritz values of Lanczos from a random vector: L the largest, mu the smallest of at least floor L
      lr = (2/(sqrt L + sqrt mu))^2;  momentum = ((sqrt L - sqrt mu)/(sqrt L + sqrt mu))^2
      """,
    source: "Granziol, Zohren, Roberts, 2020, arXiv:2006.09092; Polyak, 1964",
    parameters: [
      .integer("steps", 10, .atLeast(1), "products, at most the number of parameters"),
      .number(
        "floor", 1e-3, .between(0, 1, lowOpen: true, highOpen: true), "least Ritz value that counts, over the largest"),
      .integer("seed", 0, .atLeast(0), "of the start vector"),
    ],
    inputs: [
      .constant("like", "...", "an array of the shape of the parameters; its values do not count", optional: true)
        .orNonfinite,
      .constant("start", "...", "start vector; drawn when left out", optional: true),
      .result("lr", "", "step size"), .result("momentum", "", "momentum"), .result("largest", "", "L"),
      .result("smallest", "", "mu"), .result("eigenvalues", "rows", "Ritz values, ascending"),
      .result("weights", "rows", "their weights in the start vector"), .result("rank", "", "products"),
    ], asks: [.product],
    kept: [
      .kept("basis", "rows, ...", "Lanczos vectors"), .kept("w", "...", "product"), .kept("alpha", "rows", "diagonal"),
      .kept("beta", "rows", "what stands beside it"), .kept("drawn", "...", "the start"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["rows": min(h.integer("steps"), max(1, sizes.samples))]
  }
  enum Phase: Int { case start, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], w = try io["w"], alpha = try io["alpha"], beta = try io["beta"]
    if phase == .start {
      let start = try io["drawn"], seed = UInt64(bitPattern: Int64(h.integer("seed")))
      if let given = io.optional("start") {
        start.copy(given)
      } else {
        start.draw(Random.key(seed: seed, stream: 0, step: 0, tensor: 0))
      }
      try LanczosStep.begin(io, start, basis)
      return .ask("product", [basis.row(0)], [w], then: .product)
    }
    let k = try io.count("rank", basis.rows - 1)
    let more = LanczosStep.take(k, basis, w, alpha.p, beta.p, 1e-12)
    io.rank += 1
    if more { return .ask("product", [basis.row(k + 1)], [w], then: .product) }
    let t = try Tridiagonal(alpha.p, beta.p, k + 1)
    for i in 0...k {
      try io["eigenvalues"].p[i] = T(t.values[i])
      try io["weights"].p[i] = T(t.first(i) * t.first(i))
    }
    let top = t.values[k]
    guard top > 0 else {
      (io.lr, io.momentum, io.largest, io.smallest) = (.nan, .nan, top, .nan)
      return .done(.negativeCurvature)
    }
    let low = t.values.first { $0 >= h.floor * top } ?? top
    let (a, b) = (top.squareRoot(), low.squareRoot())
    (io.largest, io.smallest) = (top, low)
    (io.lr, io.momentum) = (4 / ((a + b) * (a + b)), (a - b) * (a - b) / ((a + b) * (a + b)))
    return .done(.converged)
  }
}
