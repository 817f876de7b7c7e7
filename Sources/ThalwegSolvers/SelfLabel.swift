import Glibc
import ThalwegCore

/// Balanced pseudo-labels: the probabilities of all samples, sharpened and scaled so that every class gets its share.
///
///     S = P^lam;  r_k = target_k/Σ_i S_ik·c_i;  c_i = (1/N)/Σ_k S_ik·r_k, from c = 1/N;  label_i = argmax_k r_k·S_ik
///
/// In logarithms, which do not underflow. The error Σ|c/c' − 1| is looked at in the first pass and in every tenth
/// behind it. A sample of zeros is left out of all sums, and has the label 0.
/// Errors   TW_ERROR_RANGE: a negative probability, or a share that is not positive.
/// Ends     converged: error ≤ tol; max_iter.
/// Source   Asano, Rupprecht, Vedaldi, 2019, arXiv:1911.05371.
struct SelfLabel: Driver {
  static let method = Method.solver(
    "self_label", "Balanced pseudo-labels by Sinkhorn-Knopp.",
    rule: "S = P^lam;  r = target/(S c);  c = (1/N)/(r S);  label_i = argmax_k r_k S_ik",
    source: "Asano, Rupprecht, Vedaldi, 2019, arXiv:1911.05371",
    parameters: [
      .number("lam", 25, .above(0), "sharpness"), .number("tol", 0.1, .atLeast(0), "error that ends it"),
      .integer("max_iter", 1000, .atLeast(1), "most passes"),
    ],
    inputs: [
      .constant("probabilities", "n, k", "one row a sample"),
      .constant("target", "k", "shares of the classes; equal when left out", optional: true),
      .result("labels", "n", "class of every sample"), .result("log_r", "k", "log r"),
      .result("log_c", "n", "log c"), .result("iterations", "", "passes"), .result("residual", "", "last error"),
    ])

  let h: Hyper
  init(_ h: Hyper) { self.h = h }
  enum Phase: Int { case start }

  func advance<T: Real>(_ phase: Phase, _ io: DriverIO<T>) throws(Failure) -> Verdict<Phase> {
    let p = try io["probabilities"], r = try io["log_r"], c = try io["log_c"], n = c.count, k = r.count
    for i in 0..<p.count where !(p.p[i] >= 0 && p.p[i] < .infinity) {
      throw Failure(Status.range, "`probabilities` must be at least 0, got \(p.p[i]) at element \(i)")
    }
    let target = io.optional("target"), lam = h.lam as Double
    if let target, let i = (0..<k).first(where: { !(target.p[$0] > 0) }) {
      throw Failure(Status.range, "`target` must be above 0, got \(target.p[i]) at element \(i)")
    }
    let shares = (0..<k).map { j in log(target.map { Double($0.p[j]) } ?? 1 / Double(k)) }
    func sharp(_ i: Int, _ j: Int) -> Double { lam * log(Double(p.p[i * k + j])) }
    c.fill(-log(Double(n)))
    var step = try io.count("iterations")
    repeat {
      for j in 0..<k { r.p[j] = T(shares[j] - logSum(n) { sharp($0, j) + Double(c.p[$0]) }) }
      var error = 0.0
      for i in 0..<n {
        let sum = logSum(k) { sharp(i, $0) + Double(r.p[$0]) }
        if sum == -.infinity {
          c.p[i] = -.infinity
          continue
        }
        let new = -log(Double(n)) - sum, change = abs(exp(Double(c.p[i]) - new) - 1)
        if !change.isNaN { error += change }
        c.p[i] = T(new)
      }
      if step % 10 == 0 { io.residual = error }
      step += 1
      io.iterations = Double(step)
    } while io.iterations < h.max_iter && !(step % 10 == 1 && io.residual <= h.tol)
    let labels = try io["labels"]
    for i in 0..<n {
      var best = 0, top = -Double.infinity
      for j in 0..<k {
        let x = sharp(i, j) + Double(r.p[j])
        if x > top { (best, top) = (j, x) }
      }
      labels.p[i] = T(best)
    }
    return .done(io.residual <= h.tol ? .converged : .maxIter)
  }

  private func logSum(_ n: Int, _ x: (Int) -> Double) -> Double {
    var top = -Double.infinity, sum = 0.0
    for i in 0..<n { top = max(top, x(i)) }
    if top == -.infinity { return top }
    for i in 0..<n { sum += exp(x(i) - top) }
    return top + log(sum)
  }
}
