import ThalwegCore

/// N:M sparsity: of every m consecutive weights the n largest stay, and the rest keep learning behind the mask.
///
///     the dense w is stored and updated; the host sees w·mask(w), the mask made anew each step
///     dense gradient = g (taken at the masked point, passed to all entries) + decay·(1 − mask)·w
///
/// State    the dense tensor, from which the host's own holds w·mask.
/// Errors   TW_ERROR_SHAPE where the length of the axis is no multiple of m, unless the tail of the lines is to stay
///          dense.
/// Differs  of equal magnitudes the lower index stays (the authors' sort keeps a high one). Every tensor is masked,
///          biases too: `route` leaves them out. The gradient of the first step is taken where the host started, which
///          `next` has masked before it asks. NaN counts as infinite.
/// Source   Zhou et al., 2021, arXiv:2102.04010.
struct NMSparsity: WholeRule {
  static let method = Method(
    "nm_sparsity", .mask,
    "N:M sparsity: of every m consecutive weights the n largest stay, and the rest keep learning behind the mask.",
    rule: """
      the dense w is stored and updated; the host sees w*mask(w): of every m entries along the axis the n largest \
      magnitudes
      dense gradient = g + decay*(1 - mask)*w
      biases too: route(matrix=(rule | nm_sparsity), other=(rule)) leaves them dense
      """,
    source: "Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, 2021, arXiv:2102.04010",
    parameters: pattern + [fixed(.number("decay", 2e-4, .atLeast(0), "pull of the masked entries to zero (SR-STE)"))],
    slots: [Slot("dense", "the parameters behind the mask", start: .iterate())],
    validate: { (h) throws(Failure) in try check(h, "nm_sparsity") })
  /// Which entries a mask keeps.
  static let pattern: [Parameter] = [
    .integer("n", 2, .atLeast(1), "entries of a group that stay", live: false),
    .integer("m", 4, .atLeast(1), "size of a group", live: false),
    fixed(.axis("the grouped axis; none is the last, or axis 1 of (out, in, kh, kw)")),
    .choice(
      "tail", ["error", "dense"], "the rest of a line that is no multiple of m: refused, or unmasked", live: false),
  ]
  static func check(_ h: Hyper, _ method: String) throws(Failure) {
    guard h.integer("n") <= h.integer("m") else {
      throw Failure(
        Status.range, "\(method): `n` must not be above `m`, got \(h.integer("n")) and \(h.integer("m"))")
    }
  }
  /// The stages that a mask becomes share their hyper-parameters, so these do not change while running.
  private static func fixed(_ p: Parameter) -> Parameter {
    var p = p
    p.live = false
    return p
  }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try accepts(h, shape, "nm_sparsity") }
  static func accepts(_ h: Hyper, _ shape: Shape, _ method: String) throws(Failure) {
    let m = h.integer("m")
    guard shape.ndim > 0 else { throw Failure(Status.shape, "\(method) needs a tensor of rank 1 or more") }
    try axisExists(h, shape, method)
    let length = lines(h, shape).length
    guard length % m == 0 || h.is("tail", "dense") else {
      let what = "\(method): the length \(length) of the axis is not a multiple of \(m)"
      let ways = "tail=dense leaves the rest of a line unmasked, route(matrix=(...), other=(...)) masks matrices alone"
      throw Failure(Status.shape, what + "; " + ways)
    }
  }
  private static func lines(_ h: Hyper, _ shape: Shape) -> Slices {
    .along(h.has("axis") ? h.integer("axis") : shape.ndim == 4 ? 1 : -1, shape)
  }

  /// Lines along another axis are whole in every part, and so are m neighbours.
  static func grain(_ h: Hyper, _ shape: Shape) -> Int? {
    let lines = lines(h, shape)
    return shape.count > 0 && lines.outer == 1 ? h.integer("m") : 1
  }

  let h: Hyper, n: Int, m: Int
  init(_ h: Hyper, _ c: StepContext) { (self.h, n, m) = (h, h.integer("n"), h.integer("m")) }

  /// Calls `body` for every element with whether it stays.
  @inline(__always) private func forEach<T: Real>(
    _ w: UnsafeMutablePointer<T>, _ shape: Shape, _ body: (_ index: Int, _ stays: Bool) -> Void
  ) {
    let lines = NMSparsity.lines(h, shape), step = lines.inner
    if shape.count == 0 { return }
    for s in 0..<lines.count {
      let whole = lines.length / m &* m
      for g in whole..<lines.length { body(lines.start(s) &+ g &* step, true) }
      for g in stride(from: 0, to: whole, by: m) { group(w, lines.start(s) &+ g &* step, step, body) }
    }
  }
  /// The same of the groups that are neighbours in memory, from an entry on.
  @inline(__always) private func each<T: Real>(
    _ w: UnsafeMutablePointer<T>, _ shape: Shape, from start: Int, _ body: (_ index: Int, _ stays: Bool) -> Void
  ) {
    for first in stride(from: start, to: shape.count, by: m) { group(w, first, 1, body) }
  }
  @inline(__always) private func group<T: Real>(
    _ w: UnsafeMutablePointer<T>, _ first: Int, _ step: Int, _ body: (_ index: Int, _ stays: Bool) -> Void
  ) {
    withUnsafeTemporaryAllocation(of: T.self, capacity: m) { magnitudes in
      for i in 0..<m {
        let size = abs(w[first &+ i &* step])
        magnitudes[i] = size == size ? size : .infinity
      }
      for i in 0..<m {
        var larger = 0
        for j in 0..<m where magnitudes[j] > magnitudes[i] || (magnitudes[j] == magnitudes[i] && j < i) {
          larger &+= 1
        }
        body(first &+ i &* step, larger < n)
      }
    }
  }

  /// v ← v·mask(v).
  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    if n == m { return }
    if !T.isDouble, let count = neighbours(t.shape) {
      let v = UnsafeMutableRawPointer(t.v).assumingMemoryBound(to: Float.self)
      for i in stride(from: 0, to: count, by: 16) {
        let x = SIMD16<Float>.load(v + i)
        SIMD16(repeating: 0).replacing(with: x, where: stays(x)).store(v + i)
      }
      return each(t.v, t.shape, from: count) { i, stays in if !stays { t.v[i] = 0 } }
    }
    forEach(t.v, t.shape) { i, stays in if !stays { t.v[i] = 0 } }
  }
  /// v ← v + decay·(1 − mask(w))·w.
  func pull<T: Real>(_ t: Whole<T>, _ decay: T) {
    if !T.isDouble, let count = neighbours(t.shape) {
      let v = UnsafeMutableRawPointer(t.v).assumingMemoryBound(to: Float.self)
      let w = UnsafeMutableRawPointer(t.w).assumingMemoryBound(to: Float.self)
      for i in stride(from: 0, to: count, by: 16) {
        let x = SIMD16<Float>.load(v + i), at = SIMD16<Float>.load(w + i)
        (x + Float(decay) * at).replacing(with: x, where: stays(at)).store(v + i)
      }
      return each(t.w, t.shape, from: count) { i, stays in if !stays { t.v[i] += decay * t.w[i] } }
    }
    forEach(t.w, t.shape) { i, stays in if !stays { t.v[i] += decay * t.w[i] } }
  }

  /// Where groups of two or four are neighbours in memory: how many entries fill whole vectors of sixteen.
  private func neighbours(_ shape: Shape) -> Int? {
    let lines = NMSparsity.lines(h, shape)
    return (m == 2 || m == 4) && lines.inner == 1 && lines.length % m == 0 ? shape.count / 16 &* 16 : nil
  }
  /// Which of sixteen entries stay: an entry is compared with those whose index in the group differs in bit 0, 1 or
  /// both; of equals the lower index is the larger. Magnitudes order like their bits, and one more makes an equal the
  /// larger. (A comparison that holds has all bits set: it is -1.)
  @inline(__always) private func stays(_ x: SIMD16<Float>) -> SIMDMask<SIMD16<Int32>> {
    typealias Keys = SIMD16<Int32>
    @inline(__always) func isLarger(_ other: Keys, _ isLower: Keys) -> Keys {
      unsafeBitCast(other &+ isLower .> a, to: Keys.self)
    }
    let infinite = Keys(repeating: Int32(bitPattern: Float.infinity.bitPattern)), bits = unsafeBitCast(x, to: Keys.self)
    let all = bits & Keys(repeating: .max), a = all.replacing(with: infinite, where: all .> infinite)
    var beside = a
    (beside.evenHalf, beside.oddHalf) = (a.oddHalf, a.evenHalf)
    var smaller = isLarger(beside, NMSparsity.odd)
    if m == 4 {
      smaller = smaller &+ isLarger(swapped(a), NMSparsity.upper) &+ isLarger(swapped(beside), NMSparsity.upper)
    }
    return smaller .> Keys(repeating: Int32(truncatingIfNeeded: -n))
  }
  /// Neighbouring pairs change places.
  @inline(__always) private func swapped(_ x: SIMD16<Int32>) -> SIMD16<Int32> {
    let pairs = unsafeBitCast(x, to: SIMD8<Int64>.self)
    var y = pairs
    (y.evenHalf, y.oddHalf) = (pairs.oddHalf, pairs.evenHalf)
    return unsafeBitCast(y, to: SIMD16<Int32>.self)
  }
  @inline(__always) private static var odd: SIMD16<Int32> {
    SIMD16(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1)
  }
  @inline(__always) private static var upper: SIMD16<Int32> {
    SIMD16(0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1)
  }

  /// v ← v + decay·(1 − mask(w))·w, for a gradient v.
  private struct Pull: WholeRule {
    static let method = NMSparsity.method
    static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
    static func grain(_ h: Hyper, _ shape: Shape) -> Int? { NMSparsity.grain(h, shape) }
    let mask: NMSparsity, decay: Double
    init(_ h: Hyper, _ c: StepContext) { (mask, decay) = (NMSparsity(h, c), h.decay) }
    func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
      mask.pull(t, T(decay))
    }
  }
  /// The mask as a set of its own, without a stored tensor: `project(nm_sparsity)`.
  private struct Project: WholeRule {
    static let method = NMSparsity.method
    static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { [] }
    static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try NMSparsity.accepts(h, shape) }
    static func grain(_ h: Hyper, _ shape: Shape) -> Int? { NMSparsity.grain(h, shape) }
    let mask: NMSparsity
    init(_ h: Hyper, _ c: StepContext) { mask = NMSparsity(h, c) }
    func apply<T: Real>(_ t: Whole<T>) throws(Failure) { try mask.apply(t) }
  }

  static let registered = Registered(method: method, component: .constraint(sets))
  private static let sets = ConstraintKernels(
    projection: { (nil, ThalwegCore.kernels(Project.self).binding($0)) }, minimise: { _ in (nil, nil) },
    view: { _ in ThalwegCore.kernels(NMSparsity.self) },
    pull: { h in
      let decay: Double = h.decay
      return decay == 0 ? nil : ThalwegCore.kernels(Pull.self)
    })
}
