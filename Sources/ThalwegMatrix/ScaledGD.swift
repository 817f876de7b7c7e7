import ThalwegCore

/// Scaled gradient descent for the factors of a low-rank matrix: the gradient over the Gram matrix of a factor.
///
///     symmetric, Z·Zᵀ:  Z ← Z − lr·g_Z·(Zᵀ·Z + lam·I)⁻¹,   every tensor as (n, r)
///     consecutive, L·Rᵀ:  L ← L − lr·g_L·(Rᵀ·R + lam·I)⁻¹,   R ← R − lr·g_R·(Lᵀ·L + lam·I)⁻¹, both with the old
///     factors;
///         tensors 1 and 2 are a pair, 3 and 4, and so on
///
/// State    none; within a step the gradient (consecutive).
/// Errors   TW_ERROR_SHAPE where r is above 30,000, where two of a pair have no common r, or one has no gradient or no
///          other.
/// Differs  a singular Gram matrix without damping has its pseudo-inverse.
/// Source   Tong, Ma, Chi, 2020, arXiv:2005.08898; Xu, Shen, Chi, Ma, 2023, arXiv:2302.01186.
struct ScaledGD: WholeRule {
  static let method = Method(
    "scaled_gd", .optimizer, "Scaled gradient descent for the factors of a low-rank matrix Z Z' or L R'.",
    rule: """
      symmetric: Z <- Z - lr*g (Z'Z + lam*I)^-1, Z as (n, r)
      consecutive: L <- L - lr*gL (R'R + lam*I)^-1;  R <- R - lr*gR (L'L + lam*I)^-1, both with the old factors
      """,
    source: "Tong, Ma, Chi, 2020, arXiv:2005.08898; Xu, Shen, Chi, Ma, 2023, arXiv:2302.01186",
    parameters: [
      .lr(0.5, .between(0, 1, lowOpen: false, highOpen: true)),
      .number("lam", 0, .atLeast(0), "damping; above 0 where the rank is over-estimated"),
      .choice(
        "pairs", ["symmetric", "consecutive"],
        "every tensor is a factor Z, or tensors 1 and 2, 3 and 4, ... are L and R",
        live: false),
    ], needsFinite: true)

  static let registered = entry(
    ScaledGD.self, source: { (h) throws(Failure) in h.is("pairs", "consecutive") ? Pairs(h) : nil })

  /// The gradients of pairs, each over the Gram matrix of the other factor.
  struct Pairs: Source {
    static var method: Method { ScaledGD.method }
    init(_ h: Hyper) {}
    private let gradient = 0, factor = 1
    var slots: [Slot] {
      [.temporary("gradient", "the gradient, then the move"), .temporary("factor", "the parameters")]
    }
    var single: Bool { true }
    var global: Bool { true }

    private struct Save: ElementOperation {
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = g
        s[1] = x
      }
    }
    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let all = io.tensors { _ in true }
      for k in all {
        let other = k ^ 1, (shape, mate) = (io.shape(of: k), all.contains(other) ? io.shape(of: other) : nil)
        guard let mate, mate.columns == shape.columns else {
          throw Failure(
            Status.shape,
            "scaled_gd: \(io.label(k)) must have a partner (n, \(shape.columns)) with a gradient at its side, got "
              + (mate.map { "(\($0.rows), \($0.columns))" } ?? "none"))
        }
      }
      io.change(Save(), slots: [gradient, factor], parameters: false)
      var moves: [(Int, [Double])] = []
      for k in all {
        let shape = io.shape(of: k), mate = io.shape(of: k ^ 1), r = shape.columns
        let inverse = try ScaledGD.inverse(
          io.read(factor, of: k ^ 1), mate.rows, r, io.hyper(of: k).lam)
        var move = [Double](repeating: 0, count: shape.count)
        try LinearAlgebra.multiply(
          io.read(gradient, of: k), transposed: false, inverse, transposed: false, into: &move, shape.rows, r, r)
        moves.append((k, move))
      }
      for (k, move) in moves { io.fill(gradient, of: k, move) }
      return .update(io.gradient(in: gradient))
    }
  }

  /// (Zᵀ·Z + lam·I)⁻¹, or the pseudo-inverse where lam is 0.
  private static func inverse(_ z: [Double], _ n: Int, _ r: Int, _ lam: Double) throws(Failure) -> [Double] {
    try Memory.ask(8 * 3 * r * r)
    var gram = [Double](repeating: 0, count: r * r)
    try LinearAlgebra.gram(z, transposed: true, into: &gram, r, n)
    let eigen = try LinearAlgebra.Eigen(gram, r)
    let floor = (eigen.values.first ?? 0) * Double(max(n, r)) * Double.ulpOfOne
    try gram.withUnsafeMutableBufferPointer { (p) throws(Failure) in
      guard let base = p.baseAddress else { return }
      try eigen.compose(base) { share($0, lam, floor) }
    }
    return gram
  }
  private static func share(_ value: Double, _ lam: Double, _ floor: Double) -> Double {
    let x = max(value, 0) + lam
    return x > (lam > 0 ? 0 : floor) ? 1 / x : 0
  }

  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    try matrix(shape, "scaled_gd")
    guard shape.columns <= Kronecker.most else {
      throw Failure(
        Status.shape,
        "scaled_gd: a factor is (n, r), and r at most \(Kronecker.most), got (\(shape.rows), \(shape.columns)); "
          + "bind its transpose, or use `route`")
    }
  }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    aligned(shape.columns &* shape.columns &* size) &+ shape.count &* size
  }

  let lam: Double, paired: Bool
  init(_ h: Hyper, _ c: StepContext) { (lam, paired) = (h.lam, h.is("pairs", "consecutive")) }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    if paired { return }
    let (n, r) = (w.rows, w.columns)
    let gram = w.workspace.assumingMemoryBound(to: T.self)
    let g = (w.workspace + aligned(r &* r &* MemoryLayout<T>.stride)).assumingMemoryBound(to: T.self)
    try LinearAlgebra.gram(w.w, transposed: true, into: gram, r, n)
    let eigen = try LinearAlgebra.Eigen(gram, r)
    let floor = (eigen.values.first ?? 0) * Double(max(n, r)) * Double(T.ulpOfOne)
    try eigen.compose(gram) { ScaledGD.share($0, lam, floor) }
    g.update(from: w.v, count: w.count)
    try LinearAlgebra.multiply(g, gram, into: w.v, n, r, r)
  }
}
