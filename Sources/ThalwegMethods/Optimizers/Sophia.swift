import ThalwegCore

/// Sophia: the momentum over a diagonal of the Hessian, clipped entry by entry.
///
///     m ← β₁·m + (1 − β₁)·g
///     every k steps, the first included: h ← β₂·h + (1 − β₂)·ĥ
///         hutchinson: ĥ = z⊙Hz, z normal numbers or random signs
///         gnb: ĥ = B·g_s², g_s the gradient of the mean loss with B labels drawn from the model
///     θ ← θ·(1 − lr·wd) − lr·clip(m/max(γ·h, ε)),   or m/(γ·h + ε);   m/(1 − β₁ᵗ) with bias_correction
///
/// State    m, h; ĥ with order=after; within a step the probe (hutchinson) and the gradient.
/// Differs  with order=after a step moves by the old h, and h takes the estimate of that step. An estimate that is not
///          finite is left out, in all tensors. g_s comes as the gradient of task 1 of 2.
/// Source   Liu, Li, Hall, Liang, Ma, 2023, arXiv:2305.14342.
struct Sophia: ElementRule {
  static let method = Method(
    "sophia", .optimizer, "Sophia: the momentum over a diagonal of the Hessian, clipped entry by entry.",
    rule: """
      m <- beta1*m + (1 - beta1)*g;  every interval steps h <- beta2*h + (1 - beta2)*h_hat
      h_hat = z*Hz (hutchinson), or batch_size*g_s^2 (gnb), g_s the gradient with labels drawn from the model
      theta <- theta*(1 - lr*weight_decay) - lr*clip(m/max(gamma*h, eps), -clip, clip), or m/(gamma*h + eps)
      """,
    source: "Liu, Li, Hall, Liang, Ma, 2023, arXiv:2305.14342",
    parameters: [
      .lr(1e-4), .rate("beta1", 0.965, "rate of the momentum"), .rate("beta2", 0.99, "rate of the diagonal"),
      .maybe("gamma", .above(0), "scale of the diagonal; none: 0.01, 0.05 for gnb"),
      .eps(1e-12, "floor of the denominator", .above(0)), .weightDecay(0.1, "decoupled weight decay"),
      .integer("interval", 10, .atLeast(1), "steps between estimates").forAll,
      .number("clip", 1, .above(0), "largest entry of the update"),
      .choice("denominator", ["max", "add"], "max(gamma*h, eps), or gamma*h + eps"),
      .choice("order", ["before", "after"], "h moves before or after the parameters", live: false),
      .flag("bias_correction", false, "the momentum is corrected for its start at 0"),
      .choice(
        "estimator", ["hutchinson", "gnb"], "Hessian-vector products, or gradients with labels drawn from the model",
        live: false),
      .choice("probe", ["gaussian", "rademacher"], "hutchinson's vector: normal numbers or random signs").forAll,
      .number("batch_size", 1, .above(0), "labels B that were drawn (gnb)").forAll,
    ],
    slots: [
      .moment("exp_avg", "the momentum m"), Slot("hessian", "the diagonal h"), Slot("estimate", "the last estimate"),
    ],
    requests: "hessian_vector, task_gradient")

  static func slots(_ h: Hyper, _ shape: Shape) -> [Slot] {
    h.is("order", "after") ? method.slots : Array(method.slots.prefix(2))
  }
  /// How many steps there were, and whether h takes an estimate in this one.
  static func scalars(_ h: Hyper) -> [Scalar] { [Scalar("steps"), Scalar("fresh")] }

  static func decay(_ h: Hyper) -> Decay { .decoupled }

  let beta1, beta2, scale, gamma, eps, clip: Double
  let adds, late, early: Bool
  init(_ h: Hyper, _ c: StepContext) {
    (beta1, beta2, eps, clip) = (h.beta1, h.beta2, h.eps, h.clip)
    gamma = h.has("gamma") ? h.gamma : h.is("estimator", "gnb") ? 0.05 : 0.01
    scale = h.bias_correction ? 1 / (1 - power(beta1, c.t)) : 1
    adds = h.is("denominator", "add")
    late = h.is("order", "after") && c.scalars[1] == 1
    early = h.is("order", "before") && h.is("estimator", "hutchinson") && c.scalars[1] == 1
  }

  @inline(__always) func direction<L: Lane>(_ g: L, _ x: L, _ s: Slots<L>) -> L {
    let m = beta1 * s[0] + (1 - beta1) * g
    var h = s[1]
    s[0] = m
    if early {  // the estimate lies where the probe was
      h = beta2 * h + (1 - beta2) * s[2]
      s[1] = h
    }
    if late { s[1] = beta2 * h + (1 - beta2) * s[2] }
    let d = adds ? gamma * h + eps : L.max(gamma * h, eps)
    return d.divide(scale * m).clipped(to: clip)
  }

  static let registered = entry(Sophia.self, source: { (h) throws(Failure) in try Curvature(h) })

  struct Curvature: Source {
    static var method: Method { Sophia.method }
    let after, hutchinson: Bool
    let vector, gradient: Int
    init(_ h: Hyper) throws(Failure) {
      (after, hutchinson) = (h.is("order", "after"), h.is("estimator", "hutchinson"))
      vector = after ? 3 : 2
      gradient = hutchinson ? vector + 1 : vector
    }
    var slots: [Slot] {
      (hutchinson ? [Slot.temporary("probe", "the vector z")] : [])
        + [Slot.temporary("gradient", "the gradient of the step")]
    }
    var probe: Int? { hutchinson ? 0 : nil }
    func most(_ tensors: Int) -> Int { 2 }
    var kinds: [Request.Kind] { hutchinson ? [.hessianVector] : [.taskGradient] }

    /// The estimate of an entry from the answer g: its square, or its product with the probe, which takes the place of
    /// the probe. The sum is NaN where one is not finite.
    struct Estimates: ElementSum {
      let squares: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: L, _ g: L, _ s: Slots<L>, _ sums: inout Sums) {
        let e = squares ? g * g : s[0] * g
        if !squares { s[0] = e }
        sums.add(0, e - e)
      }
    }
    /// A slot takes the estimates: squares of the answer, or what lies in the slot behind it.
    struct Take: ElementOperation {
      let keep, take: Double, squares: Bool
      @inline(__always) func callAsFunction<L: Lane>(_ x: inout L, _ g: inout L, _ s: Slots<L>) {
        s[0] = keep * s[0] + take * (squares ? g * g : s[1])
      }
    }

    func advance(_ phase: Int, _ io: SourceIO) throws(Failure) -> Move {
      let h = io.hyper
      if phase == 0 {
        if io.counter(0) % max(1, h.integer("interval")) != 0 { return done(io, fresh: false, nil) }
        io.keep(gradient, reads: true)
        if !hutchinson { return .ask(Ask(.taskGradient, index: 1, count: 2)) }
        io.draw(vector, signs: h.is("probe", "rademacher"))
        return .ask(Ask(.hessianVector))
      }
      let squares = !hutchinson, update = io.gradient(in: gradient)
      if io.sum(Estimates(squares: squares), slots: [vector])[0].isNaN { return done(io, fresh: false, update) }
      let size: Double = squares ? h.batch_size : 1
      if after {
        io.change(Take(keep: 0, take: size, squares: squares), slots: [2, vector], parameters: false)
      } else if squares {
        io.change(slots: [1], parameters: false) { own in
          let beta2: Double = own.beta2
          return Take(keep: beta2, take: (1 - beta2) * size, squares: true)
        }
      }
      return done(io, fresh: true, update)
    }

    private func done(_ io: SourceIO, fresh: Bool, _ update: GradientOperation?) -> Move {
      io.setScalar(0, io.scalar(0) + 1)
      io.setScalar(1, fresh ? 1 : 0)
      return .update(update)
    }
  }
}
