import ThalwegCore

/// The trace of a symmetric operator: exactly on a sketched subspace, by Hutchinson's estimate on what is left.
///
///     Q = orth(A·S), S of `sketch` random columns;  trace = tr(Qᵀ·A·Q) + mean of u·A·u,  u = (I − Q·Qᵀ)·g
///
/// 2·sketch + probes products. Draws 0 ... sketch−1 are the columns of S, those behind are the g.
/// Source   Meyer, Musco, Musco, Woodruff, 2021, arXiv:2010.09649.
struct HutchPP: Driver {
  static let method = Method.solver(
    "hutchpp_trace", "Trace by Hutch++: exact on a sketched subspace, estimated on the rest.",
    rule: "Q = orth(A S);  trace = tr(Q'A Q) + mean u.A u,  u = (I - Q Q') g",
    source: "Meyer, Musco, Musco, Woodruff, 2021, arXiv:2010.09649",
    parameters: [
      .integer("probes", 10, .atLeast(1), "random vectors for the rest"),
      .maybeInteger("sketch", .atLeast(1), "columns of the sketch; none: as many as probes"),
      .choice("distribution", ["rademacher", "normal"], "of their elements"),
      .integer("seed", 0, .atLeast(0), "of the draws"),
    ],
    inputs: [
      .constant("like", "...", "an array of the shape that the operator takes; its values do not count").orNonfinite,
      .result("trace", "", "the estimate"), .result("exact", "", "the part on the subspace"),
      .result("standard_error", "", "standard error of the rest"), .result("iterations", "", "products"),
    ], asks: [.product],
    kept: [
      .kept("basis", "columns, ...", "Q"), .kept("v", "...", "vector"), .kept("w", "...", "product"),
      .kept("rank", "", "columns of Q"), .kept("drawn", "", "columns of S used"),
      .kept("done", "", "columns of Q used"),
      .kept("taken", "", "vectors for the rest used"), .kept("mean", "", "of the rest"),
      .kept("spread", "", "squared deviations"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    ["columns": min(h.has("sketch") ? h.integer("sketch") : h.integer("probes"), max(1, sizes.samples))]
  }

  enum Phase: Int { case sketch, sketched, exact, measured, probe, probed }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let basis = try io["basis"], v = try io["v"], w = try io["w"], columns = basis.rows
    let seed = h.integer("seed"), signs = h.is("distribution", "rademacher")
    func clear(_ u: Vector<T>) throws(Failure) {
      for _ in 0..<2 {
        for i in 0..<(try io.count("rank", columns)) { u.add(basis.row(i), times: -basis.row(i).dot(u)) }
      }
    }
    switch phase {
    case .sketch:
      let k = try io.count("drawn", columns)
      if k == columns { return .go(.exact) }
      Draws.take(io, k, seed: seed, signs: signs, into: v)
      return .ask("product", [v], [w], then: .sketched)
    case .sketched:
      let size = w.norm, k = try io.count("rank", columns - 1)
      try clear(w)
      let rest = w.norm
      // a column that the others span adds nothing
      if rest > (T.isDouble ? 1e-12 : 1e-5) * size, rest > 0 {
        basis.row(k).set(1 / rest, w)
        io.rank += 1
      }
      (io.drawn, io.iterations) = (io.drawn + 1, io.iterations + 1)
      return .go(.sketch)
    case .exact:
      let k = try io.count("done", columns)
      if Double(k) >= io.rank { return .go(.probe) }
      return .ask("product", [basis.row(k)], [w], then: .measured)
    case .measured:
      io.exact += basis.row(try io.count("done", columns - 1)).dot(w)
      (io.done, io.iterations) = (io.done + 1, io.iterations + 1)
      return .go(.exact)
    case .probe:
      let k = try io.count("taken")
      if Double(k) >= h.probes {
        io.trace = io.exact + io.mean
        return .done(.converged)
      }
      Draws.take(io, columns &+ k, seed: seed, signs: signs, into: v)
      try clear(v)
      return .ask("product", [v], [w], then: .probed)
    case .probed:
      let x = v.dot(w), d = x - io.mean
      (io.taken, io.iterations) = (io.taken + 1, io.iterations + 1)
      io.mean += d / io.taken
      io.spread += d * (x - io.mean)
      io.standard_error = (io.spread / max(1, io.taken - 1) / io.taken).squareRoot()
      return .go(.probe)
    }
  }
}
