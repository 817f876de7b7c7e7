import Glibc
import ThalwegCore

/// Weight normalisation: the length of a row and its direction are trained apart.
///
///     n_r = max(|v_r|, 1e-12), u = v_r/n_r;   effective = γ_r·u, γ = gain or, with log_gain, e^gain
///     value = ⟨g, effective⟩;   gradient by gain: ⟨g_r, u⟩ (log_gain: times γ_r);   by v: γ_r/n_r·(g_r − ⟨g_r, u⟩·u)
///
/// v (rows, ...), gain (rows,): axis=all has one gain, (1,), and one norm of all of v. Without g the value is 0. The
/// gradient by v is orthogonal to v, so that plain steps only lengthen it: `norms` shows |v_r|.
/// `init_gain` and `init_bias` are what a layer starts with: |v_r| and 0, which leave v as it is, or, of one batch of
/// pre-activations `pre` (batch, rows) that were made with γ = 1 and no bias, 1/std and −mean/std of each row.
/// Errors   TW_ERROR_RANGE: a zero row of v in the first pass (later its norm counts as 1e-12, a constant); a row of
///          `pre` without variance. TW_ERROR_SHAPE: a gain that is not one for each row, or one in all.
/// Differs  nothing from torch's weight_norm (dim=0, or None for axis=all).
/// Source   Salimans and Kingma, 2016, arXiv:1602.07868.
struct WeightNorm: Objective {
  static let method = Method(
    "weight_norm", .objective, "Weight normalisation: lengths and directions of rows, trained apart.",
    rule: """
      n_r = |v_r|, u = v_r/n_r;  effective = gamma_r*u, gamma = gain, or exp(gain) (log_gain);  value = <g, effective>
      gradient by gain = <g_r, u> (log_gain: times gamma_r);  by v = gamma_r/n_r*(g_r - <g_r, u>*u)
      """,
    source: "Salimans, Kingma, 2016, arXiv:1602.07868",
    parameters: [
      .choice("axis", ["row", "all"], "what has a gain: each row, or the whole tensor"),
      .flag("log_gain", false, "the logarithm of the gain is trained"),
    ],
    inputs: [
      .variable("v", "rows, ...", "directions, of any length"),
      .variable("gain", "gains", "gains, or their logarithms"),
      .constant("g", "rows, ...", "gradient by the effective weights; 0 when left out", optional: true),
      .constant("pre", "batch, rows", "pre-activations of a batch, for init_gain and init_bias", optional: true),
      .result("effective", "rows, ...", "the weights that the layer uses"), .result("norms", "gains", "|v|"),
      .result("init_gain", "gains", "gains (or logarithms) to start with"),
      .result("init_bias", "gains", "biases to start with"),
    ])
  private static let floor = 1e-12
  let all, logs: Bool
  init(_ h: Hyper) { (all, logs) = (h.is("axis", "all"), h.log_gain) }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let v = try x["v"], gain = try x["gain"], g = Upstream(x), rows = x.sizes["rows"]
    let count = try area(rows, x.sizes.samples), groups = all ? 1 : rows, n = count / groups
    guard x.sizes["gains"] == groups else {
      throw Failure(
        Status.shape,
        "`gain` must have \(groups == 1 ? "1 number" : "\(groups) numbers, one for each row"), got "
          + "\(x.sizes["gains"])")
    }
    let out = try cache?.keep("effective", count, T.self), norms = try cache?.keep("norms", groups, T.self)
    let dv = try cache?.keep("v", count, T.self), slope = try cache?.keep("gain", groups, T.self)
    if x.memory.passes == 0, let r = (0..<groups).first(where: { Flat.norm(v + $0 * n, n) == 0 }) {
      throw Failure(Status.range, all ? "`v` must not be zero" : "the rows of `v` must not be zero, got row \(r)")
    }
    if let cache { try start(x, v, groups, n, cache) }
    return Rows.sum(groups, work: 6 * n) { r in
      let row = v + r * n, norm = Flat.norm(row, n), length = larger(norm, Self.floor)
      let factor = logs ? exp(Double(gain[r])) : Double(gain[r])
      let along = (0..<n).reduce(0.0) { $0 + g[r * n + $1] * (Double(row[$1]) / length) }
      for k in 0..<n {
        let u = Double(row[k]) / length
        out?[r * n + k] = T(factor * u)
        dv?[r * n + k] = T(factor / length * (g[r * n + k] - (norm < Self.floor ? 0 : along) * u))
      }
      norms?[r] = T(norm)
      slope?[r] = T(logs ? factor * along : along)
      return factor * along
    }
  }

  /// What a layer starts with.
  private func start<T: Real>(_ x: Inputs<T>, _ v: UnsafePointer<T>, _ groups: Int, _ n: Int, _ cache: Cache)
    throws(Failure)
  {
    let first = try cache.keep("init_gain", groups, T.self), bias = try cache.keep("init_bias", groups, T.self)
    let rows = x.sizes["rows"], each = rows / groups, batch = x.sizes["batch"]
    for r in 0..<groups {
      var factor = larger(Flat.norm(v + r * n, n), Self.floor), shift = 0.0
      if let pre = x.optional("pre") {
        let size = Double(batch * each)
        func sum(_ term: (Double) -> Double) -> Double {
          var s = 0.0
          for b in 0..<batch { for j in (r * each)..<((r + 1) * each) { s += term(Double(pre[b * rows + j])) } }
          return s
        }
        let mean = sum { $0 } / size, std = (sum { ($0 - mean) * ($0 - mean) } / size).squareRoot()
        guard std > 0, std.isFinite else {
          throw Failure(
            Status.range,
            "`pre` must be finite and vary in every row, got \(text(std)) as the "
              + "deviation of row \(r)")
        }
        (factor, shift) = (1 / std, -mean / std)
      }
      first[r] = T(logs ? log(factor) : factor)
      bias[r] = T(shift)
    }
  }
}
