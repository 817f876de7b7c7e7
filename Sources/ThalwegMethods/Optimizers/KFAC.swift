import Glibc
import ThalwegCore

/// What K-FAC and its inverse-free relatives share: factors of every layer from its inputs and the gradients at its
/// pre-activations.
///
/// X (rows, in) and G (rows, out) as for `tract`; N samples, the rows unless `batch_size` says otherwise (convolutions:
/// rows are the positions of all samples). With loss=mean a gradient of a sample is N·G.
struct LayerFactors {
  static let parameters: [Parameter] = [
    .choice("loss", ["mean", "sum"], "whose gradients the host answers with").forAll,
    .maybe("batch_size", .above(0), "samples; none: the rows of the activations").forAll,
    .flag("spatial_average", false, "inputs are averaged over the positions of a sample, squared, not summed").forAll,
  ]
  /// Slots of a layer beside its momentum: two lasting matrices and what is made of them, the factors of this step, and
  /// how often they came.
  static func count(_ shape: Shape) -> (inputs: Int, outputs: Int) {
    LayerAnswer.takes(shape) && shape.columns <= LayerFactors.most && shape.rows <= LayerFactors.most
      ? (shape.columns, shape.rows) : (0, 0)
  }
  /// Sides that LAPACK, which counts in 32 bits, takes.
  static let most = 30_000
  static func takes(_ s: Shape) -> Bool { count(s).inputs > 0 }

  /// Takes E[a·aᵀ] (in, in) and E[g·gᵀ] (out, out) into two slots.
  struct Statistics: SlotWork {
    let x, g: HostMatrix, h: Hyper, scale: Double, narrow: Bool
    func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) throws(Failure) {
      let (n, m, rows) = (x.columns, g.columns, Double(max(1, x.rows))), (a, b) = (slots[0], slots[1])
      guard x.rows > 0 else {
        a.update(repeating: 0, count: n &* n)
        return b.update(repeating: 0, count: m &* m)
      }
      let samples = h.has("batch_size") ? h.batch_size : rows
      // T positions a sample: A over T² too
      let positions = h.spatial_average ? rows / samples : 1
      let each = h.is("loss", "mean") ? samples * scale : scale
      let room = narrow ? BF16Products.space(lines: 2 &* max(n, m), inner: x.rows) : 0
      try Memory.ask(8 &* x.rows &* (n &+ m))
      let space = try Memory(room, .current, zeroed: false)
      defer { withExtendedLifetime(space) {} }
      let products = Products<T>(narrow: narrow, space.base)
      try products.gram(
        x.values.map { T($0) }, transposed: true, into: a, n, x.rows, alpha: 1 / samples / (positions * positions))
      try products.gram(
        g.values.map { T(each * $0) }, transposed: true, into: b, m, g.rows, alpha: 1 / rows)
    }
  }
  /// op(a)·op(b), (m, n); `first` and `second` say which is transposed.
  static func product(
    _ a: [Double], _ b: [Double], _ m: Int, _ n: Int, _ k: Int, first: Bool = false, second: Bool = false
  ) throws(Failure) -> [Double] {
    try Memory.ask(8 * m * n)
    var c = [Double](repeating: 0, count: m * n)
    try LinearAlgebra.multiply(a, transposed: first, b, transposed: second, into: &c, m, n, k)
    return c
  }
  /// left·g·right, g (out, in).
  static func sandwich(_ left: [Double], _ g: [Double], _ right: [Double], _ out: Int, _ inputs: Int) throws(Failure)
    -> [Double]
  {
    try product(try product(left, g, out, inputs, out), right, out, inputs, inputs)
  }
}

/// K-FAC: the Fisher matrix of every layer as the Kronecker product of two small ones.
///
///     every factor_update_steps: A ← E[a·aᵀ] (in, in), B ← E[g·gᵀ] (out, out); the first as they are, later averages
///     every inv_update_steps, inverse: π = √((tr A/in)/(tr B/out)), Aᵢ = (A + π·√λ·I)⁻¹, Bᵢ = (B + √λ/π·I)⁻¹
///                             eigen: A = Qa·diag(wa)·Qaᵀ, B alike, negative values 0
///     V = Bᵢ·G·Aᵢ, or Qb·((QbᵀG·Qa)/(wb·waᵀ + λ))·Qaᵀ
///     ν = min(1, √(kl_clip/|Σ lr²·⟨V, G⟩|)) over the layers;   u = ν·V + wd·θ;   buf ← μ·buf + u;   θ ← θ − lr·buf
///
/// a: inputs of the layer; g: gradients of the loss of each sample at its pre-activations (labels drawn from the model:
/// the Fisher matrix; the true ones: the empirical one). Layers are tensors of rank 2 or more that are not marked as
/// bias, norm or embedding: all others step with u = g + wd·θ. A bias counts with its layer where the host binds them
/// as one tensor (out, in + 1), and appends 1 to the inputs.
///
/// State    momentum, A, B, their inverses or eigenvectors, for each layer. All but the momentum are kept exactly: in
///          16 bits a factor is not positive definite any more, and an inverse is wrong where it is small. `unknown`:
///          steps of layers without statistics yet, which are plain ones.
/// Errors   TW_ERROR_SHAPE where X or G do not fit; TW_ERROR_NUMERIC: a factor that is not positive definite.
/// Differs  convolutions: A is a sum over positions divided by N, B by N·T, with `batch_size` = N (KFC); A by T² too
///          with
///          `spatial_average`, as other codes have it. ν counts and scales layers alone. λ = 0 is refused.
/// Source   Martens, Grosse, 2015, arXiv:1503.05671; the clip and the common defaults: kfac_pytorch.
struct KFAC: WholeRule {
  static let method = Method(
    "kfac", .optimizer, "K-FAC: the Fisher matrix of every layer as the Kronecker product of two small ones.",
    rule: """
      A <- E[a a'], B <- E[g g'], averaged;  Ai = (A + pi*sqrt(damping) I)^-1, Bi = (B + sqrt(damping)/pi I)^-1
      V = Bi G Ai;  nu = min(1, sqrt(kl_clip/|sum lr^2*<V, G>|));  u = nu*V + weight_decay*theta
      buf <- momentum*buf + u;  theta <- theta - lr*buf
      tensors that are no layers: u = G + weight_decay*theta, out of the sum and without nu
      """,
    source: "Martens, Grosse, 2015, arXiv:1503.05671",
    parameters: [
      .lr(0.1), .number("damping", 1e-3, .above(0), "Tikhonov damping").forAll,
      .rate("factor_decay", 0.95, "rate of the averages of the factors").forAll,
      .integer("factor_update_steps", 1, .atLeast(1), "steps between factors").forAll,
      .integer("inv_update_steps", 1, .atLeast(1), "steps between inverses").forAll,
      Parameter.number(
        "kl_clip", 1e-3, .above(0), "bound of the change of the model; none: not bounded", optional: true
      )
      .forAll,
      .rate("momentum", 0.9, "momentum behind the preconditioner"), .weightDecay(0, "decay, behind the preconditioner"),
      .flag("pi_damping", true, "damping by the traces of both factors").forAll,
      .choice("method", ["inverse", "eigen"], "how the factors are inverted", live: false), .products,
    ] + LayerFactors.parameters,
    slots: [
      .moment("momentum_buffer", "momentum"), Slot("inputs_factor", "A"), Slot("outputs_factor", "B"),
      Slot("inputs_inverse", "inverse or eigenvectors of A"), Slot("outputs_inverse", "those of B"),
      Slot("inputs_values", "eigenvalues of A"), Slot("outputs_values", "those of B"),
      .temporary("inputs_now", "A of this step"), .temporary("outputs_now", "B of this step"),
      Slot("updates", "how often factors came"),
    ], requests: "activations", needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let (n, m) = LayerFactors.count(shape), values = h.is("method", "eigen")
    for (k, count) in [n * n, m * m, n * n, m * m, values ? n : 0, values ? m : 0, n * n, m * m, 1].enumerated() {
      list[k + 1].count = count
    }
    return list
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("steps"), Scalar("unknown", tells: true)] }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }

  let momentum: Double, decay: Double
  init(_ h: Hyper, _ c: StepContext) { (momentum, decay) = (h.momentum, c.weightDecay) }
  func apply<T: Real>(_ t: Whole<T>) { Momentum.apply(t, momentum, decay) }

  static let registered = entry(KFAC.self, source: { (h) throws(Failure) in Factors(h) })

  struct Factors: Source {
    static var method: Method { KFAC.method }
    let eigen: Bool
    init(_ h: Hyper) { eigen = h.is("method", "eigen") }
    private let newA = 7, newB = 8, gradient = 10, preconditioned = 11
    var slots: [Slot] {
      [
        .temporary("gradient", "the gradient of the step, preconditioned at its end"),
        .temporary("preconditioned", "V"),
      ]
    }
    var global: Bool { true }  // one clip for all layers
    func most(_ tensors: Int) -> Int { tensors + 1 }
    var kinds: [Request.Kind] { [.activations] }
    func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure) {
      try LayerAnswer.check(answer, io.tensors(where: LayerFactors.takes), phase, io, "kfac")
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let layers = io.tensors(where: LayerFactors.takes), h = io.hyper, step = io.counter(0)
      let due = step % max(1, h.integer("factor_update_steps")) == 0, narrow = h.is("products", "bf16")
      if phase == 0 { io.change(SaveGradient(), slots: [gradient], parameters: false) }
      if phase > 0, phase <= layers.count, let x = io.answer.first, let g = io.answer.second {
        let take = LayerFactors.Statistics(x: x, g: g, h: h, scale: io.gradientScale, narrow: narrow)
        try io.work(take, on: layers[phase - 1], slots: [newA, newB])
      }
      if due, phase < layers.count { return .ask(Ask(.activations, index: layers[phase], count: layers.count)) }
      // nothing lasting changes before all of it is known
      let invert = step % max(1, h.integer("inv_update_steps")) == 0
      var found: [(layer: Int, inverses: [(slot: Int, values: [Double])])] = [], gains: [Double] = []
      for layer in layers {
        let work = Precondition(
          h: h, lr: io.hyper(of: layer).lr, due: due, invert: invert, eigen: eigen, narrow: narrow)
        guard let made = try io.work(work, on: layer, slots: Array(1...preconditioned)) else {
          io.tally(1)
          continue
        }
        gains.append(made.gain)
        found.append((layer, made.inverses))
      }
      // in the order of their size: that of binding does not matter
      let sum = gains.sorted().reduce(0, +)
      let nu = h.has("kl_clip") && sum != 0 ? min(1, (h.kl_clip / abs(sum)).squareRoot()) : 1
      for (layer, inverses) in found {
        for (slot, values) in inverses { io.fill(slot, of: layer, values) }
        try io.work(Settle(due: due, nu: nu), on: layer, slots: Array(1...preconditioned))
      }
      io.setScalar(0, Double(step + 1))
      return .update(io.gradient(in: gradient))
    }

    /// The slots of a layer, from the first factor on.
    private struct Layer<T: Real> {
      let A, B, Ai, Bi, wa, wb, newA, newB, updates, gradient, V: UnsafeMutablePointer<T>, n: Int, m: Int
      init(_ s: [UnsafeMutablePointer<T>], _ shape: Shape) {
        (A, B, Ai, Bi, wa, wb) = (s[0], s[1], s[2], s[3], s[4], s[5])
        (newA, newB, updates, gradient, V) = (s[6], s[7], s[8], s[9], s[10])
        (n, m) = (shape.columns, shape.rows)
      }
    }

    /// Makes V; the factors of this step become the averages that will stay. Returns lr²·⟨V, G⟩ and what else changes;
    /// nil without statistics.
    private struct Precondition: SlotWork {
      let h: Hyper, lr: Double, due, invert, eigen, narrow: Bool
      func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) throws(Failure)
        -> (inverses: [(slot: Int, values: [Double])], gain: Double)?
      {
        let l = Layer(slots, shape), (n, m) = (l.n, l.m), known = Double(l.updates[0])
        guard due || known > 0 else { return nil }
        if due, known > 0 {
          let keep: Double = h.factor_decay
          Flat.blend(1 - keep, l.newA, keep, l.A, into: l.newA, n &* n)
          Flat.blend(1 - keep, l.newB, keep, l.B, into: l.newB, m &* m)
        }
        let (a, b) = due ? (l.newA, l.newB) : (l.A, l.B), size = MemoryLayout<T>.stride
        var (left, right, va, vb) = (l.Bi, l.Ai, l.wa, l.wb), inverses: [(slot: Int, values: [Double])] = []
        let square = (aligned(n &* n &* size), aligned(m &* m &* size)), half = aligned(m &* n &* size)
        let sides = (aligned(n &* size), aligned(m &* size)), side = max(n, m)
        let own = 2 &* half &+ square.0 &+ square.1 &+ sides.0 &+ sides.1
        let space = try Memory(
          own &+ (narrow ? BF16Products.space(lines: 2 &* side, inner: side) : 0), .current, zeroed: false)
        defer { withExtendedLifetime(space) {} }
        var free = space.base
        func room(_ bytes: Int) -> UnsafeMutablePointer<T> {
          defer { free += bytes }
          return free.assumingMemoryBound(to: T.self)
        }
        let (first, second) = (room(half), room(half))
        if invert || known == 0 {
          (right, left, va, vb) = (room(square.0), room(square.1), room(sides.0), room(sides.1))
          func set(_ slot: Int, _ values: [Double], _ p: UnsafeMutablePointer<T>) {
            for i in values.indices { p[i] = T(values[i]) }
            inverses.append((slot, values))
          }
          if eigen {
            let ea = try LinearAlgebra.Eigen(a, n), eb = try LinearAlgebra.Eigen(b, m)
            set(3, ea.vectors, right)
            set(4, eb.vectors, left)
            set(5, ea.values.map { max($0, 0) }, va)
            set(6, eb.values.map { max($0, 0) }, vb)
          } else {
            let ta = (0..<n).reduce(0) { $0 + Double(a[$1 &* (n &+ 1)]) }
            let tb = (0..<m).reduce(0) { $0 + Double(b[$1 &* (m &+ 1)]) }
            let pi = h.pi_damping && ta > 0 && tb > 0 ? ((ta / Double(n)) / (tb / Double(m))).squareRoot() : 1
            let root = (h.damping as Double).squareRoot()
            set(3, try inverse(a, n, pi * root), right)
            set(4, try inverse(b, m, root / pi), left)
          }
        }
        let products = Products<T>(narrow: narrow, space.base + own)
        if eigen {
          try products.multiply(left, transposed: true, l.gradient, into: first, m, n, m)
          try products.multiply(first, right, into: second, m, n, n)
          let damping: Double = h.damping
          for i in 0..<m {
            for j in 0..<n { second[i &* n &+ j] /= T(Double(vb[i]) * Double(va[j]) + damping) }
          }
          try products.multiply(left, second, into: first, m, n, m)
          try products.multiply(first, transposed: false, right, transposed: true, into: l.V, m, n, n)
        } else {
          try products.multiply(left, l.gradient, into: first, m, n, m)
          try products.multiply(first, right, into: l.V, m, n, n)
        }
        guard Flat.isFinite(l.V, m &* n) else {
          throw Failure(
            Status.numeric, "kfac: the preconditioned gradient is beyond the range of its type; raise `damping`")
        }
        return (inverses, lr * lr * Flat.dot(l.V, l.gradient, m &* n))
      }

      private func inverse<T: Real>(
        _ a: UnsafeMutablePointer<T>, _ n: Int, _ shift: Double
      ) throws(Failure) -> [Double] {
        try Memory.ask(8 &* n &* n)
        var damped = (0..<(n &* n)).map { Double(a[$0]) }
        for k in 0..<n { damped[k &* (n &+ 1)] += shift }
        return try LinearAlgebra.invertPositive(damped, n)
      }
    }

    private struct Settle: SlotWork {
      let due: Bool, nu: Double
      func callAsFunction<T: Real>(_ slots: [UnsafeMutablePointer<T>], _ shape: Shape) throws(Failure) {
        let l = Layer(slots, shape)
        if due {
          l.A.update(from: l.newA, count: l.n &* l.n)
          l.B.update(from: l.newB, count: l.m &* l.m)
          l.updates[0] = T(min(Double(l.updates[0]) + 1, 0x1p52))
        }
        Flat.scale(l.V, by: nu, into: l.gradient, l.m &* l.n)
      }
    }
  }
}

/// SINGD: natural gradient without inverses, by multiplicative updates of the roots of both factors.
///
///     every T steps, from the old K, C:  HK = KᵀUK, HC = CᵀGC;  U = E[a·aᵀ], G = E[g·gᵀ] of the layer
///         ikfac nK = s·(HK + λ·KᵀK − I), nC alike;   ingd nK = s·(tr HC/out·HK + λ·tr CᵀC/out·KᵀK − I), and
///         nC = s·(tr HK/in·HC + λ·tr KᵀK/in·CᵀC − I);   s = ½, times 1 − α₁ with normalize_lr_cov
///         mK ← α₁·mK + nK;   K ← K − lr_cov·K·mK;   C alike;   normalize_lr_cov: lr_cov/max(1, max|m|) for each
///     u = C·Cᵀ·g·K·Kᵀ + wd·θ;   buf ← μ·buf + u;   θ ← θ − lr·buf
///
/// K and C start as the identity; diag keeps diagonals alone. Layers and answers are those of `kfac`; all other tensors
/// step with u = g + wd·θ.
///
/// State    momentum, K, C, mK, mC for each layer; there are no inverses, and 16 bits are enough for all of them.
/// Errors   TW_ERROR_SHAPE where X or G do not fit; TW_ERROR_NUMERIC: a root that is not finite (lr_cov·|m| of 1 or
///          more).
/// Differs  other structures (blocks, hierarchical, Toeplitz) are not carried. The authors' schedule of lr_cov is
///          written as one; so is a weight decay that starts late.
/// Source   Lin, Duruisseaux, Leok, Nielsen, Khan, Schmidt, 2023, arXiv:2302.09738; Lin et al., 2023, arXiv:2312.05705.
struct SINGD: WholeRule {
  static let method = Method(
    "singd", .optimizer, "Natural gradient without inverses, by multiplicative updates of the roots of both factors.",
    rule: """
      HK = K'U K, HC = C'G C;  ikfac: nK = (HK + damping*K'K - I)/2
      ingd: nK = (tr HC/out*HK + damping*tr(C'C)/out*K'K - I)/2;  mK <- alpha1*mK + nK;  K <- K - lr_cov*K mK;  C alike
      u = C C'g K K' + weight_decay*theta;  buf <- momentum*buf + u;  theta <- theta - lr*buf
      """,
    source: "Lin et al., 2023, arXiv:2302.09738; Lin et al., 2023, arXiv:2312.05705",
    parameters: [
      .lr(1e-3), .rate("momentum", 0.9, "momentum behind the preconditioner"),
      .number("damping", 1e-3, .atLeast(0), "lambda").forAll,
      .maybe(
        "alpha1", .between(0, 1, lowOpen: false, highOpen: true),
        "rate of the momentum of the roots; none: 0.5, 0 for ikfac"
      ).forAll,
      .number("lr_cov", 1e-2, .above(0), "step of the roots").forAll,
      .weightDecay(0, "decay, behind the preconditioner"),
      .integer("T", 1, .atLeast(1), "steps between updates of the roots").forAll,
      .choice("variant", ["ingd", "ikfac"], "coupled by traces, or not").forAll,
      .choice("structure", ["dense", "diag"], "of the roots", live: false),
      .flag("normalize_lr_cov", false, "shorten steps of the roots that are too long").forAll,
    ] + LayerFactors.parameters,
    slots: [
      .moment("momentum_buffer", "momentum"), .apart("inputs_root", "K"), .apart("outputs_root", "C"),
      .apart("inputs_momentum", "mK"), .apart("outputs_momentum", "mC"), .temporary("inputs_now", "U of this step"),
      .temporary("outputs_now", "G of this step"), Slot("updates", "how often factors came"),
    ], requests: "activations", needsFinite: true)

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    var list = method.slots
    let (n, m) = LayerFactors.count(shape), diagonal = h.is("structure", "diag")
    let (a, b) = diagonal ? (n, m) : (n * n, m * m)
    for (k, count) in [a, b, a, b, n * n, m * m, 1].enumerated() { list[k + 1].count = count }
    return list
  }
  static func decay(_ h: Hyper) -> Decay { .rule }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("steps")] }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }

  let momentum: Double, decay: Double
  init(_ h: Hyper, _ c: StepContext) { (momentum, decay) = (h.momentum, c.weightDecay) }
  func apply<T: Real>(_ t: Whole<T>) { Momentum.apply(t, momentum, decay) }

  static let registered = entry(SINGD.self, source: { (h) throws(Failure) in Roots(h) })

  struct Roots: Source {
    static var method: Method { SINGD.method }
    let diagonal: Bool
    init(_ h: Hyper) { diagonal = h.is("structure", "diag") }
    private let K = 1, C = 2, mK = 3, mC = 4, nowU = 5, nowG = 6, updates = 7, gradient = 8
    var slots: [Slot] { [.temporary("gradient", "the gradient of the step, preconditioned at its end")] }
    func most(_ tensors: Int) -> Int { tensors + 1 }
    var kinds: [Request.Kind] { [.activations] }
    func check(_ answer: Answer, _ phase: Int, _ io: SourceIO) throws(Failure) {
      try LayerAnswer.check(answer, io.tensors(where: LayerFactors.takes), phase, io, "singd")
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let layers = io.tensors(where: LayerFactors.takes), h = io.hyper, step = io.counter(0)
      let due = step % max(1, h.integer("T")) == 0
      if phase == 0 { io.change(SaveGradient(), slots: [gradient], parameters: false) }
      if phase > 0, phase <= layers.count, let x = io.answer.first, let g = io.answer.second {
        let take = LayerFactors.Statistics(x: x, g: g, h: h, scale: io.gradientScale, narrow: false)
        try io.work(take, on: layers[phase - 1], slots: [nowU, nowG])
      }
      if due, phase < layers.count { return .ask(Ask(.activations, index: layers[phase], count: layers.count)) }
      var found: [(layer: Int, slots: [(Int, [Double])])] = []
      for layer in layers { found.append((layer, try move(io, layer, due: due))) }
      for (layer, slots) in found { for (slot, values) in slots { io.fill(slot, of: layer, values) } }
      io.setScalar(0, Double(step + 1))
      return .update(io.gradient(in: gradient))
    }

    /// A root, dense whatever its structure.
    private func dense(_ a: [Double], _ n: Int) -> [Double] {
      guard diagonal else { return a }
      var out = [Double](repeating: 0, count: n * n)
      for k in 0..<n { out[k * (n + 1)] = a[k] }
      return out
    }
    private func packed(_ a: [Double], _ n: Int) -> [Double] {
      diagonal ? (0..<n).map { a[$0 * (n + 1)] } : a
    }
    private func trace(_ a: [Double], _ n: Int) -> Double { (0..<n).reduce(0) { $0 + a[$1 * (n + 1)] } }

    private func move(_ io: SourceIO, _ layer: Int, due: Bool) throws(Failure) -> [(Int, [Double])] {
      let h = io.hyper, shape = io.shape(of: layer), n = shape.columns, m = shape.rows
      let known = io.read(updates, of: layer).first ?? 0
      var k = dense(io.read(K, of: layer), n), c = dense(io.read(C, of: layer), m), slots: [(Int, [Double])] = []
      if known == 0 {
        for i in 0..<n { k[i * (n + 1)] = 1 }
        for i in 0..<m { c[i * (m + 1)] = 1 }
      }
      if due {
        // Kᵀ·U·K and Kᵀ·K
        func turned(_ a: [Double], _ f: [Double], _ n: Int) throws(Failure) -> ([Double], [Double]) {
          let half = try LayerFactors.product(f, a, n, n, n)
          return (
            try LayerFactors.product(a, half, n, n, n, first: true),
            try LayerFactors.product(a, a, n, n, n, first: true)
          )
        }
        let (hk, kk) = try turned(k, io.read(nowU, of: layer), n), (hc, cc) = try turned(c, io.read(nowG, of: layer), m)
        let lam: Double = h.damping, coupled = h.is("variant", "ingd")
        let alpha = h.has("alpha1") ? h.alpha1 : coupled ? 0.5 : 0
        let s = h.normalize_lr_cov ? 0.5 * (1 - alpha) : 0.5, out = Double(m), inputs = Double(n)
        let (fk, lk) = coupled ? (trace(hc, m) / out, lam * trace(cc, m) / out) : (1, lam)
        let (fc, lc) = coupled ? (trace(hk, n) / inputs, lam * trace(kk, n) / inputs) : (1, lam)
        func next(
          _ a: [Double], _ old: [Double], _ H: [Double], _ S: [Double], _ f: Double, _ l: Double, _ n: Int
        ) throws(Failure) -> (root: [Double], momentum: [Double]) {
          var moment = dense(old, n)
          for i in 0..<n {
            for j in 0..<n where !diagonal || i == j {
              let at = i * n + j
              moment[at] = alpha * moment[at] + s * (f * H[at] + l * S[at] - (i == j ? 1 : 0))
            }
          }
          let most = moment.reduce(0) { max($0, abs($1)) }
          let rate = h.normalize_lr_cov ? h.lr_cov / max(1, most) : h.lr_cov
          var root = try LayerFactors.product(a, moment, n, n, n)
          for i in root.indices { root[i] = a[i] - rate * root[i] }
          guard root.allSatisfy(\.isFinite) else {
            throw Failure(Status.numeric, "singd: a root is not finite; lower `lr_cov`, or set `normalize_lr_cov`")
          }
          return (packed(root, n), packed(moment, n))
        }
        let nextK = try next(k, io.read(mK, of: layer), hk, kk, fk, lk, n)
        let nextC = try next(c, io.read(mC, of: layer), hc, cc, fc, lc, m)
        (k, c) = (dense(nextK.root, n), dense(nextC.root, m))
        slots = [
          (K, nextK.root), (C, nextC.root), (mK, nextK.momentum), (mC, nextC.momentum),
          (updates, [min(known + 1, 0x1p52)]),
        ]
      }
      let left = try LayerFactors.product(c, c, m, m, m, second: true)
      let right = try LayerFactors.product(k, k, n, n, n, second: true)
      return slots + [(gradient, try LayerFactors.sandwich(left, io.read(gradient, of: layer), right, m, n))]
    }
  }
}

private enum Momentum {
  /// u = v + wd·θ;  buf ← μ·buf + u;  v ← buf.
  static func apply<T: Real>(_ t: Whole<T>, _ momentum: Double, _ decay: Double) {
    t.change(Move(momentum: momentum, decay: decay), slots: 0..<1)
  }
  struct Move: ElementOperation {
    let momentum, decay: Double
    @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
      x = momentum * s[0] + (decay == 0 ? x : x + decay * g)
      s[0] = x
    }
  }
}
