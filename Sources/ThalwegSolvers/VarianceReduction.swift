import Glibc
import ThalwegCore

extension RequestKind {
  static let fullGradient = RequestKind(
    "full_gradient", "the gradient over all data", given: [.given("point", "n", "where")],
    wanted: [.wanted("gradient", "n", "the gradient there")])
  /// Requests that follow one that is fresh are of the same sample.
  static let sampleGradient = RequestKind(
    "sample_gradient", "the gradient on a sample or minibatch", given: [.given("point", "n", "where")],
    wanted: [.wanted("gradient", "n", "the gradient there")])
}

/// AI-SARAH: the recursive estimate of SARAH with step sizes from its own curvature; nothing to tune.
///
///     v = ∇f(x);  while |v|² ≥ γ·|v₀|²:  on one sample  g₀ = ∇f_i(x), Hv, and t = D³f_i(x)[v, v, v] (third)
///       ξ'(0) = −2·v·Hv,  ξ''(0) = 2|Hv|² + 2t;   a = max(−ξ'(0)/|ξ''(0)|, 0);   α = min(a, α_max)
///       the first time of all: δ = 1/a, α_max = a;   later δ ← β·δ + (1−β)/a, α_max = 1/δ;   not where a = 0
///       x ← x − α·v;   v ← ∇f_i(x) − g₀ + v
///
/// ξ(a) = |∇f_i(x − a·v) − ∇f_i(x) + v|².
/// Ends     converged: |∇f(x)| ≤ tol; max_iter outer steps, or `inner` inner ones in each.
/// Differs  a step uphill, from a sample that is not convex, is none; its inner loop still counts.
/// Source   Shi, Loizou, Richtarik and Takac, 2021, arXiv:2102.09700.
struct AISARAH: Driver {
  static let method = Method.solver(
    "ai_sarah", "AI-SARAH: the recursive gradient estimate with step sizes from its own curvature.",
    rule: """
      v = grad f(x);  while |v|^2 >= gamma |v0|^2, on one sample: xi' = -2 v.Hv, xi'' = 2 |Hv|^2 + 2 D3f[v, v, v]
      a = max(-xi'/|xi''|, 0);  alpha = min(a, alpha_max), 1/alpha_max the average of 1/a
      x <- x - alpha v;  v <- grad f_i(x) - grad f_i(x before) + v
      """,
    source: "Shi, Loizou, Richtarik, Takac, 2021, arXiv:2102.09700",
    parameters: [
      .number("gamma", 1.0 / 32, .between(0, 1, lowOpen: true, highOpen: true), "share of |v|^2 that ends a loop"),
      .number("beta", 0.999, .between(0, 1, lowOpen: true, highOpen: true), "rate of the average of 1/a"),
      .flag("third", true, "with third derivatives"),
      .number("tol", 0, .atLeast(0), "norm of the gradient that ends it"),
      .integer("inner", 10_000, .atLeast(1), "most steps of a loop"),
      .integer("max_iter", 20, .atLeast(0), "outer steps"),
    ],
    inputs: [
      .constant("x0", "n", "the point to start with"), .result("x", "n", "the point"),
      .result("iterations", "", "outer steps"), .result("steps", "", "inner steps, all together"),
      .result("residual", "", "norm of the last full gradient"), .result("alpha", "", "the last step size"),
      .result("alpha_max", "", "its bound"),
    ],
    asks: [
      .fullGradient, .sampleGradient,
      RequestKind(
        "sample_hvp", "the Hessian on the same sample, times a vector",
        given: [.given("point", "n", "where"), .given("vector", "n", "the vector")],
        wanted: [.wanted("product", "n", "the product")]),
      RequestKind(
        "sample_third", "the third derivative on the same sample along a vector, twice",
        given: [.given("point", "n", "where"), .given("vector", "n", "the vector")],
        wanted: [.wanted("third", "n", "D3f(x)[v, v]")]),
    ],
    kept: [
      .kept("v", "n", "the estimate of the gradient"), .kept("before", "n", "gradient of the sample before the step"),
      .kept("after", "n", "after it"), .kept("hv", "n", "Hessian product"), .kept("t3", "n", "third derivative"),
      .kept("size", "", "|v0|^2"), .kept("delta", "", "average of 1/a"), .kept("tries", "", "steps of this loop"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, outer, full, inner, gradient, product, third, step }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], v = try io["v"], before = try io["before"], after = try io["after"], hv = try io["hv"]
    let t3 = try io["t3"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      io.alpha_max = .infinity
      return .go(.outer)
    case .outer: return .ask("full_gradient", [x], [v], fresh: true, then: .full)
    case .full:
      io.residual = v.norm
      if io.residual <= h.tol { return .done(.converged) }
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      io.iterations += 1
      (io.size, io.tries) = (v.dot(v), 0)
      return .go(.inner)
    case .inner:
      if v.dot(v) < h.gamma * io.size || io.tries >= h.inner { return .go(.outer) }
      return .ask("sample_gradient", [x], [before], fresh: true, then: .gradient)
    case .gradient: return .ask("sample_hvp", [x, v], [hv], then: .product)
    case .product:
      if h.third { return .ask("sample_third", [x, v], [t3], then: .third) }
      return .go(.third)
    case .third:
      let slope = -2 * v.dot(hv), curve = 2 * hv.dot(hv) + 2 * (h.third ? v.dot(t3) : 0)
      let a = curve == 0 ? 0 : max(-slope / abs(curve), 0)
      io.alpha = min(a, io.alpha_max)
      if a > 0 {
        io.delta = io.alpha_max == .infinity ? 1 / a : h.beta * io.delta + (1 - h.beta) / a
        io.alpha_max = 1 / io.delta
      }
      x.add(v, times: -io.alpha)
      return .ask("sample_gradient", [x], [after], then: .step)
    case .step:
      v.add(after)
      v.add(before, times: -1)
      io.tries += 1
      io.steps += 1
      return .go(.inner)
    }
  }
}

/// Prospect: incremental descent of a spectral risk, with tables of the samples' losses and gradients.
///
///     λ = weights of the table's losses;  ρ = λ;  s = Σ ρ_i·G_i
///     sample i:  v = n·λ_i·g − n·ρ_i·G_i + s;   w ← w − lr·v   (reg=prox: then w/(1 + lr·mu))
///     losses_i ← l;  λ' = weights of the table;  s ← s + λ_i·g − ρ_i·G_i;  ρ_i ← λ_i;  G_i ← g
///
/// The weights are asked for: `spectral_risk` gives them, or another weighting. reg=grad adds mu·w to every g.
/// Ends     max_iter.
/// Differs  the sample of step k is ⌊n·u⌋, u the normal distribution function at the first draw of (seed, 0, k, 0).
/// Source   Mehta, Roulet, Pillutla and Harchaoui, 2023, arXiv:2310.13863.
struct Prospect: Driver {
  static let method = Method.solver(
    "prospect", "Prospect: incremental descent of a spectral risk with tables of losses and gradients.",
    rule: """
      v = n lambda_i g - n rho_i G_i + s, s = sum rho_j G_j;  w <- w - lr v (prox: then w/(1 + lr mu))
      table_i <- (loss, g);  s <- s + lambda_i g - rho_i G_i, rho_i <- lambda_i;  lambda = weights of the losses
      """,
    source: "Mehta, Roulet, Pillutla, Harchaoui, 2023, arXiv:2310.13863",
    parameters: [
      .integer("samples", nil, .within(1, 0x1p24), "how many samples there are"),
      .number("lr", 0.01, .above(0), "step size"), .number("mu", 0, .atLeast(0), "weight of |w|^2/2"),
      .choice("reg", ["grad", "prox"], "how it counts"), .integer("max_iter", 1000, .atLeast(0), "steps"),
      Population.seed,
    ],
    inputs: [
      .constant("x0", "n", "the parameters to start with"), .result("x", "n", "the parameters"),
      .result("iterations", "", "steps"), .result("losses", "samples", "the table's losses"),
      .result("weights", "samples", "their weights"),
    ],
    asks: [
      RequestKind(
        "all", "the losses and gradients of all samples", given: [.given("point", "n", "where")],
        wanted: [.wanted("losses", "samples", "losses"), .wanted("gradients", "samples, n", "gradients")]),
      RequestKind(
        "risk_weights", "the weights of losses, as spectral_risk gives them",
        given: [.given("losses", "samples", "losses")], wanted: [.wanted("weights", "samples", "their weights")]),
      RequestKind(
        "sample", "the loss and gradient of one sample",
        given: [.given("index", "", "which sample, from 0"), .given("point", "n", "where")],
        wanted: [.wanted("loss", "", "loss"), .wanted("gradient", "n", "gradient")]),
    ],
    kept: [
      .kept("l", "samples", "the table's losses"), .kept("q", "samples", "their weights"),
      .kept("table", "samples, n", "gradients"), .kept("rho", "samples", "their weights in s"),
      .kept("sum", "n", "s"), .kept("g", "n", "gradient of the sample"), .kept("index", "", "the sample"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, all, first, step, sample, weights }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], losses = try io["l"], weights = try io["q"], table = try io["table"]
    let rho = try io["rho"], sum = try io["sum"], g = try io["g"], n = table.rows
    let mu = h.is("reg", "grad") ? h.mu as Double : 0
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .ask("all", [x], [losses, table], then: .all)
    case .all:
      for i in 0..<n { table.row(i).add(x, times: mu) }
      return .ask("risk_weights", [losses], [weights], then: .first)
    case .first:
      rho.copy(weights)
      for i in 0..<n { sum.add(table.row(i), times: Double(rho.p[i])) }
      return .go(.step)
    case .step:
      try io["losses"].copy(losses)
      try io["weights"].copy(weights)
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      let u = 0.5 * erfc(-Random.normal(Population.key(h, io.iterations), 0) * 0.5.squareRoot())
      io.index = Double(min(n - 1, max(0, Int(u * Double(n)))))
      return .ask("sample", [x], [g], fresh: true, then: .sample)
    case .sample:
      let i = try io.count("index", n - 1), old = table.row(i), l = Double(weights.p[i]), r = Double(rho.p[i])
      g.add(x, times: mu)
      let size = Double(n)
      x.add(g, times: -h.lr * size * l)
      x.add(old, times: h.lr * size * r)
      x.add(sum, times: -h.lr)
      if !h.is("reg", "grad") { x.set(1 / (1 + h.lr * h.mu), x) }
      losses.p[i] = T(io.loss)
      sum.add(g, times: l)
      sum.add(old, times: -r)
      rho.p[i] = T(l)
      old.copy(g)
      return .ask("risk_weights", [losses], [weights], then: .weights)
    case .weights:
      io.iterations += 1
      return .go(.step)
    }
  }
}

/// DIFF2: private descent along an estimate that is carried by differences of clipped gradients.
///
///     r mod restart = 0:  v = mean_i clip(g_i(w), clip1) + sigma1·clip1/n·z
///     else, c = clip2·|w − w_prev|:   v ← v + mean_i clip(g_i(w) − g_i(w_prev), c) + sigma2·c/n·z
///     w ← w − lr·v,   clip(x, c) = x·min(1, c/|x|),  z ~ N(0, I)
///
/// Ends     max_iter.
/// Differs  sigma is per clip/n: what factor neighbouring data sets take is the host's accounting. The draws are the
///          library's seeded ones, which make runs repeatable but are not cryptographically safe.
/// Source   Murata and Suzuki, 2023, arXiv:2302.03884.
struct DIFF2: Driver {
  static let method = Method.solver(
    "diff2", "DIFF2: private descent along differences of clipped gradients.",
    rule: """
      every restart steps: v = mean clip(g_i(w), clip1) + sigma1 clip1/n z
      else, c = clip2 |w - w_prev|: v <- v + mean clip(g_i(w) - g_i(w_prev), c) + sigma2 c/n z;  w <- w - lr v
      """,
    source: "Murata, Suzuki, 2023, arXiv:2302.03884",
    parameters: [
      .integer("samples", nil, .within(1, 0x1p24), "how many samples there are"),
      .number("lr", 0.1, .above(0), "step size"), .number("clip1", 1, .above(0), "clip of gradients"),
      .number("clip2", 1, .above(0), "clip of differences, over the distance"),
      .number("sigma1", nil, .atLeast(0), "noise at restarts, over clip/n"),
      .number("sigma2", nil, .atLeast(0), "noise of differences, over clip/n"),
      .integer("restart", 10, .atLeast(1), "steps from one restart to the next"),
      .integer("max_iter", 100, .atLeast(0), "steps"), Population.seed,
    ],
    inputs: [
      .constant("x0", "n", "the parameters to start with"), .result("x", "n", "the parameters"),
      .result("iterations", "", "steps"), .result("estimate", "n", "the estimate v of the gradient"),
    ],
    asks: [
      RequestKind(
        "sample_gradients", "the gradients of all samples", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradients", "samples, n", "gradients there")])
    ],
    kept: [
      .kept("now", "samples, n", "gradients at w"), .kept("then", "samples, n", "gradients at the point before"),
      .kept("last", "n", "the point before"), .kept("noise", "n", "draws"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, step, now, then }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], v = try io["estimate"], now = try io["now"], then = try io["then"], last = try io["last"]
    let noise = try io["noise"], n = Double(now.rows)
    func move(_ c: Double, _ sigma: Double) -> Verdict<Phase> {
      for i in 0..<now.rows {
        let g = now.row(i), size = g.norm
        v.add(g, times: (size > c ? c / size : 1) / n)
      }
      if sigma > 0 {
        noise.draw(Population.key(h, io.iterations))
        v.add(noise, times: sigma * c / n)
      }
      last.copy(x)
      x.add(v, times: -h.lr)
      io.iterations += 1
      return .go(.step)
    }
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.step)
    case .step:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("sample_gradients", [x], [now], fresh: true, then: .now)
    case .now:
      if io.iterations.truncatingRemainder(dividingBy: h.restart) == 0 {
        v.fill(0)
        return move(h.clip1, h.sigma1)
      }
      return .ask("sample_gradients", [last], [then], then: .then)
    case .then:
      now.add(then, times: -1)
      return move(h.clip2 * x.distance(last), h.sigma2)
    }
  }
}

/// Proximal iterations on a cheap proxy whose gradient is corrected by the objective's.
///
///     h = ∇f(x) − ∇proxy(x);  z = x;  up to `inner` times: d = ∇proxy(z) + h + eta·(z − x);  z ← z − lr·d;   x ← z
///     an inner loop ends before a step with |d| ≤ tol
///
/// proxy = f is the proximal point method, proxy = 0 descent with the step 1/eta.
/// Ends     max_iter.
/// Differs  the last inner iterate goes on; the paper's random one is for its bounds.
/// Source   Woodworth, Mishchenko and Bach, 2023, arXiv:2302.03542.
struct ProxyProx: Driver {
  static let method = Method.solver(
    "proxy_prox", "Proximal iterations on a cheap proxy whose gradient is corrected.",
    rule: """
      h = grad f(x) - grad proxy(x);  z = x;  inner times: z <- z - lr (grad proxy(z) + h + eta (z - x));  x <- z
      """,
    source: "Woodworth, Mishchenko, Bach, 2023, arXiv:2302.03542",
    parameters: [
      .number("eta", 1, .atLeast(0), "strength of the proximal term"),
      .integer("inner", 50, .atLeast(1), "most inner steps"), .number("lr", 0.1, .above(0), "inner step size"),
      .number("tol", 0, .atLeast(0), "norm of d that ends an inner loop"),
      .integer("max_iter", 100, .atLeast(0), "gradients of the objective"),
    ],
    inputs: [
      .constant("x0", "n", "the point to start with"), .result("x", "n", "the point"),
      .result("iterations", "", "gradients of the objective"), .result("steps", "", "inner steps, all together"),
      .result("residual", "", "norm of the last gradient of the objective"),
    ],
    asks: [
      .fullGradient,
      RequestKind(
        "proxy_gradient", "the gradient of the proxy", given: [.given("point", "n", "where")],
        wanted: [.wanted("gradient", "n", "the gradient there")]),
    ],
    kept: [
      .kept("correction", "n", "h"), .kept("g", "n", "gradient of the objective"), .kept("q", "n", "of the proxy"),
      .kept("z", "n", "inner iterate"), .kept("tries", "", "inner steps of this loop"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start, outer, gradient, proxy, inner }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], z = try io["z"], g = try io["g"], q = try io["q"], correction = try io["correction"]
    switch phase {
    case .start:
      x.copy(try io["x0"])
      return .go(.outer)
    case .outer:
      if io.iterations >= h.max_iter { return .done(.maxIter) }
      return .ask("full_gradient", [x], [g], fresh: true, then: .gradient)
    case .gradient:
      io.residual = g.norm
      return .ask("proxy_gradient", [x], [q], then: .proxy)
    case .proxy:
      correction.set(1, g, -1, q)
      z.copy(x)
      io.tries = 0
      io.iterations += 1
      return .ask("proxy_gradient", [z], [q], then: .inner)
    case .inner:
      q.add(correction)
      q.add(z, times: h.eta)
      q.add(x, times: -h.eta)
      if q.norm <= h.tol {
        x.copy(z)
        return .go(.outer)
      }
      z.add(q, times: -h.lr)
      io.tries += 1
      io.steps += 1
      if io.tries < h.inner { return .ask("proxy_gradient", [z], [q], then: .inner) }
      x.copy(z)
      return .go(.outer)
    }
  }
}
