import Glibc
import ThalwegCore

// What the PSGD methods on vectors share: hyper-parameters, pairs, and the step of a model as one vector.

let psgdParameters: [Parameter] = [
  .lr(0.01, .within(0, 1)),
  .maybe(
    "precond_lr", .between(0, 1, lowOpen: true, highOpen: false),
    "step size of the fit; none: 0.1 for the second normalizer, 0.01 for the first"),
  Parameter.rate("momentum", 0, "rate of the average of the gradient").fixed,
  .choice(
    "normalizer", ["second", "first"], "the fit's step size is over a bound of its curvature, or of its gradient"),
  .number("update_probability", 1, .within(0, 1), "fits a step").forAll,
  .maybe("grad_clip_max_norm", .above(0), "largest norm of the preconditioned gradient"),
  Parameter.maybe("preconditioner_init_scale", .above(0), "first scale of Q; none: from the first pair").fixed,
  .choice("fit", ["newton", "whiten"], "to Hessian-vector products, or to gradients", live: false),
]
let psgdSlots = [Slot.moment("exp_avg", "average m of the gradient")]

func dot(_ a: [Double], _ b: [Double]) -> Double { zip(a, b).reduce(0) { $0 + $1.0 * $1.1 } }
func norm(_ a: [Double]) -> Double { dot(a, a).squareRoot() }

/// What they share: the pairs v, h that a preconditioner is fitted to, and the step.
struct PSGDPair {
  let h: Hyper
  let c: StepContext
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c) = (h, c) }

  static func slots(_ h: Hyper, _ method: Method) -> [Slot] {
    let momentum: Double = h.momentum
    return momentum > 0 ? method.slots : Array(method.slots.dropFirst())
  }
  /// Steps of the model, and fits that were left out: they would not have been finite, or met a singular matrix.
  static let scalars = [Scalar("steps"), Scalar("skipped_fits", tells: true)]
  var averages: Bool { (h.momentum as Double) > 0 }
  var second: Bool { h.is("normalizer", "second") }
  var rate: Double { h.has("precond_lr") ? h.precond_lr : second ? 0.1 : 0.01 }
  var firstScale: Double { h.has("preconditioner_init_scale") ? h.preconditioner_init_scale : 0 }

  /// A number of this step, the same for all tensors.
  func coin(_ apart: Int) -> Double { PSGDPair.coin(apart, c.seed, c.stream, c.step) }
  static func coin(_ apart: Int, _ seed: UInt64, _ stream: UInt32, _ step: Int) -> Double {
    Random.fraction(seed: seed, stream: stream, step: step &+ apart << 40)
  }
  /// v and h, where this step has a fit and neither is 0. `slot`: where those of the source begin.
  func sample<T: Real>(_ w: Whole<T>, slot: Int) -> ([Double], [Double])? {
    guard coin(1) < h.update_probability, w.count > 0 else { return nil }
    var v: [Double], out: [Double]
    if h.is("fit", "newton") {
      guard w.slots.count > slot + 1 else { return nil }
      (v, out) = (Dense(w.slots[slot], w.count).values, Dense(w.slots[slot + 1], w.count).values)
    } else {
      let key = Random.key(
        seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
      v = (0..<w.count).map { Random.normal(key, $0) }
      out = (0..<w.count).map { Double(w.v[$0]) }
      let noise = 0x1p-13 * out.reduce(0) { $0 + abs($1) } / Double(w.count)
      for i in out.indices { out[i] += noise * v[i] }
    }
    return v.contains { $0 != 0 } && out.contains { $0 != 0 } ? (v, out) : nil
  }
  /// The first scale of Q, from the first pair (mean v²)^(1/4)·(mean h⁴)^(−1/8), or from the gradient g that is to be
  /// whitened, without its noise: (mean g⁴)^(−1/8).
  func scale<T: Real>(_ v: [Double], _ h: [Double], _ t: Whole<T>) -> Double {
    let newton = self.h.is("fit", "newton")
    return PSGDPair.scale(v, newton ? h : Dense(t.v, t.count).values, newton: newton)
  }
  static func scale(_ v: [Double], _ h: [Double], newton: Bool) -> Double {
    let n = Double(v.count), fourth = h.reduce(0) { $0 + $1 * $1 * $1 * $1 } / n
    let s = (newton ? pow(dot(v, v) / n, 0.25) : 1) * pow(fourth, -0.125)
    return s > 0 && s.isFinite ? s : 1
  }

  /// v ← P·(the gradient or its average), clipped.
  func move<T: Real>(_ w: Whole<T>, _ apply: ([Double]) throws(Failure) -> [Double]) throws(Failure) {
    if averages {
      let mu: Double = h.momentum, m = w.slots[0]
      for i in 0..<w.count {
        m[i] = T(mu) * m[i] + T(1 - mu) * w.v[i]
        w.v[i] = m[i]
      }
    }
    let u = try apply((0..<w.count).map { Double(w.v[$0]) }), length = norm(u)
    let factor = h.has("grad_clip_max_norm") && length > 0 ? min(1, h.grad_clip_max_norm / length) : 1
    for i in u.indices { w.v[i] = T(factor * u[i]) }
  }
}

/// Asks for Hessian-vector products with normal numbers in the steps that have a fit.
struct PSGDProbe: Source {
  static var method: Method { PSGDDense.method }
  let first: Int
  init(_ h: Hyper) throws(Failure) { first = PSGDPair.slots(h, PSGDDense.method).count }
  private init(first: Int) { self.first = first }
  static func of(_ h: Hyper, _ slots: Int) -> PSGDProbe? { h.is("fit", "newton") ? PSGDProbe(first: slots) : nil }

  var slots: [Slot] {
    [
      Slot.temporary("probe", "the vector v"), Slot.temporary("product", "the Hessian times it"),
      Slot.temporary("gradient", "the gradient of the step"),
    ]
  }
  var probe: Int? { 0 }
  func most(_ tensors: Int) -> Int { 2 }
  var kinds: [Request.Kind] { [.hessianVector] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase == 0 {
      guard PSGDPair.coin(1, io.seed, io.stream, io.step) < io.hyper.update_probability else { return .update(nil) }
      io.change(SaveGradient(), slots: [first + 2], parameters: false)
      io.draw(first, signs: false)
      return .ask(Ask(.hessianVector))
    }
    io.change(SaveGradient(), slots: [first + 1], parameters: false)
    return .update(io.gradient(in: first + 2))
  }
}

/// The numbers of a fit.
struct PSGDNumbers {
  let rate: Double, second: Bool, balances: Bool
}

/// The factors of a preconditioner of the whole model, read from the slots of its tensors. The last of the parts is the
/// diagonal, which is 0 before there is one.
protocol PSGDFactors: Sendable {
  static var method: Method { get }
  /// Numbers for each element, slot by slot.
  var widths: [Int] { get }
  mutating func read(_ parts: [[Double]], _ n: Int)
  var parts: [[Double]] { get }
  /// Nothing is there for element i yet.
  func isFresh(_ i: Int) -> Bool
  /// The start of the elements of a tensor, but for the diagonal.
  mutating func start(_ range: Swift.Range<Int>, _ n: Int, _ draw: (_ apart: Int, _ column: Int) -> [Double])
  var diagonal: [Double] { get set }
  /// P·x.
  func times(_ x: [Double]) throws(Failure) -> [Double]
  /// False where the fit is to be left out.
  mutating func fit(_ v: [Double], _ h: [Double], _ numbers: PSGDNumbers) throws(Failure) -> Bool
}

/// A preconditioner of all tensors as one vector: the pairs that it is fitted to, and the step.
struct PSGDModel<Factors: PSGDFactors>: Source {
  static var method: Method { Factors.method }
  let empty: Factors, newton: Bool, averages: Bool
  init(_ h: Hyper) throws(Failure) {
    throw Failure(Status.internal, "\(Factors.method.name): a source without factors")
  }
  init(_ empty: Factors, _ h: Hyper) {
    (self.empty, newton, averages) = (empty, h.is("fit", "newton"), (h.momentum as Double) > 0)
  }

  /// Behind the average, where there is one: the factors, then v, h and the gradient.
  private var first: Int { averages ? 1 : 0 }
  private var vector: Int { first + empty.widths.count }
  private var product: Int { vector + 1 }
  private var gradient: Int { vector + 2 }
  var slots: [Slot] {
    [
      .temporary("probe", "the vector v"), .temporary("product", "the Hessian times it"),
      .temporary("gradient", "the gradient of the step, then the move"),
    ]
  }
  var probe: Int? { 0 }
  var single: Bool { !newton }
  var global: Bool { true }
  func most(_ tensors: Int) -> Int { 2 }
  var kinds: [Request.Kind] { newton ? [.hessianVector] : [] }

  func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
    if phase == 0 {
      io.change(SaveGradient(), slots: [gradient], parameters: false)
      let fits = PSGDPair.coin(1, io.seed, io.stream, io.step) < io.hyper.update_probability
      if fits { io.draw(vector, signs: false) }
      if fits, newton { return .ask(Ask(.hessianVector)) }
      return try step(io, fits: fits)
    }
    io.change(SaveGradient(), slots: [product], parameters: false)
    return try step(io, fits: true)
  }

  private func step(_ io: SourceIO, fits: Bool) throws(Failure) -> Move {
    // in the order in which they were first bound, whatever that is now
    let h = io.hyper, tensors = io.tensors { _ in true }.sorted { io.key(of: $0) < io.key(of: $1) }
    let counts = tensors.map { io.shape(of: $0).count }
    let n = counts.reduce(0, &+), steps = io.counter(0)
    try Memory.ask(8 &* n &* (2 &* empty.widths.reduce(0, &+) &+ 12))
    func all(_ slot: Int) -> [Double] { tensors.flatMap { io.read(slot, of: $0) } }
    func spread(_ x: [Double], _ width: Int, _ slot: Int) {
      var at = 0
      for (tensor, count) in zip(tensors, counts) {
        io.fill(slot, of: tensor, Array(x[at..<(at + width * count)]))
        at += width * count
      }
    }
    let g = all(gradient), v = fits ? all(vector) : []
    var pair = fits && newton ? all(product) : []
    if fits, !newton {
      let noise = 0x1p-13 * g.reduce(0) { $0 + abs($1) } / Double(max(1, n))
      pair = zip(g, v).map { $0 + noise * $1 }
    }
    var factors = empty
    factors.read(empty.widths.indices.map { all(first + $0) }, n)
    start(&factors, io, tensors, counts, n, h)

    if fits, v.contains(where: { $0 != 0 }), pair.contains(where: { $0 != 0 }) {
      var next = factors
      if next.diagonal.contains(0) {
        let scale = PSGDPair.scale(v, newton ? pair : g, newton: newton)
        next.diagonal = next.diagonal.map { $0 == 0 ? scale : $0 }
      }
      let second = h.is("normalizer", "second")
      let balance: Double = h.has("balance_prob") ? h.balance_prob : 0
      let numbers = PSGDNumbers(
        rate: h.has("precond_lr") ? h.precond_lr : second ? 0.1 : 0.01, second: second,
        balances: PSGDPair.coin(2, io.seed, io.stream, io.step) < balance)
      if try next.fit(v, pair, numbers) { factors = next } else { io.tally(1) }
    }
    var m = g
    if averages {
      let mu: Double = h.momentum
      m = zip(all(0), g).map { mu * $0 + (1 - mu) * $1 }
    }
    var u = factors.diagonal.contains(0) ? m : try factors.times(m)
    if h.has("grad_clip_max_norm") {
      let length = norm(u), factor = length > 0 ? min(1, h.grad_clip_max_norm / length) : 1
      u = u.map { factor * $0 }
    }
    for (k, part) in factors.parts.enumerated() { spread(part, empty.widths[k], first + k) }
    if averages { spread(m, 1, 0) }
    spread(u, 1, gradient)
    io.setScalar(0, Double(steps + 1))
    return .update(io.gradient(in: gradient))
  }

  /// Tensors that are here for the first time.
  private func start(
    _ factors: inout Factors, _ io: SourceIO, _ tensors: [Int], _ counts: [Int], _ n: Int, _ h: Hyper
  ) {
    var diagonal = factors.diagonal, isFirst = false
    let known = diagonal.filter { $0 != 0 }
    let scale =
      h.has("preconditioner_init_scale")
      ? h.preconditioner_init_scale : known.isEmpty ? 0 : known.reduce(0, +) / Double(known.count)
    var at = 0
    for (tensor, count) in zip(tensors, counts) {
      defer { at += count }
      guard count > 0, factors.isFresh(at) else { continue }
      factors.start(at..<(at + count), n) { apart, column in
        io.draw(product, signs: false, number: apart << 40 &+ column)
        return io.read(product, of: tensor)
      }
      for i in at..<(at + count) { diagonal[i] = scale }
      isFirst = true
    }
    if isFirst { factors.diagonal = diagonal }
  }
}
