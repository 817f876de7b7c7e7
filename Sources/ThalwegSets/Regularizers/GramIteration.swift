import Glibc
import ThalwegCore

/// A bound of the largest singular value by repeated squaring of a Gram matrix: the Schatten norm of order
/// p = 2^(T + 1).
private struct GramBound {
  /// log of the bound of the matrix as it is; −∞ of zeros.
  let log: Double
  /// The matrix over its largest entry, and that entry.
  private let w: Matrix64, top: Double
  /// (GramᵀGram…)^(2^i) = powers[i]·exp(logs[i]).
  private var powers: [Matrix64] = [], logs: [Double] = []

  init(_ x: Matrix64, _ steps: Int) throws(Failure) {
    top = x.a.reduce(0) { max($0, abs($1)) }
    w = Matrix64(top == 0 ? x.a : x.a.map { [top] in $0 / top }, x.m, x.n)
    guard top > 0 else {
      log = -.infinity
      return
    }
    guard steps > 0 else {
      log = Glibc.log(top) + 0.5 * Glibc.log(w.squaredNorm)
      return
    }
    var g = x.m <= x.n ? try w.times(w, transposed: false, true) : try w.times(w, transposed: true), scale = 0.0
    for i in 0..<steps {
      if i > 0 {
        let s = g.squaredNorm.squareRoot()
        g = (1 / s) * g
        g = try g.times(g)
        scale = 2 * (scale + Glibc.log(s))
      }
      powers.append(g)
      logs.append(scale)
    }
    log = Glibc.log(top) + (0.5 * Glibc.log(g.squaredNorm) + scale) / pow(2, Double(steps))
  }

  /// U·diag((σ/b)^(p − 1))·Vᵀ with log b given, from the powers alone.
  func slope(_ log: Double) throws(Failure) -> Matrix64 {
    let b = log - Glibc.log(top)
    var out = exp(-b) * w
    for (i, power) in powers.enumerated() {
      let factor = exp(logs[i] - pow(2, Double(i + 1)) * b)
      out = factor * (w.m <= w.n ? try power.times(out) : try out.times(power))
    }
    return out
  }
}

private let boundParameters: [Parameter] = [
  .weight(0.1), .number("threshold", 1, .atLeast(0), "bounds at or below it cost nothing"),
  .integer("n_iter", 6, .within(0, 12), "squarings T"),
]

/// A differentiable upper bound of the spectral norm, as a penalty: squarings of a Gram matrix need no singular
/// vectors.
///
///     bound = the Schatten norm of order p = 2^(T + 1), by T squarings;
///       value = λ·bound where it is above `threshold`
///     gradient = λ·U·diag((σ/bound)^(p − 1))·Vᵀ, from the same powers
///
/// The matrix is first divided by its largest entry and each power by its norm, so that no scale overflows. With
/// weight=1 and threshold=0 the value is the bound.
/// Errors   TW_ERROR_SHAPE of tensors of rank 0 and 1.
/// Source   Delattre et al., 2023, arXiv:2305.16173.
struct GramIteration: WholeRegularizer {
  static let method = Method(
    "gram_iteration", .regularizer, "A differentiable upper bound of the spectral norm, by squarings of a Gram matrix.",
    rule: """
      bound = Schatten norm of order p = 2^(n_iter + 1), by squarings of the Gram matrix
      value = weight*bound where bound > threshold, else 0;  gradient = weight*U*diag((s/bound)^(p - 1))*V'
      """,
    source: "Delattre, Barthelemy, Araujo, Allauzen, 2023, arXiv:2305.16173", parameters: boundParameters)
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "gram_iteration") }

  let weight, threshold: Double, steps: Int
  init(_ h: Hyper) { (weight, threshold, steps) = (h.weight, h.threshold, h.integer("n_iter")) }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let bound = exp(try GramBound(Matrix64(w.v, w.rows, w.columns, "gram_iteration"), steps).log)
    return bound > threshold ? weight * bound : 0
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ factor: Double) throws(Failure) {
    let gram = try GramBound(Matrix64(w.w, w.rows, w.columns, "gram_iteration"), steps)
    if exp(gram.log) > threshold { try gram.slope(gram.log).add(to: w.v, times: factor * weight) }
  }
}

/// The same bound of a convolution: the largest over the frequencies of a square grid with circular padding.
///
///     D(f)[o, i] = Σ_ab K[o, i, a, b]·e^(−2πi(f_y·a + f_x·b)/n);   bound = max_f of the bound of the complex D(f)
///     gradient through the first frequency f of the maximum alone
///
/// K is (out, in, kh, kw), stride 1. Half of the frequencies suffices, by symmetry.
/// Errors   TW_ERROR_SHAPE of tensors that are not of rank 4, or with a side above n.
/// Differs  a grid smaller than the layer's input is no upper bound for it; the paper's factor for that is not here.
/// Source   Delattre et al., 2023, arXiv:2305.16173.
struct GramIterationConv: WholeRegularizer {
  static let method = Method(
    "gram_iteration_conv", .regularizer, "The Gram bound of a convolution: the largest over all frequencies.",
    rule: """
      D(f)[o,i] = sum_ab K[o,i,a,b]*exp(-2*pi*i*(f_y*a + f_x*b)/n);  bound = max_f gram_iteration of D(f)
      value = weight*bound where bound > threshold, else 0
      """,
    source: "Delattre, Barthelemy, Araujo, Allauzen, 2023, arXiv:2305.16173",
    parameters: boundParameters + [
      .maybeInteger("n", .within(1, 4096), "side of the grid; none: the larger side of the kernel")
    ])
  static var hasProx: Bool { false }
  static var mayFail: Bool { true }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard shape.ndim == 4 else {
      throw Failure(Status.shape, "gram_iteration_conv needs a kernel (out, in, kh, kw), got shape \(shape.text)")
    }
    let side = max(shape.dimensions[2], shape.dimensions[3])
    guard !h.has("n") || h.integer("n") >= side else {
      throw Failure(
        Status.shape, "gram_iteration_conv: `n` must be at least the side \(side) of the kernel, got \(h.integer("n"))")
    }
    try LinearAlgebra.require()
  }

  let weight, threshold: Double, steps: Int, n: Int?
  init(_ h: Hyper) {
    (weight, threshold, steps) = (h.weight, h.threshold, h.integer("n_iter"))
    n = h.has("n") ? h.integer("n") : nil
  }
  /// Each singular value of D(f) stands twice in its real form.
  private var doubling: Double { Glibc.log(2) / pow(2, Double(steps + 1)) }

  /// The largest bound, its logarithm, and where it is.
  private func largest(_ k: [Double], _ s: [Int]) throws(Failure) -> (log: Double, bound: GramBound?, f: (Int, Int)) {
    let n = self.n ?? max(s[2], s[3])
    var best: (log: Double, bound: GramBound?, f: (Int, Int)) = (-.infinity, nil, (0, 0))
    for y in 0..<n {
      for x in 0...(n / 2) {
        let gram = try GramBound(embedded(k, s, angles(s, (y, x))), steps), log = gram.log - doubling
        if log > best.log { best = (log, gram, (y, x)) }
      }
    }
    return best
  }
  /// The angle at every position of a kernel's window.
  private func angles(_ s: [Int], _ f: (Int, Int)) -> [Double] {
    let n = self.n ?? max(s[2], s[3])
    return (0..<(s[2] * s[3])).map { p in
      let turns = f.0 * (p / s[3]) % n + f.1 * (p % s[3]) % n
      return 2 * Double.pi * Double(turns % n) / Double(n)
    }
  }
  /// [[Re, −Im], [Im, Re]] of D(f).
  private func embedded(_ k: [Double], _ s: [Int], _ angles: [Double]) throws(Failure) -> Matrix64 {
    let (o, i, p) = (s[0], s[1], angles.count)
    var d = try Matrix64(zeros: 2 * o, 2 * i)
    for r in 0..<o {
      for c in 0..<i {
        var re = 0.0, im = 0.0
        for q in 0..<p {
          re += k[(r * i + c) * p + q] * cos(angles[q])
          im -= k[(r * i + c) * p + q] * sin(angles[q])
        }
        (d[r, c], d[r, i + c], d[o + r, c], d[o + r, i + c]) = (re, -im, im, re)
      }
    }
    return d
  }

  func value<T: Real>(_ w: Whole<T>) throws(Failure) -> Double {
    let bound = exp(try largest(doubles(w.v, w.count, "gram_iteration_conv"), w.shape.dimensions).log)
    return bound > threshold ? weight * bound : 0
  }
  func addGradient<T: Real>(_ w: Whole<T>, _ factor: Double) throws(Failure) {
    let s = w.shape.dimensions, best = try largest(doubles(w.w, w.count, "gram_iteration_conv"), s)
    guard exp(best.log) > threshold, let gram = best.bound else { return }
    let d = try gram.slope(best.log), angles = angles(s, best.f), (o, i, p) = (s[0], s[1], angles.count)
    for r in 0..<o {
      for c in 0..<i {
        for q in 0..<p {
          let slope = d[r, c] * cos(angles[q]) - d[o + r, c] * sin(angles[q])
          w.v[(r * i + c) * p + q] += T(factor * weight * slope)
        }
      }
    }
  }
}
