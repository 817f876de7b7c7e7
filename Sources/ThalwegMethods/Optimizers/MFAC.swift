import ThalwegCore

/// M-FAC: the gradient over the empirical Fisher matrix of the last gradients, without that matrix.
///
///     g ← g + wd·θ;   the oldest of the m kept gradients makes room for g
///     F = damp·I + (1/m)·Σ gᵢ·gᵢᵀ over all m places (unused ones are 0);   u = F⁻¹·g
///     v ← μ·v + (1 − μ)·u;   θ ← θ − lr·v
///
/// The gradients are those of all tensors together: F is the matrix of the model.
///
/// State    the gradients, their inner products in each tensor, v; how many gradients came.
/// Differs  u by the Woodbury formula, u = m·Gᵀ·(m·damp·I + G·Gᵀ)⁻¹·e of the place of g, with a Cholesky factorisation
///          (the original eliminates without pivoting: the same numbers). F is that of the tensors that have a
///          gradient;
///          of one that was absent the gradients that it missed are 0.
/// Source   Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356.
struct MFAC: WholeRule {
  static let method = Method(
    "mfac", .optimizer, "M-FAC: the gradient over the empirical Fisher matrix of the last gradients.",
    rule: """
      g <- g + weight_decay*theta;  g takes the place of the oldest of ngrads gradients
      F = damp*I + (1/ngrads)*sum of g_i g_i' of all tensors together;  u = F^-1 g
      v <- momentum*v + (1 - momentum)*u;  theta <- theta - lr*v
      """,
    source: "Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356",
    parameters: [
      .lr(1e-3), .integer("ngrads", 1024, .within(1, 4096), "gradients kept; 32 to 512 for large models", live: false),
      .number("damp", 1e-5, .above(0), "multiple of the identity in F").forAll,
      .rate("momentum", 0.9, "rate of the average of the update"), .weightDecay(0, "coupled weight decay"),
    ],
    slots: [
      .apart("gradient_0", "the kept gradients, as many as ngrads"),
      .moment("momentum_buffer", "average v of the update"),
      Slot("products", "inner products of the kept gradients of the tensor"),
      Slot("pushes", "the last gradient that the tensor has, by number"),
    ], needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let m = h.integer("ngrads")
    var (products, pushes) = (method.slots[2], method.slots[3])
    (products.count, pushes.count) = (m &* m, 1)
    return (0..<m).map { .apart("gradient_\($0)", "kept gradient \($0)") } + [method.slots[1], products, pushes]
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("pushes")] }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) {
    guard !shape.count.multipliedReportingOverflow(by: h.integer("ngrads")).overflow else {
      throw Failure(Status.shape, "mfac: `ngrads` gradients of \(shape.count) elements are too many")
    }
    try LinearAlgebra.require()
  }
  /// The source does: F may be singular to rounding, when the gradient has its place already.
  static var mayFail: Bool { true }

  let m: Int, momentum: Double
  init(_ h: Hyper, _ c: StepContext) { (m, momentum) = (h.integer("ngrads"), h.momentum) }
  /// Pushes of a tensor are counted modulo this, which float32 holds.
  static let turn = 1 << 20

  /// t.v is u.
  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let v = t.slots[m], (old, new) = (T(momentum), T(1 - momentum))
    for i in 0..<t.count {
      v[i] = old * v[i] + new * t.v[i]
      t.v[i] = v[i]
    }
  }

  static let registered = entry(MFAC.self, source: { (h) throws(Failure) in Window(h) })

  /// The window of gradients, and what F⁻¹·g is of them.
  struct Window: Source {
    static var method: Method { MFAC.method }
    let m: Int
    init(_ h: Hyper) { m = h.integer("ngrads") }
    private var products: Int { m + 1 }
    private var pushes: Int { m + 2 }
    var single: Bool { true }
    var global: Bool { true }

    private struct Push: ElementOperation {
      let decay: Double
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = decay == 0 ? g : g + decay * x
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let count = io.counter(0), next = count % m
      var parts: [(tensor: Int, products: [Double])] = []
      for tensor in io.tensors(where: { _ in true }) {
        var own = io.read(products, of: tensor)
        let last = io.read(pushes, of: tensor).first ?? 0
        let missed = (count - counted(last, most: MFAC.turn)) & (MFAC.turn - 1)
        if missed > 0 {
          let zero = [Double](repeating: 0, count: io.shape(of: tensor).count)
          for k in (1...min(missed, m)).map({ (next + m - $0) % m }) {
            io.fill(k, of: tensor, zero)
            for i in 0..<m { (own[k * m + i], own[i * m + k]) = (0, 0) }
          }
        }
        parts.append((tensor, own))
      }
      io.change(slots: [next], parameters: false) { Push(decay: $0.weight_decay) }
      // places that were never taken are 0, and have no share
      let used = min(count + 1, m), fresh = io.products(next, Array(0..<used)), damp: Double = io.hyper.damp
      try Memory.ask(8 * used * used)
      var K = [Double](repeating: 0, count: used * used), place = [Double](repeating: 0, count: used)
      // those of each tensor stay with it
      for first in stride(from: 0, to: used, by: 4) {
        let some = Array(first..<min(first + 4, used))
        let sums = io.sums(SlotVectors.Products(count: some.count), slots: [next] + some)
        for p in parts.indices {
          for (i, k) in some.enumerated() {
            let x = sums[parts[p].tensor][i]
            (parts[p].products[next * m + k], parts[p].products[k * m + next]) = (x, x)
          }
        }
      }
      for part in parts {
        io.fill(products, of: part.tensor, part.products)
        io.fill(pushes, of: part.tensor, [Double((count + 1) % MFAC.turn)])
      }
      // in the order of their size: that of binding does not matter
      func size(_ products: [Double]) -> Double { (0..<m).reduce(0) { $0 + products[$1 * (m + 1)] } }
      for part in parts.sorted(by: { size($0.products) < size($1.products) }) {
        for i in 0..<used { for k in 0..<used { K[i * used + k] += part.products[i * m + k] } }
      }
      for i in 0..<used { (K[next * used + i], K[i * used + next]) = (fresh[i], fresh[i]) }
      for i in 0..<used { K[i * (used + 1)] += Double(m) * damp }
      place[next] = Double(m)
      let shares = try LinearAlgebra.solvePositive(K, place, used, 1)
      io.setScalar(0, Double(count + 1))
      return .update(io.combination(shares))
    }
  }
}
