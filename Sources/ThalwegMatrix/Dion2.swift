import ThalwegCore

/// Dion2: Muon on the strongest rows or columns of the momentum, which then lose what was used.
///
///     M ← M + g;   the k = max(1, ⌈fraction·size⌉) slices of largest 1-norm, along the shorter side
///     U = NewtonSchulz(those slices of M);   those slices of M ← ef_decay·M
///     θ ← θ·(1 − lr·wd);   those slices of θ ← θ − lr·s·U,  s the factor of the whole shape
///
/// Rows are chosen where there are not more of them than columns; of equal slices the first ones.
///
/// State    M.
/// Differs  nothing from microsoft/dion on one device.
/// Source   Microsoft, 2025, arXiv:2512.16928.
struct Dion2: WholeRule {
  static let method = Method(
    "dion2", .optimizer, "Muon on the strongest rows or columns of the momentum, with error feedback.",
    rule: """
      M <- M + g;  k = max(1, ceil(fraction*size)) slices of largest 1-norm along the shorter side (rows if square)
      U = newton_schulz(those slices of M);  those slices of M <- ef_decay*M
      theta <- theta*(1 - lr*weight_decay);  those slices of theta <- theta - lr*s*U, s of the whole shape, as muon
      """,
    source: "Microsoft, 2025, arXiv:2512.16928",
    parameters: [
      .lr(0.01),
      .number("fraction", 0.25, .between(0, 1, lowOpen: true, highOpen: false), "share of the slices that move"),
      .rate("ef_decay", 0.95, "factor of the momentum in those slices"), .weightDecay(0.01, "decoupled weight decay"),
      .choice("adjust_lr", ["spectral", "match_rms_adamw", "none"], "the factor s of the shape"),
    ] + NewtonSchulz.parameters("polar_express") + [
      .number("ns_eps", 1e-8, .above(0), "added to the norm that divides in the iteration"), NewtonSchulz.precision,
    ],
    slots: [.moment("momentum_buffer", "the momentum M")], needsFinite: true,
    validate: { (h) throws(Failure) in try NewtonSchulz.check(h, "dion2") })

  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try matrix(shape, "dion2") }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int {
    aligned(shape.count &* size) + NewtonSchulz.space(h, shape.rows, shape.columns, size)
  }

  let schulz: NewtonSchulz
  let fraction, decay, factor: Double

  init(_ h: Hyper, _ c: StepContext) {
    schulz = NewtonSchulz(h, eps: h.ns_eps, clamp: false)
    (fraction, decay, factor) = (h.fraction, h.ef_decay, ShapeFactor.of(h, c.rows, c.columns))
  }

  func apply<T: Real>(_ t: Whole<T>) throws(Failure) {
    let m = t.slots[0], rows = t.rows, columns = t.columns
    Flat.add(t.v, times: 1, into: m, t.count)
    let byRow = rows <= columns, slices = byRow ? Slices.rows(t.shape) : Slices.columns(t.shape)
    let norms = (0..<slices.count).map { s in
      let first = m + slices.start(s)
      return (0..<slices.length).reduce(0.0) { $0 + abs(Double(first[$1 * slices.inner])) }
    }
    let k = min(slices.count, max(1, Int((fraction * Double(slices.count)).rounded(.up))))
    let order = norms.indices.sorted { norms[$0] > norms[$1] || (norms[$0] == norms[$1] && $0 < $1) }
    let chosen = order.prefix(k).sorted()
    let u = t.workspace.assumingMemoryBound(to: T.self)
    /// Where entry j of the i-th chosen slice lies in the dense matrix of them.
    func place(_ i: Int, _ j: Int) -> Int { byRow ? i * columns + j : j * k + i }
    for (i, s) in chosen.enumerated() {
      let first = m + slices.start(s)
      for j in 0..<slices.length {
        u[place(i, j)] = first[j * slices.inner]
        first[j * slices.inner] *= T(decay)
      }
    }
    let room = t.workspace + aligned(t.count * MemoryLayout<T>.stride)
    try schulz.apply(u, byRow ? k : rows, byRow ? columns : k, scale: factor, room)
    t.v.update(repeating: 0, count: t.count)
    for (i, s) in chosen.enumerated() {
      let first = t.v + slices.start(s)
      for j in 0..<slices.length { first[j * slices.inner] = u[place(i, j)] }
    }
  }
}
