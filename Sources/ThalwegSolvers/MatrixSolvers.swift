import Glibc
import ThalwegCore

/// The inverse p-th root of a symmetric positive semidefinite matrix.
///
///     eigh:            w ← w − min(w_min, 0) + ε, at least rel_floor·w_max;   V·diag(w^(−1/p))·Vᵀ
///     coupled_newton:  z = (p + 1)/(2·|A + ε·I|);  X = z^(1/p)·I, M = z·(A + ε·I);
///                      T = ((p + 1)·I − M)/p;  X ← X·T;  M ← Tᵖ·M  until max|M − I| ≤ tol
///
/// |·| is the Frobenius norm. Only the upper triangle's mean with the lower counts.
/// Errors   TW_ERROR_NUMERIC: the matrix is singular (an eigenvalue of 0 after the floors, a zero matrix); Newton's
///          iteration overflows.
/// Ends     converged; max_iter: Newton's iteration did not; diverged: it did, but away from the root (`residual`), as
///          it may where p is large.
/// Source   Anil, Gupta, Koren, Regan, Singer, 2020, arXiv:2002.09018; Guo, Higham, 2006.
struct InverseRoot: Driver {
  static let method = Method.solver(
    "inverse_root", "The inverse p-th root of a symmetric positive semidefinite matrix.",
    rule: """
      eigh: w <- w - min(w_min, 0) + eps, at least rel_floor w_max;  V diag(w^(-1/p)) V'
      coupled_newton: T = ((p + 1) I - M)/p;  X <- X T;  M <- T^p M, from M = z (A + eps I), X = z^(1/p) I
      """,
    source: "Anil, Gupta, Koren, Regan, Singer, 2020, arXiv:2002.09018; Guo, Higham, 2006",
    parameters: [
      .integer("p", nil, .within(1, 1024), "order of the root"), .number("eps", 0, .atLeast(0), "damping"),
      .choice("method", ["eigh", "coupled_newton"], "how"),
      .number("rel_floor", 0, .rate, "least eigenvalue, over the largest (eigh)"),
      .number("tol", 1e-12, .atLeast(0), "largest entry of M - I that ends Newton's iteration"),
      .integer("max_iter", 100, .atLeast(1), "most iterations"),
    ],
    inputs: [
      .constant("a", "n, n", "symmetric positive semidefinite"), .result("root", "n, n", "A^(-1/p)"),
      .result("iterations", "", "iterations"), .result("residual", "", "largest entry of root^p (A + eps I) - I"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let a = try io["a"], n = a.rows, p = h.integer("p"), order = Double(p)
    guard a.isFinite else { throw Failure(Status.nonfinite, "`a` must be finite") }
    try Memory.ask(8 * 6 * n * n)
    var m = (0..<n * n).map { (Double(a.p[$0]) + Double(a.p[$0 % n * n + $0 / n])) / 2 }
    func times(_ x: [Double], _ y: [Double]) throws(Failure) -> [Double] {
      var out = x
      try LinearAlgebra.multiply(x, y, into: &out, n, n, n)
      return out
    }
    func power(_ x: [Double]) throws(Failure) -> [Double] {
      var out = x
      for _ in 1..<p { out = try times(out, x) }
      return out
    }
    func off(_ x: [Double]) -> Double {
      guard x.allSatisfy(\.isFinite) else { return .infinity }
      return x.indices.reduce(0) { max($0, abs(x[$1] - ($1 % (n + 1) == 0 ? 1 : 0))) }
    }
    let singular = Failure(Status.numeric, "the matrix is singular: give a damping `eps`")
    var root: [Double], ending = Ending.converged
    if h.is("method", "eigh") {
      let eigen = try LinearAlgebra.Eigen(m, n), top = eigen.values[0], low = min(eigen.values[n - 1], 0)
      let floor = h.rel_floor * (top - low + h.eps)
      let w = eigen.values.map { max($0 - low + h.eps, floor) }
      guard w.allSatisfy({ $0 > 0 }) else { throw singular }
      root = m
      let factors = w.map { pow($0, -1 / order) }
      var k = 0
      try eigen.compose(&root) { _ in
        defer { k += 1 }
        return factors[k]
      }
      // of the matrix that was taken to its root
      k = 0
      try eigen.compose(&m) { _ in
        defer { k += 1 }
        return w[k]
      }
    } else {
      for i in 0..<n { m[i * (n + 1)] += h.eps }
      let damped = m, size = Flat.norm(m, n * n)
      guard size > 0 else { throw singular }
      let z = (order + 1) / (2 * size), start = pow(z, 1 / order)
      m = m.map { $0 * z }
      root = [Double](repeating: 0, count: n * n)
      for i in 0..<n { root[i * (n + 1)] = start }
      while off(m) > h.tol {
        if io.iterations >= h.max_iter {
          ending = .maxIter
          break
        }
        var t = m.map { -$0 / order }
        for i in 0..<n { t[i * (n + 1)] += (order + 1) / order }
        root = try times(root, t)
        m = try times(try power(t), m)
        guard off(m).isFinite else {
          throw Failure(Status.numeric, "Newton's iteration overflows: use method=eigh, or give a damping `eps`")
        }
        io.iterations += 1
      }
      for i in 0..<n {
        for j in 0..<i {
          let mean = (root[i * n + j] + root[j * n + i]) / 2
          (root[i * n + j], root[j * n + i]) = (mean, mean)
        }
      }
      m = damped
    }
    io.residual = off(try times(try power(root), m))
    // M and X no longer belong together where rounding has grown
    if ending == .converged, !h.is("method", "eigh"), !(io.residual <= 1e-3) { ending = .diverged }
    let out = try io["root"]
    for i in 0..<n * n { out.p[i] = T(root[i]) }
    return .done(ending)
  }
}

/// Products with the inverse of an empirical Fisher matrix, its diagonal and its factors, without that matrix.
///
///     F = damp·I + (1/m)·Σ gᵢ·gᵢᵀ
///     vᵢ = gᵢ/damp − Σ_{j<i} vⱼ·(vⱼ·gᵢ)/qⱼ;   qᵢ = m + gᵢ·vᵢ
///     F⁻¹·x = x/damp − Σ vᵢ·(vᵢ·x)/qᵢ;   diag_k = 1/damp − Σ vᵢₖ²/qᵢ
///
/// The gradients of the samples are the rows of `grads`. An element of F⁻¹ is [i = j]/damp − Σ_k v_ki·v_kj/q_k.
/// block_size: F counts as block-diagonal, with blocks of so many parameters (the last one shorter); `q` has a row a
/// block.
/// Ends     converged.
/// Source   Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356.
struct MFACStatic: Driver {
  static let method = Method.solver(
    "mfac_static", "Products with the inverse of an empirical Fisher matrix, without that matrix.",
    rule: """
      F = damp I + sum g_i g_i'/m;  v_i = g_i/damp - sum_(j<i) v_j (v_j.g_i)/q_j;  q_i = m + g_i.v_i
      F^-1 x = x/damp - sum v_i (v_i.x)/q_i;  diagonal = 1/damp - sum v_i^2/q_i
      """,
    source: "Frantar, Kurtic, Alistarh, 2021, arXiv:2107.03356",
    parameters: [
      .number("damp", 1e-5, .above(0), "multiple of the identity in F"),
      .maybeInteger("block_size", .atLeast(1), "parameters of a block; none: one block"),
    ],
    inputs: [
      .constant("grads", "m, n", "gradients of samples"), .constant("x", "k, n", "what is multiplied", optional: true),
      .result("products", "k, n", "F^-1 of each x"), .result("diagonal", "n", "of F^-1"),
      .result("v", "m, n", "factors of F^-1"), .result("q", "blocks, m", "their divisors"),
    ])

  let damp: Double, block: Int?
  init(_ h: Hyper) { (damp, block) = (h.damp, h.has("block_size") ? h.integer("block_size") : nil) }
  func axes(_ sizes: Sizes) throws(Failure) -> [String: Int] {
    let n = sizes["n"], size = min(block ?? n, n)
    return ["blocks": n / max(1, size) + (size > 0 && n % size > 0 ? 1 : 0)]
  }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let g = try io["grads"], v = try io["v"], q = try io["q"], diagonal = try io["diagonal"], m = g.rows
    let n = diagonal.count, size = min(block ?? n, n)
    guard g.isFinite else { throw Failure(Status.nonfinite, "`grads` must be finite") }
    let x = io.optional("x"), products = io.optional("products")
    for (b, first) in stride(from: 0, to: n, by: max(1, size)).enumerated() {
      let length = min(size, n - first)
      func part(_ t: Vector<T>, _ i: Int) -> UnsafeMutablePointer<T> { t.p + i * n + first }
      // wide sums and factors: what is left of a gradient may be small beside it
      try Memory.ask(8 * (m * length + m))
      var factors = [Double](repeating: 0, count: m * length), divisors = [Double](repeating: 0, count: m)
      for i in 0..<m {
        let own = (0..<length).map { Double(part(g, i)[$0]) }
        var rest = own.map { $0 / damp }
        for j in 0..<i {
          let c = (0..<length).reduce(0) { $0 + factors[j * length + $1] * own[$1] } / divisors[j]
          if c != 0 { for k in 0..<length { rest[k] -= c * factors[j * length + k] } }
        }
        divisors[i] = Double(m) + zip(own, rest).reduce(0) { $0 + $1.0 * $1.1 }
        for k in 0..<length {
          factors[i * length + k] = rest[k]
          part(v, i)[k] = T(rest[k])
        }
        q.p[b * m + i] = T(divisors[i])
      }
      for k in 0..<length {
        let sum = (0..<m).reduce(0.0) {
          let f = factors[$1 * length + k]
          return $0 + f * f / divisors[$1]
        }
        diagonal.p[first + k] = T(1 / damp - sum)
      }
      guard let x, let products else { continue }
      for r in 0..<x.rows {
        let own = (0..<length).map { Double(part(x, r)[$0]) }
        var out = own.map { $0 / damp }
        for i in 0..<m {
          let c = (0..<length).reduce(0) { $0 + factors[i * length + $1] * own[$1] } / divisors[i]
          if c != 0 { for k in 0..<length { out[k] -= c * factors[i * length + k] } }
        }
        for k in 0..<length { part(products, r)[k] = T(out[k]) }
      }
    }
    return .done(.converged)
  }
}
