import Glibc
import ThalwegCore

/// The minimum residual method for a symmetric, perhaps indefinite operator: Lanczos vectors, and a QR factorisation of
/// the tridiagonal matrix by plane rotations.
///
///     w = A·v − shift·v;  α = v·w;  w ← w − α·v − β·v₀;  β' = |w|
///     ρ₃ = s₀·β;  ρ₂ = c·c₀·β + s·α;  ρ = hypot(c·α − s·c₀·β, β');  d = (v − ρ₃·d₂ − ρ₂·d₁)/ρ;  x ← x + c'·η·d
///
/// The residual is |η|, of the recurrence.
/// Ends     converged: |η| ≤ max(rtol·|b|, atol), or β' = 0; max_iter, also where ρ is 0, or |d| at least 1/(16 ulp)
///          over the largest |A·v| so far: the system is singular and has no solution, and x is that of before.
/// Differs  from scipy's in the stop rule alone, which there estimates the norm of the operator as well.
/// Source   Paige, Saunders, 1975.
struct MINRES: Driver {
  static let method = Method.solver(
    "minres", "The minimum residual method for a symmetric, perhaps indefinite operator.",
    rule: """
      w = A v - shift v;  alpha = v.w;  w <- w - alpha v - beta v0;  beta' = |w|
      rho3 = s0 beta;  rho2 = c c0 beta + s alpha;  rho = hypot(c alpha - s c0 beta, beta')
      d = (v - rho3 d2 - rho2 d1)/rho;  x <- x + c' eta d;  eta <- -s' eta
      """,
    source: "Paige, Saunders, 1975",
    parameters: [.number("shift", 0, .any, "multiple of the identity that is taken off the operator")]
      + KrylovStop.parameters(rtol: 1e-5, factor: "five"),
    inputs: KrylovStop.inputs + KrylovStop.results, asks: [.product],
    kept: [
      .kept("v", "...", "Lanczos vector"), .kept("v_last", "...", "the one before"), .kept("q", "...", "product"),
      .kept("d", "2, ...", "the last two directions, by parity"), .kept("tolerance", "", "residual that ends it"),
      .kept("beta", "", "length of the last Lanczos vector"), .kept("eta", "", "residual with its sign"),
      .kept("c", "", "last rotation, cosine"), .kept("s", "", "last rotation, sine"),
      .kept("c_last", "", "rotation before, cosine"), .kept("s_last", "", "rotation before, sine"),
      .kept("scale", "", "length of the largest product so far"),
    ])

  let stop: KrylovStop, shift: Double
  init(_ h: Hyper) { (stop, shift) = (KrylovStop(h), h.shift) }

  enum Phase: Int { case start, residual, product }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let x = try io["x"], v = try io["v"], last = try io["v_last"], q = try io["q"]
    switch phase {
    case .start:
      guard try stop.begin(io) else { return .done(.converged) }
      if io.optional("x0") != nil { return .ask("product", [x], [q], then: .residual) }
      return first(io, v, q, try io["b"])
    case .residual:
      q.set(1, try io["b"], -1, q)
      q.add(x, times: shift)
      return first(io, v, q, q)
    case .product:
      q.add(v, times: -shift)
      io.scale = max(io.scale, q.norm)
      let alpha = v.dot(q)
      q.add(v, times: -alpha)
      if io.iterations > 0 { q.add(last, times: -io.beta) }
      let next = q.norm
      let r3 = io.s_last * io.beta, t = io.c_last * io.beta, r2 = io.c * t + io.s * alpha
      let rest = io.c * alpha - io.s * t, r1 = hypot(rest, next)
      guard r1.isFinite else { return .done(.nonfinite) }
      (io.c_last, io.s_last) = (io.c, io.s)
      (io.c, io.s) = (rest / r1, next / r1)
      // the new direction goes where the one before the last was
      let k = try io.count("iterations"), d = try io["d"], new = d.row(k & 1)
      new.set(-r3 / r1, new, -r2 / r1, d.row((k + 1) & 1))
      new.add(v, times: 1 / r1)
      // A·d has length 1: where d is this long the operator is singular up to rounding, and x would be rounding alone
      guard new.norm * io.scale < 1 / (16 * (T.isDouble ? 0x1p-52 : 0x1p-23)) else { return .done(.maxIter) }
      x.add(new, times: io.c * io.eta)
      io.eta *= -io.s
      (io.iterations, io.residual, io.beta) = (io.iterations + 1, abs(io.eta), next)
      if next == 0 { return .done(.converged) }
      if let end = stop.check(io, factor: 5) { return .done(end) }
      last.copy(v)
      v.set(1 / next, q)
      return .ask("product", [v], [q], then: .product)
    }
  }

  /// The first Lanczos vector, from the residual r.
  private func first<T: Real>(_ io: DriverIO<T>, _ v: Vector<T>, _ q: Vector<T>, _ r: Vector<T>) -> Verdict<Phase> {
    let size = r.norm
    (io.eta, io.residual) = (size, size)
    (io.c, io.c_last) = (1, 1)
    if let end = stop.check(io, factor: 5) { return .done(end) }
    v.set(1 / size, r)
    return .ask("product", [v], [q], then: .product)
  }
}
