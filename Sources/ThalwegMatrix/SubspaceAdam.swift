import Glibc
import ThalwegCore

/// GaLore: Adam, or another rule, in the leading singular directions of the gradient, chosen anew every
/// `update_proj_gap` steps.
///
///     R = G·Pᵀ (right), or Pᵀ·G (left), P the r leading right (left) singular vectors of the gradient at a refresh
///     m ← β₁·m + (1 − β₁)·R;   v ← β₂·v + (1 − β₂)·R²;   N = m/(√v + ε)
///     θ ← (θ − lr·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·scale·(N·P, or P·N))·(1 − lr·wd)
///
/// `inner=(rule)`: the element-wise rule whose direction for R stands in place of the corrected N; the betas, ε and
/// `correct_bias` here are not used then, nor are its step size and decay. It sees parameters of 0.
/// State    P, and m and v of the subspace, or the state of the inner rule there.
/// Errors   TW_ERROR_UNSUPPORTED for an inner rule that needs sums or moves the parameters itself.
/// Differs  moments stay as they are at a refresh, as in the authors' code. Of every vector of P the entry of largest
///          magnitude is positive. Tensors of another rank, and those whose smaller side is below r, take plain Adam.
/// Source   Zhao et al., 2024, arXiv:2403.03507.
struct GaLore: WholeRule {
  static let method = Method(
    "galore", .optimizer, "GaLore: Adam in the leading singular directions of the gradient.",
    rule: """
      P = the rank leading singular vectors of G on the shorter side (std), every update_proj_gap steps
      R = G P', or P' G;  m <- beta1*m + (1 - beta1)*R;  v <- beta2*v + (1 - beta2)*R^2;  N = m/(sqrt(v) + eps)
      theta <- (theta - lr*sqrt(1 - beta2^t)/(1 - beta1^t)*scale*(N P, or P N))*(1 - lr*weight_decay)
      """,
    source: "Zhao, Zhang, Chen, Wang, Anandkumar, Tian, 2024, arXiv:2403.03507",
    parameters: SubspaceAdam.parameters + [
      .integer("update_proj_gap", 200, .atLeast(1), "steps between new subspaces"),
      .number("scale", 0.25, .above(0), "multiplier of the update"),
      .choice(
        "proj_type", ["std", "reverse_std", "left", "right"], "side that is projected; std: the shorter", live: false),
      .object("inner", .pipeline, standard: nil, "the rule in the subspace, as (adam); none: Adam as above"),
    ], slots: SubspaceAdam.slots, needsFinite: true,
    validate: { (h) throws(Failure) in _ = try HeldRule(h, "inner", of: "galore") })

  private static func inner(_ h: Hyper) -> HeldRule? { try? HeldRule(h, "inner", of: "galore") }
  private static func plan(_ h: Hyper, _ shape: Shape) -> SubspaceAdam {
    let tall = shape.rows >= shape.columns
    let right = h.is("proj_type", "std") ? tall : h.is("proj_type", "reverse_std") ? !tall : h.is("proj_type", "right")
    let rank = h.integer("rank")
    var plan = SubspaceAdam(shape, rank <= min(shape.rows, shape.columns) ? rank : 0, right: right)
    if let rule = inner(h) { plan.projector = rule.slots(shape, count: plan.low).count }
    return plan
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let plan = plan(h, shape)
    guard let rule = inner(h) else { return plan.slots }
    return rule.slots(shape, count: plan.low) + [plan.slots[2]]
  }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { plan(h, shape).low &* size }

  let h: Hyper
  let t: Int
  private let c: StepContext
  private let adam: SubspaceAdam.Step
  init(_ h: Hyper, _ c: StepContext) { (self.h, t, self.c, adam) = (h, c.t, c, SubspaceAdam.Step(h, c)) }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let plan = GaLore.plan(h, w.shape)
    if plan.rank > 0, t == 1 || (t - 1) % max(1, h.integer("update_proj_gap")) == 0 {
      try plan.choose(w, first: t == 1)
    }
    guard let rule = GaLore.inner(h) else { return try adam.run(w, plan) }
    let keep = 1 - c.lr * c.weightDecay
    try adam.run(w, plan) { (x) throws(Failure) in
      try rule.run(x, w.slots[..<plan.projector], plan.low, c)
      let factor = T(plan.rank > 0 ? keep * h.scale : keep)
      for i in 0..<plan.low { x[i] = factor * x[i] }
    }
  }
}

/// Adam in a subspace that learns by online principal component analysis, a step of its own for every step.
///
///     P = the leading singular vectors of the first gradient;  R, m, v, N and the step as in GaLore, with the old P
///     Gₙ = G/‖G‖, X = Gₙ (right) or Gₙᵀ (left), E = X·PᵀP − X
///     D = 2·(P·Xᵀ·E + P·Eᵀ·X) + 4·ortho_penalty·(P·Pᵀ − I)·P;   P moves along D by AdamW or SGD with (lr/lr₀)/gap
///
/// State    P, m and v of the subspace, the moments of P; lr₀ and the moves of P.
/// Differs  a gradient of 0 leaves P alone; where lr₀ is 0 the ratio is 1. Tensors that are no matrices take plain
///          Adam. Moments are not turned and P is not made orthonormal again, as in the authors' code.
/// Source   Liang et al., 2024, arXiv:2408.12857.
struct OnlineSubspaceDescent: WholeRule {
  static let method = Method(
    "online_subspace_descent", .optimizer, "Adam in a subspace that learns by online principal component analysis.",
    rule: """
      P = the leading singular vectors of the first gradient;  the step is that of galore, with the old P
      X = G/|G| or its transpose, E = X P'P - X;  D = 2*(P X'E + P E'X) + 4*ortho_penalty*(P P' - I)*P
      P <- P - (lr/lr_0)/update_proj_gap * D, by AdamW or plainly
      """,
    source: "Liang, Liu, Chen, Liu, 2024, arXiv:2408.12857",
    parameters: SubspaceAdam.parameters + [
      .number("update_proj_gap", 200, .atLeast(1), "divides the step size of the projector"),
      .number("scale", 1, .above(0), "multiplier of the update"),
      .choice("proj_opt", ["adamw", "sgd"], "how the projector moves", live: false),
      .rate("proj_beta1", 0.9, "rate of the projector's first moment"),
      .rate("proj_beta2", 0.999, "rate of the projector's second moment"),
      .number("proj_eps", 1e-8, .atLeast(0), "added to the projector's denominator"),
      .number("proj_weight_decay", 0.01, .atLeast(0), "decoupled weight decay of the projector"),
      .number("ortho_penalty", 0, .atLeast(0), "weight of the penalty on P P' - I"),
    ],
    slots: SubspaceAdam.slots + [
      Slot("proj_exp_avg", "first moment of the projector"), Slot("proj_exp_avg_sq", "second moment of the projector"),
    ], needsFinite: true)

  private static func plan(_ h: Hyper, _ shape: Shape) -> SubspaceAdam {
    SubspaceAdam(
      shape, min(h.integer("rank"), min(shape.rows, shape.columns)), right: shape.rows >= shape.columns)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    let plan = plan(h, shape)
    guard h.is("proj_opt", "adamw") else { return plan.slots }
    return plan.slots
      + method.slots.suffix(2).map {
        var s = $0
        s.count = plan.basis
        return s
      }
  }
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("first_lr"), Scalar("moves")] }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { plan(h, shape).low &* size }

  let h: Hyper
  let c: StepContext
  private let adam: SubspaceAdam.Step
  init(_ h: Hyper, _ c: StepContext) { (self.h, self.c, adam) = (h, c, SubspaceAdam.Step(h, c)) }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let plan = OnlineSubspaceDescent.plan(h, w.shape), moves = c.scalars + 1
    if c.t == 1 { (c.scalars[0], moves.pointee) = (c.lr, 0) }
    guard plan.rank > 0 else { return try adam.run(w, plan) }
    if c.t == 1 { try plan.choose(w, first: true) }
    let norm = Flat.norm(w.v, w.count)
    let direction = c.t > 1 && norm > 0 ? try slope(w, plan, norm) : nil
    try adam.run(w, plan)
    guard let D = direction else { return }
    moves.pointee += 1
    let rate = (c.scalars[0] == 0 ? 1 : c.lr / c.scalars[0]) / h.update_proj_gap, P = w.slots[plan.projector]
    guard h.is("proj_opt", "adamw") else {
      for i in 0..<plan.basis { P[i] = T(Double(P[i]) - rate * D[i]) }
      return
    }
    let (m, v, b1, b2) = (w.slots[3], w.slots[4], h.proj_beta1 as Double, h.proj_beta2 as Double)
    let count = c.counter(1), c1 = 1 - power(b1, count), c2 = 1 - power(b2, count)
    let (eps, keep) = (h.proj_eps as Double, 1 - rate * h.proj_weight_decay)
    for i in 0..<plan.basis {
      let first = b1 * Double(m[i]) + (1 - b1) * D[i], second = b2 * Double(v[i]) + (1 - b2) * D[i] * D[i]
      (m[i], v[i]) = (T(first), T(second))
      let u = first == 0 ? 0 : first / c1 / ((second / c2).squareRoot() + eps)
      P[i] = T(keep * Double(P[i]) - rate * u)
    }
  }

  /// The gradient of the squared distance of G/‖G‖ from its projection, and of the penalty.
  private func slope<T: Real>(_ w: Whole<T>, _ plan: SubspaceAdam, _ norm: Double) throws(Failure) -> [Double] {
    let (X, P) = try plan.view(w), r = plan.rank
    let unit = Dense(X.values.map { $0 / norm }, X.rows, X.columns)
    var D = try reconstructionSlope(unit, P)
    let penalty: Double = h.ortho_penalty
    if penalty > 0 {
      var gram = try P.times(P, transposed: true)
      for i in 0..<r { gram.values[i * r + i] -= 1 }
      let pull = try gram.times(P)
      for i in D.indices { D[i] += 4 * penalty * pull.values[i] }
    }
    return D
  }
}

/// COAP: Adam in a subspace that follows the gradient, and what the momentum and the gradient have in common.
///
///     every T·f steps (and first): Y = A·Ω, P = the leading right singular vectors of qr(Y).Qᵀ·A, with A the gradient
///     or its transpose, the longer side first, and Ω the old Pᵀ (first: normal numbers)
///     every T other steps: P moves along the gradient, clipped, of
///         mean((A·PᵀP − A)²)·(1 − the mean cosine of the rows of back(m) and G)
///     R, m, v, N and the step as in GaLore with the new P; restore_state carries m and v into the new basis
///
/// State    P, m and v of the subspace.
/// Differs  kernels and all tensors that are no matrices take plain Adam (the Tucker form is not carried). A gradient
///          of 0 leaves P alone; at first it takes unit vectors. `rank_ratio` is 4 where neither it nor `rank` is
///          given.
/// Source   Xiao et al., 2024, arXiv:2412.00071.
struct COAP: WholeRule {
  static let method = Method(
    "coap", .optimizer, "COAP: Adam in a subspace that follows the gradient and its correlation with the momentum.",
    rule: """
      every T*reproject_factor steps: Q = qr(A Omega), P = leading right singular vectors of Q'A, Omega the old P'
      every T = update_interval other steps: P <- P - proj_lr*clip(d/dP mean((A P'P - A)^2)*(1 - mean cos(back(m), G)))
      the step is that of galore with the new P;  restore_state carries m and v into the new basis
      """,
    source: "Xiao, Sang, Zhi, Liu, Yan, Luo, Yuan, 2024, arXiv:2412.00071",
    parameters: [
      .lr(1e-3), .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"),
      .eps(1e-6), .weightDecay(0, "decoupled weight decay, after the step"),
      .flag("correct_bias", true, "bias corrections"),
      .maybeInteger("rank", .atLeast(1), "dimension of the subspace; none: by rank_ratio", live: false),
      Parameter.number("rank_ratio", 4, .above(0), "where rank is none: the smaller side over this, at least 1").fixed,
      .integer("update_interval", 32, .atLeast(1), "steps T between moves of the subspace"),
      .integer("reproject_factor", 5, .atLeast(1), "moves between computations of the subspace"),
      .flag("restore_state", false, "the moments are carried into the new basis"),
      .number("scale", 1, .above(0), "multiplier of the update"),
      .number("proj_lr", 0.1, .above(0), "step size of the subspace"),
      .number("proj_clip", 1, .above(0), "largest norm of its gradient"),
    ], slots: SubspaceAdam.slots, needsFinite: true)

  private static func plan(_ h: Hyper, _ shape: Shape) -> SubspaceAdam {
    let side = min(shape.rows, shape.columns)
    let rank = h.has("rank") ? h.integer("rank") : Int(max(1, min(Double(side), Double(side) / h.rank_ratio)))
    return SubspaceAdam(shape, rank <= side ? rank : 0, right: shape.rows >= shape.columns)
  }
  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] { plan(h, shape).slots }
  static func decay(_ h: Hyper) -> Decay { .decoupled }
  static func accepts(_ h: Hyper, _ shape: Shape) throws(Failure) { try LinearAlgebra.require() }
  static var mayFail: Bool { true }
  static func workspace(_ h: Hyper, _ shape: Shape, _ size: Int) -> Int { plan(h, shape).low &* size }

  let h: Hyper
  let t: Int
  let key: UInt64
  private let adam: SubspaceAdam.Step
  init(_ h: Hyper, _ c: StepContext) {
    (self.h, t, adam) = (h, c.t, SubspaceAdam.Step(h, c))
    key = Random.key(seed: c.seed, stream: c.stream, step: UInt64(c.step), tensor: UInt32(truncatingIfNeeded: c.tensor))
  }

  func apply<T: Real>(_ w: Whole<T>) throws(Failure) {
    let plan = COAP.plan(h, w.shape)
    if plan.rank > 0 { try move(w, plan) }
    try adam.run(w, plan)
  }

  private func move<T: Real>(_ w: Whole<T>, _ plan: SubspaceAdam) throws(Failure) {
    let interval = max(1, h.integer("update_interval")), done = t - 1
    guard done % interval == 0 else { return }
    guard Flat.norm(w.v, w.count) > 0 else { return t == 1 ? plan.units(w.slots[plan.projector]) : () }
    let (A, P) = try plan.view(w), r = plan.rank
    let (m, v) = (w.slots[0], w.slots[1])
    var carried: (Dense, Dense)?
    if t > 1, h.restore_state {
      carried = (
        try plan.back(Dense(m, plan.low), P), try plan.back(Dense((0..<plan.low).map { Double(v[$0]).squareRoot() }), P)
      )
    }
    var new: Dense
    if t == 1 || done / interval % max(1, h.integer("reproject_factor")) == 0 {
      let omega = t == 1 ? Dense((0..<(A.columns * r)).map { Random.normal(key, $0) }, A.columns, r) : P.transposed
      let Q = Dense(try LinearAlgebra.orthonormal(try A.times(omega).values, A.rows, r), A.rows, r)
      let small = try Q.times(A, leftTransposed: true)
      new = leading(try LinearAlgebra.SVD(small.values, r, A.columns).vt, r, A.columns)
    } else {
      let D = try slope(w, plan, A, P), norm = D.reduce(0) { $0 + $1 * $1 }.squareRoot()
      let rate = h.proj_lr * min(1, h.proj_clip / (norm + 1e-6))
      new = P
      for i in D.indices { new.values[i] -= rate * D[i] }
    }
    for i in 0..<plan.basis { w.slots[plan.projector][i] = T(new.values[i]) }
    guard let (full, roots) = carried else { return }
    let moved = try plan.project(full, new), spread = try plan.project(roots, new)
    for i in 0..<plan.low { (m[i], v[i]) = (T(moved[i]), T(spread[i] * spread[i])) }
  }

  /// The gradient of the objective that P minimises.
  private func slope<T: Real>(_ w: Whole<T>, _ plan: SubspaceAdam, _ A: Dense, _ P: Dense) throws(Failure) -> [Double] {
    let (rows, columns) = (w.rows, w.columns), n = Double(rows * columns)
    let E = try A.times(P, transposed: true).times(P).minus(A)
    let error = E.values.reduce(0) { $0 + $1 * $1 } / n
    let m = Dense((0..<plan.low).map { Double(w.slots[0][$0]) })
    let Z = try plan.back(m, P)
    // the mean of one minus the cosine, and its gradient by the rows of Z
    var W = Z, cosines = 0.0
    for i in 0..<rows {
      let line = i * columns..<(i + 1) * columns
      var (zz, gg, zg) = (0.0, 0.0, 0.0)
      for k in line {
        let g = Double(w.v[k]), z = Z.values[k]
        (zz, gg, zg) = (zz + z * z, gg + g * g, zg + z * g)
      }
      let a = max(zz.squareRoot(), 1e-8), b = max(gg.squareRoot(), 1e-8),
        pull = zz.squareRoot() > 1e-8 ? zg / (a * a) : 0
      cosines += zg / (a * b)
      for k in line { W.values[k] = -(Double(w.v[k]) - pull * Z.values[k]) / (a * b * Double(rows)) }
    }
    let share = 1 - cosines / Double(rows)
    let first = try reconstructionSlope(A, P)
    let second =
      plan.right
      ? try Dense(m.values, rows, plan.rank).times(W, leftTransposed: true)
      : try Dense(m.values, plan.rank, columns).times(W, transposed: true)
    return first.indices.map { first[$0] / n * share + error * second.values[$0] }
  }
}

/// The gradient by P of ‖X·PᵀP − X‖².
private func reconstructionSlope(_ X: Dense, _ P: Dense) throws(Failure) -> [Double] {
  let XP = try X.times(P, transposed: true)
  let E = try XP.times(P).minus(X), EP = try E.times(P, transposed: true)
  let a = try XP.times(E, leftTransposed: true), b = try EP.times(X, leftTransposed: true)
  return zip(a.values, b.values).map { 2 * ($0 + $1) }
}

/// The first r rows of vectors of length n, each with its entry of largest magnitude positive.
private func leading(_ rows: [Double], _ r: Int, _ n: Int) -> Dense {
  var out = Dense(Array(rows.prefix(r * n)), r, n)
  for k in 0..<r {
    var top = 0
    for j in 0..<n where abs(out.values[k * n + j]) > abs(out.values[k * n + top]) { top = j }
    if out.values[k * n + top] < 0 { for j in 0..<n { out.values[k * n + j] = -out.values[k * n + j] } }
  }
  return out
}

/// What the three share: how a matrix is projected, and Adam on the projection. The rows of P are the directions.
private struct SubspaceAdam {
  static let parameters: [Parameter] = [
    .lr(1e-3), .integer("rank", nil, .atLeast(1), "dimension of the subspace, at most the smaller side", live: false),
    .rate("beta1", 0.9, "rate of the first moment"), .rate("beta2", 0.999, "rate of the second moment"), .eps(1e-6),
    .weightDecay(0, "decoupled weight decay, after the step"), .flag("correct_bias", true, "bias corrections"),
  ]
  static let slots = [
    .moment("exp_avg", "first moment m of the subspace"), .square("exp_avg_sq", "second moment v of the subspace"),
    Slot("projector", "the directions P of the subspace, one a row"),
  ]

  /// 0: no subspace.
  let rank: Int
  /// The slot of P.
  var projector = 2
  let rows: Int, columns: Int, right: Bool, count: Int

  init(_ shape: Shape, _ rank: Int, right: Bool) {
    (rows, columns, count, self.right) = (shape.rows, shape.columns, shape.count, right)
    self.rank = shape.ndim == 2 && shape.count > 0 ? rank : 0
  }
  /// Elements of the projected gradient, and of P.
  var low: Int { rank == 0 ? count : rank &* (right ? rows : columns) }
  var basis: Int { rank &* (right ? columns : rows) }
  var slots: [Slot] {
    var list = SubspaceAdam.slots
    (list[0].count, list[1].count, list[2].count) = (low, low, basis)
    return list
  }

  /// P ← the leading singular vectors of the gradient. One of 0 has none: the old ones stay, or unit vectors.
  func choose<T: Real>(_ w: Whole<T>, first: Bool) throws(Failure) {
    let P = w.slots[projector]
    guard Flat.norm(w.v, w.count) > 0 else { return first ? units(P) : () }
    let svd = try LinearAlgebra.SVD(w.v, rows, columns), n = right ? columns : rows
    let vectors = leading(right ? svd.vt : LinearAlgebra.transposed(svd.u, rows, svd.r), rank, n)
    for i in 0..<basis { P[i] = T(vectors.values[i]) }
  }
  func units<T: Real>(_ P: UnsafeMutablePointer<T>) {
    let n = right ? columns : rows
    P.update(repeating: 0, count: basis)
    for k in 0..<rank { P[k * n + k] = 1 }
  }

  /// The gradient or its transpose, whose rows are projected, and P, in double.
  func view<T: Real>(_ w: Whole<T>) throws(Failure) -> (Dense, Dense) {
    try Memory.ask(16 * w.count)
    let G = Dense((0..<w.count).map { Double(w.v[$0]) }, rows, columns)
    return (
      right ? G : G.transposed, Dense((0..<basis).map { Double(w.slots[projector][$0]) }, rank, right ? columns : rows)
    )
  }
  func project(_ G: Dense, _ P: Dense) throws(Failure) -> [Double] {
    right
      ? try Dense(G.values, rows, columns).times(P, transposed: true).values
      : try P.times(Dense(G.values, rows, columns)).values
  }
  func back(_ R: Dense, _ P: Dense) throws(Failure) -> Dense {
    right
      ? try Dense(R.values, rows, rank).times(P) : try P.times(Dense(R.values, rank, columns), leftTransposed: true)
  }

  /// The step: v becomes the update.
  struct Step {
    let beta1, beta2, eps, factor, scale: Double
    init(_ h: Hyper, _ c: StepContext) {
      (beta1, beta2, eps) = (h.beta1, h.beta2, h.eps)
      let corrected = h.correct_bias ? (1 - power(beta2, c.t)).squareRoot() / (1 - power(beta1, c.t)) : 1
      factor = corrected * (1 - c.lr * c.weightDecay)
      scale = h.scale
    }

    func run<T: Real>(_ w: Whole<T>, _ plan: SubspaceAdam) throws(Failure) {
      try run(w, plan) { x in adam(w, x, plan.low, plan.rank > 0 ? factor * scale : factor) }
    }
    /// The same with another rule in place of Adam.
    func run<T: Real>(
      _ w: Whole<T>, _ plan: SubspaceAdam, _ rule: (UnsafeMutablePointer<T>) throws(Failure) -> Void
    ) throws(Failure) {
      guard plan.rank > 0 else { return try rule(w.v) }
      let R = w.workspace.assumingMemoryBound(to: T.self), P = w.slots[plan.projector],
        (rows, columns) = (plan.rows, plan.columns)
      if plan.right {
        try LinearAlgebra.multiply(w.v, transposed: false, P, transposed: true, into: R, rows, plan.rank, columns)
      } else {
        try LinearAlgebra.multiply(P, w.v, into: R, plan.rank, columns, rows)
      }
      Flat.clearRounding(R, plan.low)  // along directions that the gradient has nothing of, Adam would scale it up
      try rule(R)
      if plan.right {
        try LinearAlgebra.multiply(R, P, into: w.v, rows, columns, plan.rank)
      } else {
        try LinearAlgebra.multiply(P, transposed: true, R, into: w.v, rows, columns, plan.rank)
      }
    }

    /// x: the gradient, then factor·m/(√v + ε).
    private func adam<T: Real>(_ w: Whole<T>, _ x: UnsafeMutablePointer<T>, _ n: Int, _ factor: Double) {
      let (m, v) = (w.slots[0], w.slots[1])
      let (k1, t1, k2, t2, e, f) = (T(beta1), T(1 - beta1), T(beta2), T(1 - beta2), T(eps), T(factor))
      for i in 0..<n {
        m[i] = k1 * m[i] + t1 * x[i]
        v[i] = k2 * v[i] + t2 * x[i] * x[i]
        x[i] = m[i] == 0 ? 0 : f * m[i] / (v[i].squareRoot() + e)
      }
    }
  }
}
