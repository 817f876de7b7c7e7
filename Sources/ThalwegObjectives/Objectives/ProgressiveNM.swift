import Glibc
import ThalwegCore

/// N:M sparsity that comes gradually: what the mask hides fades out, or the pattern grows sparse in steps.
///
///     effective = w·(M + (1 − M)·β);   value = ⟨g, effective⟩;   the gradient by w is g, as it is
///     epoch < dense: M = 1.   β: step 0; linear max(0, 1 − decay_coef·step); exp e^(−decay_coef·step);
///       0 after total − fine_tune
///     frames of equal length between dense and total − fine_tune, i from 0:
///       sparsify  (m − 1):m, then (m/2^i):m down to n:m     densify  n:(m·2^(3−i))     fine  (n·2^(3−i)):(m·2^(3−i))
///
/// Of every group of a row the largest magnitudes are M, the lower index in a tie. w (rows, columns) is the matrix
/// view. `step` counts from the end of the dense phase, `epoch` from 0. Without g the value is 0.
/// Errors   TW_ERROR_SHAPE where a row is no multiple of the group.
/// Differs  as in the authors' release the gradient is not multiplied by β. The default of decay_coef is UNVERIFIED.
/// Source   Bambhaniya et al., 2024, arXiv:2402.04744.
struct ProgressiveNM: Objective {
  static let method = Method(
    "progressive_nm", .objective, "N:M sparsity that comes gradually: fading weights, or patterns that grow sparse.",
    rule: """
      effective = w*(M + (1 - M)*beta), M the n largest of every m in a row;  value = <g, effective>;  gradient by w = g
      beta: 0 (step), max(0, 1 - decay_coef*step) (linear), exp(-decay_coef*step) (exp); 0 after total - fine_tune
      structure: in frames, sparsify (m-1):m, (m/2):m, ..., n:m;  densify n:(m*2^(3-i));  fine (n*2^(3-i)):(m*2^(3-i))
      """,
    source: "Bambhaniya et al., 2024, arXiv:2402.04744",
    parameters: [
      .integer("n", 1, .within(1, 0x1p40), "entries of a group that stay, at the end"),
      .integer("m", 16, .within(1, 0x1p40), "size of a group, at the end"),
      .choice("decay", ["step", "linear", "exp"], "how what is hidden fades", standard: 1),
      .number("decay_coef", 1e-3, .above(0), "of the fading, a step"),
      .choice("structure", ["none", "sparsify", "densify", "fine"], "patterns before the last"),
      .integer("total", nil, .atLeast(1), "epochs in all"), .integer("dense", 0, .atLeast(0), "epochs without a mask"),
      .integer("fine_tune", 0, .atLeast(0), "epochs of the last pattern, without fading"),
    ],
    inputs: [
      .variable("w", "rows, columns", "the dense weights"), .integer("step", "", "steps since the dense phase"),
      .integer("epoch", "", "epoch, from 0"),
      .constant("g", "rows, columns", "gradient by the effective weights; 0 when left out", optional: true),
      .result("effective", "rows, columns", "the weights that the layer uses"),
      .result("mask", "rows, columns", "M"),
    ],
    validate: { (h) throws(Failure) in
      let n = h.integer("n"), m = h.integer("m")
      guard n <= m else {
        throw Failure(Status.range, "progressive_nm: `n` must not be above `m`, got \(n) and \(m)")
      }
      guard h.integer("dense") + h.integer("fine_tune") < h.integer("total") else {
        throw Failure(Status.range, "progressive_nm: `dense` + `fine_tune` must be below `total`")
      }
      guard !h.is("structure", "sparsify") || (m % n == 0 && (m / n) & (m / n - 1) == 0) else {
        throw Failure(Status.range, "progressive_nm: sparsify needs m/n to be a power of two, got \(m)/\(n)")
      }
    })

  let h: Hyper
  init(_ h: Hyper) { self.h = h }

  /// What a pattern keeps of a group, at an epoch behind the dense phase.
  private func pattern(_ epoch: Int) -> (n: Int, m: Int) {
    let n = h.integer("n"), m = h.integer("m"), dense = h.integer("dense")
    if h.is("structure", "none") { return (n, m) }
    let sparsify = h.is("structure", "sparsify"), frames = sparsify ? (m / n).trailingZeroBitCount + 1 : 4
    let length = Double(h.integer("total") - dense - h.integer("fine_tune")) / Double(frames)
    let i = (0..<frames).last { dense + Int(Double($0) * length) <= epoch } ?? 0
    if sparsify { return i == frames - 1 ? (n, m) : (i == 0 ? m - 1 : m >> i, m) }
    let wider = 1 << (3 - i)
    return (h.is("structure", "fine") ? n * wider : n, m * wider)
  }
  private func beta(_ step: Int, _ epoch: Int) -> Double {
    if h.is("decay", "step") || epoch > h.integer("total") - h.integer("fine_tune") { return 0 }
    let x = h.decay_coef * Double(step)
    return h.is("decay", "exp") ? exp(-x) : max(0, 1 - x)
  }

  func forward<T: Real>(_ x: Inputs<T>, _ cache: Cache?) throws(Failure) -> Double {
    let w = try x["w"], g = x.optional("g"), rows = x.sizes["rows"], columns = x.sizes["columns"],
      count = rows * columns
    let step = try x.integers("step")[0], epoch = try x.integers("epoch")[0], isDense = epoch < h.integer("dense")
    guard step >= 0, epoch >= 0 else {
      throw Failure(Status.range, "progressive_nm: `step` and `epoch` must not be negative, got \(step) and \(epoch)")
    }
    let (n, m) = isDense ? (1, 1) : pattern(epoch), beta = beta(step, epoch)
    guard columns % m == 0 else {
      throw Failure(Status.shape, "progressive_nm: the length \(columns) of a row is not a multiple of \(m)")
    }
    let out = try cache?.keep("effective", count, T.self), mask = try cache?.keep("mask", count, T.self)
    if let back = try cache?.keep("w", count, T.self), let g { back.update(from: g, count: count) }
    return Rows.sum(count / m, work: m * m) { group in
      let first = group * m
      func size(_ i: Int) -> Double { w[i].isNaN ? .infinity : Double(abs(w[i])) }
      let border = n == m ? -1 : Flat.largest(w + first, m, n - 1)
      var room = n, value = 0.0
      for i in first..<(first + m) where size(i) > border { room -= 1 }
      for i in first..<(first + m) {
        var stays = size(i) > border
        if !stays, room > 0, size(i) == border {
          room -= 1
          stays = true
        }
        let e = stays ? w[i] : T(beta * Double(w[i]))
        out?[i] = e
        mask?[i] = stays ? 1 : 0
        if let g { value += Double(g[i]) * Double(e) }
      }
      return value
    }
  }
}
