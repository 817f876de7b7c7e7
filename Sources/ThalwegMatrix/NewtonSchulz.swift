import ThalwegCore

/// The polar factor of a matrix, by an odd polynomial of it: products only, in the working precision or (f32 alone) in
/// bfloat16, as the original has it: the factor is then right to two or three digits.
///
///     X ← X / (‖X‖ + ε)  or  X / max(‖X‖, ε),  ‖·‖ the Frobenius norm
///     A = XXᵀ (or XᵀX, the smaller one),  X ← (aI + bA + cA²)·X,  once for every triple;
///     after the last triple it repeats, or the set begins again
///
/// `sets` has the lists that have a name, with what they were made for. `simple` is the one triple of Jordan et al.,
/// `quintic` (or `dion`) the five triples of Cesista et al.
///
/// Source   Björck and Bowie, 1971; Jordan et al., 2024; Cesista, 2025; Polar Express: Amsel et al., 2025,
///          arXiv:2505.16932; cans: Grishina et al., 2025, arXiv:2506.10935; aol: Boissin et al., flash-newton-schulz;
///          cubic5: arXiv:2606.00371.
struct NewtonSchulz: Sendable {
  /// What the matrix is divided by, so that no singular value is above one: its Frobenius or spectral norm, or the root
  /// of a bound for every row of A = XXᵀ: Σⱼ|Aᵢⱼ| (aol), ‖A‖ (schatten).
  enum Scaling: Int, Sendable { case frobenius, spectral, aol, schatten }

  /// Three numbers for each of several steps, what comes after the last, and how the matrix is scaled for them.
  struct Coefficients: Sendable {
    let name: String, values: [Double], cycles: Bool, safety: Double, scaling: Scaling
    init(
      _ name: String, _ values: [Double], cycles: Bool = false, safety: Double = 1, scaling: Scaling = .frobenius
    ) {
      (self.name, self.values, self.cycles, self.safety, self.scaling) = (name, values, cycles, safety, scaling)
    }
    /// Those of the name, or the numbers alone: the last triple repeats.
    init(_ values: [Double]) { self = sets.first { $0.values == values } ?? Coefficients("", values) }
  }

  static let simple = [3.4445, -4.7750, 2.0315]
  private static let fiveTriples = [
    4.0848, -6.8946, 2.9270, 3.9505, -6.3029, 2.6377, 3.7418, -5.5913, 2.3037, 2.8769, -3.1427, 1.2046, 2.8366,
    -3.0525, 1.2012,
  ]
  private static let polarExpress = [
    8.156554524902461, -22.48329292557795, 15.878769915207462, 4.042929935166739, -2.808917465908714,
    0.5000178451051316, 3.8916678022926607, -2.772484153217685, 0.5060648178503393, 3.285753657755655,
    -2.3681294933425376, 0.46449024233003106, 2.3465413258596377, -1.7097828382687081, 0.42323551169305323,
  ]
  private static let polarExpressRaw = [
    8.28721201814563, -23.595886519098837, 17.300387312530933, 4.107059111542203, -2.9478499167379106,
    0.5448431082926601, 3.9486908534822946, -2.908902115962949, 0.5518191394370137, 3.3184196573706015,
    -2.488488024314874, 0.51004894012372, 2.300652019954817, -1.6689039845747493, 0.4188073119525673,
    1.891301407787398, -1.2679958271945868, 0.37680408948524835, 1.8750014808534479, -1.2500016453999487,
    0.3750001645474248, 1.875, -1.25, 0.375,
  ]
  /// The first `count` triples for a matrix that is `safety` times as large.
  private static func safer(_ values: [Double], _ safety: Double, first count: Int) -> [Double] {
    let powers = [safety, safety * safety * safety, safety * safety * safety * safety * safety]
    return values.indices.map { $0 < 3 * count ? values[$0] / powers[$0 % 3] : values[$0] }
  }
  private static let cans = [
    8.4703, -25.1081, 18.6293, 4.1828, -3.1087, 0.5806, 3.9619, -2.9541, 0.5630, 3.2866, -2.4647, 0.5074, 2.2737,
    -1.6447, 0.4162,
  ]
  private static let aol = [
    4.0098, -7.0585, 2.4635, 3.4585, -5.5479, 2.5959, 2.7573, -3.2939, 1.4254, 2.7215, -3.0494, 1.3169,
  ]
  private static let aol2 = [
    4.6051, -9.6552, 5.6769, 4.7505, -6.0861, 2.1790, 2.7763, -2.3190, 0.5523, 2.4231, -2.2861, 0.8193,
  ]
  private static let deepseek: [Double] =
    [[Double]](repeating: simple, count: 8).flatMap { $0 } + [2, -1.5, 0.5, 2, -1.5, 0.5]
  private static let cubic5 = [
    3.3656576, -3.3420992, 0, 2.5744352, -1.4957376, 0, 2.5368962, -1.4312570, 0, 2.4418906, -1.2764040, 0, 2.2230472,
    -0.9630650, 0,
  ]
  /// The sets that have a name. A list that has two is written with the first.
  static let sets: [Coefficients] = [
    .init("simple", simple, cycles: true), .init("cubic", [1.5, -0.5, 0], cycles: true),
    .init("quintic", fiveTriples, cycles: true), .init("dion", fiveTriples, cycles: true),
    .init("polar_express", polarExpress, safety: 1.02), .init("polar_express_raw", polarExpressRaw),
    .init("polar_express_8", safer(polarExpressRaw, 1.01, first: 7)),
    .init("polar_express_105", Array(safer(polarExpressRaw, 1.05, first: 5).prefix(15))), .init("cans", cans),
    .init("aol", aol, cycles: true, scaling: .aol), .init("aol_2", aol2, cycles: true, scaling: .aol),
    .init("deepseek", deepseek), .init("cubic5", cubic5),
  ]
  static func set(_ name: String) -> [Double] { sets.first { $0.name == name }?.values ?? simple }
  static let presets: [(name: String, values: [Double])] = sets.map { ($0.name, $0.values) }

  let coefficients: Coefficients
  let steps: Int, eps: Double, clamp: Bool, safety: Double, scaling: Scaling, narrow: Bool
  /// The Gram form, and before which iterations it multiplies out.
  let gram: Bool, resets: [Double]

  static let precision = Parameter.choice(
    "ns_precision", ["working", "bf16"], "precision of the products: the parameters', or bfloat16 (f32 only)",
    live: false)
  /// The two hyper-parameters of every rule that orthogonalises.
  static func parameters(_ coefficients: String = "simple", steps: Int = 5) -> [Parameter] {
    [
      .integer("ns_steps", steps, .within(1, 99), "Newton-Schulz iterations"),
      .list(
        "ns_coefficients", set(coefficients),
        "a, b, c of the polynomial, three numbers for each iteration, or the name of such a list", presets: presets),
    ]
  }

  init(_ h: Hyper) { self.init(h, eps: h.eps, clamp: h.is("eps_mode", "clamp")) }

  init(_ h: Hyper, eps: Double, clamp: Bool) {
    (coefficients, steps) = (Coefficients(h.list("ns_coefficients")), h.integer("ns_steps"))
    (self.eps, self.clamp, narrow) = (eps, clamp, h.is("ns_precision", "bf16"))
    safety = h.has("safety") ? h.safety : coefficients.safety
    // the choice has the word for the set's own before the others; other methods have a scaling of another kind
    var own = 0
    if let p = h.parameters.first(where: { $0.name == "scaling" }), case .choice(let words) = p.kind, words[0] == "set"
    {
      own = h.integer("scaling")
    }
    scaling = Scaling(rawValue: own - 1) ?? coefficients.scaling
    (gram, resets) = (h.is("form", "gram"), h.list("resets"))
  }

  /// The default triple, where nothing can be chosen.
  init(simpleSteps: Int) {
    (coefficients, steps) = (Coefficients(NewtonSchulz.simple), simpleSteps)
    (eps, clamp, narrow, safety, scaling, gram, resets) = (1e-7, false, false, 1, .frobenius, false, [])
  }
  /// Bytes of work space for it.
  static func room(_ rows: Int, _ columns: Int, _ size: Int) -> Int { matrices(rows, columns, size, gram: false) }

  /// Checks `ns_coefficients`: 3 numbers, or 3 for each of several steps.
  static func check(_ h: Hyper, _ method: String) throws(Failure) {
    let c = h.list("ns_coefficients")
    guard c.count >= 3, c.count % 3 == 0, c.allSatisfy(\.isFinite) else {
      throw Failure(
        Status.range, "\(method): `ns_coefficients` must be three numbers, or three for each step, got \(c.count)")
    }
    guard h.list("resets").allSatisfy({ $0 >= 1 && $0 == $0.rounded() && $0.isFinite }) else {
      throw Failure(Status.range, "\(method): `resets` must hold whole numbers of at least 1")
    }
  }

  /// Bytes of work space for a matrix of elements of `size` bytes.
  static func space(_ h: Hyper, _ rows: Int, _ columns: Int, _ size: Int) -> Int {
    let own = matrices(rows, columns, size, gram: h.is("form", "gram"))
    return h.is("ns_precision", "bf16") && size == 4
      ? own + BF16Products.space(lines: rows &+ columns, inner: max(rows, columns)) : own
  }
  private static func matrices(_ rows: Int, _ columns: Int, _ size: Int, gram: Bool) -> Int {
    let side = min(rows, columns)
    return (gram ? 5 : 2) * aligned(side &* side &* size) + aligned(rows &* columns &* size)
  }

  /// x ← scale·(polar factor of x), in place; x is (rows, columns).
  func apply<T: Real>(
    _ x: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, scale: Double, _ space: UnsafeMutableRawPointer
  ) throws(Failure) {
    let side = min(rows, columns), long = max(rows, columns), count = rows &* columns
    let size = MemoryLayout<T>.stride, square = aligned(side &* side &* size)
    func matrix(_ k: Int) -> UnsafeMutablePointer<T> { (space + k * square).assumingMemoryBound(to: T.self) }
    let small = gram ? 5 : 2
    let other = matrix(small)
    let products = Products<T>(narrow: narrow, space + NewtonSchulz.matrices(rows, columns, size, gram: gram))
    if gram {
      try divide(x, rows, columns, into: other, matrix(0), products)
      try multiplyOut(other, rows, columns, (0..<5).map(matrix), into: x, products)
      return Flat.scale(x, by: scale, into: x, count)
    }
    let (a, p) = (matrix(0), matrix(1))
    // The matrix goes back and forth between x and `other`, and begins where it must to end in x.
    var (from, to) = steps % 2 == 0 ? (x, other) : (other, x)
    try divide(x, rows, columns, into: from, a, products)
    for k in 0..<steps {
      let c = triple(k)
      try products.gram(from, transposed: rows > columns, into: a, side, long)
      try products.gram(a, symmetric: true, into: p, side, side, alpha: c.2, beta: c.1, base: UnsafePointer(a))
      for i in 0..<side { p[i &* (side &+ 1)] += T(c.0) }
      let alpha = k == steps - 1 ? scale : 1
      if rows <= columns {
        try products.multiply(p, from, into: to, rows, columns, rows, alpha: alpha)
      } else {
        try products.multiply(from, p, into: to, rows, columns, columns, alpha: alpha)
      }
      swap(&from, &to)
    }
  }

  /// The coefficients of step k.
  func triple(_ k: Int) -> (Double, Double, Double) {
    let v = coefficients.values, count = v.count / 3
    let c = 3 * (coefficients.cycles ? k % count : min(k, count - 1))
    return (v[c], v[c + 1], v[c + 2])
  }

  /// out ← x, scaled such that no singular value is (much) above one; `a` is room for the Gram matrix.
  private func divide<T: Real>(
    _ x: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, into out: UnsafeMutablePointer<T>,
    _ a: UnsafeMutablePointer<T>, _ products: Products<T>
  ) throws(Failure) {
    let side = min(rows, columns), count = rows &* columns
    switch scaling {
    case .frobenius, .spectral:
      let norm =
        safety
        * (scaling == .frobenius ? Flat.norm(x, count) : try LinearAlgebra.SVD(x, rows, columns).s.first ?? 0)
      Flat.scale(x, by: 1 / (clamp ? max(norm, eps) : norm + eps), into: out, count)
    case .aol, .schatten:
      // squares may leave the range: a power of two changes no digit
      let size = Flat.norm(x, count), isLarge = size > 1e12 && size.isFinite
      if isLarge { Flat.scale(x, by: Double(sign: .plus, exponent: -size.exponent, significand: 1), into: out, count) }
      try divide(byRows: isLarge ? out : x, rows, columns, into: out, a, products)
    }
  }
  /// The same by a bound for every row.
  private func divide<T: Real>(
    byRows x: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, into out: UnsafeMutablePointer<T>,
    _ a: UnsafeMutablePointer<T>, _ products: Products<T>
  ) throws(Failure) {
    let side = min(rows, columns)
    try products.gram(x, transposed: rows > columns, into: a, side, max(rows, columns))
    let whole = Flat.norm(a, side &* side)
    let factors = (0..<side).map { i in
      let bound = scaling == .schatten ? whole : (0..<side).reduce(0) { $0 + abs(Double(a[i &* side &+ $1])) }
      return T(1 / max(bound, eps).squareRoot())
    }
    for i in 0..<rows {
      for j in 0..<columns { out[i &* columns &+ j] = x[i &* columns &+ j] * factors[rows <= columns ? i : j] }
    }
  }

  /// The Gram form: the polynomials act on R = XXᵀ and are collected in Q, with which X is multiplied before a reset
  /// and at the end. `from` is scaled; the result lies in `out`.
  private func multiplyOut<T: Real>(
    _ from: UnsafeMutablePointer<T>, _ rows: Int, _ columns: Int, _ room: [UnsafeMutablePointer<T>],
    into out: UnsafeMutablePointer<T>, _ products: Products<T>
  ) throws(Failure) {
    let side = min(rows, columns), long = max(rows, columns), square = side &* side
    let (r, p) = (room[0], room[1])
    var (q, next) = (room[2], room[3]), empty = true
    let half = room[4]
    func take(_ x: UnsafeMutablePointer<T>, into y: UnsafeMutablePointer<T>) throws(Failure) {
      if rows <= columns {
        try products.multiply(q, x, into: y, rows, columns, rows, alpha: 1)
      } else {
        try products.multiply(x, q, into: y, rows, columns, columns, alpha: 1)
      }
    }
    try products.gram(from, transposed: rows > columns, into: r, side, long)
    for k in 0..<steps {
      if !empty, resets.contains(Double(k)) {
        try take(from, into: out)
        from.update(from: out, count: rows &* columns)
        try products.gram(from, transposed: rows > columns, into: r, side, long)
        empty = true
      }
      let c = triple(k)
      try products.gram(r, into: p, side, side, alpha: c.2, beta: c.1, base: UnsafePointer(r))
      for i in 0..<side { p[i &* (side &+ 1)] += T(c.0) }
      if empty {
        q.update(from: p, count: square)
        empty = false
      } else {
        try products.multiply(p, q, into: next, side, side, side, alpha: 1)
        swap(&q, &next)
      }
      try products.multiply(p, r, into: half, side, side, side, alpha: 1)
      try products.multiply(half, p, into: r, side, side, side, alpha: 1)
    }
    try take(from, into: out)
  }
}
